from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from making import until
from remote_ends import EVENTS, META, End, Request, chunk, event, opened, response, result, scripted
from web_servers import serving

from aegis_daemon.backends import remote
from aegis_daemon.backends import streamable_http as under_test
from aegis_daemon.backends.streamable_http import HttpServer
from aegis_daemon.wire.headers import annotated

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def sdk() -> Iterator[str]:
    with serving("http") as port:
        yield f"http://127.0.0.1:{port}/mcp"


@pytest.fixture(scope="module")
def sdk_json() -> Iterator[str]:
    with serving("json") as port:
        yield f"http://127.0.0.1:{port}/mcp"


@pytest.fixture(scope="module")
def sdk_resumable() -> Iterator[str]:
    with serving("resumable") as port:
        yield f"http://127.0.0.1:{port}/mcp"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "RETRY_S", 0.01)


# --- the official server


def test_a_legacy_session_with_the_official_server(run: Run, sdk: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk)
        assert (await end.shakes_hands())["serverInfo"]["name"] == "web"
        assert (await end.result(end.calls("add", a=1, b=2)))["structuredContent"] == {"result": 3}
        number = end.calls("steps", token="t", count=3)
        await end.result(number)
        progress = end.told("notifications/progress")
        assert [(one["params"]["progress"], about) for one, about in progress] == [
            (1, number),
            (2, number),
            (3, number),
        ]
        numbers = [end.calls("echo", text=f"{n} \u2028 é") for n in range(20)]
        for n, number in enumerate(numbers):
            assert (await end.result(number))["content"][0]["text"] == f"{n} \u2028 é"
        session = end.server.session
        assert session
        await end.ends()
        assert end.exits == [0]
        assert not end.lost

        after = End(HttpServer, sdk)
        after.server._set_session(session, "2025-11-25")
        fault = await after.loss(after.asks("tools/list"))
        assert (fault.reason, fault.not_executed) == ("http_404", True)  # it was deleted
        await after.ends()

    run(go())


def test_modern_requests_to_the_official_server(run: Run, sdk: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk)
        assert "supportedVersions" in await end.result(end.asks("server/discover", modern=True))
        found = await end.result(end.calls("add", modern=True, a=1, b=2))
        assert (found["structuredContent"], found["resultType"]) == ({"result": 3}, "complete")
        number = end.calls("steps", modern=True, token="t", count=2)
        await end.result(number)
        assert [about for _, about in end.told("notifications/progress")] == [number, number]
        missing = await end.answered(end.asks("no/such", modern=True))
        assert missing["error"]["code"] == -32601
        assert end.server.session == b""
        await end.ends()

    run(go())


def test_annotated_arguments_are_mirrored_once_the_tools_were_listed(run: Run, sdk: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk)
        assert end.server._tools == {}
        await end.result(end.asks("tools/list", modern=True))
        assert set(end.server._tools) == {"where"}
        for region in ("east", "Zürich", " x ", ""):
            found = await end.result(end.calls("where", modern=True, region=region, n=1))
            assert found["content"][0]["text"] == f"in {region}"
        await end.ends()

    run(go())


def test_a_tool_that_wants_headers_we_did_not_know_of_is_looked_up_and_called_again(run: Run, sdk: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk)
        found = await end.result(end.calls("where", modern=True, region="x"))
        assert found["content"][0]["text"] == "in x"
        assert len(end.lines) == 1  # nobody hears of what we asked ourselves
        end.server._tools["where"] = annotated(
            {"inputSchema": {"properties": {"n": {"type": "integer", "x-mcp-header": "Region"}}}}
        )
        assert (await end.result(end.calls("where", modern=True, region="y", n=5)))["content"][0]["text"] == "in y"
        await end.ends()

    run(go())


def test_a_mismatch_that_nothing_mends_is_the_answer(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        number, method = request.frame["id"], request.frame["method"]
        assert request.headers["mcp-method"] == method
        if method == "tools/list":
            assert number == -1
            if request.frame["params"]["_meta"].get("mode") == "broken":
                writer.write(response(500))
            else:
                writer.write(result(request, {"tools": [], "nextCursor": f"{len(server.requests)}"}))
            return
        error = {"jsonrpc": "2.0", "id": number, "error": {"code": -32020, "message": "headers"}}
        writer.write(response(400, json.dumps(error).encode()))

    async def go() -> None:
        nonlocal server
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            answer = await end.answered(end.calls("t", modern=True))
            assert answer["error"]["code"] == -32020
            assert len(server.requests) == 1 + 20
            answer = await end.answered(end.asks("tools/call", modern=True, name="t", _meta={"mode": "broken"}))
            assert answer["error"]["code"] == -32020
            assert len(server.requests) == 21 + 2
            await end.ends()

    server: Any = None
    run(go())


def test_what_one_session_learnt_of_tools_another_knows(run: Run, sdk: str) -> None:
    async def go() -> None:
        tools: dict[str, Any] = {}
        end = End(HttpServer, sdk, tools=tools)
        await end.result(end.asks("tools/list", modern=True))
        await end.ends()
        end = End(HttpServer, sdk, tools=tools)
        await end.result(end.calls("where", modern=True, region="x"))
        await end.ends()

    run(go())


def test_a_request_of_the_official_server_is_asked_and_answered(run: Run, sdk: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk)
        await end.shakes_hands()
        number = end.calls("greet")
        await until(lambda: end.told("elicitation/create"))
        ((asked, about),) = end.told("elicitation/create")
        assert about == number
        end.answers(asked["id"], {"action": "accept", "content": {"name": "Ann"}})
        assert (await end.result(number))["content"][0]["text"] == "hello Ann"
        await end.ends()

    run(go())


def test_what_belongs_to_no_request_comes_on_the_stream_of_the_session(run: Run, sdk: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk)
        await end.shakes_hands()
        stream = None

        def there() -> bool:
            nonlocal stream
            stream = end.server._stream
            return stream is not None and stream._events is not None

        await until(there)
        await end.result(end.calls("change"))
        await until(lambda: end.told("notifications/tools/list_changed"))
        assert end.told("notifications/tools/list_changed")[0][1] == 0
        await end.ends()

    run(go())


def test_a_subscription_is_one_long_stream_and_closing_it_ends_it(run: Run, sdk: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk)
        number = end.asks("subscriptions/listen", modern=True, notifications={"toolsListChanged": True})
        await until(lambda: end.told("notifications/subscriptions/acknowledged"))
        await end.result(end.calls("change", modern=True))
        await until(lambda: end.told("notifications/tools/list_changed"))
        assert end.told("notifications/tools/list_changed")[0][1] == number
        end.cancels(number)
        assert (await end.loss(number)).reason == "cancelled"
        await end.ends()

    run(go())


def test_json_answers_of_the_official_server(run: Run, sdk_json: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk_json)
        await end.shakes_hands()
        for n in range(10):
            assert (await end.result(end.calls("add", a=n, b=2)))["structuredContent"] == {"result": n + 2}
        large = "é" * 400_000
        assert (await end.result(end.calls("echo", text=large)))["structuredContent"] == {"result": large}
        assert end.server.gathered == 0
        # one for the calls, one for the stream
        await until(lambda: len(end.pool.connections) <= 2)
        await end.ends()

    run(go())


def test_a_stream_that_broke_is_taken_up_again(run: Run, sdk_resumable: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk_resumable)
        await end.shakes_hands()
        assert (await end.result(end.calls("broken_stream")))["content"][0]["text"] == "after all"
        await end.ends()

    run(go())


def test_cancelling_tells_the_official_server(run: Run, sdk: str) -> None:
    async def go() -> None:
        end = End(HttpServer, sdk)
        await end.shakes_hands()
        number = end.calls("forever", token="t")
        await until(lambda: end.told("notifications/progress"))
        end.cancels(number, _meta=META)  # as a modern client says it, of a request that a bridge made a legacy one
        assert (await end.answered(number))["error"]["code"] == -32800  # it says that it stopped
        number = end.calls("forever", modern=True, token="t")
        await until(lambda: len(end.told("notifications/progress")) == 2)
        end.cancels(number)
        end.cancels(number)
        fault = await end.loss(number)
        assert (fault.reason, fault.not_executed) == ("cancelled", False)
        assert not end.server._open
        await end.ends()

    run(go())


# --- what goes out


def test_the_headers_of_a_legacy_session(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method != "POST":
            writer.write(response(405))
        elif request.frame.get("method") == "initialize":
            writer.write(opened(request, "abc"))
        elif "id" in request.frame:
            writer.write(result(request))
        else:
            writer.write(response(202))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url, {"Authorization": "Bearer x", "X-Key": "y"})
            assert not end.server.touched
            await end.shakes_hands()
            assert end.server.touched
            await end.result(end.calls("t"))
            await until(lambda: any(one.method == "GET" for one in server.requests))
            await end.ends()
            posts = [one for one in server.requests if one.method == "POST"]
            for request in server.requests:
                assert request.path == "/mcp"
                assert request.headers["host"] == f"127.0.0.1:{server.port}"
                assert (request.headers["authorization"], request.headers["x-key"]) == ("Bearer x", "y")
                first = request is posts[0]
                assert ("mcp-session-id" in request.headers) is not first
                assert request.headers.get("mcp-protocol-version") == (None if first else "2025-11-25")
                assert "mcp-method" not in request.headers
            for request in posts:
                assert request.headers["accept"] == "application/json, text/event-stream"
                assert request.headers["content-type"] == "application/json"
            assert [one.frame.get("method") for one in posts] == [
                "initialize",
                "notifications/initialized",
                "tools/call",
            ]
            assert [one.method for one in server.requests].count("GET") == 1  # 405: there is no such stream
            assert server.requests[-1].method == "DELETE"

    run(go())


def test_nothing_overtakes_the_handshake(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method != "POST":
            writer.write(response(405))
        elif request.frame.get("method") == "initialize":
            await asyncio.sleep(0.02)
            writer.write(opened(request))
        elif "id" in request.frame:
            writer.write(result(request))
        else:
            await asyncio.sleep(0.02)
            writer.write(response(202))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            first = end.asks("initialize", protocolVersion="2025-11-25")
            early = [end.calls("early"), end.calls("cancelled")]
            end.says("initialized")
            late = end.calls("late")
            end.cancels(early[1])
            fault = await end.loss(early[1])
            assert fault.not_executed
            await end.result(first)
            await end.result(early[0])
            await end.result(late)
            posts = [one.frame for one in server.requests if one.method == "POST"]
            order = [one.get("params", {}).get("name") or one["method"] for one in posts]
            assert order == ["initialize", "early", "notifications/initialized", "late"]
            await end.ends()

    run(go())


def test_a_server_that_never_takes_the_handshakes_end_stops_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_CONFIRM_S", 0.02)

    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST" and request.frame.get("method") == "initialize":
            writer.write(opened(request))
        elif request.method == "POST" and "id" in request.frame:
            writer.write(result(request))
        elif request.method == "DELETE":
            writer.write(response(200))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            await end.shakes_hands()
            await end.result(end.calls("t"))
            monkeypatch.setattr(under_test, "GRACE_S", 0.02)
            await end.ends()

    run(go())


def test_what_waits_is_bounded_and_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "MOST_HELD", 20)
    monkeypatch.setattr(under_test, "GRACE_S", 0.01)

    async def never(request: Request, writer: asyncio.StreamWriter) -> None:
        pass

    async def go() -> None:
        async with scripted(never) as server:
            end = End(HttpServer, server.url)
            end.asks("initialize")
            numbers = [end.calls("t", text="x" * 100_000) for _ in range(25)]
            assert end.full == [True]
            fault = await end.loss(numbers[20])
            assert (fault.reason, fault.not_executed) == ("busy", True)
            for number in numbers[:20]:
                end.cancels(number)
            assert end.full == [True, False]
            await end.ends()

    run(go())


def test_a_server_that_does_not_read_is_told_of(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await until(lambda: done)
        writer.close()

    async def go() -> None:
        monkeypatch.setattr(under_test, "GRACE_S", 0.01)
        listener = await asyncio.start_server(deaf, "127.0.0.1", 0, limit=1024)
        end = End(HttpServer, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/")
        end.server.send(b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"t":"%b"}}' % (b"x" * (20 << 20)), None, 1)
        await until(lambda: end.full == [True, False, True])  # no connection yet; a connection; one that is full
        await end.ends()
        assert end.full[-1] is False
        done.append(1)
        listener.close()

    done: list[int] = []
    run(go())


@pytest.mark.parametrize(
    "name",
    ["Mcp-Session-Id", "mcp-protocol-version", "Content-Length", "HOST", "accept", "Mcp-Param-X", "Transfer-Encoding"],
)
def test_a_configured_header_never_replaces_one_of_the_protocol(run: Run, name: str) -> None:
    async def go() -> None:
        with pytest.raises(ValueError, match="set by the protocol"):
            End(HttpServer, "http://x/", {name: "1"})
        with pytest.raises(ValueError, match="control character"):
            End(HttpServer, "http://x/", {"X": "a\r\nHost: b"})
        with pytest.raises(ValueError, match="twice"):
            End(HttpServer, "http://x/", {"X": "a", "x": "b"})

    run(go())


# --- what comes back


async def lose(run_reply: Any, *, modern: bool = False, **more: Any) -> Any:
    async with scripted(run_reply) as server:
        end = End(HttpServer, server.url, **more)
        fault = await end.loss(end.calls("t", modern=modern))
        assert not end.server._open
        assert end.server.gathered == 0
        await end.ends()
        return fault


@pytest.mark.parametrize(
    ("status", "not_executed"),
    [(301, True), (303, False), (400, True), (401, True), (403, True), (404, True), (405, True), (408, False),
     (409, False), (429, True), (500, False), (502, False), (503, False)],
)  # fmt: skip
def test_a_status_without_an_answer_says_whether_anything_was_done(run: Run, status: int, not_executed: bool) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST":
            writer.write(response(status, b"the secret body", "Location: http://127.0.0.1:1/", kind="text/html"))

    async def go() -> None:
        for modern in (False, True):
            fault = await lose(reply, modern=modern)
            assert (fault.reason, fault.not_executed) == (f"http_{status}", not_executed)
            assert ("not executed" in fault.text) is not_executed
            assert ("outcome unknown" in fault.text) is not not_executed
            assert "secret" not in fault.text

    run(go())


@pytest.mark.parametrize("id", [1, None, ...])
def test_an_error_in_a_refusal_is_the_answer(run: Run, id: Any) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        error = {"code": -32602, "message": "no", "data": [1]}
        body = {"jsonrpc": "2.0", "error": error, **({} if id is ... else {"id": id})}
        writer.write(response(400, json.dumps(body, indent=1).encode(), kind="Application/JSON; charset=utf-8"))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            answer = await end.answered(end.calls("t"))
            assert answer == {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no", "data": [1]}}
            await end.ends()

    run(go())


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":2,"error":{"code":-1,"message":"x"}}',
        b'{"jsonrpc":"2.0","id":"1","error":{"code":-1,"message":"x"}}',
        b'{"jsonrpc":"2.0","id":1,"error":"x"}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":"a","message":"x"}}',
        b'{"jsonrpc":"2.0","id":1,"result":{},"error":{"code":-1,"message":"x"}}',
        b'{"error":"invalid_token","error_description":"secret"}',
        b'{"jsonrpc":"2.0","id":1,"result":{}}',
        b"not json",
        b"[]",
        b'"x"',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"\xff"}}',
        b"",
        b" " * (2 << 20),
    ],
)
def test_anything_else_in_a_refusal_is_none(run: Run, body: bytes) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response(401, body))

    async def go() -> None:
        fault = await lose(reply)
        assert (fault.reason, fault.not_executed) == ("http_401", True)

    run(go())


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Content-Type: text/html", b'{"jsonrpc":"2.0","id":1,"result":{}}'),
        ("Content-Type: application/json, text/html", b'{"jsonrpc":"2.0","id":1,"result":{}}'),
        ("Content-Type: application/jsonp", b'{"jsonrpc":"2.0","id":1,"result":{}}'),
        ("X: y", b'{"jsonrpc":"2.0","id":1,"result":{}}'),
        ("Content-Encoding: gzip\r\nContent-Type: application/json", b'{"jsonrpc":"2.0","id":1,"result":{}}'),
        (
            "Content-Encoding: gzip\r\nContent-Type: text/event-stream",
            b'data: {"jsonrpc":"2.0","id":1,"result":{}}\n\n',
        ),
        ("Content-Type: application/json", b'{"jsonrpc":"2.0","id":2,"result":{}}'),
        ("Content-Type: application/json", b'{"jsonrpc":"2.0","id":"1","result":{}}'),
        ("Content-Type: application/json", b'[{"jsonrpc":"2.0","id":1,"result":{}}]'),
        ("Content-Type: application/json", b'{"jsonrpc":"2.0","id":1,"method":"ping"}'),
        ("Content-Type: application/json", b'{ "jsonrpc":"2.0","id":1,"result":{"x":"\xff"}}'),
        ("Content-Type: application/json", b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"result":{}}'),
        ("Content-Type: application/json", b""),
        ("Content-Type: application/json", b"null"),
        ("Content-Type: application/json", b"[" * 100_000),
    ],
)
def test_an_answer_that_cannot_be_used_is_a_loss(run: Run, head: str, body: bytes) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        lines = f"HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(lines.encode() + body)

    async def go() -> None:
        fault = await lose(reply)
        assert (fault.reason, fault.not_executed) == ("bad_answer", False)

    run(go())


def test_202_for_a_request_is_no_answer(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response(202))

    async def go() -> None:
        assert (await lose(reply)).reason == "bad_answer"

    run(go())


def test_an_answer_may_be_spread_over_lines(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"id": request.frame["id"], "result": {"a": "b\n"}, "jsonrpc": "2.0"}, indent=2)
        writer.write(response(200, b" \r\n" + body.replace("\n", "\r\n").encode() + b"\r\n"))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            assert await end.result(end.calls("t")) == {"a": "b\n"}
            await end.ends()

    run(go())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_a_limit(run: Run, stream: bool) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if stream:
            writer.write(EVENTS + chunk(b"data: "))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(12):
            writer.write(chunk(b" " * (1 << 20)))
            await writer.drain()

    async def go() -> None:
        fault = await lose(reply)
        assert (fault.reason, fault.not_executed) == ("answer_too_large", False)

    run(go())


def test_unfinished_answers_of_one_session_are_bounded_together(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_GATHERED", 2_000_000)
    monkeypatch.setattr(under_test, "GRACE_S", 0.01)

    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.frame["id"] % 2:
            writer.write(EVENTS + chunk(b"data: "))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(7):
            writer.write(chunk(b" " * 100_000))
            await writer.drain()

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            for _ in range(10):
                end.calls("t")
            await until(lambda: len(end.lost) >= 7)
            assert {fault.reason for fault in end.lost.values()} == {"answer_too_large"}
            assert 0 < end.server.gathered <= 2_000_000
            await end.ends()
            assert end.server.gathered == 0

    run(go())


def test_a_server_that_cannot_be_reached_executed_nothing(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        pass

    async def go() -> None:
        async with scripted(reply) as server:
            url = server.url
        end = End(HttpServer, url)
        for _ in range(2):
            fault = await end.loss(end.asks("initialize"))
            assert (fault.reason, fault.not_executed) == ("refused", True)
        await end.ends()

    run(go())


def test_a_broken_connection_leaves_the_outcome_unknown(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> bool:
        if request.frame["params"]["name"] == "half":
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"jsonrpc"')
        elif request.frame["params"]["name"] == "stream":
            writer.write(EVENTS + event({"jsonrpc": "2.0", "method": "notifications/x"}))
        return False

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            for name in ("none", "half", "stream"):
                fault = await end.loss(end.calls(name))
                assert (fault.reason, fault.not_executed) == ("connection_lost", False)
            assert len(server.requests) == 3
            await end.ends()

    run(go())


def test_only_the_answer_ends_a_stream_and_what_follows_it_is_nobodys(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        number = request.frame["id"]
        writer.write(
            EVENTS
            + chunk(b": ping\n\n")
            + event("", "1")
            + event({"jsonrpc": "2.0", "method": "notifications/a"})
            + event({"jsonrpc": "2.0", "id": number, "method": "roots/list"})
            + event({"jsonrpc": "2.0", "id": 99, "result": {}})
            + event("junk")
            + event({"x": 1}, kind="other")
            + event({"result": {"ok": 1}, "id": number, "jsonrpc": "2.0"})
            + event({"jsonrpc": "2.0", "method": "notifications/late"})
            + event({"jsonrpc": "2.0", "id": number, "result": {"again": 1}})
            + b"0\r\n\r\n"
        )

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            end.server._on_lines = lambda lines, about: seen.extend((bytes(line), about) for line in lines)
            number = end.calls("t")
            await until(lambda: len(seen) == 5)
            assert [about for _, about in seen] == [number] * 5
            assert seen[3][0] == b"junk"
            assert json.loads(seen[4][0])["result"] == {"ok": 1}
            number = end.calls("t")
            await until(lambda: len(seen) == 10)
            assert server.connections == 1
            await end.ends()
            assert len(seen) == 10

    seen: list[tuple[bytes, Any]] = []
    run(go())


def test_a_client_that_does_not_read_stops_its_own_servers_streams_alone(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST":
            writer.write(EVENTS)
            for step in range(200):
                writer.write(event({"jsonrpc": "2.0", "method": "notifications/x", "params": {"t": "x" * 50_000}}))
                await writer.drain()
                sent.append(step)
            writer.write(event({"jsonrpc": "2.0", "id": request.frame["id"], "result": {}}) + b"0\r\n\r\n")

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            number = end.calls("t")
            end.server.pause(True)
            await until(lambda: sent)
            for _ in range(50):
                await asyncio.sleep(0.001)
            heard = len(end.lines)
            assert heard < 100
            assert len(sent) < 200
            end.server.pause(False)
            await end.result(number)
            assert len(end.lines) == 201
            await end.ends()

    sent: list[int] = []
    run(go())


# --- streams that break


def test_a_stream_is_resumed_behind_the_last_event(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> bool | None:
        if request.method == "POST":
            writer.write(EVENTS + event("", "a1") + event({"jsonrpc": "2.0", "method": "notifications/1"}, "a2"))
            return False
        if request.method == "DELETE":
            writer.write(response(200))
            return None
        asked.append(request.headers["last-event-id"])
        if len(asked) == 1:
            return False
        if len(asked) == 2:
            writer.write(EVENTS + event({"jsonrpc": "2.0", "method": "notifications/2"}, "a3") + b"0\r\n\r\n")
            return None
        writer.write(EVENTS + event({"jsonrpc": "2.0", "id": 1, "result": {}}) + b"0\r\n\r\n")
        return None

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            number = end.calls("t")
            await end.result(number)
            assert asked == ["a2", "a2", "a3"]
            assert [about for _, about in end.lines] == [number] * 3
            assert len([one for one in server.requests if one.method == "POST"]) == 1
            await end.ends()

    asked: list[str] = []
    run(go())


def test_a_stream_that_stays_broken_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "RETRY_S", 0.001)

    async def reply(request: Request, writer: asyncio.StreamWriter) -> bool | None:
        if request.method == "POST":
            writer.write(EVENTS + event("", "a1"))
            return False
        if request.method == "GET" and mode == "refused":
            writer.write(response(400))
            return None
        if request.method == "GET" and mode == "json":
            writer.write(response(200, b'{"jsonrpc":"2.0","id":1,"result":{}}'))
            return None
        return False

    async def go() -> None:
        nonlocal mode
        for mode in ("closed", "refused", "json"):
            fault = await lose(reply)
            assert fault.reason == ("bad_answer" if mode == "json" else "connection_lost")
            assert not fault.not_executed

    mode = ""
    run(go())


def test_a_modern_stream_is_never_resumed(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> bool:
        assert request.method == "POST"
        writer.write(EVENTS + event("", "a1"))
        return False

    async def go() -> None:
        assert (await lose(reply, modern=True)).reason == "connection_lost"

    run(go())


def test_the_sessions_stream_is_opened_again_where_it_broke(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> bool | None:
        if request.method == "POST":
            first = request.frame.get("method") == "initialize"
            writer.write(opened(request) if first else response(202))
        elif request.method == "GET":
            asked.append(request.headers.get("last-event-id"))
            note = {"jsonrpc": "2.0", "method": f"notifications/{len(asked)}"}
            if len(asked) == 2:
                writer.write(response(503))
                return None
            writer.write(EVENTS + event(note, f"e{len(asked)}"))
            return None if len(asked) == 4 else False
        else:
            writer.write(response(200))
        return None

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            await end.shakes_hands()
            await until(lambda: len(end.lines) == 4)
            assert asked == [None, "e1", "e1", "e3"]
            assert [about for _, about in end.lines[1:]] == [0, 0, 0]
            await end.ends()

    asked: list[str | None] = []
    run(go())


# --- sessions that are forgotten


class Forgetful:
    """Knows a session until it is told to forget."""

    def __init__(self, status: int = 404, words: str = "Session not found") -> None:
        self.status, self.words = status, words
        self.sessions = 0
        self.known = ""
        self.calls: list[str] = []
        self.handshakes: list[tuple[str, str]] = []
        self.version = "2025-11-25"
        self.confirmations = 0

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method != "POST":
            writer.write(response(405))
            return
        method = request.frame.get("method", "")
        if method == "initialize":
            if self.version == "never" and self.sessions:
                writer.write(response(500))
                return
            self.sessions += 1
            self.known = f"s{self.sessions}"
            value = {"protocolVersion": self.version, "capabilities": {}, "serverInfo": {}}
            writer.write(result(request, value, f"Mcp-Session-Id: {self.known}"))
        elif request.headers.get("mcp-session-id") != self.known or self.known == "nobody":
            error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": self.words}}
            writer.write(response(self.status, json.dumps(error).encode()))
        elif method == "notifications/initialized":
            self.confirmations += 1
            writer.write(response(202))
        elif "id" in request.frame:
            self.calls.append(request.frame["params"]["name"])
            writer.write(result(request, {"session": self.known}))
        else:
            writer.write(response(202))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "Session not found"),
        (400, "Bad Request: No valid session ID provided"),
    ],  # the specification's, and a habit
)
def test_a_forgotten_session_is_opened_again_once_for_all_and_nothing_runs_twice(
    run: Run, status: int, words: str
) -> None:
    async def go() -> None:
        forgetful = Forgetful(status, words)
        async with scripted(forgetful) as server:
            end = End(HttpServer, server.url)
            await end.shakes_hands()
            await end.result(end.calls("before"))
            for times in (1, 2):
                forgetful.known = ""
                end.says("roots/list_changed")
                numbers = [end.calls(f"{times}-{n}") for n in range(8)]
                for number in numbers:
                    assert await end.result(number) == {"session": f"s{times + 1}"}
            assert sorted(forgetful.calls) == sorted(["before", *(f"{t}-{n}" for t in (1, 2) for n in range(8))])
            assert forgetful.sessions == forgetful.confirmations == 3
            handshakes = [
                one for one in server.requests if one.method == "POST" and one.frame.get("method") == "initialize"
            ]
            assert len({one.body for one in handshakes}) == 1
            assert not any("mcp-session-id" in one.headers for one in handshakes)
            assert [frame["id"] for frame, _ in end.lines].count(1) == 1  # the client shook hands once
            await end.ends()

    run(go())


def test_a_400_that_does_not_speak_of_sessions_is_the_servers_answer(run: Run) -> None:
    async def go() -> None:
        forgetful = Forgetful(400, "your arguments are odd")
        async with scripted(forgetful) as server:
            end = End(HttpServer, server.url)
            await end.shakes_hands()
            forgetful.known = "nobody"
            assert "odd" in json.dumps(await end.answered(end.calls("x")))
            assert forgetful.sessions == 1
            await end.ends()

    run(go())


def test_a_session_that_is_not_taken_up_again_loses_what_waits_and_the_next_frame_tries_anew(run: Run) -> None:
    async def go() -> None:
        forgetful = Forgetful()
        async with scripted(forgetful) as server:
            end = End(HttpServer, server.url)
            await end.shakes_hands()
            await end.result(end.calls("before"))
            for version in ("never", "2024-11-05"):
                forgetful.known, forgetful.version = "", version
                numbers = [end.calls("lost") for _ in range(3)]
                for number in numbers:
                    fault = await end.loss(number)
                    assert (fault.reason, fault.not_executed) == ("session_lost", True)
            forgetful.version = "2025-11-25"
            await end.result(end.calls("after"))
            assert forgetful.calls == ["before", "after"]
            await end.ends()

    run(go())


def test_a_server_that_forgets_every_session_is_asked_twice_and_no_more(run: Run) -> None:
    async def go() -> None:
        forgetful = Forgetful()
        async with scripted(forgetful) as server:
            end = End(HttpServer, server.url)
            await end.result(end.asks("initialize"))
            forgetful.known = "nobody"

            async def hostile(request: Request, writer: asyncio.StreamWriter) -> None:
                await forgetful(request, writer)
                forgetful.known = "nobody"

            server._reply = hostile
            end.says("initialized")
            numbers = [end.calls("t") for _ in range(3)]
            for number in numbers:
                fault = await end.loss(number)
                assert (fault.reason, fault.not_executed) == ("http_404", True)
            assert forgetful.calls == []
            assert len(server.requests) < 40
            await end.ends()

    run(go())


def test_404_outside_a_session_is_no_forgotten_one(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST" and request.frame["method"] == "initialize":
            writer.write(opened(request, ""))
        else:
            writer.write(response(404))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            await end.shakes_hands()
            fault = await end.loss(end.calls("t"))
            assert (fault.reason, fault.not_executed) == ("http_404", True)
            await end.ends()
            assert not any(one.method == "DELETE" for one in server.requests)

    run(go())


@pytest.mark.parametrize("session", ["a b", "x" * 2000, "ü"])
def test_a_session_id_that_is_none_ends_the_handshake(run: Run, session: str) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(opened(request, session))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            assert (await end.loss(end.asks("initialize"))).reason == "bad_answer"
            await end.ends()

    run(go())


@pytest.mark.parametrize("version", ["", "a\r\nX: y", "1" * 99, 5, None])
def test_a_version_that_is_none_ends_the_handshake(run: Run, version: Any) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(result(request, {"protocolVersion": version}))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            assert (await end.loss(end.asks("initialize"))).reason == "bad_answer"
            await end.ends()

    run(go())


def test_a_refused_handshake_is_the_clients_to_hear(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        error = {"jsonrpc": "2.0", "id": request.frame["id"], "error": {"code": -32022, "message": "no"}}
        writer.write(response(400, json.dumps(error).encode()))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url, fall_back=True)
            answer = await end.answered(end.asks("initialize"))
            assert answer["error"]["code"] == -32022
            assert end.server._gate is None
            await end.ends()

    run(go())


# --- its end


def test_an_end_waits_for_open_answers_and_not_for_ever(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST" and request.frame.get("method") == "initialize":
            writer.write(opened(request))
        elif request.method == "POST" and "id" not in request.frame:
            writer.write(response(202))
        elif request.method == "POST" and request.frame["params"]["name"] == "soon":
            await asyncio.sleep(0.01)
            writer.write(result(request))

    async def go() -> None:
        monkeypatch.setattr(under_test, "FAREWELL_S", 0.05)  # the server says nothing to DELETE
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            await end.shakes_hands()
            soon = end.calls("soon")
            end.server.close_stdin()
            end.server.end()
            end.server.end()
            await end.result(soon)
            await until(lambda: end.exits)
            assert end.exits == [0]
            assert [one.method for one in server.requests].count("DELETE") == 1
            await end.closes()
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            await end.shakes_hands()
            never = end.calls("never")
            monkeypatch.setattr(under_test, "GRACE_S", 0.05)
            end.server.end()
            await until(lambda: end.exits)
            assert end.answer(never) is None
            assert end.exits == [0]
            assert [one.method for one in server.requests].count("DELETE") == 1
            await end.closes()

    run(go())


def test_a_session_that_never_began_ends_without_a_word(run: Run) -> None:
    async def go() -> None:
        end = End(HttpServer, "http://127.0.0.1:1/")
        await end.ends()
        assert end.exits == [0]

    run(go())


def test_who_answers_which_request_is_read_alike_fast_and_slowly() -> None:
    for line, number in {
        b'{"jsonrpc":"2.0","id":12,"result":{}}': 12,
        b'{"jsonrpc":"2.0","id":12,"error":{"code":1,"message":"x"}}': 12,
        b'{"result":{},"jsonrpc":"2.0","id":12}': 12,
        b'{ "jsonrpc":"2.0","id":12,"result":{}}': 12,
        b'{"jsonrpc":"2.0","id":12,"extra":1,"result":{}}': 12,
        b'{"jsonrpc":"2.0","id":12,"method":"x"}': None,
        b'{"jsonrpc":"2.0","id":12,"method":"x","result":{}}': None,
        b'{"jsonrpc":"2.0","id":"12","result":{}}': None,
        b'{"jsonrpc":"2.0","id":12}': None,
        b'{"jsonrpc":"2.0","id":12.0,"result":{}}': None,
        b'{"jsonrpc":"2.0","id":null,"error":{}}': None,
        b'{"jsonrpc":"2.0","id":12,"result":{},"error":{}}': 12,  # no answer, and its reader says so
        b"[]": None,
        b"": None,
    }.items():
        assert remote.answered(line) == number, line


def test_notifications_that_a_server_does_not_take_use_up_no_more_than_a_few_connections(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method != "POST":
            writer.write(response(405))
        elif request.frame.get("method") == "initialize":
            writer.write(opened(request))
        elif "id" in request.frame:
            writer.write(result(request))
        elif request.frame["method"] == "notifications/initialized":
            writer.write(response(202))

    async def go() -> None:
        async with scripted(reply) as server:
            end = End(HttpServer, server.url)
            await end.shakes_hands()
            await end.result(end.calls("first"))
            for _ in range(10 * under_test._MOST_NOTES):
                end.says("made/up")
            await until(lambda: len(server.requests) >= under_test._MOST_NOTES)
            await end.result(end.calls("x"))
            assert server.open <= under_test._MOST_NOTES + 3
            await end.ends()

    run(go())
