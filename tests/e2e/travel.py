"""The journeys that a client makes through Aegis: every client, by every front, to every back, with one itinerary.

A journey gives what the client saw in words of JSON, the same for each client, so that they can be compared.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TextIO

import anyio
import mcp_types as types
from mcp import Client, MCPError
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from . import servers
from .house import BOUND_S, HERE, WAYS, WRAP, Home, until

BACKS = ("stdio", "http", "http-legacy", "http-modern", "sse", "websocket")
SEVERAL = ("http", "websocket")
"""Two of them behind one address; the journey goes to the first."""
VERSIONS = {"legacy": "2025-11-25", "auto": "2026-07-28"}


@dataclass(frozen=True)
class Front:
    """`client`: python, ts1, ts2. `way`: relay, handover, http, sse, websocket. `mode`: legacy, auto."""

    client: str
    way: str
    mode: str

    def __str__(self) -> str:
        return f"{self.client}-{self.way}-{self.mode}"


FRONTS = tuple(
    Front(client, way, mode)
    for client, ways, modes in (
        ("python", (*WAYS, "http", "sse", "websocket"), ("legacy", "auto")),
        ("ts1", (*WAYS, "http", "sse", "websocket"), ("legacy",)),  # it speaks the legacy era only
        ("ts2", (*WAYS, "http"), ("legacy", "auto")),
        ("ts2", ("sse",), ("legacy",)),  # it has no WebSocket
    )
    for way in ways
    for mode in modes
)


def url(address: str, way: str, agent: str, backend: str = "") -> str:
    """Where a way of the network begins."""
    scheme, last = {"http": ("http", "mcp"), "sse": ("http", "sse"), "websocket": ("ws", "ws")}[way]
    return f"{scheme}://{address}/agents/{agent}{f'/backends/{backend}' if backend else ''}/{last}"


# --- the official Python client


@asynccontextmanager
async def websocket(url: str) -> AsyncIterator[Any]:
    """A transport for the official client, which has none: one JSON message in each text frame."""
    to_client, client_reads = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    client_writes, from_client = anyio.create_memory_object_stream[SessionMessage](0)
    async with connect(url, subprotocols=["mcp"], proxy=None) as connection:  # type: ignore[list-item]
        assert connection.subprotocol == "mcp"

        async def hear() -> None:
            async with to_client:
                with suppress(ConnectionClosed):
                    async for text in connection:
                        assert isinstance(text, str)
                        message = types.jsonrpc_message_adapter.validate_json(text)
                        await to_client.send(SessionMessage(message))

        async def speak() -> None:
            async with from_client:
                async for message in from_client:
                    await connection.send(message.message.model_dump_json(by_alias=True, exclude_unset=True))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hear)
            tasks.start_soon(speak)
            try:
                yield client_reads, client_writes
            finally:
                tasks.cancel_scope.cancel()
                client_reads.close()
                client_writes.close()


def transport(home: Home, address: str, way: str, agent: str, backend: str, errors: TextIO) -> Any:
    """The way to a backend for an agent; without a backend, to all that it may use."""
    if way in WAYS:
        env = {**home.env, "AEGIS_WAY": way}
        words = ["--agent", agent, "--backend", backend]
        return stdio_client(StdioServerParameters(command=WRAP, args=words, env=env), errors)
    make: Callable[[str], AbstractAsyncContextManager[Any]] = {
        "http": streamable_http_client, "sse": sse_client, "websocket": websocket,
    }[way]  # fmt: skip
    return make(url(address, way, agent, backend))


async def accept(context: Any, params: Any) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ann"})


async def think(context: Any, params: Any) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text="deep")
    return types.CreateMessageResult(role="assistant", content=content, model="m")


async def roots(context: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[types.Root(uri="file:///a"), types.Root(uri="file:///b")])


OFFERS: dict[str, Any] = {
    "elicitation_callback": accept, "sampling_callback": think, "list_roots_callback": roots,
}  # fmt: skip


def said(result: types.CallToolResult) -> str:
    first = result.content[0]
    assert isinstance(first, types.TextContent)
    return first.text


async def told(asked: Awaitable[types.CallToolResult]) -> list[Any]:
    """[code, text] of an answer: "ok", "failed", or a refusal's or error's number."""
    try:
        result = await asked
    except MCPError as error:
        return [error.error.code, error.error.message]
    denial = (result.meta or {}).get("aegis/denial")
    return [denial["code"] if denial else "failed" if result.is_error else "ok", said(result)]


async def attempt(asked: Awaitable[types.CallToolResult]) -> list[Any]:
    """["result", text] or ["error", why], whatever went wrong on the way."""
    try:
        return ["result", said(await asked)]
    except (MCPError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
        return ["error", str(error)]


def noted(home: Home, *words: str) -> bool:
    return any(line[: len(words)] == list(words) for line in home.logged())


def comes(true: Callable[[], Any], bound: float = 5.0) -> bool:
    """Whether it does, in time."""
    try:
        until(true, bound=bound)
    except AssertionError:
        return False
    return True


async def happens(true: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(until, true, what)


async def journey(home: Home, client: Client, key: str, news: asyncio.Event, prefix: str = "") -> dict[str, Any]:
    """The itinerary. `key`: in no other journey; `news`: is set when a legacy client hears that its tools changed.

    `prefix`: what names begin with, where there are several backends.
    """

    def call(name: str, arguments: dict[str, Any], **more: Any) -> Awaitable[types.CallToolResult]:
        return client.call_tool(prefix + name, arguments, **more)

    progress: list[list[Any]] = []

    async def step(done: float, total: float | None, message: str | None) -> None:
        progress.append([done, total, message])

    seen: dict[str, Any] = {"version": client.protocol_version}
    seen["server"] = client.server_info.name if client.server_info else None
    seen["tools"] = {
        tool.name.removeprefix(prefix): tool.description
        for tool in (await client.list_tools()).tools
        if tool.name.startswith(prefix)
    }
    seen["memo"] = (await client.read_resource("memo://by-name/x")).contents[0].text  # type: ignore[union-attr]
    seen["review"] = (await client.get_prompt(prefix + "review", {"code": "c"})).messages[0].content.text  # type: ignore[union-attr]
    added = await call("add", {"a": 1, "b": 2})
    seen["add"] = added.structured_content
    seen["fail"] = await told(call("fail", {"text": "no luck"}))
    seen["walk"] = await told(call("walk", {"count": 3}, progress_callback=step))
    seen["progress"] = progress
    seen["asks"] = [
        await told(call("greet", {"greeting": "hi"})),
        await told(call("wonder", {"topic": "x"})),
        await told(call("where", {})),
    ]
    seen["changed"] = await changed(client, news, prefix + "news")

    asked = asyncio.create_task(call("sleep", {"key": key}))
    await happens(lambda: noted(home, "call", key), "the call that is given up")
    asked.cancel()
    seen["woken"] = await asyncio.to_thread(comes, lambda: noted(home, "woken", key))

    seen["drop"] = await told(call("drop", {"text": key}))
    seen["posts"] = [await told(call("post", {"text": f"{key}-{n}"})) for n in (1, 2, 3)]
    return seen


async def changed(client: Client, news: asyncio.Event, tool: str) -> list[str]:
    """The first news of changed tools, which `tool` causes, however the era brings it."""
    if client.protocol_version == VERSIONS["auto"]:
        async with client.listen(tools_list_changed=True) as events:
            await client.call_tool(tool, {})
            async for event in events:
                return [type(event).__name__]
    for _ in range(40):  # a legacy server has nobody to tell until its stream is open
        await client.call_tool(tool, {})
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await news.wait()
                return ["ToolsListChanged"]
    return []


def visit(
    home: Home,
    address: str,
    front: Front,
    agent: str,
    backend: str,
    use: Callable[[Client, asyncio.Event], Awaitable[Any]],
) -> Any:
    """What `use` makes of a Python client there, and of the event that its tools changed."""

    async def all(errors: TextIO) -> Any:
        news = asyncio.Event()

        async def hear(message: Any) -> None:
            if isinstance(message, types.ToolListChangedNotification):
                news.set()

        way = transport(home, address, front.way, agent, backend, errors)
        async with asyncio.timeout(2 * BOUND_S), Client(way, mode=front.mode, message_handler=hear, **OFFERS) as client:
            return await use(client, news)

    with open(os.devnull, "w") as errors:
        return asyncio.run(all(errors))


# --- the official TypeScript clients


def with_typescript(
    home: Home, address: str, front: Front, agent: str, backend: str, key: str, prefix: str = ""
) -> dict[str, Any]:
    """The same itinerary in a process of its own."""
    plan: dict[str, Any] = {"sdk": front.client, "modules": str(servers.MODULES), "mode": front.mode, "way": front.way}
    plan |= {"key": key, "log": str(home.log), "prefix": prefix}
    if front.way in WAYS:
        plan |= {"command": WRAP, "args": ["--agent", agent, "--backend", backend]}
        plan["env"] = {**home.env, "AEGIS_WAY": front.way}
    else:
        plan["url"] = url(address, front.way, agent, backend)
    done = subprocess.run(
        [str(servers.NODE), str(HERE / "travel.mjs"), json.dumps(plan)],
        capture_output=True, timeout=2 * BOUND_S, stdin=subprocess.DEVNULL, env=home.env,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:].decode(errors="replace")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def travel(home: Home, address: str, front: Front, agent: str, back: str) -> dict[str, Any]:
    """What a client sees on its journey; `agent` is nobody else's. Without a back, it goes to `SEVERAL`."""
    prefix = "" if back else f"{SEVERAL[0]}__"
    if front.client != "python":
        return with_typescript(home, address, front, agent, back, agent, prefix)

    async def use(client: Client, news: asyncio.Event) -> dict[str, Any]:
        return await journey(home, client, agent, news, prefix)

    found: dict[str, Any] = visit(home, address, front, agent, back, use)
    return found
