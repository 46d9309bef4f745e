"""A network backend and all that it tells, and servers written by hand that say what a test wants them to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from making import until

from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.core.ports import Fault
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.wire.jsonrpc import Frame, encode, parse

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
}
HANDSHAKE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"elicitation": {}},
    "clientInfo": {"name": "test", "version": "1"},
}


class End:
    """The conversation's end of a backend."""

    def __init__(self, kind: Callable[..., Any], url: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        loop = asyncio.get_running_loop()
        self.pool = more.pop("pool", None) or HttpPool(loop, connect_timeout=5)
        self.lines: list[tuple[dict[str, Any], int | None]] = []
        self.lost: dict[int, Fault] = {}
        self.full: list[bool] = []
        self.exits: list[int] = []
        self.failures: list[str] = []
        self._number = 0
        self.server = kind(
            loop,
            Outbox(loop),
            self.pool,
            url,
            headers or {},
            on_lines=self._lines,
            on_lost=self._lost,
            on_full=self.full.append,
            on_exit=self.exits.append,
            on_failed=self.failures.append,
            **more,
        )

    def _lines(self, lines: list[bytes], about: int | None) -> None:
        for line in lines:
            assert b"\n" not in line
            assert b"\r" not in line
            self.lines.append((json.loads(line), about))

    def _lost(self, number: int, fault: Fault) -> None:
        assert number not in self.lost
        self.lost[number] = fault

    def says(self, method: str, **params: Any) -> None:
        """A notification."""
        frame = self._frame({"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params})
        self.server.send(frame.encoded(), frame)

    def answers(self, id: Any, result: Any) -> None:
        """An answer to a request of the server."""
        frame = self._frame({"jsonrpc": "2.0", "id": id, "result": result})
        self.server.send(frame.encoded(), frame)

    def asks(self, method: str, *, modern: bool = False, **params: Any) -> int:
        """A request; its number."""
        self._number += 1
        if modern:
            params["_meta"] = {**META, **params.get("_meta", {})}
        # The client's id is another one than ours.
        frame = self._frame({"jsonrpc": "2.0", "id": f"c{self._number}", "method": method, "params": params})
        self.server.send(frame.encoded(self._number), frame, self._number)
        return self._number

    def calls(self, tool: str, *, modern: bool = False, token: Any = None, **arguments: Any) -> int:
        """A tools/call; its number."""
        meta = {} if token is None else {"_meta": {"progressToken": token}}
        return self.asks("tools/call", modern=modern, name=tool, arguments=arguments, **meta)

    def cancels(self, number: int, **more: Any) -> None:
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number, **more}}
        self.server.cancel(number, encode(note))

    def _frame(self, value: Any) -> Frame:
        return parse(msgspec.json.encode(value))

    def answer(self, number: int) -> dict[str, Any] | None:
        """What answers this request, if it came."""
        for frame, _ in self.lines:
            if frame.get("id") == number and "method" not in frame:
                return frame
        return None

    def told(self, method: str) -> list[tuple[dict[str, Any], int | None]]:
        return [(frame, about) for frame, about in self.lines if frame.get("method") == method]

    async def answered(self, number: int) -> dict[str, Any]:
        """The answer, once it is there."""
        await until(lambda: self.answer(number) or number in self.lost or self.exits or self.failures)
        frame = self.answer(number)
        assert frame is not None, (self.lost and self.lost[number].text, self.exits, self.failures)
        return frame

    async def result(self, number: int) -> Any:
        frame = await self.answered(number)
        assert "result" in frame, frame
        return frame["result"]

    async def loss(self, number: int) -> Fault:
        """What was said of a request that gets no answer."""
        await until(lambda: self.answer(number) or number in self.lost)
        assert self.answer(number) is None
        return self.lost[number]

    async def shakes_hands(self) -> dict[str, Any]:
        result: dict[str, Any] = await self.result(self.asks("initialize", **HANDSHAKE))
        self.says("initialized")
        return result

    async def ends(self) -> None:
        """Ends the session, and everything else."""
        if not self.exits and not self.failures:
            self.server.close_stdin()
            self.server.end()
            await until(lambda: self.exits)
        await self.closes()

    async def closes(self) -> None:
        self.pool.close()
        await until(lambda: not self.pool.connections and not self.pool._tasks)
        for _ in range(5):
            await asyncio.sleep(0)  # the loop has its own to do behind a transport


class Request:
    """What a server written by hand got."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body

    @property
    def frame(self) -> dict[str, Any]:
        return json.loads(self.body)  # type: ignore[no-any-return]


Reply = Callable[[Request, asyncio.StreamWriter], Awaitable[Any]]


class Scripted:
    """A server that hands each request to a function, which writes whatever it likes. False from it ends a connection."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.requests: list[Request] = []
        self.connections = 0
        self.open = 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.add(writer)
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split(" ", 2)
                headers: dict[str, str] = {}
                while (line := await reader.readline()).strip():
                    name, _, value = line.decode("latin-1").partition(":")
                    assert name.lower() not in headers, f"{name} came twice"
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = Request(method, path, headers, body)
                self.requests.append(request)
                if await self._reply(request, writer) is False:
                    break
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self.open -= 1


@contextlib.asynccontextmanager
async def scripted(reply: Reply) -> AsyncIterator[Scripted]:
    server = Scripted(reply)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0, limit=1 << 24)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
        await until(lambda: not server.open)  # whoever connected has closed
    finally:
        listener.close()
        for writer in server.writers:
            writer.transport.abort()


def response(status: int, body: bytes = b"", *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    if body:
        lines.append(f"Content-Type: {kind}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def result(request: Request, value: Any = None, *headers: str) -> bytes:
    body = json.dumps({"jsonrpc": "2.0", "id": request.frame["id"], "result": {} if value is None else value})
    return response(200, body.encode(), *headers)


def opened(request: Request, session: str = "s1") -> bytes:
    """The answer to a handshake."""
    value = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "by hand", "version": "1"}}
    return result(request, value, *([f"Mcp-Session-Id: {session}"] if session else []))


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: Any, id: str = "", kind: str = "message") -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    lines = [f"event: {kind}", *([f"id: {id}"] if id else []), f"data: {text}", "", ""]
    return chunk("\n".join(lines).encode())
