"""`aegis reject`: refuses waiting calls."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis_daemon.cli.decision import Ids, Yes, decide
from aegis_daemon.cli.options import Json, new_app

app = new_app()


@app.command()
def reject(
    ids: Ids,
    yes: Yes = False,
    reason: Annotated[
        str, typer.Option("--reason", "--note", metavar="TEXT", help="Told to the agent, and kept in the audit log.")
    ] = "",
    as_json: Json = False,
) -> int:
    """Refuse waiting calls."""
    return decide(ids, approve=False, yes=yes, note=reason, as_json=as_json)
