"""A change of one setting changes the text of that setting and no other byte of the file.

The text is cut at the places that the parser names, since loading and writing the whole file anew would move comments,
quotes and line breaks that nobody asked to have moved. Where a setting is written in a way that this does not know
(behind an alias, say), it says so. Callers read the result again and compare: what was spliced is never just believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from aegis_daemon.config.source import Node, Path, dotted, read

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_COLON = re.compile(r"[ \t]*:")
_REST = re.compile(r"[ \t]*(#[^\n]*)?")
_STEP: Final = 2
_WORDS: Final = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))
"""What some reader of YAML takes for something else than a text."""


class Unknown(Exception):
    """The setting is written in a way that is not changed by program. `line` counts from 1."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.what = what
        self.line = line


class Change(msgspec.Struct, frozen=True):
    """`put` sets the value at `path` and makes what is missing above it; `append` and `drop` change the list there.

    The value of a `put` may hold mappings, lists, texts and booleans; that of the others is a text.
    """

    path: Path
    how: Literal["put", "append", "drop"]
    value: Any


def splice(text: str, change: Change) -> tuple[str, int]:
    """The text with the change made, and the line, from 1, of the text before at which it was made.

    The text must be one that `source.read` finds no fault with.

    :raises Unknown: it cannot be made here.
    """
    work = _Cut(text)
    if change.how == "put":
        return work.put(change.path, change.value)
    spot, key = work.find(change.path)
    if spot is None or _nothing(spot):
        if change.how == "drop":
            raise Unknown(f"`{dotted(change.path)}` is not there", 1)
        return work.put(change.path, [change.value])
    if spot.kind != "list":
        raise Unknown(f"`{dotted(change.path)}` is not written as a list there", work.line(spot.start))
    if change.how == "append":
        return work.append(spot, change.value)
    return work.drop(spot, key, change.value)


def changed(data: Any, change: Change) -> Any:
    """What `plain` gives for a text once the change is made to it; `data` itself stays as it is."""
    steps = change.path

    def within(value: Any, at: int) -> Any:
        if at < len(steps):
            below = dict(value) if isinstance(value, dict) else {}
            below[str(steps[at])] = within(below.get(str(steps[at])), at + 1)
            return below
        if change.how == "put":
            return change.value
        kept = list(value) if isinstance(value, list) else []
        return [*kept, change.value] if change.how == "append" else [one for one in kept if one != change.value]

    return within(data, 0)


def plain(text: str) -> Any:
    """The values of a text without their places, aliases and merges followed; None where there are none.

    :raises Unknown: it cannot be read.
    """
    source = read(text, "")
    if source.faults:
        raise Unknown(source.faults[0].message, source.faults[0].line)

    def value(node: Node) -> Any:
        if isinstance(node.value, dict):
            return {key: value(entry[2]) for key, entry in node.value.items()}
        if isinstance(node.value, list):
            return [value(item) for item in node.value]
        return node.value

    return None if source.root is None else value(source.root)


class _Spot(msgspec.Struct):
    """A value and the place of its text; `end` lies behind its last character."""

    kind: Literal["map", "list", "value", "alias"]
    start: int
    end: int
    flow: bool = False
    style: str | None = None
    value: str = ""
    keys: dict[str, tuple[_Spot, _Spot]] = {}
    items: list[_Spot] = []
    merged: bool = False


def _nothing(spot: _Spot) -> bool:
    return spot.kind == "value" and spot.style is None and spot.value in ("", "~", "null", "Null", "NULL")


class _Cut:
    """One text, its places, and the changes that can be made to it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.newline = "\r\n" if "\r\n" in text else "\n"
        self.quote = '"' if text.lstrip("\ufeff \t\r\n").startswith("{") else None  # a file of JSON stays one
        events = iter(YAML(typ="safe", pure=True).parse(text.removeprefix("\ufeff")))
        self.shift = len(text) - len(text.removeprefix("\ufeff"))
        self.root: _Spot | None = None
        for event in events:
            if isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent | AliasEvent):
                self.root = self._spot(event, events)
                break

    def _spot(self, event: Any, events: Iterator[Any]) -> _Spot:
        start, end = event.start_mark.index + self.shift, event.end_mark.index + self.shift
        if isinstance(event, AliasEvent):
            return _Spot("alias", start, end)
        if isinstance(event, ScalarEvent):
            end = start + len(self.text[start:end].rstrip())
            return _Spot("value", start, end, style=event.style, value=str(event.value))
        flow = bool(event.flow_style)
        spot = _Spot("map" if isinstance(event, MappingStartEvent) else "list", start, start, flow=flow)
        spot.keys, spot.items = {}, []
        last = end
        for inner in events:
            if isinstance(inner, MappingEndEvent | SequenceEndEvent):
                spot.end = inner.end_mark.index + self.shift if flow else last
                return spot
            below = self._spot(inner, events)
            if spot.kind == "map":
                key, below = below, self._spot(next(events), events)
                if key.kind == "value" and key.style is None and key.value == "<<":
                    spot.merged = True
                colon = _COLON.match(self.text, key.end)
                if below.start == below.end and colon is not None:  # the parser has it at whatever comes next
                    below.start = below.end = colon.end()
                spot.keys[key.value] = (key, below)
            else:
                spot.items.append(below)
            last = below.end
        raise AssertionError("a collection that never ends")

    def line(self, at: int) -> int:
        """The number, from 1, of the line of a place."""
        return self.text.count("\n", 0, at) + 1

    # --- finding

    def find(self, path: Path) -> tuple[_Spot | None, _Spot | None]:
        """The value at a path and its key; None where there is none."""
        spot, key = self.root, None
        for step in path:
            found = self._below(spot, str(step))
            if found is None:
                return None, None
            key, spot = found
        self._own(spot)
        return spot, key

    def _below(self, spot: _Spot | None, step: str) -> tuple[_Spot, _Spot] | None:
        self._own(spot)
        return spot.keys.get(step) if spot is not None and spot.kind == "map" else None

    def _own(self, spot: _Spot | None) -> None:
        if spot is not None and spot.kind == "alias":
            raise Unknown("it stands behind an alias, which other settings share", self.line(spot.start))

    # --- changing

    def put(self, path: Path, value: Any) -> tuple[str, int]:
        """Sets a value, or adds it with all that is missing above it."""
        spot, key, at = self.root, None, 0
        while at < len(path):
            found = self._below(spot, str(path[at]))
            if found is None:
                break
            key, spot = found
            at += 1
        if at == len(path):
            assert spot is not None
            self._own(spot)
            if spot.kind != "value":
                raise Unknown(f"`{dotted(path)}` is no single value there", self.line(spot.start))
            blank = " " if spot.start == spot.end else ""
            return self._with(spot.start, spot.end, blank + _flow(value, self.quote)), self.line(spot.start)
        for step in reversed(path[at + 1 :]):
            value = {str(step): value}
        return self._add(spot, key, str(path[at]), value)

    def _add(self, spot: _Spot | None, key: _Spot | None, name: str, value: Any) -> tuple[str, int]:
        if spot is None or (key is None and spot.start == spot.end):
            return self._lines(len(self.text), _block(name, value, "", _STEP)), self.line(len(self.text))
        if spot.merged:
            raise Unknown("the mapping takes others in with `<<`", self.line(spot.start))
        if spot.kind == "map" and spot.flow:
            return self._into_flow(spot, [pair[1] for pair in spot.keys.values()], self._pair(name, value))
        if spot.kind == "map":
            first = next(iter(spot.keys.values()))[0]
            lines = _block(name, value, self._indent(first), self._step())
            if spot is self.root and self.text.count(self.newline * 2) > 1:
                lines = ["", *lines]  # the sections of this file stand apart
            return self._lines(self._behind(spot), lines), self.line(spot.end)
        if key is None or not _nothing(spot):
            raise Unknown("it is not written as a mapping there", self.line(spot.start))
        if spot.start != spot.end:  # `~` or `null`
            return self._with(spot.start, spot.end, f"{{{self._pair(name, value)}}}"), self.line(spot.start)
        indent = self._indent(key) + " " * self._step()
        return self._lines(spot.end, _block(name, value, indent, self._step())), self.line(spot.end)

    def append(self, spot: _Spot, value: str) -> tuple[str, int]:
        """One more item, written as the last one is."""
        last = spot.items[-1] if spot.items else None
        item = _scalar(value, last.style if last is not None and last.kind == "value" else self.quote)
        if spot.flow:
            return self._into_flow(spot, spot.items, item)
        assert last is not None
        begin = self.text.rfind("\n", 0, last.start) + 1
        lead = self.text[begin : last.start]
        if not re.fullmatch(r"[ \t]*-[ \t]+", lead):
            raise Unknown("the list is written in an unusual way", self.line(last.start))
        return self._lines(last.end, [lead + item]), self.line(last.end)

    def drop(self, spot: _Spot, key: _Spot | None, value: str) -> tuple[str, int]:
        """The list without an item, and without its line where it has one of its own."""
        at = next((at for at, one in enumerate(spot.items) if one.kind == "value" and one.value == value), None)
        if at is None:
            raise Unknown("the name stands there behind an alias", self.line(spot.start))
        item, number = spot.items[at], self.line(spot.items[at].start)
        if spot.flow:
            return self._out_of_flow(spot, at), number
        begin = self.text.rfind("\n", 0, item.start) + 1
        end = self._line_end(item.end)
        if not re.fullmatch(r"[ \t]*-[ \t]+", self.text[begin : item.start]):
            raise Unknown("the list is written in an unusual way", number)
        text = self._with(begin, end, "")
        if len(spot.items) == 1:
            colon = _COLON.match(self.text, key.end) if key is not None else None
            if colon is None:
                raise Unknown("the list is written in an unusual way", number)
            text = text[: colon.end()] + " []" + text[colon.end() :]
        return text, number

    def _into_flow(self, spot: _Spot, items: list[_Spot], item: str) -> tuple[str, int]:
        if not items:
            inside = spot.start + self.text[spot.start : spot.end].index("{" if spot.kind == "map" else "[") + 1
            return self._with(inside, inside, item), self.line(inside)
        end = items[-1].end
        comma = re.compile(r"[ \t\r\n]*,").match(self.text, end)
        starts = [pair[0].start for pair in spot.keys.values()] if spot.kind == "map" else [one.start for one in items]
        leads = [self.text[self.text.rfind("\n", 0, start) + 1 : start] for start in starts[-2:]]
        alone = len(leads) > 1 and not any(lead.strip() for lead in leads)  # each on a line of its own
        between = self.newline + leads[-1] if alone else " "
        if comma is not None:
            return self._with(comma.end(), comma.end(), between + item), self.line(end)
        return self._with(end, end, "," + between + item), self.line(end)

    def _out_of_flow(self, spot: _Spot, at: int) -> str:
        item = spot.items[at]
        begin, end = item.start, item.end
        comma = re.compile(r"[ \t\r\n]*,[ \t]*").match(self.text, end)
        if comma is not None and (at < len(spot.items) - 1 or not at):
            end = comma.end()
            left = self.text.rfind("\n", 0, begin) + 1
            if not self.text[left:begin].strip() and self.text.startswith(("\n", "\r\n"), end):
                begin, end = left, self.text.index("\n", end) + 1  # the line was its own
        elif at:
            gap = self.text[spot.items[at - 1].end : begin]
            if "#" not in gap:
                begin = spot.items[at - 1].end
        return self._with(begin, end, "")

    # --- text

    def _pair(self, name: str, value: Any) -> str:
        return f"{_scalar(name, self.quote)}: {_flow(value, self.quote)}"

    def _behind(self, spot: _Spot) -> int:
        """The end of a mapping's text, and of the comments below it that are indented as parts of its last entry."""
        indent = len(self._indent(next(iter(spot.keys.values()))[0]))
        comment = re.compile(rf" {{{indent + 1},}}#[^\n]*")
        at = spot.end
        while (line := comment.match(self.text, self._line_end(at))) is not None:
            at = line.end()
        return at

    def _with(self, begin: int, end: int, piece: str) -> str:
        return self.text[:begin] + piece + self.text[end:]

    def _lines(self, after: int, lines: list[str]) -> str:
        """The text with lines of their own behind the line of a place."""
        at = self._line_end(after)
        lead = "" if not at or self.text[at - 1] == "\n" else self.newline
        return self._with(at, at, lead + "".join(f"{line}{self.newline}" for line in lines))

    def _line_end(self, at: int) -> int:
        """The place behind the line break that follows, where nothing but a comment stands before it."""
        rest = _REST.match(self.text, at)
        assert rest is not None
        end = rest.end()
        if self.text.startswith("\r\n", end):
            return end + 2
        if end == len(self.text):
            return end
        if self.text[end] == "\r" or self.text[end] != "\n":
            raise Unknown("something else stands on the same line", self.line(at))
        return end + 1

    def _indent(self, key: _Spot) -> str:
        begin = self.text.rfind("\n", 0, key.start) + 1
        lead = self.text[begin : key.start].removeprefix("\ufeff")
        if lead.strip(" "):
            raise Unknown("the mapping is written in an unusual way", self.line(key.start))
        return lead

    def _step(self) -> int:
        """By how much this file indents what lies inside something."""
        for key, below in self.root.keys.values() if self.root is not None else ():
            if below.kind == "map" and not below.flow:
                first = next(iter(below.keys.values()))[0]
                return max(1, len(self._indent(first)) - len(self._indent(key)))
        return _STEP


def _block(name: str, value: Any, indent: str, step: int) -> list[str]:
    if not isinstance(value, dict) or not value:
        return [f"{indent}{_scalar(name)}: {_flow(value)}"]
    lines = [f"{indent}{_scalar(name)}:"]
    for key, below in value.items():
        lines += _block(str(key), below, indent + " " * step, step)
    return lines


def _flow(value: Any, quote: str | None = None) -> str:
    if isinstance(value, dict):
        pairs = (f"{_scalar(str(key), quote)}: {_flow(below, quote)}" for key, below in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(below, quote) for below in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _scalar(value, quote)


def _scalar(text: str, style: str | None = None) -> str:
    """A text as it may stand anywhere, in quotes where its neighbour (`style`) or its characters ask for them."""
    if _BARE.fullmatch(text) and text.lower() not in _WORDS:
        return text if style not in ('"', "'") else f"{style}{text}{style}"
    return '"' + "".join(_character(char) for char in text) + '"'


def _character(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    code = ord(char)
    if char.isprintable():
        return char
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
