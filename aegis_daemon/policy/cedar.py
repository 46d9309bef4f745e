"""A call passes only on Cedar's plain `Allow` without a single error; whatever else comes back is a refusal.

Cedar itself passes over a `forbid` that cannot be evaluated, which would allow; here any error refuses. Policies are
parsed once. They are kept in groups, by the server and method they can apply to and by the target that they compare
before anything can fail, so that a call is judged by the few that may concern it; Cedar's decision over a set is the
sum of those over its parts (a permit in one of them and no forbid in any), which is what `tests/policy` compares.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from aegis_daemon.core.principal import Principal
from aegis_daemon.policy.context import (
    Doubt,
    Facts,
    check,
    folded,
    folded_est,
    folded_text,
    shown,
    takes_instants,
)
from aegis_daemon.policy.dialect import NAMED, Path, Statement, read
from aegis_daemon.policy.entities import describe

_REMEMBERED: Final = 4096
_PRINCIPALS: Final = 512
_ERRING = re.compile(r"policy `([0-9]+)`")
_UNKNOWN: Final = {"__extn": {"fn": "unknown", "arg": "unknown"}}

OF_TASKS: Final = """
@id("aegis.tasks") permit(principal, action in [
    Action::"tasks/get", Action::"tasks/cancel", Action::"tasks/result", Action::"tasks/update", Action::"tasks/list"
], resource);
"""
"""A task is a call that was judged when it was made, and belongs to who made it; a policy may still forbid more."""


class Ruling(msgspec.Struct, frozen=True):
    """What the policies say: `ids` of those that decided, and why not, for the log."""

    allowed: bool
    ids: tuple[str, ...] = ()
    forbidden: bool = False
    """by a policy that says so, and not only for want of one that permits"""
    why: str = ""
    doubt: str = ""
    """what is the matter with the call itself, for its sender"""


class Question(msgspec.Struct, frozen=True):
    """One call, as policies are asked about it. `facts` makes the parts of the context that not every policy reads."""

    principal: Principal
    server: str
    action: str
    primitive: str
    target: str
    direction: str
    arguments: Any
    facts: Mapping[str, Facts]


class Outcome(msgspec.Struct, frozen=True):
    """What one set of policies says: numbers of the policies that permit and forbid, and what could not be judged."""

    decision: str
    permits: tuple[int, ...]
    forbids: tuple[int, ...]
    errors: tuple[str, ...]


class Group:
    """Policies that are asked together."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements = tuple(statements)
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
        self.pairs = frozenset(pair for one in statements for pair in one.pairs)
        # What else a policy sees is Aegis's own or the configuration's, and has one spelling. A name is the caller's:
        # a server may take `PAY` for `pay`.
        spelt = not self.reads.isdisjoint(("arguments", "target"))
        self.folds = spelt and not any(takes_instants(one.est) for one in statements)
        ests = [one.est for one in statements]
        self._exact = _parsed(ests)
        changed = [_folded(est) for est in ests] if self.folds else ests
        self.unchanged = changed == ests
        self._folded = self._exact if self.unchanged else _parsed(changed)

    def ask(self, request: dict[str, Any], entities: Any, *, fold: bool = False, schema: Any = None) -> Outcome:
        """Cedar's own answer. A `schema` tells it what the values of the context are."""
        import cedarpy

        result = cedarpy.is_authorized(request, self._folded if fold else self._exact, entities, schema)
        return self._outcome(result.decision.value, result.diagnostics.reasons, result.diagnostics.errors)

    def ask_partly(self, request: dict[str, Any], entities: Any) -> Outcome:
        """The same where parts of the context are unknown: `permits` are those that may permit."""
        import cedarpy

        result = cedarpy.is_authorized_partial(request, self._exact, entities)
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
        effects = {number: self.statements[number].effect for number in numbers}
        return Outcome(
            decision,
            tuple(number for number in numbers if effects[number] == "permit"),
            tuple(number for number in numbers if effects[number] == "forbid"),
            tuple(errors),
        )

    def ids(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """The names of these policies."""
        return tuple(self.statements[number].id for number in numbers)

    def error(self, message: str) -> str:
        """Cedar's message, with the policy's name."""
        return _ERRING.sub(lambda match: f"policy `{self.statements[int(match[1])].id}`", message)[:300]


class Engine:
    """The policies of one configuration. `attributes` are those of each agent, `servers` the configured backends."""

    def __init__(
        self,
        statements: Sequence[Statement],
        attributes: Mapping[str, Mapping[str, Any]],
        servers: Iterable[str],
    ) -> None:
        self._statements = (*statements, *read(OF_TASKS, "aegis"))
        self._attributes = {agent: dict(facts) for agent, facts in attributes.items()}
        self._servers = frozenset(servers)
        self._named = frozenset[str]().union(*(one.servers or frozenset() for one in self._statements))
        self._of_target: dict[str, list[Statement]] = {}
        for one in self._statements:
            for target in one.targets or ():
                self._of_target.setdefault(target, []).append(one)
        self._alike: dict[str, list[str]] = {}
        for target in self._of_target:
            self._alike.setdefault(folded_text(target), []).append(target)
        self._broad = tuple(one for one in self._statements if one.targets is None)
        self._groups: dict[tuple[str, str, str | None], Group | None] = {}
        self._entities: dict[tuple[Any, ...], tuple[Any, Any, bool]] = {}
        self._known: dict[tuple[Any, ...], Ruling] = {}
        self._shown: dict[tuple[Any, ...], bool] = {}
        self.by_name = all(one.by_name for one in self._statements)
        self.reads = frozenset[str]().union(*(one.reads for one in self._statements))
        for server in self._named | {""}:
            self._group(server, "tools/call", None)  # parsed now rather than by the first call

    def groups(self, server: str, action: str, target: str) -> tuple[Group, ...]:
        """Those that may have a say: the policies for any server, for this one, and for this target."""
        known = server if server in self._named else ""
        found = [self._group("", action, None), self._group(known, action, None) if known else None]
        if self._alike:
            # Also those for a target that is this one once case and escapes are set aside: see `_judged`.
            found += [self._group(known, action, one) for one in self._alike.get(folded_text(target), ())]
        return tuple(group for group in found if group is not None)

    def _group(self, server: str, action: str, target: str | None) -> Group | None:
        key = (server, action, target)
        if key not in self._groups:
            among = self._broad if target is None else self._of_target[target]
            found = [
                one
                for one in among
                if (one.actions is None or action in one.actions)
                # What holds for any server has a group of its own, lest each server's had a copy of it.
                and (server in one.servers if one.servers is not None else not server or target is not None)
            ]
            self._groups[key] = Group(found) if found else None
        return self._groups[key]

    # --- one call

    def judge(self, question: Question) -> Ruling:
        """Whether the call may go. Raises for faults, which the pipeline refuses."""
        groups = self.groups(question.server, question.action, question.target)
        if not groups:
            return _NONE
        if any(not group.by_name for group in groups):
            return self._judged(question, groups)
        key = (
            question.principal, question.server, question.action, question.primitive, question.target,
            question.direction,
        )  # fmt: skip
        known = self._known.get(key)
        if known is None:
            known = self._judged(question, groups)
            if len(self._known) < _REMEMBERED and len(question.target) <= 256:
                self._known[key] = known
        return known

    def _judged(self, question: Question, groups: tuple[Group, ...]) -> Ruling:
        try:
            contexts = [_context(question, group) for group in groups]
            bare = [folded(context) if group.folds else {} for context, group in zip(contexts, groups, strict=True)]
        except Doubt as doubt:
            return Ruling(False, why=f"the policies cannot judge the call: {doubt}", doubt=str(doubt))
        exact, folds, same = self._principal(question.principal, question.server)
        requests = [_request(question, context) for context in contexts]
        outcomes = [group.ask(request, exact) for group, request in zip(groups, requests, strict=True)]
        ruling = _ruling(groups, outcomes)
        if not ruling.allowed:
            return ruling
        second = False
        for index, group in enumerate(groups):
            if not group.folds or (group.unchanged and same and bare[index] == contexts[index]):
                continue
            second = True
            outcomes[index] = group.ask(_request(question, bare[index]), folds, fold=True)
        if not second:
            return ruling
        again = _ruling(groups, outcomes)
        if again.allowed:
            return ruling
        return msgspec.structs.replace(again, why=f"{again.why}, once case, width and escapes are set aside")

    def _principal(self, principal: Principal, server: str) -> tuple[Any, Any, bool]:
        known = server if server in self._servers else ""
        key = (principal.agent, principal.tenant, principal.roles, "" if known else server)
        found = self._entities.get(key)
        if found is None:
            import cedarpy

            attributes = self._attributes.get(principal.agent, {})
            servers = self._servers if known else self._servers | {server}
            texts = [describe(principal, attributes, servers, fold=fold) for fold in (False, True)]
            exact, bare = (cedarpy.Entities.from_json_str(text) for text in texts)
            found = (exact, bare, texts[0] == texts[1])
            if len(self._entities) >= _PRINCIPALS:
                self._entities.clear()
            self._entities[key] = found
        return found

    # --- what may be seen

    def possible(
        self, principal: Principal, server: str, action: str, primitive: str, target: str | None, direction: str
    ) -> bool:
        """Whether some call like this may be allowed: with other arguments, at another time. `target` None: any."""
        key = (principal, server, action, primitive, target, direction)
        known = self._shown.get(key)
        if known is None:
            known = self._possible(principal, server, action, primitive, target, direction)
            if len(self._shown) < _REMEMBERED and len(target or "") <= 256:
                self._shown[key] = known
        return known

    def _possible(
        self, principal: Principal, server: str, action: str, primitive: str, target: str | None, direction: str
    ) -> bool:
        if target is None:
            among = self._statements
            groups: tuple[Group, ...] = (
                Group([
                    one
                    for one in among
                    if (one.servers is None or server in one.servers) and (one.actions is None or action in one.actions)
                ]),
            )  # fmt: skip
        else:
            groups = self.groups(server, action, target)
        entities = self._principal(principal, server)[0]
        reads = frozenset[str]().union(*(group.reads for group in groups))
        known = {"primitive": primitive, "direction": direction, "target": _UNKNOWN if target is None else target}
        # A call may come with SQL or without, and `has` tells the two apart: either may be what is allowed.
        for parts in (reads - NAMED, reads - NAMED - {"sql"}) if "sql" in reads else (reads - NAMED,):
            context = msgspec.json.encode({**known, **dict.fromkeys(parts, _UNKNOWN)}).decode()
            request = {
                "principal": _uid("Agent", principal.agent),
                "action": _uid("Action", action),
                "resource": _uid("Server", server),
                "context": context,
            }
            outcomes = [group.ask_partly(request, entities) for group in groups]
            if any(one.permits for one in outcomes) and not any(one.forbids or one.errors for one in outcomes):
                return True
        return False


_NONE = Ruling(False, why="no policy permits it")


def _parsed(ests: Sequence[dict[str, Any]]) -> Any:
    import cedarpy

    whole = {
        "staticPolicies": {str(index): est for index, est in enumerate(ests)},
        "templates": {},
        "templateLinks": [],
    }
    return cedarpy.PolicySet.from_json_str(msgspec.json.encode(whole).decode())


def _folded(est: dict[str, Any]) -> dict[str, Any]:
    conditions = [{**one, "body": folded_est(one["body"])} for one in est["conditions"]]
    return {**est, "conditions": conditions}


def _context(question: Question, group: Group) -> dict[str, Any]:
    context: dict[str, Any] = {
        "primitive": question.primitive,
        "target": question.target,
        "direction": question.direction,
    }
    if "arguments" in group.reads:
        arguments = question.arguments
        if type(arguments) is not dict:
            raise Doubt("the arguments are no object")
        check(arguments, group.paths, group.kinds, group.pairs)
        context["arguments"] = shown(arguments, group.arguments)
    for part, made in question.facts.items():
        if part in group.reads:
            found = made()
            if found is not None:
                context[part] = found
    return context


def _request(question: Question, context: dict[str, Any]) -> dict[str, Any]:
    return {
        "principal": {"type": "Agent", "id": question.principal.agent},
        "action": {"type": "Action", "id": question.action},
        "resource": {"type": "Server", "id": question.server},
        "context": msgspec.json.encode(context).decode(),
    }


def passes(outcomes: Sequence[Outcome]) -> bool:
    """Allowed by one set of policies at least, forbidden by none, and nothing that could not be judged."""
    return any(one.decision == "Allow" and one.permits for one in outcomes) and not any(
        one.forbids or one.errors or one.decision not in ("Allow", "Deny") for one in outcomes
    )


def _ruling(groups: Sequence[Group], outcomes: Sequence[Outcome]) -> Ruling:
    """`passes`, with the reasons."""
    pairs = list(zip(groups, outcomes, strict=True))
    forbids = tuple(id for group, outcome in pairs for id in group.ids(outcome.forbids))
    if forbids:
        return Ruling(False, forbids, True, f"forbidden by {_listed(forbids)}")
    for group, outcome in pairs:
        if outcome.errors:
            numbers = [int(number) for number in _ERRING.findall(outcome.errors[0])]
            return Ruling(False, group.ids(numbers), True, group.error(outcome.errors[0]))
        if outcome.decision not in ("Allow", "Deny"):
            return Ruling(False, why="the policies gave no decision")
    if not passes(outcomes):
        return _NONE
    permits = tuple(id for group, outcome in pairs if outcome.decision == "Allow" for id in group.ids(outcome.permits))
    return Ruling(True, permits, why=f"permitted by {_listed(permits)}")


def _listed(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return ", ".join(f"`{id}`" for id in ids[:3]) + more


_ESCAPES: Final = {"\t": r"\t", "\r": r"\r", "\n": r"\n", "\0": r"\0", "'": r"\'", '"': r"\"", "\\": r"\\"}


def _uid(kind: str, name: str) -> str:
    """As Cedar writes it itself, which is the only way it reads it where parts are unknown."""
    marks = (unicodedata.category(char) in ("Mn", "Me") for char in name)
    text = "".join(
        _ESCAPES.get(char) or (char if char.isprintable() and not mark else f"\\u{{{ord(char):x}}}")
        for char, mark in zip(name, marks, strict=True)
    )
    return f'{kind}::"{text}"'
