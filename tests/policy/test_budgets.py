"""What is spent never exceeds a budget, to the last decimal, however calls race, fail or come back."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_daemon.core.verdict import Claim, Deny
from aegis_daemon.limits import Lease, Limits
from aegis_daemon.policy.budgets import MOST, PLACES, Budget, counted, exact, plain, units


def claim(amount: str, most: str = "500", agent: str | None = None, window_s: float = 100.0) -> Claim:
    return Claim("budget amount", agent, "*", "pay", window_s, 0, amount, most)


def reserve(limits: Limits, amount: str, now: float, most: str = "500") -> Lease:
    lease = limits.reserve((claim(amount, most),), now)
    assert isinstance(lease, Lease), lease
    return lease


def test_tenths_add_up_to_what_they_are() -> None:
    limits = Limits()
    for _ in range(10):
        reserve(limits, "0.1", 0.0, "1").commit(0.0)
    assert isinstance(limits.reserve((claim("0.000000000001", "1"),), 0.0), Deny)
    assert isinstance(limits.reserve((claim("0", "1"),), 0.0), Lease)


def test_what_is_under_way_counts_until_it_fails() -> None:
    limits = Limits()
    first = reserve(limits, "300", 0.0)
    refused = limits.reserve((claim("200.01"),), 1.0)
    assert isinstance(refused, Deny)
    assert refused.reason.stage == "rate_limit"
    assert refused.reason.code == "budget_exceeded"
    assert "200 of 500 is left" in refused.reason.text
    assert refused.reason.retry_after_ms is None
    first.release()
    reserve(limits, "500", 2.0).commit(2.0)


def test_what_was_spent_counts_exactly_until_its_window_is_over() -> None:
    limits = Limits()
    reserve(limits, "400", 0.0).commit(10.0)
    refused = limits.reserve((claim("200"),), 50.0)
    assert isinstance(refused, Deny)
    assert refused.reason.retry_after_ms == 60_001
    assert isinstance(limits.reserve((claim("200"),), 109.999), Deny)
    reserve(limits, "200", 110.0)


def test_a_lease_is_settled_once() -> None:
    limits = Limits()
    lease = reserve(limits, "500", 0.0)
    lease.commit(0.0)
    lease.commit(0.0)
    lease.release()
    assert isinstance(limits.reserve((claim("1"),), 0.0), Deny)


def test_a_refused_budget_reserves_nothing_of_the_other_claims() -> None:
    limits = Limits()
    window = Claim("agent", "amy", "bank", "pay", 60.0, 1)
    assert isinstance(limits.reserve((window, claim("501")), 0.0), Deny)
    assert isinstance(limits.reserve((claim("500"), window), 0.0), Lease)
    assert isinstance(limits.reserve((claim("0"), window), 0.0), Deny), "the window is full"
    assert limits.usage(window, 0.0).reserved == 1


def test_agents_have_budgets_of_their_own_where_the_rule_says_so() -> None:
    limits = Limits()
    assert isinstance(limits.reserve((claim("500", agent="amy"),), 0.0), Lease)
    assert isinstance(limits.reserve((claim("1", agent="amy"),), 0.0), Deny)
    assert isinstance(limits.reserve((claim("500", agent="bob"),), 0.0), Lease)


def test_a_smaller_budget_after_a_reload_holds_for_what_was_spent_before() -> None:
    limits = Limits()
    reserve(limits, "400", 0.0).commit(0.0)
    assert isinstance(limits.reserve((claim("1", "400"),), 1.0), Deny)
    reserve(limits, "1", 1.0, "401")


def test_what_earlier_daemons_spent_counts_whatever_the_order_in_which_it_is_found() -> None:
    limits = Limits()
    limits.restore_spent(claim("200"), 50.0)
    limits.restore_spent(claim("200"), -20.0)
    assert isinstance(limits.reserve((claim("200"),), 60.0), Deny)
    reserve(limits, "300", 80.0)
    assert isinstance(limits.reserve((claim("1"),), 80.0), Deny)


def test_a_budget_that_nothing_fills_is_forgotten() -> None:
    limits = Limits()
    reserve(limits, "1", 0.0).commit(0.0)
    limits.sweep(50.0)
    assert limits._budgets
    limits.sweep(100.0)
    assert not limits._budgets


@pytest.mark.parametrize(
    "value",
    [True, False, None, "1", "", [1], {}, float("nan"), float("inf"), -float("inf"), 1e300, MOST + 1, -MOST - 1],
)
def test_what_is_no_number_that_every_reader_holds_is_none(value: object) -> None:
    assert exact(value) is None


def test_numbers_are_what_the_frame_says() -> None:
    assert exact(0.1) == Decimal("0.1")
    assert exact(1e-7) == Decimal("0.0000001")
    assert exact(5) == 5
    assert units(Decimal("-1")) is None
    assert units(Decimal("1e-13")) is None
    assert units(Decimal("1e-300")) is None
    assert units(Decimal("5e-324")) is None
    assert units(Decimal("-0.0")) == 0
    assert units(Decimal("1e2")) == 100 * 10**PLACES


@given(st.decimals(min_value=0, max_value=10**6, places=6) | st.integers(0, MOST).map(Decimal))
def test_units_and_their_text_are_the_number(number: Decimal) -> None:
    made = units(number)
    assert made is not None
    assert Fraction(made, 10**PLACES) == Fraction(number)
    assert counted(plain(made)) == made
    assert Decimal(plain(made)) == number


_steps = st.lists(
    st.tuples(st.sampled_from(["reserve", "commit", "release"]), st.integers(0, 60), st.integers(0, 30)), max_size=60
)


@given(_steps)
@settings(max_examples=200, deadline=None)
def test_no_order_of_calls_ever_spends_more_than_the_budget_in_any_window(steps: list[tuple[str, int, int]]) -> None:
    limits, now, open_leases, spent = Limits(), 0.0, [], []  # type: ignore[var-annotated]
    for what, amount, later in steps:
        now += later
        if what == "reserve":
            lease = limits.reserve((claim(f"{amount}.5", "100"),), now)
            if isinstance(lease, Lease):
                open_leases.append((lease, Fraction(amount) + Fraction(1, 2)))
        elif open_leases:
            lease, size = open_leases.pop(amount % len(open_leases))
            if what == "commit":
                lease.commit(now)
                spent.append((now, size))
            else:
                lease.release()
        counts = sum(size for at, size in spent if at > now - 100.0) + sum(size for _, size in open_leases)
        assert counts <= 100


def test_a_window_can_be_asked_how_long_until_there_is_room() -> None:
    budget = Budget(10.0)
    budget.add(0.0, 5)
    budget.add(4.0, 5)
    assert budget.retry_after(1, 10, 5.0) == 5.0
    assert budget.retry_after(6, 10, 5.0) == 9.0
    assert budget.retry_after(11, 10, 5.0) is None
