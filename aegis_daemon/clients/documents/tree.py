"""A value, and the place of its text: what every format's parser gives and every edit cuts by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Format = Literal["json", "jsonc", "json5", "toml", "yaml"]
Path = tuple[str | int, ...]
"""Keys, and indexes of lists, from the top of the file."""

MAX_DEPTH: Final = 64


class Unreadable(ValueError):
    """A file that cannot be read for certain, and is therefore left as it is. `line` and `column` count from 1."""

    def __init__(self, line: int, column: int, why: str) -> None:
        super().__init__(f"line {line}, column {column}: {why}")
        self.line = line
        self.column = column
        self.why = why


class Unchangeable(ValueError):
    """A place that is written in a way that no program should change; the message says what to do by hand."""


@dataclass(slots=True)
class Member:
    """One entry of a mapping (`key` a text) or a list (`key` its index).

    `start` is where its key (or, in a list, its dash or value) begins, `gap` the place behind its colon or dash.
    """

    key: str | int
    start: int
    gap: int
    node: Node


@dataclass(slots=True)
class Node:
    """A value at `text[start:end]`. `flow`: written between brackets. `shared`: behind an alias, so not ours alone."""

    kind: Literal["map", "list", "leaf"]
    start: int
    end: int
    value: Any = None
    flow: bool = True
    shared: bool = False
    members: list[Member] = field(default_factory=list)

    def below(self, step: str | int) -> Member | None:
        """The member under a key or an index."""
        return next((one for one in self.members if one.key == step and type(one.key) is type(step)), None)


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same to a reader of the file: kinds count (`1` is not `true`), NaN equals itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other or (one != one and other != other))


def equal(one: Any, other: Any) -> bool:
    """Like `same`, whatever the order of keys."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return same(one, other)


def plain(value: Any) -> Any:
    """A value as the formats' parsers give it: dicts and lists of their own, so that nobody shares them."""
    if isinstance(value, Mapping):
        return {str(key): plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [plain(below) for below in value]
    return value


def place(text: str, at: int) -> tuple[int, int]:
    """The line and column, from 1, of a place in a text; a byte order mark takes no column."""
    begin = text.rfind("\n", 0, at) + 1
    column = at - begin + 1
    if not begin and text.startswith("\ufeff") and at:
        column -= 1
    return text.count("\n", 0, at) + 1, column


def dotted(path: Path) -> str:
    """`mcpServers.github.args[0]`, for people."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
