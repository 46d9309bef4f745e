"""What clients start goes through Aegis, reaches this daemon, and has no way beside it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aegis_daemon.clients import catalog, documents, files, ledger, standing
from aegis_daemon.clients.catalog import Client
from aegis_daemon.clients.entries import Entry
from aegis_daemon.clients.ledger import Ledger, Record
from aegis_daemon.clients.standing import Found
from aegis_daemon.config.load import ConfigFaults
from aegis_daemon.onboarding.checks import programs
from aegis_daemon.onboarding.scene import Finding, Scene
from aegis_shim.hello import backend_name

_STATES: Final = {"stale": "client-stale", "drifted": "client-drifted", "missing": "client-missing"}
_ADDRESSES: Final = ("url", "serverUrl", "httpUrl", "baseUrl", "uri")
_LAX: Final = frozenset({"-y", "--yes", "-q", "--quiet", "--"})
"""Words that make no other server of a command."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One file of a client, and its entries."""

    client: Client
    path: str
    scope: str
    found: Sequence[Found]


def check(scene: Scene) -> Iterator[Finding]:
    """Every file of every client, and the programs that their entries start."""
    try:
        have = ledger.load(scene.paths.state_dir)
    except (ledger.Unreadable, OSError) as fault:
        if not (scene.paths.doors and isinstance(fault, PermissionError)):  # the isolated daemon's is its own
            yield Finding("ledger-unreadable", str(fault), f"{scene.paths.state_dir}/{ledger.NAME}")
        have = Ledger()
    seen: list[Seen] = []
    for client, path, scope in _files(scene, have):
        one = _read(scene, have, client, path, scope)
        if isinstance(one, Finding):
            yield one
        elif client.dead is None:
            seen.append(one)
        elif one.found:
            names = ", ".join(found.name for found in one.found)
            yield Finding("client-dead-file", f"{names} in `{path}`: {client.dead}", path)
    yield from _states(seen)
    config = _settings(scene)
    yield from _refused(seen, config if os.path.lexists(scene.paths.config) else None)
    yield from _addresses(scene, seen)
    yield from _timeouts(seen, config)
    yield from programs.check(scene, _commands(seen, config))


def _files(scene: Scene, have: Ledger) -> Iterator[tuple[Client, str, str]]:
    cwd = scene.cwd if scene.cwd != scene.home else None
    told: set[str] = set()
    for one in catalog.discover(scene.env, scene.home, cwd, catalog.system(), dead=True):
        if one.exists:
            told.add(str(one.path))
            yield one.client, str(one.path), one.scope
    for row in have.files:
        if row.path not in told:
            yield catalog.recorded(row.client, row.format, Path(row.path), _head(row.path)), row.path, "file"


def _head(path: str) -> bytes:
    """What a file holds, to tell whose it is; nothing where it cannot be read."""
    try:
        return files.read(path) or b""
    except (OSError, files.Unfit):
        return b""


def _read(scene: Scene, have: Ledger, client: Client, path: str, scope: str) -> Seen | Finding:
    try:
        data = files.read(path)
    except files.Unfit as unfit:
        return Finding("client-unreadable", str(unfit), path)
    except OSError as error:
        return Finding("client-unreadable", f"`{path}`: {(error.strerror or str(error)).lower()}", path)
    if data is None:
        return Seen(client, path, scope, _gone(have.of(path), "the file is gone"))
    try:
        document = documents.parse(data, client.format)
        return Seen(client, path, scope, standing.survey(client, path, document, scene.here, have))
    except documents.Unreadable as fault:
        return Finding("client-unreadable", f"`{path}`: {fault}", path)


def _gone(records: Sequence[Record], why: str) -> list[Found]:
    return [Found(record.name, record.keys, "missing", why, record=record) for record in records]


# --- states, shadows and twins


def _states(seen: list[Seen]) -> Iterator[Finding]:
    using = {one.client.id for one in seen for found in one.found if found.governed or found.record is not None}
    if not using:
        count = sum(1 for one in seen for found in one.found if found.entry is not None)
        if count:
            found_them = "entry of a client was" if count == 1 else "entries of clients were"
            yield Finding("nothing-wired", f"{count} server {found_them} found")
        return
    governed = [(one, found) for one in seen for found in one.found if found.governed]
    ours = {key for _, found in governed for key in _identities(found)}
    for one in seen:
        for found in one.found:
            if (code := _STATES.get(found.state)) is not None:
                why = f"{found.why}, so it runs without Aegis" if _bypassed(found) else found.why
                fix = _forget(one, found) if found.state == "missing" else _rewire(one)
                yield Finding(code, f"{_named(one, found)}: {why}", one.path, fix)
                continue
            if found.state == "unclear" and one.client.id in using:
                text = f"{_named(one, found)}: {found.why}"
                yield Finding("client-unwired", text, one.path, "mend the entry by hand")
            if found.governed or found.entry is None or found.entry.disabled:
                continue
            if any(_shadows(one, found, other, mate) for other, mate in governed):
                yield Finding("client-shadowed", f"{_named(one, found)} hides the wired one", one.path, _rewire(one))
            elif _identities(found) & ours:
                yield Finding("client-twin", _named(one, found), one.path, _rewire(one))
            elif one.client.id in using:
                why = f": {found.why}" if found.why else ""
                yield Finding("client-unwired", f"{_named(one, found)}{why}", one.path, _rewire(one))


def _bypassed(found: Found) -> bool:
    return found.entry is not None and not found.governed


def _named(one: Seen, found: Found) -> str:
    return f"`{found.name}` of {one.client.name} in `{one.path}`"


def _rewire(one: Seen) -> str:
    return f"`aegis agents wire --file {shlex.quote(one.path)}`"


def _forget(one: Seen, found: Found) -> str:
    which = f"--file {shlex.quote(one.path)} --server {shlex.quote(found.name)}"
    return f"add the server again, and `aegis agents wire` it; or have it forgotten: `aegis agents unwire {which}`"


def _shadows(one: Seen, found: Found, other: Seen, mate: Found) -> bool:
    """Whether an entry stands nearer to the agent than a wired one of its name: in a project, and not for all."""
    if one.client.id != other.client.id or found.name != mate.name:
        return False
    if one.path != other.path:
        return one.scope == "project" and other.scope != "project"
    return len(found.keys) > len(mate.keys)  # `projects.DIR.mcpServers` beside `mcpServers` in one file


def _identities(found: Found) -> set[tuple[str, ...]]:
    """What tells that two entries are the same server."""
    made: set[tuple[str, ...]] = set()
    entry = found.entry
    if found.ours is not None:
        if found.ours.command:
            made.add(_line(found.ours.command))
        original = found.record.original if found.record is not None else None
        if isinstance(original, dict):
            made |= {("url", str(original[key])) for key in _ADDRESSES if key in original}
    elif entry is not None and entry.kind == "http":
        made.add(("url", entry.url))
    elif entry is not None:
        made.add(_line((entry.command, *entry.args)))
    return made


def _line(words: Sequence[str]) -> tuple[str, ...]:
    return (words[0].rpartition("/")[2], *(word for word in words[1:] if word not in _LAX))


# --- whether calls arrive


def _refused(seen: list[Seen], config: Any) -> Iterator[Finding]:
    """Entries of ours by which nothing passes, since the configuration does not know their agent or server."""
    if config is None or config.defaults.unlisted != "deny":
        return
    for one in seen:
        for found in one.found:
            if found.state != "wired" or found.ours is None or found.entry is None or found.entry.disabled:
                continue
            agent = config.agents.get(found.ours.agent)
            backend = found.ours.backend or (backend_name(found.ours.command) if found.ours.command else "")
            if agent is None:
                why = f"the configuration has no agent `{found.ours.agent}`"
            elif backend and backend not in agent.backends:
                why = f"`agents.{found.ours.agent}.backends` has no `{backend}`"
            else:
                continue
            yield Finding("client-refused", f"{_named(one, found)}: {why}", one.path)


def _addresses(scene: Scene, seen: list[Seen]) -> Iterator[Finding]:
    """Entries that call an address of ours, where nothing has the daemon run again after a restart."""
    if scene.isolated or scene.here.lasting:
        return
    for one in seen:
        for found in one.found:
            if found.ours is None or found.ours.way != "url" or found.entry is None or found.entry.disabled:
                continue
            fix = "`aegis daemon install`"
            if found.record is not None:
                which = f"--file {shlex.quote(one.path)} --server {shlex.quote(found.name)}"
                fix += f"; or `aegis agents unwire {which}`, then the same with `wire`: a wrapper starts the daemon"
            text = f"{_named(one, found)} calls `{found.ours.place}`"
            yield Finding("client-address", text, one.path, fix)


# --- how long a client waits


def _settings(scene: Scene) -> Any:
    try:
        return scene.settings.loaded().config
    except ConfigFaults:
        return None


def _timeouts(seen: list[Seen], config: Any) -> Iterator[Finding]:
    """A hold that a person chose, or the client's usual one, against what the entry says that the client waits."""
    for one in seen:
        for found in one.found:
            if found.ours is None or found.entry is None or found.entry.disabled:
                continue
            agent = config.agents.get(found.ours.agent) if config is not None else None
            chosen = agent.hold if agent is not None and agent.hold is not None else None
            if chosen is None and config is not None and not isinstance(config.approval.hold, str):
                chosen = config.approval.hold
            set_to = _waits(one.client, found.entry)
            bears = float(one.client.hold) if set_to is None else set_to
            hold = float(one.client.hold) if chosen is None else float(chosen)
            if hold > bears:
                where = f"`agents.{found.ours.agent}.hold`" if agent is not None and agent.hold else "the hold"
                text = f"{_named(one, found)}: the client waits {bears:g} s for a call, and {where} is {hold:g} s"
                yield Finding("client-timeout", text, one.path)


def _waits(client: Client, entry: Entry) -> float | None:
    """Seconds that the entry itself sets; None where it sets none."""
    timeout = client.timeout
    value = entry.raw.get(timeout.key) if timeout is not None and isinstance(entry.raw, dict) else None
    if timeout is None or isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None
    return value / 1000 if timeout.unit == "ms" else float(value)


# --- what they start


def _commands(seen: list[Seen], config: Any) -> list[programs.Started]:
    found: list[programs.Started] = []
    for one in seen:
        for row in one.found:
            if row.ours is not None and row.ours.command and row.entry is not None and not row.entry.disabled:
                path, desktop = row.entry.env.get("PATH", ""), one.client.id in programs.DESKTOP
                # Whoever can write a file that we read, a project's author or an agent, must not have a program run.
                record = row.record
                kept = record is not None and documents.equal(row.entry.raw, record.ours)
                trusted = kept and one.scope != "project"
                found.append(programs.Started(row.ours.command, path, _named(one, row), one.path, desktop, trusted))
    for name, backend in config.backends.items() if config is not None else ():
        if backend.command is not None:
            path = _revealed(backend.env.get("PATH", ""))
            words = tuple(_revealed(word) for word in (backend.command, *backend.args))
            found.append(programs.Started(words, path, f"the backend `{name}`", name, False, True))
    return found


def _revealed(text: Any) -> str:
    return text.reveal() if hasattr(text, "reveal") else str(text)
