"""`aegis audit stats`: how calls went, how long they took and what was refused most, as a table, a plot or JSON."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from aegis_daemon.cli.audit.log import Db, micros, opened
from aegis_daemon.cli.console import Problem, coloured, emit, local, say, show, visible
from aegis_daemon.cli.options import Agent, Backend, Json, Limit, Tool, nobody

if TYPE_CHECKING:
    from aegis_daemon.audit.totals import Total

GROUPS: Final = ("agent", "backend", "tool", "hour", "policy")
PATIENCE_S: Final = 30.0
KINDS: Final = (
    ("success", "ran", "█", "32"),
    ("error", "failed", "▓", "33"),
    ("denied", "refused", "▒", "31"),
    ("unknown", "outcome unknown", "?", "35"),
    ("pending", "waits", "░", "36"),
)
"""how a call went → its word, its sign in a plot, its colour"""
LABEL_MAX: Final = 32


def _group(value: str) -> str:
    if value not in GROUPS:
        raise typer.BadParameter(f"`{visible(value)}` is none of {', '.join(GROUPS)}")
    return value


def stats(
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="From the hour of `24h`, `7d` ago or a date on.")
    ] = "24h",
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before that time.")] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="WHAT", callback=_group, help=f"One of {', '.join(GROUPS)}.")
    ] = "tool",
    agent: Agent = None,
    backend: Backend = None,
    tool: Tool = None,
    every: Annotated[bool, typer.Option("--all", help="Handshakes, lists and pings too.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw it.")] = False,
    limit: Limit = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Counts, verdicts and latencies, and the top denials with their rule."""
    begin, now = micros(since), int(time.time() * 1e6)
    end = micros(until) or now + 1
    assert begin is not None
    if begin >= end:
        raise Problem("`--since` is not before `--until`", "give a time before it")
    with opened(db) as reader:
        from aegis_daemon.audit.rollup import HOUR
        from aegis_daemon.audit.totals import Filters, Total, denials, totals

        filters = Filters(agent=agent, backend=backend, tool=tool, nameless=every)
        try:
            found = totals(reader, by, begin, end, filters, patience_s=PATIENCE_S)
            refused = [] if as_json else denials(reader, begin, end, filters, patience_s=PATIENCE_S)
        except TimeoutError as error:
            raise Problem(str(error), "ask for less time with `--since` and `--until`") from None
    if by == "hour" and plot and not as_json and found:  # hours without a call in between are part of the picture
        seen = {total.start: total for total in found}
        first = max(found[0].start, found[-1].start - 24 * 31 * HOUR)
        found = [seen.get(start) or Total(start=start) for start in range(first, found[-1].start + 1, HOUR)]
    if limit is not None:
        found = found[-limit:] if by == "hour" else found[:limit]
    if as_json:
        emit([_flat(total, by) for total in found])
        return
    if plot:
        _plot(found, by)
    else:
        rows = [_row(total, by) for total in found]
        names = {"name": by if by != "policy" else "rule", "calls": "calls", "success": "ran", "error": "failed"}
        names |= {"denied": "refused", "unknown": "unknown", "pending": "waits", "would": "would be refused"}
        if by != "policy":
            names |= {"exec": "took", "queue": "queued", "approval": "for a person"}
        empty = "no call was recorded in that time"
        show(rows, names, (nobody(agent=agent, backend=backend) if db is None else "") or empty)
        if rows and by != "policy":
            say("times are p50 / p95 / p99: half of the calls, 95 and 99 of 100 took no longer")
    if refused and by != "policy":
        print("\ntop denials")
        show(
            [
                {
                    "calls": each.calls,
                    "stage": each.stage,
                    "rule": each.policy_id,
                    "what": f"{each.backend_id}.{each.tool_name}",
                    "agents": each.agents,
                    "would": each.would or None,
                }
                for each in refused
            ],
            {
                "calls": "calls",
                "stage": "stage",
                "rule": "rule",
                "what": "what",
                "agents": "agents",
                "would": "would be refused",
            },
            "",
        )


def _name(total: Total, by: str) -> str:
    if by == "hour":
        return local(datetime.fromtimestamp(total.start / 1e6, UTC).isoformat())[:16]
    if by == "tool":
        return f"{total.backend_id}.{total.tool_name}" if total.tool_name else f"{total.backend_id} (no tool)"
    if by == "policy":
        return f"{total.stage}: {total.policy_id}" if total.policy_id else total.stage
    return total.agent_id if by == "agent" else total.backend_id


def _flat(total: Total, by: str) -> dict[str, Any]:
    row = msgspec.to_builtins(total)
    keys = {
        "agent": ("agent_id",),
        "backend": ("backend_id",),
        "tool": ("backend_id", "tool_name"),
        "hour": ("start",),
        "policy": ("stage", "policy_id"),
    }[by]
    for name in ("agent_id", "backend_id", "tool_name", "stage", "policy_id", "start"):
        if name not in keys:
            del row[name]
    if by == "hour":
        row = {"hour": datetime.fromtimestamp(row.pop("start") / 1e6, UTC).isoformat().replace("+00:00", "Z"), **row}
    return dict(row)


def _row(total: Total, by: str) -> dict[str, Any]:
    from aegis_daemon.audit.telling import took

    row: dict[str, Any] = {"name": _name(total, by), "calls": total.calls}
    row |= {
        name: getattr(total, name) or None for name in ("success", "error", "denied", "unknown", "pending", "would")
    }
    for name in ("exec", "queue", "approval"):
        times = [getattr(total, f"{name}_p{percent}_us") for percent in (50, 95, 99)]
        row[name] = " / ".join(took(each) for each in times) if times[0] is not None else None
    return row


def _plot(found: Sequence[Total], by: str) -> None:
    """A bar for each group, its parts in the order of `KINDS`; the longest one takes the line."""
    if not found:
        say("no call was recorded in that time")
        return
    labels = [visible(_name(total, by), LABEL_MAX) for total in found]
    left = max(map(len, labels))
    most = max(total.calls for total in found)
    room = max(10, shutil.get_terminal_size((80, 24)).columns - left - len(f"{most:,}") - 4)
    colour = coloured(sys.stdout)
    for total, label in zip(found, labels, strict=True):
        parts = _shares([getattr(total, name) for name, *_ in KINDS], room, most)
        bar = "".join(
            f"\x1b[{code}m{sign * size}\x1b[0m" if colour and size else sign * size
            for (_, _, sign, code), size in zip(KINDS, parts, strict=True)
        )
        print(f"{label.ljust(left)}  {bar}{' ' * (room - sum(parts))}  {total.calls:,}".rstrip())
    print("  ".join(f"{sign} {word}" for _, word, sign, _ in KINDS))


def _shares(counts: Sequence[int], room: int, most: int) -> list[int]:
    """How many signs each part of a bar takes: whatever there is of has one at least."""
    parts = [max(1, round(room * count / most)) if count else 0 for count in counts]
    while sum(parts) > room:
        parts[parts.index(max(parts))] -= 1
    return parts
