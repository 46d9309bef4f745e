"""A server is asked what it offers, started as its client would start it; no tool of it is ever called.

Several are asked side by side, each for a bounded time; what goes wrong is told with the next step. Its processes are
gone when a server's answer is there, whatever sessions they went to: the warden is their parent, as it is the daemon's.
A program that installs a server before it starts it gets the time for that, since one that is ended in the middle may
leave half of it behind.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from aegis_daemon.backends.children import Child, Command, Nursery
from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.backends.warden import survey
from aegis_daemon.backends.websocket import WebSocketServer
from aegis_daemon.clients.trial import INSTALL_S, INSTALLERS, LINE_MAX, NAME, Unknown, expanded, installer, program_of
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.onboarding.risk import Tool

if TYPE_CHECKING:
    import anyio

    from aegis_daemon.clients.entries import Entry

PATIENCE_S: Final = 20.0
"""For one server, all of it."""
AT_ONCE: Final = 4
PAGES_MAX: Final = 50
TOOLS_MAX: Final = 1_000
"""Of one server; more are not looked at, and so are in no list."""
_SAID_MAX: Final = 32_768
_OLDER: Final = (400, 404, 405)
"""Statuses by which a server of the older SSE turns down what the present HTTP begins with."""
_FRAMES_MAX: Final = 1_000
"""Frames that a server may say while nobody looks."""
_END_S: Final = 3.0
"""For the good-bye over a websocket."""
HINTS: Final = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")
_LOOK_S: Final = 0.5
_IDLE_S: Final = 5.0
"""A started server whose tree has used no processor for so long does not install any more."""
_ERROR: Final = re.compile(
    r"^[\s|+]*(?:[\w.]*(?:Error|Exception)\b|(?:npm )?(?:error|ERR!|fatal)\b(?! (?:code|errno|syscall|path)\b))"
)
_OURS: Final = ("AEGIS_", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME")


@dataclass(frozen=True, slots=True)
class Server:
    """What is to be asked: an entry as it is without us."""

    entry: Entry
    cwd: str | None = None
    syntax: tuple[str, ...] = ()
    """how its client names variables"""

    @property
    def key(self) -> object:
        """Equal for two that are the same server."""
        one = self.entry
        return (
            one.kind, one.command, one.args, tuple(sorted(one.env.items())), one.cwd or self.cwd, one.url,
            tuple(sorted(one.headers.items())), self.syntax,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server said. `ok` False: it could not be asked; `why` and `fix` are for people.

    `asked` False: it was not even tried, since only its client knows how.
    """

    ok: bool
    tools: tuple[Tool, ...] = ()
    prompts: int = 0
    resources: int = 0
    name: str = ""
    """as it calls itself"""
    why: str = ""
    fix: str = ""
    asked: bool = True
    more: int = 0
    """tools beyond `TOOLS_MAX`, which nobody looked at"""


@dataclass
class _Said:
    """What a process wrote to its stderr, or what an address answered."""

    file: IO[str]
    status: int = 0
    """the last one of HTTP that was no success"""
    child: Child | None = None
    failed: str = ""
    """why no process was started"""

    async def hears(self, response: Any) -> None:
        """Notes the status of an answer over HTTP, which the client does not tell."""
        if response.status_code >= 400:
            self.status = response.status_code

    def told(self) -> str:
        """The first line that names an error, else its last one."""
        size = self.file.seek(0, os.SEEK_END)
        self.file.seek(max(0, size - _SAID_MAX))
        lines = [line.strip() for line in self.file.read().splitlines() if line.strip()]
        found = next((line for line in lines if _ERROR.match(line)), lines[-1] if lines else "")
        return found[:300]


def ask(
    servers: Sequence[Server],
    env: Mapping[str, str],
    *,
    patience: float = PATIENCE_S,
    install: float = INSTALL_S,
    told: Callable[[Server, Offer], None] = lambda server, offer: None,
    waits: Callable[[Server], None] = lambda server: None,
) -> list[Offer]:
    """What each offers, in their order; the same server is asked once.

    :param env: of this process. :param patience: seconds for one server. :param install: seconds for one that a
        program installs first. :param told: hears of each as soon as it has answered. :param waits: hears of one that
        is waited for longer. An interrupt ends them all.
    """
    import anyio
    import mcp.client.client  # noqa: F401 - takes a second, which is no server's fault

    async def run() -> list[Offer]:
        found: dict[object, Offer] = {}
        slots = anyio.Semaphore(AT_ONCE)
        nursery = Nursery()

        async def one(server: Server) -> None:
            async with slots:
                asking = _Asking(server, env, patience, install, nursery, functools.partial(waits, server))
                offer = await asking.outcome()
            found[server.key] = offer
            told(server, offer)

        try:
            async with anyio.create_task_group() as group:
                for server in {server.key: server for server in servers}.values():
                    group.start_soon(one, server)
        finally:
            with anyio.CancelScope(shield=True):
                await nursery.close()
        return [found[server.key] for server in servers]

    return anyio.run(run) if servers else []


@dataclass
class _Asking:
    """One server that is asked."""

    server: Server
    env: Mapping[str, str]
    patience: float
    install: float
    nursery: Nursery
    waits: Callable[[], None]
    idle: float = 0.0
    """seconds after which a server that was started and did nothing was given up"""

    async def outcome(self) -> Offer:
        """What it offers, or why that is not known; its processes are gone."""
        import anyio

        entry = self.server.entry
        installs = installer(entry)
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
            said = _Said(file)
            try:
                async with anyio.create_task_group() as group:
                    group.cancel_scope.deadline = anyio.current_time() + (self.install if installs else self.patience)
                    if installs:
                        group.start_soon(self._watch, said, group.cancel_scope)
                    found = await self._talks(said)
                    group.cancel_scope.cancel()
                    return found
            except Exception as error:
                while isinstance(error, BaseExceptionGroup) and error.exceptions:
                    error = error.exceptions[0]  # type: ignore[assignment]
                if isinstance(error, Unknown):
                    return Offer(False, why=f"it was not asked: {error}", fix=_UNASKED, asked=False)
                return _failed(self.server, error, said)
            told = said.told()
        limit = self.idle or (self.install if installs else self.patience)
        why = f"it did not answer within {limit:g} s" + (f": {told}" if told else "")
        if installs and not self.idle:
            fix = f"`{installs}` may not have ended installing it: run it once by hand, then repeat this"
        else:
            fix = f"run it by hand and see what it waits for: `{_line(entry)}`"
        return Offer(False, why=why, fix=fix)

    async def _watch(self, said: _Said, scope: anyio.CancelScope) -> None:
        """Tells once that it takes longer, and ends the wait for a server that was started and does nothing."""
        import anyio

        begun = busy = anyio.current_time()
        since: dict[int, float] = {}
        ticks, told = -1, False
        while True:
            await anyio.sleep(_LOOK_S)
            now = anyio.current_time()
            if now - begun >= self.patience and not told:
                told = True
                self.waits()
            pid = said.child.pid if said.child is not None else None
            if pid is None or sys.platform != "linux":
                continue
            members, used = _tree(pid)
            since = {one: since.get(one, now) for one in members if one != pid and not _installs(one)}
            if used != ticks:
                ticks, busy = used, now
            oldest = min(since.values(), default=now)
            if min(now - oldest, now - begun) >= self.patience and now - busy >= min(_IDLE_S, self.patience):
                self.idle = round(now - begun)
                scope.cancel()
                return

    async def _talks(self, said: _Said) -> Offer:
        """As the daemon does it: what turns the present HTTP down is asked once more by the older SSE."""
        try:
            return await self._talk(said, self.server.entry.transport)
        except Exception:
            if self.server.entry.transport != "http" or said.status not in _OLDER:
                raise
            try:
                return await self._talk(said, "sse")
            except Exception:  # noqa: S110 - what it said first tells more
                pass
            raise

    async def _talk(self, said: _Said, way: str) -> Offer:
        from mcp.client.client import Client
        from mcp.client.sse import sse_client
        from mcp.client.streamable_http import streamable_http_client
        from mcp.shared._httpx_utils import create_mcp_http_client
        from mcp.types import Implementation

        server = self.server
        own = {name: value for name, value in self.env.items() if not name.startswith(_OURS)}
        entry = server.entry

        def text(value: str) -> str:
            return expanded(value, own, server.syntax)

        async with AsyncExitStack() as stack:
            transport: Any
            if entry.kind == "stdio":
                argv = (text(entry.command), *(text(one) for one in entry.args))  # only the client knows some
                given = own | {name: text(value) for name, value in entry.env.items()}
                where = (text(entry.cwd) if entry.cwd else server.cwd) or own.get("HOME") or "/"
                here = os.path.join(where, argv[0]) if "/" in argv[0] else argv[0]
                if shutil.which(here, path=given.get("PATH", os.defpath)) is None:
                    raise FileNotFoundError(2, "not found", argv[0])
                transport = _process(self.nursery, Command(argv, where, given, _umask()), said)
            else:
                url, headers = text(entry.url), {name: text(value) for name, value in entry.headers.items()}
                if url.startswith(("ws://", "wss://")) or way == "websocket":
                    transport = _socket(url, headers, said)
                elif not url.startswith(("http://", "https://")):
                    raise Unknown("only addresses of http, https, ws and wss are asked")
                elif way == "sse":
                    transport = sse_client(url, headers=headers)
                else:
                    http = await stack.enter_async_context(create_mcp_http_client(headers=headers))
                    http.event_hooks["response"].append(said.hears)
                    transport = streamable_http_client(url, http_client=http)
            # as the trial calls itself, so that a server has no reason to tell the two apart
            us = Implementation(name=NAME, version="1")
            client = await stack.enter_async_context(Client(transport, mode="legacy", client_info=us))
            return await _offer(client)


_UNASKED: Final = "it is put through Aegis all the same, and each call of any tool of it waits for your yes"


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


def _tree(pid: int) -> tuple[set[int], int]:
    """A process and all below it, and how much processor they have used (Linux)."""
    below: dict[int, list[int]] = {}
    for one, (_, parent, _) in survey().items():
        below.setdefault(parent, []).append(one)
    found, rest, used = set[int](), [pid], 0
    while rest:
        one = rest.pop()
        found.add(one)
        rest += below.get(one, ())
        with suppress(OSError, ValueError, IndexError), open(f"/proc/{one}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            used += int(fields[11]) + int(fields[12])
    return found, used


def _installs(pid: int) -> bool:
    """Whether a process below another is an installer itself (`npm exec …`, `node /usr/bin/npx …`)."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(4096).decode("utf-8", "replace").replace("\0", " ").split()[:3]
        return any(program_of(word) in INSTALLERS for word in words)
    return False


@asynccontextmanager
async def _process(nursery: Nursery, command: Command, said: _Said) -> AsyncIterator[tuple[Any, Any]]:
    """Frames from and to a process that the warden starts; when it is left, the process and all below it are gone."""
    import anyio

    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()

    def ended(code: int) -> None:
        if not gone.done():
            gone.set_result(None)

    def failed(text: str) -> None:
        said.failed = text
        ended(0)

    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    try:
        child = said.child = nursery.spawn(command, their_in, their_out, said.file.fileno(), ended, failed)
    finally:
        os.close(their_in)
        os.close(their_out)
    for one in (our_in, our_out):
        os.set_blocking(one, False)
    heard, hears = anyio.create_memory_object_stream[Any](0)
    says, spoken = anyio.create_memory_object_stream[Any](0)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_read, our_in, heard)
            group.start_soon(_write, our_out, spoken)
            try:
                yield hears, says
            finally:
                group.cancel_scope.cancel()
    finally:
        for stream in (heard, hears, says, spoken):
            stream.close()
        os.close(our_out)
        os.close(our_in)
        child.end()
        with anyio.CancelScope(shield=True):
            await gone


@asynccontextmanager
async def _socket(url: str, headers: Mapping[str, str], said: _Said) -> AsyncIterator[tuple[Any, Any]]:
    """Frames from and to a server over WebSocket, by the client that the daemon has for that."""
    import anyio
    from mcp.shared.message import SessionMessage
    from mcp.types import jsonrpc_message_adapter

    loop = asyncio.get_running_loop()
    over = anyio.Event()
    heard, hears = anyio.create_memory_object_stream[Any](_FRAMES_MAX)
    says, spoken = anyio.create_memory_object_stream[Any](0)
    size = 0

    def came(lines: list[bytes], about: int | None) -> None:
        nonlocal size
        size += sum(map(len, lines))
        for line in lines:
            with suppress(ValueError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                try:
                    heard.send_nowait(SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False)))
                except anyio.WouldBlock:
                    size = LINE_MAX + 1
        if size > LINE_MAX:
            failed("it sends without end")

    def failed(text: str) -> None:
        said.failed = said.failed or text.partition(";")[0]
        ended(1)

    def ended(code: int) -> None:
        heard.close()
        over.set()

    pool = HttpPool(loop)
    try:
        server = WebSocketServer(
            loop, Outbox(loop), pool, url, headers, on_lines=came, on_lost=lambda number, fault: None,
            on_full=lambda full: None, on_exit=ended, on_failed=failed,
        )  # fmt: skip

        async def hand_on() -> None:
            async for one in spoken:
                server.send(one.message.model_dump_json(by_alias=True, exclude_unset=True).encode())

        async with anyio.create_task_group() as group:
            group.start_soon(hand_on)
            try:
                yield hears, says
            finally:
                group.cancel_scope.cancel()
                server.end()
                with anyio.move_on_after(_END_S, shield=True):
                    await over.wait()
    finally:
        for stream in (heard, hears, says, spoken):
            stream.close()
        pool.close()


async def _read(fd: int, heard: Any) -> None:
    """Hands on each line that is a frame, until its output ends; others are passed over, as clients do."""
    import anyio
    from mcp.shared.message import SessionMessage
    from mcp.types import jsonrpc_message_adapter

    rest = bytearray()
    async with heard:
        while True:
            try:
                data = os.read(fd, 1 << 16)
            except BlockingIOError:
                await anyio.wait_readable(fd)
                continue
            if not data:
                return
            if len(rest) + len(data) > LINE_MAX:
                raise ValueError("it writes a line without end")
            rest += data
            if b"\n" not in data:
                continue
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in lines:
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                    await heard.send(SessionMessage(message))
                except ValueError:
                    continue
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return  # nobody listens any more


async def _write(fd: int, spoken: Any) -> None:
    import anyio

    async with spoken:
        async for one in spoken:
            rest = memoryview(one.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            while rest:
                try:
                    rest = rest[os.write(fd, rest) :]
                except BlockingIOError:
                    await anyio.wait_writable(fd)
                except OSError:
                    return  # it has closed its input; what it says still counts


async def _offer(client: Any) -> Offer:
    has = client.server_capabilities
    tools: list[Tool] = []
    listed: list[Any] = []
    if has.tools is not None:
        listed = await _all(client.list_tools, "tools")
        for one in listed[:TOOLS_MAX]:
            notes = one.annotations.model_dump(by_alias=True, exclude_none=True) if one.annotations else {}
            tools.append(Tool(one.name, one.input_schema or {}, notes))
    prompts = len(await _all(client.list_prompts, "prompts")) if has.prompts is not None else 0
    resources = len(await _all(client.list_resources, "resources")) if has.resources is not None else 0
    info = client.server_info
    return Offer(
        True, tuple(tools), prompts, resources, info.name if info is not None else "",
        more=max(0, len(listed) - TOOLS_MAX),
    )  # fmt: skip


async def _all(page: Any, what: str) -> list[Any]:
    found: list[Any] = []
    cursor = None
    for _ in range(PAGES_MAX):
        said = await page(cursor=cursor)
        found += getattr(said, what)
        cursor = said.next_cursor
        if not cursor or len(found) > TOOLS_MAX:
            break
    return found


def unlike(offered: Iterable[Tool], listed: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The offered tools of which a later list says other things that count, or nothing."""
    then: dict[str, set[str]] = {}
    now: dict[str, set[str]] = {}
    for tool in offered:
        then.setdefault(tool.name, set()).add(_facts(tool.schema, tool.annotations))
    for one in listed:
        now.setdefault(str(one.get("name")), set()).add(_facts(one.get("inputSchema") or {}, one.get("annotations")))
    return frozenset(name for name, facts in then.items() if now.get(name) != facts)


def _facts(schema: Any, notes: Any) -> str:
    hints = {name: notes.get(name) for name in HINTS if notes.get(name) is not None} if isinstance(notes, dict) else {}
    return json.dumps([schema, hints], sort_keys=True, default=str)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def _failed(server: Server, error: BaseException, said: _Said) -> Offer:
    entry, told = server.entry, said.told()
    if entry.kind == "stdio" and isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        name = os.path.basename(entry.command)
        return Offer(False, why=f"`{entry.command}` cannot be started: it is not there", fix=_install(name))
    if said.failed and entry.kind == "stdio":
        return Offer(False, why=said.failed, fix="check its entry in the client's file")
    if entry.kind == "stdio":
        why = told or _text(error)
        return Offer(
            False, why=f"it ended before it answered: {why}", fix=f"run it by hand and mend that: `{_line(entry)}`"
        )
    host = urlsplit(entry.url).netloc.rpartition("@")[2]
    text = said.failed or _text(error) + (f" (status {said.status})" if said.status else "")
    if said.status in (401, 403) or re.search(r"\b(401|403)\b|unauthori|forbidden", text, re.IGNORECASE):
        fix = "check the token in its headers; a login in a browser is the client's own, and Aegis cannot do it"
        return Offer(False, why=f"`{host}` refuses: {text}", fix=fix)
    return Offer(False, why=f"`{host}` does not answer as a server: {text}", fix="check the address, and that it runs")


def _install(name: str) -> str:
    package = {"npx": "Node.js", "node": "Node.js", "bunx": "Bun", "uvx": "uv", "uv": "uv", "docker": "Docker"}.get(
        name
    )
    return f"install {package}" if package else "check its path, or write it whole into the client's file"


def _text(error: BaseException) -> str:
    found = " ".join(str(error).split())[:300]
    return found[:1].lower() + found[1:] if found else type(error).__name__


def _line(entry: Entry) -> str:
    """The command without its arguments, some of which may be secrets."""
    return f"{os.path.basename(entry.command)} …" if entry.args else entry.command
