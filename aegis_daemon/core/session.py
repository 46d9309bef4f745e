"""The requests open in one direction of one session: ids, progress tokens, cancellation and late answers.

Pure: it is told what happened and says what it means. Towards the other side every request gets a number of ours
that is never used again, so an answer belongs to exactly one request or to none (a late, repeated or invented one).
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.wire.jsonrpc import Id


class State(enum.IntEnum):
    """How far a request has come."""

    WAITING = 0
    """may still be withdrawn without a trace at the other side"""
    COMMITTING = 1
    """its intent is being written; not to be interrupted"""
    SENT = 2
    """the other side has it"""
    DONE = 3


class Open(msgspec.Struct, eq=False):
    """One open request. `waiter` and `strand` belong to whoever carries it, `slot` to its client.

    `key` is what it is found by here and `token` what its progress is: the sender's own `request_id` and `asked_token`,
    unless several senders share the session.
    """

    request_id: Id
    key: Id
    token: int | str | None = None
    asked_token: int | str | None = None
    call: Call | None = None
    state: State = State.WAITING
    cancelled: bool = False
    number: int = 0
    slot: int = -1
    deadline: float = 0.0
    held: float = 0.0
    """since when it has waited for a person; 0 where it does not"""
    alone: bool = False
    """nobody waits for its answer: it goes on for a task of ours"""
    beats: int = 0
    strand: Any = None
    waiter: Any = None
    unsent: Any = None
    """the reason that ended it before it was sent, where nobody had left"""


class TooMany(Exception):
    """The session has as many requests open as it may have."""


class Duplicate(Exception):
    """A request with this id is still open."""


class OpenRequests:
    """All open requests of one direction."""

    __slots__ = ("_by_number", "_by_request", "_by_token", "_limit", "_next")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._next = 0
        self._by_request: dict[Id, Open] = {}
        self._by_number: dict[int, Open] = {}
        self._by_token: dict[int | str, Open] = {}

    def __len__(self) -> int:
        return len(self._by_request)

    def begin(self, request_id: Id, params: dict[str, Any], key: Id | None = None, *, beyond: bool = False) -> Open:
        """A request came; `key` where its id is not the session's only one, `beyond` where the limit does not count.

        Raises `Duplicate` and `TooMany`.
        """
        shared = key is not None
        if key is None:
            key = request_id
        if key in self._by_request:
            raise Duplicate
        if len(self._by_request) >= self._limit and not beyond:
            raise TooMany
        meta = params.get("_meta")
        token = meta.get("progressToken") if type(meta) is dict else None
        if token is not None and type(token) is not str and type(token) is not int:
            token = None
        opened = Open(request_id, key, token, token)
        self._by_request[key] = opened
        if token is not None:
            if shared:
                opened.token = token = key
            self._by_token[token] = opened
        return opened

    def sent(self, opened: Open) -> int:
        """The request goes out: the number it goes under."""
        self._next += 1
        opened.number = self._next
        opened.state = State.SENT
        self._by_number[self._next] = opened
        return self._next

    def answered(self, number: Id) -> Open | None:
        """An answer came back: the request it belongs to, or None for a late, repeated or invented one."""
        return self._by_number.pop(number, None) if type(number) is int else None

    def peek(self, number: Id | None) -> Open | None:
        """The request that went out under this number and has no answer yet."""
        return self._by_number.get(number) if type(number) is int else None

    def find(self, key: Any) -> Open | None:
        """The open request with this key: the sender's id, unless several senders share the session."""
        if type(key) is not int and type(key) is not str:
            return None
        return self._by_request.get(key)

    def progressing(self, token: Any) -> Open | None:
        """The open request whose sender wants progress under this token."""
        if type(token) is not int and type(token) is not str:
            return None
        return self._by_token.get(token)

    def end(self, opened: Open) -> None:
        """The request is over, however it ended."""
        opened.state = State.DONE
        opened.waiter = opened.strand = None  # they hold it too; a cycle would keep all of the call until a collection
        if self._by_request.get(opened.key) is opened:
            del self._by_request[opened.key]
        if opened.number:
            self._by_number.pop(opened.number, None)
        if opened.token is not None and self._by_token.get(opened.token) is opened:
            del self._by_token[opened.token]

    def newest(self) -> Open | None:
        """The request that came last and is still open; those that go on alone are nobody's."""
        return next((one for one in reversed(self._by_request.values()) if not one.alone), None)

    def all(self) -> list[Open]:
        """Every open request, oldest first."""
        return list(self._by_request.values())
