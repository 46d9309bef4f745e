"""`aegis allow`: the rule that refused a call is changed so that it passes, and nothing else does.

A person sees the change before it is made, the file keeps everything else that is in it, and the daemon has the last
word on whether a person asks.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aegis_daemon.cli import editing, link, typos
from aegis_daemon.cli.console import (
    AWAY,
    DONE,
    USAGE,
    Problem,
    emit,
    interactive,
    local,
    say,
    visible,
)
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.editing import show_difference, written
from aegis_daemon.cli.options import Config, Json, new_app
from aegis_daemon.manage.client import Connection, DaemonAway, Refused

if TYPE_CHECKING:
    from aegis_daemon.config.edit import Edited

app = new_app()
ELSEWHERE: Final = {
    "rate_limit": (
        "a limit was used up",
        "wait for it, or add to it once with `aegis limits grant {where} --tool {tool}`",
    ),
    "queue": ("the backend's queue was full, or too much was under way", "see `aegis queue`, and repeat the call"),
    "approval": (
        "a person did not agree to it, or not in time",
        "when the agent repeats it: `aegis pending`, then `aegis approve ID`, with `--for 15m` for more than once",
    ),
    "paused": ("a person has paused it", "`aegis resume {agent}`, or `aegis resume` where everything is paused"),
    "policy": (
        "a policy or a rule on arguments forbids it, and those are not changed by program",
        "see which with `aegis policy explain {call}`, and change it by hand",
    ),
    "pin": (
        "the definition of what it names has changed since it was trusted, or nobody has trusted it yet",
        "look at it before you trust it: `aegis tools diff {tool}`",
    ),
    "method": ("the method is not one that Aegis knows, and unknown ones are never passed on", "update Aegis"),
    "params": ("it does not say what it is about", "mend the agent; no rule can let it pass"),
    "version": ("its protocol version is not one that Aegis knows", "update Aegis, or the agent"),
    "audit": ("the log could not be written, and without it nothing runs", "see `aegis status`"),
    "forward": ("the rules let it pass, and the server could not be reached", "see `aegis audit show {call}`"),
    "internal": ("a fault in Aegis ended it, and no rule", "see `aegis logs`"),
    "restart": ("the daemon was being stopped", "the agent can repeat it"),
    "withdrawn": ("its client took it back before it ran", "the agent can repeat it"),
    "replay": ("the answer of an approved call was given again instead of running it twice", "there is nothing to do"),
}
"""What refused a call that the lists have nothing to do with: why there is nothing to allow, and the next step."""


@app.command()
def allow(
    call: Annotated[str, typer.Argument(metavar="CALL_ID", help="A refused call's id, or its beginning.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the change and make none.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Change the configuration so that a refused call passes, and nothing else; shows the change first."""
    key = own_key()
    with link.connect() as daemon:
        asked: dict[str, Any] = daemon.call("explain_refusal", id=call.strip(), key=key)
        _for_lists(asked)
        _there(daemon, asked)
        status: dict[str, Any] = daemon.call("status")
        path = _file(config, status)
        in_force = status["config"] is not None and os.path.realpath(path) == os.path.realpath(status["config"])
        old, edited = _edited(path, asked)
        row = _row(asked, path, old, edited)
        fresh = in_force and edited.digest != status["config_digest"]
        if not edited.steps:
            text = "today's rules let this call pass"
            say(
                f"{text} as the file stands; apply it with `aegis daemon reload`" if fresh else f"{text}; nothing to do"
            )
            if as_json:
                emit(row)
            return DONE
        if not (yes or dry_run or interactive()):
            raise Problem("`aegis allow` asks on a terminal, and this is none", "pass `--yes`, or `--dry-run`", USAGE)
        _show(asked, path, row, edited, fresh=fresh, as_json=as_json)
        if dry_run:
            if as_json:
                emit(row)
            return DONE
        if not yes and not typer.confirm("make this change?", default=False, err=True):
            raise typer.Abort
        code = _apply(daemon, path, old, edited, row, in_force=in_force)
    if as_json:
        emit(row)
    return code


def _for_lists(asked: dict[str, Any]) -> None:
    """Raises `Problem` for a call that was not refused, or by something else than the lists."""
    status, stage = asked["exec_status"], asked["stage"]
    short = asked["call_id"][:12]
    if status == "pending" and not asked["would"]:
        raise Problem("the call was not refused: it waits for a person", "see `aegis pending`")
    if status != "denied" and not asked["would"]:
        raise Problem(f"the call was not refused: its outcome is `{status}`", f"see `aegis audit show {short}`")
    if stage == "acl" and asked["subject"] != "unknown":
        return
    if stage == "acl":
        raise Problem("the log does not tell any more what the call was for", f"see `aegis audit show {short}`")
    why, hint = ELSEWHERE.get(stage, ("it was refused for another reason", "see `aegis audit show {call}`"))
    agent, backend, tool = (shlex.quote(asked[name]) for name in ("agent_id", "backend_id", "tool_name"))
    where = f"--agent {agent} --backend {backend}"
    hint = hint.format(where=where, tool=tool, agent=agent, call=short)
    said = f" (`{asked['reason']}`)" if asked["reason"] else ""
    raise Problem(f"there is no rule to change: {why}{said}", hint)


def _there(daemon: Connection, asked: dict[str, Any]) -> None:
    """Raises `Problem` for a tool that its server does not have: a rule for it would let nothing pass."""
    if asked["subject"] != "tool":
        return
    backend = asked["backend_id"]
    known = {row["name"] for row in daemon.call("pins", backend=backend, kind="tool")}
    for name in asked["names"]:
        message, hint = typos.no_tool(backend, name, known)
        if message:
            raise Problem(message, hint)


def _file(config: str | None, status: dict[str, Any]) -> str:
    if config is not None or os.environ.get("AEGIS_CONFIG"):
        return link.paths(config).config
    if status["config"] is None:
        raise Problem("the daemon has no configuration file", "make one with `aegis config init`, then reload")
    return str(status["config"])


def _edited(path: str, asked: dict[str, Any]) -> tuple[bytes, Edited]:
    """The file as it is, and as it is to be. Raises `Problem`."""
    from aegis_daemon.config.edit import Anything, Asked, permit
    from aegis_daemon.config.load import loads

    wanted = Asked(asked["agent_id"], asked["backend_id"], asked["method"], asked["subject"], tuple(asked["names"]))
    base = os.path.dirname(os.path.abspath(path))

    def edit(text: str) -> Edited:
        config = loads(text, path, base=base, env=Anything()).config
        for what, name, known in (("agent", wanted.agent, config.agents), ("backend", wanted.backend, config.backends)):
            message, hint = typos.stranger(what, name, known)
            if message:
                raise Problem(message, hint)
        return permit(text, path, wanted, base=base)

    return editing.edited(path, edit)


def _row(asked: dict[str, Any], path: str, old: bytes, edited: Edited) -> dict[str, Any]:
    from aegis_daemon.config.edit import difference

    diff = difference(old.decode("utf-8", "replace"), edited.text)
    return {
        **{name: asked[name] for name in ("call_id", "agent_id", "backend_id", "method", "tool_name")},
        "config": path,
        "changes": [{"path": step.path, "text": step.text} for step in edited.steps],
        "diff": "\n".join(diff),
        "approval_rule": edited.waits,
        "changed": False,
        "backup": None,
        "reloaded": False,
    }


def _show(asked: dict[str, Any], path: str, row: dict[str, Any], edited: Edited, *, fresh: bool, as_json: bool) -> None:
    name = f"{asked['backend_id']}.{asked['tool_name']}" if asked["tool_name"] else asked["backend_id"]
    what = name if asked["method"] == "tools/call" else f"{asked['method']} {name}"
    say(f"call {asked['call_id'][:12]}, {local(asked['created_at'])}: {visible(asked['agent_id'])} {visible(what)}")
    say(f"  {visible(asked['reason'])}")
    for step in edited.steps:
        say(f"  {visible(step.text)}")
    say(f"in {visible(path)}:")
    if not as_json:
        show_difference(row["diff"].split("\n"))
    if any(line[:1] in ("-", "+") and "\u2026" in line for line in row["diff"].split("\n")):
        say("what may be a secret is left out of these lines; all that is changed in them is said above")
    for warning in edited.warnings:
        say(f"warning: {visible(str(warning))}")
    if fresh:
        say("warning: the file holds other changes that are not in force yet; they will be, with this one")


def _apply(daemon: Connection, path: str, old: bytes, edited: Edited, row: dict[str, Any], *, in_force: bool) -> int:
    """Writes the file and has it reloaded. Raises `Problem`, and then the file is as it was."""
    from aegis_daemon.config.rewrite import Moved, replace

    new = edited.text.encode("utf-8")
    row["backup"] = written(path, old, new, keep=True)
    row["changed"] = True
    say(f"changed {visible(path)}; as it was, it is kept in {visible(row['backup'])}")
    if not in_force:
        say("the running daemon has another file, so nothing was reloaded")
        return DONE
    try:
        answer = daemon.call("reload", key=own_key())
    except DaemonAway:
        say("the daemon went away; the change is in force when it starts again")
        return AWAY
    except Refused as refused:
        try:
            replace(path, new, old, keep=False)
        except (Moved, OSError):
            raise Problem(
                f"the daemon refuses the file: {refused.message}", f"the old one is `{row['backup']}`"
            ) from None
        raise Problem(
            f"the daemon refuses the changed file, so it was put back: {refused.message}", refused.hint
        ) from None
    row["reloaded"] = True
    for key in answer["restart_required"]:
        say(f"`{visible(key)}` changed before and waits for `aegis daemon restart`")
    say("reloaded; the agent can repeat the call")
    if edited.waits:
        say(
            f"  each such call waits for a person ({visible(edited.waits)}); "
            "`aegis approve ID --for 15m` remembers a yes"
        )
    return DONE
