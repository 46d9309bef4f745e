"""The ledger: memory that outlives a daemon and holds all that the next one needs to go on with a session.

The shim makes it and keeps it; the daemon maps it and keeps in it its input buffer, the client's handshake, one slot
for each open request, and a mark while a frame to the client may be partly written. Numbers are little endian.

What the daemon promises, so that it may be killed between any two instructions:
- it reads client-in straight into the input area, and nowhere else;
- every byte of the input area outside the unconsumed stretch is zero, and JSON text holds no raw NUL, so the
  unconsumed input is what lies between `in_pos` and the first NUL. What is consumed is cleared behind `in_pos`, so
  `in_pos` moves forward first; when it goes back to the area's beginning, what lay there is cleared before that.
  (Moving a tail to the front is safe when its copy ends before its old place begins: copy, set `in_pos`, clear.)
- it fills a slot's id and end offset before the state, and sets the state to `dispatched` before it forwards;
- it frees a slot only when the answer is completely written, and the half mark is set whenever a frame may be torn.
"""

from __future__ import annotations

import posix  # `os` costs the shim 2 ms at its start and adds nothing here

MAGIC = b"AEGISLG1"
MAGIC_AT = 0
CONSUMED_AT = 8  # u64: offset in the client's stream of the first unconsumed byte
IN_POS_AT = 16  # u64: where that byte lies in this file
HALF_AT = 24  # u8: 1 while a frame to the client may be partly written
HANDSHAKE_LEN_AT = 28  # u32: 0 = none
INITIALIZED_AT = 32  # u8: 1 once the client's `notifications/initialized` was seen
ERA_AT = 33  # u8
SKIPPING_AT = 34  # u8: 1 while the rest of a line that was too long is being dropped

ERA_NONE, ERA_LEGACY, ERA_MODERN = range(3)

SLOTS_AT = 4096
SLOTS = 272
SLOT_SIZE = 256
SLOT_STATE = 0  # u8, offsets within a slot
SLOT_ID_LEN = 1  # u8
SLOT_END = 8  # u64: offset in the client's stream just behind the request's frame
SLOT_ID = 16  # the id as JSON text
MAX_ID = SLOT_SIZE - SLOT_ID  # bytes

FREE, RECEIVED, DISPATCHED = range(3)

HANDSHAKE_AT = SLOTS_AT + SLOTS * SLOT_SIZE
HANDSHAKE_SIZE = 65536  # the client's `initialize` frame, without its newline

INPUT_AT = HANDSHAKE_AT + HANDSHAKE_SIZE
INPUT_SIZE = 1024 * 1024 + 256 * 1024
SIZE = INPUT_AT + INPUT_SIZE


class Ledger:
    """The shim's side. Use it only while no daemon holds the session."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> Ledger:
        """A new, empty ledger. Raises OSError when no memory or temporary file can be had."""
        fd = _memory()
        try:
            posix.pwrite(fd, MAGIC, MAGIC_AT)
            _put(fd, IN_POS_AT, INPUT_AT)
        except OSError:
            posix.close(fd)
            raise
        return cls(fd)

    @property
    def consumed(self) -> int:
        """The offset in the client's stream up to which everything is dealt with."""
        return _get(self.fd, CONSUMED_AT)

    @property
    def half(self) -> bool:
        """Whether the last frame to the client may have been cut off."""
        return posix.pread(self.fd, 1, HALF_AT) == b"\1"

    @property
    def skipping(self) -> bool:
        """Whether the input begins inside a line that was too long and is to be dropped."""
        return posix.pread(self.fd, 1, SKIPPING_AT) == b"\1"

    def open_calls(self) -> list[tuple[int, bytes]]:
        """(RECEIVED | DISPATCHED, id as JSON text) for each unanswered request, in the order they came."""
        table = posix.pread(self.fd, SLOTS * SLOT_SIZE, SLOTS_AT)
        found = []
        for at in range(0, len(table), SLOT_SIZE):
            state = table[at + SLOT_STATE]
            if state != FREE:
                end = int.from_bytes(table[at + SLOT_END : at + SLOT_END + 8], "little")
                found.append((end, state, table[at + SLOT_ID : at + SLOT_ID + table[at + SLOT_ID_LEN]]))
        found.sort()
        return [(state, request_id) for _, state, request_id in found]

    def settle(self) -> None:
        """Forget the open requests and the half mark: the shim has answered and closed them.

        Input that belongs to an answered request, but was not yet marked consumed, is skipped.
        """
        table = posix.pread(self.fd, SLOTS * SLOT_SIZE, SLOTS_AT)
        start = _get(self.fd, CONSUMED_AT)
        for at in range(0, len(table), SLOT_SIZE):
            if table[at + SLOT_STATE] != FREE:
                start = max(start, int.from_bytes(table[at + SLOT_END : at + SLOT_END + 8], "little"))
        offset, data = self.take_input()
        # An end offset beyond what was read would be a daemon's fault; then nothing of the input is trusted.
        self.put_input(start, data[start - offset :], self.skipping)
        posix.pwrite(self.fd, bytes(SLOTS * SLOT_SIZE), SLOTS_AT)
        posix.pwrite(self.fd, b"\0", HALF_AT)

    def take_input(self) -> tuple[int, bytes]:
        """Remove the unconsumed input: (its offset in the client's stream, the bytes)."""
        offset = _get(self.fd, CONSUMED_AT)
        area = posix.pread(self.fd, INPUT_SIZE, INPUT_AT)
        at = _get(self.fd, IN_POS_AT) - INPUT_AT
        data = area[at:].partition(b"\0")[0] if at >= 0 else b""
        used = len(area.rstrip(b"\0"))
        if used:
            posix.pwrite(self.fd, bytes(used), INPUT_AT)
        return offset, data

    def put_input(self, offset: int, data: bytes, skipping: bool = False) -> None:
        """Leave `data`, which begins at `offset` of the client's stream, to the next daemon.

        Raises ValueError when it does not fit. The input must have been taken before.
        """
        if len(data) > INPUT_SIZE:
            raise ValueError(f"{len(data)} bytes do not fit into the ledger's {INPUT_SIZE}")
        if data:
            posix.pwrite(self.fd, data, INPUT_AT)
        _put(self.fd, IN_POS_AT, INPUT_AT)
        _put(self.fd, CONSUMED_AT, offset)
        posix.pwrite(self.fd, b"\1" if skipping else b"\0", SKIPPING_AT)


def _get(fd: int, at: int) -> int:
    return int.from_bytes(posix.pread(fd, 8, at), "little")


def _put(fd: int, at: int, value: int) -> None:
    posix.pwrite(fd, value.to_bytes(8, "little"), at)


def _memory() -> int:
    """SIZE zero bytes: sealed memory where the system has it (nobody can shrink it under the daemon's mapping)."""
    make = getattr(posix, "memfd_create", None)
    if make is not None:
        try:
            fd: int = make("aegis-ledger", posix.MFD_CLOEXEC | posix.MFD_ALLOW_SEALING)
        except OSError:
            return _temporary()
        posix.ftruncate(fd, SIZE)
        import fcntl

        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return fd
    return _temporary()


def _temporary() -> int:
    """An unlinked file, filled with zeros so that its room is taken at once and not in the daemon's mapping."""
    folder = posix.environ.get(b"TMPDIR") or b"/tmp"
    path = folder + b"/aegis-ledger-" + posix.urandom(12).hex().encode()
    fd = posix.open(path, posix.O_RDWR | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
    posix.unlink(path)
    left = SIZE
    while left:
        left -= posix.write(fd, bytes(min(left, 65536)))
    return fd
