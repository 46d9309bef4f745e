"""A URL gets each checkpoint as it is signed, by POST as `text/plain`; any 2xx says that it is kept there.

No redirect is followed, no proxy is used, and neither the token nor the query reaches any text of ours.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from aegis_daemon.exports.exchange import Exchange
from aegis_daemon.exports.sink import Trouble, Witness, aside


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
        self._exchange = Exchange(settings.url, settings.ca_file, settings.timeout)

    async def push(self, origin: str, size: int, note: str) -> None:
        """Posts the checkpoint."""
        await aside(lambda: self._post(note.encode()))

    def _post(self, body: bytes) -> None:
        settings, parts = self._settings, self._parts
        headers = {"Content-Type": "text/plain; charset=utf-8", "User-Agent": "aegis"}
        if settings.token:
            headers["Authorization"] = f"Bearer {settings.token}"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            answer = self._exchange.post(path, body, headers)
        finally:
            self._exchange.drop()
        if not 200 <= answer.status < 300:
            raise Trouble(f"it answered with status {answer.status}", answer.after_s)


def make(settings: Settings) -> HttpWitness:
    """A witness of this type."""
    return HttpWitness(settings)
