"""The daemon runs, is the one that this command belongs to, and is well; or the next session could start it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from typing import Final

from aegis_daemon.config import whereabouts
from aegis_daemon.config.paths import SOCKET_PATH_MAX, Paths
from aegis_daemon.manage.client import MISSPELT, UNSERVED, lock_holder
from aegis_daemon.onboarding.scene import Finding, Scene

START_S: Final = 10.0
LOADS: Final = (
    "import importlib.util, cedarpy, cryptography.hazmat.primitives.hashes, httptools, msgspec, re2, uvloop\n"
    "assert importlib.util.find_spec('aegis_daemon.daemon.main') is not None, 'aegis_daemon is not installed'"
)
"""As the wrapper starts the daemon: what is made for one system and Python alone is loaded, the rest is looked for."""


def check(scene: Scene) -> Iterator[Finding]:
    """What the daemon says of itself."""
    if scene.service is not None and not os.access(scene.service.program, os.X_OK):
        why = f"`{scene.service.file}` starts `{scene.service.program}`, which is not there"
        yield Finding("service-broken", why, scene.service.file)
    status = scene.status
    if status is None:
        holder = lock_holder(scene.paths.lock)
        if holder is not None:
            process = f"process {holder}" if holder else "a process"
            text = f"{process} holds `{scene.paths.lock}`: {scene.silent or 'it gives no answer'}"
            yield Finding("daemon-deaf", text, scene.paths.manage_socket)
        elif (pid := lock_holder(os.path.join(scene.paths.journal, "lock"))) is not None:
            yield _out_of_reach(scene, pid)
        else:
            yield Finding("daemon-away", f"nothing answers on `{scene.paths.manage_socket}`")
            if scene.here.http and taken(scene.here.http):
                yield Finding("http-unserved", f"another program listens at {scene.here.http} already", scene.here.http)
        return
    usual = Paths.find(scene.env)
    if not scene.paths.doors and scene.paths.run_dir != usual.run_dir:
        text = f"its sockets are in `{scene.paths.run_dir}`, and this shell's XDG_RUNTIME_DIR means `{usual.run_dir}`"
        yield Finding("runtime-elsewhere", text, scene.paths.run_dir)
    if status["version"] != scene.version:
        yield Finding("daemon-version", f"the daemon is {status['version']}, this command is {scene.version}")
    used = status["config"]
    if used and os.path.realpath(used) != os.path.realpath(scene.paths.config):
        yield Finding("daemon-elsewhere", f"the daemon uses `{used}`, this command `{scene.paths.config}`", used)
    if not status["proof"]["healthy"]:
        yield Finding("daemon-unproven", str(status["proof"]["detail"]))
    for pause in status["paused"]:
        who = pause["agent_id"] or "all agents"
        fix = f"`aegis resume {pause['agent_id']}`" if pause["agent_id"] else "`aegis resume`"
        yield Finding("daemon-paused", f"{who}, by {pause['by']} since {pause['since']}", who, fix)
    if status["mode"] == "observe":
        yield Finding("mode-observe", "nothing is refused")
    for warning in map(str, status["warnings"]):
        if any(text in warning for text in MISSPELT):
            continue  # the check of the configuration tells each
        yield Finding("http-unserved" if warning.startswith(UNSERVED) else "daemon-warns", warning)


def _out_of_reach(scene: Scene, pid: int) -> Finding:
    """A daemon that has the log open, and no socket that anybody finds."""
    there = whereabouts.said(scene.paths) or scene.paths
    told = f"process {pid}" if pid else "a process"
    text = f"{told} has `{scene.paths.journal}` open, and nothing answers on `{there.manage_socket}`"
    if there.run_dir != scene.paths.run_dir:
        text += f", nor on `{scene.paths.manage_socket}`"
    fix = f"`kill {pid}`, then `aegis daemon start`" if pid else ""
    return Finding("daemon-out-of-reach", text, there.manage_socket, fix)


def taken(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), 0.5):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def autostart(scene: Scene) -> Iterator[Finding]:
    """Whether a wrapper could start the daemon that does not run."""
    if scene.status is not None or scene.paths.doors:
        return  # in the isolated tier root's service starts it
    run, known = scene.paths.run_dir, os.path.lexists
    for path in (scene.paths.socket, scene.paths.manage_socket):
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            yield Finding("socket-path-long", f"`{path}` has {len(os.fsencode(path))} bytes", path)
            return
    place = run
    while not known(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding("autostart-broken", f"the sockets' directory `{run}` cannot be made or written", run)
        return
    words = [scene.python, "-I", "-c", LOADS]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=START_S,
            check=False, cwd="/",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        yield Finding("check-unfinished", f"`{scene.python}` did not load the daemon within {START_S:g} s")
    except OSError as error:
        yield Finding("autostart-broken", f"`{scene.python}` does not start: {error.strerror}", scene.python)
    else:
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            yield Finding("autostart-broken", f"`{scene.python}` cannot load the daemon: {said}", scene.python)
