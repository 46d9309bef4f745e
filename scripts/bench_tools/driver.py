"""One load driver process and the wrapped servers it holds, spoken to in lines."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .machine import BenchError

QUIET_S = 1.2
"""Longer than a daemon under load gathers records before it has them written to the database (1 s)."""


@dataclass(frozen=True)
class Target:
    """One way from the client to the server."""

    name: str
    label: str
    kind: str  # direct | floor | aegis | peer
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    url: str = ""  # over HTTP, instead of a command
    pid: int = 0  # the daemon behind it
    also: tuple[int, ...] = ()  # what else works on every call, such as the server it is in front of
    tool: str = "echo"
    denied: str = "danger_reset"  # a tool that its policy refuses
    gov: str = ""  # what runs on every call: Policy, Rate limit, Audit, content Scan
    governs: bool = False  # counts as a governing peer


class Driver:
    """Starts the wrapped servers; every method is one order. Raises BenchError when the driver or a target breaks."""

    def __init__(self, load: Path, target: Target, count: int, logs: Path, patience: float = 60) -> None:
        self.target, self.count, self.patience = target, count, patience
        self.log = logs / f"{target.name}-{count}.stderr"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AEGIS_")} | target.env
        command = [str(load), "-n", str(count), "-e", str(self.log), "-t", str(patience), "-T", target.tool]
        command += ["-u", target.url] if target.url else ["--", *target.command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdin
        assert self.process.stdout
        self._in, self._out = self.process.stdin, self.process.stdout
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)
        try:
            up = self._line(patience + 10)
            if not up["ok"]:
                raise BenchError(f"{target.label}: {up['error'] or 'did not start'}{self.last_words()}")
        except BenchError:
            self.close()
            raise

    def last_words(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()[-6:]
        except OSError:
            return ""
        return "".join(f"\n    {line}" for line in lines)

    def _line(self, within: float) -> dict[str, Any]:
        deadline = time.monotonic() + within
        while b"\n" not in self._buffer:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise BenchError(f"{self.target.label}: the load driver is silent")
            chunk = os.read(self._out.fileno(), 65536)
            if not chunk:
                raise BenchError(f"{self.target.label}: the load driver ended{self.last_words()}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def order(self, text: str, within: float = 60) -> dict[str, Any]:
        try:
            self._in.write(f"{text}\n".encode())
            self._in.flush()
        except BrokenPipeError:
            raise BenchError(f"{self.target.label}: the load driver ended{self.last_words()}") from None
        return self._line(within)

    def window(self, seconds: float, size: int = 300, k: int = 1, rate: float = 0) -> dict[str, Any]:
        warm = min(0.2, seconds / 5)
        return self.order(f"window seconds={seconds} warm={warm} size={size} k={k} rate={rate}", within=seconds + 30)

    def start(self) -> dict[str, Any]:
        return self.order("start", within=self.patience + 20)

    def probe(self) -> dict[str, Any]:
        return self.order(f"probe {self.target.denied}")

    def usage(self, memory: bool = False, pid: int | None = None) -> dict[str, Any]:
        return self.order(f"usage pid={self.target.pid if pid is None else pid} memory={int(memory)}")

    def cpu_ns(self) -> int:
        used = self.usage()
        return int(used["wrapped"]["cpu_ns"] + used["other"]["cpu_ns"]) + sum(
            int(self.usage(pid=pid)["other"]["cpu_ns"]) for pid in self.target.also
        )

    def place(self, client: int = -1, target: int = -1) -> None:
        for pid in (self.target.pid, *self.target.also):
            self.order(f"place client={client} target={target} pid={pid}")

    def settle(self, patience: float = 30) -> float:
        """Waits until what the target put off for later (audit rows, say) is done; seconds that took."""
        if not self.target.pid or self.target.kind != "aegis":
            return 0.0  # what nobody else does
        begin = busy_until = time.monotonic()
        before = self.cpu_ns()
        while busy_until < begin + patience:
            time.sleep(QUIET_S)
            after = self.cpu_ns()
            if after - before < 4_000_000:
                break
            busy_until, before = time.monotonic(), after
        return busy_until - begin

    def close(self) -> None:
        if self._in.closed:
            return
        try:
            self._in.close()
        except OSError:
            pass
        try:
            self.process.wait(20 + self.count * 0.2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._selector.close()
        self._out.close()
