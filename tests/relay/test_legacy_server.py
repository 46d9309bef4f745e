"""A modern client and a legacy server: what each hears of the other, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from erabook import ALL, ASK, FORM, WELCOME, Ends, ask, tool
from playbook import error, note, raw, request, text

from aegis_daemon.core.ports import Fault
from aegis_daemon.relay.eras.bridge import UNREAD
from aegis_daemon.relay.eras.frames import ASKS, META_LEVEL, META_SERVER, TRACKED, URIS
from aegis_daemon.relay.eras.legacy_server import SUSPENDED, SUSPENDED_S
from aegis_daemon.wire.methods import META_CLIENT, META_SUBSCRIPTION, MODERN_VERSION


def test_discover_is_told_from_the_handshake() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(ask(2, "server/discover"))
    assert ends.hears_result(2) == {
        "resultType": "complete", "supportedVersions": [MODERN_VERSION], "ttlMs": 0, "cacheScope": "private",
        "capabilities": {key: value for key, value in WELCOME["capabilities"].items() if key != "tasks"},  # type: ignore[attr-defined]
        "instructions": "be brief", "_meta": {META_SERVER: WELCOME["serverInfo"]},
    }  # fmt: skip
    ends.is_quiet()


def test_a_legacy_server_is_offered_what_the_client_offers_and_no_tasks() -> None:
    ends = Ends()
    capabilities = {
        **ALL,
        "roots": {"listChanged": True},
        "extensions": {"io.modelcontextprotocol/tasks": {}, "a/b": {}},
    }
    first = ask(1, "tools/list", capabilities)
    first["params"]["_meta"][META_CLIENT] = {"name": "c", "version": "1"}
    ends.says(first)
    ends.server.refuses(ends.server.hears("server/discover"))
    heard = ends.server.hears("initialize", clientInfo={"name": "c", "version": "1"})
    assert heard["params"]["capabilities"] == {**ALL, "extensions": {"a/b": {}}}


def test_requests_lose_the_envelope_and_results_gain_theirs() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2, meta={"progressToken": "p", "x/y": 1, META_CLIENT: {}}))
    heard = ends.server.hears("tools/call")
    assert heard["params"] == {"name": "t", "arguments": {"a": 1}, "_meta": {"progressToken": "p", "x/y": 1}}
    ends.server.says(note("progress", progressToken="p", progress=1))
    ends.hears(note("progress", progressToken="p", progress=1), 2)
    ends.server.says(
        b'{"jsonrpc":"2.0","id":2,"result":{"content":[],"structuredContent":{"n":1.0e2,"m":12345678901234567890}}}'
    )
    frame, _ = ends.heard.popleft()
    assert frame["result"] == {
        "content": [], "structuredContent": {"n": 100.0, "m": 12345678901234567890}, "resultType": "complete",
    }  # fmt: skip
    ends.says(ask(3, "resources/read", uri="a:b"))
    assert ends.server.hears("resources/read")["params"] == {"uri": "a:b"}
    ends.server.answers({"id": 3}, {"contents": [], "ttlMs": 9, "cacheScope": "public"})
    assert ends.hears_result(3) == {"contents": [], "ttlMs": 0, "cacheScope": "private", "resultType": "complete"}
    ends.is_quiet()


def test_what_a_legacy_server_cannot_do_is_refused_by_the_name_of_its_era() -> None:
    ends = Ends().modern_on_legacy()
    for id, method in enumerate(("tasks/get", "tasks/update", "tasks/cancel", "what/ever"), 2):
        ends.says(ask(id, method, taskId="x"))
        ends.hears_error(id, -32601, "2025-06-18")
    ends.says(tool(9, task={"ttl": 1}))
    ends.hears_error(9, -32602, "task")
    ends.is_quiet()


@pytest.mark.parametrize(("old", "new"), [(-32002, -32602), (-32042, -32603), (-32602, -32602), (-32000, -32000)])
def test_retired_error_codes_are_replaced(old: int, new: int) -> None:
    ends = Ends().modern_on_legacy()
    ends.says(ask(2, "resources/read", uri="a:b"))
    ends.server.refuses(ends.server.hears("resources/read"), old, message="no", data={"uri": "a:b"})
    assert ends.hears_error(2, new) == {"code": new, "message": "no", "data": {"uri": "a:b"}}


@pytest.mark.parametrize("value", [[], "x", 7, None, {"task": {"taskId": "t"}}])
def test_a_result_of_an_odd_shape_ends_its_request_alone(value: Any) -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2), tool(3))
    ends.server.hears("tools/call")
    ends.server.hears("tools/call")
    ends.server.says({"jsonrpc": "2.0", "id": 2, "result": value})
    ends.loses(2, "bad_answer", not_executed=False)
    ends.server.answers({"id": 3}, text("ok"))
    ends.hears_result(3)
    ends.is_quiet()


@pytest.mark.parametrize(
    "line", [b'{"jsonrpc":"2.0","id":2,"result":{"a":NaN}}', b'{"jsonrpc":"2.0","id":2,"error":1}']
)
def test_an_answer_that_cannot_be_read_ends_its_request(line: bytes) -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.hears("tools/call")
    ends.server.says(line)
    ends.loses(2, "bad_answer")
    ends.is_quiet()


def test_a_legacy_result_cannot_pretend_to_ask() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.answers(
        ends.server.hears("tools/call"),
        {**text("x"), "resultType": "input_required", "inputRequests": {"a": ASK}, "requestState": "s"},
    )
    assert ends.hears_result(2) == {**text("x"), "resultType": "complete"}


def asked(ends: Ends, id: int = 2, server_id: Any = "s", about: int | None = None, **more: Any) -> dict[str, Any]:
    """A call whose server asks the client; gives the client's result."""
    ends.says(tool(id, **more))
    ends.server.hears("tools/call")
    ends.server.says({"jsonrpc": "2.0", "id": server_id, **ASK}, about=about)
    return ends.hears_result(id, {"resultType": "input_required", "requestState": ...})


def test_a_question_ends_the_request_and_the_retry_brings_the_answer() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends, 2, 0)
    ((key, question),) = found["inputRequests"].items()
    assert question == ASK
    ends.is_quiet()
    answer = {"action": "accept", "content": {}}
    ends.says(tool(3, inputResponses={key: answer}, requestState=found["requestState"]))
    ends.server.hears_answer(0, result=answer)
    ends.server.answers({"id": 2}, text("done"), about=2)
    ends.hears_result(3, {**text("done"), "resultType": "complete"})
    ends.is_quiet()
    assert not ends.clock.waiting
    ends.says(tool(4, inputResponses={key: answer}, requestState=found["requestState"]))
    ends.hears_error(4, -32602, "requestState")
    ends.is_quiet()


def test_questions_that_come_together_are_put_together_and_what_is_left_out_is_asked_again() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.hears("tools/call")
    ends.server.says(request("a", "roots/list"), {"jsonrpc": "2.0", "id": "b", **ASK})
    found = ends.hears_result(2)
    first, second = found["inputRequests"]
    assert found["inputRequests"][first] == {"method": "roots/list"}
    ends.says(tool(3, inputResponses={first: {"roots": []}}, requestState=found["requestState"]))
    ends.server.hears_answer("a", result={"roots": []})
    again = ends.hears_result(3)
    assert again["inputRequests"] == {second: ASK}
    assert again["requestState"] != found["requestState"]
    ends.says(tool(4, inputResponses={second: {"action": "cancel"}}, requestState=again["requestState"]))
    ends.server.hears_answer("b", result={"action": "cancel"})
    ends.server.answers({"id": 2}, text("x"))
    ends.hears_result(4)
    ends.is_quiet()


def test_a_retry_must_be_the_same_request() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends)
    (key,) = found["inputRequests"]
    state, answer = found["requestState"], {key: {"action": "accept"}}
    other = tool(3, inputResponses=answer, requestState=state)
    other["params"]["arguments"] = {"a": True}  # which Python takes for 1
    ends.says(other)
    ends.hears_error(3, -32602)
    ends.says(ask(4, "prompts/get", name="t", arguments={"a": 1}, inputResponses=answer, requestState=state))
    ends.hears_error(4, -32602)
    for bad in ([], {key: 1}, {key: [1]}, "x", None):
        ends.says(tool(5, inputResponses=bad, requestState=state))
        ends.hears_error(5, -32602)
    for bad in (None, 1, "", ["x"], state[:-1]):
        ends.says(tool(6, inputResponses=answer, requestState=bad))
        ends.hears_error(6, -32602)
    ends.says(tool(7, inputResponses=answer))
    ends.hears_error(7, -32602)
    ends.is_quiet()
    ends.says(tool(8, inputResponses=answer, requestState=state))
    ends.server.hears_answer("s", result={"action": "accept"})


def test_nobody_who_comes_back_leaves_the_server_with_an_error() -> None:
    ends = Ends().modern_on_legacy()
    asked(ends)
    ends.advance(SUSPENDED_S)
    ends.server.hears_answer("s", error={"code": -32603})
    assert ends.server.withdrawn.popleft()[0] == 2
    ends.is_quiet()
    ends.server.answers({"id": 2}, text("late"))
    assert ends.hears()["id"] == 2, "the conversation has no such request and drops it"


def test_an_answer_that_came_before_the_clients_is_given_to_the_retry() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends)
    ends.server.answers({"id": 2}, text("never mind"))
    ends.is_quiet()
    ends.says(tool(3, inputResponses={}, requestState=found["requestState"]))
    ends.hears_result(3, {**text("never mind"), "resultType": "complete"})
    ends.server.hears_answer("s", error={"code": -32603})
    ends.is_quiet()
    assert not ends.clock.waiting


def test_a_call_lost_while_the_client_is_asked_is_told_to_the_retry() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends)
    ends.server.loses(2, Fault("broken", "the stream broke"))
    ends.says(tool(3, inputResponses={}, requestState=found["requestState"]))
    ends.hears_error(3, -32603, "the stream broke")


def test_pages_to_visit_are_a_question_and_the_retry_a_new_call() -> None:
    ends = Ends().modern_on_legacy()
    offers = {"elicitation": {"url": {}}}
    ends.says(tool(2, capabilities=offers))
    heard = ends.server.hears("tools/call")
    visit = {"mode": "url", "elicitationId": "e", "message": "go there", "url": "https://x"}
    ends.server.refuses(heard, -32042, message="visit", data={"elicitations": [visit]})
    found = ends.hears_result(2, {"resultType": "input_required"})
    ((key, question),) = found["inputRequests"].items()
    assert question["params"] == {"mode": "url", "message": "go there", "url": "https://x"}
    retry = {"inputResponses": {key: {"action": "accept"}}, "requestState": found["requestState"]}
    ends.says(tool(3, capabilities=offers, **retry))
    again = ends.server.hears("tools/call")
    assert again["params"] == heard["params"]
    ends.server.answers(again, text("x"))
    ends.hears_result(3)
    ends.says(tool(4, capabilities=offers))
    ends.server.refuses(ends.server.hears("tools/call"), -32042, message="visit", data={"elicitations": [visit]})
    ends.hears_result(4)
    ends.advance(SUSPENDED_S)
    for capabilities, data in ((ALL, {"elicitations": [visit]}), (offers, {"elicitations": [1]}), (offers, [])):
        ends.says(tool(5, capabilities=capabilities))
        ends.server.refuses(ends.server.hears("tools/call"), -32042, message="visit", data=data)
        ends.hears_error(5, -32603, "visit")
    ends.is_quiet()


def test_a_question_that_the_server_takes_back_is_not_answered() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends)
    ends.server.says(note("cancelled", requestId="s"), note("cancelled", requestId="t"), note("cancelled"))
    (key,) = found["inputRequests"]
    ends.says(tool(3, inputResponses={key: {}}, requestState=found["requestState"]))
    ends.is_quiet()
    ends.server.answers({"id": 2}, text("x"))
    ends.hears_result(3)


def test_how_many_calls_wait_for_a_retry_is_bounded() -> None:
    ends = Ends().modern_on_legacy()
    for id in range(2, SUSPENDED + 2):
        asked(ends, id, id)
    ends.says(tool(999))
    ends.server.hears("tools/call")
    ends.server.says({"jsonrpc": "2.0", "id": 999, **ASK})
    ends.server.hears_answer(999, error={"code": -32603})
    ends.is_quiet()
    ends.server.answers({"id": 999}, text("without"))
    ends.hears_result(999)
    ends.bridge.end()
    assert not ends.clock.waiting


def test_how_many_questions_one_call_may_have_is_bounded() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.hears("tools/call")
    ends.server.says(*({"jsonrpc": "2.0", "id": id, **ASK} for id in range(ASKS + 1)))
    ends.server.hears_answer(ASKS, error={"code": -32603})
    assert len(ends.hears_result(2)["inputRequests"]) == ASKS


def test_what_a_client_does_not_take_is_not_asked() -> None:
    ends = Ends().modern_on_legacy()
    url = {"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": "https://x"}}
    thinking = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1, "tools": []}}
    for offers, question in (
        ({}, ASK), ({"elicitation": {"url": {}}}, ASK), ({"elicitation": 1}, ASK), (ALL, url), (ALL, thinking),
        ({"elicitation": {}}, {"method": "roots/list"}), (ALL, {"method": "tasks/get", "params": {}}),
        (ALL, {"method": "elicitation/create", "params": {**FORM, "task": {}}}),
    ):  # fmt: skip
        ends.says(tool(2, capabilities=offers))
        ends.server.hears("tools/call")
        ends.server.says({"jsonrpc": "2.0", "id": "s", **question})
        ends.server.hears_answer("s", error={"code": -32601})
        ends.server.answers({"id": 2}, text("x"))
        ends.hears_result(2)
        ends.is_quiet()


def test_a_question_that_belongs_to_no_request_is_answered_here() -> None:
    ends = Ends().modern_on_legacy()
    ends.server.says(request("p", "ping"), {"jsonrpc": "2.0", "id": "s", **ASK})
    ends.server.hears_answer("p", result={})
    ends.server.hears_answer("s", error={"code": -32603})
    ends.says(ask(2, "tools/list"))
    ends.server.hears("tools/list")
    ends.server.says({"jsonrpc": "2.0", "id": "s", **ASK})
    ends.server.hears_answer("s", error={"code": -32603})
    ends.is_quiet()


def test_a_server_that_wants_the_roots_at_once_gets_them_before_the_first_call() -> None:
    ends = Ends().modern_on_legacy()
    ends.server.says(request("a", "roots/list"), request("b", "roots/list"), request("b", "roots/list"))
    ends.server.hears_answer("b", error={"code": -32600})
    ends.server.says(note("cancelled", requestId="b"))
    ends.says(ask(2, "tools/list"))
    ends.server.answers(ends.server.hears("tools/list"), {"tools": []})
    ends.hears_result(2)
    ends.says(tool(3, capabilities={}))
    ends.server.hears("tools/call")
    ends.says(tool(4))
    found = ends.hears_result(4, {"resultType": "input_required"})
    ((key, question),) = found["inputRequests"].items()
    assert question == {"method": "roots/list"}
    ends.says(tool(5, inputResponses={}, requestState=found["requestState"]))
    found = ends.hears_result(5, {"inputRequests": {key: question}})
    ends.says(tool(6, inputResponses={key: {"roots": []}}, requestState=found["requestState"]))
    ends.server.hears_answer("a", result={"roots": []})
    ends.server.answers(ends.server.hears("tools/call"), text("x"))
    ends.hears_result(6)
    ends.is_quiet()
    assert not ends.clock.waiting


def test_a_server_that_reads_nothing_is_answered_only_so_often() -> None:
    ends = Ends().modern_on_legacy()
    ends.server.on["on_full"](True)
    for id in range(2 * UNREAD):
        ends.server.says({"jsonrpc": "2.0", "id": id, **ASK})
    assert len(ends.server.inbox) == UNREAD
    ends.server.inbox.clear()
    ends.server.on["on_full"](False)
    ends.server.says(request("p", "ping"))
    ends.server.hears_answer("p", result={})


def test_the_stream_tells_which_call_asks_and_else_it_is_the_newest() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2), tool(3))
    ends.server.hears("tools/call")
    ends.server.hears("tools/call")
    ends.server.says({"jsonrpc": "2.0", "id": "a", **ASK}, about=2)
    ends.hears_result(2, {"resultType": "input_required"})
    ends.server.says({"jsonrpc": "2.0", "id": "b", **ASK}, about=0)
    ends.hears_result(3, {"resultType": "input_required"})
    ends.server.says({"jsonrpc": "2.0", "id": "c", **ASK}, about=77)
    ends.server.hears_answer("c", error={"code": -32603})
    ends.is_quiet()


def test_two_questions_with_one_id_are_one_too_many() -> None:
    ends = Ends().modern_on_legacy()
    asked(ends)
    ends.server.says({"jsonrpc": "2.0", "id": "s", **ASK})
    ends.server.hears_answer("s", error={"code": -32600})
    ends.is_quiet()


def test_progress_and_cancelling_follow_the_call_to_its_retry() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends, meta={"progressToken": "old"})
    ends.server.says(note("progress", progressToken="old", progress=1))
    ends.is_quiet()
    (key,) = found["inputRequests"]
    again = {"inputResponses": {key: {"action": "accept"}}, "requestState": found["requestState"]}
    ends.says(tool(3, meta={"progressToken": 7}, **again))
    ends.server.hears_answer("s")
    ends.server.says(note("progress", progressToken="old", progress=2), about=2)
    ends.hears(note("progress", progressToken=7, progress=2), 3)
    ends.server.says(note("custom"), about=2)
    ends.hears(note("custom"), 3)
    ends.cancels(3)
    assert ends.server.withdrawn.popleft()[0] == 2
    ends.cancels(3)
    ends.is_quiet()


def test_a_cancelled_call_withdraws_under_its_own_number() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.hears("tools/call")
    ends.cancels(2)
    assert ends.server.withdrawn.popleft()[0] == 2
    ends.server.says({"jsonrpc": "2.0", "id": "s", **ASK}, about=2)
    ends.server.hears_answer("s", error={"code": -32603})
    ends.is_quiet()


def test_log_levels_are_set_when_they_change_and_messages_go_to_who_wants_them() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.hears("tools/call")
    ends.server.says(note("message", level="error", data="unasked"))
    ends.says(tool(3, meta={META_LEVEL: "warning"}), tool(4, meta={META_LEVEL: "warning"}))
    ends.server.answers(ends.server.hears("logging/setLevel", level="warning"))
    ends.server.hears("tools/call")
    ends.server.hears("tools/call")
    ends.server.says(note("message", level="error", data=1), note("message", level="info", data=2), note("message"))
    ends.hears(note("message", level="error", data=1), 4)
    ends.server.says(note("message", level="error", data=3), about=3)
    ends.hears(note("message", level="error", data=3), 3)
    ends.server.says(note("message", level="error", data=4), about=2)
    ends.says(tool(5, meta={META_LEVEL: "loud"}))
    ends.hears_error(5, -32602, META_LEVEL)
    ends.is_quiet()


def test_a_server_without_logging_is_not_told_a_level() -> None:
    ends = Ends().modern_on_legacy(welcome={**WELCOME, "capabilities": {}})
    ends.says(tool(2, meta={META_LEVEL: "info"}))
    ends.server.hears("tools/call")
    ends.is_quiet()


def test_listening_is_subscribing_and_hears_what_changes() -> None:
    ends = Ends().modern_on_legacy()
    wants = {"toolsListChanged": True, "promptsListChanged": True, "resourceSubscriptions": ["a:1", "a:2", "a:1"]}
    ends.says(ask(2, "subscriptions/listen", notifications={**wants, "taskIds": ["x"]}))
    told = ends.hears({"method": "notifications/subscriptions/acknowledged"}, 2)
    assert told["params"] == {
        "notifications": {"toolsListChanged": True, "resourceSubscriptions": ["a:1", "a:2"]},
        "_meta": {META_SUBSCRIPTION: 2},
    }
    ends.server.answers(ends.server.hears("resources/subscribe", uri="a:1"))
    ends.server.refuses(ends.server.hears("resources/subscribe", uri="a:2"))
    ends.says(ask(3, "subscriptions/listen", notifications={"resourceSubscriptions": ["a:2"]}))
    ends.hears({"method": "notifications/subscriptions/acknowledged"}, 3)
    ends.server.says(
        note("tools/list_changed"), note("prompts/list_changed"), note("resources/updated", uri="a:2/part"),
        note("resources/updated", uri="a:22"), note("resources/updated", uri=7), note("elicitation/complete"),
    )  # fmt: skip
    ends.hears(note("tools/list_changed", _meta={META_SUBSCRIPTION: 2}), 2)
    for number in (2, 3):
        ends.hears(note("resources/updated", uri="a:2/part", _meta={META_SUBSCRIPTION: number}), number)
    ends.cancels(2)
    ends.server.hears("resources/unsubscribe", uri="a:1")
    ends.hears_result(2, {"resultType": "complete", "_meta": {META_SUBSCRIPTION: 2}})
    ends.cancels(3)
    ends.server.hears("resources/unsubscribe", uri="a:2")
    ends.hears_result(3)
    ends.server.says(note("tools/list_changed"))
    ends.is_quiet()


@pytest.mark.parametrize("wants", [None, 1, [], {"resourceSubscriptions": "a:1"}, {"resourceSubscriptions": [1]}])
def test_a_listen_of_an_odd_shape_is_refused(wants: Any) -> None:
    ends = Ends().modern_on_legacy()
    ends.says(ask(2, "subscriptions/listen", notifications=wants))
    ends.hears_error(2, -32602)
    ends.is_quiet()


def test_subscriptions_are_bounded() -> None:
    ends = Ends().modern_on_legacy()
    wants = {"resourceSubscriptions": [f"a:{n}" for n in range(URIS + 1)]}
    ends.says(ask(2, "subscriptions/listen", notifications=wants))
    ends.hears_error(2, -32602, str(URIS))
    ends.is_quiet()


def test_what_the_conversation_refuses_a_server_reaches_it() -> None:
    ends = Ends().modern_on_legacy()
    ends.server.says(b'{"jsonrpc":"2.0","id":"s","method":"roots/list","params":{"a":1,"a":2}}')
    ends.heard.popleft()
    ends.bridge.send(raw(error("s", -32600)), None, 0)
    ends.server.hears_answer("s", error={"code": -32600})


def test_a_server_whose_calls_nobody_ends_is_not_kept_for_ever() -> None:
    ends = Ends().modern_on_legacy()
    for id in range(2, TRACKED + 100):
        ends.says(tool(id))
    assert len(ends.bridge._side._calls) == TRACKED  # type: ignore[union-attr]
