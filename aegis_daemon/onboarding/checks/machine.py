"""The machine's clock and disk are fit for a log that must be whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from aegis_daemon.onboarding.scene import Finding, Scene

AHEAD_S: Final = 120.0
"""How much newer than now a file may be: clocks are put right by some seconds all the time."""
FULL: Final = 64 << 20
LOW: Final = 512 << 20
INODES: Final = 1000
_SHARED: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "afs", "fuse.glusterfs"}
)
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


def clock(scene: Scene) -> Iterator[Finding]:
    """The wall clock against the times of what was written before."""
    newest, which = 0.0, ""
    for path in (*_within(scene.paths.state_dir), *_within(scene.paths.journal), scene.paths.config, __file__):
        with suppress(OSError):
            at = os.stat(path).st_mtime
            if at > newest:
                newest, which = at, path
    if newest > scene.now + AHEAD_S:
        text = f"`{which}` was written {_span(newest - scene.now)} from now"
        yield Finding("clock-behind", text, which)


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def disk(scene: Scene) -> Iterator[Finding]:
    """Room, inodes, what kind of file system it is, and whether it takes and syncs a file."""
    place = scene.paths.state_dir
    while not os.path.isdir(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    short = found.f_files > 0 and found.f_favail < INODES
    if free < FULL or short:
        what = f"{found.f_favail} inodes" if short else f"{free >> 20} MB"
        yield Finding("disk-full", f"{what} left at `{place}`", place)
    elif free < LOW:
        yield Finding("disk-low", f"{free >> 20} MB left at `{place}`", place)
    kind = file_system(place)
    if kind in _SHARED:
        yield Finding("disk-shared", f"`{place}` is on {kind}", place)
    elif kind in _MEMORY:
        yield Finding("disk-memory", f"`{place}` is on {kind}", place)
    if place == scene.paths.state_dir and os.stat(place).st_uid == os.geteuid():
        fault = sync_fault(place)
        if fault:
            yield Finding("disk-unsafe", f"`{place}`: {fault}", place)


def sync_fault(directory: str) -> str:
    """Why a file cannot be written and synced there; "" where it can. Nothing of the attempt stays."""
    path = os.path.join(directory, f".doctor.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b"x" * 4096)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            os.unlink(path)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def file_system(place: str, table: str = "/proc/self/mountinfo") -> str:
    """The kind of file system at a path, as the kernel calls it; "" where it does not tell."""
    place = os.path.realpath(place)
    best, kind = -1, ""
    try:
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return ""
    for line in lines:
        head, _, tail = line.partition(" - ")
        fields = head.split()
        if len(fields) < 5 or not tail:
            continue
        point = fields[4].replace("\\040", " ").rstrip("/")
        if (place == point or place.startswith(point + "/")) and len(point) >= best:
            best, kind = len(point), tail.split()[0]
    return kind


def _within(directory: str) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(directory)]
    except OSError:
        return []
