"""What a server has is looked at again before it is used by a session, when it says that it changed, and now and then.

A client that lists before it calls, as nearly all do, has done it for us. Where it has not, and there is something to
compare with, its first call waits for lists of our own; so does a call after the server said that its list changed,
unless somebody lists before. A server without a session is not asked: nothing of it can be used. Our lists are calls
like any others: judged, recorded (with the note `pins`), and released to nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from aegis_daemon import __version__
from aegis_daemon.core.call import Call
from aegis_daemon.core.session import Open
from aegis_daemon.core.verdict import Reason
from aegis_daemon.loop.strand import Strand, Waiter
from aegis_daemon.relay.carry import Flight, Unattended, launch
from aegis_daemon.wire.jsonrpc import Answer, WireFault, parse, parse_from_server, request_frame
from aegis_daemon.wire.methods import (
    META_CAPABILITIES,
    META_CLIENT,
    META_VERSION,
    MODERN_VERSION,
    TO_SERVER,
    Direction,
    Era,
)

if TYPE_CHECKING:
    from aegis_daemon.relay.conversation import Conversation

SUBJECTS: Final = {"tool": "tools/list", "prompt": "prompts/list", "resource": "resources/templates/list"}
"""What a name is → the list that tells of it."""
_CHANGES: Final = {
    "notifications/tools/list_changed": "tool",
    "notifications/prompts/list_changed": "prompt",
    "notifications/resources/list_changed": "resource",
}
PATIENCE_S: Final = 1.0
"""How long the client is left to list by itself after its server said that something changed."""
AGAIN_S: Final = 60.0
"""After how long a list that failed is asked for again."""
PAGES: Final = 200
"""Pages of one list that are asked for."""


class Listing:
    """The lists of one conversation's server. `unlisted`: subject → list, of those not seen whole since it began."""

    __slots__ = ("_asking", "_began", "_changed", "_due", "_renewals", "_seen", "_talk", "unlisted")

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self.unlisted: dict[str | None, str] = {}
        self._seen: dict[str, float] = {}
        """list → when it was seen whole"""
        self._renewals = 0
        self._due: dict[str, float] = {}
        self._asking: dict[str, list[Waiter[str]]] = {}
        """lists that we are asking for, and the calls that wait for them"""
        self._began: dict[str, float] = {}
        """since when we do"""
        self._changed: dict[str, float] = {}
        """list → when the server last said that it changed: what was asked for before that may be the old one"""

    def began(self) -> None:
        """There is another server: nothing is known of it."""
        self._seen.clear()
        self._due.clear()
        self._changed.clear()
        self._renewals = 0
        if self._talk.shell.pins is not None:
            self.unlisted.update(SUBJECTS)

    def shown(self, call: Call, body: bytes, asked: float) -> None:
        """The answer to a list that went out at `asked`, or to a handshake. Raises `ValueError`: withhold it."""
        pins = self._talk.shell.pins
        if pins is None:
            return
        whole = pins.shown(call.backend, call.method, body)
        method = call.method
        # A page that was asked for by its cursor tells nothing of those before it.
        first = call.frame.params.get("cursor") is None and asked >= self._changed.get(method, 0.0)
        if whole and first and method in SUBJECTS.values():
            self._whole(method)

    def _whole(self, method: str) -> None:
        for subject, one in SUBJECTS.items():
            if one == method:
                self.unlisted.pop(subject, None)
        self._seen[method] = self._talk.shell.now()
        self._due.pop(method, None)

    def changed(self, notification: str) -> None:
        """The server says that it changed something."""
        subject = _CHANGES.get(notification)
        if subject is None or self._talk.shell.pins is None:
            return
        method, now = SUBJECTS[subject], self._talk.shell.now()
        self.unlisted[subject] = method
        self._changed[method] = now
        if method in self._seen:
            self._due.setdefault(method, now + PATIENCE_S)

    def awaited(self, subject: str | None, name: str | None) -> str | None:
        """The list that a call of this name must wait for; None where it need not."""
        pins = self._talk.shell.pins
        method = self.unlisted.get(subject)
        talk = self._talk
        if pins is None or method is None or not pins.knows(talk.backend, subject or "", name or ""):
            return None
        # What is hidden is refused at once, as what does not exist: a wait would tell them apart.
        visible = talk.shell.runtime.pipeline.visible(talk.principal, talk.backend, subject or "", name or "")
        return method if visible else None

    def hold(self, flight: Flight, method: str) -> None:
        """Carries the call once the list was seen."""
        strand = flight.opened.strand = Strand(self._held(flight, method))
        strand.start()

    async def _held(self, flight: Flight, method: str) -> None:
        waiter: Waiter[str] = Waiter()
        shell = self._talk.shell
        try:
            if method in self._asking and self._began[method] < self._changed.get(method, 0.0):
                stale: Waiter[str] = Waiter()  # it began before the server said that it changed
                self._asking[method].append(stale)
                await stale
            begun = method in self._asking
            self._asking.setdefault(method, []).append(waiter)
            if not begun:
                self._begin(method)
            why = await waiter
        except Exception as error:
            flight.not_sent(error)
            return
        if why:
            text = f"what the server has could not be looked at before this call ({why}); not executed; repeat it later"
            reason = Reason("pin", text, retryable=True, code="unchecked")
            if not shell.runtime.pipeline.observe:
                flight.refuse(reason)
                return
            flight.would = reason
        launch(flight)

    def sweep(self, now: float) -> None:
        """Once a second."""
        pins, talk = self._talk.shell.pins, self._talk
        if pins is None or talk.server is None:
            return
        if talk.server.renewals != self._renewals:  # whoever answers there now may be another
            self._renewals = talk.server.renewals
            self.unlisted.update(SUBJECTS)
            self._due.update(dict.fromkeys(self._seen, now))
        if not (self._due or self._seen):
            return
        for method, at in (*self._due.items(), *((one, at + pins.recheck_s) for one, at in self._seen.items())):
            if at <= now and method not in self._asking:
                self._asking[method] = []
                self._begin(method)

    # --- asking -------------------------------------------------------------------------------------------------

    def _begin(self, method: str) -> None:
        self._began[method] = self._talk.shell.now()
        self._ask(method)

    def _ask(self, method: str, cursor: str | None = None, page: int = 1) -> None:
        talk = self._talk
        era = Era.MODERN if talk.era is Era.MODERN else Era.LEGACY
        params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
        if era is Era.MODERN:
            info = {"name": "aegis", "version": __version__}
            params["_meta"] = {META_VERSION: MODERN_VERSION, META_CAPABILITIES: {}, META_CLIENT: info}
        id = talk.new_id()
        try:
            frame = parse(request_frame(id, method, params))
        except WireFault as fault:  # a cursor that cannot be sent
            self._over(method, fault.text)
            return
        opened = talk.to_server.begin(id, {}, beyond=True)
        opened.alone = True
        opened.call = call = Call(
            talk.new_id(), id, talk.session, talk.principal, Direction.TO_SERVER, TO_SERVER[method], None, None,
            talk.backend, era, frame, handed=talk.handed,
        )  # fmt: skip
        story = talk.shell.audit.story(call)
        story.note = "pins"
        launch(Flight(call, opened, _Own(self, method, page), talk.to_server_side, talk.shell, story))

    def answered(self, method: str, page: int, frame: bytes) -> None:
        """One page, as it would be released."""
        try:
            answer = parse_from_server(frame) if frame else None
            value = answer.value() if isinstance(answer, Answer) and answer.ok else None
            cursor = value.get("nextCursor") if type(value) is dict else None
        except (WireFault, ValueError, RecursionError):
            value = None
        if type(value) is not dict:
            self._over(method, "it did not answer" if not frame else "it gave no list")
        elif cursor is None:
            self._over(method, "")
        elif type(cursor) is not str or page >= PAGES:
            self._over(method, "its list does not end")
        else:
            self._ask(method, cursor, page + 1)

    def _over(self, method: str, why: str) -> None:
        waiting = self._asking.pop(method, [])
        if not why:
            if self._began.get(method, 0.0) >= self._changed.get(method, 0.0):
                self._whole(method)
            else:
                self._due[method] = self._talk.shell.now() + PATIENCE_S
        else:
            # A server that does not let itself be looked at again is as good as one that never was.
            if self._seen.pop(method, None) is not None or method in self._due:
                self._due[method] = self._talk.shell.now() + AGAIN_S
            self.unlisted.update({subject: one for subject, one in SUBJECTS.items() if one == method})
        for waiter in waiting:
            waiter.set(why)

    def end(self, opened: Open) -> None:
        """A request of ours is over."""
        talk = self._talk
        talk.to_server.end(opened)
        talk.moved()

    @property
    def shows(self) -> Callable[[Call, bytes], bool]:
        """What takes the pages of our own lists."""
        pins = self._talk.shell.pins
        assert pins is not None
        return lambda call, body: pins.shown(call.backend, call.method, body)


class _Own(Unattended):
    """The origin of a list that nobody asked for. See `carry.Origin`."""

    __slots__ = ("_listing", "_method", "_page")

    def __init__(self, listing: Listing, method: str, page: int) -> None:
        self._listing = listing
        self._method = method
        self._page = page

    def answer(self, opened: Open, frame: bytes) -> bool:
        """Goes on with the next page."""
        self._listing.end(opened)
        self._listing.answered(self._method, self._page, frame)
        return True

    def shown(self, call: Call, body: bytes, asked: float) -> None:
        """What it is for."""
        self._listing.shows(call, body)
