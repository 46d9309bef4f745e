"""`aegis mode`: whether rules are enforced, and what they would have refused; they have to be seen to refuse first.

The daemon drives calls that the file forbids through rules made of it before the file is touched, and again when it
takes the file up. A person sees the change first, and the daemon has the last word on whether a person asks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import (
    AWAY,
    DONE,
    USAGE,
    WRONG,
    Problem,
    emit,
    facts,
    instant,
    interactive,
    local,
    say,
    show,
    span,
    visible,
)
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.editing import edited, show_difference, written
from aegis_daemon.cli.options import Json, new_app
from aegis_daemon.manage.client import Connection, DaemonAway, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

app = new_app()
MODES: Final = ("observe", "enforce")
WOULD: Final = {
    "count": "calls",
    "stage": "stage",
    "rule": "rule",
    "agents": "agents",
    "tools": "tools",
    "last": "last",
}
SAYS: Final = {
    "observe": "rules are not enforced: what they would refuse passes, and is recorded",
    "enforce": "rules are enforced",
}


@app.command()
def mode(
    wanted: Annotated[
        str | None, typer.Argument(metavar="[MODE]", help="`observe` or `enforce`; without it, what holds.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try the rules, show the change and make none.")] = False,
    as_json: Json = False,
) -> int:
    """Show whether rules are enforced and what they would have refused; or change it, once they are seen to refuse."""
    if wanted is None:
        return _show(link.call("mode"), as_json=as_json)
    if wanted not in MODES:
        raise Problem(f"`{visible(wanted, 60)}` is no mode", "write `observe` or `enforce`", USAGE)
    if not (yes or dry_run or interactive()):
        told = f"`aegis mode {wanted}` asks on a terminal, and this is none"
        raise Problem(told, "pass `--yes`, or `--dry-run`", USAGE)
    return _change(wanted, yes=yes, dry_run=dry_run, as_json=as_json)


# --- showing ----------------------------------------------------------------------------------------------------------


def _show(found: dict[str, Any], *, as_json: bool) -> int:
    proof = found["proof"]
    code = DONE if proof["healthy"] else WRONG
    if as_json:
        emit(found)
        return code
    since = f", for {span(time.time() - instant(found['since']))}" if found["since"] else ""
    by = f" (by {visible(found['by'])})" if found["by"] else ""
    facts(
        [
            ("mode", f"{found['mode']}{since}{by}: {SAYS[found['mode']]}"),
            ("proof", proved(proof)),
            *(("", f"no call is known to which the policy `{visible(id)}` applies") for id in proof["unseen"][:5]),
        ]
    )
    if found["mode"] == "enforce":
        return code
    print()
    total = sum(row["count"] for row in found["would"])
    rows = [{**row, "last": local(row["last_at"])} for row in found["would"]]
    show(rows, WOULD, "no call of the last 24 hours would have been refused")
    if total:
        them = "1 call" if total == 1 else f"{total} calls"
        say(f"{them} of the last 24 hours would have been refused: `aegis audit search --status would` lists them")
    say("`aegis mode enforce` makes the rules hold")
    return code


def proved(proof: Mapping[str, Any]) -> str:
    """One line about the last proof."""
    if not proof["healthy"]:
        return f"FAILED, so nothing is executed: {visible(proof['detail'])}"
    if proof["at"] is None:
        return "none yet"
    ago = span(time.time() - instant(proof["at"]))
    return f"{_refused(proof)}, {ago} ago"


def _refused(proof: Mapping[str, Any]) -> str:
    count = proof["calls"]
    return f"{count} call{'' if count == 1 else 's'} that must be refused {'was' if count == 1 else 'were'} refused"


# --- changing ---------------------------------------------------------------------------------------------------------


def _change(wanted: str, *, yes: bool, dry_run: bool, as_json: bool) -> int:
    from aegis_daemon.config.edit import difference, with_mode

    key = own_key()
    with link.connect() as daemon:
        found: dict[str, Any] = daemon.call("mode")
        path = found["config"]
        if path is None:
            raise Problem("the daemon has no configuration file", "make one with `aegis config init`, then reload")
        proof: dict[str, Any] = daemon.call("set_mode", mode=wanted, check=True, key=key)
        old, text = edited(path, lambda text: with_mode(text, path, wanted))
        diff = difference(old.decode("utf-8"), text) if text.encode() != old else []
        row: dict[str, Any] = {
            "mode": wanted, "was": found["mode"], "config": path, "diff": "\n".join(diff), "changed": False,
            "reloaded": False, "proof": proof,
        }  # fmt: skip
        code = DONE
        if not diff and found["mode"] == wanted:
            say(f"the mode is `{wanted}` already; nothing to do")
        else:
            _tell(wanted, path, proof, diff, as_json=as_json)
            if not dry_run:
                if not yes and not typer.confirm("make this change?", default=False, err=True):
                    raise typer.Abort
                code = _apply(daemon, wanted, path, old, text.encode(), key, row)
    if as_json:
        emit(row)
    return code


def _tell(wanted: str, path: str, proof: Mapping[str, Any], diff: list[str], *, as_json: bool) -> None:
    say(f"the file's rules were tried: {_refused(proof)}")
    for kind, count in proof["kinds"].items():
        say(f"  {count:4}  {visible(kind)}")
    for id in proof["unseen"][:5]:
        say(f"  no call is known to which the policy `{visible(id)}` applies; `proof` can name one")
    say(f"in {visible(path)}:" if diff else f"{visible(path)} says `mode: {wanted}` already, and is taken up")
    if not as_json:
        show_difference(diff)
    if wanted == "observe":
        say("warning: from then on calls pass that a rule refuses, or a limit, or for which a person would be asked")


def _apply(
    daemon: Connection, wanted: str, path: str, old: bytes, new: bytes, key: str | None, row: dict[str, Any]
) -> int:
    """Writes the file and has it taken up. Raises `Problem`, and then the file is as it was."""
    from aegis_daemon.config.rewrite import Moved, replace

    if new != old:
        written(path, old, new, keep=False)
        row["changed"] = True
    try:
        daemon.call("set_mode", mode=wanted, key=key)
    except DaemonAway:
        say("the daemon went away; the mode holds when it starts again")
        return AWAY
    except Refused as refused:
        if new != old:
            try:
                replace(path, new, old, keep=False)
            except (Moved, OSError):
                raise Problem(
                    f"the daemon refuses the file: {refused.message}", f"write the old mode into {path}"
                ) from None
        back = ", so it was put back" if new != old else ""
        raise Problem(f"the daemon refuses the file{back}: {refused.message}", refused.hint) from None
    row["reloaded"] = True
    say(f"the mode is `{wanted}` from now on: {SAYS[wanted]}")
    return DONE
