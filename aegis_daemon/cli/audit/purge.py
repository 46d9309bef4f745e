"""`aegis audit purge`: what is older than a time goes; its hashes stay, so that the rest can still be verified."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from aegis_daemon.cli.audit.offline import ask
from aegis_daemon.cli.console import USAGE, Problem, emit, interactive, say, visible
from aegis_daemon.cli.decision import Yes, own_key
from aegis_daemon.cli.options import Json, since_epoch


def purge(
    before: Annotated[
        str, typer.Option("--before", metavar="TIME", help="Older than `90d`, or from before `2026-01-31`.")
    ],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove old records for good, up to the last checkpoint from before that time. The log says that it was done."""
    at = instant_of("--before", before)
    if not yes and not interactive():
        raise Problem("`aegis audit purge` asks on a terminal, and this is none", "pass `--yes`", USAGE)
    key = own_key()
    found: dict[str, Any] = ask("purge_audit", before=at, dry=True, key=key)
    held = visible(found["held"])
    if not found["last"]:
        if as_json:
            emit(found)
        else:
            say(f"nothing to purge{f': {held}' if held else ''}")
        return
    say(
        f"{found['records']} records ({found['first']} to {found['last']}), {found['calls']} calls and "
        f"{found['bodies']} arguments and results would be gone; calls that go on after that stay"
    )
    if held:
        say(f"more stays: {held}")
    if not yes and not typer.confirm("remove them for good?", default=False, err=True):
        say("removed nothing")
        return
    found = ask("purge_audit", before=at, last=found["last"], key=key)
    if as_json:
        emit(found)
        return
    say(f"ordered by record {found['seq']}, and being carried out; `aegis audit verify` says what is left")


def instant_of(option: str, text: str) -> str:
    """A time of an option, as RFC 3339. Raises `Problem`."""
    try:
        seconds = since_epoch(text)
    except Problem:
        raise Problem(
            f"{option}: `{visible(text)}` is no time", f"write `{option} 90d` or `{option} 2026-01-31`", USAGE
        ) from None
    assert seconds is not None
    return datetime.fromtimestamp(seconds, UTC).isoformat()
