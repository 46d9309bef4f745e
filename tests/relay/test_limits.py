"""However many calls race, a limit lets exactly as many through as it says, and only what succeeded counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, call, cancel, error, modern, request, text

MakePlay = Callable[..., Play]

CONFIG = """
backends: {files: {}, mail: {}}
queue: {files: {global_rate_limits: {post: 3/h, news: 1/h}}}
agents:
  bot: {backends: {files: {allowed: true, rate_limits: {post: 2/day, look: 10/day}}, mail: {allowed: true}}}
  other: {backends: {files: {allowed: true, rate_limits: {post: 5/day}}}}
"""


def test_a_used_up_limit_names_itself_its_window_and_when_to_come_back(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.calls(call(1, "post"))
    play.advance(60)
    s.calls(call(2, "post"))
    play.seen = len(play.log.records)
    s.client.says(call(3, "post"))
    refusal = s.client.hears_error(3, -32002, "rate limit exceeded for post: 2/2 calls in 24h0m0s window (this agent)")
    assert "try again in 23h59m0s" in refusal["message"]
    assert refusal["data"]["retry_after_ms"] == 86_340_001
    assert refusal["data"]["retryable"] is True
    play.recorded({"kind": "denied", "stage": "rate_limit", "limit": "denied", "acl": "allowed"})
    s.is_quiet()
    play.advance(86_339)
    s.client.says(call(4, "post"))
    s.client.hears_error(4, -32002)
    play.advance(1)
    s.calls(call(5, "post"))


def test_the_limit_over_all_agents_is_asked_first(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    a, b = play.session().handshake(), play.session("other").handshake()
    for n in range(2):
        a.calls(call(n, "post"))
    b.calls(call(1, "post"))
    a.client.says(call(3, "post"))
    refusal = a.client.hears_error(3, -32002, "(all agents together)")
    assert "try again in 1h0m0s" in refusal["message"]
    assert play.used()["*post"] == (3, 0)
    play.advance(3600)
    a.client.says(call(4, "post"))
    a.client.hears_error(4, -32002, "(this agent)")
    b.calls(call(2, "post"))


def test_200_calls_at_once_against_a_limit_of_ten_let_ten_through(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    sessions = [play.session().handshake() for _ in range(4)]
    for n in range(50):
        for s in sessions:
            s.client.says(call(n, "look"))
    reached = sum(len(s.server.inbox) for s in sessions)
    refused = sum(len(s.client.inbox) for s in sessions)
    assert (reached, refused) == (10, 190)
    assert play.used()["look"] == (0, 10)
    for s in sessions:
        s.client.inbox.clear()
        while s.server.inbox:
            s.server.answers(s.server.next(), text("ok"))
        s.client.inbox.clear()
    assert play.used()["look"] == (10, 0)


def test_the_same_holds_while_every_intent_is_still_being_written(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    play.log.durable = False
    s.client.says(*(call(n, "look") for n in range(50)))
    assert len(s.client.inbox) == 40
    play.log.sync()
    assert len(s.server.inbox) == 10
    s.client.inbox.clear()
    s.server.inbox.clear()
    s.server.exits()
    s.client.inbox.clear()


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        (text("ok"), 1),
        (text("ok", isError=False), 1),
        (text("no", isError=True), 0),
        (None, 0),
    ],
)
@pytest.mark.parametrize("tool_errors", [False, True])
def test_only_success_counts_unless_tool_errors_do(
    make_play: MakePlay, answer: Any, counted: int, tool_errors: bool
) -> None:
    play = make_play(CONFIG.replace("files: {}", f"files: {{count_tool_errors: {str(tool_errors).lower()}}}", 1))
    s = play.session().handshake()
    s.client.says(call(1, "post"))
    heard = s.server.hears("tools/call")
    if answer is None:
        s.server.says(error(heard["id"]))
    else:
        s.server.answers(heard, answer)
    assert s.client.next()["id"] == 1
    if tool_errors:
        counted = 1
    assert play.used()["post"] == (counted, 0)
    play.recorded("intent", {"kind": "outcome", "consumed": bool(counted)})


def test_an_unknown_outcome_counts(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "post"))
    s.server.hears("tools/call")
    s.server.exits(1)
    s.client.hears_error(1, -32603)
    assert play.used()["post"] == (1, 0)
    play.recorded("intent", {"kind": "outcome", "status": "unknown", "consumed": True})


def test_a_refusal_of_one_limit_leaves_the_other_alone(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session("other").handshake()
    for n in range(3):
        s.calls(call(n, "post"))
    s.client.says(call(3, "post"))
    s.client.hears_error(3, -32002)
    assert play.used("other") == {"*post": (3, 0), "*news": (0, 0), "post": (3, 0)}


def test_a_limit_over_all_agents_holds_for_a_tool_without_one_of_its_own(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s, other = play.session().handshake(), play.session("other").handshake()
    s.calls(call(1, "news"))
    other.client.says(call(1, "news"))
    other.client.hears_error(1, -32002, "all agents together")


def test_limits_are_about_calls_of_tools_by_their_name_however_it_is_spelt(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    for n in range(5):
        s.calls(request(n, "prompts/get", name="post"))
        s.calls(call(n + 10, "poster"))
    mail = play.session(backend="mail").handshake()
    for n in range(5):
        mail.calls(call(n, "post"))
    assert play.used()["post"] == (0, 0)
    s.calls(call(20, "Post"))
    assert play.used()["post"] == (1, 0)
    s.calls(call(21, "post."))
    s.client.says(call(22, "POST"))
    s.client.hears_error(22, -32002)


def test_a_modern_refusal_says_the_same_as_a_result(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    s.calls(modern(call(1, "news")))
    s.client.says(modern(call(2, "news")))
    found = s.client.hears_result(2, {"isError": True, "resultType": "complete"})
    assert "rate limit exceeded for news: 1/1 calls in 1h0m0s" in found["content"][0]["text"]
    assert found["_meta"]["aegis/denial"]["code"] == -31002
    assert found["_meta"]["aegis/denial"]["retry_after_ms"] == 3_600_001


def test_a_full_window_of_calls_under_way_says_so(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "news"), call(2, "news"))
    s.client.hears_error(2, -32002, "try again once a call under way has ended", retry_after_ms=None)
    heard = s.server.hears("tools/call")
    s.server.fails(heard)
    s.client.hears_error(1, -32000)
    s.calls(call(3, "news"))


def test_a_reload_keeps_what_was_counted(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "post"), call(2, "post"))
    first = s.server.hears("tools/call")
    s.server.answers(first)
    s.client.hears_result(1)
    play.reload(CONFIG.replace("post: 2/day", "post: 1/day"))
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(2)
    assert play.used()["post"] == (2, 0)
    s.client.says(call(3, "post"))
    s.client.hears_error(3, -32002, "2/1 calls")


def test_cancelling_and_asking_again_buys_nothing(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    for n in range(20):
        s.client.says(call(n, "post"), cancel(n))
    reached = [frame for frame in s.server.inbox if b"tools/call" in frame]
    assert len(reached) == 2
    assert play.used()["post"] == (0, 2)
    s.client.inbox.clear()
    s.server.inbox.clear()
    play.advance(31)  # nobody answered in time, so nobody knows
    assert play.used()["post"] == (2, 0)
