"""A call of the past, as far as it was judged: what the log gives, and what is judged once more."""

from __future__ import annotations

import msgspec


class Past(msgspec.Struct, frozen=True, gc=False):
    """What was judged of one call, and how that ended; `arguments` is JSON text, None where it is not kept.

    `ts` is microseconds since the epoch, `arguments_hash` the hex SHA-256 of what is kept.
    """

    seq: int
    ts: int
    call_id: str
    agent_id: str
    backend_id: str
    session: str
    era: str
    method: str
    tool_name: str
    arguments: bytes | None
    arguments_hash: str
    approval_result: str
    exec_status: str
    stage: str
    policy_id: str
    would: int
