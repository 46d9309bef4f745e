"""What happens, as Server-Sent Events: bounded for a slow reader, alive while nothing happens, over with the session.

Every stream begins with `sync`, on which a page looks anew at what it shows; so nothing has to be kept for those who
come back, and nothing gets lost between the page and its stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from aegis_daemon.core.text import visible
from aegis_daemon.manage import api, shapes
from aegis_daemon.manage.ui.sessions import Session

BEAT_S: Final = 15.0
"""How often a silent stream says that it lives, and looks whether its session does."""
GATHER_S: Final = 0.15
"""What happens within this time leaves together."""
ROWS: Final = 60
"""Calls that leave at once; of more, the older ones are counted alone."""
KEPT: Final = 256
RETRY_MS: Final = 3000


async def events(governor: api.Governor, session: Session, *, calls: bool, last_id: int = 0) -> AsyncGenerator[bytes]:
    """The stream of one page. `calls`: the feed of calls too. Ends with the session."""
    number = last_id
    kept: deque[tuple[str, Any]] = deque()
    more = asyncio.Event()
    lost = {"call": 0, "ticket": 0, "pins": 0}

    async def take(source: AsyncIterator[Any], kind: str) -> None:
        try:
            async for one in source:
                if len(kept) >= KEPT:
                    gone, what = kept.popleft()
                    lost[gone] += what.lost if gone == "call" and what.event == "lost" else 1
                kept.append((kind, one))
                more.set()
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()

    def event(name: str, data: Any) -> bytes:
        nonlocal number
        number += 1
        return b"event: %b\nid: %d\ndata: %b\n\n" % (name.encode(), number, msgspec.json.encode(data))

    def good() -> bool:
        return governor.logins.good(session)

    session.on_end.append(more.set)
    tasks = [
        asyncio.ensure_future(take(governor.watch_pending(), "ticket")),
        asyncio.ensure_future(take(governor.watch_pins(), "pins")),
    ]
    if calls:
        tasks.append(asyncio.ensure_future(take(governor.watch_calls(), "call")))
    try:
        await asyncio.sleep(0)  # they watch from now on: whatever `sync` makes a page miss is an event
        yield b"retry: %d\n\n" % RETRY_MS + event("sync", _counts(governor))
        while good():
            try:
                async with asyncio.timeout(BEAT_S):
                    await more.wait()
            except TimeoutError:
                if any(task.done() for task in tasks):
                    return  # the browser comes again
                yield b": alive\n\n"
                continue
            if not good():
                break
            await asyncio.sleep(GATHER_S)
            more.clear()
            yield _told(governor, kept, lost, event)
        yield event("bye", {})
    finally:
        session.on_end.remove(more.set)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError, Exception):
                await task


def _told(
    governor: api.Governor, kept: deque[tuple[str, Any]], lost: dict[str, int], event: Callable[[str, Any], bytes]
) -> bytes:
    found: list[bytes] = []
    rows: list[shapes.CallRow] = []
    tickets = [what for kind, what in kept if kind == "ticket"]
    for kind, what in kept:
        if kind == "call" and what.event == "lost":
            lost["call"] += what.lost
        elif kind == "call":
            rows.append(what.call)
    moved = lost["pins"] or any(kind == "pins" for kind, _ in kept)
    kept.clear()
    if moved:
        lost["pins"] = 0
        found.append(event("pins", {"changed": governor.pins_waiting()}))
    if lost["ticket"]:
        lost["ticket"] = 0
        found.append(event("sync", _counts(governor)))
    elif tickets:
        pending = governor.waiting()
        found += [event("ticket", {**_ticket(one), "pending": pending}) for one in tickets]
    lost["call"] += max(0, len(rows) - ROWS)
    if lost["call"]:
        found.append(event("lost", {"lost": lost["call"]}))
        lost["call"] = 0
    found += [event("call", _call(row)) for row in rows[-ROWS:]]
    return b"".join(found)


def _counts(governor: api.Governor) -> dict[str, int]:
    return {"pending": governor.waiting(), "changed": governor.pins_waiting()}


def _ticket(event: shapes.TicketEvent) -> dict[str, Any]:
    """No arguments: what is shown of them comes with the page."""
    ticket = event.ticket
    return {
        "event": event.event,
        "id": ticket.id,
        "call_id": ticket.call_id,
        "state": ticket.state,
        "by": visible(event.by or ticket.decided_by),
        "given": ticket.given,
        "needed": ticket.needed,
    }


def _call(row: shapes.CallRow) -> dict[str, Any]:
    told = row.model_dump()
    return {name: visible(value) if isinstance(value, str) else value for name, value in told.items()}
