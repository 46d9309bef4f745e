"""Between the eras: what each side hears of the other, what is refused, and how it all ends."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playbook import Client, Clock, Play, Session, call, cancel, error, like, modern, note, raw, request, result, text

from aegis_daemon import __version__
from aegis_daemon.core.ports import Fault
from aegis_daemon.relay import bridge as bridges
from aegis_daemon.relay.bridge import META_CLIENT, META_LEVEL, META_SERVER, Bridge, EraMemory
from aegis_daemon.relay.conversation import Conversation
from aegis_daemon.wire.jsonrpc import Frame, parse
from aegis_daemon.wire.methods import META_CAPABILITIES, META_SUBSCRIPTION, META_VERSION, MODERN_VERSION, Era

ALL = {"elicitation": {}, "sampling": {}, "roots": {}}
FOUND = {
    "resultType": "complete",
    "supportedVersions": [MODERN_VERSION],
    "capabilities": {
        "tools": {"listChanged": True},
        "resources": {"subscribe": True, "listChanged": True},
        "logging": {},
        "extensions": {"io.modelcontextprotocol/tasks": {}, "x/y": {}},
    },
    "instructions": "be kind",
    "ttlMs": 5,
    "cacheScope": "public",
    "_meta": {META_SERVER: {"name": "m", "version": "2"}},
}
WELCOME = {
    "protocolVersion": "2025-06-18",
    "capabilities": {
        "tools": {"listChanged": True}, "resources": {"subscribe": True}, "prompts": {}, "logging": {}, "tasks": {},
    },
    "serverInfo": {"name": "l", "version": "1"},
    "instructions": "be brief",
}  # fmt: skip
FORM = {"message": "sure?", "requestedSchema": {"type": "object", "properties": {}}}
ASK = {"method": "elicitation/create", "params": FORM}
PROBED = {
    META_VERSION: MODERN_VERSION, META_CAPABILITIES: {}, META_CLIENT: {"name": "aegis", "version": __version__},
}  # fmt: skip
INIT = {"protocolVersion": "2025-06-18", "capabilities": ALL, "clientInfo": {"name": "c", "version": "3"}}


class Server:
    """The real backend, as far as a script needs one."""

    def __init__(self, number: int, **on: Any) -> None:
        self.number = number
        self.on = on
        self.inbox: deque[tuple[dict[str, Any], Frame | None, int]] = deque()
        self.withdrawn: deque[tuple[int, dict[str, Any]]] = deque()
        self.touched = self.paused = self.closed = self.ended = self.over = False

    @property
    def pid(self) -> int:
        return 100 + self.number

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        assert not self.over, f"sent to a server that is gone: {text!r}"
        said = json.loads(text)
        assert b"\n" not in text
        if frame is not None and frame.method:
            assert (said["method"], said.get("params", {})) == (frame.method, frame.params)
        if "method" in said and "id" in said:
            assert said["id"] == number
        else:
            assert number == 0
        self.touched = True
        self.inbox.append((said, frame, number))

    def cancel(self, number: int, text: bytes) -> None:
        said = json.loads(text)
        assert said["method"] == "notifications/cancelled"
        assert said["params"]["requestId"] == number
        self.withdrawn.append((number, said))

    def pause(self, paused: bool) -> None:
        self.paused = paused

    def close_stdin(self) -> None:
        self.closed = True

    def end(self) -> None:
        self.ended = True

    # the script's side

    def says(self, *frames: Any, about: int | None = None) -> None:
        self.on["on_lines"]([raw(frame) for frame in frames], about)

    def hears(self, method: str, **params: Any) -> dict[str, Any]:
        assert self.inbox, f"the server heard nothing, not even `{method}`"
        said = self.inbox.popleft()[0]
        assert said.get("method") == method, said
        assert like(said.get("params", {}), params), said
        return said

    def hears_nothing(self) -> None:
        assert not self.inbox, self.inbox
        assert not self.withdrawn, self.withdrawn

    def hears_answer(self, id: Any, **value: Any) -> dict[str, Any]:
        said = self.inbox.popleft()[0]
        assert said["id"] == id, said
        assert like(said, value), said
        return said

    def answers(self, heard: dict[str, Any], value: Any = None, about: int | None = None) -> None:
        self.says(result(heard["id"], value), about=about)

    def refuses(self, heard: dict[str, Any], code: int = -32601, **more: Any) -> None:
        self.says(error(heard["id"], code, **more))

    def exits(self, code: int = 0) -> None:
        self.over = True
        self.on["on_exit"](code)

    def loses(self, number: int, fault: Fault) -> None:
        self.on["on_lost"](number, fault)


class Ends:
    """A bridge, its conversation's side, and the servers it opened."""

    def __init__(self, memory: EraMemory | None = None) -> None:
        self.clock = Clock()
        self.memory = memory if memory is not None else EraMemory()
        self.servers: list[Server] = []
        self.unopened: OSError | None = None
        self.heard: deque[tuple[dict[str, Any], int | None]] = deque()
        self.lost: deque[tuple[int, Fault]] = deque()
        self.full: list[bool] = []
        self.exit: list[int] = []
        self.failed: list[str] = []
        self.bridge = Bridge(
            self._make, self.memory, call_later=self.clock.call_later, now=self.clock.monotonic,
            on_lines=self._lines, on_lost=lambda number, fault: self.lost.append((number, fault)),
            on_full=self.full.append, on_exit=self.exit.append, on_failed=self.failed.append,
        )  # fmt: skip

    def _make(self, **on: Any) -> Server:
        if self.unopened is not None:
            raise self.unopened
        self.servers.append(Server(len(self.servers), **on))
        return self.servers[-1]

    def _lines(self, lines: list[bytes], about: int | None) -> None:
        self.heard.extend((json.loads(line), about) for line in lines)

    @property
    def server(self) -> Server:
        return self.servers[-1]

    # the client's side

    def says(self, *frames: Any) -> None:
        for frame in frames:
            judged = parse(raw(frame))
            number = judged.id if type(judged.id) is int and "method" in frame else 0
            self.bridge.send(raw(frame), judged, number)

    def cancels(self, number: int) -> None:
        self.bridge.cancel(number, raw(note("cancelled", requestId=number)))

    def hears(self, expected: Any = ..., about: Any = ...) -> dict[str, Any]:
        assert self.heard, "the client heard nothing"
        frame, told = self.heard.popleft()
        assert like(frame, expected), frame
        assert about is ... or told in (about, None), told
        return frame

    def hears_result(self, id: int, value: Any = ...) -> dict[str, Any]:
        return self.hears({"id": id, "result": value}, id)["result"]  # type: ignore[no-any-return]

    def hears_error(self, id: int, code: int, words: str = "") -> dict[str, Any]:
        found = self.hears({"id": id, "error": {"code": code}}, id)["error"]
        assert words in found["message"], found
        return found  # type: ignore[no-any-return]

    def loses(self, number: int, reason: str = "", *, not_executed: bool | None = None) -> Fault:
        found, fault = self.lost.popleft()
        assert found == number
        assert reason in fault.reason, fault.reason
        assert not_executed is None or fault.not_executed is not_executed
        return fault

    def is_quiet(self) -> None:
        assert not self.heard, self.heard
        assert not self.lost, [(number, fault.text) for number, fault in self.lost]
        for server in self.servers:
            server.hears_nothing()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds, lambda: None)

    # the usual beginnings

    def modern_on_legacy(self, capabilities: Any = None, welcome: Any = None) -> Ends:
        self.says(ask(1, "tools/list", capabilities))
        self.server.refuses(self.server.hears("server/discover"))
        self.server.answers(self.server.hears("initialize"), welcome or WELCOME)
        self.server.hears("notifications/initialized")
        self.server.answers(self.server.hears("tools/list"), {"tools": []})
        self.hears_result(1)
        self.is_quiet()
        return self

    def legacy_on_modern(self, init: Any = None, found: Any = None) -> Ends:
        self.says(request(1, "initialize", **(init or INIT)))
        self.server.refuses(self.server.hears("initialize"))
        self.server.answers(self.server.hears("server/discover"), found or FOUND)
        self.hears_result(1)
        self.is_quiet()
        return self

    def initialized(self) -> int:
        """The client's handshake is over, and the server told that it will announce what the client wants."""
        self.says(note("initialized"))
        heard = self.server.hears("subscriptions/listen")
        self.server.says(acknowledged(heard))
        return int(heard["id"])


def ask(id: int, method: str, capabilities: Any = None, **params: Any) -> dict[str, Any]:
    """A modern request of a client that takes every question, unless it says otherwise."""
    return modern(request(id, method, **params), capabilities=ALL if capabilities is None else capabilities)


def tool(id: int, name: str = "t", meta: Any = None, capabilities: Any = None, **more: Any) -> dict[str, Any]:
    made = modern(call(id, name, a=1), capabilities=ALL if capabilities is None else capabilities, **more)
    made["params"]["_meta"].update(meta or {})
    return made


def acknowledged(heard: dict[str, Any]) -> dict[str, Any]:
    told = heard["params"]["notifications"]
    return note("subscriptions/acknowledged", notifications=told, _meta={META_SUBSCRIPTION: heard["id"]})


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
        ends.advance(bridges.PROBE_S)
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
    later.clock.now += bridges.REFUSED_S
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
    assert len(ends.servers) <= bridges.OPENED


def test_a_bridge_opens_its_server_only_so_often() -> None:
    ends = Ends()
    for id in range(1, 40):
        ends.says(tool(id))
        while ends.server.inbox:
            ends.server.refuses(ends.server.inbox.popleft()[0], -32601)
        ends.loses(id, not_executed=True)
    assert len(ends.servers) == bridges.OPENED
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
    ends.says(*(tool(id) for id in range(1, bridges.WAITING + 3)))
    ends.loses(bridges.WAITING + 1, "too_many", not_executed=True)
    ends.loses(bridges.WAITING + 2, "too_many", not_executed=True)


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
    ends.advance(bridges.PROBE_S)
    ends.server.hears("initialize")
    ends.advance(bridges.GRACE_S)
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


# --- a modern client, a legacy server ---------------------------------------------------------------------------------


def test_discover_is_told_from_the_handshake() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(ask(2, "server/discover"))
    assert ends.hears_result(2) == {
        "resultType": "complete", "supportedVersions": [MODERN_VERSION], "ttlMs": 0, "cacheScope": "private",
        "capabilities": {key: value for key, value in WELCOME["capabilities"].items() if key != "tasks"},  # type: ignore[attr-defined]
        "instructions": "be brief", "_meta": {META_SERVER: WELCOME["serverInfo"]},
    }  # fmt: skip
    ends.is_quiet()


def test_a_legacy_server_is_offered_what_the_client_offers_and_no_tasks() -> None:
    ends = Ends()
    capabilities = {
        **ALL,
        "roots": {"listChanged": True},
        "extensions": {"io.modelcontextprotocol/tasks": {}, "a/b": {}},
    }
    first = ask(1, "tools/list", capabilities)
    first["params"]["_meta"][META_CLIENT] = {"name": "c", "version": "1"}
    ends.says(first)
    ends.server.refuses(ends.server.hears("server/discover"))
    heard = ends.server.hears("initialize", clientInfo={"name": "c", "version": "1"})
    assert heard["params"]["capabilities"] == {**ALL, "extensions": {"a/b": {}}}


def test_requests_lose_the_envelope_and_results_gain_theirs() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2, meta={"progressToken": "p", "x/y": 1, META_CLIENT: {}}))
    heard = ends.server.hears("tools/call")
    assert heard["params"] == {"name": "t", "arguments": {"a": 1}, "_meta": {"progressToken": "p", "x/y": 1}}
    ends.server.says(note("progress", progressToken="p", progress=1))
    ends.hears(note("progress", progressToken="p", progress=1), 2)
    ends.server.says(
        b'{"jsonrpc":"2.0","id":2,"result":{"content":[],"structuredContent":{"n":1.0e2,"m":12345678901234567890}}}'
    )
    frame, _ = ends.heard.popleft()
    assert frame["result"] == {
        "content": [], "structuredContent": {"n": 100.0, "m": 12345678901234567890}, "resultType": "complete",
    }  # fmt: skip
    ends.says(ask(3, "resources/read", uri="a:b"))
    assert ends.server.hears("resources/read")["params"] == {"uri": "a:b"}
    ends.server.answers({"id": 3}, {"contents": [], "ttlMs": 9, "cacheScope": "public"})
    assert ends.hears_result(3) == {"contents": [], "ttlMs": 0, "cacheScope": "private", "resultType": "complete"}
    ends.is_quiet()


def test_what_a_legacy_server_cannot_do_is_refused_by_the_name_of_its_era() -> None:
    ends = Ends().modern_on_legacy()
    for id, method in enumerate(("tasks/get", "tasks/update", "tasks/cancel", "what/ever"), 2):
        ends.says(ask(id, method, taskId="x"))
        ends.hears_error(id, -32601, "2025-06-18")
    ends.says(tool(9, task={"ttl": 1}))
    ends.hears_error(9, -32602, "task")
    ends.is_quiet()


@pytest.mark.parametrize(("old", "new"), [(-32002, -32602), (-32042, -32603), (-32602, -32602), (-32000, -32000)])
def test_retired_error_codes_are_replaced(old: int, new: int) -> None:
    ends = Ends().modern_on_legacy()
    ends.says(ask(2, "resources/read", uri="a:b"))
    ends.server.refuses(ends.server.hears("resources/read"), old, message="no", data={"uri": "a:b"})
    assert ends.hears_error(2, new) == {"code": new, "message": "no", "data": {"uri": "a:b"}}


@pytest.mark.parametrize("value", [[], "x", 7, None, {"task": {"taskId": "t"}}])
def test_a_result_of_an_odd_shape_ends_its_request_alone(value: Any) -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2), tool(3))
    ends.server.hears("tools/call")
    ends.server.hears("tools/call")
    ends.server.says({"jsonrpc": "2.0", "id": 2, "result": value})
    ends.loses(2, "bad_answer", not_executed=False)
    ends.server.answers({"id": 3}, text("ok"))
    ends.hears_result(3)
    ends.is_quiet()


@pytest.mark.parametrize(
    "line", [b'{"jsonrpc":"2.0","id":2,"result":{"a":NaN}}', b'{"jsonrpc":"2.0","id":2,"error":1}']
)
def test_an_answer_that_cannot_be_read_ends_its_request(line: bytes) -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.hears("tools/call")
    ends.server.says(line)
    ends.loses(2, "bad_answer")
    ends.is_quiet()


def test_a_legacy_result_cannot_pretend_to_ask() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.answers(
        ends.server.hears("tools/call"),
        {**text("x"), "resultType": "input_required", "inputRequests": {"a": ASK}, "requestState": "s"},
    )
    assert ends.hears_result(2) == {**text("x"), "resultType": "complete"}


def asked(ends: Ends, id: int = 2, server_id: Any = "s", about: int | None = None, **more: Any) -> dict[str, Any]:
    """A call whose server asks the client; gives the client's result."""
    ends.says(tool(id, **more))
    ends.server.hears("tools/call")
    ends.server.says({"jsonrpc": "2.0", "id": server_id, **ASK}, about=about)
    return ends.hears_result(id, {"resultType": "input_required", "requestState": ...})


def test_a_question_ends_the_request_and_the_retry_brings_the_answer() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends, 2, 0)
    ((key, question),) = found["inputRequests"].items()
    assert question == ASK
    ends.is_quiet()
    answer = {"action": "accept", "content": {}}
    ends.says(tool(3, inputResponses={key: answer}, requestState=found["requestState"]))
    ends.server.hears_answer(0, result=answer)
    ends.server.answers({"id": 2}, text("done"), about=2)
    ends.hears_result(3, {**text("done"), "resultType": "complete"})
    ends.is_quiet()
    assert not ends.clock.waiting
    ends.says(tool(4, inputResponses={key: answer}, requestState=found["requestState"]))
    ends.hears_error(4, -32602, "requestState")
    ends.is_quiet()


def test_questions_that_come_together_are_put_together_and_what_is_left_out_is_asked_again() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.hears("tools/call")
    ends.server.says(request("a", "roots/list"), {"jsonrpc": "2.0", "id": "b", **ASK})
    found = ends.hears_result(2)
    first, second = found["inputRequests"]
    assert found["inputRequests"][first] == {"method": "roots/list"}
    ends.says(tool(3, inputResponses={first: {"roots": []}}, requestState=found["requestState"]))
    ends.server.hears_answer("a", result={"roots": []})
    again = ends.hears_result(3)
    assert again["inputRequests"] == {second: ASK}
    assert again["requestState"] != found["requestState"]
    ends.says(tool(4, inputResponses={second: {"action": "cancel"}}, requestState=again["requestState"]))
    ends.server.hears_answer("b", result={"action": "cancel"})
    ends.server.answers({"id": 2}, text("x"))
    ends.hears_result(4)
    ends.is_quiet()


def test_a_retry_must_be_the_same_request() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends)
    (key,) = found["inputRequests"]
    state, answer = found["requestState"], {key: {"action": "accept"}}
    other = tool(3, inputResponses=answer, requestState=state)
    other["params"]["arguments"] = {"a": True}  # which Python takes for 1
    ends.says(other)
    ends.hears_error(3, -32602)
    ends.says(ask(4, "prompts/get", name="t", arguments={"a": 1}, inputResponses=answer, requestState=state))
    ends.hears_error(4, -32602)
    for bad in ([], {key: 1}, {key: [1]}, "x", None):
        ends.says(tool(5, inputResponses=bad, requestState=state))
        ends.hears_error(5, -32602)
    for bad in (None, 1, "", ["x"], state[:-1]):
        ends.says(tool(6, inputResponses=answer, requestState=bad))
        ends.hears_error(6, -32602)
    ends.says(tool(7, inputResponses=answer))
    ends.hears_error(7, -32602)
    ends.is_quiet()
    ends.says(tool(8, inputResponses=answer, requestState=state))
    ends.server.hears_answer("s", result={"action": "accept"})


def test_nobody_who_comes_back_leaves_the_server_with_an_error() -> None:
    ends = Ends().modern_on_legacy()
    asked(ends)
    ends.advance(bridges.SUSPENDED_S)
    ends.server.hears_answer("s", error={"code": -32603})
    assert ends.server.withdrawn.popleft()[0] == 2
    ends.is_quiet()
    ends.server.answers({"id": 2}, text("late"))
    assert ends.hears()["id"] == 2, "the conversation has no such request and drops it"


def test_an_answer_that_came_before_the_clients_is_given_to_the_retry() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends)
    ends.server.answers({"id": 2}, text("never mind"))
    ends.is_quiet()
    ends.says(tool(3, inputResponses={}, requestState=found["requestState"]))
    ends.hears_result(3, {**text("never mind"), "resultType": "complete"})
    ends.server.hears_answer("s", error={"code": -32603})
    ends.is_quiet()
    assert not ends.clock.waiting


def test_a_call_lost_while_the_client_is_asked_is_told_to_the_retry() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends)
    ends.server.loses(2, Fault("broken", "the stream broke"))
    ends.says(tool(3, inputResponses={}, requestState=found["requestState"]))
    ends.hears_error(3, -32603, "the stream broke")


def test_pages_to_visit_are_a_question_and_the_retry_a_new_call() -> None:
    ends = Ends().modern_on_legacy()
    offers = {"elicitation": {"url": {}}}
    ends.says(tool(2, capabilities=offers))
    heard = ends.server.hears("tools/call")
    visit = {"mode": "url", "elicitationId": "e", "message": "go there", "url": "https://x"}
    ends.server.refuses(heard, -32042, message="visit", data={"elicitations": [visit]})
    found = ends.hears_result(2, {"resultType": "input_required"})
    ((key, question),) = found["inputRequests"].items()
    assert question["params"] == {"mode": "url", "message": "go there", "url": "https://x"}
    retry = {"inputResponses": {key: {"action": "accept"}}, "requestState": found["requestState"]}
    ends.says(tool(3, capabilities=offers, **retry))
    again = ends.server.hears("tools/call")
    assert again["params"] == heard["params"]
    ends.server.answers(again, text("x"))
    ends.hears_result(3)
    ends.says(tool(4, capabilities=offers))
    ends.server.refuses(ends.server.hears("tools/call"), -32042, message="visit", data={"elicitations": [visit]})
    ends.hears_result(4)
    ends.advance(bridges.SUSPENDED_S)
    for capabilities, data in ((ALL, {"elicitations": [visit]}), (offers, {"elicitations": [1]}), (offers, [])):
        ends.says(tool(5, capabilities=capabilities))
        ends.server.refuses(ends.server.hears("tools/call"), -32042, message="visit", data=data)
        ends.hears_error(5, -32603, "visit")
    ends.is_quiet()


def test_a_question_that_the_server_takes_back_is_not_answered() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends)
    ends.server.says(note("cancelled", requestId="s"), note("cancelled", requestId="t"), note("cancelled"))
    (key,) = found["inputRequests"]
    ends.says(tool(3, inputResponses={key: {}}, requestState=found["requestState"]))
    ends.is_quiet()
    ends.server.answers({"id": 2}, text("x"))
    ends.hears_result(3)


def test_how_many_calls_wait_for_a_retry_is_bounded() -> None:
    ends = Ends().modern_on_legacy()
    for id in range(2, bridges.SUSPENDED + 2):
        asked(ends, id, id)
    ends.says(tool(999))
    ends.server.hears("tools/call")
    ends.server.says({"jsonrpc": "2.0", "id": 999, **ASK})
    ends.server.hears_answer(999, error={"code": -32603})
    ends.is_quiet()
    ends.server.answers({"id": 999}, text("without"))
    ends.hears_result(999)
    ends.bridge.end()
    assert not ends.clock.waiting


def test_how_many_questions_one_call_may_have_is_bounded() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.hears("tools/call")
    ends.server.says(*({"jsonrpc": "2.0", "id": id, **ASK} for id in range(bridges.ASKS + 1)))
    ends.server.hears_answer(bridges.ASKS, error={"code": -32603})
    assert len(ends.hears_result(2)["inputRequests"]) == bridges.ASKS


def test_what_a_client_does_not_take_is_not_asked() -> None:
    ends = Ends().modern_on_legacy()
    url = {"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": "https://x"}}
    thinking = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1, "tools": []}}
    for offers, question in (
        ({}, ASK), ({"elicitation": {"url": {}}}, ASK), ({"elicitation": 1}, ASK), (ALL, url), (ALL, thinking),
        ({"elicitation": {}}, {"method": "roots/list"}), (ALL, {"method": "tasks/get", "params": {}}),
        (ALL, {"method": "elicitation/create", "params": {**FORM, "task": {}}}),
    ):  # fmt: skip
        ends.says(tool(2, capabilities=offers))
        ends.server.hears("tools/call")
        ends.server.says({"jsonrpc": "2.0", "id": "s", **question})
        ends.server.hears_answer("s", error={"code": -32601})
        ends.server.answers({"id": 2}, text("x"))
        ends.hears_result(2)
        ends.is_quiet()


def test_a_question_that_belongs_to_no_request_is_answered_here() -> None:
    ends = Ends().modern_on_legacy()
    ends.server.says(request("p", "ping"), {"jsonrpc": "2.0", "id": "s", **ASK})
    ends.server.hears_answer("p", result={})
    ends.server.hears_answer("s", error={"code": -32603})
    ends.says(ask(2, "tools/list"))
    ends.server.hears("tools/list")
    ends.server.says({"jsonrpc": "2.0", "id": "s", **ASK})
    ends.server.hears_answer("s", error={"code": -32603})
    ends.is_quiet()


def test_a_server_that_wants_the_roots_at_once_gets_them_before_the_first_call() -> None:
    ends = Ends().modern_on_legacy()
    ends.server.says(request("a", "roots/list"), request("b", "roots/list"), request("b", "roots/list"))
    ends.server.hears_answer("b", error={"code": -32600})
    ends.server.says(note("cancelled", requestId="b"))
    ends.says(ask(2, "tools/list"))
    ends.server.answers(ends.server.hears("tools/list"), {"tools": []})
    ends.hears_result(2)
    ends.says(tool(3, capabilities={}))
    ends.server.hears("tools/call")
    ends.says(tool(4))
    found = ends.hears_result(4, {"resultType": "input_required"})
    ((key, question),) = found["inputRequests"].items()
    assert question == {"method": "roots/list"}
    ends.says(tool(5, inputResponses={}, requestState=found["requestState"]))
    found = ends.hears_result(5, {"inputRequests": {key: question}})
    ends.says(tool(6, inputResponses={key: {"roots": []}}, requestState=found["requestState"]))
    ends.server.hears_answer("a", result={"roots": []})
    ends.server.answers(ends.server.hears("tools/call"), text("x"))
    ends.hears_result(6)
    ends.is_quiet()
    assert not ends.clock.waiting


def test_a_server_that_reads_nothing_is_answered_only_so_often() -> None:
    ends = Ends().modern_on_legacy()
    ends.server.on["on_full"](True)
    for id in range(2 * bridges.UNREAD):
        ends.server.says({"jsonrpc": "2.0", "id": id, **ASK})
    assert len(ends.server.inbox) == bridges.UNREAD
    ends.server.inbox.clear()
    ends.server.on["on_full"](False)
    ends.server.says(request("p", "ping"))
    ends.server.hears_answer("p", result={})


def test_the_stream_tells_which_call_asks_and_else_it_is_the_newest() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2), tool(3))
    ends.server.hears("tools/call")
    ends.server.hears("tools/call")
    ends.server.says({"jsonrpc": "2.0", "id": "a", **ASK}, about=2)
    ends.hears_result(2, {"resultType": "input_required"})
    ends.server.says({"jsonrpc": "2.0", "id": "b", **ASK}, about=0)
    ends.hears_result(3, {"resultType": "input_required"})
    ends.server.says({"jsonrpc": "2.0", "id": "c", **ASK}, about=77)
    ends.server.hears_answer("c", error={"code": -32603})
    ends.is_quiet()


def test_two_questions_with_one_id_are_one_too_many() -> None:
    ends = Ends().modern_on_legacy()
    asked(ends)
    ends.server.says({"jsonrpc": "2.0", "id": "s", **ASK})
    ends.server.hears_answer("s", error={"code": -32600})
    ends.is_quiet()


def test_progress_and_cancelling_follow_the_call_to_its_retry() -> None:
    ends = Ends().modern_on_legacy()
    found = asked(ends, meta={"progressToken": "old"})
    ends.server.says(note("progress", progressToken="old", progress=1))
    ends.is_quiet()
    (key,) = found["inputRequests"]
    again = {"inputResponses": {key: {"action": "accept"}}, "requestState": found["requestState"]}
    ends.says(tool(3, meta={"progressToken": 7}, **again))
    ends.server.hears_answer("s")
    ends.server.says(note("progress", progressToken="old", progress=2), about=2)
    ends.hears(note("progress", progressToken=7, progress=2), 3)
    ends.server.says(note("custom"), about=2)
    ends.hears(note("custom"), 3)
    ends.cancels(3)
    assert ends.server.withdrawn.popleft()[0] == 2
    ends.cancels(3)
    ends.is_quiet()


def test_a_cancelled_call_withdraws_under_its_own_number() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.hears("tools/call")
    ends.cancels(2)
    assert ends.server.withdrawn.popleft()[0] == 2
    ends.server.says({"jsonrpc": "2.0", "id": "s", **ASK}, about=2)
    ends.server.hears_answer("s", error={"code": -32603})
    ends.is_quiet()


def test_log_levels_are_set_when_they_change_and_messages_go_to_who_wants_them() -> None:
    ends = Ends().modern_on_legacy()
    ends.says(tool(2))
    ends.server.hears("tools/call")
    ends.server.says(note("message", level="error", data="unasked"))
    ends.says(tool(3, meta={META_LEVEL: "warning"}), tool(4, meta={META_LEVEL: "warning"}))
    ends.server.answers(ends.server.hears("logging/setLevel", level="warning"))
    ends.server.hears("tools/call")
    ends.server.hears("tools/call")
    ends.server.says(note("message", level="error", data=1), note("message", level="info", data=2), note("message"))
    ends.hears(note("message", level="error", data=1), 4)
    ends.server.says(note("message", level="error", data=3), about=3)
    ends.hears(note("message", level="error", data=3), 3)
    ends.server.says(note("message", level="error", data=4), about=2)
    ends.says(tool(5, meta={META_LEVEL: "loud"}))
    ends.hears_error(5, -32602, META_LEVEL)
    ends.is_quiet()


def test_a_server_without_logging_is_not_told_a_level() -> None:
    ends = Ends().modern_on_legacy(welcome={**WELCOME, "capabilities": {}})
    ends.says(tool(2, meta={META_LEVEL: "info"}))
    ends.server.hears("tools/call")
    ends.is_quiet()


def test_listening_is_subscribing_and_hears_what_changes() -> None:
    ends = Ends().modern_on_legacy()
    wants = {"toolsListChanged": True, "promptsListChanged": True, "resourceSubscriptions": ["a:1", "a:2", "a:1"]}
    ends.says(ask(2, "subscriptions/listen", notifications={**wants, "taskIds": ["x"]}))
    told = ends.hears({"method": "notifications/subscriptions/acknowledged"}, 2)
    assert told["params"] == {
        "notifications": {"toolsListChanged": True, "resourceSubscriptions": ["a:1", "a:2"]},
        "_meta": {META_SUBSCRIPTION: 2},
    }
    ends.server.answers(ends.server.hears("resources/subscribe", uri="a:1"))
    ends.server.refuses(ends.server.hears("resources/subscribe", uri="a:2"))
    ends.says(ask(3, "subscriptions/listen", notifications={"resourceSubscriptions": ["a:2"]}))
    ends.hears({"method": "notifications/subscriptions/acknowledged"}, 3)
    ends.server.says(
        note("tools/list_changed"), note("prompts/list_changed"), note("resources/updated", uri="a:2/part"),
        note("resources/updated", uri="a:22"), note("resources/updated", uri=7), note("elicitation/complete"),
    )  # fmt: skip
    ends.hears(note("tools/list_changed", _meta={META_SUBSCRIPTION: 2}), 2)
    for number in (2, 3):
        ends.hears(note("resources/updated", uri="a:2/part", _meta={META_SUBSCRIPTION: number}), number)
    ends.cancels(2)
    ends.server.hears("resources/unsubscribe", uri="a:1")
    ends.hears_result(2, {"resultType": "complete", "_meta": {META_SUBSCRIPTION: 2}})
    ends.cancels(3)
    ends.server.hears("resources/unsubscribe", uri="a:2")
    ends.hears_result(3)
    ends.server.says(note("tools/list_changed"))
    ends.is_quiet()


@pytest.mark.parametrize("wants", [None, 1, [], {"resourceSubscriptions": "a:1"}, {"resourceSubscriptions": [1]}])
def test_a_listen_of_an_odd_shape_is_refused(wants: Any) -> None:
    ends = Ends().modern_on_legacy()
    ends.says(ask(2, "subscriptions/listen", notifications=wants))
    ends.hears_error(2, -32602)
    ends.is_quiet()


def test_subscriptions_are_bounded() -> None:
    ends = Ends().modern_on_legacy()
    wants = {"resourceSubscriptions": [f"a:{n}" for n in range(bridges.URIS + 1)]}
    ends.says(ask(2, "subscriptions/listen", notifications=wants))
    ends.hears_error(2, -32602, str(bridges.URIS))
    ends.is_quiet()


def test_what_the_conversation_refuses_a_server_reaches_it() -> None:
    ends = Ends().modern_on_legacy()
    ends.server.says(b'{"jsonrpc":"2.0","id":"s","method":"roots/list","params":{"a":1,"a":2}}')
    ends.heard.popleft()
    ends.bridge.send(raw(error("s", -32600)), None, 0)
    ends.server.hears_answer("s", error={"code": -32600})


def test_a_server_whose_calls_nobody_ends_is_not_kept_for_ever() -> None:
    ends = Ends().modern_on_legacy()
    for id in range(2, bridges.TRACKED + 100):
        ends.says(tool(id))
    assert len(ends.bridge._side._calls) == bridges.TRACKED  # type: ignore[union-attr]


# --- a legacy client, a modern server ---------------------------------------------------------------------------------


def test_requests_gain_the_envelope_and_results_lose_theirs() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t", token="p"))
    heard = ends.server.hears("tools/call", name="t")
    envelope = {META_VERSION: MODERN_VERSION, META_CAPABILITIES: ALL, META_CLIENT: INIT["clientInfo"]}
    assert heard["params"]["_meta"] == {"progressToken": "p", **envelope}
    ends.server.says(note("progress", progressToken="p", progress=1), about=2)
    ends.hears(note("progress", progressToken="p", progress=1), 2)
    ends.server.answers(heard, {**text("ok"), "resultType": "complete", "_meta": {"a": 1}})
    assert ends.hears_result(2) == {**text("ok"), "_meta": {"a": 1}}
    ends.says(request(3, "tools/list", cursor="x"))
    heard = ends.server.hears("tools/list", cursor="x")
    assert heard["params"]["_meta"] == envelope
    ends.server.answers(heard, {"tools": [], "ttlMs": 1, "cacheScope": "public"})
    assert ends.hears_result(3) == {"tools": []}
    ends.says(call(4, "t"))
    ends.server.refuses(ends.server.hears("tools/call"), -32021, message="no", data=[1.5])
    assert ends.hears_error(4, -32021)["data"] == [1.5]
    ends.is_quiet()


def test_what_only_the_legacy_era_has_is_answered_here() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(request(2, "ping"), request(3, "logging/setLevel", level="error"), note("roots/list_changed"))
    ends.hears_result(2, {})
    ends.hears_result(3, {})
    ends.bridge.send(raw(request(4, "ping")), None, 4)
    ends.hears_result(4, {})
    ends.says(call(5, "t"))
    ends.server.hears("tools/call", _meta={META_LEVEL: "error"})
    ends.says(request(6, "logging/setLevel", level="loud"))
    ends.hears_error(6, -32602)
    ends.says(request(7, "tasks/list"), request(8, "tasks/result", taskId="x"), request(9, "tasks/get", taskId="x"))
    for id in (7, 8, 9):
        ends.hears_error(id, -32601, MODERN_VERSION)
    ends.says(request(10, "tools/call", name="t", task={}))
    ends.hears_error(10, -32602, "task")
    ends.says(request(11, "initialize", **INIT))
    ends.hears_result(11, {"protocolVersion": "2025-06-18"})
    ends.is_quiet()


@pytest.mark.parametrize(
    "value",
    [
        {"resultType": "task", "taskId": "t"}, {"resultType": "input_required"}, {"resultType": 7}, [], 1,
        {"resultType": "input_required", "inputRequests": []},
        {"resultType": "input_required", "inputRequests": {"a": 1}},
        {"resultType": "input_required", "inputRequests": {"a": {"method": "tools/call", "params": {}}}},
        {"resultType": "input_required", "inputRequests": {"a": {"method": ["x"]}}},
        {"resultType": "input_required", "inputRequests": {"a": {"method": "roots/list", "params": []}}},
        {"resultType": "input_required", "inputRequests": {"a": ASK}, "requestState": 7},
        {"resultType": "input_required", "inputRequests": {str(n): ASK for n in range(bridges.ASKS + 1)}},
        {"resultType": "input_required", "inputRequests": {
            "a": {"method": "elicitation/create", "params": {"mode": "url", "url": "x", "message": "m"}}}},
    ],
)  # fmt: skip
def test_a_modern_result_without_a_legacy_equivalent_ends_its_request_alone(value: Any) -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t"), call(3, "t"))
    ends.server.hears("tools/call")
    ends.server.hears("tools/call")
    ends.server.answers({"id": 2}, value)
    if ends.lost:
        ends.loses(2, "bad_answer")
    else:
        ends.hears_error(2, -32603)
    ends.server.answers({"id": 3}, text("ok"))
    ends.hears_result(3)
    ends.is_quiet()
    assert not ends.clock.waiting


def needs(ends: Ends, questions: Any, state: Any = "S", id: int = 2) -> list[dict[str, Any]]:
    """A call whose server wants something; gives what the client is asked."""
    ends.says(call(id, "t"))
    value = {"resultType": "input_required", "inputRequests": questions}
    ends.server.answers(ends.server.hears("tools/call"), value if state is None else {**value, "requestState": state})
    return [ends.hears({"method": ask["method"]}, id) for ask in questions.values()]


def test_questions_are_put_to_the_client_and_the_call_is_repeated_with_the_answers() -> None:
    ends = Ends().legacy_on_modern()
    first, second = needs(ends, {"x": ASK, "y": {"method": "roots/list"}})
    assert first["params"] == FORM
    assert first["id"] != second["id"]
    ends.says(result(second["id"], {"roots": []}))
    ends.is_quiet()
    ends.bridge.send(raw(result(first["id"], {"action": "decline"})), None, 0)
    heard = ends.server.hears("tools/call", name="t", requestState="S")
    assert heard["params"]["inputResponses"] == {"x": {"action": "decline"}, "y": {"roots": []}}
    assert heard["params"]["_meta"][META_VERSION] == MODERN_VERSION
    assert heard["id"] != 2
    ends.server.says(note("custom"), about=heard["id"])
    ends.hears(note("custom"), 2)
    ends.server.answers(heard, {"resultType": "input_required", "inputRequests": {"z": ASK}})
    third = ends.hears({"method": "elicitation/create"}, 2)
    ends.says(result(third["id"], {"action": "cancel"}))
    heard = ends.server.hears("tools/call", inputResponses={"z": {"action": "cancel"}})
    assert "requestState" not in heard["params"]
    ends.server.answers(heard, {**text("done"), "resultType": "complete"})
    assert ends.hears_result(2) == text("done")
    ends.is_quiet()


def test_a_state_alone_is_repeated_after_a_moment() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t"))
    ends.server.answers(ends.server.hears("tools/call"), {"resultType": "input_required", "requestState": "S"})
    ends.is_quiet()
    ends.advance(0.25)
    ends.server.answers(ends.server.hears("tools/call", requestState="S"), text("x"))
    ends.hears_result(2)
    assert not ends.clock.waiting


def test_a_server_that_asks_for_ever_is_given_up() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t"))
    for _ in range(bridges.ROUNDS + 1):
        heard = ends.server.hears("tools/call")
        ends.server.answers(heard, {"resultType": "input_required", "requestState": "S"})
        ends.advance(0.25)
    ends.hears_error(2, -32603)
    ends.is_quiet()


def test_an_error_of_the_client_ends_the_call_and_takes_back_the_other_questions() -> None:
    ends = Ends().legacy_on_modern()
    first, second = needs(ends, {"x": ASK, "y": {"method": "roots/list"}})
    ends.says(error(first["id"], -1, "no way", data={"a": 1}))
    ends.hears(note("cancelled", requestId=second["id"]), 2)
    assert ends.hears_error(2, -1) == {"code": -1, "message": "no way", "data": {"a": 1}}
    ends.is_quiet()
    ends.says(result(second["id"], {"roots": []}))
    ends.server.hears_answer(second["id"])  # nobody's any more: as whatever else the conversation tells a server
    ends.says(call(3, "t"))
    ends.server.hears("tools/call")


@pytest.mark.parametrize("value", [None, [], 1])
def test_an_answer_of_the_client_that_is_none_ends_the_call(value: Any) -> None:
    ends = Ends().legacy_on_modern()
    (question,) = needs(ends, {"x": ASK})
    ends.says({"jsonrpc": "2.0", "id": question["id"], "result": value})
    ends.hears_error(2, -32603)
    ends.is_quiet()


def test_cancelling_works_in_every_state() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t"))
    ends.server.hears("tools/call")
    ends.cancels(2)
    assert ends.server.withdrawn.popleft()[0] == 2
    (question,) = needs(ends, {"x": ASK}, id=3)
    ends.cancels(3)
    ends.hears(note("cancelled", requestId=question["id"]), 3)
    ends.loses(3, "cancelled")
    (question,) = needs(ends, {"x": ASK}, id=4)
    ends.says(result(question["id"]))
    heard = ends.server.hears("tools/call")
    ends.cancels(4)
    assert ends.server.withdrawn.popleft()[0] == heard["id"]
    ends.says(call(5, "t"))
    ends.server.answers(ends.server.hears("tools/call"), {"resultType": "input_required", "requestState": "S"})
    ends.cancels(5)
    ends.loses(5, "cancelled")
    ends.advance(1)
    ends.cancels(99)
    ends.is_quiet()
    assert not ends.clock.waiting


def test_a_lost_repetition_is_the_calls_loss() -> None:
    ends = Ends().legacy_on_modern()
    (question,) = needs(ends, {"x": ASK})
    ends.says(result(question["id"]))
    ends.server.loses(ends.server.hears("tools/call")["id"], Fault("broken", "it broke"))
    ends.loses(2, "broken")
    ends.is_quiet()


def test_a_url_question_gets_the_id_that_legacy_clients_need() -> None:
    ends = Ends().legacy_on_modern({**INIT, "capabilities": {"elicitation": {"url": {}}}})
    url = {"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": "https://x"}}
    (question,) = needs(ends, {"x": url})
    assert question["params"]["elicitationId"]


def test_notifications_change_their_era_too() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(note("custom", a=1), note("progress", progressToken=1, progress=1))
    ends.server.hears("notifications/custom", a=1, _meta={META_VERSION: MODERN_VERSION})
    ends.is_quiet()
    ends = Ends().modern_on_legacy()
    ends.says(modern(note("custom", a=1)), note("other"))
    assert ends.server.hears("notifications/custom")["params"] == {"a": 1}
    ends.server.hears("notifications/other")
    ends.is_quiet()


def test_a_modern_server_may_not_send_requests() -> None:
    ends = Ends().legacy_on_modern()
    ends.server.says({"jsonrpc": "2.0", "id": 5, **ASK})
    ends.server.hears_answer(5, error={"code": -32601})
    ends.is_quiet()


def test_changes_are_listened_for_once_the_client_is_ready() -> None:
    ends = Ends().legacy_on_modern()
    number = ends.initialized()
    ends.server.says(
        note("tools/list_changed", _meta={META_SUBSCRIPTION: number}),
        note("resources/list_changed", _meta={META_SUBSCRIPTION: number, "a": 1}),
        note("tools/list_changed", _meta={META_SUBSCRIPTION: 2}),
        note("tools/list_changed", _meta={META_SUBSCRIPTION: [1]}),
        about=number,
    )
    assert ends.hears(about=0) == note("tools/list_changed")
    assert ends.hears(about=0) == note("resources/list_changed", _meta={"a": 1})
    ends.is_quiet()


def test_subscribing_changes_the_one_subscription() -> None:
    ends = Ends().legacy_on_modern()
    first = ends.initialized()
    ends.says(request(2, "resources/subscribe", uri="a:1"), request(3, "resources/subscribe", uri="a:2"))
    heard = ends.server.hears("subscriptions/listen", notifications={"resourceSubscriptions": ["a:1"]})
    assert heard["params"]["notifications"]["toolsListChanged"] is True
    ends.server.says(acknowledged(heard))
    assert ends.server.withdrawn.popleft()[0] == first
    ends.hears_result(2, {})
    heard = ends.server.hears("subscriptions/listen", notifications={"resourceSubscriptions": ["a:1", "a:2"]})
    refused = acknowledged(heard)
    refused["params"]["notifications"] = {"resourceSubscriptions": ["a:1"]}
    ends.server.says(refused)
    ends.server.withdrawn.popleft()
    ends.hears_error(3, -32602)
    ends.server.says(note("resources/updated", uri="a:1", _meta={META_SUBSCRIPTION: heard["id"]}))
    ends.hears(note("resources/updated", uri="a:1"), 0)
    ends.says(request(4, "resources/subscribe", uri="a:1"))
    ends.hears_result(4, {})
    ends.says(request(5, "resources/unsubscribe", uri="a:1"))
    ends.hears_result(5, {})
    assert "resourceSubscriptions" not in ends.server.hears("subscriptions/listen")["params"]["notifications"]
    ends.says(request(6, "resources/subscribe", uri=7))
    ends.hears_error(6, -32602)
    ends.is_quiet()


def test_a_subscription_that_is_refused_is_the_clients_error_and_not_tried_again() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(request(2, "resources/subscribe", uri="a:1"), request(3, "resources/subscribe", uri="a:2"))
    ends.cancels(3)
    ends.server.refuses(ends.server.hears("subscriptions/listen"), -32603, message="full")
    ends.hears_error(2, -32603, "full")
    heard = ends.server.hears("subscriptions/listen")
    assert heard["params"]["notifications"] == {"resourceSubscriptions": ["a:2"]}
    ends.server.refuses(heard)
    ends.advance(1000)
    ends.is_quiet()


@pytest.mark.parametrize("way", ["result", "cancelled", "lost"])
def test_a_subscription_that_ends_is_made_anew_more_and_more_slowly(way: str) -> None:
    ends = Ends().legacy_on_modern()
    number = ends.initialized()
    for pause in (1, 2, 4):
        if way == "result":
            ends.server.answers({"id": number})
        elif way == "cancelled":
            ends.server.says(note("cancelled", requestId=number))
        else:
            ends.server.loses(number, Fault("broken", "x"))
        ends.advance(pause - 0.1)
        ends.is_quiet()
        ends.advance(0.2)
        number = int(ends.server.hears("subscriptions/listen")["id"])
    ends.bridge.end()
    ends.server.loses(number, Fault("broken", "x"))
    assert not ends.clock.waiting


def test_a_server_without_subscriptions_refuses_them() -> None:
    ends = Ends().legacy_on_modern(found={**FOUND, "capabilities": {}})
    ends.says(note("initialized"), request(2, "resources/subscribe", uri="a:1"))
    ends.hears_error(2, -32601)
    ends.says(request(3, "logging/setLevel", level="info"))
    ends.hears_error(3, -32601)
    ends.is_quiet()


def test_what_is_structured_is_an_object_for_a_legacy_client() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(request(2, "tools/list"))
    kept = {"name": "a", "outputSchema": {"type": "object", "n": 1.5}}
    ends.server.answers(
        ends.server.hears("tools/list"),
        {"tools": [kept, {"name": "b", "outputSchema": {"type": "array"}}, {"name": "c", "outputSchema": True}]},
    )
    assert ends.hears_result(2) == {"tools": [kept, {"name": "b"}, {"name": "c"}]}
    for id, value in enumerate(([1], "x", 7, None), 3):
        ends.says(call(id, "b"))
        ends.server.answers(ends.server.hears("tools/call"), {**text("x"), "structuredContent": value})
        assert ends.hears_result(id) == text("x")
    ends.says(call(9, "a"))
    ends.server.answers(ends.server.hears("tools/call"), {**text("x"), "structuredContent": {"n": 1}})
    assert ends.hears_result(9)["structuredContent"] == {"n": 1}
    ends.is_quiet()


def test_a_broken_answer_of_a_modern_server_ends_its_request() -> None:
    ends = Ends().legacy_on_modern()
    ends.says(call(2, "t"))
    ends.server.hears("tools/call")
    ends.server.says(b'{"jsonrpc":"2.0","id":2,"result":{"a":NaN}}', b'{"jsonrpc":"2.0","id":77,"result":{}}')
    ends.loses(2, "bad_answer")
    ends.hears({"id": 77})
    ends.is_quiet()


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
