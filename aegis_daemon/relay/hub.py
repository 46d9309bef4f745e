"""One server made of an agent's several: routes, renames and merges, and decides nothing.

Towards the client a hub is what a `Conversation` is; towards each backend it holds one, and is its client. Whatever
is allowed, counted, asked for and recorded is so inside those conversations, under the backend's own names.

What a request becomes, by method (`_ROUTES`):

- tools, prompts and tasks are named `backend__own`, and go where the table of prefixes says;
- a resource keeps its URI and goes to the backend that listed it, the first in the configuration's order where
  several did. One that nobody listed is looked for: where a template fits first, then at every backend that has
  resources, in order; "not found" and "not available to this agent" lead on to the next, any other answer stands;
- lists are asked for everywhere at once and given page by page, with a cursor of ours that holds everybody's;
- the handshake, the log level and subscriptions go to everybody. Whoever has not answered ten seconds after the
  first answer is left out, and a list change tells the client when it comes after all.

Every leg of a request goes out under the client's own id, since each conversation has ids of its own. Requests of the
servers get ids of ours. A backend that ended, or could not begin, is opened again when it is next used, at most once
a second; resources that were subscribed to there have to be subscribed to again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any, Final

import msgspec

from aegis_daemon import __version__
from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Reason
from aegis_daemon.relay import merge
from aegis_daemon.relay.admission import Refused
from aegis_daemon.relay.carry import Shell
from aegis_daemon.relay.conversation import _UNKNOWN_METHOD, CallIds, Conversation, _too_many, _unknown_method
from aegis_daemon.relay.ports import Client
from aegis_daemon.wire.errors import INVALID_PARAMS, METHOD_NOT_FOUND, refusal_frame
from aegis_daemon.wire.jsonrpc import (
    INVALID_REQUEST,
    MAX_FRAME_OUT,
    Answer,
    Frame,
    Id,
    Kind,
    encode,
    error_frame,
    id_text,
    notification_frame,
    parse_from_server,
    result_frame,
)
from aegis_daemon.wire.methods import (
    META_SUBSCRIPTION,
    TO_SERVER,
    BadParams,
    Direction,
    Era,
    Method,
    era_of,
    listened_resources,
    subject_of,
)

_log = logging.getLogger("aegis.session")

LATE_S: Final = 10.0
"""How long after the first answer the others are waited for."""
REOPEN_S: Final = 1.0
"""The least time between two beginnings of one backend."""
WAITING: Final = 256
"""How many frames may wait for one backend that is still beginning, or does not read."""
WAITING_BYTES: Final = 4 << 20
URIS: Final = 8192
"""How many URIs a session remembers the backend of; the rest is looked for each time."""
LONGEST_URI: Final = 1024
TEMPLATES: Final = 256
"""How many templates of one backend are remembered."""
LENT: Final = 1024
"""How many tasks of the client are remembered as some server's."""
_LISTS: Final = {
    "tools/list": ("tools", "tools"),
    "prompts/list": ("prompts", "prompts"),
    "resources/list": ("resources", "resources"),
    "resources/templates/list": ("resourceTemplates", "resources"),
    "tasks/list": ("tasks", "tasks"),
}
"""List → the key of its items, and the capability of those who have one."""
_ELSEWHERE: Final = frozenset({-32002, INVALID_PARAMS, METHOD_NOT_FOUND})
"""A server's way to say that it has no such resource: in either era, or that it has none at all."""

Open = Callable[[str, "Branch"], Conversation]
"""Begins the conversation with a backend, whose client is the branch. Raises `OSError` and `Refused`."""


class Seat:
    """What a session knows of one backend, whether there is a conversation with it now or not."""

    __slots__ = ("again", "branch", "late", "name", "offers", "rank", "templates", "why")

    def __init__(self, name: str, rank: int) -> None:
        self.name = name
        self.rank = rank
        self.branch: Branch | None = None
        self.offers: dict[str, Any] | None = None
        """its capabilities; None: nobody asked yet"""
        self.templates: dict[str, tuple[str, ...]] = {}
        self.why = ""
        self.again = 0.0
        self.late = False
        """the client was told that a list came late, so that one which always does is told of once"""

    def may(self, capability: str) -> bool:
        """Whether it has this capability, as far as known."""
        return self.offers is None or capability in self.offers


class Leg:
    """One request to one backend, on behalf of one of the client's."""

    __slots__ = ("branch", "frame", "request", "seat", "slot")

    def __init__(self, request: Request, seat: Seat, frame: Frame, slot: int) -> None:
        self.request = request
        self.seat = seat
        self.frame = frame
        self.slot = slot
        self.branch: Branch | None = None

    def landed(self, frame: bytes) -> None:
        """Its answer; empty where it needs none."""
        if self in self.request.legs:
            self.request.legs.remove(self)
            self.request.landed(self, frame)


# --- requests ---------------------------------------------------------------------------------------------------------


class Request:
    """One request of the client that became one request of one backend. `slot` is the client's, -1: it is ours."""

    def __init__(self, hub: Hub, frame: Frame, era: Era, slot: int) -> None:
        self.hub = hub
        self.frame = frame
        self.era = era
        self.slot = slot
        self.legs: list[Leg] = []
        self.cancelled = self.over = False

    def landed(self, leg: Leg, frame: bytes) -> None:
        """A leg got its answer."""
        self.hub.finish(self, self.hub.renamed(leg, frame))

    def progresses(self, value: dict[str, Any]) -> bool:
        """Whether the client may hear of this progress."""
        return not self.over


class Probe(Request):
    """A request that goes from one backend to the next until one has what it is about."""

    def __init__(
        self, hub: Hub, frame: Frame, era: Era, slot: int, seats: Sequence[Seat], found: Callable[[Seat], None]
    ) -> None:
        super().__init__(hub, frame, era, slot)
        self._left = deque(seats)
        self._found = found
        self._kept = b""
        self._progress: float | None = None

    def go_on(self) -> None:
        """On to the next one."""
        self.hub.send(self, [(self._left.popleft(), self.frame)])

    def landed(self, leg: Leg, frame: bytes) -> None:
        """Theirs, or the next one's turn."""
        answer = _answer(frame)
        if answer is None:
            self.hub.finish(self, b"")
        elif answer.ok:
            self._found(leg.seat)
            self.hub.finish(self, frame)
        else:
            code, _, stage, reason = merge.error_of(answer)
            ours = stage == "acl" or reason in ("no_server", "server_not_started")
            if not ours and (stage or code not in _ELSEWHERE):
                self.hub.finish(self, frame)
                return
            # A refusal of ours says more than somebody's "not found", and the first of them what the rest would.
            self._kept = self._kept or (frame if ours else b"")
            if self._left and not self.cancelled:
                self.go_on()
            else:
                self.hub.finish(self, self._kept or frame)

    def progresses(self, value: dict[str, Any]) -> bool:
        """Only what grows: each of them begins anew, and the client has given one token."""
        return super().progresses(value) and self._grows(value.get("params", {}).get("progress"))

    def _grows(self, progress: Any) -> bool:
        if type(progress) not in (int, float) or (self._progress is not None and progress <= self._progress):
            return False
        self._progress = progress
        return True


class Gather(Request):
    """A request that all of several backends answer, and one answer made of theirs.

    `heard` is told every answer, also those that come late; `merge` makes the result of those in time, by backend.
    """

    def __init__(
        self,
        hub: Hub,
        frame: Frame,
        era: Era,
        slot: int,
        merge: Callable[[Gather], bytes],
        heard: Callable[[Leg, Answer, bool], None],
    ) -> None:
        super().__init__(hub, frame, era, slot)
        self.results: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, int] = {}
        self._errors: dict[str, bytes] = {}
        self._merge = merge
        self._heard = heard
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = False

    def landed(self, leg: Leg, frame: bytes) -> None:
        """One more."""
        answer = _answer(frame)
        if answer is not None:
            late = self.over
            result = merge.result_of(answer)
            if result is not None and not late:
                self.results[leg.seat.name] = result
                self.sizes[leg.seat.name] = len(answer.body)
            elif not late:
                self._errors[leg.seat.name] = frame
            self._heard(leg, answer, late)
        if self.over:
            return
        if not self.legs or (self._overdue and self.results):
            self._finish()
        elif self._timer is None and not self._overdue:
            self._timer = self.hub.loop.call_later(LATE_S, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._overdue = True
        if self.results:
            self._finish()

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.results or not self._errors:
            frame = b"" if self.cancelled else self._merge(self)
        else:
            answers = {name: frame for name, frame in self._errors.items() if _usable(frame)} or self._errors
            frame = answers[min(answers, key=self.hub.rank)]
        self.hub.finish(self, frame)

    def progresses(self, value: dict[str, Any]) -> bool:
        """None: of several that advance at once nobody could tell which."""
        return False


class Listen(Request):
    """A `subscriptions/listen` that holds as long as one backend's does. The client hears one acknowledgement, first.

    It promises what those promised who have answered, and what the others were asked for: a client may drop what was
    never promised, and they may still come.
    """

    def __init__(self, hub: Hub, frame: Frame, era: Era, slot: int, narrow: Callable[[Seat], Frame]) -> None:
        super().__init__(hub, frame, era, slot)
        self._narrow = narrow
        self._quiet: list[Leg] = []
        self._granted: dict[str, Any] = {}
        self._told = False
        self._timer: asyncio.TimerHandle | None = None
        self._last = b""
        self._farewell = b""

    def join(self, seats: Iterable[Seat]) -> None:
        """Subscribes at these backends too."""
        legs = [(seat, self._narrow(seat)) for seat in seats if all(leg.seat is not seat for leg in self.legs)]
        self.hub.send(self, legs, self._quiet)

    def tell(self, leg: Leg, value: dict[str, Any], frame: bytes) -> None:
        """A notification of one of its legs."""
        if value["method"] != "notifications/subscriptions/acknowledged":
            self._acknowledge()
            self.hub.client.tell(frame, self.slot)
        elif leg in self._quiet:
            self._quiet.remove(leg)
            granted = value["params"].get("notifications")
            if type(granted) is dict:
                self._granted = merge.united(self._granted, self._ours(leg, granted))
            if not self._quiet:
                self._acknowledge()
            elif self._timer is None and not self._told:
                self._timer = self.hub.loop.call_later(LATE_S, self._acknowledge)

    def changed(self, kind: str) -> None:
        """A list of ours changed, since a backend came or went."""
        wanted = self.frame.params.get("notifications")
        if type(wanted) is dict and wanted.get(f"{kind}ListChanged") is True:
            self._acknowledge()
            params = {"_meta": {META_SUBSCRIPTION: self.frame.id}}
            self.hub.client.tell(notification_frame(f"notifications/{kind}/list_changed", params), self.slot)

    def ended(self, frame: bytes) -> None:
        """One leg was ended by its server; the client hears of it if it was the last."""
        self._farewell = frame

    def landed(self, leg: Leg, frame: bytes) -> None:
        """One leg is over."""
        if leg in self._quiet:
            self._quiet.remove(leg)
        self._last = frame or self._last
        if not self.legs:
            self._stop_waiting()
            if self._farewell and not self._last and not self.cancelled:
                self.hub.client.tell(self._farewell, self.slot)
            self.hub.finish(self, self._last)
        elif not self._quiet:
            self._acknowledge()

    def _acknowledge(self) -> None:
        self._stop_waiting()
        if self._told or self.cancelled:
            return
        self._told = True
        granted = self._granted
        for leg in self._quiet:
            asked = leg.frame.params.get("notifications")
            granted = merge.united(granted, self._ours(leg, asked if type(asked) is dict else {}))
        params = {"_meta": {META_SUBSCRIPTION: self.frame.id}, "notifications": granted}
        self.hub.client.tell(notification_frame("notifications/subscriptions/acknowledged", params), self.slot)

    def _ours(self, leg: Leg, granted: dict[str, Any]) -> dict[str, Any]:
        if type(granted.get("taskIds")) is not list:
            return granted
        tasks = [f"{leg.seat.name}{merge.SEPARATOR}{task}" for task in granted["taskIds"] if type(task) is str]
        return {**granted, "taskIds": tasks}

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Ours(Request):
    """A request that the client knows nothing of: a newly begun backend is shown what was said before."""

    def __init__(self, hub: Hub, frame: Frame, then: Callable[[Leg, bytes], None]) -> None:
        super().__init__(hub, frame, Era.LEGACY, -1)
        self._then = then

    def landed(self, leg: Leg, frame: bytes) -> None:
        """Nobody else waits for it."""
        self._then(leg, frame)


# --- one backend's end ------------------------------------------------------------------------------------------------


class Branch:
    """The client of one backend's conversation; see `relay.ports.Client`.

    Frames wait here while the backend begins, and while it does not read: it must hold up nobody but itself.
    """

    on_line: Callable[[bytes, int], None]
    on_long: Callable[[], None]
    on_end: Callable[[], None]
    on_full: Callable[[bool], None]
    era = 0
    handshake: bytes | None = None
    initialized = False

    def __init__(self, hub: Hub, seat: Seat) -> None:
        self.hub = hub
        self.seat = seat
        self.talk: Conversation | None = None
        self.closed = self.ready = self.paused = False
        self.legs: dict[int, Leg] = {}
        self._heard: Leg | None = None
        self._waiting: deque[tuple[Frame, Leg | None, int]] = deque()
        self._bytes = 0

    # towards the backend

    def take(self, frame: Frame, leg: Leg | None) -> None:
        """One frame for the backend; a request with its leg."""
        if leg is not None:
            leg.branch = self
            self.legs[leg.slot] = leg
        if frame.method == "initialize":
            self.ready = False
            self._hear(frame, leg)
        elif self.ready and not self.paused and not self._waiting:
            self._hear(frame, leg)
        else:
            size = len(frame.encoded())
            if len(self._waiting) < WAITING and self._bytes + size <= WAITING_BYTES:
                self._bytes += size
                self._waiting.append((frame, leg, size))
            elif leg is not None:
                text = f"the backend `{self.seat.name}` does not take more now; not executed; repeat the call later"
                reason = Reason("queue", text, retryable=True, code="too_many")
                self._land(leg.slot, self.hub.refusal(leg.frame, leg.request.era, reason, self.seat.name))
            else:
                self.hub.drop("to_server", "a notification for a backend that does not read")

    def _hear(self, frame: Frame, leg: Leg | None) -> None:
        assert self.talk is not None
        before, self._heard = self._heard, leg
        try:
            self.talk.hear(frame)
        finally:
            self._heard = before

    def flow(self) -> None:
        """Hands on what waits, as far as it is taken."""
        while self._waiting and self.ready and not self.paused and self.talk is not None:
            frame, leg, size = self._waiting.popleft()
            self._bytes -= size
            self._hear(frame, leg)

    def withdraw(self, leg: Leg, frame: Frame | None) -> None:
        """The client does not want the request any more; `frame` says so, where it said so by a frame."""
        for at, (_, waiting, size) in enumerate(self._waiting):
            if waiting is leg:
                del self._waiting[at]
                self._bytes -= size
                self._land(leg.slot, b"")
                return
        if self.talk is None:
            return
        if frame is None:
            self.talk.withdraw(leg.slot)
        else:
            self.talk.hear(frame)

    def refuse_waiting(self, why: str) -> None:
        """What waits is answered, and not executed."""
        waiting, self._waiting = self._waiting, deque()
        self._bytes = 0
        for _, leg, _ in waiting:
            if leg is not None:
                self._land(leg.slot, self.hub.away(leg, why))

    def leave(self) -> None:
        """The conversation is over for us; it closes in its own time."""
        if self.seat.branch is self:
            self.seat.branch = None
        self.ready = False
        self.refuse_waiting(self.seat.why)
        if self.talk is not None:
            self.talk.client_left()

    # towards the conversation

    @property
    def gone(self) -> bool:
        return self.hub.client.gone

    def start(self) -> None:
        """Frames are handed over, not read."""

    def stop(self) -> None:
        """As `start`."""

    def pause(self, paused: bool) -> None:
        self.paused = paused
        self.flow()

    def send(self, frame: bytes, slot: int) -> None:
        if slot < 0 and self._heard is not None:
            slot = self._heard.slot
        self._land(slot, frame)

    def tell(self, frame: bytes, slot: int) -> None:
        if self.seat.branch is self:
            self.hub.told(self, frame, self.legs.get(slot))

    def take_slot(self, id_json: bytes, end: int) -> int:
        return -1 if self._heard is None else self._heard.slot

    def dispatched(self, slot: int) -> None:
        leg = self.legs.get(slot)
        if leg is not None and leg.request.slot >= 0 and not leg.request.over:
            self.hub.client.dispatched(leg.request.slot)

    def free_slot(self, slot: int) -> None:
        self._land(slot, b"")

    def _land(self, slot: int, frame: bytes) -> None:
        leg = self.legs.pop(slot, None)
        if leg is not None:
            leg.landed(frame)

    def consume(self, end: int) -> None:
        """The hub tells the client, once."""

    def keep_era(self, era: int) -> None:
        """As `consume`."""

    def keep_handshake(self, frame: bytes) -> None:
        """As `consume`."""

    def keep_initialized(self) -> None:
        """As `consume`."""

    def refuse(self, text: str) -> None:
        self.seat.why = text

    def abandon(self) -> None:
        """The hub's client is asked itself (`gone`)."""

    def close(self, code: int) -> None:
        self.closed = True
        self.hub.closed(self)


class Ask(msgspec.Struct, frozen=True):
    """A request of a server that the client has under an id of ours."""

    branch: Branch
    number: int
    method: str
    token: Id | None


# --- the hub ----------------------------------------------------------------------------------------------------------


class Hub:
    """One client's session with several backends. `names` are in the configuration's order.

    `key`: 32 secret bytes that seal cursors; a cursor is good wherever the key and the agent are the same.
    `shared`: several senders share the session, so that ids and tokens may repeat; a request is withdrawn by its slot.
    `on_end` is called once, when every conversation is over.
    """

    def __init__(
        self,
        session: str,
        principal: Principal,
        names: Sequence[str],
        client: Client,
        open: Open,
        shell: Shell,
        loop: asyncio.AbstractEventLoop,
        *,
        ids: CallIds,
        key: bytes,
        shared: bool = False,
        on_end: Callable[[Hub], None] = lambda hub: None,
    ) -> None:
        self.session = session
        self.principal = principal
        self.client = client
        self.shell = shell
        self.loop = loop
        self.era = Era.NONE
        self._open_backend = open
        self._ids = ids
        self._shared = shared
        self._on_end = on_end
        self._limit = shell.runtime.session_limit
        self._seats = {name: Seat(name, rank) for rank, name in enumerate(names)}
        self._names = merge.Names(names)
        self._cursors = merge.Cursors(key, principal.agent)
        self._branches: set[Branch] = set()
        self._requests: dict[int, Request] = {}
        self._by_id: dict[Id, Request] = {}
        self._slots = count()
        self._asks: dict[int, Ask] = {}
        self._ask_ids = count(1)
        self._asks_room = 64
        self._owners: dict[str, Seat] = {}
        """URI or template → the backend it leads to"""
        self._lent: dict[str, Seat] = {}
        """tasks of the client → the backend whose request it works on"""
        self._handshake: Frame | None = None
        self._initialized: Frame | None = None
        self._level: Frame | None = None
        self._kinds: frozenset[str] = frozenset()
        """the lists that a legacy client was promised to hear the changes of"""
        self._full = self._leaving = self._over = False
        self._dropped: dict[tuple[str, str], int] = {}
        self._reporting: asyncio.TimerHandle | None = None
        client.on_full = self._client_full
        client.on_end = self.client_left

    def rank(self, name: str) -> int:
        """The place of a backend in the configuration."""
        return self._seats[name].rank

    # --- the client's frames ------------------------------------------------------------------------------------

    def hear(self, frame: Frame, end: int = 0) -> None:
        """One frame of the client; see `Conversation.hear`."""
        if not self._leaving:
            if frame.kind is Kind.REQUEST:
                self._request(frame, end)
            elif frame.kind is Kind.NOTIFICATION:
                self._notification(frame)
            else:
                self._client_answer(frame)
        self.client.consume(end)

    def _request(self, frame: Frame, end: int) -> None:
        id = frame.id
        assert id is not None
        if not self._shared and id in self._by_id:
            self.drop("to_server", "duplicate id")
            text = "a request with this id is still open; use each id once"
            self.client.send(error_frame(id_text(id), INVALID_REQUEST, text, {"by": "aegis"}), -1)
            return
        row = TO_SERVER.get(frame.method)
        era = era_of(frame.method, frame.params, self.era)
        slot = -1 if len(self._requests) >= self._limit else self.client.take_slot(id_text(id), end)
        if slot < 0:
            reason = _too_many("this session has as many requests in flight as can be kept")
            self.client.send(self.refusal(frame, era, reason), -1)
            return
        request = Request(self, frame, era, slot)
        self._keep(request)
        if row is None or not (row.modern if era is Era.MODERN else row.legacy):
            self.finish(request, self.refusal(frame, era, _unknown_method(frame.method)))
            return
        if era is not self.era:
            self.era = era
            self.client.keep_era(era)
        try:
            _ROUTES[row.name](self, request, row)
        except BadParams as error:
            reason = Reason("params", f"{error} in `{row.name}`")
            self.finish(request, self.refusal(frame, era, reason))

    def _keep(self, request: Request) -> None:
        self._requests[request.slot] = request
        if not self._shared:
            self._by_id[request.frame.id] = request  # type: ignore[index]

    def finish(self, request: Request, frame: bytes) -> None:
        """The request's answer, once; empty where it needs none."""
        if request.over:
            return
        request.over = True
        if self._requests.pop(request.slot, None) is None:
            return
        if not self._shared:
            del self._by_id[request.frame.id]  # type: ignore[arg-type]
        if frame and not request.cancelled:
            self.client.send(frame, request.slot)
        else:
            self.client.free_slot(request.slot)

    def refusal(self, frame: Frame, era: Era, reason: Reason, backend: str = "") -> bytes:
        """What Aegis answers to a request that reaches no conversation, which would have judged and recorded it."""
        row = TO_SERVER.get(frame.method) or _UNKNOWN_METHOD[Direction.TO_SERVER]
        subject: str | None = None
        name: str | None = None
        try:
            subject, name = subject_of(row, frame.params)
        except BadParams:
            pass
        call = Call(
            self._ids(), frame.id, self.session, self.principal, Direction.TO_SERVER, row, subject, name, backend,  # type: ignore[arg-type]
            era or Era.LEGACY, frame,
        )  # fmt: skip
        self.shell.audit.story(call).denied(reason)
        text = reason.text
        if reason.code == "not_allowed":  # in the words of `relay.carry`, since a hidden name must not be told apart
            text = f"{text}; a person can look at it with `aegis audit show {call.id[:12]}`"
        return refusal_frame(
            frame.id, stage=reason.stage, text=text, call_id=call.id, era=era, method=row.name,  # type: ignore[arg-type]
            style=self.shell.runtime.denials, retryable=reason.retryable, reason=reason.code,
            retry_after_ms=reason.retry_after_ms,
        )  # fmt: skip

    def away(self, leg: Leg, why: str) -> bytes:
        """What Aegis answers where a backend is not there."""
        text = f"the backend `{leg.seat.name}` is not there ({why or 'it ended'}); not executed; repeat the call later"
        wait = int(REOPEN_S * 1000)
        reason = Reason("forward", text, retryable=True, retry_after_ms=wait, code="no_server")
        return self.refusal(leg.frame, leg.request.era, reason, leg.seat.name)

    # --- where a request goes -----------------------------------------------------------------------------------

    def send(self, request: Request, targets: Iterable[tuple[Seat, Frame]], also: list[Leg] | None = None) -> None:
        """Sends the request's legs; all are known before the first can land. `also` notes them too."""
        legs = [Leg(request, seat, frame, next(self._slots)) for seat, frame in targets]
        request.legs.extend(legs)
        if also is not None:
            also.extend(legs)
        for leg in legs:
            if request.cancelled:
                leg.landed(b"")
                continue
            branch = self._use(leg.seat)
            if branch is None:
                leg.landed(self.away(leg, leg.seat.why))
            else:
                branch.take(leg.frame, leg)

    def _replace(self, request: Request, made: Request) -> None:
        """The request turned out to be one that takes more."""
        self._requests[request.slot] = made
        if not self._shared:
            self._by_id[request.frame.id] = made  # type: ignore[index]

    def _by_name(self, request: Request, row: Method) -> None:
        """Tools, prompts and tasks: the table of prefixes has them."""
        subject, name = subject_of(row, request.frame.params)
        found = self._names.find(name or "")
        if found is None:
            self._unknown(request, subject, name)
            return
        self.send(request, [(self._seats[found[0]], _with(request.frame, row.key or "", found[1]))])

    def _unknown(self, request: Request, subject: str | None, name: str | None) -> None:
        text = f"the {subject} `{(name or '')[:200]}` is not available to this agent"
        reason = Reason("params", text, code="not_allowed")
        self.finish(request, self.refusal(request.frame, request.era, reason))

    def _by_uri(self, request: Request, row: Method) -> None:
        """Resources: the backend that listed them, or whoever has them."""
        subject, uri = subject_of(row, request.frame.params)
        self._probe(request, subject, uri or "")

    def _by_ref(self, request: Request, row: Method) -> None:
        """Completions: as what they complete."""
        params = request.frame.params
        subject, name = subject_of(row, params)
        if subject == "resource":
            self._probe(request, subject, name or "")
            return
        found = self._names.find(name or "")
        if found is None:
            self._unknown(request, subject, name)
            return
        frame = _with(request.frame, "ref", {**params["ref"], "name": found[1]})
        self.send(request, [(self._seats[found[0]], frame)])

    def _probe(self, request: Request, subject: str | None, uri: str) -> None:
        seats = self._holders(uri)
        if not seats:
            self._unknown(request, subject, uri)
            return

        def found(seat: Seat) -> None:
            if uri not in self._owners:
                self._owns(seat, uri)

        probe = Probe(self, request.frame, request.era, request.slot, seats, found)
        self._replace(request, probe)
        probe.go_on()

    def _holders(self, uri: str) -> list[Seat]:
        """Where a URI may lead, the likeliest first."""
        owner = self._owners.get(uri)
        if owner is not None:
            return [owner]
        able = [seat for seat in self._seats.values() if seat.may("resources")]
        return sorted(able, key=lambda seat: not any(merge.fits(parts, uri) for parts in seat.templates.values()))

    def _owns(self, seat: Seat, uri: str) -> bool:
        """Whether the URI leads to this backend: unless one that comes before it listed it too."""
        owner = self._owners.get(uri)
        if owner is not None and owner.rank < seat.rank:
            return False
        if len(uri) <= LONGEST_URI and (owner is not None or len(self._owners) < URIS):
            self._owners[uri] = seat
        return True

    # --- lists --------------------------------------------------------------------------------------------------

    def _list(self, request: Request, row: Method) -> None:
        items, capability = _LISTS[row.name]
        cursor = request.frame.params.get("cursor")
        if cursor is None:
            places = {seat.name: None for seat in self._seats.values() if seat.may(capability)}
        else:
            try:
                places = self._cursors.open(row.name, cursor)  # type: ignore[assignment]
            except merge.Forged:
                raise BadParams("`cursor` is none that this list was given with; begin anew without one") from None
            if not places or not self._seats.keys() >= places.keys():
                raise BadParams("`cursor` leads to backends that are gone; begin anew without one")
        gather = Gather(
            self, request.frame, request.era, request.slot, partial(self._merged_list, row.name, items, places),
            partial(self._list_heard, items),
        )  # fmt: skip
        self._replace(request, gather)
        if not places:
            self.finish(gather, self._merged_list(row.name, items, places, gather))
            return
        self.send(gather, [(self._seats[n], _with(request.frame, "cursor", place)) for n, place in places.items()])

    def _list_heard(self, items: str, leg: Leg, answer: Answer, late: bool) -> None:
        if late and answer.ok and not leg.seat.late:
            leg.seat.late = True
            self._changed(leg.seat)
        elif not late:
            leg.seat.late = False

    def _merged_list(self, method: str, items: str, places: dict[str, str | None], gather: Gather) -> bytes:
        pages = [
            merge.Page(name, places[name], result, gather.sizes[name])
            for name, result in sorted(gather.results.items(), key=lambda found: self.rank(found[0]))
            if type(result.get(items)) is list
        ]
        keep = partial(self._listed, method)
        merged, left = merge.merged_pages(items, pages, keep, MAX_FRAME_OUT)
        if left:
            merged["nextCursor"] = self._cursors.seal(method, left)
        if not pages and gather.era is Era.MODERN:
            merged = {"resultType": "complete", **merged, "ttlMs": 0, "cacheScope": "private"}
        return result_frame(id_text(gather.frame.id), encode(merged))  # type: ignore[arg-type]

    def _listed(self, method: str, backend: str, item: Any) -> Any:
        """An item as the client sees it; None where it sees none."""
        if type(item) is not dict:
            return None
        seat = self._seats[backend]
        if method == "resources/list":
            return item if self._owns(seat, item["uri"]) else None
        if method == "resources/templates/list":
            template = item["uriTemplate"]
            if not self._owns(seat, template):
                return None
            if len(seat.templates) < TEMPLATES and len(template) <= LONGEST_URI:
                seat.templates[template] = merge.literals(template)
            return item
        key = "taskId" if method == "tasks/list" else "name"
        own = item.get(key)
        name = self._names.of(backend, own) if type(own) is str else None
        return None if name is None else {**item, key: name}

    # --- what goes to everybody ---------------------------------------------------------------------------------

    def _initialize(self, request: Request, row: Method) -> None:
        self._handshake = self._initialized = self._level = None
        self.client.keep_handshake(request.frame.encoded())
        self._everybody(request, self._seats.values(), self._merged_initialize, self._handshake_heard)
        self._handshake = request.frame

    def _everybody(
        self,
        request: Request,
        seats: Iterable[Seat],
        merged: Callable[[Gather], bytes],
        heard: Callable[[Leg, Answer, bool], None],
    ) -> None:
        gather = Gather(self, request.frame, request.era, request.slot, merged, heard)
        self._replace(request, gather)
        targets = [(seat, request.frame) for seat in seats]
        if not targets:
            self.finish(gather, merged(gather))
        self.send(gather, targets)

    def _handshake_heard(self, leg: Leg, answer: Answer, late: bool) -> None:
        self._joined(leg, answer, tell=late)

    def _joined(self, leg: Leg, answer: Answer | None, *, tell: bool) -> None:
        """A backend took the handshake up, or did not."""
        seat, branch = leg.seat, leg.branch
        result = None if answer is None else merge.result_of(answer)
        if branch is None or branch is not seat.branch:
            return
        if result is None:
            seat.why = (merge.error_of(answer)[1] if answer is not None else "")[:300] or "it refused the handshake"
            branch.leave()
            return
        self._offers(seat, result)
        branch.ready = True
        if self._initialized is not None:
            branch.take(self._initialized, None)
        if self._level is not None and seat.may("logging"):
            self.send(Ours(self, self._level, lambda leg, frame: None), [(seat, self._level)])
        branch.flow()
        if tell:
            self._changed(seat)

    def _offers(self, seat: Seat, result: dict[str, Any]) -> None:
        offers = result.get("capabilities")
        seat.offers = offers if type(offers) is dict else {}

    def _merged_initialize(self, gather: Gather) -> bytes:
        if not gather.results:
            return self._nobody(gather)
        merged = merge.initialized(self._ordered(gather), __version__)
        self._kinds = frozenset(kind for kind in merge.KINDS if kind in merged["capabilities"])
        return result_frame(id_text(gather.frame.id), encode(merged))  # type: ignore[arg-type]

    def _discover(self, request: Request, row: Method) -> None:
        self._everybody(request, self._seats.values(), self._merged_discover, self._discover_heard)

    def _discover_heard(self, leg: Leg, answer: Answer, late: bool) -> None:
        result = merge.result_of(answer)
        if result is not None:
            self._offers(leg.seat, result)
            if late:
                self._changed(leg.seat)

    def _merged_discover(self, gather: Gather) -> bytes:
        if not gather.results:
            return self._nobody(gather)
        return result_frame(id_text(gather.frame.id), encode(merge.discovered(self._ordered(gather), __version__)))  # type: ignore[arg-type]

    def _ordered(self, gather: Gather) -> dict[str, dict[str, Any]]:
        return {name: gather.results[name] for name in self._seats if name in gather.results}

    def _nobody(self, gather: Gather) -> bytes:
        reason = Reason("acl", "no backend is available to this agent", code="not_allowed")
        return self.refusal(gather.frame, gather.era, reason)

    def _set_level(self, request: Request, row: Method) -> None:
        seats = [seat for seat in self._seats.values() if seat.may("logging")]
        self._everybody(request, seats, self._level_set, lambda leg, answer, late: None)

    def _level_set(self, gather: Gather) -> bytes:
        self._level = gather.frame
        return result_frame(id_text(gather.frame.id), b"{}")  # type: ignore[arg-type]

    def _ping(self, request: Request, row: Method) -> None:
        self.finish(request, result_frame(id_text(request.frame.id), b"{}"))  # type: ignore[arg-type]

    def _listen(self, request: Request, row: Method) -> None:
        frame = request.frame
        wanted = {uri: self._holders(uri) for uri in listened_resources(frame.params)}

        def narrow(seat: Seat) -> Frame:
            def own_task(task: str) -> str | None:
                backend, own = self._names.find(task) or ("", None)
                return own if backend == seat.name else None

            params = merge.narrowed(frame.params, lambda uri: seat in wanted[uri], own_task)
            return msgspec.structs.replace(frame, params=params, value={**frame.value, "params": params}, text=b"")

        listen = Listen(self, frame, request.era, request.slot, narrow)
        self._replace(request, listen)
        if not self._seats:
            self.finish(listen, self._nobody(listen))  # type: ignore[arg-type]
        listen.join(self._seats.values())

    # --- what else the client says ------------------------------------------------------------------------------

    def _notification(self, frame: Frame) -> None:
        method = frame.method
        if method == "notifications/cancelled":
            id = frame.params.get("requestId")
            request = self._by_id.get(id) if type(id) in (int, str) else None
            if request is not None and request.frame.method != "initialize":
                self._cancel(request, frame)
        elif method == "notifications/progress":
            token = frame.params.get("progressToken")
            ask = self._asks.get(token) if type(token) is int else None
            if ask is None or ask.token is None or ask.branch.talk is None:
                self.drop("to_server", "progress for no open request")
                return
            ask.branch.talk.hear(_with(frame, "progressToken", ask.token))
        elif method == "notifications/tasks/status":
            seat = self._lent.get(_word(frame.params.get("taskId")))
            if seat is None or seat.branch is None:
                self.drop("to_server", "the status of a task that no server has")
                return
            seat.branch.take(frame, None)
        elif method.startswith("notifications/"):
            if method == "notifications/initialized":
                self._initialized = frame
                self.client.keep_initialized()
            for seat in self._seats.values():
                if seat.branch is not None and seat.branch.ready:
                    seat.branch.take(frame, None)
        else:
            self.drop("to_server", "a request without an id")

    def _cancel(self, request: Request, frame: Frame | None) -> None:
        if request.cancelled:
            return
        request.cancelled = True
        for leg in list(request.legs):
            if leg.branch is not None:
                leg.branch.withdraw(leg, frame)

    def withdraw(self, slot: int) -> None:
        """The client closed the stream of this request."""
        request = self._requests.get(slot)
        if request is not None:
            self._cancel(request, None)

    def _client_answer(self, frame: Frame) -> None:
        ask = self._asks.pop(frame.id, None) if type(frame.id) is int else None
        if ask is None or ask.branch.talk is None:
            self.drop("to_server", "an answer to no open request")
            return
        seat = ask.branch.seat
        value = {**frame.value, "id": ask.number}
        result = value.get("result")
        if type(result) is dict:
            value["result"] = self._answered(seat, ask.method, result)
        ask.branch.talk.hear(msgspec.structs.replace(frame, id=ask.number, value=value, text=b""))

    def _answered(self, seat: Seat, method: str, result: dict[str, Any]) -> dict[str, Any]:
        """What one server may hear of the client's answer: no other's tasks, and its own under its own names."""
        if method == "tasks/list" and type(result.get("tasks")) is list:
            mine = [
                one for one in result["tasks"] if type(one) is dict and self._lent.get(_word(one.get("taskId"))) is seat
            ]
            return {**result, "tasks": mine}
        task = result.get("task")
        if type(task) is dict and type(task.get("taskId")) is str and len(self._lent) < LENT:
            self._lent.setdefault(task["taskId"], seat)

        def own(task: str) -> str:
            backend, name = self._names.find(task) or ("", task)
            return name if backend == seat.name else task

        return merge.with_tasks(result, own, about=True)

    def _client_full(self, full: bool) -> None:
        """A client that does not read stops all its servers' output, and is read no further."""
        self._full = full
        for branch in list(self._branches):
            if branch.talk is not None:
                branch.on_full(full)
        self.client.pause(full)

    # --- what the servers say -----------------------------------------------------------------------------------

    def told(self, branch: Branch, frame: bytes, leg: Leg | None) -> None:
        """A notification or a request of a server. `leg`: what it belongs to."""
        value = msgspec.json.decode(frame)
        method = value["method"]
        params = value.get("params", {})
        seat = branch.seat
        slot = -1 if leg is None or leg.request.over else leg.request.slot
        if "id" in value:
            self._ask(branch, value, slot)
            return
        if method == "notifications/progress":
            if leg is not None and leg.request.progresses(value):
                self.client.tell(frame, slot)
            return
        if method == "notifications/cancelled":
            self._called_off(branch, value, frame, leg, slot)
            return
        if method == "notifications/resources/list_changed":
            self._forget(seat)
        changed = params
        if method == "notifications/message":
            logger = params.get("logger")
            changed = {**params, "logger": f"{seat.name}.{logger}" if type(logger) is str and logger else seat.name}
        if b"askId" in frame:
            about = method not in ("notifications/tasks/status", "notifications/tasks")
            changed = merge.with_tasks(changed, partial(self._task_name, seat), about=about)
        if changed is not params:
            value = {**value, "params": changed}
            frame = encode(value)
        meta = params.get("_meta")
        if leg is not None and isinstance(leg.request, Listen) and type(meta) is dict and META_SUBSCRIPTION in meta:
            if not leg.request.over:
                leg.request.tell(leg, value, frame)
            return
        self.client.tell(frame, slot)

    def _task_name(self, seat: Seat, task: str) -> str:
        """A server's task under the name the client knows."""
        return f"{seat.name}{merge.SEPARATOR}{task}"

    def renamed(self, leg: Leg, frame: bytes) -> bytes:
        """The answer with its tasks under the names the client knows; the same bytes where there are none."""
        if b"askId" not in frame:
            return frame
        answer = _answer(frame)
        result = None if answer is None else merge.result_of(answer)
        if result is None:
            return frame
        changed = merge.with_tasks(result, partial(self._task_name, leg.seat))
        return frame if changed is result else result_frame(id_text(leg.frame.id), encode(changed))  # type: ignore[arg-type]

    def _ask(self, branch: Branch, value: dict[str, Any], slot: int) -> None:
        """A request of a server goes to the client under an id of ours, and its progress under the same token."""
        number, method, params = value["id"], value["method"], value.get("params", {})
        if method in ("tasks/get", "tasks/cancel", "tasks/result"):
            if self._lent.get(_word(params.get("taskId"))) is not branch.seat:
                self._deny(branch, number, "the client works on no such task for this server")
                return
        if len(self._asks) >= self._asks_room:
            self._asks = {id: ask for id, ask in self._asks.items() if _still_open(ask)}
            self._asks_room = max(64, 2 * len(self._asks))
        id = next(self._ask_ids)
        meta = params.get("_meta")
        token = meta.get("progressToken") if type(meta) is dict else None
        self._asks[id] = Ask(branch, number, method, token if type(token) in (int, str) else None)
        if token is not None:
            params = {**params, "_meta": {**meta, "progressToken": id}}
        params = merge.with_tasks(params, partial(self._task_name, branch.seat), about=True)
        self.client.tell(encode({**value, "id": id, **({"params": params} if "params" in value else {})}), slot)

    def _deny(self, branch: Branch, number: int, text: str) -> None:
        """Answers a server's request in the client's place."""
        assert branch.talk is not None
        value = {"jsonrpc": "2.0", "id": number, "error": {"code": INVALID_PARAMS, "message": text}}
        # Not at once: the conversation is still about to send it.
        self.loop.call_soon(branch.talk.hear, Frame(Kind.ANSWER, number, "", {}, value))

    def _called_off(self, branch: Branch, value: dict[str, Any], frame: bytes, leg: Leg | None, slot: int) -> None:
        """A server does not want an answer any more; a modern one can only mean a subscription of ours."""
        if leg is not None and isinstance(leg.request, Listen):
            leg.request.ended(frame)
            return
        number = value["params"].get("requestId")
        for id, ask in self._asks.items():
            if ask.branch is branch and ask.number == number:
                self.client.tell(encode({**value, "params": {**value["params"], "requestId": id}}), slot)
                return

    # --- backends come and go -----------------------------------------------------------------------------------

    def _use(self, seat: Seat) -> Branch | None:
        """The backend's conversation, begun where there is none; None where there can be none now."""
        if seat.branch is not None:
            return seat.branch
        now = self.shell.now()
        if now < seat.again or self._leaving:
            return None
        seat.again = now + REOPEN_S
        branch = Branch(self, seat)
        seat.branch = branch
        self._branches.add(branch)
        try:
            talk = self._open_backend(seat.name, branch)
        except (OSError, Refused) as error:
            seat.why = str(error)
            branch.closed = True
        else:
            branch.talk = talk
        if branch.closed:
            self._gone(branch)
            return None
        seat.offers, seat.why = None, ""
        branch.ready = True
        if self._full:
            branch.on_full(True)
        if self.era is Era.MODERN:
            for request in list(self._requests.values()):
                if isinstance(request, Listen):
                    request.join([seat])
        elif self._handshake is not None:
            frame = msgspec.structs.replace(
                self._handshake, id=f"aegis-{next(self._slots)}", value={**self._handshake.value}, text=b""
            )
            frame.value["id"] = frame.id
            self.send(
                Ours(self, frame, lambda leg, frame: self._joined(leg, _answer(frame), tell=True)), [(seat, frame)]
            )
        return seat.branch

    def closed(self, branch: Branch) -> None:
        """A conversation is over."""
        if branch.talk is None:
            return  # it is being begun, and could not be
        branch.talk = None
        was = branch.seat.branch is branch
        self._gone(branch)
        branch.refuse_waiting(branch.seat.why)
        for leg in list(branch.legs.values()):
            branch.send(self.away(leg, branch.seat.why), leg.slot)
        if was and not self._leaving:
            self._changed(branch.seat)
        self._end_if_over()

    def _gone(self, branch: Branch) -> None:
        seat = branch.seat
        self._branches.discard(branch)
        if seat.branch is branch:
            seat.branch = None
            self._forget(seat)
        self._asks = {id: ask for id, ask in self._asks.items() if ask.branch is not branch}

    def _forget(self, seat: Seat) -> None:
        """What a backend listed holds no more."""
        seat.templates.clear()
        self._owners = {uri: owner for uri, owner in self._owners.items() if owner is not seat}

    def _changed(self, seat: Seat) -> None:
        """Tells the client that what this backend lists came or went."""
        for kind in merge.KINDS:
            if not seat.may(kind):
                continue
            if self.era is Era.MODERN:
                for request in list(self._requests.values()):
                    if isinstance(request, Listen) and not request.cancelled:
                        request.changed(kind)
            elif kind in self._kinds:
                self.client.tell(notification_frame(f"notifications/{kind}/list_changed", {}), -1)

    # --- the end ------------------------------------------------------------------------------------------------

    def client_left(self) -> None:
        """The client's input ended: nothing new comes, what was sent may still be answered."""
        if self._leaving:
            if self.client.gone:
                for branch in list(self._branches):
                    if branch.talk is not None:
                        branch.talk.client_left()
            return
        self._leaving = True
        self.client.stop()
        for branch in list(self._branches):
            branch.refuse_waiting("the client left")
            if branch.talk is not None:
                branch.talk.client_left()
        self._end_if_over()

    def shim_gone(self) -> None:
        """Nobody is left to read: as `client_left`, and nothing more is written."""
        self.client.abandon()
        self.client_left()

    def stop(self) -> None:
        """The daemon ends: what waits here is answered, the rest is each conversation's."""
        for branch in list(self._branches):
            branch.refuse_waiting("the daemon stops")
        self.client.stop()

    def _end_if_over(self) -> None:
        if not self._leaving or self._branches or self._over:
            return
        self._over = True
        for request in list(self._requests.values()):
            self._cancel(request, None)
            self.finish(request, b"")
        self._report()
        self.client.close(0)
        self._on_end(self)

    def drop(self, direction: str, why: str) -> None:
        """A frame that goes nowhere is recorded, at most once a second and kind."""
        self._dropped[direction, why] = self._dropped.get((direction, why), 0) + 1
        if self._reporting is None:
            self._reporting = self.loop.call_later(1.0, self._report)

    def _report(self) -> None:
        if self._reporting is not None:
            self._reporting.cancel()
            self._reporting = None
        counts, self._dropped = self._dropped, {}
        for (direction, why), times in counts.items():
            self.shell.audit.dropped(self.principal.agent, "", self.session, direction, why, times)


_ROUTES: Final[dict[str, Callable[[Hub, Request, Method], None]]] = {
    "initialize": Hub._initialize,
    "server/discover": Hub._discover,
    "ping": Hub._ping,
    "logging/setLevel": Hub._set_level,
    "tools/list": Hub._list,
    "tools/call": Hub._by_name,
    "resources/list": Hub._list,
    "resources/templates/list": Hub._list,
    "resources/read": Hub._by_uri,
    "resources/subscribe": Hub._by_uri,
    "resources/unsubscribe": Hub._by_uri,
    "subscriptions/listen": Hub._listen,
    "prompts/list": Hub._list,
    "prompts/get": Hub._by_name,
    "completion/complete": Hub._by_ref,
    "tasks/get": Hub._by_name,
    "tasks/cancel": Hub._by_name,
    "tasks/result": Hub._by_name,
    "tasks/list": Hub._list,
    "tasks/update": Hub._by_name,
}
"""Every method that `wire.methods` lets through has its way here."""


def _with(frame: Frame, key: str, item: Any) -> Frame:
    """The same frame with one parameter changed, or without it (None)."""
    params = {**frame.params, key: item}
    if item is None:
        del params[key]
    value = {**frame.value, "params": params} if params or "params" in frame.value else frame.value
    return msgspec.structs.replace(frame, params=params, value=value, text=b"")


def _answer(frame: bytes) -> Answer | None:
    """An answer of one of our conversations; None where there is none."""
    answer = parse_from_server(frame) if frame else None
    return answer if isinstance(answer, Answer) else None


def _usable(frame: bytes) -> bool:
    """Whether an error says more than that a backend lacks the method."""
    answer = _answer(frame)
    return answer is not None and merge.error_of(answer)[0] != METHOD_NOT_FOUND


def _word(value: Any) -> str:
    return value if type(value) is str else ""


def _still_open(ask: Ask) -> bool:
    return ask.branch.talk is not None and ask.branch.talk.to_client.peek(ask.number) is not None
