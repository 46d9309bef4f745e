"""The bytes of a journal file: a header that proves itself, then lines that prove themselves.

    AEGISJ1 <generation> <first seq> <prev, hex> <length of the open calls> <SHA-256 of the rest, hex> LF
    open calls: one canonical record (hold or intent) per line, of calls that had not ended when the file was begun
    line: <hash, hex> TAB <record> LF
          <hash, hex> TAB <record> TAB <salt, hex> TAB "=" <body> LF      a body without LF
          <hash, hex> TAB <record> TAB <salt, hex> TAB "~" <base64> LF    any other body

A canonical record holds neither TAB nor LF. Files are used again as they are: behind the newest line lies whatever was
there before, or half a line that a crash left. Neither can pass for the next line, which must carry the next sequence
number, the hash of the line before, its own hash and, where it has a body, the body's commitment. Pure: no file here.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Generic, TypeVar

import msgspec

from aegis_daemon.audit.chain import UNREADABLE, Link, commitment, digest, read_link

MAGIC = b"AEGISJ1"
HEADER_MAX = 256
"""More bytes than any header line has."""


class Header(msgspec.Struct, frozen=True):
    """`start` is where the first line stands, `calls` the records of the open calls."""

    generation: int
    first_seq: int
    prev: str
    start: int
    calls: tuple[bytes, ...] = ()


L = TypeVar("L", bound=Link)


class Line(msgspec.Struct, Generic[L]):
    """One committed record; `part` is the kept body, None where it has none."""

    link: L
    hash: str
    text: bytes
    salt: bytes = b""
    part: bytes | None = None


def encode_header(generation: int, first_seq: int, prev: str, calls: list[bytes]) -> bytes:
    """The beginning of a file."""
    body = b"".join(call + b"\n" for call in calls)
    facts = f"{generation} {first_seq} {prev} {len(body)}".encode()
    return b"%b %b %b\n%b" % (MAGIC, facts, sha256(facts + b"\n" + body).hexdigest().encode(), body)


def header_size(data: bytes) -> int:
    """How many bytes a header takes of which `data` is the beginning (at least `HEADER_MAX` bytes); 0 for none."""
    end = data.find(b"\n", 0, HEADER_MAX)
    words = data[: max(end, 0)].split(b" ")
    if len(words) != 6 or words[0] != MAGIC or not words[4].isdigit():
        return 0
    return end + 1 + int(words[4])


def decode_header(data: bytes) -> Header | None:
    """The header at the beginning of `data`; None where there is none, or half of one."""
    size = header_size(data)
    if not 0 < size <= len(data):
        return None
    line, body = data[:size].split(b"\n", 1)
    facts, proof = line[len(MAGIC) + 1 :].rsplit(b" ", 1)
    if sha256(facts + b"\n" + body).hexdigest().encode() != proof:
        return None
    generation, first_seq, prev, _ = facts.decode().split(" ")
    return Header(int(generation), int(first_seq), prev, size, tuple(body.splitlines()))


def encode_part(part: bytes) -> bytes:
    """A body as it stands in a line."""
    if b"\n" in part:
        return b"~" + binascii.b2a_base64(part, newline=False)
    return b"=" + part


def decode_line(line: bytes, read: Callable[[bytes], L]) -> Line[L] | None:
    """A line without its LF, hash and commitment checked, its record read by `read`; None for anything else."""
    fields = line.split(b"\t", 3)
    if len(fields) not in (2, 4) or len(fields[0]) != 64:
        return None
    text = fields[1]
    try:
        link = read(text)
        stored = fields[0].decode()
        if digest(text).hex() != stored:
            return None
        if len(fields) == 2:
            return None if link.body else Line(link, stored, text)
        salt = bytes.fromhex(fields[2].decode())
        form, part = fields[3][:1], fields[3][1:]
        if form == b"~":
            part = binascii.a2b_base64(part, strict_mode=True)
        elif form != b"=":
            return None
    except (*UNREADABLE, ValueError):  # binascii.Error is one too
        return None
    if commitment(salt, part) != link.body:
        return None
    return Line(link, stored, text, salt, part)


def follow(data: bytes, at: int, seq: int, head: str) -> Iterator[tuple[Line[Link], int]]:
    """The lines from offset `at` that continue a chain at `seq` and `head`, each with the offset behind it.

    Ends at the first bytes that do not.
    """
    while True:
        end = data.find(b"\n", at)
        if end < 0:
            return
        line = decode_line(data[at:end], read_link)
        if line is None or line.link.seq != seq + 1 or line.link.prev != head:
            return
        at, seq, head = end + 1, seq + 1, line.hash
        yield line, at


def later(data: bytes, at: int, seq: int) -> Iterator[tuple[Line[Link], int]]:
    """Intact lines behind `at` with a number above `seq`, whatever they link to: what stands behind a damaged place."""
    while True:
        end = data.find(b"\n", at)
        if end < 0:
            return
        line = decode_line(data[at:end], read_link) if end - at > 66 else None
        at = end + 1
        if line is not None and line.link.seq > seq:
            yield line, at


def misses(data: bytes, header: Header, newer: Header) -> int | None:
    """The last record of a file where the next file does not follow it; None where it does."""
    seq, head, wanted = header.first_seq - 1, header.prev, newer.first_seq - 1
    met = head if seq == wanted else newer.prev
    for line, _ in follow(data, header.start, seq, head):
        seq = line.link.seq
        if seq == wanted:
            met = line.hash
    return None if seq >= wanted and met == newer.prev else seq


def end_of(data: bytes, header: Header) -> tuple[int, int]:
    """The last record that a file has in its chain, and where the bytes behind it begin."""
    seq, at = header.first_seq - 1, header.start
    for line, end in follow(data, at, seq, header.prev):
        seq, at = line.link.seq, end
    return seq, at


def unfinished(data: bytes, header: Header, newer_data: bytes, newer: Header) -> list[int] | None:
    """Whether the newer file was to repeat the end of this one, after a failed sync, and does not reach as far.

    Then nothing in it was promised that this one does not have: records are promised when all of it is on disk. Gives
    the numbers of intact records in it that this one does not have (a damaged place explains it, too); None where not.
    """
    seq, _ = end_of(data, header)
    if newer.first_seq > seq:
        return None
    reached, at = end_of(newer_data, newer)
    if reached >= seq:
        return None
    return [line.link.seq for line, _ in later(newer_data, at, seq)]
