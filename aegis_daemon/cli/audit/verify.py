"""`aegis audit verify`, `checkpoint`: whether the log is what was written, by itself and by what others have of it."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import sys
from collections.abc import Collection
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import msgspec
import typer

from aegis_daemon.cli import link
from aegis_daemon.cli.audit.log import Db, Usual, opened, reading, usual
from aegis_daemon.cli.console import DONE, USAGE, WRONG, Problem, complain, emit, rich, say, visible
from aegis_daemon.cli.options import Json

if TYPE_CHECKING:
    from aegis_daemon.audit.verify import Report, Trust

NOTES_MAX: Final = 16 << 20
"""Bytes of a file of checkpoints that are read, its newest: some 70 000 of them, a week of one every 10 s."""
SIGNATURE: Final = 64
"""Bytes of the shortest signature that is whole."""
_HEAD = r"aegis/[^\s/]+/[0-9a-f]{16}\n"
_NOTE: Final = re.compile(
    rf"{_HEAD}(?:(?![^\n]*{_HEAD})[^\n]+\n){{2,}}\n(?:— (?![^\n]*{_HEAD})[^\n]+\n)+"  # nothing that begins anew
)
"""A whole checkpoint, wherever it begins: behind half of another one, for instance."""
SHOWN: Final = 100
_KEEP: Final = (
    "to go on with a new log: stop the daemon, move `audit.db` (with `-wal` and `-shm`), `journal/` and `exports.db` "
    "elsewhere, as evidence, and start it: a new log begins, and one of its first records tells that"
)


def verify(
    trusted: Annotated[
        list[str] | None,
        typer.Option("--trusted", metavar="FILE", help="Checkpoints that were kept elsewhere; may be given again."),
    ] = None,
    require_witness: Annotated[
        bool,
        typer.Option(
            "--require-witness", help="1, too, where no configured witness or trusted checkpoint covers any of it."
        ),
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
    """Recompute every hash, link, body, call row and checkpoint of the log. 1 where anything was changed or unseen."""
    path, newest, unseen = Usual(db) if db is not None else usual()
    remarks: list[str] = [f"the newest records were not seen: {unseen}"] if unseen else []
    trust = _trust(path, trusted or [], trusted_key, remarks, own=db is None)
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
    nothing, fresh = _nothing(report, since, own=db is None)
    if as_json:
        remarks += [nothing] if nothing else []
        emit({**msgspec.to_builtins(report), "unwitnessed": report.unwitnessed, "remarks": remarks})
        return WRONG if report.faults or missing or unseen or (nothing and not fresh) else DONE
    for remark in remarks:
        say(f"note: {visible(remark)}")
    for fault in report.faults[:SHOWN]:
        print(f"record {fault.seq}: {visible(fault.kind)}: {visible(fault.text)}")
    if report.faults:
        count = len(report.faults)
        if count > SHOWN:
            print(f"… and {count - SHOWN} more; `--json` has them all")
        why = "the log was changed after it was written"
        if trust.key is not None and all(fault.kind == "unknown_key" for fault in report.faults):
            why = "the log was not signed by the key that you trust"
        say(f"{count} fault{'s' * (count != 1)} in {report.records} records: {why}")
        if db is None and "changed" in why:
            say(_KEEP)
        return WRONG
    if nothing:
        if not fresh:
            raise Problem(nothing, "name a log that has records, or leave `--since` out")
        say(nothing)
    else:
        _tell(report, since, given=trust.key is not None, own=bool(trust.ring))
    if unseen:
        complain("the newest records of the log could not be looked at", "see `aegis status`")
        return WRONG
    if missing:
        complain(
            "no witness has seen any of this log",
            "configure one under `audit.witnesses`, or give a checkpoint that was kept elsewhere with `--trusted`",
        )
        return WRONG
    return DONE


def _nothing(report: Report, since: int, *, own: bool) -> tuple[str, bool]:
    """What is to be said where no record was verified, else ""; and whether it is a log that nobody has written yet."""
    if report.records or report.faults:
        return "", False
    if report.last_seq:
        return f"nothing was verified: there is no record {since} or later, the log ends with {report.last_seq}", False
    if own and not report.purged and not _memory(signing()[0]):
        return "nothing was recorded yet", True
    return "nothing was verified: the log has no record", False


def _tell(report: Report, since: int, *, given: bool, own: bool) -> None:
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
        if report.key:
            whose = "the key that the store names itself: compare it with one that you kept"
            whose = "the key that you trust" if given else "the key of this machine" if own else whose
            print(f"by the key {report.key}, {whose}")
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
    as_json: Json = False,
) -> None:
    """The newest signed checkpoint, to be kept elsewhere for `verify --trusted`."""
    with opened(db) as reader:
        note = reader.newest_checkpoint()
    if note is None:
        raise Problem("nothing of this log was signed yet", "a running daemon signs every 10 s; see `aegis status`")
    if out is None:
        emit(_parts(note)) if as_json else print(note, end="")
        return
    try:
        with open(out, "a", encoding="utf-8") as file:
            file.write(note + "\n")
    except OSError as error:
        raise Problem(f"`{out}` cannot be written: {error.strerror}", "name another file") from None
    say(f"appended to {visible(out)}")
    if as_json:
        emit(_parts(note))


def _parts(note: str) -> dict[str, Any]:
    """A checkpoint for programs; `note` is the text that is signed, with its signatures. Raises `Problem`."""
    from base64 import b64encode

    from aegis_daemon.audit.checkpoint import NoteError, read_checkpoint, read_note

    try:
        point = read_checkpoint(read_note(note).text)
    except NoteError as error:
        raise Problem(f"the store's newest checkpoint cannot be read: {error}", "see `aegis audit verify`") from None
    root = b64encode(point.root).decode()
    return {"origin": point.origin, "size": point.size, "root": root, "at": point.at or None, "note": note}


# --- what is believed -------------------------------------------------------------------------------------------------


def _trust(path: str, trusted: list[str], trusted_key: str | None, remarks: list[str], *, own: bool) -> Trust:
    """What to rely on; `remarks` grows by what a person should know of it."""
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
    notes = [(name, note) for name in trusted for note in _notes(name, remarks)]
    if own:
        key_file, witnesses, cursors = signing()
        read = set()
        known = _chain(path)
        for name, file in witnesses.items():
            if file is not None and (had := _had(name, file, remarks)) is not None:
                read.add(name)
                notes += [(name, note) for note in _ours(name, had, known, remarks)]
        notes += _witnessed(path, cursors, witnesses.keys() - read)
        memory = _memory(key_file)
        try:
            ring = tuple(keys.read_ring(key_file))
        except (OSError, UnicodeDecodeError):
            ring = ()
        mine = [note for origin, note in memory.items() if origin.rpartition("/")[2] == known]
        remarks += _larger(path, [note for note in memory.values() if note not in mine])
        return Trust(key=key, ring=ring, notes=tuple(mine), witnessed=tuple(notes))
    return Trust(key=key, witnessed=tuple(notes))


def _memory(key_file: Path) -> dict[str, str]:
    """The newest checkpoint that the key signed of each log, by the log's origin."""
    from aegis_daemon.audit import keys

    try:
        return msgspec.json.decode(keys.memory_path(key_file).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}


def _ours(name: str, notes: list[str], known: str, remarks: list[str]) -> list[str]:
    """What a witness has of this log; of another one it may have something from before, which is remarked."""
    from aegis_daemon.audit.checkpoint import NoteError, read_checkpoint, read_note

    ours, others = [], []
    for note in notes:
        try:
            point = read_checkpoint(read_note(note).text)
        except NoteError:
            continue
        if known and point.origin.rpartition("/")[2] != known:
            others.append(point)
        else:
            ours.append(note)
    if others:
        most = max(others, key=lambda point: point.size)
        count = len({point.origin for point in others}) - 1
        more = f" and of {count} more" if count else ""
        remarks.append(
            f"`{name}` has checkpoints of another log, `{most.origin}`, to {most.size} records ({most.at}){more}: "
            "they say nothing of this one: verify them with the log that was kept, or ask who began a new one"
        )
    return ours


def signing() -> tuple[Path, dict[str, str | None], Path]:
    """The key's file, the witnesses (with the file of those that are one), and where exports keep how far they are."""
    from aegis_daemon.config.load import ConfigFaults, load

    paths = link.paths()
    cursors = Path(paths.state_dir, "exports.db")
    try:
        audit = load(paths.config, optional=True).config.audit
    except ConfigFaults:
        return Path(paths.audit_key), {}, cursors
    files = {name: str(w.path) if w.type == "file" else None for name, w in audit.witnesses.items()}
    return Path(audit.key_file or paths.audit_key), files, cursors


def _notes(path: str, remarks: list[str]) -> list[str]:
    """The notes of a file that somebody gives."""
    hint = "name a file that `aegis audit checkpoint` wrote"
    try:
        with open(path, "rb") as file:
            notes = _newest(file, visible(path), remarks)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Problem(f"`{visible(path)}` cannot be read: {why}", hint, USAGE) from None
    if not any(map(_is_note, notes)):
        raise Problem(f"`{visible(path)}` holds no checkpoint", hint, USAGE)  # that says nothing of the log
    return notes


def _had(name: str, path: str, remarks: list[str]) -> list[str] | None:
    """What the file of a witness has; None where it cannot be read from here."""
    try:
        if stat.S_ISREG(os.lstat(path).st_mode):  # whoever opens a FIFO takes away what its reader should have
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    return _newest(file, name, remarks)
        why = "it is no regular file"
    except OSError as error:
        why = (error.strerror or str(error)).lower()
    remarks.append(f"what the witness `{name}` has is not read here: {why}")
    return None


def _newest(file: BinaryIO, name: str, remarks: list[str]) -> list[str]:
    """The notes at the end of a file. What is half a note, as a full disk leaves it, is passed over."""
    info = os.fstat(file.fileno())
    older = max(0, info.st_size - NOTES_MAX) if stat.S_ISREG(info.st_mode) else 0
    if older:
        file.seek(older)
        remarks.append(f"only the newest {NOTES_MAX >> 20} MiB of `{name}` were read; put the older part elsewhere")
    text = file.read(NOTES_MAX).decode(errors="replace")
    found = [note for note in _NOTE.finditer(text) if _is_note(note[0])]
    between = zip([0, *(note.end() for note in found)], [*(note.start() for note in found), len(text)], strict=True)
    rests = [text[begin:end].strip() for begin, end in between]
    broken = sum(map(bool, rests[1 if older else 0 :]))
    if broken and found:
        remarks.append(f"`{name}` has something in {broken} places that is no whole checkpoint; it was passed over")
    return [note[0] for note in found]


def _is_note(text: str) -> bool:
    from aegis_daemon.audit.checkpoint import NoteError, read_checkpoint, read_note

    try:
        note = read_note(text)
        read_checkpoint(note.text)
    except NoteError:
        return False
    return all(len(line.signature) >= SIGNATURE for line in note.signatures)


def _witnessed(path: str, cursors: Path, names: Collection[str]) -> list[tuple[str, str]]:
    """The store's checkpoints that these witnesses took, which cannot be read from here: so this machine says."""
    found: list[tuple[str, str]] = []
    try:
        with closing(sqlite3.connect(f"{cursors.absolute().as_uri()}?mode=ro", uri=True)) as db:
            rows: list[tuple[Any, ...]] = db.execute(
                "SELECT witness, chain, max(size) FROM witnessed GROUP BY witness, chain"
            ).fetchall()
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            for witness, origin, size in rows:
                row = db.execute("SELECT note FROM checkpoints WHERE size = ?", (size,)).fetchone()
                if row is not None and witness in names and str(row[0]).startswith(f"{origin}\n"):
                    found.append((f"{witness}, as this machine says", str(row[0])))
    except sqlite3.Error:
        pass  # nothing was exported yet, or nothing signed
    return found


def _larger(path: str, others: list[str]) -> list[str]:
    """Remarks on other logs that the key signed, which had more records than this one has."""
    from aegis_daemon.audit.checkpoint import NoteError, read_checkpoint, read_note

    remarks = []
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as db:
            last = db.execute("SELECT ifnull(max(seq), 0) FROM records").fetchone()[0]
            first = db.execute("SELECT record FROM records ORDER BY seq LIMIT 1").fetchone()
            ts = msgspec.json.decode(first[0])["ts"] if first is not None else 0
            began = f" on {datetime.fromtimestamp(ts / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}" if ts else ""
    except (sqlite3.Error, msgspec.MsgspecError, LookupError, TypeError, ValueError, OverflowError, OSError):
        return []  # that is said otherwise
    for note in others:
        try:
            point = read_checkpoint(read_note(note).text)
        except NoteError:
            continue
        if point.size > last:
            remarks.append(
                f"this key signed {point.size} records of another log, `{point.origin}`, to {point.at or 'some day'}; "
                f"a new log began{began}: if that was not you, the other one was taken away"
            )
    return remarks


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
