"""What all sessions share: fresh ids for their calls, and how much each agent has under way over all of them."""

from __future__ import annotations

import os

from aegis_daemon.relay.task_owners import Owners


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

    __slots__ = ("_open", "owners")

    def __init__(self, owners: Owners) -> None:
        self._open: dict[str, int] = {}
        self.owners = owners

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
