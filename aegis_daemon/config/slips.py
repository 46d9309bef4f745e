"""Names of tools in a configuration that no server has, though one has a tool with almost that name.

A rule for a tool that is not there does nothing: a misspelt `approval_required` asks nobody. A name like no other may
be of a tool that is yet to come, and of a server that was never listed nothing is known, so neither is told.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from aegis_daemon.config.load import Fault, Loaded
from aegis_daemon.config.schema import Config
from aegis_daemon.config.source import Path, Source, read, read_file
from aegis_daemon.core.names import bare
from aegis_daemon.core.text import visible
from aegis_daemon.policy.dialect import Statement
from aegis_daemon.policy.schema import ACTION

ALIKE: Final = 0.8
"""How like another a name has to be, to be taken for a slip: `read_file` and `write_file` are less."""
MOST: Final = 2_000
"""Names that are looked up, and names that each is compared with."""
_LISTS: Final = ("tool_allowlist", "tool_denylist", "approval_required", "second_approver", "rate_limits")
_EFFECT: Final = "so this does nothing"

Tools = Mapping[str, Iterable[str]]
"""The names of all tools that were seen, by server."""


def slips(loaded: Loaded, tools: Tools) -> list[Fault]:
    """Warnings, in the order of the file."""
    found = _Names(loaded.config, tools)
    told = [(path, message, hint) for path, name in _written(loaded.config) for message, hint in found.of(path, name)]
    made = [_stated(one, text) for one in loaded.config.policy.statements for text in found.of_statement(one)]
    source = _source(loaded) if told else None
    for path, message, hint in told:
        if source is None:
            made.append(Fault(loaded.name, 0, 0, ".".join(map(str, path)), message, hint))
        else:
            made.append(source.make(*source.at(path, key=isinstance(path[-1], str)), path, message, hint))
    return sorted(made, key=lambda one: (one.file, one.line, one.column))


def _source(loaded: Loaded) -> Source | None:
    if not loaded.path or not os.path.exists(loaded.path):
        return None
    source = read(read_file(loaded.path), loaded.name)
    return None if source.faults else source


def _stated(statement: Statement, text: tuple[str, str]) -> Fault:
    line, column = next(((line, column) for name, line, column in statement.spots if not name), (0, 0))
    return Fault(statement.file, line, column, f"policy {statement.id}", *text)


def _written(config: Config) -> Iterator[tuple[Path, str]]:
    """Each name of a tool and where it stands. Of a section with a backend in its path it is a tool of that."""
    for agent, rule in config.agents.items():
        for backend, access in rule.backends.items():
            here: Path = ("agents", agent, "backends", backend)
            for key in _LISTS:
                yield from _listed((*here, key), getattr(access, key))
    for backend, server in config.backends.items():
        yield from _listed(("backends", backend, "tools_idempotent"), server.tools_idempotent)
    for backend, queue in config.queue.items():
        yield from _listed(("queue", backend, "bypass_tools"), queue.bypass_tools)
        yield from _listed(("queue", backend, "global_rate_limits"), queue.global_rate_limits)
    for section, everybody in (("deny", config.deny), ("allow", config.allow)):
        yield from _listed((section, "tools"), everybody.tools if everybody is not None else ())
    for section in ("constraints", "transforms"):
        yield from _listed((section,), getattr(config, section))


def _listed(path: Path, names: Iterable[str] | None) -> Iterator[tuple[Path, str]]:
    if isinstance(names, Mapping):
        return (((*path, name), name) for name in names)
    return (((*path, index), name) for index, name in enumerate(names or ()))


class _Names:
    def __init__(self, config: Config, tools: Tools) -> None:
        self._backends = frozenset(config.backends)
        self._tools = {server: frozenset(names) for server, names in tools.items()}
        self._bare = {server: frozenset(map(bare, names)) for server, names in self._tools.items()}
        self._left = MOST

    def of(self, path: Path, name: str) -> Iterator[tuple[str, str]]:
        """What is wrong with a name in a setting: a message and a hint, or nothing."""
        if "*" in name or "?" in name:
            return
        if path[0] in ("agents", "queue", "backends"):
            backend = str(path[3] if path[0] == "agents" else path[1])
            yield from self._missing(name, (backend,), f"`{visible(backend)}` has no tool")
            return
        server, dot, rest = name.partition(".")
        if dot and server in self._backends:
            if not self._is_known(name, self._tools):
                for message, hint in self._missing(rest, (server,), f"`{visible(server)}` has no tool"):
                    yield message, hint.replace("did you mean `", f"did you mean `{visible(server)}.", 1)
        else:
            yield from self._missing(name, self._backends, "no backend has a tool")

    def of_statement(self, statement: Statement) -> Iterator[tuple[str, str]]:
        """The same of the tools that a policy is about."""
        if statement.actions is not None and ACTION not in statement.actions:
            return
        servers = self._backends if statement.servers is None else statement.servers & self._backends
        for target in sorted(statement.targets or ()):
            server, _, rest = target.partition(".")
            if server in servers and self._is_known(rest, (server,)) and not self._is_known(target, self._tools):
                message = f"no tool is called `{visible(target)}`, so this policy never applies to one"
                hint = f"`context.target` is the tool's own name: write `{visible(rest)}`, and the server as `resource`"
                yield message, hint
            else:
                yield from self._missing(target, servers, "no backend has a tool")

    def _is_known(self, name: str, servers: Iterable[str]) -> bool:
        return any(bare(name) in self._bare.get(server, ()) for server in servers)

    def _missing(self, name: str, servers: Iterable[str], what: str) -> Iterator[tuple[str, str]]:
        servers = frozenset(servers)
        if not servers or not servers <= self._tools.keys() or self._is_known(name, servers) or self._left <= 0:
            return
        self._left -= 1
        known = sorted({tool for server in servers for tool in self._tools[server]})[:MOST]
        near = difflib.get_close_matches(name[:80], known, 1, ALIKE)
        if near:
            yield f"{what} `{visible(name[:80])}`, {_EFFECT}", f"did you mean `{visible(near[0])}`?"
