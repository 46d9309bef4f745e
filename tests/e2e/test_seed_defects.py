"""What seed A's first proxy got wrong, defect by defect (D1 to D17), over HTTP as there: here it does not happen."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from .house import BOUND_S, Home, call, request, until

CONFIG = """
server: {{listen: "127.0.0.1:0"}}
backends:
  one: {{url: "http://127.0.0.1:{one}/mcp", timeout: 5s}}
  two: {{url: "http://127.0.0.1:{two}/mcp", timeout: 5s}}
  laned: {{url: "http://127.0.0.1:{one}/mcp", timeout: 5s}}
queue:
  laned: {{enabled: true, delay_min: {delay}, delay_max: {delay}, max_pending: 3}}
agents:
  a:
    backends:
      one: &access
        allowed: true
        tool_denylist: ["admin_*"]
        rate_limits: {{ok: 10/hour, fail: 2/hour}}
        approval_required: [pay]
      two: *access
      laned: {{allowed: true}}
  b:
    backends: {{one: {{allowed: true, tool_allowlist: [ok]}}}}
"""


class Backend(ThreadingHTTPServer):
    """A scripted MCP server that notes what it was made to do."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dead = False
        self.called: list[dict[str, Any]] = []
        self.sessions: list[str] = []
        self.tools: Any = {"tools": [{"name": "ok", "inputSchema": {"type": "object"}}]}
        self.hold = threading.Event()
        self.hold.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Backend

    def log_message(self, *words: Any) -> None:
        pass

    def answers(self, status: int, body: bytes, kind: str = "application/json", **more: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **more}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answers(405, b"")

    def do_DELETE(self) -> None:
        self.answers(200, b"")

    def do_POST(self) -> None:
        frame = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.dead:
            self.close_connection = True
            return
        method, params = frame["method"], frame.get("params", {})
        if "id" not in frame:
            self.answers(202, b"")
            return
        result: Any = {}
        more: dict[str, str] = {}
        if method == "initialize":
            more["Mcp_Session_Id"] = f"s{len(self.server.sessions)}"
            self.server.sessions.append(more["Mcp_Session_Id"])
            result = {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "s", "version": "1"},
            }
        elif method == "server/discover":
            self.answers(400, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no session"}}')
            return
        elif method == "tools/list":
            result = self.server.tools
        elif method == "tools/call":
            self.server.called.append(params)
            self.server.hold.wait(BOUND_S)
            name = params["name"]
            if name == "crash":
                self.answers(500, b"stack trace with s3cret")
                return
            result = {"content": [{"type": "text", "text": name}], "isError": name == "fail"}
            if name == "stream":
                text = json.dumps({"jsonrpc": "2.0", "id": frame["id"], "result": result})
                self.answers(200, f"event: message\ndata: {text}\n\n".encode(), "text/event-stream")
                return
        body = result if isinstance(result, bytes) else json.dumps(result).encode()
        self.answers(200, b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (frame["id"], body), **more)


@pytest.fixture
def backends() -> Iterator[list[Backend]]:
    made = [Backend(), Backend()]
    yield made
    for one in made:
        one.hold.set()
        one.shutdown()
        one.server_close()


class Front:
    """An agent that posts, without a session unless it is given one."""

    def __init__(self, home: Home, path: str = "/agents/a/backends/one/mcp") -> None:
        self.host, _, port = home.ask("status")["http"].rpartition(":")
        self.port = int(port)
        self.path = path

    def post(
        self, body: Any, path: str = "", method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=BOUND_S)
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        try:
            connection.request(method, path or self.path, text, sent)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def asks(self, body: Any, path: str = "") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.post(body, path)[2])
        return found

    def calls(self, tool: str, path: str = "", **arguments: Any) -> dict[str, Any]:
        return self.asks(call(1, tool, **arguments), path)

    def begins(self) -> str:
        hello = request(
            0, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={"name": "c", "version": "1"}
        )
        return self.post(hello)[1]["mcp-session-id"]


Begin = Callable[..., tuple[Home, Front]]


@pytest.fixture
def begin(homes: Callable[..., Home], backends: list[Backend]) -> Begin:
    def made(delay: str = "1s") -> tuple[Home, Front]:
        home = homes(CONFIG.format(one=backends[0].port, two=backends[1].port, delay=delay))
        return home, Front(home)

    return made


def test_d1_keys_in_disguise_reach_nobody(begin: Begin, backends: list[Backend]) -> None:
    _, front = begin()
    for body in (
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","METHOD":"ping","params":{"name":"admin_reset","arguments":{}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"admin_reset","NAME":"ok","arguments":{}}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping","params":{"name":"admin_reset"}}',
        b'[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"admin_reset"}}]',
    ):
        assert front.post(body)[0] == 400
    assert backends[0].called == []


def test_d2_no_more_calls_at_once_than_the_limit(begin: Begin, backends: list[Backend]) -> None:
    _, front = begin()
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda n: front.calls("ok"), range(40)))
    assert sum("result" in answer for answer in answers) == len(backends[0].called) == 10
    assert {answer["error"]["code"] for answer in answers if "error" in answer} == {-32002}


def test_d3_the_same_tool_of_two_backends_has_two_limits(begin: Begin) -> None:
    _, front = begin()
    for path in ("/agents/a/backends/one/mcp", "/agents/a/backends/two/mcp"):
        answers = [front.calls("ok", path) for _ in range(11)]
        assert ["result" in answer for answer in answers] == [True] * 10 + [False]


def test_d4_every_place_in_the_lane_can_be_had_and_no_more(begin: Begin, backends: list[Backend]) -> None:
    home, front = begin(delay="60s")
    lane = "/agents/a/backends/laned/mcp"
    backends[0].hold.clear()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(front.calls, "ok", lane)
        until(lambda: backends[0].called, "the first")
        waiting = [pool.submit(front.calls, "ok", lane) for _ in range(3)]
        until(lambda: len(home.ask("queue")) == 4, "three that wait")
        assert front.calls("ok", lane)["error"]["code"] == -32003
        backends[0].hold.set()
        assert "result" in first.result(BOUND_S)
        for row in home.ask("queue"):
            home.ask("cancel_queued", call_id=row["call_id"])
        assert all("not executed" in one.result(BOUND_S)["error"]["message"] for one in waiting)


def test_d5_whoever_leaves_the_lane_takes_the_call_along(begin: Begin, backends: list[Backend]) -> None:
    home, front = begin(delay="60s")
    lane = "/agents/a/backends/laned/mcp"
    assert "result" in front.calls("ok", lane)
    connection = http.client.HTTPConnection(front.host, front.port)
    connection.request(
        "POST", lane, json.dumps(call(1, "ok")), {"Content-Type": "application/json", "Accept": "application/json"}
    )
    until(lambda: home.ask("queue"), "the call in its lane")
    connection.close()
    until(lambda: not home.ask("queue"), "its end")
    assert len(backends[0].called) == 1
    (row,) = [row for row in home.json("audit", "search") if row["exec_status"] != "success"]
    assert row["exec_status"] == "denied"


def test_d6_a_backend_that_fails_is_no_full_queue_and_its_words_stay_here(begin: Begin) -> None:
    home, front = begin()
    error = front.calls("crash")["error"]
    assert (error["code"], error["data"]["reason"]) == (-32603, "http_500")
    assert "s3cret" not in json.dumps(error) + json.dumps(home.json("audit", "search"))


def test_d7_a_call_that_failed_does_not_count(begin: Begin) -> None:
    _, front = begin()
    answers = [front.calls("fail") for _ in range(4)]
    assert all(answer["result"]["isError"] for answer in answers)


def test_d8_every_backend_is_reached_and_a_dead_one_takes_nobody_along(begin: Begin, backends: list[Backend]) -> None:
    _, front = begin()
    found = front.asks(request(1, "tools/list"), "/agents/a/mcp")
    assert {tool["name"] for tool in found["result"]["tools"]} == {"one__ok", "two__ok", "laned__ok"}
    backends[1].dead = True
    assert "result" in front.calls("one__ok", "/agents/a/mcp")
    assert "error" in front.calls("two__ok", "/agents/a/mcp")
    assert "result" in front.calls("one__ok", "/agents/a/mcp")


def test_d9_two_clients_of_one_agent_have_sessions_of_their_own(begin: Begin, backends: list[Backend]) -> None:
    _, front = begin()
    mine, other = front.begins(), front.begins()
    assert mine != other
    assert len(backends[0].sessions) == 2
    assert front.post(request(1, "tools/list"), Mcp_Session_Id=mine)[0] == 200
    assert front.post(b"", method="DELETE", Mcp_Session_Id=mine)[0] == 200
    assert front.post(request(1, "tools/list"), Mcp_Session_Id=mine)[0] == 404
    assert front.post(request(1, "tools/list"), Mcp_Session_Id=other)[0] == 200
    assert front.post(request(1, "tools/list"), "/agents/b/backends/one/mcp", Mcp_Session_Id=other)[0] == 404


def test_d10_a_stream_of_events_is_an_answer_like_any(begin: Begin) -> None:
    _, front = begin()
    assert front.calls("stream")["result"]["content"][0]["text"] == "stream"


def test_d11_a_list_loses_nothing_but_what_is_hidden_and_an_unreadable_one_is_withheld(
    begin: Begin, backends: list[Backend]
) -> None:
    _, front = begin()
    tool = {
        "name": "ok", "title": "T", "description": "d", "inputSchema": {"type": "object", "x-odd": [1.5]},
        "outputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}, "icons": [], "vendor": {"a": None},
    }  # fmt: skip
    backends[0].tools = {"tools": [tool, {"name": "admin_reset"}], "nextCursor": "more", "_meta": {"x": 1}}
    found = front.asks(request(1, "tools/list"))["result"]
    assert found == {"tools": [{**tool, "description": "[Rate:10/1h] d"}], "nextCursor": "more", "_meta": {"x": 1}}
    for odd in ({"tools": [{"name": 7}]}, {"tools": "all"}, {}, {"Tools": [], "tools": []}, b'{"tools":[],"tools":[]}'):
        backends[0].tools = odd
        assert front.asks(request(1, "tools/list"))["error"]["data"]["reason"] == "unreadable_list", odd


def test_d13_a_reload_makes_lanes_and_takes_rules_at_once(begin: Begin, backends: list[Backend]) -> None:
    home, front = begin()
    assert "result" in front.calls("ok")
    text = CONFIG.format(one=backends[0].port, two=backends[1].port, delay="1s")
    home.configure(
        text.replace("tool_denylist: [", "tool_denylist: [ok, ").replace(
            "  laned: {enabled", "  one: {enabled: true}\n  laned: {enabled"
        )
    )
    assert home.ask("reload")["restart_required"] == []
    assert front.calls("ok")["error"]["code"] == -32001
    assert set(json.loads(front.post(b"", "/api/v1/queue/status", "GET")[2])) == {"laned", "one"}


def test_d14_windows_are_written_as_they_are(begin: Begin) -> None:
    _, front = begin()
    rows = json.loads(front.post(b"", "/api/v1/agents/a/rate-limits", "GET")[2])
    assert {row["window"] for row in rows} == {"1h0m0s"}
    assert {row["scope"] for row in rows} == {"agent"}


def test_d15_a_body_that_is_too_long_is_refused_whole(begin: Begin, backends: list[Backend]) -> None:
    _, front = begin()
    assert front.post(call(1, "ok", text="x" * 1_100_000))[0] == 413
    assert backends[0].called == []
    assert "result" in front.calls("ok", text="x" * 900_000)


def test_d16_the_log_says_what_was_needed_and_has_lists_and_handshakes_too(begin: Begin) -> None:
    home, front = begin()
    session = front.begins()
    front.post(request(1, "tools/list"), Mcp_Session_Id=session)
    front.post(call(2, "ok"), Mcp_Session_Id=session)
    rows = {row["method"]: row for row in home.json("audit", "search")}
    assert {"initialize", "tools/list", "tools/call"} <= rows.keys()
    assert rows["tools/call"]["approval_result"] == "not_required"


def test_d17_an_allowlist_lets_nothing_else_through_and_patterns_work(begin: Begin, backends: list[Backend]) -> None:
    _, front = begin()
    backends[0].tools = {"tools": [{"name": "ok"}, {"name": "other"}, {"name": "admin_reset"}]}
    one_of_b = "/agents/b/backends/one/mcp"
    assert [tool["name"] for tool in front.asks(request(1, "tools/list"), one_of_b)["result"]["tools"]] == ["ok"]
    assert front.calls("other", one_of_b)["error"]["code"] == -32001
    assert front.calls("admin_reset")["error"]["code"] == -32001
    assert backends[0].called == []


def test_d12_a_link_does_what_it_was_made_for_and_nothing_else(begin: Begin, backends: list[Backend]) -> None:
    """And whoever prefetches it decides nothing."""
    home, front = begin()
    heard: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as hook:
        hook.daemon_threads = True
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        text = CONFIG.format(one=backends[0].port, two=backends[1].port, delay="1s")
        home.configure(text + f"approval: {{timeout: 10s, callback_base_url: 'http://{front.host}:{front.port}', "
                       f"generic: {{webhook_url: 'http://127.0.0.1:{hook.server_address[1]}/'}}}}\n")  # fmt: skip
        home.ask("reload")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(front.calls, "pay", amount=5)
            until(lambda: heard, "the webhook")
            approve = heard[0]["approve_url"].partition(f":{front.port}")[2]
            for method in ("GET", "HEAD", "OPTIONS"):
                front.post(b"", approve, method)
            form = {"Content_Type": "application/x-www-form-urlencoded"}
            told = dict(parse_qsl(urlsplit(approve).query))
            assert front.post(b"", approve)[0] == 422
            assert front.post(b"", approve.replace("action=approve", "action=reject"), **form)[0] == 403
            assert front.post(json.dumps({**told, "action": "reject"}).encode(), approve)[0] == 403
            assert front.post(b"form=guessed", approve, **form)[0] == 403, "a form that no page showed"
            time.sleep(0.1)
            assert not waiting.done()
            assert home.ask("pending")[0]["state"] == "pending"
            assert front.post(b"", approve, **form)[0] == 200, "the link itself, posted"
            assert "result" in waiting.result(BOUND_S)
            assert front.post(json.dumps(told).encode(), approve)[0] == 410
        hook.shutdown()
    assert backends[0].called == [{"name": "pay", "arguments": {"amount": 5}}]
