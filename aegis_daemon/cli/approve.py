"""`aegis approve`: lets waiting calls run, once each, or for a while with all that are like them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aegis_daemon.cli.console import USAGE, Problem
from aegis_daemon.cli.decision import Ids, Yes, decide
from aegis_daemon.cli.options import Json, new_app, seconds

app = new_app()


@app.command()
def approve(
    ids: Ids,
    yes: Yes = False,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Kept in the audit log.")] = "",
    time: Annotated[
        str | None,
        typer.Option("--for", metavar="DURATION", help="Remember it so long (`15m`) for the same call of this agent."),
    ] = None,
    free: Annotated[
        list[str] | None,
        typer.Option("--any", metavar="NAME", help="With --for: this argument may have any value; repeat it."),
    ] = None,
    any_arguments: Annotated[
        bool, typer.Option("--any-arguments", help="With --for: the arguments may be any.")
    ] = False,
    uses: Annotated[
        int | None, typer.Option("--uses", min=1, metavar="N", help="With --for: at most N calls; 100 otherwise.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Let waiting calls run, once each, exactly as shown; with --for, also calls like them for a while."""
    grant: dict[str, Any] | None = None
    if time is not None:
        if free and any_arguments:
            raise Problem("`--any` and `--any-arguments` together", "give one of the two", USAGE)
        grant = {"seconds": seconds("--for", time), "free": free or [], "any_arguments": any_arguments, "uses": uses}
    elif free or any_arguments or uses is not None:
        raise Problem(
            "`--any`, `--any-arguments` and `--uses` say what to remember", "say for how long: `--for 15m`", USAGE
        )
    return decide(ids, approve=True, yes=yes, note=note, as_json=as_json, grant=grant)
