from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from aegis_daemon.loop import whole


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.json"
    path.write_bytes(b"old")
    return path


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_the_new_file_is_ours_alone_and_leaves_nothing_beside_it(file: Path) -> None:
    file.chmod(0o644)
    whole.put(str(file), b"new")
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert names(file.parent) == ["one.json"]


def test_it_has_its_mode_before_its_content_and_the_old_one_stays_until_the_last_look(file: Path) -> None:
    seen = []

    def dress(descriptor: int) -> None:
        os.fchmod(descriptor, 0o640)
        seen.append(os.fstat(descriptor).st_size)

    def last() -> None:
        (made,) = [name for name in names(file.parent) if name != file.name]
        match = whole.UNFINISHED.fullmatch(made)
        assert match is not None
        seen.append((match[1], (file.parent / made).read_bytes(), file.read_bytes()))

    whole.put(str(file), b"new", dress=dress, last=last)
    assert seen == [0, ("one.json", b"new", b"old")]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize("when", ["dress", "last"])
def test_what_is_raised_before_the_change_leaves_all_as_it_was(file: Path, when: str) -> None:
    def fails(*given: int) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        whole.put(str(file), b"new", **{when: fails})  # type: ignore[arg-type]
    assert file.read_bytes() == b"old"
    assert names(file.parent) == ["one.json"]


def test_a_full_disk_leaves_all_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        whole.put(str(file), b"new")
    assert file.read_bytes() == b"old"
    assert names(file.parent) == ["one.json"]


def test_a_link_in_its_place_is_replaced_and_not_followed(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    whole.put(str(link), b"new")
    assert not link.is_symlink()
    assert file.read_bytes() == b"old"
