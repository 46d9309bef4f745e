"""`aegis limits`: every window and every budget, how far it is used, and letting more calls through for once."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import USAGE, Problem, emit, instant, say, show, span, visible
from aegis_daemon.cli.decision import NOTE_MAX, moment, own_key
from aegis_daemon.cli.options import Agent, Backend, Json, Limit, Tool, new_app, none_left, pick, seconds
from aegis_daemon.core.units import parse_duration, short_duration

app = new_app(bare=True)
COLUMNS = {
    "scope": "scope",
    "agent_id": "agent",
    "backend_id": "backend",
    "tool": "tool",
    "counts": "counts",
    "used": "used",
    "more": "extra",
    "reserved": "under way",
    "window": "window",
    "retry": "next free",
}


@app.callback()
def limits(
    context: typer.Context,
    agent: Agent = None,
    backend: Backend = None,
    tool: Tool = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Limits and budgets, and how far they are used. `global` ones count all agents together."""
    if context.invoked_subcommand is not None:
        return
    rows = link.call("limits") + link.call("budgets")
    if agent is not None:  # a global window counts this agent's calls too
        rows = [row for row in rows if row["scope"] == "global"] + pick(
            (row for row in rows if row["scope"] == "agent"), agent=agent
        )
    # A budget over all backends counts this backend's calls, too.
    rows = [row for row in rows if row["backend_id"] == "*" or pick([row], backend=backend)]
    rows = pick(rows, tool=tool, limit=limit)
    if as_json:
        emit(rows)
        return
    shown = [
        {
            **row,
            "agent_id": row["agent_id"] or "all",
            "window": short_duration(parse_duration(row["window"])),
            **(_amounts(row) if row["kind"] == "budget" else _calls(row)),
        }
        for row in rows
    ]
    show(shown, COLUMNS, none_left("no limit and no budget is configured", agent=agent, backend=backend, tool=tool))


@app.command()
def grant(
    backend: Annotated[str, typer.Option("--backend", metavar="NAME", help="The limit's backend.")],
    tool: Annotated[str, typer.Option("--tool", metavar="NAME", help="The limit's tool.")],
    agent: Annotated[str | None, typer.Option("--agent", metavar="ID", help="The agent whose limit it is.")] = None,
    everybody: Annotated[bool, typer.Option("--global", help="The limit over all agents instead.")] = False,
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="How many calls more.")] = 1,
    lasts: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="At most, and without it, the limit's window.")
    ] = None,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Kept in the audit log.")] = "",
    as_json: Json = False,
) -> None:
    """Let more calls through than a limit says, for a while. It cannot be taken back, only run out."""
    if everybody == (agent is not None):
        raise Problem("say whose limit: `--agent ID`, or `--global`", "`aegis limits` lists them", USAGE)
    if len(note) > NOTE_MAX:
        raise Problem(f"the note has {len(note)} characters", f"{NOTE_MAX} are kept; shorten it", USAGE)
    row = link.call(
        "grant_quota",
        agent=agent,
        backend=backend,
        tool=tool,
        count=count,
        seconds=None if lasts is None else seconds("--for", lasts),
        note=note,
        key=own_key(),
    )
    most = row["max_count"] + row["extra"]
    until = moment(instant(row["until"]), time.time())
    whose = "all agents together" if agent is None else visible(agent)
    say(f"{whose}: {visible(tool)} on {visible(backend)} has {most} calls in its window until {until}")
    if as_json:
        emit(row)


def _calls(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "counts": "calls",
        "used": f"{row['current']}/{row['max_count']}",
        "more": f"+{row['extra']}" if row["extra"] else None,
        "retry": _next_free(row, row["current"] + row["reserved"] < row["max_count"] + row["extra"]),
    }


def _amounts(row: dict[str, Any]) -> dict[str, Any]:
    used, reserved, most = (Decimal(row[f"{name}_amount"]) for name in ("used", "reserved", "max"))
    return {
        "backend_id": "all" if row["backend_id"] == "*" else row["backend_id"],
        "counts": f"sum of {row['argument']}",
        "used": f"{row['used_amount']}/{row['max_amount']}",
        "more": None,
        "reserved": row["reserved_amount"],
        "retry": _next_free(row, used + reserved < most) if most else "never",
    }


def _next_free(row: dict[str, Any], room: bool) -> str:
    if room:
        return "now"
    after = row["retry_after_ms"]
    return "when a call ends" if after is None else f"in {span(after / 1000)}"
