"""Old records go in whole prefixes that a signed checkpoint covers, after a record that says so, and leave hashes.

The writer process asks the daemon for that record (`remove`), and carries out what it reads in the chain: after any
crash it goes on where it was. Before it deletes, it reads the prefix once more and compares it with what was
signed, so that a purge never does away with the traces of a change. Calls that reach beyond the prefix stay whole.

Each step is one short transaction; between two of them the writer looks for new records.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from aegis_daemon.audit import keys, removals, rollup, warrants
from aegis_daemon.audit.calls import COLUMNS, Row, read_record
from aegis_daemon.audit.chain import UNREADABLE, Walk
from aegis_daemon.audit.checkpoint import NoteError, origin, read_checkpoint, read_note
from aegis_daemon.audit.elapsed import Moment, boot_clock, old_enough
from aegis_daemon.audit.erasure import Eraser, truncate
from aegis_daemon.audit.merkle import HASH, Frontier
from aegis_daemon.audit.notary import Duties
from aegis_daemon.audit.record import GENESIS
from aegis_daemon.audit.removals import PURGE, PURGE_BODIES, Removal, Removals

STEP_S: Final = 0.015
"""What a step should take; the number of rows follows from how long the last one took."""
ROWS: Final = 200
ROWS_MAX: Final = 5_000
PAGES: Final = 125
"""Free pages (of 4 KiB) that a step gives back to the disk."""
WAL_PAGES: Final = 500
"""Pages in SQLite's log after which it is copied, while a lot goes: no step then has to copy much."""
DAY_S: Final = 86_400.0
LOOK_S: Final = DAY_S
"""How often it is looked for what has grown too old."""
ASKED_S: Final = 600.0
"""How long the daemon has to write the record that was asked for, before it is asked again."""
REFUSED_S: Final = 3_600.0
DAY: Final = 86_400_000_000
TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
BY: Final = "retention"
"""Who an order of the policy is by."""
LEAPT: Final = (
    "the clock went forward by more than the time that is known to have passed, or the machine was off for long; "
    "if its date is right, `aegis audit purge --before` takes them now"
)
_UNDONE: Final = "SELECT 1 FROM removals WHERE action = ? AND done = 0"

Say = Callable[[str], None]


class Policy(msgspec.Struct, frozen=True):
    """What is kept. `days` and `bodies_days`: None for ever. `window_s`: limits look back so far, so that stays.

    `exports` is the file that says how far each export and each witness has come; what it does not say has not come to
    anything.
    """

    days: int | None = None
    bodies_days: int | None = None
    window_s: float = 0.0
    window: str = ""
    """the limit or budget that looks back so far"""
    exports: str = ""
    keep: tuple[str, ...] = ()
    """Exports that must have had what goes."""
    witnesses: tuple[str, ...] = ()
    """Where there are any, only what one of them has seen goes."""


class Plan(msgspec.Struct, frozen=True):
    """What may go: records up to `last` (0: none). `held` says what keeps more from going."""

    last: int
    first: int = 1
    held: str = ""


class Counts(msgspec.Struct, frozen=True):
    """What a plan takes away."""

    records: int
    calls: int
    bodies: int


# --- what may go ------------------------------------------------------------------------------------------------------


def plan(
    db: sqlite3.Connection, cutoff: int, policy: Policy, now: int, *, bodies: bool = False,
    elapsed: tuple[str, int] | None = None,
) -> Plan:  # fmt: skip
    """Which records (or bodies) from before `cutoff` may go; times are microseconds since the epoch.

    With `elapsed` (this boot, microseconds on its clock) only those whose age the boot clock bears out: nobody is
    asked, and a calendar can be wrong. Raises `sqlite3.Error`.
    """
    gone = purged(db)
    held = ""
    floor = now - int((policy.window_s + DAY_S) * 1e6)
    if cutoff > floor and policy.window_s:
        free = datetime.fromtimestamp((cutoff + now - floor) / 1e6, UTC)
        held = f"{policy.window or 'a limit or budget'} still counts what is newer; it can go from {free:{TIME}} on"
        cutoff = floor
    last = _last_before(db, cutoff, gone)
    if elapsed is not None and last > gone:
        sure = old_enough(db, last, gone, now - cutoff, Moment(*elapsed, now))
        if sure < last:
            last, held = sure, LEAPT
    if bodies:
        orders = db.execute("SELECT seq, action, detail FROM removals WHERE action = ?", (PURGE_BODIES,))
        ordered = max((r.ranges[0][1] for r in (removals.read(*row) for row in orders) if r is not None), default=0)
        limit, why = _kept(db, policy)
        if limit is not None and limit < last:
            last, held = limit, why
        return Plan(last if last > max(gone, ordered) else 0, gone + 1, held)
    for limit, why in (_kept(db, policy), _witnessed(db, policy)):
        if limit is not None and limit < last:
            last, held = limit, why
    size = _signed(db, last)
    if size <= gone and last > gone:
        held = held or "no checkpoint that covers them was signed"
    return Plan(size if size > gone else 0, gone + 1, held)


def count(db: sqlite3.Connection, plan: Plan) -> Counts:
    """How much that is. Raises `sqlite3.Error`."""
    found = [
        int(db.execute(f"SELECT count(*) FROM {table} WHERE seq <= ?", (plan.last,)).fetchone()[0])  # noqa: S608
        for table in ("records", "calls", "bodies")
    ]
    return Counts(*found)


def purged(db: sqlite3.Connection) -> int:
    """The newest record of which the hash alone is kept; 0 for none. Raises `sqlite3.Error`."""
    return int(db.execute("SELECT ifnull(max(seq), 0) FROM leaves").fetchone()[0])


def _last_before(db: sqlite3.Connection, cutoff: int, low: int) -> int:
    """The newest record from before a time. A clock that was set back makes it an older one, never a newer one."""
    high = int(db.execute("SELECT ifnull(max(seq), 0) FROM records").fetchone()[0])
    while low < high:
        middle = (low + high + 1) // 2
        ts = _ts(db, middle)
        if ts is not None and ts < cutoff:
            low = middle
        else:
            high = middle - 1
    return low


def _ts(db: sqlite3.Connection, seq: int) -> int | None:
    row = db.execute("SELECT record FROM records WHERE seq = ?", (seq,)).fetchone()
    try:
        return None if row is None else read_record(row[0]).ts
    except (*UNREADABLE, TypeError):
        return None


def _signed(db: sqlite3.Connection, last: int) -> int:
    if not has(db, "checkpoints"):
        return 0
    found = db.execute("SELECT ifnull(max(size), 0) FROM checkpoints WHERE size <= ?", (last,)).fetchone()
    return int(found[0])


def has(db: sqlite3.Connection, table: str) -> bool:
    """Whether there is such a table."""
    question = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return db.execute(question, (table,)).fetchone() is not None


def _kept(db: sqlite3.Connection, policy: Policy) -> tuple[int | None, str]:
    """The newest record of this log that every export has had which wants all of them; None where none does; why."""
    if not policy.keep:
        return None, ""
    had = exported(db, policy)
    least = min(policy.keep, key=lambda name: had.get(name, 0))
    seq = had.get(least, 0)
    far = f"has records up to {seq} only" if seq else "has nothing of this log yet"
    return seq, f"the export `{least}` {far}; see `aegis audit exports`"


def exported(db: sqlite3.Connection, policy: Policy) -> dict[str, int]:
    """The newest record of this log that each export has had. Raises `sqlite3.Error`."""
    chain = warrants.chain_of(db)
    rows = _exported(policy.exports, "SELECT sink, chain, seq FROM cursors")
    return {name: int(seq) for name, log, seq in rows if log == chain}


def _witnessed(db: sqlite3.Connection, policy: Policy) -> tuple[int | None, str]:
    """How many records of this log one of the witnesses has seen; None where there are none; why."""
    if not policy.witnesses:
        return None, ""
    chain = warrants.chain_of(db)
    rows = _exported(policy.exports, "SELECT witness, chain, max(size) FROM witnessed GROUP BY witness, chain")
    seen = [int(size) for name, log, size in rows if name in policy.witnesses and log.rpartition("/")[2] == chain]
    most = max(seen, default=0)
    far = f"has seen more than record {most}" if most else "has seen any of this log yet"
    names = ", ".join(f"`{name}`" for name in policy.witnesses)
    return most, f"no witness ({names}) {far}; see `aegis audit exports`"


def _exported(exports: str, question: str) -> list[Any]:
    if not exports or not Path(exports).exists():
        return []
    with closing(sqlite3.connect(f"{Path(exports).absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as db:
        try:
            return db.execute(question).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise


# --- carrying it out --------------------------------------------------------------------------------------------------


class Tampered(Exception):
    """The prefix is not what was signed, so it stays."""


class Keeper:
    """Carries out what the chain orders, and asks for what the policy wants.

    Says `remove ACTION SIGNATURE DETAIL`, `kept TEXT`. `duties` name the key that signs an order (`warrants.py`); an
    order counts with a signature of a key of its ring. `wall` gives seconds since the epoch, `monotonic` seconds,
    `boot` this boot and the microseconds on its clock.
    """

    def __init__(
        self,
        db_path: Path,
        policy: Policy,
        say: Say,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        boot: Callable[[], tuple[str, int]] = boot_clock,
        duties: Duties | None = None,
    ) -> None:
        self._duties = duties
        self._db_path = db_path
        self._policy = policy
        self._say = say
        self._wall = wall
        self._now = monotonic
        self._boot = boot
        self._look_at: float | None = None
        self._again_at: float | None = None
        self._work: _Work | None = None
        self._seen = -1
        self._shrink = False
        self._usual: int | None = None
        """pages in SQLite's log otherwise, while it is kept small"""
        self._refused: dict[int, float] = {}
        self._feigned = ""
        """an order that counts for nothing"""

    def forget(self) -> None:
        """The store may be another one by now."""
        self._work = None
        self._seen = -1
        self._usual = None
        self._look_at = self._again_at = None

    def due_in(self, seq: int) -> float:
        """Seconds until `step` has something to do; `seq` is the newest record of the store."""
        now = self._now()
        if self._again_at is not None:
            return max(0.0, self._again_at - now)
        if self._work is not None or self._shrink or seq > self._seen:
            return 0.0
        return math.inf if self._look_at is None else max(0.0, self._look_at - now)

    def step(self, db: sqlite3.Connection, seq: int) -> None:
        """Does a little of what there is to do. Raises `sqlite3.Error`, `OSError`."""
        self._again_at = None
        if self._work is None and seq > self._seen:
            self._seen = seq
            self._work = self._next(db)
            if self._work is None and self._look_at is None:
                self._look_at = self._now()
            return
        if (self._work is not None or self._shrink) and self._usual is None:
            self._usual = int(db.execute("PRAGMA wal_autocheckpoint").fetchone()[0])
            db.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
        if self._work is not None:
            self._go_on(db)
            return
        if self._shrink:
            self._shrink = _give_back(db)
            if not self._shrink:
                truncate(db)
                db.execute(f"PRAGMA wal_autocheckpoint={self._usual}")
                self._usual = None
            return
        if self._look_at is not None and self._now() >= self._look_at:
            self._look(db)

    def _go_on(self, db: sqlite3.Connection) -> None:
        assert self._work is not None
        try:
            wait = self._work.step(db)
        except Tampered as error:
            self._say(f"kept {error}")
            assert isinstance(self._work, _Purge)
            self._refused[self._work.order] = self._now() + REFUSED_S
            self._work, self._seen = None, -1
            return
        if wait is None:
            if not isinstance(self._work, Eraser):
                self._look_at = self._now() + LOOK_S
            self._work = None
            self._seen = -1  # there may be another one
            self._shrink = True
        elif wait:
            self._again_at = self._now() + wait

    def _next(self, db: sqlite3.Connection) -> _Work | None:
        rows = db.execute(
            "SELECT o.seq, CAST(r.record AS BLOB) FROM removals o LEFT JOIN records r ON r.seq = o.seq "
            "WHERE o.done = 0 ORDER BY o.seq"
        ).fetchall()
        for seq, record in rows:
            if self._refused.get(seq, 0.0) > self._now():
                continue
            found = warrants.read(seq, record or b"")
            if found is None:
                db.execute("UPDATE removals SET done = 1 WHERE seq = ?", (seq,))
                continue
            removal, said = found
            publics = self._publics(db)
            if not warrants.holds(said, warrants.chain_of(db), publics):
                self._feigned = f"record {seq} orders a removal that the log's key did not sign; it is not carried out"
                self._say(f"kept {self._feigned}")
                if publics:
                    db.execute("UPDATE removals SET done = 1 WHERE seq = ?", (seq,))
                else:  # they cannot be read now
                    self._refused[seq] = self._now() + REFUSED_S
            elif removal.action == PURGE:
                return _Purge(db, removal, publics)
            elif removal.action == PURGE_BODIES:
                return _Bodies(removal)
            else:
                return Eraser(self._db_path, removal)
        return None

    def _publics(self, db: sqlite3.Connection) -> list[bytes]:
        """The keys that may sign; none while their file cannot be read."""
        try:
            return warrants.publics_of(db, Path(self._duties.key_file) if self._duties is not None else None)
        except OSError:
            return []

    def _signed(self, db: sqlite3.Connection, action: str, detail: str) -> str:
        """The key's word for an order of ours. Raises `KeyFault`, `OSError`."""
        if self._duties is None:
            raise keys.KeyFault("nothing is signed")
        log = origin(self._duties.tenant, warrants.chain_of(db))
        return keys.Signer(keys.load(Path(self._duties.key_file))).word(log, warrants.text(log, action, detail, BY))

    def _look(self, db: sqlite3.Connection) -> None:
        self._look_at = self._now() + LOOK_S
        now = int(self._wall() * 1e6)
        held = ""
        for days, action in ((self._policy.days, PURGE), (self._policy.bodies_days, PURGE_BODIES)):
            if days is None or db.execute(_UNDONE, (action,)).fetchone() is not None:
                continue
            found = plan(db, now - days * DAY, self._policy, now, bodies=action == PURGE_BODIES, elapsed=self._boot())
            if found.last:
                key = "retention_days" if action == PURGE else "bodies_days"
                write = removals.purge_detail if action == PURGE else removals.purge_bodies_detail
                detail = write(found.last, f"`audit.{key}` is {days}")
                try:
                    self._say(f"remove {action} {self._signed(db, action, detail)} {detail}")
                except (keys.KeyFault, OSError) as error:
                    held = f"the order cannot be signed: {error}"
                    continue
                self._look_at = self._now() + ASKED_S  # by then it is carried out, or it was never written
            elif found.held:
                held = found.held
        if any(until > self._now() for until in self._refused.values()):
            return  # that is worse, and was said
        self._say(f"kept {self._feigned or (held and f'records are kept beyond their time: {held}')}")


class _Work(Protocol):
    """One order; `step` gives seconds to wait before the next one, None when it is done."""

    def step(self, db: sqlite3.Connection) -> float | None: ...


class _Pace:
    """How many rows make a step of `STEP_S`."""

    def __init__(self) -> None:
        self.rows = ROWS

    def took(self, seconds: float) -> None:
        if seconds > STEP_S:
            self.rows = max(20, self.rows // 2)
        elif seconds < STEP_S / 2:
            self.rows = min(ROWS_MAX, self.rows * 2)


class _Bodies:
    """Arguments and results up to a record, but for those of calls that have not ended."""

    def __init__(self, removal: Removal) -> None:
        self._removal = removal
        self._at = 0
        self._pace = _Pace()

    def step(self, db: sqlite3.Connection) -> float | None:
        began = time.monotonic()
        last = self._removal.ranges[0][1]
        rows = db.execute(
            "SELECT seq FROM bodies WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?", (self._at, last, self._pace.rows)
        ).fetchall()
        if not rows:
            with _Whole(db):
                finished(db, self._removal.seq)
            return None
        high = rows[-1][0]
        between = (self._at, high)
        with _Whole(db):
            pending = "SELECT seqs FROM calls WHERE exec_status = 'pending' AND exec_status <> 'success' AND seq <= ?"
            kept = {int(seq) for row in db.execute(pending, (high,)) for seq in row[0].split(",")}
            free = [(row[0],) for row in rows if row[0] not in kept]
            db.executemany("DELETE FROM bodies WHERE seq = ?", free)
            # Of a call of which the arguments are gone, nothing may tell them; a hash without a salt might.
            db.execute(
                "UPDATE calls SET arguments_hash = '' WHERE seq > ? AND seq <= ? AND "
                "NOT (exec_status = 'pending' AND exec_status <> 'success')", between,
            )  # fmt: skip
        self._at = high
        self._pace.took(time.monotonic() - began)
        return 0.0


class _Purge:
    """Whole records up to one that a checkpoint was signed at."""

    def __init__(self, db: sqlite3.Connection, removal: Removal, publics: Sequence[bytes]) -> None:
        self._removal = removal
        self._publics = publics
        self.order = removal.seq
        self._pace = _Pace()
        self._checked = False
        self._at = purged(db)
        self._tree = Frontier()
        self._walk = Walk()
        self._begun = False
        self._over: list[tuple[Row, list[int]]] = []
        self._ordered = _ordered(db, publics)
        self._swept = False

    def step(self, db: sqlite3.Connection) -> float | None:
        began = time.monotonic()
        if self._removal.last <= purged(db) and not self._checked:
            self._checked = True  # a crash came before the last word
        if not self._checked:
            self._check(db)
        elif not self._swept:
            self._sweep(db)
        elif self._at < self._removal.last:
            self._take(db)
        elif db.execute("SELECT 1 FROM checkpoints WHERE size < ? LIMIT 1", (self._removal.last,)).fetchone():
            db.execute(
                "DELETE FROM checkpoints WHERE size IN (SELECT size FROM checkpoints WHERE size < ? LIMIT 500)",
                (self._removal.last,),
            )
        else:
            self._finish(db)
            return None
        self._pace.took(time.monotonic() - began)
        return 0.0

    # --- is it what was signed? --------------------------------------------------------------------------------------

    def _check(self, db: sqlite3.Connection) -> None:
        if not self._begun:
            self._begun = True
            self._begin(db)
        tree, walk, last = self._tree, self._walk, self._removal.last
        if tree.size < self._at:
            leaves = "SELECT seq, hash FROM leaves WHERE seq > ? ORDER BY seq LIMIT ?"
            for seq, leaf in db.execute(leaves, (tree.size, ROWS_MAX)).fetchall():
                if seq != tree.size + 1 or len(leaf) != HASH:
                    raise Tampered(f"the hash of the purged record {tree.size + 1} is missing; nothing is purged")
                tree.add(leaf)
            if tree.size == self._at:
                self._walk = Walk(self._at, _leaf(db, self._at))
            return
        rows = db.execute(
            "SELECT r.seq, r.hash, CAST(r.record AS BLOB), b.salt, CAST(b.body AS BLOB) FROM records r "
            "LEFT JOIN bodies b ON b.seq = r.seq WHERE r.seq > ? AND r.seq <= ? ORDER BY r.seq LIMIT ?",
            (tree.size, last, self._pace.rows),
        ).fetchall()
        gone = []
        for seq, stored, text, salt, body in rows:
            link = walk.step(seq, text or b"", str(stored))
            if walk.faults:
                raise Tampered(f"{walk.faults[0].text}; nothing is purged: see `aegis audit verify`")
            if link is not None and link.body:
                if body is None:
                    gone.append(seq)
                elif sha256((salt or b"") + body).hexdigest() != link.body:
                    raise Tampered(f"the body of record {seq} was changed; nothing is purged: see `aegis audit verify`")
            tree.add(bytes.fromhex(str(stored)))
        unordered = self._ordered.bodiless(gone)
        if unordered:
            raise Tampered(f"the body of record {unordered[0]} is missing; nothing is purged: see `aegis audit verify`")
        if not rows or tree.size == last:
            row = db.execute("SELECT root, note FROM checkpoints WHERE size = ?", (last,)).fetchone()
            if row is None or tree.size != last or not self._is_signed(db, tree.root(), *row):
                why = "were not signed" if row is None else "are not those that were signed"
                raise Tampered(f"records 1 to {last} {why}; nothing is purged: see `aegis audit verify`")
            self._checked = True

    def _is_signed(self, db: sqlite3.Connection, root: bytes, kept: object, note: object) -> bool:
        """Whether the log's key signed that these records have that root."""
        try:
            read = read_note(str(note))
            point = read_checkpoint(read.text)
        except NoteError:
            return False
        if root != kept or (point.size, point.root) != (self._removal.last, root):
            return False
        chain = point.origin.rpartition("/")[2]
        return chain == warrants.chain_of(db) and keys.signed_by(read, point.origin, self._publics) is not None

    def _begin(self, db: sqlite3.Connection) -> None:
        """What was purged before was compared then; its tree was kept."""
        row = db.execute(
            "SELECT detail, tree FROM removals WHERE action = ? AND done = 1 AND tree IS NOT NULL "
            "ORDER BY seq DESC LIMIT 1",
            (PURGE,),
        ).fetchone()
        before = removals.read(1 << 60, PURGE, row[0]) if row is not None else None
        if before is not None and before.last <= self._at:
            try:
                self._tree = Frontier.unpacked(before.last, row[1])
            except ValueError:
                pass
        if self._tree.size == self._at:
            self._walk = Walk(self._at, _leaf(db, self._at))

    # --- away with it ------------------------------------------------------------------------------------------------

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Calls that reached beyond the last purge, or were met by this one before a crash."""
        with _Whole(db):
            self._delete(db, 0, self._at)
        self._swept = True
        self._pace.rows = min(self._pace.rows, ROWS)  # more than comparing costs what deletes

    def _take(self, db: sqlite3.Connection) -> None:
        low = self._at
        high = min(low + self._pace.rows, self._removal.last)
        with _Whole(db):
            hashes = db.execute("SELECT seq, hash FROM records WHERE seq > ? AND seq <= ? ORDER BY seq", (low, high))
            leaves = [(seq, bytes.fromhex(str(stored))) for seq, stored in hashes]
            if len(leaves) != high - low:
                raise Tampered(f"a record between {low + 1} and {high} has gone meanwhile; see `aegis audit verify`")
            db.executemany("INSERT INTO leaves VALUES (?, ?)", leaves)
            self._delete(db, low, high)
        self._at = high

    def _delete(self, db: sqlite3.Connection, low: int, high: int) -> None:
        """From now on the log begins behind `high`, but for calls that go on there: whole at every moment."""
        between = (low, high)
        question = f"SELECT {', '.join(COLUMNS)} FROM calls WHERE seq > ? AND seq <= ? ORDER BY seq"  # noqa: S608
        over: list[tuple[Row, list[int]]] = []
        free: list[Row] = []
        later: list[tuple[int]] = []
        rows = [Row(*found) for found in db.execute(question, between)]
        for row, seqs in [*self._over, *((row, [int(each) for each in row.seqs.split(",")]) for row in rows)]:
            if row.exec_status == "pending" or seqs[-1] > high:
                over.append((row, seqs))
            else:
                free.append(row)
                later += [(each,) for each in seqs if each <= low]
        self._over = over
        kept = {each for _, seqs in over for each in seqs}
        stays = {seq for seq in kept if low < seq <= high} | self._orders(db, low, high, kept)
        rollup.take_out(db, free)
        db.executemany("DELETE FROM calls WHERE seq = ?", [(row.seq,) for row in free])
        for table in ("bodies", "records"):
            db.executemany(f"DELETE FROM {table} WHERE seq = ?", later)  # noqa: S608
            if not stays:
                db.execute(f"DELETE FROM {table} WHERE seq > ? AND seq <= ?", between)  # noqa: S608
                continue
            there = db.execute(f"SELECT seq FROM {table} WHERE seq > ? AND seq <= ?", between).fetchall()  # noqa: S608
            db.executemany(f"DELETE FROM {table} WHERE seq = ?", [row for row in there if row[0] not in stays])  # noqa: S608

    def _orders(self, db: sqlite3.Connection, low: int, high: int, kept: set[int]) -> set[int]:
        """Records that say why the bodies of calls are gone that stay."""
        stay = set()
        gone = []
        question = "SELECT seq, action, detail FROM removals WHERE seq > ? AND seq <= ?"
        for seq, action, detail in db.execute(question, (low, high)).fetchall():
            removal = removals.read(seq, action, detail)
            ranges = removal.ranges if removal is not None else ()
            if any(first <= each <= end for first, end in ranges for each in kept):
                stay.add(seq)
            else:
                gone.append((seq,))
        db.executemany("DELETE FROM removals WHERE seq = ? AND done = 1", gone)
        return stay

    def _finish(self, db: sqlite3.Connection) -> None:
        tree = self._tree if self._tree.size == self._removal.last else None
        with _Whole(db):
            rollup.forget(db, self._removal.last)
            finished(db, self._removal.seq, tree.packed() if tree is not None else None)


def finished(db: sqlite3.Connection, seq: int, tree: bytes | None = None) -> None:
    """The order of record `seq` was carried out. Raises `sqlite3.Error`."""
    db.execute("UPDATE removals SET done = 1, tree = ? WHERE seq = ?", (tree, seq))


def _ordered(db: sqlite3.Connection, publics: Sequence[bytes]) -> Removals:
    found = Removals()
    for removal, _ in warrants.standing(db, publics):
        found.add(removal)
    return found


def _leaf(db: sqlite3.Connection, seq: int) -> str:
    row = db.execute("SELECT hash FROM leaves WHERE seq = ?", (seq,)).fetchone()
    return GENESIS if row is None else row[0].hex()


def _give_back(db: sqlite3.Connection) -> bool:
    """Gives free pages back to the disk, where the store was made so that it can; whether there are more."""
    if db.execute("PRAGMA auto_vacuum").fetchone()[0] != 2:
        return False  # they are used again for what comes
    # Not `execute`: that ends a statement without columns after one page.
    db.executescript(f"PRAGMA incremental_vacuum({PAGES})")
    return bool(db.execute("PRAGMA freelist_count").fetchone()[0])


class _Whole:
    """Writes all of it or nothing."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT" if kind is None else "ROLLBACK")
