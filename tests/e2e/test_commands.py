"""Every command against a daemon at work, as scripts use them: JSON on stdout, a status, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .house import AEGIS, Agent, Home, call, note, request, tell_of, until

RULES = """
backends: {work: {}}
queue: {work: {enabled: true, delay_min: 0s, delay_max: 0s, bypass_tools: [release], global_rate_limits: {hold: 3/hour}}}
agents:
  ann:
    backends:
      work: {allowed: true, approval_required: [post], rate_limits: {hold: 2/day}}
"""


@pytest.fixture
def ann(homes: Callable[..., Home]) -> tuple[Home, Agent]:
    home = homes(RULES)
    return home, home.count(agent="ann", way="handover").handshake()


def test_status_shows_the_session_as_it_is(ann: tuple[Home, Agent]) -> None:
    home, agent = ann
    agent.asks(call(1, "work", key="k"))
    status = home.json("status")
    (session,) = status["sessions"]
    assert status["running"]
    assert status["pid"] == home.pid
    assert (status["tier"], status["mode"], status["durability"]) == ("advisory", "enforce", "full")
    assert status["config"] == str(home.dir / "aegis.yaml")
    assert (status["servers_alive"], status["reaped_late"], status["pending"]) == (1, 0, 0)
    assert status["audit"]["healthy"]
    assert (session["agent_id"], session["backend_id"], session["way"], session["era"]) == (
        "ann", "work", "handover", "legacy",
    )  # fmt: skip
    assert session["shim_pid"] == agent.process.pid
    assert session["server_pid"] in home.servers()
    assert (session["calls"], session["in_flight"]) == (2, 0)
    assert "advisory" in home.aegis("status").stdout


def test_a_person_decides_by_ticket_or_call_and_an_agents_child_does_not(ann: tuple[Home, Agent]) -> None:
    home, agent = ann
    agent.says(*(call(at, "post", key=f"k{at}") for at in range(3)))
    home.pending(3)
    rows = home.json("pending")
    assert [json.loads(row["arguments"])["key"] for row in rows] == ["k0", "k1", "k2"]
    assert all(len(row["id"]) == 4 and len(row["call_id"]) == 32 for row in rows)
    assert home.json("status")["pending"] == 3
    assert home.json("pending", "--limit", "1") == rows[:1]
    assert home.json("pending", "--agent", "b*") == []

    # The test is the shim's parent, so as far as the daemon can tell it is the agent.
    refused = home.aegis("approve", "--yes", rows[0]["id"])
    assert refused.returncode == 1
    assert "AEGIS_APPROVER_KEY" in refused.stderr
    # Without a terminal nobody is asked, so `--yes` must be said.
    assert home.aegis("approve", rows[0]["id"], env=home.approver()).returncode in (1, 2)
    assert len(home.json("pending")) == 3

    person = home.approver()
    (done,) = home.json("approve", "--yes", "--note", "go on", rows[0]["id"].lower(), env=person)
    assert (done["call_id"], done["state"]) == (rows[0]["call_id"], "approved")
    assert "result" in agent.answer(0)
    (done,) = home.json("approve", "--yes", rows[1]["call_id"], env=person)
    assert "result" in agent.answer(1)
    (done,) = home.json("reject", "--yes", "--reason", "not today", rows[2]["id"], env=person)
    assert done["state"] == "rejected"
    refused_call = agent.answer(2)
    assert tell_of(refused_call) == (-32004, "rejected")
    assert "not today" in refused_call["error"]["message"]
    again = home.aegis("approve", "--yes", rows[2]["id"], env=person)
    assert again.returncode == 1
    assert "rejected" in again.stderr
    assert home.aegis("approve", "--yes", "ZZZZ", env=person).returncode == 1
    shown = home.json("audit", "show", rows[0]["id"])
    assert shown["approval_result"] == "approved"
    assert [record["record"]["kind"] for record in shown["records"]] == [
        "hold", "approval", "approval", "intent", "outcome",
    ]  # fmt: skip
    notes = {record["note"] for record in home.records("approval") if "note" in record}
    assert notes == {"go on", "not today"}


def test_watching_tells_what_happens_as_it_happens(ann: tuple[Home, Agent]) -> None:
    home, agent = ann
    watch = subprocess.Popen(
        [AEGIS, "pending", "--watch", "--json"],
        env=home.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert watch.stdout is not None
        agent.says(call(1, "post", key="k"))
        opened = json.loads(watch.stdout.readline())
        assert opened["event"] == "opened"
        (ticket,) = home.pending()
        home.decide(ticket["id"])
        seen = [json.loads(watch.stdout.readline())["event"] for _ in range(2)]
        assert seen == ["decided", "consumed"]
    finally:
        watch.terminate()
        watch.communicate()


def test_limits_and_the_queue_are_shown_and_a_queued_call_is_given_up(ann: tuple[Home, Agent]) -> None:
    home, agent = ann
    agent.says(call("once", "hold", key="once"), call("free", "release", key="once"))
    assert "result" in agent.answer("once")
    agent.says(call("running", "hold", key="running"), call("queued", "work", key="queued"))
    until(lambda: "running" in home.reached(), "the call")
    rows = {row["scope"]: row for row in home.json("limits")}
    assert {
        scope: (row["agent_id"], row["tool"], row["window"], row["max_count"], row["current"], row["reserved"])
        for scope, row in rows.items()
    } == {"global": (None, "hold", "1h0m0s", 3, 1, 1), "agent": ("ann", "hold", "24h0m0s", 2, 1, 1)}
    assert [row["scope"] for row in home.json("limits", "--tool", "nothing")] == []
    queue = home.json("queue", "list")
    assert [(row["state"], row["agent_id"], row["tool_name"]) for row in queue] == [
        ("running", "ann", "hold"), ("waiting", "ann", "work"),
    ]  # fmt: skip
    assert home.aegis("queue", "cancel", queue[1]["call_id"]).returncode == 0
    refused = agent.answer("queued")
    assert tell_of(refused) == (-32603, "not_executed")
    agent.asks(call("free2", "release", key="running"))
    assert "result" in agent.answer("running")
    assert home.aegis("queue", "cancel", queue[1]["call_id"]).returncode == 1
    assert "queued" not in home.reached()


def test_the_log_is_searched_shown_followed_and_verified(ann: tuple[Home, Agent]) -> None:
    home, agent = ann
    for at in range(5):
        agent.asks(call(at, "work" if at % 2 else "fail", key=f"k{at}"))
    rows = home.json("audit", "search", "--limit", "3", "--agent", "ann")
    assert [json.loads(row["arguments"])["key"] for row in rows] == ["k4", "k3", "k2"]
    older = home.json("audit", "search", "--before", str(rows[-1]["seq"]), "--tool", "w*")
    assert [json.loads(row["arguments"])["key"] for row in older] == ["k1"]
    assert {row["exec_status"] for row in home.json("audit", "search", "--tool", "fail")} == {"error"}
    assert home.json("audit", "search", "--status", "denied") == []
    assert home.json("audit", "search", "--since", "1h", "k3")[0]["call_id"] == rows[1]["call_id"]
    shown = home.json("audit", "show", rows[1]["call_id"][:10])
    assert json.loads(shown["result"]) == agent.answers[3]["result"]
    assert home.aegis("audit", "show", "0" * 10).returncode == 1

    done = home.aegis("audit", "tail", "--json", "--limit", "4")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["kind"] for line in lines] == ["intent", "outcome", "intent", "outcome"]
    follow = subprocess.Popen(
        [AEGIS, "audit", "tail", "-f", "--json", "-n", "1"], env=home.env, stdout=subprocess.PIPE, text=True
    )
    try:
        assert follow.stdout is not None
        assert json.loads(follow.stdout.readline())["seq"] == lines[-1]["seq"]
        agent.asks(call("news", "work", key="news"))
        assert json.loads(json.loads(follow.stdout.readline())["arguments"])["key"] == "news"
    finally:
        follow.terminate()
        follow.communicate()
    report = home.json("audit", "verify")
    assert report["records"] == report["last_seq"]
    assert report["checked_calls"] >= 7

    # The log is read with the daemon away, too; and what was changed in it is found.
    home.stop()
    assert len(home.json("audit", "search", "--limit", "100")) >= 6
    assert home.json("audit", "verify")["faults"] == []
    subprocess.run(
        ["python3", "-c", "import sqlite3,sys; db = sqlite3.connect(sys.argv[1]); db.execute(\"update calls set "
         "exec_status = 'success' where tool_name = 'fail'\"); db.commit()", str(home.dir / "audit.db")],
        check=True,
    )  # fmt: skip
    assert len(home.json("audit", "verify", status=1)["faults"]) == 3


def test_a_backend_with_a_command_of_its_own_runs_that_and_nothing_else(homes: Callable[..., Home]) -> None:
    home = homes(None, start=False)
    argv = home.counting()
    backend = {"command": argv[0], "args": argv[1:], "cwd": str(home.dir), "env": {"TOKEN": "${env:E2E_SECRET}"}}
    agents = {"default": {"backends": {"work": {"allowed": True}}}}
    home.configure(json.dumps({"backends": {"work": backend}, "agents": agents}))
    home.env["E2E_SECRET"] = "s3cr3t-of-the-backend"
    home.start()
    named = home.wrap(backend="work").handshake()
    assert "result" in named.asks(call(1, "work", key="by-name"))
    (server,) = home.servers()
    with open(f"/proc/{server}/environ", "rb") as file:
        assert b"\0TOKEN=s3cr3t-of-the-backend\0" in file.read() + b"\0"
    same = home.wrap(*argv, backend="work").handshake()
    assert "result" in same.asks(call(1, "work", key="the-same"))
    other = home.wrap("/bin/cat", "/etc/hostname", backend="work")
    refused = other.asks(request(1, "initialize"))
    assert refused["error"]["code"] == -32603
    assert "/bin/cat /etc/hostname" in refused["error"]["message"]
    assert argv[0] in refused["error"]["message"]
    assert "s3cr3t" not in json.dumps(home.json("config", "show")) + (home.dir / "daemon.log").read_text()
    assert home.reached() == ["by-name", "the-same"]


def test_a_server_runs_where_its_client_runs(homes: Callable[..., Home], tmp_path: Path) -> None:
    home = homes()
    (tmp_path / "here.sh").write_text("#!/bin/sh\npwd >&2\nexit 5\n")
    (tmp_path / "here.sh").chmod(0o700)
    agent = home.wrap("./here.sh", backend="work", cwd=str(tmp_path))
    assert agent.ends() == 5
    assert bytes(agent.err).decode().strip() == str(tmp_path)


def test_more_requests_at_once_than_an_agent_may_have_are_refused(homes: Callable[..., Home]) -> None:
    home = homes(RULES.replace("enabled: true", "enabled: false"))
    agent = home.count(agent="ann").handshake()
    agent.says(*(call(f"p{at}", "post", key=f"p{at}") for at in range(70)))
    for at in range(64, 70):
        assert tell_of(agent.answer(f"p{at}")) == (-32003, "too_many_pending")
    assert len(home.pending(64)) == 64
    agent.says(*(call(f"m{at}", "mute", key=f"m{at}") for at in range(300)))
    for at in range(192, 300):
        assert tell_of(agent.answer(f"m{at}")) == (-32003, "too_many")
    (session,) = home.ask("status")["sessions"]
    assert session["in_flight"] == 256
    until(lambda: len(home.reached()) == 192, "the calls")
    # Room again as soon as one ends.
    agent.says(note("notifications/cancelled", requestId="p0"))
    until(lambda: home.ask("status")["sessions"][0]["in_flight"] == 255, "room")
    assert "result" in agent.asks(call("more", "work", key="more"))


def test_logs_tell_of_sessions(ann: tuple[Home, Agent]) -> None:
    home, _ = ann
    said = home.aegis("logs")
    assert said.returncode == 0
    assert "`ann` to `work` by handover" in said.stdout


def test_without_a_daemon_every_command_that_needs_one_says_so_with_status_3(homes: Callable[..., Home]) -> None:
    home = homes(RULES, start=False)
    for words in (["pending"], ["limits"], ["queue", "list"], ["daemon", "stop"], ["daemon", "reload"]):
        done = home.aegis(*words)
        assert done.returncode == 3, words
        assert done.stdout == ""
        assert ("nothing to stop" if words[-1] == "stop" else "aegis daemon start") in done.stderr
    assert home.json("status", status=3) == {
        "running": False, "config": str(home.dir / "aegis.yaml"), "socket": str(home.dir / "aegis.sock"),
    }  # fmt: skip


def test_what_a_server_writes_is_for_whom_the_client_meant_it(homes: Callable[..., Home], tmp_path: Path) -> None:
    home = homes("backends: {work: {}}\nagents: {default: {backends: {work: {allowed: true}}}}\n")
    for mask in (0o022, 0o077, 0o002):
        script = tmp_path / f"{mask:o}.sh"
        script.write_text(f"#!/bin/sh\numask > {tmp_path}/{mask:o}.mask\ncat >/dev/null\n")
        script.chmod(0o755)
        before = os.umask(mask)
        try:
            agent = home.wrap(str(script), backend="work")
        finally:
            os.umask(before)
        written = tmp_path / f"{mask:o}.mask"
        until(lambda written=written: written.exists() and written.read_text(), "a server that started")
        assert int(written.read_text(), 8) == mask
        agent.close()


def test_backends_are_shown_as_they_are_and_opened_to_see_whether_they_serve(homes: Callable[..., Home]) -> None:
    home = homes(start=False)
    command, *arguments = home.counting()
    home.configure(
        f"backends:\n  work: {{command: {json.dumps(command)}, args: {json.dumps(arguments)}}}\n  brought: {{}}\n"
        "  far: {url: 'http://127.0.0.1:9/mcp', health_url: 'http://127.0.0.1:9/'}\n"
        "queue: {work: {enabled: true}}\n"
        "agents: {ann: {backends: {work: {allowed: true}, brought: {allowed: true}, far: {allowed: false}}}}\n"
    )
    home.launch()
    home.wrap(command, *arguments, agent="ann", backend="work").handshake()
    listed = home.aegis("backends", "list", "--json")
    assert listed.returncode == 1
    rows = {row["backend_id"]: row for row in json.loads(listed.stdout)}
    assert (rows["work"]["kind"], rows["brought"]["kind"], rows["far"]["kind"]) == ("process", "handed-over", "http")
    assert (rows["work"]["sessions"], rows["work"]["lane"], rows["work"]["agents"]) == (1, True, ["ann"])
    assert (rows["brought"]["health"], rows["far"]["agents"]) == ("no_health_url", [])
    assert rows["far"]["health"].startswith("unhealthy: ")

    person = home.approver()
    found = home.json("backends", "probe", "work", env=person)
    assert found["ok"]
    assert found["tools"] == 14
    assert found["latency_ms"] > 0
    assert home.reached() == []
    (record,) = (one for one in home.records("admin") if one["action"] == "backend_probe")
    assert record["detail"] == "work"
    for name, why in (("far", "nothing listens"), ("brought", "only `aegis-wrap` can bring"), ("x", "is configured")):
        done = home.aegis("backends", "probe", name, env=person)
        assert (done.returncode, done.stdout) == (1, "")
        assert why in done.stderr
    assert "agent" in home.aegis("backends", "probe", "work").stderr  # the test is the shim's parent
