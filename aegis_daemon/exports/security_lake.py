"""A lake gets every event once: in Parquet (OCSF 1.1.0), one class per source, under the day that it happened on.

    ext/SOURCE-CLASS/region=REGION/accountId=ACCOUNT/eventDay=YYYYMMDD/UID.parquet

CLASS is `api` (6003), `finding` (2004), `entity` (3004) or `lifecycle` (6002), the day is in UTC, and UID is that of
the file's first event. A batch that was written and does not count yet begins with the same event when it comes again,
so it takes the place of what is there: nothing is there twice, and no right to list or to read is needed.

Source: Amazon Security Lake User Guide, "Collecting data from custom sources".
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import ClassVar, Final

import msgspec

from aegis_daemon.exports import ocsf_1_1, parquet
from aegis_daemon.exports.event import Encode, Event
from aegis_daemon.exports.object_store import S3, Bucket, Directory, Store
from aegis_daemon.exports.sink import Sink, Trouble, aside

CLASSES: Final = tuple(ocsf_1_1.SHORT.values())


class Settings(msgspec.Struct, frozen=True):
    """Either `path`, a directory, or `bucket` and what `object_store.Bucket` has; `every` in seconds."""

    path: str | None = None
    bucket: str | None = None
    lake_source: str = "aegis"
    region: str = "us-east-1"
    account: str = "external"
    classes: tuple[str, ...] = CLASSES
    every: float = 300.0
    endpoint: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    ca_file: str | None = None
    timeout: float = 30.0


class SecurityLake(Sink):
    """One lake."""

    most: ClassVar[int] = 10_000
    most_bytes: ClassVar[int] = 16 << 20

    def __init__(self, settings: Settings, store: Store) -> None:
        self.linger_s = settings.every
        self._settings = settings
        self._store = store

    async def send(self, batch: list[Event]) -> None:
        """Returns once all files of the batch are there."""
        await aside(lambda: self.write(batch))

    def write(self, batch: Iterable[Event]) -> int:
        """The same at once, and how many files it made. Blocks. Raises `Trouble`."""
        sheets: dict[tuple[str, str], tuple[str, parquet.Sheet]] = {}
        events = list(batch)
        firsts: dict[str, int] = {event.uid: place for place, event in enumerate(events)}
        for event in sorted(events, key=lambda one: (one.ts // 1000, one.seq)):
            row = ocsf_1_1.event(event)
            kind = ocsf_1_1.SHORT[row["class_uid"]]
            if kind not in self._settings.classes:
                if event.kind == "test":  # a file without rows tries the way all the same
                    kind = self._settings.classes[0]
                    self._put(kind, _day(event.ts), event.uid, parquet.Sheet(_UIDS[kind]))
                continue
            key = (kind, _day(event.ts))
            name, sheet = sheets.get(key) or (event.uid, parquet.Sheet(row["class_uid"]))
            sheets[key] = (min(name, event.uid, key=firsts.__getitem__), sheet)
            sheet.add(row)
        for (kind, day), (name, sheet) in sheets.items():
            self._put(kind, day, name, sheet)
        return len(sheets)

    def _put(self, kind: str, day: str, name: str, sheet: parquet.Sheet) -> None:
        settings = self._settings
        where = f"region={settings.region}/accountId={settings.account}/eventDay={day}"
        self._store.put(f"ext/{settings.lake_source}-{kind}/{where}/{name}.parquet", sheet.data())


_UIDS: Final = {short: uid for uid, short in ocsf_1_1.SHORT.items()}


def _day(ts: int) -> str:
    """YYYYMMDD in UTC; the first day of all for a time that no calendar has."""
    try:
        return f"{datetime.fromtimestamp(ts // 1_000_000, UTC):%Y%m%d}"
    except (ValueError, OverflowError, OSError):
        return "19700101"


def make(settings: Settings, encode: Encode | None = None) -> SecurityLake:
    """The sink, whose format is its own. Raises `Trouble` where a library is missing."""
    parquet.arrow()
    if settings.path is not None:
        return SecurityLake(settings, Directory(settings.path))
    if settings.bucket is None:
        raise Trouble("it has neither `path` nor `bucket`; set one")
    return SecurityLake(
        settings,
        S3(
            Bucket(
                settings.bucket, settings.region, settings.endpoint, settings.access_key_id,
                settings.secret_access_key, settings.session_token, settings.ca_file, settings.timeout,
            )
        ),
    )  # fmt: skip
