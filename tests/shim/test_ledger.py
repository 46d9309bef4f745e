from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis_shim import ledger
from aegis_shim.ledger import DISPATCHED, RECEIVED, Ledger


@pytest.fixture
def book() -> Iterator[Ledger]:
    made = Ledger.create()
    yield made
    os.close(made.fd)


def put(book: Ledger, at: int, value: int, size: int = 8) -> None:
    os.pwrite(book.fd, value.to_bytes(size, "little"), at)


def slot(book: Ledger, index: int, state: int, request_id: bytes, end: int) -> None:
    head = bytes([state, len(request_id)]) + bytes(6) + end.to_bytes(8, "little")
    os.pwrite(book.fd, head + request_id, ledger.SLOTS_AT + index * ledger.SLOT_SIZE)


def test_the_areas_do_not_overlap() -> None:
    assert ledger.SKIPPING_AT < ledger.SLOTS_AT
    assert ledger.SLOTS_AT + ledger.SLOTS * ledger.SLOT_SIZE == ledger.HANDSHAKE_AT
    assert ledger.HANDSHAKE_AT + ledger.HANDSHAKE_SIZE == ledger.INPUT_AT
    assert ledger.INPUT_AT + ledger.INPUT_SIZE == ledger.SIZE
    assert ledger.SLOT_ID + ledger.MAX_ID == ledger.SLOT_SIZE
    assert ledger.INPUT_AT % mmap.ALLOCATIONGRANULARITY == 0


def test_a_new_ledger_is_empty_and_has_its_whole_size(book: Ledger) -> None:
    assert os.fstat(book.fd).st_size == ledger.SIZE
    assert not book.half
    assert book.open_calls() == []
    assert book.take_input() == (0, b"")
    assert not os.get_inheritable(book.fd)


@pytest.mark.skipif(sys.platform != "linux", reason="seals are Linux's")
def test_nobody_can_shrink_the_memory_under_the_daemon(book: Ledger) -> None:
    seals = fcntl.fcntl(book.fd, fcntl.F_GET_SEALS)
    assert seals & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL) == 7
    with pytest.raises(PermissionError):
        os.ftruncate(book.fd, 0)


def test_without_memory_files_an_unlinked_file_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(name: str, flags: int) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(ledger.posix, "memfd_create", refused, raising=False)
    monkeypatch.setitem(ledger.posix.environ, b"TMPDIR", os.fsencode(tmp_path))
    book = Ledger.create()
    try:
        assert os.fstat(book.fd).st_size == ledger.SIZE
        assert os.fstat(book.fd).st_blocks * 512 >= ledger.SIZE  # no hole that a full disk could leave unfilled
        assert list(tmp_path.iterdir()) == []
        book.put_input(3, b"{}\n")
        assert book.take_input() == (3, b"{}\n")
    finally:
        os.close(book.fd)


def test_open_requests_come_in_the_order_they_were_sent(book: Ledger) -> None:
    slot(book, 5, DISPATCHED, b'"b"', 20)
    slot(book, 0, RECEIVED, b"7", 90)
    slot(book, 271, RECEIVED, b'"' + b"x" * 238 + b'"', 50)
    assert book.open_calls() == [(DISPATCHED, b'"b"'), (RECEIVED, b'"' + b"x" * 238 + b'"'), (RECEIVED, b"7")]


def test_settling_skips_what_was_answered_and_keeps_the_rest(book: Ledger) -> None:
    lines = b'{"id":1}\n{"id":2}\n{"id'
    os.pwrite(book.fd, lines, ledger.INPUT_AT + 100)
    put(book, ledger.IN_POS_AT, ledger.INPUT_AT + 100)
    put(book, ledger.CONSUMED_AT, 1000)
    slot(book, 3, RECEIVED, b"1", 1009)
    put(book, ledger.HALF_AT, 1, 1)
    book.settle()
    assert book.open_calls() == []
    assert not book.half
    assert book.consumed == 1009
    assert book.take_input() == (1009, b'{"id":2}\n{"id')


def test_settling_without_open_requests_keeps_everything(book: Ledger) -> None:
    book.put_input(10, b"abc\n", skipping=True)
    book.settle()
    assert book.skipping
    assert book.take_input() == (10, b"abc\n")


def test_input_taken_is_gone_and_can_be_put_back_anywhere_in_the_stream(book: Ledger) -> None:
    book.put_input(5, b"x" * ledger.INPUT_SIZE)
    assert book.take_input() == (5, b"x" * ledger.INPUT_SIZE)
    assert book.take_input() == (5, b"")
    assert not os.pread(book.fd, ledger.INPUT_SIZE, ledger.INPUT_AT).strip(b"\0")
    book.put_input(9, b"tail")
    assert book.take_input() == (9, b"tail")
    with pytest.raises(ValueError, match="do not fit"):
        book.put_input(0, b"x" * (ledger.INPUT_SIZE + 1))


def test_a_place_outside_the_input_area_yields_nothing(book: Ledger) -> None:
    for place in (0, ledger.INPUT_AT - 1, ledger.SIZE, 2**63):
        put(book, ledger.IN_POS_AT, place)
        assert book.take_input() == (0, b"")
