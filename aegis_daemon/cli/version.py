"""`aegis version`: what is installed, without asking the daemon."""

from __future__ import annotations

from aegis_daemon import __version__
from aegis_daemon.cli.console import emit
from aegis_daemon.cli.options import Json, new_app

app = new_app()


@app.command()
def version(as_json: Json = False) -> None:
    """Which version this is, and of which Python."""
    import platform

    row = {
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if as_json:
        emit(row)
    else:
        print(f"aegis {row['version']} (Python {row['python']}, {row['system']})")
