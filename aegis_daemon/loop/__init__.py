"""What touches the event loop and its descriptors: frames in and out, waiting, calls stepped by hand, helper processes.

A floor of its own between `core` and the siblings: several of them stand on it and stay strangers.
"""
