"""A request to a receiver has its answer, or is over, within `timeout` in all, however slowly the other side goes on.

`http.client` waits anew for every piece that comes, so a clock shuts the connection under it. No redirect is followed,
no proxy is used, and no word of the other side gets into a text of ours: only its status and its pause do.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final
from urllib.parse import urlsplit

import msgspec

from aegis_daemon.exports.sink import Trouble, trusting

ANSWER_MAX: Final = 1 << 16


class Answer(msgspec.Struct, frozen=True):
    """The status, the beginning of the body, and the pause (seconds) that is asked for."""

    status: int
    body: bytes
    after_s: float | None


class Exchange:
    """Requests to one host, one after another over one connection; `timeout` in seconds."""

    def __init__(self, url: str, ca_file: str | None, timeout: float) -> None:
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._where = parts.hostname or "", parts.port or (443 if self._secure else 80)
        self._ca_file = ca_file
        self._timeout = timeout
        self._context: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._under: socket.socket | None = None
        """the connection's own socket, below TLS"""

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Posts. Blocks. Raises `Trouble`."""
        kept = self._connection is not None
        with _Clock(self._timeout) as clock:
            while True:
                try:
                    connection = self._connection or self._connect(clock)
                    clock.shuts(self._under)
                    connection.request("POST", path, body, dict(headers))
                    response = connection.getresponse()
                    data = response.read(ANSWER_MAX)
                    if not response.isclosed():
                        self.drop()
                    if clock.over:  # its end may look like the answer's
                        self.drop()
                        raise Trouble(self._late())
                    return Answer(response.status, data, _pause(response.getheader("Retry-After")))
                except ssl.SSLCertVerificationError as error:
                    self.drop()
                    raise Trouble(
                        f"its certificate is not trusted ({error.verify_message.lower()}); name its issuer in `ca_file`"
                    ) from None
                except (OSError, http.client.HTTPException, ValueError) as error:
                    self.drop()
                    if clock.over or isinstance(error, TimeoutError):
                        raise Trouble(self._late()) from None
                    if isinstance(error, http.client.RemoteDisconnected | BrokenPipeError | ConnectionResetError):
                        if not kept:
                            raise Trouble("it closed the connection without an answer") from None
                        kept = False  # a kept connection was dead; a doubled event has the same uid
                        continue
                    raise Trouble(_words(error)) from None

    def drop(self) -> None:
        """Closes the connection; idempotent."""
        connection, self._connection = self._connection, None
        under, self._under = self._under, None
        for one in (connection, under):
            if one is not None:
                one.close()

    def _late(self) -> str:
        return f"it did not answer within {self._timeout:g} s"

    def _connect(self, clock: _Clock) -> http.client.HTTPConnection:
        host, port = self._where
        made: http.client.HTTPConnection
        if self._secure:
            if self._context is None:
                self._context = trusting(self._ca_file)
            made = http.client.HTTPSConnection(host, port, context=self._context)
        else:
            made = http.client.HTTPConnection(host, port)
        raw = socket.create_connection(self._where, timeout=clock.left())
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._under = raw.dup()  # TLS takes the socket itself
            if self._context is None:
                clock.shuts(self._under)
            else:
                raw = wrapped = self._context.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
                clock.shuts(self._under)  # not before: what TLS finds shut it drops, and leaves open
                wrapped.do_handshake()
        except BaseException:
            raw.close()
            raise
        made.sock = raw
        raw.settimeout(self._timeout)
        self._connection = made
        return made


class _Clock:
    """Shuts a socket when the time is over."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._done = False
        self.over = False

    def __enter__(self) -> _Clock:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._done = True
        self._timer.cancel()

    def left(self) -> float:
        """Seconds, more than none."""
        return max(0.001, self._ends - time.monotonic())

    def shuts(self, under: socket.socket | None) -> None:
        """From now on it is about this one."""
        with self._lock:
            self._socket = under
            if self.over:
                self._shut()

    def _ring(self) -> None:
        with self._lock:
            if not self._done:
                self.over = True
                self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed, or was never whole


def _words(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS as we do"
    if isinstance(error, OSError):
        return f"it cannot be reached: {(error.strerror or type(error).__name__).lower()}"
    return "its answer is no HTTP"  # their texts may repeat a header


def _pause(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 6 else None
