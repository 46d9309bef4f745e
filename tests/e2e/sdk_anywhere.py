"""The server of `sdk_server` over any transport and in any era: `sdk_anywhere.py LOG KIND [PORT]`.

KIND is stdio (its pipes), http (both eras), http-legacy, http-modern (one era alone), sse or websocket. The others print
their port, and serve until their stdin ends; the MCP address is /mcp, /sse or /.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KINDS = ("http", "http-legacy", "http-modern", "sse", "websocket")
VERSION = b"mcp-protocol-version"
LEGACY = (b"2025-03-26", b"2025-06-18", b"2025-11-25")


def command(log: Path, kind: str, port: int = 0) -> list[str]:
    return [sys.executable, str(HERE / "sdk_anywhere.py"), str(log), kind, str(port)]


@contextlib.contextmanager
def serving(log: Path, kind: str, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its URL, and its process."""
    with subprocess.Popen(
        command(log, kind, port), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            told = int(process.stdout.readline())
            place = {"sse": "http://127.0.0.1:{}/sse", "websocket": "ws://127.0.0.1:{}/"}
            yield place.get(kind, "http://127.0.0.1:{}/mcp").format(told), process
        finally:
            process.kill()


def only(app: Any, kind: str) -> Any:
    """The official server's HTTP end without one of its eras, by the header that it chooses them by."""

    async def narrowed(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            named = dict(scope["headers"]).get(VERSION)
            headers = [pair for pair in scope["headers"] if pair[0] != VERSION]
            if kind == "http-modern":
                headers.append((VERSION, b"2026-07-28"))
            elif named in LEGACY:
                headers.append((VERSION, named))
            scope = {**scope, "headers": headers}
        await app(scope, receive, send)

    return narrowed


async def websocket(server: Any, port: socket.socket) -> None:
    """One JSON message in each text frame, both ways; a session for each connection."""
    import anyio
    import mcp_types as types
    from mcp.shared.message import SessionMessage
    from websockets.asyncio.server import serve
    from websockets.exceptions import ConnectionClosed

    inner = server._lowlevel_server

    async def talk(connection: Any) -> None:
        to_server, server_reads = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        server_writes, from_server = anyio.create_memory_object_stream[SessionMessage](0)

        async def speak() -> None:
            async with from_server:
                async for message in from_server:
                    await connection.send(message.message.model_dump_json(by_alias=True, exclude_unset=True))

        async with anyio.create_task_group() as tasks, to_server, server_writes:
            tasks.start_soon(speak)
            tasks.start_soon(inner.run, server_reads, server_writes, inner.create_initialization_options())
            with contextlib.suppress(ConnectionClosed):
                async for text in connection:
                    await to_server.send(SessionMessage(types.jsonrpc_message_adapter.validate_json(text)))
            tasks.cancel_scope.cancel()

    async with serve(talk, sock=port, subprotocols=["mcp"]):
        await asyncio.get_running_loop().create_future()


def main(kind: str, number: int) -> None:
    from mcp.server.lowlevel import NotificationOptions
    from mcp.server.mcpserver import Context
    from sdk_server import note, server

    # It is the evaluation of `news`'s annotation that looks for it there.
    globals()["Context"] = Context

    @server.tool()
    def post(text: str) -> str:
        """Posts."""
        note("call", f"post-{text}", os.getpid())
        return f"posted {text}"

    @server.tool()
    def drop(text: str) -> str:
        """Is never to be reached."""
        note("call", f"drop-{text}", os.getpid())
        return f"dropped {text}"

    @server.tool()
    async def walk(count: int, context: Context) -> str:
        """Tells its progress at leisure: some clients lose what they read together with the answer."""
        for step in range(1, count + 1):
            await context.report_progress(step, count, f"step {step}")
            await asyncio.sleep(0.05)
        return f"{count} steps"

    @server.tool()
    async def news(context: Context) -> str:
        """Announces that its tools changed, as each era does it."""
        if context.protocol_version == "2026-07-28":
            await context.notify_tools_changed()
        else:
            await context.session.send_tool_list_changed()
        return "told"

    # There is no other way to promise a legacy client that it will hear of it.
    inner = server._lowlevel_server
    promised = functools.partial(inner.create_initialization_options, NotificationOptions(tools_changed=True))
    inner.create_initialization_options = promised

    if kind == "stdio":
        server.run("stdio")
        return
    port = socket.create_server(("127.0.0.1", number))
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    print(port.getsockname()[1], flush=True)
    if kind == "websocket":
        asyncio.run(websocket(server, port))
        return
    import uvicorn

    if kind == "sse":
        app: Any = server.sse_app()
    else:
        app = server.streamable_http_app()
    if kind in ("http-legacy", "http-modern"):
        app = only(app, kind)
    uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_keep_alive=60)).run(sockets=[port])


if __name__ == "__main__":
    main(sys.argv[2], int(sys.argv[3]))
