"""Which agent started which task of a server, on disk: a task that nobody is known to have started is nobody's.

A server behind an address may take all agents for one client, and outlives the daemon. So what is not known here is
refused: after a restart an agent has its own tasks and no others. Ids are kept as digests.
"""

from __future__ import annotations

import logging
import sqlite3
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

_log = logging.getLogger("aegis.session")
OWNED: Final = 1024
OWNERS: Final = 1024
"""Of how many tasks of an agent, and of how many agents, it is remembered who started them."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tasks (
  number INTEGER PRIMARY KEY AUTOINCREMENT, agent TEXT NOT NULL, task BLOB NOT NULL, UNIQUE (task, agent)
) STRICT;
CREATE INDEX IF NOT EXISTS tasks_agent ON tasks (agent, number);
"""
_SURPLUS: Final = """
DELETE FROM tasks WHERE agent = ?1 AND number <=
  (SELECT number FROM tasks WHERE agent = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)
"""


class Owners:
    """Over all sessions. Belongs to the loop's thread."""

    def __init__(self, path: Path | str) -> None:
        """Takes over what earlier daemons wrote. Raises `sqlite3.Error`.

        `path` is the file of the tickets. A connection of its own: tickets come at a person's pace and reach the disk
        one by one, tasks come as calls do, and one that a power failure takes is refused to its own agent at worst.
        """
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            rows = self._db.execute("SELECT agent FROM tasks GROUP BY agent ORDER BY max(number)").fetchall()
        except sqlite3.Error:
            self._db.close()
            raise
        self._agents: dict[str, None] = dict.fromkeys(agent for (agent,) in rows)
        """who started any, the latest last"""

    def started(self, agent: str, backend: str, url: str | None, task: str) -> None:
        """A call of the agent became this task. The agent's oldest make room, and nobody else's.

        Behind an address (`url`) the id means one task: if another agent had one of this id, it is over, and the id was
        given out again. A server that is a process of one session counts for itself.
        """
        key = _key(backend, url, task)
        self._agents.pop(agent, None)
        self._agents[agent] = None
        try:
            if url is not None:
                self._db.execute("DELETE FROM tasks WHERE task = ?", (key,))
            self._db.execute("INSERT OR REPLACE INTO tasks (agent, task) VALUES (?, ?)", (agent, key))
            self._db.execute(_SURPLUS, (agent, OWNED))
            if len(self._agents) > OWNERS:
                gone = next(iter(self._agents))
                self._db.execute("DELETE FROM tasks WHERE agent = ?", (gone,))
                del self._agents[gone]
        except sqlite3.Error as error:
            _log.error("that a task belongs to `%.128s` could not be written, so it is refused: %s", agent, error)

    def owns(self, agent: str, backend: str, url: str | None, task: str) -> bool:
        """Whether this agent is known to have started it."""
        return bool(self._own(agent, (_key(backend, url, task),)))

    def own(self, agent: str, backend: str, url: str | None, tasks: list[str]) -> set[str]:
        """Those among them that this agent is known to have started."""
        keys = {task: _key(backend, url, task) for task in tasks}
        found = self._own(agent, None if len(keys) > OWNED else tuple(keys.values()))
        return {task for task, key in keys.items() if key in found}

    def _own(self, agent: str, keys: tuple[bytes, ...] | None) -> set[bytes]:
        query, values = "SELECT task FROM tasks WHERE agent = ?", [agent, *(keys or ())]
        if keys is not None:
            query += f" AND task IN ({','.join('?' * len(keys))})"
        try:
            return {task for (task,) in self._db.execute(query, values)}
        except (sqlite3.Error, ValueError) as error:
            _log.error("whose a task is cannot be read, so it is refused: %s", error)
            return set()

    def close(self) -> None:
        """Closes the file."""
        self._db.close()


def _key(backend: str, url: str | None, task: str) -> bytes:
    return sha256(msgspec.json.encode((backend, url)) + task.encode("utf-8", "surrogatepass")).digest()[:16]
