"""Signed logs, copies of them in memory, and the second verifier as a module."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from logging_by_hand import ARGUMENTS, Ingested, denied, hold, intent, opened, outcome, whole_call

from aegis_daemon.audit import keys
from aegis_daemon.audit.notary import Duties, Notary
from aegis_daemon.audit.record import Admin, Approval

SECOND = Path(__file__).parents[2] / "scripts" / "verify_audit"


def second() -> Any:
    """`scripts/verify_audit`, without leaving anything beside it."""
    loader = SourceFileLoader("verify_audit", str(SECOND))
    spec = spec_from_loader("verify_audit", loader)
    assert spec is not None
    module = module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        sys.modules["verify_audit"] = module
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    return module


def remembered(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A pure function that is not asked the same twice; what it raises it raises again."""
    known: dict[Any, tuple[Any, Exception | None]] = {}

    def ask(given: Any) -> Any:
        if given not in known:
            if len(known) > 50_000:
                known.clear()
            try:
                known[given] = function(given), None
            except Exception as error:
                known[given] = None, error
        answer, error = known[given]
        if error is not None:
            raise error.with_traceback(None)
        return answer

    return ask


class Signed:
    """A journal, its store and its notary, in one directory."""

    def __init__(self, at: Path, tenant: str = "default", **duties: Any) -> None:
        self.at = at
        self.directory = at / "journal"
        self.db_path = at / "audit.db"
        self.key_path = at / "audit.key"
        self.tenant = tenant
        self.said: list[str] = []
        at.mkdir(exist_ok=True)
        self.duties = Duties(str(self.key_path), tenant, **duties)
        self.restart()

    def restart(self) -> None:
        """Another writer."""
        self.notary = Notary(self.duties, self.said.append)

    def sign(self, target: int | None = None) -> None:
        """Brings the store up to the journal and signs it."""
        filled = Ingested(self.directory, self.db_path)
        try:
            filled.all(target)
            if filled.ingester.db is None:
                filled.all(target)
            db = filled.ingester.db
            assert db is not None
            self.notary.forget()
            while self.notary.step(db):
                pass
        finally:
            filled.close()

    def again(self) -> None:
        """Signs what the store holds, without the journal."""
        db = sqlite3.connect(self.db_path, isolation_level=None)
        try:
            self.notary.forget()
            while self.notary.step(db):
                pass
        finally:
            db.close()

    def notes(self) -> list[str]:
        """The store's checkpoints, oldest first."""
        db = sqlite3.connect(self.db_path)
        try:
            return [row[0] for row in db.execute("SELECT note FROM checkpoints ORDER BY size")]
        finally:
            db.close()

    def rotate(self) -> None:
        """A new key."""
        keys.use(self.key_path, keys.prepare(self.key_path))


def varied(signed: Signed, first: int) -> None:
    """Some calls of every kind, in the journal."""
    with opened(signed.directory, tenant=signed.tenant) as log:
        for number in range(first, first + 1):
            whole_call(log, number)
        log.append(hold(first + 3, judged_us=70), ARGUMENTS)
        log.append(Approval(call=f"{first + 3:032x}", decision="approved", ticket="7K2M", by="ann", via="cli"))
        log.append(denied(first + 4, judged_us=31), b'{"n": 1.5e-7, "b": [true, null], "a": "\\u00e9\\n"}')
        log.append(intent(first + 3, ticket="7K2M"), ARGUMENTS)
        log.append(denied(first + 5, would=True), b"no JSON")
        log.append(intent(first + 5))
        log.append(Admin(action="reload", detail="=cmd|'/c' \u202e"))
        log.append(outcome(first + 3, status="error", error_code=-32603, error_message="failed"))
        log.append(intent(first + 6), b"\xff\n\t")


def copied(store: bytes) -> sqlite3.Connection:
    """A copy in memory."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.deserialize(store)
    return db


def serialized(path: Path) -> bytes:
    """A store's bytes, for `copied`: SQLite keeps no WAL in memory."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA journal_mode=DELETE")
        return db.serialize()
    finally:
        db.close()
