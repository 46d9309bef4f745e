from __future__ import annotations

import array
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import BOUND, PATH, STUBBORN, ZOO, ZOO_SIZE, alive, bearers, resident_kib, token, wait_gone

from aegis_daemon.backends import children, warden

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, pidfd and a subreaper")
ROOT = Path(__file__).parents[2]
BASE = 1 << 60


# the messages


def test_messages_survive_any_cut() -> None:
    messages = [[b"spawn", b"7", b"", b"77", b"1", b""], [b""], [b"end", b"\xff\n"]]
    stream = b"".join(warden.pack(*message) for message in messages)
    buffer = bytearray()
    found: list[list[bytes]] = []
    for at in range(len(stream)):
        buffer += stream[at : at + 1]
        found += warden.unpack(buffer)
    assert found == messages
    assert not buffer


# a warden without a daemon


class Talk:
    """The daemon's end of a warden's socket, blocking."""

    def __init__(self, grace: float = 0.2) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(BOUND)
        self.buffer = bytearray()
        home = os.path.dirname(warden.__file__)
        words = ["-I", "-S", "-c", children._BOOT, home, str(theirs.fileno()), str(BASE), str(grace)]
        self.process = subprocess.Popen(
            [sys.executable, *words], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        theirs.close()

    def send(self, message: bytes, *fds: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([message], rights)

    def hear(self) -> list[bytes]:
        while True:
            for fields in warden.unpack(self.buffer):
                return fields
            data = self.socket.recv(65536)
            assert data, "the warden hung up"
            self.buffer += data

    def ends(self, seconds: float = BOUND) -> int:
        return self.process.wait(seconds)


@pytest.fixture
def talk() -> Iterator[Callable[..., Talk]]:
    made: list[Talk] = []

    def start(grace: float = 0.2) -> Talk:
        made.append(Talk(grace))
        return made[-1]

    yield start
    for one in made:
        one.socket.close()
        assert one.ends() == 0


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd
    os.close(fd)


def spawn_message(ref: int, *argv: str, **env: str) -> bytes:
    words = [word.encode() for word in argv]
    entries = [f"{name}={value}".encode() for name, value in {"PATH": PATH, **env}.items()]
    return warden.pack(b"spawn", b"%d" % ref, b"", b"77", b"%d" % len(words), *words, *entries)


Start = Callable[..., Talk]


def test_spawn_and_end_are_answered(talk: Start, null: int) -> None:
    one = talk()
    one.send(spawn_message(0, "sh", "-c", "exit 3"), null, null, null)
    assert one.hear()[:2] == [b"spawned", b"0"]
    assert one.hear() == [b"gone", b"0", b"3", b"0"]
    one.send(spawn_message(1, "sh", "-c", STUBBORN), null, null, null)
    assert one.hear()[:2] == [b"spawned", b"1"]
    one.send(warden.pack(b"end", b"1") * 2 + warden.pack(b"end", b"0"))
    assert one.hear() == [b"gone", b"1", b"-9", b"0"]
    one.send(spawn_message(2, "nothing-like-it"), null, null, null)
    assert one.hear() == [b"failed", b"2", b"lookup", b"2", b"nothing-like-it"]


def test_descriptors_follow_their_message_however_it_is_cut(talk: Start, null: int) -> None:
    one = talk()
    pipes = [os.pipe() for _ in range(4)]
    for ref, (_, end) in enumerate(pipes):
        message = spawn_message(ref, "sh", "-c", f"echo {ref}")
        one.send(message[: ref + 1], null, end, null)
        os.close(end)
        for at in range(ref + 1, len(message), 7):
            one.send(message[at : at + 7])
    for ref, (end, _) in enumerate(pipes):
        assert os.read(end, 10) == b"%d\n" % ref
        assert os.read(end, 10) == b""
        os.close(end)


def test_spawn_without_its_descriptors_fails_alone(talk: Start, null: int) -> None:
    one = talk()
    one.send(spawn_message(0, "true"))
    assert one.hear()[:3] == [b"failed", b"0", b"start"]
    one.send(spawn_message(1, "true"), null, null, null)
    assert one.hear()[:2] == [b"spawned", b"1"]
    assert one.hear() == [b"gone", b"1", b"0", b"0"]


@pytest.mark.parametrize("nonsense", [b"\0\0\0\1x", warden.pack(b"kill", b"1"), warden.pack(b"spawn", b"one")])
def test_nonsense_is_an_end_in_good_order(talk: Start, null: int, nonsense: bytes) -> None:
    one = talk()
    mark = token()
    one.send(spawn_message(0, "sh", "-c", STUBBORN, MARK=mark), null, null, null)
    assert one.hear()[0] == b"spawned"
    one.send(nonsense)
    assert one.ends() == 0
    assert bearers(mark) == []


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_daemon_may_vanish_at_any_point_of_a_message(talk: Start, null: int, share: float) -> None:
    one = talk()
    mark = token()
    message = spawn_message(0, "sh", "-c", STUBBORN, MARK=mark) + warden.pack(b"end", b"0")
    cut = round(len(message) * share)
    if cut:
        one.send(message[:cut], null, null, null)
    one.socket.close()
    assert one.ends() == 0
    assert bearers(mark) == []


def test_last_reports_reach_a_daemon_that_only_listens(talk: Start, null: int) -> None:
    one = talk()
    for ref in range(3):
        one.send(spawn_message(ref, "sh", "-c", STUBBORN), null, null, null)
    one.socket.shutdown(socket.SHUT_WR)
    said = [one.hear() for _ in range(6)]
    assert sorted(fields[0] for fields in said) == [b"gone"] * 3 + [b"spawned"] * 3
    assert one.socket.recv(1) == b""


def test_daemon_that_never_reads_keeps_nobody_alive(talk: Start, null: int) -> None:
    one = talk()
    one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    mark = token()
    ends, end = os.pipe()
    for ref in range(300):
        one.send(spawn_message(ref, "true", MARK=mark), null, end, null)
    os.close(end)
    poll = select.poll()
    poll.register(ends, select.POLLIN)
    assert poll.poll(BOUND * 1000) == [(ends, select.POLLHUP)]
    os.close(ends)
    said = [one.hear()[0] for _ in range(600)]
    assert said.count(b"gone") == said.count(b"spawned") == 300


def test_warden_stays_small_and_holds_nothing_of_its_children(talk: Start, null: int) -> None:
    one = talk()
    one.send(spawn_message(0, "true"), null, null, null)
    assert one.hear()[0] + one.hear()[0] == b"spawnedgone"
    resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (24, 1024))
    for ref in range(1, 51):
        one.send(spawn_message(ref, "true", FILL="x" * 10000), null, null, null)
        assert one.hear()[0] + one.hear()[0] == b"spawnedgone"
    assert resident_kib(one.process.pid) < 12 * 1024


# a daemon that is killed


class Daemon:
    """`daemon_alone.py` with its children, and every process id that it and they have told."""

    def __init__(self, *arguments: str, count: int) -> None:
        self.mark = token()
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("daemon_alone.py")), *arguments],
            stdout=subprocess.PIPE,
            env={"PATH": PATH, "MARK": self.mark, "PYTHONPATH": str(ROOT)},
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline().split() for _ in range(1 + count)]
        self.warden = next(int(line[1]) for line in lines if line[0] == b"warden")
        self.pids = [int(line[0]) for line in lines if line[0] != b"warden"]
        self.named = {line[1].decode(): int(line[0]) for line in lines if line[0] != b"warden" and len(line) > 1}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        wait_gone(self.warden, BOUND)


def test_killed_daemon_leaves_nobody() -> None:
    with Daemon(ZOO, STUBBORN, "echo $$; exec cat", count=ZOO_SIZE + 2) as daemon:
        assert all(map(alive, daemon.pids))
        began = time.monotonic()
        daemon.kill()
        for pid in [daemon.warden, *daemon.pids]:
            assert wait_gone(pid, began + 5.5 - time.monotonic()), pid
        assert bearers(daemon.mark) == []


def test_killed_daemon_with_polite_children_is_tidied_up_at_once() -> None:
    with Daemon("echo $$; exec cat", "echo $$; exec cat", count=2) as daemon:
        began = time.monotonic()
        daemon.kill()
        for pid in [*daemon.pids, daemon.warden]:
            assert wait_gone(pid, began + 1.5 - time.monotonic()), pid


def test_variable_tells_whose_an_orphan_is_where_the_kernel_keeps_no_mark() -> None:
    leaver = "(setsid sh -c 'echo $$ helper; exec sleep 1000' &); echo $$ leader; exec cat"
    with Daemon("--deaf-kernel", leaver, "echo $$ neighbour; exec cat", count=3) as daemon:
        for pid in daemon.pids:
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert limits.partition("Max file locks")[2].split()[0] == "1000"
        # the server dies alone; its escaped helper is ended with it, its neighbour stays
        os.kill(daemon.named["leader"], signal.SIGKILL)
        assert wait_gone(daemon.named["helper"], 4)
        assert alive(daemon.named["neighbour"])


@pytest.mark.full
def test_killed_daemon_leaves_nobody_of_a_crowd() -> None:
    with Daemon(*[ZOO] * 40, count=40 * ZOO_SIZE) as daemon:
        began = time.monotonic()
        daemon.kill()
        for pid in [daemon.warden, *daemon.pids]:
            assert wait_gone(pid, began + 6 - time.monotonic()), pid
        assert bearers(daemon.mark) == []


@pytest.mark.full
@pytest.mark.parametrize("delay_ms", range(0, 60, 5))
def test_daemon_killed_while_it_starts_children_leaves_nobody(delay_ms: int) -> None:
    with Daemon(*[ZOO] * 10, count=0) as daemon:
        time.sleep(delay_ms / 1000)  # a moment somewhere in the burst is the point
        began = time.monotonic()
        daemon.kill()
        assert wait_gone(daemon.warden, began + 6 - time.monotonic())
        assert bearers(daemon.mark) == []
