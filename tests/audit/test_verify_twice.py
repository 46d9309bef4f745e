"""Two verifiers that share no line agree on whether a log was changed, whatever was done to it."""

from __future__ import annotations

import json
import random
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proving import SECOND, Signed, copied, remembered, second, serialized, varied

from aegis_daemon.audit import keys, rollup
from aegis_daemon.audit.calls import COLUMNS, arguments_hash
from aegis_daemon.audit.chain import digest
from aegis_daemon.audit.checkpoint import read_checkpoint, read_note, write_note
from aegis_daemon.audit.verify import Trust, verify

SEED = 20260131
two = second()
# What they say of the same text is the same every time; ten thousand logs differ in a few texts each.
for _name in ("in_canonical_form", "read_record", "hash_of_arguments", "parse_note"):
    setattr(two, _name, remembered(getattr(two, _name)))


class Logs:
    """Two whole stores of two tenants, with all that a verifier may know of the first one."""

    def __init__(self, at: Path) -> None:
        self.one, self.other = Signed(at / "one"), Signed(at / "other", "other")
        for signed in (self.one, self.other):
            for part in range(3):
                varied(signed, 1 + 10 * part)
                signed.sign()
                if part == 1:
                    signed.rotate()
        self.store, self.foreign = serialized(self.one.db_path), serialized(self.other.db_path)
        db = copied(self.store)
        self.whole = whole(db)
        db.close()
        self.notes = self.one.notes()
        ring = keys.read_ring(self.one.key_path)
        self.key = bytes.fromhex(ring[0].public)
        self.stranger = keys.Signer(b"\x07" * 32)

    def judge(self, db: sqlite3.Connection, trusted: tuple[str, ...]) -> tuple[bool, bool, str]:
        """What each says of a store: whether it was changed."""
        first = verify(db, trust=Trust(key=self.key, notes=trusted)).faults
        other = two.Log(db, self.key, trusted).examine()
        return bool(first), bool(other), f"{first[:3]} / {other[:3]}"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    import asyncio

    async def made() -> Logs:
        return Logs(tmp_path_factory.mktemp("logs"))

    return asyncio.run(made())


# --- what can be done to a store --------------------------------------------------------------------------------------
# Each gives whether it must be found: True, or None where it may be harmless (then the two have to agree all the same).

Dice = random.Random
TABLES = ["records", "bodies", "calls", "checkpoints"]
Found = bool | None


def records(db: sqlite3.Connection) -> list[tuple[int, str, str]]:
    return db.execute("SELECT seq, hash, record FROM records ORDER BY seq").fetchall()


def some(db: sqlite3.Connection, dice: Dice) -> tuple[int, str, str]:
    return dice.choice(records(db))


def scribble(text: str, dice: Dice) -> str:
    """The same text but for one character."""
    at = dice.randrange(len(text))
    new = dice.choice([c for c in 'abcxyz0189"{}:,- ' if c != text[at]])
    return text[:at] + new + text[at + 1 :]


def put(db: sqlite3.Connection, seq: int, text: str, *, anew: bool) -> None:
    hash = digest(text.encode()).hex()
    db.execute("UPDATE records SET record = ? WHERE seq = ?", (text, seq))
    if anew:
        db.execute("UPDATE records SET hash = ? WHERE seq = ?", (hash, seq))


def chained(db: sqlite3.Connection, since: int) -> None:
    """Every record from there on, hashed and linked anew: what somebody does who knows the format."""
    before: str | None = None
    for seq, hash, text in records(db):
        if seq >= since:
            if before is not None:
                text = re.sub(r'"prev":"[0-9a-f]*"', f'"prev":"{before}"', text)
            hash = digest(text.encode()).hex()
            db.execute("UPDATE records SET record = ?, hash = ? WHERE seq = ?", (text, hash, seq))
        before = hash


def edit_record(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    seq, _, text = some(db, dice)
    put(db, seq, scribble(text, dice), anew=dice.random() < 0.5)
    return True


def edit_field(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    seq, _, text = some(db, dice)
    record = json.loads(text)
    name = dice.choice(sorted(record))
    was = record[name]
    record[name] = was + 1 if type(was) is int else not was if type(was) is bool else str(was) + "x"
    new = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    put(db, seq, new, anew=True)
    if dice.random() < 0.7:
        chained(db, seq)
    return True


def edit_hash(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    seq, hash, _ = some(db, dice)
    db.execute("UPDATE records SET hash = ? WHERE seq = ?", (scribble(hash, dice), seq))
    return True


def rewrite(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    """As whoever holds the file would: the record, its call's row, and everything behind it."""
    seq, _, text = some(db, dice)
    new = text.replace('"agent":"writer"', '"agent":"nobody"')
    if new == text:
        new = re.sub(r'"ts":(\d+)', lambda m: f'"ts":{int(m[1]) + 1}', text)
    put(db, seq, new, anew=True)
    chained(db, seq)
    db.execute("UPDATE calls SET agent_id = 'nobody' WHERE seq = ?", (seq,))
    return True


def delete(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    seq = some(db, dice)[0]
    tables = ("records", "bodies", "calls") if dice.random() < 0.5 else ("records",)
    for table in tables:
        db.execute(f"DELETE FROM {table} WHERE seq = ?", (seq,))
    if len(tables) > 1 and dice.random() < 0.6:
        for table in tables:
            db.execute(f"UPDATE {table} SET seq = seq - 1000 WHERE seq > ?", (seq,))
            db.execute(f"UPDATE {table} SET seq = seq + 999 WHERE seq < 0")
    return True


def reorder(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    (a, hash_a, text_a), (b, hash_b, text_b) = dice.sample(records(db), 2)
    db.execute("UPDATE records SET hash = ?, record = ? WHERE seq = ?", (hash_b, text_b, a))
    db.execute("UPDATE records SET hash = ?, record = ? WHERE seq = ?", (hash_a, text_a, b))
    if dice.random() < 0.3:
        chained(db, 1)
    return True


def insert(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    rows = records(db)
    _, _, text = dice.choice(rows)
    at = dice.randrange(1, len(rows) + 1)
    for table in ("records", "bodies"):
        db.execute(f"UPDATE {table} SET seq = -seq WHERE seq >= ?", (at,))
        db.execute(f"UPDATE {table} SET seq = 1 - seq WHERE seq < 0")
    db.execute("INSERT INTO records VALUES (?, ?, ?)", (at, digest(text.encode()).hex(), text))
    if dice.random() < 0.5:
        chained(db, at)
    return True


def append(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    """A record at the end, as good as any: nothing that was signed speaks against it."""
    seq, hash, text = records(db)[-1]
    record = json.loads(text)
    record = {"action": "reload", "kind": "admin", "prev": hash, "seq": seq + 1, "ts": record["ts"], "v": 1}
    if dice.random() < 0.3:
        record["action"], record["detail"] = "erase", f"bodies of records 1-{seq}: x"
        db.execute("UPDATE bodies SET salt = NULL, body = NULL WHERE seq = 1")
    new = json.dumps(record, sort_keys=True, separators=(",", ":"))
    db.execute("INSERT INTO records VALUES (?, ?, ?)", (seq + 1, digest(new.encode()).hex(), new))
    return None


def truncate(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    """Not the end of the last call, so its row is right; with the checkpoints that would tell of it."""
    last = len(records(db)) - dice.randrange(1, 12)
    for table in ("records", "bodies", "calls"):
        db.execute(f"DELETE FROM {table} WHERE seq > ?", (last,))
    if dice.random() < 0.7:
        db.execute("DELETE FROM checkpoints WHERE size > ?", (last,))
    return True


def edit_body(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    seq, body, salt = dice.choice(db.execute("SELECT seq, body, salt FROM bodies WHERE body <> ''").fetchall())
    what = dice.randrange(6)
    if what == 0:
        text = body if isinstance(body, str) else body.decode("latin-1")
        db.execute("UPDATE bodies SET body = ? WHERE seq = ?", (scribble(text, dice), seq))
    elif what == 1:
        db.execute("UPDATE bodies SET salt = ? WHERE seq = ?", (bytes([salt[0] ^ 1]) + salt[1:], seq))
    elif what == 2:
        db.execute("UPDATE bodies SET length = length + 1 WHERE seq = ?", (seq,))
    elif what == 3:
        db.execute("UPDATE bodies SET salt = NULL, body = NULL WHERE seq = ?", (seq,))
    elif what == 4:
        db.execute("DELETE FROM bodies WHERE seq = ?", (seq,))
    else:
        db.execute("UPDATE bodies SET salt = 'text', body = NULL WHERE seq = ?", (seq,))
    return True


def swap_bodies(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    rows = db.execute("SELECT salt, body, length, seq FROM bodies").fetchall()
    a, b = dice.sample(rows, 2)
    if dice.random() < 0.5:
        other = copied(logs.foreign)
        a = dice.choice(other.execute("SELECT salt, body, length, seq FROM bodies").fetchall())
        other.close()
    db.execute("UPDATE bodies SET salt = ?, body = ?, length = ? WHERE seq = ?", (*a[:3], b[3]))
    return True


def edit_call(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    (seq,) = dice.choice(db.execute("SELECT seq FROM calls").fetchall())
    name = dice.choice(COLUMNS)
    (was,) = db.execute(f"SELECT {name} FROM calls WHERE seq = ?", (seq,)).fetchone()
    if name == "seq":
        db.execute("UPDATE calls SET seq = seq + 1000 WHERE seq = ?", (seq,))
    else:
        new = dice.choice([was + 1, -1, 1 << 60]) if type(was) is int else dice.choice([was + "x", "'; --", "\x1b["])
        db.execute(f"UPDATE calls SET {name} = ? WHERE seq = ?", (new, seq))
    return True


def lose_call(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    (seq,) = dice.choice(db.execute("SELECT seq FROM calls").fetchall())
    if dice.random() < 0.5:
        db.execute("DELETE FROM calls WHERE seq = ?", (seq,))
        return True
    free = dice.choice([seq + 1000, -seq])
    rest = ", ".join(COLUMNS[1:])
    db.execute(f"INSERT INTO calls ({', '.join(COLUMNS)}) SELECT {free}, {rest} FROM calls WHERE seq = ?", (seq,))
    return True


def edit_checkpoint(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    size, root, note = dice.choice(db.execute("SELECT size, root, note FROM checkpoints").fetchall())
    what = dice.randrange(7)
    if what == 0:
        new = bytes([root[0] ^ 1]) + root[1:]
        db.execute("UPDATE checkpoints SET root = ? WHERE size = ?", (new, size))
    elif what == 1:
        db.execute("UPDATE checkpoints SET size = size + 1 WHERE size = ?", (size,))
    elif what == 2:
        db.execute("UPDATE checkpoints SET note = ? WHERE size = ?", (scribble(note, dice), size))
    elif what == 3:
        db.execute("DELETE FROM checkpoints WHERE size = ?", (size,))
        return None
    elif what == 4:
        db.execute("UPDATE checkpoints SET note = ? WHERE size = ?", (logs.other.notes()[0], size))
    elif what == 5:  # a root over other records, signed by somebody else
        point = msgspec.structs.replace(read_checkpoint(read_note(note).text), root=sha256(root).digest())
        forged = write_note(point.text(), [logs.stranger.sign(point.origin, point.text())])
        db.execute("UPDATE checkpoints SET note = ?, root = ? WHERE size = ?", (forged, point.root, size))
    else:
        db.execute("UPDATE checkpoints SET created_us = 1, witness = 'nobody' WHERE size = ?", (size,))
        return None
    return True


def edit_keys(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    what = dice.randrange(4)
    if what == 0:
        db.execute("UPDATE keys SET rotation = ? WHERE number = 2", (scribble(_rotation(db), dice),))
    elif what == 1:
        db.execute("DELETE FROM keys WHERE number = 2")
    elif what == 2:
        db.execute("UPDATE keys SET public = ? WHERE number = 2", (logs.stranger.public.hex(),))
    else:
        db.execute("DELETE FROM keys")
    return True


def _rotation(db: sqlite3.Connection) -> str:
    return str(db.execute("SELECT rotation FROM keys WHERE number = 2").fetchone()[0])


def swap_record(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    other = copied(logs.foreign)
    seq, hash, text = some(other, dice)
    other.close()
    db.execute("UPDATE records SET hash = ?, record = ? WHERE seq = ?", (hash, text, seq))
    if dice.random() < 0.5:
        chained(db, seq)
    return True


def swap_store(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    """The log of another tenant in this one's place, whole or in part."""
    other = copied(logs.foreign)
    for table in TABLES if dice.random() < 0.5 else dice.sample(TABLES, dice.randrange(1, 4)):
        rows = other.execute(f"SELECT * FROM {table}").fetchall()
        db.execute(f"DELETE FROM {table}")
        db.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
    other.close()
    return True


def feign_purge(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    """Records leave their hashes, and nobody has ordered that, or nobody whom the key knows."""
    last = dice.randrange(1, 20)
    if dice.random() < 0.7:
        seq, hash, text = records(db)[-1]
        order: dict[str, Any] = {
            "action": "purge",
            "by": "ann",
            "detail": f"records 1 to {last}: x",
            "kind": "admin",
            "prev": hash,
        }
        order |= {"seq": seq + 1, "tenant": json.loads(text)["tenant"], "ts": json.loads(text)["ts"], "v": 1}
        if dice.random() < 0.7:
            origin = read_checkpoint(read_note(logs.notes[0]).text).origin
            words = f"aegis/removal\n{origin}\npurge\nrecords 1 to {last}\nann\n"
            order["signature"] = dice.choice([logs.stranger.word(origin, words), "AAAA", "é", "A" * 92])
        new = json.dumps(order, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        db.execute("INSERT INTO records VALUES (?, ?, ?)", (seq + 1, digest(new.encode()).hex(), new))
    db.execute("CREATE TABLE IF NOT EXISTS leaves (seq INTEGER PRIMARY KEY, hash BLOB NOT NULL)")
    for seq, hash, _ in records(db)[:last]:
        db.execute("INSERT INTO leaves VALUES (?, ?)", (seq, bytes.fromhex(hash)))
    for table in ("records", "bodies", "calls"):
        db.execute(f"DELETE FROM {table} WHERE seq <= ?", (last,))
    return True


def add_astray(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    """Rows where nobody looks."""
    seq, hash, text = some(db, dice)
    place = dice.choice([0, -seq, seq + 1000, 1 << 62])
    if dice.random() < 0.5:
        db.execute("INSERT INTO records VALUES (?, ?, ?)", (place, hash, text))
    else:
        db.execute("INSERT INTO bodies VALUES (?, 'arguments', x'00', '{}', 2)", (place,))
    return True


def miscount(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    """What statistics and stories are read from."""
    whom = dice.choice(db.execute("SELECT span, start, tool_name FROM tallies").fetchall())
    where = "WHERE span = ? AND start = ? AND tool_name = ?"
    what = dice.choice(["calls = calls + 1", "exec = '5 1'", "start = start + 1", "agent_id = 'nobody'", "", "asks"])
    if what == "asks":
        db.execute(dice.choice(["DELETE FROM asks", "INSERT INTO asks VALUES ('7K2M', 3, 'x')"]))
    else:
        db.execute(f"UPDATE tallies SET {what} {where}" if what else f"DELETE FROM tallies {where}", whom)
    return True


def reshape(db: sqlite3.Connection, dice: Dice, logs: Logs) -> Found:
    """Changes what is found, and no row."""
    what = dice.randrange(6)
    index, sql = dice.choice(db.execute("SELECT name, sql FROM sqlite_master WHERE name LIKE 'calls_%'").fetchall())
    if what == 0:
        db.execute(f"DROP INDEX {index}")
    elif what == 1:  # an index that lacks rows and looks as it did
        index, sql = "calls_agent", db.execute("SELECT sql FROM sqlite_master WHERE name = 'calls_agent'").fetchone()[0]
        db.execute("DROP INDEX calls_agent")
        db.execute(f"{sql} WHERE agent_id <> 'writer'")
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, index))
        db.execute("PRAGMA writable_schema=OFF")
        db.deserialize(db.serialize())
    elif what == 2:
        db.execute("DROP VIEW log")
        db.execute("CREATE VIEW log AS SELECT * FROM calls WHERE agent_id <> 'writer'")
    elif what == 3:
        db.execute("CREATE TRIGGER t AFTER INSERT ON calls BEGIN DELETE FROM tallies; END")
    elif what == 4:
        db.execute("ALTER TABLE calls ADD COLUMN x AS (1)")
    else:
        db.execute("ALTER TABLE calls RENAME TO other")
        db.execute("CREATE VIEW calls AS SELECT * FROM other WHERE agent_id <> 'writer'")
    return True


DEEDS: list[Callable[[sqlite3.Connection, Dice, Logs], Found]] = [
    edit_record, edit_field, edit_hash, rewrite, delete, reorder, insert, append, truncate, edit_body, swap_bodies,
    edit_call, lose_call, edit_checkpoint, edit_keys, swap_record, swap_store, feign_purge, add_astray,
    miscount, reshape,
]  # fmt: skip


def whole(db: sqlite3.Connection) -> list[list[Any]]:
    tables = (*TABLES, "keys", "tallies", "asks", "sqlite_master")
    return [db.execute(f"SELECT * FROM {table}").fetchall() for table in tables]


def tampered(logs: Logs, count: int, seed: int) -> dict[str, int]:
    dice = Dice(seed)
    found: dict[str, int] = {}
    for number in range(count):
        deed = DEEDS[number % len(DEEDS)]
        db = copied(logs.store)
        must = deed(db, dice, logs)
        if must and whole(db) == logs.whole:
            must = False
        one, other, why = logs.judge(db, (logs.notes[-1],))
        db.close()
        assert one == other, (number, deed.__name__, why)
        assert must is None or one is must, (number, deed.__name__, why)
        found[deed.__name__] = found.get(deed.__name__, 0) + one
    return found


def test_both_find_a_whole_log_whole(logs: Logs) -> None:
    for store, signed in ((logs.store, logs.one), (logs.foreign, logs.other)):
        db = copied(store)
        trust = Trust(notes=tuple(signed.notes()))
        report = verify(db, trust=trust)
        log = two.Log(db, None, tuple(signed.notes()))
        assert (report.faults, log.examine()) == ([], [])
        assert report.signed == log.covered == log.seen == report.records == log.count
        assert report.checkpoints == 3
        db.close()


def test_both_find_a_change_of_the_letter_whose_last_bits_base64_throws_away(logs: Logs) -> None:
    db = copied(logs.store)
    rotation = _rotation(db)
    assert rotation.endswith("=\n")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = letters[letters.index(rotation[-3]) ^ 1]
    db.execute("UPDATE keys SET rotation = ? WHERE number = 2", (f"{rotation[:-3]}{other}=\n",))
    assert logs.judge(db, (logs.notes[-1],))[:2] == (True, True)
    db.close()


def test_both_find_hundreds_of_random_changes(logs: Logs) -> None:
    found = tampered(logs, 504, SEED)
    assert len(found) == len(DEEDS)


@pytest.mark.parametrize(
    "count", [pytest.param(3024, marks=pytest.mark.full), pytest.param(10_008, marks=pytest.mark.matrix)]
)
def test_both_find_thousands_of_random_changes(logs: Logs, count: int) -> None:
    found = tampered(logs, count, random.randrange(1 << 30))
    print(found, sum(found.values()))


def test_what_no_checkpoint_covers_is_found_by_none_of_them(logs: Logs) -> None:
    """The honest limit: without a checkpoint that was kept elsewhere, an end that was cut off is not missed."""
    db = copied(logs.store)
    size = read_checkpoint(read_note(logs.notes[0]).text).size
    for table in ("records", "bodies", "calls"):
        db.execute(f"DELETE FROM {table} WHERE seq > ?", (size,))
    db.execute("DELETE FROM checkpoints WHERE size > ?", (size,))
    rollup.rebuild(db)
    assert logs.judge(db, ())[:2] == (False, False)
    assert logs.judge(db, (logs.notes[1],))[:2] == (True, True)
    db.close()


def test_the_second_one_is_a_script_that_needs_nothing(logs: Logs, tmp_path: Path) -> None:
    store, note, key = tmp_path / "audit.db", tmp_path / "kept", logs.key.hex()
    store.write_bytes(logs.store)
    note.write_text("\n".join(logs.notes))

    def run(*more: str) -> tuple[int, str]:
        command = [sys.executable, "-I", "-S", str(SECOND), str(store), *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    assert run("--key", key, "--trusted", str(note), "--require-witness")[0] == 0
    assert run("--require-witness")[0] == 1
    assert run("--key", "nonsense")[0] == 2
    db = sqlite3.connect(store)
    db.execute("UPDATE calls SET agent_id = 'nobody' WHERE seq = 1")
    db.commit()
    db.close()
    code, said = run()
    assert (code, said.splitlines()[0]) == (1, "record 1: call_edited: `calls` differs in agent_id")


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_both_hash_arguments_alike(value: Any) -> None:
    text = json.dumps(value).encode()
    assert two.hash_of_arguments(text) == arguments_hash(text)


@given(st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_both_hash_alike_what_is_no_json(text: bytes) -> None:
    assert two.hash_of_arguments(text) == arguments_hash(text)


# RFC 8032, section 7.1: tests 1 to 3
VECTORS = [
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "", "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72", "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82", "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
]  # fmt: skip


@pytest.mark.parametrize(("public", "message", "signature"), VECTORS)
def test_the_second_one_checks_signatures_as_the_rfc_says(public: str, message: str, signature: str) -> None:
    key, text, given_ = map(bytes.fromhex, (public, message, signature))
    assert two.signature_holds(key, text, given_)
    assert not two.signature_holds(key, text + b"x", given_)
    for at in (0, 31, 32, 63):
        broken = bytearray(given_)
        broken[at] ^= 1
        assert not two.signature_holds(key, text, bytes(broken))
