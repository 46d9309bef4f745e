"""A server that speaks newline JSON over its stdin and stdout: frames to it, lines from it, and its end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from aegis_daemon.backends.children import Child, Command, Nursery
from aegis_daemon.loop.descriptor import FrameWriter, LineReader, Outbox, enlarge

_log = logging.getLogger("aegis.backend")


class StdioServer:
    """One child process. `on_exit(code)` comes once: its output was read to the end and its whole tree is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        nursery: Nursery,
        command: Command,
        stderr: int,
        *,
        limit: int,
        on_lines: Callable[[list[bytes]], None],
        on_long: Callable[[bytes, bytes], None],
        on_full: Callable[[bool], None],
        on_exit: Callable[[int], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._on_exit = on_exit
        self._on_failed = on_failed
        self._code: int | None = None
        self._drained = False
        self._closing = False
        self.touched = False
        """whether anything was sent to it"""
        self.renewals = 0
        their_in, our_out = os.pipe2(os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        try:
            our_in, their_out = os.pipe2(os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        except OSError:
            os.close(their_in)
            os.close(our_out)
            raise
        os.set_blocking(our_out, False)
        os.set_blocking(our_in, False)
        enlarge(our_out)
        enlarge(our_in)
        self._writer = FrameWriter(loop, outbox, our_out, high=1 << 20)
        self._writer.on_full = on_full
        self._writer.on_sent = self._sent
        self._reader = LineReader(loop, outbox, our_in, limit)
        self._reader.on_lines = on_lines
        self._reader.on_long = on_long
        self._reader.on_end = self._ended
        self._reader.resume()
        self._child: Child = nursery.spawn(command, their_in, their_out, stderr, self._exited, self._failed)
        os.close(their_in)
        os.close(their_out)

    @property
    def pid(self) -> int | None:
        """The child's process id, once it runs."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._child.running

    def send(self, text: bytes, frame: object = None, number: int = 0) -> None:
        """One frame."""
        self.touched = True
        self._writer.send(text)

    def cancel(self, number: int, text: bytes) -> None:
        """Withdraws a request: the notification says all."""
        self._writer.send(text)

    def pause(self, paused: bool) -> None:
        """Stops reading its output while nobody takes it."""
        if paused:
            self._reader.pause()
        elif not self._drained:
            self._reader.resume()

    def close_stdin(self) -> None:
        """No more frames: closes its stdin once what was sent is out."""
        self._closing = True
        self._sent(0)

    def _sent(self, count: int) -> None:
        if self._closing and not self._writer.waiting:
            self._close_writer()

    def _close_writer(self) -> None:
        if self._writer.fd >= 0:
            self._writer.close()
            os.close(self._writer.fd)
            self._writer.fd = -1

    def end(self) -> None:
        """Closes its stdin behind what was sent and begins its end (hard rule 11); what it still says is read."""
        self.close_stdin()
        self._child.end()
        self.pause(False)

    def _ended(self) -> None:
        self._drained = True
        self._close_reader()
        if self._code is not None:
            self._on_exit(self._code)
        else:
            # It closed its stdout: nothing can be answered any more, so it has ended as a server.
            self.end()

    def _exited(self, code: int) -> None:
        self._code = code
        self._close_writer()
        if self._drained:
            self._on_exit(code)
        else:
            # Its tree is gone, so the end of its output is there to be read; read it even if nobody takes more now.
            self._reader.resume()

    def _failed(self, text: str) -> None:
        self._close_writer()
        self._close_reader()
        self._on_failed(text)

    def _close_reader(self) -> None:
        if self._reader.fd >= 0:
            fd = self._reader.fd
            self._reader.close()
            os.close(fd)
