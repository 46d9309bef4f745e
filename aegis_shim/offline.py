"""Without a daemon every request gets an error that names the fix; nothing is forwarded, and no server is ever run."""

from __future__ import annotations

import posix
import select

from aegis_shim.ledger import Ledger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Protocol
else:
    Protocol = object  # `typing` is too dear for a shim

MAX_LINE = 1024 * 1024  # bytes of a frame, as in the daemon
CHUNK = 65536

UNDONE = "not_executed"
UNKNOWN = "outcome_unknown"

_LOST = {
    UNDONE: (
        "not executed: the aegis daemon went away before this call was forwarded; repeat it",
        True,
    ),
    UNKNOWN: (
        "outcome unknown: the aegis daemon went away after this call was forwarded; check its effect before repeating",
        False,
    ),
}


class Refusal:
    """What every request is told: `message` holds the whole reason and the next step."""

    __slots__ = ("message", "reason", "retryable")

    def __init__(self, message: str, reason: str, retryable: bool) -> None:
        self.message = message
        self.reason = reason
        self.retryable = retryable


class Client(Protocol):
    """What `serve` needs of the shim."""

    def gone(self) -> NoReturn:
        """Nobody reads our answers any more. Raises to leave."""

    def wait(self, fd: int, mask: int, milliseconds: int | None) -> bool:
        """Whether `fd` became ready in time. Raises to leave when a signal came or the client is gone."""

    def connect(self, idle: bool) -> bool:
        """Whether a daemon can be had now; the attempt is cheap. `idle`: no request waits for it."""

    def refusal(self) -> Refusal:
        """Why there is no daemon."""


def serve(client: Client, ledger: Ledger, client_in: int, client_out: int) -> bool:
    """Answers until a daemon can be had (True; unanswered input is in the ledger again) or input ends (False)."""
    posix.set_blocking(client_in, False)
    skipping = ledger.skipping
    offset, data = ledger.take_input()
    start = 0  # of the first line in `data` that is not dealt with
    while True:
        stop = data.find(b"\n", start)
        while stop >= 0:
            # Tried before each line, so that whatever a daemon could still do is left to it.
            if client.connect(False):
                ledger.put_input(offset + start, data[start:], skipping)
                return True
            line = data[start:stop]
            start = stop + 1
            if skipping:
                skipping = False
            else:
                write(client, client_out, answer(line, client.refusal()))
            stop = data.find(b"\n", start)
        offset, data, start = offset + start, data[start:], 0
        if len(data) > MAX_LINE and not skipping:
            write(client, client_out, error(b"null", -32600, f"the frame exceeds {MAX_LINE} bytes; send less at once"))
            skipping = True
        if skipping:
            offset, data = offset + len(data), b""
        if not client.wait(client_in, select.POLLIN, 1000):
            if client.connect(True):
                ledger.put_input(offset, data, skipping)
                return True
            continue
        try:
            chunk = posix.read(client_in, CHUNK)
        except BlockingIOError:
            continue
        except OSError:
            chunk = b""  # a peer that vanished is the end of input too
        if not chunk:
            return False
        data += chunk


def lost(state: str, request_id: bytes) -> bytes:
    """The answer to a request that a lost daemon left open; `state` is UNDONE or UNKNOWN, the id JSON text."""
    message, retryable = _LOST[state]
    return error(request_id, -32603, message, Refusal(message, state, retryable))


def answer(line: bytes, refusal: Refusal) -> bytes:
    """What a line of the client gets: one line, or nothing (a notification, an answer, an empty line)."""
    import json

    if not line.strip(b" \t\r"):
        return b""
    try:
        message = json.loads(line.decode("utf-8"), object_pairs_hook=_Pairs, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return error(b"null", -32700, "the frame is not JSON; send one JSON-RPC message a line")
    if not isinstance(message, list) or not message:
        return _one(message, refusal)
    # A batch. Whether this session may send them is the daemon's business; a client that does waits for its answers.
    answers = [_one(item, refusal).rstrip(b"\n") for item in message]
    answers = [item for item in answers if item]
    return b"[" + b",".join(answers) + b"]\n" if answers else b""


class _Pairs:
    """An object with its keys as they came, repeated ones included."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        self.pairs = pairs

    def all(self, key: str) -> list[object]:
        return [value for name, value in self.pairs if name == key]


def _one(message: object, refusal: Refusal) -> bytes:
    if not isinstance(message, _Pairs):
        return _invalid()
    ids, methods = message.all("id"), message.all("method")
    if not methods and len(ids) == 1 and len(message.all("result")) + len(message.all("error")) == 1:
        return b""  # an answer to a server that is no longer there
    if len(methods) == 1 and isinstance(methods[0], str) and not ids:
        return b""  # a notification
    request_id = _id(ids[0]) if len(ids) == 1 else b""
    if not request_id or len(methods) != 1 or not isinstance(methods[0], str):
        return _invalid(request_id or b"null")
    return error(request_id, -32603, refusal.message, refusal)


def _id(value: object) -> bytes:
    """A legal id as JSON text, or nothing."""
    import json

    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return json.dumps(value).encode()
    return b""


def _invalid(request_id: bytes = b"null") -> bytes:
    return error(request_id, -32600, "the frame is not a JSON-RPC request, notification or answer")


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


def error(request_id: bytes, code: int, message: str, refusal: Refusal | None = None) -> bytes:
    """A JSON-RPC error as one line; the id is JSON text."""
    data = b""
    if refusal is not None:
        retryable = b"true" if refusal.retryable else b"false"
        data = b',"data":{"by":"aegis","reason":%b,"retryable":%b}' % (_quoted(refusal.reason), retryable)
    return b'{"jsonrpc":"2.0","id":%b,"error":{"code":%d,"message":%b%b}}\n' % (
        request_id,
        code,
        _quoted(message),
        data,
    )


def _quoted(text: str) -> bytes:
    """Text as a JSON string, without the cost of importing `json`."""
    out = []
    for c in text:
        if c in '"\\':
            out.append("\\" + c)
        elif " " <= c <= "~":
            out.append(c)
        else:
            units = c.encode("utf-16-be", "surrogatepass")
            out.append("".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)))
    return ('"' + "".join(out) + '"').encode("ascii")


def write(client: Client, fd: int, data: bytes) -> None:
    """All of `data` to the client, however slowly it reads. Raises what `client.wait` raises."""
    posix.set_blocking(fd, False)
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[posix.write(fd, rest) :]
        except BlockingIOError:
            client.wait(fd, select.POLLOUT, None)
        except OSError:
            client.gone()
