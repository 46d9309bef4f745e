"""What was promised is there: after any kill, any power loss, and syncs that failed once and then say all is well."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from logging_by_hand import ARGUMENTS, RESULT, Ingested, abandon, files_of, intent, outcome, small_files
from lying_disk import LyingDisk

from aegis_daemon.audit import journal
from aegis_daemon.audit.journal import AuditUnavailable, Journal
from aegis_daemon.audit.segment import follow
from aegis_daemon.audit.store import Reader


class Lives:
    """One journal through many lives. `promised` and `stored` are records (number and hash) that must not go."""

    def __init__(self, at: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.luck = random.Random(seed)
        self.at = at / "journal"
        self.disk = LyingDisk(self.at, self.luck, monkeypatch)
        self.promised: dict[int, str] = {}
        self.store = at / "audit.db"
        self.stored = 0
        self.stored_head = ""
        self.number = 0
        self.figures = {
            "lives": 0,
            "kills": 0,
            "power losses": 0,
            "faults": 0,
            "promised": 0,
            "refused": 0,
            "ingests failed": 0,
        }
        small_files(monkeypatch)
        monkeypatch.setattr(journal, "RETRY_S", 0.0)

    async def live(self) -> None:
        luck, disk = self.luck, self.disk
        log = Journal(self.at, durability="full", loop=asyncio.get_running_loop(), db_path=self.store)
        found = log.open()
        self.figures["lives"] += 1
        self.check(found.last_seq)
        for record in found.open_intents:
            log.append(outcome(int(record.call, 16), status="unknown"))
        for _ in range(luck.randrange(1, 12)):
            if luck.random() < 0.25:
                disk.fail_syncs = luck.randrange(1, 3)
            elif luck.random() < 0.1:
                disk.fail_writes = luck.randrange(1, 3)
            for _ in range(luck.randrange(1, 12)):
                self.call(log)
            if luck.random() < 0.7:
                await asyncio.sleep(luck.choice((0, 0, 0.001, 0.004)))
            if luck.random() < 0.3:
                self.ingest(log.checkpoint())
                log.ingested(self.stored)
        if luck.random() < 0.3:
            log.close()
        else:
            abandon(log)
            self.figures["kills"] += 1
        if luck.random() < 0.5:
            self.ingest(None)  # the last look of a writer that survives its daemon
        disk.fail_syncs = disk.fail_writes = 0
        if luck.random() < 0.5:
            disk.lose_power()
            self.figures["power losses"] += 1

    def ingest(self, target: int | None) -> None:
        """As the writer does it: what fails is tried again."""
        filled = Ingested(self.at, self.store)
        for _ in range(3):
            try:
                filled.all(target)
                break
            except OSError:
                self.figures["ingests failed"] += 1
        filled.close()
        assert filled.said == [], filled.said
        if not self.store.exists():
            return
        with closing(sqlite3.connect(self.store)) as db:
            found = db.execute("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1").fetchone()
        if found is not None:
            self.stored, self.stored_head = found

    def call(self, log: Journal) -> None:
        self.number += 1
        try:
            for record, part in (
                (intent(self.number), ARGUMENTS * self.luck.randrange(9)),
                (outcome(self.number), RESULT),
            ):
                seq = log.append(record, part)
                log.when_durable(seq, self.waiter(seq, log.head))
        except AuditUnavailable:
            self.figures["refused"] += 1

    def waiter(self, seq: int, hash: str) -> Callable[[AuditUnavailable | None], None]:
        def told(failure: AuditUnavailable | None) -> None:
            if failure is None:
                self.promised[seq] = hash
                self.figures["promised"] += 1

        return told

    def check(self, last_seq: int) -> None:
        there: dict[int, str] = {}
        for header, path in files_of(self.at):
            for line, _ in follow(path.read_bytes(), header.start, header.first_seq - 1, header.prev):
                there[line.link.seq] = line.hash
        assert last_seq >= max(self.promised, default=0), "a promise was lost"
        assert last_seq >= self.stored, "the store knows more than the journal"
        assert there.get(self.stored, self.stored_head) == self.stored_head, "the store went another way"
        for seq, hash in self.promised.items():
            assert seq <= self.stored or there.get(seq) == hash, f"record {seq} was promised"
        # What SQLite has may be in no file any more, or in one that was deleted and came back.
        assert [seq for seq in sorted(there) if seq > self.stored] == list(range(self.stored + 1, last_seq + 1))


def _lives(at: Path, count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    lives = Lives(at, seed, monkeypatch)

    async def all_of_them() -> None:
        for _ in range(count):
            await lives.live()
        Journal(lives.at, durability="full", loop=asyncio.get_running_loop(), db_path=lives.store).open()

    asyncio.run(all_of_them())
    lives.ingest(None)
    with Reader(lives.store) as reader:
        assert reader.verify().faults == []
        assert reader.verify().records == lives.stored >= max(lives.promised)
    return lives.figures | {"faults": lives.disk.failed}


@pytest.mark.parametrize(("lives", "seed"), [(40, 1), (40, 2), pytest.param(2000, 3, marks=pytest.mark.matrix)])
def test_nothing_promised_is_lost_to_kills_power_losses_and_syncs_that_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: int, seed: int
) -> None:
    figures = _lives(tmp_path, lives, seed, monkeypatch)
    print(figures)
    assert figures["promised"] > lives
    assert min(figures.values()) > 0
