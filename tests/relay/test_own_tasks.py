"""A client that can poll is given a task for a call that waits for a person; the call runs once, and is answered once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hubbook import HubSession
from playbook import Play, Session, call, error, modern, note, request, text

from aegis_daemon.approvals.desk import Decided
from aegis_daemon.core.verdict import Reason
from aegis_daemon.relay import own_tasks
from aegis_daemon.wire.methods import META_CAPABILITIES, META_CLIENT, META_VERSION

MakePlay = Callable[..., Play]

CONFIG = """
approval: {timeout: 300s}
backends: {files: {}, mail: {}}
agents:
  bot:
    backends:
      files: {allowed: true, approval_required: [pay], rate_limits: {pay: 2/day}}
      mail: {allowed: true}
  other: {backends: {files: {allowed: true, approval_required: [pay]}}}
"""
LANE = CONFIG + "queue: {files: {enabled: true, delay_min: 9s, delay_max: 9s}}\n"
TASKS = {"extensions": {"io.modelcontextprotocol/tasks": {}}, "elicitation": {}, "sampling": {}}


def ask(id: Any, tool: str = "pay", **arguments: Any) -> dict[str, Any]:
    """A call of a client that can poll tasks."""
    return modern(call(id, tool, **arguments), capabilities=TASKS)


def about(id: Any, method: str, task: str, **more: Any) -> dict[str, Any]:
    return modern(request(id, f"tasks/{method}", taskId=task, **more), capabilities=TASKS)


def given(s: Session, id: Any = 1, **arguments: Any) -> str:
    """The task that a call becomes."""
    s.client.says(ask(id, **arguments))
    found = s.client.hears_result(id, {"resultType": "task", "status": "working"})
    s.is_quiet()
    return str(found["taskId"])


def begun(play: Play, id: Any = 1, **arguments: Any) -> tuple[Session, str]:
    s = play.session()
    return s, given(s, id, **arguments)


def polls(s: Session, task: str, id: Any = "poll") -> dict[str, Any]:
    """What `tasks/get` says of it; no server hears of that."""
    s.client.says(about(id, "get", task))
    return s.client.hears_result(id, {"resultType": "complete", "taskId": task})


def refused(s: Session, task: str, method: str = "get") -> None:
    s.client.says(about("poll", method, task))
    s.client.hears_error("poll", -32602, "no such task")


def agree(play: Play, approve: bool = True, note: str = "") -> None:
    play.desk.decide(play.ticket().id, approve, "ann", note)


def dies(s: Session) -> None:
    s.client.dies()
    s.all_exit()


def restarts(play: Play, s: Session) -> None:
    """The daemon ends and another one begins."""
    s.talk.stop()
    s.client.bye()
    s.talk.shim_gone()
    s.all_exit()
    play.restart_desk()


# --- the plain course -------------------------------------------------------------------------------------------------


def test_a_call_that_waits_for_a_person_is_a_task_at_once_and_its_result_is_polled(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    s.client.says(ask(1, eur=5))
    found = s.client.hears_result(1)
    ticket = play.ticket()
    task = found["taskId"]
    assert found == {
        "resultType": "task",
        "taskId": task,
        "status": "working",
        "statusMessage": f"waiting for approval {ticket.id}: not executed yet; a person has been asked",
        "createdAt": "2023-11-14T22:30:00.000Z",
        "lastUpdatedAt": "2023-11-14T22:30:00.000Z",
        "ttlMs": 900_000,
        "pollIntervalMs": 5000,
    }
    assert ticket.attended
    assert polls(s, task) == {**found, "resultType": "complete"}
    s.server.hears_nothing()
    agree(play)
    heard = s.server.hears("tools/call", name="pay", arguments={"eur": 5})
    assert polls(s, task)["statusMessage"] == f"approved ({ticket.id}), under way"
    s.server.answers(heard, text("paid", resultType="complete"))
    s.client.hears_nothing()
    done = polls(s, task)
    assert (done["status"], done["result"]) == ("completed", text("paid", resultType="complete"))
    assert polls(s, task) == done, "as often as it is asked for"
    assert play.used() == {"pay": (1, 0)}
    calls = [one for one in play.log.records if getattr(one, "name", "") == "pay"]
    assert [one.kind for one in calls] == ["hold", "intent"], "one call, under one id"
    assert len({one.call for one in calls}) == 1


def test_what_is_forwarded_offers_the_server_nothing_that_needs_an_answer(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("[pay],", "[pay], server_requests: [elicitation],"))
    s = play.session()
    frame = ask(1)
    level = {"io.modelcontextprotocol/logLevel": "debug", "progressToken": 7, "x/y": 1}
    frame["params"]["_meta"] |= {**level, META_CLIENT: {"name": "c", "version": "1"}}
    s.client.says(frame)
    s.client.hears_result(1, {"resultType": "task"})
    agree(play)
    heard = s.server.hears("tools/call")
    meta = heard["params"]["_meta"]
    assert meta == {
        META_VERSION: "2026-07-28", META_CAPABILITIES: {}, META_CLIENT: {"name": "c", "version": "1"}, "x/y": 1
    }  # fmt: skip
    s.server.says(note("progress", progressToken=7, progress=1))
    s.server.answers(heard)
    s.is_quiet()


def test_a_call_that_needs_nobody_is_no_task_and_the_server_may_make_one(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    s.client.says(ask(1, "look"))
    heard = s.server.hears("tools/call", _meta={META_CAPABILITIES: {"extensions": TASKS["extensions"]}})
    s.server.answers(heard, {"resultType": "task", "taskId": "t", "status": "working"})
    s.client.hears_result(1, {"taskId": "t"})
    s.client.says(about(2, "get", "t"))
    s.server.answers(s.server.hears("tasks/get", taskId="t"), {"taskId": "t", "status": "completed"})
    s.client.hears_result(2)


@pytest.mark.parametrize(
    "capabilities",
    [
        {},
        {"extensions": {}},
        {"extensions": {"io.modelcontextprotocol/tasks": True}},
        {"extensions": []},
        {"tasks": {}},
    ],
)
def test_a_client_that_does_not_say_so_is_held(make_play: MakePlay, capabilities: Any) -> None:
    play = make_play(CONFIG)
    s = play.session()
    s.client.says(modern(call(1, "pay"), capabilities=capabilities))
    s.is_quiet()
    agree(play)
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    s.client.hears_result(1, text("paid"))


def test_what_is_approved_already_runs_and_is_no_task(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    s.client.says(modern(call(1, "pay")), note("cancelled", requestId=1))
    agree(play)
    s.client.says(ask(2))
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    s.client.hears_result(2, text("paid"))


def test_a_server_is_said_to_have_tasks_to_who_asks_for_them(make_play: MakePlay) -> None:
    s = make_play(CONFIG).session()
    offers = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
    s.client.says(modern(request(1, "server/discover"), capabilities=TASKS))
    s.server.answers(s.server.hears("server/discover"), offers)
    s.client.hears_result(1, {"capabilities": {"tools": {}, "extensions": {"io.modelcontextprotocol/tasks": {}}}})
    s.client.says(modern(request(2, "server/discover")))
    s.server.answers(s.server.hears("server/discover"), offers)
    assert s.client.hears_result(2) == offers
    for odd in ({}, {"capabilities": 5}, {"capabilities": {"extensions": 5}}):
        s.client.says(modern(request(3, "server/discover"), capabilities=TASKS))
        s.server.answers(s.server.hears("server/discover"), odd)
        assert s.client.hears_result(3) == odd


# --- every ending -----------------------------------------------------------------------------------------------------


def test_a_rejection_is_the_tasks_result(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    agree(play, False, "not today")
    done = polls(s, task)
    assert done["status"] == "completed"
    assert done["result"]["isError"] is True
    assert "not today" in done["result"]["content"][0]["text"]
    assert play.used() == {"pay": (0, 0)}


def test_a_refusal_that_is_to_be_an_error_fails_the_task(make_play: MakePlay) -> None:
    play = make_play(CONFIG + "denials: error\n")
    s, task = begun(play)
    agree(play, False)
    done = polls(s, task)
    assert (done["status"], done["error"]["code"]) == ("failed", -31004)
    assert done["statusMessage"] == done["error"]["message"]


def test_time_that_is_over_is_told(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    play.advance(301)
    assert "nobody approved" in polls(s, task)["result"]["content"][0]["text"]


def test_an_error_of_the_server_fails_the_task(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    agree(play)
    s.server.says(error(s.server.hears("tools/call")["id"], -32000, "no funds"))
    done = polls(s, task)
    assert (done["status"], done["error"]) == ("failed", {"code": -32000, "message": "no funds"})


def test_an_answer_that_does_not_come_fails_the_task_and_says_that_the_outcome_is_unknown(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    agree(play)
    s.server.hears("tools/call")
    play.advance(121)
    s.server.hears("notifications/cancelled")
    done = polls(s, task)
    assert (done["status"], done["error"]["code"]) == ("failed", -32603)
    assert "outcome unknown" in done["error"]["message"]
    assert play.used() == {"pay": (1, 0)}


def test_a_result_is_given_as_the_server_sent_it_also_one_that_we_cannot_read(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    agree(play)
    odd = b'{"content":[],"n":1.10,"x":1e999,"big":123456789012345678901234567890}'
    s.server.says(b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (s.server.hears("tools/call")["id"], odd))
    for n in range(2):
        s.client.says(about(n, "get", task))
        assert b'"status":"completed"' in s.client.inbox[0]
        assert b'"result":' + odd in s.client.inbox.popleft()
    assert play.desk.pending() == []


def test_an_error_is_given_as_the_server_sent_it_also_one_that_we_cannot_read(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    agree(play)
    odd = b'{"code":-32000,"message":"no funds","data":1e999}'
    s.server.says(b'{"jsonrpc":"2.0","id":%d,"error":%s}' % (s.server.hears("tools/call")["id"], odd))
    s.client.says(about(1, "get", task))
    assert b'"status":"failed"' in s.client.inbox[0]
    assert b'"error":' + odd in s.client.inbox.popleft()


@pytest.mark.parametrize(
    "odd",
    [
        {"resultType": "input_required", "inputRequests": {"q": {"method": "elicitation/create", "params": {}}}},
        {"resultType": "task", "taskId": "theirs", "status": "working", "ttlMs": 1000},
    ],
)
def test_a_server_that_asks_all_the_same_leaves_no_task_without_an_end(make_play: MakePlay, odd: Any) -> None:
    play = make_play(CONFIG.replace("[pay],", "[pay], server_requests: [elicitation],"))
    s, task = begun(play)
    agree(play)
    s.server.answers(s.server.hears("tools/call"), odd)
    done = polls(s, task)
    assert done["status"] == "completed"
    assert done["result"]["isError"] is True
    play.advance(3601)
    assert play.used() == {"pay": (1, 0)}


def test_todays_rules_refuse_the_task(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    play.reload(
        CONFIG.replace("files: {allowed: true, approval", "files: {allowed: true, tool_denylist: [pay], approval")
    )
    agree(play)
    assert "not available" in polls(s, task)["result"]["content"][0]["text"]
    s.server.hears_nothing()


def test_the_result_of_a_tool_that_is_denied_by_now_is_shown_no_more(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    agree(play)
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    play.reload(CONFIG.replace("files: {allowed: true, approval_required: [pay], rate", "files: {allowed: true, rate"))
    assert polls(s, task)["result"] == text("paid"), "one that needs nobody any more is"
    play.reload(
        CONFIG.replace("files: {allowed: true, approval", "files: {allowed: true, tool_denylist: [pay], approval")
    )
    s.client.says(about(1, "get", task))
    s.client.hears_error(1, -32602, "the tool `pay` is not available any more")


def test_it_waits_in_the_queue_like_any_other(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session()
    s.calls(modern(call(0, "look")))
    task = given(s)
    agree(play)
    s.server.hears_nothing()
    assert polls(s, task)["status"] == "working"
    play.advance(9)
    s.server.answers(s.server.hears("tools/call", name="pay"), text("paid"))
    assert polls(s, task)["status"] == "completed"


# --- who lets go ------------------------------------------------------------------------------------------------------


def test_a_task_that_is_cancelled_while_it_waits_is_only_let_go(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    s.client.says(about(2, "cancel", task))
    assert s.client.hears_result(2) == {"resultType": "complete"}
    assert polls(s, task)["status"] == "cancelled"
    assert not play.ticket().attended
    agree(play)
    s.is_quiet()
    assert polls(s, task)["status"] == "cancelled"
    s.client.says(about(3, "cancel", task))
    s.client.hears_result(3)
    s.client.says(ask(4))
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    s.client.hears_result(4, text("paid"))


def test_who_asks_again_after_cancelling_is_given_another_task(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    s.client.says(about(2, "cancel", task))
    s.client.hears_result(2)
    again = given(s, 3)
    assert again != task
    agree(play)
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    assert (polls(s, task)["status"], polls(s, again)["status"]) == ("cancelled", "completed")


def test_a_task_that_is_cancelled_while_it_runs_ends_as_it_ends(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    agree(play)
    heard = s.server.hears("tools/call")
    s.client.says(about(2, "cancel", task))
    s.client.hears_result(2)
    s.server.hears("notifications/cancelled", requestId=heard["id"])
    s.server.answers(heard, text("paid"))
    assert polls(s, task)["status"] == "completed"


def test_cancelling_the_request_does_not_cancel_the_task(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    s.client.says(note("cancelled", requestId=1), note("cancelled", requestId=task))
    agree(play)
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    assert polls(s, task)["status"] == "completed"


def test_an_answer_to_questions_it_never_had_is_taken_and_changes_nothing(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    s.client.says(about(2, "update", task, inputResponses={"q": {}}))
    assert s.client.hears_result(2) == {"resultType": "complete"}
    assert polls(s, task)["status"] == "working"


def test_a_task_that_is_cancelled_while_its_intent_is_written_does_not_run(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    play.log.durable = False
    s.client.says(about(2, "cancel", task))
    agree(play)  # before the cancelling is on disk
    play.log.sync()
    s.server.hears_nothing()
    s.client.hears_result(2)
    play.log.durable = True
    assert polls(s, task)["status"] == "cancelled"
    assert play.ticket().state == "approved", "who asks for it again may still run it"
    s.is_quiet()


def test_cancelling_again_and_again_does_not_keep_a_call_alive(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    agree(play)
    s.server.hears("tools/call")
    for n in range(4):
        s.client.says(about(n, "cancel", task))
        s.client.hears_result(n)
        play.advance(10)
    s.server.hears("notifications/cancelled")
    s.server.hears_nothing()
    assert "outcome unknown" in polls(s, task)["error"]["message"]


@pytest.mark.parametrize("when", ["ran", "running", "rejected"])
def test_cancelling_what_has_ended_meanwhile_tells_how_it_ended(make_play: MakePlay, when: str) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    agree(play, when != "rejected")
    if when != "rejected":
        heard = s.server.hears("tools/call")
        if when == "ran":
            s.server.answers(heard, text("paid"))
    if when == "running":
        s.client.bye()
        play.restart_desk()
        s.talk.shim_gone()
        s.all_exit()
    else:
        restarts(play, s)
    again = play.session()
    again.client.says(about(1, "cancel", task))
    again.client.hears_result(1)
    found = polls(again, task)
    words = {"ran": "paid", "running": "not executed again", "rejected": "a person rejected"}[when]
    assert words in json.dumps(found)
    assert found["status"] == {"ran": "completed", "running": "failed", "rejected": "completed"}[when]
    again.is_quiet()


# --- from elsewhere ---------------------------------------------------------------------------------------------------


def test_it_is_polled_from_any_session_of_its_agent_with_its_backend_and_from_no_other(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    assert polls(play.session(), task)["status"] == "working"
    for elsewhere in (play.session("other"), play.session(backend="mail")):
        for method in ("get", "cancel", "update"):
            refused(elsewhere, task, method)
        elsewhere.is_quiet()
    agree(play)
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    assert polls(play.session(), task)["result"] == text("paid")
    refused(play.session("other"), task)


def test_a_legacy_session_knows_nothing_of_it(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    _, task = begun(play)
    s = play.session().handshake()
    for method in ("get", "result", "cancel"):
        s.client.says(request(1, f"tasks/{method}", taskId=task))
        s.client.hears_error(1, -32602, "no such task")


@pytest.mark.parametrize("task", ["aegis-" + "0" * 32, "aegis-" + "f" * 32])
def test_what_looks_like_ours_and_is_not_never_reaches_a_server(make_play: MakePlay, task: str) -> None:
    s = make_play(CONFIG).session()
    refused(s, task)
    s.is_quiet()


def test_an_id_of_a_servers_own_reaches_it(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    for task in ("aegis-1", "AEGIS-" + "0" * 32, "aegis-" + "0" * 33):
        play.owns(task)
        s.client.says(about(1, "get", task))
        s.server.answers(s.server.hears("tasks/get", taskId=task), {"taskId": task, "status": "working"})
        s.client.hears_result(1)


def test_identical_calls_are_one_task_and_run_once(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    other = play.session()
    assert given(s, 2) == task
    assert given(other) == task
    agree(play)
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    assert polls(other, task)["result"] == text("paid")
    for each in (s, other):
        each.is_quiet()


def test_one_who_is_held_and_one_who_polls_get_the_same_outcome(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    plain = play.session()
    plain.client.says(modern(call(1, "pay")))
    agree(play)
    plain.server.answers(plain.server.hears("tools/call"), text("paid"))
    plain.client.hears_result(1, text("paid"))
    assert polls(s, task)["result"]["_meta"] == {"aegis/replayed": True}
    plain.client.says(modern(call(2, "pay")))
    plain.is_quiet()
    assert play.ticket().state == "pending", "what was delivered is asked for anew"
    plain.client.says(note("cancelled", requestId=2))


def test_an_outcome_that_was_not_polled_yet_is_given_to_the_same_call(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    agree(play)
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    s.client.says(ask(2))
    s.client.hears_result(2, text("paid", _meta={"aegis/replayed": True}))
    assert polls(s, task)["status"] == "completed"
    again = given(s, 3)
    assert again != task


# --- sessions and daemons that end ------------------------------------------------------------------------------------


def test_a_session_that_ends_leaves_the_task_to_the_next_poll(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play, eur=5)
    dies(s)
    assert not play.ticket().attended
    again = play.session()
    assert polls(again, task)["status"] == "working"
    assert play.ticket().attended
    agree(play)
    again.server.answers(again.server.hears("tools/call", arguments={"eur": 5}), text("paid"))
    assert polls(again, task)["result"] == text("paid")
    assert play.used() == {"pay": (1, 0)}


def test_what_was_approved_while_nobody_was_there_runs_at_the_next_poll(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play, eur=5)
    dies(s)
    agree(play)
    again = play.session()
    again.client.says(about("poll", "get", task))
    heard = again.server.hears("tools/call", name="pay", arguments={"eur": 5}, _meta={META_CAPABILITIES: {}})
    again.client.hears_result("poll", {"status": "working"})
    assert polls(again, task)["status"] == "working", "a second poll does not run it twice"
    again.server.answers(heard, text("paid"))
    assert polls(again, task)["result"] == text("paid")


@pytest.mark.parametrize("when", ["pending", "approved", "rejected", "expired", "ran", "ran and polled", "running"])
def test_a_task_survives_the_daemon_as_far_as_its_ticket_does(make_play: MakePlay, when: str) -> None:
    play = make_play(CONFIG)
    s, task = begun(play, eur=5)
    heard: Any = None
    if when in ("approved", "expired"):
        dies(s)
    if when in ("approved", "ran", "ran and polled", "running"):
        agree(play)
    if when == "rejected":
        agree(play, False)
    if when in ("ran", "ran and polled", "running"):
        heard = s.server.hears("tools/call")
    if when in ("ran", "ran and polled"):
        s.server.answers(heard, text("paid"))
    if when == "ran and polled":
        polls(s, task)
    if when == "running":  # killed: what it knew is gone, and what its server did nobody knows
        s.client.bye()
        play.restart_desk()
        s.talk.shim_gone()
        s.all_exit()
    elif when not in ("approved", "expired"):
        restarts(play, s)
    else:
        play.restart_desk()
    if when == "expired":
        play.advance(301)
    again = play.session()
    again.client.says(about(1, "get", task))
    if when in ("approved",):
        again.server.answers(again.server.hears("tools/call", arguments={"eur": 5}), text("paid"))
        again.client.hears_result(1, {"status": "working"})
        assert polls(again, task)["result"] == text("paid")
        return
    found = again.client.hears_result(1)
    again.server.hears_nothing()
    if when == "pending":
        assert found["status"] == "working"
        agree(play)
        again.server.answers(again.server.hears("tools/call", arguments={"eur": 5}), text("paid"))
        assert polls(again, task)["result"] == text("paid")
    elif when in ("rejected", "expired"):
        words = {"rejected": "a person rejected this call", "expired": "nobody approved this call"}[when]
        assert words in found["result"]["content"][0]["text"]
    elif when == "ran":
        assert found["result"]["content"] == text("paid")["content"]
    else:
        assert found["status"] == "failed"
        assert "not executed again" in found["error"]["message"]
    again.is_quiet()


def test_rules_that_changed_since_do_not_run_a_task_without_its_person(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    dies(s)
    play.reload(CONFIG.replace("approval_required: [pay], rate", "rate"))
    again = play.session()
    done = polls(again, task)
    again.server.hears_nothing()
    assert "the rules for this call have changed" in done["result"]["content"][0]["text"]


def test_what_is_kept_was_not_tampered_with_or_does_not_run(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play, eur=5)
    dies(s)
    agree(play)
    play.ticket().arguments = '{"eur":500}'
    again = play.session()
    again.client.says(about(1, "get", task))
    assert again.client.hears_result(1)["status"] == "failed"
    again.is_quiet()


def test_a_pause_holds_the_next_poll_back_and_ends_nothing(make_play: MakePlay) -> None:
    class Stops:
        def stops(self, made: Any) -> Any:
            return Reason("paused", "paused") if made.method == "tools/call" else None

    play = make_play(CONFIG)
    s, task = begun(play)
    dies(s)
    agree(play)
    play.shell.brake = Stops()
    again = play.session()
    assert polls(again, task)["status"] == "working"
    again.is_quiet()
    play.shell.brake = None
    again.client.says(about(1, "get", task))
    again.server.answers(again.server.hears("tools/call"), text("paid"))
    again.client.hears_result(1)


def test_a_daemon_that_stops_answers_no_request_that_is_answered(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, _ = begun(play)
    s.talk.stop()
    s.client.hears_nothing()
    s.client.dies()


def test_an_era_that_changes_leaves_the_task_to_the_next_poll(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    s.client.says(request(5, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={}))
    s.server.answers(s.server.hears("initialize"), {"protocolVersion": "2025-11-25", "capabilities": {}})
    s.client.hears_result(5)
    assert not play.ticket().attended
    assert polls(play.session(), task)["status"] == "working"


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_without_room_for_one_more_the_client_is_told_to_come_back(make_play: MakePlay) -> None:
    play = make_play(CONFIG + "server: {max_in_flight_agent: 1}\n")
    s = play.session()
    s.client.says(ask(1))
    found = s.client.hears_result(1, {"isError": True})
    assert "aegis/pending" in found["_meta"]
    assert not play.ticket().attended


def test_a_task_that_cannot_be_kept_on_disk_is_none(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    s.client.says(modern(call(1, "pay")))
    play.store.failing = True
    s.client.says(ask(2))
    s.is_quiet()
    play.store.failing = False
    agree(play)
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    s.client.hears_result(2)
    s.client.hears_result(1)
    play.errors.clear()


def test_outcomes_are_kept_for_ten_minutes_and_only_so_many(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace(", rate_limits: {pay: 2/day}", ""))
    s = play.session()
    tasks = []
    for n in range(own_tasks.MOST + 3):
        tasks.append(given(s, n, n=n))
        agree(play, False)
    assert play.shell.tasks is not None
    assert len(play.shell.tasks) == own_tasks.MOST
    for task in (tasks[0], tasks[-1]):
        assert "rejected" in polls(s, task)["result"]["content"][0]["text"], "what is on disk is told again"
    play.advance(601)
    polls(s, tasks[5])
    assert len(play.shell.tasks) == 1


def test_outcomes_have_only_so_much_room(make_play: MakePlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_tasks, "BYTES", 5000)
    play = make_play(CONFIG.replace(", rate_limits: {pay: 2/day}", ""))
    s = play.session()
    tasks = []
    for n in range(4):
        tasks.append(given(s, n, n=n))
        agree(play)
        s.server.answers(s.server.hears("tools/call"), text("x" * 3000))
    assert play.shell.tasks is not None
    assert play.shell.tasks._bytes <= 5000
    assert polls(s, tasks[0])["status"] == "completed", "from disk: nobody has had it yet"


def test_what_was_asked_takes_room_as_well_as_what_came_of_it(
    make_play: MakePlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_tasks, "BYTES", 5000)
    play = make_play(CONFIG.replace(", rate_limits: {pay: 2/day}", ""))
    s = play.session()
    for n in range(4):
        given(s, n, long=f"{n}" * 3000)
        agree(play, False)
    assert play.shell.tasks is not None
    assert len(play.shell.tasks) == 1


def test_nobody_can_tell_a_task_from_another_ones_call(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    assert own_tasks.is_ours(task)
    assert play.ticket().call_id not in task
    s.client.says(about(1, "cancel", task))
    s.client.hears_result(1)


# --- several backends at one address ----------------------------------------------------------------------------------


def hub_begun(play: Play) -> tuple[HubSession, str]:
    hub = HubSession(play, ["files", "mail"])
    frame = ask(1)
    frame["params"]["name"] = "files__pay"
    hub.client.says(frame)
    return hub, str(hub.client.hears_result(1, {"resultType": "task"})["taskId"])


def test_a_task_of_ours_is_polled_where_several_backends_are_one(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    hub, task = hub_begun(play)
    assert task.startswith("files__aegis-")
    hub.client.says(about(2, "get", task))
    hub.client.hears_result(2, {"taskId": task, "status": "working"})
    agree(play)
    hub["files"].answers(hub["files"].hears("tools/call", name="pay"), text("paid"))
    hub.client.says(about(3, "get", task))
    hub.client.hears_result(3, {"taskId": task, "status": "completed", "result": text("paid")})
    hub.is_quiet()
    alone = play.session()
    assert polls(alone, task.removeprefix("files__"))["status"] == "completed"


def test_a_task_that_was_begun_at_one_backends_address_is_polled_there_too(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    dies(s)
    agree(play)
    hub = HubSession(play, ["files", "mail"])
    hub.client.says(about(1, "get", task))
    hub.client.hears_result(1, {"taskId": task, "status": "working"})
    hub["files"].answers(hub["files"].hears("tools/call", name="pay"), text("paid"))
    hub.client.says(about(2, "get", task))
    hub.client.hears_result(2, {"taskId": task, "status": "completed"})
    other = HubSession(play, ["files", "mail"], agent="other")
    other.client.says(about(1, "get", task))
    assert "error" in json.loads(other.client.inbox.popleft())


def test_decisions_are_taken_once_with_tasks_as_without(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, task = begun(play)
    id = play.ticket().id
    agree(play)
    with pytest.raises(Decided):
        play.desk.decide(id, False, "bob")
    s.server.answers(s.server.hears("tools/call"))
    polls(s, task)
