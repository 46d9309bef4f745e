"""Engines that judge what a call says: pure, compiled once, and imported only where a configuration needs them."""
