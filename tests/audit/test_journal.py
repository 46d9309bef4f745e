from __future__ import annotations

import asyncio
import errno
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from logging_by_hand import (
    ARGUMENTS,
    BOUND,
    RESULT,
    abandon,
    call_id,
    denied,
    durable,
    files_of,
    fill,
    fill_store,
    hold,
    intent,
    lines_of,
    opened,
    outcome,
    small_files,
    until,
    whole_call,
)

from aegis_daemon.audit import disk, journal
from aegis_daemon.audit.journal import AuditUnavailable, Journal
from aegis_daemon.audit.record import GENESIS, Admin, Dropped
from aegis_daemon.audit.segment import follow

# --- the chain --------------------------------------------------------------------------------------------------------


async def test_records_are_numbered_linked_and_dated_and_go_on_after_a_reopen(tmp_path: Path, durability: Any) -> None:
    times = iter(range(1000, 9000, 7))
    clock = lambda: (next(times), 5)  # noqa: E731
    with opened(tmp_path, durability, clock=clock) as log:
        first = Admin(action="start")
        assert log.append(first) == 1
        assert (first.seq, first.prev, first.kind, first.tenant, first.v) == (1, GENESIS, "admin", "default", 1)
        assert (first.ts, first.mono, first.boot) == (1000, 5, log.boot)
        assert whole_call(log, 1) == 3
        head = log.head
    with opened(tmp_path, durability, clock=clock) as log:
        assert (log.last_seq, log.head, log.durable_seq) == (3, head, 3)
        assert log.append(Dropped(count=1, reason="no id")) == 4
    lines = lines_of(tmp_path)
    assert [line.link.seq for line in lines] == [1, 2, 3, 4]
    assert [line.part for line in lines] == [None, ARGUMENTS, RESULT, None]
    assert lines[2].hash == head


async def test_every_body_has_a_salt_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        for number in range(300):
            log.append(intent(number), b"{}")
    lines = lines_of(tmp_path)
    assert len({line.salt for line in lines}) == 300
    assert {len(line.salt) for line in lines} == {16}
    assert len({line.link.body for line in lines}) == 300


async def test_the_true_length_of_a_body_that_was_cut_is_part_of_the_record(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        cut, whole = outcome(1), outcome(2)
        log.append(cut, b"x" * 10, 5000)
        log.append(whole, b"x" * 10, 10)
        assert (cut.length, whole.length) == (5000, 0)


async def test_a_body_may_hold_any_bytes(tmp_path: Path) -> None:
    bodies = [b"", b"\n", b"a\tb\n\xff\x00", bytes(range(256)) * 50]
    with opened(tmp_path) as log:
        for number, body in enumerate(bodies):
            log.append(intent(number), body)
    assert [line.part for line in lines_of(tmp_path)] == bodies


async def test_what_has_no_canonical_form_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        with pytest.raises(AuditUnavailable, match="canonical"):
            log.append(Admin(action="start", detail="\ud800"))
        assert log.append(Admin(action="start", detail="fine")) == 1
        strange = outcome(1, error_code=1 << 60)
        log.append(strange)
        assert strange.error_code == 0  # a server's number that no JSON reader keeps must not cost the record
    assert len(lines_of(tmp_path)) == 2


def test_the_path_of_a_call_loads_neither_sqlite_nor_pydantic() -> None:
    code = (
        "import sys; from aegis_daemon.audit import journal, writer; "
        "print(sorted({'sqlite3', 'sqlite_utils', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=BOUND)
    assert done.stdout.strip() == "[]"


# --- the directory ----------------------------------------------------------------------------------------------------


async def test_only_the_owner_may_look(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    with opened(directory) as log:
        log.append(Admin(action="start"))
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


async def test_a_second_journal_on_the_same_directory_is_refused_by_name(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        second = Journal(tmp_path, durability="process", loop=asyncio.get_running_loop())
        with pytest.raises(AuditUnavailable, match=f"in use by process {os.getpid()}"):
            second.open()
        log.append(Admin(action="start"))
    with opened(tmp_path) as log:
        assert log.last_seq == 1


async def test_somebody_elses_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(AuditUnavailable, match="belongs to user"), opened(tmp_path / "journal"):
        pass


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
async def test_a_directory_that_cannot_be_written_is_refused_in_so_many_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.open

    def read_only(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(code, os.strerror(code))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", read_only)
    with (
        pytest.raises(AuditUnavailable, match=f"{os.strerror(code).lower()}; give this user a writable directory"),
        opened(tmp_path / "journal"),
    ):
        pass


async def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    directory = tmp_path / "journal"
    directory.mkdir(mode=0o700)
    (directory / "seg-000001.jnl").symlink_to(target)
    with pytest.raises(AuditUnavailable), opened(directory):
        pass
    assert target.read_bytes() == b"precious"


# --- a disk that is full, or fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS, errno.EDQUOT, None])
async def test_a_failed_write_refuses_the_record_and_the_next_one_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any, code: int | None
) -> None:
    real = os.pwrite

    def failing(fd: int, data: bytes, at: int) -> int:
        if code is None:
            return real(fd, data[: len(data) // 2], at)  # a short write
        raise OSError(code, os.strerror(code))

    with opened(tmp_path, durability) as log:
        whole_call(log, 1)
        head = log.head
        monkeypatch.setattr(os, "pwrite", failing)
        for number in (2, 3):
            with pytest.raises(AuditUnavailable, match="cannot be written"):
                log.append(intent(number), ARGUMENTS)
        assert (log.last_seq, log.head) == (2, head)
        monkeypatch.setattr(os, "pwrite", real)
        assert whole_call(log, 4) == 4
        assert await durable(log, 4) is None
    assert [line.link.call for line in lines_of(tmp_path)] == [call_id(1)] * 2 + [call_id(4)] * 2
    with opened(tmp_path, durability) as log:
        assert log.last_seq == 4


async def test_a_file_that_cannot_be_made_refuses_records_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any
) -> None:
    small_files(monkeypatch)
    monkeypatch.setattr(journal, "RETRY_S", 0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path, durability) as log:
        whole_call(log, 1)
        assert log._maker is not None
        log._maker.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, hard))  # the kernel's word for a disk of 8 KiB
        try:
            with pytest.raises(AuditUnavailable, match=r"file too large|no space left"):
                fill(log, range(2, 500))
            written = log.last_seq
            assert not log.healthy
            assert log.detail.startswith("the journal")
            for _ in range(3):
                with pytest.raises(AuditUnavailable):
                    log.append(intent(1000), ARGUMENTS * 300)
            assert log.last_seq == written
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await until(lambda: _accepts(log, 1001), "accepted again")
        await until(lambda: log.healthy, "well again")
        assert await durable(log, log.last_seq) is None
        last = log.last_seq
    assert [line.link.seq for line in lines_of(tmp_path)] == list(range(1, last + 1))
    with opened(tmp_path, durability) as log:
        assert log.last_seq == last


def _accepts(log: Journal, number: int) -> bool:
    try:
        return whole_call(log, number) > 0
    except AuditUnavailable:
        return False


async def test_a_disk_without_room_for_one_file_is_a_clear_error_at_the_start(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, hard))
    try:
        with pytest.raises(AuditUnavailable, match="file too large"), opened(tmp_path / "journal"):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with opened(tmp_path / "journal") as log:
        assert log.append(Admin(action="start")) == 1


class _Disk:
    """`fdatasync` and `fsync` that fail while told to, or wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing: set[str] = set()
        self.calls = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self._real = {"fdatasync": os.fdatasync, "fsync": os.fsync}
        for name in self._real:
            monkeypatch.setattr(os, name, self._call(name))

    def _call(self, name: str) -> Callable[[int], None]:
        def call(fd: int) -> None:
            self.entered.set()
            assert self.gate.wait(BOUND)
            self.calls += name == "fdatasync"
            if name in self.failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self._real[name](fd)

        return call


async def test_after_a_failed_sync_nothing_is_promised_until_it_stands_in_a_fresh_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = _Disk(monkeypatch)
    with opened(tmp_path, "full") as log:
        assert await durable(log, whole_call(log, 1)) is None
        sync.failing = {"fdatasync"}
        log.append(intent(2), ARGUMENTS)
        log.append(intent(3), ARGUMENTS)
        told = await asyncio.gather(durable(log, 3), durable(log, 4))
        assert [type(error) for error in told] == [AuditUnavailable] * 2
        assert log.durable_seq == 2
        with pytest.raises(AuditUnavailable, match="input/output error"):
            log.append(intent(4), ARGUMENTS)
        assert not log.healthy
        assert isinstance(await durable(log, 4), AuditUnavailable)
        sync.failing = set()
        await until(lambda: log.healthy, "well again")
        assert log.durable_seq == 4
        log.append(outcome(2, status="error"))
        assert await durable(log, log.append(outcome(3, status="error"))) is None
    assert [line.link.seq for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [header.first_seq for header, _ in files_of(tmp_path)] == [
        1,
        3,
    ]  # the first record that had not been durable
    with opened(tmp_path, "full") as log:
        assert log.last_seq == 6


async def test_what_the_last_good_sync_did_not_cover_is_what_goes_into_the_fresh_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = _Disk(monkeypatch)
    with opened(tmp_path, "full") as log:
        if log._maker is not None:
            await asyncio.to_thread(log._maker.wait)  # it syncs, too
        sync.gate.clear()
        sync.entered.clear()
        first = asyncio.create_task(durable(log, log.append(intent(1), ARGUMENTS)))
        await asyncio.sleep(0)
        assert await asyncio.to_thread(sync.entered.wait, BOUND)
        log.append(intent(2), ARGUMENTS)
        log.append(intent(3), ARGUMENTS)
        sync.gate.set()
        assert await first is None
        sync.failing = {"fdatasync"}
        assert isinstance(await durable(log, 3), AuditUnavailable)
        sync.failing = set()
        await until(lambda: log.healthy, "well again")
        assert log.durable_seq == 3
    (_, _), (header, path) = files_of(tmp_path)
    assert [line.link.seq for line, _ in follow(path.read_bytes(), header.start, 1, header.prev)] == [2, 3]


async def test_a_disk_that_stays_broken_is_tried_again_and_the_records_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = _Disk(monkeypatch)
    with opened(tmp_path, "full") as log:
        assert await durable(log, whole_call(log, 1)) is None
        if log._maker is not None:
            log._maker.wait()
        sync.failing = {"fdatasync", "fsync"}
        log.append(intent(2), ARGUMENTS)
        assert isinstance(await durable(log, 3), AuditUnavailable)
        await until(lambda: log._retry is not None, "tried once")
        sync.failing = set()
        await until(lambda: log.healthy, "well again")
        assert await durable(log, log.append(outcome(2, status="error"))) is None
    assert [line.link.seq for line in lines_of(tmp_path)] == [1, 2, 3, 4]


async def test_closing_on_a_broken_disk_tells_every_waiter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = _Disk(monkeypatch)
    told: list[Exception | None] = []
    with opened(tmp_path, "full") as log:
        sync.gate.clear()
        log.when_durable(log.append(intent(1)), told.append)
        log.when_durable(log.append(intent(2)), told.append)
        sync.failing = {"fdatasync", "fsync"}
        sync.gate.set()
    assert [type(error) for error in told] == [AuditUnavailable] * 2


# --- durability -------------------------------------------------------------------------------------------------------


async def test_process_durability_needs_no_waiting(tmp_path: Path) -> None:
    told: list[object] = []
    with opened(tmp_path, "process") as log:
        seq = log.append(intent(1), ARGUMENTS)
        assert log.durable_seq == seq
        log.when_durable(seq, told.append)
        assert told == [None]


async def test_waiters_of_one_group_share_a_sync_and_are_called_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = _Disk(monkeypatch)
    with opened(tmp_path, "full") as log:
        sync.calls = 0
        sync.gate.clear()
        told: list[int] = []
        done = asyncio.Event()

        def waiter(seq: int) -> Callable[[object], None]:
            def call(error: object) -> None:
                assert error is None
                assert log.durable_seq >= seq
                told.append(seq)
                if len(told) == 64:
                    done.set()

            return call

        seqs = [log.append(intent(number), ARGUMENTS) for number in range(64)]
        mixed = seqs[1:]
        random.Random(7).shuffle(mixed)
        for seq in [seqs[0], *mixed]:
            log.when_durable(seq, waiter(seq))
        assert told == []
        assert log.durable_seq == 0
        sync.gate.set()
        await asyncio.wait_for(done.wait(), BOUND)
        assert told == seqs
        assert sync.calls <= 2
        log.when_durable(seqs[-1], waiter(seqs[-1]))  # durable already: called on the spot
        assert told[-1] == seqs[-1]
        assert len(told) == 65


async def test_what_is_appended_during_a_sync_waits_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = _Disk(monkeypatch)
    with opened(tmp_path, "full") as log:
        sync.gate.clear()
        sync.entered.clear()
        told: list[int] = []
        done = asyncio.Event()
        log.when_durable(log.append(intent(1)), lambda _: told.append(log.durable_seq))
        assert await asyncio.to_thread(sync.entered.wait, BOUND)
        log.append(intent(2))
        log.when_durable(2, lambda _: (told.append(log.durable_seq), done.set())[0])
        sync.gate.set()
        await asyncio.wait_for(done.wait(), BOUND)
        assert told == [1, 2]


async def test_a_waiter_that_fails_harms_no_other(tmp_path: Path) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))

    def broken(_: object) -> None:
        raise ValueError("broken waiter")

    with opened(tmp_path, "full") as log:
        log.append(intent(1))
        log.when_durable(1, broken)
        assert await durable(log, log.append(intent(2))) is None
    assert [str(fault["exception"]) for fault in faults] == ["broken waiter"]


async def test_closing_syncs_and_answers_whoever_waits(tmp_path: Path) -> None:
    told: list[object] = []
    with opened(tmp_path, "full") as log:
        for number in range(5):
            log.when_durable(log.append(intent(number)), told.append)
    assert told == [None] * 5
    with pytest.raises(AuditUnavailable, match="closed"):
        log.append(intent(9))
    log.close()


# --- files ------------------------------------------------------------------------------------------------------------


async def test_files_are_used_again_once_ingested_and_stale_lines_are_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any
) -> None:
    small_files(monkeypatch)
    with opened(tmp_path, durability) as log:
        for number in range(1, 400):
            whole_call(log, number)
            if number % 10 == 0:
                assert await durable(log, log.last_seq) is None
                log.ingested(log.last_seq)
        last, head = log.last_seq, log.head
        assert len(files_of(tmp_path)) <= 2 + journal.SPARES
        abandon(log)
    with opened(tmp_path, durability) as log:
        assert (log.last_seq, log.head) == (last, head)
        whole_call(log, 1000)
    lines = lines_of(tmp_path)
    assert lines[-1].link.seq == last + 2


async def test_nothing_is_used_again_before_it_is_ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_files(monkeypatch)
    with opened(tmp_path) as log:
        for number in range(1, 200):
            whole_call(log, number)
    assert [line.link.seq for line in lines_of(tmp_path)] == list(range(1, 399))


async def test_a_record_larger_than_a_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_files(monkeypatch)
    large = b"x" * 100_000
    with opened(tmp_path) as log:
        for number in range(3):
            log.append(intent(number), large)
            log.append(outcome(number))
    with opened(tmp_path) as log:
        assert log.last_seq == 6
    assert [line.part for line in lines_of(tmp_path)] == [large, None] * 3


async def test_a_backlog_that_is_too_long_refuses_until_it_is_ingested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    monkeypatch.setattr(journal, "BACKLOG_CAP", 50_000)
    with opened(tmp_path) as log:
        log.trouble = "database is locked"
        with pytest.raises(AuditUnavailable, match=r"behind .*database is locked"):
            fill(log, range(1000))
        seq = log.checkpoint()
        assert log.backlog_bytes > 50_000
        log.trouble = ""
        log.ingested(seq)
        assert log.backlog_bytes == 0
        assert log.ingested_seq == seq == log.last_seq
        whole_call(log, 2000)


async def test_while_sqlite_lacks_room_no_file_is_made_and_all_unused_ones_but_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any
) -> None:
    small_files(monkeypatch)
    with opened(tmp_path / "journal", durability, db_path=tmp_path / "audit.db") as log:
        fill(log, range(1, 300))
        assert await durable(log, log.last_seq) is None
        log.ingested(log.checkpoint())
        assert len(log._spares) == journal.SPARES
        if log._maker is not None:
            log._maker.wait(10.0)
        log.trouble = "database or disk is full"
        for _ in range(2):
            log.make_room()
            assert len(list((tmp_path / "journal").glob("seg-*"))) <= 2
        with pytest.raises(AuditUnavailable, match=r"behind .*disk is full"):
            fill(log, range(300, 500))  # in what there is
        assert len(list((tmp_path / "journal").glob("seg-*"))) <= 2
        assert await durable(log, log.last_seq) is None
        log.ingested(log.checkpoint())
        fill(log, range(500, 700))
        assert not log.yielding
        assert len(list((tmp_path / "journal").glob("seg-*.jnl"))) > 2


async def test_a_store_on_another_disk_takes_no_file_from_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    with opened(tmp_path / "journal", db_path=Path("/proc/audit.db")) as log:
        fill(log, range(1, 300))
        log.ingested(log.checkpoint())
        log.make_room()
        assert (log.yielding, len(log._spares)) == (False, journal.SPARES)


async def test_the_bell_rings_once_for_each_checkpoint(tmp_path: Path, durability: Any) -> None:
    rings: list[int] = []
    with opened(tmp_path, durability) as log:
        log.bell = lambda: rings.append(log.last_seq)
        whole_call(log, 1)
        whole_call(log, 2)
        assert len(rings) == 1
        log.checkpoint()
        if durability == "full":  # asked for a sync, and rings when it is done
            await until(lambda: len(rings) == 2, "rung for what became durable")
            assert log.checkpoint() == 4
        whole_call(log, 3)
        assert len(rings) == (3 if durability == "full" else 2)


# --- what a crash leaves ----------------------------------------------------------------------------------------------


async def test_calls_without_an_end_are_handed_back_after_a_crash(tmp_path: Path, durability: Any) -> None:
    with opened(tmp_path, durability) as log:
        whole_call(log, 1)
        log.append(intent(2), ARGUMENTS)
        log.append(hold(3), ARGUMENTS)
        log.append(hold(4), ARGUMENTS)
        log.append(intent(4, ticket="7K2M"), ARGUMENTS)
        log.append(hold(5), ARGUMENTS)
        log.append(denied(5, stage="approval"), ARGUMENTS)
        log.append(denied(6, would=True), ARGUMENTS)
        log.append(intent(6), ARGUMENTS)
        log.append(intent(7), ARGUMENTS)
        log.append(denied(7), ARGUMENTS)
        abandon(log)
    log = Journal(tmp_path, durability=durability, loop=asyncio.get_running_loop())
    found = log.open()
    try:
        assert [record.call for record in found.open_intents] == [call_id(2), call_id(4), call_id(6)]
        assert [record.call for record in found.open_holds] == [call_id(3)]
        assert found.open_intents[1].ticket == "7K2M"
        assert (found.last_seq, found.notes) == (12, [])
        for record in found.open_intents:
            log.append(outcome(int(record.call, 16), status="unknown"))
        abandon(log)
    finally:
        log.close()
    log = Journal(tmp_path, durability=durability, loop=asyncio.get_running_loop())
    assert log.open().open_intents == []
    log.close()


async def test_open_calls_survive_any_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_files(monkeypatch)
    with opened(tmp_path) as log:
        for number in (7001, 7002):
            log.append(intent(number, note="n" * number), ARGUMENTS)
        log.append(hold(7003), ARGUMENTS)
        for number in range(1, 300):
            whole_call(log, number)
            log.ingested(log.last_seq)  # the file that held them is used again long since
        log.append(outcome(7002))
        abandon(log)
    log = Journal(tmp_path, durability="process", loop=asyncio.get_running_loop())
    found = log.open()
    log.close()
    assert [record.call for record in found.open_intents] == [call_id(7001)]
    assert found.open_intents[0].note == "n" * 7001
    assert [record.call for record in found.open_holds] == [call_id(7003)]


async def test_a_line_torn_anywhere_is_overwritten_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_files(monkeypatch)
    with opened(tmp_path / "whole") as log:
        whole_call(log, 1)
        before = log._at
        log.append(intent(2), ARGUMENTS)
        after = log._at
        path = log._live.path if log._live is not None else Path()
        abandon(log)
    data = path.read_bytes()
    for cut in range(before, after, 3):
        directory = tmp_path / f"torn-{cut}"
        directory.mkdir(mode=0o700)
        (directory / path.name).write_bytes(data[:cut] + bytes(len(data) - cut))
        log = Journal(directory, durability="process", loop=asyncio.get_running_loop())
        found = log.open()
        assert (found.last_seq, found.open_intents, found.notes) == (2, [], [])
        assert whole_call(log, 3) == 4
        abandon(log)
        assert [line.link.call for line in lines_of(directory)] == [call_id(1)] * 2 + [call_id(3)] * 2
        for left in directory.iterdir():
            left.unlink()


async def test_a_header_torn_anywhere_leaves_the_chain_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    with opened(tmp_path) as log:
        log.append(intent(9000), ARGUMENTS)
        number = 0
        while log._generation < 3:
            number += 1
            whole_call(log, number)
        live = log._live
        assert live is not None
        first = live.header.first_seq
        start = live.header.start
        abandon(log)
    data = live.path.read_bytes()
    for cut in range(0, start, 7):
        live.path.write_bytes(data[:cut] + bytes(len(data) - cut))
        log = Journal(tmp_path, durability="process", loop=asyncio.get_running_loop())
        found = log.open()
        abandon(log)
        assert found.last_seq == first - 1
        assert found.open_intents[0].call == call_id(9000)


async def test_after_a_power_loss_a_file_that_follows_nothing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest file reached the disk, the end of the one before did not."""
    small_files(monkeypatch)
    with opened(tmp_path, "full") as log:
        number = 0
        while log._generation < 2:
            number += 1
            seq = whole_call(log, number)
        abandon(log)
    old = files_of(tmp_path)[0][1]
    data = old.read_bytes()
    end = data.rstrip(b"\0").rfind(b"\n", 0, -400)
    old.write_bytes(data[: end + 1] + bytes(len(data) - end - 1))
    log = Journal(tmp_path, durability="full", loop=asyncio.get_running_loop())
    found = log.open()
    assert found.last_seq < seq
    assert "left out" in found.notes[0]
    assert await durable(log, log.append(Admin(action="start"))) is None
    last = log.last_seq
    log.close()
    assert [line.link.seq for line in lines_of(tmp_path)] == list(range(1, last + 1))
    log = Journal(tmp_path, durability="full", loop=asyncio.get_running_loop())
    found = log.open()
    log.close()
    assert (found.last_seq, found.notes) == (last, [])


async def test_damage_in_the_middle_is_told_and_what_stands_behind_it_is_kept_aside(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        for number in range(1, 6):
            whole_call(log, number)
        path = log._live.path if log._live is not None else Path()
    data = bytearray(path.read_bytes())
    third = lines_of(tmp_path)[2].text
    data[data.index(third) + 20] ^= 1
    path.write_bytes(data)
    log = Journal(tmp_path, durability="process", loop=asyncio.get_running_loop())
    found = log.open()
    assert found.last_seq == 2
    assert "damaged behind record 2: 7 later records, up to 10" in found.notes[0]
    assert (tmp_path / "damaged-1.jnl").read_bytes() == bytes(data)
    whole_call(log, 6)
    log.close()
    assert [line.link.seq for line in lines_of(tmp_path)] == [1, 2, 3, 4]


async def test_where_the_journal_is_gone_the_chain_goes_on_behind_the_store(tmp_path: Path) -> None:
    directory, db_path = tmp_path / "journal", tmp_path / "audit.db"
    with opened(directory) as log:
        for number in range(1, 6):
            whole_call(log, number)
        log.append(intent(6), ARGUMENTS)
        log.append(hold(7), ARGUMENTS)
        head = log.head
    fill_store(directory, db_path)
    for path in directory.iterdir():
        path.unlink()
    log = Journal(directory, durability="process", loop=asyncio.get_running_loop(), db_path=db_path)
    found = log.open()
    assert (found.last_seq, found.head) == (12, head)
    assert [record.call for record in found.open_intents] == [call_id(6)]
    assert [record.call for record in found.open_holds] == [call_id(7)]
    assert any("the journal was missing" in note for note in found.notes)
    log.append(outcome(6, status="unknown"))
    log.close()
    assert fill_store(directory, db_path) == []
    from aegis_daemon.audit.store import Reader

    with Reader(db_path) as reader:
        report = reader.verify()
        assert (report.faults, report.records) == ([], 13)


async def test_damage_that_the_store_had_seen_before_costs_nothing(tmp_path: Path) -> None:
    directory, db_path = tmp_path / "journal", tmp_path / "audit.db"
    with opened(directory) as log:
        for number in range(1, 6):
            whole_call(log, number)
        path = log._live.path if log._live is not None else Path()
    fill_store(directory, db_path)
    data = bytearray(path.read_bytes())
    data[data.index(lines_of(directory)[4].text) + 20] ^= 1
    path.write_bytes(data)
    with opened(directory, db_path=db_path) as log:
        assert log.last_seq == 10
        whole_call(log, 6)
    assert fill_store(directory, db_path) == []
    from aegis_daemon.audit.store import Reader

    with Reader(db_path) as reader:
        assert (reader.verify().faults, reader.last_seq()) == ([], 12)


# --- kill -9 ----------------------------------------------------------------------------------------------------------

APPENDER = """
import asyncio, os, sys
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from logging_by_hand import ARGUMENTS, RESULT, intent, outcome
from aegis_daemon.audit import disk, journal
disk.SEGMENT = journal.SEGMENT = 1 << 16

async def main():
    log = journal.Journal(Path(sys.argv[1]), durability=sys.argv[2], loop=asyncio.get_running_loop())
    found = log.open()
    for record in found.open_intents:
        log.append(outcome(int(record.call, 16), status="unknown"))
    number = log.last_seq * 10
    def acknowledge(seq):
        def call(error):
            assert error is None, error
            os.write(1, b"%d\\n" % seq)
        return call
    refused = 0
    while True:
        try:
            for _ in range(7):
                number += 1
                seq = log.append(intent(number, note="n" * (number % 211)), ARGUMENTS * (number % 5))
                log.when_durable(seq, acknowledge(seq))
                if number % 3:
                    log.append(outcome(number), RESULT)
            refused = 0
        except journal.AuditUnavailable:  # the disk does not keep up
            refused += 1
            assert refused < 3000
            await asyncio.sleep(0.01)
        if number % 5 == 0:
            log.ingested(log.durable_seq - 200)
        await asyncio.sleep(0)

asyncio.run(main())
"""


def _kill_points(directory: Path, durability: str, points: int, seed: int) -> None:
    """Each round goes on where the one before was killed; nothing acknowledged may be missing in the end."""
    luck = random.Random(seed)
    paths = [str(Path(__file__).parent)]
    for _ in range(points):
        child = subprocess.Popen(
            [sys.executable, "-c", APPENDER, str(directory), durability, "-", *paths], stdout=subprocess.PIPE, bufsize=0
        )
        assert child.stdout is not None
        acknowledged = b""
        most = luck.randrange(1, 3000)
        while len(acknowledged) < most:
            more = os.read(child.stdout.fileno(), 4096)
            assert more, "the child died by itself"
            acknowledged += more
        child.send_signal(signal.SIGKILL)
        acknowledged += child.stdout.read()
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        newest = int(acknowledged[: acknowledged.rindex(b"\n")].split(b"\n")[-1])
        loop = asyncio.new_event_loop()
        log = Journal(directory, durability="process", loop=loop)
        found = log.open()
        log.close()
        loop.close()
        assert found.last_seq >= newest
        assert found.notes == []
        lines = lines_of(directory, tail=True)
        assert lines[-1].link.seq == found.last_seq
        assert lines[0].link.seq <= max(1, found.last_seq - 199), "what was not ingested is there"
        open_ones = {record.call for record in found.open_intents}
        ended = {line.link.call for line in lines if line.link.kind == "outcome"}
        assert open_ones.isdisjoint(ended)


def test_kill_9_loses_no_acknowledged_record(tmp_path: Path, durability: str) -> None:
    _kill_points(tmp_path, durability, 20, 1)


@pytest.mark.matrix
def test_kill_9_at_two_hundred_points_loses_no_acknowledged_record(tmp_path: Path, durability: str) -> None:
    _kill_points(tmp_path, durability, 200, 2)


def test_the_journal_encodes_what_it_says_it_does(tmp_path: Path) -> None:
    """The bytes on disk, by hand once."""
    loop = asyncio.new_event_loop()
    log = Journal(tmp_path, durability="process", loop=loop, clock=lambda: (17, 4))
    log.open()
    log.append(Admin(action="mode", detail="enforce"))
    log.close()
    loop.close()
    line = lines_of(tmp_path)[0]
    assert line.text == (
        b'{"action":"mode","boot":"%b","detail":"enforce","kind":"admin","mono":4,"prev":"%b",'
        b'"seq":1,"tenant":"default","ts":17,"v":1}' % (log.boot.encode(), GENESIS.encode())
    )
    assert msgspec.json.decode(line.text, type=Admin).ts == 17
    assert (tmp_path / "seg-000001.jnl").stat().st_size == disk.SEGMENT
