"""How old a record is, as far as the log itself can tell: no leap of the calendar makes a record older.

Every record holds both the calendar's time and that of the boot clock, which nobody sets. Within one boot, the boot
clock says how much time went by. Between two boots only the calendar knows, so all gaps together count for no more than
a part of the age that is asked for: a machine that comes up with a wrong date, however often, does not make the whole
log old.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Final

import msgspec

from aegis_daemon.audit.calls import read_record
from aegis_daemon.audit.chain import UNREADABLE

PART: Final = 2
"""The gaps between boots count for the age divided by this together, at most."""
_BOOTTIME: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Moment(msgspec.Struct, frozen=True):
    """The calendar and the boot clock at one time, in microseconds; `boot` names the boot, '' where unknown."""

    boot: str
    mono: int
    ts: int


def boot_clock() -> tuple[str, int]:
    """This boot and the microseconds on its clock."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        boot = ""  # then each run of a daemon is one, and this is behind the last one
    return boot, time.clock_gettime_ns(_BOOTTIME) // 1000


def old_enough(db: sqlite3.Connection, last: int, low: int, age: int, now: Moment) -> int:
    """The newest record up to `last` that is more than `age` microseconds old; `low` where none behind that is.

    Raises `sqlite3.Error`.
    """
    newest = int(db.execute("SELECT ifnull(max(seq), 0) FROM records").fetchone()[0])
    later, passed = now, 0  # a moment, and the time that has gone by since then
    gaps = age // PART  # what may still be believed of them
    while newest > low:
        end = _moment(db, newest)
        if end is None:
            newest -= 1  # `verify` says what it is
            continue
        if end.boot == later.boot:
            passed += max(0, later.mono - end.mono)
        else:
            gap = max(0, min(later.ts - end.ts, gaps))
            gaps -= gap
            passed += gap
        first = _first(db, low, newest, end.boot)
        begun = _moment(db, first) or end
        if passed + max(0, end.mono - begun.mono) > age:
            return min(last, _before(db, first, newest, end.mono - (age - passed)))
        passed += max(0, end.mono - begun.mono)
        newest, later = first - 1, begun
    return low


def _moment(db: sqlite3.Connection, seq: int) -> Moment | None:
    row = db.execute("SELECT record FROM records WHERE seq = ?", (seq,)).fetchone()
    try:
        record = read_record(row[0]) if row is not None else None
    except (*UNREADABLE, TypeError):
        return None
    return None if record is None else Moment(record.boot, record.mono, record.ts)


def _first(db: sqlite3.Connection, low: int, high: int, boot: str) -> int:
    """The oldest record of the boot that `high` is of."""
    low += 1
    while low < high:
        middle = (low + high) // 2
        found = _moment(db, middle)
        if found is not None and found.boot == boot:
            high = middle
        else:
            low = middle + 1
    return high


def _before(db: sqlite3.Connection, first: int, high: int, mono: int) -> int:
    """The newest record of a boot, which begins with `first`, from before a time on its clock."""
    low = first
    while low < high:
        middle = (low + high + 1) // 2
        found = _moment(db, middle)
        if found is not None and found.mono < mono:
            low = middle
        else:
            high = middle - 1
    return low
