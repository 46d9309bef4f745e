"""A governor that keeps everything in lists, and a thread that serves it on a real socket."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from aegis_daemon.config.load import ConfigFaults, Fault
from aegis_daemon.manage import api, shapes
from aegis_daemon.manage.server import Bounds, ManageServer
from aegis_daemon.manage.ui.sessions import Logins, Person


def instant(seconds_from_now: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds_from_now)).isoformat().replace("+00:00", "Z")


def ticket(id: str = "K7Q2", **changes: Any) -> shapes.Ticket:
    row: dict[str, Any] = {
        "id": id,
        "call_id": (id.lower() * 8)[:32],
        "agent_id": "claude",
        "backend_id": "github",
        "method": "tools/call",
        "tool_name": "delete_repo",
        "arguments": '{"repo":"acme/x"}',
        "created_at": instant(-5),
        "expires_at": instant(600),
        "state": "pending",
        "waiting": True,
        "rule": "agents.claude.backends.github.approval_required",
    }
    return shapes.Ticket(**{**row, **changes})


class MemoryGovernor:
    """`Governor` for tests: public lists in, calls out."""

    def __init__(self) -> None:
        self.channel_rows: list[shapes.ChannelRow] = []
        self.tickets: list[shapes.Ticket] = []
        self.decided: list[tuple[str, bool, str, str, str]] = []
        self.watchers: set[asyncio.Queue[shapes.TicketEvent]] = set()
        self.asked_grants: list[shapes.GrantAsk | None] = []
        self.grant_rows: list[shapes.Grant] = []
        self.pauses: list[shapes.Pause] = []
        self.quotas: list[tuple[str | None, str, str, int, float | None]] = []
        self.pin_rows: list[shapes.PinRow] = []
        self.pin_lines: list[str] = []
        self.trusted: list[tuple[str, str, bool]] = []
        self.wirings: list[tuple[str, str]] = []
        self.logins = Logins(time.monotonic, partial(secrets.token_urlsafe, 32))
        self.refusal: str | None = None
        self.asked: list[tuple[int | None, str | None]] = []
        self.limit_rows: list[shapes.LimitRow] = []
        self.budget_rows: list[shapes.BudgetRow] = []
        self.queue_rows: list[shapes.QueueRow] = []
        self.backend_rows: list[shapes.BackendRow] = []
        self.probed: list[shapes.BackendProbe] = []
        self.faults: list[Fault] = []
        self.healthy = True
        self.mode_is = "enforce"
        self.config_is: str | None = "/c/aegis.yaml"
        self.proof = shapes.ProofState(calls=3, kinds={"tool_denylist": 2, "unknown agent": 1}, at=instant(-30))
        self.unproven = ""
        self.would_rows: list[shapes.WouldRow] = []
        self.stopped: bool | None = None
        self.slow = asyncio.Event()

    def status(self) -> shapes.Status:
        return shapes.Status(
            version="9.9.9", pid=os.getpid(), uptime_s=61, tier="advisory", mode=self.mode_is, config="/c/aegis.yaml",
            config_digest="d" * 64, socket="/r/aegis.sock", durability="full", pending=sum(row.state == "pending" for row in self.tickets), paused=tuple(self.pauses),
            sessions=(
                shapes.Session(
                    session="s1", agent_id="claude\x1b[31m", backend_id="github", way="relay", era="legacy",
                    shim_pid=7, server_pid=8, since=instant(-90), calls=3, in_flight=1,
                ),
            ),
            audit=shapes.AuditState(seq=12, ingested=10, backlog_bytes=99, healthy=self.healthy, detail="disk is full"),
            proof=self.proof,
            warnings=("`server.listen` is not served by this version",),
        )  # fmt: skip

    def pending(self) -> Sequence[shapes.Ticket]:
        return list(self.tickets)

    async def watch_pending(self) -> AsyncIterator[shapes.TicketEvent]:
        events: asyncio.Queue[shapes.TicketEvent] = asyncio.Queue()
        for row in self.tickets:
            events.put_nowait(shapes.TicketEvent(event="opened", ticket=row))
        self.watchers.add(events)
        try:
            while True:
                yield await events.get()
        finally:
            self.watchers.discard(events)

    def tell(self, event: str, row: shapes.Ticket, by: str | None = None) -> None:
        for events in self.watchers:
            events.put_nowait(shapes.TicketEvent(event=event, ticket=row, by=by))  # type: ignore[arg-type]

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
        self.asked_grants.append(grant)
        for known, _, who, _, _ in self.decided:
            if known == id:
                raise api.Conflict(f"`{id}` was approved by {who}")
        found = next((row for row in self.tickets if id in (row.id, row.call_id)), None)
        if found is None:
            raise api.NotFound(f"no ticket `{id}` waits", "see `aegis pending`")
        self.tickets.remove(found)
        self.decided.append((id, approve, by, via, note))
        state = "approved" if approve else "rejected"
        if approve and not found.waiting:
            self.tickets.append(found.model_copy(update={"state": state}))  # until its agent asks again
        self.tell("decided", found.model_copy(update={"state": state}), by)
        return shapes.Decided(
            id=found.id, call_id=found.call_id, state=state,  # type: ignore[arg-type]
            grant="G-7QX2" if grant is not None else None, needed=found.needed, given=found.needed,
        )  # fmt: skip

    def grants(self) -> Sequence[shapes.Grant]:
        return list(self.grant_rows)

    def revoke_grants(self, ids: Sequence[str] | None, *, by: str, via: str) -> Sequence[shapes.Grant]:
        gone = [row for row in self.grant_rows if ids is None or row.id in ids]
        self.grant_rows = [row for row in self.grant_rows if row not in gone]
        return gone

    def pause(self, agent: str | None, *, by: str, note: str) -> shapes.Pause:
        made = shapes.Pause(agent_id=agent, by=by, note=note, since=instant(0))
        self.pauses.append(made)
        return made

    def resume(self, agent: str | None, *, by: str) -> shapes.Pause:
        for row in self.pauses:
            if row.agent_id == agent:
                self.pauses.remove(row)
                return row
        raise api.NotFound(f"`{agent}` is not paused")

    def grant_quota(
        self, agent: str | None, backend: str, tool: str, count: int, seconds: float | None, *, by: str, note: str
    ) -> shapes.Quota:
        self.quotas.append((agent, backend, tool, count, seconds))
        return shapes.Quota(
            scope="global" if agent is None else "agent", agent_id=agent, backend_id=backend, tool=tool, count=count,
            until=instant(seconds or 3600), max_count=1, extra=count,
        )  # fmt: skip

    def pins(
        self, backend: str | None, kind: str | None, changed: bool, most: int | None = None
    ) -> Sequence[shapes.PinRow]:
        return [
            row
            for row in self.pin_rows
            if backend in (None, row.backend_id)
            and kind in (None, row.kind)
            and (not changed or row.state != "trusted")
        ]

    def pin_diff(self, name: str, backend: str | None, kind: str | None) -> shapes.PinDiff:
        for row in self.pins(backend, kind, False):
            if name == row.name:
                return shapes.PinDiff(pin=row, lines=tuple(self.pin_lines))
        raise api.NotFound(f"no server has shown a `{name}`", "see `aegis tools list`")

    def trust(
        self, name: str, backend: str | None, kind: str | None, *, expect: str, also: bool, by: str
    ) -> shapes.PinRow:
        row = self.pin_diff(name, backend, kind).pin
        if expect != row.offered:
            raise api.Conflict("it is not what was expected")
        self.trusted.append((name, expect, also))
        return row.model_copy(update={"state": "trusted", "trusted": (expect,), "trusted_by": by})

    async def mode(self) -> shapes.Mode:
        return shapes.Mode(
            mode=self.mode_is, since=instant(-90), by="ann", config=self.config_is, proof=self.proof,  # type: ignore[arg-type]
            would=tuple(self.would_rows) if self.mode_is == "observe" else (),
        )  # fmt: skip

    async def prove(self, mode: str) -> shapes.ProofState:
        if not self.proof.healthy:
            raise api.Refusal("what must be refused is not: a call", "mend the rule", code="unproven")
        return self.proof

    async def set_mode(self, mode: str, *, by: str) -> shapes.Reloaded:
        if self.unproven:
            raise api.Refusal(self.unproven, "mend the rule", code="unproven")
        self.mode_is = mode
        return shapes.Reloaded(message="config reloaded", changed=("mode",))

    def invite(self, by: str, voter: str) -> shapes.Login:
        token = self.logins.invite(Person(by, voter))
        return shapes.Login(url=f"http://127.0.0.1:18070/ui/login#{token}", by=by, expires_at=instant(120))

    async def watch_calls(self) -> AsyncIterator[shapes.CallEvent]:
        yield shapes.CallEvent(event="lost", lost=3)
        await asyncio.Event().wait()

    def note_wiring(self, action: str, done: str, *, by: str) -> None:
        self.wirings.append((action, done))

    def may_decide(self, pid: int | None, key: str | None) -> str | None:
        self.asked.append((pid, key))
        return None if key == "the right key" else self.refusal

    def exports(self) -> Sequence[shapes.ExportRow]:
        return [shapes.ExportRow(name="siem", role="export", type="hec", format="ocsf", seq=7, lag=2, state="ok")]

    async def test_export(self, name: str) -> shapes.ExportTest:
        if name != "siem":
            raise api.NotFound(f"no export `{name}` is configured", "see `aegis audit exports`")
        return shapes.ExportTest(name=name, ok=True)

    def channels(self) -> Sequence[shapes.ChannelRow]:
        return self.channel_rows

    async def audit_story(self, id: str) -> shapes.AuditStory:
        raise api.NotFound(f"no call `{id}` is in the log")

    async def test_channels(self, channel: str | None) -> Sequence[shapes.ChannelTest]:
        found = [row for row in self.channel_rows if channel in (None, row.name)]
        if channel is not None and not found:
            raise api.NotFound(f"no channel `{channel}` is configured", "see `aegis notify list`")
        return [shapes.ChannelTest(name=row.name, ok=not row.last_error, detail=row.last_error) for row in found]

    def limits(self, agent: str | None, backend: str | None, tool: str | None) -> Sequence[shapes.LimitRow]:
        return [row for row in self.limit_rows if agent in (None, row.agent_id)]

    def budgets(self, agent: str | None, backend: str | None, tool: str | None) -> Sequence[shapes.BudgetRow]:
        return [row for row in self.budget_rows if agent in (None, row.agent_id)]

    def queue(self) -> Sequence[shapes.QueueRow]:
        return self.queue_rows

    def cancel_queued(self, call_id: str) -> bool:
        kept = [row for row in self.queue_rows if row.call_id != call_id]
        gone, self.queue_rows = len(kept) < len(self.queue_rows), kept
        return gone

    def config_show(self) -> dict[str, Any]:
        return {"mode": "enforce", "server": {"api_token": "********"}}

    async def reload(self) -> shapes.Reloaded:
        if self.faults:
            raise ConfigFaults(self.faults)
        return shapes.Reloaded(message="config reloaded", changed=("agents",), restart_required=("audit.db_path",))

    async def purge_audit(self, ask: shapes.PurgeRequest, *, by: str) -> shapes.Purge:
        return shapes.Purge(first=1, last=8, records=8, seq=0 if ask.dry else 9)

    async def erase_audit(self, ask: shapes.EraseRequest, *, by: str) -> shapes.Erasure:
        return shapes.Erasure(calls=1, bodies=2, done=not ask.dry)

    async def rotate_audit_key(self, *, by: str) -> shapes.KeyRotated:
        return shapes.KeyRotated(public="ab", note="a note")

    async def backends(self) -> Sequence[shapes.BackendRow]:
        return self.backend_rows

    async def probe_backend(self, name: str, *, by: str) -> shapes.BackendProbe:
        for row in self.probed:
            if row.backend_id == name:
                return row
        raise api.NotFound(f"no backend `{name}` is configured", "see `aegis backends list`")

    async def flush_audit(self) -> int:
        await self.slow.wait()
        return 12

    async def stop(self, restart: bool) -> None:
        self.stopped = restart


class Served:
    """A `ManageServer` on a loop of its own in a thread, for clients that block."""

    def __init__(self, governor: MemoryGovernor, path: str, bounds: Bounds | None = None) -> None:
        self.governor = governor
        self.path = path
        self._bounds = bounds
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        server = ManageServer(self.governor, self.path, self._bounds)
        await server.start()
        self._ready.set()
        await self._end.wait()
        await server.close()

    def do(self, function: Any, *args: Any) -> Any:
        """Calls a function on the server's thread."""

        async def call() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._end.set)
            self._thread.join(10)
            assert not self._thread.is_alive()
