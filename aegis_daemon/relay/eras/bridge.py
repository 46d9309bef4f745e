"""Between a conversation and its server it is found out once who speaks which era, and who handles the frames then.

The client's first request says which era the client speaks, one request of ours at most what the server speaks; from
then on frames of the same era pass untouched, and others through one of two translators.

Sources: MCP 2025-11-25 `basic/lifecycle`; MCP 2026-07-28 `server/discover` and its section on earlier versions.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aegis_daemon import __version__
from aegis_daemon.core.ports import Fault
from aegis_daemon.relay.eras.frames import (
    OWN,
    answer_of,
    envelope_of,
    frame_of,
    meta_of,
    note,
    offered,
    request,
)
from aegis_daemon.relay.eras.legacy_server import LegacyServer
from aegis_daemon.relay.eras.memory import EraMemory
from aegis_daemon.relay.eras.modern_server import ModernServer
from aegis_daemon.relay.eras.ports import Callbacks, Send, Side
from aegis_daemon.relay.eras.signs import FOREIGN, PLAIN, discovered, era_of_client, foreign_loss, initialized, said
from aegis_daemon.relay.ports import Backend
from aegis_daemon.wire.errors import METHOD_NOT_FOUND
from aegis_daemon.wire.jsonrpc import (
    Answer,
    Frame,
    Id,
    Kind,
    WireFault,
    error_frame,
    id_text,
    parse_from_server,
    result_frame,
)
from aegis_daemon.wire.methods import LEGACY_VERSIONS, META_CAPABILITIES, META_CLIENT, MODERN_VERSION, Era

_log = logging.getLogger("aegis.bridge")

PROBE_S: Final = 30.0
"""How long a server may be silent to `server/discover` before it is taken for one that does not know it.

Nearly all that do not know it say so; one that says nothing is far more often still being installed or started.
"""
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
WAITING_BYTES: Final = 4 << 20
UNREAD: Final = 512
"""How many requests of a server are answered while it does not read."""

_AEGIS: Final = {"name": "aegis", "version": __version__}


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
        self._number = OWN
        self._opened = self._unread = 0
        self._alive: set[_Link] = set()
        self._paused = self._full = self._closing = self._ending = self._ended = self._over = False
        self._code: int | None = None
        self._grace: Any = None
        self._side: Side | None = None
        self.use(_Negotiation(self))
        self.link = self._open()

    @property
    def pid(self) -> int | None:
        """The real server's."""
        return self.link.server.pid

    @property
    def renewals(self) -> int:
        """The real server's."""
        return self.link.server.renewals

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

    def use(self, side: Side) -> None:
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
        answer = answer_of(lines[0])
        if answer is not None and not answer.ok and said(answer.body)[0] in FOREIGN:
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
        self._bytes = 0
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
            if len(self._waiting) < WAITING and self._bytes + len(text) <= WAITING_BYTES:
                self._bytes += len(text)
                self._waiting.append((text, frame, number))
            elif number:
                fault = Fault("too_many", "too many requests wait for the server to begin", not_executed=True)
                bridge.out.on_lost(number, fault)
            return
        opener = frame if frame is not None else frame_of(text)
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
                self._bytes -= len(waiting[0])
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
            answer = answer_of(line) if self.busy else None
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
                side = ModernServer(bridge, self._opener[1].params, found)
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
            if code in FOREIGN and self._left:
                self._refused(REFUSED_S if code in PLAIN else 0.0)
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
            bridge.use(LegacyServer(bridge, result))
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
