"""What passes in the official conformance suite against a server directly also passes through Aegis, check by check.

    scripts/conformance [direct|http|stdio|URL]... [--suite NAME]... [--keep DIR]

The server is the official SDK's everything-server, which has a fixture for every scenario. `direct` talks to it as it
is; `http` goes through a daemon that reaches it over HTTP, `stdio` through one that runs it as a child; a URL is any
other front. 1 where a check that passes directly does not pass through the target, or where an expected difference
(conformance_differences.toml) is none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .house import BOUND_S, HERE, Home, until
from .servers import NODE

CACHE = HERE.parents[1] / ".cache" / "conformance"
PYTHON = CACHE / "python" / "bin" / "python"
SERVER = "mcp_everything_server"
ON_STDIO = f"from {SERVER}.server import mcp; mcp.run('stdio')"
EXPECTED = HERE / "conformance_differences.toml"
TARGETS = ("direct", "http", "stdio")
PASS, FAIL = "SUCCESS", "FAILURE"
SHOWN = 240
"""Characters of what the suite says of a check; `--keep` has the rest."""


@dataclass(frozen=True)
class Suite:
    """`passing`: checks that must pass directly, so that a broken baseline is not taken for agreement."""

    package: str
    options: tuple[str, ...]
    passing: int


SUITES = {
    "0.1.16": Suite("suite-0.1", ("--suite", "all"), 44),
    "2025-11-25": Suite("suite-0.2", ("--requirements", "2025-11-25"), 84),
    "2026-07-28": Suite("suite-0.2", ("--requirements", "2026-07-28"), 169),
}
BOUND_SUITE_S = 600.0
"""How long one suite may take: every scenario that hangs costs it half a minute."""

Key = tuple[str, str, int]
"""Scenario, check, and which of the checks of that id in the scenario."""


@dataclass(frozen=True)
class Check:
    status: str  # SUCCESS | FAILURE | WARNING | SKIPPED | INFO | MISSING
    said: str


Checks = dict[Key, Check]
Name = tuple[str, str, str, str, str]
"""Target, suite, scenario, check, and the status through the target."""
MISSING = Check("MISSING", "the scenario did not come to this check")


@dataclass(frozen=True)
class Difference:
    target: str
    suite: str
    key: Key
    direct: Check
    through: Check

    @property
    def name(self) -> Name:
        """As the expected differences name it."""
        return self.target, self.suite, self.key[0], self.key[1], self.through.status


class Broken(Exception):
    """A run that says nothing about anybody: the suite, the server or the baseline."""


# --- who is asked


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def everything() -> Iterator[str]:
    """The server over HTTP; its URL."""
    port = free_port()
    argv = [str(PYTHON), "-m", SERVER, "--port", str(port), "--log-level", "WARNING"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            until(lambda: process.poll() is not None or accepts(port), "the everything-server")
            if process.poll() is not None:
                log.seek(0)
                raise Broken(f"the everything-server ended: {log.read()[-800:].decode(errors='replace')}")
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(BOUND_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def aegis(backend: str) -> Iterator[str]:
    """A daemon before that backend (the text of its settings); its URL."""
    port = free_port()
    config = (
        f"server: {{listen: '127.0.0.1:{port}'}}\n"
        f"backends: {{everything: {backend}}}\n"
        "agents: {tester: {backends: {everything: "
        "{allowed: true, server_requests: [sampling, elicitation, roots]}}}}\n"
    )
    home = Home(config)
    try:
        home.launch()
        until(lambda: accepts(port), f"the front at port {port}")
        yield f"http://127.0.0.1:{port}/agents/tester/mcp"
    finally:
        home.close()


@contextmanager
def target(name: str) -> Iterator[str]:
    """The URL of `direct`, `http` or `stdio`, while it runs; any other name is a URL itself."""
    with ExitStack() as stack:
        if name == "direct":
            yield stack.enter_context(everything())
        elif name == "http":
            url = stack.enter_context(everything())
            yield stack.enter_context(aegis(json.dumps({"url": url})))
        elif name == "stdio":
            command = {"command": str(PYTHON), "args": ["-c", ON_STDIO]}
            yield stack.enter_context(aegis(json.dumps(command)))
        else:
            yield name


# --- what is asked


def run(suite: str, url: str, directory: Path) -> Checks:
    """All checks of a suite. `directory`: where the suite leaves what it saw. Raises Broken where it saw nothing."""
    chosen = SUITES[suite]
    script = CACHE / "node_modules" / chosen.package / "dist" / "index.js"
    argv = [str(NODE), str(script), "server", "--url", url, *chosen.options, "--output-dir", str(directory)]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=BOUND_SUITE_S, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        raise Broken(f"suite {suite} was not done after {BOUND_SUITE_S:.0f} s at {url}") from None
    found = read(directory)
    if not found:
        raise Broken(f"suite {suite} did not run: {(done.stdout + done.stderr)[-800:].decode(errors='replace')}")
    return found


def read(directory: Path) -> Checks:
    """What the suite left: `server-SCENARIO-TIME/checks.json`."""
    found: Checks = {}
    for path in sorted(directory.glob("server-*/checks.json")):
        scenario = re.sub(r"^server-|-\d{4}-\d\d-\d\dT[\d-]+Z$", "", path.parent.name)
        seen: dict[str, int] = {}
        for check in json.loads(path.read_text()):
            seen[check["id"]] = turn = seen.get(check["id"], 0) + 1
            found[scenario, check["id"], turn] = Check(check["status"], check.get("errorMessage") or "")
    return found


def baseline(suite: str, directory: Path) -> Checks:
    """The suite against the server itself. Raises Broken where too little passes to compare with."""
    with target("direct") as url:
        found = run(suite, url, directory)
    passing, wanted = count(found, PASS), SUITES[suite].passing
    if passing < wanted:
        raise Broken(f"suite {suite} passes {passing} checks directly; {wanted} are known to")
    return found


# --- what came of it


def count(checks: Checks, status: str) -> int:
    return sum(check.status == status for check in checks.values())


def differences(name: str, suite: str, direct: Checks, through: Checks) -> list[Difference]:
    """Where a check that passes directly does not, or one that does not fail directly does."""
    found = []
    for key in sorted(direct.keys() | through.keys()):
        one, other = direct.get(key, MISSING), through.get(key, MISSING)
        if (one.status == PASS and other.status != PASS) or (one.status != FAIL and other.status == FAIL):
            found.append(Difference(name, suite, key, one, other))
    return found


def expected() -> set[Name]:
    """The differences that the specification asks for. Raises Broken for one without a reason."""
    found: set[Name] = set()
    for entry in tomllib.loads(EXPECTED.read_text()).get("difference", []):
        if not entry.get("why", "").strip():
            raise Broken(f"{EXPECTED.name}: {entry} has no `why`")
        places = itertools.product(entry["targets"], entry["suites"])
        rest = entry["scenario"], entry["check"], entry["status"]
        found.update((target, suite, *rest) for target, suite in places)
    return found


def unexpected(name: str, suite: str, found: Iterable[Difference]) -> list[str]:
    """A line for every difference that nobody expects, and for each that is expected and is none."""
    awaited = {entry for entry in expected() if entry[:2] == (name, suite)}
    lines = [
        f"{suite} {each.key[0]}: {each.key[1]} ({each.key[2]}) {each.direct.status} directly, "
        f"{each.through.status} through {name}{': ' if each.through.said else ''}{each.through.said[:SHOWN]}"
        for each in found
        if each.name not in awaited
    ]
    stale = sorted(awaited - {each.name for each in found})
    return lines + [f"{EXPECTED.name} expects a difference that is none: {' '.join(entry)}" for entry in stale]


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/conformance", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="direct|http|stdio|URL", help="what is asked (all three)")
    parser.add_argument("--suite", action="append", choices=list(SUITES), help="only this one; may be repeated")
    parser.add_argument("--keep", metavar="DIR", help="leave what the suite saw there, a folder per target and suite")
    args = parser.parse_args(argv)
    args.keep = Path(os.environ.get("CALLED_FROM", ""), args.keep) if args.keep else None
    args.targets = args.targets or list(TARGETS)
    for name in args.targets:
        if name not in TARGETS and not name.startswith(("http://", "https://")):
            parser.error(f"`{name}` is no target; give {', '.join(TARGETS)} or a URL")
    args.suite = args.suite or list(SUITES)
    return args


def main(argv: list[str]) -> int:
    args = arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("suite", "target", "scenarios", "passed", "failed", "other", "differences")
    rows: list[tuple[str, ...]] = []
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="ae-conformance-") as scratch:
        place: Path = args.keep or Path(scratch)

        def row(suite: str, name: str, checks: Checks, found: str) -> None:
            passed, failed = count(checks, PASS), count(checks, FAIL)
            scenarios = len({key[0] for key in checks})
            numbers = (scenarios, passed, failed, len(checks) - passed - failed)
            rows.append((suite, name, *map(str, numbers), found))

        def folder(name: str, suite: str) -> Path:
            made = place / re.sub(r"[^\w.-]+", "_", name) / suite
            if args.keep and made.exists() and any(made.iterdir()):
                raise Broken(f"`{made}` is not empty; name another folder for --keep")
            return made

        try:
            direct = {}
            for suite in args.suite:
                print(f"suite {suite}, direct", file=sys.stderr)
                direct[suite] = baseline(suite, folder("direct", suite))
                row(suite, "direct", direct[suite], "")
            for name in (name for name in args.targets if name != "direct"):
                with target(name) as url:
                    for suite in args.suite:
                        print(f"suite {suite}, {name} at {url}", file=sys.stderr)
                        through = run(suite, url, folder(name, suite))
                        found = differences(name, suite, direct[suite], through)
                        row(suite, name, through, str(len(found)))
                        faults += unexpected(name, suite, found)
        except (Broken, AssertionError) as why:
            faults.append(f"broken: {why}")
    for each in sorted(rows, key=lambda each: args.suite.index(each[0])):
        table.add_row(*each)
    console.print(table)
    for fault in faults:
        console.print(fault, markup=False, highlight=False, soft_wrap=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
