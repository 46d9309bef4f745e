"""Another program's file is replaced whole or not at all, keeps its mode, its owner and its link, and is kept before."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from aegis_daemon.clients import files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mcp.json"
    path.write_bytes(b"old\n")
    path.chmod(0o640)
    return path


def leftovers(directory: Path) -> list[str]:
    return sorted(one.name for one in directory.iterdir())


def test_a_file_is_replaced_with_its_mode(file: Path) -> None:
    files.replace(str(file), b"old\n", b"new\n")
    assert file.read_bytes() == b"new\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert leftovers(file.parent) == ["mcp.json"]


def test_a_symbolic_link_stays_one_and_its_target_changes(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "sub" / "link.json"
    link.parent.mkdir()
    link.symlink_to("../mcp.json")
    files.replace(str(link), b"old\n", b"new\n")
    assert link.is_symlink()
    assert os.readlink(link) == "../mcp.json"
    assert file.read_bytes() == b"new\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_stays(file: Path) -> None:
    os.chown(file, 12345, 12346)
    files.replace(str(file), b"old\n", b"new\n")
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 12346)


def test_what_was_changed_meanwhile_is_not_overwritten(file: Path) -> None:
    with pytest.raises(files.Moved):
        files.replace(str(file), b"other\n", b"new\n")
    assert file.read_bytes() == b"old\n"
    assert leftovers(file.parent) == ["mcp.json"]


def test_a_file_that_another_program_replaces_just_then_is_left_to_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def late(descriptor: int) -> None:
        real(descriptor)
        made = file.with_name("theirs")
        made.write_bytes(b"old\n")  # even where it says the same
        made.replace(file)

    monkeypatch.setattr(files.os, "fsync", late)
    with pytest.raises(files.Moved):
        files.replace(str(file), b"old\n", b"new\n")
    assert file.read_bytes() == b"old\n"
    assert leftovers(file.parent) == ["mcp.json"]


def test_a_full_disk_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.replace(str(file), b"old\n", b"new\n")
    assert file.read_bytes() == b"old\n"
    assert leftovers(file.parent) == ["mcp.json"]


def test_a_file_that_is_gone_is_not_made_anew(file: Path) -> None:
    file.unlink()
    with pytest.raises(OSError):
        files.replace(str(file), b"old\n", b"new\n")
    assert leftovers(file.parent) == []


def test_only_regular_files_of_some_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(files.Unfit, match="no regular file"):
        files.read(str(fifo))
    with pytest.raises((files.Unfit, IsADirectoryError)):
        files.read(str(tmp_path))
    assert files.read(str(tmp_path / "none")) is None
    monkeypatch.setattr(files, "SIZE_MAX", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(files.Unfit, match="MB"):
        files.read(str(tmp_path / "large"))


def test_five_copies_are_kept_and_those_that_an_undo_needs(file: Path, tmp_path: Path) -> None:
    kept = str(tmp_path / "backups")
    first = files.back_up(kept, str(file), b"0", now=1_000_000.0)
    made = [files.back_up(kept, str(file), str(at).encode(), {first}, now=1_000_000.0 + at // 2) for at in range(1, 9)]
    assert len(set(made)) == 8
    found = files.copies(kept, str(file))
    assert found[0] == first
    assert found[1:] == made[-5:]
    assert [Path(one).read_bytes() for one in found] == [b"0", b"4", b"5", b"6", b"7", b"8"]
    assert stat.S_IMODE(os.stat(kept).st_mode) == 0o700
    assert {stat.S_IMODE(os.stat(one).st_mode) for one in found} == {0o600}


def test_files_of_one_name_keep_their_copies_apart(tmp_path: Path) -> None:
    kept = str(tmp_path / "backups")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.back_up(kept, str(tmp_path / name / "config.json"), name.encode())
    for name in ("a", "b"):
        (found,) = files.copies(kept, str(tmp_path / name / "config.json"))
        assert Path(found).read_bytes() == name.encode()


def test_two_commands_wait_for_each_other(tmp_path: Path) -> None:
    path = str(tmp_path / "state" / "lock")
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait(5)
        with files.locked(path):
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with files.locked(path):
        inside.set()
        time.sleep(0.1)  # long enough for the other to come in, were it let
        order.append("first")
    other.join(5)
    assert order == ["first", "second"]


def test_a_directory_that_cannot_promise_it_for_a_loss_of_power_is_no_failure(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(directory: str) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(files, "sync_directory", unable)
    files.replace(str(file), b"old\n", b"new\n")
    files.write_private(str(file.parent / "own"), b"x")
    files.write_new(str(file.parent / "new"), b"y")
    assert file.read_bytes() == b"new\n"
    assert leftovers(file.parent) == ["mcp.json", "new", "own"]


def test_a_file_that_is_protected_against_writing_is_left_alone(file: Path) -> None:
    file.chmod(0o444)
    with pytest.raises(files.Unfit, match="protected against writing"):
        files.replace(str(file), b"old\n", b"new\n")
    assert file.read_bytes() == b"old\n"
    assert leftovers(file.parent) == ["mcp.json"]


def test_what_a_killed_command_left_beside_a_file_is_known_by_its_form(file: Path) -> None:
    left = file.with_name(".mcp.json.0123456789abcdef")
    for path in (left, file.with_name(".mcp.json.bak"), file.with_name("mcp.json.0123456789abcdef")):
        path.write_bytes(b"secret")
    (file.parent / "link").symlink_to(file)
    assert files.leftovers(str(file)) == files.leftovers(str(file.parent / "link")) == [str(left)]


def test_a_new_file_never_takes_the_place_of_one(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (file, tmp_path / "link"):
        with pytest.raises(FileExistsError):
            files.write_new(str(path), b"mine")
    assert file.read_bytes() == b"old\n"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Python has no calls for extended attributes elsewhere")
def test_extended_attributes_stay(file: Path) -> None:
    try:
        os.setxattr(file, "user.origin", b"here")
    except OSError:
        pytest.skip("this file system has none")
    files.replace(str(file), b"old\n", b"new\n")
    assert os.getxattr(file, "user.origin") == b"here"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_what_we_made_is_known_and_what_others_wrote_there_is_not_taken_for_it(tmp_path: Path) -> None:
    copy = files.back_up(str(tmp_path / "b"), "/x/mcp.json", b"")
    Path(tmp_path, "b", "mcp.json-deadbeef.20240101T000000Z").write_text("")
    files.note(str(tmp_path / "b" / "odd\nname"))
    files.note(copy)
    assert files.noted(str(tmp_path / "b")) == {os.path.basename(copy), "odd\nname"}
    with open(tmp_path / "b" / files.NOTES, "a") as notes:
        notes.write('"../../etc/passwd"\n[[\n".."\n3\n')
    assert files.noted(str(tmp_path / "b")) == {os.path.basename(copy), "odd\nname"}
    assert files.noted(str(tmp_path)) == frozenset()
