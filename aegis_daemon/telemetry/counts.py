"""Every record of a call is counted once, as it is written; who asks for the numbers costs no call anything.

`heard` is the journal's listener. Of a call it does something at its end alone, and that is behind its answer
(`scripts/bench --telemetry`: 0.04 us for the intent, which is before the call leaves, 0.5 us behind its answer; the
same work by `prometheus_client`, a counter and two histograms, takes 4.7 us). Names that agents can make up are
bounded: beyond `CELLS` kinds of calls, and beyond `tools` tools, they are counted as `(other)`. A tool has numbers of
its own from when it is known: its server listed it, or has answered a call of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Final

from aegis_daemon.telemetry.family import Family, Labels, Spread

CELLS: Final = 2000
OTHER: Final = "(other)"
TOOL_MAX: Final = 128
"""Characters of a tool's name that is a label: as many as MCP gives it (2025-11-25, "Tool Names")."""
BOUNDS_US: Final = (
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000, 120_000_000, 300_000_000,
)  # fmt: skip
"""From 10 ms on as the MCP conventions of OpenTelemetry have them; finer below, where Aegis itself is."""
WAITS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)
_BOUNDS_S: Final = tuple(bound / 1e6 for bound in BOUNDS_US)
_STEPS: Final = len(BOUNDS_US) + 1
_VOTES: Final = frozenset({"approved", "rejected", "expired", "cancelled"})


_Times = tuple[list[int], list[int], list[int]]


def _histogram() -> list[int]:
    """Counts by step, and the sum behind them."""
    return [0] * (_STEPS + 1)


class _Cell:
    """One kind of call; calls of one backend and method share their times."""

    __slots__ = ("added", "count", "queued", "ran")

    def __init__(self, ran: list[int], added: list[int], queued: list[int]) -> None:
        self.count = 0
        self.ran = ran
        self.added = added
        self.queued = queued


class Counts:
    """Counts since the daemon began; belongs to the loop's thread."""

    def __init__(self, tools: int = 0, knows: Callable[[str, str], bool] = lambda backend, tool: False) -> None:
        """`tools`: how many tools have numbers of their own; 0 for none. `knows` of a tool that its server lists."""
        self.tools = tools
        self._knows = knows
        self._cells: dict[tuple[str, str, str, str, str], _Cell] = {}
        self._times: dict[tuple[str, str], _Times] = {}
        self._would: dict[Labels, int] = {}
        self._dropped: dict[Labels, int] = {}
        self._decisions: dict[Labels, int] = {}
        self._waits: dict[Labels, Spread] = {}
        self._tools: dict[tuple[str, str], dict[str, int]] = {}

    def heard(self, record: Any, opened: Any) -> None:
        """A record was written; `opened` is the intent or hold of the call that it ends. Never raises."""
        kind = record.kind
        if kind == "intent" or kind == "hold":
            return
        if kind == "outcome":
            if opened is None:
                return
            backend = opened.backend
            key = (opened.agent, backend, opened.method, record.status, "")
            cell = self._cells.get(key) or self._new(key)
            cell.count += 1
            us = record.duration_us
            ran = cell.ran
            ran[bisect_left(BOUNDS_US, us)] += 1
            ran[_STEPS] += us
            # Both clocks are the journal's: what lies between the two records and was not the backend's is ours.
            us = record.mono - opened.mono - us + opened.judged_us
            if us < 0 or record.boot != opened.boot:
                us = 0
            added = cell.added
            added[bisect_left(BOUNDS_US, us)] += 1
            added[_STEPS] += us
            if opened.queue_wait_us:
                cell.queued[bisect_left(BOUNDS_US, opened.queue_wait_us)] += 1
                cell.queued[_STEPS] += opened.queue_wait_us
            if self.tools and opened.name and opened.method == "tools/call":
                self._tool(backend, opened.name, record.status)
        elif kind == "denied":
            if record.would:
                _more(self._would, (record.backend, record.stage))
                return
            key = (record.agent, record.backend, record.method, "denied", record.stage)
            (self._cells.get(key) or self._new(key)).count += 1
            if self.tools and record.name and record.method == "tools/call":
                self._tool(record.backend, record.name, "denied")
        elif kind == "dropped":
            _more(self._dropped, (record.direction,), record.count)

    def decided(self, decision: str, waited_s: float) -> None:
        """A ticket came to an end, or was voted on, so long after it was opened."""
        if decision not in _VOTES:
            return
        _more(self._decisions, (decision,))
        spread = self._waits.get((decision,))
        waited_s = max(0.0, waited_s)
        if spread is None:
            spread = Spread([0] * (len(WAITS_S) + 1), 0.0)
        spread.counts[bisect_left(WAITS_S, waited_s)] += 1
        self._waits[(decision,)] = Spread(spread.counts, spread.sum + waited_s)

    def _new(self, key: tuple[str, str, str, str, str]) -> _Cell:
        _, backend, method, verdict, stage = key
        if len(self._cells) >= CELLS:
            key = (OTHER, OTHER, OTHER, verdict, stage if len(self._cells) < 2 * CELLS else OTHER)
            found = self._cells.get(key)
            if found is not None:
                return found
            backend, method = OTHER, OTHER
        times = self._times.get((backend, method))
        if times is None:
            times = self._times[backend, method] = (_histogram(), _histogram(), _histogram())
        cell = self._cells[key] = _Cell(*times)
        return cell

    def _tool(self, backend: str, name: str, verdict: str) -> None:
        key = (backend, name)
        found = self._tools.get(key)
        if found is None:
            if (
                len(self._tools) - ((OTHER, OTHER) in self._tools) >= self.tools
                or len(name) > TOOL_MAX
                or (verdict != "success" and not self._knows(backend, name))
            ):
                key = (OTHER, OTHER)
            found = self._tools.setdefault(key, {})
        found[verdict] = found.get(verdict, 0) + 1

    def families(self) -> list[Family]:
        """All numbers, as they are now."""
        cells = self._cells.items()
        by = ("agent", "backend", "method", "verdict", "stage")
        otel = ("aegis.agent", "aegis.backend", "mcp.method.name", "aegis.verdict", "aegis.stage")
        times = list(self._times.items())
        made = [
            Family(
                "aegis_calls", "counter", "Calls that ended, by how; `stage` says what refused one.", by,
                [(key, cell.count) for key, cell in cells], otel="aegis.calls", otel_labels=otel,
            ),
            _seconds("aegis_call_exec", "How long backends took to answer.", times, 0, "mcp.client.operation.duration"),
            _seconds("aegis_call_added", "What Aegis added to calls that were sent: judging, committing, releasing.",
                     times, 1, "aegis.call.added"),
            _seconds("aegis_call_queue", "How long calls stood in line that had to.", times, 2, "aegis.call.queue"),
            Family(
                "aegis_observed_denials", "counter", "Refusals that `mode: observe` let pass.", ("backend", "stage"),
                list(self._would.items()), otel="aegis.observed_denials", otel_labels=("aegis.backend", "aegis.stage"),
            ),
            Family(
                "aegis_dropped_frames", "counter", "Frames that were neither forwarded nor answered.", ("direction",),
                list(self._dropped.items()), otel="aegis.dropped_frames", otel_labels=("aegis.direction",),
            ),
            Family(
                "aegis_approvals", "counter", "Approvals that ended, by how.", ("decision",),
                list(self._decisions.items()), otel="aegis.approvals", otel_labels=("aegis.decision",),
            ),
            Family(
                "aegis_approval_wait_seconds", "histogram", "From the question to its end.", ("decision",),
                spreads=list(self._waits.items()), bounds=WAITS_S, unit="seconds", otel="aegis.approval.wait",
                otel_labels=("aegis.decision",),
            ),
        ]  # fmt: skip
        if self.tools:
            tools: list[tuple[Labels, int | float]] = [
                ((*key, how), count) for key, found in self._tools.items() for how, count in found.items()
            ]
            made.append(
                Family(
                    "aegis_tool_calls", "counter", "Tool calls that ended, by tool.", ("backend", "tool", "verdict"),
                    tools, otel="aegis.tool.calls", otel_labels=("aegis.backend", "gen_ai.tool.name", "aegis.verdict"),
                )
            )  # fmt: skip
        return made


def _more(counts: dict[Labels, int], key: Labels, count: int = 1) -> None:
    if key not in counts and len(counts) >= CELLS:
        key = (OTHER,) * len(key)
    counts[key] = counts.get(key, 0) + count


def _seconds(name: str, help: str, times: list[tuple[tuple[str, str], _Times]], at: int, otel: str) -> Family:
    spreads: list[tuple[Labels, Spread]] = [
        (key, Spread(found[at][:_STEPS], found[at][_STEPS] / 1e6)) for key, found in times if any(found[at][:_STEPS])
    ]
    return Family(
        f"{name}_seconds", "histogram", help, ("backend", "method"), spreads=spreads, bounds=_BOUNDS_S, unit="seconds",
        otel=otel, otel_labels=("aegis.backend", "mcp.method.name"),
    )  # fmt: skip
