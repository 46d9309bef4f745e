"""The daemon of Aegis: everything that decides, waits, forwards and records."""
