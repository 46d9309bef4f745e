"""What the daemon copies elsewhere: all of the log, whatever is killed or away, and never at a call's cost."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .house import Home, call, until

RULES = """
backends: {work: {}}
agents: {default: {backends: {work: {allowed: true, tool_denylist: [burn]}}}}
audit:
  exports: {FILES}
"""
TOKEN = "12345678-1234-1234-1234-1234567890ab"


def rules(**exports: Any) -> str:
    return RULES.replace("{FILES}", json.dumps(exports))


def uids(path: Path) -> list[str]:
    return [json.loads(line)["uid"] for line in path.read_text().splitlines()] if path.exists() else []


def seqs(path: Path) -> list[int]:
    return [int(uid.rpartition("-")[2]) for uid in uids(path)]


def expected(home: Home) -> list[int]:
    """The records that are events: every one but what a call began with."""
    return [one["seq"] for one in home.records() if one["kind"] not in ("intent", "hold") and not one.get("would")]


def row(home: Home, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in home.json("audit", "exports") if one["name"] == name)
    return found


def shipper(home: Home) -> list[int]:
    return [pid for pid, command in home.processes().items() if "exports.ship" in command]


def test_a_file_has_the_whole_log_over_kills_and_restarts(homes: Callable[..., Home]) -> None:
    home = homes(rules(file={"type": "jsonl", "path": "out/log.jsonl", "format": "aegis"}))
    out = home.dir / "out" / "log.jsonl"
    agent = home.count(agent="default").handshake()
    for at in range(20):
        agent.asks(call(at, "burn" if at % 5 == 0 else "work", key=f"k{at}"))
        if at % 6 == 0:
            for pid in shipper(home):
                os.kill(pid, signal.SIGKILL)
    until(lambda: row(home, "file")["state"] == "ok" and not row(home, "file")["lag"], "sent")
    home.verify()
    until(lambda: seqs(out) == expected(home), "whole")
    agent.close()
    before = len(uids(out))
    os.kill(home.pid, signal.SIGKILL)
    until(lambda: home.answers() is None, "killed")
    home.start()
    until(lambda: len(uids(out)) > before and seqs(out) == expected(home), "whole again")
    home.stop()
    assert seqs(out) == expected(home)
    assert not shipper(home)


def test_an_export_that_is_away_costs_calls_nothing_and_is_told_everywhere(homes: Callable[..., Home]) -> None:
    deaf = socket.create_server(("127.0.0.1", 0))  # takes connections, and never answers
    address = f"127.0.0.1:{deaf.getsockname()[1]}"
    home = homes(rules(siem={"type": "hec", "url": f"http://{address}", "token": TOKEN, "timeout": "1s"}))
    agent = home.count(agent="default").handshake()
    took = []
    for at in range(30):
        began = time.monotonic()
        agent.asks(call(at, "work", key=f"k{at}"))
        took.append(time.monotonic() - began)
    until(lambda: row(home, "siem")["state"] == "trouble", "in trouble")
    assert "did not answer within 1 s" in row(home, "siem")["trouble"]
    assert sorted(took)[15] < 0.5, "half of the time that the export waits in vain"
    status = home.json("status")
    assert any("`siem`" in text and "behind" in text for text in status["warnings"])
    assert status["audit"]["healthy"]
    for told in (
        home.aegis("status").stdout,
        home.aegis("audit", "exports").stdout,
        home.aegis("config", "show").stdout,
    ):
        assert TOKEN not in told
    test = home.json("audit", "exports", "test", "siem", status=1, env=home.approver())
    assert not test["ok"]
    assert test["detail"] == "it did not answer within 1 s"
    agent.close()
    home.stop()
    deaf.close()


def test_a_reload_changes_where_the_log_goes(homes: Callable[..., Home]) -> None:
    home = homes(rules())
    assert shipper(home) == [], "nobody pays for what is not configured"
    assert home.json("audit", "exports") == []
    one, two = home.dir / "one.jsonl", home.dir / "two.jsonl"
    home.configure(rules(one={"type": "jsonl", "path": str(one)}))
    assert home.aegis("daemon", "reload").returncode == 0
    until(lambda: one.exists() and row(home, "one")["state"] == "ok" and not row(home, "one")["lag"], "sent")
    home.configure(rules(two={"type": "jsonl", "path": str(two), "format": "aegis"}))
    assert home.aegis("daemon", "reload").returncode == 0
    until(lambda: two.exists() and row(home, "two")["state"] == "ok" and seqs(two) == expected(home), "sent")
    assert home.json("audit", "exports", "test", "two", env=home.approver())["ok"]
    assert "-test-" in uids(two)[-1]
    home.configure(rules())
    assert home.aegis("daemon", "reload").returncode == 0
    until(lambda: shipper(home) == [], "ended")


def test_the_log_is_written_down_once_in_every_format(homes: Callable[..., Home]) -> None:
    home = homes(rules())
    agent = home.count(agent="default").handshake()
    for at in range(4):
        agent.asks(call(at, "burn" if at == 2 else "work", key=f"k{at}"))
    agent.close()
    for format in ("ocsf", "aegis", "cef", "csv"):
        done = home.aegis("audit", "export", "--format", format, "--tool", "*")
        assert done.returncode == 0, done.stderr
        told = [line for line in done.stdout.splitlines() if "k3" in line]
        assert len(told) == 1
    whole = home.aegis("audit", "export", "--format", "aegis").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in whole] == expected(home)
    only = home.aegis("audit", "export", "--format", "aegis", "--tool", "bur*", "--agent", "def*").stdout.splitlines()
    assert [json.loads(line)["exec_status"] for line in only] == ["denied"]
    assert home.aegis("audit", "export", "--until", "2001-01-01").stdout == ""
    path = home.dir / "down.jsonl"
    assert home.aegis("audit", "export", "-o", str(path)).returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_text().splitlines()) == len(whole)
    again = home.aegis("audit", "export", "-o", str(path))
    assert (again.returncode, again.stdout) == (2, "")
    assert "is there already" in again.stderr
    assert home.aegis("audit", "export", "--format", "xml").returncode == 2
