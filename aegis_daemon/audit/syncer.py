"""What was written before a sync began is on disk when it is over, and after one that failed none is believed."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from aegis_daemon.audit.disk import LogFile, sync_file


class Syncer:
    """The thread that syncs while the loop works on: whatever was written when a sync begins is covered by it.

    A process beside it, which has no lock to share with the loop, was slower in every run of `scripts/bench_audit`, for
    what it costs to wake it: one waiter p50 0.15 ms on a thread, 0.2 to 2 ms in a process (the disk alone 0.15 ms);
    64 waiters 21 000 to 46 000 commits/s (p50 0.75 to 0.9 ms) against 18 000 to 30 000 (0.8 to 2.4 ms).

    `written`, called on the thread, gives the newest record and the file that is written to; whatever holds records up
    to that one is then in the list of those to be retired, or still this file. `synced` and `failed` hear on the loop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        written: Callable[[], tuple[int, LogFile]],
        synced: Callable[[int], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self._loop = loop
        self._written = written
        self._synced = synced
        self._sync_failed = failed
        self._kicks: SimpleQueue[bool] = SimpleQueue()
        self._idle = True
        self._retiring: deque[LogFile] = deque()
        self.failed: OSError | None = None
        """Why the last sync failed: until `forget`, none is tried, for the next one would succeed and prove nothing."""
        self._thread = threading.Thread(target=self._run, name="aegis-audit-sync", daemon=True)
        self._thread.start()

    def kick(self) -> None:
        """Sync now, or as soon as the sync under way is over, where something still waits for it then."""
        if self._idle:
            self._idle = False
            self._kicks.put(True)

    def retire(self, file: LogFile) -> None:
        """The file will not be written to again: sync it once more and close it."""
        self._retiring.append(file)

    def retired(self) -> bool:
        """Whether no earlier file waits for its last sync; gives it a second.

        So no more than the two newest files can lack anything after a power loss.
        """
        if self._retiring:
            self._kicks.put(True)
            until = time.monotonic() + 1.0
            while self._retiring:
                if self.failed is not None or time.monotonic() > until:
                    return False
                time.sleep(0.001)
        return True

    def forget(self) -> None:
        """After a failed sync: what was not durable stands elsewhere now."""
        while self._retiring:
            file = self._retiring.popleft()
            os.close(file.fd)
            file.fd = -1
            file.doubtful = True
        self.failed = None

    def stop(self) -> None:
        """Ends the thread."""
        self._kicks.put(False)
        self._thread.join()

    def finish(self) -> None:
        """What the thread left undone. Raises `OSError`."""
        if self.failed is not None:
            raise self.failed
        while self._retiring:
            self._last_sync(self._retiring[0])

    def _last_sync(self, file: LogFile) -> None:
        sync_file(file.fd)
        fd, file.fd = file.fd, -1
        os.close(fd)
        self._retiring.popleft()

    def _run(self) -> None:
        while self._kicks.get():
            seq, live = self._written()
            try:
                if self.failed is not None:
                    raise self.failed
                while self._retiring:
                    self._last_sync(self._retiring[0])
                if live.fd >= 0:
                    sync_file(live.fd)
            except OSError as error:
                self.failed = error
                self._tell(self._failed, error)
            else:
                self._tell(self._done, seq)

    def _done(self, seq: int) -> None:
        self._idle = True
        self._synced(seq)

    def _failed(self, error: OSError) -> None:
        self._idle = True
        self._sync_failed(error)

    def _tell(self, function: Callable[..., None], value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:
            pass  # the loop is closed, and nobody waits any more
