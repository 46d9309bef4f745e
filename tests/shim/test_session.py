"""One session, one daemon: bytes both ways, signals, statuses."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis_shim import hello, wrap

from .stage import BOUND_S, SHIM, Client, Daemon, readable, until

Make = Callable[..., Client]
WAYS = pytest.mark.parametrize(
    ("way", "sockets"), [("relay", False), ("relay", True), ("handover", False), ("handover", True)]
)


def test_the_greeting_says_what_the_user_asked_for(daemon: Daemon, client: Make) -> None:
    client("--no-autostart", "--agent", "research", "npx", "-y", "@scope/server-files", "/da ta", "")
    heard = daemon.accept().hello
    assert (heard.agent, heard.backend, heard.resume) == ("research", "files", False)
    assert heard.args == ("npx", "-y", "@scope/server-files", "/da ta", "")
    assert heard.cwd == os.getcwd()
    assert heard.env["MARK"] == "from-the-agent"
    assert not [name for name in heard.env if name.startswith("AEGIS_")]


def test_pipes_and_sockets_are_handed_over_themselves(daemon: Daemon, client: Make) -> None:
    for sockets in (False, True):
        agent = client(sockets=sockets)
        session = daemon.accept().ok()
        assert session.hello.way == hello.HANDOVER
        seen = [os.fstat(fd) for fd in session.fds[:2]]
        its = [os.stat(f"/proc/{agent.process.pid}/fd/{fd}") for fd in (0, 1)] if sys.platform == "linux" else seen
        assert [(s.st_dev, s.st_ino) for s in seen] == [(s.st_dev, s.st_ino) for s in its]
        session.exit(0)


@WAYS
def test_bytes_pass_both_ways_unchanged(daemon: Daemon, client: Make, way: str, sockets: bool) -> None:
    agent = client(way=way, sockets=sockets)
    session = daemon.accept().ok()
    assert session.hello.way == way
    for size in (1, 300, 70_000, 900_000):
        line = os.urandom(size // 2 + 1).hex().encode()
        feeder = threading.Thread(target=agent.write, args=(line + b"\n",))
        feeder.start()
        assert session.line() == line
        feeder.join()
        feeder = threading.Thread(target=session.write, args=(line + b"\n",))
        feeder.start()
        assert agent.line() == line
        feeder.join()


@WAYS
def test_the_end_of_input_reaches_the_daemon_behind_the_last_byte(
    daemon: Daemon, client: Make, way: str, sockets: bool
) -> None:
    agent = client(way=way, sockets=sockets)
    agent.write(b"one\ntwo\n")
    agent.end_input()
    session = daemon.accept().ok()
    assert [session.line(), session.line()] == [b"one", b"two"]
    assert not session.read()
    session.exit(0)
    assert agent.status() == 0


@WAYS
@pytest.mark.parametrize(("code", "status"), [(0, 0), (3, 3), (255, 255), (-9, 137), (-15, 143)])
def test_the_servers_status_is_the_shims(
    daemon: Daemon, client: Make, way: str, sockets: bool, code: int, status: int
) -> None:
    agent = client(way=way, sockets=sockets)
    daemon.accept().ok().exit(code)
    assert agent.status() == status
    assert agent.rest() == b""


@WAYS
def test_everything_written_before_the_exit_arrives(daemon: Daemon, client: Make, way: str, sockets: bool) -> None:
    agent = client(way=way, sockets=sockets)
    session = daemon.accept().ok()
    blob = b"x" * 200_000 + b"\n"
    feeder = threading.Thread(target=lambda: (session.write(blob), session.exit(4)))
    feeder.start()
    until(lambda: readable(agent.stdout, 0))
    assert agent.rest() == blob
    feeder.join()
    assert agent.status() == 4


def test_a_relay_ends_although_the_daemon_keeps_the_pipe_open(daemon: Daemon, client: Make) -> None:
    agent = client(way="relay")
    session = daemon.accept().ok()
    session.write(b"last\n")
    session.say(hello.say_exit(5))
    assert agent.rest() == b"last\n"
    assert agent.status() == 5


@WAYS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_session_and_then_the_shim(
    daemon: Daemon, client: Make, way: str, sockets: bool, number: int
) -> None:
    agent = client(way=way, sockets=sockets)
    session = daemon.accept().ok()
    session.write(b"hi\n")
    assert agent.line() == b"hi"
    agent.signal(number)
    assert session.left()
    assert agent.process.poll() is None  # it waits for the server's end
    session.write(b"bye\n")
    session.exit(0)
    assert agent.rest() == b"bye\n"
    assert agent.status() == 128 + number


def test_a_second_signal_ends_the_shim_at_once(daemon: Daemon, client: Make) -> None:
    agent = client()
    session = daemon.accept().ok()
    session.write(b"hi\n")
    assert agent.line() == b"hi"
    agent.signal(signal.SIGTERM)
    assert session.left()
    began = time.monotonic()
    agent.signal(signal.SIGTERM)
    assert agent.status() == 143
    assert time.monotonic() - began < wrap.END_S / 2


def test_a_signal_does_not_wait_for_ever(daemon: Daemon, client: Make) -> None:
    agent = client()
    session = daemon.accept().ok()
    session.write(b"hi\n")
    assert agent.line() == b"hi"
    began = time.monotonic()
    agent.signal(signal.SIGINT)
    assert agent.status() == 130  # although the daemon never says a word
    assert time.monotonic() - began > wrap.END_S - 0.5


def test_an_ignored_signal_stays_ignored(daemon: Daemon, client: Make) -> None:
    command = ("/bin/sh", "-c", 'trap "" HUP; exec "$0" "$@"', sys.executable, "-I", "-S", str(SHIM))
    agent = client(command=command)
    session = daemon.accept().ok()
    session.write(b"hi\n")
    assert agent.line() == b"hi"
    agent.signal(signal.SIGHUP)
    agent.write(b"still here\n")
    assert session.line() == b"still here"
    session.exit(0)
    assert agent.status() == 0


@WAYS
def test_a_client_that_no_longer_reads_ends_the_session(daemon: Daemon, client: Make, way: str, sockets: bool) -> None:
    agent = client(way=way, sockets=sockets)
    session = daemon.accept().ok()
    session.write(b"hi\n")
    assert agent.line() == b"hi"
    agent.stop_reading()
    assert session.left()
    session.exit(7)
    assert agent.status() == 7


def test_a_killed_shim_closes_its_socket(daemon: Daemon, client: Make) -> None:
    agent = client()
    session = daemon.accept().ok()
    agent.signal(signal.SIGKILL)
    assert session.left()


def test_the_servers_stderr_is_the_clients(daemon: Daemon, client: Make) -> None:
    agent = client()
    session = daemon.accept().ok()
    os.write(session.stderr, b"a server's complaint\n")
    session.exit(0)
    agent.status()
    assert agent.stderr() == "a server's complaint\n"


@pytest.mark.parametrize("way", ["relay", "handover"])
def test_a_refusal_is_told_to_every_request_until_the_end_of_input(daemon: Daemon, client: Make, way: str) -> None:
    agent = client(way=way)
    agent.ask(1, "initialize")
    session = daemon.accept()
    session.say(hello.say_no("agent `default` may not use backend `server`; ask for it in aegis.yaml"))
    session.drop()
    got = agent.frame()
    assert got["id"] == 1
    assert "may not use backend `server`" in got["error"]["message"]
    assert got["error"]["data"] == {"by": "aegis", "reason": "refused", "retryable": False}
    agent.ask("two")
    assert agent.frame()["id"] == "two"
    agent.end_input()
    assert agent.rest() == b""
    assert agent.status() == 1
    assert "aegis refused this session" in agent.stderr()


def test_a_refusal_is_read_although_the_greeting_was_not_taken_whole(daemon: Daemon, client: Make) -> None:
    agent = client(env={"LARGE": "x" * 120_000, "LARGER": "y" * 120_000, "LARGEST": "z" * 120_000})
    link, _ = daemon.listener.accept()
    with link:
        link.recv(10)
        link.sendall(hello.say_no("too large"))
    agent.ask(1)
    assert "too large" in agent.frame()["error"]["message"]


def test_a_large_environment_arrives_whole(daemon: Daemon, client: Make) -> None:
    large = {f"LARGE_{number}": "x" * 120_000 for number in range(10)}
    client(env=large)
    heard = daemon.accept().hello
    assert {name: heard.env[name] for name in large} == large


def test_files_and_terminals_are_relayed(daemon: Daemon, home: Path, client: Make, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"from a file\n")
    script = 'exec "$0" "$@" <"$INPUT" >"$OUTPUT"'
    agent = client(
        command=("/bin/sh", "-c", script, sys.executable, "-I", "-S", str(SHIM)),
        env={"INPUT": str(tmp_path / "input"), "OUTPUT": str(tmp_path / "output")},
    )
    session = daemon.accept().ok()
    assert session.hello.way == hello.RELAY
    assert session.line() == b"from a file"
    assert not session.read()
    session.write(b"to a file\n")
    session.exit(0)
    assert agent.status() == 0
    assert (tmp_path / "output").read_bytes() == b"to a file\n"


def test_a_handed_over_pipe_is_blocking_again_afterwards(daemon: Daemon, client: Make) -> None:
    other_in, other_out = os.pipe()
    agent = client(sockets=True)
    session = daemon.accept().ok()
    theirs = os.dup(session.client_out)  # as a sibling that shares the agent's descriptor
    assert not os.get_blocking(theirs)
    session.exit(0)
    assert agent.status() == 0
    assert os.get_blocking(theirs)
    for fd in (theirs, other_in, other_out):
        os.close(fd)


def fill(fd: int) -> None:
    """Writes until nothing more fits, there and wherever it is pumped to."""
    os.set_blocking(fd, False)
    full = time.monotonic() + 0.3
    while time.monotonic() < full:
        try:
            os.write(fd, b"x" * 65536)
            full = time.monotonic() + 0.3
        except BlockingIOError:
            time.sleep(0.01)


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_stalled_direction_does_not_hold_up_the_other(daemon: Daemon, client: Make, direction: str) -> None:
    agent = client(way="relay")
    session = daemon.accept().ok()
    if direction == "in":  # the daemon does not read: requests pile up, answers still pass
        fill(agent.stdin)
        session.write(b"answer\n")
        assert agent.line() == b"answer"
    else:
        fill(session.client_out)
        agent.write(b"question\n")
        assert session.line() == b"question"


def test_a_relay_copes_with_descriptors_that_do_not_block(daemon: Daemon, client: Make) -> None:
    """Both kinds of copying; a parent may have made the shim's own ends non-blocking."""
    script = "import os,sys\nfor fd in (0, 1): os.set_blocking(fd, False)\nos.execv(sys.argv[1], sys.argv[1:])"
    for sockets in (False, True):
        agent = client(
            command=(sys.executable, "-I", "-S", "-c", script, sys.executable, "-I", "-S", str(SHIM)),
            way="relay",
            sockets=sockets,
        )
        session = daemon.accept().ok()
        blob = b"y" * 700_000 + b"\n"
        feeder = threading.Thread(target=agent.write, args=(blob,))
        feeder.start()
        assert session.line() == blob[:-1]
        feeder.join()
        feeder = threading.Thread(target=session.write, args=(blob,))
        feeder.start()
        assert agent.line() == blob[:-1]
        feeder.join()
        session.exit(0)
        assert agent.status() == 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs Linux and root")
def test_a_stranger_at_the_socket_is_not_trusted_with_anything(client: Make) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        home = Path(open_to_all)
        home.chmod(0o777)
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setgid(65534)
                os.setuid(65534)
                stranger = Daemon(home)
                os.write(tell, b"!")
                while not stranger.listener.accept()[0].recv(1):
                    pass
            finally:
                os._exit(1)
        os.close(tell)
        try:
            assert os.read(ready, 1) == b"!"
            agent = client(env={"AEGIS_HOME": open_to_all})
            agent.ask(1)
            assert "uid 65534 listens at" in agent.frame()["error"]["message"]
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # it never got a byte
        finally:
            os.close(ready)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("way", ["relay", "handover"])
def test_a_waiting_shim_is_small(daemon: Daemon, client: Make, way: str) -> None:
    agent = client(way=way)
    session = daemon.accept().ok()
    agent.write(b"x\n")
    session.line()
    session.write(b"y\n")
    assert agent.line() == b"y"
    pages = int(Path(f"/proc/{agent.process.pid}/statm").read_text().split()[1])
    assert pages * resource.getpagesize() < 10 * 1024 * 1024
    assert BOUND_S
