from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from logging_by_hand import (
    ARGUMENTS,
    Ingested,
    copy_store,
    denied,
    files_of,
    fill,
    fill_store,
    hold,
    intent,
    lines_of,
    opened,
    outcome,
    small_files,
    whole_call,
)

from aegis_daemon.audit import ingest, store
from aegis_daemon.audit.record import Admin, Dropped
from aegis_daemon.audit.store import Reader


class Home:
    """A journal's directory and a store's path."""

    def __init__(self, at: Path) -> None:
        self.directory = at / "journal"
        self.db_path = at / "state" / "audit.db"

    def report(self, newest: int | None = None) -> store.Report:
        with Reader(self.db_path) as reader:
            return reader.verify(newest=newest)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def filled(home: Home) -> Iterator[Ingested]:
    made = Ingested(home.directory, home.db_path)
    yield made
    made.close()


async def test_the_store_holds_every_record_and_verifies(home: Home, filled: Ingested, durability: Any) -> None:
    with opened(home.directory, durability) as log:
        log.append(Admin(action="start"))
        fill(log, range(1, 50))
        log.append(hold(50), ARGUMENTS)
        assert filled.all(log.last_seq) == log.last_seq
        log.append(intent(50), b"\xff\n\t")
        log.append(denied(51, would=True), ARGUMENTS)
        log.append(denied(52), b"no JSON")
        log.append(Dropped(count=2))
        log.append(outcome(50, status="error", error_code=-32603, error_message="failed"))
        assert filled.all(log.last_seq) == log.last_seq == 105
    report = home.report(105)
    assert report.faults == []
    assert (report.records, report.checked_bodies, report.checked_calls) == (105, 98 + 4, 52)
    assert report.head == lines_of(home.directory)[-1].hash
    assert filled.said == []


async def test_only_what_is_asked_for_is_ingested(home: Home, filled: Ingested) -> None:
    with opened(home.directory) as log:
        fill(log, range(1, 50))
        assert filled.all(31) == 31
        assert filled.all(31) == 31
        assert filled.all(32) == 32
    assert home.report().records == 32


async def test_files_are_followed_one_after_the_other(
    home: Home, filled: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    with opened(home.directory) as log:
        for number in range(1, 300):
            whole_call(log, number)
            if number % 7 == 0:
                log.ingested(filled.all(log.last_seq - 3))
        filled.all(log.last_seq)
    assert (home.report(598).faults, filled.said) == ([], [])


async def test_a_new_ingester_goes_on_where_the_last_one_stopped(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    small_files(monkeypatch)
    with opened(home.directory) as log:
        for number in range(1, 200):
            log.append(intent(number), ARGUMENTS)
            if number > 3:
                log.append(outcome(number - 3))  # so that every restart meets calls that are half done
            if number % 9 == 0:
                assert fill_store(home.directory, home.db_path, log.last_seq) == []
    fill_store(home.directory, home.db_path)
    assert home.report(395).faults == []


class _Interrupted(Exception):
    pass


class _Brittle:
    """A connection that breaks at its `nth` statement."""

    def __init__(self, db: sqlite3.Connection, nth: int) -> None:
        self._db = db
        self._left = nth

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _Interrupted

    def execute(self, *arguments: Any) -> Any:
        if arguments[0] != "ROLLBACK":
            self._count()
        return self._db.execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        self._count()
        return self._db.executemany(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


async def test_an_interruption_at_any_statement_neither_loses_nor_doubles(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_daemon.audit.ingest.BATCH_BYTES", 2000)
    real = store.connect
    with opened(home.directory) as log:
        for number in range(1, 40):
            log.append(intent(number), ARGUMENTS)
            if number > 1:
                log.append(outcome(number - 1))
        nth = 0
        while True:
            nth += 1
            filled = Ingested(home.directory, home.db_path)
            monkeypatch.setattr(store, "connect", lambda path, nth=nth: _Brittle(real(path), nth % 20))
            try:
                done = filled.all(log.last_seq) == log.last_seq
            except _Interrupted:
                done = False
            filled.close()
            if done or nth > 1000:
                break
    assert nth < 1000
    assert nth > 20
    assert home.report(77).faults == []


def gaps(home: Home) -> list[str]:
    """What the writer should have said of the records that are missing."""
    found = (re.match(r"records (\d+) to (\d+)", fault.text) for fault in home.report().faults)
    return [f"gap {match[1]} {match[2]}" for match in found if match]


async def test_a_deleted_store_is_begun_anew_and_what_is_gone_is_told(
    home: Home, filled: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    with opened(home.directory) as log:
        fill(log, range(1, 300))
        log.ingested(filled.all(log.last_seq))
        fill(log, range(300, 303))
        for path in home.db_path.parent.iterdir():
            path.unlink()  # under the writer's hands
        filled.all(log.last_seq)
        fill(log, range(303, 305))
        filled.all(log.last_seq)
    first = next(iter(home.report().faults))
    assert first.kind == "missing"
    assert first.text.startswith("records ")
    assert filled.said == gaps(home)
    assert [fault.kind for fault in home.report().faults if fault.kind != "missing"] == []
    assert home.report().last_seq == 608


async def test_an_older_copy_of_the_store_leaves_a_gap_that_is_told(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small_files(monkeypatch)
    backup = tmp_path / "backup.db"
    with opened(home.directory) as log:
        fill(log, range(1, 6))
        log.append(intent(6), ARGUMENTS)
        fill_store(home.directory, home.db_path)
        copy_store(home.db_path, backup)
        for number in range(7, 300):
            whole_call(log, number)
            if number % 20 == 0:
                fill_store(home.directory, home.db_path, log.last_seq)
                log.ingested(log.last_seq)
        log.append(outcome(6))
    copy_store(backup, home.db_path)
    said = fill_store(home.directory, home.db_path)
    faults = home.report().faults
    assert said == gaps(home)
    assert said[0].startswith("gap 12 ")
    assert {fault.kind for fault in faults} == {"missing"}
    assert faults[0].seq == 12


async def test_an_older_copy_of_the_store_is_brought_up_to_date_where_the_journal_still_can(
    home: Home, tmp_path: Path
) -> None:
    backup = tmp_path / "backup.db"
    with opened(home.directory) as log:
        fill(log, range(1, 6))
        fill_store(home.directory, home.db_path)
        copy_store(home.db_path, backup)
        fill(log, range(6, 60))
        fill_store(home.directory, home.db_path)
        copy_store(backup, home.db_path)
        assert fill_store(home.directory, home.db_path) == []
    assert home.report(118).faults == []


@pytest.mark.parametrize("foreign_calls", [3, 5, 20])
async def test_a_store_of_another_chain_is_kept_aside(home: Home, tmp_path: Path, foreign_calls: int) -> None:
    """It has fewer, as many, or more records than ours."""
    other = Home(tmp_path / "other")
    with opened(other.directory) as log:
        fill(log, range(1, foreign_calls + 1))
    fill_store(other.directory, other.db_path)
    home.db_path.parent.mkdir()
    copy_store(other.db_path, home.db_path)
    with opened(home.directory) as log:
        fill(log, range(1, 6))
        said = fill_store(home.directory, home.db_path)
    assert [word.split()[0] for word in said] == ["aside"]
    aside = home.db_path.with_name(said[0].split()[1])
    with Reader(aside) as reader:
        assert reader.verify().records == 2 * foreign_calls
    assert (home.report(10).faults, home.report().first_seq) == ([], 1)


async def test_a_locked_store_is_an_error_now_and_no_loss_later(
    home: Home, filled: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.connect

    def impatient(path: Path) -> sqlite3.Connection:
        db = real(path)
        db.execute("PRAGMA busy_timeout=20")
        return db

    monkeypatch.setattr(store, "connect", impatient)
    with opened(home.directory) as log:
        fill(log, range(1, 6))
        filled.all(log.last_seq)
        fill(log, range(6, 12))
        other = sqlite3.connect(home.db_path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                filled.all(log.last_seq)
        other.execute("ROLLBACK")
        other.close()
        assert filled.all(log.last_seq) == 22
    assert home.report(22).faults == []


async def test_a_store_that_may_not_grow_is_an_error_now_and_no_loss_later(
    home: Home, filled: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.connect
    pages = [30]

    def bounded(path: Path) -> sqlite3.Connection:
        db = real(path)
        db.execute(f"PRAGMA max_page_count={pages[0]}")
        return db

    monkeypatch.setattr(store, "connect", bounded)
    with opened(home.directory) as log:
        fill(log, range(1, 6))
        filled.all(log.last_seq)
        fill(log, range(6, 200))
        for _ in range(2):
            with pytest.raises(sqlite3.OperationalError, match="full"):
                filled.all(log.last_seq)
        assert home.report().records == 10  # what was there can be read all the while
        pages[0] = 100_000
        assert filled.all(log.last_seq) == 398
    assert home.report(398).faults == []


@pytest.mark.parametrize("was_full", [False, True])
async def test_on_a_disk_without_much_room_sqlites_log_does_not_grow(
    home: Home, filled: Ingested, monkeypatch: pytest.MonkeyPatch, was_full: bool
) -> None:
    real = store.connect
    pages = [30 if was_full else 100_000]

    def bounded(path: Path) -> sqlite3.Connection:
        db = real(path)
        db.execute(f"PRAGMA max_page_count={pages[0]}")
        db.execute("PRAGMA synchronous=OFF")
        return db

    monkeypatch.setattr(store, "connect", bounded)
    monkeypatch.setattr(ingest, "BATCH_BYTES", 1 << 15)
    monkeypatch.setattr(ingest, "_urgent", True)
    monkeypatch.setattr(ingest, "ROOM", 0 if was_full else 1 << 62)
    wal = home.db_path.with_name("audit.db-wal")
    with opened(home.directory) as log:
        fill(log, range(1, 300))
        if was_full:
            with pytest.raises(sqlite3.OperationalError) as error:
                filled.all(log.last_seq)
            assert ingest._trouble(error.value) == "full"
            pages[0] = 100_000
        assert filled.all(log.last_seq) == 598
        assert home.db_path.stat().st_size > 1 << 19
        assert wal.stat().st_size < 300_000
        if was_full:  # it has caught up, and there is room
            fill(log, range(300, 600))
            assert filled.all(log.last_seq) == 1198
            assert wal.stat().st_size > 1 << 19
    assert home.report().faults == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Home]:
    """40 MB, which is what five of the journal's files take."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m,mode=700", "tmpfs", str(tmp_path)], check=True)
    yield Home(tmp_path)
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which is root's")
async def test_the_journals_unused_files_do_not_keep_sqlite_from_emptying_the_others(small_disk: Home) -> None:
    filled = Ingested(small_disk.directory, small_disk.db_path)
    with opened(small_disk.directory, db_path=small_disk.db_path) as log:
        whole_call(log, 1)
        filled.all(log.last_seq)
        for number in range(2, 43):
            log.append(intent(number), b'"%b"' % (b"p" * 400_000))
        assert len(files_of(small_disk.directory)) == 3
        assert log._maker is not None
        log._maker.wait()
        assert log._maker.path is not None  # a fourth one, which was faster than SQLite
        words = []
        while log.ingested_seq < log.last_seq:
            try:
                while filled.ingester.step(log.checkpoint()):
                    log.ingested(filled.ingester.seq)
                log.ingested(filled.ingester.seq)
            except sqlite3.OperationalError as error:
                words.append(ingest._trouble(error))
                assert len(words) < 20, words
                log.make_room()
        assert set(words) == {"full"}
        assert not log.yielding
    filled.close()
    assert small_disk.report().faults == []


async def test_what_is_no_database_is_left_alone(home: Home, filled: Ingested) -> None:
    home.db_path.parent.mkdir()
    home.db_path.write_bytes(b"a letter to my mother" * 100)
    with opened(home.directory) as log:
        fill(log, range(1, 6))
        with pytest.raises(sqlite3.Error, match="not a database"):
            filled.all(log.last_seq)
    assert home.db_path.read_bytes().startswith(b"a letter")


async def test_a_store_of_a_newer_version_is_left_alone(home: Home, filled: Ingested) -> None:
    with opened(home.directory) as log:
        fill(log, range(1, 3))
        filled.all(log.last_seq)
        filled.close()
        db = sqlite3.connect(home.db_path)
        db.execute("PRAGMA user_version=99")
        db.close()
        with pytest.raises(sqlite3.Error, match=f"version 99, this Aegis knows {store.SCHEMA}; run a newer Aegis"):
            filled.all(log.last_seq)


async def test_damage_in_the_journal_is_a_gap_and_not_a_halt(
    home: Home, filled: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    with opened(home.directory) as log:
        fill(log, range(1, 100))
        line = lines_of(home.directory)[6]
        path = next(path for path in home.directory.glob("seg-*.jnl") if line.text in path.read_bytes())
        data = bytearray(path.read_bytes())
        data[data.index(line.text) + 20] ^= 1
        path.write_bytes(data)
        assert filled.all(log.last_seq) == 198
    assert filled.said == ["gap 7 7"]
    assert [(fault.seq, fault.kind) for fault in home.report().faults][:1] == [(7, "missing")]


async def test_the_store_and_its_folder_are_private(home: Home) -> None:
    mask = os.umask(0)
    try:
        with opened(home.directory) as log:
            fill(log, range(1, 3))
            fill_store(home.directory, home.db_path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(home.db_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.db_path.parent.stat().st_mode) == 0o700


async def test_a_link_in_place_of_the_store_is_not_followed(home: Home, filled: Ingested, tmp_path: Path) -> None:
    home.db_path.parent.mkdir()
    home.db_path.symlink_to(tmp_path / "elsewhere.db")
    with opened(home.directory) as log:
        fill(log, range(1, 3))
        with pytest.raises(sqlite3.Error):
            filled.all(log.last_seq)
    assert not (tmp_path / "elsewhere.db").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names descriptors by /proc")
async def test_the_journal_is_synced_before_what_was_read_from_it_is_committed(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power loss could leave SQLite with records that the chain then makes a second time."""
    small_files(monkeypatch)
    real_sync, real_connect = ingest.sync_file, store.connect
    events: list[str] = []

    def sync(fd: int) -> None:
        events.append(f"sync {os.readlink(f'/proc/self/fd/{fd}')}")
        real_sync(fd)

    class Told(_Brittle):
        def execute(self, *arguments: Any) -> Any:
            events.append(arguments[0])
            return super().execute(*arguments)

    monkeypatch.setattr(ingest, "sync_file", sync)
    monkeypatch.setattr(store, "connect", lambda path: Told(real_connect(path), 1000))
    ingester = ingest.Ingester(home.directory, home.db_path, sync=True, say=print)
    with opened(home.directory) as log:
        fill(log, range(1, 60))
        while ingester.step(log.last_seq):
            pass
        ingester.close()
        synced: set[str] = set()
        for event in events:
            if event.startswith("sync"):
                synced.add(event.split()[1])
            elif event == "COMMIT":
                assert {str(path) for header, path in files_of(home.directory) if header.first_seq <= 118} <= synced
    assert "COMMIT" in events
    assert len(synced) > 2
