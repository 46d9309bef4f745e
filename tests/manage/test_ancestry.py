from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from aegis_daemon.manage import ancestry
from aegis_daemon.manage.ancestry import Process

SLEEPER = "import sys; print(__import__('os').getpid(), flush=True); sys.stdin.read()"
NESTED = f"""
import subprocess, sys, os
child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
print(os.getpid(), child.stdout.readline().strip(), flush=True)
sys.stdin.read()
child.stdin.close()
child.wait()
"""


@contextmanager
def running(code: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that says the pids of itself and its children, and ends when we let go of its input."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, [int(pid) for pid in process.stdout.readline().split()]
        assert process.stdin is not None
        process.stdin.close()


def now(pid: int) -> Process:
    found = ancestry.system()(pid)
    assert found is not None
    return found


def test_a_child_and_a_grandchild_of_an_agent_are_its_own() -> None:
    with running(NESTED) as (_, (agent, shell)):
        assert ancestry.descends(shell, [now(agent)]) == now(agent)
        assert ancestry.descends(agent, [now(agent)]) == now(agent)


def test_a_sibling_and_a_parent_of_an_agent_are_not_its_own() -> None:
    with running(SLEEPER) as (_, (agent,)), running(SLEEPER) as (_, (sibling,)):
        assert ancestry.descends(sibling, [now(agent)]) is None
        assert ancestry.descends(os.getpid(), [now(agent)]) is None


def test_the_chain_goes_from_the_process_to_the_top() -> None:
    with running(NESTED) as (_, (middle, leaf)):
        pids = [seen.pid for seen in ancestry.chain(leaf)]
    assert pids[:3] == [leaf, middle, os.getpid()]
    assert len(set(pids)) == len(pids)


def test_the_parent_of_a_shim_is_the_agent() -> None:
    with running(SLEEPER) as (_, (shim,)):
        found = ancestry.parent(shim)
    assert found is not None
    assert found.pid == os.getpid()


def test_an_agent_that_has_gone_is_nobodys_ancestor_even_where_its_pid_lives_again() -> None:
    with running(SLEEPER) as (_, (agent,)):
        was = now(agent)
    with running(SLEEPER) as (_, (other,)):
        reborn = Process(other, was.started, was.parent, was.name)
        assert ancestry.descends(other, [reborn]) is None
        assert ancestry.descends(other, [was]) is None


def test_a_process_that_has_gone_is_not_vouched_for() -> None:
    with running(SLEEPER) as (_, (pid,)):
        pass
    with pytest.raises(ancestry.Vanished):
        ancestry.chain(pid)
    assert ancestry.parent(pid) is None


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1])
def test_pids_that_nobody_can_have_are_not_vouched_for(pid: int) -> None:
    with pytest.raises(ancestry.Vanished):
        ancestry.descends(pid, [now(os.getpid())])


@pytest.mark.skipif(sys.platform != "linux", reason="the way of Linux to tell")
def test_a_process_name_cannot_forge_a_parent() -> None:
    # prctl(PR_SET_NAME): what stands between the parentheses of /proc/PID/stat is the process's own choice.
    name = "x) S 1 1 1 1"
    code = f"import ctypes; ctypes.CDLL(None).prctl(15, {name.encode()!r}, 0, 0, 0)\n{SLEEPER}"
    with running(code) as (_, (pid,)):
        found = now(pid)
    assert found.parent == os.getpid()
    assert found.name == name


def table(*rows: Process) -> dict[int, Process]:
    return {row.pid: row for row in rows}


INIT = Process(1, 0, 0, "systemd")


def test_a_parent_younger_than_its_child_is_another_process() -> None:
    look = table(INIT, Process(50, 900, 1, "claude"), Process(60, 100, 50, "bash")).get
    with pytest.raises(ancestry.Vanished):
        ancestry.chain(60, look)
    assert ancestry.parent(60, look) is None


def test_a_chain_that_changes_while_it_is_read_is_read_again() -> None:
    agent = Process(50, 10, 1, "claude")
    before = table(INIT, agent, Process(60, 100, 50, "bash"))
    after = table(INIT, agent, Process(60, 100, 1, "bash"))
    reads = 0

    def look(pid: int) -> Process | None:
        nonlocal reads
        reads += 1
        return (before if reads <= 3 else after).get(pid)

    assert [seen.pid for seen in ancestry.chain(60, look)] == [60, 1]


def test_a_chain_that_never_holds_still_is_not_vouched_for() -> None:
    reads = 0

    def look(pid: int) -> Process | None:
        nonlocal reads
        reads += 1
        return table(INIT, Process(60, reads, 1, "bash")).get(pid)

    with pytest.raises(ancestry.Vanished):
        ancestry.chain(60, look)


def test_a_circle_ends() -> None:
    look = table(INIT, Process(50, 1, 60, "a"), Process(60, 1, 50, "b")).get
    with pytest.raises(ancestry.Vanished):
        ancestry.chain(60, look)


def test_a_shim_adopted_by_an_init_has_no_agent_and_an_agent_that_is_pid_1_is_one() -> None:
    shim = Process(60, 100, 1, "python3")
    assert ancestry.parent(60, table(INIT, shim).get) is None
    contained = Process(1, 0, 0, "node")
    assert ancestry.parent(60, table(contained, shim).get) == contained


def test_where_other_users_are_hidden_the_visible_part_of_the_chain_is_judged() -> None:
    agent = Process(50, 10, 40, "claude")  # 40 is root's login, which hidepid hides, as it hides pid 1
    look = table(agent, Process(60, 100, 50, "bash")).get
    assert ancestry.descends(60, [agent], look) == agent
    with pytest.raises(ancestry.Vanished):  # pid 1 can be seen, so 40 is really gone
        ancestry.descends(60, [agent], table(INIT, agent, Process(60, 100, 50, "bash")).get)


def test_many_processes_that_come_and_go_never_put_a_stranger_under_an_agent() -> None:
    with running(SLEEPER) as (_, (agent,)), ExitStack() as others:
        known = now(agent)
        until = time.monotonic() + 0.5
        judged = 0
        while time.monotonic() < until:
            process = others.enter_context(subprocess.Popen([sys.executable, "-S", "-c", "pass"]))
            try:
                assert ancestry.descends(process.pid, [known]) is None
                judged += 1
            except ancestry.Vanished:
                pass
        assert judged


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  501     1 Fri Nov 21 14:06:03 2026 /usr/bin/login\n", (501, 1, "login")),
        ("7 6 Sun Nov  1 04:06:03 2026 /Applications/A B.app/Contents/MacOS/A B", (7, 6, "A B")),
        ("", None),
        ("x 1 Fri Nov 21 14:06:03 2026 a", None),
        ("1 1 Fri Foo 21 14:06:03 2026 a", None),
    ],
)
def test_lines_of_ps_are_read(line: str, expected: tuple[int, int, str] | None) -> None:
    found = ancestry.parse_ps(line)
    assert (found and (found.pid, found.parent, found.name)) == expected


def test_ps_and_proc_agree() -> None:
    if not os.path.exists("/bin/ps"):
        pytest.skip("needs ps")
    shown = ancestry._from_ps()
    mine = now(os.getpid())
    assert shown[mine.pid].parent == mine.parent
