"""What crosses the management socket or the HTTP API has one of these shapes, in either direction.

Rows are flat and named alike on both. Instants are RFC 3339 in UTC, durations are integers with their unit in
the name. Requests and rows refuse unknown fields, so a misspelt argument is an error and never a default.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ID_MAX = 64
"""Characters in the longest ticket id or call id that is looked at."""
NOTE_MAX = 500
KEY_MAX = 4096
TOKEN_MAX = 128
"""Characters in the longest token of an approval link that is looked at."""
OFFSET_MAX = 100_000
"""Rows of the audit log that the API pages through; `aegis audit search` finds what is older."""


class Shape(BaseModel):
    """The base of every request and row."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- requests ---------------------------------------------------------------------------------------------------------


class Request(Shape):
    """The base of what comes in: `"true"` is no boolean here."""

    model_config = ConfigDict(strict=True)


class Nothing(Request):
    """No arguments."""


class LimitsQuery(Request):
    """Which windows to show; None is any."""

    agent: str | None = None
    backend: str | None = None
    tool: str | None = None


class DecideRequest(Request):
    """One decision on one ticket, by ticket id or call id. `key` is the content of an approver key file."""

    id: str = Field(min_length=1, max_length=ID_MAX)
    approve: bool
    note: str = Field(default="", max_length=NOTE_MAX)
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class CancelRequest(Request):
    """Which queued call to give up."""

    call_id: str = Field(min_length=1, max_length=ID_MAX)


class StopRequest(Request):
    """`restart`: tells the agents' sessions to wait for the next daemon and start one if none comes."""

    restart: bool = False


class Note(Request):
    """Why it was decided so, under either name."""

    note: str = Field(default="", max_length=NOTE_MAX)
    reason: str = Field(default="", max_length=NOTE_MAX)

    @property
    def text(self) -> str:
        """What was given."""
        return "; ".join(text for text in (self.note, self.reason) if text)


class Page(Request):
    """Which rows of a long list: `limit` of them, from the `offset`th on, the newest being the 0th."""

    limit: int = Field(default=50, ge=1, le=500)
    offset: int = Field(default=0, ge=0, le=OFFSET_MAX)


# --- rows -------------------------------------------------------------------------------------------------------------


class Session(Shape):
    """One agent's connection."""

    session: str
    agent_id: str
    backend_id: str
    way: str
    era: str
    shim_pid: int | None = None
    server_pid: int | None = None
    since: str
    calls: int
    in_flight: int


class AuditState(Shape):
    """How the audit log is doing: `seq` is the newest record, `ingested` the newest one in SQLite."""

    seq: int
    ingested: int
    backlog_bytes: int
    healthy: bool
    detail: str = ""


class Status(Shape):
    """The daemon at a glance."""

    version: str
    pid: int
    uptime_s: int
    tier: Literal["advisory", "isolated"]
    mode: str
    config: str | None
    config_digest: str | None
    socket: str
    http: str | None = None
    """the address of the HTTP server, None where nothing listens"""
    durability: str
    sessions: tuple[Session, ...] = ()
    servers_alive: int = 0
    reaped_late: int = 0
    pending: int = 0
    audit: AuditState
    warnings: tuple[str, ...] = ()


class Ticket(Shape):
    """One ask. `arguments` is JSON text; `waiting` tells whether a client still waits for the answer.

    Listed tickets are `pending` or `approved` (and not used yet); the other states are seen in events only.
    """

    id: str
    call_id: str
    agent_id: str
    backend_id: str
    method: str
    tool_name: str
    arguments: str
    created_at: str
    expires_at: str
    state: Literal["pending", "approved", "rejected", "expired", "consumed"]
    waiting: bool
    rule: str


class TicketEvent(Shape):
    """Something happened to a ticket, which is shown as it is afterwards; `by` is who decided."""

    event: Literal["opened", "attached", "waiter_gone", "decided", "expired", "consumed"]
    ticket: Ticket
    by: str | None = None


class Decided(Shape):
    """The answer to a decision."""

    id: str
    call_id: str
    state: Literal["approved", "rejected"]


class LimitRow(Shape):
    """One window. `retry_after_ms` is None while it has room, or while only calls under way fill it."""

    scope: Literal["agent", "global"]
    agent_id: str | None
    backend_id: str
    tool: str
    window: str
    max_count: int
    current: int
    reserved: int
    retry_after_ms: int | None


class QueueRow(Shape):
    """One call in a lane; `held` waits for a person before it joins the order."""

    call_id: str
    agent_id: str
    backend_id: str
    tool_name: str
    position: int
    state: Literal["held", "waiting", "delay", "running"]
    waited_ms: int
    starts_in_ms: int | None


class Cancelled(Shape):
    """Whether the call was still queued."""

    call_id: str
    cancelled: bool


class Reloaded(Shape):
    """What a reload did; `restart_required` names keys that changed in the file and not in force."""

    status: Literal["ok"] = "ok"
    message: str
    changed: tuple[str, ...] = ()
    restart_required: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Flushed(Shape):
    """The newest audit record that SQLite holds now."""

    seq: int


class Stopping(Shape):
    """The daemon is on its way out."""

    pid: int
    restart: bool


# --- rows of the HTTP API ---------------------------------------------------------------------------------------------


class AgentAccess(Shape):
    """What an agent may do on one backend, as configured; `allowed_tools` is None where every tool not denied is."""

    allowed: bool
    denied_tools: tuple[str, ...] = ()
    allowed_tools: tuple[str, ...] | None = None
    approval_required: tuple[str, ...] = ()


class Agent(Shape):
    """One configured agent."""

    id: str
    display_name: str
    backends: dict[str, AgentAccess]


class AuditRow(Shape):
    """One `tools/call` in the log. `arguments` is JSON text, empty where it was not kept."""

    call_id: str
    request_id: str
    agent_id: str
    backend_id: str
    tool_name: str
    arguments: str
    acl_result: str
    rate_limit_result: str
    approval_result: str
    queue_position: int
    queue_wait_ms: int
    exec_status: str
    exec_duration_ms: int
    error_message: str
    created_at: str


class Acted(Shape):
    """The answer to a decision over HTTP."""

    status: Literal["ok"] = "ok"
    action: Literal["approve", "reject"]
    id: str
    call_id: str


class Health(Shape):
    """Whether calls can be served. Each backend is `healthy`, `no_health_url` or `unhealthy: …`."""

    status: Literal["ok", "degraded"]
    service: Literal["aegis"] = "aegis"
    backends: dict[str, str]


class ConfigFault(Shape):
    """One thing that is wrong in the file, and where; line and column count from 1, 0 where there is none.

    `source` is the line itself, without anything that may be a secret.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str = ""
    source: str = ""


class Problem(Shape):
    """Why a request was not done. `code` is stable; `faults` are there where a configuration was refused."""

    status: Literal["error"] = "error"
    code: str
    message: str
    hint: str = ""
    faults: tuple[ConfigFault, ...] = ()


class Linked(Shape):
    """What an approval link speaks of, and the digits that its page asks for where it asks for any."""

    ticket: Ticket
    code: str = Field(repr=False)
