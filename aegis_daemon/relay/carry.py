"""The path of one call, read downward: judged, reserved, agreed to, its turn awaited, recorded, sent, settled.

The same path serves both directions: a server's request to its client is a call with the client as its peer. A call
that has to wait for nothing runs through to its sending without suspending.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.pipeline import Unreadable
from aegis_daemon.core.ports import (
    AuditLog,
    AuditUnavailable,
    Desk,
    Fault,
    Lanes,
    Lease,
    Limits,
    Peer,
    Story,
    Ticket,
    Turn,
)
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.session import Open, State
from aegis_daemon.core.verdict import Allow, Claim, Decision, Deny, Hold, Permit, Reason, Verdict, unrecorded
from aegis_daemon.wire.errors import INTERNAL_ERROR, refusal_frame
from aegis_daemon.wire.jsonrpc import Answer, encode, error_frame, id_text, result_frame
from aegis_daemon.wire.methods import LEGACY_VERSIONS, META_SUBSCRIPTION, SERVER_REQUESTS, Direction, Rule

_log = logging.getLogger("aegis.call")
REPLAYED_KEY = "aegis/replayed"
COMMIT_S = 30.0
"""How long an intent may take to reach the disk: a disk that hangs must not hang its callers."""
CONTINUE_S = 600.0
"""How long the lease of an `input_required` answer waits for its retry."""


HEARD = frozenset({"initialize", "tasks/get", "tasks/cancel", "tasks/result"})
"""Methods whose results tell something of the session."""


class Withdrawn(Exception):
    """The caller cancelled or went away before the call was sent."""


class Shell(msgspec.Struct):
    """What every call needs of the daemon. `runtime` gives today's configuration, `now` monotonic seconds."""

    runtime: Callable[[], Runtime]
    now: Callable[[], float]
    audit: AuditLog
    limits: Limits
    lanes: Lanes
    desk: Desk


class Kept(msgspec.Struct):
    """What an `input_required` answer keeps for its retry: its claims, and which ticket whoever agreed had."""

    lease: Lease | None
    ticket: str = ""
    approver: str = ""


class Origin(Protocol):
    """Where a call came from."""

    def answer(self, opened: Open, frame: bytes) -> bool:
        """Gives the answer back; False where nobody is there to take it."""
        ...

    def heartbeat(self, opened: Open, text: Callable[[], str]) -> Callable[[], None]:
        """Tells the caller from time to time that it has to wait; returns what stops that."""
        ...

    def continued(self, opened: Open) -> Kept | None:
        """What the `input_required` answer kept that this call takes up, once."""
        ...

    def suspend(self, opened: Open, state: Any, kept: Kept) -> None:
        """Keeps it for the retry that shows this `requestState`."""
        ...

    def follow(self, task: Task, settle: Settle) -> None:
        """The call goes on as a task: settle it when it ends, or its time does."""
        ...

    def heard(self, call: Call, body: bytes) -> None:
        """The result of one of the methods in `HEARD`."""
        ...


class _State(msgspec.Struct):
    """What a call holds while it is under way."""

    lease: Lease | None = None
    turn: Turn | None = None
    ticket: Ticket | None = None
    agreed: bool = False
    begun: bool = False
    """the server has worked on it already, before it asked for input"""
    would: Reason | None = None

    def let_go(self, now: float) -> None:
        """Gives back what the call held; what a ticket keeps stays with the ticket."""
        _settle_lease(self, self.begun, now)
        if self.turn is not None:
            self.turn.leave()


async def carry(call: Call, opened: Open, origin: Origin, peer: Peer, shell: Shell) -> None:
    """Carries one call to its end. Every ending is recorded and, unless the caller has gone, answered."""
    story = shell.audit.story(call)
    state = _State()
    try:
        params = call.frame.params
        if "requestState" in params or "inputResponses" in params:
            _take_up(origin.continued(opened), story, state)
        ticket, verdict = _prepare(call, shell, story, state)
        if state.turn is not None or type(verdict) is Hold:
            verdict = await _agreed_and_in_turn(verdict, ticket, call, opened, origin, shell, story, state)
        if type(verdict) is not Allow:
            assert type(verdict) is Deny
            state.let_go(shell.now())
            _return_ticket(shell, state)
            _refuse(call, opened, origin, shell, story, verdict.reason)
            return
        if verdict.would is not None or state.would is not None:
            story.note = "observe"
            story.denied(verdict.would or state.would, would=True)  # type: ignore[arg-type]
        opened.state = State.COMMITTING
        committed = story.intent()
        if committed is not None:
            opened.deadline = shell.now() + COMMIT_S
            await committed
            if opened.cancelled:
                raise Withdrawn("the caller left while the intent was being written")
    except Withdrawn as gone:
        _withdrawn(call, opened, origin, shell, story, state, gone)
        return
    except _Replay as again:
        _replay(again.ticket, call, opened, origin, shell, story, state)
        return
    except AuditUnavailable as error:
        state.let_go(shell.now())
        _return_ticket(shell, state)
        reason = Reason(
            "audit",
            f"the audit log cannot be written ({error}); nothing was executed; free space and repeat the call",
            retryable=True,
            code="audit_unavailable",
        )
        _refuse(call, opened, origin, shell, story, reason)
        return
    except Exception:
        _log.exception("call %s was refused because of a fault", call.id)
        state.let_go(shell.now())
        _return_ticket(shell, state)
        reason = Reason("internal", "a fault in Aegis; nothing was executed; see `aegis logs`", code="fault")
        _refuse(call, opened, origin, shell, story, reason)
        return
    await _forward(verdict.permit, call, opened, origin, peer, shell, story, state)


def _take_up(kept: Kept | None, story: Story, state: _State) -> None:
    """A retry goes on with the claims of its first call, and with a person's word where one was given."""
    if kept is not None:
        state.begun = True
        state.lease = kept.lease
        if kept.ticket:
            state.agreed = True
            story.approval, story.approver, story.ticket = "approved", kept.approver, kept.ticket


def _prepare(call: Call, shell: Shell, story: Story, state: _State) -> tuple[Ticket | None, Verdict]:
    """The verdict before anything is waited for, its claims and place reserved; and the ticket to attach to."""
    verdict = _admit(call, shell, state)
    kind = type(verdict)
    if kind is Deny:
        return None, verdict
    ticket: Ticket | None = shell.desk.find(verdict) if kind is Hold else None  # type: ignore[arg-type]
    if ticket is not None:
        if ticket.state == "consumed":
            raise _Replay(ticket)
        if ticket.lease is not None:
            _settle_lease(state, state.begun, shell.now())
            state.lease, ticket.lease = ticket.lease, None
        state.turn, ticket.turn = ticket.turn, None
    refusal = _reserve(verdict.claims, call, shell, story, state)  # type: ignore[union-attr]
    if refusal is not None:
        _hand_back(state, ticket)
        return None, refusal
    return ticket, verdict


def _reserve(claims: tuple[Claim, ...], call: Call, shell: Shell, story: Story, state: _State) -> Deny | None:
    """Claims and a place, as far as the call does not hold them yet."""
    if claims:
        story.limit = "allowed"
        if state.lease is None:
            lease = shell.limits.reserve(claims, shell.now())
            if type(lease) is not Deny:
                state.lease = lease
            else:
                story.limit = "denied"
                if not shell.runtime().pipeline.observe:
                    return lease
                state.would = lease.reason
    if state.turn is None:
        turn = shell.lanes.enter(call)
        if type(turn) is not Deny:
            state.turn = turn
        elif not shell.runtime().pipeline.observe:
            return turn
        else:
            state.would = state.would or turn.reason
    return None


async def _agreed_and_in_turn(
    verdict: Verdict,
    ticket: Ticket | None,
    call: Call,
    opened: Open,
    origin: Origin,
    shell: Shell,
    story: Story,
    state: _State,
) -> Verdict:
    """Today's verdict once a person has agreed and the call's turn has come, whichever of the two it waits for."""
    while True:
        if type(verdict) is Hold:
            refusal = await _ask(verdict, ticket, opened, origin, shell, story, state)
            if refusal is not None:
                return refusal
            verdict = _today(call, shell, story, state)
        if type(verdict) is Deny or state.turn is None:
            return verdict
        if not await _stood_in_line(state.turn, call, opened, origin, shell, story):
            return verdict
        # Rules may have changed while the call stood in line: today's decide.
        verdict = _today(call, shell, story, state)
        if type(verdict) is not Hold:
            return verdict
        # They want a person for it now: it asks, and lines up anew.
        state.turn.leave()
        state.turn = ticket = None
        refusal = _reserve(verdict.claims, call, shell, story, state)
        if refusal is not None:
            return refusal


async def _stood_in_line(turn: Turn, call: Call, opened: Open, origin: Origin, shell: Shell, story: Story) -> bool:
    """Waits for the call's turn; False where it had come already."""
    since = shell.now()
    ready = turn.ready()
    if ready.done:
        return False
    position = story.position = max(1, turn.position)
    stop = origin.heartbeat(opened, lambda: f"waiting in the queue of `{call.backend}`, position {position}")
    try:
        await ready
    finally:
        stop()
    story.wait_us += int((shell.now() - since) * 1e6)
    return True


def _admit(call: Call, shell: Shell, state: _State) -> Verdict:
    pipeline = shell.runtime().pipeline
    return pipeline.resume(call, shell.now()) if state.agreed else pipeline.admit(call, shell.now())


def _today(call: Call, shell: Shell, story: Story, state: _State) -> Verdict:
    """What today's rules say of a call that had to wait, with what they want it to hold."""
    verdict = _admit(call, shell, state)
    if type(verdict) is Deny:
        return verdict
    return _reserve(verdict.claims, call, shell, story, state) or verdict  # type: ignore[union-attr]


def _hand_back(state: _State, ticket: Ticket | None) -> None:
    """What was taken from a ticket returns to it when its call is refused for another reason."""
    if ticket is not None:
        ticket.lease, state.lease = state.lease, None
        ticket.turn, state.turn = state.turn, None


async def _ask(
    hold: Hold, ticket: Ticket | None, opened: Open, origin: Origin, shell: Shell, story: Story, state: _State
) -> Deny | None:
    """Waits for a person. None where the call may go on: then its ticket is used up, on disk."""
    desk = shell.desk
    call = hold.call
    found = ticket is not None
    if ticket is None:
        made = desk.open(hold)
        if type(made) is Deny:
            return made
        ticket = made
    assert ticket is not None
    # From here on the ticket owns them, so that they outlive a client that stops waiting.
    ticket.lease, state.lease = state.lease, None
    ticket.turn, state.turn = state.turn, None
    try:
        story.held(ticket.id, hold.ask.rule)
    except AuditUnavailable:
        if not found:
            desk.finish(ticket, None)
        raise
    waiter = desk.attach(ticket, call)
    state.ticket = ticket
    if not waiter.done:
        id = ticket.id
        stop = origin.heartbeat(opened, lambda: f"waiting for approval {id}")
        try:
            decision: Decision = await waiter
        finally:
            stop()
    else:
        decision = await waiter
    story.approval, story.approver = decision.outcome, decision.by
    if decision.outcome == "expired":
        story.approval = "timeout"
    if decision.outcome != "approved":
        state.ticket = None
        return Deny(_not_approved(call, decision))
    if not desk.consume(ticket):
        desk.leave(ticket)
        state.ticket = None
        return Deny(unrecorded())
    state.lease, ticket.lease = ticket.lease, None
    state.turn, ticket.turn = ticket.turn, None
    state.agreed = True
    return None


class _Replay(Exception):
    """The approved call ran already, and nobody received its answer."""

    def __init__(self, ticket: Ticket) -> None:
        super().__init__(ticket.id)
        self.ticket = ticket


def _replay(
    ticket: Ticket, call: Call, opened: Open, origin: Origin, shell: Shell, story: Story, state: _State
) -> None:
    """Gives the kept answer of an earlier, identical call; nothing runs."""
    state.let_go(shell.now())
    text = f"the answer of the approved call {ticket.call_id} was given again; nothing was executed"
    story.ticket, story.approval, story.approver = ticket.id, "replayed", ticket.by
    story.denied(Reason("replay", text, code="replayed"))
    assert ticket.outcome is not None
    if origin.answer(opened, replayed(ticket.outcome, id_text(opened.request_id))):
        shell.desk.delivered(ticket)


def _not_approved(call: Call, decision: Decision) -> Reason:
    if decision.outcome == "rejected":
        note = f": {decision.note}" if decision.note else ""
        text = (
            f"a person rejected this call (approval {decision.ticket}){note}; not executed; do not repeat it as it is"
        )
        return Reason("approval", text, code="rejected", detail=f"rejected by {decision.by}")
    text = f"nobody approved this call in time (approval {decision.ticket}); not executed; it may be asked again"
    return Reason("approval", text, retryable=True, code="approval_timeout")


def _return_ticket(shell: Shell, state: _State) -> None:
    if state.ticket is not None:
        shell.desk.finish(state.ticket, None)


def _withdrawn(
    call: Call, opened: Open, origin: Origin, shell: Shell, story: Story, state: _State, gone: Withdrawn
) -> None:
    """The caller is not there any more, and nothing was sent."""
    ticket = state.ticket
    if ticket is not None and not state.agreed:
        # The ticket keeps its lease and place: an identical call may come back for it.
        shell.desk.leave(ticket)
        state.lease = state.turn = None
        story.approval = "pending"
    state.let_go(shell.now())
    if state.agreed:
        _return_ticket(shell, state)
    story.denied(Reason("withdrawn", str(gone), code="withdrawn"))
    origin.answer(opened, b"")


def _refuse(call: Call, opened: Open, origin: Origin, shell: Shell, story: Story, reason: Reason) -> None:
    if reason.stage == "acl":
        story.acl = "denied"
    story.denied(reason)
    text = reason.text
    if reason.stage in ("acl", "policy"):
        text = f"{text}; a person can look at it with `aegis audit show {call.id[:12]}`"
    frame = refusal_frame(
        opened.request_id,
        stage=reason.stage if reason.stage != "withdrawn" else "internal",
        text=text,
        call_id=call.id,
        era=call.era,
        method=call.method,
        style=shell.runtime().denials,
        retryable=reason.retryable,
        retry_after_ms=reason.retry_after_ms,
        reason=reason.code,
    )
    origin.answer(opened, frame)


async def _forward(
    permit: Permit, call: Call, opened: Open, origin: Origin, peer: Peer, shell: Shell, story: Story, state: _State
) -> None:
    """From the sending on: whatever happens now, the call may have been executed."""
    began = shell.now()
    error: Fault | None = None
    answer: Answer | None = None
    try:
        answer = await peer.send(permit)
    except Fault as fault:
        error = fault
    except Exception as fault:
        _log.exception("call %s ended in a fault", call.id)
        error = Fault("fault", f"a fault in Aegis after the call was forwarded ({type(fault).__name__})")
    ended = shell.now()
    duration = int((ended - began) * 1e6)
    if answer is None:
        assert error is not None
        _failed(call, opened, origin, shell, story, state, error, duration)
        return
    body = answer.body
    try:
        frame, result = _released(call, opened, answer, shell, story)
    except _Withheld as withheld:
        error = Fault(withheld.code, withheld.text)
        _failed(call, opened, origin, shell, story, state, error, duration)
        return
    except (msgspec.DecodeError, ValueError, TypeError, AttributeError, RecursionError):
        # JSON that is well formed and cannot be decoded, such as 1e999: whoever waits must hear something.
        error = Fault("unreadable_answer", "the server's answer is withheld: it cannot be read; outcome unknown")
        _failed(call, opened, origin, shell, story, state, error, duration)
        return
    failed = not answer.ok or result.isError
    if result.waits and (state.lease is not None or state.agreed):
        kept = Kept(state.lease)
        if state.agreed:
            kept.ticket, kept.approver = story.ticket, story.approver
        origin.suspend(opened, result.requestState, kept)
        state.lease = None
    task = result.started
    if task is not None and not failed:
        # The work goes on: quota, turn and outcome are settled when the task ends.
        delivered = origin.answer(opened, frame)
        _finish_ticket(shell, state, body, delivered)
        origin.follow(task, Settle(call, shell, story, state, began))
        return
    counted = not result.waits and (not failed or shell.runtime().backend(call.backend).count_tool_errors)
    _settle_lease(state, counted, ended)
    if state.turn is not None:
        state.turn.leave()
    if call.method in HEARD and answer.ok:
        origin.heard(call, body)
    delivered = origin.answer(opened, frame)
    _finish_ticket(shell, state, body if answer.ok else None, delivered)
    story.outcome(
        "error" if failed else "success",
        duration,
        # What may have had its effect before the server asked counts, once, even if this daemon is killed now.
        consumed=(counted or result.waits) and call.method == "tools/call" and not state.begun,
        result=body,
        code=0 if answer.ok else _error_code(body),
        message="" if delivered else "the answer came after the caller had left",
    )


def _settle_lease(state: _State, counted: bool, now: float) -> None:
    lease, state.lease = state.lease, None
    if lease is not None:
        if counted:
            lease.commit(now)
        else:
            lease.release()


def _finish_ticket(shell: Shell, state: _State, body: bytes | None, delivered: bool) -> None:
    ticket, state.ticket = state.ticket, None
    if ticket is not None:
        shell.desk.finish(ticket, None if delivered else body)


class Settle:
    """What a task still owes: its call's quota, turn and outcome, paid once."""

    __slots__ = ("_began", "_call", "_open", "_shell", "_state", "_story")

    def __init__(self, call: Call, shell: Shell, story: Story, state: _State, began: float) -> None:
        self._call = call
        self._shell = shell
        self._story = story
        self._state = state
        self._began = began
        self._open = True

    def __call__(self, status: str, body: bytes = b"", message: str = "") -> None:
        """`status` as in an outcome; what may have had its effect counts."""
        if not self._open:
            return
        self._open = False
        shell = self._shell
        counted = status != "error" or shell.runtime().backend(self._call.backend).count_tool_errors
        _settle_lease(self._state, counted, shell.now())
        if self._state.turn is not None:
            self._state.turn.leave()
        duration = int((shell.now() - self._began) * 1e6)
        self._story.outcome(status, duration, consumed=counted, result=body, message=message)


def _failed(
    call: Call, opened: Open, origin: Origin, shell: Shell, story: Story, state: _State, error: Fault, duration: int
) -> None:
    _settle_lease(state, state.begun or not error.not_executed, shell.now())  # it may have happened, so it counts
    if state.turn is not None:
        state.turn.leave()
    _return_ticket(shell, state)
    data = {
        "by": "aegis",
        "call_id": call.id,
        "stage": "forward",
        "reason": error.reason,
        "retryable": error.not_executed,
        "retry_after_ms": None,
    }
    origin.answer(opened, error_frame(id_text(opened.request_id), INTERNAL_ERROR, error.text, data))
    story.outcome(
        "error" if error.not_executed else "unknown",
        duration,
        consumed=call.method == "tools/call" and not error.not_executed and not state.begun,
        code=INTERNAL_ERROR,
        message=f"{error.reason}: {error.text}",
    )


# --- what comes back --------------------------------------------------------------------------------------------------


class _Withheld(Exception):
    """The answer exists and is not shown."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Task(msgspec.Struct):
    """A task as a server describes it, in either era. `ttl` (legacy) and `ttlMs` (modern) are milliseconds."""

    taskId: str  # noqa: N815  (the protocol's names)
    status: str = ""
    ttl: float | None = None
    ttlMs: float | None = None  # noqa: N815


class _Result(msgspec.Struct):
    isError: bool = False  # noqa: N815
    resultType: str = "complete"  # noqa: N815
    inputRequests: dict[str, Any] | None = None  # noqa: N815
    requestState: Any = None  # noqa: N815
    task: Task | None = None
    taskId: str | None = None  # noqa: N815
    ttlMs: float | None = None  # noqa: N815

    @property
    def waits(self) -> bool:
        """Whether it asks for the caller's input."""
        return self.resultType == "input_required"

    @property
    def started(self) -> Task | None:
        """The task that goes on with the call."""
        if self.task is not None:
            return self.task
        if self.resultType == "task" and self.taskId is not None:
            return Task(self.taskId, ttlMs=self.ttlMs)
        return None


_PLAIN = _Result()
_result = msgspec.json.Decoder(_Result)


def _released(call: Call, opened: Open, answer: Answer, shell: Shell, story: Story) -> tuple[bytes, _Result]:
    """The frame for the caller, and what its result says of itself."""
    id_json = id_text(opened.request_id)
    body = answer.body
    if not answer.ok or call.direction is Direction.TO_CLIENT:
        return answer.with_id(id_json), _PLAIN
    if call.row.rule is Rule.LIST:
        try:
            cleaned = shell.runtime().pipeline.clean_list(call, body)
        except Unreadable as error:
            raise _Withheld("unreadable_list", f"the server's list is withheld: {error}") from error
        return answer.with_id(id_json) if cleaned is body else result_frame(id_json, cleaned), _PLAIN
    result = _PLAIN
    if (
        # An escape may hide one of the others.
        b'"isError"' in body or b'"input_required"' in body or b'"taskId"' in body or b"\\u" in body
    ) and call.row.subject != "task":
        result = _result.decode(body)
        if result.waits:
            _check_asks(call, result.inputRequests, shell, story)
    if call.method == "initialize":
        version = answer.value().get("protocolVersion") if body.startswith(b"{") else None
        if version not in LEGACY_VERSIONS:
            raise _Withheld("unsupported_version", "the server speaks a protocol version that Aegis does not know")
    if call.method == "subscriptions/listen":
        return result_frame(id_json, _under_its_own_id(body, opened)), result
    return answer.with_id(id_json), result


def _under_its_own_id(body: bytes, opened: Open) -> bytes:
    """The end of a subscription names it once more, by the request's id: the server knows only ours."""
    result = msgspec.json.decode(body)
    meta = result.get("_meta") if type(result) is dict else None
    if type(meta) is not dict or META_SUBSCRIPTION not in meta:
        return body
    return encode({**result, "_meta": {**meta, META_SUBSCRIPTION: opened.request_id}})


def _check_asks(call: Call, asks: dict[str, Any] | None, shell: Shell, story: Story) -> None:
    """The questions inside an `input_required` answer are a server's requests like any others."""
    allowed = shell.runtime().may_ask(call.principal.agent, call.backend)
    for ask in (asks or {}).values():
        method = ask.get("method") if type(ask) is dict else None
        word = SERVER_REQUESTS.get(method) if type(method) is str else None
        if word is None or word not in allowed:
            code = "server_request_not_allowed"
            text = f"the server asked the client for `{str(method)[:60]}`, which is not allowed"
            if word is None or not shell.runtime().pipeline.observe:
                raise _Withheld(code, f"{text}; the answer is withheld")
            story.denied(Reason("acl", text, code=code), would=True)


def _error_code(body: bytes) -> int:
    try:
        code = msgspec.json.decode(body)["code"]
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return code if type(code) is int else 0


def replayed(body: bytes, id_json: bytes) -> bytes:
    """The kept answer of an approved call, marked as such where it can be read."""
    try:
        result = msgspec.json.decode(body)
        if type(result) is dict:
            meta = result.get("_meta")
            body = encode({**result, "_meta": {**(meta if type(meta) is dict else {}), REPLAYED_KEY: True}})
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    return result_frame(id_json, body)
