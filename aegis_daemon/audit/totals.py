"""What all calls of any time say in numbers, from the counts that the writer keeps (`rollup`) and what still runs.

Counts are exact, by whole hours of the epoch; times are percentiles of histograms (3.2 % off at most). What only the
calls themselves can tell is in `latest`. Calls without a name (handshakes, lists, pings) are left out unless asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from aegis_daemon.audit.rollup import DAY, HOUR, percentile, read
from aegis_daemon.audit.store import Reader

GROUPS: Final = ("agent", "backend", "tool", "hour", "policy")
_COLUMNS: Final = {
    "agent": ("agent_id",),
    "backend": ("backend_id",),
    "tool": ("backend_id", "tool_name"),
    "hour": ("start",),
    "policy": ("stage", "policy_id"),
}
_ENDED: Final = ("success", "error", "denied", "unknown")


class Total(msgspec.Struct):
    """One group. `answered` calls (success or error) make the times, in microseconds, None of nothing.

    `would` counts calls that observe mode let pass; they are among the others too.
    """

    agent_id: str = ""
    backend_id: str = ""
    tool_name: str = ""
    stage: str = ""
    policy_id: str = ""
    start: int = 0
    """of an hour, in microseconds since the epoch"""
    calls: int = 0
    success: int = 0
    error: int = 0
    denied: int = 0
    unknown: int = 0
    pending: int = 0
    would: int = 0
    exec_p50_us: int | None = None
    exec_p95_us: int | None = None
    exec_p99_us: int | None = None
    queue_p50_us: int | None = None
    queue_p95_us: int | None = None
    queue_p99_us: int | None = None
    approval_p50_us: int | None = None
    approval_p95_us: int | None = None
    approval_p99_us: int | None = None


class Denial(msgspec.Struct, frozen=True):
    """Calls that one rule (or stage) refused of one tool; `would` of them were let pass by observe mode."""

    stage: str
    policy_id: str
    backend_id: str
    tool_name: str
    calls: int
    agents: int
    would: int


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls count; names may be globs. `nameless`: handshakes, lists and pings too."""

    agent: str | None = None
    backend: str | None = None
    tool: str | None = None
    nameless: bool = False

    def told(self) -> tuple[str, list[object]]:
        """A condition and its values."""
        where = [] if self.nameless else ["tool_name <> ''"]
        given: list[object] = []
        for column, wanted in (("agent_id", self.agent), ("backend_id", self.backend), ("tool_name", self.tool)):
            if wanted is not None:
                where.append(f"{column} GLOB ?")
                given.append(wanted.replace("[!", "[^"))
        return "".join(f" AND {each}" for each in where), given


ALL: Final = Filters()


def totals(
    reader: Reader,
    by: str,
    since: int,
    until: int,
    filters: Filters = ALL,
    *,
    patience_s: float = float("inf"),
) -> list[Total]:
    """Calls that began from the hour of `since` on and before `until`, by a word of `GROUPS`.

    The largest group first, hours in their order. Raises `TimeoutError`, `sqlite3.Error`.
    """
    over = time.monotonic() + patience_s
    columns = _COLUMNS[by]
    groups: dict[tuple[object, ...], Total] = {}
    times: dict[tuple[object, ...], tuple[list[str], list[str], list[str]]] = {}

    def group(key: tuple[object, ...]) -> Total:
        found = groups.get(key)
        if found is None:
            found = groups[key] = Total(**dict(zip(columns, key, strict=True)))  # type: ignore[arg-type]
            times[key] = ([], [], [])
        return found

    more, given = filters.told()
    if by == "policy":
        more += " AND stage <> ''"
    wide = len(columns)
    for span, start, end in _pieces(since, until, by):
        rows = reader.ask(
            f"SELECT {', '.join(columns)}, exec_status, would, calls, exec, queue, approval FROM tallies "  # noqa: S608
            f"WHERE span = ? AND start >= ? AND start < ?{more}",
            (span, start, end, *given),
            until=over,
        )
        for row in rows:
            status, would, calls, *texts = row[wide:]
            total = group(row[:wide])
            total.calls += calls
            if would:
                total.would += calls
            _count(total, status, calls)
            ran, queued, asked = times[row[:wide]]
            if status in ("success", "error"):
                ran.append(texts[0])
            if texts[1]:
                queued.append(texts[1])
            if texts[2]:
                asked.append(texts[2])
    if by != "policy":
        chosen = ", ".join(f"ts / {HOUR} * {HOUR}" if name == "start" else name for name in columns)
        rows = reader.ask(
            f"SELECT {chosen}, count(*) FROM calls INDEXED BY calls_status WHERE exec_status = 'pending' "  # noqa: S608
            f"AND exec_status <> 'success' AND ts >= ? AND ts < ?{more} GROUP BY {chosen}",
            (since // HOUR * HOUR, until, *given),
            until=over,
        )
        for row in rows:
            total = group(row[:wide])
            total.calls += row[wide]
            total.pending += row[wide]
    for key, total in groups.items():
        for name, kept in zip(("exec", "queue", "approval"), times[key], strict=True):
            histogram = read(" ".join(kept))
            for percent in (50, 95, 99):
                setattr(total, f"{name}_p{percent}_us", percentile(histogram, percent))
    if by == "hour":
        return sorted(groups.values(), key=lambda one: one.start)
    return sorted(
        groups.values(),
        key=lambda one: (-one.calls, one.agent_id, one.backend_id, one.tool_name, one.policy_id),
    )


def denials(
    reader: Reader,
    since: int,
    until: int,
    filters: Filters = ALL,
    *,
    limit: int = 10,
    patience_s: float = float("inf"),
) -> list[Denial]:
    """What was refused most, and by which rule. Raises `TimeoutError`, `sqlite3.Error`."""
    over = time.monotonic() + patience_s
    more, given = filters.told()
    found: dict[tuple[str, str, str, str], list[Any]] = {}
    for span, start, end in _pieces(since, until, ""):
        rows = reader.ask(
            f"SELECT stage, policy_id, backend_id, tool_name, agent_id, sum(calls), sum(would * calls) FROM tallies "  # noqa: S608
            f"WHERE span = ? AND start >= ? AND start < ? AND stage <> ''{more} GROUP BY 1, 2, 3, 4, 5",
            (span, start, end, *given),
            until=over,
        )
        for *key, agent, calls, would in rows:
            kept = found.setdefault((key[0], key[1], key[2], key[3]), [0, 0, set()])
            kept[0] += calls
            kept[1] += would
            kept[2].add(agent)
    listed = [Denial(*key, calls, len(agents), would) for key, (calls, would, agents) in found.items()]
    return sorted(listed, key=lambda each: (-each.calls, each.stage, each.policy_id, each.tool_name))[:limit]


def _count(total: Total, status: str, calls: int) -> None:
    if status in _ENDED:
        setattr(total, status, getattr(total, status) + calls)


def _pieces(since: int, until: int, by: str) -> Iterator[tuple[int, int, int]]:
    """Spans that together are the time asked for: whole days where there are some, hours around them."""
    since = since // HOUR * HOUR
    first, last = -(-since // DAY) * DAY, until // DAY * DAY
    if by == "hour" or last <= first:
        yield HOUR, since, until
        return
    yield HOUR, since, first
    yield DAY, first, last
    yield HOUR, last, until
