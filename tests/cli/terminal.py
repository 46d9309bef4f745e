"""A command on a terminal of its own, and what a person would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

# Ctrl-C reaches whoever has the terminal as its own.
_OWN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
AEGIS = [sys.executable, "-m", "aegis_daemon.cli.main"]


class Terminal:
    """Runs `aegis` with these words. `expect` waits for a text to be shown; `send` types."""

    def __init__(self, *words: str, columns: int = 140, **env: str) -> None:
        self.shown = ""
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN, *AEGIS, *words],
            stdin=side,
            stdout=side,
            stderr=side,
            env={**os.environ, "TERM": "xterm", **env},
            start_new_session=True,
        )
        os.close(side)

    def expect(self, text: str, bound: float = 20) -> str:
        """Waits for `text` (escape codes left out); what was shown up to it is forgotten and given back."""
        until = time.monotonic() + bound
        while text not in (plain := strip(self.shown)):
            left = until - time.monotonic()
            assert left > 0, f"`{text}` was not shown; this was: {plain[-3000:]}"
            if select.select([self._main], [], [], left)[0]:
                try:
                    data = os.read(self._main, 65536)
                except OSError:
                    data = b""
                assert data, f"it ended before `{text}` was shown; this was: {plain[-3000:]}"
                self.shown += data.decode("utf-8", "replace")
        raw, self.shown = self.shown, ""
        return raw

    def send(self, text: str) -> None:
        os.write(self._main, text.encode())

    def interrupts(self, bound: float = 20) -> None:
        """Ctrl-C at a question, as a person's: when what asks has begun to wait.

        In the microseconds before, `input` of CPython looks for signals no more and sleeps until the next key.
        """
        until = time.monotonic() + bound
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < until, f"it never waited; this was shown: {strip(self.shown)[-3000:]}"
            time.sleep(0.01)
        self.send("\x03")

    def end(self, bound: float = 20) -> int:
        """Waits for its end; the exit status."""
        until = time.monotonic() + bound
        while self.process.poll() is None:
            assert time.monotonic() < until, strip(self.shown)[-3000:]
            if select.select([self._main], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self._main, 65536).decode("utf-8", "replace")
                except OSError:
                    pass
        try:
            while select.select([self._main], [], [], 0)[0] and (data := os.read(self._main, 65536)):
                self.shown += data.decode("utf-8", "replace")
        except OSError:
            pass
        return self.process.returncode

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._main)


def strip(text: str) -> str:
    """Without escape sequences."""
    return re.sub(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][A-Z0-9]|[=>78])", "", text)
