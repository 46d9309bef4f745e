"""What every receiver of the log is to the process that serves it: it takes a batch whole, or raises and gets it again.

A new type of export is one file, with its settings and its class, and one row in `ship.SINKS`.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from typing import ClassVar, TypeVar

from aegis_daemon.exports.event import Event

T = TypeVar("T")


class Trouble(Exception):
    """The receiver did not take it; the text says why, without any secret. `after_s`: it asks for this pause."""

    def __init__(self, text: str, after_s: float | None = None) -> None:
        super().__init__(text)
        self.after_s = after_s


class Sink:
    """One receiver. A batch has at most `most` events and about `most_bytes`, and gathers for `linger_s` at most."""

    most: ClassVar[int] = 500
    most_bytes: ClassVar[int] = 1 << 20
    linger_s: float = 0.0
    steps: ClassVar[bool] = False
    """whether it wants all records of a call (`Event.steps`)"""
    skipped: tuple[Event, ...] = ()
    """what the last batch went without, since this receiver can never take it; a gap event stands in its place"""

    async def send(self, batch: list[Event]) -> None:
        """Returns once the receiver has all of it for good. Raises `Trouble` or `OSError`; it then comes again."""
        raise NotImplementedError

    async def close(self) -> None:
        """Lets go of files and connections; idempotent."""


class Witness:
    """One place that keeps signed checkpoints where the daemon cannot change them."""

    async def push(self, origin: str, size: int, note: str) -> None:
        """Returns once it is kept there. Raises `Trouble` or `OSError`."""
        raise NotImplementedError

    async def close(self) -> None:
        """Lets go of files and connections; idempotent."""


def trusting(ca_file: str | None) -> ssl.SSLContext:
    """TLS that believes the system's authorities, or those of a file alone. Raises `Trouble`."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError):
        raise Trouble(f"the certificates in `{ca_file}` cannot be read; see `ca_file`") from None


def directly() -> None:
    """This process uses no proxy of its environment: what is sent is for the receiver alone."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)


async def aside(work: Callable[[], T]) -> T:
    """Runs blocking work, whose waits are bounded, in a thread."""
    return await asyncio.to_thread(work)
