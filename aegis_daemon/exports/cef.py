r"""One event is one line of CEF (ArcSight Common Event Format, version 0), whatever its texts hold.

In the header `\` and `|` are escaped, in the extension `\`, `=` and line ends; every other character that is not seen
is written as its escape. Values are cut at the lengths that CEF's dictionary gives, never within an escape.
"""

from __future__ import annotations

from typing import Final

from aegis_daemon import __version__
from aegis_daemon.core.text import visible
from aegis_daemon.exports.event import Call, Event

_BY_STATUS: Final = {"success": 1, "error": 4, "denied": 6}
_LONG: Final = {"msg": 1023, "reason": 1023, "rawEvent": 4000}
_CUSTOM: Final = 4000
_OTHER: Final = 1023


def encode(event: Event) -> bytes:
    """`CEF:0|Aegis|Aegis|VERSION|CLASS|NAME|SEVERITY|EXTENSION`."""
    call = event.call
    if call is not None:
        signature, name = f"call.{call.exec_status}", f"MCP call {call.exec_status}"
        severity = 8 if call.stage == "pin" else 3 if call.would else _BY_STATUS.get(call.exec_status, 5)
        fields = _of_call(event, call)
    else:
        record = event.record
        what = record.decision or record.action or event.kind
        signature = f"{event.kind}.{what}" if what != event.kind else what
        name = {"approval": f"approval {what}", "start": "Aegis started", "dropped": "frames dropped"}.get(
            event.kind, what
        )
        severity = 8 if record.action == "drift" else 7 if event.kind in ("gap", "unreadable") else 2
        fields = _of_record(event)
    header = "|".join(_header(part) for part in ("Aegis", "Aegis", __version__, signature, name))
    extension = " ".join(f"{key}={_value(key, text)}" for key, text in fields if text != "")
    return f"CEF:0|{header}|{severity}|{extension}".encode("utf-8", "replace")


def _of_call(event: Event, call: Call) -> list[tuple[str, str]]:
    return [
        *_common(event),
        ("start", str(call.began // 1000)),
        ("end", str(call.ended // 1000)),
        ("suser", call.principal or call.agent_id),
        ("sourceServiceName", call.agent_id),
        ("destinationServiceName", call.backend_id),
        ("requestMethod", call.method),
        ("act", "denied" if call.exec_status == "denied" else "would deny" if call.would else "allowed"),
        ("outcome", call.exec_status),
        ("reason", call.error_message),
        *_labelled("cs1", "tool", call.tool_name),
        *_labelled("cs2", "callId", call.call_id),
        *_labelled("cs3", "policy", call.policy_id or call.stage),
        *_labelled("cs4", "arguments", call.arguments or ""),
        *_labelled("cs5", "approver", f"{call.approval_result} {call.approver}".strip()),
        *_labelled("cs6", "result", call.result or ""),
        *_labelled("cn1", "durationUs", str(call.exec_duration_us)),
        *_labelled("cn2", "errorCode", str(call.error_code) if call.error_code else ""),
    ]


def _of_record(event: Event) -> list[tuple[str, str]]:
    record = event.record
    return [
        *_common(event),
        ("suser", record.by or record.agent),
        ("sourceServiceName", record.agent or record.via),
        ("destinationServiceName", record.backend),
        ("act", record.decision or record.action),
        ("reason", record.reason),
        ("cnt", str(record.count) if record.count else ""),
        ("msg", record.detail or record.note),
        *_labelled("cs1", "ticket", record.ticket),
        *_labelled("cs2", "callId", record.call),
        *_labelled("cs3", "configDigest", record.config_digest),
    ]


def _common(event: Event) -> list[tuple[str, str]]:
    return [
        ("rt", str(event.ts // 1000)),
        ("externalId", event.uid),
        ("deviceExternalId", event.chain),
        ("cat", event.kind),
        *_labelled("cn3", "record", str(event.seq)),
        *_labelled("flexString1", "recordHash", event.hash),
        *_labelled("flexString2", "tenant", event.record.tenant),
    ]


def _labelled(key: str, label: str, value: str) -> list[tuple[str, str]]:
    return [(f"{key}Label", label), (key, value)] if value != "" else []


def _header(text: str) -> str:
    return visible(text[:512].replace("\n", " ").replace("\r", " ")).replace("\\", "\\\\").replace("|", "\\|")


def _value(key: str, text: str) -> str:
    most = _CUSTOM if key.startswith("cs") and key[2:].isdigit() else _LONG.get(key, _OTHER)
    if len(text) > most:
        text = text[: most - 1] + "…"
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\\n".join(visible(line).replace("\\", "\\\\").replace("=", "\\=") for line in lines)
