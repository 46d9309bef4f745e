"""Copies of the audit log for other systems, made by a process of its own that no call ever waits for."""
