"""The log as people search it: one SQLite file that only the writer process writes, read here without being able to.

    records  every record as it was hashed, by sequence number
    bodies   arguments and results, by the record they belong to; can be erased without breaking the chain
    calls    one row per call, folded from its records (`calls.py`)
    log      a view of `calls` with times people can read

The journal comes first: what is not here yet is there (`journal.py`).
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aegis_daemon.audit import removals, rollup
from aegis_daemon.audit.calls import COLUMNS, Row, read_record
from aegis_daemon.audit.chain import UNREADABLE
from aegis_daemon.audit.shape import INDEXES as INDEXES
from aegis_daemon.audit.shape import VIEW
from aegis_daemon.audit.verify import Report, Trust, verify
from aegis_daemon.core.past import Past
from aegis_daemon.loop.read_only import Unreplayed, read_only

if TYPE_CHECKING:
    from aegis_daemon.audit.retention import Counts, Plan, Policy

SCHEMA = 3
"""`PRAGMA user_version` of a file this version reads and writes."""
SMALL = 256 << 20
"""Bytes of a file of an earlier version that is made anew, so that it can shrink: some seconds."""


class NotFound(Exception):
    """No call has that id."""


class Ambiguous(Exception):
    """Several calls have ids that begin like this; `ids` names some."""

    def __init__(self, text: str, ids: list[str]) -> None:
        super().__init__(text)
        self.ids = ids


class Known(msgspec.Struct, frozen=True):
    """The newest record of a store, its hash (hex), the first records of calls without an end, the log's chain id."""

    seq: int
    head: str
    open_calls: list[bytes]
    chain: str = ""


# --- the schema ------------------------------------------------------------------------------------------------------


def connect(db_path: Path) -> sqlite3.Connection:
    """A connection that writes, for the writer process. Raises `sqlite3.Error`."""
    db = sqlite3.connect(db_path, timeout=5.0, isolation_level=None)
    try:
        # FULL: journal files are used again once their records are here, so here they must be safe.
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA journal_size_limit=67108864")
        db.execute("PRAGMA wal_autocheckpoint=4000")  # 16 MB: fewer syncs when it is busy
        db.execute("PRAGMA cache_size=-8192")
        db.execute("PRAGMA secure_delete=ON")  # what is erased must not stay where it was
    except BaseException:
        db.close()
        raise
    return db


def user_version(db: sqlite3.Connection) -> int:
    """Which schema a file has; 0 for none."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def ensure_schema(db_path: Path) -> None:
    """Makes the file (0600, WAL) and its tables where they are missing. Raises `sqlite3.Error`, `OSError`.

    sqlite-utils weighs more than the whole writer, so the writer does this in a process of its own, once in a
    store's life.
    """
    fd = os.open(db_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.close(fd)
    with closing(sqlite3.connect(db_path, timeout=5.0)) as db:
        found = user_version(db)
        if found > SCHEMA:
            raise sqlite3.DatabaseError(
                f"the audit store `{db_path}` has version {found}, this Aegis knows {SCHEMA}; run a newer Aegis"
            )
        if found == SCHEMA:
            return
        if found == 1:
            _second(db)
    import sqlite_utils

    database = sqlite_utils.Database(sqlite3.connect(db_path, timeout=5.0), execute_plugins=False)
    try:
        if found == 0:
            database.execute("PRAGMA auto_vacuum=INCREMENTAL")  # before the first table, or never
        database.enable_wal()
        with database.conn:
            database.table("records").create(
                {"seq": int, "hash": str, "record": str}, pk="seq", not_null={"hash", "record"}, if_not_exists=True
            )
            database.table("bodies").create(
                {"seq": int, "part": str, "salt": bytes, "body": str, "length": int}, pk="seq", if_not_exists=True
            )
            kinds = msgspec.structs.fields(Row)
            database.table("calls").create(
                {field.name: int if field.type == "int" or field.type is int else str for field in kinds},
                pk="seq",
                if_not_exists=True,
            )
            for name, what in INDEXES:
                database.execute(f"DROP INDEX IF EXISTS calls_{name}")
                database.execute(f"CREATE INDEX IF NOT EXISTS calls_{name} ON calls {what}")
            for statement in rollup.SCRIPT.split(";"):
                database.execute(statement)
            rollup.rebuild(database.conn)
            for statement in removals.SCRIPT.split(";"):
                database.execute(statement)
            database.execute("DROP VIEW IF EXISTS log")
            database.execute(VIEW)
            database.execute(f"PRAGMA user_version={SCHEMA}")
    finally:
        database.close()
    if 0 < found < SCHEMA and os.stat(db_path).st_size < SMALL:
        with closing(sqlite3.connect(db_path, timeout=5.0)) as db:
            try:
                db.execute("PRAGMA auto_vacuum=INCREMENTAL")
                db.execute("VACUUM")
            except sqlite3.OperationalError:
                pass  # no room for it: what a purge frees is used again, but not given back


def _second(db: sqlite3.Connection) -> None:
    """Makes a store of version 1 one of version 2, which has a column for what its records say already."""
    db.isolation_level = None
    db.execute("BEGIN IMMEDIATE")
    if user_version(db) == 1:
        if not db.execute("SELECT 1 FROM pragma_table_info('calls') WHERE name = 'judged_us'").fetchone():
            db.execute("ALTER TABLE calls ADD COLUMN judged_us INTEGER NOT NULL DEFAULT 0")
        judged = "SELECT seq, record FROM records WHERE record LIKE '%\"judged_us\":%' ORDER BY seq"
        for seq, text in db.execute(judged):
            try:
                record = read_record(text)
            except (*UNREADABLE, TypeError):
                continue  # `verify` says so
            newest = "SELECT max(seq) FROM calls WHERE call_id = ? AND seq <= ?"
            if record.judged_us:
                db.execute(
                    f"UPDATE calls SET judged_us = ? WHERE seq = ({newest})",  # noqa: S608
                    (record.judged_us, record.call, seq),
                )
        db.execute("DROP VIEW IF EXISTS log")
        db.execute(VIEW)
        db.execute("PRAGMA user_version = 2")
    db.execute("COMMIT")


def chain_head(db_path: Path) -> Known | None:
    """What a store knows of the chain; None where it holds no record. Raises `OSError` where it cannot be read."""
    try:
        with closing(read_only(db_path)) as db:
            if user_version(db) == 0:
                return None
            newest = db.execute("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1").fetchone()
            if newest is None:
                return None
            pending = db.execute("SELECT seqs FROM calls WHERE exec_status = 'pending' AND exec_status <> 'success'")
            texts = [_deciding(db, row[0]) for row in pending.fetchall()]
            from aegis_daemon.audit import warrants

            chain = warrants.chain_of(db)
            return Known(newest[0], newest[1], [text for text in texts if text is not None], chain)
    except sqlite3.Error as error:
        raise OSError(f"the audit store `{db_path}` cannot be read: {error}") from error


def hash_of(db_path: Path, seq: int) -> str:
    """A record's hash (hex), empty where it is not there. Raises `OSError` where the store cannot be read."""
    try:
        with closing(read_only(db_path)) as db:
            row = db.execute("SELECT hash FROM records WHERE seq = ?", (seq,)).fetchone()
            return str(row[0]) if row is not None else ""
    except sqlite3.Error as error:
        raise OSError(f"the audit store `{db_path}` cannot be read: {error}") from error


def _deciding(db: sqlite3.Connection, seqs: str) -> bytes | None:
    """The newest hold or intent among a call's records."""
    for seq in reversed(seqs.split(",")):
        row = db.execute("SELECT record FROM records WHERE seq = ?", (int(seq),)).fetchone()
        if row is not None and read_record(row[0]).kind in ("intent", "hold"):
            return str(row[0]).encode()
    return None


# --- reading ---------------------------------------------------------------------------------------------------------


class CallView(msgspec.Struct, frozen=True):
    """One call as the API shows it. `arguments` and `result` are JSON text, None where not kept or not asked for.

    `result_length` is the whole result's bytes, of which at most 16 KiB are kept. `judged_us` is 0 where judging was
    not measured. Durations count from the whole millisecond below.
    """

    seq: int
    call_id: str
    request_id: str
    tenant_id: str
    agent_id: str
    principal: str
    backend_id: str
    session: str
    era: str
    method: str
    tool_name: str
    arguments: str | None
    arguments_hash: str
    acl_result: str
    rate_limit_result: str
    approval_result: str
    approver: str
    ticket: str
    queue_position: int
    queue_wait_ms: int
    exec_status: str
    exec_duration_ms: int
    exec_duration_us: int
    judged_us: int
    result: str | None
    result_length: int | None
    error_code: int
    error_message: str
    stage: str
    policy_id: str
    note: str
    consumed: bool
    would: bool
    created_at: str
    finished_at: str | None


class RecordView(msgspec.Struct, frozen=True):
    """One record; `record` is its canonical JSON, `body` what is kept beside it."""

    seq: int
    hash: str
    record: msgspec.Raw
    body: str | None
    created_at: str


class Gone(msgspec.Struct, frozen=True):
    """Arguments and results that were erased: by the order of record `seq`, and why."""

    seq: int
    by: str
    at: str
    why: str


class Shown(msgspec.Struct, frozen=True):
    """One call with all its records, oldest first."""

    call: CallView
    records: list[RecordView]


BODIES = "SELECT c.*, a.body, r.body, r.length FROM calls c LEFT JOIN bodies a ON a.seq = c.seq LEFT JOIN bodies r ON r.seq = c.result_seq"  # noqa: E501
PLAIN = "SELECT c.*, NULL, NULL, NULL FROM calls c"
_PAST = "SELECT c.seq, c.ts, c.call_id, c.agent_id, c.backend_id, c.session, c.era, c.method, c.tool_name, CAST(a.body AS BLOB), c.arguments_hash, c.approval_result, c.exec_status, c.stage, c.policy_id, c.would FROM calls c LEFT JOIN bodies a ON a.seq = c.seq"  # noqa: E501
_COUNT = "SELECT count(*) FROM calls c WHERE c.seq > 0"


class Reader:
    """Reads the store while the writer writes it; cannot change it. Raises `OSError` where there is none."""

    def __init__(self, db_path: Path) -> None:
        try:
            self._db = read_only(db_path)
            found = user_version(self._db)
        except Unreplayed as error:
            raise OSError(str(error)) from error
        except sqlite3.Error as error:
            if not db_path.exists():
                raise OSError(
                    f"there is no audit store `{db_path}`; the daemon makes one when it starts, or name the right file"
                ) from error
            raise OSError(
                f"the audit store `{db_path}` cannot be read: {error}; start the daemon, or name the right file"
            ) from error
        if found != SCHEMA:
            self._db.close()
            raise OSError(
                f"the audit store `{db_path}` has version {found}, this Aegis reads {SCHEMA}; start its own daemon once"
            )

    def close(self) -> None:
        """Idempotent."""
        self._db.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search(
        self,
        *,
        agent: str | None = None,
        backend: str | None = None,
        tool: str | None = None,
        method: str | None = None,
        status: str | None = None,
        since: int | None = None,
        until: int | None = None,
        text: str | None = None,
        limit: int = 50,
        before: int | None = None,
        bodies: bool = True,
        patience_s: float = float("inf"),
    ) -> list[CallView]:
        """Calls, newest first, as `audit.search` finds them; times are microseconds, `until` excluded.

        `status` `would` finds what observe mode let pass. `text` is looked for in the arguments, in any case (ASCII).
        `before` is the `seq` of the last row of the page before this one. Raises `TimeoutError` where it takes longer
        than `patience_s` seconds.
        """
        from aegis_daemon.audit.search import Query, find

        query = Query(
            agent=agent, backend=backend, tool=tool, method=method, verdict=status, since=since, until=until, text=text
        )
        found = find(self, query, limit=limit, before=before, bodies=bodies, patience_s=patience_s)
        if found.looked_to is not None:
            raise TimeoutError("the audit store did not answer in time")
        return found.rows

    def past(
        self,
        *,
        agent: str | None = None,
        backend: str | None = None,
        tool: str | None = None,
        since: int | None = None,
        until: int | None = None,
        page: int = 500,
    ) -> Iterator[Past]:
        """Calls as they were judged, newest first, read a page at a time; the names are globs."""
        condition, given = _within(agent, backend, tool, since, until)
        place = (2**63 - 1, 2**63 - 1)
        while True:
            question = f"{_PAST} WHERE (c.ts, c.seq) < (?, ?){condition} ORDER BY c.ts DESC, c.seq DESC LIMIT ?"
            count = 0
            for row in self._db.execute(question, (*place, *given, page)):  # one by one: a body may have a megabyte
                count += 1
                place = (row[1], row[0])
                yield Past(*row)
            if count < page:
                return

    def count_past(
        self,
        *,
        agent: str | None = None,
        backend: str | None = None,
        tool: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> int:
        """How many calls `past` gives."""
        condition, given = _within(agent, backend, tool, since, until)
        return int(self._db.execute(_COUNT + condition, given).fetchone()[0])

    def show(self, id: str) -> Shown:
        """A call by its id, the beginning of its id, or its ticket. Raises `NotFound`, `Ambiguous`."""
        low = id.lower()
        rows: list[tuple[Any, ...]] = []
        if low and all(sign in "0123456789abcdef" for sign in low):
            rows = self._db.execute(
                f"{BODIES} WHERE c.call_id >= ? AND c.call_id < ? ORDER BY c.call_id, c.seq DESC LIMIT 6",
                (low, low + "g"),
            ).fetchall()
        if not rows and id:
            rows = self._db.execute(
                f"{BODIES} WHERE c.ticket = ? AND c.ticket <> '' ORDER BY c.seq DESC LIMIT 1", (id.upper(),)
            ).fetchall()
        if not rows:
            raise NotFound(f"no call `{id}` in the audit log; `aegis audit search` lists calls")
        ids = list(dict.fromkeys(row[COLUMNS.index("call_id")] for row in rows))
        if len(ids) > 1:
            raise Ambiguous(f"`{id}` begins the ids of several calls; give more of it", ids)
        seqs = [int(seq) for row in rows for seq in str(row[COLUMNS.index("seqs")]).split(",")]
        records = self._db.execute(
            "SELECT r.seq, r.hash, r.record, b.body FROM records r LEFT JOIN bodies b ON b.seq = r.seq "
            "WHERE r.seq IN (SELECT value FROM json_each(?)) ORDER BY r.seq",
            (msgspec.json.encode(seqs).decode(),),
        )
        return Shown(view(rows[0]), [record_view(row) for row in records])

    def call_of(self, seq: int) -> str:
        """The id of the call that a record belongs to; empty for none."""
        row = self._db.execute("SELECT record FROM records WHERE seq = ?", (seq,)).fetchone()
        try:
            return read_record(row[0]).call if row is not None else ""
        except (*UNREADABLE, TypeError):
            return ""

    def tail(self, after_seq: int, limit: int = 1000) -> list[RecordView]:
        """Records behind `after_seq`, oldest first; a negative number counts from the end."""
        if after_seq < 0:
            after_seq = max(0, self.last_seq() + after_seq)
        rows = self._db.execute(
            "SELECT r.seq, r.hash, r.record, b.body FROM records r LEFT JOIN bodies b ON b.seq = r.seq "
            "WHERE r.seq > ? ORDER BY r.seq LIMIT ?",
            (after_seq, limit),
        )
        return [record_view(row) for row in rows]

    def ask(self, question: str, given: tuple[object, ...], *, until: float) -> list[tuple[Any, ...]]:
        """The rows of a query of ours. Raises `TimeoutError` where it is not done by then (`time.monotonic`)."""
        self._db.set_progress_handler(lambda: time.monotonic() > until, 10_000)
        try:
            return self._db.execute(question, given).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname == "SQLITE_INTERRUPT":
                raise TimeoutError("the audit store did not answer in time") from None
            raise
        finally:
            self._db.set_progress_handler(None, 0)

    def last_seq(self) -> int:
        """The newest record."""
        return int(self._db.execute("SELECT ifnull(max(seq), 0) FROM records").fetchone()[0])

    def consumed_since(self, ts: int) -> Iterator[tuple[str, str, str, str, int, int]]:
        """Calls that count against limits and ended at `ts` (microseconds since the epoch) or later, oldest first.

        Gives (agent, backend, tool, boot, mono, ts), the times being those of the call's end.
        """
        # A call ends after it began; one that ran for more than a day before `ts` is not looked for.
        return iter(
            self._db.execute(
                "SELECT agent_id, backend_id, tool_name, boot, mono, finished_ts FROM calls "
                "WHERE ts >= ? AND consumed = 1 AND finished_ts >= ? ORDER BY ts",
                (ts - 86_400_000_000, ts),
            )
        )

    def spent_since(
        self, ts: int, counts: Callable[[str, str], bool]
    ) -> Iterator[tuple[str, str, str, str, int, int, bytes | None]]:
        """The same of tools for which `counts(backend, tool)` holds, and the arguments (JSON) where they are kept."""
        since = (ts - 86_400_000_000, ts)
        found = self._db.execute(
            "SELECT DISTINCT backend_id, tool_name FROM calls WHERE ts >= ? AND consumed = 1 AND finished_ts >= ?",
            since,
        )
        named = msgspec.json.encode([pair for pair in found if counts(*pair)]).decode()
        return iter(
            self._db.execute(
                "SELECT agent_id, backend_id, tool_name, boot, mono, finished_ts, CAST(b.body AS BLOB) FROM calls "
                "LEFT JOIN bodies b ON b.seq = calls.seq WHERE ts >= ? AND consumed = 1 AND finished_ts >= ? AND "
                "(backend_id, tool_name) IN "
                "(SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)) ORDER BY ts",
                (*since, named),
            )
        )

    # --- removing ----------------------------------------------------------------------------------------------------

    def plan(self, before: int, policy: Policy, now: int) -> tuple[Plan, Counts]:
        """What a purge of everything before `before` takes away; times are microseconds since the epoch."""
        from aegis_daemon.audit.retention import count, plan

        found = plan(self._db, before, policy, now)
        return found, count(self._db, found)

    def exported(self, policy: Policy) -> dict[str, int]:
        """The newest record of this log that each export has had; without those that had none. Raises `OSError`."""
        from aegis_daemon.audit.retention import exported

        return exported(self._db, policy)

    def purged(self) -> int:
        """The newest record of which the hash alone is kept; 0 for none."""
        return int(self._db.execute("SELECT ifnull(max(seq), 0) FROM leaves").fetchone()[0])

    def bodies_of(self, calls: Iterable[int]) -> list[int]:
        """The records of these calls (each by its first record) that have arguments or a result."""
        return [
            row[0]
            for row in self._db.execute(
                "SELECT b.seq FROM calls c, json_each('[' || c.seqs || ']') s JOIN bodies b ON b.seq = s.value "
                "WHERE c.seq IN (SELECT value FROM json_each(?)) AND b.salt IS NOT NULL ORDER BY b.seq",
                (msgspec.json.encode(list(calls)).decode(),),
            )
        ]

    def undone(self, action: str) -> int:
        """How many orders of this kind were not carried out yet."""
        found = self._db.execute("SELECT count(*) FROM removals WHERE action = ? AND done = 0", (action,)).fetchone()
        return int(found[0])

    def removed(self, seq: int, key_file: Path | None = None) -> Gone | None:
        """Who ordered the body of this record to go; None where nobody did, by the keys beside `key_file`.

        Without that, by the keys that the store itself has. Raises `OSError` where they cannot be read.
        """
        from aegis_daemon.audit import warrants

        for removal, said in warrants.standing(self._db, warrants.publics_of(self._db, key_file)):
            if any(low <= seq <= high for low, high in removal.ranges):
                return Gone(removal.seq, said.by, _instant(said.ts), said.detail.partition(": ")[2])
        return None

    def chain(self) -> str:
        """The log's chain id (16 hex digits), "" while it has no record."""
        from aegis_daemon.audit import warrants

        return warrants.chain_of(self._db)

    # --- verifying ---------------------------------------------------------------------------------------------------

    def verify(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        newest: int | None = None,
        trust: Trust | None = None,
        since: int = 1,
    ) -> Report:
        """Checks everything (`verify.py`)."""
        return verify(self._db, progress=progress, newest=newest, trust=trust, since=since)

    def newest_checkpoint(self) -> str | None:
        """The newest signed checkpoint, as a note; None where nothing was signed."""
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'checkpoints'").fetchone():
            return None
        row = self._db.execute("SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
        return None if row is None else str(row[0])


def _within(
    agent: str | None, backend: str | None, tool: str | None, since: int | None, until: int | None
) -> tuple[str, tuple[Any, ...]]:
    """Conditions, each behind an `AND`, and what they compare with."""
    text = ""
    given: list[Any] = []
    for column, glob in (("agent_id", agent), ("backend_id", backend), ("tool_name", tool)):
        if glob is not None:
            text += f" AND +c.{column} GLOB ?"  # `+`: by time alone, else each page would sort all there is
            given.append(glob.replace("[!", "[^"))
    for sign, at in ((">=", since), ("<", until)):
        if at is not None:
            text += f" AND c.ts {sign} ?"
            given.append(at)
    return text, tuple(given)


def _instant(ts: int) -> str:
    """RFC 3339 in UTC."""
    try:
        seconds, micros = divmod(ts, 1_000_000)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06}Z"
    except (ValueError, OverflowError, OSError):
        return ""


def _text(body: object) -> str | None:
    if isinstance(body, bytes):
        return body.decode(errors="replace")
    return None if body is None else str(body)


def view(found: tuple[Any, ...]) -> CallView:
    """A row of `BODIES` or `PLAIN`."""
    row = Row(*found[: len(COLUMNS)])
    arguments, result, result_length = found[len(COLUMNS) :]
    return CallView(
        seq=row.seq,
        call_id=row.call_id,
        request_id=row.request_id,
        tenant_id=row.tenant_id,
        agent_id=row.agent_id,
        principal=row.principal,
        backend_id=row.backend_id,
        session=row.session,
        era=row.era,
        method=row.method,
        tool_name=row.tool_name,
        arguments=_text(arguments),
        arguments_hash=row.arguments_hash,
        acl_result=row.acl_result,
        rate_limit_result=row.rate_limit_result,
        approval_result=row.approval_result,
        approver=row.approver,
        ticket=row.ticket,
        queue_position=row.queue_position,
        queue_wait_ms=row.queue_wait_us // 1000,
        exec_status=row.exec_status,
        exec_duration_ms=row.exec_duration_us // 1000,
        exec_duration_us=row.exec_duration_us,
        judged_us=row.judged_us,
        result=_text(result),
        result_length=result_length,
        error_code=row.error_code,
        error_message=row.error_message,
        stage=row.stage,
        policy_id=row.policy_id,
        note=row.note,
        consumed=bool(row.consumed),
        would=bool(row.would),
        created_at=_instant(row.ts),
        finished_at=_instant(row.finished_ts) if row.finished_ts else None,
    )


def record_view(row: tuple[Any, ...]) -> RecordView:
    """Of (seq, hash, record, body)."""
    seq, stored, text, body = row
    try:
        created = _instant(read_record(text).ts)
        raw = msgspec.Raw(text.encode())
    except (*UNREADABLE, TypeError, AttributeError):
        created, raw = "", msgspec.Raw(msgspec.json.encode(_text(text)))
    return RecordView(seq, str(stored), raw, _text(body), created)


if __name__ == "__main__":  # the writer runs this once, when a store is new
    os.umask(0o077)
    try:
        ensure_schema(Path(sys.argv[1]))
    except (sqlite3.Error, OSError) as error:
        sys.exit(str(error))
