"""How long a client can be kept waiting for a person before it gives up: known of many, and learned downwards.

A client's own timeout is no secret to whoever counts: two calls that it cancelled at nearly the same age, one after the
other, tell it. A person who presses Esc is not that punctual, and ends all calls under way at once, which tells
nothing. What was learned never says more than 0.8 of that age, nor less than a second, and holds only where the
configuration says nothing. The name that a client gives itself is its own claim: it decides when it hears `PENDING`,
never whether a call runs, and what is learned of it concerns the agent that taught it alone.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from aegis_daemon.core.runtime import HoldRule

_log = logging.getLogger("aegis.approvals")
UNKNOWN_S: Final = 45.0
"""For a client that nobody knows: below the 60 s of most SDKs."""
BUDGETS_S: Final[Mapping[str, float]] = {
    "claude-code": 600.0,
    "visual studio code": 600.0,
    "vscode": 600.0,
    "opencode": 600.0,
    "gemini-cli": 570.0,
    "goose": 270.0,
    "github-copilot": 150.0,
    "copilot": 150.0,
    "codex": 50.0,
    "zed": UNKNOWN_S,
    "cline": UNKNOWN_S,
    "continue": UNKNOWN_S,
    "cursor": UNKNOWN_S,
    "claude-ai": UNKNOWN_S,
    "lm-studio": UNKNOWN_S,
    "lmstudio": UNKNOWN_S,
    "kiro": UNKNOWN_S,
    "mcporter": 25.0,
    "openclaw": 25.0,
}
"""What a client's name begins with, lower case → seconds that it waits by default, with something to spare."""
LEAST_S: Final = 1.0
SHARE: Final = 0.8
NEAR_S: Final = 0.5
NEAR_SHARE: Final = 0.05
REMEMBERED: Final = 64
"""Clients of one agent of which something is kept; those that taught last stay."""
FORGET_S: Final = 30 * 86400.0
"""After so long a client may have learned to wait."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS patience (
  agent TEXT NOT NULL, client TEXT NOT NULL, seconds REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (agent, client)
) STRICT;
"""
Key = tuple[str, str]


class Cancelled(msgspec.Struct, frozen=True):
    """A held call that its client cancelled: how old it was, in seconds, and when that was."""

    age_s: float
    at: float


def known(client: str) -> float:
    """What a client of this name waits by default: the longest beginning in the table decides."""
    name = client.lower()
    fitting = [prefix for prefix in BUDGETS_S if name.startswith(prefix)]
    return BUDGETS_S[max(fitting, key=len)] if fitting else UNKNOWN_S


def configured(rule: HoldRule, agent: str, client: str) -> float | None:
    """What the configuration says of this client; None where that is `auto`. Case does not matter in its name."""
    if agent in rule.agents:
        return rule.agents[agent]
    name = client.lower()
    for pattern, seconds in rule.clients:
        if name and fnmatchcase(name, pattern.lower()):
            return seconds
    return rule.default


def lesson(first: Cancelled, second: Cancelled) -> float | None:
    """The budget that two cancellations teach, in seconds; None where they do not tell of a timeout.

    The second call must have begun when the first was over, or one keypress may have ended both.
    """
    ages = (first.age_s, second.age_s)
    if second.at - second.age_s < first.at or abs(ages[0] - ages[1]) > NEAR_S + NEAR_SHARE * max(ages):
        return None
    return max(LEAST_S, SHARE * min(ages))


def _surplus(kept: Mapping[Key, object], agent: str) -> Key | None:
    """The agent's oldest, where it has one too many: it makes room, and nobody else's."""
    own = [key for key in kept if key[0] == agent]
    return own[0] if len(own) > REMEMBERED else None


class Patience:
    """What is known of every client. See `core.ports.Patience`."""

    def __init__(self, db: sqlite3.Connection, wall: Callable[[], float]) -> None:
        """Takes over what earlier daemons learned. Raises `sqlite3.Error`."""
        self._db = db
        self._wall = wall
        db.executescript(_SCHEMA)
        db.execute("DELETE FROM patience WHERE at < ?", (wall() - FORGET_S,))
        rows = db.execute("SELECT agent, client, seconds FROM patience ORDER BY at").fetchall()
        self._learned: dict[Key, float] = {(agent, client): seconds for agent, client, seconds in rows}
        self._last: dict[Key, Cancelled] = {}

    def budget(self, rule: HoldRule, agent: str, client: str) -> float:
        """Seconds that a call of this client may be held."""
        said = configured(rule, agent, client)
        if said is not None:
            return said
        return min(known(client), self._learned.get((agent, client), known(client)))

    def gave_up(self, agent: str, client: str, age_s: float) -> None:
        """This client cancelled a held call of this age."""
        key = (agent, client)
        now = Cancelled(age_s, self._wall())
        before = self._last.pop(key, None)
        self._last[key] = now
        surplus = _surplus(self._last, agent)
        if surplus is not None:
            del self._last[surplus]
        taught = lesson(before, now) if before is not None else None
        if taught is None or taught >= min(known(client), self._learned.get(key, known(client))):
            return
        self._learned.pop(key, None)
        self._learned[key] = taught
        gone = _surplus(self._learned, agent)
        try:
            if gone is not None:
                del self._learned[gone]
                self._db.execute("DELETE FROM patience WHERE agent = ? AND client = ?", gone)
            self._db.execute("INSERT OR REPLACE INTO patience VALUES (?, ?, ?, ?)", (*key, taught, now.at))
        except sqlite3.Error as error:  # it holds until the daemon ends
            _log.error("how long `%s` waits could not be written: %s", client, error)
        _log.info("calls of `%s` (agent `%s`) are held for %.1f s from now on: it gives up then", client, agent, taught)
