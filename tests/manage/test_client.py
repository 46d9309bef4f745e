from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aegis_daemon.manage import client
from aegis_daemon.manage.client import Connection, DaemonAway, Refused, approver_key, ask

from .memory import MemoryGovernor, Served, ticket


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="aegis-") as directory:
        yield f"{directory}/manage.sock"


@contextmanager
def answering(path: str, reply: bytes) -> Iterator[None]:
    """Somebody who answers the first request with these bytes and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        made, _ = listener.accept()
        made.recv(65536)
        made.sendall(reply)
        made.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join(5)
        listener.close()


def test_questions_and_refusals_come_back(path: str) -> None:
    governor = MemoryGovernor()
    governor.tickets.append(ticket())
    with Served(governor, path):
        assert ask(path, "pending")[0]["id"] == "K7Q2"
        with pytest.raises(Refused) as refused:
            ask(path, "decide", id="ZZZZ", approve=True)
    assert refused.value.code == "not_found"
    assert refused.value.hint


def test_no_daemon_and_a_dead_daemons_socket_are_told(path: str) -> None:
    with pytest.raises(DaemonAway, match="is not running"):
        ask(path, "status")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    with pytest.raises(DaemonAway, match="is not running"):
        ask(path, "status")


def test_a_daemon_that_is_silent_is_told(path: str) -> None:
    governor = MemoryGovernor()
    with Served(governor, path) as served, Connection(path, timeout=0.2) as daemon:
        with pytest.raises(DaemonAway, match="does not answer"):
            daemon.call("flush_audit")
        served.do(governor.slow.set)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"[]\n", b'{"ok":false}\n', b'{"ok":true,"da'])
def test_what_is_no_answer_is_told(path: str, reply: bytes) -> None:
    with answering(path, reply), pytest.raises(DaemonAway):
        ask(path, "status")


def test_an_answer_without_an_end_is_not_read_for_ever(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_MAX", 1000)
    with answering(path, b"x" * 2000), pytest.raises(DaemonAway):
        ask(path, "status")


def test_a_request_that_is_too_long_is_refused_in_words(path: str) -> None:
    with Served(MemoryGovernor(), path), pytest.raises(Refused) as refused:
        ask(path, "decide", id="K7Q2", approve=True, note="x" * 10_000_000)
    assert refused.value.code == "too_large"


def test_events_can_be_waited_for_and_polled(path: str) -> None:
    governor = MemoryGovernor()
    governor.tickets.append(ticket("AAAA"))
    with Served(governor, path) as served, Connection(path) as waiting, Connection(path) as polling:
        waiting.subscribe("watch_pending")
        polling.subscribe("watch_pending")
        events = waiting.events()
        assert next(events)["ticket"]["id"] == "AAAA"
        assert select.select([polling], [], [], 5)[0]
        first = polling.arrived()
        assert first is not None
        assert [event["ticket"]["id"] for event in first] == ["AAAA"]
        assert polling.arrived() == []
        served.do(governor.tell, "opened", ticket("BBBB"))
        assert next(events)["ticket"]["id"] == "BBBB"
        served.__exit__()
        assert list(events) == []
        assert select.select([polling], [], [], 5)[0]
        last = polling.arrived()
        assert last is not None
        assert [event["ticket"]["id"] for event in last] == ["BBBB"]
        assert polling.arrived() is None


def test_another_users_socket_is_not_talked_to(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Served(MemoryGovernor(), path):
        monkeypatch.setattr(client.os, "stat", lambda _: os.stat_result([0o140600, 1, 1, 1, 4711, 0, 0, 0, 0, 0]))
        monkeypatch.setattr(client.os, "geteuid", lambda: 1000)
        with pytest.raises(DaemonAway, match="belongs to uid 4711"):
            ask(path, "status")
        monkeypatch.undo()


STRANGER = """
import os, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
os.setuid(65534)
listener.listen()
print("listens", flush=True)
print(listener.accept()[0].recv(4096))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be played by root alone")
def test_root_tells_the_approver_key_to_no_stranger_who_listens(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    serving = subprocess.Popen(
        [sys.executable, "-c", STRANGER, str(listener.fileno())], pass_fds=[listener.fileno()], stdout=subprocess.PIPE
    )
    assert serving.stdout is not None
    assert serving.stdout.readline() == b"listens\n"
    with pytest.raises(DaemonAway, match=r"uid 65534's, who is not told the approver key"):
        ask(path, "guard", action="wire", done="", key="5ec2e7")
    assert serving.communicate(timeout=10)[0] == b"b''\n"
    listener.close()


def test_an_approver_key_is_read_and_an_empty_or_endless_file_is_none(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "approver.key")
    with open(path, "w") as file:
        file.write("abc\n")
    assert approver_key(path) == "abc"
    for content in ("", "x" * 5000):
        with open(path, "w") as file:
            file.write(content)
        with pytest.raises(ValueError, match="no approver key"):
            approver_key(path)
    with pytest.raises(ValueError, match="no approver key"):
        approver_key("/dev/zero")


def test_a_request_is_one_line_of_json_without_what_was_not_given(path: str) -> None:
    ours, theirs = socket.socketpair()
    made = Connection.__new__(Connection)
    made._path, made._timeout, made._data, made._socket = path, 1.0, bytearray(), ours
    made.subscribe("decide", id="A\nB", note=None)
    assert json.loads(theirs.makefile("rb").readline()) == {"verb": "decide", "args": {"id": "A\nB"}}
    theirs.close()
    made.close()
