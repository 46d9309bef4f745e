"""One daemon per socket: the lock that says so, and how it takes and leaves the stage."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from aegis_daemon.core.runtime import AgentRule


class AlreadyRunning(Exception):
    """Another daemon holds the lock; `pid` is None where it does not say which."""

    def __init__(self, pid: int | None) -> None:
        super().__init__("a daemon is running already" + (f" (pid {pid})" if pid else ""))
        self.pid = pid


class Lock:
    """Held while this process lives, whatever ends it: a socket file without a lock holder is no obstacle."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
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


def socket_mode(rules: Iterable[AgentRule], own_uid: int) -> int:
    """Who may open the shims' socket: everybody once an agent is another user's; each peer is then looked at."""
    strangers = any(rule.uids is not None and any(uid != own_uid for uid in rule.uids) for rule in rules)
    return 0o666 if strangers else 0o600


class Plain(logging.Formatter):
    """Log lines that nobody can forge: what agents and servers call themselves may hold line ends, or anything.

    `scrub` gives a text as it may be written down; None where all may be.
    """

    scrub: Callable[[str], str] | None = None

    def format(self, record: logging.LogRecord) -> str:
        """One line; what follows it (a traceback, a list of faults) is indented."""
        text = super().format(record)
        lines = (text if self.scrub is None else self.scrub(text)).split("\n")
        return "\n    ".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


def secret_key(path: Path) -> str:
    """The content of a key file, made (0600) if there is none or a full disk left an empty one.

    Raises `PermissionError` for one that others can read or could have put there: it would prove nothing.
    """
    try:
        with open(path, encoding="ascii", errors="replace", opener=_no_wait) as file:
            found = os.fstat(file.fileno())
            key = file.read(4096).strip()
    except FileNotFoundError:
        return _new_key(path)
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o077:
        text = "a key must be its owner's alone; give it back with chown and `chmod 600`, or remove it"
        raise PermissionError(errno.EACCES, text, str(path))
    return key or _new_key(path)


def _new_key(path: Path) -> str:
    key = os.urandom(32).hex()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600, and whole before it has the name
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(key + "\n")
        os.replace(made, path)
    except BaseException:
        os.unlink(made)
        raise
    return key


def _no_wait(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe in its place holds nobody up
