"""`aegis audit erase`: arguments and results of calls go from every file of the log; the records of the calls stay."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aegis_daemon.cli.audit.log import what
from aegis_daemon.cli.audit.offline import ask
from aegis_daemon.cli.audit.purge import instant_of
from aegis_daemon.cli.console import USAGE, WRONG, Problem, emit, interactive, local, say, visible
from aegis_daemon.cli.decision import NOTE_MAX, Yes, own_key
from aegis_daemon.cli.options import Json


def erase(
    ids: Annotated[list[str] | None, typer.Argument(metavar="CALL", help="Call ids, or their beginnings.")] = None,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="ID", help="Every call of this agent (globs work).")
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", metavar="NAME", help="Every call of this backend (globs work).")
    ] = None,
    tool: Annotated[
        str | None, typer.Option("--tool", metavar="NAME", help="Every call of this tool (globs work).")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only calls not older than `24h`, or from a date on.")
    ] = None,
    before: Annotated[
        str | None, typer.Option("--before", metavar="TIME", help="Only calls older than `90d`, or from before a date.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="Only calls with this in arguments or results.")
    ] = None,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Kept in the log.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which calls it would be.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> int:
    """Erase the arguments and results of calls for good. That they were made, and what became of them, stays."""
    if bool(ids) == any(each is not None for each in (agent, backend, tool, since, before, text)):
        raise Problem(
            "say which calls: by their ids, or by `--agent`, `--backend`, `--tool`, `--since`, `--before` and `--text`",
            "see `aegis audit search`",
            USAGE,
        )
    if len(note) > NOTE_MAX:
        raise Problem(f"the note has {len(note)} characters", f"{NOTE_MAX} are kept; shorten it", USAGE)
    which: dict[str, Any] = {
        "ids": ids or [],
        "agent": agent,
        "backend": backend,
        "tool": tool,
        "since": instant_of("--since", since) if since is not None else None,
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
    if not yes and not dry_run and not interactive():
        raise Problem("`aegis audit erase` asks on a terminal, and this is none", "pass `--yes`", USAGE)
    say(f"{found['bodies']} arguments and results of {found['calls']} calls would be gone")
    say("the records stay, and with them names of tools, URIs of resources, ids of requests and error texts")
    for place in found["elsewhere"]:
        say(f"not touched, and may hold some: {visible(place)}")
    if dry_run and as_json:
        emit(found)
        return 0
    if dry_run or not yes:
        _list(found)
    if dry_run:
        return 0
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


def _list(found: dict[str, Any]) -> None:
    """The newest of the calls, one a line."""
    for call in found["first"]:
        say(
            f"  {local(call['created_at'])}  {call['call_id'][:12]}  {visible(call['agent_id'])}  {visible(what(call))}"
        )
    if found["calls"] > len(found["first"]):
        say(f"  and {found['calls'] - len(found['first'])} older ones")
