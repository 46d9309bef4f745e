"""A reload reaches every session there is, whatever way it came in, and the secrets it replaces are shown to nobody."""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from e2e.house import Home, call, until

OLD, NEW = "canary-old-" + "q7Zx" * 4, "canary-new-" + "m3Kd" * 4
SERVER = """
import json, os, sys
for line in sys.stdin:
    ask = json.loads(line)
    if "id" not in ask:
        continue
    if ask["method"] == "initialize":
        said = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}
    elif ask["method"] == "tools/list":
        said = {"tools": [{"name": "show", "inputSchema": {"type": "object"}}]}
    else:
        said = {"content": [{"type": "text", "text": f"{os.environ['MARK']} {os.environ['KEY']}"}]}
    print(json.dumps({"jsonrpc": "2.0", "id": ask["id"], "result": said}), flush=True)
"""
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "x", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@contextmanager
def far(mark: str) -> Iterator[str]:
    """A backend that says who it is and what it was shown: its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if ask["method"] == "initialize":
                said: Any = {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": mark, "version": "1"},
                }
            elif ask["method"] == "tools/list":
                said = {"tools": [{"name": "show", "inputSchema": {"type": "object"}}]}
            elif ask["method"] == "tools/call":
                said = {"content": [{"type": "text", "text": f"{mark} {self.headers['Authorization']}"}]}
            else:
                self.give({"jsonrpc": "2.0", "id": ask.get("id"), "error": {"code": -32601, "message": "no"}})
                return
            self.give({"jsonrpc": "2.0", "id": ask.get("id"), "result": said})

        def do_GET(self) -> None:
            self.give(None, 405)

        def do_DELETE(self) -> None:
            self.give(None)

        def give(self, what: Any, status: int = 200) -> None:
            body = b"" if what is None else json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing is said."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/mcp"
        finally:
            server.shutdown()


class Remote:
    """An agent at one address: a session with `initialize`, one request after another without, or modern ones."""

    def __init__(self, base: str, path: str, prefix: str, way: str) -> None:
        self.url = f"{base}/agents/net{path}/mcp"
        self.prefix, self.way = prefix, way
        self.headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        if way == "session":
            hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
            self.asks("initialize", hello)
            self.headers["Mcp-Session-Id"] = self.session
            self._post({"jsonrpc": "2.0", "method": "notifications/initialized"}, {})

    def asks(self, method: str, params: dict[str, Any]) -> Any:
        more = {}
        if self.way == "modern":
            more = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method}
            if "name" in params:
                more["Mcp-Name"] = params["name"]
            params = {**params, "_meta": META}
        text = self._post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, more)
        lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        return json.loads(lines[-1] if lines else text)

    def _post(self, frame: Any, more: dict[str, str]) -> str:
        ask = urllib.request.Request(self.url, json.dumps(frame).encode(), {**self.headers, **more})
        try:
            with urllib.request.urlopen(ask, timeout=20) as answer:
                self.session = answer.headers.get("Mcp-Session-Id", "")
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def shows(self, backend: str = "far") -> str:
        """What the backend's tool says, or the refusal."""
        name = f"{backend}__show" if self.prefix else "show"
        answer = self.asks("tools/call", {"name": name, "arguments": {}})
        return str(answer["result"]["content"][0]["text"] if "result" in answer else answer["error"])

    def tools(self) -> set[str]:
        return {tool["name"] for tool in self.asks("tools/list", {})["result"]["tools"]}


def written(url: str, key: str, mark: str = "one", *, granted: str = "far,work") -> str:
    backends = {
        "far": {"url": url, "headers": {"Authorization": f"Bearer {key}"}},
        "work": {"command": sys.executable, "args": ["-I", "-c", SERVER], "env": {"API_KEY": key, "KEY": key, "MARK": mark}},
        "other": {"url": url},
    }  # fmt: skip
    allowed = {name: {"allowed": True} for name in granted.split(",")}
    agents = {"net": {"backends": allowed}, "ann": {"backends": {"work": {"allowed": True}, "far": {"allowed": True}}}}
    return f"backends: {json.dumps(backends)}\nagents: {json.dumps(agents)}\npins: {{first_seen: trust}}\n"


def homed(text: str) -> tuple[Home, str]:
    home = Home(text).launch()
    base = until(lambda: home.ask("status")["http"], "an address")
    return home, f"http://{str(base).removeprefix('http://')}"


def test_another_address_and_another_secret_reach_every_way_in_and_the_old_secret_reaches_nobody() -> None:
    with far("first") as first, far("second") as second:
        home, base = homed(written(first, OLD))
        try:
            places = [(path, prefix) for path, prefix in (("", "far__"), ("/backends/far", ""))]
            remote = [
                Remote(base, path, prefix, way) for path, prefix in places for way in ("session", "single", "modern")
            ]
            ann, wrapped = home.wrap(agent="ann", backend="work").handshake(), home.wrap(agent="ann", backend="far")
            wrapped.handshake()
            assert {one.shows() for one in remote} == {"first [secret:configured]"}
            assert "one [secret:configured]" in json.dumps(ann.asks(call(1, "show")))
            servers = home.servers()
            home.ask("reload")
            assert home.servers() == servers, "where nothing changed, nothing is replaced"
            home.configure(written(second, NEW, "two"))
            told = home.ask("reload")
            assert told["restart_required"] == []
            assert told["warnings"] == []
            said = [one.shows() for one in remote]
            assert set(said) == {"second [secret:configured]"}, said
            assert {one.shows("work") for one in remote if one.prefix} == {"two [secret:configured]"}
            assert "two [secret:configured]" in json.dumps(ann.asks(call(2, "show")))
            assert "second [secret:configured]" in json.dumps(wrapped.asks(call(1, "show")))
            home.configure(written(first, "x" * 9, "two"))
            home.ask("reload")
            home.configure(written(first, "x" * 9, f"{OLD} {NEW}"))  # as a server that remembers them
            home.ask("reload")
            assert "[secret:configured] [secret:configured]" in remote[0].shows("work")
            log = json.dumps(home.json("audit", "search", "--limit", "50"))
            assert "[secret:configured]" in log
            assert OLD not in log
            assert NEW not in log
        finally:
            home.close()


@pytest.mark.parametrize("way", ["session", "single", "modern"])
def test_backends_are_granted_to_and_taken_from_those_who_are_there(way: str) -> None:
    with far("first") as first:
        home, base = homed(written(first, OLD))
        try:
            net = Remote(base, "", "far__", way)
            assert net.tools() == {"far__show", "work__show"}
            home.configure(written(first, OLD, granted="far,work,other"))
            home.ask("reload")
            assert net.tools() == {"far__show", "work__show", "other__show"}
            assert net.shows("other").startswith("first")
            home.configure(written(first, OLD, granted="work,other"))
            home.ask("reload")
            assert "`far__show` is not available to this agent" in net.shows("far")
            assert net.tools() == {"work__show", "other__show"}
        finally:
            home.close()


@pytest.mark.parametrize("way", ["session", "single", "modern"])
def test_who_had_one_backend_alone_is_told_apart(way: str) -> None:
    with far("first") as first:
        home, base = homed(written(first, OLD, granted="far"))
        try:
            net = Remote(base, "", "", way)
            assert net.tools() == {"show"}
            home.configure(written(first, OLD, granted="far,other"))
            warnings = home.ask("reload")["warnings"]
            if way == "session":
                assert [line for line in warnings if "1 session of `net`" in line], warnings
                assert net.tools() == {"show"}
            else:
                assert warnings == []
                assert net.tools() == {"far__show", "other__show"}
        finally:
            home.close()


def test_what_an_agent_hands_over_and_does_not_fit_any_more_is_told_of() -> None:
    with far("first") as first:
        home, _ = homed("backends: {work: {}}\nagents: {default: {backends: {work: {allowed: true}}}}\n")
        try:
            agent = home.count().handshake()
            assert "result" in agent.asks(call(1, "post", key="a"))
            home.configure(
                f'backends: {{work: {{url: "{first}"}}}}\nagents: {{default: {{backends: {{work: {{allowed: true}}}}}}}}\n'
            )
            (line,) = home.ask("reload")["warnings"]
            assert "1 session of `default` with `work` goes on with the server from before" in line
            assert "result" in agent.asks(call(2, "post", key="b"))
            assert home.reached() == ["a", "b"]
        finally:
            home.close()
