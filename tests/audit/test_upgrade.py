"""A store that an earlier version made is opened, brought up to date, written on and verified."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from logging_by_hand import ARGUMENTS, change, denied, fill, fill_store, hold, intent, opened, whole_call

from aegis_daemon.audit import store
from aegis_daemon.audit.store import Reader

CALLS = """seq INTEGER PRIMARY KEY, call_id TEXT, request_id TEXT, tenant_id TEXT, agent_id TEXT, principal TEXT,
  backend_id TEXT, session TEXT, era TEXT, method TEXT, tool_name TEXT, arguments_hash TEXT, ts INTEGER,
  acl_result TEXT, rate_limit_result TEXT, approval_result TEXT, approver TEXT, ticket TEXT, queue_position INTEGER,
  queue_wait_us INTEGER, exec_status TEXT, exec_duration_us INTEGER, error_code INTEGER, error_message TEXT,
  stage TEXT, policy_id TEXT, note TEXT, consumed INTEGER, would INTEGER, boot TEXT, mono INTEGER,
  finished_ts INTEGER, result_seq INTEGER, seqs TEXT"""
INDEXES = """
CREATE INDEX calls_call ON calls (call_id); CREATE INDEX calls_agent ON calls (agent_id, ts);
CREATE INDEX calls_backend ON calls (backend_id, ts); CREATE INDEX calls_tool ON calls (tool_name, ts);
CREATE INDEX calls_time ON calls (ts); CREATE INDEX calls_ticket ON calls (ticket) WHERE ticket <> '';
CREATE INDEX calls_status ON calls (exec_status, ts) WHERE exec_status <> 'success';
CREATE VIEW log AS SELECT call_id, seq FROM calls;
"""
SCHEMAS = {
    1: f"CREATE TABLE calls ({CALLS});{INDEXES}",
    2: f"CREATE TABLE calls ({CALLS}, judged_us INTEGER NOT NULL DEFAULT 0);{INDEXES}",
}
"""As those versions made them; `records` and `bodies` are as they were."""


def made_by(version: int, of: Path, at: Path) -> None:
    """The records of a store, as an earlier version held them."""
    with closing(sqlite3.connect(at)) as db:
        db.executescript(
            "PRAGMA journal_mode=WAL;"
            "CREATE TABLE records (seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, record TEXT NOT NULL);"
            "CREATE TABLE bodies (seq INTEGER PRIMARY KEY, part TEXT, salt BLOB, body TEXT, length INTEGER);"
            + SCHEMAS[version]
            + f"PRAGMA user_version={version}"
        )
        db.execute("ATTACH ? AS new", (str(of),))
        for table in ("records", "bodies", "calls"):
            names = ", ".join(row[1] for row in db.execute(f"PRAGMA main.table_info({table})"))
            db.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM new.{table}")
        db.commit()


@pytest.mark.parametrize("version", sorted(SCHEMAS))
async def test_a_store_of_an_earlier_version_goes_on_and_verifies(tmp_path: Path, version: int) -> None:
    assert set(SCHEMAS) == set(range(1, store.SCHEMA)), "keep what the version before made"
    directory, db_path = tmp_path / "journal", tmp_path / "audit.db"
    with opened(directory) as log:
        fill(log, range(20))
        log.append(hold(30, judged_us=40), ARGUMENTS)
        log.append(denied(31, judged_us=50), ARGUMENTS)
        log.append(intent(32, judged_us=60), ARGUMENTS)
    assert fill_store(directory, tmp_path / "new.db") == []
    made_by(version, tmp_path / "new.db", db_path)
    with pytest.raises(OSError, match=f"has version {version}"):
        Reader(db_path)
    with opened(directory, db_path=db_path) as log:
        whole_call(log, 40)
    assert fill_store(directory, db_path) == []
    assert fill_store(directory, tmp_path / "new.db") == []
    with Reader(db_path) as upgraded, Reader(tmp_path / "new.db") as new:
        report = upgraded.verify()
        assert (report.faults, report.records) == ([], 45)
        assert upgraded.search(limit=100) == new.search(limit=100)
    # A version that was killed halfway, or a change that nobody ordered, is told as before.
    change(db_path, "UPDATE records SET record = replace(record, 'files', 'other') WHERE seq = 7")
    with Reader(db_path) as changed:
        assert [fault.seq for fault in changed.verify().faults] != []
