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
    """The content of the approver's key file, made (0600) if there is none. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        key = ""
    if not key:  # an empty one would open to anybody
        key = os.urandom(32).hex()
        made = path.with_name(path.name + ".new")
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)  # so that a daemon killed here leaves a whole key or none
    return key
