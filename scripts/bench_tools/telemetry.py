"""What numbers and traces cost a call: each piece of work by itself, the best of many rounds, in microseconds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from aegis_daemon.audit.record import Intent, Outcome
from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.exports import otlp
from aegis_daemon.exports.event import Call as Row
from aegis_daemon.exports.event import Event, Record
from aegis_daemon.telemetry.counts import Counts
from aegis_daemon.telemetry.family import exposition
from aegis_daemon.telemetry.trace import tracing
from aegis_daemon.wire.jsonrpc import parse
from aegis_daemon.wire.methods import TO_SERVER, Direction, Era

ROUNDS = 40
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def best(work: Callable[[], Any], times: int = 5_000) -> float:
    """Microseconds of one, the empty call taken off."""

    def round(what: Callable[[], Any]) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            what()
        return (time.perf_counter() - begun) / times * 1e6

    return min(round(work) for _ in range(ROUNDS)) - min(round(lambda: None) for _ in range(ROUNDS))


def call_of(meta: dict[str, Any] | None) -> Call:
    params: dict[str, Any] = {"name": "read_file", "arguments": {"path": "/data/a.txt", "limit": 100}}
    if meta is not None:
        params["_meta"] = meta
    frame = parse(msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}))
    principal = Principal("ann")
    row = TO_SERVER["tools/call"]
    return Call("ab" * 16, 1, "s", principal, Direction.TO_SERVER, row, "tool", "read_file", "files", Era.LEGACY, frame)


def measured() -> dict[str, float]:
    """Every figure, by what it is of."""
    facts: dict[str, Any] = {"agent": "ann", "backend": "files", "method": "tools/call", "name": "read_file"}
    intent = Intent(call="ab" * 16, boot="b", mono=100, **facts)
    outcome = Outcome(call="ab" * 16, boot="b", mono=1800, status="success", duration_us=1500)
    intent.kind, outcome.kind = intent.KIND, outcome.KIND
    plain, tools = Counts(), Counts(tools=10)
    found = {
        "counting, before the call leaves": best(lambda: plain.heard(intent, None)),
        "counting, behind its answer": best(lambda: plain.heard(outcome, intent)),
        "the same by tool": best(lambda: tools.heard(outcome, intent)),
    }
    try:
        from prometheus_client import Counter, Histogram
    except ImportError:
        pass
    else:
        calls = Counter("bench_calls", "-", ["agent", "backend", "method", "verdict"])
        times = [Histogram(f"bench_{name}", "-", ["backend", "method"]) for name in ("exec", "added")]

        def counted() -> None:
            calls.labels("ann", "files", "tools/call", "success").inc()
            for one in times:
                one.labels("files", "tools/call").observe(0.0015)

        found["the same work by prometheus_client"] = best(counted, 1_000)
    trace = tracing(1.0)
    bare, joined = call_of(None), call_of({"traceparent": PARENT})

    def sent(call: Call) -> Callable[[], object]:
        return lambda: (call.content_text, call.frame.encoded(7))

    def traced(call: Call) -> Callable[[], object]:
        def work() -> object:
            made = trace(call)
            return made.content_text, made.frame.encoded(7)

        return work

    found["tracing a call, of no trace"] = best(traced(bare), 2_000) - best(sent(bare), 2_000)
    found["tracing a call, of its client's"] = best(traced(joined), 2_000) - best(sent(joined), 2_000)
    ended = Record(kind="outcome", ts=2_800, duration_us=1500, call="ab" * 16)
    steps = (Record(kind="intent", ts=1_000, trace=PARENT), ended)
    row = Row("ab" * 16, method="tools/call", tool_name="read_file", agent_id="ann", backend_id="files", session="s")
    event = Event("u", "c", 2, "call", 2_800, "", ended, row, steps=steps)
    settings = otlp.Settings("http://localhost:4318")
    found["spans of a call (not in the daemon)"] = best(lambda: otlp.spans_of(event, settings), 500)
    found["/metrics of one backend"] = best(lambda: exposition(plain.families(), openmetrics=False), 50)
    return found


def run(say: Callable[[str], None], file: Path | None) -> int:
    """Prints the figures, and writes them to a file where one is given."""
    found = measured()
    if file is not None:
        file.write_text(json.dumps({name: round(us, 3) for name, us in found.items()}, indent=1) + "\n")
    for name, us in found.items():
        say(f"{name:<42} {us:8.2f} µs")
    return 0
