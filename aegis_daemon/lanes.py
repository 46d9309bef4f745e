"""One call at a time on each backend that has a lane, in the order of readiness, with a random pause in between.

A place is reserved before a person is asked and joins the order only when it is ready, so a ticket holds capacity
and never the queue. The pause runs from the previous completion; there is none before the first call, nor after a
longer idle (seed A; facts on the seed's D4 and D5: no guess about waiting times, and a call that went away is gone).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import Names
from aegis_daemon.core.verdict import Deny, Reason
from aegis_daemon.loop.strand import Waiter


class LaneRule(msgspec.Struct, frozen=True):
    """One backend's lane: pauses in seconds, how many may wait, and which tools need not."""

    delay_min: float
    delay_max: float
    max_pending: int
    bypass: Names


class Timer(Protocol):
    """What `call_later` gives back."""

    def cancel(self) -> None:
        """Never fires."""
        ...


class QueueRow(msgspec.Struct, frozen=True):
    """One call in a lane, for people: `state` is held, waiting, delay or running; times in seconds."""

    call_id: str
    agent_id: str
    backend_id: str
    tool_name: str
    position: int
    state: str
    waited_s: float
    starts_in_s: float | None


class Turn:
    """A place in a lane: reserved, then waiting, then running, then left."""

    __slots__ = ("_lane", "entered", "label", "position", "state", "waiter")

    def __init__(self, lane: Lane, label: tuple[str, str, str], entered: float) -> None:
        self._lane = lane
        self.label = label
        self.entered = entered
        self.state = "held"
        self.position = 0
        self.waiter: Waiter[None] = Waiter()

    def ready(self) -> Waiter[None]:
        """Joins the order; done when the call may run."""
        if self.state == "held":
            self.state = "waiting"
            self._lane.join(self)
        return self.waiter

    def leave(self) -> None:
        """Gives the place up, or ends the turn."""
        if self.state != "left":
            was, self.state = self.state, "left"
            self._lane.left(self, was)


class Lane:
    """One backend's order."""

    def __init__(self, backend: str, rule: LaneRule, lanes: Lanes) -> None:
        self.backend = backend
        self.rule = rule
        self._lanes = lanes
        self.held: dict[Turn, None] = {}
        self.queue: deque[Turn] = deque()
        self.running: Turn | None = None
        self.next_at = 0.0
        self.gone = False
        self._timer: Timer | None = None
        self._pumping = False

    @property
    def empty(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self.held and not self.queue and self.running is None

    def reserve(self, label: tuple[str, str, str], now: float) -> Turn | Deny:
        """A place, or a refusal."""
        waiting = len(self.held) + len(self.queue)
        if waiting >= self.rule.max_pending:
            return Deny(
                Reason(
                    "queue",
                    f"the queue of `{self.backend}` is full ({waiting}/{self.rule.max_pending} waiting); not executed; "
                    "try again later",
                    retryable=True,
                    code="queue_full",
                    detail=f"`queue.{self.backend}.max_pending`",
                )
            )
        turn = Turn(self, label, now)
        self.held[turn] = None
        return turn

    def join(self, turn: Turn) -> None:
        """From held to waiting."""
        self.held.pop(turn, None)
        self.queue.append(turn)
        turn.position = len(self.queue) - (0 if self.running is not None else 1)
        self.pump()

    def left(self, turn: Turn, was: str) -> None:
        """A turn is over, or was given up."""
        if was == "held":
            self.held.pop(turn, None)
        elif was == "running":
            if self.running is turn:
                self.running = None
                self.next_at = self._lanes.now() + self._lanes.pause(self.rule.delay_min, self.rule.delay_max)
                self.pump()
        else:
            try:
                self.queue.remove(turn)
            except ValueError:
                pass
            if not self.queue and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def pump(self) -> None:
        """Starts the first in the order if nothing runs and its pause is over; everybody where the lane is gone."""
        if self._pumping:
            return  # a call that ended as soon as its turn came: the loop below starts the next, not a deeper one
        self._pumping = True
        try:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            while self.queue and (self.running is None or self.gone):
                wait = self.next_at - self._lanes.now()
                if wait > 0 and not self.gone:
                    self._timer = self._lanes.call_later(wait, self.pump)
                    return
                turn = self.queue.popleft()
                turn.state = "running"
                if not self.gone:
                    self.running = turn
                turn.waiter.set(None)
        finally:
            self._pumping = False


class Lanes:
    """The lanes of all backends; `configure` takes new rules without losing anybody's place."""

    def __init__(
        self,
        now: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
        pause: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.now = now
        self.call_later = call_later
        self.pause = pause
        self._lanes: dict[str, Lane] = {}
        self._rules: dict[str, LaneRule] = {}

    def configure(self, rules: dict[str, LaneRule]) -> None:
        """From now on these backends have lanes; one that lost its lane lets everybody in it go."""
        self._rules = dict(rules)
        for backend, lane in list(self._lanes.items()):
            rule = rules.get(backend)
            if rule is not None:
                lane.rule = rule
            elif lane.empty:
                del self._lanes[backend]
            lane.gone = rule is None
            lane.pump()

    def enter(self, call: Call) -> Turn | Deny | None:
        """A reserved place for a tool call; None where the backend has no lane or the tool goes past it."""
        if call.backend not in self._rules or call.method != "tools/call" or call.name is None:
            return None
        return self.hold(call.backend, (call.id, call.principal.agent, call.name))

    def hold(self, backend: str, label: tuple[str, str, str]) -> Turn | Deny | None:
        """A place for (call id, agent, tool), also for a ticket that an earlier daemon left."""
        rule = self._rules.get(backend)
        if rule is None or label[2] in rule.bypass:
            return None
        lane = self._lanes.get(backend)
        if lane is None:
            lane = self._lanes[backend] = Lane(backend, rule, self)
        return lane.reserve(label, self.now())

    def rows(self) -> list[QueueRow]:
        """Everything in every lane: running first, then the order, then what waits for a person."""
        now = self.now()
        rows = []
        for lane in self._lanes.values():
            running = [lane.running] if lane.running is not None else []
            wait = max(0.0, lane.next_at - now)
            for position, turn in enumerate([*running, *lane.queue, *lane.held]):
                first = turn.state == "waiting" and lane.running is None and turn is lane.queue[0]
                state = "delay" if first and wait > 0 else turn.state
                starts = wait if first else 0.0 if state == "running" else None
                call_id, agent, tool = turn.label
                rows.append(QueueRow(call_id, agent, lane.backend, tool, position, state, now - turn.entered, starts))
        return rows
