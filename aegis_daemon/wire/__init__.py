"""Bytes to messages and back: pure, without IO, clock or randomness."""
