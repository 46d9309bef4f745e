"""How a change of a value becomes cuts in a text: the smallest members that differ, one at a time, each read again.

The steps are the same in every format; a format says how its members are put in, taken out and spelled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from aegis_daemon.clients.documents.flow import Flow, Layout, line_lead
from aegis_daemon.clients.documents.tree import Node, Path, Unchangeable, dotted, equal


class Editor(ABC):
    """One text's format and layout. `text` is always one that `read` understands."""

    flow: Flow

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @abstractmethod
    def read(self, text: str) -> Node | None:
        """The values of a text and their places; None where it holds none."""

    @abstractmethod
    def spell(self, value: Any, indent: str, lined: bool) -> str:
        """A value as it stands between brackets or behind a key; `lined`: with its members on lines of their own."""

    @abstractmethod
    def pair(self, key: str, value: str, node: Node, text: str) -> str:
        """A key and a spelled value as they stand in a mapping between brackets."""

    @abstractmethod
    def begin(self, text: str, value: Any) -> str:
        """A text that holds no value yet, with its first."""

    # --- the steps

    def find(self, text: str, path: Path) -> Node:
        """The value at a path that is there."""
        node = self.read(text)
        for step in path:
            member = node.below(step) if node is not None else None
            assert member is not None
            node = member.node
        assert node is not None
        return node

    def put(self, text: str, path: Path, value: Any) -> str:
        """The text with a value at a path, and with all that is missing above it."""
        node = self.read(text)
        if node is None:
            return self.begin(text, nest(path, value))
        for at, step in enumerate(path):
            own(node, path[:at])
            member = node.below(step)
            if member is None:
                below = nest(path[at + 1 :], value)
                if node.kind == "leaf" and node.value is None and isinstance(step, str):
                    return self.replace(text, path[:at], node, {step: below})
                appends = node.kind == "list" and step == len(node.members)
                if not (appends or (node.kind == "map" and isinstance(step, str))):
                    kind = "mapping" if isinstance(step, str) else "list of that length"
                    where = f"`{dotted(path[:at])}`" if at else "the file"
                    raise Unchangeable(f"{where} holds no {kind}; change it by hand")
                return self.insert(text, path[:at], node, len(node.members), [(step, below)])
            node = member.node
        own(node, path)
        return self.turn(text, path, node, value)

    def turn(self, text: str, path: Path, node: Node, value: Any) -> str:
        """The text with another value in place of one that is there."""
        if equal(node.value, value):
            return text
        if node.kind == "map" and isinstance(value, dict) and node.members and value:
            old = node.value
            for key, below in value.items():
                if key in old and not equal(old[key], below):
                    text = self.put(text, (*path, key), below)
            fresh = [(key, below) for key, below in value.items() if key not in old]
            if fresh:
                node = self.find(text, path)
                text = self.insert(text, path, node, len(node.members), list(fresh))
            for key in old:
                if key not in value:
                    text = self.drop(text, (*path, key))
            return text
        if node.kind == "list" and isinstance(value, list) and node.members and value:
            return self.items(text, path, node, value)
        return self.replace(text, path, node, value)

    def items(self, text: str, path: Path, node: Node, value: list[Any]) -> str:
        """A list changed item by item, so that comments between the ones that stay are kept."""
        old = list(node.value)
        head, tail = 0, 0
        while head < min(len(old), len(value)) and equal(old[head], value[head]):
            head += 1
        while tail < min(len(old), len(value)) - head and equal(old[-1 - tail], value[-1 - tail]):
            tail += 1
        both = min(len(old), len(value)) - head - tail
        for at in range(head, head + both):
            text = self.put(text, (*path, at), value[at])
        fresh = value[head + both : len(value) - tail]
        if fresh:
            at = head + both
            text = self.insert(text, path, self.find(text, path), at, list(enumerate(fresh, at)))
        for _ in range(len(old) - tail - head - both):
            text = self.drop(text, (*path, head + both))
        return text

    def drop(self, text: str, path: Path) -> str:
        """The text without what stands at a path that is there."""
        parent = self.find(text, path[:-1])
        own(parent, path[:-1])
        index = next(at for at, member in enumerate(parent.members) if member.key == path[-1])
        own(parent.members[index].node, path)
        return self.remove(text, path[:-1], parent, index)

    def nested(self, text: str, node: Node) -> bool:
        """Whether new mappings in a node should have their members on lines of their own."""
        return self.flow.spread and (self.flow.lined(text, node) or ("\n" in text and not node.members))

    # --- between brackets; formats that write otherwise do these themselves

    def replace(self, text: str, path: Path, node: Node, value: Any) -> str:
        """The text with a value spelled anew."""
        return text[: node.start] + self.respell(text, path, node, value) + text[node.end :]

    def respell(self, text: str, path: Path, node: Node, value: Any) -> str:
        """A value in the way that the one which it replaces is laid out."""
        indent = self.flow.indent(text, node, self.layout)[: -len(self.layout.unit)] if node.members else None
        if indent is None:
            begin = text.rfind("\n", 0, node.start) + 1
            line = text[begin : node.start].removeprefix("\ufeff")
            indent = line[: len(line) - len(line.lstrip(" \t"))] if begin else self.layout.base
        lined = self.flow.lined(text, node) if node.members else "\n" in text
        return self.spell(value, indent, lined and self.flow.spread)

    def insert(self, text: str, path: Path, node: Node, index: int, fresh: list[tuple[str | int, Any]]) -> str:
        """The text with new members before the one at `index`."""
        lined = self.nested(text, node) or not (path or node.members)
        indent = self.flow.indent(text, node, self.layout)
        pieces = []
        for key, value in fresh:
            spelled = self.spell(value, indent, lined and isinstance(value, dict))
            pieces.append(self.pair(key, spelled, node, text) if isinstance(key, str) else spelled)
        return self.flow.put(text, node, index, pieces, self.layout, lined)

    def remove(self, text: str, path: Path, node: Node, index: int) -> str:
        """The text without one member."""
        return self.flow.take(text, node, index, self.layout)


def own(node: Node, path: Path) -> None:
    """Refuses what other places of the file share."""
    if node.shared:
        raise Unchangeable(f"`{dotted(path)}` stands behind an alias, an anchor or a tag; change it by hand")


def nest(path: Path, value: Any) -> Any:
    """A value with the mappings that a path leads through around it."""
    for step in reversed(path):
        if isinstance(step, int):
            if step:
                raise Unchangeable(f"there is no item {step} in a list that is not there; change it by hand")
            value = [value]
        else:
            value = {step: value}
    return value


def layout_of(text: str, root: Node | None) -> Layout:
    """How a file breaks its lines and indents."""
    first = text.find("\n")
    newline = "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"
    unit = "  "
    if root is not None and root.members:
        lead = line_lead(text, root.members[0].start)
        if lead and "\n" in text[root.start : root.members[0].start]:
            unit = lead
    return Layout(newline, unit)
