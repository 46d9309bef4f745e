from __future__ import annotations

import json
import logging
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import Says, call, tool

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import Names, Restricted
from aegis_daemon.core.pipeline import _REMEMBERED, Pipeline, Unreadable
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.stage import Gate
from aegis_daemon.core.verdict import PASS, Allow, Ask, Claim, Deny, Hold, Pass, Permit, Reason
from aegis_daemon.stages.acl import Acl, Lists, Route
from aegis_daemon.stages.approval import Approval
from aegis_daemon.stages.rate_limit import RateLimit
from aegis_daemon.wire.jsonrpc import encode
from aegis_daemon.wire.methods import Era

DENY = Deny(Reason("acl", "no"))
LATER = Deny(Reason("policy", "no, later"))
ONE = Claim("agent", "amy", "files", "read", 60.0, 1)
TWO = Claim("global", None, "files", "read", 60.0, 9)


def hold(call: Call) -> Hold:
    return Hold(call, Ask("rule 1", 60.0))


def admitted(*gates: Gate, observe: bool = False, of: Call | None = None) -> Any:
    return Pipeline(gates, observe=observe).admit(of or call(), 5.0)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_a_pipeline_without_gates_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="without gates"):
        Pipeline([])


def test_a_permit_cannot_be_made_by_anyone_else() -> None:
    for mint in (None, object(), "mint", Permit):
        with pytest.raises(TypeError):
            Permit(mint, call())
    allowed = admitted(Says())
    with pytest.raises(TypeError):
        Permit(allowed.permit, call())


def test_a_permit_cannot_be_moved_to_another_call() -> None:
    permit = admitted(Says()).permit
    with pytest.raises(AttributeError):
        permit.call = call()


def test_what_no_gate_objects_to_is_allowed_with_the_exact_call() -> None:
    asked = call()
    gates = [Says(), Says()]
    verdict = admitted(*gates, of=asked)
    assert type(verdict) is Allow
    assert verdict.permit.call is asked
    assert verdict.claims == ()
    assert verdict.would is None
    assert [gate.asked for gate in gates] == [[(asked, 5.0)]] * 2


def test_the_first_objection_ends_the_matter() -> None:
    never = Says()
    assert admitted(Says(), Says(DENY), never, Says(LATER)) is DENY
    assert never.asked == []


def test_the_prices_of_all_gates_are_named_in_their_order() -> None:
    verdict = admitted(Says(Pass((TWO,))), Says(), Says(Pass((ONE,))))
    assert verdict.claims == (TWO, ONE)


def test_a_hold_carries_the_call_the_first_ask_and_the_prices() -> None:
    asked = call()
    second = Says(lambda call: Hold(call, Ask("rule 2", 1.0)))
    verdict = admitted(Says(Pass((ONE,))), Says(hold), second, Says(Pass((TWO,))), of=asked)
    assert type(verdict) is Hold
    assert (verdict.call, verdict.ask, verdict.claims) == (asked, Ask("rule 1", 60.0), (ONE, TWO))


def test_an_objection_after_a_hold_still_denies() -> None:
    assert admitted(Says(hold), Says(DENY)) is DENY


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize(
    "bad", [RuntimeError("broken"), lambda call: None, lambda call: True, lambda call: "pass", lambda call: Allow]
)
def test_a_gate_that_fails_denies_even_in_observe_mode(bad: Any, observe: bool, caplog: Any) -> None:
    with caplog.at_level(logging.ERROR, "aegis.pipeline"):
        verdict = admitted(Says(), Says(bad), observe=observe)
    assert type(verdict) is Deny
    assert (verdict.reason.stage, verdict.reason.code) == ("internal", "fault")
    assert "broken" not in verdict.reason.text
    assert caplog.records


def test_observe_mode_lets_a_refusal_pass_and_says_what_it_would_have_been() -> None:
    verdict = admitted(Says(DENY), Says(LATER), Says(Pass((ONE,))), observe=True)
    assert type(verdict) is Allow
    assert verdict.would is DENY.reason
    assert verdict.claims == (ONE,)


def test_observe_mode_asks_nobody_and_says_that_somebody_would_have_been() -> None:
    verdict = admitted(Says(hold), observe=True)
    assert type(verdict) is Allow
    assert verdict.would is not None
    assert (verdict.would.stage, verdict.would.detail) == ("approval", "rule 1")
    assert admitted(Says(DENY), Says(hold), observe=True).would is DENY.reason


def test_parameters_that_cannot_be_judged_are_a_fault_in_observe_mode_too() -> None:
    unjudged = Deny(Reason("params", "`resourceSubscriptions` must be a list"))
    assert admitted(Says(unjudged), observe=True) is unjudged


def test_an_approved_call_meets_todays_rules_again() -> None:
    asked = call()
    assert Pipeline([Says(hold), Says(DENY)]).resume(asked, 6.0) is DENY
    verdict = Pipeline([Says(Pass((ONE,))), Says(hold)]).resume(asked, 6.0)
    assert type(verdict) is Allow
    assert (verdict.permit.call, verdict.claims) == (asked, (ONE,))
    # A rule that no longer asks does not stand in the way of what was approved.
    assert type(Pipeline([Says()]).resume(asked, 6.0)) is Allow


@given(st.lists(st.sampled_from([PASS, DENY, LATER, "hold", "raise"]), min_size=1, max_size=6), st.booleans())
def test_nothing_is_allowed_unless_no_gate_objects_or_fails(script: list[Any], observe: bool) -> None:
    logging.disable(logging.CRITICAL)
    try:
        gates = [Says({"hold": hold, "raise": RuntimeError()}.get(s, s) if isinstance(s, str) else s) for s in script]
        verdict = admitted(*gates, observe=observe)
    finally:
        logging.disable(logging.NOTSET)
    bad = ["raise"] if observe else [DENY, LATER, "raise"]
    if any(s in bad for s in script):
        assert type(verdict) is Deny
    elif "hold" in script and not observe:
        assert type(verdict) is Hold
    else:
        assert type(verdict) is Allow


# --- lists ------------------------------------------------------------------------------------------------------------

TOOLS = [
    {"name": "a", "description": "does a", "inputSchema": {}, "x-vendor": [1, {"y": 2.5}]},
    {"name": "b"},
    {"name": "c"},
]


def listed(body: Any, *gates: Gate, method: str = "tools/list", era: Era = Era.LEGACY, observe: bool = False) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Pipeline(gates or [Says()], observe=observe).clean_list(call(method, {}, era=era), raw)


def test_a_list_in_which_nothing_changes_passes_as_the_same_bytes() -> None:
    body = b'{ "tools" : [ {"name":"a" , "n":1.50} ], "nextCursor":"2", "ttlMs": 0, "cacheScope" : "private" }'
    for era in (Era.LEGACY, Era.MODERN):
        assert listed(body, era=era) is body


def test_a_modern_list_is_for_one_agent_and_one_moment_even_if_nothing_was_hidden() -> None:
    body = {"tools": TOOLS, "ttlMs": 5, "cacheScope": "public"}
    assert json.loads(listed(body, era=Era.MODERN)) == {"tools": TOOLS, "ttlMs": 0, "cacheScope": "private"}
    assert json.loads(listed({"tools": TOOLS}, era=Era.MODERN))["cacheScope"] == "private"
    assert json.loads(listed(body, era=Era.LEGACY)) == body


def test_what_is_hidden_is_gone_and_the_rest_keeps_order_cursor_and_unknown_fields() -> None:
    body = {"nextCursor": "p2", "tools": TOOLS, "_meta": {"v": 1}, "x-vendor": None}
    cleaned = json.loads(listed(body, Says(hidden=frozenset("b"))))
    assert cleaned == {**body, "tools": [TOOLS[0], TOOLS[2]]}
    assert list(cleaned) == list(body)


def test_one_gate_that_hides_is_enough() -> None:
    gates = [Says(hidden=frozenset("a")), Says(hidden=frozenset("c"))]
    assert json.loads(listed({"tools": TOOLS}, *gates))["tools"] == [{"name": "b"}]


def test_of_a_list_only_so_many_unusual_names_are_judged(caplog: pytest.LogCaptureFixture) -> None:
    gate = Says()
    for method, items, key, start in (
        ("resources/list", "resources", "uri", "https://\u24d0.x/%252541"),
        ("tools/list", "tools", "name", "l\u00f6schen"),
    ):
        dear = [{key: f"{start}{number}"} for number in range(1200)]
        usual = [{key: f"notes:{number}"} for number in range(1200)]
        raw = json.dumps({items: [*dear, *usual]}).encode()
        assert json.loads(listed(raw, gate, method=method))[items] == [*dear[:1000], *usual]
        assert listed(raw, gate, method=method, observe=True) is raw, "nothing is judged"
        assert "200 unusual names too many" in caplog.text
        caplog.clear()


def test_a_page_of_hidden_things_is_an_empty_page_with_its_cursor() -> None:
    body = {"tools": TOOLS, "nextCursor": "p2"}
    assert json.loads(listed(body, Says(hidden=frozenset("abc")))) == {"tools": [], "nextCursor": "p2"}


def test_labels_stand_before_the_description_in_the_gates_order() -> None:
    gates = [Says(labels=("Rate:1/1d", "GlobalRate:15/1h")), Says(labels=("ApprovalRequired",))]
    prefix = "[Rate:1/1d|GlobalRate:15/1h|ApprovalRequired]"
    items = [*TOOLS, {"name": "d", "description": ""}, {"name": "e", "description": 5}]
    cleaned = json.loads(listed({"tools": items}, *gates))["tools"]
    assert [item["description"] for item in cleaned] == [f"{prefix} does a", prefix, prefix, prefix, prefix]
    assert {**cleaned[0], "description": "does a"} == TOOLS[0]


@pytest.mark.parametrize(
    ("method", "items", "key"),
    [
        ("resources/list", "resources", "uri"),
        ("resources/templates/list", "resourceTemplates", "uriTemplate"),
        ("prompts/list", "prompts", "name"),
    ],
)
def test_other_lists_are_filtered_and_never_labelled(method: str, items: str, key: str) -> None:
    gate = Says(hidden=frozenset(["x:secret"]), labels=("Rate:1/1d",))
    body = {items: [{key: "x:open", "description": "d"}, {key: "x:secret"}]}
    assert json.loads(listed(body, gate, method=method)) == {items: [{key: "x:open", "description": "d"}]}


@pytest.mark.parametrize(
    "body",
    [
        b"not json", b"", b"[]", b"null", b'"tools"', b"{}", b'{"tools":null}', b'{"tools":{}}', b'{"Tools":[]}',
        b'{"tools":["a"]}', b'{"tools":[{}]}', b'{"tools":[{"name":1}]}', b'{"tools":[{"Name":"a"}]}',
        b'{"tools":[{"name":"a"},null]}', b'{"tools":[{"name":"\\ud800"}]}', b'{"tools":[{"name":"a","x":1e400}]}',
        b'{"tools":' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_an_unreadable_list_is_withheld(body: bytes) -> None:
    with pytest.raises(Unreadable):
        listed(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"tools":[{"name":"secret"}],"tools":[{"name":"a"}]}',
        b'{"tools":[{"name":"secret","name":"a"}]}',
        b'{"tools":[{"name":"a"}],"Tools":[{"name":"secret"}]}',
        b'{"tools":[{"name":"a","NAME":"secret"}]}',
        b'{"tools":[{"name":"a","n\\u0061me":"secret"}]}',
    ],
)
def test_a_list_that_two_readers_take_differently_never_shows_what_is_hidden(body: bytes) -> None:
    try:
        shown = listed(body, Says(hidden=frozenset(["secret"])))
    except Unreadable:
        return
    assert b"secret" not in shown


def test_a_changed_modern_list_is_for_this_agent_and_for_now_only() -> None:
    body = {"tools": TOOLS, "cacheScope": "public", "ttlMs": 60000}
    modern = json.loads(listed(body, Says(hidden=frozenset("b")), era=Era.MODERN))
    assert (modern["cacheScope"], modern["ttlMs"]) == ("private", 0)
    legacy = json.loads(listed(body, Says(hidden=frozenset("b"))))
    assert (legacy["cacheScope"], legacy["ttlMs"]) == ("public", 60000)


def test_a_gate_that_fails_hides(caplog: Any) -> None:
    pipeline = Pipeline([Says(hidden=RuntimeError("broken"))])
    assert not pipeline.visible(Principal("amy"), "files", "tool", "a")
    assert json.loads(listed({"tools": TOOLS}, Says(hidden=RuntimeError("broken"))))["tools"] == []
    assert caplog.records


def test_observe_mode_shows_everything() -> None:
    body = encode({"tools": TOOLS})
    assert listed(body, Says(hidden=frozenset("abc")), observe=True) is body


@given(st.lists(st.sampled_from("abcdef"), max_size=8), st.frozensets(st.sampled_from("abcdef")))
def test_a_list_is_what_one_may_see_of_it(names: list[str], hidden: frozenset[str]) -> None:
    items = [{"name": name, "at": at} for at, name in enumerate(names)]
    cleaned = json.loads(listed({"tools": items}, Says(hidden=hidden)))["tools"]
    assert cleaned == [item for item in items if item["name"] not in hidden]


def test_the_arguments_of_a_call_are_what_its_method_takes() -> None:
    assert tool("read", {"path": "/x"}).arguments == {"path": "/x"}
    assert call(params={"name": "read"}).arguments == {}
    assert call("resources/read", {"uri": "x:1", "_meta": {"progressToken": 1}}).arguments == {"uri": "x:1"}


# --- what is remembered -----------------------------------------------------------------------------------------------


class ByName(Says):
    by_name = True


def test_gates_that_look_at_names_only_are_asked_once_for_a_name() -> None:
    gate = ByName(Pass((ONE,)))
    pipeline = Pipeline([gate])
    first, second = tool("read", {"n": 1}), tool("read", {"n": 2})
    verdicts = [pipeline.admit(first, 1.0), pipeline.admit(second, 2.0)]
    assert len(gate.asked) == 1
    assert [verdict.permit.call for verdict in verdicts if type(verdict) is Allow] == [first, second]
    assert all(type(verdict) is Allow and verdict.claims == (ONE,) for verdict in verdicts)


def test_a_remembered_hold_asks_about_the_call_at_hand() -> None:
    pipeline = Pipeline([ByName(hold)])
    for n in range(2):
        asked = tool("read", {"n": n})
        verdict = pipeline.admit(asked, 1.0)
        assert type(verdict) is Hold
        assert verdict.call is asked
        resumed = pipeline.resume(asked, 2.0)
        assert type(resumed) is Allow
        assert resumed.permit.call is asked


REF_A = {"type": "ref/prompt", "name": "x:a"}
DIFFERENT = [
    tool("x:a"),
    tool("x:b"),
    tool("x:a", agent="bob"),
    tool("x:a", backend="mail"),
    tool("x:a", tenant="t2"),
    call("prompts/get", {"name": "x:a"}),
    call("resources/read", {"uri": "x:a"}),
    call("resources/subscribe", {"uri": "x:a"}),
    call("completion/complete", {"ref": REF_A}),
    call("completion/complete", {"ref": {"type": "ref/resource", "uri": "x:a"}}),
    call("tasks/get", {"taskId": "x:a"}),
]


def test_whatever_differs_is_asked_anew() -> None:
    gate = ByName(lambda call: DENY if call is DIFFERENT[0] else PASS)
    pipeline = Pipeline([gate])
    verdicts = [pipeline.admit(one, 1.0) for one in DIFFERENT]
    assert [asked for asked, _ in gate.asked] == DIFFERENT
    assert verdicts[0] is DENY
    assert all(type(verdict) is Allow for verdict in verdicts[1:])


@pytest.mark.parametrize("gates", [[Says()], [ByName(), Says()]])
def test_a_gate_that_may_look_at_more_is_asked_every_time(gates: list[Says]) -> None:
    pipeline = Pipeline(gates)
    for _ in range(3):
        pipeline.admit(tool("read"), 1.0)
    assert len(gates[-1].asked) == 3


def test_a_call_without_a_name_is_judged_every_time() -> None:
    gate = ByName()
    pipeline = Pipeline([gate])
    for _ in range(3):
        pipeline.admit(call("subscriptions/listen", {"resourceSubscriptions": ["x:a"]}), 1.0)
    assert len(gate.asked) == 3


def test_a_fault_is_not_remembered(caplog: Any) -> None:
    opinions: list[Any] = [RuntimeError("once"), PASS]

    def say(call: Call) -> Any:
        opinion = opinions.pop(0)
        if isinstance(opinion, Exception):
            raise opinion
        return opinion

    pipeline = Pipeline([ByName(say)])
    assert type(pipeline.admit(tool("read"), 1.0)) is Deny
    assert type(pipeline.admit(tool("read"), 2.0)) is Allow


def test_an_agent_that_invents_names_costs_us_no_memory() -> None:
    gate = ByName()
    pipeline = Pipeline([gate])
    pipeline.admit(tool("x" * 257), 1.0)
    assert pipeline._known == {}
    frame = tool("read")
    for number in range(_REMEMBERED + 50):
        pipeline.admit(msgspec.structs.replace(frame, name=f"t{number}"), 1.0)
    assert len(pipeline._known) == _REMEMBERED
    assert len(gate.asked) == _REMEMBERED + 51


REAL_GATES: list[Any] = [
    Acl(
        {
            ("amy", "files"): Route(tools=Lists(None, Restricted(["wipe", "x:*"]))),
            ("bob", "files"): Route(resources=Lists(Names(["x:*"]), None), prompts=Lists(None, Restricted(["x:a"]))),
        },
        deny=Restricted(["mail.*", "x:b"]),
        open_unlisted=True,
        refused=frozenset([("bob", "mail")]),
    ),
    RateLimit({("files", "read"): TWO}, {("amy", "files", "read"): ONE}),
    Approval({("amy", "files"): Restricted(["post"]), ("eve", "web"): Restricted(["*"])}, 60.0),
]
CALLS = st.one_of(
    st.sampled_from(DIFFERENT),
    st.builds(
        tool,
        st.sampled_from(["read", "post", "wipe", "x:b"]),
        st.sampled_from([{}, {"n": 1}]),
        agent=st.sampled_from(["amy", "bob", "eve"]),
        backend=st.sampled_from(["files", "mail", "web"]),
    ),
)


@given(st.lists(CALLS, max_size=30), st.booleans())
def test_what_is_remembered_is_what_would_be_said_again(calls: list[Call], observe: bool) -> None:
    remembering = Pipeline(REAL_GATES, observe=observe)
    assert remembering._by_name
    for one in calls:
        fresh, known = Pipeline(REAL_GATES, observe=observe).admit(one, 1.0), remembering.admit(one, 1.0)
        assert type(fresh) is type(known)
        if isinstance(fresh, Allow) and isinstance(known, Allow):
            assert (known.permit.call, known.claims, known.would) == (one, fresh.claims, fresh.would)
        else:
            assert fresh == known
