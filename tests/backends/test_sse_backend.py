from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from making import until
from remote_ends import EVENTS, End, Request, chunk, event, opened, response, result, scripted
from web_servers import serving

from aegis_daemon.backends import remote
from aegis_daemon.backends import sse as under_test
from aegis_daemon.backends.sse import SseServer
from aegis_daemon.backends.streamable_http import HttpServer

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def sdk() -> Iterator[str]:
    with serving("sse") as port:
        yield f"http://127.0.0.1:{port}/sse"


class Old:
    """A server of 2024-11-05: one stream, and an endpoint for POSTs."""

    def __init__(self, endpoint: str = "/messages?session=1") -> None:
        self.endpoint = endpoint
        self.posts: list[Request] = []
        self.stream: asyncio.StreamWriter | None = None
        self.status = 202
        self.post_to_the_stream = 405

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> bool | None:
        if request.method == "GET":
            self.stream = writer
            writer.write(EVENTS)
            if self.endpoint:
                writer.write(event(self.endpoint, kind="endpoint"))
            return None
        if request.path == "/mcp":
            writer.write(response(self.post_to_the_stream, b"no", kind="text/plain"))
            return None
        self.posts.append(request)
        writer.write(response(self.status, b"Accepted", kind="text/plain"))
        if self.status == 202 and "id" in request.frame and request.frame.get("params", {}).get("name") != "silent":
            answer = opened(request, "") if request.frame["method"] == "initialize" else result(request)
            self.says(json.loads(answer.partition(b"\r\n\r\n")[2]))
        return None

    def says(self, value: Any, **more: Any) -> None:
        assert self.stream is not None
        self.stream.write(event(value, **more))


def test_a_session_with_the_official_server(run: Run, sdk: str) -> None:
    async def go() -> None:
        end = End(SseServer, sdk)
        assert (await end.shakes_hands())["serverInfo"]["name"] == "web"
        numbers = [end.calls("add", a=n, b=2) for n in range(10)]
        for n, number in enumerate(numbers):
            assert (await end.result(number))["structuredContent"] == {"result": n + 2}
        number = end.calls("steps", token="t", count=3)
        await end.result(number)
        assert [about for _, about in end.told("notifications/progress")] == [None, None, None]
        number = end.calls("greet")
        await until(lambda: end.told("elicitation/create"))
        end.answers(end.told("elicitation/create")[0][0]["id"], {"action": "accept", "content": {"name": "Ann"}})
        assert (await end.result(number))["content"][0]["text"] == "hello Ann"
        await end.ends()
        assert end.exits == [0]
        assert not end.lost

    run(go())


def test_a_server_of_the_older_transport_is_found_out(run: Run, sdk: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk, fall_back=True)
        first, second = (
            end.asks(
                "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={"name": "t", "version": "1"}
            ),
            None,
        )
        await end.result(first)
        end.says("initialized")
        second = end.calls("add", a=1, b=2)
        assert (await end.result(second))["structuredContent"] == {"result": 3}
        await end.ends()
        assert end.exits == [0]

    run(go())


@pytest.mark.parametrize("status", [400, 404, 405])
def test_falling_back_takes_along_all_that_was_sent(run: Run, status: int) -> None:
    async def go() -> None:
        old = Old()
        old.post_to_the_stream = status
        async with scripted(old) as server:
            end = End(HttpServer, server.url, {"Authorization": "Bearer x"}, fall_back=True)
            first = end.asks("initialize", protocolVersion="2025-11-25")
            end.says("initialized")
            second = end.calls("t")
            await end.result(first)
            await end.result(second)
            assert [one.frame["method"] for one in old.posts] == [
                "initialize",
                "notifications/initialized",
                "tools/call",
            ]
            assert all(one.headers["authorization"] == "Bearer x" for one in server.requests)
            await end.ends()
        # and when the first frames are several at once
        old = Old()
        old.post_to_the_stream = status
        async with scripted(old) as server:
            end = End(HttpServer, server.url, fall_back=True)
            for number in [end.calls("t") for _ in range(5)]:
                await end.result(number)
            assert [one.method for one in server.requests].count("GET") == 1
            await end.ends()

    run(go())


def test_a_server_of_neither_transport_is_lost_to_the_request_alone(run: Run) -> None:
    async def neither(request: Request, writer: asyncio.StreamWriter) -> None:
        if accepts and request.method == "POST":
            writer.write(opened(request))
        else:
            writer.write(response(404))

    async def go() -> None:
        async with scripted(neither) as server:
            end = End(HttpServer, server.url, fall_back=True)
            fault = await end.loss(end.asks("server/discover", modern=True))
            assert (fault.reason, fault.not_executed) == ("http_404", True)
            assert not end.failures
            accepts.append(1)
            await end.result(end.asks("initialize"))
            assert [one.method for one in server.requests] == ["POST", "GET", "POST"]
            await end.ends()

    accepts: list[int] = []
    run(go())


def test_no_other_status_and_no_later_one_makes_it_fall_back(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST" and request.frame["method"] == "initialize":
            writer.write(opened(request, ""))
        elif request.method == "POST" and "id" not in request.frame:
            writer.write(response(202))
        else:
            writer.write(response(405))

    async def unauthorized(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response(401))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url, fall_back=True)
            await end.shakes_hands()
            assert (await end.loss(end.calls("t"))).reason == "http_405"
            await end.ends()
        async with scripted(unauthorized) as server:
            end = End(HttpServer, server.url, fall_back=True)
            assert (await end.loss(end.asks("initialize"))).reason == "http_401"
            assert [one.method for one in server.requests] == ["POST"]
            await end.ends()

    run(go())


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:1/messages", "https://127.0.0.1/messages", "//elsewhere.example/messages", "ftp://x/",
        "http://localhost/messages", "http://u:p@127.0.0.1/x", "x" * 5000, "/größe", "",
    ],
)  # fmt: skip
def test_an_endpoint_elsewhere_never_gets_a_frame(run: Run, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_OPEN_S", 0.2)

    async def go() -> None:
        old = Old(endpoint)
        async with scripted(old) as server:
            end = End(SseServer, server.url)
            end.asks("initialize")
            if not endpoint:  # named by an empty event: nothing
                await until(lambda: old.stream)
                old.says("", kind="endpoint")
            await until(lambda: end.failures)
            assert not old.posts
            assert "credentials" in end.failures[0] or "endpoint" in end.failures[0]
            assert not end.exits
            end.server.end()
            end.calls("late")
            await end.closes()
            assert (len(end.failures), end.exits) == (1, [])

    run(go())


@pytest.mark.parametrize("endpoint", ["messages/?a=b&c=d", "/messages/?a=b&c=d", "?session=x", "{url}/../messages"])
def test_an_endpoint_is_read_as_a_link_of_the_stream(run: Run, endpoint: str) -> None:
    async def go() -> None:
        old = Old()
        async with scripted(old) as server:
            old.endpoint = endpoint.format(url=server.url)
            end = End(SseServer, server.url)
            number = end.calls("t")
            if endpoint == "?session=x":
                await until(lambda: old.posts or any(one.path == "/mcp?session=x" for one in server.requests))
                await until(lambda: number in end.lost or end.answer(number))
            else:
                await end.result(number)
            # and a second one changes nothing
            old.says("/other", kind="endpoint")
            old.says({"jsonrpc": "2.0", "method": "notifications/x"})
            await until(lambda: end.told("notifications/x"))
            await end.ends()

    run(go())


def test_a_post_that_is_refused_is_lost_alone(run: Run) -> None:
    async def go() -> None:
        old = Old()
        async with scripted(old) as server:
            end = End(SseServer, server.url)
            await end.result(end.calls("t"))
            for status, not_executed in ((413, True), (500, False)):
                old.status = status
                fault = await end.loss(end.calls("t"))
                assert (fault.reason, fault.not_executed) == (f"http_{status}", not_executed)
            old.status = 202
            await end.result(end.calls("t"))
            await end.ends()

    run(go())


def test_nothing_overtakes_the_handshakes_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        old = Old()

        async def slow(request: Request, writer: asyncio.StreamWriter) -> bool | None:
            if request.method == "POST" and "id" not in request.frame:
                await asyncio.sleep(0.02)
            return await old(request, writer)

        async with scripted(slow) as server:
            end = End(SseServer, server.url)
            await end.shakes_hands()
            numbers = [end.calls("t"), end.calls("gone"), end.calls("t")]
            end.cancels(numbers[1])
            await end.result(numbers[0])
            await end.result(numbers[2])
            assert [one.frame["method"] for one in old.posts] == [
                "initialize", "notifications/initialized", "tools/call", "tools/call",
            ]  # fmt: skip
            await end.ends()

    run(go())


def test_the_session_ends_with_its_stream(run: Run) -> None:
    async def go() -> None:
        for clean in (True, False):
            old = Old()
            async with scripted(old) as server:
                end = End(SseServer, server.url)
                await end.result(end.calls("t"))
                end.calls("silent")
                assert old.stream is not None
                if clean:
                    old.stream.write(b"0\r\n\r\n")
                else:
                    old.stream.close()
                await until(lambda end=end: end.exits)
                assert end.exits == [0 if clean else 1]
                end.server.end()
                end.calls("late")
                await end.closes()
                assert len(end.exits) == 1

    run(go())


def test_a_stream_that_is_none_is_a_server_that_could_not_be_started(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> bool | None:
        if answer == b"":
            return False
        writer.write(answer)
        return None

    async def go() -> None:
        nonlocal answer
        for given, says in (
            (response(401, b"secret"), "status 401"),
            (response(200, b"{}"), "no stream of events"),
            (response(307, b"", "Location: http://127.0.0.1:1/"), "status 307"),
            (EVENTS + b"0\r\n\r\n", "before it named its endpoint"),
            (EVENTS + chunk(b"data: " + b"x" * (11 << 20)), "larger"),
            (b"", "broke"),
        ):
            answer = given
            async with scripted(reply) as server:
                end = End(SseServer, server.url)
                end.calls("t")
                await until(lambda end=end: end.failures)
                assert says in end.failures[0]
                assert "secret" not in end.failures[0]
                await end.closes()
        end = End(SseServer, server.url)
        end.calls("t")
        await until(lambda: end.failures)
        assert "nothing listens" in end.failures[0]
        await end.closes()

    answer = b""
    run(go())


def test_frames_before_the_endpoint_are_nobodys(run: Run) -> None:
    async def go() -> None:
        old = Old("")
        async with scripted(old) as server:
            end = End(SseServer, server.url)
            number = end.calls("t")
            await until(lambda: old.stream)
            old.says({"jsonrpc": "2.0", "id": number, "result": {"early": 1}})
            old.says("/messages", kind="endpoint")
            assert await end.result(number) == {}
            await end.ends()

    run(go())


def test_the_end_waits_for_open_answers_and_not_for_ever(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        old = Old()
        async with scripted(old) as server:
            end = End(SseServer, server.url)
            number = end.calls("t")
            end.server.end()
            await end.result(number)
            await until(lambda: end.exits)
            monkeypatch.setattr(remote, "GRACE_S", 0.05)
            end = End(SseServer, server.url, pool=end.pool)
            end.calls("silent")
            await until(lambda: len(old.posts) == 2)
            await end.ends()
            assert end.exits == [0]
            end = End(SseServer, server.url)
            await end.ends()
            assert end.exits == [0]

    run(go())


def test_what_waits_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_HELD", 20)
    monkeypatch.setattr(remote, "GRACE_S", 0.01)

    async def go() -> None:
        async with scripted(Old("")) as server:
            end = End(SseServer, server.url)
            numbers = [end.calls("t", text="x" * 100_000) for _ in range(21)]
            assert end.full == [True]
            fault = await end.loss(numbers[20])
            assert (fault.reason, fault.not_executed) == ("busy", True)
            for number in numbers[:20]:
                end.cancels(number)
            assert end.full == [True, False]
            assert (await end.loss(numbers[0])).not_executed
            await end.ends()

    run(go())


def test_a_client_that_does_not_read_stops_the_stream(run: Run) -> None:
    async def go() -> None:
        old = Old()
        async with scripted(old) as server:
            end = End(SseServer, server.url)
            await end.result(end.calls("t"))
            end.server.pause(True)
            assert old.stream is not None
            for _ in range(200):
                old.says({"jsonrpc": "2.0", "method": "notifications/x", "params": {"t": "x" * 50_000}})
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert len(end.lines) < 100
            end.server.pause(False)
            await until(lambda: len(end.lines) == 201)
            await end.ends()

    run(go())
