"""The agent's end of a session that a shim attached: its descriptors, its ledger and its control socket."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from aegis_daemon.loop.descriptor import FrameWriter, Outbox, enlarge, write_now
from aegis_daemon.transports.ledger import Ledger
from aegis_daemon.transports.unix_relay import Attachment
from aegis_shim import hello as greeting

LINGER_S = 5.0
"""How long the last frames may take to be read before the session is given up."""


class ShimClient:
    """See `relay.ports.Client`. Raises `transports.ledger.BadLedger` for memory that cannot be used."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, outbox: Outbox, attachment: Attachment, *, own_uid: int
    ) -> None:
        self._loop = loop
        self._attachment = attachment
        self.gone = False
        self._ledger = Ledger(
            loop, outbox, attachment.ledger, attachment.client_in, trusted=attachment.peer.uid == own_uid
        )
        self._ledger.on_fds = lambda fds: attachment.aside.let_go(attachment.peer.uid, fds)
        enlarge(attachment.client_in)
        enlarge(attachment.client_out)
        self._writer = FrameWriter(loop, outbox, attachment.client_out, write=write_now)
        self._writer.before = self._ledger.half
        self._writer.on_sent = self._sent
        self._writer.on_broken = self._broken
        self._slots: deque[int] = deque()
        self._closing = False
        self._closed = False
        self._code = 0
        self._refusal: str | None = None
        self._linger: asyncio.TimerHandle | None = None
        self.on_full: Callable[[bool], None] = lambda full: None
        self._writer.on_full = lambda full: self.on_full(full)
        # Straight to the ledger, which is on the path of every frame.
        self.take_slot: Callable[[bytes, int], int] = self._ledger.take_slot
        self.dispatched: Callable[[int], None] = self._ledger.dispatched
        self.free_slot: Callable[[int], None] = self._ledger.free_slot
        self.consume: Callable[[int], None] = self._ledger.consume
        self.keep_era: Callable[[int], None] = self._ledger.keep_era
        self.keep_handshake: Callable[[bytes], None] = self._ledger.keep_handshake
        self.keep_initialized: Callable[[], None] = self._ledger.keep_initialized
        self.start = self._ledger.start

    @property
    def on_line(self) -> Callable[[bytes, int], None]:
        """Who hears the client's lines."""
        return self._ledger.on_line

    @on_line.setter
    def on_line(self, hear: Callable[[bytes, int], None]) -> None:
        self._ledger.on_line = hear

    @property
    def on_long(self) -> Callable[[], None]:
        """Who hears of lines that were too long."""
        return self._ledger.on_long

    @on_long.setter
    def on_long(self, hear: Callable[[], None]) -> None:
        self._ledger.on_long = hear

    @property
    def on_end(self) -> Callable[[], None]:
        """Who hears that the client's input ended."""
        return self._ledger.on_end

    @on_end.setter
    def on_end(self, hear: Callable[[], None]) -> None:
        self._ledger.on_end = hear

    @property
    def era(self) -> int:
        """The era an earlier daemon left."""
        return self._ledger.era

    @property
    def handshake(self) -> bytes | None:
        """The `initialize` an earlier daemon left."""
        return self._ledger.handshake

    @property
    def initialized(self) -> bool:
        """Whether that handshake was completed."""
        return self._ledger.initialized

    def stop(self) -> None:
        """Reads no more."""
        self._ledger.stop()

    def pause(self, paused: bool) -> None:
        """Stops reading for a while."""
        if paused:
            self._ledger.pause()
        else:
            self._ledger.resume()

    def send(self, frame: bytes, slot: int) -> None:
        """One frame; its slot is freed once it is out whole."""
        if self.gone:
            self._ledger.free_slot(slot)
            return
        self._slots.append(slot)
        self._writer.send(frame)

    def tell(self, frame: bytes, slot: int) -> None:
        """A notification or a request: all go the same way."""
        self.send(frame, -1)

    def _sent(self, count: int) -> None:
        slots = self._slots
        free = self._ledger.free_slot
        for _ in range(count):
            slot = slots.popleft()
            if slot >= 0:
                free(slot)
        if self._closing and not self._writer.waiting:
            self._finish()

    def _broken(self) -> None:
        self.gone = True
        if self._closing:
            self._finish()
        else:
            self.on_end()

    def refuse(self, text: str) -> None:
        """The shim answers every further request with this reason, once what is to be written is written."""
        self._refusal = text

    def bye(self, restart: bool) -> None:
        """The daemon leaves: the shim takes its descriptors back and waits for the next daemon."""
        self.gone = True
        self._release()
        self._attachment.control.say(greeting.say_bye(restart))
        self._attachment.control.close()

    def abandon(self) -> None:
        """Nobody reads any more."""
        self.gone = True

    def close(self, code: int) -> None:
        """Writes what is left, tells the server's status, and lets go of everything."""
        if self._closing:
            return
        self._closing = True
        self._code = code
        self._ledger.stop()
        self._writer.flush()
        if self._closed:
            return
        if self.gone or not self._writer.waiting:
            self._finish()
        else:
            self._linger = self._loop.call_later(LINGER_S, self._finish)

    def _finish(self) -> None:
        if self._closed:
            return
        if self._linger is not None:
            self._linger.cancel()
        self._release()
        said = greeting.say_exit(self._code) if self._refusal is None else greeting.say_no(self._refusal)
        self._attachment.control.say(said)
        self._attachment.control.close()

    def _release(self) -> None:
        if not self._closed:
            self._closed = True
            self._writer.close()
            self._ledger.close()
            self._attachment.close_descriptors()
            # After close nothing may touch the mapping; late slots are of no use to anybody.
            self.free_slot = self.dispatched = _ignore
            self.take_slot = _no_slot
            self.consume = self.keep_era = _ignore
            self.keep_handshake = _ignore
            self.keep_initialized = _nothing
            self.gone = True


def _ignore(value: object) -> None:
    return None


def _nothing() -> None:
    return None


def _no_slot(id_json: bytes, end: int) -> int:
    return -1
