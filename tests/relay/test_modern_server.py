"""A legacy client and a modern server: what each hears of the other, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from erabook import ALL, ASK, FORM, FOUND, INIT, Ends, acknowledged
from playbook import call, error, modern, note, raw, request, result, text

from aegis_daemon.core.ports import Fault
from aegis_daemon.relay.eras.frames import ASKS, META_LEVEL
from aegis_daemon.relay.eras.modern_server import ROUNDS
from aegis_daemon.wire.methods import META_CAPABILITIES, META_CLIENT, META_SUBSCRIPTION, META_VERSION, MODERN_VERSION


def test_requests_gain_the_envelope_and_results_lose_theirs() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t", token="p"))
    heard = ends.server.hears("tools/call", name="t")
    envelope = {META_VERSION: MODERN_VERSION, META_CAPABILITIES: ALL, META_CLIENT: INIT["clientInfo"]}
    assert heard["params"]["_meta"] == {"progressToken": "p", **envelope}
    ends.server.says(note("progress", progressToken="p", progress=1), about=2)
    ends.hears(note("progress", progressToken="p", progress=1), 2)
    ends.server.answers(heard, {**text("ok"), "resultType": "complete", "_meta": {"a": 1}})
    assert ends.hears_result(2) == {**text("ok"), "_meta": {"a": 1}}
    ends.says(request(3, "tools/list", cursor="x"))
    heard = ends.server.hears("tools/list", cursor="x")
    assert heard["params"]["_meta"] == envelope
    ends.server.answers(heard, {"tools": [], "ttlMs": 1, "cacheScope": "public"})
    assert ends.hears_result(3) == {"tools": []}
    ends.says(call(4, "t"))
    ends.server.refuses(ends.server.hears("tools/call"), -32021, message="no", data=[1.5])
    assert ends.hears_error(4, -32021)["data"] == [1.5]
    ends.is_quiet()


def test_what_only_the_legacy_era_has_is_answered_here() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(request(2, "ping"), request(3, "logging/setLevel", level="error"), note("roots/list_changed"))
    ends.hears_result(2, {})
    ends.hears_result(3, {})
    ends.bridge.send(raw(request(4, "ping")), None, 4)
    ends.hears_result(4, {})
    ends.says(call(5, "t"))
    ends.server.hears("tools/call", _meta={META_LEVEL: "error"})
    ends.says(request(6, "logging/setLevel", level="loud"))
    ends.hears_error(6, -32602)
    ends.says(request(7, "tasks/list"), request(8, "tasks/result", taskId="x"), request(9, "tasks/get", taskId="x"))
    for id in (7, 8, 9):
        ends.hears_error(id, -32601, MODERN_VERSION)
    ends.says(request(10, "tools/call", name="t", task={}))
    ends.hears_error(10, -32602, "task")
    ends.says(request(11, "initialize", **INIT))
    ends.hears_result(11, {"protocolVersion": "2025-06-18"})
    ends.is_quiet()


@pytest.mark.parametrize(
    "value",
    [
        {"resultType": "task", "taskId": "t"}, {"resultType": "input_required"}, {"resultType": 7}, [], 1,
        {"resultType": "input_required", "inputRequests": []},
        {"resultType": "input_required", "inputRequests": {"a": 1}},
        {"resultType": "input_required", "inputRequests": {"a": {"method": "tools/call", "params": {}}}},
        {"resultType": "input_required", "inputRequests": {"a": {"method": ["x"]}}},
        {"resultType": "input_required", "inputRequests": {"a": {"method": "roots/list", "params": []}}},
        {"resultType": "input_required", "inputRequests": {"a": ASK}, "requestState": 7},
        {"resultType": "input_required", "inputRequests": {str(n): ASK for n in range(ASKS + 1)}},
        {"resultType": "input_required", "inputRequests": {
            "a": {"method": "elicitation/create", "params": {"mode": "url", "url": "x", "message": "m"}}}},
    ],
)  # fmt: skip
def test_a_modern_result_without_a_legacy_equivalent_ends_its_request_alone(value: Any) -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t"), call(3, "t"))
    ends.server.hears("tools/call")
    ends.server.hears("tools/call")
    ends.server.answers({"id": 2}, value)
    if ends.lost:
        ends.loses(2, "bad_answer")
    else:
        ends.hears_error(2, -32603)
    ends.server.answers({"id": 3}, text("ok"))
    ends.hears_result(3)
    ends.is_quiet()
    assert not ends.clock.waiting


def needs(ends: Ends, questions: Any, state: Any = "S", id: int = 2) -> list[dict[str, Any]]:
    """A call whose server wants something; gives what the client is asked."""
    ends.says(call(id, "t"))
    value = {"resultType": "input_required", "inputRequests": questions}
    ends.server.answers(ends.server.hears("tools/call"), value if state is None else {**value, "requestState": state})
    return [ends.hears({"method": ask["method"]}, id) for ask in questions.values()]


def test_questions_are_put_to_the_client_and_the_call_is_repeated_with_the_answers() -> None:
    ends = Ends().legacy_on_modern()
    first, second = needs(ends, {"x": ASK, "y": {"method": "roots/list"}})
    assert first["params"] == FORM
    assert first["id"] != second["id"]
    ends.says(result(second["id"], {"roots": []}))
    ends.is_quiet()
    ends.bridge.send(raw(result(first["id"], {"action": "decline"})), None, 0)
    heard = ends.server.hears("tools/call", name="t", requestState="S")
    assert heard["params"]["inputResponses"] == {"x": {"action": "decline"}, "y": {"roots": []}}
    assert heard["params"]["_meta"][META_VERSION] == MODERN_VERSION
    assert heard["id"] != 2
    ends.server.says(note("custom"), about=heard["id"])
    ends.hears(note("custom"), 2)
    ends.server.answers(heard, {"resultType": "input_required", "inputRequests": {"z": ASK}})
    third = ends.hears({"method": "elicitation/create"}, 2)
    ends.says(result(third["id"], {"action": "cancel"}))
    heard = ends.server.hears("tools/call", inputResponses={"z": {"action": "cancel"}})
    assert "requestState" not in heard["params"]
    ends.server.answers(heard, {**text("done"), "resultType": "complete"})
    assert ends.hears_result(2) == text("done")
    ends.is_quiet()


def test_a_state_alone_is_repeated_after_a_moment() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t"))
    ends.server.answers(ends.server.hears("tools/call"), {"resultType": "input_required", "requestState": "S"})
    ends.is_quiet()
    ends.advance(0.25)
    ends.server.answers(ends.server.hears("tools/call", requestState="S"), text("x"))
    ends.hears_result(2)
    assert not ends.clock.waiting


def test_a_server_that_asks_for_ever_is_given_up() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t"))
    for _ in range(ROUNDS + 1):
        heard = ends.server.hears("tools/call")
        ends.server.answers(heard, {"resultType": "input_required", "requestState": "S"})
        ends.advance(0.25)
    ends.hears_error(2, -32603)
    ends.is_quiet()


def test_an_error_of_the_client_ends_the_call_and_takes_back_the_other_questions() -> None:
    ends = Ends().legacy_on_modern()
    first, second = needs(ends, {"x": ASK, "y": {"method": "roots/list"}})
    ends.says(error(first["id"], -1, "no way", data={"a": 1}))
    ends.hears(note("cancelled", requestId=second["id"]), 2)
    assert ends.hears_error(2, -1) == {"code": -1, "message": "no way", "data": {"a": 1}}
    ends.is_quiet()
    ends.says(result(second["id"], {"roots": []}))
    ends.server.hears_answer(second["id"])  # nobody's any more: as whatever else the conversation tells a server
    ends.says(call(3, "t"))
    ends.server.hears("tools/call")


@pytest.mark.parametrize("value", [None, [], 1])
def test_an_answer_of_the_client_that_is_none_ends_the_call(value: Any) -> None:
    ends = Ends().legacy_on_modern()
    (question,) = needs(ends, {"x": ASK})
    ends.says({"jsonrpc": "2.0", "id": question["id"], "result": value})
    ends.hears_error(2, -32603)
    ends.is_quiet()


def test_cancelling_works_in_every_state() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t"))
    ends.server.hears("tools/call")
    ends.cancels(2)
    assert ends.server.withdrawn.popleft()[0] == 2
    (question,) = needs(ends, {"x": ASK}, id=3)
    ends.cancels(3)
    ends.hears(note("cancelled", requestId=question["id"]), 3)
    ends.loses(3, "cancelled")
    (question,) = needs(ends, {"x": ASK}, id=4)
    ends.says(result(question["id"]))
    heard = ends.server.hears("tools/call")
    ends.cancels(4)
    assert ends.server.withdrawn.popleft()[0] == heard["id"]
    ends.says(call(5, "t"))
    ends.server.answers(ends.server.hears("tools/call"), {"resultType": "input_required", "requestState": "S"})
    ends.cancels(5)
    ends.loses(5, "cancelled")
    ends.advance(1)
    ends.cancels(99)
    ends.is_quiet()
    assert not ends.clock.waiting


def test_a_lost_repetition_is_the_calls_loss() -> None:
    ends = Ends().legacy_on_modern()
    (question,) = needs(ends, {"x": ASK})
    ends.says(result(question["id"]))
    ends.server.loses(ends.server.hears("tools/call")["id"], Fault("broken", "it broke"))
    ends.loses(2, "broken")
    ends.is_quiet()


def test_a_url_question_gets_the_id_that_legacy_clients_need() -> None:
    ends = Ends().legacy_on_modern({**INIT, "capabilities": {"elicitation": {"url": {}}}})
    url = {"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": "https://x"}}
    (question,) = needs(ends, {"x": url})
    assert question["params"]["elicitationId"]


def test_notifications_change_their_era_too() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(note("custom", a=1), note("progress", progressToken=1, progress=1))
    ends.server.hears("notifications/custom", a=1, _meta={META_VERSION: MODERN_VERSION})
    ends.is_quiet()
    ends = Ends().modern_on_legacy()
    ends.says(modern(note("custom", a=1)), note("other"))
    assert ends.server.hears("notifications/custom")["params"] == {"a": 1}
    ends.server.hears("notifications/other")
    ends.is_quiet()


def test_a_modern_server_may_not_send_requests() -> None:
    ends = Ends().legacy_on_modern()
    ends.server.says({"jsonrpc": "2.0", "id": 5, **ASK})
    ends.server.hears_answer(5, error={"code": -32601})
    ends.is_quiet()


def test_changes_are_listened_for_once_the_client_is_ready() -> None:
    ends = Ends().legacy_on_modern()
    number = ends.initialized()
    ends.server.says(
        note("tools/list_changed", _meta={META_SUBSCRIPTION: number}),
        note("resources/list_changed", _meta={META_SUBSCRIPTION: number, "a": 1}),
        note("tools/list_changed", _meta={META_SUBSCRIPTION: 2}),
        note("tools/list_changed", _meta={META_SUBSCRIPTION: [1]}),
        about=number,
    )
    assert ends.hears(about=0) == note("tools/list_changed")
    assert ends.hears(about=0) == note("resources/list_changed", _meta={"a": 1})
    ends.is_quiet()


def test_subscribing_changes_the_one_subscription() -> None:
    ends = Ends().legacy_on_modern()
    first = ends.initialized()
    ends.says(request(2, "resources/subscribe", uri="a:1"), request(3, "resources/subscribe", uri="a:2"))
    heard = ends.server.hears("subscriptions/listen", notifications={"resourceSubscriptions": ["a:1"]})
    assert heard["params"]["notifications"]["toolsListChanged"] is True
    ends.server.says(acknowledged(heard))
    assert ends.server.withdrawn.popleft()[0] == first
    ends.hears_result(2, {})
    heard = ends.server.hears("subscriptions/listen", notifications={"resourceSubscriptions": ["a:1", "a:2"]})
    refused = acknowledged(heard)
    refused["params"]["notifications"] = {"resourceSubscriptions": ["a:1"]}
    ends.server.says(refused)
    ends.server.withdrawn.popleft()
    ends.hears_error(3, -32602)
    ends.server.says(note("resources/updated", uri="a:1", _meta={META_SUBSCRIPTION: heard["id"]}))
    ends.hears(note("resources/updated", uri="a:1"), 0)
    ends.says(request(4, "resources/subscribe", uri="a:1"))
    ends.hears_result(4, {})
    ends.says(request(5, "resources/unsubscribe", uri="a:1"))
    ends.hears_result(5, {})
    assert "resourceSubscriptions" not in ends.server.hears("subscriptions/listen")["params"]["notifications"]
    ends.says(request(6, "resources/subscribe", uri=7))
    ends.hears_error(6, -32602)
    ends.is_quiet()


def test_a_subscription_that_is_refused_is_the_clients_error_and_not_tried_again() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(request(2, "resources/subscribe", uri="a:1"), request(3, "resources/subscribe", uri="a:2"))
    ends.cancels(3)
    ends.server.refuses(ends.server.hears("subscriptions/listen"), -32603, message="full")
    ends.hears_error(2, -32603, "full")
    heard = ends.server.hears("subscriptions/listen")
    assert heard["params"]["notifications"] == {"resourceSubscriptions": ["a:2"]}
    ends.server.refuses(heard)
    ends.advance(1000)
    ends.is_quiet()


@pytest.mark.parametrize("way", ["result", "cancelled", "lost"])
def test_a_subscription_that_ends_is_made_anew_more_and_more_slowly(way: str) -> None:
    ends = Ends().legacy_on_modern()
    number = ends.initialized()
    for pause in (1, 2, 4):
        if way == "result":
            ends.server.answers({"id": number})
        elif way == "cancelled":
            ends.server.says(note("cancelled", requestId=number))
        else:
            ends.server.loses(number, Fault("broken", "x"))
        ends.advance(pause - 0.1)
        ends.is_quiet()
        ends.advance(0.2)
        number = int(ends.server.hears("subscriptions/listen")["id"])
    ends.bridge.end()
    ends.server.loses(number, Fault("broken", "x"))
    assert not ends.clock.waiting


def test_a_server_without_subscriptions_refuses_them() -> None:
    ends = Ends().legacy_on_modern(found={**FOUND, "capabilities": {}})
    ends.says(note("initialized"), request(2, "resources/subscribe", uri="a:1"))
    ends.hears_error(2, -32601)
    ends.says(request(3, "logging/setLevel", level="info"))
    ends.hears_error(3, -32601)
    ends.is_quiet()


def test_what_is_structured_is_an_object_for_a_legacy_client() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(request(2, "tools/list"))
    kept = {"name": "a", "outputSchema": {"type": "object", "n": 1.5}}
    ends.server.answers(
        ends.server.hears("tools/list"),
        {"tools": [kept, {"name": "b", "outputSchema": {"type": "array"}}, {"name": "c", "outputSchema": True}]},
    )
    assert ends.hears_result(2) == {"tools": [kept, {"name": "b"}, {"name": "c"}]}
    for id, value in enumerate(([1], "x", 7, None), 3):
        ends.says(call(id, "b"))
        ends.server.answers(ends.server.hears("tools/call"), {**text("x"), "structuredContent": value})
        assert ends.hears_result(id) == text("x")
    ends.says(call(9, "a"))
    ends.server.answers(ends.server.hears("tools/call"), {**text("x"), "structuredContent": {"n": 1}})
    assert ends.hears_result(9)["structuredContent"] == {"n": 1}
    ends.is_quiet()


def test_a_broken_answer_of_a_modern_server_ends_its_request() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t"))
    ends.server.hears("tools/call")
    ends.server.says(b'{"jsonrpc":"2.0","id":2,"result":{"a":NaN}}', b'{"jsonrpc":"2.0","id":77,"result":{}}')
    ends.loses(2, "bad_answer")
    ends.hears({"id": 77})
    ends.is_quiet()
