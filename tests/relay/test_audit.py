"""No call leaves before its intent is on disk, and one whose intent cannot be written does not leave at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, call, modern, request, result, text

MakePlay = Callable[..., Play]

CONFIG = """
backends: {files: {}}
queue: {files: {enabled: true, delay_min: 0s, delay_max: 0s}}
agents: {bot: {backends: {files: {allowed: true, rate_limits: {post: 5/day}}}}}
"""


@pytest.mark.parametrize(
    "frame",
    [
        call(1, "post", a=1),
        modern(call(1, "post", a=1)),
        request(1, "initialize", protocolVersion="2025-06-18", capabilities={}),
        modern(request(1, "server/discover")),
        request(1, "tools/list"),
        request(1, "resources/read", uri="a:b"),
        request(1, "prompts/get", name="p"),
        request(1, "completion/complete", ref={"type": "ref/prompt", "name": "p"}),
        request(1, "logging/setLevel", level="debug"),
        request(1, "resources/subscribe", uri="a:b"),
        modern(request(1, "subscriptions/listen")),
        request(1, "tasks/get", taskId="t"),
    ],
)
def test_the_server_hears_nothing_until_the_intent_is_on_disk(make_play: MakePlay, frame: dict[str, Any]) -> None:
    play = make_play(CONFIG)
    play.owns("t")
    s = play.session()
    play.log.durable = False
    s.client.says(frame)
    assert not s.server.touched
    play.recorded({"kind": "intent", "method": frame["method"]})
    play.log.sync()
    heard = s.server.hears(frame["method"])
    s.server.answers(heard, {"protocolVersion": "2025-06-18", "tools": []})
    s.client.hears_result(1)


@pytest.mark.parametrize("later", [False, True])
def test_without_a_log_nothing_is_forwarded_and_nothing_is_used_up(make_play: MakePlay, later: bool) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    if later:
        play.log.durable = False
    else:
        play.log.unavailable = "no space left on device"
    s.client.says(call(1, "post"))
    if later:
        s.is_quiet()
        play.log.sync(fault="no space left on device")
    refusal = s.client.hears_error(
        1, -32603, "the audit log cannot be written (no space left on device); nothing was executed",
        stage="audit", reason="audit_unavailable", retryable=True,
    )  # fmt: skip
    assert refusal["data"]["call_id"]
    s.is_quiet()
    assert play.used() == {"post": (0, 0)}
    assert play.lanes.rows() == []
    play.log.unavailable = None
    play.log.durable = True
    s.calls(call(2, "post"))


def test_a_tool_call_without_a_log_is_a_protocol_error_in_the_modern_era_too(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    play.log.unavailable = "x"
    s.client.says(modern(call(1, "post")))
    s.client.hears_error(1, -32603, reason="audit_unavailable")


def test_refusals_are_given_without_a_log_all_the_same(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("allowed: true", "allowed: true, tool_denylist: [rm]"))
    s = play.session().handshake()
    play.log.unavailable = "x"
    s.client.says(call(1, "rm"), request(2, "made/up"))
    s.client.hears_error(1, -32001)
    s.client.hears_error(2, -32601)


def test_an_outcome_that_cannot_be_written_is_given_to_the_caller_and_settled(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "post"))
    heard = s.server.hears("tools/call")
    play.log.unavailable = "x"
    s.server.answers(heard, text("ok"))
    s.client.hears_result(1)
    assert play.used() == {"post": (1, 0)}
    assert play.lanes.rows() == []


def test_calls_leave_in_their_order_when_a_sync_covers_many(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    play.log.durable = False
    s.client.says(*(call(n, f"t{n}") for n in range(20)))
    play.log.sync()
    for n in range(20):
        s.server.answers(s.server.hears("tools/call", name=f"t{n}"))
        s.client.hears_result(n)


def test_what_is_recorded_is_what_was_asked_and_answered(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call("q", "post", token="t", text="hello", n=[1, 2.5, None]))
    s.server.answers(s.server.hears("tools/call"), text("done"))
    s.client.hears_result("q")
    intent, outcome = play.recorded(
        {"kind": "intent", "agent": "bot", "backend": "files", "method": "tools/call", "name": "post", "request": '"q"',
         "era": "legacy", "session": "s0", "acl": "allowed", "limit": "allowed", "approval": "not_required"},
        {"kind": "outcome", "status": "success", "consumed": True},
    )  # fmt: skip
    assert intent.call == outcome.call
    assert len(intent.call) == 32
    assert play.body(intent) == {"text": "hello", "n": [1, 2.5, None]}
    assert play.body(outcome) == text("done")


def test_how_long_a_call_took_is_recorded(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "post"))
    heard = s.server.hears("tools/call")
    play.advance(2.5)
    s.server.answers(heard)
    s.client.hears_result(1)
    play.recorded("intent", {"kind": "outcome", "duration_us": 2_500_000})


def test_arguments_of_refused_calls_are_recorded_too(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("allowed: true", "allowed: true, tool_denylist: [rm]"))
    s = play.session().handshake()
    s.client.says(call(1, "rm", path="/etc"))
    s.client.hears_error(1, -32001)
    (record,) = play.recorded({"kind": "denied", "name": "rm", "policy": ...})
    assert play.body(record) == {"path": "/etc"}
    assert "agents.bot.backends.files" in record.policy


def test_every_call_has_an_id_of_its_own(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    for n in range(300):
        s.calls(call(n, "x"))
    ids = [one.call for one in play.log.records if one.kind == "intent"]
    assert len(set(ids)) == len(ids) == 301
    assert all(len(id) == 32 and int(id, 16) >= 0 for id in ids)


def test_an_answer_that_comes_before_its_question_left_answers_nothing(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    play.log.durable = False
    s.client.says(call(1, "x"))
    s.server.says(*(result(n, text("early")) for n in range(-2, 6)))
    s.client.hears_nothing()
    play.log.sync()
    s.server.answers(s.server.hears("tools/call"), text("in time"))
    s.client.hears_result(1, text("in time"))


def test_a_disk_that_hangs_does_not_hang_its_callers(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    play.log.durable = False
    s.client.says(call(1, "post"))
    play.advance(29)
    s.is_quiet()
    play.advance(2)
    s.client.hears_error(1, -32603, "not executed: the audit log cannot be written in time", reason="not_executed")
    play.advance(60)
    play.log.sync()
    s.is_quiet()
    assert play.used() == {"post": (0, 0)}
    play.recorded("intent", {"kind": "denied", "stage": "withdrawn"})


def test_a_disk_that_hangs_does_not_keep_a_session_whose_client_has_left(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    play.log.durable = False
    s.client.says(call(1, "post"))
    s.client.leaves()
    assert not s.server.ending
    play.advance(31)
    s.client.hears_error(1, -32603, "cannot be written in time")
    assert s.server.ending
    s.server.exits()
    assert s.over
    play.log.sync()


def test_a_reload_while_an_intent_is_written_changes_nothing_for_that_call(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    play.log.durable = False
    s.client.says(call(1, "post"))
    play.reload(CONFIG.replace("allowed: true", "allowed: false"))
    play.log.sync()
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(1)
