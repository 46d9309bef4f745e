"""A ticket is one person's single use of one exact call."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Container
from typing import Any, Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.verdict import Ask, Claim

CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

PENDING: Final = "pending"
APPROVED: Final = "approved"
REJECTED: Final = "rejected"
EXPIRED: Final = "expired"
CONSUMED: Final = "consumed"
OPEN: Final = frozenset({PENDING, APPROVED})
"""States in which a ticket may still let its call run."""


NAMED: Final = "user:"
"""How a voter begins who is a person with a name; all others may be anybody, and twice the same."""


class Vote(msgspec.Struct, frozen=True):
    """One yes: `voter` tells persons apart, `by` names them, `via` is the way it came, `at` since the epoch."""

    voter: str
    by: str
    via: str = ""
    note: str = ""
    at: float = 0.0


class Ticket(msgspec.Struct, eq=False):
    """All that is kept of one ask. Times are seconds since the epoch. Only the desk changes one.

    `people` must agree, `votes` are those who have; `client` is what the client calls itself; `task` is the id under
    which a client polls it, where one does.
    """

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
    """the answer's result while nobody has received it; empty for a no that nobody has heard"""
    people: int = 1
    votes: tuple[Vote, ...] = ()
    client: str = ""
    via: str = ""
    """how the decision came"""
    task: str = ""
    pin: str = ""
    server: str = ""
    """which server was handed over (`core.handed`); "" where the configuration says what runs"""
    command: str = ""
    """how that server is started, and where, as people may see it"""
    cwd: str = ""
    parts: str = ""
    """what tells that server from others, part by part (`core.handed.differing`)"""
    unlike: str = ""
    """what is different from the server of the call that was approved last, where that was another one"""
    seats: list[Any] = []
    """who waits for it, the newest last"""
    runner: Any = None
    """the seat of the call that runs, or is about to; it is one of `seats`"""
    lease: Any = None
    turn: Any = None

    @property
    def attended(self) -> bool:
        """Whether a client waits for it."""
        return bool(self.seats)

    @property
    def idle(self) -> bool:
        """Whether its call may still run and none is about to: then its lease and place are the ticket's own."""
        return self.state in OPEN and self.runner is None


def digest(call: Call, ask: Ask) -> str:
    """What an approval is bound to: tenant, agent, backend, method, all parameters but `_meta`, rule, pin and server.

    SHA-256, hex, over JSON with sorted keys (hard rule 5). The pin is one more key once a person has trusted a change
    of the tool: what was agreed to before does not hold for what the tool is now. The server is one where the agent's
    end handed it over: the same call of another program, or in another place, is another call.
    """
    params = {key: value for key, value in call.frame.params.items() if key != "_meta"}
    who = call.principal
    return seal(who.tenant, who.agent, call.backend, call.method, params, ask.rule, ask.pin, call.server)


def seal(
    tenant: str,
    agent: str,
    backend: str,
    method: str,
    params: dict[str, Any],
    rule: str,
    pin: str = "",
    server: str = "",
) -> str:
    """The same over the parts; `params` are without `_meta`."""
    bound = {"agent": agent, "backend": backend, "method": method, "params": params, "rule": rule, "tenant": tenant}
    if pin:
        bound["pin"] = pin
    if server:
        bound["server"] = server
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


def params_of(ticket: Ticket, tenant: str) -> dict[str, Any] | None:
    """The parameters of the ticket's call, without `_meta`: those that give its digest, which no others do.

    None where nothing does: what was kept is not what was asked.
    """
    content = msgspec.json.decode(ticket.arguments)
    found: list[dict[str, Any]] = [{"name": ticket.name, "arguments": content}]
    if type(content) is dict:
        if not content:
            found.append({"name": ticket.name})
        if "arguments" in content:
            found.append({"name": ticket.name, **content})
            if content["arguments"] == {}:
                found.append({"name": ticket.name, **{key: content[key] for key in content if key != "arguments"}})
    for params in found:
        made = seal(tenant, ticket.agent, ticket.backend, ticket.method, params, ticket.rule, ticket.pin, ticket.server)
        if made == ticket.digest:
            return params
    return None
