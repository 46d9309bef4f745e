"""Starting a daemon: once among all the shims that miss it, detached from the agent and its descriptors."""

from __future__ import annotations

import posix
import select
import sys

DAEMON = "aegis_daemon.daemon.main"


class Starter:
    """One attempt. It holds a lock beside the socket, so that of many shims one starts the daemon and all wait."""

    __slots__ = ("_life", "_lock", "_log", "_run")

    def __init__(self, socket: bytes, log: bytes) -> None:
        self._run = socket.rpartition(b"/")[0] or b"/"
        self._log = log
        self._lock = -1
        self._life = -1  # a pipe that ends with the daemon we started

    def start(self, env: dict[bytes, bytes]) -> bool:
        """Whether this shim was the one. Raises OSError when no process can be made or a directory is not ours."""
        if self._lock >= 0:
            return False
        import fcntl

        make_directory(self._run)
        if posix.stat(self._run).st_uid != posix.geteuid():
            raise PermissionError(1, "the socket's directory belongs to another user, who must start it")

        flags = posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW
        lock = posix.open(self._run + b"/start.lock", flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            posix.close(lock)
            return False
        self._lock = lock
        self._life = detach([sys.executable, "-I", "-m", DAEMON], env, self._log)
        return True

    def ended(self) -> bool:
        """Whether the daemon we started is gone again (or was one too many, and left the field to another)."""
        if self._life < 0:
            return False
        ready = select.poll()
        ready.register(self._life, select.POLLIN)
        return bool(ready.poll(0))

    def done(self) -> None:
        """The daemon is there, or will not come: the next shim may try."""
        for fd in (self._lock, self._life):
            if fd >= 0:
                posix.close(fd)
        self._lock = self._life = -1


def make_directory(path: bytes) -> None:
    """`path` and what is missing above it, 0700. Raises OSError."""
    try:
        posix.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_directory(path.rpartition(b"/")[0])
        make_directory(path)


def detach(argv: list[str], env: dict[bytes, bytes], log: bytes) -> int:
    """Runs `argv` as a daemon: no terminal, no parent of ours (an agent that ends its whole tree does not reach it).

    Returns the reading end of a pipe whose other end the daemon has as descriptor 3. Raises OSError.
    """
    life, daemons = posix.pipe()
    pid = posix.fork()
    if pid:
        posix.close(daemons)
        posix.waitpid(pid, 0)
        return life
    try:
        posix.setsid()
        if posix.fork():
            posix._exit(0)
        null = posix.open(b"/dev/null", posix.O_RDWR)
        out = _log(log)
        for target, source in ((0, null), (1, out), (2, out), (3, daemons)):
            posix.dup2(source if source >= 0 else null, target)
        # A descriptor the agent leaked to us would keep its other end from ever seeing the end.
        most = posix.sysconf("SC_OPEN_MAX")  # may be -1, or beyond all reason, where there is no limit
        posix.closerange(4, most if 4 < most <= 1 << 20 else 1 << 20)
        posix.chdir(b"/")
        posix.execve(argv[0], argv, env)
    finally:
        posix._exit(127)


def _log(path: bytes) -> int:
    try:
        make_directory(path.rpartition(b"/")[0])
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW
        return posix.open(path, flags, 0o600)
    except OSError:
        return -1
