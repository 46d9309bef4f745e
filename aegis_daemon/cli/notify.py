"""`aegis notify`: the ways by which people are told of waiting calls, and whether a message gets through."""

from __future__ import annotations

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import DONE, WRONG, Problem, emit, local, say, show, visible
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.options import Json, new_app

app = new_app(bare=True)
COLUMNS = {
    "name": "channel",
    "ways": "decides by",
    "state": "state",
    "sent": "sent",
    "failed": "failed",
    "waiting": "waiting",
    "last_ok": "last delivered",
    "last_error": "last error",
}
NONE = "no channel is configured; add one under `approval`, `telegram` for example (README, Settings)"


@app.callback()
def notify(context: typer.Context, as_json: Json = False) -> None:
    """Ways to reach people. Without a command: the list."""
    if context.invoked_subcommand is None:
        _list(as_json)


@app.command("list")
def rows(as_json: Json = False) -> None:
    """Each configured channel and how it is doing; `deaf` ones tell people and cannot hear their answers."""
    _list(as_json)


@app.command("test")
def try_out(
    channel: str | None = typer.Argument(None, metavar="CHANNEL", help="As `aegis notify list` names it; else all."),
    as_json: Json = False,
) -> int:
    """Send a marked test message through each channel; 1 when one fails. There is nothing in it to decide."""
    found = link.call("notify_test", channel=channel, key=own_key())
    if as_json:
        emit(found)
    elif not found:
        raise Problem("there is nothing to test", NONE)
    else:
        for row in found:
            say(f"{visible(row['name'])}: {'sent' if row['ok'] else visible(row['detail'])}")
    return DONE if found and all(row["ok"] for row in found) else WRONG


def _list(as_json: bool) -> None:
    found = link.call("notify_list")
    if as_json:
        emit(found)
        return
    shown = [{**row, "last_ok": local(row["last_ok_at"]) if row["last_ok_at"] else None} for row in found]
    show(shown, COLUMNS, NONE)
