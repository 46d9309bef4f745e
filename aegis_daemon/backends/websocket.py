"""One session with an MCP server over WebSocket: each text message is one JSON-RPC frame, both ways.

WebSocket is no transport of the MCP specification; this is the framing that its clients and servers in use share
(subprotocol `mcp`). Messages are not compressed: what a server sends is as large as it looks.

Source: RFC 6455.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from aegis_daemon.backends.http_client import HttpPool, header_lines, locate
from aegis_daemon.backends.remote import FAREWELL_S, HELD, Channel, check_names, one_line, refused
from aegis_daemon.core.ports import Fault
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.wire.jsonrpc import MAX_FRAME_OUT

_OPEN_S: Final = 15.0
"""Seconds until the connection must be open, connecting included."""
_BEAT_S: Final = 20.0
"""Seconds between looks at a silent connection; after three nobody is there any more."""
_library = logging.getLogger("aegis.websocket")
_library.setLevel(logging.WARNING)  # in its debug output are the headers, so the credentials


class WebSocketServer(Channel):
    """A server at a ws or wss URL, for one session.

    `headers` are the backend's own. Raises `ValueError` for a URL or header that cannot be.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        pool: HttpPool,
        url: str,
        headers: Mapping[str, str],
        **on: Any,
    ) -> None:
        super().__init__(loop, outbox, **on)
        self._pool = pool
        self._target = target = locate(url)
        self._headers = configured_pairs(headers)
        path, _, query = target.path.decode().partition("?")
        self._uri = WebSocketURI(target.secure, target.host, target.port, path, query)
        self._socket: _Socket | None = None
        self._task: asyncio.Task[None] | None = None

    def _connect(self) -> None:
        self._socket = _Socket(self, self._uri, self._headers)
        self._task = self.loop.create_task(self._dial(self._socket))
        self._timer = self.loop.call_later(_OPEN_S, self._fail, f"the server opened no session within {_OPEN_S:g} s")

    async def _dial(self, socket: _Socket) -> None:
        try:
            await self._pool.open(self._target, socket)
        except Fault as fault:
            self._fail(fault.text)

    def _put(self, text: bytes, number: int) -> None:
        assert self._socket is not None
        self._socket.put(text)

    def _hold_back(self, paused: bool) -> None:
        if self._socket is not None:
            self._socket.pause(paused)

    def _disconnect(self) -> None:
        if self._task is not None:
            self._task.cancel()
        coming = self._socket is not None and self._socket.close()
        if self._ending and not coming:
            self._ended(0)

    # what the socket tells

    def opened(self) -> None:
        """The connection speaks WebSocket now."""
        self._opened()

    def came(self, lines: list[bytes]) -> None:
        """Messages came."""
        self._came(lines)

    def full(self, full: bool) -> None:
        """The server does not read, or does again."""
        self._weigh(HELD + 1 if full else -HELD - 1)

    def turned_down(self, text: str) -> None:
        """The server wants no WebSocket."""
        self._fail(text)

    def gone(self, code: int) -> None:
        """The connection is closed."""
        self._ended(code)


def configured_pairs(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """A backend's own headers, checked. Raises `ValueError`."""
    pairs = []
    for line in header_lines(check_names(headers)):
        name, _, value = line.decode("latin-1").partition(": ")
        pairs.append((name, value))
    return pairs


class _Socket(asyncio.Protocol):
    """The connection, around the library's protocol, which does no input or output of its own."""

    def __init__(self, server: WebSocketServer, uri: WebSocketURI, headers: list[tuple[str, str]]) -> None:
        self._server = server
        self._loop = server.loop
        self._headers = headers
        self._protocol = ClientProtocol(uri, subprotocols=[Subprotocol("mcp")], max_size=MAX_FRAME_OUT, logger=_library)
        self._transport: Any = None
        self._pieces: list[bytes] = []
        self._paused = False
        self._full = False
        self._heard = 0.0
        self._beat: asyncio.TimerHandle | None = None

    def put(self, text: bytes) -> None:
        """Sends one message."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(text)
            self._write()

    def pause(self, paused: bool) -> None:
        """Reads no more for a while."""
        if paused is not self._paused:
            self._paused = paused
            if self._transport is not None and not self._transport.is_closing():
                if paused:
                    self._transport.pause_reading()
                else:
                    self._transport.resume_reading()

    def close(self) -> bool:
        """Says good-bye, or closes what is not open; whether the end of the connection is still to come."""
        if self._beat is not None:
            self._beat.cancel()
        if self._transport is None or self._transport.is_closing():
            return False
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            self._write()
            self._loop.call_later(FAREWELL_S, self._transport.abort)
            return True
        self._transport.abort()
        return False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self._server.over:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=HELD)
        request = self._protocol.connect()
        for name, value in self._headers:
            request.headers[name] = value
        self._protocol.send_request(request)
        self._write()

    def data_received(self, data: bytes) -> None:
        protocol = self._protocol
        self._heard = self._loop.time()
        protocol.receive_data(data)
        lines: list[bytes] = []
        wrong = False
        for event in protocol.events_received():
            if isinstance(event, Response):
                if protocol.state is State.CONNECTING:
                    continue  # turned down, see below
                self._beat = self._loop.call_later(_BEAT_S, self._look)
                self._server.opened()
            elif not isinstance(event, Frame):
                continue
            elif event.opcode is Opcode.TEXT or event.opcode is Opcode.CONT:
                if event.fin and not self._pieces:
                    lines.append(one_line(bytes(event.data)))
                    continue
                self._pieces.append(bytes(event.data))
                if event.fin:
                    lines.append(one_line(b"".join(self._pieces)))
                    self._pieces.clear()
            elif event.opcode is Opcode.BINARY:
                wrong = True
        self._write()
        if protocol.handshake_exc is not None:
            fault = protocol.handshake_exc
            text = "the server's answer is no WebSocket; check the backend's `url` and `transport`"
            if isinstance(fault, InvalidStatus):
                text = refused(fault.response.status_code).text
            self._server.turned_down(text)
            self._transport.abort()
            return
        lines = [line for line in lines if line]
        if lines:
            self._server.came(lines)
        if wrong and protocol.state is State.OPEN:
            protocol.fail(CloseCode.UNSUPPORTED_DATA, "text messages only")
            self._write()

    def eof_received(self) -> None:
        self._protocol.receive_eof()

    def connection_lost(self, error: Exception | None) -> None:
        if self._beat is not None:
            self._beat.cancel()
        if self._full:
            self._full = False
            self._server.full(False)
        self._protocol.receive_eof()
        told = self._protocol.close_rcvd
        self._server.gone(0 if told is not None and told.code in (1000, 1001) else 1)

    def pause_writing(self) -> None:
        self._full = True
        self._server.full(True)

    def resume_writing(self) -> None:
        if self._full:
            self._full = False
            self._server.full(False)

    def _write(self) -> None:
        out = self._protocol.data_to_send()
        if out and not self._transport.is_closing():
            end = out[-1] == b""
            if end:
                out.pop()
            if out:
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            if end or self._protocol.parser_exc is not None:
                self._transport.close()

    def _look(self) -> None:
        """Asks a silent server whether it is still there."""
        self._beat = self._loop.call_later(_BEAT_S, self._look)
        silent = self._loop.time() - self._heard
        if self._paused or silent < _BEAT_S:
            return
        if silent > 3 * _BEAT_S:
            self._transport.abort()
        elif self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._write()
