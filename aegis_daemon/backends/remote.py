"""What all servers at an address share: which headers they get, which line answers what, and how they are told lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from aegis_daemon import __version__
from aegis_daemon.backends.http_client import header_lines
from aegis_daemon.core.ports import Fault
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

_OURS: Final = frozenset(
    {
        "accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect",
        "host", "keep-alive", "last-event-id", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id",
        "origin", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_OURS_BEGIN: Final = ("mcp-param-", "sec-websocket-")


def configured(headers: Mapping[str, str]) -> list[bytes]:
    """A backend's own headers as lines. Raises `ValueError` for one that the protocol sets itself, or that is none."""
    for name in headers:
        low = name.lower()
        if low in _OURS or low.startswith(_OURS_BEGIN):
            raise ValueError(f"the header `{name[:60]}` is set by the protocol; take it out of `headers`")
    given = {name.lower() for name in headers}
    mine = {} if "user-agent" in given else {"User-Agent": f"aegis/{__version__}"}
    if len(given) != len(headers):
        raise ValueError("a header is configured twice; keep one")
    return header_lines({**mine, **headers})


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
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        return None
    if type(seen.id) is not int or seen.method is not msgspec.UNSET:
        return None
    return seen.id if (seen.result is msgspec.UNSET) != (seen.error is msgspec.UNSET) else None


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
