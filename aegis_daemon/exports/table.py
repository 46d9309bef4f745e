"""One event is one row of CSV (RFC 4180), and no cell of it is anything but text to a spreadsheet."""

from __future__ import annotations

import csv
import io
from typing import Any, Final

from aegis_daemon.core.text import visible
from aegis_daemon.exports.event import Event, plain

COLUMNS: Final = (
    "uid", "seq", "kind", "time", "created_at", "finished_at", "tenant_id", "agent_id", "principal", "backend_id",
    "method", "tool_name", "arguments", "arguments_hash", "acl_result", "rate_limit_result", "approval_result",
    "approver", "ticket", "queue_position", "queue_wait_ms", "exec_status", "exec_duration_ms", "result", "error_code",
    "error_message", "stage", "policy_id", "note", "would", "call_id", "request_id", "session", "era", "decision",
    "action", "by", "via", "detail", "reason", "count", "hash",
)  # fmt: skip
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "|", "%")


def header() -> bytes:
    """The first line, without its end."""
    return ",".join(COLUMNS).encode()


def encode(event: Event) -> bytes:
    """One line, without its end."""
    found = plain(event)
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([_cell(found.get(name)) for name in COLUMNS])
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    """Numbers as they are; texts on one line, and marked as text where a spreadsheet would compute."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
