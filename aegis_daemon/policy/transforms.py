"""What a path names in a call or its answer is replaced before anybody else sees it; what cannot be read is withheld.

Paths are JSONPath as RFC 9535 has it, rooted at `{request, response}`: `request` is the tool's arguments, `response` is
what the tool gave. A tool gives the same in several places, and the paths are applied to each of them as `response`:
`structuredContent`, each text that is JSON, each text of an embedded resource that is JSON, and the `data` of an error.
All that is left of content (prose, images, links, texts that are no JSON) may say the same in words that no path
reaches: it is replaced as a whole, unless the rule says `unreadable: pass`. The same holds for what an error says; and
what is no part of the protocol (other keys of a result, others' entries in `_meta`) is left out. Where anything else
goes wrong, the whole answer is withheld. Progress and log messages are not looked at.

What a path costs is linear in what a server sends: `match()` and `search()` are not known here, since no engine for
them is; a path goes down with `..` once, and a filter looks at single places.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import bare
from aegis_daemon.wire.jsonrpc import Answer, WireFault, disguised, encode, read

REDACTED: Final = "[redacted]"
UNKNOWN: Final = object()
"""In place of arguments that nobody remembers."""
WITHHELD: Final = "[withheld: this content cannot be redacted]"
LARGEST: Final = 2 << 20
"""Bytes of the largest answer that is cleaned; larger ones are withheld."""
MOST_VALUES: Final = 20_000
"""Values that are looked at in one answer, once for each path: some 8 us each, during which nothing else happens."""
_KEPT: Final = frozenset(
    ["resultType", "taskId", "status", "createdAt", "lastUpdatedAt", "requestState", "inputRequests"]
)
"""What the protocol says of a result beside its content: a client cannot go on without it."""
_PLAIN: Final = frozenset(["isError", "ttl", "ttlMs", "pollInterval", "pollIntervalMs"])
_PROTOCOLS_OWN: Final = ("io.modelcontextprotocol/", "aegis/")
_PARTS: Final = ("content", "structuredContent", "isError", "result", "error")


class BadPath(ValueError):
    """Not a path that can be used: the text says why, `at` is the character (from 1) where it goes wrong."""

    def __init__(self, text: str, at: int) -> None:
        super().__init__(text)
        self.at = at


class Unredacted(Exception):
    """A transform failed: what it was to change must not be shown."""


class _Asked:
    """What a call asked, and how many values of its answer may still be looked at."""

    __slots__ = ("arguments", "left")

    def __init__(self, arguments: Any) -> None:
        self.arguments = arguments
        self.left = MOST_VALUES


class Transform:
    """What is taken out of one tool's calls and answers."""

    def __init__(self, tool: str, paths: Iterable[str], *, pass_unreadable: bool = False) -> None:
        """Raises `BadPath`."""
        self.tool = tool
        self._queries = tuple(compile_path(path) for path in paths)
        self._asks = any("$['request']" in str(query).removeprefix("$['request']") for query in self._queries)
        self._pass = pass_unreadable

    # --- the log ------------------------------------------------------------------------------------------------------

    def logged(self, arguments: Any) -> Any:
        """The arguments as they may be written down. Raises `Unredacted`."""
        return self._cleaned("request", {"request": arguments, "response": {}})

    # --- the client ---------------------------------------------------------------------------------------------------

    def answer(self, arguments: Any, answer: Answer) -> Answer:
        """The answer as it may be shown; the same where nothing is taken out. Raises `Unredacted`."""
        body = self.result(arguments, answer.body) if answer.ok else self.error(arguments, answer.body)
        if body is answer.body:
            return answer
        key = b'"result":' if answer.ok else b'"error":'
        around = [answer.before, answer.after]
        for index, text in enumerate(around):
            at = text.rfind(key + answer.body)
            if at >= 0:
                start = at + len(key)
                around[index] = text[:start] + body + text[start + len(answer.body) :]
                return Answer(answer.id, around[0], around[1], answer.ok, body)
        raise Unredacted("the answer's frame is not as it should be")

    def result(self, arguments: Any, body: bytes) -> bytes:
        """A tool's result as JSON text. Raises `Unredacted`."""
        if len(body) > LARGEST:
            raise Unredacted("the answer is too large to be redacted")
        try:
            found = read(body)
        except WireFault as fault:
            raise Unredacted("the answer cannot be read in one way") from fault
        if type(found) is not dict or any(disguised(found, part) for part in _PARTS):
            raise Unredacted("the answer is not a tool's result")
        made = self.value(arguments, found)
        try:
            return body if _same(made, found) else encode(made)
        except Exception as error:  # a number that cannot be written again
            raise Unredacted("the answer cannot be redacted") from error

    def value(self, arguments: Any, found: dict[str, Any]) -> dict[str, Any]:
        """The same of a result, or of a task that holds one, that was read already. Raises `Unredacted`."""
        try:
            return self._result(_Asked(arguments), found)
        except Unredacted:
            raise
        except Exception as error:
            raise Unredacted("the answer cannot be redacted") from error

    def _result(self, asked: _Asked, found: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in found.items():
            if key == "structuredContent":
                cleaned = self._response(asked, value)
                made[key] = cleaned if type(cleaned) is dict else {}
            elif key == "content":
                if type(value) is not list:
                    raise Unredacted("the answer's content is not a list")
                made[key] = [self._item(asked, item) for item in value]
            elif key in ("result", "task") and type(value) is dict:  # a task, and one that holds it
                made[key] = self._result(asked, value)
            elif key == "error" and type(value) is dict:
                made[key] = self._error_object(asked, value)
            elif key == "statusMessage" and not self._pass:
                made[key] = WITHHELD
            elif key == "_meta" and type(value) is dict and not self._pass:
                made[key] = {name: one for name, one in value.items() if name.startswith(_PROTOCOLS_OWN)}
            elif self._pass or key in _KEPT or (key in _PLAIN and type(value) in (bool, int, float)):
                again = type(value) in (dict, list) and key != "requestState"
                made[key] = self._response(asked, value) if again else value
        return made

    def _item(self, asked: _Asked, item: Any) -> Any:
        if type(item) is not dict:
            raise Unredacted("an item of the answer is not an object")
        kept = {key: item[key] for key in ("type", "text", "resource", "annotations") if key in item}
        if item.get("type") == "text" and type(item.get("text")) is str and not disguised(item, "text"):
            text = self._text(asked, item["text"])
            if text is not None:
                return {**(item if self._pass else kept), "text": text}
        elif item.get("type") == "resource" and not disguised(item, "resource"):
            found = item.get("resource")
            if type(found) is dict and type(found.get("text")) is str and not disguised(found, "text"):
                text = self._text(asked, found["text"])
                if text is not None:
                    named = {key: found[key] for key in ("uri", "mimeType") if key in found}
                    return {
                        **(item if self._pass else kept),
                        "resource": {**(found if self._pass else named), "text": text},
                    }
        return item if self._pass else {"type": "text", "text": WITHHELD}

    def _text(self, asked: _Asked, text: str) -> str | None:
        """A text that is a JSON object or array, cleaned; None for any other."""
        try:
            value = read(text.strip().encode())
        except (WireFault, UnicodeEncodeError):
            return None
        if type(value) is not dict and type(value) is not list:
            return None
        cleaned = self._response(asked, value)
        return text if _same(cleaned, value) else encode(cleaned).decode()

    def error(self, arguments: Any, body: bytes) -> bytes:
        """An error object as JSON text. Raises `Unredacted`."""
        if len(body) > LARGEST:
            raise Unredacted("the error is too large to be redacted")
        try:
            found = read(body)
            if type(found) is not dict or any(disguised(found, key) for key in ("code", "message", "data")):
                raise Unredacted("the error cannot be read in one way")
            return encode(self._error_object(_Asked(arguments), found))
        except Unredacted:
            raise
        except Exception as error:
            raise Unredacted("the error cannot be redacted") from error

    def _error_object(self, asked: _Asked, found: dict[str, Any]) -> dict[str, Any]:
        made = dict(found)
        if not self._pass:
            made = {key: found[key] for key in ("code", "message", "data") if key in found}
            made["message"] = WITHHELD
        data = made.get("data")
        if type(data) is dict or type(data) is list:
            made["data"] = self._response(asked, data)
        elif not self._pass:
            made.pop("data", None)
        return made

    # --- paths --------------------------------------------------------------------------------------------------------

    def _response(self, asked: _Asked, value: Any) -> Any:
        asked.left -= _values(value, asked.left) * len(self._queries)
        if asked.left < 0:
            raise Unredacted("the answer is too large to be redacted")
        if asked.arguments is not UNKNOWN:
            return self._cleaned("response", {"request": asked.arguments, "response": value})
        if self._asks:
            raise Unredacted("what was asked is not remembered")
        return self._cleaned("response", {"request": {}, "response": value})

    def _cleaned(self, side: str, document: dict[str, Any]) -> Any:
        """That side of the document, every value that a path names replaced; nothing is changed in place."""
        places: set[tuple[Any, ...]] = set()
        try:
            for query in self._queries:
                for match in query.finditer(document):
                    parts = tuple(match.parts)
                    if not parts or parts == (side,):
                        return REDACTED
                    if parts[0] == side:
                        places.add(parts[1:])
        except Exception as error:
            raise Unredacted("a path cannot be followed") from error
        return _replaced(document[side], _tree(places)) if places else document[side]


class Transforms:
    """All transforms of a configuration, by what they are written for."""

    def __init__(self, transforms: Iterable[Transform]) -> None:
        self._by_tool = {transform.tool: transform for transform in transforms}
        self._alike: dict[str, tuple[Transform, ...]] = {}
        for one in self._by_tool.values():
            self._alike[bare(one.tool)] = (*self._alike.get(bare(one.tool), ()), one)

    def __bool__(self) -> bool:
        return bool(self._by_tool)

    def of(self, backend: str, tool: str) -> tuple[Transform, ...]:
        """What holds for a tool, to be applied one after the other; also for `GET` where only `get` has any."""
        return self._named(tool) + self._named(f"{backend}.{tool}")

    def _named(self, name: str) -> tuple[Transform, ...]:
        own = self._by_tool.get(name)
        return (own,) if own is not None else self._alike.get(bare(name), ())

    def any(self) -> tuple[Transform, ...]:
        """All of them: for what may be of any tool."""
        return tuple(self._by_tool.values())

    def logged(self, call: Call) -> bytes | None:
        """What the log may keep of a call's content, as JSON text; None where that is all of it. Never raises."""
        if call.method != "tools/call" or call.name is None:
            return None
        found = self.of(call.backend, call.name)
        if not found:
            return None
        try:
            arguments, content = call.arguments, call.content
            for transform in found:
                arguments = transform.logged(arguments)
            more = any(key not in ("name", "arguments", "_meta") for key in call.frame.params)
            return encode({**content, "arguments": arguments} if more else arguments)
        except Exception:
            return encode(WITHHELD)


def compile_path(path: str) -> Any:
    """The query. Raises `BadPath`."""
    import jsonpath

    if not path.startswith("$"):
        raise BadPath("it does not begin with `$`", 1)
    try:
        query = _environment().compile(path)
    except jsonpath.JSONPathError as error:
        text = str(error).splitlines()[0].strip() or "it is not JSONPath (RFC 9535)"
        token = getattr(error, "token", None)
        index = getattr(token, "index", 0)
        raise BadPath(text[:100], (index if isinstance(index, int) and index >= 0 else len(path)) + 1) from None
    except Exception:  # whatever a library makes of nonsense
        raise BadPath("it is not JSONPath (RFC 9535)", 1) from None
    first = next(iter(query.segments), None)
    names = [getattr(one, "name", None) for one in first.selectors] if first is not None else []
    plain = first is not None and type(first).__name__ == "JSONPathChildSegment" and len(names) == 1
    if plain and isinstance(names[0], str) and names[0] not in ("request", "response"):
        raise BadPath("it begins with neither `$.request` nor `$.response`, and so names nothing", 2)
    deep = sum("Recursive" in type(segment).__name__ for segment in query.segments)
    if deep > 1:
        raise BadPath("it goes down with `..` more than once", path.rindex("..") + 1)
    if not all(map(_single, _asked_of(query))):
        raise BadPath("a filter may look at single places alone, such as `@.a.b` or `$.request.a`", path.index("?") + 1)
    return query


def _asked_of(query: Any) -> Iterator[Any]:
    """The expressions in the filters of a path."""
    for segment in query.segments:
        for selector in segment.selectors:
            if hasattr(selector, "expression"):
                yield selector.expression


def _single(expression: Any) -> bool:
    """Whether every query in it names one place at most."""
    query = getattr(expression, "path", None)
    if query is not None:
        return bool(query.singular_query())
    return all(map(_single, expression.children()))


@lru_cache(1)
def _environment() -> Any:
    import jsonpath  # here: it takes 0.1 s, for those who use it

    made = jsonpath.JSONPathEnvironment(strict=True)
    for name in ("match", "search"):
        made.function_extensions.pop(name, None)
    return made


def _values(value: Any, enough: int) -> int:
    """How many values there are, itself included; more than `enough` where there are more."""
    count, waiting = 0, [value]
    while waiting and count <= enough:
        one = waiting.pop()
        count += 1
        if type(one) is dict:
            waiting.extend(one.values())
        elif type(one) is list:
            waiting.extend(one)
    return count


class _Node:
    """A place on the way to what is replaced; a leaf is replaced."""

    __slots__ = ("below",)

    def __init__(self) -> None:
        self.below: dict[Any, _Node] = {}


def _tree(places: set[tuple[Any, ...]]) -> _Node:
    root = _Node()
    for place in sorted(places, key=len):
        here = root
        for index, part in enumerate(place):
            found = here.below.get(part)
            if found is None:
                found = here.below[part] = _Node()
            elif not found.below:
                break  # what is above it is replaced already
            if index == len(place) - 1:
                found.below = {}
            here = found
    return root


def _replaced(value: Any, node: _Node) -> Any:
    if not node.below:
        return REDACTED
    if type(value) is dict:
        return {key: _replaced(item, node.below[key]) if key in node.below else item for key, item in value.items()}
    if type(value) is list:
        return [_replaced(item, node.below[at]) if at in node.below else item for at, item in enumerate(value)]
    raise Unredacted("a path leads through what is neither an object nor an array")


def _same(one: Any, other: Any) -> bool:
    """Whether both are the same JSON text: `1 == True`, but not there."""
    return one is other or msgspec.json.encode(one) == msgspec.json.encode(other)
