"""A difference that a person reads hides nothing: what is unseen is written as its escape, and so is what misleads.

Nothing that differs is left out without a word: long lines are broken, and of more lines than anybody reads it is said
that they are not all there (`Difference.cut`).
"""

from __future__ import annotations

import difflib
import json
from typing import Final

import msgspec

from aegis_daemon.core.text import visible
from aegis_daemon.registry.likeness import telling

MOST_LINES: Final = 4000
"""Lines of one side of a difference, behind what both begin and end with."""
WIDEST: Final = 1000
"""Characters of one line; what is longer is several."""
COMPARED: Final = 400
"""Lines of one side up to which they are compared line by line: the time for that grows with the square."""
CONTEXT: Final = 3
REST: Final = "(the rest is not shown)"


class Difference(msgspec.Struct, frozen=True):
    """Lines as of `diff -u`, safe to print, none where nothing differs; `cut`: more differs than they show."""

    lines: tuple[str, ...] = ()
    cut: bool = False


def lines(text: str, most: int = MOST_LINES) -> list[str]:
    """A canonical JSON text over several lines, texts of several lines included; each is safe to print."""
    found = _lines(text)
    return found if len(found) <= most else [*found[:most], REST]


def _lines(text: str) -> list[str]:
    found: list[str] = []
    for line in json.dumps(json.loads(text), ensure_ascii=False, indent=2).split("\n"):
        # A description is one long JSON string: a line of its own for each of its lines makes the change findable.
        for part in line.replace("\\n", "\\n\n").split("\n"):
            shown = visible(telling(part))
            found.extend(shown[at : at + WIDEST] for at in range(0, len(shown), WIDEST))
    return found


def unified(old: str, new: str, *, before: str = "trusted", after: str = "offered") -> Difference:
    """The difference of two canonical JSON texts. An empty text is nothing at all."""
    if old == new:
        return Difference()
    was, now = _lines(old) if old else [], _lines(new) if new else []
    same = len(_common(was, now))
    end = min(len(_common(was[::-1], now[::-1])), min(len(was), len(now)) - same)
    gone, come = was[same : len(was) - end], now[same : len(now) - end]
    begin, last = max(0, same - CONTEXT), len(was) - max(0, end - CONTEXT)
    if max(len(gone), len(come)) <= COMPARED:
        some = (was[begin:last], now[begin : last + len(now) - len(was)])
        made = difflib.unified_diff(*some, before, after, n=CONTEXT, lineterm="")
        return Difference(tuple(_placed(line, begin) for line in made))
    cut = max(len(gone), len(come)) > MOST_LINES
    shown = [
        f"--- {before}",
        f"+++ {after}",
        f"@@ -{begin + 1},{last - begin} +{begin + 1},{last - begin + len(now) - len(was)} @@",
        *(f" {line}" for line in was[begin:same]),
        *(f"-{line}" for line in gone[:MOST_LINES]),
        *(f"+{line}" for line in come[:MOST_LINES]),
        *(f" {line}" for line in was[len(was) - end : last]),
    ]
    return Difference((*shown, REST) if cut else tuple(shown), cut)


def _common(one: list[str], other: list[str]) -> list[str]:
    """What both begin with."""
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return one[:at]
    return one[: min(len(one), len(other))]


def _placed(line: str, begin: int) -> str:
    """A line of a difference, whose places are counted in the whole text."""
    if not line.startswith("@@ ") or not begin:
        return line
    places = []
    for place in line.split(" ")[1:3]:
        first, comma, count = place[1:].partition(",")
        places.append(f"{place[0]}{int(first) + begin}{comma}{count}")
    return f"@@ {' '.join(places)} @@"
