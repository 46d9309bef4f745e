from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Admin, Intent, Outcome
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.daemon import checking
from aegis_daemon.daemon.checking import Checking

BOUND = 30.0
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Log:
    def __init__(self, at: Path) -> None:
        loop = asyncio.get_running_loop()
        self.db_path = at / "audit.db"
        self.journal = Journal(at / "journal", durability="process", loop=loop, db_path=self.db_path)
        self.journal.open()
        self.writer = WriterHandle(self.journal, self.db_path, loop)
        self.calls = 0

    async def calls_come(self, count: int) -> None:
        for _ in range(count):
            self.calls += 1
            call = f"{self.calls:032x}"
            self.journal.append(
                Intent(call=call, agent="ann", backend="files", method="tools/call", name="read"), b"{}"
            )
            self.journal.append(Outcome(call=call, status="success"), b"{}")
        await self.writer.flush(BOUND)

    def change(self, statement: str) -> None:
        with closing(sqlite3.connect(self.db_path, timeout=BOUND)) as db:
            assert db.execute(statement).rowcount == 1
            db.commit()


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    made = Log(tmp_path)
    await made.calls_come(5)
    yield made
    await made.writer.close()
    made.journal.close()


async def test_what_is_sound_is_verified_and_only_what_is_new_is_looked_at_again(log: Log) -> None:
    looks = Checking(log.db_path, lambda: log.journal.ingested_seq)
    async with asyncio.timeout(BOUND):
        await looks.look()
        assert (looks.verified, looks.fault) == (10, "")
        assert looks.at is not None
        seen = looks.at
        await looks.look()
        assert looks.at == seen  # nothing is new
        await log.calls_come(2)
        await looks.look()
    assert (looks.verified, looks.fault) == (14, "")


async def test_what_was_seen_is_looked_at_again_once_a_day(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Checking(log.db_path, lambda: log.journal.ingested_seq)
    async with asyncio.timeout(BOUND):
        await looks.look()
        log.change("UPDATE bodies SET body = '[]' WHERE seq = 3")
        await looks.look()
        assert (looks.verified, looks.fault) == (10, "")
        now = checking.monotonic()
        monkeypatch.setattr(checking, "monotonic", lambda: now + checking.WHOLE_S + 60)
        await looks.look()
    assert "record 3" in looks.fault


async def test_what_was_changed_is_said_until_it_is_mended(log: Log) -> None:
    looks = Checking(log.db_path, lambda: log.journal.ingested_seq)
    async with asyncio.timeout(BOUND):
        log.change("UPDATE bodies SET body = '[]' WHERE seq = 3")
        await looks.look()
        assert looks.verified == 0
        assert "record 3" in looks.fault
        log.change("UPDATE bodies SET body = '{}' WHERE seq = 3")
        await looks.look()
    assert (looks.verified, looks.fault) == (10, "")


async def test_another_store_in_its_place_is_looked_at_from_the_beginning(log: Log) -> None:
    looks = Checking(log.db_path, lambda: log.journal.ingested_seq)
    async with asyncio.timeout(BOUND):
        await looks.look()
        other = log.db_path.with_name("other.db")
        with closing(sqlite3.connect(log.db_path)) as db:
            db.execute("VACUUM INTO ?", (str(other),))
        await log.writer.close()
        os.rename(other, log.db_path)
        for left in ("-wal", "-shm"):
            log.db_path.with_name(f"audit.db{left}").unlink(missing_ok=True)
        log.change("UPDATE bodies SET body = '[]' WHERE seq = 3")
        await looks.look()
    assert "record 3" in looks.fault
    assert looks.verified == 0


async def test_a_look_begins_when_it_is_wanted_and_ends_with_the_daemon(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "ASKED_S", 0.0)
    looks = Checking(log.db_path, lambda: log.journal.ingested_seq)
    looks.start()
    looks.wanted()
    async with asyncio.timeout(BOUND):
        while looks.verified != 10:  # noqa: ASYNC110 - it is a process that is waited for
            await asyncio.sleep(0.02)
        log.journal.append(Admin(action="more"))
        await log.writer.flush()
        looks.wanted()
        await asyncio.sleep(0)
        await looks.close()
        await looks.close()


async def test_a_store_that_cannot_be_read_is_no_fault_of_the_log(tmp_path: Path) -> None:
    missing = Checking(tmp_path / "none.db", lambda: 7)
    async with asyncio.timeout(BOUND):
        await missing.look()
        assert (missing.verified, missing.fault) == (0, "")
        (tmp_path / "bad.db").write_bytes(b"no database" * 1000)
        with pytest.raises(OSError, match="cannot be read"):
            await Checking(tmp_path / "bad.db", lambda: 7).look()


async def test_a_look_gives_way_to_the_writer_and_is_no_trouble(tmp_path: Path) -> None:
    store = tmp_path / "audit.db"
    store.write_bytes(b"")
    watch = Checking(store, lambda: 1)
    looking = asyncio.create_task(watch.look())
    while watch._process is None:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    watch.give_way()
    await asyncio.wait_for(looking, 20)
    assert (watch.verified, watch.fault) == (0, "")
