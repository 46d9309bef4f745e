"""One server made of an agent's several: routes, renames and merges, and decides nothing.

Towards the client a hub is what a `Conversation` is; towards each backend it holds one, and is its client. Whatever
is allowed, counted, asked for and recorded is so inside those conversations, under the backend's own names.

What a request becomes, by method (`_ROUTES`, at the end):

- tools, prompts and tasks are named `backend__own`, and go where the table of prefixes says;
- a resource keeps its URI and goes to the backend that listed it, the first in the configuration's order where
  several did. One that nobody listed is looked for: where a template fits first, then at every backend that has
  resources, in order; "not found" and "not available to this agent" lead on to the next, any other answer stands;
- lists are asked for everywhere at once and given page by page, with a cursor of ours that holds everybody's;
- the handshake, the log level and subscriptions go to everybody. Whoever has not answered ten seconds after the
  first answer is left out, and a list change tells the client when it comes after all; the next time nobody waits
  for it (`relay.lateness`), until it answers in time.

Every leg of a request goes out under the client's own id, since each conversation has ids of its own. A backend that
ended, or could not begin, is opened again when it is next used, at most once a second; resources that a legacy client
had subscribed to there have to be subscribed to again. A reload gives backends and takes them away; what is under way
at one that is taken away may still be answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final

import msgspec

from aegis_daemon import __version__
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Reason
from aegis_daemon.relay import merge
from aegis_daemon.relay.admission import Refused
from aegis_daemon.relay.asks import Asks, with_param
from aegis_daemon.relay.branch import Branch, Seat
from aegis_daemon.relay.carry import Shell
from aegis_daemon.relay.conversation import Conversation
from aegis_daemon.relay.lateness import LATE_S, Lateness
from aegis_daemon.relay.legs import Asked, Gather, Leg, Listen, Ours, Probe, Request
from aegis_daemon.relay.load import CallIds
from aegis_daemon.relay.own_tasks import is_ours
from aegis_daemon.relay.ports import Client
from aegis_daemon.relay.reasons import too_many, unknown_method
from aegis_daemon.relay.refusing import refused_request
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
    result_frame,
)
from aegis_daemon.wire.methods import (
    META_SUBSCRIPTION,
    META_VERSION,
    MODERN_VERSION,
    TO_SERVER,
    BadParams,
    Era,
    Method,
    era_of,
    listened_resources,
    subject_of,
)

REOPEN_S: Final = 1.0
"""The least time between two beginnings of one backend."""
CLOGGED: Final = 8
"""Requests that a backend which is late may leave open before it is given no more lists to answer."""
_LISTS: Final = {
    "tools/list": ("tools", "tools", "name"),
    "prompts/list": ("prompts", "prompts", "name"),
    "resources/list": ("resources", "resources", "uri"),
    "resources/templates/list": ("resources", "resourceTemplates", "uriTemplate"),
    "tasks/list": ("tasks", "tasks", "taskId"),
}
"""List → the capability of those who have one, the key of its items, and the key of an item's name."""
_ANSWERS: Final = frozenset({"requestState", "inputResponses"})
_BEGINNINGS: Final = frozenset({"initialize", "server/discover"})
_AT_ONCE: Final = frozenset({"refused", "connect", "connection_lost", "server_exited", "server_not_started"})
"""Reasons of a backend that is not there, which nobody has to wait for."""
_TASK: Final = b"askId"
"""What a frame that names a task holds."""

OpenBackend = Callable[[str, Branch], Conversation]
"""Begins the conversation with a backend, whose client is the branch. Raises `OSError`, `Refused` and `ValueError`."""


class Hub:
    """One client's session with several backends. `names` are in the configuration's order.

    `key`: 32 secret bytes that seal cursors; a cursor is good wherever the key and the agent are the same.
    `shared`: several senders share the session, so ids and tokens may repeat, and requests are withdrawn by slot alone.
    `on_end` is called once, when every conversation is over.
    """

    def __init__(
        self,
        session: str,
        principal: Principal,
        names: Sequence[str],
        client: Client,
        open: OpenBackend,
        shell: Shell,
        loop: asyncio.AbstractEventLoop,
        *,
        ids: CallIds,
        key: bytes,
        lateness: Lateness,
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
        self._lateness = lateness
        self._shared = shared
        self._on_end = on_end
        self._limit = shell.runtime.agent_limit if shared else shell.runtime.session_limit
        self._seats = {name: Seat(name) for name in names}
        self._names = merge.Names(names)
        self._taken = merge.Names(())
        """of backends that were taken away"""
        self._uris = merge.Uris(names)
        self._cursors = merge.Cursors(key, principal.agent)
        self._asks = Asks(self._names)
        self._branches: set[Branch] = set()
        self._open: dict[int, Request] = {}
        """by the client's slot"""
        self._by_id: dict[Id, Request] = {}
        self._slots = count()
        self._handshake: Frame | None = None
        self._initialized: Frame | None = None
        self._level: Frame | None = None
        self._kinds: frozenset[str] = frozenset()
        """the lists whose changes a legacy client was promised to hear of"""
        self.missing: set[str] = set()
        """backends that did not begin in their time; see `again`"""
        self._full = self._leaving = self._over = False
        self._dropped: dict[tuple[str, str], int] = {}
        self._reporting: asyncio.TimerHandle | None = None
        client.on_full = self._client_full
        client.on_end = self.client_left

    # --- the client's frames ------------------------------------------------------------------------------------

    def hear(self, frame: Frame, end: int = 0) -> None:
        """One frame of the client; see `Conversation.hear`."""
        if not self._leaving:
            if frame.kind is Kind.REQUEST:
                self._request(frame, end)
            elif frame.kind is Kind.NOTIFICATION:
                self._notification(frame)
            elif not self._asks.answered(frame):
                self.drop("to_server", "an answer to no open request")
        self.client.consume(end)

    def _request(self, frame: Frame, end: int) -> None:
        id = frame.id
        assert id is not None
        client = self.client
        if not self._shared and id in self._by_id:
            self.drop("to_server", "duplicate id")
            text = "a request with this id is still open; use each id once"
            client.send(error_frame(id_text(id), INVALID_REQUEST, text, {"by": "aegis"}), -1)
            return
        era = era_of(frame.method, frame.params, self.era)
        row = TO_SERVER.get(frame.method)
        slot = client.take_slot(id_text(id), end) if len(self._open) < self._limit else -1
        if slot < 0:
            reason = too_many("this session has as many requests in flight as can be kept")
            client.send(self.refusal(frame, reason, era), -1)
            return
        if row is None or not (row.modern if era is Era.MODERN else row.legacy):
            client.send(self.refusal(frame, unknown_method(frame.method), era), slot)
            return
        if era is not self.era and (era is not Era.MODERN or _says_modern(frame)):
            self.era = era
            client.keep_era(era)
        try:
            _ROUTES[row.name](self, Asked(id, frame, row, era, slot))
        except BadParams as error:
            reason = Reason("params", f"{error} in `{row.name}`", code="bad_params")
            client.send(self.refusal(frame, reason, era), slot)

    def refusal(self, frame: Frame, reason: Reason, era: Era | None = None, backend: str = "") -> bytes:
        """See `core.ports.Party`: it reaches no conversation, which would have judged and recorded it."""
        era = era_of(frame.method, frame.params, self.era) if era is None else era
        return refused_request(
            frame, era, reason, self.shell, id=self._ids(), session=self.session, principal=self.principal,
            backend=backend,
        )  # fmt: skip

    @property
    def serves(self) -> bool:
        """See `core.ports.Party`."""
        return True

    def away(self, leg: Leg, why: str) -> bytes:
        """What Aegis answers where a backend is not there."""
        name = leg.seat.name
        if self._seats.get(name) is not leg.seat:
            text = f"the backend `{name}` is not available to this agent any more"
            return self.refusal(leg.frame, Reason("acl", text, code="not_allowed"), leg.request.asked.era, name)
        text = f"the backend `{name}` is not there ({why or 'it ended'}); not executed; repeat the call in a while"
        wait = int(REOPEN_S * 1000)
        reason = Reason("forward", text, retryable=True, retry_after_ms=wait, code="no_server")
        return self.refusal(leg.frame, reason, leg.request.asked.era, name)

    def send(self, request: Request, targets: Iterable[tuple[Seat, Frame]], also: list[Leg] | None = None) -> None:
        """Sends the request's legs; all are known before the first can land. `also` notes them too."""
        asked = request.asked
        if asked.slot >= 0 and not request.over:
            self._open[asked.slot] = request
            if not self._shared:
                self._by_id[asked.id] = request
        now = self.shell.now()
        legs = [Leg(request, seat, frame, next(self._slots), now) for seat, frame in targets]
        request.legs.extend(legs)
        if also is not None:
            also.extend(legs)
        for leg in legs:
            branch = self._use(leg.seat)
            if branch is None:
                leg.landed(self.away(leg, leg.seat.why))
            else:
                branch.take(leg.frame, leg)

    def finish(self, request: Request, frame: bytes) -> None:
        """The request's answer, once; empty where it needs none."""
        slot = request.asked.slot
        if request.over:
            return
        request.over = True
        self._open.pop(slot, None)
        if not self._shared:
            self._by_id.pop(request.asked.id, None)
        if frame and not request.cancelled and not self.client.gone:
            self.client.send(frame, slot)
        else:
            self.client.free_slot(slot)

    def timed(self, leg: Leg, answer: Answer | None) -> None:
        """What a backend's answer, or that there is none, says of the time it takes."""
        name, begins = leg.seat.name, leg.request.asked.row.name in _BEGINNINGS
        if self._seats.get(name) is not leg.seat or leg.request.cancelled or self._full:
            return  # a client that does not read lets its own requests wait
        _, _, stage, reason = (0, "", "", "") if answer is None or answer.ok else merge.error_of(answer)
        now = self.shell.now()
        if reason == "timeout" or now - leg.since >= LATE_S - 0.1:  # timers are a little early
            self._lateness.late(name, self.principal.agent, now, begins=begins)
        elif answer is not None and (not stage or reason in _AT_ONCE):
            self._lateness.in_time(name, begins=begins)
            if leg.request.asked.era is Era.MODERN:  # where nothing has to begin
                self._lateness.in_time(name, begins=True)

    def will_be_late(self, leg: Leg) -> bool:
        """Whether its backend has been so far."""
        begins, lived = leg.request.asked.row.name in _BEGINNINGS, leg.branch is not None and leg.branch.lived
        return self._lateness.expected(leg.seat.name, self.principal.agent, begins=begins, lived=lived)

    def first(self, frames: Mapping[str, bytes]) -> bytes:
        """That of the backend that comes first in the configuration."""
        return next(frames[name] for name in (*self._seats, *frames) if name in frames)

    # --- where a request goes: by name, or by URI ----------------------------------------------------------------

    def _by_name(self, asked: Asked) -> None:
        """Tools, prompts and tasks: the table of prefixes has them."""
        _, name = subject_of(asked.row, asked.frame.params)
        assert name is not None
        assert asked.row.key is not None
        found = self._names.find(name) or self._own_task(asked.row, name)
        if found is None:
            self._unknown(asked)
        else:
            self.send(Request(self, asked), [(self._seats[found[0]], with_param(asked.frame, asked.row.key, found[1]))])

    def _own_task(self, row: Method, name: str) -> tuple[str, str] | None:
        """The backend of a task of Aegis' own that was begun at that backend's own address, and its name there."""
        shell = self.shell
        if row.subject != "task" or shell.tasks is None or not is_ours(name):
            return None
        backend = shell.tasks.home(shell.desk, self.principal.agent, name)
        return (backend, name) if backend is not None and backend in self._seats else None

    def _by_uri(self, asked: Asked) -> None:
        """Resources: the backend that listed them, or whoever has them."""
        _, uri = subject_of(asked.row, asked.frame.params)
        assert uri is not None
        seats = self._holders(uri)
        if len(seats) > 1 and not asked.frame.params.keys().isdisjoint(_ANSWERS):
            # They are for the server that asked for them, and nobody knows any more which that was.
            raise BadParams("`requestState` and `inputResponses` come too late; begin anew without them")
        if seats:
            Probe(self, asked, seats, lambda seat: self._uris.found(seat.name, uri)).go_on()
        else:
            self._unknown(asked)

    def _holders(self, uri: str) -> list[Seat]:
        able = (seat.name for seat in self._seats.values() if seat.may("resources"))
        return [self._seats[name] for name in self._uris.holders(uri, able)]

    def _by_ref(self, asked: Asked) -> None:
        """Completions: as what they complete."""
        subject, name = subject_of(asked.row, asked.frame.params)
        if subject == "resource":
            self._by_uri(asked)
            return
        found = self._names.find(name or "")
        if found is None:
            self._unknown(asked)
        else:
            ref = {**asked.frame.params["ref"], "name": found[1]}
            self.send(Request(self, asked), [(self._seats[found[0]], with_param(asked.frame, "ref", ref))])

    def _unknown(self, asked: Asked) -> None:
        subject, name = subject_of(asked.row, asked.frame.params)
        text = f"the {subject} `{(name or '')[:200]}` is not available to this agent"
        taken = self._taken.find(name or "") if subject in ("tool", "prompt", "task") else None
        if taken is not None:
            reason = Reason("acl", text, code="not_allowed")
            self.client.send(self.refusal(asked.frame, reason, asked.era, taken[0]), asked.slot)
            return
        if subject in ("tool", "prompt") and "__" not in (name or ""):
            text = f"{text}; {subject}s at this address are named `backend__{subject}`"
        reason = Reason("params", text, code="not_allowed")
        self.client.send(self.refusal(asked.frame, reason, asked.era), asked.slot)

    # --- lists --------------------------------------------------------------------------------------------------

    def _list(self, asked: Asked) -> None:
        method = asked.row.name
        capability, items, _ = _LISTS[method]
        places: dict[str, str | None]
        cursor = asked.frame.params.get("cursor")
        if cursor is None:
            places = {seat.name: None for seat in self._seats.values() if seat.may(capability)}
        else:
            try:
                places = self._cursors.open(method, cursor)
            except merge.Forged:
                raise BadParams("`cursor` is none that this list gave; begin anew without one") from None
            if not places.keys() <= self._seats.keys():
                raise BadParams("`cursor` leads to backends that are gone; begin anew without one")
        merged = partial(self._merged_list, items, places)
        gather = Gather(self, asked, merged, self._list_heard)
        if places:
            targets = [(self._seats[name], with_param(asked.frame, "cursor", at)) for name, at in places.items()]
            self.send(gather, self._able(targets, begins=False))
        else:
            self.client.send(merged(gather), asked.slot)

    def _able(self, targets: list[tuple[Seat, Frame]], *, begins: bool) -> list[tuple[Seat, Frame]]:
        """Without those that are late and have enough to answer already, which would take all of an agent's room."""

        def clogged(seat: Seat) -> bool:
            branch = seat.branch
            return (
                branch is not None
                and branch.open_legs >= CLOGGED
                and self._lateness.expected(seat.name, self.principal.agent, begins=begins, lived=branch.lived)
            )

        return [target for target in targets if not clogged(target[0])] or targets

    def _list_heard(self, leg: Leg, answer: Answer, late: bool) -> None:
        seat = leg.seat
        if not answer.ok:
            return
        soon = self.shell.now() - leg.since < LATE_S  # it is waited for again, if the client lists again
        if late and (soon or not seat.late) and self._seats.get(seat.name) is seat:
            self._changed(seat)
        seat.late = late

    def _merged_list(self, items: str, places: Mapping[str, str | None], gather: Gather) -> bytes:
        asked = gather.asked
        pages = [
            merge.Page(name, places[name], result, gather.sizes[name])
            for name, result in self._ordered(gather).items()
            if type(result.get(items)) is list
        ]
        keep = partial(self._listed, asked.row.name)
        result, left = merge.merged_pages(items, pages, keep, MAX_FRAME_OUT)
        if left:
            result["nextCursor"] = self._cursors.seal(asked.row.name, left)
        if not pages and asked.era is Era.MODERN:
            result = {"resultType": "complete", **result, "ttlMs": 0, "cacheScope": "private"}
        return result_frame(id_text(asked.id), encode(result))

    def _listed(self, method: str, backend: str, item: Any) -> Any:
        """An item as the client sees it; None where it sees none."""
        key = _LISTS[method][2]
        own = item.get(key) if type(item) is dict else None
        if type(own) is not str:
            return None
        if method.startswith("resources/"):
            template = key == "uriTemplate"
            return item if self._uris.listed(backend, own, template=template) else None
        name = self._names.of(backend, own)
        return None if name is None else {**item, key: name}

    # --- what goes to everybody ---------------------------------------------------------------------------------

    def _initialize(self, asked: Asked) -> None:
        self._handshake = self._initialized = self._level = None
        self.client.keep_handshake(asked.frame.encoded())
        self._everybody(asked, self._merged_initialize, lambda leg, answer, late: self._joined(leg, answer, tell=late))
        self._handshake = asked.frame

    def _discover(self, asked: Asked) -> None:
        self._everybody(asked, self._merged_discover, self._discover_heard)

    def _everybody(
        self, asked: Asked, merged: Callable[[Gather], bytes], heard: Callable[[Leg, Answer, bool], None]
    ) -> None:
        targets = [(seat, asked.frame) for seat in self._seats.values()]
        if asked.row.name != "initialize":
            targets = self._able(targets, begins=True)
        if targets:
            self.send(Gather(self, asked, merged, heard), targets)
        else:
            self._nobody(asked)

    def _nobody(self, asked: Asked) -> None:
        reason = Reason("acl", "no backend is available to this agent", code="not_allowed")
        self.client.send(self.refusal(asked.frame, reason, asked.era), asked.slot)

    def _joined(self, leg: Leg, answer: Answer | None, *, tell: bool) -> None:
        """A backend took the handshake up, or did not."""
        seat, branch = leg.seat, leg.branch
        if branch is None or branch is not seat.branch:
            return
        result = None if answer is None else merge.result_of(answer)
        if result is None:
            said = "" if answer is None else merge.error_of(answer)[1]
            branch.leave(said.partition(";")[0][:300] or "it did not take up the handshake")
            if self._lateness.expected(seat.name, self.principal.agent, begins=True, lived=False):
                self.missing.add(seat.name)
            return
        seat.offers = merge.offers(result)
        branch.begin(self._initialized)
        if self._level is not None and seat.may("logging"):
            self._show(seat, self._level, lambda leg, answer: None)
        branch.flow()
        if tell:
            self._changed(seat)

    def _show(self, seat: Seat, frame: Frame, then: Callable[[Leg, Answer | None], None]) -> None:
        """Sends a backend what the client said before it was there, under an id of ours."""
        id = f"aegis-{next(self._slots)}"
        frame = msgspec.structs.replace(frame, id=id, value={**frame.value, "id": id}, text=b"")
        asked = Asked(id, frame, TO_SERVER[frame.method], Era.LEGACY, -1)
        self.send(Ours(self, asked, then), [(seat, frame)])

    def _merged_initialize(self, gather: Gather) -> bytes:
        merged = merge.initialized(self._ordered(gather), __version__)
        self._kinds = frozenset(kind for kind in merge.KINDS if kind in merged["capabilities"])
        return result_frame(id_text(gather.asked.id), encode(merged))

    def _discover_heard(self, leg: Leg, answer: Answer, late: bool) -> None:
        result = merge.result_of(answer)
        if result is not None:
            leg.seat.offers = merge.offers(result)
            if late:
                self._changed(leg.seat)

    def _merged_discover(self, gather: Gather) -> bytes:
        return result_frame(id_text(gather.asked.id), encode(merge.discovered(self._ordered(gather), __version__)))

    def _ordered(self, gather: Gather) -> dict[str, dict[str, Any]]:
        return {name: gather.results[name] for name in self._seats if name in gather.results}

    def _set_level(self, asked: Asked) -> None:
        """To all that log; whoever begins later is shown it."""

        def merged(gather: Gather) -> bytes:
            self._level = asked.frame
            return result_frame(id_text(asked.id), b"{}")

        gather = Gather(self, asked, merged, lambda leg, answer, late: None)
        seats = [seat for seat in self._seats.values() if seat.may("logging")]
        if seats:
            self.send(gather, [(seat, asked.frame) for seat in seats])
        else:
            self.client.send(merged(gather), asked.slot)

    def _ping(self, asked: Asked) -> None:
        self.client.send(result_frame(id_text(asked.id), b"{}"), asked.slot)

    def _listen(self, asked: Asked) -> None:
        """A URI that nobody listed is subscribed to wherever it may lead."""
        frame = asked.frame
        holders = {uri: self._holders(uri) for uri in listened_resources(frame.params)}

        def narrow(seat: Seat) -> Frame:
            def own(task: str) -> str | None:
                found = self._names.find(task)
                return found[1] if found is not None and found[0] == seat.name else None

            params = merge.narrowed(frame.params, lambda uri: seat in holders[uri], own)
            return msgspec.structs.replace(frame, params=params, value={**frame.value, "params": params}, text=b"")

        if self._seats:
            Listen(self, asked, narrow).join(self._seats.values())
        else:
            self._nobody(asked)

    def granted(self, leg: Leg, granted: dict[str, Any]) -> dict[str, Any]:
        """What a backend promised to a subscription, its tasks under the names the client knows."""
        tasks = granted.get("taskIds")
        if type(tasks) is not list:
            return granted
        own = [self._names.known(leg.seat.name, task) for task in tasks if type(task) is str]
        return {**granted, "taskIds": own}

    # --- what else the client says ------------------------------------------------------------------------------

    def _notification(self, frame: Frame) -> None:
        method = frame.method
        if method == "notifications/cancelled":
            id = frame.params.get("requestId")
            request = self._by_id.get(id) if type(id) is int or type(id) is str else None
            if request is not None and request.asked.row.name != "initialize":
                self._cancel(request, lambda talk, leg: talk.hear(frame))
        elif method == "notifications/progress":
            if not self._asks.progress(frame):
                self.drop("to_server", "progress for no open request")
        elif method == "notifications/tasks/status":
            self.drop("to_server", "the status of a task that no server may know")
        elif method.startswith("notifications/"):
            if method == "notifications/initialized":
                self._initialized = frame
                self.client.keep_initialized()
            for seat in self._seats.values():
                if seat.branch is not None and seat.branch.ready:
                    seat.branch.take(frame, None)
        else:
            self.drop("to_server", "a request without an id")

    def withdraw(self, slot: int, *, forwarded: bool = True) -> None:
        """Nobody waits for the request with this slot any more; the servers are only told if `forwarded`."""
        request = self._open.get(slot)
        if request is not None:
            self._cancel(request, lambda talk, leg: talk.withdraw(leg.slot, forwarded=forwarded))

    def _cancel(self, request: Request, tell: Callable[[Conversation, Leg], None]) -> None:
        if not request.cancelled:
            request.cancelled = True
            for leg in list(request.legs):
                if leg.branch is not None:
                    leg.branch.withdraw(leg, tell)

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
        method, params = value["method"], value.get("params", {})
        seat = branch.seat
        request = None if leg is None else leg.request
        slot = -1 if request is None or request.over else request.asked.slot
        said: bytes | None = frame
        if "id" in value:
            said = self._asks.asked(branch, value)
        elif method == "notifications/progress":
            said = frame if request is not None and request.progresses(params.get("progress")) else None
        elif method == "notifications/cancelled":
            if isinstance(request, Listen):
                request.ended(frame)
                return
            said = self._asks.called_off(branch, value)
        else:
            if method == "notifications/resources/list_changed":
                self._uris.forget(seat.name)
            shown = self._shown(seat, method, params, frame)
            if shown is not params:
                value = {**value, "params": shown}
                said = frame = encode(value)
            meta = params.get("_meta")
            if leg is not None and isinstance(request, Listen) and type(meta) is dict and META_SUBSCRIPTION in meta:
                request.tell(leg, value, frame)
                return
        if said is not None:
            self.client.tell(said, slot)

    def _shown(self, seat: Seat, method: str, params: dict[str, Any], frame: bytes) -> dict[str, Any]:
        """A notification's parameters under the names the client knows; the same object where nothing changes."""
        if method == "notifications/message":
            logger = params.get("logger")
            name = f"{seat.name}.{logger}" if type(logger) is str and logger else seat.name
            params = {**params, "logger": name}
        if _TASK in frame:
            about = method not in ("notifications/tasks/status", "notifications/tasks")
            params = merge.with_tasks(params, partial(self._names.known, seat.name), about=about)
        return params

    def renamed(self, leg: Leg, frame: bytes) -> bytes:
        """The answer with its tasks under the names the client knows; the same bytes where it names none."""
        asked, sent = leg.request.asked.frame.params.get("taskId"), leg.frame.params.get("taskId")
        if _TASK not in frame or (asked is not None and asked == sent):
            return frame
        return merge.renamed_answer(frame, id_text(leg.request.asked.id), partial(self._names.known, leg.seat.name))

    # --- backends come and go -----------------------------------------------------------------------------------

    def _use(self, seat: Seat) -> Branch | None:
        """The backend's conversation, begun where there is none; None where there can be none now."""
        if seat.branch is not None:
            return seat.branch
        now = self.shell.now()
        if now < seat.again or self._leaving:
            return None
        seat.again = now + REOPEN_S
        branch = seat.branch = Branch(self, seat)
        self._branches.add(branch)
        try:
            talk = self._open_backend(seat.name, branch)
        except (OSError, Refused, ValueError) as error:
            seat.why = str(error)
            branch.closed = True
        if branch.closed:
            self._gone(branch)
            return None
        branch.talk = talk
        branch.ready = True
        seat.offers, seat.why = None, ""
        if self._full:
            branch.on_full(True)
        if self.era is Era.MODERN:
            for request in list(self._open.values()):
                if isinstance(request, Listen):
                    request.join([seat])
        elif self._handshake is not None:
            self._show(seat, self._handshake, partial(self._joined, tell=True))
        return seat.branch

    def again(self, backend: str) -> None:
        """Tries one of the missing, which the client may never ask for: it has not seen what is there."""
        self.missing.discard(backend)
        seat = self._seats.get(backend)
        if seat is not None:
            self._use(seat)

    def closed(self, branch: Branch) -> None:
        """A conversation is over."""
        if branch.talk is None:
            return  # it is being begun, and could not be: see `_use`
        branch.talk = None
        missed = branch.lived and branch.seat.branch is branch  # one that never answered would be told of each time
        self._gone(branch)
        branch.fail_all()
        if missed and not self._leaving:
            self._changed(branch.seat)
        self._end_if_over()

    def _gone(self, branch: Branch) -> None:
        seat = branch.seat
        self._branches.discard(branch)
        self._asks.forget(branch)
        if seat.branch is branch:
            seat.branch = None
            self._uris.forget(seat.name)

    def reloaded(self, names: Sequence[str], others: Collection[str] = ()) -> None:
        """The rules changed: these are the backends now, in their order, and `others` of them are other servers."""
        if self._leaving:
            return
        before, self._seats = self._seats, {name: self._seats.get(name) or Seat(name) for name in names}
        gone = [seat for name, seat in before.items() if name not in self._seats]
        self._names = self._asks.names = merge.Names(names)
        self._taken = merge.Names((*(seat.name for seat in gone), *self._taken.backends - self._seats.keys()))
        self._uris.rank(names)
        for seat in gone:
            if seat.branch is not None:
                seat.branch.leave("it is not available to this agent any more")
        for name in others:
            if name in before and name in self._seats:
                seat = self._seats[name]
                seat.offers, seat.again, seat.late = None, 0.0, False
                self._uris.forget(name)
                if self.era is Era.MODERN:  # legacy clients hear it from its conversation
                    self._changed(seat)
        # Those that came begin when they are first used: the client lists them when it hears of them.
        for seat in (*gone, *(seat for name, seat in self._seats.items() if name not in before)):
            self._changed(seat)

    def _changed(self, seat: Seat) -> None:
        """Tells the client that what this backend lists came or went."""
        for kind in merge.KINDS:
            if not seat.may(kind):
                continue
            if self.era is Era.MODERN:
                for request in list(self._open.values()):
                    if isinstance(request, Listen):
                        request.changed(kind)
            elif kind in self._kinds:
                self.client.tell(notification_frame(f"notifications/{kind}/list_changed", {}), -1)

    # --- the end ------------------------------------------------------------------------------------------------

    def client_left(self) -> None:
        """The client's input ended: nothing new comes, what was sent may still be answered."""
        if self._leaving and not self.client.gone:
            return
        if not self._leaving:
            self._leaving = True
            self.client.stop()
        for branch in list(self._branches):
            branch.refuse_waiting("the client left")
            if branch.talk is not None:
                branch.talk.client_left()
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._leaving and not self._branches and not self._over:
            self._over = True
            self._report()
            self.client.close(0)
            self._on_end(self)

    def drop(self, direction: str, why: str) -> None:
        """A frame goes nowhere; of such there is one record a second at most, and kind."""
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


def _says_modern(frame: Frame) -> bool:
    """Whether its conversations will take it for one of the modern era; else they refuse it, and nothing changes."""
    meta = frame.params.get("_meta")
    return type(meta) is dict and meta.get(META_VERSION) == MODERN_VERSION


_ROUTES: Final[dict[str, Callable[[Hub, Asked], None]]] = {
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
