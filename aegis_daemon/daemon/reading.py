"""What the inbox asks of the audit log, in its own shapes: read in threads, few at a time, some of it remembered."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from aegis_daemon.audit.calls import read_record
from aegis_daemon.audit.chain import UNREADABLE
from aegis_daemon.audit.figures import HOUR, Figures, Tool
from aegis_daemon.audit.store import Ambiguous, CallView, NotFound, Reader
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.loop.clock import monotonic, wall
from aegis_daemon.manage import api, shapes

FRESH_S: Final = 10.0
"""How long the overview's figures are given again."""
WAIT_S: Final = 10.0
FLUSH_S: Final = 2.0
"""How long a reader waits for what was recorded last."""
TOOLS_SINCE_S: Final = 7 * 86400
RECORDS_MAX: Final = 100
"""Records of one call that are shown."""
_DAY: Final = 24 * HOUR
T = TypeVar("T")


class Reading:
    """Questions to one store. Every method raises `api.Unavailable` where it cannot be read now."""

    def __init__(self, path: Path, writer: WriterHandle, readers: asyncio.Semaphore) -> None:
        self._path = path
        self._writer = writer
        self._readers = readers
        self._kept: dict[str, tuple[float, asyncio.Task[Any]]] = {}

    async def figures(self) -> shapes.Figures:
        """The overview's numbers."""
        return await self._fresh("figures", lambda: self._read(_figures))

    async def tools(self) -> Sequence[shapes.ToolRow]:
        """Tools that were called within a week."""
        return await self._fresh("tools", lambda: self._read(_tools))

    async def would(self) -> Sequence[shapes.WouldRow]:
        """What rules would have refused within a day, were they enforced."""
        return await self._read(_would, flush=True)

    async def search(self, ask: shapes.AuditQuery) -> Sequence[shapes.AuditCall]:
        """Calls, newest first; what was recorded by now is among them."""
        since, until = _micros(ask.since), _micros(ask.until)

        def look(reader: Reader) -> list[shapes.AuditCall]:
            found = reader.search(
                agent=ask.agent, backend=ask.backend, tool=ask.tool, status=ask.status, since=since, until=until,
                text=ask.text, limit=ask.limit, before=ask.before, patience_s=FLUSH_S * 2,
            )  # fmt: skip
            return [_call(view) for view in found]

        return await self._read(look, flush=True)

    async def recent(self, agents: Sequence[str], count: int) -> dict[str, Sequence[shapes.AuditCall]]:
        """The last named calls of each agent, newest first."""

        def look(reader: Reader) -> dict[str, Sequence[shapes.AuditCall]]:
            found: dict[str, Sequence[shapes.AuditCall]] = {}
            for agent in agents:
                # Handshakes and lists stand between the calls that somebody wants to see.
                rows = [view for view in reader.search(agent=agent, limit=count * 6, bodies=False) if view.tool_name]
                found[agent] = [_call(view) for view in rows[:count]]
            return found

        return await self._fresh(f"recent {count} {list(agents)}", lambda: self._read(look), fresh_s=2.0)

    async def story(self, id: str) -> shapes.AuditStory:
        """One call, by its id, the beginning of its id, or its ticket. Raises `api.NotFound`."""

        def look(reader: Reader) -> shapes.AuditStory:
            try:
                shown = reader.show(id)
            except (NotFound, Ambiguous) as error:
                message, _, hint = str(error).rpartition("; ")
                raise api.NotFound(message, hint) from None
            records = tuple(
                shapes.AuditRecord(
                    seq=record.seq, kind=_kind(record.record), hash=record.hash, created_at=record.created_at,
                    record=bytes(record.record).decode("utf-8", "replace"),
                )
                for record in shown.records[:RECORDS_MAX]
            )  # fmt: skip
            return shapes.AuditStory(call=_call(shown.call), records=records)

        return await self._read(look, flush=True)

    # --- inside -------------------------------------------------------------------------------------------------

    async def _fresh(self, name: str, read: Callable[[], Awaitable[T]], fresh_s: float = FRESH_S) -> T:
        """What `read` gave a short while ago, or gives now; asked once, however many want to know."""
        now = monotonic()
        kept = self._kept.get(name)
        if kept is None or (kept[1].done() and (now - kept[0] > fresh_s or kept[1].exception() is not None)):
            while len(self._kept) >= 64:
                del self._kept[next(iter(self._kept))]
            task: asyncio.Task[Any] = asyncio.ensure_future(read())
            task.add_done_callback(_looked_at)
            self._kept[name] = kept = (now, task)
        found: T = await asyncio.shield(kept[1])
        return found

    async def _read(self, look: Callable[[Reader], T], *, flush: bool = False) -> T:
        try:
            async with asyncio.timeout(WAIT_S), self._readers:
                if flush:
                    try:
                        await self._writer.flush(FLUSH_S)
                    except AuditUnavailable:
                        pass  # what the store has by now is better than nothing
                return await asyncio.to_thread(self._open, look)
        except TimeoutError:
            raise api.Unavailable("the audit store takes too long to answer", "repeat it, or ask for less") from None
        except (OSError, sqlite3.Error) as error:
            raise api.Unavailable(f"the audit store cannot be read: {error}", "see `aegis status`") from None

    def _open(self, look: Callable[[Reader], T]) -> T:
        with Reader(self._path) as reader:
            return look(reader)


def _looked_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waited has been told; nobody else has to be


def _figures(reader: Reader) -> shapes.Figures:
    asked = Figures(reader)
    now = int(wall() * 1e6)
    first = now // HOUR * HOUR - 23 * HOUR
    bars: dict[int, dict[str, int]] = {first + step * HOUR: {} for step in range(24)}
    for hour in asked.hours(first):
        if hour.ts in bars:
            status = "waiting" if hour.status == "pending" else hour.status
            kept = bars[hour.ts]
            kept[status] = kept.get(status, 0) + hour.count
    week = [[0] * 24 for _ in range(7)]
    for ts, count in asked.beats(now - 7 * _DAY):
        when = time.localtime(ts / 1e6)
        week[when.tm_wday][when.tm_hour] += count
    return shapes.Figures(
        at=_instant(now),
        hours=tuple(
            shapes.HourBar(at=_instant(ts), **{name: kept.get(name, 0) for name in _ENDINGS})
            for ts, kept in bars.items()
        ),
        tools=tuple(map(_tool, asked.tools(now - _DAY, limit=8))),
        decided_s=tuple(asked.decided(now - 7 * _DAY)),
        week=tuple(map(tuple, week)),
        capped=asked.capped(now - _DAY),
    )


_ENDINGS: Final = ("success", "error", "denied", "unknown", "waiting")


def _tools(reader: Reader) -> Sequence[shapes.ToolRow]:
    since = int((wall() - TOOLS_SINCE_S) * 1e6)
    return [_tool(row) for row in Figures(reader).tools(since)]


def _would(reader: Reader) -> Sequence[shapes.WouldRow]:
    since = int(wall() * 1e6) - _DAY
    return [
        shapes.WouldRow(
            stage=row.stage, rule=row.rule, count=row.count, agents=row.agents, tools=row.tools,
            last_at=_instant(row.last_ts),
        )
        for row in Figures(reader).would(since)
    ]  # fmt: skip


def _tool(row: Tool) -> shapes.ToolRow:
    return shapes.ToolRow(
        backend_id=row.backend, tool_name=row.name, count=row.count, last_at=_instant(row.last_ts),
        success=row.success, error=row.error, denied=row.denied, unknown=row.unknown, waiting=row.waiting,
        p50_us=row.p50_us, p95_us=row.p95_us,
    )  # fmt: skip


def _call(view: CallView) -> shapes.AuditCall:
    return shapes.AuditCall(
        seq=view.seq, call_id=view.call_id, agent_id=view.agent_id, principal=view.principal,
        backend_id=view.backend_id, method=view.method, tool_name=view.tool_name, arguments=view.arguments or "",
        result=view.result or "", acl_result=view.acl_result, rate_limit_result=view.rate_limit_result,
        approval_result=view.approval_result, approver=view.approver, ticket=view.ticket,
        exec_status=view.exec_status, exec_duration_us=view.exec_duration_us, judged_us=view.judged_us,
        queue_wait_ms=view.queue_wait_ms,
        error_code=view.error_code, error_message=view.error_message, stage=view.stage, rule=view.policy_id,
        would=view.would, created_at=view.created_at,
    )  # fmt: skip


def _kind(record: Any) -> str:
    try:
        return str(read_record(bytes(record)).kind)
    except UNREADABLE:
        return "unreadable"


def _micros(text: str | None) -> int | None:
    """Microseconds since the epoch. Raises `api.BadRequest`."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        return int(found.astimezone().timestamp() * 1e6)
    except (ValueError, OverflowError, OSError):
        raise api.BadRequest(f"`{text[:40]}` is no time", "write 2026-01-31 08:00, or 2026-01-31T08:00:00Z") from None


def _instant(ts: int) -> str:
    return datetime.fromtimestamp(ts / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
