"""What the store's file may consist of: these tables, indexes and one view, and nothing that acts by itself.

Whoever can write to the file can also change what is found in it without touching a row: by an index that lacks some, a
view that leaves some out, a trigger. So `verify` compares the schema with this, and each index with its table.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import msgspec

from aegis_daemon.audit import notary, removals, rollup
from aegis_daemon.audit.calls import Row

INDEXES: Final[tuple[tuple[str, str], ...]] = (
    ("call", "(call_id)"),
    # What is asked for along with a name is beside it, so that no row is fetched only to be passed over.
    ("agent", "(agent_id, ts, seq, tool_name, exec_status)"),
    ("backend", "(backend_id, ts, seq, exec_status)"),
    ("tool", "(tool_name, ts, seq, agent_id, exec_status)"),
    ("time", "(ts)"),
    # Most calls succeed, so nobody looks for those by their status, and they cost nothing here.
    ("status", "(exec_status, ts, seq, agent_id, backend_id, tool_name) WHERE exec_status <> 'success'"),
    ("ticket", "(ticket) WHERE ticket <> ''"),
    # Few calls have any of these.
    ("stage", "(stage, ts, seq, agent_id, backend_id, tool_name) WHERE stage <> ''"),
    ("policy", "(policy_id, ts, seq, agent_id, backend_id, tool_name) WHERE policy_id <> ''"),
    ("approver", "(approver, ts, seq, agent_id, backend_id, tool_name) WHERE approver <> ''"),
    ("asked", "(ts) WHERE ticket <> ''"),
    ("would", "(ts) WHERE would = 1"),
)
VIEW: Final = """
CREATE VIEW log AS SELECT
  request_id, tenant_id, agent_id, principal, backend_id, session, era, method, tool_name, arguments_hash,
  acl_result, rate_limit_result, approval_result, approver, queue_position, queue_wait_us / 1000 AS queue_wait_ms,
  exec_status, exec_duration_us / 1000 AS exec_duration_ms, error_code, error_message, stage, policy_id,
  judged_us, call_id, seq,
  strftime('%Y-%m-%dT%H:%M:%S', ts / 1000000, 'unixepoch') || printf('.%06dZ', ts % 1000000) AS created_at
FROM calls
"""
SHOWN: Final = 20
"""Faults of a file's inside that are told one by one."""
_OWN: Final = frozenset({"sqlite_autoindex_tallies_1", "sqlite_autoindex_asks_1"})
"""Indexes that SQLite makes by itself."""
_TOKEN: Final = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|\[[^\]]*\]|`[^`]*`|\w+|\S""")
_NAMED: Final = re.compile(r"(?:TABLE|INDEX|VIEW) (\S+)")

Sql = tuple[str, ...]


@lru_cache(256)
def _read(sql: str) -> Sql:
    """The words of a statement, however they are spaced and quoted; what is between `'` stays as it is."""
    words = _TOKEN.findall(sql)
    return tuple(word[1:-1] if len(word) > 1 and word[0] in '"[`' else word for word in words)


def _made() -> dict[str, set[Sql]]:
    """What may be there, by name: as one version or another wrote it."""
    columns = [f"{f.name} {'INTEGER' if f.type in ('int', int) else 'TEXT'}" for f in msgspec.structs.fields(Row)]
    columns[0] += " PRIMARY KEY"
    calls = ", ".join(columns)
    statements = [
        "CREATE TABLE records (seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, record TEXT NOT NULL)",
        "CREATE TABLE bodies (seq INTEGER PRIMARY KEY, part TEXT, salt BLOB, body TEXT, length INTEGER)",
        f"CREATE TABLE calls ({calls})",
        f"CREATE TABLE calls ({calls} NOT NULL DEFAULT 0)",  # begun by version 1
        *(f"CREATE INDEX calls_{name} ON calls {what}" for name, what in INDEXES),
        VIEW,
        *(each for script in (rollup.SCRIPT, removals.SCRIPT, notary.SCRIPT) for each in script.split(";")),
    ]
    made: dict[str, set[Sql]] = {}
    for statement in statements:
        statement = statement.replace("IF NOT EXISTS ", "")
        if found := _NAMED.search(statement):
            made.setdefault(found[1], set()).add(_read(statement))
    return made


_MADE: Final = _made()
_LATER: Final = frozenset({"checkpoints", "tree", "keys"})
"""Made when something is signed."""


def strange(db: sqlite3.Connection) -> Iterator[tuple[bool, str]]:
    """What of the schema no version of Aegis made, for people, and whether it is a table. Raises `sqlite3.Error`."""
    missing = set(_MADE) - _LATER
    for kind, name, table, sql in db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"):
        kind, name = str(kind), str(name)
        missing.discard(name)
        made = _MADE.get(name)
        if made is not None:
            words = next(iter(made))
            right = kind.upper() == words[1] and table == ("calls" if kind == "index" else name)
            if not right or sql is None or _read(str(sql)) not in made:
                yield words[1] == "TABLE", f"the {words[1].lower()} `{name}` of the store is not as Aegis makes it"
        elif not (name in _OWN and sql is None) and not (kind == "table" and name.startswith("sqlite_stat")):
            yield kind == "table", f"the store has a {kind} `{name}`, which is none of Aegis's"
    for name in sorted(missing):
        yield next(iter(_MADE[name]))[1] == "TABLE", f"the store has no `{name}`"


def damaged(db: sqlite3.Connection) -> Iterator[str]:
    """Where an index does not say what its table does, or the file is broken. Raises `sqlite3.Error`."""
    for (text,) in db.execute(f"PRAGMA integrity_check({SHOWN})"):
        if text != "ok":
            yield " ".join(str(text).split())
