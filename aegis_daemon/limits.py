"""Sliding windows that are reserved before a call and settled after it: never over, however many calls race.

A window holds the times of the calls that counted and the number of those under way. All of it happens on one
thread without suspending, so reserving is atomic; what survives a restart is the audit log, from which `restore`
fills the windows again. Times are monotonic seconds; a window is half open: a call stops counting exactly
`window_s` after it ended. A budget is the same over amounts (`policy.budgets`).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from math import ceil

import msgspec

from aegis_daemon.core.units import go_duration as go
from aegis_daemon.core.verdict import Claim, Deny, Reason
from aegis_daemon.policy.budgets import Budget, counted, plain

Key = tuple[str, str | None, str, str]


class Usage(msgspec.Struct, frozen=True):
    """How full a window is. `retry_after_s` is None while it has room, or while only calls under way fill it."""

    claim: Claim
    current: int
    reserved: int
    retry_after_s: float | None


class Spent(msgspec.Struct, frozen=True):
    """How much of a budget is spent, in decimal numbers. `retry_after_s` as in `Usage`."""

    claim: Claim
    spent: str
    reserved: str
    retry_after_s: float | None


class Window:
    """One limit's calls."""

    __slots__ = ("claim", "extras", "reserved", "times")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.times: deque[float] = deque()
        self.reserved = 0
        self.extras: tuple[tuple[float, int], ...] = ()
        """what people allow beyond the limit: until when, and how many"""

    def most(self, now: float) -> int:
        """How many calls may count at that time, what people allow more included."""
        return self.claim.max_count + sum(count for until, count in self.extras if now < until)

    def expire(self, now: float) -> None:
        """Drops the calls that no longer count."""
        times = self.times
        oldest = now - self.claim.window_s
        while times and times[0] <= oldest:
            times.popleft()

    def add(self, at: float) -> None:
        """One call counts from `at` on."""
        if self.times and at < self.times[-1]:
            ordered = list(self.times)
            insort(ordered, at)
            self.times = deque(ordered)
        else:
            self.times.append(at)

    def retry_after(self, now: float) -> float | None:
        """Seconds until so many of the calls that count have left that there is room; None where that frees nothing."""
        used = len(self.times) + self.reserved
        if used < self.most(now):
            return None
        for index in range(max(0, used - self.most(now)), len(self.times)):
            free = self.times[index] + self.claim.window_s
            if used - index - 1 < self.most(free):  # what is allowed beyond the limit may have ended by then
                return max(0.0, free - now)
        return None


class Lease:
    """One call's share of each of its windows and budgets, until it is settled, once."""

    __slots__ = ("_open", "_shares", "_windows")

    def __init__(self, windows: tuple[Window, ...], shares: tuple[tuple[Budget, int], ...] = ()) -> None:
        self._windows = windows
        self._shares = shares
        self._open = True

    def commit(self, now: float) -> None:
        """The call counts."""
        if self._open:
            self._open = False
            for window in self._windows:
                window.reserved -= 1
                window.add(now)
            for budget, amount in self._shares:
                budget.reserved -= amount
                budget.add(now, amount)

    def release(self) -> None:
        """The call never counted."""
        if self._open:
            self._open = False
            for window in self._windows:
                window.reserved -= 1
            for budget, amount in self._shares:
                budget.reserved -= amount


class Limits:
    """All windows, by scope, agent, backend and tool. They outlive any one configuration."""

    def __init__(self) -> None:
        self._windows: dict[Key, Window] = {}
        self._budgets: dict[Key, Budget] = {}
        self._found: dict[int, Window] = {}
        """the window of each claim object in use, which the window keeps alive: found without making a key"""

    def _window(self, claim: Claim) -> Window:
        found = self._found.get(id(claim))
        if found is not None and found.claim is claim:
            return found
        key = (claim.scope, claim.agent, claim.backend, claim.tool)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window(claim)
        elif window.claim is not claim:
            self._found.pop(id(window.claim), None)
            window.claim = claim  # a reload changed the numbers; what was counted stays counted
        self._found[id(claim)] = window
        return window

    def reserve(self, claims: tuple[Claim, ...], now: float) -> Lease | Deny:
        """All claims or none; the first full window is named."""
        windows = []
        shares: tuple[tuple[Budget, int], ...] = ()
        for claim in claims:
            if claim.amount:
                budget, amount, most = self._budget(claim), counted(claim.amount), counted(claim.most)
                budget.expire(now)
                if not budget.has_room(amount, most):
                    return Deny(_spent(claim, budget, now))
                shares += ((budget, amount),)
                continue
            window = self._window(claim)
            times = window.times
            if times and times[0] <= now - claim.window_s:
                window.expire(now)
            used = len(times) + window.reserved
            if used >= claim.max_count and (not window.extras or used >= window.most(now)):
                return Deny(_full(window, now))
            windows.append(window)
        for window in windows:
            window.reserved += 1
        for budget, amount in shares:
            budget.reserved += amount
        return Lease(tuple(windows), shares)

    def _budget(self, claim: Claim) -> Budget:
        key = (claim.scope, claim.agent, claim.backend, claim.tool)
        budget = self._budgets.get(key)
        if budget is None:
            budget = self._budgets[key] = Budget(claim.window_s)
        budget.window_s = claim.window_s  # a reload may change it; what was spent stays spent
        return budget

    def restore_spent(self, claim: Claim, at: float) -> None:
        """What a call of an earlier daemon spent counts from then on; the time may lie before the machine's boot."""
        self._budget(claim).add(at, counted(claim.amount))

    def restore(self, claim: Claim, times: Iterable[float]) -> None:
        """Calls of earlier daemons count from these times on, in any order; they may lie before the machine's boot."""
        window = self._window(claim)
        window.times = deque(sorted([*window.times, *times]))

    def allow_more(self, key: Key, count: int, until: float) -> None:
        """Up to `until` the window may hold `count` calls more than its limit says.

        What counted by then goes on counting, so that afterwards nothing passes before the limit itself has room.
        `key` is scope, agent, backend and tool of its claim. Several such leaves add up.
        """
        window = self._windows.get(key)
        if window is None:
            scope, agent, backend, tool = key
            # The limit's own numbers come with the first call that is measured by it.
            window = self._windows[key] = Window(Claim(scope, agent, backend, tool, 0.0, 0))
        window.extras = (*window.extras, (until, count))

    def beyond(self, claim: Claim, now: float) -> int:
        """How many calls more than the claim's limit may count at present."""
        return self._window(claim).most(now) - claim.max_count

    def usage(self, claim: Claim, now: float) -> Usage:
        """How full the claim's window is."""
        window = self._window(claim)
        window.expire(now)
        full = len(window.times) + window.reserved >= window.most(now)
        return Usage(claim, len(window.times), window.reserved, window.retry_after(now) if full else None)

    def spent(self, claim: Claim, now: float) -> Spent:
        """How much of the claim's budget is spent; what the claim itself would spend does not matter."""
        budget = self._budgets.get((claim.scope, claim.agent, claim.backend, claim.tool)) or Budget(claim.window_s)
        budget.window_s = claim.window_s
        budget.expire(now)
        most = counted(claim.most)
        full = budget.spent + budget.reserved >= most
        # The smallest amount there is: from when on anything can be spent at all.
        after = budget.retry_after(1, most, now) if full else None
        return Spent(claim, plain(budget.spent), plain(budget.reserved), after)

    def spenders(self, scope: str, backend: str, tool: str) -> list[str]:
        """Agents of which something is known under a budget that each has for itself."""
        return [
            agent
            for kind, agent, where, what in self._budgets
            if agent is not None and (kind, where, what) == (scope, backend, tool)
        ]

    def sweep(self, now: float) -> None:
        """Forgets windows that nothing fills, so that old configurations leave nothing behind."""
        for key, window in list(self._windows.items()):
            window.expire(now)
            if window.extras:
                window.extras = tuple(extra for extra in window.extras if now < extra[0])
            if not window.times and not window.reserved and not window.extras:
                del self._windows[key]
                self._found.pop(id(window.claim), None)
        for key, budget in list(self._budgets.items()):
            budget.expire(now)
            if not budget.times and not budget.reserved:
                del self._budgets[key]

    def __iter__(self) -> Iterator[Window]:
        return iter(self._windows.values())


def milliseconds(after: float) -> int:
    """A wait that is long enough, however the clock's numbers round: a microsecond more at least."""
    return int(after * 1000 + 0.001) + 1


def _full(window: Window, now: float) -> Reason:
    claim = window.claim
    used = len(window.times) + window.reserved
    after = window.retry_after(now)
    whose = "all agents together" if claim.agent is None else "this agent"
    when = "once a call under way has ended" if after is None else f"in {go(ceil(after) if after >= 1 else after)}"
    return Reason(
        "rate_limit",
        f"rate limit exceeded for {claim.tool}: {used}/{window.most(now)} calls in {go(claim.window_s)} window "
        f"({whose}); not executed; try again {when}",
        retryable=True,
        retry_after_ms=None if after is None else milliseconds(after),
        code="rate_limited",
        detail=f"{claim.scope} limit of `{claim.backend}` `{claim.tool}`",
    )


def _spent(claim: Claim, budget: Budget, now: float) -> Reason:
    after = budget.retry_after(counted(claim.amount), counted(claim.most), now)
    left = max(0, counted(claim.most) - budget.spent - budget.reserved)
    whose = "all agents together" if claim.agent is None else "this agent"
    argument = claim.scope.partition(" ")[2]
    when = "once a call under way has ended" if after is None else f"in {go(ceil(after) if after >= 1 else after)}"
    return Reason(
        "rate_limit",
        f"budget exceeded for `{argument}` of {claim.tool}: {plain(left)} of {claim.most} is left in the "
        f"{go(claim.window_s)} window ({whose}); not executed; spend less, or try again {when}",
        retryable=True,
        retry_after_ms=None if after is None else milliseconds(after),
        code="budget_exceeded",
        detail=f"`constraints.{claim.tool}.budgets.{argument}`",
    )
