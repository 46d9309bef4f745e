"""All of it is shown before any is done, and an interrupt before a client's file has changed leaves nothing changed."""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aegis_daemon.cli import link
from aegis_daemon.cli.agents import configuration, doing, planning
from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.console import DONE, WRONG, Problem, confirm, emit, heading, say, visible
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.editing import show_difference, written
from aegis_daemon.cli.setup import addresses, rules
from aegis_daemon.cli.setup.questions import tell
from aegis_daemon.manage.client import DaemonAway, Refused

if TYPE_CHECKING:
    from aegis_daemon.cli.agents.files import Target
    from aegis_daemon.cli.agents.planning import Work
    from aegis_daemon.cli.setup.finding import Found


def done(found: Found, *, asks: bool, dry_run: bool, as_json: bool) -> int:
    """Shows what is to be done, does it where that is agreed to, and gives the exit code."""
    work = found.work
    rows = [planning.Row(change, plan) for plan in work.plans for change in plan.changes]
    for fault in found.faults:
        tell(f"warning: {fault}")
    if not rows and work.config_new != work.config_old:
        from aegis_daemon.config.edit import difference

        heading(f"in {visible(work.paths.config)}{'' if work.config_old else ' (new)'}:", as_json=as_json)
        if not as_json:
            show_difference(difference(work.config_old.decode(), work.config_new.decode()))
    brief = not asks and not dry_run
    planning.show_changes(work, rows, found.left, brief=brief, as_json=as_json)
    if brief and rows:
        tell("`--dry-run` shows each line before it is written, `--json` what became of each tool")
    for line in found.kept:
        tell(line)
    silent = [path for path in found.paths if path.offer is not None and not path.offer.ok and path.offer.asked]
    failed = bool((found.faults and found.named) or silent) or any(not one.meant for _, one in found.left)
    anything = bool(rows) or work.config_new != work.config_old
    if not anything:
        tell("nothing to do: what can be set up is set up" if not failed else "nothing was changed")
    elif dry_run:
        _by_hand(found)
        tell("nothing was changed: this was `--dry-run`")
    else:
        if asks and not confirm("make these changes?"):
            tell("nothing was changed")
            return WRONG
        failed = not _made(found, rows) or failed
    if anything:
        for fault in found.faults:  # far above by now
            tell(f"warning: {fault}")
    if as_json:
        emit(_json(found, rows))
    return WRONG if failed else DONE


def _made(found: Found, rows: list[planning.Row]) -> bool:
    """Whether all of it was done. An interrupt before a client's file has changed leaves nothing changed."""
    work = found.work
    ran = link.running() is not None
    try:
        if rows:
            after = functools.partial(_compared, found, rows)
            good = doing.carry_out(work, rows, probe=True, ask=False, after=after)
        else:
            configuration.write_config(work)
            doing.run_daemon(work)
            _compared(found, rows)
            good = True
    except BaseException:
        if not any(row.wired for row in rows):
            configuration.config_back(work)
            if not ran:
                _stopped(work)
        raise
    if rows and not any(row.wired for row in rows) and not ran:
        _stopped(work)
    _next_steps(found, rows)
    return good


def _compared(found: Found, rows: list[planning.Row]) -> None:
    """A tool that is not at the trial what its server said before waits for a person, whatever was proposed for it.

    From the trial on the daemon knows what each tool is, and notices by itself when that changes.
    """
    from aegis_daemon.clients import trial
    from aegis_daemon.onboarding.probe import unlike
    from aegis_daemon.onboarding.proposal import distrusted

    work = found.work
    if work.here.isolated:
        return  # no rules were written
    tried = {id(row.change): row.tried for row in rows}
    told: dict[str, None] = {}
    for path in found.paths:
        if path.offer is None or not any(row.action != "deny" for row in path.rows):
            continue
        said = tried.get(id(path.change)) if path.change is not None else None
        if path.change is None and path.entry is not None:
            cwd, syntax = (path.server.cwd, path.server.syntax) if path.server is not None else (None, ())
            said = trial.try_entry(path.entry, os.environ, cwd, syntax, trial.patience(path.entry))
        if said is None or not said.ok:
            why = "its server did not answer through Aegis, so nobody knows what it is there"
            other = {row.tool for row in path.rows}
        else:
            why = "its server said otherwise of it when it was tried"
            other = set(unlike(path.offer.tools, said.listed))
        changed = {row.tool for row in path.rows if row.tool in other and row.action != "deny"}
        path.rows = tuple(distrusted(row, why) if row.tool in changed else row for row in path.rows)
        told |= {f"{path.backend}.{tool}": None for tool in sorted(changed)}
    if not told:
        return
    new = found.edit(work.config_old.decode() if work.config_old else None).encode()
    if new == work.config_new:
        return
    written(work.paths.config, work.config_new, new, keep=False)
    work.config_new = new
    with suppress(DaemonAway):
        link.call("reload", key=own_key())
    shown = ", ".join(f"`{visible(name)}`" for name in list(told)[:10])
    more = f" and {len(told) - 10} more" if len(told) > 10 else ""
    tell(
        f"not what was said of them before: {shown}{more}; each call of them waits for your yes, whatever was proposed"
    )


def _stopped(work: Work) -> None:
    from aegis_daemon.cli.daemon.commands import end

    with suppress(DaemonAway, Refused, Problem):
        end(work.paths)


def _next_steps(found: Found, rows: list[planning.Row]) -> None:
    work = found.work
    if rows and not any(row.wired for row in rows):
        return
    mode = found.mode or (found.config.mode if found.config is not None else "enforce")
    _by_hand(found)
    if any(row.action == "ask" for row in rules.every_row(found)):
        tell("calls that ask wait for you: `aegis pending`, then `aegis approve ID`")
    if mode == "observe":
        tell("mode observe: nothing is refused yet, and what would be is recorded (`aegis audit search`)")
        tell("after a day or so: `aegis policy suggest --observed`, then `aegis mode enforce`")
    else:
        tell("the rules are in force; with `aegis mode observe` they are only tried out")
    tell(f"change them in {visible(work.paths.config)}; `aegis doctor` checks all of it")
    if not work.config_old and (token := next((one for one in work.secrets if "api.token" in one), "")):
        tell(f"a program that uses the HTTP API shows the token in {visible(token)}; `aegis` and `aegis ui` need none")


def _by_hand(found: Found) -> None:
    """How agents reach a server that no client's file has."""
    given = found.given
    loose = [path for path in found.paths if path.client is None]
    if given is None or not loose:
        return
    if found.lines:
        tell("no client's file has it yet. This puts it there:")
        say(f"  aegis setup --url {given.shown} --client NAME")
        tell("or put it there yourself:")
        alike: dict[str, list[Target]] = {}
        for target, text in found.lines:
            alike.setdefault(text, []).append(target)
        for text, targets in alike.items():
            for target in targets:
                say(f"  {target.client.name} ({target.client.id}), {visible(target.path)}:")
            for line in text.split("\n"):
                say(f"    {visible(line)}")
    for path in loose:
        for line in addresses.entry_for(path.agent, path.backend, found.work.here, agents_files.status()):
            say(line)


def _json(found: Found, rows: list[planning.Row]) -> list[dict[str, Any]]:
    """One row for each way, each tool of it, and each client that could have it and does not."""
    by_change = {id(row.change): row for row in rows}
    made: list[dict[str, Any]] = []
    for path in found.paths:
        row = by_change.get(id(path.change)) if path.change is not None else None
        offer = path.offer
        common = {
            "agent_id": path.agent, "backend_id": path.backend, "client": path.client.id if path.client else None,
            "file": path.file or None, "server": path.name,
        }  # fmt: skip
        silent = offer is not None and not offer.ok
        why = offer.why if offer is not None and silent else row.why if row is not None else ""
        made.append({
            "kind": "server", **common, "tool_name": None, "class": None, "confidence": None, "action": None,
            "limit": None, "why": why, "fix": offer.fix if offer is not None and silent else "",
            "wired": row.wired if row is not None else None, "tools": len(path.rows), "lines": None,
        })  # fmt: skip
        made += [
            {
                "kind": "tool", **common, "tool_name": one.tool, "class": one.risk, "confidence": one.confidence,
                "action": one.action, "limit": one.limit or None, "why": one.why, "fix": "",
                "wired": row.wired if row is not None else None, "tools": None, "lines": None,
            }
            for one in path.rows
        ]  # fmt: skip
    made += [
        {
            "kind": "left", "agent_id": None, "backend_id": None, "client": plan.client.id, "file": plan.path,
            "server": one.name, "tool_name": None, "class": None, "confidence": None, "action": None, "limit": None,
            "why": one.why, "fix": "", "wired": False, "tools": None, "lines": None,
        }
        for plan, one in found.left
    ]  # fmt: skip
    made += [
        {
            "kind": "client", "agent_id": path.agent, "backend_id": path.backend, "client": target.client.id,
            "file": target.path, "server": path.name, "tool_name": None, "class": None, "confidence": None,
            "action": None, "limit": None, "why": "nobody named it",
            "fix": f"`aegis setup --url {given.shown} --client {target.client.id}`", "wired": False, "tools": None,
            "lines": text,
        }
        for path in found.paths if path.client is None and (given := found.given) is not None
        for target, text in found.lines
    ]  # fmt: skip
    return made
