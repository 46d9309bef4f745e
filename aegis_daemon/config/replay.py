"""What a configuration would decide of recorded calls, beside what was decided of them then.

A recorded call goes through the same gates as a new one, at the time it was made, as in mode `enforce`. What the log no
longer has as it was (erased, redacted) is never guessed: where a rule looks at it, the answer is `unknown`. Limits,
budgets over time, lanes and pauses are not replayed, nor a rule that looks at them; pins stand as they stood.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from aegis_daemon.config.load import digest
from aegis_daemon.config.runtime import build
from aegis_daemon.config.schema import Config
from aegis_daemon.core.call import Call
from aegis_daemon.core.past import Past, shortened
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Deny, Hold
from aegis_daemon.stages.policy import Looks, Policy
from aegis_daemon.wire.jsonrpc import WireFault, encode, parse, read
from aegis_daemon.wire.methods import TO_CLIENT, TO_SERVER, BadParams, Direction, Era, Method, Rule, subject_of

ALLOW: Final = "allow"
ASK: Final = "ask"
DENY: Final = "deny"
UNKNOWN: Final = "unknown"

OBSERVED: Final = "observe"
"""The stage of what passed in mode `observe` alone."""
MOST_GROUPS: Final = 10_000
_REMEMBERED: Final = 32_768
_ASKED: Final = frozenset({"approval", "withdrawn", "replay"})
_MARKS: Final = ("[secret:", "[redacted]", "[withheld:")
"""What stands in the log in place of what was sent."""
_WRAPPED: Final = frozenset({"task", "inputResponses", "requestState"})
"""What the protocol lets a tool's call bring along beside its arguments."""
_BY_NAME: Final = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "resources/subscribe": "uri",
    "resources/unsubscribe": "uri",
}
"""Methods whose name tells what they are about → the parameter that holds it."""
_NOTHING: Final = Looks(frozenset(), frozenset())
_BLIND: Final = "a rule looks at arguments that are not in the log as they were"
_COUNTED: Final = "a policy looks at what the limits have counted"
_DEEPEST: Final = 100


class Then(msgspec.Struct, frozen=True):
    """What was decided: `allow`, `ask` or `deny`, and the stage that refused; `observe` for what passed by the mode."""

    verdict: str
    stage: str = ""


class Now(msgspec.Struct, frozen=True):
    """What would be decided: `allow`, `ask`, `deny` or `unknown`; the stage that refuses; the rule, or why unknown."""

    verdict: str
    stage: str = ""
    rule: str = ""


def then(past: Past) -> Then | None:
    """What the rules decided; None where something else ended the call: a limit, a pause, a fault."""
    if past.exec_status == "denied":
        if past.stage == "policy":
            return Then(DENY, _policy_stage(past.policy_id))
        if past.stage in ("acl", "pin"):
            return Then(DENY, past.stage)
        # A server that was gone says nothing of the rules, unless a person was being asked meanwhile.
        asked = past.stage in _ASKED or (past.stage == "forward" and past.approval_result == "pending")
        return Then(ASK) if asked else None
    if past.would:
        return Then(ALLOW, OBSERVED)
    return Then(ALLOW if past.approval_result in ("", "not_required") else ASK)


def _policy_stage(rule: str) -> str:
    return "constraint" if rule.startswith("`constraints.") else "policy"


class Judge:
    """Decides recorded calls by one configuration."""

    def __init__(self, config: Config) -> None:
        self._now = 0.0
        enforced = config.model_copy(update={"mode": "enforce"})
        self.runtime = build(enforced, digest(config), wall=lambda: self._now)
        gate = self.runtime.pipeline.gate("policy")
        self._policy = gate if isinstance(gate, Policy) else None
        self._looks: dict[tuple[str, str, str, str], Looks] = {}
        self._known: dict[tuple[str, ...], Now] = {}

    def knows(self, past: Past) -> bool:
        """Whether agent and backend are configured."""
        return past.agent_id in self.runtime.agents and past.backend_id in self.runtime.backends

    def judge(self, past: Past) -> Now:
        """What would be decided of this call. Never raises."""
        who = (past.agent_id, past.backend_id, past.method, past.tool_name)
        looks = self._looks.get(who)
        key = None if looks is None else _key(past, who, looks)
        if key is not None:
            known = self._known.get(key)
            if known is not None:
                return known
        self._now = past.ts / 1e6
        decided, looks = self._judged(past)
        if looks is None or past.tool_name == "":
            return decided  # a subscription to many things is judged by each of them
        if len(self._looks) >= _REMEMBERED:
            self._looks.clear()
        self._looks[who] = looks
        key = _key(past, who, looks)
        if key is not None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = decided
        return decided

    def _judged(self, past: Past) -> tuple[Now, Looks | None]:
        readings = list(_readings(past))
        if not readings:
            return Now(UNKNOWN, rule="the log does not tell what the call was about"), None
        found = []
        looks: Looks | None = None
        for direction, row, params, altered in readings:
            call = self._call(past, direction, row, params)
            if call is None:
                continue
            looks = self._policy.looks(call) if self._policy is not None else _NOTHING
            found.append(self._decided(call, looks, altered))
        if not found:
            return Now(UNKNOWN, rule="the log does not tell what the call was about"), None
        if any(one.verdict != found[0].verdict for one in found):
            return Now(UNKNOWN, rule="the log can be read in two ways"), looks
        return found[0], looks

    def _call(self, past: Past, direction: Direction, row: Method, params: dict[str, Any]) -> Call | None:
        try:
            frame = parse(encode({"jsonrpc": "2.0", "id": 0, "method": row.name, "params": params}))
            subject, name = subject_of(row, frame.params)
        except (WireFault, BadParams, ValueError, RecursionError):
            return None
        if shortened(name or "") != past.tool_name:  # of one that the log has cut nobody knows the whole
            return None
        rule = self.runtime.agents.get(past.agent_id)
        principal = rule.principal if rule is not None else Principal(past.agent_id)
        era = Era.MODERN if past.era == "modern" else Era.LEGACY
        backend = past.backend_id
        return Call(past.call_id, 0, past.session, principal, direction, row, subject, name, backend, era, frame)

    def _decided(self, call: Call, looks: Looks, altered: frozenset[str] | None) -> Now:
        """`altered` are the arguments that are not what they were; None: nobody knows any of them."""
        if altered is None:
            blind = call.name is None or not looks.parts.isdisjoint(("arguments", "sql"))
        else:
            blind = bool(altered) and (looks.arguments is None or not looks.arguments.isdisjoint(altered))
        if blind or "rate" in looks.parts:
            return self._in_doubt(call, _BLIND if blind else _COUNTED)
        verdict = self.runtime.pipeline.admit(call, 0.0)
        if isinstance(verdict, Deny):
            return _refused(verdict)
        return Now(ASK, rule=verdict.ask.rule) if isinstance(verdict, Hold) else Now(ALLOW)

    def _in_doubt(self, call: Call, doubt: str) -> Now:
        """Refused where that is certain all the same: by a list, or by a policy that no arguments can satisfy."""
        try:
            for gate in self.runtime.pipeline.gates:
                if gate.by_name:
                    opinion = gate.decide(call, 0.0)
                    if isinstance(opinion, Deny):
                        return _refused(opinion)
                elif call.name is not None and not gate.visible(
                    call.principal, call.backend, call.subject or "", call.name
                ):
                    return Now(DENY, gate.name, "refused whatever the arguments")
                else:
                    break
        except Exception as error:
            return Now(UNKNOWN, rule=f"the call cannot be judged ({type(error).__name__})")
        return Now(UNKNOWN, rule=doubt)


def _refused(verdict: Deny) -> Now:
    reason = verdict.reason
    stage = "constraint" if reason.code == "constraint" else reason.stage
    return Now(DENY, stage, reason.detail or reason.text)


def _key(past: Past, who: tuple[str, str, str, str], looks: Looks) -> tuple[str, ...] | None:
    """What an answer holds for; None where it holds for this one call alone."""
    if "time" in looks.parts:
        return None
    key: tuple[str, ...] = who
    if "session" in looks.parts:
        key = (*key, past.session, past.era)
    if past.method not in _BY_NAME or looks.parts or looks.arguments is None or looks.arguments:
        return (*key, past.arguments_hash if past.arguments is not None else "")
    return key


# --- what the log has of a call


def contents(past: Past) -> tuple[list[Any], bool]:
    """What a call's arguments may have been, most likely first, and whether they are there as they were at all.

    A tool's call may bring more than arguments along, and is then recorded as an object that holds them.
    """
    try:
        found = read(past.arguments) if past.arguments is not None else _MARKS[0]
    except WireFault:
        return [], False
    if type(found) is str and altered(found):
        return [], False
    if past.method != "tools/call" or type(found) is not dict or "arguments" not in found or len(found) == 1:
        return [found], True
    if _WRAPPED.issuperset(found.keys() - {"arguments"}):
        return [found["arguments"], found], True
    return [found, found["arguments"]], True


def altered(value: Any, depth: int = 0) -> bool:
    """Whether something in it is not what was sent; so is what only looks like that, and what is too deep to tell."""
    if type(value) is str:
        return any(mark in value for mark in _MARKS)
    if type(value) is dict:
        return depth > _DEEPEST or any(altered(key) or altered(item, depth + 1) for key, item in value.items())
    return type(value) is list and (depth > _DEEPEST or any(altered(item, depth + 1) for item in value))


def altered_names(arguments: Any) -> frozenset[str] | None:
    """The arguments that are not what they were; None where that may be any of them."""
    if type(arguments) is not dict:
        return None if altered(arguments) else frozenset()
    if any(altered(name) for name in arguments):
        return None
    return frozenset(name for name, value in arguments.items() if altered(value))


def _readings(past: Past) -> Iterable[tuple[Direction, Method, dict[str, Any], frozenset[str] | None]]:
    """Each way to read the record: where it went, its parameters, and which arguments are not what they were."""
    found, there = contents(past)
    for direction, table in ((Direction.TO_SERVER, TO_SERVER), (Direction.TO_CLIENT, TO_CLIENT)):
        row = table.get(past.method)
        if row is None or row.rule is Rule.PING:
            continue
        if not there:
            key = _BY_NAME.get(past.method)
            if key is not None or row.subject == "server_request":
                yield direction, row, {key: past.tool_name} if key is not None else {}, None
        elif past.method == "tools/call":
            for arguments in found:
                yield direction, row, {"name": past.tool_name, "arguments": arguments}, altered_names(arguments)
        elif type(found[0]) is dict:
            names = altered_names(found[0])
            if names is None or not names.isdisjoint((row.key or "", "ref")):
                names = None
            params = found[0] if names is not None else {_BY_NAME.get(past.method, ""): past.tool_name}
            yield direction, row, params, names


# --- many calls


class Change(msgspec.Struct):
    """Calls that would be decided alike and otherwise than they were; `now` is `unknown` where nobody can tell."""

    agent_id: str
    backend_id: str
    method: str
    tool_name: str
    then: str
    then_stage: str
    now: str
    now_stage: str
    rule: str
    calls: int
    call_id: str
    """the newest"""
    ts: int
    """when that was made, in microseconds since the epoch"""


class Tally:
    """What `Judge` says of one call after the other, counted. Holds at most `MOST_GROUPS` groups."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._groups: dict[tuple[str, ...], Change] = {}
        self.calls = 0
        """that were compared"""
        self.as_before = 0
        self.refused = 0
        self.asked = 0
        self.allowed = 0
        self.unknown = 0
        self.left_out = 0
        """ended by a limit, a pause or a fault, which are not replayed"""
        self.strangers = 0
        """of agents and backends that are not configured; counted above as well"""
        self.ungrouped = 0
        """counted above, and in no group"""

    @property
    def changed(self) -> int:
        """How many would be decided otherwise."""
        return self.refused + self.asked + self.allowed

    def add(self, past: Past) -> Change | None:
        """Counts one call; itself as a change, where it is one or may be."""
        was = then(past)
        if was is None:
            self.left_out += 1
            return None
        self.calls += 1
        if not self._judge.knows(past):
            self.strangers += 1
        now = self._judge.judge(past)
        if past.stage == "pin" and now.verdict != DENY:  # whatever the rules say, what a server had changed stops it
            now = Now(DENY, "pin", past.policy_id)
        if now.verdict == was.verdict:
            self.as_before += 1
            return None
        if now.verdict == DENY:
            self.refused += 1
        elif now.verdict == ASK:
            self.asked += 1
        elif now.verdict == ALLOW:
            self.allowed += 1
            now = Now(ALLOW, rule=f"no longer: {past.policy_id}" if past.policy_id else "")
        else:
            self.unknown += 1
        return self._grouped(past, was, now)

    def _grouped(self, past: Past, was: Then, now: Now) -> Change:
        one = Change(
            past.agent_id, past.backend_id, past.method, past.tool_name, was.verdict, was.stage, now.verdict, now.stage,
            now.rule, 1, past.call_id, past.ts,
        )  # fmt: skip
        key = (*(str(getattr(one, name)) for name in one.__struct_fields__[:9]),)
        group = self._groups.get(key)
        if group is not None:
            group.calls += 1
        elif len(self._groups) < MOST_GROUPS:
            self._groups[key] = msgspec.structs.replace(one)
        else:
            self.ungrouped += 1
        return one

    def changes(self) -> list[Change]:
        """The groups: what would be refused first, what nobody can tell last, the largest first among equals."""
        order = (DENY, ASK, ALLOW, UNKNOWN)
        return sorted(self._groups.values(), key=lambda one: (order.index(one.now), -one.calls, one.call_id))
