"""An Aegis of our own for one run: its home, its configuration, its daemon, and the commands that wrap a server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from .driver import Target
from .machine import CACHE, REPO, BenchError, accepts, free_port

RULES_PER_AGENT = 10


def shim_command() -> list[str]:
    """`aegis-wrap` as a wheel installs it.

    An editable install has to start Python with its site directories, which costs a shim twice the start-up; so in one
    the same files are laid out as a wheel would, and run from there.
    """
    installed = Path(sys.prefix) / "bin" / "aegis-wrap"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if installed.exists() and (Path(sys.prefix) / "lib" / version / "site-packages" / "aegis_shim").exists():
        return [str(installed)]
    layout = CACHE / "installed"
    packages = layout / "lib" / version / "site-packages"
    for directory in (layout / "bin", packages):
        directory.mkdir(parents=True, exist_ok=True)
    for link, target in (
        (layout / "bin" / version, Path(sys.executable)),
        (packages / "aegis_shim", REPO / "aegis_shim"),
    ):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    wrap = layout / "bin" / "aegis-wrap"  # a link would lead it back to the repository
    shutil.copy(REPO / "aegis_shim" / "aegis-wrap", wrap)
    return [str(wrap)]


WRAPPED: Mapping[str, Mapping[str, str]] = {"bench": {}}


def config(
    durability: str,
    port: int,
    window: str = "1h",
    agents: int = 0,
    backends: Mapping[str, Mapping[str, str]] = WRAPPED,
) -> str:
    """One agent with access rules, a limit that counts and never strikes, and the audit log; `agents` more like it.

    With `agents`, each (and `bench` itself) has RULES_PER_AGENT rules. Each of the backends (its settings by its name)
    has the same ones.
    """
    many = agents > 0
    denied = ["danger_*", *(f"forbidden_{i}_*" for i in range(RULES_PER_AGENT - 5))] if many else ["danger_*"]
    asked = ["publish_*"] if many else []
    limited = {"echo": 1_000_000_000}
    if many:
        limited |= {"create_item": 1_000_000, "write_note": 1_000_000}
    rules = [
        "        allowed: true",
        f"        tool_denylist: [{', '.join(f'{name!r}' for name in denied)}]",
        *([f"        approval_required: [{', '.join(f'{name!r}' for name in asked)}]"] if asked else []),
        "        rate_limits:",
        *(f"          {tool}: {{window: {window}, max_count: {count}}}" for tool, count in limited.items()),
    ]
    if many:
        assert len(denied) + len(asked) + len(limited) == RULES_PER_AGENT
    lines = [
        "server:",
        f"  listen: 127.0.0.1:{port}",
        "backends:",
        *(f"  {name}: {json.dumps(settings)}" for name, settings in backends.items()),
        "audit:",
        f"  durability: {durability}",
        "agents:",
    ]
    for name in ["bench", *(f"agent{i:04d}" for i in range(agents))]:
        lines += [f"  {name}:", "    backends:"]
        for backend in backends:
            lines += [f"      {backend}:", *rules]
    return "\n".join(lines) + "\n"


class Daemon:
    """A running daemon. `start` returns when its socket accepts; with other than wrapped backends, its port too."""

    def __init__(
        self,
        home: Path,
        durability: str,
        window: str = "1h",
        agents: int = 0,
        backends: Mapping[str, Mapping[str, str]] = WRAPPED,
    ) -> None:
        self.home, self.durability = home, durability
        self.port = free_port()
        self.web = backends is not WRAPPED
        home.mkdir(mode=0o700)
        (home / "aegis.yaml").write_text(config(durability, self.port, window, agents, backends))
        self.env = {"AEGIS_HOME": str(home)}
        self.process: subprocess.Popen[bytes] | None = None
        self.idle_rss_kb = self.idle_root_rss_kb = 0

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def last_words(self) -> str:
        words = ""
        for name in ("daemon.out", "daemon.log"):
            try:
                text = (self.home / name).read_text(errors="replace").strip()
            except OSError:
                continue
            words += "".join(f"\n    {line}" for line in text.splitlines()[-8:])
        return words

    def start(self, patience: float = 60) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AEGIS_")} | self.env
        command = [sys.executable, "-I", "-m", "aegis_daemon.daemon.main"]
        with open(self.home / "daemon.out", "ab") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise BenchError(
                    f"the daemon (D={self.durability}) ended with {self.process.returncode}{self.last_words()}"
                )
            with socket.socket(socket.AF_UNIX) as knock:
                try:
                    knock.connect(str(self.home / "aegis.sock"))
                    if not self.web or accepts(self.port):
                        return
                except OSError:
                    pass
            time.sleep(0.02)
        self.stop()
        where = f"socket, or no port {self.port}," if self.web else "socket"
        raise BenchError(f"the daemon (D={self.durability}) opened no {where} in {patience} s{self.last_words()}")

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def target(self, name: str, label: str, way: str, server: Path) -> Target:
        wrap = [*shim_command(), "--no-autostart", "--agent", "bench", "--backend", "bench", "--", str(server)]
        return Target(
            name, label, "aegis", tuple(wrap), self.env | {"AEGIS_WAY": way}, pid=self.pid, gov="PRA", governs=True
        )

    def front(self, name: str, label: str, backend: str, also: tuple[int, ...] = ()) -> Target:
        """One of its backends over HTTP."""
        url = f"http://127.0.0.1:{self.port}/agents/bench/backends/{backend}/mcp"
        return Target(name, label, "aegis", url=url, pid=self.pid, also=also, gov="PRA", governs=True)
