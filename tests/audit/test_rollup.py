from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logging_by_hand import ARGUMENTS, RESULT, call_id, change, denied, fill_store, hold, intent, outcome

from aegis_daemon.audit import rollup, store
from aegis_daemon.audit.calls import COLUMNS, Row
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Approval
from aegis_daemon.audit.rollup import DAY, HOUR, middle, percentile, read, step, write
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.totals import Filters, Total, denials, totals

START = 1_770_000_000_000_000 // DAY * DAY
MINUTE = 60_000_000


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> tuple[int, int]:
        return self.now, self.now - START


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of calls, ingested bit by bit."""
    tmp_path = tmp_path_factory.mktemp("log")
    loop, clock, dice = asyncio.new_event_loop(), Clock(), random.Random(3)
    log = Journal(tmp_path / "journal", durability="process", loop=loop, clock=clock)
    log.open()
    for number in range(300):
        clock.now += dice.randrange(30) * MINUTE
        who = {"agent": dice.choice(["ann", "bob"]), "name": dice.choice(["read", "write", ""])}
        if number % 10 == 0:
            log.append(denied(number, policy="deny.tools", **who), ARGUMENTS)
            continue
        if number % 10 == 1:
            log.append(hold(number, ticket="7K2M", **who), ARGUMENTS)
            clock.now += 2 * MINUTE
            log.append(Approval(call=call_id(number), decision="approved", ticket="7K2M", by="pat"))
        if number % 10 == 2:
            log.append(denied(number, would=True, policy="hours", **who), ARGUMENTS)
        log.append(intent(number, ticket="7K2M" if number % 10 == 1 else "", queue_wait_us=number, **who), ARGUMENTS)
        if number % 10 != 3:
            log.append(outcome(number, status="error" if number % 10 == 4 else "success", duration_us=number), RESULT)
        if number % 37 == 0:
            fill_store(tmp_path / "journal", tmp_path / "audit.db", log.last_seq)
    log.close()
    loop.close()
    fill_store(tmp_path / "journal", tmp_path / "audit.db")
    return tmp_path


@pytest.fixture
def home(written: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    shutil.copy(written / "audit.db", tmp_path / "audit.db")
    return tmp_path


def tables(db_path: Path) -> list[object]:
    with closing(sqlite3.connect(db_path)) as db:
        return [db.execute(f"SELECT * FROM {name} ORDER BY 1, 2, 3, 4, 5, 6, 7, 8").fetchall() for name in ("tallies",)]


@given(st.integers(0, 1 << 50))
def test_a_histogram_is_off_by_a_thirtieth_at_most(micros: int) -> None:
    assert abs(middle(step(micros)) - micros) <= max(micros * 0.032, 0.5)
    assert step(micros) <= step(micros + 1) <= step(micros) + 1


@given(st.dictionaries(st.integers(0, 900), st.integers(1, 10**9)))
def test_a_histogram_is_read_as_it_was_written(histogram: dict[int, int]) -> None:
    assert read(write(histogram)) == histogram


def test_percentiles_are_of_the_nearest_rank() -> None:
    histogram = dict.fromkeys(range(20), 1)
    assert [percentile(histogram, percent) for percent in (5, 50, 95, 99, 100)] == [0, 9, 18, 19, 19]
    assert percentile({}, 50) is None


def test_counts_kept_bit_by_bit_are_those_of_the_whole(home: Path) -> None:
    kept = tables(home / "audit.db")
    with closing(sqlite3.connect(home / "audit.db")) as db:
        rollup.rebuild(db)
        db.commit()
    assert tables(home / "audit.db") == kept


@pytest.mark.parametrize("by", ["agent", "backend", "tool", "hour"])
@pytest.mark.parametrize("length", [HOUR, 5 * HOUR, DAY, 2 * DAY + 7 * HOUR, 9 * DAY])
@pytest.mark.parametrize("begin", [0, 3 * HOUR, DAY - HOUR])
def test_any_time_is_counted_as_its_calls_are(written: Path, by: str, length: int, begin: int) -> None:
    since, until = START + begin, START + begin + length
    columns = {"agent": "agent_id", "backend": "backend_id", "tool": "tool_name", "hour": f"ts / {HOUR} * {HOUR}"}[by]
    with Reader(written / "audit.db") as reader:
        found = totals(reader, by, since, until)
        told = {
            (stat.agent_id or stat.tool_name or stat.backend_id or stat.start): (
                stat.calls, stat.success, stat.error, stat.denied, stat.pending, stat.would,
            )
            for stat in found
        }  # fmt: skip
        rows = reader.ask(
            f"SELECT {columns}, count(*), sum(exec_status = 'success'), sum(exec_status = 'error'), "
            "sum(exec_status = 'denied'), sum(exec_status = 'pending'), sum(would AND finished_ts > 0) FROM calls "
            "WHERE ts >= ? AND ts < ? AND tool_name <> '' GROUP BY 1",
            (since, until),
            until=float("inf"),
        )
    assert told == {row[0]: row[1:] for row in rows}


def test_stats_tell_times_and_what_was_refused_by_which_rule(home: Path) -> None:
    with Reader(home / "audit.db") as reader:
        everything = (START, START + 9 * DAY)
        (files,) = totals(reader, "backend", *everything, Filters(nameless=True))
        assert isinstance(files, Total)
        assert files.calls == 300
        assert files.approval_p50_us is not None
        assert abs(files.approval_p50_us - 2 * MINUTE) < 0.04 * 2 * MINUTE
        assert files.exec_p99_us is not None
        assert 280 < files.exec_p99_us < 310
        rules = {(each.stage, each.policy_id): each.calls for each in totals(reader, "policy", *everything)}
        refused = denials(reader, *everything)
        assert sum(each.calls for each in refused) == sum(rules.values())
        assert {each.policy_id for each in refused} == {"deny.tools", "hours"}
        assert {each.would > 0 for each in refused if each.policy_id == "hours"} == {True}
        only = totals(reader, "agent", *everything, Filters(agent="a*"))
        assert [each.agent_id for each in only] == ["ann"]


def test_a_store_of_the_version_before_is_counted_when_it_is_opened(home: Path) -> None:
    db_path = home / "audit.db"
    kept = tables(db_path)
    with closing(sqlite3.connect(db_path)) as db:
        asks = db.execute("SELECT * FROM asks").fetchall()
    assert len(asks) == 30
    for name, _ in store.INDEXES[7:]:
        change(db_path, f"DROP INDEX calls_{name}")
    change(db_path, "DROP TABLE tallies", "DROP TABLE asks", "PRAGMA user_version=1")
    store.ensure_schema(db_path)
    assert tables(db_path) == kept
    with closing(sqlite3.connect(db_path)) as db:
        assert db.execute("SELECT * FROM asks").fetchall() == asks


def test_purged_calls_are_taken_out_of_the_counts(home: Path) -> None:
    with closing(sqlite3.connect(home / "audit.db")) as db:
        assert list(rollup.differing(db, lambda: None)) == []
        found = db.execute(f"SELECT {', '.join(COLUMNS)} FROM calls WHERE seq % 3 > 0").fetchall()
        rollup.take_out(db, [Row(*row) for row in found])
        assert list(rollup.differing(db, lambda: None))
        db.execute("DELETE FROM calls WHERE seq % 3 > 0")
        assert list(rollup.differing(db, lambda: None)) == []
        rollup.forget(db, 50)
        assert db.execute("SELECT min(seq) FROM asks").fetchone()[0] > 50
        db.commit()
    kept = tables(home / "audit.db")
    with closing(sqlite3.connect(home / "audit.db")) as db:
        rollup.rebuild(db)
        db.commit()
    assert tables(home / "audit.db") == kept
    assert kept != [[]]
