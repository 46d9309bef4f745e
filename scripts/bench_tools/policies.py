"""What policies cost: every row is asked in turn with all others in one process, by CPU time and by the clock.

The floor is the library itself over the whole set, parsed beforehand: what a call would cost without our groups.
"""

from __future__ import annotations

import gc
import json
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from aegis_daemon.config.load import loads
from aegis_daemon.config.runtime import build
from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Allow
from aegis_daemon.loop.clock import wall
from aegis_daemon.policy import sql
from aegis_daemon.policy.cedar import Engine, Question
from aegis_daemon.policy.dialect import Statement, read
from aegis_daemon.policy.rules import Argument, Constraint, compile_rule
from aegis_daemon.policy.transforms import Transform
from aegis_daemon.registry.pins import Registry
from aegis_daemon.stages.pin import Pins
from aegis_daemon.wire.jsonrpc import encode, parse
from aegis_daemon.wire.methods import TO_SERVER, Direction, Era, subject_of

from . import machine
from .machine import BenchError

SIZES = (10, 100, 1_000)
SERVERS = tuple(f"s{number}" for number in range(10))
IN_A_ROW = 5
AMY = Principal("amy")
METHOD = (
    "Method: one process; every row in turn, five times each, in {rounds} rounds (once in every tenth round what takes "
    "longer), so that all meet the same machine; garbage is collected between. CPU is the thread's own time. Each call "
    "brings another argument. `floor`: cedarpy over the whole set, parsed beforehand, one request, entities likewise."
)


class Row(NamedTuple):
    """One thing to measure; `work` does it once, `prepare` what has to come before and is not counted."""

    group: str
    name: str
    work: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    slow: bool = False


class Figure(NamedTuple):
    """Milliseconds."""

    group: str
    name: str
    cpu_p50: float
    cpu_p99: float
    wall_p50: float
    wall_p99: float


# --- policies


def scoped(size: int) -> list[str]:
    """Each about one tool of one server."""
    return [
        f'permit(principal, action == Action::"tools/call", resource == Server::"{SERVERS[number % 10]}") '
        f'when {{ context.target == "t{number}" && context.arguments.n > 1 }};'
        for number in range(size)
    ]


def broad(size: int) -> list[str]:
    """Each about an argument of any call."""
    return [
        f'forbid(principal, action, resource) when {{ context.arguments.path like "/secret{number}/*" }};'
        for number in range(size)
    ]


def guarded(size: int) -> list[str]:
    """Each about an argument of its own, where a call has it."""
    return [
        f"forbid(principal, action, resource) when {{ context.arguments has a{number} && "
        f'context.arguments.a{number} == "x" }};'
        for number in range(size)
    ]


ALL = "permit(principal, action, resource);"


def _judging(engine: Engine, path: str) -> Callable[[], object]:
    number = count(2)

    def judge() -> object:
        turn = next(number)
        arguments = {"path": f"{path}/{turn}", "n": turn}
        question = Question(AMY, "s3", "tools/call", "tool", "t3", "to_server", arguments, {})
        ruling = engine.judge(question)
        if not ruling.allowed:
            raise BenchError(f"a call that is permitted was refused: {ruling.why}")
        return ruling

    return judge


def _floor(statements: list[Statement], engine: Engine) -> Callable[[], object]:
    import cedarpy

    whole = {"staticPolicies": {str(number): one.est for number, one in enumerate(statements)}, "templates": {}}
    policies = cedarpy.PolicySet.from_json_str(json.dumps({**whole, "templateLinks": []}))
    entities = engine._principal(AMY, "s3")[0]
    request = {
        "principal": {"type": "Agent", "id": "amy"},
        "action": {"type": "Action", "id": "tools/call"},
        "resource": {"type": "Server", "id": "s3"},
        "context": json.dumps({"target": "t3", "arguments": {"path": "/data/1", "n": 2}}),
    }
    return lambda: cedarpy.is_authorized(request, policies, entities)


def _policies() -> Iterator[Row]:
    for size in SIZES:
        sets = {
            "of one server and tool": [ALL, *scoped(size)],
            "half of them broad": [ALL, *scoped(size // 2), *broad(size - size // 2)],
            "broad, on one argument": [ALL, *broad(size)],
            "broad, each on its own argument": [ALL, *guarded(size)],
        }
        for name, texts in sets.items():
            statements = read("\n".join(texts), "bench.cedar")
            engine = Engine(statements, {}, SERVERS)
            group = f"{size:,} policies"
            yield Row(group, name, _judging(engine, "/data"))
            if name == "broad, on one argument":
                yield Row(group, f"{name}, with capitals in it", _judging(engine, "/Data"))
            yield Row(group, f"{name}: floor", _floor(statements, engine))


# --- the rest


def _rules() -> Iterator[Row]:
    wanted = {
        "amount": Argument(least=Decimal("0.01"), most=Decimal(500)),
        "kind": Argument(one_of=("a", "b", "c")),
        "path": Argument(under=("/data",)),
        "url": Argument(hosts=("example.com",)),
        "note": Argument(matches="[a-z ]*", max_length=80),
    }
    rule = compile_rule(Constraint("pay", wanted, forbid_extra=True))
    arguments = {
        "amount": 12.5, "kind": "b", "path": "/data/reports/2024.csv", "url": "https://example.com/x", "note": "tea",
    }  # fmt: skip
    if rule.judge(arguments) is not None:
        raise BenchError("a rule refused what it allows")
    yield Row("constraints", "five arguments", lambda: rule.judge(arguments))


def _statement(size: int) -> str:
    if size < 100:
        return "SELECT id FROM t WHERE a=1;"[:size].ljust(size)
    text = "SELECT id, name FROM users WHERE id IN (1"
    return text + ", 'a long name'" * ((size - len(text) - 1) // 15) + ")"


def _sql() -> Iterator[Row]:
    for dialects in (("postgres",), sql.DEFAULT_DIALECTS):
        for size in (27, 150, 1_000, 4_000):
            text = _statement(size)
            read_in = _reading(text, dialects)
            told = "" if sql.facts(text, dialects).parsed else ", refused"
            group = f"SQL, {len(dialects)} dialect{'s' * (len(dialects) > 1)}"
            yield Row(group, f"{size:,} characters{told}, cold", read_in, sql._facts.cache_clear, slow=size >= 1_000)
            yield Row(group, f"{size:,} characters{told}, seen before", read_in, read_in)
    hostile = {
        "brackets": f"SELECT {'DECIMAL(' * 20}1{')' * 20}",
        "subscripts": f"SELECT a{'[1]' * 1300}",
        "subqueries": f"SELECT * FROM {'(SELECT * FROM ' * 23}t{')' * 23}",
        "words": f"SELECT {'a,' * 2000}b",
    }
    for name, text in hostile.items():
        yield Row("SQL, hostile", name, _reading(text, sql.DEFAULT_DIALECTS), sql._facts.cache_clear, slow=True)


def _reading(text: str, dialects: tuple[str, ...]) -> Callable[[], object]:
    return lambda: sql.facts(text, dialects)


def _transforms() -> Iterator[Row]:
    transform = Transform("t", ["$.response.people[*].email", "$.request.token"])
    for size in (1_000, 100_000):
        people = [{"name": f"n{number}", "email": f"n{number}@example.com"} for number in range(size // 45)]
        body = json.dumps({"content": [], "structuredContent": {"people": people}}).encode()
        if b"@example.com" in transform.result({}, body):
            raise BenchError("a transform left what it should redact")
        yield Row("transforms", f"an answer of {size:,} bytes", lambda body=body: transform.result({}, body))  # type: ignore[misc]


def _call(name: str, number: int) -> Call:
    params = {"name": name, "arguments": {"path": f"/data/{number}", "n": number}}
    frame = parse(encode({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}))
    row = TO_SERVER["tools/call"]
    subject, found = subject_of(row, frame.params)
    return Call(f"{number:032x}", number, "s", AMY, Direction.TO_SERVER, row, subject, found, "s3", Era.LEGACY, frame)


def _pins() -> Iterator[Row]:
    db = sqlite3.connect(":memory:", isolation_level=None)
    registry = Registry(db, wall=wall, record=lambda action, by, detail: None)
    tools = [{"name": f"t{number}", "inputSchema": {"type": "object"}} for number in range(100)]
    registry.shown("s3", "tools/list", json.dumps({"tools": tools}).encode())
    gate, call = Pins(registry), _call("t3", 2)
    yield Row("pins", "a call of one of 100 tools", lambda: gate.decide(call, 0.0))


def _pipelines() -> Iterator[Row]:
    house = "backends: {s3: {}}\nagents: {amy: {backends: {s3: {allowed: true}}}}\n"
    texts = "".join(f"    {line}\n" for line in (ALL, *scoped(1_000)))
    for name, text in (("without policies", house), ("with 1,000 of one tool", f"{house}policy:\n  text: |\n{texts}")):
        pipeline = build(loads(text, "bench.yaml").config, "bench").pipeline
        calls = [_call("t3", number) for number in range(2, 500)]
        turn = count()

        def admit(pipeline: Any = pipeline, calls: list[Call] = calls, turn: Iterator[int] = turn) -> None:
            if type(pipeline.admit(calls[next(turn) % len(calls)], 0.0)) is not Allow:
                raise BenchError("a call that is allowed was not")

        yield Row("a call through the pipeline", name, admit)


def _took(row: Row) -> tuple[float, float]:
    row.prepare()
    began, spent = time.perf_counter_ns(), time.thread_time_ns()
    row.work()
    return (time.thread_time_ns() - spent) / 1e6, (time.perf_counter_ns() - began) / 1e6


def measured(rows: list[Row], rounds: int, tell: Callable[[str], None]) -> list[Figure]:
    """All rows, asked in turn."""
    took: list[list[tuple[float, float]]] = [[] for _ in rows]
    for row in rows:
        _took(row)
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            if turn % 20 == 0:
                tell(f"policies: round {turn} of {rounds}")
                gc.collect()
            for row, kept in zip(rows, took, strict=True):
                if not row.slow:
                    kept += [_took(row) for _ in range(IN_A_ROW)]
                elif turn % 10 == 0:
                    kept.append(_took(row))
    finally:
        gc.enable()
    return [_figure(row, kept) for row, kept in zip(rows, took, strict=True)]


def _figure(row: Row, took: list[tuple[float, float]]) -> Figure:
    cpu, clock = (sorted(one[side] for one in took) for side in (0, 1))
    last = max(0, -(-99 * len(took) // 100) - 1)
    return Figure(row.group, row.name, statistics.median(cpu), cpu[last], statistics.median(clock), clock[last])


def _cells(figure: Figure, floors: dict[tuple[str, str], float]) -> list[str]:
    floor = floors.get((figure.group, figure.name.partition(", with capitals")[0]))
    ratio = f"{figure.cpu_p50 / floor:.2f}" if floor and not figure.name.endswith(": floor") else ""
    return [figure.group, figure.name, *(f"{value:.3f}" for value in figure[2:]), ratio]


COLUMNS = ("", "what", "CPU p50, ms", "CPU p99, ms", "wall p50, ms", "wall p99, ms", "x floor")


def main(markdown: Path | None, written: Path | None, *, quick: bool) -> int:
    """Measures, shows and writes. 1 where something broke."""
    console, notes = Console(), Console(stderr=True)
    facts, rounds = machine.facts(), 40 if quick else 200
    try:
        with notes.status("policies: parsing") as status:
            rows = [*_policies(), *_rules(), *_sql(), *_transforms(), *_pins(), *_pipelines()]
            figures = measured(rows, rounds, status.update)
    except BenchError as why:
        notes.print(f"broken: {why}", markup=False)
        return 1
    floors = {(one.group, one.name.removesuffix(": floor")): one.cpu_p50 for one in figures if ": floor" in one.name}
    table = Table(*COLUMNS)
    cells = [_cells(figure, floors) for figure in figures]
    for row in cells:
        table.add_row(*row)
    console.print(table)
    lines = [
        f"Measured {facts['date']} on {facts['cores']} cores ({facts['cpu']}), Linux {facts['kernel']}, Python "
        f"{facts['python']}, commit {facts['commit']}, load average before {facts['load_before']}. "
        + METHOD.format(rounds=rounds),
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]
    text = "\n".join(lines) + "\n"
    if markdown is not None:
        markdown.write_text(text)
    if written is not None:
        written.write_text(
            json.dumps({"machine": facts, "figures": [one._asdict() for one in figures]}, indent=1) + "\n"
        )
    sys.stdout.write(text)
    return 0
