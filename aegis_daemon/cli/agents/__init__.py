"""`aegis agents`: its commands, listed in `commands`, and what they and `aegis setup` do alike to clients' files."""
