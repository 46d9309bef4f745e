"""A journal file is full of zeros and synced before anything relies on it, private, and never a link."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from aegis_daemon.audit.segment import Header, decode_header, header_size

SEGMENT = 8 << 20
"""Bytes of a fresh file."""

if sys.platform == "darwin":  # its fsync leaves the data in the drive's cache

    def sync_file(fd: int) -> None:
        """Returns when what was written is on disk. Raises `OSError`."""
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)

else:

    def sync_file(fd: int) -> None:
        """Returns when what was written is on disk. Raises `OSError`."""
        os.fdatasync(fd)


def write_all(fd: int, data: bytes, at: int) -> None:
    """Raises `OSError`."""
    while data:
        written = os.pwrite(fd, data, at)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data, at = data[written:], at + written


def write_again(path: Path, size: int) -> None:
    """Writes a file's first `size` bytes once more, and syncs it. Raises `OSError`.

    After a failed sync the kernel may show what the disk does not have, and the next sync finds nothing to do
    (fsync(2) tells an error once). What is written again is really written, or really fails.
    """
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        write_all(fd, os.pread(fd, size, 0), 0)
        sync_file(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on disk. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_private(path: Path, data: bytes) -> None:
    """Raises `OSError`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(fd, data, 0)
    finally:
        os.close(fd)


def read_header(path: Path) -> Header | None:
    """The header of a file; None where it has none. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        data = os.pread(fd, 4096, 0)
        size = header_size(data)
        if len(data) < size <= os.fstat(fd).st_size:
            data = os.pread(fd, size, 0)
        return decode_header(data)
    finally:
        os.close(fd)


def wipe(paths: list[Path]) -> None:
    """Overwrites files with zeros, on disk. Raises `OSError`."""
    zeros = bytes(1 << 20)
    for path in paths:
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            size = os.fstat(fd).st_size
            for at in range(0, size, len(zeros)):
                write_all(fd, zeros[: size - at], at)
            sync_file(fd)
        finally:
            os.close(fd)


def make_file(slot: Path) -> Path:
    """A file full of zeros, on disk under its name, or none. Raises `OSError`."""
    made = slot.with_suffix(".new")
    fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        zeros = bytes(1 << 20)
        for at in range(0, SEGMENT, len(zeros)):
            write_all(fd, zeros[: SEGMENT - at], at)
        os.fsync(fd)
        os.rename(made, slot)
    except OSError:
        made.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    sync_folder(slot.parent)
    return slot


class LogFile:
    """A journal file in use, or waiting to be ingested; `fd` is -1 once nothing writes to it."""

    __slots__ = ("doubtful", "fd", "header", "last_seq", "path")

    def __init__(self, path: Path, header: Header, last_seq: int, fd: int = -1) -> None:
        self.path = path
        self.header = header
        self.last_seq = last_seq
        self.fd = fd
        self.doubtful = False
        """whether it is not used again: a sync of it failed, or records in it are in no chain"""


class _Work:
    """Something done on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def begin(self) -> OSError | None:
        """Begins; gives why that cannot be (a system that is out of threads)."""
        try:
            self._thread.start()
        except RuntimeError as error:
            return OSError(errno.EAGAIN, str(error))
        return None

    def wait(self, seconds: float | None = None) -> None:
        """Returns when it is done, or after `seconds`."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        raise NotImplementedError


class Maker(_Work):
    """Makes a file on a thread: `path` when it is made, `error` when it could not be."""

    def __init__(self, slot: Path) -> None:
        self.slot = slot
        self.path: Path | None = None
        self.error: OSError | None = None
        self._ended = time.monotonic()
        super().__init__("aegis-audit-file")
        failed = self.begin()
        if failed is not None:
            self.error = failed

    def _run(self) -> None:
        try:
            self.path = make_file(self.slot)
        except OSError as error:
            self._ended = time.monotonic()
            self.error = error

    def failed_for(self, seconds: float) -> bool:
        """Whether the attempt failed at least that long ago."""
        return self.error is not None and time.monotonic() - self._ended >= seconds


class Mender(_Work):
    """Writes a file's beginning and syncs it, on a thread; then calls `done` there. `fd` is -1 where that failed."""

    def __init__(self, path: Path, header: Header, data: bytes, done: Callable[[], None]) -> None:
        self.path = path
        self.header = header
        self.data = data
        self.fd = -1
        self.made = False
        self._done = done
        super().__init__("aegis-audit-mend")
        if self.begin() is not None:
            done()

    def _run(self) -> None:
        fd = -1
        try:
            if not self.path.exists():
                make_file(self.path)
            self.made = True
            fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW)
            write_all(fd, self.data, 0)
            os.fsync(fd)
            self.fd = fd
        except OSError:
            if fd >= 0:
                os.close(fd)
        self._done()
