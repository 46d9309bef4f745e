"""A modern client hears of a legacy server what a modern one would say, and nothing of the legacy era.

Sources: MCP 2025-11-25 `basic/lifecycle`, `client/*`, `server/*`; MCP 2026-07-28 `basic/patterns/mrtr`,
`basic/patterns/subscriptions`, `server/discover`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from secrets import token_urlsafe
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
    cancelled,
    cleared,
    declares,
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
    INVALID_REQUEST,
    Answer,
    Frame,
    Id,
    Kind,
    WireFault,
    asks,
    encode,
    error_frame,
    id_text,
    parse_from_server,
    result_frame,
)
from aegis_daemon.wire.methods import META_CAPABILITIES, META_SUBSCRIPTION, META_VERSION, MODERN_VERSION, TO_SERVER

SUSPENDED: Final = 64
"""How many calls of one session may wait for the retry that brings a client's answers."""
SUSPENDED_S: Final = 600.0
"""How long they wait."""
KEPT: Final = 16 << 20
"""Bytes of questions and late answers that one session may keep."""
EARLY: Final = 8
"""How many questions may wait for the first request that can carry them."""

_CACHEABLE: Final = frozenset(
    {"tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read"}
)


class _Question(msgspec.Struct, eq=False):
    """What a legacy server asks its client: `ask` as it stands in `inputRequests`, in `size` bytes."""

    id: Id
    call: _Call
    ask: dict[str, Any]
    size: int
    put: bool = False
    """the client was given it"""


class _Call(msgspec.Struct, eq=False):
    """A request that the legacy server has. `number` is the conversation's now, 0 while it waits for its retry."""

    number: int
    real: int
    method: str
    digest: bytes
    token: int | str | None
    """under which the server reports progress"""
    wanted: int | str | None
    """under which the client wants it now"""
    capabilities: Any
    level: str | None
    questions: dict[str, _Question] = msgspec.field(default_factory=dict)
    late: bytes = b""
    """the answer that came while the client had questions to answer, without its number"""
    late_ok: bool = True
    again: bool = False
    """the server is done with it and wants it once more when its questions are answered"""
    timer: Any = None


class _Listen(msgspec.Struct, frozen=True):
    """One `subscriptions/listen`: capabilities whose lists are watched, and resources."""

    lists: frozenset[str]
    uris: tuple[str, ...]


class LegacyServer:
    """A legacy server as a modern client sees it; `result` is that of its `initialize`.

    A question of the server ends the client's request with `input_required`, while the server's call stays open until
    the retry brings the answer. Which call a question belongs to is told by the stream it came on, else it is taken
    to be the newest (a stdio server names none).
    """

    def __init__(self, bridge: Ends, result: dict[str, Any]) -> None:
        self._bridge = bridge
        self._version = result["protocolVersion"]
        self._capabilities = without_tasks(part(result, "capabilities"))
        self._discovered = _discovered_from(result, self._capabilities)
        self._calls: dict[int, _Call] = {}
        """by the number the server knows"""
        self._suspended: dict[str, _Call] = {}
        """by `requestState`"""
        self._questions: dict[Id, _Question] = {}
        self._asking: dict[int, _Call] = {}
        """calls with questions that the client was not given yet"""
        self._early: dict[Id, dict[str, Any]] = {}
        """questions for roots that came before any request that could carry them"""
        self._listens: dict[int, _Listen] = {}
        self._level: str | None = None
        self._names = 0

    # --- the client's frames ------------------------------------------------------------------------------------

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        """One frame of the client: translated, answered here, or refused."""
        bridge = self._bridge
        if frame is None:
            frame = frame_of(text)
        if frame is None or frame.kind is not Kind.REQUEST:
            if frame is not None and META_VERSION in meta_of(frame.params):
                bridge.server.send(*note(frame.method, cleared(frame.params)))
            else:
                bridge.server.send(text, frame, number)
            return
        try:
            self._request(frame, number)
        except No as no:
            bridge.say(error_frame(id_text(number), no.code, no.text, {"by": "aegis"}), number)

    def _request(self, frame: Frame, number: int) -> None:
        method, params = frame.method, frame.params
        row = TO_SERVER.get(method)
        if method == "server/discover":
            self._bridge.say(result_frame(id_text(number), self._discovered), number)
        elif method == "subscriptions/listen":
            self._listen(params, number)
        elif row is None or not row.legacy or not row.modern or row.subject == "task":
            text = f"the server speaks MCP {self._version}, which has no `{method[:60]}` as {MODERN_VERSION} knows it"
            raise No(METHOD_NOT_FOUND, text)
        elif "requestState" in params or "inputResponses" in params:
            self._retry(frame, number)
        else:
            self._call(frame, number)

    def _call(self, frame: Frame, number: int) -> None:
        bridge, params = self._bridge, frame.params
        if "task" in params:
            raise No(INVALID_PARAMS, f"a client of {MODERN_VERSION} cannot ask for a task with `task`; leave it out")
        meta = meta_of(params)
        level = self._level_of(meta)
        token = meta.get("progressToken")
        digest = same_call(frame.method, params) if frame.method in RESUMABLE else b""
        capabilities = meta.get(META_CAPABILITIES)
        call = _Call(number, number, frame.method, digest, token, token, capabilities, level)
        if self._early and digest and declares(capabilities, "roots/list", {}) and len(self._suspended) < SUSPENDED:
            early, self._early = self._early, {}
            for id, ask in early.items():
                self._question(call, id, ask, 0)
            call.again = True
            self._suspend(call)
            return
        if len(self._calls) >= TRACKED:
            self._over(next(one for one in self._calls.values() if one.number))
        self._calls[number] = call
        if level is not None and level != self._level and "logging" in self._capabilities:
            self._level = level
            bridge.server.send(*request(bridge.fresh(), "logging/setLevel", {"level": level}))
        plain = cleared(params)
        for key in ("inputResponses", "requestState"):
            plain.pop(key, None)
        bridge.server.send(*with_params(frame, number, plain))

    def _level_of(self, meta: dict[str, Any]) -> str | None:
        level = meta.get(META_LEVEL)
        if level is not None and level not in LEVELS:
            raise No(INVALID_PARAMS, f"`{META_LEVEL}` must be one of {', '.join(LEVELS)}")
        return level

    def _retry(self, frame: Frame, number: int) -> None:
        """The client's answers go to the server, whose call then goes on under the retry's number."""
        params = frame.params
        state, responses = params.get("requestState"), params.get("inputResponses", {})
        call = self._suspended.get(state) if type(state) is str else None
        if type(state) is not str or call is None:
            raise No(INVALID_PARAMS, "`requestState` is unknown, used or too old; repeat the request without it")
        if same_call(frame.method, params) != call.digest:
            raise No(INVALID_PARAMS, "this is not the request that the `requestState` was given to; repeat that one")
        if type(responses) is not dict or not all(type(response) is dict for response in responses.values()):
            raise No(INVALID_PARAMS, "`inputResponses` must hold an object for each question")
        meta = meta_of(params)
        call.level = self._level_of(meta)
        call.wanted, call.capabilities = meta.get("progressToken"), meta.get(META_CAPABILITIES)
        del self._suspended[state]
        call.timer.cancel()
        call.number = number
        if call.late:
            self._over(call)
            make = result_frame if call.late_ok else raw_error_frame
            self._bridge.say(make(id_text(number), call.late), number)
        else:
            self._give_answers(call, responses)
            if call.again and not call.questions:
                self._call(frame, number)

    def _give_answers(self, call: _Call, responses: dict[str, Any]) -> None:
        for key, question in list(call.questions.items()):
            if question.put and key in responses:
                self._drop(key, question)
                self._bridge.server.send(result_frame(id_text(question.id), encode(responses[key])))
        if call.questions:
            self._suspend(call)  # what was left out, or was asked meanwhile, is asked now

    def _find(self, number: int) -> _Call | None:
        call = self._calls.get(number)
        if call is not None and call.number == number:
            return call
        return next((call for call in self._calls.values() if call.number == number), None)

    def cancel(self, number: int, text: bytes) -> None:
        """The client withdraws its request `number`."""
        bridge = self._bridge
        if number in self._listens:
            self._unlisten(number)
            return
        call = self._find(number) if number else None
        if call is not None:
            self._over(call)
            real = call.real
            bridge.server.cancel(real, text if real == number else cancelled(real, "cancelled by the client"))

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
                self._asked(frame, about)  # type: ignore[arg-type]
            else:
                self._noticed(frame, line, about)  # type: ignore[arg-type]
        while self._asking:  # questions that came together are put together
            self._suspend(self._asking.pop(next(iter(self._asking))))

    def _unreadable(self, line: bytes, fault: WireFault, about: int | None) -> None:
        call = self._calls.get(fault.id) if type(fault.id) is int and not asks(line) else None
        if call is not None:
            self.lost(call.real, Fault("bad_answer", f"{fault.text}; the answer is withheld, outcome unknown"))
        elif type(fault.id) is not int or fault.id < OWN:
            self._bridge.say(line, number_of(about, self._calls))  # the conversation knows what to do with it

    def _answered(self, answer: Answer, line: bytes, about: int | None) -> None:
        call = self._calls.get(answer.id) if type(answer.id) is int else None
        if call is None:
            if type(answer.id) is not int or answer.id < OWN:
                self._bridge.say(line, number_of(about, self._calls))
            return
        try:
            ok, body = answer.ok, modern_result(call.method, answer.body) if answer.ok else modern_error(answer.body)
        except (*UNREADABLE, TypeError, KeyError):
            text = "the server's answer is none that a request of this kind may have; withheld, outcome unknown"
            self.lost(call.real, Fault("bad_answer", text))
            return
        if call.number:
            self._over(call)
            if not ok and self._wants_visits(call, answer.body):
                return
            make = result_frame if ok else raw_error_frame
            self._bridge.say(make(id_text(call.number), body), call.number)
            return
        if self._kept() + len(body) > KEPT:
            text = "the answer came before the client's and was too large to be kept; outcome unknown"
            ok, body = False, encode({"code": INTERNAL_ERROR, "message": text, "data": {"by": "aegis"}})
        call.late, call.late_ok = body, ok

    def lost(self, number: int, fault: Fault) -> None:
        """The server will not answer the request it knows by this number."""
        call = self._calls.get(number)
        if call is None:
            if number < OWN:
                self._bridge.out.on_lost(number, fault)
        elif call.number:
            self._over(call)
            self._bridge.out.on_lost(call.number, fault)
        else:
            error = {"code": INTERNAL_ERROR, "message": fault.text, "data": {"by": "aegis", "reason": fault.reason}}
            call.late, call.late_ok = encode(error), False

    def _over(self, call: _Call) -> None:
        """The server's call is over for its client; questions that are left get no answer but an error."""
        self._calls.pop(call.real, None)
        self._asking.pop(call.real, None)
        for key, question in list(call.questions.items()):
            self._drop(key, question)
            self._bridge.decline(question.id, INTERNAL_ERROR, "the request that this belongs to is over")

    def _drop(self, key: str, question: _Question) -> None:
        del question.call.questions[key]
        del self._questions[question.id]

    def _kept(self) -> int:
        return sum(one.size for one in self._questions.values()) + sum(len(call.late) for call in self._calls.values())

    # --- the server's questions ---------------------------------------------------------------------------------

    def _asked(self, frame: Frame, about: int | None) -> None:
        bridge, method, params, id = self._bridge, frame.method, frame.params, frame.id
        assert id is not None
        if method == "ping":
            bridge.reply(result_frame(id_text(id), b"{}"))
            return
        if id in self._questions or id in self._early:
            bridge.decline(id, INVALID_REQUEST, "a request with this id is still open; use each id once")
            return
        call = self._caller(about)
        if method not in ASKABLE or "task" in params:
            what = "a task" if method in ASKABLE else f"`{method[:60]}`"
            bridge.decline(id, METHOD_NOT_FOUND, f"the client speaks MCP {MODERN_VERSION} and cannot be asked {what}")
        elif call is None and method == "roots/list" and not about and len(self._early) < EARLY:
            self._early[id] = {"method": method}  # many servers ask for them as soon as the handshake is over
        elif call is None:
            text = f"no request is open that this belongs to, and a client of {MODERN_VERSION} is asked in no other way"
            bridge.decline(id, INTERNAL_ERROR, text)
        elif not declares(call.capabilities, method, params):
            bridge.decline(id, METHOD_NOT_FOUND, f"the client does not take `{method}` of this kind")
        else:
            ask: dict[str, Any] = {"method": method, "params": params} if params else {"method": method}
            size = len(encode(ask))
            if len(call.questions) >= ASKS or self._kept() + size > KEPT:
                bridge.decline(id, INTERNAL_ERROR, "too many questions are open; wait for answers first")
                return
            self._question(call, id, ask, size)
            if call.number:
                self._asking[call.real] = call

    def _question(self, call: _Call, id: Id, ask: dict[str, Any], size: int) -> None:
        self._names += 1
        call.questions[f"q{self._names}"] = self._questions[id] = _Question(id, call, ask, size)

    def _caller(self, about: int | None) -> _Call | None:
        """The call on whose behalf the server asks."""
        if about:
            call = self._calls.get(about)
            return call if call is not None and call.digest else None
        newest = [call for call in reversed(self._calls.values()) if call.digest and not call.late]
        return next((call for call in newest if call.number), newest[0] if newest else None)

    def _suspend(self, call: _Call) -> None:
        """Ends the client's request with the server's questions; the server's call waits for the retry."""
        bridge = self._bridge
        self._asking.pop(call.real, None)
        if len(self._suspended) >= SUSPENDED:
            for key, question in list(call.questions.items()):
                self._drop(key, question)
                bridge.decline(question.id, INTERNAL_ERROR, "too many calls wait for their clients' answers")
            return
        for question in call.questions.values():
            question.put = True
        self._wait_for_retry(call, {key: question.ask for key, question in call.questions.items()})

    def _wait_for_retry(self, call: _Call, asks: dict[str, dict[str, Any]]) -> None:
        number, call.number = call.number, 0
        state = token_urlsafe(24)
        self._suspended[state] = call
        call.timer = self._bridge.call_later(SUSPENDED_S, partial(self._lapse, state))
        result = {"resultType": "input_required", "inputRequests": asks, "requestState": state}
        self._bridge.say(result_frame(id_text(number), encode(result)), number)

    def _wants_visits(self, call: _Call, body: bytes) -> bool:
        """An error that names pages to visit first is a question in the modern era, and the retry a new call."""
        visits = visits_of(body) if call.digest and len(self._suspended) < SUSPENDED else []
        if not visits or not all(declares(call.capabilities, ask["method"], ask["params"]) for ask in visits):
            return False
        call.again = True
        self._wait_for_retry(call, {f"v{at}": ask for at, ask in enumerate(visits, 1)})
        return True

    def _lapse(self, state: str) -> None:
        """Nobody came back with the answers."""
        call = self._suspended.pop(state)
        answered = bool(call.late) or call.again
        self._over(call)
        if not answered:
            self._bridge.server.cancel(call.real, cancelled(call.real, "the client did not come back with its answers"))

    # --- notifications ------------------------------------------------------------------------------------------

    def _noticed(self, frame: Frame, line: bytes, about: int | None) -> None:
        method, params, bridge = frame.method, frame.params, self._bridge
        if method == "notifications/progress":
            self._progressed(frame, line)
        elif method == "notifications/message":
            call = self._logging(params.get("level"), about)
            if call is not None:
                bridge.say(line, call.number)
        elif method == "notifications/cancelled":
            id = params.get("requestId")
            question = self._questions.get(id) if type(id) is int or type(id) is str else None
            if question is None and type(id) in (int, str):
                self._early.pop(id, None)  # type: ignore[arg-type]
            if question is not None:
                key = next(key for key, one in question.call.questions.items() if one is question)
                self._drop(key, question)
                if not question.call.questions:
                    self._asking.pop(question.call.real, None)
        elif method == "notifications/resources/updated":
            uri = params.get("uri")
            self._tell(frame, lambda listen: type(uri) is str and any(_covers(one, uri) for one in listen.uris))
        elif method.endswith("/list_changed"):
            kind = method.split("/")[1]
            self._tell(frame, lambda listen: kind in listen.lists)
        elif method not in ("notifications/elicitation/complete", "notifications/tasks/status"):
            bridge.say(line, number_of(about, self._calls))

    def _progressed(self, frame: Frame, line: bytes) -> None:
        """Progress goes to whoever holds the call now, under the token that its newest request named."""
        token = frame.params.get("progressToken")
        call = next((c for c in self._calls.values() if type(c.token) is type(token) and c.token == token), None)
        if call is None or not call.number or call.wanted is None:
            return
        if call.wanted != token or type(call.wanted) is not type(token):
            line = encode({**frame.value, "params": {**frame.params, "progressToken": call.wanted}})
        self._bridge.say(line, call.number)

    def _logging(self, level: Any, about: int | None) -> _Call | None:
        """The open request that a log message belongs to, if it wants messages of this level."""
        if level not in LEVELS:
            return None
        calls = [self._calls[about]] if about and about in self._calls else reversed(self._calls.values())
        rank = LEVELS.index(level)
        return next((c for c in calls if c.number and c.level is not None and LEVELS.index(c.level) <= rank), None)

    def _tell(self, frame: Frame, wanted: Callable[[_Listen], bool]) -> None:
        for number, listen in list(self._listens.items()):
            if wanted(listen):
                meta = {**meta_of(frame.params), META_SUBSCRIPTION: number}
                self._bridge.say(encode({**frame.value, "params": {**frame.params, "_meta": meta}}), number)

    # --- subscriptions ------------------------------------------------------------------------------------------

    def _listen(self, params: dict[str, Any], number: int) -> None:
        bridge, wants = self._bridge, params.get("notifications")
        if type(wants) is not dict:
            raise No(INVALID_PARAMS, "`notifications` must be an object that says what to listen to")
        honoured: dict[str, Any] = {
            flag: True
            for flag, kind in LISTS.items()
            if wants.get(flag) is True and part(self._capabilities, kind).get("listChanged") is True
        }
        uris: Any = wants.get("resourceSubscriptions", [])
        if type(uris) is not list or any(type(uri) is not str for uri in uris):
            raise No(INVALID_PARAMS, "`resourceSubscriptions` must be a list of strings")
        if part(self._capabilities, "resources").get("subscribe") is not True:
            uris = []
        uris = tuple(dict.fromkeys(uris))
        before = {uri for listen in self._listens.values() for uri in listen.uris}
        if len(before.union(uris)) > URIS:
            raise No(INVALID_PARAMS, f"a session may be subscribed to {URIS} resources; end a subscription first")
        if uris:
            honoured["resourceSubscriptions"] = list(uris)
        self._listens[number] = _Listen(frozenset(LISTS[flag] for flag in honoured if flag in LISTS), uris)
        told = {"notifications": honoured, "_meta": {META_SUBSCRIPTION: number}}
        bridge.say(note("notifications/subscriptions/acknowledged", told)[0], number)
        for uri in uris:
            if uri not in before:
                bridge.server.send(*request(bridge.fresh(), "resources/subscribe", {"uri": uri}))

    def _unlisten(self, number: int) -> None:
        bridge = self._bridge
        gone = self._listens.pop(number)
        left = {uri for listen in self._listens.values() for uri in listen.uris}
        for uri in gone.uris:
            if uri not in left:
                bridge.server.send(*request(bridge.fresh(), "resources/unsubscribe", {"uri": uri}))
        # Nobody reads it any more, but the call is over and need not be waited for.
        result = {"resultType": "complete", "_meta": {META_SUBSCRIPTION: number}}
        bridge.say(result_frame(id_text(number), encode(result)), number)

    def exited(self) -> bool:
        """The server is gone, and the session with it."""
        self.end()
        return False

    def end(self) -> None:
        """Nothing comes any more: timers stop."""
        for call in self._suspended.values():
            call.timer.cancel()


def same_call(method: str, params: dict[str, Any]) -> bytes:
    """A digest of what a request and its retries have in common."""
    kept = {key: value for key, value in params.items() if key not in ("_meta", "inputResponses", "requestState")}
    return sha256(msgspec.json.encode([method, kept], order="sorted")).digest()


def modern_result(method: str, body: bytes) -> bytes:
    """A legacy server's result as the modern era has it. Raises where it is none."""
    parts = parts_of(body)
    if method == "tools/call" and "content" not in parts and "task" in parts:
        raise ValueError("a task that nobody asked for")
    for key in ("inputRequests", "requestState"):
        parts.pop(key, None)
    parts["resultType"] = b'"complete"'
    if method in _CACHEABLE:
        parts["ttlMs"], parts["cacheScope"] = b"0", b'"private"'
    return joined(parts)


def modern_error(body: bytes) -> bytes:
    """A legacy server's error as the modern era may have it: two codes are retired there."""
    parts = parts_of(body)
    code = {b"-32002": b"-32602", b"-32042": b"-32603"}.get(bytes(parts["code"]))
    return body if code is None else joined({**parts, "code": code})


def visits_of(body: bytes) -> list[dict[str, Any]]:
    """The questions in a legacy error -32042 (pages to visit); none where it is another, or cannot be read."""
    try:
        error = msgspec.json.decode(body)
    except UNREADABLE:
        return []
    found = part(error, "data").get("elicitations")
    if error.get("code") != -32042 or type(found) is not list or len(found) > ASKS:
        return []
    if not all(type(one) is dict and type(one.get("url")) is str and type(one.get("message")) is str for one in found):
        return []
    return [
        {"method": "elicitation/create", "params": {"mode": "url", "message": one["message"], "url": one["url"]}}
        for one in found
    ]


def _discovered_from(result: dict[str, Any], capabilities: dict[str, Any]) -> bytes:
    """The result of `server/discover`, told from that of `initialize`."""
    made: dict[str, Any] = {
        "resultType": "complete",
        "supportedVersions": [MODERN_VERSION],
        "capabilities": capabilities,
        "ttlMs": 0,
        "cacheScope": "private",
    }
    if type(result.get("instructions")) is str:
        made["instructions"] = result["instructions"]
    if type(result.get("serverInfo")) is dict:
        made["_meta"] = {META_SERVER: result["serverInfo"]}
    return encode(made)


def _covers(subscribed: str, uri: str) -> bool:
    """Whether an update of `uri` is one of the resource subscribed to, or of a part of it."""
    return uri == subscribed or uri.startswith(subscribed.rstrip("/") + "/")
