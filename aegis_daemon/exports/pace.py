"""When an export or a witness goes on: as soon as the log has more, and after a failure later and later."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Final

from aegis_daemon.exports.sink import Trouble

FIRST_S: Final = 0.5
MOST_S: Final = 60.0

Say = Callable[[str], None]
"""Takes a line for the daemon."""
Sleep = Callable[[float], Awaitable[None]]


class News:
    """How far the log is, for everybody who waits to go on."""

    def __init__(self) -> None:
        self.seq = 0
        self.over = False
        self._waiting: set[asyncio.Event] = set()

    def heard(self, seq: int) -> None:
        """The log has that record."""
        self.seq = max(self.seq, seq)
        self._wake()

    def end(self) -> None:
        """Nothing more will come."""
        self.over = True
        self._wake()

    def _wake(self) -> None:
        for event in self._waiting:
            event.set()

    async def wait(self, after: int, seconds: float | None) -> None:
        """Until the log has more than record `after`, or it is over, or `seconds` are."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            async with asyncio.timeout(seconds):
                while self.seq <= after and not self.over:
                    event.clear()
                    await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(event)


class Backoff:
    """Longer and longer pauses, each random between a half and one and a half of what it would be."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._next = FIRST_S

    def well(self) -> None:
        """It works again."""
        self._next = FIRST_S

    def pause(self, asked_s: float | None) -> float:
        """Seconds until the next try; at least what the receiver asked for (an hour at most)."""
        now, self._next = self._next, min(self._next * 2, MOST_S)
        return max(now * (0.5 + self._random()), min(asked_s or 0.0, 3600.0))


def why(error: BaseException) -> str:
    """What was wrong, in one line; only texts of ours, since others may repeat what was sent."""
    if isinstance(error, Trouble):
        return " ".join(str(error).split())[:500]
    if isinstance(error, sqlite3.Error):
        return f"the log or the cursors cannot be used: {error}"[:500]
    if isinstance(error, OSError):
        return " ".join((error.strerror or str(error)).split())[:500]
    return f"it failed with {type(error).__name__}, which is a fault of Aegis"
