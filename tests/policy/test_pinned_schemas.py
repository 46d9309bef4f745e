"""A rule that cannot mean what it says of a tool is a fault of that tool alone; what only may surprise is a warning."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest

from aegis_daemon.policy.dialect import read
from aegis_daemon.policy.rules import Argument, Constraint, Spending, Sql
from aegis_daemon.policy.schema import Finding, Fitting, Summary, Tool

PAY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "to": {"type": "string"},
        "amount": {"type": "number"},
        "count": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        "currency": {"enum": ["EUR", "USD"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "payee": {"$ref": "#/$defs/Payee"},
        "dry_run": {"type": "boolean"},
        "notify": {"type": "boolean", "default": True},
        "note": {"type": ["string", "null"]},
        "any": {},
    },
    "required": ["to", "amount", "payee", "note"],
    "additionalProperties": False,
    "$defs": {
        "Payee": {
            "type": "object",
            "properties": {"iban": {"type": "string"}, "bank": {"type": "string"}},
            "required": ["iban"],
            "additionalProperties": False,
        }
    },
}
OPEN: dict[str, Any] = {**PAY, "additionalProperties": True}


def found(
    condition: str, schema: Any = PAY, *, effect: str = "forbid", target: str = 'context.target == "pay" && '
) -> list[Finding]:
    """What a policy on `pay` of `bank` makes of it."""
    text = f"{effect}(principal, action, resource) when {{ {target}{condition} }};"
    return list(Fitting(read(text, "p.cedar"), ()).findings("bank", "pay", schema))


def said(findings: list[Finding]) -> list[tuple[bool, str, str]]:
    return [(one.fault, one.code, one.argument) for one in findings]


@pytest.mark.parametrize(
    ("condition", "argument", "words"),
    [
        ('context.arguments has tos && context.arguments.tos == "x"', "tos", "did you mean `to`?"),
        ('context.arguments.amont > 5', "amont", "did you mean `amount`?"),
        ("context.arguments has zzz", "zzz", "it has `to`, `amount`"),
        ('context.arguments.payee.ibna == "x"', "payee.ibna", "did you mean `iban`?"),
        ('context.arguments.payee has ibna', "payee.ibna", "did you mean `iban`?"),
        ('(context.arguments.dry_run || context.arguments.tos == "x")', "tos", "did you mean `to`?"),
        ('(if context.arguments.to == "x" then context.arguments.tos == "x" else true)', "tos", "did you mean"),
    ],
)  # fmt: skip
def test_an_argument_that_a_tool_cannot_have_is_a_fault_with_the_nearest_name(
    condition: str, argument: str, words: str
) -> None:
    (fault,) = [one for one in found(condition) if one.fault]
    assert (fault.code, fault.argument, fault.line) == ("unknown", argument, 1)
    assert words in fault.hint
    assert fault.column > 50, "where the argument stands, and not where the policy begins"
    assert not any(one.fault for one in found(condition, OPEN) if "payee" not in one.argument)


@pytest.mark.parametrize(
    ("condition", "argument"),
    [
        ("context.arguments.to == 5", "to"),
        ("5 != context.arguments.to", "to"),
        ('context.arguments.amount == "5"', "amount"),
        ("context.arguments.to < 5", "to"),
        ('context.arguments.amount like "5*"', "amount"),
        ("context.arguments.amount", "amount"),
        ("!context.arguments.to", "to"),
        ("context.arguments.to + 1 == 2", "to"),
        ('context.arguments.to.contains("x")', "to"),
        ("context.arguments.to.isEmpty()", "to"),
        ('["a", "b"].contains(context.arguments.amount)', "amount"),
        ('["a"].containsAll(context.arguments.to)', "to"),
        ("[1, 2].containsAll(context.arguments.tags)", "tags"),
        ("context.arguments.tags.contains(4)", "tags"),
        ("context.arguments.tags.containsAny([4, 5])", "tags"),
        ('context.arguments.to.name == "x"', "to"),
        ("context.arguments.payee == 5", "payee"),
        ("context.arguments.payee.iban > 5", "payee.iban"),
        ("context.arguments.to == context.arguments.amount", "to"),
        ('decimal(context.arguments.dry_run).lessThan(decimal("1.0"))', "dry_run"),
        ('context.arguments has count && context.arguments.count == "5"', "count"),
    ],
)
def test_a_comparison_with_another_kind_of_value_is_a_fault(condition: str, argument: str) -> None:
    faults = [one for one in found(condition) if one.fault]
    if "context.arguments.to == context.arguments.amount" in condition:
        assert {(one.code, one.argument) for one in faults} <= {("kind", "to"), ("kind", "amount")}
    else:
        assert [(one.code, one.argument) for one in faults] == [("kind", argument)]


@pytest.mark.parametrize(
    "condition",
    [
        'context.arguments.to == "x"',
        "context.arguments.amount > 5",
        'decimal(context.arguments.amount).lessThan(decimal("1.0"))',
        'context.arguments.payee.iban like "DE*"',
        "context.arguments.payee has iban",
        '["x"].contains(context.arguments.to)',
        'context.arguments has count && context.arguments.count > 3 || context.arguments.to == "x"',
        "context.arguments has dry_run && context.arguments.dry_run",
        "!(context.arguments has count) || context.arguments.count > 3",
        'context.arguments has tags && ["a"].containsAll(context.arguments.tags)',
        '(if context.arguments has currency then context.arguments.currency == "EUR" else false)',
        'context.primitive == "prompt" && context.arguments.zzz == 3',
        'context.target == "other" && context.arguments.zzz == 3',
        '["a", "b"].contains(context.target) && context.arguments.zzz == 3',
        'context.target like "r*" && context.arguments.zzz == 3',
        'context.target != "PAY" && context.arguments.zzz == 3',
        '(if context.target == "other" then context.arguments.zzz == 3 else false)',
        "principal.level > 3",
        "context.sql.parsed",
        "context.time.hour < 3",
    ],
)
def test_what_a_tool_takes_and_what_is_about_another_one_is_no_fault(condition: str) -> None:
    assert [one for one in found(condition) if one.code != "passes"] == []


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ('context.arguments.currency == "EUR"', [(False, "optional", "currency")]),
        ('context.arguments has currency && context.arguments.currency == "EUR"', [(False, "passes", "currency")]),
        ('context.arguments.note == "x"', [(False, "optional", "note")]),  # null is left out
        ("context.arguments has notify && context.arguments.notify", [(False, "passes", "notify")]),
        ("context.arguments has dry_run && context.arguments.dry_run", []),  # not set is not set
        ('context.arguments.payee.bank == "x"', [(False, "optional", "payee.bank")]),
        (
            'context.arguments has currency && context.arguments.currency == "EURO"',
            [(False, "never", "currency"), (False, "passes", "currency")],
        ),
    ],
)
def test_what_may_be_left_out_and_what_is_never_said_are_warnings(
    condition: str, expected: list[tuple[bool, str, str]]
) -> None:
    assert said(found(condition)) == expected


def test_a_spelling_that_the_engine_takes_for_a_listed_one_is_one_of_them() -> None:
    assert found('context.arguments has currency && context.arguments.currency == "eur"', effect="permit") == []


def test_a_permit_that_asks_first_lets_nothing_pass_that_it_should_not() -> None:
    assert found('context.arguments has currency && context.arguments.currency == "EUR"', effect="permit") == []


@pytest.mark.parametrize(
    "schema",
    [
        None, True, {}, [], {"type": "object"}, {"$ref": "#"}, {"$ref": "https://example.org/x.json"},
        {"type": "object", "properties": {"to": {"type": "no such"}}},
        {"type": "object", "properties": {"to": {"type": ["string", {}]}}, "required": [{}, 5]},
        {"type": "object", "properties": {"to": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}, "required": "to"},
        {"type": "object", "properties": {"to": {"allOf": [{"type": "integer"}, {"type": "string"}]}}},
        {"type": "object", "properties": {"to": {"enum": [{}, [], None, 5, "x"]}}},
        {"type": "object", "properties": [], "additionalProperties": {}},
        {"type": "object", "properties": {"to": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"x": {}}, "patternProperties": {"t.*": {}}, "additionalProperties": False},
    ],
)  # fmt: skip
def test_a_schema_that_is_not_understood_has_no_faults(schema: Any) -> None:
    for condition in ('context.arguments.to == "x"', "context.arguments has to && context.arguments.to > 5"):
        assert not any(one.fault for one in found(condition, schema))


def test_references_that_multiply_are_not_followed_for_ever() -> None:
    several = {str(level): {"anyOf": [{"$ref": f"#/$defs/{level + 1}"}] * 16} for level in range(9)}
    schema = {"type": "object", "properties": {"to": {"$ref": "#/$defs/0"}}, "$defs": several}
    began = time.process_time()
    assert not any(one.fault for one in found("context.arguments.to == 5", schema))
    assert time.process_time() - began < 60, "16 to the 9th would be 69 thousand million"


def test_a_fault_is_one_of_the_tools_that_the_policy_names_and_of_no_other() -> None:
    text = 'forbid(principal, action, resource == Server::"bank") when { context.target == "pay" && context.arguments.x > 1 };'
    fitting = Fitting(read(text, "p.cedar"), ())
    assert fitting.fault("bank", "pay", PAY)
    assert fitting.fault("bank", "PAY", PAY), "which the engine takes for `pay`"
    assert not fitting.fault("bank", "buy", PAY)
    assert not fitting.fault("shop", "pay", PAY)
    reading = 'forbid(principal, action == Action::"resources/read", resource) when { context.target == "pay" && context.arguments.x > 1 };'
    assert not Fitting(read(reading, "p.cedar"), ()).fault("bank", "pay", PAY)


def test_a_policy_for_any_tool_refuses_none_for_its_arguments() -> None:
    for condition in ("context.arguments.to > 5", "context.arguments.zzz > 5"):
        (finding,) = found(condition, target="")
        assert not finding.fault
    assert found("context.arguments has zzz && context.arguments.zzz > 5", target="") == []


def test_of_several_tools_that_a_policy_names_one_may_have_the_argument() -> None:
    text = 'forbid(principal, action, resource) when { ["pay", "send"].contains(context.target) && context.arguments has eur };'
    fitting = Fitting(read(text, "p.cedar"), ())
    has = {"type": "object", "properties": {"eur": {"type": "number"}}, "additionalProperties": False}
    assert not fitting.fault("bank", "pay", PAY, lambda server, tool: has)
    assert not fitting.fault("bank", "pay", PAY, lambda server, tool: None), "nobody knows the other one yet"
    assert fitting.fault("bank", "pay", PAY, lambda server, tool: PAY)


def rule(**more: Any) -> list[Finding]:
    return list(Fitting((), [Constraint("bank.pay", **more)]).findings("bank", "pay", PAY))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"arguments": {"amont": Argument(most=Decimal(5))}}, [(True, "unknown", "amont")]),
        ({"arguments": {"amont": Argument(most=Decimal(5), optional=True)}}, [(True, "unknown", "amont")]),
        ({"arguments": {"amount": Argument(most=Decimal(5))}}, []),
        ({"arguments": {"to": Argument(most=Decimal(5))}}, [(True, "kind", "to")]),
        ({"arguments": {"amount": Argument(matches="x")}}, [(True, "kind", "amount")]),
        ({"arguments": {"amount": Argument(under=("/x",))}}, [(True, "kind", "amount")]),
        ({"arguments": {"amount": Argument(one_of=("5",))}}, [(True, "kind", "amount")]),
        ({"arguments": {"amount": Argument(one_of=(5, "5"))}}, []),
        ({"arguments": {"currency": Argument(one_of=("GBP",), optional=True)}}, [(True, "kind", "currency")]),
        ({"arguments": {"currency": Argument(one_of=("EUR",), optional=True)}}, []),
        ({"arguments": {"currency": Argument(one_of=("EUR",))}}, [(False, "optional", "currency")]),
        ({"arguments": {"tags": Argument(matches="x", optional=True)}}, [(True, "kind", "tags")]),
        ({"arguments": {"tags": Argument(matches="x", each=True, optional=True)}}, []),
        ({"arguments": {"tags": Argument(most=Decimal(5), each=True, optional=True)}}, [(True, "kind", "tags")]),
        ({"arguments": {"payee": Argument()}}, [(True, "kind", "payee")]),
        ({"arguments": {"any": Argument(optional=True)}}, []),
        ({"budgets": (Spending("amont", Decimal(5), 60.0),)}, [(True, "unknown", "amont")]),
        ({"budgets": (Spending("to", Decimal(5), 60.0),)}, [(True, "kind", "to")]),
        ({"budgets": (Spending("amount", Decimal(5), 60.0),)}, []),
        ({"sql": Sql(("SELECT",))}, [(True, "unknown", "")]),
        ({"sql": Sql(("SELECT",), "too")}, [(True, "unknown", "too")]),
        ({"sql": Sql(("SELECT",), "amount")}, [(True, "kind", "amount")]),
        ({"sql": Sql(("SELECT",), "to")}, []),
    ],
)  # fmt: skip
def test_a_rule_on_an_argument_that_no_call_can_satisfy_is_a_fault(
    more: dict[str, Any], expected: list[tuple[bool, str, str]]
) -> None:
    assert said(rule(**more)) == expected


def test_a_rule_in_another_spelling_of_the_tool_gives_way_to_its_own() -> None:
    rules = [Constraint("PAY", {"x": Argument()}), Constraint("pay", {"amount": Argument()})]
    assert not Fitting((), rules).fault("bank", "pay", PAY)
    assert Fitting((), rules[:1]).fault("bank", "pay", PAY), "which holds where there is none for `pay`"


def test_arguments_that_no_tool_has_are_told_where_every_tool_says_what_it_takes() -> None:
    text = "".join(
        f"forbid(principal, action, {resource}) when {{ context.arguments has amont }};\n"
        for resource in ("resource", 'resource == Server::"bank"', 'resource == Server::"new"')
    )
    fitting = Fitting(read(text, "p.cedar"), ())
    told = list(fitting.strangers({"bank": frozenset(PAY["properties"])}))
    assert [(one.line, one.fault, one.hint) for one in told] == [
        (1, False, "did you mean `amount`?"),
        (2, False, "did you mean `amount`?"),
    ]
    assert list(fitting.strangers({"bank": frozenset({"amont"})})) == []
    assert list(fitting.strangers({})) == []


def test_what_is_found_of_many_tools_is_told_once_and_each_fault_of_its_tool() -> None:
    text = """
    @id("broad") forbid(principal, action, resource) when { context.arguments.currency == "EUR" };
    @id("named") forbid(principal, action, resource) when { ["a", "b"].contains(context.target) && context.arguments.to > 5 };
    """
    fitting, summary = Fitting(read(text, "p.cedar"), ()), Summary()
    for name in "abc":
        summary.add(fitting.findings("bank", name, PAY))
    assert [(one.rule, one.tool) for one in summary.faults] == [("named", "a"), ("named", "b")]
    (warning,) = summary.warnings
    assert "for 2 more" in warning.message
    assert summary.fault("bank", "a") == fitting.fault("bank", "a", PAY) != ""
    assert summary.fault("bank", "c") == fitting.fault("bank", "c", PAY) == ""


def test_hostile_names_are_made_visible() -> None:
    schema = {"type": "object", "properties": {"a\x1b[31m": {}}, "additionalProperties": False}
    text = 'forbid(principal, action, resource) when { context.target == "pa\\u{1b}y" && context.arguments has b };'
    fault = Fitting(read(text, "p.cedar"), ()).fault("ba\x1bnk", "pa\x1by", schema)
    assert fault
    assert fault.isprintable()


def test_walking_rests_after_each_policy() -> None:
    text = "forbid(principal, action, resource) when { context.arguments.to > 5 };\n" * 40
    walked = list(Fitting(read(text, "p.cedar"), ()).walk(Tool("bank", "pay", PAY)))
    assert sum(one is None for one in walked) == 40
