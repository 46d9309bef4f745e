"""While the daemon runs its log is verified behind it, from where the last look ended; what was changed is said aloud.

Nothing that is remembered on a disk is believed: a daemon that has just started looks at everything, and once a day
again, since what was looked at can be changed afterwards.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from aegis_daemon.audit.checking import Checked
from aegis_daemon.loop.clock import monotonic, wall

_log = logging.getLogger("aegis.audit")
FIRST_S: Final = 60.0
"""After the start, when nobody asked before."""
EVERY_S: Final = 600.0
"""Between two looks, where there are new records."""
WHOLE_S: Final = 86_400.0
"""Between two looks at everything."""
ASKED_S: Final = 30.0
"""Between two looks while somebody looks at the log's page."""
SHARE: Final = 20
"""A look that took long makes the next one wait for so many times as long."""


class Checking:
    """The looks. `newest` gives the newest record of the store; belongs to the loop's thread."""

    def __init__(self, store: Path, newest: Callable[[], int], key_file: Path | None = None) -> None:
        self._store = store
        self._newest = newest
        self._key_file = key_file
        self._identity: tuple[int, int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._gave_way = False
        self._whole_at = 0.0
        """when everything is looked at again"""
        self.verified = 0
        """Up to this record everything is as it was written."""
        self.at: float | None = None
        """when that was seen, in seconds since the epoch"""
        self.fault = ""
        """What was changed, in words; empty where nothing was."""
        self.trouble = ""
        """What keeps it from being looked at."""
        self.witnessed = 0
        """How many records a witness has seen, as far as the store knows."""

    def start(self) -> None:
        """Begins to look, now and then."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def wanted(self) -> None:
        """Somebody would like to know: the next look comes sooner."""
        self._wanted.set()

    def give_way(self) -> None:
        """Ends a look that is under way, since the writer waits for whoever reads; there will be another."""
        if self._process is not None and self._process.returncode is None:
            self._gave_way = True
            self._process.kill()

    async def close(self) -> None:
        """Ends a look that is under way; idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        pause = FIRST_S
        soon = 0.0
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._wanted.wait()
                await asyncio.sleep(soon)
            except TimeoutError:
                pass
            self._wanted.clear()
            began = monotonic()
            try:
                await self.look()
                self.trouble = ""
            except (OSError, msgspec.MsgspecError) as error:
                self.trouble = str(error) or type(error).__name__
                _log.warning("the audit log could not be verified: %s", error)
            took = (monotonic() - began) * SHARE
            pause, soon = max(EVERY_S, took), max(ASKED_S, took)

    async def look(self) -> None:
        """Looks once, where there is something new or everything is due. Raises `OSError`, `msgspec.MsgspecError`."""
        identity = _identity(self._store)
        if identity != self._identity:
            self._identity, self.verified, self.fault, self._whole_at = identity, 0, "", 0.0
        newest = self._newest()
        whole = bool(self.fault) or monotonic() >= self._whole_at
        if identity is None or not newest or (newest <= self.verified and not whole):
            return
        since = 1 if whole else self.verified + 1
        arguments = ["-I", "-m", "aegis_daemon.audit.checking", str(self._store), str(since)]
        if self._key_file is not None:
            arguments.append(str(self._key_file))
        pipe = asyncio.subprocess.PIPE
        self._gave_way = False
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe)
        self._process = process
        try:
            assert process.stdout is not None
            line = await process.stdout.read(1 << 16)
        finally:
            if process.returncode is None:
                try:
                    process.kill()
                except ProcessLookupError:
                    pass
            await process.wait()
        if not line and self._gave_way:
            return
        if not line:
            raise OSError("the process that verifies it ended without a word")
        found = msgspec.json.decode(line, type=Checked)
        if found.trouble:
            raise OSError(found.trouble)
        if identity != _identity(self._store):
            return  # replaced meanwhile; the next look begins anew
        self.witnessed = found.witnessed
        if whole:
            self._whole_at = monotonic() + WHOLE_S
        if found.faults:
            more = f" (and {found.faults - 1} more)" if found.faults > 1 else ""
            if found.first != self.fault.removesuffix(more):
                _log.error("the audit log was changed after it was written: %s%s", found.first, more)
            self.fault = f"{found.first}{more}"
            return
        self.fault = ""
        self.verified, self.at = found.last, wall()


def _identity(store: Path) -> tuple[int, int] | None:
    try:
        info = os.stat(store)
    except OSError:
        return None
    return info.st_dev, info.st_ino
