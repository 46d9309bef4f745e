"""Two ends of different eras, as scripts: a bridge between a client and the servers that it opens.

ends = Ends().modern_on_legacy()
ends.says(tool(2))
ends.server.answers(ends.server.hears("tools/call"), text("ok"))
ends.hears_result(2)
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from playbook import Clock, call, error, like, modern, note, raw, request, result

from aegis_daemon import __version__
from aegis_daemon.core.ports import Fault
from aegis_daemon.relay.eras import Bridge, EraMemory
from aegis_daemon.relay.eras.frames import META_SERVER
from aegis_daemon.wire.jsonrpc import Frame, parse
from aegis_daemon.wire.methods import META_CAPABILITIES, META_CLIENT, META_SUBSCRIPTION, META_VERSION, MODERN_VERSION

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
