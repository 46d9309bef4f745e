"""A page in a browser cannot drive the daemon, by whatever door it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fronthouse import AMY, House, call

from aegis_daemon.transports.guard import Guard, bearer, digest, shows

Run = Callable[[Coroutine[Any, Any, Any]], Any]
GUARD = Guard(["Console.Example"], ["https://Friend.example/"])


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:18070", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:18070", "[::1]", "[::1]:18070",
        "192.168.1.7:18070", "console.example", "console.example:443",
    ],
)  # fmt: skip
def test_hosts_of_ours(host: str) -> None:
    assert GUARD.refuses(host.encode(), None) is None
    assert GUARD.refuses(host.encode(), f"http://{host}".encode()) is None


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "evil.example:18070", "localhost.evil.example", "127.0.0.1.evil.example", "localhost.",
        "localhost:1:2", "localhost:x", "localhost:²", "[::1]x", "::1", "user@localhost", "127.1", "0x7f000001",
        "2130706433", "localhost,evil.example", "[localhost", "localhost ",
    ],
)  # fmt: skip
def test_hosts_that_are_not(host: str) -> None:
    assert GUARD.refuses(host.encode("latin-1"), None) is not None


@pytest.mark.parametrize(
    "origin",
    [
        "null", "", "https://evil.example", "http://localhost:18071", "http://localhost", "http://127.0.0.1:18070",
        "http://localhost:18070.evil.example", "http://localhost:18070/", "file://", "ws://localhost:18070",
        "https://friend.example.evil.example", "https://friend.example:8443", "chrome-extension://abc",
    ],
)  # fmt: skip
def test_pages_that_may_not(origin: str) -> None:
    assert GUARD.refuses(b"localhost:18070", origin.encode()) is not None


@pytest.mark.parametrize("origin", ["http://localhost:18070", "https://localhost:18070", "https://friend.example"])
def test_pages_that_may(origin: str) -> None:
    assert GUARD.refuses(b"localhost:18070", origin.encode()) is None


def test_only_a_listed_page_is_told_that_it_may_read() -> None:
    assert b"access-control-allow-origin: https://friend.example\r\n" in GUARD.allows(b"https://friend.example")
    assert GUARD.allows(b"http://localhost:18070") == b""


def test_what_the_guard_remembers_is_bounded() -> None:
    guard = Guard()
    for number in range(3000):
        guard.refuses(b"evil%d.example" % number, None)
        guard.refuses(b"x" * 5000 + b"%d" % number, None)
    assert len(guard._known) <= 1024
    assert all(len(host) <= 512 for host, _ in guard._known)


def test_the_token_of_a_request() -> None:
    assert bearer(b"Bearer abc") == "abc"
    assert bearer(b"bearer  abc ") == "abc"
    assert bearer(b"Basic abc") is None
    assert bearer(None) is None
    assert shows("abc", digest("abc"))
    assert not shows("abd", digest("abc"))
    assert not shows(None, digest("abc"))


DOORS = {
    "mcp": ("POST", AMY, {}),
    "sse": ("GET", "/agents/amy/sse", {}),
    "messages": ("POST", "/agents/amy/messages?session=x", {}),
    "ws": (
        "GET",
        "/agents/amy/ws",
        {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "AQIDBAUGBwgJCgsMDQ4PEA==",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "mcp",
        },
    ),
    "app": ("POST", "/api/v1/config/reload", {}),
}
REFUSED = [
    ({"Host": None}, 400),
    ({"Host": "evil.example:18070"}, 403),
    ({"Origin": "https://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://127.0.0.1:9999"}, 403),
    ({"Host": "127.0.0.1:18070\r\nHost: 127.0.0.1:18070"}, 400),
    ({"Host": "127.0.0.1:18070\r\nhost: evil.example"}, 400),
    ({"Origin": "http://127.0.0.1:18070\r\nOrigin: https://evil.example"}, 400),
]
TAKEN = [
    {},
    {"Host": "localhost"},
    {"Host": "[::1]:18070"},
    {"Origin": "http://127.0.0.1:18070"},
    {"Origin": "https://friend.example"},
]


@pytest.mark.parametrize("door", DOORS)
def test_no_door_opens_to_a_page(run: Run, door: str) -> None:
    method, path, usual = DOORS[door]
    body = None if method == "GET" else b"{}"

    async def play() -> None:
        async with House() as house:
            for headers, status in REFUSED:
                connection = await house.connect()
                connection.ask(method, path, {**usual, **headers}, body)
                answer = await connection.answer()
                assert answer.status == status, (headers, answer)
                assert "access-control-allow-origin" not in answer.headers
                assert await connection.ended() == b""
            assert house.parties == []
            assert house.app_saw == []
            for headers in TAKEN:
                connection = await house.connect()
                connection.ask(method, path, {**usual, **headers}, body)
                answer = await connection.head()
                assert answer.status in ({"ws": 101, "messages": 404, "mcp": 400}.get(door, 200),), (headers, answer)

    run(play())


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_picture_on_some_page_begins_no_session(run: Run, site: str) -> None:
    async def play() -> None:
        async with House() as house:
            connection = await house.connect()
            connection.ask("GET", "/agents/amy/sse", {"Accept": "image/*,*/*", "Sec-Fetch-Site": site})
            assert (await connection.answer()).status == 403
            assert house.parties == []
            link = await house.connect()  # whoever follows a link to a page of ours comes from elsewhere too
            link.ask("GET", "/callback/approval", {"Sec-Fetch-Site": site})
            assert (await link.answer()).status == 200

    run(play())


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_is_no_message(run: Run, kind: str | None) -> None:
    async def play() -> None:
        async with House() as house:
            connection = await house.connect()
            connection.post(AMY, call(1), {"Content-Type": kind})
            assert (await connection.answer()).status == 415
            assert house.parties == []

    run(play())


def test_a_listed_page_may_ask_and_read(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection = await house.connect()
            friend: dict[str, str | None] = {"Origin": "https://friend.example"}
            wanted = "authorization,content-type,mcp-session-id"
            connection.ask("OPTIONS", "/agents/tok/mcp", {**friend, "Access-Control-Request-Headers": wanted})
            answer = await connection.answer()
            assert (answer.status, answer.headers["access-control-allow-headers"]) == (200, wanted)
            connection.post(AMY, call(1), {**friend, "Sec-Fetch-Site": "cross-site"})
            answer = await connection.answer()
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://friend.example")
            connection.ask("OPTIONS", AMY)
            assert (await connection.answer()).status == 405
            await asyncio.sleep(0)

    run(play())
