"""How far each export has come outlives every crash, and never says more than was taken: at worst it says less.

cursors    each export's newest record that its receiver has, by chain
witnessed  the newest checkpoint that each witness has, by chain
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import msgspec

_TABLES = """
CREATE TABLE IF NOT EXISTS cursors(
  sink TEXT NOT NULL, chain TEXT NOT NULL, seq INTEGER NOT NULL, hash TEXT NOT NULL, keep INTEGER NOT NULL,
  updated_us INTEGER NOT NULL, PRIMARY KEY(sink, chain));
CREATE TABLE IF NOT EXISTS witnessed(
  witness TEXT NOT NULL, chain TEXT NOT NULL, size INTEGER NOT NULL, at_us INTEGER NOT NULL,
  PRIMARY KEY(witness, chain, size));
"""


class Place(msgspec.Struct, frozen=True):
    """The newest record that a receiver has, and its hash (hex, "" where that is not known)."""

    chain: str
    seq: int
    hash: str


class Cursors:
    """The file. Raises `sqlite3.Error`, `OSError`."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.close(fd)
        self._db = sqlite3.connect(path, timeout=5.0, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # what a power loss takes back is sent again
            self._db.executescript(_TABLES)
        except BaseException:
            self._db.close()
            raise

    def place(self, sink: str) -> Place | None:
        """Where an export is, in the chain that it was in last; None for a new one."""
        row = self._db.execute(
            "SELECT chain, seq, hash FROM cursors WHERE sink = ? ORDER BY updated_us DESC, rowid DESC LIMIT 1", (sink,)
        ).fetchone()
        return Place(*row) if row is not None else None

    def move(self, sink: str, place: Place, *, keep: bool) -> None:
        """The receiver has everything up to there."""
        self._db.execute(
            "INSERT INTO cursors VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT(sink, chain) DO UPDATE SET "
            "seq = excluded.seq, hash = excluded.hash, keep = excluded.keep, updated_us = excluded.updated_us",
            (sink, place.chain, place.seq, place.hash, int(keep), _now()),
        )
        # Nothing of a log that was replaced can be sent any more, nor has to be kept.
        self._db.execute("DELETE FROM cursors WHERE sink = ? AND chain <> ?", (sink, place.chain))

    def settle(self, keep: dict[str, bool]) -> None:
        """Only these exports are configured; what was remembered for others to be kept is kept no longer."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute("UPDATE cursors SET keep = 0")
            self._db.executemany("UPDATE cursors SET keep = ? WHERE sink = ?", [(int(v), k) for k, v in keep.items()])
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def witnessed(self, witness: str, chain: str) -> int:
        """The newest checkpoint (its size) that a witness has; 0 for none."""
        row = self._db.execute(
            "SELECT ifnull(max(size), 0) FROM witnessed WHERE witness = ? AND chain = ?", (witness, chain)
        ).fetchone()
        return int(row[0])

    def witness(self, witness: str, chain: str, size: int) -> None:
        """A witness has that checkpoint."""
        self._db.execute("INSERT OR REPLACE INTO witnessed VALUES (?, ?, ?, ?)", (witness, chain, size, _now()))

    def close(self) -> None:
        """Idempotent."""
        self._db.close()


def _now() -> int:
    return int(time.time() * 1e6)
