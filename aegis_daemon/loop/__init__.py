"""What touches the event loop on the frames' path: descriptors, waiting, and calls stepped by hand.

A floor of its own between `core` and the siblings: transports and backends both stand on it and stay strangers.
"""
