"""What a configuration would be with other sections laid over it: read, merged, and checked as one file would be.

Mappings are merged key by key; a list or a value takes the place of what was there. Nothing is written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aegis_daemon.config.load import Loaded, loads
from aegis_daemon.config.source import ConfigFaults, Fault, Node, read, read_file

CEDAR: Final = ".cedar"
_ESCAPED = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""Characters that JSON writes as they are and YAML does not read."""


def with_policies(path: str, files: Sequence[str], env: Mapping[str, str] | None = None) -> Loaded:
    """The configuration at `path` with these files in place of its policies.

    Files named `*.cedar` become `policy.files`, and `policy.text` goes; any other is YAML and laid over the whole.
    Raises `ConfigFaults`: of a file by itself with its places, of the whole with the setting's name alone.
    """
    data = settings(read_file(path), path)
    cedar = [os.path.abspath(file) for file in files if file.lower().endswith(CEDAR)]
    for file in files:
        if not file.lower().endswith(CEDAR):
            data = merged(data, _absolute(settings(read_file(file), file), os.path.dirname(os.path.abspath(file))))
    if cedar:
        policy = data.get("policy")
        kept = {key: value for key, value in policy.items() if key != "text"} if isinstance(policy, dict) else {}
        data = {**data, "policy": {**kept, "files": cedar}}
    return whole(data, f"{path} with {', '.join(files)}", os.path.dirname(os.path.abspath(path)), env)


def settings(data: bytes | str, name: str) -> dict[str, Any]:
    """A file's settings as they are written, placeholders and all. Raises `ConfigFaults`."""
    source = read(data, name)
    found = plain(source.root) if source.root is not None else {}
    if not source.faults and not isinstance(found, dict | None):
        source.faults.append(Fault(name, 0, 0, "", "the file holds no settings", "write `name: value` lines"))
    if source.faults:
        raise ConfigFaults(source.told())
    return found or {}


def plain(node: Node) -> Any:
    """A tree without its places."""
    if isinstance(node.value, dict):
        return {key: plain(entry[2]) for key, entry in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, with `above` winning."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        found[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


def whole(data: Mapping[str, Any], name: str, base: str, env: Mapping[str, str] | None = None) -> Loaded:
    """The configuration of these settings, checked like any file; paths count from `base`. Raises `ConfigFaults`."""
    text = json.dumps(data, ensure_ascii=False)  # JSON is YAML, once a few characters are escapes
    text = _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        return loads(text, name, base=base, env=env)
    except ConfigFaults as faults:
        # The places are those of a text that nobody sees: there, the setting's name says where.
        told = [
            Fault(name, 0, 0, one.path, one.message, one.hint) if one.file == name else one for one in faults.faults
        ]
        raise ConfigFaults(told) from None


def _absolute(data: dict[str, Any], base: str) -> dict[str, Any]:
    policy = data.get("policy")
    files = policy.get("files") if isinstance(policy, dict) else None
    if not isinstance(policy, dict) or not isinstance(files, list):
        return data
    named = [os.path.join(base, os.path.expanduser(one)) if isinstance(one, str) else one for one in files]
    return {**data, "policy": {**policy, "files": named}}
