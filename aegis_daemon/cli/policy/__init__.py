"""`aegis policy`: one file for each command that is more than a few lines, listed in `commands`."""
