"""One of a hub's backends, and the client's end of the conversation with it: it holds up nobody but itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from aegis_daemon.core.verdict import Reason
from aegis_daemon.relay import merge
from aegis_daemon.relay.conversation import Conversation
from aegis_daemon.relay.reasons import ending_of
from aegis_daemon.wire.jsonrpc import Frame

if TYPE_CHECKING:
    from aegis_daemon.relay.hub import Hub
    from aegis_daemon.relay.legs import Leg

WAITING: Final = 256
"""How many frames may wait for one backend that is still beginning, or does not read."""
WAITING_BYTES: Final = 4 << 20


class Seat:
    """What a session knows of one backend, whether there is a conversation with it now or not."""

    __slots__ = ("again", "branch", "late", "name", "offers", "why")

    def __init__(self, name: str) -> None:
        self.name = name
        self.branch: Branch | None = None
        self.offers: dict[str, Any] | None = None
        """its capabilities; None: nobody asked yet"""
        self.why = ""
        """why there is no conversation"""
        self.again = 0.0
        """when there may be one, in the shell's seconds"""
        self.late = False
        """the last list came late; of a backend that always is late the client is told once"""

    def may(self, capability: str) -> bool:
        """Whether it has this capability, as far as known."""
        return self.offers is None or capability in self.offers


class Branch:
    """The client of one backend's conversation (`relay.ports.Client`); its slots are the hub's own.

    Frames wait here while the backend takes up the handshake, and while it does not read.
    """

    on_line: Callable[[bytes, int], None]
    on_long: Callable[[], None]
    on_end: Callable[[], None]
    on_full: Callable[[bool], None]
    era = 0
    handshake: bytes | None = None
    initialized = False

    def __init__(self, hub: Hub, seat: Seat) -> None:
        self.hub = hub
        self.seat = seat
        self.talk: Conversation | None = None
        self.closed = self.ready = False
        self.lived = False
        """the backend has answered anything at all"""
        self._paused = False
        self._legs: dict[int, Leg] = {}
        self._heard: Leg | None = None
        self._waiting: deque[tuple[Frame, Leg | None, int]] = deque()
        self._bytes = 0

    # --- towards the backend ------------------------------------------------------------------------------------

    def take(self, frame: Frame, leg: Leg | None) -> None:
        """One frame for the backend; a request with its leg, which lands in any case."""
        if leg is not None:
            leg.branch = self
            self._legs[leg.slot] = leg
        if self.talk is None:
            if leg is not None:
                self._land(leg.slot, self.hub.away(leg, self.seat.why))
        elif frame.method == "initialize":
            self.ready = False
            self._hear(frame, leg)
        elif self.ready and (_is_ours(leg) or not (self._paused or self._waiting)):
            self._hear(frame, leg)
        else:
            self._keep(frame, leg)

    def _hear(self, frame: Frame, leg: Leg | None) -> None:
        assert self.talk is not None
        before, self._heard = self._heard, leg
        try:
            self.talk.hear(frame)
        finally:
            self._heard = before

    def _keep(self, frame: Frame, leg: Leg | None) -> None:
        size = len(frame.encoded())
        if len(self._waiting) < WAITING and self._bytes + size <= WAITING_BYTES:
            self._bytes += size
            self._waiting.append((frame, leg, size))
        elif leg is None:
            self.hub.drop("to_server", "a notification for a backend that does not read")
        else:
            text = f"the backend `{self.seat.name}` takes no more now; not executed; repeat the call later"
            reason = Reason("queue", text, retryable=True, code="too_many")
            self._land(leg.slot, self.hub.refusal(leg.frame, reason, leg.request.asked.era, self.seat.name))

    def begin(self, first: Frame | None) -> None:
        """The handshake is taken up: what waits may follow, after this."""
        self.ready = True
        if first is not None and self.talk is not None:
            self._hear(first, None)

    def flow(self) -> None:
        """Hands on what waits, as far as it is taken."""
        while self._waiting and self.ready and not self._paused and self.talk is not None:
            frame, leg, size = self._waiting.popleft()
            self._bytes -= size
            self._hear(frame, leg)

    def withdraw(self, leg: Leg, tell: Callable[[Conversation, Leg], None]) -> None:
        """The client does not want the request any more; `tell` says so to a conversation that has it."""
        for at, (_, waiting, size) in enumerate(self._waiting):
            if waiting is leg:
                del self._waiting[at]
                self._bytes -= size
                self._land(leg.slot, b"")
                return
        if self.talk is not None:
            tell(self.talk, leg)

    def refuse_waiting(self, why: str) -> None:
        """What waits is answered, and not executed."""
        waiting, self._waiting = self._waiting, deque()
        self._bytes = 0
        for _, leg, _ in waiting:
            if leg is not None:
                self._land(leg.slot, self.hub.away(leg, why))

    def leave(self, why: str) -> None:
        """The client's part is over; the conversation closes in its own time."""
        self.ready = False
        if self.seat.branch is self:
            self.seat.branch = None
            self.seat.why = why
        self.refuse_waiting(why)
        if self.talk is not None:
            self.talk.client_left()

    def fail_all(self) -> None:
        """Nothing that is still open will be answered."""
        self.ready = False
        self.refuse_waiting(self.seat.why)
        for leg in list(self._legs.values()):
            self._land(leg.slot, self.hub.away(leg, self.seat.why))

    @property
    def open_legs(self) -> int:
        """How many requests it has not answered."""
        return len(self._legs)

    # --- towards the conversation -------------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """Whether nobody reads any more."""
        return self.hub.client.gone

    def start(self) -> None:
        """Frames are handed over, not read."""

    def stop(self) -> None:
        """Frames are handed over, not read."""

    def pause(self, paused: bool) -> None:
        """The backend does not read, or the client: what comes now waits."""
        self._paused = paused
        self.flow()

    def send(self, frame: bytes, slot: int) -> None:
        """The answer to one leg; -1: to the one that is being heard."""
        if slot < 0 and self._heard is not None:
            slot = self._heard.slot
        if not self.lived:
            answer = merge.answer_in(frame)
            self.lived = answer is not None and answer.ok
        self._land(slot, frame)

    def tell(self, frame: bytes, slot: int) -> None:
        """Whatever else a server says; one that was left is not listened to."""
        if self.seat.branch is self:
            self.hub.told(self, frame, self._legs.get(slot))

    def take_slot(self, id_json: bytes, end: int) -> int:
        """The slot of the leg that is being heard."""
        return -1 if self._heard is None else self._heard.slot

    def dispatched(self, slot: int) -> None:
        """One leg is enough to say so of the client's request."""
        leg = self._legs.get(slot)
        if leg is not None and not leg.request.over and leg.request.asked.slot >= 0:
            self.hub.client.dispatched(leg.request.asked.slot)

    def free_slot(self, slot: int) -> None:
        """A leg needs no answer."""
        self._land(slot, b"")

    def _land(self, slot: int, frame: bytes) -> None:
        leg = self._legs.pop(slot, None)
        if leg is not None:
            leg.landed(frame)

    def consume(self, end: int) -> None:
        """The hub tells the client, once for all."""

    def keep_era(self, era: int) -> None:
        """The hub tells the client, once for all."""

    def keep_handshake(self, frame: bytes) -> None:
        """The hub tells the client, once for all."""

    def keep_initialized(self) -> None:
        """The hub tells the client, once for all."""

    def refuse(self, text: str) -> None:
        """Why nothing more can come."""
        self.seat.why = text

    def abandon(self) -> None:
        """The hub's own client is asked (`gone`)."""

    def close(self, code: int) -> None:
        """The conversation is over."""
        self.closed = True
        if self.seat.branch is self and not self.seat.why:
            self.seat.why = f"it ended, {ending_of(code)}"
        self.hub.closed(self)


def _is_ours(leg: Leg | None) -> bool:
    """What the hub shows a backend that begins goes before what the client said to it meanwhile."""
    return leg is not None and leg.request.asked.slot < 0
