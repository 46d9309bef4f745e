"""What a client says of itself is cut down to what its server may use; pure.

A capability that a client does not declare is one a server must not use (MCP 2025-11-25 `basic/lifecycle`, 2026-07-28
`basic/index`), so masking is the polite half of refusing; the other half is `stages.acl`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aegis_daemon.core.text import visible
from aegis_daemon.wire.jsonrpc import Frame
from aegis_daemon.wire.methods import LEGACY_VERSIONS, META_CAPABILITIES, META_CLIENT, META_VERSION, MODERN_VERSION

TASKS_EXTENSION: Final = "io.modelcontextprotocol/tasks"
_GOVERNED: Final = ("sampling", "elicitation", "roots", "tasks")


class BadVersion(Exception):
    """A modern frame of a version nobody here knows, or without its envelope."""

    def __init__(self, text: str, version: object = None) -> None:
        super().__init__(text)
        self.version = version


def _masked(capabilities: Any, allowed: frozenset[str]) -> dict[str, Any] | None:
    """The capabilities without what the server may not use; None where nothing changes."""
    if type(capabilities) is not dict:
        return None
    hidden = [name for name in _GOVERNED if name in capabilities and name not in allowed]
    if not hidden:
        return None
    return {name: value for name, value in capabilities.items() if name not in hidden}


def with_params(frame: Frame, params: dict[str, Any]) -> Frame:
    """The same request with other parameters."""
    return msgspec.structs.replace(frame, params=params, value={**frame.value, "params": params}, text=b"")


def with_token(frame: Frame, token: int | str | None) -> Frame:
    """The same request with another progress token in the place of its own."""
    return with_params(frame, {**frame.params, "_meta": {**frame.params["_meta"], "progressToken": token}})


def initialize(frame: Frame, allowed: frozenset[str]) -> Frame:
    """An `initialize` that asks for a version we know and offers only what the server may use."""
    params = frame.params
    masked = _masked(params.get("capabilities"), allowed)
    version = params.get("protocolVersion")
    known = version in LEGACY_VERSIONS
    if masked is None and known:
        return frame
    params = dict(params)
    if masked is not None:
        params["capabilities"] = masked
    if not known:
        params["protocolVersion"] = LEGACY_VERSIONS[-1]
    return with_params(frame, params)


def modern(frame: Frame, allowed: frozenset[str]) -> Frame:
    """A modern request whose envelope is whole and offers only what the server may use. Raises `BadVersion`."""
    meta = frame.params.get("_meta")
    if type(meta) is not dict or META_VERSION not in meta:
        raise BadVersion(f"a request of this session needs `_meta` with `{META_VERSION}`")
    version = meta[META_VERSION]
    if version != MODERN_VERSION:
        raise BadVersion("unsupported protocol version", version)
    capabilities = meta.get(META_CAPABILITIES)
    if type(capabilities) is not dict:
        raise BadVersion(f"`_meta` needs `{META_CAPABILITIES}`")
    masked = _masked(capabilities, allowed)
    if masked is None:
        return frame
    return with_params(frame, {**frame.params, "_meta": {**meta, META_CAPABILITIES: masked}})


LONGEST_NAME: Final = 100


def offers_tasks(params: dict[str, Any]) -> bool:
    """Whether a modern request says that its answer may be a task (tasks extension 2026-07-28)."""
    meta = params.get("_meta")
    capabilities = meta.get(META_CAPABILITIES) if type(meta) is dict and META_VERSION in meta else None
    extensions = capabilities.get("extensions") if type(capabilities) is dict else None
    return type(extensions) is dict and type(extensions.get(TASKS_EXTENSION)) is dict


def client_name(params: dict[str, Any]) -> str:
    """What a client calls itself, in an `initialize` or in a modern request; "" where it does not say."""
    meta = params.get("_meta")
    info = meta.get(META_CLIENT) if type(meta) is dict and META_CLIENT in meta else params.get("clientInfo")
    name = info.get("name") if type(info) is dict else None
    return visible(name[:LONGEST_NAME]) if type(name) is str else ""
