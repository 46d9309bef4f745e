"""Streamable HTTP towards agents, both eras at one address: sessions that survive their connections, and none at all.

Legacy (MCP 2025-03-26 to 2025-11-25, `basic/transports`): `initialize` begins a session whose id belongs to its agent
and address; what belongs to a request goes on its stream, everything else on the GET stream; a stream that broke is
taken up again with `Last-Event-ID`. Modern (2026-07-28): a POST is all there is, its headers mirror its body, and
closing the stream cancels. A legacy request without a session is served too, as one of many in a session of ours, for
whoever asks with `curl`.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from aegis_daemon import __version__
from aegis_daemon.core.ports import Reception, Turned
from aegis_daemon.core.principal import Principal
from aegis_daemon.transports.guard import bearer
from aegis_daemon.transports.http import Exchange, Route
from aegis_daemon.transports.remote import RemoteClient
from aegis_daemon.wire.errors import CANCELLED, HEADER_MISMATCH, INVALID_PARAMS, METHOD_NOT_FOUND, UNSUPPORTED_VERSION
from aegis_daemon.wire.headers import mismatch
from aegis_daemon.wire.jsonrpc import (
    INVALID_REQUEST,
    Frame,
    Id,
    Kind,
    WireFault,
    error_frame,
    id_text,
    notification_frame,
    parse,
    request_frame,
)
from aegis_daemon.wire.methods import LEGACY_VERSIONS, META_VERSION, MODERN_VERSION

IDLE_S: Final = 1800.0
"""How long a session lives that nobody uses."""
SHARED_IDLE_S: Final = 300.0
"""The same for one of ours, whose server begins anew with the next request."""
RESUME_S: Final = 60.0
"""How long a request whose stream broke waits to be taken up again."""
PATIENCE_S: Final = 2.0
"""After this long an answer becomes a stream, so that it can be taken up again and no proxy gives it up."""
BEAT_S: Final = 15.0
"""Seconds between signs of life on a stream that has nothing to say."""
KEPT: Final = 256
KEPT_BYTES: Final = 1 << 20
"""How many events, and how many bytes of them, are kept of one stream."""
STREAMS: Final = 256
"""How many ended or broken streams of one session can be taken up again."""
_EVENT: Final = b"event: message\ndata: "
_BEAT: Final = b": waiting\n\n"
_STATUS: Final = {-32700: 400, -32600: 400, -32602: 400, -32020: 400, -32021: 400, -32022: 400, -32601: 404}
"""HTTP status of an error's code in the modern era (2026-07-28 `basic/transports`, `basic/index`)."""
Clock = Callable[[], float]


_HANDSHAKE: Final = request_frame(
    "aegis",
    "initialize",
    {
        "protocolVersion": LEGACY_VERSIONS[-1],
        "capabilities": {},
        "clientInfo": {"name": "aegis", "version": __version__},
    },
)
_INITIALIZED: Final = notification_frame("notifications/initialized", {})


class Stream:
    """What goes back of one POST, or the GET stream (`number` 0) of a session: see `transports.remote.Reply`.

    With a `session` its events have ids and are kept, so that a client whose connection broke can take it up again.
    """

    __slots__ = ("beat", "client", "events", "exchange", "id", "number", "over", "session", "since", "size", "told")

    def __init__(
        self,
        exchange: Exchange | None,
        client: RemoteClient,
        session: HttpSession | None,
        now: float,
        number: int = 0,
        id: Id | None = None,
    ) -> None:
        self.exchange = exchange
        self.client = client
        self.id = id
        self.session = session
        self.since = now
        self.beat = now
        self.number = number
        self.events: deque[tuple[int, bytes]] = deque()
        self.size = 0
        self.told = 0
        """events so far"""
        self.over = False

    # --- from the session

    def answer(self, frame: bytes) -> None:
        """The answer, as JSON where nothing was said before it."""
        exchange, session = self.exchange, self.session
        if exchange is not None and not exchange.streaming:
            self.over = True
            self.exchange = None
            if session is not None:
                exchange.reply(200, frame, more=session.line)
                session.answered(self, frame)
            else:
                exchange.reply(_status(frame), frame)
            return
        self._put(frame)
        self._end()
        if session is not None:
            session.answered(self, frame)

    def event(self, frame: bytes) -> None:
        """Something before the answer."""
        exchange = self.exchange
        if exchange is not None and not exchange.streaming:
            if not _takes_events(exchange):
                self.client.general(frame)
                return
            self.begin()
        self._put(frame)

    def nothing(self) -> None:
        """The request was cancelled: its stream ends, legacy clients are told how (they wait for something)."""
        exchange = self.exchange
        if exchange is None:
            self.over = True
        elif exchange.streaming:
            self._end()
        else:
            self.over = True
            self.exchange = None
            id_json = b"null" if self.id is None else id_text(self.id)
            exchange.reply(200, error_frame(id_json, CANCELLED, "the request was cancelled", {"by": "aegis"}))

    # --- the stream

    def begin(self) -> None:
        """Becomes a stream of events. The first is empty and only has an id, where the version knows that."""
        exchange, session = self.exchange, self.session
        assert exchange is not None
        exchange.begin(session.line if session is not None else b"")
        if session is not None and session.primes:
            self.told += 1
            exchange.event(b"id: %d-%d\ndata: \n\n" % (self.number, self.told))

    def _put(self, frame: bytes) -> None:
        exchange = self.exchange
        self.told += 1
        if self.session is None:
            if exchange is not None:
                exchange.event(b"%b%b\n\n" % (_EVENT, frame))
            return
        text = b"id: %d-%d\n%b%b\n\n" % (self.number, self.told, _EVENT, frame)
        if exchange is not None:
            exchange.event(text)
        events = self.events
        events.append((self.told, text))
        self.size += len(text)
        while len(events) > KEPT or (self.size > KEPT_BYTES and len(events) > 1):
            self.size -= len(events.popleft()[1])

    def _end(self) -> None:
        self.over = True
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.end()

    def resume(self, exchange: Exchange, seen: int, now: float) -> None:
        """Goes on at another connection, after the event that its client saw last."""
        old, self.exchange = self.exchange, exchange
        if old is not None:
            old.on_gone = None
            old.end()
        self.since = self.beat = now
        exchange.begin(self.session.line if self.session is not None else b"")
        for number, text in self.events:
            if number > seen:
                exchange.event(text)
        if self.over:
            self._end()

    def sign_of_life(self, now: float) -> None:
        """Once a second: a long wait becomes a stream, and a silent stream says that it lives."""
        exchange = self.exchange
        if exchange is None or exchange.done:
            return
        if not exchange.streaming:
            if now - self.since > PATIENCE_S and _takes_events(exchange):
                self.begin()
                if self.session is None or not self.session.primes:
                    exchange.event(_BEAT)
                self.beat = now
        elif now - self.beat > BEAT_S:
            self.beat = now
            exchange.event(_BEAT)

    # --- the connection

    def broke(self) -> None:
        """The connection is gone."""
        self.exchange = None
        if self.over:
            return
        if self.session is None:
            self.client.forget(self, forwarded=True)  # closing the stream is how a modern client cancels
        elif not self.told:
            self.client.forget(self, forwarded=False)  # nobody can come back for it
        else:
            self.since = self.session.now()


class HttpSession(RemoteClient):
    """One legacy session: its id, its agent and address, its streams."""

    def __init__(self, id: str, principal: Principal, backend: str | None, now: Clock) -> None:
        super().__init__()
        self.id = id
        self.line = b"mcp-session-id: %b\r\n" % id.encode()
        self.principal = principal
        self.backend = backend
        self.now = now
        self.used = now()
        self.primes = False
        self.version = ""
        self.established = False
        self._streams: dict[int, Stream] = {}
        self._numbers = 0
        self._general = Stream(None, self, self, self.used)

    @property
    def streams(self) -> Iterator[Stream]:
        """All that are not forgotten yet, the GET stream included."""
        yield self._general
        yield from list(self._streams.values())

    def stream(self, exchange: Exchange, id: Id | None) -> Stream:
        """A new one, for the answer to a POST."""
        self._numbers += 1
        made = Stream(exchange, self, self, self.used, self._numbers, id)
        self._streams[self._numbers] = made
        exchange.on_gone = made.broke
        exchange.on_full = self._full
        while len(self._streams) > STREAMS:
            oldest = next((number for number, one in self._streams.items() if one.over), None)
            if oldest is None:
                break
            del self._streams[oldest]
        return made

    def answered(self, stream: Stream, frame: bytes) -> None:
        """A POST has its answer."""
        if not stream.told:
            self._streams.pop(stream.number, None)  # nothing of it could be asked for again
        if not self.established:
            # The answer to `initialize`: only now is there a session.
            try:
                result = msgspec.json.decode(frame).get("result")
            except (msgspec.DecodeError, AttributeError, RecursionError):
                result = None
            if type(result) is not dict:
                self.leave()
                return
            self.established = True
            self.version = str(result.get("protocolVersion"))
            self.primes = self.version >= "2025-11-25"

    def listen(self, exchange: Exchange, last: bytes | None) -> bool:
        """The GET stream, or one that broke and is taken up again; False where nothing is known of that one."""
        stream, seen = self._general, 0
        if last is not None:
            number, dash, event = last.partition(b"-")
            if not (dash and number.isdigit() and event.isdigit() and len(last) < 40):
                return False
            found = stream if int(number) == 0 else self._streams.get(int(number))
            if found is None:
                return False
            stream, seen = found, int(event)
        else:
            seen = stream.told if stream.exchange is not None else 0
        exchange.on_gone = stream.broke if stream.number else self._unheard
        exchange.on_full = self._full
        stream.resume(exchange, seen, self.now())
        if last is None:
            if self.primes:
                exchange.event(b"id: 0-%d\ndata: \n\n" % stream.told)
            stream.events.clear()
            stream.size = 0
        return True

    def _unheard(self) -> None:
        self._general.exchange = None

    def _full(self, full: bool) -> None:
        self.on_full(full)

    def general(self, frame: bytes) -> None:
        """Onto the GET stream, or kept for it."""
        self._general._put(frame)

    def sweep(self, now: float) -> None:
        """Once a second."""
        for stream in self.streams:
            if stream.exchange is not None:
                self.used = now
                stream.sign_of_life(now)
            elif stream.number and now - stream.since > RESUME_S:
                if not stream.over:
                    stream.over = True
                    self.forget(stream, forwarded=False)
                self._streams.pop(stream.number, None)
        if now - self.used > IDLE_S and not self.waiting:
            self.leave()

    def close(self, code: int) -> None:
        """See `RemoteClient.close`."""
        super().close(code)
        for stream in self.streams:
            if stream.exchange is not None:
                stream._end()


class Shared(RemoteClient):
    """A session of ours that many requests of one agent share. A legacy one begins with a handshake of our own."""

    def __init__(self, now: Clock, *, modern: bool) -> None:
        super().__init__()
        self._modern = modern
        self.now = now
        self.used = now()
        self.streams: set[Stream] = set()

    def start(self) -> None:
        """See `RemoteClient.start`."""
        if self._modern:
            super().start()
        elif self.party is not None:
            self._current = _Greeting(self)
            self.party.hear(parse(_HANDSHAKE))
            self._current = None

    def greeted(self, frame: bytes) -> None:
        """The server answered the handshake."""
        try:
            answer = msgspec.json.decode(frame)
        except (msgspec.DecodeError, RecursionError):
            answer = {}
        if type(answer) is dict and "result" in answer and self.party is not None:
            self.party.hear(parse(_INITIALIZED))
            super().start()
            return
        error = answer.get("error") if type(answer) is dict else None
        why = error.get("message") if type(error) is dict else None
        self.refuse(f"the server did not take up a session: {why or 'its answer cannot be read'}")
        self.leave()

    def stream(self, exchange: Exchange, id: Id | None) -> Stream:
        """One for the answer to a POST."""
        self.used = self.now()
        made = Stream(exchange, self, None, self.used, id=id)
        exchange.on_gone = made.broke
        self.streams.add(made)
        return made

    def sweep(self, now: float) -> None:
        """Once a second."""
        for stream in list(self.streams):
            if stream.over or stream.exchange is None or stream.exchange.done:
                self.streams.discard(stream)
            else:
                stream.sign_of_life(now)
        if self.streams or self.waiting:
            self.used = now
        elif now - self.used > SHARED_IDLE_S:
            self.leave()


class _Greeting:
    """See `transports.remote.Reply`: of a handshake of our own."""

    __slots__ = ("_client",)

    def __init__(self, client: Shared) -> None:
        self._client = client

    def answer(self, frame: bytes) -> None:
        self._client.greeted(frame)

    def event(self, frame: bytes) -> None:
        """Nobody waits for it."""

    def nothing(self) -> None:
        """The session ended first, which its client is told."""


class StreamableHttp:
    """All sessions, and the way of a request to one."""

    def __init__(self, reception: Reception, now: Clock) -> None:
        self._reception = reception
        self._now = now
        self._sessions: dict[str, HttpSession] = {}
        self._shared: dict[tuple[Principal, str | None, bool], Shared] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def sessions(self) -> list[HttpSession]:
        """All legacy sessions."""
        return list(self._sessions.values())

    def serve(self, exchange: Exchange) -> None:
        """One request to `/agents/…/mcp`."""
        route = exchange.route
        try:
            token = bearer(exchange.header(b"authorization"))
            principal = self._reception.admit(route.agent, token, exchange.peer)
        except Turned as turned:
            _turn(exchange, turned)
            return
        method = exchange.method
        if method == b"POST":
            self._post(exchange, principal, route)
            return
        session = self._session(exchange, principal, route)
        if session is None or session.closed:
            self._no_session(exchange)
        elif method == b"DELETE":
            session.leave()
            exchange.reply(200)
        elif method != b"GET":
            exchange.reply(405, more=b"allow: GET, POST, DELETE\r\n")
        elif not _takes_events(exchange):
            _say(exchange, 406, "this address answers with `text/event-stream`; send an `Accept` header that takes it")
        else:
            session.used = self._now()
            if not session.listen(exchange, exchange.header(b"last-event-id")):
                _say(exchange, 400, "nothing is known of the stream of this `Last-Event-ID` any more")

    def _no_session(self, exchange: Exchange) -> None:
        if exchange.header(b"mcp-session-id") is not None:
            _say(exchange, 404, "there is no such session (any more); begin a new one with `initialize`")
        elif exchange.method in (b"GET", b"DELETE"):
            exchange.reply(405, more=b"allow: POST\r\n")
        else:
            exchange.reply(405, more=b"allow: GET, POST, DELETE\r\n")

    def _session(self, exchange: Exchange, principal: Principal, route: Route) -> HttpSession | None:
        named = exchange.header(b"mcp-session-id")
        if named is None:
            return None
        session = self._sessions.get(named.decode("latin-1"))
        if session is None or session.principal != principal or session.backend != route.backend:
            return None
        return session

    def _post(self, exchange: Exchange, principal: Principal, route: Route) -> None:
        kind = exchange.header(b"content-type")
        if kind is None or kind.partition(b";")[0].strip().lower() != b"application/json":
            _say(exchange, 415, "send JSON, and say so: `Content-Type: application/json`")
            return
        if not _takes(exchange, b"application/json") and not _takes_events(exchange):
            _say(exchange, 406, "send `Accept: application/json, text/event-stream`")
            return
        try:
            frame = parse(exchange.body)
        except WireFault as fault:
            self._reception.dropped(principal, route.backend, "", "not exactly one legal message")
            id_json = b"null" if fault.id is None else id_text(fault.id)
            exchange.reply(400, error_frame(id_json, fault.code, fault.text, {"by": "aegis"}))
            return
        header = exchange.header(b"mcp-protocol-version")
        version = None if header is None else header.decode("latin-1")
        meta = frame.params.get("_meta")
        claimed = meta.get(META_VERSION) if type(meta) is dict else None
        legacy = version is None or version in LEGACY_VERSIONS
        if claimed is not None or not legacy or frame.method == "server/discover":
            self._modern(exchange, principal, route, frame, version, claimed)
        else:
            self._legacy(exchange, principal, route, frame)

    # --- the modern era

    def _modern(
        self, exchange: Exchange, principal: Principal, route: Route, frame: Frame, version: str | None, claimed: object
    ) -> None:
        """In the specification's order: what the envelope lacks, what the headers say otherwise, what nobody knows."""
        if frame.kind is not Kind.REQUEST:
            if version not in (None, MODERN_VERSION):
                _refuse_version(exchange, frame, version)
            else:
                exchange.reply(202)  # a modern client has nothing to notify of: closing the stream cancels
            return
        if claimed is None:
            if version not in (None, MODERN_VERSION):
                _refuse_version(exchange, frame, version)
            else:
                text = f"a request of this version needs `_meta` with `{META_VERSION}`"
                _refuse(exchange, frame, 400, INVALID_PARAMS, text)
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in exchange.headers]
        why = mismatch(frame, headers)
        if why is not None:
            _refuse(exchange, frame, 400, HEADER_MISMATCH, why)
        elif claimed != MODERN_VERSION:
            _refuse_version(exchange, frame, claimed)
        elif frame.method == "initialize":
            text = "`initialize` is not known in this version of the protocol"
            _refuse(exchange, frame, 404, METHOD_NOT_FOUND, text)
        else:
            self._among_many(exchange, principal, route, frame, modern=True)

    def _among_many(
        self, exchange: Exchange, principal: Principal, route: Route, frame: Frame, *, modern: bool
    ) -> None:
        key = (principal, route.backend, modern)
        shared = self._shared.get(key)
        if shared is None or shared.closed or shared.gone:
            shared = Shared(self._now, modern=modern)

            def closed(made: Shared = shared) -> None:
                if self._shared.get(key) is made:
                    del self._shared[key]

            shared.on_closed = closed
            try:
                shared.party = self._reception.begin(principal, route.backend, shared, shared=True)
            except Turned as turned:
                _turn(exchange, turned, frame)
                return
            if not shared.closed:
                self._shared[key] = shared
            shared.start()
        if frame.kind is Kind.REQUEST:
            shared.says(frame, shared.stream(exchange, frame.id))
        else:
            shared.says(frame)
            exchange.reply(202)

    # --- the legacy era

    def _legacy(self, exchange: Exchange, principal: Principal, route: Route, frame: Frame) -> None:
        if frame.kind is Kind.REQUEST and frame.method == "initialize":
            if exchange.header(b"mcp-session-id") is not None:
                text = "this session has begun already; begin another without its id"
                _refuse(exchange, frame, 400, INVALID_REQUEST, text)
                return
            self._begin(exchange, principal, route, frame)
            return
        if exchange.header(b"mcp-session-id") is None:
            self._among_many(exchange, principal, route, frame, modern=False)
            return
        session = self._session(exchange, principal, route)
        if session is None or session.closed or session.gone:
            text = "there is no such session (any more); begin a new one with `initialize`"
            _refuse(exchange, frame, 404, INVALID_REQUEST, text)
            return
        session.used = self._now()
        if frame.kind is Kind.REQUEST:
            session.says(frame, session.stream(exchange, frame.id))
        else:
            session.says(frame)
            exchange.reply(202, more=session.line)

    def _begin(self, exchange: Exchange, principal: Principal, route: Route, frame: Frame) -> None:
        session = HttpSession(secrets.token_urlsafe(24), principal, route.backend, self._now)
        session.on_closed = lambda: self._forget(session)
        self._sessions[session.id] = session
        try:
            session.party = self._reception.begin(principal, route.backend, session, shared=False)
        except Turned as turned:
            del self._sessions[session.id]
            _turn(exchange, turned, frame)
            return
        session.start()
        session.says(frame, session.stream(exchange, frame.id))

    def _forget(self, session: HttpSession) -> None:
        self._sessions.pop(session.id, None)

    # --- from time to time

    def sweep(self) -> None:
        """Once a second."""
        now = self._now()
        for session in self.sessions:
            session.sweep(now)
        for shared in list(self._shared.values()):
            shared.sweep(now)

    def turn_out(self, still: Callable[[Principal], bool]) -> None:
        """The rules changed: ends the sessions of those that may not come any more."""
        for client in [*self.sessions, *self._shared.values()]:
            principal = client.principal if isinstance(client, HttpSession) else None
            if principal is not None and not still(principal):
                client.refuse("this agent is not configured any more")
                client.leave()
        for key, shared in list(self._shared.items()):
            if not still(key[0]):
                shared.refuse("this agent is not configured any more")
                shared.leave()

    def stop(self, text: str) -> None:
        """The daemon ends: streams that wait for nothing but news end with it."""
        for session in self.sessions:
            session.refuse(text)
            for stream in session.streams:
                if stream.number == 0 and stream.exchange is not None:
                    stream._end()
                    stream.over = False


def _takes(exchange: Exchange, kind: bytes) -> bool:
    """Whether the client takes this kind of answer (RFC 9110 §12.5.1, without weights)."""
    accept = exchange.header(b"accept")
    if accept is None:
        return True
    for part in accept.split(b","):
        name = part.partition(b";")[0].strip().lower()
        if name in (kind, b"*/*") or (name.endswith(b"/*") and kind.startswith(name[:-1])):
            return True
    return False


def _takes_events(exchange: Exchange) -> bool:
    return _takes(exchange, b"text/event-stream")


def _status(frame: bytes) -> int:
    """The HTTP status of a modern answer."""
    if b'"error":' not in frame[:64] and b'"error":' not in frame[-512:]:
        return 200
    try:
        error = msgspec.json.decode(frame).get("error")
    except (msgspec.DecodeError, AttributeError, RecursionError):
        return 200
    code = error.get("code") if type(error) is dict else None
    return _STATUS.get(code, 200) if type(code) is int else 200


def _say(exchange: Exchange, status: int, text: str) -> None:
    """An error of HTTP's, before there is a message to answer."""
    exchange.reply(status, error_frame(b"null", INVALID_REQUEST, text, {"by": "aegis"}))


def _refuse(exchange: Exchange, frame: Frame, status: int, code: int, text: str) -> None:
    id_json = b"null" if frame.id is None else id_text(frame.id)
    exchange.reply(status, error_frame(id_json, code, text, {"by": "aegis"}))


def _refuse_version(exchange: Exchange, frame: Frame, requested: object) -> None:
    id_json = b"null" if frame.id is None else id_text(frame.id)
    asked = requested[:100] if isinstance(requested, str) else None
    data = {"supported": [MODERN_VERSION, *LEGACY_VERSIONS], "requested": asked, "by": "aegis"}
    exchange.reply(400, error_frame(id_json, UNSUPPORTED_VERSION, "unsupported protocol version", data))


def _turn(exchange: Exchange, turned: Turned, frame: Frame | None = None) -> None:
    id_json = b"null" if frame is None or frame.id is None else id_text(frame.id)
    more = b'www-authenticate: Bearer realm="aegis"\r\n' if turned.status == 401 else b""
    exchange.reply(turned.status, error_frame(id_json, turned.code, turned.text, {"by": "aegis"}), more=more)
