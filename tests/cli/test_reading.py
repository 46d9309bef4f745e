from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from manage.memory import MemoryGovernor, Served, instant, ticket

from aegis_daemon.cli.console import Problem
from aegis_daemon.cli.decision import describe
from aegis_daemon.cli.logs import lines
from aegis_daemon.manage import shapes

from .conftest import Aegis
from .terminal import AEGIS


def test_status_tells_what_matters_and_no_agent_can_colour_it(served: Served, aegis: Aegis) -> None:
    done = aegis("status")
    assert done.exit_code == 0
    for text in ("9.9.9", "1m 1s", "enforce", "advisory", "/c/aegis.yaml", "2 still to index", "server.listen"):
        assert text in done.stdout
    assert "claude\\x1b[31m" in done.stdout
    row = json.loads(aegis("status", "--json").stdout)
    assert (row["running"], row["version"], row["sessions"][0]["agent_id"]) == (True, "9.9.9", "claude\x1b[31m")


def test_an_unwell_audit_log_is_something_wrong(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.healthy = False
    done = aegis("status")
    assert done.exit_code == 1
    assert "UNWELL: disk is full" in done.stdout


def test_status_without_a_daemon_is_still_json(aegis: Aegis, home: str) -> None:
    done = aegis("status", "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout) == {"running": False, "config": f"{home}/aegis.yaml", "socket": f"{home}/aegis.sock"}


def test_pending_lists_flat_rows_and_filters_them(governor: MemoryGovernor, aegis: Aegis) -> None:
    assert "nothing waits for you" in aegis("pending").stderr
    governor.tickets += [
        ticket("AAAA", created_at=instant(-7200)),
        ticket("BBBB", agent_id="cursor"),
        ticket("CCCC", backend_id="jira", tool_name="close_issue"),
    ]

    def ids(*words: str) -> list[str]:
        return [row["id"] for row in json.loads(aegis("pending", "--json", *words).stdout)]

    assert ids() == ["AAAA", "BBBB", "CCCC"]
    assert ids("--since", "1h") == ["BBBB", "CCCC"]
    assert ids("--agent", "claude") == ["AAAA", "CCCC"]
    assert ids("--backend", "git*") == ["AAAA", "BBBB"]
    assert ids("--tool", "close_*") == ["CCCC"]
    assert ids("--limit", "1") == ["AAAA"]
    row = json.loads(aegis("pending", "--json").stdout)[0]
    assert set(row) == set(shapes.Ticket.model_fields)


def test_pending_shows_arguments_that_cannot_steer_the_terminal(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.tickets.append(ticket(arguments='{"path":"\\u001b[2J\\u202eexe"}', tool_name="x\x07y"))
    done = aegis("pending")
    assert "github.x\\x07y" in done.stdout
    assert "\\u001b[2J" in done.stdout
    assert "\\u202e" in done.stdout
    assert not set(done.stdout) & {"\x1b", "\x07", "\u202e"}


def test_watching_through_a_pipe_gives_json_lines_until_the_daemon_stops(served: Served, home: str) -> None:
    served.governor.tickets.append(ticket("AAAA"))
    with subprocess.Popen(
        [*AEGIS, "pending", "--watch", "--agent", "claude"], stdout=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        served.do(served.governor.tell, "opened", ticket("XXXX", agent_id="other"))
        served.do(served.governor.tell, "decided", ticket("AAAA", state="rejected"), "ann")
        second = json.loads(watch.stdout.readline())
        served.__exit__()
        assert watch.stdout.read() == ""
    assert (first["event"], first["id"], first["by"]) == ("opened", "AAAA", None)
    assert (second["event"], second["state"], second["by"]) == ("decided", "rejected", "ann")
    assert watch.returncode == 3


def limit(**changes: object) -> shapes.LimitRow:
    row: dict[str, object] = {
        "scope": "agent", "agent_id": "claude", "backend_id": "github", "tool": "post", "window": "24h0m0s",
        "max_count": 1, "current": 1, "reserved": 0, "retry_after_ms": 3_600_000,
    }  # fmt: skip
    return shapes.LimitRow(**{**row, **changes})  # type: ignore[arg-type]


def test_limits_tell_how_far_they_are_used_and_when_there_is_room(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.limit_rows = [
        limit(),
        limit(tool="get", current=0, reserved=1, retry_after_ms=None),
        limit(scope="global", agent_id=None, tool="list", max_count=9, retry_after_ms=None),
        limit(agent_id="cursor"),
    ]
    shown = aegis("limits", "--agent", "claude").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["SCOPE", "global", "agent", "agent"]
    assert "in 1h" in aegis("limits", "--tool", "post").stdout
    assert "when a call ends" in aegis("limits", "--tool", "get").stdout
    assert "now" in aegis("limits", "--tool", "list").stdout
    rows = json.loads(aegis("limits", "--json", "--agent", "claude").stdout)
    assert [row["tool"] for row in rows] == ["list", "post", "get"]
    assert set(rows[0]) == set(shapes.LimitRow.model_fields)


def budget(**changes: object) -> shapes.BudgetRow:
    row: dict[str, object] = {
        "scope": "global", "agent_id": None, "backend_id": "bank", "tool": "pay", "argument": "amount",
        "window": "24h0m0s", "max_amount": "500", "used_amount": "210.5", "reserved_amount": "0", "retry_after_ms": None,
    }  # fmt: skip
    return shapes.BudgetRow(**{**row, **changes})  # type: ignore[arg-type]


def test_budgets_stand_beside_the_limits(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.limit_rows = [limit()]
    governor.budget_rows = [
        budget(),
        budget(scope="agent", agent_id="claude", backend_id="*", used_amount="500", retry_after_ms=3_600_000),
        budget(scope="agent", agent_id="cursor", used_amount="300", reserved_amount="200"),
        budget(tool="gift", max_amount="0", used_amount="0"),
    ]
    lines = aegis("limits").stdout.splitlines()
    assert [("calls" in line, "sum of amount" in line) for line in lines[1:]] == [(True, False), *[(False, True)] * 4]
    assert "210.5/500" in lines[2]
    for line, ends in zip(lines[2:], ("now", "in 1h", "when a call ends", "never"), strict=True):
        assert line.rstrip().endswith(ends)
    assert " all " in lines[3]
    rows = json.loads(aegis("limits", "--json", "--agent", "claude", "--backend", "github").stdout)
    assert [(row["kind"], row["backend_id"]) for row in rows] == [("calls", "github"), ("budget", "*")]
    assert set(rows[1]) == set(shapes.BudgetRow.model_fields)
    assert len(json.loads(aegis("limits", "--json", "--tool", "gift").stdout)) == 1


def queued(call_id: str, **changes: object) -> shapes.QueueRow:
    row: dict[str, object] = {
        "call_id": call_id, "agent_id": "claude", "backend_id": "github", "tool_name": "post", "position": 1,
        "state": "waiting", "waited_ms": 4200, "starts_in_ms": None,
    }  # fmt: skip
    return shapes.QueueRow(**{**row, **changes})  # type: ignore[arg-type]


def test_the_queue_is_listed_and_a_place_in_it_given_up(governor: MemoryGovernor, aegis: Aegis) -> None:
    governor.queue_rows = [queued("c1", state="delay", starts_in_ms=61_000), queued("c2", agent_id="cursor")]
    assert aegis("queue").stdout == aegis("queue", "list").stdout
    assert "1m 1s" in aegis("queue").stdout
    assert [row["call_id"] for row in json.loads(aegis("queue", "--json", "--agent", "cursor").stdout)] == ["c2"]
    assert aegis("queue", "cancel", "c2").exit_code == 0
    again = aegis("queue", "cancel", "c2")
    assert again.exit_code == 1
    assert "`c2`" in again.stderr
    assert [row.call_id for row in governor.queue_rows] == ["c1"]


# --- logs -------------------------------------------------------------------------------------------------------------


def test_logs_wait_for_no_pipe_and_root_follows_no_link_of_the_daemons_user(tmp_path: Path) -> None:
    pipe, link, secret = tmp_path / "pipe", tmp_path / "link", tmp_path / "secret"
    os.mkfifo(pipe)
    secret.write_text("mine\n")
    link.symlink_to(secret)
    for path in (pipe, link, tmp_path):
        with pytest.raises(Problem, match="no file that the daemon made"):
            list(lines(str(path), 10, follow=False, own=False))
    assert list(lines(str(link), 10, follow=False)) == ["mine"]


def test_logs_need_no_daemon_and_show_the_last_lines(aegis: Aegis, home: str) -> None:
    missing = aegis("logs")
    assert missing.exit_code == 1
    assert "aegis daemon start" in missing.stderr
    with open(f"{home}/daemon.log", "wb") as file:
        file.write(b"".join(b"line %d\n" % number for number in range(50_000)) + b"evil \x1b[2J \xff\nunfinished")
    assert aegis("logs", "-n", "2").stdout.splitlines() == ["line 49999", "evil \\x1b[2J \ufffd", "unfinished"]
    assert len(aegis("logs").stdout.splitlines()) == 101
    assert aegis("logs", "-n", "0").stdout == ""
    assert [json.loads(line)["line"] for line in aegis("logs", "-n", "1", "--json").stdout.splitlines()][
        -1
    ] == "unfinished"


def test_following_a_log_survives_its_rotation_and_its_cutting(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "daemon.log")
    with open(path, "w") as file:
        file.write("old\nlast\nhal")
    seen: list[str] = []
    arrived = threading.Condition()

    def read() -> None:
        for line in lines(path, 1, True):
            with arrived:
                seen.append(line)
                arrived.notify()
            if line == "end":
                return

    def wait(count: int) -> None:
        with arrived:
            assert arrived.wait_for(lambda: len(seen) >= count, 10), seen

    thread = threading.Thread(target=read)
    thread.start()
    wait(1)
    with open(path, "a") as file:
        file.write("f\nmore\n")
    wait(3)
    os.rename(path, path + ".1")
    time.sleep(0.3)  # there is no file for a while
    with open(path, "w") as file:
        file.write("fresh\n")
    wait(4)
    with open(path, "w") as file:
        file.write("cut\n")  # shorter than before
    wait(5)
    with open(path, "a") as file:
        file.write("end\n")
    thread.join(10)
    assert not thread.is_alive()
    assert seen == ["last", "half", "more", "fresh", "cut", "end"]


@pytest.mark.parametrize(("content", "count", "expected"), [("", 5, []), ("a", 5, ["a"]), ("a\nb\n", 1, ["b"])])
def test_short_logs(tmp_path: os.PathLike[str], content: str, count: int, expected: list[str]) -> None:
    path = os.path.join(tmp_path, "log")
    with open(path, "w") as file:
        file.write(content)
    assert list(lines(path, count, False)) == expected


def test_pending_says_where_a_call_would_run_in_another_server_than_the_one_approved(
    governor: MemoryGovernor, aegis: Aegis
) -> None:
    governor.tickets += [
        ticket("AAAA", command="db", unlike="DATABASE_URL, L\x1bD (new)"),
        ticket("BBBB", command="db"),
    ]
    told = aegis("pending").stderr
    assert (
        "AAAA would run in another server than the call approved before; different: DATABASE_URL, L\\x1bD (new)" in told
    )
    assert "BBBB would" not in told
    told = "\n".join(describe(ticket(command="db", unlike="PATH").model_dump()))
    assert "different  PATH: not the server approved before" in told


@pytest.mark.parametrize(
    "words",
    [["limits", "--agent"], ["queue", "--agent"], ["grants", "list", "--agent"], ["pending", "--agent"],
     ["tools", "list", "--backend"]],
)  # fmt: skip
def test_a_name_that_is_not_configured_is_no_empty_answer(
    governor: MemoryGovernor, aegis: Aegis, home: str, words: list[str]
) -> None:
    Path(home, "aegis.yaml").write_text("backends:\n  files: {}\nagents:\n  amy:\n    backends: {}\n  bob: {}\n")
    there = "files" if "--backend" in words else "amy, bob"
    done = aegis(*words, "nobody")
    assert (done.exit_code, done.stdout) == (0, "")
    assert f"nothing matches `{words[-1]} nobody`: configured are {there}" in done.stderr
    assert "configured are" not in aegis(*words, "files" if "--backend" in words else "a*").stderr
