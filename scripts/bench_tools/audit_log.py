"""Writing a long log: what it adds to a call, what a million records take, how fast they are verified and taken up.

The real journal and its writer process, in a loop that offers calls at a steady pace below what it can do, so that what
is measured is waiting and not a queue of the bench's own. A call is an intent, its commit, and an outcome.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from aegis_daemon.audit import journal
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.notary import Duties
from aegis_daemon.audit.record import Intent, Outcome
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.writer import WriterHandle

from .machine import BenchError

RECORDS = 1_000_000
UNREAD = 100_000
ROOM = 3_500
"""Bytes of disk for each record: journal, store, and its WAL."""
WAITING = 8
"""Calls under way at once."""
ARGUMENTS = (b'{"path":"/srv/data/report-2026.txt","content":"' + b"x" * 200)[:198] + b'"}'
RESULT = b'{"content":[{"type":"text","text":"written"}]}'


def _intent(number: int) -> Intent:
    return Intent(
        agent=f"agent-{number % 20}", backend="files", call=os.urandom(16).hex(), method="tools/call",
        name=f"tool_{number % 60}", request=str(number),
    )  # fmt: skip


def _at(times: list[float], share: float) -> float:
    """Microseconds."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))] * 1e6


async def _load(log: Journal | None, calls: int, lag: Callable[[], int]) -> tuple[float, list[float], int]:
    """(seconds, what each call waited for its records, the most records that SQLite was behind). `log` None: none."""
    times: list[float] = []
    behind = 0
    number = iter(range(calls))

    async def work() -> None:
        nonlocal behind
        loop = asyncio.get_running_loop()
        for at in number:
            record = _intent(at)
            began = time.perf_counter()
            if log is not None:
                seq = log.append(record, ARGUMENTS)
                if log.durable_seq < seq:
                    done: asyncio.Future[Exception | None] = loop.create_future()
                    log.when_durable(seq, done.set_result)
                    if (failure := await done) is not None:
                        raise BenchError(str(failure))
            times.append(time.perf_counter() - began)
            if log is not None:
                ended = time.perf_counter()
                outcome = Outcome(call=record.call, consumed=True, duration_us=900, status="success")
                log.append(outcome, RESULT, later=True)
                times[-1] += time.perf_counter() - ended
                if at % 500 == 0:
                    behind = max(behind, lag())
            await asyncio.sleep(0)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(WAITING)))
    return time.perf_counter() - began, times, behind


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.parent.glob(path.name + "*"))


async def _write(home: Path, durability: Any, records: int) -> dict[str, float]:
    """Figures of one log; leaves its store there."""
    loop = asyncio.get_running_loop()
    log = Journal(home / "journal", durability=durability, loop=loop, db_path=home / "audit.db")
    log.open()
    handle = WriterHandle(log, home / "audit.db", loop, Duties(str(home / "audit.key")))
    took, times, behind = await _load(log, records // 2, lambda: log.last_seq - log.ingested_seq)
    written = log._bytes
    began = time.perf_counter()
    await handle.flush(600)
    caught_up = time.perf_counter() - began
    await handle.close()
    seq = log.last_seq
    log.close()
    return {
        "records/s": seq / took,
        "p50 us": _at(times, 0.5),
        "p99 us": _at(times, 0.99),
        "journal B/record": written / seq,
        "store B/record": _size(home / "audit.db") / seq,
        "most behind": behind,
        "ingested records/s": seq / (took + caught_up),
        "caught up after s": caught_up,
    }


async def _restart(home: Path, records: int) -> dict[str, float]:
    """A daemon was killed with records that nothing had ingested."""
    loop = asyncio.get_running_loop()
    log = Journal(home / "journal", durability="process", loop=loop)
    log.open()
    await _load(log, records // 2, lambda: 0)
    log.close()
    (home / "journal" / "lock").write_text("1\n")  # as a kill leaves it
    log = Journal(home / "journal", durability="full", loop=loop, db_path=home / "audit.db")
    began = time.perf_counter()
    log.open()
    opened = time.perf_counter() - began
    handle = WriterHandle(log, home / "audit.db", loop)
    await handle.flush(600)
    ready = time.perf_counter() - began
    await handle.close()
    log.close()
    return {"journal open s": opened, "store caught up s": ready}


def run(tell: Callable[[str], None], at: Path | None, report: Path | None, records: int = RECORDS) -> int:
    """The whole of it; deletes what it made."""
    home = Path(tempfile.mkdtemp(prefix="aegis-bench-", dir=at))
    cap, journal.BACKLOG_CAP = journal.BACKLOG_CAP, 1 << 40  # a bench offers more than any server can answer
    figures: dict[str, dict[str, float]] = {}
    try:
        if (free := shutil.disk_usage(home).free) < records * ROOM:
            raise BenchError(f"`{home}` has {free >> 30} GB, {records * ROOM >> 30} GB are needed; name a roomier --at")
        small = max(2000, records // 10)
        took, times, _ = uvloop.run(_load(None, small // 2, lambda: 0))
        figures["no log"] = {"records/s": small / took, "p50 us": _at(times, 0.5), "p99 us": _at(times, 0.99)}
        for durability, count in (("full", small), ("process", records)):
            tell(f"writing {count:,} records, durability {durability}")
            place = home / durability
            place.mkdir()
            figures[durability] = uvloop.run(_write(place, durability, count))
        tell("verifying them")
        began = time.perf_counter()
        with Reader(home / "process" / "audit.db") as reader:
            found = reader.verify()
        if found.faults:
            raise BenchError(f"the log does not verify: {found.faults[0]}")
        took = time.perf_counter() - began
        figures["verify"] = {"records": found.records, "s": took, "records/s": found.records / took}
        tell(f"starting over {UNREAD:,} records that were not ingested")
        place = home / "restart"
        place.mkdir()
        figures["restart"] = uvloop.run(_restart(place, min(UNREAD, records)))
        for name, each in figures.items():
            print(f"{name:8}  " + ", ".join(f"{what} {value:,.1f}" for what, value in each.items()))
        if report is not None:
            report.write_text(json.dumps(figures, indent=1))
        return 0
    finally:
        journal.BACKLOG_CAP = cap
        shutil.rmtree(home, ignore_errors=True)
