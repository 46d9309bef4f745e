"""Options that mean the same in every command that has them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import typer

from aegis_daemon.cli import names
from aegis_daemon.cli.console import USAGE, Problem, instant, visible

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Limit = Annotated[int | None, typer.Option("--limit", "-n", min=1, metavar="N", help="At most N rows.")]
Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="TIME", help="Not older than `10m`, `24h`, `7d`, or a time (RFC 3339, `2026-01-31`)."
    ),
]
Agent = Annotated[
    str | None,
    typer.Option("--agent", metavar="ID", autocompletion=names.agents, help="Only this agent (globs work)."),
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", metavar="NAME", autocompletion=names.backends, help="Only this backend (globs work)."),
]
OneClient = Annotated[
    str | None,
    typer.Option("--client", metavar="NAME", autocompletion=names.clients, help="Only this client's files."),
]
WiredAgent = Annotated[
    str, typer.Argument(metavar="ID", autocompletion=names.wired, help="An agent, or a client's id.")
]
Undoable = Annotated[
    str | None,
    typer.Argument(
        metavar="[ID]", autocompletion=names.undoable,
        help="An agent, or a run of `wire` as its `--json` says; else the last run.",
    ),
]  # fmt: skip
Tool = Annotated[str | None, typer.Option("--tool", metavar="NAME", help="Only this tool (globs work).")]
Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="The configuration file; else AEGIS_CONFIG, else the usual place."),
]


def new_app(*, bare: bool = False) -> typer.Typer:
    """An empty command; `bare`: a group that does something without a command, too."""
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        invoke_without_command=bare,
        no_args_is_help=not bare,
    )


def since_epoch(text: str | None) -> float | None:
    """Seconds since the epoch of a `--since`. Raises `Problem` where it is no time."""
    if text is None:
        return None
    from aegis_daemon.core.units import UnitError, parse_duration

    try:
        return time.time() - parse_duration(text)
    except UnitError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Problem(
            f"`{text}` is no time", "write `--since 10m`, `--since 24h` or `--since 2026-01-31T08:00:00Z`", USAGE
        ) from None
    return found.timestamp()  # without a zone it is meant by the clock on the reader's wall


def seconds(option: str, text: str) -> float:
    """A duration given with an option, more than none. Raises `Problem`."""
    from aegis_daemon.core.units import UnitError, parse_duration

    try:
        found = parse_duration(text)
    except UnitError as error:
        raise Problem(f"{option}: {error.message}", error.hint, USAGE) from None
    if not found:
        raise Problem(f"{option}: `{text}` is no time at all", "write it like `15m` or `1h30m`", USAGE)
    return found


def none_left(
    empty: str, *, agent: str | None = None, backend: str | None = None, tool: str | None = None, other: bool = False
) -> str:
    """What is said where the options left nothing; `empty` where there were none. `other`: there were more of them."""
    if agent is backend is tool is None and not other:
        return empty
    return nobody(agent=agent, backend=backend) or "nothing matches what was asked for"


def nobody(*, agent: str | None = None, backend: str | None = None) -> str:
    """What is said of an agent or a backend that the configuration does not have; "" where it has them."""
    from fnmatch import fnmatchcase

    for option, want, known in (("--agent", agent, names.agents), ("--backend", backend, names.backends)):
        there = known("") if want is not None else []
        if want is not None and there and not any(fnmatchcase(name, want) for name in there):
            return f"nothing matches `{option} {visible(want, 60)}`: configured are {_listed(there)}"
    return ""


def _listed(names: list[str], most: int = 12) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def pick(
    rows: Iterable[dict[str, Any]],
    *,
    agent: str | None = None,
    backend: str | None = None,
    tool: str | None = None,
    since: float | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """The rows that the options leave."""
    from fnmatch import fnmatchcase

    wanted = [("agent_id", agent), ("backend_id", backend), ("tool_name", tool), ("tool", tool)]
    found = [
        row
        for row in rows
        if all(want is None or field not in row or fnmatchcase(str(row[field] or ""), want) for field, want in wanted)
        and (since is None or instant(str(row.get("created_at", ""))) >= since)
    ]
    return found[:limit]
