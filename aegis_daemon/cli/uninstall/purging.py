"""What `aegis uninstall --purge` removes is Aegis's own: usual directories whole, anywhere else only files of its own.

A directory that somebody chose (`AEGIS_HOME`, `AEGIS_CONFIG`, `audit.db_path`), or to which a link of ours leads, may
hold anything. There a file goes only where its name, its kind and what it holds are ours, or where it was written down
that we made it; directories only once they are empty.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Final

from aegis_daemon.audit.segment import MAGIC
from aegis_daemon.cli import completion
from aegis_daemon.cli.agents.configuration import SECRETS
from aegis_daemon.clients import files as kept
from aegis_daemon.clients import ledger
from aegis_daemon.config.paths import Paths
from aegis_daemon.config.source import ConfigFaults
from aegis_daemon.service import steps
from aegis_daemon.service.steps import Step

_DATABASE: Final = re.compile(r"((?:audit|state|exports)\.db(?:\.other-\d{8}T\d{6}Z(?:-\d+)?)?)(?:-wal|-shm|-journal)?")
_TABLES: Final = {
    "audit": ("records", {"seq", "hash", "record"}),
    "state": ("tickets", {"call_id", "id", "digest", "agent", "backend", "method", "arguments", "rule", "claims"}),
    "exports": ("cursors", {"sink", "chain", "seq", "hash", "keep"}),
}
"""A table that a database of ours has, and columns of it."""
_STATE: Final = re.compile(
    r"links\.key|(?:daemon|start|wired)\.lock|wired\.json|daemon\.at|(?:aegis|manage)\.sock|daemon\.log(?:\.new|\.\d+)?"
    r"|\.(?:wired\.json|links\.key|daemon\.at|doctor)\.[0-9a-f]{16}"
)
"""Names of files that the daemon and the commands make for sockets and state."""
_CONDITION: Final = "if nothing else is in it"
_KEYS: Final = ("approver.key", "audit.key", "audit.key.next", "links.key")
_RING: Final = {
    "audit.key.pub": re.compile(rb'\s*|\{"public":"[0-9a-f]{64}".*', re.S),
    "audit.key.signed": re.compile(rb'\s*|\{(?:"([^"]*)":"\1\\n\d+\\n.*)?\}\s*', re.S),
}
"""What lies beside the log's key, and what it holds."""
_CONFIG: Final = ("", ".bak", ".before-allow")
"""What is made beside the configuration, after its name."""
_JOURNAL: Final = re.compile(r"seg-\d+\.(?:jnl|new)|damaged-\d+\.jnl|lock|writer\.lock|shed")
_UNFINISHED: Final = re.compile(r"\.(.*)\.[0-9a-f]{16}", re.S)
"""A file that is written beside another one before it takes its place."""
_BEGUN: Final = re.compile(re.escape(MAGIC) + rb" .*", re.S)
_HELD: Final = re.compile(rb"\d*\s*")
"""What is in a lock of ours: the process that holds it, or nothing."""
_KEY: Final = re.compile(
    rb"\s*|[0-9a-f]{64}\s*|-----BEGIN PRIVATE KEY-----\n[A-Za-z0-9+/=]{64}\n-----END PRIVATE KEY-----\s*"
)
"""What our key files hold: 32 bytes in hex, or an Ed25519 key in PEM; nothing after a full disk."""
_LINE: Final = re.compile(rb"^aegis: | (?:INFO|WARNING|ERROR) aegis|\"logger\":\"aegis", re.M)


def files(paths: Paths) -> list[Step]:
    """All that Aegis keeps, and what a shell completes it with. The order is that in which it goes."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS_")}
    usual = Paths.find(env)
    own = {os.path.dirname(usual.config), usual.state_dir, usual.run_dir}
    base = os.path.dirname(paths.config)
    chosen = list(dict.fromkeys([base, paths.run_dir, paths.state_dir]))  # the state's last: the sockets' may be in it
    whole = [path for path in chosen if path in own and os.path.isdir(path) and not os.path.islink(path)]
    inside = tuple(f"{path}/" for path in whole)
    single = [path for path in dict.fromkeys(_single(paths)) if _plain(path) and not path.startswith(inside)]
    found = [*map(steps.remove, single), *_elsewhere(paths, inside)]
    for path in chosen:
        if path in whole:
            found.append(Step("remove", path, _inside(path), partial(_tree, path)))
            continue
        inner = [SECRETS] if path == base else []
        inner += ["journal", ledger.BACKUPS] if path == paths.state_dir else []
        found += [_emptied(f"{path}/{name}") for name in inner if os.path.isdir(f"{path}/{name}")]
        mine = path in own or (path in (paths.state_dir, paths.run_dir) and path != os.path.expanduser("~"))
        if mine and os.path.isdir(path):
            found.append(_emptied(path))
    return _empty_then([*found, *_completions()], [_emptied(path) for path in _above(usual)])


def _empty_then(found: list[Step], above: list[Step]) -> list[Step]:
    """Without the directories that will not be empty by then; of those above ours, without those we had nothing in."""
    gone: set[str] = set()
    kept: list[Step] = []
    for step in [*found, *above]:
        if step.detail == _CONDITION:
            names = _names(step.target)
            if any(f"{step.target}/{name}" not in gone for name in names) or (step in above and not names):
                continue
        if step.step == "remove":
            gone.add(step.target)
        kept.append(step)
    return kept


def staying(paths: Paths) -> list[str]:
    """What is left in directories that were ours, each with some of what is in it."""
    home = os.path.expanduser("~")
    places = dict.fromkeys((os.path.dirname(paths.config), paths.run_dir, paths.state_dir))
    return [f"{path} stays, since this is in it: {_inside(path)}" for path in places if path != home and _names(path)]


# --- one by one


def _single(paths: Paths) -> Iterator[str]:
    """Files of ours, each by its own name, wherever the directories are."""
    for end in _CONFIG:
        yield paths.config + end
    base = os.path.dirname(paths.config)
    for name in _names(base):
        form = _KEY if name in _KEYS else _RING.get(name)
        if form is not None and _says(f"{base}/{name}", form):
            yield f"{base}/{name}"
    yield from _made(f"{base}/{SECRETS}")
    for directory in (paths.state_dir, paths.run_dir):
        for name in _names(directory):
            path = f"{directory}/{name}"
            store = _DATABASE.fullmatch(name)
            if store is not None:
                ours = _holds(f"{directory}/{store[1]}", *_TABLES[store[1].partition(".")[0]])
            else:
                ours = (name not in _KEYS or _says(path, _KEY)) and (".log" not in name or _spoken(path))
            if ours and (store is not None or _STATE.fullmatch(name)):
                yield path
    yield from _segments(paths.journal)
    yield from _made(os.path.join(paths.state_dir, ledger.BACKUPS))
    if _kind(paths.socket, stat.S_ISSOCK):  # where AEGIS_SOCKET put it
        yield paths.socket
    starting = os.path.join(os.path.dirname(paths.socket), "start.lock")
    if _kind(starting, stat.S_ISREG) and not os.path.getsize(starting):
        yield starting


def _made(directory: str) -> Iterator[str]:
    """What was written down as ours when it was made (secrets, copies), and at last where that was written down."""
    ours = kept.noted(directory)
    for name in _names(directory):
        unfinished = _UNFINISHED.fullmatch(name)
        if name in ours or (unfinished is not None and unfinished[1] in ours):
            yield f"{directory}/{name}"
    if ours:
        yield f"{directory}/{kept.NOTES}"


def _segments(directory: str) -> Iterator[str]:
    """Files of the journal, where at least one of them begins as ours do: others are empty, or held back."""
    names = [name for name in _names(directory) if _JOURNAL.fullmatch(name)]
    if any(_says(f"{directory}/{name}", _BEGUN) for name in names):
        ends = (".jnl", ".new")
        yield from (f"{directory}/{one}" for one in names if one.endswith(ends) or _says(f"{directory}/{one}", _HELD))


def _elsewhere(paths: Paths, inside: tuple[str, ...]) -> Iterator[Step]:
    """The log, where the configuration put it somewhere else. A key there may be older than Aegis, and stays."""
    from aegis_daemon.config.load import load

    try:
        audit = load(paths.config).config.audit
    except (ConfigFaults, OSError):
        return
    store = audit.db_path
    if store and store != paths.audit_db and not store.startswith(inside):
        if _holds(store, *_TABLES["audit"]):
            yield from (steps.remove(store + end) for end in ("", "-wal", "-shm") if _plain(store + end))
        elif os.path.lexists(store):
            yield steps.hint(f"{store} stays", "`audit.db_path` names it, and it is no log of Aegis")
    key = audit.key_file
    if key and key != paths.audit_key and not key.startswith(inside) and os.path.lexists(key):
        yield steps.hint(f"{key} stays", "`audit.key_file` names it; remove it if nothing else uses it")


def _completions() -> Iterator[Step]:
    for shell in completion.SCRIPTS:
        path = completion.place(shell)
        if completion.ours(path):
            yield steps.remove(path, f"completion for {shell}")
            home = os.path.expanduser("~")
            above = os.path.dirname(path)
            while above.startswith(f"{home}/") and os.path.basename(above) not in (".local", ".config"):
                yield _emptied(above)
                above = os.path.dirname(above)


def _above(usual: Paths) -> list[str]:
    """Directories that may have been made for ours: `~/.config`, `~/.local/state`, `~/.local`."""
    state = os.path.dirname(usual.state_dir)
    found = [os.path.dirname(os.path.dirname(usual.config)), state, os.path.dirname(state)]
    home = os.path.expanduser("~")
    return [path for path in found if path.startswith(home + "/") and os.path.isdir(path)]


# --- what is there


def _plain(path: str) -> bool:
    """A file, socket or link: never a directory, or anything in it."""
    return _kind(path, lambda mode: stat.S_ISREG(mode) or stat.S_ISSOCK(mode) or stat.S_ISLNK(mode))


def _kind(path: str, test: Callable[[int], bool]) -> bool:
    try:
        return test(os.lstat(path).st_mode)
    except OSError:
        return False


def _says(path: str, form: re.Pattern[bytes]) -> bool:
    """Whether a file holds what the form says. Of a larger one, what it begins with."""
    if not _kind(path, stat.S_ISREG):
        return False
    try:
        with open(path, "rb") as file:
            return form.fullmatch(file.read(1 << 16)) is not None
    except OSError:
        return False


def _holds(path: str, table: str, columns: set[str]) -> bool:
    """Whether it is a database with that table as we make it. Of a damaged one nobody can tell, so it stays."""
    if not _kind(path, stat.S_ISREG):
        return False
    try:
        # Where nobody has it open, a look makes no `-wal` and no `-shm`.
        how = "mode=ro" if os.path.exists(f"{path}-wal") else "immutable=1"
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?{how}", uri=True, timeout=1.0)) as db:
            found = {row[0] for row in db.execute("SELECT name FROM pragma_table_info(?)", (table,))}
            return columns <= found
    except sqlite3.Error:
        return False


def _spoken(path: str) -> bool:
    """Whether a log is the daemon's, by how its lines begin."""
    if not _kind(path, stat.S_ISREG):
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    return not head.strip() or _LINE.search(head) is not None


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _inside(directory: str) -> str:
    names = _names(directory)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


# --- removing


def _tree(path: str) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def _emptied(path: str) -> Step:
    return Step("remove", path, _CONDITION, partial(_bare, path))


def _bare(path: str) -> None:
    """An empty directory; of a link to one, both."""
    with suppress(OSError):
        if os.path.islink(path):
            os.rmdir(os.path.realpath(path))
            os.unlink(path)
        else:
            os.rmdir(path)
