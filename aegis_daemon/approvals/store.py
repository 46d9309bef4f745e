"""Tickets on disk: written before anything is said of them, so a restarted daemon knows every one."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import msgspec

from aegis_daemon.approvals.ticket import Ticket
from aegis_daemon.core.verdict import Claim

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tickets (
  call_id TEXT PRIMARY KEY, id TEXT NOT NULL, digest TEXT NOT NULL, agent TEXT NOT NULL, backend TEXT NOT NULL,
  method TEXT NOT NULL, name TEXT NOT NULL, arguments TEXT NOT NULL, rule TEXT NOT NULL, created REAL NOT NULL,
  expires REAL NOT NULL, claims TEXT NOT NULL, state TEXT NOT NULL, by TEXT NOT NULL, note TEXT NOT NULL, outcome BLOB
) STRICT;
CREATE INDEX IF NOT EXISTS tickets_state ON tickets (state, created);
"""
_COLUMNS = (
    "call_id", "id", "digest", "agent", "backend", "method", "name", "arguments", "rule", "created", "expires",
    "claims", "state", "by", "note", "outcome",
)  # fmt: skip
_OPEN = "state IN ('pending', 'approved') OR (state = 'consumed' AND outcome IS NOT NULL)"
_claims = msgspec.json.Decoder(tuple[Claim, ...])


class TicketStore:
    """One SQLite file, written by the daemon's own thread: decisions come at a person's pace."""

    def __init__(self, path: Path, *, full: bool) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
        self._db.executescript(_SCHEMA)

    def put(self, ticket: Ticket) -> None:
        """Writes the ticket as it is. Raises `sqlite3.Error`."""
        values = [
            msgspec.json.encode(ticket.claims).decode() if column == "claims" else getattr(ticket, column)
            for column in _COLUMNS
        ]
        marks = ",".join("?" * len(_COLUMNS))
        self._db.execute(f"INSERT OR REPLACE INTO tickets ({','.join(_COLUMNS)}) VALUES ({marks})", values)  # noqa: S608

    def open_tickets(self) -> list[Ticket]:
        """Tickets that may still matter: pending, approved and not used, or used with an answer nobody received."""
        rows = self._db.execute(
            f"SELECT {','.join(_COLUMNS)} FROM tickets WHERE {_OPEN} ORDER BY created"  # noqa: S608
        )
        found = []
        for row in rows:
            fields = dict(zip(_COLUMNS, row, strict=True))
            fields["claims"] = _claims.decode(fields["claims"])
            found.append(Ticket(**fields))
        return found

    def forget_ended(self, before: float) -> None:
        """Deletes what no longer matters and was over before that time. Raises `sqlite3.Error`."""
        self._db.execute(f"DELETE FROM tickets WHERE NOT ({_OPEN}) AND expires < ?", (before,))  # noqa: S608

    def close(self) -> None:
        """Closes the file."""
        self._db.close()
