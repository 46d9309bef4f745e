"""Events are read from the log's file in the order of their records, each record once, none passed over in silence.

The file is read as any other program may read it (`records`, `calls`, `bodies`), and cannot be changed from here. A
transaction lasts for one batch, so that a slow receiver never keeps the writer from its housekeeping.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from aegis_daemon.exports.event import Call, Event, Record, gap
from aegis_daemon.loop.read_only import read_only

SCANNED: Final = 2000
"""Records looked at for one batch: a call has two, so that is about as many as a batch has events."""
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_HASH = re.compile("[0-9a-f]{64}")
_decode = msgspec.json.Decoder(Record).decode
_SILENT: Final = frozenset({"hold", "intent"})
_COLUMNS: Final = (
    "call_id", "request_id", "tenant_id", "agent_id", "principal", "backend_id", "session", "era", "method",
    "tool_name", "arguments_hash", "acl_result", "rate_limit_result", "approval_result", "approver", "ticket",
    "queue_position", "queue_wait_us", "exec_status", "exec_duration_us", "error_code", "error_message", "stage",
    "policy_id", "note", "consumed", "would", "ts", "finished_ts",
)  # fmt: skip
_CALL = (
    f"SELECT {', '.join(f'c.{name}' for name in _COLUMNS)}, c.seqs, c.seq, c.result_seq FROM calls c "  # noqa: S608
    "WHERE c.call_id = ? AND c.seq <= ? ORDER BY c.seq DESC LIMIT 1"
)
_SEQS = "SELECT seqs FROM calls WHERE call_id = ? AND seq <= ? ORDER BY seq DESC LIMIT 1"
_RECORD = "SELECT CAST(record AS BLOB) FROM records WHERE seq = ?"
_BODY = "SELECT body, length FROM bodies WHERE seq = ?"


class Page(msgspec.Struct, frozen=True):
    """What stands between two places: `events` in order, up to record `seq` whose hash is `hash`; `newest` there is."""

    chain: str
    events: list[Event]
    seq: int
    hash: str
    newest: int
    full: bool
    """whether there is as much as a batch may have"""


class Log:
    """One log's file. Every method raises `sqlite3.Error`, or `OSError` where there is none."""

    def __init__(self, path: Path, *, bodies: bool = True, steps: bool = False) -> None:
        self._path = path
        self._bodies = bodies
        self._steps = steps

    @contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of it."""
        if not self._path.exists():
            raise OSError(f"there is no audit store `{self._path}` yet")
        with closing(read_only(self._path)) as db:
            db.execute("BEGIN")
            yield db

    def page(self, after: int, most: int, most_bytes: int) -> Page:
        """The events behind record `after`, at most so many and about so many bytes (one at least)."""
        with self.opened() as db:
            chain = chain_of(db)
            (newest,) = db.execute("SELECT ifnull(max(seq), 0) FROM records").fetchone()
            rows = db.execute(
                "SELECT seq, hash, CAST(record AS BLOB) FROM records WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, max(SCANNED, 2 * most)),
            )
            events: list[Event] = []
            size, seq, digest, full = 0, after, "", False
            for place, stored, text in rows:
                record = _read(place, text)
                if place != seq + 1 and seq > 0:
                    why = "they were deleted before this export had them"
                    events.append(gap(chain, seq + 1, place - 1, record.ts, why))
                seq, digest = place, str(stored)
                event = self._event(db, chain, place, digest, record)
                if event is not None:
                    events.append(event)
                    size += event.size + len(text or b"")
                if len(events) >= most or size >= most_bytes:
                    full = True
                    break
            return Page(chain, events, seq, digest, newest, full)

    def at(self, seq: int) -> tuple[str, str | None, int]:
        """The chain, the hash of one record (None where it is not there), and the newest record."""
        with self.opened() as db:
            found = db.execute("SELECT hash FROM records WHERE seq = ?", (seq,)).fetchone()
            (newest,) = db.execute("SELECT ifnull(max(seq), 0) FROM records").fetchone()
            return chain_of(db), str(found[0]) if found is not None else None, newest

    def checkpoint(self) -> tuple[str, int, str] | None:
        """The newest signed checkpoint: origin, size and note; None where there is none."""
        with self.opened() as db:
            if not _has(db, "checkpoints"):
                return None
            row = db.execute("SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
            if row is None:
                return None
            origin = str(row[1]).partition("\n")[0]
            if origin.rpartition("/")[2] != chain_of(db):
                raise OSError("the store's newest checkpoint is of another log; see `aegis audit verify`")
            return origin, row[0], row[1]

    def _event(self, db: sqlite3.Connection, chain: str, place: int, stored: str, record: Record) -> Event | None:
        uid = f"{chain}-{place}"
        kind = record.kind
        if kind in _SILENT or (kind == "denied" and record.would):
            return None  # its call is an event once it ends
        if kind not in ("outcome", "denied"):
            return Event(uid, chain, place, kind, record.ts, stored, record)
        call = self._call(db, place, record)
        steps = _steps(db, call.call_id, place) if self._steps else ()
        return Event(uid, chain, place, "call", record.ts, stored, record, call, steps=steps)

    def _call(self, db: sqlite3.Connection, place: int, record: Record) -> Call:
        row = db.execute(_CALL, (record.call, place)).fetchone()
        if row is None or str(row[-3]).rpartition(",")[2] != str(place):
            # Its row was deleted, or is of another one: what its own last record says.
            return Call(
                record.call, record.request, record.tenant, record.agent, record.principal, record.backend,
                record.session, record.era, record.method, record.name, acl_result=record.acl,
                rate_limit_result=record.limit, approval_result=record.approval, approver=record.approver,
                ticket=record.ticket, exec_status=record.status or "denied", exec_duration_us=record.duration_us,
                error_code=record.error_code or record.code, error_message=record.error_message or record.reason,
                stage=record.stage, policy_id=record.policy, note=record.note, consumed=record.consumed,
                began=record.ts, ended=record.ts,
            )  # fmt: skip
        values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=False))
        began, ended = values.pop("ts"), values.pop("finished_ts")
        values["consumed"], values["would"] = bool(values["consumed"]), bool(values["would"])
        first, result_seq = row[-2], row[-1]
        if self._bodies:
            values["arguments"], values["arguments_length"] = _body(db, first)
            if result_seq:
                values["result"], values["result_length"] = _body(db, result_seq)
        return Call(**values, began=began, ended=ended or record.ts)


def _read(place: int, text: bytes | None) -> Record:
    try:
        return _decode(text or b"")
    except _UNREADABLE:
        return Record(kind="unreadable", detail=f"record {place} cannot be read; see `aegis audit verify`", seq=place)


def _steps(db: sqlite3.Connection, call: str, place: int) -> tuple[Record, ...]:
    """The call's records up to `place`, as far as they are there."""
    row = db.execute(_SEQS, (call, place)).fetchone()
    if row is None:
        return ()
    seqs = [int(seq) for seq in str(row[0]).split(",") if seq.isdigit() and int(seq) <= place]
    return tuple(_read(seq, text) for seq in seqs for (text,) in db.execute(_RECORD, (seq,)))


def _body(db: sqlite3.Connection, seq: int) -> tuple[str | None, int]:
    row = db.execute(_BODY, (seq,)).fetchone()
    if row is None or row[0] is None:
        return None, 0
    text = row[0].decode("utf-8", "replace") if isinstance(row[0], bytes) else str(row[0])
    return text, int(row[1] or 0)


def chain_of(db: sqlite3.Connection) -> str:
    """The chain's name: the beginning of its first record's hash; "" for a log without records."""
    for table in ("records", "leaves"):
        if not _has(db, table):
            continue
        row = db.execute(f"SELECT hash FROM {table} WHERE seq = 1").fetchone()  # noqa: S608  one of two names
        if row is not None:
            text = row[0].hex() if isinstance(row[0], bytes) else str(row[0])
            return text[:16] if _HASH.fullmatch(text) else "unreadable"
    return ""


def _has(db: sqlite3.Connection, table: str) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone() is not None
