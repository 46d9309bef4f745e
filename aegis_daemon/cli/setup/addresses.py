"""A server that a person names by its address comes into the files of the clients that they name, and into no other."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, urlsplit

from aegis_daemon.cli.agents import configuration, planning
from aegis_daemon.cli.agents import files as agents_files
from aegis_daemon.cli.agents.diff import plain_word
from aegis_daemon.cli.agents.files import Target
from aegis_daemon.cli.console import USAGE, Problem, visible
from aegis_daemon.clients import catalog, entries, files, plans, standing, trial
from aegis_daemon.clients.documents import Unchangeable
from aegis_daemon.clients.entries import Entry, Odd
from aegis_daemon.clients.plans import Left, Plan

if TYPE_CHECKING:
    from aegis_daemon.cli.agents.planning import Work
    from aegis_daemon.clients.standing import Here


@dataclass(frozen=True, slots=True)
class Given:
    """A server by its address."""

    entry: Entry
    """as the daemon reaches it"""
    backend: str
    agent: str | None
    """None: each client's own"""

    @property
    def shown(self) -> str:
        """The address as a command line that is printed may have it: `URL` for one that may hold a secret."""
        return "URL" if configuration.secretive(self.entry.url) else shlex.quote(self.entry.url)


def checked(url: str) -> SplitResult:
    """The parts of a server's address. Raises `Problem` where it is none."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https", "ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"\s", url):
        raise Problem(
            f"`{visible(plain_word(url), 80)}` is no address of a server", "write it like `https://host/mcp`", USAGE
        )
    return parts


def given(url: str, config: Any, agent: str | None) -> Given:
    """The server at an address, and a backend's name for it. Raises `Problem`."""
    parts = checked(url)
    known = config.backends if config is not None else {}
    there = next((name for name, one in known.items() if one.url is not None and text(one.url) == url), "")
    name = there or _name(parts.hostname or "")
    if not there:
        base, number = name, 2
        while name in known:
            name, number = f"{base}-{number}", number + 1
    if parts.scheme in ("ws", "wss"):
        return Given(Entry(name, (), "http", url=url, transport="websocket"), name, agent)
    sse = parts.path.rstrip("/").endswith("/sse")
    return Given(Entry(name, (), "http", url=url, transport="sse" if sse else "http"), name, agent)


def text(value: Any) -> str:
    """A setting that may be a secret, as it is."""
    return value if isinstance(value, str) else str(value.reveal())


def _name(host: str) -> str:
    """`mcp.context7.com` → `context7`; an address stays whole."""
    if re.fullmatch(r"[0-9.]+|.*:.*", host) or "." not in host:
        return plans.backend_name(host.replace(":", "-"))
    parts = [part for part in host.split(".")[:-1] if part not in ("www", "mcp", "api", "co")]
    return plans.backend_name(parts[-1] if parts else host)


def settings(entry: Entry, backend: str, path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What the configuration says of it, and the files of secrets to which that refers."""
    found: dict[str, Any] = {"url": entry.url}
    held: dict[str, str] = {}
    if configuration.secretive(entry.url):
        file = configuration.free_secret(path, f"{backend}.url", entry.url)
        found["url"] = f"${{file:{configuration.SECRETS}/{os.path.basename(file)}}}"
        held[file] = entry.url
    if entry.transport in ("sse", "websocket"):
        found["transport"] = entry.transport
    return found, held


# --- whose files ------------------------------------------------------------------------------------------------------


def installed(work: Work) -> list[Target]:
    """One file of each client that has run here: the first that there is, else where it would be beside its others."""
    made: dict[str, Target] = {}
    for target in agents_files.targets(work.have):
        if target.document is not None and target.scope == "user":
            made.setdefault(target.client.id, target)
    home = Path(os.path.expanduser("~"))
    shared = {home, Path("/"), home / ".config", home / "Library" / "Application Support"}
    shared |= {Path(os.environ[name]) for name in ("XDG_CONFIG_HOME", "APPDATA") if os.environ.get(name)}
    for one in catalog.discover(os.environ, home, None, catalog.system()):
        if not one.exists and one.path.parent not in shared and one.path.parent.is_dir():
            made.setdefault(one.client.id, Target(one.client, str(one.path), "user", None))
    order = [client.id for client in catalog.load()]
    return sorted(made.values(), key=lambda target: order.index(target.client.id))


def meant(work: Work, file: str | None, clients: list[str]) -> list[Target]:
    """The files into which a person wants it to come. Raises `Problem` where that cannot be."""
    if file is not None:
        found = agents_files.targets(work.have, file=file, client=clients[0] if clients else None)
    else:
        found = [_file_of(work, name) for name in dict.fromkeys(clients)]
    for target in found:
        if target.fault:
            raise Problem(f"`{target.path}` is left as it is: {target.fault}", "mend the file, or name another")
        directory = os.path.dirname(target.path)
        if target.data is None and not os.path.isdir(directory) and file is not None:
            raise Problem(f"no directory `{directory}`", "make it first, or check the path")
        if target.data is None and not os.path.isdir(directory):
            raise Problem(
                f"no file of {target.client.name} is there, nor the directory `{directory}` in which it would be",
                "start it once, or name its file with `--file PATH`",
            )
    return found


def _file_of(work: Work, name: str) -> Target:
    client = agents_files.client_of(name)
    there = [one for one in agents_files.targets(work.have, client=client.id) if one.scope != "project"]
    found = [one for one in there if one.document is not None] or [one for one in there if one.data is not None]
    if found:
        return found[0]
    home = Path(os.path.expanduser("~"))
    places = [one for one in catalog.discover(os.environ, home, None, catalog.system()) if one.client.id == client.id]
    if not places:
        raise Problem(f"no file of {client.name} is known here", "name it with `--file PATH`")
    return Target(client, str(places[0].path), "user", None)


# --- what they get ----------------------------------------------------------------------------------------------------


def there(one: Given, target: Target) -> Entry | None:
    """The entry by which a file has the server already, through Aegis or without it."""
    for entry in entries.read(target.client, target.document) if target.document is not None else ():
        said = standing.ours(entry)
        if said is not None and said.backend == one.backend:
            return entry
        if said is None and entry.kind == "http":
            with suppress(trial.Unknown):
                if trial.expanded(entry.url, os.environ, target.client.env_syntax) == one.entry.url:
                    return entry
    return None


def planned(one: Given, work: Work, target: Target, there: Entry | None, config: Any, *, ask: bool) -> Plan:
    """What becomes of a client's file. `there`: the entry that it has for it."""
    agent, client, data = one.agent or target.client.id, target.client, target.data or b""
    if there is not None:
        return planning.planned(work, target, agent, {there.path}, config, ask=ask)
    why = files.refusal(target.path)
    if work.here.isolated and (config is None or one.backend not in config.backends):
        why = (
            "the isolated tier runs servers from its own configuration alone: the daemon's keeper writes "
            f"`backends.{one.backend}` with its `url` first"
        )
    try:
        if not why:
            return plans.plan_add(
                client, target.path, target.data, work.here, one.entry, agent=agent, backend=one.backend,
                change=work.change,
            )  # fmt: skip
    except (Odd, Unchangeable) as odd:
        why = str(odd)
    return Plan(target.path, client, data, data, left=(Left(one.backend, (), "unwired", why),))


def lines(one: Given, work: Work, target: Target, agent: str) -> str:
    """The server as a client's file that has nothing else would say it, without any secret."""
    plan = plans.plan_add(
        target.client, target.path, None, work.here, one.entry, agent=agent, backend=one.backend, change=work.change
    )  # fmt: skip
    return plan.after.decode().rstrip("\n")


def entry_for(agent: str, backend: str, here: Here, status: Mapping[str, Any] | None) -> list[str]:
    """Lines that tell how an agent reaches a server that no client's file has."""
    command = f"  {here.wrapper} --agent {agent} --backend {backend}"
    found = [f"any agent reaches `{visible(backend)}` with this command as its server:", command]
    http = (status or {}).get("http")
    if http:
        found.append(f"  or at http://{http}/agents/{quote(agent)}/backends/{quote(backend)}/mcp")
    return found
