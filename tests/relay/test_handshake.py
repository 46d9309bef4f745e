"""Nothing reaches a server before its client spoke, and versions that Aegis does not know are not passed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, call, modern, note, request, result

from aegis_daemon.wire.methods import LEGACY_VERSIONS

MakePlay = Callable[..., Play]


def hello(version: Any = "2025-06-18", **more: Any) -> dict[str, Any]:
    return request(1, "initialize", protocolVersion=version, capabilities={}, clientInfo={"name": "c"}, **more)


@pytest.mark.parametrize("version", LEGACY_VERSIONS)
def test_the_legacy_handshake_passes_and_is_kept_for_the_next_daemon(make_play: MakePlay, version: str) -> None:
    play = make_play()
    s = play.session()
    assert not s.server.touched
    s.client.says(hello(version))
    heard = s.server.hears("initialize", protocolVersion=version, clientInfo={"name": "c"})
    s.server.answers(heard, {"protocolVersion": version, "capabilities": {"tools": {}}, "instructions": "be kind"})
    s.client.hears_result(1, {"protocolVersion": version, "capabilities": {"tools": {}}, "instructions": "be kind"})
    assert s.client.handshake is not None
    assert not s.client.initialized
    s.client.says(note("initialized"))
    s.server.hears("notifications/initialized")
    assert s.client.initialized
    assert s.client.era == 1
    play.recorded({"kind": "intent", "method": "initialize", "era": "legacy"}, {"kind": "outcome", "status": "success"})


@pytest.mark.parametrize("version", ["2026-07-28", "2099-01-01", "1.0", "", 5, None])
def test_an_unknown_version_is_asked_for_as_the_newest_that_is_known(make_play: MakePlay, version: Any) -> None:
    s = make_play().session()
    s.client.says(hello(version))
    heard = s.server.hears("initialize", protocolVersion="2025-11-25")
    s.server.answers(heard, {"protocolVersion": "2025-06-18", "capabilities": {}})
    s.client.hears_result(1, {"protocolVersion": "2025-06-18"})


@pytest.mark.parametrize("answer", [{"protocolVersion": "2026-07-28"}, {"protocolVersion": "9"}, {}, [], "x", 5])
def test_a_server_that_answers_with_a_version_nobody_knows_is_withheld(make_play: MakePlay, answer: Any) -> None:
    s = make_play().session()
    s.client.says(hello())
    s.server.answers(s.server.hears("initialize"), answer)
    s.client.hears_error(1, -32603, "protocol version that Aegis does not know", reason="unsupported_version")


def test_a_server_that_refuses_the_handshake_is_heard(make_play: MakePlay) -> None:
    s = make_play().session()
    s.client.says(hello())
    s.server.fails(s.server.hears("initialize"), -32022, "modern only")
    s.client.hears_error(1, -32022, "modern only")


def test_a_client_may_shake_hands_again(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.handshake()
    assert len(s.servers) == 1


def test_requests_before_the_handshake_are_the_servers_to_judge(make_play: MakePlay) -> None:
    s = make_play().session()
    s.calls(request(1, "tools/list"), {"tools": []})
    s.handshake()
    assert len(s.servers) == 1


def test_a_ping_may_come_first(make_play: MakePlay) -> None:
    s = make_play().session()
    s.client.says(request(1, "ping"))
    s.server.answers(s.server.hears("ping"))
    s.client.hears_result(1)
    s.handshake()
    assert len(s.servers) == 1


def test_the_era_is_kept_for_the_next_daemon(make_play: MakePlay) -> None:
    s = make_play().session()
    s.calls(modern(call(1, "x")))
    assert s.client.era == 2
    s.handshake()
    assert s.client.era == 1
    s.servers[0].exits()


def test_what_a_refused_frame_says_of_its_era_changes_nothing(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(modern(call(1, "x"), version="1999-01-01"))
    s.client.hears_error(1, -32022)
    s.client.says(modern(request(2, "tools/run")))
    s.client.hears_error(2, -32601)
    s.client.says(modern(request(3, "tools/call")))
    s.client.hears_error(3, -32602)
    s.calls(call(4, "x"))
    assert len(s.servers) == 1


def test_a_silent_client_leaves_its_server_untouched(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session()
    play.advance(3600)
    s.server.says(note("message", level="info", data="ready"), b"Starting up...")
    s.client.hears("notifications/message")
    s.client.says(result(5))
    assert not s.server.touched
