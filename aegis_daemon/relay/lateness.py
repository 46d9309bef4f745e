"""Which backends keep sessions waiting, so that the next session does not wait for them, too.

Whoever is late is asked as before; what it says is told when it comes (`list_changed`), and once it comes in time it is
waited for again. One that is slow to begin may be quick to answer, so that the two are kept apart.
"""

from __future__ import annotations

from math import inf
from typing import Final

LATE_S: Final = 10.0
"""How long after the first answer the others are waited for."""
SOON_S: Final = 0.25
"""The same of those that were late the last time: so that one that is well again is there at once."""
_ENOUGH: Final = 2
"""Agents that a backend kept waiting."""


class Lateness:
    """All backends of a daemon, over all of its sessions.

    What one agent sees is for itself alone, since its client may be why: nobody waits where two agents had to.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[str, bool], dict[str, float]] = {}
        """by backend and whether it began then: two agents at most, and since when"""

    def late(self, backend: str, agent: str, now: float, *, begins: bool) -> None:
        """It has kept a session of this agent waiting."""
        seen = self._since.setdefault((backend, begins), {})
        if len(seen) < _ENOUGH:
            seen.setdefault(agent, now)

    def in_time(self, backend: str, *, begins: bool) -> None:
        """It has kept nobody waiting."""
        self._since.pop((backend, begins), None)

    def expected(self, backend: str, agent: str, *, begins: bool, lived: bool) -> bool:
        """Whether it will be late again; `lived`: it has said something in this session."""
        for seen in (self._since.get((backend, begins)), None if lived else self._since.get((backend, True))):
            if seen is not None and (agent in seen or len(seen) >= _ENOUGH):
                return True
        return False

    def forget(self, backend: str) -> None:
        """It is another one now, or was tried by itself."""
        self.in_time(backend, begins=True)
        self.in_time(backend, begins=False)

    def since(self) -> dict[str, float]:
        """Who is late, and since when."""
        found: dict[str, float] = {}
        for (backend, _), seen in self._since.items():
            found[backend] = min(*seen.values(), found.get(backend, inf))
        return found
