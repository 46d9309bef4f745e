"""Since when the daemon observes or enforces, over restarts, and who said so."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable

_log = logging.getLogger("aegis.proof")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS mode (
  one INTEGER PRIMARY KEY CHECK (one = 1), mode TEXT NOT NULL, since REAL NOT NULL, by TEXT NOT NULL
) STRICT;
"""


class Modes:
    """The mode in force. `since` is in seconds since the epoch; `by` is "" where the file was changed by hand."""

    def __init__(self, db: sqlite3.Connection, wall: Callable[[], float]) -> None:
        """Takes over what an earlier daemon left. Raises `sqlite3.Error`."""
        self._db = db
        self._wall = wall
        db.executescript(_SCHEMA)
        row = db.execute("SELECT mode, since, by FROM mode").fetchone()
        self.mode: str
        self.since: float
        self.by: str
        self.mode, self.since, self.by = row if row is not None else ("", 0.0, "")

    def took(self, mode: str, by: str = "") -> str:
        """This mode is in force: the one that was until now, "" where it is the same or the first."""
        was = self.mode
        if was == mode:
            return ""
        self.mode, self.since, self.by = mode, self._wall(), by
        try:
            self._db.execute(
                "INSERT OR REPLACE INTO mode (one, mode, since, by) VALUES (1, ?, ?, ?)", (mode, self.since, by)
            )
        except sqlite3.Error as error:  # it holds all the same; after a restart its time would not be known
            _log.error("since when the mode is `%s` could not be kept: %s", mode, error)
        return was
