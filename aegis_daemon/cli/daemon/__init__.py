"""`aegis daemon`: its commands, and how the daemon becomes a service."""
