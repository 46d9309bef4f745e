"""`aegis uninstall`: agents run without Aegis again, its daemon and service are gone, and with `--purge` all its files.

Everything is listed before anything is done. Files go last, and only once every agent's entry is as it was: the ledger
that tells how is among them.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout, suppress
from typing import Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.agents import unwire
from aegis_daemon.cli.console import DONE, USAGE, Problem, emit, interactive, say, visible
from aegis_daemon.cli.daemon.commands import end, only_starter
from aegis_daemon.cli.decision import guard
from aegis_daemon.cli.options import Json, new_app
from aegis_daemon.cli.uninstall import purging
from aegis_daemon.clients import standing
from aegis_daemon.config.paths import Paths
from aegis_daemon.manage.client import DaemonAway
from aegis_daemon.service import person
from aegis_daemon.service.steps import Step, Unable

app = new_app()
ENDS_S = 5.0
"""How long a helper of a daemon that has ended may have its log open."""


@app.command()
def uninstall(
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove configuration, keys, log and state as well: nothing is left.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Take Aegis out of every agent, stop it and remove its service; with --purge, everything that it keeps, too."""
    if not (yes or dry_run or interactive()):
        raise Problem("`aegis uninstall` asks on a terminal, and this is none", "pass `--yes`, or `--dry-run`", USAGE)
    paths = link.paths()
    if paths.doors:
        raise Problem("this is the machine's installation", "take it away with `sudo aegis daemon uninstall --system`")
    guard("unwire")
    service = person.find(paths, os.environ)
    found = link.running()
    if found is None:
        _no_other(paths)
    listed: list[Step] = []
    if found is not None:
        listed.append(Step("stop", f"the daemon (process {found['pid']})", "and every server that it runs"))
    if service is not None:
        listed += person.uninstall(service)
    files = purging.files(paths) if purge else []
    if dry_run or not yes:
        _, entries = _unwire(dry_run=True)
        for step in (*listed, *files):
            say(visible(step.line))
        if not (entries or listed or files):
            say("there is nothing to take away")
        if dry_run:
            if as_json:
                emit([*entries, *(step.row(False) for step in (*listed, *files))])
            return DONE
        if not typer.confirm("do all of this?", default=False, err=True):
            raise typer.Abort
    tell: Callable[[str], None] = say if yes else lambda text: None  # else it was told before
    rows = _carry_out(paths, service, listed, purge=purge, tell=tell)
    if as_json:
        emit(rows)
    if not purge and os.path.lexists(paths.state_dir):
        say(f"{paths.config} and {paths.state_dir} stay (the log, too); `aegis uninstall --purge` removes them")
    for line in purging.staying(paths) if purge else ():
        say(visible(line))
    say("the program itself goes with `pipx uninstall aegis-mcp`, or `uv tool uninstall aegis-mcp`")
    return DONE


def _carry_out(
    paths: Paths, service: person.Service | None, listed: list[Step], *, purge: bool, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    said, rows = _unwire(dry_run=False, quiet=True)
    left = _stuck(paths)
    if left:
        sys.stderr.write(said)
        raise Problem(
            f"{len(left)} wired entr{'y' if len(left) == 1 else 'ies'} could not be put back, so the daemon and the "
            f"files that the rest needs stay: {visible('; '.join(left[:5]), 2000)}",
            "mend that file, or take the wrapper out of it by hand; then repeat this",
        )
    for line in said.splitlines():
        if line.startswith("warning: "):  # of a file that holds nothing of ours
            say(line)
    for row in rows:
        if row["done"]:
            tell(visible(f"unwire {row['target']}"))
    with only_starter(paths) if os.path.isdir(paths.run_dir) else nullcontext():
        # No session starts another one meanwhile; those that are open hear that it was stopped, which they respect.
        with suppress(DaemonAway):
            end(paths, service=service if service is not None and person.answers() else None)
        rows += [_taken(step, tell) for step in listed]
        if link.running() is not None:
            raise Problem("another daemon was started meanwhile", "end the agents that did, then repeat this")
        _no_other(paths, ENDS_S)
        # Looked for again: the copies of what was just unwired are among them.
        rows += [_taken(step, tell) for step in (purging.files(paths) if purge else [])]
    return rows


def _no_other(paths: Paths, patience: float = 0.0) -> None:
    """Raises `Problem` while a process has the log open: a daemon that does not answer here would run without it."""
    until = time.monotonic() + patience
    while (pid := link.holder(paths)) is not None:
        if time.monotonic() >= until:
            told, end = (f"process {pid}", f"`kill {pid}`") if pid else ("a process", "end it")
            text, _ = link.away(f"{told} has `{paths.journal}` open")
            raise Problem(f"{text}; nothing of it is removed under it", f"{end}, then repeat this")
        time.sleep(0.05)


def _stuck(paths: Paths) -> list[str]:
    """Entries that still start us, each with its file; a file that is not understood counts where we wired in it."""
    have = agents_files.known(paths)
    found: list[str] = []
    for target in agents_files.targets(have):
        if target.document is not None:
            seen = standing.survey(target.client, target.path, target.document, standing.Here(""), have)
            known = target.scope != "project"  # a project's may be anybody's
            found += [
                f"`{one.name}` in `{target.path}`" for one in seen if one.ours is not None and (known or one.record)
            ]
        elif target.fault:
            found += [f"`{one.name}` in `{target.path}` ({target.fault})" for one in have.of(target.path)]
    return found


def _taken(step: Step, tell: Callable[[str], None]) -> dict[str, Any]:
    try:
        if step.do is not None:
            step.do()
    except Unable as unable:
        raise Problem(unable.message, unable.hint) from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Problem(f"`{step.target}` cannot be removed: {why}", "mend that, then repeat this") from None
    (say if step.step == "hint" else tell)(visible(step.line))
    return step.row(step.step != "hint")


def _unwire(*, dry_run: bool, quiet: bool = False) -> tuple[str, list[dict[str, Any]]]:
    """Every entry of every client that goes through us: what was said, and a row for each. Told as it goes."""
    heard, said = io.StringIO(), io.StringIO()
    with redirect_stdout(heard), redirect_stderr(said) if quiet else nullcontext():
        unwire.unwire_all(dry_run=dry_run)
    text = heard.getvalue().strip()
    rows: list[dict[str, Any]] = json.loads(text) if text else []
    told = [
        {
            "step": "unwire",
            "target": f"{row['server']} in {row['file']}",
            "detail": str(row.get("why") or ""),
            "done": bool(row.get("changed")),
        }
        for row in rows
    ]
    return said.getvalue(), told
