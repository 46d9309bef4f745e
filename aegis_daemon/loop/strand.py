"""A call is a coroutine stepped by hand: it runs until it has to wait, and costs neither a task nor a loop turn before.

Measured in `scripts/bench` (S4): a Task and a Future per call cost about as much as everything else a call does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger("aegis.strand")


class Waiter(Generic[T]):
    """A one-shot event with a value or an error, awaited by at most one strand."""

    __slots__ = ("_done", "_error", "_value", "_wake")

    def __init__(self) -> None:
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._wake: Callable[[], None] | None = None

    @property
    def done(self) -> bool:
        """Whether it has happened."""
        return self._done

    def set(self, value: T) -> None:
        """Happens, and runs the strand that waits, before this returns; a second time is ignored."""
        if not self._done:
            self._done = True
            self._value = value
            self._fire()

    def fail(self, error: BaseException) -> None:
        """Happens as an error."""
        if not self._done:
            self._done = True
            self._error = error
            self._fire()

    def _fire(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def __await__(self) -> Generator[Waiter[T], None, T]:
        if not self._done:
            yield self
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[no-any-return]


class Strand:
    """One running call. Every await in it must end in a `Waiter`."""

    __slots__ = ("_coroutine", "_waiter")

    def __init__(self, coroutine: Coroutine[Waiter[Any], None, None]) -> None:
        self._coroutine = coroutine
        self._waiter: Waiter[Any] | None = None

    def start(self) -> None:
        """Runs it to its first wait, or to its end."""
        self._step()

    def _step(self) -> None:
        self._waiter = None
        try:
            waiter = self._coroutine.send(None)
        except StopIteration:
            return
        except Exception:
            _log.exception("a call ended with an error nobody caught")
            return
        self._wait(waiter)

    def _wait(self, waiter: Waiter[Any]) -> None:
        self._waiter = waiter
        if waiter._done:  # it happened while the coroutine was on its way to us
            self._step()
        else:
            waiter._wake = self._step

    def interrupt(self, error: Exception) -> None:
        """Raises `error` where the strand waits; nothing happens to one that is running or over."""
        waiter = self._waiter
        if waiter is None:
            return
        waiter._wake = None
        self._waiter = None
        try:
            waiter = self._coroutine.throw(error)
        except StopIteration:
            return
        except Exception as raised:
            if raised is not error:
                _log.exception("a call ended with an error nobody caught")
            return
        self._wait(waiter)
