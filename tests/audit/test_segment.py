from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from logging_by_hand import intent

from aegis_daemon.audit.chain import Link, commitment, digest, read_link
from aegis_daemon.audit.record import GENESIS
from aegis_daemon.audit.segment import Line, decode_header, decode_line, encode_header, encode_part, follow, later

SALT = bytes(range(16))


def line(seq: int, prev: str, part: bytes | None) -> tuple[bytes, str]:
    record = intent(seq, seq=seq, prev=prev, kind="intent")
    if part is not None:
        record.body = commitment(SALT, part)
    text = msgspec.json.encode(record)
    head = digest(text).hex()
    rest = b"" if part is None else b"\t%b\t%b" % (SALT.hex().encode(), encode_part(part))
    return b"%b\t%b%b\n" % (head.encode(), text, rest), head


def lines(parts: list[bytes | None], after: int = 0) -> list[bytes]:
    found, head = [], GENESIS
    for seq, part in enumerate(parts, after + 1):
        made, head = line(seq, head, part)
        found.append(made)
    return found


def chained(data: bytes, after: int = 0) -> list[Line[Link]]:
    return [found for found, _ in follow(data, 0, after, GENESIS)]


PARTS = st.lists(st.none() | st.binary(max_size=80), min_size=1, max_size=5)


@given(PARTS)
def test_every_body_comes_back_whatever_bytes_it_has(parts: list[bytes | None]) -> None:
    assert [found.part for found in chained(b"".join(lines(parts)))] == parts


@given(PARTS, PARTS, st.data())
def test_half_a_line_over_stale_lines_never_passes_for_a_record(
    live: list[bytes | None], stale: list[bytes | None], data: st.DataObject
) -> None:
    """A file that is used again, and a daemon killed somewhere in a write."""
    whole = b"".join(lines(live, after=100))
    cut = data.draw(st.integers(0, len(whole)))
    torn = whole[:cut] + (b"".join(lines(stale)) + bytes(64))[cut:]
    assert len(chained(torn, after=100)) in (whole[:cut].count(b"\n"), (whole[: cut + 1]).count(b"\n"))


@given(PARTS, st.data())
def test_a_flipped_bit_ends_the_chain_at_its_line(parts: list[bytes | None], data: st.DataObject) -> None:
    made = lines(parts)
    index = data.draw(st.integers(0, len(made) - 1))
    at = data.draw(st.integers(0, len(made[index]) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    spoiled = bytearray(made[index])
    spoiled[at] ^= bit
    found = chained(b"".join([*made[:index], bytes(spoiled), *made[index + 1 :]]))
    tabs = [place for place, byte in enumerate(made[index]) if byte == 9]
    in_salt = len(tabs) > 2 and tabs[1] < at < tabs[2] and spoiled.lower() == made[index]
    assert len(found) == (len(made) if in_salt else index)  # hex digits may change their case


def test_what_stands_behind_a_damaged_place_is_found() -> None:
    made = lines([b"a", b"b", b"c"])
    data = made[0] + b"x" + made[1][1:] + made[2]
    assert [found.link.seq for found in chained(data)] == [1]
    assert [found.link.seq for found, _ in later(data, len(made[0]), 1)] == [3]


def test_a_line_without_the_body_it_names_is_none() -> None:
    made, _ = line(1, GENESIS, b"arguments")
    assert decode_line(b"\t".join(made[:-1].split(b"\t")[:2]), read_link) is None


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 50), st.lists(st.integers(1, 9).map(lambda n: b'{"n":%d}' % n)))
def test_a_header_comes_back_and_half_of_one_does_not(generation: int, first: int, calls: list[bytes]) -> None:
    data = encode_header(generation, first, "ab" * 32, calls)
    header = decode_header(data + b"anything")
    assert header is not None
    assert (header.generation, header.first_seq, header.prev) == (generation, first, "ab" * 32)
    assert (header.start, list(header.calls)) == (len(data), calls)
    for cut in range(len(data)):
        assert decode_header(data[:cut] + bytes(300)) is None


@given(st.data())
def test_a_header_with_a_changed_byte_is_none(data: st.DataObject) -> None:
    header = bytearray(encode_header(3, 17, "ab" * 32, [b'{"a":1}', b'{"b":2}']))
    at = data.draw(st.integers(0, len(header) - 1))
    header[at] ^= 1 << data.draw(st.integers(0, 7))
    assert decode_header(bytes(header)) is None


@given(st.binary(max_size=400))
def test_no_bytes_upset_the_readers(data: bytes) -> None:
    decode_header(data)
    decode_line(data, read_link)
    assert chained(data) == []
