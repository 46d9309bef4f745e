"""A collector that takes OTLP over HTTP as it is specified: gzip, binary protobuf, decoded by OpenTelemetry's own code."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def value(any_value: Any) -> Any:
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def pairs(attributes: Any) -> dict[str, Any]:
    return {one.key: value(one.value) for one in attributes}


class Collector:
    """`trouble` gives the status of a request by its number, or None to take it, or 0 to hang up."""

    def __init__(self, port: int = 0) -> None:
        self.trouble: Callable[[int], int | None] = lambda number: None
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.spans: list[Any] = []
        self.metrics: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = collector._take(self.path, dict(self.headers), body)
                if not status:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        self.requests.append((path, headers))
        status = self.trouble(len(self.requests))
        if status is not None:
            return status
        assert headers["Content-Type"] == "application/x-protobuf"
        assert headers["Content-Encoding"] == "gzip"
        data = gzip.decompress(body)
        self.raw += data
        if path == "/v1/traces":
            traces = ExportTraceServiceRequest.FromString(data)
            assert not len(UnknownFieldSet(traces))
            for resource in traces.resource_spans:
                self.resources.append(pairs(resource.resource.attributes))
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            assert not any(len(UnknownFieldSet(span)) for span in self.spans)
        elif path == "/v1/metrics":
            numbers = ExportMetricsServiceRequest.FromString(data)
            self.metrics = [one for r in numbers.resource_metrics for s in r.scope_metrics for one in s.metrics]
        else:
            return 404
        return 200

    def of(self, call: str) -> dict[str, Any]:
        """The spans of one call by what they are: `server`, `client`, or a name of ours."""
        found = {}
        for span in self.spans:
            if span.span_id.hex() == call[:16]:
                found["server"] = span
            elif span.span_id.hex() == call[16:]:
                found["client"] = span
        if "server" in found:
            for span in self.spans:
                if span.parent_span_id.hex() == call[:16] and span.span_id.hex() != call[16:]:
                    found[span.name] = span
        return found
