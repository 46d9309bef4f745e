"""Calls as a client would send them, and a clock that stands still until it is told to move."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

from aegis_daemon.core.call import Call
from aegis_daemon.core.handed import Handed
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import PASS, Opinion
from aegis_daemon.wire.jsonrpc import encode, parse
from aegis_daemon.wire.methods import TO_CLIENT, TO_SERVER, Direction, Era, subject_of

_numbers = itertools.count(1)


def call(
    method: str = "tools/call",
    params: dict[str, Any] | None = None,
    *,
    agent: str = "amy",
    backend: str = "files",
    tenant: str = "default",
    era: Era = Era.LEGACY,
    direction: Direction = Direction.TO_SERVER,
    id: int | str = 7,
    handed: Handed | None = None,
) -> Call:
    """One governed request, through the real parser and the real table."""
    if params is None:
        params = {"name": "read", "arguments": {"path": "/x"}} if method == "tools/call" else {}
    frame = parse(encode({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
    row = (TO_SERVER if direction is Direction.TO_SERVER else TO_CLIENT)[method]
    subject, name = subject_of(row, frame.params)
    number = next(_numbers)
    return Call(
        f"{number:032x}", id, "s1", Principal(agent, tenant=tenant), direction, row, subject, name, backend, era, frame,
        handed=handed,
    )  # fmt: skip


def tool(name: str, arguments: Any = None, **more: Any) -> Call:
    """A call of one tool."""
    return call(params={"name": name, "arguments": {} if arguments is None else arguments}, **more)


async def until(true: Callable[[], object]) -> None:
    """Turns the loop until it is so; the loop's own bound ends what never happens."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0)


class Says:
    """A gate that always has the same opinion, or raises it."""

    def __init__(
        self,
        opinion: Opinion | Exception | Callable[[Call], Any] = PASS,
        *,
        hidden: frozenset[str] | Exception = frozenset(),
        labels: tuple[str, ...] = (),
        name: str = "acl",
    ) -> None:
        self.name = name
        self.asked: list[tuple[Call, float]] = []
        self._opinion = opinion
        self._hidden = hidden
        self._labels = labels

    def decide(self, call: Call, now: float) -> Any:
        self.asked.append((call, now))
        if isinstance(self._opinion, Exception):
            raise self._opinion
        return self._opinion(call) if callable(self._opinion) else self._opinion

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        if isinstance(self._hidden, Exception):
            raise self._hidden
        return name not in self._hidden

    def labels(self, principal: Principal, backend: str, tool: str) -> tuple[str, ...]:
        return self._labels


class _Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Clock:
    """Time in seconds. What `call_later` promised happens while it passes, in order, each at its moment."""

    def __init__(self, at: float = 1000.0) -> None:
        self.at = at
        self._timers: list[tuple[float, int, _Timer]] = []

    def now(self) -> float:
        return self.at

    def call_later(self, seconds: float, call: Callable[[], None]) -> _Timer:
        timer = _Timer(call)
        heapq.heappush(self._timers, (self.at + seconds, next(_numbers), timer))
        return timer

    def passes(self, seconds: float) -> None:
        until = self.at + seconds
        while self._timers and self._timers[0][0] <= until:
            self.at, _, timer = heapq.heappop(self._timers)
            if timer.call is not None:
                call, timer.call = timer.call, None
                call()
        self.at = until

    @property
    def armed(self) -> int:
        """How many timers would still fire."""
        return sum(timer.call is not None for _, _, timer in self._timers)
