"""Configuration: where files are, what settings exist, and how a file becomes a checked `Config`."""
