"""One file's bytes and the values they spell; an edit gives a new document and is believed only once read again."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from aegis_daemon.clients.documents import json5, toml, yaml
from aegis_daemon.clients.documents.editor import Editor, layout_of, nest
from aegis_daemon.clients.documents.flow import Layout, line_indent
from aegis_daemon.clients.documents.tree import (
    Format,
    Node,
    Path,
    Unchangeable,
    Unreadable,
    dotted,
    equal,
    place,
    plain,
)

MISSING: Final[Any] = type("Missing", (), {"__repr__": lambda _: "MISSING", "__bool__": lambda _: False})()
"""What `Document.at` gives where there is nothing (None is a value)."""

_TAIL = re.compile(r"[ \t]+#[^\r\n]*")

MAX_BYTES: Final = {"json": 64 << 20, "jsonc": 64 << 20, "json5": 16 << 20, "toml": 4 << 20, "yaml": 2 << 20}
"""Greater files are not read: nobody waits that long, and no such configuration is known."""


class Document:
    """What a file says. `data` are its exact bytes, `value` the plain value they spell (None where there is none)."""

    def __init__(self, text: str, format: Format, editor: Editor, root: Node | None) -> None:
        self.text = text
        self.format = format
        self.data = text.encode()
        self.value: Any = None if root is None else root.value
        self._editor = editor
        self._root = root

    def at(self, path: Path) -> Any:
        """The value at a path, or `MISSING`."""
        value = self.value
        if self._root is None and not path:
            return MISSING
        for step in path:
            if isinstance(value, dict):
                value = value.get(step, MISSING)
            else:
                listed = isinstance(value, list) and type(step) is int and 0 <= step < len(value)
                value = value[step] if listed else MISSING
        return value

    def replaced(self, path: Path, value: Any) -> Document:
        """The document with a value put at a path; what is missing above it is made.

        A mapping over a mapping changes only the members that differ, and a list likewise, so comments inside stay.
        A list's index may be its length, which appends.

        :raises Unchangeable: the place is written in a way that is not changed by program.
        """
        value = plain(value)
        if equal(self.at(path), value):
            return self
        expected = _set(self.value, path, value)
        return self._edited(lambda editor, text, inner: editor.put(text, inner, value), path, expected)

    def removed(self, path: Path) -> Document:
        """The document without what stands at a path; the same where nothing does.

        :raises Unchangeable: the place is written in a way that is not changed by program.
        """
        if not path or self.at(path) is MISSING:
            return self
        expected = _unset(self.value, path)
        return self._edited(lambda editor, text, inner: editor.drop(text, inner), path, expected, above=1)

    def raw(self, path: Path) -> bytes | None:
        """The bytes that spell the value at a path, to be put back by `respelled`; None where there is none, or where
        they are no single piece of the file.
        """
        span = self._span(path)
        return None if span is None else self.text[span[0] : span[1]].encode()

    def respelled(self, path: Path, raw: bytes) -> Document:
        """The document with the bytes that `raw` gave once put back at a path; nothing outside of it may change.

        :raises Unchangeable: they do not fit there any more.
        """
        span = self._span(path)
        if span is None:
            raise Unchangeable(f"`{dotted(path)}` is not there any more in one piece; change it by hand")
        text = self.text[: span[0]] + raw.decode() + self.text[span[1] :]
        again = _believed(text, self.format, path)
        if not equal(_unset(again.value, path), _unset(self.value, path)) or again._span(path) is None:
            raise Unchangeable(f"the former text of `{dotted(path)}` does not fit there any more; change it by hand")
        return again

    def _span(self, path: Path) -> tuple[int, int] | None:
        node, member = self._root, None
        for step in path:
            member = node.below(step) if node is not None and not node.shared else None
            if member is None:
                return None
            node = member.node
        if node is None or node.shared or node.end <= node.start:
            return None
        if self.format == "yaml" and member is not None:
            tail = _TAIL.match(self.text, node.end)  # what stands on the first and last line depends on its style
            return member.gap, node.end if tail is None else tail.end()
        return node.start, node.end

    def _edited(
        self, edit: Callable[[Editor, str, Path], str], path: Path, expected: Any, *, above: int = 0
    ) -> Document:
        cut = self._piece(path[: len(path) - above])
        if cut is None:
            text = edit(self._editor, self.text, path)
        else:  # json's values are texts of their own: only that piece is read again at each step
            node, depth = cut
            base = line_indent(self.text, node.start, Layout())
            editor = _Json(Layout(self._editor.layout.newline, self._editor.layout.unit, base), self.format)
            piece = edit(editor, self.text[node.start : node.end], path[depth:])
            text = self.text[: node.start] + piece + self.text[node.end :]
        again = _believed(text, self.format, path)
        said = again.value
        if self.format == "toml":  # a table that is written nowhere is there only as long as something is in it
            said, expected = _pruned(said if said is not None else {}, path), _pruned(expected, path)
        if not equal(said, expected):
            raise Unchangeable(f"`{dotted(path)}` is not written so that a program may change it; change it by hand")
        return again

    def _piece(self, path: Path) -> tuple[Node, int] | None:
        """The deepest collection on a path, and how many steps lead to it."""
        node, best = self._root, None
        if not isinstance(self._editor, _Json) or node is None:
            return None
        for depth, step in enumerate((*path, "")):
            if node.kind == "leaf":
                break
            best = (node, depth)
            member = node.below(step)
            if member is None or depth == len(path):
                break
            node = member.node
        return best


def parse(data: bytes, format: Format) -> Document:
    """Reads a file's bytes; an empty one, or one of comments alone, is a document without a value.

    :raises Unreadable: not understood for certain: bad syntax, duplicate keys, too deep, too big, not UTF-8.
    """
    if len(data) > MAX_BYTES[format]:
        raise Unreadable(1, 1, f"bigger than {MAX_BYTES[format] >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as fault:
        before = data[: fault.start].decode()
        raise Unreadable(*place(before, len(before)), "not utf-8; save the file in that encoding") from None
    if "\0" in text:
        raise Unreadable(*place(text, text.index("\0")), "a NUL character; save the file as utf-8 text")
    return _document(text, format)


def _document(text: str, format: Format) -> Document:
    if format == "toml":
        root = toml.read(text)
        editor: Editor = toml.editor(layout_of(text, root))
    elif format == "yaml":
        root = yaml.read(text)
        editor = yaml.editor(yaml.layout_of(text, root))
    else:
        root = json5.read(text, format)
        editor = _Json(layout_of(text, root), format)
    return Document(text, format, editor, root)


def _believed(text: str, format: Format, path: Path) -> Document:
    try:
        return _document(text, format)
    except Unreadable as fault:
        raise Unchangeable(
            f"`{dotted(path)}` is not written so that a program may change it ({fault}); change it by hand"
        ) from fault


class _Json(Editor):
    """JSON in any dialect; what is written is plain JSON."""

    flow = json5.FLOW

    def __init__(self, layout: Layout, format: Format) -> None:
        super().__init__(layout)
        self.dialect: json5.Dialect = "jsonc" if format == "jsonc" else "json5" if format == "json5" else "json"

    def read(self, text: str) -> Node | None:
        return json5.read(text, self.dialect)

    def spell(self, value: Any, indent: str, lined: bool) -> str:
        inner = indent + self.layout.unit
        if isinstance(value, dict):
            parts = [f"{json5.word(key)}: {self.spell(below, inner, lined)}" for key, below in value.items()]
            return self._joined("{", parts, "}", indent, lined)
        if isinstance(value, list):
            deep = lined and any(isinstance(one, dict | list) and one for one in value)
            return self._joined("[", [self.spell(one, inner, deep) for one in value], "]", indent, deep)
        return json5.scalar(value)

    def _joined(self, begin: str, parts: list[str], end: str, indent: str, lined: bool) -> str:
        if not parts or not lined:
            return begin + ", ".join(parts) + end
        newline = self.layout.newline + indent
        return begin + ",".join(f"{newline}{self.layout.unit}{part}" for part in parts) + newline + end

    def pair(self, key: str, value: str, node: Node, text: str) -> str:
        gap = " "
        if node.members:
            last = node.members[-1]
            blanks = text[last.gap : last.node.start]
            gap = blanks if not blanks.strip(" ") else " "
        return f"{json5.word(key)}:{gap}{value}"

    def begin(self, text: str, value: Any) -> str:
        lead = "" if not text.strip("\ufeff \t\r\n") or text.endswith("\n") else self.layout.newline
        return text + lead + self.spell(value, "", True) + self.layout.newline


def _set(value: Any, path: Path, new: Any) -> Any:
    """A value with another put at a path; None and what is missing become what the path needs."""
    if not path:
        return new
    step, rest = path[0], path[1:]
    if isinstance(step, int) and isinstance(value, list) and 0 <= step <= len(value):
        below = _set(value[step], rest, new) if step < len(value) else nest(rest, new)
        return [*value[:step], below, *value[step + 1 :]]
    if isinstance(step, str) and isinstance(value, dict):
        return {**value, step: _set(value[step], rest, new) if step in value else nest(rest, new)}
    if value is None:
        return nest(path, new)
    raise Unchangeable(f"`{dotted(path)}` leads through something that is no mapping; change it by hand")


def _pruned(value: Any, path: Path) -> Any:
    """A value without the mappings on a path that are empty or hold nothing but such."""
    if not path or not isinstance(value, dict) or path[0] not in value:
        return value
    below = _pruned(value[path[0]], path[1:])
    return {key: one for key, one in {**value, path[0]: below}.items() if key != path[0] or one != {}}


def _unset(value: Any, path: Path) -> Any:
    """A value without what stands at a path."""
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        return [*value[:step], *([_unset(value[step], rest)] if rest else []), *value[step + 1 :]]
    if not rest:
        return {key: below for key, below in value.items() if key != step}
    return {key: _unset(below, rest) if key == step else below for key, below in value.items()}
