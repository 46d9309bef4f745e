"""The README's tables say what the code says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_settings_commands_and_refusals_in_the_readme_are_those_of_the_code() -> None:
    script = runpy.run_path(str(ROOT / "scripts/readme"))
    assert script["written"](README, script["tables"]()) == README, "run scripts/readme"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|scripts|examples)/[\w./-]*)`", README))))
def test_every_file_the_readme_names_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_refusal_of_the_code_is_one_that_the_readme_explains() -> None:
    raised = set()
    for file in (ROOT / "aegis_daemon").rglob("*.py"):
        raised |= set(re.findall(r'Reason\(\s*"(\w+)"', file.read_text(encoding="utf-8")))
    explained = set(re.findall(r"^\| `(\w+)` \| -3", README, re.M))
    assert raised - explained <= {"withdrawn", "replay", "restart"}, "these are recorded and never sent"
