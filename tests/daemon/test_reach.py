from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest
from making import until
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from aegis_daemon.approvals.channels.notice import Post
from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.core.ports import Fault
from aegis_daemon.daemon import reach as reaching
from aegis_daemon.daemon import sockets
from aegis_daemon.daemon.reach import DaemonReach

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@asynccontextmanager
async def reach() -> AsyncIterator[DaemonReach]:
    pool = HttpPool(asyncio.get_running_loop())
    try:
        yield DaemonReach(pool)
    finally:
        pool.close()


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield "http://{}:{}/secret".format(*server.sockets[0].getsockname())


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("Retry-After: 7", 7.0), ("Retry-After: Wed, 21 Oct 2026 07:28:00 GMT", None), ("Retry-After: -1", None), ("X: 1", None)],
)  # fmt: skip
def test_an_answer_says_how_long_to_wait(run: Run, header: str, seconds: float | None) -> None:
    async def go() -> None:
        answer = f"HTTP/1.1 429 x\r\n{header}\r\nContent-Length: 2\r\n\r\nno".encode()
        async with reach() as out, answering(answer) as url:
            got = await out.send(Post(url, {}, b""), 5.0)
            assert (got.status, got.body, got.retry_after_s) == (429, b"no", seconds)

    run(go())


def test_a_redirect_is_an_answer_and_is_not_followed(run: Run) -> None:
    async def go() -> None:
        answer = b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
        async with reach() as out, answering(answer) as url:
            assert await out.fetch("POST", url, {}, b"", 5.0) == (302, b"")
            with pytest.raises(Fault, match="it answered 302"):
                async for _ in out.lines(url, {}):
                    pass

    run(go())


@pytest.mark.parametrize("url", ["ftp://h/", "http://", "http://u:secret@h/", "nonsense"])
def test_an_address_that_cannot_be_is_a_fault_without_the_address(run: Run, url: str) -> None:
    async def go() -> None:
        async with reach() as out:
            with pytest.raises(Fault, match=r"^its address cannot be used$"):
                await out.fetch("GET", url, {}, None, 5.0)
            with pytest.raises(Fault, match=r"^its address cannot be used$"):
                async for _ in out.lines(url, {}):
                    pass
            with pytest.raises(Fault) as fault:
                await out.websocket(url)
            assert "secret" not in str(fault.value)

    run(go())


@asynccontextmanager
async def socketed(handle: Any, **more: Any) -> AsyncIterator[str]:
    async with serve(handle, "127.0.0.1", 0, **more) as server:
        yield "ws://{}:{}/secret".format(*next(iter(server.sockets)).getsockname())


def test_a_websocket_carries_texts_both_ways_and_ends(run: Run) -> None:
    async def echo(socket: ServerConnection) -> None:
        await socket.send(b"bytes are nothing of ours")
        await socket.send(f"got {await socket.recv()!r}")

    async def go() -> None:
        async with reach() as out, socketed(echo) as url:
            socket = await out.websocket(url)
            await socket.send("hello")
            assert [text async for text in socket] == ["got 'hello'"]
            await socket.close()
            with pytest.raises(Fault):
                await socket.send("more")

    run(go())


def test_a_websocket_that_breaks_is_a_fault(run: Run) -> None:
    async def cut(socket: ServerConnection) -> None:
        socket.transport.abort()

    async def go() -> None:
        async with reach() as out, socketed(cut) as url:
            socket = await out.websocket(url)
            with pytest.raises(Fault, match="broke"):
                _ = [text async for text in socket]
            await socket.close()

    run(go())


def test_a_websocket_takes_no_message_without_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "MESSAGE_MAX", 1000)

    async def flood(socket: ServerConnection) -> None:
        await socket.send("x" * 2000)

    async def go() -> None:
        async with reach() as out, socketed(flood) as url:
            socket = await out.websocket(url)
            assert [text async for text in socket] == []
            await socket.close()

    run(go())


@pytest.mark.parametrize("status", [HTTPStatus.FOUND, HTTPStatus.FORBIDDEN, HTTPStatus.OK])
def test_a_server_that_will_not_is_a_fault_and_no_redirect_is_followed(run: Run, status: HTTPStatus) -> None:
    paths: list[str] = []

    def refuse(socket: ServerConnection, request: Request) -> Response:
        paths.append(request.path)
        response = socket.respond(status, "no\n")
        response.headers["Location"] = "/elsewhere"
        return response

    async def never(socket: ServerConnection) -> None:
        raise AssertionError

    async def go() -> None:
        async with reach() as out, socketed(never, process_request=refuse) as url:
            with pytest.raises(Fault) as fault:
                await out.websocket(url)
            assert "secret" not in str(fault.value)
        assert paths == ["/secret"]

    run(go())


def test_nothing_at_an_address_is_a_fault(run: Run) -> None:
    async def go() -> None:
        async with reach() as out:
            with pytest.raises(Fault, match=r"^it cannot be reached$"):
                await out.websocket("ws://127.0.0.1:9/secret")

    run(go())


# --- programs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('x' * 200_000)", "a line without end"),
        ("while True: print('x' * 1000, flush=True)", "prints without end"),
        ("import sys; sys.exit(3)", "ended with status 3"),
    ],
)
def test_a_program_that_floods_or_fails_is_ended(run: Run, program: str, said: str) -> None:
    async def go() -> None:
        async with reach() as out:
            with pytest.raises(Fault, match=said):
                async for _ in out.run((sys.executable, "-I", "-c", program)):
                    pass

    run(go())


def test_a_program_that_does_not_heed_an_interrupt_is_killed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "ENDS_S", 0.2)
    program = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    )

    async def go() -> None:
        ended: list[Any] = []
        end = reaching._end

        async def noted(process: asyncio.subprocess.Process) -> None:
            await end(process)
            ended.append(process.returncode)

        monkeypatch.setattr(reaching, "_end", noted)
        async with reach() as out, aclosing(out.run((sys.executable, "-I", "-c", program))) as lines:  # type: ignore[type-var]
            async for line in lines:
                assert line == b"on\n"
                break
        assert ended == [-9]

    run(go())


@pytest.mark.parametrize("program", ["print('x' * 300_000)", "while True: print('x' * 1000)"])
def test_nothing_of_a_program_stays_open_once_it_is_over(run: Run, program: str) -> None:
    async def go() -> None:
        async with reach() as out:
            before = 0
            for time in range(4):
                with pytest.raises(Fault):
                    async for _ in out.run((sys.executable, "-I", "-c", program)):
                        pass
                if time == 0:  # what the loop itself opens for the first one stays
                    before = descriptors()
            await until(lambda: descriptors() <= before)

    run(go())


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))
