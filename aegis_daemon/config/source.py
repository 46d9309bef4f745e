"""A configuration file is read once, into values that each remember their line and column; nothing in it runs.

YAML 1.2 (core schema) through ruamel.yaml's event parser. One pass gives both values and positions, in less time than
the library's own loaders take for the values alone (measured: 600 kB in 2.0 s against 2.8 s safe and 3.8 s
round-trip), so there is no second parser to disagree with. What only helps an attacker or hides a slip is a fault:
duplicate keys, own tags, keys that are not text, several documents, aliases that contain themselves or expand without
end, deep nesting.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from typing import Any, Final

import msgspec
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

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 24
MAX_VALUES: Final = 250_000
"""Aliases expanded; 10 000 rules are about 40 000 values."""
MAX_FAULTS: Final = 1000
_SHOWN: Final = 300

Path = tuple[str | int, ...]
"""Keys and list indexes from the top of the file."""

_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN_KEY = re.compile(r"[^\s.\[\]\"'`]+")
_STR_TAGS = ("!", "tag:yaml.org,2002:str")
_COLLECTION_TAGS = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

# YAML 1.2.2 §10.3.2; a number of absurd length stays a text and is refused as one
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

HIDDEN_NAME: Final = (
    r"[\w.-]*(?:token|secret|passw(?:or)?d|passphrase|[_-]pass\b|[_-]key\b|apikey|credential|authorization|cookie"
    r"|webhook_url|topic_url)[\w.-]*"
)
"""Names whose values are hidden wherever they stand; matched without regard to case."""
# lines that may hold a secret are never shown whole
_HIDDEN_SECTION = "env|headers|args|feishu|generic|slack|discord|teams|telegram|ntfy"
_HIDDEN_VALUE = re.compile(rf"(?i)(\b(?:{HIDDEN_NAME}[\"']?\s*[:=\s]|(?:{_HIDDEN_SECTION})[\"']?\s*:)\s*)\S.*")
_HIDDEN_KEY = re.compile(rf"(?i){HIDDEN_NAME}|{_HIDDEN_SECTION}")
_KEY_OF_LINE = re.compile(r"(\s*(?:- +)*)[\"']?([^\s:\"'#][^:\"'#]*)[\"']?\s*:(?=\s|$)(.*)")
_URL_PARTS = re.compile(r"(://)[^/\s\"']*@|(\?)[^\s\"'#]+")


class Fault(msgspec.Struct, frozen=True):
    """One thing wrong (or, as a warning, of no effect) at one place of the file."""

    file: str
    line: int
    """From 1; 0 where the fault is with the file as a whole."""
    column: int
    """From 1, in characters."""
    path: str
    """Where in the settings, as `agents.dev.backends.github`; empty at the top."""
    message: str
    hint: str
    source: str = ""
    """The line itself, without anything that may be a secret."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        parts = [place, self.path, f"{self.message}; {self.hint}" if self.hint else self.message]
        return ": ".join(part for part in parts if part)

    def render(self) -> str:
        """The fault, then its line with a caret under the place; for a terminal."""
        if not self.line or not self.source.strip():
            return str(self)
        before, rest = self.source[: self.column - 1], self.source[self.column - 1 :]
        pad = "".join("\t" if char == "\t" else " " * _cells(char) for char in before)
        word = re.match(r"\"[^\"]*\"|'[^']*'|[^\s,\[\]{}:]+(?::[^\s,\[\]{}:]+)*|", rest)
        width = sum(_cells(char) for char in word[0]) if word else 1
        gutter = f"{self.line:>5} | "
        return f"{self}\n{gutter}{self.source}\n{' ' * (len(gutter) - 2)}| {pad}{'^' * max(width, 1)}"


class ConfigFaults(ValueError):
    """A configuration that cannot be used; `faults` holds everything that is wrong with it, in file order."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(str(one) for one in faults))
        self.faults = faults

    def render(self) -> str:
        """Every fault with its line and a caret, and a last line that counts them."""
        count = len(self.faults)
        return "\n".join([*(one.render() for one in self.faults), f"{count} fault{'s' * (count != 1)} found"])


class Node:
    """A value and where it begins. A mapping's `value` is `{key: (line, column, Node)}`, a list's `[Node]`."""

    __slots__ = ("column", "depth", "line", "size", "value")

    def __init__(self, value: Any, line: int, column: int) -> None:
        self.value = value
        self.line = line
        self.column = column
        self.size = 1  # values in it once aliases are expanded, itself included
        self.depth = 1


class Source:
    """One file's text and tree, and the faults found so far."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.root: Node | None = None
        self.complete = False
        """Whether the whole file was read; if not, what is missing proves nothing."""
        self.faults: list[Fault] = []
        self._text = text
        self._lines: list[str] | None = None
        self._hidden: dict[int, int] = {}

    def fault(self, line: int, column: int, path: Path, message: str, hint: str) -> None:
        """Note a fault at a place counted from 0; after `MAX_FAULTS` of them only that there are more."""
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(self.make(line, column, path, message, hint))
        elif len(self.faults) == MAX_FAULTS:
            more = f"there are more than {MAX_FAULTS} faults"
            self.faults.append(Fault(self.name, 0, 0, "", more, "mend those shown first"))

    def hide_from(self, line: int, column: int) -> None:
        """Show no line beyond the key at this place, counted from 0: an unknown key may be a secret's, misspelt."""
        self._hidden[line] = min(column, self._hidden.get(line, column))

    def told(self) -> list[Fault]:
        """The faults, in the order of the file, each once."""
        faults = sorted(dict.fromkeys(self.faults), key=lambda one: (one.line or MAX_BYTES, one.column))
        return [self._cut(one) for one in faults]

    def _cut(self, fault: Fault) -> Fault:
        if fault.file != self.name:
            return fault
        column = self._hidden.get(fault.line - 1)
        end = fault.source.find(":", column) if column is not None else -1
        if end < 0 or not fault.source[end + 1 :].strip():
            return fault
        return msgspec.structs.replace(fault, source=f"{fault.source[: end + 1]} …")

    def make(self, line: int, column: int, path: Path, message: str, hint: str) -> Fault:
        """A fault at a place counted from 0, with its line of the file."""
        if self._lines is None:
            self._lines = _BREAK.split(self._text)
        shown = _shown_line(self._lines, line) if column < _SHOWN else ""
        return Fault(self.name, line + 1, column + 1, dotted(path), message, hint, shown)

    def within(self, path: Path, line: int, column: int) -> tuple[int, int]:
        """Where in the file a place of the text at `path` is; all counted from 0.

        Only a literal block keeps its lines; of any other text it is where that begins.
        """
        place = self.at(path)
        lines = self._lines = self._lines or _BREAK.split(self._text)
        if not lines[place[0]][place[1] :].startswith("|") or place[0] + 1 + line >= len(lines):
            return place
        first = next((one for one in lines[place[0] + 1 :] if one.strip()), "")
        return place[0] + 1 + line, len(first) - len(first.lstrip(" ")) + column

    def at(self, path: Path, *, key: bool = False) -> tuple[int, int]:
        """Line and column, from 0, of the value at `path` (or of its key), or of the nearest key above it."""
        node, place = self.root, (0, 0)
        for index, step in enumerate(path):
            if node is None:
                break
            last = index == len(path) - 1
            if isinstance(node.value, dict) and step in node.value:
                line, column, node = node.value[step]
                place = (node.line, node.column) if last and not key else (line, column)
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                place = (node.line, node.column)
            else:
                break
        return place


def dotted(path: Path) -> str:
    """`agents.dev.rate_limits["sql.query"].window`, `deny.tools[2]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += '["' + step.replace('"', '\\"') + '"]'
    return text


def open_regular(path: str) -> int:
    """A descriptor of a regular file, opened for reading without ever waiting (on a FIFO, say).

    :raises OSError: as `open` does, with `errno` set; for a directory or device with a text of its own and no errno.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    raise OSError("a directory, not a file" if stat.S_ISDIR(mode) else "not a regular file")


def read_bounded(path: str, cap: int) -> bytes | None:
    """The bytes of a regular file, or None if there are more than `cap` of them.

    :raises OSError: it cannot be opened or read, see `open_regular`.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(cap + 1)
    return data if len(data) <= cap else None


def read_file(path: str) -> bytes:
    """The bytes of a configuration file.

    :raises ConfigFaults: it is missing, unreadable, no regular file, or larger than 1 MiB.
    """
    try:
        data = read_bounded(path, MAX_BYTES)
    except OSError as error:
        hints = {
            FileNotFoundError: "make one with `aegis config init`, or name another with `--config`",
            PermissionError: "let this user read it, with chown or chmod",
        }
        message = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()
        hint = hints.get(type(error), "name a configuration file with `--config`")
        raise ConfigFaults([Fault(path, 0, 0, "", message, hint)]) from None
    if data is None:
        hint = "split the rules or use patterns; is this the right file?"
        raise ConfigFaults([Fault(path, 0, 0, "", "the file is larger than 1 MiB", hint)])
    return data


def read(data: bytes | str, name: str) -> Source:
    """The tree of a configuration text; whatever is wrong with it as YAML is in `faults`, never raised.

    After a syntax error the tree holds what came before it.
    """
    if isinstance(data, bytes):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            good = data[: error.start].decode("utf-8")
            source = Source(name, good)
            lines = _BREAK.split(good)
            source.fault(len(lines) - 1, len(lines[-1]), (), "the file is not utf-8 text", "save it as utf-8")
            return source
    else:
        text = data
    text = text.removeprefix("\ufeff")
    source = Source(name, text)
    if bad := _UNPRINTABLE.search(text):
        lines = _BREAK.split(text[: bad.start()])
        message = f"the character U+{ord(bad[0]):04X} cannot be in a yaml file"
        source.fault(
            len(lines) - 1, len(lines[-1]), (), message, "remove it, or write it as an escape in double quotes"
        )
        return source
    _Builder(source).run(YAML(typ="safe", pure=True).parse(text))
    return source


class _Builder:
    """Makes the tree from parser events; holds one row for each collection that is still open."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.open: list[Node] = []
        self.keys: list[tuple[str | None, int, int, bool] | None] = []  # a mapping's key that waits for its value
        self.merges: list[list[Node]] = []
        self.anchors: dict[str, Node] = {}
        self.as_key: list[bool] = []
        self.total = 0
        self.last: Node | None = None  # a scalar read as the last thing, which may be half of one

    def run(self, events: Iterator[Any]) -> None:
        try:
            self.source.complete = self._consume(events)
        except YAMLError as error:
            self._syntax(error)
        except RecursionError:
            self.source.fault(0, 0, (), "the file is nested too deeply", "flatten it")
        while self.open:
            self._close()

    def _consume(self, events: Iterator[Any]) -> bool:
        documents = 0
        for event in events:
            kind = type(event)
            self.last = None
            if self.total > MAX_VALUES:
                mark = event.start_mark
                message = f"the file holds more than {MAX_VALUES} values"
                self.source.fault(mark.line, mark.column, (), message, "use patterns in place of single names")
                return False
            if len(self.source.faults) > MAX_FAULTS:
                return False
            if kind is ScalarEvent:
                self._scalar(event)
            elif kind is MappingStartEvent or kind is SequenceStartEvent:
                if len(self.open) >= MAX_DEPTH:
                    mark = event.start_mark
                    message = f"values are nested more than {MAX_DEPTH} deep"
                    self.source.fault(mark.line, mark.column, self._path(), message, "flatten them")
                    return False
                self._begin(event, {} if kind is MappingStartEvent else [])
            elif kind is MappingEndEvent or kind is SequenceEndEvent:
                self._close()
            elif kind is AliasEvent:
                self._alias(event)
            elif kind is DocumentStartEvent:
                documents += 1
                if documents > 1:
                    mark = event.start_mark
                    message = "the file holds more than one yaml document"
                    self.source.fault(
                        mark.line, mark.column, (), message, "keep one, and remove the `---` between them"
                    )
                    return False
        return True

    # values

    def _scalar(self, event: Any) -> None:
        mark, text = event.start_mark, event.value
        plain = event.style is None
        tag = event.tag
        if _SURROGATE.search(text):  # `\ud83d\ude00`, as JSON writes what YAML writes `\U0001f600`
            try:
                text = text.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                text = _SURROGATE.sub("\ufffd", text)
                hint = "write both halves, or the character itself"
                self.source.fault(mark.line, mark.column, self._path(), "the text holds half a character", hint)
        if tag is not None and tag not in _STR_TAGS:
            self.source.fault(mark.line, mark.column, self._path(), f"the tag `{tag}` means nothing here", "remove it")
        waiting = bool(self.open) and isinstance(self.open[-1].value, dict) and self.keys[-1] is None
        value = _plain_value(text) if plain and tag not in _STR_TAGS else text
        node = Node(value, mark.line, mark.column)
        if event.anchor:
            self.anchors[event.anchor] = node
        if waiting:
            self._key(node, text, plain and text == "<<")
        else:
            self._add(node)
            self.last = node

    def _key(self, node: Node, text: str, merge: bool) -> None:
        known = self.open[-1].value
        name: str | None = text
        if not isinstance(node.value, str):
            message = f"the key `{text}` is not a text" if text else "a key is missing before the `:`"
            self.source.fault(node.line, node.column, self._path(), message, "put it in quotes" if text else "add it")
            name = None
        elif not merge and text in known:
            first = known[text][0] + 1
            path = (*self._path(), text)
            message = f"duplicate key `{text}`"
            self.source.fault(node.line, node.column, path, message, f"it is in line {first} already; keep one of them")
            name = None
        self.keys[-1] = (name, node.line, node.column, merge)

    def _begin(self, event: Any, value: dict[str, Any] | list[Any]) -> None:
        mark = event.start_mark
        if event.tag not in _COLLECTION_TAGS:
            message = f"the tag `{event.tag}` means nothing here"
            self.source.fault(mark.line, mark.column, self._path(), message, "remove it")
        node = Node(value, mark.line, mark.column)
        if self.open and isinstance(self.open[-1].value, dict) and self.keys[-1] is None:
            self.source.fault(
                mark.line, mark.column, self._path(), "a key is a list or mapping", "use a text as the key"
            )
            self.keys[-1] = (None, mark.line, mark.column, False)
            self.as_key.append(True)  # it stands for nothing; the value that comes next is dropped with it
        else:
            self.as_key.append(False)
        if event.anchor:
            self.anchors[event.anchor] = node
        self.open.append(node)
        self.keys.append(None)
        self.merges.append([])

    def _close(self) -> None:
        node = self.open.pop()
        self.keys.pop()
        as_key = self.as_key.pop()
        for merged in self.merges.pop():
            for key, entry in merged.value.items():
                node.value.setdefault(key, entry)
        children = [entry[2] for entry in node.value.values()] if isinstance(node.value, dict) else node.value
        node.size += sum(child.size for child in children)
        node.depth += max((child.depth for child in children), default=0)
        if not as_key:
            self._add(node)

    def _alias(self, event: Any) -> None:
        mark, name = event.start_mark, event.anchor
        waiting = bool(self.open) and isinstance(self.open[-1].value, dict) and self.keys[-1] is None
        node = self.anchors.get(name)
        problem = None
        if node is None:
            problem = (f"the alias `*{name}` has no anchor before it", f"write `&{name}` at the value it means")
        elif any(node is one for one in self.open):
            problem = (f"the alias `*{name}` stands inside its own anchor", "write the value out")
        elif self.total + node.size > MAX_VALUES:
            problem = (f"aliases expand to more than {MAX_VALUES} values", "write fewer of them")
        elif len(self.open) + node.depth > MAX_DEPTH:
            problem = (f"values are nested more than {MAX_DEPTH} deep", "flatten them")
        if node is None or problem:
            self.source.fault(mark.line, mark.column, self._path(), *(problem or ("", "")))
            if self.open and isinstance(self.open[-1].value, dict):
                self.keys[-1] = (None, mark.line, mark.column, False) if waiting else None
            return
        if waiting:
            text = node.value if isinstance(node.value, str) else f"*{name}"
            self._key(Node(node.value, mark.line, mark.column), text, False)
            return
        copy = Node(node.value, mark.line, mark.column)  # faults inside point at the anchor, at the value here
        copy.size, copy.depth = node.size, node.depth
        self.total += node.size - 1
        self._add(copy)

    def _add(self, node: Node) -> None:
        self.total += 1
        if not self.open:
            self.source.root = node
            return
        into = self.open[-1]
        if isinstance(into.value, list):
            into.value.append(node)
            return
        waiting, self.keys[-1] = self.keys[-1], None
        if waiting is None or waiting[0] is None:
            return
        name, line, column, merge = waiting
        if merge:
            self._merge(node, line, column)
            return
        into.value[name] = (line, column, node)

    def _merge(self, node: Node, line: int, column: int) -> None:
        found = node.value if isinstance(node.value, list) else [node]
        for one in found:
            if isinstance(one.value, dict):
                self.merges[-1].append(one)
            elif one.value is not None:
                hint = "write `<<: *name`, where `&name` stands at a mapping"
                self.source.fault(line, column, self._path(), "`<<` takes in mappings only", hint)

    def _path(self) -> Path:
        steps: list[str | int] = []
        for node, key in zip(self.open, self.keys, strict=True):
            if isinstance(node.value, list):
                steps.append(len(node.value))
            elif key is not None and key[0] is not None:
                steps.append(key[0])
        return tuple(steps)

    def _syntax(self, error: YAMLError) -> None:
        marked = error if isinstance(error, MarkedYAMLError) else MarkedYAMLError(problem=str(error))
        problem = " ".join(str(marked.problem).split())
        begun, mark = marked.context_mark, marked.problem_mark or marked.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        if (
            "end of stream" in problem and begun is not None
        ):  # what was never closed helps more than where the file ends
            line, column = begun.line, begun.column
        elif "stream end" in problem and self.open:
            line, column = self.open[-1].line, self.open[-1].column
        hint = "check the indentation, quotes and brackets around here"
        for part, better in _SYNTAX_HINTS:
            if part in problem:
                hint = better
                break
        if begun is not None and begun.line < line:
            problem += f" ({marked.context} that begins in line {begun.line + 1})"
        path = self._path()
        if self.last is not None and self.open:
            into = self.open[-1].value
            if isinstance(into, list):
                into.pop()
            elif into and next(reversed(into.values()))[2] is self.last:
                into.popitem()
        self.source.fault(line, column, path, f"not yaml: {problem}", hint)


_SYNTAX_HINTS: Final = (
    ("'\\t'", "indent with spaces; yaml allows no tabs there"),
    ("that cannot start any token", "put the value in quotes"),
    ("mapping values are not allowed", "check the indentation, and put a text that contains `: ` in quotes"),
    ("unexpected end of stream", "close the quote"),
    ("stream end", "close the bracket or brace"),
    ("unknown escape", "double the backslash, or use single quotes"),
    ("<block end>", "give every entry of one mapping or list the same indentation"),
    ("could not find expected ':'", "add the `:` after the key"),
    ("incompatible YAML document", "remove the `%YAML` line"),
)


def _plain_value(text: str) -> Any:
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] in "+-.0123456789":
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text) and len(text) < 400:
            return float(text.replace(".inf", "inf").replace(".nan", "nan")) if text[-1].isdigit() else _odd_float(text)
    return text


def _odd_float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _shown_line(lines: list[str], number: int) -> str:
    """A line of the file, its value masked if it, or a key that it is indented under, may hold a secret."""
    if number >= len(lines):
        return ""
    line = _UNPRINTABLE.sub("\ufffd", lines[number][:_SHOWN])
    indent, last = len(line) - len(line.lstrip(" -")), number
    own = _KEY_OF_LINE.match(line)
    if own and _HIDDEN_KEY.fullmatch(own[2].strip()):
        return _masked_from(line, own.start(3))
    for above in range(last - 1, max(-1, last - 200), -1) if indent else ():
        key = _KEY_OF_LINE.match(lines[above][:_SHOWN])
        if key is None or len(key[1]) >= indent:
            continue
        if _HIDDEN_KEY.fullmatch(key[2].strip()):
            return _masked_from(line, own.start(3) if own else indent)
        indent = len(key[1])
        if not indent:
            break
    return _URL_PARTS.sub(lambda part: f"{part[1] or part[2]}…", _HIDDEN_VALUE.sub(r"\1…", line))


def _masked_from(line: str, at: int) -> str:
    kept = line[:at]
    rest = line[at:]
    lead = rest[: len(rest) - len(rest.lstrip())]
    return f"{kept}{lead}…" if rest.strip() else line
