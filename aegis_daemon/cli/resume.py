"""`aegis resume`: lifts what `aegis pause` stopped, and nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis_daemon.cli import link, names
from aegis_daemon.cli.console import emit, say, visible
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.options import Json, new_app

app = new_app()


@app.command()
def resume(
    agent: Annotated[
        str | None,
        typer.Argument(
            metavar="AGENT", autocompletion=names.agents, help="Which; without it, the pause of all together."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let an agent go on, or all of them. An agent that was paused by name stays paused until it is named."""
    row = link.call("resume", agent=agent, key=own_key())
    say(f"{visible(agent)} may go on" if agent is not None else "the pause of everything is lifted")
    left = [pause["agent_id"] for pause in link.call("status")["paused"]]
    for name in left:
        say("everything is still paused: `aegis resume`" if name is None else
            f"{visible(name)} is still paused: `aegis resume {visible(name)}`")  # fmt: skip
    if as_json:
        emit(row)
