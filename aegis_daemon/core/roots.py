"""Of the roots that a client shows a server, those are left out that the policies do not let this server see.

A legacy client shows them in its answer to `roots/list`, a modern one in the `inputResponses` of a repeated request;
each root is judged by its URI. What cannot be read is not passed on at all. Without policies nothing is left out.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.pipeline import Pipeline
from aegis_daemon.wire.jsonrpc import WireFault, disguised, encode, parse, read
from aegis_daemon.wire.methods import SERVER_REQUESTS, TO_CLIENT, BadParams, Direction

MOST: Final = 256
"""Roots in one answer: each is judged apart."""
_METHOD: Final = "roots/list"
_KEYS: Final = ("uri", "name", "_meta")


class Judge(Protocol):
    """A gate that judges roots one by one."""

    @property
    def judges_roots(self) -> bool:
        """Whether it may leave any out."""
        ...

    def shows_root(self, call: Call, root: dict[str, Any], now: float) -> bool:
        """Whether the server that asks by `call`, a `roots/list`, may see this root, which has a `uri`."""
        ...


class UnreadableRoots(Exception):
    """Roots of which nobody can tell where they are; the text says why."""


def left(call: Call, found: Any, pipeline: Pipeline) -> tuple[dict[str, Any], list[str]]:
    """What a server may see of the answer to its `roots/list`, and the URIs left out. Raises `UnreadableRoots`.

    The same object where nothing is left out. In observe mode all of it is shown, and the URIs are only told.
    """
    gate: Any = pipeline.gate("policy")
    if gate is None or not getattr(gate, "judges_roots", False):
        return found, []
    judge: Judge = gate
    roots = found.get("roots") if type(found) is dict else None
    if type(roots) is not list or disguised(found, "roots"):
        raise UnreadableRoots("there are no `roots`, or they are there twice")
    if len(roots) > MOST:
        raise UnreadableRoots(f"there are more than {MOST} roots")
    kept, gone = [], []
    for root in roots:
        if type(root) is not dict or type(root.get("uri")) is not str or any(disguised(root, key) for key in _KEYS):
            raise UnreadableRoots("a root has no `uri`, or a second one in disguise")
        if judge.shows_root(call, root, 0.0):  # nothing of it counts in time
            kept.append(root)
        else:
            gone.append(root["uri"])
    if not gone or pipeline.observe:
        return found, gone
    return {**found, "roots": kept}, gone


def left_of_text(call: Call, body: bytes, pipeline: Pipeline) -> tuple[bytes, list[str]]:
    """The same of a result as JSON text. Raises `UnreadableRoots`."""
    try:
        found = read(body)
    except WireFault as fault:
        raise UnreadableRoots(fault.text) from fault
    shown, gone = left(call, found, pipeline)
    return (body if shown is found else encode(shown)), gone


def answered(call: Call, pipeline: Pipeline) -> Call:
    """A client's request without the roots among its `inputResponses` that its server must not see.

    An answer is taken for one about roots if it has any: no other kind of answer does. Raises `BadParams`.
    """
    answers = call.frame.params.get("inputResponses")
    if type(answers) is not dict:
        return call
    asked = None
    changed = dict(answers)
    for key, answer in answers.items():
        if type(answer) is not dict or not ("roots" in answer or disguised(answer, "roots")):
            continue
        asked = asked or _asked(call)
        try:
            changed[key], _ = left(asked, answer, pipeline)
        except UnreadableRoots as error:
            raise BadParams(f"the roots in `inputResponses` cannot be judged: {error}") from error
    if all(changed[key] is answer for key, answer in answers.items()):
        return call
    params = {**call.frame.params, "inputResponses": changed}
    frame = msgspec.structs.replace(call.frame, params=params, value={**call.frame.value, "params": params}, text=b"")
    return msgspec.structs.replace(call, frame=frame)


def _asked(call: Call) -> Call:
    """The request for roots that the server would have made in the legacy era."""
    return msgspec.structs.replace(
        call,
        direction=Direction.TO_CLIENT,
        row=TO_CLIENT[_METHOD],
        subject="server_request",
        name=SERVER_REQUESTS[_METHOD],
        frame=parse(encode({"jsonrpc": "2.0", "id": 0, "method": _METHOD})),
    )
