"""Rules of two agents on one backend: what reaches the server, in which order, and what the log says of it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from .house import WAYS, Agent, Home, call, note, request, tell_of, until

SHARED = """
backends: {work: {}}
queue:
  work:
    enabled: true
    delay_min: 200ms
    delay_max: 300ms
    max_pending: 8
    bypass_tools: [say, release]
    global_rate_limits:
      post: {window: 1h, max_count: 3}
agents:
  ann:
    backends:
      work:
        allowed: true
        tool_denylist: [leave, "fl*"]
        rate_limits: {post: 1/day, fail: 1/hour}
        approval_required: [big]
  bob:
    backends:
      work: {allowed: true, approval_required: [big]}
approval: {timeout: 10m}
"""
LIMITED = """
backends: {work: {}}
agents:
  ann: {backends: {work: {allowed: true}}}
  bob: {backends: {work: {allowed: true}}}
  cat: {backends: {work: {allowed: true, rate_limits: {post: {window: 24h, max_count: 10}}}}}
queue: {work: {enabled: false, global_rate_limits: {work: {window: 24h, max_count: 10}}}}
audit: {durability: %s}
"""


def progressing(frame: dict[str, Any], token: str) -> dict[str, Any]:
    return {**frame, "params": {**frame["params"], "_meta": {"progressToken": token}}}


@pytest.fixture
def shared(homes: Callable[..., Home]) -> tuple[Home, Agent, Agent]:
    home = homes(SHARED)
    return home, home.count(agent="ann", way="relay").handshake(), home.count(agent="bob").handshake()


def test_two_agents_share_a_backend_by_its_rules(shared: tuple[Home, Agent, Agent]) -> None:
    home, ann, bob = shared

    # What they see: constraints in the descriptions, nothing of what is denied.
    seen = {}
    for name, agent in (("ann", ann), ("bob", bob)):
        tools = agent.asks(request("list", "tools/list"))["result"]["tools"]
        seen[name] = {tool["name"]: tool["description"] for tool in tools}
    assert seen["ann"]["post"] == "[Rate:1/1d|GlobalRate:3/1h] As work"
    assert seen["bob"]["post"] == "[GlobalRate:3/1h] As work"
    assert seen["bob"]["big"].startswith("[ApprovalRequired] As work")
    assert seen["bob"].keys() - seen["ann"].keys() == {"leave", "flood"}

    # Access, then the shared limit before the agent's own; only what succeeded counts.
    code, reason = tell_of(ann.asks(call(1, "leave", key="denied")))
    assert (code, reason) == (-32001, "not_allowed")
    assert "result" in ann.asks(call(2, "post", key="ann-1"))
    refused = ann.asks(call(3, "post", key="ann-2"))
    assert tell_of(refused) == (-32002, "rate_limited")
    assert "1/1 calls in 24h0m0s window (this agent)" in refused["error"]["message"]
    assert 86_000_000 < refused["error"]["data"]["retry_after_ms"] <= 86_400_000
    for at in (1, 2):
        assert ann.asks(call(f"fail{at}", "fail", key=f"fail-{at}"))["result"]["isError"]
    assert "result" in bob.asks(call(1, "post", key="bob-1"))
    assert "result" in bob.asks(call(2, "post", key="bob-2"))
    refused = bob.asks(call(3, "post", key="bob-3"))
    assert "3/3 calls in 1h0m0s window (all agents together)" in refused["error"]["message"]
    assert "all agents" in ann.asks(call(4, "post", key="ann-3"))["error"]["message"]

    # The lane: in the order in which they came, one at a time; bypass tools go past it.
    for at in range(3):
        ann.asks(request(f"p{at}", "ping"))  # so that ann's frame is read before bob's is written
        ann.says(call(f"a{at}", "work", key=f"lane-a{at}", ms=50))
        ann.asks(request(f"q{at}", "ping"))
        bob.says(call(f"b{at}", "work", key=f"lane-b{at}", ms=50))
        bob.asks(request(f"q{at}", "ping"))
    rows = home.json("queue", "list")
    assert len(rows) >= 4
    assert [row["position"] for row in rows] == list(range(len(rows)))
    bob.asks(call("past", "say", key="past", text=""))
    for at in range(3):
        ann.answer(f"a{at}")
        bob.answer(f"b{at}")
    order = [key for key in home.reached() if key.startswith("lane")]
    assert order == ["lane-a0", "lane-b0", "lane-a1", "lane-b1", "lane-a2", "lane-b2"]
    reached = home.reached()
    assert reached.index("past") < reached.index("lane-b2")
    times = {words[1]: float(words[3]) for words in home.logged() if words[0] == "call"}
    gaps = [times[later] - times[earlier] for earlier, later in pairwise(order)]
    assert min(gaps) >= 0.25  # the work itself, and the least delay from its completion on

    # A person: what waits for one holds no place in the order.
    ann.says(progressing(call("big", "big", key="asked", size=10), "t"))
    (ticket,) = home.pending()
    assert ann.hears("notifications/progress")["params"]["message"] == f"waiting for approval {ticket['id']}"
    assert (ticket["agent_id"], ticket["tool_name"], ticket["waiting"]) == ("ann", "big", True)
    assert json.loads(ticket["arguments"]) == {"key": "asked", "size": 10}
    assert "result" in bob.asks(call("meanwhile", "work", key="meanwhile"))
    home.decide(ticket["id"])
    assert "result" in ann.answer("big")
    assert home.reached()[-2:] == ["meanwhile", "asked"]
    bob.says(call("no", "big", key="rejected", size=1))
    (ticket,) = home.pending()
    home.decide(ticket["id"], approve=False)
    assert tell_of(bob.answer("no")) == (-32004, "rejected")

    # What the log says.
    assert ann.close() == bob.close() == 0
    rows = {json.loads(row["arguments"])["key"]: row for row in home.json("audit", "search", "key", "--limit", "500")}
    verdicts = {
        key: (row["agent_id"], row["exec_status"], row["stage"], row["rate_limit_result"], row["approval_result"])
        for key, row in rows.items()
        if not key.startswith("lane")
    }
    assert verdicts == {
        "denied": ("ann", "denied", "acl", "none", "not_required"),
        "ann-1": ("ann", "success", "", "allowed", "not_required"),
        "ann-2": ("ann", "denied", "rate_limit", "denied", "not_required"),
        "ann-3": ("ann", "denied", "rate_limit", "denied", "not_required"),
        "fail-1": ("ann", "error", "", "allowed", "not_required"),
        "fail-2": ("ann", "error", "", "allowed", "not_required"),
        "bob-1": ("bob", "success", "", "allowed", "not_required"),
        "bob-2": ("bob", "success", "", "allowed", "not_required"),
        "bob-3": ("bob", "denied", "rate_limit", "denied", "not_required"),
        "past": ("bob", "success", "", "none", "not_required"),
        "asked": ("ann", "success", "", "none", "approved"),
        "meanwhile": ("bob", "success", "", "none", "not_required"),
        "rejected": ("bob", "denied", "approval", "none", "rejected"),
    }
    assert rows["asked"]["approver"] == rows["rejected"]["approver"] != ""
    assert rows["asked"]["ticket"]
    assert rows["asked"]["policy_id"].startswith("agents.ann.backends.work.approval_required")
    assert rows["lane-b2"]["queue_position"] >= 1
    assert rows["lane-b2"]["queue_wait_ms"] > 0
    assert rows["ann-1"]["consumed"]
    assert not rows["fail-1"]["consumed"]
    reached = home.reached()
    assert sorted(key for key, row in rows.items() if row["exec_status"] != "denied") == sorted(reached)
    assert home.intents().keys() == set(reached)
    home.verify()


def test_a_call_that_is_given_up_in_the_queue_never_runs(shared: tuple[Home, Agent, Agent]) -> None:
    home, ann, bob = shared
    ann.says(call("first", "hold", key="first"))
    until(lambda: home.reached() == ["first"], "the first call")
    ann.says(call("second", "work", key="second"))
    bob.says(call("third", "work", key="third"))
    until(lambda: len(home.ask("queue")) == 3, "a queue")
    ann.says(note("notifications/cancelled", requestId="second"))
    until(lambda: len(home.ask("queue")) == 2, "one less")
    bob.kill()  # a client that goes away takes its call with it
    until(lambda: len(home.ask("queue")) == 1, "one less")
    ann.asks(call("free", "release", key="first"))
    assert "result" in ann.answer("first")
    assert "result" in ann.asks(call("fourth", "work", key="fourth"))
    assert home.reached() == ["first", "first", "fourth"]
    assert "second" not in ann.answers
    said = {row["request_id"]: row["exec_status"] for row in home.json("audit", "search", "key")}
    assert said == {
        '"first"': "success",
        '"free"': "success",
        '"second"': "denied",
        '"third"': "denied",
        '"fourth"': "success",
    }


def test_a_full_queue_refuses_and_keeps_nobody_waiting(shared: tuple[Home, Agent, Agent]) -> None:
    home, ann, _ = shared
    ann.says(*(call(at, "work", key=f"k{at}", ms=10) for at in range(12)))
    for at in (9, 10, 11):
        assert tell_of(ann.answer(at)) == (-32003, "queue_full")
    for at in range(9):
        assert "result" in ann.answer(at)
    assert home.reached() == [f"k{at}" for at in range(9)]


def test_nobody_decides_in_time(homes: Callable[..., Home]) -> None:
    home = homes(SHARED.replace("timeout: 10m", "timeout: 300ms"))
    ann = home.count(agent="ann").handshake()
    assert tell_of(ann.asks(call(1, "big", key="slow", size=1))) == (-32004, "approval_timeout")
    assert home.ask("pending") == []
    assert home.reached() == []
    (row,) = home.json("audit", "search", "slow")
    assert (row["approval_result"], row["stage"]) == ("timeout", "approval")


def test_in_the_modern_era_a_refused_tool_call_is_a_result(shared: tuple[Home, Agent, Agent]) -> None:
    home, _, _ = shared
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    ann = home.count(agent="ann")
    denied = ann.asks(request(1, "tools/call", name="leave", arguments={}, _meta=meta))["result"]
    assert denied["isError"]
    assert denied["resultType"] == "complete"
    assert denied["_meta"]["aegis/denial"]["code"] == -31001
    assert denied["_meta"]["aegis/denial"]["call_id"][:12] in denied["content"][0]["text"]
    missing = ann.asks(request(2, "tools/call", name="never-was", arguments={}, _meta=meta))
    assert "result" in missing  # the server's own word: what is not denied is its business
    hidden = ann.asks(request(3, "tools/call", name="flood", arguments={}, _meta=meta))["result"]
    assert hidden["content"][0]["text"].split(";")[0] == "the tool `flood` is not available to this agent"


def test_observe_lets_pass_what_rules_refuse_and_says_so(homes: Callable[..., Home]) -> None:
    home = homes("mode: observe\n" + SHARED)
    ann = home.count(agent="ann").handshake()
    for at in range(2):
        assert "result" in ann.asks(call(at, "post", key=f"post-{at}"))
    assert "result" in ann.asks(call("d", "flood", key="denied", count=0))
    assert "result" in ann.asks(call("a", "big", key="asked", size=1))
    rows = {json.loads(row["arguments"])["key"]: row for row in home.json("audit", "search", "key")}
    assert {key: (row["exec_status"], row["would"]) for key, row in rows.items()} == {
        "post-0": ("success", False),
        "post-1": ("success", True),
        "denied": ("success", True),
        "asked": ("success", True),
    }
    home.verify()


@pytest.mark.parametrize("durability", ["full", pytest.param("process", marks=pytest.mark.full)])
def test_two_hundred_calls_at_once_against_a_limit_of_ten_let_ten_through(
    homes: Callable[..., Home], durability: str
) -> None:
    home = homes(LIMITED % durability)

    def flood(sessions: list[tuple[str, str]], each: int, tool: str, round: str) -> int:
        """How many of `each` calls from each (agent, way) succeed."""
        agents = [home.count(agent=name, way=way).handshake() for name, way in sessions]
        for at, agent in enumerate(agents):
            agent.says(*(call(n, tool, key=f"{round}-{at}-{n}", ms=20) for n in range(each)))
        good = 0
        for agent in agents:
            for n in range(each):
                answer = agent.answer(n)
                assert "result" in answer or tell_of(answer) == (-32002, "rate_limited"), answer
                good += "result" in answer
            assert agent.close() == 0
        return good

    one = [("cat", "handover")]
    many = [(name, way) for name in ("ann", "bob") for way in WAYS]
    assert flood(one, 200, "post", "one") == 10
    assert flood(many, 50, "work", "many") == 10
    assert len(home.reached()) == 20

    # The windows outlive the daemon, however it ends.
    home.stop()
    home.start()
    assert flood(one, 20, "post", "stopped-one") == flood(many[1:3], 5, "work", "stopped-many") == 0
    os.kill(home.pid, signal.SIGKILL)
    until(lambda: home.answers() is None, "its end")
    home.start()
    assert flood(one, 20, "post", "killed-one") == flood(many[1:3], 5, "work", "killed-many") == 0
    assert len(home.reached()) == 20
    rows = {(row["scope"], row["tool"]): row for row in home.json("limits")}
    assert {key: (row["current"], row["reserved"], row["max_count"]) for key, row in rows.items()} == {
        ("global", "work"): (10, 0, 10),
        ("agent", "post"): (10, 0, 10),
    }
    home.verify()
