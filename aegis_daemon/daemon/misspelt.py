"""Names of tools in the rules in force that no server has, though one has a tool of almost that name.

Such a rule does nothing, so a misspelt `approval_required` asks nobody. The daemon knows what its servers offer, and
says so of itself, whenever the rules or the tools are others; no call waits for that.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aegis_daemon.config.load import ConfigFaults, Fault, Loaded
from aegis_daemon.config.slips import slips
from aegis_daemon.manage.client import MISSPELT
from aegis_daemon.registry.pins import Registry

SHOWN: Final = 20
"""That are told by name; the others are counted."""


class Misspelt:
    """The names in one configuration and the pins of one daemon. On the daemon's loop alone."""

    def __init__(self, loaded: Loaded, pins: Registry) -> None:
        self._loaded = loaded
        self._pins = pins
        self.found: tuple[Fault, ...] = ()
        """what the last review found"""

    async def review(self) -> tuple[Fault, ...]:
        """All of them, in the order of the file. Names are compared beside the loop: of very many that takes time."""
        tools: dict[str, set[str]] = {}
        for pin in self._pins.rows():
            if pin.kind == "tool":
                tools.setdefault(pin.backend, set()).add(pin.name)
        try:
            self.found = tuple(await asyncio.to_thread(slips, self._loaded, tools)) if tools else ()
        except (OSError, ConfigFaults):
            pass  # the file is not there any more, or another one, and has no places to name
        return self.found

    def lines(self) -> tuple[str, ...]:
        """What the last review found, counted."""
        count = len(self.found)
        if not count:
            return ()
        many = count != 1
        return (f"{count} {MISSPELT[many]}: see `aegis config validate`",)

    def told(self) -> tuple[str, ...]:
        """What the last review found, each with its place and what may be meant."""
        shown = tuple(map(str, self.found[:SHOWN]))
        return shown if len(self.found) <= SHOWN else (*shown, *self.lines())
