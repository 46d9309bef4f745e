"""A request that is not wanted any more leaves nothing behind; one that takes long says so, in growing numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playbook import Play, call, cancel, error, note, request, result, text

MakePlay = Callable[..., Play]

LANE = """
backends: {files: {}}
queue: {files: {enabled: true, delay_min: 60s, delay_max: 60s}}
agents: {bot: {backends: {files: {allowed: true, rate_limits: {post: 2/day}, approval_required: [ask]}}}}
"""


# --- before it was forwarded ------------------------------------------------------------------------------------------


def test_a_queued_call_that_is_cancelled_never_reaches_the_server(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.calls(call(1, "post"))
    s.client.says(call(2, "post"))
    assert play.used() == {"post": (1, 1)}
    s.client.says(cancel(2))
    assert play.used() == {"post": (1, 0)}
    play.advance(600)
    s.is_quiet()
    play.recorded("intent", "outcome", {"kind": "denied", "stage": "withdrawn", "name": "post"})


def test_a_held_call_that_is_cancelled_keeps_its_ticket_and_nothing_runs(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.client.says(call(1, "ask"), cancel(1))
    ticket = play.ticket()
    assert not ticket.attended
    play.desk.decide(ticket.id, True, "ann")
    play.advance(60)
    s.is_quiet()
    play.recorded("hold", {"kind": "denied", "stage": "withdrawn", "approval": "pending"})


def test_a_call_that_is_cancelled_while_its_intent_is_written_never_reaches_the_server(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    play.log.durable = False
    s.client.says(call(1, "post"), cancel(1))
    play.log.sync()
    s.is_quiet()
    assert play.used() == {"post": (0, 0)}
    play.recorded("intent", {"kind": "denied", "stage": "withdrawn"})


def test_cancelling_what_is_not_open_does_nothing(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(cancel(99), cancel("99"), cancel(None), cancel([1]), cancel(1.0), note("cancelled"))
    s.is_quiet()


# --- after ------------------------------------------------------------------------------------------------------------


def test_a_forwarded_call_is_cancelled_under_the_servers_id_and_its_late_answer_swallowed(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.client.says(call("mine", "post"), cancel("mine", reason="changed my mind", extra=1))
    heard = s.server.hears("tools/call")
    s.server.hears("notifications/cancelled", requestId=heard["id"], reason="changed my mind", extra=1)
    s.server.answers(heard, text("done all the same"))
    s.is_quiet()
    assert play.used() == {"post": (1, 0)}
    ended = play.recorded("intent", {"kind": "outcome", "status": "success", "consumed": True})[1]
    assert "after the caller had left" in ended.error_message


def test_a_cancelled_call_without_an_answer_counts_as_unknown_after_a_while(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.client.says(call(1, "post"), cancel(1))
    s.server.hears("tools/call")
    s.server.hears("notifications/cancelled")
    play.advance(29)
    assert len(s.talk.to_server) == 1
    play.advance(2)
    s.is_quiet()
    assert len(s.talk.to_server) == 0
    assert play.used() == {"post": (1, 0)}
    play.recorded("intent", {"kind": "outcome", "status": "unknown", "consumed": True})


def test_a_call_is_cancelled_once_however_often_the_client_says_so(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(call(1, "x"), cancel(1), cancel(1), cancel(1))
    heard = s.server.hears("tools/call")
    s.server.hears("notifications/cancelled")
    s.is_quiet()
    s.server.answers(heard)


def test_the_handshake_is_never_cancelled(make_play: MakePlay) -> None:
    s = make_play().session()
    s.client.says(request(1, "initialize", protocolVersion="2025-06-18", capabilities={}), cancel(1))
    heard = s.server.hears("initialize")
    s.server.hears_nothing()
    s.server.answers(heard, {"protocolVersion": "2025-06-18", "capabilities": {}})
    s.client.hears_result(1)


def test_the_handshake_is_not_cancelled_when_its_time_is_over_either(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session()
    s.client.says(request(1, "initialize", protocolVersion="2025-06-18", capabilities={}))
    s.server.hears("initialize")
    play.advance(121)
    s.client.hears_error(1, -32603, "no answer within 120 s", reason="timeout")
    s.server.hears_nothing()


def test_a_ping_can_be_cancelled(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(request(1, "ping"), cancel(1))
    heard = s.server.hears("ping")
    s.server.hears("notifications/cancelled", requestId=heard["id"])
    s.server.answers(heard)
    s.is_quiet()


def test_one_agent_cannot_cancel_what_another_asked(make_play: MakePlay) -> None:
    play = make_play()
    a, b = play.session().handshake(), play.session().handshake()
    a.client.says(call(1, "x"))
    heard = a.server.hears("tools/call")
    b.client.says(cancel(1), cancel(heard["id"]))
    a.server.hears_nothing()
    b.server.hears_nothing()
    a.server.answers(heard)
    a.client.hears_result(1)


# --- timeouts ---------------------------------------------------------------------------------------------------------


def test_a_call_without_an_answer_in_time_is_ended_and_cancelled(make_play: MakePlay) -> None:
    play = make_play(
        """
backends: {files: {timeout: 5s}}
agents: {bot: {backends: {files: {allowed: true, rate_limits: {slow: 1/day}}}}}
"""
    )
    s = play.session().handshake()
    s.client.says(call(1, "slow"))
    heard = s.server.hears("tools/call")
    play.advance(4.9)
    s.is_quiet()
    play.advance(0.2)
    s.client.hears_error(1, -32603, "outcome unknown", reason="timeout", retryable=False, stage="forward")
    s.server.hears("notifications/cancelled", requestId=heard["id"])
    assert play.used() == {"slow": (1, 0)}
    s.server.answers(heard, text("late"))
    play.advance(1)
    s.is_quiet()
    play.recorded("intent", {"kind": "outcome", "status": "unknown", "consumed": True}, "dropped")


def test_progress_of_the_server_gives_a_call_more_time(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(call(1, "slow", token="t"))
    heard = s.server.hears("tools/call", _meta={"progressToken": "t"})
    for step in range(3):
        play.advance(100)
        s.server.says(note("progress", progressToken="t", progress=step + 1))
        s.client.hears("notifications/progress", progress=step + 1)
    s.server.answers(heard)
    s.client.hears_result(1)


def test_an_error_of_the_server_passes_as_it_is_and_costs_nothing(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.client.says(call(1, "post"))
    heard = s.server.hears("tools/call")
    s.server.says(error(heard["id"], -32050, "its own words", data={"k": 1}))
    s.client.hears_error(1, -32050, "its own words", k=1)
    assert play.used() == {"post": (0, 0)}
    play.recorded("intent", {"kind": "outcome", "status": "error", "error_code": -32050})


# --- oversize and unreadable answers ----------------------------------------------------------------------------------


def test_an_answer_that_is_too_large_ends_its_call_and_no_other(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(call(1, "big"), call(2, "small"))
    big, small = s.server.hears("tools/call"), s.server.hears("tools/call")
    s.talk.server_long(s.server, b'{"jsonrpc":"2.0","id":%d,"result":{"x":"aaaa' % big["id"], b"aaa" * 1000 + b'"}}')
    s.client.hears_error(1, -32603, "larger than 10 MB", reason="answer_too_large")
    s.server.answers(small)
    s.client.hears_result(2)
    play.advance(1)
    play.recorded("intent", "intent", {"kind": "outcome", "status": "unknown"}, "outcome", "dropped")


def test_a_too_large_frame_that_names_nobody_ends_every_call_that_may_be_meant(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(call(1, "a"), call(2, "b"))
    s.server.hears("tools/call"), s.server.hears("tools/call")
    s.talk.server_long(s.server, b'{"x":"', b'"}')
    assert {s.client.next()["id"], s.client.next()["id"]} == {1, 2}


@pytest.mark.parametrize(
    "bad",
    [
        b'{"jsonrpc":"2.0","id":%d,"result":{"a":NaN}}',
        b'{"jsonrpc":"2.0","id":%d,"result":{},"error":{"code":1,"message":"x"}}',
        b'{"jsonrpc":"2.0","id":%d,"result":{},"result":{}}',
        b'{"jsonrpc":"2.0","id":%d,"result":{},"Result":{}}',
        b'{"jsonrpc":"2.0","id":%d,"error":"no"}',
        b'{"jsonrpc":"2.0","id":%d,"result":{"s":"\xff"}}',
        b'{"jsonrpc":"2.0","id":%d,"result":{"s":',
        b'{"jsonrpc":"2.0","id":%d}',
        b'{"jsonrpc":"3","id":%d,"result":{}}',
    ],
)
def test_an_answer_that_cannot_be_read_in_one_way_is_withheld_and_its_caller_told(
    make_play: MakePlay, bad: bytes
) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(call(1, "x"))
    heard = s.server.hears("tools/call")
    s.server.says(bad % heard["id"])
    s.client.hears_error(1, -32603, "outcome unknown", reason="bad_answer")
    play.recorded("intent", {"kind": "outcome", "status": "unknown"})


@pytest.mark.parametrize("number", ["1e999", "9" * 5000])
@pytest.mark.parametrize(
    ("method", "params", "value"),
    [
        ("initialize", {"protocolVersion": "2025-06-18"}, '{"protocolVersion":"2025-06-18","n":%s}'),
        ("tools/list", {}, '{"tools":[],"n":%s}'),
        ("tools/list", {}, '{"tools":[{"name":"a","n":%s}]}'),
        ("tools/call", {"name": "a"}, '{"isError":%s}'),
        ("tools/call", {"name": "a"}, '{"structuredContent":{"taskId":1},"ttlMs":%s}'),
    ],
)
def test_an_answer_that_is_json_and_cannot_be_decoded_hangs_nobody(
    make_play: MakePlay, method: str, params: dict[str, str], value: str, number: str
) -> None:
    play = make_play()
    s = play.session()
    s.client.says(request(1, method, **params))
    heard = s.server.hears(method)
    s.server.says(b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (heard["id"], (value % number).encode()))
    s.client.hears_error(1, -32603, "is withheld")
    play.recorded("intent", {"kind": "outcome", "status": "unknown"})


@pytest.mark.parametrize("depth", [900, 990, 1000, 1010, 2000, 100_000])
@pytest.mark.parametrize("method", ["initialize", "tools/list", "tools/call", "tasks/get"])
def test_an_answer_of_any_depth_is_answered(make_play: MakePlay, method: str, depth: int) -> None:
    play = make_play()
    play.owns("t")
    s = play.session()
    s.client.says(request(1, method, protocolVersion="2025-06-18", capabilities={}, name="a", taskId="t"))
    id = s.server.hears(method)["id"]
    deep = b"[" * depth + b"]" * depth
    value = b'{"protocolVersion":"2025-06-18","isError":false,"tools":[],"capabilities":%s}' % deep
    s.server.says(b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (id, value))
    assert b'"id":1' in s.client.inbox.popleft()


@pytest.mark.parametrize("bad", [b'"Method":1', b'"params":[]', b'"params":{"a":1,"A":2}', b'"result":{}', b'"x":NaN'])
def test_a_bad_question_of_the_server_is_refused_and_is_no_answer_to_the_call_of_its_number(
    make_play: MakePlay, bad: bytes
) -> None:
    s = make_play().session().handshake()
    s.client.says(call(1, "x"))
    heard = s.server.hears("tools/call")
    s.server.says(b'{"jsonrpc":"2.0","id":%d,"method":"ping",%s}' % (heard["id"], bad))
    refusal = s.server.next()
    assert refusal["id"] == heard["id"]
    assert refusal["error"]["code"] in (-32600, -32700)
    s.client.hears_nothing()
    s.server.answers(heard, text("true"))
    s.client.hears_result(1, text("true"))


def test_lines_that_are_no_frames_are_dropped_and_counted(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.server.says(b"Listening on port 8080", b"[1]", b"{}", b'"x"', b'{"jsonrpc":"2.0","method":"tools/call"}')
    play.advance(1)
    s.is_quiet()
    assert sum(one.count for one in play.log.records if one.kind == "dropped") == 5


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_passes_while_its_request_is_open_and_not_before_or_after(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.calls(call(0, "post"))
    tick = note("progress", progressToken=5, progress=1)
    s.client.says(call(1, "free", token=5))
    s.client.hears("notifications/progress", progressToken=5, message="waiting in the queue of `files`, position 1")
    s.server.says(tick)  # it waits for its turn: nobody asked the server for anything
    s.client.hears_nothing()
    play.advance(45)
    for _ in range(3):
        s.client.hears("notifications/progress")
    play.advance(15)
    heard = s.server.hears("tools/call")
    s.server.says(tick, note("progress", progressToken="5", progress=1), note("progress", progress=1))
    s.client.hears("notifications/progress", progressToken=5, progress=1)
    s.server.answers(heard)
    s.client.hears_result(1)
    s.server.says({**tick, "params": {"progressToken": 5, "progress": 9}})
    s.is_quiet()


def test_progress_of_a_cancelled_call_is_dropped(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(call(1, "x", token="t"), cancel(1))
    heard = s.server.hears("tools/call")
    s.server.hears("notifications/cancelled")
    s.server.says(note("progress", progressToken="t", progress=1))
    s.client.hears_nothing()
    s.server.answers(heard)


@pytest.mark.parametrize("token", [True, 1.5, None, [], {}])
def test_a_token_of_another_type_is_no_token(make_play: MakePlay, token: object) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    frame = call(1, "ask")
    frame["params"]["_meta"] = {"progressToken": token}
    s.client.says(frame)
    play.advance(60)
    s.client.hears_nothing()
    s.client.says(cancel(1))


def test_a_held_and_then_delayed_call_beats_in_growing_numbers_until_it_leaves(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.calls(call(0, "free"))
    s.client.says(call(1, "ask", token="t"))
    s.client.hears("notifications/progress", message=f"waiting for approval {play.ticket().id}")
    play.advance(31)
    for _ in range(2):
        s.client.hears("notifications/progress", progressToken="t")
    play.desk.decide(play.ticket().id, True, "ann")
    s.client.hears("notifications/progress", message="waiting in the queue of `files`, position 1")  # and still grows
    play.advance(29)
    s.client.hears("notifications/progress")
    heard = s.server.hears("tools/call", name="ask")
    play.advance(60)
    s.client.hears_nothing()
    s.server.says(note("progress", progressToken="t", progress=1))
    s.client.hears("notifications/progress", progress=1)
    s.server.answers(heard)
    s.client.hears_result(1)


def test_without_a_token_nobody_hears_a_heartbeat(make_play: MakePlay) -> None:
    play = make_play(LANE)
    s = play.session().handshake()
    s.client.says(call(1, "ask"))
    play.advance(300)
    s.client.hears_nothing()
    s.client.says(cancel(1))


def test_a_server_that_speaks_of_an_answer_it_gave_is_not_heard(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.calls(call(1, "x", token=1))
    s.server.says(note("progress", progressToken=1, progress=2), result(1))
    s.is_quiet()


def test_a_cancelled_request_gives_its_place_up_at_once(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(call(7, "slow"))
    heard = s.server.hears("tools/call")
    assert len(s.client.slots) == 1
    s.client.says(cancel(7))
    assert s.client.slots == {}
    s.server.hears("notifications/cancelled", requestId=heard["id"])
    s.server.answers(heard, text("late"))
    s.client.hears_nothing()
