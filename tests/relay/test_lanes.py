"""One call at a time on a backend, whoever asks, in the order of asking, with a pause in between."""

from __future__ import annotations

from collections.abc import Callable

from playbook import Play, Session, call, cancel, request, text

MakePlay = Callable[..., Play]

CONFIG = """
backends: {files: {}}
queue: {files: {enabled: true, delay_min: 20s, delay_max: 40s, max_pending: 3, bypass_tools: ['peek*']}}
agents:
  bot: {backends: {files: {allowed: true, rate_limits: {peek: 1/day}}}}
  other: {backends: {files: {allowed: true}}}
"""


def finishes(s: Session, name: str) -> None:
    """The call that is under way ends well."""
    heard = s.server.hears("tools/call", name=name)
    s.server.answers(heard, text("ok"))
    s.client.hears_result(name)


def test_calls_of_two_agents_run_one_after_another_in_their_order_with_pauses(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    a, b = play.session().handshake(), play.session("other").handshake()
    a.client.says(call("a1", "a1"))
    b.client.says(call("b1", "b1"))
    a.client.says(call("a2", "a2"))
    b.is_quiet()
    finishes(a, "a1")
    play.advance(29)
    b.is_quiet()
    play.advance(1)  # the random pause is 30 s in a script
    finishes(b, "b1")
    a.is_quiet()
    play.advance(30)
    finishes(a, "a2")
    first, second, third = [one for one in play.log.records if one.kind == "intent" and one.method == "tools/call"]
    assert (first.queue_position, first.queue_wait_us) == (0, 0)
    assert (second.queue_position, second.queue_wait_us) == (1, 30_000_000)
    assert (third.queue_position, third.queue_wait_us) == (2, 60_000_000)


def test_there_is_no_pause_before_the_first_call_nor_after_a_longer_idle(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call("x", "x"))
    finishes(s, "x")
    play.advance(31)
    s.client.says(call("y", "y"))
    finishes(s, "y")


def test_the_pause_runs_from_the_end_of_the_call_before(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call("x", "x"), call("y", "y"))
    heard = s.server.hears("tools/call")
    play.advance(100)
    s.server.hears_nothing()
    s.server.answers(heard)
    s.client.hears_result("x")
    play.advance(29)
    s.server.hears_nothing()
    play.advance(1)
    finishes(s, "y")


def test_bypass_tools_skip_the_lane_and_nothing_else(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call("x", "x"), call("y", "y"))
    heard = s.server.hears("tools/call", name="x")
    s.calls(call(1, "peek"))
    s.client.says(call(2, "peek"))
    s.client.hears_error(2, -32002, "rate limit")
    s.calls(call(3, "peek_more"))
    s.calls(request(4, "tools/list"), {"tools": []})
    s.calls(request(5, "resources/read", uri="a:b"))
    s.server.answers(heard)
    s.client.hears_result("x")
    play.advance(30)
    finishes(s, "y")


def test_a_full_queue_refuses_and_has_room_again(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    for name in "abcd":
        s.client.says(call(name, name))
    s.client.says(call("e", "e"))
    s.client.hears_error("e", -32003, "the queue of `files` is full (3/3 waiting)", reason="queue_full", retryable=True)
    s.client.says(cancel("c"), call("f", "f"))
    for name in "abdf":
        finishes(s, name)
        play.advance(30)
    s.is_quiet()


def test_a_call_that_fails_or_is_cancelled_under_way_frees_the_lane(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call("a", "a"), call("b", "b"), call("c", "c"))
    s.server.fails(s.server.hears("tools/call", name="a"))
    s.client.hears_error("a", -32000)
    play.advance(30)
    heard = s.server.hears("tools/call", name="b")
    s.client.says(cancel("b"))
    s.server.hears("notifications/cancelled")
    play.advance(30)
    s.server.hears_nothing()  # it may still be at work
    s.server.answers(heard)
    play.advance(30)
    finishes(s, "c")


def test_a_client_that_leaves_takes_its_place_with_it_and_the_next_one_moves_up(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    a, b = play.session().handshake(), play.session("other").handshake()
    a.client.says(call("a1", "a1"), call("a2", "a2"))
    a.server.hears("tools/call", name="a1")
    b.client.says(call("b1", "b1"))
    a.leave()
    a.client.hears_error("a1", -32603, "outcome unknown")
    play.advance(30)
    finishes(b, "b1")


def test_one_backends_lane_does_not_slow_another(make_play: MakePlay) -> None:
    play = make_play(
        CONFIG.replace("backends: {files: {}}", "backends: {files: {}, mail: {}}").replace(
            "{allowed: true}", "{allowed: true}, mail: {allowed: true}"
        )
    )
    s, mail = play.session("other").handshake(), play.session("other", "mail").handshake()
    s.client.says(call("x", "x"), call("y", "y"))
    mail.calls(call(1, "x"))
    mail.calls(call(2, "y"))
    finishes(s, "x")
    play.advance(30)
    finishes(s, "y")


def test_a_lane_that_is_switched_off_lets_everybody_go_and_one_that_is_not_enabled_is_none(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    for name in "abc":
        s.client.says(call(name, name))
    heard = s.server.hears("tools/call", name="a")
    play.reload(CONFIG.replace("enabled: true", "enabled: false"))
    finishes(s, "b")
    finishes(s, "c")
    s.client.says(call("new", "new"))
    finishes(s, "new")
    s.server.answers(heard)
    s.client.hears_result("a")


def test_waiting_calls_are_asked_again_when_the_rules_change(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    for name in "abc":
        s.client.says(call(name, name))
    play.reload(CONFIG.replace("allowed: true, rate", "allowed: true, tool_denylist: [b], rate"))
    finishes(s, "a")
    play.advance(30)
    s.client.hears_error("b", -32001, "is not available")
    play.advance(30)
    finishes(s, "c")


def test_a_waiting_call_for_which_todays_rules_want_a_person_asks_one_and_lines_up_anew(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    for name in "abc":
        s.client.says(call(name, name))
    play.reload(CONFIG.replace("allowed: true, rate", "allowed: true, approval_required: [b], rate"))
    finishes(s, "a")
    play.advance(30)
    ticket = play.ticket()
    assert ticket.name == "b"
    play.advance(30)
    finishes(s, "c")
    play.desk.decide(ticket.id, True, "ann")
    s.server.hears_nothing()
    play.advance(30)
    finishes(s, "b")


def test_however_many_wait_a_reload_that_refuses_them_all_answers_them_all(make_play: MakePlay) -> None:
    config = CONFIG.replace("max_pending: 3", "max_pending: 1000").replace("20s", "0s").replace("40s", "0s")
    play = make_play("server: {max_in_flight_agent: 2000}\n" + config)
    sessions = [play.session("other").handshake() for _ in range(4)]
    for n in range(200):
        for s in sessions:
            s.client.says(call(n, "x"))
    heard = sessions[0].server.hears("tools/call")
    play.reload(config.replace("other: {backends: {files: {allowed: true}}}", "other: {backends: {}}"))
    sessions[0].server.answers(heard)
    answers = [s.client.next() for s in sessions for _ in range(len(s.client.inbox))]
    assert [one["id"] for one in answers if "result" in one] == [0]
    assert [one["error"]["code"] for one in answers if "error" in one] == [-32001] * 799
    assert not any(len(s.talk.to_server) for s in sessions)


def test_however_many_wait_a_full_disk_answers_them_all(make_play: MakePlay) -> None:
    config = CONFIG.replace("max_pending: 3", "max_pending: 1000").replace("20s", "0s").replace("40s", "0s")
    play = make_play(config)
    sessions = [play.session("other").handshake() for _ in range(4)]
    for n in range(100):
        for s in sessions:
            s.client.says(call(n, "x"))
    heard = sessions[0].server.hears("tools/call")
    play.log.unavailable = "disk full"
    sessions[0].server.answers(heard)
    answers = [s.client.next() for s in sessions for _ in range(len(s.client.inbox))]
    assert [one["error"]["data"]["reason"] for one in answers if "error" in one] == ["audit_unavailable"] * 399
    assert not any(len(s.talk.to_server) for s in sessions)
