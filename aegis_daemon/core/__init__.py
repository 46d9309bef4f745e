"""Decisions: pure, without IO, clock or randomness; the one thing logged is a gate that failed."""
