from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from making import Clock, tool
from making import call as made

from aegis_daemon.approvals.desk import (
    KEPT_MAX,
    KEPT_S,
    REPLAY_S,
    TIDY_AFTER,
    Decided,
    Desk,
    Nameless,
    NoSuchTicket,
    Seat,
    Voted,
)
from aegis_daemon.approvals.store import TicketStore
from aegis_daemon.approvals.ticket import APPROVED, CONSUMED, CROCKFORD, EXPIRED, PENDING, REJECTED, Ticket
from aegis_daemon.core.call import Call
from aegis_daemon.core.verdict import Ask, Claim, Decision, Deny, Ended, Hold, Reason
from aegis_daemon.loop.strand import Strand, Waiter
from aegis_daemon.wire.jsonrpc import Answer

ASK = Ask("agents.amy.backends.files.approval_required", 600.0)
CLAIM = Claim("agent", "amy", "files", "post", 60.0, 1)


def answer(body: bytes, *, ok: bool = True) -> Answer:
    return Answer(1, b"", b"", ok, body)


RAN = Ended(answer(b'{"content":[]}'))
"""The call ran, and this came back."""


class Kept:
    """A lease or a turn that notes how it ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def release(self) -> None:
        self.ended.append("released")

    def leave(self) -> None:
        self.ended.append("left")


class Room:
    """A desk with its store, its clock and its calendar, which may be restarted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock(1_000_000.0)
        self.slept = 0.0  # how far the calendar is ahead of the timers
        self.events: list[tuple[str, str]] = []
        self.open()

    def open(self) -> None:
        self.store = TicketStore(self.path, full=False)
        self.desk = Desk(
            self.store,
            wall=lambda: self.clock.at + self.slept,
            call_later=self.clock.call_later,
            on_event=lambda event, ticket: self.events.append((event, ticket.id)),
        )

    def restarts(self) -> list[Ticket]:
        self.store.close()
        self.clock._timers.clear()
        self.open()
        reserved: list[Ticket] = []
        self.desk.restore(reserved.append)
        return reserved

    def asks(self, call: Call | None = None, ask: Ask = ASK) -> tuple[Ticket, Waiter[Decision]]:
        call = call or tool("post", {"text": "hi"})
        ticket = self.desk.open(Hold(call, ask, (CLAIM,)))
        assert isinstance(ticket, Ticket)
        ticket.lease, ticket.turn = Kept(), Kept()
        return ticket, self.desk.attach(ticket, call)

    def leaves(self, ticket: Ticket) -> None:
        """Everybody who waits for it."""
        for seat in list(ticket.seats):
            self.desk.leave(ticket, seat)

    def on_disk(self, ticket: Ticket) -> Any:
        with sqlite3.connect(self.path) as db:
            found = db.execute(
                "SELECT state, by, note, outcome FROM tickets WHERE call_id = ?", (ticket.call_id,)
            ).fetchone()
        db.close()
        return found


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path / "state.db")
    yield made
    made.store.close()


def again(call: Call | None = None, ask: Ask = ASK) -> Hold:
    """The same call, sent once more under another id."""
    return Hold(call or tool("post", {"text": "hi"}, id=99), ask)


def told(waiter: Waiter[Decision]) -> Decision:
    heard: list[Decision] = []

    async def listen() -> None:
        heard.append(await waiter)

    assert waiter.done
    Strand(listen()).start()
    return heard[0]


# --- one decision, one use --------------------------------------------------------------------------------------------


def test_an_approved_call_may_run_once(room: Room) -> None:
    ticket, waiter = room.asks()
    assert not waiter.done
    assert room.desk.decide(ticket.id, True, "ann", "fine") is ticket
    assert told(waiter) == Decision(APPROVED, ticket.id, "ann", "fine")
    assert room.desk.consume(ticket)
    assert room.on_disk(ticket)[0] == CONSUMED, "on disk before it leaves"
    assert not room.desk.consume(ticket)
    room.desk.finish(ticket, RAN, True)
    assert room.desk.find(again()) is None
    assert [event for event, _ in room.events] == ["opened", "approved", "consumed"]


def test_a_rejected_call_never_runs_and_gives_everything_back(room: Room) -> None:
    ticket, waiter = room.asks()
    lease, turn = ticket.lease, ticket.turn
    room.desk.decide(ticket.id, False, "ann", "no")
    assert told(waiter) == Decision(REJECTED, ticket.id, "ann", "no")
    assert not room.desk.consume(ticket)
    assert (lease.ended, turn.ended) == (["released"], ["left"])
    assert room.desk.find(again()) is None
    assert room.desk.pending() == []
    assert room.on_disk(ticket)[:3] == (REJECTED, "ann", "no")
    assert [event for event, _ in room.events] == ["opened", "rejected"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_the_second_decision_hears_of_the_first(room: Room, first: bool, second: bool, used: bool) -> None:
    ticket, waiter = room.asks()
    room.desk.decide(ticket.id, first, "ann")
    if used and first:
        room.desk.consume(ticket)
        room.desk.finish(ticket, RAN, True)
    with pytest.raises(Decided) as caught:
        room.desk.decide(ticket.id, second, "bea")
    assert caught.value.ticket is ticket
    how = "was rejected by ann" if not first else "was approved by ann and has run" if used else "was approved by ann"
    assert str(caught.value).startswith(f"`{ticket.id}` {how}")
    assert ("has run" in str(caught.value)) is (first and used)
    assert told(waiter).outcome == (APPROVED if first else REJECTED)
    assert ticket.by == "ann"


def test_nobody_decides_for_nobody(room: Room) -> None:
    for id in ("", "ZZZZ", "0" * 32, "'; DROP TABLE tickets"):
        with pytest.raises(NoSuchTicket):
            room.desk.decide(id, True, "ann")


def test_a_ticket_is_found_by_its_id_and_by_its_call_in_any_case(room: Room) -> None:
    ticket, _ = room.asks()
    for id in (ticket.id, ticket.id.lower(), ticket.call_id, ticket.call_id.upper()):
        assert room.desk.get(id) is ticket


def test_the_decision_is_on_disk_before_the_call_hears_of_it(room: Room) -> None:
    ticket, waiter = room.asks()
    seen = []
    original = waiter.set

    def hear(decision: Decision) -> None:
        seen.append(room.on_disk(ticket)[0])
        original(decision)

    class Ear(Seat):
        def set(self, value: Decision) -> None:
            hear(value)

    ticket.seats = [Ear()]
    room.desk.decide(ticket.id, True, "ann")
    assert seen == [APPROVED]


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("approved", [True, False])
def test_a_ticket_lapses_when_its_time_is_over(room: Room, approved: bool) -> None:
    ticket, waiter = room.asks()
    lease, turn = ticket.lease, ticket.turn
    if approved:
        room.leaves(ticket)
        room.desk.decide(ticket.id, True, "ann")
    room.clock.passes(599.9)
    assert room.desk.pending() == [ticket]
    room.clock.passes(0.1)
    assert room.desk.pending() == []
    assert ticket.state == EXPIRED
    assert not room.desk.consume(ticket)
    assert (lease.ended, turn.ended) == (["released"], ["left"])
    assert room.on_disk(ticket)[0] == EXPIRED
    assert room.desk.find(again()) is None
    if not approved:
        assert told(waiter).outcome == EXPIRED
    with pytest.raises(Decided, match="expired"):
        room.desk.decide(ticket.id, True, "ann")


@pytest.mark.parametrize("approved", [True, False])
def test_a_machine_that_slept_does_not_lengthen_anybodys_time(room: Room, approved: bool) -> None:
    ticket, _ = room.asks()
    lease = ticket.lease
    room.leaves(ticket)
    if approved:
        room.desk.decide(ticket.id, True, "ann")
    room.slept = 8 * 3600.0
    if approved:
        assert room.desk.find(again()) is None
    else:
        with pytest.raises(Decided, match="expired"):
            room.desk.decide(ticket.id, True, "ann")
    assert lease.ended == ["released"]
    assert room.desk.pending() == []
    assert ("expired", ticket.id) in room.events
    room.clock.passes(600.0)
    assert room.events.count(("expired", ticket.id)) == 1


def test_a_calendar_that_was_set_back_does_not_lengthen_anybodys_time(room: Room) -> None:
    ticket, _ = room.asks()
    room.slept = -86400.0
    room.clock.passes(600.0)
    assert ticket.state == EXPIRED
    other, _ = room.asks()
    room.slept = -3 * 86400.0
    room.restarts()
    room.clock.passes(600.0)
    assert room.desk.pending() == []
    assert room.on_disk(other)[0] == EXPIRED


def test_a_used_ticket_does_not_lapse_while_its_call_runs(room: Room) -> None:
    ticket, _ = room.asks()
    room.desk.decide(ticket.id, True, "ann")
    lease = ticket.lease
    assert room.desk.consume(ticket)
    room.clock.passes(86400.0)
    room.slept = 86400.0
    with pytest.raises(Decided):
        room.desk.decide(ticket.id, False, "bea")
    room.desk.finish(ticket, Ended(answer(b'{"late":1}')), False)
    assert room.desk.find(again()) is ticket
    assert lease.ended == [], "its call settles them itself"


# --- clients that go and come back ------------------------------------------------------------------------------------


def test_a_ticket_stays_when_its_client_goes_and_an_identical_call_attaches(room: Room) -> None:
    ticket, old = room.asks()
    lease, turn = ticket.lease, ticket.turn
    room.leaves(ticket)
    assert room.desk.pending() == [ticket]
    assert lease.ended == turn.ended == []
    hold = again()
    assert room.desk.find(hold) is ticket
    waiter = room.desk.attach(ticket, hold.call)
    room.desk.decide(ticket.id, True, "ann")
    assert told(waiter).outcome == APPROVED
    assert not old.done
    assert room.desk.consume(ticket)
    assert [event for event, _ in room.events] == ["opened", "waiter_gone", "attached", "approved", "consumed"]


def test_what_was_approved_without_anybody_waiting_runs_on_the_retry_once(room: Room) -> None:
    ticket, _ = room.asks()
    room.leaves(ticket)
    room.desk.decide(ticket.id, True, "ann")
    hold = again()
    assert room.desk.find(hold) is ticket
    assert told(room.desk.attach(ticket, hold.call)).outcome == APPROVED
    assert room.desk.consume(ticket)
    assert room.desk.find(again()) is ticket, "who asks while it runs waits for its outcome"
    assert not room.desk.consume(ticket)
    room.desk.finish(ticket, RAN, True)
    assert room.desk.find(again()) is None


@pytest.mark.parametrize(
    "other",
    [
        tool("post", {"text": "ho"}),
        tool("post", {"text": "hi", "to": "all"}),
        tool("post", {}),
        tool("post", {"text": ["hi"]}),
        tool("Post", {"text": "hi"}),
        tool("post", {"text": "hi"}, agent="bob"),
        tool("post", {"text": "hi"}, backend="mail"),
        tool("post", {"text": "hi"}, tenant="other"),
    ],
)
def test_any_other_call_asks_anew(room: Room, other: Call) -> None:
    ticket, _ = room.asks()
    room.leaves(ticket)
    room.desk.decide(ticket.id, True, "ann")
    assert room.desk.find(again(other)) is None
    assert room.desk.find(again(ask=Ask("another rule", 600.0))) is None
    assert room.desk.find(again()) is ticket


# --- answers that nobody received -------------------------------------------------------------------------------------


def undelivered(room: Room) -> Ticket:
    ticket, _ = room.asks()
    room.desk.decide(ticket.id, True, "ann")
    ticket.lease = ticket.turn = None  # the call took them
    assert room.desk.consume(ticket)
    room.desk.finish(ticket, RAN, False)
    return ticket


@pytest.mark.parametrize("restarted", [False, True])
def test_an_undelivered_answer_is_kept_for_an_identical_call_once(room: Room, restarted: bool) -> None:
    ticket = undelivered(room)
    if restarted:
        assert room.restarts() == [], "what has run reserves nothing"
    assert room.desk.pending() == []
    found = room.desk.find(again())
    assert found is not None
    assert (found.call_id, found.state, found.outcome) == (ticket.call_id, CONSUMED, b'{"content":[]}')
    room.desk.delivered(found)
    assert room.desk.find(again()) is None
    assert room.on_disk(ticket) == (CONSUMED, "ann", "", None)
    room.restarts()
    assert room.desk.find(again()) is None


@pytest.mark.parametrize("how", ["waits", "sleeps", "restarts before", "restarts after"])
def test_an_undelivered_answer_is_kept_for_ten_minutes(room: Room, how: str) -> None:
    ticket = undelivered(room)
    if how == "restarts before":
        room.clock.passes(REPLAY_S - 1)
        room.restarts()
        room.clock.passes(0.9)
        assert room.desk.find(again()) is not None
        room.clock.passes(0.1)
    elif how == "restarts after":
        room.clock.passes(0)
        room.slept = REPLAY_S
        room.restarts()
        assert room.desk.find(again()) is None
        room.clock.passes(0)
    elif how == "sleeps":
        room.slept = REPLAY_S
    else:
        room.clock.passes(REPLAY_S)
    assert room.desk.find(again()) is None
    assert room.on_disk(ticket)[3] is None, "its body is gone from the disk too"


def test_an_answer_that_arrived_is_not_kept(room: Room) -> None:
    ticket, _ = room.asks()
    room.desk.decide(ticket.id, True, "ann")
    room.desk.consume(ticket)
    room.desk.finish(ticket, RAN, True)
    assert room.on_disk(ticket)[3] is None
    assert room.desk.find(again()) is None
    assert room.clock.armed == 0


def test_a_call_that_ended_before_its_ticket_was_used_leaves_no_answer(room: Room) -> None:
    ticket, _ = room.asks()
    lease = ticket.lease
    room.desk.finish(ticket, RAN, False)
    assert room.desk.find(again()) is None
    assert lease.ended == ["released"]
    assert room.clock.armed == 0


# --- restarts ---------------------------------------------------------------------------------------------------------


def _pending(room: Room, ticket: Ticket) -> None: ...


def _approved(room: Room, ticket: Ticket) -> None:
    room.leaves(ticket)
    room.desk.decide(ticket.id, True, "ann", "fine")


def _rejected(room: Room, ticket: Ticket) -> None:
    room.desk.decide(ticket.id, False, "ann")


def _running(room: Room, ticket: Ticket) -> None:
    room.desk.decide(ticket.id, True, "ann")
    room.desk.consume(ticket)


def _expired(room: Room, ticket: Ticket) -> None:
    room.clock.passes(600.0)


@pytest.mark.parametrize(
    ("bring_to", "state"),
    [(_pending, PENDING), (_approved, APPROVED), (_rejected, None), (_running, None), (_expired, None)],
)
def test_a_restarted_daemon_knows_every_ticket_that_still_matters(
    room: Room, bring_to: Callable[[Room, Ticket], None], state: str | None
) -> None:
    ticket, _ = room.asks()
    bring_to(room, ticket)
    room.clock.passes(10.0)
    reserved = room.restarts()
    found = room.desk.find(again())
    if state is None:
        assert found is None
        assert reserved == []
        assert room.desk.pending() == []
        assert not room.desk.consume(ticket) or ticket.state == CONSUMED
        return
    assert found is not None
    assert reserved == [found] == room.desk.pending()
    kept = ("id", "call_id", "digest", "agent", "backend", "method", "name", "arguments", "rule", "created", "expires")
    assert [getattr(found, field) for field in kept] == [getattr(ticket, field) for field in kept]
    assert (found.state, found.by, found.note) == (ticket.state, ticket.by, ticket.note)
    assert (found.name, found.method, found.claims) == ("post", "tools/call", (CLAIM,))
    assert found.arguments == '{"text":"hi"}'
    assert (found.seats, found.runner, found.lease, found.turn) == ([], None, None, None)
    waiter = room.desk.attach(found, again().call)
    if state == PENDING:
        room.desk.decide(found.id, True, "bea")
    assert told(waiter).outcome == APPROVED
    assert room.desk.consume(found)
    room.restarts()
    assert room.desk.find(again()) is None, "used is used, in every life"


def test_a_restart_does_not_start_the_time_anew(room: Room) -> None:
    ticket, _ = room.asks()
    room.clock.passes(500.0)
    room.restarts()
    room.clock.passes(99.0)
    assert [one.id for one in room.desk.pending()] == [ticket.id]
    room.clock.passes(1.0)
    assert room.desk.pending() == []


def test_what_lapsed_while_no_daemon_ran_is_over(room: Room) -> None:
    ticket, _ = room.asks()
    room.leaves(ticket)
    room.desk.decide(ticket.id, True, "ann")
    room.slept = 600.0
    reserved = room.restarts()
    for one in reserved:
        one.lease, one.turn = Kept(), Kept()
    assert room.desk.find(again()) is None
    room.clock.passes(0.0)
    assert room.on_disk(ticket)[0] == EXPIRED
    assert all(one.lease is None for one in reserved)
    assert room.clock.armed == 0


def test_what_ended_a_day_ago_is_no_longer_on_disk(room: Room) -> None:
    old, _ = room.asks()
    room.desk.decide(old.id, False, "ann")
    room.clock.passes(KEPT_S)
    new, _ = room.asks(tool("post", {"n": 2}))
    room.desk.decide(new.id, False, "ann")
    room.clock.passes(601.0)
    room.restarts()
    assert room.on_disk(old) is None
    assert room.on_disk(new) is not None


def test_what_ended_a_day_ago_goes_from_the_disk_of_a_daemon_that_lives_on(room: Room) -> None:
    old, _ = room.asks()
    room.desk.decide(old.id, False, "ann")
    room.clock.passes(KEPT_S + 601.0)
    new, _ = room.asks(tool("post", {"n": 2}))
    room.desk.decide(new.id, False, "ann")
    assert room.on_disk(old) is None
    assert room.on_disk(new) is not None


def test_an_agent_that_asks_without_end_does_not_fill_the_disk(room: Room) -> None:
    kept, _ = room.asks(tool("post", {"n": -1}))
    room.desk.decide(kept.id, True, "ann")
    room.desk.consume(kept)
    room.desk.finish(kept, RAN, False)
    waits, _ = room.asks(tool("post", {"n": -2}))
    other, _ = room.asks(tool("post", agent="bob"))
    room.desk.decide(other.id, False, "ann")
    for n in range(KEPT_MAX + 3 * TIDY_AFTER):
        ticket, _ = room.asks(tool("post", {"n": n}))
        room.desk.decide(ticket.id, False, "ann")
    (count,) = room.store.db.execute("SELECT count(*) FROM tickets WHERE agent = 'amy'").fetchone()
    assert count <= KEPT_MAX + TIDY_AFTER + 2
    for one in (kept, waits, other, ticket):
        assert room.on_disk(one) is not None, "what matters yet, what is new, and what is another's"


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_an_agent_has_only_so_many_tickets(room: Room) -> None:
    room.desk.max_pending = 2
    tickets = [room.asks(tool("post", {"n": n}))[0] for n in range(2)]
    refused = room.desk.open(again(tool("post", {"n": 3})))
    assert isinstance(refused, Deny)
    assert (refused.reason.stage, refused.reason.code) == ("queue", "too_many_pending")
    assert refused.reason.retryable
    assert room.asks(tool("post", {"n": 3}, agent="bob"))
    room.desk.decide(tickets[0].id, True, "ann")
    assert isinstance(room.desk.open(again(tool("post", {"n": 3}))), Deny), "an approved one may still run"
    room.desk.consume(tickets[0])
    assert room.asks(tool("post", {"n": 3}))


def test_ids_are_four_crockford_characters_and_no_two_pending_share_one(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter("AAAA" * 3 + "BBBB")
    monkeypatch.setattr("aegis_daemon.approvals.ticket.secrets.choice", lambda letters: next(drawn))
    ids = [room.asks(tool("post", {"n": n}))[0].id for n in range(2)]
    assert ids == ["AAAA", "BBBB"]
    monkeypatch.undo()
    room.desk.max_pending = 500
    ids += [room.asks(tool("post", {"n": n}))[0].id for n in range(2, 300)]
    assert len(set(ids)) == 300
    assert all(len(id) == 4 and set(id) <= set(CROCKFORD) for id in ids)


def test_only_so_many_ended_tickets_are_remembered(room: Room) -> None:
    first, _ = room.asks()
    room.desk.decide(first.id, False, "ann")
    for n in range(300):
        ticket, _ = room.asks(tool("post", {"n": n}))
        room.desk.decide(ticket.id, False, "ann")
    with pytest.raises(NoSuchTicket):
        room.desk.get(first.call_id)
    assert len(room.desk._ended) <= 256
    assert (room.desk._open, room.desk._by_digest, room.desk._timers) == ({}, {}, {})


# --- a store that fails -----------------------------------------------------------------------------------------------


@pytest.fixture
def broken(room: Room, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def breaks() -> None:
        def put(ticket: Ticket) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(room.store, "put", put)
        monkeypatch.setattr(room.store, "take", put)

    return breaks


def test_an_ask_that_cannot_be_recorded_is_refused(room: Room, broken: Callable[[], None]) -> None:
    broken()
    refused = room.desk.open(again())
    assert isinstance(refused, Deny)
    assert (refused.reason.stage, refused.reason.retryable) == ("audit", True)
    assert room.desk.pending() == []
    assert room.clock.armed == 0


def test_a_decision_that_cannot_be_recorded_was_not_taken(
    room: Room, broken: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket, waiter = room.asks()
    broken()
    with pytest.raises(sqlite3.Error):
        room.desk.decide(ticket.id, True, "ann", "fine")
    assert (ticket.state, ticket.by, ticket.note, waiter.done) == (PENDING, "", "", False)
    monkeypatch.undo()
    room.desk.decide(ticket.id, False, "bea")
    assert told(waiter).outcome == REJECTED


def test_a_use_that_cannot_be_recorded_does_not_happen(
    room: Room, broken: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket, _ = room.asks()
    room.desk.decide(ticket.id, True, "ann")
    broken()
    assert not room.desk.consume(ticket)
    assert ticket.state == APPROVED
    monkeypatch.undo()
    assert room.desk.consume(ticket)


def test_a_ticket_lapses_though_that_cannot_be_recorded(room: Room, broken: Callable[[], None]) -> None:
    ticket, waiter = room.asks()
    lease = ticket.lease
    broken()
    room.clock.passes(600.0)
    assert told(waiter).outcome == EXPIRED
    assert lease.ended == ["released"]
    assert room.on_disk(ticket)[0] == PENDING
    room.slept = 1.0
    room.restarts()
    assert room.desk.find(again()) is None, "what the disk does not know, the clock does"


def test_a_ticket_shows_the_answers_that_come_with_a_call(room: Room) -> None:
    answers = {"amount": {"action": "accept", "content": {"amount": 1_000_000}}}
    params = {"name": "post", "arguments": {"text": "hi"}, "inputResponses": answers}
    ticket, _ = room.asks(made(params=params))
    assert msgspec.json.decode(ticket.arguments) == {"arguments": {"text": "hi"}, "inputResponses": answers}


# --- joining ----------------------------------------------------------------------------------------------------------


def joined(room: Room, count: int) -> tuple[Ticket, list[Waiter[Decision]]]:
    """A ticket with so many who wait for it, the oldest first."""
    ticket, first = room.asks()
    seats = [first]
    for _ in range(count - 1):
        hold = again()
        assert room.desk.find(hold) is ticket
        seats.append(room.desk.attach(ticket, hold.call))
    return ticket, seats


def test_the_newest_who_waits_runs_it_and_the_others_hear_how_it_ended(room: Room) -> None:
    ticket, seats = joined(room, 3)
    room.desk.decide(ticket.id, True, "ann")
    assert [seat.done for seat in seats] == [False, False, True]
    assert room.desk.consume(ticket)
    room.desk.finish(ticket, RAN, True)
    for seat in seats[:2]:
        decision = told(seat)
        assert (decision.outcome, decision.by, decision.ended) == ("ended", "ann", RAN)
    assert room.desk.find(again()) is None
    assert room.clock.armed == 0


def test_one_who_steps_back_before_it_ran_makes_room_for_the_next(room: Room) -> None:
    ticket, seats = joined(room, 3)
    room.desk.decide(ticket.id, True, "ann")
    room.desk.leave(ticket, seats[2])  # type: ignore[arg-type]
    assert [seat.done for seat in seats] == [False, True, True]
    assert room.desk.consume(ticket)
    assert room.desk.unused(ticket)
    assert room.on_disk(ticket)[0] == APPROVED
    room.desk.leave(ticket, seats[1])  # type: ignore[arg-type]
    assert told(seats[0]).outcome == APPROVED
    assert room.desk.consume(ticket)


def test_an_approved_ticket_does_not_lapse_while_its_call_queues_and_does_when_it_steps_back(room: Room) -> None:
    ticket, seat = room.asks()
    room.desk.decide(ticket.id, True, "ann")
    room.clock.passes(3600.0)
    assert room.desk.find(again()) is ticket
    room.desk.leave(ticket, seat)  # type: ignore[arg-type]
    room.clock.passes(0.0)
    assert ticket.state == EXPIRED
    assert room.desk.pending() == []


def test_whoever_left_is_not_told_and_leaving_twice_is_leaving(room: Room) -> None:
    ticket, seats = joined(room, 2)
    for seat in (*seats, *seats):
        room.desk.leave(ticket, seat)  # type: ignore[arg-type]
    room.desk.decide(ticket.id, True, "ann")
    assert not any(seat.done for seat in seats)
    assert room.events.count(("waiter_gone", ticket.id)) == 1


def test_an_outcome_that_one_of_those_who_waited_receives_is_delivered(room: Room) -> None:
    ticket, seats = joined(room, 2)
    room.desk.decide(ticket.id, True, "ann")
    room.desk.consume(ticket)
    got: list[Decision] = []

    async def receive() -> None:
        got.append(await seats[0])
        room.desk.delivered(ticket)

    Strand(receive()).start()
    room.desk.finish(ticket, RAN, False)
    assert got[0].ended is RAN
    assert room.desk.find(again()) is None
    assert room.on_disk(ticket)[3] is None


@pytest.mark.parametrize("why", [Ended(reason=Reason("forward", "lost")), Ended(answer(b"{}", ok=False))])
def test_an_end_without_a_result_is_told_and_never_kept(room: Room, why: Ended) -> None:
    ticket, seats = joined(room, 2)
    room.desk.decide(ticket.id, True, "ann")
    room.desk.consume(ticket)
    room.desk.finish(ticket, why, False)
    assert told(seats[0]).ended is why
    assert room.desk.find(again()) is None
    room.restarts()
    assert room.desk.find(again()) is None


def test_only_what_is_approved_on_disk_is_used(room: Room) -> None:
    ticket, _ = room.asks()
    room.desk.decide(ticket.id, True, "ann")
    room.store.db.execute("UPDATE tickets SET state = 'consumed'")
    assert not room.desk.consume(ticket)
    assert ("consumed", ticket.id) not in room.events


# --- patience ---------------------------------------------------------------------------------------------------------


def test_patience_ends_before_the_ticket_and_never_after_a_decision(room: Room) -> None:
    ticket, _ = room.asks()
    room.leaves(ticket)
    seats = [room.desk.attach(ticket, again().call, patience) for patience in (5.0, 600.0, 9000.0, None)]
    room.clock.passes(5.0)
    assert [seat.done for seat in seats] == [True, False, False, False]
    assert told(seats[0]).outcome == "pending"
    assert ticket.attended
    room.clock.passes(595.0)
    assert [told(seat).outcome for seat in seats[1:]] == [EXPIRED] * 3
    assert room.clock.armed == 0


def test_patience_that_is_longer_than_the_ticket_ends_while_another_runs_it(room: Room) -> None:
    ticket, _ = room.asks()
    late = room.desk.attach(ticket, again().call, 700.0)
    runner = room.desk.attach(ticket, again().call)
    room.desk.decide(ticket.id, True, "ann")
    assert told(runner).outcome == APPROVED
    room.clock.passes(699.0)
    assert not late.done, "the other one stands in line"
    room.clock.passes(1.0)
    assert told(late).outcome == "pending"


def test_nobody_with_no_patience_waits(room: Room) -> None:
    ticket, _ = room.asks()
    room.leaves(ticket)
    assert told(room.desk.attach(ticket, again().call, 0.0)).outcome == "pending"
    assert not ticket.attended
    room.desk.decide(ticket.id, True, "ann")
    assert told(room.desk.attach(ticket, again().call, 0.0)).outcome == APPROVED


def test_a_decision_stops_the_clock_of_patience(room: Room) -> None:
    ticket, _ = room.asks()
    room.leaves(ticket)
    seat = room.desk.attach(ticket, again().call, 5.0)
    room.desk.decide(ticket.id, True, "ann")
    assert room.clock.armed == 0
    assert told(seat).outcome == APPROVED


# --- two people -------------------------------------------------------------------------------------------------------

BOTH = Ask("agents.amy.backends.files.second_approver", 600.0, 2)


def test_two_different_people_must_agree(room: Room) -> None:
    ticket, seat = room.asks(ask=BOTH)
    assert ticket.people == 2
    assert room.desk.decide(ticket.id, True, "ann", "looks right", via="cli", voter="user:ann") is ticket
    assert (ticket.state, seat.done, len(ticket.votes)) == (PENDING, False, 1)
    with pytest.raises(Voted, match="somebody else must agree"):
        room.desk.decide(ticket.id, True, "ann", via="slack", voter="user:ann")
    assert ticket.state == PENDING
    room.desk.decide(ticket.id, True, "bob", "yes", via="slack", voter="user:bob")
    assert (ticket.state, ticket.by, ticket.via, ticket.note) == (APPROVED, "ann and bob", "slack", "yes")
    assert [(vote.voter, vote.by, vote.via, vote.note) for vote in ticket.votes] == [
        ("user:ann", "ann", "cli", "looks right"),
        ("user:bob", "bob", "slack", "yes"),
    ]
    assert told(seat).by == "ann and bob"
    assert [event for event, _ in room.events] == ["opened", "voted", "approved"]
    with pytest.raises(Decided):
        room.desk.decide(ticket.id, True, "cyd", voter="user:cyd")


@pytest.mark.parametrize("voter", ["", "link", "api", "user:", "telegram:42", "grant:G-1", "USER:ann"])
def test_a_yes_of_who_knows_whom_is_none_where_two_must_agree(room: Room, voter: str) -> None:
    ticket, seat = room.asks(ask=BOTH)
    room.desk.decide(ticket.id, True, "ann", via="cli", voter="user:ann")
    with pytest.raises(Nameless, match="nobody can tell who says yes"):
        room.desk.decide(ticket.id, True, "user:bob", via="link", voter=voter)
    assert (ticket.state, len(ticket.votes), seat.done) == (PENDING, 1, False)
    room.desk.decide(ticket.id, False, "somebody", via="link", voter=voter)
    assert ticket.state == REJECTED, "a no needs no name"


@pytest.mark.parametrize("voter", ["user:ann", "user:bob"])
def test_one_no_is_enough_also_after_a_yes(room: Room, voter: str) -> None:
    ticket, seat = room.asks(ask=BOTH)
    room.desk.decide(ticket.id, True, "ann", via="cli", voter="user:ann")
    room.desk.decide(ticket.id, False, "bob", "no", via="api", voter=voter)
    assert (ticket.state, ticket.by, ticket.via) == (REJECTED, "bob", "api")
    assert told(seat).outcome == REJECTED


def test_the_first_yes_survives_a_restart_and_does_not_lengthen_anybodys_time(room: Room) -> None:
    ticket, _ = room.asks(ask=BOTH)
    room.desk.decide(ticket.id, True, "ann", via="cli", voter="user:ann")
    room.restarts()
    found = room.desk.get(ticket.call_id)
    assert (found.people, found.votes) == (2, ticket.votes)
    with pytest.raises(Voted):
        room.desk.decide(found.id, True, "ann", voter="user:ann")
    room.clock.passes(600.0)
    with pytest.raises(Decided, match="expired"):
        room.desk.decide(found.id, True, "bob", voter="user:bob")


def test_a_yes_that_cannot_be_recorded_was_not_said(
    room: Room, broken: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket, _ = room.asks(ask=BOTH)
    broken()
    with pytest.raises(sqlite3.Error):
        room.desk.decide(ticket.id, True, "ann", voter="user:ann")
    assert ticket.votes == ()
    monkeypatch.undo()
    room.desk.decide(ticket.id, True, "ann", voter="user:ann")
    assert ticket.state == PENDING


def test_a_listener_at_fault_keeps_no_decision_from_being_told(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    ticket, seat = room.asks()

    def listen(event: str, ticket: Ticket) -> None:
        raise RuntimeError

    room.desk._on_event = listen
    room.desk.decide(ticket.id, True, "ann")
    assert told(seat).outcome == APPROVED
    assert "went wrong" in caplog.text


# --- many -------------------------------------------------------------------------------------------------------------


def test_ten_thousand_tickets_are_found_one_by_one_without_looking_at_the_others(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.desk.max_pending = 20_000
    room.store.db.execute("PRAGMA synchronous=OFF")
    tickets = [room.asks(tool("post", {"n": n}))[0] for n in range(10_000)]
    assert room.desk.pending() == tickets

    class Sealed(dict[str, Ticket]):
        """Whoever goes through all of them is found out."""

        def __iter__(self) -> Iterator[str]:
            raise AssertionError("it looks at all of them")

        values = items = __iter__  # type: ignore[assignment]

    room.desk._open = Sealed(room.desk._open)
    ticket = tickets[5000]
    assert room.desk.get(ticket.call_id) is ticket
    assert room.desk.get(ticket.id) is ticket
    assert room.desk.find(again(tool("post", {"n": 5000}))) is ticket
    room.desk.decide(ticket.call_id, True, "ann")
    assert room.desk.consume(ticket)
    room.desk.finish(ticket, RAN, True)
    room.asks(tool("post", {"n": -1}))
    room.desk.max_pending = 10_000
    assert isinstance(room.desk.open(again(tool("post", {"n": -2}))), Deny), "the cap is still counted right"
