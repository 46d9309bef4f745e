from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.wire.sse import Event, EventParser, EventTooLarge


def read(text: bytes, *cuts: int) -> list[Event]:
    parser = EventParser()
    events = []
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        events += parser.feed(text[start:end])
    return events


def test_an_event_has_a_kind_and_data() -> None:
    assert read(b'event: message\ndata: {"a":1}\n\n') == [Event(b"message", b'{"a":1}')]
    assert read(b"data: x\n\n") == [Event(b"message", b"x")]
    assert read(b"event: endpoint\ndata:/messages?id=1\n\n") == [Event(b"endpoint", b"/messages?id=1")]


def test_lines_of_data_become_one_line() -> None:
    assert read(b'data: {\ndata:  "a": 1\ndata\ndata: }\n\n') == [Event(b"message", b'{  "a": 1  }')]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_in_any_of_three_ways(end: bytes) -> None:
    assert read(end.join((b": hello", b"data: x", b"", b"data: y", b"", b""))) == [
        Event(b"message", b"x"),
        Event(b"message", b"y"),
    ]


def test_comments_and_unknown_fields_are_nothing() -> None:
    assert read(b": ping\n\n: ping\r\n\r\nfoo: bar\n\nevent: only\n\n") == []


def test_an_incomplete_event_is_none() -> None:
    assert read(b"data: x\n") == []


def test_a_byte_order_mark_at_the_start_is_left_out() -> None:
    assert read(b"\xef\xbb\xbfdata: x\n\n") == [Event(b"message", b"x")]


def test_the_last_id_and_the_wait_are_kept() -> None:
    parser = EventParser()
    assert parser.position == b""
    parser.feed(b"id: 7\nretry: 250\ndata:\n\n")
    assert (parser.last_id, parser.position, parser.retry) == (b"7", b"7", 250)
    parser.feed(b"data: x\n\nid: 8\ndata: not ")
    assert parser.position == b"7"
    parser.feed(b"complete\n\nretry: soon\nid: a\0b\n\n")
    assert (parser.position, parser.retry) == (b"8", 250)
    parser.feed(b"id\n\n")
    assert parser.position == b""


@pytest.mark.parametrize("id", [b"\x01", "ü".encode(), b"x" * 2000, b"a\tb"])
def test_an_id_that_no_header_can_carry_is_no_position(id: bytes) -> None:
    parser = EventParser()
    parser.feed(b"id: " + id + b"\ndata: x\n\n")
    assert parser.last_id == id
    assert parser.position == b""


lines = st.sampled_from(
    [
        b"data: a",
        b"data:b",
        b"data",
        b"",
        b"",
        b"event: e",
        b"id: 1",
        b"id",
        b":c",
        b"retry: 5",
        b"junk",
        "data: ü".encode(),
    ]
)
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(lines, ends)), st.data())
def test_where_the_bytes_are_cut_does_not_matter(parts: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    text = b"".join(line + end for line, end in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    assert read(text, *cuts) == read(text) == read(text, *range(len(text)))


@pytest.mark.parametrize(
    "piece", [b"data: " + b"x" * 900 + b"\n", b"x" * 900, b": " + b"c" * 900, b"data\n" * 200, b"id: " + b"i" * 900]
)
def test_an_event_has_a_limit_however_it_comes(piece: bytes) -> None:
    parser = EventParser(limit=4000)

    def endlessly() -> None:
        for _ in range(100):
            parser.feed(piece)
            assert parser.held <= 5000

    with pytest.raises(EventTooLarge):
        endlessly()
    assert parser.held <= 6000


def test_events_below_the_limit_never_add_up() -> None:
    parser = EventParser(limit=1000)
    for _ in range(100):
        assert len(parser.feed(b"data: " + b"x" * 900 + b"\n\n: c\n\n")) == 1
        assert parser.held == 0
