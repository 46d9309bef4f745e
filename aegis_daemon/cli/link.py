"""How a command finds the daemon and the files of this installation."""

from __future__ import annotations

import os
from typing import Any

from aegis_daemon.config.paths import Paths
from aegis_daemon.manage.client import Connection, DaemonAway, ask


def paths(config: str | None = None) -> Paths:
    """Where everything is. `config` (`--config`) wins over AEGIS_CONFIG."""
    env = os.environ if config is None else {**os.environ, "AEGIS_CONFIG": config}
    return Paths.find(env)


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
