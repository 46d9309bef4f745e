"""A collector gets the spans of each call that is sampled, made from its records once it is over; never its bodies.

OTLP/HTTP, binary protobuf, gzip. The daemon has nothing to do with it: a call's records have its times, the trace it
came with and its id, of which the ids of the spans are made (`telemetry.trace` gave them to the backend by the same
rule). One call is a SERVER span, below it what it waited for and a CLIENT span for what the backend did, which is the
parent of the backend's own.

Names: OpenTelemetry semantic conventions for GenAI 0.1 ("MCP", in development); what is ours begins with `aegis.`.
Spans are not worth what records are: what is older than `LATE_S` when a collector comes back is not sent any more,
nor what it cannot read (400), and nothing is kept in memory for it.
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import msgspec

from aegis_daemon.exports import protobuf as pb
from aegis_daemon.exports.event import Encode, Event
from aegis_daemon.exports.exchange import Exchange
from aegis_daemon.exports.sink import Sink, Trouble, aside

SCHEMA: Final = "https://opentelemetry.io/schemas/1.45.0"
INTERNAL, SERVER, CLIENT = 1, 2, 3
ERROR: Final = 2
LATE_S: Final = 3600.0
SCOPE: Final = "aegis"
_MODERN: Final = "2026-07-28"
_TRACE: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_ID: Final = re.compile(r"[0-9a-f]{32}")

Pairs = list[tuple[str, str | int | bool]]


class Settings(msgspec.Struct, frozen=True):
    """`endpoint` is the collector's address, before `/v1/…`; `traces` and `metrics` are whole ones where given.

    `headers` may be secret; `resource` is what all that is sent is about; `transports` has pipe or tcp, by backend.
    """

    endpoint: str
    headers: dict[str, str] = {}
    resource: dict[str, str] = {}
    transports: dict[str, str] = {}
    traces: str = ""
    metrics: str = ""
    sample: float = 1.0
    ca_file: str | None = None
    timeout: float = 10.0


class Post:
    """Requests to one address, over one connection."""

    def __init__(self, settings: Settings, address: str) -> None:
        self._settings = settings
        parts = urlsplit(address)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._exchange = Exchange(address, settings.ca_file, settings.timeout)

    def send(self, message: bytes) -> int:
        """Gives the status: 2xx, 400 for what cannot be read there, 413 for too much. Raises `Trouble`."""
        headers = {
            "User-Agent": "aegis",
            **self._settings.headers,
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
        }
        answer = self._exchange.post(self._path, gzip.compress(message, 5), headers)
        status = answer.status
        if 200 <= status < 300 or status in (400, 413):
            return status
        raise Trouble(f"it answered {status}" + _WORDS.get(status, ""), answer.after_s)

    def drop(self) -> None:
        """Closes the connection."""
        self._exchange.drop()


_WORDS: Final = {
    401: ": check `telemetry.otlp.headers`",
    403: ": check `telemetry.otlp.headers`",
    404: ": `telemetry.otlp.endpoint` is the address before `/v1/traces`",
    415: ": it takes no binary protobuf; is it the port for OTLP over HTTP (4318)?",
}


class Otlp(Sink):
    """Spans to one collector."""

    linger_s = 1.0
    steps: ClassVar[bool] = True

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._post = Post(settings, settings.traces or f"{settings.endpoint.rstrip('/')}/v1/traces")

    async def send(self, batch: list[Event]) -> None:
        """Returns once the collector has the spans, or does not want them. Raises `Trouble`."""
        oldest = (self._clock() - LATE_S) * 1e6
        made = [spans for event in batch if event.ts >= oldest and (spans := spans_of(event, self._settings))]
        if made:
            await aside(lambda: self._send(made))

    async def close(self) -> None:
        """Closes the connection."""
        self._post.drop()

    def _send(self, made: list[bytes]) -> None:
        if self._post.send(traces(made, self._settings)) == 413 and len(made) > 1:
            half = len(made) // 2
            self._send(made[:half])
            self._send(made[half:])


def make(settings: Settings, encode: Encode) -> Otlp:
    """The sink; spans have one format."""
    return Otlp(settings)


# --- spans -----------------------------------------------------------------------------------------------------------


def spans_of(event: Event, settings: Settings) -> bytes:
    """The spans of one event as repeated fields of a `ScopeSpans`; empty where it has none, or they are not sampled."""
    if event.kind == "test":
        id = sha256(event.uid.encode()).hexdigest()
        return _span(id[:32], id[32:48], "", "aegis export test", INTERNAL, event.ts, event.ts, [])
    call = event.call
    if call is None or not _ID.fullmatch(call.call_id):
        return b""
    steps = event.steps or (event.record,)
    id = call.call_id
    came = _TRACE.fullmatch(next((step.trace for step in steps if step.trace), ""))
    if came is not None:
        trace, parent, on = came[1], came[2], bool(int(came[3], 16) & 1)
    else:
        trace, parent, on = id, "", int(id[-14:], 16) >= (1.0 - settings.sample) * (1 << 56)
    if not on:
        return b""
    own, towards = id[:16], id[16:]
    first, last = steps[0], steps[-1]
    name = f"{call.method} {call.tool_name}" if call.method in _TARGETS and call.tool_name else call.method
    began = first.ts - first.judged_us
    facts = _facts(event)
    error = _error(event)
    mine: Pairs = [
        *facts,
        *((key, value) for key, value in (
            ("mcp.session.id", call.session), ("jsonrpc.request.id", call.request_id.strip('"')),
            ("aegis.call_id", id), ("aegis.agent", call.agent_id), ("aegis.backend", call.backend_id),
            ("aegis.verdict", call.exec_status), ("aegis.stage", call.stage if error else ""),
            ("aegis.approval", call.approval_result), ("aegis.ticket", call.ticket),
            ("aegis.principal", call.principal),
        ) if value),
        ("aegis.observed", call.would),
    ]  # fmt: skip
    ended = max(last.ts, began)
    made = [_span(trace, own, parent, name, SERVER, began, ended, mine + error, failed=bool(error))]
    if first.judged_us:
        made.append(_child(trace, id, own, "aegis.judge", began, first.ts))
    sent = next((step for step in steps if step.kind == "intent"), None)
    before = sent or last
    lined = before.ts - before.queue_wait_us
    if before.queue_wait_us:
        made.append(_child(trace, id, own, "aegis.queue", lined, before.ts))
    held = next((step for step in steps if step.kind == "hold"), None)
    if held is not None:
        made.append(_child(trace, id, own, "aegis.approval", held.ts, max(held.ts, lined)))
    if sent is not None and last.kind == "outcome":
        left = max(sent.ts, last.ts - last.duration_us)
        if left > sent.ts:
            made.append(_child(trace, id, own, "aegis.commit", sent.ts, left))
        way = settings.transports.get(call.backend_id, "")
        theirs = [*facts, ("network.transport", way)] if way else facts
        made.append(_span(trace, towards, own, name, CLIENT, left, last.ts, theirs + error, failed=bool(error)))
    return b"".join(made)


_TARGETS: Final = frozenset({"tools/call", "prompts/get"})
"""Methods whose name goes into the span's: those of few different names."""


def _facts(event: Event) -> Pairs:
    call = event.call
    assert call is not None
    made: Pairs = [("mcp.method.name", call.method)]
    if call.era == "modern":
        made.append(("mcp.protocol.version", _MODERN))
    if call.method == "tools/call":
        made += [("gen_ai.operation.name", "execute_tool"), ("gen_ai.tool.name", call.tool_name)]
    elif call.method == "prompts/get":
        made.append(("gen_ai.prompt.name", call.tool_name))
    elif call.method.startswith("resources/") and call.tool_name:
        made.append(("mcp.resource.uri", call.tool_name))
    return made


def _error(event: Event) -> Pairs:
    """What went wrong, in words of few different kinds."""
    call = event.call
    assert call is not None
    if call.exec_status == "success":
        return []
    if call.error_code:
        return [("rpc.response.status_code", str(call.error_code)), ("error.type", str(call.error_code))]
    return [("error.type", "tool_error" if call.exec_status == "error" else call.exec_status or "_OTHER")]


def _child(trace: str, call: str, parent: str, name: str, began: int, ended: int) -> bytes:
    id = sha256(f"{call} {name}".encode()).hexdigest()[:16]
    return _span(trace, id, parent, name, INTERNAL, began, ended, [])


def _span(
    trace: str, id: str, parent: str, name: str, kind: int, began: int, ended: int, attributes: Pairs,
    *, failed: bool = False,
) -> bytes:  # fmt: skip
    """One `Span` as field 2 of a `ScopeSpans`; times in microseconds."""
    return pb.data(
        2,
        pb.data(1, bytes.fromhex(trace))
        + pb.data(2, bytes.fromhex(id))
        + (pb.data(4, bytes.fromhex(parent)) if parent else b"")
        + pb.text(5, name)
        + pb.number(6, kind)
        + pb.fixed64(7, began * 1000)
        + pb.fixed64(8, max(began, ended) * 1000)
        + pb.attributes(9, attributes)
        + (pb.data(15, pb.number(3, ERROR)) if failed else b"")
        + pb.fixed32(16, 0x101 if not parent else 0x301 if kind == SERVER else 0x101),
    )


def _scope(version: str) -> bytes:
    return pb.data(1, pb.text(1, SCOPE) + pb.text(2, version))


def _resource(settings: Settings) -> bytes:
    return pb.data(1, pb.attributes(1, settings.resource.items()))


def traces(spans: list[bytes], settings: Settings) -> bytes:
    """An `ExportTraceServiceRequest`."""
    scope = _scope(settings.resource.get("service.version", "")) + b"".join(spans) + pb.text(3, SCHEMA)
    return pb.data(1, _resource(settings) + pb.data(2, scope) + pb.text(3, SCHEMA))


# --- numbers ---------------------------------------------------------------------------------------------------------


class Spread(msgspec.Struct, frozen=True):
    """As `telemetry.family` says it."""

    counts: list[int]
    sum: float


class Family(msgspec.Struct, frozen=True):
    """As `telemetry.family` says it."""

    name: str
    kind: str
    help: str = ""
    values: list[tuple[list[str], float]] = []
    spreads: list[tuple[list[str], Spread]] = []
    bounds: list[float] = []
    unit: str = ""
    otel: str = ""
    otel_labels: list[str] = []


class Numbers(msgspec.Struct, frozen=True):
    """What the daemon counted from `since` to `now`, in seconds since the epoch."""

    since: float
    now: float
    families: list[Family]


def metrics(numbers: Numbers, settings: Settings) -> bytes:
    """An `ExportMetricsServiceRequest`: cumulative sums and histograms, and gauges."""
    times = pb.fixed64(2, int(numbers.since * 1e9)) + pb.fixed64(3, int(numbers.now * 1e9))
    made = _scope(settings.resource.get("service.version", ""))
    for family in numbers.families:
        unit = {"seconds": "s", "bytes": "By"}.get(family.unit, "1" if family.kind == "gauge" else "")
        head = pb.text(1, family.otel) + pb.text(2, family.help) + pb.text(3, unit)
        points = b""
        for labels, value in family.values:
            held = _value(value)
            points += pb.data(1, times + held + _labels(7, family, labels))
        for labels, spread in family.spreads:
            points += pb.data(
                1,
                times
                + pb.fixed64(4, sum(spread.counts))
                + pb.double(5, spread.sum)
                + pb.packed64(6, spread.counts)
                + pb.doubles(7, family.bounds)
                + _labels(9, family, labels),
            )
        if not points or not family.otel:
            continue
        if family.kind == "gauge":
            made += pb.data(2, head + pb.data(5, points))
        elif family.kind == "counter":
            made += pb.data(2, head + pb.data(7, points + pb.number(2, 2) + pb.number(3, 1)))
        else:
            made += pb.data(2, head + pb.data(9, points + pb.number(2, 2)))
    return pb.data(1, _resource(settings) + pb.data(2, made + pb.text(3, SCHEMA)) + pb.text(3, SCHEMA))


def _value(value: float) -> bytes:
    return pb.fixed64(6, int(value)) if float(value).is_integer() else pb.double(4, value)


def _labels(field: int, family: Family, labels: list[str]) -> bytes:
    return pb.attributes(field, [(key, text) for key, text in zip(family.otel_labels, labels, strict=True) if text])


class Gauge:
    """Sends numbers to one collector; those that could not be sent are none the less in the next ones."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._post = Post(settings, settings.metrics or f"{settings.endpoint.rstrip('/')}/v1/metrics")

    async def send(self, line: bytes) -> None:
        """`line` is a `Numbers` as JSON. Raises `Trouble`, and whatever a line raises that is none."""
        numbers = msgspec.json.decode(line, type=Numbers)
        await aside(lambda: self._post.send(metrics(numbers, self._settings)))

    async def close(self) -> None:
        """Closes the connection."""
        self._post.drop()


def sent(settings: dict[str, Any]) -> Gauge:
    """Of the settings as the daemon gave them. Raises `msgspec.ValidationError`."""
    return Gauge(msgspec.convert(settings, Settings))
