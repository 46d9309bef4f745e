"""A row of `calls` says what the records of its call say, and nothing else: `fold` is the only way to one.

The writer folds records as they come, `verify` folds them again and compares. Pure.
"""

from __future__ import annotations

from hashlib import sha256

import msgspec

from aegis_daemon.audit.chain import Link


class Stored(Link):
    """Any kind of record, read back; what a kind lacks stands at its default."""

    acl: str = ""
    agent: str = ""
    approval: str = ""
    approver: str = ""
    backend: str = ""
    boot: str = ""
    code: int = 0
    consumed: bool = False
    duration_us: int = 0
    era: str = ""
    error_code: int = 0
    error_message: str = ""
    judged_us: int = 0
    length: int = 0
    limit: str = ""
    method: str = ""
    mono: int = 0
    name: str = ""
    note: str = ""
    policy: str = ""
    principal: str = ""
    queue_position: int = 0
    queue_wait_us: int = 0
    reason: str = ""
    request: str = ""
    session: str = ""
    stage: str = ""
    status: str = ""
    tenant: str = ""
    ticket: str = ""
    ts: int = 0


class Row(msgspec.Struct):
    """One call, its fields in the order of the columns.

    `seq` is the call's first record, which holds the arguments; `result_seq` the one that holds the result (0 for
    none); `seqs` lists all its records. `boot`, `mono` and `finished_ts` are of its last decision or its end.
    """

    seq: int
    call_id: str
    request_id: str
    tenant_id: str
    agent_id: str
    principal: str
    backend_id: str
    session: str
    era: str
    method: str
    tool_name: str
    arguments_hash: str
    ts: int
    acl_result: str = ""
    rate_limit_result: str = ""
    approval_result: str = ""
    approver: str = ""
    ticket: str = ""
    queue_position: int = 0
    queue_wait_us: int = 0
    exec_status: str = "pending"
    exec_duration_us: int = 0
    error_code: int = 0
    error_message: str = ""
    stage: str = ""
    policy_id: str = ""
    note: str = ""
    consumed: int = 0
    would: int = 0
    boot: str = ""
    mono: int = 0
    finished_ts: int = 0
    result_seq: int = 0
    seqs: str = ""
    judged_us: int = 0


COLUMNS = Row.__struct_fields__
FIXED = COLUMNS[: COLUMNS.index("acl_result")]
"""Columns that the call's first record settles."""
CHANGING = COLUMNS[len(FIXED) :]

read_record = msgspec.json.Decoder(Stored).decode
_decode = msgspec.json.decode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode


def arguments_hash(arguments: bytes) -> str:
    """The hex SHA-256 of arguments, whatever the order of their keys; of the bytes where they are no JSON."""
    try:
        arguments = _encode_sorted(_decode(arguments))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    return sha256(arguments).hexdigest()


def fold(open_calls: dict[str, Row], record: Stored, part: bytes | None) -> tuple[Row, bool] | None:
    """What one more record makes of its call's row, and whether the row is new; None where it concerns no open call.

    `open_calls` holds the calls without an end, by id; `part` is the body beside the record.
    """
    kind = record.kind
    call = record.call
    row = open_calls.get(call)
    new = False
    if kind == "intent" or kind == "hold" or kind == "denied":
        if row is None:
            new = True
            row = Row(
                record.seq,
                call,
                record.request,
                record.tenant,
                record.agent,
                record.principal,
                record.backend,
                record.session,
                record.era,
                record.method,
                record.name,
                "" if part is None else arguments_hash(part),
                record.ts,
                seqs=str(record.seq),
            )
            open_calls[call] = row
        else:
            row.seqs = f"{row.seqs},{record.seq}"
        row.acl_result = record.acl
        row.rate_limit_result = record.limit
        row.approval_result = record.approval
        row.approver = record.approver
        row.ticket = record.ticket or row.ticket
        row.queue_position = record.queue_position
        row.queue_wait_us = record.queue_wait_us
        row.judged_us = record.judged_us or row.judged_us
        row.policy_id = record.policy or row.policy_id
        row.note = record.note or row.note
        row.boot = record.boot
        row.mono = record.mono
        if kind == "denied":
            row.stage = record.stage
            row.error_message = record.reason
            row.error_code = record.code
            if record.would:
                row.would = 1
            else:
                row.exec_status = "denied"
                row.finished_ts = record.ts
                del open_calls[call]
        return row, new
    if row is None:
        return None
    row.seqs = f"{row.seqs},{record.seq}"
    if kind == "outcome":
        row.exec_status = record.status
        row.exec_duration_us = record.duration_us
        row.error_code = record.error_code
        row.error_message = record.error_message or row.error_message
        row.consumed = int(record.consumed)
        row.boot = record.boot
        row.mono = record.mono
        row.finished_ts = record.ts
        if part is not None:
            row.result_seq = record.seq
        del open_calls[call]
    return row, False
