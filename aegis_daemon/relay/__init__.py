"""One call, and one session of calls."""
