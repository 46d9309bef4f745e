"""The bars S1 to S10 and H1 to H3: what each needs to be measured, and how its figure is read from the windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .driver import Target
from .measure import SHAPES, MissingError, Results, middle

NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "S1": {"1x1": ("cat", "handover")},
    "S2": {"1x1": ("cat", "relay")},
    "S3": {"1x1": ("cat", "handover", "full")},
    "S4": {"8x1": ("cat", "handover", "relay")},
    "S5": {"8x1": ("cat", "full"), "64x1": ("cat", "full")},
    "S6": {"64x1": ("handover",)},
    "S7": {"100k": ("cat", "handover", "relay")},
    "S8": {"start": ("cat", "handover", "relay"), "8x1": ("handover", "relay")},
    "S9": {"s9": ()},
    "S10": {"open": ("cat", "handover", "relay", "full", "relay-full")},
    "H1": {"http-1": ("envoy-mcp", "http")},
    "H2": {"http-8": ("envoy-mcp", "http")},
    "H3": {"child-8": ("mcp-proxy", "child"), "child-64": ("mcp-proxy", "child")},
}
OVER_HTTP = tuple(bar for bar in NEEDS if bar.startswith("H"))
EVERYTHING = {
    "1x1": ("cat", "handover", "relay", "full"),
    "100k": ("cat", "handover", "relay"),
    "start": ("cat", "handover", "relay"),
    "8x1": ("cat", "handover", "relay", "full"),
    "8x8": ("cat", "handover", "relay", "full"),
    "open": ("cat", "handover", "relay", "full", "relay-full"),
    "64x1": ("cat", "handover", "relay", "full"),
    "s9": (),
}
PEER_SHAPES = ("1x1", "start", "8x1", "open")
EVERYTHING_HTTP = {
    "http-1": ("nginx", "envoy", "envoy-mcp", "http"),
    "http-8": ("nginx", "envoy", "envoy-mcp", "http"),
    "child-8": ("mcp-proxy", "child"),
    "child-64": ("mcp-proxy", "child"),
}


def needed(only: list[str], pipes: bool, http: bool) -> dict[str, set[str]]:
    """Shape → the targets beside direct that it takes: those of some bars, else everything over pipes, over HTTP."""
    if not only:
        every = (EVERYTHING if pipes else {}) | (EVERYTHING_HTTP if http else {})
        return {shape: set(targets) for shape, targets in every.items()}
    shapes: dict[str, set[str]] = {}
    for bar in only:
        for shape, targets in NEEDS[bar].items():
            shapes.setdefault(shape, set()).update(targets)
    return shapes


@dataclass(frozen=True)
class Row:
    bar: str
    what: str
    measured: str
    wanted: str
    verdict: str  # pass | MISS | not measured | broken


class Reader:
    """Turns results into rows. A figure that is not there makes the row `not measured`."""

    def __init__(self, results: Results, targets: dict[str, Target]) -> None:
        self.results, self.targets = results, targets
        self.rows: list[Row] = []

    def row(
        self,
        bar: str,
        what: str,
        wanted: str,
        figure: Callable[[], tuple[str, bool]],
        targets: tuple[str, ...],
    ) -> None:
        bad = {name: self.results.errors(name) for name in targets if self.results.errors(name)}
        try:
            measured, good = figure()
        except MissingError:
            self.rows.append(Row(bar, what, "-", wanted, "not measured"))
            return
        if bad:
            wrong = ", ".join(f"{name}: {count} wrong answers" for name, count in bad.items())
            self.rows.append(Row(bar, what, f"{measured} ({wrong})", wanted, "broken"))
        else:
            self.rows.append(Row(bar, what, measured, wanted, "pass" if good else "MISS"))

    def all(self, bars: list[str]) -> list[Row]:
        for bar in bars:
            getattr(self, bar.lower())()
        return self.rows

    def _added(self, bar: str, target: str, what: str, limit: float) -> None:
        def figure() -> tuple[str, bool]:
            own, floor = self.results.added_p50("1x1", target), self.results.added_p50("1x1", "cat")
            if floor < 1:
                raise MissingError  # too noisy: the floor seems to cost nothing
            times = own / floor
            return f"{times:.1f} x ({own:+.0f} against {floor:+.0f} µs)", times <= limit

        self.row(bar, what, f"≤ {limit:.0f} x cat", figure, (target, "cat"))

    def s1(self) -> None:
        self._added("S1", "handover", "1 server, hand-over, added p50", 4)

    def s2(self) -> None:
        self._added("S2", "relay", "1 server, relay, added p50", 8)

    def s3(self) -> None:
        def figure() -> tuple[str, bool]:
            commit = middle(self.results.commits_us)
            own, process = self.results.added_p50("1x1", "full"), self.results.added_p50("1x1", "handover")
            times = (own - process) / commit
            return f"S1 + {times:.2f} commits ({own:+.0f} µs, S1 {process:+.0f}, one commit {commit:.0f})", times <= 1.5

        self.row("S3", "1 server, D=full, added p50", "≤ S1 + 1.5 commits", figure, ("full", "handover"))

    def _share(self, bar: str, shape: str, target: str, what: str, limit: float) -> None:
        def figure() -> tuple[str, bool]:
            share = self.results.rate_times(shape, target) / self.results.rate_times(shape, "cat")
            own, floor = self.results.rate(shape, target), self.results.rate(shape, "cat")
            return f"{share:.2f} x ({own:,.0f} against {floor:,.0f} calls/s)", share >= limit

        self.row(bar, what, f"≥ {limit:.2f} x cat", figure, (target, "cat"))

    def s4(self) -> None:
        self._share("S4", "8x1", "handover", "8 servers, hand-over, calls/s", 0.35)
        self._share("S4", "8x1", "relay", "8 servers, relay, calls/s", 0.15)

    def s5(self) -> None:
        self._share("S5", "8x1", "full", "8 servers, D=full, calls/s", 0.10)
        self._share("S5", "64x1", "full", "64 servers, D=full, calls/s", 0.25)

        def figure() -> tuple[str, bool]:
            own = self.results.rate("64x1", "full")
            return f"{own:,.0f} calls/s", own > 10_000

        self.row("S5", "64 servers, D=full, on a quiet machine", "> 10,000 calls/s", figure, ("full",))

    def s6(self) -> None:
        def figure() -> tuple[str, bool]:
            eight = {pair.turn: pair.own["calls_per_s"] for pair in self.results.of("8x1 beside 64x1", "handover")}
            wide = {pair.turn: pair.own["calls_per_s"] for pair in self.results.of("64x1", "handover")}
            share = middle(wide[turn] / eight[turn] for turn in eight if turn in wide)
            both = middle(wide.values()), middle(eight.values())
            return f"{share:.2f} x ({both[0]:,.0f} against {both[1]:,.0f} calls/s)", share >= 0.8

        self.row("S6", "64 servers against 8, hand-over, calls/s", "≥ 0.80 x with 8", figure, ("handover",))

    def s7(self) -> None:
        def figure() -> tuple[str, bool]:
            times, own = self.results.p50_times("100k", "handover"), self.results.added_p50("100k", "handover")
            return f"{times:.2f} x ({own:+.0f} µs)", times <= 2.5

        self.row("S7", "100 kB frames, hand-over, p50", "≤ 2.5 x direct", figure, ("handover",))

    def s8(self) -> None:
        for target, label in (("handover", "hand-over"), ("relay", "relay")):

            def figure(target: str = target) -> tuple[str, bool]:
                own = middle(start["start_ms"] for start in self.results.starts.get(target, []))
                direct = middle(start["start_ms"] for start in self.results.starts.get("direct", []))
                limit = 6 * direct + 12
                return f"{own:.1f} ms (direct {direct:.1f}, so ≤ {limit:.1f})", own <= limit

            self.row("S8", f"start-up, {label}, spawn → initialize answered", "≤ 6 x direct + 12 ms", figure, (target,))
        for target, label in (("handover", "hand-over"), ("relay", "relay")):

            def memory(target: str = target) -> tuple[str, bool]:
                used = self.results.memory.get(f"{target}/8")
                if not used:
                    raise MissingError
                return f"{used['added']:.1f} MB (the shim {used['wrapped']:.1f})", used["added"] <= 10

            self.row("S8", f"RSS added per wrapped server, {label}", "≤ 10 MB", memory, ())

        def daemon() -> tuple[str, bool]:
            used = self.results.daemon_mb
            if not used:
                raise MissingError
            alone, tree, summed = used["alone"], used["tree"], used["summed"]
            text = f"{alone:.0f} MB; with its helpers {tree:.0f} (their RSS summed, shared pages and all: {summed:.0f})"
            return text, max(alone, tree) <= 70

        self.row("S8", "daemon idle: RSS alone; PSS with its helpers", "≤ 70 MB", daemon, ())

    def s9(self) -> None:
        note = self.results.notes.get("s9", {})
        rows = note.get("audit_rows")
        size = (
            f"{note['agents']:,} agents x 10 rules, {note['calls_in_window']:,} calls in the window, "
            f"{f'{rows:,}' if rows is not None else 'unknown'} audit rows"
            if note
            else "10,000 rules, 100,000 calls in the window, 1 M audit rows"
        )

        def latency() -> tuple[str, bool]:
            big, small = self.results.added_p50("s9 1x1", "s9-big"), self.results.added_p50("s9 1x1", "s9-small")
            return f"{big / small:.2f} x ({big:+.0f} against {small:+.0f} µs)", big / small <= 1.1

        def rate() -> tuple[str, bool]:
            big, small = self.results.rate_times("s9 8x1", "s9-big"), self.results.rate_times("s9 8x1", "s9-small")
            own, floor = self.results.rate("s9 8x1", "s9-big"), self.results.rate("s9 8x1", "s9-small")
            return f"{big / small:.2f} x ({own:,.0f} against {floor:,.0f} calls/s)", big / small >= 0.9

        both = ("s9-big", "s9-small")
        self.row("S9", f"{size}: S1's added p50", "≤ 1.10 x small", latency, both)
        self.row("S9", "the same: S4's calls/s", "≥ 0.90 x small", rate, both)

    def s10(self) -> None:
        peers = [name for name, target in self.targets.items() if target.governs and target.kind == "peer"]
        for read, label in ((self.results.added_p50, "p50"), (self.results.added_p99, "p99")):
            known = [(read("open", peer), peer) for peer in peers if self.results.of("open", peer)]
            best = min((one for one in known if one[0] > 0), default=None)
            for target, way, limit in (
                ("handover", "hand-over", 0.3),
                ("relay", "relay", 0.3),
                ("full", "hand-over, D=full", 1.0),
                ("relay-full", "relay, D=full", 1.0),
            ):
                what = f"8 agents, 200 calls/s, {way}, added {label}"
                wanted = f"≤ {limit:.1f} x best governing peer" if limit < 1 else "below best governing peer"
                if target == "relay-full" and not self.results.of("open", target):
                    continue
                if best is None and self.results.of("open", target):
                    own = read("open", target)
                    self.rows.append(Row("S10", what, f"{own:+.0f} µs (no peer in this run)", wanted, "not measured"))
                    continue

                def figure(
                    target: str = target,
                    limit: float = limit,
                    read: Callable[[str, str], float] = read,
                    best: tuple[float, str] | None = best,
                ) -> tuple[str, bool]:
                    if best is None:
                        raise MissingError
                    own, (peer, name) = read("open", target), best
                    return f"{own / peer:.2f} x ({own:+.0f} against {name} {peer:+.0f} µs)", own <= limit * peer

                self.row("S10", what, wanted, figure, (target,))

    def h1(self) -> None:
        def figure() -> tuple[str, bool]:
            own, peer = self.results.added_p50("http-1", "http"), self.results.added_p50("http-1", "envoy-mcp")
            return f"{own / peer:.2f} x ({own:+.0f} against {peer:+.0f} µs)", own <= peer

        self.row("H1", "HTTP → HTTP, 1 session, added p50", "≤ 1.00 x Envoy's MCP chain", figure, ("http", "envoy-mcp"))

    def _times(self, bar: str, shape: str, target: str, peer: str, wanted: str, limit: float) -> None:
        def figure() -> tuple[str, bool]:
            times = self.results.rate_times(shape, target) / self.results.rate_times(shape, peer)
            own, other = self.results.rate(shape, target), self.results.rate(shape, peer)
            return f"{times:.2f} x ({own:,.0f} against {other:,.0f} calls/s)", times >= limit

        self.row(bar, f"{SHAPES[shape].label}, calls/s", wanted, figure, (target, peer))

    def h2(self) -> None:
        self._times("H2", "http-8", "http", "envoy-mcp", "≥ 1.00 x Envoy's MCP chain", 1)

    def h3(self) -> None:
        for shape in ("child-8", "child-64"):
            self._times("H3", shape, "child", "mcp-proxy", "≥ 10 x mcp-proxy", 10)

            def figure(shape: str = shape) -> tuple[str, bool]:
                own = self.results.rate(shape, "child")
                return f"{own:,.0f} calls/s", own > 10_000

            what = f"{SHAPES[shape].label}, on a quiet machine"
            self.row("H3", what, "> 10,000 calls/s", figure, ("child",))
