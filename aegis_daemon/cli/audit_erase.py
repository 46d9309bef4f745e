"""`aegis audit erase`: arguments and results of calls go from every file of the log; the records of the calls stay."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aegis_daemon.cli.audit_offline import ask
from aegis_daemon.cli.audit_purge import instant_of
from aegis_daemon.cli.console import USAGE, WRONG, Problem, emit, interactive, say, visible
from aegis_daemon.cli.decision import NOTE_MAX, Yes, own_key
from aegis_daemon.cli.options import Json


def erase(
    ids: Annotated[list[str] | None, typer.Argument(metavar="CALL", help="Call ids, or their beginnings.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", metavar="ID", help="Every call of this agent.")] = None,
    before: Annotated[
        str | None, typer.Option("--before", metavar="TIME", help="Only calls older than `90d`, or from before a date.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="Only calls with this in arguments or results.")
    ] = None,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Kept in the log.")] = "",
    yes: Yes = False,
    as_json: Json = False,
) -> int:
    """Erase the arguments and results of calls for good. That they were made, and what became of them, stays."""
    if bool(ids) == any(each is not None for each in (agent, before, text)):
        raise Problem(
            "say which calls: by their ids, or by `--agent`, `--before` and `--text`", "see `aegis audit search`", USAGE
        )
    if len(note) > NOTE_MAX:
        raise Problem(f"the note has {len(note)} characters", f"{NOTE_MAX} are kept; shorten it", USAGE)
    if not yes and not interactive():
        raise Problem("`aegis audit erase` asks on a terminal, and this is none", "pass `--yes`", USAGE)
    which: dict[str, Any] = {
        "ids": ids or [],
        "agent": agent,
        "before": instant_of("--before", before) if before is not None else None,
        "text": text,
        "key": own_key(),
    }
    found = ask("erase_audit", dry=True, **which)
    if found["running"]:
        say(f"{found['running']} calls have not ended yet, or an ask of theirs is open; they are left out")
    if not found["bodies"]:
        if as_json:
            emit(found)
        else:
            say("nothing to erase: no such call has arguments or results")
        return 0
    say(f"{found['bodies']} arguments and results of {found['calls']} calls would be gone")
    say("the records stay, and with them names of tools, URIs of resources, ids of requests and error texts")
    for place in found["elsewhere"]:
        say(f"not touched, and may hold some: {visible(place)}")
    if not yes and not typer.confirm("erase them for good?", default=False, err=True):
        say("erased nothing")
        return 0
    found = ask("erase_audit", bodies=found["bodies"], note=note, **which)
    if as_json:
        emit(found)
    elif found["done"]:
        say(f"erased, by the order of record {found['seqs'][0]}; `aegis audit verify` counts them")
    else:
        say("ordered, and still being carried out; see `aegis status`")
    return 0 if found["done"] else WRONG
