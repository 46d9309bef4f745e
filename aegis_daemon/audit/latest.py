"""What the newest calls say in numbers: each question reads a bounded part of the store, and gives up in time.

It asks the calls themselves, so it can tell what nobody counts beforehand, of `CALLS` at most; sums over any time are
in `totals`. All of it is SQL, so that the thread that asks holds up nobody else in the process. Calls without a name
(handshakes, lists, pings) are nobody's concern here.
"""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from aegis_daemon.audit.rollup import HOUR
from aegis_daemon.audit.store import Reader

CALLS: Final = 100_000
"""Calls that one question looks at, the newest ones."""
RECORDS: Final = 50_000
"""Records among which decisions are looked for."""
DECISIONS: Final = 500
TOOLS: Final = 200
HEAT: Final = 500_000
"""Calls that the week's map counts."""
ASK_S: Final = 4.0
"""How long a question may take before it is given up."""
_LATELY = (
    "WITH c AS MATERIALIZED (SELECT ts, backend_id, tool_name, exec_status, exec_duration_us FROM calls "
    "WHERE ts >= ? AND tool_name <> '' ORDER BY ts DESC LIMIT ?) "
)


class Hour(msgspec.Struct, frozen=True):
    """How many calls that began in the hour at `ts` (microseconds since the epoch) ended with `status`."""

    ts: int
    status: str
    count: int


class Tool(msgspec.Struct, frozen=True):
    """One tool of one backend. `p50_us` and `p95_us` are of answered calls, None where there is none."""

    backend: str
    name: str
    count: int
    last_ts: int
    success: int
    error: int
    denied: int
    unknown: int
    waiting: int
    p50_us: int | None
    p95_us: int | None


class Would(msgspec.Struct, frozen=True):
    """Calls that one rule would have refused, and did not since the mode was `observe`."""

    stage: str
    rule: str
    count: int
    agents: int
    tools: int
    last_ts: int


class Latest:
    """Questions to one store. Each raises `TimeoutError` where it takes too long, and `sqlite3.Error`."""

    def __init__(self, reader: Reader, *, patience_s: float = ASK_S) -> None:
        self._reader = reader
        self._patience_s = patience_s

    def hours(self, since: int) -> list[Hour]:
        """Calls by the hour they began and how they ended, oldest first."""
        found = self._rows(
            f"{_LATELY} SELECT ts / ? * ?, exec_status, count(*) FROM c GROUP BY 1, 2 ORDER BY 1",  # noqa: S608
            (since, CALLS, HOUR, HOUR),
        )
        return [Hour(*row) for row in found]

    def tools(self, since: int, limit: int = TOOLS) -> list[Tool]:
        """Tools that were called, the most called first."""
        found = self._rows(
            f"""{_LATELY}, answered AS (
              SELECT backend_id, tool_name, exec_duration_us AS us,
                row_number() OVER (PARTITION BY backend_id, tool_name ORDER BY exec_duration_us) AS place,
                count(*) OVER (PARTITION BY backend_id, tool_name) AS among
              FROM c WHERE exec_status IN ('success', 'error')
            ), times AS (
              SELECT backend_id, tool_name, max(CASE WHEN place = (among * 50 + 99) / 100 THEN us END) AS p50,
                max(CASE WHEN place = (among * 95 + 99) / 100 THEN us END) AS p95
              FROM answered GROUP BY 1, 2
            )
            SELECT c.backend_id, c.tool_name, count(*), max(c.ts), sum(exec_status = 'success'),
              sum(exec_status = 'error'), sum(exec_status = 'denied'), sum(exec_status = 'unknown'),
              sum(exec_status = 'pending'), p50, p95
            FROM c LEFT JOIN times t ON t.backend_id = c.backend_id AND t.tool_name = c.tool_name
            GROUP BY 1, 2 ORDER BY 3 DESC, 4 DESC LIMIT ?""",  # noqa: S608
            (since, CALLS, limit),
        )
        return [Tool(*row) for row in found]

    def decided(self, since: int) -> list[float]:
        """Seconds from the ask to a person's word, for the latest decisions."""
        found = self._rows(
            """SELECT (json_extract(r.record, '$.ts') - min(c.ts)) / 1e6
            FROM (SELECT seq, record FROM records WHERE seq > (SELECT max(seq) FROM records) - ?
                  AND instr(record, '"kind":"approval"') > 0 ORDER BY seq DESC LIMIT ?) r
            JOIN calls c ON c.call_id = json_extract(r.record, '$.call')
            WHERE json_extract(r.record, '$.kind') = 'approval'
              AND json_extract(r.record, '$.decision') IN ('approved', 'rejected')
              AND json_extract(r.record, '$.ts') >= ?
            GROUP BY r.seq ORDER BY r.seq DESC""",
            (RECORDS, DECISIONS, since),
        )
        return [max(0.0, row[0]) for row in found if row[0] is not None]

    def beats(self, since: int) -> list[tuple[int, int]]:
        """(hour, calls) since then; the hour in microseconds since the epoch."""
        found = self._rows(
            "SELECT ts / ? * ?, count(*) FROM (SELECT ts FROM calls WHERE ts >= ? ORDER BY ts DESC LIMIT ?) GROUP BY 1",
            (HOUR, HOUR, since, HEAT),
        )
        return [(int(ts), int(count)) for ts, count in found]

    def would(self, since: int, limit: int = TOOLS) -> list[Would]:
        """Rules by the calls that they would have refused, those with the most first."""
        found = self._rows(
            """SELECT stage, policy_id, count(*), count(DISTINCT agent_id),
              count(DISTINCT backend_id || '.' || tool_name), max(ts)
            FROM (SELECT * FROM calls WHERE ts >= ? ORDER BY ts DESC LIMIT ?) WHERE would = 1
            GROUP BY 1, 2 ORDER BY 3 DESC, 6 DESC LIMIT ?""",
            (since, CALLS, limit),
        )
        return [Would(*row) for row in found]

    def capped(self, since: int) -> bool:
        """Whether there are more calls since then than a question looks at."""
        found = self._rows("SELECT count(*) FROM (SELECT 1 FROM calls WHERE ts >= ? LIMIT ?)", (since, CALLS + 1))
        return int(found[0][0]) > CALLS

    def _rows(self, question: str, given: tuple[object, ...]) -> list[tuple[Any, ...]]:
        return self._reader.ask(question, given, until=time.monotonic() + self._patience_s)
