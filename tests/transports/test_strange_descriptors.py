"""Whatever a peer hands over, and however it leaves: the loop waits for none of it."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from lingering import Lingering, Watched
from making import until

from aegis_daemon.loop import aside
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.transports import unix_relay
from aegis_daemon.transports.ledger import Ledger
from aegis_daemon.transports.unix_relay import Attachment, UnixRelay
from aegis_shim import hello as greeting
from aegis_shim.ledger import Ledger as Memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a non-blocking socket does not linger")
Run = Callable[[Coroutine[Any, Any, Any]], Any]
HELLO = greeting.encode(
    greeting.Hello(agent="amy", backend="files", cwd="/", way=greeting.RELAY, args=("x",), env={"PATH": "/bin"})
)


class House:
    """A relay, and peers that come to it."""

    def __init__(self, path: Path, *, accepts: bool = True) -> None:
        self.attached: list[Attachment] = []
        self.path = path
        loop = asyncio.get_running_loop()
        self.relay = UnixRelay(loop, path, accepts=lambda peer: accepts, on_attach=self.attached.append)
        self.relay.open()
        self.peers: list[socket.socket] = []
        self.held: list[int] = []

    def comes(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(self.path))
        self.peers.append(peer)
        return peer

    async def greets(self, stderr: Lingering | None = None) -> tuple[socket.socket, Attachment]:
        """One that hands over two pipes, a stderr and its memory."""
        peer, memory = self.comes(), Memory.create()
        (to_read, fed), (taken, to_write) = os.pipe(), os.pipe()
        error = os.dup(2) if stderr is None else stderr.end.detach()
        fds = [to_read, to_write, error, memory.fd]
        socket.send_fds(peer, [HELLO], fds)
        for fd in fds:
            os.close(fd)
        self.held += [fed, taken]
        count = len(self.attached)
        await until(lambda: len(self.attached) > count)
        return peer, self.attached[-1]

    def leaves(self) -> None:
        self.relay.close()
        for peer in self.peers:
            peer.close()
        for fd in self.held:
            os.close(fd)


@pytest.fixture
def lingering() -> Iterator[Lingering]:
    made = Lingering()
    yield made
    made.reset()


@pytest.mark.parametrize(
    ("times", "first"),
    [
        pytest.param(1, b"", id="one-descriptor"),
        pytest.param(8, b"", id="too-many"),
        pytest.param(100, b"", id="more-than-there-is-room-for"),
        pytest.param(1, b"\xff" * 64, id="unread-behind-nonsense"),
    ],
)
def test_a_peer_that_leaves_before_it_greeted(
    run: Run, tmp_path: Path, lingering: Lingering, times: int, first: bytes
) -> None:
    async def play() -> None:
        house = House(tmp_path / "s")
        async with Watched():
            peer = house.comes()
            if first:
                peer.send(first)
            lingering.given_away(peer, b"A", times=times)
            await asyncio.sleep(0.1)
            peer.close()
            await asyncio.sleep(0.2)
        house.leaves()

    run(play())


def test_a_peer_that_is_not_welcome(run: Run, tmp_path: Path, lingering: Lingering) -> None:
    async def play() -> None:
        house = House(tmp_path / "s", accepts=False)
        async with Watched():
            lingering.given_away(house.comes(), b"A")
            await asyncio.sleep(0.2)
        house.leaves()

    run(play())


def test_peers_that_wait_when_the_daemon_ends(run: Run, tmp_path: Path, lingering: Lingering) -> None:
    async def play() -> None:
        house = House(tmp_path / "s")
        async with Watched():
            lingering.given_away(house.comes(), b"A")
            house.leaves()
            await asyncio.sleep(0.2)

    run(play())


@pytest.mark.parametrize("end", ["refuse", "close"])
def test_a_session_whose_stderr_lingers(run: Run, tmp_path: Path, lingering: Lingering, end: str) -> None:
    async def play() -> None:
        house = House(tmp_path / "s")
        async with Watched():
            peer, attachment = await house.greets(lingering)
            if end == "refuse":
                attachment.refuse("no")
                peer.setblocking(False)
                await asyncio.sleep(0.1)
                assert peer.recv(100) == greeting.say_no("no")
                assert peer.recv(100) == b"", "it is told at once, whatever else takes its time"
            else:
                attachment.close_descriptors()
                attachment.close_descriptors()
                attachment.control.close()
            await asyncio.sleep(0.2)
        house.leaves()

    run(play())


def test_a_shim_that_sends_descriptors_later_is_gone(run: Run, tmp_path: Path, lingering: Lingering) -> None:
    async def play() -> None:
        house = House(tmp_path / "s")
        gone = asyncio.Event()
        async with Watched():
            peer, attachment = await house.greets()
            attachment.control.on_gone = gone.set
            lingering.given_away(peer, b"A")
            await gone.wait()
            attachment.control.close()
            attachment.close_descriptors()
            await asyncio.sleep(0.2)
        house.leaves()

    run(play())


def test_input_that_brings_descriptors_ends_there(run: Run, lingering: Lingering) -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        memory, (source, client) = Memory.create(), socket.socketpair()
        source.setblocking(False)
        ledger = Ledger(loop, Outbox(loop), memory.fd, source.fileno(), trusted=True)
        heard: list[bytes] = []
        came: list[int] = []
        ended = asyncio.Event()
        ledger.on_line = lambda line, end: heard.append(line)
        ledger.on_end = ended.set
        ledger.on_fds = came.extend
        async with Watched():
            ledger.start()
            client.send(b"one\n")
            await until(lambda: heard)
            lingering.given_away(client, b"two\n")
            await ended.wait()
        assert heard == [b"one"]
        assert len(came) == 1
        ledger.close()
        lingering.reset()
        for one in (*came, source.detach(), client.detach(), memory.fd):
            os.close(one)  # `source` is open yet: closing the ledger does not close it

    run(play())


def test_a_descriptor_whose_kind_is_slow_to_tell(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a file whose file system is a program of the peer's."""
    told, is_stream = Event(), unix_relay._is_stream

    def slow(fd: int) -> bool:
        return told.wait(30) and is_stream(fd)

    monkeypatch.setattr(unix_relay, "_is_stream", slow)

    async def play() -> None:
        house = House(tmp_path / "s")
        async with Watched():
            waiting = asyncio.ensure_future(house.greets())
            await asyncio.sleep(0.2)
            assert not house.attached
            told.set()
            _, attachment = await waiting
        attachment.close_descriptors()
        attachment.control.close()
        house.leaves()

    run(play())


class Slow:
    """Closing takes as long as `freed` is not set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.freed, close_all = Event(), aside.close_all

        def slow(fds: Iterable[int]) -> None:
            self.freed.wait(30)
            close_all(fds)

        monkeypatch.setattr(aside, "close_all", slow)
        monkeypatch.setattr(unix_relay, "GREETINGS", 2)
        monkeypatch.setattr(unix_relay, "_PAUSE_S", 0.01)

    async def fill(self, house: House) -> None:
        """So many at work, and two that wait."""
        for _ in range(aside.THREADS + 2):
            _, attachment = await house.greets()
            attachment.close_descriptors()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    made = Slow(monkeypatch)
    yield made
    made.freed.set()


async def _cleared(house: House) -> None:
    for one in house.attached:
        one.close_descriptors()
        one.control.close()
    house.leaves()
    await until(lambda: not house.relay.aside._lanes)


def test_who_leaves_slowly_keeps_no_other_user_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Slow
) -> None:
    async def play() -> None:
        house = House(tmp_path / "s")
        await slow.fill(house)
        count, uid = len(house.attached), os.geteuid()
        assert house.relay.aside.behind(uid) == 2
        async with Watched():
            for _ in range(20):
                house.comes()
            await until(lambda: house.relay.aside.behind(uid) == 22)
            assert len(house.attached) == count, "none of those is served"
            assert all(peer.recv(1) == b"" for peer in house.peers[-20:]), "and each is told at once"
            with monkeypatch.context() as patch:
                patch.setattr(unix_relay, "peer_of", lambda connection: unix_relay.Peer(uid + 1, None))
                patch.setattr(unix_relay, "_answers", lambda fd: True)
                await house.greets()
        slow.freed.set()
        await until(lambda: not house.relay.aside.behind(uid))
        await house.greets()  # and who left slowly is let in again
        await _cleared(house)
        assert house.relay.aside.held == 0

    run(play())


def test_when_too_few_descriptors_are_left_all_wait_and_it_is_said_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        house = House(tmp_path / "s")
        await slow.fill(house)
        held = house.relay.aside.held
        assert held == 4 * (aside.THREADS + 2)
        monkeypatch.setattr(unix_relay, "_room", lambda: held + 3)
        for _ in range(20):
            house.comes()
        await asyncio.sleep(0.2)
        assert house.relay.aside.held == held + 3
        assert caplog.text.count("no connections are accepted") == 1
        monkeypatch.setattr(unix_relay, "GREETINGS", 100)  # those that wait at the door are all let in
        slow.freed.set()
        await house.greets()
        await _cleared(house)

    run(play())


MOUNTS = """\
21 1 254:1 / / rw,relatime shared:1 master:2 - ext4 /dev/a rw
22 21 0:5 / /odd\\040- rw - tmpfs tmpfs rw
23 21 0:40 / /mnt/a rw,nosuid - fuse.sshfs x rw,user_id=1000
24 21 0:41 / /mnt/b rw - fuse x rw
25 21 0:42 / /mnt/c rw - fuseblk x rw
26 21 garbled
"""


@pytest.mark.parametrize(
    ("mount", "takes"), [(21, True), (22, True), (23, False), (24, False), (25, False), (26, False), (7, False)]
)
def test_a_file_of_another_user_that_may_not_answer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount: int, takes: bool
) -> None:
    """Its own file system is not asked, not even for its kind."""
    read_text = Path.read_text

    def as_mounted(path: Path, *what: Any, **more: Any) -> str:
        if str(path) == "/proc/self/mountinfo":
            return MOUNTS
        return f"pos:\t0\nmnt_id:\t{mount}\n" if "fdinfo" in str(path) else read_text(path, *what, **more)

    monkeypatch.setattr(Path, "read_text", as_mounted)
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    try:
        assert unix_relay._answers(fd) is takes
    finally:
        os.close(fd)


def test_what_shims_hand_over_is_taken_from_other_users_too(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        monkeypatch.setattr(unix_relay, "peer_of", lambda connection: unix_relay.Peer(os.geteuid() + 1, None))
        house = House(tmp_path / "s")
        for path in (tmp_path / "log", Path(os.devnull)):
            error = os.open(path, os.O_WRONLY | os.O_CREAT)
            peer, memory = house.comes(), Memory.create()
            ours, theirs = socket.socketpair()
            fds = [*os.pipe(), theirs.detach(), error, memory.fd]
            house.held.append(fds.pop(1))
            socket.send_fds(peer, [HELLO], fds)
            for fd in fds:
                os.close(fd)
            ours.close()
            count = len(house.attached)
            await until(lambda count=count: len(house.attached) > count)
            house.attached[-1].refuse("enough")
        monkeypatch.setattr(unix_relay, "_answers", lambda fd: False)
        peer = house.comes()
        socket.send_fds(peer, [HELLO], [0, 1, 2, 0])
        await until(lambda: select.select([peer], [], [], 0)[0])
        assert b"FUSE" in peer.recv(1000)
        house.leaves()
        await until(lambda: not house.relay.aside._lanes)

    run(play())
