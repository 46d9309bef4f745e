"""A ticket is one person's single use of one exact call."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Container
from typing import Any, Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.verdict import Ask, Claim
from aegis_daemon.loop.strand import Waiter

CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

PENDING: Final = "pending"
APPROVED: Final = "approved"
REJECTED: Final = "rejected"
EXPIRED: Final = "expired"
CONSUMED: Final = "consumed"
OPEN: Final = frozenset({PENDING, APPROVED})
"""States in which a ticket may still let its call run."""


class Ticket(msgspec.Struct):
    """All that is kept of one ask. Times are seconds since the epoch. Only the desk changes one."""

    id: str
    call_id: str
    digest: str
    agent: str
    backend: str
    method: str
    name: str
    arguments: str
    rule: str
    created: float
    expires: float
    claims: tuple[Claim, ...] = ()
    state: str = PENDING
    by: str = ""
    note: str = ""
    outcome: bytes | None = None
    """the answer's result while nobody has received it"""
    waiter: Waiter[Any] | None = None
    lease: Any = None
    turn: Any = None

    @property
    def attended(self) -> bool:
        """Whether a client waits for it."""
        return self.waiter is not None


def digest(call: Call, ask: Ask) -> str:
    """What an approval is bound to: tenant, agent, backend, method, all parameters but `_meta`, and the deciding rule.

    SHA-256, hex, over JSON with sorted keys (hard rule 5). There are no pins yet; theirs will be one more key.
    """
    params = {key: value for key, value in call.frame.params.items() if key != "_meta"}
    bound = {
        "agent": call.principal.agent,
        "backend": call.backend,
        "method": call.method,
        "params": params,
        "rule": ask.rule,
        "tenant": call.principal.tenant,
    }
    return hashlib.sha256(msgspec.json.encode(bound, order="sorted")).hexdigest()


def new_id(taken: Container[str]) -> str:
    """Four Crockford characters that no open ticket has; more once those are scarce."""
    length = 4
    for attempt in range(1000):
        if attempt and attempt % 50 == 0:
            length += 1
        made = "".join(secrets.choice(CROCKFORD) for _ in range(length))
        if made not in taken:
            return made
    raise RuntimeError("no free ticket id")


def spoken(text: str) -> str:
    """An id as typed by a person: case, and the letters Crockford left out, do not matter."""
    return text.strip().upper().translate(str.maketrans("OIL", "011"))
