"""A configuration file is replaced whole or not at all, and only while it still says what the change was made for."""

from __future__ import annotations

import fcntl
import os
import stat
from functools import partial
from typing import Final

from aegis_daemon.config.source import open_regular
from aegis_daemon.loop import whole

KEPT: Final = ".before-allow"
"""What the name of the file that keeps the old text ends with; there is one, the newest."""


class Moved(Exception):
    """The file does not say any more what the change was made for."""


def replace(path: str, old: bytes, new: bytes, *, keep: bool = True) -> str:
    """Puts `new` in the place of `old`; mode and owner stay, and a symbolic link stays one.

    Gives the path of the old text, which is kept beside the file (0600) unless `keep` is False.

    :raises Moved: the file does not hold `old`. :raises OSError: it cannot be replaced, and is as it was.
    """
    target = os.path.realpath(path)
    descriptor = open_regular(target)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # keeps two such changes apart, and nobody else
        held = os.fstat(descriptor)
        backup = target + KEPT
        if keep:
            _put(backup, old, 0o600, held)
        _put(target, new, stat.S_IMODE(held.st_mode), held, still=old)
    finally:
        os.close(descriptor)
    return backup


def _put(path: str, data: bytes, mode: int, like: os.stat_result, *, still: bytes | None = None) -> None:
    """A file of this content in place of what is there, owned as `like` is. `still`: what must be there till then."""

    def dress(descriptor: int) -> None:
        own = os.fstat(descriptor)
        if (own.st_uid, own.st_gid) != (like.st_uid, like.st_gid):
            os.fchown(descriptor, like.st_uid, like.st_gid)
        os.fchmod(descriptor, mode)

    whole.put(path, data, dress=dress, last=None if still is None else partial(_check, path, still, like))
    whole.sync_directory(os.path.dirname(path))


def _check(path: str, still: bytes, like: os.stat_result) -> None:
    with os.fdopen(open_regular(path), "rb") as file:
        found = os.fstat(file.fileno())
        if (found.st_dev, found.st_ino) != (like.st_dev, like.st_ino) or file.read(len(still) + 1) != still:
            raise Moved(path)
