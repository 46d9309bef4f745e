"""Where numbers and traces go is what the file says, then what the environment says, and nowhere otherwise."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aegis_daemon.audit.record import Denied, Intent, Outcome
from aegis_daemon.config.schema import Config
from aegis_daemon.daemon.log import Json, Rotation, call_ended, use
from aegis_daemon.daemon.metering import collector
from aegis_daemon.exports import otlp

ENVIRONMENT = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere:4318",
    "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b,tenant=x, =bad,worse,line=a%0ab",
    "OTEL_SERVICE_NAME": "guard",
    "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test,service.name=other",
    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
    "OTEL_TRACES_SAMPLER_ARG": "0.25",
}


def settled(telemetry: dict[str, Any], environment: dict[str, str] = ENVIRONMENT) -> Any:
    config = Config.model_validate(
        {"telemetry": telemetry, "backends": {"files": {"command": "x"}, "web": {"url": "http://h/mcp"}}}
    )
    return collector(config, environment)


def test_nothing_goes_anywhere_unless_somebody_says_where() -> None:
    assert settled({}) is None
    assert settled({"from_environment": True}, {}) is None
    assert settled({"from_environment": True}, {**ENVIRONMENT, "OTEL_SDK_DISABLED": "true"}) is None


def test_the_environment_says_where_once_it_may() -> None:
    found = settled({"from_environment": True})
    settings = msgspec.convert(found.settings, otlp.Settings)
    assert settings.endpoint == "http://elsewhere:4318"
    assert settings.headers == {"api-key": "a b", "tenant": "x"}
    assert settings.resource["service.name"] == "guard"
    assert settings.resource["deployment.environment"] == "test"
    assert settings.transports == {"files": "pipe", "web": "tcp"}
    assert settings.sample == 0.25
    assert (found.traces, found.metrics_s) == (True, 60.0)


def test_the_file_goes_before_the_environment() -> None:
    otlp_settings = {"endpoint": "http://here:4318", "headers": {"api-key": "c"}, "sample": 0.5, "metrics": "0s"}
    found = settled({"from_environment": True, "otlp": otlp_settings})
    assert found.settings["endpoint"] == "http://here:4318"
    assert found.settings["headers"] == {"api-key": "c", "tenant": "x"}
    assert found.settings["sample"] == 0.5
    assert found.metrics_s == 0
    assert settled({"otlp": otlp_settings}).settings["resource"]["service.name"] == "aegis"


def test_one_signal_may_go_without_the_other() -> None:
    found = settled({"from_environment": True}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:4318/custom"})
    assert (found.traces, found.metrics_s, found.settings["traces"]) == (True, 0.0, "http://t:4318/custom")


def test_the_secrets_of_a_collector_are_shown_nowhere() -> None:
    config = Config.model_validate({"telemetry": {"otlp": {"endpoint": "http://h", "headers": {"x": "sesame"}}}})
    assert "sesame" not in repr(config)
    assert "sesame" not in config.model_dump_json()


# --- the log


@pytest.fixture
def logger() -> Any:
    root, ours = logging.getLogger(), logging.getLogger("aegis")
    before = (root.level, ours.level)
    yield ours
    root.setLevel(before[0])
    ours.setLevel(before[1])


def line(record: logging.LogRecord, scrub: Any = None) -> dict[str, Any]:
    form = Json()
    form.scrub = scrub
    text = form.format(record)
    assert text.isascii()
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_line_is_one_object_whatever_it_says() -> None:
    hostile = 'a"\n\x1b[31m\u2028{}\ud800'
    record = logging.LogRecord("aegis.call", logging.ERROR, "f", 1, "call %s failed", (hostile,), None)
    record.call_id, record.agent, record.tool = "c", hostile, ""  # type: ignore[attr-defined]
    found = line(record)
    assert found["message"] == f"call {hostile} failed"
    assert (found["level"], found["logger"], found["call_id"], found["agent"]) == ("error", "aegis.call", "c", hostile)
    assert "tool" not in found
    assert found["time"].endswith("Z")


def test_faults_and_words_are_scrubbed_before_they_are_written() -> None:
    try:
        raise ValueError("sesame")
    except ValueError:
        record = logging.LogRecord("aegis", logging.ERROR, "f", 1, "it holds sesame", (), sys.exc_info())
    found = line(record, lambda text: text.replace("sesame", "***"))
    assert "sesame" not in json.dumps(found)
    assert "ValueError: ***" in found["error"]


def test_the_level_holds_for_us_and_not_for_the_debugging_of_others(logger: Any) -> None:
    for level in ("debug", "error", "info"):
        use(Config.model_validate({"logging": {"level": level}}).logging)
        assert logger.isEnabledFor(logging.DEBUG) == (level == "debug")
        assert logger.isEnabledFor(logging.INFO) == (level != "error")
        assert not logging.getLogger("somebody.else").isEnabledFor(logging.DEBUG)


def test_a_call_has_one_line_at_its_end(caplog: pytest.LogCaptureFixture, logger: Any) -> None:
    caplog.set_level(logging.INFO, logger="aegis")
    intent = Intent(call="c" * 32, agent="ann", backend="work", method="tools/call", name="pay", queue_wait_us=5000)
    ended = Outcome(call="c" * 32, status="success", duration_us=1500)
    would = Denied(call="c" * 32, agent="ann", backend="work", method="tools/call", name="pay", stage="acl", would=True)
    refused = Denied(call="d" * 32, agent="ann", backend="work", method="tools/call", name="burn", stage="acl")
    for one in (intent, ended, would, refused):
        one.kind = one.KIND
    for record, opened in ((intent, None), (would, None), (ended, intent), (refused, None), (ended, None)):
        call_ended(record, opened)
    assert [one.getMessage() for one in caplog.records] == [
        "tools/call pay by ann at work: success in 1.5 ms",
        "tools/call burn by ann at work was refused (acl)",
    ]
    assert (line(caplog.records[0])["duration_ms"], line(caplog.records[0])["queue_ms"]) == (1.5, 5.0)


def test_a_line_of_a_call_has_no_uri(caplog: pytest.LogCaptureFixture, logger: Any) -> None:
    caplog.set_level(logging.INFO, logger="aegis")
    refused = Denied(call="d" * 32, agent="a", backend="b", method="resources/read", name="file:///ann", stage="acl")
    refused.kind = refused.KIND
    call_ended(refused, None)
    assert "ann" not in json.dumps(line(caplog.records[0]))


def test_as_many_earlier_logs_are_kept_as_wanted(tmp_path: Path, run: Any) -> None:
    log = tmp_path / "daemon.log"
    settings = Config.model_validate({"logging": {"rotate_mb": 1, "files": 2}}).logging

    async def all_of_them() -> None:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        rotation = Rotation(log, fd)
        try:
            for letter in b"wxyz":
                os.write(fd, bytes([letter]) * (1 << 20))
                rotation.tick(settings)
                await rotation.close()
                os.write(fd, b"on\n")
        finally:
            os.close(fd)

    run(all_of_them())
    assert log.read_bytes() == b"on\n"
    assert (tmp_path / "daemon.log.1").read_bytes() == b"on\n" + b"z" * (1 << 20)
    assert (tmp_path / "daemon.log.2").read_bytes() == b"on\n" + b"y" * (1 << 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["daemon.log", "daemon.log.1", "daemon.log.2"]


def test_what_is_no_log_of_ours_is_left_alone(tmp_path: Path, run: Any) -> None:
    log, other = tmp_path / "daemon.log", tmp_path / "other"
    for path in (log, other):
        path.write_bytes(b"x" * (2 << 20))
    settings = Config.model_validate({"logging": {"rotate_mb": 1}}).logging

    async def tried() -> None:
        for path, flags in ((other, os.O_APPEND), (log, 0)):
            fd = os.open(path, os.O_WRONLY | flags)
            rotation = Rotation(log, fd)
            rotation.tick(settings)
            await rotation.close()
            os.close(fd)

    run(tried())
    assert log.stat().st_size == other.stat().st_size == 2 << 20
