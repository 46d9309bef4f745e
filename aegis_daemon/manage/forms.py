"""A form of the approval page decides once, only for the link and the ask it was shown for, and only in time.

Whoever shows a page keeps nothing; what was used is remembered until it could not be used any more. A restarted daemon
knows no form of the one before, and shows the page again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Final

from aegis_daemon.loop.clock import wall

TOKEN_MAX: Final = 64
"""Characters in the longest token that is looked at; ours have 38."""
USED_MAX: Final = 10_000
"""Used tokens that are remembered. Whoever holds the links of so many asks could use one form of the oldest twice."""
_NONCE: Final = 12
_MAC: Final = 16


class Forms:
    """Makes tokens, and takes each once. `now` in seconds since the epoch."""

    def __init__(self, now: Callable[[], float] = wall) -> None:
        self._now = now
        self._key = secrets.token_bytes(32)
        self._used: dict[bytes, float] = {}

    def mint(self, *about: str) -> str:
        """A token for a form about these: the ask, the action of the link, the link's own token."""
        nonce = secrets.token_bytes(_NONCE)
        return _spelled(nonce + self._mac(nonce, about))

    def take(self, token: str, *about: str, until: float) -> bool:
        """Whether the token was made for these, by this daemon, and was not used before. Uses it up.

        :param until: when its ask expires. Who asks after that is told so before; a token needs no end of its own.
        """
        if not 0 < len(token) <= TOKEN_MAX or not token.isascii():
            return False
        try:
            data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except ValueError:
            return False
        nonce, mac = data[:_NONCE], data[_NONCE:]
        if len(data) != _NONCE + _MAC or not hmac.compare_digest(mac, self._mac(nonce, about)):
            return False
        if nonce in self._used or _spelled(data) != token:
            return False
        self._forget()
        self._used[nonce] = until
        return True

    def _forget(self) -> None:
        if len(self._used) >= USED_MAX:
            now = self._now()
            self._used = {nonce: until for nonce, until in self._used.items() if until > now}
        while len(self._used) >= USED_MAX:
            del self._used[next(iter(self._used))]

    def _mac(self, nonce: bytes, about: tuple[str, ...]) -> bytes:
        said = hashlib.sha256(nonce)
        for text in about:
            data = text.encode("utf-8", "surrogatepass")
            said.update(len(data).to_bytes(4, "big") + data)
        return hmac.digest(self._key, said.digest(), "sha256")[:_MAC]


def _spelled(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
