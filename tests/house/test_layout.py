"""What a reader may rely on when looking for something."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from aegis_daemon.stages import ORDER
from aegis_daemon.wire.errors import REFUSALS

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "aegis_daemon").rglob("*.py"), *(ROOT / "aegis_shim").rglob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_begins_with_the_sentence_it_keeps_true(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text
    first = text.split("\n\n")[0]
    assert first.endswith((".", ":", "?", "!"))
    assert "\n\n" not in first


def test_every_stage_is_a_file_a_place_in_the_order_and_a_refusal() -> None:
    files = {path.stem for path in (ROOT / "aegis_daemon/stages").glob("*.py")} - {"__init__"}
    assert len(set(ORDER)) == len(ORDER)
    assert files == set(ORDER) <= set(REFUSALS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_names_the_machine_it_was_written_on(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for place in (f"/{name}/" for name in ("work", "root", "home")):
        assert place not in text
