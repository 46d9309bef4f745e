"""The one parser: whatever it returns was read in exactly one way, and is forwarded as it was judged.

Towards a server a frame is decoded whole, checked against every rule on which two JSON readers are known to
disagree, and later encoded anew from the judged value. Of an answer only the envelope is decoded: its `result`
or `error` passes byte for byte.

Two ways lead to the same judgement. A frame whose bytes equal our own encoding of its decoded value cannot hold a
duplicate key, a number that does not survive, or an unusual spelling, so only the keys have to be looked at
(3 times faster, `scripts/bench`); any other frame goes through a reader that reports duplicates.

Sources: JSON-RPC 2.0 §4, §5; RFC 8259; MCP 2026-07-28 `basic/index`; product contract, hard rule 3.
"""

from __future__ import annotations

import enum
import json
import unicodedata
from collections.abc import Iterable
from typing import Any, Final

import msgspec

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600

MAX_FRAME_IN: Final = 1 << 20
"""Bytes of the largest frame taken from a client (hard rule 12)."""
MAX_FRAME_OUT: Final = 10 << 20
"""Bytes of the largest frame taken from a server (hard rule 12)."""
MAX_DEPTH: Final = 64
MAX_ID: Final = 240
"""Bytes of the longest request id, as JSON text: what a slot of the ledger can hold."""

Id = int | str

ENVELOPE_KEYS: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
PARAM_KEYS: Final = frozenset(
    {
        "_meta", "name", "arguments", "uri", "cursor", "ref", "argument", "context", "level", "requestId", "reason",
        "progressToken", "progress", "total", "protocolVersion", "capabilities", "clientInfo", "taskId", "task",
        "inputResponses", "requestState", "messages", "modelPreferences", "systemPrompt", "includeContext",
        "maxTokens", "tools", "toolChoice", "mode", "message", "requestedSchema", "url", "elicitationId", "roots",
        "inputRequests", "resourceSubscriptions", "taskIds", "notifications",
    }
)  # fmt: skip
"""Keys of `params` that some method or some stage reads: a variant spelling of one is refused."""


class Kind(enum.IntEnum):
    """What a frame is; never two of these."""

    REQUEST = 1
    NOTIFICATION = 2
    ANSWER = 3


class WireFault(Exception):
    """A frame that is refused. `id` is the frame's own where exactly one legal one could be read, else None."""

    def __init__(self, code: int, text: str, id: Id | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.id = id


class Frame(msgspec.Struct, frozen=True):
    """One judged frame: `value` is the whole envelope, unknown fields included, in the order received.

    `text` is our own encoding of it where it came in just that and begins as requests usually do, else empty.
    """

    kind: Kind
    id: Id | None
    method: str
    params: dict[str, Any]
    value: dict[str, Any]
    text: bytes = b""

    def encoded(self, id: Id | None = None) -> bytes:
        """Our own encoding of the judged value, with `id` in place of the frame's own where one is given."""
        if id is None:
            return self.text or encode(self.value)
        if self.text:
            own = len(_HEAD) + len(id_text(self.id))  # type: ignore[arg-type]
            return b"".join((_HEAD, id_text(id), memoryview(self.text)[own:]))
        return encode({**self.value, "id": id})


class Answer(msgspec.Struct, frozen=True):
    """One answer: `before` and `after` are the envelope's bytes around the id, `body` the bytes of result or error."""

    id: Id
    before: bytes
    after: bytes
    ok: bool
    body: bytes

    def with_id(self, id_text: bytes) -> bytes:
        """The same frame, byte for byte, under another id (JSON text)."""
        return self.before + id_text + self.after

    def value(self) -> Any:
        """The decoded result or error object."""
        return msgspec.json.decode(self.body)


_decode = msgspec.json.decode
_encode = msgspec.json.encode
_LINE_SEPARATORS = tuple((chr(code).encode(), b"\\u%04x" % code) for code in (0x2028, 0x2029, 0x85))


def encode(value: Any) -> bytes:
    """JSON text on one line; U+2028, U+2029 and U+0085 escaped, since some readers split lines at them."""
    out = _encode(value)
    if not out.isascii():
        for raw, escaped in _LINE_SEPARATORS:
            if raw in out:
                out = out.replace(raw, escaped)
    return out


def id_text(id: Id) -> bytes:
    """A request id as JSON text."""
    return b"%d" % id if type(id) is int else _encode(id)


def parse(raw: bytes, limit: int = MAX_FRAME_IN) -> Frame:
    """One line, without its newline, as a request or a notification (or an answer, see `parse_answer`).

    Raises `WireFault` with -32700 for what is not JSON and -32600 for JSON that is not exactly one legal frame.
    """
    if len(raw) > limit:
        raise WireFault(INVALID_REQUEST, f"the frame has {len(raw)} bytes and the limit is {limit}; send less at once")
    text = raw
    try:
        value = _decode(raw)
        if _encode(value) != raw:
            value, text = _read_slowly(raw), b""
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError):
        value, text = _read_slowly(raw), b""
    if type(value) is not dict:
        if type(value) is list:
            raise WireFault(INVALID_REQUEST, "a batch is refused; send one message a line")
        raise WireFault(INVALID_REQUEST, "a message must be a JSON object")
    if tuple(value) == _USUAL:
        # Nothing but `params` can hold a fault of keys (twice as fast for what clients send, `scripts/bench` S1).
        version, id, method, params = value.values()
        if version == "2.0" and type(method) is str and type(params) is dict and _is_usual_id(id):
            fault = _fault_in_params(params)
            if fault is not None:
                raise WireFault(INVALID_REQUEST, fault, id)
            return Frame(Kind.REQUEST, id, method, params, value, text if len(raw) <= _KEPT and raw.isascii() else b"")
    fault = _fault_in_keys(value)
    if fault is not None:
        raise WireFault(INVALID_REQUEST, fault, _readable_id(value))
    return _frame(value)


_KEPT = 1 << 18
"""Bytes of the largest frame whose text is kept beside its value while its call is open."""
_USUAL = ("jsonrpc", "id", "method", "params")


def _is_usual_id(id: Any) -> bool:
    if type(id) is int:
        return -(2**63) <= id < 2**63
    return type(id) is str and len(id) <= 39  # at most six bytes each as JSON text, which MAX_ID has room for


def read(raw: bytes, slowly: int = MAX_FRAME_OUT) -> Any:
    """Any JSON text that every reader takes for the same value; keys are not compared. Raises `WireFault`.

    So it does for a text of more than `slowly` bytes that is not spelled as we do: reading one takes 0.1 s a megabyte.
    """
    try:
        value = _decode(raw)
        if _encode(value) == raw:
            return value
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError):
        pass
    if len(raw) > slowly:
        raise WireFault(INVALID_REQUEST, "it is too large for its spelling")
    return _read_slowly(raw)


def _frame(value: dict[str, Any]) -> Frame:
    id = value.get("id")
    if value.get("jsonrpc") != "2.0":
        raise WireFault(INVALID_REQUEST, '`jsonrpc` must be "2.0"', _readable_id(value))
    has_id = "id" in value
    if has_id:
        kind_of_id = type(id)
        if kind_of_id is not int and kind_of_id is not str:
            raise WireFault(INVALID_REQUEST, "a request id must be a string or an integer")
        ordinary = kind_of_id is int and -(2**63) <= id < 2**63  # type: ignore[operator]
        if not ordinary and len(id_text(id)) > MAX_ID:  # type: ignore[arg-type]
            raise WireFault(INVALID_REQUEST, f"a request id may have {MAX_ID} bytes as JSON text; use a shorter one")
    method = value.get("method")
    if "method" in value:
        if type(method) is not str:
            raise WireFault(INVALID_REQUEST, "`method` must be a string", id)
        if "result" in value or "error" in value:
            raise WireFault(INVALID_REQUEST, "a message is a request or an answer, never both", id)
        params = value.get("params")
        if params is None:
            if "params" in value:
                raise WireFault(INVALID_REQUEST, "`params` must be an object; leave it out where there are none", id)
            params = {}
        elif type(params) is not dict:
            raise WireFault(INVALID_REQUEST, "`params` must be an object", id)
        return Frame(Kind.REQUEST if has_id else Kind.NOTIFICATION, id, method, params, value)
    if not has_id:
        raise WireFault(INVALID_REQUEST, "a message needs a `method` or an `id`")
    if ("result" in value) == ("error" in value):
        raise WireFault(INVALID_REQUEST, "an answer has exactly one of `result` and `error`", id)
    if "error" in value and not _is_error(value["error"]):
        raise WireFault(INVALID_REQUEST, "`error` must be an object with an integer `code` and a string `message`", id)
    return Frame(Kind.ANSWER, id, "", {}, value)


def _is_error(error: Any) -> bool:
    return type(error) is dict and type(error.get("code")) is int and type(error.get("message")) is str


def _readable_id(value: dict[str, Any]) -> Id | None:
    id = value.get("id")
    try:
        if (type(id) is int or type(id) is str) and len(id_text(id)) <= MAX_ID and _variants(value, _ID_ONLY) is None:
            return id
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    return None


# --- keys ---------------------------------------------------------------------------------------------------------

_ID_ONLY = frozenset({"id"})
_CLEAN_MAX = 8192
_clean: set[tuple[str, ...]] = set()
_clean_envelopes: set[tuple[str, ...]] = set()
_clean_params: set[tuple[str, ...]] = set()


_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0") | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)
"""Default_Ignorable_Code_Point beyond the format characters: joiners, fillers and variation selectors."""


def fold(key: str) -> str:
    """What a careless reader may take a key for: NFKC, case-folded, control and invisible characters dropped."""
    if key.isascii() and key.isprintable():
        return key.lower()
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", key).casefold())
    seen = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf") and c not in _UNSEEN)
    return unicodedata.normalize("NFKC", seen)


_folded_names: dict[frozenset[str], dict[str, str]] = {
    names: {fold(name): name for name in names} for names in (ENVELOPE_KEYS, PARAM_KEYS, _ID_ONLY)
}
_folded_names[PARAM_KEYS] |= {"input_requests": "inputRequests", "input_responses": "inputResponses"}


def _variants(keys: Any, known: frozenset[str]) -> str | None:
    """The first key that is not `known` but folds to one that is."""
    folded = _folded_names[known]
    for key in keys:
        if key not in known and fold(key) in folded:
            return str(key)
    return None


def word(key: str) -> str:
    """The same, for readers that take `snake_case` for `camelCase`, too (Python SDKs may)."""
    return fold(key).replace("_", "").replace("-", "")


def disguised(keys: Iterable[str], name: str) -> bool:
    """Whether one of the keys is a variant spelling of `name`."""
    folded = fold(name)
    return any(key != name and fold(key) == folded for key in keys)


def _remember(cache: set[tuple[str, ...]], keys: tuple[str, ...]) -> None:
    # Bounded both ways, so that an agent that invents keys costs itself time and us no memory.
    if len(cache) < _CLEAN_MAX and len(keys) <= 32 and sum(map(len, keys)) <= 512:
        cache.add(keys)


def _siblings(keys: tuple[str, ...]) -> str | None:
    if len({fold(key) for key in keys}) != len(keys):
        return "two keys of one object differ only in case, width or invisible characters; rename one"
    return None


def _fault_in_keys(envelope: dict[str, Any]) -> str | None:
    # Each set of keys that was found clean is remembered, so a frame like earlier ones costs a look-up per object.
    keys = tuple(envelope)
    if keys not in _clean_envelopes:
        odd = _variants(keys, ENVELOPE_KEYS)
        if odd is not None:
            return f"the key {odd[:60]!a} looks like a key of the protocol and is not; spell it as specified"
        fault = _siblings(keys)
        if fault is not None:
            return fault
        _remember(_clean_envelopes, keys)
    for key, item in envelope.items():
        kind = type(item)
        if kind is dict and key == "params":
            fault = _fault_in_params(item)
        elif kind is dict or kind is list:
            fault = _walk(item, 2)
        else:
            continue
        if fault is not None:
            return fault
    return None


def _fault_in_params(params: dict[str, Any]) -> str | None:
    keys = tuple(params)
    if keys not in _clean_params:
        odd = _variants(keys, PARAM_KEYS)
        if odd is not None:
            text = "looks like a key of the protocol and is not; spell it as specified"
            return f"the key {odd[:60]!a} in `params` {text}"
        fault = _siblings(keys)
        if fault is not None:
            return fault
        _remember(_clean_params, keys)
    for item in params.values():
        kind = type(item)
        if kind is dict or kind is list:
            fault = _walk(item, 3)
            if fault is not None:
                return fault
    return None


def _walk(value: Any, depth: int) -> str | None:
    if depth > MAX_DEPTH:
        return f"the message is nested deeper than {MAX_DEPTH} levels; flatten it"
    if type(value) is dict:
        keys = tuple(value)
        if keys not in _clean:
            fault = _siblings(keys)
            if fault is not None:
                return fault
            _remember(_clean, keys)
        items: Any = value.values()
    else:
        items = value
    for item in items:
        kind = type(item)
        if kind is dict or kind is list:
            fault = _walk(item, depth + 1)
            if fault is not None:
                return fault
    return None


# --- the slow way -------------------------------------------------------------------------------------------------


class _Reader:
    """A reader of whole JSON texts that notices what `dict` forgets."""

    def __init__(self) -> None:
        self.fault: tuple[int, str] | None = None
        self.last: list[tuple[str, Any]] = []

    def read(self, text: str) -> Any:
        # Nothing here holds the decoder, which holds this: a cycle would keep the whole frame until a collection.
        decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_float=self._float, parse_int=self._int, parse_constant=self._constant
        )
        return decoder.decode(text)

    def _note(self, code: int, text: str) -> None:
        if self.fault is None:
            self.fault = (code, text)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            self._note(INVALID_REQUEST, "a key occurs twice in one object; send it once")
        self.last = pairs
        return made

    def _float(self, text: str) -> float:
        number = float(text)
        if number in (float("inf"), float("-inf")):
            self._note(INVALID_REQUEST, "a number is too large to survive; send it as a string")
            return 0.0
        return number

    def _int(self, text: str) -> int | None:
        try:
            return int(text)
        except ValueError:  # more digits than the interpreter converts
            self._note(INVALID_REQUEST, "an integer has too many digits; send it as a string")
            return None  # not a number that could be an id

    def _constant(self, text: str) -> None:
        self._note(PARSE_ERROR, f"{text} is not JSON")


def _read_slowly(raw: bytes) -> Any:
    if raw.startswith(b"\xef\xbb\xbf"):
        raise WireFault(PARSE_ERROR, "the message begins with a byte order mark; send plain UTF-8")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise WireFault(PARSE_ERROR, "the message is not UTF-8") from None
    reader = _Reader()
    try:
        value = reader.read(text)
    except RecursionError:
        raise WireFault(INVALID_REQUEST, f"the message is nested deeper than {MAX_DEPTH} levels; flatten it") from None
    except ValueError:
        raise WireFault(PARSE_ERROR, "the message is not JSON") from None
    if type(value) is dict:
        ids = [item for key, item in reader.last if key == "id"]
        id = _readable_id(value) if len(ids) == 1 else None
    else:
        id = None
    if reader.fault is not None:
        raise WireFault(*reader.fault, id)
    try:
        _encode(value)
    except (UnicodeEncodeError, RecursionError):
        raise WireFault(
            INVALID_REQUEST, "a string holds half of a surrogate pair, or nesting is too deep", id
        ) from None
    return value


# --- answers ------------------------------------------------------------------------------------------------------


class _Lean(msgspec.Struct):
    jsonrpc: str
    id: int | str | None = None
    method: str | None = None
    result: msgspec.Raw = msgspec.Raw(b"")


_lean = msgspec.json.Decoder(_Lean)
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw])
_HEAD = b'{"jsonrpc":"2.0","id":'
_RESULT = b',"result":'
_TAIL_HEAD = b'{"result":'
_TAIL = b',"jsonrpc":"2.0","id":'


def parse_from_server(raw: bytes, limit: int = MAX_FRAME_OUT) -> Answer | Frame:
    """One line of a server: an `Answer`, or a request or notification judged as strictly as a client's.

    Raises `WireFault`; its id names the call that can be told so.
    """
    if len(raw) > limit:
        raise WireFault(INVALID_REQUEST, f"the server's frame has {len(raw)} bytes and the limit is {limit}")
    try:
        if not raw.isascii():
            raw.decode("utf-8")
        lean = _lean.decode(raw)
    except UnicodeDecodeError:
        raise WireFault(PARSE_ERROR, "the server's frame is not UTF-8", _guess_id(raw)) from None
    except (msgspec.DecodeError, RecursionError, ValueError):
        return _parse_server_slowly(raw, limit)
    if lean.method is not None:
        return parse(raw, limit)
    id = lean.id
    body = lean.result
    size = len(body)
    if size and id is not None and lean.jsonrpc == "2.0":
        text = b"%d" % id if type(id) is int else _encode(id)
        # The two spellings that servers use. Equal lengths leave no room for a second `result`, space or other key.
        at = len(_HEAD) + len(text) + len(_RESULT)
        if len(raw) == at + size + 1 and raw.startswith(_HEAD + text + _RESULT):
            return Answer(id, _HEAD, raw[len(_HEAD) + len(text) :], True, raw[at : at + size])
        tail = _TAIL + text + b"}"
        if len(raw) == len(_TAIL_HEAD) + size + len(tail) and raw.startswith(_TAIL_HEAD) and raw.endswith(tail):
            end = len(_TAIL_HEAD) + size
            return Answer(id, raw[: end + len(_TAIL)], b"}", True, raw[len(_TAIL_HEAD) : end])
    return _parse_server_slowly(raw, limit)


def _parse_server_slowly(raw: bytes, limit: int) -> Answer | Frame:
    reader = _Reader()
    try:
        value = reader.read(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise WireFault(PARSE_ERROR, "the server's frame is not JSON", _guess_id(raw)) from None
    if type(value) is not dict or "method" in value:
        return parse(raw, limit)
    pairs = reader.last
    ids = [item for key, item in pairs if key == "id"]
    id = ids[0] if len(ids) == 1 and (type(ids[0]) is int or type(ids[0]) is str) else None
    if len(dict(pairs)) != len(pairs) or _variants([key for key, _ in pairs], ENVELOPE_KEYS) is not None:
        raise WireFault(INVALID_REQUEST, "the server's frame has an ambiguous envelope", id)
    if value.get("jsonrpc") != "2.0" or ("result" in value) == ("error" in value):
        raise WireFault(INVALID_REQUEST, "the server's frame is neither a request nor an answer", id)
    if "error" in value and not _is_error(value["error"]):
        raise WireFault(INVALID_REQUEST, "the server's `error` has no integer `code` and string `message`", id)
    if id is None:
        raise WireFault(INVALID_REQUEST, "the server's answer names no request")
    try:
        parts = _parts.decode(raw)
    except (msgspec.DecodeError, RecursionError, ValueError):  # NaN and the like inside the result
        raise WireFault(PARSE_ERROR, "the server's frame is not JSON", id) from None
    body = bytes(parts["result"] if "result" in parts else parts["error"])
    before: list[bytes] = []
    after: list[bytes] = []
    into = before
    for key, part in parts.items():
        into.append((b"{" if not before else b",") + _encode(key) + b":")
        if key == "id":
            into = after
        else:
            into.append(bytes(part))
    return Answer(id, b"".join(before), b"".join(after) + b"}", "result" in value, body)


class _Method(msgspec.Struct):
    method: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_method = msgspec.json.Decoder(_Method)


def asks(raw: bytes) -> bool:
    """Whether a frame that was refused names a method, and so is no answer."""
    try:
        return _method.decode(raw).method is not msgspec.UNSET
    except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
        return b'"method"' in raw.partition(b'"result"')[0]  # not JSON, so no more than a guess


def _guess_id(raw: bytes) -> Id | None:
    """The id of a frame that cannot be read, told from its envelope's usual places: only ever used to name a call."""
    for start, stop in ((raw.find(_HEAD), len(_HEAD)), (raw.rfind(_TAIL), len(_TAIL))):
        if start < 0:
            continue
        digits = raw[start + stop : start + stop + 24].split(b",", 1)[0].split(b"}", 1)[0]
        if digits.isdigit():
            return int(digits)
    return None


def guess_id(head: bytes, tail: bytes) -> Id | None:
    """The id of a frame of which only the beginning and the end were kept (it was too large)."""
    return _guess_id(head) if head.startswith(_HEAD) else _guess_id(tail)


# --- frames of our own --------------------------------------------------------------------------------------------


def result_frame(id_json: bytes, result: bytes) -> bytes:
    """An answer of ours: `result` is JSON text."""
    return b"".join((_HEAD, id_json, _RESULT, result, b"}"))


def error_frame(id_json: bytes, code: int, message: str, data: dict[str, Any] | None = None) -> bytes:
    """An error answer; `id_json` is b"null" where the id could not be read."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return b"".join((_HEAD, id_json, b',"error":', encode(error), b"}"))


def notification_frame(method: str, params: dict[str, Any]) -> bytes:
    """A notification of ours."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params})


def request_frame(id: Id, method: str, params: dict[str, Any]) -> bytes:
    """A request of ours."""
    return encode({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
