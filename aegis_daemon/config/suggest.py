"""Least privilege from the log: what is suggested permits what was done, and nothing that the present file refuses.

Learned is from calls that succeeded and that today's file lets pass. Names become allow-lists; arguments become rules
where every call of the tool, whoever made it, bears them out, since a rule on arguments holds for everybody. Whatever
comes from the log is data: quoted, and with its globs and placeholders made plain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, Final
from unicodedata import normalize
from urllib.parse import urlsplit

import msgspec
from pydantic import TypeAdapter, ValidationError

from aegis_daemon.config.replay import DENY, Judge, altered, altered_names, contents
from aegis_daemon.config.schema import ArgumentName, BackendName, Config, Glob, GovernedTool, Name
from aegis_daemon.core.names import plain_uri
from aegis_daemon.core.past import NAME_CAP, Past
from aegis_daemon.core.text import visible
from aegis_daemon.policy.budgets import exact, units
from aegis_daemon.policy.paths import path_fault
from aegis_daemon.policy.sql import ARGUMENTS, OPERATIONS, facts
from aegis_daemon.policy.urls import DEFAULT_PORTS, BadHost, address_fault, canonical_host, url_fault
from aegis_daemon.wire.jsonrpc import fold
from aegis_daemon.wire.methods import BadParams, listened_resources

FEW: Final = 20
"""What fewer calls bear out is marked."""
ENOUGH: Final = 5
"""From fewer calls no rule on arguments is made."""
MOST_NAMES: Final = 200
"""Entries of one list."""
MOST_PAIRS: Final = 300
MOST_TOOLS: Final = 1_000
MOST_ARGUMENTS: Final = 64
MOST_VALUES: Final = 8
"""Values of a `one_of`, and hosts or domains of a rule."""
MOST_STATEMENTS: Final = 500
"""Different statements of SQL that are looked at for one tool; each takes some 15 ms."""
_LONGEST: Final = 200
_KINDS: Final = ("tool", "resource", "prompt")
_SUBJECTS: Final = {
    "tools/call": "tool",
    "resources/read": "resource",
    "resources/subscribe": "resource",
    "resources/unsubscribe": "resource",
    "prompts/get": "prompt",
}
_PLACEHOLDER: Final = re.compile(r"\$\{(?=(?:env|file):)")
_FUNCTION: Final = re.compile(r"[a-z_][a-z0-9_.]{0,60}")
_BEGINS: Final = re.compile(r"\s*(?:select|insert|update|delete|merge|with)\b", re.IGNORECASE)
_CHECKS: Final[dict[str, TypeAdapter[Any]]] = {
    "glob": TypeAdapter(Glob),
    "tool": TypeAdapter(GovernedTool),
    "argument": TypeAdapter(ArgumentName),
    "agent": TypeAdapter(Name),
    "backend": TypeAdapter(BackendName),
}


class Entry(msgspec.Struct):
    """One suggestion. `kind` is `tool_allowlist` and the like, `constraint`, `allowed` or `unused`.

    `path` are the keys down to the setting, `value` is what is set there or, of a list, added; `names` are a list's
    names as they were called. None as the value of a list: it stays empty.
    """

    kind: str
    path: tuple[str, ...]
    value: Any
    agent: str
    backend: str
    tool: str
    argument: str
    calls: int
    reason: str
    few: bool = False
    observed: bool = False
    names: tuple[str, ...] = ()


class Suggestion(msgspec.Struct):
    """What is suggested, and what has to be said beside it."""

    entries: list[Entry]
    notes: list[str]

    def settings(self) -> dict[str, Any]:
        """As a part of a configuration, which is laid over the present one."""
        made: dict[str, Any] = {}
        for entry in self.entries:
            if entry.kind == "unused":
                continue
            here = made
            for key in entry.path[:-1]:
                here = here.setdefault(key, {})
            last = entry.path[-1]
            if entry.kind.endswith("_allowlist"):
                here.setdefault(last, [])
                if entry.value is not None:
                    here[last].append(entry.value)
            else:
                here[last] = entry.value
        return made


def plain_text(text: str) -> str:
    """A text that stands for itself in a configuration: no placeholder in it is replaced."""
    return _PLACEHOLDER.sub("$${", text)


def plain_glob(name: str) -> str:
    """A pattern that matches this name alone."""
    return plain_text(re.sub(r"([*?\[])", r"[\1]", name))


def _fits(kind: str, text: str) -> bool:
    try:
        return bool(_CHECKS[kind].validate_python(text) == text)
    except ValidationError:
        return False


# --- what was used


class _Named:
    __slots__ = ("calls", "observed")

    def __init__(self) -> None:
        self.calls = 0
        self.observed = 0


class _Use:
    """What one agent used of one backend, by kind and name."""

    def __init__(self) -> None:
        self.calls = 0
        self.names: dict[str, dict[str, _Named]] = {kind: {} for kind in _KINDS}
        self.many: set[str] = set()
        self.folders: dict[str, int] = {}

    def add(self, kind: str, name: str, *, observed: bool) -> None:
        known = self.names[kind]
        found = known.get(name)
        if found is None:
            if kind == "resource":
                folder = name[: name.rfind("/") + 1]
                if folder in self.folders or len(self.folders) <= MOST_NAMES:
                    self.folders[folder] = self.folders.get(folder, 0) + 1
            if len(known) >= MOST_NAMES:
                self.many.add(kind)
                return
            found = known[name] = _Named()
        found.calls += 1
        found.observed += observed


class _Argument:
    """What the values of one argument have in common; every candidate is dropped by the first that does not fit."""

    def __init__(self) -> None:
        self.present = 0
        self.items = 0
        self.each = False
        self.dead = False
        self.values: set[tuple[type, Any]] | None = set()
        self.least: Decimal | None = None
        self.most: Decimal | None = None
        self.whole = True
        self.root: list[str] | None = None
        self.hosts: set[str] = set()
        self.schemes: set[str] = set()
        self.domains: set[str] = set()
        self.forms = {"number", "path", "url", "mail"}

    def add(self, value: Any) -> None:
        self.present += 1
        if type(value) is list:
            self.each = True
        for item in value if type(value) is list else (value,):
            if not self.dead:
                self._item(item)

    def _item(self, item: Any) -> None:
        self.items += 1
        if type(item) not in (str, int, float, bool) or altered(item):
            self.dead = True
            return
        if self.values is not None:
            if (type(item), item) not in self.values:
                self.values.add((type(item), item))
            if len(self.values) > MOST_VALUES or (type(item) is str and len(item) > _LONGEST):
                self.values = None
        for form in tuple(self.forms):
            if not getattr(self, f"_{form}")(item):
                self.forms.discard(form)

    def _number(self, item: Any) -> bool:
        number = exact(item)
        if number is None or units(abs(number)) is None:
            return False
        self.least = number if self.least is None else min(self.least, number)
        self.most = number if self.most is None else max(self.most, number)
        self.whole = self.whole and number == number.to_integral_value()
        return True

    def _path(self, item: Any) -> bool:
        if type(item) is not str or "%" in item or normalize("NFKC", item) != item:
            return False
        if path_fault(item, ("",)) is not None:
            return False
        parts = [part for part in item.split("/") if part not in ("", ".")][:-1]
        if self.root is None:
            self.root = parts
        else:
            shared = 0
            for one, other in zip(self.root, parts, strict=False):
                if one != other:
                    break
                shared += 1
            self.root = self.root[:shared]
        return True

    def _url(self, item: Any) -> bool:
        if type(item) is not str:
            return False
        try:
            parts = urlsplit(item)
            port, scheme = parts.port, parts.scheme.lower()
            host = canonical_host(f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "")
        except (ValueError, BadHost):
            return False
        if port is not None and port != DEFAULT_PORTS.get(scheme):
            host = f"{host}:{port}"
        if scheme not in DEFAULT_PORTS or url_fault(item, frozenset({host}), frozenset({scheme})) is not None:
            return False
        self.hosts.add(host)
        self.schemes.add(scheme)
        return len(self.hosts) <= MOST_VALUES

    def _mail(self, item: Any) -> bool:
        if type(item) is not str:
            return False
        domain = item.rpartition("@")[2].lower()
        if not domain or address_fault(item, frozenset({domain})) is not None:
            return False
        self.domains.add(domain)
        return len(self.domains) <= MOST_VALUES

    def rule(self, calls: int) -> tuple[dict[str, Any], str] | None:
        """The rule and what it rests on; None where the values have nothing in common that is worth a rule."""
        if self.dead or not self.items:
            return None
        found = self._rule()
        if found is None:
            return None
        rule, reason = found
        if self.present < calls:
            rule["optional"] = True
        if self.each:
            rule["each"] = True
        return rule, reason

    def _rule(self) -> tuple[dict[str, Any], str] | None:
        if "path" in self.forms and self.root:
            root = "/" + "/".join(self.root)
            return {"under": [plain_text(root)]}, f"all below {root}"
        if "url" in self.forms:
            hosts = sorted(self.hosts)
            rule: dict[str, Any] = {"hosts": hosts}
            if self.schemes != {"https"}:
                rule["schemes"] = sorted(self.schemes)
            return rule, f"all on {len(hosts)} host{'s' * (len(hosts) != 1)}"
        if "mail" in self.forms:
            return {"domains": sorted(self.domains)}, f"all to {', '.join(sorted(self.domains))}"
        if "number" in self.forms and self.most is not None and self.least is not None:
            rule = {"max": _amount(self.most)}
            if self.least >= 0:
                rule["min"] = 0
            if self.whole:
                rule["whole"] = True
            return rule, f"largest seen: {self.most:f}"
        if self.values is None:
            return None
        kinds = {kind for kind, _ in self.values}
        often = self.items >= FEW and self.items >= 4 * len(self.values)
        if kinds == {bool} and len(self.values) == 1 and often:
            return {"one_of": [value for _, value in self.values]}, "always the same"
        if kinds == {str} and often:
            values = sorted(value for _, value in self.values)
            return {"one_of": [plain_text(value) for value in values]}, f"{len(values)} different values"
        return None


def _amount(number: Decimal) -> int | str:
    return int(number) if number == number.to_integral_value() else f"{number:f}"


class _Sql:
    """What the SQL of one tool does, as far as that can be told of every call."""

    def __init__(self) -> None:
        self.dead = False
        self.seen: set[int] = set()
        self.operations: set[str] = set()
        self.functions: set[str] = set()

    def add(self, arguments: Mapping[str, Any]) -> None:
        texts = [arguments[name] for name in ARGUMENTS if arguments.get(name) is not None]
        if not texts:
            self.dead = True
        for text in texts:
            if self.dead or type(text) is not str or not _BEGINS.match(text) or altered(text):
                self.dead = True
                return
            mark = hash(text)
            if mark in self.seen:
                continue
            self.seen.add(mark)
            found = facts(text)
            self.operations.update(found.operations)
            self.functions.update(found.functions)
            self.dead = (
                not found.parsed
                or found.statements != 1
                or not self.operations.issubset(OPERATIONS)
                or len(self.seen) > MOST_STATEMENTS
                or len(self.functions) > MOST_VALUES
                or not all(_FUNCTION.fullmatch(name) for name in found.functions)
            )


class _Tool:
    """What was given to one tool, by everybody."""

    def __init__(self) -> None:
        self.calls = 0
        self.agents: set[str] = set()
        self.blind = 0
        self.arguments: dict[str, _Argument] = {}
        self.many = False
        self.sql = _Sql()

    def add(self, agent: str, arguments: Any) -> None:
        self.calls += 1
        if len(self.agents) <= MOST_NAMES:
            self.agents.add(agent)
        if type(arguments) is not dict or altered_names(arguments) is None:
            self.blind += 1
            return
        if not self.sql.dead:
            self.sql.add(arguments)
        for name, value in arguments.items():
            if value is None:
                continue
            found = self.arguments.get(name)
            if found is None:
                if len(self.arguments) >= MOST_ARGUMENTS:
                    self.many = True
                    continue
                found = self.arguments[name] = _Argument()
            found.add(value)


class Learner:
    """Takes one recorded call after the other; with `observed` also what rules refuse and mode `observe` let pass."""

    def __init__(self, config: Config, *, observed: bool = False) -> None:
        self.config = config
        self._judge = Judge(config)
        self._observed = observed
        self.uses: dict[tuple[str, str], _Use] = {}
        self.tools: dict[tuple[str, str], _Tool] = {}
        self.calls = 0
        """that were learned from"""
        self.refused = 0
        self.failed = 0
        self.now_refused = 0
        """succeeded, and would be refused by today's file"""
        self.once_refused = 0
        """learned from, though observe mode alone let them pass then, or now"""
        self.many = False

    def learns_from(self, past: Past) -> bool:
        """Whether the call succeeded and would pass today."""
        if past.exec_status != "success" or not _is_theirs(past):
            return False
        return self._judge.judge(past).verdict != DENY or bool(self._observed and past.would)

    def add(self, past: Past) -> None:
        """Learns from one call, or counts why not."""
        if past.exec_status != "success":
            if past.exec_status == "denied":
                self.refused += 1
            else:
                self.failed += 1
            return
        if not _is_theirs(past):
            return
        if len(past.tool_name) > NAME_CAP:
            return  # the log has its beginning alone, and no rule is made of that
        if not self.learns_from(past):
            self.now_refused += 1
            return
        observed = bool(past.would)
        self.once_refused += observed
        self.calls += 1
        pair = (past.agent_id, past.backend_id)
        use = self.uses.get(pair)
        if use is None:
            if len(self.uses) >= MOST_PAIRS:
                self.many = True
                return
            use = self.uses[pair] = _Use()
        use.calls += 1
        found, there = contents(past)
        for kind, name in _named(past, found[0] if there else None):
            use.add(kind, name, observed=observed)
        if past.method == "tools/call":
            key = (past.backend_id, past.tool_name)
            tool = self.tools.get(key)
            if tool is None:
                if len(self.tools) >= MOST_TOOLS:
                    self.many = True
                    return
                tool = self.tools[key] = _Tool()
            tool.add(past.agent_id, found[0] if there else None)


def _is_theirs(past: Past) -> bool:
    return past.method in _SUBJECTS or past.method in ("completion/complete", "subscriptions/listen")


def _named(past: Past, content: Any) -> list[tuple[str, str]]:
    """What the call was about: kind and name, a resource under every name that lists are asked for."""
    kind = _SUBJECTS.get(past.method)
    names = [past.tool_name]
    if past.method == "completion/complete":
        ref = content.get("ref") if type(content) is dict else None
        kind = "prompt" if type(ref) is dict and ref.get("type") == "ref/prompt" else "resource"
    elif past.method == "subscriptions/listen":
        try:
            kind, names = "resource", listened_resources(content if type(content) is dict else {})
        except BadParams:
            names = []
    if kind != "resource":
        return [(kind or "", name) for name in names]
    made = []
    for name in names:
        try:
            made += [("resource", one) for one in dict.fromkeys((name, plain_uri(name)))]
        except ValueError:
            made.append(("resource", name))
    return made


# --- what follows from it


def suggest(learner: Learner, span: str, agents: str | None = None) -> Suggestion:
    """The suggestions; `span` is how long was looked at, in words, `agents` a glob of whom lists are made for."""
    entries: list[Entry] = []
    notes: list[str] = []
    config = learner.config
    wanted = {pair for pair in learner.uses if agents is None or fnmatchcase(pair[0], agents)}
    for pair in sorted(wanted):
        _lists(entries, notes, config, pair, learner.uses[pair], span)
    for name, agent in config.agents.items():
        if agents is not None and not fnmatchcase(name, agents):
            continue
        for backend, access in agent.backends.items():
            if access.allowed and (name, backend) not in learner.uses:
                path = ("agents", name, "backends", backend, "allowed")
                reason = f"not used in {span}; `allowed: false` would close it"
                entries.append(Entry("unused", path, False, name, backend, "", "", 0, reason))
    theirs = {(backend, tool) for _, backend in wanted for one, tool in learner.tools if one == backend}
    for key in sorted(theirs):
        used = learner.tools[key]
        if agents is None or not used.agents.isdisjoint(agent for agent, _ in wanted):
            _rules(entries, notes, config, key, used, span)
    if learner.many:
        notes.append("there were more agents, backends or tools than are looked at; the rest is left out")
    return Suggestion(entries, notes)


def _lists(entries: list[Entry], notes: list[str], config: Config, pair: tuple[str, str], use: _Use, span: str) -> None:
    agent, backend = pair
    title = f"{visible(agent)} on {visible(backend)}"
    known = config.agents.get(agent)
    access = known.backends.get(backend) if known is not None else None
    if not _fits("agent", agent) or not _fits("backend", backend):
        notes.append(f"{title}: such a name cannot be configured")
        return
    path = ("agents", agent, "backends", backend)
    if access is None or not access.allowed:
        if backend not in config.backends:
            reason = f"used by {visible(agent)}"
            entries.append(Entry("allowed", ("backends", backend), {}, agent, backend, "", "", use.calls, reason))
        reason = f"{_calls(use.calls)} in {span}"
        entries.append(Entry("allowed", (*path, "allowed"), True, agent, backend, "", "", use.calls, reason))
    for kind in _KINDS:
        setting = f"{kind}_allowlist"
        present: tuple[str, ...] | None = getattr(access, setting) if access is not None else None
        made = _listed(notes, kind, use, present, f"{title}: {kind}s")
        if made is None:
            continue
        if present is not None and {value for value, *_ in made} == {plain_text(one) for one in present}:
            continue  # it is so already
        for value, names, calls, observed in made:
            reason = f"{_calls(calls)} in {span}"
            if observed:
                reason += f", {observed} of which a rule would have refused"
            entries.append(
                Entry(
                    setting, (*path, setting), value, agent, backend, names[0] if names else "", "", calls, reason,
                    few=calls < FEW, observed=bool(observed), names=names,
                )
            )  # fmt: skip
        if not made:
            reason = f"no {kind} was used in {span}"
            entries.append(Entry(setting, (*path, setting), None, agent, backend, "", "", 0, reason))


def _listed(
    notes: list[str], kind: str, use: _Use, present: tuple[str, ...] | None, title: str
) -> list[tuple[str, tuple[str, ...], int, int]] | None:
    """Patterns with the names they stand for, their calls, and how many of those observe alone let pass."""
    if kind in use.many:
        folders = sorted(use.folders)
        closed = all(re.fullmatch(r"[^:/]*:/*|/*", folder) is None for folder in folders)
        if kind != "resource" or present is not None or len(folders) > MOST_NAMES or not closed:
            notes.append(f"{title} have more than {MOST_NAMES} names, so no list is made of them")
            return None
        return [(f"{plain_glob(folder)}*", (f"{folder}*",), use.folders[folder], 0) for folder in folders]
    made: list[tuple[str, tuple[str, ...], int, int]] = []
    for name, used in sorted(use.names[kind].items()):
        pattern = plain_glob(name)
        if not _fits("glob", pattern) or (kind == "resource" and not _readable(name)):
            notes.append(f"{title}: the name {visible(name[:60])} cannot be written in a list, so none is made")
            return None
        made.append((pattern, (name,), used.calls, used.observed))
    return made


def _readable(uri: str) -> bool:
    try:
        plain_uri(uri)
    except ValueError:
        return False
    return True


def _rules(
    entries: list[Entry], notes: list[str], config: Config, key: tuple[str, str], used: _Tool, span: str
) -> None:
    backend, tool = key
    named = f"{backend}.{tool}"
    if used.calls < ENOUGH or not _fits("tool", named) or not _fits("backend", backend):
        return
    if used.blind or used.many:
        why = "has more arguments than are looked at" if used.many else "was called with what is not in the log"
        notes.append(f"{visible(named[:120])} {why}, so there is no rule on its arguments")
        return
    if any(one != named and fold(one) == fold(named) for one in config.constraints):
        return  # a rule in this spelling would take that one's place
    present = [config.constraints[one] for one in (named, tool) if one in config.constraints]
    taken = {name for one in present for name in (*one.arguments, *one.budgets)}
    who = f"{_calls(used.calls)} in {span}"
    if len(used.agents) > 1:
        who += f" by {len(used.agents)} agents"
    path = ("constraints", named)
    sql = used.sql
    few = used.calls < FEW
    if not sql.dead and sql.operations and not any(one.operations for one in present):
        operations = [one for one in OPERATIONS if one in sql.operations]
        reason = f"{who}, {len(sql.seen)} different statement{'s' * (len(sql.seen) != 1)}"
        for setting, value in (("operations", operations), ("functions", sorted(sql.functions))):
            if value:
                entry = Entry("constraint", (*path, setting), value, "", backend, tool, "", used.calls, reason, few)
                entries.append(entry)
        taken.update(ARGUMENTS)
    for name, argument in sorted(used.arguments.items()):
        found = argument.rule(used.calls) if name not in taken and _fits("argument", name) else None
        if found is None or any(fold(name) == fold(other) for other in used.arguments if other != name):
            continue
        rule, reason = found
        entries.append(
            Entry(
                "constraint", (*path, "arguments", name), rule, "", backend, tool, name, used.calls,
                f"{who}, {reason}", few,
            )
        )  # fmt: skip


def _calls(count: int) -> str:
    return f"{count} call{'s' * (count != 1)}"


# --- proving it


def proved(
    suggestion: Suggestion,
    learner: Learner,
    judged_by: Callable[[Suggestion], Judge],
    calls: Callable[[], Iterable[Past]],
) -> Suggestion:
    """What is left once every suggestion that would refuse a call it was learned from is taken out, and that is said.

    `judged_by` makes the judge of the present file with the suggestion, `calls` reads the log once more.
    """
    for _ in range(4):
        judge = judged_by(suggestion)
        bad: set[tuple[str, ...]] = set()
        denied = 0
        for past in calls():
            if not learner.learns_from(past):
                continue
            now = judge.judge(past)
            if now.verdict != DENY:
                continue
            denied += 1
            if now.stage != "acl":
                bad.update(_alike(suggestion, past))
            if now.stage != "constraint":
                kind = _SUBJECTS.get(past.method)
                path = ("agents", past.agent_id, "backends", past.backend_id)
                bad.add((*path, f"{kind}_allowlist") if kind is not None else path)
        kept = [entry for entry in suggestion.entries if not any(entry.path[: len(one)] == one for one in bad)]
        if denied and len(kept) == len(suggestion.entries):
            note = f"{_calls(denied)} would be refused all the same, such as of URIs that cannot be read"
            return Suggestion(kept, [*suggestion.notes, note])
        if not denied:
            return suggestion
        gone = {entry.path for entry in suggestion.entries} - {entry.path for entry in kept}
        notes = [f"{visible('.'.join(one)[:160])}: the log does not bear it out" for one in sorted(gone)]
        suggestion = Suggestion(kept, [*suggestion.notes, *notes])
    return Suggestion([], [*suggestion.notes, "the log does not bear any of it out; nothing is suggested"])


def _alike(suggestion: Suggestion, past: Past) -> set[tuple[str, ...]]:
    """Rules that hold for the call's tool by another spelling."""
    names = {fold(past.tool_name), fold(f"{past.backend_id}.{past.tool_name}")}
    return {
        entry.path[:2] for entry in suggestion.entries if entry.kind == "constraint" and fold(entry.path[1]) in names
    }
