"""`aegis setup`: from nothing to governed; every change is seen before it is made, and until then none is made.

It finds the clients and their servers, asks each server for its tools, proposes what becomes of each, and writes the
configuration and the clients' files as `aegis agents wire` does. Rules are in force at once unless `--observe` is said:
what only reads passes and the rest waits for a person, so that nothing has to run unseen for a day to find out.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aegis_daemon.cli.agents import files, planning
from aegis_daemon.cli.console import USAGE, WRONG, Problem, interactive, visible
from aegis_daemon.cli.decision import guard, guard_named
from aegis_daemon.cli.names import clients as client_names
from aegis_daemon.cli.options import Json, new_app
from aegis_daemon.cli.setup import addresses, asking, doing, finding, rules
from aegis_daemon.cli.setup.questions import tell

app = new_app()


@app.command()
def setup(
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Govern this server, whatever clients there are.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="PATH", help="Only this client's file, whatever its kind.")
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(
            "--client",
            metavar="NAME",
            autocompletion=client_names,
            help="Only this client's files; with `--url`, who shall use it. Repeat it for several.",
        ),
    ] = None,
    server: Annotated[
        list[str] | None, typer.Option("--server", metavar="NAME", help="Only this server; repeat it for several.")
    ] = None,
    agent: Annotated[
        str | None, typer.Option("--agent", metavar="ID", help="The agent's id; else the client's own.")
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option("--trust", metavar="SERVER", help="Believe a server that says of a tool that it only reads."),
    ] = None,
    observe: Annotated[
        bool | None,
        typer.Option("--observe/--enforce", help="Record what rules would refuse, and refuse nothing; or go by them."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take what is proposed, and ask nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Find agents and their servers, propose a rule for each tool, and put them through Aegis.

    Nothing changes before you have seen all of it and agreed. Running it again is safe: it asks of what is new alone,
    and leaves rules that are there. `aegis agents undo` gives the clients' files back.
    """
    if agent is not None and not planning.ID.fullmatch(agent):
        raise Problem(f"`{visible(agent, 60)}` cannot be an agent's id", "use letters, digits, `-`, `_` or `.`", USAGE)
    if url is not None and server:
        raise Problem("`--url` and `--server` both name a server", "give one of them", USAGE)
    if file is not None and client and len(client) > 1:
        raise Problem("one `--file`, and several clients", "name one client, or none", USAGE)
    if url is not None:
        addresses.checked(url)
    for name in client or []:
        files.client_of(name)
    if not (yes or dry_run or interactive()):
        raise Problem("`aegis setup` asks on a terminal, and this is none", "pass `--yes`, or `--dry-run`", USAGE)
    asks = not (yes or dry_run)
    guard("wire")
    found = finding.find(url, file, client or [], server, agent, asks=asks)
    guard_named(found.work.paths, found.work.plans, "wire")
    if not asking.agreed(found, asks=asks, dry_run=dry_run):
        tell("nothing was started, and nothing was changed")
        return WRONG
    asking.asked(found, frozenset(trust or ()))
    rules.shown_rows(found, whole=dry_run and not sys.stdout.isatty(), as_json=as_json)
    if asks and any(path.rows for path in found.paths):
        rules.changed_by_person(found)
    rules.given_to_clients(found, asks=asks)
    guard_named(found.work.paths, found.work.plans, "wire")
    approval = rules.settled(found, observe, asks=asks)
    rules.written_down(found, approval, asks=asks)
    return doing.done(found, asks=asks, dry_run=dry_run, as_json=as_json)
