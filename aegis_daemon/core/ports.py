"""What the path of a call needs of the siblings, so that they need not know each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import HoldRule
from aegis_daemon.core.session import Open
from aegis_daemon.core.verdict import Claim, Ended, Hold, Permit, Reason
from aegis_daemon.wire.jsonrpc import Answer, Frame


class Fault(Exception):
    """A call that failed after it was allowed.

    `reason` is a stable word for `data.reason`; `not_executed` tells that the other side never saw the call.
    """

    def __init__(self, reason: str, text: str, *, not_executed: bool = False) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.not_executed = not_executed


class AuditUnavailable(Exception):
    """The record was not committed, so what it stands for must not happen; the text says why and what to do."""


class Awaited(Protocol):
    """Something awaited by a call that may have happened already."""

    @property
    def done(self) -> bool:
        """Whether it has."""
        ...

    def __await__(self) -> Any: ...


class Landing(Protocol):
    """Who takes what comes back of a call: one of these, once."""

    @property
    def opened(self) -> Open:
        """The open request that the call is."""
        ...

    def set(self, answer: Answer) -> None:
        """The answer."""
        ...

    def fail(self, fault: Fault) -> None:
        """There will be none."""
        ...


class Peer(Protocol):
    """The other end of a call: the only door out."""

    def send(self, permit: Permit, landing: Landing) -> None:
        """Forwards the permit's frame, at once; what comes back goes to `landing`. Raises `Fault`: it did not leave."""
        ...


class Lease(Protocol):
    """Claims held for one call until it ends."""

    def commit(self, now: float) -> None:
        """The call counts from `now` on."""
        ...

    def release(self) -> None:
        """The call never counted."""
        ...


class Limits(Protocol):
    """The windows."""

    def reserve(self, claims: tuple[Claim, ...], now: float) -> Any:
        """A `Lease` on all claims, or `Deny` and none."""
        ...


class Turn(Protocol):
    """A place in a lane."""

    @property
    def position(self) -> int:
        """How many are before it."""
        ...

    def ready(self) -> Awaited:
        """Done when it is this call's turn and its pause is over."""
        ...

    def leave(self) -> None:
        """Gives the place up, or ends the turn; idempotent."""
        ...


class Lanes(Protocol):
    """The order of each backend that has one."""

    def enter(self, call: Call) -> Any:
        """A reserved `Turn`, not in the order yet; None where the call needs none; `Deny` where all are taken."""
        ...


class Ticket(Protocol):
    """One ask. It owns its call's lease and place, but while a call runs, or is about to, under it."""

    id: str
    call_id: str
    agent: str
    backend: str
    state: str
    by: str
    note: str
    people: int
    name: str
    arguments: str
    pin: str
    server: str
    created: float
    expires: float
    outcome: bytes | None
    task: str
    seats: list[Any]
    runner: Any
    lease: Any
    turn: Any

    @property
    def idle(self) -> bool:
        """Whether its call may still run and none is about to."""
        ...


class Desk(Protocol):
    """Where people decide. All that wait for one ticket are one call: one of them runs it, the others hear how."""

    def find(self, hold: Hold) -> Any:
        """The `Ticket` that an identical call attaches to, or None."""
        ...

    def open(self, hold: Hold, client: str = "") -> Any:
        """A new `Ticket`, or `Deny`."""
        ...

    def attach(self, ticket: Any, call: Call, patience: float | None = None) -> Awaited:
        """A seat: waits for the ticket's `Decision`, at most `patience` seconds."""
        ...

    def leave(self, ticket: Any, seat: Any) -> None:
        """Whoever has the seat waits no more, or does not run the call after all; the ticket stays."""
        ...

    def withdraw(self, ticket: Any) -> None:
        """Nobody is asked after all."""
        ...

    def consume(self, ticket: Any) -> bool:
        """Takes the ticket's one use; False where it has none."""
        ...

    def unused(self, ticket: Any) -> bool:
        """Nothing left under that use: the ticket has it again; False where that cannot be kept."""
        ...

    def finish(self, ticket: Any, ended: Ended, delivered: bool) -> None:
        """The call is over; an answer that nobody received is kept."""
        ...

    def delivered(self, ticket: Any) -> None:
        """The kept answer was received."""
        ...

    def polled(self, ticket: Any, task: str) -> bool:
        """From now on the ticket is polled under this id, "" for none; False where that cannot be kept."""
        ...

    def by_task(self, task: str) -> Any:
        """The `Ticket` that is polled under this id, open or ended; None where there is none."""
        ...

    def params(self, ticket: Any, tenant: str) -> dict[str, Any] | None:
        """The parameters of the ticket's call, without `_meta`; None where they cannot be had."""
        ...


class Patience(Protocol):
    """How long clients wait for one answer."""

    def budget(self, rule: HoldRule, agent: str, client: str) -> float:
        """Seconds that a call of this client may be held."""
        ...

    def gave_up(self, agent: str, client: str, age_s: float) -> None:
        """This client cancelled a held call of this age."""
        ...


class Grant(Protocol):
    """A remembered approval: calls of one shape need no person until it ends. `id` and `by` are for the records."""

    @property
    def id(self) -> str:
        """Its name."""
        ...

    @property
    def by(self) -> str:
        """Who gave it."""
        ...


class Grants(Protocol):
    """The remembered approvals."""

    def find(self, hold: Hold) -> Any:
        """The `Grant` under which the call needs nobody's word now, or None. Uses nothing up."""
        ...

    def use(self, grant: Any) -> bool:
        """Takes one use of it, on disk; False where it has none left or that cannot be kept."""
        ...

    def holds(self, id: str) -> bool:
        """Whether what was begun under it may still go on: it was not taken back, and its time is not over."""
        ...


class Brake(Protocol):
    """What people have stopped."""

    def stops(self, call: Call) -> Reason | None:
        """Why this call must not go on now, None where nothing stops it."""
        ...


class Pins(Protocol):
    """What servers said of their tools, prompts, templates and themselves when they were first seen or last trusted.

    A `subject` is `tool`, `prompt`, `resource` (by its templates) or `instructions`, whose name is "".
    """

    recheck_s: float
    """how old what is known of a server in use may get before it is asked again"""

    def stops(self, backend: str, subject: str, name: str) -> str:
        """Nothing where it is as trusted; else `changed`, `held`, `unseen`, `crowded` (too many) or `long` (a name)."""
        ...

    def trusted(self, backend: str, subject: str, name: str) -> str:
        """Which change of it a person trusted; "" while it is what it was at first, or has not been seen."""
        ...

    def knows(self, backend: str, subject: str, name: str) -> bool:
        """Whether there is anything to compare it with."""
        ...

    def shown(self, backend: str, method: str, body: bytes) -> bool:
        """A server's answer that describes it, before anything of it is released: True where it is whole, or ends one.

        What is not as pinned is stopped once this returns. Raises `ValueError` where it cannot be read or recorded.
        """
        ...


class Story(Protocol):
    """The records of one call; what is set on it goes into the next record."""

    acl: str
    limit: str
    approval: str
    approver: str
    ticket: str
    note: str
    position: int
    wait_us: int
    judged_us: int

    def held(self, ticket: str, rule: str) -> None:
        """The call waits for a person. Raises `AuditUnavailable`."""
        ...

    def intent(self, committed: Callable[[AuditUnavailable | None], None]) -> bool:
        """The call is about to leave: True where that is committed, else `committed` is called once it is or cannot be.

        Raises `AuditUnavailable`, or `committed` is given it: the call must not leave.
        """
        ...

    def outcome(
        self, status: str, duration_us: int, *, consumed: bool, result: bytes = b"", code: int = 0, message: str = ""
    ) -> None:
        """The call ended."""
        ...

    def denied(self, reason: Reason, *, would: bool = False) -> None:
        """The call was refused, or with `would` only would have been."""
        ...


class AuditLog(Protocol):
    """The log of everything."""

    def story(self, call: Call) -> Story:
        """Begins the records of a call."""
        ...

    def dropped(self, agent: str, backend: str, session: str, direction: str, reason: str, count: int) -> None:
        """Frames that were neither forwarded nor answered."""
        ...


class Party(Protocol):
    """What an agent's end talks to over the network: one session with one server, or with several at once."""

    def hear(self, frame: Frame, end: int = 0) -> None:
        """One frame of the client."""
        ...

    def withdraw(self, slot: int, *, forwarded: bool = True) -> None:
        """Nobody waits for the request with this slot any more; it is cancelled at the server only if `forwarded`."""
        ...

    def client_left(self) -> None:
        """Nothing new comes, and nobody reads any more."""
        ...

    @property
    def serves(self) -> bool:
        """Whether there is a server at all: where the agent may use none, everything is refused."""
        ...

    def refusal(self, frame: Frame, reason: Reason) -> bytes:
        """The answer to a request that is not heard any more, which is recorded as refused."""
        ...


class Turned(Exception):
    """A client that is turned away: the HTTP status and code that say so, and a text that names the next step.

    `reason` is a stable word, `detail` what only the log tells: why, and what would let the client in.
    """

    def __init__(self, status: int, code: int, text: str, *, reason: str = "refused", detail: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.reason = reason
        self.detail = detail


class Reception(Protocol):
    """Who may come in over the network, and whom they get to talk to."""

    def admit(self, agent: str, token: str | None, peer: str) -> Principal:
        """Who it is. Raises `Turned`."""
        ...

    def begin(self, principal: Principal, backend: str | None, client: Any, *, shared: bool) -> Party:
        """A session with one backend, or with all that the agent may use; `shared` by all who ask. Raises `Turned`."""
        ...

    def suits(self, principal: Principal, backend: str | None, party: Party) -> bool:
        """Whether whom it began then is whom it would begin now, at the same address."""
        ...

    def apart(self, principal: Principal, backend: str | None) -> bool:
        """Whether clients that can do different things need sessions of their own: a legacy server is told once."""
        ...

    def dropped(self, principal: Principal, backend: str | None, session: str, reason: str) -> None:
        """A frame was neither forwarded nor answered."""
        ...

    def refused(self, principal: Principal, backend: str | None, turned: Turned, frame: Frame | None) -> bytes:
        """Whoever is known and gets to talk to nobody (`begin`) is answered so; what it asked for is recorded."""
        ...
