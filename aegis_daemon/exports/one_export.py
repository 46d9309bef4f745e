"""One export has every event of the log in order: its cursor moves once the receiver has the batch, and no sooner."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from aegis_daemon.exports.cursor import Cursors, Place
from aegis_daemon.exports.event import Event, test
from aegis_daemon.exports.job import Target
from aegis_daemon.exports.log import Log, Page
from aegis_daemon.exports.pace import Backoff, News, Say, Sleep, why
from aegis_daemon.exports.sink import Sink, Trouble

SAY_S: Final = 1.0
"""How often an export that gets on says how far it is."""


class Shipper:
    """One export on its way through the log."""

    def __init__(
        self,
        target: Target,
        log: Log,
        cursors: Cursors,
        news: News,
        say: Say,
        *,
        sink: Sink,
        sleep: Sleep = asyncio.sleep,
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = target.name
        self.sink = sink
        self._target = target
        self._log = log
        self._cursors = cursors
        self._news = news
        self._say = say
        self._sleep = sleep
        self._backoff = Backoff(random)
        self._clock = clock
        self._place: Place | None = None
        self._told = ""
        self._told_at = 0.0
        self._newest = 0
        self._sending = asyncio.Lock()
        self._trouble = ""

    async def run(self) -> None:
        """Until the news are over and everything is sent. Never raises but for its own cancellation."""
        while True:
            over = self._news.over  # if it is over only after the look at the log, there may be more
            try:
                more = await self.step()
                self._backoff.well()
                self._trouble = ""
                self._tell()
                if more:
                    continue
                if over:
                    break
                seq = self._place.seq if self._place is not None else 0
                await self._news.wait(max(seq, self._newest), None)
            except Exception as error:  # whatever is wrong with a receiver, the next try may work
                after = error.after_s if isinstance(error, Trouble) else None
                self._trouble = why(error)
                self._tell(now=True)
                if self._news.over:
                    break
                await self._sleep(self._backoff.pause(after))
        await self.sink.close()

    async def step(self) -> bool:
        """Sends the next batch, if there is one; whether there may be more. Raises what the sink or a file raises."""
        place = self._found()
        most, size = self.sink.most, self.sink.most_bytes
        page = self._log.page(place.seq, most, size)
        self._newest = page.newest
        if page.seq == place.seq:
            return False
        if page.chain != place.chain:
            return True  # the log was replaced meanwhile; look again
        if self.sink.linger_s and not page.full and page.seq == page.newest and not self._news.over:
            page = await self._gathered(place)
        skipped: tuple[Event, ...] = ()
        if page.events:
            async with self._sending:
                self.sink.skipped = ()
                await self.sink.send(page.events)
                skipped = self.sink.skipped
        for event in page.events:
            if event.kind == "gap":
                first, last = event.uid.rsplit("-", 2)[1:]
                self._say(f"gap {self.name} {first} {last} they were deleted before this export had them")
        for event in skipped:
            if event.record.action != "export_gap":  # of which this one would make another
                self._say(f"gap {self.name} {event.seq} {event.seq} it is too long for the receiver")
        self._move(Place(page.chain, page.seq, page.hash))
        return page.seq < page.newest

    async def test(self) -> str:
        """Sends a test event; gives the trouble, "" for none."""
        place = self._place
        try:
            async with self._sending:
                await self.sink.send([test(place.chain if place is not None else "", int(time.time() * 1e6))])
        except Exception as error:
            return why(error)
        return ""

    def _found(self) -> Place:
        """Where to go on: the cursor, unless the log is another one by now."""
        if self._place is None:
            self._place = self._cursors.place(self.name)
        chain, digest, newest = self._log.at(self._place.seq if self._place is not None else 0)
        place = self._place
        if place is None:
            seq = newest if self._target.begin == "now" else 0
            _, digest, _ = self._log.at(seq)
            place = Place(chain, seq, digest or "")
            self._move(place)
        elif chain != place.chain and place.chain == "":
            place = Place(chain, place.seq, place.hash)  # it had no record yet
        elif chain != place.chain or (digest is not None and place.hash and digest != place.hash):
            if not chain:
                raise OSError("the log has no records; it is filled from the journal again")
            self._say(f"gap {self.name} {place.seq + 1} {place.seq + 1} the log was replaced by another one")
            place = Place(chain, 0, "")
            self._move(place)
        elif newest < place.seq:
            raise OSError(f"the log ends at record {newest}, before what was sent; it is filled from the journal again")
        self._place = place
        return place

    async def _gathered(self, place: Place) -> Page:
        """More to send at once, where the sink likes that; the log is not read meanwhile."""
        ends = self._clock() + self.sink.linger_s
        enough = place.seq + 2 * self.sink.most  # a call has two records or more
        while not self._news.over and (left := ends - self._clock()) > 0 and self._news.seq < enough:
            self._tell()
            await self._news.wait(max(self._newest, self._news.seq), left)
        page = self._log.page(place.seq, self.sink.most, self.sink.most_bytes)
        self._newest = page.newest
        if page.chain != place.chain:
            raise OSError("the log was replaced")
        return page

    def _move(self, place: Place) -> None:
        self._cursors.move(self.name, place, keep=self._target.keep)
        self._place = place

    def _tell(self, *, now: bool = False) -> None:
        seq = self._place.seq if self._place is not None else 0
        lag = max(0, max(self._newest, self._news.seq) - seq)
        line = f"sink {self.name} at {seq} lag {lag} " + (f"trouble {self._trouble}" if self._trouble else "ok")
        at = self._clock()
        if line != self._told and (now or not lag or at - self._told_at >= SAY_S):
            self._told, self._told_at = line, at
            self._say(line)
