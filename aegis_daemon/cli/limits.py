"""`aegis limits`: every window, and how far it is used."""

from __future__ import annotations

from typing import Any

from aegis_daemon.cli import link
from aegis_daemon.cli.console import emit, show, span
from aegis_daemon.cli.options import Agent, Backend, Json, Limit, Tool, new_app, pick

app = new_app()
COLUMNS = {
    "scope": "scope",
    "agent_id": "agent",
    "backend_id": "backend",
    "tool": "tool",
    "used": "used",
    "reserved": "under way",
    "window": "window",
    "retry": "next free",
}


@app.command()
def limits(
    agent: Agent = None, backend: Backend = None, tool: Tool = None, limit: Limit = None, as_json: Json = False
) -> None:
    """Limits and how far they are used. `global` ones count all agents together."""
    rows = link.call("limits")
    if agent is not None:  # a global window counts this agent's calls too
        rows = [row for row in rows if row["scope"] == "global"] + pick(
            (row for row in rows if row["scope"] == "agent"), agent=agent
        )
    rows = pick(rows, backend=backend, tool=tool, limit=limit)
    if as_json:
        emit(rows)
        return
    shown = [
        {
            **row,
            "agent_id": row["agent_id"] or "all",
            "used": f"{row['current']}/{row['max_count']}",
            "retry": _next_free(row),
        }
        for row in rows
    ]
    show(shown, COLUMNS, "no limit is configured")


def _next_free(row: dict[str, Any]) -> str:
    if row["current"] + row["reserved"] < row["max_count"]:
        return "now"
    after = row["retry_after_ms"]
    return "when a call ends" if after is None else f"in {span(after / 1000)}"
