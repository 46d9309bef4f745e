"""`aegis audit`: one file for each command, listed in `commands`."""
