"""An entry is wired by putting the wrapper before its command, and every wired entry can be put back as it was.

Here is decided what would change: bytes in, bytes out, and what becomes of each entry. Nothing is written.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from urllib.parse import quote

from aegis_daemon.clients import entries, files, ledger
from aegis_daemon.clients.catalog import Client
from aegis_daemon.clients.documents import MISSING, Document, Path, Unchangeable, Unreadable, dotted, equal, parse
from aegis_daemon.clients.entries import Entry, Odd
from aegis_daemon.clients.ledger import Ledger, Record
from aegis_daemon.clients.standing import Found, Here, Ours, State, as_put, door, ours, survey

Choice = Literal["adopt", "replace", "skip"]

NAME_MAX: Final = 128


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one entry."""

    name: str
    keys: Path
    state: State
    """until now"""
    before: Any
    """the value that stands there"""
    after: Any
    agent: str = ""
    backend: str = ""
    server: Entry | None = None
    """what was there without us: what the daemon has to be told of a server that it reaches by an address"""
    record: Record | None = None
    """what the ledger is to say; None: nothing any more"""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """An entry that is left as it is, and why. `choices`: what a person may say instead of skipping it."""

    name: str
    keys: Path
    state: State
    why: str
    choices: tuple[Choice, ...] = ()
    meant: bool = False
    """a person, or `--yes`, said that it is to be left"""


@dataclass(frozen=True, slots=True)
class Plan:
    """One file before and after. Nothing is written by making one."""

    path: str
    client: Client
    before: bytes
    after: bytes
    changes: tuple[Change, ...] = ()
    left: tuple[Left, ...] = ()
    forget: tuple[ledger.Ident, ...] = ()
    """what the ledger is to drop"""
    exact: bool = False
    """the file becomes what it was before we came, byte for byte, by the copy that was kept"""
    new: bool = False
    """there is no such file yet"""
    gone: bool = False
    """there was no such file before we came, so that it goes"""
    names: tuple[str, ...] = ()
    """every entry that the file will have and that is not wired"""

    @property
    def moves(self) -> bool:
        """Whether there is anything to write."""
        return self.before != self.after

    @property
    def changed(self) -> bool:
        """Whether the file or what is known of it changes."""
        return self.moves or bool(self.changes) or bool(self.forget)


# --- wiring -----------------------------------------------------------------------------------------------------------


def backend_name(text: str) -> str:
    """A backend's name made of an entry's, which may hold anything."""
    name = re.sub(r"[\s\x00-\x1f\x7f/\\?#%${}]+", "-", text).strip("-.")
    name = "".join(char for char in name if char.isprintable())
    return re.sub(r"_{2,}", "_", name)[:NAME_MAX] or "server"


def plan_wire(
    client: Client,
    path: str,
    data: bytes,
    here: Here,
    known: Ledger,
    *,
    agent: str,
    change: str,
    backends: Mapping[str | Path, str] | None = None,
    names: Collection[str | Path] | None = None,
    choices: Mapping[str, Choice] | None = None,
    now: float | None = None,
) -> Plan:
    """What wiring a file would do.

    :param agent: the id that the agent gets. :param change: the id of this run. :param backends: names of backends for
        entries whose own name, or the one that they say already, is not to be used, by the entry's name, or by its
        place where a file has several of that name. :param names: only these entries, by name or place.
    :param choices: what a person said of entries that were left. :param now: seconds since the epoch.
    :raises documents.Unreadable: the file is not understood, and stays as it is.
    """
    document = parse(data, client.format)
    stamp = time.time() if now is None else now
    choices, backends = choices or {}, backends or {}
    changes: list[Change] = []
    left: list[Left] = []
    for found in survey(client, path, document, here, known):
        entry, record = found.entry, found.record
        if names is not None and found.name not in names and found.keys not in names:
            continue
        if entry is None:
            if found.state == "unclear":
                left.append(Left(found.name, found.keys, "unclear", found.why))
            continue
        choice = choices.get(found.name)
        given = backends.get(found.keys) or backends.get(found.name)
        named = found.ours.backend if found.ours is not None else ""
        other = bool(given and named and given != named)  # it names a backend that is not its own
        same = found.state == "wired" and found.ours is not None and found.ours.agent == agent and not other
        if choice == "skip" or same:
            if choice == "skip":
                open_one = _obstacle(found, agent, None)
                why = open_one.why if open_one is not None else "left as it is"
                left.append(Left(found.name, found.keys, found.state, why, meant=True))
            continue
        obstacle = _obstacle(found, agent, choice)
        if obstacle is not None:
            left.append(obstacle)
            continue
        backend = given or named or backend_name(found.name)
        bare = _without_us(entry, found.ours, record)
        try:
            if bare is None:
                raise Odd("nobody knows any more what it was without us; write its command or address by hand")
            adopted = choice == "adopt" and found.ours is not None and not other
            place = _by_wrapper(here) if record is not None and record.new else here
            raw = entry.raw if adopted else _with_us(client, bare, place, agent, backend)
            made = document.replaced(entry.path, raw)
        except (Odd, Unchangeable) as odd:
            left.append(Left(found.name, found.keys, found.state, str(odd)))
            continue
        first = record is None or found.ours is None
        original = entry.raw if first else record.original if record is not None else entry.raw
        spelt = document.raw(entry.path) if first else record.original_bytes if record is not None else None
        if found.ours is not None and (record is None or not (record.new or as_put(entry.raw, record))):
            # It was edited while it was ours: taking us out of what is there now is the way back.
            original, spelt = entries.write(client, replace(bare, raw=entry.raw)), None
        kept = Record(
            file=path, keys=entry.path, name=entry.name, client=client.id, agent=agent, backend=backend,
            original=original, original_bytes=spelt or b"", ours=raw,
            change=change if first or record is None else record.change, at=stamp,
            again="" if first or record is None else change,
        )  # fmt: skip
        note = found.why or (f"it named the backend `{named}`, which is another server" if other else "")
        changes.append(Change(entry.name, entry.path, found.state, entry.raw, raw, agent, backend, bare, kept, note))
        document = made
    loose = [one for one in survey(client, path, document, here, known) if one.entry is not None and not one.governed]
    return Plan(path, client, data, document.data, tuple(changes), tuple(left), names=tuple(one.name for one in loose))


def plan_add(
    client: Client,
    path: str,
    data: bytes | None,
    here: Here,
    server: Entry,
    *,
    agent: str,
    backend: str,
    change: str,
    now: float | None = None,
) -> Plan:
    """What giving a client a server that its file does not have would do, by an entry of its own.

    It starts the wrapper whatever the daemon serves: that starts a daemon, and reaches it whatever its address is.
    :param data: what the file holds; None where there is none yet. :param server: as the daemon reaches it.
    :param agent: and the others, as in `plan_wire`.
    :raises documents.Unreadable: the file is not understood. :raises Odd: the client has no way to say it.
    :raises Unchangeable: the place is written in a way that is not changed by program. The file stays as it is.
    """
    document = parse(data or b"", client.format)
    there = {one.name for one in entries.read(client, document)} | {one[0] for one in entries.odd(client, document)}
    usual = re.sub(r"[^A-Za-z0-9_-]+", "-", backend).strip("-") or "server"
    name = next(one for one in (usual, *(f"{usual}-{at}" for at in range(2, len(there) + 3))) if one not in there)
    keys = entries.place(client, document, name)
    raw = _with_us(client, replace(server, name=name, path=keys, raw={}), _by_wrapper(here), agent, backend)
    made = document.replaced(keys, raw)
    kept = Record(
        file=path, keys=keys, name=name, client=client.id, agent=agent, backend=backend, original=None,
        original_bytes=b"", ours=raw, change=change, at=time.time() if now is None else now,
    )  # fmt: skip
    one = Change(name, keys, "unwired", {}, raw, agent, backend, server, kept, "a new entry")
    loose = [one for one in entries.read(client, document) if ours(one) is None]
    names = tuple(one.name for one in loose)
    return Plan(path, client, data or b"", made.data, (one,), names=names, new=data is None)


def server_of(entry: Entry, record: Record | None) -> Entry | None:
    """The server behind an entry, as its client would reach it without us; None where nobody knows any more."""
    return _without_us(entry, ours(entry), record)


def _obstacle(found: Found, agent: str, choice: Choice | None) -> Left | None:
    """Why an entry is left before a person has said what to do."""
    if choice in ("adopt", "replace"):
        return None
    if found.state == "foreign":
        return Left(found.name, found.keys, "foreign", found.why, ("adopt", "skip"))
    if found.ours is not None and found.state == "drifted":
        return Left(found.name, found.keys, "drifted", found.why, ("adopt", "replace", "skip"))
    if found.ours is not None and found.ours.agent != agent:
        why = f"it is wired for the agent `{found.ours.agent}`"
        return Left(found.name, found.keys, found.state, why, ("replace", "skip"))
    return None


def _without_us(entry: Entry, said: Ours | None, record: Record | None) -> Entry | None:
    """The entry as it would be without us; None where nobody knows."""
    if said is None:
        return entry
    if said.command:
        command, *args = said.command
        return replace(entry, command=command, args=tuple(args), env=_theirs(entry.env))
    if record is None:
        return None
    if record.new:  # nothing: the configuration alone says how its server is reached
        return replace(entry, kind="http", command="", args=(), env=_theirs(entry.env), url="", transport="http")
    return _read_back(entry, record)


def _theirs(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that are not there for the wrapper. Those of XDG may be the person's own, and stay."""
    return {name: value for name, value in env.items() if not name.startswith("AEGIS_")}


def _read_back(entry: Entry, record: Record) -> Entry | None:
    """What the ledger says that an entry was. Only the fields that we changed are of use."""
    raw = record.original
    if not isinstance(raw, dict):
        return None
    for key in ("url", "serverUrl", "httpUrl", "baseUrl", "uri"):
        if isinstance(raw.get(key), str):
            headers: dict[str, str] = next(
                (raw[name] for name in raw if "header" in name.lower() and isinstance(raw[name], dict)), {}
            )
            kind: Literal["sse", "http"] = (
                "sse" if str(raw.get("type", raw.get("transport", ""))).lower() == "sse" else "http"
            )
            return replace(
                entry, kind="http", command="", args=(), env={}, url=raw[key], headers=dict(headers), raw=raw,
                transport=kind,
            )  # fmt: skip
    return None


def _with_us(client: Client, entry: Entry, here: Here, agent: str, backend: str) -> Any:
    """The raw value that starts the server through us. Raises `Odd`.

    An address of ours only where a service answers there, and the agent shows who it is: nothing starts a daemon for an
    address, and without a token whoever reaches the port is that agent.
    """
    token = here.tokens.get(agent, "")
    spelt = client.http is not None and client.http.headers is not None
    if entry.kind == "http" and here.http and here.lasting and token and spelt and not here.isolated:
        url = f"http://{_reachable(here.http)}/agents/{quote(agent)}/backends/{quote(backend)}/mcp"
        made = replace(entry, url=url, headers={"Authorization": f"Bearer {token}"}, transport="http")
        return entries.with_timeout(client, entries.write(client, made))
    args = ["--agent", agent, "--backend", backend]
    if here.doors:
        args += ["--socket", door(here, agent)]
    if entry.kind == "stdio" and not here.isolated:
        args += ["--", entry.command, *entry.args]
    made = replace(
        entry, kind="stdio", command=here.wrapper, args=tuple(args), env={**entry.env, **here.env}, url="", headers={},
        transport="stdio",
    )  # fmt: skip
    return entries.with_timeout(client, entries.write(client, made))


def _by_wrapper(here: Here) -> Here:
    return replace(here, http="")


def _reachable(place: str) -> str:
    """An address of all interfaces is no place to call."""
    host, _, port = place.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}".replace(" ", "")  # noqa: S104


# --- and back ---------------------------------------------------------------------------------------------------------


def plan_unwire(
    client: Client,
    path: str,
    data: bytes,
    known: Ledger,
    *,
    names: Collection[str] | None = None,
    changes: Collection[str] | None = None,
    agent: str | None = None,
) -> Plan:
    """What taking us out of a file would do. Everything in it, or only these entries, runs of `wire`, or this agent's.

    :raises documents.Unreadable: the file is not understood, and stays as it is.
    """

    def wanted(name: str, record: Record | None, who: str) -> bool:
        return (
            (names is None or name in names)
            and (changes is None or (record is not None and not record.runs.isdisjoint(changes)))
            and (agent is None or who == agent)
        )

    document = parse(data, client.format)
    records = [record for record in known.of(path) if wanted(record.name, record, record.agent)]
    whole = _whole(client, path, data, document, known, records)
    made: list[Change] = []
    new: list[Change] = []
    """entries that go as a whole"""
    left: list[Left] = []
    forget = [record.ident for record in records]
    seen: set[ledger.Ident] = set()
    for entry in entries.read(client, document):
        record, said = known.find(path, entry.path, entry.name), ours(entry)
        ident = ledger.ident(entry.path, entry.name)
        seen.add(ident)
        if not wanted(entry.name, record, record.agent if record else said.agent if said else ""):
            continue
        if said is None:
            if record is not None:
                why = "it is not ours any more, so it stays as it is"
                left.append(Left(entry.name, entry.path, "drifted", why))
            continue
        state: State = "wired" if record is None or as_put(entry.raw, record) else "drifted"
        if record is not None and record.new:
            note = "it was new" if state == "wired" else "it was new, so what was edited in it since goes as well"
            new.append(Change(entry.name, entry.path, state, entry.raw, {}, said.agent, said.backend, note=note))
            continue
        try:
            value, after, note = _taken_out(client, document, entry, said, record)
        except (Odd, Unchangeable) as odd:
            left.append(Left(entry.name, entry.path, state, str(odd)))
            forget = [one for one in forget if one != ident]
            continue
        made.append(Change(entry.name, entry.path, state, entry.raw, value, said.agent, said.backend, note=note))
        document = after
    for change in reversed(new):  # of a list the last first: the places of the others stay what they are
        try:
            document = document.removed(change.keys)
        except Unchangeable as odd:
            left.append(Left(change.name, change.keys, change.state, str(odd)))
            forget = [one for one in forget if one != ledger.ident(change.keys, change.name)]
        else:
            made.append(change)
    gone = "the entry is gone, so there is nothing to put back"
    left += [Left(one.name, one.keys, "missing", gone) for one in records if one.ident not in seen]
    file = known.file(path)
    absent = whole is not None and file is not None and file.before == ledger.ABSENT
    if absent and not _nothing_in(document.value):
        whole, absent = None, False  # whatever the ledger says: what is somebody else's is not deleted
    result = document.data if whole is None else whole
    return Plan(
        path, client, data, result, tuple(made), tuple(left), tuple(forget), exact=whole is not None, gone=absent
    )  # fmt: skip


def _nothing_in(value: Any) -> bool:
    """Whether a document holds nothing but collections without anything in them."""
    if isinstance(value, dict | list):
        return all(_nothing_in(one) for one in (value.values() if isinstance(value, dict) else value))
    return value is None


def _whole(
    client: Client, path: str, data: bytes, document: Document, known: Ledger, records: Collection[Record]
) -> bytes | None:
    """The file as it was before we came, where everything of ours goes and nobody else has changed it.

    The ledger is believed only as far as the copy says nothing else than the entries, which people are shown.
    """
    file = known.file(path)
    if file is None or not file.before or files.digest(data) != file.after:
        return None
    gone = {record.ident for record in records}
    if any(record.ident not in gone or record.change not in file.changes for record in known.of(path)):
        return None
    expected = _as_before(client, document, records)
    if expected is MISSING or file.before == ledger.ABSENT:
        return None if expected is MISSING else b""
    try:
        kept = files.read(file.backup)
        if kept is None or files.digest(kept) != file.before:
            return None
        was = parse(kept, client.format).value
    except (OSError, files.Unfit, Unreadable):
        return None
    return kept if equal(_filled(expected), _filled(ledger.plain(was))) else None


def _as_before(client: Client, document: Document, records: Collection[Record]) -> Any:
    """The value of a document with what the records say was there; `MISSING` where one is not there as we made it."""
    there = {ledger.ident(one.path, one.name): one for one in entries.read(client, document)}
    found = [(there.get(record.ident), record) for record in records]
    if any(one is None or not as_put(one.raw, record) for one, record in found):
        return MISSING
    made = ledger.plain(document.value)
    places = [(one.path, record) for one, record in found if one is not None]
    for keys, record in sorted(places, key=lambda each: str(each[0][-1]).zfill(9), reverse=True):
        within = made
        for key in keys[:-1]:
            within = within[key]
        if record.new:  # of a list the last first: the places of the others stay what they are
            del within[keys[-1]]
        else:
            within[keys[-1]] = ledger.plain(record.original)
    return made


def _filled(value: Any) -> Any:
    """The value without collections that hold nothing: some are left where the only entry in them goes."""
    if isinstance(value, dict):
        return {key: made for key, one in value.items() if not _nothing_in(made := _filled(one))}
    if isinstance(value, list):
        return [_filled(one) for one in value]
    return value


def _taken_out(
    client: Client, document: Document, entry: Entry, said: Ours, record: Record | None
) -> tuple[Any, Document, str]:
    """The value without us, the document with it, and what is to be said of it. Raises `Odd`, `Unchangeable`."""
    if record is not None and as_put(entry.raw, record):
        if record.original_bytes:
            try:
                after = document.respelled(entry.path, record.original_bytes)
                if not equal(ledger.plain(after.at(entry.path)), ledger.plain(record.original)):
                    raise Unchangeable("it is written otherwise than what it was")
            except Unchangeable:
                after = document.replaced(entry.path, record.original)
        else:
            after = document.replaced(entry.path, record.original)
        return record.original, after, ""
    if record is not None:
        value = _merged(record.original, record.ours, entry.raw)
        bare = _without_us(entry, said, record)
        if said.command and bare is not None and value is not MISSING:
            value = entries.write(client, replace(bare, raw=value, env=_kept_env(entry, record)))
        if value is MISSING or _still_ours(client, document, entry, value):
            raise Odd(f"it was edited so that nobody can tell what it would be without us: mend `{dotted(entry.path)}`")
        note = "it was edited since; what was edited stays, and the wrapper goes"
        return value, document.replaced(entry.path, value), note
    bare = _without_us(entry, said, None)
    if bare is None:
        raise Odd("nobody knows any more what it was without us; write its command or address by hand")
    value = entries.write(client, bare)
    return value, document.replaced(entry.path, value), "it was wired by hand; the wrapper goes, and the rest stays"


def _kept_env(entry: Entry, record: Record) -> dict[str, str]:
    """The variables of an edited entry without those that we put: what the original had of those comes back."""
    put = record.ours if isinstance(record.ours, dict) else {}
    had = record.original if isinstance(record.original, dict) else {}
    env = dict(_theirs(entry.env))
    for key, value in put.items():
        old = had.get(key)
        if isinstance(value, dict) and "env" in key.lower():
            for name in value:
                if name not in (old or {}) and env.get(name) == value[name]:
                    env.pop(name, None)
    return env


def _still_ours(client: Client, document: Document, entry: Entry, value: Any) -> bool:
    again = document.replaced(entry.path, value)
    return any(one.path == entry.path and ours(one) is not None for one in entries.read(client, again))


def _merged(original: Any, put: Any, now: Any) -> Any:
    """Three-way: what is as we put it becomes what it was, what was edited since stays. `MISSING` for a clash."""
    if not (isinstance(original, dict) and isinstance(put, dict) and isinstance(now, dict)):
        return MISSING
    made = {}
    for key in [*now, *(key for key in original if key not in now)]:
        if key in now and (key not in put or not equal(now[key], put[key])):
            if isinstance(now[key], dict) and isinstance(put.get(key), dict) and isinstance(original.get(key), dict):
                made[key] = _merged(original[key], put[key], now[key])
            else:
                made[key] = now[key]
        elif key in original and (key in now or key not in put):
            made[key] = original[key]
    return made
