"""What crosses the management socket or the HTTP API has one of these shapes, in either direction.

Rows are flat and named alike on both. Instants are RFC 3339 in UTC, durations are integers with their unit in
the name. Requests and rows refuse unknown fields, so a misspelt argument is an error and never a default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ID_MAX = 64
"""Characters in the longest ticket id or call id that is looked at."""
NOTE_MAX = 500
NAME_MAX = 1024
USES_MAX = 1_000_000
"""Calls that one grant, or one addition to a limit, can be for at most."""
KEY_MAX = 4096
TOKEN_MAX = 128
"""Characters in the longest token of an approval link that is looked at."""
OFFSET_MAX = 100_000
"""Rows of the audit log that the API pages through; `aegis audit search` finds what is older."""


class Shape(BaseModel):
    """The base of every request and row."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # most are used by few daemons


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


class GrantAsk(Request):
    """What to remember of an approval: for how long, which arguments may have any value, and how many calls.

    `free` names top-level arguments; `any_arguments` leaves all of them free, others than the call's too. `uses` None:
    as many as usual.
    """

    seconds: float = Field(gt=0, le=10 * 365 * 86400)
    free: tuple[str, ...] = Field(default=(), max_length=64, strict=False)
    any_arguments: bool = False
    uses: int | None = Field(default=None, ge=1, le=USES_MAX)


class LoginRequest(Request):
    """A login to the inbox for whoever asks; `end` ends every session instead. `key` as in a decision."""

    end: bool = False
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class GuardRequest(Request):
    """Whether whoever asks may change how agents reach us, as an approver might; `done` is recorded where it is given.

    `action` is `wire`, `unwire`, or `daemon` for its end and its service. `key` as in a decision.
    """

    action: Literal["wire", "unwire", "daemon"]
    done: str = Field(default="", max_length=2000)
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class DecideRequest(Request):
    """One decision on one ticket, by ticket id or call id. `key` is the content of an approver key file.

    `grant`: an approval that is remembered for calls like it.
    """

    id: str = Field(min_length=1, max_length=ID_MAX)
    approve: bool
    note: str = Field(default="", max_length=NOTE_MAX)
    grant: GrantAsk | None = None
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class RevokeRequest(Request):
    """Which grants end: those with these ids, or `all`."""

    ids: tuple[str, ...] = Field(default=(), max_length=1000, strict=False)
    all: bool = False
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class PauseRequest(Request):
    """Stops one agent, or all of them where `agent` is None."""

    agent: str | None = Field(default=None, min_length=1, max_length=NAME_MAX)
    note: str = Field(default="", max_length=NOTE_MAX)
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class ResumeRequest(Request):
    """Lifts the pause of one agent, or the one of all where `agent` is None."""

    agent: str | None = Field(default=None, min_length=1, max_length=NAME_MAX)
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class QuotaRequest(Request):
    """`count` calls more than a limit says: for the agent's own limit, or with `agent` None for the one over all.

    `seconds` None: as long as the limit's window, which is the longest.
    """

    agent: str | None = Field(default=None, min_length=1, max_length=NAME_MAX)
    backend: str = Field(min_length=1, max_length=NAME_MAX)
    tool: str = Field(min_length=1, max_length=NAME_MAX)
    count: int = Field(default=1, ge=1, le=USES_MAX)
    seconds: float | None = Field(default=None, gt=0, le=10 * 365 * 86400)
    note: str = Field(default="", max_length=NOTE_MAX)
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class PurgeRequest(Request):
    """Everything recorded before `before` (RFC 3339) is to go, up to the last checkpoint there.

    `dry`: only say what that would be. `last` is what was said then; something else is not purged.
    """

    before: str = Field(min_length=1, max_length=64)
    dry: bool = False
    last: int | None = None
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class EraseRequest(Request):
    """Arguments and results of these calls are to go: by id, or all that match (every field given; None is any).

    `since` and `before` (excluded) are RFC 3339; names may be globs.

    `dry` only says what that would be. `bodies` is how many were said then; another number is not erased.
    """

    ids: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        default=(), max_length=1000, strict=False
    )
    agent: str | None = Field(default=None, min_length=1, max_length=NAME_MAX)
    backend: str | None = Field(default=None, min_length=1, max_length=NAME_MAX)
    tool: str | None = Field(default=None, min_length=1, max_length=NAME_MAX)
    since: str | None = Field(default=None, min_length=1, max_length=64)
    before: str | None = Field(default=None, min_length=1, max_length=64)
    text: str | None = Field(default=None, min_length=1, max_length=4096)
    note: str = Field(default="", max_length=NOTE_MAX)
    dry: bool = False
    bodies: int | None = None
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class ExplainRequest(Request):
    """Which refused call to explain: its id, or the beginning of it. `key` as in a decision."""

    id: str = Field(min_length=1, max_length=ID_MAX)
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class PinsQuery(Request):
    """Which things of which servers to show; None is any. `changed`: only those that are not usable."""

    backend: str | None = None
    kind: Literal["tool", "prompt", "template", "instructions"] | None = None
    changed: bool = False


class PinRequest(Request):
    """One thing of one server, as a person calls it: `name` may be `backend.name`."""

    name: str = Field(min_length=1, max_length=2 * NAME_MAX)
    backend: str | None = Field(default=None, min_length=1, max_length=NAME_MAX)
    kind: Literal["tool", "prompt", "template", "instructions"] | None = None


class TrustRequest(PinRequest):
    """What it is now may be used, if its hash is the one that is expected; `also`: and what it was before."""

    expect: str = Field(min_length=1, max_length=ID_MAX + 16)
    also: bool = False
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class ModeRequest(Request):
    """A mode that is to hold. With `check` it is only asked whether it may."""

    mode: Literal["enforce", "observe"]
    check: bool = False
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class CancelRequest(Request):
    """Which queued call to give up."""

    call_id: str = Field(min_length=1, max_length=ID_MAX)


class StopRequest(Request):
    """`restart`: tells the agents' sessions to wait for the next daemon and start one if none comes.

    `key` as in a decision.
    """

    restart: bool = False
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class ReloadRequest(Request):
    """`key` as in a decision."""

    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class NotifyTestRequest(Request):
    """Which channel to test; None: every one. `key` as in a decision."""

    channel: str | None = Field(default=None, min_length=1, max_length=NAME_MAX)
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class BackendRequest(Request):
    """Which backend to open. `key` as in a decision."""

    name: str = Field(min_length=1, max_length=NAME_MAX)
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class ExportTestRequest(Request):
    """Which export to test. `key` as in a decision."""

    name: str = Field(min_length=1, max_length=NAME_MAX)
    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


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


class Purge(Shape):
    """Records `first` to `last` go (`last` 0: none do); `held` says what keeps more from going. `seq` is the order."""

    first: int
    last: int
    records: int = 0
    calls: int = 0
    bodies: int = 0
    held: str = ""
    seq: int = 0


class ErasedCall(Shape):
    """One call whose arguments and results go."""

    call_id: str
    created_at: str
    agent_id: str
    backend_id: str
    method: str
    tool_name: str


class Erasure(Shape):
    """Arguments and results that go. `running` calls are left out; `elsewhere` names what may still hold some.

    `first` are the newest 20 of the calls.

    `done`: they are in no file of the log any more; else that is under way.
    """

    calls: int
    bodies: int
    running: int = 0
    seqs: tuple[int, ...] = ()
    elsewhere: tuple[str, ...] = ()
    first: tuple[ErasedCall, ...] = ()
    done: bool = False


class AuditState(Shape):
    """How the audit log is doing: `seq` is the newest record, `ingested` the newest one in SQLite.

    Up to `verified` everything was as it was written when the daemon looked last (`verified_at`); `tampered` says what
    was not, and `unsigned` why nothing is signed. `signed` and `witnessed` are how many records the newest checkpoint
    covers, and how many of them somebody else has seen.
    """

    seq: int
    ingested: int
    backlog_bytes: int
    healthy: bool
    detail: str = ""
    verified: int = 0
    verified_at: str | None = None
    tampered: str = ""
    unsigned: str = ""
    signed: int = 0
    witnessed: int = 0


class ProofState(Shape):
    """Whether the rules refuse what they must: `calls` that they must refuse were tried and refused, by kind.

    Where they were not, `healthy` is false, `detail` says which, and nothing is executed. `unseen` are policies that
    forbid something, though no call is known to which they apply.
    """

    healthy: bool = True
    detail: str = ""
    calls: int = 0
    kinds: dict[str, int] = {}
    unseen: tuple[str, ...] = ()
    at: str | None = None


class WouldRow(Shape):
    """How many calls of the last 24 hours one rule would have refused, and for which agents and tools."""

    stage: str
    rule: str
    count: int
    agents: int
    tools: int
    last_at: str


class Mode(Shape):
    """Whether rules are enforced, since when, and who said so: "" where the file was changed by hand.

    `would` is empty where they are enforced.
    """

    mode: Literal["enforce", "observe"]
    since: str | None
    by: str = ""
    config: str | None
    proof: ProofState
    would: tuple[WouldRow, ...] = ()


class Pause(Shape):
    """What a person has stopped: one agent, or everything where `agent_id` is None."""

    agent_id: str | None
    by: str
    note: str = ""
    since: str


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
    paused: tuple[Pause, ...] = ()
    audit: AuditState
    proof: ProofState = ProofState()
    exports: tuple[ExportRow, ...] = ()
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
    needed: int = 1
    """how many people must agree, of whom `given` have"""
    given: int = 0
    client: str = ""
    """what the client calls itself"""
    decided_by: str = ""
    command: str = ""
    """how its server is started, where the agent's end handed that over, and in which directory; without secrets"""
    cwd: str = ""
    unlike: str = ""
    """what is different from the server of the call of that tool that was approved last, where that was another one"""


class TicketEvent(Shape):
    """Something happened to a ticket, which is shown as it is afterwards; `by` is who decided."""

    event: Literal["opened", "attached", "waiter_gone", "voted", "decided", "expired", "consumed"]
    ticket: Ticket
    by: str | None = None


class Decided(Shape):
    """The answer to a decision. `pending`: it was a yes, and `needed` people must agree, of whom `given` have.

    `grant` is the id of the grant that was made with it.
    """

    id: str
    call_id: str
    state: Literal["approved", "rejected", "pending"]
    grant: str | None = None
    needed: int = 1
    given: int = 0


class Grant(Shape):
    """A remembered approval. `arguments` is JSON text, as in the call it was given for; those named in `free` may have
    any value (`*`: all of them, and others than these)."""

    id: str
    agent_id: str
    backend_id: str
    method: str
    tool_name: str
    arguments: str
    free: tuple[str, ...] = ()
    rule: str
    by: str
    created_at: str
    expires_at: str
    uses_left: int
    from_call: str
    command: str = ""
    """how the server is started that it holds for, and where, as in a ticket"""
    cwd: str = ""


class Quota(Shape):
    """What was added to a limit: `count` until `until`, and `extra` in all that holds now."""

    scope: Literal["agent", "global"]
    agent_id: str | None
    backend_id: str
    tool: str
    count: int
    until: str
    max_count: int
    extra: int


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
    extra: int = 0
    """how many more than `max_count` people allow at present"""
    kind: Literal["calls"] = "calls"


class BudgetRow(Shape):
    """What an argument may add up to in a window, and what it does. Amounts are decimal numbers, as texts: exact.

    `backend_id` is `*` where the rule is for the tool on all backends together. `retry_after_ms` is as in `LimitRow`.
    """

    kind: Literal["budget"] = "budget"
    scope: Literal["agent", "global"]
    agent_id: str | None
    backend_id: str
    tool: str
    argument: str
    window: str
    max_amount: str
    used_amount: str
    reserved_amount: str
    retry_after_ms: int | None


class ChannelRow(Shape):
    """One way to reach people. `deaf`: what they answer cannot be heard; `unused`: nothing was sent yet."""

    name: str
    ways: Literal["link", "buttons"]
    state: Literal["ok", "failing", "deaf", "unused"]
    sent: int
    failed: int
    waiting: int
    last_error: str = ""
    last_ok_at: str | None = None


class ChannelTest(Shape):
    """What became of a test message."""

    name: str
    ok: bool
    detail: str = ""


class BackendRow(Shape):
    """One backend. `address` is its url or its command line, secrets masked; of `handed-over` ones the agents' entries
    bring it. `health` is as in `Health`. `pins_changed` are its tools and the like that nobody may use until a person
    trusts them.
    """

    backend_id: str
    kind: Literal["process", "http", "sse", "websocket", "handed-over"]
    address: str
    health: str
    sessions: int
    lane: bool
    """whether its calls run one at a time"""
    running: int
    """calls that its lane has let go"""
    waiting: int
    """calls in its lane that wait, those included that wait for a person"""
    pins_changed: int
    agents: tuple[str, ...]
    """that may use it"""


class BackendProbe(Shape):
    """What a backend said that was opened as for a session. `ok` false: `detail` says why, and the rest may be empty.

    `latency_ms` is until its greeting was answered, its start included, and `tools_ms` until its tools were listed.
    """

    backend_id: str
    ok: bool
    detail: str = ""
    latency_ms: int | None = None
    server_name: str = ""
    server_version: str = ""
    protocol_version: str = ""
    era: Literal["legacy", "modern"] | None = None
    tools: int = 0
    tools_ms: int | None = None
    more: bool = False
    """whether it has more tools than were counted"""


class ExportRow(Shape):
    """One place to which the log is copied: it has everything up to record `seq`, and `lag` more are waiting.

    Of a witness, `seq` is the size of the newest checkpoint that it has.
    """

    name: str
    role: Literal["export", "witness"]
    type: str
    format: str
    seq: int
    lag: int
    state: Literal["ok", "trouble", "unused"]
    trouble: str = ""
    since: str | None = None
    """when the trouble began"""


class ExportTest(Shape):
    """What became of a test event."""

    name: str
    ok: bool
    detail: str = ""


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


class Explained(Shape):
    """A call of the log as the rules look at it, and what they said.

    `subject` is tool, resource, prompt, task or server_request; empty for a call that names nothing, `unknown` where
    the log does not tell. `names` are what it was for, one unless it subscribes to several resources.
    """

    call_id: str
    agent_id: str
    backend_id: str
    method: str
    tool_name: str
    subject: str
    names: tuple[str, ...]
    exec_status: str
    would: bool
    """refused, and observe mode let it pass"""
    stage: str
    reason: str
    rule: str
    created_at: str


class PinRow(Shape):
    """One thing that a server has. `offered` is the hash of what it is now, `trusted` of what may be used.

    `like` names others (`backend.name`) whose names are spelled differently and look like its own, `shadows` those that
    had its very name on other servers before it came. `fault` is what is wrong with the rules for it, for which it is
    refused. `shown` is the name for eyes: letters of other scripts among Latin ones are written as their escapes, as in
    `like`. `id` names it in addresses.
    """

    backend_id: str
    kind: Literal["tool", "prompt", "template", "instructions"]
    name: str
    state: Literal["trusted", "changed", "held"]
    trusted: tuple[str, ...]
    offered: str
    seen_at: str
    changed_at: str | None = None
    trusted_by: str = ""
    like: tuple[str, ...] = ()
    shadows: tuple[str, ...] = ()
    shown: str = ""
    fault: str = ""
    id: str = ""


class PinDiff(Shape):
    """How it differs from what was trusted: lines as of `diff -u`, safe to print; none where it does not.

    `again`: it is offered as trusted now, and was not before. `whole`: both texts were kept. `cut`: more differs than
    the lines show. `now` is what may be used, line by line and as safe, where nothing has changed.
    """

    pin: PinRow
    lines: tuple[str, ...] = ()
    again: bool = False
    whole: bool = True
    cut: bool = False
    now: tuple[str, ...] = ()


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


class RotateKeyRequest(Request):
    """Lets a new key sign checkpoints."""

    key: str | None = Field(default=None, max_length=KEY_MAX, repr=False)


class KeyRotated(Shape):
    """The key that signs from now on (hex), and the note that both keys signed."""

    public: str
    note: str


class Flushed(Shape):
    """The newest audit record that SQLite holds now."""

    seq: int


class Stopping(Shape):
    """The daemon is on its way out."""

    pid: int
    restart: bool


# --- what the inbox shows ---------------------------------------------------------------------------------------------


class Login(Shape):
    """A way into the inbox, good once and for two minutes; or how many sessions were ended."""

    url: str = Field(default="", repr=False)
    by: str
    expires_at: str = ""
    ended: int = 0


class Guarded(Shape):
    """Who asked is a person, by this name."""

    by: str


class CallRow(Shape):
    """One call as one of its records leaves it. `held` waits for a person, `running` was sent."""

    seq: int
    at: str
    call_id: str
    agent_id: str
    backend_id: str
    method: str
    tool_name: str
    state: Literal["held", "running", "success", "error", "unknown", "denied"]
    would: bool = False
    """refused, and observe mode let it pass"""
    duration_us: int | None = None
    stage: str = ""
    detail: str = ""
    ticket: str = ""
    approver: str = ""


class CallEvent(Shape):
    """Something happened to a call; or `lost` events were dropped, since the watcher read too slowly."""

    event: Literal["call", "lost"]
    call: CallRow | None = None
    lost: int = 0


class AuditQuery(Request):
    """Which calls of the log to show; None is any. Names are globs, times are RFC 3339, `before` pages back."""

    agent: str | None = None
    backend: str | None = None
    tool: str | None = None
    status: str | None = None
    """a verdict: success, error, denied, unknown, pending, allowed, asked or would"""
    stage: str | None = None
    policy: str | None = None
    approver: str | None = None
    since: str | None = None
    until: str | None = None
    text: str | None = None
    within: Literal["arguments", "results", "both"] = "arguments"
    before: int | None = None
    limit: int = Field(default=50, ge=1, le=200)


class AuditCall(Shape):
    """One call of the log, whatever its method. `arguments` and `result` are JSON text, empty where not kept."""

    seq: int
    call_id: str
    agent_id: str
    principal: str
    backend_id: str
    method: str
    tool_name: str
    arguments: str = ""
    result: str = ""
    acl_result: str
    rate_limit_result: str
    approval_result: str
    approver: str
    ticket: str
    exec_status: str
    exec_duration_us: int
    judged_us: int = 0
    queue_wait_ms: int
    error_code: int
    error_message: str
    stage: str
    rule: str
    would: bool
    created_at: str


class AuditPage(Shape):
    """Calls of the log, newest first. `looked_to`: calls behind this `seq` (of `looked_at`) were not looked at yet."""

    rows: tuple[AuditCall, ...] = ()
    looked_to: int | None = None
    looked_at: str = ""


class AuditGroup(Shape):
    """Calls of one tool in numbers; times are of answered calls, waits of those that waited for a person."""

    backend_id: str
    tool_name: str
    calls: int
    success: int = 0
    error: int = 0
    denied: int = 0
    unknown: int = 0
    waiting: int = 0
    p50_us: int | None = None
    p95_us: int | None = None
    p99_us: int | None = None


class AuditDenial(Shape):
    """What one rule, or stage, refused of one tool."""

    stage: str
    rule: str
    backend_id: str
    tool_name: str
    calls: int


class AuditStats(Shape):
    """The last 24 hours of the log: by hour, oldest first, by tool, and what was refused most."""

    hours: tuple[HourBar, ...] = ()
    tools: tuple[AuditGroup, ...] = ()
    denials: tuple[AuditDenial, ...] = ()


class AuditStep(Shape):
    """One record of a call in words; `after_us` is the time since the one before."""

    seq: int
    kind: str
    created_at: str
    after_us: int | None
    text: str


class AuditRecord(Shape):
    """One record of a call: `record` is its canonical JSON, `hash` its link in the chain."""

    seq: int
    kind: str
    hash: str
    record: str
    created_at: str


class AuditStory(Shape):
    """One call with all its records, oldest first, what they say, and other calls with the same ticket."""

    call: AuditCall
    records: tuple[AuditRecord, ...]
    steps: tuple[AuditStep, ...] = ()
    related: tuple[str, ...] = ()
    approval_wait_us: int | None = None


class HourBar(Shape):
    """How the calls of one hour ended."""

    at: str
    success: int = 0
    error: int = 0
    denied: int = 0
    unknown: int = 0
    waiting: int = 0


class ToolRow(Shape):
    """One tool as the log has seen it lately; times are of calls that were answered."""

    backend_id: str
    tool_name: str
    count: int
    last_at: str
    success: int = 0
    error: int = 0
    denied: int = 0
    unknown: int = 0
    waiting: int = 0
    p50_us: int | None = None
    p95_us: int | None = None


class Figures(Shape):
    """What the overview draws. `capped`: more calls than are counted, so the newest of them stand for all."""

    at: str
    hours: tuple[HourBar, ...] = ()
    """the last 24, oldest first, by the machine's clock"""
    tools: tuple[ToolRow, ...] = ()
    """of the last 24 hours, the most called first"""
    decided_s: tuple[float, ...] = ()
    """how long calls waited for a person's word, in seconds"""
    week: tuple[tuple[int, ...], ...] = ()
    """calls of the last seven days, by weekday (Monday first) and hour, by the machine's calendar"""
    capped: bool = False


# --- rows of the HTTP API ---------------------------------------------------------------------------------------------


class AgentAccess(Shape):
    """What an agent may do on one backend, as configured; `allowed_tools` is None where every tool not denied is."""

    allowed: bool
    denied_tools: tuple[str, ...] = ()
    allowed_tools: tuple[str, ...] | None = None
    approval_required: tuple[str, ...] = ()
    second_approver: tuple[str, ...] = ()


class Agent(Shape):
    """One configured agent."""

    id: str
    display_name: str
    backends: dict[str, AgentAccess]


class AuditRow(Shape):
    """One `tools/call` in the log. `arguments` is JSON text, empty where it was not kept.

    `judged_us` is how long judging it took, 0 where no policy looks at arguments.
    """

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
    judged_us: int = 0
    error_message: str
    created_at: str


class Acted(Shape):
    """The answer to a decision over HTTP. `pending`: it was a yes, and `needed` people must agree, `given` have."""

    status: Literal["ok"] = "ok"
    action: Literal["approve", "reject"]
    id: str
    call_id: str
    state: Literal["approved", "rejected", "pending"]
    needed: int = 1
    given: int = 0


class Health(Shape):
    """Whether calls can be served. Each backend is `healthy`, `no_health_url` or `unhealthy: …`."""

    status: Literal["ok", "degraded"]
    service: Literal["aegis"] = "aegis"
    backends: dict[str, str]
    exports: dict[str, str] = {}
    """`ok`, `unused` or `trouble`; the log waits for those in trouble, and calls do not"""


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


# --- what a person is shown of one ask --------------------------------------------------------------------------------


class Argument(Shape):
    """One argument of a call, as JSON text. `change` and `was` compare it with the call that was approved last."""

    name: str
    value: str
    change: Literal["", "same", "changed", "new", "gone"] = ""
    was: str = ""


class Vote(Shape):
    """One person's yes or no."""

    by: str
    via: str
    at: str
    note: str = ""


class Asked(Shape):
    """One ask with all that helps to decide it, whatever shows it. Texts are as they came: escape them.

    The arguments are compared with those of the last approved call of the same agent, backend and tool, where there is
    one (`compared_at`, `compared_by`). `limits` are those of the tool; `holds` tells that this call has a place in each
    of them already. `history` is filled in where an inbox shows it: the agent's last calls, the newest first.
    """

    ticket: Ticket
    arguments: tuple[Argument, ...]
    compared_at: str | None = None
    compared_by: str = ""
    limits: tuple[LimitRow, ...] = ()
    holds: bool = False
    votes: tuple[Vote, ...] = ()
    history: tuple[AuditCall, ...] = ()


class Inbox(Shape):
    """What waits: for a person's word (`pending` of them in all), and, approved, for the agent to ask again."""

    asked: tuple[Asked, ...]
    pending: int
    agreed: tuple[Ticket, ...] = ()


class Over(Shape):
    """How an ask ended: `state` of the ticket, who decided it, how and when; `ran_at` where that is known."""

    state: Literal["approved", "rejected", "expired", "consumed"]
    by: str = ""
    via: str = ""
    note: str = ""
    at: str | None = None
    ran_at: str | None = None


class Linked(Shape):
    """What an approval link speaks of, and the digits that its page asks for where it asks for any."""

    asked: Asked
    over: Over | None = None
    code: str = Field(repr=False)

    @property
    def ticket(self) -> Ticket:
        """The ask itself."""
        return self.asked.ticket


class LinkRequest(Request):
    """A decision that a program takes with an approval link: what stands in the link, and the code of the message."""

    id: str = Field(min_length=1, max_length=ID_MAX)
    action: Literal["approve", "reject"]
    token: str = Field(min_length=1, max_length=TOKEN_MAX, repr=False)
    code: str = Field(default="", max_length=16, repr=False)
    note: str = Field(default="", max_length=NOTE_MAX)
