"""What `aegis audit verify` reads of witnesses: what is theirs, as far as it can be read, and by whose word."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from aegis_daemon.audit.checkpoint import Checkpoint, origin, write_note
from aegis_daemon.audit.keys import Signer
from aegis_daemon.audit.verify import Report
from aegis_daemon.cli.audit import verify

KEY = Signer(b"\x05" * 32)
LOG = origin("default", "ab" * 32)


def note(size: int, log: str = LOG) -> str:
    point = Checkpoint(log, size, bytes(32), ("at 2026-01-31T08:00:00Z",))
    return write_note(point.text(), [KEY.sign(log, point.text())])


NOTES = [note(size) for size in (5, 10, 15)]


def had(path: Path) -> tuple[list[str] | None, list[str]]:
    remarks: list[str] = []
    return verify._had("notebook", str(path), remarks), remarks


@pytest.mark.parametrize("gap", ["", "\n"])
@pytest.mark.parametrize("cut", [3, 30, 120, len(NOTES[0].encode()) - 6, len(NOTES[0].encode()) - 3])
def test_half_a_checkpoint_is_passed_over(tmp_path: Path, cut: int, gap: str) -> None:
    path = tmp_path / "notebook"
    half = NOTES[0].encode()[:cut].decode(errors="ignore")
    path.write_text(f"{NOTES[0]}\n{half}{gap}{NOTES[1]}\n{NOTES[2]}\n{half}")
    found, remarks = had(path)
    assert found == NOTES
    assert len(remarks) == 1
    assert "in 2 places that is no whole checkpoint" in remarks[0]


def test_of_a_large_file_the_newest_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notebook"
    path.write_text(f"{NOTES[0]}\n" * 50 + f"{NOTES[1]}\n{NOTES[2]}\n")
    monkeypatch.setattr(verify, "NOTES_MAX", 1000)
    found, remarks = had(path)
    assert found is not None
    assert found[-2:] == NOTES[1:]
    assert set(found[:-2]) == {NOTES[0]}
    assert len(remarks) == 1
    assert "newest" in remarks[0]


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "real").write_text(NOTES[0])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name, why in (("fifo", "no regular file"), ("link", "no regular file"), ("none", "no such file")):
        found, remarks = had(tmp_path / name)
        assert found is None
        assert why in remarks[0]


def test_this_machines_word_counts_for_configured_witnesses_alone_and_is_called_so(tmp_path: Path) -> None:
    store, cursors = tmp_path / "audit.db", tmp_path / "exports.db"
    with closing(sqlite3.connect(store)) as db:
        db.execute("CREATE TABLE checkpoints (size, note)")
        db.execute("INSERT INTO checkpoints VALUES (15, ?)", (NOTES[2],))
        db.commit()
    with closing(sqlite3.connect(cursors)) as db:
        db.execute("CREATE TABLE witnessed (witness, chain, size)")
        rows = [("vault", LOG), ("gone", LOG), ("other", "aegis/x/y")]
        db.executemany("INSERT INTO witnessed VALUES (?, ?, 15)", rows)
        db.commit()
    names = {"vault", "other"}
    assert verify._witnessed(str(store), cursors, names) == [("vault, as this machine says", NOTES[2])]


def test_another_log_that_was_larger_is_spoken_of(tmp_path: Path) -> None:
    store = tmp_path / "audit.db"
    with closing(sqlite3.connect(store)) as db:
        db.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, hash, record)")
        db.execute("INSERT INTO records VALUES (1, '', '{\"ts\":1770000000000000}')")
        db.commit()
    other = origin("default", "cd" * 32)
    (remark,) = verify._larger(str(store), [note(1, other), note(40, other), "nonsense"])
    assert remark.startswith(f"this key signed 40 records of another log, `{other}`, to 2026-01-31T08:00:00Z;")
    assert "began on 2026-02-02T02:40:00Z: if that was not you" in remark


def test_what_a_witness_has_of_another_log_is_a_remark_and_not_believed_of_this_one() -> None:
    remarks: list[str] = []
    other = origin("default", "cd" * 32)
    notes = [*NOTES, note(30, other), note(40, other)]
    assert verify._ours("notebook", notes, LOG.rpartition("/")[2], remarks) == NOTES
    (remark,) = remarks
    assert remark.startswith(f"`notebook` has checkpoints of another log, `{other}`, to 40 records (2026-01-31")
    assert verify._ours("notebook", notes, "", remarks) == notes  # of an empty log, all of it speaks


@pytest.mark.parametrize(
    ("given", "own", "whose"),
    [(True, True, "that you trust"), (False, True, "of this machine"), (False, False, "that the store names itself")],
)
def test_it_is_said_whose_key_signed(given: bool, own: bool, whose: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(3, 1, 3, "", [], 0, 0, 1, LOG, signed=3, key="ab" * 32)
    verify._tell(report, 1, given=given, own=own)
    assert f"by the key {'ab' * 32}, the key {whose}" in capsys.readouterr().out
