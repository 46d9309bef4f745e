"""The path of one call, read downward: judged, reserved, agreed to, its turn awaited, recorded, sent, settled.

The same path serves both directions: a server's request to its client is a call with the client as its peer. A call
that has to wait for nothing runs through to its sending at once; only one that waits becomes a coroutine, and what
comes back is taken by the flight itself (a coroutine, a task and a future for each cost twice as much, `scripts/bench`
S4).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.ports import (
    AuditLog,
    AuditUnavailable,
    Brake,
    Desk,
    Fault,
    Grants,
    Lanes,
    Lease,
    Limits,
    Patience,
    Peer,
    Pins,
    Story,
    Ticket,
    Turn,
)
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.session import Open, State
from aegis_daemon.core.verdict import (
    LOOK,
    Allow,
    Claim,
    Decision,
    Deny,
    Ended,
    Hold,
    Permit,
    Reason,
    Verdict,
    unrecorded,
)
from aegis_daemon.loop.strand import Strand
from aegis_daemon.relay.answers import UNREADABLE, Task, error_code, pending_frame, released, replayed
from aegis_daemon.relay.questions import Withheld
from aegis_daemon.relay.redacting import Redacting
from aegis_daemon.wire.errors import INTERNAL_ERROR, refusal_frame
from aegis_daemon.wire.jsonrpc import Answer, error_frame, id_text, parse_from_server, result_frame
from aegis_daemon.wire.methods import Rule

if TYPE_CHECKING:
    from aegis_daemon.relay.own_tasks import OwnTasks

_log = logging.getLogger("aegis.call")
COMMIT_S = 30.0
"""How long an intent may take to reach the disk: a disk that hangs must not hang its callers."""
CONTINUE_S = 600.0
"""How long the lease of an `input_required` answer waits for its retry."""
CANCELLED_S = 30.0
"""How long the answer to a cancelled request is waited for before its outcome counts as unknown."""


HEARD = frozenset({"initialize", "tasks/get", "tasks/cancel", "tasks/result"})
"""Methods whose results tell something of the session."""


class Withdrawn(Exception):
    """The call ends before it is sent: its caller cancelled it or left, or its session ends, for this `reason`."""

    def __init__(self, text: str, reason: Reason | None = None) -> None:
        super().__init__(text)
        self.reason = reason or Reason("withdrawn", text, code="withdrawn")


def _at_once(work: Callable[[], None]) -> None:
    work()


class Shell(msgspec.Struct):
    """What every call needs of the daemon. `runtime` is today's configuration, `now` gives monotonic seconds.

    `after` does something once what the event under way caused has left, and before the next event. `brake` is None
    while nobody has stopped anything, `tracing` where no calls are traced.
    """

    runtime: Runtime
    now: Callable[[], float]
    audit: AuditLog
    limits: Limits
    lanes: Lanes
    desk: Desk
    after: Callable[[Callable[[], None]], None] = _at_once
    grants: Grants | None = None
    brake: Brake | None = None
    patience: Patience | None = None
    pins: Pins | None = None
    tasks: OwnTasks | None = None
    tracing: Callable[[Call], Call] | None = None
    redacting: Redacting = msgspec.field(default_factory=Redacting)


class Kept(msgspec.Struct):
    """What an `input_required` answer keeps for its retry: its claims, and under what it was agreed to, by whom."""

    lease: Lease | None
    approval: str = ""
    ticket: str = ""
    approver: str = ""
    people: int = 1
    pin: str = ""


class Origin(Protocol):
    """Where a call came from."""

    def answer(self, opened: Open, frame: bytes) -> bool:
        """Gives the answer back; False where nobody is there to take it."""
        ...

    def heartbeat(self, opened: Open, text: Callable[[], str]) -> Callable[[], None]:
        """Tells the caller from time to time that it has to wait; returns what stops that."""
        ...

    def client(self, opened: Open) -> str:
        """What the caller calls itself; "" where nobody knows."""
        ...

    def patience(self, opened: Open) -> float | None:
        """Seconds that the caller waits for a person before it wants some answer; None: as long as it takes."""
        ...

    def task(self, call: Call, ticket: Ticket) -> str:
        """The id of the task that this call goes on as while it waits; "" where its caller can poll none."""
        ...

    def detach(self, task: str, flight: Flight) -> bool:
        """Gives the caller the task, for which the flight goes on; False where it cannot, and the caller has it."""
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

    def shown(self, call: Call, body: bytes, asked: float) -> None:
        """A result that may tell what the server has, as the server gave it; it was asked for at `asked`.

        Raises `ValueError` where it cannot be read or recorded; then it is withheld.
        """
        ...


class Unattended:
    """An `Origin` of which nobody waits to hear more than the answer; what differs is overridden."""

    __slots__ = ()

    def heartbeat(self, opened: Open, text: Callable[[], str]) -> Callable[[], None]:
        """Nobody is told to wait."""
        return _nothing

    def client(self, opened: Open) -> str:
        """It has no name."""
        return ""

    def patience(self, opened: Open) -> float | None:
        """It waits."""
        return None

    def task(self, call: Call, ticket: Ticket) -> str:
        """Nobody polls one."""
        return ""

    def detach(self, task: str, flight: Flight) -> bool:
        """See `task`."""
        return False

    def continued(self, opened: Open) -> Kept | None:
        """Nothing came before it."""
        return None

    def suspend(self, opened: Open, state: Any, kept: Kept) -> None:
        """Nothing is reserved."""

    def follow(self, task: Task, settle: Settle) -> None:
        """Nothing is reserved."""
        settle("success")

    def heard(self, call: Call, body: bytes) -> None:
        """It says nothing of the session."""

    def shown(self, call: Call, body: bytes, asked: float) -> None:
        """It has no lists."""


def _nothing() -> None:
    return None


def carry(call: Call, opened: Open, origin: Origin, peer: Peer, shell: Shell) -> None:
    """Carries one call to its end. Every ending is recorded and, unless the caller has gone, answered."""
    launch(Flight(call, opened, origin, peer, shell, shell.audit.story(call)))


def launch(flight: Flight) -> None:
    """Carries a call whose records have begun."""
    try:
        permit = flight.judged()
    except Exception as error:
        flight.not_sent(error)
    else:
        if permit is not None:
            flight.depart(permit)


class Flight(msgspec.Struct, eq=False):
    """One call under way, and what it holds meanwhile. It takes what comes back (`core.ports.Landing`)."""

    call: Call
    opened: Open
    origin: Origin
    peer: Peer
    shell: Shell
    story: Story
    lease: Lease | None = None
    turn: Turn | None = None
    ticket: Ticket | None = None
    seat: Any = None
    """at its ticket, while it waits there or runs what was approved"""
    agreed: bool = False
    people: int = 1
    """who have agreed, where somebody has"""
    pin: str = ""
    """what they agreed to (`core.verdict.Ask.pin`)"""
    alone: bool = False
    """it goes on for a task, and nobody waits for its answer"""
    only: Ticket | None = None
    """it takes up this ticket, and may run under no other"""
    begun: bool = False
    """the server has worked on it already, before it asked for input"""
    would: Reason | None = None
    permit: Permit | None = None
    landed: bool = False
    departed: float = 0.0
    duration: int = 0
    answer: Answer | None = None
    failed: bool = False
    consumed: bool = False
    delivered: bool = False

    # --- before it is sent --------------------------------------------------------------------------------------

    def judged(self) -> Permit | None:
        """The permit of a call that may go at once; None for one that is refused, or has to wait for something."""
        params = self.call.frame.params
        if "requestState" in params or "inputResponses" in params:
            self._take_up(self.origin.continued(self.opened))
        ticket, verdict = self._prepare()
        if self.turn is not None or type(verdict) is Hold:
            strand = self.opened.strand = Strand(self._wait(verdict, ticket))
            strand.start()
            return None
        return self._decided(verdict)

    def _decided(self, verdict: Verdict) -> Permit | None:
        if type(verdict) is not Allow:
            assert type(verdict) is Deny
            self._refuse(verdict.reason)
            return None
        if self.ticket is not None and not self.shell.desk.consume(self.ticket):
            self._step_back()
            self._refuse(unrecorded())
            return None
        if verdict.would is not None or self.would is not None:
            self.story.note = "observe"
            self.story.denied(verdict.would or self.would, would=True)  # type: ignore[arg-type]
        self.opened.state = State.COMMITTING
        self.permit = verdict.permit
        if self.story.intent(self._committed):
            return verdict.permit
        self.opened.deadline = self.shell.now() + COMMIT_S
        return None

    def _committed(self, error: Exception | None) -> None:
        """Its intent is on disk, or never will be."""
        permit = self.permit
        if error is None and self.opened.cancelled:
            error = Withdrawn("the caller left while the intent was being written", self.opened.unsent)
        if error is not None:
            self.not_sent(error)
        elif permit is not None:
            self.depart(permit)

    async def _wait(self, verdict: Verdict, ticket: Ticket | None) -> None:
        """What comes of it when a person has decided and its turn has come."""
        try:
            permit = self._decided(await self._agreed_and_in_turn(verdict, ticket))
        except Exception as error:
            self.not_sent(error)
        else:
            if permit is not None:
                self.depart(permit)

    def not_sent(self, error: Exception) -> None:
        """Something ended the call before anything left; the one place where faults become refusals."""
        try:
            self._ended_by(error)
        except Exception:  # the session's other frames are none of this call's business
            _log.exception("call %s could not be refused as it should", self.call.id, extra=self._about)
            text = "a fault in Aegis; nothing was executed; see `aegis logs`"
            self._give_up(Reason("internal", text, code="fault"))
            if self.opened.state is not State.DONE:
                frame = error_frame(id_text(self.opened.request_id), INTERNAL_ERROR, text, {"by": "aegis"})
                self.origin.answer(self.opened, frame)

    @property
    def _about(self) -> dict[str, str]:
        """What a log line says of the call, for those who read it by machine."""
        call = self.call
        return {
            "call_id": call.id, "agent": call.principal.agent, "backend": call.backend, "method": call.method,
            "tool": call.name or "",
        }  # fmt: skip

    def _ended_by(self, error: Exception) -> None:
        if type(error) is Withdrawn:
            self._withdrawn(error)
        elif type(error) is _Replay:
            self._replay(error.ticket, error.ended)
        elif type(error) is _Pending:
            self._pend(error.ticket, error.task)
        elif isinstance(error, AuditUnavailable):
            reason = Reason(
                "audit",
                f"the audit log cannot be written ({error}); nothing was executed; free space and repeat the call",
                retryable=True,
                code="audit_unavailable",
            )
            self._refuse(reason)
        else:
            _log.error("call %s was refused because of a fault", self.call.id, exc_info=error, extra=self._about)
            self._refuse(Reason("internal", "a fault in Aegis; nothing was executed; see `aegis logs`", code="fault"))

    def _take_up(self, kept: Kept | None) -> None:
        """A retry goes on with the claims of its first call, and with a person's word where one was given."""
        if kept is not None:
            self.begun = True
            self.lease = kept.lease
            granted = kept.approval == "granted"
            if kept.ticket and (not granted or self.shell.grants.holds(kept.ticket)):  # type: ignore[union-attr]
                self.agreed, self.people, self.pin = True, kept.people, kept.pin
                story = self.story
                story.approval, story.approver, story.ticket = kept.approval, kept.approver, kept.ticket

    def _prepare(self) -> tuple[Ticket | None, Verdict]:
        """The verdict before anything is waited for, its claims and place reserved; and the ticket to attach to."""
        verdict = self._admit()
        if type(verdict) is Allow and self.only is None:  # what nearly all calls are
            return None, self._reserve(verdict.claims) or verdict
        return (None, verdict) if type(verdict) is Deny else self._provided(verdict)

    def _provided(self, verdict: Verdict) -> tuple[Ticket | None, Verdict]:
        """The same for a call that may go, or that has to wait for a person."""
        if self.only is not None:
            return self._taken_up(verdict, self.only)
        ticket: Ticket | None = None
        if type(verdict) is Hold:
            ticket = self.shell.desk.find(verdict)
            # A ticket that was decided goes before a grant: its call ran, or may run, without a use of it.
            if ticket is None or ticket.state == "pending":
                granted = self._granted(verdict)
                if granted is not None:
                    return None, granted
            if ticket is not None:
                if ticket.outcome:
                    raise _Replay(ticket)
                refusal = self._join(ticket, verdict.claims)
                return (ticket, verdict) if refusal is None else (None, refusal)
        refusal = self._reserve(verdict.claims)  # type: ignore[union-attr]
        return (None, verdict) if refusal is None else (None, refusal)

    def _taken_up(self, verdict: Verdict, ticket: Ticket) -> tuple[Ticket | None, Verdict]:
        """The same for one that must run under this ticket or not at all, lest it run twice."""
        if type(verdict) is not Hold or self.shell.desk.find(verdict) is not ticket:
            text = "the rules for this call have changed since it was asked; not executed; call the tool again"
            return None, Deny(Reason("approval", text, retryable=True, code="rules_changed"))
        if ticket.outcome:
            raise _Replay(ticket)
        refusal = self._join(ticket, verdict.claims)
        return (ticket, verdict) if refusal is None else (None, refusal)

    def _join(self, ticket: Ticket, claims: tuple[Claim, ...]) -> Deny | None:
        """What the ticket lacks is reserved for it; a call that joins holds nothing of its own."""
        own, self.lease = self.lease, ticket.lease
        if own is not None:
            if self.lease is None and ticket.idle:
                self.lease = own
            elif self.begun:
                own.commit(self.shell.now())
            else:
                own.release()
        if not ticket.idle:
            self.lease = None
            return None
        self.turn = ticket.turn
        refusal = self._reserve(claims)
        ticket.lease, self.lease = self.lease, None
        ticket.turn, self.turn = self.turn, None
        return refusal

    def _granted(self, hold: Hold) -> Verdict | None:
        """What comes of a call for which a remembered approval holds; None where there is none."""
        grants = self.shell.grants
        grant = grants.find(hold) if grants is not None else None
        if grant is None:
            return None
        refusal = self._reserve(hold.claims)
        if refusal is not None:
            return refusal
        if not grants.use(grant):  # type: ignore[union-attr]
            return Deny(unrecorded())
        story = self.story
        story.approval, story.approver, story.ticket = "granted", grant.by, grant.id
        self.agreed, self.pin = True, hold.ask.pin
        return self._admit()

    def _admit(self) -> Verdict:
        shell = self.shell
        if shell.brake is not None:
            stopped = shell.brake.stops(self.call)
            if stopped is not None:
                return Deny(stopped)
        pipeline = shell.runtime.pipeline
        begun = shell.now()
        verdict = pipeline.admit(self.call, begun)
        if pipeline.timed:
            self.story.judged_us += int((shell.now() - begun) * 1e6)
        if not self.agreed or type(verdict) is not Hold:
            return verdict
        if verdict.ask.pin != self.pin:
            text = "the tool has changed since a person agreed to the call; not executed; repeat it to ask again"
            return Deny(Reason("approval", text, retryable=True, code="rules_changed", detail=verdict.ask.rule))
        if verdict.ask.people > self.people:
            text = "the rules have changed, and want another person's word; not executed; repeat the call to ask for it"
            return Deny(Reason("approval", text, retryable=True, code="rules_changed", detail=verdict.ask.rule))
        begun = shell.now()
        verdict = pipeline.resume(self.call, begun)
        if pipeline.timed:
            self.story.judged_us += int((shell.now() - begun) * 1e6)
        return verdict

    def _reserve(self, claims: tuple[Claim, ...]) -> Deny | None:
        """Claims and a place, as far as the call does not hold them yet."""
        shell = self.shell
        if claims:
            self.story.limit = "allowed"
            if self.lease is None:
                lease = shell.limits.reserve(claims, shell.now())
                if type(lease) is not Deny:
                    self.lease = lease
                else:
                    self.story.limit = "denied"
                    if not shell.runtime.pipeline.observe:
                        return lease
                    self.would = lease.reason
        if self.turn is None:
            turn = shell.lanes.enter(self.call)
            if turn is None:
                return None
            if type(turn) is not Deny:
                self.turn = turn
            elif not shell.runtime.pipeline.observe:
                return turn
            else:
                self.would = self.would or turn.reason
        return None

    # --- while it waits -----------------------------------------------------------------------------------------

    async def _agreed_and_in_turn(self, verdict: Verdict, ticket: Ticket | None) -> Verdict:
        """Today's verdict once a person has agreed and the call's turn has come, whichever of the two it waits for."""
        while True:
            if type(verdict) is Hold:
                refusal = await self._ask(verdict, ticket)
                if refusal is not None:
                    return refusal
                verdict = self._today()
            if type(verdict) is Deny or self.turn is None:
                return verdict
            if not await self._stood_in_line(self.turn):
                return verdict
            # Rules may have changed while the call stood in line: today's decide.
            verdict = self._today()
            if type(verdict) is not Hold:
                return verdict
            # They want a person for it now: it asks, and lines up anew.
            self.turn.leave()
            self.turn = None
            ticket, verdict = self._provided(verdict)

    async def _stood_in_line(self, turn: Turn) -> bool:
        """Waits for the call's turn; False where it had come already."""
        since = self.shell.now()
        ready = turn.ready()
        if ready.done:
            return False
        position = self.story.position = max(1, turn.position)
        where = f"waiting in the queue of `{self.call.backend}`, position {position}"
        stop = self.origin.heartbeat(self.opened, lambda: where)
        try:
            await ready
        finally:
            stop()
        self.story.wait_us += int((self.shell.now() - since) * 1e6)
        return True

    def _today(self) -> Verdict:
        """What today's rules say of a call that had to wait, with what they want it to hold."""
        story = self.story
        if story.approval == "granted" and not self.shell.grants.holds(story.ticket):  # type: ignore[union-attr]
            self.agreed = False  # it was taken back, or ended, while the call stood in line
            story.approval, story.approver, story.ticket = "not_required", "", ""
        verdict = self._admit()
        if type(verdict) is Deny:
            return verdict
        return self._reserve(verdict.claims) or verdict  # type: ignore[union-attr]

    async def _ask(self, hold: Hold, ticket: Ticket | None) -> Deny | None:
        """Waits for a person. None where the call may go on: then it runs for all who wait for its ticket."""
        desk, story, opened = self.shell.desk, self.story, self.opened
        found = ticket is not None
        if ticket is None:
            made = desk.open(hold, self.origin.client(opened))
            if type(made) is Deny:
                return made
            ticket = made
            # From here on the ticket owns them, so that they outlive a client that stops waiting.
            ticket.lease, self.lease = self.lease, None
            ticket.turn, self.turn = self.turn, None
        try:
            story.held(ticket.id, hold.ask.rule)
        except AuditUnavailable:
            if not found:
                desk.withdraw(ticket)
            raise
        at_once = ticket.state == "approved" and ticket.idle
        task = "" if self.alone or at_once else self.origin.task(self.call, ticket)
        if task and self.shell.tasks is not None and self.shell.tasks.is_waited_for(task):
            raise _Pending(ticket, task)
        seat = self.seat = desk.attach(ticket, hold.call, None if task else self.origin.patience(opened))
        self.ticket = ticket
        if task and not seat.done and not self.origin.detach(task, self):
            self.ticket = self.seat = None
            desk.leave(ticket, seat)
            raise _Pending(ticket)
        opened = self.opened
        decision: Decision
        if not seat.done:
            opened.held = self.shell.now()
            stop = self.origin.heartbeat(opened, partial(_waits_for, ticket))
            try:
                decision = await seat
            finally:
                stop()
            opened.held = 0.0
        else:
            decision = await seat
        if decision.outcome == "approved":
            story.approval, story.approver = "approved", decision.by
            self.lease, ticket.lease = ticket.lease, None
            self.turn, ticket.turn = ticket.turn, None
            self.agreed, self.people, self.pin = True, ticket.people, ticket.pin
            return None
        self.ticket = self.seat = None
        if decision.outcome == "pending":
            raise _Pending(ticket)
        if decision.ended is not None:
            story.approver = decision.by
            if decision.ended.reason is not None:
                story.approval = "approved"
                return Deny(decision.ended.reason)
            raise _Replay(ticket, decision.ended)
        story.approval, story.approver = decision.outcome, decision.by
        if decision.outcome == "expired":
            story.approval = "timeout"
        return Deny(not_approved(decision, hold.ask.rule))

    # --- refused, given again, given up -------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Gives back what the call held; what a ticket keeps stays with the ticket."""
        self._settle_lease(self.begun, self.shell.now())
        if self.turn is not None:
            self.turn.leave()

    def _end_ticket(self, ended: Ended, delivered: bool) -> None:
        """What the call ran under is over, and whoever waited with it hears how."""
        ticket, self.ticket, self.seat = self.ticket, None, None
        if ticket is not None:
            self.shell.desk.finish(ticket, ended, delivered)

    def _step_back(self) -> None:
        """The ticket stays, with its lease and a place: another who waits may run the call, or one that comes later."""
        ticket, seat, turn = self.ticket, self.seat, self.turn
        if ticket is None:
            return
        self.ticket = self.seat = None
        if self.agreed:
            ticket.lease, self.lease = self.lease, None
            self.turn = None
            if turn is not None:
                turn.leave()  # it may have lined up; a ticket holds a place, and none in the order
                place = self.shell.lanes.enter(self.call)
                ticket.turn = None if type(place) is Deny else place
        self.shell.desk.leave(ticket, seat)

    def _give_up(self, reason: Reason) -> None:
        """It does not run, and keeps nothing. Who waits for an outcome with it hears why, if it was to run for them."""
        self._let_go()
        if self.agreed:
            self._end_ticket(Ended(reason=reason), False)
        else:
            self._step_back()

    @property
    def joined(self) -> bool:
        """Whether others wait for the same outcome, so that it must not be cancelled for one who left."""
        return self.ticket is not None and len(self.ticket.seats) > 1

    def refuse(self, reason: Reason) -> None:
        """Nothing of it leaves, for a reason that no gate had."""
        try:
            self._refuse(reason)
        except Exception as error:
            self.not_sent(error)

    def _refuse(self, reason: Reason) -> None:
        self._give_up(reason)
        call = self.call
        if reason.stage == "acl":
            self.story.acl = "denied"
        self.story.denied(reason)
        frame = refusal_frame(
            self.opened.request_id,
            stage=reason.stage if reason.stage != "withdrawn" else "internal",
            text=for_people(call, reason),
            call_id=call.id,
            era=call.era,
            method=call.method,
            style=self.shell.runtime.denials,
            retryable=reason.retryable,
            retry_after_ms=reason.retry_after_ms,
            reason=reason.code,
            policy=reason.policy,
        )
        self.origin.answer(self.opened, frame)

    def _replay(self, ticket: Ticket, ended: Ended | None) -> None:
        """Gives the answer of an identical call, which was kept or waited for; nothing runs."""
        self._let_go()
        text = f"the answer of the approved call {ticket.call_id} was given again; nothing was executed"
        story, id_json = self.story, id_text(self.opened.request_id)
        story.ticket, story.approval, story.approver = ticket.id, "replayed", ticket.by
        story.denied(Reason("replay", text, code="replayed"))
        answer = ended.answer if ended is not None else None
        if answer is not None and not answer.ok:
            frame = answer.with_id(id_json)
        else:
            body = answer.body if answer is not None else ticket.outcome
            assert body is not None
            frame = replayed(body, id_json)
        if self.shell.runtime.transforms is not None:  # it was kept under the rules of its time
            frame = self._clean(frame)
        if self.origin.answer(self.opened, frame) and not self.alone:
            self.shell.desk.delivered(ticket)

    def _clean(self, frame: bytes) -> bytes:
        """An answer of ours by today's transforms."""
        text = "the kept answer is withheld: it cannot be redacted"
        try:
            answer = parse_from_server(frame)
            if isinstance(answer, Answer):
                answer = self.shell.redacting.answer(self.call, answer, self.shell.runtime.transforms)
                return answer.with_id(id_text(self.opened.request_id))
        except Withheld as withheld:
            text = withheld.text
        except UNREADABLE:
            pass
        data = {"by": "aegis", "call_id": self.call.id, "stage": "forward", "reason": "not_redacted"}
        return error_frame(id_text(self.opened.request_id), INTERNAL_ERROR, text, data)

    def _pend(self, ticket: Ticket, task: str) -> None:
        """The caller waits no longer than this. It is told to come back, or what to poll; the ticket stays."""
        self._let_go()
        self.story.approval = "pending"
        text = f"the client waits no longer; it was told to repeat the call once {ticket.id} is decided"
        if task:
            text = f"the client was given the task of an identical call that waits for {ticket.id}"
        self.story.denied(Reason("withdrawn", text, code="pending"))
        id, tasks = self.opened.request_id, self.shell.tasks
        if task and tasks is not None:
            self.origin.answer(self.opened, result_frame(id_text(id), tasks.created(task)))
        else:
            self.origin.answer(self.opened, pending_frame(id, self.call, ticket))

    def _withdrawn(self, gone: Withdrawn) -> None:
        """The caller is not there any more, and nothing was sent."""
        ticket = self.ticket
        if ticket is not None:
            if not self.agreed:
                self.story.approval = "pending"
            if not self.agreed or ticket.state != "consumed" or self.shell.desk.unused(ticket):
                self._step_back()
            else:
                self._end_ticket(Ended(reason=unrecorded()), False)
        self._let_go()
        self.story.denied(gone.reason)
        self.origin.answer(self.opened, b"")

    # --- from the sending on: whatever happens now, the call may have been executed -------------------------------

    def depart(self, permit: Permit) -> None:
        """Through the only door out."""
        self.departed = self.shell.now()
        try:
            self.peer.send(permit, self)
        except Fault as fault:
            self.fail(fault)
        except Exception as error:
            _log.exception("call %s ended in a fault", self.call.id, extra=self._about)
            self.fail(Fault("fault", f"a fault in Aegis after the call was forwarded ({type(error).__name__})"))

    def set(self, answer: Answer) -> None:
        """The answer came."""
        self._land(self._answered, answer)

    def fail(self, fault: Fault) -> None:
        """No answer will come."""
        self._land(self._lost, fault)

    def _land(self, settle: Callable[[Any, float], None], what: Answer | Fault) -> None:
        """Once; what comes later is ignored."""
        if self.landed:
            return
        self.landed = True
        now = self.shell.now()
        self.duration = int((now - self.departed) * 1e6)
        try:
            settle(what, now)
        except Exception:
            _log.exception("call %s ended in a fault after it had been forwarded", self.call.id, extra=self._about)
            try:
                self._salvage(now)
            except Exception:  # other frames of the session are none of this call's business
                _log.exception("call %s could not be ended as it should", self.call.id, extra=self._about)

    def _salvage(self, now: float) -> None:
        """A fault of ours kept the call from its proper end: whoever waits hears of it, and nothing is left behind."""
        fault = Fault("fault", "a fault in Aegis after the call was forwarded; outcome unknown; see `aegis logs`")
        if self.answer is None and self.opened.state is not State.DONE:
            self._lost(fault, now)
            return
        self._settle_lease(True, now)
        if self.turn is not None:
            self.turn.leave()
        self._end_ticket(Ended(reason=Reason("forward", fault.text, code=fault.reason)), False)
        if self.opened.state is not State.DONE:
            data = {"by": "aegis", "call_id": self.call.id, "stage": "forward", "reason": fault.reason}
            frame = error_frame(id_text(self.opened.request_id), INTERNAL_ERROR, fault.text, data)
            self.origin.answer(self.opened, frame)

    def _show(self, answer: Answer) -> None:
        """What it tells of the server is looked at before any of it is released. Raises `Withheld`, `ValueError`."""
        try:
            self.origin.shown(self.call, answer.body, self.departed)
        except ValueError as error:
            if self.call.row.rule is not Rule.LIST:
                raise
            raise Withheld("unreadable_list", f"the server's list is withheld: {error}") from error

    def _answered(self, answer: Answer, now: float) -> None:
        call, opened, shell = self.call, self.opened, self.shell
        try:
            if answer.ok and call.row.rule is not Rule.GOVERNED:
                self._show(answer)
            transforms = shell.runtime.transforms
            ours = shell.tasks is not None and shell.tasks.answers(call)  # cleaned when it came
            if transforms is not None and not ours:
                answer = shell.redacting.answer(call, answer, transforms)
            frame, result = released(call, opened, answer, shell.runtime, self.story, ours=ours)
        except Withheld as withheld:
            self._lost(Fault(withheld.code, withheld.text), now)
            return
        except UNREADABLE:
            # Whoever waits must hear something.
            text = "the server's answer is withheld: it cannot be read; outcome unknown"
            self._lost(Fault("unreadable_answer", text), now)
            return
        failed = self.failed = not answer.ok or result.isError
        if result.waits and (self.lease is not None or self.agreed):
            kept = Kept(self.lease)
            if self.agreed:
                story = self.story
                kept.approval, kept.ticket, kept.approver = story.approval, story.ticket, story.approver
                kept.people, kept.pin = self.people, self.pin
            self.origin.suspend(opened, result.requestState, kept)
            self.lease = None
        task = result.started
        if task is not None and not failed:
            # The work goes on: quota, turn and outcome are settled when the task ends.
            if shell.runtime.transforms is not None:
                shell.redacting.began(call, task.taskId)
            delivered = self.origin.answer(opened, frame) and not self.alone
            self._end_ticket(Ended(answer), delivered)
            self.origin.follow(task, Settle(self))
            return
        counted = not result.waits and (not failed or shell.runtime.backend(call.backend).count_tool_errors)
        if self.lease is not None:
            self._settle_lease(counted, now)
        if self.turn is not None:
            self.turn.leave()
        if answer.ok and call.method in HEARD:
            self.origin.heard(call, answer.body)
        # What may have had its effect before the server asked counts, once, even if this daemon is killed now.
        self.consumed = (counted or result.waits) and call.method == "tools/call" and not self.begun
        self.answer = answer
        try:
            self.delivered = self.origin.answer(opened, frame)
        finally:
            shell.after(self._record)
        if self.ticket is not None:
            self._end_ticket(Ended(answer), self.delivered and not self.alone)

    def _record(self) -> None:
        """The outcome, behind the answer: nobody waits for it."""
        answer = self.answer
        assert answer is not None
        self.story.outcome(
            "error" if self.failed else "success",
            self.duration,
            consumed=self.consumed,
            result=answer.body,
            code=0 if answer.ok else error_code(answer.body),
            message="" if self.delivered else "the answer came after the caller had left",
        )

    def _lost(self, error: Fault, now: float) -> None:
        self._settle_lease(self.begun or not error.not_executed, now)  # it may have happened, so it counts
        if self.turn is not None:
            self.turn.leave()
        reason = Reason("forward", error.text, retryable=error.not_executed, code=error.reason)
        self._end_ticket(Ended(reason=reason), False)
        data = {
            "by": "aegis",
            "call_id": self.call.id,
            "stage": "forward",
            "reason": error.reason,
            "retryable": error.not_executed,
            "retry_after_ms": None,
        }
        frame = error_frame(id_text(self.opened.request_id), INTERNAL_ERROR, error.text, data)
        self.origin.answer(self.opened, frame)
        self.story.outcome(
            "error" if error.not_executed else "unknown",
            self.duration,
            consumed=self.call.method == "tools/call" and not error.not_executed and not self.begun,
            code=INTERNAL_ERROR,
            message=f"{error.reason}: {error.text}",
        )

    def _settle_lease(self, counted: bool, now: float) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            if counted:
                lease.commit(now)
            else:
                lease.release()


class Settle:
    """What a task still owes: its call's quota, turn and outcome, paid once."""

    __slots__ = ("_flight", "_open")

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._open = True

    def __call__(self, status: str, body: bytes = b"", message: str = "") -> None:
        """`status` as in an outcome; what may have had its effect counts."""
        if not self._open:
            return
        self._open = False
        flight = self._flight
        shell = flight.shell
        counted = status != "error" or shell.runtime.backend(flight.call.backend).count_tool_errors
        flight._settle_lease(counted, shell.now())
        if flight.turn is not None:
            flight.turn.leave()
        duration = int((shell.now() - flight.departed) * 1e6)
        flight.story.outcome(status, duration, consumed=counted, result=body, message=message)


class _Replay(Exception):
    """The approved call ran already, and nobody received its answer; or it `ended` while this one waited with it."""

    def __init__(self, ticket: Ticket, ended: Ended | None = None) -> None:
        super().__init__(ticket.id)
        self.ticket = ticket
        self.ended = ended


class _Pending(Exception):
    """The caller's patience ended before a person decided, or it polls the `task` that waits already."""

    def __init__(self, ticket: Ticket, task: str = "") -> None:
        super().__init__(ticket.id)
        self.ticket = ticket
        self.task = task


def for_people(call: Call, reason: Reason) -> str:
    """What the agent is told: where a rule refused, how a person sees the rest, in the same words for all of them."""
    if reason.stage in ("acl", "policy", "pin") or reason.code == "not_allowed":
        return f"{reason.text}{LOOK}{call.id[:12]}`"
    return reason.text


def _waits_for(ticket: Ticket) -> str:
    if ticket.state == "pending":
        return f"waiting for approval {ticket.id}"
    return f"approved ({ticket.id}), waiting for the outcome of an identical call"


def not_approved(decision: Decision, rule: str = "") -> Reason:
    """Why a call does not run that a person rejected, or nobody decided; `rule` is what had them asked."""
    if decision.outcome == "rejected":
        note = f": {decision.note}" if decision.note else ""
        text = (
            f"a person rejected this call (approval {decision.ticket}){note}; not executed; do not repeat it as it is"
        )
        return Reason("approval", text, code="rejected", detail=rule)
    text = f"nobody approved this call in time (approval {decision.ticket}); not executed; it may be asked again"
    return Reason("approval", text, retryable=True, code="approval_timeout", detail=rule)
