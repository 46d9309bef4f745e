"""Relay: two threads copy bytes as they come, each way on its own; they know nothing of frames and drop nothing.

The daemon gets the inner ends of two pipes, `client_in` and `client_out`. The shim keeps both ends of both, so that
what a killed daemon had not read, or not finished writing, is still there for the next one.

Measured, everything on one core, added CPU for a 300 B frame there and back, and for one of 100 kB: threads that
splice 7.7 and 9 us, one poll loop that splices 10.3 and 11; threads that copy through a kept buffer 10.5 and 48, a
poll loop with the same buffer 12.8 and 54; `read(fd, 262144)`, which makes a new buffer each time, 38 and 160.
Splicing is for two pipes only: from a socket it holds the pipe's lock while it waits, and its reader hangs.
"""

from __future__ import annotations

import _thread
import errno
import posix
import select

CHUNK = 256 * 1024  # bytes per system call at most, and the size asked for the two pipes
GONE = 254  # wake-up bytes; signals use their numbers. GONE: nobody reads the shim's stdout any more
DRAINED = 255  # everything the daemon wrote is on the shim's stdout, and nothing more can come


class Relay:
    """The two pipes and the two threads. `wake` gets one byte, GONE or DRAINED, when the way out ends."""

    __slots__ = ("_client_in_inner", "_client_out_inner", "_wake", "client_in", "client_out")

    def __init__(self, wake: int) -> None:
        self._wake = wake
        self.client_in, self._client_in_inner = _pipe()
        self._client_out_inner, self.client_out = _pipe()

    def start(self) -> None:
        """Copies from now on."""
        _thread.start_new_thread(self._inward, ())
        _thread.start_new_thread(self._outward, ())

    def pending(self) -> bool:
        """Whether bytes on the way out still wait for their thread."""
        ready = select.poll()
        ready.register(self._client_out_inner, select.POLLIN)
        return bool(ready.poll(0))

    def finish(self) -> None:
        """Nothing more is written to `client_out`: once the daemon has let go of it too, DRAINED follows."""
        posix.close(self.client_out)

    def _inward(self) -> None:
        try:
            _move(0, self._client_in_inner)
        except OSError:
            pass  # a vanished terminal or peer is the end of input
        posix.close(self._client_in_inner)

    def _outward(self) -> None:
        try:
            _move(self._client_out_inner, 1)
        except OSError:
            posix.write(self._wake, bytes((GONE,)))
        else:
            posix.write(self._wake, bytes((DRAINED,)))


def _move(source: int, target: int) -> None:
    """Until the end of `source`. Raises OSError when either side breaks."""
    splice = getattr(posix, "splice", None)
    if splice is not None and _is_pipe(source) and _is_pipe(target):
        try:
            while True:
                try:
                    if not splice(source, target, CHUNK):
                        return
                except BlockingIOError:  # our parent made its end non-blocking; which side is not ready is not said
                    _wait(source, select.POLLIN)
                    _wait(target, select.POLLOUT)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
    room = memoryview(bytearray(CHUNK))
    rooms = (room,)
    readv, write = posix.readv, posix.write
    while True:
        try:
            size = readv(source, rooms)
        except BlockingIOError:
            _wait(source, select.POLLIN)
            continue
        if not size:
            return
        rest = room[:size]
        while rest:
            try:
                rest = rest[write(target, rest) :]
            except BlockingIOError:
                _wait(target, select.POLLOUT)


def _wait(fd: int, mask: int) -> None:
    ready = select.poll()
    ready.register(fd, mask)
    ready.poll()


def _is_pipe(fd: int) -> bool:
    return posix.fstat(fd).st_mode & 0o170000 == 0o010000


def _pipe() -> tuple[int, int]:
    """A pipe that holds more than the usual 64 KiB where the system allows it."""
    ends = posix.pipe()
    try:
        import fcntl

        # Not the 1 MiB that a user may ask for: 128 wrapped servers at once stay under Linux's soft limit on pipe
        # memory (64 MiB a user), beyond which all the user's new pipes would get two pages.
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, CHUNK)
    except (OSError, AttributeError):
        pass
    return ends
