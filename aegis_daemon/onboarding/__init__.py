"""From nothing to governed: what tools may do, what servers offer, which rules follow, and whether all of it works."""
