"""An agent whose wrapper is taken out behind our back, or that gets a server beside it, is noticed and told once.

It looks at the files that we wired, every half minute and off the loop: where nothing has changed that is one `stat` of
each. It only tells. In the advisory tier an agent can write its own configuration, and that cannot be prevented here.
What would keep it from looking is told as well: a list of what is wired that is gone or says something else without a
person's command, a file that cannot be read, a look that does not come to its end.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from aegis_daemon.clients import catalog, documents, files, ledger, standing, wiring
from aegis_daemon.clients import entries as entries_of
from aegis_daemon.clients.documents import equal
from aegis_daemon.clients.ledger import File, Ledger
from aegis_daemon.core.text import visible

_log = logging.getLogger("aegis.wiring")
EVERY_S: Final = 30.0
SLOW_S: Final = 60.0
"""From then on a look is one that somebody may be keeping from its end."""
PATIENT: Final = 3
"""Looks in a row for which a file may be half written, or a command at work."""
SHOWN: Final = 5
"""Findings that a status names; the others are counted."""
LOUD: Final = 20
"""New findings of one look that are recorded one by one; the others are counted."""
ALARM: Final = "Aegis: a server of an agent runs without it"
_SCHEMA: Final = "CREATE TABLE IF NOT EXISTS wiring_told (finding TEXT PRIMARY KEY) STRICT;"
_NOBODY: Final = standing.Here("")


@dataclass(frozen=True, slots=True)
class Finding:
    """One server that a client starts without us."""

    file: str
    name: str
    agent: str
    why: str

    @property
    def key(self) -> str:
        """The same as long as it is the same thing."""
        return json.dumps([self.file, self.name, self.why])

    def __str__(self) -> str:
        if not self.name:
            return f"{visible(self.file)}: {visible(self.why)}"
        whose = f" of {visible(self.agent)}" if self.agent else ""
        how = "" if self.why in (LOST, ALTERED) else " runs without Aegis"
        return f"`{visible(self.name[:100])}`{whose} in {visible(self.file)}{how}: {self.why}"


REMOVED: Final = "its wrapper was taken out"
OTHER: Final = "it starts something else than it was wired to, or reaches another daemon"
ADDED: Final = "it was added beside what is wired"
LOST: Final = "it is not in the list of what is wired any more, and no command of a person took it out"
UNREAD: Final = "it cannot be read any more, so nobody can tell what its agent starts"
HELD: Final = "somebody else holds this lock, which keeps `aegis agents` from working"
NO_LOCK: Final = "it is no file that could be locked, which keeps `aegis agents` from working; move it away"
DAMAGED: Final = "the list of what is wired cannot be read"
ALTERED: Final = "what was wired in it is listed otherwise than before, and no command of a person did that"
SLOW: Final = "looking at what is wired takes more than a minute, so nobody can tell what agents start"
FAILED: Final = "what is wired could not be looked at (see `aegis logs`), so nobody can tell what agents start"


@dataclass(slots=True)
class _Seen:
    """A file as it was looked at last."""

    mark: tuple[int, ...]
    part: str | None
    """the servers of it, as text, where they could be read quickly"""
    found: tuple[Finding, ...]


class WiringWatch:
    """Call `start` on the running loop. `record` notes a finding in the log, `tell` writes to people."""

    def __init__(
        self,
        state_dir: str,
        db: sqlite3.Connection,
        *,
        record: Callable[[str, str], None],
        tell: Callable[[str, str], bool],
        every: float = EVERY_S,
        slow: float = SLOW_S,
    ) -> None:
        """Takes over what an earlier daemon told. Raises `sqlite3.Error`."""
        self._dir = state_dir
        self._db = db
        self._record = record
        self._tell = tell
        self._every = every
        self._slow = slow
        db.executescript(_SCHEMA)
        self._told: set[str] = {row[0] for row in db.execute("SELECT finding FROM wiring_told")}
        self._seen: dict[str, _Seen] = {}
        self._ledger: tuple[tuple[int, ...], Ledger] | None = None
        self._known = Ledger()
        self._lost: dict[tuple[str, ledger.Ident], Finding] = {}
        self._altered: tuple[Finding, ...] = ()
        self._expected = False
        self._short = self._held = 0
        self._unread: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self.found: tuple[Finding, ...] = ()

    def start(self) -> None:
        """Looks now, and from time to time."""
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Looks no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def expect(self) -> None:
        """A person has wired entries, or taken some out, just now."""
        self._expected = True

    def warnings(self) -> tuple[str, ...]:
        """What a status says of it."""
        if not self.found:
            return ()
        lines = [str(one) for one in self.found[:SHOWN]]
        if len(self.found) > SHOWN:
            lines.append(f"{len(self.found) - SHOWN} more servers run without Aegis")
        lines[-1] += "; see `aegis agents list`, wire it with `aegis agents wire`"
        return tuple(lines)

    async def _run(self) -> None:
        while True:
            looking = self._begin()
            try:
                if not (await asyncio.wait([looking], timeout=self._slow))[0]:
                    self._cannot(SLOW)
                found = await looking
                if found is not None:
                    self.take(found)
            except Exception:  # a file of another program must not end the watch
                _log.exception("the clients' files could not be looked at")
                self._cannot(FAILED)
            await asyncio.sleep(self._every)

    def _begin(self) -> asyncio.Future[tuple[Finding, ...] | None]:
        """A look in a thread that keeps nobody from ending, as one of a pool would."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Finding, ...] | None] = loop.create_future()

        def say(found: tuple[Finding, ...] | None, error: Exception | None) -> None:
            if answer.done():
                return  # nobody waits any more
            if error is None:
                answer.set_result(found)
            else:
                answer.set_exception(error)

        def run() -> None:
            found, fault = None, None
            try:
                found = self.look()
            except Exception as error:
                fault = error
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(say, found, fault)

        threading.Thread(target=run, name="wiring", daemon=True).start()
        return answer

    def _cannot(self, why: str) -> None:
        """Tells that nothing was found out; what was found before still holds."""
        kept = [one for one in self.found if one.why not in (SLOW, FAILED)]
        self.take((*kept, Finding(os.path.join(self._dir, ledger.NAME), "", "", why)))

    def take(self, found: Iterable[Finding]) -> None:
        """These are the findings by now: what is new is recorded and told."""
        self.found = tuple(found)
        keys = {one.key for one in self.found}
        new = [one for one in self.found if one.key not in self._told]
        for one in new[:LOUD]:
            _log.warning("%s", one)
            self._record("unwired", str(one))
        if len(new) > LOUD:
            self._record("unwired", f"{len(new) - LOUD} more")
        if new:
            more = f", and {len(new) - 1} more" if len(new) > 1 else ""
            self._tell(ALARM, f"{new[0]}{more}")
        if keys != self._told:
            self._told = keys
            with suppress(sqlite3.Error), self._db:  # else it is told again after a restart
                self._db.execute("DELETE FROM wiring_told")
                self._db.executemany("INSERT INTO wiring_told VALUES (?)", [(key,) for key in sorted(keys)])

    # --- in a thread

    def look(self) -> tuple[Finding, ...] | None:
        """What is found now; None where a command is at work just then."""
        path, held = os.path.join(self._dir, ledger.NAME), os.path.join(self._dir, wiring.LOCK)
        mark = _mark(path)
        if mark is None and not (self._known.records or self._lost):
            self._ledger, self._expected = None, False
            self._seen.clear()
            return ()
        lock = _shared(held)
        self._held = 0 if lock is not None else self._held + 1
        if lock is None and self._held <= PATIENT:
            return None
        try:
            found: list[Finding] = [] if lock is not None else [Finding(held, "", "", _unheld(held))]
            try:
                if not self._taken_over(path, mark):
                    return None
            except (ledger.Unreadable, OSError) as error:  # what was known goes on to be watched
                _log.debug("what is wired cannot be read: %s", error)
                found.append(Finding(path, "", "", DAMAGED))
            known = self._known
            inside = (one for row in known.files for one in self._file(row, known))
            return (*found, *self._lost.values(), *self._altered, *inside)
        finally:
            if lock is not None:
                os.close(lock)

    def _taken_over(self, path: str, mark: tuple[int, ...] | None) -> bool:
        """Takes over what is wired by now. False where it changed, and whoever did it may be about to say so.

        Of a file of which something else is listed without a person's command, what was known before goes on to hold.
        Raises `ledger.Unreadable`, `OSError`.
        """
        if mark is not None and self._ledger is not None and self._ledger[0] == mark:
            self._expected = False  # what a person took out then was never in the list
            return True
        now = ledger.load(self._dir)
        there, before = _idents(now), _idents(self._known)
        gone = [key for key in before if key not in there]
        altered = _altered(self._known, now) if not self._expected else []
        if (gone or altered) and not self._expected:
            self._short += 1
            if self._short < PATIENT - 1:
                return False
            for key in gone:
                record = before[key]
                self._lost[key] = Finding(record.file, record.name, record.agent, LOST)
        elif gone:
            self._lost.clear()
        self._short, self._expected = 0, False
        for key in there:
            self._lost.pop(key, None)
        self._altered = tuple(Finding(row.path, "", "", ALTERED) for row in altered)
        for row in altered:
            for one in {row.path, row.target or row.path}:
                now = now.changed(one, drop=[record.ident for record in now.of(one)], file=None)
            now = now.changed(row.path, put=self._known.of(row.path), file=row)
        self._known = now
        self._ledger = None if mark is None else (mark, now)
        self._seen.clear()
        return True

    def _file(self, row: File, known: Ledger) -> tuple[Finding, ...]:
        mark = _mark(row.path)
        if mark is None:
            self._seen.pop(row.path, None)
            self._unread.pop(row.path, None)
            return ()
        seen = self._seen.get(row.path)
        if seen is not None and seen.mark == mark:
            return seen.found
        try:
            data = files.read(row.path)
            if data is None:
                return ()
            client = catalog.recorded(row.client, row.format, Path(row.path), data)
            part = _servers(client, data)
            if seen is not None and part is not None and seen.part == part:
                found = seen.found  # Claude Code writes its history into the same file, all the time
            else:
                document = documents.parse(data, client.format)
                entries = standing.survey(client, row.path, document, _NOBODY, known)
                found = tuple(_judged(row, client, known, entries))
        except (OSError, files.Unfit, documents.Unreadable):  # half written, perhaps: a later look tells
            self._unread[row.path] = count = self._unread.get(row.path, 0) + 1
            before = seen.found if seen is not None else ()
            return (*before, Finding(row.path, "", "", UNREAD)) if count >= PATIENT else before
        self._unread.pop(row.path, None)
        self._seen[row.path] = _Seen(mark, part, found)
        return found


def _idents(known: Ledger) -> dict[tuple[str, ledger.Ident], ledger.Record]:
    """Every entry by the file that it is in, whatever leads there. One of a file that is not listed is not watched."""
    targets = {row.path: row.target or row.path for row in known.files}
    return {(targets[one.file], one.ident): one for one in known.records if one.file in targets}


def _altered(before: Ledger, now: Ledger) -> list[File]:
    """Files of which something else is listed than before; entries that went are no matter of this."""
    found = []
    for row in before.files:
        old, places = _listed(before, row.path), {row.path, row.target or row.path}
        others = [one for one in now.files if places & {one.path, one.target or one.path}]
        new = [one for other in others for one in _listed(now, other.path)]
        same = all(one.path in places and _bare(one) == _bare(row) for one in others)
        if others and not (same and all(one in old for one in new)):
            found.append(row)
    return found


def _listed(known: Ledger, path: str) -> list[ledger.Record]:
    return [msgspec.structs.replace(one, file="") for one in known.of(path)]


def _bare(row: File) -> File:
    return msgspec.structs.replace(row, path="")


def _judged(row: File, client: catalog.Client, known: Ledger, found: Iterable[standing.Found]) -> Iterable[Finding]:
    """What of a file's entries goes beside us. That an entry names us is no proof that it starts us."""
    for one in found:
        record, entry = one.record, one.entry
        if one.state == "missing" or (record is not None and entry is not None and equal(entry.raw, record.ours)):
            continue
        if one.ours is not None and _reaches(one.ours, row, client, known, record):
            continue
        if record is not None:
            yield Finding(row.path, one.name, record.agent, REMOVED if one.ours is None else OTHER)
        elif one.name not in row.left:
            yield Finding(row.path, one.name, "", ADDED)


def _reaches(
    said: standing.Ours, row: File, client: catalog.Client, known: Ledger, record: ledger.Record | None
) -> bool:
    """Whether an entry that was edited, or wired by hand, leads where we made this one, or those beside it, lead."""
    if record is not None and (said.agent, said.backend) != (record.agent, record.backend):
        return False
    for one in known.of(row.path) if record is None else (record,):
        entry = entries_of.meant(client, one.name, one.keys, one.ours)
        like = standing.ours(entry) if entry is not None else None
        if like is not None and _alike(said, like):
            return True
    return False


def _alike(said: standing.Ours, like: standing.Ours) -> bool:
    if said.way != like.way or said.place != like.place or dict(said.found) != dict(like.found):
        return False
    door = like.socket.removesuffix(f"/{like.agent}.sock") + f"/{said.agent}.sock" if like.socket else ""
    same = os.path.realpath(said.wrapper) == os.path.realpath(like.wrapper) and os.path.isabs(said.wrapper)
    return said.way == "url" or (said.plain and same and said.socket in (like.socket, door))


def _mark(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _shared(path: str) -> int | None:
    """The lock, held with other readers; None where a command holds it, or it cannot be had."""
    how = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, how, 0o600)
    except OSError:
        return None
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _unheld(path: str) -> str:
    """Why a lock could not be had."""
    try:
        return HELD if stat.S_ISREG(os.lstat(path).st_mode) else NO_LOCK
    except OSError:
        return HELD


def _servers(client: catalog.Client, data: bytes) -> str | None:
    """The collections of servers as one text, where the file is plain JSON: large files are parsed in no time so."""
    if client.format not in ("json", "jsonc"):
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return json.dumps([list(_below(value, path)) for path in client.servers])


def _below(value: Any, path: tuple[str, ...]) -> Iterable[Any]:
    if not path:
        yield value
    elif isinstance(value, dict):
        for key in list(value) if path[0] == "*" else [path[0]]:
            if key in value:
                yield from _below(value[key], path[1:])
