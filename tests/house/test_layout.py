"""What a reader may rely on when looking for something."""

from __future__ import annotations

import ast
import re
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


def test_nothing_tells_to_install_the_distribution_by_its_name() -> None:
    """An index has another project's package under it."""
    told = re.compile(r"(?:\b(?:re)?install\b|\buvx\b|\bpipx run\b|--from|pypi\.org/)[^`\n]*\baegis-mcp\b")
    texts = [*FILES, *(ROOT / "aegis_daemon").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "Dockerfile"]
    texts += [path for path in (ROOT / "examples").rglob("*") if path.suffix in (".md", ".yaml", ".json", ".toml")]
    assert told.search("`uv tool install aegis-mcp`")
    assert not told.search("`pipx uninstall aegis-mcp`")
    found = {}
    for path in texts:
        text = re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))  # literals that are one text
        if wrong := told.findall(text):
            found[str(path.relative_to(ROOT))] = wrong
    assert found == {}
