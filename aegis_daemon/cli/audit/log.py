"""Finding the log's file and reading it: what every command of `aegis audit` begins with."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import Problem, say, visible
from aegis_daemon.cli.options import since_epoch
from aegis_daemon.manage.client import DaemonAway, Refused

if TYPE_CHECKING:
    from aegis_daemon.audit.store import Reader, RecordView

NAMES: Final = {
    "agent": "agent_id",
    "backend": "backend_id",
    "call": "call_id",
    "name": "tool_name",
    "request": "request_id",
    "tenant": "tenant_id",
}
"""fields of a record → the names that rows have everywhere else"""
SLOW_S: Final = 1.0
"""After that a person is told what is being waited for."""
WHO: Final = ("agent_id", "backend_id", "tool_name", "method")
Db = Annotated[
    str | None, typer.Option("--db", metavar="FILE", help="Another audit database, such as a copy; else the usual one.")
]
Count = Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="At most N rows.")]


@contextmanager
def opened(db: str | None) -> Iterator[Reader]:
    """The log's reader, with all that a running daemon has recorded by now. Raises `Problem`."""
    with reading(db or usual().path) as reader:
        yield reader


@contextmanager
def reading(path: str) -> Iterator[Reader]:
    """The reader of one file. Raises `Problem`."""
    from aegis_daemon.audit.store import Reader

    try:
        with Reader(Path(path)) as reader:
            yield reader
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise Problem(str(error)) from None
    except sqlite3.Error as error:
        raise Problem(f"the audit store `{path}` cannot be read: {error}", "read a copy of it that is whole") from None


class Usual(NamedTuple):
    """Where the log is (as the running daemon says, else the configuration), and a record that must be in it.

    `missing`: why the newest records of a daemon that runs may not be in it.
    """

    path: str
    newest: int | None = None
    missing: str = ""


def usual() -> Usual:
    """The log of this installation, once all that was recorded by now is in it."""
    paths = link.paths()
    found: str | None = None
    newest: int | None = None
    missing = ""
    waits = threading.Timer(SLOW_S, say, ["waiting for the daemon to write what it has recorded to the store …"])
    waits.daemon = True
    waits.start()
    try:
        with link.connect() as daemon:
            found = daemon.call("config_show")["audit"]["db_path"]
            newest = int(daemon.call("flush_audit")["seq"])
    except DaemonAway:
        from aegis_daemon.config.load import ConfigFaults, load

        try:
            found = load(paths.config, optional=True).config.audit.db_path
        except ConfigFaults:
            say(f"the configuration has faults (`aegis config validate`); reading {visible(paths.audit_db)}")
    except Refused as refused:
        missing = refused.message
        say(f"the newest records may be missing: {visible(missing)}")
    finally:
        waits.cancel()
    return Usual(found or paths.audit_db, newest, missing)


def micros(text: str | None) -> int | None:
    """Microseconds since the epoch of a time as people write one. Raises `Problem`."""
    seconds = since_epoch(text)
    return None if seconds is None else int(seconds * 1e6)


def flat(record: RecordView) -> dict[str, Any]:
    """A record as one row, named as calls are; its body under `arguments` or `result`."""
    found = decoded(record)
    row: dict[str, Any] = {"seq": record.seq, "created_at": record.created_at, "hash": record.hash}
    if not isinstance(found, dict):
        return {**row, "kind": "unreadable"}
    row.update({NAMES.get(str(name), str(name)): value for name, value in found.items()})
    if record.body is not None:
        row["result" if found.get("kind") == "outcome" else "arguments"] = record.body
    return row


def decoded(record: RecordView) -> Any:
    """What a record says; None where that is no JSON."""
    try:
        return json.loads(bytes(record.record))
    except ValueError:
        return None


def what(row: dict[str, Any]) -> str:
    """`backend.tool`, or the method where it is no tool's call."""
    backend, tool, method = (str(row.get(name) or "") for name in WHO[1:])
    name = f"{backend}.{tool}" if tool else backend
    return name if method in ("tools/call", "") else f"{method} {name}".strip()
