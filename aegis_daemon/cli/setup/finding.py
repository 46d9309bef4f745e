"""What there is to govern is found by reading alone: clients' files, or an address that a person named.

Each way of an agent to a server is a `Route`; those that have no rules yet, or may have got tools since, are asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from aegis_daemon.cli import link
from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.agents import planning
from aegis_daemon.cli.agents.files import Target
from aegis_daemon.cli.agents.planning import Work
from aegis_daemon.cli.console import Problem, say, visible
from aegis_daemon.cli.editing import edited
from aegis_daemon.cli.setup import addresses
from aegis_daemon.cli.setup.questions import counted, tell
from aegis_daemon.clients import catalog, standing, wiring

if TYPE_CHECKING:
    from aegis_daemon.cli.setup.addresses import Given
    from aegis_daemon.clients.catalog import Client
    from aegis_daemon.clients.documents import Path
    from aegis_daemon.clients.entries import Entry
    from aegis_daemon.clients.plans import Change, Left, Plan
    from aegis_daemon.onboarding.probe import Offer, Server
    from aegis_daemon.onboarding.proposal import Row


@dataclass
class Route:
    """An agent's way to a server, as it is found: what is asked, and what it said."""

    agent: str
    backend: str
    client: Client | None
    file: str
    name: str
    server: Server | None
    """None: it is not asked"""
    change: Change | None = None
    """what its client's file is to say; None: that stays"""
    entry: Entry | None = None
    """by which it is reached through Aegis, where no client's file is to change for that"""
    offer: Offer | None = None
    rows: tuple[Row, ...] = ()
    strange: bool = False
    """a file says so that others may have written: a person sees it before anything of it is started"""
    known: bool = False
    """it has rules already, so that only what its server has got since is of interest"""


@dataclass
class Found:
    """Everything of one run."""

    work: Work
    config: Any
    """of the file as it is, None where there is none"""
    paths: list[Route] = field(default_factory=list)
    left: list[tuple[Plan, Left]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    kept: tuple[str, ...] = ()
    governed: int = 0
    """entries that go through Aegis as they are, and whose way has rules"""
    mode: str | None = None
    named: bool = False
    """a person named the file or the client, so that one that cannot be read is what they asked for"""
    given: Given | None = None
    """the server that a person named by its address"""
    lines: list[tuple[Target, str]] = field(default_factory=list)
    """what could be put by hand into the files of clients that did not get it"""
    edit: Callable[[str | None], str] = lambda text: text or ""
    """the configuration's text with all of it"""


def find(
    url: str | None, file: str | None, clients: list[str], server: list[str] | None, agent: str | None, *, asks: bool
) -> Found:
    """Everything that this run may change. Raises `Problem` where there is nothing to work on."""
    paths = link.paths()
    if os.path.lexists(paths.config):
        edited(paths.config, lambda text: _sound(text, paths.config))  # a file with faults is not built upon
    config = agents_files.settings(paths)
    have = agents_files.known(paths)
    here = agents_files.here(paths, agents_files.status(), config)
    found = Found(Work(paths, here, have, wiring.new_change()), config, named=file is not None or bool(clients))
    if url is not None:
        _from_url(found, url, agent, file, clients, asks=asks)
        return found
    client = ", ".join(clients) or None
    ids = [agents_files.client_of(name).id for name in clients] if file is None else []
    targets = agents_files.targets(have, file=file, client=clients[0] if clients and file is not None else None)
    targets = [one for one in targets if not ids or one.client.id in ids]
    if file is None:
        for one in [one for one in targets if one.scope == "project"]:
            said = "is a project's, and others may have it too: set it up with `--file` if it is yours alone"
            tell(f"{visible(one.path)} {said}")
        targets = [one for one in targets if one.scope != "project"]
    good = [one for one in targets if one.document is not None]
    if not good:
        _nothing(targets, file, clients)
    found.faults += planning.usable(targets, file, client)
    names = set(server) if server else None
    for target in good:
        _of_file(found, target, agent or target.client.id, names, asks=asks)
    planning.missing(names, found.work.plans, targets)
    new = sum(not path.known for path in found.paths)
    says = f"{counted(new, 'server')} that Aegis can govern" if new or not found.governed else ""
    if found.governed:
        says += f", {found.governed} that it" if says else f"{counted(found.governed, 'server')} that Aegis"
        says += " governs already"
    more = "; asking for new tools …" if quiet(found) else ""
    tell(f"found {', '.join(sorted({one.client.name for one in good}))}: {says}{more}")
    return found


def quiet(found: Found) -> bool:
    """Whether there are servers to ask, and only for what they have got since."""
    asked = [path for path in found.paths if path.server is not None]
    return bool(asked) and all(path.known for path in asked)


def _sound(text: str, path: str) -> str:
    from aegis_daemon.onboarding.proposal import check

    check(text, path, base=os.path.dirname(path))
    return text


def _nothing(targets: list[Target], file: str | None, clients: list[str]) -> None:
    """Raises `Problem` where there is no file to work on: says where one was looked for."""
    from pathlib import Path

    if file is not None or any(one.fault for one in targets):
        planning.usable(targets, file, ", ".join(clients) or None)
        for fault in agents_files.faults(targets):
            tell(f"warning: {fault}")
        raise Problem("no file of a client can be read for certain, and none was touched", "mend it, then repeat this")
    home = os.path.expanduser("~")
    for one in catalog.discover(os.environ, Path(home), None, catalog.system()):
        if not clients or one.client.id in clients:
            say(f"  looked for {one.client.name}: {visible(str(one.path))}")
    raise Problem(
        "no agent was found" + (f" of `{visible(', '.join(clients), 60)}`" if clients else ""),
        "name its file with `aegis setup --file PATH --agent ID`, or begin with a server: `aegis setup --url URL`",
    )


def _of_file(found: Found, target: Target, agent: str, names: set[str] | None, *, asks: bool) -> None:
    """The ways that a file has: those that it is to get, and those that it has and that nobody has made rules for."""
    from aegis_daemon.clients import entries
    from aegis_daemon.clients.documents import equal
    from aegis_daemon.onboarding.probe import Server
    from aegis_daemon.onboarding.proposal import fresh, listed, unruled
    from aegis_shim.hello import backend_name

    work, config = found.work, found.config
    directory = os.path.dirname(target.path)
    cwd = directory if directory.startswith(os.getcwd()) else None

    def server(entry: Entry, agent: str, backend: str, syntax: tuple[str, ...]) -> Server | None:
        unknown = any(ask(config, agent, backend) for ask in (fresh, unruled, listed))
        return Server(entry, cwd, syntax) if unknown and not entry.disabled else None

    plan = planning.planned(work, target, agent, names, config, ask=asks)
    work.plans.append(plan)
    own = agents_files.own(target.path)

    def strange(keys: Path, name: str, raw: Any) -> bool:
        record = work.have.find(target.path, keys, name)
        return not own and (record is None or not equal(raw, record.ours))

    found.left += [(plan, one) for one in plan.left]
    changed = set()
    for change in plan.changes:
        changed.add(change.keys)
        bare = change.server
        if bare is not None and bare.kind == "http" and not bare.url:  # an entry of our own, which names no address
            bare = _configured(config, change.backend, bare)
        asked = server(bare, change.agent, change.backend, target.client.env_syntax) if bare is not None else None
        route = Route(change.agent, change.backend, target.client, target.path, change.name, asked, change)
        route.strange = strange(change.keys, change.name, change.before)
        found.paths.append(route)
    assert target.document is not None
    for entry in entries.read(target.client, target.document):
        said = standing.ours(entry)
        if said is None or entry.path in changed or (names is not None and entry.name not in names):
            continue
        backend = said.backend or (backend_name(said.command) if said.command else "")
        new = fresh(config, said.agent, backend)
        if new and (work.here.isolated or not said.command or not planning.ID.fullmatch(said.agent)):
            if config is not None and not work.here.isolated:
                tell(
                    f"`{visible(entry.name)}` goes through Aegis as the agent `{visible(said.agent)}`, for which the "
                    f"configuration has nothing of `{visible(backend or entry.name)}`: write it by hand if it is yours"
                )
            continue
        if planning.takes_over(work, target, entry, config):
            tell(f"`{visible(entry.name)}` gets no rules: `{visible(said.backend)}`, which it names, is another server")
            continue
        ruled = not new and not unruled(config, said.agent, backend)
        found.governed += ruled
        if said.command:
            bare, syntax = replace(entry, command=said.command[0], args=said.command[1:]), target.client.env_syntax
        elif (there := _configured(config, said.backend, entry)) is not None:
            bare, syntax = there, ()
        else:
            tell(f"`{visible(entry.name)}` is not asked for new tools: nothing here says how its server is reached")
            continue
        if asked := server(bare, said.agent, backend, syntax):
            route = Route(said.agent, backend, target.client, target.path, entry.name, asked, entry=entry)
            route.known, route.strange = ruled, strange(entry.path, entry.name, entry.raw)
            found.paths.append(route)


def _configured(config: Any, backend: str, entry: Entry) -> Entry | None:
    """How the configuration reaches a server, as an entry that goes there without Aegis; None where it does not say."""
    rule = None if config is None else config.backends.get(backend)
    if rule is None or (rule.url is None and rule.command is None):
        return None

    def table(values: Any) -> dict[str, str]:
        return {name: addresses.text(value) for name, value in values.items()}

    if rule.url is not None:
        way: Literal["http", "sse", "websocket"] = rule.transport if rule.transport in ("sse", "websocket") else "http"
        bare = replace(entry, kind="http", command="", args=(), env={}, url=addresses.text(rule.url), transport=way)
        return replace(bare, headers=table(rule.headers))
    args = tuple(addresses.text(one) for one in rule.args)
    return replace(
        entry, kind="stdio", command=addresses.text(rule.command), args=args, env=table(rule.env), cwd=rule.cwd, url=""
    )


def _from_url(found: Found, url: str, agent: str | None, file: str | None, clients: list[str], *, asks: bool) -> None:
    """The ways to a server by its address: those of the clients that a person named, else one for any agent."""
    from aegis_daemon.clients.entries import Entry
    from aegis_daemon.onboarding.probe import Server
    from aegis_daemon.onboarding.proposal import listed

    found.given = given = addresses.given(url, found.config, agent)
    if file is not None or clients:
        for target in addresses.meant(found.work, file, clients):
            joined(found, target, asks=asks)
        return
    here, who = found.work.here, agent or "default"
    through = Entry(
        given.backend, (), "stdio", here.wrapper, ("--agent", who, "--backend", given.backend), dict(here.env)
    )  # fmt: skip
    route = Route(who, given.backend, None, "", given.backend, Server(given.entry), entry=through)
    route.known = not asks and listed(found.config, who, given.backend)
    found.paths.append(route)


def joined(found: Found, target: Target, *, asks: bool) -> None:
    """The way of a client to the server by its address: by the entry that its file has for it, else by a new one."""
    from aegis_daemon.onboarding.probe import Server
    from aegis_daemon.onboarding.proposal import listed

    given, client = found.given, target.client
    assert given is not None
    there = addresses.there(given, target)
    plan = addresses.planned(given, found.work, target, there, found.config, ask=asks)
    found.work.plans.append(plan)
    found.left += [(plan, one) for one in plan.left]
    server = Server(given.entry)
    for change in plan.changes:
        found.paths.append(Route(change.agent, change.backend, client, target.path, change.name, server, change))
    said = standing.ours(there) if there is not None and not plan.changes else None
    if there is not None and said is not None:
        tell(f"{client.name} has it already, as `{visible(there.name)}`: asking it for new tools …")
        route = Route(said.agent, said.backend, client, target.path, there.name, server, entry=there)
        route.known = listed(found.config, said.agent, said.backend)
        found.paths.append(route)
