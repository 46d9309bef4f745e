"""`aegis pending`: what waits for a person; `--watch` shows it come and go and takes decisions on the spot."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import compact, emit, instant, say, show, span, visible
from aegis_daemon.cli.decision import RETRY, what
from aegis_daemon.cli.options import Agent, Backend, Json, Limit, Since, Tool, new_app, none_left, pick, since_epoch
from aegis_daemon.manage.client import DaemonAway

app = new_app()
COLUMNS = {
    "id": "id",
    "agent_id": "agent",
    "what": "call",
    "arguments": "arguments",
    "left": "expires in",
    "state": "state",
    "agreed": "agreed",
    "waiting": "client waits",
}


@app.command()
def pending(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay, and show what comes.")] = False,
    agent: Agent = None,
    backend: Backend = None,
    tool: Tool = None,
    since: Since = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Calls that wait for a person. Decide with `aegis approve ID` or `aegis reject ID`."""
    after = since_epoch(since)

    def picked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return pick(rows, agent=agent, backend=backend, tool=tool, since=after, limit=limit)

    if watch:
        try:
            if not as_json and sys.stdout.isatty():
                from aegis_daemon.cli.watch import live

                live(lambda ticket: bool(picked([ticket])))
            else:
                _lines(lambda ticket: bool(picked([ticket])))
        except KeyboardInterrupt:
            pass
        return
    rows = picked(link.call("pending"))
    if as_json:
        emit(rows)
        return
    now = time.time()
    shown = [
        {
            **row,
            "what": what(row),
            "arguments": compact(row["arguments"]),
            "left": span(instant(row["expires_at"]) - now),
            "agreed": f"{row['given']}/{row['needed']}",
        }
        for row in rows
    ]
    empty = none_left("nothing waits for you", agent=agent, backend=backend, tool=tool, other=since is not None)
    show(shown, COLUMNS, empty)
    for row in rows:
        if row.get("unlike"):
            unlike = visible(row["unlike"])
            say(f"{row['id']} would run in another server than the call approved before; different: {unlike}")
    states = {row["state"] for row in rows}
    if "pending" in states:
        say("decide with `aegis approve ID` or `aegis reject ID`")
    if "approved" in states:
        say(f"`approved` ones need nothing more from you: {RETRY}")


def _lines(wanted: Any) -> None:
    """One line for each event, the ticket's fields beside `event` and `by`."""
    with link.connect() as daemon:
        daemon.subscribe("watch_pending")
        for event in daemon.events():
            if wanted(event["ticket"]):
                emit({"event": event["event"], "by": event.get("by"), **event["ticket"]})
    raise DaemonAway("the daemon has stopped")
