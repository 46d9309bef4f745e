"""While a helper process of ours is wanted, one runs: told and heard line by line, and started again when it has died.

It ends when its input does, so a daemon that was killed leaves none behind. Nobody waits for it but `close`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from aegis_daemon.loop.descriptor import FrameWriter, LineReader, Outbox

LINE_MAX: Final = 1 << 16
"""Bytes of a line that it says; a longer one is passed over."""


class Helper:
    """One such process, or none; belongs to the loop's thread.

    :param command: what is run, asked at each start; None while nothing is wanted. :param pauses: seconds before the
    first, second, … start after a death; the last for all that follow. :param began: one runs, and can be told things.
    :param heard: it said this line. :param failed: how one ended that should not have, or why it does not start: a
    sentence without its subject. :param ended: one is gone, whatever the cause.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        command: Callable[[], Sequence[str] | None],
        pauses: Sequence[float],
        *,
        began: Callable[[], object],
        heard: Callable[[str], object],
        failed: Callable[[str], object],
        ended: Callable[[], object] = lambda: None,
    ) -> None:
        self._loop = loop
        self._command = command
        self._pauses = pauses
        self._began, self._heard, self._failed, self._ended = began, heard, failed, ended
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: LineReader
        self._writer: FrameWriter
        self._deaths = 0
        self._restart: asyncio.TimerHandle | None = None
        self._replaced = False
        self._closing = False
        self._over: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def behind(self) -> bool:
        """Whether one runs that has yet to read what it was told."""
        return self._process is not None and self._writer.waiting > 0

    def begin(self) -> None:
        """One begins now; to the one that runs, if any, being killed must be nothing."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._process is not None:
            self._replaced = True
            _kill(self._process)
        else:
            self._start()

    def well(self) -> None:
        """It does what it is for: its next death counts as the first."""
        self._deaths = 0

    def tell(self, line: bytes) -> None:
        """Writes a line, newline added, as fast as it is read. Lost where none runs: `began` tells the next one."""
        if self._process is not None:
            self._writer.send(line)
            self._writer.flush()

    async def close(self, within: float, then: float) -> None:
        """Ends its input and with that it, killing it after `within` seconds; gives it up `then` seconds later.

        Idempotent; none begins any more.
        """
        self._closing = True
        if self._restart is not None:
            self._restart.cancel()
        if self._process is None:
            return
        over = self._over = self._over or self._loop.create_future()
        self._hang_up(self._process)
        await asyncio.wait([over], timeout=within)
        if not over.done():
            _kill(self._process)
            await asyncio.wait([over], timeout=then)  # a process that waits for a dead disk does not even die

    def _start(self) -> None:
        self._restart = None
        self._replaced = False
        command = None if self._closing else self._command()
        if command is None:
            return
        try:
            process = subprocess.Popen(  # noqa: S603 - our own modules, run by our own interpreter
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                # A Ctrl-C is for the daemon, which then lets it finish. Not a session of its own: Linux weighs
                # sessions against each other (autogroup), whatever the priorities within.
                process_group=0,
            )
        except OSError as error:
            self._failed(f"does not start: {error}")
            self._again()
            return
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(pipe.fileno(), False)
        outbox = Outbox(self._loop)
        self._writer = FrameWriter(self._loop, outbox, process.stdin.fileno())
        self._reader = LineReader(self._loop, outbox, process.stdout.fileno(), LINE_MAX)
        self._reader.on_lines, self._reader.on_end = self._said, self._gone
        self._reader.resume()
        self._began()

    def _again(self) -> None:
        delay = self._pauses[min(self._deaths, len(self._pauses) - 1)]
        self._deaths += 1
        self._restart = self._loop.call_later(delay, self._start)

    def _said(self, lines: list[bytes]) -> None:
        for line in lines:
            self._heard(line.decode(errors="replace"))

    def _gone(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        self._reader.close()
        process.stdout.close()
        self._hang_up(process)
        _kill(process)  # its output is closed, so it is ending already, or of no use
        code = process.wait()
        self._process = None
        self._ended()
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        if self._closing:
            return
        if self._replaced:
            self._start()
            return
        self._failed(f"ended with {_how(code)} and is started again")
        self._again()

    def _hang_up(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        self._writer.close()
        process.stdin.close()


def _how(code: int) -> str:
    try:
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
    except ValueError:  # most real-time signals have no name
        return f"signal {-code}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """It and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended
