"""kill -9 of everything there is, under load. `scripts/kill_matrix` does more of it and prints figures."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable

import pytest

from aegis_daemon.manage.client import DaemonAway, Refused

from .house import BOUND_S, WAYS, Agent, Home, call, until
from .kills import CONFIG, Matrix

FEW = 5
MANY = 50
MOST = 120
"""For each way, so twice as many in all. A killed daemon counts for both ways at once; 30, 20 and 40 more die below."""
COUNTS = [
    pytest.param(FEW, marks=pytest.mark.few),
    pytest.param(MANY, marks=pytest.mark.full),
    pytest.param(MOST, marks=pytest.mark.matrix),
]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("victim", ["shim", "server"])
def test_a_killed_end_leaves_no_orphan_and_no_hung_client(homes: Callable[..., Home], victim: str, count: int) -> None:
    matrix = Matrix(homes(CONFIG % "full"))
    for way in WAYS:
        matrix.kill_ends(victim, way, count)
    print(matrix.check())


@pytest.mark.parametrize(
    ("count", "durability"),
    [
        (FEW, "process"),
        pytest.param(MANY, "full", marks=pytest.mark.full),
        pytest.param(MOST, "full", marks=pytest.mark.matrix),
    ],
)
def test_sessions_go_on_over_killed_daemons(homes: Callable[..., Home], count: int, durability: str) -> None:
    matrix = Matrix(homes(CONFIG % durability))
    matrix.kill_daemons(count)
    print(matrix.check())


@pytest.mark.parametrize("count", [pytest.param(3, marks=pytest.mark.few), pytest.param(30, marks=pytest.mark.full)])
def test_shims_and_daemons_killed_at_once(homes: Callable[..., Home], count: int) -> None:
    matrix = Matrix(homes(CONFIG % "full"))
    matrix.kill_all(count)
    print(matrix.check())


def helper(home: Home, words: str) -> int:
    """The process of one of the daemon's helpers."""
    (pid,) = [pid for pid, line in home.processes().items() if words in line]
    return pid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees the warden, which hides itself")
def test_a_killed_warden_takes_its_servers_along_and_the_next_session_gets_a_new_one(home: Home) -> None:
    agents = [home.count(*more, way=way).handshake() for way in WAYS for more in ((), ("stubborn",))]
    for at, agent in enumerate(agents):
        agent.asks(call("f", "family", key=f"family{at}"))
        agent.says(call("open", "mute", key=f"open{at}"))
    until(lambda: len(home.reached()) == 8, "the calls")
    os.kill(helper(home, "import warden"), signal.SIGKILL)
    for agent in agents:
        assert "error" in agent.answer("open")
        assert agent.ends() == 128 + signal.SIGKILL
    until(lambda: not home.servers(), "the end of the servers and all that they started")
    assert "result" in home.count().handshake().asks(call(1, "work", key="next"))
    assert home.ask("status")["reaped_late"] == 0
    assert {key: status for key, status in home.intents().items() if key.startswith("open")} == {
        f"open{at}": "unknown" for at in range(4)
    }
    home.verify()


def test_a_killed_writer_of_the_log_is_replaced_and_nothing_is_missing(home: Home) -> None:
    matrix = Matrix(home)
    sessions = [matrix.session(way) for way in WAYS]
    for each in sessions:
        assert each.warm.wait(BOUND_S), each.fault
    for _ in range(3):
        pid = until(lambda: [pid for pid, line in home.processes().items() if "audit.ingest" in line], "a writer")[0]
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: pid not in home.processes(), "its end")
        for each in sessions:
            each.warm.clear()
            assert each.warm.wait(BOUND_S), each.fault
    for each in sessions:
        assert each.close() == 0
    figures = matrix.check()
    assert figures["calls sent"] == figures["answered by it"]


LIMITED = """
backends: {work: {}}
agents: {default: {backends: {work: {allowed: true}}}}
queue: {work: {enabled: false, global_rate_limits: {%s}}}
"""


@pytest.mark.parametrize("rounds", [pytest.param(2, marks=pytest.mark.few), pytest.param(20, marks=pytest.mark.full)])
def test_a_limit_holds_over_a_daemon_that_is_killed_at_any_moment(homes: Callable[..., Home], rounds: int) -> None:
    home = homes(LIMITED % ", ".join(f"t{at}: 10/day" for at in range(rounds)))
    home.torn = True
    agents = [home.count(way=way).handshake() for way in WAYS for _ in range(2)]
    for at in range(rounds):
        pid = home.pid
        for n, agent in enumerate(agents):
            agent.says(*(call(f"{at}-{n}-{m}", f"t{at}", key=f"{at}-{n}-{m}", ms=m % 5) for m in range(40)))
        time.sleep(random.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        home.spawn()
        for n, agent in enumerate(agents):
            for m in range(40):
                agent.answer(f"{at}-{n}-{m}")
            # And what was not executed is tried again, as agents do.
            again = [f"{at}-{n}-{m}-again" for m in range(10)]
            agent.says(*(call(key, f"t{at}", key=key) for key in again))
        for n, agent in enumerate(agents):
            for m in range(10):
                agent.answer(f"{at}-{n}-{m}-again")
        until(home.answers, "a daemon")
        reached = [key for key in home.reached() if key.startswith(f"{at}-")]
        (row,) = [row for row in home.ask("limits") if row["tool"] == f"t{at}"]
        # Never more; and what may have happened counts, so not always as many.
        assert len(reached) <= row["current"] == 10, (reached, row)
    home.verify()


def test_calls_of_a_name_in_another_spelling_count_after_a_kill_too(homes: Callable[..., Home]) -> None:
    home = homes(LIMITED % "tick: 2/day")
    home.torn = True
    agent = home.count().handshake()
    for at, name in enumerate(("Tick", "tick.")):
        assert "result" in agent.asks(call(at, name, key=name))
    pid = home.pid
    os.kill(pid, signal.SIGKILL)
    home.spawn()
    until(home.answers, "a daemon")
    for at, name in enumerate(("tick", "TICK", "tick/")):
        assert agent.asks(call(f"again-{at}", name, key="no"))["error"]["code"] == -32002
    assert "no" not in home.reached()
    assert home.ask("limits")[0]["current"] == 2


ASKING = """
backends: {work: {}}
agents: {default: {backends: {work: {allowed: true, approval_required: [post]}}}}
"""


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(3, marks=pytest.mark.few),
        pytest.param(20, marks=pytest.mark.full),
        pytest.param(40, marks=pytest.mark.matrix),
    ],
)
def test_an_approval_is_used_once_however_often_the_daemon_is_killed(homes: Callable[..., Home], kills: int) -> None:
    home = homes(ASKING)
    home.torn = True
    over, gone = threading.Event(), threading.Event()
    approved: dict[str, list[str]] = {}
    rejected: list[str] = []

    def decide() -> None:
        """A person who lets each key run once: a second ticket for it is rejected."""
        while not gone.is_set():
            try:
                for ticket in home.ask("pending"):
                    key = json.loads(ticket["arguments"])["key"]
                    if ticket["state"] != "pending":
                        continue
                    first = key not in approved
                    try:
                        home.decide(ticket["id"], first)
                    except Refused:
                        continue
                    finally:
                        if first:
                            approved.setdefault(key, []).append(ticket["id"])
                        else:
                            rejected.append(key)
            except DaemonAway:
                pass
            time.sleep(0.005)

    def post(agent: Agent, name: str) -> None:
        """An agent that repeats what was not executed, and nothing else."""
        for at in range(1000):
            key = f"{name}-{at}"
            for attempt in range(50):
                if over.is_set():
                    return
                answer = agent.asks(call(f"{key}.{attempt}", "post", key=key, ms=at % 4))
                if "result" in answer or answer["error"]["data"]["reason"] not in ("not_executed", "no_daemon"):
                    break
                time.sleep(0.01)

    agents = [home.count(way=way).handshake() for way in WAYS for _ in range(2)]
    person = threading.Thread(target=decide, daemon=True)
    posting = [threading.Thread(target=post, args=(agent, f"a{at}"), daemon=True) for at, agent in enumerate(agents)]
    for thread in (person, *posting):
        thread.start()
    try:
        for _ in range(kills):
            pid = until(home.answers, "a daemon")["pid"]
            enough = len(home.reached()) + 3
            until(lambda enough=enough: len(home.reached()) >= enough, "calls to get through")
            time.sleep(random.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            home.spawn()
    finally:
        # The person leaves last: a call that was asked just now still waits for one.
        for event, threads in ((over, posting), (gone, [person])):
            event.set()
            for thread in threads:
                thread.join(BOUND_S)
                assert not thread.is_alive()
    until(home.answers, "the last daemon")
    reached = home.reached()
    assert len(set(reached)) == len(reached), "an approval was used twice"
    assert set(reached) <= approved.keys()
    # By the call that it was made for: the four letters of a ticket are given again once it has ended.
    consumed = [record["call"] for record in home.records("approval") if record["decision"] == "consumed"]
    assert len(set(consumed)) == len(consumed)
    assert set(reached) <= home.intents().keys()
    print({"kills": kills, "approvals": len(approved), "calls run": len(reached), "asked again": len(rejected)})
    home.verify()
