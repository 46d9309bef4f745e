from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aegis_daemon.core.session import Duplicate, Open, OpenRequests, State, TooMany


def test_a_request_that_came_was_not_sent_and_not_cancelled() -> None:
    opened = OpenRequests(10).begin(1, {})
    assert (opened.state, opened.cancelled, opened.number, opened.slot) == (State.WAITING, False, 0, -1)
    assert State.WAITING < State.COMMITTING < State.SENT < State.DONE


def test_an_answer_belongs_to_exactly_one_request() -> None:
    requests = OpenRequests(10)
    first, second = requests.begin(1, {}), requests.begin("1", {})
    numbers = [requests.sent(first), requests.sent(second)]
    assert numbers[0] != numbers[1]
    assert requests.peek(numbers[0]) is first
    assert requests.answered(numbers[1]) is second
    assert requests.answered(numbers[1]) is None, "a repeated answer"
    requests.end(second)
    requests.end(first)
    assert requests.answered(numbers[0]) is None, "a late answer"
    assert len(requests) == 0


@pytest.mark.parametrize("invented", [0, 2, -1, "1", "", 10**30])
def test_an_invented_answer_belongs_to_none(invented: Any) -> None:
    requests = OpenRequests(10)
    opened = requests.begin(5, {})
    assert requests.sent(opened) == 1
    assert requests.answered(invented) is None
    assert requests.peek(invented) is None
    assert requests.peek(None) is None
    assert requests.answered(1) is opened


def test_an_id_is_used_once_while_it_is_open_and_again_afterwards() -> None:
    requests = OpenRequests(10)
    opened = requests.begin(1, {})
    with pytest.raises(Duplicate):
        requests.begin(1, {})
    assert requests.begin("1", {}) is not opened, "text and number are two ids"
    requests.end(opened)
    assert requests.begin(1, {}) is not opened


def test_a_session_has_no_more_open_than_it_may() -> None:
    requests = OpenRequests(2)
    opened = [requests.begin(id, {}) for id in (1, 2)]
    with pytest.raises(TooMany):
        requests.begin(3, {})
    requests.end(opened[0])
    assert requests.begin(3, {})


@pytest.mark.parametrize(
    ("meta", "token"),
    [
        ({"progressToken": "p"}, "p"),
        ({"progressToken": 0}, 0),
        ({"progressToken": True}, None),
        ({"progressToken": 1.0}, None),
        ({"progressToken": None}, None),
        ({"progressToken": ["p"]}, None),
        ({}, None),
        ("progressToken", None),
    ],
)
def test_progress_finds_the_request_that_wants_it(meta: Any, token: Any) -> None:
    requests = OpenRequests(10)
    opened = requests.begin(1, {"_meta": meta})
    assert opened.token == token
    if token is not None:
        assert requests.progressing(token) is opened
    for other in ("x", 7, None, True, 1.0, [], {}):
        assert requests.progressing(other) is None
    requests.end(opened)
    assert requests.progressing(token) is None


def test_the_end_of_one_request_does_not_take_the_token_of_another() -> None:
    requests = OpenRequests(10)
    first = requests.begin(1, {"_meta": {"progressToken": "p"}})
    second = requests.begin(2, {"_meta": {"progressToken": "p"}})
    requests.end(first)
    assert requests.progressing("p") is second


def test_a_cancellation_names_the_senders_own_id() -> None:
    requests = OpenRequests(10)
    opened = requests.begin("a", {})
    requests.sent(opened)
    assert requests.find("a") is opened
    for other in ("b", 1, None, True, 1.0, [], {}):
        assert requests.find(other) is None


def test_all_are_listed_oldest_first() -> None:
    requests = OpenRequests(10)
    opened = [requests.begin(id, {}) for id in (3, "x", 1)]
    assert requests.all() == opened


class Traffic(RuleBasedStateMachine):
    """Requests that come, leave, are answered twice, late and never: against a plain list of what is open."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = OpenRequests(4)
        self.open: list[Open] = []
        self.waiting: dict[int, Open] = {}
        self.used: set[int] = set()

    @rule(id=st.one_of(st.integers(0, 6), st.sampled_from("0123")), token=st.one_of(st.none(), st.integers(0, 2)))
    def comes(self, id: int | str, token: int | None) -> None:
        params = {} if token is None else {"_meta": {"progressToken": token}}
        if any(one.request_id == id and type(one.request_id) is type(id) for one in self.open):
            with pytest.raises(Duplicate):
                self.requests.begin(id, params)
        elif len(self.open) == 4:
            with pytest.raises(TooMany):
                self.requests.begin(id, params)
        else:
            self.open.append(self.requests.begin(id, params))

    @rule(data=st.data())
    def is_sent(self, data: st.DataObject) -> None:
        fresh = [one for one in self.open if one.state is State.WAITING]
        if fresh:
            one = data.draw(st.sampled_from(fresh))
            number = self.requests.sent(one)
            assert number not in self.used
            self.used.add(number)
            self.waiting[number] = one

    @rule(number=st.integers(0, 12))
    def is_answered(self, number: int) -> None:
        assert self.requests.answered(number) is self.waiting.pop(number, None)

    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        if self.open:
            one = data.draw(st.sampled_from(self.open))
            self.requests.end(one)
            self.open.remove(one)
            self.waiting.pop(one.number, None)

    @invariant()
    def nothing_is_forgotten_or_kept(self) -> None:
        assert self.requests.all() == self.open
        assert len(self.requests) == len(self.open)
        for one in self.open:
            assert self.requests.find(one.request_id) is one
        for number in range(1, 14):
            assert self.requests.peek(number) is self.waiting.get(number)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=30, stateful_step_count=30)
