"""A server's entry means the same in every client's spelling: a command to start, or an address to call.

What is read and written again unchanged is the value that stood there: only keys whose meaning changes are touched, and
keys that say nothing of all this (`disabledTools`, `alwaysAllow`, …) stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from aegis_daemon.clients.catalog import Client, Http
from aegis_daemon.clients.documents import MISSING, Document, Path, equal

_ADDRESSES: Final = ("url", "serverUrl", "httpUrl", "baseUrl", "uri")
_WORDS: Final[Mapping[str, Literal["http", "sse", "websocket"]]] = {
    "http": "http", "streamable-http": "http", "streamablehttp": "http", "streamable_http": "http", "remote": "http",
    "sse": "sse", "ws": "websocket", "websocket": "websocket",
}  # fmt: skip
_TYPES: Final = ("type", "transport", "transportType")
OWN_AUTH: Final = (
    "auth", "oauth", "headersHelper", "bearer_token_env_var", "env_http_headers", "apiKey", "bearerToken",
    "bearerTokenEnv", "authProviderType",
)  # fmt: skip
"""Keys by which a client itself proves who it is to an address; they belong to that address alone."""
_OF_COMMANDS: Final = ("command", "args", "env", "cwd", "envFile", "cmd", "envs", "env_keys", "environment", "env_vars")


@dataclass(frozen=True, slots=True)
class Entry:
    """One server of one file."""

    name: str
    path: Path
    """Where it stands in the document, for `Document.replaced`."""
    kind: Literal["stdio", "http"]
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    transport: Literal["stdio", "http", "sse", "websocket"] = "stdio"
    """More exactly than `kind`, as far as the entry says."""
    disabled: bool = False
    raw: Any = field(default_factory=dict)
    """The value as it stands in the file, every key of it; empty for a new entry."""


class Odd(ValueError):
    """An entry whose meaning is not certain, so that it is left alone; the message says why."""


class Idle(Odd):
    """An entry that starts and calls nothing, so that there is nothing to govern."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """The names under which a shape keeps the parts of a command."""

    command: str = "command"
    args: str | None = "args"
    """None: the arguments follow the command in one list."""
    env: str = "env"
    cwd: str = "cwd"


_KEYS: Final[Mapping[str, _Keys]] = {
    "goose": _Keys(command="cmd", env="envs"),
    "opencode": _Keys(args=None, env="environment"),
}


def read(client: Client, document: Document) -> list[Entry]:
    """Every server of a file that is understood, in its order; `odd` has the others."""
    found = []
    for name, path, raw in _all(client, document):
        try:
            found.append(_read(client, name, path, raw))
        except Odd:
            continue
    return found


def odd(client: Client, document: Document) -> list[tuple[str, Path, str]]:
    """Name, place and reason of every entry that `read` leaves out."""
    found = []
    for name, path, raw in _all(client, document):
        try:
            _read(client, name, path, raw)
        except Odd as why:
            found.append((name, path, str(why)))
    return found


def meant(client: Client, name: str, path: Path, raw: Any) -> Entry | None:
    """The entry that a raw value spells; None where it is not understood."""
    try:
        return _read(client, name, path, raw)
    except Odd:
        return None


def idle(client: Client, raw: Any) -> bool:
    """Whether a value that `odd` names starts and calls nothing by itself."""
    try:
        _read(client, "", (), raw)
    except Idle:
        return True
    except Odd:
        return not isinstance(raw, dict) or not raw
    return False


def write(client: Client, entry: Entry) -> Any:
    """The raw value that spells an entry for a client; keys of `entry.raw` that say nothing of the above are kept.

    Keys that belong to what is no longer so (the headers of an address that became a command, a client's own way to
    prove who it is to another address) are dropped.

    :raises Odd: the client has no way to say it (an address, where it starts commands only).
    """
    raw = dict(entry.raw) if isinstance(entry.raw, dict) else {}
    try:
        was = _read(client, entry.name, entry.path, raw) if raw else None
    except Odd:
        was = None
    if client.shape == "continue-list" and "name" not in raw:
        raw = {"name": entry.name, **raw}
    if client.shape == "goose" and not raw:
        raw = {"enabled": True, "name": entry.name}
    first = client.shape == "opencode" and not raw and entry.path[:2] != ("mcp", "servers")
    write_kind = _write_command if entry.kind == "stdio" else _write_address
    made = write_kind(client, entry, raw, was)
    return {**made, "enabled": True} if first else made


def place(client: Client, document: Document, name: str, within: str | None = None) -> Path:
    """Where an entry with a name stands, or would be put; `within` is the `*` of the path (a project's directory)."""
    for found, path, _ in _all(client, document):
        if found == name and (within is None) == (within not in path):
            return path
    starred = [keys for keys in client.servers if ("*" in keys) == (within is not None)]
    keys = tuple(within if key == "*" and within is not None else key for key in (starred or client.servers)[0])
    if client.shape == "opencode" and isinstance(document.at(("mcp", "servers")), dict):
        keys = ("mcp", "servers")
    if client.shape == "continue-list":
        there = document.at(keys)
        return (*keys, len(there) if isinstance(there, list) else 0)
    return (*keys, name)


def with_timeout(client: Client, raw: Any, path: Path = ()) -> Any:
    """A raw value whose client waits as long as the table allows; the same where it does already, or cannot be told.

    `path` is where it stands, which matters where a client's versions spell it differently (opencode's two: without
    it, an entry that shows neither `enabled` nor `disabled` is left alone).
    """
    timeout = client.timeout
    if timeout is None or not isinstance(raw, dict):
        return raw
    there = raw.get(timeout.key, MISSING)
    if client.shape == "opencode":
        if isinstance(there, dict) or path[:2] == ("mcp", "servers") or "disabled" in raw:
            inner = there if isinstance(there, dict) else {}
            if there is not MISSING and not isinstance(there, dict):
                return raw
            return {**raw, timeout.key: {**inner, "request": _longer(inner.get("request", MISSING), timeout.value)}}
        if there is MISSING and not path and "enabled" not in raw:
            return raw
    return {**raw, timeout.key: _longer(there, timeout.value)}


def _longer(there: Any, value: int) -> Any:
    if there is MISSING or there is None:
        return value
    number = isinstance(there, int | float) and not isinstance(there, bool)
    return value if number and 0 < there < value else there


# --- finding


def _all(client: Client, document: Document) -> Iterator[tuple[str, Path, Any]]:
    for keys in client.servers:
        for path, collection in _collections(document.value, keys, ()):
            if isinstance(collection, list) and client.shape == "continue-list":
                for at, raw in enumerate(collection):
                    name = raw.get("name") if isinstance(raw, dict) else None
                    yield (name if isinstance(name, str) else f"#{at + 1}"), (*path, at), raw
            elif isinstance(collection, dict) and client.shape != "continue-list":
                for name, raw in collection.items():
                    if (*path, name) in client.servers:
                        continue  # a setting beside the servers
                    yield name, (*path, name), raw


def _collections(value: Any, keys: tuple[str, ...], path: Path) -> Iterator[tuple[Path, Any]]:
    if not keys:
        yield path, value
    elif isinstance(value, dict):
        for key in value if keys[0] == "*" else (keys[0],):
            if key in value:
                yield from _collections(value[key], keys[1:], (*path, key))


# --- reading


def _read(client: Client, name: str, path: Path, raw: Any) -> Entry:
    if not isinstance(raw, dict):
        raise Odd("it is no mapping")
    disabled = raw.get("disabled") is True or raw.get("enabled") is False
    entry = Entry(name, path, "stdio", disabled=disabled, raw=raw)
    if client.shape == "goose" and raw.get("type") not in ("stdio", "sse", "streamable_http"):
        raise Idle("it runs inside of the program; there is nothing to wrap")
    if client.shape == "opencode" and raw.get("type") not in ("local", "remote"):
        raise Idle("it only switches a server on or off that is set somewhere else")
    keys = _KEYS.get(client.shape, _Keys())
    command = raw.get(keys.command)
    addresses = [key for key in _address_keys(client) if raw.get(key) not in (None, "")]
    if client.shape == "zed" and raw.get("source") == "extension":
        raise Odd("an extension starts it; there is no command to wrap")
    if command and addresses:
        raise Odd(f"it has both a command and an address (`{addresses[0]}`), and programs differ in which they take")
    if len(addresses) > 1:
        raise Odd(f"it has two addresses (`{addresses[0]}`, `{addresses[1]}`)")
    if addresses:
        return _read_address(client, entry, raw, addresses[0])
    if not command:
        inner = next((key for key in ("transport", "config") if isinstance(raw.get(key), dict)), None)
        if inner is None:
            raise Idle("it has neither a command nor an address")
        raise Odd(f"its parts stand inside of `{inner}`")
    return _read_command(entry, raw, keys)


def _read_command(entry: Entry, raw: dict[str, Any], keys: _Keys) -> Entry:
    command: Any = raw[keys.command]
    args: Any = raw.get(keys.args) if keys.args is not None else None
    env = raw.get(keys.env)
    if keys.args is None:
        if not isinstance(command, list) or not all(isinstance(one, str) for one in command):
            raise Odd(f"its `{keys.command}` is no list of texts")
        command, args = command[0], command[1:]
    elif isinstance(command, dict):  # as zed had it once
        command, args, env = command.get("path"), command.get("args"), command.get("env")
    if not isinstance(command, str) or not command:
        raise Odd(f"its `{keys.command}` is no text")
    if args is not None and not (isinstance(args, list) and all(isinstance(one, str) for one in args)):
        raise Odd(f"its `{keys.args or keys.command}` is no list of texts")
    cwd = raw.get(keys.cwd, raw.get("working_directory"))
    return replace(
        entry,
        command=command,
        args=tuple(args or ()),
        env=_texts(env, keys.env),
        cwd=cwd if isinstance(cwd, str) else None,
    )


def _read_address(client: Client, entry: Entry, raw: dict[str, Any], key: str) -> Entry:
    url = raw[key]
    scheme = urlsplit(url).scheme.lower() if isinstance(url, str) else ""
    if scheme not in ("http", "https", "ws", "wss") and not (isinstance(url, str) and url.startswith(("$", "{"))):
        raise Odd(f"its `{key}` is no http address")
    http = client.http
    words = [_WORDS.get(str(raw.get(name)).lower()) for name in _type_keys(http) if name in raw]
    transport = next((word for word in words if word is not None), None)
    if scheme in ("ws", "wss"):
        transport = "websocket"
    if transport is None and http is not None:
        transport = "sse" if key == http.old else http.bare
    headers = _inside(raw, (http.headers if http is not None else None) or "headers")
    return replace(
        entry,
        kind="http",
        url=url,
        headers=_texts(None if headers is MISSING else headers, "headers"),
        transport=transport or "http",
    )


def _texts(value: Any, key: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Odd(f"its `{key}` is no mapping")
    found = {}
    for name, one in value.items():
        if isinstance(one, dict | list):
            raise Odd(f"its `{key}` holds something else than texts")
        if one is not None:
            found[name] = _text(one)
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _address_keys(client: Client) -> tuple[str, ...]:
    known = client.http
    own = () if known is None else tuple(key for key in (known.url, known.old) if key is not None)
    return tuple(dict.fromkeys((*own, *_ADDRESSES)))


def _type_keys(http: Http | None) -> tuple[str, ...]:
    own = (http.type,) if http is not None and http.type is not None else ()
    return tuple(dict.fromkeys((*own, *_TYPES)))


def _inside(raw: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        if not isinstance(raw, dict) or key not in raw:
            return MISSING
        raw = raw[key]
    return raw


# --- writing


def _write_command(client: Client, entry: Entry, raw: dict[str, Any], was: Entry | None) -> dict[str, Any]:
    if was is None or was.kind != "stdio":
        dropped = (*_address_keys(client), *_type_keys(client.http), *OWN_AUTH)
        headers = ((client.http.headers if client.http is not None else None) or "headers").split(".")[0]
        raw = {key: value for key, value in raw.items() if key not in (*dropped, headers) or _odd_key(key, value)}
        key = client.http.type if client.http is not None and client.http.type is not None else "type"
        if client.stdio is not None:
            raw = {key: client.stdio, **raw}
        was = None
    keys = _KEYS.get(client.shape, _Keys())
    nested = raw.get(keys.command)
    if isinstance(nested, dict) and keys.args is not None:
        if was is None or was.command != entry.command:
            nested = {**nested, "path": entry.command}
        nested = _listed(nested, "args", entry.args, None if was is None else was.args)
        return {**raw, keys.command: _mapped(nested, "env", entry.env)}
    if keys.args is None:
        line = [entry.command, *entry.args]
        raw = raw if raw.get(keys.command) == line else {**raw, keys.command: line}
    else:
        if was is None or was.command != entry.command:
            raw = {**raw, keys.command: entry.command}
        raw = _listed(raw, keys.args, entry.args, None if was is None else was.args)
    raw = _mapped(raw, keys.env, entry.env)
    if entry.cwd is not None and (was is None or was.cwd != entry.cwd):
        raw = {**raw, "working_directory" if "working_directory" in raw else keys.cwd: entry.cwd}
    return raw


def _odd_key(key: str, value: Any) -> bool:
    """Whether a word like `transport` is used for something else than one."""
    return key in _TYPES and isinstance(value, dict)


def _write_address(client: Client, entry: Entry, raw: dict[str, Any], was: Entry | None) -> dict[str, Any]:
    http = client.http
    if http is None:
        raise Odd(f"{client.name} starts commands only and cannot call an address")
    if was is None or was.kind != "http":
        raw = {key: value for key, value in raw.items() if key not in (*_OF_COMMANDS, *_type_keys(http))}
        was = None
    moved = was is None or was.url != entry.url or was.transport != entry.transport
    if moved:
        raw = {key: value for key, value in raw.items() if key not in OWN_AUTH}
        if was is None or was.transport != entry.transport:
            raw = _typed(http, entry, raw)
        key = http.old if entry.transport == "sse" and http.old is not None else http.url
        there = next((one for one in _address_keys(client) if one in raw), None)
        if there is not None and there != key:
            raw = {key if name == there else name: value for name, value in raw.items()}
        raw = {**raw, key: entry.url}
    keys = (http.headers or "headers").split(".")
    if http.headers is None and entry.headers:
        raise Odd(f"{client.name} cannot send headers")
    inner = _inside(raw, ".".join(keys[:-1])) if len(keys) > 1 else raw
    made = _mapped(inner if isinstance(inner, dict) else {}, keys[-1], entry.headers)
    if len(keys) == 1:
        return made
    return raw if equal(made, inner) or (not made and inner is MISSING) else {**raw, keys[0]: made}


def _typed(http: Http, entry: Entry, raw: dict[str, Any]) -> dict[str, Any]:
    """An entry with the word for its transport, first where it is new."""
    word = http.word if entry.transport in ("http", "stdio") else "sse" if entry.transport == "sse" else "websocket"
    if http.word == "remote":
        word = "remote"
    if http.type is None:
        return {key: value for key, value in raw.items() if key not in _TYPES or isinstance(value, dict)}
    return {**raw, http.type: word} if http.type in raw else {http.type: word, **raw}


def _listed(raw: dict[str, Any], key: str, args: tuple[str, ...], was: tuple[str, ...] | None) -> dict[str, Any]:
    if was == args and (key in raw or not args):
        return raw
    return {**raw, key: list(args)} if args or key in raw else raw


def _mapped(raw: dict[str, Any], key: str, values: Mapping[str, str]) -> dict[str, Any]:
    """A raw value with a mapping of texts under a key; texts that were numbers stay what they were."""
    there = raw.get(key)
    if not isinstance(there, dict):
        return {**raw, key: dict(values)} if values else raw
    kept = {name: one for name, one in there.items() if one is None or (name in values and _text(one) == values[name])}
    made = {name: kept.get(name, values.get(name)) for name in there if name in kept or name in values}
    made.update({name: one for name, one in values.items() if name not in made})
    return raw if equal(made, there) else {**raw, key: made}
