from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.config.describe import digest, masked
from aegis_daemon.config.load import ConfigFaults, loads
from aegis_daemon.config.schema import Audit, Export
from aegis_daemon.daemon import shipping
from aegis_daemon.exports import ship
from aegis_daemon.exports.job import Job

TOKEN = "12345678-1234-1234-1234-1234567890ab"


def audit_of(**exports: Any) -> Audit:
    return loads(json.dumps({"audit": {"exports": exports}}), "aegis.yaml", base="/etc/aegis").config.audit


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"type": "hec", "url": "https://x"}, "needs `token`"),
        ({"type": "hec", "url": "https://x", "token": "short"}, "at least 16 are needed; Splunk issues it"),
        ({"type": "hec", "url": "https://x", "token": TOKEN + "\r\nX: y"}, "no header can carry"),
        ({"type": "jsonl"}, "needs `path`"),
        ({"type": "jsonl", "path": "x", "token": TOKEN}, "`token` does nothing"),
        ({"type": "syslog", "address": "udp://x"}, "not the address of a syslog receiver"),
        ({"type": "syslog", "address": "file:///x"}, "not the address of a syslog receiver"),
        ({"type": "syslog", "address": "tcp://x:1/path"}, "not the address of a syslog receiver"),
        ({"type": "jsonl", "path": "x", "format": "cef"}, "`cef` is not written"),
        ({"type": "kafka"}, "`jsonl`"),
    ],
)
def test_wrong_settings_are_told_with_the_fix(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigFaults) as faults:
        audit_of(one=wrong)
    assert text in faults.value.render()
    assert TOKEN not in faults.value.render()


def test_the_process_understands_what_the_daemon_tells_it(tmp_path: Path) -> None:
    audit = audit_of(
        file={"type": "jsonl", "path": "out.jsonl", "rotate_mb": 5, "keep": True},
        siem={"type": "hec", "url": "https://splunk.example:8088", "token": TOKEN, "ack": True, "index": "main",
              "format": "aegis", "ca_file": "ca.pem", "timeout": "5s", "begin": "now"},
        old={"type": "syslog", "address": "tls://logs.example:6514", "facility": 10, "bodies": False},
    )  # fmt: skip
    told = shipping.job(audit, tmp_path / "audit.db", tmp_path / "exports.db")
    assert told is not None
    job = ship.msgspec.convert(told, Job)
    made = {target.name: (target, ship.sink_of(target)) for target in job.exports}
    assert [target.format for target, _ in made.values()] == ["ocsf", "aegis", "cef"]
    assert made["file"][1]._path == Path("/etc/aegis/out.jsonl")  # type: ignore[attr-defined]
    settings = made["siem"][1]._settings  # type: ignore[attr-defined]
    assert (settings.token, settings.ack, settings.index, settings.ca_file) == (
        TOKEN,
        True,
        "main",
        "/etc/aegis/ca.pem",
    )
    assert (settings.sourcetype, settings.timeout, made["siem"][0].begin) == ("aegis:aegis", 5.0, "now")
    assert (made["file"][0].keep, made["old"][0].bodies) == (True, False)


def test_each_type_in_the_schema_has_its_sink_and_its_settings() -> None:
    types = set(Export.model_fields["type"].annotation.__args__)  # type: ignore[union-attr]
    assert types <= set(ship.SINKS)
    assert types == set(shipping._OWN)


def test_nothing_configured_is_no_process() -> None:
    assert shipping.job(audit_of(), Path("a"), Path("b")) is None


def test_a_token_is_never_shown() -> None:
    loaded = loads(
        json.dumps({"audit": {"exports": {"s": {"type": "hec", "url": "https://x", "token": TOKEN}}}}), "aegis.yaml"
    )
    assert TOKEN not in json.dumps(masked(loaded.config))
    assert TOKEN not in digest(loaded.config)
    assert TOKEN not in repr(loaded.config)
