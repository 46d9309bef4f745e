"""`aegis agents unwire` and `undo`: the wrapper goes, and the client's file is what it was, byte for byte where it can.

Where somebody has changed the file since, only our entries change, and what was edited in them stays.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.agents.diff import difference
from aegis_daemon.cli.agents.files import Target
from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, emit, interactive, say, visible
from aegis_daemon.cli.decision import guard, guard_named
from aegis_daemon.cli.editing import show_difference
from aegis_daemon.cli.options import Json, OneClient, Undoable
from aegis_daemon.clients import files, wiring
from aegis_daemon.clients.ledger import Ledger, Record
from aegis_daemon.clients.plans import Change, Left, Plan, plan_unwire
from aegis_daemon.config.paths import Paths
from aegis_daemon.manage.client import Refused

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the changes and make none.")]


def unwire(
    file: Annotated[str | None, typer.Option("--file", metavar="PATH", help="Only this file.")] = None,
    client: OneClient = None,
    server: Annotated[
        list[str] | None, typer.Option("--server", metavar="NAME", help="Only this entry; repeat it for several.")
    ] = None,
    agent: Annotated[str | None, typer.Option("--agent", metavar="ID", help="Only entries of this agent.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Take Aegis out of servers of clients, those too that were wired by hand: they run without it from then on."""
    paths = _begin("unwire", yes=yes, dry_run=dry_run)
    have = agents_files.known(paths)
    found = agents_files.targets(have, file=file, client=client)
    names = set(server) if server else None
    plans = [_plan(one, have, names=names, agent=agent) for one in found if one.document is not None]
    plans += [_gone(one, have) for one in found if one.data is None and _wired(have.of(one.path), names, agent)]
    if file is not None and found[0].fault:
        raise Problem(f"`{found[0].path}` is left as it is: {found[0].fault}", "mend the file, or name another")
    named = client is not None
    faults = agents_files.faults(one for one in found if named or _wired(have.of(one.path), names, agent))
    warnings = [fault for fault in agents_files.faults(found) if fault not in faults]
    return _run(paths, plans, faults, warnings, yes=yes, dry_run=dry_run, as_json=as_json)


def unwire_all(*, dry_run: bool) -> int:
    """The same for everything, without asking, as rows. Of a project's file, which may be anybody's, what we wired."""
    paths = _begin("unwire", yes=True, dry_run=dry_run)
    have = agents_files.known(paths)
    found = agents_files.targets(have)
    plans = []
    for one in found:
        mine = {record.name for record in have.of(one.path)}
        if one.document is not None and (mine or one.scope != "project"):
            plans.append(_plan(one, have, names=mine if one.scope == "project" else None))
    faults = agents_files.faults(one for one in found if have.of(one.path))
    warnings = [fault for fault in agents_files.faults(found) if fault not in faults]
    return _run(paths, plans, faults, warnings, yes=True, dry_run=dry_run, as_json=True)


def _wired(records: tuple[Record, ...], names: set[str] | None, agent: str | None) -> bool:
    """Whether any of these is meant."""
    return any((names is None or one.name in names) and (agent is None or one.agent == agent) for one in records)


def undo(
    id: Undoable = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that was ever wired.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> int:
    """Take back what `aegis agents wire` or `aegis setup` did: byte for byte where the file is untouched since."""
    if id is not None and everything:
        raise Problem("an id and `--all` together", "give one of them", USAGE)
    paths = _begin("undo", yes=yes, dry_run=dry_run)
    have = agents_files.known(paths)
    if not have.records:
        say("nothing is wired, so there is nothing to take back")
        if as_json:
            emit([])
        return DONE
    changes, agent = _meant(have, id, everything=everything)
    touched = {
        one.file
        for one in have.records
        if (changes is None or not one.runs.isdisjoint(changes)) and (agent is None or one.agent == agent)
    }
    found = [one for one in agents_files.targets(have) if one.path in touched]
    plans = [
        _plan(one, have, changes=changes, agent=agent) if one.document is not None else _gone(one, have)
        for one in found
        if one.document is not None or one.data is None
    ]
    return _run(paths, plans, agents_files.faults(found), [], yes=yes, dry_run=dry_run, as_json=as_json)


def _begin(word: str, *, yes: bool, dry_run: bool) -> Paths:
    if not (yes or dry_run or interactive()):
        raise Problem(
            f"`aegis agents {word}` asks on a terminal, and this is none", "pass `--yes`, or `--dry-run`", USAGE
        )
    guard("unwire")
    return link.paths()


def _meant(have: Ledger, id: str | None, *, everything: bool) -> tuple[set[str] | None, str | None]:
    """The runs and the agent that are meant; None for any. Raises `Problem`."""
    if everything:
        return None, None
    if id is None:
        last = max(have.records, key=lambda one: one.at)
        return {last.again or last.change}, None
    if any(id in one.runs for one in have.records):
        return {id}, None
    if any(one.agent == id for one in have.records):
        return None, id
    raise Problem(f"nothing of `{visible(id, 60)}` is wired", "`aegis agents list` shows what is")


def _plan(target: Target, have: Ledger, **which: Any) -> Plan:
    assert target.data is not None
    return plan_unwire(target.client, target.path, target.data, have, **which)


def _gone(target: Target, have: Ledger) -> Plan:
    """A file that is not there any more: there is nothing to put back, and nothing to remember."""
    records = have.of(target.path)
    left = tuple(Left(one.name, one.keys, "missing", "the file is gone") for one in records)
    return Plan(target.path, target.client, b"", b"", left=left, forget=tuple(one.ident for one in records))


def _run(
    paths: Paths, plans: list[Plan], faults: list[str], warnings: list[str], *, yes: bool, dry_run: bool, as_json: bool
) -> int:
    """`faults` are of files that hold what was asked for, `warnings` of others."""
    guard_named(paths, plans, "unwire")
    rows: list[dict[str, Any]] = []
    code = WRONG if faults else DONE
    moving = [plan for plan in plans if plan.changed]
    for plan in plans:
        _show(plan, as_json=as_json)
        code = WRONG if any(one.state != "missing" for one in plan.left) else code
    if not moving:
        say("nothing of these files goes through Aegis")
    elif not dry_run and not yes and not typer.confirm("make these changes?", default=False, err=True):
        raise typer.Abort
    for plan in plans:
        why, copy = "", ""
        if plan in moving and not dry_run:
            why, copy = _write(paths, plan)
            code = WRONG if why else code
        done = not dry_run and plan in moving and not why
        every: list[Change | Left] = [*plan.changes, *plan.left]
        rows += [_row(plan, one, done=done, why=why, copy=copy) for one in every]
    for fault in (*warnings, *faults):
        say(f"warning: {fault}")
    if as_json:
        emit(rows)
    return code


def _show(plan: Plan, *, as_json: bool) -> None:
    if plan.exact:
        say(f"{plan.client.name}, {visible(plan.path)}: becomes what it was, byte for byte")
    for change in plan.changes:
        note = f" ({visible(change.note)})" if change.note else ""
        say(f"{plan.client.name}, {visible(plan.path)}: `{visible(change.name)}` goes without Aegis{note}")
        if not as_json:
            show_difference(difference(change.keys, change.before, change.after))
    for one in plan.left:
        say(f"{visible(plan.path)}: `{visible(one.name)}`: {visible(one.why)}")


def _write(paths: Paths, plan: Plan) -> tuple[str, str]:
    """Why it could not be written, "" where it was, and the copy of what was there."""
    try:
        copy = _forget(paths, plan) if not plan.before else wiring.apply(plan, paths.state_dir)
    except files.Moved:
        why = "the file was changed meanwhile; nothing was done to it: repeat it"
    except (OSError, files.Unfit) as error:
        why = f"the file cannot be written, and is as it was: {error}"
    else:
        if copy:
            say(f"changed {visible(plan.path)}; as it was, it is kept in {visible(copy)}")
        if plan.changes and plan.client.reload:
            say(f"now, in {plan.client.name}: {plan.client.reload}")
        names = ", ".join(dict.fromkeys((*(one.name for one in plan.changes), *(name for _, name in plan.forget))))
        with suppress(Refused):
            if names:
                guard("unwire", f"{names} in {plan.path}")
        return "", copy
    say(f"{visible(plan.path)}: {visible(why)}")
    return why, ""


def _forget(paths: Paths, plan: Plan) -> str:
    """Drops a file that is gone from the ledger."""
    if os.path.lexists(plan.path):
        raise files.Moved(plan.path)
    wiring.forget(paths.state_dir, plan.path)
    return ""


def _row(plan: Plan, one: Change | Left, *, done: bool, why: str, copy: str) -> dict[str, Any]:
    changed = isinstance(one, Change)
    return {
        "agent_id": one.agent if isinstance(one, Change) else None,
        "backend_id": one.backend if isinstance(one, Change) else None,
        "client": plan.client.id,
        "file": plan.path,
        "server": one.name,
        "state": "unwired" if changed and done else one.state,
        "changed": changed and done,
        "exact": plan.exact,
        "diff": "\n".join(difference(one.keys, one.before, one.after)) if isinstance(one, Change) else "",
        "why": why or (one.note if isinstance(one, Change) else one.why),
        "backup": copy or None,
        "reload": plan.client.reload if changed else "",
    }
