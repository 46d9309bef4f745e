"""What the daemon lets a person ask of it: the management floor's governor over the real parts."""

from __future__ import annotations

import asyncio
import hmac
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from aegis_daemon import __version__
from aegis_daemon.approvals import links
from aegis_daemon.approvals import ticket as tickets
from aegis_daemon.approvals.desk import Decided, Desk, NoSuchTicket
from aegis_daemon.approvals.ticket import spoken
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.backends.children import Nursery
from aegis_daemon.config.load import masked
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.core.session import State
from aegis_daemon.core.units import go_duration
from aegis_daemon.daemon.reload import InForce
from aegis_daemon.daemon.sessions import Sessions
from aegis_daemon.lanes import Lanes
from aegis_daemon.limits import Limits, milliseconds
from aegis_daemon.loop.clock import monotonic, wall
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


AUDIT_READERS = 2
"""Requests that read the audit store at once."""
AUDIT_WAIT_S = 10.0
AUDIT_FLUSH_S = 2.0
"""How long a reader waits for what was recorded last."""
AUDIT_STEP = 1000
_USE_COMMAND = "see `aegis pending`, and decide there with `aegis approve` or `aegis reject`"


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


def _audit_rows(path: Path, limit: int, offset: int) -> list[shapes.AuditRow]:
    """Reads one page. Raises `OSError`, `sqlite3.Error`."""
    with Reader(path) as reader:
        before: int | None = None
        while offset > 0:  # the reader goes from row to row, so what lies before the page is walked through
            step = min(offset, AUDIT_STEP)
            passed = reader.search(method="tools/call", limit=step, before=before, bodies=False)
            if len(passed) < step:
                return []
            before, offset = passed[-1].seq, offset - step
        found = reader.search(method="tools/call", limit=limit, before=before)
    return [
        shapes.AuditRow(
            call_id=call.call_id,
            request_id=call.request_id,
            agent_id=call.agent_id,
            backend_id=call.backend_id,
            tool_name=call.tool_name,
            arguments=call.arguments or "",
            acl_result=call.acl_result,
            rate_limit_result=call.rate_limit_result,
            approval_result=call.approval_result,
            queue_position=call.queue_position,
            queue_wait_ms=call.queue_wait_ms,
            exec_status=call.exec_status,
            exec_duration_ms=call.exec_duration_ms,
            error_message=call.error_message,
            created_at=call.created_at,
        )
        for call in found
    ]


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
        audit_db: Path | None = None,
        links_key: bytes = b"",
        http: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._http = http
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
        self._audit_db = audit_db
        self._links_key = links_key
        self._readers = asyncio.Semaphore(AUDIT_READERS)
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
            http=self._http(),
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

    def agents(self) -> Sequence[shapes.Agent]:
        """The configured agents."""
        return [
            shapes.Agent(
                id=name,
                display_name=agent.display_name or "",
                backends={
                    backend: shapes.AgentAccess(
                        allowed=access.allowed,
                        denied_tools=access.tool_denylist,
                        allowed_tools=access.tool_allowlist,
                        approval_required=access.approval_required,
                    )
                    for backend, access in agent.backends.items()
                },
            )
            for name, agent in self._in_force().config.agents.items()
        ]

    def rate_limits(self, agent: str) -> Sequence[shapes.LimitRow]:
        """One agent's windows, its own first."""
        configured = self._in_force().config.agents.get(agent)
        if configured is None:
            raise api.NotFound(f"no agent `{agent}` is configured", "`/api/v1/agents` lists them")
        used = {backend for backend, access in configured.backends.items() if access.allowed}
        rows = [row for row in self.limits(agent, None, None) if row.scope == "agent" or row.backend_id in used]
        return sorted(rows, key=lambda row: row.scope)

    def queue_status(self) -> dict[str, int]:
        """Calls that wait, by backend."""
        waiting = dict.fromkeys(self._in_force().runtime.lanes, 0)
        for row in self._lanes.rows():
            waiting[row.backend_id] = waiting.get(row.backend_id, 0) + (row.state != "running")
        return waiting

    async def audit_logs(self, limit: int, offset: int) -> Sequence[shapes.AuditRow]:
        """`tools/call` rows, newest first, read in a thread of their own."""
        if self._audit_db is None:
            raise api.Unavailable("this daemon has no audit store to read")
        try:
            async with asyncio.timeout(AUDIT_WAIT_S), self._readers:
                try:
                    await self._writer.flush(AUDIT_FLUSH_S)
                except AuditUnavailable:
                    pass  # what the store has by now is better than nothing
                return await asyncio.to_thread(_audit_rows, self._audit_db, limit, offset)
        except TimeoutError:
            raise api.Unavailable("the audit store is being read by others", "repeat it") from None
        except (OSError, sqlite3.Error) as error:
            raise api.Unavailable(f"the audit store cannot be read: {error}", "see `aegis status`") from None

    # --- deciding -----------------------------------------------------------------------------------------------

    def may_decide(self, pid: int | None, key: str | None) -> str | None:
        """None, or why this process may not decide (no self-approval)."""
        if key is not None:
            return None if self.knows_key(key) else "the approver key is not the daemon's"
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

    def knows_key(self, key: str) -> bool:
        """Whether this is the approver key."""
        return bool(self._key) and hmac.compare_digest(key.strip().encode(), self._key.encode())

    def follow(self, id: str, action: str, token: str) -> shapes.Linked:
        """What an approval link speaks of."""
        bound = links.read(self._links_key, id, action, token) if self._links_key else None
        if bound is None:
            raise api.Forbidden("this link was not made by this daemon, or something was changed in it", _USE_COMMAND)
        try:
            ticket = self._desk.get(id)
        except NoSuchTicket:
            ticket = None
        # A short id is given out again once it is free, so what stands under it now may be another call's.
        if ticket is None or links.binding(ticket) != bound.binding:
            raise api.NotFound(f"`{id}` was decided, or expired, and is no longer known", _USE_COMMAND)
        if ticket.state != tickets.PENDING:
            raise api.NotFound(str(Decided(ticket)))
        if bound.expires < wall():
            raise api.NotFound(f"`{id}` expired")
        return shapes.Linked(ticket=ticket_row(ticket), code=links.code(self._links_key, bound.binding))

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
