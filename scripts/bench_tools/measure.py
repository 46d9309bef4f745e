"""Takes the windows: every target's is taken right after a direct one, and the two are only ever read together."""

from __future__ import annotations

import os
import sqlite3
import statistics
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .aegis import Daemon
from .driver import Driver, Target
from .machine import BenchError, commit_us


@dataclass(frozen=True)
class Shape:
    name: str
    label: str
    connections: int
    k: int = 1
    size: int = 300
    rate: float = 0
    pinned: bool = False  # the client on one core, everything measured on another: one-call latencies are noise else
    beside: str = "cat"  # the target that the others are set against, after direct
    finer: int = 1  # so many times the rounds, each so much shorter: for small differences


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("1x1", "1 server, 1 call at a time", 1, pinned=True, finer=2),
        Shape("100k", "1 server, 1 call at a time, 100 kB frames", 1, size=100_000, pinned=True),
        Shape("8x1", "8 servers, 1 call at a time each", 8),
        Shape("8x8", "8 servers, 8 calls in flight each", 8, k=8),
        Shape("open", "8 agents, 200 calls/s together, open loop", 8, rate=200, pinned=True),
        Shape("64x1", "64 servers, 1 call at a time each", 64),
        Shape("http-1", "HTTP → HTTP, 1 session", 1, pinned=True, beside="envoy-mcp", finer=2),
        Shape("http-8", "HTTP → HTTP, 8 sessions", 8, beside="envoy-mcp"),
        Shape("child-8", "HTTP → stdio, 8 sessions", 8, beside="mcp-proxy"),
        Shape("child-64", "HTTP → stdio, 64 sessions", 64, beside="mcp-proxy"),
    )
}


@dataclass(frozen=True)
class Settings:
    rounds: int
    seconds: float
    open_seconds: float
    starts: int
    agents: int  # S9: each with ten rules
    preload: int  # S9: calls, two audit records each

    @classmethod
    def full(cls) -> Settings:
        return cls(rounds=5, seconds=0.8, open_seconds=3.0, starts=15, agents=1000, preload=500_000)

    @classmethod
    def quick(cls) -> Settings:
        return cls(rounds=3, seconds=0.16, open_seconds=0.8, starts=7, agents=1000, preload=50_000)


@dataclass
class Pair:
    """One window of a target and the direct one just before it."""

    shape: str
    target: str
    turn: int
    direct: dict[str, Any]
    own: dict[str, Any]
    cpu_us: float  # CPU of everything but the client per call, more than direct; work put off for later included
    drain_s: float  # how long the target went on working after the window


class MissingError(Exception):
    """A figure was asked for that was not measured in this run."""


def middle(values: Iterable[float]) -> float:
    """Their median. Raises MissingError where there are none."""
    found = list(values)
    if not found:
        raise MissingError
    return float(statistics.median(found))


@dataclass
class Results:
    """All windows; every reading is a median over rounds and raises MissingError where there is none."""

    pairs: list[Pair] = field(default_factory=list)
    starts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)  # "target/connections" -> MB
    daemon_mb: dict[str, float] = field(default_factory=dict)
    commits_us: list[float] = field(default_factory=list)
    denies: dict[str, str] = field(default_factory=dict)  # what a call of the tool that policy refuses came to
    broken: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def of(self, shape: str, target: str) -> list[Pair]:
        return [pair for pair in self.pairs if pair.shape == shape and pair.target == target]

    def median(self, shape: str, target: str, read: Callable[[Pair], float]) -> float:
        return middle(read(pair) for pair in self.of(shape, target))

    def added_p50(self, shape: str, target: str) -> float:
        return self.median(shape, target, lambda pair: pair.own["p50_us"] - pair.direct["p50_us"])

    def added_p99(self, shape: str, target: str) -> float:
        return self.median(shape, target, lambda pair: pair.own["p99_us"] - pair.direct["p99_us"])

    def p50_times(self, shape: str, target: str) -> float:
        return self.median(shape, target, lambda pair: pair.own["p50_us"] / max(pair.direct["p50_us"], 0.001))

    def rate(self, shape: str, target: str) -> float:
        return self.median(shape, target, lambda pair: pair.own["calls_per_s"])

    def rate_times(self, shape: str, target: str) -> float:
        return self.median(shape, target, lambda pair: pair.own["calls_per_s"] / max(pair.direct["calls_per_s"], 0.001))

    def errors(self, target: str) -> int:
        return sum(pair.own["errors"] for pair in self.pairs if pair.target == target)


class Session:
    """All drivers of a run. Targets that break are dropped and remembered in `results.broken`."""

    def __init__(
        self, load: Path, direct: Target, run: Path, settings: Settings, tell: Callable[[str], None], results: Results
    ) -> None:
        self.load, self.direct, self.run, self.settings, self.tell = load, direct, run, settings, tell
        self.results = results
        self.drivers: dict[tuple[str, int], Driver] = {}
        cores = sorted(os.sched_getaffinity(0))
        self.pins = (cores[0], cores[1]) if len(cores) > 1 else (-1, -1)

    # drivers

    def driver(self, target: Target, connections: int) -> Driver:
        key = (target.name, connections)
        if key in self.drivers:
            return self.drivers[key]
        self.tell(f"starting {connections} x {target.label}")
        asker = None if target is self.direct else self.driver(self.direct, connections)
        before = asker.usage(memory=True, pid=target.pid)["other"]["rss_kb"] if asker and target.pid else 0
        patience = 60 + connections if target.kind == "peer" else 30
        driver = Driver(self.load, target, connections, self.run, patience)
        self.drivers[key] = driver
        driver.window(0.05)
        driver.settle()
        used = driver.usage(memory=True)
        each = (used["wrapped"]["rss_kb"] + used["other"]["rss_kb"] - before) / connections / 1024
        if target is self.direct:
            self.results.memory[f"{target.name}/{connections}"] = {"added": 0.0, "wrapped": each}
        else:
            bare = 0.0 if target.url else self.results.memory[f"{self.direct.name}/{connections}"]["wrapped"]
            self.results.memory[f"{target.name}/{connections}"] = {
                "added": each - bare,
                "wrapped": used["wrapped"]["rss_kb"] / connections / 1024,
            }
        if target.denied and target.name not in self.results.denies:
            answer = driver.probe()
            self.results.denies[target.name] = (
                "refused" if answer["refused"] else f"NOT refused: {answer['text'] or 'no answer'}"
            )
            if target.kind == "aegis" and not answer["refused"]:
                self.results.broken[f"{target.name}: policy"] = f"`{target.denied}` was not refused: {answer['text']}"
        return driver

    def close(self, connections: int | None = None) -> None:
        for key in [key for key in self.drivers if connections in (None, key[1])]:
            self.drivers.pop(key).close()

    def _try(self, target: Target, connections: int) -> Driver | None:
        try:
            return self.driver(target, connections)
        except BenchError as why:
            self.results.broken[f"{target.name} x {connections}"] = str(why)
            return None

    # windows

    def pair(self, shape: Shape, label: str, target: Target, turn: int) -> Pair:
        direct, own = self.driver(self.direct, shape.connections), self.driver(target, shape.connections)
        seconds = self.settings.open_seconds if shape.rate else self.settings.seconds / shape.finer

        def take(driver: Driver) -> tuple[dict[str, Any], float, float]:
            before = driver.cpu_ns()
            window = driver.window(seconds, shape.size, shape.k, shape.rate)
            drain = driver.settle()
            spent = (driver.cpu_ns() - before) / 1e3
            share = seconds / (seconds + min(0.2, seconds / 5))  # the warm-up's calls are not in `calls`
            return window, spent * share / max(window["calls"], 1), drain

        first, first_cpu, _ = take(direct)
        second, second_cpu, drain = take(own)
        pair = Pair(label, target.name, turn, first, second, second_cpu - first_cpu, drain)
        self.results.pairs.append(pair)
        if not second["alive"] or not second["calls"]:
            raise BenchError(f"{target.label}: {second['error'] or 'answered nothing'}{own.last_words()}")
        return pair

    def place(self, shape: Shape, target: Target) -> None:
        client, measured = self.pins if shape.pinned else (-1, -1)
        self.driver(target, shape.connections).place(client, measured)

    def windows(
        self,
        shape: Shape,
        targets: Iterable[Target],
        label: str = "",
        before: Callable[[Target], None] = lambda _: None,
        after: Callable[[Target, int], None] = lambda _target, _turn: None,
    ) -> None:
        """All rounds of one shape. The order rotates, so that no target always follows the same other one."""
        self.driver(self.direct, shape.connections)
        there = [target for target in targets if self._try(target, shape.connections)]
        for target in [self.direct, *there]:
            self.place(shape, target)
        rounds = self.settings.rounds * shape.finer
        for turn in range(rounds):
            ahead = turn % len(there) if there else 0
            for target in there[ahead:] + there[:ahead]:
                self.tell(f"{shape.label}: round {turn + 1} of {rounds}, {target.label}")
                before(target)
                try:
                    self.pair(shape, label or shape.name, target, turn)
                    after(target, turn)
                except BenchError as why:
                    self.results.broken[f"{target.name}, {shape.label}"] = str(why)
                    there.remove(target)

    def start_up(self, targets: Iterable[Target]) -> None:
        """Spawn → `initialize` answered, each start paired with a direct one."""
        direct = self.driver(self.direct, 1)
        there = [target for target in targets if self._try(target, 1)]
        for target in [self.direct, *there]:
            self.place(Shape("start", "start", 1), target)
        for turn in range(self.settings.starts):
            for target in list(there):
                self.tell(f"start-up: {turn + 1} of {self.settings.starts}, {target.label}")
                first, own = direct.start(), self.driver(target, 1).start()
                if not own["ok"]:
                    self.results.broken[f"{target.name}, start-up"] = f"{target.label}: {own['error']}"
                    there.remove(target)
                    continue
                self.results.starts.setdefault(self.direct.name, []).append(first)
                self.results.starts.setdefault(target.name, []).append(own)

    def commit(self) -> None:
        self.results.commits_us.append(commit_us(self.run))

    # S9

    def grown(self, small: Daemon, big: Daemon) -> tuple[Target, Target]:
        """A daemon with one rule and a one-second window beside one with everything; fills the second one's window."""
        server = Path(self.direct.command[0])
        small_target = small.target("s9-small", "one agent, one-second window", "handover", server)
        big_target = big.target("s9-big", f"{self.settings.agents} agents, filled", "handover", server)
        self.driver(small_target, 8)
        driver, calls = self.driver(big_target, 8), 0
        while calls < self.settings.preload:
            self.tell(f"S9: filling the window and the audit log, {calls:,} of {self.settings.preload:,} calls")
            window = driver.window(1.0, k=8)
            calls += window["calls"]
            driver.settle()
            if window["errors"] or not window["calls"]:
                raise BenchError(f"filling stopped at {calls} calls: {window['error']}{driver.last_words()}")
        self.results.notes["s9"] = {
            "agents": self.settings.agents,
            "calls_in_window": calls,
            "audit_rows": audit_rows(big.home),
        }
        return small_target, big_target


def audit_rows(home: Path) -> int | None:
    """Rows of the audit log, or None where it cannot be read."""
    with suppress(sqlite3.Error):
        db = sqlite3.connect(f"file:{home / 'audit.db'}?mode=ro", uri=True)
        try:
            return int(db.execute("SELECT count(*) FROM records").fetchone()[0])
        finally:
            db.close()
    return None
