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
LINGER_S: Final = 5.0
"""How long is read on, unseen, behind an answer that ended the connection."""
HEADERS: Final = 1 << 16
"""Bytes of one request's headers."""
FRAMING: Final = 1 << 19
"""Bytes that may come of one request without being its body: what the parser has of a header or of trailers so far."""
HIGH: Final = 1 << 20
"""Bytes that may wait for one reader before it counts as one that does not read."""
WORST: Final = 1 << 24
"""Bytes that may wait for one reader before its connection is cut: the largest answer, and then some."""
ROOM: Final = 1 << 29
"""Bytes that all connections together may hold, of requests half read and of answers not taken."""
_ONCE: Final = frozenset({b"host", b"origin", b"authorization", b"content-type", b"mcp-session-id", b"last-event-id"})
"""Headers of which a second one would leave open which of the two counts."""
_IDLE, _HEAD, _OURS, _APPS, _PAST = range(5)
"""What is being read: nothing, a request's headers, a body of ours or of the application, what nobody looks at."""


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
    """One request under `/agents/` and what becomes of it: one answer, or a stream of events.

    `headers` are by name in lower case, `lines` all of them as they came. `on_gone` is told once if the connection ends
    before the answer has, `on_full` that the reader of a stream is slow, or is so no more.
    """

    __slots__ = (
        "allows", "body", "close", "done", "front", "headers", "lines", "method", "old", "on_full", "on_gone", "route",
        "slow", "streaming",
    )  # fmt: skip

    def __init__(
        self,
        front: Front,
        route: Route,
        method: bytes,
        headers: dict[bytes, bytes],
        lines: list[tuple[bytes, bytes]],
        close: bool,
        old: bool,
    ) -> None:
        self.front: Front | None = front
        self.route = route
        self.method = method
        self.headers = headers
        self.lines = lines
        self.close = close
        self.old = old
        """it came by a version that knows no chunks"""
        self.allows = b""
        """what a page of another origin needs, as header lines"""
        self.body = b""
        self.streaming = False
        self.done = False
        self.slow = False
        self.on_gone: Callable[[], None] | None = None
        self.on_full: Callable[[bool], None] | None = None

    @property
    def peer(self) -> str:
        """The address that the connection comes from."""
        front = self.front
        return front.client[0] if front is not None and front.client else ""

    @property
    def target(self) -> bytes:
        """The request's target as it came; only while it is being served."""
        return self.front.url if self.front is not None else b""

    def header(self, name: bytes) -> bytes | None:
        """The header with this name (lower case)."""
        return self.headers.get(name)

    def reply(self, status: int, body: bytes = b"", kind: bytes = b"application/json", more: bytes = b"") -> None:
        """The whole answer. `more` are further header lines, each with its end of line."""
        front = self.front
        if front is None or self.done:
            return
        if self.streaming:
            self.cut()
            return
        self.done = True
        if body:
            more = b"content-type: %b\r\n%b" % (kind, more)
        if self.close:
            more += b"connection: close\r\n"
        front.put(
            b"%bcontent-length: %d\r\n%b%b\r\n%b"
            % (front.port.head(status), len(body), more, self.allows, b"" if self.method == b"HEAD" else body)
        )
        front.over(self)

    def begin(self, more: bytes = b"") -> None:
        """Begins a stream of events (WHATWG HTML §9.2)."""
        front = self.front
        if front is None or self.streaming or self.done:
            return
        self.streaming = True
        more += b"connection: close\r\n" if self.old else b"transfer-encoding: chunked\r\n"
        front.put(
            b"%bcontent-type: text/event-stream\r\ncache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n"
            b"%b%b\r\n" % (front.port.head(200), more, self.allows)
        )

    def event(self, data: bytes) -> None:
        """One event as it is written, its blank line included."""
        if self.front is not None and not self.done:
            self.front.put(data if self.old else b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Ends the stream."""
        front = self.front
        if front is None or self.done:
            return
        if not self.streaming:
            self.cut()
            return
        self.done = True
        if not self.old:
            front.put(b"0\r\n\r\n")
        front.over(self)

    def cut(self) -> None:
        """Ends the connection, so that nobody takes what came for whole."""
        if self.front is not None:
            self.front.transport.abort()

    def paces(self, slow: bool) -> None:
        """The reader is slow, or is so no more."""
        if self.on_full is not None and slow is not self.slow:
            self.slow = slow
            self.on_full(slow)


Serve = Callable[[Exchange], None]
Upgraded = Callable[[Exchange, bytes], None]
"""Takes the connection of a request for an upgrade over, with what came behind the request; or answers it."""


class Front(HttpToolsProtocol):
    """One connection."""

    def __init__(self, port: Port) -> None:
        super().__init__(port.config, port.state, {}, _loop=port.loop)
        self.port = port
        self._exchange: Exchange | None = None
        """the request under way on the short way: being read, or being answered"""
        self._stage = _IDLE
        self._deaf = False
        """nothing further is looked at: the connection ends with the answer that is under way"""
        self._lingers = False
        """that answer has left"""
        self._piece = 0
        """bytes of the piece that is being parsed"""
        self._framing = 0
        """at most so many bytes came of this request that are none of its body"""
        self._body: bytearray | None = None
        """a body that comes in several pieces"""
        self._room = 0
        self._again = b""
        """the head of a request that is to be read as one for no upgrade"""
        self.url = b""
        self.since = 0.0
        """when what the connection does now began"""
        self._full = False

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self.since = monotonic()
        if len(self.connections) >= CONNECTIONS:
            self.parser = None  # type: ignore[assignment]
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
        self._body = None
        if exchange is None:
            return
        exchange.front = None
        outbox = self.port.outbox
        outbox.begin()
        try:
            exchange.paces(False)
            if exchange.on_gone is not None:
                exchange.on_gone()
        finally:
            exchange.on_gone = exchange.on_full = None
            outbox.flush()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`. What one piece of input causes leaves together."""
        if self._deaf or self.transport.is_closing():
            return
        outbox = self.port.outbox
        outbox.begin()
        try:
            self._feed(data)
        except Exception:  # the other connections must not feel it
            _log.exception("a request ended in a fault")
            self.transport.abort()
        finally:
            outbox.flush()

    def _feed(self, data: bytes) -> None:
        self._piece = len(data)
        self._framing += self._piece
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = data[int(upgrade.args[0]) :]
                if self._deaf or self.transport.is_closing():
                    return
                exchange = self._exchange
                if exchange is not None:
                    self._exchange = None
                    self.port.upgraded(exchange, data)
                    if self in self.connections:
                        self.transport.close()  # nobody took it over
                    return
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                data, self._again = self._again + data, b""
            except httptools.HttpParserError as error:
                cause = error.__context__
                if cause is not None and not isinstance(cause, httptools.HttpParserError):
                    raise  # a fault of ours, on the way through the parser
                self._misread(400, "the request cannot be read as HTTP/1.1")
                return
        if self._framing > FRAMING:
            self._misread(431, "the headers are too long")

    # --- one request: see `httptools.HttpRequestParser`

    def on_message_begin(self) -> None:
        """A request begins."""
        self.url = b""
        self.headers = []
        self._stage = _HEAD
        self._framing = self._piece
        self.since = monotonic()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Of those behind a body nothing is taken: the request was judged by those before it."""
        if self._stage == _HEAD:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The headers are read: this decides which way the request goes."""
        self._stage = _PAST
        cycle = self.cycle
        if self._exchange is not None or (cycle is not None and not cycle.response_complete):
            self._last()
            return
        if self._deaf or self.transport.is_closing():
            return  # it came behind one that ended the connection (RFC 9112 §9.6)
        url, lines, parser = self.url, self.headers, self.parser
        if parser.should_upgrade() and not self._to_upgrade(url):
            self._pass_over(parser.get_method(), url, lines)
            return
        headers = dict(lines)
        if len(headers) != len(lines):
            twice = _joined(headers, lines)
            if twice is not None:
                self._refuse(400, f"the request has more than one `{twice.decode('latin-1')}` header; send it once")
                return
        if self._framing > HEADERS and len(url) + sum(len(one) + len(two) for one, two in lines) > HEADERS:
            self._refuse(431, "the headers are too long")
            return
        host, origin = headers.get(b"host"), headers.get(b"origin")
        why = self.port.guard.refuses(host, origin)
        if why is not None:
            self._refuse(400 if host is None else 403, why)
            return
        length = headers.get(b"content-length")
        if length is not None and int(length) > MAX_FRAME_IN:
            self._refuse(413, "the message is longer than 1 MB; send less at once")
            return
        if url.startswith(b"/agents/"):
            self._take(url, headers, lines)
            return
        super().on_message_begin()
        self.url = url
        self.headers.extend(lines)
        self.expect_100_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        super().on_headers_complete()
        self._room = MAX_FRAME_IN
        self._stage = _APPS

    def _to_upgrade(self, url: bytes) -> bool:
        route = self.port.route(url) if url.startswith(b"/agents/") else None
        return route is not None and route.door == "ws" and self.parser.get_method() == b"GET"

    def _pass_over(self, method: bytes, url: bytes, lines: list[tuple[bytes, bytes]]) -> None:
        """Nobody has to upgrade (RFC 9110 §7.8; Java's client asks for h2c each time): the request is read without.

        The parser takes what follows an upgrade for another protocol's, a body included, so it reads the head again.
        """
        if method == b"CONNECT":
            self._refuse(400, "this is no proxy")
            return
        close = any(name == b"connection" and b"close" in value.lower() for name, value in lines)
        kept = b"".join(b"%b: %b\r\n" % line for line in lines if line[0] not in (b"connection", b"upgrade"))
        version = self.parser.get_http_version().encode()
        end = b"connection: close\r\n" if close else b""
        self._again = b"%b %b HTTP/%b\r\n%b%b\r\n" % (method, url, version, kept, end)

    def _take(self, url: bytes, headers: dict[bytes, bytes], lines: list[tuple[bytes, bytes]]) -> None:
        """A request of an agent's."""
        port, parser = self.port, self.parser
        route = port.route(url)
        if route is None:
            self._refuse(404, "no such address; agents are at `/agents/AGENT/mcp`")
            return
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site")
        if origin is None and site is not None and site not in (b"none", b"same-origin"):
            # A picture or a link on some page: no `Origin`, and yet it would begin a session (Fetch Metadata §2.2).
            self._refuse(403, "another page may not send its visitors here")
            return
        close = port.closing or not parser.should_keep_alive()
        old = (close or b"connection" in headers) and parser.get_http_version() != "1.1"
        exchange = Exchange(self, route, parser.get_method(), headers, lines, close or old, old)
        if origin is not None:
            exchange.allows = port.guard.allows(origin)
        self._exchange = exchange
        self._body = None
        self._stage = _OURS
        if b"expect" in headers and not old and headers[b"expect"].lower() == b"100-continue":
            self.put(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._framing -= len(body)
        if self._stage == _OURS:
            exchange = self._exchange
            assert exchange is not None
            if self._body is not None:
                self._body += body
                if len(self._body) > MAX_FRAME_IN:
                    self._refuse(413, "the message is longer than 1 MB; send less at once")
            elif exchange.body:
                self._body = bytearray(exchange.body + body)
            else:
                exchange.body = body
        elif self._stage == _APPS:
            self._room -= len(body)
            if self._room < 0:
                self._refuse(413, "the body is longer than 1 MB; send less at once")
            else:
                super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is read."""
        stage, self._stage = self._stage, _IDLE
        if stage == _OURS:
            exchange = self._exchange
            assert exchange is not None
            self.since = monotonic()
            if self._body is not None:
                exchange.body, self._body = bytes(self._body), None
            if exchange.allows and exchange.method == b"OPTIONS":
                self.port.guard.preflight(exchange.headers, exchange.reply)
            elif exchange.route.door != "ws":
                self.port.serve(exchange)
            elif not self.parser.should_upgrade():
                more = b"connection: upgrade\r\nupgrade: websocket\r\n"
                exchange.reply(426, b'{"error":"this address speaks WebSocket alone"}', more=more)
        elif stage == _APPS:
            super().on_message_complete()

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
        if exchange.slow:
            exchange.paces(False)  # what is left of it is bounded, and nothing more comes
        exchange.on_gone = exchange.on_full = None
        if self._deaf:
            self._linger()
        elif exchange.close:
            self.transport.close()

    def on_response_complete(self) -> None:
        """The application's answer is whole. The sweep sees to connections that lie idle then, not a timer for each."""
        self.since = monotonic()
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """The reader is slow: it is asked nothing more until it has caught up."""
        self._full = True
        self.since = monotonic()
        super().pause_writing()
        self.flow.pause_reading()
        if self._exchange is not None and not self._exchange.done:
            self._exchange.paces(True)

    def resume_writing(self) -> None:
        """The reader has caught up."""
        self._full = False
        self.since = monotonic()
        super().resume_writing()
        if not self.transport.is_closing():
            self.flow.resume_reading()
        if self._exchange is not None:
            self._exchange.paces(False)

    def _last(self) -> None:
        """What came before the answer to the request before it is not looked at.

        The connection ends behind that answer, which tells the client to send it again (RFC 9112 §9.3.2).
        """
        self._deaf = True
        self._stage = _PAST
        if self._exchange is not None:
            self._exchange.close = True
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    def _misread(self, status: int, text: str) -> None:
        """What came cannot be read: an error, unless an answer is under way that it would be taken for."""
        cycle = self.cycle
        if self._stage not in (_OURS, _APPS) and (
            self._exchange is not None or (cycle is not None and not cycle.response_complete)
        ):
            self._last()
        else:
            self._refuse(status, text)

    def _refuse(self, status: int, text: str) -> None:
        """Answers with an error and ends the connection, since what follows cannot be told apart any more."""
        self._exchange = None
        self._body = None
        stage, self._stage = self._stage, _PAST
        if self._lingers or self.transport.is_closing():
            return
        if stage == _APPS:
            cycle = self.cycle
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        body = msgspec.json.encode({"error": text})
        self.put(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (self.port.head(status), len(body), body)
        )
        self._linger()

    def _linger(self) -> None:
        """Ends our half of the connection and reads on for a moment.

        Closed with something unread, it would be reset, and the client would lose the answer (RFC 9112 §9.6).
        """
        self._deaf = self._lingers = True
        self.since = monotonic()
        self.transport.write_eof()

    @property
    def holds(self) -> int:
        """Bytes of memory that it takes: of a body that is not whole yet, and of answers not taken."""
        return self.transport.get_write_buffer_size() + (0 if self._body is None else len(self._body))

    def sweep(self, now: float, read_s: float, write_s: float) -> None:
        """Ends what takes too long: reading a request, taking an answer, doing nothing."""
        if self.transport.is_closing():
            return
        waits = now - self.since
        first = min(FIRST_S, read_s)
        if self._full:
            if waits > write_s:
                self.transport.abort()
        elif self._lingers:
            if waits > LINGER_S:
                self.transport.close()
        elif self._stage != _IDLE:
            if waits > (first if self._stage == _HEAD else read_s):
                self._misread(408, "the request did not come in time")
        elif (
            self._exchange is None
            and (self.cycle is None or self.cycle.response_complete)
            and waits > (KEEP_ALIVE_S if self.url else first)
        ):
            self.transport.close()

    def let_go(self) -> None:
        """Another protocol takes the connection over."""
        self._exchange = None
        self.parser = None  # type: ignore[assignment]
        self.connections.discard(self)

    def shutdown(self) -> None:
        """Ends the connection once what is under way has ended."""
        if self._exchange is None:
            super().shutdown()
        else:
            self._exchange.close = True


def _joined(headers: dict[bytes, bytes], lines: list[tuple[bytes, bytes]]) -> bytes | None:
    """Makes one of headers that came several times (RFC 9110 §5.3); gives the name of one that may not."""
    headers.clear()
    for name, value in lines:
        if name not in headers:
            headers[name] = value
        elif name in _ONCE:
            return name
        else:
            headers[name] += b", " + value
    return None


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
            interface="asgi3",
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
            if len(self._routes) >= 1024:
                self._routes.clear()
            if len(url) <= 512:
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
        fronts = [front for front in self.state.connections if isinstance(front, Front)]
        for front in fronts:
            front.sweep(now, self.read_s, self.write_s)
        held = {front: size for front in fronts if (size := front.holds)}
        too_much = sum(held.values()) - ROOM
        for front in sorted(held, key=lambda front: front.since):
            if too_much <= 0:
                break
            _log.warning("a slow connection was cut, since all of them together hold too much memory")
            front.transport.abort()
            too_much -= held[front]

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
