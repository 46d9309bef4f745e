"""Members of something written between brackets are put in and taken out with their commas, and nothing else moves.

The same in JSON, TOML's arrays and inline tables, and YAML's flow style. What one call puts in, the other takes out
again to the byte; comments stay where they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aegis_daemon.clients.documents.tree import Node

_BLANKS = re.compile(r"[ \t]*")
_REST_OF_LINE = re.compile(r"[ \t]*(?:\r?\n|\Z)")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file is laid out, to write new parts alike. `base` is the indentation of its first line."""

    newline: str = "\n"
    unit: str = "  "
    base: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """One format's commas and comments. `pad`: between brackets and what stands on one line with them."""

    comment: re.Pattern[str]
    pad: str = ""
    spread: bool = True
    """Whether members may stand on lines of their own."""

    def _comments(self, text: str, lo: int, hi: int) -> list[tuple[int, int]]:
        return [found.span() for found in self.comment.finditer(text, lo, hi)]

    def _comma(self, text: str, lo: int, hi: int) -> int | None:
        """The place of the comma in a stretch that holds nothing but blanks, comments and perhaps one."""
        at = lo
        for begin, end in [*self._comments(text, lo, hi), (hi, hi)]:
            found = text.find(",", at, begin)
            if found >= 0:
                return found
            at = end
        return None

    def lined(self, text: str, node: Node) -> bool:
        """Whether the members stand on lines of their own."""
        return bool(node.members) and "\n" in text[node.start + 1 : node.members[0].start]

    def indent(self, text: str, node: Node, layout: Layout) -> str:
        """The indentation of the members, or that which they would have."""
        for member in node.members:
            lead = line_lead(text, member.start)
            if lead is not None and "\n" in text[node.start : member.start]:
                return lead
        return line_indent(text, node.start, layout) + layout.unit

    def put(self, text: str, node: Node, index: int, pieces: list[str], layout: Layout, lined: bool) -> str:
        """The text with members put in before the one at `index`, or at the end; `lined` counts where it has none."""
        newline = layout.newline + self.indent(text, node, layout)
        lined = self.lined(text, node) if node.members else lined and self.spread
        gap = newline if lined else self._gap(text, node)
        joined = ("," + gap).join(pieces)
        inside, close = node.start + 1, node.end - 1
        if not node.members:
            comments = self._comments(text, inside, close)
            at = comments[-1][1] if comments else inside
            rest = text[at:close]
            if lined or comments:
                if "\n" not in rest:
                    rest = layout.newline + line_indent(text, node.start, layout)
                return text[:at] + newline + joined + rest + text[close:]
            pad = self.pad if text[node.start] == "{" else ""
            return text[:inside] + pad + joined + pad + text[close:]
        if index < len(node.members):
            at = node.members[index].start
            behind = newline if lined and line_lead(text, at) is not None else gap
            return text[:at] + joined + "," + behind + text[at:]
        end = node.members[-1].node.end
        comma = self._comma(text, end, close)
        comments = self._comments(text, end, close)
        at = max(comments[-1][1] if comments else end, end if comma is None else comma + 1)
        if _to_line_end(text, comments, at) and not lined:
            gap = newline
        if comma is not None:
            return text[:at] + gap + joined + "," + text[at:]
        return text[:end] + "," + text[end:at] + gap + joined + text[at:]

    def _gap(self, text: str, node: Node) -> str:
        """What stands behind a comma here."""
        for one, other in zip(node.members, node.members[1:], strict=False):
            comma = self._comma(text, one.node.end, other.start)
            if comma is not None and "\n" not in text[comma : other.start]:
                return _BLANKS.match(text, comma + 1)[0]  # type: ignore[index]
        return " "

    def take(self, text: str, node: Node, index: int, layout: Layout) -> str:
        """The text without one member, its comma and, where it stood alone, its line."""
        member = node.members[index]
        start, end = member.start, member.node.end
        if index + 1 < len(node.members):
            behind = node.members[index + 1].start
            if not self._comments(text, end, behind):
                return text[:start] + text[behind:]
            comma = self._comma(text, end, behind)
            assert comma is not None
            return _without(text[:comma] + text[comma + 1 :], start, end)
        close = node.end - 1
        own = self._comma(text, end, close)
        before = node.members[index - 1].node.end if index else node.start + 1
        comments = self._comments(text, before, start)
        comma = self._comma(text, before, start) if index else None
        if own is not None:
            text, close = text[:own] + text[own + 1 :], close - 1
        elif comma is not None:
            text = text[:comma] + text[comma + 1 :]
            start, end, close = start - 1, end - 1, close - 1
            comments = [(a - (a > comma), b - (b > comma)) for a, b in comments]
            comma = None
        at = max(comments[-1][1] if comments else before, before if comma is None else comma + 1)
        if self._comments(text, end, close) and not _REST_OF_LINE.match(text, end):
            return _without(text, start, end)
        rest = text[end:]
        if _to_line_end(text, comments, at) and not _REST_OF_LINE.match(rest):
            rest = layout.newline + line_indent(text, node.start, layout) + rest.lstrip(" \t")
        if not index and not comments and not text[end:close].strip():
            rest = text[close:]
        return text[:at] + rest


def _to_line_end(text: str, comments: list[tuple[int, int]], at: int) -> bool:
    """Whether the last comment ends at a place, and would take in whatever is put behind it."""
    return bool(comments) and comments[-1][1] == at and not text.startswith("/*", comments[-1][0])


def line_lead(text: str, at: int) -> str | None:
    """What stands before a place on its line if that is blank, else None."""
    begin = text.rfind("\n", 0, at) + 1
    lead = text[begin:at].removeprefix("\ufeff")
    return lead if not lead.strip(" \t") else None


def line_indent(text: str, at: int, layout: Layout) -> str:
    """The blanks at the start of a place's line."""
    begin = text.rfind("\n", 0, at) + 1
    return _BLANKS.match(text, begin)[0] if begin else layout.base  # type: ignore[index]


def _without(text: str, start: int, end: int) -> str:
    """The text without a piece, and without its line if nothing else stands on it."""
    begin = text.rfind("\n", 0, start) + 1
    rest = _REST_OF_LINE.match(text, end)
    if rest is not None and not text[begin:start].strip(" \t"):
        return text[:begin] + text[rest.end() :]
    if text[begin:start].strip(" \t") and rest is None:
        end = _BLANKS.match(text, end).end()  # type: ignore[union-attr]
    return text[:start] + text[end:]
