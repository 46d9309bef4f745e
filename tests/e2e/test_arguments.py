"""Rules on arguments, budgets and redaction, from a client to a real server, over a restart and a kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from .house import Agent, Home, call, tell_of, until

CONFIG = """
backends: {work: {}}
agents: {ann: {backends: {work: {allowed: true}}}}
constraints:
  work.post: {budgets: {ms: {max: 500, window: 24h}}}
  say: {arguments: {text: {matches: "[a-z ]*", max_length: 20}}}
transforms:
  say: {redact: ["$.request.password"], unreadable: pass}
"""


def spend(agent: Agent, id: int, amount: Any, bound: float = 20.0) -> dict[str, Any]:
    return agent.asks(call(id, "post", key=f"spend-{id}", ms=amount), bound)


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_what_was_spent_is_still_spent_after_the_daemon_was_gone(homes: Callable[..., Home], how: str) -> None:
    home = homes(CONFIG)
    ann = home.count(agent="ann", way="relay").handshake()
    assert "result" in ann.asks(call(1, "POST", key="spend-1", ms=300))  # the same to the rule, and to some servers
    refused = spend(ann, 2, 200.5)
    assert tell_of(refused) == (-32002, "budget_exceeded")
    assert "200 of 500 is left in the 24h0m0s window (all agents together)" in refused["error"]["message"]
    ann.done()
    assert ann.ends() == 0  # a shim whose daemon is gone would start the next one itself
    if how == "kill":
        os.kill(home.pid, signal.SIGKILL)
        until(lambda: home.answers() is None, "its end")
        home.start()
    else:
        assert home.aegis("daemon", "restart").returncode == 0
    ann = home.count(agent="ann", way="relay").handshake()
    assert tell_of(spend(ann, 3, 200.5)) == (-32002, "budget_exceeded")
    assert "result" in spend(ann, 4, 200)
    assert tell_of(spend(ann, 5, 1)) == (-32002, "budget_exceeded")
    assert home.reached() == ["spend-1", "spend-4"]


def test_a_rule_refuses_before_the_server_hears_and_the_log_keeps_no_secret(homes: Callable[..., Home]) -> None:
    home = homes(CONFIG)
    ann = home.count(agent="ann", way="relay").handshake()
    code, reason = tell_of(ann.asks(call(1, "say", key="bad", text="DROP", password="hunter2")))
    assert (code, reason) == (-32001, "constraint")
    assert "result" in ann.asks(call(2, "say", key="good", text="hello", password="hunter2"))
    assert home.reached() == ["good"]
    kept = [str(body) for (body,) in home.rows("SELECT CAST(body AS TEXT) FROM bodies")]
    assert any("[redacted]" in body for body in kept)
    assert not any("hunter2" in body for body in kept)
