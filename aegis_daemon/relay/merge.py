"""What several servers say, said as one: names, cursors, lists, capabilities, subscriptions, and where a URI leads.

Pure: nothing here knows a session, a clock or a key of its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from aegis_daemon.core.templates import fits, literals
from aegis_daemon.wire.jsonrpc import Answer, WireFault, encode, parse_from_server, read, result_frame
from aegis_daemon.wire.methods import LEGACY_VERSIONS, MODERN_VERSION

SEPARATOR: Final = "__"
KINDS: Final = ("tools", "prompts", "resources")
"""The capabilities that have a list, and a notification that it changed."""
META_SERVER: Final = "io.modelcontextprotocol/serverInfo"
META_TASK: Final = "io.modelcontextprotocol/related-task"
LONGEST_CURSOR: Final = 8192
"""Characters of a server's cursor that are kept; a list whose cursor is longer ends there."""
LONGEST_INSTRUCTIONS: Final = 1 << 16
"""Characters of all servers' instructions together; those that do not fit are left out whole."""
URIS: Final = 8192
"""URIs that a session remembers the backend of."""
LONGEST_URI: Final = 1024
TEMPLATES: Final = 256
"""Templates of one backend that are remembered."""
_DEEP = 8

# --- names ------------------------------------------------------------------------------------------------------------


class Names:
    """`backend__own` for the names of every backend, found again by the table of prefixes and never by splitting.

    One backend's prefix can begin with another's (`a` and `a_`: `a___b`): the longest one has the name, and what the
    other calls so has none, rather than one that leads elsewhere.
    """

    __slots__ = ("_prefixes", "backends")

    def __init__(self, backends: Iterable[str]) -> None:
        self.backends = frozenset(backends)
        prefixes = [(f"{backend}{SEPARATOR}", backend) for backend in self.backends]
        self._prefixes = tuple(sorted(prefixes, key=lambda row: -len(row[0])))

    def find(self, name: str) -> tuple[str, str] | None:
        """The backend of a name and what it is called there; None where no backend has such names."""
        for prefix, backend in self._prefixes:
            if name.startswith(prefix):
                return (backend, name[len(prefix) :]) if len(name) > len(prefix) else None
        return None

    def of(self, backend: str, own: str) -> str | None:
        """The name of what a backend calls `own`; None where that would be found at another."""
        name = self.known(backend, own)
        return name if self.find(name) == (backend, own) else None

    def known(self, backend: str, own: str) -> str:
        """The same, whether it leads back or not."""
        return f"{backend}{SEPARATOR}{own}"


# --- cursors ----------------------------------------------------------------------------------------------------------


class Forged(Exception):
    """A cursor that is none of ours, or not for this list."""


class Cursors:
    """Cursors of merged lists: how far every backend's list has been read, sealed (HMAC-SHA256, RFC 2104).

    `owner` is whose they are: another's cursor is a forged one, as is one of another list.
    """

    __slots__ = ("_key", "_owner")

    def __init__(self, key: bytes, owner: str) -> None:
        self._key = key
        self._owner = owner

    def seal(self, method: str, places: Mapping[str, str | None]) -> str:
        """Backend → its own cursor, None for its first page; only backends that have more."""
        body = encode(list(places.items()))
        return base64.urlsafe_b64encode(self._tag(method, body) + body).decode()

    def open(self, method: str, cursor: object) -> dict[str, str | None]:
        """The places again. Raises `Forged`."""
        try:
            raw = base64.b64decode(cursor, b"-_", validate=True)  # type: ignore[arg-type]
        except (TypeError, ValueError, binascii.Error):
            raise Forged from None
        tag, body = raw[:_TAG], raw[_TAG:]
        if not hmac.compare_digest(tag, self._tag(method, body)):
            raise Forged
        return dict(msgspec.json.decode(body, type=list[tuple[str, str | None]]))

    def _tag(self, method: str, body: bytes) -> bytes:
        said = encode([self._owner, method]) + body
        return hmac.digest(self._key, said, hashlib.sha256)[:_TAG]


_TAG = 16

# --- results ----------------------------------------------------------------------------------------------------------


def answer_in(frame: bytes) -> Answer | None:
    """An answer that one of our conversations gave; None where it gave none."""
    # The limit is kept to where servers are read; under the client's id, or with labels, it may be a little longer.
    answer = parse_from_server(frame, len(frame)) if frame else None
    return answer if isinstance(answer, Answer) else None


def result_of(answer: Answer) -> dict[str, Any] | None:
    """The result that can be merged; None for an error, and for what is no object or can be read in two ways."""
    if not answer.ok:
        return None
    try:
        result = read(answer.body)
    except WireFault:
        return None
    return result if type(result) is dict else None


def error_of(answer: Answer) -> tuple[int, str, str, str]:
    """Code and message of an error, and the stage and reason where it is Aegis' own; 0 and "" where it has none."""
    try:
        error = msgspec.json.decode(answer.body, type=_Error)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return 0, "", "", ""
    by_us = error.data if type(error.data) is dict and error.data.get("by") == "aegis" else {}
    return error.code, error.message, str(by_us.get("stage", "")), str(by_us.get("reason", ""))


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""
    data: Any = None


class Page(msgspec.Struct, frozen=True):
    """One backend's page: the cursor it was asked with, its result, and how many bytes that had."""

    backend: str
    asked: str | None
    result: dict[str, Any]
    size: int


def merged_pages(
    items: str, pages: Sequence[Page], keep: Callable[[str, Any], Any], room: int
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """One page of all, in their order, and how far each list has been read, for those that have more.

    `keep` gives an item as the client sees it, None to leave it out. A page that does not fit into `room` bytes beside
    those before it is left for the next one.
    """
    merged: dict[str, Any] = {}
    kept: list[Any] = []
    places: dict[str, str | None] = {}
    left = room
    for page in pages:
        found = page.result[items]
        size = page.size + len(found) * (len(page.backend) + len(SEPARATOR))
        if kept and size > left:
            places[page.backend] = page.asked
            continue
        left -= size
        kept.extend(item for item in (keep(page.backend, one) for one in found) if item is not None)
        cursor = page.result.get("nextCursor")
        if type(cursor) is str and len(cursor) <= LONGEST_CURSOR:
            places[page.backend] = cursor
        merged = {**page.result, **merged}
    merged.pop("nextCursor", None)
    return {**merged, items: kept}, places


def united(one: Any, other: Any, depth: int = 0) -> Any:
    """Both: objects key by key, flags that either has, lists of words joined without repeats; else the first."""
    if type(one) is dict and type(other) is dict and depth < _DEEP:
        both = {key: united(value, other[key], depth + 1) if key in other else value for key, value in one.items()}
        return {**both, **{key: value for key, value in other.items() if key not in one}}
    if type(one) is bool and type(other) is bool:
        return one or other
    if type(one) is list and type(other) is list and all(type(word) is str for word in (*one, *other)):
        return list(dict.fromkeys((*one, *other)))
    return one


def offers(result: Mapping[str, Any]) -> dict[str, Any]:
    """One server's capabilities."""
    said = result.get("capabilities")
    return said if type(said) is dict else {}


def capabilities(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the servers can do together. Lists do change: a server may come late, or go."""
    found: dict[str, Any] = {}
    for result in results:
        found = united(found, {name: value for name, value in offers(result).items() if type(value) is dict})
    return {name: {**value, "listChanged": True} if name in KINDS else value for name, value in found.items()}


def instructions(results: Mapping[str, Mapping[str, Any]]) -> str:
    """What the servers say of themselves, each under the backend's name."""
    parts: list[str] = []
    room = LONGEST_INSTRUCTIONS
    for backend, result in results.items():
        said = result.get("instructions")
        if type(said) is str and said.strip():
            part = f"# {backend}\n\n{said.strip()}"
            if len(part) <= room:
                parts.append(part)
                room -= len(part)
    return "\n\n".join(parts)


def initialized(results: Mapping[str, Mapping[str, Any]], version: str) -> dict[str, Any]:
    """One answer to `initialize` (MCP 2025-11-25 `basic/lifecycle`): the lowest version that one of them chose.

    `results` by backend, at least one; `version` is Aegis' own.
    """
    said = [result.get("protocolVersion") for result in results.values()]
    chosen = min((known for known in LEGACY_VERSIONS if known in said), default=LEGACY_VERSIONS[0])
    merged = {
        "protocolVersion": chosen,
        "capabilities": capabilities(results.values()),
        "serverInfo": {"name": "aegis", "version": version},
    }
    words = instructions(results)
    return {**merged, "instructions": words} if words else merged


def discovered(results: Mapping[str, Mapping[str, Any]], version: str) -> dict[str, Any]:
    """One answer to `server/discover` (MCP 2026-07-28 `server/discover`): the versions that all of them speak."""
    lists = [said for result in results.values() if type(said := result.get("supportedVersions")) is list]
    spoken = [v for v in (MODERN_VERSION, *reversed(LEGACY_VERSIONS)) if lists and all(v in said for said in lists)]
    merged = {
        "resultType": "complete",
        "supportedVersions": spoken or [MODERN_VERSION],
        "capabilities": capabilities(results.values()),
        "_meta": {META_SERVER: {"name": "aegis", "version": version}},
        "ttlMs": 0,
        "cacheScope": "private",
    }
    words = instructions(results)
    return {**merged, "instructions": words} if words else merged


# --- tasks ------------------------------------------------------------------------------------------------------------


def with_tasks(value: dict[str, Any], rename: Callable[[str], str], *, about: bool = False) -> dict[str, Any]:
    """A result or parameters with its tasks renamed; the same object where it names none.

    `about`: only the task that it belongs to (`_meta`), not those that it speaks of.
    """
    changed: dict[str, Any] = {}
    if not about:
        if type(value.get("taskId")) is str:
            changed["taskId"] = rename(value["taskId"])
        if _has_task(value.get("task")):
            changed["task"] = _renamed(value["task"], rename)
    meta = value.get("_meta")
    if type(meta) is dict and _has_task(meta.get(META_TASK)):
        changed["_meta"] = {**meta, META_TASK: _renamed(meta[META_TASK], rename)}
    return {**value, **changed} if changed else value


def renamed_answer(frame: bytes, id_json: bytes, rename: Callable[[str], str]) -> bytes:
    """An answer with its tasks renamed; the same bytes where it names none."""
    answer = answer_in(frame)
    result = None if answer is None else result_of(answer)
    if result is None:
        return frame
    changed = with_tasks(result, rename)
    return frame if changed is result else result_frame(id_json, encode(changed))


def _has_task(value: Any) -> bool:
    return type(value) is dict and type(value.get("taskId")) is str


def _renamed(value: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    return {**value, "taskId": rename(value["taskId"])}


# --- subscriptions ----------------------------------------------------------------------------------------------------


def narrowed(
    params: dict[str, Any], leads_here: Callable[[str], bool], own_task: Callable[[str], str | None]
) -> dict[str, Any]:
    """The parameters of a `subscriptions/listen` for one backend: its own resources and tasks, and every kind.

    They stand in `notifications`, or beside it; see `wire.methods.listened_resources`.
    """
    made = _narrowed(params, leads_here, own_task)
    if type(params.get("notifications")) is dict:
        made["notifications"] = _narrowed(params["notifications"], leads_here, own_task)
    return made


def _narrowed(
    holder: dict[str, Any], leads_here: Callable[[str], bool], own_task: Callable[[str], str | None]
) -> dict[str, Any]:
    made = dict(holder)
    if type(made.get("resourceSubscriptions")) is list:
        made["resourceSubscriptions"] = [uri for uri in made["resourceSubscriptions"] if leads_here(uri)]
    if type(made.get("taskIds")) is list:
        found = (own_task(task) for task in made["taskIds"] if type(task) is str)
        made["taskIds"] = [task for task in found if task is not None]
    return made


# --- templates --------------------------------------------------------------------------------------------------------


class Uris:
    """Which backend a URI leads to: the one that listed it, the first in their order where several did.

    Bounded: what is beyond the bounds is looked for each time it is asked for.
    """

    __slots__ = ("_owners", "_ranks", "_templates")

    def __init__(self, backends: Iterable[str]) -> None:
        self._owners: dict[str, str] = {}
        self._templates: dict[str, dict[str, tuple[str, ...]]] = {}
        self.rank(backends)

    def rank(self, backends: Iterable[str]) -> None:
        """Their order from now on; what those listed that are not among them holds no more."""
        self._ranks = {backend: rank for rank, backend in enumerate(backends)}
        for gone in {*self._templates, *self._owners.values()} - self._ranks.keys():
            self.forget(gone)

    def listed(self, backend: str, uri: str, *, template: bool = False) -> bool:
        """Takes note of a URI or template; False where it leads to a backend before this one."""
        owner = self._owners.get(uri)
        if backend not in self._ranks:  # it was taken away, and answers late
            return False
        if owner is not None and self._ranks[owner] < self._ranks[backend]:
            return False
        if len(uri) <= LONGEST_URI and (owner is not None or len(self._owners) < URIS):
            self._owners[uri] = backend
            own = self._templates.setdefault(backend, {})
            if template and len(own) < TEMPLATES:
                own[uri] = literals(uri)
        return True

    def found(self, backend: str, uri: str) -> None:
        """A backend had what nobody had listed."""
        if uri not in self._owners:
            self.listed(backend, uri)

    def holders(self, uri: str, able: Iterable[str]) -> list[str]:
        """Where it may lead, the likeliest first: its owner alone, else those whose templates fit, then the rest."""
        owner = self._owners.get(uri)
        if owner is not None:
            return [owner]
        if len(uri) > LONGEST_URI:  # to look into it would take as long as whoever made it likes
            return list(able)
        return sorted(
            able, key=lambda one: not any(fits(parts, uri) for parts in self._templates.get(one, {}).values())
        )

    def forget(self, backend: str) -> None:
        """What it listed holds no more."""
        self._templates.pop(backend, None)
        self._owners = {uri: owner for uri, owner in self._owners.items() if owner != backend}
