"""What a recorded call was for is read from the log as it was when the call was judged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from making import call

from aegis_daemon.manage import shapes
from aegis_daemon.manage.refusals import explained
from aegis_daemon.wire.methods import Direction


def recorded(method: str, params: dict[str, Any], *, to_client: bool = False) -> shapes.Explained:
    """Through a real call, whose name and arguments are what is recorded."""
    made = call(method, params, direction=Direction.TO_CLIENT if to_client else Direction.TO_SERVER)
    return explained(
        shapes.AuditCall(
            seq=1, call_id="c", agent_id="amy", principal="amy", backend_id="files", method=method,
            tool_name=made.name or "", arguments=made.content_text.decode(), acl_result="denied", rate_limit_result="",
            approval_result="", approver="", ticket="", exec_status="denied", exec_duration_us=0, queue_wait_ms=0,
            error_code=-32001, error_message="no", stage="acl", rule="r", would=False, created_at="",
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "params", "subject", "names"),
    [
        ("tools/call", {"name": "read", "arguments": {"name": "x"}}, "tool", ("read",)),
        ("resources/read", {"uri": "a:b"}, "resource", ("a:b",)),
        ("resources/subscribe", {"uri": "a:b"}, "resource", ("a:b",)),
        ("prompts/get", {"name": "hello"}, "prompt", ("hello",)),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {}}, "prompt", ("p",)),
        ("completion/complete", {"ref": {"type": "ref/resource", "uri": "a:b"}}, "resource", ("a:b",)),
        (
            "subscriptions/listen",
            {"notifications": {"resourceSubscriptions": ["a:b", "c:d"]}},
            "resource",
            ("a:b", "c:d"),
        ),
        ("tasks/get", {"taskId": "t"}, "task", ("t",)),
        ("tools/list", {}, "", ()),
        ("initialize", {"capabilities": {}}, "", ()),
    ],
)
def test_each_method_speaks_of_what_its_rules_look_at(
    method: str, params: dict[str, Any], subject: str, names: tuple[str, ...]
) -> None:
    found = recorded(method, params)
    assert (found.subject, found.names) == (subject, names)


@pytest.mark.parametrize("method", ["sampling/createMessage", "elicitation/create", "roots/list", "tasks/get"])
def test_what_a_server_asked_is_told_from_what_a_client_asked(method: str) -> None:
    assert recorded(method, {}, to_client=True).subject == "server_request"


def test_what_cannot_be_told_any_more_is_not_guessed() -> None:
    found = recorded("completion/complete", {"ref": {"type": "ref/prompt", "name": "p"}})
    assert found.subject == "prompt"
    for arguments in ("", "[1]", "{", json.dumps({"ref": 3})):
        lost = shapes.AuditCall(**{**_bare("completion/complete"), "tool_name": "p", "arguments": arguments})
        assert explained(lost).subject == "unknown"


def _bare(method: str) -> dict[str, Any]:
    return {
        "seq": 1, "call_id": "c", "agent_id": "a", "principal": "a", "backend_id": "b", "method": method,
        "tool_name": "", "acl_result": "", "rate_limit_result": "", "approval_result": "", "approver": "",
        "ticket": "", "exec_status": "denied", "exec_duration_us": 0, "queue_wait_ms": 0, "error_code": 0,
        "error_message": "", "stage": "acl", "rule": "", "would": False, "created_at": "",
    }  # fmt: skip
