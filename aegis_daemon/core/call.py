"""One governed request: everything a decision may look at, and nothing that changes."""

from __future__ import annotations

from typing import Any

import msgspec

from aegis_daemon.core.handed import Handed
from aegis_daemon.core.principal import Principal
from aegis_daemon.wire.jsonrpc import Frame, Id
from aegis_daemon.wire.methods import Direction, Era, Method


class Call(msgspec.Struct, frozen=True):
    """`id` is ours (32 hex digits, 128 bits); `request_id` the sender's own."""

    id: str
    request_id: Id
    session: str
    principal: Principal
    direction: Direction
    row: Method
    subject: str | None
    name: str | None
    backend: str
    era: Era
    frame: Frame
    trace: str = ""
    """the `traceparent` that it came with, where calls are traced"""
    handed: Handed | None = None
    """the session's server, where the agent's end handed it over; None where the configuration says what runs"""

    @property
    def method(self) -> str:
        """The JSON-RPC method."""
        return self.row.name

    @property
    def server(self) -> str:
        """What tells the server from others of the same backend; "" where the configuration says what runs."""
        return "" if self.handed is None else self.handed.mark

    @property
    def arguments(self) -> Any:
        """What the method is called with: `arguments` of a tool, else all parameters but `_meta`."""
        params = self.frame.params
        if self.row.name == "tools/call":
            return params.get("arguments", {})
        return {key: value for key, value in params.items() if key != "_meta"}

    @property
    def content(self) -> Any:
        """All that the server goes by: the arguments, and with them whatever else a tool's call brings along.

        Answers to a server's questions (`inputResponses`) may decide more than the arguments do.
        """
        if self.row.name != "tools/call":
            return self.arguments
        more = {key: value for key, value in self.frame.params.items() if key not in ("name", "arguments", "_meta")}
        return {"arguments": self.arguments, **more} if more else self.arguments

    @property
    def content_text(self) -> bytes:
        """The same as JSON text."""
        frame = self.frame
        if frame.text and self.row.name == "tools/call" and self.name is not None and tuple(frame.params) == _USUAL:
            # Within a string every quote is escaped, so the first place that looks like the key is the key.
            return frame.text[frame.text.index(_ARGUMENTS) + len(_ARGUMENTS) : -2]
        return msgspec.json.encode(self.content)


_USUAL = ("name", "arguments")
_ARGUMENTS = b',"arguments":'
