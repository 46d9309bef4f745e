"""Counts by hour and by day, kept in the transaction that ends the calls they count, so that figures need no calls.

    tallies  how calls that ended in a while (`span` seconds from `start`) went, by agent, backend, tool and verdict
    asks     which records speak of a ticket, so that the story of a call has what came after its end

Both are made of the records and can be made again (`rebuild`); what is purged is taken out of them, so they always
count the calls that are there, and `verify` compares them (`differing`). Times of calls are kept as histograms whose
steps are a sixteenth of an octave: what is read out of one is off by 3.2 % at most.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, cast

import msgspec

from aegis_daemon.audit.calls import COLUMNS, Row, Stored, read_record

HOUR: Final = 3_600_000_000
DAY: Final = 24 * HOUR
SPANS: Final = (HOUR, DAY)
KEYS: Final = (
    "span", "start", "agent_id", "backend_id", "method", "tool_name", "exec_status", "would", "stage", "policy_id",
)  # fmt: skip
TIMES: Final = ("exec", "queue", "approval")
"""Histograms of a row: how long the backend took, how long the call waited in its lane, how long for a person."""
DECIDED: Final = frozenset({"approved", "rejected", "expired", "cancelled"})
SCRIPT: Final = f"""
CREATE TABLE IF NOT EXISTS tallies (
  span INTEGER NOT NULL, start INTEGER NOT NULL, agent_id TEXT NOT NULL, backend_id TEXT NOT NULL, method TEXT NOT NULL,
  tool_name TEXT NOT NULL, exec_status TEXT NOT NULL, would INTEGER NOT NULL, stage TEXT NOT NULL,
  policy_id TEXT NOT NULL, calls INTEGER NOT NULL, {", ".join(f"{name} TEXT NOT NULL" for name in TIMES)},
  PRIMARY KEY ({", ".join(KEYS)})
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS asks (
  ticket TEXT NOT NULL, seq INTEGER NOT NULL, call_id TEXT NOT NULL, PRIMARY KEY (ticket, seq)
) WITHOUT ROWID;
"""
_SELECT = (
    f"SELECT j.key, {', '.join(f't.{name}' for name in TIMES)} FROM json_each(?) j CROSS JOIN tallies t ON "  # noqa: S608
    f"{' AND '.join(f't.{name} = json_extract(j.value, {chr(39)}$[{at}]{chr(39)})' for at, name in enumerate(KEYS))}"
)
_UPSERT = (
    f"INSERT INTO tallies VALUES ({','.join('?' * (len(KEYS) + 1 + len(TIMES)))}) "  # noqa: S608
    f"ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, {', '.join(f'{n} = excluded.{n}' for n in TIMES)}"
)
_EMPTY = f"DELETE FROM tallies WHERE {' AND '.join(f'{name} = ?' for name in KEYS)} AND calls <= 0"  # noqa: S608
CELLS: Final = 50_000
"""Rows of hours that a count of everything holds at once."""
_FINE: Final = 16
"""Steps in an octave."""

Histogram = dict[int, int]
Key = tuple[int, str, str, str, str, str, int, str, str]


# --- histograms -------------------------------------------------------------------------------------------------------


def step(micros: int) -> int:
    """The step of a histogram that a duration falls into; whole below 32 us."""
    if micros < 2 * _FINE:
        return max(0, micros)
    shift = micros.bit_length() - 5
    return shift * _FINE + (micros >> shift)


def middle(step: int) -> int:
    """The duration in the middle of a step, in microseconds."""
    if step < 2 * _FINE:
        return step
    shift, rest = divmod(step - _FINE, _FINE)
    return ((_FINE + rest) << shift) + (1 << shift >> 1)


def read(text: str) -> Histogram:
    """A histogram as it is kept: step and count by turns, in a line; several in a row are one."""
    numbers = list(map(int, text.split()))
    found: Histogram = {}
    for at, count in zip(numbers[::2], numbers[1::2], strict=True):
        found[at] = found.get(at, 0) + count
    return found


def write(histogram: Histogram) -> str:
    """The text that `read` reads."""
    return " ".join(f"{step} {count}" for step, count in sorted(histogram.items()) if count > 0)


def add(histogram: Histogram, more: Histogram, times: int = 1) -> None:
    """Counts `more` in; out with `times` -1."""
    for at, count in more.items():
        histogram[at] = histogram.get(at, 0) + count * times


def percentile(histogram: Histogram, percent: float) -> int | None:
    """The nearest-rank percentile in microseconds; None of nothing."""
    total = sum(histogram.values())
    if not total:
        return None
    rank = max(1, -int(-total * percent // 100))
    for at in sorted(histogram):
        rank -= histogram[at]
        if rank <= 0:
            return middle(at)
    raise AssertionError("a rank lies within its total")


# --- counting ---------------------------------------------------------------------------------------------------------


class _Cell:
    """What came to one row."""

    __slots__ = ("calls", "times")

    def __init__(self) -> None:
        self.calls = 0
        self.times: tuple[Histogram, Histogram, Histogram] = ({}, {}, {})


class Tally:
    """What a batch adds. Take what ends and what is said, then `settle` in the batch's own transaction."""

    def __init__(self) -> None:
        self._ended: list[Row] = []
        self._said: list[tuple[str, int, str]] = []

    def ended(self, row: Row) -> None:
        """A call has come to its end."""
        self._ended.append(row)

    def said(self, record: Stored) -> None:
        """A record speaks of a ticket (or of a grant, whose id stands in its place)."""
        self._said.append((record.ticket, record.seq, record.call))

    def settle(self, db: sqlite3.Connection) -> None:
        """Writes all of it; the records must be in the store by now. Raises `sqlite3.Error`."""
        if self._said:
            db.executemany("INSERT OR REPLACE INTO asks VALUES (?, ?, ?)", self._said)
        cells: dict[Key, _Cell] = {}
        for row in self._ended:
            _count(cells, row, waited(db, row) if row.ticket else None)
        put(db, cells.items())


def _count(cells: dict[Key, _Cell], row: Row, wait: int | None) -> None:
    """One call that ended; `wait` is how long it waited for a person, where it did."""
    key = (
        row.ts // HOUR * HOUR, row.agent_id, row.backend_id, row.method, row.tool_name, row.exec_status,
        row.would, row.stage, row.policy_id,
    )  # fmt: skip
    cell = cells.get(key)
    if cell is None:
        cell = cells[key] = _Cell()
    cell.calls += 1
    ran, queued, asked = cell.times
    if row.exec_duration_us:
        at = step(row.exec_duration_us)
        ran[at] = ran.get(at, 0) + 1
    if row.queue_wait_us:
        at = step(row.queue_wait_us)
        queued[at] = queued.get(at, 0) + 1
    if wait is not None:
        at = step(wait)
        asked[at] = asked.get(at, 0) + 1


def take_out(db: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Counts calls no more that are about to go, while their records are there still. Raises `sqlite3.Error`."""
    cells: dict[Key, _Cell] = {}
    for row in rows:
        if row.finished_ts > 0:
            _count(cells, row, waited(db, row) if row.ticket else None)
    put(db, cells.items(), -1)


def _wholes(cells: Iterable[tuple[Key, _Cell]]) -> dict[tuple[int | str, ...], _Cell]:
    """Hours, and days, of cells by the hour."""
    wholes: dict[tuple[int | str, ...], _Cell] = {}
    for (start, *rest), cell in cells:
        for span in SPANS:
            key = cast(tuple[int | str, ...], (span, start // span * span, *rest))
            whole = wholes.get(key)
            if whole is None:
                whole = wholes[key] = _Cell()
            whole.calls += cell.calls
            for mine, more in zip(whole.times, cell.times, strict=True):
                add(mine, more)
    return wholes


def put(db: sqlite3.Connection, cells: Iterable[tuple[Key, _Cell]], times: int = 1) -> None:
    """Adds to the rows of the hours and the days; takes away with `times` -1. Raises `sqlite3.Error`."""
    wholes = _wholes(cells)
    if not wholes:
        return
    keys = list(wholes)
    if times < 0:
        for cell in wholes.values():
            cell.calls, gone = -cell.calls, cell.times
            cell.times = ({}, {}, {})
            for mine, less in zip(cell.times, gone, strict=True):
                add(mine, less, -1)
    for at, *texts in db.execute(_SELECT, (msgspec.json.encode(keys).decode(),)).fetchall():
        for mine, text in zip(wholes[keys[at]].times, texts, strict=True):
            add(mine, read(text))
    db.executemany(_UPSERT, [(*key, cell.calls, *map(write, cell.times)) for key, cell in wholes.items()])
    if times < 0:
        db.executemany(_EMPTY, keys)


def waited(db: sqlite3.Connection, row: Row) -> int | None:
    """Microseconds from the ask to a person's word (or its time's end); None where the call did not see one."""
    begun: int | None = None
    found = db.execute(
        "SELECT record FROM records WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq", (f"[{row.seqs}]",)
    )
    for (text,) in found:
        try:
            record = read_record(text)
        except (msgspec.MsgspecError, UnicodeError):
            continue
        if record.kind == "hold":
            begun = record.ts
        elif record.kind == "approval" and begun is not None and _decision(text) in DECIDED:
            return max(0, record.ts - begun)
    return None


class _Said(msgspec.Struct):
    decision: str = ""


_read_said = msgspec.json.Decoder(_Said).decode


def _decision(text: str) -> str:
    return _read_said(text).decision


# --- the tables -------------------------------------------------------------------------------------------------------


def rebuild(db: sqlite3.Connection) -> None:
    """Counts everything in the store again, in the transaction that is open. Raises `sqlite3.Error`."""
    db.execute("DELETE FROM tallies")
    db.execute("DELETE FROM asks")
    cells: dict[Key, _Cell] = {}
    for found in db.execute(f"SELECT {', '.join(COLUMNS)} FROM calls WHERE finished_ts > 0 ORDER BY ts"):  # noqa: S608
        row = Row(*found)
        _count(cells, row, waited(db, row) if row.ticket else None)
        if len(cells) >= CELLS:
            put(db, cells.items())
            cells = {}
    put(db, cells.items())
    db.execute(
        "INSERT INTO asks SELECT ifnull(json_extract(record, '$.ticket'), ''), seq, "
        "ifnull(json_extract(record, '$.call'), '') FROM records WHERE instr(record, '\"kind\":\"approval\"') > 0 AND "
        "CASE WHEN json_valid(record) THEN json_extract(record, '$.kind') END = 'approval'"
    )


def forget(db: sqlite3.Connection, seq: int) -> None:
    """Drops what records up to `seq` said, for whoever purges them. Raises `sqlite3.Error`."""
    db.execute("DELETE FROM asks WHERE seq <= ?", (seq,))


def differing(db: sqlite3.Connection, counted: Callable[[], None]) -> Iterator[str]:
    """Counts every call again, a day at a time; tells, for people, where what is kept differs.

    `counted` is called for every call. Raises `sqlite3.Error`.
    """
    met = 0
    day: int | None = None
    cells: dict[Key, _Cell] = {}
    wrong: list[str] = []

    def settle() -> int:
        told = [(*key, cell.calls, *map(write, cell.times)) for key, cell in _wholes(cells.items()).items()]
        kept: set[tuple[object, ...]] = set()
        for span in SPANS:
            rows = "SELECT * FROM tallies WHERE span = ? AND start >= ? AND start < ?"
            kept.update(db.execute(rows, (span, day, day + DAY)))  # type: ignore[operator]
        lost = sum(row not in kept for row in told)
        if lost or len(told) != len(kept):
            when = time.strftime("%Y-%m-%d", time.gmtime(day / 1e6)) if day and 0 < day < 1 << 57 else "a day"
            wrong.append(f"the counts of {when} are not those of its calls ({max(lost, len(kept) - len(told))} rows)")
        cells.clear()
        return len(kept)

    for found in db.execute(f"SELECT {', '.join(COLUMNS)} FROM calls WHERE finished_ts > 0 ORDER BY ts"):  # noqa: S608
        counted()
        row = Row(*found)
        if row.ts // DAY * DAY != day:
            if day is not None:
                met += settle()
            yield from wrong
            wrong.clear()
            day = row.ts // DAY * DAY
        _count(cells, row, waited(db, row) if row.ticket else None)
    if day is not None:
        met += settle()
    yield from wrong
    there = int(db.execute("SELECT count(*) FROM tallies").fetchone()[0])
    if there > met:
        yield f"{there - met} counts are of days without a call"
