"""How a command finds the daemon and the files of this installation."""

from __future__ import annotations

import os
from typing import Any, Final

from aegis_daemon.config.paths import Paths
from aegis_daemon.manage.client import Connection, DaemonAway, ask

_CHOICES: Final = ("AEGIS_HOME", "AEGIS_CONFIG", "AEGIS_SOCKET", "AEGIS_SYSTEM")


def paths(config: str | None = None) -> Paths:
    """Where everything is. `config` (`--config`) wins over AEGIS_CONFIG."""
    env = os.environ if config is None else {**os.environ, "AEGIS_CONFIG": config}
    found = Paths.find(env)
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


def running() -> dict[str, Any] | None:
    """The running daemon's status, None where there is none."""
    try:
        found: dict[str, Any] = call("status")
    except DaemonAway:
        return None
    return found
