from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from logging_by_hand import RESULT, change, files_of, fill, intent, opened, outcome, small_files
from test_retention import Home

from aegis_daemon.audit import disk, erasure, removals
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.removals import Removal
from aegis_daemon.audit.search import Query, find
from aegis_daemon.audit.store import Reader

SECRET = b"correct-horse-battery"


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio"


def secret(number: int, size: int = 40) -> bytes:
    """Arguments that occur nowhere else."""
    return b'{"text":"%s-%06d-%s"}' % (SECRET, number, (b"%06d" % number) * (size // 6))


def mark(number: int) -> bytes:
    return b"%s-%06d-" % (SECRET, number)


def holding(number: int, *places: Path) -> list[Path]:
    """Every file below these places that holds the arguments of a call."""
    found = []
    for path in [path for place in places for path in place.rglob("*") if path.is_file()]:
        try:
            if mark(number) in path.read_bytes():
                found.append(path)
        except FileNotFoundError:  # a new file of the journal, which has got its name meanwhile
            found += [
                ready for ready in [path.with_suffix(".jnl")] if ready.exists() and mark(number) in ready.read_bytes()
            ]
    return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.filled.close()


def calls(log: Journal, numbers: Any, size: int = 40) -> None:
    for number in numbers:
        log.append(intent(number), secret(number, size))
        log.append(outcome(number), RESULT)


async def shed(log: Journal, home: Home) -> None:
    """As the daemon does it."""
    last = log.turn_over()
    log.ingested(home.filled.all())
    files = log.lend(last)
    assert files is not None
    await asyncio.to_thread(disk.wipe, files)
    log.give_back(files, clean=True)


def erase(log: Journal, home: Home, *seqs: int) -> None:
    for detail in removals.erase_details(seqs, "a person asked"):
        log.append(home.signed("erase", detail))
    home.filled.all()
    home.work()


@pytest.mark.parametrize(("size", "count"), [(40, 60), (400, 60), (9000, 300)])
async def test_what_is_erased_is_in_no_file_any_more(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, count: int
) -> None:
    small_files(monkeypatch, 1 << 20)
    with opened(home.directory, clock=home.clock) as log:
        calls(log, range(count), size)
        log.ingested(home.filled.all())
        home.sign()
        gone, stays = 7, 8
        assert any(path.suffix == ".jnl" for path in holding(gone, tmp_path))
        assert holding(gone, home.db_path.parent)
        log.begin_shedding()
        erase(log, home, gone * 2 + 1)
        await shed(log, home)
        assert holding(gone, tmp_path) == []
        assert [path.name.partition("-")[0] for path in holding(stays, tmp_path)] == ["audit.db"]
        calls(log, range(count, count + 10), size)
        home.sign()
        report = home.report()
        assert (report.faults, report.erased_bodies, report.checked_bodies) == ([], 1, 2 * count + 19)
        assert log.shedding is False


async def test_an_erased_call_is_shown_without_its_arguments_and_found_by_no_text(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        calls(log, range(5))
        erase(log, home, 5)
    with Reader(home.db_path) as reader:
        call = reader.show(f"{2:032x}").call
        assert (call.arguments, call.arguments_hash, call.result) == (None, "", RESULT.decode())
        assert call.tool_name == "read_file"
        found = find(reader, Query(text=SECRET.decode(), within="both"))
        assert [int(row.call_id, 16) for row in found.rows] == [4, 3, 1, 0]
        gone = reader.removed(5, home.key)
        assert gone is not None
        assert (gone.seq, gone.by, gone.why) == (11, "ann", "a person asked")
        assert reader.removed(3, home.key) is None


@pytest.mark.parametrize(
    "evil",
    [
        "DELETE FROM bodies WHERE seq = 5",
        "UPDATE bodies SET salt = NULL, body = NULL WHERE seq = 5",
        "INSERT INTO removals SELECT 4, action, 'bodies of records 5: x', by, ts, 1, tree FROM removals",
    ],
)
async def test_a_body_that_is_gone_without_a_record_is_missed(home: Home, evil: str) -> None:
    with opened(home.directory, clock=home.clock) as log:
        calls(log, range(5))
        erase(log, home, 7)
    assert home.report().faults == []
    change(home.db_path, evil)
    if evil.startswith("INSERT"):
        change(home.db_path, "DELETE FROM bodies WHERE seq = 5")
    assert (5, "body_missing") in [(fault.seq, fault.kind) for fault in home.report().faults]


async def test_an_erasure_covers_nothing_that_came_after_it(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        calls(log, range(2))
        erase(log, home, 7)
        calls(log, range(2, 5))
        home.filled.all()
        assert home.rows("bodies") == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
        change(home.db_path, "UPDATE bodies SET salt = NULL, body = NULL WHERE seq = 8")
        assert (8, "body_missing") in [(fault.seq, fault.kind) for fault in home.report().faults]


async def test_a_writer_that_was_killed_between_two_steps_goes_on(home: Home, tmp_path: Path) -> None:
    with opened(home.directory, clock=home.clock) as log:
        calls(log, range(20))
        home.filled.all()
        log.append(home.signed("erase", "bodies of records 3, 7-11: x"))
        home.filled.all()
        steps = 0
        while home.db.execute("SELECT 1 FROM removals WHERE done = 0").fetchone():
            home.work(most=steps)
            assert home.report().faults == []
            home.keeper.forget()
            steps += 1
        assert steps > 2
        for number in (1, 3, 4, 5):
            assert not [path for path in holding(number, tmp_path) if path.suffix != ".jnl"]


async def test_somebody_who_reads_holds_an_erasure_up_but_not_the_log(home: Home) -> None:
    with opened(home.directory, clock=home.clock) as log:
        calls(log, range(20))
        home.filled.all()
        reader = sqlite3.connect(home.db_path)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM bodies").fetchone()
        erase(log, home, 3)
        assert home.db.execute("SELECT done FROM removals").fetchall() == [(0,)]
        calls(log, range(20, 30))
        assert home.filled.all() == 61
        reader.close()
        home.monotonic += 1
        home.work()
        assert home.db.execute("SELECT done FROM removals").fetchall() == [(1,)]


def test_a_copy_that_sqlite_left_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    salt = os.urandom(16)
    path.write_bytes(b"x" * 5000 + b"result" + salt + b"{}")
    assert erasure.found(path, {os.urandom(16), salt})
    assert not erasure.found(path, {os.urandom(16)})


async def test_a_store_with_such_a_copy_is_made_anew(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([True, False])
    monkeypatch.setattr(erasure, "found", lambda path, salts: next(told))
    with opened(home.directory, clock=home.clock) as log:
        calls(log, range(20))
        home.filled.all()
        said: list[str] = []
        home.db.set_trace_callback(said.append)
        erase(log, home, 3)
        assert said.count("VACUUM") == 1
        assert home.report().faults == []


def test_rows_that_an_earlier_erasure_took_do_not_make_the_store_anew(tmp_path: Path) -> None:
    made = Home(tmp_path)
    db = made.db
    db.execute("INSERT INTO bodies VALUES (3, 'arguments', NULL, NULL, 9)")
    db.execute("INSERT INTO removals VALUES (4, 'erase', 'bodies of records 3: x', 'ann', 0, 1, NULL)")
    eraser = erasure.Eraser(made.db_path, Removal(5, "erase", ranges=((3, 3),)))
    eraser.step(db)
    assert not eraser._unsure
    made.filled.close()


async def test_a_journal_that_was_to_shed_remembers_it(home: Home, tmp_path: Path, durability: Any) -> None:
    with opened(home.directory, durability, clock=home.clock) as log:
        calls(log, range(3))
        log.begin_shedding()
        home.filled.all()
    with opened(home.directory, durability, clock=home.clock) as log:
        assert log.shedding
        last = log.turn_over()
        assert log.lend(last) is None  # SQLite might not have all of it
        log.ingested(home.filled.all())
        for _ in range(200):
            if (files := log.lend(last)) is not None:
                break
            await asyncio.sleep(0.01)  # its last sync
        assert files
        disk.wipe(files)
        log.give_back(files, clean=True)
        fill(log, range(3, 6))
        assert home.filled.all() == 12
        assert not [path for path in holding(1, tmp_path) if path.suffix == ".jnl"]
        assert len(files_of(home.directory)) == 1
    with opened(home.directory, durability, clock=home.clock) as log:
        assert not log.shedding
        assert log.last_seq == 12
    assert home.report().faults == []
