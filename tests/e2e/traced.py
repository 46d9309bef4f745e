"""Both ends of a traced call on the official SDK, with OpenTelemetry's own SDK: what they do is noted as JSON lines.

`traced.py client FILE URL` or `traced.py client FILE COMMAND ARG…`: one call of `add`, one of `fail`.
`traced.py server FILE LOG`: the server of `sdk_server.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult


class Notes(SpanExporter):
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            context, parent = span.context, span.parent
            noted = {
                "name": span.name,
                "trace": f"{context.trace_id:032x}",
                "span": f"{context.span_id:016x}",
                "parent": f"{parent.span_id:016x}" if parent is not None else "",
            }
            os.write(self._fd, json.dumps(noted).encode() + b"\n")
        return SpanExportResult.SUCCESS


async def client(target: list[str]) -> None:
    from mcp import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    where = target[0]
    if not where.startswith("http"):
        where = stdio_client(StdioServerParameters(command=target[0], args=target[1:], env=dict(os.environ)))  # type: ignore[assignment]
    async with asyncio.timeout(30), Client(where) as session:
        with trace.get_tracer("agent").start_as_current_span("thinking"):
            assert not (await session.call_tool("add", {"a": 1, "b": 2})).is_error
        assert (await session.call_tool("fail", {"text": "sesame"})).is_error


if __name__ == "__main__":
    role, path, *rest = sys.argv[1:]
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Notes(path)))
    trace.set_tracer_provider(provider)
    if role == "client":
        asyncio.run(client(rest))
    else:
        server = Path(__file__).with_name("sdk_server.py")
        sys.argv = [str(server), *rest]
        runpy.run_path(str(server), run_name="__main__")
