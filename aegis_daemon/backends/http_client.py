"""An HTTP/1.1 client for one daemon: every request has one outcome, and a request is never sent twice unasked.

Connections are kept and used again, newest first. There are no redirects, proxies, cookies or compressed bodies: what
a server gets is what was written here, and what comes back is handed on as it is. Nothing on a request's way makes a
task or a future (bars H1 and H2 of `scripts/bench`); only a new connection does.

Sources: RFC 9110, RFC 9112 (message framing is llhttp's, strictly).
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit

import httptools
import msgspec

from aegis_daemon.core.ports import Fault

_log = logging.getLogger("aegis.http")

MAX_HEAD: Final = 1 << 16
"""Bytes of a response that are no body: status line, headers, informational responses, chunk extensions, trailers."""
IDLE_S: Final = 30.0
"""Seconds an unused connection is kept: servers close theirs after 60 or 75, and then a request may be lost in it."""
_LOOK_AFTER_S: Final = 1.0
"""Seconds after which a kept connection is looked at before it is used."""
_SWEEP_S: Final = 2.0
_DRAINED: Final = 1 << 16
"""Bytes of a response that nobody wants, read to keep its connection."""
_HIGH: Final = 1 << 18
"""Bytes of requests that may wait for one server to read before it counts as one that does not."""


class Handler(Protocol):
    """Who takes what comes of a request: `head`, `data` any number of times, `end`; or `fail` at any point."""

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """The final status and the headers: names in lower case, values that came twice joined by `, `."""
        ...

    def data(self, chunk: bytes) -> None:
        """A piece of the body."""
        ...

    def end(self) -> None:
        """The response is complete; its connection can be used again by now."""
        ...

    def fail(self, fault: Fault) -> None:
        """There will be no (complete) response."""
        ...

    def waits(self, waiting: bool) -> None:
        """The request waits for a connection or for a server that does not read; or does not wait any more."""
        ...


class Target(msgspec.Struct, frozen=True):
    """Where a URL leads. `authority` and `path` are as they stand in a request."""

    secure: bool
    host: str
    port: int
    authority: bytes
    path: bytes

    @property
    def origin(self) -> tuple[bool, str, int]:
        """What two URLs share that are of one server (RFC 6454)."""
        return self.secure, self.host, self.port


def locate(url: str) -> Target:
    """Reads a URL; ws and wss count as http and https. Raises `ValueError`, without repeating the URL."""
    parts = urlsplit(url)
    secure = {"http": False, "https": True, "ws": False, "wss": True}.get(parts.scheme)
    if secure is None or not parts.hostname:
        raise ValueError("the url of a server starts with `http://`, `https://`, `ws://` or `wss://` and a host name")
    if parts.username is not None:
        raise ValueError("the url of a server holds a user name; put credentials into `headers`")
    try:
        host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
        port = parts.port
    except ValueError:
        raise ValueError("the url of a server has no valid host name or port") from None
    if not host.isprintable() or any(char in host for char in ' "<>\\^`{|}'):
        raise ValueError("the url of a server has no valid host name")
    authority = f"[{host}]" if ":" in host else host
    usual = 443 if secure else 80
    if port is not None and port != usual:
        authority += f":{port}"
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]")
    return Target(secure, host, port or usual, authority.encode(), path.encode())


class Response(msgspec.Struct, frozen=True):
    """A whole response."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Exchange:
    """One request on its way: the handle of whoever made it."""

    __slots__ = ("_connection", "_handler", "_paused", "_request", "_waiting")

    def __init__(self, handler: Handler, request: bytes | None) -> None:
        self._handler: Handler | None = handler
        self._connection: _Connection | None = None
        self._request = request
        """what to send again, should a kept connection turn out to be dead; None where that is not safe"""
        self._paused = False
        self._waiting = False

    def abort(self) -> None:
        """Nothing more is wanted: closes the connection, calls nothing any more. Idempotent."""
        self._handler = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()

    def drain(self) -> None:
        """Nothing more is wanted, but the response is about to end: reads that, to use its connection again."""
        if self._handler is not None and self._connection is not None:
            pool = self._connection.pool
            self._handler = _Drain(self, pool)
            self.pause(False)
            pool.draining(self)

    def pause(self, paused: bool) -> None:
        """Leaves the rest of the response in the network for a while."""
        self._paused = paused
        if self._connection is not None:
            self._connection.pause(paused)

    def _wait(self, waiting: bool) -> None:
        if waiting is not self._waiting:
            self._waiting = waiting
            if self._handler is not None:
                self._handler.waits(waiting)

    def _fail(self, fault: Fault) -> None:
        handler, self._handler = self._handler, None
        self._connection = None
        if handler is not None:
            handler.fail(fault)


class _Drain:
    """Takes the end of a response that nobody wants, if it is a short one."""

    def __init__(self, exchange: Exchange, pool: HttpPool) -> None:
        self._exchange = exchange
        self._pool = pool
        self._left = _DRAINED

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        pass

    def data(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            self._exchange.abort()

    def end(self) -> None:
        self._pool.drained(self._exchange)

    def fail(self, fault: Fault) -> None:
        self._pool.drained(self._exchange)

    def waits(self, waiting: bool) -> None:
        pass


class _Origin:
    """The connections to one server."""

    __slots__ = ("idle", "open", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.idle: list[_Connection] = []
        self.open = 0


class _Connection(asyncio.Protocol):
    """One connection: idle, or with one exchange."""

    def __init__(self, pool: HttpPool, origin: _Origin) -> None:
        self.pool = pool
        self.origin = origin
        self.idle_since = 0.0
        self._patience = IDLE_S
        self._transport: Any = None
        self._fd = -1
        self._exchange: Exchange | None = None
        self.kept = False
        self._choked = False
        self._paused = False
        self._retired = False
        self._parser = httptools.HttpResponseParser(self)
        # The response that is being read:
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._begun = False  # a byte of it came
        self._headed = False
        self._bodied = False
        self._over = False
        self._keep = False
        self._loose = 0  # bytes since the last piece of a body

    # what the pool and the exchange ask

    def begin(self, exchange: Exchange, request: bytes) -> None:
        """Sends a request."""
        self._exchange = exchange
        exchange._connection = self
        self._headers = {}
        self._begun = self._headed = self._over = False
        self._loose = 0
        if exchange._paused:
            self.pause(True)
        self._transport.write(request)

    def usable(self, now: float) -> bool:
        """Whether a kept connection still seems to be one."""
        if self._transport.is_closing():
            return False
        # An unasked byte and the other side's end both make it readable, perhaps before the loop has told us.
        return now - self.idle_since < _LOOK_AFTER_S or not _readable(self._fd)

    def tired(self, now: float) -> bool:
        """Whether it was kept long enough."""
        return now - self.idle_since > self._patience

    def pause(self, paused: bool) -> None:
        """Reads no more for a while."""
        if paused is not self._paused and not self._transport.is_closing():
            self._paused = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    @property
    def closing(self) -> bool:
        """Whether nothing can be sent on it."""
        return bool(self._transport.is_closing())

    def drop(self) -> None:
        """Closes it at once."""
        self._exchange = None
        self._transport.abort()

    def give_up(self) -> None:
        """It did not come about, or too late."""
        self._retire()
        if self._transport is not None:
            self.drop()

    # what the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self._retired:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=_HIGH)
        self.pool.connections.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._fd = sock.fileno()
            _keep_alive(sock)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            # Nothing was asked: whatever this is, it must not become the answer to the next request.
            self._forget()
            self._transport.abort()
            return
        self._begun = True
        self._bodied = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._broken("bad_answer", "the server changed the protocol unasked; outcome unknown")
            return
        except httptools.HttpParserError as error:
            if self._over and self._exchange is not None:
                self._keep = False  # the response is whole; what follows it is nobody's
            else:
                if error.__context__ is not None:
                    _log.error("a response could not be handled", exc_info=error.__context__)
                self._broken("bad_answer", "the server's answer is not HTTP; outcome unknown")
                return
        if self._over:
            if self._exchange is not None:
                self._finish()
        elif not self._bodied:
            self._loose += len(data)
            if self._loose > MAX_HEAD:
                self._broken("bad_answer", f"the head of the server's answer is over {MAX_HEAD} bytes; outcome unknown")
        else:
            self._loose = 0

    def eof_received(self) -> None:
        if self._exchange is None:
            self._forget()

    def connection_lost(self, error: Exception | None) -> None:
        self._retire()
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        exchange._connection = None
        until_eof = b"content-length" not in self._headers and b"transfer-encoding" not in self._headers
        if self._headed and error is None and until_eof:
            if exchange._handler is not None:
                handler, exchange._handler = exchange._handler, None
                handler.end()
            return
        request = exchange._request
        if request is not None and self.kept and not self._begun and exchange._handler is not None:
            # Safe to repeat, and the server closed an idle connection just then: a new one, and no third try.
            exchange._request = None
            self.pool.connect(self.origin, exchange, request)
            return
        exchange._fail(
            Fault("connection_lost", "the connection to the server broke before it answered; outcome unknown")
        )

    def pause_writing(self) -> None:
        self._choked = True
        if self._exchange is not None:
            self._exchange._wait(True)

    def resume_writing(self) -> None:
        self._choked = False
        if self._exchange is not None:
            self._exchange._wait(False)

    # what the parser tells

    def on_message_begin(self) -> None:
        if self._over:
            raise httptools.HttpParserError("a second response to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:
            name = name.lower()
            headers = self._headers
            headers[name] = value if name not in headers else headers[name] + b", " + value

    def on_headers_complete(self) -> None:
        self._status = status = self._parser.get_status_code()
        if status < 200:
            self._headers = {}
            return
        self._headed = True
        exchange = self._exchange
        if exchange is not None and exchange._handler is not None:
            exchange._handler.head(status, self._headers)

    def on_body(self, chunk: bytes) -> None:
        self._bodied = True
        exchange = self._exchange
        if exchange is not None and exchange._handler is not None:
            exchange._handler.data(chunk)

    def on_message_complete(self) -> None:
        if self._status >= 200:
            self._over = True
            self._keep = self._parser.should_keep_alive()

    # ends

    def _finish(self) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._exchange = None
        exchange._connection = None
        transport = self._transport
        # A request that is not out whole was answered early: nothing may follow it.
        if self._keep and not transport.is_closing() and not self._choked and not transport.get_write_buffer_size():
            if self._paused:
                self.pause(False)
            told = self._headers.get(b"keep-alive")
            if told is not None:
                self._patience = _patience(told)
            self.pool.release(self)
        else:
            transport.abort()
        handler, exchange._handler = exchange._handler, None
        if handler is not None:
            try:
                handler.end()
            except Exception:  # a fault with one answer must not reach the loop as one of the connection
                _log.exception("a response could not be handled")

    def _broken(self, reason: str, text: str) -> None:
        exchange, self._exchange = self._exchange, None
        self._transport.abort()
        if exchange is not None:
            exchange._fail(Fault(reason, text))

    def _retire(self) -> None:
        """It counts no more. Not every loop tells the end of a connection that was cancelled while it was made."""
        if not self._retired:
            self._retired = True
            self.pool.connections.discard(self)
            self.origin.open -= 1
            self._forget()

    def _forget(self) -> None:
        try:
            self.origin.idle.remove(self)
        except ValueError:
            pass


class HttpPool:
    """All connections of one daemon, by origin. Belongs to one loop; `close` ends everything.

    `most` bounds the connections to one origin, in use or not, and `most_idle` those kept unused.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        connect_timeout: float = 10.0,
        most: int = 2048,
        most_idle: int = 128,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._loop = loop
        self._connect_timeout = connect_timeout
        self._most = most
        self._most_idle = most_idle
        self._trust = trust
        self._origins: dict[tuple[bool, str, int], _Origin] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining: dict[Exchange, float] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False
        self.connections: set[_Connection] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop it lives on."""
        return self._loop

    def request(self, target: Target, request: bytes, handler: Handler, *, repeatable: bool = False) -> Exchange:
        """Sends the bytes of one whole request; what comes of it goes to `handler`, never within this call.

        `repeatable` where sending it twice does no harm (GET, DELETE): then it is, if a kept connection was dead.
        """
        exchange = Exchange(handler, request if repeatable else None)
        origin = self._origins.get((target.secure, target.host, target.port)) or self._origin(target)
        idle = origin.idle
        while idle:
            connection = idle.pop()
            if connection.usable(self._loop.time()):
                connection.begin(exchange, request)
                return exchange
            connection.drop()
        self.connect(origin, exchange, request)
        return exchange

    def _origin(self, target: Target) -> _Origin:
        if len(self._origins) > 256:  # hosts that nobody talks to any more
            self._origins = {key: one for key, one in self._origins.items() if one.open}
        return self._origins.setdefault(target.origin, _Origin(target))

    def connect(self, origin: _Origin, exchange: Exchange, request: bytes) -> None:
        """Opens a new connection for this request."""
        if self._closed or origin.open >= self._most:
            why = "too many connections to the server are open" if not self._closed else "the daemon stops"
            fault = Fault("busy", f"{why}; not executed; try again", not_executed=True)
            self._loop.call_soon(exchange._fail, fault)
            return
        origin.open += 1
        exchange._wait(True)
        connection = _Connection(self, origin)
        task = self._loop.create_task(self._connect(connection, exchange, request))
        self._tasks.add(task)

        def connected(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():  # perhaps before it began
                connection.give_up()
                exchange._fail(Fault("busy", "the daemon stops; not executed", not_executed=True))

        task.add_done_callback(connected)

    async def _connect(self, connection: _Connection, exchange: Exchange, request: bytes) -> None:
        try:
            await self.open(connection.origin.target, connection)
        except Fault as fault:
            connection.give_up()
            exchange._fail(fault)
        else:
            if connection.closing:
                exchange._fail(Fault("connect", "the server closes every connection; not executed", not_executed=True))
            elif exchange._handler is None:
                self.release(connection)
            else:
                exchange._wait(False)
                connection.begin(exchange, request)

    async def open(self, target: Target, protocol: asyncio.Protocol) -> None:
        """Connects to a server and gives the connection to `protocol`. Raises `Fault`, which is never executed."""
        try:
            trust = self._context() if target.secure else None
            async with asyncio.timeout(self._connect_timeout):
                await self._loop.create_connection(lambda: protocol, target.host, target.port, ssl=trust)
        except (OSError, ValueError) as error:
            reason, text = _why_not(error)
            _log.info("no connection to %s:%d: %s", target.host, target.port, error or reason)
            raise Fault(reason, f"{text}; not executed", not_executed=True) from None

    def _context(self) -> ssl.SSLContext:
        if self._trust is None:
            self._trust = ssl.create_default_context()
        return self._trust

    def release(self, connection: _Connection) -> None:
        """Keeps a connection that nobody uses."""
        idle = connection.origin.idle
        if self._closed:
            connection.drop()
            return
        connection.kept = True
        connection.idle_since = self._loop.time()
        idle.append(connection)
        if len(idle) > self._most_idle:
            idle.pop(0).drop()
        if self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP_S, self._swept)

    def draining(self, exchange: Exchange) -> None:
        """Gives a response that nobody wants a little time to end."""
        self._draining[exchange] = self._loop.time() + _SWEEP_S
        if self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP_S, self._swept)

    def drained(self, exchange: Exchange) -> None:
        """It has ended."""
        self._draining.pop(exchange, None)

    def _swept(self) -> None:
        now = self._loop.time()
        kept = False
        for origin in self._origins.values():
            for connection in [one for one in origin.idle if one.tired(now)]:
                origin.idle.remove(connection)
                connection.drop()
            kept = kept or bool(origin.idle)
        for exchange in [one for one, until in self._draining.items() if until <= now]:
            del self._draining[exchange]
            exchange.abort()
        again = kept or bool(self._draining)
        self._sweep = self._loop.call_later(_SWEEP_S, self._swept) if again else None

    async def fetch(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        timeout: float = 10.0,  # noqa: ASYNC109
        limit: int = 1 << 20,
    ) -> Response:
        """One whole exchange, within `timeout` seconds and with a body of at most `limit` bytes.

        For what is asked now and then (webhooks, health), not for frames. Any status is an answer. Raises `Fault`,
        and `ValueError` for a URL or header that is none. HEAD is not supported: its responses are framed otherwise.
        """
        target = locate(url)
        lines = [f"{method} ".encode() + target.path + b" HTTP/1.1", b"Host: " + target.authority]
        lines += header_lines({"User-Agent": "aegis", "Accept": "*/*"} | dict(headers or {}))
        if body is not None or method not in ("GET", "DELETE"):
            lines.append(b"Content-Length: %d" % len(body or b""))
        request = b"\r\n".join((*lines, b"", body or b""))
        collected = _Collect(self._loop.create_future(), limit)
        exchange = self.request(target, request, collected, repeatable=method in ("GET", "DELETE", "PUT"))
        collected.exchange = exchange
        try:
            async with asyncio.timeout(timeout):
                return await collected.done
        except TimeoutError:
            raise Fault("timeout", f"no answer within {timeout:g} s; outcome unknown") from None
        finally:
            exchange.abort()

    def close(self) -> None:
        """Closes every connection; requests on them fail."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self.connections):
            connection._transport.abort()


class _Collect:
    """Gathers a whole response."""

    def __init__(self, done: asyncio.Future[Response], limit: int) -> None:
        self.done = done
        self.exchange: Exchange | None = None
        self._limit = limit
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self._status, self._headers = status, headers

    def data(self, chunk: bytes) -> None:
        self._body += chunk
        if len(self._body) > self._limit:
            if self.exchange is not None:
                self.exchange.abort()
            self.fail(Fault("answer_too_large", f"the answer is larger than {self._limit} bytes"))

    def end(self) -> None:
        if not self.done.done():
            self.done.set_result(Response(self._status, self._headers, bytes(self._body)))

    def fail(self, fault: Fault) -> None:
        if not self.done.done():
            self.done.set_exception(fault)

    def waits(self, waiting: bool) -> None:
        pass


_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def header_lines(headers: Mapping[str, str]) -> list[bytes]:
    """Headers as they go out, without line ends. Raises `ValueError` for what is no header, naming it (RFC 9110 §5)."""
    lines = []
    for name, value in headers.items():
        try:
            raw, text = name.encode("ascii"), value.strip(" \t").encode("latin-1")
        except UnicodeEncodeError:
            raise ValueError(f"the header {name[:60]!a} cannot be sent; use plain ASCII") from None
        if not raw or not _TOKEN.issuperset(raw):
            raise ValueError(f"{name[:60]!a} is no name of a header")
        if any((byte < 32 and byte != 9) or byte == 127 for byte in text):
            raise ValueError(f"the header `{name[:60]}` has a control character in its value")
        lines.append(raw + b": " + text)
    return lines


def _patience(told: bytes) -> float:
    """Seconds to keep a connection of which the server says how long it does (`Keep-Alive: timeout=5`)."""
    for part in told.lower().split(b","):
        name, _, value = part.strip().partition(b"=")
        if name == b"timeout" and value.isdigit() and len(value) < 6:
            return max(0.0, min(IDLE_S, int(value) - 1.0))
    return IDLE_S


def _why_not(error: Exception) -> tuple[str, str]:
    """Why there is no connection, without naming the address, which may be a secret."""
    if isinstance(error, TimeoutError):
        return "connect_timeout", "the server's address does not answer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "tls", f"the server's certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "tls", "no encrypted connection to the server could be agreed on"
    if isinstance(error, socket.gaierror):
        return "dns", "the server's host name is not known"
    if isinstance(error, ConnectionRefusedError):
        return "refused", "nothing listens at the server's address; see whether it runs"
    return "connect", "the server's address cannot be reached"


def _readable(fd: int) -> bool:
    if fd < 0:
        return False
    try:
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(0))
        return bool(select.select([fd], [], [], 0)[0])
    except (OSError, ValueError):
        return True


def _keep_alive(sock: Any) -> None:
    """Lets the system notice a peer that vanished, in minutes: a stream may rightly be silent for hours."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError:
        pass
