"""`aegis tools`: what servers say of their tools and of themselves, how it has changed, and trusting the change.

A hash that a person expects is the only way to trust: what a server offers may be another thing by the time of a yes.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import USAGE, WRONG, Problem, coloured, emit, interactive, local, say, show, visible
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.options import Json, Limit, new_app, none_left
from aegis_daemon.manage.client import Connection, DaemonAway, Refused

app = new_app(bare=True)
COLUMNS = {"backend_id": "backend", "kind": "kind", "shown": "name", "state": "state", "hash": "hash", "note": "note"}
Backend = Annotated[str | None, typer.Option("--backend", metavar="NAME", help="Only this backend.")]
KindOf = Annotated[
    str | None, typer.Option("--kind", metavar="KIND", help="Only `tool`, `prompt`, `template` or `instructions`.")
]
Changed = Annotated[bool, typer.Option("--changed", help="Only what is not usable before a person trusts it.")]
KINDS = ("tool", "prompt", "template", "instructions")


def complete(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names for the shell, each with what it is; to be trusted, only what is not. Hostile ones are left out."""
    try:
        with Connection(link.paths().manage_socket, timeout=1.0) as daemon:
            rows = daemon.call("pins", backend=context.params.get("backend"), changed=context.info_name == "trust")
    except (DaemonAway, Refused):
        return []
    named = [(row["name"] or row["kind"], f"{row['kind']} of {row['backend_id']}, {row['state']}") for row in rows]
    return [
        (name, visible(what, 80))
        for name, what in named
        if name.startswith(incomplete) and visible(name) == name and not set(name) & _SHELL
    ][:COMPLETED]


_SHELL = frozenset(" \t\n\"'`$&|;<>()*?[]#~!{}\\")
COMPLETED = 100
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", autocompletion=complete, help="As `aegis tools list` shows it, or `backend.name`."),
]


@app.callback()
def tools(
    context: typer.Context,
    backend: Backend = None,
    kind: KindOf = None,
    changed: Changed = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """What servers have, as they said when it was first seen or last trusted. Without a command: the list."""
    if context.invoked_subcommand is None:
        _list(backend, kind, changed, limit, as_json)


@app.command("list")
def rows(
    backend: Backend = None,
    kind: KindOf = None,
    changed: Changed = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Tools, prompts, templates and instructions, and whether they still are what they were.

    With `--changed` the exit code is 1 where anything waits for a person.
    """
    _list(backend, kind, changed, limit, as_json)


@app.command()
def diff(name: Name, backend: Backend = None, kind: KindOf = None, as_json: Json = False) -> None:
    """How something differs from what was trusted. Unseen and misleading characters are written as their escapes."""
    found = link.call("pin_diff", name=name, backend=backend, kind=_kind(kind))
    if as_json:
        emit(found)
        return
    _show_diff(found)
    pin = found["pin"]
    if pin["state"] != "trusted":
        say(f"to let it be used: `aegis tools trust {_named(pin)} --expect {pin['offered']}`")


@app.command()
def trust(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", autocompletion=complete, help="As `aegis tools list` shows it, or `backend.name`."
        ),
    ] = None,
    expect: Annotated[
        str | None, typer.Option("--expect", metavar="HASH", help="What it is now, as `aegis tools diff` shows it.")
    ] = None,
    also: Annotated[bool, typer.Option("--also", help="Beside what was trusted before, not in its place.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Everything that is not usable, one question each.")
    ] = False,
    backend: Backend = None,
    kind: KindOf = None,
    as_json: Json = False,
) -> None:
    """Let something be used as it is now. Approvals and grants from before do not hold for it."""
    if everything:
        if name is not None or expect is not None:
            raise Problem("`--all` goes through everything that changed", "leave NAME and `--expect` out", USAGE)
        done = _one_by_one(backend, _kind(kind), also)
    else:
        if name is None or expect is None:
            raise Problem(
                "say what, and what you expect it to be: NAME and `--expect HASH`", "see `aegis tools diff NAME`", USAGE
            )
        done = [_trust({"name": name, "backend": backend, "kind": _kind(kind)}, expect, also)]
    if as_json:
        emit(done)


def _trust(what: dict[str, Any], expect: str, also: bool) -> dict[str, Any]:
    row: dict[str, Any] = link.call("trust", **what, expect=expect, also=also, key=own_key())
    say(f"trusted {_title(row)}: {row['offered']}")
    return row


def _one_by_one(backend: str | None, kind: str | None, also: bool) -> list[dict[str, Any]]:
    found = link.call("pins", backend=backend, kind=kind, changed=True)
    if not found:
        say("everything is as it was trusted")
        return []
    if not interactive():
        raise Problem(
            f"{len(found)} have changed, and nobody is there to ask", "run it in a terminal, or trust each by its hash"
        )
    done = []
    for row in found:
        what = {"name": row["name"] or row["kind"], "backend": row["backend_id"], "kind": row["kind"]}
        _show_diff(link.call("pin_diff", **what), sys.stderr)
        if typer.confirm(f"let {_title(row)} be used as it is now?", default=False, err=True):
            done.append(_trust(what, row["offered"], also))
    return done


def _list(backend: str | None, kind: str | None, changed: bool, limit: int | None, as_json: bool) -> None:
    found = link.call("pins", backend=backend, kind=_kind(kind), changed=changed)[:limit]
    stopped = sum(row["state"] != "trusted" for row in found)
    if as_json:
        emit(found)
    else:
        empty = none_left("no server has been listed yet", backend=backend, other=kind is not None)
        _show_list(found, "everything is as it was trusted" if changed else empty, stopped)
    if changed and stopped:
        raise typer.Exit(WRONG)


def _show_list(found: list[dict[str, Any]], empty: str, stopped: int) -> None:
    shown = [
        {**row, "shown": row["shown"] or row["name"] or row["kind"], "hash": row["offered"][:16], "note": _note(row)}
        for row in found
    ]
    show(shown, COLUMNS, empty)
    if stopped:
        say(f"{stopped} not usable: look at each with `aegis tools diff NAME`")


def _note(row: dict[str, Any]) -> str:
    notes = [f"a name like {', '.join(row['like'])}"] if row["like"] else []
    if row["fault"]:
        notes.insert(0, f"policy fault: {row['fault']}")
    if row["shadows"]:
        notes.append(f"shadows {', '.join(row['shadows'])}")
    if not row["name"].isascii():
        notes.append("letters that are not plain Latin")
    if row["changed_at"] is not None and row["state"] == "changed":
        notes.append(f"since {local(row['changed_at'])}")
    if row["trusted_by"]:
        notes.append(f"trusted by {row['trusted_by']}")
    return "; ".join(notes)


def _show_diff(found: dict[str, Any], to: Any = None) -> None:
    pin, to = found["pin"], to or sys.stdout
    if pin["state"] == "trusted":
        say(f"{_title(pin)} is as it was trusted: {pin['offered']}")
        return
    if pin["like"]:
        say(f"note: its name is like {', '.join(map(visible, pin['like']))}")
    if pin["shadows"]:
        say(f"note: {', '.join(map(visible, pin['shadows']))} had its name before")
    if found["again"]:
        say(f"{_title(pin)} is offered as it was trusted again; before that it was offered like this:")
    if not found["whole"]:
        say(f"{_title(pin)} is another one, and its text could not be kept; compare it at its server")
    if found["cut"]:
        say(f"more of {_title(pin)} has changed than is shown; compare it at its server")
    colour = coloured(to)
    for line in found["lines"]:
        text = visible(line)
        tint = {"+": "32", "-": "31", "@": "36"}.get(text[:1]) if colour else None
        print(f"\x1b[{tint}m{text}\x1b[0m" if tint else text, file=to)


def _kind(kind: str | None) -> str | None:
    if kind is not None and kind not in KINDS:
        raise Problem(f"`{kind}` is no kind", f"one of {', '.join(f'`{one}`' for one in KINDS)}", USAGE)
    return kind


def _title(row: dict[str, Any]) -> str:
    backend = visible(row["backend_id"])
    return (
        f"the instructions of `{backend}`"
        if row["kind"] == "instructions"
        else (f"the {row['kind']} `{visible(row['shown'] or row['name'])}` of `{backend}`")
    )


def _named(row: dict[str, Any]) -> str:
    """How it is named in a command; for a person to copy, so quoted for a shell."""
    import shlex

    name = shlex.quote(visible(row["name"] or row["kind"]))
    return f"{name} --backend {shlex.quote(visible(row['backend_id']))} --kind {row['kind']}"
