"""What is counted is what was recorded, and no name that an agent makes up can break or fill what Prometheus reads."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from aegis_daemon.audit.record import Denied, Dropped, Intent, Outcome
from aegis_daemon.telemetry import counts
from aegis_daemon.telemetry.counts import Counts
from aegis_daemon.telemetry.family import exposition

HOSTILE = 'a"b\\c\nd\re{f}=1,\u2028g\x00h\ud800é漢'


def heard(to: Counts, status: str = "success", us: int = 1500, **more: Any) -> None:
    facts: dict[str, Any] = {"agent": "ann", "backend": "work", "method": "tools/call", "name": "pay", **more}
    intent = Intent(call="c" * 32, boot="b", mono=1000, **facts)
    intent.kind = intent.KIND
    outcome = Outcome(call="c" * 32, boot="b", mono=1000 + us + 250, status=status, duration_us=us)
    outcome.kind = outcome.KIND
    to.heard(intent, None)
    to.heard(outcome, intent)


def denied(to: Counts, stage: str, **more: Any) -> None:
    facts: dict[str, Any] = {"agent": "ann", "backend": "work", "method": "tools/call", "name": "burn", **more}
    record = Denied(call="d" * 32, stage=stage, **facts)
    record.kind = record.KIND
    to.heard(record, None)


def samples(to: Counts, *, openmetrics: bool = False) -> dict[tuple[str, ...], float]:
    parse = open_families if openmetrics else plain_families
    text = exposition(to.families(), openmetrics=openmetrics)
    return {
        (sample.name, *(f"{key}={text}" for key, text in sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("openmetrics", [False, True])
def test_calls_are_counted_by_how_they_ended(openmetrics: bool) -> None:
    to = Counts()
    heard(to)
    heard(to, us=3_000_000)
    heard(to, "error")
    denied(to, "acl")
    denied(to, "acl", would=True)
    dropped = Dropped(count=3, direction="to_server", reason="too long")
    dropped.kind = dropped.KIND
    to.heard(dropped, None)
    to.decided("approved", 12.0)
    to.decided("attached", 12.0)
    found = samples(to, openmetrics=openmetrics)
    by = ("agent=ann", "backend=work", "method=tools/call")
    assert found[("aegis_calls_total", *by, "stage=", "verdict=success")] == 2
    assert found[("aegis_calls_total", *by, "stage=", "verdict=error")] == 1
    assert found[("aegis_calls_total", *by, "stage=acl", "verdict=denied")] == 1
    assert found["aegis_observed_denials_total", "backend=work", "stage=acl"] == 1
    assert found["aegis_dropped_frames_total", "direction=to_server"] == 3
    assert found["aegis_approvals_total", "decision=approved"] == 1
    assert found["aegis_approval_wait_seconds_sum", "decision=approved"] == 12.0
    where = ("backend=work", "method=tools/call")
    assert found[("aegis_call_exec_seconds_bucket", where[0], "le=0.002", where[1])] == 2
    assert found[("aegis_call_exec_seconds_bucket", where[0], "le=+Inf", where[1])] == 3
    assert found[("aegis_call_exec_seconds_sum", *where)] == pytest.approx(3.003)
    assert found[("aegis_call_added_seconds_sum", *where)] == pytest.approx(3 * 250e-6)
    assert not any("tool=" in part for key in found for part in key)


def test_a_clock_of_another_boot_adds_nothing() -> None:
    to = Counts()
    intent = Intent(call="c", agent="a", backend="b", method="ping", boot="old", mono=10**12)
    outcome = Outcome(call="c", boot="new", mono=5, status="unknown")
    intent.kind, outcome.kind = intent.KIND, outcome.KIND
    to.heard(outcome, intent)
    to.heard(outcome, None)
    assert samples(to)["aegis_call_added_seconds_sum", "backend=b", "method=ping"] == 0


@pytest.mark.parametrize("openmetrics", [False, True])
def test_hostile_names_break_no_line(openmetrics: bool) -> None:
    to = Counts(tools=5)
    heard(to, agent=HOSTILE, backend=HOSTILE, name=HOSTILE)
    text = exposition(to.families(), openmetrics=openmetrics)
    text.encode()
    assert all(re.match(r"# |[a-z_]+(\{.*\})? [0-9.e+-]+$", line) for line in text.splitlines())
    assert len(text.splitlines()) == text.count("\n")
    assert len(samples(to, openmetrics=openmetrics)) > 10


def test_invented_agents_and_tools_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "CELLS", 50)
    to = Counts(tools=3)
    for at in range(500):
        heard(to, agent=f"a{at}", backend=f"b{at}", name=f"t{at}")
        denied(to, f"s{at}", agent=f"x{at}")
    found = samples(to)
    calls = {key: count for key, count in found.items() if key[0] == "aegis_calls_total"}
    assert sum(calls.values()) == 1000
    assert len(calls) <= 2 * 50 + 2
    tools = {key: count for key, count in found.items() if key[0] == "aegis_tool_calls_total"}
    assert len({key[2] for key in tools}) == 4
    assert sum(tools.values()) == 1000


def test_only_a_tool_that_is_known_has_numbers_of_its_own() -> None:
    to = Counts(tools=2, knows=lambda backend, tool: (backend, tool) == ("work", "burn"))
    for at in range(50):
        denied(to, "acl", name=f"{at}" + "x" * 250)
        heard(to, "error", name=f"none{at}")
        heard(to, name="y" * 129)
    denied(to, "acl")
    heard(to)
    heard(to, "error")
    found = samples(to)
    tools = {(key[2], key[3]): n for key, n in found.items() if key[0] == "aegis_tool_calls_total"}
    assert tools == {
        ("tool=(other)", "verdict=denied"): 50, ("tool=(other)", "verdict=error"): 50,
        ("tool=(other)", "verdict=success"): 50, ("tool=burn", "verdict=denied"): 1,
        ("tool=pay", "verdict=success"): 1, ("tool=pay", "verdict=error"): 1,
    }  # fmt: skip
