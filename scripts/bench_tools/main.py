"""The order of a run: build, start what is measured, take the windows shape by shape, say what came out."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from . import aegis, approvals, audit_log, audit_search, bars, machine, peers, policies, report, telemetry, web
from .driver import Target
from .machine import BenchError
from .measure import SHAPES, Results, Session, Settings


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure Aegis beside nothing and its peers.")
    parser.add_argument("--quick", action="store_true", help="short windows and few rounds: under 90 s, rough figures")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every window and figure there")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the Markdown tables there")
    parser.add_argument("--only", metavar="S1,S4", default="", help="measure only what these bars need")
    parser.add_argument("--peers", action="store_true", help="install and measure the peers too, and HTTP")
    parser.add_argument("--http", action="store_true", help="HTTP alone, with its peers")
    parser.add_argument("--approvals", action="store_true", help="approvals alone: many tickets that wait at once")
    parser.add_argument("--policy", action="store_true", help="policies alone: what judging a call costs")
    parser.add_argument(
        "--audit", action="store_true", help="writing a log of a million records, alone (4 GB of disk, four minutes)"
    )
    parser.add_argument(
        "--audit-search", action="store_true", help="searching a log of ten million calls, alone (12 GB of disk)"
    )
    parser.add_argument("--rows", metavar="N", type=int, default=10_000_000, help="calls in that log")
    parser.add_argument("--at", metavar="DIR", type=Path, help="where that log is made; else where temporary files are")
    parser.add_argument(
        "--peer-bin", metavar="NAME=PATH", action="append", default=[], help="use this peer, installed elsewhere"
    )
    parser.add_argument("--no-aegis", action="store_true", help="all but Aegis")
    parser.add_argument("--telemetry", action="store_true", help="what numbers and traces cost a call")
    parser.add_argument("--keep", action="store_true", help="keep the directory of the run (homes, logs)")
    args = parser.parse_args(argv)
    args.only = [bar.strip().upper() for bar in args.only.split(",") if bar.strip()]
    if unknown := [bar for bar in args.only if bar not in bars.NEEDS]:
        parser.error(f"unknown bar `{unknown[0]}`; there are {', '.join(bars.NEEDS)}")
    if args.only and args.http:
        parser.error("--http and --only each choose what is measured; give one of them")
    if args.approvals + args.policy + args.audit + args.audit_search + bool(args.only or args.http or args.peers) > 1:
        parser.error("--approvals, --policy, --audit and --audit-search are each measured alone")
    for given in args.peer_bin:
        if given.partition("=")[0] not in peers.PEERS or "=" not in given:
            parser.error(f"`{given}` is not NAME=PATH with one of the names {', '.join(peers.PEERS)}")
    return args


def _daemons(session: Session, names: set[str], run: Path, targets: dict[str, Target]) -> list[aegis.Daemon]:
    """Starts the daemons whose targets are wanted and adds those to `targets`; failures are remembered, not raised."""
    kinds = (
        ("process", {"handover": ("hand-over", "handover"), "relay": ("relay", "relay")}),
        ("full", {"full": ("hand-over, D=full", "handover"), "relay-full": ("relay, D=full", "relay")}),
    )
    started = []
    for durability, ways in kinds:
        if not names & set(ways):
            continue
        daemon = aegis.Daemon(run / durability, durability)
        session.tell(f"starting a daemon, durability {durability}")
        try:
            daemon.start()
        except BenchError as why:
            session.results.broken[f"aegis, durability {durability}"] = str(why)
            continue
        started.append(daemon)
        for name, (label, way) in ways.items():
            if name in names:
                targets[name] = daemon.target(name, f"aegis {label}", way, Path(session.direct.command[0]))
        if durability == "process":
            time.sleep(1)  # what it still does after it has opened its socket is not idling
            used = session.driver(session.direct, 1).usage(memory=True, pid=daemon.pid)["other"]
            session.results.daemon_mb = {
                "tree": used["pss_kb"] / 1024,
                "summed": used["rss_kb"] / 1024,
                "alone": used["root_rss_kb"] / 1024,
            }
    return started


def _grown(session: Session, run: Path) -> None:
    small = aegis.Daemon(run / "s9-small", "process", window="1s")
    big = aegis.Daemon(run / "s9-big", "process", agents=session.settings.agents)
    try:
        session.tell(f"S9: starting a daemon with {session.settings.agents * aegis.RULES_PER_AGENT:,} rules")
        small.start()
        big.start(120)
        both = session.grown(small, big)
        session.windows(SHAPES["8x1"], both, "s9 8x1")
        session.windows(replace(SHAPES["1x1"], finer=5), both, "s9 1x1")
    except BenchError as why:
        session.results.broken["S9"] = str(why)
    finally:
        for key in [key for key in session.drivers if key[0].startswith("s9-")]:
            session.drivers.pop(key).close()
        small.stop()
        big.stop()


def measure(session: Session, shapes: dict[str, set[str]], targets: dict[str, Target], guests: list[Target]) -> None:
    def chosen(shape: str) -> list[Target]:
        invited = guests if shape in bars.PEER_SHAPES else []
        return [target for name, target in targets.items() if name in shapes[shape]] + invited

    def commit_before(target: Target) -> None:
        if target.name == "full":
            session.commit()

    if "1x1" in shapes:
        session.windows(SHAPES["1x1"], chosen("1x1"), before=commit_before)
    if "100k" in shapes:
        session.windows(SHAPES["100k"], chosen("100k"))
    if "start" in shapes:
        session.start_up(chosen("start"))
    session.close(1)
    for name in ("8x1", "8x8", "open"):
        if name in shapes:
            session.windows(SHAPES[name], chosen(name))
    for key in [key for key in session.drivers if key[0] not in ("direct", "handover")]:
        session.drivers.pop(key).close()
    if "64x1" in shapes:
        eight = SHAPES["8x1"]

        def eight_beside(target: Target, turn: int) -> None:
            if target.name == "handover":
                session.pair(eight, "8x1 beside 64x1", target, turn)

        if "handover" in shapes["64x1"] and "handover" in targets:
            for target in (session.direct, targets["handover"]):
                session.place(eight, target)
        session.windows(SHAPES["64x1"], chosen("64x1"), after=eight_beside)
    session.close()


def measure_http(
    load: Path,
    servers: tuple[Path, Path],
    run: Path,
    shapes: dict[str, set[str]],
    args: argparse.Namespace,
    session: Session,
    targets: dict[str, Target],
    missing: dict[str, str],
) -> None:
    """The shapes over HTTP: starts what they take, adds it to `targets`, takes their windows. `servers`: on pipes, over
    HTTP."""
    names = set().union(*shapes.values())
    results, tell = session.results, session.tell
    there = web.Web(run, *servers)
    daemon = None
    over = Session(load, there.direct, run, session.settings, tell, results)
    try:
        tell("installing and starting peers")
        guests, gone = there.gather(names)
        missing |= gone
        backends = {"web": {"url": there.upstream.url()}, "child": {"command": str(servers[0])}}
        own: dict[str, Target] = {}
        if not args.no_aegis:
            daemon = aegis.Daemon(run / "http", "process", backends=backends)
            tell("starting a daemon for HTTP")
            try:
                daemon.start()
                own["http"] = daemon.front("http", "aegis → HTTP", "web", (there.upstream.pid,))
                own["child"] = daemon.front("child", "aegis → stdio", "child")
            except BenchError as why:
                results.broken["aegis, HTTP"] = str(why)
        both = guests | own
        targets |= both
        for name, wanted in shapes.items():
            over.windows(SHAPES[name], [target for key, target in both.items() if key in wanted])
            if name.endswith("-8"):
                over.close()  # its sessions, before those of the next shape
    finally:
        over.close()
        if daemon:
            daemon.stop()
        there.stop()


def main(argv: list[str]) -> int:
    args = arguments(argv)
    if args.approvals:
        return approvals.main(args.markdown, quick=args.quick, keep=args.keep)
    if args.policy:
        return policies.main(args.markdown, args.json, quick=args.quick)
    console, notes = Console(), Console(stderr=True)
    if args.telemetry:
        return telemetry.run(lambda text: console.print(text, markup=False), args.json)
    if args.audit:
        try:
            return audit_log.run(lambda text: notes.print(text, markup=False), args.at, args.json)
        except BenchError as why:
            notes.print(f"broken: {why}", markup=False)
            return 1
    if args.audit_search:
        try:
            return audit_search.run(lambda text: notes.print(text, markup=False), args.at, args.json, args.rows)
        except BenchError as why:
            notes.print(f"broken: {why}", markup=False)
            return 1
    if not console.is_terminal:
        console = Console(width=150)
    settings = Settings.quick() if args.quick else Settings.full()
    shapes = bars.needed(args.only, pipes=not args.http, http=args.http or args.peers)
    http = {name: shapes.pop(name) for name in list(shapes) if name in bars.EVERYTHING_HTTP}
    if args.quick:
        shapes.get("open", set()).difference_update({"cat", "relay-full"})
    try:
        load, server, http_server = machine.build()
    except BenchError as why:
        notes.print(f"broken: {why}", markup=False)
        return 1
    run = machine.run_directory()
    facts = machine.facts()
    daemons: list[aegis.Daemon] = []
    targets: dict[str, Target] = {}
    missing: dict[str, str] = {}
    began = time.monotonic()
    with notes.status("building") as status:
        direct = Target("direct", "direct", "direct", (str(server),), denied="")
        session = Session(load, direct, run, settings, status.update, Results())
        try:
            if any("cat" in wanted for wanted in shapes.values()):
                floor = ("sh", "-c", f"cat | '{server}' | cat")
                targets["cat"] = Target("cat", "cat | server | cat", "floor", floor, denied="")
            guests: list[Target] = []
            if args.peers and shapes:
                status.update("installing peers")
                guests, missing = peers.gather(run, server, dict(given.split("=", 1) for given in args.peer_bin))
            if not args.no_aegis:
                daemons = _daemons(session, set().union(*shapes.values()), run, targets)
            targets |= {guest.name: guest for guest in guests}
            measure(session, shapes, targets, guests)
            if "s9" in shapes and not args.no_aegis:
                _grown(session, run)
            while daemons:  # they have nothing to do with what comes
                daemons.pop().stop()
            if http:
                measure_http(load, (server, http_server), run, http, args, session, targets, missing)
        except BenchError as why:  # direct or the floor itself: nothing can be paired any more
            session.results.broken["the run"] = str(why)
        finally:
            status.update("stopping")
            session.close()
            for daemon in daemons:
                daemon.stop()
    wanted = args.only or [bar for bar in bars.NEEDS if (bool(http) if bar in bars.OVER_HTTP else bool(shapes))]
    rows = bars.Reader(session.results, targets).all(wanted)
    facts["took_s"] = round(time.monotonic() - began)
    text = report.markdown(rows, session.results, targets, missing, facts, settings)
    machine.CACHE.joinpath("last.md").write_text(text)
    if args.markdown:
        args.markdown.write_text(text)
    if args.json:
        everything = report.as_json(rows, session.results, targets, missing, facts, settings)
        args.json.write_text(json.dumps(everything, indent=1) + "\n")
    report.show(console, rows, session.results, targets, missing)
    console.print(f"\nMarkdown ({facts['took_s']} s for the run):\n")
    sys.stdout.write(text)
    console.print("\n" + report.summary(rows, missing), markup=False, highlight=False)
    if args.keep:
        console.print(f"kept: {run}", markup=False)
    else:
        shutil.rmtree(run, ignore_errors=True)
    foreign = {*peers.PEERS, *web.PEERS}
    own = [name for name in session.results.broken if name.split(",")[0].split(" x ")[0] not in foreign]
    return 1 if own or any(row.verdict == "broken" for row in rows) else 0
