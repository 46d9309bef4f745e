"""A session that an earlier daemon left is taken up again, and nothing in its memory is believed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playbook import Play, call, cancel, note, raw, request, result

MakePlay = Callable[..., Play]
HELLO = request(
    0, "initialize", protocolVersion="2025-06-18", capabilities={"sampling": {}, "experimental": {}}, clientInfo={}
)
TOOK = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {}}


def test_the_new_server_sees_the_handshake_and_the_client_only_its_calls(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session(era=1, handshake=raw(HELLO), initialized=True)
    s.client.says(call(0, "x"))  # written while nobody read, with the id the handshake had
    heard = s.server.hears("initialize", protocolVersion="2025-06-18")
    s.server.hears_nothing()
    s.server.answers(heard, TOOK)
    s.server.hears("notifications/initialized")
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(0)
    play.recorded({"kind": "intent", "method": "initialize"}, "intent", "outcome", "outcome")


def test_a_client_that_had_not_finished_its_handshake_does_so_itself(make_play: MakePlay) -> None:
    s = make_play().session(era=1, handshake=raw(HELLO))
    s.server.answers(s.server.hears("initialize"), TOOK)
    s.server.hears_nothing()
    s.client.says(note("initialized"))
    s.server.hears("notifications/initialized")


@pytest.mark.parametrize(
    "planted",
    [
        raw(call(1, "denied")),
        raw(request(1, "ping")),
        raw(note("initialized")),
        raw(result(1)),
        b'{"jsonrpc":"2.0","id":1,"method":"initialize","method":"tools/call"}',
        b"\x00\x01",
        b"[]",
        b"\xff",
    ],
)
def test_no_other_frame_that_stands_where_the_handshake_should_reaches_the_server(
    make_play: MakePlay, planted: bytes
) -> None:
    s = make_play().session(era=1, handshake=planted, initialized=True)
    s.is_quiet()
    assert s.client.started


def test_the_planted_handshake_is_masked_by_todays_rules(make_play: MakePlay) -> None:
    s = make_play().session(era=1, handshake=raw(HELLO))
    heard = s.server.hears("initialize")
    assert heard["params"]["capabilities"] == {"experimental": {}}
    s.server.answers(heard, TOOK)


def test_the_handshake_waits_for_its_intent_like_any_call(make_play: MakePlay) -> None:
    play = make_play()
    play.log.durable = False
    s = play.session(era=1, handshake=raw(HELLO))
    s.server.hears_nothing()
    play.log.sync()
    s.server.answers(s.server.hears("initialize"), TOOK)
    assert s.client.started


@pytest.mark.parametrize("era", [3, 77, 255])
def test_an_era_that_does_not_exist_counts_as_none(make_play: MakePlay, era: int) -> None:
    s = make_play().session(era=era, handshake=raw(HELLO))
    s.is_quiet()
    assert s.client.started


def test_a_modern_session_has_no_handshake_to_show(make_play: MakePlay) -> None:
    s = make_play().session(era=2, handshake=raw(HELLO), initialized=True)
    s.is_quiet()
    assert s.client.started


def test_a_server_that_refuses_the_handshake_ends_the_session_with_a_reason(make_play: MakePlay) -> None:
    s = make_play().session(era=1, handshake=raw(HELLO))
    s.server.fails(s.server.hears("initialize"))
    assert not s.client.started
    assert "start it anew" in (s.client.refused or "")
    assert s.server.ending
    s.server.exits(0)
    assert s.client.status == 0


def test_a_server_that_does_not_answer_the_handshake_in_time_ends_the_session_too(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session(era=1, handshake=raw(HELLO))
    s.server.hears("initialize")
    play.advance(119)
    assert s.client.refused is None
    play.advance(2)
    assert "start it anew" in (s.client.refused or "")
    play.advance(60)
    assert s.server.ending


def test_a_server_that_exits_during_the_handshake_gives_the_client_its_status(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session(era=1, handshake=raw(HELLO))
    s.server.hears("initialize")
    s.server.exits(3)
    assert s.client.refused is None
    assert s.client.status == 3
    play.recorded("intent", {"kind": "outcome", "status": "unknown"})


def test_a_shim_that_dies_during_the_handshake_leaves_nothing(make_play: MakePlay) -> None:
    s = make_play().session(era=1, handshake=raw(HELLO))
    s.server.hears("initialize")
    s.client.dies()
    assert s.server.ending
    s.server.exits(0)


def test_without_a_server_the_client_is_read_at_once(make_play: MakePlay) -> None:
    s = make_play().session(backend="unknown", with_server=False, era=1, handshake=raw(HELLO))
    s.client.says(call(1, "x"))
    s.client.hears_error(1, -32001, "is not available to this agent")
    s.client.says(cancel(1))
