"""WebSocket towards agents: subprotocol `mcp`, one JSON-RPC message in each text frame, both ways.

Not a transport of the specification; the framing is that of the TypeScript SDK's first version, and of SEP-1288's
draft. RFC 6455 itself is the `websockets` library's, which does no input or output of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from websockets.frames import Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from aegis_daemon.core.ports import Reception, Turned
from aegis_daemon.core.principal import Principal
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.transports.guard import bearer
from aegis_daemon.transports.http import HIGH, WORST, Exchange
from aegis_daemon.transports.remote import RemoteClient, turn_away, turn_out
from aegis_daemon.wire.jsonrpc import MAX_FRAME_IN, Kind, WireFault, error_frame, id_text, parse

BEAT_S: Final = 30.0
"""Seconds between pings; a peer that answers none of two is gone."""
_quiet = logging.getLogger("aegis.websocket.frames")
_quiet.disabled = True  # the library would write down every header and frame
SUBPROTOCOL: Final = Subprotocol("mcp")
Clock = Callable[[], float]


class SocketSession(RemoteClient, asyncio.Protocol):
    """One connection, and the session that it is."""

    way = "websocket"

    def __init__(self, sockets: WebSockets, principal: Principal, backend: str | None) -> None:
        RemoteClient.__init__(self)
        self.principal = principal
        self.backend = backend
        self._sockets = sockets
        self._speaks = ServerProtocol(subprotocols=[SUBPROTOCOL], max_size=MAX_FRAME_IN, logger=_quiet)
        self._transport: asyncio.Transport | None = None
        self._message = bytearray()
        self._text = True
        self._failed = False
        self._beat = sockets.now()
        self._unanswered = 0
        self._down = _Down(self)
        self._held = False
        self._slow = False

    # --- the connection

    def answer(self, request: bytes) -> Response | None:
        """The answer to the request for the upgrade: 101, or why not. None for what is no request."""
        self._speaks.receive_data(request)
        for event in self._speaks.events_received():
            assert isinstance(event, Request)
            return self._speaks.accept(event)
        return None

    def take_over(self, transport: asyncio.Transport, response: Response) -> None:
        """The connection is its own from now on, beginning with this answer."""
        self._transport = transport
        self._speaks.send_response(response)
        self._write()
        if self.closed:
            self._bye(1)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        outbox = self._sockets.outbox
        outbox.begin()
        try:
            self._beat = self._sockets.now()
            self._unanswered = 0
            speaks = self._speaks
            speaks.receive_data(data)
            for event in speaks.events_received():
                self._heard(event)
            self._write()
            if speaks.state is not State.OPEN and not self.gone:
                self.leave()
            if speaks.close_rcvd is not None and self._transport is not None:
                self._transport.close()  # both have said so; whoever has not is waited for, lest our word be lost
        finally:
            outbox.flush()

    def _heard(self, event: Any) -> None:
        opcode = event.opcode
        if self._failed:
            return
        if opcode in (Opcode.TEXT, Opcode.BINARY):
            self._text = opcode is Opcode.TEXT
        elif opcode is not Opcode.CONT:
            return
        self._message += event.data
        if event.fin:
            text, self._message = bytes(self._message), bytearray()
            self._hears(text)

    def _hears(self, text: bytes) -> None:
        if not self._text:
            self._failed = True
            self._speaks.fail(1003, "one JSON text a message")
            return
        try:
            frame = parse(text)
        except WireFault as fault:
            self._sockets.reception.dropped(self.principal, self.backend, "", "not exactly one legal message")
            if b'"method"' not in text and (b'"result"' in text or b'"error"' in text):
                return
            id_json = b"null" if fault.id is None else id_text(fault.id)
            self._put(error_frame(id_json, fault.code, fault.text, {"by": "aegis"}))
            return
        self.says(frame, self._down if frame.kind is Kind.REQUEST else None)

    def eof_received(self) -> None:
        """See `asyncio.Protocol`."""
        self._speaks.receive_eof()
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`. The session ends with its connection."""
        self._transport = None
        self._sockets.lost(self)
        outbox = self._sockets.outbox
        outbox.begin()
        try:
            self.leave()
        finally:
            outbox.flush()

    def pause_writing(self) -> None:
        """The reader is slow."""
        self._slow = True
        self.on_full(True)

    def resume_writing(self) -> None:
        """The reader has caught up."""
        self._slow = False
        self.on_full(False)

    def _write(self) -> None:
        transport = self._transport
        if transport is None:
            return
        for data in self._speaks.data_to_send():
            if data:
                transport.write(data)
            else:
                transport.write_eof() if transport.can_write_eof() else transport.close()
        if transport.get_write_buffer_size() > WORST:
            transport.abort()

    def _put(self, frame: bytes) -> None:
        if self._speaks.state is State.OPEN:
            self._speaks.send_text(frame)
            self._write()

    # --- see `RemoteClient`

    def pause(self, paused: bool) -> None:
        """Reads no further for a while."""
        if self._transport is not None and paused != self._held:
            self._held = paused
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def general(self, frame: bytes) -> None:
        """Everything goes the one way."""
        self._put(frame)

    def close(self, code: int) -> None:
        """See `RemoteClient.close`."""
        super().close(code)
        self._bye(code)

    def _bye(self, code: int) -> None:
        if self._speaks.state is State.OPEN:
            # 1011: what was asked for cannot be done any more (RFC 6455 §7.4.1).
            why = self.refusal.encode()[:120].decode(errors="ignore")
            self._speaks.send_close(1011 if why or code else 1000, why)
            self._write()

    def sweep(self, now: float) -> None:
        """Once a second."""
        if self._held and not self._slow:
            self._beat = now  # its answers are not read, since its server is the slow one
        elif self._speaks.state is State.OPEN and now - self._beat > BEAT_S:
            self._beat = now
            self._unanswered += 1
            if self._unanswered > 2:
                if self._transport is not None:
                    self._transport.abort()
                return
            self._speaks.send_ping(b"aegis")
            self._write()
        elif self._speaks.state is not State.OPEN and now - self._beat > BEAT_S and self._transport is not None:
            self._transport.abort()


class _Down:
    """See `transports.remote.Reply`."""

    __slots__ = ("_session",)

    def __init__(self, session: SocketSession) -> None:
        self._session = session

    def answer(self, frame: bytes) -> None:
        self._session._put(frame)

    def event(self, frame: bytes) -> None:
        self._session._put(frame)

    def nothing(self) -> None:
        """Nothing is said of a cancelled request."""


class WebSockets:
    """All such sessions."""

    def __init__(self, reception: Reception, outbox: Outbox, now: Clock) -> None:
        self.reception = reception
        self.outbox = outbox
        self.now = now
        self._sessions: set[SocketSession] = set()

    @property
    def sessions(self) -> list[SocketSession]:
        """All of them."""
        return list(self._sessions)

    def upgraded(self, exchange: Exchange, rest: bytes) -> None:
        """A request for an upgrade: its connection becomes a session, which hears `rest` first; or it is answered."""
        front, route = exchange.front, exchange.route
        if front is None:
            return
        exchange.close = True
        try:
            principal = self.reception.admit(route.agent, bearer(exchange.header(b"authorization")), exchange.peer)
            session = SocketSession(self, principal, route.backend)
            lines = b"".join(b"%b: %b\r\n" % pair for pair in exchange.lines)
            response = session.answer(b"GET %b HTTP/1.1\r\n%b\r\n" % (exchange.target, lines))
            if response is None or response.status_code != 101:
                text = b"" if response is None else bytes(response.body)
                status = 400 if response is None else response.status_code
                exchange.reply(status, text, b"text/plain", b"sec-websocket-version: 13\r\n")
                return
        except Turned as turned:
            turn_away(exchange, turned)
            return
        try:
            session.party = self.reception.begin(principal, route.backend, session, shared=False)
        except Turned as turned:
            exchange.reply(turned.status, self.reception.refused(principal, route.backend, turned, None))
            return
        self._sessions.add(session)
        transport = front.transport
        front.let_go()
        transport.set_write_buffer_limits(high=HIGH)
        transport.set_protocol(session)
        session.take_over(transport, response)
        session.start()
        if rest:
            session.data_received(rest)

    def turn_out(self, still: Callable[[Principal], bool]) -> None:
        """The rules changed: ends the sessions of those that may not come any more."""
        for session in self.sessions:
            if not still(session.principal):
                turn_out(session)

    def lost(self, session: SocketSession) -> None:
        """Its connection is gone."""
        self._sessions.discard(session)

    def sweep(self) -> None:
        """Once a second."""
        now = self.now()
        for session in self.sessions:
            session.sweep(now)
