"""The log is read from its first record to its last, and whatever was changed after it was written is named.

What is compared: each record with its hash and its place in the chain, each body with the commitment in its record,
each row of `calls` with what the records say, each signed checkpoint with its signature and with the root over the
records, and all of it with checkpoints that were kept elsewhere; the file's schema with what Aegis makes, its indexes
with the tables, and the counts with the calls. `scripts/verify_audit` does the same once more and shares no line with
this; change both.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import cast

import msgspec

from aegis_daemon.audit import keys, rollup, shape, warrants
from aegis_daemon.audit.calls import COLUMNS, Row, Stored, fold, read_record
from aegis_daemon.audit.chain import UNREADABLE, Fault, Walk, digest
from aegis_daemon.audit.checkpoint import Checkpoint, NoteError, key_id, read_checkpoint, read_note
from aegis_daemon.audit.merkle import Frontier
from aegis_daemon.audit.record import GENESIS, KINDS
from aegis_daemon.audit.removals import Removals

PROGRESS_EVERY = 10_000
TICK = 10_000
"""Calls counted between two words of progress."""
LOWEST = -(1 << 63)
"""Of all places that a table may have."""
_decode = msgspec.json.Decoder().decode
_canonical = msgspec.json.Encoder(order="sorted").encode


class Trust(msgspec.Struct, frozen=True):
    """What a verification may rely on.

    `key` (32 bytes) is believed; None: the first one of `ring`, or of the store where that is empty. `notes` are
    checkpoints that were kept elsewhere; `witnessed` those that a witness took, by the witness's name.
    """

    key: bytes | None = None
    ring: tuple[keys.Ring, ...] = ()
    notes: tuple[str, ...] = ()
    witnessed: tuple[tuple[str, str], ...] = ()


class Report(msgspec.Struct, frozen=True):
    """What a verification saw. `head` is the newest record's hash.

    `signed` is how many records the newest sound checkpoint covers, `witnessed` how many of them a witness has seen
    (by `witness`), both 0 for none; `purged` records have left their hashes alone.
    """

    records: int
    first_seq: int
    last_seq: int
    head: str
    faults: list[Fault]
    checked_bodies: int
    erased_bodies: int
    checked_calls: int
    origin: str = ""
    checkpoints: int = 0
    signed: int = 0
    witnessed: int = 0
    witness: str = ""
    trusted: int = 0
    purged: int = 0
    key: str = ""
    """the public key (hex) that signed the newest checkpoint of the store"""

    @property
    def unwitnessed(self) -> int:
        """Records that nobody but this machine has seen."""
        return self.last_seq - self.witnessed


Progress = Callable[[int, int], None]


def verify(
    db: sqlite3.Connection,
    *,
    progress: Progress | None = None,
    newest: int | None = None,
    trust: Trust | None = None,
    since: int = 1,
) -> Report:
    """Checks the store that `db` reads, in one consistent view of it.

    `newest` is a record that must be there (the daemon's `flush` names one). Of records before `since` only the hashes
    are read, for the checkpoints. `progress(done, total)` is called now and then. Raises `sqlite3.Error`.
    """
    db.execute("BEGIN")
    try:
        return _Verification(db, progress, trust or Trust(), since).run(newest)
    finally:
        db.execute("COMMIT")


class _Points:
    """The checkpoints that a growing tree must pass through, in the order of their sizes."""

    def __init__(self, points: list[tuple[int, bytes, str]]) -> None:
        points.sort(key=lambda point: point[0])
        self._points = points
        self._at = 0
        self.next = points[0][0] if points else 0
        """Size at which the next one stands; 0 for none."""
        self.signed = 0
        self.failed: Fault | None = None

    def meet(self, tree: Frontier) -> None:
        """The tree has the size of the next one."""
        root = tree.root()
        while self._at < len(self._points) and self._points[self._at][0] == tree.size:
            size, expected, what = self._points[self._at]
            self._at += 1
            if self.failed is not None:
                continue
            if expected == root:
                self.signed = size
            else:
                good = f"behind record {self.signed}" if self.signed else "somewhere"
                text = f"the first {size} records are not those of {what}: they were changed {good} and hashed anew"
                self.failed = Fault(size, "rewritten", text)
        self.next = self._points[self._at][0] if self._at < len(self._points) else 0

    def beyond(self, last: int) -> Fault | None:
        """What says that there were more records."""
        if not self._points or self._points[-1][0] <= last:
            return None
        size, _, what = self._points[-1]
        lost = f"record {size} is" if size == last + 1 else f"records {last + 1} to {size} are"
        return Fault(last + 1, "truncated", f"{lost} missing at the end: {what} covers {size} records")


class _Calls:
    """The rows of `calls`, met in the order in which their calls begin."""

    def __init__(self, db: sqlite3.Connection, faults: list[Fault], since: int) -> None:
        question = f"SELECT {', '.join(COLUMNS)} FROM calls WHERE seq >= ? ORDER BY seq"  # noqa: S608
        self._rows = iter(db.execute(question, (since,)))
        self._ahead: tuple[object, ...] | None = next(self._rows, None)
        self._kept: dict[int, tuple[object, ...]] = {}
        self._faults = faults
        self._db = db
        self._since = since
        self.bodiless: set[int] = set()
        self.checked = 0
        self.strange = 0
        """Rows that no record speaks of."""

    def begin(self, seq: int) -> None:
        """A call begins with record `seq`."""
        row = self._ahead
        while row is not None and row[0] < seq:  # type: ignore[operator]
            self.strange += 1
            row = next(self._rows, None)
        if row is not None and row[0] == seq:
            self._kept[seq] = row
            row = next(self._rows, None)
        self._ahead = row

    def end(self, row: Row) -> None:
        """All records of this call were seen."""
        self.checked += 1
        kept = self._kept.pop(row.seq, None)
        if kept is None:
            if self._since > 1 and self._began_before(row):
                self.checked -= 1
                return
            self._faults.append(Fault(row.seq, "call_missing", f"call {row.call_id} has no row in `calls`"))
            return
        if row.seq in self.bodiless:  # the arguments are gone, and so is their hash
            self.bodiless.remove(row.seq)
            row.arguments_hash = ""
        told = msgspec.structs.astuple(row)
        if told != kept:
            wrong = [name for name, is_, should in zip(COLUMNS, kept, told, strict=True) if is_ != should]
            text = f"call {row.call_id}: `calls` differs from the records in {', '.join(wrong)}"
            self._faults.append(Fault(row.seq, "call_edited", text))

    def _began_before(self, row: Row) -> bool:
        """Whether its call has records before the first one that is read."""
        found = self._db.execute("SELECT seqs FROM calls WHERE call_id = ? AND seq < ?", (row.call_id, self._since))
        return any(str(row.seq) in str(seqs).split(",") for (seqs,) in found)

    def finish(self) -> int:
        """How many rows no record speaks of."""
        return self.strange + (self._ahead is not None) + sum(1 for _ in self._rows)


class _Asks:
    """The rows of `asks`, met in the order of the records that they name."""

    def __init__(self, db: sqlite3.Connection, start: int) -> None:
        self._rows = iter(db.execute("SELECT seq, ticket, call_id FROM asks WHERE seq >= ? ORDER BY seq", (start,)))
        self._ahead: tuple[object, ...] | None = next(self._rows, None)
        self.wrong = 0

    def said(self, record: Stored) -> None:
        """A record speaks of a ticket."""
        while self._ahead is not None and self._ahead[0] < record.seq:  # type: ignore[operator]
            self.wrong += 1
            self._ahead = next(self._rows, None)
        if self._ahead == (record.seq, record.ticket, record.call):
            self._ahead = next(self._rows, None)
        else:
            self.wrong += 1

    def finish(self) -> int:
        """How many rows are not what the records say."""
        return self.wrong + (self._ahead is not None) + sum(1 for _ in self._rows)


class _Verification:
    def __init__(self, db: sqlite3.Connection, progress: Progress | None, trust: Trust, since: int) -> None:
        self._db = db
        self._progress = progress
        self._trust = trust
        self._since = max(1, since)
        self._tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        self._purged = 0
        self._chain = ""
        self._publics: list[bytes] = []
        self._signer = b""

    def run(self, newest: int | None) -> Report:
        db = self._db
        strange = list(shape.strange(db))
        if any(table for table, _ in strange):  # whatever is read of such a file says nothing
            return Report(0, 0, 0, GENESIS, [Fault(0, "schema_edited", text) for _, text in strange], 0, 0, 0)
        first, last = db.execute("SELECT ifnull(min(seq), 0), ifnull(max(seq), 0) FROM records").fetchone()
        total = last - first + 1 if last else 0
        tree: Frontier | None = Frontier()
        faults: list[Fault] = [Fault(0, "schema_edited", text) for _, text in strange]
        leaves = self._leaves(faults)
        points, checkpoints, origin, witnessed = self._points(faults, leaves)
        tree, head = self._before(leaves, tree, points)
        purged = self._purged
        start = max(self._since, purged + 1)
        walk = Walk(start - 1, head)
        walk.faults = faults
        open_calls: dict[str, Row] = {}
        calls = _Calls(db, faults, start if start > purged + 1 else LOWEST)
        asks = _Asks(db, start)
        bodiless = calls.bodiless
        ordered = Removals()
        gone: list[int] = []
        self._behind(faults, start, calls, open_calls, ordered, gone)
        count = bodies = erased = 0
        grow = tree.add if tree is not None else None
        step = walk.step
        rows = db.execute(
            "SELECT r.seq, r.hash, CAST(r.record AS BLOB), b.seq, CAST(b.salt AS BLOB), CAST(b.body AS BLOB), b.length "
            "FROM records r LEFT JOIN bodies b ON b.seq = r.seq WHERE r.seq >= ? ORDER BY r.seq",
            (start,),
        )
        for seq, stored, text, body_seq, salt, body, length in rows:
            count += 1
            if count % PROGRESS_EVERY == 0 and self._progress is not None:
                self._progress(count, total)
            text = text or b""
            stored = str(stored)
            record, canonical = _read(text)
            expected = walk.seq + 1
            link = step(seq, text, stored, record)
            if grow is not None:
                try:
                    leaf = bytes.fromhex(stored)
                except ValueError:
                    leaf = b""
                if seq != expected or len(leaf) != 32:
                    tree = grow = None  # said already
                else:
                    grow(leaf)
                    if seq == points.next and tree is not None:
                        points.meet(tree)
            if link is None:
                continue
            if record is None:
                faults.append(Fault(seq, "unreadable", f"record {seq} has fields that no record has"))
                continue
            if not canonical:
                faults.append(Fault(seq, "unreadable", f"record {seq} is not in its canonical form"))
            if record.body:
                if salt is None and body is None:
                    gone.append(seq)
                elif sha256((salt or b"") + (body or b"")).hexdigest() != record.body or length != (
                    record.length or len(body or b"")
                ):
                    faults.append(
                        Fault(seq, "body_edited", f"the body of record {seq} is not the one it was made with")
                    )
                else:
                    bodies += 1
            elif body_seq is not None:
                faults.append(Fault(seq, "body_edited", f"record {seq} was made without a body and has one"))
            if record.kind == "admin":
                self._heed(faults, ordered, seq, text)
            elif record.kind == "approval":
                asks.said(record)
            if seq != record.seq or not record.call:
                continue  # its call cannot be told, or there is none
            folded = fold(open_calls, record, (body or b"") if record.body else None)
            if folded is not None:
                row, new = folded
                if new:
                    calls.begin(row.seq)
                    if body is None:
                        bodiless.add(row.seq)
                if row.call_id not in open_calls:
                    calls.end(row)
        for row in open_calls.values():
            calls.end(row)
        unordered = ordered.bodiless(gone)
        erased = len(gone) - len(unordered)
        for seq in unordered:
            text = f"the body of record {seq} is gone, and no record says that it was erased"
            faults.append(Fault(seq, "body_missing", text))
        if purged > ordered.purged and (self._since <= purged + 1 or "removals" in self._tables):
            what = "record 1 is" if purged == 1 else f"records 1 to {purged} are"
            faults.append(Fault(1, "missing", f"{what} gone, and no record says that they were purged"))
        self._strays(faults, start if start > purged + 1 else LOWEST)
        self._finish(faults, calls)
        self._counts(faults, asks, total)
        if points.failed is not None:
            faults.append(points.failed)
        beyond = points.beyond(last)
        if beyond is not None:
            faults.append(beyond)
        elif newest is not None and last < newest:
            faults.append(Fault(last + 1, "missing", f"records {last + 1} to {newest} are missing"))
        met = [each for each in witnessed if each[0] <= points.signed]
        seen = max(met, key=lambda each: each[0], default=(0, ""))  # of several, the one that is named first
        return Report(
            records=count,
            first_seq=first,
            last_seq=last,
            head=walk.head,
            faults=faults,
            checked_bodies=bodies,
            erased_bodies=erased,
            checked_calls=calls.checked,
            origin=origin,
            checkpoints=checkpoints,
            signed=points.signed,
            witnessed=seen[0],
            witness=seen[1],
            trusted=len(self._trust.notes),
            purged=purged,
            key=self._signer.hex(),
        )

    def _strays(self, faults: list[Fault], start: int) -> None:
        """What stands at places where nothing belongs."""
        for (seq,) in self._db.execute("SELECT seq FROM records WHERE seq < 1 AND seq >= ?", (start,)):
            faults.append(Fault(seq, "inserted", f"a record is kept at place {seq}, where there is none"))
        question = (
            "SELECT b.seq FROM bodies b LEFT JOIN records r ON r.seq = b.seq "
            "WHERE b.seq >= ? AND r.seq IS NULL LIMIT 100"
        )
        for (seq,) in self._db.execute(question, (start,)):
            faults.append(Fault(seq, "body_edited", f"a body is kept for record {seq}, which is not there"))

    def _finish(self, faults: list[Fault], calls: _Calls) -> None:
        strange = calls.finish()
        # A call that began before the place where the reading began has a row that was not met.
        if strange and not any(fault.kind in ("missing", "unreadable", "reordered") for fault in faults):
            faults.append(Fault(0, "call_inserted", f"`calls` has {strange} rows that no record speaks of"))

    def _counts(self, faults: list[Fault], asks: _Asks, total: int) -> None:
        """What is found by an index, and what is made of all that; of calls that are not sound no count can be."""
        wrong = asks.finish()
        whole = self._since == 1
        if whole:
            # One instruction may take minutes; but who waits hears of it in between where SQLite lets them.
            self._db.set_progress_handler(lambda: self._progress(total, total) if self._progress else None, 10_000_000)
            try:
                damaged = list(shape.damaged(self._db))
            finally:
                self._db.set_progress_handler(None, 0)
            faults += [Fault(0, "index_edited", f"the file is not sound: {text}") for text in damaged]
        if faults:
            return
        if wrong:
            faults.append(Fault(0, "tallies_edited", f"`asks` has {wrong} rows that differ from the records"))
        if whole:
            faults += [Fault(0, "tallies_edited", text) for text in rollup.differing(self._db, self._ticker(total))]

    def _ticker(self, total: int) -> Callable[[], None]:
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            if done % TICK == 0 and self._progress is not None:
                self._progress(total, total)

        return tick

    # --- what lies before the first record that is read --------------------------------------------------------------

    def _leaves(self, faults: list[Fault]) -> int:
        """How many records of the beginning have left their hashes alone."""
        if "leaves" not in self._tables:
            return 0
        question = "SELECT count(*), ifnull(min(seq), 0), ifnull(max(seq), 0) FROM leaves"
        count, low, high = self._db.execute(question).fetchone()
        if count and (low != 1 or high != count):
            faults.append(Fault(1, "missing", f"of {high} purged records only {count} hashes are there"))
        self._purged = high
        return int(high)

    def _behind(
        self, faults: list[Fault], start: int, calls: _Calls, open_calls: dict[str, Row], ordered: Removals,
        gone: list[int],
    ) -> None:  # fmt: skip
        """Whole records before the place where the walk begins: of calls that outlive a purge, and orders."""
        db = self._db
        if self._purged:
            rows = db.execute(
                "SELECT r.seq, r.hash, CAST(r.record AS BLOB), l.hash, b.seq, CAST(b.salt AS BLOB), "
                "CAST(b.body AS BLOB), b.length "
                "FROM records r LEFT JOIN leaves l ON l.seq = r.seq LEFT JOIN bodies b ON b.seq = r.seq "
                "WHERE r.seq BETWEEN 1 AND ? ORDER BY r.seq",
                (self._purged,),
            )
            for seq, stored, text, leaf, body_seq, salt, body, length in rows:
                text = text or b""
                try:
                    record = read_record(text)
                except UNREADABLE:
                    record = None
                if record is None or record.seq != seq or digest(text) != leaf or stored != digest(text).hex():
                    faults.append(Fault(seq, "edited", f"record {seq} does not have the hash that is kept with it"))
                    continue
                if record.body and salt is None and body is None:
                    gone.append(seq)
                elif (body_seq is not None) != bool(record.body) or (
                    record.body
                    and (
                        sha256((salt or b"") + (body or b"")).hexdigest() != record.body
                        or length != (record.length or len(body or b""))
                    )
                ):
                    why = f"the body of record {seq} is not the one it was made with"
                    faults.append(Fault(seq, "body_edited", why))
                if record.kind == "admin":
                    self._heed(faults, ordered, seq, text)
                if not record.call or start > self._purged + 1:
                    continue
                folded = fold(open_calls, record, (body or b"") if record.body else None)
                if folded is not None:
                    row, new = folded
                    if new:
                        calls.begin(seq)
                        if record.body and body is None:
                            calls.bodiless.add(seq)
                    if row.call_id not in open_calls:
                        calls.end(row)
        if start > self._purged + 1 and "removals" in self._tables:
            rows = db.execute(
                "SELECT r.seq, r.hash, CAST(r.record AS BLOB) FROM removals o JOIN records r ON r.seq = o.seq "
                "WHERE r.seq > ? AND r.seq < ?",
                (self._purged, start),
            )
            for seq, stored, text in rows:
                if digest(text or b"").hex() == stored:
                    self._heed(faults, ordered, seq, text)

    def _heed(self, faults: list[Fault], ordered: Removals, seq: int, text: bytes) -> None:
        """What an `admin` record orders to go, where the log's key says so, too."""
        found = warrants.read(seq, text)
        if found is None:
            return
        if warrants.holds(found[1], self._chain, self._publics):
            ordered.add(found[0])
            return
        why = f"record {seq} orders a removal (`{found[1].action}`) that the log's key did not sign: it does not count"
        faults.append(Fault(seq, "removal_unsigned", why))

    def _hashes(self) -> Iterator[tuple[int, object]]:
        """Of purged records, and of those before the first one that is read."""
        if self._purged:
            yield from self._db.execute("SELECT seq, hash FROM leaves ORDER BY seq")
        if self._since > 1:
            yield from self._db.execute(
                "SELECT seq, hash FROM records WHERE seq > ? AND seq < ? ORDER BY seq", (self._purged, self._since)
            )

    def _before(self, leaves: int, tree: Frontier | None, points: _Points) -> tuple[Frontier | None, str]:
        head = GENESIS
        for seq, hash in self._hashes():
            leaf = _hash(hash)
            head = leaf.hex()
            if tree is not None and (seq != tree.size + 1 or len(leaf) != 32):
                tree = None
            if tree is not None:
                tree.add(leaf)
                if tree.size == points.next:
                    points.meet(tree)
        return tree, head

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _points(self, faults: list[Fault], leaves: int) -> tuple[_Points, int, str, list[tuple[int, str]]]:
        """The checkpoints to pass through, how many are the store's own, the log's origin, and what witnesses saw."""
        db = self._db
        table = "leaves" if leaves else "records"
        row = db.execute(f"SELECT hash FROM {table} WHERE seq = 1").fetchone()  # noqa: S608
        chain = _hash(row[0]).hex()[:16] if row is not None else ""
        publics = keys.follow(self._ring(faults), self._trust.key)
        self._chain, self._publics = chain, publics
        points: list[tuple[int, bytes, str]] = []
        count = 0
        origin = ""
        used = 0
        if "checkpoints" in self._tables:
            for size, root, note in db.execute("SELECT size, root, note FROM checkpoints ORDER BY size"):
                count += 1
                what = f"checkpoint {size}"
                found = self._read(faults, note, what, size, chain, publics, used)
                if found is None:
                    continue
                point, used = found
                origin, self._signer = point.origin, publics[used]
                if point.size != size or point.root != root:
                    text = f"checkpoint {size} is kept with another size or root than was signed"
                    faults.append(Fault(size, "checkpoint_edited", text))
                points.append((point.size, point.root, what))
        witnessed: list[tuple[int, str]] = []
        elsewhere = [(note, "", "the trusted checkpoint") for note in self._trust.notes]
        elsewhere += [(note, name, f"the checkpoint that `{name}` has") for name, note in self._trust.witnessed]
        for note, name, what in elsewhere:
            found = self._read(faults, note, what, 0, chain, publics, 0)
            if found is None:
                continue
            point = found[0]
            origin = origin or point.origin
            points.append((point.size, point.root, f"{what} ({point.size})"))
            if name:
                witnessed.append((point.size, name))
        return _Points(points), count, origin, witnessed

    def _read(
        self, faults: list[Fault], note: object, what: str, seq: int, chain: str, publics: Sequence[bytes], used: int
    ) -> tuple[Checkpoint, int] | None:
        try:
            read = read_note(str(note))
            point = read_checkpoint(read.text)
        except NoteError as error:
            faults.append(Fault(seq, "checkpoint_edited", f"{what} cannot be read: {error}"))
            return None
        if not point.size or chain != point.origin.rpartition("/")[2]:
            text = f"{what} is of another log, `{point.origin}`; this one begins with the record {chain or 'none'}"
            faults.append(Fault(seq or point.size, "other_log", text))
            return None
        signer = keys.signed_by(read, point.origin, publics)
        if signer is None:
            ids = {key_id(point.origin, key) for key in publics}
            known = any(line.key_id in ids for line in read.signatures)
            kind = "checkpoint_edited" if known else "unknown_key"
            why = "its signature is not good" if known else "it was not signed by the key that you trust"
            if self._trust.key is None and not known:
                why = "it was signed with none of the keys of this log"
            faults.append(Fault(seq or point.size, kind, f"{what}: {why}"))  # type: ignore[arg-type]
            return None
        if signer < used:
            text = f"{what} was signed with a key that had been replaced by then"
            faults.append(Fault(seq or point.size, "unknown_key", text))
            return None
        return point, signer

    def _ring(self, faults: list[Fault]) -> list[keys.Ring]:
        if self._trust.ring:
            return list(self._trust.ring)
        if "keys" not in self._tables:
            return []
        rows = self._db.execute("SELECT public, since, rotation FROM keys ORDER BY number")
        ring = [keys.Ring(str(public), str(since), str(rotation)) for public, since, rotation in rows]
        if self._trust.key is None and len(keys.follow(ring)) != len(ring):
            faults.append(Fault(0, "unknown_key", "a key of the store does not follow the one before it"))
        return ring


def _whole() -> type[msgspec.Struct]:
    """All that any record may hold, in the order of the names, so that it is written in canonical form again."""
    kinds = {"int": int, "str": str, "bool": bool}
    known = {field.name: field for field in msgspec.structs.fields(Stored)}
    more = {field.name: field for kind in KINDS.values() for field in msgspec.structs.fields(kind)}
    found: list[tuple[str, type] | tuple[str, type, object]] = []
    for name in sorted({**more, **known}):
        field = known.get(name) or more[name]
        type_ = kinds.get(str(field.type), field.type)
        if name in known and field.required:
            found.append((name, type_))
        else:
            found.append((name, type_, type_() if field.required else field.default))
    return msgspec.defstruct("_Whole", found, kw_only=True, omit_defaults=True)


_decode_whole = msgspec.json.Decoder(_whole()).decode
_encode = msgspec.json.Encoder().encode


def _read(text: bytes) -> tuple[Stored | None, bool]:
    """What a record says, None where unreadable, and whether it says so in its canonical form."""
    try:
        whole = _decode_whole(text)
        if _encode(whole) == text:
            return cast(Stored, whole), True
        return cast(Stored, whole), _is_canonical(text)  # it is not, or a later version wrote it
    except UNREADABLE:
        pass
    try:
        return read_record(text), _is_canonical(text)
    except UNREADABLE:
        return None, False


def _is_canonical(text: bytes) -> bool:
    try:
        return _canonical(_decode(text)) == text
    except UNREADABLE:
        return False


def _hash(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return bytes.fromhex(str(value))
    except ValueError:
        return b""
