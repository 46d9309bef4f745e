"""Policies that are asked together say what Cedar says of them as one set, though only those that may matter are asked.

A group is parsed in pieces, and Cedar's decision over a set is the sum of those over its parts. A piece over names
alone is asked once for each name; one whose policies begin with `context.arguments has x` is left out where there is
no `x`; and what a call says once case and escapes are set aside is asked only of pieces for which that makes a
difference. `tests/policy` compares all of it with the whole set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import msgspec

from aegis_daemon.policy.context import Looks, folded_est, takes_instants
from aegis_daemon.policy.dialect import NAMED, Path, Statement

FEW: Final = 48
"""So many policies are asked sooner than sorted: asking costs about 25 µs, and 1 µs for each of them."""
_MANY: Final = 500
"""Of one piece: nothing else runs while Cedar parses it, about 10 ms."""
_BUCKETS: Final = 64
_REMEMBERED: Final = 1024
ERRING: Final = re.compile(r"policy `([0-9]+)`")
"""How Cedar names a policy in an error: by its number in the group."""

Request = Mapping[str, Any]
Key = tuple[Any, ...]


class Outcome(msgspec.Struct, frozen=True):
    """What policies say: numbers of those that permit and forbid, and what could not be judged."""

    decision: str
    permits: tuple[int, ...]
    forbids: tuple[int, ...]
    errors: tuple[str, ...]


class Member(msgspec.Struct, frozen=True):
    """A policy, and what it says of folded values; `folded` None: it is not asked about those."""

    statement: Statement
    folded: dict[str, Any] | None

    @property
    def changes(self) -> bool:
        """Whether it says of folded values something else."""
        return self.folded is not None and self.folded != self.statement.est


def members(statements: Iterable[Statement]) -> list[Member]:
    """Policies, ready to be grouped."""
    # An instant that is made of an argument has capitals that folding would take.
    return [Member(one, None if takes_instants(one.est) else _folded(one.est)) for one in statements]


class Piece:
    """Policies of a group that Cedar holds as one set, by their numbers in the group."""

    def __init__(self, members: Mapping[int, Member]) -> None:
        every = [one.statement for one in members.values()]
        self._members = members
        self.reads = frozenset[str]().union(*(one.reads for one in every))
        self.by_name = self.reads <= NAMED
        self.attributes = any(one.attributes for one in every)
        whole = any(one.arguments is None for one in every)
        self.names = None if whole else frozenset(path[0] for one in every for path in one.arguments or ())
        # What else a policy sees is Aegis's own or the configuration's, and has one spelling. A name is the caller's:
        # a server may take `PAY` for `pay`.
        spelt = not self.reads.isdisjoint(("arguments", "target"))
        self.folds = spelt and not any(one.folded is None for one in members.values())
        self.changes = self.folds and any(one.changes for one in members.values())
        needs = [one.needs for one in every]
        self.needs = frozenset(name for name in needs if name is not None) if None not in needs else frozenset()
        """arguments, one of which there has to be for any of these policies to matter; empty: they always may"""
        self._said: dict[Key, Outcome] = {}

    @cached_property
    def _exact(self) -> Any:
        return _parsed({number: one.statement.est for number, one in self._members.items()})

    @cached_property
    def _folded(self) -> Any:
        return _parsed({number: one.folded for number, one in self._members.items()}) if self.changes else self._exact

    def warm(self) -> None:
        """Parses what would be parsed by the first call."""
        assert self._folded is not None
        assert self._exact is not None

    def ask(self, request: Request, entities: Any, *, fold: bool = False, schema: Any = None) -> Outcome:
        """Cedar's own answer. A `schema` tells it what the values of the context are."""
        import cedarpy

        result = cedarpy.is_authorized(dict(request), self._folded if fold else self._exact, entities, schema)
        return self._outcome(result.decision.value, result.diagnostics.reasons, result.diagnostics.errors)

    def recall(self, key: Key, fold: bool, ask: Callable[[], Outcome]) -> Outcome:
        """The answer, to a question that names alone decide as it was the last time. `key` (): not to be remembered."""
        if not self.by_name or not key:
            return ask()
        known = self._said.get((*key, fold))
        if known is None:
            if len(self._said) >= _REMEMBERED:
                self._said.clear()
            known = self._said[(*key, fold)] = ask()
        return known

    def ask_partly(self, request: Request, entities: Any) -> Outcome:
        """The same where parts of the context are unknown: `permits` are those that may permit."""
        import cedarpy

        result = cedarpy.is_authorized_partial(dict(request), self._exact, entities)
        diagnostics = result.diagnostics
        decision = result.decision.value
        possible = [*diagnostics.reasons, *diagnostics.nontrivial_residuals]
        outcome = self._outcome(decision, possible, diagnostics.errors)
        if decision != "Deny":  # a forbid that may apply forbids nothing yet
            return msgspec.structs.replace(outcome, forbids=())
        certain = self._outcome(decision, diagnostics.reasons, ())
        return msgspec.structs.replace(outcome, forbids=certain.forbids)

    def _outcome(self, decision: str, reasons: Iterable[str], errors: Iterable[str]) -> Outcome:
        numbers = sorted({int(one) for one in reasons})
        effects = {number: self._members[number].statement.effect for number in numbers}
        return Outcome(
            decision,
            tuple(number for number in numbers if effects[number] == "permit"),
            tuple(number for number in numbers if effects[number] == "forbid"),
            tuple(errors),
        )


class Group:
    """Policies that are asked about the same calls, and shown the same of them."""

    def __init__(self, members: Sequence[Member]) -> None:
        statements = [one.statement for one in members]
        self._members = tuple(members)
        self.reads = frozenset[str]().union(*(one.reads for one in statements))
        self.by_name = self.reads <= NAMED
        paths: set[Path] = set()
        self.arguments: frozenset[Path] | None
        for one in statements:
            paths |= one.arguments or frozenset()
        whole = any(one.arguments is None for one in statements)
        self.arguments = None if whole else frozenset(paths)
        self.paths = frozenset(paths)
        self.kinds: dict[Path, frozenset[str]] = {}
        for one in statements:
            for path, kinds in one.kinds:
                self.kinds[path] = self.kinds.get(path, frozenset()) | kinds
        pairs = frozenset(pair for one in statements for pair in one.pairs)
        self.looks = Looks(paths, self.kinds, pairs, whole=whole)
        self.pieces = tuple(_pieces(self._members))
        self.folds = any(piece.folds for piece in self.pieces)
        self._needed = frozenset[str]().union(*(piece.needs for piece in self.pieces))

    def warm(self) -> None:
        """Parses now what would take the first call longer than it takes to ask."""
        if len(self._members) >= FEW:
            for piece in self.pieces:
                piece.warm()

    def concerned(self, context: Mapping[str, Any]) -> Iterator[Piece]:
        """The pieces that may matter for such a context."""
        there = self._needed.intersection(context["arguments"]) if self._needed else self._needed
        for piece in self.pieces:
            if not piece.needs or not piece.needs.isdisjoint(there):
                yield piece

    def possible(self, request: Request, entities: Any) -> bool | None:
        """Whether the call may pass as far as this group goes, where parts of the context are unknown.

        None: one of its policies forbids or fails, whatever these parts are; False: none of them may permit.
        """
        permitted = False
        for piece in self._certain:
            outcome = piece.ask_partly(request, entities)
            if outcome.forbids or outcome.errors:
                return None
            permitted = permitted or bool(outcome.permits)
        if not permitted:
            permitted = any(piece.ask_partly(request, entities).permits for piece in self._hoping)
        return permitted

    # A policy that hangs on an argument neither forbids for certain nor fails: as a forbid it has no say in what may be
    # possible, as a permit only where nothing else permits.

    @cached_property
    def _certain(self) -> tuple[Piece, ...]:
        return tuple(_cut({number: one for number, one in enumerate(self._members) if not one.statement.hangs}))

    @cached_property
    def _hoping(self) -> tuple[Piece, ...]:
        permits = {
            number: one
            for number, one in enumerate(self._members)
            if one.statement.hangs and one.statement.effect == "permit"
        }
        return tuple(_cut(permits))

    def ask(self, request: Request, entities: Any, *, fold: bool = False, schema: Any = None) -> Outcome:
        """What Cedar says of all of them as one set. A `schema` tells it what the values of the context are."""
        return united([piece.ask(request, entities, fold=fold, schema=schema) for piece in self.pieces])

    def ids(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """The names of these policies."""
        return tuple(self._members[number].statement.id for number in numbers)

    def error(self, message: str) -> str:
        """Cedar's message, with the policy's name."""
        return ERRING.sub(lambda match: f"policy `{self._members[int(match[1])].statement.id}`", message)[:300]


def united(outcomes: Sequence[Outcome]) -> Outcome:
    """What the parts of a set say together, as Cedar says it of the set: what forbids is told alone."""
    forbids = tuple(sorted(number for one in outcomes for number in one.forbids))
    permits = () if forbids else tuple(sorted(number for one in outcomes for number in one.permits))
    odd = next((one.decision for one in outcomes if one.decision not in ("Allow", "Deny")), None)
    errors = tuple(error for one in outcomes for error in one.errors)
    return Outcome(odd or ("Allow" if permits else "Deny"), permits, forbids, errors)


def _pieces(members: Sequence[Member]) -> Iterator[Piece]:
    """Sorted by what has to be asked of them how often. Where there are few, sorting costs more than it saves."""
    few = len(members) < FEW
    buckets: dict[str, int] = {}
    kinds: dict[tuple[Any, ...], dict[int, Member]] = {}
    for number, member in enumerate(members):
        one = member.statement
        kind: tuple[Any, ...] = (one.by_name, member.folded is None)
        if not few and not one.by_name:
            if one.needs is not None:
                # In a bounded number of pieces, so that a call with every name there is costs no more than one with all
                # policies to be asked.
                kind += (buckets.setdefault(one.needs, len(buckets) % _BUCKETS),)
            else:
                kind += ("changes" if member.changes else "",)
        kinds.setdefault(kind, {})[number] = member
    for alike in kinds.values():
        yield from _cut(alike)


def _cut(members: Mapping[int, Member]) -> Iterator[Piece]:
    every = list(members.items())
    for start in range(0, len(every), _MANY):
        yield Piece(dict(every[start : start + _MANY]))


def _parsed(ests: Mapping[int, dict[str, Any] | None]) -> Any:
    import cedarpy

    whole = {
        "staticPolicies": {str(number): est for number, est in ests.items()},
        "templates": {},
        "templateLinks": [],
    }
    return cedarpy.PolicySet.from_json_str(msgspec.json.encode(whole).decode())


def _folded(est: dict[str, Any]) -> dict[str, Any]:
    conditions = [{**one, "body": folded_est(one["body"])} for one in est["conditions"]]
    return {**est, "conditions": conditions}
