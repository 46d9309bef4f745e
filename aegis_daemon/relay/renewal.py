"""A server that a reload defines otherwise is replaced beneath its session, which goes on.

What is under way at the old one is waited for, as long as the backend's `timeout` lets a call take; what comes
meanwhile waits for the new one. That one is shown the handshake which the client had with the old one, or, in the
modern era, the subscriptions that are open, each judged anew. Where it cannot be had, calls are refused and the next
of them tries again.
What the old server alone knew is lost with it: its tasks, the log level, and what a legacy client had subscribed to.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.handed import Handed
from aegis_daemon.core.ports import Fault
from aegis_daemon.core.session import Open, State
from aegis_daemon.core.verdict import Reason
from aegis_daemon.loop.strand import Strand, Waiter
from aegis_daemon.relay import handshake, merge
from aegis_daemon.relay.carry import Flight, Unattended, carry, launch
from aegis_daemon.relay.ports import StartServer
from aegis_daemon.wire.jsonrpc import Frame
from aegis_daemon.wire.methods import TO_SERVER, Direction, Era

if TYPE_CHECKING:
    from aegis_daemon.relay.conversation import Conversation

AGAIN_S: Final = 1.0
"""The least time between two tries to begin the new server."""
KEPT: Final = 256
"""Notifications that wait for it."""
_INITIALIZED: Final = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
_WHY: Final = "the configuration gave this backend another server"


class Step(enum.Enum):
    """How far it is."""

    NONE = 0
    DRAINING = 1
    """the old server is still at work"""
    OPENING = 2
    """the new one is shown the handshake"""
    DOWN = 3
    """there is none"""


class Renewal:
    """That of one conversation. `greeted`: the handshake that its client and its server have completed."""

    __slots__ = (
        "_again", "_notes", "_parked", "_shown", "_until", "_waiting", "_why",
        "greeted", "initialized", "step", "talk",
    )  # fmt: skip

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk
        self.step = Step.NONE
        self.greeted: Frame | None = None
        self.initialized = False
        self._until = self._again = 0.0
        self._why = ""
        self._shown: Open | None = None
        """the handshake that the new server is shown"""
        self._waiting: list[Waiter[str]] = []
        self._notes: list[Frame] = []
        self._parked: list[tuple[Open, Frame]] = []
        """requests that were let go while the handshake was under way"""

    @property
    def draining(self) -> bool:
        """Whether the old server's last answer is waited for."""
        return self.step is Step.DRAINING

    @property
    def opening(self) -> bool:
        """Whether the server there is must hear nothing but the handshake."""
        return self.step is Step.OPENING

    # --- from the old one to the new ----------------------------------------------------------------------------

    def begin(self, start: StartServer, handed: Handed | None) -> None:
        """`start` starts the server that the rules mean now, `handed` is it where the client's end handed it over."""
        talk = self.talk
        if handed != talk.handed:
            # What a person is asked about holds for the server that was shown, and not for this one.
            talk.cancel_unsent(_WHY)
        talk.start_by(start, handed)
        if talk.ending:
            return
        if self.step is Step.OPENING:  # that one is an old one now
            self._swap()
            return
        self.step = Step.DRAINING
        self._until = talk.shell.now() + talk.shell.runtime.backend(talk.backend).timeout
        self.check()

    def check(self) -> None:
        """Goes on once nothing is under way at the old server, or its time is over."""
        talk = self.talk
        if not self.draining or talk.ending:
            return
        if talk.shell.now() >= self._until or not any(map(_under_way, talk.to_server.all())):
            self._swap()

    def _swap(self) -> None:
        talk = self.talk
        self._shown, self.step = None, Step.OPENING
        for one in talk.to_client.all():
            one.cancelled = True  # its answer would reach another server
        listening = [one for one in talk.to_server.all() if _listening(one)]
        reason = talk.replace_server(_WHY, "server_replaced", spared=listening)
        if reason is not None:
            self._failed(reason.text)
        elif talk.era is Era.LEGACY and self.greeted is not None:
            self._show(self.greeted)
        else:
            self._done()
            for one in listening:
                self._anew(one)

    def _anew(self, opened: Open) -> None:
        """The subscription's call ends, unheard, and another goes to the new server if today's rules let it."""
        talk, flight, call = self.talk, opened.waiter, opened.call
        if not _listening(opened) or call is None:
            return
        talk.to_server.answered(opened.number)
        flight.origin = _Moved()
        flight.fail(Fault("server_replaced", f"{_WHY}; the subscription goes on at that one, if it may"))
        opened.state, opened.waiter, opened.number = State.WAITING, None, 0
        opened.call = msgspec.structs.replace(call, id=talk.new_id(), handed=talk.handed)
        carry(opened.call, opened, talk.to_server_side, talk.to_server_side, talk.shell)

    def _show(self, greeted: Frame) -> None:
        """Shows the new server the handshake the client had with the old one; its answer is nobody's."""
        talk = self.talk
        frame = handshake.initialize(greeted, talk.may_ask())
        id = talk.new_id()
        opened = self._shown = talk.to_server.begin(id, {}, beyond=True)
        opened.alone = True
        opened.call = call = Call(
            talk.new_id(), id, talk.session, talk.principal, Direction.TO_SERVER, TO_SERVER["initialize"], None, None,
            talk.backend, Era.LEGACY, frame, handed=talk.handed,
        )  # fmt: skip
        carry(call, opened, _Shown(self), talk.to_server_side, talk.shell)

    def answered(self, opened: Open, frame: bytes) -> None:
        """The new server took the handshake up, or did not."""
        talk = self.talk
        talk.to_server.end(opened)
        if talk.held or talk.leaving:
            talk.moved()
        if opened is not self._shown:
            return
        self._shown = None
        server = talk.server
        if server is None or talk.ending or not self.opening:
            return
        answer = merge.answer_in(frame)
        if answer is None or not answer.ok:
            why = "" if answer is None else merge.error_of(answer)[1].partition(";")[0][:300]
            talk.retire()
            self._failed(why or "it did not take up the session")
            return
        if self.initialized:
            server.send(_INITIALIZED)
        self._done()

    def _done(self) -> None:
        talk = self.talk
        self.step = Step.NONE
        notes, self._notes = self._notes, []
        parked, self._parked = self._parked, []
        waiting, self._waiting = self._waiting, []
        server = talk.server
        assert server is not None
        for frame in notes:
            server.send(frame.encoded(), frame)
        for opened, frame in parked:
            if opened.state is State.SENT and not opened.cancelled:
                server.send(frame.encoded(opened.number), frame, opened.number)
            elif opened.waiter is not None:
                opened.waiter.fail(Fault("server_replaced", f"{_WHY}; not executed", not_executed=True))
        for waiter in waiting:
            waiter.set("")

    def _failed(self, why: str) -> None:
        """There is no new server now."""
        talk = self.talk
        self.step, self._why = Step.DOWN, why
        self._again = talk.shell.now() + AGAIN_S
        self._notes.clear()
        parked, self._parked = self._parked, []
        waiting, self._waiting = self._waiting, []
        for opened, _ in parked:
            if opened.waiter is not None:
                opened.waiter.fail(Fault("server_not_started", f"{why}; not executed", not_executed=True))
        for waiter in waiting:
            waiter.set(why)

    def lost(self, why: str) -> bool:
        """The server ended; False where that is the session's end."""
        talk = self.talk
        if not (self.opening or self.draining) or talk.ending:
            return False
        if self.draining:
            talk.server = None
            listening = list(filter(_listening, talk.to_server.all()))
            talk.fail_sent(Fault("server_exited", f"{why} before it answered; outcome unknown"), listening)
            self._swap()
            return True
        shown, self._shown = self._shown, None
        talk.server = None
        if shown is not None and shown.waiter is not None:
            shown.waiter.fail(Fault("server_exited", why))
        self._failed(why)
        return True

    def overtaken(self) -> None:
        """The server is replaced for another reason, and what waits is refused."""
        self.step, self._shown, self.greeted, self.initialized = Step.NONE, None, None, False
        self._waiting.clear()
        self._notes.clear()
        self._parked.clear()

    # --- what the client says meanwhile -------------------------------------------------------------------------

    def hold(self, flight: Flight) -> None:
        """Carries the call once the new server is there."""
        strand = flight.opened.strand = Strand(self._held(flight))
        strand.start()

    async def _held(self, flight: Flight) -> None:
        talk, why = self.talk, ""
        try:
            if self.step is Step.DOWN and talk.shell.now() >= self._again:
                self._swap()
            if self.step is Step.DOWN:
                why = self._why
            elif self.step is not Step.NONE:
                waiter: Waiter[str] = Waiter()
                self._waiting.append(waiter)
                why = await waiter
        except Exception as error:
            flight.not_sent(error)
            return
        if why:
            text = f"the backend `{talk.backend}` is not there ({why}); not executed; repeat the call in a while"
            wait = int(AGAIN_S * 1000)
            flight.refuse(Reason("forward", text, retryable=True, retry_after_ms=wait, code="no_server"))
            return
        call, listing = flight.call, talk.listing
        listed = listing.awaited(call.subject, call.name) if call.subject in listing.unlisted else None
        if listed is None:
            launch(flight)
        else:
            listing.hold(flight, listed)

    def parks(self, opened: Open, frame: Frame) -> bool:
        """Whether a request that may go must wait for the handshake."""
        if not self.opening or opened is self._shown:
            return False
        self._parked.append((opened, frame))
        return True

    def keeps(self, frame: Frame) -> bool:
        """Whether a notification goes out, or not, when the handshake is over."""
        if self.opening and len(self._notes) < KEPT and frame.method != "notifications/initialized":
            self._notes.append(frame)
        return self.opening


class _Shown(Unattended):
    """The origin of that handshake. See `carry.Origin`."""

    __slots__ = ("_renewal",)

    def __init__(self, renewal: Renewal) -> None:
        self._renewal = renewal

    def answer(self, opened: Open, frame: bytes) -> bool:
        """The client had its own from the old server."""
        self._renewal.answered(opened, frame)
        return True

    def heard(self, call: Call, body: bytes) -> None:
        """Of which lists it tells when they change."""
        self._renewal.talk.notices.announced(body)

    def shown(self, call: Call, body: bytes, asked: float) -> None:
        """What it says of itself is looked at as ever."""
        self._renewal.talk.listing.shown(call, body, asked)


class _Moved(Unattended):
    """The origin of a subscription's call that has ended with its server: the client hears of the next one's end."""

    __slots__ = ()

    def answer(self, opened: Open, frame: bytes) -> bool:
        """Not to the client."""
        return True


def _listening(opened: Open) -> bool:
    return opened.state is State.SENT and not opened.cancelled and _listens(opened)


def _listens(opened: Open) -> bool:
    return opened.call is not None and opened.call.method == "subscriptions/listen"


def _under_way(opened: Open) -> bool:
    sent = opened.state is State.COMMITTING or opened.state is State.SENT
    return sent and not opened.cancelled and not _listens(opened)
