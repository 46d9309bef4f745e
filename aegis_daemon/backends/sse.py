"""One session with an MCP server over HTTP+SSE: frames go out as POSTs, and everything comes back on one GET stream.

The stream is the session: where it ends, the session does. Its first event names the address for the POSTs, which is
believed only as far as it is the same server's, since the backend's credentials go there.

Source: MCP 2024-11-05 `basic/transports` (HTTP with SSE), deprecated since 2025-03-26.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urljoin

from aegis_daemon.backends.http_client import Exchange, HttpPool, Target, locate
from aegis_daemon.backends.remote import Channel, configured, one_line, refused
from aegis_daemon.core.ports import Fault
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.wire.sse import EventParser, EventTooLarge

_OPEN_S: Final = 15.0
"""Seconds until the server must have named its endpoint, connecting included."""
_CONFIRM_S: Final = 5.0
"""Seconds that frames wait for one of the handshake to be accepted."""
_LONGEST: Final = 4096
"""Bytes of the longest endpoint."""
_FIRST: Final = (b'"method":"initialize"', b'"method":"notifications/initialized"')
"""Frames without which a server takes no others."""


class SseServer(Channel):
    """A server at an http or https URL, for one session.

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
        self._url = url
        self._target = locate(url)
        self._headers = configured(headers)
        self._endpoint: Target | None = None
        self._block = b""
        self._stream: _Stream | None = None
        self._posts: set[_Post] = set()
        # Two POSTs are two connections: nothing may overtake a frame of the handshake.
        self._confirming: _Post | None = None
        self._behind: deque[tuple[bytes, int]] = deque()

    def _connect(self) -> None:
        target = self._target
        request = b"".join(
            (
                b"GET " + target.path + b" HTTP/1.1\r\nHost: " + target.authority + b"\r\n" + self._headers,
                b"Accept: text/event-stream\r\nCache-Control: no-cache\r\n\r\n",
            )
        )
        self._stream = _Stream(self)
        self._stream.exchange = self._pool.request(target, request, self._stream, repeatable=True)
        self._timer = self.loop.call_later(_OPEN_S, self._fail, f"the server named no endpoint within {_OPEN_S:g} s")

    def _put(self, text: bytes, number: int) -> None:
        if self._confirming is not None:
            self._behind.append((text, number))
            self._weigh(len(text))
            return
        assert self._endpoint is not None
        post = _Post(self, text, number)
        self._posts.add(post)
        if any(method in text[:256] for method in _FIRST):
            self._confirming = post
            self.loop.call_later(_CONFIRM_S, self.confirmed, post)
        post.exchange = self._pool.request(self._endpoint, b"%b%d\r\n\r\n%b" % (self._block, len(text), text), post)

    def cancel(self, number: int, text: bytes) -> None:
        """Withdraws an open request; `text` says so."""
        for at, (held, of) in enumerate(self._behind):
            if of == number:
                del self._behind[at]
                self._weigh(-len(held))
                self._open.discard(number)
                return
        super().cancel(number, text)

    def confirmed(self, post: _Post) -> None:
        """A frame of the handshake was taken, or has had its time: what waited behind it may go."""
        if post is not self._confirming:
            return
        self._confirming = None
        while self._behind and self._confirming is None:
            text, number = self._behind.popleft()
            self._weigh(-len(text))
            self._put(text, number)

    def _hold_back(self, paused: bool) -> None:
        if self._stream is not None and self._stream.exchange is not None:
            self._stream.exchange.pause(paused)

    def _disconnect(self) -> None:
        if self._stream is not None and self._stream.exchange is not None:
            self._stream.exchange.abort()
            self._stream.exchange = None
        for post in self._posts:
            if post.exchange is not None:
                post.exchange.drain()
        self._posts.clear()
        if self._ending:
            self._ended(0)

    # what the stream and the posts tell

    def named(self, endpoint: bytes) -> None:
        """The server says where frames go."""
        if self._endpoint is not None:
            return
        try:
            if not 0 < len(endpoint) <= _LONGEST:
                raise ValueError
            target = locate(urljoin(self._url, endpoint.decode("ascii")))
        except ValueError:
            self._fail("the server named an endpoint that is none")
            return
        if target.origin != self._target.origin:
            self._fail("the server named an endpoint at another address; the backend's credentials do not go there")
            return
        self._endpoint = target
        self._block = b"".join(
            (
                b"POST " + target.path + b" HTTP/1.1\r\nHost: " + target.authority + b"\r\n" + self._headers,
                b"Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\nContent-Length: ",
            )
        )
        self._opened()

    def came(self, lines: list[bytes]) -> None:
        """Frames came on the stream."""
        if self._endpoint is not None:  # before it nothing was asked, so nothing can be meant
            self._came(lines)

    def broke(self, text: str, code: int) -> None:
        """The stream is over."""
        if self._stream is not None:
            self._stream.exchange = None
        if self._ready:
            for post in list(self._posts):
                if post.exchange is not None:
                    post.exchange.drain()
            self._ended(code)
        else:
            self._fail(text)

    def posted(self, post: _Post, fault: Fault | None) -> None:
        """A frame was taken, or not."""
        self._posts.discard(post)
        if fault is not None:
            self._lost(post.number, fault)
        self.confirmed(post)


class _Post:
    """One frame on its way."""

    def __init__(self, server: SseServer, text: bytes, number: int) -> None:
        self._server = server
        self._size = len(text)
        self.number = number
        self.exchange: Exchange | None = None

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        if self.exchange is not None:
            self.exchange.drain()  # what there is to say comes on the stream
        self._server.posted(self, None if 200 <= status < 300 else refused(status))

    def data(self, chunk: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def fail(self, fault: Fault) -> None:
        self._server.posted(self, fault)

    def waits(self, waiting: bool) -> None:
        self._server._weigh(self._size if waiting else -self._size)


class _Stream:
    """The stream on which everything comes."""

    def __init__(self, server: SseServer) -> None:
        self._server = server
        self._events: EventParser | None = None
        self.exchange: Exchange | None = None

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        plain = headers.get(b"content-encoding", b"identity") == b"identity"
        if status != 200:
            self._stop(refused(status).text)
        elif kind != b"text/event-stream" or not plain:
            self._stop("the server's answer is no stream of events; check the backend's `url` and `transport`")
        else:
            self._events = EventParser()

    def _stop(self, text: str) -> None:
        exchange = self.exchange
        if exchange is not None:
            exchange.abort()
        self._server.broke(text, 1)

    def data(self, chunk: bytes) -> None:
        if self._events is None:
            return
        try:
            found = self._events.feed(chunk)
        except EventTooLarge:
            self._stop("an event of the server is larger than 10 MB")
            return
        lines: list[bytes] = []
        for event in found:
            if event.kind == b"endpoint":
                self._server.named(event.data)
            elif event.kind == b"message" and event.data:
                lines.append(one_line(event.data))
        if lines and not self._server.over:
            self._server.came(lines)

    def end(self) -> None:
        self._server.broke("the server ended the stream before it named its endpoint", 0)

    def fail(self, fault: Fault) -> None:
        self._server.broke(fault.text, 1)

    def waits(self, waiting: bool) -> None:
        pass
