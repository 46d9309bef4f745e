"""A store that an earlier version made is the same, once it was opened, as one that this version made."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from logging_by_hand import ARGUMENTS, RESULT, denied, fill_store, hold, intent, opened, outcome, whole_call

from aegis_daemon.audit import store
from aegis_daemon.audit.record import Approval
from aegis_daemon.audit.store import Reader

# As the versions of 2026 made them: `sqlite_master` of their own files.
COMMON = """
CREATE TABLE "records" ("seq" INTEGER PRIMARY KEY, "hash" TEXT NOT NULL, "record" TEXT NOT NULL);
CREATE TABLE "bodies" ("seq" INTEGER PRIMARY KEY, "part" TEXT, "salt" BLOB, "body" TEXT, "length" INTEGER);
CREATE TABLE "calls" (
  "seq" INTEGER PRIMARY KEY, "call_id" TEXT, "request_id" TEXT, "tenant_id" TEXT, "agent_id" TEXT, "principal" TEXT,
  "backend_id" TEXT, "session" TEXT, "era" TEXT, "method" TEXT, "tool_name" TEXT, "arguments_hash" TEXT, "ts" INTEGER,
  "acl_result" TEXT, "rate_limit_result" TEXT, "approval_result" TEXT, "approver" TEXT, "ticket" TEXT,
  "queue_position" INTEGER, "queue_wait_us" INTEGER, "exec_status" TEXT, "exec_duration_us" INTEGER,
  "error_code" INTEGER, "error_message" TEXT, "stage" TEXT, "policy_id" TEXT, "note" TEXT, "consumed" INTEGER,
  "would" INTEGER, "boot" TEXT, "mono" INTEGER, "finished_ts" INTEGER, "result_seq" INTEGER, "seqs" TEXT{more});
CREATE INDEX calls_call ON calls (call_id);
CREATE INDEX calls_agent ON calls (agent_id, ts);
CREATE INDEX calls_backend ON calls (backend_id, ts);
CREATE INDEX calls_tool ON calls (tool_name, ts);
CREATE INDEX calls_time ON calls (ts);
CREATE INDEX calls_status ON calls (exec_status, ts) WHERE exec_status <> 'success';
CREATE INDEX calls_ticket ON calls (ticket) WHERE ticket <> '';
CREATE VIEW log AS SELECT
  request_id, tenant_id, agent_id, principal, backend_id, session, era, method, tool_name, arguments_hash,
  acl_result, rate_limit_result, approval_result, approver, queue_position, queue_wait_us / 1000 AS queue_wait_ms,
  exec_status, exec_duration_us / 1000 AS exec_duration_ms, error_code, error_message, stage, policy_id, {judged}
  call_id, seq,
  strftime('%Y-%m-%dT%H:%M:%S', ts / 1000000, 'unixepoch') || printf('.%06dZ', ts % 1000000) AS created_at
FROM calls;
"""
EARLIER = {
    1: COMMON.format(more="", judged=""),
    2: COMMON.format(more=', "judged_us" INTEGER', judged="judged_us,"),
}


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio"


def some_calls(directory: Path, first: int) -> None:
    with opened(directory) as log:
        whole_call(log, first, judged_us=12)
        log.append(hold(first + 1, judged_us=70, ticket="7K2M"), ARGUMENTS)
        log.append(Approval(call=f"{first + 1:032x}", decision="approved", ticket="7K2M", by="ann", via="cli"))
        log.append(intent(first + 1, judged_us=95, ticket="7K2M"), ARGUMENTS)
        log.append(outcome(first + 1, status="error", error_message="failed"), RESULT)
        log.append(intent(first + 2), b'{"note":"\\"judged_us\\":9"}')
        log.append(denied(first + 3, judged_us=31, policy="p"), ARGUMENTS)
        log.append(intent(first + 4, judged_us=5), ARGUMENTS)


def made_by(version: int, db_path: Path, to: Path) -> None:
    """The same log as that version kept it."""
    with closing(sqlite3.connect(to)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(EARLIER[version])
        db.execute("ATTACH ? AS newer", (str(db_path),))
        for table in ("records", "bodies", "calls"):
            columns = ", ".join(row[1] for row in db.execute(f"PRAGMA main.table_info({table})"))
            db.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newer.{table}")
        db.execute(f"PRAGMA user_version={version}")
        db.commit()


def content(db_path: Path) -> dict[str, Any]:
    """All that a store holds; its columns, indexes and views."""
    with closing(sqlite3.connect(db_path)) as db:
        found: dict[str, Any] = {"version": store.user_version(db)}
        for name, kind, sql in db.execute("SELECT name, type, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"):
            if kind == "table":
                found[name] = (
                    [row[1:3] for row in db.execute(f"PRAGMA table_info({name})")],
                    db.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall(),
                )
            else:
                found[name] = " ".join(sql.split())
        return found


@pytest.mark.parametrize("version", list(EARLIER))
async def test_an_earlier_store_becomes_what_this_version_would_have_made(version: int, tmp_path: Path) -> None:
    directory, today, earlier = tmp_path / "journal", tmp_path / "today.db", tmp_path / "audit.db"
    some_calls(directory, 0)
    assert fill_store(directory, today) == []
    made_by(version, today, earlier)
    with pytest.raises(OSError, match=f"has version {version}, this Aegis reads {store.SCHEMA}"):
        Reader(earlier)
    some_calls(directory, 100)
    for db_path in (today, earlier):
        assert fill_store(directory, db_path) == []
    now, then = content(today), content(earlier)
    assert now.keys() == then.keys()
    for name in now:
        assert then[name] == now[name], name
    with Reader(earlier) as reader:
        report = reader.verify()
        assert (report.faults, report.records, report.checked_calls) == ([], 18, 10)
        assert [call.judged_us for call in reader.search(limit=5)] == [5, 31, 0, 95, 12]
    with closing(sqlite3.connect(earlier)) as db:
        assert db.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    "at", ["ALTER TABLE", "CREATE TABLE", "DROP INDEX", "DROP VIEW", "INSERT INTO", "PRAGMA user_version"]
)
async def test_a_migration_that_was_cut_off_is_gone_through_again(at: str, tmp_path: Path) -> None:
    directory, today, earlier = tmp_path / "journal", tmp_path / "today.db", tmp_path / "audit.db"
    some_calls(directory, 0)
    fill_store(directory, today)
    made_by(1, today, earlier)
    cut_off(earlier, at)
    fill_store(directory, earlier)
    assert content(earlier) == content(today)


def cut_off(db_path: Path, at: str) -> None:
    """Migrates until a statement of this kind, and no further."""
    real = sqlite3.connect

    class Until(sqlite3.Connection):
        def execute(self, sql: str, *more: Any) -> sqlite3.Cursor:
            if sql.lstrip().startswith(at) and sql.strip() != "PRAGMA user_version":
                raise KeyboardInterrupt
            return super().execute(sql, *more)

    sqlite3.connect = lambda *given, **more: real(*given, factory=Until, **more)  # type: ignore[assignment]
    try:
        with pytest.raises(KeyboardInterrupt):
            store.ensure_schema(db_path)
    finally:
        sqlite3.connect = real
