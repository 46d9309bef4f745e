"""Whoever gets to talk to nobody over HTTP is recorded with what it asked for, and learns nothing that it may not know."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import pytest

from .house import BOUND_S, Home, call, request, until

TOKEN, WRONG = "0123456789abcdef", "fedcba9876543210"
CONFIG = f"""
backends:
  dead: {{url: "http://127.0.0.1:9/mcp"}}
  raw: {{}}
  gone: {{command: /nonexistent/program}}
  ends: {{command: "false"}}
agents:
  local: {{backends: {{gone: {{allowed: true}}, ends: {{allowed: true}}}}}}
  w: {{backends: {{dead: {{allowed: true}}}}}}
  none: {{backends: {{raw: {{allowed: false}}}}}}
  handed: {{backends: {{raw: {{allowed: true}}}}}}
  tok: {{auth_token: {TOKEN}, backends: {{dead: {{allowed: true}}}}}}
  uid: {{identities: [4242], backends: {{dead: {{allowed: true}}}}}}
"""
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
MIRRORS = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "echo"}
SOCKET = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "mcp",
}  # fmt: skip


def asks(
    home: Home, path: str, frame: dict[str, Any] | None = None, /, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers without the date, and body; a GET without a frame."""
    connection = HTTPConnection(home.ask("status")["http"], timeout=BOUND_S)
    try:
        given = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
        body = None if frame is None else json.dumps(frame)
        connection.request("GET" if frame is None else "POST", f"/agents/{path}", body, given)
        answer = connection.getresponse()
        said = {name: value for name, value in answer.headers.items() if name != "date"}
        return answer.status, said, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def recorded(home: Home, word: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = until(lambda: home.json("audit", "search", word), "the record")
    return found


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_a_call_to_a_server_that_is_not_to_be_had_is_recorded_by_its_own_name(
    homes: Callable[..., Home], era: str
) -> None:
    home = homes(CONFIG)
    for number, (path, stage, why) in enumerate(
        [
            ("w/backends/nope/mcp", "acl", "backend_not_allowed"),
            ("none/backends/raw/mcp", "acl", "backend_not_allowed"),
            ("none/mcp", "acl", "backend_not_allowed"),
            ("handed/backends/raw/mcp", "acl", "refused"),
            ("w/mcp", "forward", "refused"),
        ]
    ):
        word = f"zz{number}"
        frame = call(2, "echo", m=word)
        headers = {}
        if era == "modern":
            frame["params"]["_meta"] = META
            headers = MIRRORS
        status, _, answer = asks(home, path, frame, **headers)
        data = answer["error"]["data"] if "error" in answer else answer["result"]["_meta"]["aegis/denial"]
        assert (status, answer["id"], data["stage"], data["reason"]) == (200, 2, stage, why), path
        (row,) = recorded(home, word)
        assert row["call_id"] == data["call_id"], path
        assert (row["method"], row["tool_name"]) == ("tools/call", "echo")
        assert row["exec_status"] == ("error" if (era, stage) == ("modern", "forward") else "denied")
    rows = home.json("audit", "search")
    opened = [row["backend_id"] for row in rows if row["method"] == "initialize"]
    assert set(opened) <= {"dead"}, "nobody shook hands with a server that the agent may not use"


def test_a_call_behind_a_handshake_that_a_program_did_not_answer_is_not_executed_and_says_so(
    homes: Callable[..., Home],
) -> None:
    home = homes(CONFIG)
    for backend in ("gone", "ends"):
        error = asks(home, f"local/backends/{backend}/mcp", call(2, "echo", m=f"zz{backend}"))[2]["error"]
        assert (error["data"]["stage"], error["data"]["retryable"]) == ("forward", True)
        assert error["data"]["reason"] in ("not_executed", "server_not_started", "server_exited"), (
            "whichever is seen first"
        )
        assert "not executed" in error["message"]
        assert "unknown" not in error["message"]
        (row,) = recorded(home, f"zz{backend}")
        assert (row["call_id"], row["tool_name"]) == (error["data"]["call_id"], "echo")


def test_a_person_reads_in_the_log_what_the_agent_is_not_told(homes: Callable[..., Home]) -> None:
    home = homes(CONFIG)
    for path, way in (("none/mcp", "`agents.none.backends`"), ("handed/backends/raw/mcp", "`backends.raw`")):
        _, _, answer = asks(home, path, request(1, "initialize"))
        assert "backends." not in answer["error"]["message"]
        assert way in home.json("audit", "show", answer["error"]["data"]["call_id"])["policy_id"]
    for door in ("sse", "ws"):
        status, _, answer = asks(home, f"none/{door}", None, **(SOCKET if door == "ws" else {}))
        assert (status, "backends." in answer["error"]["message"]) == (403, False)

    def dropped() -> Any:
        done = home.aegis("audit", "tail", "--json", "--limit", "100")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return [row for row in rows if row.get("kind") == "dropped" and row.get("agent_id", row.get("agent")) == "none"]

    assert until(dropped, "a record of the two")


def test_nobody_learns_without_a_token_which_agents_there_are(homes: Callable[..., Home]) -> None:
    home = homes(CONFIG)
    for shown in ({}, {"Authorization": f"Bearer {WRONG}"}, {"Authorization": "Basic eA=="}):
        for door in ("mcp", "sse", "ws", "backends/dead/mcp"):
            frame, more = (None, SOCKET) if door == "ws" else (None if door == "sse" else request(1, "initialize"), {})
            heard = [asks(home, f"{agent}/{door}", frame, **more, **shown) for agent in ("tok", "uid", "nobody")]
            assert heard[0] == heard[1] == heard[2], (door, shown)
            assert heard[0][0] == 401
    known = asks(home, "tok/mcp", request(1, "tools/list"), Authorization=f"Bearer {TOKEN}")
    assert known[0] == 200

    def why() -> Any:
        said = home.aegis("audit", "tail", "--limit", "100").stdout
        return all(word in said for word in ("it is not in `agents`", "a wrong token", "it belongs to system users"))

    until(why, "the reasons in the log")


def test_names_cannot_be_told_by_how_soon_wrong_tokens_are_too_many(homes: Callable[..., Home]) -> None:
    for agent in ("tok", "nobody"):
        home = homes(CONFIG)
        seen = [asks(home, f"{agent}/mcp", request(1, "ping"), Authorization=f"Bearer {WRONG}")[0] for _ in range(21)]
        assert (set(seen[:20]), seen[20]) == ({401}, 429)


def test_without_any_agent_the_daemon_says_over_http_how_to_begin(homes: Callable[..., Home]) -> None:
    status, _, answer = asks(homes("server: {}\n"), "me/mcp", request(1, "initialize"))
    assert status == 403
    assert "`aegis config init`" in answer["error"]["message"]


def test_a_server_that_an_agent_may_use_from_now_on_is_reached_after_the_reload(homes: Callable[..., Home]) -> None:
    home = homes(
        CONFIG.replace("none: {backends: {raw: {allowed: false}}}", "none: {backends: {dead: {allowed: false}}}")
    )
    frame = call(1, "echo")
    assert asks(home, "none/backends/dead/mcp", frame)[2]["error"]["data"]["stage"] == "acl"
    frame["params"]["_meta"] = META
    assert "result" in asks(home, "none/backends/dead/mcp", frame, **MIRRORS)[2]
    home.configure(
        CONFIG.replace("none: {backends: {raw: {allowed: false}}}", "none: {backends: {dead: {allowed: true}}}")
    )
    home.ask("reload")
    for one, headers in ((call(1, "echo"), {}), (frame, MIRRORS)):
        said = asks(home, "none/backends/dead/mcp", one, **headers)[2]["error"]
        assert (said["data"]["stage"], said["data"]["reason"]) == ("forward", "refused")
