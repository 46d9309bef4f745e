"""Real processes for the tests of this directory: each waits on an event of the kernel, with a bound."""

from __future__ import annotations

import asyncio
import os
import select
import uuid
from collections.abc import Mapping
from pathlib import Path

from aegis_daemon.backends.children import Command, Nursery

BOUND = 20.0
PATH = os.environ.get("PATH", os.defpath)

STUBBORN = """
trap '' TERM HUP INT
echo $$
while :; do read line || sleep 1000; done
"""

# everything that ever escaped a parent: deaf to SIGTERM, own session, double fork, and the same without environment
ZOO = """
trap '' TERM HUP INT
sh -c 'trap "" TERM; echo $$; sleep 1000; :' &
setsid sh -c 'echo $$; exec sleep 1000' &
(setsid sh -c 'echo $$; exec sleep 1000' &)
(env -i setsid sh -c 'trap "" TERM; echo $$; sleep 1000; :' &)
echo $$
while :; do read line || sleep 1000; done
"""
ZOO_SIZE = 5


class Kid:
    """A child of `nursery` with a pipe at its stdin and its stdout."""

    def __init__(
        self,
        nursery: Nursery,
        *argv: str,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        umask: int = 0o077,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.failed: asyncio.Future[str] = loop.create_future()
        their_in, self.stdin = os.pipe()
        self.stdout, their_out = os.pipe()
        os.set_blocking(self.stdout, False)
        null = os.open(os.devnull, os.O_WRONLY)
        self._read = b""
        command = Command(argv, cwd, {"PATH": PATH} if env is None else env, umask)
        # set_result raises when a callback comes twice, and the loop's handler then fails the test
        self.child = nursery.spawn(command, their_in, their_out, null, self.exited.set_result, self.failed.set_result)
        for fd in (their_in, their_out, null):
            os.close(fd)

    async def _more(self) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return os.read(self.stdout, 65536)
            except BlockingIOError:
                ready = asyncio.Event()
                loop.add_reader(self.stdout, ready.set)
                try:
                    await ready.wait()
                finally:
                    loop.remove_reader(self.stdout)

    async def line(self) -> str:
        """The next line that the child wrote, without its end."""
        async with asyncio.timeout(BOUND):
            while b"\n" not in self._read:
                data = await self._more()
                assert data, f"no further line after {self._read!r}"
                self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode("utf-8", "surrogateescape")

    async def output(self) -> bytes:
        """All that the child and its descendants still write."""
        async with asyncio.timeout(BOUND):
            while data := await self._more():
                self._read += data
        return self._read

    async def code(self) -> int:
        async with asyncio.timeout(BOUND):
            return await self.exited

    async def reason(self) -> str:
        async with asyncio.timeout(BOUND):
            return await self.failed

    def close_stdin(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def end(self) -> None:
        self.close_stdin()
        self.child.end()

    def close(self) -> None:
        self.close_stdin()
        os.close(self.stdout)


def alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False


def wait_gone(pid: int, seconds: float) -> bool:
    """Wait until `pid` has ended (it may be anybody's child)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))
    finally:
        os.close(fd)


def token() -> str:
    return uuid.uuid4().hex


def bearers(mark: str) -> list[int]:
    """The living processes that have `mark` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes() and alive(int(entry.name)):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def children_of(pid: int) -> list[int]:
    """The direct children of `pid`, zombies included."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def fd_count() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def resident_kib(pid: int | None) -> int:
    """Resident memory of `pid` in KiB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
