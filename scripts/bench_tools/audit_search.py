"""Searching a long log: what a page, a combination, a text and figures take at ten million calls and at a hundredth.

The stores are made with SQL, not by calls: what is measured reads calls, bodies and counts, and those are as the writer
makes them (the schema and the counts are its own). Cold means that the kernel has been told to forget the file.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from aegis_daemon.audit import rollup
from aegis_daemon.audit.calls import COLUMNS
from aegis_daemon.audit.rollup import DAY
from aegis_daemon.audit.search import Found, Query, find
from aegis_daemon.audit.store import INDEXES, Reader, ensure_schema
from aegis_daemon.audit.totals import denials, totals

from .machine import BenchError

ROWS = 10_000_000
SMALL = 100_000
DAYS = 90
AGENTS, BACKENDS, TOOLS = 20, 8, 60
BYTES_A_ROW = 1_100
"""Room on the disk, indexes and sorting included."""
ROUNDS = 40
NEEDLE = "needle-in-the-hay"
END = 1_767_225_600_000_000
"""2026-01-01, in microseconds."""


def fill(path: Path, rows: int) -> dict[str, float]:
    """Makes a store of so many calls over `DAYS` days; gives how long each part took."""
    took: dict[str, float] = {}
    ensure_schema(path)
    apart = DAYS * DAY // rows
    begin = END - rows * apart
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA cache_size=-262144")
        db.execute("PRAGMA temp_store=FILE")
        for name, _ in INDEXES:
            db.execute(f"DROP INDEX calls_{name}")
        # x is a number that looks random; each of its parts decides something else
        denied, asked = "x % 100 < 6", "x % 1000 BETWEEN 60 AND 79"
        agent, backend = f"'agent-' || (x / 1000 % {AGENTS})", f"'backend-' || (x / 20000 % {TOOLS} % {BACKENDS})"
        tool = f"'tool_' || (x / 20000 % {TOOLS})"
        status = f"CASE WHEN {denied} THEN 'denied' WHEN x % 100 < 9 THEN 'error' WHEN x % 9973 = 1 THEN 'unknown' "
        values = {
            "seq": "2 * i + 1", "call_id": "lower(hex(randomblob(16)))", "request_id": "i", "tenant_id": "'default'",
            "agent_id": agent, "principal": agent, "backend_id": backend, "session": "'s' || (i / 1000)",
            "era": "'legacy'", "method": "'tools/call'", "tool_name": tool,
            "arguments_hash": "lower(hex(randomblob(32)))",
            "ts": f"{begin} + i * {apart}", "acl_result": f"CASE WHEN {denied} THEN 'denied' ELSE 'allowed' END",
            "rate_limit_result": "'none'",
            "approval_result": f"CASE WHEN {asked} THEN 'approved' ELSE 'not_required' END",
            "approver": f"CASE WHEN {asked} THEN 'person-' || (x / 7 % 5) ELSE '' END", "ticket": "''",
            "queue_position": "0", "queue_wait_us": "CASE WHEN x % 5 = 0 THEN x / 11 % 20000 ELSE 0 END",
            "exec_status": f"{status} ELSE 'success' END",
            "exec_duration_us": f"CASE WHEN {denied} THEN 0 ELSE 500 + x / 13 % 90000 END", "error_code": "0",
            "error_message": "''", "stage": f"CASE WHEN {denied} THEN 'acl' ELSE '' END",
            "policy_id": f"CASE WHEN {denied} THEN 'deny.tools/' || (x / 20000 % {TOOLS} % 40) ELSE '' END",
            "note": "''",
            "consumed": "1", "would": "x % 5003 = 9", "boot": "'b'", "mono": f"i * {apart}",
            "finished_ts": f"{begin} + i * {apart} + 1000", "result_seq": "0",
            "seqs": "(2 * i + 1) || ',' || (2 * i + 2)",
        }  # fmt: skip
        began = time.perf_counter()
        step = 500_000
        for at in range(0, rows, step):
            numbers = (
                f"WITH RECURSIVE n(i) AS (SELECT {at} UNION ALL SELECT i + 1 FROM n "
                f"WHERE i + 1 < {min(rows, at + step)}), "
                "r(i, x) AS (SELECT i, abs((i * 2654435761) % 4294967296 * 40503 + i * 7919) % 1000000007 FROM n) "
            )
            db.execute("BEGIN")
            db.execute(f"INSERT INTO calls {numbers} SELECT {', '.join(values[name] for name in COLUMNS)} FROM r")
            arguments = (
                '\'{"path":"/srv/data/report-\' || x || \'.txt","content":"\' || hex(randomblob(60)) || '
                f"CASE WHEN i = {rows // 10} THEN '{NEEDLE}' ELSE '' END || '\"}}'"
            )
            db.execute(f"INSERT INTO bodies {numbers} SELECT 2 * i + 1, 'arguments', x'00', {arguments}, 200 FROM r")
            db.execute("COMMIT")
        took["rows"] = time.perf_counter() - began
        began = time.perf_counter()
        for name, what in INDEXES:
            db.execute(f"CREATE INDEX calls_{name} ON calls {what}")
        took["indexes"] = time.perf_counter() - began
        began = time.perf_counter()
        db.execute("BEGIN")
        rollup.rebuild(db)
        db.execute("COMMIT")
        took["counts"] = time.perf_counter() - began
    return took


def forget(path: Path) -> None:
    """The kernel's copy of the file goes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


Question = Callable[[Reader, random.Random], Any]


def questions(rows: int) -> dict[str, Question]:
    """What people ask, with different words each time."""

    def page(make: Callable[[random.Random], Query], **more: Any) -> Question:
        return lambda reader, dice: find(reader, make(dice), limit=50, patience_s=10, **more)

    def deep(reader: Reader, dice: random.Random) -> Found:
        before = 2 * dice.randrange(rows // 20, rows // 5) + 1
        return find(reader, Query(agent=f"agent-{dice.randrange(AGENTS)}"), limit=50, before=before)

    def one(reader: Reader, dice: random.Random) -> Any:
        seq = 2 * dice.randrange(rows) + 1
        ((id,),) = reader.ask("SELECT call_id FROM calls WHERE seq = ?", (seq,), until=float("inf"))
        return reader.show(id)

    return {
        "newest page": page(lambda dice: Query()),
        "page of an agent": page(lambda dice: Query(agent=f"agent-{dice.randrange(AGENTS)}")),
        "page far back": deep,
        "agent and tool": page(
            lambda dice: Query(agent=f"agent-{dice.randrange(AGENTS)}", tool=f"tool_{dice.randrange(TOOLS)}")
        ),
        "agent, tool, refused": page(
            lambda dice: Query(
                agent=f"agent-{dice.randrange(AGENTS)}", tool=f"tool_{dice.randrange(TOOLS)}", verdict="denied"
            )
        ),
        "tool by glob, one day": page(lambda dice: _day(dice, tool=f"*_{dice.randrange(TOOLS)}")),
        "unknown outcomes of a backend": page(
            lambda dice: Query(backend=f"backend-{dice.randrange(BACKENDS)}", verdict="unknown")
        ),
        "rule and agent": page(
            lambda dice: Query(policy=f"deny.tools/{dice.randrange(40)}", agent=f"agent-{dice.randrange(AGENTS)}")
        ),
        "approver, tool, one week": page(
            lambda dice: Query(
                approver=f"person-{dice.randrange(5)}", tool=f"tool_{dice.randrange(TOOLS)}", since=END - 7 * DAY
            )
        ),
        "text, often there": page(lambda dice: Query(text=f"report-{dice.randrange(10, 99)}")),
        "text, not there, one day": page(lambda dice: _day(dice, text="nowhere to be found")),
        "a call by its id": one,
        "stats of a day by tool": lambda reader, dice: (
            totals(reader, "tool", END - DAY, END),
            denials(reader, END - DAY, END),
        ),
        "stats of a day by hour": lambda reader, dice: totals(reader, "hour", END - DAY, END),
        f"stats of {DAYS} days by tool": lambda reader, dice: totals(reader, "tool", END - DAYS * DAY, END),
    }


def _day(dice: random.Random, **more: Any) -> Query:
    since = END - dice.randrange(1, DAYS) * DAY
    return Query(since=since, until=since + DAY, **more)


def measure(path: Path, rows: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each question: cold (once), then p50 and p99 of the warm ones."""
    found: dict[str, dict[str, float]] = {}
    for name, ask in questions(rows).items():
        dice = random.Random(7)
        forget(path)
        times = []
        for _ in range(ROUNDS + 1):
            with Reader(path) as reader:
                began = time.perf_counter()
                ask(reader, dice)
                times.append((time.perf_counter() - began) * 1e3)
        warm = sorted(times[1:])
        found[name] = {"cold": times[0], "p50": warm[len(warm) // 2], "p99": warm[-1]}
    return found


def text_everywhere(path: Path, rows: int) -> tuple[float, int, bool]:
    """Seconds, searches (each ten seconds at most) and whether it was found: a text that only one old call has."""
    began, before, searches = time.perf_counter(), None, 0
    with Reader(path) as reader:
        while True:
            searches += 1
            found = find(reader, Query(text=NEEDLE), limit=1, before=before, patience_s=10)
            if found.rows or found.looked_to is None:
                return time.perf_counter() - began, searches, bool(found.rows)
            before = found.looked_to


def run(tell: Callable[[str], None], at: Path | None, report: Path | None, rows: int = ROWS) -> int:
    """The whole of it; deletes what it made."""
    home = Path(tempfile.mkdtemp(prefix="aegis-bench-", dir=at))
    try:
        if (free := shutil.disk_usage(home).free) < rows * BYTES_A_ROW:
            needed = rows * BYTES_A_ROW >> 30
            raise BenchError(f"`{home}` has {free >> 30} GB, {needed} GB are needed; name a roomier --at")
        results: dict[int, dict[str, dict[str, float]]] = {}
        for count in (SMALL, rows):
            path = home / f"{count}.db"
            tell(f"making a log of {count:,} calls")
            took = fill(path, count)
            size = path.stat().st_size
            tell(
                f"  {size / 1e9:.2f} GB, {size / count:.0f} B a call; "
                + ", ".join(f"{name} in {seconds:.0f} s" for name, seconds in took.items())
            )
            results[count] = measure(path, count)
            seconds, searches, there = text_everywhere(path, count)
            tell(
                f"  a text that one old call has: {'found' if there else 'NOT FOUND'} in {seconds:.1f} s, "
                f"{searches} searches, {seconds / count * 0.9 * 1e6:.2f} us a call"
            )
            path.unlink()
        width = max(map(len, results[rows]))
        print(f"{'milliseconds':{width}}  {SMALL:>9,}: p50   p99  cold  {rows:>11,}: p50    p99    cold  ratio of p50")
        for name, big in results[rows].items():
            small = results[SMALL][name]
            print(
                f"{name:{width}}  {small['p50']:15.2f} {small['p99']:5.1f} {small['cold']:5.1f}  "
                f"{big['p50']:16.2f} {big['p99']:6.1f} {big['cold']:7.1f}  {big['p50'] / small['p50']:6.1f}"
            )
        if report is not None:
            report.write_text(json.dumps({str(count): found for count, found in results.items()}, indent=1))
        return 0
    finally:
        shutil.rmtree(home, ignore_errors=True)
