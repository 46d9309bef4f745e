"""`aegis audit show`: one call from its ask to its end, and what came after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from aegis_daemon.cli import link, names, typos
from aegis_daemon.cli.audit.log import Db, decoded, opened, what
from aegis_daemon.cli.console import Problem, emit, facts, local, pretty, say, visible
from aegis_daemon.cli.options import Json

if TYPE_CHECKING:
    from aegis_daemon.audit.store import CallView, Reader
    from aegis_daemon.audit.telling import Told

NUMBER: Final = 8
"""Digits from which on they are no record's number, but the beginning of an id."""


def show(
    id: Annotated[
        str,
        typer.Argument(metavar="ID", help="A call id, its beginning, a ticket, or a record's number, `#12` too."),
    ],
    db: Db = None,
    as_json: Json = False,
) -> None:
    """One call: what was asked, what decided it, what came of it, and its records."""
    from aegis_daemon.audit.store import Ambiguous, NotFound
    from aegis_daemon.audit.telling import tell

    with opened(db) as reader:
        try:
            found = tell(reader, _meant(reader, id))
        except NotFound as error:
            raise Problem(str(error)) from None
        except Ambiguous as error:
            raise Problem(str(error), f"one of {', '.join(error.ids)}") from None
        gone = None
        if found.call.arguments is None and any(b'"body"' in bytes(record.record) for record in found.records):
            from aegis_daemon.cli.audit.verify import signing

            try:
                gone = reader.removed(found.call.seq, signing()[0] if db is None else None)
            except OSError as error:
                say(f"who had it erased cannot be told: the keys cannot be read ({visible(str(error))})")
    call = msgspec.structs.asdict(found.call)
    if as_json:
        records = [
            {"seq": record.seq, "hash": record.hash, "created_at": record.created_at, "record": decoded(record)}
            for record in found.records
        ]
        told = {name: msgspec.to_builtins(getattr(found, name)) for name in ("steps", "related", "approval_wait_us")}
        emit({**call, "records": records, **told, "erased": msgspec.to_builtins(gone)})
        return
    print(f"call {found.call.call_id}\n")
    _story(found)
    print()
    facts((label, visible(text)) for label, text in _facts(found.call))
    for name, body in (("arguments", call["arguments"]), ("result", call["result"])):
        if body is not None:
            cut = "" if name == "arguments" or len(body.encode()) == call["result_length"] else ", its beginning"
            print(f"\n{name}{cut}")
            for line in pretty(body):
                print(f"  {line}")
    if gone is not None:
        print(f"\narguments and results: erased on {local(gone.at)} by {visible(gone.by)} (record {gone.seq})")
    if call["stage"] == "acl" and (call["exec_status"] == "denied" or call["would"]):
        why, hint = _mistyped(found.call) if db is None else ("", "")
        then = f"`aegis allow {call['call_id'][:12]}` shows what would let it pass, and asks"
        say(f"{why}\n  {hint}" if why else f"the rules refused it; {then}")


def _meant(reader: Reader, id: str) -> str:
    """The id of the call, or what may be the beginning of one. Raises `Problem` for a record that is of no call."""
    number = id.removeprefix("#")
    if not (number.isascii() and number.isdecimal() and (number != id or len(id) < NUMBER)):
        return id
    rows = reader.tail(int(number) - 1, 1) if 0 < int(number) < 1 << 63 else []
    if not rows or rows[0].seq != int(number):
        if number == id:
            return id
        raise Problem(f"there is no record {id} in the log", "`aegis audit tail` shows the newest ones")
    if call := reader.call_of(int(number)):
        return call
    from aegis_daemon.audit.telling import steps

    (step,), _ = steps(rows)
    said = f"record {number}, {local(step.created_at)}: {visible(step.kind)} {visible(step.text)}".rstrip()
    raise Problem(f"{said}; it belongs to no call", "`aegis audit search` lists calls")


ENDED: Final = {
    "success": "it ran, and was answered",
    "error": "it ran, and failed",
    "denied": "refused",
    "pending": "it waits",
    "unknown": "nobody knows how it ended",
}


def _story(found: Told) -> None:
    """What happened, one step a line, and the other calls with the same ticket."""
    from aegis_daemon.audit.telling import took

    width = max((len(str(step.seq)) for step in found.steps), default=1) + 1
    for step in found.steps:
        after = f"+{took(step.after_us)}" if step.after_us is not None else ""
        number = f"#{step.seq}"
        print(f"{number:>{width}}  {local(step.created_at)}  {after:>10}  {visible(step.text)}")
    spans = [
        ("for a person", found.approval_wait_us),
        ("in the queue", found.call.queue_wait_ms * 1000 or None),
        ("at the backend", found.call.exec_duration_us or None),
    ]
    if any(span is not None for _, span in spans):
        print("time  " + ", ".join(f"{took(span)} {name}" for name, span in spans if span is not None))
    for other in found.related:
        print(f"the same ticket: {other.call_id[:12]}  {local(other.created_at)}  {visible(other.exec_status)}")


def _facts(call: CallView) -> list[tuple[str, str]]:
    """What is not as it is with nearly every call, in words; `--json` has every field."""
    own = not call.principal or call.principal.startswith(call.agent_id)
    ended = ENDED.get(call.exec_status, call.exec_status)
    if call.would:
        ended += "; observe mode let it pass, and the rules would have refused it"
    code = f" (code {call.error_code})" if call.error_code else ""
    pairs = [
        ("agent", (call.principal or call.agent_id) if own else f"{call.agent_id}, as {call.principal}"),
        ("call", what(msgspec.structs.asdict(call))),
        ("outcome", ended),
        ("stage", call.stage),
        ("rule", call.policy_id),
        ("message", f"{call.error_message}{code}" if call.error_message or code else ""),
        ("approval", "" if call.approval_result == "not_required" else call.approval_result),
        ("decided by", call.approver),
        ("ticket", call.ticket),
        ("limits", "" if call.rate_limit_result in ("none", "allowed") else call.rate_limit_result),
        ("note", call.note),
        ("request", call.request_id),
        ("session", call.session),
        ("tenant", "" if call.tenant_id == "default" else call.tenant_id),
    ]
    return [(label, text) for label, text in pairs if text]


def _mistyped(call: CallView) -> tuple[str, str]:
    """Why there is nothing to allow, and the next step; "" where what it names is there, or nobody knows."""
    from aegis_daemon.config.fitting import Pinned, Unread

    found = typos.stranger("agent", call.agent_id, set(names.keys("agents")))
    if found[0] or call.method != "tools/call":
        return found
    try:
        known = Pinned(link.paths().state_db).tools().get(call.backend_id, set())
    except Unread:
        return "", ""
    return typos.no_tool(call.backend_id, call.tool_name, known)
