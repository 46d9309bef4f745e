"""YAML is read by events that know their places, and cut by lines and columns; what is odd is read and left alone.

The core schema of YAML 1.2. Aliases and merges count for the values; a value that is shared through them, or that
carries a tag or an anchor, is not changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from aegis_daemon.clients.documents.editor import Editor
from aegis_daemon.clients.documents.flow import Flow, Layout
from aegis_daemon.clients.documents.tree import MAX_DEPTH, Member, Node, Path, Unchangeable, Unreadable, dotted, place

_COMMENT: Final = re.compile(r"(?:(?<=[\s,\[\]{}])|^)#[^\r\n]*", re.MULTILINE)
FLOW: Final = Flow(_COMMENT)

_MAX_VALUES: Final = 250_000
"""Aliases followed: a file that grows beyond this is an attack, not a configuration."""

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_ODD_FLOAT = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_./@+=-]*")
_OTHERS_WORDS = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n", "."))
_REST_OF_LINE = re.compile(r"[ \t]*(#[^\r\n]*)?(?:\r?\n|\Z)")
_STRING_TAGS = (None, "!", "tag:yaml.org,2002:str")
_MAP_TAGS = (None, "!", "tag:yaml.org,2002:map")
_LIST_TAGS = (None, "!", "tag:yaml.org,2002:seq")
_TWICE: Final = "stands there twice, and programs differ in which they take"


def read(text: str) -> Node | None:
    """The values of a text and their places; None where it holds none.

    :raises Unreadable: it is no YAML, or more than one document, or not for certain.
    """
    return _Reader(text).document()


def editor(layout: Layout) -> Editor:
    """What changes a text of this format."""
    return _Yaml(layout)


class _Reader:
    """One pass over a text's events."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.shift = 1 if text.startswith("\ufeff") else 0
        self.anchors: dict[str, Node] = {}
        self.open: set[str] = set()
        self.count = 0

    def fail(self, at: int, why: str) -> Unreadable:
        return Unreadable(*place(self.text, min(at, len(self.text))), why)

    def document(self) -> Node | None:
        try:
            events = iter(YAML(typ="safe", pure=True).parse(self.text[self.shift :]))
            root, documents = None, 0
            for event in events:
                if isinstance(event, DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        raise self.fail(self._start(event), "more than one document in the file")
                    if event.version or event.tags:
                        raise self.fail(self._start(event), "a yaml directive; remove it")
                elif isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent | AliasEvent):
                    root = self.node(event, events, 0, 0)
        except MarkedYAMLError as fault:
            mark = fault.problem_mark or fault.context_mark
            why = f"not yaml: {fault.problem or fault.context}"
            raise self.fail(mark.index + self.shift if mark is not None else 0, why) from None
        except (YAMLError, ValueError) as fault:
            if isinstance(fault, Unreadable):
                raise
            raise self.fail(0, f"not yaml: {str(fault).splitlines()[0]}") from None
        if root is not None and root.start == root.end and root.value is None and not root.shared:
            return None
        return root

    def _start(self, event: Any) -> int:
        return int(event.start_mark.index) + self.shift

    def node(self, event: Any, events: Iterator[Any], depth: int, lowest: int) -> Node:
        """The value that an event begins; nothing of it stands before `lowest`."""
        start, end = self._start(event), int(event.end_mark.index) + self.shift
        self.count += 1
        if self.count > _MAX_VALUES:
            raise self.fail(start, "more values than any configuration has")
        if depth > MAX_DEPTH:
            raise self.fail(start, f"nested deeper than {MAX_DEPTH}")
        if isinstance(event, AliasEvent):
            return self.alias(event, start, end)
        odd = event.anchor is not None
        if isinstance(event, ScalarEvent):
            node = self.scalar(event, start, end, lowest)
        else:
            if event.anchor is not None:
                self.open.add(event.anchor)
            kind = MappingStartEvent if isinstance(event, MappingStartEvent) else SequenceStartEvent
            tag = str(event.tag) if event.tag is not None else None
            if tag not in (_MAP_TAGS if kind is MappingStartEvent else _LIST_TAGS):
                raise self.fail(start, f"the tag `{tag}`, whose meaning only its program knows")
            odd = odd or tag is not None
            flow = bool(event.flow_style)
            if kind is MappingStartEvent:
                node = self.mapping(Node("map", start, start, {}, flow), events, depth)
            else:
                node = self.list(Node("list", start, start, [], flow), events, depth)
        node.shared = node.shared or odd
        if event.anchor is not None:
            self.open.discard(event.anchor)
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Any, start: int, end: int) -> Node:
        target = self.anchors.get(event.anchor)
        if target is None or event.anchor in self.open:
            raise self.fail(start, f"the alias `{event.anchor}` names nothing that is whole before it")
        self.count += _size(target.value)
        if self.count > _MAX_VALUES:
            raise self.fail(start, "aliases that grow beyond what any configuration has")
        return Node("leaf", start, end, target.value, shared=True)

    def scalar(self, event: Any, start: int, end: int, lowest: int) -> Node:
        tag = str(event.tag) if event.tag is not None else None
        if tag not in _STRING_TAGS:
            raise self.fail(start, f"the tag `{tag}`, whose meaning only its program knows")
        text = str(event.value)
        if re.search("[\ud800-\udfff]", text):
            raise self.fail(start, "half a character")
        if start == end:  # the parser has it at whatever comes next
            return Node("leaf", lowest, lowest, None, shared=tag is not None)
        end = start + len(self.text[start:end].rstrip())
        bare = event.style in (None, "") and tag is None
        return Node("leaf", start, end, self.plain(text, start) if bare else text, shared=tag is not None)

    def plain(self, text: str, at: int) -> Any:
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text):
            value = float(text) if len(text) < 400 else float("inf")
            if value - value != 0:
                raise self.fail(at, "a number too great for any program to keep")
            return value
        odd = _ODD_FLOAT.fullmatch(text)
        if odd is not None:
            return float("nan") if odd[3] else float(odd[1] + "inf")
        return text

    def mapping(self, node: Node, events: Iterator[Any], depth: int) -> Node:
        merged: list[Any] = []
        seen: set[str] = set()
        last = node.start
        for event in events:
            if isinstance(event, MappingEndEvent):
                node.end = int(event.end_mark.index) + self.shift if node.flow else last
                break
            if not isinstance(event, ScalarEvent):
                raise self.fail(self._start(event), "a key that is no simple text")
            begin = self._start(event)
            key = self.node(event, events, depth + 1, begin)
            gap = self._colon(key.end, begin)
            value = self.node(next(events), events, depth + 1, gap)
            last = max(value.end, gap)
            name = str(event.value)
            if key.shared:
                raise self.fail(begin, f"the key `{name[:100]}` carries a tag or an anchor")
            if name in seen:
                raise self.fail(begin, f"the key `{name[:100]}` {_TWICE}")
            seen.add(name)
            if name == "<<" and event.style in (None, ""):
                merged += value.value if isinstance(value.value, list) else [value.value]
                node.members.append(Member(name, begin, gap, Node("leaf", value.start, value.end, None, shared=True)))
                continue
            node.members.append(Member(name, begin, gap, value))
            node.value[name] = value.value
        for one in merged:
            if not isinstance(one, dict):
                raise self.fail(node.start, "`<<` takes in something that is no mapping")
            for name, value in one.items():
                node.value.setdefault(name, value)
        return node

    def _colon(self, end: int, begin: int) -> int:
        found = re.compile(r"[ \t]*:").match(self.text, end)
        if found is None:
            if self.text[end : end + 1] in (",", "}"):  # a key without a value, between braces
                return end
            raise self.fail(begin, "a key that is written in an unusual way")
        return found.end()

    def list(self, node: Node, events: Iterator[Any], depth: int) -> Node:
        last = node.start
        for event in events:
            if isinstance(event, SequenceEndEvent):
                node.end = int(event.end_mark.index) + self.shift if node.flow else last
                break
            start = self._start(event)
            gap = start
            if not node.flow:
                blank = _COMMENT.sub(lambda found: " " * len(found[0]), self.text[last:start])
                dash = last + blank.find("-") if node.members else node.start
                if self.text[dash : dash + 1] != "-":
                    raise self.fail(start, "a list that is written in an unusual way")
                start, gap = dash, dash + 1
            value = self.node(event, events, depth + 1, gap)
            node.members.append(Member(len(node.members), start if not node.flow else value.start, gap, value))
            node.value.append(value.value)
            last = max(value.end, gap)
        return node


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(_size(one) for one in value.values())
    return 1 + sum(_size(one) for one in value) if isinstance(value, list) else 1


def layout_of(text: str, root: Node | None) -> Layout:
    """How a file breaks its lines and indents."""
    first = text.find("\n")
    newline = "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"
    unit = 2
    for member in root.members if root is not None and root.kind == "map" and not root.flow else ():
        inner = member.node
        if inner.kind == "map" and not inner.flow and inner.members:
            unit = max(1, _column(text, inner.members[0].start) - _column(text, member.start))
            break
    return Layout(newline, " " * unit)


def _column(text: str, at: int) -> int:
    begin = text.rfind("\n", 0, at) + 1
    return at - begin - (1 if begin == 0 and text.startswith("\ufeff") else 0)


class _Yaml(Editor):
    """YAML; new parts are written in block style, or in flow style inside of flow style."""

    flow = FLOW

    def read(self, text: str) -> Node | None:
        return read(text)

    def spell(self, value: Any, indent: str, lined: bool) -> str:
        if isinstance(value, dict):
            inner = (f"{_scalar(key)}: {self.spell(one, indent, False)}" for key, one in value.items())
            return "{" + ", ".join(inner) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(self.spell(one, indent, False) for one in value) + "]"
        return _scalar(value)

    def pair(self, key: str, value: str, node: Node, text: str) -> str:
        return f"{_scalar(key)}: {value}"

    def begin(self, text: str, value: Any) -> str:
        lead = "" if not text.strip("\ufeff \t\r\n") or text.endswith("\n") else self.layout.newline
        return text + lead + self._joined(self._block(value, 0)) + self.layout.newline

    def _joined(self, lines: list[str]) -> str:
        return self.layout.newline.join(lines)

    def _block(self, value: Any, column: int) -> list[str]:
        """A mapping or a list that is not empty, in lines at a column."""
        lead = " " * column
        lines: list[str] = []
        if isinstance(value, dict):
            for key, below in value.items():
                lines += self._line(f"{lead}{_scalar(key)}:", below, column + len(self.layout.unit))
            return lines
        for below in value:
            if isinstance(below, dict) and below:
                inner = self._block(below, column + 2)
                lines += [f"{lead}- {inner[0].lstrip()}", *inner[1:]]
            else:
                lines.append(f"{lead}- {self.spell(below, '', False)}")
        return lines

    def _line(self, head: str, value: Any, column: int) -> list[str]:
        if isinstance(value, dict | list) and value:
            return [head, *self._block(value, column)]
        return [f"{head} {self.spell(value, '', False)}"]

    def replace(self, text: str, path: Path, node: Node, value: Any) -> str:
        parent = self.find(text, path[:-1]) if path else None
        member = parent.below(path[-1]) if parent is not None else None
        if parent is None or member is None:
            if isinstance(value, dict | list) and value:
                return text[: node.start] + self._joined(self._block(value, 0)) + text[node.end :]
            return text[: node.start] + self.spell(value, "", False) + text[node.end :]
        if parent.flow:
            gap = " " if node.start == node.end else ""
            return text[: node.start] + gap + self.spell(value, "", False) + text[node.end :]
        gap = text[member.gap : node.start]
        if not isinstance(value, dict | list) or not value:
            if node.flow:
                gap = gap or " "
            elif "#" in gap:
                raise Unchangeable(f"`{dotted(path)}` has a comment before its value; change it by hand")
            else:
                gap = " "
            return text[: member.gap] + gap + self.spell(value, "", False) + text[node.end :]
        if parent.kind == "list" and isinstance(value, list):
            return text[: member.gap] + " " + self.spell(value, "", False) + text[node.end :]
        if "#" in gap:
            raise Unchangeable(f"`{dotted(path)}` has a comment before its value; change it by hand")
        column = _column(text, member.start) + (2 if parent.kind == "list" else len(self.layout.unit))
        lines = self._block(value, column)
        if parent.kind == "list":
            return text[: member.gap] + " " + self._joined([lines[0].lstrip(), *lines[1:]]) + text[node.end :]
        return text[: member.gap] + self.layout.newline + self._joined(lines) + text[node.end :]

    def insert(self, text: str, path: Path, node: Node, index: int, fresh: list[tuple[str | int, Any]]) -> str:
        if node.flow:
            value = dict(fresh) if node.kind == "map" else [value for _, value in fresh]
            if not node.members and not FLOW.comment.search(text[node.start : node.end]) and self._blocky(text, path):
                return self.replace(text, path, node, value)
            lined = self.flow.lined(text, node)
            indent = self.flow.indent(text, node, self.layout)
            pieces = [
                self.pair(key, self.spell(one, indent, False), node, text)
                if isinstance(key, str)
                else self.spell(one, indent, False)
                for key, one in fresh
            ]
            return self.flow.put(text, node, index, pieces, self.layout, lined)
        column = _column(text, node.members[0].start)
        value = dict(fresh) if node.kind == "map" else [one for _, one in fresh]
        lines = self._block(value, column)
        if index < len(node.members):
            at = node.members[index].start
            joined = self._joined([lines[0][column:], *lines[1:]])
            return text[:at] + joined + self.layout.newline + " " * column + text[at:]
        last = node.members[-1]
        rest = _REST_OF_LINE.match(text, max(last.node.end, last.gap))
        if rest is None:
            raise Unchangeable(f"`{dotted(path)}` shares its last line with something else; change it by hand")
        at = rest.end()
        if text[:at].endswith("\n"):
            return text[:at] + self._joined(lines) + self.layout.newline + text[at:]
        return text[:at] + self.layout.newline + self._joined(lines) + text[at:]

    def _blocky(self, text: str, path: Path) -> bool:
        """Whether block style may be used for the value at a path: nothing above it stands between brackets."""
        return all(not self.find(text, path[:depth]).flow for depth in range(len(path)))

    def remove(self, text: str, path: Path, node: Node, index: int) -> str:
        if node.flow:
            return super().remove(text, path, node, index)
        member = node.members[index]
        start, end = member.start, max(member.node.end, member.gap)
        if len(node.members) == 1:
            return self.replace(text, path, node, {} if node.kind == "map" else [])
        if index + 1 < len(node.members):
            behind = node.members[index + 1].start
            if FLOW.comment.search(text[end:behind]) is None:
                return text[:start] + text[behind:]
            line = text.rfind("\n", 0, start) + 1
            rest = _REST_OF_LINE.match(text, end)
            if rest is None or text[line:start].strip(" "):
                raise Unchangeable(f"`{dotted(path)}` is written in an unusual way; change it by hand")
            return text[:start] + text[rest.start(1) :] if rest[1] else text[:line] + text[rest.end() :]
        line = text.rfind("\n", 0, start) + 1
        rest = _REST_OF_LINE.match(text, end)
        if rest is None or text[line:start].strip(" "):
            raise Unchangeable(f"`{dotted(path)}` is written in an unusual way; change it by hand")
        if rest[1]:
            return text[:start] + text[rest.start(1) :]
        if not text[: rest.end()].endswith("\n"):
            line -= 2 if text[:line].endswith("\r\n") else 1
        return text[:line] + text[rest.end() :]


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _OTHERS_WORDS and not _numeric(value):
            return value
        return '"' + "".join(_character(char) for char in value) + '"'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value - value == 0:
        return repr(value)
    raise Unchangeable(f"{type(value).__name__} has no spelling in yaml; change it by hand")


def _numeric(text: str) -> bool:
    return _FLOAT.fullmatch(text) is not None or _ODD_FLOAT.fullmatch(text) is not None


def _character(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    code = ord(char)
    if 0xD800 <= code < 0xE000:
        raise Unchangeable("half a character has no spelling in yaml; change it by hand")
    if char.isprintable():
        return char
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
