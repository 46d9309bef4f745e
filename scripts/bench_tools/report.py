"""Shows a run: tables on the terminal, the same as Markdown for the README, everything as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from .bars import NEEDS, Row
from .driver import Target
from .measure import SHAPES, MissingError, Results, Settings, Shape, middle

METHOD = (
    "Method: newline JSON-RPC over pipes, or POSTs on kept connections, to a lean C echo server, 300 B frames unless "
    "said, driven by a C client that checks every answer; each figure is the median of {rounds} rounds, and each "
    "window of {seconds} s was paired with a direct one taken just before it, so read ratios, not absolutes. One-call "
    "latencies: client pinned to one core, everything else to another. added = more than direct; cat = `cat | server "
    "| cat`, the floor of any proxy that is a process; D = audit durability (`process` survives any crash of ours, "
    "`full` a power cut)."
)


def _number(form: str, read: Callable[[], float]) -> str:
    try:
        return format(read(), form)
    except MissingError:
        return "-"


def figures(results: Results, targets: dict[str, Target], shape: str) -> list[list[str]]:
    direct = [pair.direct for pair in results.pairs if pair.shape == shape]
    if not direct:
        return []
    p50, p99, rate = (middle(window[key] for window in direct) for key in ("p50_us", "p99_us", "calls_per_s"))
    errors = sum(window["errors"] for window in direct)
    rows = [["direct", "", f"{p50:.0f}", f"{p99:.0f}", f"{rate:,.0f}", "", "", "", str(errors or "")]]
    for name, target in targets.items():
        pairs = results.of(shape, name)
        if not pairs:
            continue

        def share(name: str = name) -> float:
            return results.rate_times(shape, name) / results.rate_times(shape, SHAPES[shape].beside)

        rows.append(
            [
                target.label,
                target.gov,
                f"{results.added_p50(shape, name):+.0f}",
                f"{results.added_p99(shape, name):+.0f}",
                f"{results.rate(shape, name):,.0f}",
                f"{results.rate_times(shape, name):.3f}",
                _number(".3f", share),
                f"{results.median(shape, name, lambda pair: pair.cpu_us):+.0f}",
                str(sum(pair.own["errors"] for pair in pairs) or ""),
            ]
        )
    return rows


def figure_columns(shape: Shape) -> tuple[str, ...]:
    beside = f"x {shape.beside}"
    return ("target", "gov", "p50 µs", "p99 µs", "calls/s", "x direct", beside, "CPU µs/call", "errors")


def others(results: Results, targets: dict[str, Target]) -> list[list[str]]:
    rows = []
    for name, label in [("direct", "direct"), *((name, target.label) for name, target in targets.items())]:
        starts = [start["start_ms"] for start in results.starts.get(name, [])]
        memory = {n: used for n in ("1", "8", "64") if (used := results.memory.get(f"{name}/{n}"))}
        if not starts and not memory:
            continue
        rows.append(
            [
                label,
                f"{middle(starts):.1f}" if starts else "-",
                *(f"{memory[n]['added']:.1f}" if n in memory and name != "direct" else "-" for n in ("1", "8", "64")),
                results.denies.get(name, "-"),
            ]
        )
    return rows


OTHER_COLUMNS = ("target", "start ms", "RSS MB added, 1", "8", "64", "the tool that policy refuses")


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], right: int = 1) -> str:
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|" + "|".join("---" if i < right else "--:" for i in range(len(columns))) + "|")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def markdown(
    rows: list[Row],
    results: Results,
    targets: dict[str, Target],
    missing_peers: dict[str, str],
    facts: dict[str, Any],
    settings: Settings,
) -> str:
    parts = [
        f"Measured {facts['date']} on {facts['cores']} cores ({facts['cpu']}), Linux {facts['kernel']}, "
        f"Python {facts['python']}, commit {facts['commit']}, load average before {facts['load_before']}. "
        + METHOD.format(rounds=settings.rounds, seconds=settings.seconds),
        _markdown(("bar", "what", "measured", "wanted", ""), [list(asdict(row).values()) for row in rows], 5),
    ]
    for name, shape in SHAPES.items():
        found = figures(results, targets, name)
        if found:
            title = f"{shape.label} (p50 and p99: direct as it is, all others added):"
            parts += [title, _markdown(figure_columns(shape), found, 2)]
    found = others(results, targets)
    if found:
        title = "Start-up (spawn → `initialize` answered) and memory per wrapped server or HTTP session:"
        parts += [title, _markdown(OTHER_COLUMNS, found)]
    if missing_peers:
        parts += [f"Peers that could not be measured here: {', '.join(missing_peers)}."]
    return "\n\n".join(parts) + "\n"


COLOURS = {"pass": "green", "MISS": "bold red", "broken": "bold red", "not measured": "yellow"}


def show(
    console: Console,
    rows: list[Row],
    results: Results,
    targets: dict[str, Target],
    missing_peers: dict[str, str],
) -> None:
    for name, shape in SHAPES.items():
        found = figures(results, targets, name)
        if not found:
            continue
        table = Table(title=f"{shape.label} (p50, p99: direct as is, others added)", title_justify="left")
        for i, column in enumerate(figure_columns(shape)):
            table.add_column(column, justify="left" if i < 2 else "right", no_wrap=i == 0)
        for row in found:
            table.add_row(*row)
        console.print(table)
    found = others(results, targets)
    if found:
        table = Table(title="start-up and memory", title_justify="left")
        for i, column in enumerate(OTHER_COLUMNS):
            table.add_column(column, justify="left" if i in (0, 5) else "right")
        for row in found:
            table.add_row(*row)
        console.print(table)
    table = Table(title="bars", title_justify="left")
    for column in ("bar", "what", "measured", "wanted", "verdict"):
        table.add_column(column)
    for bar in rows:
        table.add_row(bar.bar, bar.what, bar.measured, bar.wanted, f"[{COLOURS[bar.verdict]}]{bar.verdict}[/]")
    console.print(table)
    for name, why in missing_peers.items():
        console.print(f"[bold red]peer not measured: {name}[/]")
        console.print(f"  {why}", markup=False, highlight=False)
    for name, why in results.broken.items():
        console.print(f"[bold red]broken: {name}[/]")
        console.print(f"  {why}", markup=False, highlight=False)


def summary(rows: list[Row], missing_peers: dict[str, str]) -> str:
    missed = [
        f"{row.bar} {row.what}: {row.measured}, wanted {row.wanted}"
        for row in rows
        if row.verdict in ("MISS", "broken")
    ]
    open_ones = sorted({row.bar for row in rows if row.verdict == "not measured"}, key=list(NEEDS).index)
    lines = [f"{sum(row.verdict == 'pass' for row in rows)} of {len(rows)} figures pass."]
    lines += ["Misses:", *(f"  {line}" for line in missed)] if missed else []
    lines += [f"Not measured, in whole or in part: {', '.join(open_ones)}."] if open_ones else []
    lines += [f"Peers that could not be measured: {', '.join(missing_peers)} (why: above)."] if missing_peers else []
    return "\n".join(lines)


def as_json(
    rows: list[Row],
    results: Results,
    targets: dict[str, Target],
    missing_peers: dict[str, str],
    facts: dict[str, Any],
    settings: Settings,
) -> dict[str, Any]:
    return {
        "machine": facts,
        "settings": asdict(settings),
        "bars": [asdict(row) for row in rows],
        "targets": {
            name: {"label": target.label, "gov": target.gov, "kind": target.kind} for name, target in targets.items()
        },
        "windows": [asdict(pair) for pair in results.pairs],
        "starts": results.starts,
        "memory_mb": results.memory,
        "daemon_mb": results.daemon_mb,
        "commits_us": results.commits_us,
        "denied_tool": results.denies,
        "s9": results.notes.get("s9"),
        "peers_missing": missing_peers,
        "broken": results.broken,
    }
