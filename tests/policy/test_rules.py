"""A rule passes a call only where every argument it names is there and is what it says."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_daemon.policy.rules import Argument, Constraint, Rule, Rules, Spending, Sql, compile_rule


def rule(
    forbid_extra: bool = False, sql: Sql | None = None, budgets: tuple[Spending, ...] = (), **arguments: Argument
) -> Rule:
    return compile_rule(Constraint("pay", arguments, forbid_extra, sql, budgets))


PAY = rule(
    amount=Argument(least=Decimal("0.01"), most=Decimal("500")),
    to=Argument(domains=("example.com",), each=True),
    path=Argument(under=("/data",)),
    url=Argument(hosts=("api.example.com",)),
    mode=Argument(one_of=("fast", "slow", 1, True)),
    note=Argument(matches="[a-z ]*", max_length=20, optional=True),
    count=Argument(least=Decimal(1), whole=True, optional=True),
)
FINE: dict[str, Any] = {
    "amount": 12.5,
    "to": ["a@example.com", "b@example.com"],
    "path": "/data/x",
    "url": "https://api.example.com/x",
    "mode": "fast",
}


def test_what_holds_passes() -> None:
    for more in ({}, {"note": "for you"}, {"count": 3}, {"count": 3.0}, {"to": "a@example.com"}, {"mode": 1}, {"mode": True},
                 {"note": None}, {"other": {"deep": [1]}}, {"amount": 0.01}, {"amount": 500}):  # fmt: skip
        assert PAY.judge({**FINE, **more}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("amount", 500.01), ("amount", 501), ("amount", 0), ("amount", -1), ("amount", "12.5"), ("amount", True), ("amount", [12]),
        ("amount", {"$gt": 0}), ("amount", 2**70), ("amount", 1e300), ("amount", 500.0000000000001), ("amount", 0.009999999999999),
        ("to", "a@evil.example"), ("to", ["a@example.com", "b@evil.example"]), ("to", [["a@example.com"]]), ("to", [None]), ("to", 5),
        ("to", {"address": "a@example.com"}), ("to", "a@example.com,b@evil.example"),
        ("path", "/etc/passwd"), ("path", 5), ("path", ["/data/x"]), ("path", {"__entity": {"type": "Path", "id": "/data/x"}}), ("path", ""),
        ("url", "https://evil.example"), ("url", ["https://api.example.com"]), ("url", "http://api.example.com"), ("url", False),
        ("mode", "Fast"), ("mode", "fast "), ("mode", ""), ("mode", 1.0), ("mode", 0), ("mode", False), ("mode", ["fast"]), ("mode", "1"), ("mode", "true"),
        ("note", "UPPER"), ("note", "a" * 21), ("note", 5), ("note", "a\nb"), ("count", 1.5), ("count", "1"), ("count", 0), ("count", True),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_reason_that_keeps_the_value(name: str, value: Any) -> None:
    reason = PAY.judge({**FINE, name: value})
    assert reason is not None
    assert reason.startswith(f"the argument `{name}` ")
    for secret in ("evil", "passwd", "500.", "UPPER", "/data"):
        assert secret not in reason


@pytest.mark.parametrize("name", list(FINE))
def test_a_missing_argument_is_refused_unless_it_is_optional(name: str) -> None:
    assert PAY.judge({key: value for key, value in FINE.items() if key != name}) == f"the argument `{name}` is missing"
    assert PAY.judge({**FINE, name: None}) == f"the argument `{name}` is missing"


@pytest.mark.parametrize("arguments", [None, [], [FINE], "x", 5, True])
def test_arguments_that_are_no_mapping_are_refused(arguments: Any) -> None:
    assert PAY.judge(arguments) is not None


def test_an_empty_list_of_addresses_is_nobody_and_passes_and_lists_are_refused_elsewhere() -> None:
    assert PAY.judge({**FINE, "to": []}) is None
    assert PAY.judge({**FINE, "mode": []}) is not None


@pytest.mark.parametrize("name", ["Note", "NOTE", "no\u200bte", "\uff4eote", "note\x00", "Amount", "\u017fql"])
def test_a_name_that_a_careless_server_takes_for_a_governed_one_is_refused(name: str) -> None:
    governed = rule(note=Argument(optional=True, matches="x"), amount=Argument(optional=True), sql=Sql(("SELECT",)))
    reason = governed.judge({name: "DROP TABLE x", "query": "SELECT 1"})
    assert reason is not None
    assert "may be taken for" in reason
    assert reason.isprintable()


def test_other_arguments_are_forbidden_where_the_rule_says_so() -> None:
    closed = rule(True, a=Argument(), budgets=(Spending("b", Decimal(5), 60.0),))
    assert closed.judge({"a": 1, "b": 2}) is None
    assert closed.judge({"a": 1, "b": 2, "c": 3}) == "the argument `c` is not allowed"
    assert closed.judge({"a": 1, "b": 2, "\u202e" * 100: 3}) is not None
    nothing = rule(True)
    assert nothing.judge({}) is None
    assert nothing.judge({"a": None}) is not None


def test_an_argument_of_which_nothing_is_said_has_to_be_there_and_to_be_one_value() -> None:
    plain = rule(a=Argument())
    for value in ("x", 1, 1.5, False):
        assert plain.judge({"a": value}) is None
    for value in ([1], {"b": 1}, None):
        assert plain.judge({"a": value}) is not None


# --- SQL


QUERY = rule(sql=Sql(("SELECT",), dialects=("postgres",)))


def test_every_argument_that_may_hold_sql_is_judged() -> None:
    assert QUERY.judge({"sql": "SELECT 1"}) is None
    assert QUERY.judge({"query": "SELECT 1", "limit": 5}) is None
    assert QUERY.judge({"sql": "SELECT 1", "query": "DROP TABLE x"}) is not None
    assert QUERY.judge({"sql": "SELECT 1", "statement": 5}) is not None
    for nothing in ({}, {"sql": None}, {"text": "SELECT 1"}):
        assert QUERY.judge(nothing) is not None
    for value in (["SELECT 1"], {"sql": "SELECT 1"}, 1, True, b"SELECT 1"):
        assert QUERY.judge({"sql": value}) is not None


def test_the_argument_that_holds_the_sql_may_be_named() -> None:
    named = rule(sql=Sql(("SELECT",), "q", ("postgres",)))
    assert named.judge({"q": "SELECT 1", "sql": "not judged"}) is None
    assert named.judge({"q": "DROP TABLE x"}) is not None
    assert named.judge({"sql": "SELECT 1"}) is not None


# --- budgets


def test_a_call_names_what_it_would_spend() -> None:
    spends = rule(
        budgets=(
            Spending("amount", Decimal(500), 60.0),
            Spending("tip", Decimal("9.5"), 30.0, each_agent=True, optional=True),
        )
    )
    assert spends.judge({"amount": 12.5}) is None
    everybody, own = spends.claims("amy", {"amount": 12.5})
    assert (everybody.scope, everybody.agent, everybody.backend, everybody.tool) == ("budget amount", None, "*", "pay")
    assert (everybody.amount, everybody.most, everybody.window_s) == ("12.5", "500", 60.0)
    assert (own.scope, own.agent, own.amount, own.most) == ("budget tip", "amy", "0", "9.5")
    assert rule(a=Argument()).claims("amy", {"a": 1}) == ()


@pytest.mark.parametrize("value", [-1, "5", True, None, [5], 1e-13, 2**60, 501, 500.000001, {"x": 1}])
def test_an_amount_that_cannot_be_counted_is_refused(value: Any) -> None:
    spends = rule(budgets=(Spending("amount", Decimal(500), 60.0),))
    assert spends.judge({"amount": value}) is not None
    assert spends.judge({}) is not None


def test_what_the_log_does_not_say_has_spent_everything() -> None:
    spends = rule(budgets=(Spending("amount", Decimal(500), 60.0),))

    def spent(content: Any) -> str:
        (claim,) = spends.spent(
            "amy", content if content is None or type(content) is bytes else msgspec.json.encode(content)
        )
        assert claim.most == "500"
        return claim.amount

    assert spent({"amount": 12.5}) == "12.5"
    assert spent({"arguments": {"amount": 3}, "inputResponses": {}}) == "3"
    for unreadable in (
        None,
        b"",
        b"{",
        b"[1]",
        {},
        {"amount": "[redacted]"},
        "[redacted]",
        {"amount": -1},
        {"arguments": 5},
    ):
        assert spent(unreadable) == "500"
    (claim,) = rule(budgets=(Spending("amount", Decimal(500), 60.0, optional=True),)).spent("amy", b"{}")
    assert claim.amount == "0"


# --- rules of a tool


def test_the_rules_for_a_tools_name_and_for_its_name_on_one_backend_both_hold() -> None:
    table = Rules(
        [
            compile_rule(Constraint(name, {"a": Argument(one_of=one_of)}))
            for name, one_of in (("pay", (1, 2)), ("bank.pay", (2, 3)))
        ]
    )
    assert [one.tool for one in table.of("bank", "pay")] == ["pay", "bank.pay"]
    assert [one.tool for one in table.of("shop", "pay")] == ["pay"]
    assert [one.tool for one in table.of("x", "bank.pay")] == ["bank.pay"], "a tool's own name may have a dot"
    assert [one.tool for one in table.of("bank", "PaY")] == ["pay", "bank.pay"], "servers may take it for the other"
    assert table.of("bank", "pays") == ()


def test_two_tools_that_differ_in_their_case_alone_have_each_its_own_rule() -> None:
    table = Rules([compile_rule(Constraint(name, {"a": Argument()})) for name in ("pay", "Pay")])
    assert [[one.tool for one in table.of("bank", name)] for name in ("pay", "Pay")] == [["pay"], ["Pay"]]
    assert [one.tool for one in table.of("bank", "PAY")] == ["pay", "Pay"]
    assert not Rules([])


# --- whatever is sent

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*FINE, "note", "count", "Path", "x"]), _json, max_size=8) | _json)
@settings(max_examples=300, deadline=None)
def test_any_arguments_are_judged_and_what_passes_is_what_the_rule_says(arguments: Any) -> None:
    if PAY.judge(arguments) is None:
        assert type(arguments["amount"]) in (int, float)
        assert Decimal("0.01") <= Decimal(repr(arguments["amount"])) <= 500
        assert arguments["mode"] in ("fast", "slow", 1, True)
        assert arguments["path"].startswith("/data")


FORBIDDEN = [{**FINE, "amount": 501}, {**FINE, "path": "/etc/passwd"}, {**FINE, "to": "a@evil.example"}, {**FINE, "mode": "rm"},
             {**FINE, "url": "https://evil.example/"}]  # fmt: skip


@given(st.sampled_from(FORBIDDEN), st.data())
@settings(max_examples=300, deadline=None)
def test_no_change_of_type_case_place_or_spelling_makes_a_forbidden_call_pass(
    call: dict[str, Any], data: st.DataObject
) -> None:
    (name,) = (key for key in call if call[key] != FINE[key])
    value = call[name]
    text = str(value)
    changed = data.draw(
        st.sampled_from(
            [text, [value], [[value]], {"value": value}, {name: value}, f" {text}", f"{text} ", f"{text}\x00", f"{text}\n", text.upper(),
             text.title(), text.encode().hex(), "".join(f"%{byte:02x}" for byte in text.encode()), f"{text}/", f"\u200b{text}", [FINE[name], value],
             f"{FINE[name]}\n{text}", f"{text}\\{FINE[name]}", f"{FINE[name]}/../..{text}" if name != "url" else text, None]
        )
    )  # fmt: skip
    assert PAY.judge({**call, name: changed}) is not None
    gone = {key: item for key, item in call.items() if key != name}
    for other in (name.upper(), name.title(), f"{name} ", f"{name}\u200b"):
        assert PAY.judge({**gone, other: value}) is not None
