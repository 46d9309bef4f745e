from __future__ import annotations

from hashlib import sha256

import msgspec
from logging_by_hand import ARGUMENTS, call_id, denied, hold, intent, outcome

from aegis_daemon.audit.calls import COLUMNS, Row, arguments_hash, fold, read_record
from aegis_daemon.audit.record import Approval, Record


def folded(*records: tuple[Record, bytes | None]) -> tuple[dict[str, Row], Row]:
    open_calls: dict[str, Row] = {}
    rows: list[Row] = []
    for seq, (record, part) in enumerate(records, 1):
        record.kind, record.seq, record.ts, record.mono, record.prev = record.KIND, seq, seq * 100, seq, "0" * 64
        found = fold(open_calls, read_record(msgspec.json.encode(record)), part)
        if found is not None and found[1]:
            rows.append(found[0])
    assert len(rows) == 1
    return open_calls, rows[0]


def test_an_allowed_call_is_pending_until_its_outcome() -> None:
    still_open, row = folded((intent(1, queue_position=3, queue_wait_us=4500), ARGUMENTS))
    assert (row.exec_status, row.queue_position, row.queue_wait_us, list(still_open)) == (
        "pending",
        3,
        4500,
        [row.call_id],
    )
    still_open, row = folded((intent(1), ARGUMENTS), (outcome(1), b"{}"))
    assert (row.exec_status, row.consumed, row.exec_duration_us, row.result_seq) == ("success", 1, 1500, 2)
    assert (row.ts, row.finished_ts, row.mono, row.seqs) == (100, 200, 2, "1,2")
    assert still_open == {}


def test_a_refused_call_says_by_which_stage_and_why() -> None:
    still_open, row = folded((denied(1, policy="agents.writer"), ARGUMENTS))
    assert (row.exec_status, row.stage, row.error_code, row.policy_id) == ("denied", "acl", -32001, "agents.writer")
    assert (row.error_message, row.acl_result, row.finished_ts) == ("`delete_all` is denied", "denied", 100)
    assert still_open == {}


def test_a_held_call_keeps_its_first_time_and_takes_the_decision() -> None:
    _, row = folded(
        (hold(1, policy="publish*"), ARGUMENTS),
        (Approval(call=call_id(1), ticket="7K2M", decision="approved", by="ann"), None),
        (intent(1, approval="approved", approver="ann"), ARGUMENTS),
        (outcome(1, status="error", error_code=5, error_message="no"), None),
    )
    assert (row.approval_result, row.approver, row.ticket, row.policy_id) == ("approved", "ann", "7K2M", "publish*")
    assert (row.ts, row.finished_ts, row.seqs, row.result_seq) == (100, 400, "1,2,3,4", 0)
    assert (row.exec_status, row.error_code, row.error_message) == ("error", 5, "no")


def test_what_observe_mode_let_pass_is_marked_and_goes_on() -> None:
    still_open, row = folded((denied(1, would=True), ARGUMENTS))
    assert (row.exec_status, row.would, row.stage, len(still_open)) == ("pending", 1, "acl", 1)
    _, row = folded((denied(1, would=True), ARGUMENTS), (intent(1), ARGUMENTS), (outcome(1), None))
    assert (row.exec_status, row.would, row.stage, row.seqs) == ("success", 1, "acl", "1,2,3")


def test_records_of_no_open_call_make_no_row() -> None:
    record = read_record(b'{"kind":"outcome","seq":1,"prev":"","call":"x","status":"success"}')
    assert fold({}, record, None) is None


def test_the_hash_of_arguments_does_not_depend_on_the_order_of_keys() -> None:
    assert arguments_hash(b'{"b": 1, "a": [1, 2]}') == arguments_hash(b'{"a":[1,2],"b":1}')
    assert arguments_hash(b'{"a":[1,2],"b":1}') == sha256(b'{"a":[1,2],"b":1}').hexdigest()
    assert arguments_hash(b'{"a":[2,1],"b":1}') != arguments_hash(b'{"a":[1,2],"b":1}')
    for odd in (b"", b"\xff", b"[" * 100_000, b'{"a":1'):
        assert arguments_hash(odd) == sha256(odd).hexdigest()


def test_a_row_has_the_columns_that_the_contract_names() -> None:
    named = {
        "request_id", "tenant_id", "agent_id", "principal", "backend_id", "method", "tool_name", "arguments_hash",
        "acl_result", "rate_limit_result", "approval_result", "approver", "queue_position", "exec_status",
        "error_message", "policy_id",
    }  # fmt: skip
    assert named <= set(COLUMNS)
