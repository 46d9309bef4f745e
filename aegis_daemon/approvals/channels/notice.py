"""What a channel is told, and what it makes of it: one POST, and a word on the answer. Channels do no IO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec


class Notice(msgspec.Struct, frozen=True):
    """One ask. `arguments` is JSON text, `created` seconds since the epoch; `code` is empty unless pages ask for it."""

    id: str
    call_id: str
    agent: str
    backend: str
    tool: str
    arguments: str
    created: float
    approve_url: str
    reject_url: str
    code: str = ""


class Post(msgspec.Struct, frozen=True):
    """One request to a webhook. The url and the headers may hold secrets."""

    url: str
    headers: Mapping[str, str]
    body: bytes


class Channel(Protocol):
    """One way to reach people. `name` is its key in the configuration and in the log."""

    @property
    def name(self) -> str:
        """As in `approval.<name>`."""
        ...

    def post(self, notice: Notice, now: float) -> Post:
        """What to send; `now` in seconds since the epoch, since some sign the time."""
        ...

    def fault(self, status: int, body: bytes) -> str | None:
        """None where the answer says that the message was taken, else why not, without secrets."""
        ...
