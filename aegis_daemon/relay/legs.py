"""What one request of the client becomes: a leg to one backend, one after another, or several at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aegis_daemon.relay import merge
from aegis_daemon.relay.branch import Branch, Seat
from aegis_daemon.relay.lateness import LATE_S, SOON_S
from aegis_daemon.wire.errors import INVALID_PARAMS, METHOD_NOT_FOUND
from aegis_daemon.wire.jsonrpc import Answer, Frame, Id, notification_frame
from aegis_daemon.wire.methods import META_SUBSCRIPTION, Era, Method

if TYPE_CHECKING:
    from aegis_daemon.relay.hub import Hub

_ELSEWHERE: Final = frozenset({-32002, INVALID_PARAMS, METHOD_NOT_FOUND})
"""A server's way to say that it has no such resource: in either era, or that it has none at all."""
_NOT_REACHED: Final = frozenset({"no_server", "server_not_started"})


class Asked(msgspec.Struct, frozen=True):
    """A request of the client. `slot` is the client's; -1: the request is ours, and nobody waits for it."""

    id: Id
    frame: Frame
    row: Method
    era: Era
    slot: int


class Leg:
    """One request to one backend; `slot` is unique in its hub."""

    __slots__ = ("branch", "frame", "request", "seat", "since", "slot")

    def __init__(self, request: Request, seat: Seat, frame: Frame, slot: int, since: float) -> None:
        self.request = request
        self.seat = seat
        self.frame = frame
        self.slot = slot
        self.since = since
        self.branch: Branch | None = None

    def landed(self, frame: bytes) -> None:
        """Its answer, under the client's id; empty where it needs none."""
        if self in self.request.legs:
            self.request.legs.remove(self)
            self.request.landed(self, frame)


class Request:
    """A request that one backend answers."""

    def __init__(self, hub: Hub, asked: Asked) -> None:
        self.hub = hub
        self.asked = asked
        self.legs: list[Leg] = []
        self.cancelled = self.over = False

    def landed(self, leg: Leg, frame: bytes) -> None:
        """A leg is over."""
        self.hub.finish(self, self.hub.renamed(leg, frame))

    def progresses(self, progress: Any) -> bool:
        """Whether the client may hear of this progress."""
        return not self.over


class Ours(Request):
    """A request that the client knows nothing of: a backend that begins is shown what was said before."""

    def __init__(self, hub: Hub, asked: Asked, then: Callable[[Leg, Answer | None], None]) -> None:
        super().__init__(hub, asked)
        self._then = then

    def landed(self, leg: Leg, frame: bytes) -> None:
        """Nobody else waits for it."""
        self.over = True
        answer = merge.answer_in(frame)
        self.hub.timed(leg, answer)
        self._then(leg, answer)


class Probe(Request):
    """A request that goes from one backend to the next until one has what it is about."""

    def __init__(self, hub: Hub, asked: Asked, seats: Sequence[Seat], found: Callable[[Seat], None]) -> None:
        super().__init__(hub, asked)
        self._left = deque(seats)
        self._found = found
        self._kept = b""
        self._progress: float | None = None

    def go_on(self) -> None:
        """On to the next one."""
        self.hub.send(self, [(self._left.popleft(), self.asked.frame)])

    def landed(self, leg: Leg, frame: bytes) -> None:
        """The answer, or the next one's turn."""
        answer = merge.answer_in(frame)
        if answer is not None and answer.ok:
            self._found(leg.seat)
        elif answer is not None:
            code, _, stage, reason = merge.error_of(answer)
            # A refusal of ours says more than somebody's "not found", and the first what the others would say.
            ours = stage == "acl" or reason in _NOT_REACHED
            if ours or (not stage and code in _ELSEWHERE):
                if ours:
                    self._kept = self._kept or frame
                if self._left and not self.cancelled:
                    self.go_on()
                    return
                frame = self._kept or frame
        self.hub.finish(self, frame)

    def progresses(self, progress: Any) -> bool:
        """Only what grows: each of them begins anew, and the client has given one token."""
        if self.over or type(progress) not in (int, float):
            return False
        if self._progress is not None and progress <= self._progress:
            return False
        self._progress = progress
        return True


class Gather(Request):
    """A request that several backends answer, and one answer made of theirs.

    `heard` is told every answer, also those that come late; `merged` makes a frame of those in time, one at least.
    """

    def __init__(
        self,
        hub: Hub,
        asked: Asked,
        merged: Callable[[Gather], bytes],
        heard: Callable[[Leg, Answer, bool], None],
    ) -> None:
        super().__init__(hub, asked)
        self.results: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, int] = {}
        self._errors: dict[str, bytes] = {}
        self._merged = merged
        self._heard = heard
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = self._hasty = False

    def landed(self, leg: Leg, frame: bytes) -> None:
        """One more."""
        answer, late = merge.answer_in(frame), self.over
        self.hub.timed(leg, answer)
        if answer is not None:
            result = merge.result_of(answer)
            if result is None:
                self._errors[leg.seat.name] = frame
            elif not late:
                self.results[leg.seat.name] = result
                self.sizes[leg.seat.name] = len(answer.body)
            self._heard(leg, answer, late)
        if self.over:
            return
        if not self.legs or (self._overdue and self.results):
            self._finish()
        elif not self._overdue:
            self._wait()

    def _wait(self) -> None:
        """For the others; not long for those that are always late, once nobody else is left."""
        hasty = all(map(self.hub.will_be_late, self.legs))
        if self._timer is None or (hasty and not self._hasty):
            if self._timer is not None:
                self._timer.cancel()
            self._hasty = hasty
            self._timer = self.hub.loop.call_later(SOON_S if hasty else LATE_S, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer, self._overdue = None, True
        if self.results or (self._hasty and self._errors):
            self._finish()

    def _finish(self) -> None:
        for leg in self.legs:
            self.hub.timed(leg, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        frame = b""
        if self.results and not self.cancelled:
            frame = self._merged(self)
        elif self._errors:
            telling = {name: said for name, said in self._errors.items() if not _lacks_the_method(said)}
            frame = self.hub.first(telling or self._errors)
        self.hub.finish(self, frame)

    def progresses(self, progress: Any) -> bool:
        """Of several that advance at once nobody could tell which."""
        return False


class Listen(Request):
    """A `subscriptions/listen`, which holds as long as one backend's does.

    The client hears one acknowledgement, before anything else (MCP 2026-07-28 `subscriptions`). It promises what
    those promised who have answered and what the others were asked for, since a client may drop what was never
    promised, and they may still come.
    """

    def __init__(self, hub: Hub, asked: Asked, narrow: Callable[[Seat], Frame]) -> None:
        super().__init__(hub, asked)
        self._narrow = narrow
        self._quiet: list[Leg] = []
        self._granted: dict[str, Any] = {}
        self._told = self._hasty = False
        self._timer: asyncio.TimerHandle | None = None
        self._last = b""
        self._farewell = b""

    def join(self, seats: Iterable[Seat]) -> None:
        """Subscribes at these backends too."""
        new = [(seat, self._narrow(seat)) for seat in seats if all(leg.seat is not seat for leg in self.legs)]
        self.hub.send(self, new, self._quiet)

    def tell(self, leg: Leg, value: dict[str, Any], frame: bytes) -> None:
        """A notification of one of its legs."""
        if value["method"] != "notifications/subscriptions/acknowledged":
            self._acknowledge()
            self.hub.client.tell(frame, self.asked.slot)
        elif leg in self._quiet:
            self._quiet.remove(leg)
            if leg.branch is not None:
                leg.branch.lived = True
            self._grant(leg, value["params"].get("notifications"))
            if not self._quiet:
                self._acknowledge()
            elif not self._told and (self._timer is None or not self._hasty):
                self._wait()

    def changed(self, kind: str) -> None:
        """A list changed, since a backend came or went."""
        wanted = self.asked.frame.params.get("notifications")
        if type(wanted) is dict and wanted.get(f"{kind}ListChanged") is True and not self.cancelled:
            self._acknowledge()
            params = {"_meta": {META_SUBSCRIPTION: self.asked.id}}
            self.hub.client.tell(notification_frame(f"notifications/{kind}/list_changed", params), self.asked.slot)

    def ended(self, frame: bytes) -> None:
        """A server ended one leg; the client hears of it if it is the last."""
        self._farewell = frame

    def landed(self, leg: Leg, frame: bytes) -> None:
        """One leg is over."""
        if leg in self._quiet:
            self._quiet.remove(leg)
        self._last = frame or self._last
        if not self.legs:
            self._stop_waiting()
            if self._farewell and not self._last and not self.cancelled:
                self.hub.client.tell(self._farewell, self.asked.slot)
            self.hub.finish(self, self._last)
        elif not self._quiet:
            self._acknowledge()

    def _wait(self) -> None:
        hasty = all(map(self.hub.will_be_late, self._quiet))
        if self._timer is None or hasty:
            self._stop_waiting()
            self._hasty = hasty
            self._timer = self.hub.loop.call_later(SOON_S if hasty else LATE_S, self._acknowledge)

    def _grant(self, leg: Leg, granted: Any) -> None:
        if type(granted) is dict:
            self._granted = merge.united(self._granted, self.hub.granted(leg, granted))

    def _acknowledge(self) -> None:
        self._stop_waiting()
        if self._told or self.cancelled:
            return
        self._told = True
        for leg in self._quiet:
            self._grant(leg, leg.frame.params.get("notifications"))
        params = {"_meta": {META_SUBSCRIPTION: self.asked.id}, "notifications": self._granted}
        self.hub.client.tell(notification_frame("notifications/subscriptions/acknowledged", params), self.asked.slot)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _lacks_the_method(frame: bytes) -> bool:
    answer = merge.answer_in(frame)
    return answer is not None and merge.error_of(answer)[0] == METHOD_NOT_FOUND
