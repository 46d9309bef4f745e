"""The `aegis` command: one file for each command, listed in `main`."""
