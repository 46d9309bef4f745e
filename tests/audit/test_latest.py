from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from logging_by_hand import fill_store

from aegis_daemon.audit import latest
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.latest import HOUR, Latest
from aegis_daemon.audit.record import Approval, Denied, Hold, Intent, Outcome
from aegis_daemon.audit.store import Reader

START = int(datetime(2026, 3, 1, 12, 0, tzinfo=UTC).timestamp() * 1_000_000)
SECOND = 1_000_000


class Log:
    """Writes calls at times of the test's choice."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.now = START
        self._loop = asyncio.new_event_loop()
        self._calls = 0
        self.journal = Journal(
            at / "journal", durability="process", loop=self._loop, clock=lambda: (self.now, self.now - START)
        )
        self.journal.open()

    def _facts(self, more: dict[str, Any]) -> dict[str, Any]:
        self._calls += 1
        facts = {"agent": "amy", "backend": "files", "method": "tools/call", "name": "read", **more}
        return {"call": f"{self._calls:032x}", **facts}

    def ran(self, us: int = 1000, status: str = "success", **more: Any) -> None:
        facts = self._facts(more)
        self.journal.append(Intent(**facts), b"{}")
        self.journal.append(Outcome(call=facts["call"], status=status, duration_us=us), b"{}")

    def refused(self, **more: Any) -> None:
        self.journal.append(Denied(stage="acl", **self._facts(more)), b"{}")

    def asked(self, seconds: float, decision: str = "approved", **more: Any) -> None:
        facts = self._facts(more)
        self.journal.append(Hold(ticket="K7Q2", **facts), b"{}")
        self.now += int(seconds * SECOND)
        self.journal.append(Approval(call=facts["call"], decision=decision, ticket="K7Q2", by="ann", via="cli"))

    def read(self, **more: Any) -> Latest:
        self.journal.close()
        self._loop.close()
        fill_store(self.at / "journal", self.at / "audit.db")
        return Latest(Reader(self.at / "audit.db"), **more)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def test_calls_are_counted_by_the_hour_they_began_and_how_they_ended(log: Log) -> None:
    log.now -= 2 * HOUR
    log.ran()  # too old
    log.now = START
    log.ran()
    log.ran(status="error")
    log.refused()
    log.now += HOUR
    log.ran()
    log.asked(1)
    found = [(hour.ts - START, hour.status, hour.count) for hour in log.read().hours(START - HOUR)]
    assert sorted(found) == [
        (0, "denied", 1), (0, "error", 1), (0, "success", 1), (HOUR, "pending", 1), (HOUR, "success", 1),
    ]  # fmt: skip


def test_what_would_have_been_refused_is_counted_by_rule_and_found(log: Log) -> None:
    def observed(rule: str = "a rule", **more: Any) -> None:
        facts = log._facts(more)
        log.journal.append(Denied(stage="acl", policy=rule, would=True, **facts), b"{}")
        log.journal.append(Intent(**facts), b"{}")
        log.journal.append(Outcome(call=facts["call"], status="success", duration_us=1), b"{}")

    observed()  # too old
    log.now += SECOND
    observed(agent="bob")
    observed(name="write")
    log.now += SECOND
    observed()
    observed("another rule")
    log.refused()
    log.ran()
    asked = log.read()
    rows = [(row.stage, row.rule, row.count, row.agents, row.tools, row.last_ts) for row in asked.would(START + 1)]
    assert rows == [
        ("acl", "a rule", 3, 2, 2, START + 2 * SECOND),
        ("acl", "another rule", 1, 1, 1, START + 2 * SECOND),
    ]
    with Reader(log.at / "audit.db") as reader:
        assert len(reader.search(status="would")) == 5
        assert len(reader.search(status="denied")) == 1


def test_calls_without_a_name_are_left_out(log: Log) -> None:
    log.ran(name="", method="tools/list")
    log.ran(name="file:///x", method="resources/read")
    assert [(row.name, row.count) for row in log.read().tools(0)] == [("file:///x", 1)]


def test_tools_have_their_median_and_their_slowest_twentieth(log: Log) -> None:
    for us in range(1, 101):
        log.ran(us)
    log.ran(7, name="once")
    log.refused(name="never")
    log.ran(5, backend="blog")
    read, *others = log.read().tools(0)
    assert (read.backend, read.name, read.count, read.p50_us, read.p95_us) == ("files", "read", 100, 50, 95)
    assert {(row.backend, row.name, row.p50_us, row.p95_us) for row in others} == {
        ("files", "once", 7, 7), ("files", "never", None, None), ("blog", "read", 5, 5),
    }  # fmt: skip


def test_tools_say_how_their_calls_ended_and_when_the_last_one_was(log: Log) -> None:
    log.ran()
    log.ran(status="error")
    log.ran(status="unknown")
    log.refused()
    log.now += SECOND
    log.asked(5)
    (row,) = log.read().tools(0)
    assert (row.success, row.error, row.unknown, row.denied, row.waiting, row.count) == (1, 1, 1, 1, 1, 5)
    assert row.last_ts == START + SECOND


def test_decisions_are_timed_from_the_ask(log: Log) -> None:
    log.asked(3)
    log.asked(40, "rejected")
    log.asked(600, "expired")
    log.asked(1, "consumed")
    log.asked(1, "voted")
    assert log.read().decided(0) == [40.0, 3.0]


def test_a_name_that_looks_like_a_decision_is_none(log: Log) -> None:
    log.ran(name='x","kind":"approval","decision":"approved')
    assert log.read().decided(0) == []


def test_every_call_beats_in_its_hour(log: Log) -> None:
    log.ran()
    log.ran(name="", method="ping")
    log.now += HOUR
    log.refused()
    assert log.read().beats(0) == [(START, 2), (START + HOUR, 1)]


def test_an_empty_log_has_nothing_to_say(log: Log) -> None:
    log.journal.append(Approval(decision="approved", ticket="K7Q2"))
    asked = log.read()
    assert (asked.hours(0), asked.tools(0), asked.decided(0), asked.beats(0), asked.capped(0)) == (
        [],
        [],
        [],
        [],
        False,
    )


def test_no_question_reads_more_than_its_share(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest, "CALLS", 10)
    monkeypatch.setattr(latest, "HEAT", 5)
    monkeypatch.setattr(latest, "DECISIONS", 2)
    for number in range(12):
        log.now += SECOND
        log.ran(name=f"tool {number}")
    for _ in range(4):
        log.asked(1)
    asked = log.read()
    assert sum(hour.count for hour in asked.hours(0)) == 10
    assert asked.capped(0)
    assert {row.name for row in asked.tools(0, limit=3)} <= {"read", *(f"tool {number}" for number in range(6, 12))}
    assert len(asked.tools(0, limit=3)) == 3
    assert sum(count for _, count in asked.beats(0)) == 5
    assert len(asked.decided(0)) == 2


@pytest.mark.parametrize(
    "question",
    [
        lambda asked: asked.hours(0), lambda asked: asked.tools(0), lambda asked: asked.beats(0),
        lambda asked: asked.decided(0), lambda asked: asked.capped(0),
    ],
)  # fmt: skip
def test_a_question_that_takes_too_long_is_given_up(log: Log, question: Callable[[Latest], Any]) -> None:
    for _ in range(2500):
        log.ran()
    asked = log.read(patience_s=-1)
    with pytest.raises(TimeoutError):
        question(asked)


def test_figures_change_nothing(log: Log) -> None:
    log.ran()
    asked = log.read()
    before = (log.at / "audit.db").read_bytes()
    for question in (asked.hours, asked.tools, asked.decided, asked.beats, asked.capped):
        question(0)
    assert (log.at / "audit.db").read_bytes() == before
