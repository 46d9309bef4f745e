"""One session with an MCP server over Streamable HTTP, in both eras: every frame is a POST, every request gets one end.

Legacy (up to 2025-11-25): a session that the server may name, a GET stream for what belongs to no request, streams that
are taken up again where they broke, and a session that is opened again when the server forgot it. Modern (2026-07-28):
each request by itself, with its mirror headers; closing its stream withdraws it.

Sources: MCP 2025-11-25 `basic/transports` (streamable HTTP, sessions, resumability); MCP 2026-07-28
`basic/transports/streamable-http`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from aegis_daemon.backends.http_client import Exchange, HttpPool, locate
from aegis_daemon.backends.remote import (
    FAREWELL_S,
    GRACE_S,
    HELD,
    MOST_HELD,
    OnLines,
    OnLost,
    answered,
    bad_answer,
    busy,
    configured,
    is_session_id,
    nameless_error,
    one_line,
    read,
    refused,
    too_large,
    withdrawn,
)
from aegis_daemon.backends.sse import SseServer
from aegis_daemon.core.ports import Fault
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.wire.errors import METHOD_NOT_FOUND
from aegis_daemon.wire.headers import HEADER_MISMATCH, BadAnnotation, Param, annotated, derive, is_modern
from aegis_daemon.wire.jsonrpc import MAX_FRAME_OUT, Frame, Kind, notification_frame, request_frame
from aegis_daemon.wire.sse import EventParser, EventTooLarge

_log = logging.getLogger("aegis.backend")

RETRY_S: Final = 1.0
"""Seconds before a stream is taken up again, where the server does not say."""
_SLOWEST_S: Final = 30.0
_ATTEMPTS: Final = 5
"""How often a broken stream is taken up without anything new on it."""
_CONFIRM_S: Final = 5.0
"""Seconds that frames wait for `notifications/initialized` to be accepted."""
_CANCELLED_S: Final = 5.0
"""Seconds that a cancelled request's stream stays open, for an answer that was on its way."""
_MOST_NOTES: Final = 32
"""Notifications of one session that may be under way at once: each has a connection, which others need too."""
_GATHERED: Final = 64 << 20
"""Bytes of unfinished answers that one session may have us keep."""
_ERROR: Final = 1 << 20
"""Bytes of an error response that are looked at."""
_TOOLS: Final = 4096
_PAGES: Final = 20
"""How many pages of a list are looked through for the annotations of one tool."""
_LISTING: Final = -1
"""The id of a request of our own; those of clients go out under positive ones."""

_VERSION: Final = re.compile(r"[0-9A-Za-z.\-]{1,40}")
_ACCEPT_BOTH: Final = b"Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"


class _Opened(msgspec.Struct):
    class _Result(msgspec.Struct):
        protocolVersion: str = ""  # noqa: N815

    result: _Result | msgspec.UnsetType = msgspec.UNSET


_opened = msgspec.json.Decoder(_Opened)
Annotations = dict[str, tuple[Param, ...]]
"""Tool name → the parameters it wants mirrored into headers."""


class _Post:
    """One frame on its way, and what comes back for it: the handler of its exchange, or of those that resume it."""

    # Most of these keep their defaults for the whole life of a call (bar H2), so they live on the class.
    exchange: Exchange | None = None
    events: EventParser | None = None
    body: bytes | bytearray = b""
    gathered = 0
    status = 0
    json = False
    settled = False
    cancelled = False
    again = False
    resumed = False
    waiting = False
    attempts = 0
    position = b""
    timer: asyncio.TimerHandle | None = None

    def __init__(self, server: HttpServer, text: bytes, frame: Frame | None, number: int, modern: bool) -> None:
        self.server = server
        self.text = text
        self.frame = frame
        self.number = number
        self.modern = modern
        self.session = server.session

    @property
    def method(self) -> str:
        """The method of its frame."""
        return "" if self.frame is None else self.frame.method

    # what its exchange tells

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """See `http_client.Handler`."""
        self.status = status
        kind = headers.get(b"content-type", b"")
        plain = headers.get(b"content-encoding", b"identity") == b"identity"
        json = kind == b"application/json" or kind.partition(b";")[0].strip().lower() == b"application/json"
        if not self.number:
            # What a server may say to a notification is nobody's; the end of it frees the connection.
            if b"content-length" not in headers:
                assert self.exchange is not None
                self.exchange.drain()
                self.server.noted(self)
            return
        if not 200 <= status < 300:
            self.json = json and plain
            return
        if self.method == "initialize" and not self.resumed:
            self.server.named(self, headers.get(b"mcp-session-id", b""))
        if json and plain and not self.resumed:
            self.json = True
        elif plain and kind.partition(b";")[0].strip().lower() == b"text/event-stream":
            self.events = EventParser()
        else:
            self._spoil(bad_answer("the server's answer is neither JSON nor a stream of events"))

    def data(self, chunk: bytes) -> None:
        """See `http_client.Handler`."""
        if self.events is not None:
            self._events(self.events, chunk)
            return
        if not self.json:
            return
        if not self.body:
            self.body = chunk
            return
        if type(self.body) is bytes:
            self.body = bytearray(self.body)
            self._gather(len(chunk))
        self.body += chunk
        self._gather(len(chunk))
        limit = MAX_FRAME_OUT if self.status < 300 else _ERROR
        if len(self.body) > limit or self.server.gathered > _GATHERED:
            self._spoil(too_large() if self.status < 300 else refused(self.status))

    def _gather(self, size: int) -> None:
        self.gathered += size
        self.server.gathered += size

    def end(self) -> None:
        """See `http_client.Handler`."""
        if self.settled:
            return
        if not self.number:
            self.server.noted(self)
        elif self.events is not None:
            self._broke()
        elif 200 <= self.status < 300:
            self._whole(one_line(bytes(self.body)))
        elif self.resumed:
            self.server.lost(self, _unfinished())
        else:
            error = nameless_error(one_line(bytes(self.body)), self.number) if self.json else None
            self.server.turned_down(self, error)

    def fail(self, fault: Fault) -> None:
        """See `http_client.Handler`."""
        self.waits(False)
        if self.settled:
            return
        if self.events is not None or self.resumed:
            self._broke()
        elif not self.number:
            self.server.noted(self)
        elif self.status >= 300:
            self.server.turned_down(self, None)
        else:
            self.server.lost(self, fault)

    def waits(self, waiting: bool) -> None:
        """See `http_client.Handler`."""
        if waiting is not self.waiting:
            self.waiting = waiting
            self.server.waiting(len(self.text) if waiting else -len(self.text))

    # what it makes of that

    def _whole(self, line: bytes) -> None:
        number = self.number
        if answered(line) != number:
            named = nameless_error(line, number)
            if named is None:
                self.server.lost(self, bad_answer("the server's answer is not one to the request"))
                return
            line = named
        self.server.answer(self, [line])

    def _events(self, events: EventParser, chunk: bytes) -> None:
        if self.settled:
            return
        before = events.held
        try:
            found = events.feed(chunk)
        except EventTooLarge:
            self._spoil(too_large())
            return
        self._gather(events.held - before)
        if self.server.gathered > _GATHERED:
            self._spoil(too_large())
            return
        if events.position:
            self.position = events.position
        if not found:
            return
        self.attempts = 0
        lines = []
        for event in found:
            if event.kind != b"message" or not event.data:
                continue
            line = one_line(event.data)
            lines.append(line)
            if answered(line) == self.number:
                break
            named = nameless_error(line, self.number) if b'"error"' in line else None
            if named is not None:
                lines[-1] = named
                break
        else:
            if lines:
                self.server.heard(lines, self.number)
            return
        if self.exchange is not None:
            self.exchange.drain()  # the server ends the stream now, and if not, we do
        self.server.answer(self, lines)

    def _spoil(self, fault: Fault) -> None:
        self.abort()
        self.server.lost(self, fault)

    def _broke(self) -> None:
        """Its stream ended without the answer: a legacy one is taken up again where that can be."""
        self.exchange = None
        events, self.events = self.events, None
        wait = RETRY_S
        if events is not None:
            self._gather(-events.held)
            if events.retry is not None:
                wait = min(max(events.retry / 1000, 0.05), _SLOWEST_S)
        self.attempts += 1
        lost = self.modern or self.cancelled or self.method == "initialize" or self.server.over
        if lost or not self.position or self.attempts > _ATTEMPTS:
            self.server.lost(self, _unfinished())
            return
        self.resumed = True
        self.status = 0
        self.timer = self.server.loop.call_later(wait * 2 ** max(self.attempts - 2, 0), self._resume)

    def _resume(self) -> None:
        self.timer = None
        self.exchange = self.server.get(self, self.position)

    def abort(self) -> None:
        """Nothing more is wanted of it."""
        self.settled = True
        self.waits(False)
        if self.gathered:
            self._gather(-self.gathered)
        self.body = b""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.abort()

    def settle(self) -> None:
        """It has its end."""
        self.settled = True
        self.body = b""
        if self.waiting:
            self.waits(False)
        if self.gathered:
            self._gather(-self.gathered)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _Stream:
    """The GET stream of a legacy session: what belongs to no request, for as long as the session lasts."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._events: EventParser | None = None
        self._position = b""
        self._wait = RETRY_S
        self._empty = 0
        self._timer: asyncio.TimerHandle | None = None
        self.exchange: Exchange | None = None

    def open(self) -> None:
        """Asks for the stream, from where it broke if it did."""
        self._timer = None
        self.exchange = self._server.get(self, self._position)

    def close(self) -> None:
        """It is not wanted any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.abort()

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """See `http_client.Handler`."""
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        plain = headers.get(b"content-encoding", b"identity") == b"identity"
        if status == 200 and kind == b"text/event-stream" and plain:
            self._events = EventParser()
            return
        assert self.exchange is not None
        self.exchange.drain()
        self.exchange = None
        if status >= 500 or status == 429:
            self._later()
        # Any other: there is no such stream here (405), or no such session, which the next request will tell.

    def data(self, chunk: bytes) -> None:
        """See `http_client.Handler`."""
        events = self._events
        if events is None:
            return
        try:
            found = events.feed(chunk)
        except EventTooLarge:
            _log.warning("an event of a server's stream is over the limit; the stream is opened again behind it")
            self._position = events.position or self._position
            self.close()
            self._later()
            return
        self._position = events.position or self._position
        if events.retry is not None:
            self._wait = min(max(events.retry / 1000, 0.05), _SLOWEST_S)
        if found:
            self._empty = 0
            lines = [one_line(event.data) for event in found if event.kind == b"message" and event.data]
            if lines:
                self._server.heard(lines, 0)

    def end(self) -> None:
        """See `http_client.Handler`."""
        self._later()

    def fail(self, fault: Fault) -> None:
        """See `http_client.Handler`."""
        self._later()

    def waits(self, waiting: bool) -> None:
        """See `http_client.Handler`."""

    def _later(self) -> None:
        self.exchange = self._events = None
        self._empty += 1
        if not self._server.over:
            wait = min(self._wait * 2 ** min(self._empty - 1, 10), _SLOWEST_S)
            self._timer = self._server.loop.call_later(wait, self.open)


class _Farewell:
    """Tells the server that the session is over."""

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self._done()

    def data(self, chunk: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def fail(self, fault: Fault) -> None:
        self._done()

    def waits(self, waiting: bool) -> None:
        pass


_DOORS: Final = ("send", "cancel", "pause", "close_stdin", "end")


class HttpServer:
    """A server at an http or https URL, for one session; a `Backend` (`relay.ports`).

    `headers` are the backend's own, `tools` what is known of its annotated parameters (shared by its sessions). With
    `fall_back` a server that answers the very first frame with 400, 404 or 405 and no JSON-RPC is taken for one of
    the older transport (MCP 2025-11-25, backwards compatibility). Raises `ValueError` for a URL or header that cannot
    be sent to.
    """

    pid: int | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        pool: HttpPool,
        url: str,
        headers: Mapping[str, str],
        *,
        on_lines: OnLines,
        on_lost: OnLost,
        on_full: Callable[[bool], None],
        on_exit: Callable[[int], None],
        on_failed: Callable[[str], None],
        tools: Annotations | None = None,
        fall_back: bool = False,
    ) -> None:
        self.loop = loop
        self._outbox = outbox
        self._pool = pool
        self._on_lines = on_lines
        self._on_lost = on_lost
        self._on_full = on_full
        self._on_exit = on_exit
        self._fall_back = fall_back
        self._older: SseServer | None = None
        self._older_status = 0
        self._make_older = partial(SseServer, loop, outbox, pool, url, headers)
        self._tools: Annotations = {} if tools is None else tools
        self._target = target = locate(url)
        common = b"Host: " + target.authority + b"\r\n" + configured(headers)
        self._post_block = b"POST " + target.path + b" HTTP/1.1\r\n" + common + _ACCEPT_BOTH
        self._get_block = b"GET " + target.path + b" HTTP/1.1\r\n" + common + b"Accept: text/event-stream\r\n"
        self._delete_block = b"DELETE " + target.path + b" HTTP/1.1\r\n" + common
        self._modern_block = self._post_block + b"Content-Length: "
        self._legacy_block = self._modern_block
        self._session_lines = b""
        self.session = b""
        self._version = ""
        self.touched = False
        """whether anything was sent to it"""
        self.renewals = 0
        self.over = False
        self.gathered = 0
        self._proven = False  # it answered something as an MCP server does
        self._paused = False
        self._waiting = 0
        self._full = False
        self._open: dict[int, _Post] = {}
        self._notes: set[_Post] = set()
        self._stream: _Stream | None = None
        # Frames wait here while the session is being opened, confirmed or opened again.
        self._gate: _Post | None = None
        self._stale = False
        self._held: deque[tuple[bytes, Frame | None, int]] = deque()
        self._held_bytes = 0
        self._unheard: list[_Post] = []  # met a session that was forgotten
        self._gate_timer: asyncio.TimerHandle | None = None
        self._handshake: _Post | None = None
        self._named = b""
        self._confirmed: bytes | None = None
        self._ending = False
        self._end_timer: asyncio.TimerHandle | None = None
        self._farewell: Exchange | None = None
        self._told = False

    # --- what the conversation asks -----------------------------------------------------------------------------

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        """One frame as it goes out; see `relay.ports.Backend`."""
        self.touched = True
        if len(self._notes) >= _MOST_NOTES and frame is not None and frame.kind is Kind.NOTIFICATION:
            _log.info("a notification is dropped: the server took none of the %d before it", len(self._notes))
        elif self._gate is not None or self._stale:
            self._hold(text, frame, number)
        else:
            self._post(text, frame, number)

    def cancel(self, number: int, text: bytes) -> None:
        """Withdraws an open request: in the modern era by closing its stream, in the legacy one by telling so."""
        for at, (_, _, held) in enumerate(self._held):
            if held == number:
                self._held_bytes -= len(self._held[at][0])
                del self._held[at]
                self._weigh()
                self.loop.call_soon(self._report, number, withdrawn(True))
                return
        post = self._open.get(number)
        if post is None or post.cancelled:
            return
        post.cancelled = True
        if post in self._unheard:
            self._unheard.remove(post)
            del self._open[number]
            post.abort()
            self.loop.call_soon(self._report, number, withdrawn(True))
        elif post.modern:
            del self._open[number]
            post.abort()
            self.loop.call_soon(self._report, number, withdrawn(False))
        else:
            if post.timer is not None:
                post.timer.cancel()
            post.timer = self.loop.call_later(_CANCELLED_S, post.server.lost, post, withdrawn(False))
            # The request's era counts: what withdraws it may come from a client of the other one.
            frame = read(text)
            if frame is not None and is_modern(frame):
                text = notification_frame(
                    frame.method, {key: value for key, value in frame.params.items() if key != "_meta"}
                )
                frame = None
            self.send(text, frame)

    def pause(self, paused: bool) -> None:
        """Leaves what the server says in the network while nobody takes it."""
        self._paused = paused
        for post in self._open.values():
            if post.exchange is not None:
                post.exchange.pause(paused)
        if self._stream is not None and self._stream.exchange is not None:
            self._stream.exchange.pause(paused)

    def close_stdin(self) -> None:
        """No more frames will come: nothing to be told to a server that is asked request by request."""

    def end(self) -> None:
        """Ends the session: what is open has GRACE_S to be answered, then the server is told."""
        if self._ending:
            return
        self._ending = True
        self.pause(False)
        if self._stream is not None:
            self._stream.close()
        for number, post in list(self._open.items()):
            if post.method == "subscriptions/listen":  # its answer is the end of the session
                del self._open[number]
                post.abort()
                self.loop.call_soon(self._report, number, withdrawn(False))
        if self._open or self._held or self._notes:
            self._end_timer = self.loop.call_later(GRACE_S, self._leave)
        else:
            self.loop.call_soon(self._leave)

    # --- frames out ---------------------------------------------------------------------------------------------

    def _post(self, text: bytes, frame: Frame | None, number: int, again: bool = False) -> None:
        if frame is None:
            frame = read(text)
        extra = b""
        if frame is not None and is_modern(frame):
            modern = True
            block = self._modern_block
            extra = "".join([f"{name}: {value}\r\n" for name, value in derive(frame, self._params(frame))]).encode()
        else:
            modern = False
            block = self._legacy_block
        post = _Post(self, text, frame, number, modern)
        post.again = again
        if frame is not None and not modern and frame.kind is not Kind.ANSWER:
            if frame.method == "initialize":
                self._begin(post)
                block = self._modern_block
            elif frame.method == "notifications/initialized":
                self._confirm(post)
        if number:
            self._open[number] = post
        else:
            self._notes.add(post)
        request = b"%b%d\r\n%b\r\n%b" % (block, len(text), extra, text)
        post.exchange = exchange = self._pool.request(self._target, request, post)
        if self._paused:
            exchange.pause(True)

    def _params(self, frame: Frame) -> tuple[Param, ...]:
        name = frame.params.get("name") if self._tools and frame.method == "tools/call" else None
        return self._tools.get(name, ()) if type(name) is str else ()

    def get(self, handler: Any, position: bytes) -> Exchange:
        """Opens a stream of the session, behind `position`."""
        lines = self._session_lines + (b"Last-Event-ID: " + position + b"\r\n" if position else b"")
        exchange = self._pool.request(self._target, self._get_block + lines + b"\r\n", handler, repeatable=True)
        if self._paused:
            exchange.pause(True)
        return exchange

    def _hold(self, text: bytes, frame: Frame | None, number: int) -> None:
        if len(self._held) >= MOST_HELD:
            if number:
                self.loop.call_soon(self._report, number, busy())
            return
        self._held.append((text, frame, number))
        self._held_bytes += len(text)
        self._weigh()
        if self._stale and self._gate is None:
            self._reopen()

    def _release(self) -> None:
        """Sends what waited, until something has to be waited for again."""
        if self._gate_timer is not None:
            self._gate_timer.cancel()
            self._gate_timer = None
        unheard, self._unheard = self._unheard, []
        for post in sorted(unheard, key=lambda one: one.number or 1 << 62):
            self._repeat(post)
        while self._held and self._gate is None and not self._stale:
            text, frame, number = self._held.popleft()
            self._held_bytes -= len(text)
            self._post(text, frame, number)
        self._weigh()

    def waiting(self, size: int) -> None:
        """So many bytes more, or less, wait for a connection or for the server to read."""
        self._waiting += size
        self._weigh()

    def _weigh(self) -> None:
        full = self._waiting + self._held_bytes > HELD
        if full is not self._full:
            self._full = full
            self._on_full(full)

    # --- the legacy session -------------------------------------------------------------------------------------

    def _begin(self, post: _Post) -> None:
        """A handshake goes out: until it is answered nobody knows which session a frame would belong to."""
        self._gate = self._handshake = post
        self._confirmed = None
        self._set_session(b"", "")

    def _confirm(self, post: _Post) -> None:
        self._gate = post
        self._confirmed = post.text
        self._gate_timer = self.loop.call_later(_CONFIRM_S, self.noted, post)

    def named(self, post: _Post, session: bytes) -> None:
        """The answer to a handshake comes with this session id."""
        if post is self._gate:
            self._named = session

    def _set_session(self, session: bytes, version: str) -> None:
        self.session = session
        self._version = version
        lines = b"Mcp-Session-Id: " + session + b"\r\n" if session else b""
        if version:
            lines += b"MCP-Protocol-Version: " + version.encode() + b"\r\n"
        self._session_lines = lines
        self._legacy_block = self._post_block + lines + b"Content-Length: "

    def _handshaken(self, line: bytes) -> str | None:
        """The session is open, or not; what is wrong with the answer, if anything."""
        session, self._named = self._named, b""
        if session and not is_session_id(session):
            return "the server's session id is none"
        try:
            result = _opened.decode(line).result
        except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
            return "the server's handshake cannot be read"
        if type(result) is _Opened._Result:
            version = result.protocolVersion
            if not _VERSION.fullmatch(version):
                return "the server's handshake names no version of the protocol"
            self._set_session(session, version)
        return None

    def noted(self, post: _Post) -> None:
        """A notification or an answer of ours was taken, or not."""
        self._notes.discard(post)
        post.waits(False)
        if post.status == 404 and post.session and not post.modern and not self.over:
            if post.frame is not None and post.frame.kind is Kind.NOTIFICATION:
                self._forgotten(post)
            self._maybe_leave()
            return
        if post.status >= 300 or not post.status:
            _log.info("a server took a notification with status %d", post.status)
        if post is self._gate:
            self._gate = None
            if not self._ending and post.status != 404:
                self._listen()
            self._release()
        self._maybe_leave()

    def _listen(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = _Stream(self)
        self._stream.open()

    def _forgotten(self, post: _Post) -> None:
        """The server does not know the session any more, so it did not do what it was asked in it."""
        handshake = self._handshake
        gate = post is self._gate
        if gate:
            self._gate = None
        if post.again or handshake is None or handshake.text is post.text or self._ending:
            self._open.pop(post.number, None)
            post.settle()
            if post.number:
                self._report(post.number, refused(404))
            if gate:
                self._release()
            self._maybe_leave()
            return
        if not gate:  # that one is said again with the handshake
            self._unheard.append(post)
        if self._gate is None:
            if self._stale or post.session == self.session:
                self._reopen()
            else:
                self._release()

    def _reopen(self) -> None:
        """Shows the server the client's handshake again."""
        self._stale = False
        old = self._handshake
        assert old is not None
        _log.info("a server forgot a session; it is opened again")
        self.renewals += 1
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        assert old.frame is not None
        confirmed, version = self._confirmed, self._version

        def answer(post: _Own, line: bytes | None) -> None:
            self._notes.discard(post)
            taken = line is not None and self._handshaken(line) is None and self._version == version
            self._gate = None
            if not taken:
                self._set_session(b"", version)
                self._not_reopened()
            elif confirmed is not None:
                # Before all that waits: the server takes nothing else until it has this.
                self._post(confirmed, None, 0, again=True)
            else:
                self._release()

        post = _Own(self, old.text, old.frame, old.number, answer)
        self._begin(post)
        self._confirmed = confirmed
        self._ask(post, self._modern_block, b"")

    def _ask(self, post: _Own, block: bytes, extra: bytes) -> None:
        self._notes.add(post)
        request = b"%b%d\r\n%b\r\n%b" % (block, len(post.text), extra, post.text)
        post.exchange = self._pool.request(self._target, request, post)

    def _not_reopened(self) -> None:
        """The new handshake failed: nothing that waits was executed, and the next frame tries again."""
        self._stale = True
        text = "the server forgot the session and did not take it up again; not executed; start a new session"
        numbers = [one.number for one in self._unheard] + [number for _, _, number in self._held]
        self._unheard.clear()
        self._held.clear()
        self._held_bytes = 0
        self._weigh()
        for number in numbers:
            if number:
                self._open.pop(number, None)
                self._report(number, Fault("session_lost", text, not_executed=True))
        self._maybe_leave()

    def _repeat(self, post: _Post) -> None:
        self._open.pop(post.number, None)
        self._post(post.text, post.frame, post.number, again=True)

    # --- what comes back ----------------------------------------------------------------------------------------

    def heard(self, lines: list[bytes], about: int) -> None:
        """Frames of the server, on the stream of a request (its number) or of the session (0)."""
        outbox = self._outbox
        outbox.begin()
        try:
            self._on_lines(lines, about)
        finally:
            outbox.flush()

    def answer(self, post: _Post, lines: list[bytes]) -> None:
        """A request was answered by the last of these lines."""
        self._open.pop(post.number, None)
        self._proven = True
        post.settle()
        opening = post is self._gate
        if opening:
            self._gate = None
            wrong = self._handshaken(lines[-1])
            if wrong is not None:
                self._report(post.number, bad_answer(wrong))
                self._release()
                return
        elif post.modern and post.method == "tools/list":
            self._learn(lines[-1])
        self.heard(lines, post.number)
        if opening:
            self._release()
        if self._ending:
            self._maybe_leave()

    def lost(self, post: _Post, fault: Fault) -> None:
        """A request will get no answer."""
        self._open.pop(post.number, None)
        if not post.settled:
            post.abort()
        self._report(post.number, fault)
        if post is self._gate:
            self._gate = None
            self._release()
        self._maybe_leave()

    def turned_down(self, post: _Post, error: bytes | None) -> None:
        """A request was answered with a status that is no success, and perhaps with the JSON-RPC error in it."""
        status = post.status
        if post.session and not post.modern and _forgets(post, error):
            self._forgotten(post)
            return
        if error is not None:
            if post.modern and not post.again and post.method == "tools/call" and _code_of(error) == HEADER_MISMATCH:
                self._relearn(post, error)
            else:
                self.answer(post, [error])
            return
        if self._fall_back and not self._proven and not self._ending and status in (400, 404, 405):
            self._move(post)
            return
        self.lost(post, refused(status))

    def _move(self, post: _Post) -> None:
        """Asks the server again as one of the older transport; from here on that is this server."""
        self._open.pop(post.number, None)
        post.settle()
        self._gate = None
        older = self._older
        if older is None:
            older = self._older = self._make_older(
                on_lines=self._on_lines,
                on_lost=self._on_lost,
                on_full=self._on_full,
                on_exit=self._on_exit,
                on_failed=self._not_older,
            )
            self._older_status = post.status
            older.pause(self._paused)
            for name in _DOORS:
                setattr(self, name, getattr(older, name))
        older.send(post.text, post.frame, post.number)
        while self._held:
            older.send(*self._held.popleft())
        self._held_bytes = 0

    def _not_older(self, text: str) -> None:
        """It is none of those either: what it said first holds, and it is not tried again."""
        older, self._older = self._older, None
        assert older is not None
        self._fall_back = False
        for name in _DOORS:
            delattr(self, name)
        _log.info("a server took no POST (status %d), and no GET: %s", self._older_status, text)
        for number in sorted(older.unanswered):
            self._report(number, refused(self._older_status))

    def _report(self, number: int, fault: Fault) -> None:
        if self._told:
            return
        outbox = self._outbox
        outbox.begin()
        try:
            self._on_lost(number, fault)
        finally:
            outbox.flush()

    def _learn(self, line: bytes) -> None:
        """Notes which parameters the tools of this list want mirrored."""
        tools = self._tools
        if b'"x-mcp-header"' not in line and not tools:
            return
        try:
            listed = msgspec.json.decode(line)["result"]["tools"]
        except (msgspec.DecodeError, UnicodeError, ValueError, KeyError, TypeError, RecursionError):
            return
        for tool in listed if type(listed) is list else ():
            if type(tool) is not dict or type(tool.get("name")) is not str:
                continue
            try:
                found = annotated(tool)
            except BadAnnotation as fault:  # the client leaves such a tool out; if it calls it all the same, without
                _log.info("a tool's header annotations are not followed: %s", fault)
                found = ()
            if found and len(tools) < _TOOLS:
                tools[tool["name"]] = found
            else:
                tools.pop(tool["name"], None)

    def _relearn(self, post: _Post, error: bytes, cursor: str | None = None, page: int = 1) -> None:
        """The tool wants other headers than we knew: asks which, then sends the call again, which was not executed.

        Source: MCP 2026-07-28 `basic/transports/streamable-http` (custom headers, client behavior).
        """
        assert post.frame is not None
        name = post.frame.params.get("name")
        before = self._tools.get(name, ()) if type(name) is str else ()
        meta = {key: value for key, value in post.frame.params["_meta"].items() if key != "progressToken"}
        params = {"_meta": meta} if cursor is None else {"_meta": meta, "cursor": cursor}
        text = request_frame(_LISTING, "tools/list", params)

        def answer(listing: _Own, line: bytes | None) -> None:
            self._notes.discard(listing)
            if post.settled:  # cancelled meanwhile
                return
            if line is not None:
                self._learn(line)
                if type(name) is str and self._tools.get(name, ()) != before:
                    self._repeat(post)
                    return
                following = _cursor_of(line)
                if following is not None and page < _PAGES:
                    self._relearn(post, error, following, page + 1)
                    return
            self.answer(post, [error])

        frame = read(text)
        assert frame is not None
        extra = "".join([f"{header}: {value}\r\n" for header, value in derive(frame)]).encode()
        self._ask(_Own(self, text, frame, _LISTING, answer), self._modern_block, extra)

    # --- its end ------------------------------------------------------------------------------------------------

    def _maybe_leave(self) -> None:
        if self._ending and not self.over and not (self._open or self._held or self._notes):
            self._leave()

    def _leave(self) -> None:
        if self.over:
            return
        self.over = True
        if self._end_timer is not None:
            self._end_timer.cancel()
        if self._gate_timer is not None:
            self._gate_timer.cancel()
        for post in [*self._open.values(), *self._notes]:
            post.abort()
        self._open.clear()
        self._notes.clear()
        self._held.clear()
        if self._stream is not None:
            self._stream.close()
        if not self.session:
            self.loop.call_soon(self._gone)
            return
        request = self._delete_block + self._session_lines + b"\r\n"
        self._farewell = self._pool.request(self._target, request, _Farewell(self._gone), repeatable=True)
        self._end_timer = self.loop.call_later(FAREWELL_S, self._gone)

    def _gone(self) -> None:
        if self._told:
            return
        self._told = True
        if self._end_timer is not None:
            self._end_timer.cancel()
        if self._farewell is not None:
            self._farewell.drain()  # or, if nothing came of it yet, leaves it to the server
        outbox = self._outbox
        outbox.begin()
        try:
            self._on_exit(0)
        finally:
            outbox.flush()


def _forgets(post: _Post, error: bytes | None) -> bool:
    """Whether the server says that it does not know the session (any more).

    404, says the specification (2025-11-25 `basic/transports`, session management, 3). Servers on the TypeScript SDK
    say 400, with words about the session, so those are believed once.
    """
    if post.status == 404:
        return error is None or _code_of(error) != METHOD_NOT_FOUND
    return post.status == 400 and error is not None and not post.again and b"session" in error.lower()


class _Own(_Post):
    """A request of ours, of which no client knows: what answers it goes to `then`, or None if nothing does."""

    def __init__(
        self, server: HttpServer, text: bytes, frame: Frame, number: int, then: Callable[[_Own, bytes | None], None]
    ) -> None:
        super().__init__(server, text, frame, number, is_modern(frame))
        self._then: Callable[[_Own, bytes | None], None] = then

    def _finish(self, line: bytes | None) -> None:
        if not self.settled:
            if self.exchange is not None and line is not None:
                self.exchange.drain()
                self.settle()
            else:
                self.abort()
            self._then(self, line)

    def _whole(self, line: bytes) -> None:
        self._finish(line if answered(line) == self.number else None)

    def _events(self, events: EventParser, chunk: bytes) -> None:
        try:
            found = events.feed(chunk)
        except EventTooLarge:
            self._finish(None)
            return
        for event in found:
            line = one_line(event.data)
            if answered(line) == self.number:
                self._finish(line)
                return

    def end(self) -> None:
        """See `http_client.Handler`."""
        if self.json and 200 <= self.status < 300:
            self._whole(one_line(bytes(self.body)))
        else:
            self._finish(None)

    def fail(self, fault: Fault) -> None:
        """See `http_client.Handler`."""
        self._finish(None)

    def _spoil(self, fault: Fault) -> None:
        self._finish(None)


class _Coded(msgspec.Struct):
    class _Error(msgspec.Struct):
        code: int

    error: _Error


_coded = msgspec.json.Decoder(_Coded)


class _Paged(msgspec.Struct):
    class _Result(msgspec.Struct):
        nextCursor: str | None = None  # noqa: N815

    result: _Result


_paged = msgspec.json.Decoder(_Paged)


def _cursor_of(line: bytes) -> str | None:
    try:
        return _paged.decode(line).result.nextCursor
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        return None


def _code_of(line: bytes) -> int:
    try:
        return _coded.decode(line).error.code
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        return 0


def _unfinished() -> Fault:
    return Fault("connection_lost", "the server's stream ended before the answer; outcome unknown")
