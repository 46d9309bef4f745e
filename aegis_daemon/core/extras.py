"""What an optional library is called, whether it is there, and how Aegis is installed with it, is said in one place."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

LIBRARIES: Final = {"parquet": "pyarrow", "s3": "obstore"}
"""Extra of the distribution → the library that it brings."""


def missing(extra: str) -> bool:
    """Whether an extra's library is not installed; nothing is imported."""
    try:
        return find_spec(LIBRARIES[extra]) is None
    except ValueError:  # it was put out of reach
        return True


def advice(extra: str) -> str:
    """How to get it."""
    return f"install Aegis with its extra `{extra}`, like `pipx install --force '.[{extra}]'` in its source directory"
