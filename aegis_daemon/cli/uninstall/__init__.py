"""`aegis uninstall`: the command, and what of the files on this machine is Aegis's own."""
