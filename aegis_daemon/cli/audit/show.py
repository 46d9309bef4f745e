"""`aegis audit show`: one call from its ask to its end, and what came after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from aegis_daemon.cli import link, names, typos
from aegis_daemon.cli.audit.log import Db, decoded, opened
from aegis_daemon.cli.console import Problem, emit, facts, local, pretty, say, visible
from aegis_daemon.cli.options import Json

if TYPE_CHECKING:
    from aegis_daemon.audit.store import CallView

NUMBER: Final = 8
"""Digits from which on they are no record's number, but the beginning of an id."""


def show(
    id: Annotated[
        str, typer.Argument(metavar="ID", help="A call id, its beginning, a ticket id, or a record's number.")
    ],
    db: Db = None,
    as_json: Json = False,
) -> None:
    """One call: what was asked, what decided it, what came of it, and its records."""
    from aegis_daemon.audit.store import Ambiguous, NotFound
    from aegis_daemon.audit.telling import took

    with opened(db) as reader:
        from aegis_daemon.audit.telling import tell

        try:
            numbered = id.isascii() and id.isdecimal() and len(id) < NUMBER
            found = tell(reader, (reader.call_of(int(id)) if numbered else "") or id)
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
    bodies = {"arguments": call.pop("arguments"), "result": call.pop("result")}
    unmeasured = ("judged_us",) if not call["judged_us"] else ()
    facts(
        (name, visible(str(value)))
        for name, value in call.items()
        if value not in ("", None) and name not in unmeasured
    )
    for name, body in bodies.items():
        if body is not None:
            cut = "" if name == "arguments" or len(body.encode()) == call["result_length"] else ", its beginning"
            print(f"\n{name}{cut}")
            for line in pretty(body):
                print(f"  {line}")
    if gone is not None:
        print(f"\narguments and results: erased on {local(gone.at)} by {visible(gone.by)} (record {gone.seq})")
    print("\nrecords")
    width = max((len(str(step.seq)) for step in found.steps), default=1)
    hashes = {record.seq: record.hash for record in found.records}
    for step in found.steps:
        after = f"+{took(step.after_us)}" if step.after_us is not None else ""
        print(
            f"  {step.seq:>{width}}  {local(step.created_at)}  {after:>10}  {visible(step.kind):8}  "
            f"{visible(hashes[step.seq])[:12]}…  {visible(step.text)}"
        )
    spans = [
        ("for a person", found.approval_wait_us),
        ("in the queue", found.call.queue_wait_ms * 1000 or None),
        ("at the backend", found.call.exec_duration_us or None),
    ]
    if any(span is not None for _, span in spans):
        print("\ntime  " + ", ".join(f"{took(span)} {name}" for name, span in spans if span is not None))
    for number, other in enumerate(found.related):
        begin = "" if number else "\n"
        ended = visible(other.exec_status)
        print(f"{begin}the same ticket: {other.call_id[:12]}  {local(other.created_at)}  {ended}")
    if call["stage"] == "acl" and (call["exec_status"] == "denied" or call["would"]):
        why, hint = _mistyped(found.call) if db is None else ("", "")
        then = f"`aegis allow {call['call_id'][:12]}` shows what would let it pass, and asks"
        say(f"{why}\n  {hint}" if why else f"the rules refused it; {then}")


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
