"""What all servers at an address share: which headers they get, which line answers what, and how they are told lost."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from aegis_daemon import __version__
from aegis_daemon.backends.http_client import header_lines
from aegis_daemon.core.ports import Fault
from aegis_daemon.loop.descriptor import Outbox
from aegis_daemon.wire.headers import is_protocols_own
from aegis_daemon.wire.jsonrpc import Frame, WireFault, parse

OnLines = Callable[[list[bytes], int | None], None]
OnLost = Callable[[int, Fault], None]

GRACE_S: Final = 2.0
"""Seconds that open requests have when their session ends, as a process has after its stdin was closed."""
FAREWELL_S: Final = 1.0
"""Seconds that a server has to take note of a session's end."""
HELD: Final = 1 << 20
"""Bytes of frames that may wait before a server counts as one that reads too slowly."""
MOST_HELD: Final = 1024
"""Frames that may wait at all."""


def check_names(headers: Mapping[str, str]) -> dict[str, str]:
    """A backend's own headers, with who we are. Raises `ValueError` for one that the protocol sets itself."""
    for name in headers:
        low = name.lower()
        if is_protocols_own(low):
            raise ValueError(f"the header `{name[:60]}` is set by the protocol; take it out of `headers`")
    given = {name.lower() for name in headers}
    if len(given) != len(headers):
        raise ValueError("a header is configured twice; keep one")
    mine = {} if "user-agent" in given else {"User-Agent": f"aegis/{__version__}"}
    return {**mine, **headers}


def configured(headers: Mapping[str, str]) -> bytes:
    """A backend's own headers as they go out. Raises `ValueError` for one that cannot."""
    return b"".join(line + b"\r\n" for line in header_lines(check_names(headers)))


# --- lines --------------------------------------------------------------------------------------------------------


def one_line(body: bytes) -> bytes:
    """JSON text on one line: between its tokens a newline is a space, and within strings there are none."""
    if b"\n" in body or b"\r" in body:
        body = body.replace(b"\n", b" ").replace(b"\r", b" ")
    return body.strip(b" \t") if body[:1] in b" \t" or body[-1:] in b" \t" else body


class _Peek(msgspec.Struct):
    id: int | str | None = None
    method: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Error(msgspec.Struct):
    code: int
    message: str


_peek = msgspec.json.Decoder(_Peek)
_error = msgspec.json.Decoder(_Error)


def answered(line: bytes) -> int | None:
    """The number of the request that a line answers; None for everything else, and what cannot be read."""
    head = line[:48]
    if head.startswith(b'{"jsonrpc":"2.0","id":'):
        digits, comma, rest = head[22:].partition(b",")
        if comma and digits.isdigit() and rest.startswith((b'"result":', b'"error":')):
            return int(digits)
    try:
        seen = _peek.decode(line)
        if not line.isascii():
            line.decode()  # the decoder does not look into what it leaves raw
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        return None
    if type(seen.id) is not int or seen.method is not msgspec.UNSET:
        return None
    return seen.id if seen.result is not msgspec.UNSET or seen.error is not msgspec.UNSET else None


def nameless_error(line: bytes, number: int) -> bytes | None:
    """The error answer that names no request, as one to this request; None for anything else.

    A server that refuses a request before it reads it cannot name it (JSON-RPC 2.0 §5); its stream does.
    """
    try:
        seen = _peek.decode(line)
        if seen.method is not msgspec.UNSET or seen.result is not msgspec.UNSET or seen.error is msgspec.UNSET:
            return None
        if seen.id is not None and seen.id != number:
            return None
        _error.decode(seen.error)
        text = bytes(seen.error)
        text.decode()
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        return None
    return b'{"jsonrpc":"2.0","id":%d,"error":%b}' % (number, text)


def read(text: bytes) -> Frame | None:
    """A frame of ours that came without what was judged."""
    try:
        return parse(text)
    except WireFault:  # larger than a client's may be: an answer
        return None


# --- losses -------------------------------------------------------------------------------------------------------

_UNTOUCHED: Final = frozenset(
    {300, 301, 302, 305, 307, 308, 400, 401, 403, 404, 405, 406, 407, 411, 413, 414, 415, 417, 421, 426, 428, 429, 431}
)
"""Statuses by which a server says that it did not do what was asked. Of any other nobody can tell."""
_ADVICE: Final = {
    401: "check the credentials in the backend's `headers`",
    403: "check what the backend's credentials may do",
    404: "check the backend's `url`",
    405: "check the backend's `url` and `transport`",
    413: "send less at once",
    429: "wait before the next call",
}


def refused(status: int) -> Fault:
    """What a response without an answer in it means for its request; its body stays here."""
    untouched = status in _UNTOUCHED
    advice = _ADVICE.get(status) or ("check the backend's `url`" if 300 <= status < 400 else "ask who runs the server")
    ending = "not executed" if untouched else "outcome unknown"
    return Fault(
        f"http_{status}", f"the server answered with status {status}; {ending}; {advice}", not_executed=untouched
    )


def bad_answer(what: str) -> Fault:
    """The server did something, but what it said of it cannot be used."""
    return Fault("bad_answer", f"{what}; the answer is withheld, outcome unknown")


def too_large() -> Fault:
    """An answer over the limit."""
    return Fault("answer_too_large", "the server's answer is larger than 10 MB and was dropped; ask for less")


_SESSION: Final = re.compile(rb"[\x21-\x7e]{1,1024}")


def is_session_id(text: bytes) -> bool:
    """Whether a server's session id is one (MCP 2025-11-25, session management)."""
    return _SESSION.fullmatch(text) is not None


def withdrawn(not_executed: bool) -> Fault:
    """What becomes of a request that its client cancelled."""
    text = "cancelled before it was sent; not executed" if not_executed else "cancelled; outcome unknown"
    return Fault("cancelled", text, not_executed=not_executed)


def busy() -> Fault:
    """As many frames wait as may."""
    return Fault("busy", "too many frames wait for the server; not executed; try again later", not_executed=True)


# --- one stream for all -------------------------------------------------------------------------------------------


class Channel:
    """A server that says everything on one stream, which is opened for the first frame and is the session.

    A `Backend` (`relay.ports`), but for how the stream is opened, written to, paused and closed.
    """

    pid: int | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        *,
        on_lines: OnLines,
        on_lost: OnLost,
        on_full: Callable[[bool], None],
        on_exit: Callable[[int], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self._outbox = outbox
        self._on_lines = on_lines
        self._on_lost = on_lost
        self._on_full = on_full
        self._on_exit = on_exit
        self._on_failed = on_failed
        self.touched = False
        """whether anything was sent to it"""
        self.renewals = 0
        self.over = False
        self._started = False
        self._ready = False
        self._paused = False
        self._ending = False
        self._full = False
        self._open: set[int] = set()
        self._held: deque[tuple[bytes, int]] = deque()
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def unanswered(self) -> frozenset[int]:
        """The requests that it has, or waits to have, and did not answer."""
        return frozenset(self._open)

    # what a transport does

    def _connect(self) -> None:
        raise NotImplementedError

    def _put(self, text: bytes, number: int) -> None:
        raise NotImplementedError

    def _hold_back(self, paused: bool) -> None:
        raise NotImplementedError

    def _disconnect(self) -> None:
        """Closes the stream; `_ended` may follow, now or later."""
        raise NotImplementedError

    # what the conversation asks

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        """One frame as it goes out; see `relay.ports.Backend`."""
        self.touched = True
        if self.over:
            return
        if number:
            self._open.add(number)
        if self._ready:
            self._put(text, number)
        elif len(self._held) >= MOST_HELD:
            if number:
                self.loop.call_soon(self._lost, number, busy())
        else:
            self._held.append((text, number))
            self._weigh(len(text))
            if not self._started:
                self._started = True
                self._connect()

    def cancel(self, number: int, text: bytes) -> None:
        """Withdraws an open request; `text` says so."""
        self._open.discard(number)
        for at, (held, of) in enumerate(self._held):
            if of == number:
                del self._held[at]
                self._weigh(-len(held))
                self.loop.call_soon(self._lost, number, withdrawn(True))
                return
        self.send(text)

    def pause(self, paused: bool) -> None:
        """Leaves what the server says in the network while nobody takes it."""
        self._paused = paused
        if self._ready:
            self._hold_back(paused)

    def close_stdin(self) -> None:
        """No more frames will come."""

    def end(self) -> None:
        """Ends the session: what is open has GRACE_S to be answered."""
        if self._ending or self.over:
            return
        self._ending = True
        self.pause(False)
        if self._open or self._held:
            self._stop_timer()
            self._timer = self.loop.call_later(GRACE_S, self._leave)
        else:
            self.loop.call_soon(self._leave)

    # what a transport tells

    def _opened(self) -> None:
        """The stream is there: sends what waited."""
        if not self._ending:
            self._stop_timer()
        self._ready = True
        if self._paused:
            self._hold_back(True)
        while self._held and not self.over:
            text, number = self._held.popleft()
            self._weigh(-len(text))
            self._put(text, number)

    def _came(self, lines: list[bytes]) -> None:
        """Frames of the server, on one line each."""
        for line in lines if self._open else ():
            number = answered(line)
            if number is not None:
                self._open.discard(number)
        outbox = self._outbox
        outbox.begin()
        try:
            self._on_lines(lines, None)
        finally:
            outbox.flush()
        if self._ending and not self._open and not self._held:
            self._leave()

    def _lost(self, number: int, fault: Fault) -> None:
        """A request will get no answer."""
        self._open.discard(number)
        if self.over or not number:
            return
        outbox = self._outbox
        outbox.begin()
        try:
            self._on_lost(number, fault)
        finally:
            outbox.flush()

    def _weigh(self, more: int) -> None:
        """So many bytes more, or less, wait to be sent."""
        self._waiting += more
        full = self._waiting > HELD
        if full is not self._full:
            self._full = full
            self._on_full(full)

    def _leave(self) -> None:
        if self.over:
            return
        self._stop_timer()
        self._timer = self.loop.call_later(FAREWELL_S, self._ended, 0)
        self._disconnect()

    def _ended(self, code: int) -> None:
        """The stream is gone: 0 for one that was closed, 1 for one that broke. Before it was there nothing started."""
        if self.over:
            return
        if not self._ready and not self._ending:
            self._fail("the server closed the connection before the session began")
            return
        self.over = True
        self._stop_timer()
        self._outbox.begin()
        try:
            self._on_exit(code)
        finally:
            self._outbox.flush()

    def _fail(self, text: str) -> None:
        """The stream cannot be opened."""
        if self.over:
            return
        if self._ending or self._ready:
            self._ended(1)
            return
        self.over = True
        self._stop_timer()
        self._disconnect()
        self._outbox.begin()
        try:
            self._on_failed(text)
        finally:
            self._outbox.flush()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
