"""What an installation does, step by step: each is told, and none is begun when one before it failed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from aegis_daemon.loop import whole

COMMAND_S = 120.0
"""How long one command of the system may take."""
SERVICE_S = 330.0
"""How long a service may take to start, with all that a large log has to be read for."""


class Unable(Exception):
    """A step cannot be taken; the text says which and why, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Step(msgspec.Struct, frozen=True):
    """One thing to be done. `do` does it; None for one that is only told, as a person has to do it."""

    step: str
    """write, keep, make, remove, run, hint"""
    target: str
    """what it is done to: a path, a command, a user"""
    detail: str = ""
    do: Callable[[], None] | None = None
    content: str = ""
    """of a file that is written, for a person to see before"""

    def row(self, done: bool) -> dict[str, Any]:
        """For programs."""
        return {"step": self.step, "target": self.target, "detail": self.detail, "done": done}

    @property
    def line(self) -> str:
        """For people."""
        return f"{self.step:6} {self.target}" + (f"  ({self.detail})" if self.detail else "")


def write(path: str, data: bytes, mode: int, owner: tuple[int, int] | None = None, detail: str = "") -> Step:
    """A file of ours, whole or not at all. Where it says so already, nothing is done."""
    text = data.decode("utf-8", "replace")
    try:
        with open(path, "rb") as file:
            same = file.read() == data
    except OSError:
        same = False
    if same:
        return Step("keep", path, "as it is", content=text)
    return Step("write", path, detail, lambda: _put(path, data, mode, owner), content=text)


def directory(path: str, mode: int, owner: tuple[int, int] | None = None, detail: str = "") -> Step:
    """A directory with exactly this mode and owner."""

    def make() -> None:
        os.makedirs(path, mode=0o755, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)

    return Step("make", path, detail or f"{mode:04o}", make)


def remove(path: str, detail: str = "") -> Step:
    """A file, or an empty directory, if it is there."""

    def gone() -> None:
        with suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):
                os.rmdir(path)
            else:
                os.unlink(path)

    return Step("remove", path, detail, gone)


def command(words: Sequence[str], detail: str = "", *, may_fail: bool = False) -> Step:
    """A command of the system."""

    def run() -> None:
        done = call(words)
        if done.returncode and not may_fail:
            said = " ".join((done.stderr or done.stdout).split())[:500]
            raise Unable(f"`{' '.join(words)}` ended with {done.returncode}: {said}", "mend that, then repeat it")

    return Step("run", " ".join(words), detail, run)


def hint(text: str, detail: str = "") -> Step:
    """Something that only a person can do."""
    return Step("hint", text, detail)


def call(words: Sequence[str], timeout: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    """A command to its end; 127 where there is no such program, 124 where it takes too long."""
    try:
        return subprocess.run(  # noqa: S603  no shell reads them
            list(words), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout,
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return subprocess.CompletedProcess(list(words), 127, "", f"there is no program `{words[0]}`")
    except (subprocess.TimeoutExpired, OSError) as error:
        return subprocess.CompletedProcess(list(words), 124, "", str(error))


def order(words: Sequence[str]) -> None:
    """A command that a service is started or stopped with. Raises `Unable`."""
    done = call(words, SERVICE_S)
    if done.returncode:
        raise Unable(f"`{' '.join(words)}` failed: {' '.join(done.stderr.split())[:500]}", "see `aegis logs`")


def _put(path: str, data: bytes, mode: int, owner: tuple[int, int] | None) -> None:
    def dress(descriptor: int) -> None:
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)

    os.makedirs(os.path.dirname(path), exist_ok=True)
    whole.put(path, data, dress=dress)
