# ruff: noqa: ASYNC240  a test may wait for its files
from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from logbook import Book, call_id, until
from receivers import TOKEN, Splunk

from aegis_daemon.audit.record import Admin, Intent
from aegis_daemon.exports import event, hec, ocsf, ship
from aegis_daemon.exports.cursor import Cursors, Place
from aegis_daemon.exports.event import Event
from aegis_daemon.exports.job import Target
from aegis_daemon.exports.log import Log
from aegis_daemon.exports.one_export import Shipper
from aegis_daemon.exports.pace import Backoff, News
from aegis_daemon.exports.sink import Sink, Trouble

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "audit.db")


class Kept(Sink):
    """A receiver in memory; `fails` is asked before a batch is taken."""

    most = 7

    def __init__(self, fails: Callable[[], Exception | None] = lambda: None) -> None:
        self.batches: list[list[Event]] = []
        self.fails = fails
        self.closed = False

    @property
    def uids(self) -> list[str]:
        return [one.uid for batch in self.batches for one in batch]

    async def send(self, batch: list[Event]) -> None:
        error = self.fails()
        if error is not None:
            raise error
        self.batches.append(batch)

    async def close(self) -> None:
        self.closed = True


class Run:
    """One export of one log, whose pauses are noted and not made."""

    def __init__(self, book: Book, sink: Sink, **more: Any) -> None:
        self.said: list[str] = []
        self.pauses: list[float] = []
        self.news = News()
        self.cursors = Cursors(book.path.with_name("exports.db"))
        target = Target("siem", "kept", {}, **more)
        self.shipper = Shipper(
            target, Log(book.path, bodies=target.bodies), self.cursors, self.news, self.said.append, sink=sink,
            sleep=self._pause, random=lambda: 0.5,
        )  # fmt: skip

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def to_the_end(self) -> None:
        """All that there is, and then no more."""
        while await self.shipper.step():
            pass
        self.news.end()
        await self.shipper.run()
        self.cursors.close()


async def test_every_event_comes_once_and_in_order(book: Book) -> None:
    book.of_every_kind()
    sink = Kept()
    run = Run(book, sink)
    await run.to_the_end()
    assert sink.uids == book.uids
    assert max(map(len, sink.batches)) == 7
    assert run.said == [f"sink siem at {book.seq} lag 0 ok"]
    assert sink.closed


async def test_nothing_is_sent_twice_over_restarts(book: Book) -> None:
    sink = Kept()
    for number in range(1, 20):
        book.call(number)
        await Run(book, sink).to_the_end()
    assert sink.uids == book.uids


async def test_a_call_is_an_event_once_it_has_ended(book: Book) -> None:
    sink = Kept()
    book.call(1)
    book.add(Intent(call=call_id(2), agent="a", backend="b", method="tools/call", name="slow"), b'{"n":1}')
    book.call(3)
    await Run(book, sink).to_the_end()
    assert sink.uids == book.uids
    from aegis_daemon.audit.record import Outcome

    book.add(Outcome(call=call_id(2), status="success", duration_us=9), b"{}")
    await Run(book, sink).to_the_end()
    assert sink.uids == book.uids
    last = sink.batches[-1][-1].call
    assert last is not None
    assert (last.tool_name, last.arguments, last.exec_status) == ("slow", '{"n":1}', "success")


async def test_an_outage_loses_nothing_and_is_tried_again_later_and_later(book: Book) -> None:
    for number in range(1, 30):
        book.call(number)
    left = iter([Trouble("it is busy")] * 9 + [ConnectionError("x")] * 2)
    sink = Kept(lambda: next(left, None))
    run = Run(book, sink)
    running = asyncio.ensure_future(run.shipper.run())
    await until(lambda: len(sink.uids) == 29, "sent")
    assert sink.uids == book.uids
    assert run.pauses[:8] == [0.5, 1, 2, 4, 8, 16, 32, 60]
    assert run.said[0] == "sink siem at 0 lag 58 trouble it is busy"
    assert run.said[-1] == "sink siem at 58 lag 0 ok"
    book.call(30)
    run.news.heard(book.seq)
    await until(lambda: len(sink.uids) == 30, "sent")
    run.news.end()
    await running
    run.cursors.close()


async def test_what_is_recorded_while_the_last_batch_is_on_its_way_is_sent_before_the_end(book: Book) -> None:
    book.call(1)

    class Slow(Kept):
        async def send(self, batch: list[Event]) -> None:
            await super().send(batch)
            if len(self.batches) == 1:
                book.call(2)
                run.news.heard(book.seq)
                run.news.end()

    sink = Slow()
    run = Run(book, sink)
    await run.shipper.run()
    assert sink.uids == book.uids
    run.cursors.close()


async def test_pauses_are_random_and_as_long_as_the_receiver_asks() -> None:
    pauses = Backoff(random.Random(7).random)
    assert 0.25 <= pauses.pause(None) <= 0.75
    assert pauses.pause(120.0) == 120.0
    assert pauses.pause(1e9) == 3600.0
    pauses.well()
    assert pauses.pause(None) <= 0.75


async def test_a_receiver_that_fails_anywhere_gets_everything_in_order(book: Book) -> None:
    """Also where it had taken a batch when it failed: then some come twice, with the same uid."""
    chance = random.Random(11)
    book.of_every_kind()
    for number in range(10, 90):
        book.call(number)

    class Shaky(Kept):
        async def send(self, batch: list[Event]) -> None:
            if chance.random() < 0.3:
                raise Trouble("before")
            await super().send(batch)
            if chance.random() < 0.3:
                raise Trouble("after")

    sink = Shaky()
    run = Run(book, sink)
    for _ in range(1000):
        try:
            if not await run.shipper.step():
                break
        except Trouble:
            if chance.random() < 0.5:  # and the process dies of it
                run.cursors.close()
                run = Run(book, sink)
    run.cursors.close()
    assert len(sink.uids) > len(set(sink.uids))
    assert list(dict.fromkeys(sink.uids)) == book.uids


async def test_a_new_export_may_begin_with_what_comes(book: Book) -> None:
    book.call(1)
    sink = Kept()
    run = Run(book, sink, begin="now")
    assert not await run.shipper.step()
    book.call(2)
    await run.to_the_end()
    assert sink.uids == book.uids[1:]
    book.call(3)
    await Run(book, sink, begin="now").to_the_end()
    assert sink.uids == book.uids[1:]


async def test_without_bodies_nothing_of_them_leaves(book: Book) -> None:
    book.call(1, b'{"canary":"xyzzy"}', result=b'{"canary":"xyzzy"}')
    sink = Kept()
    await Run(book, sink, bodies=False).to_the_end()
    assert b"xyzzy" not in event.encode(sink.batches[0][0])
    assert b"xyzzy" not in ocsf.encode(sink.batches[0][0])


async def test_what_was_deleted_before_it_was_sent_is_said_and_not_waited_for(book: Book) -> None:
    sink = Kept()
    for number in range(1, 11):
        book.call(number)
    run = Run(book, sink)
    await run.shipper.step()
    sent = run.cursors.place("siem")
    assert sent is not None
    uids = book.uids
    assert sent.seq == 14
    book.db.execute("DELETE FROM records WHERE seq BETWEEN 2 AND 17")
    await run.to_the_end()
    assert sink.uids == [*uids[:7], f"{sent.chain}-gap-15-17", *uids[8:]]
    assert "gap siem 15 17 they were deleted before this export had them" in run.said


async def test_what_a_receiver_can_never_take_is_said_once_and_makes_no_more_of_it(book: Book) -> None:
    book.denied(1)
    book.add(Admin(action="export_gap", detail="x"))
    sink = Kept()
    tries = 0

    async def send(batch: list[Event]) -> None:
        nonlocal tries
        tries += 1
        sink.skipped += tuple(batch)
        if tries == 1:
            raise Trouble("not now")

    sink.send = send  # type: ignore[method-assign]
    run = Run(book, sink)
    with pytest.raises(Trouble):
        await run.shipper.step()
    await run.to_the_end()
    assert [line for line in run.said if line.startswith("gap")] == ["gap siem 1 1 it is too long for the receiver"]


async def test_events_with_long_names_make_small_batches(book: Book) -> None:
    for number in range(1, 31):
        book.denied(number, name="x" * 100_000)
    page = Log(book.path).page(0, 500, 1 << 20)
    assert 0 < len(page.events) < 15
    assert page.full


async def test_a_log_that_was_replaced_is_begun_anew_and_that_is_said(book: Book, tmp_path: Path) -> None:
    sink = Kept()
    book.call(1)
    await Run(book, sink, keep=True).to_the_end()
    book.db.close()
    for path in tmp_path.glob("audit.db*"):
        path.unlink()
    other = Book(book.path)
    other.start()
    other.call(1)
    run = Run(other, sink, keep=True)
    await run.to_the_end()
    assert sink.uids[1:] == other.uids
    assert run.said[0] == "gap siem 3 3 the log was replaced by another one"
    cursors = Cursors(tmp_path / "exports.db")
    kept = cursors._db.execute("SELECT count(*), min(seq) FROM cursors WHERE keep = 1").fetchone()
    assert kept == (1, 3), "nothing of the old log holds a purge up"
    cursors.close()


async def test_a_log_that_is_behind_what_was_sent_is_waited_for(book: Book) -> None:
    book.call(1)
    sink = Kept()
    run = Run(book, sink)
    await run.shipper.step()
    book.db.execute("DELETE FROM records WHERE seq > 1")
    with pytest.raises(OSError, match="filled from the journal again"):
        await run.shipper.step()
    run.cursors.close()


async def test_an_unreadable_record_is_an_event_and_stops_nothing(book: Book) -> None:
    for number in (1, 2, 3):
        book.call(number)
    book.db.execute("UPDATE records SET record = 'nonsense' WHERE seq = 4")
    sink = Kept()
    await Run(book, sink).to_the_end()
    assert [one.kind for batch in sink.batches for one in batch] == ["call", "unreadable", "call"]


async def test_a_batch_is_small_in_bytes_too(book: Book) -> None:
    for number in range(1, 8):
        book.call(number, b'{"fill":"' + b"x" * 400_000 + b'"}')
    sink = Kept()
    await Run(book, sink).to_the_end()
    assert [len(batch) for batch in sink.batches] == [3, 3, 1]


async def test_a_receiver_that_likes_large_batches_waits_for_them(book: Book) -> None:
    sink = Kept()
    sink.linger_s = 30.0
    book.call(1)
    run = Run(book, sink)
    running = asyncio.ensure_future(run.shipper.run())
    await asyncio.sleep(0.05)
    assert sink.batches == []
    for number in range(2, 9):
        book.call(number)
    run.news.heard(book.seq)
    await until(lambda: sink.batches, "sent")
    assert len(sink.batches[0]) == 7
    run.news.end()
    await running
    assert sink.uids == book.uids
    run.cursors.close()


async def test_where_an_export_is_outlives_everything(tmp_path: Path) -> None:
    path = tmp_path / "exports.db"
    first = Cursors(path)
    assert first.place("a") is None
    first.move("a", Place("c", 5, "h"), keep=True)
    first.move("b", Place("c", 9, "h"), keep=False)
    first.witness("w", "o", 10)
    again = Cursors(path)
    assert again.place("a") == Place("c", 5, "h")
    assert again.witnessed("w", "o") == 10
    assert again._db.execute("SELECT min(seq) FROM cursors WHERE keep = 1").fetchone() == (5,)
    again.settle({"b": True})
    assert again._db.execute("SELECT min(seq) FROM cursors WHERE keep = 1").fetchone() == (9,)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first.close()
    again.close()


# --- a collector that is away -----------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["plain", "ack"])
def splunk(request: pytest.FixtureRequest) -> Iterator[Splunk]:
    made = Splunk(ack=request.param)
    yield made
    made.close()


async def test_an_outage_of_the_collector_loses_and_reorders_nothing(book: Book, splunk: Splunk) -> None:
    """Thirty seconds of every kind of trouble, as the clock of the pauses has it."""
    run: Run
    book.of_every_kind()
    kinds: list[Any] = [(503, 9), "hang up", "take and hang up", (500, 8), (403, 1)]

    def trouble(number: int) -> Any:
        return kinds[number % len(kinds)] if sum(run.pauses) < 30 else None

    splunk.trouble = trouble
    settings = hec.Settings(splunk.url, TOKEN, ack=splunk.ack, timeout=5.0)
    run = Run(book, hec.Hec(settings, ocsf.encode, sleep=lambda seconds: None))
    run.shipper.sink.most = 11  # type: ignore[misc]
    running = asyncio.ensure_future(run.shipper.run())
    await until(lambda: run.said and run.said[-1] == f"sink siem at {book.seq} lag 0 ok", "well")
    run.news.end()
    await running
    run.cursors.close()
    assert list(dict.fromkeys(splunk.uids)) == book.uids
    assert sum(run.pauses) >= 30


# --- the process ------------------------------------------------------------------------------------------------------


class Process:
    """The real one."""

    def __init__(self, book: Book, exports: list[dict[str, Any]]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "aegis_daemon.exports.ship"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            bufsize=0,
        )  # fmt: skip
        job = {"store": str(book.path), "cursors": str(book.path.with_name("exports.db")), "exports": exports}
        self.say(json.dumps(job))
        self.say(f"news {book.seq}")
        self.said: list[str] = []
        self._rest = b""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def hear(self) -> list[str]:
        assert self.process.stdout is not None
        while data := self.process.stdout.read(65536):
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.said += [line.decode() for line in lines]
        return self.said

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        code = self.process.wait(20)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        return code


@asynccontextmanager
async def shipping(book: Book, *exports: dict[str, Any]) -> AsyncIterator[Process]:
    process = Process(book, list(exports))
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.kill()


def to_file(path: Path, **more: Any) -> dict[str, Any]:
    return {"name": "file", "type": "jsonl", "settings": {"path": str(path)}, "format": "aegis", **more}


async def test_the_process_serves_every_export_and_ends_with_its_input(
    book: Book, tmp_path: Path, splunk: Splunk
) -> None:
    book.of_every_kind()
    to_splunk = {"name": "siem", "type": "hec", "settings": {"url": splunk.url, "token": TOKEN, "ack": splunk.ack}}
    async with shipping(book, to_file(tmp_path / "out.jsonl"), to_splunk) as process:
        await until(lambda: f"sink siem at {book.seq} lag 0 ok" in process.hear(), "sent")
        command = Path(f"/proc/{process.process.pid}")
        if command.exists():
            told = command.joinpath("cmdline").read_bytes() + command.joinpath("environ").read_bytes()
            assert TOKEN.encode() not in told
        for number in range(20, 25):
            book.call(number)
        process.say(f"news {book.seq}")
        process.say("test siem 1")
        process.say("test nobody 2")
        await until(
            lambda: {"tested 1 ok", "tested 2 trouble there is no such export"} <= set(process.hear()), "tested"
        )
        await until(lambda: f"sink siem at {book.seq} lag 0 ok" in process.hear(), "sent")
        book.call(25)
        process.say(f"news {book.seq}")
        assert process.process.stdin is not None
        process.process.stdin.close()
        assert process.wait() == 0
    assert [json.loads(line)["uid"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == book.uids
    assert [uid for uid in splunk.uids if "-test-" not in uid] == book.uids


async def test_a_line_without_end_is_passed_over_and_told(book: Book, tmp_path: Path) -> None:
    book.call(1)
    async with shipping(book, to_file(tmp_path / "out.jsonl")) as process:
        await until(lambda: "sink file at 2 lag 0 ok" in process.hear(), "sent")
        await asyncio.to_thread(process.say, "metrics " + "x" * (40 << 20) + " news 99")
        book.call(2)
        process.say(f"news {book.seq}")
        await until(lambda: "sink file at 4 lag 0 ok" in process.hear(), "sent")
        assert [line for line in process.said if line.startswith("metrics")] == [
            "metrics trouble they have more than 16 MiB; set `telemetry.tools` lower"
        ]
        assert not any("lag 95" in line for line in process.said), "nor is its end a line"


async def test_an_export_that_cannot_be_made_says_so_and_the_others_work(book: Book, tmp_path: Path) -> None:
    book.call(1)
    (tmp_path / "dir").mkdir()
    broken = to_file(tmp_path / "dir", name="broken")
    async with shipping(book, broken, to_file(tmp_path / "out.jsonl")) as process:
        await until(lambda: "sink file at 2 lag 0 ok" in process.hear(), "sent")
        await until(lambda: any("sink broken at 0 lag 2 trouble" in line for line in process.hear()), "said")


async def test_killed_at_any_moment_nothing_is_missing(book: Book, tmp_path: Path, splunk: Splunk) -> None:
    chance = random.Random(3)
    number = 0
    to_splunk = {
        "name": "siem", "type": "hec", "settings": {"url": splunk.url, "token": TOKEN, "ack": splunk.ack, "timeout": 5.0},
    }  # fmt: skip
    for _ in range(4):
        for _ in range(150):
            number += 1
            book.call(number)
        async with shipping(book, to_file(tmp_path / "out.jsonl"), to_splunk) as process:
            before = len(splunk.requests)
            await until(lambda before=before: len(splunk.requests) > before, "begun")  # type: ignore[misc]
            await asyncio.sleep(chance.random() * 0.05)
            process.kill()
    async with shipping(book, to_file(tmp_path / "out.jsonl"), to_splunk) as process:
        await until(
            lambda: {f"sink {name} at {book.seq} lag 0 ok" for name in ("file", "siem")} <= set(process.hear()), "sent"
        )
    assert [json.loads(line)["uid"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == book.uids
    assert list(dict.fromkeys(splunk.uids)) == book.uids


async def test_a_process_without_news_does_nothing(book: Book, tmp_path: Path) -> None:
    book.call(1)
    async with shipping(book, to_file(tmp_path / "out.jsonl")) as process:
        await until(lambda: "sink file at 2 lag 0 ok" in process.hear(), "sent")
        stat_path = Path(f"/proc/{process.process.pid}/status")
        if not stat_path.exists():
            return

        def switches() -> int:
            lines = stat_path.read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

        before = switches()
        await asyncio.sleep(0.5)
        assert switches() - before <= 2


def test_a_daemons_exports_weigh_little(tmp_path: Path) -> None:
    script = "import sys; import aegis_daemon.exports.ship; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    heavy = {"pydantic", "typer", "rich", "mcp", "starlette", "http.client", "cryptography", "sqlite_utils", "uvloop"}
    assert not heavy & set(done.stdout.split())


def test_what_each_export_needs_is_in_the_tables() -> None:
    assert set(ship.FORMATS) == {"ocsf", "aegis", "cef"}
    for format in ship.FORMATS:
        assert callable(ship.encoder(format))


async def test_an_admin_record_of_a_gap_is_an_event_too(book: Book) -> None:
    book.add(Admin(action="export_gap", by="aegis", detail="the export `x` never gets records 1 to 2"))
    sink = Kept()
    await Run(book, sink).to_the_end()
    assert ocsf.ocsf(sink.batches[0][0])["class_uid"] == 3004
    assert sqlite3.sqlite_version
