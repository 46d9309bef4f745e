"""A traced call joins what came before it to what comes behind it, and nothing that is judged or hashed changes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from making import tool

from aegis_daemon.approvals.ticket import digest
from aegis_daemon.core.call import Call
from aegis_daemon.core.verdict import Ask
from aegis_daemon.telemetry.trace import read_parent, sampled, tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def having(meta: dict[str, Any] | None) -> Call:
    call = tool("pay", {"to": "ann", "amount": 5})
    if meta is None:
        return call
    params = {**call.frame.params, "_meta": meta}
    frame = msgspec.structs.replace(call.frame, params=params, value={**call.frame.value, "params": params}, text=b"")
    return msgspec.structs.replace(call, frame=frame)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (PARENT, (TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", (TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-03", (TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-comes", (TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (PARENT.upper(), None),
        (f"{PARENT}\n", None),
        (f" {PARENT}", None),
        ("", None),
        (7, None),
        (None, None),
        ("0" * 100_000, None),
    ],
)
def test_a_parent_is_read_as_the_standard_has_it(text: object, read: object) -> None:
    assert read_parent(text) == read


def test_the_backend_gets_our_span_as_its_parent_and_the_record_the_clients() -> None:
    call = having({"traceparent": PARENT, "tracestate": "a=1", "baggage": "b=2", "progressToken": 1})
    made = tracing(1.0)(call)
    assert made.trace == PARENT
    assert made.frame.params["_meta"] == {
        "traceparent": f"00-{TRACE}-{call.id[16:]}-01", "tracestate": "a=1", "baggage": "b=2", "progressToken": 1,
    }  # fmt: skip
    assert msgspec.json.decode(made.frame.encoded(5))["params"] == made.frame.params


@pytest.mark.parametrize("meta", [None, {}, {"traceparent": "nonsense", "tracestate": "a=1"}])
def test_a_call_without_a_trace_begins_one_under_its_own_id(meta: dict[str, Any] | None) -> None:
    call = having(meta)
    made = tracing(1.0)(call)
    assert made.trace == ""
    assert made.frame.params["_meta"] == {"traceparent": f"00-{call.id}-{call.id[16:]}-01"}
    assert tracing(0.0)(call).frame.params["_meta"]["traceparent"].endswith("-00")


def test_what_is_agreed_to_judged_and_hashed_stays_the_same() -> None:
    call = having({"traceparent": PARENT})
    made = tracing(1.0)(call)
    ask = Ask("rule", 60.0)
    assert digest(made, ask) == digest(call, ask) == digest(having(None), ask)
    assert made.content_text == call.content_text == having(None).content_text
    assert (made.id, made.request_id, made.name, made.arguments) == (
        call.id,
        call.request_id,
        call.name,
        call.arguments,
    )


def test_a_share_of_the_traces_is_sampled_and_the_client_goes_before() -> None:
    ids = [f"{at * 0x9E3779B97F4A7C15 % 2**64:032x}" for at in range(1, 4001)]
    assert 0.22 < sum(sampled(id, 0.25) for id in ids) / len(ids) < 0.28
    assert (
        tracing(1.0)(having({"traceparent": f"00-{TRACE}-{SPAN}-00"})).frame.params["_meta"]["traceparent"][-2:] == "00"
    )
    assert tracing(0.0)(having({"traceparent": PARENT})).frame.params["_meta"]["traceparent"][-2:] == "01"
