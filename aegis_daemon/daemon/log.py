"""The daemon's own log: lines that nobody can forge, for people or as JSON, in a file that never grows without bound.

Nothing of it holds what calls carried. `aegis logs` shows the file; what agents did is in the audit log.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aegis_daemon.config.schema import Logging
from aegis_daemon.daemon.lifecycle import Plain

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FIELDS: Final = (
    "call_id", "agent", "backend", "method", "tool", "verdict", "stage", "duration_ms", "queue_ms", "seq",
)  # fmt: skip
"""What a line may say of its call, beside its text."""
_NAMED: Final = frozenset({"tools/call", "prompts/get"})
_calls = logging.getLogger("aegis.calls")


class Json(Plain):
    """A line is one JSON object, in ASCII: `time` (RFC 3339, UTC), `level`, `logger`, `message`, and `FIELDS`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        made: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._clean(record.getMessage()),
        }
        for name in FIELDS:
            value = record.__dict__.get(name)
            if value is not None and value != "":
                made[name] = self._clean(value) if isinstance(value, str) else value
        if record.exc_info and record.exc_info[0] is not None:
            made["error"] = self._clean(self.formatException(record.exc_info))
        return json.dumps(made, separators=(",", ":"), ensure_ascii=True)

    def _clean(self, text: str) -> str:
        return text if self.scrub is None else self.scrub(text)


def use(settings: Logging) -> None:
    """These settings are in force: for what goes through the handlers of the root logger."""
    kind, text = (Json, None) if settings.format == "json" else (Plain, TEXT)
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, Plain) and type(handler.formatter) is not kind:
            made = kind(text)
            made.scrub = handler.formatter.scrub
            handler.setFormatter(made)
    level = logging.getLevelName(settings.level.upper())
    logging.getLogger("aegis").setLevel(level)
    logging.getLogger().setLevel(max(level, logging.INFO))  # what libraries have to say at `debug` is endless


def call_ended(record: Any, opened: Any) -> None:
    """The journal's listener where calls get a line: one for each call that ended."""
    kind = record.kind
    if kind == "denied" and not record.would:
        told, verdict = record, "denied"
    elif kind == "outcome" and opened is not None:
        told, verdict = opened, record.status
    else:
        return
    name = told.name if told.method in _NAMED else ""  # a URI may say what a body would
    what = f"{told.method} {name}" if name else told.method
    extra: dict[str, Any] = {
        "call_id": record.call, "agent": told.agent, "backend": told.backend, "method": told.method,
        "tool": name, "verdict": verdict, "seq": record.seq,
    }  # fmt: skip
    if kind == "denied":
        extra["stage"] = record.stage
        _calls.info("%s by %s at %s was refused (%s)", what, told.agent, told.backend, record.stage, extra=extra)
        return
    extra["duration_ms"] = record.duration_us / 1000
    if told.queue_wait_us:
        extra["queue_ms"] = told.queue_wait_us / 1000
    took = record.duration_us / 1000
    _calls.info("%s by %s at %s: %s in %.1f ms", what, told.agent, told.backend, verdict, took, extra=extra)


class Rotation:
    """The log's file begins anew when it is full; whoever writes to it goes on writing to the same file.

    The daemon's error output is the file, also in its processes, so it is copied and cut and not put aside: nobody has
    to open it again. Only what another process says between copy and cut is lost.
    """

    def __init__(self, path: Path, fd: int = 2) -> None:
        self._path = path
        self._fd = fd
        self._task: asyncio.Task[None] | None = None

    def tick(self, settings: Logging) -> None:
        """Once a second."""
        if self._task is None and self._is_full(settings.rotate_mb << 20):
            self._task = asyncio.get_running_loop().create_task(self._rotate(settings.files))

    async def close(self) -> None:
        """Ends what is under way."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=5.0)

    def _is_full(self, most: int) -> bool:
        try:
            found, named = os.fstat(self._fd), os.stat(self._path)
        except OSError:
            return False
        ours = stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) == (named.st_dev, named.st_ino)
        # Without O_APPEND whoever writes would go on at the old place, behind a hole.
        return ours and found.st_size >= most and bool(fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_APPEND)

    async def _rotate(self, keep: int) -> None:
        try:
            if keep:
                copied = await asyncio.to_thread(self._copy)
                with _quiet():
                    self._copy_rest(copied)
                    self._shift(keep)
                    os.truncate(self._path, 0)
            else:
                os.truncate(self._path, 0)
        except OSError as error:
            logging.getLogger("aegis").warning("the log cannot be begun anew: %s", error)
            await asyncio.sleep(60.0)
        finally:
            self._task = None

    @property
    def _new(self) -> Path:
        return self._path.with_name(f"{self._path.name}.new")

    def _copy(self) -> int:
        self._new.unlink(missing_ok=True)
        fd = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        done = 0
        with open(self._path, "rb") as source, os.fdopen(fd, "wb") as target:
            while data := source.read(1 << 18):
                target.write(data)
                done += len(data)
        return done

    def _copy_rest(self, since: int) -> None:
        with open(self._path, "rb") as source, open(self._new, "ab") as target:
            source.seek(since)
            target.write(source.read())

    def _shift(self, keep: int) -> None:
        for number in range(keep - 1, 0, -1):
            old = self._path.with_name(f"{self._path.name}.{number}")
            if old.exists():
                os.replace(old, self._path.with_name(f"{self._path.name}.{number + 1}"))
        os.replace(self._new, self._path.with_name(f"{self._path.name}.1"))
        number = keep + 1
        while (beyond := self._path.with_name(f"{self._path.name}.{number}")).exists():
            beyond.unlink()
            number += 1


class _quiet:  # noqa: N801  it reads as what it does
    """No thread of this process writes to its log meanwhile."""

    def __enter__(self) -> None:
        for handler in logging.getLogger().handlers:
            handler.acquire()

    def __exit__(self, *error: object) -> None:
        for handler in logging.getLogger().handlers:
            handler.release()


def to_stderr() -> logging.Handler:
    """What a daemon begins with, before it has read its configuration."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Plain(TEXT))
    return handler
