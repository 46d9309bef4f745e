"""The clients' side: how agents reach the daemon."""
