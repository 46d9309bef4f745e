"""Published test data that is no part of the project: there in CI, left out in so many words elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _left_out(why: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{why}; in CI nothing may be left out")
    pytest.skip(why)


def corpus(name: str) -> Path:
    """The folder `name` under AEGIS_CORPORA (default: `../shared/data` beside the project)."""
    home = Path(os.environ.get("AEGIS_CORPORA") or ROOT.parent / "shared" / "data")
    folder = home / name
    if not folder.is_dir():
        _left_out(f"the corpus `{name}` is not at {home}: set AEGIS_CORPORA to the folder that holds it")
    return folder


def program(name: str) -> str:
    """The path of another interpreter that the test asks for its opinion."""
    found = shutil.which(name)
    if found is None:
        _left_out(f"`{name}` is not installed, so its reading of our frames is not compared")
    assert found is not None
    return found
