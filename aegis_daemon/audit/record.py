"""A record's fields stand in alphabetical order, so that msgspec's compact encoding of it is its RFC 8785 form.

That holds while every name is plain ASCII and every value a string, an integer below 2**53, a boolean or None: keys are
then sorted by UTF-16 code units as they stand, strings escape exactly what section 3.2.2.2 names, and no float occurs.
Fields at their default are left out. The journal fills in `boot`, `kind`, `mono`, `prev`, `seq`, `tenant`, `ts`, `v`
and, where a body is given, `body` and `length`; callers give the rest by keyword and may read all of it after `append`.

Shared fields: `boot` the machine's boot (UUID), `call` our id of the call (32 hex digits), `mono` microseconds on the
boot clock, `prev` the hash of the record before (hex), `seq` from 1 without a gap, `ts` microseconds since the epoch,
`v` the version of this format; `judged_us`, where policies look at arguments, how long judging the call took; `trace`,
where calls are traced, the `traceparent` that the call came with. `body` is the hex SHA-256 over salt and bytes of the
arguments or the result, which are kept beside the record so that they can be erased without breaking the chain;
`length` is the true length in bytes where less than the whole was kept.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import msgspec

VERSION = 1
GENESIS = "0" * 64
"""`prev` of the first record."""
RESULT_CAP = 16 << 10
MESSAGE_CAP = 500
REQUEST_CAP = 128
REASON_CAP = 1000
"""Characters of a request's id, and of the reason for a refusal (`core.text.shortened`)."""


class Start(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A daemon began to write."""

    KIND: ClassVar = "start"

    boot: str = ""
    config_digest: str = ""
    kind: str = ""
    mono: int = 0
    pid: int = 0
    prev: str = ""
    seq: int = 0
    tenant: str = ""
    ts: int = 0
    v: int = 0
    version: str = ""


class Hold(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A call waits for a person; its body is the arguments. `ticket` names the ask, `policy` the rule that asked."""

    KIND: ClassVar = "hold"

    acl: str = ""
    agent: str
    approval: str = ""
    approver: str = ""
    backend: str
    body: str = ""
    boot: str = ""
    call: str
    era: str = ""
    judged_us: int = 0
    kind: str = ""
    length: int = 0
    limit: str = ""
    method: str
    mono: int = 0
    name: str = ""
    note: str = ""
    policy: str = ""
    prev: str = ""
    principal: str = ""
    queue_position: int = 0
    queue_wait_us: int = 0
    request: str = ""
    seq: int = 0
    session: str = ""
    tenant: str = ""
    ticket: str = ""
    trace: str = ""
    ts: int = 0
    v: int = 0


class Intent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A call was allowed and may be forwarded once this is committed; its body is the arguments."""

    KIND: ClassVar = "intent"

    acl: str = ""
    agent: str
    approval: str = ""
    approver: str = ""
    backend: str
    body: str = ""
    boot: str = ""
    call: str
    era: str = ""
    judged_us: int = 0
    kind: str = ""
    length: int = 0
    limit: str = ""
    method: str
    mono: int = 0
    name: str = ""
    note: str = ""
    policy: str = ""
    prev: str = ""
    principal: str = ""
    queue_position: int = 0
    queue_wait_us: int = 0
    request: str = ""
    seq: int = 0
    session: str = ""
    tenant: str = ""
    ticket: str = ""
    trace: str = ""
    ts: int = 0
    v: int = 0


class Outcome(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How an allowed call ended (`status` success, error or unknown); its body is the result.

    `consumed` tells whether it counts against the limits.
    """

    KIND: ClassVar = "outcome"

    body: str = ""
    boot: str = ""
    call: str
    consumed: bool = False
    duration_us: int = 0
    error_code: int = 0
    error_message: str = ""
    kind: str = ""
    length: int = 0
    mono: int = 0
    prev: str = ""
    seq: int = 0
    status: Literal["success", "error", "unknown"] | str
    tenant: str = ""
    ts: int = 0
    v: int = 0


class Denied(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A call was refused at `stage`; its body is the arguments. `would`: observe mode let it pass all the same."""

    KIND: ClassVar = "denied"

    acl: str = ""
    agent: str
    approval: str = ""
    approver: str = ""
    backend: str
    body: str = ""
    boot: str = ""
    call: str
    code: int = 0
    era: str = ""
    judged_us: int = 0
    kind: str = ""
    length: int = 0
    limit: str = ""
    method: str
    mono: int = 0
    name: str = ""
    note: str = ""
    policy: str = ""
    prev: str = ""
    principal: str = ""
    queue_position: int = 0
    queue_wait_us: int = 0
    reason: str = ""
    request: str = ""
    seq: int = 0
    session: str = ""
    stage: str
    tenant: str = ""
    ticket: str = ""
    trace: str = ""
    ts: int = 0
    v: int = 0
    would: bool = False


class Dropped(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`count` frames were neither forwarded nor answered."""

    KIND: ClassVar = "dropped"

    agent: str = ""
    backend: str = ""
    boot: str = ""
    count: int = 0
    direction: str = ""
    kind: str = ""
    mono: int = 0
    prev: str = ""
    reason: str = ""
    seq: int = 0
    session: str = ""
    tenant: str = ""
    ts: int = 0
    v: int = 0


class Approval(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What became of a ticket. `decision`: voted, approved, rejected, expired, cancelled, consumed or attached.

    Of a grant, whose id stands in `ticket`: granted or revoked.
    """

    KIND: ClassVar = "approval"

    boot: str = ""
    by: str = ""
    call: str = ""
    decision: str
    kind: str = ""
    mono: int = 0
    note: str = ""
    prev: str = ""
    seq: int = 0
    tenant: str = ""
    ticket: str
    ts: int = 0
    v: int = 0
    via: str = ""


class Admin(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Something was done to Aegis itself: `action` is a stable word, `detail` for people.

    `signature` is the log's key's word for an order to remove (`warrants.py`), which counts for nothing without it.
    """

    KIND: ClassVar = "admin"

    action: str
    boot: str = ""
    by: str = ""
    detail: str = ""
    kind: str = ""
    mono: int = 0
    prev: str = ""
    seq: int = 0
    signature: str = ""
    tenant: str = ""
    ts: int = 0
    v: int = 0


Record: TypeAlias = Start | Hold | Intent | Outcome | Denied | Dropped | Approval | Admin
KINDS: dict[str, type[Record]] = {
    struct.KIND: struct for struct in (Start, Hold, Intent, Outcome, Denied, Dropped, Approval, Admin)
}
"""Every kind, by the word in `kind`."""


def clip(body: bytes, limit: int = RESULT_CAP) -> bytes:
    """At most `limit` bytes of a UTF-8 body, cut between characters."""
    if len(body) <= limit:
        return body
    end = limit
    while end > 0 and body[end] & 0xC0 == 0x80:
        end -= 1
    return body[:end]
