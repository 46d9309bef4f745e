"""A WebSocket as a channel has one: it goes where it was told, and its end and faults are those of `notice.Socket`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, WebSocketException

from aegis_daemon.approvals.channels.notice import Socket
from aegis_daemon.core.ports import Fault

MESSAGE_MAX: Final = 1 << 20
OPEN_S: Final = 10.0
_quiet = logging.getLogger("aegis.websocket")


async def opened(url: str) -> Socket:
    """One to this address. Raises `Fault`."""
    try:
        connection = await _Connect(
            url, max_size=MESSAGE_MAX, open_timeout=OPEN_S, close_timeout=2.0, compression=None, proxy=None,
            logger=_quiet, user_agent_header="aegis", ping_interval=20.0, ping_timeout=40.0, max_queue=16,
        )  # fmt: skip
    except TimeoutError:
        raise Fault("timeout", f"no connection within {OPEN_S:.0f} s") from None
    except InvalidHandshake:
        raise Fault("refused", "it refuses a connection") from None
    except (OSError, ValueError, WebSocketException):
        raise Fault("connect", "it cannot be reached") from None
    return _Socket(connection)


class _Connect(connect):
    """Follows no redirect, and takes its addresses from nothing but the url."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Every answer but 101 is a refusal."""
        return exc


class _Socket:
    """A WebSocket whose end and faults are those of `notice.Socket`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            try:
                message = await self._connection.recv()
            except ConnectionClosed as closed:
                if closed.rcvd is None and closed.sent is None:
                    raise Fault("connect", "the connection broke") from None
                return
            if isinstance(message, str):
                yield message

    async def send(self, text: str) -> None:
        """See `notice.Socket`."""
        try:
            await self._connection.send(text)
        except ConnectionClosed:
            raise Fault("connect", "the connection broke") from None

    async def close(self) -> None:
        """See `notice.Socket`."""
        with contextlib.suppress(OSError, WebSocketException):
            await self._connection.close()
