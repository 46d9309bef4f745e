"""A call passes only on Cedar's plain `Allow` without a single error; whatever else comes back is a refusal.

Cedar itself passes over a `forbid` that cannot be evaluated, which would allow; here any error refuses. Policies are
parsed once. They are kept in groups, by the server and method they can apply to and by the target that they compare
before anything can fail, so that a call is judged by the few that may concern it (`groups` has the rest of it).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from aegis_daemon.core.principal import Principal
from aegis_daemon.policy.context import Doubt, Facts, folded, folded_text
from aegis_daemon.policy.dialect import NAMED, Statement, read
from aegis_daemon.policy.entities import describe
from aegis_daemon.policy.groups import ERRING, FEW, Group, Key, Outcome, Piece
from aegis_daemon.policy.groups import members as members_of

_REMEMBERED: Final = 4096
_LONGEST: Final = 256
"""Characters of a target that is remembered."""
_PRINCIPALS: Final = 512
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


class Engine:
    """The policies of one configuration. `attributes` are those of each agent, `servers` the configured backends."""

    def __init__(
        self,
        statements: Sequence[Statement],
        attributes: Mapping[str, Mapping[str, Any]],
        servers: Iterable[str],
    ) -> None:
        self._statements = (*statements, *read(OF_TASKS, "aegis"))
        self._members = members_of(self._statements)
        self._attributes = {agent: dict(facts) for agent, facts in attributes.items()}
        self._servers = frozenset(servers)
        self._named = frozenset[str]().union(*(one.servers or frozenset() for one in self._statements))
        self._of_target: dict[str, list[int]] = {}
        for number, one in enumerate(self._statements):
            for target in one.targets or ():
                self._of_target.setdefault(target, []).append(number)
        self._alike: dict[str, list[str]] = {}
        for target in self._of_target:
            self._alike.setdefault(folded_text(target), []).append(target)
        self._broad = [number for number, one in enumerate(self._statements) if one.targets is None]
        self._groups: dict[tuple[str, str, str | None], Group | None] = {}
        self._of_members: dict[tuple[int, ...], Group] = {}
        self._entities: dict[tuple[Any, ...], tuple[Any, Any, bool]] = {}
        self._known: dict[tuple[Any, ...], Ruling] = {}
        self._shown: dict[tuple[Any, ...], bool] = {}
        self.by_name = all(one.by_name for one in self._statements)
        self.reads = frozenset[str]().union(*(one.reads for one in self._statements))
        # Parsed now rather than by the first call. For all actions that no policy names the group is the same.
        actions = frozenset[str]().union(("",), *(one.actions or () for one in self._statements))
        for server in self._named | {""}:
            for action in actions:
                self._group(server, action, None)
        for target, members in self._of_target.items():
            if len(members) >= FEW:
                for server in self._named | {""}:
                    for action in actions:
                        self._group(server, action, target)
        for group in self._of_members.values():
            group.warm()

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
            members = tuple(
                number
                for number in among
                if self._applies(self._statements[number], action)
                # What holds for any server has a group of its own, lest each server's had a copy of it.
                and (server in servers if (servers := self._statements[number].servers) is not None
                     else not server or target is not None)
            )  # fmt: skip
            self._groups[key] = self._of(members)
        return self._groups[key]

    def _applies(self, one: Statement, action: str) -> bool:
        return one.actions is None or action in one.actions

    def _of(self, members: tuple[int, ...]) -> Group | None:
        """The group of these policies, the same wherever it is asked for."""
        if members and members not in self._of_members:
            self._of_members[members] = Group([self._members[number] for number in members])
        return self._of_members.get(members)

    # --- one call

    def judge(self, question: Question) -> Ruling:
        """Whether the call may go. Raises for faults, which the pipeline refuses."""
        groups = self.groups(question.server, question.action, question.target)
        if not groups:
            return _NONE
        key = (
            question.principal, question.server, question.action, question.primitive, question.target,
            question.direction,
        )  # fmt: skip
        if any(not group.by_name for group in groups):
            return self._judged(question, groups, key)
        known = self._known.get(key)
        if known is None:
            known = self._judged(question, groups, key)
            if len(question.target) <= _LONGEST:
                _remember(self._known, key, known)
        return known

    def _judged(self, question: Question, groups: tuple[Group, ...], key: Key) -> Ruling:
        made: dict[str, dict[str, Any] | None] = {}
        try:
            contexts = [_context(question, group, made) for group in groups]
            bare = [folded(context) if group.folds else {} for context, group in zip(contexts, groups, strict=True)]
        except Doubt as doubt:
            return Ruling(False, why=f"the policies cannot judge the call: {doubt}", doubt=str(doubt))
        exact, folds, same = self._principal(question.principal, question.server)
        if len(question.target) > _LONGEST:
            key = ()
        pairs: list[tuple[Group, Outcome]] = []
        again: list[Callable[[], Outcome] | None] = []
        for group, context, other in zip(groups, contexts, bare, strict=True):
            request = _request(question, context)
            differs = _differing(context, other) if group.folds else None
            second = _request(question, other) if differs else request
            for piece in group.concerned(context):
                pairs.append((group, piece.recall(key, False, partial(piece.ask, request, exact))))
                if differs is None or _alike(piece, differs, same):
                    again.append(None)
                else:
                    again.append(partial(piece.recall, key, True, partial(piece.ask, second, folds, fold=True)))
        ruling = _ruling(pairs)
        if not ruling.allowed or not any(again):
            return ruling
        folded_ruling = _ruling(
            [(group, outcome if ask is None else ask()) for (group, outcome), ask in zip(pairs, again, strict=True)]
        )
        if folded_ruling.allowed:
            return ruling
        why = f"{folded_ruling.why}, once case, width and escapes are set aside"
        return msgspec.structs.replace(folded_ruling, why=why)

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
            if len(target or "") <= _LONGEST:
                _remember(self._shown, key, known)
        return known

    def _possible(
        self, principal: Principal, server: str, action: str, primitive: str, target: str | None, direction: str
    ) -> bool:
        if target is None:
            every = self._of(
                tuple(
                    number
                    for number, one in enumerate(self._statements)
                    if (one.servers is None or server in one.servers) and self._applies(one, action)
                )
            )
            groups: tuple[Group, ...] = () if every is None else (every,)
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
            found = [group.possible(request, entities) for group in groups]
            if any(found) and None not in found:
                return True
        return False


_NONE = Ruling(False, why="no policy permits it")


def _remember(among: dict[tuple[Any, ...], Any], key: tuple[Any, ...], value: Any) -> None:
    if len(among) >= _REMEMBERED:
        among.clear()  # rather than to stay full of what somebody asked for once
    among[key] = value


def _differing(context: dict[str, Any], bare: dict[str, Any]) -> frozenset[str]:
    """What folding changed: parts of the context, and `.name` for each argument."""
    found = {part for part, value in context.items() if bare[part] != value}
    if "arguments" in found:
        other = bare["arguments"]
        found |= {f".{name}" for name, value in context["arguments"].items() if other[name] != value}
    return frozenset(found)


def _alike(piece: Piece, differs: frozenset[str], same: bool) -> bool:
    """Whether the piece says the same of a folded call; `same`: whether folding changed nothing of the entities."""
    if not piece.folds:
        return True
    if piece.changes or (piece.attributes and not same):
        return False
    if not differs:
        return True
    if not (piece.reads - {"arguments"}).isdisjoint(differs):
        return False
    if "arguments" not in piece.reads or "arguments" not in differs:
        return True
    return piece.names is not None and not any(f".{name}" in differs for name in piece.names)


def _context(question: Question, group: Group, made: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    """What the group is shown; `made` holds the facts that were looked up for it already."""
    context: dict[str, Any] = {
        "primitive": question.primitive,
        "target": question.target,
        "direction": question.direction,
    }
    if "arguments" in group.reads:
        arguments = question.arguments
        if type(arguments) is not dict:
            raise Doubt("the arguments are no object")
        context["arguments"] = group.looks.shown(arguments)
    for part, make in question.facts.items():
        if part in group.reads:
            if part not in made:
                made[part] = make()
            found = made[part]
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


def _ruling(pairs: Sequence[tuple[Group, Outcome]]) -> Ruling:
    """`passes`, with the reasons."""
    forbids = tuple(id for group, outcome in pairs for id in group.ids(outcome.forbids))
    if forbids:
        return Ruling(False, forbids, True, f"forbidden by {_listed(forbids)}")
    for group, outcome in pairs:
        if outcome.errors:
            numbers = [int(number) for number in ERRING.findall(outcome.errors[0])]
            return Ruling(False, group.ids(numbers), True, group.error(outcome.errors[0]))
        if outcome.decision not in ("Allow", "Deny"):
            return Ruling(False, why="the policies gave no decision")
    if not passes([outcome for _, outcome in pairs]):
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
