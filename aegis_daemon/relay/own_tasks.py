"""A call that waits for a person goes on as a task of ours where its client can poll one, and runs once, as any other.

The client of a modern `tools/call` that declares the tasks extension is answered at once with a task; the call waits on
without a request of its own, under its ticket, and its outcome is kept for `tasks/get` (MCP tasks extension
2026-07-28). What is forwarded declares nothing that would let the server answer with a task or a question of its own.

A task is its ticket: who asks for the same call while it waits polls the same task, and a task lives through a restart
as far as its ticket does. When the session that began it has ended, the next poll takes the wait up again, from
whatever session with the same backend. Only its agent can see it. Polls are judged and recorded like other calls, and
go no further than here. A client that polls need not declare the extension again: it got the id from one that did.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.ports import Desk, Fault, Landing, Ticket
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.session import Open, State
from aegis_daemon.core.verdict import Decision, Permit
from aegis_daemon.loop.clock import instant
from aegis_daemon.relay.answers import UNREADABLE, Result, Task, read_result, replayed
from aegis_daemon.relay.carry import Flight, Kept, Settle, Unattended, Withdrawn, launch, not_approved
from aegis_daemon.relay.eras.frames import META_LEVEL
from aegis_daemon.relay.handshake import TASKS_EXTENSION, offers_tasks, with_params
from aegis_daemon.wire.errors import INTERNAL_ERROR, INVALID_PARAMS, refusal_frame
from aegis_daemon.wire.jsonrpc import Answer, Frame, Kind, encode, error_frame, id_text, parse_from_server, result_frame
from aegis_daemon.wire.methods import META_CAPABILITIES, META_CLIENT, META_VERSION, TO_SERVER, Direction, Era

if TYPE_CHECKING:
    from aegis_daemon.relay.conversation import Conversation

__all__ = ["TASKS_EXTENSION", "OwnTasks", "TaskPeer", "is_ours"]

POLL_MS: Final = 5000
KEPT_S: Final = 600.0
"""How long after its end a task can be polled."""
MOST: Final = 64
"""Ended tasks of one agent that are kept; its oldest make room."""
MOST_ALL: Final = 1024
BYTES: Final = 64 << 20
"""Bytes of all kept outcomes together."""
_OURS: Final = re.compile(r"aegis-[0-9a-f]{32}")
_ENVELOPE: Final = (META_VERSION, META_CLIENT)
_HEAD: Final = b'{"jsonrpc":"2.0","id":'


def is_ours(task: str | None) -> bool:
    """Whether the id can only be one of ours, from how it looks."""
    return task is not None and _OURS.fullmatch(task) is not None


def id_of(call_id: str) -> str:
    """The id of the task that a call becomes: as hard to guess as the call's own."""
    return f"aegis-{hashlib.sha256(b'aegis task ' + call_id.encode()).hexdigest()[:32]}"


def alone(frame: Frame) -> Frame:
    """The call as it goes on without its client: one that can be answered by its result alone."""
    meta = {
        key: value for key, value in frame.params.get("_meta", {}).items() if key not in ("progressToken", META_LEVEL)
    }
    return with_params(frame, {**frame.params, "_meta": {**meta, META_CAPABILITIES: {}}})


class Own(msgspec.Struct, eq=False):
    """One task. `opened` is the request under which its call waits or runs, None where no session does it now.

    Times are seconds since the epoch. `more` is what its status brings along: its result or its error, byte for byte,
    and `said` the message of the error.
    """

    id: str
    agent: str
    backend: str
    ticket: Ticket
    created: float
    updated: float
    ttl_ms: int
    opened: Open | None = None
    talk: Conversation | None = None
    ended: str = ""
    more: dict[str, msgspec.Raw] = {}
    said: str = ""
    size: int = 0

    def shown(self) -> dict[str, Any]:
        """The task as its client sees it."""
        shown: dict[str, Any] = {"taskId": self.id, "status": self.ended or "working"}
        words = _words(self)
        if words:
            shown["statusMessage"] = words
        return {
            **shown,
            "createdAt": instant(self.created),
            "lastUpdatedAt": instant(self.updated),
            "ttlMs": self.ttl_ms,
            "pollIntervalMs": POLL_MS,
            **self.more,
        }


def _words(own: Own) -> str:
    state = own.ticket.state
    if own.ended:
        return own.said
    if state == "pending":
        return f"waiting for approval {own.ticket.id}: not executed yet; a person has been asked"
    return f"approved ({own.ticket.id}), under way"


class OwnTasks:
    """All of ours, over all sessions."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._live: dict[str, Own] = {}
        self._ended: OrderedDict[str, Own] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._live) + len(self._ended)

    # --- how a call becomes one ---------------------------------------------------------------------------------

    def begin(self, talk: Conversation, call: Call, ticket: Ticket) -> str:
        """The id of the task that this call goes on as, kept on disk already; "" where it does not become one."""
        if call.method != "tools/call" or not offers_tasks(call.frame.params):
            return ""
        known = self._live.get(ticket.task) if ticket.task else None
        if known is None:
            spent = not ticket.task or ticket.task in self._ended
            if spent and not talk.shell.desk.polled(ticket, id_of(call.id)):
                return ""
            known = self._adopt(ticket)
        return known.id

    def is_waited_for(self, id: str) -> bool:
        """Whether some session's call waits, or runs, for this task already."""
        own = self._live.get(id)
        return own is not None and own.opened is not None

    def created(self, id: str) -> bytes:
        """The result that hands the task to its client."""
        return encode({"resultType": "task", **self._live[id].shown()})

    def detach(self, id: str, talk: Conversation, flight: Flight) -> bool:
        """The flight goes on for the task instead of for its request, whose client is given the task.

        False where there is no room for one more, and nothing has happened.
        """
        opened = talk.begin_alone(id)
        if opened is None:
            return False
        before, origin, own = flight.opened, flight.origin, self._live[id]
        call = msgspec.structs.replace(flight.call, frame=alone(flight.call.frame))
        opened.call, opened.strand = call, before.strand
        own.opened, own.talk = opened, talk
        flight.call, flight.opened, flight.alone = call, opened, True
        flight.origin = _Alone(self, own, talk)
        before.strand = None
        origin.answer(before, result_frame(id_text(before.request_id), self.created(id)))
        return True

    def _adopt(self, ticket: Ticket) -> Own:
        now = self._wall()
        left = ticket.expires + KEPT_S - ticket.created
        own = Own(ticket.task, ticket.agent, ticket.backend, ticket, ticket.created, now, max(0, int(left * 1000)))
        if len(self._live) >= MOST:  # of those that nobody waits for, the ticket on disk knows enough
            for one in [one for one in self._live.values() if one.opened is None]:
                if len(self._live) >= MOST_ALL or one.ticket.state not in ("pending", "approved"):
                    del self._live[one.id]
        self._live[own.id] = own
        return own

    # --- what is asked of them ----------------------------------------------------------------------------------

    def asked(self, talk: Conversation, call: Call) -> tuple[bool, bytes]:
        """Whether it went well, and the result or the error, for one of the methods about tasks."""
        self._forget()
        own = self._find(talk, call.principal, call.name or "") if call.era is Era.MODERN else None
        if own is None:
            return False, encode({"code": INVALID_PARAMS, "message": "no such task, or it is over since long"})
        if call.method == "tasks/get":
            tool = own.ticket.name
            shown = talk.shell.runtime.pipeline.visible(call.principal, talk.backend, "tool", tool)
            if own.ticket.state == "consumed" and not shown:
                return False, encode(
                    {"code": INVALID_PARAMS, "message": f"the tool `{tool}` is not available any more"}
                )
            self._look(talk, call, own)
            return True, encode({"resultType": "complete", **own.shown()})
        if call.method == "tasks/cancel":
            self._cancel(talk, own)
        elif call.method != "tasks/update":  # which answers questions, and ours have none
            return False, encode({"code": INVALID_PARAMS, "message": f"`{call.method}` is not for this task"})
        return True, encode({"resultType": "complete"})

    @staticmethod
    def answers(call: Call) -> bool:
        """Whether a call is about a task that can only be ours: no server is asked."""
        return call.subject == "task" and is_ours(call.name)

    def home(self, desk: Desk, agent: str, id: str) -> str | None:
        """The backend of this agent's task; None where it has no such task."""
        found = self._live.get(id) or self._ended.get(id) or desk.by_task(id)
        return str(found.backend) if found is not None and found.agent == agent else None

    def _find(self, talk: Conversation, principal: Principal, id: str) -> Own | None:
        own = self._ended.get(id) or self._live.get(id)
        if own is None:
            ticket = talk.shell.desk.by_task(id)
            if ticket is not None and ticket.agent == principal.agent and ticket.backend == talk.backend:
                own = self._adopt(ticket)
        if own is None or own.agent != principal.agent or own.backend != talk.backend:
            return None
        return own

    def _look(self, talk: Conversation, call: Call, own: Own) -> None:
        """Brings the task up to date: a call that nobody waits for waits here from now on."""
        ticket = own.ticket
        # A session with another server of the same name may look; the call goes on where it was asked.
        if self._may_go_on(talk, own) and ticket.server == call.server:
            self._resume(talk, call, own)
        if own.ended in ("completed", "failed"):
            talk.shell.desk.delivered(ticket)

    def _may_go_on(self, talk: Conversation, own: Own) -> bool:
        """Whether its call may still run and no session waits for that; what ended meanwhile is told as it ended."""
        ticket = own.ticket
        if own.ended or own.opened is not None:
            return False
        if ticket.outcome:
            self._complete(own, replayed(ticket.outcome, id_text(own.id)))
        elif ticket.state in ("pending", "approved") or ticket.runner is not None:
            return True
        else:
            self._complete(own, _ending(own, talk))
        return False

    def _resume(self, talk: Conversation, poll: Call, own: Own) -> None:
        shell = talk.shell
        params = shell.desk.params(own.ticket, poll.principal.tenant)
        if params is None:
            self._complete(own, error_frame(id_text(own.id), INTERNAL_ERROR, "what was asked is not known any more"))
            return
        said = poll.frame.params.get("_meta", {})
        params["_meta"] = {**{key: said[key] for key in _ENVELOPE if key in said}, META_CAPABILITIES: {}}
        value = {"jsonrpc": "2.0", "id": own.id, "method": "tools/call", "params": params}
        frame = Frame(Kind.REQUEST, own.id, "tools/call", params, value)
        call = Call(
            talk.new_id(), own.id, talk.session, poll.principal, Direction.TO_SERVER, TO_SERVER["tools/call"], "tool",
            params["name"], talk.backend, Era.MODERN, frame, handed=talk.handed,
        )  # fmt: skip
        if shell.brake is not None and shell.brake.stops(call) is not None:
            return  # it may go on once a person lets it
        opened = talk.begin_alone(own.id)
        if opened is None:
            return  # there is no room now: at a later poll
        opened.call = call
        own.opened, own.talk = opened, talk
        origin = _Alone(self, own, talk)
        flight = Flight(call, opened, origin, talk.to_server_side, shell, shell.audit.story(call))
        flight.alone, flight.only = True, own.ticket
        launch(flight)

    def _cancel(self, talk: Conversation, own: Own) -> None:
        """The client lets go. What has not left does not leave for it; what has, ends as it ends."""
        opened, at = own.opened, own.talk
        if opened is None:
            if not self._may_go_on(talk, own):
                return
        elif opened.state is State.COMMITTING:
            opened.cancelled = True  # it stops once its intent is written
        elif opened.state is not State.WAITING:
            if at is not None:
                at.give_up(opened, "the task was cancelled")
            return
        talk.shell.desk.polled(own.ticket, "")  # whoever asks for the same call again gets a task of its own
        own.ended = "cancelled"
        self._put_away(own)
        if opened is not None and opened.strand is not None:
            opened.strand.interrupt(Withdrawn("the client cancelled the task before its call was forwarded"))

    # --- how they end -------------------------------------------------------------------------------------------

    def over(self, own: Own, frame: bytes) -> None:
        """The call that waited for the task is over; without an answer, no session waits for it any more."""
        own.opened = own.talk = None
        if frame and not own.ended:
            self._complete(own, frame)

    def _complete(self, own: Own, frame: bytes) -> None:
        """The task has ended with this answer."""
        answer = parse_from_server(frame, len(frame))
        assert isinstance(answer, Answer)
        if not answer.ok:
            own.ended, own.more, own.said = "failed", {"error": msgspec.Raw(answer.body)}, _message(answer.body)
        elif _is_complete(answer.body):
            own.ended, own.more = "completed", {"result": msgspec.Raw(answer.body)}
        else:
            text = (
                "the approved call was executed, and the server asked for more than a task can give it; "
                "what it has done so far is not known"
            )
            result = {"resultType": "complete", "content": [{"type": "text", "text": text}], "isError": True}
            own.ended, own.more = "completed", {"result": msgspec.Raw(encode(result))}
        own.size = len(frame) + len(own.ticket.arguments)
        self._put_away(own)

    def _put_away(self, own: Own) -> None:
        own.updated = self._wall()
        self._live.pop(own.id, None)
        self._ended[own.id] = own
        self._bytes += own.size
        self._forget()
        theirs = [one for one in self._ended.values() if one.agent == own.agent]
        if len(theirs) > MOST:
            self._drop(theirs[0])
        while len(self._ended) > 1 and (len(self._ended) > MOST_ALL or self._bytes > BYTES):
            self._drop(next(iter(self._ended.values())))

    def _forget(self) -> None:
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if 0 <= self._wall() - oldest.updated < KEPT_S:
                return
            self._drop(oldest)

    def _drop(self, own: Own) -> None:
        del self._ended[own.id]
        self._bytes -= own.size


def _ending(own: Own, talk: Conversation) -> bytes:
    """The answer to a call that ended while no daemon remembered its task."""
    ticket = own.ticket
    if ticket.state == "consumed":
        text = (
            f"the call was approved ({ticket.id}) and forwarded, and how it ended is not known here any more; "
            "it is not executed again; look at what it was to change before it is asked for anew"
        )
        return error_frame(id_text(own.id), INTERNAL_ERROR, text, {"by": "aegis", "call_id": ticket.call_id})
    reason = not_approved(Decision(ticket.state, ticket.id, ticket.by, ticket.note))
    return refusal_frame(
        own.id, stage=reason.stage, text=reason.text, call_id=ticket.call_id, era=Era.MODERN, method="tools/call",
        style=talk.shell.runtime.denials, retryable=reason.retryable, reason=reason.code,
    )  # fmt: skip


def _is_complete(body: bytes) -> bool:
    """Whether a result is the last word of its call."""
    try:
        return read_result(body).resultType == Result().resultType
    except UNREADABLE:
        return False


def _message(body: bytes) -> str:
    """The message of an error; "" where it cannot be read."""
    try:
        return str(msgspec.json.decode(body)["message"])
    except (*UNREADABLE, KeyError):
        return ""


class _Alone(Unattended):
    """The origin of a call that goes on for a task. See `carry.Origin`."""

    __slots__ = ("_own", "_talk", "_tasks")

    def __init__(self, tasks: OwnTasks, own: Own, talk: Conversation) -> None:
        self._tasks = tasks
        self._own = own
        self._talk = talk

    def answer(self, opened: Open, frame: bytes) -> bool:
        """Keeps it for who polls."""
        wanted = bool(frame) and not self._own.ended
        self._talk.end_alone(opened)
        self._tasks.over(self._own, frame)
        return wanted

    def client(self, opened: Open) -> str:
        """As in its request."""
        return self._talk.to_server_side.client(opened)

    def suspend(self, opened: Open, state: Any, kept: Kept) -> None:
        """Nothing can come after it: what the server did before it asked may have had its effect."""
        if kept.lease is not None:
            kept.lease.commit(self._talk.shell.now())

    def follow(self, task: Task, settle: Settle) -> None:
        """A server that made a task all the same."""
        self._talk.to_server_side.follow(task, settle)


class TaskPeer:
    """What calls about our tasks are sent to: they are answered here. See `core.ports.Peer`."""

    __slots__ = ("_talk",)

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk

    def send(self, permit: Permit, landing: Landing) -> None:
        """Answers at once."""
        tasks = self._talk.shell.tasks
        if tasks is None:
            raise Fault("no_tasks", "there are no tasks here", not_executed=True)
        ok, body = tasks.asked(self._talk, permit.call)
        key = b',"result":' if ok else b',"error":'
        landing.set(Answer(0, _HEAD, key + body + b"}", ok, body))
