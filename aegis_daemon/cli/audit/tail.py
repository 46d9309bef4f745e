"""`aegis audit tail`: the newest records, and with `-f` every one that comes, whatever becomes of the daemon meanwhile.

The file is followed, not the daemon: two looks at it (no reading) a few times a second, and a question only once it has
grown. So a daemon that restarts is not even noticed, and a store that was replaced is read from its first record on.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aegis_daemon.cli.audit.log import WHO, Db, flat, opened, usual, what
from aegis_daemon.cli.audit.log import Count as Limit
from aegis_daemon.cli.console import compact, emit, local, say, visible
from aegis_daemon.cli.options import Agent, Backend, Json, Since, Tool, since_epoch

if TYPE_CHECKING:
    from aegis_daemon.audit.store import Reader, RecordView

LOOK_S: Final = (0.1, 0.2, 0.4)
"""Between two looks at the file: the first after something came, the last once it has been quiet for a while."""
LOOK_ANYWAY: Final = 8
"""Looks without news until the file is asked all the same: two commits within a tick of its clock look like one."""
_PAGE = 500
_KNOWN = 10_000


def tail(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    agent: Agent = None,
    backend: Backend = None,
    tool: Tool = None,
    since: Since = None,
    limit: Limit = 20,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """The newest records, oldest first; with `--json` one line each."""
    from fnmatch import fnmatchcase

    after = since_epoch(since)
    wants = [
        (field, want) for field, want in (("agent_id", agent), ("backend_id", backend), ("tool_name", tool)) if want
    ]

    def wanted(row: dict[str, Any]) -> bool:
        if after is not None and row.get("ts", 0) < after * 1e6:
            return False
        return all(fnmatchcase(str(row.get(field) or ""), str(want)) for field, want in wants)

    path = db or usual().path
    try:
        with opened(path) as reader:
            # Filters leave few of many: look back far enough that there is something to show.
            place = max(0, reader.last_seq() - (limit if not wants else limit * 50))
            names = _Names(reader)
            rows: list[dict[str, Any]] = []
            while page := reader.tail(place, _PAGE):
                place = page[-1].seq
                rows = [*rows, *filter(wanted, map(names.complete, map(flat, page)))][-limit:]
            head = next((record.hash for record in reader.tail(place - 1, 1)), "") if place else ""
        for row in rows:
            _tell(row, as_json)
        if follow:
            for reader, page in following(Path(path), place, head):
                names.reader = reader
                for row in filter(wanted, map(names.complete, map(flat, page))):
                    _tell(row, as_json)
    except KeyboardInterrupt:
        pass


def following(
    path: Path, place: int, head: str, pause: Callable[[float], None] = time.sleep
) -> Iterator[tuple[Reader, list[RecordView]]]:
    """Records behind `place`, whose hash is `head`, page by page, for ever.

    A store that takes the place of this one is read from its start.

    What cannot be read now (no file, a disk in trouble) is tried again at the next look.
    """
    from aegis_daemon.audit.store import Reader

    reader: Reader | None = None
    identity: tuple[int, int] | None = None
    seen: object = None
    quiet = 0
    try:
        while True:
            looks = _looks(path)
            if looks is None or (looks == seen and quiet % LOOK_ANYWAY < LOOK_ANYWAY - 1):
                _gone_reader()
                pause(LOOK_S[min(quiet, len(LOOK_S) - 1)])
                quiet += 1
                continue
            quiet = quiet + 1 if looks == seen else 0
            try:
                if reader is None or identity != looks[0]:
                    if reader is not None:
                        reader.close()
                    reader = None
                    reader = Reader(path)
                    if identity != looks[0] and place:
                        place = _place(reader, place, head)
                    identity = looks[0]
                while page := reader.tail(place, _PAGE):
                    place, head = page[-1].seq, page[-1].hash
                    yield reader, page
                seen = looks
            except (sqlite3.Error, OSError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                if reader is not None:
                    reader.close()
                reader = None
                pause(LOOK_S[-1])
    finally:
        if reader is not None:
            reader.close()


def _place(reader: Reader, place: int, head: str) -> int:
    """Where to go on in a file that is new: where we were, if that record is in it, else at its beginning."""
    found = reader.tail(place - 1, 1) if place else []
    if found and found[0].seq == place and found[0].hash == head:
        return place
    say("the audit store was replaced; the new one follows")
    return 0


def _looks(path: Path) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int] | None] | None:
    """Which file it is, and what changes with every commit: its own state and its write-ahead log's."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    try:
        wal = os.stat(f"{path}-wal")
        log: tuple[int, int] | None = (wal.st_size, wal.st_mtime_ns)
    except OSError:
        log = None
    return (info.st_dev, info.st_ino), (info.st_size, info.st_mtime_ns), log


def _gone_reader() -> None:
    """Raises `BrokenPipeError` where whoever read our output has left: a quiet log would never find out by writing."""
    import select

    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
        raise BrokenPipeError


class _Names:
    """Who a record's call belongs to: an outcome names the call alone."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._known: dict[str, dict[str, Any]] = {}

    def complete(self, row: dict[str, Any]) -> dict[str, Any]:
        call = row.get("call_id")
        if not call:
            return row
        if "agent_id" in row:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[call] = {name: row.get(name, "") for name in WHO}
            return row
        if call not in self._known:
            from aegis_daemon.audit.store import Ambiguous, NotFound

            try:
                found = self.reader.show(call).call
            except (NotFound, Ambiguous):
                return row
            self._known[call] = {name: getattr(found, name) for name in WHO}
        return {**self._known[call], **row}


def _tell(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit(row)
        return
    body = row.get("arguments") if row.get("kind") != "outcome" else None
    said = [
        row.get("status"),
        row.get("stage") and f"at {row['stage']}",
        row.get("reason"),
        row.get("decision"),
        row.get("by") and f"by {row['by']}",
        row.get("action"),
        row.get("detail"),
        row.get("error_message"),
        body and compact(body)[:200],
    ]
    line = [
        local(row["created_at"]),
        f"{row['seq']:>7}",
        f"{visible(str(row.get('kind'))):8}",
        visible(str(row.get("agent_id") or "-")),
        visible(what(row) or "-"),
        visible(str(row.get("call_id") or "-"))[:12],
        "  ".join(visible(str(part)) for part in said if part),
    ]
    print("  ".join(line).rstrip(), flush=True)
