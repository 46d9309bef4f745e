"""An answer reaches the one request it belongs to, under the id its sender gave, or nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, call, cancel, error, raw, request, result, text

MakePlay = Callable[..., Play]


@pytest.mark.parametrize("id", [7, 0, -1, 2**53, 2**63, 2**200, "7", "", 'a"b\\ü\u2028', "x" * 238])
def test_the_client_gets_its_own_id_back_and_the_server_a_number(make_play: MakePlay, id: Any) -> None:
    s = make_play().session().handshake()
    s.client.says(call(id, "echo"))
    heard = s.server.hears("tools/call", name="echo")
    assert type(heard["id"]) is int
    assert heard["id"] != id
    s.server.answers(heard, text("hi"))
    s.client.hears_result(id, text("hi"))


@pytest.mark.parametrize("id", ["x" * 239, 10**240])
def test_an_id_that_the_ledger_cannot_keep_is_refused(make_play: MakePlay, id: Any) -> None:
    s = make_play().session().handshake()
    s.client.says(call(id, "echo"))
    s.client.hears_error(None, -32600, "240 bytes")
    s.client.asked.clear()


@pytest.mark.parametrize("id", [None, 1.5, True, [1], {"a": 1}])
def test_an_id_of_another_type_is_refused_and_nothing_is_forwarded(make_play: MakePlay, id: Any) -> None:
    s = make_play().session().handshake()
    s.client.says(call(id, "echo"))
    s.client.hears_error(None, -32600, "string or an integer")


def test_7_and_the_string_7_are_two_requests(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(call(7, "one"), call("7", "two"))
    first, second = s.server.hears("tools/call", name="one"), s.server.hears("tools/call", name="two")
    s.server.answers(second, text("two"))
    s.client.hears_result("7", text("two"))
    s.server.answers(first, text("one"))
    s.client.hears_result(7, text("one"))


@pytest.mark.parametrize(
    ("frame", "body"),
    [
        (b'{"jsonrpc":"2.0","id":%d,"result":BODY}', b'{"content":[],"x":1.50,"big":123456789012345678901234567890}'),
        (b'{"result":BODY,"jsonrpc":"2.0","id":%d}', b'{"a":"\\u0041\\/","b":[ 1 , 2 ]}'),
        (b'{ "jsonrpc" : "2.0" , "id" : %d , "result" : BODY , "_extra" : { "kept" : 1.0 } }', b'{ "odd" : [ 1e3 ] }'),
        (b'{"jsonrpc":"2.0","id":%d,"error":BODY}', b'{"code":-7,"message":"own","data":{"n":1.0}}'),
        (b'{"error":BODY,"id":%d,"jsonrpc":"2.0"}', b'{"code":-7,"message":"own","data":[1.10]}'),
        (b'{"jsonrpc":"2.0","id":%d,"result":BODY}', b"null"),
        (b'{"jsonrpc":"2.0","id":%d,"result":BODY}', b"[]"),
        (b'{"jsonrpc":"2.0","id":%d,"result":BODY}', '{"text":"ü\u2028é"}'.encode()),
    ],
)
def test_an_answer_passes_byte_for_byte_but_for_its_id(make_play: MakePlay, frame: bytes, body: bytes) -> None:
    s = make_play().session().handshake()
    s.client.says(call("mine", "echo"))
    heard = s.server.hears("tools/call")
    s.server.says((frame % heard["id"]).replace(b"BODY", body))
    line = s.client.inbox.popleft()
    assert body in line
    assert json.loads(line) == {**json.loads(frame.replace(b"BODY", body) % 0), "id": "mine"}


def test_late_repeated_and_invented_answers_reach_nobody_and_are_counted(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(call(1, "echo"))
    heard = s.server.hears("tools/call")
    s.server.answers(heard, text("ok"))
    s.client.hears_result(1)
    s.server.answers(heard, text("again"))
    s.server.says(result(10_000), result("init"), result(str(heard["id"])), error(1), result(-1), result(2**70))
    play.advance(1)
    s.is_quiet()
    play.recorded("intent", "outcome", {"kind": "dropped", "direction": "to_client", "count": 7})


def test_answers_of_the_client_to_nothing_are_dropped_and_counted(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(result(1), result("x"), error(2), error(99))
    play.advance(1)
    s.is_quiet()
    play.recorded({"kind": "dropped", "direction": "to_server", "count": 4})


def test_an_id_that_is_open_is_refused_and_the_first_request_goes_on(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(call(1, "first"), call(1, "second"))
    s.client.hears_error(1, -32600, "still open")
    heard = s.server.hears("tools/call", name="first")
    s.server.answers(heard, text("first"))
    s.client.hears_result(1, text("first"))
    s.calls(call(1, "third"))
    play.advance(1)
    play.recorded("intent", "outcome", "intent", "outcome", {"kind": "dropped", "reason": "duplicate id"})


def test_a_cancelled_id_stays_open_until_its_answer_is_swallowed(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(call(1, "first"), cancel(1))
    heard = s.server.hears("tools/call")
    s.server.hears("notifications/cancelled", requestId=heard["id"])
    s.client.says(call(1, "second"))
    s.client.hears_error(1, -32600)
    s.server.answers(heard)
    s.client.given_up.clear()
    s.calls(call(1, "third"))


def test_256_requests_may_be_in_flight_and_one_more_is_refused(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(*(call(n, "slow") for n in range(256)))
    heard = [s.server.hears("tools/call") for _ in range(256)]
    s.client.says(call("over", "slow"))
    s.client.hears_error("over", -32003, "256 requests in flight", stage="queue", reason="too_many", retryable=True)
    s.is_quiet()
    s.server.answers(heard[3], text("ok"))
    s.client.hears_result(3)
    s.client.says(call("now", "slow"))
    heard.append(s.server.hears("tools/call"))
    for one in heard[:3] + heard[4:]:
        s.server.answers(one)
    assert {s.client.next()["id"] for _ in range(256)} == {*range(3), *range(4, 256), "now"}


def test_an_agents_limit_holds_over_all_its_sessions_and_no_others(make_play: MakePlay) -> None:
    play = make_play(
        """
server: {max_in_flight_agent: 3}
backends: {files: {}, mail: {}}
agents:
  bot: {backends: {files: {allowed: true}, mail: {allowed: true}}}
  other: {backends: {files: {allowed: true}}}
"""
    )
    a, b, c = play.session().handshake(), play.session(backend="mail").handshake(), play.session("other").handshake()
    a.client.says(call(1, "x"), call(2, "x"))
    b.client.says(call(1, "x"), call(2, "x"))
    b.client.hears_error(2, -32003, "this agent has 3 requests in flight")
    c.calls(call(1, "x"))
    first, second = a.server.hears("tools/call"), a.server.hears("tools/call")
    third = b.server.hears("tools/call")
    a.server.answers(first)
    a.client.hears_result(1)
    b.calls(call(3, "x"))
    a.server.answers(second)
    a.client.hears_result(2)
    b.server.answers(third)
    b.client.hears_result(1)


def test_what_is_forwarded_is_our_own_encoding_with_unknown_fields_kept(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    frame = (
        b'{"x-vendor": {"a":[1.0,2]}, "jsonrpc":"2.0","id":"q","method":"tools/call","params":{"name":"e", "z":null}}'
    )
    s.client.says(frame)
    line = s.server.inbox.popleft()
    heard = json.loads(line)
    assert heard == {**json.loads(frame), "id": heard["id"]}
    assert b": " not in line
    s.server.answers(heard)
    s.client.hears_result("q")


@pytest.mark.parametrize(
    ("line", "code", "id"),
    [
        (b"{", -32700, None),
        (b"nonsense", -32700, None),
        (b"[]", -32600, None),
        (raw([call(1, "x")]), -32600, None),
        (b'{"jsonrpc":"2.0","id":5,"method":"tools/call","method":"ping"}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":5,"id":6,"method":"tools/call"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":5,"method":"tools/call","Method":"ping"}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"a","Name":"b"}}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"a","name\\u0000":"b"}}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"tools/call","result":{}}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"tools/call","params":[]}', -32600, 5),
        (b'{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"x":NaN}}', -32700, 5),
        (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":5,"method":"ping"}', -32700, None),
        (b'{"jsonrpc":"2.0","id":5,"method":"ping","x":"\xff"}', -32700, None),
        (b'{"jsonrpc":"1.0","id":5,"method":"ping"}', -32600, 5),
        (b'{"id":5}', -32600, 5),
    ],
)
def test_what_is_not_exactly_one_frame_is_refused_and_never_forwarded(
    make_play: MakePlay, line: bytes, code: int, id: Any
) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(line)
    s.client.hears_error(id, code, by="aegis")
    s.is_quiet()
    s.client.asked.clear()
    play.advance(1)
    play.recorded("dropped")


def test_a_line_that_was_too_long_is_answered_and_counted(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.on_long()
    s.client.hears_error(None, -32600, "longer than 1 MB")
    play.advance(1)
    play.recorded({"kind": "dropped", "reason": "too long", "direction": "to_server"})


def test_an_empty_line_is_nothing(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(b"")
    s.is_quiet()


def test_a_hostile_server_cannot_answer_one_session_from_another(make_play: MakePlay) -> None:
    play = make_play()
    a, b = play.session().handshake(), play.session().handshake()
    a.client.says(call(1, "x"))
    heard = a.server.hears("tools/call")
    b.server.says(result(heard["id"], text("forged")))
    a.client.hears_nothing()
    b.client.hears_nothing()
    a.server.answers(heard, text("true"))
    a.client.hears_result(1, text("true"))


def test_numbers_are_never_used_again(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    seen = []
    for _ in range(20):
        s.client.says(call("same", "x"))
        heard = s.server.hears("tools/call")
        seen.append(heard["id"])
        s.server.answers(heard)
        s.client.hears_result("same")
    assert len(set(seen)) == 20


def test_a_request_of_another_kind_than_a_tool_travels_the_same_way(make_play: MakePlay) -> None:
    play = make_play()
    play.owns("t")
    s = play.session().handshake()
    for method, params in (
        ("resources/read", {"uri": "file:///a"}),
        ("prompts/get", {"name": "p"}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {}}),
        ("resources/subscribe", {"uri": "file:///a"}),
        ("logging/setLevel", {"level": "info"}),
        ("tasks/get", {"taskId": "t"}),
    ):
        s.calls(request("q", method, **params), {"some": "thing"})
