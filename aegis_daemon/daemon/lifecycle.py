"""One daemon per socket: the lock that says so, and how it takes and leaves the stage."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pwd
import stat
import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Final

from aegis_daemon.config import whereabouts
from aegis_daemon.config.paths import Paths
from aegis_daemon.core.runtime import AgentRule
from aegis_daemon.loop import whole
from aegis_daemon.manage.client import DaemonAway, Refused, ask

_log = logging.getLogger("aegis")
GIVES_WAY_S: Final = 45.0
"""How long another daemon may take to end, for one that the service manager starts."""


class AlreadyRunning(Exception):
    """Another daemon holds the lock; `pid` is None where it does not say which, `why` is why it does not give way.

    `at` is where it has its sockets, where that is another directory.
    """

    def __init__(self, pid: int | None, why: str = "", at: str = "") -> None:
        which = (f" (pid {pid})" if pid else "") + (f", at `{at}`" if at else "")
        super().__init__(f"a daemon is running already{which}" + (f" and does not give way: {why}" if why else ""))
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


def take_over(paths: Paths) -> Lock:
    """The lock, for the daemon that the service manager starts: one that a session started by itself gives way.

    The manager holds the socket's path from then on, so the other one would never hear of a new session; its own ones
    come back to us. It is asked without the approver key, so that it looks at who asks: what a governed agent starts
    may call itself the manager's, and takes nothing over. So does one with its sockets elsewhere, whose XDG_RUNTIME_DIR
    was another one: it has the log open. Raises `AlreadyRunning` where it does not end.
    """
    until = time.monotonic() + GIVES_WAY_S
    there = whereabouts.elsewhere(paths)
    if there is not None:
        _free(there, until).release()
    return _free(paths, until)


def _free(paths: Paths, until: float) -> Lock:
    asked = False
    while True:
        try:
            return Lock(Path(paths.lock))
        except AlreadyRunning as running:
            if time.monotonic() > until:
                raise
            if not asked:
                _log.warning("%s outside the service; it is asked to give way", running)
                try:
                    ask(paths.manage_socket, "stop", restart=True)
                    asked = True
                except Refused as refused:
                    if refused.code == "forbidden":
                        raise AlreadyRunning(running.pid, refused.message) from None
                except DaemonAway:
                    pass  # it has not opened its sockets yet, or has closed them
            time.sleep(0.05)


def door_of(name: str, agents: Container[str]) -> str:
    """The agent that a socket in the agents' directory is for: `bot.sock`, or `bot.1001.sock` for one of its users."""
    stem = name.removesuffix(".sock")
    head, _, tail = stem.rpartition(".")
    return head if stem not in agents and head and tail.isdigit() else stem


def in_group(uid: int, gid: int) -> bool:
    """Whether a user is in a group; one without a name is in none."""
    try:
        who = pwd.getpwuid(uid)
    except KeyError:
        return False
    return gid in os.getgrouplist(who.pw_name, who.pw_gid)


def socket_mode(rules: Iterable[AgentRule], own_uid: int) -> int:
    """Who may open the shims' socket: everybody once an agent is another user's; each peer is then looked at."""
    strangers = any(rule.uids is not None and any(uid != own_uid for uid in rule.uids) for rule in rules)
    return 0o666 if strangers else 0o600


def own_log(path: str) -> None:
    """Makes the log's file the error output of this process, and of all that it starts. Raises `OSError`.

    The daemon opens it as itself. Whoever opens it for the daemon (root, systemd) would follow a link that a server of
    the daemon's user put in its place, and write what that server says into any file of the machine.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no file", path)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
    finally:
        os.close(fd)


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
    whole.put(str(path), f"{key}\n".encode())
    return key


def _no_wait(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe in its place holds nobody up
