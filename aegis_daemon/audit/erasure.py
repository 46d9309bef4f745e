"""Arguments and results that were erased are in no file of the store: body, salt and hash go, and it is searched.

The record stays, with a commitment that reveals nothing once its salt is gone. What a row of `bodies` had is
overwritten (`secure_delete`), and so is the log of SQLite (WAL). To be sure, the file is then searched for the salts,
which stand before the bodies and occur nowhere else; where one is found (pages that SQLite rearranged), the file is
made anew. The journal is not SQLite's: `Journal.lend` gives what held them to be overwritten.
"""

from __future__ import annotations

import mmap
import sqlite3
from pathlib import Path
from typing import Final

from aegis_daemon.audit import removals
from aegis_daemon.audit.removals import Removal, Removals

BUSY_S: Final = 0.2
"""How soon it is tried again while somebody reads the store."""
ROWS: Final = 500
_PARTS: Final = (b"arguments", b"result")
"""What stands before a salt in a row of `bodies`."""
_SALT: Final = 16


class Eraser:
    """Carries out one order. `step` gives seconds to wait before the next one, None when it is done."""

    def __init__(self, db_path: Path, removal: Removal) -> None:
        self._db_path = db_path
        self._removal = removal
        self._ranges = list(removal.ranges)
        self._salts: set[bytes] = set()
        self._unsure = False
        self._wiped = False

    def step(self, db: sqlite3.Connection) -> float | None:
        """Raises `sqlite3.Error`, `OSError`."""
        if self._ranges:
            self._wipe(db)
            return 0.0
        if not truncate(db):
            return BUSY_S
        if not self._wiped and (self._unsure or found(self._db_path, self._salts)):
            db.execute("VACUUM")
            self._wiped = True
            return 0.0
        db.execute("UPDATE removals SET done = 1 WHERE seq = ?", (self._removal.seq,))
        return None

    def _wipe(self, db: sqlite3.Connection) -> None:
        low, high = self._ranges[0]
        rows = db.execute(
            "SELECT seq, salt FROM bodies WHERE seq >= ? AND seq <= ? ORDER BY seq LIMIT ?", (low, high, ROWS)
        ).fetchall()
        # Of rows that were wiped before a crash, the salts are not known any more.
        wiped = [seq for seq, salt in rows if salt is None]
        if wiped and not self._unsure:
            before = Removals()
            for order in db.execute("SELECT seq, action, detail FROM removals WHERE done = 1"):
                before.add(removals.read(*order))
            self._unsure = bool(before.bodiless(wiped))
        self._salts.update(salt for _, salt in rows if salt is not None)
        seqs = [(seq,) for seq, _ in rows]
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany("UPDATE bodies SET salt = NULL, body = NULL WHERE seq = ?", seqs)
            db.executemany("UPDATE calls SET arguments_hash = '' WHERE seq = ?", seqs)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        if len(rows) < ROWS:
            del self._ranges[0]
        else:
            self._ranges[0] = (rows[-1][0] + 1, high)


def truncate(db: sqlite3.Connection) -> bool:
    """Empties the WAL, whose pages are then in the file; False, and at once, where somebody reads from it."""
    patience = db.execute("PRAGMA busy_timeout").fetchone()[0]
    db.execute("PRAGMA busy_timeout=0")
    try:
        return not db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        db.execute(f"PRAGMA busy_timeout={patience}")


def found(db_path: Path, salts: set[bytes]) -> bool:
    """Whether a body with one of these salts is anywhere in the file. Raises `OSError`."""
    if not salts or not db_path.stat().st_size:
        return False
    with db_path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for word in _PARTS:
            at = data.find(word)
            while at >= 0:
                at += len(word)
                if data[at : at + _SALT] in salts:
                    return True
                at = data.find(word, at)
    return False
