"""`aegis audit verify`, `checkpoint`: whether the log is what was written, by itself and by what others have of it."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.audit_log import Db, opened, reading, usual
from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, complain, emit, rich, say, visible
from aegis_daemon.cli.options import Json

if TYPE_CHECKING:
    from aegis_daemon.audit.verify import Report, Trust

NOTES_MAX: Final = 64 << 20
SHOWN: Final = 100


def verify(
    trusted: Annotated[
        list[str] | None,
        typer.Option("--trusted", metavar="FILE", help="Checkpoints that were kept elsewhere; may be given again."),
    ] = None,
    require_witness: Annotated[
        bool, typer.Option("--require-witness", help="1, too, where no witness or trusted checkpoint covers any of it.")
    ] = False,
    trusted_key: Annotated[
        str | None,
        typer.Option("--trusted-key", metavar="KEY", help="The key to believe: a file, `name+id+base64`, or hex."),
    ] = None,
    since: Annotated[
        int, typer.Option("--since", min=1, metavar="SEQ", help="Read only the hashes of records before SEQ.")
    ] = 1,
    db: Db = None,
    as_json: Json = False,
) -> int:
    """Recompute every hash, link, body, call row and checkpoint of the log. 1 where anything was changed."""
    path, newest = (db, None) if db is not None else usual()
    trust = _trust(path, trusted or [], trusted_key, own=db is None)
    with reading(path) as reader:
        if sys.stderr.isatty() and not as_json:
            from rich.progress import Progress

            with Progress(console=rich(stderr=True), transient=True) as bar:
                task = bar.add_task("verifying", total=None)
                report = reader.verify(
                    lambda done, total: bar.update(task, completed=done, total=total),
                    newest=newest,
                    trust=trust,
                    since=since,
                )
        else:
            report = reader.verify(newest=newest, trust=trust, since=since)
    missing = require_witness and not report.witnessed
    if as_json:
        emit({**msgspec.to_builtins(report), "unwitnessed": report.unwitnessed})
        return WRONG if report.faults or missing else DONE
    for fault in report.faults[:SHOWN]:
        print(f"record {fault.seq}: {visible(fault.kind)}: {visible(fault.text)}")
    if report.faults:
        count = len(report.faults)
        if count > SHOWN:
            print(f"… and {count - SHOWN} more; `--json` has them all")
        say(f"{count} fault{'s' * (count != 1)} in {report.records} records: the log was changed after it was written")
        return WRONG
    _tell(report, since)
    if missing:
        complain(
            "no witness has seen any of this log",
            "configure one under `audit.witnesses`, or give a checkpoint that was kept elsewhere with `--trusted`",
        )
        return WRONG
    return DONE


def _tell(report: Report, since: int) -> None:
    erased = f", {report.erased_bodies} erased" if report.erased_bodies else ""
    what = "1 record" if report.records == 1 else f"{report.records} records"
    print(
        f"{what} ({max(report.first_seq, since)} to {report.last_seq}), {report.checked_bodies} bodies{erased} and "
        f"{report.checked_calls} calls are as they were written"
    )
    if report.purged:
        print(f"records 1 to {report.purged} were purged; their hashes are those that were signed")
    print(f"head {report.head}")
    if report.signed:
        behind = report.last_seq - report.signed
        print(f"signed to {report.signed} as {visible(report.origin)}" + (f", {behind} not yet" if behind else ""))
    else:
        print("no checkpoint covers any of it: somebody with the file could have written all of it anew")
    if report.witnessed:
        print(f"witnessed to {report.witnessed} ({visible(report.witness)}); {report.unwitnessed} not yet witnessed")
    else:
        what = "1 record is" if report.unwitnessed == 1 else f"{report.unwitnessed} records are"
        print(f"{what} not witnessed yet: nobody but this machine can say that nothing is missing at the end")


def checkpoint(
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Append it to this file instead of printing it.")
    ] = None,
    db: Db = None,
) -> None:
    """The newest signed checkpoint, to be kept elsewhere for `verify --trusted`."""
    with opened(db) as reader:
        note = reader.newest_checkpoint()
    if note is None:
        raise Problem("nothing of this log was signed yet", "a running daemon signs every 10 s; see `aegis status`")
    if out is None:
        print(note, end="")
        return
    try:
        with open(out, "a", encoding="utf-8") as file:
            file.write(note + "\n")
    except OSError as error:
        raise Problem(f"`{out}` cannot be written: {error.strerror}", "name another file") from None
    say(f"appended to {visible(out)}")


# --- what is believed -------------------------------------------------------------------------------------------------


def _trust(path: str, trusted: list[str], trusted_key: str | None, *, own: bool) -> Trust:
    from aegis_daemon.audit import keys
    from aegis_daemon.audit.checkpoint import NoteError
    from aegis_daemon.audit.verify import Trust

    key: bytes | None = None
    if trusted_key is not None:
        text = trusted_key
        try:
            if Path(trusted_key).is_file():
                text = Path(trusted_key).read_text(encoding="utf-8")
            key = keys.read_public(text)
        except (NoteError, OSError, UnicodeDecodeError) as error:
            raise Problem(f"`{trusted_key}` is not used: {error}", "see `aegis audit key`", USAGE) from None
    notes = [(name, note) for name in trusted for note in _notes(name)]
    if own:
        key_file, witnesses, cursors = signing()
        notes += [(name, note) for name, file in witnesses.items() for note in _notes(file, missing_ok=True)]
        notes += _witnessed(path, cursors)
        try:
            ring = tuple(keys.read_ring(key_file))
            memory = msgspec.json.decode(keys.memory_path(key_file).read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            ring, memory = (), {}
        known = _chain(path)
        mine = [note for origin, note in memory.items() if origin.rpartition("/")[2] == known]
        return Trust(key=key, ring=ring, notes=tuple(mine), witnessed=tuple(notes))
    return Trust(key=key, witnessed=tuple(notes))


def signing() -> tuple[Path, dict[str, str], Path]:
    """The key's file, the files of witnesses that can be read here, and where exports keep how far they are."""
    from aegis_daemon.config.load import ConfigFaults, load

    paths = link.paths()
    cursors = Path(paths.state_dir, "exports.db")
    try:
        audit = load(paths.config, optional=True).config.audit
    except ConfigFaults:
        return Path(paths.audit_key), {}, cursors
    files = {name: str(witness.path) for name, witness in audit.witnesses.items() if witness.type == "file"}
    return Path(audit.key_file or paths.audit_key), files, cursors


def _notes(path: str, *, missing_ok: bool = False) -> list[str]:
    from aegis_daemon.audit.checkpoint import split_notes

    hint = "name a file that `aegis audit checkpoint` wrote"
    try:
        with open(path, encoding="utf-8") as file:
            notes = split_notes(file.read(NOTES_MAX))
    except (OSError, UnicodeDecodeError) as error:
        if missing_ok:
            return []
        why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "it is no text"
        raise Problem(f"`{visible(path)}` cannot be read: {why}", hint, USAGE) from None
    if not missing_ok and not any(map(_is_note, notes)):
        raise Problem(f"`{visible(path)}` holds no checkpoint", hint, USAGE)  # that says nothing of the log
    return notes


def _is_note(text: str) -> bool:
    from aegis_daemon.audit.checkpoint import NoteError, read_note

    try:
        read_note(text)
    except NoteError:
        return False
    return True


def _witnessed(path: str, cursors: Path) -> list[tuple[str, str]]:
    """The store's checkpoints that were taken by witnesses which cannot be read from here."""
    found: list[tuple[str, str]] = []
    try:
        with closing(sqlite3.connect(f"{cursors.absolute().as_uri()}?mode=ro", uri=True)) as db:
            rows: list[tuple[Any, ...]] = db.execute(
                "SELECT witness, chain, max(size) FROM witnessed GROUP BY witness, chain"
            ).fetchall()
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            for witness, origin, size in rows:
                row = db.execute("SELECT note FROM checkpoints WHERE size = ?", (size,)).fetchone()
                if row is not None and str(row[0]).startswith(f"{origin}\n"):
                    found.append((str(witness), str(row[0])))
    except sqlite3.Error:
        pass  # nothing was exported yet, or nothing signed
    return found


def _chain(path: str) -> str:
    """The id of the log in this store."""
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            for question in ("SELECT hash FROM leaves WHERE seq = 1", "SELECT hash FROM records WHERE seq = 1"):
                try:
                    row = db.execute(question).fetchone()
                except sqlite3.Error:
                    continue
                if row is not None:
                    return (row[0].hex() if isinstance(row[0], bytes) else str(row[0]))[:16]
    except sqlite3.Error:
        pass
    return ""
