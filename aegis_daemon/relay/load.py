"""What all sessions share: fresh ids for their calls, and what each agent has under way over all of them."""

from __future__ import annotations

import os
from typing import Final

OWNED: Final = 1024
OWNERS: Final = 1024
"""Of how many tasks of an agent, and of how many agents, it is remembered who started them."""


class CallIds:
    """128 random bits as 32 hex digits, drawn in bulk: a system call for each would cost as much as judging a call."""

    __slots__ = ("_at", "_pool")

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def __call__(self) -> str:
        """The next one."""
        if self._at >= len(self._pool):
            self._pool = os.urandom(4096)
            self._at = 0
        made = self._pool[self._at : self._at + 16].hex()
        self._at += 16
        return made


class Load:
    """What each agent has under way over all its sessions: how many calls, and which tasks."""

    __slots__ = ("_open", "_tasks")

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._tasks: dict[str, dict[tuple[str, str], None]] = {}

    def started(self, agent: str, backend: str, task: str) -> None:
        """A call of the agent became this task. The agent's oldest make room, and nobody else's."""
        own = self._tasks.pop(agent, {})
        own[backend, task] = None
        if len(own) > OWNED:
            del own[next(iter(own))]
        self._tasks[agent] = own
        if len(self._tasks) > OWNERS:
            del self._tasks[next(iter(self._tasks))]

    def is_anothers(self, agent: str, backend: str, task: str) -> bool:
        """Whether others started it, and this agent did not: a backend may take all agents for one client."""
        key = (backend, task)
        owners = [one for one, own in self._tasks.items() if key in own]
        return bool(owners) and agent not in owners

    def enter(self, agent: str, limit: int) -> bool:
        """One more, unless there are `limit` already."""
        count = self._open.get(agent, 0)
        if count >= limit:
            return False
        self._open[agent] = count + 1
        return True

    def leave(self, agent: str) -> None:
        """One less."""
        count = self._open[agent] - 1
        if count:
            self._open[agent] = count
        else:
            del self._open[agent]
