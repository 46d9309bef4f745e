"""What may take as long as a stranger likes is done beside the loop: in threads, so many per user and no more.

Letting go of a descriptor that somebody handed over is such work. Whoever closes a socket last may have to wait for
what is unsent on it (SO_LINGER), non-blocking or not, and whoever closes a file may have to wait for its file system,
which may be a program of that somebody. So is receiving: what a message brings and nobody takes, the kernel closes then
and there, in the thread that reads. Users are counted apart, so that one who sticks all of theirs waits alone.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

import msgspec

_log = logging.getLogger("aegis.aside")
NOBODY: Final = -1
"""Who it is for where the system does not tell."""
THREADS: Final = 8
"""Of one user at once; further work waits for these."""
RETRY_S: Final = 0.2
"""Until the next attempt where the system has no thread to spare."""
_Work = tuple[Callable[[], Any], Callable[[Any], object], int]


class _Lane(msgspec.Struct, eq=False):
    busy: int = 0
    later: bool = False
    waiting: deque[_Work] = msgspec.field(default_factory=deque)


class Aside:
    """Belongs to the loop's thread; only the work itself runs elsewhere."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lanes: dict[int, _Lane] = {}
        self.held = 0
        """Descriptors that are not let go of yet, of all users together."""

    def do(
        self, uid: int, work: Callable[[], Any], then: Callable[[Any], object] = lambda done: None, *, fds: int = 1
    ) -> None:
        """Has it done for this user, and `then` told in the loop what it returned: None where it raised.

        `fds`: how many descriptors it keeps until then.
        """
        lane = self._lanes.setdefault(uid, _Lane())
        lane.waiting.append((work, then, fds))
        self.held += fds
        self._more(uid, lane)

    def let_go(self, uid: int, fds: Iterable[int]) -> None:
        """Closes these descriptors, which nothing may use any more."""
        gone = list(fds)
        if gone:
            self.do(uid, partial(close_all, gone), fds=len(gone))

    def behind(self, uid: int) -> int:
        """How much of this user's waits for a thread."""
        lane = self._lanes.get(uid)
        return len(lane.waiting) if lane is not None else 0

    def _more(self, uid: int, lane: _Lane) -> None:
        lane.later = False
        while lane.waiting and lane.busy < THREADS:
            try:
                # Not `threading`: its `start` waits until the thread runs, and one that hangs could hold up the end.
                _thread.start_new_thread(self._run, (uid, lane, *lane.waiting[0]))
            except RuntimeError:
                if not lane.later:
                    lane.later = True
                    self._loop.call_later(RETRY_S, self._more, uid, lane)
                return
            lane.waiting.popleft()
            lane.busy += 1
        if not lane.busy and self._lanes.get(uid) is lane:
            del self._lanes[uid]

    def _run(self, uid: int, lane: _Lane, work: Callable[[], Any], then: Callable[[Any], object], fds: int) -> None:
        done = None
        try:
            done = work()
        except Exception:
            _log.exception("what was done beside the loop failed")
        try:
            self._loop.call_soon_threadsafe(self._done, uid, lane, then, fds, done)
        except RuntimeError:
            pass  # the loop is closed: the daemon ends

    def _done(self, uid: int, lane: _Lane, then: Callable[[Any], object], fds: int, done: Any) -> None:
        lane.busy -= 1
        self.held -= fds
        self._more(uid, lane)
        then(done)


def close_all(fds: Iterable[int]) -> None:
    """Closes each, whatever the others do."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass  # it is gone all the same
