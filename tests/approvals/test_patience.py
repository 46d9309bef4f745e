"""What a client is known to bear, what it teaches, and what it cannot teach."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import Clock

from aegis_daemon.approvals.patience import (
    BUDGETS_S,
    FORGET_S,
    LEAST_S,
    REMEMBERED,
    UNKNOWN_S,
    Cancelled,
    Patience,
    configured,
    known,
    lesson,
)
from aegis_daemon.core.runtime import HoldRule

AUTO = HoldRule()
AGES = st.floats(0.0, 3600.0)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    made.execute("PRAGMA synchronous=OFF")
    yield made
    made.close()


# --- known ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "seconds"),
    [
        ("claude-code", 600.0),
        ("claude-code/2.1", 600.0),
        ("Visual Studio Code - Insiders", 600.0),
        ("Visual Studio Code", 600.0),
        ("opencode", 600.0),
        ("gemini-cli-mcp-client", 570.0),
        ("Goose", 270.0),
        ("codex-mcp-client", 50.0),
        ("github-copilot-developer", 150.0),
        ("cursor-vscode", 45.0),
        ("claude-ai", 45.0),
        ("mcporter", 25.0),
        ("openclaw-gateway", 25.0),
        ("", UNKNOWN_S),
        ("x claude-code", UNKNOWN_S),
    ],
)
def test_clients_are_known_by_what_their_name_begins_with(client: str, seconds: float) -> None:
    assert known(client) == seconds


def test_every_beginning_in_the_table_finds_itself() -> None:
    assert {prefix: known(prefix) for prefix in BUDGETS_S} == BUDGETS_S


def test_an_agents_own_setting_goes_before_its_clients_and_that_before_the_general_one() -> None:
    rule = HoldRule(9.0, (("codex*", 1.0), ("co*", 2.0)), {"amy": 0.0})
    assert configured(rule, "amy", "codex") == 0.0
    assert configured(rule, "bob", "Codex-MCP") == 1.0
    assert configured(rule, "bob", "cow") == 2.0
    assert configured(rule, "bob", "") == 9.0
    assert configured(AUTO, "bob", "codex") is None


# --- learned ----------------------------------------------------------------------------------------------------------


@given(AGES, AGES, st.floats(0.001, 1e6))
def test_a_lesson_is_shorter_than_both_ages_and_never_under_a_second(one: float, two: float, pause: float) -> None:
    taught = lesson(Cancelled(one, 1000.0 + one), Cancelled(two, 1000.0 + one + pause + two))
    punctual = abs(one - two) <= 0.5 + 0.05 * max(one, two)
    assert (taught is not None) is punctual
    if taught is not None:
        assert taught >= LEAST_S
        assert taught == LEAST_S or taught < min(one, two)


@given(AGES, AGES, st.floats(0.001, 3600.0))
def test_calls_that_were_open_at_the_same_time_teach_nothing(one: float, two: float, overlap: float) -> None:
    first = Cancelled(one, 10_000.0)
    second = Cancelled(two + overlap, 10_000.0 + two)
    assert lesson(first, second) is None


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 100.0)), max_size=12))
def test_what_is_learned_only_goes_down(given: list[tuple[float, float]]) -> None:
    clock = Clock(1e6)
    patience = Patience(sqlite3.connect(":memory:", isolation_level=None), clock.now)
    before = patience.budget(AUTO, "amy", "odd")
    for age, pause in given:
        clock.passes(pause + age)
        patience.gave_up("amy", "odd", age)
        after = patience.budget(AUTO, "amy", "odd")
        assert LEAST_S <= after <= before
        before = after
    assert patience.budget(AUTO, "bob", "odd") == UNKNOWN_S
    patience._db.close()


def taught(patience: Patience, clock: Clock, age: float, agent: str = "amy", client: str = "odd") -> None:
    for _ in range(2):
        clock.passes(age)
        patience.gave_up(agent, client, age)


def test_what_was_learned_is_kept_for_a_month(db: sqlite3.Connection) -> None:
    clock = Clock(1e6)
    taught(Patience(db, clock.now), clock, 10.0)
    clock.passes(FORGET_S - 1)
    assert Patience(db, clock.now).budget(AUTO, "amy", "odd") == 8.0
    clock.passes(2)
    assert Patience(db, clock.now).budget(AUTO, "amy", "odd") == UNKNOWN_S


def test_the_configuration_is_not_overruled_by_what_a_client_does(db: sqlite3.Connection) -> None:
    clock = Clock(1e6)
    patience = Patience(db, clock.now)
    taught(patience, clock, 10.0)
    assert patience.budget(HoldRule(60.0), "amy", "odd") == 60.0
    assert patience.budget(HoldRule(clients=(("odd", 60.0),)), "amy", "odd") == 60.0


def test_names_without_end_do_not_fill_the_memory_or_the_disk(db: sqlite3.Connection) -> None:
    clock = Clock(1e6)
    patience = Patience(db, clock.now)
    for n in range(REMEMBERED + 10):
        taught(patience, clock, 10.0, client=f"odd{n}")
    assert len(patience._learned) == len(patience._last) == REMEMBERED
    assert db.execute("SELECT count(*) FROM patience").fetchone() == (REMEMBERED,)
    assert patience.budget(AUTO, "amy", "odd0") == UNKNOWN_S
    assert patience.budget(AUTO, "amy", f"odd{REMEMBERED + 9}") == 8.0


def test_one_agents_names_push_no_other_agents_lesson_out(db: sqlite3.Connection) -> None:
    clock = Clock(1e6)
    patience = Patience(db, clock.now)
    taught(patience, clock, 10.0, agent="bob")
    clock.passes(20.0)
    patience.gave_up("bob", "half", 20.0)
    for n in range(1100):
        taught(patience, clock, 10.0, client=f"odd{n}")
    assert patience.budget(AUTO, "bob", "odd") == 8.0
    assert Patience(db, clock.now).budget(AUTO, "bob", "odd") == 8.0
    clock.passes(20.0)
    patience.gave_up("bob", "half", 20.0)
    assert patience.budget(AUTO, "bob", "half") == 16.0


def test_a_lesson_that_cannot_be_written_holds_all_the_same(db: sqlite3.Connection) -> None:
    clock = Clock(1e6)
    patience = Patience(db, clock.now)
    db.execute("DROP TABLE patience")
    taught(patience, clock, 10.0)
    assert patience.budget(AUTO, "amy", "odd") == 8.0
