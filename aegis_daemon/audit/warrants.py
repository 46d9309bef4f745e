"""An order to remove counts by its own record, signed with one of the log's keys; nobody without the key can feign one.

What is signed, under the log's name (`checkpoint.origin`), names the log, what goes and who wants it:

    aegis/removal
    aegis/<tenant>/<chain id>
    purge
    records 1 to 20000
    ann

The record has it in `signature`: base64 of the key's id (4 bytes) and the Ed25519 signature (`keys.Signer.word`).
`scripts/verify_audit` checks the same and shares no line with this.
"""

from __future__ import annotations

import sqlite3
from base64 import b64decode
from collections.abc import Iterator, Sequence
from pathlib import Path

from aegis_daemon.audit import keys, removals
from aegis_daemon.audit.chain import UNREADABLE
from aegis_daemon.audit.checkpoint import Note, Signature, origin
from aegis_daemon.audit.removals import Removal, Said


def text(log: str, action: str, detail: str, by: str) -> str:
    """What is signed of an order for the log of that name (`checkpoint.origin`)."""
    return f"aegis/removal\n{log}\n{action}\n{detail.partition(':')[0]}\n{by}\n"


def read(seq: int, record: bytes) -> tuple[Removal, Said] | None:
    """What record `seq` orders, signed or not; None for nothing."""
    try:
        said = removals.read_said(record)
    except UNREADABLE:
        return None
    removal = removals.read(seq, said.action, said.detail)
    return None if removal is None else (removal, said)


def holds(said: Said, chain: str, publics: Sequence[bytes]) -> bool:
    """Whether one of these keys signed that order, for the log of that chain id (16 hex digits)."""
    try:
        made = b64decode(said.signature, validate=True)
    except ValueError:
        return False
    log = origin(said.tenant, chain)
    note = Note(text(log, said.action, said.detail, said.by), (Signature(log, made[:4], made[4:]),))
    return bool(made) and keys.signed_by(note, log, publics) is not None


# --- in a store -------------------------------------------------------------------------------------------------------


def chain_of(db: sqlite3.Connection) -> str:
    """The log's chain id, "" while it has no record. Raises `sqlite3.Error`."""
    for table in ("leaves", "records"):
        if _has(db, table):
            row = db.execute(f"SELECT hash FROM {table} WHERE seq = 1").fetchone()  # noqa: S608
            if row is not None:
                return (row[0].hex() if isinstance(row[0], bytes) else str(row[0]))[:16]
    return ""


def publics_of(db: sqlite3.Connection, key_file: Path | None) -> list[bytes]:
    """The keys that may sign, by the file beside the key, else as the store has them. Raises `OSError`."""
    if key_file is not None:
        return keys.follow(keys.read_ring(key_file))
    if not _has(db, "keys"):
        return []
    rows = db.execute("SELECT public, since, rotation FROM keys ORDER BY number")
    return keys.follow([keys.Ring(*map(str, row)) for row in rows])


def standing(db: sqlite3.Connection, publics: Sequence[bytes]) -> Iterator[tuple[Removal, Said]]:
    """The orders of a store that count, oldest first. Raises `sqlite3.Error`."""
    chain = chain_of(db)
    rows = db.execute(
        "SELECT o.seq, CAST(r.record AS BLOB) FROM removals o JOIN records r ON r.seq = o.seq ORDER BY o.seq"
    )
    for seq, record in rows.fetchall():
        found = read(seq, record)
        if found is not None and holds(found[1], chain, publics):
            yield found


def _has(db: sqlite3.Connection, table: str) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone() is not None
