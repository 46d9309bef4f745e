"""Which programs there are, where their files lie and how those are spelled is read from `clients.toml`, not coded."""

from __future__ import annotations

import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, Final, Literal

from aegis_daemon.clients.documents import Document, Format, Unreadable, parse

Os = Literal["linux", "macos", "windows"]
Scope = Literal["user", "project"]
Shape = Literal["std", "opencode", "goose", "zed", "codex", "continue-list"]
Transport = Literal["http", "sse", "websocket"]

FORMATS: Final[tuple[Format, ...]] = ("json", "jsonc", "json5", "toml", "yaml")
VERSION: Final = 1
"""The version of the table that this reads."""

_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::-([^}]*))?\}")
_SUFFIXES: Final[Mapping[str, tuple[Format, ...]]] = {
    ".json": ("json", "jsonc", "json5"),
    ".jsonc": ("jsonc",),
    ".json5": ("json5",),
    ".toml": ("toml",),
    ".yaml": ("yaml",),
    ".yml": ("yaml",),
}


@dataclass(frozen=True, slots=True)
class Http:
    """How a client spells a server that it reaches by URL."""

    url: str
    """The key of the address: `url`, `serverUrl`, `httpUrl`, `baseUrl`, `uri`."""
    headers: str | None
    """The key of the headers, `a.b` for `b` inside of `a`; None: it can send none."""
    type: str | None = None
    """The key that tells the transport, where one has to be written."""
    word: str | None = None
    """What stands there for streamable HTTP."""
    bare: Transport = "http"
    """What an address without that word speaks."""
    old: str | None = None
    """The key of an address that speaks the old SSE, where the client has two."""


@dataclass(frozen=True, slots=True)
class Timeout:
    """The setting by which a client waits longer for a call."""

    key: str
    """In the server's entry."""
    unit: Literal["s", "ms"]
    value: int
    """What we may set, in that unit."""

    @property
    def seconds(self) -> float:
        """What we may set, in seconds."""
        return self.value / 1000 if self.unit == "ms" else float(self.value)


@dataclass(frozen=True, slots=True)
class Client:
    """One program that runs MCP servers, or one of several kinds of file that it has."""

    id: str
    """`claude-code`, also a good agent id."""
    name: str
    """For people: `Claude Code`."""
    format: Format
    servers: tuple[tuple[str, ...], ...]
    """Key paths to the collections of servers; `*` stands for any key; a key may hold dots (`amp.mcpServers`)."""
    shape: Shape
    paths: Mapping[Os, tuple[str, ...]]
    """The user's own files, candidates in order, with `~`, `${NAME}`, `${NAME:-else}` and `*`."""
    project: tuple[str, ...]
    """Files below a project's directory."""
    http: Http | None
    """None: it starts commands only."""
    stdio: str | None
    """The word under `http.type` that an entry with a command needs; None: it needs none."""
    env_syntax: tuple[str, ...]
    """How it names a variable in args, env and headers; such text must stay as it is."""
    timeout: Timeout | None
    hold: int
    """For how many seconds a call may wait for a person before the client gives up, as far as is known."""
    hold_raised: int
    """The same once `timeout` is set."""
    reload: str
    """What a person does so that a change is taken up."""
    cli: tuple[str, ...]
    """Its own command that lists servers; empty where it has none."""
    dead: str | None
    """Set where no known version of the program reads this file: what to say about it."""
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    checked: str
    """The day, as 2026-11-21, on which the row was compared with its sources."""

    @property
    def generic(self) -> bool:
        """Whether this stands for any program whose file looks like that."""
        return self.id.startswith("generic")


@dataclass(frozen=True, slots=True)
class Found:
    """A file that a client reads, or would read if it were there."""

    client: Client
    path: Path
    scope: Scope
    exists: bool


@functools.cache
def load() -> tuple[Client, ...]:
    """Every row of the table, in its order; the generic ones last."""
    table = tomllib.loads(files("aegis_daemon.clients").joinpath("clients.toml").read_text(encoding="utf-8"))
    if table["version"] != VERSION:
        raise RuntimeError(f"the table of clients has version {table['version']}, not {VERSION}; install aegis anew")
    return tuple(_row(row) for row in table["client"])


def _row(row: dict[str, Any]) -> Client:
    paths: dict[str, list[str]] = row.get("paths", {})
    every: tuple[Os, ...] = ("linux", "macos", "windows")
    http, timeout = row.get("http"), row.get("timeout")
    return Client(
        id=row["id"],
        name=row["name"],
        format=row["format"],
        servers=tuple(tuple(path) for path in row["servers"]),
        shape=row["shape"],
        paths={os: tuple(paths.get(os, paths.get("all", ()))) for os in every},
        project=tuple(row.get("project", ())),
        http=None if http is None else Http(**http),
        stdio=row.get("stdio"),
        env_syntax=tuple(row.get("env", ())),
        timeout=None if timeout is None else Timeout(**timeout),
        hold=row["hold"],
        hold_raised=row.get("hold_raised", row["hold"]),
        reload=row["reload"],
        cli=tuple(row.get("cli", ())),
        dead=row.get("dead"),
        notes=tuple(row.get("notes", ())),
        sources=tuple(row["sources"]),
        checked=str(row["checked"]),
    )


def find(name: str) -> Client | None:
    """The client with this id."""
    return next((client for client in load() if client.id == name), None)


def recorded(name: str, format: str, path: Path, content: bytes = b"") -> Client:
    """The client of a file that was seen before, with the format that the file had.

    :param format: "" where that was not written down: then it is told by the file. :param content: what it holds.
    """
    client = find(name)
    known = next((one for one in FORMATS if one == format), None)
    if client is None or (known is None and client.generic):
        return by_file(path, content)
    return client if known is None else replace(client, format=known)


def by_file(path: Path, content: bytes = b"") -> Client:
    """The client that a file belongs to, told by its name and place, else by what it says, else a generic one.

    The format of a generic one is that of the file. Nothing is read here: `content` is what the file holds.
    """
    parts = path.parts
    best, length = None, 0
    for client in load():
        for pattern in (*client.project, *(one for found in client.paths.values() for one in found)):
            tail = _tail(pattern)
            if len(tail) == 1 and pattern.startswith("$"):
                continue  # a `config.toml` in a place that varies may be anyone's
            if len(tail) > length and _ends(parts, tail):
                best, length = client, len(tail)
    if best is not None:
        return best
    formats = _SUFFIXES.get(path.suffix.lower(), FORMATS)
    for format in formats:
        try:
            document = parse(content, format)
        except Unreadable:
            continue
        return _by_content(document)
    return _generic("generic-table" if formats == ("toml",) else "generic", formats[0])


def _tail(pattern: str) -> tuple[str, ...]:
    """The fixed end of a candidate: `~/.cursor/mcp.json` → `.cursor`, `mcp.json`; nothing where all of it varies."""
    fixed = re.sub(r"^(?:~|\$\{[^}]*\})", "", pattern)
    return tuple(part for part in fixed.split("/") if part)


def _ends(parts: tuple[str, ...], tail: tuple[str, ...]) -> bool:
    if not tail or len(parts) < len(tail):
        return False
    return all(fnmatchcase(part, pattern) for part, pattern in zip(parts[-len(tail) :], tail, strict=True))


def _by_content(document: Document) -> Client:
    value = document.value if isinstance(document.value, dict) else {}
    for key, name in (("context_servers", "zed"), ("amp.mcpServers", "amp")):
        if isinstance(value.get(key), dict) and document.format.startswith("json"):
            return replace(_known(name), format=document.format)
    if isinstance(value.get("mcpServers"), list):
        return _generic("generic-list", document.format)
    if isinstance(value.get("mcpServers"), dict):
        return _generic("generic", document.format)
    if isinstance(value.get("mcp_servers"), dict):
        return _generic("generic-table", document.format)
    mcp = value.get("mcp")
    if isinstance(mcp, dict) and _servers(mcp.get("servers")):
        local = any("type" in one for one in mcp["servers"].values())
        return replace(_known("opencode" if local else "openclaw"), format=document.format)
    if isinstance(mcp, dict) and _servers(mcp):
        return replace(_known("opencode"), format=document.format)
    extensions = value.get("extensions")
    if isinstance(extensions, dict) and any("cmd" in one or "uri" in one for one in _maps(extensions)):
        return replace(_known("goose"), format=document.format)
    if _servers(value.get("servers")):
        return _generic("generic-servers", document.format)
    if _servers(value):
        return _generic("generic-bare", document.format)
    return _generic("generic-table" if document.format == "toml" else "generic", document.format)


def _maps(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (one for one in value.values() if isinstance(one, dict))


def _servers(value: Any) -> bool:
    """Whether something is a collection of what looks like servers, and of nothing else."""
    if not isinstance(value, dict) or not value:
        return False
    keys = {"command", "url", "serverUrl", "httpUrl", "baseUrl"}
    return all(isinstance(one, dict) and keys & one.keys() for one in value.values())


def _known(name: str) -> Client:
    client = find(name)
    assert client is not None
    return client


def _generic(name: str, format: Format) -> Client:
    return replace(_known(name), format=format)


def discover(env: Mapping[str, str], home: Path, cwd: Path | None, os: Os, *, dead: bool = False) -> list[Found]:
    """The files of every client that exist, and for a client that has none the first place where one would be.

    Nothing is opened, only looked for: reading another program's files may ask the person on macOS. A project's files
    are looked for in `cwd` alone. :param dead: also the files that no program reads.
    """
    found: list[Found] = []
    seen: set[Path] = set()
    for client in load():
        if client.generic or (client.dead is not None and not dead):
            continue
        own: list[Found] = []
        for pattern in client.paths[os]:
            own += [Found(client, path, "user", _exists(path)) for path in _expanded(pattern, env, home)]
        there = [one for one in own if one.exists]
        here = [Found(client, path, "project", True) for path in _below(client, cwd) if _exists(path)]
        for one in [*(there or own[: 0 if client.dead else 1]), *here]:
            if one.path not in seen:
                seen.add(one.path)
                found.append(one)
    return found


def _below(client: Client, cwd: Path | None) -> Iterator[Path]:
    if cwd is not None:
        for pattern in client.project:
            yield from _globbed(cwd, pattern)


def _expanded(pattern: str, env: Mapping[str, str], home: Path) -> Iterator[Path]:
    """The paths that a candidate stands for: none where its variable is not set, several where it has a `*`."""
    missing = False

    def value(found: re.Match[str]) -> str:
        nonlocal missing
        said = env.get(found[1]) or found[2]
        missing = missing or not said
        return said or ""

    text = _VARIABLE.sub(value, pattern)
    if missing:
        return
    if text == "~" or text.startswith("~/"):
        text = str(home) + text[1:]
    if not (PurePath(text).is_absolute() or PureWindowsPath(text).is_absolute()):
        return  # a variable that holds a relative path means another place for every program
    if "*" in text:
        above, _, _ = text.partition("*")
        base = Path(above if above.endswith("/") else str(Path(above).parent))
        yield from _globbed(base, text[len(str(base)) :].lstrip("/"))
    else:
        yield Path(text)


def _globbed(base: Path, pattern: str) -> Iterator[Path]:
    if "*" not in pattern:
        yield base / pattern
        return
    try:
        yield from sorted(base.glob(pattern))
    except OSError:
        return


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def system() -> Os:
    """Which of the table's columns holds for this machine."""
    return "macos" if sys.platform == "darwin" else "windows" if sys.platform == "win32" else "linux"
