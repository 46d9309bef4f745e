"""Which entries of clients' files go through Aegis, as which backends, and which stay and why: decided and shown."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import typer

from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.agents.diff import difference, plain_word
from aegis_daemon.cli.agents.files import Target
from aegis_daemon.cli.console import USAGE, Problem, heading, say, visible
from aegis_daemon.cli.editing import show_difference
from aegis_daemon.clients import documents, entries, files, plans, standing, trial
from aegis_daemon.clients.ledger import Ledger
from aegis_daemon.clients.plans import Change, Choice, Left, Plan
from aegis_daemon.clients.standing import Here
from aegis_daemon.config.paths import Paths
from aegis_shim.hello import backend_name

if TYPE_CHECKING:
    from aegis_daemon.clients.catalog import Client
    from aegis_daemon.config.edit import Edited


ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


SAFE: Final[Mapping[str, Choice]] = {"drifted": "adopt", "foreign": "skip"}
"""What `--yes` says where a person would be asked; else `skip`."""


@dataclass
class Row:
    """What became of one entry."""

    change: Change
    plan: Plan
    tried: trial.Trial | None = None
    wired: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """What makes two entries one server: how it is started, or where it is and what is shown there."""

    command: tuple[str, ...] = ()
    cwd: str = ""
    env: frozenset[tuple[str, str]] = field(default=frozenset(), repr=False)
    """names of variables, and what stands for their values: two databases are two servers"""
    url: str = ""
    headers: frozenset[tuple[str, str]] = field(default=frozenset(), repr=False)
    ruled: bool = False
    """the configuration says what it is"""

    def is_also(self, entry: Server) -> bool:
        """Whether an entry is this server."""
        if self.url or entry.url:
            same = entry.headers <= self.headers if self.ruled else entry.headers == self.headers
            return self.url == entry.url and same
        return self.command == entry.command and (self.ruled or (self.cwd, self.env) == (entry.cwd, entry.env))


@dataclass
class Work:
    """Everything of one run."""

    paths: Paths
    here: Here
    have: Ledger
    change: str
    plans: list[Plan] = field(default_factory=list)
    config_old: bytes = b""
    config_new: bytes = b""
    edits: list[Edited] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    """path of a file to be made → what it holds"""
    made: list[str] = field(default_factory=list)
    """those of `secrets` that this run has made"""
    servers: dict[str, list[Server]] | None = None
    """what is behind each backend, as far as anybody knows; None: not looked for yet"""
    told: set[str] = field(default_factory=set)
    """what was said once, and is enough"""


def usable(found: list[Target], file: str | None, client: str | None) -> list[str]:
    """What is to be said of files that are left alone. Raises `Problem` where there is no other."""
    faults = agents_files.faults(found)
    good = [one for one in found if one.document is not None]
    if file is not None and not good:
        raise Problem(
            f"`{found[0].path}` is left as it is: {found[0].fault}" if found[0].fault else f"no file `{found[0].path}`",
            "mend the file, or name another" if found[0].fault else "check the path",
        )
    if not good and not faults:
        where = f"of `{client}`" if client else "of a known client"
        raise Problem(f"no configuration file {where} is found", "name one with `--file PATH --agent ID`")
    return faults


def planned(
    work: Work, target: Target, agent: str, names: Collection[str | documents.Path] | None, config: Any, *, ask: bool
) -> Plan:
    """The plan of one file, once a person, or `--yes`, has decided what is open. `names`: as in `plans.plan_wire`."""
    assert target.data is not None
    choices: dict[str, Choice] = {}
    backends = _backend_names(work, target, agent, names, config)
    while True:
        plan = plans.plan_wire(
            target.client, target.path, target.data, work.here, work.have, agent=agent, change=work.change,
            backends=backends, names=names, choices=choices,
        )  # fmt: skip
        open_ones = [one for one in plan.left if one.choices and one.name not in choices]
        if not open_ones:
            break
        for one in open_ones:
            choices[one.name] = _chosen(target, one) if ask else SAFE.get(one.state, "skip")
    if not plan.changes:
        return plan
    protected = files.refusal(target.path)
    refused = [(one, protected or _not_reached(work, target.client, one, config)) for one in plan.changes]
    bad = {one.keys for one, why in refused if why}
    if bad:
        plan = plans.plan_wire(
            target.client, target.path, target.data, work.here, work.have, agent=agent, change=work.change,
            backends=backends, names={one.keys for one in plan.changes} - bad, choices=choices,
        )  # fmt: skip
        more = tuple(Left(one.name, one.keys, one.state, why) for one, why in refused if why)
        plan = replace(plan, left=(*plan.left, *more))
    if plan.moves and (others := files.names(target.path) - 1) > 0:
        says = f"has {others} more {'name' if others == 1 else 'names'} (hard links), under which it stays as it was"
        _once(work, f"{visible(target.path)} {says}")
    return plan


def _once(work: Work, text: str) -> None:
    if text not in work.told:
        work.told.add(text)
        say(text)


def _chosen(target: Target, one: Left) -> Choice:
    means = {
        "adopt": "go through Aegis as well" if one.state == "foreign" else "keep it as it is now, as ours",
        "replace": "write it anew",
        "skip": "leave it",
    }
    say(f"{visible(target.path)}: `{visible(one.name)}` is {one.state}: {visible(one.why)}")
    for choice in one.choices:
        say(f"  {choice}: {means[choice]}")
    default = SAFE.get(one.state, "skip")
    while True:
        said = typer.prompt("  " + "/".join(one.choices), default=default, err=True).strip().lower()
        for choice in one.choices:
            if said and choice.startswith(said):
                return choice


def _backend_names(
    work: Work, target: Target, agent: str, names: Collection[str | documents.Path] | None, config: Any
) -> dict[str | documents.Path, str]:
    """A backend for each entry that has none, by its place: another server's, and its rules, are never taken over."""
    if target.document is None or work.here.isolated:
        return {}
    if work.servers is None:
        work.servers = _servers(work, config)
    found: dict[str | documents.Path, str] = {}
    for entry in entries.read(target.client, target.document):
        wanted = names is None or entry.name in names or entry.path in names
        said, record = standing.ours(entry), work.have.find(target.path, entry.path, entry.name)
        claimed = "" if said is None else said.backend
        bare = entry if said is None else plans.server_of(entry, record)
        if not wanted or bare is None:
            continue
        if said is not None and (not said.command or (record is not None and record.backend == claimed)):
            continue  # it hands over no server, or it is as it was wired
        server = _server(work, bare, target.client)
        usual = plans.backend_name(entry.name)
        before = record.backend if record is not None else claimed if plans.backend_name(claimed) == claimed else ""
        alike = [name for name, others in work.servers.items() if any(_same(one, server) for one in others)]
        known = usual in work.servers
        for name in _candidates(usual, agent, before, alike, known=known):
            there = work.servers.setdefault(name, [])
            if not there or any(one.is_also(server) for one in there):
                break
        if server not in there:
            there.append(server)
        found[entry.path] = name
        if claimed and name != claimed:
            of = f"`{visible(entry.name)}` of {target.client.name}"
            says = f"names the backend `{visible(claimed)}`, which is another server"
            _once(work, f"{of} {says}, so it is the backend `{visible(name)}`")
        elif name != usual and said is None and record is None:
            of, why = f"`{visible(entry.name)}` of {target.client.name}", f"another server than the backend `{usual}`"
            if not known:
                why = f"the same server as the backend `{visible(name)}`"
            _once(work, f"{of} is {why}, so it is the backend `{visible(name)}`")
    return found


def _same(one: Server, other: Server) -> bool:
    """Whether two are one server to the letter: a way to it is shared, and so is what is shown there."""
    return replace(one, ruled=False) == replace(other, ruled=False)


def _candidates(usual: str, agent: str, before: str, alike: Iterable[str], *, known: bool) -> Iterator[str]:
    """Names for a backend, the best first. `alike`: backends that are that server already.

    `known`: the usual name is a backend's. Where it is none's, a server that has another name already keeps that.
    """
    if before:
        yield before
    if known:
        yield usual
    yield from alike
    yield usual
    own = f"{usual[: plans.NAME_MAX - len(agent) - 6]}-{agent}"
    yield own
    yield from (f"{own}-{number}" for number in itertools.count(2))


def _servers(work: Work, config: Any) -> dict[str, list[Server]]:
    """What the configuration says of its backends, and of those that are handed over what the clients' entries say.

    Entries that are as they were wired are believed; where there are none, others that the person's own files have.
    What a project's file says of itself is no reason to believe it.
    """
    found: dict[str, list[Server]] = {}
    for name, rule in config.backends.items() if config is not None else ():
        found[name] = []
        if rule.command is not None:
            found[name].append(Server((_text(rule.command), *map(_text, rule.args)), ruled=True))
        elif rule.url is not None:
            headers = frozenset((key.lower(), _text(value)) for key, value in rule.headers.items())
            found[name].append(Server(url=_text(rule.url), headers=headers, ruled=True))
    ruled = {name for name, there in found.items() if there}
    others: dict[str, list[Server]] = {}
    for target in agents_files.targets(work.have):
        for entry in entries.read(target.client, target.document) if target.document is not None else ():
            said = standing.ours(entry)
            if said is None or not said.backend or said.backend in ruled:
                continue
            record = work.have.find(target.path, entry.path, entry.name)
            bare = plans.server_of(entry, record)
            if bare is None or (record is None and target.scope != "user"):
                continue
            sure = record is not None and documents.equal(entry.raw, record.ours)
            (found if sure else others).setdefault(said.backend, []).append(_server(work, bare, target.client))
    for name, there in others.items():
        if not found.get(name):
            found[name] = there
    return found


def takes_over(work: Work, target: Target, entry: entries.Entry, config: Any) -> bool:
    """Whether an entry of ours names a backend that is another server than the one it starts."""
    said = standing.ours(entry)
    if said is None or not said.command or work.here.isolated:
        return False
    if work.servers is None:
        work.servers = _servers(work, config)
    bare = plans.server_of(entry, work.have.find(target.path, entry.path, entry.name))
    there = work.servers.get(said.backend or backend_name(said.command), [])
    return bool(there) and bare is not None and not any(
        one.is_also(_server(work, bare, target.client)) for one in there
    )  # fmt: skip


def _server(work: Work, entry: entries.Entry, client: Client) -> Server:
    def meant(text: str) -> str:
        try:
            return trial.expanded(text, os.environ, client.env_syntax)
        except trial.Unknown:
            return text

    if entry.kind == "http":
        headers = frozenset((name.lower(), meant(value)) for name, value in entry.headers.items())
        return Server(url=meant(entry.url), headers=headers)
    own = work.here.env
    env = frozenset((name, _stands_for(meant(value))) for name, value in entry.env.items() if name not in own)
    return Server((entry.command, *entry.args), entry.cwd or "", env)


def _stands_for(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value.reveal())


def _not_reached(work: Work, client: Client, one: Change, config: Any) -> str:
    """Why an entry cannot be wired whatever the file says; "" where it can."""
    known = None if config is None else config.backends.get(one.backend)
    if work.here.isolated and (known is None or (known.command is None and known.url is None)):
        return (
            f"the isolated tier runs servers from its own configuration alone: the daemon's keeper writes "
            f"`backends.{one.backend}` with its `command` or `url` first"
        )
    if one.server is None or one.server.kind != "http" or known is not None:
        return ""
    own = [key for key in entries.OWN_AUTH if isinstance(one.server.raw, dict) and key in one.server.raw]
    if own:
        return (
            f"the client itself logs in there (`{own[0]}`), which Aegis would have to do: write its `url` and "
            f"`headers` under `backends.{one.backend}` into the configuration first"
        )
    parts = [one.server.url, *one.server.headers.values()]
    for text in parts:
        try:
            trial.expanded(text, os.environ, client.env_syntax)
        except trial.Unknown as why:
            return f"{why}, and the daemon would have to send it"
    if not one.server.url.startswith(("http://", "https://", "ws://", "wss://")):
        return f"`{plain_word(one.server.url)}` is no address that Aegis can call"
    return ""


def missing(names: set[str] | None, plans: list[Plan], found: list[Target]) -> None:
    """Raises `Problem` for a name that no file has."""
    from difflib import get_close_matches

    if names is None:
        return
    read = [one for one in found if one.document is not None]
    there = {entry.name for one in read if one.document for entry in entries.read(one.client, one.document)}
    there |= {name for one in read if one.document for name, _, _ in entries.odd(one.client, one.document)}
    for name in sorted(names - there):
        near = get_close_matches(name, sorted(there), 1)
        raise Problem(
            f"no entry `{visible(name, 60)}` is in these files",
            f"did you mean `{visible(near[0])}`?" if near else "`aegis agents list` shows the names",
            USAGE,
        )


def show_changes(
    work: Work, rows: list[Row], left: list[tuple[Plan, Left]], *, brief: bool = False, as_json: bool
) -> None:
    """Everything that is going to change (`brief`: without its lines), and what stays and why."""
    from aegis_daemon.config.edit import difference as config_difference

    if work.config_new != work.config_old and rows:
        new = "" if work.config_old else " (new)"
        lines = config_difference(work.config_old.decode(), work.config_new.decode())
        more, less = (sum(line[:1] == sign for line in lines) for sign in "+-")
        counts = f" {more} new line{'s' * (more != 1)}" + (f", {less} gone" if less else "") if brief else ""
        heading(f"in {visible(work.paths.config)}{new}:{counts}", as_json=as_json)
        if not as_json and not brief:
            show_difference(lines)
    for path in work.secrets:
        say(f"{visible(path)} will be made, for nobody else to read: it holds a secret that the configuration names")
    for plan in work.plans:
        for change in plan.changes:
            note = f" ({visible(change.note)})" if change.note else ""
            what = f"{plan.client.name}, {visible(plan.path)}: `{visible(change.name)}`"
            heading(f"{what} {_becomes(change)}{note}", as_json=as_json)
            if not as_json and not brief:
                show_difference(difference(change.keys, change.before, change.after))
    for plan, one in left:
        say(f"{visible(plan.path)}: `{visible(one.name)}` stays as it is: {visible(one.why)}")
    if rows and (lies := agents_files.unlasting(work.here.wrapper)):
        say(f"warning: {lies}")


def _becomes(change: Change) -> str:
    return "will be wired" if change.state in ("unwired", "foreign") else f"is {change.state}, and will be wired anew"
