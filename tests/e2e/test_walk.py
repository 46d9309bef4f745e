"""The README's walk over HTTP does what its comments say, word for word."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from .house import BOUND_S, call, request, until

ROOT = Path(__file__).parents[2]
WALK = re.search(r"<!-- begin walk -->\n(.*?)<!-- end walk -->", (ROOT / "README.md").read_text(), re.S)
assert WALK is not None
BACKEND, DAEMON, STEPS = re.findall(r"```\n(.*?)```", WALK[1], re.S)
PORTS = ("9100", "18070")


def taken(port: str) -> bool:
    with open("/proc/net/tcp") as table:
        return any(
            line.split()[1].endswith(f":{int(port):04X}") and line.split()[3] == "0A" for line in list(table)[1:]
        )


@contextmanager
def running(script: str, env: dict[str, str], cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    line = script.split("#")[0].strip()
    with open(cwd / f"{len(line)}.log", "wb") as log:
        process = subprocess.Popen(["bash", "-c", f"exec env {line}"], env=env, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(BOUND_S)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for listeners in /proc")
def test_the_walk_in_the_readme(tmp_path: Path) -> None:
    until(
        lambda: not any(map(taken, PORTS)), f"the end of whoever listens at one of {PORTS}, which the walk needs", 120.0
    )
    config = tmp_path / "team-over-http.yaml"
    config.write_text((ROOT / "examples/team-over-http.yaml").read_text())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path}
    daemon = DAEMON.replace("examples/team-over-http.yaml", str(config)).replace(
        "/tmp/aegis-walk", str(tmp_path / "home")
    )
    with running(BACKEND, env, tmp_path), running(daemon, env, tmp_path):
        until(lambda: all(map(taken, PORTS)), "the backend and the daemon")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", STEPS],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=BOUND_S, check=False,
        )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line]
    assert done.returncode == 0, (done.stdout, done.stderr)
    tools = {tool["name"]: tool for tool in json.loads(said[0])["result"]["tools"]}
    assert set(tools) == {"echo", "get_weather", "list_posts", "publish_post"}
    assert tools["get_weather"]["description"].startswith("[Rate:3/1m|GlobalRate:5/1m] ")
    assert json.loads(said[1])["error"]["code"] == -32001
    answers = [json.loads(line) for line in said[2:6]]
    assert [("result" in answer, answer.get("error", {}).get("code")) for answer in answers] == [
        *[(True, None)] * 3, (False, -32002),
    ]  # fmt: skip
    (ticket,) = json.loads(said[6])
    assert (ticket["agent_id"], ticket["tool_name"]) == ("writer", "publish_post")
    assert said[7] != said[8]
    assert "approved" in said[8]
    assert "published: Hello" in said[9]
    assert said[10] == "401"
    limits = {(row["scope"], row["tool"]): row["current"] for row in json.loads(said[11])}
    assert limits["agent", "get_weather"] == 3
    assert limits["agent", "publish_post"] == 1
    assert json.loads(said[12])["status"] == "ok"
    rows = json.loads(said[13])
    assert [row["tool_name"] for row in rows] == ["publish_post", *["get_weather"] * 4, "admin_reset"]
    assert [row["exec_status"] for row in rows] == ["success", "denied", *["success"] * 3, "denied"]
    assert rows[0]["approval_result"] == "approved"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for listeners in /proc")
def test_the_first_seeds_own_example_runs_as_it_is(tmp_path: Path) -> None:
    """Its ports, its paths, its agents: `aegis config.yaml` is all it takes."""
    ports = ("8080", "18070")
    until(
        lambda: not any(map(taken, ports)),
        f"the end of whoever listens at one of {ports}, which the example needs",
        120.0,
    )
    config = tmp_path / "config.yaml"
    config.write_text((ROOT / "tests/config/data/seed_a.yaml").read_text())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "AEGIS_HOME": str(tmp_path / "home")}
    with running(f"{BACKEND.split('#')[0].strip()} 8080", env, tmp_path), running(f"aegis {config}", env, tmp_path):
        until(lambda: all(map(taken, ports)), "the backend and the daemon")

        def post(agent: str, frame: dict[str, Any]) -> dict[str, Any]:
            connection = HTTPConnection("127.0.0.1", 18070, timeout=BOUND_S)
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"/agents/{agent}/mcp", json.dumps(frame), headers)
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            connection.close()
            return found

        listed = post("dev-agent", request(1, "tools/list"))["result"]["tools"]
        assert {tool["name"] for tool in listed} >= {"echo", "list_posts", "admin_reset"}
        for tool in ("publish", "dangerous_tool"):
            assert post("dev-agent", call(1, tool))["error"]["code"] == -32001
        assert post("production-agent", call(1, "dangerous_tool"))["error"]["code"] == -32001
        assert post("nobody", call(1, "echo"))["error"]["code"] == -32001
        # The first call in a lane does not wait; the next would, for a minute at least.
        said = post("production-agent", call(1, "echo", text="as it is"))["result"]["content"][0]["text"]
        assert said == "as it is"
        connection = HTTPConnection("127.0.0.1", 18070, timeout=BOUND_S)
        connection.request("GET", "/health")
        assert json.loads(connection.getresponse().read()) == {
            "status": "ok", "service": "aegis", "backends": {"my-tools": "healthy"}, "exports": {},
        }  # fmt: skip
        connection.request("GET", "/api/v1/audit/logs?limit=50&offset=0")
        rows = json.loads(connection.getresponse().read())
        assert [row["exec_status"] for row in rows] == ["success", *["denied"] * 3]
        connection.close()
        assert (tmp_path / "data/audit.db").exists()
