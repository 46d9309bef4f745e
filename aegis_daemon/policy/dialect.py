"""Policy text becomes statements that say exactly what they look at, or faults that say exactly where.

Cedar's parser tells no positions, calls what is written twice no fault, and ends the process on a few thousand brackets
(measured), so the text is cut into tokens here first: bounded, placed, one statement at a time. What only looks as if
it were enforced is a fault as well: kinds of entities, actions and context attributes that do not exist. The one idiom
Cedar lacks and seed B uses, `context.arguments.NAME.matches("(?i)^\\\\s*SELECT\\\\s")`, is taken for what it means: one
statement of SQL of this kind and nothing else.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from aegis_daemon.wire.methods import TO_CLIENT, TO_SERVER, Rule

MAX_BYTES: Final = 4 << 20
MAX_STATEMENTS: Final = 10_000
MAX_TOKENS: Final = 4_000
"""Of one statement."""
MAX_DEPTH: Final = 48
"""Brackets within brackets."""

_TOGETHER: Final = 100
"""Policies that Cedar parses in one go, during which nothing else runs."""
_ROW: Final = 30
"""Conditions in a row that Cedar reads from its own JSON as they are."""

ENTITIES: Final = ("Agent", "Role", "Tenant", "Server", "Action")
ACTIONS: Final = tuple(
    sorted({name for table in (TO_SERVER, TO_CLIENT) for name, row in table.items() if row.rule is Rule.GOVERNED})
)
CONTEXT: Final = ("primitive", "target", "direction", "arguments", "sql", "time", "session", "rate")
"""What `context` has; only the first three are told by a call's name alone."""
NAMED: Final = frozenset(CONTEXT[:3])
_PARTS: Final = {
    ("sql",): ("argument", "parsed", "statements", "operations", "functions"),
    ("time",): ("epoch", "hour", "minute", "weekday"),
    ("session",): ("id", "era"),
    ("rate",): ("agent", "global"),
    ("rate", "agent"): ("used", "max"),
    ("rate", "global"): ("used", "max"),
}
"""What these of its attributes have."""

Path = tuple[str, ...]
Est = Any
"""Cedar's JSON form of an expression."""


class PolicyFault(msgspec.Struct, frozen=True):
    """One thing wrong at one place: line and column from 1."""

    file: str
    line: int
    column: int
    message: str
    hint: str


class PolicyError(ValueError):
    """A text that cannot be used; `faults` holds everything that is wrong with it."""

    def __init__(self, faults: list[PolicyFault]) -> None:
        super().__init__("; ".join(f"{one.file}:{one.line}:{one.column}: {one.message}" for one in faults))
        self.faults = faults


class Statement(msgspec.Struct, frozen=True):
    """One policy. `id` is its `@id`, or where it stands; `est` is Cedar's JSON form of it."""

    id: str
    place: str
    effect: str
    est: dict[str, Any]
    servers: frozenset[str] | None = None
    """the only servers it can apply to; None: any"""
    actions: frozenset[str] | None = None
    targets: frozenset[str] | None = None
    """the only targets for which its condition gets beyond a comparison that cannot fail"""
    reads: frozenset[str] = frozenset()
    """attributes of `context` that it looks at"""
    arguments: frozenset[Path] | None = frozenset()
    """paths in `context.arguments` that it looks at; None: all of them"""
    kinds: tuple[tuple[Path, frozenset[str]], ...] = ()
    """what it compares a path with: kinds of values"""
    pairs: frozenset[tuple[Path, Path]] = frozenset()
    """paths that it compares with each other"""
    named: tuple[tuple[str, str, int, int], ...] = ()
    """entities it names: kind, id and where"""
    needs: str | None = None
    """an argument without which it neither applies nor fails"""
    hangs: bool = False
    """whether it neither applies nor fails as long as the arguments are not known"""
    attributes: bool = False
    """whether it looks at attributes of entities"""
    file: str = ""
    spots: tuple[tuple[str, int, int], ...] = ()
    """where in the file it begins (""), and where it first names each argument: line and column from 1"""

    @property
    def by_name(self) -> bool:
        """Whether the principal, the server, the method and the name decide alone what it says."""
        return self.reads <= NAMED


class Token(msgspec.Struct):
    """`kind` is name, number, string or sign."""

    kind: str
    text: str
    line: int
    column: int


_SYNTAX: Final = "a policy reads `permit(principal, action, resource) when { … };` (docs.cedarpolicy.com)"
_SPACE = re.compile(r"(?:\s+|//[^\n\r]*)+")
_TOKEN = re.compile(
    r"""(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<number>[0-9]+)|(?P<string>"(?:[^"\\]|\\.)*")"""
    r"""|(?P<sign>::|==|!=|<=|>=|&&|\|\||[@(){}\[\],;.:<>!+\-*?|&%=/])""",
    re.DOTALL,
)
_OPEN, _CLOSE = "([{", ")]}"
_IN_MESSAGE = re.compile(r"`([^`]+)`")


def read(text: str, file: str, *, known: bool = True) -> list[Statement]:
    """The statements of a policy text.

    :param known: whether entities, actions and attributes that do not exist here are faults.
    :raises PolicyError: with everything that is wrong.
    """
    return _Reading(text, file, known).statements()


class _Reading:
    def __init__(self, text: str, file: str, known: bool) -> None:
        self.text = text
        self.file = file
        self.known = known
        self.faults: list[PolicyFault] = []
        self.ids: dict[str, Statement] = {}

    def _fault(self, at: Token | tuple[int, int], message: str, hint: str) -> None:
        line, column = at if isinstance(at, tuple) else (at.line, at.column)
        self.faults.append(PolicyFault(self.file, line, column, message, hint))

    def statements(self) -> list[Statement]:
        if len(self.text) > MAX_BYTES:
            self._fault((1, 1), "the policies are longer than 4 MiB", "split the file, or generate fewer of them")
            raise PolicyError(self.faults)
        written: list[list[Token]] = []
        for tokens in self._split(self._tokens()):
            if len(written) >= MAX_STATEMENTS:
                self._fault(tokens[0], f"there are more than {MAX_STATEMENTS} policies", "merge some of them")
                break
            before = len(self.faults)
            mapped = self._mapped(tokens)
            if len(self.faults) == before:
                written.append(mapped)
        together: list[dict[str, Any]] | None = []
        for start in range(0, len(written), _TOGETHER):
            some = self._together(written[start : start + _TOGETHER]) if not self.faults else None
            together = together + some if together is not None and some is not None else None
        found = [
            self._statement(tokens, together[number] if together else self._parsed(tokens))
            for number, tokens in enumerate(written)
        ]
        if self.faults:
            raise PolicyError(self.faults)
        return [one for one in found if one is not None]

    # --- tokens

    def _tokens(self) -> Iterator[Token]:
        text, at, line, start = self.text, 0, 1, 0
        if text.startswith("\ufeff"):
            at = start = 1
        end = len(text)
        while at < end:
            space = _SPACE.match(text, at)
            if space is not None:
                breaks = space[0].count("\n")
                if breaks:
                    line += breaks
                    start = text.rindex("\n", at, space.end()) + 1
                at = space.end()
                continue
            match = _TOKEN.match(text, at)
            if match is None:
                here = (line, at - start + 1)
                if text[at] == '"':
                    self._fault(here, "the text in quotes does not end", 'close it with `"`')
                else:
                    self._fault(here, f"`{text[at]}` is no part of a policy", "remove it, or put it in double quotes")
                return
            yield Token(str(match.lastgroup), match[0], line, at - start + 1)
            breaks = match[0].count("\n")
            if breaks:
                line += breaks
                start = text.rindex("\n", at, match.end()) + 1
            at = match.end()

    def _split(self, tokens: Iterator[Token]) -> Iterator[list[Token]]:
        current: list[Token] = []
        opened: list[Token] = []
        skipping = False
        for token in tokens:
            if token.kind == "sign" and token.text == ";" and not opened:
                current.append(token)
                if not skipping:
                    yield current
                current, skipping = [], False
                continue
            if skipping:
                continue
            if token.text in _OPEN and token.kind == "sign":
                opened.append(token)
                if len(opened) > MAX_DEPTH:
                    self._fault(token, f"brackets are nested more than {MAX_DEPTH} deep", "write a flatter policy")
                    return
            elif token.text in _CLOSE and token.kind == "sign":
                if not opened or _CLOSE[_OPEN.index(opened[-1].text)] != token.text:
                    self._fault(token, f"`{token.text}` closes nothing", "remove it, or open the bracket")
                    return
                opened.pop()
            current.append(token)
            if len(current) > MAX_TOKENS:
                hint = "split it, or list names in `[…].contains(context.target)`"
                self._fault(current[0], "the policy is too long to be judged quickly", hint)
                current, skipping, opened = [], True, []
        if self.faults and not current:
            return
        if opened and not self.faults:
            self._fault(opened[-1], f"`{opened[-1].text}` is never closed", "close the bracket")
        elif current and not self.faults:
            self._fault(current[-1], "the last policy does not end", "add `;`")

    # --- one statement

    def _statement(self, tokens: list[Token], parsed: dict[str, Any] | None) -> Statement | None:
        if parsed is None:
            return None
        if sum(token.text in ("&&", "||") for token in tokens) > _ROW:
            for condition in parsed["conditions"]:
                condition["body"] = balanced(condition["body"])
        place = f"{self.file.rpartition('/')[2]}:{tokens[0].line}"
        annotations = parsed.get("annotations", {})
        given = annotations.get("id")
        id = given if isinstance(given, str) and given else f"{place}:{tokens[0].column}"
        if len(id) > 128 or not id.isprintable():
            self._fault(tokens[0], "the policy's `@id` is longer than 128 characters or unreadable", "shorten it")
            return None
        looked = _Looking(parsed)
        try:
            statement = looked.statement(id, place)
        except RecursionError:
            self._fault(tokens[0], "the policy is too deeply nested", "write a flatter policy")
            return None
        if id in self.ids:
            self._fault(
                tokens[0], f"a policy with the id `{id}` is at {self.ids[id].place} already", "give each its own `@id`"
            )
            return None
        self.ids[id] = statement
        if self.known:
            self._unknown(tokens, looked)
            named = tuple((kind, name, *self._entity(tokens, kind, name)) for kind, name in sorted(looked.entities))
            statement = msgspec.structs.replace(statement, named=named)
        return msgspec.structs.replace(statement, file=self.file, spots=_spots(tokens, looked.arguments))

    def _together(self, written: list[list[Token]]) -> list[dict[str, Any]] | None:
        """These, parsed in one go, a tenth of the time; None where one of them has to be looked at by itself."""
        import cedarpy  # only where there are policies

        try:
            whole = json.loads(cedarpy.policies_to_json_str("\n".join(map(_joined, written))))
        except (ValueError, RecursionError):
            return None
        parsed = whole["staticPolicies"]
        if whole["templates"] or len(parsed) != len(written):
            return None
        return [parsed[f"policy{number}"] for number in range(len(written))]

    def _parsed(self, tokens: list[Token]) -> dict[str, Any] | None:
        import cedarpy

        slot = next((token for token in tokens if token.kind == "sign" and token.text == "?"), None)
        if slot is not None:
            self._fault(slot, "a policy with slots applies to nobody", "write the principal or the server itself")
            return None
        try:
            whole = json.loads(cedarpy.policies_to_json_str(_joined(tokens)))
        except ValueError as error:
            self._located(tokens, str(error), cedarpy.policies_to_json_str)
            return None
        except RecursionError:
            hint = "list names in `[…].contains(context.target)`, or split the policy"
            self._fault(tokens[0], "the policy has too many conditions in a row", hint)
            return None
        (parsed,) = whole["staticPolicies"].values()
        found: dict[str, Any] = parsed
        return found

    def _located(self, tokens: list[Token], message: str, parse: Callable[[str], str]) -> None:
        """Notes what Cedar says at the token it means: the first one up to which the text is not even a beginning."""
        low, high = 1, len(tokens)
        if message.startswith(("unexpected token", "unexpected end", "invalid token")):
            while low < high:
                middle = (low + high) // 2
                try:
                    parse(_joined(tokens[:middle]))
                except ValueError as error:
                    begun = str(error).startswith("unexpected end")
                else:
                    begun = True
                low, high = (middle + 1, high) if begun else (low, middle)
            where = tokens[low - 1]
            if message.startswith("unexpected end") and low == len(tokens) and where.text == ";":
                message = "the policy ends too early"
            elif message.startswith("unexpected end"):
                message = f"unexpected `{where.text[:60]}`"
        else:
            where = self._meant(tokens, message)
        self._fault(where, message.splitlines()[0][:200], _SYNTAX)

    def _meant(self, tokens: list[Token], message: str) -> Token:
        for word in _IN_MESSAGE.findall(message):
            names = [token for token in tokens if token.text == word.split(".")[0].split("::")[0]]
            if names:
                return names[-1] if "must be used" in message else names[0]
            inside = [token for token in tokens if token.kind == "string" and word in token.text]
            if inside:
                return inside[0]
        numbers = [token for token in tokens if token.kind == "number" and len(token.text) > 18]
        return numbers[0] if numbers and "integer" in message else tokens[0]

    # --- the idiom

    def _mapped(self, tokens: list[Token]) -> list[Token]:
        if all(token.text != "matches" for token in tokens):
            return tokens
        found: list[Token] = []
        index = 0
        while index < len(tokens):
            end, name = _argument(tokens, index)
            if end and _texts(tokens, end, 3) == [".", "matches", "("]:
                verbs = self._verbs(tokens, end)
                if verbs is None:
                    return tokens
                found.append(Token("sign", _one_statement(name, verbs), tokens[index].line, tokens[index].column))
                index = end + 5
                continue
            if tokens[index].text == "matches" and index and tokens[index - 1].text == ".":
                self._no_matches(tokens[index])
                return tokens
            found.append(tokens[index])
            index += 1
        return found

    def _verbs(self, tokens: list[Token], end: int) -> list[str] | None:
        if len(tokens) < end + 5 or tokens[end + 3].kind != "string" or tokens[end + 4].text != ")":
            self._no_matches(tokens[end + 1])
            return None
        match = _VERBS.fullmatch(tokens[end + 3].text[1:-1].replace("\\\\", "\\"))
        if match is None:
            self._no_matches(tokens[end + 3])
            return None
        return sorted({word.upper() for word in re.findall(r"[A-Za-z]+", match[1])})

    def _no_matches(self, at: Token) -> None:
        self._fault(
            at,
            "Cedar has no `matches`, and only the SQL idiom of `(?i)^\\\\s*SELECT\\\\s` is understood",
            "write `like` with `*`, or `context.sql`; for a regular expression use `constraints`",
        )

    # --- what does not exist

    def _unknown(self, tokens: list[Token], looked: _Looking) -> None:
        for kind, name in sorted(looked.entities):
            if kind not in ENTITIES:
                where = next((token for token in tokens if token.text == kind.split("::")[0]), tokens[0])
                self._fault(where, f"there are no entities of the kind `{kind}`", _near(kind, ENTITIES))
            elif kind == "Action" and name not in ACTIONS:
                line, column = self._entity(tokens, kind, name)
                self._fault((line, column), f"there is no action `{name}` to judge", _near(name, ACTIONS))
        for kind in sorted(looked.types - {kind for kind, _ in looked.entities} - set(ENTITIES)):
            where = next((token for token in tokens if token.text == kind.split("::")[0]), tokens[0])
            self._fault(where, f"there are no entities of the kind `{kind}`", _near(kind, ENTITIES))
        for name in sorted(looked.reads - set(CONTEXT)):
            where = next((token for token in tokens if token.text in (name, f'"{name}"')), tokens[0])
            self._fault(where, f"the context has no `{name}`", _near(name, CONTEXT))
        for path in sorted(looked.parts):
            *above, name = path
            known = _PARTS[tuple(above)]
            if name not in known:
                said = (name, f'"{name}"')
                places = [at for at, token in enumerate(tokens) if token.text in said]
                there = [at for at in places if _texts(tokens, at - 2, 1) == above[-1:]]
                where = tokens[(there or places or [0])[0]]
                self._fault(where, f"`context.{'.'.join(above)}` has no `{name}`", _near(name, known))

    def _entity(self, tokens: list[Token], kind: str, name: str) -> tuple[int, int]:
        for index, token in enumerate(tokens):
            if token.kind == "string" and _texts(tokens, index - 1, 1) == ["::"] and token.text[1:-1] == name:
                return token.line, token.column
        return tokens[0].line, tokens[0].column


# A statement's first words may be quoted as they stand in seed B: `^`, spaces, verbs, and the end of the word.
_VERBS = re.compile(r"(?:\(\?i\))?\^(?:\\s\*)?\(?(?:\?:)?([A-Za-z]+(?:\|[A-Za-z]+)*)\)?(?:\\s|\\b|\\s\+)")


def _one_statement(name: str, verbs: list[str]) -> str:
    listed = ", ".join(f'"{verb}"' for verb in verbs)
    sql = "context.sql"
    return (
        f"(context has sql && {sql}.parsed && {sql}.statements == 1 && {sql}.argument == {json.dumps(name)}"
        f" && !{sql}.operations.isEmpty() && [{listed}].containsAll({sql}.operations) && {sql}.functions.isEmpty())"
    )


def _argument(tokens: list[Token], index: int) -> tuple[int, str]:
    """Where `context.arguments.NAME`, if it begins here, ends, and the name; (0, "") if it does not."""
    if _texts(tokens, index, 3) != ["context", ".", "arguments"]:
        return 0, ""
    after = _texts(tokens, index + 3, 3)
    if after[:1] == ["."] and len(after) > 1 and tokens[index + 4].kind == "name":
        return index + 5, after[1]
    if after[:1] == ["["] and after[2:] == ["]"] and tokens[index + 4].kind == "string" and "\\" not in after[1]:
        return index + 6, after[1][1:-1]
    return 0, ""


def _texts(tokens: list[Token], start: int, count: int) -> list[str]:
    return [token.text for token in tokens[max(0, start) : start + count]]


def _spots(tokens: list[Token], arguments: set[Path]) -> tuple[tuple[str, int, int], ...]:
    names = {step for path in arguments for step in path}
    found = {"": tokens[0]}
    for before, token in itertools.pairwise(tokens) if names else ():
        if before.text in (".", "[", "has") and token.kind in ("name", "string"):
            word = token.text if token.kind == "name" else token.text[1:-1]
            if word in names:
                found.setdefault(word, token)
    return tuple((name, token.line, token.column) for name, token in found.items())


def _joined(tokens: list[Token]) -> str:
    return " ".join(token.text for token in tokens)


def _near(word: str, known: tuple[str, ...]) -> str:
    plain = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), plain, 1, 0.6)
    return f"did you mean `{plain[found[0]]}`?" if found else f"known: {', '.join(f'`{one}`' for one in known)}"


# --- Cedar's JSON form


def balanced(node: Est) -> Est:
    """The same expression with long chains of `&&` and of `||` folded in the middle.

    They associate, evaluation order and errors included, and Cedar reads its own JSON only to a depth of about 60.
    """
    if isinstance(node, list):
        return [balanced(one) for one in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1 and ("&&" in node or "||" in node):
        ((sign, _),) = node.items()
        terms = [balanced(term) for term in chain(node, sign)]
        return _tree(terms, sign)
    if "Value" in node and len(node) == 1:
        return node
    return {key: balanced(value) for key, value in node.items()}


def chain(node: Est, sign: str) -> list[Est]:
    """The terms of `a && b && c`, in order."""
    terms: list[Est] = []
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict) and len(one) == 1 and sign in one:
            waiting += (one[sign]["right"], one[sign]["left"])
        else:
            terms.append(one)
    return terms


def _tree(terms: list[Est], sign: str) -> Est:
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return {sign: {"left": _tree(terms[:middle], sign), "right": _tree(terms[middle:], sign)}}


def literal(node: Est) -> str | None:
    """The kind of a literal: text, number, flag, list, record or entity; None for what is none."""
    if isinstance(node, dict) and len(node) == 1:
        if "Value" in node:
            return kind_of(node["Value"])
        if "Set" in node:
            return "list"
        if "Record" in node:
            return "record"
    return None


def kind_of(value: object) -> str:
    """The kind of an argument's value."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int):
        return "number" if -(2**63) <= value < 2**63 else "big number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "list"
    if isinstance(value, dict):
        return "entity" if "__entity" in value else "record"
    return "nothing" if value is None else "fraction"


def attribute(node: Est) -> tuple[str, Path] | None:
    """`("context", ("arguments", "path"))` for `context.arguments.path`; None for what is no such path."""
    steps: list[str] = []
    while isinstance(node, dict) and len(node) == 1 and "." in node:
        steps.append(node["."]["attr"])
        node = node["."]["left"]
    if isinstance(node, dict) and len(node) == 1 and "Var" in node:
        return node["Var"], tuple(reversed(steps))
    return None


_SCALARS = frozenset({"text", "number", "flag"})


class _Looking:
    """What one policy looks at."""

    def __init__(self, est: dict[str, Any]) -> None:
        self.est = est
        self.reads: set[str] = set()
        self.parts: set[Path] = set()
        self.arguments: set[Path] = set()
        self.whole = False
        self.kinds: dict[Path, set[str]] = {}
        self.pairs: set[tuple[Path, Path]] = set()
        self.entities: set[tuple[str, str]] = set()
        self.types: set[str] = set()

    def statement(self, id: str, place: str) -> Statement:
        est = self.est
        servers = self._scope(est["resource"])
        actions = self._scope(est["action"])
        self._scope(est["principal"])
        for condition in est["conditions"]:
            self._walk(condition["body"])
        return Statement(
            id=id,
            place=place,
            effect=est["effect"],
            est=est,
            servers=servers,
            actions=actions,
            targets=_targets(est["conditions"]),
            reads=frozenset(self.reads),
            arguments=None if self.whole else frozenset(self.arguments),
            kinds=tuple(sorted((path, frozenset(kinds)) for path, kinds in self.kinds.items())),
            pairs=frozenset(self.pairs),
            needs=_needed(est["conditions"]),
            hangs=_hanging(est["conditions"]),
            attributes=any(_has_attributes(condition["body"]) for condition in est["conditions"]),
        )

    def _scope(self, scope: dict[str, Any]) -> frozenset[str] | None:
        if "entity_type" in scope:
            self.types.add(scope["entity_type"])
            scope = scope.get("in", scope)
        found = [scope["entity"]] if "entity" in scope else scope.get("entities")
        if found is None:
            return None
        self.entities.update((one["type"], one["id"]) for one in found)
        return frozenset(one["id"] for one in found)

    def _walk(self, node: Est) -> None:
        if isinstance(node, list):
            for one in node:
                self._walk(one)
            return
        if not isinstance(node, dict):
            return
        path = attribute(node)
        if path is not None:
            self._read(*path)
            return
        for key, value in node.items():
            if key == "Value":
                if isinstance(value, dict) and "__entity" in value:
                    self.entities.add((value["__entity"]["type"], value["__entity"]["id"]))
            elif key == "has":
                path = attribute(value["left"])
                if path is not None:
                    self._read(path[0], (*path[1], value["attr"]))
                else:
                    self._walk(value["left"])
            elif key == "is":
                self.types.add(value["entity_type"])
                self._walk(value["left"])
                self._walk(value.get("in"))
            else:
                if key in ("==", "!="):
                    self._compared(value["left"], value["right"])
                    self._compared(value["right"], value["left"])
                elif key in ("contains", "containsAll", "containsAny"):
                    self._contained(key, value["left"], value["right"])
                if key == "like":
                    likened = _of_arguments(value["left"])
                    if likened:
                        self.kinds.setdefault(likened, set()).add("text")
                    self._walk(value["left"])
                elif isinstance(value, dict):
                    for below in value.values():
                        self._walk(below)
                else:
                    self._walk(value)

    def _read(self, variable: str, path: Path) -> None:
        if variable != "context":
            return
        if not path:
            self.reads.update(CONTEXT)
            self.whole = True
            return
        self.reads.add(path[0])
        self.parts.update(path[: end + 1] for end in range(1, len(path)) if path[:end] in _PARTS)
        if path[0] == "arguments":
            if len(path) == 1:
                self.whole = True
            else:
                self.arguments.add(path[1:])

    def _compared(self, one: Est, other: Est) -> None:
        path = _of_arguments(one)
        second = _of_arguments(other)
        if path and second:
            self.pairs.add((path, second))
        elif path:
            kind = literal(other)
            self.kinds.setdefault(path, set()).update({kind} if kind else _SCALARS)

    def _contained(self, sign: str, left: Est, right: Est) -> None:
        path = _of_arguments(right)
        if path:
            kinds = (
                {literal(one) or "text" for one in left["Set"]} if literal(left) == "list" and "Set" in left else set()
            )
            if sign == "contains":
                self.kinds.setdefault(path, set()).update(kinds or _SCALARS)
            else:
                self.kinds.setdefault((*path, ""), set()).update(kinds or _SCALARS)
        path = _of_arguments(left)
        if path:
            if sign == "contains":
                kind = literal(right)
                kinds = {kind} if kind else set(_SCALARS)
            else:
                listed = right["Set"] if literal(right) == "list" and "Set" in right else ()
                kinds = {literal(one) or "text" for one in listed} or set(_SCALARS)
            self.kinds.setdefault((*path, ""), set()).update(kinds)


def _of_arguments(node: Est) -> Path:
    found = attribute(node)
    if found is None or found[0] != "context" or found[1][:1] != ("arguments",):
        return ()
    return found[1][1:]


def _targets(conditions: list[dict[str, Any]]) -> frozenset[str] | None:
    """The targets a policy can be about, as far as comparisons that cannot fail come before everything else."""
    found: frozenset[str] | None = None
    for condition in conditions:
        if condition["kind"] != "when":
            return found
        for term in chain(condition["body"], "&&"):
            targets = _target_of(term)
            if targets is not None:
                found = targets if found is None else found & targets
            elif not _cannot_fail(term):
                return found
    return found


def _target_of(term: Est) -> frozenset[str] | None:
    if not isinstance(term, dict) or len(term) != 1:
        return None
    if "||" in term:
        parts = [_target_of(one) for one in chain(term, "||")]
        return frozenset().union(*(one for one in parts if one)) if all(one is not None for one in parts) else None
    if "==" in term:
        sides = term["=="]["left"], term["=="]["right"]
        for one, other in (sides, sides[::-1]):
            if attribute(one) == ("context", ("target",)) and literal(other) == "text":
                return frozenset((other["Value"],))
    if "contains" in term and attribute(term["contains"]["right"]) == ("context", ("target",)):
        left = term["contains"]["left"]
        if isinstance(left, dict) and "Set" in left and all(literal(one) == "text" for one in left["Set"]):
            return frozenset(one["Value"] for one in left["Set"])
    return None


def _cannot_fail(term: Est) -> bool:
    """Comparisons of what every call has: their outcome may be false, and never an error."""
    if not isinstance(term, dict) or len(term) != 1:
        return False
    if "==" in term or "!=" in term:
        ((_, sides),) = term.items()
        return all(_always_there(sides[side]) for side in ("left", "right"))
    if "in" in term:
        left = attribute(term["in"]["left"])
        return (
            left is not None
            and left[0] in ("principal", "action", "resource")
            and not left[1]
            and literal(term["in"]["right"]) in ("entity", "list")
        )
    if "has" in term:
        return attribute(term["has"]["left"]) in (("context", ()), ("principal", ()), ("resource", ()))
    return "Value" in term and term["Value"] is True


def _always_there(node: Est) -> bool:
    if literal(node) in ("text", "number", "flag", "entity"):
        return True
    found = attribute(node)
    return found is not None and (
        (found[0] == "context" and len(found[1]) == 1 and found[1][0] in NAMED)
        or (found[0] != "context" and not found[1])
    )


def _deciding(conditions: list[dict[str, Any]]) -> Iterator[Est]:
    """The terms that a policy looks at first: all comparisons that cannot fail, and the one that comes after them."""
    for condition in conditions:
        if condition["kind"] != "when":
            return
        for term in chain(condition["body"], "&&"):
            yield term
            if _target_of(term) is None and not _cannot_fail(term) and _argument_had(term) is None:
                return


def _argument_had(term: Est) -> str | None:
    """`x` of `context.arguments has x`."""
    if not isinstance(term, dict) or len(term) != 1 or "has" not in term:
        return None
    had = term["has"]
    return str(had["attr"]) if attribute(had["left"]) == ("context", ("arguments",)) else None


def _needed(conditions: list[dict[str, Any]]) -> str | None:
    return next((name for name in map(_argument_had, _deciding(conditions)) if name is not None), None)


def _hanging(conditions: list[dict[str, Any]]) -> bool:
    return any(map(_unknown_without_arguments, _deciding(conditions)))


def _unknown_without_arguments(term: Est) -> bool:
    """Whether its first comparison is of an argument with something that is there."""
    while isinstance(term, dict) and len(term) == 1 and ("||" in term or "!" in term):
        term = chain(term, "||")[0] if "||" in term else term["!"]["arg"]
    if not isinstance(term, dict) or len(term) != 1:
        return False
    ((sign, sides),) = term.items()
    if sign == "has":
        found = attribute(sides["left"])
        return found is not None and found[0] == "context" and found[1][:1] == ("arguments",)
    if sign == "like":
        return bool(_of_arguments(sides["left"]))
    if sign not in ("==", "!=", "<", "<=", ">", ">="):
        return False
    left, right = sides["left"], sides["right"]
    return bool(_of_arguments(left) and "Value" in right) or bool(_of_arguments(right) and "Value" in left)


def _has_attributes(node: Est) -> bool:
    if isinstance(node, list):
        return any(map(_has_attributes, node))
    if not isinstance(node, dict) or "Value" in node:
        return False
    found = attribute(node)
    if found is not None:
        return found[0] != "context" and bool(found[1])
    return "." in node or any(map(_has_attributes, node.values()))
