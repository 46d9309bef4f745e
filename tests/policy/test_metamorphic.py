"""A call that is forbidden for its arguments stays forbidden however they are spelt, typed, wrapped or left out."""

from __future__ import annotations

import base64
import copy
import json
import unicodedata
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from making import tool
from policing import NOON, allows, gate

from aegis_daemon.core.call import Call
from aegis_daemon.policy.rules import Argument, Constraint, Rules, Sql, compile_rule
from aegis_daemon.stages.policy import Policy
from aegis_daemon.wire.jsonrpc import WireFault, parse
from aegis_daemon.wire.methods import BadParams

ALL = "permit(principal, action, resource);\n"


def rule(**arguments: Argument) -> Constraint:
    """A rule on the tool `t`."""
    return Constraint("t", arguments)


# Policies as people write them, each with a call that it lets pass and one that it does not.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "an equal text is forbidden": (
        ALL + 'forbid(principal, action, resource) when { context.arguments.env == "prod" };',
        {"env": "test"},
        {"env": "prod"},
    ),
    "a text in capitals is forbidden": (
        ALL + 'forbid(principal, action, resource) when { context.arguments.mode == "DELETE" };',
        {"mode": "READ"},
        {"mode": "DELETE"},
    ),
    "all but one text is forbidden": (
        ALL + 'forbid(principal, action, resource) unless { context.arguments.env == "test" };',
        {"env": "test"},
        {"env": "prod"},
    ),
    "all but one text is permitted": (
        'permit(principal, action, resource) when { context.arguments.env != "prod" };',
        {"env": "test"},
        {"env": "prod"},
    ),
    "a prefix is permitted": (
        'permit(principal, action, resource) when { context.arguments.path like "/data/*" };',
        {"path": "/data/x"},
        {"path": "/etc/passwd"},
    ),
    "a prefix is forbidden": (
        ALL + 'forbid(principal, action, resource) when { context.arguments.path like "/Etc/*" };',
        {"path": "/data/x"},
        {"path": "/Etc/passwd"},
    ),
    "a bound is permitted": (
        "permit(principal, action, resource) when { context.arguments.amount <= 500 };",
        {"amount": 500},
        {"amount": 501},
    ),
    "a bound is forbidden": (
        ALL + "forbid(principal, action, resource) when { context.arguments.amount > 500 };",
        {"amount": 500},
        {"amount": 501},
    ),
    "a number is forbidden": (
        ALL + "forbid(principal, action, resource) when { context.arguments.id == 7 };",
        {"id": 8},
        {"id": 7},
    ),
    "a flag is forbidden": (
        ALL + "forbid(principal, action, resource) when { context.arguments.force == true };",
        {"force": False},
        {"force": True},
    ),
    "a flag is wanted": (
        "permit(principal, action, resource) when { context.arguments.dry_run };",
        {"dry_run": True},
        {"dry_run": False},
    ),
    "one of several is permitted": (
        'permit(principal, action, resource) when { ["a", "b"].contains(context.arguments.kind) };',
        {"kind": "a"},
        {"kind": "c"},
    ),
    "one of several is forbidden": (
        ALL + 'forbid(principal, action, resource) when { ["Root", "admin"].contains(context.arguments.user) };',
        {"user": "amy"},
        {"user": "Root"},
    ),
    "an item of a list is forbidden": (
        ALL + 'forbid(principal, action, resource) when { context.arguments.tags.contains("secret") };',
        {"tags": ["open"]},
        {"tags": ["open", "secret"]},
    ),
    "any item of a list is forbidden": (
        ALL + 'forbid(principal, action, resource) when { context.arguments.tags.containsAny(["secret", "own"]) };',
        {"tags": ["open"]},
        {"tags": ["secret"]},
    ),
    "only these items are permitted": (
        'permit(principal, action, resource) when { ["a", "b"].containsAll(context.arguments.tags) };',
        {"tags": ["a"]},
        {"tags": ["c"]},
    ),
    "a text inside an argument is forbidden": (
        ALL + 'forbid(principal, action, resource) when { context.arguments.to.domain == "rival.example" };',
        {"to": {"domain": "ours.example"}},
        {"to": {"domain": "rival.example"}},
    ),
    "SQL beyond reading is forbidden": (
        'permit(principal, action, resource) when { context has sql && context.sql.parsed && context.sql.argument == "sql" && ["SELECT"].containsAll(context.sql.operations) && context.sql.functions.isEmpty() };',
        {"sql": "select 1"},
        {"sql": "drop table users"},
    ),
    "SQL that writes is forbidden": (
        ALL
        + 'forbid(principal, action, resource) when { context has sql && !(context.sql.parsed && ["SELECT"].containsAll(context.sql.operations)) };',
        {"query": "select 1"},
        {"query": "drop table users"},
    ),
    "a flag is forbidden where there is one": (
        ALL + "forbid(principal, action, resource) when { context.arguments has force && context.arguments.force };",
        {"force": False},
        {"force": True},
    ),
    "a text in the middle is forbidden": (
        ALL
        + 'forbid(principal, action, resource) when { context.arguments has path && context.arguments.path like "*/.ssh/*" };',
        {"path": "/home/x/notes"},
        {"path": "/home/x/.ssh/id"},
    ),
    "all of these items are forbidden": (
        ALL + 'forbid(principal, action, resource) when { context.arguments.tags.containsAll(["own", "secret"]) };',
        {"tags": ["own"]},
        {"tags": ["own", "secret"]},
    ),
    "one kind is forbidden and another one wanted": (
        ALL
        + 'forbid(principal, action, resource) when { context.arguments.env == "prod" || context.arguments.n > 5 };',
        {"env": "test", "n": 5},
        {"env": "prod", "n": 5},
    ),
    "a range is permitted": (
        "permit(principal, action, resource) when { context.arguments.n >= 1 && context.arguments.n <= 9 };",
        {"n": 1},
        {"n": 10},
    ),
    "an exact fraction is permitted": (
        'permit(principal, action, resource) when { decimal(context.arguments.n).lessThanOrEqual(decimal("1.5")) };',
        {"n": 1.5},
        {"n": 1.75},
    ),
    "an address is permitted": (
        'permit(principal, action, resource) when { ip(context.arguments.host).isInRange(ip("10.0.0.0/8")) };',
        {"host": "10.1.2.3"},
        {"host": "192.168.1.1"},
    ),
    "two arguments must differ": (
        ALL + "forbid(principal, action, resource) when { context.arguments.from == context.arguments.to };",
        {"from": "a", "to": "b"},
        {"from": "a", "to": "a"},
    ),
}

# Rules on arguments, likewise. What they let pass is listed, so whatever is not on the list has to be refused.
RULES: dict[str, tuple[Constraint, dict[str, Any], dict[str, Any]]] = {
    "a path under a root": (
        rule(path=Argument(under=("/srv/data",))),
        {"path": "/srv/data/x"},
        {"path": "/etc/passwd"},
    ),
    "a path that climbs out": (
        rule(path=Argument(under=("/srv/data",))),
        {"path": "/srv/data/x"},
        {"path": "/srv/data/../../etc/passwd"},
    ),
    "a host of a list": (
        rule(url=Argument(hosts=("ours.example",))),
        {"url": "https://ours.example/x"},
        {"url": "https://rival.example/x"},
    ),
    "a host that looks like one of a list": (
        rule(url=Argument(hosts=("ours.example",))),
        {"url": "https://ours.example/x"},
        {"url": "https://ours.example@rival.example/x"},
    ),
    "a scheme": (
        rule(url=Argument(schemes=("https",), hosts=("ours.example",))),
        {"url": "https://ours.example/x"},
        {"url": "http://ours.example/x"},
    ),
    "an address of a domain": (
        rule(to=Argument(domains=("ours.example",))),
        {"to": "amy@ours.example"},
        {"to": "eve@rival.example"},
    ),
    "an address with two": (
        rule(to=Argument(domains=("ours.example",))),
        {"to": "amy@ours.example"},
        {"to": "eve@rival.example, amy@ours.example"},
    ),
    "a number that is large enough": (rule(n=Argument(least=Decimal(5))), {"n": 5}, {"n": 4}),
    "a number that is small enough": (rule(n=Argument(most=Decimal(500))), {"n": 500}, {"n": 501}),
    "a whole number": (rule(n=Argument(whole=True, most=Decimal(500))), {"n": 5}, {"n": 501}),
    "one of several texts": (rule(env=Argument(one_of=("test", "dev"))), {"env": "test"}, {"env": "prod"}),
    "one of several numbers": (rule(n=Argument(one_of=(1, 2))), {"n": 2}, {"n": 3}),
    "a flag": (rule(force=Argument(one_of=(False,))), {"force": False}, {"force": True}),
    "a text of a form": (rule(id=Argument(matches="[a-c]{3}")), {"id": "abc"}, {"id": "xyz9"}),
    "a text that is short enough": (rule(note=Argument(max_length=3)), {"note": "abc"}, {"note": "abcd"}),
    "every item of a list": (
        rule(tags=Argument(each=True, one_of=("a", "b"))),
        {"tags": ["a"]},
        {"tags": ["a", "c"]},
    ),
    "no other argument": (
        Constraint("t", {"env": Argument()}, forbid_extra=True),
        {"env": "test"},
        {"env": "test", "more": "x"},
    ),
    "SQL that reads": (
        Constraint("t", sql=Sql(("SELECT",), dialects=("sqlite",))),
        {"sql": "select a from b"},
        {"sql": "drop table users"},
    ),
    "SQL that does one thing": (
        Constraint("t", sql=Sql(("SELECT",), "q")),
        {"q": "select a from b"},
        {"q": "select 1; delete from users"},
    ),
    "SQL that calls nothing": (
        Constraint("t", sql=Sql(("SELECT",), "q", ("postgres",))),
        {"q": "select a from b"},
        {"q": "select pg_read_file('/etc/passwd')"},
    ),
}

Change = Callable[[Any], Iterator[Any]]


def spelt(value: Any) -> Iterator[Any]:
    """The same text as a careless server may read it."""
    if not isinstance(value, str):
        return
    yield value.upper()
    yield value.lower()
    yield value.title()
    yield value.swapcase()
    yield f" {value}"
    yield f"{value} "
    yield f"\t{value}\n"
    yield f"{value}\0"
    yield f"\u200b{value}"
    yield f"{value[:1]}\u200d{value[1:]}"
    yield f"{value[:1]}\u00ad{value[1:]}"
    yield "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in value)
    yield "".join(f"%{ord(char):02x}" for char in value)
    yield quote(quote(value, safe=""), safe="")
    yield f"%{ord(value[0]):02X}{value[1:]}"
    yield unicodedata.normalize("NFD", value)
    yield f"{value}\r\n"
    yield f"\ufeff{value}"
    yield f"\u00a0{value}\u2003"
    yield f"{value}\u202e"
    yield "".join(f"%25{ord(char):02x}" for char in value)
    yield "".join(f"%2525{ord(char):02x}" for char in value)


def typed(value: Any) -> Iterator[Any]:
    """The same in another type, which servers convert from."""
    yield [value]
    yield [[value]]
    yield {"value": value}
    yield {"0": value}
    if isinstance(value, bool):
        yield int(value)
        yield str(value).lower()
        yield str(value)
    elif isinstance(value, int):
        yield float(value)
        yield value + 0.5
        yield str(value)
        yield f"+{value}"
        yield f"0{value}"
        yield f"{value}.0"
        yield hex(value)
        yield value + 2**63
    elif isinstance(value, str):
        yield list(value)
        yield {"__entity": {"type": "Role", "id": value}}
        yield {"__extn": {"fn": "unknown", "arg": value}}
        yield {"__expr": value}
        yield True
        yield 0
        yield 1.5
    elif isinstance(value, list) and value:
        yield value[0]
        yield ",".join(map(str, value))
        yield {str(index): item for index, item in enumerate(value)}


def nothing(value: Any) -> Iterator[Any]:
    """Nothing in its place."""
    yield None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value is, and every value within it."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in items:
        yield from places(item, (*path, step))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    made = copy.deepcopy(value)
    at(made, path[:-1])[path[-1]] = new
    return made


def renamed(value: Any, path: tuple[Any, ...]) -> Iterator[Any]:
    """Without the key, and with it in another spelling."""
    holder = at(value, path[:-1])
    if not isinstance(holder, dict):
        return
    key = path[-1]
    for name in (
        None,
        key.upper(),
        key.title(),
        f"{key} ",
        f"{key}\0",
        f"\u200b{key}",
        "".join(chr(ord(c) + 0xFEE0) for c in key),
    ):
        made = copy.deepcopy(value)
        inside = at(made, path[:-1])
        item = inside.pop(key)
        if name is not None:
            inside[name] = item
        if name != key:
            yield made


def mutants(arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every change of one place, and every two of spelling and type."""
    for path in places(arguments):
        value = at(arguments, path)
        for change in (spelt, typed, nothing):
            for new in change(value):
                yield put(arguments, path, new)
        for new in spelt(value):
            for wrapped in ([new], {"value": new}):
                yield put(arguments, path, wrapped)
        yield from renamed(arguments, path)


def beside(bad: dict[str, Any], good: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What may pass under the argument's own name, and what may not under one that a careless server reads as it."""
    for key, value in bad.items():
        for name in (
            key.upper(),
            key.title(),
            f"{key} ",
            f" {key}",
            f"{key}\0",
            f"\u200b{key}",
            f"{key}\u00ad",
            f"%{ord(key[0]):02x}{key[1:]}",
            f"%25{ord(key[0]):02x}{key[1:]}",
            f"{key[:1]}\u2060{key[1:]}",
            "".join(chr(ord(char) + 0xFEE0) for char in key),
        ):
            if name != key and key in good:
                yield {**good, name: value}
                yield {name: value, **good}


def written(value: Any) -> Iterator[str]:
    """The same value as JSON may write it: escapes, and the forms of a number."""
    if isinstance(value, str):
        yield '"' + "".join(f"\\u{ord(char):04x}" for char in value) + '"'
        yield '"' + "".join(f"\\u{ord(char):04X}" for char in value) + '"'
        yield f'"\\u{ord(value[0]):04x}{value[1:]}"' if value and '"' not in value and "\\" not in value else "0"
        yield json.dumps(value)[:-1] + '\\u0000"'
        yield json.dumps(value)[:-1] + '\\ud800"'
        yield json.dumps(value).replace("/", "\\/")
        yield f" \n{json.dumps(value)}\t"
    elif isinstance(value, int) and not isinstance(value, bool):
        for form in (
            "{}.0",
            "{}e0",
            "{}E+0",
            "{}0e-1",
            "{}.000000000000000001",
            "0{}",
            "+{}",
            "{}.",
            "{}e400",
            "0x{:x}",
        ):
            yield form.format(value)
        yield f"{value / 10:.2f}e1"
    elif isinstance(value, bool):
        yield from ("True", "TRUE", "1.0", "1e0")


def on_the_wire(bad: dict[str, Any], good: dict[str, Any]) -> Iterator[str]:
    """Arguments as text: what an encoder of ours would not write."""
    for key, value in bad.items():
        rest = {name: item for name, item in bad.items() if name != key}
        others = "".join(f", {json.dumps(name)}: {json.dumps(item)}" for name, item in rest.items())
        escaped = "".join(f"\\u{ord(char):04x}" for char in key)
        for text in (json.dumps(value), *written(value)):
            yield f'{{"{key}": {text}{others}}}'
            yield f'{{"{escaped}": {text}{others}}}'
        if key in good:
            for first, second in ((good[key], value), (value, good[key])):
                for name in (key, escaped, key.upper()):
                    yield f'{{"{key}": {json.dumps(first)}, "{name}": {json.dumps(second)}{others}}}'
        for path in places(value):
            for text in written(at(value, path)):
                mark = "\ue000"
                yield f'{{"{key}": {json.dumps(put(value, path, mark)).replace(json.dumps(mark), text)}{others}}}'


def parsed(text: str) -> Call | None:
    """The call with this text as its arguments; None where the parser refuses it."""
    params = f'{{"name":"t","arguments":{text}}}'
    raw = f'{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{params}}}'.replace("\n", " ").replace("\t", " ")
    try:
        frame = parse(raw.encode("utf-8", "surrogatepass"))
        return msgspec.structs.replace(tool("t"), frame=frame)
    except (WireFault, BadParams):
        return None


def sent(arguments: Any) -> Call | None:
    """The call as it comes through the parser; None where that refuses it."""
    try:
        return tool("t", arguments)
    except (WireFault, BadParams):
        return None


@pytest.mark.parametrize("case", CASES)
def test_a_forbidden_call_is_never_allowed_for_another_spelling_type_or_absence(case: str) -> None:
    text, good, bad = CASES[case]
    policy = gate(text)
    assert allows(policy, tool("t", good))
    assert not allows(policy, tool("t", bad))
    tried = 0
    passed = []
    for arguments in (*mutants(bad), *beside(bad, good)):
        if harmless(case, arguments):
            continue
        call = sent(arguments)
        tried += 1
        if call is not None and allows(policy, call):
            passed.append(arguments)
    for raw in on_the_wire(bad, good):
        call = parsed(raw)
        tried += 1
        if call is not None and not harmless(case, call.arguments) and allows(policy, call):
            passed.append(raw)
    assert passed == []
    assert tried > 30


@pytest.mark.parametrize("case", RULES)
def test_what_a_rule_does_not_list_is_never_let_pass_for_another_spelling_type_or_absence(case: str) -> None:
    constraint, good, bad = RULES[case]
    policy = Policy(None, Rules([compile_rule(constraint)]), wall=lambda: NOON)
    assert allows(policy, tool("t", good))
    assert not allows(policy, tool("t", bad))
    tried = 0
    passed: list[Any] = []
    for arguments in (*mutants(bad), *beside(bad, good), *encoded(bad)):
        call = sent(arguments)
        tried += 1
        if call is not None and not listed(case, arguments) and allows(policy, call):
            passed.append(arguments)
    for raw in on_the_wire(bad, good):
        call = parsed(raw)
        tried += 1
        if call is not None and not listed(case, call.arguments) and allows(policy, call):
            passed.append(raw)
    assert passed == []
    assert tried > 30


@pytest.mark.parametrize("case", RULES)
def test_a_rule_holds_for_its_tool_however_the_tools_name_is_spelt(case: str) -> None:
    constraint, good, bad = RULES[case]
    policy = Policy(None, Rules([compile_rule(constraint)]), wall=lambda: NOON)
    for name in ("T", "t ", " t", "\uff54", "t\u200b", "%74", "%2574", "\tt", "t\0"):
        call = tool(name, bad)
        assert not allows(policy, call), name
        assert allows(policy, tool(name, good)), name
    assert allows(policy, tool("tt", bad))


def encoded(bad: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """As some servers decode. Only a list of what may pass can stop this; what is forbidden alone does not."""
    for key, value in bad.items():
        if isinstance(value, str):
            for text in (
                base64.b64encode(value.encode()).decode(),
                base64.urlsafe_b64encode(value.encode()).decode(),
                value.encode().hex(),
                json.dumps(value),
                f"data:text/plain,{value}",
                value[::-1],
                "".join(f"&#{ord(char)};" for char in value),
            ):
                yield {**bad, key: text}


def listed(case: str, arguments: dict[str, Any]) -> bool:
    """Changes that make another call of it, which the rule means to let pass."""
    if case == "every item of a list":
        tags = arguments.get("tags")
        return tags == "a" or (isinstance(tags, list) and all(one in ("a", "b") for one in tags))
    return case == "no other argument" and arguments == {"env": "test"}


def harmless(case: str, arguments: dict[str, Any]) -> bool:
    """Changes that make another call of it, which the policy means to let pass."""
    if case == "an item of a list is forbidden" or case == "any item of a list is forbidden":
        # Without the item, or with nothing in its place, the list holds nothing forbidden.
        return (
            isinstance(arguments.get("tags"), list)
            and not any(
                "secret" in str(item).casefold()
                or not isinstance(item, str)
                or not item.isascii()
                or "%" in item
                or not item.isprintable()
                for item in arguments["tags"]
            )
        ) or arguments.get("tags") in (["open", None], [None])
    if case == "all of these items are forbidden":
        return arguments.get("tags") in (["own", None], [None, "secret"])
    if "context has sql &&" in CASES[case][0] or "context.arguments has" in CASES[case][0]:
        # The policy asks whether it is there, and forbids nothing where it is not.
        return case != "SQL beyond reading is forbidden" and all(value is None for value in arguments.values())
    if case == "only these items are permitted":
        return arguments.get("tags") in ([None], [])
    if case == "a bound is permitted" or case == "a bound is forbidden":
        return False
    if case == "two arguments must differ":
        # Of two texts one was changed into another text.
        return False
    return False


@pytest.mark.parametrize("name", ["T", "t ", "\uff54", "t\u200b", "%74"])
def test_a_name_in_another_spelling_is_another_name_and_permitted_by_no_policy_on_the_first(name: str) -> None:
    policy = gate('permit(principal, action, resource) when { context.target == "t" };')
    assert allows(policy, tool("t"))
    assert not allows(policy, tool(name))


@pytest.mark.parametrize("arguments", [None, [], "x", 3, True])
def test_arguments_that_are_no_object_are_never_allowed_where_arguments_count(arguments: Any) -> None:
    for text, _, _ in CASES.values():
        call = sent(arguments) if arguments is not None else None
        assert call is None or not allows(gate(text), call)


@pytest.mark.parametrize(
    "condition",
    [
        'context.target == "Pay"',
        '["Pay", "send"].contains(context.target)',
        'context.target like "P*y"',
        'context.target == "Pay" && context.arguments has n',
        'context has sql || context.target == "Pay"',
    ],
)
def test_what_is_forbidden_by_its_name_stays_so_however_the_name_is_spelt(condition: str) -> None:
    policy = gate(ALL + f"forbid(principal, action, resource) when {{ {condition} }};")
    for name in ("Pay", "pay", "PAY", "pa%79", "P\uff41y"):
        assert not allows(policy, tool(name, {"n": 1})), name
    assert allows(policy, tool("other", {"n": 1}))


def test_what_is_permitted_by_its_name_is_permitted_as_it_is_written() -> None:
    policy = gate('permit(principal, action, resource) when { context.target == "getIssue" };')
    assert allows(policy, tool("getIssue"))
    assert not allows(policy, tool("getissue"))
    assert not allows(policy, tool("GETISSUE"))
