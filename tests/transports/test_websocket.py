"""WebSocket towards agents: one message in each text frame, and an end that says why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fronthouse import TOKEN, Answer, Connection, House, call, initialize, note, opened, result
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from aegis_daemon.transports.websocket import BEAT_S
from aegis_daemon.wire.jsonrpc import MAX_FRAME_IN

Run = Callable[[Coroutine[Any, Any, Any]], Any]
WS = "/agents/amy/ws"
UPGRADE: dict[str, str | None] = {
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "AQIDBAUGBwgJCgsMDQ4PEA==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "mcp",
}


class Socket:
    """A client; the framing is the library's, the bytes are ours to send when and how we like."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.speaks = ClientProtocol(parse_uri("ws://127.0.0.1/"), subprotocols=[Subprotocol("mcp")], max_size=None)
        self.speaks.state = self.speaks.state.OPEN
        self.speaks.parser = self.speaks.parse()  # the handshake was ours
        next(self.speaks.parser)
        self._frames: list[Frame] = []

    def flush(self) -> None:
        for data in self.speaks.data_to_send():
            if data:
                self.connection.send(data)

    def says(self, *frames: Any) -> None:
        for frame in frames:
            self.speaks.send_text(frame if isinstance(frame, bytes) else json.dumps(frame).encode())
        self.flush()

    async def next(self) -> Frame:
        while not self._frames:
            data = await self.connection.reader.read(65536)
            assert data, "the connection ended"
            self.speaks.receive_data(data)
            self._frames += [frame for frame in self.speaks.events_received() if isinstance(frame, Frame)]
        return self._frames.pop(0)

    async def frame(self) -> Any:
        frame = await self.next()
        assert (frame.opcode, frame.fin) == (Opcode.TEXT, True), frame
        return json.loads(bytes(frame.data))

    async def closed(self) -> tuple[int, str]:
        """The end that is to come, and why."""
        while (frame := await self.next()).opcode is not Opcode.CLOSE:
            pass
        self.flush()
        assert await self.connection.ended() == b""
        return int.from_bytes(bytes(frame.data)[:2]), bytes(frame.data)[2:].decode()


async def upgraded(house: House, path: str = WS, **headers: str | None) -> Socket:
    connection = await house.connect()
    connection.ask("GET", path, {**UPGRADE, **headers})
    answer = await connection.head()
    assert (answer.status, answer.headers["sec-websocket-protocol"]) == (101, "mcp")
    assert answer.headers["sec-websocket-accept"] == "C/0nmHhBztSRGR1CwL6Tf4ZjwpY="
    return Socket(connection)


def test_a_session_over_one_connection(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            socket = await upgraded(house, "/agents/amy/backends/files/ws")
            assert house.party.backend == "files"
            socket.says(initialize(), note("initialized"), call("seven"))
            assert [(await socket.frame())["id"] for _ in range(2)] == [0, "seven"]
            assert house.party.methods() == ["initialize", "notifications/initialized", "tools/call"]
            house.party.tells(note("message"))
            assert await socket.frame() == note("message")
            socket.speaks.send_ping(b"there?")
            socket.flush()
            assert (await socket.next()).opcode is Opcode.PONG
            socket.speaks.send_close(1000)
            socket.flush()
            assert await socket.closed() == (1000, "")
            await house.until(lambda: house.party.left)
            assert house.sockets.sessions == []

    run(play())


def test_a_message_may_come_in_fragments_and_bytes_of_any_size(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            socket = await upgraded(house)
            text = json.dumps(call(1, word="ü" * 10), ensure_ascii=False).encode()
            socket.speaks.send_text(text[:5], fin=False)
            for at in range(5, len(text), 9):
                socket.speaks.send_continuation(text[at : at + 9], fin=False)
                socket.speaks.send_ping(b"")
            socket.speaks.send_continuation(b"", fin=True)
            whole = b"".join(socket.speaks.data_to_send())
            for at in range(0, len(whole), 11):
                socket.connection.send(whole[at : at + 11])
                await asyncio.sleep(0)
            while (frame := await socket.next()).opcode is Opcode.PONG:
                pass
            assert json.loads(bytes(frame.data)) == result(1)
            assert house.party.heard[0].params["arguments"] == {"word": "ü" * 10}

    run(play())


def test_what_comes_with_the_request_for_the_upgrade_is_not_lost(run: Run) -> None:
    async def play() -> None:
        async with opened() as (_house, connection):
            socket = Socket(connection)
            connection.ask("GET", WS, UPGRADE)
            socket.says(call(1))
            assert (await connection.head()).status == 101
            assert await socket.frame() == result(1)

    run(play())


def test_a_binary_message_is_refused_and_nothing_behind_it_is_heard(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            socket = await upgraded(house)
            socket.speaks.send_binary(json.dumps(call(1)).encode())
            socket.says(call(2))
            assert (await socket.closed())[0] == 1003
            assert house.party.heard == []

    run(play())


@pytest.mark.parametrize("pieces", [1, 5])
def test_a_message_over_the_limit_is_refused(run: Run, pieces: int) -> None:
    async def play() -> None:
        async with House() as house:
            socket = await upgraded(house)
            part = b" " * (MAX_FRAME_IN // pieces + 1)
            socket.speaks.send_text(part, fin=pieces == 1)
            for number in range(1, pieces):
                socket.speaks.send_continuation(part, fin=number == pieces - 1)
            socket.flush()
            assert (await socket.closed())[0] == 1009
            assert house.party.heard == []

    run(play())


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\x02{}",  # not masked
        b"\xf1\x80\0\0\0\0",  # reserved bits
        b"\x80\x80\0\0\0\0",  # a continuation of nothing
        b"\x83\x80\0\0\0\0",  # an opcode that nobody knows
        b"\x89\xfe\x00\x7e\0\0\0\0" + bytes(126),  # a ping too long
    ],
    ids=["unmasked", "reserved", "continuation", "opcode", "ping"],
)
def test_what_is_no_frame_ends_the_connection(run: Run, data: bytes) -> None:
    async def play() -> None:
        async with House() as house:
            socket = await upgraded(house)
            socket.connection.send(data)
            assert (await socket.closed())[0] == 1002
            await house.until(lambda: house.party.left)

    run(play())


def test_fragments_of_nothing_take_no_memory(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            socket = await upgraded(house)
            socket.connection.send(b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 20_000)
            socket.connection.send(b"\x89\x80\0\0\0\0")
            assert (await socket.next()).opcode is Opcode.PONG
            assert len(house.sockets.sessions[0]._message) == 0

    run(play())


def test_what_is_no_message_gets_an_error_and_an_answer_that_is_none_gets_nothing(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            socket = await upgraded(house)
            socket.says(
                b"{", b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}', b'{"jsonrpc":"2.0","id":7,"method":4}', b"[]"
            )
            errors = [await socket.frame() for _ in range(3)]
            assert [error["error"]["code"] for error in errors] == [-32700, -32600, -32600]
            assert sum(house.drops.values()) == 4
            assert house.party.heard == []

    run(play())


async def refused(
    connection: Connection, headers: dict[str, str | None], path: str = WS, method: str = "GET"
) -> Answer:
    connection.ask(method, path, {**UPGRADE, **headers})
    return await connection.answer()


def test_who_may_not_come_is_told_before_the_upgrade(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            for path, headers, status in (
                ("/agents/tok/ws", {}, 401),
                ("/agents/tok/ws", {"Authorization": "Bearer wrong"}, 401),
                ("/agents/eve/ws", {}, 403),
                ("/agents/amy/backends/none/ws", {}, 403),
                (WS, {"Origin": "https://evil.example"}, 403),
                (WS, {"Sec-WebSocket-Protocol": "chat"}, 400),
                (WS, {"Sec-WebSocket-Protocol": None}, 400),
                (WS, {"Sec-WebSocket-Version": "8"}, 400),
                (WS, {"Sec-WebSocket-Key": "short"}, 400),
                (WS, {"Upgrade": "h2c"}, 426),
                (WS, {"Upgrade": None, "Connection": None}, 426),
            ):
                connection = await house.connect()
                answer = await refused(connection, dict(headers), path)
                assert answer.status == status, (headers, answer)
            assert [party for party in house.parties if party.heard or not party.left] == []
            assert house.sockets.sessions == []
            connection = await house.connect()
            assert (await refused(connection, {}, method="POST")).status == 426
            socket = await upgraded(house, "/agents/tok/ws", Authorization=f"Bearer {TOKEN}")
            socket.says(call(1))
            assert await socket.frame() == result(1)

    run(play())


def test_a_server_that_does_not_start_or_ends_is_named_in_the_close(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            assert await (await upgraded(house, "/agents/gone/ws")).closed() == (1011, "the server does not start")
            socket = await upgraded(house)
            house.party.client.refuse("é" * 100)
            house.party.client.close(3)
            assert await socket.closed() == (1011, "é" * 60)
            await house.until(lambda: house.sockets.sessions == [])

    run(play())


def test_a_client_that_answers_no_ping_is_gone(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            alive, dead = await upgraded(house), await upgraded(house)
            for _ in range(6):
                house.passes(BEAT_S + 1)
                if alive is not None:
                    assert (await alive.next()).opcode is Opcode.PING
                    alive.flush()
                    await house.until(lambda: any(one._unanswered == 0 for one in house.sockets.sessions))
            assert await dead.connection.ended() is not None
            assert [party.left for party in house.parties] == [False, True]

    run(play())


def test_a_client_whose_server_is_slow_need_not_answer_pings(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            socket = await upgraded(house)
            house.party.client.pause(True)
            for _ in range(9):
                house.passes(BEAT_S + 1)
            socket.says(call(1))
            await asyncio.sleep(0.02)
            assert house.party.heard == []
            house.party.client.pause(False)
            assert await socket.frame() == result(1)

    run(play())


def test_a_reader_that_never_reads_stops_its_own_server_and_is_cut(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            socket, other = await upgraded(house), await upgraded(house)
            socket.connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            slow = house.parties[0]
            while not slow.full:
                slow.tells(note("message", data="x" * 500_000))
            assert slow.full == [True]
            other.says(call(1))
            assert await other.frame() == result(1)
            for _ in range(40):
                slow.tells(note("message", data="x" * 500_000))
            await house.until(lambda: slow.left)
            assert len(house.sockets.sessions) == 1

    run(play())


def test_agents_that_may_not_come_any_more_lose_their_connections(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            socket = await upgraded(house)
            house.sockets.turn_out(lambda principal: False)
            assert await socket.closed() == (1011, "this agent is not admitted as before any more; begin a new session")

    run(play())
