"""The newest records of the log are what was written, one links to the next, and somebody has signed for them.

A small log is looked at as a whole, of a large one the end: `aegis audit verify` reads all of it.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

from aegis_daemon.audit import keys
from aegis_daemon.audit.calls import read_record
from aegis_daemon.audit.chain import UNREADABLE, Walk, digest
from aegis_daemon.audit.store import Reader
from aegis_daemon.audit.verify import Trust
from aegis_daemon.config.load import ConfigFaults
from aegis_daemon.onboarding.scene import Finding, Scene

WHOLE: Final = 2000
"""Records up to which all is verified."""
TAIL: Final = 500
READ_S: Final = 5.0
BACK_S: Final = 60.0
SIGNED_AFTER_S: Final = 120.0
_QUESTION: Final = "SELECT seq, hash, CAST(record AS BLOB) FROM records WHERE seq > ? ORDER BY seq LIMIT ?"


def check(scene: Scene) -> Iterator[Finding]:
    """The store, by itself and as the daemon sees it."""
    audit = scene.status["audit"] if scene.status is not None else None
    if audit is not None:
        if audit.get("tampered"):
            yield Finding("log-changed", str(audit["tampered"]))
        elif not audit["healthy"]:
            yield Finding("log-unwell", str(audit["detail"]))
    try:
        settings = scene.settings.loaded().config.audit
        places = settings.db_path or scene.paths.audit_db, settings.key_file or scene.paths.audit_key
    except ConfigFaults:
        places = scene.paths.audit_db, scene.paths.audit_key
    store, key_file = map(Path, places)
    if not os.path.exists(store):
        return  # nothing was ever written, or it is the daemon's alone
    try:
        with Reader(store) as reader:
            yield from _look(reader, store, key_file, scene.now)
    except (OSError, sqlite3.Error) as error:
        yield Finding("log-unreadable", str(error), str(store))


def _look(reader: Reader, store: Path, key_file: Path, now: float) -> Iterator[Finding]:
    last = reader.last_seq()
    if not last:
        return
    at, faults = max(0, last - TAIL), 0
    rows = reader.ask(_QUESTION, (at, 2 * TAIL), until=time.monotonic() + READ_S)
    if last <= WHOLE:
        try:
            ring = tuple(keys.read_ring(key_file))
        except (OSError, keys.KeyFault):
            ring = ()
        report = reader.verify(trust=Trust(ring=ring))
        for fault in report.faults[:3]:
            yield Finding("log-changed", f"record {fault.seq}: {fault.kind}: {fault.text}", str(store))
        faults = len(report.faults)
    else:
        walk: Walk | None = None
        for seq, head, record in rows:
            if walk is not None:
                walk.step(seq, record or b"", head)
            elif digest(record or b"").hex() != head:
                yield Finding("log-changed", f"record {seq} does not have the hash that is kept with it", str(store))
                return
            else:
                walk = Walk(seq, head)
        for fault in walk.faults[:3] if walk is not None else ():
            yield Finding("log-changed", f"record {fault.seq}: {fault.text}", str(store))
        faults = len(walk.faults) if walk is not None else 0
    if faults:
        return
    times = list(_times(rows))
    worst = max((before - after for before, after in pairwise(times)), default=0.0)
    if worst > BACK_S:
        yield Finding("clock-jumped", f"by {worst:.0f} s, among the newest {len(times)} records", str(store))
    if times and now - times[0] > SIGNED_AFTER_S and reader.newest_checkpoint() is None:
        yield Finding("log-unsigned", f"{last} records", str(store))


def _times(rows: list[tuple[object, ...]]) -> Iterator[float]:
    """Seconds since the epoch."""
    for _, _, record in rows:
        try:
            yield read_record(record).ts / 1e6  # type: ignore[arg-type]
        except (*UNREADABLE, TypeError, AttributeError):
            continue
