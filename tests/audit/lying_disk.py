"""A disk as fsync(2) has it: a failed sync drops what it could not write, and the next one succeeds all the same.

Programs go on seeing what they wrote, until the power goes: then files are what syncs had reached, and any part of the
rest (sectors of 512 bytes, names of files, removed files that come back).
"""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

PAGE = 4096
SECTOR = 512


class _Node:
    """One file: what is on disk for certain, and the pages that may be."""

    def __init__(self) -> None:
        self.safe = bytearray()
        self.dirty: set[int] = set()
        self.dropped: set[int] = set()


class LyingDisk:
    """Stands below one folder. `fail_syncs`, `fail_writes`: how many of the next ones fail."""

    def __init__(self, folder: Path, luck: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.luck = luck
        self.fail_syncs = self.fail_writes = 0
        self.failed = 0
        self._lock = threading.RLock()
        self._nodes: dict[str, _Node] = {}
        self._names: set[str] = set()
        self._ghosts: dict[str, bytes] = {}
        self._real = {name: getattr(os, name) for name in ("open", "pwrite", "fdatasync", "fsync", "rename", "unlink")}
        for name in self._real:
            monkeypatch.setattr(os, name, getattr(self, name))

    def _path(self, fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    def open(self, path: Any, flags: int, *more: Any, **named: Any) -> int:
        with self._lock:
            if flags & os.O_CREAT and (not os.path.exists(path) or flags & os.O_TRUNC):
                self._nodes[os.fspath(path)] = _Node()
            return int(self._real["open"](path, flags, *more, **named))

    def pwrite(self, fd: int, data: bytes, at: int) -> int:
        with self._lock:
            node = self._nodes.get(self._path(fd))
            if node is not None and self.fail_writes and len(data) > 64:
                self.fail_writes -= 1
                self.failed += 1
                if self.luck.random() < 0.5:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                data = data[: self.luck.randrange(len(data))]
            done = int(self._real["pwrite"](fd, data, at))
            if node is not None and done:
                pages = range(at // PAGE, (at + done - 1) // PAGE + 1)
                node.dirty.update(pages)
                node.dropped.difference_update(pages)
            return done

    def fdatasync(self, fd: int) -> None:
        with self._lock:
            path = self._path(fd)
            if path == str(self.folder):
                self._names = set(os.listdir(self.folder))
                self._ghosts = {}
                return
            node = self._nodes.get(path)
            if node is None:
                return
            if self.fail_syncs:
                self.fail_syncs -= 1
                self.failed += 1
                node.dropped |= node.dirty
                node.dirty = set()
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            for page in node.dirty:
                self._put(node, page * PAGE, os.pread(fd, PAGE, page * PAGE))
            node.dirty = set()

    fsync = fdatasync

    def _put(self, node: _Node, at: int, data: bytes) -> None:
        if len(node.safe) < at:
            node.safe += bytes(at - len(node.safe))
        node.safe[at : at + len(data)] = data

    def rename(self, old: Any, new: Any) -> None:
        with self._lock:
            self._real["rename"](old, new)
            if os.fspath(old) in self._nodes:
                self._nodes[os.fspath(new)] = self._nodes.pop(os.fspath(old))

    def unlink(self, path: Any, **named: Any) -> None:
        with self._lock:
            self._real["unlink"](path, **named)
            node = self._nodes.pop(os.fspath(path), None)
            if node is not None and os.path.basename(path) in self._names:
                self._ghosts[os.path.basename(path)] = bytes(node.safe)

    def lose_power(self) -> None:
        """The folder as the next start finds it."""
        with self._lock:
            found: dict[str, bytes] = {}
            for name in os.listdir(self.folder):
                path = self.folder / name
                node = self._nodes.get(str(path))
                if node is None or (name not in self._names and self.luck.random() < 0.5):
                    continue
                data = path.read_bytes()
                for page in sorted(node.dirty | node.dropped):
                    for at in range(page * PAGE, min((page + 1) * PAGE, len(data)), SECTOR):
                        if self.luck.random() < 0.5:
                            self._put(node, at, data[at : at + SECTOR])
                found[name] = bytes(node.safe)
            for name, data in self._ghosts.items():
                if name not in found and self.luck.random() < 0.5:
                    found[name] = data
            for name in os.listdir(self.folder):
                self._real["unlink"](self.folder / name)
            self._nodes, self._names, self._ghosts = {}, set(found), {}
            for name, data in found.items():
                (self.folder / name).write_bytes(data)
                (self.folder / name).chmod(0o600)
                node = self._nodes[str(self.folder / name)] = _Node()
                node.safe = bytearray(data)
