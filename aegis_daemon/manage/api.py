"""Everything that can be asked of a running daemon is one row of `HANDLERS`.

A handler takes the governor, the caller and a checked request, and gives a shape, or a stream of them. It refuses by
raising `Refusal`. Who the caller is comes from the kernel; no request can say it.
"""

from __future__ import annotations

import pwd
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, Protocol

import msgspec
from pydantic import ValidationError

from aegis_daemon.manage import refusals, shapes
from aegis_daemon.manage.ui.sessions import Logins


class Refusal(Exception):
    """A request that is answered with an error: a stable code, the reason, and the next step."""

    code = "refused"

    def __init__(self, message: str, hint: str = "", *, code: str = "", faults: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.code = code or self.code
        self.message = message
        self.hint = hint
        self.faults = tuple(faults)
        """For `config_faults`: rows of file, line, column, path, message, hint."""


class BadRequest(Refusal):
    """The request cannot be read."""

    code = "bad_request"


class NotFound(Refusal):
    """Nothing has the id."""

    code = "not_found"


class Conflict(Refusal):
    """It was decided already; the message says how and by whom."""

    code = "conflict"


class Forbidden(Refusal):
    """This caller may not."""

    code = "forbidden"


class Unavailable(Refusal):
    """Not now: something that it needs does not answer."""

    code = "unavailable"


class Governor(Protocol):
    """What the daemon lets itself be asked. Everything runs on the daemon's event loop."""

    def status(self) -> shapes.Status:
        """The daemon at a glance."""
        ...

    def pending(self) -> Sequence[shapes.Ticket]:
        """Tickets that may still let a call run, oldest first."""
        ...

    def watch_pending(self) -> AsyncIterator[shapes.TicketEvent]:
        """First an `opened` event for each ticket of `pending()`, then everything that happens to tickets.

        Nothing may get lost between the two. Is closed with `aclose` when the watcher leaves.
        """
        ...

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
        """Takes the decision. `id` is a ticket id or a call id, as a person typed it.

        :param via: cli, api, link, ui, or a channel's name. :param voter: tells persons apart, else `via` and `by` do.
        :raises NotFound: no such ticket. :raises Conflict: decided before, and by whom. :raises BadRequest: the grant
            cannot be given, and then nothing is decided.
        """
        ...

    def grants(self) -> Sequence[shapes.Grant]:
        """Remembered approvals that hold, oldest first."""
        ...

    def revoke_grants(self, ids: Sequence[str] | None, *, by: str, via: str) -> Sequence[shapes.Grant]:
        """Ends grants, all of them with None; gives those that it ended.

        :raises NotFound: one of the ids is no grant's; the others were ended.
        """
        ...

    def pause(self, agent: str | None, *, by: str, note: str) -> shapes.Pause:
        """Stops an agent, or everything. :raises NotFound: no such agent."""
        ...

    def resume(self, agent: str | None, *, by: str) -> shapes.Pause:
        """Lifts a pause, and gives it. :raises NotFound: it is not paused."""
        ...

    def grant_quota(
        self, agent: str | None, backend: str, tool: str, count: int, seconds: float | None, *, by: str, note: str
    ) -> shapes.Quota:
        """Raises one limit for a while. :raises NotFound: no such limit. :raises BadRequest: longer than its window."""
        ...

    @property
    def logins(self) -> Logins:
        """Who is logged in to the inbox."""
        ...

    def invite(self, by: str, voter: str) -> shapes.Login:
        """A one-time login to the inbox. :raises Unavailable: nothing is served over HTTP."""
        ...

    def logged_in(self, by: str, place: str) -> None:
        """Records that a session of the inbox begins. :raises Unavailable: it cannot be, so none may."""
        ...

    def waiting(self) -> int:
        """How many tickets want a person's word."""
        ...

    def inbox(self, most: int) -> shapes.Inbox:
        """The oldest tickets that wait, at most so many of each kind."""
        ...

    def ask_of(self, call_id: str) -> shapes.Asked:
        """One ticket. :raises NotFound: there is none that could still let its call run."""
        ...

    def watch_calls(self) -> AsyncIterator[shapes.CallEvent]:
        """What happens to calls from now on. Is closed with `aclose` when the watcher leaves."""
        ...

    async def figures(self) -> shapes.Figures:
        """The overview's numbers, up to some seconds old. Raises `Unavailable`."""
        ...

    async def seen_tools(self) -> Sequence[shapes.ToolRow]:
        """Tools that were called within a week, the most called first. Raises `Unavailable`."""
        ...

    async def audit_search(self, ask: shapes.AuditQuery) -> shapes.AuditPage:
        """Calls of the log, newest first. Raises `Unavailable`, `BadRequest`."""
        ...

    async def audit_stats(self) -> shapes.AuditStats:
        """The log of the last 24 hours in numbers, up to some seconds old. Raises `Unavailable`."""
        ...

    async def audit_story(self, id: str) -> shapes.AuditStory:
        """One call with its records. Raises `Unavailable`, `NotFound`."""
        ...

    async def recent_calls(self, agents: Sequence[str], count: int) -> dict[str, Sequence[shapes.AuditCall]]:
        """The last named calls of each agent, newest first. Raises `Unavailable`."""
        ...

    def pins(
        self, backend: str | None, kind: str | None, changed: bool, most: int | None = None
    ) -> Sequence[shapes.PinRow]:
        """What servers have, as they said; at most so many."""
        ...

    def pin(self, id: str) -> shapes.PinRow:
        """One thing that a server has. :raises NotFound: there is none with this id."""
        ...

    def pins_waiting(self) -> int:
        """How many things nobody may use before a person trusts them."""
        ...

    def watch_pins(self) -> AsyncIterator[int]:
        """`pins_waiting`, whenever it may be another number. Is closed with `aclose` when the watcher leaves."""
        ...

    def pin_diff(self, name: str, backend: str | None, kind: str | None) -> shapes.PinDiff:
        """How one thing has changed. :raises NotFound: there is none. :raises BadRequest: there are several."""
        ...

    def trust(
        self, name: str, backend: str | None, kind: str | None, *, expect: str, also: bool, by: str
    ) -> shapes.PinRow:
        """Lets it be used as it is now. Raises as `pin_diff`. :raises Conflict: it is not what was expected."""
        ...

    def may_decide(self, pid: int | None, key: str | None) -> str | None:
        """None, or why the process may not decide: it descends from a governed agent and has no valid key.

        `pid` is None where the kernel does not tell it. See `manage.ancestry`.
        """
        ...

    def note_wiring(self, action: str, done: str, *, by: str) -> None:
        """Records that entries of agents were wired or taken out. :raises Unavailable: it cannot be."""
        ...

    def channels(self) -> Sequence[shapes.ChannelRow]:
        """The configured ways to reach people, and how they are doing."""
        ...

    async def test_channels(self, channel: str | None) -> Sequence[shapes.ChannelTest]:
        """Sends a test message through one channel or all. Decides nothing.

        :raises NotFound: no such channel. :raises Unavailable: there were several only just now.
        """
        ...

    async def backends(self) -> Sequence[shapes.BackendRow]:
        """The configured backends, how they are, and what goes on there."""
        ...

    async def probe_backend(self, name: str, *, by: str) -> shapes.BackendProbe:
        """Opens one as for a session, and calls nothing. Raises `NotFound`, `Refusal`, `Unavailable`."""
        ...

    def exports(self) -> Sequence[shapes.ExportRow]:
        """Where the log is copied to, and how far that is."""
        ...

    def metrics(self, *, openmetrics: bool) -> str:
        """All numbers, in Prometheus' text format or in OpenMetrics'."""
        ...

    async def test_export(self, name: str) -> shapes.ExportTest:
        """Sends a test event. :raises NotFound: no such export."""
        ...

    def limits(self, agent: str | None, backend: str | None, tool: str | None) -> Sequence[shapes.LimitRow]:
        """The windows and how full they are."""
        ...

    def budgets(self, agent: str | None, backend: str | None, tool: str | None) -> Sequence[shapes.BudgetRow]:
        """The budgets and how much of them is spent."""
        ...

    def queue(self) -> Sequence[shapes.QueueRow]:
        """Every call in every lane, in order."""
        ...

    def cancel_queued(self, call_id: str) -> bool:
        """Refuses a call that has not been dispatched; False where none with this id waits."""
        ...

    def config_show(self) -> dict[str, Any]:
        """The configuration in force, secrets masked."""
        ...

    def agents(self) -> Sequence[shapes.Agent]:
        """The configured agents and what they may use."""
        ...

    def rate_limits(self, agent: str) -> Sequence[shapes.LimitRow]:
        """The windows that hold for one agent: its own, and those over all agents on backends that it may use.

        :raises NotFound: no such agent.
        """
        ...

    def queue_status(self) -> dict[str, int]:
        """How many calls wait for each backend that has a lane, those included that wait for a person."""
        ...

    async def audit_logs(self, limit: int, offset: int) -> Sequence[shapes.AuditRow]:
        """`tools/call` rows, newest first. Raises `Unavailable`."""
        ...

    def knows_key(self, key: str) -> bool:
        """Whether this is the content of the approver key file; compared in constant time."""
        ...

    def follow(self, id: str, action: str, token: str) -> shapes.Linked:
        """What an approval link speaks of, and how that ended where it did. Decides nothing.

        :raises Forbidden: the token was not made here for this id and action. :raises NotFound: the ask is forgotten.
        """
        ...

    def posted(self, channel: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Takes an answer that a channel's platform posted to us; False where it did not send it, or not now.

        Returns at once; the person is told there what became of it. Names of headers are lower case.
        """
        ...

    async def reload(self) -> shapes.Reloaded:
        """Reads the file again. Raises `config.load.ConfigFaults`, and then nothing has changed."""
        ...

    async def mode(self) -> shapes.Mode:
        """Whether rules are enforced, and what would have been refused were they. Raises `Unavailable`."""
        ...

    async def prove(self, mode: str) -> shapes.ProofState:
        """Whether the file's rules could hold in this mode. Changes nothing. Raises as `set_mode`."""
        ...

    async def set_mode(self, mode: str, *, by: str) -> shapes.Reloaded:
        """Takes up the file, which says this mode. Raises `config.load.ConfigFaults`; `Refusal` with code `unproven`.

        The latter where the rules do not refuse what they must; then nothing has changed.
        """
        ...

    async def rotate_audit_key(self, *, by: str) -> shapes.KeyRotated:
        """Lets a new key sign checkpoints. Raises `Unavailable`."""
        ...

    async def purge_audit(self, ask: shapes.PurgeRequest, *, by: str) -> shapes.Purge:
        """Has old records purged, or says what that would be. Raises `Unavailable`, `Conflict`, `BadRequest`."""
        ...

    async def erase_audit(self, ask: shapes.EraseRequest, *, by: str) -> shapes.Erasure:
        """Has arguments and results erased, or says what that would be. Raises as `purge_audit`, and `NotFound`."""
        ...

    async def flush_audit(self) -> int:
        """Waits until what was recorded by now is in SQLite; the newest record that is. Raises `Unavailable`."""
        ...

    async def stop(self, restart: bool) -> None:
        """Begins to stop and returns at once, so that the answer can still be sent."""
        ...


class Permit(Enum):
    """What a verb does to the daemon."""

    READ = "read"
    WRITE = "write"


ALL: Final = frozenset(Permit)


class Caller(msgspec.Struct, frozen=True):
    """Who asks. `present()` is False once the process that connected has gone, and its pid may be another's."""

    uid: int
    pid: int | None
    permits: frozenset[Permit]
    present: Callable[[], bool]

    @property
    def name(self) -> str:
        """The user's name, for records and messages."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"


# --- handlers ---------------------------------------------------------------------------------------------------------


async def status(governor: Governor, caller: Caller, ask: shapes.Nothing) -> shapes.Status:
    """The daemon at a glance."""
    return governor.status()


async def pending(governor: Governor, caller: Caller, ask: shapes.Nothing) -> Sequence[shapes.Ticket]:
    """Tickets that wait."""
    return governor.pending()


def watch_pending(governor: Governor, caller: Caller, ask: shapes.Nothing) -> AsyncIterator[shapes.TicketEvent]:
    """Tickets as they come and go."""
    return governor.watch_pending()


def _person(governor: Governor, caller: Caller, key: str | None) -> None:
    """Raises `Forbidden` unless a person asks: an agent's shell is refused here, whatever program it uses to ask."""
    refusal = governor.may_decide(caller.pid, key)
    if refusal is None and key is None and not caller.present():
        # A process that hands its connection on and exits could otherwise be judged by whoever has its pid now.
        refusal = "the process that asked is gone, so nobody knows who it was"
    if refusal is not None:
        raise Forbidden(
            refusal, "decide from a terminal of your own, or set AEGIS_APPROVER_KEY to the path of the approver key"
        )


async def decide(governor: Governor, caller: Caller, ask: shapes.DecideRequest) -> shapes.Decided:
    """One person's decision."""
    _person(governor, caller, ask.key)
    return await governor.decide(
        ask.id,
        ask.approve,
        by=caller.name,
        via="cli",
        note=ask.note,
        voter=f"user:{caller.name}",
        grant=ask.grant,
    )


async def grants(governor: Governor, caller: Caller, ask: shapes.Nothing) -> Sequence[shapes.Grant]:
    """What is remembered."""
    return governor.grants()


async def revoke_grant(governor: Governor, caller: Caller, ask: shapes.RevokeRequest) -> Sequence[shapes.Grant]:
    """Forgets it."""
    _person(governor, caller, ask.key)
    if ask.all == bool(ask.ids):
        raise BadRequest("say which grants: some ids, or all", "see `aegis grants list`")
    return governor.revoke_grants(None if ask.all else ask.ids, by=caller.name, via="cli")


async def pause(governor: Governor, caller: Caller, ask: shapes.PauseRequest) -> shapes.Pause:
    """Stops an agent, or everything."""
    _person(governor, caller, ask.key)
    return governor.pause(ask.agent, by=caller.name, note=ask.note)


async def resume(governor: Governor, caller: Caller, ask: shapes.ResumeRequest) -> shapes.Pause:
    """Lets it go on."""
    _person(governor, caller, ask.key)
    return governor.resume(ask.agent, by=caller.name)


async def grant_quota(governor: Governor, caller: Caller, ask: shapes.QuotaRequest) -> shapes.Quota:
    """Raises one limit for a while."""
    _person(governor, caller, ask.key)
    return governor.grant_quota(ask.agent, ask.backend, ask.tool, ask.count, ask.seconds, by=caller.name, note=ask.note)


async def ui_login(governor: Governor, caller: Caller, ask: shapes.LoginRequest) -> shapes.Login:
    """A way into the inbox, or the end of every session there."""
    _person(governor, caller, ask.key)
    if ask.end:
        return shapes.Login(by=caller.name, ended=governor.logins.end_all())
    return governor.invite(caller.name, f"user:{caller.name}")


def watch_calls(governor: Governor, caller: Caller, ask: shapes.Nothing) -> AsyncIterator[shapes.CallEvent]:
    """Calls as they happen."""
    return governor.watch_calls()


async def explain_refusal(governor: Governor, caller: Caller, ask: shapes.ExplainRequest) -> shapes.Explained:
    """Why a call was refused, with the rule: for a person who may change it, never for the agent that met it."""
    _person(governor, caller, ask.key)
    return refusals.explained((await governor.audit_story(ask.id)).call)


async def pins(governor: Governor, caller: Caller, ask: shapes.PinsQuery) -> Sequence[shapes.PinRow]:
    """What servers have."""
    return governor.pins(ask.backend, ask.kind, ask.changed)


async def pin_diff(governor: Governor, caller: Caller, ask: shapes.PinRequest) -> shapes.PinDiff:
    """How it has changed."""
    return governor.pin_diff(ask.name, ask.backend, ask.kind)


async def trust(governor: Governor, caller: Caller, ask: shapes.TrustRequest) -> shapes.PinRow:
    """Lets it be used."""
    _person(governor, caller, ask.key)
    return governor.trust(ask.name, ask.backend, ask.kind, expect=ask.expect, also=ask.also, by=caller.name)


async def notify_list(governor: Governor, caller: Caller, ask: shapes.Nothing) -> Sequence[shapes.ChannelRow]:
    """Channels."""
    return governor.channels()


async def notify_test(
    governor: Governor, caller: Caller, ask: shapes.NotifyTestRequest
) -> Sequence[shapes.ChannelTest]:
    """Test messages, which have nothing in them to decide with; an agent's would teach people to overlook messages."""
    _person(governor, caller, ask.key)
    return await governor.test_channels(ask.channel)


async def backends(governor: Governor, caller: Caller, ask: shapes.Nothing) -> Sequence[shapes.BackendRow]:
    """Backends."""
    return await governor.backends()


async def probe_backend(governor: Governor, caller: Caller, ask: shapes.BackendRequest) -> shapes.BackendProbe:
    """A session with a backend, whose server is started for it: only a person does that past the rules."""
    _person(governor, caller, ask.key)
    return await governor.probe_backend(ask.name, by=caller.name)


async def exports(governor: Governor, caller: Caller, ask: shapes.Nothing) -> Sequence[shapes.ExportRow]:
    """Exports."""
    return governor.exports()


async def exports_test(governor: Governor, caller: Caller, ask: shapes.ExportTestRequest) -> shapes.ExportTest:
    """A test event, which the receiver keeps: only a person sends one."""
    _person(governor, caller, ask.key)
    return await governor.test_export(ask.name)


async def limits(governor: Governor, caller: Caller, ask: shapes.LimitsQuery) -> Sequence[shapes.LimitRow]:
    """Windows."""
    return governor.limits(ask.agent, ask.backend, ask.tool)


async def budgets(governor: Governor, caller: Caller, ask: shapes.LimitsQuery) -> Sequence[shapes.BudgetRow]:
    """Amounts."""
    return governor.budgets(ask.agent, ask.backend, ask.tool)


async def queue(governor: Governor, caller: Caller, ask: shapes.Nothing) -> Sequence[shapes.QueueRow]:
    """Lanes."""
    return governor.queue()


async def cancel_queued(governor: Governor, caller: Caller, ask: shapes.CancelRequest) -> shapes.Cancelled:
    """Gives a queued call up."""
    if not governor.cancel_queued(ask.call_id):
        raise NotFound(f"no call `{ask.call_id}` waits in a queue", "see `aegis queue list`")
    return shapes.Cancelled(call_id=ask.call_id, cancelled=True)


async def config_show(governor: Governor, caller: Caller, ask: shapes.Nothing) -> dict[str, Any]:
    """The configuration in force."""
    return governor.config_show()


async def reload(governor: Governor, caller: Caller, ask: shapes.ReloadRequest) -> shapes.Reloaded:
    """The file, again: an agent that may write it must not also make it hold."""
    _person(governor, caller, ask.key)
    return await governor.reload()


async def mode(governor: Governor, caller: Caller, ask: shapes.Nothing) -> shapes.Mode:
    """The mode."""
    return await governor.mode()


async def guard(governor: Governor, caller: Caller, ask: shapes.GuardRequest) -> shapes.Guarded:
    """Whether a person asks, and what that person did."""
    _person(governor, caller, ask.key)
    if ask.done:
        governor.note_wiring(ask.action, ask.done, by=caller.name)
    return shapes.Guarded(by=caller.name)


async def set_mode(governor: Governor, caller: Caller, ask: shapes.ModeRequest) -> shapes.ProofState | shapes.Reloaded:
    """Whether a mode may hold, or that it does."""
    _person(governor, caller, ask.key)
    if ask.check:
        return await governor.prove(ask.mode)
    return await governor.set_mode(ask.mode, by=caller.name)


async def rotate_audit_key(governor: Governor, caller: Caller, ask: shapes.RotateKeyRequest) -> shapes.KeyRotated:
    """Lets a new key sign checkpoints."""
    _person(governor, caller, ask.key)
    return await governor.rotate_audit_key(by=caller.name)


async def purge_audit(governor: Governor, caller: Caller, ask: shapes.PurgeRequest) -> shapes.Purge:
    """Old records go."""
    _person(governor, caller, ask.key)
    return await governor.purge_audit(ask, by=caller.name)


async def erase_audit(governor: Governor, caller: Caller, ask: shapes.EraseRequest) -> shapes.Erasure:
    """Arguments and results go."""
    _person(governor, caller, ask.key)
    return await governor.erase_audit(ask, by=caller.name)


async def flush_audit(governor: Governor, caller: Caller, ask: shapes.Nothing) -> shapes.Flushed:
    """Everything into SQLite."""
    return shapes.Flushed(seq=await governor.flush_audit())


async def stop(governor: Governor, caller: Caller, ask: shapes.StopRequest) -> shapes.Stopping:
    """The end, which is a person's to say: nobody is governed after it."""
    _person(governor, caller, ask.key)
    pid = governor.status().pid
    await governor.stop(ask.restart)
    return shapes.Stopping(pid=pid, restart=ask.restart)


Handler = Callable[[Governor, Caller, Any], "Awaitable[Any] | AsyncIterator[Any]"]

HANDLERS: Final[dict[str, tuple[type[shapes.Request], Handler, Permit]]] = {
    "status": (shapes.Nothing, status, Permit.READ),
    "pending": (shapes.Nothing, pending, Permit.READ),
    "watch_pending": (shapes.Nothing, watch_pending, Permit.READ),
    "decide": (shapes.DecideRequest, decide, Permit.WRITE),
    "grants": (shapes.Nothing, grants, Permit.READ),
    "revoke_grant": (shapes.RevokeRequest, revoke_grant, Permit.WRITE),
    "pause": (shapes.PauseRequest, pause, Permit.WRITE),
    "resume": (shapes.ResumeRequest, resume, Permit.WRITE),
    "grant_quota": (shapes.QuotaRequest, grant_quota, Permit.WRITE),
    "ui_login": (shapes.LoginRequest, ui_login, Permit.WRITE),
    "watch_calls": (shapes.Nothing, watch_calls, Permit.READ),
    "explain_refusal": (shapes.ExplainRequest, explain_refusal, Permit.WRITE),
    "pins": (shapes.PinsQuery, pins, Permit.READ),
    "pin_diff": (shapes.PinRequest, pin_diff, Permit.READ),
    "trust": (shapes.TrustRequest, trust, Permit.WRITE),
    "notify_list": (shapes.Nothing, notify_list, Permit.READ),
    "notify_test": (shapes.NotifyTestRequest, notify_test, Permit.WRITE),
    "backends": (shapes.Nothing, backends, Permit.READ),
    "probe_backend": (shapes.BackendRequest, probe_backend, Permit.WRITE),
    "exports": (shapes.Nothing, exports, Permit.READ),
    "exports_test": (shapes.ExportTestRequest, exports_test, Permit.WRITE),
    "limits": (shapes.LimitsQuery, limits, Permit.READ),
    "budgets": (shapes.LimitsQuery, budgets, Permit.READ),
    "queue": (shapes.Nothing, queue, Permit.READ),
    "cancel_queued": (shapes.CancelRequest, cancel_queued, Permit.WRITE),
    "config_show": (shapes.Nothing, config_show, Permit.READ),
    "reload": (shapes.ReloadRequest, reload, Permit.WRITE),
    "mode": (shapes.Nothing, mode, Permit.READ),
    "set_mode": (shapes.ModeRequest, set_mode, Permit.WRITE),
    "guard": (shapes.GuardRequest, guard, Permit.WRITE),
    "flush_audit": (shapes.Nothing, flush_audit, Permit.WRITE),
    "rotate_audit_key": (shapes.RotateKeyRequest, rotate_audit_key, Permit.WRITE),
    "purge_audit": (shapes.PurgeRequest, purge_audit, Permit.WRITE),
    "erase_audit": (shapes.EraseRequest, erase_audit, Permit.WRITE),
    "stop": (shapes.StopRequest, stop, Permit.WRITE),
}


# --- one request ------------------------------------------------------------------------------------------------------


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """A request line."""

    verb: str
    args: dict[str, Any] = {}


_ENVELOPE = msgspec.json.Decoder(Envelope)


def call(governor: Governor, caller: Caller, line: bytes) -> Awaitable[Any] | AsyncIterator[Any]:
    """What the request line asks for, begun: to be awaited, or a stream. Raises `Refusal`."""
    if not line.startswith(b"{"):
        raise BadRequest(
            "this socket takes one JSON object a line, and no HTTP", "use the `aegis` command to talk to it"
        )
    try:
        envelope = _ENVELOPE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).lower()
        raise BadRequest(f"the request cannot be read: {why}", 'send {"verb": "status", "args": {}}') from None
    row = HANDLERS.get(envelope.verb)
    if row is None:
        raise BadRequest(f"unknown verb `{envelope.verb[:40]}`", f"known: {', '.join(HANDLERS)}", code="unknown_verb")
    model, function, permit = row
    if permit not in caller.permits:
        raise Forbidden(f"{caller.name} may not `{envelope.verb}`", "ask the user who runs the daemon")
    try:
        ask = model.model_validate(envelope.args)
    except ValidationError as error:
        # Never the input itself: it may hold a key.
        wrong = "; ".join(
            f"`{'.'.join(map(str, fault['loc'])) or 'args'}`: {_lower(fault['msg'])}"
            for fault in error.errors(include_url=False, include_input=False, include_context=False)
        )
        raise BadRequest(f"wrong arguments for `{envelope.verb}`: {wrong}") from None
    return function(governor, caller, ask)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
