"""Shims connect here: one greeting, four descriptors, and from then on the socket only says how it ends.

The daemon never reads frames from this socket: in hand-over the descriptors are the client's own, in relay they are
pipes that the shim pumps. Who the peer is comes from the kernel (SO_PEERCRED), never from the greeting. In the isolated
tier each agent has a socket of its own, made by root, and whoever comes through it is that agent or nobody.
"""

from __future__ import annotations

import array
import asyncio
import errno
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from aegis_shim import hello as greeting

_log = logging.getLogger("aegis.unix")
GREETING_S = 10.0
"""Seconds a peer has for its greeting."""
GREETINGS = 1024
"""Connections of one user that may not have greeted yet; another user's are counted apart."""
GREETING_BYTES = 64 * 1024 * 1024
"""Bytes that unfinished greetings of one user may take in all."""
_LARGE = 1 << 16
_AGAIN = (errno.EAGAIN, errno.EWOULDBLOCK)
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
"""What arrives must not be inherited by anything the daemon starts."""


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

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        self._loop = loop
        self._connection = connection
        self._open = True
        self.on_gone: Callable[[], None] = lambda: None
        loop.add_reader(connection.fileno(), self._ready)

    def _ready(self) -> None:
        try:
            if self._connection.recv(4096):
                return  # a shim has nothing to say; what it says all the same is not read
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
            self._connection.close()


class Attachment(msgspec.Struct):
    """One shim that greeted: the descriptors now belong to the receiver."""

    hello: greeting.Hello
    peer: Peer
    control: Control
    client_in: int
    client_out: int
    stderr: int
    ledger: int
    door: str | None = None
    """the agent whose own socket it came through"""

    def refuse(self, reason: str) -> None:
        """Says no and lets go of everything."""
        self.control.say(greeting.say_no(reason))
        self.control.close()
        self.close_descriptors()

    def close_descriptors(self) -> None:
        """Closes what was handed over."""
        for name in ("client_in", "client_out", "stderr", "ledger"):
            fd = getattr(self, name)
            if fd >= 0:
                setattr(self, name, -1)
                os.close(fd)


class _Greeting:
    """A connection that has not said everything yet."""

    def __init__(self, server: UnixRelay, connection: socket.socket, peer: Peer, door: str | None) -> None:
        self._server = server
        self._door = door
        self._connection = connection
        self.peer = peer
        self._data = bytearray()
        self._fds: list[int] = []
        self._timer = server.loop.call_later(GREETING_S, self._drop, "no greeting in time")
        server.loop.add_reader(connection.fileno(), self._ready)

    @property
    def size(self) -> int:
        """Bytes said so far."""
        return len(self._data)

    def _ready(self) -> None:
        try:
            data, ancillary, flags, _ = self._connection.recvmsg(1 << 16, socket.CMSG_SPACE(4 * 16), _CLOEXEC)
        except OSError as error:
            if error.errno in _AGAIN:
                return
            data, ancillary, flags = b"", [], 0
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self._fds.extend(received)
        if not data:
            self._drop("left before greeting")
            return
        self._data += data
        if len(self._data) > _LARGE and self._server.waiting_bytes(self.peer.uid) > GREETING_BYTES:
            self._drop("too many large greetings at once")
            return
        if flags & socket.MSG_CTRUNC or len(self._fds) > greeting.FDS:
            self._drop("wrong number of descriptors")
            return
        try:
            expected = greeting.expected(bytes(self._data[: greeting.PREFIX]))
            if expected and len(self._data) >= expected:
                self._complete(greeting.decode(bytes(self._data)))
        except ValueError as error:
            self._connection.setblocking(False)
            try:
                self._connection.send(greeting.say_no(str(error)))
            except OSError:
                pass
            self._drop(str(error))

    def _complete(self, hello: greeting.Hello) -> None:
        if len(self._fds) != greeting.FDS:
            raise ValueError("the greeting came without its descriptors")
        for fd in self._fds[: greeting.STDERR]:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
                raise ValueError("only pipes and sockets can be handed over")
            os.set_blocking(fd, False)
        self._server.loop.remove_reader(self._connection.fileno())
        self._timer.cancel()
        (client_in, client_out, stderr, ledger), self._fds = self._fds, []
        control = Control(self._server.loop, self._connection)
        attachment = Attachment(hello, self.peer, control, client_in, client_out, stderr, ledger, self._door)
        self._server.greeted(self)
        try:
            self._server.on_attach(attachment)
        except Exception:
            _log.exception("a session could not be started")
            attachment.refuse("a fault in the daemon; see `aegis logs`")

    def _drop(self, why: str) -> None:
        _log.info("a connection was dropped: %s", why)
        self._timer.cancel()
        self._server.loop.remove_reader(self._connection.fileno())
        self._connection.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self._server.greeted(self)

    drop = _drop


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
        self._given = given
        self._belongs = belongs
        self._doors: dict[socket.socket, str | None] = {}
        self._inode: tuple[int, int] | None = None
        self._path = path
        self._accepts = accepts
        self.on_attach = on_attach
        self._mode = mode
        self._greeting: set[_Greeting] = set()

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
                    self.loop.call_later(0.2, self._again, listener)
                return
            connection.setblocking(False)
            try:
                peer = peer_of(connection)
                welcome = self._accepts(peer) if door is None else self._belongs(peer, door)
            except OSError:
                welcome = False
            if not welcome or sum(1 for one in self._greeting if one.peer.uid == peer.uid) >= GREETINGS:
                connection.close()
                continue
            self._greeting.add(_Greeting(self, connection, peer, door))

    def _again(self, listener: socket.socket) -> None:
        if listener in self._doors:
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
            listener.close()
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
