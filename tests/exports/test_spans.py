"""The spans of a call are what its records say, decoded by OpenTelemetry's own code, and hold no body."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector import Collector, pairs
from logbook import BEGAN, Book, call_id

from aegis_daemon.audit.record import Denied, Hold, Intent, Outcome
from aegis_daemon.exports import otlp
from aegis_daemon.exports.log import Log
from aegis_daemon.exports.sink import Trouble

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
LATER = BEGAN / 1e6 + 1000


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "audit.db")


def send(book: Book, collector: Collector, now: float = LATER, **settings: Any) -> None:
    given = {"endpoint": collector.url, "resource": {"service.name": "aegis"}, "transports": {"files": "pipe"}}
    sink = otlp.Otlp(otlp.Settings(**{**given, **settings}), clock=lambda: now)
    events = Log(book.path, bodies=False, steps=True).page(0, 10_000, 1 << 30).events

    async def all() -> None:
        try:
            await sink.send(events)
        finally:
            await sink.close()

    asyncio.run(all())


def test_a_call_is_a_server_span_with_what_it_waited_for_and_a_client_span(book: Book, collector: Collector) -> None:
    id = "1" * 16 + "2" * 16
    facts: dict[str, Any] = {
        "agent": "ann", "backend": "files", "call": id, "era": "modern", "method": "tools/call", "name": "pay",
        "request": '"q1"', "session": "s1", "trace": f"00-{TRACE}-{SPAN}-01",
    }  # fmt: skip
    book.add(Hold(**facts, ticket="7K2M", judged_us=700), b'{"secret":"sesame"}')
    book.add(Intent(**facts, queue_wait_us=400_000, approval="approved"), b'{"secret":"sesame"}')
    book.add(Outcome(call=id, duration_us=2000, status="error", error_code=-32603, error_message="sesame"), b"sesame")
    send(book, collector)
    spans = collector.of(id)
    server, client = spans.pop("server"), spans.pop("client")
    assert server.trace_id.hex() == client.trace_id.hex() == TRACE
    assert server.parent_span_id.hex() == SPAN
    assert client.parent_span_id == server.span_id
    assert (server.name, server.kind, client.name, client.kind) == ("tools/call pay", 2, "tools/call pay", 3)
    assert (server.flags, client.flags) == (0x301, 0x101)
    assert server.status.code == client.status.code == 2
    said = pairs(server.attributes)
    assert said == {
        "mcp.method.name": "tools/call", "mcp.protocol.version": "2026-07-28", "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "pay", "mcp.session.id": "s1", "jsonrpc.request.id": "q1", "aegis.call_id": id,
        "aegis.agent": "ann", "aegis.backend": "files", "aegis.verdict": "error", "aegis.approval": "approved",
        "aegis.ticket": "7K2M", "aegis.observed": False, "rpc.response.status_code": "-32603", "error.type": "-32603",
    }  # fmt: skip
    assert pairs(client.attributes)["network.transport"] == "pipe"
    assert client.end_time_unix_nano - client.start_time_unix_nano == 2_000_000
    took = {name: span.end_time_unix_nano - span.start_time_unix_nano for name, span in spans.items()}
    assert took["aegis.judge"] == 700_000
    assert took["aegis.queue"] == 400_000_000
    assert took["aegis.approval"] == 1_000_003_000 - 400_000_000
    assert set(took) == {"aegis.judge", "aegis.queue", "aegis.approval", "aegis.commit"}
    inner = [*spans.values(), client]
    assert all(server.start_time_unix_nano <= one.start_time_unix_nano for one in inner)
    assert all(one.end_time_unix_nano <= server.end_time_unix_nano for one in inner)
    assert b"sesame" not in collector.raw


def test_a_refused_call_is_one_span_that_says_what_refused_it(book: Book, collector: Collector) -> None:
    book.denied(6)
    send(book, collector)
    spans = collector.of(call_id(6))
    assert set(spans) == {"server"}
    said = pairs(spans["server"].attributes)
    assert (said["aegis.verdict"], said["aegis.stage"], said["error.type"]) == ("denied", "acl", "-32001")
    assert spans["server"].trace_id.hex() == call_id(6)


def test_what_is_not_sampled_or_too_old_is_not_sent(book: Book, collector: Collector) -> None:
    book.call(1, trace=f"00-{TRACE}-{SPAN}-00")
    book.call(2, trace=f"00-{TRACE}-{SPAN}-01")
    book.call(3)
    send(book, collector, sample=0.0)
    assert {pairs(span.attributes).get("aegis.call_id") for span in collector.spans} - {None} == {call_id(2)}
    collector.requests.clear()
    send(book, collector, now=BEGAN / 1e6 + otlp.LATE_S + 60)
    assert not collector.requests


def test_every_kind_of_record_in_hostile_words_can_be_sent(book: Book, collector: Collector) -> None:
    book.of_every_kind("a|b\x00\x1b[31m\u202e\n漢")
    book.add(Denied(call="no id", agent="a", backend="b", method="m", stage="acl"))
    send(book, collector)
    assert len(collector.spans) > 8


@pytest.mark.parametrize(
    ("status", "said"), [(503, "503"), (429, "429"), (401, "headers"), (404, "endpoint"), (0, "without an answer")]
)
def test_a_collector_in_trouble_is_tried_again(book: Book, collector: Collector, status: int, said: str) -> None:
    book.call(1)
    collector.trouble = lambda number: status
    with pytest.raises(Trouble, match=said):
        send(book, collector, headers={"Authorization": "Bearer sesame"})
    collector.trouble = lambda number: None
    send(book, collector, headers={"Authorization": "Bearer sesame"})
    assert collector.requests[-1][1]["Authorization"] == "Bearer sesame"
    assert collector.spans


def test_what_a_collector_cannot_read_is_not_sent_again_and_what_is_too_much_in_halves(
    book: Book, collector: Collector
) -> None:
    for at in range(1, 9):
        book.call(at)
    collector.trouble = lambda number: 400
    send(book, collector)
    assert len(collector.requests) == 1
    collector.trouble = lambda number: 413 if number < 5 else None
    send(book, collector)
    assert collector.spans
