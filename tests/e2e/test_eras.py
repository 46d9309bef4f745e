"""The official client of one era and a real server of the other, with nothing but the bridge between them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.shared.message import SessionMessage

from aegis_daemon.backends.children import Command, Nursery
from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.backends.stdio import StdioServer
from aegis_daemon.backends.streamable_http import HttpServer
from aegis_daemon.core.ports import Fault
from aegis_daemon.loop.clock import monotonic
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.relay.eras import Bridge, EraMemory
from aegis_daemon.wire.jsonrpc import MAX_FRAME_OUT, Frame, parse
from aegis_daemon.wire.methods import META_SUBSCRIPTION

from . import servers
from .house import BOUND_S, HERE

pytestmark = pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
Use = Callable[[Client], Awaitable[Any]]
SDK = [sys.executable, str(HERE / "sdk_server.py"), os.devnull]


class ModernOnly:
    """A real backend that refuses every handshake, as a server of 2026-07-28 alone does."""

    def __init__(self, server: Any, on_lines: Callable[[list[bytes], int | None], None]) -> None:
        self._server = server
        self._on_lines = on_lines

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        if frame is not None and frame.method == "initialize":
            refusal = {"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": "no such method"}}
            asyncio.get_running_loop().call_soon(self._on_lines, [json.dumps(refusal).encode()], None)
        else:
            self._server.send(text, frame, number)


class Between:
    """A client's streams on the one side, a bridge on the other; ids are given as a conversation gives them."""

    def __init__(self, where: list[str] | str, nursery: Nursery, modern_only: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.outbox = Outbox(self.loop)
        self.to_client, self.client_reads = anyio.create_memory_object_stream[SessionMessage | Exception](1000)
        self.client_writes, self.from_client = anyio.create_memory_object_stream[SessionMessage](1000)
        self.ids: dict[int, Any] = {}
        self.opened = 0
        self.gone = asyncio.Event()
        self.lost: list[str] = []

        def make(on_lines: Any, on_lost: Any, on_full: Any, on_exit: Any, on_failed: Any) -> Any:
            self.opened += 1
            on = {"on_full": on_full, "on_exit": on_exit, "on_failed": on_failed}
            server: Any
            if isinstance(where, str):
                server = HttpServer(
                    self.loop,
                    self.outbox,
                    self.pool,
                    where,
                    {},
                    on_lines=on_lines,
                    on_lost=on_lost,
                    fall_back=True,
                    **on,
                )
            else:
                server = StdioServer(
                    self.loop, self.outbox, nursery, Command(tuple(where), None, dict(os.environ), 0o077),
                    self.errors.fileno(), limit=MAX_FRAME_OUT, on_lines=lambda lines: on_lines(lines, None),
                    on_long=lambda head, tail: None, **on,
                )  # fmt: skip
            return ModernOnly(server, on_lines) if modern_only else server

        self.errors = open(os.devnull, "w")  # noqa: SIM115
        self.pool = HttpPool(self.loop)
        self.bridge = Bridge(
            make, EraMemory(), call_later=self.loop.call_later, now=monotonic, on_lines=self._lines,
            on_lost=self._lost, on_full=lambda full: None, on_exit=lambda code: self.gone.set(),
            on_failed=lambda text: self.gone.set(),
        )  # fmt: skip

    async def pump(self) -> None:
        async with self.from_client:
            async for message in self.from_client:
                frame = parse(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode())
                if "method" not in frame.value or frame.id is None:
                    if frame.method == "notifications/cancelled":
                        number = next((n for n, id in self.ids.items() if id == frame.params["requestId"]), 0)
                        said = {**frame.value, "params": {**frame.params, "requestId": number}}
                        self.bridge.cancel(number, json.dumps(said).encode())
                    else:
                        self.bridge.send(frame.encoded(), frame, 0)
                    continue
                number = len(self.ids) + 1
                self.ids[number] = frame.id
                self.bridge.send(frame.encoded(number), frame, number)

    def _lines(self, lines: list[bytes], about: int | None) -> None:
        for line in lines:
            said = json.loads(line)
            if "method" not in said:
                said["id"] = self.ids[said["id"]]
            meta = (said.get("params") or said.get("result") or {}).get("_meta", {})
            if META_SUBSCRIPTION in meta:
                meta[META_SUBSCRIPTION] = self.ids[meta[META_SUBSCRIPTION]]
            self._tell(said)

    def _lost(self, number: int, fault: Fault) -> None:
        self.lost.append(fault.text)
        error = {"jsonrpc": "2.0", "id": self.ids[number], "error": {"code": -32603, "message": fault.text}}
        self._tell(error)

    def _tell(self, said: dict[str, Any]) -> None:
        with suppress(anyio.BrokenResourceError):  # the client reads no more
            self.to_client.send_nowait(SessionMessage(types.jsonrpc_message_adapter.validate_python(said)))

    async def close(self) -> None:
        self.bridge.close_stdin()
        self.bridge.end()
        await self.gone.wait()
        self.errors.close()
        self.pool.close()
        await self.to_client.aclose()


def bridged(
    where: list[str] | str, use: Use, mode: str, modern_only: bool = False, opened: int = 2, **offers: Any
) -> Any:
    """What `use` makes of a client of this era on a server of the other."""

    async def all() -> Any:
        nursery = Nursery()
        nursery.start()
        between = Between(where, nursery, modern_only)

        @asynccontextmanager
        async def transport() -> AsyncIterator[Any]:
            pumping = asyncio.ensure_future(between.pump())
            try:
                yield between.client_reads, between.client_writes
            finally:
                await between.client_writes.aclose()
                await pumping
                await between.client_reads.aclose()

        try:
            async with asyncio.timeout(2 * BOUND_S), Client(transport(), mode=mode, **offers) as client:
                made = await use(client)
            assert between.opened == opened
            return made
        finally:
            await between.close()
            await nursery.close()

    return asyncio.run(all())


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


def words(result: Any) -> str:
    return " ".join(part.text for part in result.content if part.type == "text")


@pytest.fixture(scope="module")
def sdk_url() -> Iterator[str]:
    """The official SDK's server of both eras over HTTP."""
    script = HERE.parent / "backends" / "web_servers.py"
    with subprocess.Popen([sys.executable, str(script), "both"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        yield f"http://127.0.0.1:{int(run.stdout.readline())}/mcp"
        run.kill()


@pytest.fixture(scope="module")
def everything_url() -> Iterator[str]:
    """The reference server of the legacy era over HTTP."""
    servers.needed()
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    argv = [*servers.command("everything", Path()), "streamableHttp"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, env={**os.environ, "PORT": str(port)}, **quiet) as run:  # type: ignore[call-overload]
        assert b"listening" in run.stderr.readline()
        yield f"http://127.0.0.1:{port}/mcp"
        run.kill()


# --- a modern client, the reference server of the legacy era ----------------------------------------------------------


@pytest.fixture
def everything(tmp_path: Path) -> list[str]:
    servers.needed()
    return servers.command("everything", tmp_path)


def test_a_modern_client_tours_a_legacy_server(everything: list[str]) -> None:
    async def use(client: Client) -> None:
        assert client.protocol_version == "2026-07-28"
        assert client.server_info.name == "mcp-servers/everything"
        assert client.server_capabilities.resources.subscribe is True
        assert client.instructions
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert {"echo", "get-sum"} <= tools
        assert "ä" in words(await client.call_tool("echo", {"message": "ä"}))
        found = await client.list_resources()
        assert (await client.read_resource(found.resources[0].uri)).contents
        assert (await client.list_resource_templates()).resource_templates
        assert (await client.list_prompts()).prompts
        assert (await client.get_prompt("simple-prompt")).messages
        seen: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            seen.append(done)

        slow = {"duration": 0.2, "steps": 4}
        await client.call_tool("trigger-long-running-operation", slow, progress_callback=progress)
        assert seen == [1, 2, 3, 4]

    bridged(everything, use, "auto")


def test_a_modern_client_is_asked_what_a_legacy_server_asks(everything: list[str]) -> None:
    async def use(client: Client) -> None:
        assert "Ann" in words(await client.call_tool("trigger-elicitation-request", {}))
        assert "deep" in words(await client.call_tool("trigger-sampling-request", {"prompt": "p", "maxTokens": 10}))
        assert "file:///b" in words(await client.call_tool("get-roots-list", {}))

    bridged(everything, use, "2026-07-28", **OFFERS)


def test_a_client_that_finds_out_for_itself_takes_the_bridge_for_a_modern_server(everything: list[str]) -> None:
    async def use(client: Client) -> str:
        assert "hi" in words(await client.call_tool("echo", {"message": "hi"}))
        return str(client.protocol_version)

    assert bridged(everything, use, "auto") == "2026-07-28"


def test_a_modern_client_listens_to_a_legacy_server(everything: list[str]) -> None:
    async def use(client: Client) -> None:
        uri = (await client.list_resources()).resources[0].uri
        async with client.listen(resource_subscriptions=[str(uri)]) as heard:
            await client.call_tool("toggle-subscriber-updates", {})
            event = await anext(aiter(heard))
            assert event.uri == str(uri)

    bridged(everything, use, "2026-07-28")


# --- a legacy client, a server of the modern era ----------------------------------------------------------------------


def test_a_legacy_client_tours_a_modern_server() -> None:
    async def use(client: Client) -> None:
        assert client.protocol_version == "2025-11-25"
        assert client.server_info.name == "sdk"
        assert client.instructions == "ask it anything"
        await client.send_ping()
        assert {"add", "greet"} <= {tool.name for tool in (await client.list_tools()).tools}
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        assert (await client.call_tool("fail", {"text": "no"})).is_error
        assert (await client.read_resource("memo://one")).contents[0].text == "one \u2028 \U0001f600"
        assert (await client.get_prompt("review", {"code": "x"})).messages
        with pytest.raises(MCPError):
            await client.get_prompt("no-such-prompt")
        seen: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            seen.append(done)

        await client.call_tool("steps", {"count": 3}, progress_callback=progress)
        assert seen == [1, 2, 3]

    bridged(SDK, use, "legacy", modern_only=True)


def test_a_legacy_client_is_asked_what_a_modern_server_asks() -> None:
    async def use(client: Client) -> None:
        assert words(await client.call_tool("greet", {"greeting": "hello"})) == "hello Ann"
        assert words(await client.call_tool("wonder", {"topic": "x"})) == "x: deep"
        assert words(await client.call_tool("where", {})) == "file:///a file:///b"

    bridged(SDK, use, "legacy", modern_only=True, **OFFERS)


def test_a_legacy_client_hears_what_changes_at_a_modern_server() -> None:
    heard: list[str] = []
    both = asyncio.Event()

    async def take(message: Any) -> None:
        heard.append(getattr(message, "method", ""))
        if {"notifications/tools/list_changed", "notifications/resources/updated"} <= set(heard):
            both.set()

    async def use(client: Client) -> None:
        await client.session.subscribe_resource("memo://one")
        await client.call_tool("change", {})
        await both.wait()

    bridged(SDK, use, "legacy", modern_only=True, message_handler=take)


# --- over http ------------------------------------------------------------------------------------------------------


def test_a_modern_client_and_a_legacy_server_over_http(everything_url: str) -> None:
    async def use(client: Client) -> None:
        assert client.server_info.name == "mcp-servers/everything"
        assert "ä" in words(await client.call_tool("echo", {"message": "ä"}))
        assert "Ann" in words(await client.call_tool("trigger-elicitation-request", {}))
        assert "deep" in words(await client.call_tool("trigger-sampling-request", {"prompt": "p", "maxTokens": 10}))
        assert "file:///b" in words(await client.call_tool("get-roots-list", {}))
        seen: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            seen.append(done)

        slow = {"duration": 0.2, "steps": 4}
        await client.call_tool("trigger-long-running-operation", slow, progress_callback=progress)
        assert seen == [1, 2, 3, 4]

    bridged(everything_url, use, "auto", **OFFERS)


def test_a_legacy_client_and_a_modern_server_over_http(sdk_url: str) -> None:
    heard: list[str] = []
    changed = asyncio.Event()

    async def take(message: Any) -> None:
        heard.append(getattr(message, "method", ""))
        if heard[-1] == "notifications/tools/list_changed":
            changed.set()

    async def use(client: Client) -> None:
        assert words(await client.call_tool("greet", {})) == "hello Ann"
        await client.list_tools()
        assert words(await client.call_tool("where", {"region": "eu"})) == "in eu"
        await client.call_tool("change", {})
        await changed.wait()

    bridged(sdk_url, use, "legacy", modern_only=True, message_handler=take, **OFFERS)


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_a_server_of_both_eras_over_http_is_not_translated(sdk_url: str, mode: str) -> None:
    async def use(client: Client) -> str:
        assert words(await client.call_tool("greet", {})) == "hello Ann"
        return str(client.protocol_version)

    assert bridged(sdk_url, use, mode, opened=1, **OFFERS) == {"legacy": "2025-11-25"}.get(mode, mode)


# --- the same era on both sides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_a_server_of_both_eras_is_not_translated(mode: str) -> None:
    async def use(client: Client) -> str:
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        return str(client.protocol_version)

    assert bridged(SDK, use, mode, opened=1) == {"legacy": "2025-11-25"}.get(mode, mode)
