"""A call of the past, as far as it was judged: what the log gives, and what is judged once more."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Final

import msgspec

NAME_CAP: Final = 256
"""Characters of a name or URI that the log has (`shortened`)."""


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


def shortened(text: str, most: int = NAME_CAP, scrub: Callable[[bytes], bytes] | None = None) -> str:
    """A text that others may have made as long as they like: as it is, or `most` characters, `…` and 16 hex digits.

    Those are the beginning of the whole text's SHA-256. What is kept is scrubbed (as JSON) before it is cut, since a
    secret that the cut would halve is one still.
    """
    if len(text) <= most:
        return text
    digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    if scrub is not None:
        text = msgspec.json.decode(scrub(msgspec.json.encode(text)), type=str)
    return f"{text[:most]}…{digest}"
