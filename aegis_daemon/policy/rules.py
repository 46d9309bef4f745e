"""A rule lets a call pass only where every argument that it names is there and is what it says: any doubt denies.

`compile_rule(Constraint) -> Rule`; `Rule.judge(arguments)` gives the reason for a refusal in plain words, without the
value, or None; `Rule.claims(...)` gives what the call would spend of the rule's budgets. `Rules` finds the rules of a
tool: one for its own name and one for `backend.tool` may both hold, and then each may refuse.

Arguments are compared as they are forwarded: the decoded value is what is encoded again for the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from aegis_daemon.core.names import bare
from aegis_daemon.core.text import visible
from aegis_daemon.core.verdict import Claim
from aegis_daemon.policy.budgets import SCOPE, exact, plain, units
from aegis_daemon.policy.context import folded_text
from aegis_daemon.policy.paths import canonical_root, path_fault
from aegis_daemon.policy.patterns import compile_pattern
from aegis_daemon.policy.sql import ARGUMENTS, DEFAULT_DIALECTS, sql_fault
from aegis_daemon.policy.urls import address_fault, canonical_host, url_fault

EVERYWHERE = "*"
"""The backend of every budget: a rule for a tool's own name counts what is spent of it on all backends together."""

Scalar = str | int | float | bool
Check = Callable[[Any], str | None]


class Argument(msgspec.Struct, frozen=True):
    """What a rule says of one argument; all of it has to hold. `each`: of every item, where it is a list."""

    optional: bool = False
    each: bool = False
    under: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    least: Decimal | None = None
    most: Decimal | None = None
    whole: bool = False
    one_of: tuple[Scalar, ...] = ()
    matches: str | None = None
    max_length: int | None = None


class Sql(msgspec.Struct, frozen=True):
    """What the SQL among the arguments may do. `argument` None: all of `sql.ARGUMENTS` that are there."""

    operations: tuple[str, ...]
    argument: str | None = None
    dialects: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()


class Spending(msgspec.Struct, frozen=True):
    """At most `most` in any `window_s` seconds of what an argument adds up to; `each_agent`: for every agent apart."""

    argument: str
    most: Decimal
    window_s: float
    each_agent: bool = False
    optional: bool = False


class Constraint(msgspec.Struct, frozen=True):
    """One tool's rule, as it is written. `tool` is a tool's own name or `backend.tool`."""

    tool: str
    arguments: Mapping[str, Argument] = {}
    forbid_extra: bool = False
    sql: Sql | None = None
    budgets: tuple[Spending, ...] = ()


class Rule:
    """One compiled rule. Never changes, asks nobody."""

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self.tool = constraint.tool
        self.sql = constraint.sql
        self.budgets = constraint.budgets
        self._needs = tuple(
            (name, wanted.optional, wanted.each, _checks(wanted)) for name, wanted in constraint.arguments.items()
        )
        self._spends = tuple(
            (one, f"{SCOPE} {one.argument}", plain(units(one.most) or 0)) for one in constraint.budgets
        )
        named = {*constraint.arguments, *(one.argument for one in constraint.budgets)}
        if self.sql is not None:
            named |= {self.sql.argument} if self.sql.argument is not None else set(ARGUMENTS)
            self._operations = frozenset(self.sql.operations)
            self._functions = frozenset(name.lower() for name in self.sql.functions)
        self._named = frozenset(named)
        self._folded = {folded_text(name): name for name in self._named}
        self._closed = constraint.forbid_extra

    @property
    def named(self) -> frozenset[str]:
        """The arguments whose values it looks at."""
        return self._named

    def judge(self, arguments: Any) -> str | None:
        """Why the call is refused, in plain words and without a value of its; None where nothing objects."""
        try:
            return self._fault(arguments)
        except Exception as error:
            return f"the arguments could not be judged ({type(error).__name__})"

    def _fault(self, arguments: Any) -> str | None:
        if type(arguments) is not dict:
            return "the arguments are not a mapping of names to values"
        for name in arguments:
            if name in self._named:
                continue
            alike = self._folded.get(folded_text(name))
            if alike is not None:  # some servers would take it for the other
                return f"the argument {_shown(name)} may be taken for `{alike}`"
            if self._closed:
                return f"the argument {_shown(name)} is not allowed"
        for name, optional, each, checks in self._needs:
            value = arguments.get(name)
            if value is None:  # null is what servers take for absent
                if not optional:
                    return f"the argument `{name}` is missing"
                continue
            values = value if each and type(value) is list else (value,)
            for one in values:
                for check in checks:
                    fault = check(one)
                    if fault is not None:
                        return f"the argument `{name}` {fault}"
        for spending, *_ in self._spends:
            fault = _spending_fault(spending, arguments.get(spending.argument))
            if fault is not None:
                return f"the argument `{spending.argument}` {fault}"
        return self._sql_fault(arguments) if self.sql is not None else None

    def _sql_fault(self, arguments: dict[str, Any]) -> str | None:
        assert self.sql is not None
        names = (self.sql.argument,) if self.sql.argument is not None else ARGUMENTS
        there = [name for name in names if arguments.get(name) is not None]
        if not there:
            return f"the argument {' or '.join(f'`{name}`' for name in names)} with the SQL is missing"
        for name in there:
            text = arguments[name]
            if type(text) is not str:
                return f"the argument `{name}` is not a text"
            fault = sql_fault(text, self._operations, self._functions, self.sql.dialects or DEFAULT_DIALECTS)
            if fault is not None:
                return f"the argument `{name}` {fault}"
        return None

    def claims(self, agent: str, arguments: Any) -> tuple[Claim, ...]:
        """What a call that `judge` lets pass would spend of each budget."""
        if not self._spends:
            return ()
        made = []
        for spending, scope, most in self._spends:
            number = exact(arguments.get(spending.argument))
            amount = units(number) if number is not None else 0
            assert amount is not None
            who = agent if spending.each_agent else None
            made.append(Claim(scope, who, EVERYWHERE, self.tool, spending.window_s, 0, plain(amount), most))
        return tuple(made)

    def limits(self) -> tuple[Claim, ...]:
        """Its budgets, as claims of nothing; the agent is "" where each agent has one for itself."""
        return tuple(
            Claim(scope, "" if one.each_agent else None, EVERYWHERE, self.tool, one.window_s, 0, "0", most)
            for one, scope, most in self._spends
        )

    def spent(self, agent: str, content: bytes | None) -> tuple[Claim, ...]:
        """The same of a call of an earlier daemon, by what the log kept of it; what cannot be read spent all there is.

        `content` is JSON: the arguments, or an object that holds them beside answers to questions (`Call.content`).
        """
        try:
            found = msgspec.json.decode(content or b"")
        except (msgspec.DecodeError, ValueError, RecursionError):
            found = None
        readings = [
            one for one in (found, found.get("arguments") if type(found) is dict else None) if type(one) is dict
        ]
        made = []
        for spending, scope, most in self._spends:
            known = [one for one in (_spent(spending, reading) for reading in readings) if one is not None]
            amount = plain(max(known)) if known else most
            who = agent if spending.each_agent else None
            made.append(Claim(scope, who, EVERYWHERE, self.tool, spending.window_s, 0, amount, most))
        return tuple(made)


class Rules:
    """All rules of a configuration, by what they are written for."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._by_tool = {rule.tool: rule for rule in rules}
        self._alike: dict[str, tuple[Rule, ...]] = {}
        for rule in self._by_tool.values():
            alike = bare(rule.tool)
            self._alike[alike] = (*self._alike.get(alike, ()), rule)

    def __bool__(self) -> bool:
        return bool(self._by_tool)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._by_tool.values())

    def of(self, backend: str, tool: str) -> tuple[Rule, ...]:
        """The rules that hold for a tool; each may refuse. For `PAY`, too, where only `pay` has any."""
        return self._named(tool) + self._named(f"{backend}.{tool}")

    def _named(self, name: str) -> tuple[Rule, ...]:
        own = self._by_tool.get(name)
        return (own,) if own is not None else self._alike.get(bare(name), ())


def compile_rule(constraint: Constraint) -> Rule:
    """The rule. Raises `BadPattern`, `BadRoot` and `BadHost` for what configurations are checked for when loaded."""
    return Rule(constraint)


def _shown(name: str) -> str:
    return f"`{visible(name[:60])}`"


def _checks(wanted: Argument) -> tuple[Check, ...]:
    """In the order in which they are asked: what is cheap and tells the type first."""
    found: list[Check] = []
    if wanted.one_of:
        found.append(_one_of(wanted.one_of))
    if wanted.least is not None or wanted.most is not None or wanted.whole:
        found.append(_number(wanted.least, wanted.most, wanted.whole))
    if wanted.max_length is not None:
        found.append(_length(wanted.max_length))
    if wanted.matches is not None:
        found.append(_match(wanted.matches))
    if wanted.under:
        found.append(_path(tuple(map(canonical_root, wanted.under))))
    if wanted.hosts or wanted.schemes:
        schemes = frozenset(scheme.lower() for scheme in wanted.schemes) or frozenset({"https"})
        found.append(_url(frozenset(map(canonical_host, wanted.hosts)), schemes))
    if wanted.domains:
        found.append(_address(frozenset(map(canonical_host, wanted.domains))))
    if not found:
        found.append(_scalar)
    return tuple(found)


def _scalar(value: Any) -> str | None:
    return None if type(value) in (str, int, float, bool) else "is not a single value"


def _one_of(allowed: tuple[Scalar, ...]) -> Check:
    known = frozenset((type(one), one) for one in allowed)

    def check(value: Any) -> str | None:
        fine = type(value) in (str, int, float, bool) and (type(value), value) in known
        return None if fine else "is none of the allowed values"

    return check


def _number(least: Decimal | None, most: Decimal | None, whole: bool) -> Check:
    def check(value: Any) -> str | None:
        number = exact(value)
        if number is None:
            return "is not a number that every reader takes for the same"
        if whole and number != number.to_integral_value():
            return "is not a whole number"
        if least is not None and number < least:
            return "is too small"
        if most is not None and number > most:
            return "is too large"
        return None

    return check


def _text(judge: Callable[[str], str | None]) -> Check:
    return lambda value: judge(value) if type(value) is str else "is not a text"


def _length(most: int) -> Check:
    return _text(lambda text: None if len(text) <= most else "is too long")


def _match(pattern: str) -> Check:
    fits = compile_pattern(pattern)
    return _text(lambda text: None if fits(text) else "does not have the required form")


def _path(roots: tuple[str, ...]) -> Check:
    return _text(lambda text: path_fault(text, roots))


def _url(hosts: frozenset[str], schemes: frozenset[str]) -> Check:
    return _text(lambda text: url_fault(text, hosts, schemes))


def _address(domains: frozenset[str]) -> Check:
    return _text(lambda text: address_fault(text, domains))


def _spending_fault(spending: Spending, value: Any) -> str | None:
    if value is None:
        return None if spending.optional else "is missing"
    number = exact(value)
    amount = units(number) if number is not None else None
    if number is None or amount is None:
        return "is not an amount that can be counted exactly"
    return None if number <= spending.most else "is more than may be spent at all"


def _spent(spending: Spending, arguments: dict[str, Any]) -> int | None:
    value = arguments.get(spending.argument)
    if value is None:
        return 0 if spending.optional else None
    number = exact(value)
    return units(number) if number is not None else None
