"""What a configuration says of arguments, held against the tools that a daemon has pinned: read from what it keeps.

No daemon need run. Only what its servers gave and is trusted counts, and only where it is what its hash says.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from aegis_daemon.config.load import Fault, Loaded
from aegis_daemon.config.rules import constraint
from aegis_daemon.config.schema import Config
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.templates import fits, literals
from aegis_daemon.policy.schema import Finding, Fitting, Summary, Tool
from aegis_daemon.stages import ORDER
from aegis_daemon.stages.pin import Pins as PinGate
from aegis_daemon.stages.policy import Policy

_TOOLS: Final = (
    "SELECT backend, name, trusted, text FROM pins WHERE kind = 'tool' AND state = 'trusted' ORDER BY backend, name"
)
_STATES: Final = "SELECT backend, kind, name, state FROM pins"


class Unread(OSError):
    """What the daemon keeps cannot be read; the text says why."""


class Pinned:
    """The `inputSchema` of every tool that may be used, by server and name; empty where no daemon has run yet.

    Raises `Unread`.
    """

    def __init__(self, state_db: str) -> None:
        self.schemas: dict[tuple[str, str], Any] = {}
        self.vague: set[str] = set()
        """servers with tools of which it was not kept"""
        self.states: dict[tuple[str, str, str], str] = {}
        """of everything that was seen: server, kind and name"""
        path = Path(state_db)
        if not path.exists():
            return
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as db:
                if not db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'pins'").fetchone():
                    return
                self.states = {(backend, kind, name): state for backend, kind, name, state in db.execute(_STATES)}
                for backend, name, trusted, text in db.execute(_TOOLS):
                    tool = json.loads(text) if sha256(text.encode()).hexdigest() in json.loads(trusted) else None
                    schema = tool.get("inputSchema") if type(tool) is dict else None
                    if schema is None:
                        self.vague.add(backend)
                    else:
                        self.schemas[backend, name] = schema
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise Unread(f"`{state_db}` cannot be read: {error}") from error

    def __len__(self) -> int:
        return len(self.schemas)

    def of(self, server: str, tool: str) -> Any:
        """See `policy.schema.Others`."""
        return self.schemas.get((server, tool))

    def tools(self) -> dict[str, set[str]]:
        """The names of all tools that were seen, usable or not, by server."""
        found: dict[str, set[str]] = {}
        for server, kind, name in self.states:
            if kind == "tool":
                found.setdefault(server, set()).add(name)
        return found


class Kept:
    """What is pinned, for the gate that asks (`core.ports.Pins`), of a daemon that need not run."""

    recheck_s = 0.0

    def __init__(self, pinned: Pinned) -> None:
        self._states = pinned.states
        self._templates = [
            (backend, literals(name), state)
            for (backend, kind, name), state in self._states.items()
            if kind == "template" and state != "trusted"
        ]

    def stops(self, backend: str, subject: str, name: str) -> str:
        """See `core.ports.Pins`."""
        if subject == "resource":
            found = (state for server, parts, state in self._templates if server == backend and fits(parts, name))
            return next(found, "")
        state = self._states.get((backend, subject, name), "unseen")
        return "" if state == "trusted" else state

    def trusted(self, backend: str, subject: str, name: str) -> str:
        """Nothing: what a person has said is not looked at."""
        return ""

    def knows(self, backend: str, subject: str, name: str) -> bool:
        """See `core.ports.Pins`."""
        return (backend, subject, name) in self._states

    def shown(self, backend: str, method: str, body: bytes) -> bool:
        """Nothing is shown to it."""
        return True


def fitting(config: Config) -> Fitting:
    """The rules of a configuration."""
    written = [constraint(tool, rule) for tool, rule in config.constraints.items()]
    return Fitting(config.policy.statements, written)


def review(config: Config, pinned: Pinned, progress: Callable[[int], None] = lambda done: None) -> Summary:
    """What does not fit; `progress` is told how many tools are done."""
    found, rules = Summary(), fitting(config)
    if not rules:
        return found
    arguments: dict[str, set[str]] = {}
    vague = set(pinned.vague)
    for done, ((server, name), schema) in enumerate(pinned.schemas.items(), 1):
        tool = Tool(server, name, schema)
        arguments.setdefault(server, set()).update(tool.arguments.properties)
        if tool.vague:
            vague.add(server)
        found.add(rules.findings(server, name, schema, pinned.of))
        progress(done)
    found.add(rules.strangers({server: frozenset(names) for server, names in arguments.items() if server not in vague}))
    return found


def faults(loaded: Loaded, found: list[Finding]) -> list[Fault]:
    """The same with their places, as other faults of a file are told, and in its order."""
    made = []
    for one in found:
        if one.line:
            made.append(Fault(one.file, one.line, one.column, f"policy {one.rule}", one.message, one.hint))
        else:
            line, column = loaded.places.get(one.rule, (0, 0))
            made.append(Fault(loaded.name, line, column, one.rule, one.message, one.hint))
    return sorted(made, key=lambda one: (one.file, one.line, one.column))


def fitted(runtime: Runtime, config: Config, pinned: Pinned) -> Runtime:
    """The runtime as a daemon with these pins has it: refusing what was changed, and what its rules do not fit."""
    gate = PinGate(Kept(pinned), hold=config.pins.first_seen == "hold")
    runtime = msgspec.structs.replace(runtime, pipeline=runtime.pipeline.having(gate, ORDER))
    policy, rules = runtime.pipeline.gate("policy"), fitting(config)
    if not isinstance(policy, Policy) or not rules:
        return runtime

    def unfit(server: str, tool: str) -> str:
        schema = pinned.of(server, tool)
        return "" if schema is None else rules.fault(server, tool, schema, pinned.of)

    return msgspec.structs.replace(runtime, pipeline=runtime.pipeline.having(policy.fitting(unfit), ORDER))
