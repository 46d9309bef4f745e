"""What a person allowed beyond a limit is known to every daemon until it ends, and to none after.

Here it is kept; that it holds is the business of the limits, which are told by scope, agent, backend and tool.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import msgspec

from aegis_daemon.approvals.grants import seconds_left

_SCHEMA = """
CREATE TABLE IF NOT EXISTS quotas (
  scope TEXT NOT NULL, agent TEXT, backend TEXT NOT NULL, tool TEXT NOT NULL, count INTEGER NOT NULL, by TEXT NOT NULL,
  created REAL NOT NULL, expires REAL NOT NULL, boot TEXT NOT NULL, ends REAL NOT NULL
) STRICT;
"""

Key = tuple[str, str | None, str, str]


class Quota(msgspec.Struct, frozen=True):
    """`count` calls beyond one limit. Times as in `grants.Grant`."""

    scope: str
    agent: str | None
    backend: str
    tool: str
    count: int
    by: str
    created: float
    expires: float
    boot: str
    ends: float

    @property
    def key(self) -> Key:
        """Which limit."""
        return (self.scope, self.agent, self.backend, self.tool)


_COLUMNS = Quota.__struct_fields__


class Quotas:
    """All that still holds. `now` gives seconds on the boot clock, `wall` since the epoch, `boot` names this boot."""

    def __init__(
        self, db: sqlite3.Connection, *, now: Callable[[], float], wall: Callable[[], float], boot: str
    ) -> None:
        """Forgets what is over. Raises `sqlite3.Error`."""
        self._db = db
        self._now = now
        self._wall = wall
        self._boot = boot
        db.executescript(_SCHEMA)
        self._forget()

    def count(self, key: Key) -> int:
        """How many hold for one limit."""
        return sum(quota.key == key for quota, _ in self.held())

    def add(self, key: Key, count: int, seconds: float, by: str) -> Quota:
        """Keeps it. Raises `sqlite3.Error`, and nothing was kept."""
        self._forget()
        now, today = self._now(), self._wall()
        quota = Quota(*key, count, by, today, today + seconds, self._boot, now + seconds)
        marks = ",".join("?" * len(_COLUMNS))
        self._db.execute(
            f"INSERT INTO quotas ({','.join(_COLUMNS)}) VALUES ({marks})",  # noqa: S608
            [getattr(quota, name) for name in _COLUMNS],
        )
        return quota

    def held(self) -> list[tuple[Quota, float]]:
        """What holds, each with the seconds that are left of it."""
        now, today = self._now(), self._wall()
        found = []
        for row in self._db.execute(f"SELECT {','.join(_COLUMNS)} FROM quotas ORDER BY created").fetchall():  # noqa: S608
            quota = Quota(*row)
            left = seconds_left(
                quota.created, quota.expires, quota.boot, quota.ends, now=now, today=today, here=self._boot
            )
            if left > 0:
                found.append((quota, left))
        return found

    def _forget(self) -> None:
        self._db.execute("DELETE FROM quotas WHERE expires <= ?", (self._wall(),))
