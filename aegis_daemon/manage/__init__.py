"""Management: the socket on which the command line asks and decides; never a path for agents' frames."""
