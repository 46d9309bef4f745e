"""What a conversation needs of its two ends, so that transports and backends stay strangers to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from aegis_daemon.wire.jsonrpc import Frame

if TYPE_CHECKING:
    from aegis_daemon.relay.conversation import Conversation


class Client(Protocol):
    """The agent's end. Everything about slots and keeping is for the next daemon, should this one be killed."""

    on_line: Callable[[bytes, int], None]
    on_long: Callable[[], None]
    on_end: Callable[[], None]
    on_full: Callable[[bool], None]

    @property
    def gone(self) -> bool:
        """Whether nobody reads any more."""
        ...

    @property
    def era(self) -> int:
        """The era an earlier daemon left."""
        ...

    @property
    def handshake(self) -> bytes | None:
        """The `initialize` an earlier daemon left."""
        ...

    @property
    def initialized(self) -> bool:
        """Whether that handshake was completed."""
        ...

    def start(self) -> None:
        """Handles what an earlier daemon left, then reads."""
        ...

    def stop(self) -> None:
        """Reads no more."""
        ...

    def pause(self, paused: bool) -> None:
        """Stops reading for a while."""
        ...

    def send(self, frame: bytes, slot: int) -> None:
        """An answer; `slot` is its request's, freed once the answer is out whole, or -1 for one that got none."""
        ...

    def tell(self, frame: bytes, slot: int) -> None:
        """A notification or a request; `slot` is that of the client's request which it belongs to, -1 for none."""
        ...

    def take_slot(self, id_json: bytes, end: int) -> int:
        """Marks a request as received; -1 where there is no room."""
        ...

    def dispatched(self, slot: int) -> None:
        """The request may reach the server from now on."""
        ...

    def free_slot(self, slot: int) -> None:
        """The request needs no answer."""
        ...

    def consume(self, end: int) -> None:
        """The input before this offset is done with."""
        ...

    def keep_era(self, era: int) -> None:
        """The era the session speaks."""
        ...

    def keep_handshake(self, frame: bytes) -> None:
        """The client's `initialize`."""
        ...

    def keep_initialized(self) -> None:
        """The handshake is complete."""
        ...

    def refuse(self, text: str) -> None:
        """Tells the shim why nothing more can come."""
        ...

    def abandon(self) -> None:
        """Nobody reads any more."""
        ...

    def close(self, code: int) -> None:
        """Writes what is left, tells the server's status, and lets go of everything."""
        ...


class Backend(Protocol):
    """The server's end."""

    @property
    def pid(self) -> int | None:
        """Its process id."""
        ...

    @property
    def touched(self) -> bool:
        """Whether it has been sent anything."""
        ...

    @property
    def renewals(self) -> int:
        """How often its session was opened anew, with whatever server answers at its address now."""
        ...

    def send(self, text: bytes, frame: Frame | None = None, number: int = 0) -> None:
        """One frame as it goes out. `frame` is what was judged, `number` the id that a request goes under, else 0."""
        ...

    def cancel(self, number: int, text: bytes) -> None:
        """Withdraws the open request `number`; `text` is the notification that says so."""
        ...

    def pause(self, paused: bool) -> None:
        """Stops reading its output for a while."""
        ...

    def close_stdin(self) -> None:
        """No more frames."""
        ...

    def end(self) -> None:
        """Begins its end."""
        ...


StartServer = Callable[["Conversation"], Backend]
"""Raises `OSError`, and `ValueError` for an address or a header that cannot be sent."""
