"""Every code and shape in which Aegis says no: one table.

Sources: seed A (the four legacy codes); MCP 2026-07-28 `basic/index` (error codes: -32000…-32099 are the
protocol's own there); product contract §6.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aegis_daemon.wire.jsonrpc import Id, encode, error_frame, id_text, result_frame
from aegis_daemon.wire.methods import Era

INTERNAL_ERROR: Final = -32603
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
UNSUPPORTED_VERSION: Final = -32022
HEADER_MISMATCH: Final = -32020
CANCELLED: Final = -32800
"""What a cancelled request is answered with where HTTP wants an answer: the code of LSP and of the MCP SDKs."""


class Refusal(msgspec.Struct, frozen=True):
    """One row: the code in the legacy era, the code in the modern era, and when it is given."""

    stage: str
    legacy: int
    modern: int
    meaning: str


REFUSALS: Final = {
    row.stage: row
    for row in (
        Refusal("acl", -32001, -31001, "the agent, the backend or the name is not allowed"),
        Refusal("policy", -32001, -31001, "a policy forbids the call"),
        Refusal("pin", -32001, -31001, "what its server says of it has changed, and nobody has trusted the change"),
        Refusal("paused", -32001, -31001, "a person has paused the agent, or all of them"),
        Refusal("rate_limit", -32002, -31002, "a limit is used up; global limits are asked before the agent's own"),
        Refusal("queue", -32003, -31003, "the lane is full, or too many calls are in flight"),
        Refusal("approval", -32004, -31004, "a person rejected the call, or nobody decided in time"),
        Refusal("method", METHOD_NOT_FOUND, METHOD_NOT_FOUND, "the method is not one Aegis knows"),
        Refusal("params", INVALID_PARAMS, INVALID_PARAMS, "the parameters do not say what the call is about"),
        Refusal("version", UNSUPPORTED_VERSION, UNSUPPORTED_VERSION, "the protocol version is not one Aegis knows"),
        Refusal("audit", INTERNAL_ERROR, INTERNAL_ERROR, "the intent could not be recorded, so nothing was forwarded"),
        Refusal("forward", INTERNAL_ERROR, INTERNAL_ERROR, "the server could not be reached or did not answer"),
        Refusal("internal", INTERNAL_ERROR, INTERNAL_ERROR, "a fault in Aegis itself; nothing was forwarded"),
    )
}
SEED_STAGES: Final = frozenset({"acl", "policy", "pin", "paused", "rate_limit", "queue", "approval"})
"""Stages whose refusal of a `tools/call` may be a tool result; the others are protocol errors in every style."""
DENIAL_KEY: Final = "aegis/denial"


def refusal_frame(
    id: Id,
    *,
    stage: str,
    text: str,
    reason: str,
    call_id: str,
    era: Era,
    method: str,
    style: str = "auto",
    retryable: bool = False,
    retry_after_ms: int | None = None,
    policy: str = "",
) -> bytes:
    """The answer to a refused call, in the shape its era and `denials:` ask for. `text` holds the whole reason,
    and `reason` a stable word for it.
    """
    row = REFUSALS[stage]
    modern = era is Era.MODERN
    code = row.modern if modern else row.legacy
    data: dict[str, Any] = {
        "by": "aegis",
        "call_id": call_id,
        "stage": stage,
        "reason": reason or stage,
        "retryable": retryable,
        "retry_after_ms": retry_after_ms,
    }
    if policy:
        data["policy"] = policy
    as_result = style == "tool_result" or (style == "auto" and modern)
    if as_result and method == "tools/call" and stage in SEED_STAGES:
        result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": True}
        if modern:
            result = {"resultType": "complete", **result}
        result["_meta"] = {DENIAL_KEY: {"code": code, **data}}
        return result_frame(id_text(id), encode(result))
    return error_frame(id_text(id), code, text, data)
