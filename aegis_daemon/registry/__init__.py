"""What servers say of themselves, remembered and compared."""
