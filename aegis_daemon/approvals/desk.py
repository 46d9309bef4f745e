"""The desk: opens tickets, lets identical calls join, takes one decision each, and forgets none of it.

Nothing ever runs by itself: an approved ticket whose clients have gone waits for an identical call of the same agent,
and lapses at its expiry (product contract §6, hard rule 5). All who wait for one ticket are one call: the newest of
them runs it, and the others hear how it ended.
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
    NAMED,
    OPEN,
    PENDING,
    REJECTED,
    Ticket,
    Vote,
    digest,
    new_id,
    params_of,
)
from aegis_daemon.core.call import Call
from aegis_daemon.core.verdict import Decision, Deny, Ended, Hold, Reason, unrecorded
from aegis_daemon.loop.strand import Waiter

_log = logging.getLogger("aegis.approvals")
REPLAY_S = 600.0
"""How long an answer that nobody received is kept for an identical call."""
KEPT_S = 86400.0
"""How long an ended ticket, with its arguments, stays in the store; what remains is the audit log's."""
KEPT_MAX = 256
"""Ended tickets of one agent that stay there."""
TIDY_AFTER = 32
"""Ends of an agent's tickets after which those beyond `KEPT_MAX` are deleted."""
TIDY_S = 3600.0
"""How often those that are older than `KEPT_S` are."""
REMEMBERED = 256
"""Ended tickets that are still known by their ids, so that a second decision hears who took the first."""


class NoSuchTicket(Exception):
    """No open ticket has this id."""


class Decided(Exception):
    """The ticket was decided before; `ticket` says how and by whom."""

    def __init__(self, ticket: Ticket, text: str = "") -> None:
        if ticket.state == EXPIRED:
            how = "expired"
        elif ticket.state == CONSUMED:
            how = f"was approved by {ticket.by} and has run"
        else:
            how = f"was {ticket.state} by {ticket.by} already"
        super().__init__(text or f"`{ticket.id}` {how}")
        self.ticket = ticket


class Voted(Decided):
    """The same person agreed before, and another one has to."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__(ticket, f"you have agreed to `{ticket.id}` already; somebody else must agree too")


class Nameless(Exception):
    """Several people must agree to the ticket, and nobody can tell who says yes."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__(f"{ticket.people} people must agree to `{ticket.id}`, and nobody can tell who says yes here")
        self.ticket = ticket


class Timer(Protocol):
    """What `call_later` gives back."""

    def cancel(self) -> None:
        """Never fires."""
        ...


class Seat(Waiter[Decision]):
    """One call that waits for a ticket."""

    __slots__ = ("timer",)

    def __init__(self) -> None:
        super().__init__()
        self.timer: Timer | None = None

    def told(self, decision: Decision) -> None:
        """It has waited long enough."""
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
        self.set(decision)


class Desk:
    """All tickets.

    `on_event(event, ticket)` hears opened, attached, waiter_gone (nobody waits any more), voted (a yes where two are
    needed), approved, rejected, expired and consumed.
    """

    def __init__(
        self,
        store: TicketStore,
        *,
        wall: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
        on_event: Callable[[str, Ticket], None],
        max_pending: int = 64,
        unlike: Callable[[Ticket], str] = lambda ticket: "",
    ) -> None:
        """`unlike` says what is different about a new ticket's server, where another one was approved before."""
        self._store = store
        self._unlike = unlike
        self._wall = wall
        self._call_later = call_later
        self._on_event = on_event
        self.max_pending = max_pending
        self._open: dict[str, Ticket] = {}
        self._by_digest: dict[str, list[Ticket]] = {}
        self._by_call: dict[str, Ticket] = {}
        self._by_task: dict[str, Ticket] = {}
        self._counts: dict[str, int] = {}
        """by agent: how many may still let a call run"""
        self._timers: dict[str, Timer] = {}
        self._ended: dict[str, Ticket] = {}
        self._appointing: set[str] = set()
        self._untidy: dict[str, int] = {}
        """by agent: how many have ended since the store was tidied"""
        self._tidied = wall()

    # --- what the daemon's start does ---------------------------------------------------------------------------

    def restore(self, reserve: Callable[[Ticket], None]) -> int:
        """Takes over what an earlier daemon left; `reserve` gives each pending ticket its lease and place again."""
        self._store.forget_ended(self._wall() - KEPT_S)
        for ticket in self._store.open_tickets():
            left = ticket.expires - self._wall()
            self._index(ticket)
            if ticket.state not in OPEN:
                self._arm(ticket, min(max(0.0, left + REPLAY_S), REPLAY_S))
                continue
            reserve(ticket)
            # A calendar that was set back must not lengthen anybody's time.
            self._arm(ticket, min(max(0.0, left), ticket.expires - ticket.created))
        return len(self._open)

    # --- the call's side ----------------------------------------------------------------------------------------

    def find(self, hold: Hold) -> Ticket | None:
        """The ticket that an identical call attaches to: one of the same digest, whether it waits, runs or has run."""
        for ticket in tuple(self._by_digest.get(digest(hold.call, hold.ask), ())):
            if not self._lapsed(ticket):
                return ticket
        return None

    def open(self, hold: Hold, client: str = "") -> Ticket | Deny:
        """A new ticket, on disk, or a refusal where the agent has too many. The caller attaches at once."""
        call = hold.call
        agent = call.principal.agent
        if self._counts.get(agent, 0) >= self.max_pending:
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
            people=hold.ask.people,
            client=client,
            pin=hold.ask.pin,
            server=call.server,
            command="" if call.handed is None else call.handed.command,
            cwd="" if call.handed is None else call.handed.cwd,
            parts="" if call.handed is None else call.handed.parts,
        )
        ticket.unlike = self._unlike(ticket)
        try:
            self._store.put(ticket)
        except sqlite3.Error as error:
            _log.error("a ticket could not be written: %s", error)
            return Deny(unrecorded())
        self._index(ticket)
        self._arm(ticket, hold.ask.timeout_s)
        return ticket

    def attach(self, ticket: Ticket, call: Call, patience: float | None = None) -> Seat:
        """A seat at the ticket, whose decision may have been taken already.

        After `patience` seconds without one it hears that the matter is pending, and is left.
        """
        seat = Seat()
        ticket.seats.append(seat)
        self._say("opened" if ticket.call_id == call.id else "attached", ticket)
        if ticket.state == REJECTED:  # while nobody waited: this call hears it, and the next one asks anew
            self._tell(ticket)
            self.delivered(ticket)
            return seat
        self._appoint(ticket)
        if patience is None or seat.done:
            return seat
        if patience <= 0:
            self._impatient(ticket, seat)
        else:
            seat.timer = self._call_later(patience, lambda: self._impatient(ticket, seat))
        return seat

    def leave(self, ticket: Ticket, seat: Seat) -> None:
        """Whoever has the seat stopped waiting, or does not run the call after all.

        The ticket stays, with its lease and its place; if it is approved, the next who waits runs it.
        """
        if seat not in ticket.seats:
            return
        ticket.seats.remove(seat)
        if seat.timer is not None:
            seat.timer.cancel()
            seat.timer = None
        if ticket.runner is seat:
            ticket.runner = None
        if not ticket.seats and ticket.id in self._open:
            self._say("waiter_gone", ticket)
            if ticket.idle and ticket.id not in self._timers:
                left = ticket.expires - self._wall()
                self._arm(ticket, min(max(0.0, left), ticket.expires - ticket.created))
        self._appoint(ticket)

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody is asked after all: what was to be recorded first could not be."""
        if ticket.state in OPEN:
            self._close(ticket, EXPIRED)
            self._put_quietly(ticket)
        self._forget(ticket)

    def consume(self, ticket: Ticket) -> bool:
        """The ticket's one use, on disk before the call leaves; False where it is not (or no more) approved."""
        if ticket.state != APPROVED:
            return False
        try:
            taken = self._store.take(ticket)
        except sqlite3.Error as error:
            _log.error("a ticket could not be written: %s", error)
            return False
        if taken:
            self._close(ticket, CONSUMED)
            self._disarm(ticket)
            self._say("consumed", ticket)
        return taken

    def unused(self, ticket: Ticket) -> bool:
        """The call did not leave: it is approved again, on disk; False where that cannot be kept."""
        if ticket.state != CONSUMED or ticket.id not in self._open:
            return False
        ticket.state = APPROVED
        try:
            self._store.put(ticket)
        except sqlite3.Error as error:
            ticket.state = CONSUMED
            _log.error("a ticket could not be written: %s", error)
            return False
        self._count(ticket.agent, 1)
        return True

    def finish(self, ticket: Ticket, ended: Ended, delivered: bool) -> None:
        """The call is over, and those who waited with it hear how.

        An answer that nobody received is kept for an identical call, once, for ten minutes.
        """
        others = [seat for seat in ticket.seats if seat is not ticket.runner]
        ticket.seats, ticket.runner = [], None
        answer = ended.answer
        if ticket.state in OPEN:  # a fault or today's rules ended it: the next daemon must not find it waiting
            self._close(ticket, EXPIRED)
            self._put_quietly(ticket)
        kept = ticket.state == CONSUMED and answer is not None and answer.ok and not delivered
        if kept:
            assert answer is not None
            ticket.outcome = answer.body
        else:
            self._forget(ticket)
        decision = Decision("ended", ticket.id, ticket.by, ticket.note, ended)
        for seat in others:  # whoever of them receives the answer says so
            seat.told(decision)
        if kept and ticket.outcome is not None:
            ticket.expires = self._wall()
            self._put_quietly(ticket)
            self._arm(ticket, REPLAY_S)

    def delivered(self, ticket: Ticket) -> None:
        """The kept answer, or the no, was received."""
        if ticket.outcome is not None:
            ticket.outcome = None
            self._put_quietly(ticket)
            self._forget(ticket)

    # --- as a task ----------------------------------------------------------------------------------------------

    def polled(self, ticket: Ticket, task: str) -> bool:
        """From now on the ticket is polled under this id, "" for none; False where that cannot be kept."""
        was, ticket.task = ticket.task, task
        try:
            self._store.put(ticket)
        except sqlite3.Error as error:
            ticket.task = was
            _log.error("a ticket could not be written: %s", error)
            return False
        self._by_task.pop(was, None)
        if task and ticket.id in self._open:
            self._by_task[task] = ticket
        return True

    def by_task(self, task: str) -> Ticket | None:
        """The ticket that is polled under this id, open or ended; None where there is none, or nobody can tell."""
        found = self._by_task.get(task)
        if found is None:
            try:
                found = self._store.by_task(task)
            except sqlite3.Error as error:
                _log.error("a ticket could not be read: %s", error)
                return None
            if found is not None:  # the one in memory knows more
                found = self._by_call.get(found.call_id, found)
        elif self._lapsed(found):
            return found
        return found

    def params(self, ticket: Ticket, tenant: str) -> dict[str, Any] | None:
        """The parameters of the ticket's call, without `_meta`; None where nothing gives the ticket's digest."""
        return params_of(ticket, tenant)

    # --- the person's side --------------------------------------------------------------------------------------

    def pending(self) -> list[Ticket]:
        """Tickets that may still let a call run, oldest first."""
        return [ticket for ticket in self._open.values() if ticket.state in OPEN]

    def get(self, id: str) -> Ticket:
        """The ticket with this id or call id, open or lately ended. Raises `NoSuchTicket`."""
        ticket = self._open.get(id.upper()) or self._ended.get(id.upper()) or self._by_call.get(id.lower())
        if ticket is None:
            raise NoSuchTicket(id)
        return ticket

    def ended(self, id: str) -> list[Ticket]:
        """Tickets that have had this id, as they are on disk, the newest first; none where nobody can tell."""
        try:
            return self._store.by_id(id)
        except sqlite3.Error as error:
            _log.error("ended tickets could not be read: %s", error)
            return []

    def decide(self, id: str, approve: bool, by: str, note: str = "", *, via: str = "", voter: str = "") -> Ticket:
        """One decision each; where two people must agree, the first yes leaves the ticket `pending`, and a no rejects.

        `via` is the way it came and `voter` who came that way: by default, whoever says to be `by`. Where two must
        agree, only who has a name (`user:…`) can be told from another.

        Raises `Decided` for a second one (`Voted` for the same person's second yes), `Nameless`, `NoSuchTicket`, and
        `sqlite3.Error` where it cannot be kept.
        """
        ticket = self.get(id)
        if self._lapsed(ticket) or ticket.state != PENDING:
            raise Decided(ticket)
        voter = voter or f"{via}:{by}"
        votes = ticket.votes
        if approve:
            if ticket.people > 1 and not (voter.startswith(NAMED) and voter != NAMED):
                raise Nameless(ticket)
            if any(vote.voter == voter for vote in votes):
                raise Voted(ticket)
            votes = (*votes, Vote(voter, by, via, note, self._wall()))
        final = not approve or len(votes) >= ticket.people
        names = " and ".join(vote.by for vote in votes) if approve else by
        was = (ticket.state, ticket.by, ticket.note, ticket.via, ticket.votes, ticket.expires)
        unheard = not approve and not ticket.seats
        ticket.votes = votes
        if final:
            ticket.state, ticket.by, ticket.note, ticket.via = (APPROVED if approve else REJECTED), names, note, via
        if unheard:  # an identical call hears the no, instead of asking the person again
            ticket.outcome, ticket.expires = b"", self._wall()
        try:
            self._store.put(ticket)
        except sqlite3.Error:
            ticket.state, ticket.by, ticket.note, ticket.via, ticket.votes, ticket.expires = was
            ticket.outcome = None
            raise
        if not final:
            self._say("voted", ticket)
            return ticket
        self._say(ticket.state, ticket)
        if approve:
            self._appoint(ticket)
        else:
            self._count(ticket.agent, -1)
            self._tell(ticket)
            if unheard:
                self.free(ticket)
                self._arm(ticket, REPLAY_S)
            else:
                self._forget(ticket)
        return ticket

    # --- inside -------------------------------------------------------------------------------------------------

    def _say(self, event: str, ticket: Ticket) -> None:
        try:
            self._on_event(event, ticket)
        except Exception:  # who only listens must not keep a decision from being told
            _log.exception("the news of `%s` (%s) went wrong", ticket.id, event)

    def _decision(self, ticket: Ticket, outcome: str = "") -> Decision:
        return Decision(outcome or ticket.state, ticket.id, ticket.by, ticket.note)

    def _appoint(self, ticket: Ticket) -> None:
        """The newest who waits runs what is approved. One that steps back at once lets the loop below go on."""
        if ticket.id in self._appointing:
            return
        self._appointing.add(ticket.id)
        try:
            while ticket.state == APPROVED and ticket.runner is None and ticket.seats:
                seat = ticket.runner = ticket.seats[-1]
                self._disarm(ticket)
                seat.told(self._decision(ticket))
        finally:
            self._appointing.discard(ticket.id)

    def _tell(self, ticket: Ticket) -> None:
        seats, ticket.seats = ticket.seats, []
        for seat in seats:
            seat.told(self._decision(ticket))

    def _impatient(self, ticket: Ticket, seat: Seat) -> None:
        """The client waits no longer than this; the ticket stays."""
        if seat.done or seat not in ticket.seats or self._lapsed(ticket):
            return
        ticket.seats.remove(seat)
        if not ticket.seats:
            self._say("waiter_gone", ticket)
        seat.told(self._decision(ticket, "pending"))

    def _lapsed(self, ticket: Ticket) -> bool:
        """Whether its time is over. Then it ends now: timers stand still while a machine sleeps, calendars do not."""
        if ticket.state in OPEN:
            over = ticket.runner is None and ticket.expires <= self._wall()
        else:
            over = ticket.outcome is not None and ticket.expires + REPLAY_S <= self._wall()
        if over:
            self._expire(ticket)
        return over

    def _expire(self, ticket: Ticket) -> None:
        if ticket.state not in OPEN:
            self.delivered(ticket)
            return
        if not ticket.idle:
            return
        self._close(ticket, EXPIRED)
        self._put_quietly(ticket)
        self._say("expired", ticket)
        self._tell(ticket)
        self._forget(ticket)

    def _put_quietly(self, ticket: Ticket) -> None:
        # Where this fails the ticket on disk is only older than the truth: it can still expire, never run again.
        try:
            self._store.put(ticket)
        except sqlite3.Error as error:
            _log.error("a ticket could not be written: %s", error)

    def _close(self, ticket: Ticket, state: str) -> None:
        """It was open, and is no more."""
        ticket.state = state
        self._count(ticket.agent, -1)

    def _count(self, agent: str, more: int) -> None:
        count = self._counts.get(agent, 0) + more
        if count > 0:
            self._counts[agent] = count
        else:
            self._counts.pop(agent, None)

    def _index(self, ticket: Ticket) -> None:
        if ticket.id in self._open:
            ticket.id = new_id(self._open)
        self._open[ticket.id] = ticket
        self._by_call[ticket.call_id] = ticket
        self._by_digest.setdefault(ticket.digest, []).append(ticket)
        if ticket.task:
            self._by_task[ticket.task] = ticket
        if ticket.state in OPEN:
            self._count(ticket.agent, 1)

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
        self._by_task.pop(ticket.task, None)
        alike = self._by_digest.get(ticket.digest, [])
        if ticket in alike:
            alike.remove(ticket)
        if not alike:
            self._by_digest.pop(ticket.digest, None)
        replaced = self._ended.pop(ticket.id, None)
        if replaced is not None:
            self._by_call.pop(replaced.call_id, None)
        self._ended[ticket.id] = ticket
        while len(self._ended) > REMEMBERED:
            oldest = self._ended.pop(next(iter(self._ended)))
            self._by_call.pop(oldest.call_id, None)
        if ticket.state != CONSUMED:
            # A call that runs settles these itself; what a ticket kept for an absent one ends here.
            self.free(ticket)
        self._tidy(ticket.agent)

    def _tidy(self, agent: str) -> None:
        """One more of the agent's tickets has ended: so that the store stays small while the daemon lives."""
        ends = self._untidy[agent] = self._untidy.get(agent, 0) + 1
        try:
            if ends >= TIDY_AFTER:
                self._untidy[agent] = 0
                self._store.keep_ended(agent, KEPT_MAX)
            if not 0 <= self._wall() - self._tidied < TIDY_S:
                self._tidied = self._wall()
                self._store.forget_ended(self._wall() - KEPT_S)
        except sqlite3.Error as error:
            _log.error("ended tickets could not be deleted: %s", error)

    @staticmethod
    def free(ticket: Ticket) -> Any:
        """Gives back the lease and the place that the ticket holds."""
        lease, ticket.lease = ticket.lease, None
        turn, ticket.turn = ticket.turn, None
        if lease is not None:
            lease.release()
        if turn is not None:
            turn.leave()
