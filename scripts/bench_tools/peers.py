"""The peers we compare with: each installed by itself, set up as it would like best, wrapped around the same server.

Every peer gets a policy that refuses `danger_*`, a rate limit that never strikes and an audit log, if it has them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from .driver import Target
from .machine import CACHE, BenchError

HELD = 8  # connections at most; each gets its own configuration and log, as two processes cannot share a hash chain


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except FileNotFoundError:
        raise BenchError(f"{what}: `{command[0]}` is not installed") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{what}: `{' '.join(command)}` took more than 600 s") from None
    if done.returncode:
        said = [
            line
            for line in (done.stderr + done.stdout).strip().splitlines()
            if not line.startswith(("WARNING", "npm warn"))
        ]
        raise BenchError(f"{what}: `{' '.join(command)}` failed:\n    " + "\n    ".join(said[:6]))


def from_pypi(name: str, *requirements: str) -> Path:
    venv = CACHE / "peers" / name
    if not (venv / "installed").exists():
        shutil.rmtree(venv, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(venv)], name)
        _run([str(venv / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *requirements], name)
        (venv / "installed").touch()
    return venv / "bin"


def _from_npm(name: str, requirement: str) -> Path:
    prefix = CACHE / "peers" / name
    if not (prefix / "installed").exists():
        shutil.rmtree(prefix, ignore_errors=True)
        prefix.mkdir(parents=True)
        _run(
            ["npm", "install", "--loglevel=error", "--no-audit", "--no-fund", "--prefix", str(prefix), requirement],
            name,
        )
        (prefix / "installed").touch()
    return prefix / "node_modules" / ".bin"


def mcp_firewall(home: Path, server: Path, binary: str) -> Target:
    """Policy, rate limit, content scan and a hash-chained audit file. Its window recounts every call it holds, and its
    chain detector keeps five minutes of them, so a short window and an explicit allow rule serve it best."""
    binary = binary or str(from_pypi("mcp-firewall", "mcp-firewall") / "mcp-firewall")
    for i in range(HELD + 1):
        (home / f"{i}.yaml").write_text(
            "version: 1\ndefaultAction: deny\n"
            "globalRateLimit: {maxCalls: 1000000000, windowSeconds: 1}\n"
            "rules:\n"
            "  - {name: no-danger, tool: 'danger_*', action: deny}\n"
            "  - {name: allow-echo, tool: 'echo|read_item|list_items', action: allow}\n"
            f"audit: {{enabled: true, path: {json.dumps(str(home / f'{i}.jsonl'))}}}\n"
        )
    command = (binary, "wrap", "--config", str(home / "{n}.yaml"), "--", str(server))
    return Target("mcp-firewall", "mcp-firewall", "peer", command, gov="PRAS", governs=True)


def mcpwall(home: Path, server: Path, binary: str) -> Target:
    """Policy, audit lines and secret patterns both ways; it has no rate limit."""
    binary = binary or str(_from_npm("mcpwall", "mcpwall@0.3") / "mcpwall")
    for i in range(HELD + 1):
        (home / f"{i}.yml").write_text(
            "version: 1\n"
            f"settings: {{log_dir: {json.dumps(str(home / f'log{i}'))}, log_level: info, default_action: allow}}\n"
            "rules:\n"
            "  - name: no-danger\n    match: {method: tools/call, tool: 'danger_*'}\n    action: deny\n"
            "  - name: no-secrets\n"
            "    match: {method: tools/call, tool: '*', arguments: {_any_value: {secrets: true}}}\n    action: deny\n"
            "outbound_rules:\n  - {name: redact, match: {secrets: true}, action: redact}\n"
            "secrets:\n  patterns:\n"
            "    - {name: aws, regex: 'AKIA[0-9A-Z]{16}'}\n"
            "    - {name: github, regex: 'gh[ps]_[A-Za-z0-9_]{36,}'}\n"
            "    - {name: key, regex: '-----BEGIN [A-Z ]*PRIVATE KEY-----'}\n"
        )
    start = ("node", binary) if binary.endswith(".js") else (binary,)
    command = (*start, "-c", str(home / "{n}.yml"), "--", str(server))
    return Target("mcpwall", "mcpwall", "peer", command, gov="PAS", governs=True)


def lasso(home: Path, server: Path, binary: str) -> Target:
    """Masks secrets; no policy, limit or audit, so it is shown and never counts as a governing peer."""
    binary = binary or str(from_pypi("lasso", "mcp-gateway", "mcp<2") / "mcp-gateway")
    for i in range(HELD + 1):
        servers = {"bench": {"command": str(server), "args": []}}
        (home / f"{i}.json").write_text(json.dumps({"mcpServers": {"mcp-gateway": {"servers": servers}}}))
    command = (binary, "--mcp-json-path", str(home / "{n}.json"), "--plugin", "basic")
    return Target("lasso", "lasso mcp-gateway", "peer", command, tool="bench_echo", denied="", gov="S")


PEERS: dict[str, Callable[[Path, Path, str], Target]] = {
    "mcp-firewall": mcp_firewall,
    "mcpwall": mcpwall,
    "lasso": lasso,
}


def gather(run: Path, server: Path, binaries: Mapping[str, str]) -> tuple[list[Target], dict[str, str]]:
    """The peers that are there, and for each other one why it is not."""
    found, missing = [], {}
    for name, prepare in PEERS.items():
        home = run / f"peer-{name}"
        home.mkdir(exist_ok=True)
        try:
            found.append(prepare(home, server, binaries.get(name, "")))
        except BenchError as why:
            missing[name] = str(why)
    return found, missing
