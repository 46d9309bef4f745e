"""What the daemon lets a person ask of it: the management floor's governor over the real parts."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from aegis_daemon import __version__
from aegis_daemon.approvals import ticket as tickets
from aegis_daemon.approvals.changes import Changes
from aegis_daemon.approvals.desk import Decided, Desk, Nameless, NoSuchTicket
from aegis_daemon.approvals.notifier import Notifier, TooManyTests
from aegis_daemon.approvals.ticket import spoken
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Admin
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.writer import WriterHandle
from aegis_daemon.backends.children import Nursery
from aegis_daemon.config.load import masked
from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.core.session import State
from aegis_daemon.core.text import visible
from aegis_daemon.core.units import go_duration
from aegis_daemon.daemon.asked import Asks
from aegis_daemon.daemon.checking import Checking
from aegis_daemon.daemon.feed import Feed
from aegis_daemon.daemon.forgetting import Forgetting
from aegis_daemon.daemon.keykeeper import KeyKeeper
from aegis_daemon.daemon.metering import Metering
from aegis_daemon.daemon.modes import Modes
from aegis_daemon.daemon.proof import Proof, Prover, Unproven
from aegis_daemon.daemon.reading import Reading
from aegis_daemon.daemon.reload import InForce
from aegis_daemon.daemon.sessions import Sessions
from aegis_daemon.daemon.shipping import Shipping
from aegis_daemon.lanes import Lanes
from aegis_daemon.limits import Limits, milliseconds
from aegis_daemon.loop.clock import monotonic, wall
from aegis_daemon.manage import ancestry, api, shapes
from aegis_daemon.manage.ui.sessions import TOKEN_S, Logins, Person
from aegis_daemon.policy.rules import EVERYWHERE
from aegis_daemon.registry import difference
from aegis_daemon.registry import pins as registry
from aegis_daemon.registry.likeness import telling
from aegis_daemon.relay.admission import Refused

if TYPE_CHECKING:
    from aegis_daemon.approvals.grants import Grant
    from aegis_daemon.daemon.orders import Orders
    from aegis_daemon.daemon.probing import Prober
    from aegis_daemon.daemon.wiring_watch import WiringWatch
    from aegis_daemon.registry.pins import Registry

T = TypeVar("T")
_EVENTS: dict[str, Literal["opened", "attached", "waiter_gone", "voted", "decided", "expired", "consumed"]] = {
    "opened": "opened",
    "attached": "attached",
    "waiter_gone": "waiter_gone",
    "voted": "voted",
    "approved": "decided",
    "rejected": "decided",
    "expired": "expired",
    "consumed": "consumed",
}


WATCHED_MAX = 1024
"""Events that wait for one who watches tickets; with more its stream ends."""
AUDIT_READERS = 2
"""Requests that read the audit store at once."""
AUDIT_WAIT_S = 10.0
AUDIT_FLUSH_S = 2.0
"""How long a reader waits for what was recorded last."""
AUDIT_STEP = 1000


def _size(store: Path) -> int:
    """Bytes of the audit store and of what SQLite keeps beside it."""
    found = 0
    for suffix in ("", "-wal"):
        try:
            found += os.stat(f"{store}{suffix}").st_size
        except OSError:
            pass  # there is none, or its directory is not ours to look into
    return found


def instant(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ticket_row(ticket: tickets.Ticket, shown: Callable[[str], str] = str) -> shapes.Ticket:
    """One ticket as people see it; `shown` gives its arguments as they may."""
    return shapes.Ticket(
        id=ticket.id,
        call_id=ticket.call_id,
        agent_id=ticket.agent,
        backend_id=ticket.backend,
        method=ticket.method,
        tool_name=ticket.name,
        arguments=shown(ticket.arguments),
        created_at=instant(ticket.created),
        expires_at=instant(ticket.expires),
        state=ticket.state,  # type: ignore[arg-type]
        waiting=ticket.attended,
        rule=ticket.rule,
        needed=ticket.people,
        given=_agreed(ticket),
        client=ticket.client,
        decided_by=ticket.by,
        command=shown_text(ticket.command, shown),
        cwd=shown_text(ticket.cwd, shown),
        unlike=ticket.unlike,
    )


def shown_text(text: str, shown: Callable[[str], str]) -> str:
    """A text that is no JSON through what gives a JSON text as people may see it."""
    return str(msgspec.json.decode(shown(msgspec.json.encode(text).decode()))) if text else ""


def _person(voter: str) -> str:
    """The same for one person however the name is spelled in chats and on machines: `Ann` is `ann`."""
    return unicodedata.normalize("NFKC", voter).casefold()


def _agreed(ticket: tickets.Ticket) -> int:
    """How many people have said yes."""
    if ticket.state in (tickets.APPROVED, tickets.CONSUMED):
        return ticket.people
    return len(ticket.votes)


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
            judged_us=call.judged_us,
            error_message=call.error_message,
            created_at=call.created_at,
        )
        for call in found
    ]


async def _no_health() -> Mapping[str, str]:
    return {}


def _of_rule(name: str, backends: Container[str]) -> tuple[str, str]:
    """The backend and the tool that a rule is for: `work.pay` is `pay` on `work` where there is such a backend."""
    backend, dot, tool = name.partition(".")
    return (backend, tool) if dot and backend in backends else (EVERYWHERE, name)


class Governor:
    """See `manage.api.Governor`."""

    def __init__(
        self,
        *,
        socket: str,
        in_force: Callable[[], InForce],
        reload: Callable[..., Awaitable[shapes.Reloaded]],
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
        changes: Changes | None = None,
        http: Callable[[], str | None] = lambda: None,
        unserved: Callable[[], Sequence[str]] = tuple,
        notifier: Notifier | None = None,
        feed: Feed | None = None,
        orders: Orders | None = None,
        pins: Registry | None = None,
        checking: Checking | None = None,
        signing: KeyKeeper | None = None,
        forgetting: Forgetting | None = None,
        shipping: Shipping | None = None,
        metering: Metering | None = None,
        wiring: WiringWatch | None = None,
        prover: Prover | None = None,
        modes: Modes | None = None,
        arm: Callable[[str], Awaitable[Proof]] | None = None,
        health: Callable[[], Awaitable[Mapping[str, str]]] | None = None,
        prober: Prober | None = None,
    ) -> None:
        self._health = health or _no_health
        self._prober = prober
        self._shipping = shipping
        self._metering = metering
        self._wiring = wiring
        self._checking = checking
        self._signing = signing
        self._forgetting = forgetting
        self._prover = prover
        self._modes = modes
        self._arm = arm
        self._standing = orders
        self._registry = pins
        self.logins = Logins(monotonic, partial(secrets.token_urlsafe, 32))
        self._feed = feed or Feed(journal)
        self._notifier = notifier
        self._http = http
        self._unserved = unserved
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
        self._asks = Asks(desk, links_key, changes, row=self._ticket_row, limits=self.limits, shown=self._shown)
        self._readers = asyncio.Semaphore(AUDIT_READERS)
        self._log = Reading(audit_db, writer, self._readers) if audit_db is not None else None
        self._began = monotonic()
        self._watchers: set[asyncio.Queue[shapes.TicketEvent | None]] = set()
        self._pin_watchers: set[asyncio.Event] = set()

    def _shown(self, text: str) -> str:
        """A JSON text without what nobody must see."""
        guard = self._in_force().runtime.secrets
        return text if guard is None else str(guard.shown(text))

    def _ticket_row(self, ticket: tickets.Ticket) -> shapes.Ticket:
        return ticket_row(ticket, self._shown)

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
            pending=self.waiting(),
            paused=self._standing.paused() if self._standing is not None else (),
            audit=shapes.AuditState(
                seq=self._journal.last_seq,
                ingested=self._journal.ingested_seq,
                backlog_bytes=self._journal.backlog_bytes,
                healthy=self._journal.healthy,
                detail=self._journal.detail,
                **self._checked(),
            ),
            proof=self._proof(),
            warnings=(
                *force.warnings,
                *self._unserved(),
                *self._tampered(),
                *self._keeping(),
                *self._unsigned(),
                *self._changed(),
                *(force.misspelt.lines() if force.misspelt is not None else ()),
                *(force.fits.lines() if force.fits is not None else ()),
                *self._wishes(),
                *(self._notifier.warnings() if self._notifier is not None else ()),
                *(self._shipping.warnings() if self._shipping is not None else ()),
                *(self._wiring.warnings() if self._wiring is not None else ()),
            ),
            exports=tuple(self.exports()),
        )

    async def backends(self) -> Sequence[shapes.BackendRow]:
        """The configured ones, and those that agents have brought besides."""
        force = self._in_force()
        sessions = Counter(session.conversation.backend for session in self._sessions)
        lanes = Counter((row.backend_id, row.state == "running") for row in self._lanes.rows())
        changed = Counter(pin.backend for pin in self._registry.stopped()) if self._registry is not None else Counter()
        health = await self._health()
        settings = masked(force.config)["backends"]
        rows = []
        for name in dict.fromkeys((*force.config.backends, *sessions)):
            rule = force.runtime.backend(name)
            kind = "handed-over" if rule.command is None else "process"
            if rule.url is not None:
                kind = "http" if rule.transport in ("auto", "streamable-http") else rule.transport
                kind = "websocket" if rule.url.startswith(("ws:", "wss:")) else kind
            rows.append(
                shapes.BackendRow(
                    backend_id=name,
                    kind=kind,  # type: ignore[arg-type]
                    address=settings[name]["url"] if rule.url is not None else rule.shown,
                    health=health.get(name, "no_health_url"),
                    sessions=sessions[name],
                    lane=name in force.runtime.lanes,
                    running=lanes[name, True],
                    waiting=lanes[name, False],
                    pins_changed=changed[name],
                    agents=tuple(
                        agent
                        for agent, one in force.config.agents.items()
                        if name in one.backends and one.backends[name].allowed
                    ),
                )
            )
        return rows

    async def probe_backend(self, name: str, *, by: str) -> shapes.BackendProbe:
        """A session with one. That it was opened is recorded before."""
        force = self._in_force()
        if name not in force.config.backends:
            raise api.NotFound(f"no backend `{name}` is configured", "see `aegis backends list`")
        if self._prober is None:
            raise api.Unavailable("this daemon opens no backend by itself")
        try:
            planned = self._prober.plan(name, force.runtime.backend(name))
            self._journal.append(Admin(action="backend_probe", by=by, detail=name))
            found = await self._prober.probe(planned)
            if found.ok:
                self._sessions.lateness.forget(name)
        except AuditUnavailable as error:
            raise api.Unavailable(f"it cannot be recorded: {error}", "see `aegis status`") from None
        except Refused as refused:
            raise api.Refusal(str(refused), "`aegis agents wire` tries a server that an agent's entry brings") from None
        said = ("detail", "server_name", "server_version", "protocol_version")
        return found.model_copy(update={field: shown_text(getattr(found, field), self._shown) for field in said})

    def exports(self) -> Sequence[shapes.ExportRow]:
        """How each export is doing."""
        return [
            shapes.ExportRow(
                name=row.name,
                role=row.role,
                type=row.type,
                format=row.format,
                seq=row.seq,
                lag=row.lag,
                state="trouble" if row.trouble else "ok" if row.seq else "unused",
                trouble=row.trouble,
                since=None if row.since is None else instant(row.since),
            )
            for row in (self._shipping.rows() if self._shipping is not None else ())
        ]

    def metrics(self, *, openmetrics: bool) -> str:
        """Numbers for Prometheus."""
        return self._metering.text(openmetrics=openmetrics) if self._metering is not None else ""

    async def test_export(self, name: str) -> shapes.ExportTest:
        """A test event."""
        try:
            if self._shipping is None:
                raise KeyError(name)
            why = await self._shipping.test(name)
        except KeyError:
            raise api.NotFound(f"no export `{name}` is configured", "see `aegis audit exports`") from None
        return shapes.ExportTest(name=name, ok=not why, detail=why)

    def _tampered(self) -> tuple[str, ...]:
        checking = self._checking
        if checking is not None and checking.fault:
            return (f"the audit log was changed after it was written: {checking.fault}; see `aegis audit verify`",)
        if checking is not None and checking.trouble:
            return (f"the audit log cannot be verified: {checking.trouble}; see `aegis audit verify`",)
        return ()

    def _unsigned(self) -> tuple[str, ...]:
        why = self._writer.unsigned if self._writer is not None else ""
        return (f"the audit log is not signed: {why}",) if why else ()

    def _checked(self) -> dict[str, Any]:
        """What is known of the log's soundness. No writer signs nothing."""
        writer = self._writer
        signed = {"signed": writer.signed, "unsigned": writer.unsigned} if writer is not None else {}  # none in tests
        checking = self._checking
        if checking is None:
            return signed
        at = instant(checking.at) if checking.at is not None else None
        return {
            **signed,
            "verified": checking.verified,
            "verified_at": at,
            "tampered": checking.fault,
            "witnessed": checking.witnessed,
        }

    def pending(self) -> Sequence[shapes.Ticket]:
        """Tickets, oldest first."""
        return [self._ticket_row(ticket) for ticket in self._desk.pending()]

    async def watch_pending(self) -> AsyncIterator[shapes.TicketEvent]:
        """What waits now, then what happens. Ends for one who reads too slowly, and then begins anew."""
        events: asyncio.Queue[shapes.TicketEvent | None] = asyncio.Queue(WATCHED_MAX)
        waiting = self.pending()
        self._watchers.add(events)
        try:
            for row in waiting:
                yield shapes.TicketEvent(event="opened", ticket=row)
            while (event := await events.get()) is not None:
                yield event
        finally:
            self._watchers.discard(events)

    def happened(self, event: str, ticket: tickets.Ticket) -> None:
        """Something happened to a ticket: every watcher hears of it."""
        self._asks.happened(event, ticket)
        if self._watchers:
            made = shapes.TicketEvent(event=_EVENTS[event], ticket=self._ticket_row(ticket), by=ticket.by or None)
            for events in tuple(self._watchers):
                if not events.full():
                    events.put_nowait(made)
                    continue
                # What it would go on to show is not so any more.
                self._watchers.discard(events)
                while not events.empty():
                    events.get_nowait()
                events.put_nowait(None)

    def channels(self) -> Sequence[shapes.ChannelRow]:
        """How each channel is doing."""
        rows = self._notifier.rows() if self._notifier is not None else []
        return [
            shapes.ChannelRow(
                name=row.name,
                ways="buttons" if row.buttons else "link",
                state=row.state,
                sent=row.sent,
                failed=row.failed,
                waiting=row.waiting,
                last_error=row.last_error,
                last_ok_at=None if row.last_ok_at is None else instant(row.last_ok_at),
            )
            for row in rows
        ]

    def posted(self, channel: str, headers: Mapping[str, str], body: bytes) -> bool:
        """An answer that a channel's platform posted."""
        return self._notifier is not None and self._notifier.posted(channel, headers, body)

    async def test_channels(self, channel: str | None) -> Sequence[shapes.ChannelTest]:
        """Test messages."""
        try:
            found = await self._notifier.test(channel) if self._notifier is not None else []
        except KeyError:
            raise api.NotFound(f"no channel `{channel}` is configured", "see `aegis notify list`") from None
        except TooManyTests:
            raise api.Unavailable("there were tests only just now", "repeat it in a minute") from None
        return [shapes.ChannelTest(name=name, ok=not why, detail=why) for name, why in found]

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
                    extra=self._limits.beyond(claim, now),
                )
            )
        return rows

    def budgets(self, agent: str | None, backend: str | None, tool: str | None) -> Sequence[shapes.BudgetRow]:
        """The budgets and how much of them is spent."""
        force, now = self._in_force(), monotonic()
        rows = []
        for rule in force.runtime.rules:
            where, what = _of_rule(rule.tool, force.config.backends)
            if (backend is not None and where not in (backend, EVERYWHERE)) or (tool is not None and what != tool):
                continue
            for one in rule.limits():
                own = one.agent is not None
                known = [*force.config.agents, *self._limits.spenders(one.scope, one.backend, one.tool)] if own else []
                for who in dict.fromkeys(known) if own else (None,):
                    if agent is not None and who not in (agent, None):
                        continue
                    found = self._limits.spent(msgspec.structs.replace(one, agent=who), now)
                    after = found.retry_after_s
                    rows.append(
                        shapes.BudgetRow(
                            scope="agent" if own else "global",
                            agent_id=who,
                            backend_id=where,
                            tool=what,
                            argument=one.scope.partition(" ")[2],
                            window=go_duration(one.window_s),
                            max_amount=one.most,
                            used_amount=found.spent,
                            reserved_amount=found.reserved,
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
                        second_approver=access.second_approver,
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

    # --- the inbox ----------------------------------------------------------------------------------------------

    def invite(self, by: str, voter: str) -> shapes.Login:
        """A one-time login to the inbox."""
        address = self._http()
        if address is None:
            raise api.Unavailable("nothing is served over HTTP, so there is no inbox to open", "set `server.listen`")
        # An address of all interfaces is no place that a browser can go to.
        host, _, port = address.rpartition(":")
        place = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104
        token = self.logins.invite(Person(by, voter))
        return shapes.Login(url=f"http://{place}:{port}/ui/login#{token}", by=by, expires_at=instant(wall() + TOKEN_S))

    def logged_in(self, by: str, place: str) -> None:
        """Records that a session of the inbox begins."""
        try:
            self._journal.append(Admin(action="ui_login", by=by, detail=f"from {place}"))
        except AuditUnavailable as error:
            raise api.Unavailable(f"the login cannot be recorded: {error}", "see `aegis status`") from None

    def note_wiring(self, action: str, done: str, *, by: str) -> None:
        """Records that entries of agents were wired or taken out."""
        if self._wiring is not None and action in ("wire", "unwire"):
            self._wiring.expect()
        try:
            self._journal.append(Admin(action=action, by=by, detail=done))
        except AuditUnavailable as error:
            raise api.Unavailable(f"it cannot be recorded: {error}", "see `aegis status`") from None

    def waiting(self) -> int:
        """How many tickets want a person's word."""
        return sum(ticket.state == tickets.PENDING for ticket in self._desk.pending())

    def inbox(self, most: int) -> shapes.Inbox:
        """The oldest tickets that wait."""
        found = self._desk.pending()
        waiting = [ticket for ticket in found if ticket.state == tickets.PENDING]
        agreed = [ticket for ticket in found if ticket.state == tickets.APPROVED]
        return shapes.Inbox(
            asked=tuple(self._asks.about(ticket.id) for ticket in waiting[:most]),
            pending=len(waiting),
            agreed=tuple(map(self._ticket_row, agreed[:most])),
        )

    def ask_of(self, call_id: str) -> shapes.Asked:
        """One ticket."""
        try:
            ticket = self._desk.get(call_id)
        except NoSuchTicket:
            ticket = None
        if ticket is None or ticket.state not in tickets.OPEN:
            why = f"`{call_id[:64]}` waits no more" if ticket is None else str(Decided(ticket))
            raise api.NotFound(why, "see the inbox for what waits")
        return self._asks.about(ticket.id)

    def watch_calls(self) -> AsyncIterator[shapes.CallEvent]:
        """Calls as they happen."""
        return self._feed.watch()

    async def figures(self) -> shapes.Figures:
        """The overview's numbers."""
        return await self._logged().figures()

    async def seen_tools(self) -> Sequence[shapes.ToolRow]:
        """Tools that were called within a week."""
        return await self._logged().tools()

    async def audit_search(self, ask: shapes.AuditQuery) -> shapes.AuditPage:
        """Calls of the log, newest first."""
        if self._checking is not None:
            self._checking.wanted()
        return await self._logged().search(ask)

    async def audit_stats(self) -> shapes.AuditStats:
        """The log of the last 24 hours in numbers."""
        return await self._logged().stats()

    async def audit_story(self, id: str) -> shapes.AuditStory:
        """One call with its records."""
        return await self._logged().story(id)

    async def recent_calls(self, agents: Sequence[str], count: int) -> dict[str, Sequence[shapes.AuditCall]]:
        """The last named calls of each agent."""
        return await self._logged().recent(agents, count)

    def _logged(self) -> Reading:
        if self._log is None:
            raise api.Unavailable("this daemon has no audit store to read")
        return self._log

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
        return self._asks.follow(id, action, token)

    async def decide(
        self,
        id: str,
        approve: bool,
        *,
        by: str,
        via: str,
        note: str,
        voter: str = "",
        grant: shapes.GrantAsk | None = None,
    ) -> shapes.Decided:
        """One decision on one ticket, and the grant that remembers it where one is asked for."""
        named = spoken(id) if len(id) < 16 else id
        if grant is not None and not approve:
            raise api.BadRequest("a rejection is not remembered", "reject the call alone, or change its rules")
        try:
            asked = self._desk.get(named)
            draft = self._orders.draft(asked, grant, by) if grant is not None else None
            ticket = self._desk.decide(named, approve, by, note, via=via, voter=_person(voter or f"{via}:{by}"))
        except NoSuchTicket:
            raise api.NotFound(f"no ticket `{id}` waits", "see `aegis pending`") from None
        except Nameless as nameless:
            raise api.Forbidden(
                str(nameless),
                "approve it with `aegis approve`, in the inbox, or in a chat where you are mapped; "
                "rejecting is possible from everywhere",
            ) from None
        except Decided as decided:
            gone = decided.ticket.state == tickets.EXPIRED
            hint = "if its agent asks again, that is another ticket: see `aegis pending`" if gone else ""
            raise api.Conflict(str(decided), hint) from None
        except sqlite3.Error as error:
            raise api.Refusal(
                f"the decision could not be kept ({error}), so it was not taken", "free space on the disk and repeat it"
            ) from None
        waits = ticket.state == tickets.PENDING  # for another person's yes
        if draft is not None and not waits:
            self._orders.keep(draft, via, note)
            self._let_go(draft, by)
        return shapes.Decided(
            id=ticket.id,
            call_id=ticket.call_id,
            state="pending" if waits else "approved" if approve else "rejected",
            grant=draft.id if draft is not None and not waits else None,
            needed=ticket.people,
            given=_agreed(ticket),
        )

    def _let_go(self, grant: Grant, by: str) -> None:
        """Calls of a new grant's shape that wait already go on, too, each for one of its uses."""
        for ticket in self._desk.pending():
            if ticket.state == tickets.PENDING and self._orders.takes(grant, ticket):
                try:
                    self._desk.decide(ticket.call_id, True, by, grant.id, via="grant", voter=f"grant:{grant.id}")
                except (NoSuchTicket, Decided, sqlite3.Error):
                    continue  # it stays as it is: a person can still decide it

    # --- what holds beyond a call -------------------------------------------------------------------------------

    @property
    def _orders(self) -> Orders:
        if self._standing is None:
            raise api.Unavailable("this daemon keeps nothing beyond single calls")
        return self._standing

    def grants(self) -> Sequence[shapes.Grant]:
        """Remembered approvals."""
        return [self._grant_row(row) for row in self._orders.granted()]

    def revoke_grants(self, ids: Sequence[str] | None, *, by: str, via: str) -> Sequence[shapes.Grant]:
        """Ends them."""
        return [self._grant_row(row) for row in self._orders.revoke(ids, by, via)]

    def _grant_row(self, row: shapes.Grant) -> shapes.Grant:
        seen = {"arguments": self._shown(row.arguments)}
        seen |= {"command": shown_text(row.command, self._shown), "cwd": shown_text(row.cwd, self._shown)}
        return row.model_copy(update=seen)

    def pause(self, agent: str | None, *, by: str, note: str) -> shapes.Pause:
        """Stops an agent, or everything."""
        return self._orders.pause(agent, by, note)

    def resume(self, agent: str | None, *, by: str) -> shapes.Pause:
        """Lifts a pause."""
        return self._orders.resume(agent, by)

    def grant_quota(
        self, agent: str | None, backend: str, tool: str, count: int, seconds: float | None, *, by: str, note: str
    ) -> shapes.Quota:
        """Raises a limit for a while."""
        return self._orders.allow_more(agent, backend, tool, count, seconds, by, note)

    # --- what servers have --------------------------------------------------------------------------------------

    @property
    def _pins(self) -> Registry:
        if self._registry is None:
            raise api.Unavailable("this daemon remembers nothing of its servers")
        return self._registry

    def _changed(self) -> tuple[str, ...]:
        """What of it a person should know."""
        if self._registry is None:
            return ()
        said = [
            f"`{visible(backend[:200])}` has {what}; what is not remembered is not usable"
            for backend, what in list(self._registry.crowded().items())[:3]
        ]
        stopped = self._registry.stopped()
        if stopped:
            more = f" and {len(stopped) - 3} more" if len(stopped) > 3 else ""
            named = ", ".join(pin.title for pin in stopped[:3])
            said.append(f"not usable before a person trusts it: {named}{more}; see `aegis tools list --changed`")
        return tuple(said)

    def pins(
        self, backend: str | None, kind: str | None, changed: bool, most: int | None = None
    ) -> Sequence[shapes.PinRow]:
        """What servers have."""
        found = (
            pin
            for pin in (self._pins.stopped() if changed else self._pins.rows())
            if (backend is None or pin.backend == backend) and (kind is None or pin.kind == kind)
        )
        return [self._pin_row(pin) for pin in islice(found, most)]

    def pin(self, id: str) -> shapes.PinRow:
        """One of them."""
        found = self._pins.by_id(id)
        if found is None:
            raise api.NotFound("no server has shown this", "see the tools page for what is known")
        return self._pin_row(found)

    def pins_waiting(self) -> int:
        """How many nobody may use."""
        return self._registry.waiting if self._registry is not None else 0

    async def watch_pins(self) -> AsyncIterator[int]:
        """How many they are, whenever that may have changed."""
        moved = asyncio.Event()
        self._pin_watchers.add(moved)
        try:
            while True:
                await moved.wait()
                moved.clear()
                yield self.pins_waiting()
        finally:
            self._pin_watchers.discard(moved)

    def pins_moved(self) -> None:
        """Something is stopped, or usable again: whoever watches hears of it."""
        for moved in self._pin_watchers:
            moved.set()

    def pin_diff(self, name: str, backend: str | None, kind: str | None) -> shapes.PinDiff:
        """How one thing has changed."""
        pin = self._pin(name, backend, kind)
        if pin.state == registry.TRUSTED:
            text = self._pins.texts(pin)[0]
            return shapes.PinDiff(
                pin=self._pin_row(pin), whole=bool(text), now=tuple(difference.lines(text)) if text else ()
            )
        old, new = self._pins.texts(pin)
        whole = bool(new) and (bool(old) or not pin.trusted)
        found = difference.Difference()
        if whole:
            found = difference.unified(old, new, after="offered" if pin.offered == pin.drifted else "offered before")
        return shapes.PinDiff(
            pin=self._pin_row(pin),
            lines=found.lines,
            cut=found.cut,
            again=pin.offered in pin.trusted,
            whole=whole,
        )

    def trust(
        self, name: str, backend: str | None, kind: str | None, *, expect: str, also: bool, by: str
    ) -> shapes.PinRow:
        """Lets it be used as it is now."""
        pin = self._pin(name, backend, kind)
        try:
            self._pins.trust(pin, expect, by, also=also)
        except registry.Moved as moved:
            raise api.Conflict(
                f"{pin.title} is not `{expect[:80]}`: what is offered now is `{moved.offered}`",
                "look at it with `aegis tools diff`, and expect that hash if it may be used",
            ) from None
        except (AuditUnavailable, sqlite3.Error) as error:
            raise api.Refusal(
                f"it stays as it is: that could not be kept ({error})", "free space on the disk and repeat it"
            ) from None
        return self._pin_row(pin)

    def _pin(self, name: str, backend: str | None, kind: str | None) -> registry.Pin:
        found = self._pins.find(name, backend, kind)
        if len(found) == 1:
            return found[0]
        if found:
            named = ", ".join(pin.title for pin in found[:5])
            raise api.BadRequest(f"`{name[:200]}` may be {named}", "say which with `--backend` or `--kind`")
        known = [pin.name for pin in self._pins.rows() if backend is None or pin.backend == backend]
        near = get_close_matches(name, known, 1)
        hint = f"did you mean `{near[0]}`?" if near else "see `aegis tools list`; a server is known once it was listed"
        raise api.NotFound(f"no server has shown a `{name[:200]}`", hint)

    def _fault(self, pin: registry.Pin) -> str:
        fits = self._in_force().fits
        return "" if fits is None or pin.kind != "tool" else fits.summary.fault(pin.backend, pin.name)

    def _pin_row(self, pin: registry.Pin) -> shapes.PinRow:
        return shapes.PinRow(
            backend_id=pin.backend,
            kind=pin.kind,  # type: ignore[arg-type]
            name=pin.name,
            state=pin.state,  # type: ignore[arg-type]
            trusted=pin.trusted,
            offered=pin.offered,
            seen_at=instant(pin.seen),
            changed_at=instant(pin.changed) if pin.changed else None,
            trusted_by=pin.by,
            like=tuple(f"{other.backend}.{telling(other.name)}" for other in self._pins.like(pin)),
            shadows=tuple(f"{other.backend}.{other.name}" for other in self._pins.shadows(pin)),
            fault=self._fault(pin),
            shown=telling(pin.name),
            id=pin.id,
        )

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
        return await self._proved(self._reload())

    # --- the mode -----------------------------------------------------------------------------------------------

    def _proof(self) -> shapes.ProofState:
        prover = self._prover
        if prover is None or not prover.at:
            return shapes.ProofState()
        return shapes.ProofState(
            healthy=not prover.wrong, detail=prover.detail, calls=prover.proof.calls, at=instant(prover.at),
            kinds=dict(prover.proof.kinds), unseen=prover.proof.unseen,
        )  # fmt: skip

    def _wishes(self) -> tuple[str, ...]:
        """What a person wants refused and, while the daemon only observes, may have wrong."""
        if self._prover is None or self._in_force().config.mode != "observe":
            return ()
        return tuple(f"`proof`: {one}" for one in self._prover.proof.own[:3])

    async def mode(self) -> shapes.Mode:
        """The mode, and what of a day it would have refused."""
        force, modes = self._in_force(), self._modes
        return shapes.Mode(
            mode=force.config.mode,
            since=instant(modes.since) if modes is not None and modes.since else None,
            by=modes.by if modes is not None else "",
            config=str(force.path) if force.path is not None else None,
            proof=self._proof(),
            would=tuple(await self._logged().would()) if force.config.mode == "observe" else (),
        )

    async def prove(self, mode: str) -> shapes.ProofState:
        """What the file's rules refuse, were they to hold in this mode."""
        if self._arm is None:
            raise api.Unavailable("this daemon proves nothing of its rules")
        proof = await self._proved(self._arm(mode))
        return shapes.ProofState(calls=proof.calls, kinds=dict(proof.kinds), unseen=proof.unseen)

    async def set_mode(self, mode: str, *, by: str) -> shapes.Reloaded:
        """Takes up a file that says this mode now."""
        return await self._proved(self._reload(by, mode))

    @staticmethod
    async def _proved(work: Awaitable[T]) -> T:
        try:
            return await work
        except Unproven as unproven:
            raise api.Refusal(unproven.message, unproven.hint, code="unproven") from None

    async def rotate_audit_key(self, *, by: str) -> shapes.KeyRotated:
        """A new key signs checkpoints from now on."""
        if self._signing is None:
            raise api.Unavailable("this daemon signs nothing")
        return await self._signing.rotate(by)

    async def purge_audit(self, ask: shapes.PurgeRequest, *, by: str) -> shapes.Purge:
        """Old records go."""
        if self._forgetting is None:
            raise api.Unavailable("this daemon has no audit store to purge")
        return await self._forgetting.purge(ask, by)

    async def erase_audit(self, ask: shapes.EraseRequest, *, by: str) -> shapes.Erasure:
        """Arguments and results go."""
        if self._forgetting is None:
            raise api.Unavailable("this daemon has no audit store to erase from")
        return await self._forgetting.erase(ask, by)

    def _keeping(self) -> tuple[str, ...]:
        """What is to be said of what is kept, and of its size."""
        found = []
        kept = self._writer.kept if self._writer is not None else ""
        if kept:
            found.append(f"{kept}; see `aegis audit verify`" if "see `" not in kept else kept)
        limit = self._in_force().config.audit.max_size
        size = (_size(self._audit_db) if self._audit_db is not None else 0) + self._journal.backlog_bytes
        if size > limit << 20:
            found.append(
                f"the audit log takes {size >> 20} MiB, more than `audit.max_size` ({limit}); set "
                "`audit.retention_days`, or see `aegis audit purge`"
            )
        return tuple(found)

    async def flush_audit(self) -> int:
        """Waits until SQLite has what was recorded by now."""
        try:
            return await self._writer.flush()
        except AuditUnavailable as error:
            raise api.Unavailable(str(error), "see `aegis status`") from None

    async def stop(self, restart: bool) -> None:
        """Begins to stop."""
        asyncio.get_running_loop().call_later(0.05, self._stop, restart)
