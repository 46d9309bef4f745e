"""Starting a daemon when none is there."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis_shim.start import Starter, make_directory

from .stage import SHIM, Client, readable, until

Make = Callable[..., Client]

# A shim whose daemon is another program: `start.detach` gets a command of the test's choosing, all else is real.
DRIVER = """
import sys
sys.path.append({package!r})
from aegis_shim import start, wrap
real = start.detach
def detach(argv, env, log):
    assert argv == [sys.executable, "-I", "-m", "aegis_daemon.daemon.main"], argv
    return real([sys.executable, "-c", open({stub!r}).read()], env, log)
start.detach = detach
wrap.RESTART_S = 1.0
wrap.main(sys.argv[1:])
"""

# A daemon that serves each session's first request with what it knows about itself.
STUB = """
import os, sys, json, threading
sys.path[:0] = {paths!r}
from pathlib import Path
from shim.stage import Daemon
home = Path(os.environ["AEGIS_HOME"])
with open(home / "started", "a") as file:
    file.write(f"{{os.getpid()}}\\n")
print("a word to the log", flush=True)
daemon = Daemon(home)
daemon.listener.settimeout(20)
for _ in range({sessions}):
    session = daemon.accept().ok()
    request = json.loads(session.line())
    about = {{
        "cwd": os.getcwd(),
        "session": os.getsid(0),
        "parent": os.getppid(),
        "fds": sorted(int(fd) for fd in os.listdir("/dev/fd")),
        "aegis": sorted(name for name in os.environ if name.startswith("AEGIS_")),
    }}
    session.write(json.dumps({{"id": request["id"], "result": about}}).encode() + b"\\n")
    {end}
"""


@pytest.fixture
def start(tmp_path: Path, client: Make) -> Callable[..., Client]:
    driver, stub = tmp_path / "driver.py", tmp_path / "stub.py"
    driver.write_text(DRIVER.format(package=str(SHIM.parent.parent), stub=str(stub)))

    def make(*words: str, sessions: int = 1, end: str = "session.exit(0)", **more: object) -> Client:
        paths = [str(Path(__file__).parent.parent), str(SHIM.parent.parent)]
        stub.write_text(STUB.format(paths=paths, sessions=sessions, end=end))
        return client(*(words or ("server",)), command=(sys.executable, "-I", "-S", str(driver)), **more)

    return make


def test_a_missing_daemon_is_started_detached_and_serves_what_was_sent_meanwhile(
    start: Callable[..., Client], home: Path
) -> None:
    leaked, keep = os.pipe()
    os.set_inheritable(keep, True)
    agent = start(env={"AEGIS_AGENT": "a", "AEGIS_CONFIG": "conf/aegis.yaml"})
    agent.ask(1)
    about = agent.frame()["result"]
    os.close(keep)
    assert about["cwd"] == "/"
    assert about["session"] != os.getsid(agent.process.pid if agent.process.poll() is None else 0)
    assert about["parent"] != agent.process.pid
    assert about["aegis"] == ["AEGIS_CONFIG", "AEGIS_HOME"]
    assert agent.status() == 0
    log = home / "daemon.log"
    assert log.read_text() == "a word to the log\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert agent.stderr() == ""
    assert readable(leaked)
    assert os.read(leaked, 1) == b""
    os.close(leaked)


def test_of_many_shims_one_starts_the_daemon(start: Callable[..., Client], home: Path) -> None:
    agents = [start(sessions=8) for _ in range(8)]
    for agent in agents:
        agent.ask(1)
    for agent in agents:
        assert agent.frame()["id"] == 1
    assert len((home / "started").read_text().split()) == 1


def test_a_lost_daemon_is_started_again(start: Callable[..., Client], home: Path) -> None:
    agent = start(end="os._exit(0)")
    agent.ask(1)
    assert agent.frame()["id"] == 1
    agent.ask(2)
    until(lambda: len((home / "started").read_text().split()) == 2)
    assert agent.frame()["id"] == 2


def test_a_relative_home_means_the_same_to_the_daemon(start: Callable[..., Client], home: Path) -> None:
    agent = start(env={"AEGIS_HOME": os.path.relpath(home)})
    agent.ask(1)
    assert agent.frame()["id"] == 1
    assert (home / "started").exists()


def test_a_named_socket_is_passed_on(start: Callable[..., Client], home: Path) -> None:
    agent = start("--socket", str(home / "aegis.sock"), "server")
    agent.ask(1)
    assert agent.frame()["result"]["aegis"] == ["AEGIS_HOME", "AEGIS_SOCKET"]


def test_without_autostart_nothing_is_started(start: Callable[..., Client], home: Path) -> None:
    agent = start("--no-autostart", "server")
    agent.ask(1)
    assert agent.frame()["error"]["code"] == -32603
    assert not (home / "started").exists()
    assert not (home / "start.lock").exists()


def test_a_daemon_that_cannot_start_is_named_with_its_log(start: Callable[..., Client], home: Path) -> None:
    agent = start(sessions=0)
    agent.ask(1)
    assert readable(agent.stdout, 7)  # not the whole patience that a living daemon gets
    message = agent.frame()["error"]["message"]
    assert "it was started and ended at once" in message
    assert str(home / "daemon.log") in message
    assert set((home / "daemon.log").read_text().splitlines()) == {"a word to the log"}


def test_the_lock_lets_one_start_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def detach(argv: list[str], env: object, log: object) -> int:
        started.append(argv)
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr("aegis_shim.start.detach", detach)
    socket = os.fsencode(tmp_path / "deep" / "run" / "aegis.sock")
    one, two = Starter(socket, b"/log"), Starter(socket, b"/log")
    assert one.start({})
    assert not one.start({})
    assert not two.start({})
    one.done()
    assert two.start({})
    two.done()
    assert started == [[sys.executable, "-I", "-m", "aegis_daemon.daemon.main"]] * 2
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away")
def test_a_daemon_of_another_user_is_not_ours_to_start(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to another user"):
        Starter(os.fsencode(tmp_path / "aegis.sock"), b"/log").start({})


def test_a_directory_in_the_way_of_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        make_directory(os.fsencode(tmp_path / "file" / "deeper"))


def test_what_the_daemon_writes_never_reaches_the_client(start: Callable[..., Client]) -> None:
    agent = start()
    agent.ask(1)
    agent.end_input()
    assert [json.loads(line)["id"] for line in agent.rest().splitlines()] == [1]
