"""The whole story of one call, as people read it: every record that speaks of it, in order, with the time between.

A call whose ask outlives it (its agent is told to ask again) goes on in the records of its ticket and in later calls
that come with the same one; both belong to the story.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from aegis_daemon.audit.chain import UNREADABLE
from aegis_daemon.audit.rollup import DAY
from aegis_daemon.audit.store import CallView, Reader, RecordView, record_view

RELATED: Final = 20
"""Other calls with the same ticket that are named."""
_DECISIONS: Final = {
    "voted": "one yes, of several that are needed,",
    "approved": "approved",
    "rejected": "rejected",
    "expired": "nobody decided in time",
    "cancelled": "given up",
    "consumed": "the approval was used",
    "attached": "the same call was asked again, and waits with this ask",
    "granted": "remembered for calls of this shape",
    "revoked": "no longer remembered",
}


class Step(msgspec.Struct, frozen=True):
    """One record in words. `after_us` is the time since the step before, None for the first."""

    seq: int
    kind: str
    created_at: str
    after_us: int | None
    text: str
    call_id: str = ""


class Related(msgspec.Struct, frozen=True):
    """Another call with the same ticket."""

    call_id: str
    created_at: str
    exec_status: str


class Told(msgspec.Struct, frozen=True):
    """A call, its records and those of its ticket, oldest first, and what they say."""

    call: CallView
    records: list[RecordView]
    steps: list[Step]
    related: list[Related]
    approval_wait_us: int | None


def tell(reader: Reader, id: str) -> Told:
    """By a call's id, its beginning, or its ticket. Raises `store.NotFound`, `store.Ambiguous`."""
    shown = reader.show(id)
    call = shown.call
    records = list(shown.records)
    related: list[Related] = []
    if call.ticket:
        # A ticket's name is given out again once it is free; the call's own facts tell which ask is meant.
        rows = reader.ask(
            "SELECT call_id, strftime('%Y-%m-%dT%H:%M:%S', ts / 1000000, 'unixepoch') || "
            "printf('.%06dZ', ts % 1000000), exec_status FROM calls WHERE ticket = ? AND ticket <> '' "
            "AND agent_id = ? AND backend_id = ? AND tool_name = ? AND arguments_hash = ? AND call_id <> ? "
            "AND ts BETWEEN (SELECT ts FROM calls WHERE seq = ?) - ? AND (SELECT ts FROM calls WHERE seq = ?) + ? "
            "ORDER BY seq LIMIT ?",
            (
                call.ticket, call.agent_id, call.backend_id, call.tool_name, call.arguments_hash, call.call_id,
                call.seq, DAY, call.seq, DAY, RELATED,
            ),
            until=time.monotonic() + 5,
        )  # fmt: skip
        related = [Related(*row) for row in rows]
        known = {record.seq for record in records}
        ids = {call.call_id, *(each.call_id for each in related)}
        more = reader.ask(
            "SELECT r.seq, r.hash, r.record, NULL FROM asks a JOIN records r ON r.seq = a.seq "
            "WHERE a.ticket = ? AND a.call_id IN (SELECT value FROM json_each(?))",
            (call.ticket, msgspec.json.encode(sorted(ids)).decode()),
            until=time.monotonic() + 5,
        )
        records += [record_view(row) for row in more if row[0] not in known]
        records.sort(key=lambda record: record.seq)
    told, wait = steps(records)
    return Told(call, records, told, related, wait)


def steps(records: list[RecordView]) -> tuple[list[Step], int | None]:
    """What records say, and how long the first hold among them waited for its decision (microseconds)."""
    found: list[Step] = []
    asked: dict[str, Any] | None = None
    wait: int | None = None
    last: dict[str, Any] | None = None
    for record in records:
        try:
            said = msgspec.json.decode(record.record)
        except UNREADABLE:
            said = None
        if not isinstance(said, dict):
            found.append(Step(record.seq, "unreadable", record.created_at, None, "it cannot be read"))
            continue
        kind = str(said.get("kind", ""))
        if kind == "hold" and asked is None:
            asked = said
        elif kind == "approval" and asked is not None and wait is None and said.get("decision") in _ENDS:
            wait = _between(asked, said)
        text = _TELL.get(kind, _other)(said, record.body)
        after = _between(last, said) if last is not None else None
        found.append(Step(record.seq, kind, record.created_at, after, text, str(said.get("call", ""))))
        last = said
    return found, wait


_ENDS: Final = frozenset({"approved", "rejected", "expired", "cancelled"})


def _between(first: dict[str, Any], then: dict[str, Any]) -> int | None:
    """By the clock of the boot where both were in one, else by the wall's."""
    clock = "mono" if first.get("boot") and first.get("boot") == then.get("boot") else "ts"
    one, two = first.get(clock, 0), then.get(clock, 0)
    return max(0, two - one) if isinstance(one, int) and isinstance(two, int) else None


def took(micros: int) -> str:
    """`0.4 ms`, `12 ms`, `1.2 s`, `4 min 10 s`."""
    if micros < 10_000:
        return f"{micros / 1000:.1f} ms"
    if micros < 1_000_000:
        return f"{micros // 1000} ms"
    if micros < 60_000_000:
        return f"{micros / 1e6:.1f} s"
    seconds = micros // 1_000_000
    for unit, size, below, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // small
            return f"{seconds // size} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{seconds} s"


def _body(said: dict[str, Any], body: str | None, name: str) -> list[str]:
    if not said.get("body"):
        return []
    if body is None:
        return [f"the {name} have been erased" if name == "arguments" else f"the {name} has been erased"]
    length = said.get("length")
    return [f"{length} bytes of {name}, of which the beginning is kept"] if length else []


def _hold(said: dict[str, Any], body: str | None) -> str:
    parts = [f"waits for a person (ticket {said.get('ticket', '')})"]
    if said.get("policy"):
        parts.append(f"because of {said['policy']}")
    return "; ".join([*parts, *_body(said, body, "arguments")])


def _approval(said: dict[str, Any], body: str | None) -> str:
    decision = str(said.get("decision", ""))
    text = _DECISIONS.get(decision, decision)
    by, via = said.get("by"), said.get("via")
    if by and decision in ("voted", "approved", "rejected", "granted", "revoked", "cancelled"):
        text = f"{text} by {by}" + (f" ({via})" if via and via != "desk" else "")
    return f"{text}: {said['note']}" if said.get("note") else text


def _intent(said: dict[str, Any], body: str | None) -> str:
    usual = (None, "", "allowed", "none")
    parts = [
        f"{word} {said[name]}" for name, word in (("acl", "rules"), ("limit", "limits")) if said.get(name) not in usual
    ]
    if said.get("approval") not in (None, "", "not_required"):
        parts.append(f"approval {said['approval']}" + (f" by {said['approver']}" if said.get("approver") else ""))
    if said.get("judged_us"):
        parts.append(f"judged in {took(said['judged_us'])}")
    if said.get("queue_wait_us"):
        place = f" at place {said['queue_position']}" if said.get("queue_position") else ""
        parts.append(f"queued{place} for {took(said['queue_wait_us'])}")
    if said.get("note"):
        parts.append(str(said["note"]))
    parts += _body(said, body, "arguments")
    return "allowed, and sent to the backend once this was committed" + (": " if parts else "") + ", ".join(parts)


def _denied(said: dict[str, Any], body: str | None) -> str:
    verb = "would have been refused (observe mode)" if said.get("would") else "refused"
    rule = f" by {said['policy']}" if said.get("policy") else ""
    reason = f": {said['reason']}" if said.get("reason") else ""
    return "; ".join([f"{verb} at {said.get('stage', '')}{rule}{reason}", *_body(said, body, "arguments")])


def _outcome(said: dict[str, Any], body: str | None) -> str:
    status = said.get("status")
    if status == "unknown":
        text = "nobody knows how it ended; it is never sent again"
    elif status == "error":
        code = f" ({said['error_code']})" if said.get("error_code") else ""
        text = f"failed after {took(said.get('duration_us', 0))}{code}"
    else:
        text = f"answered after {took(said.get('duration_us', 0))}"
    if said.get("error_message"):
        text = f"{text}: {said['error_message']}"
    counts = "counts against limits" if said.get("consumed") else "does not count against limits"
    return "; ".join([text, counts, *_body(said, body, "result")])


def _other(said: dict[str, Any], body: str | None) -> str:
    return " ".join(str(said[name]) for name in ("action", "by", "detail", "reason") if said.get(name))


_TELL: Final = {"hold": _hold, "approval": _approval, "intent": _intent, "denied": _denied, "outcome": _outcome}
