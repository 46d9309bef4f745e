"""The modern era: an envelope in every request, questions inside answers, subscriptions under the client's own id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, call, cancel, modern, note, request, result, text

from aegis_daemon.wire.methods import META_CAPABILITIES, META_SUBSCRIPTION, META_VERSION

MakePlay = Callable[..., Play]

LIMITED = """
backends: {files: {}}
agents:
  bot:
    backends:
      files:
        allowed: true
        server_requests: [elicitation]
        rate_limits: {post: 2/day}
        approval_required: [pay]
"""
ASK = {"q": {"method": "elicitation/create", "params": {"message": "sure?"}}}


def needs_input(state: Any = "S", asks: Any = ASK, **more: Any) -> dict[str, Any]:
    found = {"resultType": "input_required", "inputRequests": asks, **more}
    return found if state is None else {**found, "requestState": state}


# --- the envelope -----------------------------------------------------------------------------------------------------


def test_a_modern_session_needs_no_handshake(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session()
    s.calls(modern(request(1, "server/discover")), {"supportedVersions": ["2026-07-28"], "capabilities": {}})
    s.calls(modern(call(2, "echo")))
    play.recorded(
        {"kind": "intent", "method": "server/discover", "era": "modern"}, "outcome",
        {"kind": "intent", "method": "tools/call", "name": "echo", "era": "modern"}, "outcome",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        (None, META_VERSION),
        ({}, META_VERSION),
        ({META_CAPABILITIES: {}}, META_VERSION),
        ({META_VERSION: "2026-07-28"}, META_CAPABILITIES),
        ({META_VERSION: "2026-07-28", META_CAPABILITIES: None}, META_CAPABILITIES),
        ({META_VERSION: "2026-07-28", META_CAPABILITIES: []}, META_CAPABILITIES),
        ({META_VERSION: None, META_CAPABILITIES: {}}, "version"),
    ],
)
def test_a_request_without_its_whole_envelope_is_refused(make_play: MakePlay, meta: Any, words: str) -> None:
    play = make_play()
    s = play.session()
    s.calls(modern(call(1, "x")))
    s.client.says({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "x", "_meta": meta}})
    s.client.hears_error(2, -32602, words)
    s.is_quiet()
    play.recorded("intent", "outcome", {"kind": "denied", "stage": "params", "code": -32602})


def test_discover_without_an_envelope_is_refused_even_as_the_first_frame(make_play: MakePlay) -> None:
    s = make_play().session()
    s.client.says(request(1, "server/discover"))
    s.client.hears_error(1, -32602, META_VERSION)
    assert not s.server.touched


@pytest.mark.parametrize("version", ["2027-01-01", "2025-11-25", "", "draft", 20260728, ["2026-07-28"]])
def test_an_unknown_version_is_refused_with_those_that_are_known(make_play: MakePlay, version: Any) -> None:
    play = make_play()
    s = play.session()
    s.client.says(modern(request(1, "server/discover"), version=version))
    s.client.hears_error(1, -32022, "unsupported protocol version", supported=["2026-07-28"])
    assert not s.server.touched
    play.recorded({"kind": "denied", "stage": "version", "code": -32022})
    s.handshake()  # and the legacy era is still to be had, from the same server
    assert len(s.servers) == 1


def test_capabilities_are_masked_in_every_request_and_unknown_ones_kept(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    offered = {"sampling": {}, "elicitation": {"form": {}}, "roots": {}, "tasks": {}, "extensions": {"x": {}}}
    s.client.says(modern(call(1, "x", token="t"), capabilities=offered))
    heard = s.server.hears("tools/call")
    assert heard["params"]["_meta"] == {
        "progressToken": "t",
        META_VERSION: "2026-07-28",
        META_CAPABILITIES: {"elicitation": {"form": {}}, "extensions": {"x": {}}},
    }
    s.server.answers(heard)
    s.client.hears_result(1)


@pytest.mark.parametrize(
    "frame",
    [
        modern(request(1, "initialize", protocolVersion="2025-06-18", capabilities={})),
        modern(request(1, "ping")),
        modern(request(1, "logging/setLevel", level="info")),
        modern(request(1, "resources/subscribe", uri="file:///a")),
        modern(request(1, "resources/unsubscribe", uri="file:///a")),
        modern(request(1, "tasks/list")),
        modern(request(1, "tasks/result", taskId="t")),
        request(1, "subscriptions/listen"),
        request(1, "tasks/update", taskId="t"),
    ],
)
def test_a_method_of_the_other_era_is_not_known(make_play: MakePlay, frame: dict[str, Any]) -> None:
    s = make_play().session()
    s.client.says(frame)
    s.client.hears_error(1, -32601, "is not known")
    s.is_quiet()


def test_a_server_asks_nothing_of_its_own_in_the_modern_era(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.calls(modern(call(1, "x")))
    for method in ("elicitation/create", "ping", "roots/list", "made/up"):
        s.server.says(request(9, method))
        s.server.hears_error(9, -32601, "is not known to Aegis")
    s.client.hears_nothing()


# --- questions inside answers -----------------------------------------------------------------------------------------


def test_an_allowed_question_reaches_the_client_and_its_retry_runs_on_the_same_lease_once(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.calls(modern(call(1, "post", a=1)), needs_input())
    assert play.used() == {"post": (0, 1)}
    retry = modern(call(2, "post", a=1), requestState="S", inputResponses={"q": {"action": "accept"}})
    s.calls(retry)
    assert play.used() == {"post": (1, 0)}
    s.calls({**retry, "id": 3})  # the same state a second time is a call like any other
    assert play.used() == {"post": (2, 0)}
    s.client.says({**retry, "id": 4})
    s.client.hears_result(4, {"isError": True})


def test_a_retry_whose_server_gave_no_state_keeps_its_lease_too(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.calls(modern(call(1, "post")), needs_input(state=None))
    assert play.used() == {"post": (0, 1)}
    s.calls(modern(call(2, "post"), inputResponses={"q": {}}))
    assert play.used() == {"post": (1, 0)}


@pytest.mark.parametrize(
    "other",
    [
        modern(call(2, "post", a=2), requestState="S", inputResponses={}),
        modern(call(2, "post", a=1), requestState="T", inputResponses={}),
        modern(call(2, "post", a=1), requestState="S", inputResponses={}, task={"ttl": 1}),
        modern(call(2, "post", a=1)),
        modern(call(2, "post", a=1.0), requestState="S", inputResponses={}),
    ],
)
def test_any_other_difference_is_a_fresh_decision(make_play: MakePlay, other: dict[str, Any]) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.calls(modern(call(1, "post", a=1)), needs_input())
    s.calls(other)
    assert play.used() == {"post": (1, 1)}
    play.advance(601)
    assert play.used() == {"post": (2, 0)}  # what the server did before it asked may have had its effect


def test_another_session_cannot_take_up_a_state(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    a, b = play.session(), play.session()
    a.calls(modern(call(1, "post")), needs_input())
    b.calls(modern(call(1, "post"), requestState="S", inputResponses={}))
    assert play.used() == {"post": (1, 1)}


def test_an_approval_holds_for_the_retry_once_and_for_nothing_else(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.client.says(modern(call(1, "pay", eur=5)))
    play.desk.decide(play.ticket().id, True, "ann")
    s.server.answers(s.server.hears("tools/call"), needs_input())
    s.client.hears_result(1)
    s.client.says(modern(call(2, "pay", eur=6), requestState="S", inputResponses={}))
    shown = '{"arguments":{"eur":6},"requestState":"S","inputResponses":{}}'
    assert play.ticket().arguments == shown, "whoever decides sees the answers too"
    s.client.says(cancel(2))
    play.seen = len(play.log.records)
    s.calls(modern(call(3, "pay", eur=5), requestState="S", inputResponses={"q": {}}))
    play.recorded({"kind": "intent", "approval": "approved", "approver": "ann"}, "outcome")
    s.client.says(modern(call(4, "pay", eur=5), requestState="S", inputResponses={"q": {}}))
    s.server.hears_nothing()
    s.client.says(cancel(4))


def test_a_retry_needs_a_person_if_nobody_agreed_before_and_todays_rules_want_one(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.calls(modern(call(1, "post")), needs_input())
    play.reload(LIMITED.replace("[pay]", "[pay, post]"))
    s.client.says(modern(call(2, "post"), requestState="S", inputResponses={}))
    s.server.hears_nothing()
    play.desk.decide(play.ticket().id, True, "ann")
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(2)
    assert play.used() == {"post": (1, 0)}


def test_a_retry_that_is_refused_or_withdrawn_does_not_give_the_lease_back(make_play: MakePlay) -> None:
    play = make_play(LIMITED + "queue: {files: {enabled: true, delay_min: 60s, delay_max: 60s}}\n")
    s = play.session()
    s.calls(modern(call(1, "post")), needs_input())
    s.client.says(modern(call(2, "post"), requestState="S", inputResponses={}), cancel(2))  # it stood in the queue
    assert play.used() == {"post": (1, 0)}
    play.advance(120)
    s.calls(modern(call(3, "post")), needs_input())
    play.log.unavailable = "disk full"
    s.client.says(modern(call(4, "post"), requestState="S", inputResponses={}))
    play.advance(120)
    s.client.hears_error(4, -32603, "disk full")
    assert play.used() == {"post": (2, 0)}


def test_a_retry_that_fails_at_the_server_costs_nothing(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.calls(modern(call(1, "post")), needs_input())
    s.calls(modern(call(2, "post"), requestState="S", inputResponses={}), text("no", isError=True))
    assert play.used() == {"post": (0, 0)}


def test_a_question_may_be_asked_again_and_again_on_one_lease(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.calls(modern(call(0, "post")), needs_input("0"))
    for turn in range(1, 5):
        state = {"requestState": str(turn - 1), "inputResponses": {}}
        s.calls(modern(call(turn, "post"), **state), needs_input(str(turn)))
        assert play.used() == {"post": (0, 1)}
    s.calls(modern(call(9, "post"), requestState="4", inputResponses={}))
    assert play.used() == {"post": (1, 0)}


def test_two_answers_with_one_state_keep_one_lease_and_count_the_other(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.calls(modern(call(1, "post")), needs_input())
    s.calls(modern(call(2, "post")), needs_input())
    assert play.used() == {"post": (1, 1)}
    s.calls(modern(call(3, "post"), requestState="S", inputResponses={}))
    assert play.used() == {"post": (2, 0)}


def test_what_nobody_takes_up_counts_when_the_session_ends(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.calls(modern(call(1, "post")), needs_input())
    s.leave()
    assert play.used() == {"post": (1, 0)}


@pytest.mark.parametrize(
    "asks",
    [
        {"q": {"method": "sampling/createMessage", "params": {}}},
        {"a": ASK["q"], "q": {"method": "roots/list"}},
        {"q": {"method": "tools/call"}},
        {"q": {"method": 5}},
        {"q": {}},
        {"q": None},
        [ASK["q"]],
        "x",
    ],
)
def test_a_question_that_is_not_allowed_is_withheld(make_play: MakePlay, asks: Any) -> None:
    play = make_play(LIMITED)
    s = play.session()
    s.client.says(modern(call(1, "post")))
    s.server.answers(s.server.hears("tools/call"), needs_input(asks=asks))
    s.client.hears_error(1, -32603, "answer is withheld")
    assert play.used() == {"post": (1, 0)}
    play.recorded("intent", {"kind": "outcome", "status": "unknown", "consumed": True})


@pytest.mark.parametrize(
    "hidden",
    [
        b'{"result\\u0054ype":"input_required","inputRequests":{"q":{"method":"roots/list"}}}',
        b'{"resultType":"input_requ\\u0069red","inputRequests":{"q":{"method":"roots/list"}}}',
        b'{"resultType" : "input_required","inputRequests":{"q":{"method":"roots\\/list"}}}',
    ],
)
def test_a_question_that_is_spelled_oddly_is_withheld_all_the_same(make_play: MakePlay, hidden: bytes) -> None:
    s = make_play(LIMITED).session()
    s.client.says(modern(call(1, "x")))
    heard = s.server.hears("tools/call")
    s.server.says(b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (heard["id"], hidden))
    s.client.hears_error(1, -32603, "which is not allowed", reason="server_request_not_allowed")


def test_a_state_alone_asks_nothing_and_passes(make_play: MakePlay) -> None:
    play = make_play(LIMITED)
    s = play.session()
    given = {"resultType": "input_required", "requestState": "later"}
    assert s.calls(modern(call(1, "post")), given) == given
    s.calls(modern(call(2, "post"), requestState="later"))
    assert play.used() == {"post": (1, 0)}


def test_large_states_cost_the_daemon_a_digest_each(make_play: MakePlay) -> None:
    s = make_play(LIMITED).session()
    s.calls(modern(call(1, "post", pad="x" * 100_000)), needs_input("y" * 1_000_000))
    assert all(len(key) <= 64 for key in s.talk.unsettled.suspended)


# --- subscriptions ----------------------------------------------------------------------------------------------------


def listen(id: Any, *uris: str) -> dict[str, Any]:
    return modern(request(id, "subscriptions/listen", notifications={"resourceSubscriptions": list(uris)}))


def about(id: Any, method: str, **params: Any) -> dict[str, Any]:
    return note(method, _meta={META_SUBSCRIPTION: id, "kept": 1}, **params)


def test_a_subscription_is_named_by_each_sides_own_id(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session()
    s.client.says(listen("mine", "file:///a"))
    number = s.server.hears("subscriptions/listen")["id"]
    s.server.says(about(number, "subscriptions/acknowledged", notifications={}))
    s.client.hears("notifications/subscriptions/acknowledged", _meta={META_SUBSCRIPTION: "mine", "kept": 1})
    play.advance(86400)  # it lasts
    s.server.says(about(number, "resources/updated", uri="file:///a"), about(number, "tools/list_changed"))
    s.client.hears("notifications/resources/updated", _meta={META_SUBSCRIPTION: "mine"}, uri="file:///a")
    s.client.hears("notifications/tools/list_changed", _meta={META_SUBSCRIPTION: "mine"})
    s.server.says(result(number, {"resultType": "complete", "_meta": {META_SUBSCRIPTION: number, "kept": 2}}))
    s.client.hears_result("mine", {"resultType": "complete", "_meta": {META_SUBSCRIPTION: "mine", "kept": 2}})
    s.server.says(about(number, "tools/list_changed"))
    s.client.hears_nothing()


def test_a_server_ends_a_subscription_by_cancelling_it(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session()
    s.client.says(listen("mine"))
    number = s.server.hears("subscriptions/listen")["id"]
    s.server.says(about(number, "subscriptions/acknowledged"))
    s.client.next()
    s.server.says(cancel(number, reason="shutting down"))
    s.client.hears("notifications/cancelled", requestId="mine", reason="shutting down")
    assert len(s.talk.to_server) == 0
    s.server.says(result(number), cancel(number))
    play.advance(1)
    s.is_quiet()
    play.recorded("intent", {"kind": "outcome", "status": "success"}, "dropped")


def test_a_client_ends_a_subscription_and_hears_no_more_of_it(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session()
    s.client.says(listen("mine"))
    number = s.server.hears("subscriptions/listen")["id"]
    s.server.says(about(number, "subscriptions/acknowledged"))
    s.client.next()
    s.client.says(cancel("mine"))
    s.server.hears("notifications/cancelled", requestId=number)
    s.server.says(about(number, "tools/list_changed"), cancel(number))
    s.is_quiet()
    assert len(s.talk.to_server) == 0


def test_a_subscription_that_is_never_acknowledged_ends_like_any_call(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session()
    s.client.says(listen(1))
    s.server.hears("subscriptions/listen")
    play.advance(121)
    s.client.hears_error(1, -32603, "no answer within")
    s.server.hears("notifications/cancelled")


def test_a_server_cannot_make_a_call_last_for_ever_by_calling_it_a_subscription(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session()
    s.client.says(modern(call(1, "slow")))
    number = s.server.hears("tools/call")["id"]
    s.server.says(about(number, "message", data="x"), about(999, "message"), about("1", "message"), cancel(number))
    s.client.hears_nothing()
    play.advance(121)
    s.client.hears_error(1, -32603, "no answer within")
    s.server.hears("notifications/cancelled")


def test_a_subscription_to_what_is_not_allowed_is_refused_and_its_updates_are_dropped(make_play: MakePlay) -> None:
    play = make_play(
        "backends: {files: {}}\n"
        "agents: {bot: {backends: {files: {allowed: true, resource_denylist: ['file:///secret*']}}}}\n"
    )
    s = play.session()
    s.client.says(listen(1, "file:///a", "file:///secret/b"))
    s.client.hears_error(1, -31001, "is not available to this agent")
    s.client.says(modern(request(2, "subscriptions/listen", notifications={"resourceSubscriptions": "all"})))
    s.client.hears_error(2, -32602, "list of strings")
    s.client.says(listen(3, "file:///a"))
    number = s.server.hears("subscriptions/listen")["id"]
    s.server.says(about(number, "resources/updated", uri="file:///secret/b"))
    s.server.says(about(number, "resources/updated", uri="FILE:///x/../secret"), about(number, "resources/updated"))
    s.client.hears_nothing()
    s.server.answers({"id": number})
    s.client.hears_result(3)
