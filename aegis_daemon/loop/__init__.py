"""What touches the event loop, descriptors and files: frames in and out, waiting, helper processes, whole files.

A floor of its own between `core` and the siblings: several of them stand on it and stay strangers.
"""
