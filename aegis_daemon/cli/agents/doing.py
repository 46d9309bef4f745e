"""What was planned is done, and each new entry is tried first.

In this order, so that at no moment a client has an entry that cannot start: the configuration learns of the agent and
the server, the new entry is really started, and only then the client's file changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.agents.configuration import config_back, write_config
from aegis_daemon.cli.agents.planning import Row, Work
from aegis_daemon.cli.console import Problem, confirm, say, visible
from aegis_daemon.cli.decision import guard
from aegis_daemon.clients import documents, entries, files, plans, trial, wiring
from aegis_daemon.clients.plans import Change, Choice, Plan
from aegis_daemon.manage.client import Refused

if TYPE_CHECKING:
    from aegis_daemon.clients.catalog import Client


def carry_out(work: Work, rows: list[Row], *, probe: bool, ask: bool, after: Callable[[], None] = lambda: None) -> bool:
    """Whether everything was wired. `after` is called once all were tried, before any client's file changes."""
    write_config(work)
    good = True
    if probe:
        run_daemon(work)
        _try(work, rows)
    after()
    dropped: dict[str, set[documents.Path]] = {}
    for row in rows:
        if row.tried is None or row.tried.ok or not row.tried.tried:
            continue
        if ask and confirm(f"wire `{visible(row.change.name)}` all the same?"):
            continue
        row.why = row.tried.detail
        dropped.setdefault(row.plan.path, set()).add(row.change.keys)
        good = False
    for plan in work.plans:
        if plan.changes:
            good = _write(work, plan, rows, dropped.get(plan.path, set())) and good
    done = [row for row in rows if row.wired]
    if not done:
        config_back(work)
        say("nothing was wired; the configuration is as it was")
        return False
    with suppress(Refused):
        guard("wire", "; ".join(f"{row.change.name} of {row.change.agent} in {row.plan.path}" for row in done))
    _next_steps(work, done)
    return good


def run_daemon(work: Work) -> None:
    """A daemon that cannot start says here why, rather than to each client. Raises `Problem`; the file is as it was."""
    from aegis_daemon.cli.daemon.commands import start

    if work.paths.doors:
        return  # the system's, which is not ours to start
    try:
        start()
    except Problem:
        config_back(work)
        raise


def _try(work: Work, rows: list[Row]) -> None:
    """Starts what the clients would start, as their files will say it, several at a time."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    jobs = []
    gone = Event()
    config = agents_files.settings(work.paths)
    for row in rows:
        entry = _as_read(row.plan.client, row.plan.after, row.change)
        if entry is None or entry.disabled:
            row.tried = trial.Trial(False, "it is switched off", tried=False)
            continue
        cwd = os.path.dirname(row.plan.path) if os.path.dirname(row.plan.path).startswith(os.getcwd()) else None
        jobs.append((row, entry, cwd, row.plan.client.env_syntax))
    say(f"starting {len(jobs)} {'entry' if len(jobs) == 1 else 'entries'} as the clients would …")
    with ThreadPoolExecutor(4) as pool:
        futures = [
            (row, pool.submit(trial.try_entry, entry, os.environ, cwd, syntax, trial.patience(entry), gone.is_set))
            for row, entry, cwd, syntax in jobs
        ]
        for row, future in futures:
            try:
                row.tried = future.result()
            except KeyboardInterrupt:
                gone.set()
                pool.shutdown(cancel_futures=True)
                raise
            if row.tried.ok and row.tried.detail and not _nothing_allowed(config, row.change):
                row.tried = replace(row.tried, ok=False)
            told = f"works, {row.tried.tools} tools" if row.tried.ok else f"does not work: {row.tried.detail}"
            told = told if row.tried.tried else f"was not tried: {row.tried.detail}"
            say(f"  {visible(row.change.name)} {visible(told)}")


def _nothing_allowed(config: Any, change: Change) -> bool:
    """Whether an agent is to see no tool of a server."""
    agent = None if config is None else config.agents.get(change.agent)
    rule = None if agent is None else agent.backends.get(change.backend)
    return rule is not None and (not rule.allowed or rule.tool_allowlist == () or "*" in rule.tool_denylist)


def _as_read(client: Client, data: bytes, change: Change) -> entries.Entry | None:
    document = documents.parse(data, client.format)
    return next((one for one in entries.read(client, document) if one.path == change.keys), None)


def _applied(work: Work, plan: Plan, rows: list[Row]) -> str:
    """As `wiring.apply`; an interrupt that comes when the file is changed leaves its rows as wired, as they are."""
    try:
        return wiring.apply(plan, work.paths.state_dir, change=work.change)
    except KeyboardInterrupt:
        with suppress(OSError, files.Unfit):
            if plan.moves and files.read(plan.path) == plan.after:
                for row in rows:
                    row.wired = True
        raise


def _write(work: Work, plan: Plan, rows: list[Row], dropped: set[documents.Path]) -> bool:
    """Whether the file of a plan was written, without the entries that did not work."""
    mine = [row for row in rows if row.plan is plan and row.change.keys not in dropped]
    if dropped:
        agent = plan.changes[0].agent
        if not mine:
            return False
        plan = plans.plan_wire(
            plan.client, plan.path, plan.before, work.here, work.have, agent=agent, change=work.change,
            backends={row.change.keys: row.change.backend for row in mine}, names={row.change.keys for row in mine},
            choices={row.change.name: again(row) for row in mine},
        )  # fmt: skip
    try:
        copy = _applied(work, plan, mine)
    except files.Moved:
        why = "the file was changed meanwhile; nothing was done to it: repeat it"
    except (OSError, files.Unfit) as error:
        why = f"the file cannot be written, and is as it was: {error}"
    else:
        for row in mine:
            row.wired = True
        kept = f"; as it was, it is kept in {visible(copy)}" if copy else ""
        say(f"changed {visible(plan.path)}{kept}")
        return True
    for row in mine:
        row.why = why
    say(f"{visible(plan.path)}: {visible(why)}")
    return False


def again(row: Row) -> Choice:
    """The choice by which this change came to be."""
    return "adopt" if row.change.before == row.change.after or row.change.state == "foreign" else "replace"


def _next_steps(work: Work, done: list[Row]) -> None:
    for client in {row.plan.client.id: row.plan.client for row in done}.values():
        if client.reload:
            say(f"now, in {client.name}: {client.reload}")
    if work.edits:
        agents = ", ".join(sorted({visible(row.change.agent) for row in done}))
        say(f"each tool call of {agents} waits for a person: `aegis pending`, `aegis approve ID`")
        say("`aegis setup` proposes rules for each tool; what was done is taken back with `aegis agents undo`")
    else:
        say("take it back with `aegis agents undo`")
