from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aegis_daemon.core.verdict import Claim, Deny
from aegis_daemon.limits import Lease, Limits, milliseconds


def claim(count: int, window: float = 60.0, tool: str = "post", agent: str | None = "amy") -> Claim:
    return Claim("global" if agent is None else "agent", agent, "files", tool, window, count)


def reserved(limits: Limits, *claims: Claim, at: float) -> Lease:
    lease = limits.reserve(claims, at)
    assert isinstance(lease, Lease)
    return lease


def full(limits: Limits, *claims: Claim, at: float) -> Deny:
    refused = limits.reserve(claims, at)
    assert isinstance(refused, Deny)
    assert refused.reason.stage == "rate_limit"
    assert refused.reason.retryable
    return refused


def test_of_two_hundred_at_once_exactly_ten_pass() -> None:
    limits, ten = Limits(), claim(10)
    outcomes = [limits.reserve((ten,), 5.0) for _ in range(200)]
    leases = [lease for lease in outcomes if isinstance(lease, Lease)]
    assert len(leases) == 10
    for lease in leases:
        lease.commit(6.0)
    full(limits, ten, at=6.0)
    assert limits.usage(ten, 6.0).current == 10


def test_a_failed_call_gives_its_place_back_and_a_counted_one_does_not() -> None:
    limits, one = Limits(), claim(1)
    reserved(limits, one, at=0.0).release()
    reserved(limits, one, at=0.0).commit(0.0)
    full(limits, one, at=59.0)


@pytest.mark.parametrize("first", ["commit", "release"])
@pytest.mark.parametrize("then", ["commit", "release"])
def test_a_lease_is_settled_once(first: str, then: str) -> None:
    limits, two = Limits(), claim(2)
    lease = reserved(limits, two, at=0.0)
    for how in (first, then):
        lease.commit(0.0) if how == "commit" else lease.release()
    usage = limits.usage(two, 0.0)
    assert (usage.current, usage.reserved) == (1 if first == "commit" else 0, 0)


def test_all_claims_are_taken_or_none() -> None:
    limits, shared, own = Limits(), claim(5, agent=None), claim(1)
    reserved(limits, shared, own, at=0.0)
    for _ in range(3):
        full(limits, shared, own, at=0.0)
    assert limits.usage(shared, 0.0).reserved == 1
    assert limits.usage(own, 0.0).reserved == 1


def test_the_first_full_window_is_named() -> None:
    limits, shared, own = Limits(), claim(1, agent=None), claim(1)
    reserved(limits, shared, own, at=0.0)
    assert "all agents together" in full(limits, shared, own, at=0.0).reason.text
    assert "this agent" in full(limits, own, shared, at=0.0).reason.text


def test_a_refusal_says_how_many_in_what_window_and_when_to_come_back() -> None:
    limits, one = Limits(), claim(1, 86400.0)
    reserved(limits, one, at=0.0).commit(100.0)
    reason = full(limits, one, at=200.0).reason
    assert reason.text == (
        "rate limit exceeded for post: 1/1 calls in 24h0m0s window (this agent); not executed; try again in 23h58m20s"
    )
    assert reason.retry_after_ms == 86_300_001
    assert reason.code == "rate_limited"


def test_a_window_full_of_running_calls_names_no_time() -> None:
    limits, one = Limits(), claim(1)
    reserved(limits, one, at=0.0)
    reason = full(limits, one, at=1.0).reason
    assert reason.retry_after_ms is None
    assert "once a call under way has ended" in reason.text


def test_a_call_stops_counting_exactly_one_window_after_it_ended() -> None:
    limits, one = Limits(), claim(1, 60.0)
    reserved(limits, one, at=10.0).commit(20.0)
    full(limits, one, at=math.nextafter(80.0, 0.0))
    reserved(limits, one, at=80.0)


def test_a_running_call_holds_its_place_however_long_it_runs() -> None:
    limits, one = Limits(), claim(1, 60.0)
    lease = reserved(limits, one, at=0.0)
    full(limits, one, at=10_000.0)
    lease.commit(10_000.0)
    full(limits, one, at=10_059.0)
    reserved(limits, one, at=10_060.0)


def test_agents_tools_backends_and_scopes_have_windows_of_their_own() -> None:
    limits = Limits()
    named = [claim(1), claim(1, tool="read"), claim(1, agent="bob"), claim(1, agent=None)]
    others = [*named, Claim("agent", "amy", "mail", "post", 60.0, 1)]
    for one in others:
        reserved(limits, one, at=0.0)
    for one in others:
        full(limits, one, at=0.0)


# --- waiting ----------------------------------------------------------------------------------------------------------

TIMES = st.lists(st.floats(0.0, 200.0), min_size=1, max_size=12)


@given(TIMES, st.integers(1, 12), st.floats(0.001, 90.0), st.integers(0, 3))
@example([1.0], 1, 0.001, 0)
def test_waiting_as_long_as_the_refusal_says_is_enough_and_a_little_less_is_not(
    times: list[float], count: int, window: float, running: int
) -> None:
    limits, limit = Limits(), claim(count, window)
    now = max(times)
    for at in times:
        limits.restore(limit, [at])
    held = sum(isinstance(limits.reserve((limit,), now), Lease) for _ in range(running))
    refused = limits.reserve((limit,), now)
    if isinstance(refused, Lease):
        return
    if refused.reason.retry_after_ms is None:
        assert held >= count, "only what runs is in the way"
        return
    wait = refused.reason.retry_after_ms / 1000
    early = now + wait - 0.002
    if early > now:
        assert isinstance(limits.reserve((limit,), early), Deny)
    assert isinstance(limits.reserve((limit,), now + wait), Lease)


def test_what_runs_and_what_counted_fill_a_window_together() -> None:
    limits, three = Limits(), claim(3, 60.0)
    limits.restore(three, [10.0])
    reserved(limits, three, at=20.0)
    assert limits.usage(three, 20.0).retry_after_s is None
    reserved(limits, three, at=20.0)
    usage = limits.usage(three, 20.0)
    assert (usage.current, usage.reserved, usage.retry_after_s) == (1, 2, 50.0)
    reason = full(limits, three, at=20.0).reason
    assert reason.retry_after_ms == 50_001
    assert "3/3 calls" in reason.text


@given(TIMES, st.integers(1, 4), st.floats(0.5, 90.0))
def test_usage_tells_the_same_as_a_refusal(times: list[float], count: int, window: float) -> None:
    limits, limit = Limits(), claim(count, window)
    now = max(times)
    for at in times:
        limits.restore(limit, [at])
    usage = limits.usage(limit, now)
    assert usage.current == sum(at > now - window for at in times)
    refused = limits.reserve((limit,), now)
    assert (usage.retry_after_s is not None) is isinstance(refused, Deny)
    if isinstance(refused, Deny):
        assert usage.retry_after_s is not None
        assert refused.reason.retry_after_ms == milliseconds(usage.retry_after_s)


# --- restarts and reloads ---------------------------------------------------------------------------------------------


def test_calls_of_an_earlier_daemon_count_in_whatever_order_they_are_found() -> None:
    limits, three = Limits(), claim(3, 60.0)
    for at in (30.0, -20.0, 10.0):  # before the machine's boot, too
        limits.restore(three, [at])
    reserved(limits, three, at=40.0).release()
    full_at_39 = Limits()
    for at in (30.0, -20.0, 10.0):
        full_at_39.restore(three, [at])
    assert full(full_at_39, three, at=39.0).reason.retry_after_ms == 1001


def test_a_reload_changes_the_numbers_and_keeps_what_was_counted() -> None:
    limits = Limits()
    for _ in range(3):
        reserved(limits, claim(3, 60.0), at=0.0).commit(0.0)
    running = limits.reserve((claim(5, 60.0),), 1.0)
    assert isinstance(running, Lease)
    full(limits, claim(2, 60.0), at=1.0)
    full(limits, claim(4, 600.0), at=59.0)
    running.release()
    assert limits.usage(claim(4, 600.0), 59.0).current == 3
    reserved(limits, claim(1, 5.0), at=59.0)


def test_a_clock_that_stands_still_or_calls_that_end_in_another_order_break_nothing() -> None:
    limits, three = Limits(), claim(3, 10.0)
    leases = [reserved(limits, three, at=0.0) for _ in range(3)]
    for lease, at in zip(leases, (5.0, 5.0, 3.0), strict=True):
        lease.commit(at)
    full(limits, three, at=12.9)
    reserved(limits, three, at=13.0)
    full(limits, three, at=13.0)


def test_windows_that_nothing_fills_are_forgotten_and_others_are_not() -> None:
    limits = Limits()
    reserved(limits, claim(1, tool="done"), at=0.0).commit(0.0)
    running = reserved(limits, claim(1, tool="running"), at=0.0)
    limits.usage(claim(1, tool="asked"), 0.0)
    limits.sweep(59.0)
    assert {window.claim.tool for window in limits} == {"done", "running"}
    limits.sweep(60.0)
    assert {window.claim.tool for window in limits} == {"running"}
    running.commit(70.0)
    full(limits, claim(1, tool="running"), at=70.0)


# --- against a naive model --------------------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """Calls that begin, end, fail and are restored while time passes, against lists that are counted anew each time."""

    @initialize(counts=st.tuples(*[st.integers(1, 3)] * 3), windows=st.tuples(*[st.integers(1, 20)] * 3))
    def begin(self, counts: tuple[int, ...], windows: tuple[int, ...]) -> None:
        self.now = 100.0
        self.limits = Limits()
        self.claims = [claim(n, float(w), tool=t) for n, w, t in zip(counts, windows, "abc", strict=True)]
        self.counted: dict[str, list[float]] = {"a": [], "b": [], "c": []}
        self.running: list[tuple[Any, tuple[Claim, ...]]] = []

    def used(self, one: Claim) -> tuple[int, int]:
        current = sum(at > self.now - one.window_s for at in self.counted[one.tool])
        return current, sum(one in claims for _, claims in self.running)

    @rule(which=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
    def reserve(self, which: list[int]) -> None:
        wanted = tuple(self.claims[at] for at in which)
        fits = all(sum(self.used(one)) < one.max_count for one in wanted)
        outcome = self.limits.reserve(wanted, self.now)
        assert isinstance(outcome, Lease) is fits
        if isinstance(outcome, Lease):
            self.running.append((outcome, wanted))
        else:
            first = next(one for one in wanted if sum(self.used(one)) >= one.max_count)
            assert f"`{first.tool}`" in outcome.reason.detail

    @rule(data=st.data(), success=st.booleans())
    def settle(self, data: st.DataObject, success: bool) -> None:
        if self.running:
            lease, claims = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            if success:
                lease.commit(self.now)
                for one in claims:
                    self.counted[one.tool].append(self.now)
            else:
                lease.release()

    @rule(at=st.integers(0, 2), ago=st.integers(0, 30))
    def restore(self, at: int, ago: int) -> None:
        one = self.claims[at]
        self.limits.restore(one, [self.now - ago])
        self.counted[one.tool].append(self.now - ago)

    @rule(seconds=st.one_of(st.integers(1, 12), st.sampled_from([0.25, 0.5])))
    def passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        self.limits.sweep(self.now)

    @invariant()
    def the_windows_are_as_full_as_the_lists(self) -> None:
        for one in getattr(self, "claims", ()):
            usage = self.limits.usage(one, self.now)
            assert (usage.current, usage.reserved) == self.used(one)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40)


# --- more than the limit says -----------------------------------------------------------------------------------------

KEY = ("agent", "amy", "files", "post")


def test_what_is_allowed_beyond_a_limit_ends_and_leaves_the_limit_as_it_was() -> None:
    limits, one = Limits(), claim(1, 60.0)
    reserved(limits, one, at=0.0).commit(0.0)
    full(limits, one, at=1.0)
    limits.allow_more(KEY, 1, 30.0)
    assert limits.beyond(one, 1.0) == 1
    reserved(limits, one, at=2.0).commit(2.0)
    refused = full(limits, one, at=3.0)
    assert "2/2 calls" in refused.reason.text
    assert limits.beyond(one, 30.0) == 0
    full(limits, one, at=61.0)  # the second still counts, and there is one place again
    reserved(limits, one, at=62.0).commit(62.0)
    full(limits, one, at=62.0)


def test_what_is_allowed_for_one_limit_is_for_no_other() -> None:
    limits = Limits()
    limits.allow_more(KEY, 5, 100.0)
    for other in (claim(1, agent="bob"), claim(1, agent=None), claim(1, tool="read")):
        reserved(limits, other, at=0.0)
        full(limits, other, at=0.0)


def test_it_may_be_allowed_before_the_first_call_and_outlives_a_sweep_and_a_reload() -> None:
    limits = Limits()
    limits.allow_more(KEY, 1, 100.0)
    limits.sweep(50.0)
    limits.allow_more(KEY, 1, 80.0)
    for _ in range(3):
        reserved(limits, claim(1, 3600.0), at=60.0)
    full(limits, claim(1, 3600.0), at=60.0)
    assert limits.beyond(claim(1, 3600.0), 90.0) == 1
    limits = Limits()
    limits.allow_more(KEY, 1, 100.0)
    limits.sweep(100.0)
    assert list(limits) == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["call", "commit", "release", "more"]),
        st.floats(0.0, 20.0),
        st.integers(1, 3),
        st.floats(1.0, 60.0),
    ),
    max_size=40,
)


@given(STEPS, st.integers(1, 4))
def test_no_more_than_limit_and_extra_ever_count_and_no_more_than_the_limit_once_that_is_over(
    steps: list[tuple[str, float, int, float]], count: int
) -> None:
    limits, limit = Limits(), claim(count, 60.0)
    extras: list[tuple[float, int]] = []
    held: list[Lease] = []
    counted: list[float] = []
    now = 0.0
    for what, pause, number, lasts in steps:
        now += pause
        allowed = count + sum(more for until, more in extras if now < until)
        used = len(held) + sum(at > now - 60.0 for at in counted)
        if what == "call":
            lease = limits.reserve((limit,), now)
            assert isinstance(lease, Lease) == (used < allowed)
            if isinstance(lease, Lease):
                held.append(lease)
            elif lease.reason.retry_after_ms is not None:
                then = now + lease.reason.retry_after_ms / 1000
                after = count + sum(more for until, more in extras if then < until)
                assert len(held) + sum(at > then - 60.0 for at in counted) < after
        elif what == "more":
            extras.append((now + lasts, number))
            limits.allow_more(KEY, number, now + lasts)
        elif held:
            lease = held.pop()
            if what == "commit":
                lease.commit(now)
                counted.append(now)
            else:
                lease.release()
        assert limits.beyond(limit, now) == sum(more for until, more in extras if now < until)
