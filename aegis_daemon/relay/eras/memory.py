"""What one session found a backend to speak, the next one need not find out again."""

from __future__ import annotations

from math import inf

from aegis_daemon.wire.methods import Era


class EraMemory:
    """What one backend was last found to speak, for all its sessions. Times are monotonic seconds."""

    __slots__ = ("_speaks",)

    def __init__(self) -> None:
        self._speaks: dict[Era, tuple[bool, float]] = {}

    def speaks(self, era: Era, now: float) -> bool | None:
        """Whether it does; None where that is not known, or not any more."""
        said, until = self._speaks.get(era, (None, inf))
        return said if now < until else None

    def note(self, era: Era, speaks: bool, until: float = inf) -> None:
        """It does or does not, which holds until then."""
        self._speaks[era] = (speaks, until)

    def forget(self) -> None:
        """What was known does not hold any more."""
        self._speaks.clear()
