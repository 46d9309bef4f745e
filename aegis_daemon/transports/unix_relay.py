"""Shims connect here: one greeting, four descriptors, and from then on the socket only says how it ends.

The daemon never reads frames from this socket: in hand-over the descriptors are the client's own, in relay they are
pipes that the shim pumps. Who the peer is comes from the kernel (SO_PEERCRED), never from the greeting. In the isolated
tier each agent has a socket of its own, made by root, and whoever comes through it is that agent or nobody.

What a peer hands over may be anything: reading what comes with descriptors, looking at them and closing them, or a
connection that may hold some unread, can take as long as the peer likes. So all of that happens beside the loop.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import logging
import os
import resource
import socket
import stat
import struct
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from aegis_daemon.loop.aside import NOBODY, Aside, close_all
from aegis_shim import hello as greeting

_log = logging.getLogger("aegis.unix")
GREETING_S = 10.0
"""Seconds a peer has for its greeting."""
GREETINGS = 1024
"""Connections of one user that may not have greeted yet; another user's are counted apart.

Of one of whom so much waits to be let go of, no more is served either."""
GREETING_BYTES = 64 * 1024 * 1024
"""Bytes that unfinished greetings of one user may take in all."""
_LARGE = 1 << 16
_AT_ONCE = 1 << 20
"""Bytes of a greeting that are received in one go."""
_MOST_FDS = 253
"""How many descriptors one message can bring (Linux); those that there is no room for, the kernel would close."""
_PAUSE_S = 0.2
_AGAIN = (errno.EAGAIN, errno.EWOULDBLOCK)
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
"""What arrives must not be inherited by anything the daemon starts."""
_F_GET_SEALS = 1034
_ROOM = socket.CMSG_SPACE(array.array("i").itemsize * _MOST_FDS)


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end of a Unix socket, as the kernel says. `pid` is None where it does not."""

    uid: int
    pid: int | None


def peer_of(connection: socket.socket) -> Peer:
    """Raises OSError where the platform cannot tell, which refuses the peer."""
    if sys.platform == "linux":
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(uid, pid)
    else:  # noqa: RET505  (mypy reads a platform test only as a branch)
        # macOS: LOCAL_PEERCRED: struct xucred {version, uid, ngroups, groups[16]}; LOCAL_PEERPID
        credentials = connection.getsockopt(0, 1, 76)
        uid = struct.unpack_from("II", credentials)[1]
        pid = struct.unpack("i", connection.getsockopt(0, 2, 4))[0]
        return Peer(uid, pid or None)


class Control:
    """The socket of one attached shim: lines to it, and its leaving."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket, aside: Aside, uid: int) -> None:
        self._loop = loop
        self._aside = aside
        self._uid = uid
        self._connection = connection
        self._open = True
        self.on_gone: Callable[[], None] = lambda: None
        loop.add_reader(connection.fileno(), self._ready)

    def _ready(self) -> None:
        try:
            # A shim has nothing to say: one that speaks has gone too. It is not read, for what it may bring along.
            self._connection.recv(1, socket.MSG_PEEK)
        except OSError as error:
            if error.errno in _AGAIN:
                return
        self._loop.remove_reader(self._connection.fileno())
        self.on_gone()

    def say(self, line: bytes) -> None:
        """One line; a shim that has gone does not hear it."""
        try:
            self._connection.send(line)
        except OSError:
            pass

    def close(self) -> None:
        """Leaves."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._connection.fileno())
            try:
                self._connection.shutdown(socket.SHUT_RDWR)  # the shim sees the end now, whatever closing takes
            except OSError:
                pass
            self._aside.do(self._uid, self._connection.close)


class Attachment(msgspec.Struct):
    """One shim that greeted: the descriptors now belong to the receiver."""

    hello: greeting.Hello
    peer: Peer
    control: Control
    client_in: int
    client_out: int
    stderr: int
    ledger: int
    aside: Aside
    door: str | None = None
    """the agent whose own socket it came through"""

    def refuse(self, reason: str) -> None:
        """Says no and lets go of everything."""
        self.control.say(greeting.say_no(reason))
        self.control.close()
        self.close_descriptors()

    def close_descriptors(self) -> None:
        """Closes what was handed over, soon."""
        fds = [self.client_in, self.client_out, self.stderr, self.ledger]
        self.client_in = self.client_out = self.stderr = self.ledger = -1
        self.aside.let_go(self.peer.uid, [fd for fd in fds if fd >= 0])


class _Heard(msgspec.Struct):
    """What came over a connection at once. `streams`: which of the descriptors are pipes or sockets."""

    data: bytearray
    fds: list[int]
    streams: list[bool]
    over: bool = False
    """the peer hung up, or there is an error"""
    torn: bool = False
    """some descriptors are missing"""
    odd: bool = False
    """another user's, and a file that may hold up whoever has it open"""


def _hear(connection: socket.socket, trusted: bool) -> _Heard:
    """Receives what is there, beside the loop."""
    heard = _Heard(bytearray(), [], [])
    while len(heard.data) < _AT_ONCE and len(heard.fds) <= greeting.FDS and not heard.torn:
        try:
            data, ancillary, flags, _ = connection.recvmsg(1 << 16, _ROOM, _CLOEXEC)
        except OSError as error:
            heard.over = error.errno not in _AGAIN
            break
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                heard.fds += received
        heard.torn = bool(flags & socket.MSG_CTRUNC)
        if not data:
            heard.over = True
            break
        heard.data += data
    heard.odd = not trusted and not all(_answers(fd) for fd in heard.fds)
    if not heard.odd:
        heard.streams = [_is_stream(fd) for fd in heard.fds[: greeting.FDS]]
    return heard


def _answers(fd: int) -> bool:
    """Whether it is no file of a file system that is a user's program: those can hold up who closes them, any copy.

    So every program that is started while they are open waits, for its copies. The file system is not asked itself:
    whatever our mount table does not have was mounted elsewhere, by anybody.
    """
    if sys.platform != "linux":
        return True
    for command in (fcntl.F_GETPIPE_SZ, _F_GET_SEALS):  # pipes and memory have these
        try:
            fcntl.fcntl(fd, command)
        except OSError:
            continue
        return True
    try:
        socket.socket(fileno=fd).detach()
    except OSError:
        pass
    else:
        return True
    try:
        facts = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
        mount = next(line.split()[1] for line in facts.splitlines() if line.startswith("mnt_id:"))
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except (OSError, StopIteration):
        return False
    for words in (line.split(" ") for line in table.splitlines()):
        if words[0] == mount:  # what follows the dash: type, source, options
            return "-" in words[6:] and not words[words.index("-", 6) + 1].startswith("fuse")
    return False


def _is_stream(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _room() -> int:
    """How many descriptors may wait to be let go of: half of all, the rest is for those that are served."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft // 2


def _hang_up(connection: socket.socket, fds: list[int]) -> None:
    """Beside the loop, too: what it holds unread may be descriptors."""
    connection.close()
    close_all(fds)


class _Greeting:
    """A connection that has not said everything yet."""

    def __init__(self, server: UnixRelay, connection: socket.socket, peer: Peer, door: str | None) -> None:
        self._server = server
        self._door = door
        self._connection = connection
        self.peer = peer
        self._data = bytearray()
        self._fds: list[int] = []
        self._streams: list[bool] = []
        self._hearing = False
        self._why: str | None = None
        """why it was dropped"""
        self._timer = server.loop.call_later(GREETING_S, self.drop, "no greeting in time")
        server.loop.add_reader(connection.fileno(), self._ready)

    @property
    def size(self) -> int:
        """Bytes said so far."""
        return len(self._data)

    def _ready(self) -> None:
        self._server.loop.remove_reader(self._connection.fileno())
        self._hearing = True
        trusted = self.peer.uid == os.geteuid()
        self._server.ears.do(self.peer.uid, partial(_hear, self._connection, trusted), self._heard)

    def _heard(self, heard: _Heard | None) -> None:
        self._hearing = False
        if heard is not None:
            self._fds += heard.fds
            self._streams += heard.streams
        if self._why is not None:
            self._part()
            return
        if heard is None:
            self.drop("it cannot be heard")
            return
        self._data += heard.data
        if len(self._data) > _LARGE and self._server.waiting_bytes(self.peer.uid) > GREETING_BYTES:
            self.drop("too many large greetings at once")
            return
        if heard.torn or len(self._fds) > greeting.FDS:
            self.drop("wrong number of descriptors")
            return
        try:
            if heard.odd:
                raise ValueError(
                    "stderr is a file that the daemon of another user cannot hold (FUSE, or another mount namespace)"
                )
            expected = greeting.expected(bytes(self._data[: greeting.PREFIX])) if self._data else 0
            if expected and len(self._data) >= expected:
                self._complete(greeting.decode(bytes(self._data)))
                return
        except ValueError as error:
            try:
                self._connection.send(greeting.say_no(str(error)))
            except OSError:
                pass
            self.drop(str(error))
            return
        if heard.over:
            self.drop("left before greeting")
        else:
            self._server.loop.add_reader(self._connection.fileno(), self._ready)

    def _complete(self, hello: greeting.Hello) -> None:
        if len(self._fds) != greeting.FDS:
            raise ValueError("the greeting came without its descriptors")
        if not all(self._streams[: greeting.STDERR]):
            raise ValueError("only pipes and sockets can be handed over")
        for fd in self._fds[: greeting.STDERR]:
            os.set_blocking(fd, False)
        self._timer.cancel()
        (client_in, client_out, stderr, ledger), self._fds = self._fds, []
        aside = self._server.aside
        control = Control(self._server.loop, self._connection, aside, self.peer.uid)
        attachment = Attachment(hello, self.peer, control, client_in, client_out, stderr, ledger, aside, self._door)
        self._server.greeted(self)
        try:
            self._server.on_attach(attachment)
        except Exception:
            _log.exception("a session could not be started")
            attachment.refuse("a fault in the daemon; see `aegis logs`")

    def drop(self, why: str) -> None:
        """Says nothing more. It counts as long as what it brought is not let go of."""
        if self._why is not None:
            return
        self._why = why
        _log.info("a connection was dropped: %s", why)
        self._timer.cancel()
        self._data.clear()
        if not self._hearing:
            self._server.loop.remove_reader(self._connection.fileno())
            self._part()

    def _part(self) -> None:
        fds, self._fds = self._fds, []
        work = partial(_hang_up, self._connection, fds)
        self._server.aside.do(self.peer.uid, work, lambda done: self._server.greeted(self), fds=1 + len(fds))


class UnixRelay:
    """The sockets that agents use. `accepts(peer)` tells whether a user may connect at all.

    `given` are sockets that listen already, and the agent whose door each is (None: everybody's); where there are some,
    none is made at `path`, and none is removed at the end. `belongs(peer, agent)` is asked at an agent's own door.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: Path,
        *,
        accepts: Callable[[Peer], bool],
        on_attach: Callable[[Attachment], None],
        mode: int = 0o600,
        given: Mapping[socket.socket, str | None] | None = None,
        belongs: Callable[[Peer, str], bool] = lambda peer, agent: False,
    ) -> None:
        self.loop = loop
        self.aside = Aside(loop)
        """where what was handed over is let go of"""
        self.ears = Aside(loop)
        """where greetings are received: whoever leaves slowly does not keep the next from being heard"""
        self._given = given
        self._belongs = belongs
        self._doors: dict[socket.socket, str | None] = {}
        self._inode: tuple[int, int] | None = None
        self._path = path
        self._accepts = accepts
        self.on_attach = on_attach
        self._mode = mode
        self._greeting: set[_Greeting] = set()
        self._said = False

    def open(self) -> None:
        """Listens. The caller holds the daemon's lock, so a socket file in the way is a dead daemon's.

        Raises `OSError`: something else is in the way (`AEGIS_SOCKET` may name anything), or the path cannot be bound.
        """
        self._doors = dict(self._given) if self._given is not None else {self._bind(): None}
        if self._given is not None and None in self._given.values():
            self._chmod()
        for listener in self._doors:
            self.loop.add_reader(listener.fileno(), self._accept, listener)

    def _bind(self) -> socket.socket:
        try:
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise FileExistsError(errno.EEXIST, "this is no socket; move it away", str(self._path))
            self._path.unlink()
        except FileNotFoundError:
            pass
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o777 & ~self._mode)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(mask)
        listener.listen(512)
        listener.setblocking(False)
        made = os.lstat(self._path)
        self._inode = (made.st_dev, made.st_ino)
        return listener

    def set_mode(self, mode: int) -> None:
        """Who may open the socket that all agents share from now on."""
        if mode != self._mode and None in self._doors.values():
            self._mode = mode
            self._chmod()

    def _chmod(self) -> None:
        try:
            os.chmod(self._path, self._mode)
        except OSError as error:
            _log.error("the socket's mode could not be changed: %s", error)

    def _accept(self, listener: socket.socket) -> None:
        door = self._doors[listener]
        for _ in range(64):
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if error.errno not in _AGAIN:
                    # Out of descriptors: the waiting ones stay in the kernel's queue until some come free.
                    _log.error("cannot accept a connection: %s", error)
                    self.loop.remove_reader(listener.fileno())
                    self.loop.call_later(_PAUSE_S, self._again, listener)
                return
            connection.setblocking(False)
            peer = Peer(NOBODY, None)
            try:
                peer = peer_of(connection)
                welcome = self._accepts(peer) if door is None else self._belongs(peer, door)
            except OSError:
                welcome = False
            behind = self.aside.behind(peer.uid) >= GREETINGS
            if not welcome or behind or sum(1 for one in self._greeting if one.peer.uid == peer.uid) >= GREETINGS:
                self._turn_away(peer.uid, connection)
                if self._crowded():
                    self.loop.remove_reader(listener.fileno())
                    self.loop.call_later(_PAUSE_S, self._again, listener)
                    return
                continue
            self._greeting.add(_Greeting(self, connection, peer, door))

    def _turn_away(self, uid: int, connection: socket.socket) -> None:
        """It waits for a thread of its own user's, so that whoever comes too fast keeps nobody else out."""
        try:
            connection.shutdown(socket.SHUT_RDWR)  # the peer sees the end now, whatever closing takes
        except OSError:
            pass
        self.aside.do(uid, connection.close)

    def _crowded(self) -> bool:
        """Whether what waits to be let go of leaves too few descriptors to take more."""
        room = _room()
        if self.aside.held < room:
            self._said = self._said and self.aside.held >= room // 2
            return False
        if not self._said:
            self._said = True
            _log.error("no connections are accepted: %d descriptors wait to be let go of", self.aside.held)
        return True

    def _again(self, listener: socket.socket) -> None:
        if listener not in self._doors:
            return
        if self._crowded():
            self.loop.call_later(_PAUSE_S, self._again, listener)
        else:
            self.loop.add_reader(listener.fileno(), self._accept, listener)

    def waiting_bytes(self, uid: int) -> int:
        """How much the unfinished greetings of a user take."""
        return sum(one.size for one in self._greeting if one.peer.uid == uid)

    def greeted(self, done: _Greeting) -> None:
        """A greeting is over."""
        self._greeting.discard(done)

    def close(self) -> None:
        """No more connections."""
        for listener in self._doors:
            self.loop.remove_reader(listener.fileno())
            self.aside.do(NOBODY, listener.close)  # those that wait at it may have brought something
        if self._doors and self._given is None:
            try:
                found = os.lstat(self._path)
                if (found.st_dev, found.st_ino) == self._inode:  # else it is a service manager's by now
                    self._path.unlink()
            except OSError:
                pass
        self._doors = {}
        for waiting in list(self._greeting):
            waiting.drop("the daemon ends")
