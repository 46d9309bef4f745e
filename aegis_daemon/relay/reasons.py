"""The words in which a session says no before any stage is asked, and of a server's end; a hub uses the same."""

from __future__ import annotations

from typing import Final

from aegis_daemon.core.verdict import Reason
from aegis_daemon.wire.jsonrpc import PARSE_ERROR, WireFault
from aegis_daemon.wire.methods import Direction, Method, Rule

UNKNOWN_METHOD: Final = {
    way: Method("(unknown)", way, Rule.GOVERNED, True, True) for way in (Direction.TO_SERVER, Direction.TO_CLIENT)
}
"""What a method counts as that has no row of its own."""


def unknown_method(method: str) -> Reason:
    """Why a method without a row in its era is refused."""
    text = f"the method `{method[:100]}` is not known to Aegis in this version of the protocol; it is refused"
    return Reason("method", text, code="unknown_method")


def too_many(text: str) -> Reason:
    """Why a request beyond a count is refused."""
    return Reason("queue", f"{text} already; not executed; wait for answers first", retryable=True, code="too_many")


def why_dropped(fault: WireFault) -> str:
    """What a frame that is none was, for the record."""
    # Never the fault's own words, which repeat the frame's: each would be a record of its own.
    return "not JSON" if fault.code == PARSE_ERROR else "not exactly one legal message"


def not_begun(error: OSError | ValueError) -> str:
    """Why there is no server."""
    why = (error.strerror or "an error").lower() if isinstance(error, OSError) else str(error)
    return f"no server can be started now: {why}; start a new session later"


def ending_of(code: int) -> str:
    """How people say it of a process."""
    return f"status {code}" if code >= 0 else f"signal {-code}"
