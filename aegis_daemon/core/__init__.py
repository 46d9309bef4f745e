"""Decisions: pure, without IO, clock, randomness or logging."""
