"""An era is told by what a client asks first, and by what a server makes of it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aegis_daemon.core.ports import Fault
from aegis_daemon.relay.eras.frames import UNREADABLE, meta_of
from aegis_daemon.wire.errors import INVALID_PARAMS, METHOD_NOT_FOUND, UNSUPPORTED_VERSION
from aegis_daemon.wire.jsonrpc import INVALID_REQUEST, Frame
from aegis_daemon.wire.methods import LEGACY_VERSIONS, META_VERSION, MODERN_VERSION, Era

FOREIGN: Final = frozenset({METHOD_NOT_FOUND, INVALID_PARAMS, INVALID_REQUEST, UNSUPPORTED_VERSION, -32020})
"""Error codes of an `initialize` that say: not in this era (-32020: its mirror headers are missed)."""
PLAIN: Final = frozenset({METHOD_NOT_FOUND, UNSUPPORTED_VERSION, -32020})
"""Those that no client can bring about by what it says of itself, so that all sessions may go by them."""
_NO_VERDICT: Final = frozenset({"http_401", "http_403", "http_407", "http_408", "http_429"})


def era_of_client(frame: Frame) -> Era:
    """The era a client's request says it speaks; `NONE` where it does not say."""
    if frame.method == "initialize":
        return Era.LEGACY
    return Era.MODERN if META_VERSION in meta_of(frame.params) else Era.NONE


def said(body: bytes) -> tuple[int, str]:
    """The code and message of an error object; 0 and nothing where they cannot be read."""
    try:
        error = msgspec.json.decode(body)
        code, text = error["code"], error["message"]
    except (*UNREADABLE, KeyError, TypeError):
        return 0, ""
    return (code, text) if type(code) is int and type(text) is str else (0, "")


def discovered(body: bytes) -> dict[str, Any] | None:
    """The result of `server/discover` of a server that speaks our modern version, else None."""
    try:
        result = msgspec.json.decode(body)
    except UNREADABLE:
        return None
    versions = result.get("supportedVersions") if type(result) is dict else None
    return result if type(versions) is list and MODERN_VERSION in versions else None


def initialized(body: bytes) -> dict[str, Any] | None:
    """The result of `initialize` of a server that speaks one of our legacy versions, else None."""
    try:
        result = msgspec.json.decode(body)
    except UNREADABLE:
        return None
    return result if type(result) is dict and result.get("protocolVersion") in LEGACY_VERSIONS else None


def foreign_loss(fault: Fault) -> bool:
    """Whether a server that gave this instead of an answer did not understand the request."""
    return fault.reason.startswith("http_4") and fault.reason not in _NO_VERDICT
