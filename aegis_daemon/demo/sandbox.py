"""A sandbox is one directory and the processes that live on it; when it is removed, both are gone.

Everything in it is found through AEGIS_HOME, so the user's own daemon, configuration and agents are never touched.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import site
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from aegis_daemon.config.paths import SOCKET_PATH_MAX, Paths
from aegis_daemon.core.extras import REINSTALL
from aegis_daemon.manage.client import Connection, DaemonAway, Refused, approver_key, lock_holder

SERVER = Path(__file__).with_name("server.py")
BACKEND = "blog"
STOP_S = 12.0
"""How long the daemon gets to end by itself: its servers take up to four seconds."""
KILL_S = 5.0
_STEP_S = 0.02
_LONGEST_NAME = len("/aegis-demo-12345678/manage.sock")

POLICY = """\
# The policy of the tour. What is not allowed here is refused.
server:
  listen: "127.0.0.1:0"         # any free port: another Aegis may have the usual one

backends:
  {backend}:                       # what agents start through `aegis-wrap`, and reach over HTTP
    command: {command}
    args: {args}

queue:
  {backend}:
    enabled: true               # one call at a time, with a pause in between
    delay_min: {delay_min}
    delay_max: {delay_max}
    max_pending: 10
    bypass_tools: [echo, get_weather, list_posts]
    global_rate_limits:
      get_weather: {{ window: 1m, max_count: 5 }}

agents:
  demo:
    display_name: "The agent of the tour"
    backends:
      {backend}:
        allowed: true
        tool_denylist: [admin_reset]
        rate_limits:
          get_weather: {{ window: 1d, max_count: 3 }}
          publish_post: {{ window: 1m, max_count: 2 }}
        approval_required: [publish_post]
  colleague:
    display_name: "An agent that is trusted to post"
    backends:
      {backend}:
        allowed: true
        tool_denylist: [admin_reset]
  curl:
    display_name: "You, with curl in a second terminal"
    backends:
      {backend}:
        allowed: true
        tool_denylist: [admin_reset]
        approval_required: [publish_post]

approval:                       # nobody is hurried: what waits for a person waits as long as the tour may stand
  timeout: 24h
  hold: 24h
"""


CLIENT = """\
// What my editor may use.
{{
    "mcpServers": {{
        "blog":  {{ "command": {command},
                   "args": [{args}] }}
    }}
}}
"""


class Execution(msgspec.Struct, frozen=True):
    """One call that the server really executed, by its own tally; `at` is on this system's monotonic clock."""

    tool: str
    arguments: dict[str, Any]
    at: float


class NotInstalled(Exception):
    """A part of the distribution is missing; the text says which, and what to do."""


class Sandbox:
    """The directory, its policy, and whatever comes to run there. `delay_*` are durations as a policy has them."""

    def __init__(self, delay_min: str, delay_max: str, server: Path = SERVER) -> None:
        """Makes the directory. Raises `OSError`, `NotInstalled`."""
        self.wrap = _wrap()
        self._server = server
        where = tempfile.gettempdir()
        if len(os.fsencode(where)) + _LONGEST_NAME > SOCKET_PATH_MAX:
            where = "/tmp"  # noqa: S108  mkdtemp makes a directory of its own in it
        self.home = Path(tempfile.mkdtemp(prefix="aegis-demo-", dir=where))
        self.paths = Paths.find({"AEGIS_HOME": str(self.home)})
        self._tally = self.home / "executed.jsonl"
        command, *args = (json.dumps(word) for word in self.server)  # a text of JSON is one of YAML as well
        text = POLICY.format(
            backend=BACKEND, delay_min=delay_min, delay_max=delay_max, command=command, args=f"[{', '.join(args)}]"
        )
        Path(self.paths.config).write_text(text, encoding="utf-8")
        self.client_file = self.home / "home" / ".cursor" / "mcp.json"
        """an agent's own configuration, as a person may have written it"""
        self.client_file.parent.mkdir(parents=True)
        self.client_file.write_text(CLIENT.format(command=command, args=", ".join(args)), encoding="utf-8")

    # --- what runs there ----------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """The user's environment, without what it says about another Aegis, and with another home."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AEGIS_", "XDG_"))}
        # Python looks for what a user has installed below the home directory, unless it is told.
        theirs = {"PYTHONUSERBASE": site.getuserbase()} if site.ENABLE_USER_SITE else {}
        return {**kept, **theirs, "HOME": str(self.home / "home"), "AEGIS_HOME": str(self.home)}

    @property
    def server(self) -> tuple[str, ...]:
        """The command that an agent's configuration would have."""
        return (sys.executable, "-I", "-S", str(self._server), str(self._tally))

    def wrapped(self, agent: str) -> tuple[str, ...]:
        """That command with `aegis-wrap` before it."""
        return (self.wrap, "--agent", agent, "--backend", BACKEND, "--", *self.server)

    def aegis(self, *words: str) -> tuple[str, ...]:
        """A command line of `aegis`, of the installation that the tour is of."""
        return (os.path.join(os.path.dirname(self.wrap), "aegis"), *words)

    @property
    def person(self) -> dict[str, str]:
        """The environment of a person: what the tour starts is a governed agent's to the daemon without it."""
        return {**self.env, "AEGIS_APPROVER_KEY": self.paths.approver_key}

    def change_tool(self) -> None:
        """From now on the server describes a tool of its in another way."""
        self._tally.with_name(self._tally.name + ".changed").touch()

    def executed(self, tool: str | None = None) -> list[Execution]:
        """What the server executed so far, of one tool or of all."""
        try:
            lines = self._tally.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        done = [msgspec.json.decode(line, type=Execution) for line in lines]
        return [each for each in done if tool in (None, each.tool)]

    def ask(self, verb: str, **args: Any) -> Any:
        """One request to the sandbox's daemon. Raises `DaemonAway`, `Refused`."""
        with Connection(self.paths.manage_socket, timeout=20.0) as daemon:
            return daemon.call(verb, **args)

    def decide(self, id: str, approve: bool, note: str = "", *, as_person: bool = True) -> dict[str, Any]:
        """Decides a ticket; without `as_person`, as the agent that this process is to the daemon. Raises `Refused`."""
        key = approver_key(self.paths.approver_key) if as_person else None
        found: dict[str, Any] = self.ask("decide", id=id, approve=approve, note=note, key=key)
        return found

    def log(self, lines: int) -> list[str]:
        """The last lines of the daemon's log."""
        try:
            return Path(self.paths.log).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        except OSError:
            return []

    # --- the end ------------------------------------------------------------------------------------------------

    def remove(self) -> str | None:
        """Ends everything that runs there and removes the directory; a text where something stayed."""
        told: set[int] = set()
        if not _soon(lambda: self._stopped(told), STOP_S):
            holder = lock_holder(self.paths.lock)
            if holder:
                _kill(holder)
        # What is left had no daemon to end it: one that was just starting, or whose daemon was killed a moment ago.
        if not _soon(lambda: self._stopped(told) and not any(self._alive()), KILL_S):
            for pid in self._alive():
                _kill(pid)
            _soon(lambda: not any(self._alive()), KILL_S)
        shutil.rmtree(self.home, ignore_errors=True)
        left = [str(pid) for pid in self._alive()]
        if left:
            return f"processes {', '.join(left)} of the tour still run; end them with `kill -9 {' '.join(left)}`"
        if self.home.exists():
            return f"`{self.home}` could not be removed; remove it with `rm -r {self.home}`"
        return None

    def _stopped(self, told: set[int]) -> bool:
        """Whether no daemon runs; one that does is told to end, once, as soon as it hears: it may just be starting."""
        holder = lock_holder(self.paths.lock)
        if holder is None:
            return True
        if holder not in told:
            try:
                with Connection(self.paths.manage_socket, timeout=5.0) as daemon:
                    daemon.call("stop", restart=False, key=approver_key(self.paths.approver_key))
                told.add(holder)
            except (DaemonAway, Refused, OSError, ValueError):
                pass
        return False

    def _alive(self) -> Iterator[int]:
        """Processes of ours that belong to this sandbox (where the system shows it: Linux)."""
        home, mark = os.fsencode(self.home), b"AEGIS_HOME=" + os.fsencode(self.home)
        for entry in Path("/proc").glob("[1-9]*"):
            try:
                if entry.stat().st_uid != os.geteuid() or int(entry.name) == os.getpid():
                    continue
                words = (entry / "cmdline").read_bytes()
                # Only ours: a person's shell or editor in the second terminal may know the directory as well.
                if b"aegis_daemon" in words and (
                    home in words or mark in (entry / "environ").read_bytes().split(b"\0")
                ):
                    yield int(entry.name)
            except OSError:
                continue


def aegis_command() -> str:
    """How a person calls this same `aegis` from another terminal of theirs."""
    own = os.path.abspath(sys.argv[0])
    found = shutil.which("aegis")
    if found is not None and os.path.realpath(found) == os.path.realpath(own):
        return "aegis"
    return shlex.quote(own)


def _wrap() -> str:
    for folder in (sysconfig.get_path("scripts"), os.path.dirname(os.path.realpath(sys.argv[0]))):
        path = os.path.join(folder, "aegis-wrap")
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("aegis-wrap")
    if found is None:
        raise NotInstalled(f"`aegis-wrap` is not installed beside `aegis`; install Aegis again, whole: {REINSTALL}")
    return found


def _soon(true: Any, within: float) -> bool:
    until = time.monotonic() + within
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(_STEP_S)
    return True


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
