"""A file of another program is replaced whole or not at all, only while it holds what was read, and kept before.

The copies lie in a directory of ours: beside the file some programs would read them as one more configuration, and
projects would commit them with the secrets in them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from aegis_daemon.loop import whole
from aegis_daemon.loop.whole import sync_directory

SIZE_MAX: Final = 16 << 20
"""Bytes. Claude Code's file holds its whole history, and has some megabytes."""
KEPT: Final = 5
"""Copies of one file; those that an undo needs are kept beyond."""
NOTES: Final = ".aegis-made"
"""In a directory of ours: the names of what we made there, a JSON text each, so that all else is known as not ours."""
_NOTES_MAX: Final = 1 << 20
_STAMP: Final = "%Y%m%dT%H%M%SZ"


class Moved(Exception):
    """The file does not hold any more what the change was made for, or one has appeared where none was."""


class Unfit(Exception):
    """What is at the path is not changed by program; the text says why, and what to do."""


def read(path: str) -> bytes | None:
    """The content; None where there is no file. Symbolic links are followed.

    :raises Unfit: it is no regular file, or too large. :raises OSError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise Unfit(f"`{path}` is no regular file; name the file itself")
        data = file.read(SIZE_MAX + 1)
    if len(data) > SIZE_MAX:
        raise Unfit(f"`{path}` has more than {SIZE_MAX >> 20} MB; it is left alone")
    return data


def digest(data: bytes | None) -> str:
    """SHA-256 as 64 hex digits; "" for no file."""
    return "" if data is None else hashlib.sha256(data).hexdigest()


def refusal(path: str) -> str:
    """Why a file is not to be changed although it could be; "" where nothing speaks against it. Links are followed."""
    try:
        held = os.stat(path)
    except OSError:
        return ""
    if not stat.S_ISREG(held.st_mode):
        return f"`{path}` is no regular file; name the file itself"
    if not held.st_mode & stat.S_IWUSR:
        return f"`{path}` is protected against writing; `chmod u+w` it, or change what it is made from"
    return ""


def names(path: str) -> int:
    """How many names (hard links) a file has; a change is seen under the changed one alone. 0 where there is none."""
    try:
        return os.stat(path).st_nlink
    except OSError:
        return 0


def leftovers(path: str) -> list[str]:
    """Unfinished files that a killed command of ours left beside a file; they may hold all that it holds."""
    target = os.path.realpath(path)
    directory, name = os.path.split(target)
    try:
        seen = [(one, whole.UNFINISHED.fullmatch(one)) for one in os.listdir(directory)]
        found = [os.path.join(directory, one) for one, match in seen if match is not None and match[1] == name]
        return [one for one in found if stat.S_ISREG((held := os.lstat(one)).st_mode) and held.st_uid == os.geteuid()]
    except OSError:
        return []


def replace(path: str, before: bytes, after: bytes) -> None:
    """Puts `after` in the place of `before`. Mode, owner, extended attributes and access lists stay.

    A symbolic link stays one, and its target changes.
    :raises Moved: the file does not hold `before`. :raises Unfit: it is protected, or no file.
    :raises OSError: it cannot be replaced, and is as it was.
    """
    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    held = os.stat(target)
    if why := refusal(target):
        raise Unfit(why)

    def dress(descriptor: int) -> None:
        own = os.fstat(descriptor)
        if (own.st_uid, own.st_gid) != (held.st_uid, held.st_gid):
            os.fchown(descriptor, held.st_uid, held.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(held.st_mode))
        _take_over(target, descriptor)

    def last() -> None:
        now = os.stat(target)
        if (now.st_dev, now.st_ino) != (held.st_dev, held.st_ino) or read(target) != before:
            raise Moved(path)

    try:
        whole.put(target, after, dress=dress, last=last)
    except FileNotFoundError:
        raise Moved(path) from None
    _settle(directory)


def _take_over(path: str, descriptor: int) -> None:
    """Extended attributes of a file, access lists among them, as far as this user may give them to another one."""
    if sys.platform != "linux":  # Python has no calls for others
        return
    with suppress(OSError):  # a file system without any
        for name in os.listxattr(path):
            with suppress(OSError):
                os.setxattr(descriptor, name, os.getxattr(path, name))


def write_private(path: str, data: bytes) -> None:
    """Puts a file of our own (0600) in place, whole. The directory must exist. Raises `OSError`."""
    whole.put(path, data)
    _settle(os.path.dirname(path))


def note(path: str) -> None:
    """Writes down that we made this one. Where that cannot be done it counts as somebody else's, and stays."""
    directory, name = os.path.split(path)
    if name in noted(directory):
        return
    with suppress(OSError):
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(os.path.join(directory, NOTES), how, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(f"{json.dumps(name)}\n".encode())


def noted(directory: str) -> frozenset[str]:
    """The names of what we made in a directory, whether or not it is there."""
    try:
        descriptor = os.open(os.path.join(directory, NOTES), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return frozenset()
            lines = file.read(_NOTES_MAX).splitlines()
    except OSError:
        return frozenset()
    found = set()
    for line in lines:
        with suppress(ValueError, RecursionError):
            name = json.loads(line)
            if isinstance(name, str) and name not in ("", ".", "..") and "/" not in name:
                found.add(name)
    return frozenset(found)


def write_new(path: str, data: bytes) -> None:
    """Makes a file of our own (0600) where none is. Raises `FileExistsError`, `OSError`; then none of ours is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    _settle(os.path.dirname(path))


def _settle(directory: str) -> None:
    """After a rename: it is done by now, whether or not this file system can promise it for a loss of power."""
    with suppress(OSError):
        sync_directory(directory)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Keeps two of our commands apart. Makes the file and its directory. Waits. Raises `OSError`."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no file that could be locked; move it away", path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def back_up(directory: str, path: str, data: bytes, needed: Container[str] = (), now: float | None = None) -> str:
    """Keeps this content of `path` in `directory` (made, 0700) and gives the copy's own path (0600).

    Of each file the newest `KEPT` copies stay, and those in `needed`. `now` is in seconds since the epoch.
    Raises `OSError`.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    stem = _stem(path)
    stamp = time.strftime(_STAMP, time.gmtime(time.time() if now is None else now))
    number = 0
    while True:
        copy = os.path.join(directory, f"{stem}.{stamp}" + (f".{number}" if number else ""))
        if not os.path.lexists(copy):
            break
        number += 1
    note(copy)
    write_private(copy, data)
    for old in copies(directory, path)[:-KEPT]:
        if old not in needed and old != copy:
            with suppress(OSError):
                os.unlink(old)
    return copy


def copies(directory: str, path: str) -> list[str]:
    """The kept contents of `path`, oldest first."""
    form = _form(path)
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [(match[1], int(match[2] or 0), name) for name in names if (match := form.fullmatch(name))]
    return [os.path.join(directory, name) for _, _, name in sorted(found)]


def copies_of(copy: str, path: str) -> bool:
    """Whether a copy is one of this file, by its name."""
    return _form(path).fullmatch(os.path.basename(copy)) is not None


def _form(path: str) -> re.Pattern[str]:
    return re.compile(re.escape(_stem(path)) + r"\.(\d{8}T\d{6}Z)(?:\.(\d+))?")


def _stem(path: str) -> str:
    """Names of two files never meet: `config.json` of two programs are told apart by where they are."""
    whole = os.path.realpath(path)
    told = hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]
    return f"{os.path.basename(whole)}-{told}"
