"""Tickets on disk: written before anything is said of them, so a restarted daemon knows every one."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any, Final

import msgspec

from aegis_daemon.approvals.ticket import APPROVED, Ticket, Vote
from aegis_daemon.core.verdict import Claim

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tickets (
  call_id TEXT PRIMARY KEY, id TEXT NOT NULL, digest TEXT NOT NULL, agent TEXT NOT NULL, backend TEXT NOT NULL,
  method TEXT NOT NULL, name TEXT NOT NULL, arguments TEXT NOT NULL, rule TEXT NOT NULL, created REAL NOT NULL,
  expires REAL NOT NULL, claims TEXT NOT NULL, state TEXT NOT NULL, by TEXT NOT NULL, note TEXT NOT NULL, outcome BLOB
) STRICT;
CREATE INDEX IF NOT EXISTS tickets_state ON tickets (state, created);
"""
_STEPS: Final = (
    """
    ALTER TABLE tickets ADD COLUMN people INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE tickets ADD COLUMN votes TEXT NOT NULL DEFAULT '[]';
    ALTER TABLE tickets ADD COLUMN client TEXT NOT NULL DEFAULT '';
    ALTER TABLE tickets ADD COLUMN via TEXT NOT NULL DEFAULT '';
    ALTER TABLE tickets ADD COLUMN task TEXT NOT NULL DEFAULT '';
    CREATE INDEX tickets_task ON tickets (task) WHERE task != '';
    """,
    """
    CREATE INDEX tickets_ended ON tickets (agent, created, expires, state) WHERE state NOT IN ('pending', 'approved');
    """,
    "ALTER TABLE tickets ADD COLUMN pin TEXT NOT NULL DEFAULT '';",
    # Until here a ticket did not say for which server it was: one that was handed over asks anew.
    """
    ALTER TABLE tickets ADD COLUMN server TEXT NOT NULL DEFAULT '';
    ALTER TABLE tickets ADD COLUMN command TEXT NOT NULL DEFAULT '';
    ALTER TABLE tickets ADD COLUMN cwd TEXT NOT NULL DEFAULT '';
    """,
    """
    ALTER TABLE tickets ADD COLUMN parts TEXT NOT NULL DEFAULT '';
    ALTER TABLE tickets ADD COLUMN unlike TEXT NOT NULL DEFAULT '';
    """,
)
"""What turns one schema into the next; a file's `PRAGMA user_version` counts those it has seen."""
_COLUMNS = (
    "call_id", "id", "digest", "agent", "backend", "method", "name", "arguments", "rule", "created", "expires",
    "claims", "state", "by", "note", "outcome", "people", "votes", "client", "via", "task", "pin",
    "server", "command", "cwd", "parts", "unlike",
)  # fmt: skip
_OPEN = "state IN ('pending', 'approved') OR (state IN ('consumed', 'rejected') AND outcome IS NOT NULL)"
_JSON: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    "claims": msgspec.json.Decoder(tuple[Claim, ...]),
    "votes": msgspec.json.Decoder(tuple[Vote, ...]),
}


class TicketStore:
    """One SQLite file, written by the daemon's own thread: decisions come at a person's pace.

    `db` is its connection, for what else of people's doing is kept there (`grants`, `pauses`, `patience`). Raises
    `sqlite3.Error`, also for a file of a later version, which is left as it is.
    """

    def __init__(self, path: Path, *, full: bool) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self.db = sqlite3.connect(path, isolation_level=None)
        try:
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
            self._bring_up_to_date(path)
        except sqlite3.Error:
            self.db.close()
            raise

    def _bring_up_to_date(self, path: Path) -> None:
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        if version > len(_STEPS):
            raise sqlite3.DatabaseError(f"`{path}` was written by a later version of Aegis; run that one")
        self.db.executescript(_SCHEMA)
        for number in range(version, len(_STEPS)):
            self.db.executescript(f"BEGIN IMMEDIATE; {_STEPS[number]} PRAGMA user_version = {number + 1}; COMMIT;")

    def put(self, ticket: Ticket) -> None:
        """Writes the ticket as it is. Raises `sqlite3.Error`."""
        marks = ",".join("?" * len(_COLUMNS))
        self.db.execute(
            f"INSERT OR REPLACE INTO tickets ({','.join(_COLUMNS)}) VALUES ({marks})",  # noqa: S608
            [_stored(ticket, column) for column in _COLUMNS],
        )

    def take(self, ticket: Ticket) -> bool:
        """Writes the ticket as used, if it is approved on disk: False where it is not. Raises `sqlite3.Error`."""
        done = self.db.execute(
            "UPDATE tickets SET state = 'consumed' WHERE call_id = ? AND state = ?", (ticket.call_id, APPROVED)
        )
        return done.rowcount == 1

    def open_tickets(self) -> list[Ticket]:
        """Tickets that may still matter: pending, approved and not used, or ended and nobody has heard how."""
        return self._read(f"{_OPEN} ORDER BY created")

    def by_task(self, task: str) -> Ticket | None:
        """The ticket that is polled under this id, ended or not; None where there is none (any more)."""
        return next(iter(self._read("task = ? AND task != '' ORDER BY created DESC LIMIT 1", task)), None)

    def by_id(self, id: str) -> list[Ticket]:
        """Tickets that have had this id, ended or not, the newest first: it is given out again once it is free."""
        return self._read("id = ? ORDER BY created DESC LIMIT 16", id)

    def _read(self, where: str, *values: Any) -> list[Ticket]:
        rows = self.db.execute(f"SELECT {','.join(_COLUMNS)} FROM tickets WHERE {where}", values)  # noqa: S608
        found = []
        for row in rows:
            fields = dict(zip(_COLUMNS, row, strict=True))
            for column, decoder in _JSON.items():
                fields[column] = decoder.decode(fields[column])
            found.append(Ticket(**fields))
        return found

    def forget_ended(self, before: float) -> None:
        """Deletes what no longer matters and was over before that time. Raises `sqlite3.Error`."""
        self._delete("expires < ?", before)

    def keep_ended(self, agent: str, most: int) -> None:
        """Deletes what no longer matters of this agent but the newest so many. Raises `sqlite3.Error`."""
        self._delete("agent = ? ORDER BY created DESC LIMIT -1 OFFSET ?", agent, most)

    def _delete(self, where: str, *values: Any) -> None:
        # Found by the index alone: the arguments of each row may fill many pages.
        ended = "INDEXED BY tickets_ended WHERE state NOT IN ('pending', 'approved')"
        found = f"SELECT rowid FROM tickets {ended} AND {where}"  # noqa: S608
        self.db.execute(f"DELETE FROM tickets WHERE outcome IS NULL AND rowid IN ({found})", values)  # noqa: S608

    def close(self) -> None:
        """Closes the file."""
        self.db.close()


def _stored(ticket: Ticket, column: str) -> Any:
    value = getattr(ticket, column)
    return msgspec.json.encode(value).decode() if column in _JSON else value
