"""Which files of which clients there are, and what an entry has to say to reach the daemon of this installation.

A file that cannot be understood is told with its place, and is never written.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aegis_daemon.cli import link
from aegis_daemon.cli.console import USAGE, Problem, visible
from aegis_daemon.clients import catalog, documents, entries, files, ledger, standing
from aegis_daemon.clients.catalog import Client
from aegis_daemon.clients.documents import Document
from aegis_daemon.clients.ledger import Ledger
from aegis_daemon.config.paths import Paths
from aegis_daemon.core.extras import INSTALL, REINSTALL
from aegis_daemon.service import person

EPHEMERAL: Final = ("/.cache/uv/", "/uv/archive-v0/", "/uv/builds-v0/", "/pipx/.cache/", "/_npx/")
"""Parts of paths of programs that are there only as long as they run, or until a cache is cleared."""


@dataclass(frozen=True, slots=True)
class Target:
    """One file of a client, as it is now. `data` None: there is none any more. `fault`: why it is left alone."""

    client: Client
    path: str
    scope: str
    data: bytes | None
    document: Document | None = None
    fault: str = ""


def known(paths: Paths) -> Ledger:
    """What is wired. Raises `Problem`."""
    try:
        return ledger.load(paths.state_dir)
    except ledger.Unreadable as fault:
        raise Problem(str(fault)) from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Problem(f"`{paths.state_dir}/{ledger.NAME}` cannot be read: {why}", "check whose it is") from None


def here(paths: Paths, status: Mapping[str, Any] | None, config: Any = None) -> standing.Here:
    """What an entry has to say. `status` of the running daemon, None where none runs; `config` its settings."""
    system = bool(paths.doors)
    tokens = {}
    for name, agent in config.agents.items() if config is not None else ():
        if agent.auth_token is not None:
            tokens[name] = agent.auth_token.reveal()
    return standing.Here(
        wrapper=wrapper(),
        env={} if system else variables(os.environ),
        isolated=system or (status is not None and status["tier"] == "isolated"),
        doors=paths.doors,
        http=(status or {}).get("http") or "",
        tokens=tokens,
        lasting=not system and person.find(paths, os.environ) is not None,
    )


def wrapper() -> str:
    """`aegis-wrap` of this installation, absolute. Raises `Problem` where it would not be there tomorrow.

    A link to it in a directory of commands outlives the place to which pipx or uv installed it.
    """
    beside = os.path.join(os.path.dirname(sys.executable), standing.WRAPPER)
    found = beside if os.access(beside, os.X_OK) else shutil.which(standing.WRAPPER)
    if found is None:
        raise Problem("`aegis-wrap` is not installed beside `aegis`", f"install it again: {REINSTALL}")
    found = _link_to(os.path.abspath(found))
    if any(part in found or part in os.path.realpath(found) for part in EPHEMERAL):
        raise Problem(
            f"`{found}` is there only for the moment, and a client would not find it later",
            f"install it for good with {INSTALL}, then repeat this",
        )
    return found


def _link_to(program: str) -> str:
    """A link to the program where commands are looked for, that nobody else can lead elsewhere; else the program."""
    places = (os.path.dirname(shutil.which(standing.WRAPPER) or ""), os.path.expanduser("~/.local/bin"))
    for place in places:
        link_path = os.path.join(place, standing.WRAPPER)
        if not os.path.isabs(link_path) or not os.path.islink(link_path):
            continue
        mine = {os.lstat(link_path).st_uid, os.stat(place).st_uid} <= {0, os.getuid()}
        if mine and not os.stat(place).st_mode & 0o002 and os.path.realpath(link_path) == os.path.realpath(program):
            return link_path
    return program


def unlasting(path: str) -> str:
    """What is to be said of a program that lies in a checkout; "" for none."""
    from aegis_daemon.onboarding.checks.install import checkout

    place = checkout(path, os.path.expanduser("~"))
    if not place:
        return ""
    return (
        f"`{visible(path)}` is part of the checkout {visible(place)}, and goes with it: install it for good with "
        f"{INSTALL}, and repeat this with that one"
    )


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """What an entry must set so that a wrapper finds the daemon that this command finds.

    Clients hand on little of their own environment, some of them nothing but HOME and PATH.
    """
    bare = {"HOME": env["HOME"]} if env.get("HOME") else {}
    if Paths.find(bare) == Paths.find(env):
        return {}
    if env.get("AEGIS_HOME"):
        needed = {"AEGIS_HOME": os.path.abspath(env["AEGIS_HOME"])}
    else:
        names = ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
        needed = {name: env[name] for name in names if env.get(name, "").startswith("/")}
    needed |= {name: os.path.abspath(env[name]) for name in ("AEGIS_SOCKET", "AEGIS_CONFIG") if env.get(name)}
    return needed


def known_ids() -> list[str]:
    """The ids of clients, without those that stand for a file that nobody reads or for any program."""
    return [one.id for one in catalog.load() if not one.generic and one.dead is None]


def client_of(name: str) -> Client:
    """The client that a person named. Raises `Problem`."""
    from difflib import get_close_matches

    found = catalog.find(name)
    if found is None:
        near = get_close_matches(name, [one.id for one in catalog.load()], 1)
        hint = f"did you mean `{near[0]}`?" if near else f"one of {', '.join(known_ids())}; or name a `--file`"
        raise Problem(f"no client `{visible(name, 60)}` is known", hint, USAGE)
    return found


def targets(
    here_known: Ledger, *, file: str | None = None, client: str | None = None, dead: bool = False
) -> list[Target]:
    """The files that there are: one, those of one client, or all that are found and all that we wired."""
    chosen = client_of(client) if client is not None else None
    if file is not None:
        path = here_known.known_as(os.path.abspath(os.path.expanduser(file)))
        return [_target(path, "file", chosen, here_known.file(path))]
    home = Path(os.path.expanduser("~"))
    cwd = Path.cwd()
    found = catalog.discover(os.environ, home, cwd if cwd != home else None, catalog.system(), dead=dead)
    made: dict[str, tuple[str, Client | None]] = {str(one.path): (one.scope, one.client) for one in found if one.exists}
    for row in here_known.files:
        made.setdefault(row.path, ("file", None))
    every = [_target(path, scope, of, here_known.file(path)) for path, (scope, of) in made.items()]
    return [one for one in every if chosen is None or one.client.id == chosen.id]


def own(path: str) -> bool:
    """Whether a file is the person's: one that a client reads wherever it is started, and no project's or unknown."""
    found = catalog.discover(os.environ, Path(os.path.expanduser("~")), None, catalog.system(), dead=True)
    return any(one.exists and os.path.realpath(one.path) == os.path.realpath(path) for one in found)


def _target(path: str, scope: str, client: Client | None, row: ledger.File | None) -> Target:
    if client is None and row is not None:
        client = catalog.recorded(row.client, row.format, Path(path), _head(path))
    try:
        data = files.read(path)
    except files.Unfit as unfit:
        return Target(client or catalog.by_file(Path(path)), path, scope, b"", fault=str(unfit))
    except OSError as error:
        why = f"it cannot be read: {(error.strerror or str(error)).lower()}"
        return Target(client or catalog.by_file(Path(path)), path, scope, b"", fault=why)
    client = client or catalog.by_file(Path(path), data or b"")
    if data is None:
        return Target(client, path, scope, None)
    try:
        document = documents.parse(data, client.format)
        entries.read(client, document)  # what it holds may be no servers at all
    except documents.Unreadable as unreadable:
        return Target(client, path, scope, data, fault=str(unreadable))
    return Target(client, path, scope, data, document)


def _head(path: str) -> bytes:
    """What a file holds, to tell whose it is; nothing where it cannot be read."""
    try:
        return files.read(path) or b""
    except (OSError, files.Unfit):
        return b""


def states(target: Target, place: standing.Here, have: Ledger) -> list[standing.Found]:
    """The entries of a file; of one that is gone or damaged, what we wired in it."""
    if target.document is None:
        why = target.fault or "the file is gone"
        return [standing.Found(one.name, one.keys, "missing", why, record=one) for one in have.of(target.path)]
    return standing.survey(target.client, target.path, target.document, place, have)


def settings(paths: Paths) -> Any:
    """The configuration of the file, None where there is none or it has faults."""
    from aegis_daemon.config.load import load
    from aegis_daemon.config.source import ConfigFaults

    if not os.path.lexists(paths.config):
        return None
    try:
        return load(paths.config).config
    except ConfigFaults:
        return None


def status() -> dict[str, Any] | None:
    """The running daemon's, None where none runs or it is not ours to ask."""
    from aegis_daemon.manage.client import Refused

    try:
        return link.running()
    except Refused:
        return None


def faults(found: Iterable[Target]) -> list[str]:
    """What is to be said of files that are left alone."""
    return [f"{visible(one.path)} is left as it is: {visible(one.fault)}" for one in found if one.fault]
