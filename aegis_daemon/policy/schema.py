"""What a rule looks at has to be there in the tool that it is for, and of the kind that it is compared with.

A tool's `inputSchema`, as its server gave it and somebody trusted it, says which arguments there are. A rule for a tool
that has no such argument, or has it as something else, cannot mean what it says: a fault, for which the tool is refused
until the rule or the tool changes. What is only likely to surprise is a warning. A schema that says nothing of an
argument, or says it in a way that is not followed here, finds nothing wrong.

Cedar's own validator is not used: it takes all tools that a policy may be about for one, tells no positions, and knows
nothing of the values that calls are refused for here before Cedar sees them (`context.check`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import msgspec

from aegis_daemon.core.names import bare
from aegis_daemon.core.text import visible
from aegis_daemon.policy.context import Doubt, folded_text
from aegis_daemon.policy.dialect import Est, Path, Statement, attribute, chain, kind_of
from aegis_daemon.policy.rules import Argument, Constraint
from aegis_daemon.policy.sql import ARGUMENTS

ACTION: Final = "tools/call"
_HOPS: Final = 8
"""References that are followed from one to the next."""
_BRANCHES: Final = 16
_PARTS: Final = 256
"""Schemas that are looked at for one value."""
_VALUES: Final = 1_000
"""Of an `enum`; one with more is not compared with."""
_NEAR: Final = 200
"""Names that are looked through for one like a name that is not there."""
_REMEMBERED: Final = 50_000
_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "string": ("text",),
    "integer": ("number", "big number"),
    "number": ("number", "big number", "fraction"),
    "boolean": ("flag",),
    "array": ("list",),
    "object": ("record",),
    "null": (),
}
_WORDS: Final = {"text": "a text", "number": "a number", "flag": "a flag", "list": "a list", "record": "an object"}
_AS_TEXT: Final = frozenset({"text", "fraction", "big number"})
"""What Cedar gets as a text."""
_FLAG: Final = frozenset({"flag"})
_NUMBER: Final = frozenset({"number"})
_TEXT: Final = frozenset({"text"})
_LIST: Final = frozenset({"list"})
_COUNTED: Final = frozenset({"number", "fraction"})


class Finding(msgspec.Struct, frozen=True):
    """One thing about a rule and a tool. `rule` is a policy's id, or what a constraint is called in the file.

    `line` and `column` count from 1, and are 0 where only the file knows. `code` is `unknown`, `kind`, `optional`,
    `passes` or `never`; `argument` is the path it is about.
    """

    fault: bool
    code: str
    rule: str
    file: str
    line: int
    column: int
    server: str
    tool: str
    argument: str
    message: str
    hint: str

    @property
    def text(self) -> str:
        """For people, in one line."""
        place = f" ({self.file}:{self.line}:{self.column})" if self.line else ""
        return f"`{self.rule}`{place}: {self.message}; {self.hint}"


# --- what a schema says -----------------------------------------------------------------------------------------------


class Shape(msgspec.Struct, frozen=True):
    """What a value is. `kinds` None: anything; `values` None: any of these kinds. `absent`: it may be null."""

    kinds: frozenset[str] | None = None
    absent: bool = False
    values: tuple[Any, ...] | None = None
    properties: Mapping[str, Any] = {}
    required: frozenset[str] = frozenset()
    closed: bool = False
    """whether it has no other properties"""
    items: Any = None
    default: Any = None


_ANYTHING: Final = Shape()


def shape(schema: Any, root: Any) -> Shape:
    """What a schema says, as far as it is followed; `root` is what its references point into."""
    return _Following(root).shape(schema, _HOPS)


class _Following:
    """One value's schema, with what it refers to: bounded, since references can multiply."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = _PARTS

    def shape(self, schema: Any, hops: int) -> Shape:
        self._left -= 1
        if type(schema) is not dict or hops < 0 or self._left < 0:
            return _ANYTHING
        if "$ref" in schema:
            target = _referred(schema["$ref"], self._root)
            return _ANYTHING if target is None else self.shape(target, hops - 1)
        if "type" not in schema and "properties" not in schema:
            parts = schema.get("allOf")
            if type(parts) is list and len(parts) == 1:
                return self.shape(parts[0], hops - 1)
            branches = schema.get("anyOf", schema.get("oneOf"))
            if type(branches) is list:
                return self._any_of(branches, schema.get("default"), hops)
        return _plainly(schema)

    def _any_of(self, branches: list[Any], default: Any, hops: int) -> Shape:
        if not branches or len(branches) > _BRANCHES:
            return _ANYTHING
        found = [self.shape(branch, hops - 1) for branch in branches]
        there = [one for one in found if one.kinds is None or one.kinds]
        absent = any(one.absent for one in found)
        if len(there) == 1:  # something or null
            return msgspec.structs.replace(there[0], absent=absent, default=default)
        kinds = [one.kinds for one in there if one.kinds is not None]
        if len(kinds) < len(there):
            return Shape(absent=absent, default=default)
        return Shape(kinds=frozenset[str]().union(*kinds), absent=absent, default=default)


def _plainly(schema: dict[str, Any]) -> Shape:
    kinds, absent = _kinds(schema.get("type"))
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    there: tuple[Any, ...] | None = None
    if type(values) is list and len(values) <= _VALUES:
        absent = (absent or kinds is None) and None in values
        there = tuple(value for value in values if value is not None)
        found = frozenset(map(kind_of, there))
        kinds = found if kinds is None else found & kinds or kinds
    properties = schema.get("properties")
    required = schema.get("required")
    return Shape(
        kinds=kinds,
        absent=absent,
        values=there,
        properties=properties if type(properties) is dict else {},
        required=frozenset(one for one in required if type(one) is str) if type(required) is list else frozenset(),
        closed=schema.get("additionalProperties") is False and not schema.get("patternProperties"),
        items=schema.get("items"),
        default=schema.get("default"),
    )


def _kinds(given: Any) -> tuple[frozenset[str] | None, bool]:
    names = [given] if type(given) is str else given if type(given) is list else []
    if not names or any(type(name) is not str or name not in _KINDS for name in names):
        return None, False
    return frozenset(kind for name in names for kind in _KINDS[name]), "null" in names


def _referred(reference: Any, root: Any) -> Any:
    if type(reference) is not str or not reference.startswith("#/"):
        return None
    here = root
    for step in reference[2:].split("/")[:_HOPS]:
        here = here.get(step.replace("~1", "/").replace("~0", "~")) if type(here) is dict else None
    return here


class Tool:
    """One tool of one server, by its `inputSchema`."""

    def __init__(self, server: str, name: str, schema: Any) -> None:
        self.server = server
        self.name = name
        self._root = schema
        self._known: dict[Path, Shape] = {}

    @property
    def title(self) -> str:
        """As people call it; safe to print."""
        return f"`{visible(self.name[:80])}` of `{visible(self.server[:80])}`"

    @cached_property
    def arguments(self) -> Shape:
        """All of them together."""
        return shape(self._root, self._root)

    @property
    def vague(self) -> bool:
        """Whether it does not say what it takes."""
        return not self.arguments.properties and not self.arguments.closed

    def at(self, path: Path) -> Shape:
        """What is at a path; `""` steps into the items of a list."""
        if not path:
            return self.arguments
        known = self._known.get(path)
        if known is None:
            above = self.at(path[:-1])
            below = above.items if path[-1] == "" else above.properties.get(path[-1])
            known = self._known[path] = shape(below, self._root)
        return known

    def lacks(self, path: Path) -> str:
        """`closed` or `open`, where what is above the path names no such property; "" where it does, or names none."""
        above = self.at(path[:-1])
        if path[-1] == "" or path[-1] in above.properties:
            return ""
        if above.closed:
            return "closed"
        return "open" if above.properties else ""

    def may_lack(self, path: Path) -> bool:
        """Whether it may be left out, where what is above it is there."""
        above = self.at(path[:-1])
        return path[-1] in above.properties and (path[-1] not in above.required or self.at(path).absent)

    def near(self, path: Path) -> str:
        """The name that may have been meant; "" for none."""
        names = {name.lower(): name for name in list(self.at(path[:-1]).properties)[:_NEAR] if len(name) <= 80}
        found = difflib.get_close_matches(path[-1][:80].lower(), names, 1, 0.6)
        return names[found[0]] if found else ""

    def signature(self, names: Iterable[str]) -> tuple[Any, ...]:
        """What the tool says of these arguments; what says the same gives the same findings."""
        return (self.arguments.closed, not self.arguments.properties, *map(self._of_name, names))

    def _of_name(self, name: str) -> bytes | None:
        if name not in self.arguments.properties:
            return None
        text = msgspec.json.encode(self.arguments.properties[name])
        if b'"$ref"' in text:
            text += self._whole
        return text + (b"!" if name in self.arguments.required else b"")

    @cached_property
    def _whole(self) -> bytes:
        return msgspec.json.encode(self._root)


# --- what a policy asks of a tool -------------------------------------------------------------------------------------


class _Value(msgspec.Struct, frozen=True):
    """What is known of a part of a policy: its kinds, its value where the tool's name says it, its path.

    `had` and `lacking` are the arguments that are there where it is true, and where it is false.
    """

    kinds: frozenset[str] | None = None
    known: Any = None
    path: Path | None = None
    items: frozenset[str] | None = None
    values: tuple[Any, ...] | None = None
    had: frozenset[Path] = frozenset()
    lacking: frozenset[Path] = frozenset()


_UNKNOWN: Final = _Value()
_TRUE, _FALSE = _Value(_FLAG, True), _Value(_FLAG, False)


class _Noted(msgspec.Struct, frozen=True):
    code: str
    path: Path
    said: str = ""
    hint: str = ""
    guarded: bool = False


class _Asking:
    """Goes through one policy as Cedar would for a call of one tool, and notes what cannot be meant."""

    def __init__(self, statement: Statement, tool: Tool) -> None:
        self._statement = statement
        self._tool = tool
        self._noted: dict[tuple[str, Path], _Noted] = {}
        self._facts: dict[tuple[str, Path], str] = {
            ("context", ("target",)): tool.name,
            ("context", ("primitive",)): "tool",
            ("context", ("direction",)): "to_server",
        }

    def noted(self) -> tuple[_Noted, ...]:
        there = frozenset[Path]()
        for condition in self._statement.est["conditions"]:
            found = self._flag(condition["body"], there)
            wanted = condition["kind"] == "when"
            if found.known is (not wanted):
                break
            there |= found.had if wanted else found.lacking
        else:
            if self._statement.effect == "forbid":
                for path in sorted(there):
                    if self._tool.may_lack(path) and not self._is_off(path):
                        self._note("passes", path)
        return tuple(self._noted.values())

    def _is_off(self, path: Path) -> bool:
        """Whether it is a flag that is not set where it is left out."""
        found = self._tool.at(path)
        return found.kinds == _FLAG and found.default is not True

    def _note(self, code: str, path: Path, said: str = "", hint: str = "", *, guarded: bool = False) -> None:
        before = self._noted.get((code, path))
        if before is None or (before.guarded and not guarded):
            self._noted[code, path] = _Noted(code, path, said, hint, guarded)

    # Each gives what is known of the value; `there` are the arguments that are there for certain.

    def _value(self, node: Est, there: frozenset[Path]) -> _Value:
        if isinstance(node, list):
            for one in node:
                self._value(one, there)
            return _UNKNOWN
        if not isinstance(node, dict) or len(node) != 1:
            return _UNKNOWN
        found = attribute(node)
        if found is not None:
            return self._read(*found, there)
        ((sign, of),) = node.items()
        if sign == "Value":
            return _Value(frozenset({kind_of(of)}), of if type(of) in (str, bool, int) else None)
        if sign == "Set":
            items = [self._value(one, there) for one in of]
            kinds = [one.kinds for one in items]
            known = None if None in kinds else frozenset[str]().union(*(kind for kind in kinds if kind is not None))
            values = tuple(one.known for one in items)
            return _Value(_LIST, items=known, values=None if None in values else values)
        if sign == "&&" or sign == "||":
            return self._row(chain(node, sign), sign == "&&", there)
        if sign == "!":
            found_ = self._flag(of["arg"], there)
            known_ = None if found_.known is None else not found_.known
            return _Value(_FLAG, known_, had=found_.lacking, lacking=found_.had)
        if sign == "if-then-else":
            return self._choice(of, there)
        if sign == "has":
            return self._has(of, there)
        if sign == "==" or sign == "!=":
            return self._compared(of["left"], of["right"], sign == "==", there)
        if sign in ("<", "<=", ">", ">="):
            left, right = self._value(of["left"], there), self._value(of["right"], there)
            self._ordered(left, right)
            self._ordered(right, left)
            return _Value(_FLAG)
        if sign in ("+", "-", "*", "neg"):
            for operand in of.values():
                self._want(self._value(operand, there), _NUMBER, "is reckoned with as a number")
            return _Value(_NUMBER)
        if sign == "like":
            return self._like(of, there)
        if sign in ("contains", "containsAll", "containsAny"):
            return self._contains(sign, of, there)
        if sign == "isEmpty":
            self._want(self._value(of["arg"], there), _LIST, "is asked for its items")
            return _Value(_FLAG)
        if sign in ("decimal", "ip", "datetime", "duration") and isinstance(of, list):
            for one in of:
                self._want(self._value(one, there), _AS_TEXT, f"is read as a text, by `{sign}`")
            return _UNKNOWN
        if sign == ".":
            self._value(of["left"], there)
            return _UNKNOWN
        for operand in of.values() if isinstance(of, dict) else (of,):
            self._value(operand, there)
        return _Value(_FLAG) if sign in ("in", "is", "hasTag") else _UNKNOWN

    def _flag(self, node: Est, there: frozenset[Path]) -> _Value:
        found = self._value(node, there)
        self._want(found, _FLAG, "is used as a flag")
        return found

    def _row(self, terms: Sequence[Est], all_of: bool, there: frozenset[Path]) -> _Value:
        """`&&` and `||` alike: what ends the row early, and what holds while it goes on."""
        goes_on = all_of  # the value of a term after which the next one is looked at
        along = frozenset[Path]()
        ends: list[frozenset[Path]] = []
        certain = True
        for term in terms:
            found = self._flag(term, there | along)
            if found.known is not goes_on:
                ends.append(along | (found.lacking if all_of else found.had))
            if found.known is (not goes_on):
                break
            along |= found.had if all_of else found.lacking
            certain = certain and found.known is goes_on
        else:
            ended = frozenset.intersection(*ends) if ends else frozenset[Path]()
            known = goes_on if certain else None
            return _Value(_FLAG, known, had=along if all_of else ended, lacking=ended if all_of else along)
        ended = frozenset.intersection(*ends)
        known = not goes_on
        return _Value(_FLAG, known, had=frozenset() if all_of else ended, lacking=ended if all_of else frozenset())

    def _choice(self, of: dict[str, Est], there: frozenset[Path]) -> _Value:
        asked = self._flag(of["if"], there)
        if asked.known is True:
            return self._value(of["then"], there | asked.had)
        if asked.known is False:
            return self._value(of["else"], there | asked.lacking)
        first = self._value(of["then"], there | asked.had)
        second = self._value(of["else"], there | asked.lacking)
        kinds = None if first.kinds is None or second.kinds is None else first.kinds | second.kinds
        return _Value(
            kinds,
            first.known if first.known == second.known and type(first.known) is type(second.known) else None,
            had=(first.had | asked.had) & (second.had | asked.lacking),
            lacking=(first.lacking | asked.had) & (second.lacking | asked.lacking),
        )

    def _has(self, of: dict[str, Est], there: frozenset[Path]) -> _Value:
        found = attribute(of["left"])
        if found is None:
            self._value(of["left"], there)
            return _Value(_FLAG)
        variable, steps = found[0], (*found[1], of["attr"])
        if variable != "context" or steps[:1] != ("arguments",):
            return _Value(_FLAG)
        path = steps[1:]
        if not path:
            return _Value(_FLAG)
        if len(path) > 1:
            self._argument(path[:-1], there)
            self._want(self._at(path[:-1]), frozenset({"record"}), f"is asked for its `{path[-1]}`")
        if self._tool.lacks(path):
            self._note("unknown", path, guarded=True)
        return _Value(_FLAG, had=frozenset({path}))

    def _read(self, variable: str, steps: Path, there: frozenset[Path]) -> _Value:
        fact = self._facts.get((variable, steps))
        if fact is not None:
            return _Value(_TEXT, fact)
        if variable == "context" and steps[:1] == ("arguments",) and len(steps) > 1:
            return self._argument(steps[1:], there)
        return _UNKNOWN

    def _argument(self, path: Path, there: frozenset[Path]) -> _Value:
        for end in range(1, len(path) + 1):
            step = path[:end]
            if end > 1:
                self._want(self._at(step[:-1]), frozenset({"record"}), f"is asked for its `{step[-1]}`")
            if step in there:
                continue
            if self._tool.lacks(step):
                self._note("unknown", step)
                return _Value(path=path)
            if self._tool.may_lack(step):
                self._note("optional", step)
        return self._at(path)

    def _at(self, path: Path) -> _Value:
        found = self._tool.at(path)
        items = self._tool.at((*path, "")).kinds if found.kinds is not None and "list" in found.kinds else None
        return _Value(found.kinds, path=path, items=items, values=found.values)

    def _want(self, found: _Value, kinds: frozenset[str], how: str) -> None:
        if found.path is not None and found.kinds and not (found.kinds & kinds):
            self._note("kind", found.path, f"is {_kind_words(found.kinds)}, and {how}")

    def _ordered(self, one: _Value, other: _Value) -> None:
        if other.path is None and other.kinds == _NUMBER:
            self._want(one, _NUMBER, "is compared with a number")

    def _compared(self, left: Est, right: Est, equal: bool, there: frozenset[Path]) -> _Value:
        one, other = self._value(left, there), self._value(right, there)
        for first, second in ((one, other), (other, one)):
            if first.path is not None and second.kinds and len(second.kinds) == 1:
                self._want(first, second.kinds, f"is compared with {_kind_words(second.kinds)}")
                self._never(first, second.known)
        if one.known is not None and other.known is not None:
            same = _alike(one.known, other.known)
            return _TRUE if same is equal else _FALSE
        return _Value(_FLAG)

    def _never(self, found: _Value, value: Any) -> None:
        """Notes a text that the schema does not list; other spellings of a listed one are the engine's business."""
        if type(value) is not str or found.values is None or found.path is None or not found.values:
            return
        listed = [one for one in found.values if type(one) is str]
        if not any(_alike(one, value) for one in listed):
            near = difflib.get_close_matches(value[:80], [one for one in listed[:_NEAR] if len(one) <= 80], 1, 0.6)
            self._note("never", found.path, visible(value[:80]), near[0] if near else "")

    def _like(self, of: dict[str, Any], there: frozenset[Path]) -> _Value:
        left = self._value(of["left"], there)
        self._want(left, _TEXT, "is compared with a text")
        if type(left.known) is not str:
            return _Value(_FLAG)
        return _TRUE if _fits(left.known, of["pattern"]) else _FALSE

    def _contains(self, sign: str, of: dict[str, Est], there: frozenset[Path]) -> _Value:
        left, right = self._value(of["left"], there), self._value(of["right"], there)
        self._want(left, _LIST, "is asked for its items")
        if sign != "contains":
            self._want(right, _LIST, "is asked for its items")
        wanted = right.kinds if sign == "contains" else right.items
        if left.path is not None and left.items and wanted and not (left.items & wanted):
            said = f"is a list whose items are {_kind_words(left.items)} each, and is asked for {_kind_words(wanted)}"
            self._note("kind", left.path, said)
        if right.path is not None and left.path is None and left.items:
            if sign == "contains":
                self._want(right, left.items, f"is looked for among {_kind_words(left.items)} each")
                for value in left.values or ():
                    self._never(right, value)
            elif right.items and not (right.items & left.items):
                self._note("kind", right.path, f"is a list whose items are {_kind_words(right.items)} each")
        if sign == "contains" and left.values is not None and left.path is None and right.known is not None:
            return _TRUE if any(_alike(one, right.known) for one in left.values) else _FALSE
        return _Value(_FLAG)


def _kind_words(kinds: frozenset[str]) -> str:
    words = [word for kind, word in _WORDS.items() if kind in kinds]
    return " or ".join(words) or " or ".join(sorted(kinds))


def _alike(one: Any, other: Any) -> bool:
    """As the engine takes them: case and escapes set aside."""
    if type(one) is not str or type(other) is not str:
        return type(one) is type(other) and bool(one == other)
    try:
        return one == other or folded_text(one) == folded_text(other)
    except Doubt:
        return False


def _fits(text: str, pattern: list[Any]) -> bool:
    """Whether the text is like the pattern once both are folded; True in doubt."""
    runs = [""]
    for one in pattern:
        if one == "Wildcard":
            runs.append("")
        else:
            runs[-1] += one["Literal"]
    try:
        here, parts = folded_text(text), [folded_text(run) for run in runs]
    except Doubt:
        return True
    if len(parts) == 1:
        return here == parts[0]
    if not here.startswith(parts[0]):
        return False
    at = len(parts[0])
    for part in parts[1:-1]:
        at = here.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return here.endswith(parts[-1]) and len(here) - len(parts[-1]) >= at


# --- what is told of it -----------------------------------------------------------------------------------------------

Others = Callable[[str, str], Any]
"""The `inputSchema` of another tool of a server, None where it is not known."""


def _no_others(server: str, tool: str) -> Any:
    return None


class Fitting:
    """The rules of one configuration, held against tools. Remembers what it found; not for more than one thread."""

    def __init__(self, statements: Sequence[Statement], constraints: Iterable[Constraint]) -> None:
        self._constraints: dict[str, list[Constraint]] = {}
        for constraint in constraints:
            self._constraints.setdefault(bare(constraint.tool), []).append(constraint)
        self._named: dict[str, list[int]] = {}
        self._broad: list[int] = []
        # What looks at no argument has nothing to be held against.
        self._statements = [
            one for one in statements if one.arguments != frozenset() and (one.actions is None or ACTION in one.actions)
        ]
        for number, one in enumerate(self._statements):
            if one.targets is None:
                self._broad.append(number)
            for name in {bare(target) for target in one.targets or ()}:
                self._named.setdefault(name, []).append(number)
        self._roots = [tuple(sorted({path[0] for path in one.arguments or ()})) for one in self._statements]
        self._known: dict[tuple[Any, ...], tuple[_Noted, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._statements or self._constraints)

    def findings(self, server: str, name: str, schema: Any, others: Others = _no_others) -> Iterator[Finding]:
        """What does not fit one tool, faults among the rest."""
        tool = Tool(server, name, schema)
        return (one for one in self.walk(tool, others) if one is not None)

    def walk(self, tool: Tool, others: Others = _no_others, *, every: bool = True) -> Iterator[Finding | None]:
        """The same, with a None after each policy, where whoever has other things to do may rest.

        Not `every`: without policies that name no tool, of which there are no faults.
        """
        server, name = tool.server, tool.name
        for number in (*self._named.get(bare(name), ()), *(self._broad if every else ())):
            statement = self._statements[number]
            if statement.servers is not None and server not in statement.servers:
                continue
            for noted in self._noted(number, tool):
                found = self._told(statement, tool, noted, others)
                if found is not None:
                    yield found
            yield None
        for written in (name, f"{server}.{name}"):
            alike = self._constraints.get(bare(written), ())
            for constraint in [one for one in alike if one.tool == written] or alike:  # as `Rules.of`
                yield from _constrained(constraint, tool)

    def fault(self, server: str, name: str, schema: Any, others: Others = _no_others) -> str:
        """What is wrong, for people, in one line; "" where nothing is."""
        found = self.walk(Tool(server, name, schema), others, every=False)
        return _listed([one for one in found if one is not None and one.fault])

    def _noted(self, number: int, tool: Tool) -> tuple[_Noted, ...]:
        statement = self._statements[number]
        if statement.targets is not None or statement.arguments is None:
            return _Asking(statement, tool).noted()
        key = (number, tool.signature(self._roots[number]), tool.name if "target" in statement.reads else "")
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = _Asking(statement, tool).noted()
        return known

    def _told(self, statement: Statement, tool: Tool, noted: _Noted, others: Others) -> Finding | None:
        path, code = noted.path, noted.code
        is_named = statement.targets is not None
        argument = ".".join(visible(step[:80]) if step else "[]" for step in path)
        what = f"the argument `{argument}` of {tool.title}"
        fault = False
        if code == "unknown":
            closed = tool.lacks(path) == "closed"
            if noted.guarded and (not is_named or self._others_have(statement, tool, path, others)):
                return None
            if not is_named and not closed:
                return None
            fault = is_named and closed
            near = tool.near(path)
            message = f"{tool.title} has no argument `{argument}`"
            hint = f"did you mean `{visible(near)}`?" if near else _has_hint(tool, path)
            if not closed:
                message += ", and takes others than it names"
        elif code == "kind":
            fault = is_named
            message, hint = f"{what} {noted.said}", "compare it with what the tool takes"
            if not is_named:
                hint = "calls that have it are refused; name the tools that the policy is for"
        elif code == "optional":
            message = f"{what} may be left out, and such calls are refused, since the policy reads it without `has`"
            hint = "if they should pass, ask for it first with `has`"
        elif code == "passes":
            if not is_named:
                return None
            message = f"{what} may be left out, and such calls are not forbidden"
            hint = "if they should be, leave out the `has`"
        else:
            if not is_named:
                return None
            message = f"{what} is never `{noted.said}`"
            hint = f"did you mean `{visible(noted.hint)}`?" if noted.hint else "compare it with what the tool takes"
        line, column = _spot(statement, path)
        return Finding(
            fault, code, statement.id, statement.file, line, column, tool.server, tool.name, argument, message, hint
        )

    def _others_have(self, statement: Statement, tool: Tool, path: Path, others: Others) -> bool:
        """Whether another tool that the policy names has the argument, or may have it."""
        for name in statement.targets or ():
            if bare(name) == bare(tool.name):
                continue
            schema = others(tool.server, name)
            if schema is None or not Tool(tool.server, name, schema).lacks(path):
                return True
        return False

    def strangers(self, arguments: Mapping[str, frozenset[str]]) -> Iterator[Finding]:
        """Arguments in policies that name no tool, which no tool has: of each server, the names of all arguments.

        Give only servers whose tools all say what they take.
        """
        for number in self._broad:
            statement = self._statements[number]
            if statement.servers is not None:
                known = [arguments[server] for server in statement.servers if server in arguments]
                if len(known) < len(statement.servers):
                    continue
            else:
                known = list(arguments.values())
            names = frozenset[str]().union(*known)
            for root in self._roots[number] if names else ():
                if root in names:
                    continue
                found = difflib.get_close_matches(root[:80], sorted(names)[:_NEAR], 1, 0.6)
                hint = f"did you mean `{visible(found[0])}`?" if found else "leave it if such a tool is yet to come"
                line, column = _spot(statement, (root,))
                message = f"no tool has an argument `{visible(root[:80])}`"
                yield Finding(False, "unknown", statement.id, statement.file, line, column, "", "", root, message, hint)


def _spot(statement: Statement, path: Path) -> tuple[int, int]:
    """Where a policy speaks of an argument; where it begins, if that is not known."""
    spots = {name: (line, column) for name, line, column in statement.spots}
    for step in reversed(path):
        if step and step in spots:
            return spots[step]
    return spots.get("", (0, 0))


def _has_hint(tool: Tool, path: Path) -> str:
    names = [f"`{visible(name[:40])}`" for name in list(tool.at(path[:-1]).properties)[:6]]
    return f"it has {', '.join(names)}" if names else "it takes none"


# --- rules on arguments -----------------------------------------------------------------------------------------------


def _constrained(constraint: Constraint, tool: Tool) -> Iterator[Finding]:
    """What of one tool's rule its arguments cannot satisfy."""
    place = f"constraints.{constraint.tool}"
    for name, wanted in constraint.arguments.items():
        yield from _argument(f"{place}.arguments.{name}", tool, name, wanted)
    for budget in constraint.budgets:
        rule = f"{place}.budgets.{budget.argument}"
        yield from _there(rule, tool, budget.argument, optional=budget.optional)
        yield from _clash(rule, tool, budget.argument, _COUNTED, "is counted as a number")
    sql = constraint.sql
    if sql is None:
        return
    rule = f"{place}.operations"
    if sql.argument is not None:
        yield from _there(rule, tool, sql.argument, optional=False, needed=True)
        yield from _clash(rule, tool, sql.argument, _TEXT, "is read as SQL")
        return
    there = [name for name in ARGUMENTS if name in tool.arguments.properties]
    for name in there:
        yield from _clash(rule, tool, name, _TEXT, "is read as SQL")
    if not there and tool.arguments.closed:
        message = f"{tool.title} has none of the arguments {', '.join(f'`{name}`' for name in ARGUMENTS)}"
        yield _of_rule(True, "unknown", rule, tool, "", message, "name the one with the SQL in `argument`")


def _argument(rule: str, tool: Tool, name: str, wanted: Argument) -> Iterator[Finding]:
    yield from _there(rule, tool, name, optional=wanted.optional)
    found = tool.at((name,))
    kinds = _taken(wanted)
    if wanted.each and found.kinds is not None and "list" in found.kinds:
        items = tool.at((name, "")).kinds
        if items and not (items & kinds) and found.kinds == _LIST:
            message = f"the items of the argument `{visible(name[:80])}` of {tool.title} are {_kind_words(items)} each"
            yield _of_rule(True, "kind", rule, tool, name, message, "ask of it what the tool takes")
        return
    how = f"has to be {_kind_words(kinds)}"
    yield from _clash(rule, tool, name, kinds, how)
    if wanted.one_of and found.values and not any((type(one), one) in _typed(found.values) for one in wanted.one_of):
        message = f"the argument `{visible(name[:80])}` of {tool.title} takes none of the allowed values"
        yield _of_rule(True, "kind", rule, tool, name, message, "allow some that the tool takes")


def _typed(values: Iterable[Any]) -> set[tuple[type, Any]]:
    return {(type(one), one) for one in values if type(one) in (str, int, float, bool)}


def _taken(wanted: Argument) -> frozenset[str]:
    """The kinds of values that can pass."""
    kinds = frozenset({"text", "number", "big number", "fraction", "flag"})
    if wanted.one_of:
        kinds &= frozenset(kind for one in wanted.one_of for kind in _kinds_of(one))
    if wanted.least is not None or wanted.most is not None or wanted.whole:
        kinds &= _COUNTED
    texts = (wanted.max_length, wanted.matches, wanted.under, wanted.hosts, wanted.schemes, wanted.domains)
    if any(one is not None and one != () for one in texts):
        kinds &= _TEXT
    return kinds


def _kinds_of(value: object) -> tuple[str, ...]:
    return ("number", "fraction") if type(value) in (int, float) else (kind_of(value),)


def _there(rule: str, tool: Tool, name: str, *, optional: bool, needed: bool = False) -> Iterator[Finding]:
    lacks = tool.lacks((name,))
    shown = visible(name[:80])
    if lacks:
        near = tool.near((name,))
        message = f"{tool.title} has no argument `{shown}`" + (
            "" if lacks == "closed" else ", and takes others than it names"
        )
        hint = f"did you mean `{visible(near)}`?" if near else _has_hint(tool, (name,))
        yield _of_rule(lacks == "closed", "unknown", rule, tool, name, message, hint)
    elif tool.may_lack((name,)) and not optional:
        message = f"the argument `{shown}` of {tool.title} may be left out, and such calls are refused"
        hint = "that is safe" if needed else "if they should pass, write `optional: true`"
        yield _of_rule(False, "optional", rule, tool, name, message, hint)


def _clash(rule: str, tool: Tool, name: str, kinds: frozenset[str], how: str) -> Iterator[Finding]:
    found = tool.at((name,)).kinds
    if found and not (found & kinds):
        message = f"the argument `{visible(name[:80])}` of {tool.title} is {_kind_words(found)}, and {how}"
        yield _of_rule(True, "kind", rule, tool, name, message, "ask of it what the tool takes")


def _of_rule(fault: bool, code: str, rule: str, tool: Tool, name: str, message: str, hint: str) -> Finding:
    return Finding(fault, code, rule, "", 0, 0, tool.server, tool.name, name, message, hint)


# --- all tools together -----------------------------------------------------------------------------------------------


class Summary:
    """What was found of all tools: each fault, and each warning once with how many tools it is of."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str, str], dict[tuple[str, str, str], Finding]] = {}
        self._warnings: dict[tuple[str, str, str], tuple[Finding, int]] = {}

    def add(self, found: Iterable[Finding]) -> None:
        """One more tool."""
        for one in found:
            key = (one.rule, one.code, one.argument)
            if one.fault:
                self._faults.setdefault((one.server, one.tool), {}).setdefault(key, one)
            else:
                first, count = self._warnings.get(key, (one, 0))
                self._warnings[key] = (first, count + 1)

    @property
    def faults(self) -> list[Finding]:
        """For each of which its tool is refused."""
        return [one for of_tool in self._faults.values() for one in of_tool.values()]

    @property
    def tools(self) -> int:
        """How many tools are refused."""
        return len(self._faults)

    def fault(self, server: str, tool: str) -> str:
        """As `Fitting.fault`."""
        return _listed(list(self._faults.get((server, tool), {}).values()))

    @property
    def warnings(self) -> list[Finding]:
        """The others."""
        return [
            msgspec.structs.replace(one, message=f"{one.message} (so it is for {count - 1} more)") if count > 1 else one
            for one, count in self._warnings.values()
        ]


def _listed(faults: Sequence[Finding]) -> str:
    if not faults:
        return ""
    return faults[0].text + (f"; and {len(faults) - 1} more" if len(faults) > 1 else "")
