"""What a server's answer says of itself, and what of it reaches the caller: released, filtered or withheld."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.pipeline import Unreadable
from aegis_daemon.core.ports import Story, Ticket
from aegis_daemon.core.roots import UnreadableRoots, left_of_text
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.session import Open
from aegis_daemon.core.verdict import Reason
from aegis_daemon.loop.clock import instant
from aegis_daemon.relay import questions
from aegis_daemon.relay.handshake import TASKS_EXTENSION, offers_tasks
from aegis_daemon.relay.questions import Withheld
from aegis_daemon.wire.errors import refusal_frame
from aegis_daemon.wire.jsonrpc import Answer, Id, encode, fold, id_text, result_frame
from aegis_daemon.wire.methods import LEGACY_VERSIONS, META_SUBSCRIPTION, RESULT_TYPE, Direction, Era, Rule

REPLAYED_KEY = "aegis/replayed"
PENDING_KEY = "aegis/pending"
RETRY_MS = 15_000
"""What a client that comes back for an approval is told to wait at least."""
UNREADABLE = (msgspec.DecodeError, ValueError, TypeError, AttributeError, RecursionError)
"""What `released` raises for JSON that is well formed and cannot be decoded, such as 1e999."""


class Task(msgspec.Struct):
    """A task as a server describes it, in either era. `ttl` (legacy) and `ttlMs` (modern) are milliseconds."""

    taskId: str  # noqa: N815  (the protocol's names)
    status: str = ""
    ttl: float | None = None
    ttlMs: float | None = None  # noqa: N815


class Result(msgspec.Struct):
    """What concerns us of a result, in either era."""

    isError: bool = False  # noqa: N815
    resultType: str = "complete"  # noqa: N815
    inputRequests: dict[str, Any] | None = None  # noqa: N815
    requestState: Any = None  # noqa: N815
    task: Task | None = None
    taskId: str | None = None  # noqa: N815
    ttlMs: float | None = None  # noqa: N815

    @property
    def waits(self) -> bool:
        """Whether it asks for the caller's input."""
        return self.resultType == "input_required"

    @property
    def started(self) -> Task | None:
        """The task that goes on with the call."""
        if self.task is not None:
            return self.task
        if self.resultType == "task" and self.taskId is not None:
            return Task(self.taskId, ttlMs=self.ttlMs)
        return None


_PLAIN = Result()
_FAILED = Result(isError=True)
_FAILURES: Final = {None: _PLAIN, b"false": _PLAIN, b"true": _FAILED}
_SAID: Final = frozenset(Result.__struct_fields__) - {"isError", RESULT_TYPE}
_result = msgspec.json.Decoder(Result)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_result(body: bytes) -> Result:
    """What the result says of itself. Raises `UNREADABLE` where it may say something that cannot be read."""
    return _said(body, _members_of(body))


def _members_of(body: bytes) -> dict[str, Any]:
    """A result's members as they were written; none where it is no object. Raises `UNREADABLE`."""
    try:
        return _members.decode(body)
    except UNREADABLE:
        if body.lstrip(b" \t\r\n")[:1] == b"{":
            raise
        return {}


def _said(body: bytes, parts: dict[str, Any]) -> Result:
    kind, failed = parts.get(RESULT_TYPE), parts.get("isError")
    if (kind is None or bytes(kind) == questions.COMPLETE) and _SAID.isdisjoint(parts):
        plain = _FAILURES.get(failed if failed is None else bytes(failed))
        if plain is not None:
            return plain
    try:
        return _result.decode(body)
    except UNREADABLE:
        if _telling(body):
            raise
        return _PLAIN


def _telling(body: bytes) -> bool:
    """Whether it may hold one of the words that decide; an escape may hide one."""
    return b'"isError"' in body or b'"input_required"' in body or b'"taskId"' in body or b"\\u" in body


def released(
    call: Call, opened: Open, answer: Answer, runtime: Runtime, story: Story, *, ours: bool = False
) -> tuple[bytes, Result]:
    """The frame for the caller, and what its result says of itself. Raises `Withheld` and `UNREADABLE`.

    With `ours` it is about a task of ours, whose outcome was looked at when it came.
    """
    id_json = id_text(opened.request_id)
    body = answer.body
    if not answer.ok:
        if call.direction is Direction.TO_SERVER:
            questions.check_error(call, body, runtime, story)
        return answer.with_id(id_json), _PLAIN
    if call.direction is Direction.TO_CLIENT:
        if call.method == "roots/list":
            body = _roots(call, body, runtime, story)
        return answer.with_id(id_json) if body is answer.body else result_frame(id_json, body), _PLAIN
    if call.row.rule is Rule.LIST:
        try:
            cleaned = runtime.pipeline.clean_list(call, body)
        except Unreadable as error:
            raise Withheld("unreadable_list", f"the server's list is withheld: {error}") from error
        return answer.with_id(id_json) if cleaned is body else result_frame(id_json, cleaned), _PLAIN
    result = _PLAIN
    if not ours:
        parts = _members_of(body)
        if call.row.subject != "task":
            result = _said(body, parts)
        questions.check_result(call, body, parts, runtime, story)
    if call.method == "initialize":
        version = answer.value().get("protocolVersion") if body.startswith(b"{") else None
        if version not in LEGACY_VERSIONS:
            raise Withheld("unsupported_version", "the server speaks a protocol version that Aegis does not know")
    if call.method in ("initialize", "server/discover") and not runtime.pipeline.visible(
        call.principal, call.backend, "instructions", ""
    ):
        body = without_instructions(body)
    if call.method == "server/discover" and offers_tasks(call.frame.params):
        return result_frame(id_json, with_own_tasks(body)), result
    if body is not answer.body:
        return result_frame(id_json, body), result
    if call.method == "subscriptions/listen":
        return result_frame(id_json, _under_its_own_id(body, opened)), result
    return answer.with_id(id_json), result


def _roots(call: Call, body: bytes, runtime: Runtime, story: Story) -> bytes:
    """The client's roots that this server may see, as JSON text; the same bytes where that is all of them."""
    try:
        shown, gone = left_of_text(call, body, runtime.pipeline)
    except UnreadableRoots as error:
        raise Withheld("unreadable_roots", f"the client's roots are withheld: {error}") from error
    if gone and runtime.pipeline.observe:
        text = f"{len(gone)} of the client's roots would be left out"
        story.denied(Reason("policy", text, code="policy_denied", detail=f"roots {', '.join(gone)[:200]}"), would=True)
    return shown


def without_instructions(body: bytes) -> bytes:
    """What a server says of itself without the text that it has for the model; the same bytes where there is none."""
    found = msgspec.json.decode(body)
    if type(found) is not dict or not any(fold(key) == "instructions" for key in found):
        return body
    return encode({key: value for key, value in found.items() if fold(key) != "instructions"})


def with_own_tasks(body: bytes) -> bytes:
    """What a server can do, and that its calls may become tasks: those that wait for a person, whatever the server."""
    found = msgspec.json.decode(body)
    capabilities = found.get("capabilities") if type(found) is dict else None
    if type(capabilities) is not dict:
        return body
    extensions = capabilities.get("extensions", {})
    if type(extensions) is not dict or TASKS_EXTENSION in extensions:
        return body
    more = {**extensions, TASKS_EXTENSION: {}}
    return encode({**found, "capabilities": {**capabilities, "extensions": more}})


def _under_its_own_id(body: bytes, opened: Open) -> bytes:
    """The end of a subscription names it once more, by the request's id: the server knows only ours."""
    result = msgspec.json.decode(body)
    meta = result.get("_meta") if type(result) is dict else None
    if type(meta) is not dict or META_SUBSCRIPTION not in meta:
        return body
    return encode({**result, "_meta": {**meta, META_SUBSCRIPTION: opened.request_id}})


def error_code(body: bytes) -> int:
    """The code of an error object; 0 where it has none."""
    try:
        code = msgspec.json.decode(body)["code"]
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return code if type(code) is int else 0


def replayed(body: bytes, id_json: bytes) -> bytes:
    """The kept answer of an approved call, marked as such where it can be read."""
    try:
        result = msgspec.json.decode(body)
        if type(result) is dict:
            meta = result.get("_meta")
            body = encode({**result, "_meta": {**(meta if type(meta) is dict else {}), REPLAYED_KEY: True}})
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    return result_frame(id_json, body)


def pending_text(ticket: Ticket) -> str:
    """What an agent is told that has to come back, and must not look for another way."""
    if ticket.state == "pending":
        return (
            f"PENDING {ticket.id}: not executed. It waits for a person: tell your user. Repeat the identical call "
            f"after approval, or every {RETRY_MS // 1000} s to hear whether it is decided; do not work around it."
        )
    return (
        f"PENDING {ticket.id}: approved, and under way for an identical call. Repeat the identical call to hear how it "
        "ended; do not work around it."
    )


def pending_frame(id: Id, call: Call, ticket: Ticket) -> bytes:
    """The answer to a call whose client waits no longer while a person has not decided.

    `isError`, since clients check results that are none against the tool's output schema. Where the answer cannot be a
    tool's result (a legacy call that is to become a task, or another method) it is an error.
    """
    text = pending_text(ticket)
    modern = call.era is Era.MODERN
    if call.method != "tools/call" or (not modern and "task" in call.frame.params):
        return refusal_frame(
            id, stage="approval", text=text, call_id=call.id, era=call.era, method="", retryable=True,
            retry_after_ms=RETRY_MS, reason="pending",
        )  # fmt: skip
    pending = {
        "by": "aegis",
        "ticket": ticket.id,
        "call_id": ticket.call_id,
        "expires_at": instant(ticket.expires),
        "retry_after_ms": RETRY_MS,
    }
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": True}
    if modern:
        result = {"resultType": "complete", **result}
    return result_frame(id_text(id), encode({**result, "_meta": {PENDING_KEY: pending}}))
