"""Policy: a call has to be allowed by the policies, where there are any, and by the rules on its tool's arguments.

Policies judge whatever is about something: tools, resources, prompts, completions and subscriptions on their way to a
server; sampling, elicitation and roots on their way to a client, and each root in the answer; what no policy permits
is refused. Lists are filtered by `visible`, which hides only what is refused whatever the arguments and whatever the
time. The methods that have neither a name nor a list (`initialize` and the like) are the lists' business alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import meanings
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import PASS, Claim, Deny, Opinion, Pass, Reason
from aegis_daemon.policy.cedar import Engine, Question, Ruling
from aegis_daemon.policy.context import Doubt, instant, undisguised
from aegis_daemon.policy.dialect import NAMED
from aegis_daemon.policy.rules import Rules
from aegis_daemon.policy.sql import ARGUMENTS, DEFAULT_DIALECTS, facts
from aegis_daemon.stages.acl import HIDDEN
from aegis_daemon.wire.methods import BadParams, Direction, Era, Rule, listened_resources

SEEN_BY: Final = {
    "tool": ("tools/call",),
    "resource": ("resources/read", "resources/subscribe"),
    "prompt": ("prompts/get",),
}
"""What may be done with an item of a list: it is shown if any of it may be allowed."""
_GOVERNED: Final = Rule.GOVERNED
Used = Callable[[Call, float], dict[str, Any] | None]
Unfit = Callable[[str, str], str]


class Looks(msgspec.Struct, frozen=True):
    """What calls of one name are judged by beyond it: parts of the context, and arguments, None for all of them."""

    parts: frozenset[str]
    arguments: frozenset[str] | None


class Policy:
    """`engine` judges by policies, None without any; `rules` by constraints on arguments.

    `wall` tells the time in seconds since the epoch, `used` what a call's limits have counted: who runs calls knows.
    `unfit` says what is wrong with the rules for a tool of a server, as far as that tool is known; "" for nothing.
    """

    name = "policy"

    def __init__(
        self,
        engine: Engine | None,
        rules: Rules,
        *,
        wall: Callable[[], float],
        used: Used | None = None,
        unfit: Unfit | None = None,
    ) -> None:
        self._engine = engine
        self._rules = rules
        self._wall = wall
        self._used = used
        self._unfit = unfit
        self.reads = engine.reads if engine is not None else frozenset()
        self.by_name = not rules and (engine is None or engine.by_name)

    def counting(self, used: Used) -> Policy:
        """The same, with `context.rate`."""
        return Policy(self._engine, self._rules, wall=self._wall, used=used, unfit=self._unfit)

    def fitting(self, unfit: Unfit) -> Policy:
        """The same, refusing tools that the rules for them do not fit."""
        return Policy(self._engine, self._rules, wall=self._wall, used=self._used, unfit=unfit)

    @property
    def rules(self) -> Rules:
        """The rules on arguments."""
        return self._rules

    def settled(self, call: Call) -> bool:
        """Whether no policy and no rule looks at more than the names of such a call (see `Pipeline.admit`)."""
        if self._engine is not None and not self._engine.by_name:
            return False
        return call.method != "tools/call" or not self._rules.of(call.backend, call.name or "")

    def looks(self, call: Call) -> Looks:
        """What judging such a call goes by."""
        if call.row.rule is not _GOVERNED:
            return Looks(frozenset(), frozenset())
        parts: set[str] = set()
        names: set[str] = set()
        whole = False
        for rule in self._rules.of(call.backend, call.name or "") if call.method == "tools/call" else ():
            parts.add("arguments")
            names |= rule.named
        try:
            questions = list(self._questions(call, 0.0)) if self._engine is not None else []
        except (BadParams, _Unreadable):
            return Looks(frozenset({"arguments"}), None)
        for *_, question, _also in questions:
            assert self._engine is not None
            for group in self._engine.groups(question.server, question.action, question.target):
                parts |= group.reads - NAMED
                if "sql" in group.reads:
                    names.update(self._sql_names(call.backend, question.target)[0])
                whole = whole or group.arguments is None
                names |= {path[0] for path in group.arguments or ()}
        return Looks(frozenset(parts), None if whole else frozenset(names))

    def decide(self, call: Call, now: float) -> Opinion:
        """Passes what the policies permit and no rule objects to, at the price of the rules' budgets."""
        if call.row.rule is not _GOVERNED:
            return PASS
        if self._unfit is not None and call.method == "tools/call":
            name = call.name or ""
            fault = self._unfit(call.backend, name)
            if fault and self.visible(call.principal, call.backend, "tool", name):
                return Deny(_unfitting(name, fault))
        if self._engine is not None:
            refusal = self._by_policies(self._engine, call, now)
            if refusal is not None:
                return refusal
        if call.method != "tools/call" or not self._rules:
            return PASS
        assert call.name is not None
        claims: tuple[Claim, ...] = ()
        for rule in self._rules.of(call.backend, call.name):
            arguments = call.arguments
            why = rule.judge(arguments)
            if why is not None:
                return Deny(
                    Reason(
                        "policy",
                        f"{why}, as the rules on this tool want it; not executed; change the argument",
                        code="constraint",
                        detail=f"`constraints.{rule.tool}`: {why}",
                    )
                )
            claims += rule.claims(call.principal.agent, arguments)
        return Pass(claims) if claims else PASS

    def _by_policies(self, engine: Engine, call: Call, now: float) -> Deny | None:
        try:
            for subject, name, question, also in self._questions(call, now):
                ruling = engine.judge(question)
                if _refuses(ruling, also):
                    hidden = subject in SEEN_BY and not self.visible(call.principal, call.backend, subject, name)
                    return Deny(_refused(call, subject, name, ruling, hidden=hidden))
        except BadParams as error:
            return Deny(Reason("params", str(error), code="bad_params"))
        except _Unreadable as unreadable:  # nobody can tell what it names
            return Deny(_refused(call, "resource", str(unreadable), _UNREADABLE, hidden=True))
        return None

    def why(self, call: Call, now: float) -> str:
        """What the policies permit a call by that passes; "" where none of them has a say."""
        return "; ".join(ruling.why for ruling in self.rulings(call, now))

    def rulings(self, call: Call, now: float) -> tuple[Ruling, ...]:
        """What the policies say of a call, one for each name of the thing it is about; () where they have no say."""
        if self._engine is None or call.row.rule is not _GOVERNED:
            return ()
        try:
            asked = [(self._engine.judge(question), also) for *_, question, also in self._questions(call, now)]
            return tuple(ruling for ruling, also in asked if not also or _refuses(ruling, also))
        except (BadParams, _Unreadable):
            return (_UNREADABLE,)

    def _questions(self, call: Call, now: float) -> Iterator[tuple[str, str, Question, bool]]:
        """What is asked of the policies about a call: kind and name of the thing, the question, and whether `also`.

        A resource is asked about under every name that it goes by, and `also` under those that only a careless server
        takes it for: then nothing but a refusal counts (`_refuses`). Raises `BadParams`, `_Unreadable`.
        """
        if call.name is not None:
            asked = [(call.method, call.subject or "", call.name, call.arguments)]
        elif call.method == "subscriptions/listen":
            uris = listened_resources(call.frame.params)
            asked = [("resources/subscribe", "resource", uri, {"uri": uri}) for uri in uris]
        else:
            asked = []
        for action, subject, name, arguments in asked:
            primitive = name if subject == "server_request" else subject
            for target, also in _spellings(name) if subject == "resource" else ((name, False),):
                yield subject, name, self._question(call, action, primitive, target, arguments, now), also

    def _question(self, call: Call, action: str, primitive: str, target: str, arguments: Any, now: float) -> Question:
        return Question(
            principal=call.principal,
            server=call.backend,
            action=action,
            primitive=primitive,
            target=target,
            direction=call.direction.value,
            arguments=arguments,
            facts={
                "sql": partial(self._sql, call.backend, target, arguments),
                "time": lambda: instant(self._wall()),
                "session": partial(_session, call),
                "rate": partial(_no_count if self._used is None else self._used, call, now),
            },
        )

    @property
    def judges_roots(self) -> bool:
        """Whether there are policies, which judge each root of a client."""
        return self._engine is not None

    def shows_root(self, call: Call, root: dict[str, Any], now: float) -> bool:
        """Whether a server may see one of the client's roots; `call` is its `roots/list`. Raises for faults."""
        return all(ruling.allowed for ruling in self.root_rulings(call, root, now))

    def root_rulings(self, call: Call, root: dict[str, Any], now: float) -> tuple[Ruling, ...]:
        """What the policies say of a root: as of a resource, for every name that it goes by. Its target is its URI."""
        if self._engine is None:
            return ()
        uri = root["uri"]
        if ":" not in uri:  # no URI, and maybe the target of the request itself
            return (_UNREADABLE,)
        try:
            names = _spellings(uri)
        except _Unreadable:
            return (_UNREADABLE,)
        asked = [
            (self._engine.judge(self._question(call, "roots/list", "roots", target, root, now)), also)
            for target, also in names
        ]
        return tuple(ruling for ruling, also in asked if not also or _refuses(ruling, also))

    def _sql(self, backend: str, tool: str, arguments: Any) -> dict[str, Any] | None:
        """What the SQL of a call does; None where it brings none. More than one text counts for all it does.

        Raises `Doubt` where that cannot be told, or an argument may be taken for one that holds SQL.
        """
        if type(arguments) is not dict:
            raise Doubt("the arguments are no object")
        names, dialects, allowed = self._sql_names(backend, tool)
        undisguised(arguments, names)
        there = [one for one in names if arguments.get(one) is not None]
        if not there:
            return None
        texts = [arguments[one] for one in there]
        found = [facts(text, dialects) for text in texts if type(text) is str]
        return {
            "argument": ",".join(there),
            "parsed": len(found) == len(texts) and all(one.parsed for one in found),
            "statements": sum(one.statements for one in found),
            "operations": sorted({operation for one in found for operation in one.operations}),
            "functions": sorted({name for one in found for name in one.functions} - allowed),
        }

    def _sql_names(self, backend: str, tool: str) -> tuple[tuple[str, ...], tuple[str, ...], frozenset[str]]:
        """The arguments that hold a tool's SQL, its dialects, and the functions that are allowed."""
        names: tuple[str, ...] = ARGUMENTS
        dialects: tuple[str, ...] = DEFAULT_DIALECTS
        allowed = frozenset[str]()
        for rule in self._rules.of(backend, tool):
            if rule.sql is not None:
                names = (rule.sql.argument,) if rule.sql.argument is not None else names
                dialects = rule.sql.dialects or dialects
                allowed |= {function.lower() for function in rule.sql.functions}
        return names, dialects, allowed

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        """Whether some call of it may be allowed. A template is judged as any of the resources that it stands for."""
        engine = self._engine
        actions = SEEN_BY.get(subject)
        if engine is None or actions is None:
            return True
        target = None if subject == "resource" and "{" in name else name
        direction = Direction.TO_SERVER.value
        return any(engine.possible(principal, backend, action, subject, target, direction) for action in actions)

    def labels(self, principal: Principal, backend: str, tool: str) -> tuple[str, ...]:
        """None: how to get round a rule is not for the agent to read."""
        return ()


_UNREADABLE: Final = Ruling(False, why="the URI cannot be read")


class _Unreadable(Exception):
    """A URI that nobody can tell the meaning of."""


def _spellings(uri: str) -> tuple[tuple[str, bool], ...]:
    """The URI as it is, as it is meant, and `also` as whatever else it may be taken for. Raises `_Unreadable`."""
    try:
        plain, *others = meanings(uri)
    except ValueError as error:
        raise _Unreadable(uri) from error
    meant = (uri,) if plain == uri else (uri, plain)
    return tuple((one, False) for one in meant) + tuple((one, True) for one in others if one != uri)


def _refuses(ruling: Ruling, also: bool) -> bool:
    """Whether the call is refused by it; what nobody forbids need not be permitted under a careless server's name."""
    return not ruling.allowed and (not also or ruling.forbidden or bool(ruling.doubt))


def _session(call: Call) -> dict[str, Any]:
    return {"id": call.session, "era": "modern" if call.era is Era.MODERN else "legacy"}


def _no_count(call: Call, now: float) -> dict[str, Any] | None:
    return None


def _unfitting(name: str, fault: str) -> Reason:
    text = (
        f"the rules for the tool `{name[:200]}` have a fault, so it is refused; not executed; do not repeat it before "
        "a person has looked at it"
    )
    return Reason("policy", text, code="policy_fault", detail=f"policy fault: {fault}"[:1000])


def _refused(call: Call, subject: str, name: str, ruling: Ruling, *, hidden: bool) -> Reason:
    """What is hidden reads as if it did not exist; else the text says whether the arguments are at fault."""
    detail = f"{ruling.why} (`{call.method}` of `{name[:200]}` on `{call.backend}`)"
    if subject == "server_request":
        text, code = f"the client does not accept `{call.method}` from this server", "server_request_not_allowed"
    elif hidden:
        text, code = f"the {subject} `{name[:200]}` {HIDDEN}", "not_allowed"
    elif ruling.doubt:
        text, code = f"{ruling.doubt}; not executed; change it and call again", "not_judged"
    else:
        text, code = f"a policy does not allow this call of the {subject} `{name[:200]}`; not executed", "policy_denied"
    policy = ", ".join(ruling.ids[:3]) if code == "policy_denied" else ""
    return Reason("policy", text, code=code, detail=detail, policy=policy)
