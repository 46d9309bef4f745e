"""A server on the official SDK that turns: `turning.py LOG FILE`. `FILE` holds what it says of its tool `pay`.

It reads the file when it starts, and again when its tool `turn` is called.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

LOG = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
server = MCPServer("turning", version="1")


def pay(key: str) -> str:
    os.write(LOG, f"call {key} {os.getpid()}\n".encode())
    return "paid"


def offer() -> None:
    server.add_tool(pay, description=Path(sys.argv[2]).read_text())


@server.tool()
def turn() -> str:
    """Reads the file again."""
    server.remove_tool("pay")
    offer()
    return "turned"


offer()
server.run()
