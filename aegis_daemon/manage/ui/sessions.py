"""A session begins with something only an approver has, and ends by itself; what opens one is kept as a hash alone.

Pure: time and randomness are arguments. Cookies do not tell the ports of a host apart, so a session also holds only
under the name (`Host`) by which it was begun.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Final

import msgspec

TOKEN_S: Final = 120.0
"""How long a login token is good, once."""
SESSION_S: Final = 12 * 3600.0
TOKENS: Final = 16
"""Tokens that may wait to be used; the oldest goes when one more is asked for."""
SESSIONS: Final = 64
"""Sessions that may be open; the oldest goes when one more begins."""


class Person(msgspec.Struct, frozen=True):
    """Who decides in a session: the name for records, and what tells them apart from others (`user:ann`)."""

    by: str
    voter: str


def always() -> bool:
    """What a login token began holds whatever else changes."""
    return True


class Session(msgspec.Struct, eq=False):
    """One browser's session. `csrf` goes into every form; times are of the clock that `Logins` was given."""

    person: Person
    host: str
    csrf: str
    ends: float
    holds: Callable[[], bool]
    """whether what it was begun with still opens one: a token that was changed, since it leaked, ends what it began"""
    scripted: bool = False
    """whether a script has `csrf`, so that it stands in no page"""
    open: bool = True
    streams: int = 0
    on_end: list[Callable[[], None]] = []
    """what is told when it ends before its time"""


class Logins:
    """All tokens and sessions. In memory: a daemon that ends, ends them.

    :param now: seconds on a clock that only goes forward.
    :param secret: makes a new unguessable text of at least 256 bits.
    """

    def __init__(self, now: Callable[[], float], secret: Callable[[], str]) -> None:
        self._now = now
        self._secret = secret
        self._tokens: dict[bytes, tuple[Person, float]] = {}
        self._sessions: dict[bytes, Session] = {}

    def __len__(self) -> int:
        """Sessions that are open."""
        self._sweep()
        return len(self._sessions)

    def invite(self, person: Person) -> str:
        """A token that lets whoever shows it first begin a session as this person."""
        self._sweep()
        while len(self._tokens) >= TOKENS:
            del self._tokens[next(iter(self._tokens))]
        token = self._secret()
        self._tokens[_digest(token)] = (person, self._now() + TOKEN_S)
        return token

    def redeem(self, token: str) -> Person | None:
        """Whose token it is; None where it is nobody's, used or too old. It is used up by this."""
        found = self._tokens.pop(_digest(token), None)
        if found is None or found[1] <= self._now():
            return None
        return found[0]

    def begin(self, person: Person, host: str, holds: Callable[[], bool] = always) -> tuple[str, Session]:
        """A new session, and the cookie that names it."""
        self._sweep()
        while len(self._sessions) >= SESSIONS:
            self._drop(next(iter(self._sessions)))
        cookie = self._secret()
        session = Session(person, host.lower(), self._secret(), self._now() + SESSION_S, holds)
        self._sessions[_digest(cookie)] = session
        return cookie, session

    def find(self, cookie: str, host: str) -> Session | None:
        """The session with this cookie, if it is open and was begun under this name."""
        session = self._sessions.get(_digest(cookie))
        if session is None or not self.good(session) or session.host != host.lower():
            return None
        return session

    def good(self, session: Session) -> bool:
        """Whether it is still open."""
        return session.open and session.ends > self._now() and session.holds()

    def end(self, session: Session) -> None:
        """Logs out."""
        for key, known in list(self._sessions.items()):
            if known is session:
                self._drop(key)

    def end_all(self) -> int:
        """Ends every session and forgets every token; how many sessions there were."""
        self._sweep()
        count = len(self._sessions)
        for key in list(self._sessions):
            self._drop(key)
        self._tokens.clear()
        return count

    def _drop(self, key: bytes) -> None:
        session = self._sessions.pop(key)
        session.open = False
        for tell in session.on_end:
            tell()

    def _sweep(self) -> None:
        now = self._now()
        for token in [token for token, (_, until) in self._tokens.items() if until <= now]:
            del self._tokens[token]
        for key in [key for key, one in self._sessions.items() if one.ends <= now or not one.holds()]:
            self._drop(key)


def same_form(session: Session, given: str) -> bool:
    """Whether a form came from one of the session's own pages."""
    return hmac.compare_digest(session.csrf.encode(), given.encode())


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()
