"""Of a published suite of attacks, what a deterministic proxy can stop is stopped, and the rest is counted and explained."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from e2e.house import Agent, call, request
from mcp_defense_bench.bench import Bench

from .daemon import FRESH, HERE, Gate
from .defence import asked_of, whole
from .table import markdown

REPORT = Path(__file__).parent / "mcp-defense-bench.md"


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.close()


def test_every_case_of_mcp_defense_bench_ends_as_the_report_says(gate: Gate) -> None:
    assert markdown(gate) == REPORT.read_text(), "if that is better or meant, run scripts/attacks"


DRIVEN = ("tool-call", "tool-call-sequence", "definition-change", "malicious-tool-definition", "malicious-tool-result")
SAMPLE = {
    case["vector"]: case
    for case in reversed(Bench.vendored_snapshot().load_cases("dev"))
    if case["fixture"]["type"] in DRIVEN
}
"""The first case of each vector that is made of tools and calls of one server."""
PASSED = {"credential-token-theft", "tool-poisoning", "false-error-escalation", "indirect-retrieval-injection",
          "response-injection", "system-prompt-leakage", "tool-transfer"}  # fmt: skip


@pytest.mark.parametrize("vector", sorted(SAMPLE))
def test_a_sample_of_each_vector_ends_alike_through_the_installed_commands(gate: Gate, vector: str) -> None:
    case = SAMPLE[vector]
    backend = FRESH[sorted(SAMPLE).index(vector)]
    agent = gate.home.wrap(
        sys.executable, "-I", "-S", str(HERE / "hostile.py"), str(gate.home.log), agent="bot", backend=backend
    ).handshake()
    for part, stopped in (("benignControl", False), ("fixture", vector not in PASSED)):
        assert is_stopped(agent, case[part], part) is stopped, case["id"]


def is_stopped(agent: Agent, input: Mapping[str, Any], part: str) -> bool:
    """Whether any of it is refused. Both halves of a case run in one session, each tool under the half's own name for it
    where it has no rule: else the second half is a changed tool."""
    tools = [input["before"], input["after"]] if "before" in input else [input["tool"]] if "tool" in input else []
    calls = input.get("calls") or [asked_of(input, whole(tools[-1]))]
    for at, tool in enumerate(tools or [{"name": one["name"]} for one in calls]):
        if part == "fixture" and "before" not in input and tools:
            continue  # the benign half has listed it
        agent.asks(call(f"{part}-{at}", "do", trick="tools", tools=[whole(tool)]))
        agent.asks(request(f"{part}-list-{at}", "tools/list"))
    for at, one in enumerate(calls):
        answer = agent.asks(call(f"{part}-call-{at}", one["name"], **one["arguments"]))
        if "error" in answer:
            assert answer["error"]["data"]["by"] == "aegis"
            return True
    return False
