"""The daemon of Aegis: everything that decides, waits, forwards and records."""

__version__ = "0.1.0"
