"""Sessions outlive their daemon: reload, stop, restart and death, with calls under way and people being asked."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from aegis_daemon.manage.client import Refused

from .conftest import OPEN
from .house import AEGIS, WAYS, WRAP, Agent, Home, call, request, tell_of, until
from .kills import Matrix

SOME = pytest.mark.parametrize(
    ("way", "end"),
    [
        ("relay", "restart"),
        ("handover", "kill"),
        ("handover", "stop"),
        pytest.param("relay", "kill", marks=pytest.mark.full),
        pytest.param("relay", "stop", marks=pytest.mark.full),
        pytest.param("handover", "restart", marks=pytest.mark.full),
    ],
)
RARE = pytest.mark.parametrize("way", ["relay", pytest.param("handover", marks=pytest.mark.full)])
ASKING = """
backends: {work: {}}
agents: {default: {backends: {work: {allowed: true, approval_required: [post]}}}}
"""
DENYING = OPEN.replace("allowed: true", "allowed: true, tool_denylist: [post, big, hold]")
BROKEN = OPEN.replace("allowed", "alowed") + "queue: {wurk: {}}\n"


# --- reload -----------------------------------------------------------------------------------------------------------


def test_reloads_under_load_lose_no_call(home: Home) -> None:
    matrix = Matrix(home)
    sessions = [matrix.session(way) for way in WAYS]
    for each in sessions:
        assert each.warm.wait(20), each.fault
    pid = home.pid
    for at in range(10):
        home.configure(OPEN + f"approval: {{timeout: {at + 1}m}}\n")
        if at % 2:
            os.kill(pid, signal.SIGHUP)
            until(lambda: "timeout" in home.json("config", "show")["approval"], "a reload")
        else:
            home.ask("reload")
    for each in sessions:
        assert each.close() == 0
    figures = matrix.check()
    assert figures["calls sent"] == figures["answered by it"] == figures["reached a server"]
    assert len([record for record in home.records("admin") if record["action"] == "reload"]) == 10


@pytest.mark.parametrize("by", ["command", "signal"])
def test_what_a_reload_denies_is_refused_from_then_on_and_what_was_sent_is_answered(home: Home, by: str) -> None:
    agent = home.count().handshake()
    agent.says(call("sent", "hold", key="sent"))
    until(lambda: home.reached() == ["sent"], "the call")
    home.configure(DENYING)
    if by == "signal":
        os.kill(home.pid, signal.SIGHUP)
        until(lambda: home.records("admin"), "the reload")
    else:
        assert home.json("daemon", "reload")["status"] == "ok"
    assert tell_of(agent.asks(call("late", "post", key="late"))) == (-32001, "not_allowed")
    tools = agent.asks(request("list", "tools/list"))["result"]["tools"]
    assert not {"post", "big", "hold"} & {tool["name"] for tool in tools}
    agent.asks(call("free", "release", key="sent"))
    assert "result" in agent.answer("sent")
    assert home.reached() == ["sent", "sent"]


def test_what_waits_is_judged_again_by_the_rules_of_the_day(homes: Callable[..., Home]) -> None:
    queue = "queue: {work: {enabled: true, delay_min: 0s, delay_max: 0s, bypass_tools: [release]}}\n"
    home = homes(ASKING + queue)
    agent = home.count().handshake()
    agent.says(call("run", "hold", key="run"), call("wait", "big", key="wait", size=1))
    agent.says(call("ask", "post", key="ask"))
    (ticket,) = home.pending()
    until(lambda: home.reached() == ["run"], "the first call")
    home.configure(DENYING + queue)
    home.ask("reload")
    home.decide(ticket["id"])
    assert tell_of(agent.answer("ask")) == (-32001, "not_allowed")
    agent.asks(call("free", "release", key="run"))
    assert tell_of(agent.answer("wait")) == (-32001, "not_allowed")
    assert "result" in agent.answer("run")
    assert home.reached() == ["run", "run"]


@pytest.mark.parametrize("by", ["command", "signal"])
def test_a_faulty_file_leaves_the_old_rules_in_force_and_says_what_is_wrong(
    homes: Callable[..., Home], by: str
) -> None:
    home = homes(DENYING)
    agent = home.count().handshake()
    home.configure(BROKEN)
    if by == "signal":
        os.kill(home.pid, signal.SIGHUP)
        log = home.dir / "daemon.log"
        until(lambda: "old one stays in force" in log.read_text(), "a word in the log")
        said = log.read_text()
    else:
        faults = home.json("daemon", "reload", status=1)
        assert {(fault["line"], fault["severity"]) for fault in faults} == {(3, "fault"), (4, "fault")}
        said = home.aegis("daemon", "reload").stderr
    assert "alowed" in said
    assert "wurk" in said
    assert tell_of(agent.asks(call(1, "post", key="no"))) == (-32001, "not_allowed")
    assert "result" in agent.asks(call(2, "work", key="yes"))


def test_what_needs_a_restart_is_named(home: Home) -> None:
    home.configure(OPEN + "audit: {durability: process, db_path: other.db}\n")
    for _ in range(2):
        told = home.json("daemon", "reload")
        assert told["restart_required"] == ["audit.db_path", "audit.durability"]
    assert home.ask("status")["durability"] == "full"
    assert home.verify()["records"] >= 3  # the log that is written to, not the one that will be
    assert home.aegis("daemon", "restart").returncode == 0
    assert home.ask("status")["durability"] == "process"
    assert home.json("audit", "verify")["first_seq"] == 1
    assert (home.dir / "other.db").exists()


# --- who runs ---------------------------------------------------------------------------------------------------------


def test_a_second_daemon_is_refused_and_disturbs_nobody(home: Home) -> None:
    agent = home.count().handshake()
    pid = home.pid
    second = home.aegis("daemon", "run")
    assert second.returncode == 1
    assert f"pid {pid}" in second.stderr
    assert home.aegis("daemon", "start").returncode == 0
    assert home.pid == pid
    assert "result" in agent.asks(call(1, "work", key="k"))
    assert len([line for line in home.processes().values() if "daemon.main" in line]) == 1


def test_what_a_dead_daemon_left_is_no_obstacle(home: Home) -> None:
    os.kill(home.pid, signal.SIGKILL)
    until(lambda: home.answers() is None, "its end")
    assert (home.dir / "aegis.sock").exists()
    assert (home.dir / "manage.sock").exists()
    home.start()
    assert "result" in home.count().handshake().asks(call(1, "work", key="k"))


def test_a_shim_starts_a_daemon_where_none_runs_and_many_start_one(homes: Callable[..., Home]) -> None:
    home = homes(start=False)
    agents = [home.count(way=way) for way in WAYS * 3]
    for agent in agents:
        agent.handshake()
        assert "result" in agent.asks(call(1, "work", key=f"k{agent.process.pid}"))
    assert len([line for line in home.processes().values() if "daemon.main" in line]) == 1
    for agent in agents:
        assert agent.close() == 0
    # It is nobody's child: it stays when its client goes.
    assert home.ask("status")["sessions"] == []


@RARE
def test_without_a_daemon_every_request_is_told_so_and_the_session_begins_when_one_comes(
    homes: Callable[..., Home], way: str
) -> None:
    home = homes(start=False)
    agent = home.count(way=way, options=("--no-autostart",))
    for id in (1, "two"):
        refused = agent.asks(request(id, "initialize"))
        assert tell_of(refused) == (-32603, "no_daemon")
        assert "aegis daemon start" in refused["error"]["message"]
    assert home.processes().keys() == {agent.process.pid}
    home.start()
    agent.handshake()
    assert "result" in agent.asks(call(3, "work", key="k"))
    assert agent.close() == 0


def test_without_a_configuration_everything_is_denied_with_a_word_on_how_to_begin(homes: Callable[..., Home]) -> None:
    # Under the usual paths of a user who has no directories yet.
    base = homes(None, start=False)
    env = {name: value for name, value in base.env.items() if name != "AEGIS_HOME"} | {"HOME": str(base.dir)}
    agent = Agent([WRAP, "--", *base.counting()], env)
    base.agents.append(agent)
    try:
        refused = agent.asks(request(1, "initialize"))
        assert refused["error"]["code"] in (-32001, -32603)
        assert "aegis config init" in refused["error"]["message"]
        assert base.logged() == []
        assert (base.dir / ".config" / "aegis" / "approver.key").stat().st_mode & 0o777 == 0o600
        assert (base.dir / ".local" / "state" / "aegis").stat().st_mode & 0o777 == 0o700
        done = subprocess.run([AEGIS, "config", "init"], env=env, capture_output=True, check=False)
        assert done.returncode == 0
    finally:
        env["AEGIS_APPROVER_KEY"] = str(base.dir / ".config/aegis/approver.key")
        done = subprocess.run([AEGIS, "daemon", "stop"], env=env, capture_output=True, check=False)
    assert done.returncode == 0


def test_a_key_file_that_a_crash_left_empty_lets_nobody_in(homes: Callable[..., Home]) -> None:
    home = homes(ASKING, start=False)
    key = home.dir / "approver.key"
    key.touch(0o600)
    home.start()
    agent = home.count().handshake()
    agent.says(call(1, "post", key="k"))
    (ticket,) = home.pending()
    for given in ("", " ", None):
        with pytest.raises(Refused):
            home.ask("decide", id=ticket["id"], approve=True, key=given)
    assert len(key.read_text().strip()) == 64
    home.decide(ticket["id"])
    assert "result" in agent.answer(1)


# --- sessions that outlive it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_daemon_is_not_started_by_shims_and_a_new_one_takes_their_sessions_up(home: Home, way: str) -> None:
    agent = home.count(way=way).handshake()
    assert "result" in agent.asks(call(1, "work", key="before"))
    home.stop()
    for id in (2, 3):
        assert tell_of(agent.asks(call(id, "work", key="none"))) == (-32603, "no_daemon")
    assert home.answers() is None
    home.start()
    assert "result" in agent.asks(call(4, "work", key="after"))
    # The new server was shown the old handshake; the client saw nothing of it.
    events = [words[0] for words in home.logged()]
    assert events == ["start", "initialize", "initialized", "call", "eof", "start", "initialize", "initialized", "call"]
    assert [id for id in agent.answers if id not in (1, 2, 3, 4)] == ["init"]
    assert agent.close() == 0
    assert not agent.broken
    assert not agent.twice


@RARE
def test_a_restart_finishes_what_it_can_and_says_of_the_rest_that_nobody_knows(home: Home, way: str) -> None:
    agent = home.count(way=way).handshake()
    agent.says(call("quick", "work", key="quick", ms=700), call("mute", "mute", key="mute"))
    until(lambda: home.reached() == ["quick", "mute"], "the calls")
    pid = home.pid
    restart = subprocess.Popen([AEGIS, "daemon", "restart"], env=home.approver(), stderr=subprocess.DEVNULL)
    try:
        assert "result" in agent.answer("quick")
        assert tell_of(agent.answer("mute")) == (-32603, "outcome_unknown")
        assert "result" in agent.asks(call("next", "work", key="next"))
    finally:
        assert restart.wait(60) == 0
    assert home.pid != pid
    assert home.intents() == {"quick": "success", "mute": "unknown", "next": "success"}
    home.verify()


@SOME
def test_an_approval_outlives_its_daemon_and_its_call_does_not(homes: Callable[..., Home], way: str, end: str) -> None:
    home = homes(ASKING)
    agent = home.count(way=way).handshake()
    agent.says(call(1, "post", key="once", amount=5))
    (ticket,) = home.pending()
    if end == "kill":
        os.kill(home.pid, signal.SIGKILL)
    else:
        assert home.aegis("daemon", end).returncode == 0
    code, reason = tell_of(agent.answer(1))
    assert (code, reason) == (-32603, "not_executed")
    if end == "stop":
        home.start()
    until(home.answers, "the next daemon")

    # A restarted daemon shows it, and nothing runs by itself.
    (shown,) = home.json("pending")
    assert {name: shown[name] for name in ("id", "call_id", "arguments", "expires_at", "state", "waiting")} == {
        **{name: ticket[name] for name in ("id", "call_id", "arguments", "expires_at", "state")},
        "waiting": False,
    }
    # Anything but the very same call is another matter; the same one attaches, whatever its id
    # and the order of its keys.
    agent.says(call(2, "post", key="once", amount=6))
    assert len(home.pending(2)) == 2
    agent.says(call(3, "post", amount=5, key="once"))
    until(lambda: all(each["waiting"] for each in home.ask("pending")), "the call to attach")
    assert len(home.ask("pending")) == 2
    home.decide(ticket["id"])
    assert "result" in agent.answer(3)
    assert home.reached() == ["once"]
    # Once: the next one asks anew.
    agent.says(call(4, "post", key="once", amount=5))
    fresh = home.pending(2)
    assert ticket["id"] not in [each["id"] for each in fresh]
    for each in fresh:
        home.decide(each["id"], approve=False)
    assert tell_of(agent.answer(4)) == tell_of(agent.answer(2)) == (-32004, "rejected")
    assert agent.close() == 0
    statuses = [row["exec_status"] for row in home.json("audit", "search", "once")]
    assert sorted(statuses) == ["denied", "denied", "denied", "success"]
    home.verify()


def test_an_approval_without_a_waiter_runs_on_the_retry_and_only_then(homes: Callable[..., Home]) -> None:
    home = homes(ASKING)
    agent = home.count().handshake()
    agent.says(call(1, "post", key="later"))
    (ticket,) = home.pending()
    agent.kill()
    until(lambda: not home.ask("pending")[0]["waiting"], "its waiter to be gone")
    home.decide(ticket["id"])
    os.kill(home.pid, signal.SIGKILL)
    until(lambda: home.answers() is None, "its end")
    home.start()
    assert home.reached() == []
    (shown,) = home.ask("pending")
    assert shown["state"] == "approved"
    agent = home.count().handshake()
    assert "result" in agent.asks(call("again", "post", key="later"))
    agent.says(call("more", "post", key="later"))
    assert home.pending()[0]["state"] == "pending"
    assert home.reached() == ["later"]


def test_the_log_goes_on_where_it_was_over_many_daemons(home: Home) -> None:
    agent = home.count().handshake()
    heads = []
    for round in range(2):
        assert "result" in agent.asks(call(round, "work", key=f"k{round}"))
        heads.append(home.verify()["last_seq"])
        assert home.aegis("daemon", "restart").returncode == 0
    assert heads == sorted(set(heads))
    assert home.json("audit", "verify")["first_seq"] == 1
    assert len(home.records("start")) == 3
