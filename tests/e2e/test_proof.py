"""A daemon enforces what it has seen itself refuse; where it cannot see that, it executes nothing and says so."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import Any

from .house import Home, call, tell_of, until

RULES = """\
mode: observe  # for now
backends: {work: {}}
agents:
  default:
    backends:
      work: {allowed: true, tool_denylist: [remove]}
"""
WISH = "proof:\n  - {agent: default, call: work.post, arguments: {key: secret}}\n"


def health(home: Home) -> dict[str, Any]:
    address = home.ask("status")["http"]
    with urllib.request.urlopen(f"http://{address}/health", timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def modes(home: Home) -> list[str]:
    return [record["detail"] for record in home.records("admin") if record["action"] == "mode"]


def test_enforcing_begins_once_what_must_be_refused_is_seen_to_be(homes: Callable[..., Home]) -> None:
    home = homes(RULES + WISH)
    agent = home.count().handshake()
    assert "result" in agent.asks(call(1, "remove", key="a"))
    agent.done()
    until(lambda: not home.ask("status")["sessions"], "the end of the session")
    shown = home.ask("mode")
    assert (shown["mode"], [(row["stage"], row["count"]) for row in shown["would"]]) == ("observe", [("acl", 1)])
    status = home.json("status")
    assert status["would_24h"] == 1
    assert any("proof.0" in warning for warning in status["warnings"])
    (row,) = home.json("audit", "search", "--status", "would")
    assert (row["tool_name"], row["exec_status"]) == ("remove", "success")

    file = home.dir / "aegis.yaml"
    before = file.read_text()
    refused = home.aegis("mode", "enforce", "--yes")
    assert refused.returncode == 1
    assert "what must be refused is not" in refused.stderr
    assert "proof.0" in refused.stderr
    assert file.read_text() == before
    by_hand = before.replace("mode: observe", "mode: enforce")
    file.write_text(by_hand)
    os.kill(home.pid, signal.SIGHUP)
    until(lambda: b"the configuration was not reloaded" in (home.dir / "daemon.log").read_bytes(), "SIGHUP")
    assert home.ask("mode")["mode"] == "observe"

    file.write_text(before.replace(f"{WISH}", "deny: {tools: [post]}\n" + WISH))
    done = home.json("mode", "enforce", "--yes")
    assert (done["changed"], done["reloaded"]) == (True, True)
    assert done["proof"]["kinds"]["proof"] == 1
    assert file.read_text().startswith("mode: enforce  # for now\n")
    assert len(modes(home)) == 1
    assert modes(home)[0].startswith("observe to enforce; ")
    agent = home.count().handshake()
    for number, tool in enumerate(("post", "remove")):
        code, _ = tell_of(agent.asks(call(number, tool, key="b")))
        assert code == -32001
    assert home.reached() == ["a"]
    no_person = home.aegis("mode", "observe", "--yes")
    assert no_person.returncode == 1
    assert "is a governed agent or was started by one" in no_person.stderr
    home.verify()


def test_a_daemon_that_cannot_prove_its_rules_executes_nothing_until_it_can(homes: Callable[..., Home]) -> None:
    home = homes(RULES.replace("observe", "enforce") + WISH)
    agent = home.count().handshake()
    answer = agent.asks(call(1, "post", key="a"))
    assert tell_of(answer) == (-32603, "unproven")
    assert "aegis could not prove that its rules hold" in answer["error"]["message"]
    assert home.reached() == []
    assert health(home)["status"] == "degraded"
    told = home.aegis("status")
    assert told.returncode == 1
    assert "UNPROVEN" in told.stdout
    assert "proof.0" in told.stdout
    assert [record["action"] for record in home.records("admin")][:1] == ["unproven"]

    home.configure(RULES.replace("observe", "enforce"))
    home.ask("reload")
    assert "result" in agent.asks(call(2, "post", key="b"))
    assert health(home)["status"] == "ok"
    assert home.ask("status")["proof"]["healthy"] is True
    assert "proven" in [record["action"] for record in home.records("admin")]

    home.configure(RULES.replace("observe", "enforce") + WISH)
    done = home.aegis("daemon", "reload")
    assert done.returncode == 1
    assert "the old configuration stays in force" in done.stderr
    assert "result" in agent.asks(call(3, "post", key="c"))  # by the old rules
    home.verify()


def test_a_log_that_was_changed_is_seen_at_the_start(homes: Callable[..., Home]) -> None:
    home = homes(RULES)
    agent = home.count().handshake()
    assert "result" in agent.asks(call(1, "post", key="a"))
    agent.done()
    home.stop()

    def rewrite(old: str, new: str) -> None:
        with closing(sqlite3.connect(home.dir / "audit.db", isolation_level=None)) as db:
            first = "(SELECT min(seq) FROM records WHERE instr(record, ?) > 0)"
            found = db.execute(
                f"UPDATE records SET record = replace(record, ?, ?) WHERE seq = {first}", (old, new, old)
            )
            assert found.rowcount == 1

    rewrite('"name":"post"', '"name":"look"')
    home.launch()
    agent = home.count().handshake()
    assert tell_of(agent.asks(call(1, "post", key="b"))) == (-32603, "unproven")
    assert "the log is not whole" in home.ask("status")["proof"]["detail"]
    agent.done()
    home.stop()
    rewrite('"name":"look"', '"name":"post"')
    home.launch()
    agent = home.count().handshake()
    assert "result" in agent.asks(call(1, "post", key="c"))
    assert home.reached() == ["a", "c"]
    home.verify()
