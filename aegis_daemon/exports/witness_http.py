"""A URL gets each checkpoint as it is signed, by POST as `text/plain`; any 2xx says that it is kept there.

No redirect is followed, no proxy is used, and neither the token nor the query reaches any text of ours.
"""

from __future__ import annotations

import http.client
import ssl
from urllib.parse import urlsplit

import msgspec

from aegis_daemon.exports.sink import Trouble, Witness, aside

ANSWER_MAX = 1 << 14


class Settings(msgspec.Struct, frozen=True):
    """`timeout` in seconds."""

    url: str
    token: str | None = None
    ca_file: str | None = None
    timeout: float = 30.0


class HttpWitness(Witness):
    """One place, over a connection for each checkpoint."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._parts = urlsplit(settings.url)
        self._context: ssl.SSLContext | None = None

    async def push(self, origin: str, size: int, note: str) -> None:
        """Posts the checkpoint."""
        await aside(lambda: self._post(note.encode()))

    def _post(self, body: bytes) -> None:
        settings, parts = self._settings, self._parts
        headers = {"Content-Type": "text/plain; charset=utf-8", "User-Agent": "aegis"}
        if settings.token:
            headers["Authorization"] = f"Bearer {settings.token}"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection: http.client.HTTPConnection | None = None
        try:
            connection = self._connect()
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            response.read(ANSWER_MAX)
            status, after = response.status, response.getheader("Retry-After")
        except ssl.SSLCertVerificationError as error:
            why = error.verify_message.lower()
            raise Trouble(f"its certificate is not trusted ({why}); name its issuer in `ca_file`") from None
        except TimeoutError:
            raise Trouble(f"it did not answer within {settings.timeout:.0f} s") from None
        except (OSError, http.client.HTTPException) as error:
            why = str(getattr(error, "strerror", None) or type(error).__name__).lower()
            raise Trouble(f"it cannot be reached: {why}") from None
        finally:
            if connection is not None:
                connection.close()
        if not 200 <= status < 300:
            pause = float(after) if after is not None and after.isdigit() else None
            raise Trouble(f"it answered with status {status}", pause)

    def _connect(self) -> http.client.HTTPConnection:
        host, port, timeout = self._parts.hostname or "", self._parts.port, self._settings.timeout
        if self._parts.scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=timeout)
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self._settings.ca_file)
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._context)


def make(settings: Settings) -> HttpWitness:
    """A witness of this type."""
    return HttpWitness(settings)
