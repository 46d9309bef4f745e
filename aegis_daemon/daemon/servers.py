"""Every session gets its server by its plan: a process, or an address, with a bridge where the eras may differ."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import msgspec

from aegis_daemon.backends.children import Command, Nursery
from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.backends.remote import too_large
from aegis_daemon.backends.sse import SseServer
from aegis_daemon.backends.stdio import StdioServer
from aegis_daemon.backends.streamable_http import Annotations, HttpServer
from aegis_daemon.backends.websocket import WebSocketServer
from aegis_daemon.core.ports import Fault
from aegis_daemon.loop.clock import monotonic
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.relay.admission import Plan
from aegis_daemon.relay.eras import Bridge, EraMemory
from aegis_daemon.relay.ports import Backend
from aegis_daemon.wire.jsonrpc import MAX_FRAME_OUT, guess_id
from aegis_daemon.wire.methods import Era

STDERR = 2


class Memory(msgspec.Struct):
    """What is known of a backend for its next session: the eras it speaks, and its tools' annotated parameters."""

    eras: EraMemory
    tools: Annotations


class Hears(Protocol):
    """What a server's end tells, each time with the server that it is; see `Conversation`."""

    def server_lines(self, server: Backend, lines: list[bytes], about: int | None = None) -> None:
        """Complete lines; `about` is the request on whose stream they came."""
        ...

    def server_long(self, server: Backend, head: bytes, tail: bytes) -> None:
        """A frame over the limit, its beginning and its end."""
        ...

    def server_lost(self, server: Backend, number: int, fault: Fault) -> None:
        """The request of this number gets no answer."""
        ...

    def server_full(self, server: Backend, full: bool) -> None:
        """It reads too slowly, or again fast enough."""
        ...

    def server_exited(self, server: Backend, code: int) -> None:
        """It has ended, its output was read."""
        ...

    def server_failed(self, server: Backend, text: str) -> None:
        """It could not be started."""
        ...


class Servers:
    """Makes them. What a backend was found to speak is remembered for its next session."""

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox, nursery: Nursery, pool: HttpPool) -> None:
        self._loop = loop
        self._outbox = outbox
        self._nursery = nursery
        self._pool = pool
        self._memories: dict[tuple[str, str], Memory] = {}
        self._latest: dict[str, Memory] = {}

    def start(self, conversation: Hears, planned: Plan, stderr: int = STDERR, *, bridged: bool = True) -> Backend:
        """The server of a session. Raises `OSError` where none can be started now.

        A session from one machine's stdio to another's is left alone (`bridged` false): both ends chose each other.
        """
        server: Backend

        def lines(what: list[bytes], about: int | None = None) -> None:
            conversation.server_lines(server, what, about)

        def long(head: bytes, tail: bytes) -> None:
            conversation.server_long(server, head, tail)

        def lost(number: int, fault: Fault) -> None:
            text = f"the backend `{planned.backend}`: {fault.text}"
            conversation.server_lost(server, number, Fault(fault.reason, text, not_executed=fault.not_executed))

        def full(now: bool) -> None:
            conversation.server_full(server, now)

        def exited(code: int) -> None:
            conversation.server_exited(server, code)
            self._outbox.flush()

        def failed(text: str) -> None:
            conversation.server_failed(server, text)
            self._outbox.flush()

        make = self._process(planned, stderr, long) if planned.argv is not None else self._address(planned)
        if bridged or planned.argv is None:
            server = Bridge(
                make,
                self._memory(planned).eras,
                call_later=self._loop.call_later,
                now=monotonic,
                on_lines=lines,
                on_lost=lost,
                on_full=full,
                on_exit=exited,
                on_failed=failed,
            )
        else:
            server = make(on_lines=lines, on_lost=lost, on_full=full, on_exit=exited, on_failed=failed)
        return server

    def _memory(self, planned: Plan) -> Memory:
        rule = planned.rule
        assert rule is not None
        key = (planned.backend, rule.url or repr(planned.argv))
        found = self._latest[planned.backend] = self._memories.setdefault(key, Memory(EraMemory(), {}))
        return found

    def is_modern(self, backend: str) -> bool:
        """Whether the backend was last found to speak the modern era."""
        memory = self._latest.get(backend)
        return memory is not None and memory.eras.speaks(Era.MODERN, monotonic()) is True

    def _process(self, planned: Plan, stderr: int, long: Callable[[bytes, bytes], None]) -> Callable[..., Backend]:
        argv = planned.argv
        assert argv is not None

        def make(
            *,
            on_lines: Callable[[list[bytes], int | None], None],
            on_lost: Callable[[int, Fault], None],
            on_full: Callable[[bool], None],
            on_exit: Callable[[int], None],
            on_failed: Callable[[str], None],
        ) -> Backend:
            def too_long(head: bytes, tail: bytes) -> None:
                number = guess_id(head, tail)
                if type(number) is int:
                    on_lost(number, too_large())  # the server's number, which a bridge turns into the conversation's
                else:
                    long(head, tail)

            return StdioServer(
                self._loop,
                self._outbox,
                self._nursery,
                Command(argv, planned.cwd, planned.env, planned.umask),
                stderr,
                limit=MAX_FRAME_OUT,
                on_lines=lambda what: on_lines(what, None),
                on_long=too_long,
                on_full=on_full,
                on_exit=on_exit,
                on_failed=on_failed,
            )

        return make

    def _address(self, planned: Plan) -> Callable[..., Backend]:
        rule = planned.rule
        assert rule is not None
        url = rule.url
        assert url is not None
        make: Any
        if url.startswith(("ws:", "wss:")) or rule.transport == "websocket":
            make = WebSocketServer
        elif rule.transport == "sse":
            make = SseServer
        else:
            make = partial(HttpServer, fall_back=rule.transport == "auto", tools=self._memory(planned).tools)
        made: Callable[..., Backend] = partial(make, self._loop, self._outbox, self._pool, url, rule.headers)
        return made
