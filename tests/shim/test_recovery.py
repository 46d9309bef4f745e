"""A daemon that is lost: the client is put right, and the session goes on with the next one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis_shim import hello, ledger

from .stage import Client, Daemon, Session, until

Make = Callable[..., Client]
WAYS = pytest.mark.parametrize("way", ["relay", "handover"])


def reason(frame: object) -> object:
    assert isinstance(frame, dict)
    return frame["error"]["data"]["reason"]


@WAYS
def test_a_lost_daemon_leaves_no_call_open_and_loses_no_input(daemon: Daemon, client: Make, way: str) -> None:
    agent = client(way=way)
    first = daemon.accept().ok()
    agent.ask("done")
    agent.ask("forwarded")
    agent.ask(3)
    first.line()
    first.write(b'{"jsonrpc":"2.0","id":"done","result":1}\n')
    assert agent.frame()["result"] == 1
    first.line()
    first.slot(4, b'"forwarded"', ledger.DISPATCHED)
    line = first.line(consume=False)  # taken into a slot, killed before it was marked consumed
    first.slot(0, b"3", ledger.RECEIVED, first.consumed + len(line) + 1)
    kept = agent.ask("in the ledger")
    while kept not in first.input():
        first.read()
    agent.write(b'{"jsonrpc":"2.0","id":"half in the')
    while not first.input().endswith(b"half in the"):
        first.read()
    first.half(True)
    first.write(b'{"jsonrpc":"2.0","id":"forwar')
    agent.write(b' ledger","method":"x"}\n')
    in_pipe = agent.ask("in the pipe")
    first.drop()

    second = daemon.accept()
    assert second.hello.resume
    assert (second.hello.agent, second.hello.way) == ("default", way)
    second.ok()
    assert agent.line() == b'{"jsonrpc":"2.0","id":"forwar'  # closed, so that what follows is a line of its own
    frame = agent.frame()
    assert (frame["id"], reason(frame)) == ("forwarded", "outcome_unknown")
    frame = agent.frame()
    assert (frame["id"], reason(frame)) == (3, "not_executed")
    assert second.open() == 0
    assert second.map[ledger.HALF_AT] == 0
    assert second.line() + b"\n" == kept
    assert json.loads(second.line()) == {"jsonrpc": "2.0", "id": "half in the ledger", "method": "x"}
    assert second.line() + b"\n" == in_pipe
    second.write(b'{"jsonrpc":"2.0","id":"in the pipe","result":2}\n')
    assert agent.frame()["result"] == 2
    second.exit(0)
    assert agent.status() == 0
    assert agent.rest() == b""


def test_the_handshake_goes_on_to_the_next_daemon(daemon: Daemon, client: Make) -> None:
    agent = client()
    first = daemon.accept().ok()
    frame = agent.ask(0, "initialize")[:-1]
    first.line()
    first.map[ledger.HANDSHAKE_AT : ledger.HANDSHAKE_AT + len(frame)] = frame
    first.map[ledger.HANDSHAKE_LEN_AT : ledger.HANDSHAKE_LEN_AT + 4] = len(frame).to_bytes(4, "little")
    first.map[ledger.INITIALIZED_AT] = 1
    first.map[ledger.ERA_AT] = ledger.ERA_LEGACY
    first.drop()
    second = daemon.accept().ok()
    assert second.map[ledger.HANDSHAKE_AT : ledger.HANDSHAKE_AT + len(frame)] == frame
    assert (second.map[ledger.INITIALIZED_AT], second.map[ledger.ERA_AT]) == (1, ledger.ERA_LEGACY)


@WAYS
def test_a_session_survives_many_daemons(daemon: Daemon, client: Make, way: str) -> None:
    agent = client(way=way)
    daemon.accept().ok().drop()
    for number in range(20):
        agent.ask(number)
        session = daemon.accept()
        assert session.hello.resume or number == 0
        session.ok()
        assert json.loads(session.line())["id"] == number
        session.slot(number, str(number).encode(), ledger.DISPATCHED)
        session.drop()
        frame = agent.frame()
        assert (frame["id"], reason(frame)) == (number, "outcome_unknown")


def test_all_open_calls_are_answered_even_when_stdout_is_full(daemon: Daemon, client: Make) -> None:
    agent = client(way="handover")
    session = daemon.accept().ok()
    filler = b'"' + b"x" * 1000 + b'"\n'
    os.set_blocking(session.client_out, False)
    frames = 0
    try:
        while True:
            assert os.write(session.client_out, filler) == len(filler)
            frames += 1
    except BlockingIOError:
        pass
    agent.ask(1)
    session.line()
    for index in range(ledger.SLOTS):
        session.slot(index, str(index).encode(), ledger.RECEIVED, index + 1)
    session.drop()
    for _ in range(frames):
        assert agent.line() + b"\n" == filler
    assert [agent.frame()["id"] for _ in range(ledger.SLOTS)] == list(range(ledger.SLOTS))
    assert daemon.accept().open() == 0


def test_a_client_that_leaves_while_it_is_put_right_ends_the_shim(daemon: Daemon, client: Make) -> None:
    agent = client(way="handover")
    session = daemon.accept().ok()
    session.slot(0, b"1", ledger.RECEIVED)
    agent.write(b"x\n")
    session.line()
    agent.stop_reading()
    session.drop()
    assert agent.status() == 1


def test_a_daemon_that_dies_in_the_greeting_is_tried_again(daemon: Daemon, client: Make) -> None:
    agent = client("server")  # with autostart there is patience, and no start while something listens
    agent.ask(1)
    for _ in range(3):
        daemon.accept().drop()
    session = daemon.accept()
    assert not session.hello.resume
    session.ok()
    assert json.loads(session.line())["id"] == 1


def test_a_frame_that_kills_daemons_is_answered_after_the_second(daemon: Daemon, client: Make) -> None:
    agent = client()
    agent.ask("poison")
    for _ in range(2):
        session = daemon.accept().ok()
        session.line(consume=False)
        session.drop()
    frame = agent.frame()
    assert (frame["id"], reason(frame)) == ("poison", "no_daemon")
    agent.write(b'{"jsonrpc":"2.0",')
    session = daemon.accept().ok()
    agent.write(b'"id":2,"method":"x"}\n')
    assert json.loads(session.line())["id"] == 2


def test_a_daemon_that_only_dies_is_not_tried_in_a_storm(daemon: Daemon, client: Make) -> None:
    agent = client()
    began = time.monotonic()
    for _ in range(4):
        daemon.accept().ok().drop()
    assert time.monotonic() - began > 1.5  # two at once, then one a second
    session = daemon.accept().ok()
    agent.ask(1)
    assert json.loads(session.line())["id"] == 1


def test_a_daemon_that_stopped_is_waited_for_and_requests_are_answered(
    daemon: Daemon, client: Make, home: Path
) -> None:
    agent = client("server")  # autostart is on, and yet none must be started
    session = daemon.accept().ok()
    daemon.listener.close()
    session.say(hello.say_bye(restart=False))
    session.drop()
    agent.ask(1)
    frame = agent.frame()
    assert (frame["id"], reason(frame)) == (1, "no_daemon")
    assert "it was stopped" in frame["error"]["message"]
    assert not (home / "start.lock").exists()
    again = Daemon(home)
    try:
        resumed = again.accept()
        assert resumed.hello.resume
        resumed.ok()
        agent.ask(2)
        assert json.loads(resumed.line())["id"] == 2
    finally:
        again.close()


def test_a_daemon_that_restarts_is_waited_for_without_answering(daemon: Daemon, client: Make, home: Path) -> None:
    agent = client()
    session = daemon.accept().ok()
    session.slot(0, b"7", ledger.RECEIVED)
    agent.write(b"x\n")
    session.line()
    daemon.listener.close()
    session.say(hello.say_bye(restart=True))
    session.drop()
    assert reason(agent.frame()) == "not_executed"
    sent = agent.ask(8)
    time.sleep(0.2)  # long enough to be answered wrongly
    again = Daemon(home)
    try:
        resumed = again.accept().ok()
        assert resumed.hello.resume
        assert resumed.line() + b"\n" == sent
        resumed.write(b'{"jsonrpc":"2.0","id":8,"result":{}}\n')
        assert agent.frame() == {"jsonrpc": "2.0", "id": 8, "result": {}}
    finally:
        again.close()


def test_the_end_of_input_while_no_daemon_is_there_ends_the_shim(daemon: Daemon, client: Make) -> None:
    agent = client()
    session = daemon.accept().ok()
    daemon.listener.close()
    session.say(hello.say_bye(restart=False))
    session.drop()
    agent.ask(1)
    assert agent.frame()["id"] == 1
    agent.end_input()
    assert agent.status() == 1
    assert agent.rest() == b""


def test_the_rest_of_a_line_too_long_is_dropped_although_the_daemon_changed(
    daemon: Daemon, client: Make, home: Path
) -> None:
    agent = client()
    session = daemon.accept().ok()
    agent.write(b'{"id":1,"long":"' + b"x" * 1000)
    until(lambda: session.read() and len(session.input()) > 1000)
    session.consume(len(session.input()))  # as a daemon does that has refused it and skips to its end
    session.map[ledger.SKIPPING_AT] = 1
    daemon.listener.close()
    session.say(hello.say_bye(restart=False))
    session.drop()
    agent.write(b"the end\n")
    agent.ask(2)
    assert agent.frame()["id"] == 2
    again = Daemon(home)
    try:
        assert again.accept().map[ledger.SKIPPING_AT] == 0
    finally:
        again.close()


def test_a_daemon_that_talks_nonsense_is_left(daemon: Daemon, client: Make) -> None:
    agent = client()
    session: Session = daemon.accept().ok()
    session.say(b"run rm -rf /\n")
    assert session.left()
    assert daemon.accept().hello.resume
    agent.close()
