"""Bytes in and frames out of non-blocking descriptors, with every buffer bounded and every write accounted for."""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

_log = logging.getLogger("aegis.descriptor")
Chunk = bytes | memoryview
_AGAIN = (errno.EAGAIN, errno.EWOULDBLOCK)
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)

# O_NONBLOCK belongs to whoever shares a pipe's or socket's open file, so a descriptor that was handed over can be made
# blocking again at any time; one such write would stop the whole daemon. RWF_NOWAIT asks for each call anew (pipes:
# Linux 6.4). Where there is none, the flag is set again just before.


def write_now(fd: int, chunks: Sequence[Chunk]) -> int:
    """As `os.writev`, and never blocks, whatever a stranger did to the descriptor."""
    if _NOWAIT:
        try:
            return os.pwritev(fd, chunks, -1, _NOWAIT)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
    os.set_blocking(fd, False)
    return os.writev(fd, chunks)


def read_now(fd: int, into: memoryview) -> int:
    """As `os.readv` into one buffer, and never blocks, whatever a stranger did to the descriptor."""
    if _NOWAIT:
        try:
            return os.preadv(fd, (into,), -1, _NOWAIT)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
    os.set_blocking(fd, False)
    return os.readv(fd, (into,))


_ALONG = socket.CMSG_SPACE(array.array("i").itemsize * 253)
"""Room for as many descriptors as one message can bring (Linux); the others the kernel closes, where we read."""
_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class SocketReader:
    """As `read_now`, of a socket that others share.

    Descriptors that come along go to `on_fds` and are never closed here: to close a stranger's can take as long as the
    stranger likes (`loop.aside`).
    """

    __slots__ = ("_on_fds", "_socket")

    def __init__(self, fd: int, on_fds: Callable[[list[int]], None]) -> None:
        """Raises `OSError` where it is no socket."""
        self._on_fds = on_fds
        self._socket = socket.socket(fileno=fd)

    @classmethod
    def of(cls, fd: int, on_fds: Callable[[list[int]], None]) -> SocketReader | None:
        """One for this descriptor, which stays the caller's; None where it is no socket."""
        try:
            return cls(fd, on_fds)
        except OSError:
            return None

    def read_now(self, into: memoryview) -> int:
        """How many bytes came, 0 at the end: what brings descriptors along ends there."""
        size, ancillary, flags, _ = self._socket.recvmsg_into((into,), _ALONG, _DONTWAIT)
        if not ancillary and not flags & socket.MSG_CTRUNC:
            return size
        received = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
        if received:
            self._on_fds(list(received))
        elif not flags & socket.MSG_CTRUNC:
            return size  # credentials and the like, which whoever shares the socket asked for
        return 0

    def detach(self) -> None:
        """Lets go of it without closing it."""
        self._socket.detach()


PIPE_SIZE = 1 << 18
_SMALL, _LARGE = 1 << 16, 1 << 20
"""What is read at once, and where large frames come."""
_COPIED = 1 << 14
"""Bytes of a frame up to which its newline is put behind a copy of it, not beside it."""
_TOGETHER = 256
"""How many pieces go into one write; systems take at least 16, Linux and macOS 1,024."""


def enlarge(fd: int) -> None:
    """Gives a pipe room for a large frame, so that it is one write and one wake-up (`scripts/bench` S7)."""
    if sys.platform == "linux":
        try:
            if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < PIPE_SIZE:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            pass  # no pipe, or over the user's quota of pipe pages: the size it has works too


class Outbox:
    """Writers with something to send. Frames that one event caused leave in one write per descriptor.

    Whoever handles an event calls `begin` before and `flush` after; frames sent outside leave in the next loop turn.
    """

    __slots__ = ("_after", "_dirty", "_handling", "_loop", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._dirty: list[FrameWriter] = []
        self._after: list[Callable[[], None]] = []
        self._scheduled = False
        self._handling = False

    def begin(self) -> None:
        """An event is being handled: `flush` will come."""
        self._handling = True

    def add(self, writer: FrameWriter) -> None:
        """Notes that `writer` has frames."""
        self._dirty.append(writer)
        if not self._handling:
            self._soon()

    def after(self, work: Callable[[], None]) -> None:
        """Does this once the frames that were noted have left: what nobody waits for."""
        self._after.append(work)
        if not self._handling:
            self._soon()

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Writes everything that was noted."""
        self._handling = False
        while dirty := self._dirty:
            self._dirty = []
            for writer in dirty:
                try:
                    writer.flush()
                except Exception:  # one session's fault must not keep the frames of all the others
                    _log.exception("a writer failed")
        if self._after:
            after, self._after = self._after, []
            for work in after:
                try:
                    work()
                except Exception:
                    _log.exception("what follows a frame failed")


class FrameWriter:
    """Whole frames onto one descriptor, in order.

    `on_sent(count)` tells how many frames went out whole; `on_full(bool)` that the peer reads too slowly (more than
    `high` bytes wait) or again fast enough; `on_broken` that nobody reads any more. `before` and `after` frame each
    system call, for whoever keeps a mark of half-written frames. `write` is `write_now` where others share the
    descriptor.
    """

    __slots__ = (
        "_buffer", "_full", "_head", "_loop", "_outbox", "_pieces", "_queued", "_watching", "_write", "before",
        "broken", "fd", "high", "on_broken", "on_full", "on_sent",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        fd: int,
        high: int = 1 << 18,
        write: Callable[[int, Sequence[Chunk]], int] = os.writev,
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self._write = write
        self.fd = fd
        self.high = high
        self.broken = False
        self.on_sent: Callable[[int], None] | None = None
        self.on_full: Callable[[bool], None] | None = None
        self.on_broken: Callable[[], None] | None = None
        self.before: Callable[[bool], None] | None = None
        self._pieces: deque[bytes] = deque()
        """frames with their newline, or in two pieces"""
        self._head = 0  # bytes of the first piece that are already out
        self._buffer = 0  # bytes that wait
        self._queued = False
        self._watching = False
        self._full = False

    @property
    def waiting(self) -> int:
        """Bytes not yet taken by the peer."""
        return self._buffer

    def send(self, frame: bytes) -> None:
        """Queues one frame, newline added. Frames for a broken descriptor are dropped."""
        if self.broken:
            return
        if len(frame) <= _COPIED:
            self._pieces.append(frame + b"\n")
        else:
            self._pieces += (frame, b"\n")
        self._buffer += len(frame) + 1
        if self._watching:
            self._weigh()  # nothing is written until the peer reads, which may be never
        elif not self._queued:
            self._queued = True
            self._outbox.add(self)

    def flush(self) -> None:
        """Writes what can be written now."""
        self._queued = False
        if self.broken:
            return
        pieces = self._pieces
        mark = self.before
        if mark is not None:
            mark(True)
        sent = 0
        try:
            while pieces:
                size = self._buffer
                chunks: Sequence[Chunk] = pieces
                if self._head or len(pieces) > _TOGETHER:
                    chunks = self._some()
                    size = sum(map(len, chunks))
                done = self._write(self.fd, chunks)
                self._buffer -= done
                if self._buffer:
                    sent += self._gone(done)
                    if done < size:
                        break
                else:
                    sent += 1 if len(pieces) == 1 else _frames_in(pieces)
                    self._head = 0
                    pieces.clear()
        except OSError as error:
            if error.errno not in _AGAIN:
                self._break()
                return
        if mark is not None and not self._head and (not pieces or pieces[0] != b"\n"):
            mark(False)
        if sent and self.on_sent is not None:
            self.on_sent(sent)
        if pieces or self._watching:
            self._watch(bool(pieces))
        if self._full or self._buffer > self.high:
            self._weigh()

    def _some(self) -> list[Chunk]:
        """What is left of the first piece, and as many more as one write takes."""
        chunks: list[Chunk] = list(islice(self._pieces, _TOGETHER))
        chunks[0] = memoryview(chunks[0])[self._head :]
        return chunks

    def _gone(self, done: int) -> int:
        """So many bytes are out and more are left: how many whole frames that was."""
        pieces = self._pieces
        left = done + self._head
        sent = 0
        while left >= len(pieces[0]):
            piece = pieces.popleft()
            left -= len(piece)
            sent += piece.endswith(b"\n")
        self._head = left
        return sent

    def _weigh(self) -> None:
        full = self._buffer > self.high
        if full is not self._full:
            self._full = full
            if self.on_full is not None:
                self.on_full(full)

    def _watch(self, wanted: bool) -> None:
        if wanted is self._watching:
            return
        self._watching = wanted
        if wanted:
            self._loop.add_writer(self.fd, self.flush)
        else:
            self._loop.remove_writer(self.fd)

    def _break(self) -> None:
        self.broken = True
        self._watch(False)
        self._pieces.clear()
        self._buffer = 0
        if self.on_broken is not None:
            self.on_broken()

    def close(self) -> None:
        """Stops watching; the descriptor itself belongs to the caller."""
        self.broken = True
        self._watch(False)
        self._pieces.clear()
        self._buffer = 0


def _frames_in(pieces: Iterable[bytes]) -> int:
    return sum(piece.endswith(b"\n") for piece in pieces)


class LineReader:
    """Lines from one descriptor, read into memory of our own.

    `on_lines(lines)` gets complete lines without newline; `on_long(head, tail)` a line over `limit`, of which only
    the ends were kept; `on_end` the end of input or an error.
    """

    __slots__ = (
        "_buffer", "_chunk", "_head", "_limit", "_loop", "_outbox", "_reading", "_skipping", "fd", "on_end",
        "on_lines", "on_long",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, outbox: Outbox, fd: int, limit: int, *, chunk: int = _SMALL
    ) -> None:
        self._loop = loop
        self._outbox = outbox
        self.fd = fd
        self._limit = limit
        self._chunk = chunk
        self._buffer = bytearray()
        self._skipping = False
        self._head = b""
        self._reading = False
        self.on_lines: Callable[[list[bytes]], None] = lambda lines: None
        self.on_long: Callable[[bytes, bytes], None] = lambda head, tail: None
        self.on_end: Callable[[], None] = lambda: None

    def resume(self) -> None:
        """Reads again."""
        if not self._reading and self.fd >= 0:
            self._reading = True
            self._loop.add_reader(self.fd, self._ready)

    def pause(self) -> None:
        """Leaves what comes in the kernel's buffer."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.fd)

    def close(self) -> None:
        """Stops for good; the descriptor itself belongs to the caller."""
        self.pause()
        self.fd = -1

    def _ready(self) -> None:
        try:
            data = os.read(self.fd, self._chunk)
        except OSError as error:
            if error.errno in _AGAIN:
                return
            data = b""
        outbox = self._outbox
        outbox.begin()
        try:
            if not data:
                self.pause()
                self.on_end()
            else:
                if len(data) == self._chunk:
                    self._chunk = _LARGE
                elif self._chunk == _LARGE and len(data) < _SMALL:
                    self._chunk = _SMALL  # room for a large frame that is not used costs 15 us a read
                self.feed(data)
        finally:
            outbox.flush()

    def feed(self, data: bytes) -> None:
        """Takes bytes as if they had just been read."""
        buffer = self._buffer
        if not buffer and not self._skipping and data.endswith(b"\n"):
            # The usual case: whole lines and nothing left over.
            whole = data[:-1]
            self._deliver([whole] if b"\n" not in whole else whole.split(b"\n"))
            return
        if self._skipping:
            end = data.find(b"\n")
            if end < 0:
                buffer += data[-4096:]
                del buffer[:-4096]
                return
            buffer += data[:end]
            head, tail = self._head, bytes(buffer[-4096:])
            self._skipping = False
            self._head = b""
            buffer.clear()
            self.on_long(head, tail)
            if end + 1 < len(data):
                self.feed(data[end + 1 :])
            return
        # A newline can only be in what is new: the buffer holds none.
        end = data.rfind(b"\n")
        if end < 0:
            buffer += data
            if len(buffer) > self._limit + 1:
                self._skipping = True
                self._head = bytes(buffer[:4096])
                del buffer[:-4096]
            return
        single = end == len(data) - 1 and data.find(b"\n") == end
        buffer += memoryview(data)[:end]
        whole = bytes(buffer)
        buffer.clear()
        buffer += data[end + 1 :]
        self._deliver([whole] if single else whole.split(b"\n"))

    def _deliver(self, lines: list[bytes]) -> None:
        limit = self._limit + 1
        if len(lines) == 1:
            line = lines[0]
            if len(line) > limit:
                self.on_long(line[:4096], line[-4096:])
            elif not line.endswith(b"\r"):
                if line:
                    self.on_lines(lines)
            elif line != b"\r":
                self.on_lines([line[:-1]])
        elif all(len(line) <= limit for line in lines):
            self.on_lines([line[:-1] if line.endswith(b"\r") else line for line in lines if line and line != b"\r"])
        else:
            for line in lines:
                self._deliver([line])
