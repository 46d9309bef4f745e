from __future__ import annotations

import json
from typing import Any

import cedarpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import call, tool
from policing import NOON, allows, gate, named, refused

from aegis_daemon.core.call import Call
from aegis_daemon.core.verdict import Deny
from aegis_daemon.policy.context import MAX_DEPTH, MAX_TEXT, MAX_VALUES, Doubt, decimal, folded_text, instant, plain
from aegis_daemon.wire.jsonrpc import fold
from aegis_daemon.wire.methods import Direction, Era

WHOLE = "permit(principal, action, resource) when { context.arguments != {} };"
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


# --- values -----------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=5).filter(lambda key: not key.startswith("__")), JSON, max_size=4))
def test_cedar_takes_whatever_is_made_plain(arguments: dict[str, Any]) -> None:
    try:
        value = plain(arguments)
    except Doubt:
        return
    request = {
        "principal": {"type": "A", "id": "a"},
        "action": {"type": "Action", "id": "a"},
        "resource": {"type": "A", "id": "a"},
        "context": json.dumps({"arguments": value}),
    }
    result = cedarpy.is_authorized(request, "permit(principal, action, resource) when { context has arguments };", [])
    assert result.allowed
    assert result.diagnostics.errors == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.1, "0.1"), (1.0, "1.0"), (-2.5, "-2.5"), (1e21, "1000000000000000000000.0"), (1e-7, "0.0000001"),
        (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63)), (2**63, str(2**63)), (-(2**63) - 1, str(-(2**63) - 1)),
        (True, True), ("x", "x"), ({"a": None, "b": 1}, {"b": 1}), ([None, 1], [1]),
    ],
)  # fmt: skip
def test_what_cedar_cannot_hold_is_written_out_or_left_out(value: object, shown: object) -> None:
    found = plain(value)
    assert found == shown
    assert type(found) is type(shown)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_fraction_keeps_its_every_digit(number: float) -> None:
    text = decimal(number)
    assert float(text) == number
    assert "." in text
    assert "e" not in text


@pytest.mark.parametrize("key", ["__entity", "__extn", "__expr"])
def test_what_cedar_would_take_for_an_entity_is_refused_at_any_depth(key: str) -> None:
    forged = {key: {"type": "Role", "id": "Developer"}}
    for value in (forged, {"x": forged}, {"x": [1, {"y": forged}]}):
        with pytest.raises(Doubt, match=key):
            plain(value)


def test_an_argument_cannot_pass_for_a_role() -> None:
    policy = gate('permit(principal, action, resource) when { context.arguments.who in Role::"Developer" };')
    refusal = refused(policy.decide(tool("t", {"who": {"__entity": {"type": "Role", "id": "Developer"}}}), 0.0))
    assert refusal.code == "not_judged"
    assert "`__entity`" in refusal.text


@given(st.text(alphabet=st.sampled_from("aB \n\0\u200b\u00ad\u034f\uff21\u00df\ufb01\u0130e\u0301\ufe0f")))
def test_long_texts_are_folded_as_short_ones_are(text: str) -> None:
    long = text * (1 + 64 // max(1, len(text)))
    assert folded_text(long) == fold(long).strip()


def test_arguments_too_long_are_refused() -> None:
    text = "x" * MAX_TEXT
    assert plain({"": text}) == {"": text}
    for value in ({"a": text}, [text, "x"], {text: "x"}):
        with pytest.raises(Doubt, match="too long"):
            plain(value)


def test_a_text_that_unfolds_into_a_much_longer_one_is_refused() -> None:
    policy = gate('permit(principal, action, resource) when { context.arguments.text like "*x*" };')
    assert allows(policy, tool("t", {"text": "x" + "\u00df" * 1000}))
    refusal = refused(policy.decide(tool("t", {"text": "x" + "\ufdfa" * 1000}), 0.0))
    assert refusal.code == "not_judged"


def test_arguments_too_deep_or_too_many_are_refused() -> None:
    assert plain(deep(MAX_DEPTH)) == deep(MAX_DEPTH)
    for value in (deep(MAX_DEPTH + 1), [0] * MAX_VALUES):
        with pytest.raises(Doubt):
            plain(value)


def test_what_no_policy_looks_at_is_not_in_the_way() -> None:
    policy = gate('permit(principal, action, resource) when { context.arguments.path == "/x" };')
    odd = {"path": "/x", "content": deep(50), "other": {"__entity": 1}, "n": 1e300}
    assert allows(policy, tool("t", odd))
    assert not allows(gate(WHOLE), tool("t", odd))


# --- spellings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "DROP",
        "drop",
        "\uff24\uff32\uff2f\uff30",
        "dr\u200bop",
        "d%72op",
        "d%2572op",
        " drop ",
        "drop\x00",
        "%44ROP",
    ],
)
def test_spellings_that_a_careless_server_takes_for_one_are_folded_into_one(text: str) -> None:
    assert folded_text(text) == "drop"


@pytest.mark.parametrize("text", ["drop it", "drops", "dr op", "%", "%zz", "d%72", "dr0p"])
def test_other_words_stay_other_words(text: str) -> None:
    assert folded_text(text) != "drop"


@pytest.mark.parametrize("name", ["Path", "PATH", "\uff50\uff41\uff54\uff48", "pa\u200bth"])
def test_an_argument_that_hides_behind_another_spelling_is_refused(name: str) -> None:
    policy = gate(
        'permit(principal, action, resource); forbid(principal, action, resource) when { context.arguments has path && context.arguments.path == "/etc" };'
    )
    assert allows(policy, tool("t", {"path": "/data"}))
    assert allows(policy, tool("t", {}))
    assert not allows(policy, tool("t", {"path": "/etc"}))
    refusal = refused(policy.decide(tool("t", {name: "/etc"}), 0.0))
    assert "`path`" in refusal.text


# --- the rest of the context ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "hour", "minute", "weekday"),
    [(0, 0, 0, 4), (NOON, 12, 0, 4), (NOON + 86400 * 3 + 3599, 12, 59, 7), (NOON + 86400 * 4 + 43200, 0, 0, 2)],
)
def test_the_time_is_utc_and_the_week_begins_on_monday(epoch: float, hour: int, minute: int, weekday: int) -> None:
    assert instant(epoch) == {"epoch": int(epoch), "hour": hour, "minute": minute, "weekday": weekday}


def test_a_policy_may_look_at_the_clock() -> None:
    policy = gate(
        "permit(principal, action, resource) when { context.time.hour >= 9 && context.time.hour < 17 && context.time.weekday <= 5 };"
    )
    assert allows(policy, tool("t"))
    late = gate("permit(principal, action, resource) when { context.time.hour >= 17 };")
    assert not allows(late, tool("t"))
    assert late.visible(tool("t").principal, "files", "tool", "t"), "it may be called later"


def test_a_policy_may_look_at_the_session() -> None:
    policy = gate(
        'permit(principal, action, resource) when { context.session.era == "modern" && context.session.id == "s1" };'
    )
    assert allows(policy, tool("t", era=Era.MODERN))
    assert not allows(policy, tool("t"))


def test_a_policy_may_look_at_what_limits_have_counted_where_somebody_counts() -> None:
    text = "permit(principal, action, resource) when { context.rate.agent.used < 3 };"
    counts = {"used": 2, "max": 5}
    assert not allows(gate(text), tool("t")), "nobody counts, so nobody knows"
    policy = gate(text).counting(lambda call, now: {"agent": counts})
    assert allows(policy, tool("t"))
    counts["used"] = 3
    assert not allows(policy, tool("t"))


@pytest.mark.parametrize(
    ("primitive", "of"),
    [
        ("tool", named("tool", "x")),
        ("prompt", named("prompt", "x")),
        ("resource", named("resource", "file:///x")),
        ("prompt", call("completion/complete", {"ref": {"type": "ref/prompt", "name": "x"}, "argument": {}})),
        ("resource", call("subscriptions/listen", {"resourceSubscriptions": ["file:///x"]}, era=Era.MODERN)),
        ("sampling", call("sampling/createMessage", {"messages": []}, direction=Direction.TO_CLIENT)),
        ("elicitation", call("elicitation/create", {"message": "?"}, direction=Direction.TO_CLIENT)),
        ("roots", call("roots/list", {}, direction=Direction.TO_CLIENT)),
    ],
)
def test_every_primitive_is_judged_in_its_direction(primitive: str, of: Call) -> None:
    way = "to_client" if of.direction is Direction.TO_CLIENT else "to_server"
    right = f'permit(principal, action, resource) when {{ context.primitive == "{primitive}" && context.direction == "{way}" }};'
    assert allows(gate(right), of)
    for wrong in (
        right.replace(f'"{primitive}"', '"task"'),
        right.replace(way, "to_nobody"),
        right.replace("permit", "forbid"),
    ):
        assert isinstance(gate(wrong).decide(of, 0.0), Deny)


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "file:///etc/x/../passwd",
        "file:///%65tc/passwd",
        "file://localhost/etc/passwd",
        "file://127.0.0.1/etc/passwd",
        "file://x/etc/passwd",
        "file:///%2565tc/passwd",
        "file:///data/x%00",
    ],
)
def test_a_resource_is_judged_under_every_name_it_goes_by(uri: str) -> None:
    policy = gate(
        'permit(principal, action, resource); forbid(principal, action, resource) when { context.target like "file:///etc/*" };'
    )
    for of in (
        named("resource", uri),
        call("subscriptions/listen", {"resourceSubscriptions": ["file:///ok", uri]}, era=Era.MODERN),
    ):
        assert not allows(policy, of)
    assert allows(policy, named("resource", "file:///data/x"))
    assert allows(policy, named("resource", "file://share/data/x"))


def test_what_a_careless_server_could_make_of_a_uri_has_to_be_permitted_by_nobody() -> None:
    policy = gate('permit(principal, action, resource) when { context.target like "file://share/*" };')
    assert allows(policy, named("resource", "file://share/x"))
    assert not allows(policy, named("resource", "file:///x"))
    judged = call("roots/list", {}, direction=Direction.TO_CLIENT)
    assert policy.shows_root(judged, {"uri": "file://share/x"}, 0.0)


def test_a_root_that_a_careless_server_could_take_for_a_forbidden_one_is_withheld() -> None:
    policy = gate(
        'permit(principal, action, resource); forbid(principal, action, resource) when { context.target like "file:///etc/*" };'
    )
    judged = call("roots/list", {}, direction=Direction.TO_CLIENT)
    assert policy.shows_root(judged, {"uri": "file:///data"}, 0.0)
    assert not policy.shows_root(judged, {"uri": "file://x/etc/a"}, 0.0)


def test_lists_and_methods_without_a_name_are_not_the_policies_business() -> None:
    policy = gate("forbid(principal, action, resource);")
    for method in ("initialize", "tools/list", "resources/list", "ping", "logging/setLevel"):
        assert allows(policy, call(method, {}))


def test_a_task_belongs_to_who_made_it_and_needs_no_permit_of_its_own() -> None:
    assert allows(
        gate('permit(principal, action == Action::"tools/call", resource);'), call("tasks/get", {"taskId": "t"})
    )
    assert not allows(
        gate('forbid(principal, action == Action::"tasks/get", resource);'), call("tasks/get", {"taskId": "t"})
    )
