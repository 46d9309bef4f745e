"""A record is committed before `append` returns (durability process) or before its waiter is called (full), or it raises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from aegis_daemon.audit.record import Intent, Record

Clock = Callable[[], tuple[int, int]]
"""Gives (microseconds since the epoch, microseconds on the boot clock)."""
Done = Callable[["AuditUnavailable | None"], None]


class AuditUnavailable(Exception):
    """The record was not committed, so what it stands for must not happen; the text says why and what to do."""


class Recovery(msgspec.Struct, frozen=True):
    """What `open` found: the newest record, its hash (hex), and the intents whose call has no outcome, oldest first.

    The caller appends an outcome `unknown` for each. `notes` are sentences for an `admin` record.
    """

    last_seq: int
    head: str
    open_intents: list[Intent]
    notes: list[str]


def system_clock() -> tuple[int, int]:
    """The machine's clocks."""
    return time.time_ns() // 1000, time.monotonic_ns() // 1000


class Journal:
    """The one append-only log of a directory; all methods belong to the loop's thread."""

    def __init__(
        self,
        directory: Path,
        *,
        durability: Literal["full", "process"],
        loop: asyncio.AbstractEventLoop,
        clock: Clock = system_clock,
        db_path: Path | None = None,
        tenant: str = "default",
    ) -> None:
        raise NotImplementedError

    def open(self) -> Recovery:
        """Locks the directory and replays what is there. Raises `AuditUnavailable`."""
        raise NotImplementedError

    def append(self, record: Record, part: bytes | None = None, length: int | None = None) -> int:
        """Writes one record and the body beside it; gives its sequence number. Raises `AuditUnavailable`.

        `part` is what is kept of the body, `length` the whole body's bytes where that is more.
        """
        raise NotImplementedError

    @property
    def last_seq(self) -> int:
        """The newest record written."""
        raise NotImplementedError

    @property
    def durable_seq(self) -> int:
        """The newest record that survives what `durability` promises."""
        raise NotImplementedError

    def when_durable(self, seq: int, callback: Done) -> None:
        """Calls back once, in order of `seq`: with None when it is durable (at once if it is), else with the fault."""
        raise NotImplementedError

    @property
    def ingested_seq(self) -> int:
        """The newest record that SQLite holds."""
        raise NotImplementedError

    @property
    def backlog_bytes(self) -> int:
        """Journal bytes that SQLite does not hold yet."""
        raise NotImplementedError

    @property
    def healthy(self) -> bool:
        """Whether records are accepted and reach SQLite."""
        raise NotImplementedError

    @property
    def detail(self) -> str:
        """What ails it, else empty."""
        raise NotImplementedError

    def close(self) -> None:
        """Syncs, answers every waiter and unlocks; idempotent."""
        raise NotImplementedError
