"""An end that does not read slows its own session and nobody else, and costs bounded memory."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from playbook import HIGH, Play, call, cancel, modern, note, request, result, text

from aegis_daemon.core.session import Open
from aegis_daemon.relay.carry import Flight
from aegis_daemon.relay.conversation import UNREAD_BYTES

MakePlay = Callable[..., Play]

BIG = text("x" * 100_000)


def test_a_client_that_does_not_read_stops_its_own_server_and_nobody_elses(make_play: MakePlay) -> None:
    play = make_play()
    a, b = play.session().handshake(), play.session().handshake()
    a.client.reads = False
    for n in range(3):
        a.client.says(call(n, "big"))
        a.server.answers(a.server.hears("tools/call"), BIG)
    assert a.server.paused
    assert not b.server.paused
    b.calls(call(1, "x"))
    a.client.reads_again()
    assert not a.server.paused
    for n in range(3):
        a.client.hears_result(n, BIG)


@pytest.mark.parametrize(
    "nonsense",
    [b"x" * 100, b'{"jsonrpc":"2.0","id":0,"method":"made/up"}', b'{"jsonrpc":"2.0","id":null,"method":"x"}'],
)
def test_a_client_that_talks_nonsense_and_never_reads_is_read_no_further(make_play: MakePlay, nonsense: bytes) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.reads = False
    for _ in range(4000):
        s.client.says(nonsense)
    assert HIGH < s.client.backlog < HIGH + 1000
    assert s.client.paused
    s.client.reads_again()
    assert not s.client.paused
    s.client.inbox.clear()
    s.client.asked.clear()


def test_a_client_that_sends_on_and_on_and_never_reads_is_read_no_further(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.reads = False
    for n in range(4000):
        s.client.says(call(n, "x"), cancel(n))
    assert s.client.backlog < HIGH + 1000
    assert len(s.server.inbox) < 1000
    s.server.inbox.clear()
    s.client.dies()
    s.server.exits()


def test_a_server_that_does_not_read_stops_its_own_client(make_play: MakePlay) -> None:
    play = make_play()
    a, b = play.session().handshake(), play.session().handshake()
    a.server.is_full(True)
    assert a.client.paused
    assert not b.client.paused
    a.client.says(call(1, "x"))
    a.server.hears_nothing()
    a.server.is_full(False)
    a.server.answers(a.server.hears("tools/call"))
    a.client.hears_result(1)


def test_a_client_is_read_again_only_when_both_ends_read(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.reads = False
    for n in range(3):
        s.client.says(call(n, "big"))
        s.server.answers(s.server.hears("tools/call"), BIG)
    s.server.is_full(True)
    s.client.reads_again()
    assert s.client.paused
    s.server.is_full(False)
    assert not s.client.paused
    s.client.inbox.clear()


def test_a_replaced_server_that_did_not_read_holds_nobody_up(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(call(1, "x"))
    old = s.server
    old.hears("tools/call")
    line = modern(call(2, "x"))
    s.client.paused = False
    old.is_full(True)
    s.client.paused = False  # what was read before is handled after
    s.client.says(line)
    s.client.hears_error(1, -32603)
    assert not s.client.paused
    old.is_full(False)
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(2)
    old.exits()


def test_a_new_server_of_a_client_that_does_not_read_is_not_read_either(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.reads = False
    for n in range(3):
        s.client.says(call(n, "big"))
        s.server.answers(s.server.hears("tools/call"), BIG)
    s.client.paused = False  # what was read before is handled after
    s.client.says(modern(call(9, "x")))
    assert len(s.servers) == 2
    assert s.server.paused
    s.server.answers(s.server.hears("tools/call"))
    s.client.reads_again()
    assert not s.server.paused
    s.client.inbox.clear()
    s.servers[0].exits()


@pytest.mark.parametrize("question", ["sampling/createMessage", "made/up", "roots/list"])
def test_a_server_that_asks_on_and_on_and_never_reads_fills_no_memory(make_play: MakePlay, question: str) -> None:
    play = make_play()
    s = play.session().handshake()
    s.server.is_full(True)
    for n in range(5000):
        s.server.says(request(n, question))
    assert len(s.server.inbox) <= 1024
    assert len(s.talk.to_client) == 0
    s.server.inbox.clear()
    s.server.is_full(False)
    s.server.says(request("after", question))
    assert s.server.next()["id"] == "after"
    s.server.asked.clear()


def test_notifications_behind_a_disk_that_hangs_are_bounded(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    play.log.durable = False
    s.client.says(call(1, "x"))
    for n in range(1000):
        s.client.says(note("made/up", n=n))
    assert len(s.talk.held) == 256
    play.log.sync()
    heard = s.server.hears("tools/call")
    for n in range(256):
        s.server.hears("notifications/made/up", n=n)
    s.server.answers(heard)
    s.client.hears_result(1)
    play.advance(1)
    play.recorded("intent", "outcome", {"kind": "dropped", "count": 744})


def test_progress_on_and_on_is_for_the_client_to_read(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(call(1, "x", token="t"))
    heard = s.server.hears("tools/call")
    s.client.reads = False
    for n in range(3000):
        s.server.says(
            {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": "t", "progress": n + 1}}
        )
        if s.server.paused:
            break
    assert s.server.paused
    s.client.reads_again()
    s.client.inbox.clear()
    s.server.says(result(heard["id"]))
    s.client.hears_result(1)


@pytest.mark.parametrize("ending", ["answered", "refused", "cancelled", "agreed"])
def test_a_call_that_is_over_leaves_nothing_for_the_collector(make_play: MakePlay, ending: str) -> None:
    """A circle would keep each call, its arguments and all, until thousands of them have gathered."""
    config = "agents: {bot: {backends: {files: {allowed: true, tool_denylist: [no], approval_required: [ask]}}}}\n"
    play = make_play("backends: {files: {}}\n" + config)
    s = play.session().handshake()

    def one(n: int) -> None:
        if ending == "answered":
            s.calls(call(n, "x"))
        elif ending == "refused":
            s.client.says(call(n, "no"))
            s.client.hears_error(n, -32001)
        elif ending == "cancelled":
            s.client.says(call(n, "x"), cancel(n))
            heard = s.server.hears("tools/call")
            s.server.hears("notifications/cancelled")
            s.server.says(result(heard["id"]))
        else:
            s.client.says(call(n, "ask", n=n))
            play.desk.decide(play.ticket().id, True, "me", "")
            s.server.answers(s.server.hears("tools/call"), text("ok"))
            s.client.hears_result(n)

    one(1)
    gc.collect()
    gc.disable()
    try:
        for n in range(2, 12):
            one(n)
        kept = [made for made in gc.get_objects() if type(made) in (Flight, Open)]
        assert not kept, gc.get_referrers(kept[0])
    finally:
        gc.enable()


def test_a_client_that_cannot_be_held_back_fills_no_memory_while_its_server_does_not_read(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.server.is_full(True)
    big = "x" * 100_000
    for _ in range(200):
        s.client.paused = False  # as one over the network never is
        s.client.says(note("made/up", text=big))
    heard = len(s.server.inbox)
    assert 0 < heard * 100_000 <= UNREAD_BYTES
    s.client.paused = False
    s.client.says(call(1, "x"))
    s.client.hears_error(1, -32003, "not executed")
    assert len(s.server.inbox) == heard
    s.server.inbox.clear()
    s.server.is_full(False)
    s.client.says(note("made/up"), call(2, "x"))
    s.server.hears("notifications/made/up")
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(2)
