from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from making import until
from remote_ends import End
from web_servers import serving

from aegis_daemon.backends import remote
from aegis_daemon.backends import websocket as under_test
from aegis_daemon.backends.websocket import WebSocketServer

Run = Callable[[Coroutine[Any, Any, Any]], Any]
TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("ws") as port:
        yield f"ws://127.0.0.1:{port}/mcp?a=b"


def test_frames_are_text_messages_both_ways(run: Run, url: str) -> None:
    async def go() -> None:
        end = End(WebSocketServer, url, TOKEN)
        assert not end.server.touched
        numbers = [end.asks(f"x/{n}") for n in range(20)]
        for n, number in enumerate(numbers):
            assert await end.result(number) == {"protocol": "mcp", "method": f"x/{n}"}
        end.says("initialized")
        assert [about for _, about in end.lines] == [None] * 20
        for name in ("pretty", "pieces"):
            await end.result(end.calls(name))
        await end.result(end.calls("t", text="x" * 900_000))
        await end.ends()
        assert end.exits == [0]
        assert not end.lost

    run(go())


def test_http_addresses_are_taken_too(run: Run, url: str) -> None:
    async def go() -> None:
        end = End(WebSocketServer, url.replace("ws:", "http:"), TOKEN)
        await end.result(end.asks("x"))
        await end.ends()

    run(go())


def test_a_server_that_wants_no_websocket_could_not_be_started(run: Run, url: str) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def go() -> None:
        end = End(WebSocketServer, url, {"Authorization": "Bearer wrong"})
        end.calls("t")
        await until(lambda: end.failures)
        assert "status 401" in end.failures[0]
        assert "wrong" not in end.failures[0]
        await end.closes()
        for reply, says in ((plain, "status 200"), (mute, "opened no session"), (hangs_up, "")):
            listener = await asyncio.start_server(reply, "127.0.0.1", 0)
            end = End(WebSocketServer, f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
            if reply is mute:
                under_test._OPEN_S = 0.05  # type: ignore[misc]
            end.calls("t")
            await until(lambda end=end: end.failures)
            assert says in end.failures[0]
            assert not end.exits
            await end.closes()
            listener.close()
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        end = End(WebSocketServer, f"ws://127.0.0.1:{port}")
        end.calls("t")
        await until(lambda: end.failures)
        assert "nothing listens" in end.failures[0]
        await end.closes()

    before = under_test._OPEN_S
    try:
        run(go())
    finally:
        under_test._OPEN_S = before  # type: ignore[misc]


@pytest.mark.parametrize(("name", "code"), [("leave", 0), ("binary", 1), ("huge", 1)])
def test_a_connection_that_ends_is_the_end_of_the_session(run: Run, url: str, name: str, code: int) -> None:
    async def go() -> None:
        end = End(WebSocketServer, url, TOKEN)
        await end.result(end.asks("x"))
        end.calls(name)
        await until(lambda: end.exits)
        assert end.exits == [code]
        end.calls("late")
        end.server.end()
        await end.closes()
        assert len(end.exits) == 1

    run(go())


def test_the_end_waits_for_open_answers_and_not_for_ever(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        end = End(WebSocketServer, url, TOKEN)
        number = end.asks("x")
        end.server.end()
        await end.result(number)
        await until(lambda: end.exits)
        assert end.exits == [0]
        monkeypatch.setattr(remote, "GRACE_S", 0.05)
        end = End(WebSocketServer, url, TOKEN)
        number = end.calls("silent")
        await end.ends()
        assert end.answer(number) is None
        assert end.exits == [0]
        end = End(WebSocketServer, url, TOKEN)
        await end.ends()
        assert end.exits == [0]

    run(go())


def test_a_cancelled_request_is_told_or_never_sent(run: Run, url: str) -> None:
    async def go() -> None:
        end = End(WebSocketServer, url, TOKEN)
        early, kept = end.calls("silent"), end.asks("x")
        end.cancels(early)
        assert (await end.loss(early)).not_executed
        await end.result(kept)
        late = end.calls("silent")
        end.cancels(late)
        await end.result(end.asks("y"))
        await end.ends()

    run(go())


def test_a_server_that_does_not_read_is_told_of(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def deaf(connection: Any) -> None:
        await until(lambda: done)

    async def go() -> None:
        from websockets.asyncio.server import serve

        monkeypatch.setattr(remote, "GRACE_S", 0.01)
        async with serve(deaf, "127.0.0.1", 0, max_queue=1, close_timeout=0.05, ping_interval=None) as server:
            end = End(WebSocketServer, f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            while end.full[-1:] != [True] or end.server._held:
                end.calls("t", text="x" * 900_000)
                await asyncio.sleep(0.001)
            done.append(1)
            await end.ends()

    done: list[int] = []
    run(go())


def test_a_silent_server_is_asked_whether_it_is_there_and_then_given_up(
    run: Run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "_BEAT_S", 0.02)

    async def go() -> None:
        end = End(WebSocketServer, url, TOKEN)
        await end.result(end.asks("x"))
        for _ in range(20):
            await asyncio.sleep(0.01)  # it answers pings
        await end.result(end.asks("x"))
        assert not end.exits
        socket = end.server._socket
        assert socket is not None
        monkeypatch.setattr(socket, "data_received", lambda data: None)  # what comes is lost on the way
        socket._transport.pause_reading()
        await until(lambda: end.exits)
        assert end.exits == [1]
        await end.closes()

    run(go())


def test_a_paused_server_is_not_given_up(run: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_BEAT_S", 0.01)

    async def go() -> None:
        end = End(WebSocketServer, url, TOKEN)
        end.server.pause(True)
        number = end.asks("x")
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not end.lines
        end.server.pause(False)
        await end.result(number)
        assert not end.exits
        await end.ends()

    run(go())


def test_a_configured_header_never_replaces_one_of_the_protocol(run: Run) -> None:
    async def go() -> None:
        for name in ("Sec-WebSocket-Key", "Upgrade", "Host", "Origin"):
            with pytest.raises(ValueError, match="set by the protocol"):
                End(WebSocketServer, "ws://x/", {name: "1"})

    run(go())
