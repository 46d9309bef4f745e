"""Records to append, journals that end, and the chain as the files alone tell it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegis_daemon.audit import disk, journal
from aegis_daemon.audit.chain import Link, verify
from aegis_daemon.audit.disk import read_header
from aegis_daemon.audit.ingest import Ingester
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Denied, Hold, Intent, Outcome
from aegis_daemon.audit.segment import Header, Line, follow

BOUND = 20.0
ARGUMENTS = b'{"path":"/data/report.txt"}'
RESULT = b'{"content":[{"type":"text","text":"done"}]}'


def call_id(number: int) -> str:
    return f"{number:032x}"


def intent(number: int, **more: Any) -> Intent:
    facts: dict[str, Any] = {
        "acl": "allowed",
        "agent": "writer",
        "approval": "not_required",
        "backend": "files",
        "call": call_id(number),
        "era": "legacy",
        "method": "tools/call",
        "name": "read_file",
        "principal": "writer",
        "request": str(number),
        "session": "s1",
    }
    return Intent(**{**facts, **more})


def hold(number: int, **more: Any) -> Hold:
    facts: dict[str, Any] = {
        "acl": "allowed",
        "agent": "writer",
        "approval": "pending",
        "backend": "files",
        "call": call_id(number),
        "method": "tools/call",
        "name": "publish",
        "ticket": "7K2M",
    }
    return Hold(**{**facts, **more})


def denied(number: int, **more: Any) -> Denied:
    facts: dict[str, Any] = {
        "acl": "denied",
        "agent": "writer",
        "backend": "files",
        "call": call_id(number),
        "code": -32001,
        "method": "tools/call",
        "name": "delete_all",
        "reason": "`delete_all` is denied",
        "stage": "acl",
    }
    return Denied(**{**facts, **more})


def outcome(number: int, **more: Any) -> Outcome:
    facts: dict[str, Any] = {"call": call_id(number), "consumed": True, "duration_us": 1500, "status": "success"}
    return Outcome(**{**facts, **more})


def whole_call(log: Journal, number: int, **more: Any) -> int:
    log.append(intent(number, **more), ARGUMENTS)
    return log.append(outcome(number), RESULT)


def small_files(monkeypatch: Any, size: int = 1 << 14) -> None:
    """Journal files of 16 KiB, so that a test sees many."""
    monkeypatch.setattr(disk, "SEGMENT", size)
    monkeypatch.setattr(journal, "SEGMENT", size)


@contextmanager
def opened(directory: Path, durability: Any = "process", **more: Any) -> Iterator[Journal]:
    log = Journal(directory, durability=durability, loop=asyncio.get_running_loop(), **more)
    log.open()
    try:
        yield log
    finally:
        log.close()


def abandon(log: Journal) -> None:
    """What a kill leaves: nothing is synced, told or written any more; only the lock and the descriptors go."""
    if log._sync is not None:
        log._sync.stop()
    for work in (log._maker, log._mender):
        if work is not None:
            work.wait()
    for timer in (log._retry, log._watch, log._held_timer):
        if timer is not None:
            timer.cancel()
    log._release()


def files_of(directory: Path) -> list[tuple[Header, Path]]:
    """The journal's files that were ever used, oldest first."""
    places = [(header, path) for path in directory.glob("seg-*.jnl") if (header := read_header(path)) is not None]
    return sorted(places, key=lambda place: place[0].generation)


def fill(log: Journal, numbers: Iterable[int]) -> None:
    for number in numbers:
        whole_call(log, number)


def lines_of(directory: Path, *, tail: bool = False) -> list[Line[Link]]:
    """The whole chain as far as the files hold it, each record once; asserts that every link holds.

    `tail`: only what follows the newest gap, which files that were used again leave.
    """
    found: dict[int, Line[Link]] = {}
    for header, path in files_of(directory):
        for line, _ in follow(path.read_bytes(), header.start, header.first_seq - 1, header.prev):
            found[line.link.seq] = line
    lines = [found[seq] for seq in sorted(found)]
    if tail:
        lines = lines[max((at for at, line in enumerate(lines) if line.link.seq - 1 not in found), default=0) :]
    if lines:
        first = lines[0].link
        rows = [(line.link.seq, line.text, line.hash) for line in lines]
        assert list(verify(rows, first.seq - 1, first.prev)) == []
    return lines


async def durable(log: Journal, seq: int) -> Exception | None:
    """What a waiter for `seq` is told."""
    told: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    log.when_durable(seq, told.set_result)
    return await asyncio.wait_for(told, BOUND)


async def until(condition: Callable[[], object], what: str) -> None:
    """For states of other processes that nothing announces."""
    end = asyncio.get_running_loop().time() + BOUND
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"never {what}"
        await asyncio.sleep(0.005)


class Ingested:
    """A store filled from a journal in this process, and what the writer would have said."""

    def __init__(self, directory: Path, db_path: Path) -> None:
        self.said: list[str] = []
        self.ingester = Ingester(directory, db_path, sync=False, say=self.said.append)

    def all(self, target: int | None = None) -> int:
        while self.ingester.step(target):
            pass
        return self.ingester.seq

    def close(self) -> None:
        self.ingester.close()


def fill_store(directory: Path, db_path: Path, target: int | None = None) -> list[str]:
    """Brings a store up to its journal; what the writer would have said."""
    filled = Ingested(directory, db_path)
    try:
        filled.all(target)
    finally:
        filled.close()
    return filled.said


def change(db_path: Path, *statements: str) -> None:
    """What somebody with the file can do."""
    db = sqlite3.connect(db_path)
    try:
        for statement in statements:
            db.execute(statement)
        db.commit()
    finally:
        db.close()


def copy_store(db_path: Path, to: Path) -> None:
    """A backup of a store nobody writes to."""
    shutil.copyfile(db_path, to)
