"""Descriptors that whoever closes them last has to wait for, and a loop that is watched for waiting."""

from __future__ import annotations

import array
import asyncio
import socket
import struct
import time
from types import TracebackType

LINGER_S = 3


class Lingering:
    """A TCP socket with something unsent: the last `close` of it takes `LINGER_S` seconds, non-blocking or not."""

    def __init__(self) -> None:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            self.end = socket.create_connection(listener.getsockname())
            self._peer, _ = listener.accept()  # never reads
        self.end.setblocking(False)
        try:
            while True:
                self.end.send(b"x" * 65536)
        except BlockingIOError:
            pass
        self.end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))

    def given_away(self, to: socket.socket, data: bytes, *others: int, times: int = 1) -> None:
        """Sent along with these bytes, behind these descriptors; who receives it, or throws it away, has the last."""
        fds = array.array("i", [*others, *[self.end.fileno()] * times])
        to.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        self.end.close()

    def reset(self) -> None:
        """Nobody needs to wait any more."""
        self.end.close()
        if self._peer.fileno() < 0:
            return
        self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._peer.close()


class Watched:
    """Fails where the loop stood still for a good part of `LINGER_S`."""

    def __init__(self) -> None:
        self._longest = 0.0

    async def _watch(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.02)
            now = time.monotonic()
            self._longest, last = max(self._longest, now - last), now

    async def __aenter__(self) -> Watched:
        self._task = asyncio.ensure_future(self._watch())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, fault: object, where: TracebackType | None) -> None:
        await asyncio.sleep(0.1)
        self._task.cancel()
        if kind is None:
            assert self._longest < LINGER_S / 2, f"the loop stood still for {self._longest:.1f} s"
