"""One port for everything: frames take the short way, the management API and the pages the usual one (ASGI).

A connection is uvicorn's, with its parser (llhttp), its limits and its way to the ASGI application; requests under
`/agents/` are answered before that machinery begins, without a task, an event or a scope (`scripts/bench` H1 and H2:
an ASGI application alone costs four times as much). Every request of either kind passes the guard first.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from aegis_daemon.loop.clock import monotonic
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.transports.guard import Guard
from aegis_daemon.wire.jsonrpc import MAX_FRAME_IN

_log = logging.getLogger("aegis.http")
CONNECTIONS: Final = 4096
"""How many connections may be open; further ones are closed at once."""
KEEP_ALIVE_S: Final = 75.0
"""How long a connection may lie idle."""
FIRST_S: Final = 30.0
"""How long a new connection may take to ask for something."""
HEADERS: Final = 1 << 16
"""Bytes of one request's headers."""
HIGH: Final = 1 << 20
"""Bytes that may wait for one reader before it counts as one that does not read."""
WORST: Final = 1 << 24
"""Bytes that may wait for one reader before its connection is cut: the largest answer, and then some."""


class Route(msgspec.Struct, frozen=True):
    """Where a request goes: the last part of its path, its agent, and its backend where it names one."""

    door: str
    agent: str
    backend: str | None = None
    query: bytes = b""


def route_of(url: bytes) -> Route | None:
    """The route of a path under `/agents/`; None for one that leads nowhere."""
    path, _, query = url.partition(b"?")
    try:
        parts = [unquote(part, errors="strict") for part in path.decode("ascii").split("/")[2:]]
    except (UnicodeDecodeError, ValueError):
        return None
    if len(parts) == 2 and parts[0]:
        return Route(parts[1], parts[0], None, query)
    if len(parts) == 4 and parts[1] == "backends" and parts[0] and parts[2]:
        return Route(parts[3], parts[0], parts[2], query)
    return None


class Exchange:
    """One request under `/agents/` and what becomes of it: one answer, or a stream of events."""

    __slots__ = ("body", "close", "done", "front", "headers", "method", "on_full", "on_gone", "route", "streaming")

    def __init__(
        self, front: Front, route: Route, method: bytes, headers: list[tuple[bytes, bytes]], close: bool
    ) -> None:
        self.front: Front | None = front
        self.route = route
        self.method = method
        self.headers = headers
        self.close = close
        self.body = b""
        self.streaming = False
        self.done = False
        self.on_gone: Callable[[], None] | None = None
        self.on_full: Callable[[bool], None] | None = None

    @property
    def peer(self) -> str:
        """The address that the connection comes from."""
        front = self.front
        return front.client[0] if front is not None and front.client else ""

    @property
    def target(self) -> bytes:
        """The request's target as it came."""
        return self.front.url if self.front is not None else b""

    def header(self, name: bytes) -> bytes | None:
        """The first header with this name (lower case)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def reply(self, status: int, body: bytes = b"", kind: bytes = b"application/json", more: bytes = b"") -> None:
        """The whole answer. `more` are further header lines, each with its end of line."""
        front = self.front
        if front is None or self.done:
            return
        self.done = True
        head = front.port.head(status)
        if body:
            more = b"content-type: " + kind + b"\r\n" + more
        if self.close:
            more += b"connection: close\r\n"
        front.put(b"%bcontent-length: %d\r\n%b\r\n%b" % (head, len(body), more, body))
        front.over(self)

    def begin(self, more: bytes = b"") -> None:
        """Begins a stream of events (WHATWG HTML §9.2)."""
        front = self.front
        if front is None or self.streaming:
            return
        self.streaming = True
        front.put(
            b"%bcontent-type: text/event-stream\r\ncache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n"
            b"transfer-encoding: chunked\r\n%b\r\n" % (front.port.head(200), more)
        )

    def event(self, data: bytes) -> None:
        """One event as it is written, its blank line included."""
        if self.front is not None and not self.done:
            self.front.put(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Ends the stream."""
        front = self.front
        if front is None or self.done:
            return
        self.done = True
        front.put(b"0\r\n\r\n")
        front.over(self)

    def cut(self) -> None:
        """Ends the stream so that nobody takes it for whole."""
        if self.front is not None:
            self.front.transport.abort()


Serve = Callable[[Exchange], None]
Upgraded = Callable[["Front", Route, list[tuple[bytes, bytes]], bytes], bool]


class Front(HttpToolsProtocol):
    """One connection."""

    def __init__(self, port: Port) -> None:
        super().__init__(port.config, port.state, {}, _loop=port.loop)
        self.port = port
        self._exchange: Exchange | None = None
        """the request under way on the short way: being read, or being answered"""
        self._reading = False
        self._foreign = False
        """the request being read is the application's"""
        self._ignored = False
        self._size = 0
        self.url = b""
        self.since = 0.0
        """when what the connection does now began"""
        self._full = False

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self.since = monotonic()
        if len(self.connections) >= CONNECTIONS:
            transport.abort()
            return
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=HIGH)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self not in self.connections:
            return
        super().connection_lost(exc)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.front = None
            if exchange.on_gone is not None and not self._reading:
                outbox = self.port.outbox
                outbox.begin()
                try:
                    exchange.on_gone()
                finally:
                    outbox.flush()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`. What one piece of input causes leaves together."""
        if self.transport.is_closing():
            return
        outbox = self.port.outbox
        outbox.begin()
        try:
            self._feed(data)
        finally:
            outbox.flush()

    def _feed(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[int(upgrade.args[0]) :])
        except httptools.HttpParserError:
            self._refuse(400, "the request cannot be read as HTTP/1.1")
        except Exception:  # the other connections must not feel it
            _log.exception("a request ended in a fault")
            self.transport.abort()

    def _upgrade(self, rest: bytes) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.done and exchange.route.door == "ws" and not self._reading:
            self._exchange = None
            if self.port.upgraded(self, exchange.route, exchange.headers, self.url):
                return
        elif exchange is None or exchange.done or not self._reading:
            # Nobody has to upgrade (h2c, say): the request was served as it is, and the next one follows.
            self.parser = httptools.HttpRequestParser(self)
            if rest:
                self._feed(rest)
            return
        self.transport.close()

    # --- one request: see `httptools.HttpRequestParser`

    def on_message_begin(self) -> None:
        """A request begins."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._foreign = False
        self._size = 0
        self.since = monotonic()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._weigh(len(url))
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._weigh(len(name) + len(value))
        super().on_header(name, value)

    def _weigh(self, more: int) -> None:
        self._size += more
        if self._size > HEADERS:
            raise httptools.HttpParserError("the headers are too long")

    def on_headers_complete(self) -> None:
        """The headers are read: this decides which way the request goes."""
        if self._exchange is not None or (self.cycle is not None and not self.cycle.response_complete):
            # Sent before the answer to the one before it: it is not looked at, and the connection ends behind that
            # answer, which tells the client to send it again (RFC 9112 §9.3.2).
            self._ignored = True
            if self._exchange is not None:
                self._exchange.close = True
            elif self.cycle is not None:
                self.cycle.keep_alive = False
            return
        host = origin = None
        hosts = 0
        length = 0
        for name, value in self.headers:
            if name == b"host":
                host = value
                hosts += 1
            elif name == b"origin":
                origin = value
            elif name == b"content-length":
                length = int(value)
        why = "the request names more than one host" if hosts > 1 else self.port.guard.refuses(host, origin)
        if why is not None:
            self._refuse(403, why)
            return
        if length > MAX_FRAME_IN:
            self._refuse(413, "the message is longer than 1 MB; send less at once")
            return
        if self.url.startswith(b"/agents/"):
            route = self.port.route(self.url)
            if route is None:
                self._refuse(404, "no such address; agents are at `/agents/AGENT/mcp`")
                return
            parser = self.parser
            close = not parser.should_keep_alive() or self.port.closing
            self._exchange = Exchange(self, route, parser.get_method(), self.headers, close)
            self._reading = True
            if self.expect_100_continue:
                self.put(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self._foreign = True
        url, headers, expected = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expected
        self.headers.extend(headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._foreign:
            if len(self.cycle.body) + len(body) > MAX_FRAME_IN:
                raise httptools.HttpParserError("the body is too long")
            super().on_body(body)
        elif self._reading and self._exchange is not None:
            exchange = self._exchange
            if not exchange.body:
                exchange.body = body
            elif len(exchange.body) + len(body) <= MAX_FRAME_IN:
                exchange.body += body
            else:
                self._exchange = None
                self._refuse(413, "the message is longer than 1 MB; send less at once")

    def on_message_complete(self) -> None:
        """The request is read."""
        if self._foreign:
            super().on_message_complete()
        elif self._reading and self._exchange is not None:
            self._reading = False
            self.since = monotonic()
            exchange = self._exchange
            if exchange.route.door != "ws":
                self.port.serve(exchange)

    # --- answers

    def put(self, data: bytes) -> None:
        """Writes, and cuts the connection of a reader that never reads."""
        self.transport.write(data)
        if self._full and self.transport.get_write_buffer_size() > WORST:
            _log.warning("the connection of a reader that does not read was cut")
            self.transport.abort()

    def over(self, exchange: Exchange) -> None:
        """The answer is whole."""
        if self._exchange is exchange:
            self._exchange = None
            self.since = monotonic()
        if exchange.close:
            self.transport.close()

    def pause_writing(self) -> None:
        """The reader is slow."""
        self._full = True
        super().pause_writing()
        if self._exchange is not None and self._exchange.on_full is not None:
            self._exchange.on_full(True)

    def resume_writing(self) -> None:
        """The reader has caught up."""
        self._full = False
        self.since = monotonic()
        super().resume_writing()
        if self._exchange is not None and self._exchange.on_full is not None:
            self._exchange.on_full(False)

    def _refuse(self, status: int, text: str) -> None:
        """Answers with an error and ends the connection, since what follows cannot be told apart any more."""
        self._exchange = None
        self._reading = False
        if self.transport.is_closing():
            return
        body = msgspec.json.encode({"error": text})
        self.put(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (self.port.head(status), len(body), body)
        )
        self.transport.close()

    def sweep(self, now: float, read_s: float, write_s: float) -> None:
        """Ends what takes too long: reading a request, taking an answer, doing nothing."""
        if self.transport.is_closing():
            return
        waits = now - self.since
        exchange = self._exchange
        if self._full:
            if waits > write_s:
                self.transport.abort()
        elif exchange is not None:
            if self._reading and waits > read_s:
                self._refuse(408, "the request did not come in time")
        elif self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.more_body and waits > read_s:
                self.transport.abort()
        elif waits > (KEEP_ALIVE_S if self.url else min(FIRST_S, read_s)):
            self.transport.close()

    def let_go(self) -> None:
        """Another protocol takes the connection over."""
        self._exchange = None
        self.connections.discard(self)

    def shutdown(self) -> None:
        """Ends the connection once what is under way has ended."""
        if self._exchange is None:
            super().shutdown()
        else:
            self._exchange.close = True


class Port:
    """One address that is listened at. `serve` takes the requests under `/agents/`, `app` all others (ASGI)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        app: Any,
        guard: Guard,
        *,
        serve: Serve,
        upgraded: Upgraded,
        read_s: float = 300.0,
        write_s: float = 300.0,
    ) -> None:
        self.loop = loop
        self.outbox = outbox
        self.guard = guard
        self.serve = serve
        self.upgraded = upgraded
        self.closing = False
        self.read_s = read_s
        self.write_s = write_s
        self.config = Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(KEEP_ALIVE_S),
        )
        self.config.load()
        self.state = ServerState()
        self.address = ""
        self._server: asyncio.Server | None = None
        self._routes: dict[bytes, Route | None] = {}
        self._heads: dict[int, bytes] = {}

    async def open(self, host: str, port: int) -> None:
        """Begins to listen. Raises `OSError`."""
        self._server = await self.loop.create_server(
            lambda: Front(self), host or None, port, backlog=1024, reuse_address=True
        )
        where = self._server.sockets[0].getsockname()
        self.address = f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}"

    def route(self, url: bytes) -> Route | None:
        """See `route_of`; the usual ones are remembered."""
        found = self._routes.get(url)
        if found is None and url not in self._routes:
            found = route_of(url)
            if len(self._routes) < 4096 and len(url) <= 512:
                self._routes[url] = found
        return found

    def head(self, status: int) -> bytes:
        """The status line and the date (RFC 9110 §6.6.1)."""
        found = self._heads.get(status)
        if found is None:
            found = self._heads[status] = STATUS_LINE[status] + b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        return found

    def sweep(self) -> None:
        """Once a second: the time of day in the answers, and the end of connections that take too long."""
        self._heads.clear()
        now = monotonic()
        for front in list(self.state.connections):
            if isinstance(front, Front):
                front.sweep(now, self.read_s, self.write_s)

    async def close(self, grace: float) -> None:
        """Listens no more, and gives what is under way `grace` seconds."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        for front in list(self.state.connections):
            front.shutdown()
        deadline = self.loop.time() + grace
        while self.state.connections and self.loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for front in list(self.state.connections):
            transport = getattr(front, "transport", None)
            if transport is not None:
                transport.abort()
        for task in list(self.state.tasks):
            task.cancel()
