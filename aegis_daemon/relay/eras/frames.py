"""How a frame is made, read or stripped on its way between the eras is told here once, by pure functions."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aegis_daemon.wire.jsonrpc import Answer, Frame, Kind, WireFault, encode, parse, parse_from_server
from aegis_daemon.wire.methods import META_CAPABILITIES, META_CLIENT, META_VERSION, MODERN_VERSION

META_SERVER: Final = "io.modelcontextprotocol/serverInfo"
META_LEVEL: Final = "io.modelcontextprotocol/logLevel"
_ENVELOPE: Final = frozenset({META_VERSION, META_CAPABILITIES, META_CLIENT, META_LEVEL})
_TASKS: Final = "io.modelcontextprotocol/tasks"

ASKS: Final = 16
"""How many questions one call may have open."""
TRACKED: Final = 4096
"""How many requests a translator keeps: more than may be open, so that the oldest are some nobody waits for."""
URIS: Final = 256
"""How many resources one session may be subscribed to."""
OWN: Final = 1 << 40
"""From here on count the bridge's own requests; a conversation never gets so far."""

RESUMABLE: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Requests whose answer may be `input_required`."""
ASKABLE: Final = {"sampling/createMessage": "sampling", "elicitation/create": "elicitation", "roots/list": "roots"}
"""What a server may ask in both eras → the capability with which a client allows it."""
LISTS: Final = {"toolsListChanged": "tools", "promptsListChanged": "prompts", "resourcesListChanged": "resources"}
"""What `subscriptions/listen` can ask for → the capability it belongs to."""
LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Of log messages, the least urgent first."""
UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What decoding JSON of another end may raise."""


class No(Exception):
    """A request that is answered here, with an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


# --- frames of our own ------------------------------------------------------------------------------------------------


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


def raw_error_frame(id_json: bytes, body: bytes) -> bytes:
    """An error answer; `body` is the JSON text of an error object."""
    return b"".join((b'{"jsonrpc":"2.0","id":', id_json, b',"error":', body, b"}"))


# --- what is read -----------------------------------------------------------------------------------------------------


def answer_of(line: bytes) -> Answer | None:
    """The answer that a line is; None where it is something else, or cannot be read."""
    try:
        frame = parse_from_server(line)
    except WireFault:
        return None
    return frame if type(frame) is Answer else None


def frame_of(text: bytes) -> Frame | None:
    """A frame of the conversation that came without its judged form; None where it cannot be read."""
    try:
        return parse(text)
    except WireFault:
        return None


def meta_of(params: dict[str, Any]) -> dict[str, Any]:
    """The `_meta` of parameters, empty where there is none."""
    meta = params.get("_meta")
    return meta if type(meta) is dict else {}


def part(value: Any, key: str) -> dict[str, Any]:
    """An object inside an object, empty where either is not one."""
    inner = value.get(key) if type(value) is dict else None
    return inner if type(inner) is dict else {}


def parts_of(body: bytes) -> dict[str, bytes]:
    """A JSON object's members, each as it was written. Raises what is in `UNREADABLE`."""
    return msgspec.json.decode(body, type=dict[str, msgspec.Raw])  # type: ignore[no-any-return]


def joined(parts: dict[str, bytes]) -> bytes:
    """The object of these members."""
    return b"{" + b",".join(encode(key) + b":" + bytes(part) for key, part in parts.items()) + b"}"


def number_of(about: int | None, calls: dict[int, Any]) -> int | None:
    """On which request's behalf a frame came, in the conversation's numbers."""
    if not about:
        return about
    call = calls.get(about)
    return 0 if call is None else call.number


# --- what each era lacks ----------------------------------------------------------------------------------------------


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
    word = ASKABLE[method]
    if type(capabilities) is not dict or type(capabilities.get(word)) is not dict:
        return False
    have = capabilities[word]
    if word == "elicitation":
        # An empty object means forms, which were all there was before 2025-11-25.
        return "url" in have if params.get("mode") == "url" else "form" in have or not have
    return "tools" in have if word == "sampling" and "tools" in params else True


def cleared(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters without the modern envelope."""
    rest = {key: value for key, value in params.items() if key != "_meta"}
    meta = {key: value for key, value in meta_of(params).items() if key not in _ENVELOPE}
    return {**rest, "_meta": meta} if meta else rest


def envelope_of(params: dict[str, Any]) -> dict[str, Any]:
    """The modern envelope of a client that said this in its `initialize`."""
    made: dict[str, Any] = {META_VERSION: MODERN_VERSION, META_CAPABILITIES: offered(params.get("capabilities"))}
    if type(params.get("clientInfo")) is dict:
        made[META_CLIENT] = params["clientInfo"]
    return made
