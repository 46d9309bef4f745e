"""HTTP+SSE towards agents, the transport of MCP 2024-11-05: one stream down, POSTs up, both held together by an id.

Still spoken by older clients; `GET …/sse` opens the stream and tells with its first event where to post.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from aegis_daemon.core.ports import Reception, Turned
from aegis_daemon.core.principal import Principal
from aegis_daemon.transports.guard import bearer
from aegis_daemon.transports.http import Exchange
from aegis_daemon.transports.remote import BEAT, BEAT_S, RemoteClient, event, turn_away, turn_out
from aegis_daemon.wire.jsonrpc import INVALID_REQUEST, Kind, WireFault, error_frame, id_text, parse

Clock = Callable[[], float]


class SseSession(RemoteClient):
    """One stream. Everything goes down it, so no request needs a place of its own."""

    way = "sse"

    def __init__(self, id: str, principal: Principal, backend: str | None, exchange: Exchange, now: Clock) -> None:
        super().__init__()
        self.id = id
        self.principal = principal
        self.backend = backend
        self._exchange = exchange
        self._now = now
        self._heard = now()

    def send(self, frame: bytes, slot: int) -> None:
        """See `RemoteClient.send`."""
        self._open.pop(slot, None)
        self._put(frame)

    def general(self, frame: bytes) -> None:
        """See `RemoteClient.general`."""
        self._put(frame)

    def _put(self, frame: bytes) -> None:
        self._heard = self._now()
        self._exchange.event(event(frame))

    def broke(self) -> None:
        """The stream is gone, and the session with it."""
        self.leave()

    def sweep(self, now: float) -> None:
        """Once a second."""
        if now - self._heard > BEAT_S:
            self._heard = now
            self._exchange.event(BEAT)

    def close(self, code: int) -> None:
        """See `RemoteClient.close`."""
        super().close(code)
        if self._exchange.streaming:
            self._exchange.end()


class Sse:
    """All such sessions."""

    def __init__(self, reception: Reception, now: Clock) -> None:
        self._reception = reception
        self._now = now
        self._sessions: dict[str, SseSession] = {}

    @property
    def sessions(self) -> list[SseSession]:
        """All of them."""
        return list(self._sessions.values())

    def serve(self, exchange: Exchange) -> None:
        """One request to `/agents/…/sse` or `/agents/…/messages`."""
        route = exchange.route
        try:
            principal = self._reception.admit(route.agent, bearer(exchange.header(b"authorization")), exchange.peer)
            if route.door == "sse" and exchange.method == b"GET":
                self._open(exchange, principal)
            elif route.door == "messages" and exchange.method == b"POST":
                self._post(exchange, principal)
            else:
                # A POST to the stream is what newer clients try first; this tells them to open it.
                exchange.reply(405, more=b"allow: GET\r\n" if route.door == "sse" else b"allow: POST\r\n")
        except Turned as turned:
            turn_away(exchange, turned)

    def _open(self, exchange: Exchange, principal: Principal) -> None:
        route = exchange.route
        session = SseSession(secrets.token_urlsafe(24), principal, route.backend, exchange, self._now)
        session.on_closed = lambda: self._forget(session)
        try:
            session.party = self._reception.begin(principal, route.backend, session, shared=False)
        except Turned as turned:
            exchange.reply(turned.status, self._reception.refused(principal, route.backend, turned, None))
            return
        if session.closed:
            _say(exchange, 503, session.refusal or "the server has ended; try again later")
            return
        self._sessions[session.id] = session
        exchange.on_gone = session.broke
        exchange.on_full = session.on_full
        exchange.begin()
        path = exchange.target.partition(b"?")[0].rpartition(b"/")[0]
        exchange.event(b"event: endpoint\ndata: %b/messages?session=%b\n\n" % (path, session.id.encode()))
        session.start()

    def _forget(self, session: SseSession) -> None:
        self._sessions.pop(session.id, None)

    def _post(self, exchange: Exchange, principal: Principal) -> None:
        kind = exchange.header(b"content-type")
        if kind is None or kind.partition(b";")[0].strip().lower() != b"application/json":
            _say(exchange, 415, "send JSON, and say so: `Content-Type: application/json`")
            return
        named = exchange.route.query.partition(b"session=")[2].partition(b"&")[0].decode("latin-1")
        session = self._sessions.get(named)
        if session is None or session.principal != principal or session.backend != exchange.route.backend:
            _say(exchange, 404, "there is no such session (any more); open a new stream")
            return
        try:
            frame = parse(exchange.body)
        except WireFault as fault:
            self._reception.dropped(principal, session.backend, session.id, "not exactly one legal message")
            id_json = b"null" if fault.id is None else id_text(fault.id)
            exchange.reply(400, error_frame(id_json, fault.code, fault.text, {"by": "aegis"}))
            return
        exchange.reply(202)
        session.says(frame, _Down(session) if frame.kind is Kind.REQUEST else None)

    def turn_out(self, still: Callable[[Principal], bool]) -> None:
        """The rules changed: ends the sessions of those that may not come any more."""
        for session in self.sessions:
            if not still(session.principal):
                turn_out(session)

    def sweep(self) -> None:
        """Once a second."""
        now = self._now()
        for session in self.sessions:
            session.sweep(now)


class _Down:
    """See `transports.remote.Reply`: everything goes down the one stream."""

    __slots__ = ("_session",)

    def __init__(self, session: SseSession) -> None:
        self._session = session

    def answer(self, frame: bytes) -> None:
        self._session._put(frame)

    def event(self, frame: bytes) -> None:
        self._session._put(frame)

    def nothing(self) -> None:
        """Nothing is said of a cancelled request."""


def _say(exchange: Exchange, status: int, text: str) -> None:
    exchange.reply(status, error_frame(b"null", INVALID_REQUEST, text, {"by": "aegis"}))
