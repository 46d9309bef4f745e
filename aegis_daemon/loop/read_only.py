"""An SQLite file is read and never changed, where nothing can be written as well: a read-only medium, for one."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path


class Unreplayed(sqlite3.OperationalError):
    """The newest rows lie in the file's log, and SQLite reads them only where it can write; the text says so."""


def read_only(path: Path) -> sqlite3.Connection:
    """A connection without transactions of its own, for any thread. Raises `sqlite3.Error`."""
    uri = path.absolute().as_uri()
    try:
        return _opened(f"{uri}?mode=ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if not os.access(path, os.R_OK) or (os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK)):
            raise
        try:
            pending = os.stat(f"{path}-wal").st_size
        except OSError:
            pending = 0
        if pending:
            raise Unreplayed(
                f"the newest part of `{path}` is in `{path.name}-wal`, and cannot be read where nothing can be "
                f"written: copy `{path.name}`, `{path.name}-wal` and `{path.name}-shm` (as far as they are there) to "
                "a writable place, and read that"
            ) from None
    return _opened(f"{uri}?immutable=1")


def _opened(uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA query_only=1")
        db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    except BaseException:
        db.close()
        raise
    return db
