"""Every event is a valid OCSF 1.8.0 event of one class, and says the same about itself whoever reads it.

    what happened                   class                          activity
    a call                          6003 API Activity              2 Read for what only reads, else 99 with the method
    an approval or grant            6003 API Activity              3 Update, of the ticket
    frames dropped                  6003 API Activity              99
    a definition changed (`drift`)  2004 Detection Finding         1 Create
    start, stop, restart            6002 Application Lifecycle     3, 4, 5; 99 for gaps, checkpoints and tests
    anything else done to Aegis     3004 Entity Management         1 Create … 13 Resume, else 99 with the action

Profiles of a call: `ai_operation` (`message_context`) and `security_control` (`action_id`, `disposition_id`, `policy`,
`authorizations`). `metadata.uid` is the event's uid, `metadata.sequence` the record's number, `correlation_uid` the
call. What OCSF has no place for is in `unmapped`. Source: schema.ocsf.io/1.8.0.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aegis_daemon import __version__
from aegis_daemon.exports.event import Call, Event, embedded, instant, one_line

VERSION: Final = "1.8.0"
PRODUCT: Final = {"name": "Aegis", "vendor_name": "Aegis", "version": __version__}
CLASSES: Final = {
    2004: ("Detection Finding", 2, "Findings"),
    3004: ("Entity Management", 3, "Identity & Access Management"),
    6002: ("Application Lifecycle", 6, "Application Activity"),
    6003: ("API Activity", 6, "Application Activity"),
}
_NAMES: Final = {
    2004: {1: "Create"},
    3004: {1: "Create", 3: "Update", 4: "Delete", 10: "Activate", 12: "Suspend", 13: "Resume"},
    6002: {3: "Start", 4: "Stop", 5: "Restart"},
    6003: {2: "Read", 3: "Update"},
}
_SEVERITIES: Final = {1: "Informational", 2: "Low", 3: "Medium", 4: "High"}
_READS: Final = frozenset({"resources/read", "prompts/get", "completion/complete", "tasks/get", "tasks/result"})
_ADMIN: Final = {
    "pin": (1, 99, "Tool Definition"),
    "trust": (10, 99, "Tool Definition"),
    "reload": (3, 5, "Policy"),
    "pause": (12, 99, "Agent"),
    "resume": (13, 99, "Agent"),
    "purge": (4, 99, "Audit Log"),
    "erase": (4, 99, "Audit Log"),
    "ui_login": (99, 2, "User"),
}
"""Of an admin record's action: the activity, and the kind of entity (`type_id`, `type`)."""
_LIFE: Final = {"start": 3, "stop": 4, "restart": 5}
_ENDS: Final = {"success": (1, "Success"), "error": (2, "Failure"), "denied": (2, "Failure")}
_DECISIONS: Final = {
    "approved": (1, 8, "Approved"),
    "granted": (1, 8, "Approved"),
    "rejected": (2, 25, "Rejected"),
    "expired": (2, 2, "Blocked"),
    "revoked": (2, 24, "Access Revoked"),
}
_ACTIONS: Final = {1: "Allowed", 2: "Denied", 3: "Observed", 99: "Other"}
_encode = msgspec.json.Encoder().encode


def encode(event: Event) -> bytes:
    """One line of JSON."""
    return one_line(_encode(ocsf(event)))


def ocsf(event: Event) -> dict[str, Any]:
    """The event; `api.request.data` and `api.response.data` may be `msgspec.Raw`. Times are in milliseconds."""
    if event.call is not None:
        return _call(event, event.call)
    record = event.record
    if event.kind == "approval":
        return _approval(event)
    if event.kind == "dropped":
        return _dropped(event)
    if event.kind == "admin" and record.action == "drift":
        return _finding(event)
    action = record.action or event.kind
    if event.kind == "start" or (event.kind == "admin" and action in _LIFE):
        return _life(event, _LIFE[action], action, 1)
    if event.kind == "admin":
        return _admin(event)
    return _life(event, 99, action, 4 if event.kind in ("gap", "unreadable") else 1)


# --- classes ---------------------------------------------------------------------------------------------------------


def _call(event: Event, call: Call) -> dict[str, Any]:
    status_id, status = _ENDS.get(call.exec_status, (0, "Unknown"))
    denied = call.exec_status == "denied"
    if denied:
        action, disposition = 2, (2, "Blocked")
        severity = 4 if call.stage == "pin" else 3
    elif call.would:
        action, disposition, severity = 3, (17, "Logged"), 2
    else:
        action, severity = 1, {"success": 1, "error": 2}.get(call.exec_status, 3)
        disposition = (8, "Approved") if call.approval_result == "approved" else (1, "Allowed")
    activity = 2 if call.method in _READS or call.method.endswith("/list") else 99
    what = _what(call)
    made = _head(
        event, 6003, activity, call.method or "unknown", severity, ["ai_operation", "security_control"],
        f"{call.agent_id or 'an unknown agent'} called {what}: {call.exec_status}",
    )  # fmt: skip
    made["metadata"]["correlation_uid"] = call.call_id
    if event.cut:
        made["metadata"]["is_truncated"] = True
    made.update(
        start_time=call.began // 1000,
        end_time=call.ended // 1000,
        duration=call.exec_duration_us // 1000,
        status_id=status_id,
        status=status,
        action_id=action,
        action=_ACTIONS[action],
        disposition_id=disposition[0],
        disposition=disposition[1],
        is_alert=severity >= 4,
        actor=_actor(call),
        api={
            "operation": call.method or "unknown",
            "service": {"name": call.backend_id or "unknown"},
            "request": _without_none({"uid": call.request_id or call.call_id, "data": embedded(call.arguments)}),
            "response": _without_none(
                {
                    "code": call.error_code,
                    "error": call.stage or None,
                    "error_message": call.error_message or None,
                    "data": embedded(call.result),
                }
            ),
        },
        src_endpoint={"name": call.agent_id or "unknown"},
        dst_endpoint={"name": call.backend_id or "unknown", "svc_name": call.backend_id or "unknown"},
        message_context={
            "name": "MCP",
            "application": {"name": call.agent_id or "unknown"},
            "service": {"name": call.backend_id or "unknown"},
            "ai_role_id": 4,
            "ai_role": "Agent",
        },
        unmapped=_unmapped(event, call),
    )
    if call.tool_name:
        made["resources"] = [{"name": call.tool_name, "type": _subject(call.method), "namespace": call.backend_id}]
    if call.error_code:
        made["status_code"] = str(call.error_code)
    if call.error_message:
        made["status_detail"] = call.error_message
    if call.policy_id:
        made["policy"] = {"name": call.policy_id, "uid": call.policy_id, "is_applied": True}
    made["authorizations"] = [
        {"decision": decision, "policy": {"name": name, "type": "stage"}}
        for name, decision in (
            ("acl", call.acl_result),
            ("rate_limit", call.rate_limit_result),
            ("approval", call.approval_result),
        )
        if decision
    ]
    return made


def _approval(event: Event) -> dict[str, Any]:
    record = event.record
    action, disposition, name = _DECISIONS.get(record.decision, (99, 99, record.decision or "Other"))
    text = f"{record.by or 'nobody'}: {record.decision} {record.ticket}" + (f" ({record.note})" if record.note else "")
    made = _head(event, 6003, 3, "", 1, ["security_control"], text)
    if record.call:
        made["metadata"]["correlation_uid"] = record.call
    made.update(
        action_id=action,
        action=_ACTIONS[action],
        disposition_id=disposition,
        disposition=name,
        status_id=1,
        status="Success",
        actor={"user": {"name": record.by or "nobody", "uid": record.by or "nobody", "type_id": 1, "type": "User"}},
        api={
            "operation": f"approval/{record.decision}",
            "service": {"name": "aegis"},
            "request": {"uid": record.ticket or event.uid},
        },
        src_endpoint={"name": record.via or "aegis"},
        resources=[{"name": record.ticket or "unknown", "type": "approval"}],
        unmapped=_unmapped(event) | {"ticket": record.ticket, "via": record.via, "note": record.note},
    )
    return made


def _dropped(event: Event) -> dict[str, Any]:
    record = event.record
    made = _head(
        event, 6003, 99, "dropped", 2, ["security_control"], f"{record.count} frames were dropped: {record.reason}"
    )
    made.update(
        count=max(1, record.count),
        action_id=2,
        action="Denied",
        disposition_id=6,
        disposition="Dropped",
        status_id=2,
        status="Failure",
        status_detail=record.reason,
        actor={"app_name": record.agent or "unknown", "app_uid": record.agent or "unknown"},
        api={"operation": "dropped", "service": {"name": record.backend or "unknown"}},
        src_endpoint={"name": record.agent or "unknown"},
        unmapped=_unmapped(event) | {"direction": record.direction, "session": record.session},
    )
    return made


def _finding(event: Event) -> dict[str, Any]:
    record = event.record
    made = _head(event, 2004, 1, "", 4, ["security_control"], f"a definition changed: {record.detail}")
    made.update(
        action_id=2,
        action="Denied",
        disposition_id=3,
        disposition="Quarantined",
        status_id=1,
        status="New",
        is_alert=True,
        finding_info={
            "uid": event.uid,
            "title": "a server's definition is not as it was trusted",
            "desc": record.detail,
            "types": ["tool definition drift"],
            "created_time": event.ts // 1000,
        },
        unmapped=_unmapped(event) | {"by": record.by},
    )
    return made


def _admin(event: Event) -> dict[str, Any]:
    record = event.record
    action = record.action or "unknown"
    activity, type_id, kind = _ADMIN.get(action, (99, 99, "Aegis"))
    severity = 3 if action.endswith(" failed") or action.startswith("audit_") else 1
    made = _head(
        event, 3004, activity, action, severity, [], f"{record.by or 'aegis'}: {action} {record.detail}".strip()
    )
    made.update(
        status_id=1,
        status="Success",
        actor={"user": {"name": record.by or "aegis", "uid": record.by or "aegis"}},
        entity={"name": action, "uid": event.uid, "type_id": type_id, "type": kind},
        unmapped=_unmapped(event) | {"action": action},
    )
    if record.detail:
        made["comment"] = record.detail
    return made


def _life(event: Event, activity: int, name: str, severity: int) -> dict[str, Any]:
    record = event.record
    text = {"start": "Aegis began to write the log", "stop": "Aegis stopped", "restart": "Aegis stops to start again"}
    made = _head(event, 6002, activity, name, severity, [], text.get(name) or f"{name}: {record.detail}")
    made.update(
        status_id=1,
        status="Success",
        app=PRODUCT | ({"version": record.version} if record.version else {}),
        unmapped=_unmapped(event)
        | {
            name: value
            for name, value in (("pid", record.pid), ("config_digest", record.config_digest), ("detail", record.detail))
            if value
        },
    )
    return made


# --- parts -----------------------------------------------------------------------------------------------------------


def _head(
    event: Event, class_uid: int, activity: int, activity_name: str, severity: int, profiles: list[str], message: str
) -> dict[str, Any]:
    class_name, category, category_name = CLASSES[class_uid]
    told = _NAMES[class_uid].get(activity)
    return {
        "activity_id": activity,
        "activity_name": told or activity_name,
        "category_uid": category,
        "category_name": category_name,
        "class_uid": class_uid,
        "class_name": class_name,
        "type_uid": class_uid * 100 + activity,
        "type_name": f"{class_name}: {told or 'Other'}",
        "severity_id": severity,
        "severity": _SEVERITIES[severity],
        "time": event.ts // 1000,
        "message": message,
        "metadata": {
            "version": VERSION,
            "profiles": profiles,
            "product": PRODUCT,
            "uid": event.uid,
            "sequence": event.seq,
            "tenant_uid": event.record.tenant or "default",
            "log_name": "audit",
            "log_provider": "aegis",
            "event_code": event.kind,
            "original_time": instant(event.ts),
        },
    }


def _actor(call: Call) -> dict[str, Any]:
    made: dict[str, Any] = {"app_name": call.agent_id or "unknown", "app_uid": call.agent_id or "unknown"}
    if call.principal:
        made["user"] = {"name": call.principal, "uid": call.principal}
    if call.session:
        made["session"] = {"uid": call.session}
    return made


def _unmapped(event: Event, call: Call | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"chain": event.chain, "record_hash": event.hash, "prev_record_hash": event.record.prev}
    if call is not None:
        made |= {
            "era": call.era,
            "arguments_hash": call.arguments_hash,
            "arguments_length": call.arguments_length,
            "result_length": call.result_length,
            "queue_position": call.queue_position,
            "queue_wait_ms": call.queue_wait_us / 1000,
            "stage": call.stage,
            "approver": call.approver,
            "ticket": call.ticket,
            "note": call.note,
            "consumed": call.consumed,
            "would": call.would,
        }
    return made


def _what(call: Call) -> str:
    name = f"{call.backend_id}.{call.tool_name}" if call.tool_name else call.backend_id
    return name if call.method in ("tools/call", "") else f"{call.method} {name}".strip()


def _subject(method: str) -> str:
    return {"tools": "tool", "resources": "resource", "prompts": "prompt"}.get(method.partition("/")[0], "mcp")


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
