"""The writer process: what the journal has committed is in SQLite soon, in order, once, whatever is killed when.

Run as `python -I -m aegis_daemon.audit.ingest JOURNAL STORE sync|nosync idle|urgent [DUTIES [POLICY]]`. Lines in: the
newest sequence number that may be ingested. Lines out: `ingested N`; `gap A B` where records A to B are nowhere; `aside
NAME` where the store belonged to another chain and was moved there; `trouble TEXT` (`full TEXT` where that is the disk,
`held TEXT` where somebody reads) while something keeps it from writing, which it tries again every second; what the
notary says (`notary.py`), where DUTIES (JSON) are given, and the keeper (`retention.py`), which goes by POLICY (JSON).
Ends at the end of its input, after one more look at the journal.

SQLite's own newest record says where to go on, and a batch is one transaction: so nothing is ingested twice or left
out. With `sync`, the journal is synced before what was read from it is committed, so that SQLite does not know more
than the journal does after a power loss; where it does all the same (after a sync that failed), the journal goes on
behind it.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import math
import os
import select
import signal
import sqlite3
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from aegis_daemon.audit import removals, rollup, store
from aegis_daemon.audit.calls import CHANGING, COLUMNS, Row, Stored, fold, read_record
from aegis_daemon.audit.disk import read_header, sync_file
from aegis_daemon.audit.notary import Duties, Notary
from aegis_daemon.audit.record import GENESIS
from aegis_daemon.audit.retention import Keeper, Policy
from aegis_daemon.audit.segment import Header, Line, decode_line, later

BATCH_BYTES = 2 << 20
"""Journal bytes in one transaction: some 3 000 records."""
ROOM = 64 << 20
"""Bytes on the disk with which SQLite's log may grow to its 16 MB and be copied, and the journal have its next file."""
BREATH = 500
"""SQLite's instructions between two breaths, some 30 us."""
_INSERT_RECORD = "INSERT INTO records VALUES (?, ?, ?)"
_INSERT_BODY = "INSERT INTO bodies VALUES (?, ?, ?, ?, ?)"
_INSERT_ORDER = "INSERT OR IGNORE INTO removals (seq, action, detail, by, ts) VALUES (?, ?, ?, ?, ?)"
_INSERT_CALL = f"INSERT INTO calls VALUES ({','.join('?' * len(COLUMNS))})"  # noqa: S608
_UPDATE_CALL = f"UPDATE calls SET {','.join(f'{name} = ?' for name in CHANGING)} WHERE seq = ?"  # noqa: S608
_AT = len(COLUMNS) - len(CHANGING)


class _Held(sqlite3.OperationalError):
    """Somebody who reads keeps the WAL from being copied."""


def _trouble(error: sqlite3.Error | OSError) -> str:
    """The word for what keeps it from writing."""
    if isinstance(error, _Held):
        return "held"
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    else:
        full = getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
    return "full" if full else "trouble"


Say = Callable[[str], None]
Place = tuple[Header, Path]


class Ingester:
    """Brings one store up to one journal. After any error, the next `step` begins with a look at both."""

    def __init__(self, directory: Path, db_path: Path, *, sync: bool, say: Say) -> None:
        self._directory = directory
        self._db_path = db_path
        self._sync = sync
        self._say = say
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._open: dict[str, Row] = {}
        self._seq = 0
        self._head = GENESIS
        self._orders: list[tuple[int, str, str, str, int]] = []
        # The file being read, and how far.
        self._fd = -1
        self._failed = False
        """whether what SQLite shows may not be on disk"""
        self._short = False
        """whether there was no room on the disk, and it has yet to catch up since"""
        self._header = Header(0, 0, GENESIS, 0)
        self._at = 0

    @property
    def seq(self) -> int:
        """The newest record in the store."""
        return self._seq

    @property
    def db(self) -> sqlite3.Connection | None:
        """The store, while it is open."""
        return self._db

    def close(self) -> None:
        """Forgets everything but where things are; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._db is not None:
            self._db.close()
            self._db = None
        self._open = {}

    def step(self, target: int | None) -> bool:
        """Ingests one batch of records up to `target` (None: all there are); gives whether there was one.

        Raises `sqlite3.Error`, `OSError`.
        """
        try:
            if self._db is not None and self._found() != self._identity:
                self.close()  # somebody deleted or replaced the file
            if self._db is None:
                self._begin()
            if self._fd < 0 and not self._locate():
                return False
            if target is not None and target <= self._seq:
                self._short = False
                return False
            return self._batch(target)
        except BaseException as error:
            self._failed = self._failed or not isinstance(error, _Held)
            self._short = self._short or (isinstance(error, sqlite3.Error | OSError) and _trouble(error) == "full")
            self.close()
            raise

    # --- where to go on ----------------------------------------------------------------------------------------------

    def _found(self) -> tuple[int, int] | None:
        try:
            info = os.stat(self._db_path)
        except FileNotFoundError:
            return None
        return info.st_dev, info.st_ino

    def _begin(self) -> None:
        self._db_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._db_path.exists():
            self._make()
        db = self._db = store.connect(self._db_path)
        if store.user_version(db) != store.SCHEMA:
            db.close()
            self._make()
            db = self._db = store.connect(self._db_path)
        db.set_progress_handler(_breathe, BREATH)
        self._settle(db)
        self._identity = self._found()
        row = db.execute("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1").fetchone()
        self._seq, self._head = row if row is not None else (0, GENESIS)
        pending = "SELECT * FROM calls WHERE exec_status = 'pending' AND exec_status <> 'success'"
        self._open = {row.call_id: row for row in (Row(*found) for found in db.execute(pending))}

    def _settle(self, db: sqlite3.Connection) -> None:
        """Puts what the store shows on disk before it counts as ingested. Raises `sqlite3.Error`.

        A writer that was killed, or whose sync failed, leaves transactions in the WAL that SQLite then takes for
        committed, and that no disk need have. Copied into the file itself, they are written and synced anew.
        """
        busy, size, copied = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if busy or copied < size:  # somebody reads an earlier state
            if self._failed:
                raise _Held("somebody reads it while it must be put on disk again")
            db.execute("BEGIN IMMEDIATE")
            db.execute(f"PRAGMA user_version={store.SCHEMA}")
            db.execute("COMMIT")  # syncs the WAL, which is enough where no sync has failed
        self._failed = False

    def _make(self) -> None:
        """In a process of its own: what that imports would stay here for good."""
        import subprocess

        arguments = [sys.executable, "-I", "-m", "aegis_daemon.audit.store", str(self._db_path)]
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise sqlite3.OperationalError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no schema")

    def _places(self) -> list[Place]:
        found = []
        for path in self._directory.glob("seg-*.jnl"):
            try:
                header = read_header(path)
            except FileNotFoundError:
                continue
            if header is not None:
                found.append((header, path))
        return sorted(found, key=lambda place: place[0].generation)

    def _locate(self) -> bool:
        """Finds the store's newest record in the journal; False where the journal is empty."""
        places = self._places()
        if not places:
            return False
        before = [place for place in places if place[0].first_seq <= self._seq + 1]
        if not before:
            self._read(places[0])  # what lies between is nowhere: `_batch` says so
            return True
        self._read(before[-1])
        if self._header.first_seq == self._seq + 1:
            if self._header.prev != self._head:
                self._step_aside()
            return True
        data = self._rest()
        start = self._at
        newest = 0
        for line, end in later(data, 0, self._header.first_seq - 1):
            newest = line.link.seq
            if newest == self._seq and line.hash != self._head:
                self._step_aside()
                return True
            if newest > self._seq:
                break  # its own line is damaged
            self._at = start + end
            if newest == self._seq:
                break
        if newest < self._seq and before[-1] is places[-1]:
            self._step_aside()  # the store knows more than the journal
        return True

    def _step_aside(self) -> None:
        """The store belongs to another chain: it is kept under another name, and a new one begins."""
        assert self._db is not None
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        self._db = None
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self._db_path.with_name(f"{self._db_path.name}.other-{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = self._db_path.with_name(f"{self._db_path.name}.other-{stamp}-{number}")
        os.rename(self._db_path, aside)
        for suffix in ("-wal", "-shm"):
            self._db_path.with_name(self._db_path.name + suffix).unlink(missing_ok=True)
        self._say(f"aside {aside.name}")
        self._begin()
        self._read(self._places()[0])

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read(self, place: Place) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._header, path = place
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        self._at = self._header.start

    def _rest(self) -> bytes:
        return os.pread(self._fd, max(0, os.fstat(self._fd).st_size - self._at), self._at)

    def _chunk(self) -> bytes:
        """Whole lines from the current place, in about `BATCH_BYTES`; empty where no more line ends."""
        size = BATCH_BYTES
        while True:
            data = os.pread(self._fd, size, self._at)
            end = data.rfind(b"\n")
            if end >= 0:
                return data[: end + 1]
            if len(data) < size:
                return b""
            size *= 2

    def _find(self, target: int | None) -> bool:
        """The line behind the newest record is not here: goes on where the next one is, if there is one."""
        later_on = [place for place in self._places() if place[0].generation > self._header.generation]
        newer = next(iter(later_on), None)
        for place in later_on:
            if place[0].first_seq <= self._seq + 1:  # after a failed sync it need not be the next one
                newer = place
                break
        if newer is None or newer[0].first_seq > self._seq + 1:
            start = self._at
            data = self._rest()
            for line, end in later(data, 0, self._seq):
                if target is None or line.link.seq <= target:
                    self._at = start + data.rfind(b"\n", 0, end - 1) + 1
                    return True
                break
        if newer is None:
            if target is None:
                return False
            raise OSError(f"the journal lacks record {self._seq + 1}")
        if self._sync or target is None:
            sync_file(self._fd)
        self._read(newer)
        return True

    # --- writing -----------------------------------------------------------------------------------------------------

    def _batch(self, target: int | None) -> bool:
        records: list[tuple[int, str, str]] = []
        bodies: list[tuple[int, str, bytes, str | bytes, int]] = []
        begun: list[Row] = []
        changed: dict[int, Row] = {}
        gaps: list[tuple[int, int]] = []
        self._orders = []
        tally = rollup.Tally()
        first, size = self._seq, 0
        while size < BATCH_BYTES and (target is None or self._seq < target):
            data = self._chunk()
            at = 0
            while (end := data.find(b"\n", at)) >= 0:
                line = decode_line(data[at:end], read_record)
                if line is None or line.link.seq < self._header.first_seq:
                    break
                at = end + 1
                seq = line.link.seq
                if seq <= self._seq:
                    continue  # written again after a failed sync
                if seq > self._seq + 1:
                    gaps.append((self._seq + 1, seq - 1))
                self._take(line, records, bodies, begun, changed, first, tally)
                if seq == target:
                    break
            self._at += at
            size += at
            if at == 0 and not self._find(target):
                break
        if not records:
            return False
        if self._sync or target is None:
            sync_file(self._fd)
        db = self._db
        assert db is not None
        db.execute("BEGIN IMMEDIATE")
        try:
            if db.execute("SELECT ifnull(max(seq), 0) FROM records").fetchone()[0] != first:
                raise sqlite3.OperationalError("another process writes to the audit store")
            db.executemany(_INSERT_RECORD, records)
            db.executemany(_INSERT_BODY, bodies)
            db.executemany(_INSERT_CALL, [msgspec.structs.astuple(row) for row in begun])
            if changed:
                rows = [msgspec.structs.astuple(row) for row in changed.values()]
                db.executemany(_UPDATE_CALL, [(*row[_AT:], row[0]) for row in rows])
            tally.settle(db)
            if self._orders:
                db.executemany(_INSERT_ORDER, self._orders)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        for gap in gaps:
            self._say(f"gap {gap[0]} {gap[1]}")
        if self._short or self._room() < ROOM:
            # A WAL that fills the disk cannot be copied into the file any more, so it does not get large.
            how = "TRUNCATE" if self._short else "PASSIVE"
            if db.execute(f"PRAGMA wal_checkpoint({how})").fetchone()[0] and self._short:
                raise _Held("somebody reads it while its log must not grow")
        return True

    def _room(self) -> int:
        """Bytes that are free on the store's disk."""
        found = os.statvfs(self._db_path)
        return found.f_bavail * found.f_frsize

    def _take(
        self,
        line: Line[Stored],
        records: list[tuple[int, str, str]],
        bodies: list[tuple[int, str, bytes, str | bytes, int]],
        begun: list[Row],
        changed: dict[int, Row],
        first: int,
        tally: rollup.Tally,
    ) -> None:
        _breathe()
        record = line.link
        seq = self._seq = record.seq
        self._head = line.hash
        text = line.text
        records.append((seq, line.hash, text.decode()))
        part = line.part
        if part is not None:
            body: str | bytes
            try:
                body = part.decode()
            except UnicodeDecodeError:
                body = part
            what = "result" if record.kind == "outcome" else "arguments"
            bodies.append((seq, what, line.salt, body, record.length or len(part)))
        if record.call:
            folded = fold(self._open, record, part)
            if folded is not None:
                row, new = folded
                if new:
                    begun.append(row)
                elif row.seq <= first:
                    changed[row.seq] = row
                if row.finished_ts:
                    tally.ended(row)
        if record.kind == "approval":
            tally.said(record)
        elif record.kind == "admin":
            said = removals.read_said(text)
            if said.action in removals.ACTIONS:
                self._orders.append((seq, said.action, said.detail, said.by, said.ts))


class _Signing:
    """The notary, at what the ingester has just written; nobody where nothing is to be signed."""

    def __init__(self, ingester: Ingester, duties: Duties | None, say: Say) -> None:
        self._ingester = ingester
        self._notary = Notary(duties, say) if duties is not None else None
        self._db: sqlite3.Connection | None = None

    def look(self) -> float | None:
        """Signs what is due; gives the seconds until something is, None for not before there are more records."""
        notary, db = self._notary, self._ingester.db
        if notary is None or db is None:
            return None
        if db is not self._db:
            self._db = db
            notary.forget()
        if notary.due_in(self._ingester.seq) <= 0:
            notary.step(db)
        return notary.due_in(self._ingester.seq)

    def finish(self) -> None:
        """Signs what there is, before the end."""
        if self._notary is not None and self._ingester.db is not None:
            while self._notary.step(self._ingester.db, last=True):
                pass


class _Keeping:
    """The keeper, between what the ingester writes."""

    def __init__(self, ingester: Ingester, keeper: Keeper) -> None:
        self._ingester = ingester
        self._keeper = keeper
        self._db: sqlite3.Connection | None = None

    def look(self) -> float:
        """Does a little of what is due; gives the seconds until something is. Raises `sqlite3.Error`, `OSError`."""
        db, seq = self._ingester.db, self._ingester.seq
        if db is None:
            return math.inf
        if db is not self._db:
            self._db = db
            self._keeper.forget()
        if self._keeper.due_in(seq) <= 0:
            self._keeper.step(db, seq)
        return self._keeper.due_in(seq)


class _Bell:
    """The daemon's lines: what may be ingested, and whether it is still there."""

    def __init__(self) -> None:
        self.target = 0
        self.gone = False
        self._rest = b""

    def wait(self, seconds: float | None) -> None:
        """Returns when there is news, or after `seconds`."""
        ready, _, _ = select.select([0], [], [], seconds)
        if not ready:
            return
        data = os.read(0, 65536)
        if not data:
            self.gone = True
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self.target = max(self.target, int(lines[-1]))


def yield_to_everybody() -> None:
    """Work that nobody waits for: only in time that nobody else wants (else its bursts are in the calls' p99)."""
    os.nice(19)
    if sys.platform == "linux":
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except OSError:
            pass  # sandboxes and some C libraries have no such thing; being nice must do there


_FLOCK = struct.Struct("@qqihh" if sys.platform == "darwin" else "@hhqqi4x")
"""`struct flock`, fcntl(2)."""


def _holder(lock: int) -> int:
    """The process that keeps us from the lock, as the kernel knows it; 0 for none."""
    if sys.platform == "darwin":
        return int(_FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, _FLOCK.pack(0, 0, 0, fcntl.F_WRLCK, 0)))[2])
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0)))
    return int(pid) if kind != fcntl.F_UNLCK else 0


def _take_over(lock: int) -> None:
    """From now on this is the only writer.

    The writer of a killed daemon may be at its last look, and on a busy machine hardly move. Our daemon holds the
    journal, so no other one needs it, and being killed is nothing to a writer.
    """
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):
            pid = _holder(lock)
        if pid > 1:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass  # it has just gone
        time.sleep(0.01)


_urgent = False
"""Whether somebody waits: on a machine with many to let in, each breath is a round of theirs (1 000 records: 30 s)."""


def _breathe() -> int:
    """A system call, at whose end a kernel that preempts lazily lets others in at once and not at its next tick."""
    if not _urgent:
        os.sched_yield()
    return 0


def main(arguments: list[str]) -> None:
    """The process."""
    directory, db_path, sync = Path(arguments[0]), Path(arguments[1]), arguments[2] == "sync"
    os.umask(0o077)
    global _urgent
    _urgent = arguments[3] != "idle"
    if not _urgent:
        yield_to_everybody()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon says when it is over, by closing our input
    gc.disable()  # records make no cycles, and a collection walks every row of a batch
    _take_over(os.open(directory / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))

    def say(line: str) -> None:
        os.write(1, line.encode(errors="replace").replace(b"\n", b" ") + b"\n")

    bell = _Bell()
    ingester = Ingester(directory, db_path, sync=sync, say=say)
    duties = msgspec.json.decode(arguments[4], type=Duties | None) if len(arguments) > 4 else None
    signing = _Signing(ingester, duties, say)
    policy = msgspec.json.decode(arguments[5], type=Policy) if len(arguments) > 5 else Policy()
    keeping = _Keeping(ingester, Keeper(db_path, policy, say, duties=duties))
    told = -1
    pause: float | None = 0.0
    while not bell.gone:
        bell.wait(pause)
        try:
            while ingester.step(bell.target):
                told = ingester.seq
                say(f"ingested {told}")
                signing.look()
                bell.wait(0)
            if ingester.seq != told:
                told = ingester.seq
                say(f"ingested {told}")
            soon = min(math.inf if (due := signing.look()) is None else due, keeping.look())
            pause = None if soon == math.inf else soon
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, BrokenPipeError):
                break
            say(f"{_trouble(error)} {error}")
            told = -1
            pause = 1.0
            gc.collect()
    try:
        while ingester.step(None):
            pass
    except (sqlite3.Error, OSError) as error:
        print(f"the audit store `{db_path}` is behind the journal: {error}", file=sys.stderr)
    signing.finish()
    ingester.close()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BrokenPipeError:
        pass
