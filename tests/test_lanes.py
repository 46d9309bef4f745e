from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from making import Clock, call, tool

from aegis_daemon.core.names import Names
from aegis_daemon.core.verdict import Deny
from aegis_daemon.lanes import LaneRule, Lanes, Turn
from aegis_daemon.loop.strand import Strand


def rules(delay: float = 0.0, longest: float | None = None, *, places: int = 50, bypass: tuple[str, ...] = ()) -> Any:
    return {"files": LaneRule(delay, delay if longest is None else longest, places, Names(bypass))}


class Street:
    """The lanes, a clock, and a note of what ran when."""

    def __init__(self, with_rules: Any, pause: Any = None) -> None:
        self.clock = Clock()
        self.lanes = Lanes(self.clock.now, self.clock.call_later, *([pause] if pause else []))
        self.lanes.configure(with_rules)
        self.ran: list[tuple[str, float]] = []

    def turn(self, name: str = "post", agent: str = "amy") -> Turn:
        turn = self.lanes.enter(tool(name, agent=agent))
        assert isinstance(turn, Turn)
        return turn

    def waits(self, turn: Turn, note: str, *, ends_at_once: bool = False) -> Turn:
        async def run() -> None:
            await turn.ready()
            self.ran.append((note, self.clock.at - 1000.0))
            if ends_at_once:
                turn.leave()

        Strand(run()).start()
        return turn

    def comes(self, note: str, agent: str = "amy") -> Turn:
        return self.waits(self.turn(agent=agent), note)

    @property
    def order(self) -> list[str]:
        return [note for note, _ in self.ran]


def test_one_runs_at_a_time_in_the_order_of_coming() -> None:
    street = Street(rules())
    turns = [street.comes(note) for note in "abcd"]
    assert street.order == ["a"]
    for at, turn in enumerate(turns):
        assert street.order == list("abcd")[: at + 1]
        turn.leave()
    assert street.order == list("abcd")


def test_the_first_call_and_one_after_a_longer_idle_wait_for_nothing() -> None:
    street = Street(rules(30.0))
    street.comes("first").leave()
    street.clock.passes(30.0)
    street.comes("later").leave()
    street.clock.passes(500.0)
    street.comes("much later")
    assert street.ran == [("first", 0.0), ("later", 30.0), ("much later", 530.0)]


def test_the_pause_runs_from_the_previous_completion() -> None:
    street = Street(rules(10.0))
    first = street.comes("first")
    street.comes("second")
    street.clock.passes(25.0)
    first.leave()
    street.clock.passes(9.9)
    assert street.order == ["first"]
    street.clock.passes(0.1)
    assert street.ran[1] == ("second", 35.0)


def test_a_call_that_comes_during_the_pause_waits_for_what_is_left_of_it() -> None:
    street = Street(rules(10.0))
    street.comes("first").leave()
    street.clock.passes(4.0)
    street.comes("second")
    street.clock.passes(6.0)
    assert street.ran[1] == ("second", 10.0)


def test_the_pause_is_drawn_between_its_two_ends_for_each_call_anew() -> None:
    drawn = []

    def pause(low: float, high: float) -> float:
        assert (low, high) == (5.0, 15.0)
        drawn.append(random.Random(len(drawn)).uniform(low, high))
        return drawn[-1]

    street = Street(rules(5.0, 15.0), pause)
    for note in "abc":
        street.waits(street.turn(), note, ends_at_once=True)
    street.clock.passes(60.0)
    starts = [at for _, at in street.ran]
    assert [later - earlier for earlier, later in itertools.pairwise(starts)] == pytest.approx(drawn[:2])
    assert all(5.0 <= one <= 15.0 for one in drawn)
    assert len(set(drawn)) == 3


def test_agents_take_turns_in_the_order_in_which_they_came() -> None:
    street = Street(rules())
    turns = [street.comes(f"{agent}{n}", agent) for n in range(3) for agent in ("amy", "bob", "eve")]
    for turn in turns:
        turn.leave()
    assert street.order == [f"{agent}{n}" for n in range(3) for agent in ("amy", "bob", "eve")]


def test_backends_have_orders_of_their_own() -> None:
    street = Street({**rules(), "mail": rules()["files"]})
    street.comes("files")
    other = street.lanes.enter(tool("post", backend="mail"))
    assert isinstance(other, Turn)
    street.waits(other, "mail")
    assert street.order == ["files", "mail"]


@pytest.mark.parametrize(
    "past",
    [
        tool("status"),
        tool("get_x"),
        tool("post", backend="web"),
        call("resources/read", {"uri": "x:1"}),
        call("tools/list"),
        call("prompts/get", {"name": "post"}),
    ],
)
def test_only_tool_calls_of_a_backend_with_a_lane_stand_in_it(past: Any) -> None:
    street = Street(rules(bypass=("status", "get_*")))
    street.comes("running")
    assert street.lanes.enter(past) is None


def test_a_ticket_of_a_tool_that_goes_past_the_lane_takes_no_place_after_a_restart_either() -> None:
    street = Street(rules(bypass=("status",)))
    assert street.lanes.hold("files", ("c1", "amy", "status")) is None
    assert street.lanes.hold("web", ("c1", "amy", "post")) is None
    assert isinstance(street.lanes.hold("files", ("c1", "amy", "post")), Turn)


@pytest.mark.parametrize("places", [1, 3])
def test_no_more_wait_than_there_are_places(places: int) -> None:
    street = Street(rules(places=places))
    running = street.comes("running")
    waiting = [street.comes(f"w{n}") for n in range(places)]
    refused = street.lanes.enter(tool("post"))
    assert isinstance(refused, Deny)
    assert (refused.reason.stage, refused.reason.code, refused.reason.retryable) == ("queue", "queue_full", True)
    assert f"{places}/{places}" in refused.reason.text
    running.leave()
    street.comes("after one left")
    for turn in waiting:
        turn.leave()
    assert street.order == ["running", *(f"w{n}" for n in range(places)), "after one left"]


def test_a_place_that_waits_for_a_person_counts_and_does_not_hold_up_the_order() -> None:
    street = Street(rules(places=2))
    asked = street.turn()
    street.comes("a")
    street.comes("b")
    assert street.order == ["a"]
    assert isinstance(street.lanes.enter(tool("post")), Deny)
    asked.leave()
    assert isinstance(street.lanes.enter(tool("post")), Turn)


def test_a_place_joins_the_order_when_it_is_ready_not_when_it_was_reserved() -> None:
    street = Street(rules())
    running = street.comes("running")
    asked = street.turn()
    second = street.comes("second")
    street.waits(asked, "asked")
    running.leave()
    second.leave()
    assert street.order == ["running", "second", "asked"]


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_leaving_while_reserved_waiting_paused_and_running_makes_room_for_the_next() -> None:
    street = Street(rules(10.0))
    held = street.turn()
    held.leave()
    running = street.comes("running")
    gone = street.comes("gone")
    street.comes("next")
    gone.leave()
    running.leave()
    street.clock.passes(5.0)
    street.lanes.rows()
    street.clock.passes(5.0)
    assert street.ran == [("running", 0.0), ("next", 10.0)]


def test_the_first_in_the_order_may_leave_during_its_pause() -> None:
    street = Street(rules(10.0))
    street.comes("running").leave()
    paused, behind = street.comes("paused"), street.comes("behind")
    street.clock.passes(5.0)
    paused.leave()
    street.clock.passes(5.0)
    assert street.ran[1:] == [("behind", 10.0)]
    behind.leave()
    alone = street.comes("alone")
    alone.leave()
    assert street.clock.armed == 0
    street.clock.passes(60.0)
    assert "alone" not in street.order


def test_leaving_twice_is_leaving_once() -> None:
    street = Street(rules())
    first = street.comes("first")
    street.comes("second")
    street.comes("third")
    first.leave()
    first.leave()
    assert street.order == ["first", "second"]
    late = street.turn()
    late.leave()
    assert not late.ready().done, "who has left does not come back"
    assert street.order == ["first", "second"]


def test_being_ready_twice_is_being_in_the_order_once() -> None:
    street = Street(rules())
    running = street.comes("running")
    turn = street.turn()
    assert turn.ready() is turn.ready()
    street.comes("behind")
    running.leave()
    turn.leave()
    assert street.order == ["running", "behind"]


def test_a_long_row_of_calls_that_end_as_soon_as_their_turn_comes_empties_to_the_last() -> None:
    street = Street(rules(places=5000))
    first = street.comes("first")
    for number in range(3000):
        street.waits(street.turn(), str(number), ends_at_once=True)
    first.leave()
    assert street.order == ["first", *map(str, range(3000))]
    assert street.lanes.rows() == []


def test_a_call_that_joins_while_another_is_started_keeps_the_order() -> None:
    street = Street(rules())
    first = street.comes("first")
    turn = street.turn()

    async def run() -> None:
        await turn.ready()
        street.ran.append(("second", 0.0))
        street.comes("fourth")
        turn.leave()

    Strand(run()).start()
    third = street.comes("third")
    first.leave()
    assert street.order == ["first", "second", "third"]
    third.leave()
    assert street.order == ["first", "second", "third", "fourth"]


# --- new rules --------------------------------------------------------------------------------------------------------


def test_a_lane_that_is_configured_away_lets_everybody_go() -> None:
    street = Street(rules(60.0))
    street.comes("running")
    street.comes("a")
    street.comes("b")
    asked = street.turn()
    street.lanes.configure({})
    assert street.order == ["running", "a", "b"]
    assert street.lanes.enter(tool("post")) is None
    street.waits(asked, "asked")
    assert street.order[-1] == "asked"


def test_a_lane_that_is_configured_away_during_a_pause_lets_everybody_go() -> None:
    street = Street(rules(60.0))
    street.comes("running").leave()
    street.comes("a")
    street.lanes.configure({})
    assert street.order == ["running", "a"]
    assert street.clock.armed == 0


def test_a_lane_that_comes_back_takes_calls_one_by_one_again() -> None:
    street = Street(rules())
    old = [street.comes("old"), street.comes("old 2")]
    street.lanes.configure({})
    street.lanes.configure(rules())
    new = street.comes("new")
    street.comes("newer")
    for turn in old:
        turn.leave()
    assert street.order[:3] == ["old", "old 2", "new"]
    new.leave()
    assert street.order == ["old", "old 2", "new", "newer"]


def test_a_place_outlives_its_lane_and_is_in_order_again_when_the_lane_comes_back() -> None:
    street = Street(rules())
    asked = street.turn()
    street.lanes.configure({})
    assert [row.state for row in street.lanes.rows()] == ["held"]
    street.lanes.configure(rules())
    running = street.comes("running")
    street.waits(asked, "asked")
    assert street.order == ["running"]
    running.leave()
    assert street.order == ["running", "asked"]


@pytest.mark.parametrize("busy", ["held", "waiting", "running", "nothing"])
def test_a_lane_that_is_gone_is_forgotten_once_nobody_is_in_it(busy: str) -> None:
    street = Street(rules(60.0))
    street.comes("first").leave()
    turn = {"held": street.turn, "nothing": lambda: None}.get(busy, lambda: street.comes("next"))()
    if busy == "running":
        street.clock.passes(60.0)
    street.lanes.configure({})
    assert bool(street.lanes._lanes) is (busy != "nothing")
    if turn is not None:
        turn.leave()
    street.lanes.configure({})
    assert street.lanes._lanes == {}


def test_new_numbers_hold_for_those_who_wait() -> None:
    street = Street(rules(60.0, places=1))
    street.comes("running")
    street.comes("waiting")
    assert isinstance(street.lanes.enter(tool("post")), Deny)
    street.lanes.configure(rules(5.0, places=2))
    street.comes("third")
    assert street.order == ["running"]


# --- what people see --------------------------------------------------------------------------------------------------


def test_a_person_sees_who_runs_who_is_next_and_who_waits_for_somebody() -> None:
    street = Street(rules(10.0))
    running = street.comes("running", "amy")
    street.clock.passes(3.0)
    street.comes("next", "bob")
    street.comes("third", "eve")
    street.turn(agent="ivy")
    street.clock.passes(1.0)
    rows = street.lanes.rows()
    assert [(row.agent_id, row.position, row.state, row.waited_s, row.starts_in_s) for row in rows] == [
        ("amy", 0, "running", 4.0, 0.0),
        ("bob", 1, "waiting", 1.0, None),
        ("eve", 2, "waiting", 1.0, None),
        ("ivy", 3, "held", 1.0, None),
    ]
    running.leave()
    street.clock.passes(4.0)
    rows = street.lanes.rows()
    assert [(row.agent_id, row.position, row.state, row.starts_in_s) for row in rows] == [
        ("bob", 0, "delay", 6.0),
        ("eve", 1, "waiting", None),
        ("ivy", 2, "held", None),
    ]
    assert {(row.backend_id, row.tool_name) for row in rows} == {("files", "post")}


def test_a_call_knows_how_many_are_before_it() -> None:
    street = Street(rules(10.0))
    turns = [street.comes(note) for note in "abc"]
    assert [turn.position for turn in turns] == [0, 1, 2]
    for turn in turns:
        turn.leave()
    assert [street.comes(note).position for note in "de"] == [0, 1]


# --- against a naive model --------------------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """People who come, wait, leave and are let go, against one list in the order of readiness."""

    @initialize(delay=st.sampled_from([0.0, 3.0]), places=st.integers(1, 4))
    def begin(self, delay: float, places: int) -> None:
        self.street = Street(rules(delay, places=places))
        self.delay, self.places = delay, places
        self.held: list[tuple[str, Turn]] = []
        self.queue: list[tuple[str, Turn]] = []
        self.running: tuple[str, Turn] | None = None
        self.free_at = 0.0
        self.expected: list[str] = []
        self.count = 0

    @rule()
    def reserves(self) -> None:
        waiting = len(self.held) + len(self.queue)
        got = self.street.lanes.enter(tool("post"))
        assert isinstance(got, Deny) is (waiting >= self.places)
        if isinstance(got, Turn):
            self.count += 1
            self.held.append((str(self.count), got))

    @rule(data=st.data())
    def is_ready(self, data: st.DataObject) -> None:
        if self.held:
            note, turn = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            self.queue.append((note, turn))
            self.street.waits(turn, note)
            self.start()

    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        everybody = [*self.held, *self.queue, *([self.running] if self.running else [])]
        if everybody:
            one = data.draw(st.sampled_from(everybody))
            if one is self.running:
                self.running = None
                self.free_at = self.street.clock.at + self.delay
            elif one in self.queue:
                self.queue.remove(one)
            else:
                self.held.remove(one)
            one[1].leave()
            one[1].leave()
            self.start()

    @rule(seconds=st.integers(1, 4))
    def passes(self, seconds: int) -> None:
        self.street.clock.passes(seconds)
        self.start()

    def start(self) -> None:
        if self.running is None and self.queue and self.free_at <= self.street.clock.at:
            self.running = self.queue.pop(0)
            self.expected.append(self.running[0])

    @invariant()
    def the_same_ran(self) -> None:
        if hasattr(self, "street"):
            assert self.street.order == self.expected
            assert len(self.street.lanes.rows()) == len(self.held) + len(self.queue) + (self.running is not None)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=50, stateful_step_count=40)
