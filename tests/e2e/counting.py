"""A small MCP server that notes what reaches it: `counting.py LOG`, Python's standard library alone.

One line for each event, appended in one write, so that it outlives the process: `start PID`, `call KEY PID SECONDS`,
`cancelled ID`, `initialize`, `initialized`, `eof PID`, `signal N`.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import signal
import sys
import time

LOG = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
OPTIONS = sys.argv[2:]
TOOLS = {
    "work": "Notes `key`, answers after `ms` milliseconds (0)",
    "post": "As work",
    "fail": "As work, and answers with isError",
    "mute": "As work, and never answers",
    "hold": "As work, and answers when `release` is called with its key",
    "release": "As work",
    "big": "As work, and answers with `size` bytes",
    "steps": "As work, with `count` progress notifications",
    "say": "As work; writes `text` to stderr first",
    "leave": "Ends with `status`, or by `signal`",
    "family": "Starts descendants that leave their group, their session and their parent, and do not heed SIGTERM",
    "flood": "Answers, and then sends `count` notifications",
    "raw": "Writes `text` to stdout as it is",
    "error": "As work, and answers with a JSON-RPC error",
}
held: dict[str, bytes] = {}
later: list[tuple[float, int, bytes]] = []
order = 0


def note(*words: object) -> None:
    os.write(LOG, (" ".join(map(str, words)) + "\n").encode())


def put(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


def frame(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def result(id: object, text: str, **more: object) -> bytes:
    value = {"content": [{"type": "text", "text": text}], **more}
    return frame({"jsonrpc": "2.0", "id": id, "result": value})


def family() -> None:
    """A child in its own session, and an orphan in its own; both deaf."""
    for orphan in (False, True):
        if os.fork() == 0:
            os.setsid()
            if orphan and os.fork():
                os._exit(0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1):
                os.dup2(null, fd)
            note("relative", os.getpid())
            while True:
                time.sleep(1000)


def tool(id: object, name: str, arguments: dict, token: object) -> None:
    global order
    key = arguments.get("key", "-")
    note("call", key, os.getpid(), time.monotonic())
    if name == "say":
        os.write(2, arguments["text"].encode())
    elif name == "leave":
        if "signal" in arguments:
            if arguments["signal"] != signal.SIGKILL:
                signal.signal(arguments["signal"], signal.SIG_DFL)
            os.kill(os.getpid(), arguments["signal"])
            time.sleep(10)
        os._exit(arguments.get("status", 0))
    elif name == "family":
        family()
    elif name == "raw":
        put(arguments["text"].encode())
    elif name == "mute":
        return
    if name == "fail":
        answer = result(id, key, isError=True)
    elif name == "error":
        answer = frame({"jsonrpc": "2.0", "id": id, "error": {"code": -32050, "message": "as asked", "data": [key]}})
    elif name == "big":
        answer = result(id, "x" * arguments["size"])
    else:
        answer = result(id, key)
    if name == "steps" and token is not None:
        for step in range(1, arguments["count"] + 1):
            params = {"progressToken": token, "progress": step, "total": arguments["count"]}
            put(frame({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))
    if name == "hold":
        held[key] = answer
        return
    if name == "release":
        put(held.pop(key))
    if arguments.get("ms"):
        order += 1
        heapq.heappush(later, (time.monotonic() + arguments["ms"] / 1000, order, answer))
    else:
        put(answer)
    if name == "flood":
        line = frame(
            {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x" * 200}}
        )
        for _ in range(arguments["count"]):
            put(line)


def handle(message: dict) -> None:
    method, id = message.get("method"), message.get("id")
    params = message.get("params") or {}
    if method == "tools/call":
        tool(id, params["name"], params.get("arguments") or {}, (params.get("_meta") or {}).get("progressToken"))
    elif method == "initialize":
        note("initialize")
        server = {"name": "counting", "version": "1"}
        value = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": server}
        put(frame({"jsonrpc": "2.0", "id": id, "result": value}))
    elif method == "notifications/initialized":
        note("initialized")
    elif method == "notifications/cancelled":
        note("cancelled", params.get("requestId"))
    elif method == "tools/list":
        tools = [{"name": n, "description": d, "inputSchema": {"type": "object"}} for n, d in TOOLS.items()]
        put(frame({"jsonrpc": "2.0", "id": id, "result": {"tools": tools}}))
    elif method == "ping":
        put(frame({"jsonrpc": "2.0", "id": id, "result": {}}))
    elif id is not None and method is not None:
        put(frame({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no"}}))


def main() -> None:
    def stopped(number: int, _: object) -> None:
        note("signal", number)
        os._exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in OPTIONS else stopped)
    note("start", os.getpid())
    poll = select.poll()
    poll.register(0, select.POLLIN)
    buffer = b""
    while True:
        wait = None if not later else max(0, (later[0][0] - time.monotonic()) * 1000)
        if poll.poll(wait):
            data = os.read(0, 1 << 16)
            if not data:
                note("eof", os.getpid())
                if "stubborn" in OPTIONS:
                    time.sleep(1000)
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                handle(json.loads(line))
        while later and later[0][0] <= time.monotonic():
            put(heapq.heappop(later)[2])


main()
