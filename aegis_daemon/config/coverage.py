"""Which rules of a configuration a call shows at work: those that decide it, and those that let it pass on the way.

A rule is a policy, an entry of a list, a constraint on one argument, a limit, or a path that is redacted. Each has a
place, by which people name it (`constraints.pay.arguments.eur`, `agents.bot.backends.files.tool_denylist.rm`, a
policy's `@id`), and something that it has to be seen doing: a constraint has to let a call pass and to refuse one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from aegis_daemon.config.rules import constraint
from aegis_daemon.config.schema import Access, Config
from aegis_daemon.core.call import Call
from aegis_daemon.core.names import Names, Restricted, meanings
from aegis_daemon.core.stage import Gate
from aegis_daemon.core.verdict import Deny, Hold, Opinion
from aegis_daemon.policy.cedar import Ruling
from aegis_daemon.policy.rules import Constraint, Rule, Rules, compile_rule
from aegis_daemon.policy.sql import ARGUMENTS
from aegis_daemon.policy.transforms import Transform
from aegis_daemon.stages.policy import Policy

PASSES: Final = "let a call pass"
REFUSES: Final = "refused one"
_DOES: Final = {
    "permit": "permitted a call",
    "forbid": "forbidden one",
    "constraint": "",
    "deny": "refused a call",
    "allow": "let a call pass",
    "approval": "asked a person",
    "limit": "counted a call",
    "transform": "redacted anything",
}


class Covered(msgspec.Struct):
    """A rule, and what it has been seen doing. `where` is `file:line` for a policy, else ""."""

    place: str
    kind: str
    where: str = ""
    seen: set[str] = msgspec.field(default_factory=set)

    @property
    def missing(self) -> tuple[str, ...]:
        """What it has not been seen doing."""
        wanted = (PASSES, REFUSES) if self.kind == "constraint" else (_DOES[self.kind],)
        return tuple(one for one in wanted if one not in self.seen)


class Mark(msgspec.Struct, frozen=True):
    """What one call shows: at this stage this rule did this."""

    stage: str
    place: str
    did: str


class Coverage:
    """The rules of one configuration, and how far they were seen at work."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.rules: dict[str, Covered] = {}
        self._lists: dict[tuple[str, str, str], list[tuple[Names, Covered]]] = {}
        self._parts: dict[str, list[tuple[Covered, Rule, tuple[str, ...]]]] = {}
        for one in config.policy.statements:
            self._add(one.id, one.effect, one.place)
        for key, rules, kind in (("deny", config.deny, "deny"), ("allow", config.allow, "allow")):
            self._list(("", "", key), f"{key}.tools", rules.tools if rules is not None else (), kind)
        for agent, settings in config.agents.items():
            for backend, access in settings.backends.items():
                self._access(agent, backend, access)
        for backend, queue in config.queue.items():
            for tool in queue.global_rate_limits:
                self._add(f"queue.{backend}.global_rate_limits.{tool}", "limit")
        for tool, written in config.constraints.items():
            self._constraint(tool, constraint(tool, written))
        for tool, transform in config.transforms.items():
            for path in transform.redact:
                self._add(f"transforms.{tool}.redact.{path}", "transform")

    @property
    def uncovered(self) -> list[Covered]:
        """The rules of which something is missing."""
        return [one for one in self.rules.values() if one.missing]

    def named(self, word: str) -> list[str]:
        """The places of the rules that people mean by `word`: a place, a part of it at its dots, or `file:line`."""
        return [rule.place for rule in self.rules.values() if means(word, rule.place) or word == rule.where]

    def note(self, marks: list[Mark]) -> None:
        """The rules have been seen doing this."""
        for mark in marks:
            if mark.place in self.rules:
                self.rules[mark.place].seen.add(mark.did)

    # --- what there is

    def _add(self, place: str, kind: str, where: str = "") -> Covered:
        return self.rules.setdefault(place, Covered(place, kind, where))

    def _list(self, key: tuple[str, str, str], place: str, patterns: tuple[str, ...] | None, kind: str) -> None:
        made = Names if kind == "allow" else Restricted
        self._lists[key] = [(made([one]), self._add(f"{place}.{one}", kind)) for one in patterns or ()]

    def _access(self, agent: str, backend: str, access: Access) -> None:
        if not access.allowed:
            return
        where = f"agents.{agent}.backends.{backend}"
        for key, kind in (
            ("tool_allowlist", "allow"), ("tool_denylist", "deny"),
            ("resource_allowlist", "allow"), ("resource_denylist", "deny"),
            ("prompt_allowlist", "allow"), ("prompt_denylist", "deny"),
            ("server_requests", "allow"),
            ("approval_required", "approval"), ("second_approver", "approval"),
        ):  # fmt: skip
            self._list((agent, backend, key), f"{where}.{key}", getattr(access, key), kind)
        for tool in access.rate_limits:
            self._add(f"{where}.rate_limits.{tool}", "limit")

    def _constraint(self, tool: str, whole: Constraint) -> None:
        """A rule for each part of it, and the arguments without which the part has nothing to say."""
        where, parts = f"constraints.{tool}", self._parts.setdefault(tool, [])

        def add(part: str, written: Constraint, needs: tuple[str, ...], kind: str = "constraint") -> None:
            parts.append((self._add(f"{where}.{part}", kind), compile_rule(written), needs))

        for name, argument in whole.arguments.items():
            add(f"arguments.{name}", Constraint(tool, {name: argument}), (name,))
        for budget in whole.budgets:
            # That it counts is enough: what one call may spend at most is often said by the argument's own rule.
            add(f"budgets.{budget.argument}", Constraint(tool, budgets=(budget,)), (budget.argument,), "limit")
        if whole.sql is not None:
            names = ARGUMENTS if whole.sql.argument is None else (whole.sql.argument,)
            add("operations", Constraint(tool, sql=whole.sql), names)
        if whole.forbid_extra:
            self._add(f"{where}.extra", "constraint")

    # --- what a call shows

    def marks(self, call: Call, opinions: tuple[tuple[Gate, Opinion], ...], now: float) -> list[Mark]:
        """The rules that the call shows at work, up to the stage that refuses it."""
        found: list[Mark] = []
        for gate, opinion in opinions:
            denied = isinstance(opinion, Deny)
            if gate.name == "acl":
                found += self._by_lists(call, denied)
            elif isinstance(gate, Policy):
                found += self._by_policies(gate.rulings(call, now))
                if not denied or found_constraint(opinion):
                    found += self._by_constraints(gate.rules, call)
            elif gate.name == "rate_limit":
                for claim in getattr(opinion, "claims", ()):
                    where = f"queue.{claim.backend}.global_rate_limits"
                    if claim.agent is not None:
                        where = f"agents.{claim.agent}.backends.{claim.backend}.rate_limits"
                    found.append(Mark(gate.name, f"{where}.{claim.tool}", _DOES["limit"]))
            elif isinstance(opinion, Hold):
                for key in ("second_approver", "approval_required"):
                    places = self._matching(call, key, call.name or "")
                    found += [Mark(gate.name, place, _DOES["approval"]) for place in places]
            if denied:
                break
        return found

    def _matching(self, call: Call, key: str, *names: str) -> list[str]:
        agent, backend = ("", "") if key in ("deny", "allow") else (call.principal.agent, call.backend)
        return [
            rule.place
            for patterns, rule in self._lists.get((agent, backend, key), ())
            if any(name in patterns for name in names)
        ]

    def _by_lists(self, call: Call, denied: bool) -> Iterator[Mark]:
        if call.name is None:
            return
        names, kind = [call.name], call.subject
        if kind == "resource":
            try:
                names += meanings(call.name) if denied else meanings(call.name)[:1]
            except ValueError:
                pass
        found: list[str] = []
        if kind == "server_request":
            found = [] if denied else self._matching(call, "server_requests", *names)
        else:
            found = self._matching(call, f"{kind}_{'denylist' if denied else 'allowlist'}", *names)
        if kind == "tool":
            found += self._matching(call, "deny" if denied else "allow", call.name, f"{call.backend}.{call.name}")
        yield from (Mark("acl", place, _DOES["deny" if denied else "allow"]) for place in found)

    def _by_policies(self, rulings: tuple[Ruling, ...]) -> Iterator[Mark]:
        # Where a thing has several names, one refusal is enough, and each permit counts only if all are permitted.
        refusals = [one for one in rulings if not one.allowed]
        for ruling in refusals or rulings:
            did = _DOES["permit"] if ruling.allowed else _DOES["forbid"] if ruling.forbidden else ""
            yield from (Mark("policy", id, did) for id in ruling.ids)

    def roots(self, rulings: tuple[Ruling, ...]) -> list[Mark]:
        """What the policies say of one root shows these of them at work."""
        return list(self._by_policies(rulings))

    def _by_constraints(self, rules: Rules, call: Call) -> Iterator[Mark]:
        if call.method != "tools/call" or call.name is None:
            return
        arguments = call.arguments
        for rule in rules.of(call.backend, call.name):
            why = rule.judge(arguments)
            blamed = False
            for covered, part, needs in self._parts.get(rule.tool, ()):
                fault = part.judge(arguments)
                if fault is None and any(arguments.get(name) is not None for name in needs):
                    if covered.kind != "limit":
                        yield Mark("policy", covered.place, PASSES)
                    elif why is None:
                        yield Mark("policy", covered.place, _DOES["limit"])
                elif fault is not None and fault == why:
                    blamed = True
                    yield Mark("policy", covered.place, REFUSES)
            extra = f"constraints.{rule.tool}.extra"
            if extra in self.rules and (why is None or not blamed):
                yield Mark("policy", extra, PASSES if why is None else REFUSES)
            if why is not None:
                return

    def redactions(self, tool: str, transform: Transform, change: Callable[[Transform], bool]) -> list[Mark]:
        """The paths of a tool's transform by which alone something would change."""
        return [
            Mark("transforms", f"transforms.{transform.tool}.redact.{path}", _DOES["transform"])
            for path in self._config.transforms[transform.tool].redact
            if change(Transform(tool, (path,), pass_unreadable=True))
        ]


def found_constraint(opinion: Opinion) -> bool:
    """Whether a rule on arguments is what refuses."""
    return isinstance(opinion, Deny) and opinion.reason.code == "constraint"


def means(word: str, place: str) -> bool:
    """Whether people mean the place by the word: it is all of it, or a part of it at its dots."""
    return f".{word}." in f".{place}."


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: `1` is neither `true` nor `1.0`."""
    return msgspec.json.encode(one, order="sorted") == msgspec.json.encode(other, order="sorted")
