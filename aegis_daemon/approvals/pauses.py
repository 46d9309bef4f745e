"""What a person has stopped stays stopped until a person lets it go on, whatever the rules say and whoever restarts.

A pause is asked wherever a call is judged (`core.ports.Brake`), also after it has waited. What is in flight is left
alone, so what only begins or ends a session, lists, or follows and ends work that runs already still passes.
"""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.verdict import Reason
from aegis_daemon.wire.methods import Rule

EVERYTHING: Final = ""
"""Stands for all agents, where one could be named."""
FOLLOWS: Final = frozenset({"tasks/get", "tasks/cancel", "tasks/result"})
"""Governed methods that only follow or end what runs already."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS pauses (
  agent TEXT PRIMARY KEY, by TEXT NOT NULL, note TEXT NOT NULL, since REAL NOT NULL
) STRICT;
"""


class Pause(msgspec.Struct, frozen=True):
    """One pause: of one agent, or of `EVERYTHING`. `since` in seconds since the epoch."""

    agent: str
    by: str
    note: str
    since: float


class Pauses:
    """All pauses. See `core.ports.Brake`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """Takes over what an earlier daemon left. Raises `sqlite3.Error`."""
        self._db = db
        db.executescript(_SCHEMA)
        rows = db.execute("SELECT agent, by, note, since FROM pauses ORDER BY since").fetchall()
        self._pauses = {row[0]: Pause(*row) for row in rows}

    def stops(self, call: Call) -> Reason | None:
        """Why this call must not go on now, None where nothing stops it."""
        pauses = self._pauses
        found = pauses.get(EVERYTHING) or pauses.get(call.principal.agent)
        if found is None or call.row.rule is not Rule.GOVERNED or call.method in FOLLOWS:
            return None
        who = "all agents" if found.agent == EVERYTHING else "this agent"
        text = (
            f"a person has paused {who}; nothing was executed; "
            "repeating the call at once will not work: wait until a person lets it go on"
        )
        return Reason("paused", text, code="paused", detail=f"paused by {found.by}")

    def get(self, agent: str) -> Pause | None:
        """The pause of exactly that agent, or of `EVERYTHING`."""
        return self._pauses.get(agent)

    def rows(self) -> list[Pause]:
        """Every pause, that of everything first."""
        return sorted(self._pauses.values(), key=lambda pause: (pause.agent != EVERYTHING, pause.since))

    def pause(self, pause: Pause) -> None:
        """Stops it from now on; a second pause of the same takes the place of the first.

        Raises `sqlite3.Error` where a later daemon would not know; in this one it is stopped all the same.
        """
        self._pauses[pause.agent] = pause
        self._db.execute(
            "INSERT OR REPLACE INTO pauses (agent, by, note, since) VALUES (?, ?, ?, ?)",
            (pause.agent, pause.by, pause.note, pause.since),
        )

    def resume(self, agent: str) -> Pause | None:
        """Lets it go on; the pause that was, None where there was none.

        Raises `sqlite3.Error`, and then it stays stopped.
        """
        if agent not in self._pauses:
            return None
        self._db.execute("DELETE FROM pauses WHERE agent = ?", (agent,))
        return self._pauses.pop(agent)
