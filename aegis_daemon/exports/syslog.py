"""A syslog receiver gets one RFC 5424 message for each event, never two in one and never half of one.

Over TCP and TLS messages are counted in octets (RFC 6587 §3.4.1, RFC 5425), over UDP (RFC 5426) and `/dev/log` each is
a datagram. Syslog has no acknowledgement. Over TCP a batch counts once the receiver's system has all of it, and after
a broken connection what was sent last is sent again, since the receiver itself may not have read it; a datagram counts
once it has left. Messages over `max_bytes` go without arguments and results; one that is longer even so (and than
`BARE_MAX`), or that the network does not take, has a gap event in its place.
"""

from __future__ import annotations

import errno
import fcntl
import select
import socket
import ssl
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import msgspec

from aegis_daemon.exports.event import Encode, Event, instant, too_long
from aegis_daemon.exports.sink import Sink, Trouble, aside, trusting

APP: Final = "aegis"
_SEVERITY: Final = {"error": 5, "denied": 4, "unknown": 4, "success": 6}
_SEQUENCE: Final = 2147483647
_SETTLE_S: Final = 0.002
BARE_MAX: Final = 4096
"""An event without bodies may be as long as this even where `max_bytes` is less: they usually have half of it."""
AGAIN_S: Final = 10.0
AGAIN_MAX: Final = 1 << 20
"""What is sent again after a broken connection: as much as a receiver that is well leaves unread."""


class Settings(msgspec.Struct, frozen=True):
    """`address` as in `config.schema`."""

    address: str
    facility: int = 13
    host: str = ""
    max_bytes: int = 8192
    ca_file: str | None = None
    timeout: float = 30.0


class Syslog(Sink):
    """One receiver, over one socket."""

    def __init__(self, settings: Settings, encode: Encode) -> None:
        parts = urlsplit(settings.address)
        self._way = parts.scheme
        self._path = parts.path
        self._where = (parts.hostname or "", parts.port or 0)
        self._settings = settings
        self._encode = encode
        self._host = _ascii(settings.host or socket.gethostname(), 255)
        self._socket: socket.socket | None = None
        self._counted = self._way in ("tcp", "tls")
        self._recent: deque[tuple[float, bytes]] = deque()
        """batches that count, as they were sent and when: `AGAIN_S` before the newest of them, `AGAIN_MAX` bytes"""

    async def send(self, batch: list[Event]) -> None:
        """Returns once the batch has left (datagrams) or has arrived at the receiver's system (TCP)."""
        await aside(lambda: self._send(batch))

    async def close(self) -> None:
        """Closes the socket."""
        self._drop()

    def message(self, event: Event) -> bytes:
        """One message, at most `max_bytes` long (or `BARE_MAX` without bodies)."""
        return next(self._forms(event))

    def _forms(self, event: Event) -> Iterator[bytes]:
        """The event's message as far as it fits, and then what may go in its place: each shorter than the one before.

        The last says that there was one which was too long.
        """
        whole, most = self._message(event), self._settings.max_bytes
        own = event.kind in ("gap", "test")
        if own or len(whole) <= most:
            yield whole
        bare = self._message(event.bare())
        if len(bare) <= max(most, BARE_MAX) and (len(bare) < len(whole) or len(whole) > most):
            yield bare
        if not own:
            self.skipped += (event,)
            yield self._message(too_long(event))

    def _message(self, event: Event) -> bytes:
        call = event.call
        severity = _SEVERITY.get(call.exec_status, 5) if call is not None else 5
        if event.record.action == "drift" or event.kind in ("gap", "unreadable"):
            severity = 4
        when = instant(event.ts) or "-"
        number = f'[meta sequenceId="{event.seq % _SEQUENCE or 1}"]'
        priority = self._settings.facility * 8 + severity
        head = f"<{priority}>1 {when} {self._host} {APP} - {_ascii(event.kind, 32)} {number} "
        return head.encode() + self._encode(event)

    def _send(self, batch: list[Event]) -> None:
        try:
            if self._counted:
                messages = [self.message(event) for event in batch]
                self._stream(b"".join(b"%d %b" % (len(message), message) for message in messages))
            else:
                for event in batch:
                    self._datagram(event)
        except TimeoutError:
            self._drop()
            raise Trouble(f"it did not take anything for {self._settings.timeout:.0f} s") from None
        except ssl.SSLCertVerificationError as error:
            self._drop()
            raise Trouble(
                f"its certificate is not trusted ({error.verify_message.lower()}); name its issuer in `ca_file`"
            ) from None
        except ssl.SSLError:
            self._drop()
            raise Trouble("it does not speak TLS as we do") from None
        except OSError as error:
            self._drop()
            raise Trouble(f"it cannot be reached: {(error.strerror or type(error).__name__).lower()}") from None

    def _datagram(self, event: Event) -> None:
        for message in self._forms(event):
            connected = self._socket or self._connect()
            try:
                connected.send(message)
                return
            except ConnectionRefusedError:
                self._drop()
                raise Trouble("nobody listens there") from None
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise

    def _stream(self, data: bytes) -> None:
        if self._socket is not None and self._left():
            self._drop()
        again = b""
        if self._socket is None:
            again = b"".join(batch for _, batch in self._recent)
            self._connect()
        connected = self._socket
        assert connected is not None
        connected.sendall(again + data)
        self._arrived(connected)
        now = time.monotonic()
        self._recent.append((now, data))
        while len(self._recent) > 1 and (
            self._recent[0][0] < now - AGAIN_S or sum(len(batch) for _, batch in self._recent) > AGAIN_MAX
        ):
            self._recent.popleft()

    def _left(self) -> bool:
        """Whether the receiver has closed the connection; it never sends anything."""
        assert self._socket is not None
        readable, _, _ = select.select([self._socket], [], [], 0)
        if not readable:
            return False
        self._socket.settimeout(0)  # what came may be TLS's own, and no data at all
        try:
            return self._socket.recv(4096) == b""
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        finally:
            self._socket.settimeout(self._settings.timeout)

    def _arrived(self, connected: socket.socket) -> None:
        """Waits until the receiver's system has acknowledged every byte."""
        ends = time.monotonic() + self._settings.timeout
        while _unsent(connected):
            if self._left():
                raise ConnectionResetError("closed")
            if time.monotonic() > ends:
                raise TimeoutError
            time.sleep(_SETTLE_S)
        if self._left():
            raise ConnectionResetError("closed")

    def _connect(self) -> socket.socket:
        timeout = self._settings.timeout
        if self._way == "unix":
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                made.settimeout(timeout)
                made.connect(self._path)
            except BaseException:
                made.close()
                raise
        elif self._way == "udp":
            family, kind, protocol, _, address = socket.getaddrinfo(*self._where, type=socket.SOCK_DGRAM)[0]
            made = socket.socket(family, kind, protocol)
            made.settimeout(timeout)
            made.connect(address)
        else:
            made = socket.create_connection(self._where, timeout=timeout)
            if self._way == "tls":
                try:
                    context = trusting(self._settings.ca_file)
                    made = context.wrap_socket(made, server_hostname=self._where[0])
                except BaseException:
                    made.close()
                    raise
        self._socket = made
        return made

    def _drop(self) -> None:
        connected, self._socket = self._socket, None
        if connected is not None:
            connected.close()


def _unsent(connected: socket.socket) -> int:
    """Bytes that the other side's system has not acknowledged."""
    if sys.platform == "darwin":
        return int(connected.getsockopt(socket.SOL_SOCKET, 0x1024))  # SO_NWRITE
    return int(struct.unpack("i", fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])


def _ascii(text: str, most: int) -> str:
    """A header field: printable ASCII without spaces (RFC 5424 §6.2)."""
    return "".join(sign if "!" <= sign <= "~" else "_" for sign in text)[:most] or "-"


def make(settings: Settings, encode: Encode) -> Syslog:
    """The sink."""
    return Syslog(settings, encode)
