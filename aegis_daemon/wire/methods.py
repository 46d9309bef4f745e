"""Every method Aegis lets through has a row here; what has none is denied.

Sources: MCP schemas 2024-11-05 to 2025-11-25 (legacy) and 2026-07-28 (modern), tasks extension.
"""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec

from aegis_daemon.wire.jsonrpc import disguised, word

MODERN_VERSION: Final = "2026-07-28"
LEGACY_VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
META_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
META_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
META_CLIENT: Final = "io.modelcontextprotocol/clientInfo"
META_SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"
RESULT_TYPE: Final = "resultType"
INPUT_REQUESTS: Final = "inputRequests"


class Era(enum.IntEnum):
    """Which protocol a frame speaks; numbers as in the ledger."""

    NONE = 0
    LEGACY = 1
    MODERN = 2


class Direction(enum.Enum):
    """Which way a request travels."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"


class Rule(enum.Enum):
    """What is done with a request."""

    GOVERNED = "governed"
    """judged by name, recorded with its arguments"""
    LIST = "list"
    """passed, its answer filtered item by item"""
    CONTROL = "control"
    """needs the backend to be allowed, has no name"""
    PING = "ping"
    """never judged, queued or recorded"""


class Method(msgspec.Struct, frozen=True):
    """One row: `subject` is what a name means to the rules, `key` the parameter that holds it."""

    name: str
    direction: Direction
    rule: Rule
    legacy: bool
    modern: bool
    subject: str | None = None
    key: str | None = None
    items: str | None = None


_S, _C = Direction.TO_SERVER, Direction.TO_CLIENT
_ROWS: Final = (
    #      name                         way  rule           legacy modern subject     key        items
    Method("initialize",                _S, Rule.CONTROL,  True,  False),
    Method("server/discover",           _S, Rule.CONTROL,  False, True),
    Method("ping",                      _S, Rule.PING,     True,  False),
    Method("logging/setLevel",          _S, Rule.CONTROL,  True,  False),
    Method("tools/list",                _S, Rule.LIST,     True,  True,  "tool",     "name",    "tools"),
    Method("tools/call",                _S, Rule.GOVERNED, True,  True,  "tool",     "name"),
    Method("resources/list",            _S, Rule.LIST,     True,  True,  "resource", "uri",     "resources"),
    Method("resources/templates/list",  _S, Rule.LIST,     True,  True,  "resource", "uriTemplate",
           "resourceTemplates"),
    Method("resources/read",            _S, Rule.GOVERNED, True,  True,  "resource", "uri"),
    Method("resources/subscribe",       _S, Rule.GOVERNED, True,  False, "resource", "uri"),
    Method("resources/unsubscribe",     _S, Rule.GOVERNED, True,  False, "resource", "uri"),
    Method("subscriptions/listen",      _S, Rule.GOVERNED, False, True),
    Method("prompts/list",              _S, Rule.LIST,     True,  True,  "prompt",   "name",    "prompts"),
    Method("prompts/get",               _S, Rule.GOVERNED, True,  True,  "prompt",   "name"),
    Method("completion/complete",       _S, Rule.GOVERNED, True,  True,  "ref",      "ref"),
    Method("tasks/get",                 _S, Rule.GOVERNED, True,  True,  "task",     "taskId"),
    Method("tasks/cancel",              _S, Rule.GOVERNED, True,  True,  "task",     "taskId"),
    Method("tasks/result",              _S, Rule.GOVERNED, True,  False, "task",     "taskId"),
    Method("tasks/list",                _S, Rule.CONTROL,  True,  False),
    Method("tasks/update",              _S, Rule.GOVERNED, False, True,  "task",     "taskId"),
    Method("ping",                      _C, Rule.PING,     True,  False),
    Method("sampling/createMessage",    _C, Rule.GOVERNED, True,  True,  "server_request", None),
    Method("elicitation/create",        _C, Rule.GOVERNED, True,  True,  "server_request", None),
    Method("roots/list",                _C, Rule.GOVERNED, True,  True,  "server_request", None),
    Method("tasks/get",                 _C, Rule.GOVERNED, True,  False, "server_request", None),
    Method("tasks/cancel",              _C, Rule.GOVERNED, True,  False, "server_request", None),
    Method("tasks/result",              _C, Rule.GOVERNED, True,  False, "server_request", None),
    Method("tasks/list",                _C, Rule.GOVERNED, True,  False, "server_request", None),
)  # fmt: skip

TO_SERVER: Final = {row.name: row for row in _ROWS if row.direction is _S}
TO_CLIENT: Final = {row.name: row for row in _ROWS if row.direction is _C}

STEADY: Final = frozenset(name for name, row in TO_SERVER.items() if row.legacy and name != "initialize")
"""Methods that leave a legacy session as it is, unless their `_meta` says otherwise."""

SERVER_REQUESTS: Final = {
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
    "roots/list": "roots",
    "tasks/get": "tasks",
    "tasks/cancel": "tasks",
    "tasks/result": "tasks",
    "tasks/list": "tasks",
}
"""What a server may ask of a client → the word in the configuration that allows it."""


class BadParams(Exception):
    """The parameters that name what a request is about are missing or of another type."""


def subject_of(row: Method, params: dict[str, Any]) -> tuple[str | None, str | None]:
    """What a request is about, as (subject, name); (None, None) for a method without a name.

    Raises `BadParams` where the name is missing or not a string.
    """
    subject = row.subject
    if subject == "tool" and row.rule is Rule.GOVERNED:  # what nearly all calls are
        name = params.get("name")
        if type(name) is str:
            return subject, name
    if subject is None or row.rule is Rule.LIST:
        return None, None
    if subject == "server_request":
        return subject, SERVER_REQUESTS[row.name]
    if subject == "ref":
        ref = params.get("ref")
        if type(ref) is not dict:
            raise BadParams("`ref` must be an object")
        if ref.get("type") == "ref/prompt" and type(ref.get("name")) is str:
            return "prompt", ref["name"]
        if ref.get("type") == "ref/resource" and type(ref.get("uri")) is str:
            return "resource", ref["uri"]
        raise BadParams("`ref` must name a prompt or a resource")
    name = params.get(row.key)  # type: ignore[arg-type]
    if type(name) is not str:
        raise BadParams(f"`{row.key}` must be a string")
    return subject, name


def is_last_word(result: dict[str, Any]) -> bool:
    """Whether a result is complete, and asks the client for nothing, in any spelling that somebody takes for that."""
    asking = (word(RESULT_TYPE), word(INPUT_REQUESTS))
    return result.get(RESULT_TYPE, "complete") == "complete" and not any(
        key != RESULT_TYPE and word(key) in asking for key in result
    )


_SUBSCRIPTIONS: Final = "resourceSubscriptions"
MOST_LISTENED: Final = 256
"""Resources that one request may subscribe to: each of them is looked up by name."""


def listened_resources(params: dict[str, Any]) -> list[str]:
    """The resource URIs a `subscriptions/listen` asks for, wherever the request puts them.

    Raises `BadParams` where they are not strings, or too many.
    """
    found: list[str] = []
    for holder in (params, params.get("notifications")):
        if type(holder) is not dict:
            continue
        if disguised(holder, _SUBSCRIPTIONS):
            raise BadParams("a key looks like `resourceSubscriptions` and is not; spell it as specified")
        uris = holder.get(_SUBSCRIPTIONS)
        if uris is None:
            continue
        if type(uris) is not list or any(type(uri) is not str for uri in uris):
            raise BadParams("`resourceSubscriptions` must be a list of strings")
        found.extend(uris)
        if len(found) > MOST_LISTENED:
            raise BadParams(f"`resourceSubscriptions` may have {MOST_LISTENED} entries; subscribe to fewer at once")
    return found


def era_of(method: str, params: dict[str, Any], current: Era) -> Era:
    """The era of one request: modern if it says so itself, legacy if it is `initialize`, else the session's."""
    meta = params.get("_meta")
    if type(meta) is dict and META_VERSION in meta:
        return Era.MODERN
    if method == "server/discover":
        return Era.MODERN
    if method == "initialize" or current is Era.NONE:
        return Era.LEGACY
    return current
