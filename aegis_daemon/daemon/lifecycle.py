"""One daemon per socket: the lock that says so, and how it takes and leaves the stage."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class AlreadyRunning(Exception):
    """Another daemon holds the lock; `pid` is None where it does not say which."""

    def __init__(self, pid: int | None) -> None:
        super().__init__("a daemon is running already" + (f" (pid {pid})" if pid else ""))
        self.pid = pid


class Lock:
    """Held while this process lives, whatever ends it: a socket file without a lock holder is no obstacle."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.pread(self._fd, 32, 0).strip()
            os.close(self._fd)
            raise AlreadyRunning(int(said) if said.isdigit() else None) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        """Lets the next one in."""
        os.close(self._fd)


def approver_key(path: Path) -> str:
    """The content of the approver's key file, made (0600) if there is none."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return path.read_text(encoding="ascii").strip()
    with os.fdopen(fd, "w", encoding="ascii") as file:
        key = os.urandom(32).hex()
        file.write(key + "\n")
    return key
