"""What calls spend in a sliding window never exceeds its budget: reserved before a call, counted once it has succeeded.

Amounts are counted in whole units of 10^-12, so sums are exact; an amount that has no such form is refused. What
survives a restart is the audit log, from which the daemon fills budgets again; a call whose amount cannot be read there
counts as the whole budget. Times are monotonic seconds, and windows are half open, as in `limits`.
"""

from __future__ import annotations

from collections import deque
from decimal import Decimal
from typing import Any

PLACES = 12
MOST = 2**53
"""Beyond it readers of JSON disagree on what a number is."""
SCOPE = "budget"


def exact(value: Any) -> Decimal | None:
    """The number as it is written in the forwarded frame; None for anything but a number that every reader can hold."""
    if type(value) is int:
        return Decimal(value) if -MOST <= value <= MOST else None
    if type(value) is float:
        number = Decimal(repr(value))
        return number if number.is_finite() and -MOST <= number <= MOST else None
    return None


def units(number: Decimal) -> int | None:
    """The same in whole units; None where it is negative or finer than they are."""
    sign, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int) or (sign and number) or number > MOST:
        return None
    whole = int("".join(map(str, digits)))
    if exponent >= -PLACES:
        return whole * int(10 ** (exponent + PLACES))
    if exponent < -400:
        return None
    made, rest = divmod(whole, 10 ** (-PLACES - exponent))
    return None if rest else made


def plain(amount: int) -> str:
    """Units as people write the number: `12.5`."""
    whole, rest = divmod(amount, 10**PLACES)
    return f"{whole}.{rest:0{PLACES}d}".rstrip("0").rstrip(".")


def counted(text: str) -> int:
    """The units of a number that `plain` wrote."""
    found = units(Decimal(text))
    assert found is not None
    return found


class Budget:
    """One window of amounts, in units."""

    __slots__ = ("reserved", "spent", "times", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self.times: deque[tuple[float, int]] = deque()
        self.spent = 0
        self.reserved = 0

    def expire(self, now: float) -> None:
        """Drops what no longer counts."""
        oldest = now - self.window_s
        while self.times and self.times[0][0] <= oldest:
            self.spent -= self.times.popleft()[1]

    def has_room(self, amount: int, most: int) -> bool:
        """Whether that much more may be spent."""
        return self.spent + self.reserved + amount <= most

    def add(self, at: float, amount: int) -> None:
        """That much counts from `at` on."""
        self.spent += amount
        self.times.append((at, amount))
        if len(self.times) > 1 and self.times[-2][0] > at:
            self.times = deque(sorted(self.times))

    def retry_after(self, amount: int, most: int, now: float) -> float | None:
        """Seconds until enough has left the window; None where waiting alone does not make room."""
        used = self.spent + self.reserved
        for at, gone in self.times:
            used -= gone
            if used + amount <= most:
                return max(0.0, at + self.window_s - now)
        return None
