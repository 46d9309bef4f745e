"""TOML is judged by the standard library's reader and cut at places that a second, lenient scan finds in the same text.

The scan never decides what a file says: values come from `tomllib`, and every edit is compared with what it reads.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any, Final

from aegis_daemon.clients.documents.editor import Editor
from aegis_daemon.clients.documents.flow import Flow, Layout
from aegis_daemon.clients.documents.tree import MAX_DEPTH, Member, Node, Path, Unchangeable, Unreadable, dotted, place

FLOW: Final = Flow(re.compile(r"#[^\n]*"), pad=" ", spread=False)

_SKIP = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_MAX_SECTIONS: Final = 5000
_BLANK = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_DEEP = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*"|'[^'\n]*')[ \t]*+\.[ \t]*+)""" + f"{{{MAX_DEPTH}}}"
)
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}' r"|'''(?:[^']|'(?!''))*'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'", re.DOTALL
)
_OTHER = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9][^\s,\]}#]*|[^\s,\]}#]+")
_WHERE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_REST_OF_LINE = re.compile(r"[ \t]*(#[^\r\n]*)?(?:\r?\n|\Z)")
_ESCAPES: Final = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def read(text: str) -> Node | None:
    """The values of a text and their places; None where it holds none.

    :raises Unreadable: it is no TOML.
    """
    return scan(text).root


def editor(layout: Layout) -> Editor:
    """What changes a text of this format."""
    return _Toml(layout)


@dataclass(slots=True)
class _Line:
    """One `key = value`: its whole path, and where it begins and ends."""

    path: Path
    start: int
    end: int


@dataclass(slots=True)
class _Section:
    """A header and the lines below it; the first section has none. `path` may hold indexes of arrays of tables."""

    path: Path
    start: int
    end: int
    lines: list[_Line] = field(default_factory=list)

    @property
    def last(self) -> int:
        """Where its last line, or its header, ends."""
        return self.lines[-1].end if self.lines else self.end


@dataclass(slots=True)
class Scanned:
    """A text's values with their places, and its sections in order."""

    root: Node | None
    sections: list[_Section]


def scan(text: str) -> Scanned:
    """Both readings of a text.

    :raises Unreadable: it is no TOML.
    """
    deep = _DEEP.search(text)  # the library's time grows with the square of a dotted key
    if deep is not None:
        raise Unreadable(*place(text, deep.start()), f"nested deeper than {MAX_DEPTH}")
    shift = 1 if text.startswith("\ufeff") else 0
    try:
        value = tomllib.loads(text[shift:])
    except tomllib.TOMLDecodeError as fault:
        found = _WHERE.search(str(fault))
        line, column = place(text, len(text)) if found is None or found[1] is None else (int(found[1]), int(found[2]))
        why = str(fault)[: found.start()] if found else str(fault)
        raise Unreadable(line, column, f"not toml: {why[:1].lower()}{why[1:]}") from None
    except RecursionError:
        raise Unreadable(1, 1, f"nested deeper than {MAX_DEPTH}") from None
    return _Scanner(text, value).sections(shift)


class _Scanner:
    """A text that is known to be TOML, so that only places have to be found."""

    def __init__(self, text: str, value: dict[str, Any]) -> None:
        self.text = text
        self.root = Node("map", 0, len(text), value, flow=False)

    def sections(self, at: int) -> Scanned:
        text, section = self.text, _Section((), at, at)
        found: list[_Section] = [section]
        while (at := self._past(at)) < len(text):
            if text[at] == "[":
                double = text.startswith("[[", at)
                start = at
                name, at = self._key(at + 1 + double)
                at = text.index("]", at) + 1 + double
                section = _Section(self._enter(name, double), start, at)
                found.append(section)
                if len(found) > _MAX_SECTIONS:
                    raise Unreadable(*place(text, start), "more tables than any configuration has")
                continue
            start = at
            keys, at = self._key(at)
            path: Path = (*section.path, *keys)
            gap = text.index("=", at) + 1
            node = self._value(_BLANK.match(text, gap).end(), self._at(path), 1)  # type: ignore[union-attr]
            self._hang(path, node, start, gap)
            section.lines.append(_Line(path, start, node.end))
            at = node.end
        for one in found[1:]:
            self._hang(one.path, None, one.start, one.end)
        self._spans(found)
        return Scanned(self.root if self.root.value else None, found)

    def _past(self, at: int) -> int:
        return _SKIP.match(self.text, at).end()  # type: ignore[union-attr]

    def _key(self, at: int) -> tuple[tuple[str, ...], int]:
        keys = []
        while True:
            at = _BLANK.match(self.text, at).end()  # type: ignore[union-attr]
            bare = _BARE.match(self.text, at)
            if bare is not None:
                keys.append(bare[0])
                at = bare.end()
            else:
                quoted = _STRING.match(self.text, at)
                assert quoted is not None
                keys.append(next(iter(tomllib.loads(f"{quoted[0]} = 0"))))
                at = quoted.end()
            at = _BLANK.match(self.text, at).end()  # type: ignore[union-attr]
            if not self.text.startswith(".", at):
                return tuple(keys), at
            at += 1

    def _enter(self, keys: tuple[str, ...], double: bool) -> Path:
        """The path of a header, which goes on in the last table of every array of tables that it leads through."""
        path: Path = ()
        for at, key in enumerate(keys):
            path = (*path, key)
            if isinstance(self._at(path), list):
                node = self._node(path, "list")
                index = len(node.members) - (not (double and at == len(keys) - 1))
                path = (*path, index)
                self._node(path, "map")
        return path

    def _at(self, path: Path) -> Any:
        value: Any = self.root.value
        for step in path:
            value = value[step]
        return value

    def _node(self, path: Path, kind: str) -> Node:
        """The collection at a path, made if it is new."""
        node = self.root
        for at, step in enumerate(path):
            member = node.below(step)
            if member is None:
                value = self._at(path[: at + 1])
                below = Node("list" if isinstance(value, list) else "map", -1, -1, value, flow=False)
                node.members.append(member := Member(step, -1, -1, below))
            node = member.node
        assert node.kind == kind
        return node

    def _hang(self, path: Path, node: Node | None, start: int, gap: int) -> None:
        if node is None:
            self._node(path, "map")
            return
        self._node(path[:-1], "map").members.append(Member(path[-1], start, gap, node))

    def _spans(self, found: list[_Section]) -> None:
        """A table that is one unbroken run of sections has a place of its own."""
        inside: dict[Path, list[int]] = {}
        outside: set[Path] = set()  # also filled by dotted keys of sections above it
        for at, section in enumerate(found):
            for depth in range(1, len(section.path) + 1):
                inside.setdefault(section.path[:depth], []).append(at)
            for line in section.lines:
                outside.update(line.path[:depth] for depth in range(len(section.path) + 1, len(line.path) + 1))
        for top, places in inside.items():
            if top not in outside and places[-1] - places[0] == len(places) - 1 and places[0]:
                node = self.root
                for step in top:
                    member = node.below(step)
                    assert member is not None
                    node = member.node
                end = found[places[-1]].last
                rest = _REST_OF_LINE.match(self.text, end)
                more = rest[0].rstrip("\r\n") if rest is not None else ""  # blanks as well: they come back with it
                node.start, node.end = found[places[0]].start, end + len(more)

    def _value(self, at: int, value: Any, depth: int) -> Node:
        text = self.text
        if depth > MAX_DEPTH:
            raise Unreadable(*place(text, at), f"nested deeper than {MAX_DEPTH}")
        if text[at] == "[":
            node = Node("list", at, at, value)
            at = self._past(at + 1)
            while text[at] != "]":
                item = self._value(at, value[len(node.members)], depth + 1)
                node.members.append(Member(len(node.members), at, at, item))
                at = self._past(item.end)
                if text[at] == ",":
                    at = self._past(at + 1)
            node.end = at + 1
            return node
        if text[at] == "{":
            return self._inline(at, value, depth)
        found = _STRING.match(text, at) or _OTHER.match(text, at)
        assert found is not None
        return Node("leaf", at, found.end(), value)

    def _inline(self, at: int, value: Any, depth: int) -> Node:
        text = self.text
        node = Node("map", at, at, value)
        at = self._past(at + 1)
        while text[at] != "}":
            start = at
            keys, at = self._key(at)
            gap = text.index("=", at) + 1
            inner = value
            for key in keys:
                inner = inner[key]
            below = self._value(self._past(gap), inner, depth + 1)
            if len(keys) == 1:
                node.members.append(Member(keys[0], start, gap, below))
            else:
                node.shared = True  # dotted keys between braces: too rare to cut
            at = self._past(below.end)
            if text[at] == ",":
                at = self._past(at + 1)
        node.end = at + 1
        return node


class _Toml(Editor):
    """TOML; new tables get a header of their own where their siblings have one."""

    flow = FLOW

    def read(self, text: str) -> Node | None:
        return read(text)

    def spell(self, value: Any, indent: str, lined: bool) -> str:
        if isinstance(value, dict):
            inner = ", ".join(f"{_key(key)} = {self.spell(below, indent, False)}" for key, below in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        if isinstance(value, list):
            return "[" + ", ".join(self.spell(one, indent, False) for one in value) + "]"
        return _scalar(value)

    def pair(self, key: str, value: str, node: Node, text: str) -> str:
        return f"{_key(key)} = {value}"

    def begin(self, text: str, value: Any) -> str:
        return self._appended(text, self._section((), value))

    def replace(self, text: str, path: Path, node: Node, value: Any) -> str:
        if not node.flow:
            raise Unchangeable(f"`{dotted(path)}` is a table with a header; change it by hand")
        if isinstance(value, list) and not node.members:
            return text[: node.start] + self.spell(value, "", False) + text[node.end :]
        return super().replace(text, path, node, value)

    def insert(self, text: str, path: Path, node: Node, index: int, fresh: list[tuple[str | int, Any]]) -> str:
        if node.flow:
            return super().insert(text, path, node, index, fresh)
        if node.kind == "list":
            raise Unchangeable(f"`{dotted(path)}` is an array of tables; change it by hand")
        for key, value in fresh:
            text = self._add(text, path, str(key), value)
        return text

    def _add(self, text: str, path: Path, key: str, value: Any) -> str:
        sections = scan(text).sections
        below = [at for at, one in enumerate(sections) if one.path[: len(path)] == path and len(one.path) > len(path)]
        own = next((at for at, one in enumerate(sections) if one.path == path), None)
        headed = isinstance(value, dict) and value and (below or not path or own is None)
        if headed and all(isinstance(step, str) for step in path):
            lines = self._section((*path, key), value)
            after = sections[below[-1]] if below and path else None
            if after is None or after is sections[-1]:
                return self._appended(text, lines)
            end = _REST_OF_LINE.match(text, after.last)
            assert end is not None
            return text[: end.end()] + self.layout.newline + self._text(lines) + text[end.end() :]
        if own is None:
            raise Unchangeable(f"`{dotted(path)}` has no header of its own to put `{key}` below; change it by hand")
        line = f"{_key(key)} = {self.spell(value, '', False)}"
        section = sections[own]
        if not section.path and not section.lines:
            start = section.start
            blank = self.layout.newline if text[start:] else ""
            return text[:start] + line + self.layout.newline + blank + text[start:]
        rest = _REST_OF_LINE.match(text, section.last)
        assert rest is not None
        at = rest.end()
        if not text[:at].endswith("\n"):
            return text + self.layout.newline + line
        begin = text.rfind("\n", 0, section.last) + 1
        lead = _BLANK.match(text, begin)[0] if section.lines else ""  # type: ignore[index]
        return text[:at] + lead + line + self.layout.newline + text[at:]

    def _section(self, path: Path, value: dict[str, Any]) -> list[str]:
        """The lines of a table and its tables; one that holds nothing but tables needs no header."""
        inner = {key: below for key, below in value.items() if isinstance(below, dict) and below}
        nested = bool(inner) and len(inner) == len(value)
        lines = []
        if path and not nested:
            lines.append("[" + ".".join(_key(str(step)) for step in path) + "]")
        for key, below in value.items():
            if nested or (not path and key in inner):
                continue
            lines.append(f"{_key(key)} = {self.spell(below, '', False)}")
        if nested or not path:
            for key, below in inner.items():
                lines += [*([""] if lines else []), *self._section((*path, key), below)]
        return lines

    def _text(self, lines: list[str]) -> str:
        return "".join(line + self.layout.newline for line in lines)

    def _appended(self, text: str, lines: list[str]) -> str:
        if not text.strip("\ufeff \t\r\n"):
            return text + self._text(lines)
        joined = self.layout.newline.join(lines)
        if text.endswith("\n"):
            return text + self.layout.newline + joined + self.layout.newline
        return text + self.layout.newline * 2 + joined

    def remove(self, text: str, path: Path, node: Node, index: int) -> str:
        if node.flow:
            return super().remove(text, path, node, index)
        gone = (*path, node.members[index].key)
        if node.kind == "list":
            raise Unchangeable(f"`{dotted(path)}` is an array of tables; change it by hand")
        pieces: list[tuple[int, int]] = []
        sections = scan(text).sections
        for section in sections:
            inside = section.path[: len(gone)] == gone
            if inside:
                pieces.append((section.start, section.end))
            pieces += [(line.start, line.end) for line in section.lines if inside or line.path[: len(gone)] == gone]
        for start, end in reversed(pieces):
            begin = text.rfind("\n", 0, start) + 1
            rest = _REST_OF_LINE.match(text, end)
            if rest is None or text[begin:start].strip("\ufeff \t"):
                raise Unchangeable(f"`{dotted(gone)}` shares a line with something else; change it by hand")
            if rest[1]:
                text = text[:start] + text[rest.start(1) :]
                continue
            last = not text[: rest.end()].endswith("\n")
            begin += text.startswith("\ufeff", begin)
            text = text[:begin] + text[rest.end() :]
            headed = any(section.start == start for section in sections[1:])
            empty = re.search(r"(?:^|\n)(\r?\n)\Z", text[:begin])
            if headed and empty and (begin == len(text) or re.match(r"[ \t]*(?:\r?\n|\[)", text[begin:])):
                text = text[: empty.start(1)] + text[begin:]
                begin = empty.start(1)
            if last and text[:begin].endswith("\n") and begin == len(text):
                text = text[: -2 if text.endswith("\r\n") else -1]
        return text


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _scalar(key)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return '"' + "".join(_ESCAPES.get(char, char if char.isprintable() else _escaped(char)) for char in value) + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise Unchangeable(f"{type(value).__name__} has no spelling in toml; change it by hand")


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xD800 <= code < 0xE000:
        raise Unchangeable("half a character has no spelling in toml; change it by hand")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
