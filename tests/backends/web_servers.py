"""Real servers for the network backends, in a process of their own: `web_servers.py KIND [OPTION…]`, KIND one of
http, json, resumable, sse, ws, forgetful. Prints its port, then serves until its stdin ends."""

import asyncio
import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from subprocess import PIPE, Popen
from typing import Annotated, Any


@contextlib.contextmanager
def serving(kind: str) -> Iterator[int]:
    """Its port."""
    with Popen([sys.executable, __file__, kind], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def app(kind: str) -> Any:
    from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve
    from mcp.server.streamable_http import EventMessage, EventStore
    from pydantic import BaseModel, Field

    class Memory(EventStore):
        def __init__(self) -> None:
            self.events: list[tuple[str, Any]] = []

        async def store_event(self, stream_id: str, message: Any) -> str:
            self.events.append((stream_id, message))
            return str(len(self.events))

        async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
            stream = self.events[int(last_event_id) - 1][0]
            for number, (of, message) in enumerate(self.events, 1):
                if of == stream and number > int(last_event_id) and message is not None:
                    await send_callback(EventMessage(message, str(number)))
            return stream

    class Name(BaseModel):
        name: str

    server = MCPServer("web", version="1")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    @server.tool()
    def echo(text: str) -> str:
        """Says it again."""
        return text

    @server.tool()
    async def steps(count: int, context: Context) -> str:
        """Tells its progress."""
        for step in range(1, count + 1):
            await context.report_progress(step, count, f"step {step}")
        return f"{count} steps"

    @server.tool()
    async def broken_stream(context: Context) -> str:
        """Answers after its stream was closed."""
        await asyncio.sleep(0.5)  # its first event, without which nobody could take it up, has left by then
        await context.close_sse_stream()
        await asyncio.sleep(0.1)
        return "after all"

    def who() -> Elicit[Name]:
        return Elicit("who?", Name)

    @server.tool()
    def greet(name: Annotated[Name, Resolve(who)]) -> str:
        """Asks the person."""
        return f"hello {name.name}"

    @server.tool()
    async def forever(context: Context) -> str:
        """Never comes back by itself."""
        await context.report_progress(1, 2, "begun")
        await asyncio.sleep(1000)
        return ""

    @server.tool()
    async def change(context: Context) -> str:
        """Announces that the tools changed."""
        await context.notify_tools_changed()  # to modern subscribers
        await context.session.send_tool_list_changed()  # to the legacy session
        return "changed"

    @server.tool()
    def where(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})], n: int = 0) -> str:
        """Has a mirrored argument."""
        return f"in {region}"

    if kind == "sse":
        return server.sse_app()
    if kind == "resumable":
        return server.streamable_http_app(event_store=Memory(), retry_interval=50)
    return server.streamable_http_app(json_response=kind == "json", session_idle_timeout=None)


async def websocket(port: socket.socket) -> None:
    """A server that speaks just enough MCP over WebSocket, and refuses those without the right token."""
    from websockets.asyncio.server import serve

    async def talk(connection: Any) -> None:
        async for text in connection:
            frame = json.loads(text)
            if frame.get("method") == "tools/call":
                name = frame["params"]["name"]
                if name == "leave":
                    await connection.close()
                    return
                if name == "binary":
                    await connection.send(b"{}")
                    continue
                if name == "pretty":
                    await connection.send(json.dumps({"jsonrpc": "2.0", "id": frame["id"], "result": {}}, indent=1))
                    continue
                if name == "pieces":
                    whole = json.dumps({"jsonrpc": "2.0", "id": frame["id"], "result": {"text": "x" * 3000}})
                    await connection.send([whole[at : at + 1000] for at in range(0, len(whole), 1000)])
                    continue
                if name == "huge":
                    await connection.send(" " * (11 << 20))
                    continue
                if name == "silent":
                    continue
            if "id" in frame:
                result = {"protocol": connection.subprotocol, "method": frame["method"]}
                await connection.send(json.dumps({"jsonrpc": "2.0", "id": frame["id"], "result": result}))

    def check(connection: Any, request: Any) -> Any:
        if request.headers.get("Authorization") != "Bearer secret":
            return connection.respond(401, "who are you?")
        return None

    async with serve(talk, sock=port, subprotocols=["mcp"], process_request=check, max_size=None):
        await asyncio.get_running_loop().create_future()


def main(kind: str) -> None:
    port = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: (sys.stdin.read(), __import__("os")._exit(0)), daemon=True).start()
    ready = f"{port.getsockname()[1]}\n"
    if kind == "ws":
        print(ready, end="", flush=True)
        asyncio.run(websocket(port))
        return
    import uvicorn

    config = uvicorn.Config(app(kind), log_level="warning", timeout_keep_alive=60)
    print(ready, end="", flush=True)
    uvicorn.Server(config).run(sockets=[port])


if __name__ == "__main__":
    main(sys.argv[1])
