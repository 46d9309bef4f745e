"""A call that is forbidden for its arguments stays forbidden however they are spelt, typed, wrapped or left out."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from making import tool
from policing import allows, gate

from aegis_daemon.core.call import Call
from aegis_daemon.wire.jsonrpc import WireFault
from aegis_daemon.wire.methods import BadParams

ALL = "permit(principal, action, resource);\n"

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
    "two arguments must differ": (
        ALL + "forbid(principal, action, resource) when { context.arguments.from == context.arguments.to };",
        {"from": "a", "to": "b"},
        {"from": "a", "to": "a"},
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
    for arguments in mutants(bad):
        if harmless(case, arguments):
            continue
        call = sent(arguments)
        tried += 1
        if call is not None and allows(policy, call):
            passed.append(arguments)
    assert passed == []
    assert tried > 12


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
