"""A file becomes a checked `Config`, or a list of everything that is wrong with it; never half of one.

Five readings of one tree, all of which report: YAML (`source`), what this version does not do (`NOT_YET`), types and
names (the models), what must agree across sections, and policies. Reads the file and the files and variables it names;
writes nothing, prints nothing.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from pydantic import ValidationError

from aegis_daemon.config.describe import (
    SHAPE,
    Shape,
    describe_settings,
    digest,
    json_schema,
    masked,
    places,
    starter,
)
from aegis_daemon.config.schema import (
    NO_PLACEHOLDER,
    NOT_YET,
    OFF,
    PLACEHOLDERS,
    Config,
    NotYet,
    Policy,
    Queue,
    Secret,
    called,
    reveal,
    shown,
)
from aegis_daemon.config.source import (
    ConfigFaults,
    Fault,
    Node,
    Path,
    Source,
    dotted,
    read,
    read_bounded,
    read_file,
)
from aegis_daemon.core import extras
from aegis_daemon.core.units import UnitError, parse_duration, short_duration
from aegis_daemon.policy.dialect import MAX_BYTES as MAX_POLICY_BYTES
from aegis_daemon.policy.dialect import MAX_STATEMENTS, PolicyError, PolicyFault, Statement
from aegis_daemon.policy.dialect import read as read_policies
from aegis_daemon.policy.entities import OWN as OWN_ATTRIBUTES
from aegis_daemon.policy.transforms import Transform

__all__ = [
    "Config",
    "ConfigFaults",
    "Fault",
    "Loaded",
    "Secret",
    "describe_settings",
    "digest",
    "json_schema",
    "load",
    "loads",
    "masked",
    "reveal",
    "starter",
]

SAME: Final = 5
"""In so many places a warning is told of each."""
SECRET_MAX_BYTES: Final = 64 * 1024
_PLACEHOLDER = re.compile(r"(\$?)\$\{(env|file):([^{}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REGEX_LIKE = re.compile(r"^\^|\$$|[\\|()+]|\{.*,.*\}")
_COMPARISONS: Final = 20_000  # near names are looked for up to here; the first faults are those that are read


class Loaded(msgspec.Struct, frozen=True):
    """A configuration that can be used, and what in it has no effect or another one than it seems to have."""

    config: Config
    warnings: tuple[Fault, ...]
    path: str
    """The file, absolute; empty if there is none."""
    name: str = ""
    """What faults call it."""
    places: Mapping[str, tuple[int, int]] = {}
    """Where rules on arguments stand, by what they are called: line and column from 1."""


def load(path: str, env: Mapping[str, str] | None = None, *, optional: bool = False) -> Loaded:
    """The configuration in the file at `path`.

    :param env: where `${env:NAME}` looks; the process's own environment if None.
    :param optional: whether a missing file is an empty configuration, which denies everything, with one warning.
    :raises ConfigFaults: with everything that is wrong: the file, its YAML, its values, its references.
    """
    try:
        data = read_file(path)
    except ConfigFaults as faults:
        if optional and not os.path.lexists(path):
            hint = "make one with `aegis config init`"
            return Loaded(Config(), (Fault(path, 0, 0, "", "no such file, so everything is denied", hint),), "")
        raise faults from None
    full = os.path.abspath(path)
    loaded = loads(data, path, base=os.path.dirname(full), env=env)
    warnings = loaded.warnings
    if stat.S_IMODE(os.stat(full).st_mode) & stat.S_IWOTH:
        open_file = Fault(path, 0, 0, "", "every user of this machine can change the rules", f"run `chmod o-w {path}`")
        warnings = (open_file, *warnings)
    elif stat.S_IMODE(os.stat(full).st_mode) & _strangers(full) and _TOKEN.search(data):
        text = "every user of this machine may be able to read the tokens in it"
        warnings = (Fault(path, 0, 0, "", text, f"run `chmod 600 {path}`, or write `${{env:NAME}}`"), *warnings)
    return msgspec.structs.replace(loaded, warnings=warnings, path=full)


def _folded(warnings: list[Fault]) -> Iterator[Fault]:
    """What is the same in many places is said of the first: two hundred backends must not bury the one that matters."""
    places = Counter((one.message, one.hint) for one in warnings)
    for one in warnings:
        count = places[one.message, one.hint]
        if 0 < count <= SAME:
            yield one
        elif count:
            yield msgspec.structs.replace(one, message=f"{one.message} (here and in {count - 1} more places)")
            places[one.message, one.hint] = 0


def _strangers(path: str) -> int:
    """The bits of a mode by which others than those whom a file is for may read it.

    The isolated tier's is root's, and for its group, which has the daemon alone.
    """
    found = os.stat(path)
    daemons = found.st_uid == 0 and found.st_gid == os.getegid() != 0
    return stat.S_IROTH if daemons else stat.S_IRGRP | stat.S_IROTH


def loads(data: bytes | str, name: str, *, base: str = "/", env: Mapping[str, str] | None = None) -> Loaded:
    """The configuration in a text.

    :param name: what faults call the file.
    :param base: the absolute directory from which relative paths count.
    :raises ConfigFaults: as `load` does.
    """
    source = read(data, name)
    root = source.root
    if root is not None and root.value is not None and not isinstance(root.value, dict):
        what = "a list" if isinstance(root.value, list) else "one value"
        source.fault(root.line, root.column, (), f"the file holds {what}, not settings", "write `name: value` lines")
    config, warnings = None, []
    places: dict[str, tuple[int, int]] = {}
    if root is not None and isinstance(root.value, dict):
        reading = Reading(source, base, os.environ if env is None else env)
        config, warnings = reading.config(), reading.warnings
        places = reading.places(config)
    if source.faults:
        raise ConfigFaults(source.told())
    return Loaded(
        config or Config(),
        tuple(_folded(sorted(dict.fromkeys(warnings), key=lambda one: (one.line, one.column)))),
        "",
        name,
        places,
    )


class Reading:
    """One tree on its way to a `Config`; every step notes its faults in `source` and goes on."""

    def __init__(self, source: Source, base: str, env: Mapping[str, str]) -> None:
        self.source = source
        self.base = base
        self.env = env
        self.warnings: list[Fault] = []
        self._built: dict[int, Any] = {}
        self._looked: set[tuple[str, str]] = set()
        self._standin = Secret("x" * 32)
        """in place of what a placeholder does not find"""
        self._data: dict[str, Any] = {}
        self._text_at: tuple[int, int] | None = None
        self._comparisons = _COMPARISONS

    def config(self) -> Config | None:
        assert self.source.root is not None
        data = self._data = self._values(self.source.root, ())
        self._not_yet(data)
        self._nulls(data, SHAPE, ())
        try:
            config = Config.model_validate(data, by_alias=True, by_name=False)
        except ValidationError as error:
            config = None
            for one in error.errors(include_url=False):
                self._invalid(one)
        self._cross(data)
        if config is None:
            return None
        policy = self._policies(config.policy)
        if self.source.faults:
            return None
        return self._absolute(config.model_copy(update={"policy": policy}).knowing(self._looked))

    def places(self, config: Config | None) -> dict[str, tuple[int, int]]:
        """See `Loaded`."""
        found = {}
        for tool, constraint in config.constraints.items() if config is not None else ():
            paths = [("arguments", name) for name in constraint.arguments]
            paths += [("budgets", name) for name in constraint.budgets]
            for rest in (*paths, ("operations",)):
                line, column = self.source.at(("constraints", tool, *rest), key=True)
                found[".".join(("constraints", tool, *rest))] = (line + 1, column + 1)
        return found

    # noting

    def _fault(self, path: Path, message: str, hint: str, *, key: bool = False) -> None:
        self.source.fault(*self.source.at(path, key=key), path, message, hint)

    def _warn(self, path: Path, message: str, hint: str, *, key: bool = True) -> None:
        self.warnings.append(self.source.make(*self.source.at(path, key=key), path, message, hint))

    def _nearest(self, word: str, known: list[str]) -> str | None:
        if self._comparisons < len(known) or len(word) > 80:
            return None
        self._comparisons -= len(known)
        plain = {_plain(name): name for name in known if abs(len(name) - len(word)) < 12}
        found = difflib.get_close_matches(_plain(word), plain, 1, 0.6)
        return plain[found[0]] if found else None

    # 1: plain values, placeholders replaced

    def _values(self, node: Node, path: Path) -> Any:
        value = node.value
        if isinstance(value, str):
            return self._replaced(value, path) if "${" in value else value
        if not isinstance(value, dict | list):
            return value
        built = self._built.get(id(value))  # aliases share what they mean
        if built is None:
            if isinstance(value, dict):
                built = {key: self._values(entry[2], (*path, key)) for key, entry in value.items()}
            else:
                built = [self._values(item, (*path, index)) for index, item in enumerate(value)]
            self._built[id(value)] = built
        return built

    def _replaced(self, text: str, path: Path) -> str | Secret:
        found = list(_PLACEHOLDER.finditer(text))
        parts, end, secret = [], 0, False
        for match in found:
            parts.append(text[end : match.start()])
            end = match.end()
            if match[1]:  # `$${env:X}` is the text `${env:X}`
                parts.append(match[0][1:])
                continue
            secret = True
            try:
                parts.append(self._looked_up(match[2], match[3], closed=bool(match[4])))
                self._looked.add((f"{match[2]}:{match[3]}", parts[-1]))
            except _NotFoundError as error:
                self._fault(path, error.message, error.hint)
                return self._standin
        whole = "".join([*parts, text[end:]])
        return Secret(whole) if secret else whole

    def _looked_up(self, kind: str, name: str, *, closed: bool) -> str:
        if not closed:
            raise _NotFoundError(f"`${{{kind}:` has no `}}`", f"write it like `${{{kind}:NAME}}`")
        if kind == "env":
            if not _VARIABLE.fullmatch(name):
                raise _NotFoundError(f"`{name[:60]}` is not a variable's name", "write it like `${env:API_KEY}`")
            if name not in self.env:
                hint = "set it where the daemon starts, or use `${file:PATH}`"
                raise _NotFoundError(f"the environment variable `{name}` is not set", hint)
            return self.env[name]
        try:
            data = read_bounded(self._path(name), SECRET_MAX_BYTES) if name.strip() else None
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).lower()
            raise _NotFoundError(f"cannot read `{name}`: {reason}", "check the path and who may read it") from None
        if data is None:
            raise _NotFoundError(
                f"`{name}` holds more than 64 KiB" if name.strip() else "`${file:}` names no file",
                "name a file that holds the secret alone",
            )
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise _NotFoundError(f"`{name}` is not utf-8 text", "store the secret as text") from None
        if "\0" in text:
            raise _NotFoundError(f"`{name}` holds a NUL", "store the secret as text")
        return text.removesuffix("\n").removesuffix("\r")

    def _path(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.base, os.path.expanduser(path)))

    # 2: known, and not done by this version

    def _not_yet(self, data: dict[str, Any]) -> None:
        for row in NOT_YET:
            for path, value in _matches(data, row.path):
                if value in _NO_EFFECT or (isinstance(value, Secret) and not value):
                    pass
                elif row.refused:
                    self._fault(path, row.message, row.hint, key=True)
                else:
                    self._warn(path, row.message, row.hint)
            if row.refused:
                _remove(data, row)

    # 3: keys without a value

    def _nulls(self, data: Any, shape: Shape, path: Path) -> None:
        if shape.kind == "value" or not isinstance(data, dict):
            return
        for key, value in list(data.items()):
            below = shape.item if shape.kind == "table" else shape.keys.get(key)
            here = (*path, key)
            if below is None:
                continue
            if value is not None:
                self._nulls(value, below, here)
            elif here == ("allow",):
                hint = "list the tools that may be called, or remove `allow`"
                self._fault(here, "`allow` is empty, which could mean all tools or none", hint, key=True)
                del data[key]
            elif below.kind == "value" or any(one.required for one in below.keys.values()):
                hint = (
                    "write `[]` for none, or remove the key" if "list" in below.type else "add one, or remove the key"
                )
                self._fault(here, f"`{key}` has no value", hint, key=True)
                del data[key]
            else:
                data[key] = {}  # a section whose lines are all commented out

    # 4: what the models say

    def _invalid(self, error: Any) -> None:
        path: Path = tuple(error["loc"])
        kind, value = error["type"], error["input"]
        name = str(path[-1]) if path else ""
        at_key = name == "[key]"
        if at_key:
            path = path[:-1]
        if kind == "missing":
            if self.source.complete:
                self._fault(path, f"`{name}` is missing", f"add `{name}`")
            return
        if kind == "extra_forbidden":
            self._fault(path, f"unknown key `{name}`", self._unknown_hint(path, name), key=True)
            self.source.hide_from(*self.source.at(path, key=True))
            return
        context = error.get("ctx") or {}
        if isinstance(value, Secret) and kind != "aegis":
            message, hint = NO_PLACEHOLDER, PLACEHOLDERS
        elif kind == "aegis":
            message, hint = context["message"], context["hint"]
            if value is self._standin and message != NO_PLACEHOLDER:
                return  # what is wrong with it was said
        else:
            message, hint = self._builtin(kind, value, context)
        self._fault(path, message, hint, key=at_key)

    def _builtin(self, kind: str, value: object, context: Mapping[str, Any]) -> tuple[str, str]:
        what = shown(value)
        if kind == "literal_error":
            known = re.findall(r"'([^']+)'", str(context.get("expected")))
            near = self._nearest(value, known) if isinstance(value, str) else None
            choices = ", ".join(f"`{one}`" for one in known)
            return f"{what} is none of {choices}", f"did you mean `{near}`?" if near else "write one of them"
        if kind == "bool_type":
            better = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(str(value).lower())
            return f"{what} is neither true nor false", f"write `{better}`" if better else "write `true` or `false`"
        if kind in ("int_type", "int_parsing", "int_from_float"):
            return f"{what} is not a whole number", "write digits alone, without quotes"
        if kind == "greater_than_equal":
            return f"{what} is too small", f"write {context['ge']} or more"
        if kind == "less_than_equal":
            return f"{what} is too large", f"write {context['le']} or less"
        if kind == "string_type":
            return f"{what} is not a text", "put it in quotes"
        if kind == "tuple_type":
            hint = f"write `[{value}]`" if isinstance(value, str) and len(value) < 60 else "write it like `[one, two]`"
            return f"{what} is not a list", hint
        if kind in ("dict_type", "model_type", "model_attributes_type"):
            # a value in a section's place may be anything, a misplaced secret too: it is not repeated
            found = what if isinstance(value, list | bool) or value is None else "a single value"
            return f"{found} where settings belong", "write `name: value` lines below the key, indented"
        return str(context.get("error") or kind).replace("_", " "), "see `aegis config schema`"

    def _unknown_hint(self, path: Path, name: str) -> str:
        shape = SHAPE.below(path[:-1])
        known = list(shape.keys) if shape is not None else []
        near = self._nearest(name, known)
        elsewhere = places(name)
        if elsewhere and not (near and _plain(near) == _plain(name)):
            return f"it belongs to `{elsewhere[0].rpartition('.')[0] or 'the top of the file'}`"
        if near:
            return f"did you mean `{near}`?"
        return f"known here: {', '.join(f'`{one}`' for one in known)}"

    # 5: what must agree across sections

    def _cross(self, data: dict[str, Any]) -> None:
        backends = _table(data, "backends")
        for name, backend in _sections(backends):
            self._backend(("backends", name), backend)
        for name, queue in _sections(_table(data, "queue")):
            self._known_backend(("queue", name), name, backends)
            self._queue(("queue", name), queue)
        tokens: dict[str, str] = {}
        for name, agent in _sections(_table(data, "agents")):
            self._agent(("agents", name), agent, backends, tokens)
        for section in ("deny", "allow"):
            rules = data.get(section)
            if isinstance(rules, dict):
                self._globs((section,), rules, ("tools",))

        self._proofs(data, backends)
        self._opened(data)
        for tool, transform in _sections(_table(data, "transforms")):
            self._redacted_budgets(tool, transform, _table(_table(data, "constraints"), tool))
        for tool, constraint in _sections(_table(data, "constraints")):
            if constraint.get("operations") and not constraint.get("dialect"):
                message = "no `dialect` is named, so the SQL has to pass as postgres, mysql, sqlite and tsql"
                self._warn(("constraints", tool, "operations"), message, "add `dialect`, as the database reads it")

    def _proofs(self, data: dict[str, Any], backends: Mapping[str, Any]) -> None:
        written, agents = data.get("proof"), _table(data, "agents")
        for index, asked in enumerate(written if isinstance(written, list) else ()):
            if not isinstance(asked, dict) or not self.source.complete:
                continue
            agent, call = asked.get("agent"), asked.get("call")
            if isinstance(agent, str) and agent not in agents:
                near = self._nearest(agent, [one for one in agents if isinstance(one, str)])
                hint = f"did you mean `{near}`?" if near else "agents that nobody knows are tried without being named"
                self._fault(("proof", index, "agent"), f"unknown agent `{agent}`", hint)
            if isinstance(call, str) and "." in call and called(call, backends) is None:
                word = call.partition(".")[0]
                near = self._nearest(word, [one for one in backends if isinstance(one, str)])
                hint = f"did you mean `{near}.{call.partition('.')[2]}`?" if near else "write it as `backend.tool`"
                self._fault(("proof", index, "call"), f"unknown backend `{word}`", hint)

    def _redacted_budgets(self, tool: str, transform: Mapping[str, Any], constraint: Mapping[str, Any]) -> None:
        """What a budget counts is read from the log after a restart, so it has to be there."""
        paths = transform.get("redact")
        for index, path in enumerate(paths if isinstance(paths, list) else ()):
            for name in _table(constraint, "budgets"):
                try:
                    logged = Transform(tool, (path,)).logged({name: 1})
                except Exception:  # noqa: S112  reported by the models
                    continue
                if logged != {name: 1}:
                    message = f"a budget counts the argument `{name}`, which would be missing in the log"
                    self._fault(("transforms", tool, "redact", index), message, "remove the path, or the budget")

    def _opened(self, data: dict[str, Any]) -> None:
        """What is open to whom, where that is probably not what is meant."""
        server, agents = _table(data, "server"), dict(_sections(_table(data, "agents")))
        listen = server.get("listen")
        token, reads = server.get("api_token"), server.get("read_token")
        if isinstance(listen, str) and listen != OFF and listen.rpartition(":")[0].strip("[]") not in _LOOPBACK:
            here = ("server", "listen")
            bare = [name for name, agent in agents.items() if not (agent.get("auth_token") or agent.get("identities"))]
            if bare:
                more = f" (or {len(bare) - 1} more)" if len(bare) > 1 else ""
                message = f"other machines reach this address, and may pass for the agent `{bare[0]}`{more}"
                self._warn(here, message, "give each agent an `auth_token`, or listen at `127.0.0.1`")
            if not token:
                message = "other machines reach this address, and the API has no token, so only this machine may use it"
                self._warn(here, message, "set `server.api_token`, or listen at `127.0.0.1`")
        tokens: dict[tuple[str, ...], Any] = {("server", key): server.get(key) for key in ("api_token", "read_token")}
        tokens |= {("agents", name, "auth_token"): agent.get("auth_token") for name, agent in agents.items()}
        for place, said in tokens.items():
            if isinstance(said, str | Secret) and _SAMPLE.search(reveal(said)):
                self._warn(place, "everybody knows this token: it stands in examples", "write one that nobody guesses")
        for name, backend in _sections(_table(data, "backends")):
            url = backend.get("url")
            host = _open_host(url) if isinstance(url, str) else ""
            if host:
                message = f"what goes to `{host}` and comes from it is not encrypted on its way"
                self._warn(("backends", name, "url"), message, "use `https` (or `wss`)", key=False)
        for path, extra in _wanting(data):
            message = f"it needs {extras.LIBRARIES[extra]}, which is not installed"
            self._warn(path, message, extras.advice(extra))
        for path, url, what in _carried(data):
            host = _plain_host(url)
            if host:
                message = f"the {what} goes to `{host}` unencrypted, and whoever is on the way can read it"
                self._warn(path, message, "use `https`", key=False)
        if server.get("insecure_open_api") is True and not token and not reads:
            message = "whoever reaches the API may decide approvals"
            self._warn(("server", "insecure_open_api"), message, "set `server.api_token` instead")
        approval = _table(data, "approval")
        if approval.get("get_decides") is True:
            message = "whatever opens a link decides, the previews of chats and mail programs included"
            self._warn(("approval", "get_decides"), message, "remove it; the page asks for one more click")
        linked = ("feishu", "generic", "slack", "discord", "teams")
        webhooks = [_table(approval, name).get("webhook_url") for name in linked]
        for name, key, needs in _CHANNEL_NEEDS:
            section = _table(approval, name)
            if section.get(key) and not section.get(needs) and self.source.complete:
                message = f"`{key}` without `{needs}` does nothing"
                self._fault(("approval", name, key), message, f"add `{needs}`, or remove `{key}`", key=True)
        if _table(approval, "desktop").get("buttons") is True:
            message = "whatever program reaches the desktop can press Approve, an agent's shell included"
            self._warn(("approval", "desktop", "buttons"), message, "leave it out where agents run as the same user")
        if any(webhooks) and not approval.get("callback_base_url") and self.source.complete:
            message = "links in messages lead to this machine alone, since `callback_base_url` is not set"
            self._warn(("approval",), message, "set it to the address by which people reach this daemon")

    def _known_backend(self, path: Path, name: str, backends: Mapping[str, Any]) -> None:
        if name in backends or not self.source.complete:
            return
        near = self._nearest(name, [one for one in backends if isinstance(one, str)])
        hint = f"did you mean `{near}`?" if near else f"add `{name}` under `backends`"
        self._fault(path, f"unknown backend `{name}`", hint, key=True)

    def _backend(self, path: Path, backend: Mapping[str, Any]) -> None:
        has = backend.keys()
        if "url" in has and "command" in has:
            both = max(("url", "command"), key=lambda key: self.source.at((*path, key), key=True))
            self._fault((*path, both), "a backend has a `url` or a `command`, not both", "remove one", key=True)
        elif "url" in has:
            for key in ("args", "env", "cwd"):
                if backend.get(key):
                    self._fault(
                        (*path, key), f"`{key}` is for a program, and this backend has a `url`", "remove it", key=True
                    )
        else:
            for key in ("headers", "transport", "health_url"):
                if key in has:
                    self._fault(
                        (*path, key), f"`{key}` is for a `url`, which this backend lacks", "remove it", key=True
                    )
            if backend.get("args") and "command" not in has and self.source.complete:
                self._fault((*path, "args"), "`args` without a `command`", "add the `command`", key=True)
        if isinstance(backend.get("tools_idempotent"), list):
            self._globs(path, backend, ("tools_idempotent",))

    def _queue(self, path: Path, queue: Mapping[str, Any]) -> None:
        low, high = _seconds(queue, "delay_min", Queue), _seconds(queue, "delay_max", Queue)
        if low is not None and high is not None and low > high and queue.keys() & {"delay_min", "delay_max"}:
            key = "delay_min" if "delay_min" in queue else "delay_max"
            other = "delay_max" if key == "delay_min" else "delay_min"
            default = "" if other in queue else ", its default"
            values = {"delay_min": short_duration(low), "delay_max": short_duration(high)}
            relation = "longer" if key == "delay_min" else "shorter"
            message = f"`{key}` of {values[key]} is {relation} than `{other}` ({values[other]}{default})"
            if self.source.complete or other in queue:
                self._fault((*path, key), message, f"set `{other}` too" if default else "swap or change them")
        if "enabled" not in queue and queue.keys() & {"delay_min", "delay_max", "max_pending", "bypass_tools"}:
            message = "the lane is off, since `enabled` is not set"
            self._warn(path, message, "add `enabled: true`, or `enabled: false` if that is meant")
        self._globs(path, queue, ("bypass_tools",))

    def _agent(self, path: Path, agent: Mapping[str, Any], backends: Mapping[str, Any], tokens: dict[str, str]) -> None:
        tenant = agent.get("tenant", "default")
        if isinstance(tenant, str) and tenant != "default":
            message = "tenants are not kept apart by this version: limits, approvals and the log are shared"
            self._fault((*path, "tenant"), message, "remove `tenant`, or run one daemon for each tenant")
        for name in _table(agent, "attributes"):
            if name in OWN_ATTRIBUTES:
                message = f"`{name}` is what every agent has for itself in policies"
                self._fault((*path, "attributes", name), message, "call the attribute something else", key=True)
        token = agent.get("auth_token")
        if isinstance(token, str | Secret) and reveal(token):
            first = tokens.setdefault(reveal(token), str(path[-1]))
            if first != path[-1]:
                message = f"the token is that of the agent `{first}` too, so either can pass for the other"
                self._warn((*path, "auth_token"), message, "give each agent its own")
        for name, access in _sections(_table(agent, "backends")):
            here = (*path, "backends", name)
            self._known_backend(here, name, backends)
            if "allowed" not in access and self.source.complete:
                message = "everything here is refused, since `allowed` is not set"
                self._warn(here, message, "add `allowed: true`, or `allowed: false` if that is meant")
            self._globs(
                here,
                access,
                ("tool_allowlist", "tool_denylist", "prompt_allowlist", "prompt_denylist", "approval_required"),
            )

    def _globs(self, path: Path, section: Mapping[str, Any], keys: tuple[str, ...]) -> None:
        for key in keys:
            names = section.get(key)
            for index, name in enumerate(names if isinstance(names, list) else ()):
                if isinstance(name, str) and _REGEX_LIKE.search(name):
                    message = f"`{name[:60]}` looks like a regular expression, and is matched as a glob"
                    self._warn((*path, key, index), message, "use `*` and `?`, as in `delete_*`")

    # 6: the policies

    def _policies(self, policy: Policy) -> Policy:
        texts: list[tuple[Path, str, str]] = []
        files = []
        for index, named in enumerate(policy.files):
            here = ("policy", "files", index)
            files.append(self._path(named))
            text = self._policy_file(here, named, files[-1])
            if text is not None:
                texts.append((here, named, text))
        if policy.text is not None:
            texts.append((("policy", "text"), "policy.text", policy.text))
        found: dict[str, Statement] = {}
        for path, name, text in texts:
            try:
                statements = read_policies(text, name)
            except PolicyError as error:
                for one in error.faults:
                    self._in_policy(self.source.faults, path, text, one)
                continue
            for statement in statements:
                if path == ("policy", "text"):
                    statement = self._placed(statement)
                if statement.id in found:
                    message = f"the policy `{statement.id}` of {statement.place} is at {found[statement.id].place} too"
                    self._fault(path, message, "give each policy an `@id` of its own")
                found[statement.id] = statement
                self._strangers(path, text, name, statement)
        if len(found) > MAX_STATEMENTS:
            self._fault(("policy",), f"there are more than {MAX_STATEMENTS} policies", "merge some of them", key=True)
        return policy.holding(tuple(found.values()), tuple(files))

    def _placed(self, statement: Statement) -> Statement:
        """With its places in the file that holds it, as `Source.within` tells them."""
        path: Path = ("policy", "text")
        if self._text_at is None:
            self._text_at = self.source.within(path, 0, 0)
        line, column = self._text_at
        if self._text_at == self.source.at(path):
            spots = tuple((name, line + 1, column + 1) for name, *_ in statement.spots)
        else:
            spots = tuple((name, line + below, column + along) for name, below, along in statement.spots)
        return msgspec.structs.replace(statement, file=self.source.name, spots=spots)

    def _policy_file(self, here: Path, named: str, path: str) -> str | None:
        try:
            data = read_bounded(path, MAX_POLICY_BYTES)
            text = data.decode("utf-8") if data is not None else None
        except (OSError, ValueError) as error:
            reason = "not utf-8 text" if isinstance(error, UnicodeDecodeError) else None
            reason = reason or (getattr(error, "strerror", None) or str(error)).lower()
            self._fault(here, f"cannot read `{named}`: {reason}", "check the path and who may read it")
            return None
        if text is None:
            self._fault(here, f"`{named}` holds more than 4 MiB", "split it")
        return text

    def _in_policy(self, noted: list[Fault], path: Path, text: str, one: PolicyFault) -> None:
        where = dotted(path)
        if path == ("policy", "text"):
            made = self.source.make(
                *self.source.within(path, one.line - 1, one.column - 1), path, one.message, one.hint
            )
        else:
            line = (text.split("\n")[one.line - 1 : one.line] or [""])[0].rstrip("\r")
            made = Fault(one.file, one.line, one.column, where, one.message, one.hint, line if len(line) < 300 else "")
        noted.append(made)

    def _strangers(self, path: Path, text: str, name: str, statement: Statement) -> None:
        """What a policy names and the file does not: it may be meant for another house, so that is no fault."""
        data = self._data
        agents = dict(_sections(_table(data, "agents")))
        roles = {role for agent in agents.values() for role in _texts(agent.get("roles"))}
        known = {"Server": set(_table(data, "backends")), "Agent": set(agents), "Role": roles}
        for kind, id, line, column in statement.named:
            names = known.get(kind)
            if names is None or id in names:
                continue
            near = self._nearest(id, sorted(names))
            what = {"Server": "backend", "Agent": "agent", "Role": "agent with the role"}[kind]
            hint = f"did you mean `{near}`?" if near else "it can stay if it is meant for another place"
            fault = PolicyFault(name, line, column, f"there is no {what} `{id}`, so this policy applies to none", hint)
            self._in_policy(self.warnings, path, text, fault)

    # 7: paths count from the file

    def _absolute(self, config: Config) -> Config:
        backends = {}
        for name, backend in config.backends.items():
            update: dict[str, Any] = {}
            if backend.cwd is not None:
                update["cwd"] = self._path(backend.cwd)
            if backend.command is not None and ("/" in backend.command):
                update["command"] = self._path(backend.command)
            backends[name] = backend.model_copy(update=update) if update else backend
        changed: dict[str, Any] = {"backends": backends} if backends else {}
        audit: dict[str, Any] = {}
        if config.audit.db_path is not None:
            audit["db_path"] = self._path(config.audit.db_path)
        if config.audit.exports:
            audit["exports"] = {
                name: export.model_copy(
                    update={
                        key: self._path(getattr(export, key))
                        for key in ("path", "ca_file")
                        if getattr(export, key) is not None
                    }
                )
                for name, export in config.audit.exports.items()
            }
        if config.audit.key_file is not None:
            audit["key_file"] = self._path(config.audit.key_file)
        if config.audit.witnesses:
            audit["witnesses"] = {
                name: witness.model_copy(
                    update={
                        key: self._path(getattr(witness, key))
                        for key in ("path", "ca_file")
                        if getattr(witness, key) is not None
                    }
                )
                for name, witness in config.audit.witnesses.items()
            }
        if audit:
            changed["audit"] = config.audit.model_copy(update=audit)
        otlp = config.telemetry.otlp
        if otlp is not None and otlp.ca_file is not None:
            trusting = otlp.model_copy(update={"ca_file": self._path(otlp.ca_file)})
            changed["telemetry"] = config.telemetry.model_copy(update={"otlp": trusting})
        return config.model_copy(update=changed) if changed else config


class _NotFoundError(Exception):
    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


_TOKEN: Final = re.compile(rb"""^[^#\n]*(?:_token|secret)["']?\s*:\s*(?!["']?\$\{)\S""", re.MULTILINE)
_SAMPLE: Final = re.compile(r"(?:change|replace)[-_. ]?(?:me|this)|placeholder|\byour[-_. ]", re.IGNORECASE)
"""What a token looks like that was left as somebody's example has it."""
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def _wanting(data: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Exports and witnesses whose library is not installed: the place in the file, and the extra that brings it."""
    audit = _table(data, "audit")
    for kind in ("exports", "witnesses"):
        for name, section in _sections(_table(audit, kind)):
            lake = section.get("type") == "security_lake"
            bucket = section.get("type") == "s3" or (lake and section.get("bucket") is not None)
            for extra, wanted in (("parquet", lake), ("s3", bucket)):
                if wanted and extras.missing(extra):
                    yield ("audit", kind, name), extra


def _carried(data: Mapping[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """Where secrets go with every request: the URL, its place in the file, and what goes there."""
    audit, telemetry = _table(data, "audit"), _table(data, "telemetry")
    for kind in ("exports", "witnesses"):
        for name, section in _sections(_table(audit, kind)):
            for key, secret in (("url", "token"), ("endpoint", "session_token")):
                if section.get(secret) and isinstance(section.get(key), str):
                    yield ("audit", kind, name, key), section[key], f"`{secret}`"
    otlp = _table(telemetry, "otlp")
    if _table(otlp, "headers") and isinstance(otlp.get("endpoint"), str):
        yield ("telemetry", "otlp", "endpoint"), otlp["endpoint"], "text of `headers`"


def _plain_host(url: str) -> str:
    """The host of a plain URL that is not this machine; else ""."""
    if not url.lower().startswith("http://"):
        return ""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # which is a fault of its own
        return ""
    try:
        return "" if ip_address(host).is_loopback else host
    except ValueError:
        return "" if host == "localhost" or host.endswith(".localhost") else host


def _open_host(url: str) -> str:
    """The host of a plain URL that lies beyond this machine and its own network, as far as the name tells; else ""."""
    if not url.lower().startswith(("http://", "ws://")):
        return ""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # which is a fault of its own
        return ""
    try:
        return host if ip_address(host).is_global else ""
    except ValueError:  # a name: those without a dot are of a network of one's own, as containers have it
        own = "." not in host or host.endswith((".localhost", ".local", ".internal", ".lan", ".home.arpa"))
        return "" if own else host


_CHANNEL_NEEDS: Final = (
    ("telegram", "bot_token", "chat_id"),
    ("telegram", "chat_id", "bot_token"),
    ("telegram", "approvers", "bot_token"),
    ("ntfy", "reply_topic_url", "topic_url"),
    ("slack", "bot_token", "channel"),
    ("slack", "channel", "bot_token"),
    ("slack", "app_token", "bot_token"),
    ("slack", "signing_secret", "bot_token"),
    ("desktop", "buttons", "enabled"),
)
"""Of a channel's section: a key, and the one without which it does nothing."""
_NO_EFFECT: Final[tuple[Any, ...]] = (None, "", False, [], {})


def _plain(name: str) -> str:
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().replace("-", "_")


def _matches(data: Any, pattern: tuple[str, ...], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if not pattern:
        yield path, data
    elif isinstance(data, dict):
        keys = list(data) if pattern[0] == "*" else [pattern[0]] if pattern[0] in data else []
        for key in keys:
            yield from _matches(data[key], pattern[1:], (*path, key))
    elif pattern == ("*",) and data is not None:
        yield path, data  # a list or a text where a table was meant: no less unenforced for that


def _remove(data: dict[str, Any], row: NotYet) -> None:
    path = row.path[:-1] if row.path[-1] == "*" else row.path
    for _, section in list(_matches(data, path[:-1])):
        if isinstance(section, dict):
            section.pop(path[-1], None)


def _table(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _texts(found: object) -> list[str]:
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _sections(table: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, section in table.items():
        yield name, section if isinstance(section, dict) else {}


def _seconds(section: Mapping[str, Any], key: str, model: type[Queue]) -> float | None:
    if key not in section:
        return float(model.model_fields[key].default)
    try:
        return parse_duration(section[key])
    except UnitError:
        return None  # reported by the models
