"""One witness has the newest signed checkpoint, and none that the log's own key did not sign."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

from aegis_daemon.exports.cursor import Cursors
from aegis_daemon.exports.job import Target
from aegis_daemon.exports.log import Log
from aegis_daemon.exports.pace import Backoff, News, Say, Sleep, why
from aegis_daemon.exports.sink import Trouble, Witness

POLL_S: Final = 5.0
"""How often it is looked for a checkpoint while the log has no news."""

Doubt = Callable[[str, int, str], str]
"""Gets origin, size and note of a checkpoint; says what is wrong with it, "" for nothing."""


class Pusher:
    """One witness, which gets the newest signed checkpoint."""

    def __init__(
        self,
        target: Target,
        log: Log,
        cursors: Cursors,
        news: News,
        say: Say,
        *,
        witness: Witness,
        doubt: Doubt | None = None,
        sleep: Sleep = asyncio.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.name = target.name
        self._log = log
        self._cursors = cursors
        self._news = news
        self._say = say
        self._sleep = sleep
        self._witness = witness
        self._doubt = doubt
        self._pushed = ""
        self._backoff = Backoff(random)
        self._told = ""

    async def run(self) -> None:
        """Until the news are over."""
        while True:
            seen, over = self._news.seq, self._news.over  # before the look at the log, as for exports
            try:
                await self.step()
                self._backoff.well()
                if over:
                    break
                # A checkpoint comes some time after the records that it covers, and rings no bell.
                await self._news.wait(seen, POLL_S)
                await self._sleep(1.0)
            except Exception as error:  # as for exports
                self._tell(f"witness {self.name} at 0 trouble {why(error)}")
                if self._news.over:
                    break
                after = error.after_s if isinstance(error, Trouble) else None
                await self._sleep(self._backoff.pause(after))
        await self._witness.close()

    async def step(self) -> bool:
        """Pushes the newest checkpoint if this witness does not have it; whether it did."""
        found = self._log.checkpoint()
        if found is None:
            return False
        origin, size, note = found
        # While no record comes, the same one is signed again now and then, which says that the log is alive.
        known, self._pushed = self._pushed, note
        if size <= self._cursors.witnessed(self.name, origin) and known in ("", note):
            self._tell(f"witness {self.name} at {size} ok")
            return False
        if self._doubt is not None and (wrong := self._doubt(origin, size, note)):
            self._pushed = known
            raise Trouble(wrong)
        try:
            await self._witness.push(origin, size, note)
        except BaseException:
            self._pushed = known
            raise
        self._cursors.witness(self.name, origin, size)
        self._tell(f"witness {self.name} at {size} ok")
        return True

    def _tell(self, line: str) -> None:
        if line != self._told:
            self._told = line
            self._say(line)
