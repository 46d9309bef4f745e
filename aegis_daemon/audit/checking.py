"""Verifies the store once, for the daemon: in a process of its own that only takes time nobody else wants, and ends.

Run as `python -I -m aegis_daemon.audit.checking STORE SINCE [KEY_FILE]`. One line of JSON out (`Checked`). Records
before SINCE are read for their hashes alone. Ends at once where its input does, so that it never outlives its daemon.
"""

from __future__ import annotations

import os
import select
import sqlite3
import sys
from pathlib import Path

import msgspec


class Checked(msgspec.Struct, frozen=True):
    """What was seen: sound to record `last` where there are no `faults`; `first` says what the first one is.

    `signed` and `witnessed` are how many records a checkpoint covers. `trouble`: it could not be looked at.
    """

    last: int = 0
    faults: int = 0
    first: str = ""
    signed: int = 0
    witnessed: int = 0
    trouble: str = ""


def check(store: Path, since: int, key_file: Path | None = None) -> Checked:
    """Looks at everything from `since` on. Never raises for what the disk does."""
    from aegis_daemon.audit import keys
    from aegis_daemon.audit.store import Reader
    from aegis_daemon.audit.verify import Trust

    try:
        ring = tuple(keys.read_ring(key_file)) if key_file is not None else ()
        with Reader(store) as reader:
            report = reader.verify(_go_on, since=since, trust=Trust(ring=ring))
    except (OSError, sqlite3.Error, keys.KeyFault) as error:
        return Checked(trouble=str(error) or type(error).__name__)
    first = report.faults[0] if report.faults else None
    return Checked(
        report.last_seq,
        len(report.faults),
        f"{first.kind}: {first.text}" if first is not None else "",
        report.signed,
        report.witnessed,
    )


def _go_on(done: int, total: int) -> None:
    ready, _, _ = select.select([0], [], [], 0)
    if ready and not os.read(0, 1):
        os._exit(1)  # nobody waits for the answer


def main(arguments: list[str]) -> None:
    """The process."""
    from aegis_daemon.audit.ingest import yield_to_everybody

    yield_to_everybody()
    found = check(Path(arguments[0]), int(arguments[1]), Path(arguments[2]) if len(arguments) > 2 else None)
    os.write(1, msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
