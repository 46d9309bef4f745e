"""Streamable HTTP towards agents: who gets which answer, what outlives a connection, what a closed stream means."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fronthouse import AMY, TOKEN, Connection, House, Party, call, initialize, mirrors, modern, note, opened, result

from aegis_daemon.transports import streamable_http
from aegis_daemon.transports.streamable_http import IDLE_S, RESUME_S, SHARED_IDLE_S, Kept
from aegis_daemon.wire.methods import META_CAPABILITIES, MODERN_VERSION

Run = Callable[[Coroutine[Any, Any, Any]], Any]
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


async def held(house: House) -> tuple[Connection, dict[str, str | None]]:
    """A session whose calls wait, and the headers that name it."""
    connection, id = await house.begun()
    house.holds.add("tools/call")
    return connection, {"Mcp-Session-Id": id}


# --- one session ------------------------------------------------------------------------------------------------------


def test_a_session_from_its_first_word_to_its_last(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            connection.post(AMY, initialize())
            answer = await connection.answer()
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
            session: dict[str, str | None] = {"Mcp-Session-Id": answer.headers["mcp-session-id"]}
            connection.post(AMY, note("initialized"), session)
            answer = await connection.answer()
            assert (answer.status, answer.body) == (202, b"")
            house.results["tools/call"] = {"content": []}
            connection.post(AMY, call("seven"), session)
            answer = await connection.answer()
            assert (answer.value, answer.headers["mcp-session-id"]) == (
                result("seven", {"content": []}),
                session["Mcp-Session-Id"],
            )
            connection.post(AMY, result(9), session)
            assert (await connection.answer()).status == 202
            assert house.party.methods() == ["initialize", "notifications/initialized", "tools/call", ""]
            connection.ask("DELETE", AMY, session)
            assert (await connection.answer()).status == 200
            assert house.party.left
            for method in ("POST", "GET", "DELETE"):
                if method == "POST":
                    connection.post(AMY, call(8), session)
                else:
                    connection.ask(method, AMY, session)
                assert (await connection.answer()).status == 404
            assert len(house.streamable) == 0
            assert len(house.parties) == 1

    run(play())


def test_a_failed_initialize_begins_no_session(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            house.results["initialize"] = ValueError("-32602")
            connection.post(AMY, initialize())
            answer = await connection.answer()
            assert (answer.status, answer.code) == (200, -32602)
            assert "mcp-session-id" not in answer.headers
            assert len(house.streamable) == 0
            connection.post("/agents/gone/mcp", initialize())
            answer = await connection.answer()
            assert "the server does not start" in answer.value["error"]["message"]
            assert "mcp-session-id" not in answer.headers
            connection.post("/agents/amy/backends/none/mcp", initialize(5))
            answer = await connection.answer()
            assert (answer.status, answer.value["id"], answer.code) == (200, 5, -32001)
            assert house.refusals[-1] == ("initialize", "acl", "refused")
            assert len(house.streamable) == 0

    run(play())


def test_a_session_is_its_agents_and_its_addresss_alone(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, id = await house.begun()
            for path in ("/agents/bob/mcp", "/agents/amy/backends/files/mcp"):
                for name in (id, "unknown", ""):
                    session: dict[str, str | None] = {"Mcp-Session-Id": name}
                    connection.post(path, call(1), session)
                    assert (await connection.answer()).status == 404
                    connection.ask("GET", path, session)
                    assert (await connection.answer()).status == 404
                    connection.ask("DELETE", path, session)
                    assert (await connection.answer()).status == 404
            connection.post("/agents/tok/mcp", call(1), {"Mcp-Session-Id": id})
            answer = await connection.answer()
            assert (answer.status, answer.headers["www-authenticate"][:6]) == (401, "Bearer")
            connection.post("/agents/tok/mcp", call(1), {"Mcp-Session-Id": id, "Authorization": f"Bearer {TOKEN}"})
            assert (await connection.answer()).status == 404
            assert len(house.parties) == 1
            assert not house.party.left

    run(play())


def test_a_session_begins_once(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, id = await house.begun()
            connection.post(AMY, initialize(), {"Mcp-Session-Id": id})
            assert (await connection.answer()).status == 400

    run(play())


def test_what_is_no_message_is_refused_and_recorded(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            for body in (b"", b"{", b"[]", b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', b"\xff"):
                connection.post(AMY, body)
                answer = await connection.answer()
                assert (answer.status, answer.value["id"]) == (400, None)
            assert sum(house.drops.values()) == 5
            connection.post(AMY, call(1), {"Accept": "text/html"})
            assert (await connection.answer()).status == 406
            connection.ask("PUT", AMY)
            assert (await connection.answer()).headers["allow"] == "GET, POST, DELETE"
            assert house.parties == []

    run(play())


def test_a_client_that_takes_streams_alone_gets_one(run: Run) -> None:
    async def play() -> None:
        async with opened() as (_house, connection):
            connection.post(AMY, call(1), {"Accept": "text/event-stream"})
            assert (await connection.head()).headers["content-type"] == "text/event-stream"
            assert [await connection.frame(), await connection.frame()] == [result(1), None]
            connection.post(AMY, call(2), {"Accept": "*/*"})
            assert (await connection.answer()).value == result(2)

    run(play())


# --- streams ----------------------------------------------------------------------------------------------------------


def test_what_comes_before_the_answer_makes_it_a_stream(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, session = await held(house)
            connection.post(AMY, call(1), session)
            await house.until(lambda: house.party.open)
            house.party.tells(note("progress", progress=1), about=1)
            house.party.tells({"jsonrpc": "2.0", "id": "s1", "method": "roots/list"}, about=1)
            house.party.answers(1)
            head = await connection.head()
            assert head.headers["content-type"] == "text/event-stream"
            assert head.headers["mcp-session-id"] == session["Mcp-Session-Id"]
            assert await connection.event() == {"id": "2-1", "retry": "1000", "data": ""}
            assert [(await connection.event() or {})["id"] for _ in range(3)] == ["2-2", "2-3", "2-4"]
            assert await connection.event() is None
            connection.post(AMY, note("initialized"), session)
            assert (await connection.answer()).status == 202

    run(play())


def test_older_versions_get_no_event_without_a_message(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, id = await house.begun(version="2025-06-18")
            house.holds.add("tools/call")
            connection.post(AMY, call(1), {"Mcp-Session-Id": id})
            await house.until(lambda: house.party.open)
            house.party.tells(note("message"), about=1)
            await connection.head()
            event = await connection.event()
            assert event is not None
            assert (event["event"], event["id"]) == ("message", "2-1")

    run(play())


def test_a_carriage_return_of_a_server_ends_no_line_of_a_stream(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, session = await held(house)
            connection.post(AMY, call(1), session)
            await house.until(lambda: house.party.open)
            slot = house.party.open[0][1]
            house.party.client.tell(b'{"jsonrpc":"2.0",\r\r"method":"notifications/x"}', slot)
            house.party.client.send(b'{"jsonrpc":"2.0","id":1,"result":{\r"a":1}}', slot)
            await connection.head()
            assert await connection.frame() == {"jsonrpc": "2.0", "method": "notifications/x"}
            assert await connection.frame() == result(1, {"a": 1})

    run(play())


def test_a_long_wait_becomes_a_stream_that_shows_signs_of_life(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, session = await held(house)
            plain = await house.connect()
            connection.post(AMY, call(1), session)
            plain.post(AMY, call(2), {**session, "Accept": "application/json"})
            await house.until(lambda: len(house.party.open) == 2)
            house.passes(1.0)
            house.passes(1.5)
            await connection.head()
            assert await connection.event() == {"id": "2-1", "retry": "1000", "data": ""}
            assert await connection.event() == {"": "waiting"}
            house.passes(10.0)
            house.passes(10.0)
            assert await connection.event() == {"": "waiting"}
            for id in (1, 2):
                house.party.answers(id)
            assert [await connection.frame(), await connection.event()] == [result(1), None]
            assert (await plain.answer()).value == result(2)

    run(play())


def test_the_get_stream_carries_what_belongs_to_no_request(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, session = await held(house)
            house.party.tells(note("early"))
            connection.ask("GET", AMY, session)
            assert (await connection.head()).headers["content-type"] == "text/event-stream"
            assert await connection.frame() == note("early")
            house.party.tells(note("now"))
            assert await connection.frame() == note("now")
            other = await house.connect()
            other.ask("GET", AMY, {**session, "Accept": "application/json"})
            assert (await other.answer()).status == 406

    run(play())


def test_the_newest_get_stream_wins_and_repeats_nothing(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            first, session = await held(house)
            second, third = await house.connect(), await house.connect()
            first.ask("GET", AMY, session)
            await first.head()
            house.party.tells(note("one"))
            assert await first.frame() == note("one")
            second.ask("GET", AMY, session)
            await second.head()
            assert await first.frame() is None
            house.party.tells(note("two"))
            assert await second.frame() == note("two")
            await second.close()
            await house.until(lambda: house.streamable.sessions[0]._general.exchange is None)
            house.party.tells(note("three"))
            third.ask("GET", AMY, session)
            await third.head()
            assert await third.frame() == note("three")
            first.post(AMY, note("x"), session)  # its connection is as good as new
            assert (await first.answer()).status == 202

    run(play())


def test_a_post_stream_that_broke_is_taken_up_again(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, session = await held(house)
            connection.post(AMY, call(1), session)
            await house.until(lambda: house.party.open)
            for number in range(3):
                house.party.tells(note("progress", progress=number), about=1)
            await connection.head()
            assert (await connection.event() or {})["data"] == ""
            last = (await connection.event() or {})["id"]
            await connection.close()
            await house.until(lambda: house.streamable.sessions[0]._open_streams[2].exchange is None)
            assert house.party.withdrawn == []
            house.party.tells(note("progress", progress=3), about=1)
            again = await house.connect()
            again.ask("GET", AMY, {**session, "Last-Event-ID": last})
            await again.head()
            assert [(await again.frame())["params"]["progress"] for _ in range(3)] == [1, 2, 3]
            house.party.answers(1)
            assert [await again.frame(), await again.event()] == [result(1), None]
            # It may have been lost on the way all the same, so it is kept for a while.
            again.ask("GET", AMY, {**session, "Last-Event-ID": "2-5"})
            await again.head()
            assert [await again.frame(), await again.event()] == [result(1), None]
            house.passes(RESUME_S + 1)
            again.ask("GET", AMY, {**session, "Last-Event-ID": "2-5"})
            assert (await again.answer()).status == 400

    run(play())


def test_an_answer_that_comes_while_nobody_listens_waits_for_the_client(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, session = await held(house)
            connection.post(AMY, call(1), session)
            await house.until(lambda: house.party.open)
            house.party.tells(note("message"), about=1)
            await connection.head()
            await connection.close()
            await house.until(lambda: house.streamable.sessions[0]._open_streams[2].exchange is None)
            house.party.answers(1)
            again = await house.connect()
            again.ask("GET", AMY, {**session, "Last-Event-ID": "2-2"})
            await again.head()
            assert [await again.frame(), await again.event()] == [result(1), None]

    run(play())


def test_the_get_stream_is_taken_up_again(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, session = await held(house)
            connection.ask("GET", AMY, session)
            await connection.head()
            for number in range(3):
                house.party.tells(note("x", number=number))
            assert (await connection.event() or {})["id"] == "0-0"
            last = (await connection.event() or {})["id"]
            await connection.close()
            await house.until(lambda: house.streamable.sessions[0]._general.exchange is None)
            again = await house.connect()
            again.ask("GET", AMY, {**session, "Last-Event-ID": last})
            await again.head()
            assert [(await again.frame())["params"]["number"] for _ in range(2)] == [1, 2]

    run(play())


def test_nobody_takes_up_what_was_no_stream(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, session = await held(house)
            connection.post(AMY, call(1), session)
            await house.until(lambda: house.party.open)
            other = await house.connect()
            for last in ("2-0", "2-1", "3-0", "x", "2", "-", "2-", "²-1", "9" * 30 + "-1", "2-1-1"):
                other.ask("GET", AMY, {**session, "Last-Event-ID": last})
                assert (await other.answer()).status == 400, last
            house.party.answers(1)
            assert (await connection.answer()).value == result(1)

    run(play())


def test_what_is_kept_of_streams_is_bounded() -> None:
    kept = Kept()
    for number in range(5000):
        kept.add(1, number, b"x" * 1000, float(number))
    assert len(kept.after(1, -1)) <= streamable_http.KEPT
    kept.add(2, 1, b"x" * streamable_http.KEPT_BYTES, 5000.0)
    assert (kept.has(1), len(kept.after(2, 0))) == (False, 1)
    kept.expire(5001.0)
    assert (kept.has(2), kept._size) == (False, 0)


# --- closed connections -----------------------------------------------------------------------------------------------


def test_a_client_that_goes_before_any_event_withdraws_its_call(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            _, session = await held(house)
            connection = await house.connect()
            connection.post(AMY, call(1), session)
            await house.until(lambda: house.party.open)
            await connection.close()
            await house.until(lambda: house.party.withdrawn == [(1, False)])
            assert house.streamable.sessions[0]._open_streams == {}

    run(play())


def test_a_call_whose_client_never_comes_back_is_withdrawn(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            _, session = await held(house)
            connection = await house.connect()
            connection.post(AMY, call(1), session)
            await house.until(lambda: house.party.open)
            house.party.tells(note("x"), about=1)
            await connection.head()
            await connection.close()
            await house.until(lambda: house.streamable.sessions[0]._open_streams[2].exchange is None)
            house.passes(RESUME_S - 1)
            assert house.party.withdrawn == []
            house.passes(2.0)
            assert house.party.withdrawn == [(1, False)]
            assert house.streamable.sessions[0]._open_streams == {}

    run(play())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_modern_client_cancels_by_closing_the_stream(run: Run, streaming: bool) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            house.holds.add("tools/call")
            frame = modern(call(1))
            connection.post(AMY, frame, dict(mirrors(frame)))
            await house.until(lambda: house.parties and house.party.open)
            if streaming:
                house.party.tells(note("progress"), about=1)
                await connection.head()
            await connection.close()
            await house.until(lambda: house.party.withdrawn == [(1, True)])

    run(play())


def test_a_legacy_client_without_a_session_does_not_cancel(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            house.holds.add("tools/call")
            connection.post(AMY, call(1))
            await house.until(lambda: house.parties and house.party.open)
            await connection.close()
            await house.until(lambda: house.party.withdrawn == [(1, False)])

    run(play())


def test_a_cancelled_call_ends_its_connections_wait(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, session = await held(house)
            streaming = await house.connect()
            connection.post(AMY, call(1), session)
            streaming.post(AMY, call(2), session)
            await house.until(lambda: len(house.party.open) == 2)
            house.party.tells(note("x"), about=2)
            for _, slot in house.party.open:
                house.party.client.free_slot(slot)
            assert (await connection.answer()).code == -32800
            await streaming.head()
            assert [await streaming.frame(), await streaming.frame()] == [note("x"), None]

    run(play())


def test_a_session_that_ends_answers_everybody(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, session = await held(house)
            news, streaming = await house.connect(), await house.connect()
            news.ask("GET", AMY, session)
            await news.head()
            connection.post(AMY, call(1), session)
            streaming.post(AMY, call(2), session)
            await house.until(lambda: len(house.party.open) == 2)
            house.party.tells(note("x"), about=2)
            house.party.client.close(0)
            assert (await connection.answer()).code == -32800
            await streaming.head()
            assert [await streaming.frame(), await streaming.frame()] == [note("x"), None]
            assert await news.frame() is None
            connection.post(AMY, call(3), session)
            assert (await connection.answer()).status == 404

    run(play())


def test_sessions_that_nobody_uses_end(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, id = await house.begun()
            session: dict[str, str | None] = {"Mcp-Session-Id": id}
            _, _ = await house.begun()
            connection.ask("GET", AMY, session)
            await connection.head()
            for _ in range(3):
                house.passes(IDLE_S)
            assert [party.left for party in house.parties] == [False, True]
            await connection.close()
            await house.until(lambda: all(one._general.exchange is None for one in house.streamable.sessions))
            house.passes(IDLE_S + 1)
            assert len(house.streamable) == 0

    run(play())


def test_a_session_of_ours_ends_too_and_the_next_request_begins_another(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            frame = modern(call(1))
            for number in range(2):
                connection = await house.connect()
                connection.post(AMY, frame, dict(mirrors(frame)))
                assert (await connection.answer()).status == 200
                assert len(house.parties) == number + 1
                house.passes(SHARED_IDLE_S - 1)
                assert not house.party.left
                house.passes(2.0)
                house.passes(SHARED_IDLE_S)
                assert house.party.left

    run(play())


def test_agents_that_may_not_come_any_more_lose_their_sessions(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            connection, _ = await house.begun()
            other, id = await house.begun("/agents/bob/mcp")
            connection.post(AMY, call(1))
            await connection.answer()
            house.streamable.turn_out(lambda principal: principal.agent != "amy")
            assert [(party.principal.agent, party.left) for party in house.parties] == [
                ("amy", True), ("bob", False), ("amy", True),
            ]  # fmt: skip
            other.post("/agents/bob/mcp", call(1), {"Mcp-Session-Id": id})
            assert (await other.answer()).status == 200

    run(play())


# --- the modern era ---------------------------------------------------------------------------------------------------


MODERN = modern(call(1))
LADDER = [
    (call(1), {"MCP-Protocol-Version": MODERN_VERSION}, 400, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {}}, {}, 400, -32602),
    (call(1), {"MCP-Protocol-Version": "1900-01-01"}, 400, -32022),
    (modern(call(1), "1900-01-01"), {**mirrors(MODERN), "MCP-Protocol-Version": "1900-01-01"}, 400, -32022),
    (modern(call(1), 7), mirrors(MODERN), 400, -32020),
    (MODERN, {}, 400, -32020),
    (MODERN, {**mirrors(MODERN), "MCP-Protocol-Version": "2025-11-25"}, 400, -32020),
    (MODERN, {**mirrors(MODERN), "Mcp-Method": "ping"}, 400, -32020),
    (MODERN, {**mirrors(MODERN), "Mcp-Name": "evil"}, 400, -32020),
    (MODERN, {**mirrors(MODERN), "Mcp-Name": "echo\r\nMcp-Name: echo"}, 400, -32020),
    (modern(initialize(1)), mirrors(initialize(1)), 404, -32601),
]


@pytest.mark.parametrize(("frame", "headers", "status", "code"), LADDER)
def test_a_modern_request_is_refused_in_the_specifications_order(
    run: Run, frame: Any, headers: dict[str, str], status: int, code: int
) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            connection.post(AMY, frame, dict(headers))
            answer = await connection.answer()
            assert (answer.status, answer.code, answer.value["id"]) == (status, code, 1)
            if code == -32022:
                assert MODERN_VERSION in answer.value["error"]["data"]["supported"]
            if code == -32020:
                assert sum(house.drops.values()) == 1
            assert house.parties == []

    run(play())


@pytest.mark.parametrize(
    ("code", "status"), [(-32601, 404), (-32602, 400), (-32021, 400), (-32603, 200), (-31001, 200)]
)
def test_a_modern_answer_has_its_codes_status(run: Run, code: int, status: int) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            house.results["tools/call"] = ValueError(str(code))
            connection.post(AMY, MODERN, dict(mirrors(MODERN)))
            answer = await connection.answer()
            assert (answer.status, answer.code) == (status, code)
            connection.post(AMY, call(1))
            answer = await connection.answer()
            assert (answer.status, answer.code) == (200, code)

    run(play())


def test_the_modern_era_has_no_sessions_and_no_other_methods(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            for method in ("GET", "DELETE"):
                connection.ask(method, AMY, {"MCP-Protocol-Version": MODERN_VERSION})
                assert (await connection.answer()).status == 405
            connection.post(AMY, MODERN, {**mirrors(MODERN), "Mcp-Session-Id": "x"})
            answer = await connection.answer()
            assert (answer.status, "mcp-session-id" in answer.headers) == (200, False)
            connection.post(AMY, modern(note("cancelled", requestId=1)), {"MCP-Protocol-Version": MODERN_VERSION})
            assert (await connection.answer()).status == 202
            assert house.party.methods() == ["tools/call"]

    run(play())


def test_connections_that_share_a_session_get_their_own_answers(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            house.holds.add("tools/call")
            one, two = await house.connect(), await house.connect()
            for connection in (one, two):
                connection.post(AMY, MODERN, dict(mirrors(MODERN)))
            await house.until(lambda: house.parties and len(house.party.open) == 2)
            assert len(house.parties) == 1
            first, second = (slot for _, slot in house.party.open)
            house.party.client.tell(json.dumps(note("x", to="two")).encode(), second)
            house.party.answers(1, {"for": "two"}, at=1)
            house.party.client.tell(json.dumps(note("x", to="nobody")).encode(), -1)
            house.party.answers(1, {"for": "one"})
            assert (await one.answer()).value == result(1, {"for": "one"})
            await two.head()
            assert [await two.frame() for _ in range(3)] == [note("x", to="two"), result(1, {"for": "two"}), None]
            assert first != second
            assert house.streamable._shared[next(iter(house.streamable._shared))]._streams == set()

    run(play())


def test_a_fault_in_one_connections_request_does_not_lead_anothers_answer_astray(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            house.faults.add("tools/list")
            frame = modern(LIST)
            bad, good = await house.connect(), await house.connect()
            bad.post(AMY, frame, dict(mirrors(frame)))
            assert await bad.ended() == b""
            house.party.client.send(b'{"jsonrpc":"2.0","id":null,"error":{}}', -1)
            good.post(AMY, MODERN, dict(mirrors(MODERN)))
            assert (await good.answer()).value == result(1)

    run(play())


@pytest.mark.parametrize(("legacy", "sessions"), [(True, 3), (False, 1)])
def test_clients_that_can_do_different_things_share_no_session_with_a_server_that_is_told_once(
    run: Run, legacy: bool, sessions: int
) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            house.legacy = legacy
            for can in ({}, {"sampling": {}}, {}, {"sampling": {}}, {"sampling": {"tools": {}}}):
                frame = modern(call(1))
                frame["params"]["_meta"][META_CAPABILITIES] = can
                connection.post(AMY, frame, dict(mirrors(frame)))
                assert (await connection.answer()).status == 200
            assert len(house.parties) == sessions

    run(play())


def test_parameters_that_a_tool_wants_mirrored_are_compared(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            region = {"type": "string", "x-mcp-header": "Region"}
            tools = [
                {"name": "echo", "inputSchema": {"type": "object", "properties": {"region": region}}},
                {"name": "bad", "inputSchema": {"type": "object", "properties": {"a": {"x-mcp-header": "no name"}}}},
                {"name": 7},
            ]
            frame = modern(call(1, region="eu"))

            async def says(headers: dict[str, str]) -> int:
                connection.post(AMY, frame, {**mirrors(frame), **headers})
                return (await connection.answer()).status

            async def lists() -> None:
                connection.post(AMY, modern(LIST), dict(mirrors(LIST)))
                await connection.answer()

            assert await says({}) == 200  # nobody has been shown the tool yet
            house.results["tools/list"] = {"tools": tools}
            await lists()
            assert await says({"Mcp-Param-Region": "eu"}) == 200
            assert await says({"Mcp-Param-Region": "us"}) == 400
            assert await says({}) == 400
            del region["x-mcp-header"]
            await lists()
            assert await says({}) == 200

    run(play())


# --- legacy, without a session ----------------------------------------------------------------------------------------


def test_requests_without_a_session_wait_for_our_handshake(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            house.holds.add("initialize")
            one, two = await house.connect(), await house.connect()
            for number, connection in enumerate((one, two)):
                connection.post(AMY, call(number))
            await house.until(lambda: house.parties and house.party.open)
            assert house.party.methods() == ["initialize"]
            house.party.answers("aegis", {"protocolVersion": "2025-11-25"})
            assert [(await connection.answer()).value for connection in (one, two)] == [result(0), result(1)]
            assert house.party.methods() == ["initialize", "notifications/initialized", "tools/call", "tools/call"]
            one.post(AMY, call(1), {"MCP-Protocol-Version": "2025-06-18"})
            assert (await one.answer()).status == 200
            one.post(AMY, note("roots/list_changed"))
            assert (await one.answer()).status == 202
            for method in ("GET", "DELETE"):
                one.ask(method, AMY)
                assert (await one.answer()).headers["allow"] == "POST"
            assert len(house.parties) == 1

    run(play())


def test_what_becomes_of_our_handshake_becomes_of_the_request_behind_it(run: Run) -> None:
    async def play() -> None:
        async with opened() as (house, connection):
            house.results["initialize"] = ValueError("-32000")
            for _ in range(2):
                connection.post(AMY, call(1))
                answer = await connection.answer()
                assert (answer.status, answer.value["id"]) == (200, 1)
                assert answer.value["error"] == {"code": -32000, "message": "no"}
            assert [party.left for party in house.parties] == [True, True]
            assert house.refusals == [("tools/call", "forward", "no_session")] * 2
            connection.post("/agents/gone/mcp", call(1))
            assert "the server does not start" in (await connection.answer()).value["error"]["message"]
            assert house.refusals[-1] == ("tools/call", "forward", "session_ended")

    run(play())


def test_where_there_is_no_server_nobody_shakes_hands(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        monkeypatch.setattr(Party, "serves", False)
        async with opened() as (house, connection):
            connection.post(AMY, call(1))
            assert (await connection.answer()).status == 200
            assert house.party.methods() == ["tools/call"]

    run(play())


def test_who_waits_for_our_handshake_and_goes_is_forgotten(run: Run) -> None:
    async def play() -> None:
        async with House() as house:
            house.holds.add("initialize")
            one, two = await house.connect(), await house.connect()
            one.post(AMY, call(1, "evil"))
            two.post(AMY, call(2))
            await house.until(lambda: house.parties and house.party.client.waiting == 3)
            await one.close()
            await house.until(lambda: house.party.client.waiting == 2)
            house.party.answers("aegis", {"protocolVersion": "2025-11-25"})
            assert (await two.answer()).value == result(2)
            assert [frame.params["name"] for frame in house.party.heard if frame.method == "tools/call"] == ["echo"]

    run(play())
