"""A request that Aegis itself refuses is recorded as a call of its own, and the answer names that record.

What the pipeline refuses is `relay.carry`'s; here is what reaches no pipeline: nobody knows the method, too many are
open, the session is over, or the agent has no server there.
"""

from __future__ import annotations

from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Reason
from aegis_daemon.relay.carry import Shell, for_people
from aegis_daemon.relay.reasons import UNKNOWN_METHOD
from aegis_daemon.wire.errors import refusal_frame
from aegis_daemon.wire.jsonrpc import Frame
from aegis_daemon.wire.methods import TO_SERVER, BadParams, Direction, Era, subject_of


def refused(call: Call, reason: Reason, shell: Shell) -> bytes:
    """Records that the call is refused, and gives the answer."""
    story = shell.audit.story(call)
    if reason.stage == "acl":
        story.acl = "denied"
    story.denied(reason)
    return refusal_frame(
        call.request_id, stage=reason.stage, text=for_people(call, reason), call_id=call.id, era=call.era,
        method=call.row.name, style=shell.runtime.denials, retryable=reason.retryable,
        retry_after_ms=reason.retry_after_ms, reason=reason.code,
    )  # fmt: skip


def refused_request(
    frame: Frame, era: Era, reason: Reason, shell: Shell, *, id: str, session: str, principal: Principal, backend: str
) -> bytes:
    """The same for a request of an agent that nobody has looked at yet. `id` is the call's."""
    assert frame.id is not None
    row = TO_SERVER.get(frame.method) or UNKNOWN_METHOD[Direction.TO_SERVER]
    try:
        subject, name = subject_of(row, frame.params)
    except BadParams:
        subject = name = None
    call = Call(id, frame.id, session, principal, Direction.TO_SERVER, row, subject, name, backend, era, frame)
    return refused(call, reason, shell)
