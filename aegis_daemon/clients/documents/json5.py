"""JSON, JSON with comments and JSON5 are read by one scanner that knows where everything stands and guesses nothing.

What only some readers accept (duplicate keys, numbers that overflow, control characters in strings) is refused, since
the program that owns the file might see another value there than we do.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal

from aegis_daemon.clients.documents.flow import Flow
from aegis_daemon.clients.documents.tree import MAX_DEPTH, Member, Node, Unreadable, place

Dialect = Literal["json", "jsonc", "json5"]

COMMENT: Final = re.compile(r"//[^\r\n\u2028\u2029]*|/\*.*?\*/", re.DOTALL)
FLOW: Final = Flow(COMMENT)

_SKIP: Final = {
    "json": re.compile(r"[ \t\r\n]*"),
    "jsonc": re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL),
    "json5": re.compile(
        r"(?:[\t-\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]+"
        r"|//[^\r\n\u2028\u2029]*|/\*.*?\*/)*",
        re.DOTALL,
    ),
}
_STRING = re.compile(r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"')
_STRING5 = re.compile(
    r"""(["'])(?:(?!\1)[^\\\r\n]|\\(?:\r\n|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|0(?![0-9])|[^xu0-9]))*\1""", re.DOTALL
)
_ESCAPE5 = re.compile(r"\\(\r\n|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0"}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER5 = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F]+|Infinity|NaN|(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
)
_WORD = re.compile(r"(?:[^\W\d]|\$)[\w$]*")
_CONSTANTS: Final[dict[str, Any]] = {"true": True, "false": False, "null": None}
_LONGEST_NUMBER: Final = 400
_TWICE: Final = "stands there twice, and programs differ in which they take"


def read(text: str, dialect: Dialect) -> Node | None:
    """The values of a text and their places; None where it holds none.

    :raises Unreadable: it is not of that dialect, or not for certain.
    """
    return _Scanner(text, dialect).document()


class _Scanner:
    """One text, read from the front; recursion is bounded by the depth that is allowed."""

    def __init__(self, text: str, dialect: Dialect) -> None:
        self.text = text
        self.dialect = dialect
        self.skip = _SKIP[dialect]
        self.strict = dialect == "json"

    def fail(self, at: int, why: str) -> Unreadable:
        return Unreadable(*place(self.text, min(at, len(self.text))), why)

    def past(self, at: int) -> int:
        return self.skip.match(self.text, at).end()  # type: ignore[union-attr]

    def document(self) -> Node | None:
        at = self.past(1 if self.text.startswith("\ufeff") else 0)
        if at == len(self.text):
            return None
        node = self.value(at, 0)
        end = self.past(node.end)
        if end < len(self.text):
            raise self.fail(end, self.unexpected(end, "something follows the end of the value"))
        return node

    def unexpected(self, at: int, otherwise: str) -> str:
        char = self.text[at : at + 1]
        if not char:
            return "the file ends here, in the middle of a value"
        if char == "/" and self.strict and self.text[at : at + 2] in ("//", "/*"):
            return "a comment, which this program's plain json does not allow"
        if self.text.startswith("/*", at):
            return "a comment that is never closed"
        return otherwise

    def value(self, at: int, depth: int) -> Node:
        char = self.text[at : at + 1]
        if char == "{":
            return self.mapping(at, depth + 1)
        if char == "[":
            return self.list(at, depth + 1)
        if char == '"' or (char == "'" and self.dialect == "json5"):
            value, end = self.string(at)
            return Node("leaf", at, end, value)
        return self.other(at)

    def other(self, at: int) -> Node:
        text = self.text
        word = _WORD.match(text, at)
        if word is not None and word[0] in _CONSTANTS:
            return Node("leaf", at, word.end(), _CONSTANTS[word[0]])
        found = (_NUMBER5 if self.dialect == "json5" else _NUMBER).match(text, at)
        if found is None or (found.end() < len(text) and re.match(r"[\w$.+-]", text[found.end()])):
            raise self.fail(at, self.unexpected(at, "no json value begins like this"))
        if found.end() - at > _LONGEST_NUMBER:
            raise self.fail(at, "a number of more digits than any program keeps")
        return Node("leaf", at, found.end(), self.number(found[0], at))

    def number(self, word: str, at: int) -> Any:
        sign, digits = (-1 if word[0] == "-" else 1), word.lstrip("+-")
        if digits[:2] in ("0x", "0X"):
            return sign * int(digits, 16)
        if digits in ("Infinity", "NaN"):
            return sign * float(digits.lower())
        if digits.isdecimal():
            return sign * int(digits)
        value = sign * float(digits)
        if value in (float("inf"), float("-inf")):
            raise self.fail(at, "a number too great for any program to keep")
        return value

    def string(self, at: int) -> tuple[str, int]:
        if self.dialect != "json5":
            found = _STRING.match(self.text, at)
            if found is None:
                raise self.fail(at, "a string that does not end, or holds a bad escape or a control character")
            word = found[0]
            return (json.loads(word) if "\\" in word else word[1:-1]), found.end()
        found = _STRING5.match(self.text, at)
        if found is None:
            raise self.fail(at, "a string that does not end, or holds a bad escape")
        inner = _ESCAPE5.sub(_unescape, found[0][1:-1])
        if "\\u" in found[0]:  # a pair of surrogates is one character, as in json
            inner = inner.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return inner, found.end()

    def key(self, at: int) -> tuple[str, int]:
        char = self.text[at : at + 1]
        if char == '"' or (char == "'" and self.dialect == "json5"):
            return self.string(at)
        word = _WORD.match(self.text, at) if self.dialect == "json5" else None
        if word is None:
            raise self.fail(at, self.unexpected(at, "a key in double quotes is missing here"))
        return word[0], word.end()

    def mapping(self, start: int, depth: int) -> Node:
        node = self.open("map", start, depth)
        seen: dict[str, Any] = {}
        at = self.past(start + 1)
        while True:
            if self.text.startswith("}", at):
                break
            begin = at
            key, end = self.key(at)
            if key in seen:
                raise self.fail(begin, f"the key `{key[:100]}` {_TWICE}")
            at = self.past(end)
            if not self.text.startswith(":", at):
                raise self.fail(at, self.unexpected(at, "a colon is missing behind the key"))
            gap = at + 1
            value = self.value(self.past(gap), depth)
            seen[key] = value.value
            node.members.append(Member(key, begin, gap, value))
            at, more = self.comma(value.end, "}")
            if not more:
                break
        node.value, node.end = seen, at + 1
        return node

    def list(self, start: int, depth: int) -> Node:
        node = self.open("list", start, depth)
        at = self.past(start + 1)
        while True:
            if self.text.startswith("]", at):
                break
            value = self.value(at, depth)
            node.members.append(Member(len(node.members), at, at, value))
            at, more = self.comma(value.end, "]")
            if not more:
                break
        node.value, node.end = [member.node.value for member in node.members], at + 1
        return node

    def open(self, kind: Literal["map", "list"], start: int, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.fail(start, f"nested deeper than {MAX_DEPTH}")
        return Node(kind, start, start)

    def comma(self, end: int, close: str) -> tuple[int, bool]:
        """Behind a member: the place of what follows, and whether that is another member."""
        at = self.past(end)
        if self.text.startswith(",", at):
            after = self.past(at + 1)
            if not self.text.startswith(close, after):
                return after, True
            if self.strict:
                raise self.fail(at, "a comma before the bracket, which this program's plain json does not allow")
            return after, False
        if not self.text.startswith(close, at):
            raise self.fail(at, self.unexpected(at, f"a comma or `{close}` is missing here"))
        return at, False


def _unescape(found: re.Match[str]) -> str:
    what = found[1]
    if what[0] in "xu" and len(what) > 1:
        return chr(int(what[1:], 16))
    return "" if what in ("\r\n", "\n", "\r", "\u2028", "\u2029") else _LETTERS.get(what, what)


def word(text: str) -> str:
    """A text as every dialect reads it."""
    spelled = json.dumps(text, ensure_ascii=False)
    if not spelled.isprintable():
        spelled = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in spelled)
    return spelled


def scalar(value: Any) -> str:
    """A value that is no mapping and no list, as every dialect reads it."""
    if isinstance(value, str):
        return word(value)
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float) and value - value == 0:
        return json.dumps(value)
    raise TypeError(f"{type(value).__name__} has no spelling in json")
