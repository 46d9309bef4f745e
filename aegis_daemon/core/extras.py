"""How Aegis is installed, and with an optional library, is said in one place: from a clone, never by a name.

An index has another project's package under the name of this distribution.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

CLONE: Final = "in your clone of Aegis"
INSTALL: Final = f"`pipx install .` or `uv tool install .` {CLONE}"
REINSTALL: Final = f"`pipx install --force .` or `uv tool install --reinstall .` {CLONE}"
"""over what is there, whole"""
INSTALL_GLOBAL: Final = f"`pipx install --global .` {CLONE}"
"""for every user of the machine"""
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
    return f"install Aegis with its extra `{extra}`, like `pipx install --force '.[{extra}]'` {CLONE}"
