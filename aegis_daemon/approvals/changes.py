"""What a person approved last is kept beside each tool, so that the next ask shows what is different about it.

Nothing is decided by it: where it cannot be kept or read, an ask is shown without a comparison. Comparing is pure.
"""

from __future__ import annotations

import logging
import sqlite3
from typing import Any, Final, Literal

import msgspec

from aegis_daemon.approvals.ticket import Ticket
from aegis_daemon.core.handed import differing

_log = logging.getLogger("aegis.approvals")
KEPT_MAX: Final = 1000
"""Tools, of each agent and backend, of which the last approved call is kept."""
ARGUMENTS_MAX: Final = 1 << 16
"""Bytes of the longest arguments that are kept; a call with longer ones is compared with nothing."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS approved (
  agent TEXT NOT NULL, backend TEXT NOT NULL, method TEXT NOT NULL, name TEXT NOT NULL, arguments TEXT NOT NULL,
  by TEXT NOT NULL, at REAL NOT NULL, server TEXT NOT NULL DEFAULT '', parts TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (agent, backend, method, name)
) STRICT;
"""
_arguments = msgspec.json.Decoder(dict[str, msgspec.Raw])

Change = Literal["", "same", "changed", "new", "gone"]


class Approved(msgspec.Struct, frozen=True):
    """A call that was approved: its arguments as JSON text, by whom, and when (seconds since the epoch)."""

    arguments: str
    by: str
    at: float


class Argument(msgspec.Struct, frozen=True):
    """One argument. `value` and `was` are JSON text as in the calls; `change` is empty where nothing is compared."""

    name: str
    value: str
    change: Change = ""
    was: str = ""


class Changes:
    """The calls that were approved last."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """`db` is that of the tickets. Raises `sqlite3.Error`."""
        self._db = db
        db.executescript(_SCHEMA)
        there = {column[1] for column in db.execute("PRAGMA table_info(approved)")}
        for column in ("server", "parts"):
            if column not in there:
                db.execute(f"ALTER TABLE approved ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")

    def last(self, ticket: Ticket) -> Approved | None:
        """The last approved call of the same agent, backend and tool; None where there is none, or none is known.

        One that ran on another server than this one would is none: nothing is the same there.
        """
        try:
            row = self._db.execute(
                "SELECT arguments, by, at FROM approved"
                " WHERE agent = ? AND backend = ? AND method = ? AND name = ? AND server = ?",
                (*_key(ticket), ticket.server),
            ).fetchone()
        except sqlite3.Error as error:
            _log.error("the last approved call could not be read: %s", error)
            return None
        return None if row is None else Approved(*row)

    def unlike(self, ticket: Ticket) -> str:
        """What is different about the ticket's server, where the last approved call ran on another one; else ""."""
        if not ticket.parts:
            return ""
        try:
            row = self._db.execute(
                "SELECT server, parts FROM approved WHERE agent = ? AND backend = ? AND method = ? AND name = ?",
                _key(ticket),
            ).fetchone()
            if row is None or row[0] == ticket.server or not row[1]:
                return ""
            return differing(ticket.parts, row[1]) or "something in it"
        except (sqlite3.Error, ValueError) as error:
            _log.error("the server of the last approved call could not be read: %s", error)
            return "it could not be compared"

    def approved(self, ticket: Ticket, at: float) -> None:
        """The ticket was approved at that time (seconds since the epoch)."""
        try:
            if len(ticket.arguments.encode("utf-8", "surrogatepass")) > ARGUMENTS_MAX:
                # What was approved before is not the last any more.
                self._db.execute(
                    "DELETE FROM approved WHERE agent = ? AND backend = ? AND method = ? AND name = ?", _key(ticket)
                )
                return
            self._db.execute(
                "INSERT OR REPLACE INTO approved (agent, backend, method, name, arguments, by, at, server, parts)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*_key(ticket), ticket.arguments, ticket.by, at, ticket.server, ticket.parts),
            )
            self._db.execute(
                "DELETE FROM approved WHERE rowid IN (SELECT rowid FROM approved ORDER BY at DESC LIMIT -1 OFFSET ?)",
                (KEPT_MAX,),
            )
        except (sqlite3.Error, UnicodeError) as error:
            _log.error("an approved call could not be kept for comparison: %s", error)


def compare(arguments: str, before: str | None) -> tuple[Argument, ...]:
    """Every argument of a call as it stands, and what is different about it; then those that it has no more.

    Arguments that are no object stand under the empty name, whole.
    """
    now = _each(arguments)
    if before is None:
        return tuple(Argument(name, value) for name, value in now.items())
    then = _each(before)
    rows = []
    for name, value in now.items():
        was = then.get(name)
        if was is None:
            rows.append(Argument(name, value, "new"))
        elif _same(value, was):
            rows.append(Argument(name, value, "same"))
        else:
            rows.append(Argument(name, value, "changed", was))
    rows += [Argument(name, "", "gone", was) for name, was in then.items() if name not in now]
    return tuple(rows)


def _each(arguments: str) -> dict[str, str]:
    """The text of each value; not read and written again, since that is what will run."""
    try:
        return {name: bytes(value).decode() for name, value in _arguments.decode(arguments).items()}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {"": arguments}


def _same(one: str, other: str) -> bool:
    """Whether two JSON texts say the same; the order of keys says nothing, `1` and `1.0` and `true` are different."""
    if one == other:
        return True
    try:
        return _canonical(one) == _canonical(other)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def _canonical(text: str) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(text), order="sorted")


def _key(ticket: Ticket) -> tuple[Any, ...]:
    return ticket.agent, ticket.backend, ticket.method, ticket.name
