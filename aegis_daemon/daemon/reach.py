"""What channels and the notifier need of the outside: requests, a stream of lines, a WebSocket, a program.

No redirect is followed, nothing that comes in is unbounded, and no fault names an address: they may be secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from aegis_daemon.approvals.channels.notice import Post, Socket
from aegis_daemon.approvals.notifier import Answer
from aegis_daemon.backends.http_client import HttpPool, header_lines, locate
from aegis_daemon.core.ports import Fault

BODY_MAX: Final = 1 << 20
LINE_MAX: Final = 1 << 16
SILENT_S: Final = 120.0
LINES_WAITING: Final = 256
"""Pieces of a stream that are kept before its server has to wait."""
ENDS_S: Final = 2.0
"""How long a program may take to end once it is interrupted."""
PRINTED_MAX: Final = 1 << 16


class DaemonReach:
    """The `notifier.Wire` of a daemon, over its pool of connections."""

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool

    async def send(self, post: Post, timeout_s: float) -> Answer:
        """See `notifier.Wire`."""
        response = await self._pool.fetch(
            post.method, post.url, post.headers, post.body, timeout=timeout_s, limit=BODY_MAX
        )
        return Answer(response.status, response.body, _seconds(response.headers.get(b"retry-after", b"")))

    async def fetch(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        """See `notice.Reach`."""
        try:
            response = await self._pool.fetch(method, url, headers, body, timeout=timeout_s, limit=BODY_MAX)
        except ValueError:
            raise Fault("address", "its address cannot be used") from None
        return response.status, response.body

    async def lines(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """See `notice.Reach`."""
        try:
            target = locate(url)
            head = [b"GET " + target.path + b" HTTP/1.1", b"Host: " + target.authority]
            head += header_lines({"User-Agent": "aegis", "Accept": "*/*"} | dict(headers))
        except ValueError:
            raise Fault("address", "its address cannot be used") from None
        stream = _Stream()
        exchange = self._pool.request(target, b"\r\n".join((*head, b"", b"")), stream, repeatable=True)
        stream.pause = exchange.pause
        rest = b""
        try:
            while True:
                try:
                    async with asyncio.timeout(SILENT_S):
                        piece = await stream.next()
                except TimeoutError:
                    raise Fault("timeout", f"its stream was silent for {SILENT_S:.0f} s") from None
                if piece is None:
                    break
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > LINE_MAX or any(len(line) > LINE_MAX for line in lines):
                    raise Fault("bad_answer", f"a line of its stream is longer than {LINE_MAX} bytes")
                for line in lines:
                    yield line.removesuffix(b"\r")
        finally:
            exchange.abort()

    async def websocket(self, url: str) -> Socket:
        """See `notice.Reach`."""
        from aegis_daemon.daemon.sockets import opened  # here: few channels have one, and the library is large

        return await opened(url)

    async def run(self, argv: tuple[str, ...]) -> AsyncIterator[bytes]:
        """See `notice.Reach`. The program reads nothing, and is a group of its own."""
        name = argv[0]
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                limit=LINE_MAX,
            )
        except FileNotFoundError:
            raise Fault("missing", f"`{name}` is not installed") from None
        except (OSError, ValueError):
            raise Fault("missing", f"`{name}` cannot be started") from None
        assert process.stdout is not None
        printed = 0
        try:
            while line := await process.stdout.readline():
                printed += len(line)
                if printed > PRINTED_MAX:
                    raise Fault("bad_answer", f"`{name}` prints without end")
                yield line
            status = await process.wait()
            if status != 0:
                why = f"`{name}` ended with status {status}"
                raise Fault("failed", f"{why}; see whether the daemon has a desktop session (DBUS_SESSION_BUS_ADDRESS)")
        except ValueError:
            raise Fault("bad_answer", f"`{name}` prints a line without end") from None
        finally:
            await asyncio.shield(_end(process))
            # What nobody read keeps its pipe open, as does whoever has inherited that; there is no other way.
            process._transport.close()  # type: ignore[attr-defined]


async def _end(process: asyncio.subprocess.Process) -> None:
    """Interrupts it, upon which it takes its notification away; and ends it where it does not."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), ENDS_S)


class _Stream:
    """Takes a response as it comes: a `http_client.Handler` that its reader can wait on."""

    def __init__(self) -> None:
        self.pause: Any = lambda paused: None
        self._pieces: list[bytes | Fault | None] = []
        self._came = asyncio.Event()
        self._held = False

    async def next(self) -> bytes | None:
        """A piece, None at the end. Raises `Fault`."""
        while not self._pieces:
            self._came.clear()
            await self._came.wait()
        piece = self._pieces.pop(0)
        if self._held and not self._pieces:
            self._held = False
            self.pause(False)
        if isinstance(piece, Fault):
            raise piece
        return piece

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Anything but 200 is no stream."""
        if status != 200:
            self._put(Fault("refused", f"it answered {status}"))

    def data(self, chunk: bytes) -> None:
        """A piece of the body."""
        self._put(chunk)
        if len(self._pieces) > LINES_WAITING and not self._held:
            self._held = True
            self.pause(True)

    def end(self) -> None:
        """The end."""
        self._put(None)

    def fail(self, fault: Fault) -> None:
        """A broken one."""
        self._put(fault)

    def waits(self, waiting: bool) -> None:
        """Nothing to do."""

    def _put(self, piece: bytes | Fault | None) -> None:
        self._pieces.append(piece)
        self._came.set()


def _seconds(text: bytes) -> float | None:
    """Of `Retry-After`; dates are not read, and then the usual pause is made."""
    return float(text) if text.isdigit() and len(text) < 7 else None
