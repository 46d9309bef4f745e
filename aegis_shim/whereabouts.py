"""Where a daemon is that is not at the usual place: it has written so beside its log. Only looked at when none answers.

`aegis_daemon.config.whereabouts` writes the file, and says why; what is read here must be our own user's.
"""

from __future__ import annotations

import posix

from aegis_shim import hello


def elsewhere(state: str) -> str:
    """The agents' socket of the last daemon that had this state directory; "" where it is not known."""
    said = _own(state + "/daemon.at")
    path, newline, _ = said.partition(b"\n")
    return hello.text(path) if newline and path.startswith(b"/") and b"\0" not in path else ""


def holder(state: str) -> int:
    """The process that has the log of this state directory open; 0 for none."""
    said = _own(state + "/journal/lock", held=True).strip()
    return int(said) if said.isdigit() and len(said) < 10 else 0


def _own(path: str, held: bool = False) -> bytes:
    """What a file holds that nobody else could have written, where (`held`) its lock is taken; nothing else."""
    try:
        fd = posix.open(hello.octets(path), posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC)
    except OSError:
        return b""
    try:
        found = posix.fstat(fd)
        ours = found.st_mode & 0o170022 == 0o100000 and found.st_uid == posix.geteuid()
        if not ours or (held and not _locked(fd)):
            return b""
        return posix.read(fd, 1 << 14)
    except OSError:
        return b""
    finally:
        posix.close(fd)


def _locked(fd: int) -> bool:
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
