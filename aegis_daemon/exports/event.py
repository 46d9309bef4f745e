"""An event is what one record of the log ends or says, with all that was known then; making it twice gives the same.

A call is one event, at its last record; what people decide, what is done to Aegis itself, starts and drops are one
each. `uid` is the same however often an event is sent, so receivers can drop what they have.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

Encode = Callable[["Event"], bytes]
"""An event as one line of a format, without its end; ASCII or UTF-8, and nothing in it that steers a terminal."""
SOURCE: Final = "aegis"
EMPTY_BODY: Final = (None, "")


class Record(msgspec.Struct, frozen=True):
    """A record of any kind as it stands in the log; what its kind lacks is at its default. Times in microseconds."""

    action: str = ""
    acl: str = ""
    agent: str = ""
    approval: str = ""
    approver: str = ""
    backend: str = ""
    boot: str = ""
    by: str = ""
    call: str = ""
    code: int = 0
    config_digest: str = ""
    consumed: bool = False
    count: int = 0
    decision: str = ""
    detail: str = ""
    direction: str = ""
    duration_us: int = 0
    era: str = ""
    error_code: int = 0
    error_message: str = ""
    judged_us: int = 0
    kind: str = ""
    limit: str = ""
    method: str = ""
    name: str = ""
    note: str = ""
    pid: int = 0
    policy: str = ""
    prev: str = ""
    principal: str = ""
    queue_position: int = 0
    queue_wait_us: int = 0
    reason: str = ""
    request: str = ""
    seq: int = 0
    session: str = ""
    stage: str = ""
    status: str = ""
    tenant: str = ""
    ticket: str = ""
    trace: str = ""
    ts: int = 0
    version: str = ""
    via: str = ""
    would: bool = False


class Call(msgspec.Struct, frozen=True):
    """A call as the log's row has it. `arguments` is JSON text; `result` too, or its beginning; None: not kept.

    `arguments_length` and `result_length` are the whole bytes where they are known, `began` and `ended` microseconds.
    """

    call_id: str
    request_id: str = ""
    tenant_id: str = ""
    agent_id: str = ""
    principal: str = ""
    backend_id: str = ""
    session: str = ""
    era: str = ""
    method: str = ""
    tool_name: str = ""
    arguments_hash: str = ""
    acl_result: str = ""
    rate_limit_result: str = ""
    approval_result: str = ""
    approver: str = ""
    ticket: str = ""
    queue_position: int = 0
    queue_wait_us: int = 0
    exec_status: str = ""
    exec_duration_us: int = 0
    error_code: int = 0
    error_message: str = ""
    stage: str = ""
    policy_id: str = ""
    note: str = ""
    consumed: bool = False
    would: bool = False
    began: int = 0
    ended: int = 0
    arguments: str | None = None
    arguments_length: int = 0
    result: str | None = None
    result_length: int = 0


class Event(msgspec.Struct, frozen=True):
    """One thing that happened. `kind`: call, approval, admin, start, dropped, gap, unreadable, checkpoint or test.

    `hash` is the record's (hex), `ts` microseconds since the epoch; `cut` tells that bodies were left out of it.
    """

    uid: str
    chain: str
    seq: int
    kind: str
    ts: int
    hash: str
    record: Record
    call: Call | None = None
    cut: bool = False
    steps: tuple[Record, ...] = ()
    """all records of the call, where they were asked for"""

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        call = self.call
        if call is None:
            return 1000
        texts = (call.tool_name, call.error_message, call.request_id, call.note, call.arguments, call.result)
        return 1500 + sum(len(text) for text in texts if text)

    def bare(self) -> Event:
        """The same without bodies."""
        if self.call is None or (self.call.arguments is None and self.call.result is None):
            return self
        call = msgspec.structs.replace(self.call, arguments=None, result=None)
        return msgspec.structs.replace(self, call=call, cut=True)


def too_long(event: Event) -> Event:
    """What stands in place of an event that a receiver cannot take, not even without its bodies."""
    return gap(event.chain, event.seq, event.seq, event.ts, "it is too long for this receiver")


def gap(chain: str, first: int, last: int, ts: int, why: str) -> Event:
    """What stands in place of records that cannot be had any more."""
    detail = f"records {first} to {last}: {why}"
    record = Record(kind="gap", action="export_gap", detail=detail, by="aegis", seq=last, ts=ts)
    return Event(f"{chain}-gap-{first}-{last}", chain, last, "gap", ts, "", record)


def test(chain: str, ts: int) -> Event:
    """What `aegis audit exports test` sends."""
    record = Record(
        kind="test", action="export_test", detail="a test of this export; nothing happened", by="aegis", ts=ts
    )
    return Event(f"{chain}-test-{ts}", chain, 0, "test", ts, "", record)


# --- the `aegis` format ----------------------------------------------------------------------------------------------

_NAMES: Final = {"agent": "agent_id", "backend": "backend_id", "call": "call_id", "name": "tool_name"}
_APART: Final = frozenset({"kind", "tenant", "ts", "seq", "boot", "trace", "judged_us"})
_encode = msgspec.json.Encoder().encode


def plain(event: Event) -> dict[str, Any]:
    """The event under the names that rows of the API have; durations in milliseconds, bodies as texts."""
    made: dict[str, Any] = {
        "uid": event.uid,
        "chain": event.chain,
        "seq": event.seq,
        "kind": event.kind,
        "time": instant(event.ts),
        "hash": event.hash,
        "prev": event.record.prev,
        "tenant_id": event.record.tenant,
    }
    call = event.call
    if call is None:
        record = msgspec.structs.asdict(event.record)
        default = Record()
        made.update(
            (_NAMES.get(name, name), value)
            for name, value in record.items()
            if name not in _APART and value != getattr(default, name)
        )
        return made
    made.update(msgspec.structs.asdict(call))
    for name in ("queue_wait", "exec_duration"):
        made[f"{name}_ms"] = made.pop(f"{name}_us") / 1000
    made["created_at"] = instant(made.pop("began"))
    made["finished_at"] = instant(made.pop("ended"))
    if event.cut:
        made["cut"] = True
    return made


def encode(event: Event) -> bytes:
    """One line of JSON in the `aegis` format."""
    return one_line(_encode(plain(event)))


# --- what all formats need -------------------------------------------------------------------------------------------

_UNSEEN: Final = re.compile(
    "[\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)


def one_line(json: bytes) -> bytes:
    """The same JSON on one line, everything in it that is not seen or steers a terminal written as `\\u` escapes."""
    if b"\n" in json or b"\r" in json:
        json = json.replace(b"\r", b" ").replace(b"\n", b" ")  # in JSON they can only stand between tokens
    if json.isascii():
        return json.replace(b"\x7f", b"\\u007f")
    return _UNSEEN.sub(_escaped, json.decode("utf-8", "replace")).encode()


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def embedded(text: str | None) -> Any:
    """A body as JSON to put into JSON: itself where it is JSON, else its text."""
    if text is None:
        return None
    data = text.encode("utf-8", "replace")
    try:
        msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return text
    return msgspec.Raw(data)


def instant(ts: int) -> str:
    """RFC 3339 in UTC, to the microsecond; "" for a time that no calendar has."""
    try:
        seconds, micros = divmod(ts, 1_000_000)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06}Z"
    except (ValueError, OverflowError, OSError):
        return ""
