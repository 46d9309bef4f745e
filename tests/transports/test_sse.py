"""HTTP+SSE towards agents: one stream down, posts up, and an id that holds them together."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fronthouse import TOKEN, Connection, House, call, initialize, note, opened, result

Run = Callable[[Coroutine[Any, Any, Any]], Any]
SSE = "/agents/amy/sse"


async def listen(house: House, path: str = SSE) -> tuple[Connection, str]:
    """A stream, and where to post for it."""
    connection = await house.connect()
    connection.ask("GET", path)
    head = await connection.head()
    assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
    event = await connection.event()
    assert event is not None
    assert event["event"] == "endpoint"
    return connection, event["data"]


def test_a_session_over_one_stream(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            stream, where = await listen(house, "/agents/amy/backends/a%20b/sse?x=1")
            assert where.startswith(
                "/agents/amy/backends/a%20b/messages?session="
            )  # of the same origin, whatever it is
            assert house.party.backend == "a b"
            post = await house.connect()
            for frame in (initialize(), note("initialized"), call(7)):
                post.post(where, frame)
                answer = await post.answer()
                assert (answer.status, answer.body) == (202, b"")
            assert await stream.frame() == result(0, house.results["initialize"])
            assert await stream.frame() == result(7)
            house.party.tells(note("message"))
            assert await stream.frame() == note("message")
            assert house.party.methods() == ["initialize", "notifications/initialized", "tools/call"]
            await stream.close()
            await house.until(lambda: house.party.left)
            assert house.sse.sessions == []
            post.post(where, call(8))
            assert (await post.answer()).status == 404

    run(play())


def test_everything_of_the_server_comes_down_the_stream_in_its_order(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            stream, where = await listen(house)
            house.holds.add("tools/call")
            post = await house.connect()
            post.post(where, call(1))
            await house.until(lambda: house.party.open)
            house.party.tells(note("progress"), about=1)
            house.party.tells(note("message"))
            house.party.answers(1)
            assert [await stream.frame() for _ in range(3)] == [note("progress"), note("message"), result(1)]

    run(play())


def test_a_session_is_its_agents_and_its_addresss_alone(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            _, where = await listen(house)
            query = where.partition("?")[2]
            for path in (
                f"/agents/bob/messages?{query}",
                f"/agents/amy/backends/files/messages?{query}",
                "/agents/amy/messages?session=",
                "/agents/amy/messages?session=unknown",
                "/agents/amy/messages",
            ):
                connection.post(path, call(1))
                assert (await connection.answer()).status == 404
            connection.post(where.replace("/amy/", "/tok/"), call(1), {"Authorization": f"Bearer {TOKEN}"})
            assert (await connection.answer()).status == 404
            assert house.party.heard == []

    run(play())


def test_the_token_is_shown_with_each_request(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            connection.ask("GET", "/agents/tok/sse")
            assert (await connection.answer()).headers["www-authenticate"] == 'Bearer realm="aegis"'
            connection.post("/agents/tok/messages?session=x", call(1))
            assert (await connection.answer()).status == 401
            assert house.parties == []

    run(play())


def test_other_methods_are_told_which_one_is_meant(run: Run) -> None:
    async def play() -> None:
        async with opened() as (_house, connection):
            connection.post(SSE, initialize())
            answer = await connection.answer()
            assert (answer.status, answer.headers["allow"]) == (405, "GET")
            connection.ask("GET", "/agents/amy/messages?session=x")
            answer = await connection.answer()
            assert (answer.status, answer.headers["allow"]) == (405, "POST")

    run(play())


def test_what_is_no_message_is_refused_and_recorded(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            _, where = await listen(house)
            connection.post(where, b"{}")
            assert (await connection.answer()).status == 400
            connection.post(where, call(1), {"Content-Type": "text/plain"})
            assert (await connection.answer()).status == 415
            assert sum(house.drops.values()) == 1
            assert house.party.heard == []

    run(play())


def test_a_server_that_does_not_start_is_told_of_and_leaves_nothing(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            connection.ask("GET", "/agents/gone/sse")
            answer = await connection.answer()
            assert (answer.status, answer.value["error"]["message"]) == (503, "the server does not start")
            assert house.sse.sessions == []
            connection.ask("GET", "/agents/amy/backends/none/sse")
            assert (await connection.answer()).status == 403

    run(play())


def test_a_silent_stream_shows_signs_of_life_and_ends_with_its_session(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            stream, _ = await listen(house)
            house.passes(16.0)
            assert await stream.event() == {"": "waiting"}
            house.party.client.close(0)
            assert await stream.event() is None
            assert house.sse.sessions == []

    run(play())


def test_agents_that_may_not_come_any_more_lose_their_streams(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            stream, _ = await listen(house)
            other, _ = await listen(house, "/agents/bob/sse")
            house.sse.turn_out(lambda principal: principal.agent != "amy")
            assert await stream.event() is None
            assert [session.principal.agent for session in house.sse.sessions] == ["bob"]
            assert not other.reader.at_eof()

    run(play())


def test_a_reader_that_never_reads_stops_its_own_server(run: Run) -> None:
    async def play() -> None:
        async with House(write_s=30.0) as house:
            stream, _ = await listen(house)
            stream.writer.transport.pause_reading()  # type: ignore[attr-defined]
            while not house.party.full:
                house.party.tells(note("message", data="x" * 500_000))
            assert house.party.full == [True]
            house.passes(31.0)
            await house.until(lambda: house.party.left)
            assert house.sse.sessions == []

    run(play())
