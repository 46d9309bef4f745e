"""The tour behind `aegis demo`: a server to govern, a sandbox to do it in, and nine steps that check what they show."""
