"""What is proposed for a tool follows from its class, and is written down with its reason; nothing there is loosened.

Reads pass, 60 a minute. Everything else waits for a person, and what sends or pays is limited beside. Tools are listed
by name, so that one which a server adds later is refused until somebody looks at it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from aegis_daemon.config.edit import Anything, Step, Stuck, with_mode
from aegis_daemon.config.load import loads
from aegis_daemon.config.opening import ASKS, HEAD, opened, to_come
from aegis_daemon.config.schema import Access, Config
from aegis_daemon.config.source import ConfigFaults, dotted
from aegis_daemon.config.splice import Change, Unknown, changed, plain, splice
from aegis_daemon.config.suggest import plain_glob, plain_text
from aegis_daemon.core.names import plain_name
from aegis_daemon.core.text import visible
from aegis_daemon.onboarding.risk import CLASSES, Confidence, Judged, Risk, worse

Action = Literal["allow", "ask", "deny"]

ACTIONS: Final[tuple[Action, ...]] = ("allow", "ask", "deny")
PROPOSED: Final[Mapping[Risk, Action]] = {
    "destroy": "ask", "execute": "ask", "money": "ask", "message": "ask", "write": "ask", "unknown": "ask",
    "read": "allow",
}  # fmt: skip
LIMITS: Final[Mapping[Risk, str]] = {"read": "60/minute", "message": "10/hour", "money": "5/day"}
BY_ROW: Final[tuple[Risk, ...]] = ("destroy", "execute", "money")
"""Classes that are let through tool by tool alone, never as a whole."""
_CLASS, _PATTERN, _NAME = 1, 2, 3
_MARK: Final = "aegis-setup-writes-here"
_YAML_WORDS: Final = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))
_REASON_MAX: Final = 90
_LIKE_A_PATTERN: Final = "its name reads like a pattern, so it can have no limit"
NEAR_MOST: Final = 2_000
"""Names among which one is looked for that was mistyped."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is proposed for one tool of one server."""

    backend: str
    tool: str
    risk: Risk
    confidence: Confidence
    why: str
    action: Action
    limit: str
    """as `60/minute`; "" for none"""
    chosen: int = 0
    """whether a person said so, and how narrowly: of its class (1), by a pattern (2), by its name (3)"""


@dataclass(frozen=True, slots=True)
class Way:
    """An agent's way to a server, and what is proposed for each of its tools. No rows: nobody knows its tools."""

    agent: str
    backend: str
    display_name: str
    settings: Mapping[str, Any]
    """of the backend where the file has none of that name: `url` and `headers`, or nothing"""
    rows: tuple[Row, ...]


class Wrong(ValueError):
    """What a person typed means nothing; the message says why, and what would."""


def propose(backend: str, judged: Iterable[Judged]) -> tuple[Row, ...]:
    """The rows of a server, worst first, and within a class in the server's order.

    One that it lists twice is what the worse of the two is.
    """
    made: dict[str, Row] = {}
    for one in judged:
        action: Action = PROPOSED[one.risk] if _nameable(one.tool) else "deny"
        limit, why = _limit(one.tool, LIMITS.get(one.risk, "")) if action != "deny" else "", one.why
        if action == "allow" and not limit:
            action, why = "ask", f"{_LIKE_A_PATTERN}; {why}"
        row = Row(backend, one.tool, one.risk, one.confidence, why, action, limit)
        if one.tool not in made or worse(one.risk, made[one.tool].risk) == one.risk:
            made[one.tool] = row
    return tuple(sorted(made.values(), key=lambda row: CLASSES.index(row.risk)))


def distrusted(row: Row, why: str) -> Row:
    """The row of a tool of which nobody knows what it does after all: it waits for a person, unless it is refused."""
    if row.action == "deny":
        return row
    return replace(row, risk="unknown", confidence="low", why=why, action="ask", limit="", chosen=0)


def _nameable(tool: str) -> bool:
    """Whether a list can name it."""
    return bool(tool) and plain_name(tool)


def _limit(tool: str, limit: str) -> str:
    """The limit, where one can be written for a tool of this name: `ToolName` refuses what reads like a pattern."""
    return "" if re.search(r"[*?\[\]]", tool) else limit


def changed_rows(rows: Sequence[Row], said: str) -> tuple[tuple[Row, ...], int, tuple[Row, ...]]:
    """The rows after what a person typed (`write allow`, `github.create_* deny`), how many it meant, and the kept.

    A class is changed as a whole, but for those that can be undone least: these are let through tool by tool. What a
    person said of a tool more narrowly before (by its name rather than its class) is kept.
    :raises Wrong: it means nothing.
    """
    parts = said.split()
    if len(parts) != 2:
        raise Wrong("write a class or a tool, and `allow`, `ask` or `deny`: `write allow`, `github.create_* deny`")
    what, word = parts
    action = next((one for one in ACTIONS if one == word.lower()), None)
    if action is None:
        raise Wrong(f"`{visible(word[:40])}` is none of `allow`, `ask` and `deny`")
    if what in CLASSES:
        if action == "allow" and what in BY_ROW:
            raise Wrong(f"`{what}` is let through tool by tool only: name the tool")
        return _set(rows, action, _CLASS, lambda row: row.risk == what)
    how = _PATTERN if re.search(r"[*?\[]", what) and not any(_called(what, row) for row in rows) else _NAME
    made, count, kept = _set(rows, action, how, lambda row: _means(what, row))
    if not count and not kept:
        known = [*CLASSES, *(name for row in rows for name in (row.tool, f"{row.backend}.{row.tool}"))]
        near = get_close_matches(what[:80], known[:NEAR_MOST], 1)
        hint = f"did you mean `{visible(near[0])}`?" if near else f"the classes are {', '.join(CLASSES)}"
        raise Wrong(f"no class and no tool is called `{visible(what[:60])}`; {hint}")
    if action == "allow" and count > 1 and any(_means(what, row) and row.risk in BY_ROW for row in rows):
        raise Wrong(f"`{visible(what[:60])}` means some of {', '.join(BY_ROW)}: let those through one by one")
    return made, count, kept


def _called(what: str, row: Row) -> bool:
    return what in (row.tool, f"{row.backend}.{row.tool}")


def _means(what: str, row: Row) -> bool:
    return _called(what, row) or fnmatchcase(row.tool, what) or fnmatchcase(f"{row.backend}.{row.tool}", what)


def _set(
    rows: Sequence[Row], action: Action, how: int, wanted: Callable[[Row], bool]
) -> tuple[tuple[Row, ...], int, tuple[Row, ...]]:
    count, made, kept = 0, [], []
    for row in rows:
        if wanted(row) and _nameable(row.tool):
            if row.chosen > how:
                kept += [row] if row.action != action else []
            else:
                count += 1
                limit = "" if action == "deny" else LIMITS.get(row.risk, "60/minute" if action == "allow" else "")
                row = replace(row, action=action, limit=_limit(row.tool, limit), chosen=how)
        made.append(row)
    return tuple(made), count, tuple(kept)


def access(rows: Sequence[Row]) -> dict[str, Any]:
    """The setting under `agents.<agent>.backends.<backend>` that says what the rows do."""
    if not rows:
        return {"allowed": True, "approval_required": list(ASKS)}
    good = [row for row in rows if row.action != "deny"]
    made: dict[str, Any] = {"allowed": True, "tool_allowlist": [plain_glob(row.tool) for row in good]}
    if denied := [plain_glob(row.tool) for row in rows if row.action == "deny" and _nameable(row.tool)]:
        made["tool_denylist"] = denied
    if asking := [plain_glob(row.tool) for row in good if row.action == "ask"]:
        made["approval_required"] = asking
    if limits := {plain_text(row.tool): row.limit for row in good if row.limit}:
        made["rate_limits"] = limits
    return made


# --- the file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """The configuration's new text, what changed, and what of the proposal it does not have, and why."""

    text: str
    steps: tuple[Step, ...]
    kept: tuple[str, ...] = ()


def fresh(config: Config | None, agent: str, backend: str) -> bool:
    """Whether the configuration says nothing of this way yet."""
    found = None if config is None else config.agents.get(agent)
    return found is None or backend not in found.backends


def unruled(config: Config | None, agent: str, backend: str) -> bool:
    """Whether a way has what `aegis agents wire` writes, on which every call waits, and nothing that a person wrote."""
    found = None if config is None else config.agents.get(agent)
    one = None if found is None else found.backends.get(backend)
    return one == Access(allowed=True, approval_required=ASKS)


def listed(config: Config | None, agent: str, backend: str) -> bool:
    """Whether a way has a list of tools, so that a tool which its server has got since is refused."""
    found = None if config is None else config.agents.get(agent)
    one = None if found is None else found.backends.get(backend)
    return one is not None and one.allowed and one.tool_allowlist is not None


def unlisted(config: Config, agent: str, backend: str, rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows of tools that a way with a list has in no list, neither of what it may use nor of what it may not."""
    one = config.agents[agent].backends[backend]
    lists = (*(one.tool_allowlist or ()), *one.tool_denylist)
    return tuple(row for row in rows if not any(fnmatchcase(row.tool, entry) for entry in lists))


def write(
    text: str | None,
    name: str,
    ways: Iterable[Way],
    *,
    base: str = "/",
    rule: Callable[[Way], bool] = lambda way: False,
    mode: str | None = None,
    settings: Mapping[tuple[str, ...], Any] | None = None,
) -> Written:
    """The text of a configuration with these ways in it. Whatever it says of one already stays.

    What a way with lists says of none of them is added: until then it is refused, and nobody has said so.

    :param text: None where there is no file yet. :param name: what faults call the file. :param rule: whether a person
        agrees that a way on which every call waits (as `aegis agents wire` leaves it) gets the proposed rules instead.
        :param mode: `observe` or `enforce`, None: as it is. :param settings: others, by their path.
    :raises ConfigFaults: the text has faults as it is. :raises Stuck: it is not changed by program.
    """
    made = HEAD if text is None else text
    steps: list[Step] = []
    kept: list[str] = []
    if mode is not None:
        before, made = made, with_mode(made, name, mode)
        if made != before:
            steps.append(
                Step("mode", f"rules are {'tried out, and refuse nothing' if mode == 'observe' else 'in force'}")
            )
    for way in ways:
        config = loads(to_come(made), name, base=base, env=Anything()).config
        put = access(way.rows)
        reasons = {plain_glob(row.tool): _reason(row) for row in way.rows}
        if fresh(config, way.agent, way.backend):
            done = opened(
                made, name, way.agent, way.backend, way.settings, base=base,
                access=put, put=functools.partial(_put, reasons=reasons),
            )  # fmt: skip
            made, new = done.text, way.agent not in config.agents
            steps += done.steps
            if new and way.display_name not in ("", way.agent):
                change = Change(("agents", way.agent, "display_name"), "put", way.display_name)
                made = _checked(made, change, functools.partial(_spliced, change=change), "its name for people")
        elif way.rows and unruled(config, way.agent, way.backend) and rule(way):
            route = ("agents", way.agent, "backends", way.backend)
            says = f"`{way.agent}` gets rules for the tools of `{way.backend}`, in place of asking for all of them"
            made = _in_place(made, route, put, says, reasons)
            steps.append(Step(dotted(route), says))
        elif way.rows and listed(config, way.agent, way.backend):
            for change in _added(config, way):
                says = f"`{dotted(change.path)}` gets `{visible(str(change.value))}`"
                made = _checked(made, change, functools.partial(_with_reason, change=change, reasons=reasons), says)
                steps.append(Step(dotted(change.path), says))
        else:
            kept.append(_kept(config, way))
    for path, value in (settings or {}).items():
        change = Change(path, "put", value)
        made = _checked(made, change, functools.partial(_spliced, change=change), f"`{dotted(path)}` is set")
        steps.append(Step(dotted(path), f"`{dotted(path)}` is set"))
    return Written(made, tuple(steps), tuple(kept))


def _kept(config: Config, way: Way) -> str:
    who, where = f"`{visible(way.agent)}`", f"`{visible(way.backend)}`"
    if unruled(config, way.agent, way.backend):
        return f"each call of {who} to {where} waits for a person, and that stays: `aegis setup` on a terminal asks"
    return f"{who} has rules for {where} already, and they stay as they are"


def _added(config: Config, way: Way) -> list[Change]:
    """What a way with lists needs for tools that are in none of them."""
    route = ("agents", way.agent, "backends", way.backend)
    there = config.agents[way.agent].backends[way.backend]
    made = []
    for key, value in access(way.rows).items():
        have = getattr(there, key)
        if isinstance(value, dict):
            made += [Change((*route, key, name), "put", one) for name, one in value.items() if name not in have]
        elif isinstance(value, list):
            made += [Change((*route, key), "append", one) for one in value if one not in (have or ())]
    return made


def check(text: str, name: str, *, base: str = "/") -> tuple[str, ...]:
    """The warnings of a text. Raises `Stuck` where it has faults: nothing of the kind is written."""
    try:
        return tuple(str(one) for one in loads(to_come(text), name, base=base, env=Anything()).warnings)
    except ConfigFaults as faults:
        raise Stuck(f"the changed file would have a fault: {faults.faults[0]}", "change it by hand") from None


def _reason(row: Row) -> str:
    why = visible(row.why)
    why = why if len(why) <= _REASON_MAX else why[: _REASON_MAX - 1] + "…"
    said = " (you said so)" if row.chosen else ""
    return f"{row.risk}, {row.action}{said}: {why}"


def _spliced(text: str, change: Change) -> str:
    return splice(text, change)[0]


def _with_reason(text: str, change: Change, reasons: Mapping[str, str]) -> str:
    """As `splice`; a tool that comes into the list of what is allowed or denied has its reason behind it."""
    made, _ = splice(text, change)
    reason = reasons.get(str(change.value)) if change.path[-1] in ("tool_allowlist", "tool_denylist") else None
    old, new = text.split("\n"), made.split("\n")
    at = next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), len(old) - 1)
    if reason is None or len(new) != len(old) + 1 or old[at:] != new[at + 1 :]:
        return made
    if re.match(r" *- ", new[at]) and "#" not in new[at]:
        end = "\r" if new[at].endswith("\r") else ""
        new[at] = f"{new[at].removesuffix(end)}  # {reason}{end}"
    return "\n".join(new)


def _put(text: str, change: Change, says: str, reasons: Mapping[str, str]) -> str:
    """As `splice`, with each tool on a line of its own, and its reason behind it."""
    value = change.value

    def write(text: str) -> str:
        if not isinstance(value, dict) or "allowed" not in value:
            return splice(text, change)[0]
        marked, _ = splice(text, Change(change.path, "put", {"allowed": True, _MARK: True}))
        return (
            _unmarked(marked, {key: below for key, below in value.items() if key != "allowed"}, reasons)
            or (
                splice(text, change)[0]  # a file of JSON has no place for reasons
            )
        )

    return _checked(text, change, write, says)


def _in_place(
    text: str, route: tuple[str, ...], value: Mapping[str, Any], says: str, reasons: Mapping[str, str]
) -> str:
    def write(text: str) -> str:
        gone, _ = splice(text, Change((*route, "approval_required"), "drop", ASKS[0]))
        old, new = text.split("\n"), gone.split("\n")
        at = next(i for i, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
        if len(old) != len(new) or not re.fullmatch(r" *approval_required: *\[\]\r?", new[at]):
            raise Unknown("the list is written in an unusual way", at + 1)
        indent, end = re.match(r" *", new[at]), "\r" if new[at].endswith("\r") else ""
        assert indent is not None
        new[at] = f"{indent[0]}{_MARK}: true{end}"
        made = _unmarked("\n".join(new), {key: below for key, below in value.items() if key != "allowed"}, reasons)
        if made is None:
            raise Unknown("the mapping is written in an unusual way", at + 1)
        return made

    return _checked(text, Change(route, "put", dict(value)), write, says)


def _checked(text: str, change: Change, write: Callable[[str], str], says: str) -> str:
    """The text that `write` makes, read again and compared with what was meant."""
    try:
        data = plain(text)
        made = write(text)
        if plain(made) != _meant(data, change):
            raise Unknown("other settings share what is written there", 0)
    except Unknown as unknown:
        message = f"`{dotted(change.path)}` is not changed by program: {unknown.what}"
        raise Stuck(message, f"do it by hand: {says}", unknown.line) from None
    return made


def _meant(data: Any, change: Change) -> Any:
    def typed(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): typed(below) for key, below in value.items()}
        return [typed(one) for one in value] if isinstance(value, list | tuple) else value

    return changed(data, Change(change.path, change.how, typed(change.value)))


def _unmarked(text: str, value: Mapping[str, Any], reasons: Mapping[str, str]) -> str | None:
    """The text with block style lines in the place of the mark; None where the mark has no line of its own."""
    found = re.search(rf"^( *){_MARK}: true(\r?)$", text, re.MULTILINE)
    if found is None:
        return None
    indent, end = found[1], found[2]
    lines: list[str] = []
    told: set[str] = set()
    for key, below in value.items():
        if isinstance(below, dict):
            lines.append(f"{indent}{key}:")
            lines += [f"{indent}  {_key(str(name))}: {one}" for name, one in below.items()]
        elif below:
            lines.append(f"{indent}{key}:")
            for one in below:
                reason = f"  # {reasons[one]}" if one in reasons and one not in told else ""
                told.add(one)
                lines.append(f"{indent}  - {_quoted(one)}{reason}")
        else:
            lines.append(f"{indent}{key}: []")
    return text[: found.start()] + f"{end}\n".join(lines) + end + text[found.end() :]


def _key(text: str) -> str:
    """A tool's name as a key, bare where no reader of YAML takes it for something else."""
    bare = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", text) and text.lower() not in _YAML_WORDS
    return text if bare else _quoted(text)


def _quoted(text: str) -> str:
    plain = all(char.isascii() and char.isprintable() and char not in '"\\' for char in text)
    return f'"{text}"' if plain else '"' + "".join(_escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    code = ord(char)
    if 0x20 <= code < 0x7F:
        return char
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
