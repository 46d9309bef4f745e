"""A client that can poll is given a task of ours over real HTTP, with a real server behind, through a daemon's restart."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import pytest

from .house import BOUND_S, HERE, Home, until

MODERN = "2026-07-28"
VERSION = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
TASKS = {"extensions": {"io.modelcontextprotocol/tasks": {}}}


@pytest.fixture
def home(homes: Callable[..., Home]) -> Home:
    made = homes(start=False)
    server = json.dumps([str(HERE / "counting.py"), str(made.log)])
    made.configure(
        f"""
backends:
  work: {{command: {sys.executable}, args: {server}}}
  more: {{command: {sys.executable}, args: {server}}}
agents:
  bot: {{backends: {{work: {{allowed: true, approval_required: [post]}}, more: {{allowed: true}}}}}}
"""
    )
    return made.launch()  # type: ignore[no-any-return]


def post(home: Home, backend: str, method: str, mirror: str, /, **params: Any) -> tuple[int, Any]:
    """One modern request with its mirror headers; the status, and the answer."""
    host = home.ask("status")["http"]
    where = f"/agents/bot/backends/{backend}/mcp" if backend else "/agents/bot/mcp"
    params["_meta"] = {VERSION: MODERN, CAPABILITIES: TASKS}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    headers = {
        "Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Mcp-Method": method,
        "Mcp-Name": mirror, "MCP-Protocol-Version": MODERN,
    }  # fmt: skip
    connection = HTTPConnection(host, timeout=BOUND_S)
    try:
        connection.request("POST", where, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    if answer.headers.get_content_type() == "text/event-stream":
        text = next(line[5:] for line in text.splitlines() if line.startswith("data:") and '"id":1' in line)
    return answer.status, json.loads(text)


def begins(home: Home, backend: str = "work", prefix: str = "") -> str:
    name = f"{prefix}post"
    status, found = post(home, backend, "tools/call", name, name=name, arguments={"key": "k"})
    assert status == 200, found
    assert found["result"]["resultType"] == "task", found
    return str(found["result"]["taskId"])


def polled(home: Home, task: str, backend: str = "work") -> dict[str, Any]:
    status, found = post(home, backend, "tasks/get", task, taskId=task)
    assert status == 200, found
    assert found["result"]["taskId"] == task, found
    return found["result"]  # type: ignore[no-any-return]


def ended(home: Home, task: str, backend: str = "work") -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        found = polled(home, task, backend)
        return found if found["status"] != "working" else None

    return until(over, "the end of the task")  # type: ignore[no-any-return]


def test_a_task_is_polled_over_http_and_its_call_runs_once(home: Home) -> None:
    task = begins(home)
    (ticket,) = home.pending()
    assert polled(home, task)["status"] == "working"
    home.decide(ticket["id"])
    done = ended(home, task)
    assert done["status"] == "completed"
    assert done["result"]["content"]
    assert home.reached() == ["k"]


def test_a_poll_whose_header_names_another_task_is_refused(home: Home) -> None:
    task = begins(home)
    status, found = post(home, "work", "tasks/get", "aegis-" + "0" * 32, taskId=task)
    assert (status, found["error"]["code"]) == (400, -32020)


def test_a_task_lives_through_a_restart_and_is_polled_at_the_address_of_all_backends(home: Home) -> None:
    task = begins(home, "", "work__")
    assert task.startswith("work__aegis-")
    (ticket,) = home.pending()
    home.stop()
    home.launch()
    home.decide(ticket["id"])
    assert home.reached() == []
    assert ended(home, task, "")["result"]["content"]
    assert ended(home, task.removeprefix("work__"))["status"] == "completed"
    assert home.reached() == ["k"]
    home.stop()
    home.launch()
    over = polled(home, task, "")
    assert over["status"] == "failed", "it was delivered, and says so instead of running again"
    assert home.reached() == ["k"]
