"""`aegis agents wire`: entries of clients are put through Aegis once a person has seen how, and each is tried first."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.agents.configuration import config_back, configure
from aegis_daemon.cli.agents.diff import difference
from aegis_daemon.cli.agents.doing import carry_out
from aegis_daemon.cli.agents.planning import ID, Row, Work, missing, planned, show_changes, usable
from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, confirm, emit, interactive, say, visible
from aegis_daemon.cli.decision import guard, guard_named
from aegis_daemon.cli.options import Json, OneClient
from aegis_daemon.clients import wiring
from aegis_daemon.clients.plans import Left, Plan


def wire(
    file: Annotated[
        str | None, typer.Option("--file", metavar="PATH", help="Only this file; its format is told by what it holds.")
    ] = None,
    client: OneClient = None,
    server: Annotated[
        list[str] | None, typer.Option("--server", metavar="NAME", help="Only this entry; repeat it for several.")
    ] = None,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="ID", help="The agent's id; else the client's own.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask; where a person would decide, nothing is replaced.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the changes and make none.")] = False,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Start each entry before its file changes.")] = True,
    as_json: Json = False,
) -> int:
    """Put servers of clients through Aegis: shows each change first, keeps a copy, and tries what it writes.

    Without an option it takes every entry of the user's own files. A second run changes nothing. `aegis agents undo`
    takes it back. The exit code is 1 where an entry could not be wired.
    """
    if not (yes or dry_run or interactive()):
        raise Problem("`aegis agents wire` asks on a terminal, and this is none", "pass `--yes`, or `--dry-run`", USAGE)
    if agent is not None and not ID.fullmatch(agent):
        raise Problem(f"`{visible(agent, 60)}` cannot be an agent's id", "use letters, digits, `-`, `_` or `.`", USAGE)
    paths = link.paths()
    guard("wire")
    have = agents_files.known(paths)
    status = agents_files.status()
    config = agents_files.settings(paths)
    work = Work(paths, agents_files.here(paths, status, config), have, wiring.new_change())
    found = agents_files.targets(have, file=file, client=client)
    if file is None:
        found, shared = (
            [one for one in found if one.scope != "project"],
            [one for one in found if one.scope == "project"],
        )
        for one in shared:
            said = "is a project's, and others may have it too: wire it with `--file` if it is yours alone"
            say(f"{visible(one.path)} {said}")
    faults = usable(found, file, client)
    names = set(server) if server else None
    for target in found:
        if target.document is not None:
            work.plans.append(planned(work, target, agent or target.client.id, names, config, ask=not (yes or dry_run)))
    missing(names, work.plans, found)
    guard_named(work.paths, work.plans, "wire")
    configure(work)
    left = [(plan, one) for plan in work.plans for one in plan.left]
    rows = [Row(change, plan) for plan in work.plans for change in plan.changes]
    show_changes(work, rows, left, as_json=as_json)
    failed = bool(faults and names is None) or any(not one.meant for _, one in left)
    if not rows:
        say("nothing to wire" + (": every entry that was found is wired" if not left else ""))
    elif not dry_run:
        if not yes and not confirm("make these changes?"):
            raise typer.Abort
        try:
            failed = not carry_out(work, rows, probe=probe, ask=not yes) or failed
        except BaseException:
            if not any(row.wired for row in rows):
                config_back(work)
            raise
    for fault in faults:
        say(f"warning: {fault}")
    if as_json:
        emit([_row(row, work) for row in rows] + [_left_row(plan, one) for plan, one in left])
    return WRONG if failed else DONE


def _row(row: Row, work: Work) -> dict[str, Any]:
    change, plan = row.change, row.plan
    return {
        "agent_id": change.agent, "backend_id": change.backend, "client": plan.client.id, "file": plan.path,
        "server": change.name, "state": "wired" if row.wired else change.state, "changed": row.wired,
        "diff": "\n".join(difference(change.keys, change.before, change.after)), "why": row.why or change.note,
        "tried": row.tried is not None and row.tried.tried, "works": row.tried.ok if row.tried is not None else None,
        "tools": row.tried.tools if row.tried is not None and row.tried.ok else None,
        "reload": plan.client.reload, "change": work.change,
    }  # fmt: skip


def _left_row(plan: Plan, one: Left) -> dict[str, Any]:
    return {
        "agent_id": None, "backend_id": None, "client": plan.client.id, "file": plan.path, "server": one.name,
        "state": one.state, "changed": False, "diff": "", "why": one.why, "tried": False, "works": None, "tools": None,
        "reload": "", "change": None,
    }  # fmt: skip
