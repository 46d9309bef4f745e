"""A refused call is told in the words of the rules: who asked, of which backend, for what kind of thing, of which name.

Pure. The log keeps a call's method and arguments; what they speak of is read from them as it was when it was judged.
"""

from __future__ import annotations

import json
from typing import Any

from aegis_daemon.core.past import NAME_CAP
from aegis_daemon.manage import shapes
from aegis_daemon.wire.methods import (
    SERVER_REQUESTS,
    TO_CLIENT,
    TO_SERVER,
    BadParams,
    Rule,
    listened_resources,
    subject_of,
)


def explained(call: shapes.AuditCall) -> shapes.Explained:
    """The call as one may speak of it with whoever writes the rules."""
    subject, names = _spoken_of(call)
    return shapes.Explained(
        call_id=call.call_id,
        agent_id=call.agent_id,
        backend_id=call.backend_id,
        method=call.method,
        tool_name=call.tool_name,
        subject=subject,
        names=names,
        exec_status=call.exec_status,
        would=call.would,
        stage=call.stage,
        reason=call.error_message,
        rule=call.rule,
        created_at=call.created_at,
    )


def _spoken_of(call: shapes.AuditCall) -> tuple[str, tuple[str, ...]]:
    """(subject, names); ("", ()) for what names nothing, and ("unknown", ()) where it cannot be told any more."""
    name = call.tool_name
    if len(name) > NAME_CAP:  # the log has its beginning alone
        return "unknown", ()
    if call.method in TO_CLIENT and name and name == SERVER_REQUESTS.get(call.method):
        return "server_request", (name,)
    row = TO_SERVER.get(call.method)
    if row is None or row.rule is Rule.LIST or row.subject is None:
        if call.method != "subscriptions/listen":
            return "", ()
        try:
            return "resource", tuple(dict.fromkeys(listened_resources(_params(call))))
        except BadParams:
            return "unknown", ()
    if row.subject != "ref":
        return row.subject, (name,) if name else ()
    try:
        subject, found = subject_of(row, _params(call))
    except BadParams:
        return "unknown", ()
    return (subject, (found,)) if subject and found else ("unknown", ())


def _params(call: shapes.AuditCall) -> dict[str, Any]:
    try:
        found = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
