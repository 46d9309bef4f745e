"""Run in namespaces of its own: a systemd user manager, and Aegis as a service of it; prints what was seen, as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

AEGIS, WRAP, COUNTING = os.environ["AEGIS"], os.environ["WRAP"], os.environ["COUNTING"]
RUNTIME = "/run/user/0"
HOME = Path(os.environ["HOME"])
UNITS = ("aegis.service", "aegis.socket")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def systemctl(*words: str) -> str:
    return run("systemctl", "--user", *words).stdout.strip()


def until(true: Any, bound: float = 30.0) -> bool:
    deadline = time.monotonic() + bound
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


def status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(AEGIS, "status", "--json").stdout or "{}")
    return found


class Session:
    """A client behind `aegis-wrap`."""

    def __init__(self) -> None:
        command = [WRAP, "--backend", "work", "--", "/usr/bin/env", "python3", COUNTING, "/run/counting.log"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        self.opened = "result" in self.ask("initialize", params)

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}) + "\n")
        for line in self.process.stdout:
            if line.strip() and "method" not in (frame := json.loads(line)):
                return dict(frame)
        return {}

    def calls(self) -> bool:
        return "result" in self.ask("tools/call", {"name": "work", "arguments": {"key": "k"}})

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)


def play() -> dict[str, Any]:
    seen: dict[str, Any] = {}
    config = HOME / ".config/aegis/aegis.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(
        "server: {listen: off}\nbackends: {work: {}}\nagents: {default: {backends: {work: {allowed: true}}}}\n"
    )
    assert run(AEGIS, "daemon", "start").returncode == 0  # as a session does it, before there is a service
    os.environ["AEGIS_APPROVER_KEY"] = str(config.with_name("approver.key"))  # to the daemon this is the agent
    outside = Session()
    first = status()["pid"]
    seen["installed"] = run(AEGIS, "daemon", "install").returncode
    main = int(systemctl("show", "-p", "MainPID", "--value", UNITS[0]) or 0)
    seen["by the manager"] = status().get("pid") == main != first
    seen["called"] = outside.opened and outside.calls()
    outside.close()

    session = Session()
    assert session.calls()
    assert run(AEGIS, "daemon", "restart").returncode == 0
    again = int(systemctl("show", "-p", "MainPID", "--value", UNITS[0]) or 0)
    seen["session goes on over a restart"] = session.calls() and again not in (0, main) and status()["pid"] == again
    session.close()

    stopped = run(AEGIS, "daemon", "stop").returncode
    seen["stopped"] = [stopped, *(systemctl("is-active", name) for name in UNITS)]
    seen["stopped twice"] = run(AEGIS, "daemon", "stop").returncode
    seen["started"] = run(AEGIS, "daemon", "start").returncode

    pid = status()["pid"]
    os.kill(pid, 9)
    seen["comes back when killed"] = until(lambda: status().get("pid", pid) != pid)

    systemctl("stop", UNITS[0])
    session = Session()
    seen["a session starts it"] = session.calls() and systemctl("is-active", UNITS[0]) == "active"
    session.close()
    seen["reloaded"] = run("systemctl", "--user", "reload", UNITS[0]).returncode

    other = HOME / ".config/aegis/other.yaml"
    other.write_text("mode: enforce\n")
    seen["another file"] = run(AEGIS, "daemon", "restart", "--config", str(other)).returncode
    # Another installation is none of the service's business.
    del os.environ["AEGIS_APPROVER_KEY"]
    elsewhere = {**os.environ, "AEGIS_HOME": str(HOME / "b")}
    for verb in ("start", "stop"):
        words = [AEGIS, "daemon", verb]
        seen["outside it"] = subprocess.run(words, env=elsewhere, capture_output=True, check=False).returncode == 0
    seen["outside it"] &= systemctl("is-active", UNITS[0]) == "active"

    seen["uninstalled"] = run(AEGIS, "daemon", "uninstall").returncode
    assert not status().get("running")
    seen["left"] = [str(path) for path in HOME.rglob("*") if "systemd" in str(path)]
    return seen


def main() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    os.makedirs("/run/systemd/system")  # what tells that systemd was booted
    os.makedirs(RUNTIME, mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = RUNTIME
    with open("/run/manager.log", "wb") as log:
        manager = subprocess.Popen(["/lib/systemd/systemd", "--user", "--log-target=console"], stdout=log, stderr=log)
    try:
        if until(lambda: run("systemctl", "--user", "show-environment").returncode == 0, 20):
            print(json.dumps(play()))
        else:
            print(json.dumps({"unable": "no user manager starts here: " + Path("/run/manager.log").read_text()[-500:]}))
    finally:
        manager.terminate()
        manager.wait(60)


if __name__ == "__main__":
    main()
