"""The two ends of a session as a call meets them: one it came from, to the other it goes, and back comes its answer.

What a call's origin and peer must be able to do is said in `carry.Origin` and `core.ports.Peer`. Calls of the client
and of the server differ in it, and nothing else of the session has to know how.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.ports import Fault, Landing, Ticket
from aegis_daemon.core.session import Open, State
from aegis_daemon.core.verdict import Permit
from aegis_daemon.relay import handshake
from aegis_daemon.relay.answers import Task
from aegis_daemon.relay.carry import Flight, Kept, Settle, Unattended
from aegis_daemon.wire.errors import INTERNAL_ERROR
from aegis_daemon.wire.jsonrpc import Answer, encode, error_frame, id_text, notification_frame, parse_from_server
from aegis_daemon.wire.methods import Era

if TYPE_CHECKING:
    from aegis_daemon.relay.conversation import Conversation

HEARTBEAT_S: Final = 15.0
"""Seconds between progress notifications of a call that waits."""
ASKED_S: Final = 3600.0
"""How long the client may take for what the server asks. A person may have to answer, so this only bounds memory."""


class ToServer:
    """Calls of the client: it is their origin, its server their peer."""

    __slots__ = ("_talk",)

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk

    # --- the server's end -----------------------------------------------------------------------------------------

    def send(self, permit: Permit, landing: Landing) -> None:
        """See `core.ports.Peer`."""
        call, opened = permit.call, landing.opened
        talk = self._talk
        server, requests = talk.server, talk.to_server
        if server is None or opened.state is State.DONE:
            raise Fault("no_server", "the server is not running; not executed; start it again", not_executed=True)
        opened.waiter = landing
        shell = talk.shell
        opened.deadline = shell.now() + shell.runtime.backend(call.backend).timeout
        talk.client.dispatched(opened.slot)
        number = requests.sent(opened)
        if not talk.renewal.parks(opened, call.frame):
            server.send(call.frame.encoded(number), call.frame, number)
        if talk.held or talk.leaving:
            talk.moved()

    def put(self, frame: bytes, opened: Open) -> None:
        """Writes a frame to the server, unless it is gone."""
        server = self._talk.server
        if server is not None:
            self._talk.client.dispatched(opened.slot)
            server.send(frame, number=opened.number)

    # --- the client's end: see `carry.Origin` ---------------------------------------------------------------------

    def answer(self, opened: Open, frame: bytes) -> bool:
        """To the client, if it still wants it."""
        talk = self._talk
        if frame and opened.call is not None and opened.call.method == "tasks/list":
            frame = self._own_tasks(opened, frame)
        wanted = bool(frame) and not opened.cancelled and not talk.client.gone
        talk.to_server.end(opened)
        talk.load.leave(talk.principal.agent)
        slot, opened.slot = opened.slot, -1
        if wanted:
            talk.client.send(frame, slot)
        else:
            talk.client.free_slot(slot)
        if talk.held or talk.leaving or talk.renewal.draining:
            talk.moved()
        return wanted

    def _own_tasks(self, opened: Open, frame: bytes) -> bytes:
        """The answer to a `tasks/list` with the agent's own tasks alone; withheld where it cannot be read."""
        try:
            value = msgspec.json.decode(frame)
            tasks = value["result"]["tasks"] if "result" in value else None
            if tasks is None:
                return frame
            talk = self._talk
            named = [one for one in tasks if type(one) is dict and type(one.get("taskId")) is str]
            ids = [one["taskId"] for one in named]
            known = talk.load.owners.own(talk.principal.agent, talk.backend, talk.url, ids)
            own = [one for one in named if one["taskId"] in known]
            return encode({**value, "result": {**value["result"], "tasks": own}})
        except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
            text = "the server's list of tasks is withheld: it cannot be read"
            return error_frame(id_text(opened.request_id), INTERNAL_ERROR, text, {"by": "aegis"})

    def heartbeat(self, opened: Open, text: Callable[[], str]) -> Callable[[], None]:
        """Progress every 15 s for a caller that gave a token; fractions below 1, so that a server's own still grow."""
        if opened.token is None:
            return _nothing
        talk = self._talk
        timer: asyncio.TimerHandle | None = None

        def beat() -> None:
            nonlocal timer
            opened.beats += 1
            params = {"progressToken": opened.asked_token, "progress": opened.beats / 1_000_000, "message": text()}
            talk.client.tell(notification_frame("notifications/progress", params), opened.slot)
            timer = talk.loop.call_later(HEARTBEAT_S, beat)

        beat()

        def stop() -> None:
            if timer is not None:
                timer.cancel()

        return stop

    def client(self, opened: Open) -> str:
        """What the client of this request calls itself: modern ones say so each time, legacy ones once."""
        call = opened.call
        if call is not None and call.era is Era.MODERN:
            return handshake.client_name(call.frame.params)
        return "" if self._talk.shared else self._talk.client_name

    def patience(self, opened: Open) -> float | None:
        """As clients of this name have had it until now."""
        shell = self._talk.shell
        if shell.patience is None:
            return None
        return shell.patience.budget(shell.runtime.hold, self._talk.principal.agent, self.client(opened))

    def gave_up(self, opened: Open) -> None:
        """The client cancels; if a person was waited for, that tells how long it waits."""
        shell = self._talk.shell
        if opened.held and shell.patience is not None:
            shell.patience.gave_up(self._talk.principal.agent, self.client(opened), shell.now() - opened.held)

    def task(self, call: Call, ticket: Ticket) -> str:
        """One of ours, where the client can poll it."""
        tasks = self._talk.shell.tasks
        return "" if tasks is None else tasks.begin(self._talk, call, ticket)

    def detach(self, task: str, flight: Flight) -> bool:
        """The client polls from now on."""
        tasks = self._talk.shell.tasks
        return tasks is not None and tasks.detach(task, self._talk, flight)

    def continued(self, opened: Open) -> Kept | None:
        """What the session kept of the call before."""
        assert opened.call is not None
        return self._talk.unsettled.continued(opened.call)

    def suspend(self, opened: Open, state: Any, kept: Kept) -> None:
        """The session keeps it."""
        assert opened.call is not None
        self._talk.unsettled.suspend(opened.call, state, kept)

    def follow(self, task: Task, settle: Settle) -> None:
        """The session settles it, and remembers whose task it is."""
        talk = self._talk
        talk.load.owners.started(talk.principal.agent, talk.backend, talk.url, task.taskId)
        talk.unsettled.follow(task, settle)

    def heard(self, call: Call, body: bytes) -> None:
        """What the server can do, and how tasks stand."""
        talk = self._talk
        if call.method == "initialize":
            talk.renewal.greeted, talk.renewal.initialized = call.frame, False
            talk.notices.announced(body)
        elif call.method == "tasks/result":
            failed = b'"isError":true' in body
            talk.unsettled.ended(call.name or "", "error" if failed else "success", body)
        else:
            talk.unsettled.seen(body)

    def shown(self, call: Call, body: bytes, asked: float) -> None:
        """It is looked at against what was agreed to."""
        self._talk.listing.shown(call, body, asked)


class Replayed(ToServer):
    """The handshake that is shown to a new server: the client had its answer from the old one."""

    __slots__ = ()

    def answer(self, opened: Open, frame: bytes) -> bool:
        """Nobody's: the session only hears whether it may go on."""
        answer = parse_from_server(frame) if frame else None
        self._talk.replayed(opened, isinstance(answer, Answer) and answer.ok)
        return True


class ToClient(Unattended):
    """Requests of the server: it is their origin, the client their peer."""

    __slots__ = ("_talk",)

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk

    def send(self, permit: Permit, landing: Landing) -> None:
        """See `core.ports.Peer`."""
        call, opened = permit.call, landing.opened
        talk = self._talk
        if opened.state is State.DONE or talk.client.gone or talk.ending:
            raise Fault("no_client", "the client is not there any more", not_executed=True)
        opened.waiter = landing
        opened.deadline = talk.shell.now() + ASKED_S
        talk.client.tell(call.frame.encoded(talk.to_client.sent(opened)), opened.slot)

    def put(self, frame: bytes, opened: Open) -> None:
        """Writes a frame to the client."""
        self._talk.client.tell(frame, opened.slot)

    def answer(self, opened: Open, frame: bytes) -> bool:
        """To the server, if it still wants it."""
        talk = self._talk
        wanted = bool(frame) and not opened.cancelled and talk.server is not None
        talk.to_client.end(opened)
        if wanted:
            assert talk.server is not None
            talk.server.send(frame)
        return wanted


def _nothing() -> None:
    return None
