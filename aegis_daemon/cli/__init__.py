"""The `aegis` command: one file or package for each command, listed in `main`."""
