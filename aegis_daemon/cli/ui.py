"""`aegis ui`: opens the inbox in a browser, logged in; only a person's shell is given a way in.

The token never stands on a command line, where every process of the machine could read it: the browser is given a file
that only its owner can read, which leads on to the inbox.
"""

from __future__ import annotations

import html
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import DONE, emit, say, visible
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.options import Json, new_app

app = new_app()
NAME = "inbox.html"


@app.command()
def ui(
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the address; open nothing.")] = False,
    logout: Annotated[bool, typer.Option("--logout", help="End every session in every browser.")] = False,
    as_json: Json = False,
) -> int:
    """Open the inbox in a browser, logged in as you. The login is good once, for two minutes."""
    found = link.call("ui_login", end=logout, key=own_key())
    if logout:
        if as_json:
            emit({"ended": found["ended"]})
        else:
            say(f"ended {found['ended']} session{'' if found['ended'] == 1 else 's'}")
        return DONE
    url = str(found["url"])
    if as_json:
        emit({"url": url, "by": found["by"], "expires_at": found["expires_at"]})
        return DONE
    if not no_open and _opened(url):
        say(f"opened the inbox as {visible(found['by'])}; if no browser shows it, run `aegis ui --no-open`")
        return DONE
    print(url)
    say("open this address within two minutes; it works once")
    return DONE


def _opened(url: str) -> bool:
    """Whether a browser was asked to show it."""
    import webbrowser

    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or _has_screen()):
        return False
    try:
        page = _page(url)
        return webbrowser.open(page.as_uri())
    except (OSError, webbrowser.Error):
        return False


def _has_screen() -> bool:
    import sys

    return sys.platform in ("darwin", "win32")


def _page(url: str) -> Path:
    """A file of our own, 0600, that leads to the address. The next one takes its place."""
    folder = Path(link.paths().state_dir)
    handle, made = tempfile.mkstemp(dir=folder, prefix=".inbox-", suffix=".html")  # 0600 from the instant it exists
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            place = html.escape(url)
            file.write(
                f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={place}">'
                f'<title>Aegis</title><a href="{place}">Open the inbox</a>\n'
            )
        os.replace(made, folder / NAME)
    except BaseException:
        with suppress(OSError):
            os.unlink(made)
        raise
    return folder / NAME
