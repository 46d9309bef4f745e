"""A file of lines gets whole lines, in order, each on disk before it counts as sent, and what is there never changes.

A file is finished when it would grow beyond `rotate_mb`, and with the first event of a new day (UTC): it gets the time
and the number of its last record into its name, and a new one begins. What was cut off in the middle of a line (by a
power loss) is taken away before anything is added, and what the file has already is not written twice.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path
from typing import ClassVar

import msgspec

from aegis_daemon.exports.event import Encode, Event
from aegis_daemon.exports.sink import Sink, Trouble, aside
from aegis_daemon.loop.whole import sync_directory

_DAY_S = 86400
_PIECE = 1 << 20
_LINE_MAX = 64 << 20
"""Bytes of a last line that is read to see what it is; events are shorter by far."""
_UID = re.compile(r"(.*)-(\d{1,18})")


class _Meta(msgspec.Struct, frozen=True):
    uid: str = ""


class _Line(msgspec.Struct, frozen=True):
    """Where the uid stands: in the `aegis` format, and in OCSF. Arguments may hold others."""

    uid: str = ""
    metadata: _Meta = _Meta()


class Settings(msgspec.Struct, frozen=True):
    """`rotate_mb` in units of 10^6 bytes."""

    path: str
    rotate_mb: int = 100


class JsonLines(Sink):
    """The file and those that it was before."""

    most_bytes: ClassVar[int] = 4 << 20

    def __init__(self, settings: Settings, encode: Encode) -> None:
        self._path = Path(settings.path)
        self._most = settings.rotate_mb * 1_000_000
        self._encode = encode
        self._fd = -1
        self._size = 0
        self._day = 0
        self._have: tuple[str, int] = ("", 0)
        """the chain and number of the newest record in the file"""
        self._seq = 0

    async def send(self, batch: list[Event]) -> None:
        """Adds the batch and syncs it."""
        await aside(lambda: self._write(batch))

    async def close(self) -> None:
        """Lets go of the file."""
        self._let_go()

    def _write(self, batch: list[Event]) -> None:
        try:
            if self._fd < 0 or self._moved():
                self._open()
            lines: list[bytes] = []
            size = 0
            for event in batch:
                if (
                    event.chain == self._have[0]
                    and 0 < event.seq <= self._have[1]
                    and event.kind not in ("gap", "test")
                ):
                    continue  # the file has it, and the cursor did not know that yet
                line = self._encode(event) + b"\n"
                day = event.ts // 1_000_000 // _DAY_S
                written = self._size + size
                if written and (written + len(line) > self._most or (self._day and day > self._day)):
                    self._add(lines)
                    lines, size = [], 0
                    self._rotate()
                lines.append(line)
                size += len(line)
                self._day = max(self._day, day)
                self._seq = event.seq or self._seq
            self._add(lines)
            newest = max((event.seq for event in batch), default=0)
            if newest:
                self._have = (batch[-1].chain, newest)
        except OSError as error:
            self._let_go()
            raise Trouble(f"`{self._path}` cannot be written: {(error.strerror or str(error)).lower()}") from None

    def _add(self, lines: list[bytes]) -> None:
        if not lines:
            return
        left = memoryview(b"".join(lines))
        while left:
            done = os.write(self._fd, left)
            self._size += done
            left = left[done:]
        os.fsync(self._fd)

    def _moved(self) -> bool:
        """Whether somebody else has put the file away."""
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return True
        ours = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _open(self) -> None:
        self._let_go()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one that is being replaced may be at its last batch
            info = os.fstat(fd)
            self._have, self._day, self._seq = ("", 0), 0, 0
            if info.st_size:
                whole = _line_end(fd, info.st_size)
                if whole < info.st_size:
                    os.ftruncate(fd, whole)
                found = _newest(fd, whole)
                if found is not None:
                    self._have = found
                    self._seq = found[1]
                    self._day = int(info.st_mtime) // _DAY_S
            self._size = os.fstat(fd).st_size
            sync_directory(str(self._path.parent))
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _rotate(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        number, aim = 0, self._path
        while number == 0 or aim.exists():
            again = f"-{number}" if number else ""
            aim = self._path.with_name(f"{self._path.stem}-{stamp}-{self._seq}{again}{self._path.suffix}")
            number += 1
        os.rename(self._path, aim)
        day = self._day
        self._open()
        self._day = day

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _line_end(fd: int, before: int) -> int:
    """Where the last whole line ends that is over before `before`, however long what follows it is; 0 for none."""
    while before > 0:
        start = max(0, before - _PIECE)
        found = os.pread(fd, before - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        before = start
    return 0


def _newest(fd: int, end: int) -> tuple[str, int] | None:
    """The chain and number of the event whose line ends there; None where it has none."""
    start = _line_end(fd, end - 1)
    if not 0 < end - start <= _LINE_MAX:
        return None
    try:
        line = msgspec.json.decode(os.pread(fd, end - start, start), type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    found = _UID.fullmatch(line.uid or line.metadata.uid)
    return (found[1], int(found[2])) if found is not None else None


def make(settings: Settings, encode: Encode) -> JsonLines:
    """The sink."""
    return JsonLines(settings, encode)
