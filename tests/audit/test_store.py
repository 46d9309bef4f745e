from __future__ import annotations

import asyncio
import json
import os
import resource
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from logging_by_hand import (
    ARGUMENTS,
    RESULT,
    Ingested,
    call_id,
    change,
    denied,
    fill,
    fill_store,
    hold,
    intent,
    opened,
    outcome,
    whole_call,
)

from aegis_daemon.audit import journal, rollup, store, verify
from aegis_daemon.audit.chain import digest
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Admin, Approval
from aegis_daemon.audit.store import Ambiguous, CallView, NotFound, Reader

START = int(datetime(2026, 3, 1, 12, 0, tzinfo=UTC).timestamp() * 1_000_000)
MINUTE = 60_000_000


class Ticking:
    """A clock that goes on by a minute with every record."""

    def __init__(self) -> None:
        self.now = START - MINUTE

    def __call__(self) -> tuple[int, int]:
        self.now += MINUTE
        return self.now, self.now - START


def make(tmp_path: Path, write: Callable[[Journal], None]) -> Path:
    """A store with whatever `write` appends, a minute apart."""
    loop = asyncio.new_event_loop()
    log = Journal(tmp_path / "journal", durability="process", loop=loop, clock=Ticking())
    log.open()
    write(log)
    log.close()
    loop.close()
    db_path = tmp_path / "audit.db"
    assert fill_store(tmp_path / "journal", db_path) == []
    return db_path


@pytest.fixture
def twenty(tmp_path: Path) -> Path:
    """Twenty calls of two agents, two backends, four tools; records 1 to 40."""

    def write(log: Journal) -> None:
        for number in range(20):
            names = {
                "agent": ("ann", "bob")[number % 2],
                "backend": ("files", "mail")[number % 4 // 2],
                "name": ("read_file", "read_dir", "send", "send_all")[number % 4],
            }
            arguments = json.dumps({"to": f"Person_{number}%"}).encode()
            if number % 5 == 4:
                log.append(denied(number, **names), arguments)
                log.append(Admin(action="tick"))
            else:
                log.append(intent(number, **names), arguments)
                log.append(outcome(number, status="error" if number % 5 == 3 else "success"), RESULT)

    return make(tmp_path, write)


def numbers(rows: list[CallView]) -> list[int]:
    return [int(row.call_id, 16) for row in rows]


# --- searching -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, range(20)),
        ({"agent": "ann"}, range(0, 20, 2)),
        ({"agent": "nobody"}, []),
        ({"backend": "mail"}, [n for n in range(20) if n % 4 in (2, 3)]),
        ({"tool": "send"}, range(2, 20, 4)),
        ({"tool": "send*"}, [n for n in range(20) if n % 4 in (2, 3)]),
        ({"tool": "read_[!d]*"}, range(0, 20, 4)),
        ({"tool": "*_?i*"}, [n for n in range(20) if n % 4 in (0, 1)]),
        ({"method": "tools/call"}, range(20)),
        ({"method": "prompts/get"}, []),
        ({"status": "denied"}, range(4, 20, 5)),
        ({"status": "error"}, range(3, 20, 5)),
        ({"status": "success"}, [n for n in range(20) if n % 5 < 3]),
        ({"agent": "bob", "status": "denied"}, [9, 19]),
        ({"since": START + 30 * MINUTE}, range(15, 20)),
        ({"until": START + 30 * MINUTE}, range(15)),
        ({"since": START + 10 * MINUTE, "until": START + 12 * MINUTE}, [5]),
        ({"text": "person_7%"}, [7]),
        ({"text": "PERSON_1"}, [1, *range(10, 20)]),
        ({"text": "_1%"}, [1]),
        ({"text": "son%"}, []),
        ({"agent": "ann", "text": "1"}, [n for n in range(10, 20) if n % 2 == 0]),
    ],
)
def test_a_filter_finds_exactly_its_calls_newest_first(
    twenty: Path, filters: dict[str, object], expected: list[int]
) -> None:
    with Reader(twenty) as reader:
        assert numbers(reader.search(**filters)) == sorted(expected, reverse=True)  # type: ignore[arg-type]


def test_pages_follow_each_other_without_gap_or_double(twenty: Path) -> None:
    with Reader(twenty) as reader:
        found: list[CallView] = []
        while page := reader.search(limit=3, before=found[-1].seq if found else None):
            assert len(page) <= 3
            found += page
        assert numbers(found) == list(range(19, -1, -1))


def test_a_page_of_one_agent_is_read_from_its_index(twenty: Path) -> None:
    with Reader(twenty) as reader:
        for condition in ("agent_id = 'ann'", "backend_id = 'mail'", "tool_name = 'send'"):
            query = (
                f"EXPLAIN QUERY PLAN SELECT * FROM calls c WHERE c.{condition} AND c.ts >= 5 ORDER BY c.ts DESC LIMIT 5"
            )
            plan = str(reader._db.execute(query).fetchall())
            assert "USING INDEX" in plan
            assert "TEMP B-TREE" not in plan


def test_a_row_says_what_the_contract_names(twenty: Path) -> None:
    with Reader(twenty) as reader:
        row = reader.search(agent="bob", limit=1, until=START + 4 * MINUTE)[0]
    assert row.created_at == "2026-03-01T12:02:00.000000Z"
    assert row.finished_at == "2026-03-01T12:03:00.000000Z"
    assert (row.arguments, row.result, row.result_length) == ('{"to": "Person_1%"}', RESULT.decode(), len(RESULT))
    assert (row.exec_status, row.exec_duration_ms, row.exec_duration_us, row.consumed) == ("success", 1, 1500, True)
    assert (row.request_id, row.tenant_id, row.method, row.tool_name) == ("1", "default", "tools/call", "read_dir")
    assert msgspec.json.decode(msgspec.json.encode(row))["approval_result"] == "not_required"


def test_people_with_any_sqlite_tool_see_the_log_as_a_view(twenty: Path) -> None:
    db = sqlite3.connect(twenty)
    row = db.execute("SELECT created_at, exec_duration_ms FROM log WHERE agent_id = 'bob' LIMIT 1").fetchone()
    db.close()
    assert row == ("2026-03-01T12:02:00.000000Z", 1)


# --- one call ------------------------------------------------------------------------------------------------------


def test_a_call_is_shown_by_the_beginning_of_its_id_with_all_its_records(tmp_path: Path) -> None:
    def write(log: Journal) -> None:
        whole_call(log, 0xABC0 << 112)
        log.append(hold(0xABD0 << 112, ticket="7K2M"), ARGUMENTS)
        log.append(Approval(ticket="7K2M", decision="approved", by="ann", call=call_id(0xABD0 << 112)))
        log.append(intent(0xABD0 << 112, approval="approved", approver="ann", ticket="7K2M"), ARGUMENTS)
        whole_call(log, 0xDEF0 << 112)
        log.append(outcome(0xABD0 << 112), RESULT)

    with Reader(make(tmp_path, write)) as reader:
        shown = reader.show("abd")
        assert [record.seq for record in shown.records] == [3, 4, 5, 8]
        kinds = [msgspec.json.decode(record.record)["kind"] for record in shown.records]
        assert kinds == ["hold", "approval", "intent", "outcome"]
        assert [record.body for record in shown.records] == [
            ARGUMENTS.decode(),
            None,
            ARGUMENTS.decode(),
            RESULT.decode(),
        ]
        assert shown.call.approver == "ann"
        assert shown.call.result == RESULT.decode()
        assert digest(bytes(shown.records[0].record)).hex() == shown.records[0].hash
        assert reader.show(call_id(0xABD0 << 112).upper()).call == shown.call
        assert reader.show("7k2m").call == shown.call
        with pytest.raises(Ambiguous) as caught:
            reader.show("ab")
        assert caught.value.ids == [call_id(0xABC0 << 112), call_id(0xABD0 << 112)]
        for nothing in ("abe", "", "zzzz", "%", "ab*", "'"):
            with pytest.raises(NotFound, match="audit search"):
                reader.show(nothing)


def test_tail_gives_records_in_order_and_from_the_end(twenty: Path) -> None:
    with Reader(twenty) as reader:
        assert [record.seq for record in reader.tail(37)] == [38, 39, 40]
        assert [record.seq for record in reader.tail(-2)] == [39, 40]
        assert [record.seq for record in reader.tail(0, limit=2)] == [1, 2]
        assert reader.tail(40) == []
        assert reader.tail(39)[0].created_at == "2026-03-01T12:39:00.000000Z"


def test_what_counts_against_limits_comes_with_the_time_it_ended(tmp_path: Path) -> None:
    def write(log: Journal) -> None:
        for number in range(4):
            log.append(intent(number))
        log.append(outcome(0))
        log.append(outcome(1, consumed=False, status="error"))
        log.append(outcome(2, status="unknown"))
        log.append(denied(4))

    with Reader(make(tmp_path, write)) as reader:
        boot = json.loads(bytes(reader.tail(0)[0].record))["boot"]
        rows = list(reader.consumed_since(START))
        assert rows == [
            ("writer", "files", "read_file", boot, 4 * MINUTE, START + 4 * MINUTE),
            ("writer", "files", "read_file", boot, 6 * MINUTE, START + 6 * MINUTE),
        ]
        assert list(reader.consumed_since(START + 5 * MINUTE)) == rows[1:]
        asked: list[tuple[str, str]] = []
        assert list(reader.spent_since(START, lambda *names: bool(asked.append(names) or True))) == [
            (*row, None) for row in rows
        ]
        assert asked == [("files", "read_file")], "each tool once, however many calls it had"
        assert list(reader.spent_since(START, lambda backend, tool: False)) == []


def test_what_was_spent_comes_with_the_arguments(tmp_path: Path) -> None:
    def write(log: Journal) -> None:
        log.append(intent(0), b'{"amount":5}')
        log.append(outcome(0), b'{"content":[]}')

    with Reader(make(tmp_path, write)) as reader:
        assert [row[6] for row in reader.spent_since(START, lambda *_: True)] == [b'{"amount":5}']


# --- a store of version 1 ------------------------------------------------------------------------------------------


def test_a_store_of_the_first_version_is_told_how_long_its_calls_were_judged(tmp_path: Path) -> None:
    def write(log: Journal) -> None:
        log.append(hold(0, judged_us=70), ARGUMENTS)
        log.append(intent(0, judged_us=95), ARGUMENTS)
        log.append(outcome(0), RESULT)
        log.append(intent(1), b'{"note":"\\"judged_us\\":9"}')
        log.append(denied(2, judged_us=31), ARGUMENTS)
        log.append(intent(3, judged_us=12), ARGUMENTS)

    db_path = make(tmp_path, write)
    with Reader(db_path) as reader:
        judged = [call.judged_us for call in reader.search()]
        assert judged == [12, 31, 0, 95]
    change(
        db_path,
        "DROP VIEW log",
        "ALTER TABLE calls DROP COLUMN judged_us",
        "CREATE VIEW log AS SELECT call_id FROM calls",
        "PRAGMA user_version=1",
    )
    with pytest.raises(OSError, match="has version 1, this Aegis reads 3; start its own daemon once"):
        Reader(db_path)
    assert fill_store(tmp_path / "journal", db_path) == []
    with Reader(db_path) as reader:
        assert [call.judged_us for call in reader.search()] == judged
        assert reader.verify().faults == []
        assert [row[0] for row in reader._db.execute("SELECT judged_us FROM log ORDER BY seq")] == judged[::-1]


# --- a reader cannot write -----------------------------------------------------------------------------------------


def test_a_reader_cannot_change_anything(twenty: Path) -> None:
    with Reader(twenty) as reader:
        for statement in (
            "DELETE FROM records",
            "UPDATE calls SET agent_id = 'x'",
            "CREATE TABLE t (a)",
            "PRAGMA user_version=7",
        ):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader._db.execute(statement)
        reader._db.execute("PRAGMA query_only=0")
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._db.execute("DELETE FROM records")
        assert reader.verify().faults == []


def test_no_store_or_another_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"there is no audit store.*the daemon makes one when it starts"):
        Reader(tmp_path / "audit.db")
    assert not (tmp_path / "audit.db").exists()
    (tmp_path / "audit.db").write_bytes(b"x" * 5000)
    with pytest.raises(OSError, match="not a database"):
        Reader(tmp_path / "audit.db")
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(OSError, match="version 0"):
        Reader(tmp_path / "empty.db")


def test_odd_characters_in_a_path_are_no_uri(tmp_path: Path) -> None:
    odd = tmp_path / "a?mode=rw&b#c%20d"
    odd.mkdir()
    with Reader(make(odd, lambda log: fill(log, [1]))) as reader:
        assert reader.last_seq() == 2


def test_the_schema_is_made_once_and_found_again(tmp_path: Path) -> None:
    db_path = tmp_path / "audit.db"
    store.ensure_schema(db_path)
    before = db_path.stat().st_mtime_ns
    store.ensure_schema(db_path)
    assert db_path.stat().st_mtime_ns == before
    assert store.chain_head(db_path) is None


# --- verifying -----------------------------------------------------------------------------------------------------


def kinds(db_path: Path, newest: int | None = None) -> list[tuple[int, str]]:
    with Reader(db_path) as reader:
        return [(fault.seq, fault.kind) for fault in reader.verify(newest=newest).faults]


def rehash(db_path: Path, seq: int, old: str, new: str) -> None:
    """An edit by somebody who knows how hashes are made."""
    db = sqlite3.connect(db_path)
    text = db.execute("SELECT record FROM records WHERE seq = ?", (seq,)).fetchone()[0]
    assert old in text
    text = text.replace(old, new)
    db.execute("UPDATE records SET record = ?, hash = ? WHERE seq = ?", (text, digest(text.encode()).hex(), seq))
    db.commit()
    db.close()


def test_an_untouched_store_verifies_and_tells_its_progress(twenty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "PROGRESS_EVERY", 10)
    told: list[tuple[int, int]] = []
    with Reader(twenty) as reader:
        report = reader.verify(lambda done, total: told.append((done, total)), newest=40)
    assert (report.faults, report.records, report.first_seq, report.last_seq) == ([], 40, 1, 40)
    assert (report.checked_bodies, report.erased_bodies, report.checked_calls) == (36, 0, 20)
    assert told == [(10, 40), (20, 40), (30, 40), (40, 40)]


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE records SET record = replace(record, 'bob', 'eve') WHERE seq = 7"], (7, "edited")),
        (["UPDATE records SET hash = replace(hash, 'a', 'b') WHERE seq = 7"], (7, "edited")),
        (["UPDATE records SET record = '{}' WHERE seq = 7"], (7, "unreadable")),
        (["UPDATE records SET record = NULL, hash = '' WHERE seq = 7"], None),
        (["UPDATE records SET record = x'ff00' WHERE seq = 7"], (7, "unreadable")),
        (["DELETE FROM records WHERE seq = 7"], (7, "missing")),
        (["DELETE FROM records WHERE seq BETWEEN 7 AND 20"], (7, "missing")),
        (["DELETE FROM records WHERE seq < 7"], (1, "missing")),
        (["DELETE FROM records WHERE seq > 30"], (31, "missing")),
        (["DELETE FROM records"], (1, "missing")),
        (
            [
                "UPDATE records SET seq = -7 WHERE seq = 7",
                "UPDATE records SET seq = 7 WHERE seq = 9",
                "UPDATE records SET seq = 9 WHERE seq = -7",
            ],
            (7, "reordered"),
        ),
        (
            [
                "DELETE FROM records WHERE seq = 7",
                "UPDATE records SET seq = -seq WHERE seq > 7",
                "UPDATE records SET seq = -seq - 1 WHERE seq < 0",
            ],
            (7, "reordered"),
        ),
        (["INSERT INTO records SELECT 41, hash, record FROM records WHERE seq = 40"], (40, "inserted")),
        (["UPDATE bodies SET body = replace(body, 'Person', 'Nobody') WHERE seq = 7"], (7, "body_edited")),
        (["UPDATE bodies SET salt = x'00' WHERE seq = 7"], (7, "body_edited")),
        (["UPDATE bodies SET length = 999999 WHERE seq = 7"], (7, "body_edited")),
        (["DELETE FROM bodies WHERE seq = 7"], (7, "body_missing")),
        (["INSERT INTO bodies SELECT 10, part, salt, body, length FROM bodies WHERE seq = 9"], (10, "body_edited")),
        (["UPDATE calls SET agent_id = 'eve' WHERE seq = 7"], (7, "call_edited")),
        (["UPDATE calls SET consumed = 0 WHERE seq = 7"], (7, "call_edited")),
        (["UPDATE calls SET exec_status = 'denied' WHERE seq = 7"], (7, "call_edited")),
        (["DELETE FROM calls WHERE seq = 7"], (7, "call_missing")),
        (
            [
                "CREATE TEMP TABLE t AS SELECT * FROM calls WHERE seq = 7",
                "UPDATE t SET seq = 8",
                "INSERT INTO calls SELECT * FROM t",
            ],
            (0, "call_inserted"),
        ),
    ],
)
def test_every_change_in_the_file_is_found(
    twenty: Path, statements: list[str], expected: tuple[int, str] | None
) -> None:
    try:
        change(twenty, *statements)
    except sqlite3.IntegrityError:
        assert expected is None  # the schema forbids it
        return
    assert expected in kinds(twenty, newest=40)


def test_an_edit_with_a_fitting_hash_is_found_by_the_next_record(twenty: Path) -> None:
    rehash(twenty, 7, '"agent":"bob"', '"agent":"eve"')
    assert (8, "bad_link") in kinds(twenty)
    assert (7, "call_edited") in kinds(twenty)


def test_a_record_put_in_between_is_named_and_the_rest_is_not_blamed(twenty: Path) -> None:
    db = sqlite3.connect(twenty)
    text, stored = db.execute("SELECT record, hash FROM records WHERE seq = 10").fetchone()
    db.execute("UPDATE records SET seq = -seq WHERE seq > 10")
    db.execute("UPDATE records SET seq = 1 - seq WHERE seq < 0")
    forged = msgspec.json.encode({**json.loads(text), "seq": 11, "prev": stored, "action": "mode"}, order="sorted")
    db.execute("INSERT INTO records VALUES (11, ?, ?)", (digest(forged).hex(), forged.decode()))
    db.commit()
    db.close()
    found = [kind for _, kind in kinds(twenty) if kind in ("inserted", "bad_link", "reordered", "missing", "edited")]
    assert found == ["inserted"]


def test_a_cut_off_end_is_found_by_whoever_knows_the_newest_number(twenty: Path) -> None:
    change(
        twenty,
        "DELETE FROM records WHERE seq > 38",
        "DELETE FROM bodies WHERE seq > 38",
        "DELETE FROM calls WHERE seq > 38",
    )
    assert kinds(twenty) == [(0, "tallies_edited")]
    with closing(sqlite3.connect(twenty)) as db:
        rollup.rebuild(db)
        db.commit()
    assert kinds(twenty) == []  # what a chain cannot show
    assert kinds(twenty, newest=40) == [(39, "missing")]


def test_a_body_that_no_record_orders_to_go_is_missed(twenty: Path) -> None:
    change(twenty, "UPDATE bodies SET body = NULL, salt = NULL WHERE seq = 3")
    with Reader(twenty) as reader:
        report = reader.verify()
    assert [(fault.seq, fault.kind) for fault in report.faults if fault.kind != "call_edited"] == [(3, "body_missing")]
    assert (report.erased_bodies, report.checked_bodies) == (0, 35)


def test_a_store_that_is_written_to_verifies_as_of_one_moment(tmp_path: Path) -> None:
    directory, db_path = tmp_path / "journal", tmp_path / "audit.db"

    async def run() -> None:
        with opened(directory) as log:
            for number in range(50):
                whole_call(log, number)
            filled = Ingested(directory, db_path)
            filled.all(100)
            seen: list[int] = []

            def more(done: int, total: int) -> None:
                whole_call(log, 1000 + done)
                seen.append(filled.all(log.last_seq))

            with Reader(db_path) as reader, pytest.MonkeyPatch.context() as patch:
                patch.setattr(verify, "PROGRESS_EVERY", 10)
                report = reader.verify(more)
            assert (report.records, report.faults) == (100, [])
            assert seen[-1] == 120
            filled.close()

    asyncio.run(run())


# --- figures -------------------------------------------------------------------------------------------------------


@pytest.mark.matrix
def test_two_hundred_thousand_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "BACKLOG_CAP", 1 << 40)
    directory, db_path = tmp_path / "journal", tmp_path / "audit.db"
    loop = asyncio.new_event_loop()
    log = Journal(directory, durability="process", loop=loop)
    log.open()
    filled = Ingested(directory, db_path)
    appending = ingesting = 0.0
    for block in range(10):
        at = time.perf_counter()
        for number in range(block * 10_000, (block + 1) * 10_000):
            call = os.urandom(16).hex()
            log.append(intent(number, call=call, agent=f"agent-{number % 100}", name=f"tool_{number % 30}"), ARGUMENTS)
            log.append(outcome(number, call=call), RESULT)
        appending += time.perf_counter() - at
        at = time.perf_counter()
        log.ingested(filled.all(log.last_seq))
        ingesting += time.perf_counter() - at
    filled.close()
    log.close()
    loop.close()
    with Reader(db_path) as reader:
        at = time.perf_counter()
        first = reader.search(agent="agent-7", since=0, limit=50)
        searching = time.perf_counter() - at
        at = time.perf_counter()
        report = reader.verify(newest=200_000)
        verifying = time.perf_counter() - at
    assert (len(first), report.faults) == (50, [])
    with capsys.disabled():
        print(
            f"\n200 000 records: append {appending * 5:.1f} us each, {2e5 / ingesting:.0f} ingested/s, "
            f"{db_path.stat().st_size / 1e6:.0f} MB, first page of one agent {searching * 1e3:.1f} ms, "
            f"{2e5 / verifying:.0f} verified/s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
        )
