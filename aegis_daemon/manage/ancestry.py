"""Whether a process is, or descends from, one of a set of processes; read from the system, never from the process.

A pid alone names nobody for long, so a process is its pid and the instant it started. A chain that changes while it
is read is read again; one that cannot be read is an error, which callers must take as the worse answer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

_ATTEMPTS: Final = 5
_DEPTH: Final = 256
INITS: Final = frozenset(
    {
        "catatonit", "docker-init", "dumb-init", "init", "launchd", "openrc-init", "podman-init", "runit", "runsvdir",
        "s6-svscan", "systemd", "tini",
    }
)  # fmt: skip
"""Names of programs that adopt orphans. Everybody descends from one, so being its child says nothing."""


class Process(msgspec.Struct, frozen=True):
    """One process for as long as the system runs. `started` counts in ticks whose zero and length do not matter."""

    pid: int
    started: int
    parent: int
    name: str

    def same(self, other: Process) -> bool:
        """Whether both are one process, whoever its parent is by now."""
        return self.pid == other.pid and self.started == other.started


class Vanished(Exception):
    """The process, or one of its ancestors, ended while it was looked at, or cannot be seen."""


Look = Callable[[int], Process | None]


def system() -> Look:
    """How to look at the processes that run now."""
    return _from_proc if sys.platform == "linux" else _from_ps().get


def parent(pid: int, look: Look | None = None) -> Process | None:
    """The direct parent of a process: for a shim, the agent that it works for.

    None where there is no parent to speak of: the process has gone, or an init adopted it.
    """
    look = look or system()
    for _ in range(_ATTEMPTS):
        child = look(pid)
        if child is None or child.parent <= 0:
            return None
        above = look(child.parent)
        again = look(pid)
        if above is None or again is None or again != child or above.started > child.started:
            continue
        return None if above.name in INITS else above
    return None


def chain(pid: int, look: Look | None = None) -> list[Process]:
    """The process and its ancestors, nearest first, all of them alive at one instant.

    :raises Vanished: it cannot be read whole.
    """
    look = look or system()
    for _ in range(_ATTEMPTS):
        found = _climb(pid, look)
        # A process changes its parent once, to an adopter, and never back: a link that reads the same twice held in
        # between, and so all of them held at once.
        if found is not None and all(look(seen.pid) == seen for seen in found):
            return found
    raise Vanished(f"process {pid} or one of its ancestors is gone")


def descends(pid: int, agents: Iterable[Process], look: Look | None = None) -> Process | None:
    """The agent that `pid` is or descends from, None where it is none of theirs.

    :raises Vanished: nobody can tell. Callers refuse.
    """
    known = {(agent.pid, agent.started): agent for agent in agents}
    for seen in chain(pid, look):
        if agent := known.get((seen.pid, seen.started)):
            return agent
    return None


def _climb(pid: int, look: Look) -> list[Process] | None:
    found: list[Process] = []
    while pid > 0 and len(found) < _DEPTH:
        seen = look(pid)
        if seen is None:
            # Where /proc hides other users' processes (hidepid), what stands above our own cannot be seen by anybody,
            # and an agent of ours is not among it.
            return found if found and look(1) is None else None
        if found and seen.started > found[-1].started:
            return None  # a parent younger than its child is another process with the parent's pid
        found.append(seen)
        pid = seen.parent
    return found if found and pid <= 0 else None


def _from_proc(pid: int) -> Process | None:
    # proc_pid_stat(5): `pid (comm) state ppid …`, start time is field 22; comm may hold anything, `)` included.
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
        head, _, tail = text.rpartition(b")")
        fields = tail.split()
        return Process(pid, int(fields[19]), int(fields[1]), head.partition(b"(")[2].decode("utf-8", "replace"))
    except (OSError, IndexError, ValueError):
        return None


def _from_ps() -> dict[int, Process]:
    # One system call inside `ps`, so one instant. Start times have a resolution of a second here: a pid that died and
    # was born again within one is not told apart.
    done = subprocess.run(
        ["/bin/ps", "-axo", "pid=,ppid=,lstart=,comm="],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={"LC_ALL": "C"},
        timeout=5,
    )
    return {seen.pid: seen for line in done.stdout.splitlines() if (seen := parse_ps(line))}


def parse_ps(line: str) -> Process | None:
    """From `ps -o pid=,ppid=,lstart=,comm=` in the C locale: `77 1 Fri Nov 21 14:06:03 2026 /usr/bin/login`."""
    parts = line.split(None, 7)
    if len(parts) < 8 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    try:
        started = int(time.mktime(time.strptime(" ".join(parts[2:7]), "%a %b %d %H:%M:%S %Y")))
    except (ValueError, OverflowError):
        return None
    return Process(int(parts[0]), started, int(parts[1]), os.path.basename(parts[7].strip()))
