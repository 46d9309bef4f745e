"""Calls that the configuration forbids, told from its words alone and never by asking what judges calls.

One or more for each kind of rule that there is, and the person's own (`proof`): whoever drives them through the real
thing sees whether it refuses what it must. A pattern gives a name that it matches, a constraint arguments that it does
not take, a policy that forbids a call to which Cedar itself, asked about that policy alone, says that it applies. What
no call is found for is named in `unseen`. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Final

import msgspec

from aegis_daemon.config.schema import Access, Config, Constraint, called
from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.policy.alone import Alone, People
from aegis_daemon.policy.dialect import NAMED, Est, Path, Statement, attribute, literal
from aegis_daemon.wire.jsonrpc import encode, parse
from aegis_daemon.wire.methods import SERVER_REQUESTS, TO_CLIENT, TO_SERVER, Direction, Era, subject_of

NOBODY: Final = "aegis-proof"
"""Stands for what nobody has configured; something is added where somebody has."""
EACH: Final = 8
"""Entries of one list that are tried."""
MOST: Final = 1000
"""Calls of one kind."""
TRIALS: Final = 48
"""Calls that are tried for one policy, at some 50 us each; most of those that name a server and a tool need one."""
ALL_TRIALS: Final = 6000
"""For all policies together."""
_DROP: Final = "DROP TABLE aegis_proof"
_PIECE: Final = re.compile(r"\*|\?|\[(!?)(\]?[^\]]*)\]|.", re.DOTALL)
_METHODS: Final = (("tools/call", "tool"), ("resources/read", "resource"), ("prompts/get", "prompt"))
_JUDGED_BY: Final = NAMED | {"arguments"}
"""What the policies may look at that are tried."""


class Canary(msgspec.Struct, frozen=True):
    """A call that must be refused: `rule` is the setting that says so, `stage` the gate that goes by it, "" any."""

    kind: str
    rule: str
    stage: str
    call: Call
    heavy: bool = False
    """judged the first time, it takes as long as it takes to load what reads SQL"""

    @property
    def own(self) -> bool:
        """Whether the person wrote it down as a call that must be refused."""
        return self.kind == "proof"


class Canaries:
    """All of a configuration. `tools` are those that each backend is known to have.

    Iterating gives one after another, and None where a policy was tried in vain, so that whoever asks can pause.

    :param stopped: backend, kind and name of what has changed since it was trusted.
    :param trials: how many calls are tried for all policies together.
    """

    def __init__(
        self,
        config: Config,
        tools: Mapping[str, Sequence[str]],
        stopped: Sequence[tuple[str, str, str]] = (),
        *,
        trials: int = ALL_TRIALS,
    ) -> None:
        self._config = config
        self._tools = tools
        self._stopped = stopped
        self._most_trials = trials
        self._open = config.defaults.unlisted == "observe"
        self._nobody = _unused(NOBODY, config.agents)
        self._nowhere = _unused(NOBODY, config.backends)
        attributes = {name: agent.attributes for name, agent in config.agents.items()}
        self._people = People(attributes, config.backends)
        self.unseen: list[str] = []
        """ids of policies that forbid something and were tried, though no call is known to which they apply"""

    def __iter__(self) -> Iterator[Canary | None]:
        self.unseen = []
        parts = (
            self._own(), self._strangers(), self._lists(), self._everybodys(), self._pins(), self._constraints(),
            self._policies(),
        )  # fmt: skip
        for part in parts:
            yield from islice(part, MOST * 10)

    # --- who and where

    def _principal(self, agent: str) -> Principal:
        found = self._config.agents.get(agent)
        return Principal(agent) if found is None else Principal(agent, tenant=found.tenant, roles=found.roles)

    def _call(self, agent: str, backend: str, method: str, params: dict[str, Any]) -> Call:
        asks = method in TO_CLIENT and method not in TO_SERVER
        row = (TO_CLIENT if asks else TO_SERVER)[method]
        frame = parse(encode({"jsonrpc": "2.0", "id": 0, "method": method, "params": params}))
        subject, name = subject_of(row, frame.params)
        direction = Direction.TO_CLIENT if asks else Direction.TO_SERVER
        principal = self._principal(agent)
        return Call("0" * 32, 0, NOBODY, principal, direction, row, subject, name, backend, Era.LEGACY, frame)

    def _tool(self, agent: str, backend: str, name: str, arguments: dict[str, Any] | None = None) -> Call:
        return self._call(agent, backend, "tools/call", {"name": name, "arguments": arguments or {}})

    def _routes(self) -> Iterator[tuple[str, str, Access]]:
        for agent, settings in self._config.agents.items():
            for backend, access in settings.backends.items():
                if access.allowed:
                    yield agent, backend, access

    def _somebody(self, backend: str, tool: str) -> str:
        """An agent whose own lists leave it this tool, so that the rule in question is what refuses; else anybody."""
        reaching = [(agent, access) for agent, where, access in self._routes() if where == backend]
        for agent, access in reaching:
            allow = access.tool_allowlist
            if not _matched(access.tool_denylist, tool) and (allow is None or _matched(allow, tool)):
                return agent
        return reaching[0][0] if reaching else next(iter(self._config.agents), self._nobody)

    def _backend(self) -> str:
        return next((backend for _, backend, _ in self._routes()), next(iter(self._config.backends), self._nowhere))

    # --- what a person has written down

    def _own(self) -> Iterator[Canary]:
        for index, asked in enumerate(self._config.proof):
            split = called(asked.call, self._config.backends)
            assert split is not None  # the loader has looked
            call = self._tool(asked.agent, *split, asked.arguments)
            yield Canary("proof", f"proof.{index}", "", call)

    # --- names

    def _strangers(self) -> Iterator[Canary]:
        config = self._config
        if not self._open:
            rule = "defaults.unlisted"
            yield Canary("unknown agent", rule, "acl", self._tool(self._nobody, self._backend(), NOBODY))
            for agent in islice(config.agents, MOST):
                listed = config.agents[agent].backends
                backend = next((name for name in config.backends if name not in listed), self._nowhere)
                if backend not in listed:
                    yield Canary("unlisted backend", f"agents.{agent}", "acl", self._tool(agent, backend, NOBODY))
        for agent, settings in islice(config.agents.items(), MOST):
            for backend, access in settings.backends.items():
                if not access.allowed:
                    rule = f"agents.{agent}.backends.{backend}.allowed"
                    yield Canary("closed backend", rule, "acl", self._tool(agent, backend, NOBODY))

    def _lists(self) -> Iterator[Canary]:
        for agent, backend, access in islice(self._routes(), MOST):
            where = f"agents.{agent}.backends.{backend}"
            for kind, method, key, deny, allow in (
                ("tool", "tools/call", "name", access.tool_denylist, access.tool_allowlist),
                ("resource", "resources/read", "uri", access.resource_denylist, access.resource_allowlist),
                ("prompt", "prompts/get", "name", access.prompt_denylist, access.prompt_allowlist),
            ):
                for name in _instances(deny[:EACH]):
                    call = self._call(agent, backend, method, {key: name})
                    yield Canary(f"{kind}_denylist", f"{where}.{kind}_denylist", "acl", call)
                outside = None if allow is None else _outside(allow)
                if outside is not None:
                    call = self._call(agent, backend, method, {key: outside})
                    yield Canary(f"{kind}_allowlist", f"{where}.{kind}_allowlist", "acl", call)
            for method in ("sampling/createMessage", "elicitation/create", "roots/list"):
                if SERVER_REQUESTS[method] not in access.server_requests:
                    call = self._call(agent, backend, method, {})
                    yield Canary("server_requests", f"{where}.server_requests", "acl", call)
                    break

    def _everybodys(self) -> Iterator[Canary]:
        config = self._config
        for name in _instances(config.deny.tools[: EACH * 8]):
            backend, tool = called(name, config.backends) or (self._backend(), name)
            call = self._tool(self._somebody(backend, tool), backend, tool)
            yield Canary("deny", "deny.tools", "acl", call)
        if config.allow is not None:
            backend = self._backend()
            allow = config.allow.tools
            outside = _outside(allow)
            if outside is not None and not _matched(allow, f"{backend}.{outside}"):
                call = self._tool(self._somebody(backend, outside), backend, outside)
                yield Canary("allow", "allow.tools", "acl", call)

    def _pins(self) -> Iterator[Canary]:
        for backend, kind, name in islice(self._stopped, EACH * 8):
            if kind in ("tool", "prompt"):
                agent = self._somebody(backend, name)
                method = "tools/call" if kind == "tool" else "prompts/get"
                yield Canary(
                    "pins", f"the pin of the {kind}", "pin", self._call(agent, backend, method, {"name": name})
                )

    # --- arguments

    def _constraints(self) -> Iterator[Canary]:
        config = self._config
        for name, written in islice(config.constraints.items(), MOST):
            backend, tool = called(name, config.backends) or (self._backend(), name)
            agent = self._somebody(backend, tool)
            for arguments in _against(written):
                call = self._tool(agent, backend, tool, arguments)
                yield Canary("constraints", f"constraints.{name}", "policy", call, _DROP in arguments.values())

    # --- policies

    def _policies(self) -> Iterator[Canary | None]:
        left = self._most_trials
        for statement in self._config.policy.statements:
            if statement.effect != "forbid":
                continue
            found = None
            if left > 0 and statement.reads <= _JUDGED_BY:
                alone = Alone(statement)
                for call in islice(self._trials(statement), min(TRIALS, left)):
                    left -= 1
                    if alone.applies(call, self._people):
                        found = Canary("policy", f"policy `{statement.id}`", "policy", call)
                        break
                    yield None
            if found is not None:
                yield found
            elif left > 0 or not statement.reads <= _JUDGED_BY:
                self.unseen.append(statement.id)

    def _trials(self, statement: Statement) -> Iterator[Call]:
        """Calls to which it may apply, the likeliest first."""
        agents = self._agents(statement)
        sets = list(islice(_arguments(statement), 16)) if "arguments" in statement.reads else [{}]
        for method in ("sampling/createMessage", "elicitation/create", "roots/list"):
            if statement.actions is not None and method in statement.actions:
                for backend in self._servers(statement):
                    for agent in agents:
                        yield self._call(agent, backend, method, {})
        for method, kind in _METHODS:
            if statement.actions is not None and method not in statement.actions:
                continue
            for backend in self._servers(statement):
                for target in self._targets(statement, backend if kind == "tool" else None):
                    for arguments in sets:
                        for agent in agents:
                            if kind == "tool":
                                yield self._tool(agent, backend, target, arguments)
                            else:
                                key = "uri" if kind == "resource" else "name"
                                yield self._call(agent, backend, method, {**arguments, key: target})

    def _agents(self, statement: Statement) -> list[str]:
        agents = self._config.agents
        named = {name for kind, name, *_ in statement.named if kind == "Agent"}
        roles = {name for kind, name, *_ in statement.named if kind == "Role"}
        likely = [name for name in agents if name in named]
        likely += [name for name, agent in agents.items() if not roles.isdisjoint(agent.roles)]
        return list(dict.fromkeys((*likely[:2], *islice(agents, 2), *sorted(named)[:1], self._nobody)))

    def _servers(self, statement: Statement) -> list[str]:
        if statement.servers is not None:
            return sorted(statement.servers)[:EACH]
        return [*islice(self._config.backends, EACH)] or [self._nowhere]

    def _targets(self, statement: Statement, backend: str | None) -> list[str]:
        if statement.targets is not None:
            return sorted(statement.targets)[:EACH]
        about = [one for _, values in _compared(statement, ("target",)) for one in values if type(one) is str]
        known = () if backend is None else self._tools.get(backend, ())
        return list(dict.fromkeys((*about[:EACH], *known[: EACH * 2], NOBODY)))


# --- names and patterns -----------------------------------------------------------------------------------------------


def _unused(name: str, taken: Mapping[str, object]) -> str:
    while name in taken:
        name += "-"
    return name


def _matched(patterns: Sequence[str], name: str) -> bool:
    return any(pattern == name or fnmatchcase(name, pattern) for pattern in patterns)


def _instances(patterns: Sequence[str]) -> Iterator[str]:
    """A name for each pattern that has one which can be told."""
    for pattern in patterns:
        name = "".join(_piece(match) for match in _PIECE.finditer(pattern))
        if name and fnmatchcase(name, pattern):
            yield name


def _piece(match: re.Match[str]) -> str:
    sign = match[0]
    if sign == "*":
        return "aegis_proof"
    if sign == "?":
        return "x"
    if match[2] is None:
        return sign
    if not match[1]:
        return match[2][0]
    return next((char for char in "xyz09_-" if fnmatchcase(char, sign)), "x")


def _outside(allow: Sequence[str]) -> str | None:
    """A name that is on none of these."""
    for name in ("aegis_proof", "aegis-proof:nothing", "0"):
        if not _matched(allow, name):
            return name
    return None


# --- arguments --------------------------------------------------------------------------------------------------------


def _against(written: Constraint) -> Iterator[dict[str, Any]]:
    """Arguments that the constraint does not take: what is missing, what is of no kind that it knows, and what is more.

    Nothing that a constraint asks of an argument is ever true of a mapping.
    """
    required = [name for name, rule in written.arguments.items() if not rule.optional]
    required += [name for name, budget in written.budgets.items() if not budget.optional]
    if required or written.operations:
        yield {}
    for name in islice((*written.arguments, *written.budgets), EACH):
        yield {name: {}}
    if written.operations:
        yield {written.argument or "sql": _DROP}
    if written.extra == "forbid":
        yield {_unused("aegis_proof", {**written.arguments, **written.budgets}): True}


def _arguments(statement: Statement) -> Iterator[dict[str, Any]]:
    """Arguments that a policy may be about, made of what it compares them with."""
    values: dict[Path, list[Any]] = {path: [] for path in sorted(statement.arguments or ())}
    for path, found in _compared(statement, ("arguments",)):
        values.setdefault(path, []).extend(found)
    for path, kinds in statement.kinds:
        if path in values and not values[path] and "number" in kinds:
            values[path].append(1)
    filled = {path: found or ["aegis_proof", 1, True] for path, found in values.items() if path and path[-1]}
    longest = max(map(len, filled.values()), default=0)
    for index in range(min(longest, EACH)):
        yield _nested({path: found[index % len(found)] for path, found in filled.items()})
    yield {}
    for path, found in filled.items():
        yield _nested({path: found[0]})


def _nested(values: Mapping[Path, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path, value in values.items():
        here = made
        for step in path[:-1]:
            below = here.setdefault(step, {})
            here = below if type(below) is dict else here
        here.setdefault(path[-1], value)
    return made


def _compared(statement: Statement, begin: Path) -> Iterator[tuple[Path, list[Any]]]:
    """What a policy compares parts of the context with: the path behind `begin`, and values that it may be about."""
    waiting: list[Est] = [condition["body"] for condition in statement.est["conditions"]]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
            continue
        if not isinstance(node, dict):
            continue
        for sign, sides in node.items():
            if isinstance(sides, dict) and sign != "Value":
                path = _path(sides.get("right" if sign == "contains" else "left"), begin)
                values = _about(sign, sides)
                if path is None and sign == "contains":  # a list among the arguments that holds a text
                    path = _path(sides.get("left"), begin)
                    values = [[one] for one in _literals(sides.get("right"))]
                if path is not None and values:
                    yield path, values
                waiting += sides.values()
            elif isinstance(sides, list):
                waiting += sides


def _path(node: Est, begin: Path) -> Path | None:
    found = attribute(node) if node is not None else None
    if found is None or found[0] != "context" or found[1][: len(begin)] != begin:
        return None
    return found[1][len(begin) :]


def _about(sign: str, sides: Mapping[str, Any]) -> list[Any]:
    if sign == "like":
        pattern = sides.get("pattern")
        parts = pattern if isinstance(pattern, list) else []
        text = "".join(part["Literal"] if isinstance(part, dict) else "x" for part in parts)
        return [text, "aegis_proof"]
    if sign == "contains":
        return _literals(sides.get("left"))
    found = _literals(sides.get("right"))
    if sign not in ("==", "!=", "<", "<=", ">", ">="):
        return []
    made: list[Any] = []
    for value in found:
        if type(value) is int:
            made += [value, value + 1, value - 1]
        elif type(value) is bool:
            made += [value, not value]
        else:
            made += [value, f"{value}-aegis-proof"]
    return made


def _literals(node: Est) -> list[Any]:
    if not isinstance(node, dict) or len(node) != 1:
        return []
    if "Set" in node and isinstance(node["Set"], list):
        return [value for one in node["Set"] for value in _literals(one)]
    return [node["Value"]] if literal(node) in ("text", "number", "flag") and "Value" in node else []
