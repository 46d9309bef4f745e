"""The desk: opens tickets, lets an identical call attach, takes one decision each, and forgets none of it.

Nothing ever runs by itself: an approved ticket whose client has gone waits for an identical call of the same agent,
and lapses at its expiry (product contract §6, hard rule 5).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from aegis_daemon.approvals.store import TicketStore
from aegis_daemon.approvals.ticket import (
    APPROVED,
    CONSUMED,
    EXPIRED,
    OPEN,
    PENDING,
    REJECTED,
    Ticket,
    digest,
    new_id,
)
from aegis_daemon.core.call import Call
from aegis_daemon.core.verdict import Decision, Deny, Hold, Reason, unrecorded
from aegis_daemon.loop.strand import Waiter

_log = logging.getLogger("aegis.approvals")
REPLAY_S = 600.0
"""How long an answer that nobody received is kept for an identical call."""
KEPT_S = 86400.0
"""How long an ended ticket, with its arguments, stays in the store; what remains is the audit log's."""


class NoSuchTicket(Exception):
    """No open ticket has this id."""


class Decided(Exception):
    """The ticket was decided before; `ticket` says how and by whom."""

    def __init__(self, ticket: Ticket) -> None:
        if ticket.state == EXPIRED:
            how = "expired"
        elif ticket.state == CONSUMED:
            how = f"was approved by {ticket.by} and has run"
        else:
            how = f"was {ticket.state} by {ticket.by} already"
        super().__init__(f"`{ticket.id}` {how}")
        self.ticket = ticket


class Timer(Protocol):
    """What `call_later` gives back."""

    def cancel(self) -> None:
        """Never fires."""
        ...


class Desk:
    """All tickets.

    `on_event(event, ticket)` hears opened, attached, waiter_gone, approved, rejected, expired and consumed.
    """

    def __init__(
        self,
        store: TicketStore,
        *,
        wall: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
        on_event: Callable[[str, Ticket], None],
        max_pending: int = 64,
    ) -> None:
        self._store = store
        self._wall = wall
        self._call_later = call_later
        self._on_event = on_event
        self.max_pending = max_pending
        self._open: dict[str, Ticket] = {}
        self._by_digest: dict[str, list[Ticket]] = {}
        self._timers: dict[str, Timer] = {}
        self._ended: dict[str, Ticket] = {}

    # --- what the daemon's start does ---------------------------------------------------------------------------

    def restore(self, reserve: Callable[[Ticket], None]) -> int:
        """Takes over what an earlier daemon left; `reserve` gives each pending ticket its lease and place again."""
        self._store.forget_ended(self._wall() - KEPT_S)
        for ticket in self._store.open_tickets():
            left = ticket.expires - self._wall()
            if ticket.state == CONSUMED:
                self._index(ticket)
                self._arm(ticket, min(max(0.0, left + REPLAY_S), REPLAY_S))
                continue
            self._index(ticket)
            reserve(ticket)
            # A calendar that was set back must not lengthen anybody's time.
            self._arm(ticket, min(max(0.0, left), ticket.expires - ticket.created))
        return len(self._open)

    # --- the call's side ----------------------------------------------------------------------------------------

    def find(self, hold: Hold) -> Ticket | None:
        """The ticket that an identical call attaches to: one of the same digest that nobody waits for."""
        for ticket in tuple(self._by_digest.get(digest(hold.call, hold.ask), ())):
            if not ticket.attended and not self._lapsed(ticket):
                return ticket
        return None

    def open(self, hold: Hold) -> Ticket | Deny:
        """A new ticket, on disk, or a refusal where the agent has too many. The caller attaches at once."""
        call = hold.call
        agent = call.principal.agent
        if sum(1 for t in self._open.values() if t.agent == agent and t.state in OPEN) >= self.max_pending:
            text = f"{self.max_pending} calls of this agent wait for a person already; not executed; try again later"
            return Deny(Reason("queue", text, retryable=True, code="too_many_pending"))
        now = self._wall()
        ticket = Ticket(
            id=new_id(self._open),
            call_id=call.id,
            digest=digest(call, hold.ask),
            agent=agent,
            backend=call.backend,
            method=call.method,
            name=call.name or "",
            arguments=msgspec.json.encode(call.content).decode(),
            rule=hold.ask.rule,
            created=now,
            expires=now + hold.ask.timeout_s,
            claims=hold.claims,
        )
        try:
            self._store.put(ticket)
        except sqlite3.Error as error:
            _log.error("a ticket could not be written: %s", error)
            return Deny(unrecorded())
        self._index(ticket)
        self._arm(ticket, hold.ask.timeout_s)
        return ticket

    def attach(self, ticket: Ticket, call: Call) -> Waiter[Decision]:
        """Waits for the ticket's decision, which may have been taken already."""
        waiter: Waiter[Decision] = Waiter()
        ticket.waiter = waiter
        if ticket.state == PENDING:
            self._on_event("opened" if ticket.call_id == call.id else "attached", ticket)
        else:
            self._on_event("attached", ticket)
            waiter.set(self._decision(ticket))
        return waiter

    def leave(self, ticket: Ticket) -> None:
        """The client stopped waiting. The ticket stays, with its lease and its place."""
        ticket.waiter = None
        if ticket.id in self._open:
            self._on_event("waiter_gone", ticket)

    def consume(self, ticket: Ticket) -> bool:
        """The ticket's one use, on disk before the call leaves; False where it is not (or no more) approved."""
        if ticket.state != APPROVED:
            return False
        ticket.state = CONSUMED
        try:
            self._store.put(ticket)
        except sqlite3.Error as error:
            ticket.state = APPROVED
            _log.error("a ticket could not be written: %s", error)
            return False
        self._disarm(ticket)
        self._on_event("consumed", ticket)
        return True

    def finish(self, ticket: Ticket, undelivered: bytes | None) -> None:
        """The call ran. An answer that nobody received is kept for an identical call, once, for ten minutes."""
        ticket.waiter = None
        if undelivered is None or ticket.state != CONSUMED:
            if ticket.state in OPEN:  # a fault ended the call: the next daemon must not find it waiting
                ticket.state = EXPIRED
                self._put_quietly(ticket)
            self._forget(ticket)
            return
        ticket.outcome = undelivered
        ticket.expires = self._wall()
        self._put_quietly(ticket)
        self._arm(ticket, REPLAY_S)

    def delivered(self, ticket: Ticket) -> None:
        """The kept answer was received."""
        ticket.outcome = None
        self._put_quietly(ticket)
        self._forget(ticket)

    # --- the person's side --------------------------------------------------------------------------------------

    def pending(self) -> list[Ticket]:
        """Tickets that may still let a call run, oldest first."""
        return [ticket for ticket in self._open.values() if ticket.state in OPEN]

    def get(self, id: str) -> Ticket:
        """The ticket with this id or call id, open or lately ended. Raises `NoSuchTicket`."""
        ticket = self._open.get(id.upper()) or self._ended.get(id.upper())
        if ticket is None:
            for ticket in [*self._open.values(), *self._ended.values()]:
                if ticket.call_id == id.lower():
                    return ticket
            raise NoSuchTicket(id)
        return ticket

    def decide(self, id: str, approve: bool, by: str, note: str = "") -> Ticket:
        """One decision each.

        Raises `Decided` for a second one, `NoSuchTicket`, and `sqlite3.Error` where it cannot be kept.
        """
        ticket = self.get(id)
        if self._lapsed(ticket) or ticket.state != PENDING:
            raise Decided(ticket)
        was = (ticket.state, ticket.by, ticket.note)
        ticket.state, ticket.by, ticket.note = (APPROVED if approve else REJECTED), by, note
        try:
            self._store.put(ticket)
        except sqlite3.Error:
            ticket.state, ticket.by, ticket.note = was
            raise
        self._on_event(ticket.state, ticket)
        self._tell(ticket)
        if not approve:
            self._forget(ticket)
        return ticket

    # --- inside -------------------------------------------------------------------------------------------------

    def _decision(self, ticket: Ticket) -> Decision:
        return Decision(ticket.state, ticket.id, ticket.by, ticket.note)

    def _tell(self, ticket: Ticket) -> None:
        waiter = ticket.waiter
        if waiter is not None:
            waiter.set(self._decision(ticket))

    def _lapsed(self, ticket: Ticket) -> bool:
        """Whether its time is over. Then it ends now: timers stand still while a machine sleeps, calendars do not."""
        if ticket.state in OPEN:
            over = ticket.expires <= self._wall()
        else:
            over = ticket.outcome is not None and ticket.expires + REPLAY_S <= self._wall()
        if over:
            self._expire(ticket)
        return over

    def _expire(self, ticket: Ticket) -> None:
        if ticket.state == CONSUMED:
            self.delivered(ticket)
            return
        if ticket.state not in OPEN:
            return
        ticket.state = EXPIRED
        self._put_quietly(ticket)
        self._on_event("expired", ticket)
        self._tell(ticket)
        self._forget(ticket)

    def _put_quietly(self, ticket: Ticket) -> None:
        # Where this fails the ticket on disk is only older than the truth: it can still expire, never run again.
        try:
            self._store.put(ticket)
        except sqlite3.Error as error:
            _log.error("a ticket could not be written: %s", error)

    def _index(self, ticket: Ticket) -> None:
        if ticket.id in self._open:
            ticket.id = new_id(self._open)
        self._open[ticket.id] = ticket
        self._by_digest.setdefault(ticket.digest, []).append(ticket)

    def _arm(self, ticket: Ticket, seconds: float) -> None:
        self._disarm(ticket)
        self._timers[ticket.id] = self._call_later(seconds, lambda: self._expire(ticket))

    def _disarm(self, ticket: Ticket) -> None:
        timer = self._timers.pop(ticket.id, None)
        if timer is not None:
            timer.cancel()

    def _forget(self, ticket: Ticket) -> None:
        self._disarm(ticket)
        if self._open.pop(ticket.id, None) is None:
            return
        alike = self._by_digest.get(ticket.digest, [])
        if ticket in alike:
            alike.remove(ticket)
        if not alike:
            self._by_digest.pop(ticket.digest, None)
        self._ended[ticket.id] = ticket
        while len(self._ended) > 256:  # so that a second decision hears who took the first
            del self._ended[next(iter(self._ended))]
        if ticket.state != CONSUMED:
            # A call that waited settles these itself; what a ticket kept for an absent one ends here.
            self.free(ticket)

    @staticmethod
    def free(ticket: Ticket) -> Any:
        """Gives back the lease and the place that the ticket holds."""
        lease, ticket.lease = ticket.lease, None
        turn, ticket.turn = ticket.turn, None
        if lease is not None:
            lease.release()
        if turn is not None:
            turn.leave()
