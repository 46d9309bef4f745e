"""The running daemon of an installation is found wherever its sockets are: it says so in a file beside its log.

The sockets' directory is whatever XDG_RUNTIME_DIR says, and a login, `su`, cron and a container do not say the same;
the state's directory is the same for all of them. The file is only looked at where no daemon answers at the usual
place, it counts only as its own user's, and who listens at the place it names is looked at as everywhere. The shim has
its own copy of the reading (`aegis_shim.whereabouts`).
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
import struct
import sys
from contextlib import suppress
from typing import Final

import msgspec

from aegis_daemon.config.paths import Paths

NAME: Final = "daemon.at"
_LOOK_S: Final = 1.0


def write(paths: Paths) -> None:
    """Says that the sockets are there. Raises `OSError`."""
    lines = (paths.socket, paths.run_dir)
    if paths.doors or any("\n" in line for line in lines):
        return
    made = os.path.join(paths.state_dir, f".{NAME}.{secrets.token_hex(8)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"".join(os.fsencode(line) + b"\n" for line in lines))
        os.replace(made, os.path.join(paths.state_dir, NAME))
    except BaseException:
        os.unlink(made)
        raise


def erase(paths: Paths) -> None:
    """The daemon there ends."""
    there = said(paths)
    if there is not None and there.run_dir == paths.run_dir:
        with suppress(OSError):
            os.unlink(os.path.join(paths.state_dir, NAME))


def said(paths: Paths) -> Paths | None:
    """The same installation with the sockets where its last daemon said that they are; None where none said so."""
    if paths.doors:
        return None
    path = os.path.join(paths.state_dir, NAME)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return None
        lines = os.read(descriptor, 1 << 14).split(b"\n")
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if len(lines) != 3 or lines[2] or not all(line.startswith(b"/") and b"\0" not in line for line in lines[:2]):
        return None
    agents, run = map(os.fsdecode, lines[:2])
    return msgspec.structs.replace(
        paths, run_dir=run, socket=agents, manage_socket=os.path.join(run, "manage.sock"),
        lock=os.path.join(run, "daemon.lock"),
    )  # fmt: skip


def elsewhere(paths: Paths) -> Paths | None:
    """The same with its sockets elsewhere, where a daemon listens there and none here."""
    there = said(paths)
    if there is None or there.run_dir == paths.run_dir or listens(paths.manage_socket):
        return None
    return there if listens(there.manage_socket, own=True) else None


def listens(path: str, *, own: bool = False) -> bool:
    """Whether somebody listens on a socket; with `own`, a process of this user."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.settimeout(_LOOK_S)
        try:
            one.connect(path)
            return not own or _uid_of(one) == os.geteuid()
        except TimeoutError:
            return not own  # its queue is full, and whose it is cannot be asked
        except OSError:
            return False


def _uid_of(connection: socket.socket) -> int:
    """Who listens at the other end, as the kernel knows it."""
    if sys.platform == "darwin":
        return int(struct.unpack_from("II", connection.getsockopt(0, 1, 76))[1])  # LOCAL_PEERCRED: struct xucred
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
