"""`aegis agents`: which agents there are, which of their servers go through us, and wiring them, with a way back."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.agents import unwire, wire
from aegis_daemon.cli.agents.diff import shown_command
from aegis_daemon.cli.console import DONE, WRONG, Problem, emit, facts, local, say, show, visible
from aegis_daemon.cli.options import Json, Limit, OneClient, WiredAgent, new_app
from aegis_daemon.config.paths import Paths

app = new_app(bare=True)
app.command("wire")(wire.wire)
app.command("unwire")(unwire.unwire)
app.command("undo")(unwire.undo)
COLUMNS = {
    "agent_id": "agent",
    "client": "client",
    "server": "server",
    "state": "state",
    "backend_id": "backend",
    "file": "file",
    "why": "note",
}
GOOD = ("wired", "configured")
File = Annotated[str | None, typer.Option("--file", metavar="PATH", help="Only this file.")]


@app.callback()
def agents(context: typer.Context, file: File = None, client: OneClient = None, as_json: Json = False) -> int:
    """Agents, and which of their servers go through Aegis. Without a command: the list."""
    return _list(file, client, None, as_json) if context.invoked_subcommand is None else DONE


@app.command("list")
def rows(file: File = None, client: OneClient = None, limit: Limit = None, as_json: Json = False) -> int:
    """Every server entry of every client that is found, with its state, and the agents of the configuration.

    The exit code is 1 where a wired entry is stale, drifted or missing, or a file that was asked for is not understood.
    """
    return _list(file, client, limit, as_json)


@app.command("show")
def one(agent: WiredAgent, as_json: Json = False) -> int:
    """One agent: its entries, where their copies are, and what the configuration lets it do."""
    paths = link.paths()
    found = [row for row in _rows(paths, None, None)[0] if agent in (row["agent_id"], row["client"])]
    if not found:
        raise Problem(f"no agent or client `{visible(agent, 60)}` is found", "`aegis agents list` shows them")
    config = agents_files.settings(paths)
    access = config.agents[agent].backends if config is not None and agent in config.agents else {}
    for row in found:
        rule = access.get(row["backend_id"] or "")
        row["allowed"] = None if rule is None else rule.allowed
        row["asks"] = [] if rule is None else list(rule.approval_required)
    if as_json:
        emit(found)
        return _code(found)
    for row in found:
        if row["server"] is None:
            facts([("agent", f"{visible(agent)}: configured, and no entry of a client leads to it")])
            continue
        rule = "no rule lets it in" if not row["allowed"] else "allowed"
        asks = f"; waits for a person: {visible(', '.join(row['asks']), 200)}" if row["asks"] else ""
        facts(
            [
                (visible(row["server"]), row["state"] + (f": {visible(row['why'])}" if row["why"] else "")),
                ("  file", visible(row["file"])),
                ("  starts", visible(row["command"] or "-", 300)),
                *([("  backend", f"{visible(row['backend_id'])}: {rule}{asks}")] if row["backend_id"] else []),
                *([("  wired", local(row["wired_at"]))] if row["wired_at"] else []),
                *([("  copy", visible(row["backup"]))] if row["backup"] else []),
            ]
        )
    return _code(found)


def _list(file: str | None, client: str | None, limit: int | None, as_json: bool) -> int:
    if file is not None and not os.path.exists(file):
        raise Problem(f"there is no file `{visible(file, 200)}`", "`aegis agents list` without it shows every client's")
    found, faults = _rows(link.paths(), file, client)
    code = WRONG if faults and (file is not None or client is not None) else _code(found)
    if as_json:
        emit(found[:limit])
    else:
        empty = "no client with servers was found, and no agent is configured"
        if file is not None or client is not None:
            empty = f"{visible(file or client or '', 200)} has no servers"
        show(found[:limit], COLUMNS, empty)
        loose = sum(row["state"] in ("unwired", "foreign", "unclear") for row in found)
        if loose:
            say(f"{loose} {'entry does' if loose == 1 else 'entries do'} not go through Aegis: `aegis agents wire`")
    for fault in faults:
        say(f"warning: {fault}")
    return code


def _code(found: list[dict[str, Any]]) -> int:
    return WRONG if any(row["state"] in ("stale", "drifted", "missing") for row in found) else DONE


def _rows(paths: Paths, file: str | None, client: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Flat rows, and what is to be said of files that are not understood."""
    from datetime import UTC, datetime

    have = agents_files.known(paths)
    config = agents_files.settings(paths)
    place = agents_files.here(paths, agents_files.status(), config)
    targets = agents_files.targets(have, file=file, client=client)
    found: list[dict[str, Any]] = []
    for target in targets:
        row = have.file(target.path)
        backup = row.backup if row is not None else ""
        for one in agents_files.states(target, place, have):
            record, ours = one.record, one.ours
            at = datetime.fromtimestamp(record.at, UTC).isoformat(timespec="seconds") if record is not None else ""
            found.append(
                {
                    "agent_id": ours.agent if ours else record.agent if record else None,
                    "client": target.client.id,
                    "client_name": target.client.name,
                    "server": one.name,
                    "state": one.state,
                    "governed": one.governed and one.state != "stale",
                    "backend_id": (ours.backend if ours else record.backend if record else None) or None,
                    "file": target.path,
                    "scope": target.scope,
                    "why": one.why,
                    "kind": one.entry.kind if one.entry is not None else None,
                    "disabled": one.entry.disabled if one.entry is not None else None,
                    "command": shown_command(one.entry) if one.entry is not None else None,
                    "wired_at": at.replace("+00:00", "Z") or None,
                    "backup": backup or None,
                    "configured": None,
                }
            )
        if target.fault and not have.of(target.path):
            found.append(_bare_row(target.client, target.path, "unreadable", target.fault))
    configured = config.agents if config is not None else {}
    for one_row in found:
        one_row["configured"] = one_row["agent_id"] in configured
        if config is not None and one_row["state"] == "wired" and not one_row["configured"]:
            one_row["why"] = "the configuration does not know this agent: `aegis setup`"
    if file is None and client is None:
        named = {row["agent_id"] for row in found}
        found += [_bare_row(None, None, "configured", "", agent) for agent in configured if agent not in named]
    order = {state: at for at, state in enumerate(("missing", "drifted", "stale", "unclear", "unreadable"))}
    found.sort(key=lambda row: order.get(row["state"], len(order)))
    return found, agents_files.faults(targets)


def _bare_row(client: Any, file: str | None, state: str, why: str, agent: str | None = None) -> dict[str, Any]:
    return {
        "agent_id": agent, "client": client.id if client else None, "client_name": client.name if client else None,
        "server": None, "state": state, "governed": None, "backend_id": None, "file": file, "scope": None, "why": why,
        "kind": None, "disabled": None, "command": None, "wired_at": None, "backup": None,
        "configured": agent is not None,
    }  # fmt: skip
