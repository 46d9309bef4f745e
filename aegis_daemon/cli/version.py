"""`aegis version`: what is installed and where its files are, and which version the daemon runs, if one does."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from aegis_daemon import __version__
from aegis_daemon.cli import link
from aegis_daemon.cli.console import emit
from aegis_daemon.cli.options import Json, new_app
from aegis_daemon.manage.client import Connection, DaemonAway, Refused

app = new_app()
MATTER: Final = (
    "mcp", "uvloop", "httptools", "uvicorn", "starlette", "websockets", "msgspec", "pydantic", "cedarpy", "google-re2",
    "sqlglot", "cryptography", "limits", "ruamel-yaml", "typer", "rich",
)  # fmt: skip
"""Packages whose version a report of a fault should name."""


@app.command()
def version(as_json: Json = False) -> None:
    """Which version this is, of which Python; with --json also its parts, files and tier, and the daemon's."""
    import platform

    row: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if as_json:
        emit(row | _more())
    else:
        print(f"aegis {row['version']} (Python {row['python']}, {row['system']})")


def _more() -> dict[str, Any]:
    import platform
    import sqlite3

    paths = link.paths()
    status = _status(paths.manage_socket)
    wrapper = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "aegis-wrap")
    return {
        "platform": platform.platform(),
        "executable": os.path.abspath(sys.executable),
        "wrapper": wrapper if os.access(wrapper, os.X_OK) else None,
        "sqlite": sqlite3.sqlite_version,
        "dependencies": {name: _installed(name) for name in MATTER},
        "config": paths.config,
        "config_exists": os.path.exists(paths.config),
        "state_dir": paths.state_dir,
        "run_dir": paths.run_dir,
        "socket": paths.socket,
        "log": paths.log,
        "tier": status["tier"] if status is not None else "isolated" if paths.doors else "advisory",
        "daemon_running": status is not None,
        "daemon_version": status["version"] if status is not None else None,
        "daemon_pid": status["pid"] if status is not None else None,
    }


def _installed(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as found

    try:
        return found(name)
    except PackageNotFoundError:
        return None


def _status(socket: str) -> dict[str, Any] | None:
    if not os.path.lexists(socket):
        return None
    try:
        with Connection(socket, timeout=2.0) as daemon:
            found: dict[str, Any] = daemon.call("status")
            return found
    except (DaemonAway, Refused):
        return None
