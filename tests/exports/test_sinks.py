# ruff: noqa: ASYNC240  a test may wait for its files
from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import shutil
import socket
import ssl
import stat
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from logbook import BEGAN, HOSTILE, Book, until
from receivers import TOKEN, Splunk, SyslogServer, certificate

from aegis_daemon.exports import cef, event, hec, jsonl, ocsf, otlp, syslog, witness_http
from aegis_daemon.exports.event import Event
from aegis_daemon.exports.exchange import Exchange
from aegis_daemon.exports.sink import Sink, Trouble

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


S = TypeVar("S", bound=Sink)
_kept: list[Sink] = []


def kept(sink: S) -> S:
    """It is closed when the test ends."""
    _kept.append(sink)
    return sink


@pytest.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    while _kept:
        await _kept.pop().close()


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "audit.db")


@pytest.fixture
def events(book: Book) -> list[Event]:
    book.of_every_kind(HOSTILE)
    return book.events()


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"))


# --- JSON lines -------------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_file_gets_whole_lines_that_only_its_owner_reads(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "out" / "log.jsonl"
    sink = jsonl.make(jsonl.Settings(str(path)), event.encode)
    await sink.send(events[:5])
    await sink.send(events[5:])
    await sink.close()
    assert [one["uid"] for one in lines_of(path)] == [one.uid for one in events]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("encode", [event.encode, ocsf.encode], ids=["aegis", "ocsf"])
async def test_a_file_takes_nothing_twice_and_loses_no_half_line(
    tmp_path: Path, events: list[Event], encode: Any
) -> None:
    path = tmp_path / "log.jsonl"
    whole = [encode(one) for one in events]
    for cut in range(0, len(whole[4]) + 1, 97):
        path.write_bytes(b"".join(line + b"\n" for line in whole[:4]) + whole[4][:cut])
        sink = jsonl.make(jsonl.Settings(str(path)), encode)
        await sink.send(events[2:9])
        await sink.close()
        assert path.read_bytes().splitlines() == whole[:9]


async def test_half_a_line_of_any_length_is_taken_away_and_arguments_are_no_uid(tmp_path: Path, book: Book) -> None:
    path = tmp_path / "log.jsonl"
    book.call(1)
    chain = book.events()[0].chain
    book.call(2, msgspec.json.encode({"uid": f"{chain}-999999", "metadata": {"uid": f"{chain}-999999"}}))
    book.call(3, b'{"fill":"' + b"x" * (5 << 20) + b'"}')
    book.call(4)
    whole = [ocsf.encode(one) for one in book.events()]
    for count, cut in ((0, 100), (0, len(whole[2])), (1, 4 << 20), (2, len(whole[2]) - 10), (2, 0), (3, 0)):
        path.write_bytes(b"".join(line + b"\n" for line in whole[:count]) + whole[2][:cut])
        sink = jsonl.make(jsonl.Settings(str(path)), ocsf.encode)
        await sink.send(book.events())
        await sink.close()
        assert path.read_bytes().splitlines() == whole


async def test_a_file_is_finished_when_it_is_large_or_the_day_is_over(tmp_path: Path, book: Book) -> None:
    path = tmp_path / "log.jsonl"
    for number in range(1, 40):
        book.call(number, b'{"fill":"' + b"x" * 60_000 + b'"}')
    sink = jsonl.make(jsonl.Settings(str(path), rotate_mb=1), event.encode)
    found = book.events()
    await sink.send(found[:30])
    await sink.send(found[30:])
    files = sorted(tmp_path.glob("log-*.jsonl"), key=lambda one: int(one.stem.rpartition("-")[2]))
    assert len(files) == 2
    assert all(file.stat().st_size <= 1_000_000 for file in [*files, path])
    told = [one["uid"] for file in [*files, path] for one in lines_of(file)]
    assert told == [one.uid for one in found]
    day = 86_400_000_000
    later = Event("x-999", "x", 999, "test", BEGAN + 3 * day, "", found[0].record)
    await sink.send([later])
    await sink.close()
    assert [one["uid"] for one in lines_of(path)] == ["x-999"]
    assert len(list(tmp_path.glob("log-*.jsonl"))) == 3


async def test_a_file_that_was_put_away_is_begun_anew(tmp_path: Path, events: list[Event]) -> None:
    path = tmp_path / "log.jsonl"
    sink = jsonl.make(jsonl.Settings(str(path)), event.encode)
    await sink.send(events[:3])
    os.rename(path, tmp_path / "old")
    await sink.send(events[3:5])
    await sink.close()
    assert [one["uid"] for one in lines_of(path)] == [one.uid for one in events[3:5]]


async def test_a_link_in_the_files_place_is_not_followed(tmp_path: Path, events: list[Event]) -> None:
    (tmp_path / "victim").write_text("precious\n")
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "victim")
    sink = jsonl.make(jsonl.Settings(str(tmp_path / "log.jsonl")), event.encode)
    with pytest.raises(Trouble):
        await sink.send(events)
    assert (tmp_path / "victim").read_text() == "precious\n"


# --- Splunk -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def splunk() -> Iterator[Splunk]:
    made = Splunk()
    yield made
    made.close()


@pytest.fixture
def careful() -> Iterator[Splunk]:
    made = Splunk(ack=True)
    yield made
    made.close()


def hec_of(splunk: Splunk, **more: Any) -> hec.Hec:
    facts: dict[str, Any] = {"url": splunk.url, "token": TOKEN, "timeout": 5.0, "ack": splunk.ack, "host": "h1"}
    return kept(hec.Hec(hec.Settings(**{**facts, **more}), ocsf.encode, sleep=lambda seconds: None))


async def test_splunk_gets_every_event_in_one_request(splunk: Splunk, events: list[Event]) -> None:
    sink = hec_of(splunk, index="main")
    await sink.send(events)
    await sink.send(events[:1])
    await sink.close()
    assert splunk.uids == [one.uid for one in [*events, events[0]]]
    first = splunk.indexed[0]
    assert (first["host"], first["source"], first["sourcetype"], first["index"]) == (
        "h1",
        "aegis",
        "aegis:ocsf",
        "main",
    )
    assert float(first["time"]) == events[0].ts / 1e6
    assert first["event"]["metadata"]["uid"] == events[0].uid
    assert [path for path, _ in splunk.requests] == ["/services/collector/event"] * 2
    assert splunk.requests[0][1]["Authorization"] == f"Splunk {TOKEN}"


async def test_with_ack_a_batch_counts_once_it_is_indexed(careful: Splunk, events: list[Event]) -> None:
    looks = iter([False, False, True])
    careful.indexes = lambda id: next(looks)
    sink = hec_of(careful)
    await sink.send(events)
    assert careful.uids == [one.uid for one in events]
    assert [path.partition("?")[0].rpartition("/")[2] for path, _ in careful.requests] == ["event", "ack", "ack", "ack"]
    assert len({headers["X-Splunk-Request-Channel"] for _, headers in careful.requests}) == 1


async def test_what_is_never_indexed_is_trouble(careful: Splunk, events: list[Event]) -> None:
    careful.indexes = lambda id: False
    clock = iter(range(0, 1000, 20))
    settings = hec.Settings(careful.url, TOKEN, ack=True)
    sink = kept(hec.Hec(settings, ocsf.encode, sleep=lambda seconds: None, clock=lambda: next(clock)))
    with pytest.raises(Trouble, match="not indexed after 60 s"):
        await sink.send(events)
    assert careful.indexed == []


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (503, 9, "it answered 503: it is busy"),
        (403, 4, "it answered 403: it does not know the token"),
        (400, 7, "may not write to that index"),
        (400, 10, "set `ack: true`"),
        (400, 14, "set `ack: false`"),
        (500, 8, "internal error"),
        (301, 0, "it answered 301"),
    ],
)
async def test_a_refusal_is_told_in_words(
    splunk: Splunk, events: list[Event], status: int, code: int, text: str
) -> None:
    splunk.trouble = lambda number: (status, code)
    with pytest.raises(Trouble, match=re.escape(text)):
        await hec_of(splunk).send(events)


async def test_no_trouble_ever_names_the_token(splunk: Splunk, events: list[Event]) -> None:
    told = []
    for token in (TOKEN, TOKEN + "\r\nX: y"):
        for trouble in ((403, 4), (400, 99), "hang up"):
            splunk.trouble = lambda number, trouble=trouble: trouble  # type: ignore[misc]
            for url in (splunk.url, "http://127.0.0.1:1", "https://" + splunk.url.partition("://")[2], "http://a..b"):
                try:
                    await hec_of(splunk, token=token, url=url).send(events)
                except Trouble as error:
                    told.append(str(error))
    assert len(told) == 24
    assert not [text for text in told if TOKEN[:8] in text]


async def test_a_request_that_is_too_large_is_cut_and_at_last_sent_without_bodies(splunk: Splunk, book: Book) -> None:
    splunk.most = 6000
    for number in range(1, 6):
        book.call(number, b'{"fill":"' + b"x" * (9000 if number == 3 else 900) + b'"}')
    found = book.events()
    await hec_of(splunk).send(found)
    assert splunk.uids == [one.uid for one in found]
    assert [one["event"]["metadata"].get("is_truncated") for one in splunk.indexed] == [None, None, True, None, None]


async def test_an_event_that_is_too_large_without_bodies_has_a_gap_event_in_its_place(
    splunk: Splunk, book: Book
) -> None:
    splunk.most = 6000
    for number in range(1, 4):
        book.denied(number, name="x" * (9000 if number == 2 else 9))
    found = book.events()
    sink = hec_of(splunk)
    await sink.send(found)
    chain = found[0].chain
    assert splunk.uids == [f"{chain}-1", f"{chain}-gap-2-2", f"{chain}-3"]
    assert sink.skipped == (found[1].bare(),)
    splunk.most = 10
    with pytest.raises(Trouble, match="413"):
        await sink.send(found)


async def test_words_of_a_collector_are_not_repeated(events: list[Event]) -> None:
    said = f'{{"code":999,"text":"bad {TOKEN}"}}'
    answer = f"HTTP/1.1 500 {TOKEN}\r\nContent-Length: {len(said)}\r\n\r\n{said}".encode()
    with answering(lambda told: told.sendall(answer)) as url, pytest.raises(Trouble) as caught:
        await kept(hec.make(hec.Settings(url, TOKEN, timeout=5.0), ocsf.encode)).send(events)
    assert str(caught.value) == "it answered 500"


@contextmanager
def answering(say: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that says something to whoever comes, whatever they want."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            while True:
                told, _ = server.accept()
                with told, suppress(ConnectionError):
                    told.recv(1 << 20)
                    say(told)
        except OSError:
            pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


def drip(head: bytes, piece: bytes, told: socket.socket) -> None:
    told.sendall(head)
    for _ in range(500):
        told.sendall(piece)
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("scheme", "head", "piece"),
    [
        ("http", b"HTTP/1.1 200 OK\r\n", b"X-a: 1\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", b" "),
        ("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("https", b"\x16\x03\x03\x40\x00", b"\0"),
    ],
    ids=["headers", "body", "continue", "handshake"],
)
async def test_a_receiver_that_drips_is_left_in_time(
    events: list[Event], scheme: str, head: bytes, piece: bytes
) -> None:
    with answering(partial(drip, head, piece)) as url:
        url = url.replace("http", scheme)
        to_splunk = kept(hec.make(hec.Settings(url, TOKEN, timeout=0.3), ocsf.encode))
        numbers = otlp.Gauge(otlp.Settings(url, timeout=0.3))
        witness = witness_http.make(witness_http.Settings(url, timeout=0.3))
        async with asyncio.timeout(6):  # they drip for ten
            for asked in (
                to_splunk.send(events), numbers.send(b'{"since":1,"now":2,"families":[]}'), witness.push("o", 1, "note")
            ):  # fmt: skip
                with pytest.raises(Trouble, match=r"it did not answer within 0\.3 s"):
                    await asked


async def test_a_time_that_is_over_before_tls_begins_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    wrap = ssl.SSLContext.wrap_socket

    def late(*args: Any, **kwargs: Any) -> ssl.SSLSocket:
        time.sleep(0.2)
        return wrap(*args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", late)
    with answering(partial(drip, b"\x16\x03\x03\x40\x00", b"\0")) as url, warnings.catch_warnings():
        warnings.simplefilter("error")
        talk = Exchange(url.replace("http", "https"), None, 0.1)
        with pytest.raises(Trouble, match="did not answer within"):
            talk.post("/", b"", {})
        gc.collect()


async def test_a_connection_that_died_meanwhile_is_made_again(splunk: Splunk, events: list[Event]) -> None:
    splunk.trouble = lambda number: "hang up" if number == 2 else None
    sink = hec_of(splunk)
    for one in events[:3]:
        await sink.send([one])
    assert splunk.uids == [one.uid for one in events[:3]]


async def test_a_certificate_is_looked_at(tls: tuple[Path, Path], events: list[Event]) -> None:
    made = Splunk(tls=tls)
    try:
        with pytest.raises(Trouble, match=r"certificate is not trusted.*`ca_file`"):
            await hec_of(made).send(events)
        assert made.indexed == []
        await hec_of(made, ca_file=str(tls[0])).send(events)
        assert made.uids == [one.uid for one in events]
        with pytest.raises(Trouble, match=r"`/nowhere\.pem` cannot be read"):
            await hec_of(made, ca_file="/nowhere.pem").send(events)
    finally:
        made.close()


async def test_a_collector_that_never_answers_is_left(events: list[Event]) -> None:
    deaf = socket.create_server(("127.0.0.1", 0))
    settings = hec.Settings(f"http://127.0.0.1:{deaf.getsockname()[1]}", TOKEN, timeout=0.2)
    with pytest.raises(Trouble, match="did not answer"):
        await kept(hec.make(settings, ocsf.encode)).send(events)
    deaf.close()


# --- syslog -----------------------------------------------------------------------------------------------------------

_RFC5424 = re.compile(
    rb"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z|-) ([!-~]{1,255}) aegis - ([!-~]{1,32}) "
    rb'\[meta sequenceId="(\d+)"\] (.*)',
    re.DOTALL,
)


def bodies(messages: list[bytes]) -> list[bytes]:
    """The MSG of each, all of which are as RFC 5424 has it."""
    found = [_RFC5424.fullmatch(message) for message in messages]
    assert all(found), messages
    return [one[6] for one in found if one is not None]


async def arrived(server: SyslogServer, count: int) -> list[bytes]:
    await until(lambda: len(server.messages) >= count, "arrived")
    return server.messages


@pytest.mark.parametrize("way", ["udp", "tcp", "tls"])
async def test_each_event_is_one_message(way: str, tls: tuple[Path, Path], events: list[Event]) -> None:
    server = SyslogServer(way, tls if way == "tls" else None)
    ca_file = str(tls[0]) if way == "tls" else None
    sink = syslog.make(syslog.Settings(server.address, host=HOSTILE, ca_file=ca_file), cef.encode)
    for at in range(0, len(events), 7):
        await sink.send(events[at : at + 7])
    assert bodies(await arrived(server, len(events))) == [cef.encode(one) for one in events]
    await sink.close()
    server.close()
    assert server.faults == []


async def test_a_message_over_the_limit_goes_without_bodies(book: Book) -> None:
    book.call(1, b'{"fill":"' + b"x" * 9000 + b'"}')
    sink = syslog.Syslog(syslog.Settings("udp://127.0.0.1:9", max_bytes=8192), ocsf.encode)
    message = sink.message(book.events()[0])
    assert len(message) < 8192
    assert json.loads(bodies([message])[0])["metadata"]["is_truncated"] is True


@pytest.mark.parametrize("way", ["udp", "unix", "tcp"])
async def test_an_event_that_no_message_can_hold_has_a_gap_event_in_its_place(
    way: str, tmp_path: Path, book: Book
) -> None:
    book.call(1)
    book.denied(2, name="x" * 900_000)
    book.call(3, b'{"fill":"' + b"x" * 300_000 + b'"}')
    book.denied(4, name="\U000e0041" * 2000)
    book.call(5)
    found = book.events()
    chain = found[0].chain
    server = None if way == "unix" else SyslogServer(way)
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "log"))
    address = server.address if server is not None else f"unix://{tmp_path}/log"
    sink = syslog.Syslog(syslog.Settings(address, max_bytes=1 << 20 if way == "unix" else 2048), event.encode)
    await sink.send(found)
    got = [heard.recv(1 << 18) for _ in range(5)] if server is None else await arrived(server, 5)
    uids = [json.loads(one)["uid"] for one in bodies(got)]
    gone = [found[1]] if way == "unix" else [found[1], found[3]]  # a socket of this machine takes more
    assert list(sink.skipped) == gone
    assert uids == [f"{chain}-gap-{one.seq}-{one.seq}" if one in gone else one.uid for one in found]
    await sink.close()
    heard.close()
    if server is not None:
        server.close()


async def test_what_a_broken_connection_may_have_lost_is_sent_again(events: list[Event]) -> None:
    server = SyslogServer("tcp")
    sink = syslog.make(syslog.Settings(server.address, timeout=5.0), cef.encode)
    tries = 0
    server.cut_after = 5000
    for at in range(0, len(events), 3):
        while True:
            tries += 1
            try:
                await sink.send(events[at : at + 3])
                break
            except Trouble:
                await asyncio.sleep(0.01)
    await sink.close()
    whole = [cef.encode(one) for one in events]
    await until(lambda: set(bodies(server.messages)) == set(whole), "whole")
    once = list(dict.fromkeys(bodies(server.messages)))
    assert once == whole
    assert server.faults == []
    server.close()


async def test_a_datagram_socket_of_this_machine_is_a_receiver_too(tmp_path: Path, events: list[Event]) -> None:
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(str(tmp_path / "log"))
    sink = syslog.make(syslog.Settings(f"unix://{tmp_path}/log"), cef.encode)
    await sink.send(events[:4])
    assert bodies([heard.recv(1 << 16) for _ in range(4)]) == [cef.encode(one) for one in events[:4]]
    heard.close()
    with pytest.raises(Trouble, match="nobody listens there"):
        await sink.send(events[:1])
    await sink.close()


@pytest.mark.parametrize("way", ["tcp", "tls", "udp"])
async def test_nobody_there_is_trouble(way: str, events: list[Event]) -> None:
    free = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if way == "udp" else socket.SOCK_STREAM)
    free.bind(("127.0.0.1", 0))
    sink = kept(syslog.make(syslog.Settings(f"{way}://127.0.0.1:{free.getsockname()[1]}", timeout=1.0), cef.encode))
    free.close()

    async def thrice() -> None:
        for _ in range(3):  # UDP learns of it with the next datagram
            await sink.send(events)
            await asyncio.sleep(0.05)

    with pytest.raises(Trouble):
        await thrice()


@pytest.mark.full
async def test_a_real_rsyslog_reads_what_is_sent(tmp_path: Path, events: list[Event]) -> None:
    program = shutil.which("rsyslogd")
    assert program is not None, "install rsyslog"
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    (tmp_path / "rsyslog.conf").write_text(
        'global(workDirectory="AT" maxMessageSize="64k" parser.escapeControlCharactersOnReceive="off")\n'
        'module(load="imtcp")\ninput(type="imtcp" address="127.0.0.1" port="PORT")\n'
        'template(name="whole" type="string" string="%app-name%\\t%msgid%\\t%structured-data%\\t%msg%\\n")\n'
        'action(type="omfile" file="AT/got" template="whole")\n'.replace("AT", str(tmp_path)).replace("PORT", str(port))
    )
    process = await asyncio.create_subprocess_exec(
        program, "-n", "-f", str(tmp_path / "rsyslog.conf"), "-i", str(tmp_path / "pid"),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        sink = syslog.make(syslog.Settings(f"tcp://127.0.0.1:{port}"), cef.encode)
        end = time.monotonic() + 20
        while True:
            try:
                await sink.send(events)
                break
            except Trouble:
                assert time.monotonic() < end
                await asyncio.sleep(0.1)
        got = tmp_path / "got"
        while not got.exists() or len(got.read_text().splitlines()) < len(events):
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        rows = [line.split("\t", 3) for line in got.read_text().split("\n")[:-1]]
        assert [row[3].strip() for row in rows] == [cef.encode(one).decode() for one in events]
        assert {row[0] for row in rows} == {"aegis"}
        assert [row[2] for row in rows] == [f'[meta sequenceId="{one.seq}"]' for one in events]
        await sink.close()
    finally:
        process.terminate()
        await process.wait()
