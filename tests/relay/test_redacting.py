"""What a transform takes out reaches neither the client nor the log, on any way an answer can take."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, Session, call, cancel, error, modern, note, request, text

MakePlay = Callable[..., Play]

CONFIG = """
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true, approval_required: [pay]}}}}
transforms:
  get: {redact: ["$.response.email", "$.request.password"]}
  files.pay: {redact: ["$.response.email"]}
"""
SECRET = "ann@secret.example"
RESULT = {
    "content": [{"type": "text", "text": json.dumps({"email": SECRET, "n": 1})}],
    "structuredContent": {"email": SECRET, "n": 1},
}


def clean(play: Play, *frames: Any) -> None:
    """Nothing that the client heard, and nothing in the log, holds the secret."""
    assert SECRET not in json.dumps(frames)
    for record, body in zip(play.log.records, play.log.bodies, strict=True):
        assert SECRET.encode() not in (body or b"")
        assert SECRET not in repr(record)


def test_an_answer_and_its_record_hold_what_is_left(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    heard = s.calls(call(1, "get", password="hunter2", id=5), RESULT)
    assert heard["structuredContent"] == {"email": "[redacted]", "n": 1}
    intent, outcome = play.recorded("intent", "outcome")
    assert play.body(intent) == {"password": "[redacted]", "id": 5}
    assert play.body(outcome) == heard
    clean(play, heard)


def test_the_server_gets_what_the_client_sent(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "get", password="hunter2"))
    heard = s.server.hears("tools/call", name="get", arguments={"password": "hunter2"})
    s.server.answers(heard, RESULT)
    s.client.hears_result(1)


def test_another_tool_is_left_alone(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    assert s.calls(call(1, "other", password="x"), RESULT) == RESULT
    assert play.body(play.recorded("intent", "outcome")[0]) == {"password": "x"}


def test_a_refused_call_is_recorded_without_it(make_play: MakePlay) -> None:
    play = make_play(CONFIG + "deny: {tools: [get]}\n")
    s = play.session().handshake()
    s.client.says(call(1, "get", password="hunter2"))
    s.client.hears_error(1, -32001)
    (denied,) = play.recorded("denied")
    assert play.body(denied) == {"password": "[redacted]"}


def test_an_answer_that_cannot_be_cleaned_is_withheld_and_counts_as_unknown(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "get"))
    s.server.answers(s.server.hears("tools/call"), {"content": SECRET})
    refusal = s.client.hears_error(1, -32603)
    assert refusal["data"]["reason"] == "not_redacted"
    clean(play, refusal)
    play.recorded("intent", {"kind": "outcome", "status": "unknown"})


def test_an_error_of_the_server_keeps_its_code_alone(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "get"))
    heard = s.server.hears("tools/call")
    s.server.says(error(heard["id"], -7, f"no {SECRET}"))
    refusal = s.client.hears_error(1, -7)
    clean(play, refusal)


def test_an_answer_that_is_kept_for_a_client_that_comes_back_is_clean(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "pay", eur=5))
    s.leave()
    play.desk.decide(play.ticket().id, True, "ann", "")
    again = play.session().handshake()
    for id in (2, 3):
        again.client.says(call(id, "pay", eur=5))
    again.server.answers(again.server.hears("tools/call"), RESULT)
    clean(play, again.client.hears_result(2), again.client.hears_result(3))


def task(play: Play) -> Session:
    s = play.session().handshake()
    frame = call(1, "get")
    frame["params"]["task"] = {"ttl": 60_000}
    s.calls(frame, {"task": {"taskId": "t", "status": "working", "ttl": 60_000}})
    return s


def test_what_a_task_says_later_is_cleaned_however_often_it_is_asked(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = task(play)
    s.client.says(request(2, "tasks/get", taskId="t"))
    s.server.answers(s.server.hears("tasks/get"), {"taskId": "t", "status": "completed", "statusMessage": SECRET})
    frames = [s.client.hears_result(2)]
    for id in (3, 4):
        s.client.says(request(id, "tasks/result", taskId="t"))
        s.server.answers(s.server.hears("tasks/result"), RESULT)
        frames.append(s.client.hears_result(id))
        assert frames[-1]["structuredContent"] == {"email": "[redacted]", "n": 1}
    clean(play, *frames)


def test_a_task_that_nobody_remembers_may_be_any_tools(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    task(play)
    play.shell.redacting._tasks.clear()
    s = play.sessions[0]
    s.client.says(request(3, "tasks/result", taskId="t"))
    s.server.answers(s.server.hears("tasks/result"), RESULT)
    clean(play, s.client.hears_result(3))


def test_what_a_server_says_of_a_task_unasked_is_cleaned(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = task(play)
    s.server.says(note("tasks/status", taskId="t", status="completed", statusMessage=SECRET, result=RESULT))
    heard = s.client.hears("notifications/tasks/status")
    assert heard["params"]["status"] == "completed"
    clean(play, heard)


def test_a_modern_task_is_cleaned_too(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    frame = modern(call(1, "get"), capabilities={"extensions": {"io.modelcontextprotocol/tasks": {}}})
    s.client.says(frame)
    s.server.answers(
        s.server.hears("tools/call"), {"resultType": "task", "taskId": "t", "status": "working", "ttlMs": 60_000}
    )
    s.client.hears_result(1)
    s.client.says(
        modern(request(2, "tasks/get", taskId="t"), capabilities={"extensions": {"io.modelcontextprotocol/tasks": {}}})
    )
    s.server.answers(
        s.server.hears("tasks/get"), {"resultType": "complete", "taskId": "t", "status": "completed", "result": RESULT}
    )
    clean(play, s.client.hears_result(2))


def test_a_reload_changes_what_is_taken_out(make_play: MakePlay) -> None:
    play = make_play(CONFIG.partition("transforms:")[0])
    s = play.session().handshake()
    assert s.calls(call(1, "get"), RESULT) == RESULT
    play.reload(CONFIG)
    assert s.calls(call(2, "get", password="x"), RESULT)["structuredContent"]["email"] == "[redacted]"
    play.reload(CONFIG.partition("transforms:")[0])
    assert s.calls(call(3, "get"), text("ok")) == text("ok")


# --- rules and budgets on the same path

BUDGET = """
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true, approval_required: [wire]}}}}
constraints:
  pay: {budgets: {amount: {max: 500, window: 24h}}}
  wire: {budgets: {amount: {max: 500, window: 24h}}}
  read: {arguments: {path: {under: [/data]}}}
"""


def test_calls_spend_until_the_budget_is_used_up_and_failures_spend_nothing(make_play: MakePlay) -> None:
    play = make_play(BUDGET)
    s = play.session().handshake()
    s.calls(call(1, "pay", amount=300))
    s.calls(call(2, "pay", amount=150), text("no", isError=True))
    s.calls(call(3, "pay", amount=199.5))
    s.client.says(call(4, "pay", amount=0.51))
    refusal = s.client.hears_error(4, -32002, "budget exceeded for `amount` of pay: 0.5 of 500 is left")
    assert refusal["data"]["reason"] == "budget_exceeded"
    s.calls(call(5, "pay", amount=0.5))
    play.advance(86_400)
    s.calls(call(6, "pay", amount=500))


def test_many_calls_at_once_never_spend_more_than_there_is(make_play: MakePlay) -> None:
    play = make_play(BUDGET)
    s = play.session().handshake()
    for id in range(20):
        s.client.says(call(id, "pay", amount=100))
    heard = [s.server.hears("tools/call") for _ in range(5)]
    s.server.hears_nothing()
    for id in range(5, 20):
        s.client.hears_error(id, -32002)
    for id, one in enumerate(heard):
        s.server.answers(one, text("ok"))
        s.client.hears_result(id)


def test_what_waits_for_a_person_is_reserved_meanwhile(make_play: MakePlay) -> None:
    play = make_play(BUDGET)
    s = play.session().handshake()
    s.client.says(call(1, "wire", amount=400))
    s.client.says(call(2, "wire", amount=101))
    s.client.hears_error(2, -32002)
    play.desk.decide(play.ticket().id, False, "ann", "")
    s.client.hears_error(1, -32004)
    s.client.says(call(3, "wire", amount=500))
    play.desk.decide(play.ticket().id, True, "ann", "")
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    s.client.hears_result(3)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"path": "/etc/passwd"}, {"path": "/data/../etc/passwd"}, {"path": ["/data"]}, {"Path": "/data/x"}],
)
def test_a_call_that_a_rule_refuses_never_reaches_the_server(make_play: MakePlay, arguments: dict[str, Any]) -> None:
    play = make_play(BUDGET)
    s = play.session().handshake()
    s.client.says(call(1, "read", **arguments))
    refusal = s.client.hears_error(1, -32001)
    assert "passwd" not in json.dumps(refusal)
    s.server.hears_nothing()
    play.recorded({"kind": "denied", "stage": "policy"})
    s.calls(call(2, "read", path="/data/x"))


def test_a_kept_answer_is_given_by_the_transforms_of_the_day(make_play: MakePlay) -> None:
    plain, _, _ = CONFIG.partition("transforms:")
    play = make_play(plain)
    s = play.session().handshake()
    s.client.says(call(1, "pay"))
    play.desk.decide(play.ticket().id, True, "ann", "")
    heard = s.server.hears("tools/call")
    s.client.says(cancel(1))
    s.server.hears("notifications/cancelled")
    s.server.answers(heard, RESULT)
    s.is_quiet()
    play.reload(CONFIG)
    s.client.says(call(2, "pay"))
    s.server.hears_nothing()
    given = s.client.hears_result(2)
    assert given["structuredContent"] == {"email": "[redacted]", "n": 1}
    assert given["_meta"] == {"aegis/replayed": True}
    assert SECRET not in json.dumps(given)


def test_a_tool_spelt_in_another_way_is_cleaned_as_well(make_play: MakePlay) -> None:
    s = make_play(CONFIG).session().handshake()
    assert SECRET not in json.dumps(s.calls(call(1, "GET"), RESULT))


def test_a_task_of_ours_is_no_servers_and_is_given_as_it_was_kept(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("[pay]", "[pay, other]"))
    s = play.session()
    tasks = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
    s.client.says(modern(call(1, "other"), capabilities=tasks))
    task = s.client.hears_result(1)["taskId"]
    poll = modern(request(2, "tasks/get", taskId=task), capabilities=tasks)
    s.client.says(poll)
    assert "withheld" not in json.dumps(s.client.hears_result(2))
    play.desk.decide(play.ticket().id, True, "ann", "")
    s.server.answers(s.server.hears("tools/call"), text("in words"))
    s.client.says({**poll, "id": 3})
    assert s.client.hears_result(3)["result"]["content"] == [{"type": "text", "text": "in words"}]
