"""Every record names the hash of the one before it, so whoever changes one must change all that follow.

Pure: no file, no clock. A chain cannot show that its newest records were cut off, or that all of it was written anew;
that takes a copy of the head kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Literal

import msgspec

from aegis_daemon.audit.record import GENESIS

FaultKind = Literal[
    "edited",
    "missing",
    "reordered",
    "inserted",
    "bad_link",
    "unreadable",
    "body_edited",
    "body_missing",
    "call_edited",
    "call_missing",
    "call_inserted",
    "truncated",
    "rewritten",
    "checkpoint_edited",
    "other_log",
    "unknown_key",
    "removal_unsigned",
    "schema_edited",
    "index_edited",
    "tallies_edited",
]


class Fault(msgspec.Struct, frozen=True):
    """What is wrong at `seq`; `text` says it for people."""

    seq: int
    kind: FaultKind
    text: str


class Link(msgspec.Struct):
    """What the chain, and whoever follows it, needs of a record."""

    kind: str
    prev: str
    seq: int
    body: str = ""
    call: str = ""
    would: bool = False


read_link = msgspec.json.Decoder(Link).decode
"""Raises one of `UNREADABLE` for what is no record."""
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def digest(record_json: bytes) -> bytes:
    """SHA-256 over a zero byte and the record's RFC 8785 form; the byte keeps leaves apart from nodes (RFC 6962)."""
    return sha256(b"\0" + record_json).digest()


def commitment(salt: bytes, body: bytes) -> str:
    """The hex SHA-256 that a record holds of its body."""
    return sha256(salt + body).hexdigest()


class Walk:
    """Checks records one by one, in the order of the places they are kept at.

    `faults` grows as `step` goes; one alteration gives one or two faults, not one for each record that follows.
    """

    __slots__ = ("_before", "_head", "_seq", "_shift", "faults")

    def __init__(self, seq: int = 0, head: str = GENESIS) -> None:
        self._seq = seq
        self._head: str | None = head
        self._before: str | None = None
        self._shift = 0
        self.faults: list[Fault] = []

    @property
    def seq(self) -> int:
        """The newest place seen."""
        return self._seq

    @property
    def head(self) -> str:
        """The hash kept with the newest record seen."""
        return self._head or GENESIS

    def step(self, place: int, text: bytes, stored: str, read: Link | None = None) -> Link | None:
        """Takes the record kept at `place` with its stored hash (hex); gives what it says, None where unreadable.

        `read`: what it says, where that was read already.
        """
        fault = self.faults.append
        linked = self._head
        if place != self._seq + 1:
            first, last = self._seq + 1, place - 1
            what = f"record {first} is" if first == last else f"records {first} to {last} are"
            fault(Fault(first, "missing", f"{what} missing"))
            linked = None
            self._before = None
        self._seq = place
        before, self._before, self._head = self._before, self._head, stored
        try:
            link = read_link(text) if read is None else read
        except UNREADABLE as error:
            fault(Fault(place, "unreadable", f"record {place} cannot be read: {error}"))
            return None
        if digest(text).hex() != stored:
            fault(Fault(place, "edited", f"record {place} does not have the hash that is kept with it"))
        shift = place - link.seq
        if linked is not None and link.prev != linked:
            if before is not None and link.prev == before and shift == self._shift + 1:
                fault(Fault(place - 1, "inserted", f"record {place - 1} was put in between two others"))
                self._shift = shift
                return link
            if shift == self._shift:
                fault(Fault(place, "bad_link", f"record {place} follows another record than the one before it"))
        if shift != self._shift:
            fault(Fault(place, "reordered", f"record {link.seq} is kept at place {place}"))
            self._shift = shift
        return link


def verify(records: Iterable[tuple[int, bytes, str]], seq: int = 0, head: str = GENESIS) -> Iterator[Fault]:
    """The faults of (place, record, stored hash) rows, in order of place, behind a known record `seq` with `head`."""
    walk = Walk(seq, head)
    for row in records:
        walk.step(*row)
        if walk.faults:
            yield from walk.faults
            walk.faults.clear()
