"""Streamable HTTP towards agents, both eras at one address: sessions that survive their connections, and none at all.

Legacy (MCP 2025-03-26 to 2025-11-25, `basic/transports`): `initialize` begins a session whose id belongs to its agent
and address; what belongs to a request goes on its stream, everything else on the GET stream; a stream that broke is
taken up again with `Last-Event-ID`. Modern (2026-07-28): a POST is all there is, its headers mirror its body, and
closing the stream cancels. A legacy request without a session is served too, as one of many in a session of ours, for
whoever asks with `curl`.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Final

import msgspec

from aegis_daemon import __version__
from aegis_daemon.core.ports import Reception, Turned
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import LOOK, Reason
from aegis_daemon.transports.guard import bearer
from aegis_daemon.transports.http import Exchange, Route
from aegis_daemon.transports.remote import BEAT, BEAT_S, RemoteClient, event, turn_away, turn_out
from aegis_daemon.wire.errors import (
    CANCELLED,
    HEADER_MISMATCH,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    REFUSALS,
    UNSUPPORTED_VERSION,
)
from aegis_daemon.wire.headers import ANNOTATION, BadAnnotation, Param, annotated, mismatch
from aegis_daemon.wire.jsonrpc import (
    INVALID_REQUEST,
    Frame,
    Kind,
    WireFault,
    encode,
    error_frame,
    id_text,
    notification_frame,
    parse,
    request_frame,
)
from aegis_daemon.wire.methods import LEGACY_VERSIONS, META_CAPABILITIES, META_VERSION, MODERN_VERSION

IDLE_S: Final = 1800.0
"""How long a session lives that nobody uses."""
SHARED_IDLE_S: Final = 300.0
"""The same for one of ours, whose server begins anew with the next request."""
RESUME_S: Final = 60.0
"""How long a request whose stream broke waits to be taken up again."""
PATIENCE_S: Final = 2.0
"""After this long an answer becomes a stream, so that it can be taken up again and no proxy gives it up."""
KEPT: Final = 1024
KEPT_BYTES: Final = 2 << 20
"""How many events, and how many bytes of them, a session keeps for whoever comes back: the newest, one at least."""
ANNOTATED: Final = 1024
"""How many tools with mirrored parameters a session remembers."""
_PRIME: Final = b"id: %d-%d\nretry: 1000\ndata: \n\n"
"""An event without a message: what a client whose connection breaks comes back with, and after how many ms."""
_EVENT_ID: Final = re.compile(rb"([0-9]{1,12})-([0-9]{1,12})")
_STATUS: Final = {-32700: 400, -32600: 400, -32602: 400, -32020: 400, -32021: 400, -32022: 400, -32601: 404}
"""HTTP status of an error's code in the modern era (2026-07-28 `basic/transports`, `basic/index`)."""
Clock = Callable[[], float]
Common = tuple[Principal, str | None, bool, bytes]


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


class Kept:
    """What was said on the streams of a session, the newest of it, for whoever comes back for it."""

    __slots__ = ("_events", "_size")

    def __init__(self) -> None:
        self._events: deque[tuple[int, int, float, bytes]] = deque()
        self._size = 0

    def add(self, stream: int, number: int, text: bytes, now: float) -> None:
        """One event, as it is written; the oldest make room for it."""
        events = self._events
        events.append((stream, number, now, text))
        self._size += len(text)
        while len(events) > KEPT or (self._size > KEPT_BYTES and len(events) > 1):
            self._size -= len(events.popleft()[3])

    def after(self, stream: int, seen: int) -> list[bytes]:
        """What is kept of a stream behind this event."""
        return [text for one, number, _, text in self._events if one == stream and number > seen]

    def has(self, stream: int) -> bool:
        """Whether anything is kept of a stream."""
        return any(one == stream for one, *_ in self._events)

    def expire(self, before: float) -> None:
        """Drops what is older."""
        events = self._events
        while events and events[0][2] < before:
            self._size -= len(events.popleft()[3])


class Stream:
    """What goes back of one POST: one JSON answer, or a stream once something comes before the answer or it is late.

    See `transports.remote.Reply`.
    """

    __slots__ = ("beat", "client", "exchange", "id", "listens", "lists", "since")
    client: Shared | HttpSession

    def __init__(self, exchange: Exchange | None, client: Shared | HttpSession, frame: Frame | None) -> None:
        self.exchange = exchange
        self.client = client
        self.id = None if frame is None else frame.id
        self.lists = frame is not None and frame.method == "tools/list"
        self.listens = frame is not None and frame.method == "subscriptions/listen"
        self.since = self.beat = client.used

    # --- from the session

    def answer(self, frame: bytes) -> None:
        """The answer."""
        exchange = self.exchange
        head = self.client.answered(self, frame)
        if exchange is None or exchange.streaming:
            self._put(frame)
            self._end()
        else:
            self.exchange = None
            exchange.reply(self.client.status(frame), frame, more=head)

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
        """The request was cancelled. A stream ends then; whoever has none yet waits for something."""
        exchange = self.exchange
        self.client.dropped(self)
        if exchange is None or exchange.streaming:
            self._end()
        else:
            self.exchange = None
            id_json = b"null" if self.id is None else id_text(self.id)
            exchange.reply(200, error_frame(id_json, CANCELLED, "the request was cancelled", {"by": "aegis"}))

    # --- the stream

    def begin(self) -> None:
        """Becomes a stream of events."""
        if self.exchange is not None:
            self.exchange.begin()

    def _put(self, frame: bytes) -> None:
        if self.exchange is not None:
            self.exchange.event(event(frame))

    def _end(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.end()

    def sign_of_life(self, now: float) -> None:
        """Once a second: a long wait becomes a stream, and a silent stream says that it lives."""
        exchange = self.exchange
        if exchange is None or exchange.done:
            return
        if not exchange.streaming:
            if now - self.since <= PATIENCE_S or not _takes_events(exchange):
                return
            self.begin()
        elif now - self.beat <= BEAT_S:
            return
        self.beat = now
        exchange.event(BEAT)

    # --- the connection

    def broke(self) -> None:
        """The connection is gone. To close the stream is how a modern client cancels, and no legacy one."""
        self.exchange = None
        self.client.dropped(self)
        self.client.forget(self, forwarded=self.client.modern)


class Lasting(Stream):
    """A stream of a session, the GET stream if its `number` is 0: its events have ids and outlive its connection."""

    __slots__ = ("number", "sent", "told")
    client: HttpSession

    def __init__(self, exchange: Exchange | None, client: HttpSession, frame: Frame | None, number: int) -> None:
        super().__init__(exchange, client, frame)
        self.number = number
        self.told = 0
        """events so far"""
        self.sent = 0
        """the last of them that went onto a connection"""

    def begin(self) -> None:
        """See `Stream.begin`. The first event is empty and only has an id, in those versions that know that."""
        exchange = self.exchange
        if exchange is None:
            return
        exchange.begin(self.client.line)
        if self.client.primes:
            self.told = self.sent = self.told + 1
            exchange.event(_PRIME % (self.number, self.told))

    def _put(self, frame: bytes) -> None:
        self.told += 1
        text = event(frame, b"id: %d-%d\n" % (self.number, self.told))
        self.client.keep(self, text)
        if self.exchange is not None:
            self.sent = self.told
            self.exchange.event(text)

    def resume(self, exchange: Exchange, seen: int, now: float) -> None:
        """Goes on at another connection, with what came after the event that its client saw last."""
        old, self.exchange = self.exchange, exchange
        if old is not None:
            old.on_gone = None
            old.end()
        self.since = self.beat = now
        exchange.begin(self.client.line)
        for text in self.client.missed(self, seen):
            exchange.event(text)
        self.sent = self.told

    def broke(self) -> None:
        """The connection is gone. Whoever saw an event may come back."""
        if self.told or not self.number:
            self.exchange = None
            self.since = self.client.now()
        else:
            super().broke()


class HttpSession(RemoteClient):
    """One legacy session: its id, its agent and address, its streams."""

    modern = False

    def __init__(self, id: str, principal: Principal, backend: str | None, now: Clock) -> None:
        super().__init__()
        self.id = id
        self.line = b"mcp-session-id: %b\r\n" % id.encode()
        self.principal = principal
        self.backend = backend
        self.now = now
        self.used = now()
        self.primes = False
        """whether its version has events without a message"""
        self.established = False
        self._open_streams: dict[int, Lasting] = {}
        self._numbers = 0
        self._slow = 0
        self._kept = Kept()
        self._news = Kept()
        self._general = Lasting(None, self, None, 0)

    # --- for its streams

    def status(self, frame: bytes) -> int:
        """The HTTP status of an answer."""
        return 200

    def answered(self, stream: Stream, frame: bytes) -> bytes:
        """A POST has its answer: the header lines that go with it."""
        self.dropped(stream)
        if self.established:
            return self.line
        # The answer to `initialize`: only now is there a session, or none.
        try:
            result = msgspec.json.decode(frame).get("result")
        except (msgspec.DecodeError, AttributeError, RecursionError):
            result = None
        if type(result) is not dict:
            self.leave()
            return b""
        self.established = True
        self.primes = str(result.get("protocolVersion")) >= "2025-11-25"
        return self.line

    def dropped(self, stream: Stream) -> None:
        """A stream has nothing more to say."""
        if isinstance(stream, Lasting):
            self._open_streams.pop(stream.number, None)

    def keep(self, stream: Lasting, text: bytes) -> None:
        """An event, for whoever comes back for it."""
        (self._kept if stream.number else self._news).add(stream.number, stream.told, text, self.now())

    def missed(self, stream: Lasting, seen: int) -> list[bytes]:
        """What came on a stream after this event."""
        return (self._kept if stream.number else self._news).after(stream.number, seen)

    # --- requests

    @property
    def streams(self) -> list[Lasting]:
        """All that may still say something, the GET stream included."""
        return [self._general, *self._open_streams.values()]

    def stream(self, exchange: Exchange, frame: Frame) -> Lasting:
        """A new one, for the answer to a POST."""
        self._numbers += 1
        made = Lasting(exchange, self, frame, self._numbers)
        self._open_streams[self._numbers] = made
        exchange.on_gone = made.broke
        exchange.on_full = self._paces
        return made

    def listen(self, exchange: Exchange, last: bytes | None) -> bool:
        """The GET stream, or one that broke and is taken up again; False where nothing is known of that one."""
        stream = self._general
        if last is None:
            self._attach(stream, exchange, stream.sent)
            if self.primes:
                exchange.event(_PRIME % (0, stream.told))
            return True
        known = _EVENT_ID.fullmatch(last)
        if known is None:
            return False
        number, seen = int(known[1]), int(known[2])
        if number == 0:
            self._attach(stream, exchange, seen)
        elif number in self._open_streams and self._open_streams[number].told:
            self._attach(self._open_streams[number], exchange, seen)
        elif self._kept.has(number):
            exchange.begin(self.line)
            for text in self._kept.after(number, seen):
                exchange.event(text)
            exchange.end()
        else:
            return False
        return True

    def _attach(self, stream: Lasting, exchange: Exchange, seen: int) -> None:
        exchange.on_gone = stream.broke
        exchange.on_full = self._paces
        stream.resume(exchange, seen, self.now())

    def _paces(self, slow: bool) -> None:
        """One of its connections is slow, or is so no more: the server waits for the slowest."""
        self._slow += 1 if slow else -1
        if self._slow == slow:
            self.on_full(slow)

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
                self.dropped(stream)
                self.forget(stream, forwarded=False)
        self._kept.expire(now - RESUME_S)
        if now - self.used > IDLE_S and not self.waiting:
            self.leave()

    def hang_up(self) -> None:
        """Ends the GET stream."""
        stream = self._general
        if stream.exchange is not None:
            stream.exchange.on_gone = None
            stream._end()

    def close(self, code: int) -> None:
        """See `RemoteClient.close`."""
        super().close(code)
        for stream in self.streams:
            stream._end()
        self._open_streams.clear()


class Shared(RemoteClient):
    """A session of ours that many requests of one agent share. A legacy one begins with a handshake of our own."""

    def __init__(self, now: Clock, *, modern: bool) -> None:
        super().__init__()
        self.modern = modern
        self.now = now
        self.used = now()
        self.old = False
        """nothing more comes"""
        self._error: dict[str, object] | None = None
        self._streams: set[Stream] = set()
        self._annotated: dict[str, tuple[Param, ...]] = {}
        """tool → the parameters that its definition wants mirrored, as the agent was last shown it"""

    def start(self) -> None:
        """See `RemoteClient.start`. Without a server nobody shakes hands: what is asked is refused as it is."""
        if self.modern or (self.party is not None and not self.party.serves):
            super().start()
        elif self.party is not None and not self.closed:
            self._current = _Greeting(self)
            try:
                self.party.hear(parse(_HANDSHAKE))
            finally:
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
        if type(error) is dict:
            self._error = error
        self.refuse("the server did not take up a session, and its answer cannot be read")
        self.leave()

    def ended(self, frame: Frame, id_json: bytes) -> bytes:
        """See `RemoteClient.ended`. What became of our own handshake is what becomes of the requests behind it.

        They are recorded as refused calls: the record of the handshake tells nothing of what was asked for.
        """
        error = self._error
        if error is None or self.party is None:
            return super().ended(frame, id_json)
        data = error.get("data")
        said = str(error.get("message"))[:500]
        if type(data) is dict and data.get("by") == "aegis":
            stage = next((name for name in REFUSALS if name == data.get("stage")), "forward")
            text = said.partition(LOOK)[0]
            retryable, code = data.get("retryable") is True, str(data.get("reason", ""))[:64]
            if stage == "forward" and "not executed" not in text:  # what is unknown is how the handshake ended
                text, retryable = f"{text.removesuffix('; outcome unknown')}; not executed", True
            return self.party.refusal(frame, Reason(stage, text, retryable=retryable, code=code))
        self.party.refusal(frame, Reason("forward", f"the server did not take up a session: {said}", code="no_session"))
        return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (id_json, encode(error))

    # --- for its streams

    def status(self, frame: bytes) -> int:
        """The HTTP status of an answer."""
        return _status(frame) if self.modern else 200

    def answered(self, stream: Stream, frame: bytes) -> bytes:
        """A POST has its answer: the header lines that go with it."""
        self._streams.discard(stream)
        if stream.lists and (self._annotated or ANNOTATION.encode() in frame):
            self._learn(frame)
        return b""

    def dropped(self, stream: Stream) -> None:
        """A stream has nothing more to say."""
        self._streams.discard(stream)

    # --- requests

    def params(self, frame: Frame) -> tuple[Param, ...]:
        """The parameters of a call that headers must repeat; none for a tool that nobody was shown."""
        name = frame.params.get("name") if self._annotated and frame.method == "tools/call" else None
        return self._annotated.get(name, ()) if type(name) is str else ()

    def _learn(self, frame: bytes) -> None:
        """The answer to a `tools/list`, as it goes to the agent."""
        try:
            tools = msgspec.json.decode(frame)["result"]["tools"]
        except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
            return
        for tool in tools if type(tools) is list else ():
            name = tool.get("name") if type(tool) is dict else None
            if type(name) is not str:
                continue
            self._annotated.pop(name, None)
            try:
                params = annotated(tool)
            except BadAnnotation:
                continue  # clients leave such a tool out
            if params and len(self._annotated) < ANNOTATED:
                self._annotated[name] = params

    def stream(self, exchange: Exchange, frame: Frame) -> Stream:
        """One for the answer to a POST."""
        self.used = self.now()
        made = Stream(exchange, self, frame)
        exchange.on_gone = made.broke
        self._streams.add(made)
        return made

    def sweep(self, now: float) -> None:
        """Once a second."""
        for stream in list(self._streams):
            stream.sign_of_life(now)
        if self.old and all(stream.listens for stream in self._streams):
            self.leave()  # who listens begins anew, and hears from the session that belongs there now
        elif self._streams or self.waiting:
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
        self._shared: dict[Common, Shared] = {}
        self._old: dict[Shared, Principal] = {}
        """those that nobody asks any more, until they have answered"""

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
            turn_away(exchange, turned)
            return
        method = exchange.method
        if method == b"POST":
            self._post(exchange, principal, route)
            return
        session = self._session(exchange, principal, route)
        if session is None:
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
        if session is None or session.principal != principal or session.backend != route.backend or session.gone:
            return None
        return session

    def _post(self, exchange: Exchange, principal: Principal, route: Route) -> None:
        kind = exchange.header(b"content-type")
        if kind is None or kind.partition(b";")[0].strip().lower() != b"application/json":
            _say(exchange, 415, "send JSON, and say so: `Content-Type: application/json`")
            return
        if not _takes_json(exchange) and not _takes_events(exchange):
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
                if frame.method != "notifications/cancelled":  # some say it, besides closing the stream, which does it
                    reason = "not a request, in a version that has no other"
                    self._reception.dropped(principal, route.backend, "", reason)
                exchange.reply(202)
            return
        if claimed is None:
            if version not in (None, MODERN_VERSION):
                _refuse_version(exchange, frame, version)
            else:
                text = f"a request of this version needs `_meta` with `{META_VERSION}`"
                _refuse(exchange, frame, 400, INVALID_PARAMS, text)
            return
        mirrors = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in exchange.lines if name[:4] == b"mcp-"
        ]
        shared = self._shared.get(self._common(principal, route, frame, modern=True))
        why = mismatch(frame, mirrors, () if shared is None else shared.params(frame))
        if why is not None:
            self._reception.dropped(principal, route.backend, "", "headers that differ from the message")
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
        key = self._common(principal, route, frame, modern=modern)
        shared = self._shared.get(key)
        if shared is None or shared.closed or shared.gone:
            shared = Shared(self._now, modern=modern)

            def closed(made: Shared = shared) -> None:
                self._old.pop(made, None)
                if self._shared.get(key) is made:
                    del self._shared[key]

            shared.on_closed = closed
            try:
                shared.party = self._reception.begin(principal, route.backend, shared, shared=True)
            except Turned as turned:
                self._refuse_all(exchange, principal, route, turned, frame)
                return
            if not shared.closed:
                self._shared[key] = shared
            shared.start()
        if frame.kind is Kind.REQUEST:
            shared.says(frame, self._streamed(exchange, shared.stream(exchange, frame)))
        else:
            shared.says(frame)
            exchange.reply(202)

    def _common(self, principal: Principal, route: Route, frame: Frame, *, modern: bool) -> Common:
        """What requests have in common that share a session: what their clients can do, too, where a server cares."""
        if modern:
            can = frame.params["_meta"].get(META_CAPABILITIES)
            if can and self._reception.apart(principal, route.backend):
                return principal, route.backend, True, sha256(encode(can)).digest()
        return principal, route.backend, modern, b""

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
        if session is None:
            text = "there is no such session (any more); begin a new one with `initialize`"
            _refuse(exchange, frame, 404, INVALID_REQUEST, text)
            return
        session.used = self._now()
        if frame.kind is Kind.REQUEST:
            session.says(frame, self._streamed(exchange, session.stream(exchange, frame)))
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
            self._refuse_all(exchange, principal, route, turned, frame)
            return
        session.start()
        session.says(frame, self._streamed(exchange, session.stream(exchange, frame)))

    def _refuse_all(self, exchange: Exchange, principal: Principal, route: Route, turned: Turned, frame: Frame) -> None:
        """The agent gets to talk to nobody. To a request that is an answer like any refusal, which clients read."""
        answer = self._reception.refused(principal, route.backend, turned, frame)
        told = frame.kind is Kind.REQUEST and turned.status == 403
        exchange.reply(200 if told else turned.status, answer)

    @staticmethod
    def _streamed(exchange: Exchange, stream: Stream) -> Stream:
        """The same, which is a stream from the start for a client that takes nothing else."""
        if not _takes_json(exchange):
            stream.begin()
        return stream

    def _forget(self, session: HttpSession) -> None:
        self._sessions.pop(session.id, None)

    # --- from time to time

    def sweep(self) -> None:
        """Once a second."""
        now = self._now()
        for session in self.sessions:
            session.sweep(now)
        for shared in [*self._shared.values(), *self._old]:
            shared.sweep(now)

    def turn_out(self, still: Callable[[Principal], bool]) -> None:
        """The rules changed: ends the sessions of those that may not come any more."""
        for session in self.sessions:
            if not still(session.principal):
                turn_out(session)
        known = [(principal, shared) for (principal, *_), shared in self._shared.items()]
        for principal, shared in (*known, *((principal, shared) for shared, principal in list(self._old.items()))):
            if not still(principal):
                turn_out(shared)

    def begin_anew(self) -> None:
        """The rules changed: where requests belong to another session now, the next of them begins it."""
        for key, shared in list(self._shared.items()):
            principal, backend, *_ = key
            if shared.party is not None and not self._reception.suits(principal, backend, shared.party):
                del self._shared[key]
                shared.old = True
                self._old[shared] = principal

    def stop(self, text: str) -> None:
        """The daemon ends: streams that wait for nothing but news end with it."""
        for session in self.sessions:
            session.refuse(text)
            session.hang_up()


@lru_cache(maxsize=64)
def _accepts(accept: bytes | None, kind: bytes) -> bool:
    """Whether a client with this `Accept` takes this kind of answer (RFC 9110 §12.5.1, without weights)."""
    if accept is None:
        return True
    for part in accept.split(b","):
        name = part.partition(b";")[0].strip().lower()
        if name in (kind, b"*/*") or (name.endswith(b"/*") and kind.startswith(name[:-1])):
            return True
    return False


def _takes_json(exchange: Exchange) -> bool:
    return _accepts(exchange.header(b"accept"), b"application/json")


def _takes_events(exchange: Exchange) -> bool:
    return _accepts(exchange.header(b"accept"), b"text/event-stream")


def _status(frame: bytes) -> int:
    """The HTTP status of a modern answer."""
    if b'"error":' not in frame[:320] and b'"error":' not in frame[-512:]:
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
    data = {"supported": [MODERN_VERSION], "requested": asked, "by": "aegis"}
    exchange.reply(400, error_frame(id_json, UNSUPPORTED_VERSION, "unsupported protocol version", data))
