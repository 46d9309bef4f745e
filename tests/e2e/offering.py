"""A server of the tools that its arguments name (`name`, or `name=destructive|readonly`); writes down each call."""

from __future__ import annotations

import json
import sys
from typing import Any

LOG, TOOLS = sys.argv[1], sys.argv[2:]
HINTS = {"destructive": {"destructiveHint": True}, "readonly": {"readOnlyHint": True}}


def tool(text: str) -> dict[str, Any]:
    name, _, hint = text.partition("=")
    made: dict[str, Any] = {"name": name, "description": name, "inputSchema": {"type": "object", "properties": {}}}
    return {**made, "annotations": HINTS[hint]} if hint else made


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        info = {"name": "offering", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        at = int(params.get("cursor", "0"))
        page = {"tools": [tool(text) for text in TOOLS[at : at + 2]]}
        return {**page, "nextCursor": str(at + 2)} if at + 2 < len(TOOLS) else page
    if method == "tools/call":
        with open(LOG, "a") as file:
            file.write(f"{params['name']}\n")
        return {"content": [{"type": "text", "text": "done"}]}
    return {} if method == "ping" else None


for line in sys.stdin:
    frame = json.loads(line)
    if "id" not in frame or "method" not in frame:
        continue
    found = answer(frame["method"], frame.get("params", {}))
    outcome = {"result": found} if found is not None else {"error": {"code": -32601, "message": "no such method"}}
    print(json.dumps({"jsonrpc": "2.0", "id": frame["id"], **outcome}), flush=True)
