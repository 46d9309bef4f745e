"""A reload that gives a backend another server reaches the sessions that there are, and none of them ends for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, Server, Session, call, cancel, modern, note, request, text

from aegis_daemon.core.handed import handed

MakePlay = Callable[..., Play]

CONFIG = """
backends: {files: {timeout: 60s}}
agents: {bot: {backends: {files: {allowed: true, approval_required: [pay]}}}}
"""
OFFERED = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {"listChanged": True}}, "serverInfo": {}}


def renew(s: Session, mark: Any = None) -> None:
    """What a reload does to a session whose server is defined otherwise now."""
    start = s.talk._start_server
    assert start is not None
    s.talk.reloaded()
    s.talk.renewal.begin(start, mark)


def takes_up(s: Session, initialized: bool = True) -> None:
    """The new server has the handshake that the client had with the old one."""
    heard = s.server.hears("initialize", protocolVersion="2025-11-25")
    s.server.answers(heard, OFFERED)
    if initialized:
        s.server.hears("notifications/initialized")


def test_the_next_call_goes_to_the_new_server_which_is_shown_the_clients_handshake(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    old = s.server
    renew(s)
    assert old.ending
    assert len(s.servers) == 2
    s.client.says(call(1, "echo"), request(2, "tools/list"))
    heard = s.server.hears("initialize")
    s.server.hears_nothing()
    s.client.hears_nothing()
    s.server.answers(heard, OFFERED)
    s.server.hears("notifications/initialized")
    s.server.answers(s.server.hears("tools/call", name="echo"), text("new"))
    s.client.hears_result(1, text("new"))
    s.server.answers(s.server.hears("tools/list"), {"tools": []})
    s.client.hears_result(2)
    old.exits()
    assert not s.over
    assert s.calls(call(3, "echo"))


def test_what_is_under_way_ends_at_the_old_server_first(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    old = s.server
    s.client.says(call(1, "slow", token="t"))
    number = old.hears("tools/call")
    renew(s)
    s.client.says(call(2, "echo"))
    old.says(note("progress", progressToken="t", progress=1))
    s.client.hears("notifications/progress")
    old.hears_nothing()
    assert len(s.servers) == 1
    old.answers(number, text("slow"))
    s.client.hears_result(1, text("slow"))
    play.advance(0)
    assert old.ending
    takes_up(s)
    s.server.answers(s.server.hears("tools/call", name="echo"), text("new"))
    s.client.hears_result(2, text("new"))


def test_a_server_that_does_not_end_what_it_does_is_waited_for_as_long_as_a_call_may_take(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "slow", token="t"))
    s.server.hears("tools/call")
    renew(s)
    for second in range(59):
        play.advance(1)
        s.server.says(note("progress", progressToken="t", progress=second))
        s.client.hears("notifications/progress")
    assert len(s.servers) == 1
    play.advance(1)
    s.client.hears_error(1, -32603, "another server; outcome unknown")
    takes_up(s)
    s.calls(call(2, "echo"))


def test_a_server_that_ends_by_itself_meanwhile_ends_no_session(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "slow"))
    s.server.hears("tools/call")
    renew(s)
    s.client.says(call(2, "echo"))
    s.server.exits(1)
    s.client.hears_error(1, -32603, "outcome unknown")
    takes_up(s)
    s.server.answers(s.server.hears("tools/call", name="echo"), text("new"))
    s.client.hears_result(2, text("new"))


@pytest.mark.parametrize("how", ["refuses", "exits", "cannot start", "is silent"])
def test_calls_are_refused_while_the_new_server_is_not_there_and_the_next_tries_again(
    make_play: MakePlay, how: str
) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    renew(s)
    s.client.says(call(1, "echo"))
    heard = s.server.hears("initialize")
    if how == "refuses":
        s.server.fails(heard, message="wrong token")
    elif how == "exits":
        s.server.exits(3)
    elif how == "cannot start":
        s.server.cannot_start()
    else:
        play.advance(61)
    s.client.hears_error(1, -32603, "not executed", retryable=True, reason="no_server")
    s.client.says(call(2, "echo"))
    s.client.hears_error(2, -32603, "not executed")
    count = len(s.servers)
    play.advance(1)
    s.client.says(call(3, "echo"))
    assert len(s.servers) == count + 1
    takes_up(s)
    s.server.answers(s.server.hears("tools/call"), text("new"))
    s.client.hears_result(3, text("new"))


def test_a_server_that_cannot_even_be_begun_is_tried_again_too(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    start = s.talk._start_server
    assert start is not None
    failing = True

    def starts(talk: Any) -> Any:
        if failing:
            raise OSError(2, "No such file or directory")
        return start(talk)

    s.talk.renewal.begin(starts, None)
    s.client.says(call(1, "echo"))
    s.client.hears_error(1, -32603, "no such file or directory", reason="no_server")
    failing = False
    play.advance(1)
    s.client.says(call(2, "echo"))
    takes_up(s)
    s.server.answers(s.server.hears("tools/call"), text("new"))
    s.client.hears_result(2)


def test_a_modern_session_goes_on_at_the_new_server_with_its_subscriptions(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    s.client.says(modern(request("mine", "subscriptions/listen", notifications={"toolsListChanged": True})))
    s.server.hears("subscriptions/listen")
    old = s.server
    renew(s)
    assert old.ending
    number = s.server.hears("subscriptions/listen", notifications={"toolsListChanged": True})["id"]
    meta = {"io.modelcontextprotocol/subscriptionId": number}
    s.server.says(note("tools/list_changed", _meta=meta))
    s.client.hears("notifications/tools/list_changed", _meta={"io.modelcontextprotocol/subscriptionId": "mine"})
    s.client.says(modern(call(1, "echo")))
    s.server.answers(s.server.hears("tools/call"), text("new"))
    s.client.hears_result(1, text("new"))
    s.server.says(note("cancelled", requestId=number))
    s.client.hears("notifications/cancelled", requestId="mine")


def test_a_session_that_nobody_has_used_yet_begins_with_the_new_server(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    renew(s)
    assert len(s.servers) == 2
    s.handshake()
    s.calls(call(1, "echo"))


def test_a_call_that_waits_for_a_person_runs_at_the_new_server(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "pay"))
    renew(s)
    heard = s.server.hears("initialize")
    play.desk.decide(play.ticket().id, True, "ann")  # in the midst of the handshake
    s.server.hears_nothing()
    s.server.answers(heard, OFFERED)
    s.server.hears("notifications/initialized")
    s.server.answers(s.server.hears("tools/call", name="pay"), text("paid"))
    s.client.hears_result(1, text("paid"))


def test_what_a_person_is_asked_about_one_handed_over_server_never_runs_at_another(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session(handed=handed(["old"], "/", {})).handshake()
    s.client.says(call(1, "pay"))
    new = handed(["new"], "/", {})
    renew(s, new)
    s.client.hears_error(1, -32603, "not executed")
    takes_up(s)
    s.client.says(call(2, "pay"))
    assert [one.server for one in play.desk.pending()][-1] == new.mark


def test_a_call_that_waits_can_be_cancelled(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    renew(s)
    s.client.says(call(1, "echo"), cancel(1))
    takes_up(s)
    s.server.hears_nothing()
    s.calls(call(2, "echo"))


@pytest.mark.parametrize("when", ["draining", "opening", "down"])
def test_a_client_that_leaves_meanwhile_leaves_nothing(make_play: MakePlay, when: str) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    if when == "draining":
        s.client.says(call(1, "slow"))
        s.server.hears("tools/call")
    renew(s)
    if when != "draining":
        s.client.says(call(2, "echo"))
        heard = s.server.hears("initialize")
        if when == "down":
            s.server.fails(heard)
            s.client.hears_error(2, -32603)
    s.client.dies()
    s.all_exit()
    assert s.over


def test_a_reload_while_the_new_server_begins_is_the_one_that_counts(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    renew(s)
    s.client.says(call(1, "echo"))
    late = s.server.hears("initialize")
    second = s.server
    renew(s)
    assert second.ending
    assert len(s.servers) == 3
    second.says({"jsonrpc": "2.0", "id": late["id"], "result": OFFERED})
    takes_up(s)
    s.server.answers(s.server.hears("tools/call"), text("newest"))
    s.client.hears_result(1, text("newest"))


def test_what_the_client_says_besides_waits_too_and_questions_of_the_old_server_are_over(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("allowed: true", "allowed: true, server_requests: [roots]"))
    s = play.session().handshake(capabilities={"roots": {"listChanged": True}})
    s.server.says(request(5, "roots/list"))
    asked = s.client.hears("roots/list")
    old = s.server
    renew(s)
    s.client.says({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}}, note("roots/list_changed"))
    heard = s.server.hears("initialize")
    s.client.says(request(1, "ping"))
    s.client.hears_result(1)
    s.server.answers(heard, OFFERED)
    s.server.hears("notifications/initialized")
    s.server.hears("notifications/roots/list_changed")
    s.server.hears_nothing()
    old.hears_nothing()
    s.calls(call(2, "echo"))


def test_the_other_era_s_server_is_the_new_one(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    renew(s)
    s.client.says(call(1, "echo"))
    s.server.hears("initialize")
    s.client.says(modern(call(2, "echo")))
    s.client.hears_error(1, -32603, "not executed")
    s.server.answers(s.server.hears("tools/call", name="echo"), text("modern"))
    s.client.hears_result(2, text("modern"))


def test_a_legacy_client_hears_that_its_lists_may_have_changed(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake(server_capabilities={"tools": {"listChanged": True}})
    renew(s)
    s.client.hears("notifications/tools/list_changed")
    takes_up(s)
    s.talk.reloaded()
    s.client.hears("notifications/tools/list_changed")


def test_whoever_had_no_server_has_one_once_the_rules_give_it(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("allowed: true", "allowed: false"))
    s = play.session(with_server=False)
    s.client.says(request("early", "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={}))
    s.client.hears_error("early", -32001)
    play.reload(CONFIG)

    def starts(talk: Any) -> Any:
        s.servers.append(Server(play, talk))
        return s.servers[-1]

    s.talk.renewal.begin(starts, None)
    s.handshake()
    s.calls(call(1, "echo"))


def test_a_client_that_leaves_while_the_handshake_is_written_down_leaves_nothing(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    play.log.durable = False
    renew(s)
    s.client.leaves()
    assert not s.over
    play.log.sync()
    s.server.hears("initialize")
    s.all_exit()
    assert s.over


def test_an_approval_for_the_old_server_runs_no_retry_at_the_new_one(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    s.client.says(modern(call(1, "pay")))
    play.desk.decide(play.ticket().id, True, "ann")
    asks = {"resultType": "input_required", "inputRequests": {}, "requestState": "s"}
    s.server.answers(s.server.hears("tools/call", name="pay"), asks)
    s.client.hears_result(1)
    renew(s)
    again = modern(call(2, "pay"))
    again["params"]["requestState"] = "s"
    s.client.says(again)
    s.server.hears_nothing()
    assert len(play.desk.pending()) == 1
    s.client.dies()


def test_a_subscription_that_is_not_allowed_any_more_does_not_reach_the_new_server(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session()
    s.client.says(modern(request("mine", "subscriptions/listen", notifications={"toolsListChanged": True})))
    s.server.hears("subscriptions/listen")
    play.reload(CONFIG.replace("allowed: true", "allowed: false"))
    renew(s)
    s.server.hears_nothing()
    s.client.hears_error("mine", -31001)
    s.client.dies()
