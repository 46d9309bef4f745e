"""`aegis policy replay` tells which recorded calls would be decided otherwise, from the log and files alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.audit.record import Denied, Intent, Outcome, Record

from .conftest import Aegis
from .test_audit import record

FILE = """\
backends: {files: {}, mail: {}}
agents:
  bot: {backends: {files: {allowed: true, approval_required: [pay]}}}
"""
STORY = [
    ("read", {"path": "/data/a"}, ""),
    ("read", {"path": "/data/a"}, ""),
    ("read", {"path": "/etc/\x1b[2J"}, ""),
    ("rm", {}, "acl"),
    ("pay", {"amount": 5}, "approved"),
    ("pay", {"amount": "[redacted]"}, "approved"),
    ("read", {}, "rate_limit"),
]


def calls() -> list[tuple[Record, bytes | None]]:
    made: list[tuple[Record, bytes | None]] = []
    for number, (tool, arguments, end) in enumerate(STORY, 1):
        facts: dict[str, Any] = {"agent": "bot", "backend": "files", "method": "tools/call", "name": tool}
        body = json.dumps(arguments, separators=(",", ":")).encode()
        call = f"{number:032x}"
        if end in ("", "approved"):
            made.append((Intent(call=call, approval=end or "not_required", **facts), body))
            made.append((Outcome(call=call, status="success"), b"{}"))
        else:
            made.append((Denied(call=call, stage=end, policy="a \x1b[2J rule", **facts), body))
    return made


@pytest.fixture(scope="module")
def written() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="aegis-") as directory:
        asyncio.run(record(directory, calls()))
        yield f"{directory}/audit.db"


@pytest.fixture(autouse=True)
def config(written: str, home: str) -> str:
    shutil.copy(written, f"{home}/audit.db")
    path = f"{home}/aegis.yaml"
    Path(path).write_text(FILE)
    os.chmod(path, 0o600)
    return path


def test_where_nothing_changes_it_says_so_and_exits_0(aegis: Aegis, config: str) -> None:
    Path(config).write_text(FILE.replace("[pay]}", '[pay], tool_denylist: ["rm*"]}'))
    done = aegis("policy", "replay")
    assert "6 calls: 6 as before" in done.stderr
    assert "1 call more ended by a limit" in done.stderr
    assert done.exit_code == 0
    assert json.loads(aegis("policy", "replay", "--json").stdout) == []


def test_calls_that_would_be_decided_otherwise_are_counted_and_listed(aegis: Aegis, tmp_path: Path) -> None:
    above = tmp_path / "above.yaml"
    above.write_text(
        "agents: {bot: {backends: {files: {approval_required: []}}}}\n"
        "constraints: {read: {arguments: {path: {under: [/data]}}}, pay: {arguments: {amount: {max: 9}}}}\n"
    )
    done = aegis("policy", "replay", "--policy", str(above), "--json")
    assert done.exit_code == 1
    assert "6 calls: 2 as before, 1 would be refused, 2 would be allowed, 1 unknown" in done.stderr
    rows = json.loads(done.stdout)
    found = [(one["tool_name"], one["then"], one["now"], one["now_stage"], one["calls"]) for one in rows]
    assert found[0] == ("read", "allow", "deny", "constraint", 1)
    assert found[-1] == ("pay", "ask", "unknown", "", 1)
    assert set(found[1:-1]) == {("pay", "ask", "allow", "", 1), ("rm", "deny", "allow", "", 1)}
    assert rows[0]["call_id"] == f"{3:032x}"
    assert "constraints.read" in rows[0]["rule"]
    assert not any(isinstance(value, dict | list) for row in rows for value in row.values())
    shown = aegis("policy", "replay", "--policy", str(above))
    assert "refused (constraint)" in shown.stdout
    assert "no longer: a \\x1b[2J rule" in shown.stdout
    assert "\x1b" not in shown.stdout


def test_each_call_is_listed_where_that_is_asked(aegis: Aegis, tmp_path: Path) -> None:
    cedar = tmp_path / "new.cedar"
    cedar.write_text('@id("none") forbid(principal, action, resource);')
    done = aegis("policy", "replay", "--policy", str(cedar), "--list", "--json")
    rows = json.loads(done.stdout)
    assert [one["call_id"] for one in rows] == [f"{number:032x}" for number in (6, 5, 3, 2, 1)]
    assert {one["calls"] for one in rows} == {1}
    lines = aegis("policy", "replay", "--policy", str(cedar), "--list").stdout.splitlines()
    assert len(lines) == 5
    assert "allowed -> refused (policy)" in lines[-1]


def test_the_span_is_narrowed(aegis: Aegis, tmp_path: Path) -> None:
    cedar = tmp_path / "new.cedar"
    cedar.write_text('@id("none") forbid(principal, action, resource);')

    def count(*words: str) -> int:
        return len(json.loads(aegis("policy", "replay", "--policy", str(cedar), "--list", "--json", *words).stdout))

    assert count("--tool", "pa?") == 2
    assert count("--agent", "b*t") == 5
    assert count("--agent", "x") == 0
    assert count("--backend", "mail") == 0
    assert count("--limit", "2") == 1
    assert count("--until", "1h") == 0
    assert count("--since", "1h") == 5
    assert aegis("policy", "replay", "--since", "soon").exit_code == 2


def test_agents_that_are_gone_are_counted_on_their_own(aegis: Aegis, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("backends: {files: {}}\nagents: {amy: {backends: {files: {allowed: true}}}}\n")
    other.chmod(0o600)
    done = aegis("policy", "replay", "--config", str(other))
    assert "6 of these are of agents or backends that are not configured any more" in done.stderr
    assert done.exit_code == 1


def test_policies_that_cannot_be_used_are_told_and_nothing_is_replayed(aegis: Aegis, tmp_path: Path) -> None:
    cedar = tmp_path / "new.cedar"
    cedar.write_text("permit(principal, action);")
    done = aegis("policy", "replay", "--policy", str(cedar))
    assert done.exit_code == 1
    assert f"{cedar}:1:" in done.stderr
    assert "as before" not in done.stderr
    assert aegis("policy", "replay", "--policy", str(tmp_path / "nowhere.yaml")).exit_code == 1


def test_a_stop_before_the_end_still_reports_and_does_not_pass_for_done(
    aegis: Aegis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from aegis_daemon.config.replay import Judge

    real, seen = Judge.judge, []

    def judge(self: Judge, past: Any) -> Any:
        seen.append(past)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, past)

    monkeypatch.setattr(Judge, "judge", judge)
    done = aegis("policy", "replay", "--list", "--json")
    assert json.loads(done.stdout) == []
    assert "3 calls: 2 as before" in done.stderr
    assert "stopped before the end" in done.stderr
    assert done.exit_code == 1
