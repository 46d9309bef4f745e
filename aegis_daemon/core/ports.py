"""What the call's path needs of the siblings, so that they need not know each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from aegis_daemon.core.call import Call
from aegis_daemon.core.verdict import Claim, Decision, Deny, Hold, Permit
from aegis_daemon.wire.jsonrpc import Answer


class Fault(Exception):
    """A call that failed after it was allowed: `reason` is a stable word, `known` whether the server never saw it."""

    def __init__(self, reason: str, text: str, *, not_executed: bool = False) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.not_executed = not_executed


class Peer(Protocol):
    """The other end of a call: the only door out."""

    def send(self, permit: Permit) -> Awaitable[Answer]:
        """Forwards the permit's frame, at once, and answers with what comes back. Raises `Fault`."""
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

    def reserve(self, claims: tuple[Claim, ...], now: float) -> Lease | Deny:
        """All claims or none."""
        ...


class Turn(Protocol):
    """A place in a lane."""

    def ready(self) -> Awaitable[None]:
        """Done when it is this call's turn and its delay is over."""
        ...

    def leave(self) -> None:
        """Gives the place up, or ends the turn; idempotent."""
        ...


class Lanes(Protocol):
    """The FIFO of each backend that has one."""

    def enter(self, call: Call) -> Turn | Deny | None:
        """A reserved place that is not in the order yet; None where the call needs none; a refusal where all are taken."""
        ...


class Settled(Protocol):
    """A ticket that allows its call to run once."""

    ticket: str

    def consumed(self, answer: bytes | None, delivered: bool) -> None:
        """The call ran. `answer` (result JSON) is kept for an identical retry where it was not delivered."""
        ...


class Desk(Protocol):
    """Where people decide."""

    def settle(self, hold: Hold, release: Callable[[], None]) -> Awaitable[Decision]:
        """Opens a ticket for the hold, or attaches to one, and waits for its end."""
        ...
