from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import until

from aegis_daemon.loop import descriptor as under_test
from aegis_daemon.loop.descriptor import FrameWriter, LineReader, Outbox

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A narrow pipe: (end to read, end to write), neither blocks."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    if sys.platform == "linux":
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass  # the test closed it


def taken(fd: int, most: int = 1 << 20) -> bytes:
    try:
        return os.read(fd, most)
    except BlockingIOError:
        return b""


class Peer:
    """A writer and all that it tells."""

    def __init__(self, fd: int, high: int = 1 << 18) -> None:
        self.outbox = Outbox(asyncio.get_running_loop())
        self.writer = FrameWriter(asyncio.get_running_loop(), self.outbox, fd, high)
        self.sent = 0
        self.full: list[bool] = []
        self.broken = 0
        self.torn = False
        self.writer.on_sent = self._sent
        self.writer.on_full = self.full.append
        self.writer.on_broken = self._broken
        self.writer.before = self._torn

    def _sent(self, count: int) -> None:
        assert count > 0
        self.sent += count

    def _broken(self) -> None:
        self.broken += 1

    def _torn(self, torn: bool) -> None:
        self.torn = torn


# --- writing ----------------------------------------------------------------------------------------------------------


def test_frames_leave_whole_and_in_order_in_the_next_turn(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        peer = Peer(pipe[1])
        for frame in (b"a", b"", b"ccc"):
            peer.writer.send(frame)
        assert taken(pipe[0]) == b""
        assert peer.writer.waiting == 7
        await asyncio.sleep(0)
        assert taken(pipe[0]) == b"a\n\nccc\n"
        assert (peer.sent, peer.writer.waiting, peer.torn) == (3, 0, False)

    run(body())


def test_whoever_handles_an_event_may_flush_at_once(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        peer = Peer(pipe[1])
        peer.writer.send(b"a")
        peer.writer.send(b"b")
        peer.outbox.flush()
        assert taken(pipe[0]) == b"a\nb\n"
        await asyncio.sleep(0)
        assert taken(pipe[0]) == b""
        peer.outbox.flush()
        assert peer.sent == 2

    run(body())


def test_what_is_sent_because_something_was_sent_leaves_too(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        peer = Peer(pipe[1])
        peer.writer.on_sent = lambda count: peer.writer.send(b"more") if count == 2 else None
        peer.writer.send(b"a")
        peer.writer.send(b"b")
        peer.outbox.flush()
        assert taken(pipe[0]) == b"a\nb\nmore\n"

    run(body())


@pytest.mark.parametrize("sizes", [[50_000], [1, 50_000, 1], [3_000] * 20, [10] * 2000, [200_000, 5, 70_000]])
def test_a_slow_reader_gets_every_byte_in_order_and_the_mark_tells_a_torn_frame(
    run: Run, pipe: tuple[int, int], sizes: list[int]
) -> None:
    frames = [bytes([65 + at % 26]) * size for at, size in enumerate(sizes)]

    async def body() -> None:
        peer = Peer(pipe[1])
        for frame in frames:
            peer.writer.send(frame)
        peer.outbox.flush()
        whole = b"".join(frame + b"\n" for frame in frames)
        got = b""
        while len(got) < len(whole):
            got += taken(pipe[0], 1000)
            await asyncio.sleep(0)
            # Everything that was given to the kernel, read already or not.
            out = len(whole) - peer.writer.waiting
            assert peer.sent == whole[:out].count(b"\n")
            assert peer.torn or out == 0 or whole[out - 1 : out] == b"\n"
        assert got == whole
        assert (peer.sent, peer.writer.waiting, peer.torn) == (len(frames), 0, False)

    run(body())


def test_the_mark_is_set_before_a_byte_leaves(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        peer = Peer(pipe[1])
        seen = []

        def mark(torn: bool) -> None:
            seen.append((torn, taken(pipe[0])))

        peer.writer.before = mark
        peer.writer.send(b"a")
        peer.writer.send(b"b")
        peer.outbox.flush()
        assert seen == [(True, b""), (False, b"a\nb\n")]

    run(body())


def test_frames_of_one_event_are_one_write_and_large_ones_are_not_copied(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        written: list[list[bytes]] = []

        def write(fd: int, chunks: Sequence[bytes | memoryview]) -> int:
            written.append([bytes(chunk) for chunk in chunks])
            large.extend(chunk for chunk in chunks if len(chunk) > 1000)
            return sum(map(len, chunks))

        large: list[bytes | memoryview] = []

        writer = FrameWriter(asyncio.get_running_loop(), outbox, pipe[1], write=write)
        for frame in (b"a", b"bb"):
            writer.send(frame)
        outbox.flush()
        assert written == [[b"a\n", b"bb\n"]]
        written.clear()
        frames = (b"x" * 200_000, b"y" * 100, b"z" * 100)
        sent: list[int] = []
        writer.on_sent = sent.append
        for frame in frames:
            writer.send(frame)
        outbox.flush()
        assert [b"".join(one) for one in written] == [b"".join(frame + b"\n" for frame in frames)]
        assert large[0] is frames[0]
        assert sent == [3]
        assert writer.waiting == 0
        written.clear()
        for _ in range(1000):
            writer.send(b"a")
        outbox.flush()
        assert b"".join(map(b"".join, written)) == b"a\n" * 1000
        assert max(map(len, written)) <= 256

    run(body())


def test_a_turn_of_the_loop_is_asked_for_once_and_not_while_an_event_is_handled(pipe: tuple[int, int]) -> None:
    turns: list[Callable[[], None]] = []

    class Loop:
        def call_soon(self, call: Callable[[], None]) -> None:
            turns.append(call)

    loop: Any = Loop()
    outbox = Outbox(loop)
    writers = [FrameWriter(loop, outbox, pipe[1]) for _ in range(2)]
    for _ in range(2):
        outbox.begin()
        for writer in writers:
            writer.send(b"a")
        assert turns == []
        outbox.flush()
        assert taken(pipe[0]) == b"a\na\n"
    for _ in range(2):
        for writer in writers:
            writer.send(b"b")
            writer.send(b"b")
        assert len(turns) == 1
        turns.pop()()
        assert taken(pipe[0]) == b"b\nb\nb\nb\n"
        outbox.flush()
        assert taken(pipe[0]) == b""


def test_a_full_peer_is_told_once_and_again_when_it_has_read(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        peer = Peer(pipe[1], high=10_000)
        peer.writer.send(b"x" * 9_000)
        peer.outbox.flush()
        assert peer.full == []
        for _ in range(4):
            peer.writer.send(b"x" * 9_000)
        assert peer.full == [True], "told at once, though nothing can be written"
        await until(lambda: taken(pipe[0]) is None or not peer.writer.waiting)
        assert peer.full == [True, False]
        assert peer.sent == 5

    run(body())


def test_frames_for_a_peer_that_went_away_are_dropped(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        peer = Peer(pipe[1])
        peer.writer.send(b"a")
        os.close(pipe[0])
        peer.outbox.flush()
        assert (peer.broken, peer.writer.broken, peer.writer.waiting) == (1, True, 0)
        peer.writer.send(b"b")
        peer.outbox.flush()
        peer.writer.flush()
        assert (peer.broken, peer.sent) == (1, 0)

    run(body())


def test_a_peer_that_goes_away_in_the_middle_of_a_frame_is_noticed(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        peer = Peer(pipe[1])
        peer.writer.send(b"x" * 100_000)
        peer.outbox.flush()
        assert peer.torn
        os.close(pipe[0])
        await until(lambda: peer.broken)
        assert peer.torn, "the mark stays: the frame was cut"
        assert not asyncio.get_running_loop().remove_writer(pipe[1])
        assert peer.sent == 0

    run(body())


def test_a_closed_writer_sends_nothing_and_watches_nothing(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        peer = Peer(pipe[1])
        peer.writer.send(b"x" * 100_000)
        peer.outbox.flush()
        peer.writer.send(b"y")
        peer.writer.close()
        assert peer.writer.waiting == 0
        peer.writer.close()
        await until(lambda: not taken(pipe[0]))
        peer.writer.send(b"z")
        peer.outbox.flush()
        assert taken(pipe[0]) == b""
        assert peer.broken == 0
        assert not asyncio.get_running_loop().remove_writer(pipe[1])

    run(body())


def test_writers_of_one_outbox_do_not_wait_for_each_other(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        stuck = Peer(pipe[1])
        ends = os.pipe()
        os.set_blocking(ends[0], False)
        other = FrameWriter(asyncio.get_running_loop(), stuck.outbox, ends[1])
        stuck.writer.send(b"x" * 100_000)
        other.send(b"free")
        stuck.outbox.flush()
        assert taken(ends[0]) == b"free\n"
        stuck.writer.close()
        for end in ends:
            os.close(end)

    run(body())


# --- reading ----------------------------------------------------------------------------------------------------------

Heard = list[tuple[str, Any]]


def reader(limit: int = 20, fd: int = -1, chunk: int = 1 << 16) -> tuple[LineReader, Heard]:
    loop = asyncio.get_running_loop() if fd >= 0 else asyncio.new_event_loop()
    made = LineReader(loop, Outbox(loop), fd, limit, chunk=chunk)
    heard: Heard = []
    made.on_lines = lambda lines: heard.extend(("line", line) for line in lines)
    made.on_long = lambda head, tail: heard.append(("long", (head, tail)))
    made.on_end = lambda: heard.append(("end", None))
    if fd < 0:
        loop.close()
    return made, heard


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\n"], [b"a"]),
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a\r\n", b"b\r\n"], [b"a", b"b"]),
        ([b"a", b"b\n"], [b"ab"]),
        ([b"a\nb"], [b"a"]),
        ([b"a\nb", b"c\nd", b"\n"], [b"a", b"bc", b"d"]),
        ([b"\n\r\n\n", b"a\n"], [b"a"]),
        ([b"a\r", b"\n"], [b"a"]),
        ([b"a\rb\n"], [b"a\rb"]),
        ([b"x" * 20 + b"\n"], [b"x" * 20]),
        ([b"x" * 20 + b"\r\n"], [b"x" * 20]),
        ([b"x" * 20, b"\n"], [b"x" * 20]),
        ([b"x" * 20 + b"\r", b"\n"], [b"x" * 20]),
        ([b"x" * 22, b"xx", b"\na", b"b\n"], ["long", b"ab"]),
        ([b"x" * 22, b"\n", b"ab\n"], ["long", b"ab"]),
        ([b"x" * 22 + b"\na\n"], ["long", b"a"]),
        (["a\u2028b\u0085c\n".encode()], ["a\u2028b\u0085c".encode()]),
    ],
)
def test_lines_end_at_newlines_and_nowhere_else(chunks: list[bytes], lines: list[bytes]) -> None:
    made, heard = reader()
    for chunk in chunks:
        made.feed(chunk)
    assert [line if what == "line" else what for what, line in heard] == lines


@given(st.binary(max_size=120).map(lambda text: text.replace(b"\x00", b"\n").replace(b"\x01", b"\r\n")), st.data())
def test_how_the_bytes_are_cut_makes_no_difference(text: bytes, data: st.DataObject) -> None:
    limit = 10
    made, heard = reader(limit)
    rest = text
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        made.feed(rest[:cut])
        rest = rest[cut:]
    # Of a line over the limit at least its beginning, and its end, are told.
    heard = [
        (what, said[1]) if what == "long" and said[1].startswith(said[0]) else (what, said) for what, said in heard
    ]
    expected: Heard = []
    for line in text.split(b"\n")[:-1]:
        if len(line) > limit + 1:
            expected.append(("long", line))
        elif line.strip(b"\r") or len(line) > 1:
            expected.append(("line", line.removesuffix(b"\r")))
    assert heard == expected


@pytest.mark.parametrize("piece", [1, 7, 4096, 5000, 100_000])
def test_a_line_over_the_limit_is_dropped_and_known_by_its_ends(piece: int) -> None:
    long = b"".join(b"%05d" % number for number in range(8000))
    text = b"before\n" + long + b"\nafter\n"
    made, heard = reader(10_000)
    for at in range(0, len(text), piece):
        made.feed(text[at : at + piece])
    assert heard == [("line", b"before"), ("long", (long[:4096], long[-4096:])), ("line", b"after")]


def test_a_line_that_never_ends_takes_no_more_memory_than_the_limit() -> None:
    made, heard = reader(10_000)
    for _ in range(500):
        made.feed(b"x" * 9_999)
        assert len(made._buffer) <= 10_000 + 9_999 + 1
    assert heard == []


def test_it_reads_what_comes_until_the_end(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        made, heard = reader(1 << 20, pipe[0])
        made.resume()
        made.resume()
        big = b"y" * 300_000
        os.set_blocking(pipe[1], True)
        writing = asyncio.get_running_loop().run_in_executor(None, _write, pipe[1], b"a\nb\n" + big + b"\nlast\nhalf")
        await writing
        await until(lambda: heard[-1:] == [("end", None)])
        assert heard == [("line", b"a"), ("line", b"b"), ("line", big), ("line", b"last"), ("end", None)]
        made.close()
        made.close()
        made.resume()

    run(body())


def _write(fd: int, text: bytes) -> None:
    while text:
        text = text[os.write(fd, text) :]
    os.close(fd)


def test_what_comes_while_it_pauses_stays_in_the_kernel(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        made, heard = reader(20, pipe[0])
        made.resume()
        made.pause()
        made.pause()
        os.write(pipe[1], b"a\n")
        await asyncio.sleep(0.01)
        assert heard == []
        assert select.select([pipe[0]], [], [], 0)[0]
        made.resume()
        await until(lambda: heard)
        assert heard == [("line", b"a")]
        made.close()

    run(body())


def test_what_the_lines_caused_is_flushed_at_once(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        made, _ = reader(20, pipe[0])
        ends = os.pipe()
        os.set_blocking(ends[0], False)
        writer = FrameWriter(asyncio.get_running_loop(), made._outbox, ends[1])
        answered = []

        def answer(lines: list[bytes]) -> None:
            writer.send(b"to " + lines[0])
            answered.append(asyncio.get_running_loop().time())

        made.on_lines = answer
        made.resume()
        os.write(pipe[1], b"a\n")
        await until(lambda: answered)
        assert taken(ends[0]) == b"to a\n"
        made.close()
        for end in ends:
            os.close(end)

    run(body())


@pytest.mark.parametrize("kernel", ["knows RWF_NOWAIT", "does not"])
def test_a_descriptor_that_a_stranger_made_blocking_stops_nobody(
    pipe: tuple[int, int], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "does not":
        monkeypatch.setattr(under_test, "_NOWAIT", 0)
    signal.alarm(10)  # a call that blocks ends the test run, not the patience of whoever watches it
    try:
        for end in pipe:
            os.set_blocking(end, True)
        with pytest.raises(BlockingIOError):
            under_test.read_now(pipe[0], memoryview(bytearray(10)))
        for end in pipe:
            os.set_blocking(end, True)
        written = under_test.write_now(pipe[1], [b"x" * (1 << 19)] * 2)
        assert 0 < written < 1 << 20
        os.set_blocking(pipe[1], True)
        with pytest.raises(BlockingIOError):
            under_test.write_now(pipe[1], [b"x"])
        assert under_test.read_now(pipe[0], memoryview(bytearray(10))) == 10
    finally:
        signal.alarm(0)


def test_a_fault_of_one_writer_keeps_no_frames_of_another(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        faulty, sound = Peer(pipe[1]), Peer(pipe[1])
        sound.outbox = sound.writer._outbox = faulty.outbox

        def fail(count: int) -> None:
            raise RuntimeError

        faulty.writer.on_sent = fail
        faulty.writer.send(b"a")
        sound.writer.send(b"b")
        faulty.outbox.flush()
        assert taken(pipe[0]) == b"a\nb\n"

    run(body())


def test_room_for_large_frames_is_given_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        pipe = os.pipe()
        sizes: list[int] = []
        real = os.read
        monkeypatch.setattr(os, "read", lambda fd, size: sizes.append(size) or real(fd, size))
        reader = LineReader(asyncio.get_running_loop(), Outbox(asyncio.get_running_loop()), pipe[0], 1 << 20)
        for data in (b"x" * (1 << 16), b"x" * (1 << 16), b"\n", b"a\n"):
            os.write(pipe[1], data)
            reader._ready()
        assert sizes == [1 << 16, 1 << 20, 1 << 20, 1 << 16]
        for end in pipe:
            os.close(end)

    run(body())


@pytest.mark.parametrize("left", [1, 0])
def test_a_large_frame_is_half_written_until_its_newline_is_out(run: Run, pipe: tuple[int, int], left: int) -> None:
    async def body() -> None:
        outbox = Outbox(asyncio.get_running_loop())
        frame = b"x" * 100_000
        taken_now = [len(frame) + 1 - left, 0]

        def write(fd: int, chunks: Sequence[bytes | memoryview]) -> int:
            return taken_now.pop(0)

        writer = FrameWriter(asyncio.get_running_loop(), outbox, pipe[1], write=write)
        marks: list[bool] = []
        writer.before = marks.append
        writer.send(frame)
        outbox.flush()
        assert marks[-1] is bool(left)
        assert writer.waiting == left
        writer.close()

    run(body())
