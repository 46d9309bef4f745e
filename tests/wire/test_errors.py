from __future__ import annotations

import json
from typing import Any

import pytest

from aegis_daemon.wire.errors import DENIAL_KEY, REFUSALS, SEED_STAGES, refusal_frame
from aegis_daemon.wire.jsonrpc import Answer, parse_from_server
from aegis_daemon.wire.methods import Era

MODERN_APP_CODES = range(-31999, -30999)


def refused(stage: str, era: Era, *, method: str = "tools/call", style: str = "auto", **more: Any) -> dict[str, Any]:
    raw = refusal_frame(
        7, stage=stage, text="no: x", reason="why", call_id="c" * 32, era=era, method=method, style=style, **more
    )
    answer = parse_from_server(raw)
    assert isinstance(answer, Answer)
    assert answer.id == 7
    value = json.loads(raw)
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    ("stage", "code"),
    [("acl", -32001), ("policy", -32001), ("rate_limit", -32002), ("queue", -32003), ("approval", -32004)],
)
def test_a_legacy_refusal_has_the_seeds_code(stage: str, code: int) -> None:
    value = refused(stage, Era.LEGACY, retryable=True, retry_after_ms=1500)
    assert value["error"] == {
        "code": code,
        "message": "no: x",
        "data": {
            "by": "aegis", "call_id": "c" * 32, "stage": stage, "reason": "why", "retryable": True,
            "retry_after_ms": 1500,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "code"),
    [
        ("method", -32601), ("params", -32602), ("version", -32022), ("audit", -32603), ("forward", -32603),
        ("internal", -32603),
    ],
)  # fmt: skip
def test_a_fault_has_the_protocols_own_code_and_is_not_worth_repeating_unless_said(stage: str, code: int) -> None:
    error = refused(stage, Era.LEGACY)["error"]
    assert error["code"] == code
    assert (error["data"]["retryable"], error["data"]["retry_after_ms"]) == (False, None)


@pytest.mark.parametrize("stage", sorted(SEED_STAGES))
def test_a_modern_tool_refusal_is_a_tool_result_that_says_why(stage: str) -> None:
    result = refused(stage, Era.MODERN)["result"]
    assert result["resultType"] == "complete"
    assert result["isError"] is True
    assert result["content"] == [{"type": "text", "text": "no: x"}]
    assert "structuredContent" not in result
    denial = result["_meta"][DENIAL_KEY]
    assert denial["code"] in MODERN_APP_CODES
    assert (denial["stage"], denial["call_id"], denial["reason"]) == (stage, "c" * 32, "why")


@pytest.mark.parametrize("stage", sorted(SEED_STAGES))
def test_a_modern_refusal_of_another_method_is_an_error_outside_the_protocols_codes(stage: str) -> None:
    error = refused(stage, Era.MODERN, method="resources/read")["error"]
    assert error["code"] == REFUSALS[stage].legacy + 1000
    assert error["code"] in MODERN_APP_CODES


@pytest.mark.parametrize("stage", sorted(set(REFUSALS) - SEED_STAGES))
@pytest.mark.parametrize("era", [Era.LEGACY, Era.MODERN])
@pytest.mark.parametrize("style", ["auto", "error", "tool_result"])
def test_a_fault_is_a_protocol_error_in_every_style(stage: str, era: Era, style: str) -> None:
    error = refused(stage, era, style=style)["error"]
    assert error["code"] == REFUSALS[stage].legacy == REFUSALS[stage].modern


@pytest.mark.parametrize(
    ("era", "style", "is_result"),
    [
        (Era.LEGACY, "auto", False),
        (Era.LEGACY, "error", False),
        (Era.LEGACY, "tool_result", True),
        (Era.MODERN, "auto", True),
        (Era.MODERN, "error", False),
        (Era.MODERN, "tool_result", True),
    ],
)
def test_the_style_decides_the_shape(era: Era, style: str, is_result: bool) -> None:
    value = refused("acl", era, style=style)
    assert ("result" in value) is is_result
    if is_result:
        assert ("resultType" in value["result"]) is (era is Era.MODERN)


def test_every_row_stands_under_its_own_name() -> None:
    assert all(row.stage == stage for stage, row in REFUSALS.items())
