"""A server asks its client for something only where the configuration says so, and each side sees its own ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, call, cancel, error, note, raw, request, result, text

MakePlay = Callable[..., Play]

OPEN = """
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true, server_requests: [sampling, elicitation, roots]}}}}
"""
QUESTIONS = ["sampling/createMessage", "elicitation/create", "roots/list"]


@pytest.mark.parametrize("method", [*QUESTIONS, "tasks/get", "tasks/cancel", "tasks/result", "tasks/list"])
def test_nothing_may_be_asked_unless_it_is_allowed(make_play: MakePlay, method: str) -> None:
    play = make_play()
    s = play.session().handshake()
    s.server.says(request("q", method, messages=[]))
    s.server.hears_error("q", -32001, f"the client does not accept `{method}` from this server", by="aegis")
    s.client.hears_nothing()
    play.recorded({"kind": "denied", "stage": "acl", "method": method})


@pytest.mark.parametrize("method", QUESTIONS)
@pytest.mark.parametrize("id", [0, "q", -5, 2**70])
def test_an_allowed_question_makes_the_round_under_each_sides_ids(make_play: MakePlay, method: str, id: Any) -> None:
    play = make_play(OPEN)
    s = play.session().handshake()
    s.server.says(request(id, method, messages=[{"role": "user"}]))
    asked = s.client.hears(method, messages=[{"role": "user"}])
    assert type(asked["id"]) is int
    s.client.says(result(asked["id"], {"roots": [], "n": 1.5}))
    s.server.hears_result(id, {"roots": [], "n": 1.5})
    play.recorded({"kind": "intent", "method": method}, {"kind": "outcome", "status": "success"})


def test_one_thing_may_be_allowed_without_the_others(make_play: MakePlay) -> None:
    s = make_play(OPEN.replace("sampling, elicitation, ", "")).session().handshake()
    s.server.says(request(1, "sampling/createMessage"), request(2, "roots/list"))
    s.server.hears_error(1, -32001)
    s.client.says(result(s.client.hears("roots/list")["id"], {"roots": []}))
    s.server.hears_result(2)


def test_a_clients_error_reaches_the_server(make_play: MakePlay) -> None:
    s = make_play(OPEN).session().handshake()
    s.server.says(request("q", "elicitation/create"))
    s.client.says(error(s.client.hears("elicitation/create")["id"], -1, "declined"))
    s.server.hears_error("q", -1, "declined")


def test_the_same_ids_in_both_directions_are_four_things(make_play: MakePlay) -> None:
    s = make_play(OPEN).session().handshake()
    s.client.says(call(2, "x"))
    heard = s.server.hears("tools/call")
    s.server.says(request(heard["id"], "roots/list"))
    asked = s.client.hears("roots/list")
    s.client.says(result(asked["id"], {"roots": ["mine"]}))
    s.server.hears_result(heard["id"], {"roots": ["mine"]})
    s.server.answers(heard, {"content": ["yours"]})
    s.client.hears_result(2, {"content": ["yours"]})


@pytest.mark.parametrize("method", ["tools/call", "made/up", "initialize", "server/discover", "notifications/x"])
def test_unknown_questions_are_refused(make_play: MakePlay, method: str) -> None:
    s = make_play(OPEN).session().handshake()
    s.server.says(request("q", method))
    s.server.hears_error("q", -32601)
    s.client.hears_nothing()


def test_pings_go_both_ways_unjudged_and_unrecorded(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(request("c", "ping"))
    s.server.says(result(s.server.hears("ping")["id"], {"x": 1}))
    assert s.client.hears_result("c") == {}, "that it is there, and nothing else"
    s.server.says(request("s", "ping"))
    s.client.says(result(s.client.hears("ping")["id"], {}))
    s.server.hears_result("s", {})
    play.recorded()


def test_a_ping_without_an_answer_ends_in_time(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(request("c", "ping"))
    s.server.hears("ping")
    s.server.says(request("s", "ping"))
    s.client.hears("ping")
    play.advance(121)
    s.client.hears_error("c", -32603, "no answer within")
    s.server.hears("notifications/cancelled")
    s.server.hears_error("s", -32603, "no answer within")


def test_a_server_calls_off_its_question_under_the_clients_id_once(make_play: MakePlay) -> None:
    play = make_play(OPEN)
    s = play.session().handshake()
    s.server.says(request("q", "elicitation/create"))
    asked = s.client.hears("elicitation/create")
    s.server.says(cancel("q", reason="never mind"), cancel("q"), cancel("other"))
    s.client.hears("notifications/cancelled", requestId=asked["id"], reason="never mind")
    s.is_quiet()
    s.client.says(result(asked["id"]))
    s.is_quiet()
    assert len(s.talk.to_client) == 0


def test_a_question_called_off_before_it_left_never_leaves(make_play: MakePlay) -> None:
    play = make_play(OPEN)
    s = play.session().handshake()
    play.log.durable = False
    s.server.says(request("q", "roots/list"), cancel("q"))
    play.log.sync()
    s.is_quiet()
    play.recorded("intent", {"kind": "denied", "stage": "withdrawn"})


def test_a_question_waits_for_its_intent_and_needs_one(make_play: MakePlay) -> None:
    play = make_play(OPEN)
    s = play.session().handshake()
    play.log.durable = False
    s.server.says(request(1, "roots/list"))
    s.client.hears_nothing()
    play.log.sync()
    s.client.says(result(s.client.hears("roots/list")["id"]))
    s.server.hears_result(1)
    play.log.unavailable = "disk full"
    s.server.says(request(2, "roots/list"))
    s.server.hears_error(2, -32603, "disk full", reason="audit_unavailable")
    s.client.hears_nothing()


def test_an_id_that_is_open_is_refused_to_servers_too(make_play: MakePlay) -> None:
    s = make_play(OPEN).session().handshake()
    s.server.says(request(1, "roots/list"), request(1, "roots/list"))
    s.server.hears_error(1, -32600, "open already")
    s.client.says(result(s.client.hears("roots/list")["id"]))
    s.server.hears_result(1)


def test_a_server_may_have_so_many_questions_open(make_play: MakePlay) -> None:
    play = make_play("server: {max_in_flight_session: 2}\n" + OPEN)
    s = play.session().handshake()
    s.server.says(*(request(n, "roots/list") for n in range(3)))
    s.server.hears_error(2, -32600, "too many")
    for n in range(2):
        s.client.says(result(s.client.hears("roots/list")["id"]))
        s.server.hears_result(n)


def test_a_client_that_never_answers_is_waited_for_an_hour(make_play: MakePlay) -> None:
    play = make_play(OPEN)
    s = play.session().handshake()
    s.server.says(request("q", "elicitation/create"))
    s.client.hears("elicitation/create")
    play.advance(3599)
    s.server.hears_nothing()
    play.advance(2)
    s.server.hears_error("q", -32603, "no answer")


def test_progress_of_the_client_is_for_open_questions(make_play: MakePlay) -> None:
    s = make_play(OPEN).session().handshake()
    s.client.says(note("progress", progressToken="t", progress=1))
    s.server.says(request("q", "sampling/createMessage", _meta={"progressToken": "t"}))
    asked = s.client.hears("sampling/createMessage", _meta={"progressToken": "t"})
    s.client.says(note("progress", progressToken="t", progress=1))
    s.server.hears("notifications/progress", progressToken="t")
    s.client.says(result(asked["id"]))
    s.server.hears_result("q")
    s.client.says(note("progress", progressToken="t", progress=2))
    s.is_quiet()


def test_what_a_client_offers_is_masked_in_its_handshake(make_play: MakePlay) -> None:
    offered = {"sampling": {"tools": {}}, "elicitation": {}, "roots": {"listChanged": True}, "tasks": {}, "other": {}}
    for config, left in (
        (OPEN, {"sampling": {"tools": {}}, "elicitation": {}, "roots": {"listChanged": True}, "other": {}}),
        (OPEN.replace("sampling, elicitation, roots", ""), {"other": {}}),
    ):
        s = make_play(config).session()
        s.client.says(request(0, "initialize", protocolVersion="2025-06-18", capabilities=offered, clientInfo={"a": 1}))
        heard = s.server.hears("initialize", protocolVersion="2025-06-18", clientInfo={"a": 1})
        assert heard["params"]["capabilities"] == left
        s.server.answers(heard, {"protocolVersion": "2025-06-18", "capabilities": {}})
        s.client.hears_result(0)


def test_todays_rules_decide_what_a_server_may_ask(make_play: MakePlay) -> None:
    play = make_play(OPEN)
    s = play.session().handshake()
    play.reload(OPEN.replace("sampling, elicitation, roots", ""))
    s.server.says(request(1, "roots/list"))
    s.server.hears_error(1, -32001)


def test_a_server_that_asks_before_anybody_spoke_is_heard_and_hears_nothing_first(make_play: MakePlay) -> None:
    s = make_play(OPEN).session()
    assert not s.server.touched
    s.server.says(request(1, "roots/list"))
    s.client.says(result(s.client.hears("roots/list")["id"], {"roots": []}))
    s.server.hears_result(1)


def test_the_lists_of_the_client_are_not_rewritten(make_play: MakePlay) -> None:
    s = make_play(OPEN).session().handshake()
    s.server.says(request(1, "roots/list"))
    asked = s.client.hears("roots/list")
    s.client.says(b'{"x":{"kept":1},"result":{"roots":[{"uri":"file:///a"}]},"jsonrpc":"2.0","id":%d}' % asked["id"])
    assert s.server.next() == {
        "jsonrpc": "2.0", "id": 1, "x": {"kept": 1}, "result": {"roots": [{"uri": "file:///a"}]},
    }  # fmt: skip


def test_a_call_that_cannot_be_recorded_at_all_is_answered_and_takes_nothing_else_along(
    make_play: MakePlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(call(1, "x"))
    heard = s.server.hears("tools/call")
    kept = list(play.scribe.calls)

    def broken(*_: Any, **__: Any) -> int:
        raise RuntimeError("can't start new thread")

    s.server.asked["str", "q"] += 1
    with monkeypatch.context() as patch:
        patch.setattr(play.log, "append", broken)
        s.talk.server_lines(
            s.server, [raw(request("q", "sampling/createMessage", messages=[])), raw(result(heard["id"], text("ok")))]
        )
    s.server.hears_error("q", -32603, "nothing was executed")
    s.client.hears_result(1)
    assert "could not be refused as it should" in "".join(play.errors)
    play.errors.clear()
    play.scribe.calls[:] = kept[:-1]  # nothing could be recorded of the two
