"""One session: a client, its own server process, and every frame between them, both ways.

The server's process belongs to this session alone. Nothing is sent to it before the client's first frame, and it is
replaced when the client changes the protocol's era, because servers settle on one with the first frame they see.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from aegis_daemon.core import roots
from aegis_daemon.core.call import Call
from aegis_daemon.core.handed import Handed
from aegis_daemon.core.ports import Fault, Peer
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.session import Duplicate, Open, OpenRequests, State, TooMany
from aegis_daemon.core.verdict import Reason
from aegis_daemon.loop.strand import Strand, Waiter
from aegis_daemon.policy.secrets import Unsure
from aegis_daemon.relay import handshake, questions
from aegis_daemon.relay.answers import error_code
from aegis_daemon.relay.carry import CANCELLED_S, Flight, Shell, Withdrawn, carry
from aegis_daemon.relay.listing import Listing
from aegis_daemon.relay.load import CallIds, Load
from aegis_daemon.relay.notices import Notices
from aegis_daemon.relay.own_tasks import TaskPeer, is_ours
from aegis_daemon.relay.ports import Backend, Client, StartServer
from aegis_daemon.relay.reasons import UNKNOWN_METHOD, ending_of, not_begun, too_many, unknown_method, why_dropped
from aegis_daemon.relay.refusing import refused, refused_request
from aegis_daemon.relay.renewal import Renewal, Step
from aegis_daemon.relay.sides import Replayed, ToClient, ToServer
from aegis_daemon.relay.unsettled import Unsettled
from aegis_daemon.wire.errors import (
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    UNSUPPORTED_VERSION,
)
from aegis_daemon.wire.jsonrpc import (
    INVALID_REQUEST,
    Answer,
    Frame,
    Id,
    Kind,
    WireFault,
    asks,
    encode,
    error_frame,
    guess_id,
    id_text,
    notification_frame,
    parse,
    parse_from_server,
    result_frame,
)
from aegis_daemon.wire.methods import (
    MODERN_VERSION,
    STEADY,
    TO_CLIENT,
    TO_SERVER,
    BadParams,
    Direction,
    Era,
    Method,
    Rule,
    era_of,
    subject_of,
)

_log = logging.getLogger("aegis.session")

HELD: Final = 256
"""How many notifications of one session may wait for requests before them to be written down."""
UNREAD: Final = 512
"""How many requests of a server are heard while it does not read what it is sent."""
UNREAD_BYTES: Final = 4 << 20
"""Bytes of a client's frames that are taken while its server does not read: not every client can be held back."""
RESPAWNS: Final = 16
"""How often one session may have its server replaced."""


class Conversation:
    """The event machine of one session. `on_end` is called once, when everything of it is gone.

    In a `shared` one several senders of one agent ask, whose ids and progress tokens may be the same. `handed` is the
    server, where the client's end handed it over: each call says so.
    """

    def __init__(
        self,
        session: str,
        principal: Principal,
        backend: str,
        client: Client,
        start_server: StartServer | None,
        shell: Shell,
        loop: asyncio.AbstractEventLoop,
        *,
        ids: CallIds,
        load: Load,
        on_end: Callable[[Conversation], None],
        shared: bool = False,
        handed: Handed | None = None,
    ) -> None:
        self.session = session
        self.handed = handed
        self.principal = principal
        self.backend = backend
        self.client = client
        self.shell = shell
        self.loop = loop
        self.calls = 0
        self.since = 0.0
        self.era = Era.NONE
        self.server: Backend | None = None
        self.client_name = ""
        """what a legacy client of this session called itself"""
        self._start_server = start_server
        self.new_id = ids
        """the id of a call"""
        self.load = load
        self._on_end = on_end
        runtime = shell.runtime
        self.shared = shared
        self._keys = 0
        self.to_server = OpenRequests(runtime.agent_limit if shared else runtime.session_limit)
        self.to_client = OpenRequests(runtime.session_limit)
        self.unsettled = Unsettled(shell, loop.call_later)
        self._retired: set[Backend] = set()
        self._respawns = 0
        self._replay: Open | None = None
        self._dropped: dict[tuple[str, str], int] = {}
        self._client_slow = self._server_slow = False
        self._unread = 0  # requests of a server that does not read
        self._piled = 0  # bytes of the client's frames since then
        self.ending = False
        self.leaving = False
        """the client's input ended, and requests before its end are still being written down"""
        self.held: deque[tuple[Open, Frame]] = deque()
        """notifications, each with the request before it that is being written down"""
        self._code = 0
        self._over = False
        self.to_server_side = ToServer(self)
        self._task_peer = TaskPeer(self)
        self.listing = Listing(self)
        self.renewal = Renewal(self)
        self.notices = Notices(self)
        self._to_client_side = ToClient(self)
        client.on_line = self._client_line
        client.on_long = self._client_long
        client.on_end = self.client_left
        client.on_full = self._client_full

    # --- beginning and end --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the server, takes up what an earlier daemon left, and reads the client."""
        # What an earlier daemon left lies in the agent's memory, so it is a claim like any frame, and judged like one.
        if self.client.era in (Era.LEGACY, Era.MODERN):
            self.era = Era(self.client.era)
        if self._start_server is not None:
            try:
                self._spawn()
            except (OSError, ValueError) as error:
                self._code = 127
                self.client.refuse(not_begun(error))
                self._finish()
                return
        kept = self.client.handshake
        if kept is not None and self.era is Era.LEGACY and self.server is not None:
            self._replay_handshake(kept)
        else:
            self.client.start()

    def _spawn(self) -> None:
        assert self._start_server is not None
        self.server = self._start_server(self)
        self.listing.began()
        if self._client_slow:
            self.server.pause(True)

    def _replay_handshake(self, kept: bytes) -> None:
        """Shows the new server the handshake the client had with the old one; its answer is nobody's."""
        try:
            frame = parse(kept)
        except WireFault:
            self.client.start()
            return
        id = frame.id
        if id is None or frame.method != "initialize":
            self.client.start()
            return
        self.client_name = handshake.client_name(frame.params)
        frame = handshake.initialize(frame, self.shell.runtime.offers(self.principal.agent, self.backend))
        opened = self._replay = self.to_server.begin(id, {})
        opened.call = Call(
            self.new_id(), id, self.session, self.principal, Direction.TO_SERVER, TO_SERVER["initialize"],
            None, None, self.backend, Era.LEGACY, frame, handed=self.handed,
        )  # fmt: skip
        carry(opened.call, opened, Replayed(self), self.to_server_side, self.shell)

    def replayed(self, opened: Open, taken: bool) -> None:
        """The new server has answered the handshake that it was shown."""
        self.to_server.end(opened)
        self._replay = None
        server = self.server
        if server is None or self.ending:
            return
        if not taken:
            self.client.refuse("the server did not take up the session again; start it anew")
            self._close_server()
            return
        if self.client.initialized:
            self.renewal.initialized = True
            server.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        self.client.start()
        if self._client_slow or self._server_slow:
            self._pace()

    def client_left(self) -> None:
        """The client's input ended, or its shim went away: nothing new comes, what was sent may still be answered.

        What waits for nothing but its record goes out before the server's input ends (`printf … | aegis-wrap server`),
        unless nobody is left to read the answer.
        """
        if self.ending and not (self.leaving and self.client.gone):
            return
        self.ending = True
        self.client.stop()
        self.leaving = False
        for opened in self.to_server.all():
            if opened.state is State.WAITING and opened.strand is not None:
                opened.strand.interrupt(Withdrawn("the client went away before the call was forwarded"))
            elif opened.state is State.COMMITTING:
                opened.cancelled = opened.cancelled or self.client.gone
                self.leaving = self.leaving or not opened.cancelled
        if not self.leaving:
            self._close_server()

    def moved(self) -> None:
        """A request is out, or over: what stands behind it may follow."""
        held = self.held
        while held and held[0][0].state is not State.COMMITTING:
            _, frame = held.popleft()
            if self.server is not None:
                self.server.send(frame.encoded(), frame)
        if self.leaving and not any(
            opened.state is State.COMMITTING and not opened.cancelled for opened in self.to_server.all()
        ):
            self.leaving = False
            self._close_server()
        if self.renewal.draining:
            self.loop.call_later(0, self.renewal.check)  # not among the lines of the server that it ends

    def _close_server(self) -> None:
        if self.server is not None:
            self.server.close_stdin()
            self.server.end()
        else:
            self._finish()

    def shim_gone(self) -> None:
        """Nobody is left to read: as `client_left`, and nothing more is written."""
        self.client.abandon()
        self.client_left()

    def stop(self) -> None:
        """The daemon ends: calls that wait are answered, the rest is left to the ledger."""
        for opened in self.to_server.all():
            if opened.state is State.WAITING and opened.strand is not None:
                self.cancel_waiting(opened, "the daemon stops")
        self.client.stop()

    @property
    def busy(self) -> bool:
        """Whether a request is open that will be answered; a subscription only ends with its session."""
        return any(one.call is None or one.call.method != "subscriptions/listen" for one in self.to_server.all())

    def cancel_waiting(self, opened: Open, why: str, reason: Reason | None = None) -> None:
        """Ends a call that was not sent yet, with an answer. `reason` is recorded, where it is no withdrawal."""
        data = {"by": "aegis", "reason": "not_executed", "retryable": True, "retry_after_ms": None}
        if not opened.cancelled and not self.client.gone and opened is not self._replay and not opened.alone:
            text = f"not executed: {why}; repeat the call if it is still wanted"
            self.client.send(error_frame(id_text(opened.request_id), INTERNAL_ERROR, text, data), opened.slot)
            opened.slot = -1
        if not opened.cancelled:
            opened.unsent = reason or Reason("withdrawn", why, code="withdrawn")
        opened.cancelled = True  # one whose intent is being written stops once that is done
        if opened.state is State.WAITING and opened.strand is not None:
            opened.strand.interrupt(Withdrawn(why, reason))

    def cancel_unsent(self, why: str, reason: Reason | None = None) -> None:
        """Nothing that is not sent yet will be. The request that is just being read is none of these."""
        for opened in self.to_server.all():
            if opened.state < State.SENT and opened.call is not None:
                self.cancel_waiting(opened, why, reason)

    def server_exited(self, server: Backend, code: int) -> None:
        """A server process and its whole tree are gone, its output read to the end."""
        if server in self._retired:
            self._retired.discard(server)
            if self._over and not self._retired:
                self._on_end(self)
            return
        if server is not self.server or self.renewal.lost(f"the server ended, {ending_of(code)}"):
            return
        self.server = None
        self._code = code
        fault = Fault("server_exited", f"the server ended ({ending_of(code)}) before it answered; outcome unknown")
        ended = f"the server ended ({ending_of(code)})"
        self.cancel_unsent(ended, Reason("forward", f"{ended} before the call was sent", code="server_exited"))
        self.fail_sent(fault)
        self._finish()

    def server_failed(self, server: Backend, text: str) -> None:
        """The server could not be started: the client is told why, and the session ends."""
        if server is not self.server:
            self.server_exited(server, 127)
            return
        _log.warning("session %s: %s", self.session, text)
        if self.renewal.lost(text):
            return
        self.server = None
        self._code = 127
        self.client.refuse(text)
        self.cancel_unsent(text, Reason("forward", text, code="server_not_started"))
        self.fail_sent(Fault("server_not_started", text, not_executed=True))
        self._finish()

    def fail_sent(self, fault: Fault, spared: Sequence[Open] = ()) -> None:
        """Nothing that a server has got will be answered, but for what is `spared`."""
        for opened in [*self.to_server.all(), *self.to_client.all()]:
            if opened.waiter is not None and opened not in spared:
                opened.waiter.fail(fault)

    def _finish(self) -> None:
        """The server is gone: the client gets what is still to be written, then the server's status."""
        if self._over:
            return
        self._over = True
        self.ending = True
        self.client.stop()
        for opened in self.to_client.all():
            if opened.waiter is not None:
                opened.waiter.fail(Fault("server_exited", "the server ended"))
        self.unsettled.close("the session ended before the task did")
        self._report_dropped()
        self.client.close(self._code)
        if not self._retired:
            self._on_end(self)

    # --- the client's frames ------------------------------------------------------------------------------------

    def _client_line(self, line: bytes, end: int) -> None:
        if not line:
            self.client.consume(end)
            return
        try:
            frame = parse(line)
        except WireFault as fault:
            self.client.consume(end)
            self.drop("to_server", why_dropped(fault))
            if b'"method"' not in line and (b'"result"' in line or b'"error"' in line):
                return  # an answer gets no answer, least of all one of our own that comes back
            id_json = b"null" if fault.id is None else id_text(fault.id)
            self.client.send(error_frame(id_json, fault.code, fault.text, {"by": "aegis"}), -1)
            return
        self.hear(frame, end)

    def hear(self, frame: Frame, end: int = 0) -> None:
        """One frame of the client, which ends at this offset of its input."""
        if frame.kind is Kind.REQUEST:
            self._request(frame, end)
            return
        if frame.kind is Kind.NOTIFICATION:
            self._client_notification(frame)
        else:
            self._client_answer(frame)
        self.client.consume(end)

    def _client_long(self) -> None:
        self.drop("to_server", "too long")
        text = "the message is longer than 1 MB and was dropped whole; send less at once"
        self.client.send(error_frame(b"null", INVALID_REQUEST, text, {"by": "aegis"}), -1)

    def _request(self, frame: Frame, end: int) -> None:
        id = frame.id
        assert id is not None
        client, requests, agent = self.client, self.to_server, self.principal.agent
        runtime = self.shell.runtime
        fault: Reason | None = None
        key: Id | None = None
        if self.shared:
            self._keys += 1
            key = f"a{self._keys}"
        try:
            opened = requests.begin(id, frame.params, key)
        except Duplicate:
            client.consume(end)
            self.drop("to_server", "duplicate id")
            text = "a request with this id is still open; use each id once"
            client.send(error_frame(id_text(id), INVALID_REQUEST, text, {"by": "aegis"}), -1)
            return
        except TooMany:
            opened = Open(id, id)
            fault = too_many(f"this session has {runtime.session_limit} requests in flight")
        if fault is None:
            if not self.load.enter(agent, runtime.agent_limit):
                requests.end(opened)
                fault = too_many(f"this agent has {runtime.agent_limit} requests in flight")
            else:
                opened.slot = client.take_slot(id_text(id), end)
                if opened.slot < 0:
                    requests.end(opened)
                    self.load.leave(agent)
                    fault = too_many("this session has as many requests in flight as can be kept")
                elif self._server_slow and self._piles_up(frame):
                    fault = too_many("the server has more to read than it takes")
        client.consume(end)
        if opened.token is not opened.asked_token:
            frame = handshake.with_token(frame, opened.token)
        row = TO_SERVER.get(frame.method)
        subject = name = None
        era: Era | None = self.era
        if fault is None:
            if row is None:
                fault = unknown_method(frame.method)
            else:
                try:
                    subject, name = subject_of(row, frame.params)
                    if era is not Era.LEGACY or frame.method not in STEADY or "_meta" in frame.params:
                        frame, era, fault = self._in_era(frame, row, end)
                    if fault is None and subject == "task" and not self._may_name(name or ""):
                        text = f"the task `{(name or '')[:200]}` is not available to this agent"
                        fault = Reason("acl", text, code="not_allowed")
                except BadParams as error:
                    fault = Reason("params", f"{error} in `{row.name}`", code="bad_params")
                    if not (row.modern if era_of(frame.method, frame.params, self.era) is Era.MODERN else row.legacy):
                        fault = unknown_method(row.name)
        if era is Era.NONE:
            era = era_of(frame.method, frame.params, era)  # it is refused before the session takes on one
        call = Call(
            self.new_id(), id, self.session, self.principal, Direction.TO_SERVER,
            row or UNKNOWN_METHOD[Direction.TO_SERVER], subject, name, self.backend, era or Era.LEGACY, frame, "",
            self.handed,
        )  # fmt: skip
        if fault is None and "inputResponses" in frame.params:
            if self.shell.tasks is None or not self.shell.tasks.answers(call):  # nobody asks for those
                fault = questions.unasked(frame.params, self.may_ask())
            try:
                call = roots.answered(call, runtime.pipeline)
            except BadParams as error:
                fault = Reason("params", str(error), code="bad_params")
        if self.shell.tracing is not None and name is not None and fault is None:
            call = self.shell.tracing(call)
        opened.call = call
        if fault is not None:
            self._refuse_early(opened, call, fault)
            return
        self.calls += 1
        if row.rule is Rule.PING:  # type: ignore[union-attr]
            self._ping(opened, frame)
            return
        side = self.to_server_side
        peer: Peer = side
        if self.shell.tasks is not None and self.shell.tasks.answers(call):
            peer = self._task_peer
        if self.renewal.step is not Step.NONE and peer is side:
            self.renewal.hold(Flight(call, opened, side, peer, self.shell, self.shell.audit.story(call)))
            return
        if subject in self.listing.unlisted:
            listed = self.listing.awaited(subject, name)
            if listed is not None:
                story = self.shell.audit.story(call)
                self.listing.hold(Flight(call, opened, side, peer, self.shell, story), listed)
                return
        carry(call, opened, side, peer, self.shell)

    def refusal(self, frame: Frame, reason: Reason) -> bytes:
        """See `core.ports.Party`."""
        return refused_request(
            frame, era_of(frame.method, frame.params, self.era), reason, self.shell, id=self.new_id(),
            session=self.session, principal=self.principal, backend=self.backend,
        )  # fmt: skip

    @property
    def serves(self) -> bool:
        """See `core.ports.Party`."""
        return self._start_server is not None

    def _refuse_early(self, opened: Open, call: Call, reason: Reason) -> None:
        opened.state = State.WAITING
        known = self.to_server.find(opened.key) is opened
        data_frame = refused(call, reason, self.shell)
        if reason.stage == "version":
            requested = reason.detail or None
            data = {"supported": [MODERN_VERSION], "requested": requested, "by": "aegis"}
            data_frame = error_frame(id_text(opened.request_id), UNSUPPORTED_VERSION, reason.text, data)
        if known:
            self.to_server_side.answer(opened, data_frame)
        else:
            self.client.send(data_frame, -1)

    def _in_era(self, frame: Frame, row: Method, end: int) -> tuple[Frame, Era, Reason | None]:
        """The request as its server may see it, after the session has taken on its era."""
        era = era_of(frame.method, frame.params, self.era)
        if era is Era.MODERN:
            try:
                frame = handshake.modern(frame, self.may_ask())
            except handshake.BadVersion as bad:
                stage = "version" if bad.version is not None else "params"
                code = "unsupported_version" if bad.version is not None else "bad_params"
                return frame, era, Reason(stage, str(bad), code=code, detail=str(bad.version or "")[:100])
        if not (row.modern if era is Era.MODERN else row.legacy):
            return frame, era, unknown_method(row.name)
        if era is not self.era:
            refusal = self._turn_to(era)
            if refusal is not None:
                return frame, era, refusal
        if frame.method == "initialize":
            self.client_name = handshake.client_name(frame.params)
            frame = handshake.initialize(frame, self.may_ask())
            self.client.keep_handshake(frame.encoded())
        return frame, era, None

    def may_ask(self) -> frozenset[str]:
        """What the server may ask of the client."""
        return self.shell.runtime.offers(self.principal.agent, self.backend)

    def _turn_to(self, era: Era) -> Reason | None:
        server = self.server
        if self.era is not Era.NONE:
            stale = server.touched if server is not None else self._start_server is not None
            if stale and self._respawns >= RESPAWNS:
                text = "this session changed the protocol's era too often; start a new one"
                return Reason("internal", text, code="era_changed")
            # Neither end may meet what the other era left: first what waits, lest it be sent to the old server.
            self.cancel_unsent("the client changed the protocol's era")
            for opened in self.to_client.all():
                opened.cancelled = True
            if stale:
                self._respawns += 1
                self.renewal.overtaken()
                refusal = self.replace_server("the client changed the protocol's era", "era_changed")
                if refusal is not None:
                    return refusal
        self.era = era
        self.client.keep_era(era)
        return None

    def replace_server(self, why: str, code: str, spared: Sequence[Open] = ()) -> Reason | None:
        """The server makes place for another; what it has got is not answered any more, but for what is `spared`."""
        old = self.server
        if old is not None:
            self.fail_sent(Fault(code, f"{why}; outcome unknown"), spared)
            if self._server_slow:
                self.server_full(old, False)
            self.notices.began_anew()
            self.held.clear()
            self.unsettled.end_tasks(f"{why} before the task ended")
            self.retire()
        self.unsettled.lapse()  # a retry is judged as a new call
        try:
            self._spawn()
        except (OSError, ValueError) as error:
            return Reason("internal", f"{not_begun(error)}; not executed", code="no_server")
        return None

    def retire(self) -> None:
        """The server is none of this session's any more, and ends."""
        old, self.server = self.server, None
        if old is not None:
            self._retired.add(old)
            old.close_stdin()
            old.end()

    def start_by(self, start: StartServer, handed: Handed | None) -> None:
        """The next server is started so, and is this one where the client's end handed it over."""
        self._start_server, self.handed = start, handed

    def _ping(self, opened: Open, frame: Frame) -> None:
        """Never judged, queued or recorded; answered by the server itself."""
        if self.server is None or self.renewal.opening:
            self.to_server_side.answer(opened, result_frame(id_text(opened.request_id), b"{}"))
            return
        Strand(self._carry_ping(opened, frame, self.to_server, self.to_server_side)).start()

    async def _carry_ping(self, opened: Open, frame: Frame, requests: OpenRequests, side: ToServer | ToClient) -> None:
        opened.waiter = Waiter()
        number = requests.sent(opened)
        opened.deadline = self.shell.now() + self.shell.runtime.backend(self.backend).timeout
        side.put(frame.encoded(number), opened)
        try:
            answer: Answer = await opened.waiter
        except Fault as fault:
            side.answer(opened, error_frame(id_text(opened.request_id), INTERNAL_ERROR, fault.text, {"by": "aegis"}))
            return
        # It says whether the other end is well, and nothing else: what it may ask for beside goes nowhere.
        id_json = id_text(opened.request_id)
        if answer.ok:
            side.answer(opened, answer.with_id(id_json) if answer.body == b"{}" else result_frame(id_json, b"{}"))
            return
        code = error_code(answer.body) or INTERNAL_ERROR
        side.answer(opened, error_frame(id_json, code, "the other end answers a ping with an error"))

    def _client_notification(self, frame: Frame) -> None:
        method = frame.method
        if method == "notifications/cancelled":
            self._client_cancelled(frame)
            return
        if not method.startswith("notifications/"):
            self.drop("to_server", "a request without an id")
            return
        if method == "notifications/initialized":
            self.renewal.initialized = True
        server = self.server
        if server is None or self.renewal.keeps(frame):
            return
        if method == "notifications/progress":
            opened = self.to_client.progressing(frame.params.get("progressToken"))
            if opened is None or opened.state is not State.SENT:
                self.drop("to_server", "progress for no open request")
                return
        elif method == "notifications/initialized":
            self.client.keep_initialized()
        if not self.route_open():
            return
        if self._server_slow and self._piles_up(frame):
            self.drop("to_server", "a notification for a server that does not read")
            return
        before = next((one for one in reversed(self.to_server.all()) if one.state is State.COMMITTING), None)
        if before is not None:
            # It must not overtake a request that is being written down, least of all the handshake.
            if len(self.held) >= HELD:
                self.drop("to_server", "a notification too many while the log is being written")
                return
            self.held.append((before, frame))
            return
        server.send(frame.encoded(), frame)

    def route_open(self) -> bool:
        """Whether today's rules still leave this agent this backend."""
        return self.shell.runtime.reaches(self.principal.agent, self.backend)

    def _client_cancelled(self, frame: Frame) -> None:
        if self.shared:  # nobody can tell whose request is meant; whoever closes its stream withdraws its own
            return
        opened = self.to_server.find(frame.params.get("requestId"))
        if opened is None or opened.call is None or opened.call.method == "initialize" or opened.cancelled:
            return
        if opened.alone:  # a task has a method of its own for that
            return
        if opened.state is State.WAITING:
            self.to_server_side.gave_up(opened)
            if opened.strand is not None:
                opened.strand.interrupt(Withdrawn("cancelled by the client before it was forwarded"))
            return
        opened.cancelled = True
        if self._for_us_alone(opened):
            self._take_back(opened, encode({**frame.value, "params": {**frame.params, "requestId": opened.number}}))
        # It needs no answer, however long its server takes; over HTTP its request must end.
        slot, opened.slot = opened.slot, -1
        self.client.free_slot(slot)

    def withdraw(self, slot: int, *, forwarded: bool = True) -> None:
        """Nobody waits for the request with this slot any more; the server is only told if `forwarded`."""
        opened = next((one for one in self.to_server.all() if one.slot == slot), None)
        if opened is None or opened.cancelled:
            return
        if opened.state is State.WAITING and opened.strand is not None:
            if forwarded:
                self.to_server_side.gave_up(opened)
            opened.strand.interrupt(Withdrawn("the client went away before the call was forwarded"))
            return
        opened.cancelled = True
        if forwarded and self._for_us_alone(opened):
            self._take_back(opened, _cancelled(opened, "the client closed the stream"))

    def give_up(self, opened: Open, why: str) -> None:
        """Nobody wants the outcome of this request of ours any more; its server is told, unless others wait for it."""
        if not opened.cancelled and self._for_us_alone(opened):
            opened.cancelled = True  # once: each time would give it more time
            self._take_back(opened, _cancelled(opened, why))

    def _for_us_alone(self, opened: Open) -> bool:
        """Whether the server is at work on it, and nobody else waits for the outcome, so that it may be taken back."""
        flight = opened.waiter
        joined = isinstance(flight, Flight) and flight.joined
        return opened.state is State.SENT and self.server is not None and not joined

    def _take_back(self, opened: Open, text: bytes) -> None:
        assert self.server is not None
        opened.deadline = self.shell.now() + CANCELLED_S
        self.server.cancel(opened.number, text)

    def _client_answer(self, frame: Frame) -> None:
        opened = self.to_client.answered(frame.id)  # type: ignore[arg-type]
        if opened is None or opened.waiter is None:
            self.drop("to_server", "an answer to no open request")
            return
        body = encode(frame.value["result"] if "result" in frame.value else frame.value["error"])
        whole = frame.encoded(0)
        head = b'{"jsonrpc":"2.0","id":'
        if whole.startswith(head + b"0,"):
            answer = Answer(0, head, whole[len(head) + 1 :], "result" in frame.value, body)
        else:
            rest = {key: value for key, value in frame.value.items() if key not in ("jsonrpc", "id")}
            answer = Answer(0, head, b"," + encode(rest)[1:], "result" in frame.value, body)
        opened.waiter.set(answer)

    def _client_full(self, full: bool) -> None:
        """A client that does not read stops its own server's output and is read no further, and nobody else is."""
        self._client_slow = full
        if self.server is not None:
            self.server.pause(full)
        self._pace()

    def server_full(self, server: Backend, full: bool) -> None:
        """A server that does not read stops its own client's input."""
        if server is self.server:
            self._server_slow = full
            self._unread = self._piled = 0
            self._pace()

    def _piles_up(self, frame: Frame) -> bool:
        """Whether this frame is one too many for a server that does not read."""
        self._piled += len(frame.encoded())
        return self._piled > UNREAD_BYTES

    def _pace(self) -> None:
        # Even a client whose frames are all refused is read no further: the refusals would pile up.
        if not self.ending and self._replay is None:
            self.client.pause(self._client_slow or self._server_slow)

    # --- the server's frames ------------------------------------------------------------------------------------

    def server_lost(self, server: Backend, number: int, fault: Fault) -> None:
        """One request of ours will get no answer; the session goes on."""
        opened = self.to_server.answered(number) if server is self.server else None
        if opened is not None and opened.waiter is not None:
            opened.waiter.fail(fault)

    def server_lines(self, server: Backend, lines: list[bytes], about: int | None = None) -> None:
        """Complete lines of the session's server; those of a replaced one go nowhere.

        `about` is our number of the request on whose stream they came, 0 for a stream of the whole session, and None
        where nobody can tell.
        """
        if server is not self.server:
            return
        secrets = self.shell.runtime.secrets
        if secrets is not None and secrets.listens:
            lines = [cleaned for line in lines if (cleaned := self._cleaned(line, secrets))]
        for line in lines:
            try:
                frame = parse_from_server(line)
            except WireFault as fault:
                self._server_fault(line, fault)
                continue
            if type(frame) is Answer:
                opened = self.to_server.answered(frame.id)
                if opened is None:
                    self.drop("to_client", "an answer to no open request")
                else:
                    opened.waiter.set(frame)
            elif frame.kind is Kind.REQUEST:  # type: ignore[union-attr]
                self._server_request(frame, about)  # type: ignore[arg-type]
            elif frame.kind is Kind.NOTIFICATION:  # type: ignore[union-attr]
                self.notices.heard(frame, line, about)  # type: ignore[arg-type]
            else:
                self.drop("to_client", "an answer that is none")

    def _cleaned(self, line: bytes, secrets: Any) -> bytes:
        """What the server said without what nobody must see; nothing of it where that cannot be told."""
        try:
            return bytes(secrets.heard(line))
        except Unsure as error:
            why = str(error)
        self.drop("to_client", "what may hold a secret")
        try:
            frame = parse_from_server(line)
        except WireFault:
            return b""
        if type(frame) is Answer:
            opened = self.to_server.answered(frame.id)
            if opened is not None:
                opened.waiter.fail(Fault("not_redacted", f"the answer is withheld: {why}; outcome unknown"))
        elif frame.kind is Kind.REQUEST and frame.id is not None and self.server is not None:  # type: ignore[union-attr]
            text = f"the request is withheld: {why}"
            self.server.send(error_frame(id_text(frame.id), INVALID_REQUEST, text, {"by": "aegis"}))
        return b""

    def _server_fault(self, line: bytes, fault: WireFault) -> None:
        if asks(line):  # its ids are its own, and none of ours
            self.drop("to_client", why_dropped(fault))
            if fault.id is not None and self.server is not None and not self._server_slow:
                self.server.send(error_frame(id_text(fault.id), fault.code, fault.text, {"by": "aegis"}))
            return
        opened = self.to_server.peek(fault.id)
        if opened is not None and opened.waiter is not None:
            self.to_server.answered(opened.number)
            opened.waiter.fail(Fault("bad_answer", f"{fault.text}; the answer is withheld, outcome unknown"))
            return
        self.drop("to_client", why_dropped(fault) if line[:1] == b"{" else "not a message")

    def server_long(self, server: Backend, head: bytes, tail: bytes) -> None:
        """A frame over the limit: whoever waits for it is told so. If that cannot be known, everybody who may."""
        if server is not self.server:
            return
        self.drop("to_client", "too long")
        fault = Fault("answer_too_large", "the server's answer is larger than 10 MB and was dropped; ask for less")
        opened = self.to_server.peek(guess_id(head, tail))
        for one in [opened] if opened is not None else self.to_server.all():
            if one.state is State.SENT and one.waiter is not None:
                self.to_server.answered(one.number)
                one.waiter.fail(fault)

    def slot_of(self, about: int | None) -> int:
        """The client's place for what belongs to this request; where nobody can tell, that of the newest."""
        opened = self.to_server.newest() if about is None else self.to_server.peek(about)
        return -1 if opened is None else opened.slot

    def begin_alone(self, task: str) -> Open | None:
        """A request of ours to the server, for a task; None where there is no room for one more."""
        if self.ending or not self.load.enter(self.principal.agent, self.shell.runtime.agent_limit):
            return None
        try:
            opened = self.to_server.begin(task, {})
        except (Duplicate, TooMany):
            self.load.leave(self.principal.agent)
            return None
        opened.alone = True
        return opened

    def end_alone(self, opened: Open) -> None:
        """That request is over."""
        self.to_server.end(opened)
        self.load.leave(self.principal.agent)
        if self.held or self.leaving or self.renewal.draining:
            self.moved()

    def _server_request(self, frame: Frame, about: int | None) -> None:
        id = frame.id
        assert id is not None
        server = self.server
        assert server is not None
        if self._server_slow:
            self._unread += 1
            if self._unread > UNREAD:
                self.drop("to_client", "a request of a server that does not read")
                return
        row = TO_CLIENT.get(frame.method)
        if row is None or self.era is Era.MODERN:
            self.drop("to_client", "an unknown request")
            text = f"the method `{frame.method[:100]}` is not known to Aegis"
            server.send(error_frame(id_text(id), METHOD_NOT_FOUND, text, {"by": "aegis"}))
            return
        try:
            opened = self.to_client.begin(id, frame.params)
        except (Duplicate, TooMany):
            self.drop("to_client", "a request too many, or with the id of an open one")
            text = "this id is open already, or too many requests are; it is refused"
            server.send(error_frame(id_text(id), INVALID_REQUEST, text, {"by": "aegis"}))
            return
        if row.rule is Rule.PING:
            Strand(self._carry_ping(opened, frame, self.to_client, self._to_client_side)).start()
            return
        opened.slot = self.slot_of(about)
        subject, name = subject_of(row, frame.params)
        call = Call(
            self.new_id(), id, self.session, self.principal, Direction.TO_CLIENT, row, subject, name, self.backend,
            Era.LEGACY, frame, handed=self.handed,
        )  # fmt: skip
        opened.call = call
        carry(call, opened, self._to_client_side, self._to_client_side, self.shell)

    # --- tasks ---------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str | None:
        """Where the server is; None where it is a process of this session alone."""
        return self.shell.runtime.backend(self.backend).url

    def owns(self, task: str) -> bool:
        """Whether this agent is known to have started the server's task."""
        return self.load.owners.owns(self.principal.agent, self.backend, self.url, task)

    def _may_name(self, task: str) -> bool:
        """Whether it may ask about the task; no server hears of one of ours, and `own_tasks` knows whose it is."""
        return (self.shell.tasks is not None and is_ours(task)) or self.owns(task)

    # --- what time brings, and what was dropped ----------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Ends requests whose time is over; called about once a second."""
        if self.to_server or self.to_client:  # most sessions wait for nothing most of the time
            self._sweep_open(now)
        self.unsettled.sweep(now)
        self.listing.sweep(now)
        self.renewal.check()
        self._report_dropped()

    def _sweep_open(self, now: float) -> None:
        for requests in (self.to_server, self.to_client):
            for opened in requests.all():
                if opened.state is State.SENT and opened.deadline <= now and opened.waiter is not None:
                    self._time_out(requests, opened)
        for opened in self.to_server.all():
            if opened.state is State.COMMITTING and opened.deadline <= now and not opened.cancelled:
                self.cancel_waiting(opened, "the audit log cannot be written in time")
                if self.leaving:
                    self.moved()

    def _time_out(self, requests: OpenRequests, opened: Open) -> None:
        requests.answered(opened.number)
        timeout = self.shell.runtime.backend(self.backend).timeout
        handshake = opened.call is not None and opened.call.method == "initialize"  # which is never cancelled
        if not opened.cancelled and not handshake and requests is self.to_server and self.server is not None:
            self.server.cancel(opened.number, _cancelled(opened, "no answer in time"))
        text = (
            f"no answer within {timeout:g} s; outcome unknown; for slow tools raise `backends.{self.backend}.timeout`"
        )
        opened.waiter.fail(Fault("timeout", text))

    def reloaded(self) -> None:
        """The rules changed: a legacy client whose server announces list changes hears of one."""
        if self.era is Era.LEGACY:
            self.notices.reloaded()

    def drop(self, direction: str, why: str) -> None:
        """A frame goes nowhere; of such there is one record a second at most, and kind."""
        key = (direction, why)
        self._dropped[key] = self._dropped.get(key, 0) + 1

    def _report_dropped(self) -> None:
        # So that a flood of nonsense does not become a flood of records.
        if self._dropped:
            counts, self._dropped = self._dropped, {}
            for (direction, why), count in counts.items():
                self.shell.audit.dropped(self.principal.agent, self.backend, self.session, direction, why, count)


def _cancelled(opened: Open, why: str) -> bytes:
    params = {"requestId": opened.number, "reason": why}
    return notification_frame("notifications/cancelled", params)
