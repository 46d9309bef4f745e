"""Here a client and a server of different eras meet, and each hears its own protocol and nothing of the other's.

A `Bridge` is a backend between a conversation and the real one. The client's first request says which era the client
speaks, one request of ours at most what the server speaks; from then on frames of the same era pass untouched, and
others through one of two translators: `_LegacyServer` for a modern client, `_ModernServer` for a legacy one.

What has no equivalent on the other side is refused with an error that says which era lacks it. Whatever the bridge
asks of a client goes through the conversation like any other question of a server, and whatever it sends to a server
either was judged there or is part of a handshake.

Sources: MCP 2025-11-25 `basic/lifecycle`, `client/*`, `server/*`; MCP 2026-07-28 `basic/index`, `basic/patterns/mrtr`,
`basic/patterns/subscriptions`, `server/discover`, and its section on earlier versions.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from math import inf
from secrets import token_hex, token_urlsafe
from typing import Any, Final, Protocol

import msgspec

from aegis_daemon import __version__
from aegis_daemon.core.ports import Fault
from aegis_daemon.relay.ports import Backend
from aegis_daemon.wire.errors import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, UNSUPPORTED_VERSION
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
    parse,
    parse_from_server,
    request_frame,
    result_frame,
)
from aegis_daemon.wire.methods import (
    LEGACY_VERSIONS,
    META_CAPABILITIES,
    META_SUBSCRIPTION,
    META_VERSION,
    MODERN_VERSION,
    TO_SERVER,
    Era,
)

_log = logging.getLogger("aegis.bridge")

META_CLIENT: Final = "io.modelcontextprotocol/clientInfo"
META_SERVER: Final = "io.modelcontextprotocol/serverInfo"
META_LEVEL: Final = "io.modelcontextprotocol/logLevel"
_ENVELOPE: Final = frozenset({META_VERSION, META_CAPABILITIES, META_CLIENT, META_LEVEL})
_TASKS: Final = "io.modelcontextprotocol/tasks"

PROBE_S: Final = 5.0
"""How long a server may be silent to `server/discover` before it is taken for one that does not know it."""
REFUSED_S: Final = 3600.0
"""How long a server that refused an era is not asked for it again: it may have been renewed meanwhile."""
SILENT_S: Final = 300.0
"""The same for one that only said nothing, which may have been slow."""
GRACE_S: Final = 10.0
"""How long a session that ends while its server's era is being found out waits for that."""
OPENED: Final = 8
"""How often one bridge opens its server."""
WAITING: Final = 512
"""How many frames of a client wait until its server's era is known."""
SUSPENDED: Final = 64
"""How many calls of one session may wait for the retry that brings a client's answers."""
SUSPENDED_S: Final = 600.0
"""How long they wait."""
ASKS: Final = 16
"""How many questions one call may have open."""
ROUNDS: Final = 32
"""How often a modern server may ask again for one call."""
KEPT: Final = 16 << 20
"""Bytes of questions and late answers that one session may keep."""
UNREAD: Final = 512
"""How many requests of a server are answered while it does not read."""
EARLY: Final = 8
"""How many questions may wait for the first request that can carry them."""
TRACKED: Final = 4096
"""How many requests a translator keeps: more than may be open, so that the oldest are some nobody waits for."""
URIS: Final = 256
"""How many resources one session may be subscribed to."""
RELISTEN_S: Final = (1.0, 60.0)
"""The shortest and the longest pause before a subscription that broke is made anew."""
_OWN: Final = 1 << 40
"""From here on count the bridge's own requests; a conversation never gets so far."""

_FOREIGN: Final = frozenset({METHOD_NOT_FOUND, INVALID_PARAMS, INVALID_REQUEST, UNSUPPORTED_VERSION, -32020})
"""Error codes of an `initialize` that say: not in this era (-32020: its mirror headers are missed)."""
_PLAIN: Final = frozenset({METHOD_NOT_FOUND, UNSUPPORTED_VERSION, -32020})
"""Those that no client can bring about by what it says of itself, so that all sessions may go by them."""
_NO_VERDICT: Final = frozenset({"http_401", "http_403", "http_407", "http_408", "http_429"})
_RESUMABLE: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Requests whose answer may be `input_required`."""
_ASKABLE: Final = {"sampling/createMessage": "sampling", "elicitation/create": "elicitation", "roots/list": "roots"}
"""What a server may ask in both eras → the capability with which a client allows it."""
_CACHEABLE: Final = frozenset(
    {"tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read"}
)
_LISTS: Final = {"toolsListChanged": "tools", "promptsListChanged": "prompts", "resourcesListChanged": "resources"}
"""What `subscriptions/listen` can ask for → the capability it belongs to."""
_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
_AEGIS: Final = {"name": "aegis", "version": __version__}
_UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)


# --- what both sides need ---------------------------------------------------------------------------------------------


class Send(Protocol):
    """As `relay.ports.Backend.send`."""

    def __call__(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        """One frame."""
        ...


class Callbacks(msgspec.Struct, frozen=True):
    """What a backend calls; see `relay.ports.Backend`."""

    on_lines: Callable[[list[bytes], int | None], None]
    on_lost: Callable[[int, Fault], None]
    on_full: Callable[[bool], None]
    on_exit: Callable[[int], None]
    on_failed: Callable[[str], None]


class _No(Exception):
    """A request that is answered here, with an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class EraMemory:
    """What one backend was last found to speak, for all its sessions. Times are monotonic seconds."""

    __slots__ = ("_speaks",)

    def __init__(self) -> None:
        self._speaks: dict[Era, tuple[bool, float]] = {}

    def speaks(self, era: Era, now: float) -> bool | None:
        """Whether it does; None where that is not known, or not any more."""
        said, until = self._speaks.get(era, (None, inf))
        return said if now < until else None

    def note(self, era: Era, speaks: bool, until: float = inf) -> None:
        """It does or does not, which holds until then."""
        self._speaks[era] = (speaks, until)

    def forget(self) -> None:
        """What was known does not hold any more."""
        self._speaks.clear()


def request(number: int, method: str, params: dict[str, Any]) -> tuple[bytes, Frame, int]:
    """A request of our own, as a backend's `send` takes it."""
    value = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    return encode(value), Frame(Kind.REQUEST, number, method, params, value), number


def note(method: str, params: dict[str, Any]) -> tuple[bytes, Frame, int]:
    """A notification of our own, as a backend's `send` takes it."""
    value = {"jsonrpc": "2.0", "method": method, "params": params}
    return encode(value), Frame(Kind.NOTIFICATION, None, method, params, value), 0


def with_params(frame: Frame, number: int, params: dict[str, Any]) -> tuple[bytes, Frame, int]:
    """The same request under another number and with other parameters, as a backend's `send` takes it."""
    value = {**frame.value, "id": number, "params": params}
    return encode(value), msgspec.structs.replace(frame, id=number, params=params, value=value, text=b""), number


def cancelled(number: int, why: str) -> bytes:
    """The notification that a request is not wanted any more."""
    return note("notifications/cancelled", {"requestId": number, "reason": why})[0]


def era_of_client(frame: Frame) -> Era:
    """The era a client's request says it speaks; `NONE` where it does not say."""
    if frame.method == "initialize":
        return Era.LEGACY
    return Era.MODERN if META_VERSION in meta_of(frame.params) else Era.NONE


def meta_of(params: dict[str, Any]) -> dict[str, Any]:
    """The `_meta` of parameters, empty where there is none."""
    meta = params.get("_meta")
    return meta if type(meta) is dict else {}


def part(value: Any, key: str) -> dict[str, Any]:
    """An object inside an object, empty where either is not one."""
    inner = value.get(key) if type(value) is dict else None
    return inner if type(inner) is dict else {}


def without_tasks(capabilities: dict[str, Any]) -> dict[str, Any]:
    """Capabilities of either end without tasks, which each era has in a way of its own."""
    kept = {key: value for key, value in capabilities.items() if key != "tasks"}
    if _TASKS in part(kept, "extensions"):
        kept["extensions"] = {key: value for key, value in kept["extensions"].items() if key != _TASKS}
    return kept


def offered(capabilities: Any) -> dict[str, Any]:
    """A client's capabilities as the other era may have them: no tasks, and nobody tells of changed roots."""
    kept = without_tasks(capabilities) if type(capabilities) is dict else {}
    if "listChanged" in part(kept, "roots"):
        kept["roots"] = {key: value for key, value in kept["roots"].items() if key != "listChanged"}
    return kept


def declares(capabilities: Any, method: str, params: dict[str, Any]) -> bool:
    """Whether a client with these capabilities can be asked this."""
    word = _ASKABLE[method]
    if type(capabilities) is not dict or type(capabilities.get(word)) is not dict:
        return False
    have = capabilities[word]
    if word == "elicitation":
        # An empty object means forms, which were all there was before 2025-11-25.
        return "url" in have if params.get("mode") == "url" else "form" in have or not have
    return "tools" in have if word == "sampling" and "tools" in params else True


def foreign_loss(fault: Fault) -> bool:
    """Whether a server that gave this instead of an answer did not understand the request."""
    return fault.reason.startswith("http_4") and fault.reason not in _NO_VERDICT


def parts_of(body: bytes) -> dict[str, bytes]:
    """A JSON object's members, each as it was written. Raises what is in `_UNREADABLE`."""
    return msgspec.json.decode(body, type=dict[str, msgspec.Raw])  # type: ignore[no-any-return]


def joined(parts: dict[str, bytes]) -> bytes:
    """The object of these members."""
    return b"{" + b",".join(encode(key) + b":" + bytes(part) for key, part in parts.items()) + b"}"


def said(body: bytes) -> tuple[int, str]:
    """The code and message of an error object; 0 and nothing where they cannot be read."""
    try:
        error = msgspec.json.decode(body)
        code, text = error["code"], error["message"]
    except (*_UNREADABLE, KeyError, TypeError):
        return 0, ""
    return (code, text) if type(code) is int and type(text) is str else (0, "")


def discovered(body: bytes) -> dict[str, Any] | None:
    """The result of `server/discover` of a server that speaks our modern version, else None."""
    try:
        result = msgspec.json.decode(body)
    except _UNREADABLE:
        return None
    versions = result.get("supportedVersions") if type(result) is dict else None
    return result if type(versions) is list and MODERN_VERSION in versions else None


def initialized(body: bytes) -> dict[str, Any] | None:
    """The result of `initialize` of a server that speaks one of our legacy versions, else None."""
    try:
        result = msgspec.json.decode(body)
    except _UNREADABLE:
        return None
    return result if type(result) is dict and result.get("protocolVersion") in LEGACY_VERSIONS else None


def cleared(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters without the modern envelope."""
    rest = {key: value for key, value in params.items() if key != "_meta"}
    meta = {key: value for key, value in meta_of(params).items() if key not in _ENVELOPE}
    return {**rest, "_meta": meta} if meta else rest


def same_call(method: str, params: dict[str, Any]) -> bytes:
    """A digest of what a request and its retries have in common."""
    kept = {key: value for key, value in params.items() if key not in ("_meta", "inputResponses", "requestState")}
    return sha256(msgspec.json.encode([method, kept], order="sorted")).digest()


def number_of(about: int | None, calls: dict[int, Any]) -> int | None:
    """On which request's behalf a frame came, in the conversation's numbers."""
    if not about:
        return about
    call = calls.get(about)
    return 0 if call is None else call.number


# --- the bridge -------------------------------------------------------------------------------------------------------


class _Side(Protocol):
    """Who handles the frames between the two ends now."""

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None: ...
    def cancel(self, number: int, text: bytes) -> None: ...
    def lines(self, lines: list[bytes], about: int | None) -> None: ...
    def lost(self, number: int, fault: Fault) -> None: ...
    def exited(self) -> bool: ...
    def end(self) -> None: ...


class _Link:
    """One server that the bridge opened; whatever comes of an earlier one goes nowhere."""

    __slots__ = ("bridge", "server")

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.server: Backend

    def lines(self, lines: list[bytes], about: int | None = None) -> None:
        if self.bridge.link is self:
            self.bridge.take(lines, about)

    def lost(self, number: int, fault: Fault) -> None:
        if self.bridge.link is self:
            self.bridge.took_loss(number, fault)

    def full(self, full: bool) -> None:
        if self.bridge.link is self:
            self.bridge.took_full(full)

    def exited(self, code: int) -> None:
        self.bridge.took_exit(self, code)

    def failed(self, text: str) -> None:
        self.bridge.took_failure(self, text)


class Bridge:
    """See the module. `make(**callbacks)` opens the real backend, once more where it met the wrong era first.

    `call_later(seconds, work)` gives back something with `cancel()`; `now()` gives monotonic seconds. What `make`
    raises in the constructor is the caller's; later it ends the session. `on_exit` comes once every server that was
    opened is gone.
    """

    send: Send
    cancel: Callable[[int, bytes], None]
    take: Callable[[list[bytes], int | None], None]
    """where lines of the server go now"""

    def __init__(
        self,
        make: Callable[..., Backend],
        memory: EraMemory,
        *,
        call_later: Callable[[float, Callable[[], None]], Any],
        now: Callable[[], float],
        on_lines: Callable[[list[bytes], int | None], None],
        on_lost: Callable[[int, Fault], None],
        on_full: Callable[[bool], None],
        on_exit: Callable[[int], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self.memory = memory
        self.call_later = call_later
        self.now = now
        self.out = Callbacks(on_lines, on_lost, on_full, on_exit, on_failed)
        self.touched = False
        self._make = make
        self._number = _OWN
        self._opened = self._unread = 0
        self._alive: set[_Link] = set()
        self._paused = self._full = self._closing = self._ending = self._ended = self._over = False
        self._code: int | None = None
        self._grace: Any = None
        self._side: _Side | None = None
        self.use(_Negotiation(self))
        self.link = self._open()

    @property
    def pid(self) -> int | None:
        """The real server's."""
        return self.link.server.pid

    @property
    def server(self) -> Backend:
        """The real one."""
        return self.link.server

    def fresh(self) -> int:
        """A number for a request of the bridge's own."""
        self._number += 1
        return self._number

    # --- for whoever handles the frames -------------------------------------------------------------------------

    def say(self, line: bytes, about: int | None) -> None:
        """One frame for the conversation."""
        self.out.on_lines([line], about)

    def reply(self, text: bytes) -> None:
        """An answer of ours to something the server asked. One that does not read is answered only so often."""
        self._unread = self._unread + 1 if self._full else 0
        if self._unread <= UNREAD:
            self.server.send(text)

    def decline(self, id: Id, code: int, text: str) -> None:
        """The server's request is answered here, with an error."""
        self.reply(error_frame(id_text(id), code, text, {"by": "aegis"}))

    def use(self, side: _Side) -> None:
        """Frames go this way from now on."""
        self._side = side
        self.send, self.cancel, self.take = side.send, side.cancel, side.lines

    def through(self, on_trust: bool = False) -> None:
        """Both ends speak the same era: frames go from one to the other untouched."""
        server = self.server
        self._side = None
        self.send, self.cancel = server.send, server.cancel
        self.take = self._first_lines if on_trust else self.out.on_lines

    def settled(self) -> None:
        """The era is known, or was not to be found out; what waited is on its way."""
        if self._ending or self._closing:
            self._close()
        elif self._paused:
            self.server.pause(True)

    def reopen(self) -> bool:
        """Opens the server anew, since it may be bound to an era by what it heard; False where that cannot be."""
        old = self.link
        if self._opened >= OPENED or self._ended:
            return False
        if old in self._alive:
            old.server.end()
        try:
            self.link = self._open()
        except OSError as error:
            _log.warning("the server could not be opened again: %s", error)
            self.link = old  # whose end is the session's
            return False
        if self._full:
            self.took_full(False)
        return True

    def _open(self) -> _Link:
        link = self.link = _Link(self)
        self._opened += 1
        link.server = self._make(
            on_lines=link.lines, on_lost=link.lost, on_full=link.full, on_exit=link.exited, on_failed=link.failed
        )
        self._alive.add(link)
        return link

    # --- what the real server's end says ------------------------------------------------------------------------

    def _first_lines(self, lines: list[bytes], about: int | None) -> None:
        """A server that was remembered as modern says the first: it may have changed since, and its doors with it."""
        self.through()
        answer = _answer(lines[0])
        if answer is not None and not answer.ok and said(answer.body)[0] in _FOREIGN:
            self.memory.forget()
        self.out.on_lines(lines, about)

    def took_loss(self, number: int, fault: Fault) -> None:
        """A request will get no answer."""
        if self._side is not None:
            self._side.lost(number, fault)
            return
        if foreign_loss(fault):
            self.memory.forget()
        self.out.on_lost(number, fault)

    def took_full(self, full: bool) -> None:
        """The server reads too slowly, or again fast enough."""
        self._full = full
        self.out.on_full(full)

    def took_exit(self, link: _Link, code: int) -> None:
        """A server is gone; the session's is only with the last."""
        self._alive.discard(link)
        if link is self.link and self._code is None:
            if self._side is not None and self._side.exited():
                return
            self._code = code
            self._stop_timers()
            self.use(_Gone(self))
        if self._code is not None and not self._alive and not self._over:
            self._over = True
            self.out.on_exit(self._code)

    def took_failure(self, link: _Link, text: str) -> None:
        """A server could not be started."""
        self._alive.discard(link)
        if link is self.link and not self._over:
            self._over = True
            self._stop_timers()
            self.use(_Gone(self))
            self.out.on_failed(text)
        elif self._code is not None:
            self.took_exit(link, self._code)

    # --- the rest of a backend ----------------------------------------------------------------------------------

    def pause(self, paused: bool) -> None:
        """Stops reading the server, but not while its era is being found out: silence would be misunderstood."""
        self._paused = paused
        side = self._side
        if type(side) is not _Negotiation or side.forwards:
            self.server.pause(paused)

    def close_stdin(self) -> None:
        """No more frames, once those that wait are on their way."""
        self._closing = True
        if not self._deciding():
            self.server.close_stdin()

    def end(self) -> None:
        """Begins the end of every server, once the frames that wait are on their way."""
        if self._ending:
            return
        self._ending = True
        if self._deciding():
            self._grace = self.call_later(GRACE_S, self._close)
        else:
            self._close()

    def _deciding(self) -> bool:
        return type(self._side) is _Negotiation and self._side.deciding

    def _close(self) -> None:
        if not self._ended:
            self.server.close_stdin()
            if self._ending:
                self._ended = True
                self._stop_timers()
                for link in list(self._alive):
                    link.server.end()

    def _stop_timers(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        if self._side is not None:
            self._side.end()


class _Gone:
    """The session's server has ended, while one that was opened before it is still on its way out."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        if number:
            fault = Fault("server_exited", "the server ended before the call was sent; not executed", not_executed=True)
            self._bridge.out.on_lost(number, fault)

    def cancel(self, number: int, text: bytes) -> None:
        pass

    def lines(self, lines: list[bytes], about: int | None) -> None:
        pass

    def lost(self, number: int, fault: Fault) -> None:
        pass

    def exited(self) -> bool:
        return False

    def end(self) -> None:
        pass


def _answer(line: bytes) -> Answer | None:
    try:
        frame = parse_from_server(line)
    except WireFault:
        return None
    return frame if type(frame) is Answer else None


def _read(text: bytes) -> Frame | None:
    """A frame of the conversation that came without its judged form."""
    try:
        return parse(text)
    except WireFault:
        return None


class _Negotiation:
    """Finds out what the server speaks, beginning with what the client does; meanwhile the client's frames wait."""

    def __init__(self, bridge: Bridge, spent: bool = False) -> None:
        self._bridge = bridge
        self._spent = spent
        """the server has heard something of an era it may not speak"""
        self._client = self._trying = Era.NONE
        self._left: deque[Era] = deque()
        self._opener: tuple[bytes, Frame, int]
        self._waiting: list[tuple[bytes, Frame | None, int]] = []
        self._expected = 0
        self._refusal: Answer | Fault | None = None
        """what came of `initialize`"""
        self._timer: Any = None

    @property
    def busy(self) -> bool:
        """Whether it is under way."""
        return self._trying is not Era.NONE

    @property
    def deciding(self) -> bool:
        """Whether something waits for it that was never sent."""
        return bool(self._waiting) or (self._client is Era.LEGACY and self._trying is Era.MODERN)

    @property
    def forwards(self) -> bool:
        """Whether what the server says reaches the conversation."""
        return not self.busy or self._client is self._trying is Era.LEGACY

    # --- the client's frames ------------------------------------------------------------------------------------

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        bridge = self._bridge
        bridge.touched = True
        if self._trying is not Era.NONE:
            if len(self._waiting) < WAITING:
                self._waiting.append((text, frame, number))
            elif number:
                fault = Fault("too_many", "too many requests wait for the server to begin", not_executed=True)
                bridge.out.on_lost(number, fault)
            return
        opener = frame if frame is not None else _read(text)
        era = era_of_client(opener) if opener is not None and opener.kind is Kind.REQUEST else Era.NONE
        if opener is None or era is Era.NONE:
            bridge.server.send(text, frame, number)  # tells nothing, and is of no era that could be translated
            return
        self._begin(era, (text, opener, number))

    def _begin(self, era: Era, opener: tuple[bytes, Frame, int]) -> None:
        bridge = self._bridge
        self._client, self._opener = era, opener
        speaks = bridge.memory.speaks(era, bridge.now())
        if era is Era.MODERN:
            if speaks and not self._spent:
                bridge.through(on_trust=True)
                bridge.send(*opener)
                bridge.settled()
                return
            self._waiting.append(opener)
        other = Era.LEGACY if era is Era.MODERN else Era.MODERN
        self._left.extend((other, era) if speaks is False else (era, other))
        self._next()

    def cancel(self, number: int, text: bytes) -> None:
        for at, waiting in enumerate(self._waiting):
            if number and waiting[2] == number:
                del self._waiting[at]
                fault = Fault("cancelled", "cancelled before the server began; not executed", not_executed=True)
                self._bridge.out.on_lost(number, fault)
                return
        if not self.busy:
            self._bridge.server.cancel(number, text)

    # --- one try after the other --------------------------------------------------------------------------------

    def _next(self) -> None:
        bridge = self._bridge
        if not self._left or (self._spent and not bridge.reopen()):
            self._give_up()
            return
        self._spent = True
        era = self._trying = self._left.popleft()
        frame = self._opener[1]
        if era is Era.MODERN:
            # Nothing of the client's is in it, so that no client can spoil what all sessions go by.
            asking = request(bridge.fresh(), "server/discover", {"_meta": envelope_of({"clientInfo": _AEGIS})})
            if self._left:
                self._timer = bridge.call_later(PROBE_S, self._silent)
        elif self._client is Era.LEGACY:
            asking = self._opener
        else:
            meta = meta_of(frame.params)
            info = meta.get(META_CLIENT)
            params = {
                "protocolVersion": LEGACY_VERSIONS[-1],
                "capabilities": offered(meta.get(META_CAPABILITIES)),
                "clientInfo": info if type(info) is dict else _AEGIS,
            }
            asking = request(bridge.fresh(), "initialize", params)
        self._expected = asking[2]
        bridge.server.send(*asking)

    def _silent(self) -> None:
        self._refused(SILENT_S)

    def _refused(self, trust: float = REFUSED_S) -> None:
        """The server does not speak what was tried, which is remembered so long: the next."""
        bridge = self._bridge
        self._stop_timer()
        if trust:
            bridge.memory.note(self._trying, False, bridge.now() + trust)
        self._next()

    # --- the server's frames ------------------------------------------------------------------------------------

    def lines(self, lines: list[bytes], about: int | None) -> None:
        bridge = self._bridge
        link = bridge.link
        for at, line in enumerate(lines):
            answer = _answer(line) if self.busy else None
            if answer is None or type(answer.id) is not int or answer.id != self._expected:
                self._other(line, about)
                continue
            self._stop_timer()
            self._answered(answer, line, about)
            if bridge.link is link and lines[at + 1 :]:
                bridge.take(lines[at + 1 :], about)
            return

    def _answered(self, answer: Answer, line: bytes, about: int | None) -> None:
        bridge = self._bridge
        era, client = self._trying, self._client
        if era is Era.MODERN:
            found = discovered(answer.body) if answer.ok else None
            if found is None:
                self._refused()
                return
            self._found()
            if client is Era.LEGACY:
                side = _ModernServer(bridge, self._opener[1].params, found)
                bridge.use(side)
                bridge.send(*self._opener)
            else:
                bridge.through()
                if self._opener[1].method == "server/discover" and self._opener in self._waiting:
                    self._waiting.remove(self._opener)
                    bridge.say(answer.with_id(id_text(self._opener[2])), self._opener[2])
        elif not answer.ok:
            self._refusal = answer
            code = said(answer.body)[0]
            if code in _FOREIGN and self._left:
                self._refused(REFUSED_S if code in _PLAIN else 0.0)
            else:
                self._give_up()
            return
        elif client is Era.LEGACY:
            self._found()
            bridge.through()
            bridge.out.on_lines([line], about)
        else:
            result = initialized(answer.body)
            if result is None:
                self._refusal = Fault("unsupported_version", "the server speaks no protocol version that Aegis knows")
                self._give_up()
                return
            self._found()
            bridge.use(_LegacyServer(bridge, result))
            bridge.server.send(*note("notifications/initialized", {}))
        self._flush()

    def _found(self) -> None:
        self._bridge.memory.note(self._trying, True)

    def _other(self, line: bytes, about: int | None) -> None:
        """What a server says before its era is known is for a client of the era it is being tried in."""
        bridge = self._bridge
        if self.forwards:
            bridge.out.on_lines([line], about)
            return
        try:
            frame = parse_from_server(line)
        except WireFault:
            return
        if type(frame) is Frame and frame.kind is Kind.REQUEST and frame.id is not None:
            if frame.method == "ping":
                bridge.reply(result_frame(id_text(frame.id), b"{}"))
            else:
                bridge.decline(frame.id, METHOD_NOT_FOUND, "nothing can be asked before the handshake")

    def lost(self, number: int, fault: Fault) -> None:
        if not self.busy or number != self._expected:
            self._bridge.out.on_lost(number, fault)
            return
        if self._trying is Era.LEGACY:
            self._refusal = fault
        if foreign_loss(fault) and self._left:
            plain = self._trying is Era.MODERN or fault.reason != "http_400"
            self._refused(REFUSED_S if plain else 0.0)
        else:
            # A server that is not there says nothing of its era.
            self._refusal = self._refusal or fault
            self._give_up()

    def exited(self) -> bool:
        if self._trying is Era.MODERN and self._left:
            link = self._bridge.link
            self._refused()  # some servers die of a first message they do not know
            return self._bridge.link is not link
        if self.busy:
            self._bridge.memory.forget()
        self.end()
        return False

    # --- its end ------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        bridge = self._bridge
        waiting, self._waiting = self._waiting, []
        for frame in waiting:
            bridge.send(*frame)
        bridge.settled()

    def _give_up(self) -> None:
        """No era was found: whoever waits is told why, and the next request tries again."""
        bridge = self._bridge
        self._stop_timer()
        bridge.memory.forget()
        bridge.use(_Negotiation(bridge, spent=True))
        why, waiting = self._refusal, self._waiting
        if self._client is Era.LEGACY:
            number = self._opener[2]
            if type(why) is Answer:
                bridge.say(why.with_id(id_text(number)), number)
            else:
                bridge.out.on_lost(number, why if type(why) is Fault else _no_era(""))
        fault = why if type(why) is Fault else _no_era(said(why.body)[1] if type(why) is Answer else "")
        fault = Fault(fault.reason, fault.text, not_executed=True)  # what waits was never sent
        for _, _, number in waiting:
            if number:
                bridge.out.on_lost(number, fault)
        bridge.settled()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        self._stop_timer()
        self._left.clear()


def _no_era(words: str) -> Fault:
    text = f"the server took neither `server/discover` ({MODERN_VERSION}) nor `initialize` (earlier versions)"
    return Fault("no_common_version", f"{text}: {words[:200]}" if words else text, not_executed=True)


def envelope_of(params: dict[str, Any]) -> dict[str, Any]:
    """The modern envelope of a client that said this in its `initialize`."""
    made: dict[str, Any] = {META_VERSION: MODERN_VERSION, META_CAPABILITIES: offered(params.get("capabilities"))}
    if type(params.get("clientInfo")) is dict:
        made[META_CLIENT] = params["clientInfo"]
    return made


# --- a modern client, a legacy server ---------------------------------------------------------------------------------


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


class _LegacyServer:
    """A legacy server as a modern client sees it.

    A question of the server ends the client's request with `input_required`, while the server's call stays open until
    the retry brings the answer. Which call a question belongs to is told by the stream it came on, else it is taken
    to be the newest (a stdio server names none).
    """

    def __init__(self, bridge: Bridge, result: dict[str, Any]) -> None:
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
        bridge = self._bridge
        if frame is None:
            frame = _read(text)
        if frame is None or frame.kind is not Kind.REQUEST:
            if frame is not None and META_VERSION in meta_of(frame.params):
                bridge.server.send(*note(frame.method, cleared(frame.params)))
            else:
                bridge.server.send(text, frame, number)
            return
        try:
            self._request(frame, number)
        except _No as no:
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
            raise _No(METHOD_NOT_FOUND, text)
        elif "requestState" in params or "inputResponses" in params:
            self._retry(frame, number)
        else:
            self._call(frame, number)

    def _call(self, frame: Frame, number: int) -> None:
        bridge, params = self._bridge, frame.params
        if "task" in params:
            raise _No(INVALID_PARAMS, f"a client of {MODERN_VERSION} cannot ask for a task with `task`; leave it out")
        meta = meta_of(params)
        level = self._level_of(meta)
        token = meta.get("progressToken")
        digest = same_call(frame.method, params) if frame.method in _RESUMABLE else b""
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
        if level is not None and level not in _LEVELS:
            raise _No(INVALID_PARAMS, f"`{META_LEVEL}` must be one of {', '.join(_LEVELS)}")
        return level

    def _retry(self, frame: Frame, number: int) -> None:
        """The client's answers go to the server, whose call then goes on under the retry's number."""
        params = frame.params
        state, responses = params.get("requestState"), params.get("inputResponses", {})
        call = self._suspended.get(state) if type(state) is str else None
        if type(state) is not str or call is None:
            raise _No(INVALID_PARAMS, "`requestState` is unknown, used or too old; repeat the request without it")
        if same_call(frame.method, params) != call.digest:
            raise _No(INVALID_PARAMS, "this is not the request that the `requestState` was given to; repeat that one")
        if type(responses) is not dict or not all(type(response) is dict for response in responses.values()):
            raise _No(INVALID_PARAMS, "`inputResponses` must hold an object for each question")
        meta = meta_of(params)
        call.level = self._level_of(meta)
        call.wanted, call.capabilities = meta.get("progressToken"), meta.get(META_CAPABILITIES)
        del self._suspended[state]
        call.timer.cancel()
        call.number = number
        if call.late:
            self._over(call)
            make = result_frame if call.late_ok else _error_frame
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
        elif type(fault.id) is not int or fault.id < _OWN:
            self._bridge.say(line, number_of(about, self._calls))  # the conversation knows what to do with it

    def _answered(self, answer: Answer, line: bytes, about: int | None) -> None:
        call = self._calls.get(answer.id) if type(answer.id) is int else None
        if call is None:
            if type(answer.id) is not int or answer.id < _OWN:
                self._bridge.say(line, number_of(about, self._calls))
            return
        try:
            ok, body = answer.ok, modern_result(call.method, answer.body) if answer.ok else modern_error(answer.body)
        except (*_UNREADABLE, TypeError, KeyError):
            text = "the server's answer is none that a request of this kind may have; withheld, outcome unknown"
            self.lost(call.real, Fault("bad_answer", text))
            return
        if call.number:
            self._over(call)
            if not ok and self._wants_visits(call, answer.body):
                return
            make = result_frame if ok else _error_frame
            self._bridge.say(make(id_text(call.number), body), call.number)
            return
        if self._kept() + len(body) > KEPT:
            text = "the answer came before the client's and was too large to be kept; outcome unknown"
            ok, body = False, encode({"code": INTERNAL_ERROR, "message": text, "data": {"by": "aegis"}})
        call.late, call.late_ok = body, ok

    def lost(self, number: int, fault: Fault) -> None:
        call = self._calls.get(number)
        if call is None:
            if number < _OWN:
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
        if method not in _ASKABLE or "task" in params:
            what = "a task" if method in _ASKABLE else f"`{method[:60]}`"
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
        if level not in _LEVELS:
            return None
        calls = [self._calls[about]] if about and about in self._calls else reversed(self._calls.values())
        rank = _LEVELS.index(level)
        return next((c for c in calls if c.number and c.level is not None and _LEVELS.index(c.level) <= rank), None)

    def _tell(self, frame: Frame, wanted: Callable[[_Listen], bool]) -> None:
        for number, listen in list(self._listens.items()):
            if wanted(listen):
                meta = {**meta_of(frame.params), META_SUBSCRIPTION: number}
                self._bridge.say(encode({**frame.value, "params": {**frame.params, "_meta": meta}}), number)

    # --- subscriptions ------------------------------------------------------------------------------------------

    def _listen(self, params: dict[str, Any], number: int) -> None:
        bridge, wants = self._bridge, params.get("notifications")
        if type(wants) is not dict:
            raise _No(INVALID_PARAMS, "`notifications` must be an object that says what to listen to")
        honoured: dict[str, Any] = {
            flag: True
            for flag, kind in _LISTS.items()
            if wants.get(flag) is True and part(self._capabilities, kind).get("listChanged") is True
        }
        uris: Any = wants.get("resourceSubscriptions", [])
        if type(uris) is not list or any(type(uri) is not str for uri in uris):
            raise _No(INVALID_PARAMS, "`resourceSubscriptions` must be a list of strings")
        if part(self._capabilities, "resources").get("subscribe") is not True:
            uris = []
        uris = tuple(dict.fromkeys(uris))
        before = {uri for listen in self._listens.values() for uri in listen.uris}
        if len(before.union(uris)) > URIS:
            raise _No(INVALID_PARAMS, f"a session may be subscribed to {URIS} resources; end a subscription first")
        if uris:
            honoured["resourceSubscriptions"] = list(uris)
        self._listens[number] = _Listen(frozenset(_LISTS[flag] for flag in honoured if flag in _LISTS), uris)
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
        self.end()
        return False

    def end(self) -> None:
        for call in self._suspended.values():
            call.timer.cancel()


def _error_frame(id_json: bytes, body: bytes) -> bytes:
    return b"".join((b'{"jsonrpc":"2.0","id":', id_json, b',"error":', body, b"}"))


def _covers(subscribed: str, uri: str) -> bool:
    """Whether an update of `uri` is one of the resource subscribed to, or of a part of it."""
    return uri == subscribed or uri.startswith(subscribed.rstrip("/") + "/")


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
    except _UNREADABLE:
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


# --- a legacy client, a modern server ---------------------------------------------------------------------------------


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


class _ModernServer:
    """A modern server as a legacy client sees it.

    What the client said in `initialize` goes into every request. An `input_required` becomes questions to the client;
    when all are answered the call is repeated with the answers, as one call to whoever made it. What a legacy server
    would announce unasked comes by one `subscriptions/listen` that is kept up to date.
    """

    def __init__(self, bridge: Bridge, params: dict[str, Any], found: dict[str, Any]) -> None:
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
        bridge = self._bridge
        if frame is None or frame.kind is Kind.ANSWER:
            answer = _answer(text)
            if answer is not None:
                self._replied(answer, text)
                return
            frame = frame if frame is not None else _read(text)
        if frame is None or frame.kind is not Kind.REQUEST:
            self._client_noticed(frame)
            return
        try:
            self._request(frame, number)
        except _No as no:
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
                raise _No(METHOD_NOT_FOUND, "the server sends no log messages")
            if params.get("level") not in _LEVELS:
                raise _No(INVALID_PARAMS, f"`level` must be one of {', '.join(_LEVELS)}")
            self._envelope[META_LEVEL] = params["level"]
            self._done(number)
        elif method == "resources/subscribe":
            self._subscribe(params.get("uri"), number)
        elif method == "resources/unsubscribe":
            self._uris.pop(str(params.get("uri")), None)
            self._done(number)
            self._relisten()
        elif row is None or not row.legacy or not row.modern or row.subject == "task":
            raise _No(METHOD_NOT_FOUND, f"the server speaks MCP {MODERN_VERSION}, which has no `{method[:60]}` as "
                                        "earlier versions know it")  # fmt: skip
        elif "task" in params:
            raise _No(INVALID_PARAMS, f"the server speaks MCP {MODERN_VERSION}, which takes no `task`; leave it out")
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
        except _UNREADABLE:
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
        self._bridge.say(_error_frame(id_text(leg.number), body), leg.number)

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
        if type(id) is int and not asks(line) and (id in self._legs or id >= _OWN):
            self.lost(id, Fault("bad_answer", f"{fault.text}; the answer is withheld, outcome unknown"))
        else:
            self._bridge.say(line, number_of(about, self._legs))

    def _answered(self, answer: Answer, line: bytes, about: int | None) -> None:
        id = answer.id
        leg = self._legs.pop(id, None) if type(id) is int else None
        if leg is None:
            if type(id) is not int or id < _OWN:
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
            elif kind == "input_required" and leg.frame.method in _RESUMABLE:
                self._ask(leg, parts)
            else:
                text = f"the server answered with a result of the type `{kind[:60]}`, which has no equivalent before "
                raise _No(INTERNAL_ERROR, f"{text}MCP {MODERN_VERSION}; outcome unknown")
        except _No as no:
            self._bridge.say(error_frame(id_text(number), no.code, no.text, {"by": "aegis"}), number)
        except _UNREADABLE:
            text = "the server's answer cannot be read; withheld, outcome unknown"
            self._bridge.out.on_lost(number, Fault("bad_answer", text))

    def _ask(self, leg: _Leg, parts: dict[str, bytes]) -> None:
        """Puts what the server wants to know to the client. Raises `_No` where that cannot be."""
        bridge = self._bridge
        questions = msgspec.json.decode(parts.get("inputRequests", b"{}"), type=dict[str, Any])
        leg.state = msgspec.json.decode(parts.get("requestState", b"null"), type=str | None)
        leg.rounds += 1
        leg.real = 0
        if len(questions) > ASKS or leg.rounds > ROUNDS:
            raise _No(
                INTERNAL_ERROR, f"the server asked for more than {ASKS} things at once or {ROUNDS} times; given up"
            )
        if not questions and leg.state is None:
            raise _No(INTERNAL_ERROR, "the server wants something without saying what; outcome unknown")
        asked: list[tuple[int, str, dict[str, Any]]] = []
        for key, ask in questions.items():
            method, params = (ask.get("method"), ask.get("params", {})) if type(ask) is dict else (None, None)
            if type(method) is not str or method not in _ASKABLE or type(params) is not dict:
                raise _No(INTERNAL_ERROR, "the server asked the client for something that no version knows; given up")
            if not declares(self._envelope[META_CAPABILITIES], method, params):
                raise _No(INTERNAL_ERROR, f"the server asked for `{method}`, which the client does not take; given up")
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
        leg = self._legs.pop(number, None)
        if leg is not None:
            self._bridge.out.on_lost(leg.number, fault)
        elif number in (self._current, self._next) and number:
            self._listen_over(number, fault)
        elif number < _OWN:
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
            raise _No(METHOD_NOT_FOUND, "the server offers no subscriptions to resources")
        if type(uri) is not str:
            raise _No(INVALID_PARAMS, "`uri` must be a string")
        if uri in self._uris and uri not in self._subscribing.values():
            self._done(number)
            return
        if len(self._uris) >= URIS and uri not in self._uris:
            raise _No(INVALID_PARAMS, f"a session may be subscribed to {URIS} resources; unsubscribe from one first")
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
            for flag, kind in _LISTS.items()
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
        self.end()
        return False

    def end(self) -> None:
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
