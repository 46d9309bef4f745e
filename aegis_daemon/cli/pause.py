"""`aegis pause`: the panic switch. From now on nothing new runs, until a person says `aegis resume`."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis_daemon.cli import link, names
from aegis_daemon.cli.console import USAGE, Problem, emit, say, visible
from aegis_daemon.cli.decision import NOTE_MAX, own_key
from aegis_daemon.cli.options import Json, new_app

app = new_app()


@app.command()
def pause(
    agent: Annotated[
        str | None, typer.Argument(metavar="AGENT", autocompletion=names.agents, help="Which; without it, all of them.")
    ] = None,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Shown to people, and kept in the log.")] = "",
    as_json: Json = False,
) -> None:
    """Stop an agent, or all of them: every new call is refused. What runs already is left to end."""
    if len(note) > NOTE_MAX:
        raise Problem(f"the note has {len(note)} characters", f"{NOTE_MAX} are kept; shorten it", USAGE)
    row = link.call("pause", agent=agent, note=note, key=own_key())
    if agent is None:
        say("paused everything; `aegis resume` lifts it")
    else:
        say(f"paused {visible(agent)}; `aegis resume {visible(agent)}` lifts it")
    if as_json:
        emit(row)
