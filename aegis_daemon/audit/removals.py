"""What leaves the log leaves it by a record: nothing is removed that an order in the chain does not speak of.

Three actions of `admin` records order it; their `detail` begins with what goes, and goes on for people behind a colon:

    purge         records 1 to 20000: …             whole records; their hashes stay
    purge_bodies  bodies of records 1 to 20000: …   arguments and results alone
    erase         bodies of records 12, 15-17: …    the same, of some records

An order counts only with a signature (`warrants.py`). Pure. `scripts/verify_audit` reads the same words and shares no
line with this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

PURGE: Final = "purge"
PURGE_BODIES: Final = "purge_bodies"
ERASE: Final = "erase"
ACTIONS: Final = frozenset({PURGE, PURGE_BODIES, ERASE})
MOST: Final = 400
"""Ranges that one record names."""
SCRIPT: Final = """
CREATE TABLE IF NOT EXISTS leaves (seq INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS removals (seq INTEGER PRIMARY KEY, action TEXT NOT NULL, detail TEXT NOT NULL,
  by TEXT NOT NULL, ts INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0, tree BLOB)
"""
"""`leaves`: hashes of purged records. `removals`: the orders among the records, and whether they were carried out."""
_PURGE = re.compile(r"records 1 to ([1-9][0-9]{0,17}):")
_PURGE_BODIES = re.compile(r"bodies of records 1 to ([1-9][0-9]{0,17}):")
_ERASE = re.compile(r"bodies of records ([0-9][0-9, -]*):")
_RANGE = re.compile(r"([1-9][0-9]{0,17})(?:-([1-9][0-9]{0,17}))?")

Ranges = tuple[tuple[int, int], ...]


class Removal(msgspec.Struct, frozen=True):
    """What record `seq` orders: the whole records up to `last`, or the bodies of the records in `ranges`."""

    seq: int
    action: str
    last: int = 0
    ranges: Ranges = ()


class Said(msgspec.Struct, frozen=True):
    """The words of an `admin` record that matter here."""

    action: str = ""
    by: str = ""
    detail: str = ""
    signature: str = ""
    tenant: str = ""
    ts: int = 0


read_said = msgspec.json.Decoder(Said).decode
"""The words of an `admin` record. Raises `msgspec.MsgspecError`."""


def read(seq: int, action: str, detail: str) -> Removal | None:
    """What the `admin` record `seq` orders; None for nothing. It reaches no record that is not older than itself."""
    if action == PURGE:
        if match := _PURGE.match(detail):
            return Removal(seq, action, last=min(int(match[1]), seq - 1))
    elif action == PURGE_BODIES:
        if match := _PURGE_BODIES.match(detail):
            return Removal(seq, action, ranges=((1, min(int(match[1]), seq - 1)),))
    elif action == ERASE and (match := _ERASE.match(detail)):
        ranges = []
        for word in match[1].split(","):
            found = _RANGE.fullmatch(word.strip())
            if found is None:
                return None
            low, high = int(found[1]), min(int(found[2] or found[1]), seq - 1)
            if low <= high:
                ranges.append((low, high))
        return Removal(seq, action, ranges=tuple(ranges))
    return None


def purge_detail(last: int, why: str) -> str:
    """The words that order `purge`."""
    return f"records 1 to {last}: {why}"


def purge_bodies_detail(last: int, why: str) -> str:
    """The words that order `purge_bodies`."""
    return f"bodies of records 1 to {last}: {why}"


def erase_details(seqs: Iterable[int], why: str) -> Iterator[str]:
    """The words that order `erase`, in as many records as it takes."""
    ranges = merged((seq, seq) for seq in seqs)
    for at in range(0, len(ranges), MOST):
        words = (str(low) if low == high else f"{low}-{high}" for low, high in ranges[at : at + MOST])
        yield f"bodies of records {', '.join(words)}: {why}"


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in as few ranges as can be, in order."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


class Removals:
    """All that the records of a log order; grows as they are read."""

    def __init__(self) -> None:
        self.purged = 0
        """Records up to this one may be gone."""
        self._bodies: list[tuple[int, int]] = []

    def add(self, removal: Removal | None) -> None:
        """One more order."""
        if removal is not None:
            self.purged = max(self.purged, removal.last)
            self._bodies += removal.ranges

    def bodiless(self, seqs: Iterable[int]) -> list[int]:
        """Those of `seqs` (ascending) whose bodies nobody has ordered to go."""
        left = []
        ranges = iter(merged(self._bodies))
        at = next(ranges, None)
        for seq in seqs:
            while at is not None and at[1] < seq:
                at = next(ranges, None)
            if at is None or seq < at[0]:
                left.append(seq)
        return left
