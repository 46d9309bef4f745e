"""What we changed in other programs' files is written down so that each change can be taken back, and is kept private.

One file of the state directory (0600: entries may hold secrets). It is only ever replaced whole, and by commands that
hold its lock; the daemon reads it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import msgspec

from aegis_daemon.clients import files
from aegis_daemon.loop.whole import sync_directory

NAME: Final = "wired.json"
BACKUPS: Final = "backups"
VERSION: Final = 1
ABSENT: Final = "absent"
"""In place of a digest: there was no such file."""

Keys = tuple[str | int, ...]
Ident = tuple[Keys, str]


def ident(keys: Keys, name: str) -> Ident:
    """The collection that an entry is in, and its name: an index of a list is another one tomorrow."""
    return (keys[:-1], name)


def plain(value: Any) -> Any:
    """The value as the ledger keeps it: a date is a text there, and what is no number is nothing."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return msgspec.to_builtins(value) if not isinstance(value, float) else None


class Unreadable(Exception):
    """The ledger is damaged; the text says where it is and what to do."""


class Record(msgspec.Struct, frozen=True):
    """One entry of one file as it was and as we made it."""

    file: str
    keys: Keys
    """where the entry is in its file"""
    name: str
    client: str
    agent: str
    backend: str
    original: Any
    """the value that was there; None: nothing was"""
    original_bytes: bytes
    """the same as it was written"""
    ours: Any
    """the value that we put"""
    change: str
    """the run of `wire` that did it"""
    at: float
    """seconds since the epoch"""
    again: str = ""
    """the last run that wrote it anew; "" where only `change` did"""

    @property
    def runs(self) -> frozenset[str]:
        """The runs that an undo of this entry may mean."""
        return frozenset((self.change, self.again or self.change))

    @property
    def new(self) -> bool:
        """Whether the entry was not there before we made it."""
        return self.original is None

    @property
    def ident(self) -> Ident:
        """What tells it apart in its file."""
        return ident(self.keys, self.name)


class File(msgspec.Struct, frozen=True):
    """What is known of one file. Undoing everything in it gives `backup`, byte for byte, while it is as we left it."""

    path: str
    client: str
    before: str
    """SHA-256 of the file before our first change of an unbroken row of changes; `ABSENT` where there was none; ""
    where the row is broken"""
    after: str
    """the same after our last one"""
    backup: str
    """the copy that has `before`"""
    changes: tuple[str, ...]
    """the runs since `backup`; an entry wired by another run is in the copy as we made it"""
    left: tuple[str, ...] = ()
    """entries that were there and were not wired: the watch finds nothing new in them"""
    format: str = ""
    """how it is spelled, since a `client` of any program does not tell; "" where an earlier version wrote this"""
    target: str = ""
    """the file itself, where `path` led to it by links; "" where an earlier version wrote this"""


class Ledger(msgspec.Struct, frozen=True):
    """Everything that is wired now."""

    records: tuple[Record, ...] = ()
    files: tuple[File, ...] = ()
    version: int = VERSION

    def of(self, path: str) -> tuple[Record, ...]:
        """What is wired in a file."""
        return tuple(record for record in self.records if record.file == path)

    def find(self, path: str, keys: Keys, name: str) -> Record | None:
        """What is known of an entry."""
        wanted = ident(keys, name)
        return next((record for record in self.records if record.file == path and record.ident == wanted), None)

    def file(self, path: str) -> File | None:
        """What is known of a file."""
        return next((one for one in self.files if one.path == path), None)

    def known_as(self, path: str) -> str:
        """The path under which a file is in here: this one, or one that led to the same file; else this one."""
        if self.file(path) is not None:
            return path
        real = os.path.realpath(path)
        return next((one.path for one in self.files if real in (one.target, one.path)), path)

    def followed(self) -> Ledger:
        """The same, where a link that led to a file leads to another one by now: what was changed is the file."""
        made = self
        for row in self.files:
            if row.target in ("", row.path) or os.path.realpath(row.path) == row.target:
                continue
            if not os.path.lexists(row.target) or self.file(row.target) is not None:
                continue
            moved = [msgspec.structs.replace(one, file=row.target) for one in made.of(row.path)]
            rest = made.changed(row.path, drop=[one.ident for one in moved], file=None)
            made = rest.changed(row.target, put=moved, file=msgspec.structs.replace(row, path=row.target))
        return made

    def needed(self) -> frozenset[str]:
        """The copies that an undo may want."""
        return frozenset(one.backup for one in self.files if one.backup)

    def changed(
        self, path: str, *, put: Iterable[Record] = (), drop: Iterable[Ident] = (), file: File | None
    ) -> Ledger:
        """The same after a change of a file. `file` None: nothing of it is ours any more."""
        put, gone = tuple(put), set(drop)
        gone |= {record.ident for record in put}
        records = [one for one in self.records if one.file != path or one.ident not in gone]
        rest = tuple(one for one in self.files if one.path != path)
        return Ledger((*records, *put), rest if file is None else (*rest, file))


_DECODER = msgspec.json.Decoder(Ledger)


def load(state_dir: str) -> Ledger:
    """The ledger; an empty one where there is none.

    :raises Unreadable: it is damaged, or of a later version. :raises OSError: it cannot be read.
    """
    path = os.path.join(state_dir, NAME)
    try:
        data = files.read(path)
    except files.Unfit as unfit:
        raise Unreadable(str(unfit)) from None
    if data is None:
        return Ledger()
    try:
        found = _DECODER.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(
            f"`{path}` is damaged ({error}); the files as they were are in `{os.path.join(state_dir, BACKUPS)}`: "
            "move it away, then wire anew"
        ) from None
    if found.version > VERSION:
        raise Unreadable(f"`{path}` was written by a later version of aegis; use that one")
    return _believed(found.followed(), state_dir)


def _believed(found: Ledger, state_dir: str) -> Ledger:
    """The same without copies that we did not make: of another file, or anywhere but where ours are."""
    place = os.path.realpath(os.path.join(state_dir, BACKUPS))
    rows = tuple(
        one
        if not one.backup
        or (os.path.realpath(os.path.dirname(one.backup)) == place and files.copies_of(one.backup, one.path))
        else msgspec.structs.replace(one, backup="")
        for one in found.files
    )
    return msgspec.structs.replace(found, files=rows)


def save(state_dir: str, ledger: Ledger) -> None:
    """Replaces it whole; with nothing in it the file goes. Raises `OSError`."""
    path = os.path.join(state_dir, NAME)
    if not ledger.records and not ledger.files:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        with suppress(OSError):
            sync_directory(state_dir)
        return
    os.makedirs(state_dir, mode=0o700, exist_ok=True)
    files.write_private(path, msgspec.json.format(msgspec.json.encode(ledger), indent=1) + b"\n")
