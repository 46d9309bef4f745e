"""Which channel took the message about which open ticket, and what it calls it: a restart tells nobody twice, or never.

Nothing is decided by it: where it cannot be written, a restart tells once more.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable

_log = logging.getLogger("aegis.approvals")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS told (
  call_id TEXT NOT NULL, channel TEXT NOT NULL, handle TEXT NOT NULL, PRIMARY KEY (call_id, channel)
) STRICT;
"""


class Told:
    """Messages that were taken, by the call id of their ticket."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """`db` is that of the tickets. Raises `sqlite3.Error`."""
        self._db = db
        db.executescript(_SCHEMA)

    def add(self, call_id: str, channel: str, handle: str) -> None:
        """The channel took the message, and calls it `handle`; empty where nothing can change it."""
        self._write("INSERT OR REPLACE INTO told VALUES (?, ?, ?)", (call_id, channel, handle))

    def forget(self, call_id: str) -> None:
        """The ticket is over."""
        self._write("DELETE FROM told WHERE call_id = ?", (call_id,))

    def keep(self, call_ids: Iterable[str]) -> None:
        """Forgets all but these."""
        kept = set(call_ids)
        for (call_id,) in self._read("SELECT DISTINCT call_id FROM told", ()):
            if call_id not in kept:
                self.forget(call_id)

    def by(self, channel: str) -> dict[str, str]:
        """What the channel took: handles by call id."""
        return {row[0]: row[1] for row in self._read("SELECT call_id, handle FROM told WHERE channel = ?", (channel,))}

    def _write(self, statement: str, given: tuple[str, ...]) -> None:
        try:
            self._db.execute(statement, given)
        except sqlite3.Error as error:
            _log.error("which channel was told could not be kept: %s", error)

    def _read(self, question: str, given: tuple[str, ...]) -> list[tuple[str, ...]]:
        try:
            return self._db.execute(question, given).fetchall()
        except sqlite3.Error as error:
            _log.error("which channel was told could not be read: %s", error)
            return []
