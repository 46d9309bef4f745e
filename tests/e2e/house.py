"""One installation of Aegis as a user has it: a home, the installed commands, a daemon, and everything it started.

Every process of a home carries a mark in its environment that no program of ours removes, so that what is left of it
can be looked for in the whole process table.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aegis_daemon.manage.client import Connection, DaemonAway, Refused, ask

BIN = Path(sys.executable).parent
AEGIS = str(BIN / "aegis")
WRAP = str(BIN / "aegis-wrap")
HERE = Path(__file__).parent
BOUND_S = 20.0
"""How long anything may take before it counts as something that never happens."""
START_S = 60.0
"""The same of a daemon's start, which syncs new files, and a disk that still writes what was just installed is slow."""
MARK = "E2E_MARK"
INITIALIZE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}
WAYS = ("relay", "handover")


def until(true: Callable[[], Any], what: str = "it", bound: float = BOUND_S) -> Any:
    """Waits for what no descriptor tells; gives what `true` gave."""
    deadline = time.monotonic() + bound
    while True:
        found = true()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} never happened"
        time.sleep(0.01)


def encode(frame: dict[str, Any] | bytes) -> bytes:
    """A frame as a line."""
    return frame if isinstance(frame, bytes) else json.dumps(frame, separators=(",", ":")).encode() + b"\n"


def request(id: int | str, method: str, /, **params: Any) -> dict[str, Any]:
    frame: dict[str, Any] = {"jsonrpc": "2.0", "id": id, "method": method}
    return {**frame, "params": params} if params else frame


def note(method: str, /, **params: Any) -> dict[str, Any]:
    frame: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    return {**frame, "params": params} if params else frame


def call(id: int | str, tool: str, /, **arguments: Any) -> dict[str, Any]:
    return request(id, "tools/call", name=tool, arguments=arguments)


def tell_of(error: dict[str, Any]) -> tuple[int, str]:
    """(code, reason) of an error answer."""
    return error["error"]["code"], error["error"].get("data", {}).get("reason", "")


class Agent:
    """A client that speaks bytes: a process at the other end of two pipes, and every byte that it said.

    `eof` is set once its stdout is closed by everybody who held it.
    """

    def __init__(
        self,
        argv: list[str],
        env: dict[str, str],
        cwd: str | None = None,
        *,
        deaf: bool = False,
        sockets: bool = False,
    ) -> None:
        if sockets:  # as Node and Bun do it
            ours_in, theirs_in = socket.socketpair()
            ours_out, theirs_out = socket.socketpair()
            self._stdin, self._stdout = ours_in.detach(), ours_out.detach()
            inner = theirs_in.detach(), theirs_out.detach()
        else:
            its_in, self._stdin = os.pipe()
            self._stdout, its_out = os.pipe()
            inner = its_in, its_out
        try:
            self.process = subprocess.Popen(
                argv, stdin=inner[0], stdout=inner[1], stderr=subprocess.PIPE, env=env, cwd=cwd, bufsize=0
            )
        finally:
            for fd in inner:
                os.close(fd)
        self.raw = bytearray()
        self.err = bytearray()
        self.frames: list[dict[str, Any]] = []
        self.answers: dict[Any, dict[str, Any]] = {}
        self.twice: list[dict[str, Any]] = []
        self.broken: list[bytes] = []
        self.eof = False
        self._partial = b""
        self._news = threading.Condition()
        self._listening = False
        self._threads = [threading.Thread(target=self._hear_err, daemon=True)]
        self._threads[0].start()
        if not deaf:
            self.listen()

    # --- what it says

    def listen(self) -> None:
        """Reads its stdout from now on."""
        self._threads.append(threading.Thread(target=self._hear, daemon=True))
        self._threads[-1].start()

    def _hear(self) -> None:
        while data := self._read():
            with self._news:
                self.raw += data
                *lines, self._partial = (self._partial + data).split(b"\n")
                for line in lines:
                    self._line(line)
                self._news.notify_all()
        with self._news:
            if self._partial:
                self.broken.append(self._partial)
            self.eof = True
            self._news.notify_all()

    def _read(self) -> bytes:
        try:
            return os.read(self._stdout, 1 << 16)
        except ConnectionResetError:  # a socket whose other end had not read everything
            return b""

    def _line(self, line: bytes) -> None:
        if not line:
            return  # what a shim writes behind half a frame
        try:
            frame = json.loads(line)
        except ValueError:
            self.broken.append(line)
            return
        if not isinstance(frame, dict):
            self.broken.append(line)
            return
        self.frames.append(frame)
        if "method" not in frame and "id" in frame:
            if frame["id"] in self.answers:
                self.twice.append(frame)
            else:
                self.answers[frame["id"]] = frame

    def _hear_err(self) -> None:
        assert self.process.stderr is not None
        fd = self.process.stderr.fileno()
        while data := os.read(fd, 1 << 16):
            with self._news:
                self.err += data
                self._news.notify_all()

    def wait(self, true: Callable[[], Any], what: str = "it", bound: float = BOUND_S) -> Any:
        """Until `true` (asked whenever something was said) gives something."""
        deadline = time.monotonic() + bound
        with self._news:
            while not (found := true()):
                left = deadline - time.monotonic()
                assert left > 0, f"{what} never came; frames: {self.frames[-5:]}; stderr: {bytes(self.err[-800:])!r}"
                self._news.wait(left)
            return found

    def answer(self, id: Any, bound: float = BOUND_S) -> dict[str, Any]:
        """The answer to a request."""
        self.wait(lambda: id in self.answers or self.eof, f"the answer to {id!r}", bound)
        assert id in self.answers, f"closed without an answer to {id!r}: {bytes(self.err[-800:])!r}"
        return self.answers[id]

    def hears(self, method: str, bound: float = BOUND_S, **params: Any) -> dict[str, Any]:
        """A notification or request with these parameters among its own."""

        def found() -> Any:
            for frame in self.frames:
                given = frame.get("params", {})
                if frame.get("method") == method and all(given.get(key) == value for key, value in params.items()):
                    return frame
            return None

        return dict(self.wait(found, method, bound))

    # --- what it is told

    def says(self, *frames: dict[str, Any] | bytes) -> None:
        """Frames in one write. Raises OSError where nobody reads."""
        rest = memoryview(b"".join(encode(frame) for frame in frames))
        while rest:
            rest = rest[os.write(self._stdin, rest) :]

    def asks(self, frame: dict[str, Any], bound: float = BOUND_S) -> dict[str, Any]:
        """A request and its answer."""
        self.says(frame)
        return self.answer(frame["id"], bound)

    def handshake(self, id: int | str = "init", **more: Any) -> Agent:
        """Until the session is open."""
        answer = self.asks(request(id, "initialize", **{**INITIALIZE, **more}))
        assert "result" in answer, answer
        self.says(note("notifications/initialized"))
        return self

    def done(self) -> None:
        """Its input ends."""
        if self._stdin >= 0:
            fd, self._stdin = self._stdin, -1
            os.close(fd)

    def ends(self, bound: float = BOUND_S) -> int:
        """Its exit status, once all that it said was read."""
        code = self.process.wait(bound)
        for thread in self._threads:
            thread.join(bound)
            assert not thread.is_alive(), "its output is still open"
        return code

    def close(self) -> int:
        """The end of input, then the end."""
        self.done()
        try:
            return self.ends()
        finally:
            self.kill()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A signal to the process itself, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def bury(self) -> None:
        """Lets go of everything of a process that is to be gone."""
        self.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(BOUND_S)
        self.done()
        if self._stdout >= 0:
            fd, self._stdout = self._stdout, -1
            os.close(fd)
        if self.process.stderr is not None:
            self.process.stderr.close()


class Home:
    """`config` is the text of aegis.yaml; without one there is none."""

    def __init__(self, config: str | None = None, directory: Path | None = None) -> None:
        # Short: a socket's path may have no more than 107 bytes (103 on macOS).
        self.dir = directory or Path(tempfile.mkdtemp(prefix="ae", dir="/tmp"))
        self.mark = uuid.uuid4().hex
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("AEGIS_", "XDG_", "PYTEST_"))}
        self.env |= {"AEGIS_HOME": str(self.dir), MARK: self.mark}
        self.agents: list[Agent] = []
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.log = self.dir / "server.log"
        """where the counting server notes what reached it"""
        self.torn = False
        """whether half a frame may have reached an agent, since somebody was killed in the middle of it"""
        self.since = 0
        """the newest record that does not concern the test"""
        if config is not None:
            self.configure(config)

    # --- the configuration and the daemon

    def configure(self, text: str) -> None:
        """Its daemon listens at a free port, unless the text says where."""
        if "listen:" not in text:
            given, count = re.subn(r"^server: \{", 'server: {listen: "127.0.0.1:0", ', text, flags=re.M)
            if not count and text.startswith("{"):
                given, count = re.subn(r"^\{", '{"server": {"listen": "127.0.0.1:0"}, ', text, count=1)
            text = given if count else f'{text.rstrip()}\nserver: {{listen: "127.0.0.1:0"}}\n'
        (self.dir / "aegis.yaml").write_text(text)

    def start(self) -> Home:
        done = self.aegis("daemon", "start")
        assert done.returncode == 0, done.stderr
        return self

    def launch(self) -> Home:
        """As `start`, without the cost of a command."""
        self.spawn()
        until(self.answers, "a daemon", START_S)
        return self

    def spawn(self) -> None:
        """Starts a daemon as a supervisor would, at once and without looking back."""
        self._daemons = [daemon for daemon in self._daemons if daemon.poll() is None]
        with open(self.dir / "daemon.log", "ab") as log:
            argv, null = [sys.executable, "-I", "-m", "aegis_daemon.daemon.main"], subprocess.DEVNULL
            env = self.env
            self._daemons.append(
                subprocess.Popen(argv, env=env, cwd="/", stdin=null, stdout=log, stderr=log, start_new_session=True)
            )

    def stop(self) -> None:
        done = self.aegis("daemon", "stop")
        assert done.returncode == 0, done.stderr

    @property
    def pid(self) -> int:
        """The daemon's process."""
        return int(self.ask("status")["pid"])

    def ask(self, verb: str, **args: Any) -> Any:
        """One request to the daemon, without the cost of a command."""
        if verb in ("stop", "reload"):
            args.setdefault("key", (self.dir / "approver.key").read_text().strip())
        return ask(str(self.dir / "manage.sock"), verb, **args)

    def answers(self) -> dict[str, Any] | None:
        """The daemon's status; None where none answers."""
        try:
            found: dict[str, Any] = self.ask("status")
        except (DaemonAway, Refused):
            return None
        return found

    def watch(self) -> Connection:
        return Connection(str(self.dir / "manage.sock"))

    # --- the commands

    def approver(self) -> dict[str, str]:
        """The environment of a person: a test is the shims' parent, so it may decide with the key alone."""
        if not (self.dir / "approver.key").exists():  # no daemon has run yet
            return self.env
        return {**self.env, "AEGIS_APPROVER_KEY": str(self.dir / "approver.key")}

    def aegis(
        self, *words: str, env: dict[str, str] | None = None, bound: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """The installed command, to its end."""
        return subprocess.run(
            [AEGIS, *words],
            env=env or (self.approver() if words[0] == "daemon" else self.env),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=bound,
            check=False,
        )

    def json(self, *words: str, env: dict[str, str] | None = None, status: int = 0) -> Any:
        """What a command prints with `--json`."""
        done = self.aegis(*words, "--json", env=env)
        assert done.returncode == status, (words, done.returncode, done.stdout[-500:], done.stderr)
        return json.loads(done.stdout)

    def decide(self, ticket: str, approve: bool = True) -> Any:
        """As `aegis approve`, without the cost of a command."""
        return self.ask("decide", id=ticket, approve=approve, key=(self.dir / "approver.key").read_text().strip())

    def pending(self, count: int = 1) -> list[dict[str, Any]]:
        """The tickets, once there are this many."""

        def enough() -> Any:
            found = self.ask("pending")
            return found if len(found) == count else None

        return list(until(enough, f"{count} tickets"))

    # --- agents

    def run(self, *argv: str, cwd: str | None = None, env: dict[str, str] | None = None) -> Agent:
        """Any command with pipes of its own, such as a server without Aegis."""
        self.agents.append(Agent(list(argv), {**self.env, **(env or {})}, cwd))
        return self.agents[-1]

    def wrap(
        self,
        *command: str,
        way: str = "",
        agent: str = "",
        backend: str = "",
        options: tuple[str, ...] = (),
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        deaf: bool = False,
        sockets: bool = False,
        below: tuple[str, ...] = (),
    ) -> Agent:
        """A command behind the installed `aegis-wrap`; `below` is the agent's own command line, else it is this process."""
        argv = [*below, WRAP, *options]
        if agent:
            argv += ["--agent", agent]
        if backend:
            argv += ["--backend", backend]
        environment = {**self.env, **(env or {})}
        if way:
            environment["AEGIS_WAY"] = way
        self.agents.append(
            Agent([*argv, *(("--", *command) if command else ())], environment, cwd, deaf=deaf, sockets=sockets)
        )
        return self.agents[-1]

    def count(self, *more: str, backend: str = "work", **options: Any) -> Agent:
        """The counting server behind `aegis-wrap`."""
        return self.wrap(*self.counting(*more), backend=backend, **options)

    def counting(self, *more: str) -> list[str]:
        return [sys.executable, "-I", "-S", str(HERE / "counting.py"), str(self.log), *more]

    def reached(self) -> list[str]:
        """The keys of the calls that reached a counting server, in their order."""
        return [words[1] for words in self.logged() if words[0] == "call"]

    def logged(self) -> list[list[str]]:
        """What counting servers noted: words per line."""
        try:
            return [line.split() for line in self.log.read_text().splitlines()]
        except FileNotFoundError:
            return []

    def begins(self, log: Path) -> Home:
        """Ends and forgets what earlier tests left, for one that shares this home with them."""
        for agent in self.agents:
            agent.done()
        self._bury()
        until(lambda: not self.servers() and not self.ask("status")["sessions"], "the end of earlier sessions")
        self.log = log
        self.since = self.ask("status")["audit"]["seq"]
        return self

    def _bury(self) -> None:
        """Lets go of all agents, each of which heard nothing but frames, and no answer twice."""
        gone, self.agents = self.agents, []
        for agent in gone:
            agent.bury()
        for agent in gone:
            assert self.torn or not (agent.broken or agent.twice), (agent.broken, agent.twice)

    # --- the record

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """From the audit database, with all that the daemon recorded by now."""
        if self.answers() is not None:
            self.ask("flush_audit")
        db = sqlite3.connect(f"file:{self.dir}/audit.db?mode=ro", uri=True)
        try:
            return db.execute(sql, values).fetchall()
        finally:
            db.close()

    def records(self, kind: str = "") -> list[dict[str, Any]]:
        """Every record, oldest first."""
        sql = "SELECT record FROM records WHERE seq > ? ORDER BY seq"
        found = [json.loads(record) for (record,) in self.rows(sql, self.since)]
        return [record for record in found if not kind or record["kind"] == kind]

    def intents(self) -> dict[str, str]:
        """The keys of all calls that have an intent, and how each ended ("" for one that has not)."""
        ended = {record["call"]: record["status"] for record in self.records("outcome")}
        found: dict[str, str] = {}
        sql = "SELECT r.record, b.body FROM records r JOIN bodies b ON b.seq = r.seq WHERE r.seq > ?"
        for record, body in self.rows(sql, self.since):
            told = json.loads(record)
            if told["kind"] == "intent" and (key := json.loads(body).get("key")) is not None:
                assert key not in found, f"two intents for `{key}`"
                found[key] = ended.get(told["call"], "")
        return found

    def verify(self) -> dict[str, Any]:
        """`aegis audit verify`: intact."""
        found: dict[str, Any] = self.json("audit", "verify")
        assert found["faults"] == [], found["faults"][:5]
        return found

    # --- the end

    def processes(self) -> dict[int, str]:
        """Every process of this home, in the whole table (the warden only where root looks: it hides itself)."""
        return dict(marked(self.mark))

    def servers(self) -> dict[int, str]:
        """Servers and what they started."""
        return dict(marked(self.mark, b"_AEGIS_CHILD="))

    def close(self) -> None:
        """Ends what is left, and tells whether anything stayed that nobody had asked to."""
        try:
            for agent in self.agents:
                agent.done()
            for agent in self.agents:
                agent.kill(signal.SIGTERM)
            if self.answers() is not None:
                late = self.ask("status")["reaped_late"]
                self.ask("stop")
                assert late == 0, f"{late} processes outlived their session"
            until(lambda: not self.processes(), f"the end of {self.processes()}")
        finally:
            for pid in self.processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            for daemon in self._daemons:
                daemon.wait()
            self._bury()
            shutil.rmtree(self.dir, ignore_errors=True)


def marked(mark: str, also: bytes = b"") -> Iterator[tuple[int, str]]:
    """(pid, command line) of all processes with the mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                environ = file.read()
            if wanted in environ and also in environ:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    yield int(name), file.read().replace(b"\0", b" ").decode(errors="replace")[:200]
        except OSError:
            continue
