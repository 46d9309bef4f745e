"""What is Aegis' own is its owner's alone, and nothing of a killed process is left lying about."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Final

from aegis_daemon.clients import files, ledger
from aegis_daemon.config.paths import Paths
from aegis_daemon.manage.client import lock_holder
from aegis_daemon.onboarding.scene import Finding, Scene

LEFT_S: Final = 3600.0
"""How old an unfinished file has to be before it counts as left."""
OLD_S: Final = 90 * 86400.0
STORE_S: Final = 3.0
"""How long one store is looked through."""
_STORES: Final = ("audit.db", "state.db", "exports.db")
_OURS: Final = re.compile(
    r"aegis\.yaml(?:\.bak|\.before-allow)?|(?:approver|audit|links)\.key(?:\.pub|\.next|\.signed)?"
    r"|(?:audit|state|exports)\.db(?:-wal|-shm|-journal)?|daemon\.log(?:\.\d+)?|(?:daemon|start|wired)\.lock"
    r"|(?:aegis|manage)\.sock|wired\.json|daemon\.at|journal|backups|secrets|run"
)
"""Names of what is made in a directory of ours."""
_SEGMENT: Final = re.compile(r"seg-\d+\.(?:jnl|new)|damaged-\d+\.jnl|(?:writer\.)?lock|shed")
_LEFT: Final = re.compile(
    r"\.(?:wired\.json|daemon\.at|aegis\.yaml|(?:approver|audit|links)\.key|doctor)\.[0-9a-f]{16}"
    r"|\..*-[0-9a-f]{8}\.\d{8}T\d{6}Z(?:\.\d+)?\.[0-9a-f]{16}", re.S
)  # fmt: skip
"""What is written beside a file of ours before it takes its place: see `clients.files` and `daemon.lifecycle`."""
_UNFINISHED: Final = re.compile(r"\.[0-9a-f]{16}")
_SECRET: Final = re.compile(r"(?<!\$)\$\{file:(?:\./)?secrets/([^/{}]+)\}")
_MANY: Final = 3


def check(scene: Scene) -> Iterator[Finding]:
    """Directories, sockets, private files, leftovers and copies."""
    if scene.paths.doors:
        return  # root made them, and other users of the machine see only a part: `daemon install --system` tells
    yield from _directories(scene)
    yield from _sockets(scene)
    yield from _private(scene)
    yield from _stores(scene)
    yield from _leftovers(scene)
    yield from _backups(scene)
    if not scene.isolated:
        yield Finding("tier-advisory", "agents run as the daemon's user")


def _directories(scene: Scene) -> Iterator[Finding]:
    paths = scene.paths
    made = (paths.state_dir, paths.run_dir, paths.journal)
    usual = Paths.find({name: value for name, value in scene.env.items() if not name.startswith("AEGIS_")})
    whole = (os.path.dirname(usual.config), usual.state_dir, usual.run_dir)
    for path in dict.fromkeys((*made, os.path.dirname(paths.config))):
        found = _stat(path)
        if found is None or not stat.S_ISDIR(found.st_mode):
            continue
        own = path in made or os.path.basename(path) == "aegis"
        if found.st_uid != os.geteuid():
            if own and found.st_uid != 0:
                yield Finding("directory-not-yours", f"`{path}` belongs to uid {found.st_uid}", path)
        elif stat.S_IMODE(found.st_mode) & 0o022:
            mode = f"`{path}` has mode {stat.S_IMODE(found.st_mode):04o}"
            if found.st_mode & stat.S_ISVTX or not (path in whole or _ours_alone(path)):
                fix = "other files are in it, and may be there for others: set AEGIS_HOME to a directory of its own"
                yield Finding("directory-too-open", mode, path, fix)
                continue
            yield Finding(
                "directory-too-open", mode, path, f"`aegis doctor --fix`, or `chmod go-w {path}`", tighten(path, 0o022)
            )


def _ours_alone(path: str) -> bool:
    """Whether a directory that somebody chose is Aegis's by now: nothing else is in it, whatever its name is."""
    if os.path.basename(path) == "journal":
        return all(_SEGMENT.fullmatch(one) for one in _names(path))
    return all(_OURS.fullmatch(one) or _LEFT.fullmatch(one) for one in _names(path))


def _sockets(scene: Scene) -> Iterator[Finding]:
    paths = scene.paths
    strangers = _shared_with_agents(scene)
    running = scene.status is not None or lock_holder(paths.lock) is not None
    for path in dict.fromkeys((paths.socket, paths.manage_socket)):
        found = _stat(path)
        if found is None or not stat.S_ISSOCK(found.st_mode):
            continue
        if not running and not _listens(path):
            yield Finding("socket-stale", f"nobody listens at `{path}`", path, mend=_remover(path, found))
        elif found.st_mode & 0o077 and found.st_uid == os.geteuid() and not (path == paths.socket and strangers):
            mode = f"`{path}` has mode {stat.S_IMODE(found.st_mode):04o}"
            yield Finding("socket-too-open", mode, path, f"`chmod 600 {path}`", tighten(path, 0o077))


def _shared_with_agents(scene: Scene) -> bool:
    """Whether agents of other users are configured, who have to open the agents' socket."""
    try:
        with open(scene.paths.config, encoding="utf-8", errors="replace") as file:
            return re.search(r"^\s*identities\s*:", file.read(1 << 20), re.M) is not None
    except OSError:
        return False


def _private(scene: Scene) -> Iterator[Finding]:
    paths = scene.paths
    state = _stat(paths.state_dir)
    closed = state is not None and not state.st_mode & 0o077
    names = [paths.approver_key, paths.audit_key, paths.links_key, os.path.join(paths.state_dir, ledger.NAME)]
    secrets = os.path.join(os.path.dirname(paths.config), "secrets")
    if not closed:  # else nobody gets as far as these
        names += [paths.log, *(f"{paths.state_dir}/{name}{end}" for name in _STORES for end in ("", "-wal", "-shm"))]
        names += _made(os.path.join(paths.state_dir, ledger.BACKUPS))
        names += [one for one in _within(paths.journal) if _SEGMENT.fullmatch(os.path.basename(one))]
    names += _made(secrets) + [one for one in _within(secrets) if os.path.basename(one) in _named(paths.config)]
    for path in dict.fromkeys(names):
        found = _stat(path)
        if found is None or not stat.S_ISREG(found.st_mode) or not found.st_mode & 0o077:
            continue
        if found.st_uid == os.geteuid():
            mode = f"`{path}` has mode {stat.S_IMODE(found.st_mode):04o}"
            yield Finding("file-too-open", mode, path, f"`aegis doctor --fix`, or `chmod 600 {path}`", tighten(path))


def _made(directory: str) -> list[str]:
    """What it was written down of that we made it."""
    return [os.path.join(directory, name) for name in sorted(files.noted(directory))]


def _named(config: str) -> frozenset[str]:
    """The files of `secrets/` that the configuration names."""
    try:
        with open(config, encoding="utf-8", errors="replace") as file:
            return frozenset(_SECRET.findall(file.read(1 << 20)))
    except OSError:
        return frozenset()


def _stores(scene: Scene) -> Iterator[Finding]:
    """Those that the check of the log does not read."""
    for path in (scene.paths.state_db, scene.paths.exports_db):
        if not os.path.isfile(path) or not os.path.getsize(path):
            continue
        try:
            # Where nobody has it open, a look makes no `-wal` and no `-shm`.
            how = "mode=ro" if os.path.exists(f"{path}-wal") else "immutable=1"
            with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?{how}", uri=True, timeout=2.0)) as db:
                db.set_progress_handler(partial(_late, time.monotonic() + STORE_S), 10_000)
                said = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        except sqlite3.OperationalError:
            continue  # busy, or too large for a quick look
        except sqlite3.DatabaseError as error:
            said = str(error)
        if said != "ok":
            yield Finding("state-damaged", f"`{path}`: {said.splitlines()[-1]}", path)


def _late(until: float) -> int:
    return int(time.monotonic() > until)


def _leftovers(scene: Scene) -> Iterator[Finding]:
    left = [one for one in _within(scene.paths.state_dir) if _LEFT.fullmatch(os.path.basename(one))]
    copies = os.path.join(scene.paths.state_dir, ledger.BACKUPS)
    left += [f"{copies}/{one}" for one in _names(copies) if one[1:-17] in files.noted(copies) and _LEFT.fullmatch(one)]
    for path in dict.fromkeys((*left, *_beside_clients(scene))):
        found = _stat(path)
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            continue
        if scene.now - found.st_mtime > LEFT_S:
            yield Finding("leftovers", f"`{path}`", path, mend=_remover(path, found))


def _beside_clients(scene: Scene) -> Iterator[str]:
    """Beside clients' files that we have written: what was not finished there holds what they hold, secrets too."""
    try:
        known = ledger.load(scene.paths.state_dir).files
    except (ledger.Unreadable, OSError):
        return  # the clients' check tells
    for row in known:
        directory, name = os.path.split(os.path.realpath(row.path))
        for one in _names(directory):
            if one.startswith(f".{name}.") and _UNFINISHED.fullmatch(one[len(name) + 1 :]):
                yield os.path.join(directory, one)


def _backups(scene: Scene) -> Iterator[Finding]:
    try:
        needed = ledger.load(scene.paths.state_dir).needed()
    except (ledger.Unreadable, OSError):
        return  # the clients' check tells
    old, size = [], 0
    for path in _made(os.path.join(scene.paths.state_dir, ledger.BACKUPS)):
        found = _stat(path)
        if found is not None and path not in needed and scene.now - found.st_mtime > OLD_S:
            old.append(os.path.basename(path))
            size += found.st_size
    if old:
        more = f" and {len(old) - _MANY} more" if len(old) > _MANY else ""
        text = f"older than 90 days, {size // 1024 + 1} KB: {', '.join(sorted(old)[:_MANY])}{more}"
        yield Finding("backups-old", text, os.path.join(scene.paths.state_dir, ledger.BACKUPS))


# --- by hand, and by `--fix`


def tighten(path: str, bits: int = 0o077) -> Callable[[], None]:
    """Takes rights of others away, from what is there and not from what a link points to elsewhere."""

    def mend() -> None:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            raise OSError(f"`{path}` is a link; change what it points to by hand")
        os.chmod(path, stat.S_IMODE(found.st_mode) & ~bits)

    return mend


def _remover(path: str, seen: os.stat_result) -> Callable[[], None]:
    def mend() -> None:
        with suppress(FileNotFoundError):
            now = os.lstat(path)
            if (now.st_dev, now.st_ino) != (seen.st_dev, seen.st_ino):
                raise OSError(f"`{path}` is another one by now")
            if stat.S_ISSOCK(now.st_mode) and _listens(path):
                raise OSError(f"a daemon listens at `{path}` by now")
            os.unlink(path)

    return mend


def _listens(path: str) -> bool:
    """Whether somebody does. A refused connection alone says no."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.settimeout(1.0)
        try:
            end.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _within(directory: str) -> list[str]:
    return [os.path.join(directory, name) for name in _names(directory)]


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
