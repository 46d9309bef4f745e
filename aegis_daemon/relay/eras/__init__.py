"""Here a client and a server of different eras meet, and each hears its own protocol and nothing of the other's.

A `Bridge` is a backend between a conversation and the real one. It finds out what both speak (`bridge`, `signs`,
`memory`) and leaves frames of one era alone; others go through `legacy_server` for a modern client, or through
`modern_server` for a legacy one.

What has no equivalent on the other side is refused with an error that says which era lacks it. Whatever the bridge
asks of a client goes through the conversation like any other question of a server, and whatever it sends to a server
either was judged there or is part of a handshake.
"""

from __future__ import annotations

from aegis_daemon.relay.eras.bridge import Bridge
from aegis_daemon.relay.eras.memory import EraMemory

__all__ = ["Bridge", "EraMemory"]
