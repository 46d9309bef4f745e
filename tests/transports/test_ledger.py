from __future__ import annotations

import array
import asyncio
import fcntl
import mmap
import os
import sys
import termios
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import until

from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.transports import ledger as under_test
from aegis_daemon.transports.ledger import MAX_LINE, BadLedger, Ledger
from aegis_shim import ledger as layout
from aegis_shim.ledger import DISPATCHED, RECEIVED
from aegis_shim.ledger import Ledger as Shim

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Loop:
    """Says when a descriptor can be read, if told to; nothing else happens by itself."""

    def __init__(self) -> None:
        self.readers: dict[int, Callable[[], None]] = {}

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        self.readers[fd] = call

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]

    def call_soon(self, call: Callable[[], None]) -> None: ...


class Desk:
    """Memory of a session, a client that writes, and daemons that come and go."""

    def __init__(self) -> None:
        self.shim = Shim.create()
        self.source, self.client = os.pipe()
        os.set_blocking(self.source, False)
        os.set_blocking(self.client, False)
        self.loop = Loop()
        self.heard: list[Any] = []
        self.daemon = self.next_daemon()

    def next_daemon(self, fd: int | None = None) -> Ledger:
        loop: Any = self.loop
        made = Ledger(loop, Outbox(loop), self.shim.fd if fd is None else fd, self.source, trusted=True)
        made.on_line = lambda line, end: self.heard.append(line)
        made.on_long = lambda: self.heard.append("long")
        made.on_end = lambda: self.heard.append("end")
        self.daemon = made
        return made

    def read(self) -> None:
        self.loop.readers[self.source]()

    def writes(self, *chunks: bytes) -> None:
        for chunk in chunks:
            while chunk:
                done = os.write(self.client, chunk[:65536])
                chunk = chunk[done:]
                self.read()

    def dies(self) -> None:
        """The daemon's mapping goes, its readers too; the memory stays."""
        self.daemon.on_line = lambda line, end: None
        self.loop.readers.clear()
        self.daemon._view.release()
        self.daemon._map.close()

    def close(self) -> None:
        for fd in (self.source, self.client, self.shim.fd):
            try:
                os.close(fd)
            except OSError:
                pass


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.close()


def memory(fd: int) -> bytes:
    return os.pread(fd, layout.SIZE, 0)


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\n"], [b"a"]),
        ([b"a\nb\nc\n"], [b"a", b"b", b"c"]),
        ([b"a", b"b", b"c\n"], [b"abc"]),
        ([b"a\nbb", b"b\ncc", b"c\n"], [b"a", b"bbb", b"ccc"]),
        ([b"a\nlonger than what was before", b"\nx\n"], [b"a", b"longer than what was before", b"x"]),
        ([b"a\r\n", b"b\r", b"\n"], [b"a", b"b"]),
        ([b"\n\r\na\n"], [b"", b"", b"a"]),
        (["a\u2028b\n".encode()], ["a\u2028b".encode()]),
        ([b"a\n", b"half"], [b"a"]),
    ],
)
def test_lines_are_heard_whole_and_in_order(desk: Desk, chunks: list[bytes], lines: list[bytes]) -> None:
    desk.daemon.start()
    desk.writes(*chunks)
    assert desk.heard == lines


@settings(max_examples=50)
@given(st.lists(st.integers(0, 90_000), max_size=25), st.randoms(use_true_random=False))
def test_any_lines_cut_anywhere_are_heard_whole_and_in_order(sizes: list[int], random: Any) -> None:
    desk = Desk()
    try:
        desk.daemon.start()
        lines = [bytes([97 + at % 26]) * size for at, size in enumerate(sizes)]
        text = b"".join(line + b"\n" for line in lines)
        while text:
            cut = random.choice([1, 100, 5000, 70_000])
            desk.writes(text[:cut])
            text = text[cut:]
        assert desk.heard == lines
        assert desk.daemon._place == layout.INPUT_AT
        assert not any(memory(desk.shim.fd)[layout.INPUT_AT :]), "what is done with is cleared"
    finally:
        desk.close()


def test_the_end_of_input_is_heard_once_and_an_unfinished_line_is_not(desk: Desk) -> None:
    desk.daemon.start()
    desk.writes(b"a\nhalf")
    os.close(desk.client)
    desk.read()
    assert desk.heard == [b"a", "end"]
    assert desk.loop.readers == {}
    desk.daemon.resume()
    assert desk.loop.readers == {}


def test_input_that_cannot_be_read_has_ended(desk: Desk) -> None:
    desk.daemon.source = desk.client  # the end for writing alone
    desk.daemon.start()
    desk.loop.readers[desk.client]()
    assert desk.heard == ["end"]
    assert desk.loop.readers == {}


def test_a_reader_that_is_woken_for_nothing_waits_on(desk: Desk) -> None:
    desk.daemon.start()
    desk.read()
    assert desk.heard == []
    desk.writes(b"a\n")
    assert desk.heard == [b"a"]


def test_nothing_is_read_while_it_pauses(desk: Desk) -> None:
    desk.daemon.start()
    desk.daemon.pause()
    desk.daemon.pause()
    assert desk.loop.readers == {}
    desk.daemon.resume()
    desk.daemon.resume()
    desk.writes(b"a\n")
    assert desk.heard == [b"a"]


def test_offsets_count_the_clients_bytes_from_the_very_beginning(desk: Desk) -> None:
    ends = []
    desk.daemon.on_line = lambda line, end: ends.append((line, end))
    desk.daemon.start()
    desk.writes(b"ab\ncd", b"\r\n", b"\n")
    assert ends == [(b"ab", 3), (b"cd", 7), (b"", 8)]
    desk.dies()
    desk.next_daemon().on_line = lambda line, end: ends.append((line, end))
    desk.daemon.start()
    desk.writes(b"x\n")
    assert ends[-1] == (b"x", 10)


def test_a_handler_may_close_everything(desk: Desk) -> None:
    def hear(line: bytes, end: int) -> None:
        desk.heard.append(line)
        desk.daemon.close()
        desk.daemon.close()

    desk.daemon.on_line = hear
    desk.daemon.start()
    desk.writes(b"a\nb\n")
    assert desk.heard == [b"a"]


def test_a_handler_that_stops_leaves_the_rest_to_the_next_daemon(desk: Desk) -> None:
    def hear(line: bytes, end: int) -> None:
        desk.heard.append(line)
        desk.daemon.stop()

    desk.daemon.on_line = hear
    desk.daemon.start()
    desk.writes(b"a\nb\nc")
    assert desk.heard == [b"a"]
    desk.dies()
    desk.next_daemon().start()
    desk.writes(b"\n")
    assert desk.heard == [b"a", b"b", b"c"]


# --- lines that are too long ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MAX_LINE + 1, MAX_LINE + 70_000, 3 * MAX_LINE])
def test_a_line_over_the_limit_is_dropped_and_told_of_once(desk: Desk, size: int) -> None:
    desk.daemon.start()
    desk.writes(b"before\n" + b"x" * size + b"\nafter\n")
    assert desk.heard == [b"before", "long", b"after"]
    assert not any(memory(desk.shim.fd)[layout.INPUT_AT :])


def test_a_line_of_exactly_the_limit_is_heard(desk: Desk) -> None:
    desk.daemon.start()
    desk.writes(b"x" * MAX_LINE + b"\nafter\n")
    assert [len(line) for line in desk.heard] == [MAX_LINE, 5]


def test_the_largest_line_fits_wherever_it_begins(desk: Desk) -> None:
    desk.daemon.start()
    for before in (0, 1, 60_000, 65_535):
        desk.heard.clear()
        desk.writes(b"b" * before + b"\n" + b"x" * MAX_LINE, b"\nafter\n")
        assert [len(line) for line in desk.heard] == [before, MAX_LINE, 5]


def test_the_rest_of_a_line_that_was_too_long_is_dropped_by_the_next_daemon_too(desk: Desk) -> None:
    desk.daemon.start()
    desk.writes(b"x" * (MAX_LINE + 70_000))
    assert desk.heard == ["long"]
    assert desk.shim.skipping
    desk.dies()
    desk.shim.settle()
    desk.next_daemon().start()
    desk.writes(b'{"still":"the same line"}\nafter\n')
    assert desk.heard == ["long", b"after"]
    assert not desk.shim.skipping


# --- slots and the handshake ------------------------------------------------------------------------------------------


def test_a_request_is_received_then_dispatched_then_gone(desk: Desk) -> None:
    first = desk.daemon.take_slot(b"7", 100)
    second = desk.daemon.take_slot(b'"7"', 50)
    assert desk.shim.open_calls() == [(RECEIVED, b'"7"'), (RECEIVED, b"7")]
    desk.daemon.dispatched(first)
    assert desk.shim.open_calls() == [(RECEIVED, b'"7"'), (DISPATCHED, b"7")]
    desk.daemon.dispatched(second)
    desk.daemon.free_slot(first)
    assert desk.shim.open_calls() == [(DISPATCHED, b'"7"')]
    desk.daemon.free_slot(second)
    desk.daemon.free_slot(-1)
    desk.daemon.dispatched(-1)
    assert desk.shim.open_calls() == []


def test_there_are_as_many_slots_as_the_layout_says_and_they_come_back(desk: Desk) -> None:
    longest = b'"' + b"x" * (layout.MAX_ID - 2) + b'"'
    slots = [desk.daemon.take_slot(longest, at) for at in range(layout.SLOTS)]
    assert len(set(slots)) == layout.SLOTS
    assert desk.daemon.take_slot(b"1", 1) == -1
    assert [id for _, id in desk.shim.open_calls()] == [longest] * layout.SLOTS
    assert desk.daemon.handshake is None, "the last slot ends where the handshake begins"
    for slot in slots:
        desk.daemon.free_slot(slot)
    assert desk.daemon.take_slot(b"1", 1) >= 0
    assert desk.shim.open_calls() == [(RECEIVED, b"1")]


def test_the_handshake_the_era_and_the_marks_outlive_the_daemon(desk: Desk) -> None:
    assert (desk.daemon.handshake, desk.daemon.initialized, desk.daemon.era) == (None, False, 0)
    desk.daemon.keep_handshake(b'{"method":"initialize"}')
    desk.daemon.keep_initialized()
    desk.daemon.keep_era(2)
    desk.daemon.half(True)
    desk.dies()
    assert desk.shim.half
    after = desk.next_daemon()
    assert (after.handshake, after.initialized, after.era) == (b'{"method":"initialize"}', True, 2)
    assert not desk.shim.half, "the next daemon begins whole"


def test_a_second_handshake_takes_the_place_of_the_first(desk: Desk) -> None:
    desk.daemon.keep_handshake(b"x" * layout.HANDSHAKE_SIZE)
    desk.daemon.keep_initialized()
    assert desk.daemon.handshake == b"x" * layout.HANDSHAKE_SIZE
    desk.daemon.keep_handshake(b"short")
    assert (desk.daemon.handshake, desk.daemon.initialized) == (b"short", False)
    desk.daemon.keep_handshake(b"x" * (layout.HANDSHAKE_SIZE + 1))
    assert desk.daemon.handshake is None
    assert not any(memory(desk.shim.fd)[layout.INPUT_AT :]), "it never reaches the input"


def test_a_new_daemon_finds_no_slot_taken(desk: Desk) -> None:
    desk.daemon.take_slot(b"7", 10)
    desk.dies()
    desk.next_daemon()
    assert desk.shim.open_calls() == []


# --- memory that is no ledger -----------------------------------------------------------------------------------------


def _unlinked(tmp_path: Any, text: bytes) -> int:
    path = tmp_path / "memory"
    path.write_bytes(text)
    fd = os.open(path, os.O_RDWR)
    path.unlink()
    return fd


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + b"\0",
        lambda text: b"",
        lambda text: b"X" + text[1:],
        lambda text: text[: layout.IN_POS_AT] + bytes(8) + text[layout.IN_POS_AT + 8 :],
        lambda text: text[: layout.IN_POS_AT] + b"\xff" * 8 + text[layout.IN_POS_AT + 8 :],
    ],
)
def test_memory_that_is_no_ledger_is_refused(desk: Desk, tmp_path: Any, change: Callable[[bytes], bytes]) -> None:
    fd = _unlinked(tmp_path, change(memory(desk.shim.fd)))
    with pytest.raises(BadLedger):
        desk.next_daemon(fd)
    os.close(fd)


def test_an_offset_that_would_overflow_is_refused(desk: Desk) -> None:
    os.pwrite(desk.shim.fd, b"\xff" * 8, layout.CONSUMED_AT)
    with pytest.raises(BadLedger):
        desk.next_daemon()


def test_a_descriptor_that_is_no_memory_is_refused(desk: Desk) -> None:
    with pytest.raises(BadLedger):
        desk.next_daemon(desk.client)
    with pytest.raises(BadLedger):
        desk.next_daemon(10_000)


@pytest.mark.skipif(sys.platform != "linux", reason="there are seals on Linux alone")
def test_memory_that_another_user_could_shrink_is_refused(desk: Desk, tmp_path: Any) -> None:
    loop: Any = desk.loop
    unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(unsealed, memory(desk.shim.fd))
    for fd in (unsealed, _unlinked(tmp_path, memory(desk.shim.fd))):
        with pytest.raises(BadLedger):
            Ledger(loop, Outbox(loop), fd, desk.source, trusted=False)
        Ledger(loop, Outbox(loop), fd, desk.source, trusted=True).close()
        os.close(fd)
    Ledger(loop, Outbox(loop), desk.shim.fd, desk.source, trusted=False).close()


def test_odd_numbers_in_the_memory_are_survived(desk: Desk) -> None:
    os.pwrite(desk.shim.fd, b"\xff" * 4, layout.HANDSHAKE_LEN_AT)
    os.pwrite(desk.shim.fd, b"\xff" * layout.SLOTS * layout.SLOT_SIZE, layout.SLOTS_AT)
    os.pwrite(desk.shim.fd, b"\xff", layout.ERA_AT)
    os.pwrite(desk.shim.fd, b"x" * layout.INPUT_SIZE, layout.INPUT_AT)
    after = desk.next_daemon()
    assert (after.handshake, after.era) == (None, 255)
    after.start()
    assert desk.heard == ["long"]
    assert desk.shim.open_calls() == []


# --- daemons that die -------------------------------------------------------------------------------------------------


def test_input_that_was_read_and_not_handled_is_the_next_daemons(desk: Desk) -> None:
    desk.daemon.start()
    desk.writes(b"a\nhalf a l")
    desk.dies()
    desk.shim.settle()
    desk.next_daemon().start()
    desk.writes(b"ine\n")
    assert desk.heard == [b"a", b"half a line"]


def test_a_whole_line_that_was_left_is_handled_before_anything_new(desk: Desk) -> None:
    desk.shim.take_input()
    desk.shim.put_input(5, b"left\nand ")
    desk.dies()
    desk.next_daemon()
    assert desk.heard == []
    desk.daemon.start()
    assert desk.heard == [b"left"]
    desk.writes(b"more\n")
    assert desk.heard == [b"left", b"and more"]


def test_a_handler_that_pauses_over_what_was_left_is_heeded(desk: Desk) -> None:
    desk.shim.take_input()
    desk.shim.put_input(0, b"left\n")
    desk.next_daemon().on_line = lambda line, end: desk.daemon.pause()
    desk.daemon.start()
    assert desk.loop.readers == {}
    desk.daemon.resume()
    assert desk.loop.readers != {}


class Killed:
    """Every state in which a `kill -9` can leave the memory: one after each bytecode instruction that changed it."""

    HEAD, SLOTS, INPUT = (0, 64), (layout.SLOTS_AT, 8 * layout.SLOT_SIZE), (layout.INPUT_AT, 8192)

    def __init__(self, fd: int, progress: Callable[[], Any]) -> None:
        self.fd = fd
        self.progress = progress
        self.states: list[tuple[tuple[bytes, ...], Any]] = []

    def _look(self) -> None:
        state = (
            tuple(os.pread(self.fd, size, at) for at, size in (self.HEAD, self.SLOTS, self.INPUT)),
            self.progress(),
        )
        if not self.states or self.states[-1] != state:
            self.states.append(state)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != under_test.__file__ and frame.f_code.co_name != "handles":
            return None
        frame.f_trace_opcodes = True
        self._look()
        return self._trace

    def watch(self, act: Callable[[], None]) -> None:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            act()
        finally:
            sys.settrace(before)
        self._look()

    def memories(self) -> Iterator[tuple[int, Any]]:
        for parts, progress in self.states:
            after = Shim.create()
            for part, (at, _) in zip(parts, (self.HEAD, self.SLOTS, self.INPUT), strict=True):
                os.pwrite(after.fd, part, at)
            yield after.fd, progress
            os.close(after.fd)


STREAMS = {
    "one request": [b"r1\n"],
    "two in one read": [b"r1\nr2\n"],
    "cut in the middle": [b"r1 xx", b"xx\nr2 yy", b"yy\n"],
    "a longer tail": [b"r1\nr2 is longer than the first one", b" was\nr3\n"],
    "a shorter tail": [b"r1 is quite a bit longer\nr2", b" goes on", b" and on\nr3\nn1\n"],
    "notifications between": [b"n1\nr1\nn2\nn3\nr2\n", b"n4\nr3\nr4\n"],
    "the same length again": [b"r1 aaaa\n", b"r2 bbbb\n", b"r3 cccc\n"],
    "empty lines": [b"\n\nr1\n\r\nr2\r\n", b"\n"],
}


@pytest.mark.parametrize("chunks", STREAMS.values(), ids=STREAMS)
def test_a_daemon_killed_between_any_two_instructions_loses_and_repeats_nothing(
    desk: Desk, chunks: list[bytes]
) -> None:
    written = bytearray()
    noted: list[bytes] = []  # notifications that were handled
    finished: list[bytes] = []

    def handles(line: bytes, end: int) -> None:
        if line.startswith(b"r"):
            slot = desk.daemon.take_slot(line[:2], end)
            desk.daemon.consume(end)
            desk.daemon.dispatched(slot)
            if line.startswith(b"r2"):
                finished.append(line[:2])
                desk.daemon.free_slot(slot)
        else:
            noted.append(line)
            desk.daemon.consume(end)

    desk.daemon.on_line = handles
    desk.daemon.start()
    killed = Killed(desk.shim.fd, lambda: (_in_the_kernel(desk.source), len(noted), list(finished)))
    for chunk in chunks:
        os.write(desk.client, chunk)
        written += chunk
        killed.states.clear()
        killed.watch(desk.read)
        assert len(killed.states) > 1
        for fd, (unread, handled, done) in killed.memories():
            _check(fd, bytes(written[: len(written) - unread]), noted[:handled], done)


def _in_the_kernel(fd: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def _check(fd: int, read: bytes, noted: list[bytes], finished: list[bytes]) -> None:
    shim = Shim(fd)
    in_slots = [id for _, id in shim.open_calls()]
    shim.settle()
    spare = os.memfd_create("spare") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDONLY)
    loop: Any = Loop()
    recovered: list[bytes] = []
    daemon = Ledger(loop, Outbox(loop), fd, spare, trusted=True)
    daemon.on_line = lambda line, end: recovered.append(line)
    daemon.start()
    half = daemon._map[daemon._place : daemon._end]
    daemon.close()
    os.close(spare)
    rest = b"".join(line + b"\n" for line in recovered) + half
    read = read.replace(b"\r\n", b"\n")
    assert read.endswith(rest), "what was recovered is not the rest of what was read"
    before = read[: len(read) - len(rest)]
    lines = before.split(b"\n")
    assert lines.pop() == b"", "it begins where a line begins"
    for line in lines:
        if line.startswith(b"r"):
            assert line[:2] in in_slots or line[:2] in finished, "a request was lost"
        elif line:
            assert line in noted, "a notification was lost"
    for line in recovered:
        assert line[:2] not in in_slots, "a request would run twice"
        assert line[:2] not in finished, "a request would run twice"


def test_a_request_in_a_slot_is_not_handled_again_though_it_was_never_consumed(desk: Desk) -> None:
    desk.shim.take_input()
    desk.shim.put_input(0, b"1\n2\n")
    desk.next_daemon().take_slot(b"1", 2)
    desk.dies()
    assert desk.shim.open_calls() == [(RECEIVED, b"1")]
    desk.shim.settle()
    desk.next_daemon().start()
    assert desk.heard == [b"2"]


def test_a_fault_in_the_handling_of_one_line_costs_no_other(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    def hear(line: bytes, end: int) -> None:
        if line == b"bad":
            raise RuntimeError("a defect")
        desk.heard.append(line)

    desk.daemon.on_line = hear
    desk.daemon.start()
    desk.writes(b"a\nbad\nb\nc", b"\nbad\n", b"d\n")
    assert desk.heard == [b"a", b"b", b"c", b"d"]
    assert len(caplog.records) == 2


def test_it_works_on_real_loops(run: Run) -> None:
    async def body() -> None:
        shim = Shim.create()
        source, client = os.pipe()
        os.set_blocking(source, False)
        loop = asyncio.get_running_loop()
        daemon = Ledger(loop, Outbox(loop), shim.fd, source, trusted=False)
        heard: list[Any] = []
        daemon.on_line = lambda line, end: heard.append(line)
        daemon.on_end = lambda: heard.append("end")
        daemon.start()
        os.write(client, b"a\nb")
        await until(lambda: heard)
        os.write(client, b"\n")
        os.close(client)
        await until(lambda: heard[-1] == "end")
        assert heard == [b"a", b"b", "end"]
        daemon.close()
        os.close(source)
        os.close(shim.fd)

    run(body())


def test_the_memory_is_let_go_of(desk: Desk) -> None:
    desk.daemon.start()
    desk.daemon.close()
    assert desk.loop.readers == {}
    with pytest.raises(ValueError, match="mmap closed"):
        desk.daemon.half(True)
    assert mmap.mmap(desk.shim.fd, layout.SIZE)[:8] == layout.MAGIC
