"""The export process: each export has every event of the log, in order, at least once, whatever is killed when.

Run as `python -I -m aegis_daemon.exports.ship`. First line in: a `Job` as JSON, with the secrets, which so stand
neither among the arguments nor in the environment. Lines after that: `news N` (the log has record N), `test NAME
ID`. Lines out: `sink NAME at SEQ lag N ok`, `sink NAME at SEQ lag N trouble TEXT`, `gap NAME FIRST LAST TEXT` where
records are gone that an export has not had, `witness NAME at SIZE ok|trouble TEXT`, `tested ID ok|trouble TEXT`. With
`metrics JSON` come the daemon's numbers for a collector, and `metrics ok|trouble TEXT` says what became of them. Ends
at the end of its input, once everything is sent or `CLOSE_S` later.

The log itself is the spool, so memory holds one batch for each export; a cursor moves when the receiver has the batch.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from aegis_daemon.exports.cursor import Cursors, Place
from aegis_daemon.exports.event import Encode, Event, test
from aegis_daemon.exports.log import Log, Page
from aegis_daemon.exports.sink import Sink, Trouble, Witness, directly

SINKS: Final = {
    "hec": "aegis_daemon.exports.hec",
    "jsonl": "aegis_daemon.exports.jsonl",
    "otlp": "aegis_daemon.exports.otlp",
    "security_lake": "aegis_daemon.exports.security_lake",
    "syslog": "aegis_daemon.exports.syslog",
}
"""type → module with `Settings` and `make(settings, encode)`; imported only where it is configured"""
WITNESSES: Final[dict[str, str]] = {
    "file": "aegis_daemon.exports.witness_file",
    "http": "aegis_daemon.exports.witness_http",
    "s3": "aegis_daemon.exports.witness_object",
}
"""type → module with `Settings` and `make(settings)`"""
FORMATS: Final = {
    "aegis": "aegis_daemon.exports.event",
    "cef": "aegis_daemon.exports.cef",
    "ocsf": "aegis_daemon.exports.ocsf",
}
"""format → module with `encode(event)`"""
FIRST_S: Final = 0.5
MOST_S: Final = 60.0
CLOSE_S: Final = 5.0
LINE_MAX: Final = 1 << 24
SAY_S: Final = 1.0
"""How often an export that gets on says how far it is."""


class Target(msgspec.Struct, frozen=True):
    """One export, or one witness (whose `format` says nothing); `settings` are those of its type."""

    name: str
    type: str
    settings: dict[str, Any]
    format: str = "ocsf"
    begin: str = "start"
    bodies: bool = True
    keep: bool = False


class Job(msgspec.Struct, frozen=True):
    """What to do: the log's file, the cursors' file, and the receivers."""

    store: str
    cursors: str
    exports: list[Target]
    witnesses: list[Target] = []
    doubt: str = ""
    """`module:function` by which it is seen whether the log's key signed a checkpoint; of the daemon's choosing, since
    siblings do not know each other. Called with the key's path, origin, size and note; gives what is wrong, "" for
    nothing."""
    key_file: str = ""
    metrics: dict[str, Any] | None = None
    """where the daemon's numbers go (`otlp.Settings`)"""


Say = Callable[[str], None]
Doubt = Callable[[str, int, str], str]
Sleep = Callable[[float], Awaitable[None]]


def encoder(format: str) -> Encode:
    """The function of a format. Raises `KeyError` for one that there is not."""
    found: Encode = importlib.import_module(FORMATS[format]).encode
    return found


def sink_of(target: Target) -> Sink:
    """The receiver of an export. Raises `KeyError`, `msgspec.ValidationError`."""
    module = importlib.import_module(SINKS[target.type])
    settings = msgspec.convert(target.settings, module.Settings)
    made: Sink = module.make(settings, encoder(target.format))
    return made


def doubt_of(job: Job) -> Doubt | None:
    """What a checkpoint is looked at with before a witness gets it."""
    module, _, name = job.doubt.partition(":")
    return partial(getattr(importlib.import_module(module), name), Path(job.key_file)) if name else None


def witness_of(target: Target) -> Witness:
    """A witness. Raises `KeyError`, `msgspec.ValidationError`."""
    module = importlib.import_module(WITNESSES[target.type])
    made: Witness = module.make(msgspec.convert(target.settings, module.Settings))
    return made


class News:
    """How far the log is, for everybody who waits to go on."""

    def __init__(self) -> None:
        self.seq = 0
        self.over = False
        self._waiting: set[asyncio.Event] = set()

    def heard(self, seq: int) -> None:
        """The log has that record."""
        self.seq = max(self.seq, seq)
        self._wake()

    def end(self) -> None:
        """Nothing more will come."""
        self.over = True
        self._wake()

    def _wake(self) -> None:
        for event in self._waiting:
            event.set()

    async def wait(self, after: int, seconds: float | None) -> None:
        """Until the log has more than record `after`, or it is over, or `seconds` are."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            async with asyncio.timeout(seconds):
                while self.seq <= after and not self.over:
                    event.clear()
                    await event.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(event)


class Backoff:
    """Longer and longer pauses, each random between a half and one and a half of what it would be."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._next = FIRST_S

    def well(self) -> None:
        """It works again."""
        self._next = FIRST_S

    def pause(self, asked_s: float | None) -> float:
        """Seconds until the next try; at least what the receiver asked for (an hour at most)."""
        now, self._next = self._next, min(self._next * 2, MOST_S)
        return max(now * (0.5 + self._random()), min(asked_s or 0.0, 3600.0))


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
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
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
            try:
                more = await self.step()
                self._backoff.well()
                self._trouble = ""
                self._tell()
                if more:
                    continue
                if self._news.over:
                    break
                seq = self._place.seq if self._place is not None else 0
                await self._news.wait(max(seq, self._newest), None)
            except Exception as error:  # whatever is wrong with a receiver, the next try may work
                after = error.after_s if isinstance(error, Trouble) else None
                self._trouble = _text(error)
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
            return _text(error)
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
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
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
            seen = self._news.seq
            try:
                await self.step()
                self._backoff.well()
                if self._news.over:
                    break
                # A checkpoint comes some time after the records that it covers, and rings no bell.
                await self._news.wait(seen, POLL_S)
                await self._sleep(1.0)
            except Exception as error:  # as for exports
                self._tell(f"witness {self.name} at 0 trouble {_text(error)}")
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
        if self._doubt is not None and (why := self._doubt(origin, size, note)):
            self._pushed = known
            raise Trouble(why)
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


POLL_S: Final = 5.0


def _text(error: BaseException) -> str:
    """One line; only texts of ours, since others may repeat what was sent."""
    if isinstance(error, Trouble):
        return " ".join(str(error).split())[:500]
    if isinstance(error, sqlite3.Error):
        return f"the log or the cursors cannot be used: {error}"[:500]
    if isinstance(error, OSError):
        return " ".join((error.strerror or str(error)).split())[:500]
    return f"it failed with {type(error).__name__}, which is a fault of Aegis"


# --- the process -----------------------------------------------------------------------------------------------------


async def serve(job: Job, reader: asyncio.StreamReader, say: Say) -> None:
    """Serves every export and witness until the reader ends."""
    lock = await _alone(Path(job.cursors).with_suffix(".lock"))
    cursors = Cursors(Path(job.cursors))
    cursors.settle({target.name: target.keep for target in job.exports})
    news = News()
    store = Path(job.store)
    shippers: dict[str, Shipper] = {}
    broken: dict[str, str] = {}
    tasks: set[asyncio.Task[None]] = set()
    for target in job.exports:
        try:
            sink = sink_of(target)
        except Exception as error:
            broken[target.name] = f"it is not running: {_text(error)}"
            say(f"sink {target.name} at 0 lag 0 trouble {_text(error)}")
            continue
        shipper = Shipper(target, Log(store, bodies=target.bodies, steps=sink.steps), cursors, news, say, sink=sink)
        shippers[target.name] = shipper
        tasks.add(asyncio.create_task(shipper.run()))
    for target in job.witnesses:
        try:
            witness = witness_of(target)
        except Exception as error:
            say(f"witness {target.name} at 0 trouble {_text(error)}")
            continue
        pusher = Pusher(target, Log(store), cursors, news, say, witness=witness, doubt=doubt_of(job))
        tasks.add(asyncio.create_task(pusher.run()))

    async def tried(name: str, id: str) -> None:
        shipper = shippers.get(name)
        missing = broken.get(name, "there is no such export")
        why = await shipper.test() if shipper is not None else missing
        say(f"tested {id} " + (f"trouble {why}" if why else "ok"))

    numbers = _Numbers(job.metrics, say)
    tests: set[asyncio.Task[None]] = set()
    while line := await _line(reader, say):
        if line.startswith(b"metrics "):
            numbers.heard(line[8:])
            continue
        word, *rest = line.decode("utf-8", "replace").split()
        if word == "news" and len(rest) == 1 and rest[0].isdigit():
            news.heard(int(rest[0]))
        elif word == "test" and len(rest) == 2:
            task = asyncio.create_task(tried(*rest))
            tests.add(task)
            task.add_done_callback(tests.discard)
    news.end()
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=CLOSE_S)
        for task in late:
            task.cancel()
        for name in shippers:
            await shippers[name].sink.close()
    await numbers.close()
    cursors.close()
    os.close(lock)


async def _line(reader: asyncio.StreamReader, say: Say) -> bytes:
    """The next line, empty at the end. One that is too long is passed over, and told: only numbers are ever so long."""
    passing = False
    while True:
        try:
            line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return b"" if passing else error.partial
        except asyncio.LimitOverrunError as error:
            await reader.readexactly(error.consumed)
            passing = True
            continue
        if not passing:
            return line
        say(f"metrics trouble they have more than {LINE_MAX >> 20} MiB; set `telemetry.tools` lower")
        passing = False


class _Numbers:
    """The daemon's numbers, which are not worth repeating: of those that come while some are sent, the last count."""

    def __init__(self, settings: dict[str, Any] | None, say: Say) -> None:
        self._gauge: Any = None
        self._say = say
        self._next = b""
        self._task: asyncio.Task[None] | None = None
        if settings is not None:
            try:
                self._gauge = importlib.import_module(SINKS["otlp"]).sent(settings)
            except Exception as error:
                say(f"metrics trouble {_text(error)}")

    def heard(self, line: bytes) -> None:
        """They are these now."""
        self._next = line
        if self._gauge is not None and self._task is None:
            self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while line := self._next:
            self._next = b""
            try:
                await self._gauge.send(line)
            except Exception as error:
                self._say(f"metrics trouble {_text(error)}")
            else:
                self._say("metrics ok")
        self._task = None

    async def close(self) -> None:
        """Ends what is on its way."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=1.0)
            self._task.cancel()
        if self._gauge is not None:
            await self._gauge.close()


async def _alone(path: Path) -> int:
    """Waits for the process of a killed daemon, which may be at its last batch: two at once would break the order."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            await asyncio.sleep(0.05)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)

    def say(line: str) -> None:
        try:
            os.write(1, line.encode(errors="replace").replace(b"\n", b" ") + b"\n")
        except OSError:
            os._exit(0)  # nobody listens: the daemon is gone, and the next one begins at the cursor

    first = await reader.readline()
    if not first:
        return
    await serve(msgspec.json.decode(first, type=Job), reader, say)


def main() -> None:
    """The process; it gives way to everybody else, as the writer does."""
    os.umask(0o077)
    directly()  # before there are threads
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon says when it is over, by closing our input
    asyncio.run(_main())
    sys.stdout.flush()
    os._exit(0)  # a thread may still wait for a receiver that does not answer


if __name__ == "__main__":
    main()
