"""`aegis logs`: the daemon's log file, with or without a daemon."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import Annotated, BinaryIO

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import Problem, emit, visible
from aegis_daemon.cli.options import Json, new_app

app = new_app()
_STEP_S = 0.25
_BLOCK = 1 << 16


@app.command()
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, metavar="N", help="The last N lines.")] = 100,
    as_json: Json = False,
) -> None:
    """The daemon's own log. What agents did is in `aegis audit`."""
    paths = link.paths()
    path = paths.log
    if not follow and not os.path.lexists(path):
        raise Problem(f"there is no log at `{path}` yet", "start the daemon with `aegis daemon start`")
    try:
        for line in lines(path, limit, follow, own=not paths.doors):
            if as_json:
                emit({"line": line})
            else:
                print(visible(line), flush=follow)
    except KeyboardInterrupt:
        pass


def lines(path: str, limit: int, follow: bool, own: bool = True) -> Iterator[str]:
    """The last `limit` lines of a file, then those that come. A file that is replaced or cut is begun anew.

    :param own: whether nobody else writes in its directory; else root, who reads it, follows no link there.
    :raises Problem: it is no file.
    """
    place, inode, rest = -1, 0, b""
    while True:
        try:
            with _opened(path, own) as file:
                found = os.fstat(file.fileno())
                if place < 0:
                    data = tail(file, limit)
                    place, inode = file.tell(), found.st_ino
                    *whole, rest = data.split(b"\n")
                    yield from map(_text, whole[-limit:] if limit else ())
                if found.st_ino != inode or found.st_size < place:
                    place, inode, rest = 0, found.st_ino, b""
                file.seek(place)
                while data := file.read(_BLOCK):
                    place += len(data)
                    *whole, rest = (rest + data).split(b"\n")
                    yield from map(_text, whole)
        except FileNotFoundError:
            place = max(place, 0)  # all that a new file holds is news
        if not follow:
            if rest and limit:
                yield _text(rest)
            return
        time.sleep(_STEP_S)


def _opened(path: str, own: bool) -> BinaryIO:
    """The file, without ever waiting for one that fills a pipe. Raises `Problem`, `FileNotFoundError`."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if own else os.O_NOFOLLOW)
    try:
        file = open(os.open(path, flags), "rb")  # noqa: SIM115  the caller closes it
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
    else:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    raise Problem(f"`{path}` is no file that the daemon made", "look at what it is, and remove it")


def tail(file: BinaryIO, count: int) -> bytes:
    """The end of a file, at least `count` lines of it where there are as many; leaves the file at what follows."""
    end = place = file.seek(0, os.SEEK_END)
    data = b""
    while place and data.count(b"\n") <= count:
        step = min(_BLOCK, place)
        place -= step
        file.seek(place)
        data = file.read(step) + data
    file.seek(end)
    return data


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")
