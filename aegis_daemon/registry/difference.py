"""A difference that a person reads hides nothing: what is unseen is written as its escape, and so is what misleads."""

from __future__ import annotations

import difflib
import json
from typing import Final

from aegis_daemon.core.text import visible
from aegis_daemon.registry.likeness import telling

MOST_LINES: Final = 4000
"""Lines of one difference; what is longer is cut, and says so."""
WIDEST: Final = 2000
"""Characters of one line."""


def lines(text: str) -> list[str]:
    """A canonical JSON text over several lines, texts of several lines included; each is safe to print."""
    found: list[str] = []
    for line in json.dumps(json.loads(text), ensure_ascii=False, indent=2).split("\n"):
        # A description is one long JSON string: a line of its own for each of its lines makes the change findable.
        whole = line.replace("\\n", "\\n\n").split("\n")
        found.extend(_shown(part) for part in whole if part)
    return found


def _shown(line: str) -> str:
    cut = line if len(line) <= WIDEST else f"{line[:WIDEST]}… ({len(line) - WIDEST} characters more)"
    return visible(telling(cut))


def unified(old: str, new: str, *, before: str = "trusted", after: str = "offered") -> list[str]:
    """The difference of two canonical JSON texts as `diff -u` writes it; empty where there is none.

    An empty text is nothing at all.
    """
    if old == new:
        return []
    was, now = lines(old) if old else [], lines(new) if new else []
    if len(was) > MOST_LINES or len(now) > MOST_LINES:
        was, now = was[:MOST_LINES], [*now[:MOST_LINES], f"(more than {MOST_LINES} lines: the rest is not shown)"]
    return list(difflib.unified_diff(was, now, before, after, lineterm=""))
