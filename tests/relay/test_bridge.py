"""Between the eras: how both are found out, how it all ends, and what a conversation has of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from erabook import ALL, ASK, FOUND, INIT, PROBED, WELCOME, Ends, Server, ask, tool
from hypothesis import given, settings
from hypothesis import strategies as st
from playbook import Client, Play, Session, call, cancel, note, request, result, text

from aegis_daemon.core.ports import Fault
from aegis_daemon.relay.conversation import Conversation
from aegis_daemon.relay.eras import Bridge, EraMemory
from aegis_daemon.relay.eras.bridge import GRACE_S, OPENED, PROBE_S, REFUSED_S, WAITING
from aegis_daemon.relay.eras.frames import META_LEVEL
from aegis_daemon.wire.methods import META_CLIENT, META_SUBSCRIPTION, MODERN_VERSION, Era

# --- finding out ------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_client_speaks() -> None:
    ends = Ends()
    ends.advance(100)
    assert not ends.server.touched
    assert not ends.bridge.touched
    assert ends.bridge.pid == 100
    ends.is_quiet()


def test_a_legacy_client_and_a_legacy_server_are_left_alone() -> None:
    ends = Ends()
    ends.says(request(1, "initialize", **INIT))
    ends.server.answers(ends.server.hears("initialize", **INIT), WELCOME, about=1)
    assert ends.hears_result(1) == WELCOME
    assert ends.bridge.send == ends.server.send
    assert ends.bridge.cancel == ends.server.cancel
    odd = b'{"jsonrpc":"2.0","id":9,"result":{"x":1.0e2}}'
    ends.server.on["on_lines"]([odd], 0)
    assert ends.heard.popleft() == (json.loads(odd), 0)
    assert ends.memory.speaks(Era.LEGACY, 0) is True
    assert ends.memory.speaks(Era.MODERN, 0) is None, "it was not asked"
    assert ends.bridge.touched


def test_a_modern_client_and_a_modern_server_are_left_alone_after_one_question() -> None:
    ends = Ends()
    first = ask(1, "tools/list", {"elicitation": {}})
    first["params"]["_meta"] |= {META_CLIENT: {"name": "c", "version": "1"}, "progressToken": 5, META_LEVEL: "info"}
    ends.says(first, tool(2))
    heard = ends.server.hears("server/discover")
    assert heard["params"] == {"_meta": PROBED}, "nothing of what the client says of itself"
    ends.server.answers(heard, FOUND)
    assert [ends.server.inbox.popleft()[0] for _ in range(2)] == [first, tool(2)]
    assert ends.bridge.send == ends.server.send
    assert ends.memory.speaks(Era.MODERN, 0) is True
    ends.is_quiet()
    again = Ends(ends.memory)
    again.says(tool(1))
    again.server.hears("tools/call")
    again.is_quiet()


def test_a_clients_own_discover_is_answered_by_the_one_question() -> None:
    ends = Ends()
    ends.says(ask(7, "server/discover"))
    ends.server.answers(ends.server.hears("server/discover"), FOUND)
    assert ends.hears_result(7) == FOUND
    ends.is_quiet()


@pytest.mark.parametrize("way", ["refused", "lost", "silent", "dead", "odd", "legacy only"])
def test_a_server_that_does_not_know_discover_is_opened_anew_and_shaken_hands_with(way: str) -> None:
    ends = Ends()
    first = ends.server
    ends.says(ask(1, "tools/list"))
    heard = first.hears("server/discover")
    if way == "refused":
        first.refuses(heard, -32000)
    elif way == "lost":
        first.loses(heard["id"], Fault("http_404", "no", not_executed=True))
    elif way == "silent":
        ends.advance(PROBE_S)
    elif way == "dead":
        first.exits(1)
    else:
        first.answers(heard, [] if way == "odd" else {**FOUND, "supportedVersions": ["2025-11-25"]})
    assert ends.server is not first
    assert first.ended or first.over
    ends.server.answers(ends.server.hears("initialize", protocolVersion="2025-11-25", capabilities=ALL), WELCOME)
    ends.server.hears("notifications/initialized")
    assert ends.server.hears("tools/list")["params"] == {}
    assert ends.memory.speaks(Era.MODERN, ends.clock.now) is False
    if not first.over:
        first.says(result(1, {"tools": ["of the old one"]}))
        first.exits()
    assert not ends.exit
    ends.is_quiet()
    later = Ends(ends.memory)
    later.says(ask(1, "tools/list"))
    later.server.hears("initialize")
    later.is_quiet()
    later.clock.now += REFUSED_S
    assert ends.memory.speaks(Era.MODERN, later.clock.now) is None, "it may have been renewed"


@pytest.mark.parametrize("code", [-32601, -32602, -32022, -32020, -32600])
def test_a_server_that_refuses_initialize_is_asked_whether_it_is_modern(code: int) -> None:
    ends = Ends()
    ends.says(request(1, "initialize", **INIT))
    ends.server.refuses(ends.server.hears("initialize"), code)
    heard = ends.server.hears("server/discover")
    assert heard["params"] == {"_meta": PROBED}
    ends.server.answers(heard, FOUND)
    assert ends.hears_result(1) == {
        "protocolVersion": "2025-06-18",
        "capabilities": {**FOUND["capabilities"], "extensions": {"x/y": {}}},  # type: ignore[dict-item]
        "serverInfo": {"name": "m", "version": "2"},
        "instructions": "be kind",
    }
    ends.is_quiet()
    again = Ends(ends.memory)
    again.says(request(1, "initialize", **INIT))
    plain = code in (-32601, -32022, -32020)  # a client can bring about the others, and must not spoil it for all
    again.server.hears("server/discover" if plain else "initialize")
    again.is_quiet()


def test_a_legacy_client_hears_the_refusal_itself_where_no_era_fits() -> None:
    ends = Ends()
    ends.says(request(1, "initialize", **INIT))
    ends.server.refuses(ends.server.hears("initialize"), -32602, message="not you")
    ends.server.refuses(ends.server.hears("server/discover"))
    ends.hears_error(1, -32602, "not you")
    ends.is_quiet()
    assert ends.memory.speaks(Era.LEGACY, 0) is None
    ends.says(request(2, "initialize", **INIT))
    ends.server.answers(ends.server.hears("initialize"), WELCOME)
    ends.hears_result(2)


def test_an_error_that_is_none_of_the_era_is_the_answer() -> None:
    ends = Ends()
    ends.says(request(1, "initialize", **INIT))
    ends.server.refuses(ends.server.hears("initialize"), -32603, message="busy")
    ends.hears_error(1, -32603, "busy")
    assert len(ends.servers) == 1
    ends.is_quiet()


def test_modern_requests_are_lost_where_no_era_fits_and_the_next_one_tries_again() -> None:
    ends = Ends()
    ends.says(ask(1, "tools/list"), tool(2))
    ends.server.refuses(ends.server.hears("server/discover"))
    ends.server.refuses(ends.server.hears("initialize"), -32603, message="closed today")
    assert "closed today" in ends.loses(1, "no_common_version", not_executed=True).text
    ends.loses(2, not_executed=True)
    ends.is_quiet()
    ends.says(tool(3))
    ends.server.answers(ends.server.hears("server/discover"), FOUND)
    ends.server.hears("tools/call")
    for id in range(4, 60):
        ends.says(tool(id))
    assert len(ends.servers) <= OPENED


def test_a_bridge_opens_its_server_only_so_often() -> None:
    ends = Ends()
    for id in range(1, 40):
        ends.says(tool(id))
        while ends.server.inbox:
            ends.server.refuses(ends.server.inbox.popleft()[0], -32601)
        ends.loses(id, not_executed=True)
    assert len(ends.servers) == OPENED
    ends.is_quiet()


@pytest.mark.parametrize("reason", ["connect_failed", "http_401", "http_403", "http_503"])
def test_a_server_that_is_not_there_says_nothing_of_its_era(reason: str) -> None:
    ends = Ends()
    ends.says(tool(1))
    ends.server.loses(ends.server.hears("server/discover")["id"], Fault(reason, "no"))
    ends.loses(1, reason, not_executed=True)
    assert len(ends.servers) == 1
    assert ends.memory.speaks(Era.MODERN, 0) is None


def test_an_unknown_version_of_a_legacy_server_is_no_handshake() -> None:
    ends = Ends()
    ends.says(tool(1))
    ends.server.refuses(ends.server.hears("server/discover"))
    ends.server.answers(ends.server.hears("initialize"), {**WELCOME, "protocolVersion": "1999-01-01"})
    ends.loses(1, "unsupported_version", not_executed=True)
    ends.is_quiet()


def test_what_is_cancelled_while_the_era_is_unknown_is_never_sent() -> None:
    ends = Ends()
    ends.says(tool(1), tool(2))
    ends.cancels(1)
    ends.loses(1, "cancelled", not_executed=True)
    ends.server.answers(ends.server.hears("server/discover"), FOUND)
    assert ends.server.hears("tools/call") == tool(2)
    ends.is_quiet()


def test_what_waits_for_the_era_is_bounded() -> None:
    ends = Ends()
    ends.says(*(tool(id) for id in range(1, WAITING + 3)))
    ends.loses(WAITING + 1, "too_many", not_executed=True)
    ends.loses(WAITING + 2, "too_many", not_executed=True)


def test_a_paused_session_still_finds_the_era_and_is_paused_then() -> None:
    ends = Ends()
    ends.says(tool(1))
    ends.bridge.pause(True)
    assert not ends.server.paused
    ends.server.refuses(ends.server.hears("server/discover"))
    assert not ends.server.paused
    ends.server.answers(ends.server.hears("initialize"), WELCOME)
    assert ends.server.paused
    ends.bridge.pause(False)
    assert not ends.server.paused


def test_a_remembered_modern_server_that_changed_is_asked_by_the_next_session() -> None:
    memory = EraMemory()
    memory.note(Era.MODERN, True)
    ends = Ends(memory)
    ends.says(tool(1))
    ends.server.refuses(ends.server.hears("tools/call"))
    ends.hears_error(1, -32601)
    assert memory.speaks(Era.MODERN, 0) is None


def test_a_frame_that_tells_no_era_passes_as_it_is() -> None:
    ends = Ends()
    ends.says(request(1, "ping"), note("initialized"))
    ends.server.answers(ends.server.hears("ping"))
    ends.hears({"id": 1, "result": {}})
    ends.server.hears("notifications/initialized")
    ends.says(request(2, "initialize", **INIT))
    ends.server.answers(ends.server.hears("initialize"), WELCOME)
    ends.hears_result(2)
    ends.is_quiet()


def test_a_server_that_speaks_before_its_handshake_is_not_heard_by_a_modern_client() -> None:
    ends = Ends()
    ends.says(tool(1))
    heard = ends.server.hears("server/discover")
    ends.server.says(request("s1", "ping"), request("s2", "roots/list"), note("message", level="info", data=1), b"junk")
    ends.server.hears_answer("s1", result={})
    ends.server.hears_answer("s2", error={"code": -32601})
    ends.server.answers(heard, FOUND)
    ends.server.hears("tools/call")
    ends.is_quiet()


# --- ending -----------------------------------------------------------------------------------------------------------


def test_the_session_ends_with_the_last_server_it_opened() -> None:
    ends = Ends()
    ends.says(tool(1))
    first = ends.server
    first.refuses(first.hears("server/discover"))
    ends.server.answers(ends.server.hears("initialize"), WELCOME)
    ends.bridge.close_stdin()
    ends.bridge.end()
    ends.bridge.end()
    assert ends.server.closed
    assert ends.server.ended
    ends.server.exits(3)
    assert not ends.exit
    ends.says(tool(7), note("x"))
    ends.loses(7, "server_exited", not_executed=True)
    ends.cancels(7)
    first.exits(9)
    assert ends.exit == [3]
    assert not ends.clock.waiting


def test_what_was_said_before_the_end_still_goes_out() -> None:
    ends = Ends()
    ends.says(tool(1))
    ends.bridge.close_stdin()
    ends.bridge.end()
    assert not ends.server.closed
    ends.server.answers(ends.server.hears("server/discover"), FOUND)
    ends.server.hears("tools/call")
    assert ends.server.closed
    assert ends.server.ended
    ends.server.answers({"id": 1}, text("ok"))
    ends.hears({"id": 1, "result": {}})
    ends.server.exits()
    assert ends.exit == [0]
    assert not ends.clock.waiting


def test_a_session_does_not_wait_for_ever_to_end() -> None:
    ends = Ends()
    ends.says(tool(1))
    ends.bridge.end()
    assert not any(server.ended for server in ends.servers)
    ends.advance(GRACE_S)
    assert all(server.ended for server in ends.servers)
    for server in ends.servers:
        server.exits()
    assert len(ends.exit) == 1
    assert not ends.clock.waiting


def test_a_server_that_cannot_be_opened_again_ends_the_session() -> None:
    ends = Ends()
    ends.says(tool(1))
    ends.unopened = OSError("no more processes")
    ends.server.refuses(ends.server.hears("server/discover"))
    ends.loses(1, not_executed=True)
    ends.server.exits(1)
    assert ends.exit == [1]


def test_a_session_in_which_nobody_spoke_teaches_nothing() -> None:
    memory = EraMemory()
    memory.note(Era.MODERN, True)
    ends = Ends(memory)
    ends.bridge.end()
    ends.server.exits()
    assert memory.speaks(Era.MODERN, 0) is True


def test_a_server_that_cannot_be_started_is_told_once() -> None:
    ends = Ends()
    ends.server.on["on_failed"]("no such file")
    assert ends.failed == ["no such file"]
    assert not ends.exit


def test_a_full_server_that_is_replaced_is_full_no_more() -> None:
    ends = Ends()
    ends.says(tool(1))
    ends.server.on["on_full"](True)
    old = ends.server
    old.refuses(old.hears("server/discover"))
    old.on["on_full"](True)
    assert ends.full == [True, False]


# --- under a conversation ---------------------------------------------------------------------------------------------

CONFIG = """
backends: {files: {}}
agents:
  bot:
    backends:
      files:
        allowed: true
        server_requests: [elicitation]
        rate_limits: {pay: 1/day}
"""


def bridged(play: Play) -> tuple[Session, list[Server]]:
    """A session of a whole conversation whose server is behind a bridge."""
    client, servers, memory = Client(play), [], EraMemory()
    rule = play.runtime.agents["bot"]

    def start_server(talk: Conversation) -> Bridge:
        def make(**on: Any) -> Server:
            servers.append(Server(len(servers), **on))
            return servers[-1]

        bridge: Bridge = Bridge(
            make, memory, call_later=play.clock.call_later, now=play.clock.monotonic,
            on_lines=lambda lines, about: talk.server_lines(bridge, lines, about),
            on_lost=lambda number, fault: talk.server_lost(bridge, number, fault),
            on_full=lambda full: talk.server_full(bridge, full),
            on_exit=lambda code: talk.server_exited(bridge, code),
            on_failed=lambda text: talk.server_failed(bridge, text),
        )  # fmt: skip
        return bridge

    def ended(talk: Conversation) -> None:
        session.over = True

    talk = Conversation(
        "s0", rule.principal, "files", client, start_server, play.shell, play.clock,  # type: ignore[arg-type]
        ids=play.ids, load=play.load, on_end=ended,
    )  # fmt: skip
    client.talk = talk
    session = Session(play, client, talk, servers)  # type: ignore[arg-type]
    play.sessions.append(session)
    talk.start()
    return session, servers


def test_a_question_of_a_legacy_server_is_judged_and_its_retry_keeps_the_lease(make_play: Callable[..., Play]) -> None:
    play = make_play(CONFIG)
    session, servers = bridged(play)
    client = session.client
    client.says(tool("one", "pay"))
    servers[0].refuses(servers[0].hears("server/discover"))
    offered = {"elicitation": {}}
    servers[1].answers(servers[1].hears("initialize", capabilities=offered), WELCOME)
    servers[1].hears("notifications/initialized")
    heard = servers[1].hears("tools/call")
    servers[1].says(request("r", "roots/list"))
    servers[1].hears_answer("r", error={"code": -32601})
    servers[1].says({"jsonrpc": "2.0", "id": "s", **ASK})
    found = client.hears_result("one", {"resultType": "input_required"})
    assert play.used()["pay"] == (0, 1)
    (key,) = found["inputRequests"]
    client.says(tool("two", "pay", inputResponses={key: {"action": "accept"}}, requestState=found["requestState"]))
    servers[1].hears_answer("s", result={"action": "accept"})
    servers[1].answers(heard, text("paid"))
    client.hears_result("two", {**text("paid"), "resultType": "complete"})
    assert play.used()["pay"] == (1, 0)
    client.says(tool("three", "pay"))
    assert client.hears_result("three")["isError"] is True
    session.is_quiet()
    servers[0].exits()


def test_a_question_of_a_modern_server_is_judged_before_its_client_hears_it(make_play: Callable[..., Play]) -> None:
    play = make_play(CONFIG)
    session, servers = bridged(play)
    client = session.client
    client.says(request("i", "initialize", **INIT))
    servers[0].refuses(servers[0].hears("initialize"))
    servers[1].answers(servers[1].hears("server/discover"), FOUND)
    client.hears_result("i", {"protocolVersion": "2025-06-18"})
    client.says(call("one", "pay"))
    needed = {"resultType": "input_required", "inputRequests": {"x": ASK}, "requestState": "S"}
    servers[1].answers(servers[1].hears("tools/call"), needed)
    question = client.hears("elicitation/create")
    client.says(result(question["id"], {"action": "accept"}))
    servers[1].answers(servers[1].hears("tools/call", requestState="S"), text("paid"))
    client.hears_result("one", text("paid"))
    assert play.used()["pay"] == (1, 0)
    client.says(call("two", "t"))
    servers[1].answers(servers[1].hears("tools/call"), {**needed, "inputRequests": {"x": {"method": "roots/list"}}})
    client.hears_error("two", -32603)
    client.says(call("three", "t"), cancel("three"))
    number = servers[1].hears("tools/call")["id"]
    assert servers[1].withdrawn.popleft()[0] == number
    client.says(call("four", "t"))
    servers[1].answers(servers[1].hears("tools/call"), needed)
    question = client.hears("elicitation/create")
    client.says(cancel("four"))
    client.hears("notifications/cancelled", requestId=question["id"])
    session.is_quiet()
    servers[0].exits()


def test_a_subscription_of_a_modern_client_keeps_its_own_id(make_play: Callable[..., Play]) -> None:
    play = make_play(CONFIG)
    session, servers = bridged(play)
    client = session.client
    client.says(ask("sub", "subscriptions/listen", notifications={"toolsListChanged": True}))  # type: ignore[arg-type]
    servers[0].refuses(servers[0].hears("server/discover"))
    servers[1].answers(servers[1].hears("initialize"), WELCOME)
    servers[1].hears("notifications/initialized")
    client.hears("notifications/subscriptions/acknowledged", _meta={META_SUBSCRIPTION: "sub"})
    servers[1].says(note("tools/list_changed"))
    client.hears("notifications/tools/list_changed", _meta={META_SUBSCRIPTION: "sub"})
    play.advance(10_000)
    client.says(cancel("sub"))
    session.is_quiet()
    servers[0].exits()
    play.recorded("intent", {"kind": "outcome", "status": ...})


# --- whatever a server says -------------------------------------------------------------------------------------------

_KEYS = (
    "_meta", "resultType", "inputRequests", "requestState", "method", "params", "content", "task", "uri", "level",
    "progressToken", "requestId", "notifications", "resourceSubscriptions", "capabilities", "supportedVersions",
    "protocolVersion", "code", "message", "mode", "url", META_SUBSCRIPTION,
)  # fmt: skip
_WORDS = (
    "input_required", "complete", "task", "url", "form", "roots/list", "elicitation/create", "a:1", "info", "x",
    MODERN_VERSION, "2025-06-18",
)  # fmt: skip
_METHODS = (
    "ping", "roots/list", "elicitation/create", "sampling/createMessage", "tasks/get", "notifications/progress",
    "notifications/message", "notifications/cancelled", "notifications/resources/updated", "x/list_changed",
    "notifications/tools/list_changed", "notifications/subscriptions/acknowledged", "list_changed",
)  # fmt: skip
_VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 3)
    | st.sampled_from((1 << 40, (1 << 40) + 1, 1.5))
    | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=8,
)
_IDS: Any = st.sampled_from((1, 2, 3, "s", 1 << 40, (1 << 40) + 1, (1 << 40) + 2))
_PARAMS: Any = st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=4)
_FRAMES: Any = st.one_of(
    st.builds(lambda id, value: {"jsonrpc": "2.0", "id": id, "result": value}, _IDS, _VALUES),
    st.builds(lambda id, value: {"jsonrpc": "2.0", "id": id, "error": value}, _IDS, _VALUES),
    st.builds(lambda method, params: {"jsonrpc": "2.0", "method": method, "params": params}, st.sampled_from(_METHODS), _PARAMS),
    st.builds(
        lambda id, method, params: {"jsonrpc": "2.0", "id": id, "method": method, "params": params},
        _IDS, st.sampled_from(_METHODS), _PARAMS,
    ),
)  # fmt: skip


@given(st.lists(st.tuples(_FRAMES, st.sampled_from((None, 0, 1, 2, 1 << 40))), max_size=12), st.integers(0, 2))
@settings(max_examples=400, deadline=None)
def test_no_shape_of_a_servers_frames_breaks_a_translator(frames: list[tuple[Any, int | None]], way: int) -> None:
    ends = Ends()
    if way == 0:
        ends.modern_on_legacy()
        ends.says(tool(2), ask(3, "subscriptions/listen", notifications={"resourceSubscriptions": ["a:1"]}))
    elif way == 1:
        ends.legacy_on_modern()
        ends.says(note("initialized"), call(2, "t"), request(3, "resources/subscribe", uri="a:1"))
    else:
        ends.says(tool(1))
    for frame, about in frames:
        if not ends.server.over:
            ends.server.says(frame, about=about)
            ends.advance(0.3)
    ends.cancels(2)
    ends.cancels(3)
    ends.bridge.end()
    for server in ends.servers:
        server.exits()
    assert len(ends.exit) == 1
    assert not ends.clock.waiting


def test_large_frames_that_wait_for_the_era_are_bounded_by_their_bytes() -> None:
    ends = Ends()
    large = "x" * 1_000_000
    ends.says(*(tool(id, text=large) for id in range(1, 8)))
    for id in (6, 7):
        ends.loses(id, "too_many", not_executed=True)
    ends.server.answers(ends.server.hears("server/discover"), FOUND)
    assert len(ends.server.inbox) == 5, "the first, by which it is found out, and four megabytes"
    ends.server.inbox.clear()
