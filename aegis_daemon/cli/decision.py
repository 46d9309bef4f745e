"""What `approve` and `reject` share: a person sees the whole call, is asked, and what was seen is what is decided.

What else only a person may do, they show with their key (`own_key`), and the daemon is asked first (`guard`).
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import (
    DONE,
    USAGE,
    WRONG,
    Problem,
    compact,
    complain,
    emit,
    instant,
    interactive,
    pretty,
    say,
    span,
    visible,
)
from aegis_daemon.config import whereabouts
from aegis_daemon.config.paths import Paths
from aegis_daemon.manage.client import Connection, DaemonAway, Refused, approver_key

if TYPE_CHECKING:
    from aegis_daemon.clients.plans import Plan
    from aegis_daemon.clients.standing import Ours

LONG = 40
"""Lines of arguments that a screen may not hold."""
BRIEF = 80
"""Characters of a value where the whole of it was shown before."""
NOTE_MAX = 500
RETRY = "approved, a call runs once its agent asks again"


def complete(incomplete: str) -> list[tuple[str, str]]:
    """Pending ids for the shell, each with what it would let run."""
    try:
        with Connection(link.paths().manage_socket, timeout=1.0) as daemon:
            tickets = daemon.call("pending")
    except (DaemonAway, Refused):
        return []
    return [
        (ticket["id"], visible(f"{ticket['agent_id']} {what(ticket)}", 80))
        for ticket in tickets
        if ticket["state"] == "pending" and ticket["id"].startswith(incomplete)
    ]


Ids = Annotated[
    list[str],
    typer.Argument(
        metavar="ID", autocompletion=complete, help="Ticket ids as `aegis pending` shows them, or call ids."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def decide(
    ids: list[str], *, approve: bool, yes: bool, note: str, as_json: bool, grant: dict[str, Any] | None = None
) -> int:
    """Decides each of them; 1 where one could not be. Those that could stay decided.

    `grant` (the fields of `shapes.GrantAsk`) is asked for with each.
    """
    word = "approve" if approve else "reject"
    if len(note) > NOTE_MAX:
        raise Problem(f"the note has {len(note)} characters", f"{NOTE_MAX} are kept; shorten it", USAGE)
    if not yes and not interactive():
        with suppress(DaemonAway), link.connect() as daemon:
            for typed in ids:
                if _waiting(daemon, typed) is None:
                    raise Problem(f"nothing that waits is called `{typed}`", "see `aegis pending`")
        raise Problem(f"`aegis {word}` asks on a terminal, and this is none", "pass `--yes` in scripts", USAGE)
    key = own_key()
    rows: list[dict[str, Any]] = []
    code = DONE
    with link.connect() as daemon:
        for typed in dict.fromkeys(ids):
            try:
                exact = typed if yes else _asked(daemon, typed, word, grant)
                if exact is None:
                    say(f"left {visible(typed)} as it is")
                    code = WRONG
                    continue
                row = send(daemon, exact, approve=approve, note=note, key=key, grant=grant)
            except Refused as refused:
                named = f"`{typed}`" in refused.message or f"`{typed.upper()}`" in refused.message
                complain(refused.message if named else f"{typed}: {refused.message}", refused.hint)
                code = WRONG
                continue
            rows.append(row)
            say(told(row))
        unheard = _unheard(daemon, rows)
    if unheard:
        say(f"no client waits for {', '.join(unheard)} now: {RETRY}")
    if as_json:
        emit(rows)
    return code


def send(
    daemon: Connection,
    id: str,
    *,
    approve: bool,
    note: str = "",
    key: str | None = None,
    grant: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One decision. Raises `Refused`."""
    found: dict[str, Any] = daemon.call("decide", id=id, approve=approve, note=note, key=key, grant=grant)
    return found


def _unheard(daemon: Connection, rows: list[dict[str, Any]]) -> list[str]:
    """The ids of calls just approved that do not run yet, since their clients have gone."""
    approved = {row["call_id"] for row in rows if row["state"] == "approved"}
    if not approved:
        return []
    try:
        found = daemon.call("pending")
    except (DaemonAway, Refused):
        return []  # what was decided is decided
    return [t["id"] for t in found if t["call_id"] in approved and t["state"] == "approved" and not t["waiting"]]


def told(row: dict[str, Any]) -> str:
    """What became of a decision."""
    if row["state"] == "pending":
        left = row["needed"] - row["given"]
        others = "another person" if left == 1 else f"{left} other people"
        return f"{row['id']}: {row['given']} of {row['needed']} have agreed; it waits for {others} to approve it"
    text = f"{row['state']} {row['id']}"
    if row.get("grant"):
        text += f"; remembered as {row['grant']}: see `aegis grants list`, end it with `aegis grants revoke`"
    return text


def own_key() -> str | None:
    """The content of the approver key that AEGIS_APPROVER_KEY names, if it names one."""
    path = os.environ.get("AEGIS_APPROVER_KEY")
    if not path:
        return None
    try:
        return approver_key(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise Problem(
            f"the approver key `{path}` (AEGIS_APPROVER_KEY) cannot be read: {why}",
            "name the `approver.key` beside the configuration, or unset the variable",
            USAGE,
        ) from None


def guard(action: str, done: str = "") -> None:
    """Asks the daemon whether a person does this, or records what was done. Without a daemon no agent is governed now.

    Raises `Refused`, `Problem`.
    """
    with suppress(DaemonAway):
        link.call("guard", action=action, done=done[:2000], key=own_key())


def guard_named(paths: Paths, plans: list[Plan], action: str) -> None:
    """As `guard`, of every other daemon that entries lead to until now: whoever asks for another one does not pass.

    Raises `Refused`, `Problem`.
    """
    from aegis_daemon.clients import documents, entries, standing
    from aegis_daemon.manage.client import ask

    sockets: set[str] = set()
    for plan in plans:
        changed = {change.keys for change in plan.changes}
        for entry in entries.read(plan.client, documents.parse(plan.before, plan.client.format)) if changed else ():
            said = standing.ours(entry) if entry.path in changed else None
            if said is not None:
                sockets |= _named_by(said, plan.path)
    for socket in sorted(sockets - {paths.manage_socket}):
        if os.path.lexists(socket):
            with suppress(DaemonAway):
                ask(socket, "guard", action=action, done="", key=own_key())


def _named_by(said: Ours, path: str) -> set[str]:
    """Where the daemon that an entry leads to is managed."""
    import pwd

    if said.way != "wrap":
        return set()
    homes = {os.path.expanduser("~")}
    real = pwd.getpwuid(os.getuid()).pw_dir
    if os.path.realpath(path).startswith(real.rstrip("/") + "/"):
        homes.add(real)  # $HOME is whatever somebody says
    usual = [Paths.find({**said.found, "HOME": home}) for home in homes]
    found = {(whereabouts.elsewhere(one) or one).manage_socket for one in usual}
    if said.socket:
        above = os.path.dirname(os.path.abspath(said.socket))
        found |= {os.path.join(above, "manage.sock"), os.path.join(os.path.dirname(above), "manage.sock")}
    return found


def describe(ticket: dict[str, Any]) -> list[str]:
    """The whole call, however long, for a person, line by line; each is safe to print."""
    lines = pretty(ticket["arguments"])
    left = instant(ticket["expires_at"]) - time.time()
    shown = [
        f"{ticket['id']}  {visible(what(ticket))}",
        f"  agent      {visible(ticket['agent_id'])}",
        *([f"  client     {visible(ticket['client'], 80)}"] if ticket.get("client") else []),
        *([f"  server     {visible(ticket['command'])}"] if ticket.get("command") else []),
        *([f"  directory  {visible(ticket['cwd'])}"] if ticket.get("cwd") else []),
        *([f"  different  {visible(ticket['unlike'])}: not the server approved before"] if ticket["unlike"] else []),
        f"  rule       {visible(ticket['rule'])}",
        *([f"  agreed     {agreement(ticket)}"] if ticket.get("needed", 1) > 1 else []),
        f"  expires in {span(left)}" + ("" if ticket["waiting"] else "  (its client has gone; it runs on a retry)"),
        "  arguments",
        *(f"    {line}" for line in lines),
    ]
    if len(lines) > LONG:  # its beginning is out of sight by now
        shown.append(f"these were {len(lines)} lines of arguments for {visible(what(ticket))}, which begin far above")
    return shown


def agreement(ticket: dict[str, Any]) -> str:
    """`1 of 2 people; another one must`, for a ticket that needs several."""
    given, needed = ticket["given"], ticket["needed"]
    left = needed - given
    rest = "" if left <= 0 else "; another one must" if left == 1 else f"; {left} different ones must"
    return f"{given} of {needed} people{rest}"


def remembered(ticket: dict[str, Any], grant: dict[str, Any], now: float) -> str:
    """What a grant would let through: `create_issue on gh for amy: repo = "a/x", title = anything; until 14:32, …`."""
    uses = grant["uses"] or 100
    names = arguments(ticket)
    if grant["any_arguments"]:
        given = "any arguments at all"
    else:
        given = ", ".join(
            f"{visible(name, 60)} = " + ("anything" if name in grant["free"] else _brief(compact(json.dumps(value))))
            for name, value in names.items()
        )
    what = f"{visible(ticket['tool_name'])} on {visible(ticket['backend_id'])} for {visible(ticket['agent_id'])}"
    count = "1 use" if uses == 1 else f"{uses} uses"
    return f"{what}: {given or 'without arguments'}; until {moment(now + grant['seconds'], now)}, {count}"


def _brief(text: str) -> str:
    return text if len(text) <= BRIEF else f"{text[:BRIEF]}… ({len(text)} characters, as above)"


def moment(at: float, now: float) -> str:
    """`14:32`, with the day where that is another one than today."""
    then, today = time.localtime(at), time.localtime(now)
    same = then[:3] == today[:3]
    return time.strftime("%H:%M" if same else "%Y-%m-%d %H:%M", then)


def arguments(row: dict[str, Any]) -> dict[str, Any]:
    """The named arguments of a ticket or grant; none where they have no names."""
    try:
        found = json.loads(row["arguments"])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def what(ticket: dict[str, Any]) -> str:
    """`backend.tool`, or the method where it is no tool call."""
    name = f"{ticket['backend_id']}.{ticket['tool_name']}" if ticket["tool_name"] else str(ticket["backend_id"])
    return name if ticket["method"] == "tools/call" else f"{ticket['method']} {name}"


def _waiting(daemon: Connection, typed: str) -> dict[str, Any] | None:
    """The ticket of that name, or of the call of that id."""
    from aegis_daemon.approvals.ticket import spoken

    wanted = (spoken(typed), typed.strip().lower())
    tickets: list[dict[str, Any]] = daemon.call("pending")
    return next((t for t in tickets if t["id"] == wanted[0] or t["call_id"].lower() == wanted[1]), None)


def _asked(daemon: Connection, typed: str, word: str, grant: dict[str, Any] | None = None) -> str | None:
    """The call id of the ticket once a person has seen it and said yes; None for no."""
    ticket = _waiting(daemon, typed)
    if ticket is None:
        return typed  # unknown, or decided before: the daemon says which
    for line in describe(ticket):
        say(line)
    if grant is not None:
        known = arguments(ticket)
        for name in grant["free"]:
            if name not in known:
                near = get_close_matches(name, known, 1)
                raise Problem(
                    f"the call has no argument `{name}`", f"did you mean `{near[0]}`?" if near else "see them above"
                )
        say(f"remember it: {remembered(ticket, grant, time.time())}")
        word = f"{word} and remember"
    sure = typer.confirm(f"{word} {ticket['id']}?", default=False, err=True)
    # The call id, since a ticket id may name another call by the time a person has read this one.
    return str(ticket["call_id"]) if sure else None
