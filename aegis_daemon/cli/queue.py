"""`aegis queue`: who waits for a backend's turn, and giving a place up."""

from __future__ import annotations

import typer

from aegis_daemon.cli import link, names
from aegis_daemon.cli.console import emit, say, show, span, visible
from aegis_daemon.cli.options import Agent, Backend, Json, Limit, Tool, new_app, none_left, pick

app = new_app(bare=True)
COLUMNS = {
    "backend_id": "backend",
    "position": "place",
    "state": "state",
    "agent_id": "agent",
    "tool_name": "tool",
    "waited": "waited",
    "starts": "starts in",
    "call_id": "call",
}


@app.callback()
def queue(
    context: typer.Context,
    agent: Agent = None,
    backend: Backend = None,
    tool: Tool = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Calls in the backends' queues. Without a command: the list."""
    if context.invoked_subcommand is None:
        _list(agent, backend, tool, limit, as_json)


@app.command("list")
def rows(
    agent: Agent = None, backend: Backend = None, tool: Tool = None, limit: Limit = None, as_json: Json = False
) -> None:
    """Calls in the backends' queues, in order; `held` ones wait for a person first."""
    _list(agent, backend, tool, limit, as_json)


@app.command()
def cancel(
    call_id: str = typer.Argument(
        metavar="CALL_ID", autocompletion=names.queued, help="As `aegis queue list` shows it."
    ),
) -> None:
    """Give a queued call up; its agent is told. A call that runs already cannot be called back."""
    found = [row for row in link.call("pending") if row["call_id"].startswith(call_id)]
    link.call("cancel_queued", call_id=call_id)
    say(f"cancelled {visible(call_id)}")
    for ticket in found:
        say(f"its ticket {ticket['id']} stays: approved, the agent may make the same call once more; "
            f"`aegis reject {ticket['id']}` ends it")  # fmt: skip


def _list(agent: str | None, backend: str | None, tool: str | None, limit: int | None, as_json: bool) -> None:
    found = pick(link.call("queue"), agent=agent, backend=backend, tool=tool, limit=limit)
    if as_json:
        emit(found)
        return
    shown = [
        {
            **row,
            "waited": span(row["waited_ms"] / 1000),
            "starts": None if row["starts_in_ms"] is None else span(row["starts_in_ms"] / 1000),
        }
        for row in found
    ]
    show(shown, COLUMNS, none_left("every queue is empty", agent=agent, backend=backend, tool=tool))
