"""`aegis grants`: approvals that are remembered, and ending them."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from aegis_daemon.cli import link, names
from aegis_daemon.cli.console import USAGE, Problem, compact, emit, instant, say, show, span, visible
from aegis_daemon.cli.decision import arguments, own_key, what
from aegis_daemon.cli.options import Agent, Backend, Json, Limit, Tool, new_app, none_left, pick

app = new_app(bare=True)
COLUMNS = {
    "id": "id",
    "agent_id": "agent",
    "what": "call",
    "shape": "arguments",
    "left": "ends in",
    "uses_left": "uses left",
    "by": "given by",
}


@app.callback()
def grants(
    context: typer.Context,
    agent: Agent = None,
    backend: Backend = None,
    tool: Tool = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Approvals that are remembered (`aegis approve ID --for 15m`). Without a command: the list."""
    if context.invoked_subcommand is None:
        _list(agent, backend, tool, limit, as_json)


@app.command("list")
def rows(
    agent: Agent = None, backend: Backend = None, tool: Tool = None, limit: Limit = None, as_json: Json = False
) -> None:
    """Approvals that are remembered, oldest first, and what they let through."""
    _list(agent, backend, tool, limit, as_json)


@app.command()
def revoke(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", autocompletion=names.grants, help="As `aegis grants list` shows them."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: Json = False,
) -> None:
    """End grants: from now on a person is asked again, also for calls that wait in a queue."""
    if everything == bool(ids):
        raise Problem("say which grants: some ids, or `--all`", "see `aegis grants list`", USAGE)
    found = link.call("revoke_grant", ids=ids or [], all=everything, key=own_key())
    for row in found:
        say(f"revoked {row['id']}: {visible(row['agent_id'])} {visible(what(row))}")
    if not found:
        say("no grant was left to revoke")
    if as_json:
        emit(found)


def _list(agent: str | None, backend: str | None, tool: str | None, limit: int | None, as_json: bool) -> None:
    found = pick(link.call("grants"), agent=agent, backend=backend, tool=tool, limit=limit)
    if as_json:
        emit(found)
        return
    now = time.time()
    shown = [
        {**row, "what": what(row), "shape": _shape(row), "left": span(instant(row["expires_at"]) - now)}
        for row in found
    ]
    servers = {"command": "server", "cwd": "directory"} if any(row.get("command") for row in shown) else {}
    empty = none_left("no approval is remembered", agent=agent, backend=backend, tool=tool)
    show(shown, {**COLUMNS, **servers}, empty)


def _shape(row: dict[str, Any]) -> str:
    """`repo = "a/x", title = anything`."""
    if "*" in row["free"]:
        return "anything"
    return ", ".join(
        f"{name} = " + ("anything" if name in row["free"] else compact(json.dumps(value)))
        for name, value in arguments(row).items()
    )
