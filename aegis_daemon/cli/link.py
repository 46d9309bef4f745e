"""How a command finds the daemon and the files of this installation."""

from __future__ import annotations

import os
from typing import Any, Final

from aegis_daemon.config import whereabouts
from aegis_daemon.config.paths import Paths
from aegis_daemon.manage.client import Connection, DaemonAway, ask, lock_holder

_CHOICES: Final = ("AEGIS_HOME", "AEGIS_CONFIG", "AEGIS_SOCKET", "AEGIS_SYSTEM")


def paths(config: str | None = None) -> Paths:
    """Where everything is. `config` (`--config`) wins over AEGIS_CONFIG.

    The sockets are where the running daemon has them: XDG_RUNTIME_DIR may be another one here.
    """
    env = os.environ if config is None else {**os.environ, "AEGIS_CONFIG": config}
    found = Paths.find(env)
    if (there := whereabouts.elsewhere(found)) is not None:
        return there
    if not any(env.get(name) for name in _CHOICES) and not os.path.lexists(found.manage_socket):
        # Whoever has no daemon and no rules of their own, and may manage the machine's, means that one.
        machine = Paths.of_system("", env)
        if not os.path.lexists(found.config) and os.access(machine.manage_socket, os.W_OK):
            return machine
    return found


def call(verb: str, **args: Any) -> Any:
    """One request to the running daemon. Raises `DaemonAway`, `Refused`."""
    return ask(paths().manage_socket, verb, **args)


def connect() -> Connection:
    """A connection to the running daemon. Raises `DaemonAway`."""
    return Connection(paths().manage_socket)


def holder(where: Paths) -> int | None:
    """The process that has the log open, 0 where it does not say which; None where nobody has."""
    return lock_holder(os.path.join(where.journal, "lock"))


def away(said: str, hint: str = "start it with `aegis daemon start`") -> tuple[str, str]:
    """Why no daemon answers, and what to do: a daemon that runs all the same is not started, it is ended."""
    where = paths()
    pid = holder(where)
    if pid is None:
        return said, hint
    there = whereabouts.said(where)
    last = where if there is None else there
    told = f"process {pid}" if pid else "a process"
    text = f"a daemon runs ({told} has `{where.journal}` open), and does not answer at `{last.manage_socket}`"
    usual = Paths.find(os.environ)
    if last.run_dir != usual.run_dir:
        here = os.environ.get("XDG_RUNTIME_DIR")
        text += f"; XDG_RUNTIME_DIR is {f'`{here}`' if here else 'not set'} here, so this looked in `{usual.run_dir}`"
    end = f"`kill {pid}`" if pid else "end that process"
    return text, f"it may be starting or ending: repeat this in a moment; else {end}, then `aegis daemon start`"


def running() -> dict[str, Any] | None:
    """The running daemon's status, None where there is none."""
    try:
        found: dict[str, Any] = call("status")
    except DaemonAway:
        return None
    return found
