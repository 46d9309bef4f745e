"""Whoever watches sees each call as its records are written; nobody who watches can slow a call, and nobody costs one.

The journal asks one attribute while nobody watches. A watcher that reads too slowly loses the oldest and is told how
many; what a record means for people is worked out when it is read, not when it is written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final, Literal

from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Denied, Hold, Intent, Outcome, Record
from aegis_daemon.manage import shapes

KEPT: Final = 512
"""Records that wait for one watcher; older ones are lost to it."""
_Heard = tuple[Record, Intent | Hold | None]


class _Watcher:
    """One reader's place."""

    __slots__ = ("kept", "lost", "more")

    def __init__(self) -> None:
        self.kept: deque[_Heard] = deque()
        self.lost = 0
        self.more = asyncio.Event()


class Feed:
    """The calls of one journal, for any number of watchers."""

    def __init__(self, journal: Journal, kept: int = KEPT) -> None:
        self._journal = journal
        self._kept = kept
        self._watchers: set[_Watcher] = set()

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    async def watch(self) -> AsyncIterator[shapes.CallEvent]:
        """What happens to calls from now on, until it is closed with `aclose`."""
        watcher = _Watcher()
        if not self._watchers:
            self._journal.listen(self._heard)
        self._watchers.add(watcher)
        try:
            while True:
                if watcher.lost:
                    lost, watcher.lost = watcher.lost, 0
                    yield shapes.CallEvent(event="lost", lost=lost)
                if watcher.kept:
                    record, opened = watcher.kept.popleft()
                    yield shapes.CallEvent(event="call", call=_row(record, opened))
                    continue
                watcher.more.clear()
                await watcher.more.wait()
        finally:
            self._watchers.discard(watcher)
            if not self._watchers:
                self._journal.unlisten(self._heard)

    def _heard(self, record: Record, opened: Intent | Hold | None) -> None:
        """`opened` is the intent or hold of the call that a record ends."""
        if type(record) not in _CALLS:
            return
        for watcher in self._watchers:
            if len(watcher.kept) >= self._kept:
                watcher.kept.popleft()
                watcher.lost += 1
            watcher.kept.append((record, opened))
            watcher.more.set()


_CALLS: Final = frozenset({Hold, Intent, Outcome, Denied})


def _row(record: Any, opened: Any) -> shapes.CallRow:
    """What one record says of its call. An outcome names nothing but its call: the rest is its intent's."""
    kind = type(record)
    told = record if kind is not Outcome else opened
    state: Literal["held", "running", "success", "error", "unknown", "denied"]
    if kind is Hold:
        state = "held"
    elif kind is Intent:
        state = "running"
    elif kind is Denied:
        state = "denied"
    else:
        state = record.status if record.status in ("success", "error") else "unknown"
    return shapes.CallRow(
        seq=record.seq,
        at=_instant(record.ts),
        call_id=record.call,
        agent_id=told.agent if told is not None else "",
        backend_id=told.backend if told is not None else "",
        method=told.method if told is not None else "",
        tool_name=told.name if told is not None else "",
        state=state,
        would=kind is Denied and record.would,
        duration_us=record.duration_us if kind is Outcome else None,
        stage=record.stage if kind is Denied else "",
        detail=record.reason if kind is Denied else record.error_message if kind is Outcome else "",
        ticket=told.ticket if told is not None else "",
        approver=told.approver if told is not None else "",
    )


def _instant(ts: int) -> str:
    return datetime.fromtimestamp(ts / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
