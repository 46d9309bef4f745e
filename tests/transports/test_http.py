"""One port for everything: a request is read in exactly one way, answered once, and holds up nobody."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fronthouse import AMY, House, call, initialize, note, opened, result

from aegis_daemon.transports import http
from aegis_daemon.transports.http import HEADERS, Route, route_of
from aegis_daemon.wire.jsonrpc import MAX_FRAME_IN

Run = Callable[[Coroutine[Any, Any, Any]], Any]
BODY = json.dumps(call(1)).encode()
HEAD = b"POST /agents/amy/mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


def chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


# --- routes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "route"),
    [
        (b"/agents/amy/mcp", Route("mcp", "amy")),
        (b"/agents/a%20b%2Fc/mcp", Route("mcp", "a b/c")),
        (b"/agents/%C3%A4/backends/x%3Fy/sse?session=1", Route("sse", "ä", "x?y", b"session=1")),
        (b"/agents/amy/backends/files/ws", Route("ws", "amy", "files")),
        (b"/agents/%FF/mcp", None),
        (b"/agents//mcp", None),
        (b"/agents/amy", None),
        (b"/agents/amy/mcp/", None),
        (b"/agents/amy/backends//mcp", None),
        (b"/agents/amy/others/files/mcp", None),
        (b"/agents/amy/backends/files/mcp/more", None),
    ],
)
def test_routes(url: bytes, route: Route | None) -> None:
    assert route_of(url) == route


def test_an_address_that_leads_nowhere_is_404(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            for path in ("/agents/", "/agents/amy", "/agents/%ff/mcp"):
                connection = await house.connect()
                connection.post(path, call(1))
                assert (await connection.answer()).status == 404
            for number in range(3000):
                house.port.route(b"/agents/%d/mcp" % number)
            assert len(house.port._routes) <= 1024

    run(play())


# --- one request, read in one way -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + chunks(BODY, 9),
        HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(BODY, 9),
        HEAD + b"Content-Length: %d\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), len(BODY), BODY),
        HEAD + b"Content-Length: +%d\r\n\r\n%b" % (len(BODY), BODY),
        HEAD + b"Content-Length: %d, %d\r\n\r\n%b" % (len(BODY), len(BODY), BODY),
        HEAD + b"Content-Length : %d\r\n\r\n%b" % (len(BODY), BODY),
        HEAD + b"Transfer-Encoding: identity\r\n\r\n" + BODY,
        HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + chunks(BODY, 9),
        HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + chunks(BODY, 9),
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunks(BODY, 9),
        HEAD + b"X: a\r\n b\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        HEAD + b"X: a\rContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        HEAD + b"X: a\0b\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        WHOLE.replace(b"\r\n", b"\n"),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(BODY, 9).replace(b"9\r\n", b"9\n", 1),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(BODY, 9).replace(b"9\r\n", b"9;a\n", 1),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(BODY, 9).replace(b"9\r\n", b"0x9\r\n", 1),
        WHOLE.replace(b"HTTP/1.1", b"HTTP/1.7"),
        WHOLE.replace(b"/agents/amy", b"/agents/\xff"),
        WHOLE.replace(b"Host:", b" Host:"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_what_two_readers_could_read_in_two_ways_is_refused(run: Run, request_: bytes) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            connection.send(request_)
            answer = await connection.answer()
            assert answer.status == 400
            assert await connection.ended() == b""
            assert house.parties == []
            assert house.app_saw == []

    run(play())


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_chunks_of_any_size_and_extension_are_one_body(run: Run, size: int) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            body = chunks(BODY, size).replace(b"\r\n", b";name=value\r\n", 1)
            for piece in (
                HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
                *[body[at : at + 50] for at in range(0, 900, 50)],
            ):
                connection.send(piece)
                await connection.writer.drain()
                await asyncio.sleep(0)
            assert (await connection.answer()).value == result(1)
            assert house.party.heard[-1].params["name"] == "echo"

    run(play())


def test_headers_behind_a_body_are_nobodys(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            head = HEAD.replace(b"amy", b"tok") + b"Transfer-Encoding: chunked\r\n\r\n"
            connection.send(head + chunks(BODY, 99)[:-2] + b"Authorization: Bearer 0123456789abcdef\r\n\r\n")
            assert (await connection.answer()).status == 401
            assert house.parties == []

    run(play())


def test_a_second_header_where_one_counts_is_refused(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            for name in ("Authorization: Bearer a", "Content-Type: application/json", "Mcp-Session-Id: x"):
                connection = await house.connect()
                connection.post(AMY, call(1), {"X": f"y\r\n{name}\r\n{name}"})
                assert (await connection.answer()).status == 400
            connection = await house.connect()
            connection.post(AMY, call(1), {"Accept": "text/html\r\nAccept: application/json"})
            assert (await connection.answer()).status == 200

    run(play())


@pytest.mark.parametrize("async_answer", [False, True])
def test_a_request_behind_the_last_one_is_not_executed(run: Run, async_answer: bool) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            if async_answer:
                house.holds.add("tools/call")
            last = WHOLE.replace(b"Host", b"Connection: close\r\nHost")
            connection.send(last + WHOLE)
            await house.until(lambda: house.parties and house.party.heard[1:])
            if async_answer:
                house.party.answers(1)
            assert (await connection.answer()).headers["connection"] == "close"
            assert await connection.ended() == b""
            assert house.party.methods().count("tools/call") == 1

    run(play())


def test_a_request_sent_before_the_answer_to_the_one_before_it_is_not_executed(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            house.holds.add("tools/call")
            connection.send(WHOLE + WHOLE.replace(b"echo", b"evil") + b"nonsense \x00")
            await house.until(lambda: house.parties and house.party.open)
            connection.send(WHOLE.replace(b"echo", b"evil") * 3)
            await asyncio.sleep(0.02)
            house.party.answers(1, {"mine": True})
            assert (await connection.answer()).value == result(1, {"mine": True})
            assert await connection.ended() == b""
            assert [frame.params["name"] for frame in house.party.heard if frame.method == "tools/call"] == ["echo"]

    run(play())


def test_a_request_sent_before_the_applications_answer_is_not_executed(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            house.app_holds.clear()
            connection.send(b"GET /a HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + WHOLE)
            await house.until(lambda: house.app_saw)
            house.app_holds.set()
            assert (await connection.answer()).body == b"app"
            assert await connection.ended() == b""
            assert house.parties == []

    run(play())


def test_requests_that_are_answered_at_once_may_come_together(run: Run) -> None:
    async def play() -> None:
        async with opened() as (_house, connection):
            connection.send(WHOLE.replace(b'"id": 1', b'"id": 2') + WHOLE.replace(b'"id": 1', b'"id": 3'))
            assert [(await connection.answer()).value["id"] for _ in range(2)] == [2, 3]

    run(play())


def test_garbage_behind_a_request_does_not_take_its_answers_place(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            house.holds.add("tools/call")
            connection.send(WHOLE + b"\x00\x00\x00")
            await house.until(lambda: house.parties and house.party.open)
            house.party.answers(1)
            assert (await connection.answer()).value == result(1)
            assert await connection.ended() == b""

    run(play())


# --- variants of HTTP -------------------------------------------------------------------------------------------------


def test_one_connection_serves_both_ways_in_turn(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            for number in range(3):
                connection.post(AMY, call(number))
                assert (await connection.answer()).value == result(number)
                connection.ask("POST", "/api/v1/x?y=%20", body=b"z" * 70_000)
                assert (await connection.answer()).body == b"app"
            assert house.app_saw == [("POST", "/api/v1/x", b"z" * 70_000)] * 3

    run(play())


@pytest.mark.parametrize("path", [AMY, "/api/v1/x"])
def test_an_upgrade_to_http_2_is_passed_over(run: Run, path: str) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            h2c: dict[str, str | None] = {
                "Connection": "Upgrade, HTTP2-Settings",
                "Upgrade": "h2c",
                "HTTP2-Settings": "AAA",
            }
            for number in range(2):
                connection.post(path, call(number), h2c)
                assert (await connection.answer()).status == 200
            for _ in range(300):
                connection.ask("GET", AMY, h2c)
            for _ in range(300):
                assert (await connection.answer()).status == 405
            _, id = await house.begun()
            connection.ask("GET", AMY, {**h2c, "Mcp-Session-Id": id})
            assert (await connection.head()).headers["content-type"] == "text/event-stream"
            house.party.tells(note("message"))
            assert await connection.frame() == note("message")

    run(play())


def test_an_upgrade_that_nobody_takes_ends_the_connection(run: Run) -> None:
    async def play() -> None:
        async with opened(upgraded=lambda exchange, rest: None) as (_house, connection):
            connection.ask("GET", "/agents/amy/ws", {"Connection": "Upgrade", "Upgrade": "websocket"})
            assert await connection.ended() == b""

    run(play())


def test_a_client_that_asks_first_is_told_to_go_on(run: Run) -> None:
    async def play() -> None:
        async with opened() as (_house, connection):
            for path in (AMY, "/api/v1/x"):
                connection.ask(
                    "POST", path,
                    {"Expect": "100-continue", "Content-Length": str(len(BODY)), "Content-Type": "application/json"},
                )  # fmt: skip
                assert (await connection.head()).status == 100
                connection.send(BODY)
                assert (await connection.answer()).status == 200
            connection.ask("POST", AMY, {"Expect": "100-continue", "Content-Length": str(MAX_FRAME_IN + 1)})
            assert (await connection.answer()).status == 413

    run(play())


def test_http_1_0_gets_plain_streams_and_the_end_of_the_connection(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection = await house.connect()
            connection.post(AMY, call(1), {"Connection": "keep-alive"}, version="1.0")
            assert (await connection.answer()).headers["connection"] == "close"
            assert await connection.ended() == b""
            connection, id = await house.begun()
            house.holds.add("tools/call")
            old = await house.connect()
            old.post(AMY, call(1), {"Mcp-Session-Id": id}, version="1.0")
            await house.until(lambda: house.party.open)
            house.party.tells(note("message"), about=1)
            house.party.answers(1)
            assert "transfer-encoding" not in (await old.head()).headers
            assert [await old.frame(), await old.frame()] == [note("message"), result(1)]
            assert await old.ended() == b""

    run(play())


def test_an_answer_to_head_has_no_body(run: Run) -> None:
    async def play() -> None:
        async with opened() as (_house, connection):
            connection.ask("HEAD", "/agents/tok/mcp")
            answer = await connection.answer(head=True)
            assert (answer.status, int(answer.headers["content-length"]) > 0) == (401, True)
            connection.post(AMY, call(1))
            assert (await connection.answer()).status == 200

    run(play())


def test_a_fault_of_ours_ends_one_connection_and_no_other(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            other = await house.connect()
            house.faults.add("tools/list")
            connection.post(AMY, {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})
            assert await connection.ended() == b""
            other.post(AMY, call(2))
            assert (await other.answer()).value == result(2)

    run(play())


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [AMY, "/api/v1/x"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(run: Run, path: str, chunked: bool) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            body = b" " * (MAX_FRAME_IN + 1)
            if chunked:
                head: dict[str, str | None] = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
                connection.ask("POST", path, head)
                connection.send(chunks(body, 100_000))
            else:
                connection.post(path, body)
            assert (await connection.answer()).status == 413
            assert house.parties == []
            assert house.app_saw == []

    run(play())


def test_a_client_that_writes_all_before_it_reads_still_learns_why_it_was_refused(run: Run) -> None:
    async def play() -> None:
        async with opened() as (_house, connection):
            connection.ask("POST", AMY, {"Content-Length": str(20_000_000), "Content-Type": "application/json"})
            for _ in range(20):
                connection.send(b" " * 1_000_000)
                await connection.writer.drain()
            assert (await connection.answer()).status == 413
            assert await connection.reader.read() == b""

    run(play())


def test_a_body_at_the_limit_is_read(run: Run) -> None:
    async def play() -> None:
        async with opened() as (_house, connection):
            frame = call(1, text="")
            frame["params"]["arguments"]["text"] = "x" * (MAX_FRAME_IN - len(json.dumps(frame)))
            connection.post(AMY, frame)
            assert (await connection.answer()).value == result(1)

    run(play())


@pytest.mark.parametrize("path", [AMY, "/api/v1/x"])
def test_headers_over_the_limit_are_refused(run: Run, path: str) -> None:
    async def play() -> None:
        async with House() as house:
            for headers in (
                {"X": "y" * HEADERS},
                {f"X-{number}": "y" for number in range(20_000)},
                {"X": "y" * (HEADERS * 20)},
            ):
                connection = await house.connect()
                connection.post(path, call(1), dict(headers))
                answer = await connection.answer()
                assert answer.status == 431
            connection = await house.connect()
            connection.post(path + "?" + "y" * HEADERS, call(1))
            assert (await connection.answer()).status == 431
            connection = await house.connect()
            connection.post(path, call(1), {"X": "y" * (HEADERS - 1000)})
            assert (await connection.answer()).status == 200

    run(play())


@pytest.mark.parametrize(
    "begin", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: "]
)
def test_what_never_ends_is_ended(run: Run, begin: bytes) -> None:
    async def play() -> None:
        async with opened() as (_house, connection):
            connection.send(begin)
            more = begin * 20_000 if begin == b"\r\n" else b"y" * 40_000
            sent = 0
            while not connection.reader._buffer and sent < 8 << 20:  # type: ignore[attr-defined]
                connection.send(more)
                sent += len(more)
                await asyncio.sleep(0)
            assert sent < 8 << 20
            assert (await connection.answer()).status in (400, 431)

    run(play())


def test_too_many_connections_are_not_taken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS", 2)

    async def play() -> None:
        async with House() as house:
            taken = [await house.connect() for _ in range(2)]
            await house.until(lambda: len(house.port.state.connections) == 2)
            assert await (await house.connect()).ended() == b""
            for connection in taken:
                connection.post(AMY, call(1))
                assert (await connection.answer()).status == 200

    run(play())


@pytest.mark.parametrize(
    ("begin", "path"),
    [
        (b"", "nothing"),
        (b"POST ", "the method"),
        (b"POST /agents/amy/mcp HTTP/1.1\r\nHost: 127", "a header"),
        (WHOLE[:-3], "the body"),
        (WHOLE[:-3].replace(b"/agents/amy/mcp", b"/api/v1/x"), "the application's body"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_client_that_drips_is_ended(run: Run, begin: bytes, path: str) -> None:
    async def play() -> None:
        async with opened(read_s=20.0) as (house, connection):
            connection.send(begin)
            await house.until(lambda: house.port.state.connections)
            await asyncio.sleep(0.02)
            house.passes(19.0)
            assert not connection.reader.at_eof()
            connection.send(begin[:0] + (b"x" if path == "a header" else b""))
            await asyncio.sleep(0.02)
            house.passes(2.0)
            assert (await connection.ended())[:12] in (b"", b"HTTP/1.1 408")
            assert house.parties == []

    run(play())


def test_a_connection_that_lies_idle_is_ended(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            for path in (AMY, "/api/v1/x"):
                connection = await house.connect()
                connection.post(path, call(1))
                await connection.answer()
                house.passes(70.0)
                connection.post(path, call(1))
                assert (await connection.answer()).status == 200
                house.passes(80.0)
                assert await connection.ended() == b""

    run(play())


def shrink(connection: Any) -> None:
    connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.writer.transport.pause_reading()


def test_a_reader_that_never_reads_is_cut_and_slows_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WORST", 1 << 22)

    async def play() -> None:
        async with House() as house:
            first, id = await house.begun()
            slow, party = await house.connect(), house.party
            shrink(slow)
            slow.ask("GET", AMY, {"Mcp-Session-Id": id})
            await house.until(lambda: house.streamable.sessions[0]._general.exchange)
            big = note("message", data="x" * 500_000)
            while not party.full:
                party.tells(big)
                await asyncio.sleep(0)
            assert party.full == [True]
            first.post(AMY, call(1), {"Mcp-Session-Id": id})
            assert (await first.answer()).value == result(1)
            for _ in range(9):  # a server that does not listen to that
                party.tells(big)
            await house.until(lambda: house.streamable.sessions[0]._general.exchange is None)
            assert party.full == [True, False]

    run(play())


def test_a_reader_that_reads_too_slowly_is_cut_when_its_time_is_over(run: Run) -> None:
    async def play() -> None:
        async with House(write_s=30.0) as house:
            _first, id = await house.begun()
            slow, party = await house.connect(), house.party
            shrink(slow)
            slow.ask("GET", AMY, {"Mcp-Session-Id": id})
            await house.until(lambda: house.streamable.sessions[0]._general.exchange)
            house.passes(1000.0)
            while not party.full:
                party.tells(note("message", data="x" * 500_000))
                await asyncio.sleep(0)
            house.passes(29.0)
            assert party.full == [True]
            house.passes(2.0)
            await house.until(lambda: party.full == [True, False])

    run(play())


def test_a_large_answer_leaves_its_session_as_it_was(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, id = await house.begun()
            house.results["tools/call"] = {"x": "y" * (3 << 20)}
            for number in range(3):
                connection.post(AMY, call(number), {"Mcp-Session-Id": id})
                assert len((await connection.answer()).body) > 3 << 20
            assert house.party.full.count(True) == house.party.full.count(False)

    run(play())


def test_who_holds_too_much_memory_is_cut_the_oldest_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ROOM", 1_000_000)

    async def play() -> None:
        async with House() as house:
            made = []
            for _ in range(3):
                house.passes(1.0)
                connection = await house.connect()
                made.append(connection)
                connection.send(HEAD + b"Content-Length: 900000\r\n\r\n")
                for _ in range(2):
                    connection.send(b" " * 200_000)
                    await connection.writer.drain()
                    await asyncio.sleep(0.01)
            await house.until(lambda: sum(front.holds for front in house.port.state.connections) > 1_100_000)  # type: ignore[union-attr]
            house.passes(1.0)
            assert await made[0].ended() == b""
            assert not made[1].reader.at_eof()
            assert not made[2].reader.at_eof()

    run(play())


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_daemon_that_stops_answers_what_is_under_way(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            idle = await house.connect()
            busy, id = await house.begun()
            news = await house.connect()
            news.ask("GET", AMY, {"Mcp-Session-Id": id})
            await news.head()
            app = await house.connect()
            house.holds.add("tools/call")
            house.app_holds.clear()
            busy.post(AMY, call(1), {"Mcp-Session-Id": id})
            app.ask("GET", "/a")
            await house.until(lambda: house.party.open and house.app_saw)
            house.streamable.stop("the daemon stops")
            closing = asyncio.ensure_future(house.port.close(5.0))
            assert await idle.ended() == b""
            assert await news.event() is not None
            assert await news.event() is None
            house.app_holds.set()
            house.party.answers(1)
            assert (await busy.answer()).headers["connection"] == "close"
            assert (await app.answer()).body == b"app"
            await closing
            assert not house.port.state.connections
            with pytest.raises(OSError):
                await house.connect()

    run(play())


def test_a_daemon_that_stops_waits_no_longer_than_it_says(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            house.holds.add("initialize")
            connection.post(AMY, initialize())
            await house.until(lambda: house.parties and house.party.open)
            await house.port.close(0.05)
            assert await connection.ended() == b""
            await house.until(lambda: house.party.withdrawn == [(0, False)])

    run(play())
