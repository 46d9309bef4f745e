"""`aegis daemon install` and `uninstall`: every step is shown, done in order and told; a failed one ends it.

Nothing is hidden in a step: what `--dry-run` prints (whole files included) is what is done without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, emit, interactive, say, visible
from aegis_daemon.cli.daemon.commands import ask_leave, check, end, only_starter
from aegis_daemon.config.load import load, loads
from aegis_daemon.config.paths import Paths
from aegis_daemon.config.source import ConfigFaults, read_file
from aegis_daemon.manage.client import DaemonAway
from aegis_daemon.service import machine, person
from aegis_daemon.service.steps import Step, Unable, hint

# --- a person's own ---------------------------------------------------------------------------------------------------


def person_in(config: str | None, *, dry_run: bool, as_json: bool) -> int:
    """A service of this login. 1 where it is written and nothing answers that could run it."""
    paths = link.paths(config)
    if paths.doors:
        raise Problem("this is the machine's installation (AEGIS_SYSTEM)", "add `--system`, or unset it", USAGE)
    env = dict(os.environ)
    if config is not None:
        env["AEGIS_CONFIG"] = paths.config
    answers = person.answers()
    try:
        written = person.install(paths, env)
    except Unable as unable:
        raise Problem(unable.message, unable.hint) from None
    after = [*(person.enable() if answers else person.by_hand()), *person.linger()]
    if dry_run:
        return _planned([*written, *after], as_json=as_json)
    ask_leave()
    check(config)
    if lies := agents_files.unlasting(person.python(env)):
        say(f"warning: {lies}")
    rows = _done(written)
    if answers:
        with only_starter(paths):
            if link.running() is not None:  # it holds the lock; its sessions come back to the service's
                end(paths, restart=True)
            rows += _done(after)
            found = link.running()
        if found is None:
            raise Problem("the service was started, and no daemon answers", "see `aegis logs` for the cause")
        say(f"the daemon runs (process {found['pid']}), now and from each login on")
    else:
        rows += _done(after)
        say("the service is written; nothing here can start it, so that is left to you, as above")
    if as_json:
        emit(rows)
    return DONE if answers else WRONG


def person_out(*, dry_run: bool, as_json: bool) -> int:
    """The service is gone, and its daemon; the files stay."""
    found = person.find(link.paths(), os.environ)
    if found is None:
        say("there is no service of this installation")
        if as_json:
            emit([])
        return DONE
    plan = person.uninstall(found)
    if dry_run:
        return _planned(plan, as_json=as_json)
    ask_leave()
    rows = _done(plan)
    if as_json:
        emit(rows)
    return DONE


# --- the machine's ----------------------------------------------------------------------------------------------------


def machine_in(
    config: str | None, agents: Sequence[str], admins: Sequence[str], *, yes: bool, dry_run: bool, as_json: bool
) -> int:
    """The isolated tier. 1 where it is prepared and nothing answers that could start it."""
    paths = _machine_paths()
    _root(dry_run)
    people = list(dict.fromkeys([*admins, *_sudoer()]))
    try:
        chosen = _agents(agents)
        for name in people:
            machine.uid_of(name)
        text, settings = _text(paths, config, chosen)
        plan = machine.install(paths, settings, text, chosen, people)
    except Unable as unable:
        raise Problem(unable.message, unable.hint) from None
    except ConfigFaults as faults:
        raise Problem(faults.render(), "mend the configuration first; nothing was done") from None
    answers = machine.answers(paths)
    starts = machine.enable(paths, settings) if answers else [_by_hand(paths)]
    told = machine.entries(paths, settings)
    if dry_run:
        return _planned([*plan, *starts, *told], as_json=as_json)
    _agreed("prepare the isolated tier", [*plan, *starts], yes=yes)
    rows = _done([*plan, *starts, *told])
    say("the isolated tier is " + ("ready" if answers else "prepared, and started by nobody yet: that is left to you"))
    if as_json:
        emit(rows)
    return DONE if answers else WRONG


def machine_out(*, purge: bool, yes: bool, dry_run: bool, as_json: bool) -> int:
    """The isolated tier is gone; its configuration, log and user only with `purge`."""
    paths = _machine_paths()
    _root(dry_run)
    if not machine.installed(paths):
        say("there is no isolated tier on this machine")
        if as_json:
            emit([])
        return DONE
    plan = machine.uninstall(paths, purge=purge)
    if dry_run:
        return _planned(plan, as_json=as_json)
    _agreed("take the isolated tier away", plan, yes=yes)
    with suppress(DaemonAway):  # one that systemd does not run
        if not machine.answers(paths):
            end(paths)
    rows = _done(plan)
    if not purge:
        say(f"{paths.config}, {paths.state_dir} and the user `{machine.USER}` stay; `--purge` removes them, too")
    if as_json:
        emit(rows)
    return DONE


def _machine_paths() -> Paths:
    root = os.environ.get("AEGIS_SYSTEM", "") or "1"
    return Paths.find({"AEGIS_SYSTEM": root})


def _root(dry_run: bool) -> None:
    if os.geteuid() != 0 and not dry_run:
        raise Problem("the isolated tier is root's to prepare", "repeat it with `sudo`, or look first with `--dry-run`")


def _sudoer() -> list[str]:
    name = os.environ.get("SUDO_USER", "")
    return [name] if name and name != "root" else []


def _agents(given: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for pair in given:
        name, equals, user = pair.partition("=")
        if not (name and equals and user) or name in found:
            raise Problem(
                f"`{visible(pair, 100)}` is no agent and its user", "write `--agent ID=USER`, one for each", USAGE
            )
        found[name] = machine.uid_of(user)
    return found


def _text(paths: Paths, config: str | None, agents: Mapping[str, int]) -> tuple[bytes, Any]:
    """The bytes of a first configuration, and the settings that will hold. Raises `ConfigFaults`."""
    if os.path.lexists(paths.config):
        settings = load(paths.config).config
        missing = [name for name, uid in agents.items() if uid not in _uids(settings, name)]
        if missing or config is not None:
            what = f"and does not give `{missing[0]}` to that user" if missing else "and is not replaced"
            raise Problem(f"`{paths.config}` is there, {what}", "edit it, then repeat this without that option")
        return b"", settings
    text = read_file(config) if config is not None else machine.first_config(agents).encode()
    if config is not None and agents:
        raise Problem(
            "`--config` and `--agent` together", "the file itself lists the agents and their `identities`", USAGE
        )
    return text, loads(text, config or paths.config, base=os.path.dirname(paths.config)).config


def _uids(settings: Any, name: str) -> Sequence[int]:
    agent = settings.agents.get(name)
    return () if agent is None else agent.identities


def _by_hand(paths: Paths) -> Step:
    root = machine.root_of(paths) or "1"
    return hint(
        f"AEGIS_SYSTEM={root} aegis daemon start", "as root, where there is no systemd; `run` for the foreground"
    )


# --- steps ------------------------------------------------------------------------------------------------------------


def _planned(plan: Sequence[Step], *, as_json: bool) -> int:
    """Shows what would be done, files and all."""
    if as_json:
        emit([step.row(False) for step in plan])
        return DONE
    for step in plan:
        print(visible(step.line))
        if step.step == "write":
            for line in step.content.splitlines():
                print(visible(f"       | {line}".rstrip()))
    return DONE


def _agreed(what: str, plan: Sequence[Step], *, yes: bool) -> None:
    if yes:
        return
    if not interactive():
        raise Problem(
            "this asks on a terminal, and this is none", "pass `--yes`, or look first with `--dry-run`", USAGE
        )
    for step in plan:
        say(visible(step.line))
    if not typer.confirm(f"{what}?", default=False, err=True):
        raise typer.Abort


def _done(plan: Sequence[Step]) -> list[dict[str, Any]]:
    """Does each, and says so. Raises `Problem` at the first that fails, which ends it."""
    rows: list[dict[str, Any]] = []
    for number, step in enumerate(plan):
        try:
            if step.do is not None:
                step.do()
        except Unable as unable:
            raise Problem(unable.message, unable.hint) from None
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise Problem(
                f"`{step.target}`: {why}; {number} of {len(plan)} steps were done",
                "mend that, then repeat it: what is done stays",
            ) from None
        rows.append(step.row(step.do is not None))
        say(visible(step.line))
    return rows
