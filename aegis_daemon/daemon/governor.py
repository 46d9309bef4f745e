"""What the daemon lets a person ask of it: the management floor's governor over the real parts."""

from __future__ import annotations

import asyncio
import hmac
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from aegis_daemon import __version__
from aegis_daemon.approvals import ticket as tickets
from aegis_daemon.approvals.desk import Decided, Desk, NoSuchTicket
from aegis_daemon.approvals.ticket import spoken
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.backends.children import Nursery
from aegis_daemon.config.load import masked
from aegis_daemon.core.session import State
from aegis_daemon.core.units import go_duration
from aegis_daemon.daemon.reload import InForce
from aegis_daemon.daemon.sessions import Sessions
from aegis_daemon.lanes import Lanes
from aegis_daemon.limits import Limits, milliseconds
from aegis_daemon.loop.clock import monotonic
from aegis_daemon.manage import ancestry, api, shapes

_EVENTS: dict[str, Literal["opened", "attached", "waiter_gone", "decided", "expired", "consumed"]] = {
    "opened": "opened",
    "attached": "attached",
    "waiter_gone": "waiter_gone",
    "approved": "decided",
    "rejected": "decided",
    "expired": "expired",
    "consumed": "consumed",
}


def instant(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ticket_row(ticket: tickets.Ticket) -> shapes.Ticket:
    """One ticket as people see it."""
    return shapes.Ticket(
        id=ticket.id,
        call_id=ticket.call_id,
        agent_id=ticket.agent,
        backend_id=ticket.backend,
        method=ticket.method,
        tool_name=ticket.name,
        arguments=ticket.arguments,
        created_at=instant(ticket.created),
        expires_at=instant(ticket.expires),
        state=ticket.state,  # type: ignore[arg-type]
        waiting=ticket.attended,
        rule=ticket.rule,
    )


class Governor:
    """See `manage.api.Governor`."""

    def __init__(
        self,
        *,
        socket: str,
        in_force: Callable[[], InForce],
        reload: Callable[[], shapes.Reloaded],
        stop: Callable[[bool], None],
        sessions: Sessions,
        desk: Desk,
        limits: Limits,
        lanes: Lanes,
        journal: Journal,
        writer: WriterHandle,
        nursery: Nursery,
        key: str,
    ) -> None:
        self._socket = socket
        self._in_force = in_force
        self._reload = reload
        self._stop = stop
        self._sessions = sessions
        self._desk = desk
        self._limits = limits
        self._lanes = lanes
        self._journal = journal
        self._writer = writer
        self._nursery = nursery
        self._key = key
        self._began = monotonic()
        self._watchers: set[asyncio.Queue[shapes.TicketEvent]] = set()

    # --- reading ------------------------------------------------------------------------------------------------

    def status(self) -> shapes.Status:
        """The daemon at a glance."""
        force = self._in_force()
        return shapes.Status(
            version=__version__,
            pid=os.getpid(),
            uptime_s=int(monotonic() - self._began),
            tier="isolated" if force.runtime.isolated else "advisory",
            mode=force.config.mode,
            config=str(force.path) if force.path is not None else None,
            config_digest=force.runtime.digest,
            socket=self._socket,
            durability=force.config.audit.durability,
            sessions=tuple(
                shapes.Session(
                    session=session.conversation.session,
                    agent_id=session.conversation.principal.agent,
                    backend_id=session.conversation.backend,
                    way=session.way,
                    era=session.conversation.era.name.lower(),
                    shim_pid=session.shim_pid,
                    server_pid=session.conversation.server.pid if session.conversation.server is not None else None,
                    since=instant(session.since),
                    calls=session.conversation.calls,
                    in_flight=len(session.conversation.to_server),
                )
                for session in self._sessions
            ),
            servers_alive=self._nursery.alive,
            reaped_late=self._nursery.late,
            pending=len(self._desk.pending()),
            audit=shapes.AuditState(
                seq=self._journal.last_seq,
                ingested=self._journal.ingested_seq,
                backlog_bytes=self._journal.backlog_bytes,
                healthy=self._journal.healthy,
                detail=self._journal.detail,
            ),
            warnings=force.warnings,
        )

    def pending(self) -> Sequence[shapes.Ticket]:
        """Tickets, oldest first."""
        return [ticket_row(ticket) for ticket in self._desk.pending()]

    async def watch_pending(self) -> AsyncIterator[shapes.TicketEvent]:
        """What waits now, then what happens."""
        events: asyncio.Queue[shapes.TicketEvent] = asyncio.Queue()
        for row in self.pending():
            events.put_nowait(shapes.TicketEvent(event="opened", ticket=row))
        self._watchers.add(events)
        try:
            while True:
                yield await events.get()
        finally:
            self._watchers.discard(events)

    def happened(self, event: str, ticket: tickets.Ticket) -> None:
        """Something happened to a ticket: every watcher hears of it."""
        if self._watchers:
            made = shapes.TicketEvent(event=_EVENTS[event], ticket=ticket_row(ticket), by=ticket.by or None)
            for events in self._watchers:
                events.put_nowait(made)

    def limits(self, agent: str | None, backend: str | None, tool: str | None) -> Sequence[shapes.LimitRow]:
        """The windows and how full they are."""
        now = monotonic()
        rows = []
        for claim in self._in_force().runtime.claims:
            if (
                (backend is not None and claim.backend != backend)
                or (tool is not None and claim.tool != tool)
                or (agent is not None and claim.agent not in (agent, None))
            ):
                continue
            usage = self._limits.usage(claim, now)
            after = usage.retry_after_s
            rows.append(
                shapes.LimitRow(
                    scope="global" if claim.agent is None else "agent",
                    agent_id=claim.agent,
                    backend_id=claim.backend,
                    tool=claim.tool,
                    window=go_duration(claim.window_s),
                    max_count=claim.max_count,
                    current=usage.current,
                    reserved=usage.reserved,
                    retry_after_ms=None if after is None else milliseconds(after),
                )
            )
        return rows

    def queue(self) -> Sequence[shapes.QueueRow]:
        """Every call in every lane."""
        return [
            shapes.QueueRow(
                call_id=row.call_id,
                agent_id=row.agent_id,
                backend_id=row.backend_id,
                tool_name=row.tool_name,
                position=row.position,
                state=row.state,  # type: ignore[arg-type]
                waited_ms=int(row.waited_s * 1000),
                starts_in_ms=None if row.starts_in_s is None else int(row.starts_in_s * 1000),
            )
            for row in self._lanes.rows()
        ]

    def config_show(self) -> dict[str, Any]:
        """The configuration in force, secrets masked."""
        return masked(self._in_force().config)

    # --- deciding -----------------------------------------------------------------------------------------------

    def may_decide(self, pid: int | None, key: str | None) -> str | None:
        """None, or why this process may not decide (no self-approval)."""
        if key is not None:
            if hmac.compare_digest(key.strip().encode(), self._key.encode()):
                return None
            return "the approver key is not the daemon's"
        agents = [session.agent_process for session in self._sessions if session.agent_process is not None]
        if not agents:
            return None
        if pid is None:
            return "nobody can tell which process asks"
        try:
            found = ancestry.descends(pid, agents)
        except ancestry.Vanished as error:
            return f"nobody can tell who asks: {error}"
        if found is None:
            return None
        return (
            f"the request comes from `{found.name}` (pid {found.pid}), which is a governed agent or was started by one"
        )

    async def decide(self, id: str, approve: bool, *, by: str, via: str, note: str) -> shapes.Decided:
        """One decision on one ticket."""
        try:
            ticket = self._desk.decide(spoken(id) if len(id) < 16 else id, approve, by, note)
        except NoSuchTicket:
            raise api.NotFound(f"no ticket `{id}` waits", "see `aegis pending`") from None
        except Decided as decided:
            raise api.Conflict(str(decided)) from None
        except sqlite3.Error as error:
            raise api.Refusal(
                f"the decision could not be kept ({error}), so it was not taken", "free space on the disk and repeat it"
            ) from None
        return shapes.Decided(id=ticket.id, call_id=ticket.call_id, state="approved" if approve else "rejected")

    def cancel_queued(self, call_id: str) -> bool:
        """Refuses a call that has not been sent."""
        for session in self._sessions:
            for opened in session.conversation.to_server.all():
                call = opened.call
                if call is None or opened.state is not State.WAITING or opened.strand is None:
                    continue
                if call.id == call_id or (len(call_id) >= 8 and call.id.startswith(call_id)):
                    session.conversation.cancel_waiting(opened, "a person took the call out of the queue")
                    return True
        return False

    async def reload(self) -> shapes.Reloaded:
        """The file, again."""
        return self._reload()

    async def flush_audit(self) -> int:
        """Waits until SQLite has what was recorded by now."""
        return await self._writer.flush()

    async def stop(self, restart: bool) -> None:
        """Begins to stop."""
        asyncio.get_running_loop().call_later(0.05, self._stop, restart)
