"""Calls as the log has them."""

from __future__ import annotations

from typing import Any

import msgspec
from making import call

from aegis_daemon.audit.calls import arguments_hash
from aegis_daemon.core.call import Call
from aegis_daemon.core.past import Past

NOON = 1_790_251_200_000_000
"""2026-09-24 12:00 UTC, a Thursday, in microseconds."""


def recorded(of: Call, **more: Any) -> Past:
    """What the log has of a call that went through."""
    body = of.content_text
    facts: dict[str, Any] = {
        "seq": 1,
        "ts": NOON,
        "call_id": of.id,
        "agent_id": of.principal.agent,
        "backend_id": of.backend,
        "session": of.session,
        "era": "legacy",
        "method": of.method,
        "tool_name": of.name or "",
        "arguments": body,
        "arguments_hash": arguments_hash(body),
        "approval_result": "not_required",
        "exec_status": "success",
        "stage": "",
        "policy_id": "",
        "would": 0,
    }
    return Past(**{**facts, **more})


def past(tool: str = "read", arguments: Any = None, backend: str = "files", agent: str = "amy", **more: Any) -> Past:
    params = {"name": tool, "arguments": {} if arguments is None else arguments}
    return recorded(call(params=params, backend=backend, agent=agent), **more)


def erased(one: Past) -> Past:
    return msgspec.structs.replace(one, arguments=None)
