"""A file gets each checkpoint as it is signed, and nothing that it has is touched: it is opened for appending alone.

It is a witness where the daemon's user may not do more than that: a file of another user that this one may write to,
with `chattr +a`; or a FIFO that a process of another user reads. A link in its place is not followed.
"""

from __future__ import annotations

import errno
import os
import stat

import msgspec

from aegis_daemon.exports.sink import Trouble, Witness, aside


class Settings(msgspec.Struct, frozen=True):
    """Where it is."""

    path: str


class FileWitness(Witness):
    """One file; made (0644) where there is none."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.path
        self._half = False
        """Whether what was written last is not whole."""

    async def push(self, origin: str, size: int, note: str) -> None:
        """Appends the checkpoint and an empty line, and syncs it."""
        await aside(lambda: self._append(note.encode() + b"\n"))

    def _append(self, data: bytes) -> None:
        if self._is_cut_off():
            data = b"\n" + data  # behind half a checkpoint, that of a full disk or a kill
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags, 0o644)
        except OSError as error:
            why = {errno.ENXIO: "nobody reads the FIFO", errno.ELOOP: "it is a link"}.get(error.errno or 0)
            raise Trouble(f"`{self._path}` cannot be opened: {why or os.strerror(error.errno or 0).lower()}") from None
        try:
            self._half = True
            if os.write(fd, data) != len(data):
                raise Trouble(f"`{self._path}` took a part of the checkpoint alone; it is written again")
            self._half = False
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.fsync(fd)
        finally:
            os.close(fd)

    def _is_cut_off(self) -> bool:
        """Whether the file ends within a line, as far as it can be read."""
        try:
            if not stat.S_ISREG(os.lstat(self._path).st_mode):  # a FIFO is not opened by whoever does not read it
                return self._half
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return self._half
        try:
            size = os.fstat(fd).st_size
            return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        finally:
            os.close(fd)


def make(settings: Settings) -> FileWitness:
    """A witness of this type."""
    return FileWitness(settings)
