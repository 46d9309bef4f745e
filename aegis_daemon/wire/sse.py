"""Events of a `text/event-stream` come out whole and in order, in whatever pieces their bytes came in.

Source: WHATWG HTML, server-sent events (parsing, interpreting); only what MCP uses of it is kept.
"""

from __future__ import annotations

from typing import Final

import msgspec

from aegis_daemon.wire.jsonrpc import MAX_FRAME_OUT

_BOM: Final = b"\xef\xbb\xbf"
_LONGEST_ID: Final = 1024


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event: its kind (`message` where it names none), and its data on one line.

    Lines of data are joined by a space, not a newline: between JSON tokens both are whitespace.
    """

    kind: bytes
    data: bytes


class EventTooLarge(Exception):
    """An event of more bytes than the limit, or a line that never ends."""


class EventParser:
    """Takes bytes, gives events. `last_id` is that of the last event with one, `retry` the wait it asked for in ms."""

    __slots__ = ("_data", "_first", "_id", "_kind", "_limit", "_partial", "_size", "_skip", "last_id", "retry")

    def __init__(self, limit: int = MAX_FRAME_OUT) -> None:
        self._limit = limit
        self._partial = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._kind = b""
        self._id: bytes | None = None
        self._skip = False  # a newline right now belongs to the carriage return before it
        self._first = True
        self.last_id = b""
        self.retry: int | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that these bytes complete. Raises `EventTooLarge`, after which nothing more can be read."""
        if self._skip and chunk:
            self._skip = False
            if chunk[0] == 10:
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._skip = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = chunk.rfind(b"\n")
        partial = self._partial
        if end < 0:
            partial += chunk
            self._weigh(len(partial))
            return []
        whole = chunk[:end]
        if partial:
            partial += whole
            whole = bytes(partial)
            partial.clear()
        partial += chunk[end + 1 :]
        if self._first:
            self._first = False
            whole = whole.removeprefix(_BOM)
        events: list[Event] = []
        for line in whole.split(b"\n"):
            if line:
                self._line(line)
            elif self._data or self._kind or self._id is not None:
                self._dispatch(events)
        self._weigh(len(partial))
        return events

    def _weigh(self, more: int) -> None:
        if self._size + more > self._limit + 16:  # room for the field's name
            raise EventTooLarge

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._size += len(value) + 1
            self._weigh(0)
            self._data.append(value)
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._kind = value
        elif name == b"id":
            if b"\0" not in value:
                self._id = value
        elif name == b"retry":
            if value.isdigit() and len(value) < 10:
                self.retry = int(value)
        elif name == b"data":
            self._size += 1
            self._weigh(0)
            self._data.append(b"")

    def _dispatch(self, events: list[Event]) -> None:
        if self._id is not None:
            self.last_id, self._id = self._id, None
        data = self._data
        if data:
            events.append(Event(self._kind or b"message", data[0] if len(data) == 1 else b" ".join(data)))
            data.clear()
        self._kind = b""
        self._size = 0

    @property
    def held(self) -> int:
        """Bytes of the event that is not complete yet."""
        return self._size + len(self._partial)

    @property
    def position(self) -> bytes:
        """`last_id` where a `Last-Event-ID` header can carry it, else empty."""
        here = self.last_id
        return here if here.isascii() and len(here) <= _LONGEST_ID and here.decode().isprintable() else b""
