"""Every event is a valid OCSF 1.1.0 event too, and what that version has no attribute for is in `unmapped`, as text.

    1.8.0                                  1.1.0
    activity that 1.1.0 lacks              99 Other, under the same `activity_name`
    action, disposition (6003)             `status_id`, `status_detail`; by name in `unmapped`
    `authorizations` (6003)                `actor.authorizations`
    `actor.app_name`                       `actor.invoked_by`
    `policy`, `message_context`, the rest  `unmapped`, nested ones as JSON

`api.request.data` and `api.response.data` are JSON as text, `unmapped` is flat, and `time_dt` (profile `datetime`) says
`time` once more. Source: schema.ocsf.io/1.1.0.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aegis_daemon.exports.event import Event
from aegis_daemon.exports.ocsf import ocsf

VERSION: Final = "1.1.0"
SHORT: Final = {6003: "api", 2004: "finding", 3004: "entity", 6002: "lifecycle"}
"""The classes there are, and what each is called where a short name is wanted."""
_ACTIVITIES: Final = {
    2004: frozenset({0, 1, 2, 3, 99}),
    3004: frozenset({0, 1, 2, 3, 4, 99}),
    6002: frozenset({0, 1, 2, 3, 4, 99}),
    6003: frozenset({0, 1, 2, 3, 4, 99}),
}
_COMMON: Final = frozenset({
    "activity_id", "activity_name", "category_name", "category_uid", "class_name", "class_uid", "count", "duration",
    "end_time", "message", "metadata", "severity", "severity_id", "start_time", "status", "status_code",
    "status_detail", "status_id", "time", "type_name", "type_uid",
})  # fmt: skip
_OWN: Final = {
    2004: frozenset({"action", "action_id", "disposition", "disposition_id", "finding_info"}),
    3004: frozenset({"actor", "comment", "entity"}),
    6002: frozenset({"app"}),
    6003: frozenset({"actor", "api", "dst_endpoint", "resources", "src_endpoint"}),
}
_PROFILES: Final = {2004: ["datetime", "security_control"], 3004: ["datetime", "host"]}
_SAID: Final = frozenset({"action_id", "ai_role_id", "authorizations", "disposition_id", "is_alert", "unmapped"})
"""Of 1.8.0: what is said by something else that is kept."""
_METADATA: Final = frozenset({
    "correlation_uid", "event_code", "log_name", "log_provider", "original_time", "product", "profiles", "sequence",
    "tenant_uid", "uid", "version",
})  # fmt: skip
_encode = msgspec.json.Encoder().encode


def event(event: Event) -> dict[str, Any]:
    """The event; of plain dictionaries, lists, texts and numbers. Times are in milliseconds."""
    new = ocsf(event)
    class_uid: int = new["class_uid"]
    kept = _COMMON | _OWN[class_uid]
    made = {name: value for name, value in new.items() if name in kept}
    left = {name: value for name, value in new.items() if name not in kept and name not in _SAID}

    if new["activity_id"] not in _ACTIVITIES[class_uid]:
        made["activity_id"] = 99
        made["type_uid"] = class_uid * 100 + 99
        made["type_name"] = f"{new['class_name']}: Other"

    metadata = new["metadata"]
    made["metadata"] = {name: value for name, value in metadata.items() if name in _METADATA and value != ""}
    made["metadata"] |= {"version": VERSION, "profiles": _PROFILES.get(class_uid, ["datetime"])}
    left |= {name: value for name, value in metadata.items() if name not in _METADATA}
    if when := metadata["original_time"]:
        made["time_dt"] = when

    if actor := made.get("actor"):
        actor = {name: value for name, value in actor.items() if name not in ("app_name", "app_uid")}
        if name := new["actor"].get("app_name"):
            actor["invoked_by"] = name
        if given := new.get("authorizations"):
            actor["authorizations"] = [
                {"decision": one["decision"], "policy": {"name": one["policy"]["name"]}} for one in given
            ]
        made["actor"] = actor
    if api := made.get("api"):
        made["api"] = {
            name: part | {"data": _json(part["data"])} if isinstance(part, dict) and "data" in part else part
            for name, part in api.items()
        }
    if entity := made.get("entity"):
        made["entity"] = {name: value for name, value in entity.items() if name != "type_id"}
    if class_uid == 6003 and "status_detail" not in made and new.get("action_id", 1) != 1:
        made["status_detail"] = new["disposition"]

    made["unmapped"] = _flat(left) | _flat(new["unmapped"])
    whole: dict[str, Any] = _whole(made)
    return whole


def encode(one: Event) -> bytes:
    """One event as JSON."""
    return _encode(event(one))


def _json(value: Any) -> str:
    """JSON as text; it is itself already where it came as such."""
    return bytes(value).decode("utf-8", "replace") if isinstance(value, msgspec.Raw) else _encode(value).decode()


def _flat(values: dict[str, Any]) -> dict[str, str]:
    """Texts; what says nothing is left out."""
    made: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, str):
            if value:
                made[name] = value
        elif value is not None:
            made[name] = _encode(value).decode()
    return made


def _whole(value: Any) -> Any:
    """The same, where every text is one that UTF-8 can carry."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_whole(name): _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return value
