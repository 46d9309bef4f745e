from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from logging_by_hand import BOUND, files_of, fill, lines_of, opened, small_files, until, whole_call

from aegis_daemon.audit import writer
from aegis_daemon.audit.journal import AuditUnavailable, Journal
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.writer import WriterHandle


@asynccontextmanager
async def running(at: Path, durability: Any = "process") -> AsyncIterator[tuple[Journal, WriterHandle]]:
    with opened(at / "journal", durability, db_path=at / "audit.db") as log:
        handle = WriterHandle(log, at / "audit.db", asyncio.get_running_loop())
        try:
            yield log, handle
        finally:
            await handle.close()


def report(at: Path) -> Any:
    with Reader(at / "audit.db") as reader:
        return reader.verify()


def exists(pid: int) -> bool:
    """Whether it can still do something: an orphan that is dead waits for init, which may take its time."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc/self/stat").exists()  # gone meanwhile; without /proc nobody can tell more


async def test_a_flush_returns_when_sqlite_holds_everything(tmp_path: Path, durability: Any) -> None:
    async with running(tmp_path, durability) as (log, handle):
        for number in range(1, 20):
            seq = whole_call(log, number)
            assert await handle.flush() == seq == log.ingested_seq
            with Reader(tmp_path / "audit.db") as reader:
                assert reader.last_seq() == seq
        assert await handle.flush() == 38
        assert log.healthy
        assert log.backlog_bytes < 2000
    assert report(tmp_path).faults == []


async def test_records_reach_sqlite_without_anybody_asking(tmp_path: Path, durability: Any) -> None:
    async with running(tmp_path, durability) as (log, _):
        fill(log, range(1, 100))
        await until(lambda: log.ingested_seq == 198, "ingested")
        fill(log, range(100, 110))
        await until(lambda: log.ingested_seq == 218, "ingested")


async def test_closing_leaves_nothing_behind(tmp_path: Path, durability: Any) -> None:
    async with running(tmp_path, durability) as (log, handle):
        pid = handle.pid
        fill(log, range(1, 500))
    assert pid is not None
    assert not exists(pid)
    assert (report(tmp_path).records, report(tmp_path).faults) == (998, [])
    await handle.close()


async def test_the_writer_may_be_killed_at_any_point(
    tmp_path: Path, durability: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "RESTART_S", (0.0,))
    async with running(tmp_path, durability) as (log, handle):
        killed = 0
        for number in range(1, 1500):
            whole_call(log, number)
            if number % 100 == 0:
                await until(lambda: handle.pid is not None, "started")
                assert handle.pid is not None
                if killed % 3 == 0:
                    await until(lambda: log.ingested_seq > 0, "at work")
                os.kill(handle.pid, signal.SIGKILL)
                killed += 1
                await asyncio.sleep(0)
        assert await handle.flush() == 2998
        assert killed == 14
        assert log.healthy
    assert (report(tmp_path).records, report(tmp_path).faults) == (2998, [])


async def test_a_writer_that_was_killed_is_told_about_until_another_one_works(tmp_path: Path) -> None:
    async with running(tmp_path) as (log, handle):
        whole_call(log, 1)
        await handle.flush()
        assert handle.pid is not None
        os.kill(handle.pid, signal.SIGKILL)
        await until(lambda: handle.pid is None, "seen dead")
        assert "SIGKILL" in log.detail
        await until(lambda: log.healthy, "well again")


async def test_a_full_disk_under_the_store_is_told_and_ends(tmp_path: Path) -> None:
    async with running(tmp_path) as (log, handle):
        whole_call(log, 1)
        await handle.flush()
        assert handle.pid is not None
        resource.prlimit(handle.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        fill(log, range(2, 400))
        await until(lambda: not log.healthy, "told")
        assert "cannot be written" in log.detail
        fill(log, range(400, 410))  # calls go on: the journal has them
        with pytest.raises(AuditUnavailable, match="did not catch up"):
            await handle.flush(0.05)
        resource.prlimit(handle.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert await handle.flush() == 818
        assert log.healthy
    assert report(tmp_path).faults == []


async def test_a_locked_store_is_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path) as (log, handle):
        whole_call(log, 1)
        await handle.flush()
        other = sqlite3.connect(tmp_path / "audit.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        whole_call(log, 2)
        with pytest.raises(AuditUnavailable):
            await handle.flush(0.2)
        other.execute("ROLLBACK")
        other.close()
        assert await handle.flush() == 4
    assert report(tmp_path).faults == []


async def test_a_lost_store_is_begun_anew_with_an_admin_record_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(monkeypatch)
    async with running(tmp_path) as (log, handle):
        fill(log, range(1, 60))
        await handle.flush()
        fill(log, range(60, 62))
        await handle.flush()
    for name in ("audit.db", "audit.db-wal", "audit.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    *older, newest = files_of(tmp_path / "journal")
    for _, path in older:
        path.unlink()
    lost = newest[0].first_seq - 1
    assert lost > 0
    async with running(tmp_path) as (log, handle):
        await until(lambda: log.ingested_seq == log.last_seq == 123, "told")
    last = lines_of(tmp_path / "journal")[-1]
    assert b'"audit_gap"' in last.text
    assert b"records 1 to %d are neither in the store nor in the journal" % lost in last.text
    assert [(fault.seq, fault.kind) for fault in report(tmp_path).faults] == [(1, "missing")]


async def test_a_foreign_store_is_kept_with_an_admin_record_that_says_so(tmp_path: Path) -> None:
    async with running(tmp_path / "other") as (log, handle):
        fill(log, range(1, 30))
    (tmp_path / "audit.db").write_bytes((tmp_path / "other" / "audit.db").read_bytes())
    with opened(tmp_path / "journal") as log:
        fill(log, range(1, 4))
    async with running(tmp_path) as (log, handle):
        await until(lambda: log.last_seq == 7, "told")
        await handle.flush()
    assert b'"audit_store_replaced"' in lines_of(tmp_path / "journal")[-1].text
    assert (report(tmp_path).records, report(tmp_path).faults) == (7, [])
    assert len([name for name in os.listdir(tmp_path) if name.startswith("audit.db.other-")]) == 1


HURRY_S, MAY_HURRY = writer.HURRY_S, writer._may_hurry


@pytest.fixture(autouse=True)
def _no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not have the process replaced that a test looks at; and nobody here is root."""
    monkeypatch.setattr(writer, "HURRY_S", BOUND)
    monkeypatch.setattr(writer, "_may_hurry", lambda _: False)


def yields(pid: int) -> bool:
    """Whether a process takes only what time nobody else wants."""
    lazy = os.getpriority(os.PRIO_PROCESS, pid) == 19
    if sys.platform == "linux":
        # Only beside its own kind: Linux weighs whole sessions before it looks at priorities (autogroup).
        assert os.getsid(pid) == os.getsid(0)
        assert lazy is (os.sched_getscheduler(pid) == os.SCHED_IDLE)
    return lazy


async def test_who_waits_does_not_wait_for_a_starved_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as (log, handle):
        whole_call(log, 1)
        await handle.flush()
        first = handle.pid
        assert first is not None
        monkeypatch.setattr(writer, "HURRY_S", HURRY_S)  # only now: a busy machine may have made it hurry before
        os.kill(first, signal.SIGSTOP)  # as on a machine whose cores are all taken
        whole_call(log, 2)
        assert await handle.flush() == 4
        assert handle.pid not in (first, None)
        assert yields(handle.pid)  # type: ignore[arg-type] # again, since nobody waits any more


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a process less nice")
async def test_roots_daemon_hurries_the_writer_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_may_hurry", MAY_HURRY)
    async with running(tmp_path) as (log, handle):
        whole_call(log, 1)
        await handle.flush()
        pid = handle.pid
        assert pid is not None
        assert yields(pid)
        os.kill(pid, signal.SIGSTOP)  # as on a machine whose cores are all taken
        whole_call(log, 2)
        waiting = asyncio.create_task(handle.flush())
        await until(lambda: not yields(pid), "no longer nice")
        os.kill(pid, signal.SIGCONT)
        assert await waiting == 4
        assert yields(pid)
        await handle.close()
        assert handle.pid is None
    assert report(tmp_path).faults == []


async def test_a_daemon_that_starts_does_not_wait_for_a_nice_writer(tmp_path: Path) -> None:
    async with running(tmp_path) as (log, handle):
        assert handle.pid is not None
        assert not yields(handle.pid)  # it has not said anything yet
        whole_call(log, 1)
        await handle.flush()
        assert yields(handle.pid)


async def test_a_hurried_writer_finishes_when_the_daemon_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "HURRY_S", 0.0)
    monkeypatch.setattr(writer, "HASTE_S", 0.0)
    async with running(tmp_path) as (log, handle):
        whole_call(log, 1)
        await handle.flush()
        assert handle.pid is not None
        if yields(handle.pid):
            os.kill(handle.pid, signal.SIGSTOP)
            whole_call(log, 2)
            await handle.flush()
        last = whole_call(log, 3)
        await handle.close()
        assert log.ingested_seq == last


async def test_closing_gives_up_on_a_writer_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CLOSE_S", 0.2)
    async with running(tmp_path) as (log, handle):
        whole_call(log, 1)
        await handle.flush()
        pid = handle.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        whole_call(log, 2)
        await handle.close()
        await until(lambda: not exists(pid), "gone")
    async with running(tmp_path) as (log, handle):
        assert await handle.flush() == 4


async def test_the_last_look_of_a_starved_writer_does_not_keep_the_next_daemon_waiting(tmp_path: Path) -> None:
    pid = await asyncio.to_thread(killed_daemon, tmp_path, stopped=True)
    async with running(tmp_path) as (log, handle):
        assert log.last_seq == 3998
        assert await asyncio.wait_for(handle.flush(), BOUND) == 3998
        await until(lambda: not exists(pid), "gone")
    assert (report(tmp_path).records, report(tmp_path).faults) == (3998, [])


async def test_a_system_that_knows_no_idle_class_has_a_writer_all_the_same(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "def no(*_): raise OSError(38, 'no such call')\n"
        "os.sched_setscheduler = no\n"
        "from aegis_daemon.audit import ingest\n"
        "ingest.yield_to_everybody()\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "19"), done.stderr


async def test_a_writer_that_is_far_behind_stops_being_nice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "URGENT", 100_000)
    async with running(tmp_path) as (log, handle):
        whole_call(log, 1)
        await handle.flush()
        first = handle.pid
        assert first is not None
        assert yields(first)
        os.kill(first, signal.SIGSTOP)
        fill(log, range(2, 300))
        await until(lambda: handle.pid not in (first, None), "replaced")
        assert handle.pid is not None
        assert not yields(handle.pid)
        urgent = handle.pid
        assert await handle.flush() == 598
        whole_call(log, 300)
        await until(lambda: yields(urgent), "nice again")  # which anybody may become
        assert await handle.flush() == 600
        assert handle.pid == urgent
        assert not exists(first)
    assert report(tmp_path).faults == []


async def test_a_writer_for_whose_room_calls_wait_stops_being_nice(tmp_path: Path) -> None:
    async with running(tmp_path) as (log, handle):
        whole_call(log, 1)
        await handle.flush()
        assert handle.pid is not None
        assert yields(handle.pid)
        handle._heard("full database or disk is full")
        assert log.yielding
        assert "database or disk is full" in log.detail
        await until(lambda: handle.pid is not None and not (log.yielding and yields(handle.pid)), "no longer nice")
        whole_call(log, 2)
        assert await handle.flush() == 4
        assert not log.yielding
        handle._heard("full database or disk is full")
        handle._heard("trouble database disk image is malformed")
        assert not log.yielding  # the journal has what the store cannot take
    assert report(tmp_path).faults == []


DAEMON = """
import asyncio, os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from logging_by_hand import fill
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.writer import WriterHandle

async def main():
    at = Path(sys.argv[1])
    log = Journal(at / "journal", durability="process", loop=asyncio.get_running_loop())
    log.open()
    handle = WriterHandle(log, at / "audit.db", asyncio.get_running_loop())
    fill(log, range(1, 2))
    await handle.flush()  # the writer is at work, so it holds its lock
    fill(log, range(2, 2000))
    print(handle.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def killed_daemon(at: Path, *, stopped: bool = False) -> int:
    """Its writer; `stopped` as one that gets no time at all."""
    arguments = [sys.executable, "-c", DAEMON, str(at), str(Path(__file__).parent)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        daemon.kill()
    return pid


async def test_the_writer_of_a_killed_daemon_finishes_and_goes(tmp_path: Path) -> None:
    pid = await asyncio.to_thread(killed_daemon, tmp_path)
    async with running(tmp_path) as (log, handle):  # at once: the two take turns
        assert log.last_seq == 3998
        whole_call(log, 5000)
        assert await handle.flush() == 4000
        await until(lambda: not exists(pid), "gone")
    assert (report(tmp_path).records, report(tmp_path).faults) == (4000, [])


async def test_a_ctrl_c_in_the_daemons_terminal_does_not_reach_the_writer(tmp_path: Path) -> None:
    async with running(tmp_path) as (log, handle):
        await handle.flush()
        whole_call(log, 1)
        await handle.flush()
        pid = handle.pid
        assert pid is not None
        assert os.getpgid(pid) == pid
        os.kill(pid, signal.SIGINT)
        whole_call(log, 2)
        assert await handle.flush() == 4
        assert handle.pid == pid


async def test_the_store_is_private_whatever_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        async with running(tmp_path) as (log, handle):
            whole_call(log, 1)
            await handle.flush()
            names = [name for name in os.listdir(tmp_path) if name.startswith("audit.db")]
            modes = {name: stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in names}
    finally:
        os.umask(mask)
    assert set(modes.values()) == {0o600}
    assert "audit.db" in modes


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_the_writer_stays_small(tmp_path: Path) -> None:
    async with running(tmp_path) as (log, handle):
        whole_call(log, 1)
        await handle.flush()
        assert handle.pid is not None
        assert resident_kib(handle.pid) < 32 * 1024


async def test_an_interpreter_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "RESTART_S", (0.01,))
    real = sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    async with running(tmp_path) as (log, handle):
        assert "does not start" in log.detail
        whole_call(log, 1)
        monkeypatch.setattr(sys, "executable", real)
        assert await asyncio.wait_for(handle.flush(), BOUND) == 2
        assert log.healthy
