"""A service manager starts the daemon for the first session, and no session is lost when it, or the daemon, goes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .house import AEGIS, HERE, WRAP, Home, call, until


class Activator:
    """A service manager as systemd is one: it holds the socket, and starts the daemon when somebody connects."""

    def __init__(self, home: Home) -> None:
        self.home = home
        path = home.dir / "aegis.sock"
        path.unlink(missing_ok=True)  # so does systemd
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        os.chmod(path, 0o600)
        self.socket.listen(512)
        self.ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ear.bind(str(home.dir / "notify"))
        self.ear.settimeout(30)
        self.started = 0

    def start(self) -> None:
        """Fork, descriptor 3, exec. The daemon's pid is the child's."""
        log = os.open(self.home.dir / "daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        env = {**self.home.env, "LISTEN_FDS": "1", "NOTIFY_SOCKET": str(self.home.dir / "notify")}
        env |= {"WATCHDOG_USEC": "3000000"}
        me = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"
        argv = [sys.executable, "-I", "-c", me, sys.executable, "-I", "-m", "aegis_daemon.daemon.main"]
        fd = self.socket.fileno()
        process = subprocess.Popen(
            argv, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            close_fds=False, preexec_fn=lambda: os.dup2(fd, 3, inheritable=True),
        )  # fmt: skip
        os.close(log)
        self.home._daemons.append(process)
        self.started += 1

    def hears(self, text: bytes) -> None:
        while self.ear.recv(4096) != text:
            pass

    def close(self) -> None:
        self.socket.close()
        self.ear.close()


@pytest.fixture
def activators() -> Iterator[Callable[[Home], Activator]]:
    made: list[Activator] = []

    def make(home: Home) -> Activator:
        made.append(Activator(home))
        return made[-1]

    yield make
    for each in made:
        each.close()


OPEN = """
backends: {work: {}}
agents: {default: {backends: {work: {allowed: true}}}}
"""


def test_the_first_session_waits_in_the_socket_and_none_is_lost_between_two_daemons(
    homes: Callable[..., Home], activators: Callable[[Home], Activator]
) -> None:
    home = homes(OPEN, start=False)
    manager = activators(home)
    agent = home.count()
    agent.says({"jsonrpc": "2.0", "id": "init", "method": "ping"})
    manager.socket.setblocking(True)
    until(lambda: agent.process.poll() is None, "a shim")
    manager.start()
    manager.hears(b"READY=1")
    agent.handshake("first")
    assert "result" in agent.asks(call(1, "work", key="one"))
    assert home.json("status")["socket"] == str(home.dir / "aegis.sock")
    manager.hears(b"WATCHDOG=1")

    # A restart: while no daemon runs, the manager's socket takes the sessions, old and new.
    home.ask("stop", restart=True)
    manager.hears(b"STOPPING=1")
    home._daemons[-1].wait(20)
    assert (home.dir / "aegis.sock").exists()  # it is the manager's
    agent.says(call(2, "work", key="two"))
    other = home.count()
    other.says({"jsonrpc": "2.0", "id": "x", "method": "ping"})
    manager.start()
    assert "result" in agent.answer(2)
    other.handshake()
    assert "result" in other.asks(call(1, "work", key="three"))
    assert home.reached() == ["one", "two", "three"]
    # Nobody started a daemon beside it: shims had somebody to wait for.
    assert len(home.records("start")) == manager.started == 2
    # What the daemon starts hears nothing of the manager.
    pids = list(home.servers())
    assert pids
    for pid in pids:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"NOTIFY_SOCKET" not in environment
        assert b"LISTEN_" not in environment


def test_a_daemon_that_a_session_started_gives_way_to_the_services(
    homes: Callable[..., Home], activators: Callable[[Home], Activator]
) -> None:
    home = homes(OPEN)  # one that no service started
    agent = home.count(below=("/bin/sh", "-c", '"$@"; exit $?', "sh")).handshake()  # the manager is not the agent's
    first = home.pid
    manager = activators(home)
    manager.start()
    manager.hears(b"READY=1")
    assert home.pid == home._daemons[-1].pid != first
    assert "result" in agent.asks(call(1, "work", key="one"))
    assert agent.close() == 0
    assert not agent.twice


def test_a_reload_on_a_signal_is_told_to_the_manager(
    homes: Callable[..., Home], activators: Callable[[Home], Activator]
) -> None:
    home = homes(OPEN, start=False)
    manager = activators(home)
    manager.start()
    manager.hears(b"READY=1")
    os.kill(home.pid, signal.SIGHUP)
    while not manager.ear.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC="):
        pass
    manager.hears(b"READY=1")
    home.configure("backnds: {}")
    os.kill(home.pid, signal.SIGHUP)
    manager.hears(b"READY=1")  # a bad file ends it as well
    assert home.answers() is not None


# --- the real one -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_systemd_itself_runs_it_from_installing_to_uninstalling() -> None:
    """A user manager of its own, in namespaces: nothing of it reaches this machine's."""
    home = Path(tempfile.mkdtemp(prefix="as", dir="/tmp"))
    try:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AEGIS_", "XDG_", "DBUS_", "PYTEST_"))}
        env |= {"HOME": str(home), "AEGIS": AEGIS, "WRAP": WRAP, "COUNTING": str(HERE / "counting.py")}
        done = subprocess.run(
            ["unshare", "-m", "-p", "-f", "--mount-proc", sys.executable, str(HERE / "under_systemd.py")],
            env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
        seen = json.loads(done.stdout.splitlines()[-1])
        assert "unable" not in seen, seen["unable"]
        assert seen == {
            "installed": 0,
            "by the manager": True,
            "called": True,
            "session goes on over a restart": True,
            "stopped": [0, "inactive", "inactive"],
            "stopped twice": 3,
            "started": 0,
            "comes back when killed": True,
            "a session starts it": True,
            "reloaded": 0,
            "another file": 1,
            "outside it": True,
            "uninstalled": 0,
            "left": [],
        }
    finally:
        shutil.rmtree(home, ignore_errors=True)
