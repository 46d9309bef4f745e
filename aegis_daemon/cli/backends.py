"""`aegis backends`: the servers behind Aegis, what goes on there, and whether one answers when it is opened."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import typer

from aegis_daemon.cli import link, names
from aegis_daemon.cli.console import DONE, WRONG, complain, emit, facts, show, visible
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.options import Agent, Backend, Json, Limit, new_app, pick

app = new_app(bare=True)
COLUMNS = {
    "backend_id": "backend",
    "kind": "kind",
    "address": "address",
    "health": "health",
    "sessions": "sessions",
    "in_lane": "lane",
    "pins_changed": "changed",
    "used_by": "agents",
}
NONE = "no backend is configured; `aegis setup` or `aegis agents wire` adds those of your agents"


@app.callback()
def backends(
    context: typer.Context, agent: Agent = None, backend: Backend = None, limit: Limit = None, as_json: Json = False
) -> int:
    """MCP servers behind Aegis. Without a command: the list."""
    return _list(agent, backend, limit, as_json) if context.invoked_subcommand is None else DONE


@app.command("list")
def rows(agent: Agent = None, backend: Backend = None, limit: Limit = None, as_json: Json = False) -> int:
    """Each backend: where it is, its health, what goes on there, and who may use it; 1 when one is unwell."""
    return _list(agent, backend, limit, as_json)


@app.command()
def probe(
    name: str = typer.Argument(metavar="NAME", autocompletion=names.backends, help="As the configuration names it."),
    as_json: Json = False,
) -> int:
    """Open a backend as the daemon does for a session, and say what it is; nothing of it is called. 1 if that fails."""
    found = link.call("probe_backend", name=name, key=own_key())
    if as_json:
        emit(found)
    elif not found["ok"]:
        complain(
            f"`{visible(name, 60)}` does not serve: {visible(found['detail'], 500)}",
            "`aegis logs` has what it wrote, `aegis config show` how it is reached",
        )
    else:
        server = " ".join(visible(found[field]) for field in ("server_name", "server_version") if found[field])
        facts(
            [
                (visible(name), f"answers, {found['latency_ms']} ms after it was asked for"),
                ("server", server or "does not say its name"),
                ("protocol", f"{visible(found['protocol_version'])} ({found['era']} era)"),
                ("tools", f"{found['tools']}{' and more' if found['more'] else ''}, listed in {found['tools_ms']} ms"),
            ]
        )
    return DONE if found["ok"] else WRONG


def _list(agent: str | None, backend: str | None, limit: int | None, as_json: bool) -> int:
    found = [
        row
        for row in pick(link.call("backends"), backend=backend)
        if agent is None or any(fnmatchcase(one, agent) for one in row["agents"])
    ][:limit]
    if as_json:
        emit(found)
    else:
        show([{**row, "in_lane": _lane(row), "used_by": ", ".join(row["agents"])} for row in found], COLUMNS, NONE)
    return WRONG if any(row["health"].startswith("unhealthy") for row in found) else DONE


def _lane(row: dict[str, Any]) -> str:
    return f"{row['running']} running, {row['waiting']} waiting" if row["lane"] else "none"
