"""What is signed can be checked by anybody, and nothing is signed that does not go on behind what was signed before."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from logging_by_hand import BOUND, change, fill, fill_store, opened, until
from proving import Signed, varied

from aegis_daemon.audit import keys, warrants
from aegis_daemon.audit.checkpoint import (
    Checkpoint,
    NoteError,
    key_id,
    origin,
    read_checkpoint,
    read_note,
    read_verifier_key,
    split_notes,
    verifier_key,
    write_note,
)
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.notary import Duties, Notary
from aegis_daemon.audit.removals import Said
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.verify import Report, Trust
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.daemon.keykeeper import KeyKeeper
from aegis_daemon.manage import api

# --- notes ------------------------------------------------------------------------------------------------------------

# Go's golang.org/x/mod/sumdb/note, whose format c2sp.org/signed-note is.
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_a_note_of_another_implementation_is_checked() -> None:
    public = read_verifier_key(NEUMANN)
    assert verifier_key("PeterNeumann", public) == NEUMANN
    assert keys.signed_by(read_note(NOTE), "PeterNeumann", [bytes(32), public]) == 1
    assert keys.signed_by(read_note(NOTE.replace("answer", "Answer")), "PeterNeumann", [public]) is None
    assert keys.signed_by(read_note(NOTE), "Neumann", [public]) is None


def test_a_note_is_written_as_it_is_read() -> None:
    signer = keys.Signer(b"\x01" * 32)
    point = Checkpoint("aegis/a/b", 12, b"\x05" * 32, ("at 2026-01-31T08:00:00Z",))
    note = write_note(point.text(), [signer.sign(point.origin, point.text())])
    found = read_note(note)
    assert read_checkpoint(found.text) == point
    assert (point.at, found.signatures[0].key_id) == ("2026-01-31T08:00:00Z", key_id("aegis/a/b", signer.public))
    assert keys.signed_by(found, "aegis/a/b", [signer.public]) == 0
    assert split_notes(note + note + "\n" + note) == [note] * 3


@pytest.mark.parametrize(
    "text",
    ["", "a\n", "a\n1\n", "a\n01\nBQ==\n", "a\n1\nBQ==\n", "a\n-1\n" + "A" * 43 + "=\n", "a\n1\n" + "A" * 42 + "B=\n\n",
     "\n1\n" + "A" * 43 + "=\n", "a\n1\n" + "A" * 43 + "=\n\n", "a\n1\n" + "A" * 43 + "="],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        read_checkpoint(text)


@pytest.mark.parametrize(
    "note",
    ["", "a\n", "a\n\n", "a\n\nb\n", "a\n\n— b\n", "a\n\n— b AAAA\n", "a\n\n— b c AAAAAAAA\n", "a\n\n— b AAAAAAB=\n", "a\t\n\n— b AAAAAAAA\n",
     "a\n\n— b+c AAAAAAAA\n", "a\n\n— b AAAAAAAA", "a\n\n" + "— b AAAAAAAA\n" * 65, "a" * 70000 + "\n\n— b AAAAAAAA\n"],
)  # fmt: skip
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(NoteError):
        read_note(note)


def test_what_signs_is_loaded_where_something_is_signed_alone() -> None:
    code = "import sys; from aegis_daemon.daemon import main, keykeeper; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_a_tenants_name_cannot_pretend_to_be_another_origin() -> None:
    assert origin("a/b +\n1", "f" * 64) == "aegis/a%2Fb%20%2B%0A1/" + "f" * 16


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_is_its_owners_alone_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "audit.key"
    seed = keys.load_or_make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.public_path(path).stat().st_mode) == 0o644
    assert keys.load_or_make(path) == seed
    public = keys.Signer(seed).public
    assert keys.follow(keys.read_ring(path)) == [public]
    for text in (keys.public_pem(public), public.hex(), verifier_key("a", public), keys.public_path(path).read_text()):
        assert keys.read_public(text) == public


def test_a_key_that_others_can_read_signs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    keys.load_or_make(path)
    os.chmod(path, 0o640)
    with pytest.raises(keys.KeyFault, match="chmod 600"):
        keys.load(path)


def test_a_key_that_is_gone_is_not_replaced_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    keys.load_or_make(path)
    path.unlink()
    with pytest.raises(keys.KeyFault, match="put it back"):
        keys.load_or_make(path)


@pytest.mark.parametrize("data", [b"", b"x", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "audit.key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(keys.KeyFault, match="no Ed25519 key"):
        keys.load(path)


def test_keys_follow_each_other_only_by_the_word_of_both(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    first = keys.Signer(keys.load_or_make(path)).public
    for _ in range(2):
        keys.use(path, keys.prepare(path))
    ring = keys.read_ring(path)
    publics = keys.follow(ring)
    assert (len(publics), publics[0]) == (3, first)
    assert keys.Signer(keys.load(path)).public == publics[-1]
    assert keys.follow(ring, publics[1]) == publics[1:]
    assert keys.follow(ring, b"\x09" * 32) == [b"\x09" * 32]
    thief = keys.Signer(b"\x02" * 32)
    text = read_note(ring[1].rotation).text.replace(ring[1].rotation.split("\n")[2], _b64(thief.public))
    for signers in ([thief], [thief, thief]):
        forged = write_note(text, [signer.sign(keys.NAME, text) for signer in signers])
        assert keys.follow([ring[0], keys.Ring(thief.public.hex(), "", forged)]) == [first]


def test_a_next_key_that_was_not_meant_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    note = keys.prepare(path)
    keys.prepare(path)
    with pytest.raises(keys.KeyFault, match="rotate again"):
        keys.use(path, note)
    assert len(keys.read_ring(path)) == 1


@pytest.mark.parametrize("where", ["a new writer", "the same writer"])
async def test_a_rotation_that_was_killed_between_its_two_steps_is_finished(
    signed: Signed, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    note = keys.prepare(signed.key_path)
    real = os.replace

    def killed(source: Path, target: Path) -> None:
        if target == signed.key_path:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            keys.use(signed.key_path, note)
    varied(signed, 20)
    if where == "a new writer":
        signed.restart()
    signed.sign()
    assert [line for line in signed.said if line.startswith("unsigned")] == []
    found = report(signed)
    assert (found.faults, found.signed, len(keys.read_ring(signed.key_path))) == ([], found.records, 2)
    assert not signed.key_path.with_name("audit.key.next").exists()
    signed.rotate()
    assert len(keys.follow(keys.read_ring(signed.key_path))) == 3


async def test_a_next_key_that_nothing_says_is_in_use_stays_one(signed: Signed) -> None:
    keys.prepare(signed.key_path)
    public = keys.Signer(keys.load(signed.key_path)).public
    assert keys.Signer(keys.load_or_make(signed.key_path)).public == public
    assert signed.key_path.with_name("audit.key.next").exists()


async def test_an_order_is_signed_by_a_process_that_has_the_key_or_says_why_not(signed: Signed) -> None:
    with opened(signed.directory) as log:
        keeper = KeyKeeper(signed.key_path, log)
        ring = keys.follow(keys.read_ring(signed.key_path))
        texts = [
            warrants.text("aegis/a%2Fb/0123456789abcdef", "purge", f"records 1 to {n}: why", "ann") for n in (7, 8)
        ]
        words = await keeper.sign("aegis/a%2Fb/0123456789abcdef", texts)
        for last, word in zip((7, 8), words, strict=True):
            said = Said("purge", "ann", f"records 1 to {last}: another reason", word, "a/b")
            assert warrants.holds(said, "0123456789abcdef", ring)
            for other in ({"by": "eve"}, {"tenant": "b"}, {"detail": "records 1 to 9: x"}, {"action": "erase"}):
                assert not warrants.holds(msgspec.structs.replace(said, **other), "0123456789abcdef", ring)
            assert not warrants.holds(said, "f" * 16, ring)
        signed.key_path.chmod(0o644)
        with pytest.raises(
            api.Unavailable, match=r"nothing is removed, for the order cannot be signed: .*owner's alone"
        ):
            await keeper.sign("aegis/a/b", texts)


async def test_records_that_only_the_store_had_are_told_unless_they_were_signed(signed: Signed) -> None:
    signed_to = report(signed).signed

    def gone_on() -> list[str]:
        shutil.rmtree(signed.directory)  # a lost journal is the simplest way for the store to be ahead
        journal = Journal(
            signed.directory, durability="process", loop=asyncio.get_running_loop(), db_path=signed.db_path,
            key_file=signed.key_path,
        )  # fmt: skip
        notes = journal.open().notes
        journal.close()
        return [note for note in notes if "only the store had" in note]

    assert gone_on() == []
    with opened(signed.directory, db_path=signed.db_path) as log:
        fill(log, range(40, 42))
    fill_store(signed.directory, signed.db_path)
    (note,) = gone_on()
    assert f"only the store had records {signed_to + 1} to {signed_to + 4}" in note
    signed.key_path.with_name("audit.key.signed").unlink()
    assert f"records 1 to {signed_to + 4}" in gone_on()[0]


async def test_a_checkpoint_that_the_key_did_not_sign_is_doubted(signed: Signed) -> None:
    note, ring = signed.notes()[-1], signed.key_path
    origin, size = note.split("\n")[0], int(note.split("\n")[1])
    assert keys.doubt(ring, origin, size, note) == ""
    thief = keys.Signer(b"\x02" * 32)
    text = read_note(note).text
    forged = write_note(text, [thief.sign(origin, text)])
    for log, many, given in (
        (origin, size + 1, note),
        ("aegis/x/y", size, note),
        (origin, size, forged),
        (origin, 1, ""),
    ):
        assert "not passed on" in keys.doubt(ring, log, many, given)


def _b64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


# --- the notary -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def signed(tmp_path: Path) -> Signed:
    made = Signed(tmp_path / "log")
    varied(made, 1)
    made.sign()
    return made


def report(signed: Signed, *notes: str) -> Report:
    with Reader(signed.db_path) as reader:
        return reader.verify(trust=Trust(notes=notes))


def kinds(found: Report) -> set[str]:
    return {fault.kind for fault in found.faults}


async def test_what_the_store_holds_is_signed(signed: Signed) -> None:
    found = report(signed)
    assert (found.faults, found.signed, found.checkpoints) == ([], found.records, 1)
    assert signed.said[-1] == f"checkpoint {found.records}"
    assert found.origin.startswith("aegis/default/")


async def test_another_writer_goes_on_behind_what_was_signed(signed: Signed) -> None:
    for number in range(2, 5):
        signed.restart()
        varied(signed, number * 10)
        signed.sign()
    found = report(signed, *signed.notes())
    assert (found.faults, found.signed, found.checkpoints) == ([], found.records, 4)


async def test_a_checkpoint_is_due_by_number_by_time_and_while_nothing_happens(signed: Signed) -> None:
    now = [1000.0]
    notary = Notary(Duties(str(signed.key_path), every=5, seconds=3.0), signed.said.append, lambda: now[0])
    db = sqlite3.connect(signed.db_path, isolation_level=None)
    last = report(signed).records
    assert notary.due_in(last) == 0
    notary.step(db)
    assert notary.due_in(last) == 3600
    assert notary.due_in(last + 4) == 3
    now[0] += 2
    assert notary.due_in(last + 4) == 1
    assert notary.due_in(last + 5) == 0
    now[0] += 3600
    assert notary.due_in(last) == 0
    db.close()


async def test_a_long_log_is_signed_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aegis_daemon.audit import notary

    monkeypatch.setattr(notary, "SLICE", 7)
    made = Signed(tmp_path / "log")
    with opened(made.directory) as log:
        fill(log, range(1, 20))
    made.sign()
    found = report(made)
    assert (found.faults, found.signed, found.checkpoints) == ([], 38, 6)


async def test_a_rotated_key_goes_on_and_the_old_one_does_not_come_back(signed: Signed) -> None:
    old = keys.load(signed.key_path)
    signed.rotate()
    varied(signed, 20)
    signed.sign()
    assert report(signed).faults == []
    first = bytes.fromhex(keys.read_ring(signed.key_path)[0].public)
    with Reader(signed.db_path) as reader:
        assert reader.verify(trust=Trust(key=first)).faults == []
    varied(signed, 30)
    signed.sign()
    # Somebody who has the old key signs the newest checkpoint once more.
    note = signed.notes()[-1]
    point = read_checkpoint(read_note(note).text)
    forged = write_note(point.text(), [keys.Signer(old).sign(point.origin, point.text())])
    change(signed.db_path, f"UPDATE checkpoints SET note = '{forged}' WHERE size = {point.size}")
    assert kinds(report(signed)) == {"unknown_key"}


def _rewrite(db_path: Path) -> None:
    """Everything from record 3 on, hashed and linked anew."""
    from test_verify_twice import chained

    with sqlite3.connect(db_path) as db:
        db.execute("UPDATE records SET record = replace(record, '\"ts\":', '\"ts\":1') WHERE seq = 3")
        chained(db, 3)
    db.close()


async def test_a_log_that_was_written_anew_is_not_signed(signed: Signed) -> None:
    _rewrite(signed.db_path)
    signed.restart()
    signed.again()
    assert signed.said[-1].startswith("unsigned the first ")
    assert "aegis audit verify" in signed.said[-1]
    assert "rewritten" in kinds(report(signed))
    assert len(signed.notes()) == 1


async def test_nor_is_one_whose_checkpoints_were_deleted_with_it(signed: Signed) -> None:
    """The file beside the key remembers what was signed."""
    _rewrite(signed.db_path)
    change(signed.db_path, "DELETE FROM checkpoints", "DELETE FROM tree")
    signed.restart()
    signed.again()
    assert signed.said[-1].startswith("unsigned the first ")
    assert signed.notes() == []


async def test_nor_is_one_that_was_put_back_to_an_earlier_state(signed: Signed, tmp_path: Path) -> None:
    shutil.copyfile(signed.db_path, tmp_path / "before.db")
    varied(signed, 20)
    signed.sign()
    newest = signed.notes()[-1]
    shutil.copyfile(tmp_path / "before.db", signed.db_path)
    for suffix in ("-wal", "-shm"):
        signed.db_path.with_name(signed.db_path.name + suffix).unlink(missing_ok=True)
    signed.restart()
    signed.again()
    assert "put back to an earlier state" in signed.said[-1]
    assert kinds(report(signed, newest)) == {"truncated"}


async def test_nor_is_one_with_a_gap(signed: Signed) -> None:
    last = report(signed).records
    varied(signed, 20)
    signed.sign(last + 4)
    statements = f"DELETE FROM records WHERE seq = {last + 2}", f"DELETE FROM checkpoints WHERE size > {last}"
    change(signed.db_path, *statements)
    signed.key_path.with_name("audit.key.signed").unlink()
    signed.restart()
    signed.again()
    assert signed.said[-1].startswith(f"unsigned record {last + 2} is missing")


async def test_nor_by_a_key_that_did_not_sign_before(signed: Signed) -> None:
    for path in (signed.key_path, keys.public_path(signed.key_path)):
        path.unlink()
    signed.restart()
    signed.again()
    assert "put the right key back" in signed.said[-1]
    assert len(signed.notes()) == 1


async def test_another_log_gets_another_name_and_that_is_said(signed: Signed) -> None:
    first = report(signed).origin
    shutil.rmtree(signed.directory)
    signed.db_path.unlink()
    for suffix in ("-wal", "-shm"):
        signed.db_path.with_name(signed.db_path.name + suffix).unlink(missing_ok=True)
    note = json.loads(signed.key_path.with_name("audit.key.signed").read_text())[first]
    varied(signed, 1)
    signed.restart()
    signed.sign()
    second = report(signed).origin
    assert second != first
    assert f"newlog the key signed `{first}` before, and signs `{second}` from now on" in signed.said
    assert kinds(report(signed, note)) == {"other_log"}


async def test_a_fault_is_said_once_and_tried_again(signed: Signed) -> None:
    now = [0.0]
    said: list[str] = []
    notary = Notary(signed.duties, said.append, lambda: now[0])
    db = sqlite3.connect(signed.db_path, isolation_level=None)
    signed.key_path.chmod(0o644)
    for _ in range(2):
        notary.step(db)
    assert [line.split()[0] for line in said] == ["unsigned"]
    assert notary.due_in(5) == 10
    signed.key_path.chmod(0o600)
    notary.step(db)
    assert said[-1].startswith("checkpoint ")
    db.close()


async def test_the_writer_process_signs_at_work_and_at_its_end(tmp_path: Path) -> None:
    duties = Duties(str(tmp_path / "audit.key"), every=20, seconds=0.2)
    with opened(tmp_path / "journal") as log:
        handle = WriterHandle(log, tmp_path / "audit.db", asyncio.get_running_loop(), duties)
        fill(log, range(1, 30))
        await until(lambda: handle.signed == 58, "signed")
        fill(log, range(30, 40))
        await asyncio.wait_for(handle.close(), BOUND)
        assert handle.unsigned == ""
    with Reader(tmp_path / "audit.db") as reader:
        found = reader.verify()
    assert (found.faults, found.signed, found.records) == ([], 78, 78)


async def test_the_daemon_hears_what_keeps_the_log_from_being_signed(tmp_path: Path) -> None:
    key = tmp_path / "audit.key"
    key.write_bytes(b"x")
    key.chmod(0o600)
    with opened(tmp_path / "journal") as log:
        handle = WriterHandle(log, tmp_path / "audit.db", asyncio.get_running_loop(), Duties(str(key), seconds=0.05))
        fill(log, range(1, 3))
        await until(lambda: "no Ed25519 key" in handle.unsigned, "told")
        await handle.flush()
        await asyncio.wait_for(handle.close(), BOUND)
    with sqlite3.connect(tmp_path / "audit.db") as db:
        noted = db.execute("SELECT count(*) FROM records WHERE record LIKE '%audit_unsigned%'").fetchone()[0]
    db.close()
    assert noted == 1
