"""A client of the official Python SDK that gives up after a while: `impatient.py PLAN`, PLAN being JSON.

For each line of its stdin, `{"arguments": {...}, "timeout": seconds}`, it calls `post` once and prints what it saw:
`{"kind": "result" | "timeout" | "error", "text": ..., "failed": ..., "meta": ..., "code": ...}`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Implementation, TextContent

TIMED_OUT = (-32001, 408)
"""What the SDK calls its own impatience, by version."""


async def seen(client: Client, ask: dict[str, Any]) -> dict[str, Any]:
    try:
        result = await client.call_tool("post", ask["arguments"], read_timeout_seconds=ask["timeout"])
    except MCPError as error:
        own = error.error.code in TIMED_OUT and "timed out" in error.error.message.lower()
        return {"kind": "timeout" if own else "error", "code": error.error.code, "text": error.error.message}
    first = result.content[0]
    assert isinstance(first, TextContent)
    return {"kind": "result", "text": first.text, "failed": bool(result.is_error), "meta": result.meta or {}}


async def main(plan: dict[str, Any]) -> None:
    if plan["way"] == "http":
        way: Any = streamable_http_client(plan["url"])
    else:
        given = StdioServerParameters(command=plan["command"], args=plan["args"], env=plan["env"])
        way = stdio_client(given, sys.stderr)
    who = Implementation(name=plan["name"], version="1")
    async with Client(way, mode=plan["mode"], client_info=who) as client:
        print(json.dumps({"kind": "ready", "version": client.protocol_version}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await seen(client, json.loads(line))), flush=True)


asyncio.run(main(json.loads(sys.argv[1])))
