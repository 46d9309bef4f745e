"""A search reads its page from an index, and where none fits well it says how far it looked and where to go on.

What is asked for is a row of conditions. The index with the fewest calls behind it leads; the rest is looked up call by
call, slice after slice from the newest to the oldest, until the page is full or the time is over.
"""

from __future__ import annotations

import re
import time
from typing import Any, Final, Literal

import msgspec

from aegis_daemon.audit.store import BODIES, PLAIN, CallView, Reader, view

VERDICTS: Final = ("allowed", "denied", "asked", "error", "unknown", "would", "pending", "success")
"""Words for how a call went: `asked` a person was asked, `would` observe mode let pass what the rules refuse."""
_VERDICTS: Final = {
    "allowed": "(c.exec_status IN ('success', 'error', 'unknown') OR "
    "(c.exec_status = 'pending' AND c.approval_result <> 'pending'))",
    "asked": "c.ticket <> ''",
    "would": "c.would = 1",
    "success": "c.exec_status = 'success'",
}
PROBES: Final = (2_000, 40_000)
"""Entries of an index that are counted to see which one leads; the second where the first leaves it open."""
SLICE: Final = 250
SLICE_MAX: Final = 64_000
_ANY: Final = frozenset("*?[")
_SPACED: Final = re.compile("([:,]) ")


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What calls must be like; None is any. Names may be globs.

    `since` and `until` (excluded) are microseconds since the epoch; `text` is looked for in any case (ASCII).
    """

    agent: str | None = None
    backend: str | None = None
    tool: str | None = None
    method: str | None = None
    verdict: str | None = None
    """a word of `VERDICTS`"""
    stage: str | None = None
    policy: str | None = None
    approver: str | None = None
    ticket: str | None = None
    since: int | None = None
    until: int | None = None
    text: str | None = None
    within: Literal["arguments", "results", "both"] = "arguments"


class Found(msgspec.Struct, frozen=True):
    """A page, newest first. `looked_to`: the time was over, and calls behind this `seq` have not been looked at."""

    rows: list[CallView]
    looked_to: int | None = None
    looked_to_ts: int = 0


class _Lead(msgspec.Struct, frozen=True):
    """An index, and the conditions that it answers."""

    index: str
    condition: str
    given: tuple[object, ...] = ()


def find(
    reader: Reader,
    query: Query,
    *,
    limit: int = 50,
    before: int | None = None,
    bodies: bool = True,
    patience_s: float = float("inf"),
) -> Found:
    """Calls that are like that. `before` is the `seq` of the last row of the page before, or a `looked_to`.

    Raises `TimeoutError` where not even a first slice could be read within `patience_s` seconds.
    """
    until = time.monotonic() + patience_s
    place = _place(reader, before) if before is not None else None
    if before is not None and place is None:
        return Found([])
    bounds, bound_given = _bounds(query, place)
    leads, rest, rest_given = _conditions(query)
    lead = _choose(reader, leads, bounds, bound_given, until, spanned=query.since is not None)
    for other in leads:
        if other is not lead and other.condition:
            rest.append(other.condition)
            rest_given.extend(other.given)
    texts, text_given = _texts(query)
    select = BODIES if bodies or texts else PLAIN
    select = select.replace("FROM calls c", f"FROM calls c INDEXED BY calls_{lead.index}")
    conditions = [*filter(None, [lead.condition]), *bounds, *rest, *texts]
    given = [*lead.given, *bound_given, *rest_given, *text_given]
    if not rest and not texts:
        return Found([view(row) for row in reader.ask(*_page(select, conditions, given, limit), until=until)])
    rows: list[CallView] = []
    size = SLICE
    while True:
        edge = None
        try:
            edge = _edge(reader, lead, bounds, bound_given, size, until)
            more, more_given = (
                (["c.ts >= ? AND (c.ts, c.seq) >= (?, ?)"], [edge[0], *edge]) if edge is not None else ([], [])
            )
            question = _page(select, [*conditions, *more], [*given, *more_given], limit - len(rows))
            rows += [view(row) for row in reader.ask(*question, until=until)]
        except TimeoutError:
            if place is None or size == SLICE:
                raise
            return Found(rows, place[1], place[0])
        if edge is None or len(rows) >= limit:
            return Found(rows)
        place = edge
        if time.monotonic() > until:
            return Found(rows, place[1], place[0])
        size = min(size * 2, SLICE_MAX)
        bounds, bound_given = _bounds(query, place)
        conditions = [*filter(None, [lead.condition]), *bounds, *rest, *texts]
        given = [*lead.given, *bound_given, *rest_given, *text_given]


# --- conditions -------------------------------------------------------------------------------------------------------


def _bounds(query: Query, place: tuple[int, int] | None) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    given: list[Any] = []
    if query.since is not None:
        where.append("c.ts >= ?")
        given.append(query.since)
    if query.until is not None:
        where.append("c.ts < ?")
        given.append(query.until)
    if place is not None:
        # By the pair alone SQLite (3.40) reads an index from its newest entry on.
        where.append("c.ts <= ? AND (c.ts, c.seq) < (?, ?)")
        given += [place[0], *place]
    return where, given


def _conditions(query: Query) -> tuple[list[_Lead], list[str], list[Any]]:
    """What an index can answer, the last being time alone; and what none can, with its values."""
    leads: list[_Lead] = []
    rest: list[str] = []
    given: list[Any] = []
    for column, wanted, index, partial in (
        ("ticket", query.ticket, "asked", True),
        ("policy_id", query.policy, "policy", True),
        ("approver", query.approver, "approver", True),
        ("stage", query.stage, "stage", True),
        ("tool_name", query.tool, "tool", False),
        ("agent_id", query.agent, "agent", False),
        ("backend_id", query.backend, "backend", False),
        ("method", query.method, "", False),
    ):
        if wanted is None:
            continue
        glob = bool(_ANY & set(wanted))
        told = f"c.{column} GLOB ?" if glob else f"c.{column} = ?"
        value = wanted.replace("[!", "[^") if glob else wanted
        if index == "asked":
            leads.append(_Lead("asked", f"{told} AND c.ticket <> ''", (value,)))
        elif index and not glob:
            leads.append(_Lead(index, f"{told} AND c.{column} <> ''" if partial else told, (value,)))
        else:
            rest.append(told)
            given.append(value)
    word = query.verdict
    if word in ("asked", "would"):
        leads.append(_Lead(word, _VERDICTS[word]))
    elif word in ("allowed", "success"):
        rest.append(_VERDICTS[word])
    elif word is not None:
        leads.append(_Lead("status", "c.exec_status = ? AND c.exec_status <> 'success'", (word,)))
    leads.append(_Lead("time", ""))
    return leads, rest, given


def _texts(query: Query) -> tuple[list[str], list[Any]]:
    if query.text is None:
        return [], []
    # JSON is kept as it came, mostly without the spaces that it is shown with.
    given = [
        "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        for text in dict.fromkeys((query.text, _SPACED.sub(r"\1", query.text)))
    ]
    sides = {"arguments": "a", "results": "r", "both": "ar"}[query.within]
    likes = [f"{side}.body LIKE ? ESCAPE '\\'" for side in sides for _ in given]
    return [f"({' OR '.join(likes)})"], given * len(sides)


def _choose(
    reader: Reader, leads: list[_Lead], bounds: list[str], given: list[Any], until: float, *, spanned: bool
) -> _Lead:
    """The index with the fewest entries in these bounds, of equals the first; time itself where a span is given."""
    candidates = leads if spanned else leads[:-1] or leads
    for most in PROBES:
        if len(candidates) == 1:
            break
        counts = []
        for lead in candidates:
            question = f"SELECT count(*) FROM (SELECT 1 {_from(lead, bounds)} LIMIT ?)"  # noqa: S608
            counts.append(int(reader.ask(question, (*lead.given, *given, most), until=until)[0][0]))
        least = min(counts)
        candidates = [lead for lead, count in zip(candidates, counts, strict=True) if count == least]
        if least < most:
            break
    return candidates[0]


def _from(lead: _Lead, bounds: list[str]) -> str:
    where = " AND ".join([*filter(None, [lead.condition]), *bounds])
    return f"FROM calls c INDEXED BY calls_{lead.index}{f' WHERE {where}' if where else ''}"


def _page(select: str, conditions: list[str], given: list[Any], limit: int) -> tuple[str, tuple[object, ...]]:
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"{select}{where} ORDER BY c.ts DESC, c.seq DESC LIMIT ?", (*given, limit)


def _edge(
    reader: Reader, lead: _Lead, bounds: list[str], given: list[Any], size: int, until: float
) -> tuple[int, int] | None:
    """The last of the next `size` calls behind an index; None where there are fewer."""
    question = f"SELECT c.ts, c.seq {_from(lead, bounds)} ORDER BY c.ts DESC, c.seq DESC LIMIT 1 OFFSET ?"
    rows = reader.ask(question, (*lead.given, *given, size - 1), until=until)
    return (int(rows[0][0]), int(rows[0][1])) if rows else None


def _place(reader: Reader, before: int) -> tuple[int, int] | None:
    """Where a call stands in time; one that is gone stands where its elder neighbour does."""
    rows = reader.ask(
        "SELECT ts, seq FROM calls WHERE seq <= ? ORDER BY seq DESC LIMIT 1", (before,), until=float("inf")
    )
    if not rows:
        return None
    ts, seq = rows[0]
    return int(ts), before if seq == before else int(seq) + 1
