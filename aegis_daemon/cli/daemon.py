"""`aegis daemon`: one daemon per installation, started, stopped and reloaded; each verb returns when it is done."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegis_daemon.cli import link
from aegis_daemon.cli.config import checked
from aegis_daemon.cli.console import AWAY, DONE, Problem, emit, say, visible
from aegis_daemon.cli.options import Config, Json, new_app
from aegis_daemon.config.paths import PathError, Paths
from aegis_daemon.manage import ancestry
from aegis_daemon.manage.client import DaemonAway, Refused

app = new_app()
START_S = 30.0
STOP_S = 30.0
_STEP_S = 0.05


@app.command()
def start(config: Config = None) -> int:
    """Start the daemon in the background; returns when it answers."""
    found = link.running()
    if found is not None:
        if config is not None and not _same(found["config"], config):
            raise Problem(
                f"a daemon (process {found['pid']}) runs with `{found['config'] or 'no configuration'}`",
                f"`aegis daemon restart --config {config}` takes its place",
            )
        say(f"the daemon runs already (process {found['pid']})")
        return DONE
    paths = _check(config)
    with _only_starter(paths):
        _start(config, paths)
    return DONE


@app.command()
def stop() -> int:
    """Stop the daemon and every server that it runs; returns when they are gone."""
    try:
        pid = _stop(restart=False)
    except DaemonAway as away:
        raise Problem(str(away), "there is nothing to stop", AWAY) from None
    say(f"the daemon (process {pid}) has stopped")
    return DONE


@app.command()
def restart(config: Config = None) -> int:
    """Stop the daemon and start it again; agents' sessions go on."""
    found = link.running()
    chosen = config if found is None or config is not None else found["config"]
    paths = _check(chosen)  # while the old one still runs
    with _only_starter(paths):
        if found is not None:
            _stop(restart=True)
        _start(chosen, paths)
    return DONE


@app.command()
def run(config: Config = None) -> int:
    """Run the daemon in the foreground; Ctrl-C ends it."""
    from aegis_daemon.daemon.main import serve

    paths = _check(config)
    return serve(Path(paths.config) if config is not None else None, paths, True)


@app.command()
def reload(as_json: Json = False) -> int:
    """Read the configuration again. A faulty one changes nothing, and every fault is told."""
    try:
        found: dict[str, Any] = link.call("reload")
    except Refused as refused:
        if not refused.faults:
            raise
        if as_json:
            emit([{"severity": "fault", **fault} for fault in refused.faults])
        for fault in refused.faults:
            say(visible(f"{fault['file']}:{fault['line']}:{fault['column']}: {fault['message']}; {fault['hint']}"))
        count = len(refused.faults)
        raise Problem(f"{count} fault{'s' * (count != 1)} found, nothing was reloaded", refused.hint) from None
    if as_json:
        emit(found)
        return DONE
    say(f"reloaded; changed: {visible(', '.join(found['changed'])) or 'nothing'}")
    for warning in found["warnings"]:
        say(f"warning: {visible(warning)}")
    if found["restart_required"]:
        say(f"in force after `aegis daemon restart` only: {visible(', '.join(found['restart_required']))}")
    return DONE


def _check(config: str | None) -> Paths:
    """Where things are, once the configuration there was found good. A file that was asked for must exist."""
    paths = link.paths(config)
    if config is not None or os.environ.get("AEGIS_CONFIG") or os.path.lexists(paths.config):
        checked(config)
    else:
        say(f"there is no configuration at {visible(paths.config)}: everything is denied until `aegis config init`")
    try:
        paths.prepare()
    except PathError as error:
        raise Problem(str(error)) from None
    return paths


@contextmanager
def _only_starter(paths: Paths) -> Iterator[None]:
    """Keeps agents' sessions from starting a daemon of their own meanwhile, which would have their configuration.

    It is the lock that `aegis-wrap` takes to start one (`aegis_shim.start`); whoever does not get it waits for ours.
    """
    path = os.path.join(os.path.dirname(paths.socket), "start.lock")
    lock = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        until = time.monotonic() + START_S
        while time.monotonic() < until:  # a session that starts one just now is let finish
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_STEP_S)
        yield
    finally:
        os.close(lock)


def _start(config: str | None, paths: Paths) -> None:
    env = {name: value for name, value in os.environ.items() if name != "AEGIS_APPROVER_KEY"}
    # It runs in `/`: what was relative to here must not become so to there.
    for name in ("AEGIS_HOME", "AEGIS_SOCKET", "AEGIS_CONFIG"):
        if env.get(name):
            env[name] = os.path.abspath(env[name])
    if config is not None:
        env["AEGIS_CONFIG"] = paths.config
    log = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        said = os.fstat(log).st_size
        # Detached: a session of its own, no terminal, nothing of ours open.
        child = subprocess.Popen(
            [sys.executable, "-I", "-m", "aegis_daemon.daemon.main"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=env,
            start_new_session=True,
        )
    finally:
        os.close(log)
    until = time.monotonic() + START_S
    while (found := link.running()) is None:
        ended = child.poll()
        if ended:
            raise Problem("the daemon ended as it started" + _last_words(paths.log, said), "see also `aegis logs`")
        if time.monotonic() > until:
            child.returncode = child.returncode or 0
            raise Problem(f"the daemon does not answer after {START_S:.0f} s", "see `aegis logs` for the cause")
        time.sleep(_STEP_S)
    child.returncode = 0  # it lives on without us, which Python would warn about
    say(f"the daemon runs (process {found['pid']})")
    if config is not None and not _same(found["config"], config):
        raise Problem(
            f"another daemon came first, with `{found['config'] or 'no configuration'}`",
            "an agent's session started it; set AEGIS_CONFIG for agents too, then `aegis daemon restart`",
        )


def _stop(restart: bool) -> int:
    # Known before it stops: afterwards its pid may be another's.
    status = link.call("status")
    pid = int(status["pid"])
    process = ancestry.system()(pid)
    link.call("stop", restart=restart)
    until = time.monotonic() + STOP_S
    while not _ended(pid, process):
        if time.monotonic() > until:
            raise Problem(f"the daemon (process {pid}) still runs after {STOP_S:.0f} s", "see `aegis logs`")
        time.sleep(_STEP_S)
    return pid


def _ended(pid: int, process: ancestry.Process | None) -> bool:
    if process is None:  # it cannot be seen from here, as in another container
        found = link.running()
        return found is None or found["pid"] != pid
    now = ancestry.system()(pid)
    return now is None or not now.same(process) or _zombie(pid)


def _zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return False


def _same(one: str | None, other: str) -> bool:
    return one is not None and os.path.realpath(one) == os.path.realpath(other)


def _last_words(log: str, since: int) -> str:
    with open(log, "rb") as file:
        file.seek(since)
        lines = file.read(65536).decode("utf-8", "replace").strip().splitlines()
    return ":\n  " + "\n  ".join(lines[-8:]) if lines else ""
