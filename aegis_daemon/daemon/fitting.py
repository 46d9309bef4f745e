"""What the rules in force say of arguments is held against the tools that are pinned, whenever either changes.

A call asks about its own tool and is answered at once, so no call goes to a tool that its rules do not fit, however new
the pin or the rules; `review` goes through all tools, a little at a time, for those who want to read of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from aegis_daemon.config.load import Fault
from aegis_daemon.daemon.misspelt import Misspelt
from aegis_daemon.policy.rules import bare
from aegis_daemon.policy.schema import Finding, Fitting, Summary, Tool
from aegis_daemon.registry.pins import TRUSTED, Registry

_log = logging.getLogger("aegis.policy")
SLICE_S: Final = 0.002
"""How long it goes on while others wait."""
_REMEMBERED: Final = 4096
_TOLD: Final = 20
"""Findings that are logged at a time; the others are counted."""


class Fits:
    """The rules of one configuration and the pins of one daemon. On the daemon's loop alone."""

    def __init__(self, fitting: Fitting, pins: Registry, now: Callable[[], float]) -> None:
        self._fitting = fitting
        self._pins = pins
        self._now = now
        self._faults: dict[tuple[str, str], str] = {}
        self._names: dict[tuple[str, str], list[str]] | None = None
        self.summary = Summary()
        """what the last review found"""

    def fault(self, backend: str, name: str) -> str:
        """What is wrong with the rules for a tool, for people; "" where nothing is, or the tool is not known.

        A name that differs in case, width, escapes or spaces from one that is known may be taken for that one.
        """
        known = self._faults.get((backend, name))
        if known is None:
            if self._pins.knows(backend, "tool", name):
                names = [name]
            else:
                names = self._alike().get((backend, bare(name)), []) if len(name) <= 1024 else []
            known = next((fault for fault in (self._fault(backend, one) for one in names) if fault), "")
            if len(self._faults) >= _REMEMBERED:
                self._faults.clear()
            if len(name) <= 256:
                self._faults[backend, name] = known
        return known

    def _fault(self, backend: str, name: str) -> str:
        schema = self._schema(backend, name)
        return "" if schema is None else self._fitting.fault(backend, name, schema, self._schema)

    def _schema(self, backend: str, name: str) -> Any:
        found = self._pins.trusted_object(backend, "tool", name)
        return found.get("inputSchema") if type(found) is dict else None

    def _alike(self) -> dict[tuple[str, str], list[str]]:
        if self._names is None:
            self._names = {}
            for pin in self._pins.rows():
                if pin.kind == "tool":
                    self._names.setdefault((pin.backend, bare(pin.name)), []).append(pin.name)
        return self._names

    def seen(self, backend: str) -> None:
        """Something of this server is pinned that was not, or as something else."""
        self._names = None
        for key in [key for key in self._faults if key[0] == backend]:
            del self._faults[key]

    def forget(self) -> None:
        """Anything may be pinned as something else."""
        self._names = None
        self._faults.clear()

    async def review(self) -> Summary:
        """All that does not fit, of all tools. Gives way to others now and then."""
        made = Summary()
        arguments: dict[str, set[str]] = {}
        vague: set[str] = set()
        since = self._now()
        for pin in self._pins.rows() if self._fitting else ():
            if pin.kind != "tool" or pin.state != TRUSTED:
                continue
            schema = self._schema(pin.backend, pin.name)
            if schema is None:
                vague.add(pin.backend)
                continue
            tool = Tool(pin.backend, pin.name, schema)
            arguments.setdefault(pin.backend, set()).update(tool.arguments.properties)
            if tool.vague:
                vague.add(pin.backend)
            found: list[Finding] = []
            for one in self._fitting.walk(tool, self._schema):
                if one is not None:
                    found.append(one)
                if self._now() - since > SLICE_S:
                    await asyncio.sleep(0)
                    since = self._now()
            made.add(found)
        known = {server: frozenset(names) for server, names in arguments.items() if server not in vague}
        made.add(self._fitting.strangers(known))
        self.summary = made
        return made

    def lines(self) -> tuple[str, ...]:
        """What the last review found, counted."""
        faults, warnings = self.summary.faults, self.summary.warnings
        found = []
        if faults:
            tools = self.summary.tools
            found.append(
                f"{len(faults)} policy fault{'s' * (len(faults) != 1)}, for which {tools} tool{'s' * (tools != 1)} "
                f"{'are' if tools != 1 else 'is'} refused: see `aegis policy validate`"
            )
        if warnings:
            found.append(
                f"{len(warnings)} warning{'s' * (len(warnings) != 1)} on policies and the tools they are for: see "
                "`aegis policy validate`"
            )
        return tuple(found)


class Reviewer:
    """Reviews what is in force in the background, again when it has changed meanwhile, and logs what is new."""

    def __init__(
        self, in_force: Callable[[], Fits | None], misspelt: Callable[[], Misspelt | None] = lambda: None
    ) -> None:
        self._in_force = in_force
        self._misspelt = misspelt
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._told: set[str] = set()
        self._names_told: set[str] = set()

    def kick(self) -> None:
        """Soon. Returns at once."""
        self._again = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._again:
                self._again = False
                fits = self._in_force()
                if fits is not None:
                    self.tell(await fits.review())
                misspelt = self._misspelt()
                if misspelt is not None:
                    self.tell_names(await misspelt.review())
        except Exception:  # calls are judged without it
            _log.exception("the policies could not be held against the tools")
        finally:
            self._task = None

    def tell(self, found: Summary) -> None:
        """To the log, each thing once."""
        new = [one for one in (*found.faults, *found.warnings) if one.text not in self._told]
        self._told = {one.text for one in (*found.faults, *found.warnings)}
        for one in new[:_TOLD]:
            if one.fault:
                _log.error("policy fault, for which the tool is refused: %s", one.text)
            else:
                _log.warning("policy %s", one.text)
        if len(new) > _TOLD:
            _log.warning("%d more of that: see `aegis policy validate`", len(new) - _TOLD)

    def tell_names(self, found: Sequence[Fault]) -> None:
        """The same of names that are no tool's."""
        texts = list(map(str, found))
        new = [text for text in texts if text not in self._names_told]
        self._names_told = set(texts)
        for text in new[:_TOLD]:
            _log.warning("%s", text)
        if len(new) > _TOLD:
            _log.warning("%d more of that: see `aegis config validate`", len(new) - _TOLD)

    async def close(self) -> None:
        """Stops what it is about."""
        self._again = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
