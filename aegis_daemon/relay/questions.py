"""What a server asks of its client otherwise than by a request is judged like its requests, wherever it stands.

It stands in results (`inputRequests`), in errors that name pages to visit (-32042), and in what a server says of a
task, asked or unasked. Results of every kind are looked at, since clients do not all mind which kinds may ask; and each
key is taken for what a careless reader takes it for: a question in a spelling that is not the protocol's is refused,
whatever is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.ports import Story
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.verdict import Allow, Reason
from aegis_daemon.relay.eras.frames import RESUMABLE
from aegis_daemon.wire.jsonrpc import WireFault, disguised, encode, fold, parse, read, word
from aegis_daemon.wire.methods import (
    INPUT_REQUESTS,
    RESULT_TYPE,
    SERVER_REQUESTS,
    TO_CLIENT,
    BadParams,
    Direction,
    subject_of,
)

PAGES: Final = -32042
"""The code of an error with addresses that the client is to send its person to."""
MOST: Final = 64
"""Questions in one message: each is judged apart."""
MEMBERS: Final = 1024
"""Members of the largest result, or of what it says of a task, in which questions are looked for."""
_SLOWLY: Final = 2 << 20
"""Bytes of the largest result that is read where it may ask for something and is not spelled as we do."""
NOT_ALLOWED: Final = "server_request_not_allowed"
COMPLETE: Final = b'"complete"'
_HOLDERS: Final = frozenset({"task", "tasks", "result"})
"""Under what, folded, a result or a task may hold another that a client looks into."""
_TELLING: Final = _HOLDERS | {"error", word(INPUT_REQUESTS), word(RESULT_TYPE)}
_SIGNS: Final = {
    "roots": frozenset({"roots"}),
    "elicitation": frozenset({"action"}),
    "sampling": frozenset({"role", "model", "stopreason"}),
}
"""By which keys, folded, an answer in `inputResponses` is one to which kind of question."""
_PLAIN: Final = frozenset(
    {
        RESULT_TYPE, "_meta", "content", "structuredContent", "isError", "contents", "messages", "description",
        "completion", "ttlMs", "cacheScope", "taskId", "status", "statusMessage", "createdAt", "lastUpdatedAt", "ttl",
        "pollInterval", "pollIntervalMs", "requestState", "protocolVersion", "capabilities", "serverInfo",
        "instructions", "supportedVersions", "progressToken", "progress", "total", "message", "level", "logger", "data",
        "uri", "requestId", "reason", "notifications",
    }
)  # fmt: skip
"""What most results and notifications consist of, so that few keys have to be folded."""


class Withheld(Exception):
    """What a server said exists and is not shown."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


# --- where they stand -------------------------------------------------------------------------------------------------


def may_stand_in(keys: Collection[str]) -> bool:
    """Whether an object with these keys may hold a question."""
    if len(keys) > MEMBERS:
        return True  # folding each of a million holds everybody else up: who looks closer withholds it
    return not _PLAIN.issuperset(keys) and any(word(key) in _TELLING for key in keys if key not in _PLAIN)


def within(found: Any) -> list[Any]:
    """All questions of a result, or of what is said of a task. Raises `Withheld` where they are none or in disguise."""
    asks: list[Any] = []
    left = [found]
    while left:
        one = left.pop()
        if type(one) is not dict:
            continue
        if len(one) > MEMBERS:
            raise _unreadable(f"it has more than {MEMBERS} members")
        for key, value in one.items():
            what = word(key)
            if what not in _TELLING:
                continue
            if what == "error":
                asks += pages(value)
            elif what in _HOLDERS:
                left += value if type(value) is list else [value]
            elif key not in (INPUT_REQUESTS, RESULT_TYPE):
                raise _unreadable(f"the key {key[:60]!a} looks like one of the protocol and is not")
            elif key == INPUT_REQUESTS and type(value) is dict:
                asks += value.values()
            elif key == INPUT_REQUESTS and value is not None:
                raise _unreadable("its questions are none")
    return asks


def pages(error: Any) -> Iterator[Any]:
    """The pages that an error sends the client's person to, each as the question that it is. Raises `Withheld`."""
    if PAGES not in _like(error, "code"):
        return
    for found in (found for data in _like(error, "data") for found in _like(data, "elicitations")):
        for page in found if type(found) is list else [found]:
            if type(page) is not dict or page.get("mode", "url") != "url":
                raise _unreadable("it asks what cannot be judged")
            yield {"method": "elicitation/create", "params": {**page, "mode": "url"}}


def _like(found: Any, name: str) -> list[Any]:
    """The values of an object under this name, and under any that a careless reader takes for it."""
    return [value for key, value in found.items() if fold(key) == name] if type(found) is dict else []


def _unreadable(why: str) -> Withheld:
    return Withheld("unreadable_answer", f"what the server says is withheld: {why}")


# --- what becomes of them ---------------------------------------------------------------------------------------------


def check_result(call: Call, body: bytes, parts: Mapping[str, Any], runtime: Runtime, story: Story) -> None:
    """A result as JSON text, and as its members. Raises `Withheld` where it asks what it may not."""
    kind = parts.get(RESULT_TYPE)
    if (kind is None or bytes(kind) == COMPLETE) and not may_stand_in(parts):
        return
    found = _read(body)
    if found.get(RESULT_TYPE) == "input_required" and call.method not in RESUMABLE:
        raise Withheld(NOT_ALLOWED, f"the server answered `{call.method}` with a question; the answer is withheld")
    check(call, within(found), runtime, partial(story.denied, would=True))


def check_error(call: Call, body: bytes, runtime: Runtime, story: Story) -> None:
    """An error as JSON text. Raises `Withheld`."""
    try:
        found = read(body)
    except WireFault as fault:
        if body.isascii() and b"elicit" not in body.lower() and b"\\u" not in body:
            return
        raise _unreadable("it cannot be read in one way") from fault
    check(call, pages(found), runtime, partial(story.denied, would=True))


def _read(body: bytes) -> Any:
    try:
        return read(body, _SLOWLY)
    except WireFault as fault:
        raise _unreadable(f"it may ask for something, and cannot be read in one way: {fault.text}") from fault


def unasked(params: Mapping[str, Any], allowed: frozenset[str]) -> Reason | None:
    """Why a client's answers to questions that no server of its may have asked go nowhere; None where they may pass."""
    answers = params["inputResponses"]
    if type(answers) is not dict:
        return Reason("params", "`inputResponses` must be an object", code="bad_params")
    for answer in answers.values():
        keys = {word(key) for key in answer} if type(answer) is dict else set()
        kinds = {kind for kind, signs in _SIGNS.items() if keys & signs}
        if not allowed or not kinds <= allowed:
            what = f"{' and '.join(sorted(kinds))} of the client" if kinds else "its client"
            return Reason("acl", f"the server may not ask for {what}, so no answer is passed on", code=NOT_ALLOWED)
    return None


def check(call: Call, asks: Iterable[Any], runtime: Runtime, would: Callable[[Reason], None]) -> None:
    """Questions that came with what this call is about. Raises `Withheld` where one of them is not allowed.

    `would` is told why one of them passes only because nothing but faults is refused.
    """
    allowed = runtime.may_ask(call.principal.agent, call.backend)
    for count, ask in enumerate(asks):
        method = ask.get("method") if type(ask) is dict else None
        kind = SERVER_REQUESTS.get(method) if type(method) is str else None
        if kind is None or kind not in allowed:
            text = f"the server asked the client for `{str(method)[:60]}`, which is not allowed"
            if kind is None or not runtime.pipeline.observe:
                raise Withheld(NOT_ALLOWED, f"{text}; the answer is withheld")
            would(Reason("acl", text, code=NOT_ALLOWED))
        if disguised(ask, "method") or disguised(ask, "params") or count >= MOST:
            raise _unreadable(f"it asks in a spelling of its own, or for more than {MOST} things at once")
        if runtime.pipeline.gate("policy") is not None:
            _judge(call, str(method), ask, runtime, would)


def _judge(call: Call, method: str, ask: dict[str, Any], runtime: Runtime, would: Callable[[Reason], None]) -> None:
    """Policies judge such a question as the request that it would have been in the legacy era."""
    row = TO_CLIENT[method]
    text = f"the server asked the client for `{method}`"
    try:
        frame = parse(encode({"jsonrpc": "2.0", "id": 0, "method": method, "params": ask.get("params", {})}))
        subject, name = subject_of(row, frame.params)
    except (WireFault, BadParams) as fault:
        raise Withheld(NOT_ALLOWED, f"{text} in a way that cannot be judged; the answer is withheld") from fault
    changed = {"direction": Direction.TO_CLIENT, "row": row, "subject": subject, "name": name, "frame": frame}
    verdict = runtime.pipeline.admit(msgspec.structs.replace(call, **changed), 0.0)  # nothing of it counts in time
    if type(verdict) is not Allow:
        raise Withheld(NOT_ALLOWED, f"{text}, which a policy does not allow; the answer is withheld")
    if verdict.would is not None:
        would(verdict.would)
