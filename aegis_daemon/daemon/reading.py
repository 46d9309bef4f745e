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
from aegis_daemon.audit.latest import ASK_S, Latest, Tool
from aegis_daemon.audit.rollup import DAY, HOUR
from aegis_daemon.audit.search import Query, find
from aegis_daemon.audit.store import Ambiguous, CallView, NotFound, Reader
from aegis_daemon.audit.telling import tell
from aegis_daemon.audit.totals import Total, denials, totals
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
STATS_ROWS: Final = 8
RECORDS_MAX: Final = 100
"""Records of one call that are shown."""
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

    async def search(self, ask: shapes.AuditQuery) -> shapes.AuditPage:
        """Calls, newest first; what was recorded by now is among them."""
        query = Query(
            agent=ask.agent, backend=ask.backend, tool=ask.tool, verdict=ask.status, stage=ask.stage,
            policy=ask.policy, approver=ask.approver, since=_micros(ask.since), until=_micros(ask.until),
            text=ask.text, within=ask.within,
        )  # fmt: skip

        def look(reader: Reader) -> shapes.AuditPage:
            found = find(reader, query, limit=ask.limit, before=ask.before, patience_s=FLUSH_S * 2)
            reached = _instant(found.looked_to_ts) if found.looked_to is not None else ""
            return shapes.AuditPage(
                rows=tuple(map(_call, found.rows)), looked_to=found.looked_to, looked_at=reached
            )  # fmt: skip

        return await self._read(look, flush=True)

    async def stats(self) -> shapes.AuditStats:
        """The last 24 hours in numbers."""
        return await self._fresh("stats", lambda: self._read(_stats))

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
                told = tell(reader, id)
            except (NotFound, Ambiguous) as error:
                message, _, hint = str(error).rpartition("; ")
                raise api.NotFound(message, hint) from None
            records = tuple(
                shapes.AuditRecord(
                    seq=record.seq, kind=_kind(record.record), hash=record.hash, created_at=record.created_at,
                    record=bytes(record.record).decode("utf-8", "replace"),
                )
                for record in told.records[:RECORDS_MAX]
            )  # fmt: skip
            steps = tuple(
                shapes.AuditStep(
                    seq=step.seq, kind=step.kind, created_at=step.created_at, after_us=step.after_us, text=step.text
                )
                for step in told.steps[:RECORDS_MAX]
            )
            return shapes.AuditStory(
                call=_call(told.call), records=records, steps=steps,
                related=tuple(each.call_id for each in told.related), approval_wait_us=told.approval_wait_us,
            )  # fmt: skip

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
    asked = Latest(reader)
    now = int(wall() * 1e6)
    first = now // HOUR * HOUR - 23 * HOUR
    bars: dict[int, dict[str, int]] = {first + step * HOUR: {} for step in range(24)}
    for hour in asked.hours(first):
        if hour.ts in bars:
            status = "waiting" if hour.status == "pending" else hour.status
            kept = bars[hour.ts]
            kept[status] = kept.get(status, 0) + hour.count
    week = [[0] * 24 for _ in range(7)]
    for ts, count in asked.beats(now - 7 * DAY):
        when = time.localtime(ts / 1e6)
        week[when.tm_wday][when.tm_hour] += count
    return shapes.Figures(
        at=_instant(now),
        hours=tuple(
            shapes.HourBar(at=_instant(ts), **{name: kept.get(name, 0) for name in _ENDINGS})
            for ts, kept in bars.items()
        ),
        tools=tuple(map(_tool, asked.tools(now - DAY, limit=8))),
        decided_s=tuple(asked.decided(now - 7 * DAY)),
        week=tuple(map(tuple, week)),
        capped=asked.capped(now - DAY),
    )


def _stats(reader: Reader) -> shapes.AuditStats:
    now = int(wall() * 1e6)
    first = now // HOUR * HOUR - 23 * HOUR
    hours = {hour.start: hour for hour in totals(reader, "hour", first, now + 1, patience_s=ASK_S)}
    bars = [hours.get(first + at * HOUR) or Total(start=first + at * HOUR) for at in range(24)]
    tools = totals(reader, "tool", first, now + 1, patience_s=ASK_S)
    return shapes.AuditStats(
        hours=tuple(
            shapes.HourBar(
                at=_instant(bar.start), success=bar.success, error=bar.error, denied=bar.denied,
                unknown=bar.unknown, waiting=bar.pending,
            )
            for bar in bars
        ),
        tools=tuple(
            shapes.AuditGroup(
                backend_id=row.backend_id, tool_name=row.tool_name, calls=row.calls, success=row.success,
                error=row.error, denied=row.denied, unknown=row.unknown, waiting=row.pending,
                p50_us=row.exec_p50_us, p95_us=row.exec_p95_us, p99_us=row.exec_p99_us,
            )
            for row in tools[:STATS_ROWS]
        ),
        denials=tuple(
            shapes.AuditDenial(
                stage=row.stage, rule=row.policy_id, backend_id=row.backend_id, tool_name=row.tool_name,
                calls=row.calls,
            )
            for row in denials(reader, first, now + 1, limit=STATS_ROWS, patience_s=ASK_S)
        ),
    )  # fmt: skip


_ENDINGS: Final = ("success", "error", "denied", "unknown", "waiting")


def _tools(reader: Reader) -> Sequence[shapes.ToolRow]:
    since = int((wall() - TOOLS_SINCE_S) * 1e6)
    return [_tool(row) for row in Latest(reader).tools(since)]


def _would(reader: Reader) -> Sequence[shapes.WouldRow]:
    since = int(wall() * 1e6) - DAY
    return [
        shapes.WouldRow(
            stage=row.stage, rule=row.rule, count=row.count, agents=row.agents, tools=row.tools,
            last_at=_instant(row.last_ts),
        )
        for row in Latest(reader).would(since)
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
