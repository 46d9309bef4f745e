from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from making import until
from remote_ends import EVENTS, Request, chunk, response, scripted

from aegis_daemon.backends import http_client as under_test
from aegis_daemon.backends.http_client import Exchange, HttpPool, header_lines, locate
from aegis_daemon.core.ports import Fault

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Taker:
    """A handler that keeps everything."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.ended = 0
        self.fault: Fault | None = None
        self.waited: list[bool] = []
        self.exchange: Exchange | None = None

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        assert not self.status
        self.status, self.headers = status, headers

    def data(self, chunk: bytes) -> None:
        assert self.status
        self.body += chunk

    def end(self) -> None:
        assert self.fault is None
        self.ended += 1

    def fail(self, fault: Fault) -> None:
        assert self.fault is None
        assert not self.ended
        self.fault = fault

    def waits(self, waiting: bool) -> None:
        self.waited.append(waiting)

    async def over(self) -> Taker:
        await until(lambda: self.ended or self.fault)
        return self


def ask(pool: HttpPool, url: str, body: bytes = b"x", method: str = "POST") -> Taker:
    target = locate(url)
    taker = Taker()
    head = b"%b %b HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n"
    request = head % (method.encode(), target.path, target.authority, len(body)) + body
    taker.exchange = pool.request(target, request, taker, repeatable=method == "GET")
    return taker


def new_pool(**more: Any) -> HttpPool:
    return HttpPool(asyncio.get_running_loop(), **{"connect_timeout": 5, **more})


async def close(pool: HttpPool) -> None:
    pool.close()
    await until(lambda: not pool.connections and not pool._tasks)
    for _ in range(5):
        await asyncio.sleep(0)  # the loop has its own to do behind a transport
    assert all(origin.open == 0 for origin in pool._origins.values())


async def ok(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(response(200, b"<" + request.body + b">"))


def test_a_connection_is_used_again(run: Run) -> None:
    async def go() -> None:
        pool = new_pool()
        async with scripted(ok) as server:
            for text in (b"one", b"two", b"three"):
                taker = await ask(pool, server.url, text).over()
                assert (taker.status, taker.body, taker.ended) == (200, b"<" + text + b">", 1)
                assert taker.headers[b"content-type"] == b"application/json"
            assert server.connections == 1
            takers = [ask(pool, server.url, b"%d" % number) for number in range(5)]
            for number, taker in enumerate(takers):
                assert (await taker.over()).body == b"<%d>" % number
            assert server.connections == 5
            await close(pool)

    run(go())


def test_a_server_that_closes_is_not_asked_on_a_dead_connection(run: Run) -> None:
    async def once(request: Request, writer: asyncio.StreamWriter) -> bool:
        writer.write(response(200, b"{}"))
        return False

    async def go() -> None:
        pool = new_pool()
        async with scripted(once) as server:
            for _ in range(3):
                assert (await ask(pool, server.url).over()).ended
                await until(lambda: not pool.connections)
            assert server.connections == 3
            await close(pool)

    run(go())


def test_connection_close_is_heeded(run: Run) -> None:
    async def last(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response(200, b"{}", "Connection: close"))

    async def go() -> None:
        pool = new_pool()
        async with scripted(last) as server:
            assert (await ask(pool, server.url).over()).ended
            assert (await ask(pool, server.url).over()).ended
            assert server.connections == 2
            await close(pool)

    run(go())


def test_a_post_is_never_sent_twice(run: Run) -> None:
    async def dies_later(request: Request, writer: asyncio.StreamWriter) -> bool | None:
        if request.body == b"second":
            return False
        writer.write(response(200, b"{}"))
        return None

    async def go() -> None:
        pool = new_pool()
        async with scripted(dies_later) as server:
            await ask(pool, server.url, b"first").over()
            fault = (await ask(pool, server.url, b"second").over()).fault
            assert fault is not None
            assert fault.reason == "connection_lost"
            assert not fault.not_executed
            assert [request.body for request in server.requests] == [b"first", b"second"]
            await close(pool)

    run(go())


def test_a_get_on_a_kept_connection_that_was_dead_is_sent_once_more(run: Run) -> None:
    async def dies_once(request: Request, writer: asyncio.StreamWriter) -> bool | None:
        if len(server.requests) in (2, 4, 5):
            return False
        writer.write(response(200, b"{}"))
        return None

    async def go() -> None:
        nonlocal server
        pool = new_pool()
        async with scripted(dies_once) as server:
            await ask(pool, server.url, b"", "GET").over()
            assert (await ask(pool, server.url, b"", "GET").over()).ended
            assert (server.connections, len(server.requests)) == (2, 3)
            assert (await ask(pool, server.url, b"", "GET").over()).fault  # not a third time
            assert len(server.requests) == 5
            await close(pool)

    server: Any = None
    run(go())


def test_an_answer_that_began_is_not_asked_for_again(run: Run) -> None:
    async def half(request: Request, writer: asyncio.StreamWriter) -> bool | None:
        if len(server.requests) == 2:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
            return False
        writer.write(response(200, b"{}"))
        return None

    async def go() -> None:
        nonlocal server
        pool = new_pool()
        async with scripted(half) as server:
            await ask(pool, server.url, b"", "GET").over()
            assert (await ask(pool, server.url, b"", "GET").over()).fault
            assert len(server.requests) == 2
            await close(pool)

    server: Any = None
    run(go())


def test_what_an_idle_connection_says_is_never_the_answer_to_the_next_request(run: Run) -> None:
    async def eager(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response(200, b"right"))
        if request.body == b"first":
            await writer.drain()
            await until(lambda: taken)
            writer.write(response(200, b"poison"))

    async def go() -> None:
        pool = new_pool()
        async with scripted(eager) as server:
            await ask(pool, server.url, b"first").over()
            taken.append(1)
            await until(lambda: not pool.connections)
            assert (await ask(pool, server.url, b"second").over()).body == b"right"
            await close(pool)

    taken: list[int] = []
    run(go())


def test_a_second_response_in_the_same_bytes_is_thrown_away_with_its_connection(run: Run) -> None:
    async def twice(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response(200, b"right") + response(200, b"poison"))

    async def garbage(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response(200, b"right") + b"\0\0\0")

    async def go() -> None:
        for reply in (twice, garbage):
            pool = new_pool()
            async with scripted(reply) as server:
                for _ in range(3):
                    taker = await ask(pool, server.url).over()
                    assert (taker.body, taker.ended) == (b"right", 1)
                assert server.connections == 3
                await close(pool)

    run(go())


def test_a_kept_connection_is_looked_at_before_it_is_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_LOOK_AFTER_S", 0.0)

    async def go() -> None:
        pool = new_pool()
        async with scripted(ok) as server:
            await ask(pool, server.url, b"one").over()
            (connection,) = pool.connections
            connection.pause(True)  # so that the loop does not see the end before the request does
            await close_all(server)
            await until(lambda: under_test._readable(connection._fd))
            taker = await ask(pool, server.url, b"two").over()
            assert taker.body == b"<two>"
            await close(pool)

    async def close_all(server: Any) -> None:
        for writer in writers:
            writer.close()
        await until(lambda: not server.open)

    writers: list[asyncio.StreamWriter] = []

    async def ok(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.body == b"one":
            writers.append(writer)
        writer.write(response(200, b"<" + request.body + b">"))

    run(go())


def test_unused_connections_are_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "_SWEEP_S", 0.01)

    async def polite(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response(200, b"{}", "Keep-Alive: timeout=1, max=5"))

    async def go() -> None:
        pool = new_pool()
        async with scripted(polite) as server:
            await ask(pool, server.url).over()
            await until(lambda: not pool.connections)  # a second before the server would
            assert pool._sweep is None
            await close(pool)

    run(go())


def test_connections_are_bounded(run: Run) -> None:
    async def never(request: Request, writer: asyncio.StreamWriter) -> None:
        pass

    async def go() -> None:
        pool = new_pool(most=3, most_idle=2)
        async with scripted(never) as server:
            takers = [ask(pool, server.url) for _ in range(4)]
            fault = (await takers[3].over()).fault
            assert fault is not None
            assert (fault.reason, fault.not_executed) == ("busy", True)
            for taker in takers[:3]:
                assert taker.exchange is not None
                taker.exchange.abort()
            await until(lambda: not pool.connections)
            await close(pool)
        async with scripted(ok) as server:
            pool = new_pool(most=5, most_idle=2)
            for taker in [ask(pool, server.url) for _ in range(5)]:
                await taker.over()
            await until(lambda: len(pool.connections) == 2)
            await close(pool)

    run(go())


def test_an_aborted_exchange_says_nothing_and_closes_its_connection(run: Run) -> None:
    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(b"begun"))

    async def go() -> None:
        pool = new_pool()
        async with scripted(slow) as server:
            taker = ask(pool, server.url)
            await until(lambda: taker.body)
            assert taker.exchange is not None
            taker.exchange.abort()
            taker.exchange.abort()
            await until(lambda: not server.open and not pool.connections)
            assert not taker.ended
            assert taker.fault is None
            # before there is a connection, too: it is kept for another
            taker = ask(pool, server.url)
            assert taker.exchange is not None
            taker.exchange.abort()
            await until(lambda: pool.connections)
            assert len(server.requests) == 1
            await close(pool)

    run(go())


def test_the_rest_of_a_response_is_read_for_its_connection_or_given_up(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "_SWEEP_S", 0.05)

    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(b"enough"))
        await writer.drain()
        await until(lambda: drained)
        if request.body == b"short":
            writer.write(chunk(b"more") + b"0\r\n\r\n")
        elif request.body == b"long":
            writer.write(chunk(b"x" * 200_000))

    async def go() -> None:
        for text, kept in ((b"short", True), (b"long", False), (b"silent", False)):
            drained.clear()
            pool = new_pool()
            async with scripted(reply) as server:
                taker = ask(pool, server.url, text)
                await until(lambda taker=taker: taker.body)
                assert taker.exchange is not None
                taker.exchange.drain()
                drained.append(1)
                await until(lambda pool=pool: not pool._draining)
                await until(lambda pool=pool: all(not one._exchange for one in pool.connections))
                assert taker.body == b"enough"
                if not kept:
                    await until(lambda pool=pool: not pool.connections)
                assert len(pool.connections) == kept
                await close(pool)

    drained: list[int] = []
    run(go())


def test_a_paused_response_waits_in_the_network(run: Run) -> None:
    async def much(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS)
        for _ in range(120):
            writer.write(chunk(b"x" * 100_000))
            await writer.drain()
            sent.append(1)
        writer.write(b"0\r\n\r\n")

    async def go() -> None:
        pool = new_pool()
        async with scripted(much) as server:
            taker = ask(pool, server.url)
            assert taker.exchange is not None
            taker.exchange.pause(True)
            await until(lambda: len(sent) > 2)
            for _ in range(100):
                await asyncio.sleep(0.001)
            assert len(taker.body) <= 1 << 20
            assert len(sent) < 120
            taker.exchange.pause(False)
            await taker.over()
            assert len(taker.body) == 12_000_000
            assert (await ask(pool, server.url).over()).ended  # the connection reads again
            assert server.connections == 1
            await close(pool)

    sent: list[int] = []
    run(go())


def test_a_server_that_does_not_read_is_noticed(run: Run) -> None:
    async def go() -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            pool = new_pool()
            taker = ask(pool, f"http://127.0.0.1:{deaf.getsockname()[1]}/", b"x" * (20 << 20))
            await until(lambda: taker.waited == [True, False, True])
            assert taker.exchange is not None
            taker.exchange.abort()
            await until(lambda: not pool.connections)
            await close(pool)

    run(go())


# --- what is refused


@pytest.mark.parametrize(
    "text",
    [
        b"SSH-2.0-nothing\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
        EVENTS + b"1;" + b"e" * 100_000,
        EVENTS + b"0\r\n" + b"X: " + b"x" * 100_000,
        EVENTS + b"zz\r\n",
    ],
)
def test_a_response_that_is_none_ends_the_exchange_and_the_connection(run: Run, text: bytes) -> None:
    async def odd(request: Request, writer: asyncio.StreamWriter) -> None:
        # In pieces, since a limit is looked at between them.
        for at in range(0, len(text), 16_000):
            writer.write(text[at : at + 16_000])
            await writer.drain()
            await asyncio.sleep(0.001)

    async def go() -> None:
        pool = new_pool()
        async with scripted(odd) as server:
            fault = (await ask(pool, server.url).over()).fault
            assert fault is not None
            assert fault.reason == "bad_answer"
            assert not fault.not_executed
            await until(lambda: not pool.connections)
            await close(pool)

    run(go())


def test_an_informational_response_is_none_yet(run: Run) -> None:
    async def early(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(response(200, b"{}"))

    async def go() -> None:
        pool = new_pool()
        async with scripted(early) as server:
            for _ in range(2):
                taker = await ask(pool, server.url).over()
                assert (taker.status, taker.body) == (200, b"{}")
                assert b"link" not in taker.headers
            assert server.connections == 1
            await close(pool)

    run(go())


def test_a_body_may_end_with_its_connection(run: Run) -> None:
    async def old(request: Request, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nto the end")
        return False

    async def cut(request: Request, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nto the")
        return False

    async def go() -> None:
        pool = new_pool()
        async with scripted(old) as server:
            taker = await ask(pool, server.url).over()
            assert (taker.body, taker.ended) == (b"to the end", 1)
        async with scripted(cut) as server:
            assert (await ask(pool, server.url).over()).fault
        await close(pool)

    run(go())


def test_a_server_that_answers_before_it_has_read_everything_is_not_asked_on_that_connection_again(run: Run) -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(response(413))
        await writer.drain()
        await until(lambda: done)
        writer.close()

    async def go() -> None:
        listener = await asyncio.start_server(hasty, "127.0.0.1", 0)
        pool = new_pool()
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        assert (await ask(pool, url, b"x" * (30 << 20)).over()).status == 413
        await until(lambda: not pool.connections)
        done.append(1)
        listener.close()
        await close(pool)

    done: list[int] = []
    run(go())


# --- connections that do not come about


def test_what_was_never_sent_was_not_executed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        pool = new_pool()
        fault = (await ask(pool, f"http://127.0.0.1:{port}/").over()).fault
        assert fault is not None
        assert (fault.reason, fault.not_executed) == ("refused", True)
        assert str(port) not in fault.text
        fault = (await ask(pool, "http://no-such-host.invalid/").over()).fault
        assert fault is not None
        assert fault.not_executed
        assert "no-such-host" not in fault.text
        await close(pool)

    run(go())


def test_connecting_has_a_deadline(run: Run) -> None:
    async def go() -> None:
        # TLS towards a server that never says anything: the connection is there, the handshake is not.
        with socket.create_server(("127.0.0.1", 0)) as mute:
            pool = new_pool(connect_timeout=0.05)
            taker = await ask(pool, f"https://127.0.0.1:{mute.getsockname()[1]}/").over()
            assert taker.fault is not None
            assert (taker.fault.reason, taker.fault.not_executed) == ("connect_timeout", True)
            assert taker.waited[0] is True
            await close(pool)

    run(go())


def test_a_server_that_closes_whatever_it_accepts_executed_nothing_or_is_not_known_to(run: Run) -> None:
    async def go() -> None:
        def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        listener = await asyncio.start_server(slam, "127.0.0.1", 0)
        pool = new_pool()
        for _ in range(20):
            taker = await ask(pool, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/").over()
            assert taker.fault is not None
        listener.close()
        await close(pool)

    run(go())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody trusts, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(secret)
    return folder / "cert.pem", folder / "key.pem"


def test_https_is_spoken_only_with_whom_the_certificate_proves(run: Run, certificate: tuple[Path, Path]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            await reader.readexactly(1)
            writer.write(response(200, b"secret"))

    async def go() -> None:
        ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ours.load_cert_chain(*certificate)
        listener = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=ours)
        port = listener.sockets[0].getsockname()[1]
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the listener's own, for failed handshakes
        pool = new_pool()
        fault = (await ask(pool, f"https://127.0.0.1:{port}/").over()).fault
        assert fault is not None
        assert (fault.reason, fault.not_executed) == ("tls", True)
        assert "not trusted" in fault.text
        await close(pool)
        pool = new_pool(trust=ssl.create_default_context(cafile=certificate[0]))
        for _ in range(2):
            assert (await ask(pool, f"https://127.0.0.1:{port}/").over()).body == b"secret"
        assert len(pool.connections) == 1
        fault = (await ask(pool, f"https://localhost:{port}/").over()).fault
        assert fault is not None
        assert fault.reason == "tls"
        await close(pool)
        listener.close()

    run(go())


def test_a_closed_pool_asks_nothing_any_more(run: Run) -> None:
    async def never(request: Request, writer: asyncio.StreamWriter) -> None:
        pass

    async def go() -> None:
        pool = new_pool()
        async with scripted(never) as server:
            taker = ask(pool, server.url)
            await until(lambda: server.requests)
            connecting = ask(pool, server.url)
            await close(pool)
            assert (await taker.over()).fault
            fault = (await connecting.over()).fault
            assert fault is not None
            assert fault.not_executed
            assert (await ask(pool, server.url).over()).fault

    run(go())


# --- one whole exchange


def test_fetch_gives_the_whole_response(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        assert request.path == "/hook?a=b"
        if request.method == "GET":
            writer.write(response(302, b"elsewhere", "Location: http://127.0.0.1:1/"))
        else:
            writer.write(response(201, request.body.upper(), f"X-Echo: {request.headers['x-a']}"))

    async def go() -> None:
        pool = new_pool()
        async with scripted(reply) as server:
            url = server.url.replace("/mcp", "/hook?a=b")
            found = await pool.fetch("POST", url, {"X-A": "1"}, b"hello")
            assert (found.status, found.body, found.headers[b"x-echo"]) == (201, b"HELLO", b"1")
            found = await pool.fetch("GET", url)
            assert (found.status, found.body) == (302, b"elsewhere")
            assert "content-length" not in server.requests[-1].headers
            assert server.connections == 1
            await close(pool)

    run(go())


def test_fetch_is_bounded_in_time_and_size(run: Run) -> None:
    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.method == "POST":
            writer.write(EVENTS)
            for _ in range(100):
                writer.write(chunk(b"x" * 1000))

    async def go() -> None:
        pool = new_pool()
        async with scripted(reply) as server:
            with pytest.raises(Fault) as caught:
                await pool.fetch("GET", server.url, timeout=0.05)
            assert caught.value.reason == "timeout"
            with pytest.raises(Fault) as caught:
                await pool.fetch("POST", server.url, limit=50_000)
            assert caught.value.reason == "answer_too_large"
            await until(lambda: not pool.connections)
            with pytest.raises(ValueError, match="no name of a header"):
                await pool.fetch("GET", server.url, {"a b": "c"})
            with pytest.raises(ValueError, match="starts with"):
                await pool.fetch("GET", "ftp://x/")
            await close(pool)

    run(go())


# --- addresses and headers


@pytest.mark.parametrize(
    ("url", "authority", "path", "origin"),
    [
        ("http://example.com", b"example.com", b"/", (False, "example.com", 80)),
        ("https://Example.com:443/a b?q=ü", b"example.com", b"/a%20b?q=%C3%BC", (True, "example.com", 443)),
        ("http://example.com:443/%20?x=%2F#f", b"example.com:443", b"/%20?x=%2F", (False, "example.com", 443)),
        ("http://[::1]:8/x", b"[::1]:8", b"/x", (False, "::1", 8)),
        ("wss://example.com/ws", b"example.com", b"/ws", (True, "example.com", 443)),
        ("http://bücher.example/", b"xn--bcher-kva.example", b"/", (False, "xn--bcher-kva.example", 80)),
    ],
)
def test_a_url_is_an_origin_and_a_path(url: str, authority: bytes, path: bytes, origin: Any) -> None:
    target = locate(url)
    assert (target.authority, target.path, target.origin) == (authority, path, origin)


@pytest.mark.parametrize(
    "url",
    ["ftp://x/", "x", "http://", "http:///x", "http://u:secret@x/", "http://x:99999/", "http://x:a/", "http://a<b/"],
)
def test_a_url_that_leads_nowhere_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        locate(url)
    assert "secret" not in str(caught.value)


def test_headers_go_out_as_they_are_or_not_at_all() -> None:
    assert header_lines({"X-A": " b ", "Y": "ü"}) == [b"X-A: b", b"Y: \xfc"]
    for bad in ({"a:": "x"}, {"": "x"}, {"a": "x\r\nb: c"}, {"a": "x\0"}, {"a": "x\n"}, {"ä": "x"}, {"a": "€"}):
        with pytest.raises(ValueError) as caught:
            header_lines(bad)
        assert "\n" not in str(caught.value)
