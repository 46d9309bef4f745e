"""Sockets and news pass between us and a service manager as its own documentation says, and what is not for us does not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.daemon.activation import VARIABLES, Manager

CHILD = """
import json, os, sys
from aegis_daemon.daemon.activation import Manager
import logging; logging.basicConfig(stream=sys.stderr)
env = dict(os.environ)
if sys.argv[1] == "mine":
    env["LISTEN_PID"] = str(os.getpid())
manager = Manager.take(env, os.getpid())
serves = [manager.serves("/x", sys.argv[2]), manager.serves("/x"), manager.serves("/x", below=sys.argv[3])]
one = manager.listener(sys.argv[2])
said = None
if one is not None:
    assert not os.get_inheritable(one.fileno())
    one.setblocking(True)
    said = one.accept()[0].recv(10).decode()
doors = sorted(manager.below(sys.argv[3]))
manager.drop()
left = [name for name in os.environ if name in env and name.startswith(("LISTEN_", "NOTIFY"))]
print(json.dumps({"said": said, "doors": doors, "gives": manager.gives, "serves": serves, "left": left}))
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[dict[str, socket.socket]]:
    made: dict[str, socket.socket] = {}
    (tmp_path / "doors").mkdir()
    for name in ("s", "doors/a.sock", "doors/b.sock", "elsewhere"):
        made[str(tmp_path / name)] = each = socket.socket(socket.AF_UNIX)
        each.bind(str(tmp_path / name))
        each.listen()
    yield made
    for each in made.values():
        each.close()


def activated(fds: list[int], whose: str, path: str, doors: str) -> dict[str, Any]:
    """Runs the child as a manager would: the descriptors from 3 on, by a real fork and exec."""

    def hand_over() -> None:
        high = [os.dup2(fd, 100 + number) for number, fd in enumerate(fds)]
        for number, fd in enumerate(high):
            os.dup2(fd, 3 + number, inheritable=True)

    env = {**os.environ, "LISTEN_FDS": str(len(fds)), "LISTEN_PID": "1", "LISTEN_FDNAMES": "a:b"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, whose, path, doors],
        env=env, preexec_fn=hand_over, close_fds=False, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "err": done.stderr}


def test_each_socket_is_known_by_its_path_and_what_is_nobodys_is_closed(place: dict[str, Any], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client, socket.socket() as stranger, open(os.devnull) as no_socket:
        client.connect(str(tmp_path / "s"))
        client.send(b"hello")  # before anybody runs, as the first session does
        fds = [each.fileno() for each in place.values()] + [stranger.fileno(), no_socket.fileno()]
        found = activated(fds, "mine", str(tmp_path / "s"), str(tmp_path / "doors"))
    assert found["said"] == "hello"
    assert found["serves"] == [True, False, True]
    assert found["doors"] == ["a.sock", "b.sock"]
    assert found["gives"] is False  # all of them were taken, or dropped
    assert "elsewhere" in found["err"]
    assert found["err"].count("service manager") == 3
    assert found["left"] == []


def test_what_is_meant_for_another_process_is_left_alone(place: dict[str, Any], tmp_path: Path) -> None:
    fds = [each.fileno() for each in place.values()]
    found = activated(fds, "other", str(tmp_path / "s"), str(tmp_path / "doors"))
    assert (found["said"], found["doors"], found["err"]) == (None, [], "")


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(5)
        yield heard


def test_the_manager_hears_what_becomes_of_us(ear: socket.socket) -> None:
    env = {"NOTIFY_SOCKET": str(ear.getsockname()), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7", "PATH": "/bin"}
    manager = Manager.take(env, 7)
    assert env == {"PATH": "/bin"}  # nothing that we start could speak for us
    manager.ready()
    assert ear.recv(100) == b"READY=1"
    manager.reloading()
    first, second = ear.recv(100).decode().split("\n")
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")
    for now in (100.0, 100.5, 101.0, 101.5, 102.0):
        manager.beat(now)
    manager.stopping()
    assert [ear.recv(100) for _ in range(4)] == [b"WATCHDOG=1"] * 3 + [b"STOPPING=1"]


def test_a_manager_that_is_gone_holds_nobody_up(tmp_path: Path) -> None:
    Manager.take({"NOTIFY_SOCKET": str(tmp_path / "gone")}, 7).ready()


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_address_is_one_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0aegis-test-{os.getpid()}")
        heard.settimeout(5)
        Manager.take({"NOTIFY_SOCKET": f"@aegis-test-{os.getpid()}"}, 7).ready()
        assert heard.recv(100) == b"READY=1"


@pytest.mark.parametrize("whose", [{"SYSTEMD_EXEC_PID": "6"}, {"WATCHDOG_PID": "6"}])
def test_an_agents_own_service_never_hears_of_us(ear: socket.socket, whose: dict[str, str]) -> None:
    """An agent may be a service itself; what its session starts inherits that service's variables."""
    manager = Manager.take({"NOTIFY_SOCKET": str(ear.getsockname()), "WATCHDOG_USEC": "3", **whose}, 7)
    manager.ready()
    manager.beat(100.0)
    ear.setblocking(False)
    with pytest.raises(BlockingIOError):
        ear.recv(100)


def test_without_a_manager_nothing_is_said_or_taken() -> None:
    manager = Manager.take(dict.fromkeys(VARIABLES, ""), os.getpid())
    manager.ready()
    manager.beat(1.0)
    assert not manager.gives
    assert manager.listener("/x") is None
