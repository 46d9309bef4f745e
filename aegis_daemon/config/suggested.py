"""A suggestion as text that means it and nothing else: YAML for the configuration, or policies in Cedar.

Whatever comes from the log stands in double quotes, in ASCII, in YAML but for plain words; comments hold one visible
line each. Policies are `forbid … unless`, which can only take away; one that permits is made where there is no other.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from typing import Any, Final

from aegis_daemon.config.schema import Config
from aegis_daemon.config.suggest import Entry, Suggestion
from aegis_daemon.core.text import visible

FEW_CALLS: Final = "few calls: look twice"
_ACTIONS: Final = {
    "tool_allowlist": ('action == Action::"tools/call"', ""),
    "resource_allowlist": (
        'action in [Action::"resources/read", Action::"resources/subscribe", Action::"resources/unsubscribe", '
        'Action::"completion/complete"]',
        'context.primitive == "resource"',
    ),
    "prompt_allowlist": (
        'action in [Action::"prompts/get", Action::"completion/complete"]',
        'context.primitive == "prompt"',
    ),
}
_WORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_NO_TEXT: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
"""words that some version of YAML takes for something else"""
_WIDEST: Final = 72
"""Behind lines that are longer, comments do not line up."""


def as_yaml(suggestion: Suggestion, header: Iterable[str]) -> str:
    """The suggestion as a part of a configuration file, with its reasons as comments."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString as Quoted

    def quoted(value: Any) -> Any:
        if isinstance(value, str):
            return value if _is_word(value) else Quoted(value)
        if isinstance(value, list):
            made = CommentedSeq([quoted(one) for one in value])
            made.fa.set_flow_style()
            return made
        if isinstance(value, dict):
            table = CommentedMap({quoted(key): quoted(one) for key, one in value.items()})
            if not table:
                table.fa.set_flow_style()
            return table
        return value

    top = CommentedMap()
    columns = _columns(suggestion)
    for entry in suggestion.entries:
        if entry.kind == "unused":
            continue
        here = top
        for key in entry.path[:-1]:
            here = here.setdefault(quoted(key), CommentedMap())
        last: str = entry.path[-1]
        remark = _remark(entry)
        if entry.kind.endswith("_allowlist"):
            column = columns.get(entry.path[:-1], 0)
            if entry.value is None:
                here[last] = quoted([])
                here.yaml_add_eol_comment(remark, last, column)
                continue
            items = here.setdefault(last, CommentedSeq())
            items.append(quoted(entry.value))
            items.yaml_add_eol_comment(remark, len(items) - 1, column)
            continue
        name = quoted(last)
        here[name] = quoted(entry.value)
        here.yaml_set_comment_before_after_key(name, before=remark, indent=2 * (len(entry.path) - 1))
    lines = [*header, *suggestion.notes, *(_unused(one) for one in suggestion.entries if one.kind == "unused")]
    text = "".join(f"# {visible(line)}\n" for line in lines)
    if not top:
        return f"{text}{{}}\n"
    yaml = YAML()
    yaml.width = 1 << 20
    yaml.allow_unicode = False
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(top, out)
    return text + out.getvalue()


def _is_word(text: str) -> bool:
    """Whether it means itself in YAML, of any version, without quotes."""
    return _WORD.fullmatch(text) is not None and text.lower() not in _NO_TEXT


def _columns(suggestion: Suggestion) -> dict[tuple[str, ...], int]:
    """Where the comments of an agent's lists begin: two columns behind the longest line that is not too long."""
    ends: dict[tuple[str, ...], int] = {}
    for entry in suggestion.entries:
        if entry.kind.endswith("_allowlist"):
            where, last = entry.path[:-1], entry.path[-1]
            text = f"{last}: []" if entry.value is None else f"  - {_written(entry.value)}"
            end = 2 * len(where) + len(text)
            if end <= _WIDEST:
                ends[where] = max(end, ends.get(where, 0))
    return {where: end + 2 for where, end in ends.items()}


def _written(text: str) -> str:
    return text if _is_word(text) else json.dumps(text)


def _remark(entry: Entry) -> str:
    return visible(f"{entry.reason}; {FEW_CALLS}" if entry.few else entry.reason)


def _unused(entry: Entry) -> str:
    return f"{'.'.join(entry.path[:-1])}: {entry.reason}"


# --- Cedar


def as_cedar(suggestion: Suggestion, config: Config, header: Iterable[str]) -> str:
    """The suggestion as policies, as far as policies can say it; what they cannot is said."""
    lines = [*header, *suggestion.notes]
    made: list[str] = []
    if not config.policy.statements:
        made.append('// there is no other policy, so that all that the lists allow is permitted first\n'
                    '@id("suggested: base")\npermit(principal, action, resource);')  # fmt: skip
    lists: dict[tuple[str, str, str], list[Entry]] = {}
    rules: dict[tuple[str, str], list[Entry]] = {}
    for entry in suggestion.entries:
        if entry.kind in _ACTIONS:
            lists.setdefault((entry.agent, entry.backend, entry.kind), []).append(entry)
        elif entry.kind == "constraint":
            rules.setdefault((entry.backend, entry.tool), []).append(entry)
        elif entry.kind == "allowed":
            lines.append(f"{entry.agent} on {entry.backend} needs `allowed: true` in the configuration")
        else:
            lines.append(_unused(entry))
    made += [_of_list(number, *key, entries) for number, (key, entries) in enumerate(lists.items(), 1)]
    for (backend, tool), entries in rules.items():
        made += _of_tool(len(made), backend, tool, entries, lines)
    return "\n\n".join(["\n".join(_comment(line) for line in lines), *made]).strip() + "\n"


def _comment(line: str) -> str:
    return f"// {visible(line).replace('${', '$ {')}"


def _id(number: int, what: str) -> str:
    """A name that no other policy here has, as short and plain as names have to be."""
    return text(f"suggested {number}: {visible(what)}"[:100])


def _of_list(number: int, agent: str, backend: str, kind: str, entries: list[Entry]) -> str:
    action, when = _ACTIONS[kind]
    names = [name for entry in entries for name in entry.names]
    if any(entry.value is not None and entry.value.endswith("*") for entry in entries):
        allowed = " || ".join(f'context.target like {text(name[:-1], star=True)[:-1]}*"' for name in names)
    else:
        allowed = f"[{', '.join(text(name) for name in names)}].contains(context.target)"
    remarks = [_comment(f"{name}: {_remark(entry)}") for entry in entries for name in entry.names or ("(none)",)]
    policy = "\n".join([
        *remarks,
        f"@id({_id(number, f'{kind} of {agent} on {backend}')})",
        f'forbid(principal == Agent::{text(agent)}, {action}, resource == Server::{text(backend)})',
        *([f"when {{ {when} }}"] if when else []),
        *([f"unless {{ {allowed} }}"] if names else []),
    ])  # fmt: skip
    return f"{policy};"


def _of_tool(count: int, backend: str, tool: str, entries: list[Entry], lines: list[str]) -> list[str]:
    made: list[str] = []
    for entry in entries:
        needs = _sql(entries) if entry.path[-1] == "operations" else _argument(entry) if entry.argument else None
        if needs is None:
            if entry.path[-1] != "functions":
                what = f"{backend}.{tool}: {entry.argument or 'SQL'}"
                lines.append(f"{what}: {entry.reason}; only `constraints` can say it: `--format yaml`")
            continue
        title = _id(count + len(made) + 1, f"{entry.argument or 'SQL'} of {backend}.{tool}")
        made.append(
            f"{_comment(_remark(entry))}\n"
            f"@id({title})\n"
            f'forbid(principal, action == Action::"tools/call", resource == Server::{text(backend)})\n'
            f"when {{ context.target == {text(tool)} }}\n"
            f"unless {{ {needs} }};"
        )
    return made


def _sql(entries: list[Entry]) -> str:
    by_setting = {entry.path[-1]: entry.value for entry in entries if not entry.argument}
    operations = ", ".join(text(one) for one in by_setting["operations"])
    functions = ", ".join(text(one) for one in by_setting.get("functions", ()))
    quiet = f"[{functions}].containsAll(context.sql.functions)" if functions else "context.sql.functions == []"
    return (
        "context has sql && context.sql.parsed && context.sql.statements == 1 && "
        f"[{operations}].containsAll(context.sql.operations) && {quiet}"
    )


def _argument(entry: Entry) -> str | None:
    """What the argument has to be; None where Cedar cannot say it."""
    rule = entry.value
    if rule.get("each"):
        return None
    has = f"context.arguments has {text(entry.argument)}"
    value = f"context.arguments[{text(entry.argument)}]"
    allowed = rule.get("one_of")
    if allowed is not None and all(isinstance(one, str) for one in allowed):
        fits = f"[{', '.join(text(one.replace('$${', '${')) for one in allowed)}].contains({value})"
    elif rule.get("whole") and isinstance(rule.get("max"), int):
        fits = f"{value} <= {rule['max']}" + (f" && {value} >= 0" if "min" in rule else "")
    else:
        return None
    return f"!({has}) || ({fits})" if rule.get("optional") else f"{has} && {fits}"


def text(value: str, *, star: bool = False) -> str:
    """A text as Cedar's literal, in ASCII; with `star` a pattern in which every star is one."""
    made = []
    for char in value:
        if char in '"\\':
            made.append(f"\\{char}")
        elif char == "*" and star:
            made.append("\\*")
        elif " " <= char <= "~" and char != "$":  # `${env:X}` would be replaced in `policy.text`
            made.append(char)
        else:
            made.append(f"\\u{{{ord(char):x}}}")
    return f'"{"".join(made)}"'
