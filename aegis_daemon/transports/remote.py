"""The agent's end of a session over the network: every answer finds its request, whatever carries them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from aegis_daemon.core.ports import Party, Turned
from aegis_daemon.core.verdict import Reason
from aegis_daemon.transports.http import Exchange
from aegis_daemon.wire.errors import INTERNAL_ERROR
from aegis_daemon.wire.jsonrpc import Frame, Kind, error_frame, id_text

EARLY: Final = 256
"""How many frames may wait until the session has begun."""
BEAT_S: Final = 15.0
"""Seconds between signs of life on a stream that has nothing to say."""
BEAT: Final = b": waiting\n\n"


def event(frame: bytes, id: bytes = b"") -> bytes:
    """A frame as an event of a stream, with the line of its id."""
    if b"\r" in frame:  # which ends a line of a stream, and in JSON is only ever a blank
        frame = frame.replace(b"\r", b" ")
    return b"%bevent: message\ndata: %b\n\n" % (id, frame)


class Reply(Protocol):
    """Where the answer to one request goes."""

    def answer(self, frame: bytes) -> None:
        """The answer."""
        ...

    def event(self, frame: bytes) -> None:
        """Something that belongs to the request, before its answer."""
        ...

    def nothing(self) -> None:
        """There will be no answer: the request was cancelled."""
        ...


class RemoteClient:
    """See `relay.ports.Client`. Nothing is kept for a later daemon: the agent finds its session gone."""

    way = "http"
    """what people are shown of how it came"""
    era = 0
    handshake = None
    initialized = False

    def __init__(self) -> None:
        self.party: Party | None = None
        self.gone = False
        self.closed = False
        self.refusal = ""
        self.on_line: Callable[[bytes, int], None] = _unheard
        self.on_long: Callable[[], None] = _nothing
        self.on_end: Callable[[], None] = _nothing
        self.on_full: Callable[[bool], None] = _unasked
        self.on_closed: Callable[[], None] = _nothing
        self._begun = False
        self._early: deque[tuple[Frame, Reply | None]] = deque()
        self._current: Reply | None = None
        self._open: dict[int, Reply] = {}
        self._next = 0

    @property
    def waiting(self) -> int:
        """How many requests have no answer yet."""
        return len(self._open) + len(self._early)

    # --- from the agent

    def says(self, frame: Frame, reply: Reply | None = None) -> None:
        """One frame of the agent, and where its answer goes."""
        if self.closed or self.party is None:
            if reply is not None and frame.id is not None:
                reply.answer(self.ended(frame, id_text(frame.id)))
        elif self._begun:
            self._current = reply
            try:
                self.party.hear(frame)
            finally:
                self._current = None
        elif len(self._early) < EARLY:
            self._early.append((frame, reply))
        elif reply is not None and frame.id is not None:
            text = "too many requests before the session has begun; not executed; wait for answers first"
            reply.answer(self.party.refusal(frame, Reason("queue", text, retryable=True, code="too_many")))

    def ended(self, frame: Frame, id_json: bytes) -> bytes:
        """The answer to a request that came too late."""
        text = self.refusal or "the server has ended; begin a new session"
        if self.party is not None:
            return self.party.refusal(frame, Reason("forward", text, retryable=True, code="session_ended"))
        data = {"by": "aegis", "stage": "forward", "reason": "session_ended", "retryable": True, "retry_after_ms": None}
        return error_frame(id_json, INTERNAL_ERROR, text, data)

    def slot_of(self, reply: Reply) -> int:
        """The slot whose answer goes there; -1 where none does any more."""
        return next((slot for slot, one in self._open.items() if one is reply), -1)

    def forget(self, reply: Reply, *, forwarded: bool) -> None:
        """Nobody waits there any more: the request is withdrawn, at the server too if `forwarded`."""
        self._early = deque(pair for pair in self._early if pair[1] is not reply)
        slot = self.slot_of(reply)
        if slot >= 0 and self.party is not None:
            self.party.withdraw(slot, forwarded=forwarded)
            self._open.pop(slot, None)

    def leave(self) -> None:
        """The agent ends the session."""
        self.gone = True
        if self.party is not None and not self.closed:
            self.party.client_left()

    def start(self) -> None:
        """Whom it talks to is known (`party`): what was said by now is heard."""
        if self.party is None:
            return
        self._begun = True
        while self._early and not self.closed:
            frame, reply = self._early.popleft()
            self.says(frame, reply)

    # --- from the session: see `relay.ports.Client`

    def stop(self) -> None:
        """Nothing to stop: what comes is answered with the end."""

    def pause(self, paused: bool) -> None:
        """One frame is read at a time and the session counts them, so there is nothing to hold back."""

    def send(self, frame: bytes, slot: int) -> None:
        """An answer."""
        reply = self._open.pop(slot, None) if slot >= 0 else self._current
        if reply is not None:
            reply.answer(frame)

    def tell(self, frame: bytes, slot: int) -> None:
        """Something of the server's."""
        reply = self._open.get(slot)
        if reply is not None:
            reply.event(frame)
        elif not self.gone:
            self.general(frame)

    def general(self, frame: bytes) -> None:
        """Something of the server's that belongs to no request; dropped where the transport has no place for it."""

    def take_slot(self, id_json: bytes, end: int) -> int:
        """The request that is being said is open."""
        self._next += 1
        if self._current is not None:
            self._open[self._next] = self._current
        return self._next

    def free_slot(self, slot: int) -> None:
        """It gets no answer."""
        reply = self._open.pop(slot, None)
        if reply is not None:
            reply.nothing()

    def dispatched(self, slot: int) -> None:
        """Nothing is kept."""

    def consume(self, end: int) -> None:
        """Nothing is kept."""

    def keep_era(self, era: int) -> None:
        """Nothing is kept."""

    def keep_handshake(self, frame: bytes) -> None:
        """Nothing is kept."""

    def keep_initialized(self) -> None:
        """Nothing is kept."""

    def refuse(self, text: str) -> None:
        """Why nothing more can come."""
        self.refusal = text

    def abandon(self) -> None:
        """Nobody reads any more."""
        self.gone = True

    def close(self, code: int) -> None:
        """The session is over."""
        if self.closed:
            return
        self.closed = True
        early, self._early = self._early, deque()
        for frame, reply in early:
            if frame.kind is Kind.REQUEST:
                self.says(frame, reply)
        left, self._open = self._open, {}
        for one in left.values():
            one.nothing()
        self.on_closed()


def turn_away(exchange: Exchange, turned: Turned) -> None:
    """Answers whoever was not admitted."""
    more = b'www-authenticate: Bearer realm="aegis"\r\n' if turned.status == 401 else b""
    exchange.reply(turned.status, error_frame(b"null", turned.code, turned.text, {"by": "aegis"}), more=more)


def turn_out(client: RemoteClient) -> None:
    """Ends a session whose agent may not come any more."""
    client.refuse("this agent is not admitted as before any more; begin a new session")
    client.leave()


def _unheard(line: bytes, end: int) -> None:
    return None


def _unasked(full: bool) -> None:
    return None


def _nothing() -> None:
    return None
