"""Where people decide: tickets, and the desk that keeps them."""
