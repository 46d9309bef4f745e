"""The daemon's side of a session's ledger: input is read straight into memory that outlives the daemon.

Layout, and what a killed daemon may leave behind: `aegis_shim.ledger`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import mmap
import os
import struct
from collections.abc import Callable

from aegis_daemon.loop.aside import close_all
from aegis_daemon.loop.descriptor import Outbox, SocketReader, read_now
from aegis_shim import ledger as layout

_log = logging.getLogger("aegis.ledger")
_AGAIN = (errno.EAGAIN, errno.EWOULDBLOCK)
_F_GET_SEALS = 1034
_SEALED = 0x2 | 0x4  # F_SEAL_SHRINK | F_SEAL_GROW
_PLACE = struct.Struct("<QQ")
_PLACE_AT = slice(layout.CONSUMED_AT, layout.CONSUMED_AT + _PLACE.size)
"""Offset and place, written as one copy of 16 bytes (one instruction): a kill between the two would lose or repeat."""
_END = struct.Struct("<Q")
_CHUNK = 1 << 17
_ZEROS = bytes(_CHUNK)
_INPUT_END = layout.INPUT_AT + layout.INPUT_SIZE
MAX_LINE = 1 << 20
"""Bytes of the longest line that is read whole."""


class BadLedger(Exception):
    """The memory is not a ledger, or could be pulled from under us."""


class Ledger:
    """One session's mapped memory, and the reader of its client's lines.

    `on_line(line, end)` gets each complete line and the stream offset behind it; it must call `consume(end)` once the
    line is safe elsewhere (in a slot, or needs no keeping). `on_long()` tells of a line that was too long and is
    dropped; `on_end` of the end of input. `on_fds(fds)` gets descriptors that came along with the input, which is none
    then: it ends there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox, fd: int, source: int, *, trusted: bool) -> None:
        """Maps `fd`; `source` is the client's descriptor. Raises `BadLedger`."""
        try:
            # Memory that another user could shrink would end this process with SIGBUS. It is asked first, because only
            # memory has seals: of a file of theirs even the size may be theirs to tell, or not to.
            if not trusted and fcntl.fcntl(fd, _F_GET_SEALS) & _SEALED != _SEALED:
                raise BadLedger("the ledger is not sealed")
            if os.fstat(fd).st_size != layout.SIZE:
                raise BadLedger("the ledger has another size; install the same version of aegis-wrap and aegis")
            self._map = mmap.mmap(fd, layout.SIZE)
        except OSError as error:
            raise BadLedger(f"the ledger cannot be mapped: {error}") from error
        if self._map[: len(layout.MAGIC)] != layout.MAGIC:
            raise BadLedger("the memory handed over is not a ledger")
        self._view = memoryview(self._map)
        self._loop = loop
        self._outbox = outbox
        self.source = source
        self._reading = False
        self._paused = False
        self.ended = False
        self.on_line: Callable[[bytes, int], None] = lambda line, end: None
        self.on_long: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self.on_fds: Callable[[list[int]], None] = close_all
        self._socket = SocketReader.of(source, lambda fds: self.on_fds(fds))
        self._read = self._read_now if self._socket is None else self._socket.read_now
        consumed, place = _PLACE.unpack_from(self._map, layout.CONSUMED_AT)
        if not layout.INPUT_AT <= place <= _INPUT_END or consumed >= 1 << 63:
            raise BadLedger("the ledger's place lies outside its input area")
        self._consumed = consumed
        self._place = place
        stop = self._map.find(b"\0", place, _INPUT_END)
        self._end = _INPUT_END if stop < 0 else stop
        self._skipping = self._map[layout.SKIPPING_AT] == 1
        self._free = list(range(layout.SLOTS - 1, -1, -1))
        self._map[layout.SLOTS_AT : layout.HANDSHAKE_AT] = bytes(layout.SLOTS * layout.SLOT_SIZE)
        self._map[layout.HALF_AT] = 0

    # --- what the next daemon needs -----------------------------------------------------------------------------

    @property
    def handshake(self) -> bytes | None:
        """The `initialize` frame an earlier daemon saw."""
        size = int.from_bytes(self._map[layout.HANDSHAKE_LEN_AT : layout.HANDSHAKE_LEN_AT + 4], "little")
        if not 0 < size <= layout.HANDSHAKE_SIZE:
            return None
        return self._map[layout.HANDSHAKE_AT : layout.HANDSHAKE_AT + size]

    @property
    def initialized(self) -> bool:
        """Whether the client's `notifications/initialized` was seen."""
        return self._map[layout.INITIALIZED_AT] == 1

    @property
    def era(self) -> int:
        """The era the session spoke."""
        return self._map[layout.ERA_AT]

    def keep_handshake(self, frame: bytes) -> None:
        """Keeps an `initialize`; one too long to keep leaves none."""
        size = len(frame) if len(frame) <= layout.HANDSHAKE_SIZE else 0
        self._map[layout.HANDSHAKE_LEN_AT : layout.HANDSHAKE_LEN_AT + 4] = b"\0\0\0\0"
        self._map[layout.INITIALIZED_AT] = 0
        self._map[layout.HANDSHAKE_AT : layout.HANDSHAKE_AT + size] = frame[:size]
        self._map[layout.HANDSHAKE_LEN_AT : layout.HANDSHAKE_LEN_AT + 4] = size.to_bytes(4, "little")

    def keep_initialized(self) -> None:
        """The handshake is complete."""
        self._map[layout.INITIALIZED_AT] = 1

    def keep_era(self, era: int) -> None:
        """The era the session speaks now."""
        self._map[layout.ERA_AT] = era

    def take_slot(self, id_json: bytes, end: int) -> int:
        """Marks a request as received; -1 where every slot is taken."""
        if not self._free:
            return -1
        slot = self._free.pop()
        at = layout.SLOTS_AT + slot * layout.SLOT_SIZE
        size = len(id_json)
        view = self._map
        view[at + layout.SLOT_ID : at + layout.SLOT_ID + size] = id_json
        view[at + layout.SLOT_ID_LEN] = size
        _END.pack_into(view, at + layout.SLOT_END, end)
        view[at] = layout.RECEIVED
        return slot

    def dispatched(self, slot: int) -> None:
        """The request may reach the server from now on."""
        if slot >= 0:
            self._map[layout.SLOTS_AT + slot * layout.SLOT_SIZE] = layout.DISPATCHED

    def free_slot(self, slot: int) -> None:
        """The request is answered, or needs no answer."""
        if slot >= 0:
            self._map[layout.SLOTS_AT + slot * layout.SLOT_SIZE] = layout.FREE
            self._free.append(slot)

    def half(self, torn: bool) -> None:
        """A frame to the client may be torn from now on, or no more."""
        self._map[layout.HALF_AT] = torn

    # --- input --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Handles what an earlier daemon left, then reads, unless that made somebody pause."""
        self._paused = False
        if self._end > self._place:
            self._lines(self._place)
        if not self._paused:
            self.resume()
        self._outbox.flush()

    def resume(self) -> None:
        """Reads again."""
        self._paused = False
        if not self._reading and not self.ended:
            self._reading = True
            self._loop.add_reader(self.source, self._ready)

    def pause(self) -> None:
        """Leaves what comes in the kernel's buffer."""
        self._paused = True
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.source)

    def consume(self, end: int) -> None:
        """Everything before stream offset `end` is done with."""
        size = end - self._consumed
        if size <= 0:
            return
        was = self._place
        place = self._place = was + size
        self._consumed = end
        # The place moves first, so that a daemon killed here leaves nothing to be handled twice (`aegis_shim.ledger`).
        self._map[_PLACE_AT] = _PLACE.pack(end, place)
        self._map[was:place] = _ZEROS[:size] if size <= _CHUNK else bytes(size)
        if place == self._end:
            self._place = self._end = layout.INPUT_AT
            self._map[_PLACE_AT] = _PLACE.pack(end, layout.INPUT_AT)

    def _ready(self) -> None:
        end = self._end
        try:
            size = self._read(self._view[end : min(end + _CHUNK, _INPUT_END)])
        except OSError as error:
            if error.errno in _AGAIN:
                return
            size = 0
        outbox = self._outbox
        outbox.begin()
        try:
            if not size:
                self.stop()
                self.on_end()
            else:
                self._end = end + size
                self._lines(end)
        finally:
            outbox.flush()

    def _read_now(self, into: memoryview) -> int:
        return read_now(self.source, into)

    def _lines(self, fresh: int) -> None:
        """Handles complete lines; only what lies from `fresh` on can hold a newline that was not seen."""
        memory = self._map
        while True:
            stop = memory.find(b"\n", fresh, self._end)
            if stop < 0:
                break
            place = self._place
            fresh = stop + 1
            end = self._consumed + (fresh - place)
            if self._skipping:
                self._skip_over(False)
                self.consume(end)
            else:
                line = memory[place:stop]
                if len(line) > MAX_LINE:
                    self.consume(end)
                    self.on_long()
                else:
                    try:
                        self.on_line(line[:-1] if line.endswith(b"\r") else line, end)
                    except Exception:
                        _log.exception("a line of the client was dropped because of a fault")
                    if self.ended:
                        if not memory.closed:
                            self.consume(end)
                        return  # what is left is the next daemon's
                    if self._consumed < end:
                        self.consume(end)
            if self._end == layout.INPUT_AT:
                return  # everything was whole lines, the usual case
        size = self._end - self._place
        if self._skipping:
            self.consume(self._consumed + size)
        elif size > MAX_LINE:
            self._skip_over(True)
            self.consume(self._consumed + size)
            self.on_long()
        elif size and self._place > layout.INPUT_AT and size <= self._place - layout.INPUT_AT:
            self._to_front(size)

    def _skip_over(self, on: bool) -> None:
        self._skipping = on
        self._map[layout.SKIPPING_AT] = on

    def _to_front(self, size: int) -> None:
        was = self._place
        self._map[layout.INPUT_AT : layout.INPUT_AT + size] = self._map[was : was + size]
        self._place = layout.INPUT_AT
        self._end = layout.INPUT_AT + size
        self._map[_PLACE_AT] = _PLACE.pack(self._consumed, self._place)
        self._map[was : was + size] = bytes(size)

    def stop(self) -> None:
        """No more reading."""
        self.pause()
        self.ended = True

    def close(self) -> None:
        """Lets go of the memory."""
        self.stop()
        if self._socket is not None:
            self._socket.detach()
        self._view.release()
        self._map.close()
