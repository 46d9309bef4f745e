from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from aegis_daemon.audit.record import Admin, Approval, Denied, Hold, Intent, Outcome, Record
from aegis_daemon.cli.audit import search
from aegis_daemon.cli.audit.stats import _shares

from .conftest import Aegis
from .terminal import AEGIS
from .test_audit import record

WHO: dict[str, Any] = {"backend": "github", "method": "tools/call"}
CALLS = [f"{number:032x}" for number in range(16, 22)]
STORY: list[tuple[Record, bytes | None]] = [
    (Intent(call=CALLS[0], agent="claude", name="get_issue", **WHO), b'{"number":7}'),
    (Outcome(call=CALLS[0], status="success", duration_us=4200, consumed=True), b'{"title":"lost keys"}'),
    (Denied(call=CALLS[1], agent="claude", name="drop\x1b[2J", stage="acl", policy="deny.tools", **WHO), b"{}"),
    (Hold(call=CALLS[2], agent="cursor", name="publish", ticket="K7Q2", policy="ask first", **WHO), b'{"to":"all"}'),
    (Approval(ticket="K7Q2", call=CALLS[2], decision="approved", by="ann", via="cli"), None),
    (
        Intent(
            call=CALLS[2], agent="cursor", name="publish", ticket="K7Q2", approval="approved", approver="ann", **WHO
        ),
        b'{"to":"all"}',
    ),
    (Outcome(call=CALLS[2], status="error", error_message="boom\x07", duration_us=90_000), None),
    (Denied(call=CALLS[3], agent="cursor", name="push", stage="policy", policy="hours", would=True, **WHO), b"{}"),
    (Intent(call=CALLS[3], agent="cursor", name="push", **WHO), b"{}"),
    (Outcome(call=CALLS[3], status="success", duration_us=100), b"{}"),
    (Intent(call=CALLS[4], agent="cursor", name="push", **WHO), b"{}"),
]


@pytest.fixture
def log(home: str) -> str:
    asyncio.run(record(home, STORY))
    return f"{home}/audit.db"


def rows(aegis: Aegis, *words: str) -> list[dict[str, Any]]:
    done = aegis("audit", *words, "--json")
    assert done.exit_code == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--verdict", "asked"], [2]),
        (["--verdict", "would"], [3]),
        (["--verdict", "allowed"], [4, 3, 2, 0]),
        (["--verdict", "pending"], [4]),
        (["--policy", "hours"], [3]),
        (["--policy", "deny*"], [1]),
        (["--approver", "ann"], [2]),
        (["--stage", "acl"], [1]),
        (["--agent", "c*r", "--tool", "p*"], [4, 3, 2]),
        (["KEYS"], []),
        (["KEYS", "--in", "results"], [0]),
        (["all", "--in", "both"], [2]),
    ],
)
def test_calls_are_found_by_what_people_remember(aegis: Aegis, words: list[str], expected: list[int]) -> None:
    assert [row["call_id"] for row in rows(aegis, "search", *words)] == [CALLS[number] for number in expected]


@pytest.mark.usefixtures("log")
def test_a_word_that_is_no_verdict_is_told_what_there_is(aegis: Aegis) -> None:
    for words in (["--verdict", "refused"], ["--in", "names"], ["--status", "error", "--verdict", "error"]):
        done = aegis("audit", "search", *words)
        assert done.exit_code == 2
        assert done.stdout == ""


@pytest.mark.usefixtures("log")
def test_a_search_that_ran_out_of_time_says_where_to_go_on(aegis: Aegis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PATIENCE_S", 1e-9)
    monkeypatch.setattr("aegis_daemon.audit.search.SLICE", 1)
    done = aegis("audit", "search", "nothing like that", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == []
    assert "--before" in done.stderr


@pytest.mark.usefixtures("log")
def test_one_call_is_told_with_the_time_between_its_steps(aegis: Aegis) -> None:
    shown = aegis("audit", "show", "k7q2").stdout
    for text in (
        "ask first",
        "approved by ann (cli)",
        "failed after 90 ms: boom\\x07",
        "at the backend",
        "for a person",
    ):
        assert text in shown
    assert not set(shown) & {"\x1b", "\x07"}
    found = json.loads(aegis("audit", "show", "k7q2", "--json").stdout)
    assert [step["kind"] for step in found["steps"]] == ["hold", "approval", "intent", "outcome"]
    assert found["related"] == []


@pytest.mark.usefixtures("log")
def test_stats_count_by_whatever_is_asked_for(aegis: Aegis) -> None:
    tools = {row["tool_name"]: row for row in rows(aegis, "stats")}
    assert {name: row["calls"] for name, row in tools.items()} == {
        "get_issue": 1, "drop\x1b[2J": 1, "publish": 1, "push": 2,
    }  # fmt: skip
    assert (tools["push"]["success"], tools["push"]["pending"], tools["push"]["would"]) == (1, 1, 1)
    assert abs(tools["get_issue"]["exec_p50_us"] - 4200) < 150
    agents = rows(aegis, "stats", "--by", "agent")
    assert {row["agent_id"]: row["calls"] for row in agents} == {"claude": 2, "cursor": 3}
    assert sum(row["calls"] for row in rows(aegis, "stats", "--by", "hour")) == 5
    assert {row["policy_id"] for row in rows(aegis, "stats", "--by", "policy")} == {"deny.tools", "hours"}
    assert [row["agent_id"] for row in rows(aegis, "stats", "--by", "agent", "--tool", "get_*")] == ["claude"]
    assert not any(isinstance(value, dict | list) for row in tools.values() for value in row.values())


@pytest.mark.usefixtures("log")
def test_stats_are_a_table_and_a_plot_that_cannot_steer_the_terminal(aegis: Aegis) -> None:
    done = aegis("audit", "stats")
    table = done.stdout
    assert "times are p50 / p95 / p99" in done.stderr
    for text in ("TOOK", "top denials", "deny.tools", "drop\\x1b[2J"):
        assert text in table
    for by in ("tool", "hour", "agent", "policy", "backend"):
        plot = aegis("audit", "stats", "--by", by, "--plot", "--since", "2h").stdout
        assert "█" in plot or by == "policy"
        assert "refused" in plot
        assert "\x1b" not in plot
    assert aegis("audit", "stats", "--by", "weather").exit_code == 2
    assert aegis("audit", "stats", "--since", "1h", "--until", "2h").exit_code == 1


def test_every_part_of_a_bar_is_seen_and_no_bar_is_longer_than_the_line() -> None:
    for counts in ([100_000, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [50, 50, 50, 50, 50]):
        parts = _shares(counts, 20, max(sum(counts), 1))
        assert sum(parts) <= 20
        assert [bool(part) for part in parts] == [bool(count) for count in counts]


# --- following --------------------------------------------------------------------------------------------------------


@contextmanager
def following(*words: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    with subprocess.Popen(
        [*AEGIS, "audit", "tail", "-f", "--json", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tail:
        timer = threading.Timer(30, tail.kill)
        timer.start()
        try:
            assert tail.stdout is not None
            yield tail, tail.stdout
        finally:
            timer.cancel()
            tail.kill()


def test_a_tail_goes_on_with_the_store_that_takes_the_place_of_this_one(home: str) -> None:
    asyncio.run(record(home, STORY[:2]))
    with following() as (tail, out):
        assert [json.loads(out.readline())["seq"] for _ in range(2)] == [1, 2]
        os.rename(f"{home}/audit.db", f"{home}/old.db")
        for left in ("audit.db-wal", "audit.db-shm"):
            Path(home, left).unlink(missing_ok=True)
        shutil.rmtree(f"{home}/journal")
        asyncio.run(record(home, [(Admin(action="new"), None), *STORY[2:4]]))
        assert [json.loads(out.readline())["kind"] for _ in range(3)] == ["admin", "denied", "hold"]
        tail.send_signal(2)
        assert tail.wait(10) == 0


def test_a_tail_does_not_repeat_itself_where_the_store_was_only_copied(home: str) -> None:
    asyncio.run(record(home, STORY[:2]))
    with following() as (tail, out):
        assert [json.loads(out.readline())["seq"] for _ in range(2)] == [1, 2]
        shutil.copy(f"{home}/audit.db", f"{home}/copy.db")
        os.rename(f"{home}/copy.db", f"{home}/audit.db")
        asyncio.run(record(home, STORY[2:3]))
        assert json.loads(out.readline())["seq"] == 3
        tail.send_signal(2)
        assert tail.wait(10) == 0


def test_a_tail_of_a_quiet_log_ends_when_nobody_reads_it_any_more(home: str) -> None:
    asyncio.run(record(home, STORY[:2]))
    with following() as (tail, out):
        assert [json.loads(out.readline())["seq"] for _ in range(2)] == [1, 2]
        out.close()
        assert tail.wait(10) == 0
        assert tail.stderr is not None
        told = tail.stderr.read().splitlines()
        # On a slow machine it may have waited, and said so; nothing is said of the reader that has gone.
        assert [line for line in told if not line.startswith("waiting for the daemon")] == []
