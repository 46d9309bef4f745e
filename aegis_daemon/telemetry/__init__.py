"""What operators see of the daemon in numbers and traces; nothing here ever waits, fails a call or sees a body."""
