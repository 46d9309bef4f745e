"""The running daemon: the only place where the siblings are introduced to each other."""
