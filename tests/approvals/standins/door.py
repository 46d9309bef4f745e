"""An HTTP server that answers as it is told, or misbehaves, and a `Reach` that goes out over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import httptools
import msgspec
from websockets.asyncio.client import connect

from aegis_daemon.approvals.channels.notice import Notice, Post
from aegis_daemon.backends.http_client import HttpPool

Answered = tuple[int, Mapping[str, str], Any]
"""Status, headers, and the body: bytes, or a queue of them for a stream."""
LIMIT = 1 << 20


class Asked(msgspec.Struct):
    """One request, whole."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        kind = self.headers.get("content-type", "")
        assert kind.partition(";")[0] == "application/json", f"a JSON body is not sent as `{kind}`"
        return json.loads(self.body)


class Door:
    """`async with Door(answer)`; `misbehave` holds what the next requests meet instead: hang, garbage, close, or an answer."""

    def __init__(self, answer: Callable[[Asked], Awaitable[Answered]]) -> None:
        self._answer = answer
        self.misbehave: list[Any] = []
        self.asked: list[Asked] = []
        self.faults: list[str] = []
        """what a client sent that the real service would not have taken"""
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Door:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname()[:2])
        self.url = f"http://{self.address}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while (asked := await _read(reader)) is not None:
                self.asked.append(asked)
                how = self.misbehave.pop(0) if self.misbehave else None
                if how == "hang":
                    await asyncio.Event().wait()
                if how == "close":
                    return
                if how == "garbage":
                    writer.write(b"\x00\xff not http at all\r\n\r\n")
                    return
                try:
                    status, headers, body = how or await self._answer(asked)
                except AssertionError as error:
                    self.faults.append(str(error))
                    status, headers, body = 400, {}, b"invalid_payload"
                if isinstance(body, asyncio.Queue):  # a stream without an end, in chunks; None breaks it off
                    writer.write(f"HTTP/1.1 {status} x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
                    while (piece := await body.get()) is not None:
                        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b"0\r\n\r\n")
                        await writer.drain()
                    return
                lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in headers.items())]
                if status != 204:
                    lines.append(f"content-length: {len(body)}")
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # cancelled: whatever still hangs when the test ends
        finally:
            self._open.discard(writer)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    found = Asked("", "", {}, b"")
    done: list[bool] = []

    class Sink:
        def on_url(self, url: bytes) -> None:
            found.path += url.decode()

        def on_header(self, name: bytes, value: bytes) -> None:
            found.headers[name.decode().lower()] = value.decode()

        def on_body(self, body: bytes) -> None:
            found.body += body

        def on_message_complete(self) -> None:
            done.append(True)

    parser = httptools.HttpRequestParser(Sink())
    while not done:
        data = await reader.read(65536)
        if not data:
            return None
        parser.feed_data(data)
        assert len(found.body) <= LIMIT
    found.method = parser.get_method().decode()
    return found


class Hands:
    """`Reach` over a real client."""

    def __init__(self) -> None:
        self._pool = HttpPool(asyncio.get_running_loop())

    async def fetch(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        response = await self._pool.fetch(method, url, headers, body, timeout=timeout_s)
        return response.status, response.body

    async def send(self, post: Post, timeout_s: float = 5.0) -> tuple[int, bytes]:
        return await self.fetch(post.method, post.url, post.headers, post.body, timeout_s)

    def lines(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        raise NotImplementedError

    def run(self, argv: tuple[str, ...]) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def websocket(self, url: str) -> Any:
        return await connect(url, proxy=None)

    def close(self) -> None:
        self._pool.close()


def notice(**changes: Any) -> Notice:
    facts: dict[str, Any] = {
        "id": "K7Q2", "call_id": "ab" * 16, "agent": "amy", "backend": "files", "tool": "publish_post",
        "arguments": '{"title":"Grüße"}', "created": 1_763_715_599.7, "expires": 1_763_716_200.0,
        "rule": "agents.amy.backends.files.approval_required", "approve_url": "https://a.example/?yes",
        "reject_url": "https://a.example/?no", "proof": "p-roof_0123456ab",
    }  # fmt: skip
    return Notice(**{**facts, **changes})


HOSTILE = (
    "x```\n`<!channel> <@U1> @everyone <at>all</at> **[safe](https://evil.example)** *b* {{DATE(x)}} ${a}\u202e&amp;"
)
"""What an agent would write to look like something else."""
