"""A server's questions need `server_requests`, in whatever it says and however it spells them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, Session, call, error, modern, note, raw, request, text

from aegis_daemon.relay import questions
from aegis_daemon.relay.answers import read_result

MakePlay = Callable[..., Play]

CLOSED = """
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true}}}}
"""
OPEN = CLOSED.replace("allowed: true", "allowed: true, server_requests: [elicitation]")
JUDGED = (
    OPEN
    + """
policy:
  text: |
    permit(principal, action, resource);
    forbid(principal, action == Action::"elicitation/create", resource)
    when { context.arguments.message like "*password*" };
"""
)
FORM = {"method": "elicitation/create", "params": {"message": "your password?", "requestedSchema": {}}}
MILD = {"method": "elicitation/create", "params": {"message": "sure?"}}
THINK = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 9}}
WHERE = {"method": "roots/list"}
ASKS = {"steal": FORM, "think": THINK, "where": WHERE}
VISIT = {"mode": "url", "elicitationId": "e", "url": "https://evil.example", "message": "log in"}
PAGES = {"code": -32042, "message": "visit", "data": {"elicitations": [VISIT]}}
TASK = {"taskId": "T1", "status": "input_required", "createdAt": "2026-11-27T00:00:00Z"}
METHODS = {
    "tools/call": {"name": "x", "arguments": {}},
    "tools/list": {},
    "prompts/list": {},
    "prompts/get": {"name": "p"},
    "resources/list": {},
    "resources/templates/list": {},
    "resources/read": {"uri": "file:///a"},
    "completion/complete": {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {}},
    "server/discover": {},
    "subscriptions/listen": {},
    "tasks/get": {"taskId": "T1"},
    "tasks/cancel": {"taskId": "T1"},
    "tasks/update": {"taskId": "T1"},
}
LISTED: dict[str, Any] = {"tools": [], "prompts": [], "resources": [], "resourceTemplates": []}


@pytest.fixture
def make_play(make_play: MakePlay) -> MakePlay:
    """The task that most of this is about was started by who asks for it."""

    def make(*args: Any, **more: Any) -> Play:
        play = make_play(*args, **more)
        play.owns("T1", "a")
        return play

    return make


def asked(play: Play, method: str, value: Any, s: Session | None = None) -> dict[str, Any]:
    """What the client hears where the server answers so, as a value or as JSON text."""
    s = s or play.session()
    s.client.says(modern(request(9, method, **METHODS[method])))
    heard = s.server.hears(method)
    s.server.says(b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (heard["id"], raw(value)))
    return s.client.next()


def is_withheld(found: dict[str, Any]) -> bool:
    assert "password" not in json.dumps(found)
    return "error" in found and "withheld" in found["error"]["message"]


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "shape",
    [
        {"resultType": "input_required", "inputRequests": ASKS},
        {"resultType": "complete", "inputRequests": ASKS},
        {"inputRequests": ASKS},
        {"inputRequests": {"q": FORM}},
        {"resultType": "complete", "ResultType": "input_required", "InputRequests": ASKS},
        {"resultType": "complete", "input\u200bRequests": ASKS},
        {"resultType": "complete", "\uff49nputRequests": ASKS},
        {"resultType": "complete", "input\tRequests": ASKS},
        {"resultType": "complete", "inputRequests": [FORM]},
        {"resultType": "complete", "input_requests": ASKS},
        {"resultType": "complete", "result_type": "input_required", "requestState": "S"},
    ],
)
def test_no_answer_asks_for_what_is_not_allowed(make_play: MakePlay, method: str, shape: dict[str, Any]) -> None:
    play = make_play(CLOSED)
    more = LISTED if method.endswith("/list") else {}
    assert is_withheld(asked(play, method, {**more, **shape})), "as it stands"
    s = play.session()
    assert is_withheld(asked(play, method, {**more, "pad": "x" * 5000, **shape}, s)), "in a long one"


@pytest.mark.parametrize("method", METHODS)
def test_no_key_that_occurs_twice_hides_a_question(make_play: MakePlay, method: str) -> None:
    play = make_play(OPEN)
    more = raw({**LISTED, "content": []})[1:-1]
    kinds = (b'"resultType":"input_required"', b'"resultType":"complete"')
    asks = (b'"inputRequests":' + raw({"q": WHERE}), b'"inputRequests":' + raw({"q": MILD}))
    for first, second in (kinds, kinds[::-1]):
        for one, other in ((asks[0], asks[1]), (asks[0], b'"inputRequests":{}'), (asks[0], b'"inputRequests":null')):
            body = b"{" + b",".join((first, one, more, other, second)) + b"}"
            assert is_withheld(asked(play, method, body, play.session()))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("tools/call", "prompts/get", "resources/read")])
def test_what_cannot_ask_does_not_even_where_the_question_is_allowed(make_play: MakePlay, method: str) -> None:
    play = make_play(OPEN)
    more = LISTED if method.endswith("/list") else {}
    for state in ({}, {"requestState": "S"}):
        found = asked(
            play,
            method,
            {**more, "resultType": "input_required", "inputRequests": {"q": MILD}, **state},
            play.session(),
        )
        assert is_withheld(found)


@pytest.mark.parametrize("method", ["tools/call", "prompts/get", "resources/read"])
def test_what_is_allowed_is_asked(make_play: MakePlay, method: str) -> None:
    given = {"resultType": "input_required", "inputRequests": {"q": MILD}, "requestState": "S"}
    assert asked(make_play(OPEN), method, given)["result"] == given


@pytest.mark.parametrize(
    "ask",
    [
        {**MILD, "Method": "sampling/createMessage"},
        {"method": "elicitation/create", "params": {}, "Params": {"message": "your password?"}},
    ],
)
def test_a_question_in_two_spellings_is_none(make_play: MakePlay, ask: Any) -> None:
    found = asked(make_play(OPEN), "tools/call", {"resultType": "input_required", "inputRequests": {"q": ask}})
    assert is_withheld(found)


def test_more_questions_at_once_than_are_judged_are_withheld(make_play: MakePlay) -> None:
    play = make_play(OPEN)
    for many, passes in ((questions.MOST, True), (questions.MOST + 1, False)):
        given = {"resultType": "input_required", "inputRequests": {str(n): MILD for n in range(many)}}
        assert is_withheld(asked(play, "tools/call", given, play.session())) is not passes


def test_what_takes_long_to_read_is_withheld(make_play: MakePlay) -> None:
    play = make_play(CLOSED)
    for pad, passes in (
        (b"[]", True),
        (b"[" + b"{}," * 700_000 + b"{}]", True),
        (b"[" + b"{}, " * 700_000 + b"{}]", False),
    ):
        found = asked(
            play, "tasks/get", b'{"taskId":"T1","status":"completed","result":{"x":%s}}' % pad, play.session()
        )
        assert is_withheld(found) is not passes


@pytest.mark.parametrize("key", ["task", "Task", "result", "tasks"])
def test_a_task_inside_an_answer_asks_no_more_than_others(make_play: MakePlay, key: str) -> None:
    play = make_play(CLOSED)
    inside: Any = {**TASK, "inputRequests": ASKS}
    assert is_withheld(asked(play, "tools/call", {key: [inside] if key == "tasks" else inside}))
    s = play.session().handshake()
    s.client.says(request(9, "tasks/list"))
    s.server.answers(s.server.hears("tasks/list"), {"tasks": [{"taskId": "a"}, inside]})
    s.client.hears_error(9, -32603, "withheld")


@pytest.mark.parametrize(
    "value", ["resultType", "input_required", "inputRequests", '"inputRequests":{}', "elicitations"]
)
def test_what_only_speaks_of_questions_passes(make_play: MakePlay, value: str) -> None:
    play = make_play(CLOSED)
    odd = {**text(value), "structuredContent": {value: value, "inputRequests": ASKS, "a": {"InputRequests": ASKS}}}
    assert asked(play, "tools/call", odd)["result"] == odd
    odder = b'{"content":[{"type":"text","text":""}],"isError":false,"n":1e999,"a":{"x":1,"x":2}}'
    assert json.loads(raw(asked(play, "tools/call", odder, play.session())))["result"]["a"]


@pytest.mark.parametrize("body", [b"[]", b"7", b'"inputRequests"', b"null", b' {"isError": true } ', b"{}"])
def test_other_results_say_nothing_of_themselves(body: bytes) -> None:
    assert read_result(body).isError is (b"true" in body)
    assert not read_result(body).waits


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        {**TASK, "inputRequests": ASKS},
        {**TASK, "InputRequests": ASKS},
        {**TASK, "input_requests": ASKS},
        {**TASK, "status": "completed", "result": {"content": [], "inputRequests": ASKS}},
        {**TASK, "status": "completed", "Result": {"content": [], "inputRequests": ASKS}},
        {**TASK, "status": "failed", "error": PAGES},
        {**TASK, "status": "failed", "Error": {**PAGES, "Code": -32042, "code": -1}},
        {"task": {**TASK, "inputRequests": ASKS}},
        {"tasks": [{**TASK, "inputRequests": ASKS}]},
        {"task": {"result": {"tasks": [{"task": {"error": PAGES}}]}}},
    ],
)
def test_a_task_asks_for_nothing_that_is_not_allowed(make_play: MakePlay, task: dict[str, Any]) -> None:
    play = make_play(CLOSED)
    assert is_withheld(asked(play, "tasks/get", {"resultType": "complete", **task}))
    for method in ("tasks", "tasks/status", "message", "Tasks", "resources/updated", "progress"):
        s = play.session()
        s.client.says(modern(call(1, "x", token="t")))
        heard = s.server.hears("tools/call")
        s.server.says(note(method, **task, progressToken="t", progress=1, uri="file:///a"))
        s.client.hears_nothing()
        s.server.answers(heard)
        s.client.hears_result(1)
    play.advance(1)
    assert sum(one.count for one in play.log.records if one.kind == "dropped") == 6


def test_the_result_of_a_legacy_task_asks_for_nothing_that_is_not_allowed(make_play: MakePlay) -> None:
    s = make_play(CLOSED).session().handshake()
    for id, method in enumerate(("tasks/get", "tasks/result", "tasks/cancel"), 10):
        s.client.says(request(id, method, taskId="T1"))
        s.server.answers(s.server.hears(method), {**text("x"), "InputRequests": ASKS})
        s.client.hears_error(id, -32603, "withheld")
        s.calls(request(id + 10, method, taskId="T1"), {**TASK, **text("x")})


def test_what_a_task_may_ask_is_asked_and_answered(make_play: MakePlay) -> None:
    play = make_play(OPEN)
    s = play.session()
    task = {**TASK, "inputRequests": {"q": MILD}}
    assert asked(play, "tasks/get", {"resultType": "complete", **task}, s)["result"] == {
        "resultType": "complete",
        **task,
    }
    s.server.says(note("tasks", **task))
    s.client.hears("notifications/tasks", **task)
    done = {**TASK, "status": "completed", "result": text("done")}
    s.server.says(
        note("tasks", **done), note("tasks", **{**TASK, "status": "failed", "error": {"code": -1, "message": "m"}})
    )
    s.client.hears("notifications/tasks", **done)
    s.client.hears("notifications/tasks", status="failed")
    s.calls(modern(request(3, "tasks/update", taskId="T1", inputResponses={"q": {"action": "accept"}})))


def test_policies_judge_what_a_task_asks(make_play: MakePlay) -> None:
    play = make_play(JUDGED)
    s = play.session()
    for ask, passes in ((MILD, True), (FORM, False)):
        task = {**TASK, "inputRequests": {"q": ask}}
        assert is_withheld(asked(play, "tasks/get", task, play.session())) is not passes
        s.client.says(modern(call(1, "x")))
        heard = s.server.hears("tools/call")
        s.server.says(note("tasks", **task))
        if passes:
            s.client.hears("notifications/tasks")
        s.server.answers(heard)
        s.client.hears_result(1)


def test_in_observe_mode_what_a_task_asks_passes_and_is_recorded(make_play: MakePlay) -> None:
    play = make_play(CLOSED + "mode: observe\n")
    s = play.session()
    s.calls(modern(call(1, "x")))
    s.server.says(note("tasks", **{**TASK, "inputRequests": {"q": FORM}, "result": {"content": ["SECRET"]}}))
    s.client.hears("notifications/tasks", taskId="T1")
    play.advance(1)
    assert any("only observed" in one.reason for one in play.log.records if one.kind == "dropped")
    s.client.says(modern(request(3, "tasks/update", taskId="T1", inputResponses={"q": {"action": "accept"}})))
    s.server.answers(s.server.hears("tasks/update"))
    s.client.hears_result(3)


# --- answers to questions that nobody may have asked ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "answer", "passes"),
    [
        (CLOSED, {"action": "accept", "content": {"k": "AKIA"}}, False),
        (CLOSED, {}, False),
        (CLOSED, 7, False),
        (OPEN, {"action": "accept", "content": {"roots": 1, "role": "x"}}, True),
        (OPEN, {}, True),
        (OPEN, {"roots": []}, False),
        (OPEN, {"action": "accept", "Roots": []}, False),
        (OPEN, {"role": "assistant", "content": {"type": "text", "text": "x"}, "model": "m"}, False),
        (OPEN.replace("elicitation", "roots"), {"roots": []}, True),
        (OPEN.replace("elicitation", "sampling"), {"role": "assistant", "model": "m", "content": {}}, True),
        (OPEN.replace("elicitation", "sampling"), {"action": "accept"}, False),
    ],
)
@pytest.mark.parametrize("method", ["tasks/update", "tools/call", "prompts/get"])
def test_answers_go_only_where_they_may_have_been_asked_for(
    make_play: MakePlay, method: str, config: str, answer: Any, passes: bool
) -> None:
    s = make_play(config).session()
    s.client.says(modern(request(1, method, **METHODS[method], inputResponses={"q": answer})))
    if passes:
        s.server.answers(s.server.hears(method, inputResponses={"q": answer}))
        s.client.hears_result(1)
    else:
        s.server.hears_nothing()
        assert "may not ask" in json.dumps(s.client.next())


@pytest.mark.parametrize("key", ["InputResponses", "input_responses"])
def test_answers_in_another_spelling_are_refused(make_play: MakePlay, key: str) -> None:
    s = make_play(OPEN).session()
    s.client.says(modern(request(1, "tasks/update", taskId="T1", **{key: {"q": {"roots": []}}})))
    s.client.hears_error(1, -32600, "looks like a key of the protocol")
    s.server.hears_nothing()


def test_no_answers_are_none(make_play: MakePlay) -> None:
    s = make_play(CLOSED).session()
    s.calls(modern(call(1, "x"), requestState="S", inputResponses={}))
    for odd in ([], [{"roots": []}], "x", None):
        s.client.says(modern(request(2, "tasks/update", taskId="T1", inputResponses=odd)))
        s.client.hears_error(2, -32602, "must be an object")


# --- pings ------------------------------------------------------------------------------------------------------------


def test_the_answer_to_a_ping_asks_for_nothing(make_play: MakePlay) -> None:
    s = make_play(CLOSED).session().handshake()
    s.client.says(request(1, "ping"))
    s.server.answers(s.server.hears("ping"), {"resultType": "input_required", "inputRequests": ASKS})
    assert s.client.hears_result(1) == {}
    s.client.says(request(2, "ping"))
    s.server.says({**error(s.server.hears("ping")["id"]), "error": PAGES})
    assert "data" not in s.client.hears_error(2, -32042)


def test_a_result_of_very_many_members_is_withheld_before_each_is_folded(make_play: MakePlay) -> None:
    many = {f"K{at}": 1 for at in range(questions.MEMBERS + 1)}
    assert is_withheld(asked(make_play(CLOSED), "tools/call", {**many, "content": []}))
    del many["K0"], many["K1"]
    assert "result" in asked(make_play(CLOSED), "tools/call", {**many, "content": []})
