"""What `/metrics` shows is read off the running parts when somebody asks; only calls are counted, as they end.

The same numbers go to an OpenTelemetry collector where one is configured: every so often, as one line to the process
that speaks to it.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from aegis_daemon import __version__
from aegis_daemon.config.schema import Config, Telemetry, reveal
from aegis_daemon.core.call import Call
from aegis_daemon.daemon.shipping import Collector
from aegis_daemon.loop.clock import wall
from aegis_daemon.telemetry.counts import Counts
from aegis_daemon.telemetry.family import Family, Labels, exposition
from aegis_daemon.telemetry.trace import tracing

if TYPE_CHECKING:
    from aegis_daemon.approvals.notifier import Row
    from aegis_daemon.audit.journal import Journal
    from aegis_daemon.audit.writer import WriterHandle
    from aegis_daemon.backends.children import Nursery
    from aegis_daemon.daemon.sessions import Sessions
    from aegis_daemon.daemon.shipping import Shipping
    from aegis_daemon.lanes import Lanes

_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Parts(msgspec.Struct, frozen=True):
    """What the daemon runs, as far as it can be counted."""

    journal: Journal
    sessions: Sessions
    lanes: Lanes
    nursery: Nursery
    shipping: Shipping
    writer: Callable[[], WriterHandle | None]
    pending: Callable[[], int]
    unproven: Callable[[], bool]
    knows: Callable[[str, str], bool] = lambda backend, tool: False
    """whether a server lists that tool"""
    channels: Callable[[], Sequence[Row]] = tuple
    """how the channels of approvals are doing"""


class Metering:
    """The numbers of one daemon; belongs to the loop's thread."""

    def __init__(self, parts: Parts, settings: Telemetry) -> None:
        self._parts = parts
        self._since = wall()
        self._settings = settings
        self._collector: Collector | None = None
        self._next = 0.0
        self.counts = Counts(settings.tools, parts.knows) if settings.metrics else None
        if self.counts is not None:
            parts.journal.listen(self.counts.heard)

    def use(self, config: Config, environment: Mapping[str, str]) -> Collector | None:
        """These settings are in force; gives where traces and numbers go. What is counted waits for a restart."""
        self._settings = config.telemetry
        self._collector = collector(config, environment)
        return self._collector

    def tracing(self) -> Callable[[Call], Call] | None:
        """What makes calls traced ones, where they are."""
        found = self._collector
        return tracing(float(found.settings["sample"])) if found is not None and found.traces else None

    def decided(self, event: str, waited_s: float) -> None:
        """A ticket came to its end, or not yet."""
        if self.counts is not None:
            self.counts.decided(event, waited_s)

    def tick(self, now: float) -> None:
        """Once a second: sends the numbers, when it is time."""
        found = self._collector
        if found is None or not found.metrics_s or now < self._next:
            return
        self._next = now + found.metrics_s
        said = {"since": self._since, "now": wall(), "families": self.families()}
        self._parts.shipping.numbers(msgspec.json.encode(said))

    def text(self, *, openmetrics: bool) -> str:
        """All of it, as Prometheus reads it."""
        return exposition(self.families(), openmetrics=openmetrics)

    def families(self) -> list[Family]:
        """All of it."""
        return [*(self.counts.families() if self.counts is not None else ()), *self._gauges()]

    def _gauges(self) -> list[Family]:
        parts = self._parts
        journal, writer = parts.journal, parts.writer()
        sessions = [session.conversation for session in parts.sessions]
        by: dict[Labels, int] = {}
        flying: dict[Labels, int] = {}
        for talk in sessions:
            by[(talk.backend,)] = by.get((talk.backend,), 0) + 1
            flying[(talk.backend,)] = flying.get((talk.backend,), 0) + len(talk.to_server)
        lanes: dict[Labels, int] = {}
        for row in parts.lanes.rows():
            key = (row.backend_id, row.state)
            lanes[key] = lanes.get(key, 0) + 1
        rows = parts.shipping.rows()
        channels = parts.channels()
        signed_at = writer.signed_at if writer is not None else 0.0
        used = resource.getrusage(resource.RUSAGE_SELF)
        names, otel = ("backend",), ("aegis.backend",)
        exports, otel_exports = ("role", "name"), ("aegis.role", "aegis.export")
        return [
            _gauge("aegis_build_info", "The version that runs.", {(__version__,): 1}, ("version",), ("aegis.version",)),
            _gauge("aegis_sessions", "Sessions, by backend.", by, names, otel),
            _gauge("aegis_backend_late", "Backends that sessions with several do not wait for, since they were late.",
                   {(name,): 1 for name in parts.sessions.lateness.since()}, names, otel),
            _gauge("aegis_calls_in_flight", "Requests that are open, by backend.", flying, names, otel),
            _gauge("aegis_approvals_pending", "Calls that wait for a person.", {(): parts.pending()}),
            _gauge("aegis_channel_waiting", "Messages to people that are not delivered yet, by channel.",
                   {(row.name,): row.waiting for row in channels}, ("channel",), ("aegis.channel",)),
            _gauge("aegis_channel_ok", "Whether it takes messages, and its answers are heard.",
                   {(row.name,): int(row.state in ("ok", "unused")) for row in channels}, ("channel",),
                   ("aegis.channel",)),
            _gauge("aegis_lane_calls", "Calls in lanes: running, waiting, in their pause, or held for a person.", lanes,
                   ("backend", "state"), ("aegis.backend", "aegis.state")),
            _gauge("aegis_servers_running", "Server processes that run.", {(): parts.nursery.alive}),
            _counter("aegis_processes_leaked", "Processes of servers found alive after their end; anything is a fault.",
                     {(): parts.nursery.late}),
            _counter("aegis_audit_records", "Records of the log.", {(): journal.last_seq}),
            _gauge("aegis_audit_lag_records", "Records that are not in the log's file yet.",
                   {(): journal.last_seq - journal.ingested_seq}),
            _gauge("aegis_audit_lag_bytes", "The same in bytes of the journal.", {(): journal.backlog_bytes},
                   unit="bytes"),
            _gauge("aegis_audit_healthy", "Whether records are accepted and reach the log's file.",
                   {(): int(journal.healthy)}),
            _gauge("aegis_audit_unsigned_records", "Records behind the newest checkpoint.",
                   {(): max(0, journal.last_seq - (writer.signed if writer is not None else 0))}),
            _gauge("aegis_audit_checkpoint_age_seconds", "Since a checkpoint was signed.",
                   {(): max(0.0, wall() - signed_at)} if signed_at else {}, unit="seconds"),
            _gauge("aegis_rules_proved", "Whether calls are let through: every call that must be refused was.",
                   {(): int(not parts.unproven())}),
            _gauge("aegis_export_lag_records", "Records that an export or witness does not have yet.",
                   {(row.role, row.name): row.lag for row in rows}, exports, otel_exports),
            _gauge("aegis_export_ok", "Whether it takes what it is sent.",
                   {(row.role, row.name): int(not row.trouble) for row in rows}, exports, otel_exports),
            _gauge("process_resident_memory_bytes", "Memory of the daemon.", {(): _memory()}, unit="bytes"),
            _gauge("process_start_time_seconds", "When it began, since the epoch.", {(): self._since}, unit="seconds"),
            _counter("process_cpu_seconds", "CPU time of the daemon.", {(): used.ru_utime + used.ru_stime}, "seconds"),
            _gauge("process_open_fds", "Open descriptors.", {(): _descriptors()}),
        ]  # fmt: skip


def _gauge(
    name: str, help: str, values: Mapping[Labels, int | float], labels: Labels = (), otel_labels: Labels = (),
    unit: str = "",
) -> Family:  # fmt: skip
    otel = name.removesuffix(f"_{unit}").replace("_", ".", 1)
    return Family(name, "gauge", help, labels, list(values.items()), unit=unit, otel=otel, otel_labels=otel_labels)


def _counter(name: str, help: str, values: Mapping[Labels, int | float], unit: str = "") -> Family:
    return Family(name, "counter", help, (), list(values.items()), unit=unit, otel=name.replace("_", ".", 1))


def _memory() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _descriptors() -> int:
    try:
        return len(os.listdir("/dev/fd")) - 1
    except OSError:
        return 0


# --- the collector ---------------------------------------------------------------------------------------------------


def collector(config: Config, environment: Mapping[str, str]) -> Collector | None:
    """Where traces and numbers go; None for nowhere. What the file says goes before what the environment says."""
    telemetry = config.telemetry
    otlp = telemetry.otlp
    said = environment if telemetry.from_environment else {}
    if said.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    base = "OTEL_EXPORTER_OTLP_"
    endpoint = reveal(otlp.endpoint) if otlp is not None else ""
    if not endpoint:
        traces, metrics = said.get(f"{base}TRACES_ENDPOINT", ""), said.get(f"{base}METRICS_ENDPOINT", "")
        endpoint = said.get(f"{base}ENDPOINT", "")
    else:
        traces = metrics = ""
    if not (endpoint or traces or metrics):
        return None
    given = {name: reveal(text) for name, text in otlp.headers.items()} if otlp is not None else {}
    headers = {**_pairs(said.get(f"{base}HEADERS", "")), **given}
    attributes = {**_pairs(said.get("OTEL_RESOURCE_ATTRIBUTES", ""))}
    if otlp is not None:
        attributes.update({name: reveal(text) for name, text in otlp.resource.items()})
    service = otlp.service if otlp is not None and "service" in otlp.model_fields_set else ""
    attributes["service.name"] = service or said.get("OTEL_SERVICE_NAME") or attributes.get("service.name") or "aegis"
    attributes["service.version"] = __version__
    attributes.setdefault("service.instance.id", f"{os.uname().nodename}-{os.getpid()}")
    settings: dict[str, Any] = {
        "endpoint": endpoint,
        "headers": headers,
        "resource": attributes,
        "transports": {name: "pipe" if one.url is None else "tcp" for name, one in config.backends.items()},
        "traces": traces,
        "metrics": metrics,
        "sample": otlp.sample if otlp is not None else _share(said),
        "timeout": otlp.timeout if otlp is not None else 10.0,
    }
    ca_file = (otlp.ca_file if otlp is not None else None) or said.get(f"{base}CERTIFICATE")
    if ca_file:
        settings["ca_file"] = ca_file
    wants_traces = (otlp is None or otlp.traces) and bool(endpoint or traces)
    wants_numbers = bool(endpoint or metrics)
    every = (otlp.metrics if otlp is not None else 60.0) if wants_numbers else 0.0
    return Collector(settings, wants_traces and said.get("OTEL_TRACES_EXPORTER") != "none", every)


def _pairs(text: str) -> dict[str, str]:
    """`a=1,b=2`, values percent-encoded (as OTEL_EXPORTER_OTLP_HEADERS has it); the rest is passed over."""
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        value = unquote(value.strip())
        if equals and name.strip() and value.isprintable():
            found[name.strip()] = value
    return found


def _share(said: Mapping[str, str]) -> float:
    sampler = said.get("OTEL_TRACES_SAMPLER", "")
    if sampler.endswith("always_off"):
        return 0.0
    if not sampler.endswith("traceidratio"):
        return 1.0
    try:
        return min(1.0, max(0.0, float(said.get("OTEL_TRACES_SAMPLER_ARG", "1"))))
    except ValueError:
        return 1.0
