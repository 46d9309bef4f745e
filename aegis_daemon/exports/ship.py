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
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from aegis_daemon.exports.cursor import Cursors
from aegis_daemon.exports.event import Encode
from aegis_daemon.exports.job import Job, Target
from aegis_daemon.exports.log import Log
from aegis_daemon.exports.one_export import Shipper
from aegis_daemon.exports.one_witness import Doubt, Pusher
from aegis_daemon.exports.pace import News, Say, why
from aegis_daemon.exports.sink import Sink, Witness, directly

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
CLOSE_S: Final = 5.0
LINE_MAX: Final = 1 << 24


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
            broken[target.name] = f"it is not running: {why(error)}"
            say(f"sink {target.name} at 0 lag 0 trouble {why(error)}")
            continue
        shipper = Shipper(target, Log(store, bodies=target.bodies, steps=sink.steps), cursors, news, say, sink=sink)
        shippers[target.name] = shipper
        tasks.add(asyncio.create_task(shipper.run()))
    for target in job.witnesses:
        try:
            witness = witness_of(target)
        except Exception as error:
            say(f"witness {target.name} at 0 trouble {why(error)}")
            continue
        pusher = Pusher(target, Log(store), cursors, news, say, witness=witness, doubt=doubt_of(job))
        tasks.add(asyncio.create_task(pusher.run()))

    async def tried(name: str, id: str) -> None:
        shipper = shippers.get(name)
        missing = broken.get(name, "there is no such export")
        trouble = await shipper.test() if shipper is not None else missing
        say(f"tested {id} " + (f"trouble {trouble}" if trouble else "ok"))

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
                say(f"metrics trouble {why(error)}")

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
                self._say(f"metrics trouble {why(error)}")
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
