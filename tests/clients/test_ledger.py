"""The ledger holds what every undo needs, is its owner's alone, and a damaged one is never taken for an empty one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from aegis_daemon.clients import files, ledger
from aegis_daemon.clients.ledger import File, Ledger, Record


def record(name: str = "gh", file: str = "/users/ann/mcp.json", index: str | int | None = None) -> Record:
    return Record(
        file=file, keys=("mcpServers", name if index is None else index), name=name, client="cursor", agent="cursor",
        backend=name, original={"command": "npx"}, original_bytes=b'{ "command" :"npx" }\xff', ours={"command": "w"},
        change="ab12", at=1000.5,
    )  # fmt: skip


def row(path: str = "/users/ann/mcp.json") -> File:
    return File(path, "cursor", "aa", "bb", "/state/backups/mcp.json-1", ("ab12",), ("other",))


def test_everything_comes_back_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    ledger.save(str(tmp_path / "state"), Ledger((record(),), (row(),)))
    copy = files.back_up(str(tmp_path / "state" / ledger.BACKUPS), row().path, b"")
    made = Ledger((record(),), (msgspec.structs.replace(row(), backup=copy),))
    ledger.save(str(tmp_path / "state"), made)
    assert ledger.load(str(tmp_path / "state")) == made
    assert stat.S_IMODE(os.stat(tmp_path / "state" / "wired.json").st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "state").st_mode) == 0o700


def test_a_copy_that_is_not_ours_or_of_another_file_is_none(tmp_path: Path) -> None:
    state, path = str(tmp_path / "state"), row().path
    other = files.back_up(os.path.join(state, ledger.BACKUPS), "/users/ann/other.json", b"")
    elsewhere = files.back_up(str(tmp_path / ledger.BACKUPS), path, b"")
    for copy in (other, elsewhere, str(tmp_path / "evil")):
        ledger.save(state, Ledger((record(),), (msgspec.structs.replace(row(), backup=copy),)))
        assert [one.backup for one in ledger.load(state).files] == [""], copy


def test_none_is_empty_and_an_empty_one_leaves_no_file(tmp_path: Path) -> None:
    assert ledger.load(str(tmp_path)) == Ledger()
    ledger.save(str(tmp_path), Ledger((record(),), (row(),)))
    ledger.save(str(tmp_path), Ledger())
    assert list(tmp_path.iterdir()) == []
    ledger.save(str(tmp_path), Ledger())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"records": 1}', b'{"version": 2}', b'{"records": [{}]}'])
def test_a_damaged_or_later_one_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "wired.json").write_bytes(data)
    with pytest.raises(ledger.Unreadable, match=r"damaged|later version"):
        ledger.load(str(tmp_path))


def test_an_entry_of_a_list_is_known_by_its_name_wherever_it_moves() -> None:
    made = Ledger((record("gh", index=2),))
    assert made.find("/users/ann/mcp.json", ("mcpServers", 0), "gh") is not None
    assert made.find("/users/ann/mcp.json", ("mcpServers", 2), "other") is None


def test_a_change_of_one_file_leaves_the_others_alone() -> None:
    first = Ledger((record(), record("fs"), record(file="/other")), (row(), row("/other")))
    after = first.changed(row().path, drop=[record().ident], file=row())
    assert [(one.file, one.name) for one in after.records] == [("/users/ann/mcp.json", "fs"), ("/other", "gh")]
    assert {one.path for one in after.files} == {"/users/ann/mcp.json", "/other"}
    again = first.changed(row().path, put=[record("fs")], file=None)
    assert len(again.records) == 3
    assert [one.path for one in again.files] == ["/other"]
