"""`aegis approve`: lets waiting calls run, once each."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis_daemon.cli.decision import Ids, Yes, decide
from aegis_daemon.cli.options import Json, new_app

app = new_app()


@app.command()
def approve(
    ids: Ids,
    yes: Yes = False,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Kept in the audit log.")] = "",
    as_json: Json = False,
) -> int:
    """Let waiting calls run, once each, exactly as shown."""
    return decide(ids, approve=True, yes=yes, note=note, as_json=as_json)
