"""`aegis audit export` writes the log down once, and `aegis audit exports` tells how the standing exports are doing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.audit.log import Db, micros, reading, usual
from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, emit, local, rich, say, show, visible
from aegis_daemon.cli.decision import own_key
from aegis_daemon.cli.options import Agent, Backend, Json, Since, Tool, new_app

if TYPE_CHECKING:
    from aegis_daemon.exports.event import Encode, Event

FORMATS: Final = ("ocsf", "cef", "aegis", "csv", "parquet")
PAGE: Final = 1000
PAGE_BYTES: Final = 4 << 20
FILE: Final = 20_000
FILE_BYTES: Final = 32 << 20
"""About how many events, and bytes of them, become the files of a lake at once."""
COLUMNS: Final = {
    "name": "export",
    "type": "type",
    "format": "format",
    "seq": "has record",
    "lag": "behind",
    "state": "state",
    "since": "since",
    "trouble": "trouble",
}
NONE: Final = "no export is configured; add one under `audit.exports` (README, Settings)"
_ELSEWHERE: Final = "name another place with `--out`, or write to the terminal without it"

exports = new_app(bare=True)


def _known(value: str) -> str:
    if value not in FORMATS:
        raise typer.BadParameter(f"`{visible(value)}` is none of {', '.join(FORMATS)}")
    return value


def export(
    format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", callback=_known, help=f"One of {', '.join(FORMATS)}.")
    ] = "ocsf",
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="FILE", help="A new file (of `parquet`: directory), or `-` for standard output."
        ),
    ] = "-",
    agent: Agent = None,
    backend: Backend = None,
    tool: Tool = None,
    since: Since = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before that time.")] = None,
    bodies: Annotated[bool, typer.Option("--bodies/--no-bodies", help="With arguments and results or without.")] = True,
    db: Db = None,
) -> None:
    """Write the log down once, oldest first: one line for each call, decision and change."""
    first, last = micros(since), micros(until)
    wants = [
        (name, glob) for name, glob in (("agent", agent), ("backend", backend), ("tool", tool)) if glob is not None
    ]

    def wanted(event: Event) -> bool:
        if (first is not None and event.ts < first) or (last is not None and event.ts >= last):
            return False
        return not wants or _concerns(event, wants)

    path = db if db is not None else usual().path
    with reading(path):
        pass  # says it as everywhere else where there is no such log, or none that this version reads
    if format == "parquet":
        with _progress(out) as progress:
            count, files = _lake(Path(path), out, wanted, bodies, progress)
        say(f"{count} events are in {files} files under `{visible(out)}`")
        return
    count = 0
    with _opened(out) as write, _progress(out) as progress:
        encode, head = _encoder(format)
        if head is not None:
            write(head + b"\n")
        try:
            for events, done, newest in _pages(Path(path), bodies):
                lines = [encode(event) + b"\n" for event in events if wanted(event)]
                count += len(lines)
                write(b"".join(lines))
                progress(done, newest)
        except sqlite3.Error as error:
            raise Problem(
                f"the audit store `{path}` cannot be read: {error}", "read a copy of it that is whole"
            ) from None
    if out != "-":
        say(f"{count} events are in `{visible(out)}`")


@exports.callback()
def list_exports(context: typer.Context, as_json: Json = False) -> None:
    """Where the log is copied to, and how far that is. Without a command: the list."""
    if context.invoked_subcommand is not None:
        return
    found = link.call("exports")
    if as_json:
        emit(found)
        return
    show([{**row, "since": local(row["since"]) if row["since"] else None} for row in found], COLUMNS, NONE)


@exports.command("test")
def try_out(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `aegis audit exports` names it.")],
    as_json: Json = False,
) -> int:
    """Send a marked test event through an export; 1 when it fails. The receiver keeps it like any other."""
    found = link.call("exports_test", name=name, key=own_key())
    if as_json:
        emit(found)
    else:
        say(f"{visible(found['name'])}: {'sent' if found['ok'] else visible(found['detail'])}")
    return DONE if found["ok"] else WRONG


# --- the one-off ------------------------------------------------------------------------------------------------------


def _encoder(format: str) -> tuple[Encode, bytes | None]:
    """How an event is written, and what stands before the first one."""
    if format == "csv":
        from aegis_daemon.exports import table

        return table.encode, table.header()
    from aegis_daemon.exports.ship import encoder

    return encoder(format), None


def _pages(path: Path, bodies: bool) -> Iterator[tuple[list[Event], int, int]]:
    """All events up to what is the newest record at the beginning, how far that is, and that record."""
    from aegis_daemon.exports.log import Log

    log = Log(path, bodies=bodies)
    _, _, newest = log.at(0)
    done = 0
    while done < newest:
        page = log.page(done, PAGE, PAGE_BYTES)
        if page.seq == done:
            return
        yield [event for event in page.events if event.seq <= newest], min(page.seq, newest), newest
        done = page.seq


def _lake(
    path: Path, out: str, wanted: Callable[[Event], bool], bodies: bool, progress: Callable[[int, int], None]
) -> tuple[int, int]:
    """Parquet files as a lake has them, under a new directory that has its name once all are there."""
    from aegis_daemon.exports import security_lake
    from aegis_daemon.exports.sink import Trouble

    if out == "-":
        raise Problem("Parquet is files in a directory", "name a new one with `--out`", USAGE)
    aim = Path(out)
    if aim.exists():
        raise Problem(f"`{visible(out)}` is there already", "name another directory, or remove it", USAGE)
    part = aim.with_name(f".{aim.name}.part-{os.getpid()}")
    count = files = size = 0
    batch: list[Event] = []
    try:
        lake = security_lake.make(security_lake.Settings(path=str(part)))
        part.mkdir(mode=0o700)
        for events, done, newest in _pages(path, bodies):
            batch += (taken := [event for event in events if wanted(event)])
            count += len(taken)
            size += sum(event.size for event in taken)
            if len(batch) >= FILE or size >= FILE_BYTES:
                files += lake.write(batch)
                batch, size = [], 0
            progress(done, newest)
        files += lake.write(batch)
        os.rename(part, aim)
    except Trouble as error:
        raise Problem(str(error), "then try again") from None
    except sqlite3.Error as error:
        raise Problem(f"the audit store `{path}` cannot be read: {error}", "read a copy of it that is whole") from None
    except OSError as error:
        raise Problem(
            f"`{visible(out)}` cannot be written: {(error.strerror or str(error)).lower()}", _ELSEWHERE
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return count, files


def _concerns(event: Event, wants: list[tuple[str, str]]) -> bool:
    call, record = event.call, event.record
    named = (
        {"agent": record.agent, "backend": record.backend, "tool": ""}
        if call is None
        else {"agent": call.agent_id, "backend": call.backend_id, "tool": call.tool_name}
    )
    return all(fnmatchcase(named[name], glob) for name, glob in wants)


@contextmanager
def _opened(out: str) -> Iterator[Callable[[bytes], Any]]:
    """Where lines go: standard output, or a new file (0600) that has its name once it is whole."""
    if out == "-":
        sys.stdout.flush()
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    path = Path(out)
    if path.exists():
        raise Problem(f"`{visible(out)}` is there already", "name another file, or remove it", USAGE)
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    file: BinaryIO
    try:
        file = os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb")
    except OSError as error:
        raise Problem(
            f"`{visible(out)}` cannot be written: {(error.strerror or str(error)).lower()}", _ELSEWHERE
        ) from None
    try:
        with file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
    except OSError as error:
        raise Problem(
            f"`{visible(out)}` cannot be written: {(error.strerror or str(error)).lower()}", _ELSEWHERE
        ) from None
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _progress(out: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; nothing where lines go to one, or nobody looks."""
    if not sys.stderr.isatty() or (out == "-" and sys.stdout.isatty()):
        yield lambda done, total: None
        return
    from rich.progress import Progress

    with Progress(console=rich(stderr=True), transient=True) as bar:
        task = bar.add_task("exporting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
