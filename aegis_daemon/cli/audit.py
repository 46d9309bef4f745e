"""`aegis audit`: the log, read from its file, so that it can be read and verified whether or not a daemon runs."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.console import (
    DONE,
    WRONG,
    Problem,
    compact,
    emit,
    facts,
    local,
    pretty,
    rich,
    say,
    show,
    visible,
)
from aegis_daemon.cli.options import Agent, Backend, Json, Since, Tool, new_app, since_epoch
from aegis_daemon.manage.client import DaemonAway, Refused

if TYPE_CHECKING:
    from aegis_daemon.audit.store import Reader, RecordView

app = new_app()
_STEP_S = 0.3
_PAGE = 500
_KNOWN = 10_000
NAMES: Final = {
    "agent": "agent_id",
    "backend": "backend_id",
    "call": "call_id",
    "name": "tool_name",
    "request": "request_id",
    "tenant": "tenant_id",
}
"""fields of a record → the names that rows have everywhere else"""
WHO: Final = ("agent_id", "backend_id", "tool_name", "method")
CALLS: Final = {
    "created_at": "when",
    "call_id": "call",
    "agent_id": "agent",
    "what": "what",
    "arguments": "arguments",
    "verdict": "outcome",
    "took": "took",
}
Db = Annotated[
    str | None, typer.Option("--db", metavar="FILE", help="Another audit database, such as a copy; else the usual one.")
]
STATUSES = ("success", "error", "denied", "unknown", "pending", "would")


def _known_status(value: str | None) -> str | None:
    if value is not None and value not in STATUSES:
        raise typer.BadParameter(f"`{visible(value)}` is none of {', '.join(STATUSES)}")
    return value


Count = Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="At most N rows.")]


@app.command()
def search(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Looked for in the arguments alone.")] = None,
    agent: Annotated[str | None, typer.Option("--agent", metavar="ID", help="Only this agent.")] = None,
    backend: Annotated[str | None, typer.Option("--backend", metavar="NAME", help="Only this backend.")] = None,
    tool: Tool = None,
    status: Annotated[
        str | None,
        typer.Option("--status", metavar="WORD", callback=_known_status, help=f"One of {', '.join(STATUSES)}."),
    ] = None,
    since: Since = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before that time.")] = None,
    limit: Count = 50,
    before: Annotated[
        int | None, typer.Option("--before", metavar="SEQ", help="The next page: the last row's `seq`.")
    ] = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Calls, newest first."""
    with opened(db) as reader:
        found = reader.search(
            agent=agent,
            backend=backend,
            tool=tool,
            status=status,
            since=_micros(since),
            until=_micros(until),
            text=text,
            limit=limit,
            before=before,
        )
    rows = [msgspec.structs.asdict(row) for row in found]
    if as_json:
        emit(rows)
        return
    shown = [
        {
            **row,
            "created_at": local(row["created_at"]),
            "call_id": row["call_id"][:12],
            "what": _what(row),
            "arguments": compact(row["arguments"] or ""),
            "verdict": row["exec_status"] + _by(row),
            "took": f"{row['exec_duration_ms']} ms" if row["finished_at"] else None,
        }
        for row in rows
    ]
    asked = text is not None or any(each is not None for each in (agent, backend, tool, status, since, until))
    empty = "no call was recorded yet" if not asked else "no recorded call matches all of that"
    if text is not None:
        empty += "; TEXT is looked for in the arguments alone, for tools there is `--tool`"
    show(shown, CALLS, empty)
    if len(rows) == limit:
        say(f"older ones: repeat with `--before {rows[-1]['seq']}`, or see one with `aegis audit show CALL`")


def _by(row: Mapping[str, Any]) -> str:
    if not row["stage"]:
        return ""
    return f" (would be refused: {row['stage']})" if row["would"] else f" ({row['stage']})"


@app.command("show")
def show_call(
    id: Annotated[str, typer.Argument(metavar="ID", help="A call id, its beginning, or a ticket id.")],
    db: Db = None,
    as_json: Json = False,
) -> None:
    """One call: what was asked, what decided it, what came of it, and its records."""
    from aegis_daemon.audit.store import Ambiguous, NotFound

    with opened(db) as reader:
        try:
            found = reader.show(id)
        except NotFound as error:
            raise Problem(str(error)) from None
        except Ambiguous as error:
            raise Problem(str(error), f"one of {', '.join(error.ids)}") from None
    call = msgspec.structs.asdict(found.call)
    records = [
        {"seq": record.seq, "hash": record.hash, "created_at": record.created_at, "record": _decoded(record)}
        for record in found.records
    ]
    if as_json:
        emit({**call, "records": records})
        return
    bodies = {"arguments": call.pop("arguments"), "result": call.pop("result")}
    facts((name, visible(str(value))) for name, value in call.items() if value not in ("", None))
    for name, body in bodies.items():
        if body is not None:
            cut = "" if name == "arguments" or len(body.encode()) == call["result_length"] else ", its beginning"
            print(f"\n{name}{cut}")
            for line in pretty(body):
                print(f"  {line}")
    print("\nrecords")
    for record in records:
        kind = record["record"].get("kind", "unreadable") if isinstance(record["record"], dict) else "unreadable"
        print(f"  {record['seq']}  {local(record['created_at'])}  {visible(str(kind)):8}  {record['hash'][:16]}…")
    if call["stage"] == "acl" and (call["exec_status"] == "denied" or call["would"]):
        say(f"the rules refused it; `aegis allow {call['call_id'][:12]}` shows what would let it pass, and asks")


@app.command()
def tail(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    agent: Agent = None,
    backend: Backend = None,
    tool: Tool = None,
    since: Since = None,
    limit: Count = 20,
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
        return all(fnmatchcase(str(row.get(field) or ""), str(want)) for field, want in wants)

    with opened(db) as reader:
        names = _Names(reader)
        # Filters leave few of many: look back far enough that there is something to show.
        place = max(0, reader.last_seq() - (limit if not wants else limit * 50))
        first = True
        try:
            while True:
                rows = []
                while page := reader.tail(place, _PAGE):
                    place = page[-1].seq
                    rows += [row for record in page if wanted(row := names.complete(flat(record)))]
                if after is not None:
                    rows = [row for row in rows if row.get("ts", 0) >= after * 1e6]
                for row in rows[-limit:] if first else rows:
                    _tell(row, as_json)
                first = False
                if not follow:
                    return
                time.sleep(_STEP_S)
        except KeyboardInterrupt:
            pass


@app.command()
def verify(db: Db = None, as_json: Json = False) -> int:
    """Recompute every hash, link, body and call row of the log. 1 where anything was changed."""
    path, newest = (db, None) if db is not None else _usual()
    with reading(path) as reader:
        if sys.stderr.isatty() and not as_json:
            from rich.progress import Progress

            with Progress(console=rich(stderr=True), transient=True) as bar:
                task = bar.add_task("verifying", total=None)
                report = reader.verify(lambda done, total: bar.update(task, completed=done, total=total), newest=newest)
        else:
            report = reader.verify(newest=newest)
    if as_json:
        emit(msgspec.to_builtins(report))
        return WRONG if report.faults else DONE
    for fault in report.faults:
        print(f"record {fault.seq}: {visible(fault.kind)}: {visible(fault.text)}")
    if report.faults:
        count = len(report.faults)
        say(f"{count} fault{'s' * (count != 1)} in {report.records} records: the log was changed after it was written")
        return WRONG
    erased = f", {report.erased_bodies} erased" if report.erased_bodies else ""
    print(
        f"{report.records} records ({report.first_seq} to {report.last_seq}), {report.checked_bodies} bodies{erased} "
        f"and {report.checked_calls} calls are as they were written"
    )
    print(f"head {report.head}")
    return DONE


# --- finding and reading the file -------------------------------------------------------------------------------------


@contextmanager
def opened(db: str | None) -> Iterator[Reader]:
    """The log's reader, with all that a running daemon has recorded by now. Raises `Problem`."""
    with reading(db or _usual()[0]) as reader:
        yield reader


@contextmanager
def reading(path: str) -> Iterator[Reader]:
    """The reader of one file. Raises `Problem`."""
    from aegis_daemon.audit.store import Reader

    try:
        with Reader(Path(path)) as reader:
            yield reader
    except OSError as error:
        raise Problem(str(error)) from None
    except sqlite3.Error as error:
        raise Problem(f"the audit store `{path}` cannot be read: {error}", "read a copy of it that is whole") from None


def _usual() -> tuple[str, int | None]:
    """Where the log is (as the running daemon says, else the configuration), and a record that must be in it."""
    paths = link.paths()
    found: str | None = None
    newest: int | None = None
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
        say(f"the newest records may be missing: {visible(refused.message)}")
    return found or paths.audit_db, newest


def _micros(text: str | None) -> int | None:
    seconds = since_epoch(text)
    return None if seconds is None else int(seconds * 1e6)


# --- records as rows --------------------------------------------------------------------------------------------------


def flat(record: RecordView) -> dict[str, Any]:
    """A record as one row, named as calls are; its body under `arguments` or `result`."""
    found = _decoded(record)
    row: dict[str, Any] = {"seq": record.seq, "created_at": record.created_at, "hash": record.hash}
    if not isinstance(found, dict):
        return {**row, "kind": "unreadable"}
    row.update({NAMES.get(str(name), str(name)): value for name, value in found.items()})
    if record.body is not None:
        row["result" if found.get("kind") == "outcome" else "arguments"] = record.body
    return row


def _decoded(record: RecordView) -> Any:
    try:
        return json.loads(bytes(record.record))
    except ValueError:
        return None


class _Names:
    """Who a record's call belongs to: an outcome names the call alone."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
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
                found = self._reader.show(call).call
            except (NotFound, Ambiguous):
                return row
            self._known[call] = {
                name: getattr(found, name) for name in ("agent_id", "backend_id", "tool_name", "method")
            }
        return {**self._known[call], **row}


def _what(row: dict[str, Any]) -> str:
    backend, tool, method = (str(row.get(name) or "") for name in WHO[1:])
    name = f"{backend}.{tool}" if tool else backend
    return name if method in ("tools/call", "") else f"{method} {name}".strip()


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
        visible(_what(row) or "-"),
        "  ".join(visible(str(part)) for part in said if part),
    ]
    print("  ".join(line).rstrip(), flush=True)
