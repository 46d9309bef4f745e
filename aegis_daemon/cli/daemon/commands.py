"""`aegis daemon`: one daemon per installation, started, stopped and reloaded; each verb returns when it is done.

Where a service runs it (`aegis daemon install`), the service manager is asked to, so that both know the same.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.config import checked, tell
from aegis_daemon.cli.console import AWAY, DONE, USAGE, Problem, emit, say, visible
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.options import Config, Json, new_app
from aegis_daemon.config.paths import PathError, Paths
from aegis_daemon.manage import ancestry
from aegis_daemon.manage.client import UNSERVED, DaemonAway, Refused, ask

if TYPE_CHECKING:
    from aegis_daemon.config.load import Loaded
    from aegis_daemon.service.machine import Machine
    from aegis_daemon.service.person import Service

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
    paths = check(config)
    service = _service(paths, config)
    with only_starter(paths):
        _start(config, paths, service)
    return DONE


@app.command()
def stop() -> int:
    """Stop the daemon and every server that it runs; returns when they are gone."""
    paths = link.paths()
    ask_leave()
    service = _service(paths)
    try:
        pid = end(paths, service=service)
    except DaemonAway as away:
        raise Problem(*link.away(str(away), "there is nothing to stop"), AWAY) from None
    say(f"the daemon (process {pid}) has stopped")
    return DONE


@app.command()
def restart(config: Config = None) -> int:
    """Stop the daemon and start it again; agents' sessions go on."""
    found = link.running()
    ask_leave()
    chosen = config if found is None or config is not None else found["config"]
    paths = check(chosen)  # while the old one still runs
    service = _service(paths, config)
    with only_starter(paths):
        if found is not None:
            end(paths, restart=True)
        _start(chosen, paths, service)
    return DONE


@app.command()
def run(config: Config = None) -> int:
    """Run the daemon in the foreground; Ctrl-C ends it."""
    from aegis_daemon.daemon.main import serve

    paths = check(config)
    if paths.doors and os.geteuid() == 0:
        return _launch(paths)
    return serve(Path(paths.config) if config is not None else None, paths, True)


@app.command()
def reload(as_json: Json = False) -> int:
    """Read the configuration again. A faulty one changes nothing, and every fault is told."""
    try:
        found: dict[str, Any] = link.call("reload", **({} if (key := own_key()) is None else {"key": key}))
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


@app.command()
def install(
    config: Config = None,
    system: Annotated[
        bool, typer.Option("--system", help="The machine's daemon, as a user of its own (the isolated tier); as root.")
    ] = False,
    agent: Annotated[
        list[str] | None,
        typer.Option("--agent", metavar="ID=USER", help="With --system, for a first configuration: an agent's user."),
    ] = None,
    admin: Annotated[
        list[str] | None,
        typer.Option("--admin", metavar="USER", help="With --system: a person who may decide; who runs `sudo` is one."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Have the daemon run as a service: yours from login on, or with --system the machine's; says all that it does."""
    from aegis_daemon.cli.daemon.install import machine_in, person_in

    if system:
        return machine_in(config, agent or [], admin or [], yes=yes, dry_run=dry_run, as_json=as_json)
    if agent or admin:
        raise Problem("`--agent` and `--admin` are for the isolated tier", "add `--system`, or leave them out", USAGE)
    return person_in(config, dry_run=dry_run, as_json=as_json)


@app.command()
def uninstall(
    system: Annotated[
        bool, typer.Option("--system", help="The machine's daemon (the isolated tier); as root.")
    ] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="With --system: its configuration, log, keys, user and group, too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Take the service away. Configuration and log stay; `aegis uninstall` takes everything."""
    from aegis_daemon.cli.daemon.install import machine_out, person_out

    if system:
        return machine_out(purge=purge, yes=yes, dry_run=dry_run, as_json=as_json)
    if purge:
        raise Problem("`--purge` is for the isolated tier", "`aegis uninstall --purge` removes your own", USAGE)
    return person_out(dry_run=dry_run, as_json=as_json)


def _service(paths: Paths, config: str | None = None) -> Service | Machine | None:
    """The service that runs this installation's daemon, where its manager answers.

    Raises `Problem` where it runs with another configuration than the one asked for.
    """
    from aegis_daemon.service import machine, person

    if paths.doors:
        return machine.find(paths)
    found = person.find(paths, os.environ)
    if found is None or not person.answers():
        return None
    usual = found.config or link.paths().config
    if config is not None and not _same(usual, config):
        raise Problem(
            f"the service runs the daemon with `{usual}`", f"change it with `aegis daemon install --config {config}`"
        )
    return found


def _launch(paths: Paths) -> int:
    """Root runs the machine's daemon in the foreground: this process becomes it."""
    from aegis_daemon.service.launch import launch
    from aegis_daemon.service.steps import Unable

    try:
        launch(paths)
    except Unable as unable:
        raise Problem(unable.message, unable.hint) from None


def check(config: str | None) -> Paths:
    """Where things are, once the configuration there was found good. A file that was asked for must exist."""
    paths = link.paths(config)
    if config is not None or os.environ.get("AEGIS_CONFIG") or os.path.lexists(paths.config):
        _tell_misspelt(checked(config), paths)
    else:
        say(f"there is no configuration at {visible(paths.config)}: everything is denied until `aegis config init`")
    try:
        if not paths.doors:  # root does not own what it starts there
            paths.prepare()
    except PathError as error:
        raise Problem(str(error)) from None
    return paths


def _tell_misspelt(loaded: Loaded, paths: Paths) -> None:
    """Names that are no tool's, as far as a daemon that ran before has seen its servers' tools."""
    from aegis_daemon.config.fitting import Pinned
    from aegis_daemon.config.slips import slips

    with suppress(OSError):  # the machine's state is not everybody's to read; its daemon logs them
        tell((), tuple(slips(loaded, Pinned(paths.state_db).tools())))


def ask_leave() -> None:
    """Asks the daemon whether a person wants what follows: the end of it, or another one in its place.

    An agent's shell would else stop it, by the service manager too, and start one with rules of its own. Where no
    daemon runs no agent is governed now. Raises `Refused`, `Problem`.
    """
    try:
        link.call("guard", action="daemon", key=own_key())
    except DaemonAway:
        pass
    except Refused as refused:
        if refused.code not in ("bad_request", "unknown_verb"):  # a daemon before an upgrade knows no such question
            raise


@contextmanager
def only_starter(paths: Paths) -> Iterator[None]:
    """Keeps agents' sessions from starting a daemon of their own meanwhile, which would have their configuration.

    It is the lock that `aegis-wrap` takes to start one (`aegis_shim.start`); whoever does not get it waits for ours.
    """
    path = os.path.join(_roots_own(paths.run_dir) if paths.doors else os.path.dirname(paths.socket), "start.lock")
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


def _roots_own(directory: str) -> str:
    """The machine's directory of sockets, in which root alone can have put anything. Raises `Problem`."""
    from aegis_daemon.service.launch import own_directory
    from aegis_daemon.service.steps import Unable

    if os.geteuid() != 0:
        raise Problem("the machine's daemon is root's to start", "repeat it with `sudo`")
    try:
        own_directory(directory)
    except Unable as unable:
        raise Problem(unable.message, unable.hint) from None
    return directory


def _start(config: str | None, paths: Paths, service: Service | Machine | None = None) -> None:
    if service is not None:
        _by_service(service.start)
        if (found := link.running()) is None:
            raise Problem("the service started, and its daemon does not answer", "see `aegis logs` for the cause")
        say(f"the daemon runs (process {found['pid']}), as a service")
        _tell_unserved(found)
        return
    # The machine's log is in a directory of the daemon's user, so root opens nothing there: the daemon does, as itself.
    with tempfile.TemporaryFile() if paths.doors else nullcontext() as heard:
        _in_background(config, paths, heard)


def _in_background(config: str | None, paths: Paths, heard: IO[bytes] | None) -> None:
    """Starts a daemon without a service, which writes to its log; `heard` takes what is said before that.

    Raises `Problem`.
    """
    env = {name: value for name, value in os.environ.items() if name != "AEGIS_APPROVER_KEY"}
    # It runs in `/`: what was relative to here must not become so to there.
    for name in ("AEGIS_HOME", "AEGIS_SOCKET", "AEGIS_CONFIG"):
        if env.get(name):
            env[name] = os.path.abspath(env[name])
    if config is not None:
        env["AEGIS_CONFIG"] = paths.config
    said = _size(paths.log)
    mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log = os.dup(heard.fileno()) if heard is not None else os.open(paths.log, mode, 0o600)
    try:
        # Detached: a session of its own, no terminal, nothing of ours open.
        main = "aegis_daemon.service.launch" if paths.doors else "aegis_daemon.daemon.main"
        child = subprocess.Popen(  # noqa: S603  both are ours
            [sys.executable, "-I", "-m", main],
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
            words = (_read(heard) if heard is not None else "") + _since(paths, said)
            text, hint = link.away("the daemon ended as it started" + _last_words(words), "see also `aegis logs`")
            raise Problem(text, hint)
        if time.monotonic() > until:
            child.returncode = child.returncode or 0
            raise Problem(f"the daemon does not answer after {START_S:.0f} s", "see `aegis logs` for the cause")
        time.sleep(_STEP_S)
    child.returncode = 0  # it lives on without us, which Python would warn about
    say(f"the daemon runs (process {found['pid']})")
    _tell_unserved(found)
    if config is not None and not _same(found["config"], config):
        raise Problem(
            f"another daemon came first, with `{found['config'] or 'no configuration'}`",
            "an agent's session started it; set AEGIS_CONFIG for agents too, then `aegis daemon restart`",
        )


def _by_service(order: Callable[[], None]) -> None:
    from aegis_daemon.service.steps import Unable

    try:
        order()
    except Unable as unable:
        raise Problem(unable.message, unable.hint) from None


def end(paths: Paths, restart: bool = False, service: Service | Machine | None = None) -> int:
    """Ends the daemon, by its service if there is one (else the next session would start it again by the socket).

    Gives its process, once it is gone. Raises `DaemonAway` where there was none, `Problem`.
    """
    # Known before it stops: afterwards its pid may be another's.
    status = _status(paths)
    if service is not None:
        _by_service(service.stop)
    if status is None:
        raise DaemonAway(f"the daemon is not running (no answer on `{paths.manage_socket}`)")
    pid = int(status["pid"])
    process = ancestry.system()(pid)
    with suppress(DaemonAway):
        if not _ended(pid, process):
            key = own_key()
            ask(paths.manage_socket, "stop", restart=restart, **({} if key is None else {"key": key}))
    until = time.monotonic() + STOP_S
    while not _ended(pid, process):
        if time.monotonic() > until:
            raise Problem(f"the daemon (process {pid}) still runs after {STOP_S:.0f} s", "see `aegis logs`")
        time.sleep(_STEP_S)
    return pid


def _status(paths: Paths) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = ask(paths.manage_socket, "status")
    except DaemonAway:
        return None
    return found


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


def _tell_unserved(found: dict[str, Any]) -> None:
    """A daemon that could not have its address runs, and says so: neither the inbox nor agents over HTTP reach it."""
    for warning in found["warnings"]:
        if str(warning).startswith(UNSERVED):
            say(f"warning: {visible(str(warning))}")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _since(paths: Paths, at: int) -> str:
    """What was written to the log from there on; where it is another user's, nothing of a link in its place."""
    follow = os.O_NOFOLLOW if paths.doors else 0
    try:
        with open(os.open(paths.log, os.O_RDONLY | follow | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            file.seek(at)
            return file.read(65536).decode("utf-8", "replace")
    except OSError:
        return ""


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(65536).decode("utf-8", "replace")


def _last_words(text: str) -> str:
    lines = text.strip().splitlines()
    return ":\n  " + "\n  ".join(lines[-8:]) if lines else ""
