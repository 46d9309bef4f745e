"""The bridge and whoever handles its frames meet in these, so that a translator knows no bridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from aegis_daemon.core.ports import Fault
from aegis_daemon.relay.ports import Backend
from aegis_daemon.wire.jsonrpc import Frame, Id


class Send(Protocol):
    """As `relay.ports.Backend.send`."""

    def __call__(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        """One frame."""
        ...


class Callbacks(msgspec.Struct, frozen=True):
    """What a backend calls; see `relay.ports.Backend`."""

    on_lines: Callable[[list[bytes], int | None], None]
    on_lost: Callable[[int, Fault], None]
    on_full: Callable[[bool], None]
    on_exit: Callable[[int], None]
    on_failed: Callable[[str], None]


class Ends(Protocol):
    """What a translator has of its bridge: the conversation on the one side, the real server on the other."""

    out: Callbacks
    """the conversation's"""
    call_later: Callable[[float, Callable[[], None]], Any]
    """takes seconds and work, gives back something with `cancel()`"""

    @property
    def server(self) -> Backend:
        """The real one."""
        ...

    def fresh(self) -> int:
        """A number for a request of our own."""
        ...

    def say(self, line: bytes, about: int | None) -> None:
        """One frame for the conversation."""
        ...

    def reply(self, text: bytes) -> None:
        """An answer of ours to something the server asked."""
        ...

    def decline(self, id: Id, code: int, text: str) -> None:
        """The server's request is answered here, with an error."""
        ...


class Side(Protocol):
    """Who handles the frames between the two ends now."""

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        """One frame of the conversation, as `relay.ports.Backend.send` takes it."""
        ...

    def cancel(self, number: int, text: bytes) -> None:
        """The conversation withdraws its request `number`; `text` is the notification that says so."""
        ...

    def lines(self, lines: list[bytes], about: int | None) -> None:
        """Frames of the server, on the stream of the request `about`; 0 is the session's, None is unknown."""
        ...

    def lost(self, number: int, fault: Fault) -> None:
        """The server will not answer the request it knows by this number."""
        ...

    def exited(self) -> bool:
        """The server is gone; whether the session goes on with another one."""
        ...

    def end(self) -> None:
        """Nothing comes any more: timers stop."""
        ...
