"""`aegis audit key`: the key that signs the log, for whoever verifies it; the old one vouches for the next one."""

from __future__ import annotations

from itertools import pairwise

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.audit.verify import signing
from aegis_daemon.cli.console import USAGE, Problem, emit, facts, interactive, say, visible
from aegis_daemon.cli.decision import Yes, own_key
from aegis_daemon.cli.options import Json, new_app

app = new_app(bare=True)


@app.callback()
def key(context: typer.Context, as_json: Json = False) -> None:
    """The public key that checkpoints are signed with; `rotate` makes a new one."""
    if context.invoked_subcommand is not None:
        return
    from aegis_daemon.audit import keys
    from aegis_daemon.audit.checkpoint import verifier_key

    path = signing()[0]
    try:
        ring = keys.read_ring(path)
    except OSError as error:
        why = f"`{keys.public_path(path)}` cannot be read: {error.strerror}"
        raise Problem(why, "ask who runs the daemon") from None
    publics = keys.follow(ring)
    if not publics:
        raise Problem(f"there is no key `{path}` yet", "the daemon makes one when it first signs: `aegis daemon start`")
    origin = _origin()
    rows = [
        {"public": public.hex(), "since": row.since, "verifier": verifier_key(origin or keys.NAME, public)}
        for public, row in zip(publics, ring, strict=False)
    ]
    if as_json:
        emit({"file": str(path), "origin": origin, "keys": rows})
        return
    facts(
        [
            ("file", visible(str(path))),
            ("signs", visible(origin or "nothing yet")),
            ("since", rows[-1]["since"]),
            ("public key", rows[-1]["public"]),
            ("for verifiers", rows[-1]["verifier"]),
            *((f"before {row['since']}", before["public"]) for before, row in pairwise(rows)),
        ]
    )
    print()
    print(keys.public_pem(publics[-1]), end="")


@app.command()
def rotate(yes: Yes = False, as_json: Json = False) -> None:
    """Sign with a new key from now on; the old one and the new one vouch for each other, and the log keeps that."""
    if not yes:
        if not interactive():
            raise Problem("`aegis audit key rotate` asks on a terminal, and this is none", "pass `--yes`", USAGE)
        if not typer.confirm("sign with a new key from now on, and destroy the old one?", default=False, err=True):
            say("left the key as it is")
            return
    found = link.call("rotate_audit_key", key=own_key())
    if as_json:
        emit(found)
        return
    print(found["note"], end="")
    say(f"checkpoints are signed with {visible(found['public'])} from now on; whoever trusts the old key accepts it")


def _origin() -> str:
    from aegis_daemon.cli.audit.log import opened

    try:
        with opened(None) as reader:
            return (reader.newest_checkpoint() or "").partition("\n")[0]
    except Problem:
        return ""
