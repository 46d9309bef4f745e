"""Names that a shell may complete: quick, silent, and none that could do anything in a shell.

They are read from the configuration as text, since a whole reading takes longer than a person waits for a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from aegis_daemon.cli import link
from aegis_daemon.cli.console import visible
from aegis_daemon.manage.client import Connection, DaemonAway, Refused

_SHELL: Final = frozenset(" \t\n\"'`$&|;<>()*?[]#~!{}\\:")
SIZE_MAX: Final = 1 << 20
OFFERED: Final = 100


def harmless(name: str) -> bool:
    """Whether a shell and a terminal take it for nothing but a name."""
    return bool(name) and visible(name) == name and not set(name) & _SHELL and not name.startswith("-")


def asked(verb: str, **args: Any) -> list[dict[str, Any]]:
    """What the daemon has; nothing where none runs."""
    try:
        with Connection(link.paths().manage_socket, timeout=1.0) as daemon:
            found: list[dict[str, Any]] = daemon.call(verb, **args)
            return found
    except (DaemonAway, Refused, OSError):
        return []


def agents(incomplete: str) -> list[str]:
    """Agents of the configuration."""
    return _offered(keys("agents"), incomplete)


def backends(incomplete: str) -> list[str]:
    """Backends of the configuration."""
    return _offered(keys("backends"), incomplete)


def clients(incomplete: str) -> list[tuple[str, str]]:
    """Programs whose files are known."""
    from aegis_daemon.clients import catalog

    return [
        (one.id, visible(one.name, 80))
        for one in catalog.load()
        if one.id.startswith(incomplete) and not one.generic and one.dead is None
    ]


def wired(incomplete: str) -> list[str]:
    """Agents of which entries are wired, and those of the configuration."""
    return _offered(iter([*(one.agent for one in _records()), *keys("agents")]), incomplete)


def undoable(incomplete: str) -> list[tuple[str, str]]:
    """What `aegis agents undo` takes: agents, and runs with what each wired."""
    runs: dict[str, list[str]] = {}
    for one in _records():
        for run in one.runs:
            runs.setdefault(run, []).append(one.name)
    found = [(name, "everything of this agent") for name in dict.fromkeys(one.agent for one in _records())]
    found += [(run, visible(", ".join(names), 80)) for run, names in runs.items()]
    return [(name, text) for name, text in found if name.startswith(incomplete) and harmless(name)][:OFFERED]


def _records() -> tuple[Any, ...]:
    """Entries that are wired; none where that is not known."""
    from aegis_daemon.clients import ledger

    try:
        return tuple(ledger.load(link.paths().state_dir).records)
    except (ledger.Unreadable, OSError):
        return ()


def grants(incomplete: str) -> list[tuple[str, str]]:
    """Grants that hold, each with what it lets through."""
    rows = asked("grants")
    return [
        (row["id"], visible(f"{row['agent_id']} {row['backend_id']}.{row['tool_name']}", 80))
        for row in rows
        if row["id"].startswith(incomplete) and harmless(row["id"])
    ][:OFFERED]


def queued(incomplete: str) -> list[tuple[str, str]]:
    """Calls that stand in a queue."""
    return [
        (row["call_id"], visible(f"{row['agent_id']} {row['backend_id']}.{row['tool_name']}", 80))
        for row in asked("queue")
        if row["call_id"].startswith(incomplete) and harmless(row["call_id"])
    ][:OFFERED]


def _offered(names: Iterator[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete) and harmless(name)][:OFFERED]


def keys(section: str) -> Iterator[str]:
    """The keys right below a top-level key of a YAML file in block style; what is written otherwise is not seen."""
    try:
        with open(link.paths().config, encoding="utf-8", errors="replace") as file:
            lines = file.read(SIZE_MAX).splitlines()
    except OSError:
        return
    inside, indent = False, ""
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line[0].isspace():
            inside, indent = re.match(rf"{section}\s*:\s*(?:#|$)", line) is not None, ""
            continue
        found = re.match(r"(\s+)[\"']?([^\s\"':{}\[\],#]+)[\"']?\s*:", line) if inside else None
        if found is not None:
            indent = indent or found[1]
            if found[1] == indent:
                yield found[2]
