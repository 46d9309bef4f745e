"""What the checks of `aegis doctor` are told, and what they answer; finding out is theirs, and changing is `mend`'s."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis_daemon.clients.standing import Here
from aegis_daemon.config.load import ConfigFaults, Loaded, load
from aegis_daemon.config.paths import Paths
from aegis_daemon.onboarding.codes import CODES, Severity


@dataclass(frozen=True, slots=True)
class Service:
    """An installed service of this installation."""

    file: str
    program: str
    """what it starts, absolute"""


class Settings:
    """The configuration in a file, read once as long as the file stays as it is, however many checks ask at once."""

    def __init__(self, path: str, env: Mapping[str, str]) -> None:
        self._path = path
        self._env = env
        self._lock = threading.Lock()
        self._of: tuple[int, ...] | None = None
        self._read: Loaded | ConfigFaults | None = None

    def loaded(self) -> Loaded:
        """What it says; what is not there says nothing. Raises `ConfigFaults`."""
        with self._lock:
            try:
                found = os.stat(self._path)
                of: tuple[int, ...] = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode
            except OSError:
                of = (0,)
            if self._read is None or of != self._of:
                self._of = of
                try:
                    self._read = load(self._path, self._env, optional=True)
                except ConfigFaults as faults:
                    self._read = faults
        if isinstance(self._read, ConfigFaults):
            raise self._read
        return self._read


@dataclass(frozen=True, slots=True)
class Scene:
    """One installation, and what was asked of it already."""

    paths: Paths
    env: Mapping[str, str]
    settings: Settings
    home: Path
    cwd: Path | None
    """None: no project's files are looked for"""
    version: str
    """of this command"""
    python: str
    """the interpreter that the daemon would run in, absolute"""
    here: Here
    """its `wrapper` is "" where there is none"""
    now: float
    """seconds since the epoch"""
    status: Mapping[str, Any] | None = None
    """of the running daemon"""
    silent: str = ""
    """why a daemon that holds the lock does not tell its status"""
    service: Service | None = None
    ephemeral: tuple[str, ...] = ()
    """parts of paths of what is there only for the moment"""

    @property
    def isolated(self) -> bool:
        """Whether the daemon has a user of its own."""
        return bool(self.paths.doors) or (self.status is not None and self.status["tier"] == "isolated")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. Texts may hold what other programs wrote: show them with `visible`."""

    code: str
    text: str
    """what exactly, for people"""
    subject: str = ""
    """the path or name that it is about"""
    fix: str = ""
    """what to do, where that is more exact than what the code says"""
    mend: Callable[[], None] | None = field(default=None, compare=False)
    """does the safe thing; raises `OSError`"""

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return CODES[self.code].severity

    def row(self, *, mended: bool = False) -> dict[str, Any]:
        """For programs."""
        code = CODES[self.code]
        return {
            "code": self.code, "severity": code.severity, "what": code.what, "detail": self.text,
            "subject": self.subject or None, "why": code.why, "fix": self.fix or code.fix,
            "fixable": self.mend is not None, "fixed": mended,
        }  # fmt: skip
