"""A legacy client hears of a modern server what a legacy one would say, and nothing of the modern era.

Sources: MCP 2025-11-25 `basic/lifecycle`, `client/*`, `server/*`; MCP 2026-07-28 `basic/index`, `basic/patterns/mrtr`,
`basic/patterns/subscriptions`.
"""

from __future__ import annotations

from functools import partial
from secrets import token_hex
from typing import Any, Final

import msgspec

from aegis_daemon.core.ports import Fault
from aegis_daemon.relay.eras.frames import (
    ASKABLE,
    ASKS,
    LEVELS,
    LISTS,
    META_LEVEL,
    META_SERVER,
    OWN,
    RESUMABLE,
    TRACKED,
    UNREADABLE,
    URIS,
    No,
    answer_of,
    cancelled,
    cleared,
    declares,
    envelope_of,
    frame_of,
    joined,
    meta_of,
    note,
    number_of,
    part,
    parts_of,
    raw_error_frame,
    request,
    with_params,
    without_tasks,
)
from aegis_daemon.relay.eras.ports import Ends
from aegis_daemon.wire.errors import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND
from aegis_daemon.wire.jsonrpc import (
    Answer,
    Frame,
    Kind,
    WireFault,
    asks,
    encode,
    error_frame,
    id_text,
    parse_from_server,
    request_frame,
    result_frame,
)
from aegis_daemon.wire.methods import LEGACY_VERSIONS, META_CAPABILITIES, META_SUBSCRIPTION, MODERN_VERSION, TO_SERVER

ROUNDS: Final = 32
"""How often a modern server may ask again for one call."""
RELISTEN_S: Final = (1.0, 60.0)
"""The shortest and the longest pause before a subscription that broke is made anew."""


class _Leg(msgspec.Struct, eq=False):
    """A request of a legacy client. `real` is the number the modern server knows it by, 0 while the client is asked."""

    number: int
    frame: Frame
    real: int = 0
    rounds: int = 0
    state: str | None = None
    asked: dict[int, str] = msgspec.field(default_factory=dict)
    """questions under our ids → their keys"""
    responses: dict[str, Any] = msgspec.field(default_factory=dict)
    timer: Any = None


class ModernServer:
    """A modern server as a legacy client sees it.

    `params` are those of the client's `initialize`, `found` is the result of the server's `server/discover`.

    What the client said in `initialize` goes into every request. An `input_required` becomes questions to the client;
    when all are answered the call is repeated with the answers, as one call to whoever made it. What a legacy server
    would announce unasked comes by one `subscriptions/listen` that is kept up to date.
    """

    def __init__(self, bridge: Ends, params: dict[str, Any], found: dict[str, Any]) -> None:
        self._bridge = bridge
        self._capabilities = without_tasks(part(found, "capabilities"))
        self._welcome = _welcome(params, found, self._capabilities)
        self._envelope = envelope_of(params)
        self._legs: dict[int, _Leg] = {}
        """by the number the server knows"""
        self._asking: dict[int, _Leg] = {}
        """by the ids of questions"""
        self._pausing: dict[int, _Leg] = {}
        """by the conversation's number: about to be repeated"""
        self._listening = False
        self._uris: dict[str, None] = {}
        self._subscribing: dict[int, str] = {}
        """`resources/subscribe` of the client that wait for the server's word"""
        self._current = 0
        """the `subscriptions/listen` that is acknowledged"""
        self._next = 0
        """the one that is not yet"""
        self._asked_for: frozenset[str] = frozenset()
        self._stale = False
        self._pause = RELISTEN_S[0]
        self._timer: Any = None
        self._ended = False

    # --- the client's frames ------------------------------------------------------------------------------------

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        """One frame of the client: translated, answered here, or refused."""
        bridge = self._bridge
        if frame is None or frame.kind is Kind.ANSWER:
            answer = answer_of(text)
            if answer is not None:
                self._replied(answer, text)
                return
            frame = frame if frame is not None else frame_of(text)
        if frame is None or frame.kind is not Kind.REQUEST:
            self._client_noticed(frame)
            return
        try:
            self._request(frame, number)
        except No as no:
            bridge.say(error_frame(id_text(number), no.code, no.text, {"by": "aegis"}), number)

    def _client_noticed(self, frame: Frame | None) -> None:
        method = frame.method if frame is not None else ""
        if method == "notifications/initialized":
            self._listening = True
            self._relisten()
        elif frame is not None and method not in ("notifications/roots/list_changed", "notifications/progress"):
            params = cleared(frame.params)
            params = {**params, "_meta": {**meta_of(params), **self._envelope}}
            self._bridge.server.send(*note(method, params))

    def _request(self, frame: Frame, number: int) -> None:
        method, params = frame.method, frame.params
        row = TO_SERVER.get(method)
        if method == "initialize":
            self._done(number, self._welcome)
        elif method == "ping":
            self._done(number)
        elif method == "logging/setLevel":
            if "logging" not in self._capabilities:
                raise No(METHOD_NOT_FOUND, "the server sends no log messages")
            if params.get("level") not in LEVELS:
                raise No(INVALID_PARAMS, f"`level` must be one of {', '.join(LEVELS)}")
            self._envelope[META_LEVEL] = params["level"]
            self._done(number)
        elif method == "resources/subscribe":
            self._subscribe(params.get("uri"), number)
        elif method == "resources/unsubscribe":
            self._uris.pop(str(params.get("uri")), None)
            self._done(number)
            self._relisten()
        elif row is None or not row.legacy or not row.modern or row.subject == "task":
            raise No(METHOD_NOT_FOUND, f"the server speaks MCP {MODERN_VERSION}, which has no `{method[:60]}` as "
                                        "earlier versions know it")  # fmt: skip
        elif "task" in params:
            raise No(INVALID_PARAMS, f"the server speaks MCP {MODERN_VERSION}, which takes no `task`; leave it out")
        else:
            self._forward(_Leg(number, frame), number, {})

    def _done(self, number: int, result: bytes = b"{}") -> None:
        self._bridge.say(result_frame(id_text(number), result), number)

    def _forward(self, leg: _Leg, real: int, more: dict[str, Any]) -> None:
        leg.real = real
        if len(self._legs) >= TRACKED:
            del self._legs[next(iter(self._legs))]
        self._legs[real] = leg
        params = cleared(leg.frame.params)
        params = {**params, **more, "_meta": {**meta_of(params), **self._envelope}}
        self._bridge.server.send(*with_params(leg.frame, real, params))

    def _replied(self, answer: Answer, text: bytes) -> None:
        """The client answers one of our questions."""
        leg = self._asking.pop(answer.id, None) if type(answer.id) is int else None
        if leg is None:
            self._bridge.server.send(text)  # the conversation refuses what the server asked
            return
        key = leg.asked.pop(answer.id)  # type: ignore[arg-type]
        try:
            value = msgspec.json.decode(answer.body)
        except UNREADABLE:
            value = None
        if answer.ok and type(value) is dict:
            leg.responses[key] = value
            if not leg.asked:
                self._repeat(leg)
            return
        # There is no way to tell a modern server of an error, so the call ends with it.
        self._withdraw(leg, "another question of the same call was not answered")
        body = answer.body
        if answer.ok:
            body = encode({"code": INTERNAL_ERROR, "message": "the client's answer to the server's question is none"})
        self._bridge.say(raw_error_frame(id_text(leg.number), body), leg.number)

    def _repeat(self, leg: _Leg) -> None:
        self._pausing.pop(leg.number, None)
        leg.timer = None
        more: dict[str, Any] = {}
        if leg.responses:
            more["inputResponses"], leg.responses = leg.responses, {}
        if leg.state is not None:
            more["requestState"] = leg.state
        self._forward(leg, self._bridge.fresh(), more)

    def _withdraw(self, leg: _Leg, why: str) -> None:
        """Takes back what the client was asked for a call."""
        asked, leg.asked = leg.asked, {}
        for id in asked:
            if self._asking.pop(id, None) is not None:
                self._bridge.say(cancelled(id, why), leg.number)

    def cancel(self, number: int, text: bytes) -> None:
        """The client withdraws its request `number`."""
        bridge = self._bridge
        if self._subscribing.pop(number, None) is not None or not number:
            return
        leg = next((leg for leg in self._legs.values() if leg.number == number), None)
        if leg is not None:
            del self._legs[leg.real]
            real = leg.real
            bridge.server.cancel(real, text if real == number else cancelled(real, "cancelled by the client"))
            return
        leg = self._pausing.pop(number, None)
        leg = leg or next((one for one in self._asking.values() if one.number == number), None)
        if leg is not None:
            if leg.timer is not None:
                leg.timer.cancel()
            self._withdraw(leg, "the call was cancelled")
            bridge.out.on_lost(number, Fault("cancelled", "cancelled while the server waited for the client's answers"))

    # --- the server's frames ------------------------------------------------------------------------------------

    def lines(self, lines: list[bytes], about: int | None) -> None:
        """Frames of the server, on the stream of the request `about`; see `Side`."""
        for line in lines:
            try:
                frame = parse_from_server(line)
            except WireFault as fault:
                self._unreadable(line, fault, about)
                continue
            if type(frame) is Answer:
                self._answered(frame, line, about)
            elif frame.kind is Kind.REQUEST:  # type: ignore[union-attr]
                text = f"a server of MCP {MODERN_VERSION} asks in its answers and sends no requests"
                self._bridge.decline(frame.id or 0, METHOD_NOT_FOUND, text)
            else:
                self._noticed(frame, line, about)  # type: ignore[arg-type]

    def _unreadable(self, line: bytes, fault: WireFault, about: int | None) -> None:
        id = fault.id
        if type(id) is int and not asks(line) and (id in self._legs or id >= OWN):
            self.lost(id, Fault("bad_answer", f"{fault.text}; the answer is withheld, outcome unknown"))
        else:
            self._bridge.say(line, number_of(about, self._legs))

    def _answered(self, answer: Answer, line: bytes, about: int | None) -> None:
        id = answer.id
        leg = self._legs.pop(id, None) if type(id) is int else None
        if leg is None:
            if type(id) is not int or id < OWN:
                self._bridge.say(line, number_of(about, self._legs))
            elif id in (self._current, self._next):
                self._listen_over(id, answer if not answer.ok else None)
            return
        number = leg.number
        if not answer.ok:
            self._bridge.say(answer.with_id(id_text(number)), number)
            return
        try:
            parts = parts_of(answer.body)
            kind = msgspec.json.decode(parts.pop("resultType", b'"complete"'), type=str)
            if kind == "complete":
                self._done(number, legacy_result(leg.frame.method, parts))
            elif kind == "input_required" and leg.frame.method in RESUMABLE:
                self._ask(leg, parts)
            else:
                text = f"the server answered with a result of the type `{kind[:60]}`, which has no equivalent before "
                raise No(INTERNAL_ERROR, f"{text}MCP {MODERN_VERSION}; outcome unknown")
        except No as no:
            self._bridge.say(error_frame(id_text(number), no.code, no.text, {"by": "aegis"}), number)
        except UNREADABLE:
            text = "the server's answer cannot be read; withheld, outcome unknown"
            self._bridge.out.on_lost(number, Fault("bad_answer", text))

    def _ask(self, leg: _Leg, parts: dict[str, bytes]) -> None:
        """Puts what the server wants to know to the client. Raises `No` where that cannot be."""
        bridge = self._bridge
        questions = msgspec.json.decode(parts.get("inputRequests", b"{}"), type=dict[str, Any])
        leg.state = msgspec.json.decode(parts.get("requestState", b"null"), type=str | None)
        leg.rounds += 1
        leg.real = 0
        if len(questions) > ASKS or leg.rounds > ROUNDS:
            raise No(
                INTERNAL_ERROR, f"the server asked for more than {ASKS} things at once or {ROUNDS} times; given up"
            )
        if not questions and leg.state is None:
            raise No(INTERNAL_ERROR, "the server wants something without saying what; outcome unknown")
        asked: list[tuple[int, str, dict[str, Any]]] = []
        for key, ask in questions.items():
            method, params = (ask.get("method"), ask.get("params", {})) if type(ask) is dict else (None, None)
            if type(method) is not str or method not in ASKABLE or type(params) is not dict:
                raise No(INTERNAL_ERROR, "the server asked the client for something that no version knows; given up")
            if not declares(self._envelope[META_CAPABILITIES], method, params):
                raise No(INTERNAL_ERROR, f"the server asked for `{method}`, which the client does not take; given up")
            if params.get("mode") == "url" and "elicitationId" not in params:
                params = {**params, "elicitationId": token_hex(16)}
            id = bridge.fresh()
            leg.asked[id] = key
            asked.append((id, method, params))
        if not asked:
            self._pausing[leg.number] = leg
            leg.timer = bridge.call_later(min(0.05 * leg.rounds, 0.25), partial(self._repeat, leg))
            return
        self._asking.update(dict.fromkeys(leg.asked, leg))
        for id, method, params in asked:
            if id in self._asking:  # a question that is refused at once withdraws the others
                bridge.say(request_frame(id, method, params), leg.number)

    def lost(self, number: int, fault: Fault) -> None:
        """The server will not answer the request it knows by this number."""
        leg = self._legs.pop(number, None)
        if leg is not None:
            self._bridge.out.on_lost(leg.number, fault)
        elif number in (self._current, self._next) and number:
            self._listen_over(number, fault)
        elif number < OWN:
            self._bridge.out.on_lost(number, fault)

    def _noticed(self, frame: Frame, line: bytes, about: int | None) -> None:
        method, params, bridge = frame.method, frame.params, self._bridge
        meta = meta_of(params)
        if META_SUBSCRIPTION in meta:
            id = meta[META_SUBSCRIPTION]
            if type(id) is not int or not id or id not in (self._current, self._next):
                return
            if method == "notifications/subscriptions/acknowledged":
                if id == self._next:
                    self._acknowledged(part(params, "notifications"))
                return
            meta = {key: value for key, value in meta.items() if key != META_SUBSCRIPTION}
            params = {key: value for key, value in params.items() if key != "_meta"}
            bridge.say(encode({**frame.value, "params": {**params, "_meta": meta} if meta else params}), 0)
        elif method == "notifications/cancelled":
            id = params.get("requestId")
            if type(id) is int and id and id in (self._current, self._next):
                self._listen_over(id, None)
        elif method not in ("notifications/subscriptions/acknowledged", "notifications/tasks"):
            bridge.say(line, number_of(about, self._legs))

    # --- subscriptions ------------------------------------------------------------------------------------------

    def _subscribe(self, uri: Any, number: int) -> None:
        if part(self._capabilities, "resources").get("subscribe") is not True:
            raise No(METHOD_NOT_FOUND, "the server offers no subscriptions to resources")
        if type(uri) is not str:
            raise No(INVALID_PARAMS, "`uri` must be a string")
        if uri in self._uris and uri not in self._subscribing.values():
            self._done(number)
            return
        if len(self._uris) >= URIS and uri not in self._uris:
            raise No(INVALID_PARAMS, f"a session may be subscribed to {URIS} resources; unsubscribe from one first")
        self._uris[uri] = None
        self._subscribing[number] = uri
        self._relisten()

    def _relisten(self) -> None:
        """Asks for what is wanted now; the old subscription ends when the new one is acknowledged."""
        bridge = self._bridge
        if self._next:
            self._stale = True
            return
        self._stop_timer()
        self._stale = False
        wanted: dict[str, Any] = {
            flag: True
            for flag, kind in LISTS.items()
            if self._listening and part(self._capabilities, kind).get("listChanged") is True
        }
        if self._uris:
            wanted["resourceSubscriptions"] = list(self._uris)
        self._asked_for = frozenset(self._uris)
        if not wanted:
            self._end_listen()
        elif not self._ended:
            self._next = bridge.fresh()
            params = {"notifications": wanted, "_meta": dict(self._envelope)}
            bridge.server.send(*request(self._next, "subscriptions/listen", params))

    def _end_listen(self) -> None:
        old, self._current = self._current, 0
        if old:
            self._bridge.server.cancel(old, cancelled(old, "replaced"))

    def _acknowledged(self, honoured: dict[str, Any]) -> None:
        self._end_listen()
        self._current, self._next = self._next, 0
        self._pause = RELISTEN_S[0]
        uris = honoured.get("resourceSubscriptions")
        granted = {uri for uri in uris if type(uri) is str} if type(uris) is list else set()
        for number, uri in list(self._subscribing.items()):
            if uri in self._asked_for:
                del self._subscribing[number]
                if uri in granted:
                    self._done(number)
                else:
                    self._uris.pop(uri, None)
                    text = "the server does not announce changes of this resource"
                    self._bridge.say(error_frame(id_text(number), INVALID_PARAMS, text, {"by": "aegis"}), number)
        if self._stale:
            self._relisten()

    def _listen_over(self, id: int, why: Answer | Fault | None) -> None:
        """A subscription ended. One that was refused is not asked for again; else it is, after a while."""
        refused = type(why) is Answer and id == self._next
        if id == self._next:
            self._next = 0
            for number, uri in list(self._subscribing.items()):
                if uri in self._asked_for:
                    del self._subscribing[number]
                    self._uris.pop(uri, None)
                    if type(why) is Answer:
                        self._bridge.say(why.with_id(id_text(number)), number)
                    else:
                        fault = why if type(why) is Fault else Fault("no_answer", "the server ended the subscription")
                        self._bridge.out.on_lost(number, fault)
        else:
            self._current = 0
        if self._stale:
            self._relisten()
        elif not refused and not self._ended and self._timer is None and not self._next:
            self._timer = self._bridge.call_later(self._pause, self._again)
            self._pause = min(2 * self._pause, RELISTEN_S[1])

    def _again(self) -> None:
        self._timer = None
        self._relisten()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def exited(self) -> bool:
        """The server is gone, and the session with it."""
        self.end()
        return False

    def end(self) -> None:
        """Nothing comes any more: timers stop."""
        self._ended = True
        self._stop_timer()
        for leg in self._pausing.values():
            leg.timer.cancel()


def legacy_result(method: str, parts: dict[str, bytes]) -> bytes:
    """A modern server's result as the legacy era has it, where what is structured must be an object."""
    for key in ("ttlMs", "cacheScope"):
        parts.pop(key, None)
    if method == "tools/call" and not bytes(parts.get("structuredContent", b"{")).startswith(b"{"):
        del parts["structuredContent"]
    elif method == "tools/list" and "tools" in parts:
        tools = msgspec.json.decode(parts["tools"], type=list[dict[str, msgspec.Raw]])
        odd = [tool for tool in tools if "outputSchema" in tool and not _is_of_objects(tool["outputSchema"])]
        for tool in odd:
            del tool["outputSchema"]
        if odd:
            parts["tools"] = b"[" + b",".join(map(joined, tools)) + b"]"  # type: ignore[arg-type]
    return joined(parts)


def _is_of_objects(schema: bytes) -> bool:
    found = msgspec.json.decode(schema)
    return type(found) is dict and found.get("type") == "object"


def _welcome(params: dict[str, Any], found: dict[str, Any], capabilities: dict[str, Any]) -> bytes:
    """The result of `initialize`, told from that of `server/discover`."""
    asked = params.get("protocolVersion")
    info = meta_of(found).get(META_SERVER)
    made: dict[str, Any] = {
        "protocolVersion": asked if asked in LEGACY_VERSIONS else LEGACY_VERSIONS[-1],
        "capabilities": capabilities,
        "serverInfo": info if type(info) is dict else {"name": "unknown", "version": "unknown"},
    }
    if type(found.get("instructions")) is str:
        made["instructions"] = found["instructions"]
    return encode(made)
