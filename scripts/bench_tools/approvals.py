"""What approvals cost: tickets are opened by real calls behind `aegis-wrap`, listed and decided as people do it.

A row for each number of tickets that wait at once. Nobody decides until all of them are there; the client is told to
come back at once (`approval.hold: 0s`), so that one agent can have that many.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aegis_daemon.manage.client import Connection

from . import aegis, machine
from .machine import BenchError

SIZES = (10, 1_000, 10_000)
PIPELINE = 200
DECISIONS = 60
READS = 5
COLUMNS = (
    "tickets that wait", "opened, tickets/s", "`aegis pending --json`, s", "API list, ms", "decision, p50 ms",
    "slowest decision, ms", "approved retry, p50 ms", "daemon, MB", "restart, s",
)  # fmt: skip
METHOD = (
    "Method: calls of one agent through `aegis-wrap` to a C echo server, 250 B of arguments each, with "
    "`audit.durability: process`; a decision is one request on the management socket, in the database before it is "
    "answered; a retry is the identical call of an approved ticket, up to the server's answer; MB is the daemon "
    "process's resident memory; a restart ends with the first answer, all tickets taken over. Medians of {reads} reads "
    "and {decisions} decisions."
)


class Asking(aegis.Daemon):
    """A daemon whose one agent may have any number of tickets."""

    def __init__(self, home: Path, server: Path) -> None:
        super().__init__(home, "process", backends={"bench": {"command": str(server)}})
        (home / "aegis.yaml").write_text(
            f"server: {{listen: '127.0.0.1:{self.port}'}}\n"
            f"backends: {{bench: {{command: {json.dumps(str(server))}}}}}\n"
            "agents: {bench: {backends: {bench: {allowed: true, approval_required: [echo]}}}}\n"
            f"approval: {{timeout: 1d, hold: 0s, max_pending_per_agent: {2 * max(SIZES)}}}\n"
            "audit: {durability: process}\n"
        )

    def socket(self) -> Connection:
        """A person's connection; the key says that it is one."""
        return Connection(str(self.home / "manage.sock"))

    @property
    def key(self) -> str:
        return (self.home / "approver.key").read_text().strip()

    def resident_mb(self) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise BenchError("the daemon has no memory any more")


class Agent:
    """A client that writes many calls before it reads their answers."""

    def __init__(self, daemon: Asking) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AEGIS_")} | daemon.env
        command = [*aegis.shim_command(), "--no-autostart", "--agent", "bench", "--backend", "bench"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.number = 0
        version = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
        self._write([{"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": version}])
        self._read()
        self._write([{"jsonrpc": "2.0", "method": "notifications/initialized"}])

    def _write(self, frames: list[dict[str, Any]]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(json.dumps(frame).encode() + b"\n" for frame in frames))
        self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchError("the session of the bench's agent ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def call(self, *texts: str) -> list[dict[str, Any]]:
        """Calls, and their answers in whatever order they come."""
        frames = []
        for text in texts:
            self.number += 1
            params = {"name": "echo", "arguments": {"text": text.ljust(230, ".")}}
            frames.append({"jsonrpc": "2.0", "id": self.number, "method": "tools/call", "params": params})
        self._write(frames)
        return [self._read() for _ in frames]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _ms(what: Callable[[], Any]) -> float:
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1e3


def _pending(answer: dict[str, Any]) -> bool:
    return "aegis/pending" in (answer.get("result") or {}).get("_meta", {})


def _row(run: Path, server: Path, size: int, tell: Callable[[str], None]) -> tuple[float, ...]:
    daemon = Asking(run / f"asking-{size}", server)
    tell(f"{size:,} tickets: opening")
    daemon.start()
    agent = Agent(daemon)
    try:
        began = time.perf_counter()
        for first in range(0, size, PIPELINE):
            answers = agent.call(*(f"{size}-{number}" for number in range(first, min(size, first + PIPELINE))))
            if not all(map(_pending, answers)):
                raise BenchError(
                    f"a call was not told to come back: {next(one for one in answers if not _pending(one))}"
                )
        opened = size / (time.perf_counter() - began)
        tell(f"{size:,} tickets: listing")
        command = [str(Path(sys.prefix) / "bin" / "aegis"), "pending", "--json"]
        environment = {**os.environ, **daemon.env}
        listed = [_ms(lambda: _listed(command, environment, size)) / 1e3 for _ in range(READS)]
        web = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
        read = [_ms(lambda: _over_http(web, size)) for _ in range(READS)]
        web.close()
        tell(f"{size:,} tickets: deciding")
        memory = daemon.resident_mb()
        with daemon.socket() as person:
            some = [ticket["id"] for ticket in person.call("pending")]
            some = some[:: max(1, len(some) // DECISIONS)][:DECISIONS]
            texts = {ticket["id"]: json.loads(ticket["arguments"])["text"] for ticket in person.call("pending")}
            key = daemon.key
            decided = [_ms(partial(person.call, "decide", id=id, approve=True, key=key)) for id in some]
        retried = []
        for id in some:
            began = time.perf_counter()
            (answer,) = agent.call(texts[id])
            retried.append((time.perf_counter() - began) * 1e3)
            if _pending(answer) or "result" not in answer:
                raise BenchError(f"an approved call did not run: {answer}")
        left = size - len(some)
        agent.close()
        daemon.stop()
        tell(f"{size:,} tickets: restarting")
        restart = _ms(lambda: _restarted(daemon, left)) / 1e3
    finally:
        agent.close()
        daemon.stop()
    return (
        size, opened, statistics.median(listed), statistics.median(read), statistics.median(decided),
        max(decided), statistics.median(retried), memory, restart,
    )  # fmt: skip


def _listed(command: list[str], environment: dict[str, str], size: int) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    if len(json.loads(done.stdout)) != size:
        raise BenchError("`aegis pending` does not list every ticket")


def _over_http(web: http.client.HTTPConnection, size: int) -> None:
    web.request("GET", "/api/v1/approvals/pending")
    answer = web.getresponse()
    if answer.status != 200 or len(json.loads(answer.read())) != size:
        raise BenchError("the API does not list every ticket")


def _restarted(daemon: Asking, left: int) -> None:
    daemon.start()
    with daemon.socket() as person:
        if person.call("status")["pending"] != left:
            raise BenchError("a restart lost tickets")


def _markdown(rows: list[tuple[float, ...]], facts: dict[str, Any]) -> str:
    lines = [
        f"Measured {facts['date']} on {facts['cores']} cores ({facts['cpu']}), Linux {facts['kernel']}, "
        f"Python {facts['python']}, commit {facts['commit']}, load average before {facts['load_before']}. "
        + METHOD.format(reads=READS, decisions=DECISIONS),
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in rows)]) + "\n"


def _cells(row: tuple[float, ...]) -> list[str]:
    forms = (",.0f", ",.0f", ".2f", ".1f", ".2f", ".2f", ".2f", ".0f", ".2f")
    return [format(value, form) for value, form in zip(row, forms, strict=True)]


def main(markdown: Path | None, *, quick: bool, keep: bool) -> int:
    """Measures, shows and writes. 1 where something broke."""
    console, notes = Console(), Console(stderr=True)
    run, facts = machine.run_directory(), machine.facts()
    try:
        _, server, _ = machine.build()
        with notes.status("approvals") as status:
            rows = [_row(run, server, size, status.update) for size in SIZES[: 2 if quick else 3]]
    except (BenchError, subprocess.CalledProcessError) as why:
        notes.print(f"broken: {why}", markup=False)
        return 1
    finally:
        if keep:
            notes.print(f"kept: {run}", markup=False)
        else:
            shutil.rmtree(run, ignore_errors=True)
    table = Table(*(name.replace("`", "") for name in COLUMNS))
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    text = _markdown(rows, facts)
    if markdown is not None:
        markdown.write_text(text)
    sys.stdout.write(text)
    return 0
