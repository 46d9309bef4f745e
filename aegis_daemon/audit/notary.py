"""What the store holds is signed soon, and nothing is signed that does not go on behind what was signed before.

Works in the writer process, on what SQLite has committed. Three tables of the store are its own:

    checkpoints   each signed checkpoint, by the number of records it covers
    tree          the frontier of the Merkle tree at the newest one, so that a start need not read the whole log
    keys          the keys that signed, oldest first, each with the note by which it followed

Beside the key, `audit.key.signed` remembers the newest checkpoint of each log, so that a store that was put back to an
earlier state is noticed before anything else is signed under the same name.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from aegis_daemon.audit import keys
from aegis_daemon.audit.checkpoint import Checkpoint, NoteError, origin, read_checkpoint, read_note, write_note
from aegis_daemon.audit.merkle import Frontier

SCRIPT = """
CREATE TABLE IF NOT EXISTS checkpoints (size INTEGER PRIMARY KEY, root BLOB NOT NULL, note TEXT NOT NULL,
  created_us INTEGER NOT NULL, witnessed_us INTEGER, witness TEXT);
CREATE TABLE IF NOT EXISTS tree (size INTEGER PRIMARY KEY, nodes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS keys (number INTEGER PRIMARY KEY, public TEXT NOT NULL, since TEXT NOT NULL,
  rotation TEXT NOT NULL)
"""
IDLE_S = 3600.0
"""How often the newest checkpoint is signed again while no record comes: its absence then says something."""
SLICE = 20_000
"""Records that one step covers: some 40 ms."""
FAULT_S = 10.0
"""How long after a fault (a full disk, a key that cannot be read) it is tried again."""
REFUSED_S = 600.0
"""How long after a refusal; that takes a person to mend."""
LOGS = 16
"""Logs that `audit.key.signed` remembers."""

Say = Callable[[str], None]


class Duties(msgspec.Struct, frozen=True):
    """What the writer process is to sign, where it is to sign at all."""

    key_file: str
    tenant: str = "default"
    every: int = 1000
    """Records after which a checkpoint is due at once."""
    seconds: float = 10.0
    """Seconds after the first record that none covers."""


class Inconsistent(Exception):
    """The log does not go on behind what was signed; the text says where, and what to do."""


class Notary:
    """Makes checkpoints. `say` hears `checkpoint N`, `unsigned TEXT` while it cannot or must not, `newlog TEXT`."""

    def __init__(self, duties: Duties, say: Say, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._duties = duties
        self._say = say
        self._now = monotonic
        self._key_path = Path(duties.key_file)
        self._tree: Frontier | None = None
        self._origin = ""
        self._signer: keys.Signer | None = None
        self._stamp: tuple[int, ...] = ()
        self._remembered: Checkpoint | None = None
        self._signed = 0
        self._signed_at = -IDLE_S
        self._waiting_since: float | None = None
        self._again_at: float | None = None
        self._told = ""

    def forget(self) -> None:
        """The store may be another one by now."""
        self._tree = None
        self._again_at = None

    def due_in(self, seq: int) -> float:
        """Seconds until `step` has something to do, where `seq` is the newest record of the store."""
        now = self._now()
        if self._again_at is not None:
            return max(0.0, self._again_at - now)
        if seq <= 0:
            return IDLE_S
        if self._tree is None or seq - self._signed >= self._duties.every:
            return 0.0
        if seq > self._signed:
            if self._waiting_since is None:
                self._waiting_since = now
            return max(0.0, self._waiting_since + self._duties.seconds - now)
        return max(0.0, self._signed_at + IDLE_S - now)

    def step(self, db: sqlite3.Connection, *, last: bool = False) -> bool:
        """Signs one checkpoint; gives whether more records wait for one. Never raises for what it can say.

        `last`: the writer is about to end, and a fault is not tried again.
        """
        try:
            more = self._step(db)
            self._again_at = None
            self._tell(f"checkpoint {self._signed}")
            return more
        except (Inconsistent, keys.KeyFault, sqlite3.Error, OSError) as error:
            self._tree = None
            self._again_at = self._now() + (REFUSED_S if isinstance(error, Inconsistent) else FAULT_S)
            text = str(error) or type(error).__name__
            if not last:
                self._tell(f"unsigned {text}")
            return False

    def _tell(self, line: str) -> None:
        if line != self._told:
            self._told = line
            self._say(line)

    # --- one checkpoint ----------------------------------------------------------------------------------------------

    def _step(self, db: sqlite3.Connection) -> bool:
        ring = self._keys()
        if self._tree is None:
            self._begin(db, ring)
        assert self._tree is not None
        tree = self._tree.copy()
        stop = tree.size + SLICE
        remembered = self._remembered
        if remembered is not None and tree.size < remembered.size:
            stop = min(stop, remembered.size)
        _grow(db, tree, stop)
        if not tree.size:
            return False
        root = tree.root()
        if remembered is not None and tree.size == remembered.size:
            if root != remembered.root:
                raise Inconsistent(
                    f"the first {tree.size} records are not those that were signed as `{self._origin}` before; nothing "
                    "is signed until the log is put right: see `aegis audit verify`"
                )
            self._remembered = None
        assert self._signer is not None
        point = Checkpoint(self._origin, tree.size, root, (f"at {keys.now()}",))
        note = write_note(point.text(), [self._signer.sign(self._origin, point.text())])
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, NULL, NULL)",
                (tree.size, root, note, time.time_ns() // 1000),
            )
            db.execute("DELETE FROM tree")
            db.execute("INSERT INTO tree VALUES (?, ?)", (tree.size, tree.packed()))
            known = [row[0] for row in db.execute("SELECT public FROM keys ORDER BY number")]
            if known != [row.public for row in ring]:
                db.execute("DELETE FROM keys")
                db.executemany(
                    "INSERT INTO keys VALUES (?, ?, ?, ?)",
                    [(number, row.public, row.since, row.rotation) for number, row in enumerate(ring, 1)],
                )
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._tree = tree
        self._signed, self._signed_at, self._waiting_since = tree.size, self._now(), None
        self._remember(note)
        more: int = db.execute("SELECT ifnull(max(seq), 0) FROM records").fetchone()[0]
        return more > tree.size and (more - tree.size >= self._duties.every or tree.size == stop)

    def _keys(self) -> list[keys.Ring]:
        """Every key there was; takes the one in use anew where its file has changed."""
        try:
            info = os.stat(self._key_path)
            stamp: tuple[int, ...] = (info.st_dev, info.st_ino, info.st_mtime_ns)
        except FileNotFoundError:
            stamp = ()
        if stamp != self._stamp or not stamp:
            self._signer = None
        for _ in range(2):  # where a rotation was broken off, loading the key anew finishes it
            if self._signer is None:
                self._signer = keys.Signer(keys.load_or_make(self._key_path))
                info = os.stat(self._key_path)
                self._stamp = (info.st_dev, info.st_ino, info.st_mtime_ns)
            ring = keys.read_ring(self._key_path)
            publics = keys.follow(ring)
            if publics and publics[-1] == self._signer.public:
                return ring
            self._signer = None
        raise keys.KeyFault(
            f"`{keys.public_path(self._key_path)}` does not say how the key in use followed the ones before; put "
            "the file that belongs to it back, or move both away to begin with a new key"
        )

    # --- what was signed before --------------------------------------------------------------------------------------

    def _begin(self, db: sqlite3.Connection, ring: list[keys.Ring]) -> None:
        for statement in SCRIPT.split(";"):
            db.execute(statement)
        newest: int = db.execute("SELECT ifnull(max(seq), 0) FROM records").fetchone()[0]
        first = _leaf(db, 1)
        if first is None:
            if not newest:
                self._tree, self._signed = Frontier(), 0
                return
            raise Inconsistent(
                "the store does not have the log's first record, so nothing is signed; `aegis audit verify` says what "
                "is missing: bring it back from a copy, or stop the daemon and move store and journal away to begin "
                "anew"
            )
        self._origin = origin(self._duties.tenant, first.hex())
        self._recall(newest)
        last = db.execute("SELECT size, root, note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
        if last is None:
            self._tree, self._signed = Frontier(), 0
            return
        size, root, note = last
        self._check_note(ring, size, root, note)
        if newest < size:
            raise Inconsistent(
                f"the store ends with record {newest}, but {size} records were signed; nothing more is signed: see "
                "`aegis audit verify`, and bring the log back from a copy"
            )
        if self._remembered is not None and self._remembered.size <= size:
            kept = db.execute("SELECT root FROM checkpoints WHERE size = ?", (self._remembered.size,)).fetchone()
            if kept is not None and kept[0] != self._remembered.root:
                raise Inconsistent(
                    f"checkpoint {self._remembered.size} of the store is not the one that was signed; nothing more is "
                    "signed: see `aegis audit verify`"
                )
            self._remembered = None
        self._tree = _frontier(db, size, root)
        self._signed, self._signed_at = size, -IDLE_S
        self._waiting_since = None

    def _check_note(self, ring: list[keys.Ring], size: int, root: bytes, note: str) -> None:
        try:
            read = read_note(note)
            point = read_checkpoint(read.text)
        except NoteError as error:
            raise Inconsistent(
                f"the newest checkpoint of the store cannot be read: {error}; see `aegis audit verify`"
            ) from None
        if (point.origin, point.size, point.root) != (self._origin, size, root):
            raise Inconsistent(
                f"the newest checkpoint of the store is not of this log or was changed (`{point.origin}`, size "
                f"{point.size}); nothing more is signed: see `aegis audit verify`"
            )
        if keys.signed_by(read, point.origin, keys.follow(ring)) is None:
            raise Inconsistent(
                f"the newest checkpoint of the store was not signed with `{self._key_path}` or a key before it; put "
                "the right key back, or stop the daemon and move store and journal away to begin anew"
            )

    def _recall(self, newest: int) -> None:
        """What was signed as this log, by the file beside the key."""
        self._remembered = None
        known = self._memory()
        note = known.get(self._origin)
        if note is None:
            if known:
                last = list(known)[-1]
                self._say(f"newlog the key signed `{last}` before, and signs `{self._origin}` from now on")
            return
        try:
            self._remembered = read_checkpoint(read_note(note).text)
        except NoteError:
            return
        if self._remembered.size > newest:
            raise Inconsistent(
                f"the store ends with record {newest}, but {self._remembered.size} records of this log were signed; it "
                "was put back to an earlier state: bring the newer one back, or stop the daemon and move store and "
                "journal away to begin anew"
            )

    def _memory(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._memory_path.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}

    def _remember(self, note: str) -> None:
        known = self._memory()
        known.pop(self._origin, None)
        known[self._origin] = note
        made = self._memory_path.with_name(f".{self._memory_path.name}")
        made.write_bytes(msgspec.json.encode(dict(list(known.items())[-LOGS:])))
        os.replace(made, self._memory_path)

    @property
    def _memory_path(self) -> Path:
        return keys.memory_path(self._key_path)


# --- the tree, from the store -----------------------------------------------------------------------------------------


def _has_leaves(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'leaves'").fetchone() is not None


def _leaf(db: sqlite3.Connection, seq: int) -> bytes | None:
    """The hash of one record, or of one that was purged."""
    row = db.execute("SELECT hash FROM records WHERE seq = ?", (seq,)).fetchone()
    if row is None and _has_leaves(db):
        row = db.execute("SELECT hash FROM leaves WHERE seq = ?", (seq,)).fetchone()
    return None if row is None else _bytes(row[0])


def _grow(db: sqlite3.Connection, tree: Frontier, stop: int) -> None:
    """Adds the records behind the tree, up to `stop`. Raises `Inconsistent` where one is missing."""
    tables = ["leaves", "records"] if tree.size < _purged(db) else ["records"]
    for table in tables:
        question = f"SELECT seq, hash FROM {table} WHERE seq > ? AND seq <= ? ORDER BY seq"  # noqa: S608
        for seq, hash in db.execute(question, (tree.size, stop)):
            if seq != tree.size + 1:
                first = tree.size + 1
                lost = f"record {first} is" if seq == first + 1 else f"records {first} to {seq - 1} are"
                raise Inconsistent(
                    f"{lost} missing, so nothing behind that is signed; `aegis audit verify` says more: bring it back "
                    "from a copy, or stop the daemon and move store and journal away to begin anew"
                )
            tree.add(_bytes(hash))


def _purged(db: sqlite3.Connection) -> int:
    """The newest record of which only the hash is left."""
    if not _has_leaves(db):
        return 0
    return int(db.execute("SELECT ifnull(max(seq), 0) FROM leaves").fetchone()[0])


def _frontier(db: sqlite3.Connection, size: int, root: bytes) -> Frontier:
    """The tree at the newest checkpoint: as kept, where its last part still is what the records give; else rebuilt.

    Raises `Inconsistent` where the records give another root.
    """
    row = db.execute("SELECT nodes FROM tree WHERE size = ?", (size,)).fetchone()
    if row is not None:
        try:
            tree = Frontier.unpacked(size, row[0])
        except (ValueError, TypeError):
            tree = None
        if tree is not None and tree.root() == root and size:
            # The newest leaf names all before it (each record has the hash of the one before), so it is enough to see
            # that the newest perfect subtree, which holds it, is the one that was signed.
            part = size & -size
            last = Frontier(size - part)
            last.nodes = list(tree.nodes[:-1])
            _grow(db, last, size)
            if last.size == size and last.nodes == tree.nodes:
                return tree
    tree = Frontier()
    _grow(db, tree, size)
    if tree.size != size or tree.root() != root:
        raise Inconsistent(
            f"the first {size} records are not those that checkpoint {size} was made of; nothing more is signed: "
            "`aegis audit verify` says which were changed"
        )
    return tree


def _bytes(hash: object) -> bytes:
    if isinstance(hash, bytes):
        return hash
    try:
        found = bytes.fromhex(str(hash))
    except ValueError:
        found = b""
    if len(found) != 32:
        raise Inconsistent("a record is kept with a hash that is none; see `aegis audit verify`")
    return found
