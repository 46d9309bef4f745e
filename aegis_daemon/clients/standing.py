"""Whether an entry goes through Aegis is read from what it says itself; the ledger tells what has become of ours."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from aegis_daemon.clients import entries, ledger
from aegis_daemon.clients.catalog import Client
from aegis_daemon.clients.documents import Document, Path, equal
from aegis_daemon.clients.entries import Entry
from aegis_daemon.clients.ledger import Ledger, Record

State = Literal["wired", "stale", "drifted", "foreign", "missing", "unwired", "unclear"]
"""wired: our wrapper as it has to be; stale: ours, and it would not reach this daemon; drifted: edited since we wired
it; foreign: another gateway or wrapper; missing: we wired it, and it is gone; unwired: nothing of this; unclear: what
its program starts is not certain, so it is left alone"""

WRAPPER: Final = "aegis-wrap"
FOREIGN: Final[Mapping[str, str]] = {
    "thv": "ToolHive", "toolhive": "ToolHive", "mcpproxy": "MCPProxy", "gridctl": "gridctl",
    "protect-mcp": "protect-mcp", "mcp-scan": "mcp-scan", "snyk-agent-scan": "agent-scan",
    "aegis-mcp-proxy": "another program of the name Aegis", "aegis-mcp-gateway": "another program of the name Aegis",
    "agentgateway": "agentgateway", "invariant-gateway": "Invariant Gateway", "mcp-gateway": "an MCP gateway",
    "obsigna": "obsigna", "pipelock": "pipelock", "mcp-guardian": "MCP Guardian",
}  # fmt: skip
"""Programs that stand before servers as we do, by the name of the command or package."""
_LAUNCHERS: Final = frozenset({"npx", "bunx", "uvx", "uv", "pipx", "env", "node", "python", "python3", "docker", "sh"})
_FRONT: Final = 8
"""Words of a command among which a wrapper is looked for."""
FINDERS: Final = ("AEGIS_HOME", "AEGIS_SOCKET", "AEGIS_CONFIG", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
"""Variables by which a wrapper finds its daemon, and the daemon that it starts its configuration."""
_OUR_PATH: Final = re.compile(r"/agents/([^/]+)/backends/([^/]+)/mcp/?")


@dataclass(frozen=True, slots=True)
class Here:
    """What an entry has to say to reach the daemon of this installation."""

    wrapper: str
    """`aegis-wrap`, absolute"""
    env: Mapping[str, str] = field(default_factory=dict)
    """variables without which the wrapper would look for the daemon elsewhere"""
    isolated: bool = False
    """the daemon runs servers from its own configuration alone, so no command line is handed over"""
    doors: str = ""
    """the directory of the agents' own sockets, one each, in the isolated tier"""
    http: str = ""
    """`127.0.0.1:18070`, where the daemon serves HTTP; "" where it does not"""
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    """what agents show over HTTP, by their ids"""
    lasting: bool = False
    """a service has the daemon run, so that an address is answered whenever a client calls it"""


@dataclass(frozen=True, slots=True)
class Ours:
    """What an entry of ours says."""

    way: Literal["wrap", "url"]
    wrapper: str
    agent: str
    backend: str
    command: tuple[str, ...] = ()
    """the server's own, empty where the entry hands none over"""
    place: str = ""
    """host and port of an address"""
    socket: str = ""
    """that is named, "" for the usual one"""
    plain: bool = True
    """the wrapper itself is what is started, and not a program that gets its name as an argument"""
    found: Mapping[str, str] = field(default_factory=dict)
    """the entry's variables by which a wrapper finds its daemon"""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry as it stands; `entry` None: one that we wired and that is gone, or one that is not understood."""

    name: str
    keys: Path
    state: State
    why: str = ""
    """what is to be said of the state; "" where it says everything"""
    entry: Entry | None = None
    ours: Ours | None = None
    record: Record | None = None

    @property
    def governed(self) -> bool:
        """Whether what it starts goes through a wrapper or an address of ours."""
        return self.ours is not None


def ours(entry: Entry) -> Ours | None:
    """What the entry says if it starts our wrapper, or calls an address of ours."""
    if entry.kind == "http":
        parts = urlsplit(entry.url)
        found = _OUR_PATH.fullmatch(parts.path)
        if found is None:
            return None
        return Ours("url", "", unquote(found[1]), unquote(found[2]), place=parts.netloc)
    words = [entry.command, *entry.args]
    for at, word in enumerate(words[:_FRONT]):
        if _program(word) == WRAPPER:
            return replace(_wrapped(word, words[at + 1 :], entry.env), plain=at == 0)
        if at == 0 and _program(word) not in _LAUNCHERS:
            return None
    return None


def _wrapped(wrapper: str, words: list[str], env: Mapping[str, str]) -> Ours:
    """As the wrapper itself reads its command line."""
    given = {"--agent": env.get("AEGIS_AGENT", ""), "--backend": env.get("AEGIS_BACKEND", ""), "--socket": ""}
    at = 0
    while at < len(words):
        name, equals, value = words[at].partition("=")
        if words[at] == "--":
            at += 1
            break
        if not name.startswith("-"):
            break
        if name in given:
            if not equals:
                at += 1
                value = words[at] if at < len(words) else ""
            given[name] = value
        at += 1
    socket = given["--socket"] or env.get("AEGIS_SOCKET", "")
    found = {name: env[name] for name in FINDERS if env.get(name)}
    agent = given["--agent"] or "default"
    return Ours("wrap", wrapper, agent, given["--backend"], tuple(words[at:]), socket=socket, found=found)


def foreign(entry: Entry) -> str:
    """The other gateway that the entry goes through, for people; "" for none."""
    if entry.kind == "http":
        return ""
    words = [entry.command, *entry.args]
    for at, word in enumerate(words[:_FRONT]):
        name = _program(word).partition("==")[0]
        name = name[:1] + name[1:].partition("@")[0]
        if name in FOREIGN and (at == 0 or _program(words[0]) in _LAUNCHERS):
            return FOREIGN[name]
    if _program(entry.command) == "docker" and entry.args[:2] == ("mcp", "gateway"):
        return "Docker's MCP gateway"
    return ""


def _program(word: str) -> str:
    return word.replace("\\", "/").rpartition("/")[2].lower().removesuffix(".exe").removesuffix(".cmd")


def survey(client: Client, path: str, document: Document, here: Here, known: Ledger) -> list[Found]:
    """Every entry of a file, and what we wired in it and is gone."""
    found: list[Found] = []
    seen: set[ledger.Ident] = set()
    for entry in entries.read(client, document):
        seen.add(ledger.ident(entry.path, entry.name))
        found.append(_judged(entry, known.find(path, entry.path, entry.name), here))
    for name, keys, why in entries.odd(client, document):
        seen.add(ledger.ident(keys, name))
        record = known.find(path, keys, name)
        if record is not None or not entries.idle(client, document.at(keys)):
            found.append(Found(name, keys, "unclear", why, record=record))
    found += [
        Found(record.name, record.keys, "missing", "the entry is gone", record=record)
        for record in known.of(path)
        if record.ident not in seen
    ]
    return found


def as_put(raw: Any, record: Record) -> bool:
    """Whether an entry is as we made it."""
    return equal(ledger.plain(raw), ledger.plain(record.ours))


def _judged(entry: Entry, record: Record | None, here: Here) -> Found:
    def say(state: State, why: str = "") -> Found:
        return Found(entry.name, entry.path, state, why, entry, said, record)

    said = ours(entry)
    if said is None:
        if record is not None:
            return say("drifted", "the wrapper was taken out")
        other = foreign(entry)
        return say("foreign", f"it goes through {other}") if other else say("unwired")
    if why := outdated(said, entry, here):
        return say("stale", why)
    if record is not None and not as_put(entry.raw, record):
        return say("drifted", "edited since it was wired")
    return say("wired")


def outdated(said: Ours, entry: Entry, here: Here) -> str:
    """Why an entry of ours would not reach this daemon; "" where it does."""
    if said.way == "url":
        if not here.http:
            return "its address is not served: the daemon has no HTTP"
        return "" if _same_place(said.place, here.http) else f"its address is not this daemon's, `{here.http}`"
    if not said.plain:
        return f"it starts `{_program(entry.command)}`, and the wrapper stands among its arguments"
    if not os.path.isabs(said.wrapper):
        return "the wrapper is not named by its whole path"
    if not os.access(said.wrapper, os.X_OK):
        return f"the wrapper `{said.wrapper}` is not there"
    if os.path.realpath(said.wrapper) != os.path.realpath(here.wrapper):
        return f"another installation's wrapper, `{said.wrapper}`"
    # Not XDG_RUNTIME_DIR: wherever the daemon has its sockets, it is found by the state directory (`daemon.at`).
    for name in ("AEGIS_HOME", "XDG_STATE_HOME"):
        if entry.env.get(name, "") != here.env.get(name, ""):
            return f"`{name}` is not this installation's, so it would reach another daemon"
    if here.doors and said.socket != door(here, said.agent):
        return f"it does not name its agent's socket, `{door(here, said.agent)}`"
    if not here.doors and said.socket not in ("", here.env.get("AEGIS_SOCKET", "")):
        return f"it names a socket of its own, `{said.socket}`, so it would reach another daemon"
    if here.isolated and said.command:
        return "it hands over a command, which the isolated tier refuses"
    return ""


def door(here: Here, agent: str) -> str:
    """The socket of an agent in the isolated tier."""
    return os.path.join(here.doors, f"{agent}.sock")


_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::]"})  # noqa: S104 - only compared


def _same_place(one: str, other: str) -> bool:
    (host, _, port), (own, _, served) = one.rpartition(":"), other.rpartition(":")
    return port == served and (host == own or {host, own} <= _LOOPBACK)
