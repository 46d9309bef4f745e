from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_shim.offline import UNDONE, UNKNOWN, Refusal, answer, lost

from .stage import BOUND_S, SHIM, Client, Daemon, until

REFUSAL = Refusal('no daemon at `/x/"y"`; start it ☂ \U0001f600', "no_daemon", True)
Make = Callable[..., Client]


@pytest.mark.parametrize(
    "request_id", [1, 0, -3, 2**63, 10**40, "a", "", "7", 'q"uote', "line\nfeed", "ünï\U0001f600", "\u2028"]
)
def test_an_id_comes_back_exactly(request_id: int | str) -> None:
    got = json.loads(answer(json.dumps({"jsonrpc": "2.0", "id": request_id, "method": "tools/call"}).encode(), REFUSAL))
    assert got["id"] == request_id
    assert type(got["id"]) is type(request_id)
    assert got["error"] == {
        "code": -32603,
        "message": REFUSAL.message,
        "data": {"by": "aegis", "reason": "no_daemon", "retryable": True},
    }


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"  \r",
        b'{"jsonrpc":"2.0","method":"notifications/initialized"}',
        b'{"jsonrpc":"2.0","id":1,"result":{}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}',
        b'[{"jsonrpc":"2.0","method":"notifications/x"}]',
    ],
)
def test_what_expects_no_answer_gets_none(line: bytes) -> None:
    assert answer(line, REFUSAL) == b""


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"hello", -32700, None),
        (b'{"jsonrpc":"2.0","id":1,', -32700, None),
        (b'\xff{"id":1,"method":"x"}', -32700, None),
        (b'\xef\xbb\xbf{"id":1,"method":"x"}', -32700, None),
        (b'{"id":1,"method":"x","params":NaN}', -32700, None),
        (b"[" * 200_000, -32700, None),
        (b'{"id":' + b"9" * 5000 + b',"method":"x"}', -32700, None),
        (b"1", -32600, None),
        (b"null", -32600, None),
        (b"{}", -32600, None),
        (b'{"id":1}', -32600, 1),
        (b'{"id":null,"method":"x"}', -32600, None),
        (b'{"id":true,"method":"x"}', -32600, None),
        (b'{"id":1.5,"method":"x"}', -32600, None),
        (b'{"id":[1],"method":"x"}', -32600, None),
        (b'{"id":1,"id":2,"method":"x"}', -32600, None),
        (b'{"id":1,"method":"x","method":"y"}', -32600, 1),
        (b'{"id":1,"method":7}', -32600, 1),
        (b'{"method":7}', -32600, None),
    ],
)
def test_garbage_is_told_apart_from_requests(line: bytes, code: int, request_id: int | None) -> None:
    got = json.loads(answer(line, REFUSAL))
    assert (got["error"]["code"], got["id"]) == (code, request_id)


def test_a_batch_gets_one_line_with_an_answer_for_each_request() -> None:
    line = b'[{"id":1,"method":"a"},{"method":"notifications/x"},{"id":"b","method":"c"},5]'
    text = answer(line, REFUSAL)
    assert text.count(b"\n") == 1
    got = json.loads(text)
    assert [(item["id"], item["error"]["code"]) for item in got] == [(1, -32603), ("b", -32603), (None, -32600)]


def test_an_empty_batch_is_one_invalid_request() -> None:
    got = json.loads(answer(b"[]", REFUSAL))
    assert (got["id"], got["error"]["code"]) == (None, -32600)


@given(st.binary(max_size=300))
def test_any_line_gets_one_json_line_or_nothing(line: bytes) -> None:
    got = answer(line.replace(b"\n", b""), REFUSAL)
    assert got == b"" or (got.endswith(b"\n") and got.count(b"\n") == 1 and json.loads(got))


def test_a_lost_call_says_whether_it_may_be_repeated() -> None:
    undone, unknown = json.loads(lost(UNDONE, b'"x"')), json.loads(lost(UNKNOWN, b"4"))
    assert (undone["id"], unknown["id"]) == ("x", 4)
    assert undone["error"]["code"] == unknown["error"]["code"] == -32603
    assert undone["error"]["data"] == {"by": "aegis", "reason": "not_executed", "retryable": True}
    assert unknown["error"]["data"] == {"by": "aegis", "reason": "outcome_unknown", "retryable": False}


# --- the real shim, alone


@pytest.mark.parametrize("way", ["relay", "handover"])
def test_without_a_daemon_every_request_gets_an_error_that_names_the_fix(client: Make, home: Path, way: str) -> None:
    agent = client(way=way)
    agent.write(b'{"jsonrpc":"2.0","id":"init","method":"initialize","params":{}}\nnonsense\n')
    agent.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n{"jsonrpc":"2.0","id":2,')
    first = agent.frame()
    assert first["id"] == "init"
    assert "`aegis daemon start`" in first["error"]["message"]
    assert str(home / "daemon.log") in first["error"]["message"]
    assert agent.frame()["error"]["code"] == -32700
    agent.write(b'"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}\n')
    assert agent.frame()["id"] == 2
    agent.end_input()
    assert agent.rest() == b""
    assert agent.status() == 1
    assert agent.stderr().startswith("aegis-wrap: not executed: the aegis daemon cannot be reached")


def test_a_frame_that_is_too_long_is_refused_once_and_the_next_one_is_served(client: Make) -> None:
    agent = client(way="handover")
    agent.write(b'{"id":1,"method":"x","params":"' + b"y" * (3 << 20) + b'"}\n')
    agent.ask(2)
    got = agent.frame()
    assert (got["id"], got["error"]["code"]) == (None, -32600)
    assert agent.frame()["id"] == 2


def test_a_client_that_does_not_read_gets_every_answer_later(client: Make) -> None:
    agent = client(way="handover")
    count = 600  # far more than a pipe holds
    for number in range(count):
        agent.ask(number)
    assert [agent.frame()["id"] for _ in range(count)] == list(range(count))


def test_a_signal_ends_a_shim_that_is_blocked_on_a_full_stdout(client: Make) -> None:
    agent = client(way="handover")
    for number in range(600):
        agent.ask(number)
    waiting = bytearray(4)

    def full() -> bool:
        fcntl.ioctl(agent.stdout, termios.FIONREAD, waiting)
        return int.from_bytes(waiting, sys.byteorder) > 50_000

    until(full)
    agent.signal(15)
    assert agent.status() == 143


def test_a_client_that_no_longer_reads_ends_the_shim(client: Make) -> None:
    agent = client(way="handover")
    agent.ask(1)
    assert agent.frame()["id"] == 1
    agent.stop_reading()
    assert agent.status() == 1


def test_a_daemon_that_appears_takes_over_with_the_request_that_finds_it(client: Make, home: Path) -> None:
    agent = client(way="handover")
    agent.ask(1)
    assert agent.frame()["error"]["data"]["reason"] == "no_daemon"
    daemon = Daemon(home)
    try:
        sent = agent.ask(2)
        session = daemon.accept().ok()
        assert session.line() + b"\n" == sent
        session.write(b'{"jsonrpc":"2.0","id":2,"result":{}}\n')
        assert agent.frame() == {"jsonrpc": "2.0", "id": 2, "result": {}}
    finally:
        daemon.close()


def test_a_daemon_that_appears_is_found_without_any_request(client: Make, home: Path) -> None:
    agent = client(way="handover")
    agent.write(b"{}\n")
    assert agent.frame()["error"]["code"] == -32600  # it is offline by now
    agent.write(b'{"jsonrpc":"2.0",')
    daemon = Daemon(home)
    try:
        session = daemon.accept().ok()
        agent.write(b'"id":5,"method":"x"}\n')
        assert session.line() == b'{"jsonrpc":"2.0","id":5,"method":"x"}'
    finally:
        daemon.close()


def test_a_socket_that_may_not_be_opened_is_named_at_once(client: Make, home: Path) -> None:
    (home / "file").write_text("")
    agent = client("--socket", str(home / "file" / "s"), "server", way="handover")
    started = time.monotonic()
    agent.ask(1)
    assert "not a directory" in agent.frame()["error"]["message"]
    assert time.monotonic() - started < BOUND_S / 2  # no waiting for what cannot come
    long = client("--socket", "/" + "x" * 200, "server", way="handover")
    long.ask(1)
    assert "too long" in long.frame()["error"]["message"]


def test_stdout_carries_frames_only_even_where_the_shim_has_much_to_say(client: Make) -> None:
    agent = client(way="relay")
    for line in (b"\n", b"garbage\n", b"[]\n", b'{"id":1,"method":"x"}\n', b"\xff\xfe\n"):
        agent.write(line)
    agent.end_input()
    lines = agent.rest().splitlines()
    assert len(lines) == 4
    for line in lines:
        frame: Any = json.loads(line)
        assert isinstance(frame, list) or frame["jsonrpc"] == "2.0"


def test_missing_standard_descriptors_do_no_harm(home: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$@" <&- 2>&-', sys.executable, "-I", "-S", str(SHIM), "--no-autostart", "server"],
        env={"AEGIS_HOME": str(home)},
        stdout=subprocess.PIPE,
        timeout=BOUND_S,
    )
    assert (done.returncode, done.stdout) == (1, b"")
