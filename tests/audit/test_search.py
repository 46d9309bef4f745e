from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from logging_by_hand import call_id, denied, fill_store, hold, intent, outcome

from aegis_daemon.audit import search
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Approval
from aegis_daemon.audit.search import Query, find
from aegis_daemon.audit.store import CallView, Reader

START = 1_770_000_000_000_000
SECOND = 1_000_000
CALLS = 400


def kind_of(number: int) -> dict[str, Any]:
    """What the `number`th call is like, and how it goes."""
    dice = random.Random(number)
    return {
        "who": {
            "agent": dice.choice(["ann", "bob", "cleo"]),
            "backend": dice.choice(["files", "mail"]),
            "name": dice.choice(["read", "read_all", "write", "send"]),
        },
        "goes": dice.choice(["success", "error", "denied", "asked", "would", "unknown"]),
        "policy": dice.choice(["deny.tools", "hours"]),
        "by": dice.choice(["pat", "sam"]),
        "text": dice.choice(["alpha", "beta"]),
    }


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("log")
    loop = asyncio.new_event_loop()
    ticks = itertools.count()

    def clock() -> tuple[int, int]:  # several records at one instant, and once the clock is put back
        now = START + next(ticks) // 5 * SECOND - (100 * SECOND if CALLS < next(ticks) < CALLS + 200 else 0)
        return now, now - START

    journal = Journal(at / "journal", durability="process", loop=loop, clock=clock)
    journal.open()
    for number in range(CALLS):
        it = kind_of(number)
        who, goes, body = it["who"], it["goes"], f'{{"of":"{it["text"]}"}}'.encode()
        result = f'{{"gave":"{it["text"]}-back"}}'.encode()
        if goes == "denied":
            journal.append(denied(number, policy=it["policy"], **who), body)
            continue
        if goes == "asked":
            ticket = f"T{number:03}"
            journal.append(hold(number, policy=it["policy"], ticket=ticket, **who), body)
            journal.append(Approval(call=call_id(number), decision="approved", ticket=ticket, by=it["by"]))
            journal.append(intent(number, approval="approved", approver=it["by"], ticket=ticket, **who), body)
        else:
            if goes == "would":
                journal.append(denied(number, policy=it["policy"], would=True, **who), body)
            journal.append(intent(number, **who), body)
        status = goes if goes in ("error", "unknown") else "success"
        journal.append(outcome(number, status=status), result)
    journal.close()
    loop.close()
    fill_store(at / "journal", at / "audit.db")
    return at / "audit.db"


@pytest.fixture
def reader(log: Path) -> Iterator[Reader]:
    with Reader(log) as opened:
        yield opened


def numbers(rows: list[CallView]) -> list[int]:
    return [int(row.call_id, 16) for row in rows]


def wanted(query: dict[str, Any]) -> set[int]:
    def fits(it: dict[str, Any]) -> bool:
        who, goes = it["who"], it["goes"]
        ruled = goes in ("denied", "asked", "would")
        verdict = query.get("verdict")
        return (
            query.get("agent") in (None, who["agent"])
            and query.get("backend") in (None, who["backend"])
            and (query.get("tool") in (None, who["name"]) or (query["tool"] == "read*" and "read" in who["name"]))
            and (query.get("policy") is None or (ruled and it["policy"] == query["policy"]))
            and (query.get("approver") is None or (goes == "asked" and it["by"] == query["approver"]))
            and (query.get("stage") is None or goes in ("denied", "would"))
            and query.get("text") in (None, it["text"])
            and (
                verdict in (None, goes)
                or (verdict == "allowed" and goes != "denied")
                or (verdict == "success" and goes in ("asked", "would"))
            )
        )

    return {number for number in range(CALLS) if fits(kind_of(number))}


FILTERS: dict[str, list[Any]] = {
    "agent": [None, "ann"],
    "backend": [None, "mail"],
    "tool": [None, "write", "read*"],
    "verdict": [None, "allowed", "denied", "asked", "error", "unknown", "would", "success"],
    "policy": [None, "hours"],
    "approver": [None, "pat"],
    "stage": [None, "acl"],
    "text": [None, "alpha"],
}


@pytest.mark.parametrize("seed", range(60))
def test_any_combination_finds_exactly_its_calls_page_by_page(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(search, "SLICE", 7)  # many slices, and edges between calls of one instant
    monkeypatch.setattr(search, "PROBES", (3, 50))
    dice = random.Random(seed)
    chosen: dict[str, Any] = {
        name: dice.choice(values) if dice.random() < 0.5 else None for name, values in FILTERS.items()
    }
    found: list[CallView] = []
    while page := find(reader, Query(**chosen), limit=5, before=found[-1].seq if found else None).rows:
        found += page
    assert len(found) == len(set(numbers(found)))
    assert set(numbers(found)) == wanted(chosen)
    assert [(row.created_at, row.seq) for row in found] == sorted(
        ((row.created_at, row.seq) for row in found), reverse=True
    )


def test_text_is_looked_for_where_it_is_asked_for(reader: Reader) -> None:
    def count(text: str, within: Any) -> int:
        return len(find(reader, Query(text=text, within=within), limit=CALLS).rows)

    assert count("back", "arguments") == 0
    assert count("back", "results") == count("back", "both") > 0
    assert count("alpha", "both") > count("alpha", "results") > 0


def test_a_search_whose_time_is_over_says_how_far_it_looked_and_goes_on_there(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SLICE", 16)
    now = itertools.count()
    monkeypatch.setattr("aegis_daemon.audit.search.time.monotonic", lambda: next(now) * 0.01)
    query = Query(text="nothing like that")
    before: int | None = None
    looked = 0
    while True:
        found = find(reader, query, before=before, patience_s=0.03)
        assert found.rows == []
        looked += 1
        if found.looked_to is None:
            break
        assert found.looked_to_ts
        assert before is None or found.looked_to != before
        before = found.looked_to
        assert looked < 200
    assert looked > 1
    assert find(reader, Query(text="alpha"), limit=CALLS).rows


def test_a_page_goes_on_where_its_last_call_has_been_purged(reader: Reader) -> None:
    all_calls = find(reader, Query(agent="ann"), limit=CALLS).rows
    page = find(reader, Query(agent="ann"), limit=CALLS, before=all_calls[9].seq + 1).rows
    assert {row.seq for row in page} >= {row.seq for row in all_calls[10:]}
    assert find(reader, Query(), before=0).rows == []


PLANS = [
    ({"agent": "ann"}, "calls_agent"),
    ({"backend": "mail", "verdict": "error"}, "calls_status"),
    ({"policy": "hours", "agent": "ann"}, "calls_policy"),
    ({"approver": "pat", "tool": "write"}, "calls_approver"),
    ({"verdict": "would", "agent": "ann"}, "calls_would"),
    ({"verdict": "asked", "tool": "read*"}, "calls_asked"),
    ({"stage": "acl", "backend": "mail"}, "calls_stage"),
    ({"tool": "read*"}, "calls_time"),
    ({"text": "alpha"}, "calls_time"),
]


@pytest.mark.parametrize(("filters", "index"), PLANS)
def test_a_page_is_read_from_an_index_and_entered_where_it_begins(
    reader: Reader, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any], index: str
) -> None:
    asked: list[tuple[str, tuple[object, ...]]] = []
    real = Reader.ask

    def ask(self: Reader, question: str, given: tuple[object, ...], *, until: float) -> Any:
        asked.append((question, given))
        return real(self, question, given, until=until)

    monkeypatch.setattr(Reader, "ask", ask)
    find(reader, Query(**filters), before=300, limit=5)
    page, given = next((text, given) for text, given in asked if "LEFT JOIN" in text)
    plan = str(reader._db.execute(f"EXPLAIN QUERY PLAN {page}", given).fetchall())
    assert index in plan
    assert "ts<?" in plan  # entered at the page's place, not at the newest call
    assert "TEMP B-TREE" not in plan
    assert "SCAN c" not in plan
