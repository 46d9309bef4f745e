"""The mirror headers of a modern request say what its body says, whichever way it travels.

Sources: MCP 2026-07-28 `basic/transports/streamable-http` (request metadata, custom headers from tool parameters,
value encoding); tasks extension (`Mcp-Name` holds the task's id); RFC 9110 §5.5, §5.6.2.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from aegis_daemon.wire.jsonrpc import Frame, Kind
from aegis_daemon.wire.methods import META_VERSION

HEADER_MISMATCH: Final = -32020

VERSION_HEADER: Final = "MCP-Protocol-Version"
METHOD_HEADER: Final = "Mcp-Method"
NAME_HEADER: Final = "Mcp-Name"
PARAM_PREFIX: Final = "Mcp-Param-"
ANNOTATION: Final = "x-mcp-header"

NAMED: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""Method → the parameter that `Mcp-Name` repeats."""
TASKS: Final = {"tasks/get": "taskId", "tasks/update": "taskId", "tasks/cancel": "taskId"}
"""The same of the tasks extension, which a client of the core protocol need not know: checked only where it is sent."""

_ROUTING: Final = frozenset({VERSION_HEADER.lower(), METHOD_HEADER.lower(), NAME_HEADER.lower()})
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DECIMAL: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_HEAD, _TAIL = "=?base64?", "?="
_MIRRORABLE: Final = frozenset({"string", "integer", "boolean"})  # of floats no two readers print the same
_MOST_DIGITS: Final = 4300
"""Digits that the interpreter converts between text and integer."""


_OWN: Final = frozenset(
    {
        "accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect",
        "host", "keep-alive", "last-event-id", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id",
        "origin", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip


def is_protocols_own(name: str) -> bool:
    """Whether a header is one that HTTP or MCP sets, so that no configuration may."""
    return name.lower() in _OWN or name.lower().startswith(("mcp-param-", "sec-websocket-"))


class Param(msgspec.Struct, frozen=True):
    """One annotated parameter of a tool: where it is in `arguments`, its header, and the type it was declared with."""

    path: tuple[str, ...]
    header: str
    kind: str


class BadAnnotation(ValueError):
    """A tool's annotations break the rules: a client leaves such a tool out, and nobody mirrors anything for it."""


# --- values -------------------------------------------------------------------------------------------------------


def encoded(value: str) -> str:
    """A value as it stands in a header: itself where that survives, else in base64 between marks."""
    plain = value.isascii() and value.isprintable() and value == value.strip(" ")
    if not value or (plain and not _is_marked(value)):
        return value
    return f"{_HEAD}{base64.b64encode(value.encode()).decode()}{_TAIL}"


def decoded(value: str) -> str | None:
    """The inverse of `encoded`; None for what no encoder writes, so that it equals nothing."""
    if not _is_marked(value):
        return value
    payload = value[len(_HEAD) : -len(_TAIL)]
    try:
        raw = base64.b64decode(payload, validate=True)
        # One value has one spelling: bits that decoding drops are refused.
        return raw.decode() if base64.b64encode(raw).decode() == payload else None
    except (binascii.Error, ValueError):
        return None


def _is_marked(value: str) -> bool:
    return value.startswith(_HEAD) and value.endswith(_TAIL) and len(value) >= len(_HEAD) + len(_TAIL)


def _text_of(value: Any) -> str | None:
    """A scalar as its header shows it before it is encoded; None for what has no such text."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return "true" if value else "false"
    if kind is int or kind is float:
        try:
            return str(value)
        except ValueError:  # more digits than the interpreter prints
            return None
    return None


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if type(arguments) is not dict:
            return None
        arguments = arguments.get(key)
    return arguments


# --- annotations --------------------------------------------------------------------------------------------------

_ONE: Final = frozenset(
    {
        "items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames", "unevaluatedProperties",
        "not", "if", "then", "else", "contentSchema",
    }
)  # fmt: skip
_SEVERAL: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_BY_NAME: Final = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})


def _positions(schema: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """Every place of a JSON Schema that holds a schema, with its path of `properties` alone, or None off that path.

    Data (`default`, `enum`, …) is not entered and `$ref` not followed, so this ends on whatever a server sends.
    """
    rest: list[tuple[tuple[str, ...] | None, Any]] = [((), schema)]
    while rest:
        path, node = rest.pop()
        if type(node) is not dict:
            continue
        yield path, node
        for key, value in node.items():
            if key == "properties" and type(value) is dict:
                rest += [(None if path is None else (*path, name), inner) for name, inner in value.items()]
            elif key in _ONE:
                rest.append((None, value))
            elif key in _SEVERAL and type(value) is list:
                rest += [(None, inner) for inner in value]
            elif key in _BY_NAME and type(value) is dict:
                rest += [(None, inner) for inner in value.values()]


def annotated(tool: dict[str, Any]) -> tuple[Param, ...]:
    """The parameters that a tool definition wants mirrored. Raises `BadAnnotation`."""
    found: dict[str, Param] = {}
    for path, schema in _positions(tool.get("inputSchema")):
        if ANNOTATION not in schema:
            continue
        if not path:
            raise BadAnnotation(f"`{ANNOTATION}` stands where no path of `properties` leads")
        where = ".".join(path)[:100]
        name, kind = schema[ANNOTATION], schema.get("type")
        if type(name) is not str or not _TOKEN.fullmatch(name):
            raise BadAnnotation(f"`{ANNOTATION}` of {where!a} is no name of a header (RFC 9110 token)")
        if type(kind) is not str or kind not in _MIRRORABLE:
            raise BadAnnotation(f"`{ANNOTATION}` of {where!a} needs the type string, integer or boolean")
        if name.lower() in found:
            raise BadAnnotation(f"`{ANNOTATION}` of {where!a} names a header that another parameter has")
        found[name.lower()] = Param(path, PARAM_PREFIX + name, kind)
    return tuple(found.values())


# --- a request's headers ------------------------------------------------------------------------------------------


def is_modern(frame: Frame) -> bool:
    """Whether a frame says itself that it is of the modern era."""
    meta = frame.params.get("_meta")
    return type(meta) is dict and META_VERSION in meta


def derive(frame: Frame, params: Sequence[Param] = ()) -> list[tuple[str, str]]:
    """The mirror headers of a modern request, made from its body; `params` are those its tool annotates."""
    headers = []
    meta = frame.params.get("_meta")
    version = meta.get(META_VERSION) if type(meta) is dict else None
    if type(version) is str:
        headers.append((VERSION_HEADER, encoded(version)))
    method = frame.method
    headers.append((METHOD_HEADER, encoded(method)))
    key = NAMED.get(method) or TASKS.get(method)
    if key is not None:
        name = frame.params.get(key)
        if type(name) is str:
            headers.append((NAME_HEADER, encoded(name)))
    if params and method == "tools/call":
        arguments = frame.params.get("arguments")
        for param in params:
            text = _text_of(_at(arguments, param.path))
            if text is not None:
                headers.append((param.header, encoded(text)))
    return headers


def mismatch(frame: Frame, headers: Iterable[tuple[str, str]], params: Sequence[Param] = ()) -> str | None:
    """What is wrong with the mirror headers of a modern request, for the text of a -32020; None where nothing is.

    `headers` are all header lines as they came, names in any case, so that one that came twice shows. A notification
    need not have them, but where it has they must be true.
    """
    lines: dict[str, str] = {}
    twice: set[str] = set()
    for header, value in headers:
        key = header.lower()
        if key.startswith("mcp-"):
            if key in lines:
                twice.add(key)
            lines[key] = value.strip(" \t")
    for key in sorted(twice & _ROUTING):
        return f"the header `{key}` came twice; send it once"
    must = frame.kind is Kind.REQUEST
    meta = frame.params.get("_meta")
    version = meta.get(META_VERSION) if type(meta) is dict else None
    given: str | None = lines.get(VERSION_HEADER.lower())
    if given != version and (must or (given is not None and version is not None)):
        return _differs(VERSION_HEADER, given, f"params._meta[{META_VERSION!r}]")
    given = lines.get(METHOD_HEADER.lower())
    if given != frame.method and (must or given is not None):
        return _differs(METHOD_HEADER, given, "method")
    given = lines.get(NAME_HEADER.lower())
    named = NAMED.get(frame.method)
    if named is None and given is not None:
        named = TASKS.get(frame.method)
    if named is not None:
        name = frame.params.get(named)
        # A request without its name is refused for that, by whoever reads the parameters.
        if name is not None and (given is None or decoded(given) != name):
            return _differs(NAME_HEADER, given, f"params.{named}")
    if params and frame.method == "tools/call":
        arguments = frame.params.get("arguments")
        for param in params:
            fault = _fault_of(param, _at(arguments, param.path), lines, twice)
            if fault is not None:
                return fault
    return None


def _fault_of(param: Param, value: Any, lines: dict[str, str], twice: set[str]) -> str | None:
    key = param.header.lower()
    given = lines.get(key)
    if key in twice:
        return f"the header `{param.header}` came twice; send it once"
    text = None if value is None else _text_of(value)
    where = "params.arguments." + ".".join(param.path)
    if text is None:
        # Somebody on the way may have gone by a value that the body does not have.
        return None if given is None else f"the header `{param.header}` is there and `{where}` is not; leave it out"
    if given is None or not _same(param.kind, value, text, decoded(given)):
        return _differs(param.header, given, where)
    return None


def _same(kind: str, value: Any, text: str, given: str | None) -> bool:
    if given is None or given == text:
        return given is not None
    # 42 and 42.0 are one integer, compared without a detour through floats.
    whole = type(value) is int or (type(value) is float and value.is_integer())
    if kind != "integer" or not whole or len(given) > _MOST_DIGITS or not _DECIMAL.fullmatch(given):
        return False
    digits, _, fraction = given.partition(".")
    return not fraction.strip("0") and int(digits) == int(value)


def _differs(header: str, given: str | None, where: str) -> str:
    if given is None:
        return f"the header `{header}` is missing; it must repeat `{where}`"
    return f"the header `{header}` differs from `{where}`; send the same in both"
