"""What operators see of a real daemon: traces joined at both ends, numbers that Prometheus reads, logs without bodies."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from collector import Collector, pairs
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from .house import HERE, WRAP, Home, call, until

TRACED = str(HERE / "traced.py")
TOKEN = "a-token-of-sixteen-and-more"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def rules(**sections: Any) -> str:
    allowed = {"allowed": True, "tool_denylist": ["burn"]}
    whole = {"backends": {"work": {}}, "agents": {"default": {"backends": {"work": allowed}}}, **sections}
    return "".join(f"{name}: {json.dumps(section)}\n" for name, section in whole.items())


def get(home: Home, path: str, **headers: str) -> tuple[int, str, str]:
    url = f"http://{home.ask('status')['http']}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read().decode()


def numbers(text: str) -> dict[tuple[str, ...], float]:
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in plain_families(text)
        for one in family.samples
    }


# --- traces


def test_a_trace_goes_from_the_agent_through_aegis_to_the_server(
    homes: Callable[..., Home], collector: Collector, tmp_path: Path
) -> None:
    done = tmp_path / "server"
    server = {"command": sys.executable, "args": [TRACED, "server", str(done), str(tmp_path / "log")]}
    otlp = {"endpoint": collector.url, "headers": {"X-Key": "sesame-open"}, "metrics": "1s"}
    home = homes(rules(backends={"work": server}, telemetry={"otlp": otlp}))
    ways = {
        "stdio": [WRAP, "--backend", "work"],
        "http": [f"http://{home.ask('status')['http']}/agents/default/mcp"],
    }
    running = {
        way: subprocess.Popen(
            [sys.executable, TRACED, "client", str(tmp_path / way), *target], env=home.env, stderr=subprocess.PIPE
        )
        for way, target in ways.items()
    }
    for one in running.values():
        _, said = one.communicate(timeout=60)
        assert one.returncode == 0, said.decode()

    def noted(path: Path, ending: str) -> list[dict[str, str]]:
        return [one for one in map(json.loads, path.read_text().splitlines()) if one["name"].endswith(ending)]

    ids = [one["call"] for one in home.records("intent") if one["method"] == "tools/call"]
    assert len(ids) == 4
    until(lambda: all(len(collector.of(id)) >= 2 for id in ids), "spans")
    calls = [collector.of(id) for id in ids]
    for way in ways:
        (thinking,) = noted(tmp_path / way, "thinking")
        theirs = next(one for one in noted(tmp_path / way, " add") if one["trace"] == thinking["trace"])
        (spans,) = (one for one in calls if one["server"].trace_id.hex() == thinking["trace"])
        assert thinking["span"] == theirs["parent"]
        assert spans["server"].parent_span_id.hex() == theirs["span"]
        (last,) = (one for one in noted(done, " add") if one["trace"] == thinking["trace"])
        assert last["parent"] == spans["client"].span_id.hex()
    failed = [pairs(one["server"].attributes) for one in calls if one["server"].name.endswith("fail")]
    assert [one["error.type"] for one in failed] == ["tool_error"] * 2
    assert collector.resources[-1]["service.name"] == "aegis"
    assert collector.requests[-1][1]["X-Key"] == "sesame-open"

    def counted() -> int:
        found = next((one for one in collector.metrics if one.name == "mcp.client.operation.duration"), None)
        points = found.histogram.data_points if found is not None else []
        return sum(one.count for one in points if pairs(one.attributes)["mcp.method.name"] == "tools/call")

    until(lambda: counted() == 4, "numbers")
    assert b"sesame" not in collector.raw
    assert "sesame" not in home.aegis("config", "show").stdout
    home.verify()


def outage(homes: Callable[..., Home], seconds: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    home = homes(rules(telemetry={"otlp": {"endpoint": f"http://127.0.0.1:{port}", "timeout": "1s", "metrics": "1s"}}))
    agent = home.count(agent="default").handshake()
    ends = time.monotonic() + seconds
    at, slowest = 0, 0.0
    while at < 20 or time.monotonic() < ends:
        began = time.monotonic()
        agent.asks(call(at, "work", key=f"k{at}"))
        slowest = max(slowest, time.monotonic() - began)
        at += 1
        time.sleep(max(0.0, seconds / 100))
    assert slowest < 2.0
    until(lambda: "reached" in " ".join(home.ask("status")["warnings"]), "a warning")
    collector = Collector(port)
    try:
        ids = {one["call"] for one in home.records("intent") if one["method"] == "tools/call"}
        until(lambda: all("server" in collector.of(id) for id in ids), "all spans", bound=70.0)
        assert len(ids) == at
        until(lambda: not home.ask("status")["warnings"], "no warning", bound=70.0)
        until(lambda: collector.metrics, "numbers")
    finally:
        collector.close()


def test_a_collector_that_is_away_costs_calls_nothing_and_gets_all_spans_later(homes: Callable[..., Home]) -> None:
    outage(homes, 0.5)


@pytest.mark.full
def test_the_same_after_thirty_seconds(homes: Callable[..., Home]) -> None:
    outage(homes, 30.0)


def test_without_a_collector_there_is_no_process_and_a_clients_trace_passes_unchanged(
    homes: Callable[..., Home],
) -> None:
    home = homes(rules())
    agent = home.count(agent="default").handshake()
    frame = call(1, "work", key="k")
    frame["params"]["_meta"] = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    agent.asks(frame)
    assert not [command for command in home.processes().values() if "exports.ship" in command]
    assert not any("trace" in one for one in home.records("intent"))


# --- numbers


def test_prometheus_reads_what_happened(homes: Callable[..., Home]) -> None:
    home = homes(rules(telemetry={"tools": 5}, approval={"generic": {"webhook_url": "http://127.0.0.1:9/"}}))
    agent = home.count(agent="default").handshake()
    for at in range(3):
        agent.asks(call(at, "work", key=f"k{at}"))
    agent.asks(call(9, "burn", key="no"))
    agent.asks(call(10, "fail", key="no"))
    key = ("aegis_calls_total", "default", "work", "tools/call", "", "success")
    until(lambda: numbers(get(home, "/metrics")[2]).get(key) == 3, "three calls")
    status, kind, text = get(home, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = numbers(text)
    assert found["aegis_calls_total", "default", "work", "tools/call", "acl", "denied"] == 1
    assert found["aegis_calls_total", "default", "work", "tools/call", "", "error"] == 1
    assert found["aegis_tool_calls_total", "work", "work", "success"] == 3
    assert found["aegis_call_exec_seconds_count", "work", "tools/call"] == 4
    assert found["aegis_call_added_seconds_count", "work", "tools/call"] == 4
    assert 0 < found["aegis_call_added_seconds_sum", "work", "tools/call"] < 20
    assert found["aegis_sessions", "work"] == 1
    assert found["aegis_servers_running",] == 1
    assert found["aegis_channel_ok", "generic"] == 1
    assert found["aegis_channel_waiting", "generic"] == 0
    assert found["aegis_processes_leaked_total",] == 0
    assert found["aegis_audit_healthy",] == found["aegis_rules_proved",] == 1
    assert found["process_resident_memory_bytes",] > 10_000_000
    status, kind, text = get(
        home, "/metrics", Accept="application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1"
    )
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in open_families(text)} >= {"aegis_calls", "aegis_call_exec_seconds"}
    assert get(home, "/metrics", Origin="http://evil.example")[0] == 403


@pytest.mark.full
def test_promtool_finds_no_fault(homes: Callable[..., Home]) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "install Debian's `prometheus`"
    home = homes(rules(telemetry={"tools": 5}))
    home.count(agent="default").handshake().asks(call(1, "work", key="k"))
    text = get(home, "/metrics")[2]
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- the log


def test_the_log_is_json_with_a_line_for_each_call_and_none_of_its_words(homes: Callable[..., Home]) -> None:
    home = homes(rules(logging={"format": "json", "calls": True}, server={"api_token": TOKEN}), start=False)
    (home.dir / "aegis.yaml").chmod(0o600)
    home.launch()
    agent = home.count(agent="default").handshake()
    agent.asks(call(1, "work", key="sesame"))
    agent.asks(call(2, "burn", key="sesame"))

    def lines() -> list[dict[str, Any]]:
        found = (home.dir / "daemon.log").read_text().splitlines()
        return [json.loads(line) for line in found if line]

    until(lambda: len([one for one in lines() if one.get("tool")]) == 2, "two lines")
    ids = {one["call"] for one in home.records() if one.get("name") in ("work", "burn")}
    told = [one for one in lines() if one.get("tool")]
    assert {one["call_id"] for one in told} == ids
    assert {(one["tool"], one["verdict"], one["agent"], one["backend"]) for one in told} == {
        ("work", "success", "default", "work"), ("burn", "denied", "default", "work"),
    }  # fmt: skip
    assert all({"time", "level", "logger", "message"} <= set(one) for one in lines())
    assert "sesame" not in (home.dir / "daemon.log").read_text()
    (home.dir / "aegis.yaml").write_text(
        (home.dir / "aegis.yaml").read_text().replace('"calls": true', '"calls": false')
    )
    home.aegis("daemon", "reload")
    before = len(lines())
    agent.asks(call(3, "work", key="sesame"))
    home.ask("flush_audit")
    assert not [one for one in lines()[before:] if one.get("tool")]
    # Where there is a token, numbers need it.
    assert get(home, "/metrics")[0] == get(home, "/metrics", Authorization="Bearer wrong")[0] == 401
    assert get(home, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200


@pytest.mark.full  # beside tests/daemon/test_metering.py
def test_a_full_log_begins_anew_and_the_earlier_ones_are_kept(homes: Callable[..., Home]) -> None:
    home = homes(rules(logging={"rotate_mb": 1, "files": 1, "calls": True}))
    log = home.dir / "daemon.log"
    for letter in "xy":
        with open(log, "ab") as file:
            file.write((letter * 100 + "\n").encode() * 11_000)
        until(lambda: log.stat().st_size < 1 << 20, "a new log")
    agent = home.count(agent="default").handshake()
    agent.asks(call(1, "work", key="k"))
    until(lambda: b"tools/call work" in log.read_bytes(), "a line in the new one")
    assert b"\0" not in log.read_bytes()
    assert (home.dir / "daemon.log.1").read_bytes().count(b"y" * 100) == 11_000
    assert not (home.dir / "daemon.log.2").exists()
    assert not (home.dir / "daemon.log.new").exists()
    assert os.stat(home.dir / "daemon.log.1").st_mode & 0o077 == 0
