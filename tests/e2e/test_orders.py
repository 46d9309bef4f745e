"""What a person lets through or stops beyond one call: grants, pauses and extra quota, by the installed commands."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from .house import Agent, Home, call, request, tell_of, until

RULES = """
backends: {work: {}}
agents:
  ann:
    backends:
      work: {allowed: true, approval_required: [post], rate_limits: {work: 2/day}}
  bob: {backends: {work: {allowed: true}}}
approval: {max_grant: %s}
"""


@pytest.fixture
def ann(homes: Callable[..., Home]) -> tuple[Home, Agent]:
    home = homes(RULES % "1h")
    return home, home.count(agent="ann").handshake()


def approve(home: Home, *options: str, status: int = 0) -> Any:
    (ticket,) = home.pending()
    return home.json("approve", "--yes", ticket["id"], *options, env=home.approver(), status=status)


def asks_a_person(home: Home, agent: Agent, frame: dict[str, Any]) -> None:
    """The call waits, and is rejected."""
    agent.says(frame)
    (ticket,) = home.pending()
    home.decide(ticket["id"], False)
    assert tell_of(agent.answer(frame["id"])) == (-32004, "rejected")


def restarts(home: Home) -> None:
    """The daemon is killed, and another one comes."""
    was = home.pid
    os.kill(was, signal.SIGKILL)
    until(lambda: was not in home.processes(), "its end")  # until then it has the lock
    home.spawn()
    until(lambda: (found := home.answers()) and found["pid"] != was, "another daemon")


def test_an_approval_is_remembered_for_what_was_said_and_until_it_is_revoked(ann: tuple[Home, Agent]) -> None:
    home, agent = ann
    agent.says(call(1, "post", key="k1", to="here", text="one"))
    (done,) = approve(home, "--for", "15m", "--any", "key", "--any", "text", "--uses", "3", "--note", "a batch")
    assert "result" in agent.answer(1)
    (row,) = home.json("grants", "list")
    assert row["id"] == done["grant"]
    assert (row["agent_id"], row["backend_id"], row["tool_name"], row["free"], row["uses_left"]) == (
        "ann", "work", "post", ["key", "text"], 3,
    )  # fmt: skip
    assert json.loads(row["arguments"])["to"] == "here"
    assert "result" in agent.asks(call(2, "post", key="k2", to="here", text="two"))
    asks_a_person(home, agent, call(3, "post", key="k3", to="there", text="three"))
    asks_a_person(home, agent, call(4, "post", key="k4", to="here", text="four", more=True))
    shown = home.json("audit", "search", "--limit", "50")
    rows = {json.loads(row["arguments"]).get("key"): row for row in shown}
    assert (rows["k2"]["approval_result"], rows["k2"]["ticket"]) == ("granted", row["id"])
    assert rows["k2"]["approver"] == row["by"]

    restarts(home)
    assert [each["uses_left"] for each in home.json("grants")] == [2]
    again = home.count(agent="ann").handshake()
    assert "result" in again.asks(call(5, "post", key="k5", to="here", text="five"))
    (gone,) = home.json("grants", "revoke", row["id"].lower(), env=home.approver())
    assert gone["id"] == row["id"]
    asks_a_person(home, again, call(6, "post", key="k6", to="here", text="six"))
    assert home.json("grants") == []
    assert home.aegis("grants", "revoke", row["id"], env=home.approver()).returncode == 1
    assert home.reached() == ["k1", "k2", "k5"]
    told = [
        (record["decision"], record["ticket"]) for record in home.records("approval") if record["ticket"] == row["id"]
    ]
    assert told == [("granted", row["id"]), ("revoked", row["id"])]
    home.verify()


def test_calls_that_wait_go_on_with_the_grant_that_is_made_for_one_of_them(ann: tuple[Home, Agent]) -> None:
    home, agent = ann
    agent.says(*(call(at, "post", key=f"k{at}", to="here") for at in range(4)), call(9, "post", key="k9", to="there"))
    tickets = home.pending(5)
    done = home.json(
        "approve", "--yes", tickets[1]["id"], "--for", "10m", "--any", "key", "--uses", "2", env=home.approver()
    )
    assert done[0]["grant"]
    for at in (0, 1, 2):
        assert "result" in agent.answer(at)
    left = home.pending(2)  # a third use was not given, and the last one is of another shape
    assert [json.loads(ticket["arguments"])["key"] for ticket in left] == ["k3", "k9"]
    assert sorted(home.reached()) == ["k0", "k1", "k2"]


def test_a_grant_that_cannot_be_given_decides_nothing(ann: tuple[Home, Agent]) -> None:
    home, agent = ann
    agent.says(call(1, "post", key="k1"))
    approve(home, "--for", "2h", status=1)
    approve(home, "--for", "5m", "--any", "kye", status=1)
    assert len(home.pending()) == 1
    # An agent's shell gives none either, nor ends one, nor pauses, nor lets anything go on.
    (ticket,) = home.pending()
    for words in (
        ("approve", "--yes", ticket["id"], "--for", "5m"), ("grants", "revoke", "--all"), ("pause",), ("resume",),
        ("limits", "grant", "--agent", "ann", "--backend", "work", "--tool", "work"),
    ):  # fmt: skip
        refused = home.aegis(*words)
        assert refused.returncode == 1, words
        assert "AEGIS_APPROVER_KEY" in refused.stderr
    home.configure(RULES % "0s")
    assert home.aegis("daemon", "reload").returncode == 0
    approve(home, "--for", "1s", status=1)
    assert "result" not in agent.answers
    home.decide(ticket["id"], False)


def test_a_revoked_grant_holds_up_what_stands_in_line(homes: Callable[..., Home]) -> None:
    rules = RULES.replace(
        "agents:", "queue: {work: {enabled: true, delay_min: 0s, delay_max: 0s, bypass_tools: [release]}}\nagents:"
    )
    home = homes(rules % "1h")
    agent = home.count(agent="ann").handshake()
    agent.says(call(1, "post", key="k1"))
    approve(home, "--for", "15m", "--any", "key")
    assert "result" in agent.answer(1)
    agent.says(call(2, "hold", key="busy"), call(3, "post", key="k3"))
    until(lambda: "busy" in home.reached() and len(home.json("queue", "list")) == 2, "a call in line")
    home.json("grants", "revoke", "--all", env=home.approver())
    agent.asks(call(4, "release", key="busy"))
    (ticket,) = home.pending()
    assert json.loads(ticket["arguments"])["key"] == "k3"
    home.decide(ticket["id"])
    assert "result" in agent.answer(3)


def test_a_paused_agent_does_nothing_until_a_person_lets_it_go_on(ann: tuple[Home, Agent]) -> None:
    home, agent = ann
    bob = home.count(agent="bob").handshake()
    agent.says(call("flight", "hold", key="flight"), call("held", "post", key="held"))
    (ticket,) = home.pending()
    until(lambda: "flight" in home.reached(), "the call in flight")
    person = home.approver()
    unknown = home.aegis("pause", "an", env=person)
    assert unknown.returncode == 1
    assert "did you mean `ann`?" in unknown.stderr
    made = home.json("pause", "ann", "--note", "what is it doing", env=person)
    assert (made["agent_id"], made["note"]) == ("ann", "what is it doing")
    refused = agent.asks(call(1, "work", key="no"))
    assert tell_of(refused) == (-32001, "paused")
    assert "nothing was executed" in refused["error"]["message"]
    assert "what is it doing" not in json.dumps(refused)
    assert "result" in agent.asks(request(2, "tools/list"))
    assert "result" in agent.asks(request(3, "ping"))
    home.decide(ticket["id"])
    assert tell_of(agent.answer("held")) == (-32001, "paused")
    assert "result" in bob.asks(call(4, "work", key="bob"))
    assert home.json("status")["paused"] == [made]
    lines = home.aegis("status").stdout.splitlines()
    assert lines[1].startswith("PAUSED")
    assert "what is it doing" in lines[1]

    # What was in flight is left alone, and has not ended meanwhile.
    assert "flight" not in agent.answers
    home.json("resume", "ann", env=person)
    agent.says(call("free", "release", key="flight"))
    assert "result" in agent.answer("flight")

    home.json("pause", "ann", env=person)
    restarts(home)
    again = home.count(agent="ann").handshake()
    assert tell_of(again.asks(call(1, "work", key="no-2"))) == (-32001, "paused")
    other = home.aegis("resume", env=person)
    assert other.returncode == 1
    assert "aegis resume ann" in other.stderr
    home.json("resume", "ann", env=person)
    assert "result" in again.asks(call(2, "work", key="yes"))
    assert home.json("status")["paused"] == []
    assert not {"no", "no-2", "held"} & set(home.reached())
    assert [(record["action"], record["detail"]) for record in home.records("admin") if "ann" in record["detail"]] == [
        ("pause", "ann: what is it doing"), ("resume", "ann: what is it doing"), ("pause", "ann"), ("resume", "ann"),
    ]  # fmt: skip


def test_the_panic_switch_stops_everybody_in_observe_mode_too(homes: Callable[..., Home]) -> None:
    home = homes("mode: observe\n" + RULES % "1h")
    agents = [home.count(agent=name).handshake() for name in ("ann", "bob")]
    home.json("pause", env=home.approver())
    for agent in agents:
        assert tell_of(agent.asks(call(1, "work", key="no"))) == (-32001, "paused")
    assert home.aegis("resume", "bob", env=home.approver()).returncode == 1
    home.json("resume", env=home.approver())
    for agent in agents:
        assert "result" in agent.asks(call(2, "work", key=f"yes-{id(agent)}"))
    assert "no" not in home.reached()


def test_a_limit_lets_one_more_through_and_then_no_more(ann: tuple[Home, Agent]) -> None:
    home, agent = ann
    person = home.approver()
    for at in range(2):
        assert "result" in agent.asks(call(at, "work", key=f"k{at}"))
    assert tell_of(agent.asks(call(2, "work", key="no"))) == (-32002, "rate_limited")
    where = ("--backend", "work", "--tool", "work")
    for words, text in (
        ((*where, "--global"), "no limit over all agents"),
        ((*where, "--agent", "bob"), "there is one of `ann`"),
        ((*where, "--agent", "ann", "--for", "2d"), "longer than the limit's window"),
    ):
        said = home.aegis("limits", "grant", *words, env=person)
        assert said.returncode == 1
        assert text in said.stderr
    made = home.json("limits", "grant", *where, "--agent", "ann", "--for", "1h", "--note", "just once", env=person)
    assert (made["max_count"], made["extra"], made["count"]) == (2, 1, 1)
    (row,) = home.json("limits", "--agent", "ann")
    assert (row["current"], row["max_count"], row["extra"]) == (2, 2, 1)
    assert "+1" in home.aegis("limits").stdout

    restarts(home)
    again = home.count(agent="ann").handshake()
    assert "result" in again.asks(call(1, "work", key="k3"))
    refused = again.asks(call(2, "work", key="no-2"))
    assert tell_of(refused) == (-32002, "rate_limited")
    assert "3/3 calls" in refused["error"]["message"]
    assert home.reached() == ["k0", "k1", "k3"]
    (record,) = [record for record in home.records("admin") if record["action"] == "quota"]
    assert "just once" in record["detail"]
