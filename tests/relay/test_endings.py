"""However a session ends, every caller hears so, every call has its record, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, Session, call, error, modern, note, request, result, text

MakePlay = Callable[..., Play]

LANE = """
server: {max_in_flight_session: 8}
backends: {files: {}}
queue: {files: {enabled: true, delay_min: 60s, delay_max: 60s, bypass_tools: [now, now2]}}
agents:
  bot:
    backends:
      files:
        allowed: true
        approval_required: [ask]
        rate_limits: {now: 9/day, lined: 9/day, ask: 9/day, now2: 9/day}
        server_requests: [roots]
"""


def in_every_state(play: Play) -> Session:
    """A session with a call sent (1), queued (2), held (3), and one whose intent is being written (4)."""
    s = play.session().handshake()
    s.calls(call(0, "lined"))
    s.client.says(call(1, "now"), call(2, "lined"), call(3, "ask"))
    s.server.hears("tools/call", name="now")
    play.log.durable = False
    s.client.says(call(4, "now2"))
    assert play.used() == {"now": (0, 1), "lined": (1, 1), "ask": (0, 1), "now2": (0, 1)}
    return s


def test_a_server_that_exits_answers_every_call_in_its_own_way(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = in_every_state(play)
    s.server.exits(-9)
    for id in (2, 3, 4):
        s.client.hears_error(id, -32603, "not executed: the server ended (signal 9)", reason="not_executed")
    s.client.hears_error(1, -32603, "the server ended (signal 9)", reason="server_exited", retryable=False)
    assert s.client.status == -9
    assert s.over
    play.log.sync()
    assert play.used() == {"now": (1, 0), "lined": (1, 0), "ask": (0, 1), "now2": (0, 0)}  # the ticket keeps its own
    assert [one.state for one in play.desk.pending()] == ["pending"]


def test_a_server_that_never_started_answers_every_call_as_not_executed(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session()
    s.client.says(request(0, "initialize", protocolVersion="2025-06-18", capabilities={}), call(1, "now"))
    s.server.hears("initialize")
    s.server.hears("tools/call")
    s.client.says(call(3, "ask", token="t"))
    s.client.hears("notifications/progress")
    s.server.cannot_start("no such command: `srv`; install it")
    s.client.hears_error(3, -32603, "not executed: no such command: `srv`")
    s.client.hears_error(0, -32603, "no such command: `srv`", reason="server_not_started", retryable=True)
    s.client.hears_error(1, -32603, "no such command", reason="server_not_started")
    assert s.client.refused == "no such command: `srv`; install it"
    assert s.client.status == 127
    assert play.used()["now"] == (0, 0)


def test_a_call_that_its_server_never_saw_is_recorded_with_what_became_of_the_server(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    play.log.durable = False
    s.client.says(call(1, "now"))
    s.server.cannot_start("command not found: `srv`")
    s.client.hears_error(1, -32603, "not executed: command not found: `srv`")
    play.log.sync()
    _, denied = play.recorded("intent", {"kind": "denied", "stage": "forward"})
    assert denied.reason == "command not found: `srv`", "nobody had left"

    s = play.session().handshake()
    play.log.durable = False
    s.client.says(call(1, "now"))
    s.server.exits(3)
    s.client.hears_error(1, -32603, "not executed: the server ended (status 3)")
    play.log.sync()
    _, denied = play.recorded("intent", {"kind": "denied", "stage": "forward"})
    assert denied.reason.startswith("the server ended (")
    assert play.used()["now"] == (0, 0)


def test_a_client_that_leaves_takes_along_what_waits_and_not_what_is_being_written_down(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = in_every_state(play)
    s.client.leaves()
    assert not s.server.stdin_closed
    play.log.sync()
    s.server.hears("tools/call", name="now2")
    assert s.server.stdin_closed
    assert s.server.ending
    assert play.used() == {"now": (0, 1), "lined": (1, 0), "ask": (0, 1), "now2": (0, 1)}
    s.server.answers({"id": 3}, text("just in time"))  # numbers: the handshake, lined, now
    s.client.hears_result(1, text("just in time"))
    s.server.answers({"id": 4}, text("this one too"))
    s.client.hears_result(4, text("this one too"))
    s.server.exits(0)
    assert s.client.status == 0
    assert play.used() == {"now": (1, 0), "lined": (1, 0), "ask": (0, 1), "now2": (1, 0)}


def test_a_shim_that_dies_while_its_last_words_are_written_down_ends_the_server_at_once(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = in_every_state(play)
    s.client.leaves()
    s.client.dies()
    assert s.server.stdin_closed
    play.log.sync()
    s.server.exits(0)
    assert play.used() == {"now": (1, 0), "lined": (1, 0), "ask": (0, 1), "now2": (0, 0)}


def test_what_a_client_says_and_leaves_reaches_the_server_in_its_order(make_play: MakePlay) -> None:
    play = make_play()
    play.log.durable = False
    s = play.session()
    s.client.says(request(0, "initialize", protocolVersion="2025-06-18", capabilities={}), note("initialized"))
    s.client.says(call(1, "now"), note("roots/list_changed"))
    s.client.leaves()
    play.log.sync()
    for method in ("initialize", "notifications/initialized", "tools/call", "notifications/roots/list_changed"):
        s.server.hears(method)
    assert s.server.stdin_closed
    s.server.exits(0)
    for id in (0, 1):
        s.client.hears_error(id, -32603, reason="server_exited")


def test_a_shim_that_dies_is_written_to_no_more(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = in_every_state(play)
    s.client.dies()
    play.log.sync()
    s.server.answers({"id": 3}, text("for nobody"))
    s.client.hears_nothing()
    s.server.exits(0)
    assert play.used() == {"now": (1, 0), "lined": (1, 0), "ask": (0, 1), "now2": (0, 0)}


def test_leaving_twice_is_leaving_once(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.leaves()
    s.client.dies()
    s.client.leaves()
    s.server.exits(0)


def test_a_daemon_that_stops_answers_what_waits_and_leaves_the_rest_to_the_ledger(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = in_every_state(play)
    s.talk.stop()
    for id in (2, 3):
        s.client.hears_error(id, -32603, "not executed: the daemon stops", reason="not_executed", retryable=True)
    s.client.says(call(5, "now"))  # it stays in the pipe, for the next daemon
    s.is_quiet()
    play.log.sync()
    s.server.hears("tools/call", name="now2")
    assert s.client.bye() == [("dispatched", b"1"), ("dispatched", b"4")]
    s.talk.shim_gone()
    s.server.exits(0)
    assert [one.state for one in play.desk.pending()] == ["pending"]
    assert play.used() == {"now": (1, 0), "lined": (1, 0), "ask": (0, 1), "now2": (1, 0)}


def test_a_person_takes_a_call_out_of_the_queue(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.calls(call(1, "lined"))
    s.client.says(call(2, "lined"))
    s.talk.cancel_waiting(s.talk.to_server.find(2), "a person took the call out of the queue")
    s.client.hears_error(2, -32603, "a person took the call out of the queue", retryable=True)
    assert play.used()["lined"] == (1, 0)
    play.advance(120)
    s.is_quiet()


def test_questions_of_a_server_that_exits_are_answered_to_nobody(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.server.says(request("r", "roots/list"))
    asked = s.client.hears("roots/list")
    play.log.durable = False
    s.server.says(request("r2", "roots/list"))
    s.server.exits(1)
    play.log.sync()
    s.client.says(result(asked["id"], {"roots": []}))
    s.is_quiet()
    assert s.client.status == 1


def test_a_session_without_a_server_ends_with_its_client(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session(backend="other", with_server=False)
    s.client.says(request(0, "initialize", protocolVersion="2025-06-18", capabilities={}))
    s.client.hears_error(0, -32001, "the backend `other` is not available to this agent")
    s.client.says(request(1, "ping"), note("initialized"))
    s.client.hears_result(1, {})
    s.client.leaves()
    assert s.over
    assert s.client.status == 0
    play.recorded({"kind": "denied", "stage": "acl", "acl": "denied"})


# --- the era changes --------------------------------------------------------------------------------------------------


def test_discover_and_then_initialize_gives_the_client_a_fresh_server(make_play: MakePlay) -> None:
    s = make_play().session()
    s.client.says(modern(request(1, "server/discover")))
    first = s.server
    first.fails(first.hears("server/discover"), -32601)
    s.client.hears_error(1, -32601)
    s.handshake()
    assert len(s.servers) == 2
    assert first.stdin_closed
    assert first.ending
    first.says(result(1), note("message", level="info", data="late"), request(9, "ping"))
    s.client.hears_nothing()
    first.hears_nothing()
    first.exits(0)
    assert not s.over
    s.calls(call(2, "x"))


def test_a_first_modern_frame_needs_no_new_server(make_play: MakePlay) -> None:
    s = make_play().session()
    s.calls(modern(call(1, "x")))
    s.calls(modern(call(2, "x")))
    assert len(s.servers) == 1


def test_a_change_of_era_fails_what_was_sent_and_withdraws_what_was_not(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = in_every_state(play)
    s.server.says(request("q", "roots/list"))  # its intent is being written, too
    old = s.server
    play.log.durable = True
    s.client.says(modern(call(7, "now")))
    for id in (2, 3, 4):
        s.client.hears_error(id, -32603, "not executed: the client changed the protocol's era", reason="not_executed")
    s.client.hears_error(1, -32603, "outcome unknown", reason="era_changed")
    assert s.server is not old
    heard = s.server.hears("tools/call", name="now")
    play.log.sync()
    s.server.answers(heard, text("new"))
    s.client.hears_result(7, text("new"))
    play.advance(200)
    s.is_quiet()
    old.exits(0)


def test_calls_of_one_era_never_reach_a_server_of_the_other_even_if_none_was_sent_before(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session()
    s.client.says(call(1, "ask"))  # legacy, held; the server has heard nothing yet
    s.client.says(modern(call(2, "now")))
    s.client.hears_error(1, -32603, "changed the protocol's era")
    s.server.answers(s.server.hears("tools/call", name="now"))
    s.client.hears_result(2)
    play.desk.decide(play.ticket().id, True, "ann")
    s.is_quiet()


def test_in_a_lane_no_queued_call_slips_to_the_server_that_is_let_go(make_play: MakePlay) -> None:
    play = make_play(
        """
backends: {files: {}}
queue: {files: {enabled: true, delay_min: 0s, delay_max: 0s}}
agents: {bot: {backends: {files: {allowed: true}}}}
"""
    )
    s = play.session().handshake()
    s.client.says(call(1, "a"), call(2, "b"))
    old = s.server
    old.hears("tools/call", name="a")
    s.client.says(modern(request(3, "tools/list")))
    s.client.hears_error(2, -32603, "not executed")
    s.client.hears_error(1, -32603, "outcome unknown")
    old.hears_nothing()
    s.server.answers(s.server.hears("tools/list"), {"tools": []})
    s.client.hears_result(3)
    old.exits(0)


def test_an_answer_to_the_old_servers_question_never_reaches_the_new_one(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.server.says(request("q", "roots/list"))
    asked = s.client.hears("roots/list")
    old = s.server
    s.client.says(modern(call(1, "now")))
    s.client.says(result(asked["id"], {"roots": []}))
    assert len(s.talk.to_client) == 0
    heard = s.server.hears("tools/call")
    s.server.hears_nothing()
    s.server.answers(heard)
    s.client.hears_result(1)
    old.inbox.clear()
    old.exits(0)


def test_the_server_is_replaced_sixteen_times_and_no_more(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    for turn in range(8):
        s.calls(modern(call(turn, "x")))
        s.handshake()
    assert len(s.servers) == 17
    s.client.says(modern(call("over", "x")))
    s.client.hears_error("over", -32603, "changed the protocol's era too often")
    s.calls(call("on", "x"))
    assert len(s.servers) == 17
    for server in s.servers[:-1]:
        server.exits(0)
    assert not s.over


def test_a_session_is_over_only_when_every_server_it_had_is_gone(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.calls(modern(call(1, "x")))
    old, new = s.servers
    s.client.leaves()
    new.exits(0)
    assert s.client.status == 0
    assert not s.over
    old.exits(0)
    assert s.over


def test_a_replaced_server_that_turns_out_never_to_have_started_harms_nobody(make_play: MakePlay) -> None:
    s = make_play().session()
    s.client.says(modern(request(1, "server/discover")))
    s.server.hears("server/discover")
    s.client.says(request(2, "initialize", protocolVersion="2025-06-18", capabilities={}))
    s.client.hears_error(1, -32603, "outcome unknown")
    old, new = s.servers
    old.cannot_start()
    assert not s.over
    new.answers(new.hears("initialize"), {"protocolVersion": "2025-06-18", "capabilities": {}})
    s.client.hears_result(2)
    s.calls(call(3, "x"))


@pytest.mark.parametrize("first", [True, False])
def test_a_server_that_cannot_even_be_begun_is_an_answer_and_no_hang(make_play: MakePlay, first: bool) -> None:
    s = make_play().session(start=False)

    def refuse(talk: object) -> object:
        raise OSError(24, "Too many open files")

    if not first:
        s.talk.start()
        s.calls(modern(request(1, "server/discover")))
    begin = s.talk._start_server
    s.talk._start_server = refuse  # type: ignore[assignment]
    if first:
        s.talk.start()
        assert "too many open files" in (s.client.refused or "")
        assert s.client.status == 127
        assert s.over
        return
    s.client.says(request(2, "initialize", protocolVersion="2025-06-18", capabilities={}))
    s.client.hears_error(2, -32603, "too many open files")
    s.client.says(modern(call(3, "x")))
    s.client.hears_error(3, -32603, "the server is not running; not executed", reason="no_server")
    s.talk._start_server = begin
    s.handshake()
    s.leave()


def test_an_error_of_a_client_goes_to_its_server_as_it_is(make_play: MakePlay) -> None:
    s = make_play(LANE).session().handshake()
    s.server.says(request("q", "roots/list"))
    asked = s.client.hears("roots/list")
    s.client.says(error(asked["id"], -1, "user said no", data={"why": [1.0]}))
    s.server.hears_error("q", -1, "user said no", why=[1.0])


def test_a_server_whose_address_or_headers_cannot_be_sent_ends_its_session_and_nothing_else(
    make_play: MakePlay,
) -> None:
    s = make_play().session(start=False)

    def start(talk: Any) -> Any:
        raise ValueError("the header `X-Key` has a control character in its value")

    s.talk._start_server = start
    s.talk.start()
    assert s.over
    assert "`X-Key`" in s.client.refused
    s.client.left = True
