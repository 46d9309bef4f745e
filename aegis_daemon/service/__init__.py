"""Aegis as a service: of a person's login (systemd, launchd), or of the machine (the isolated tier)."""
