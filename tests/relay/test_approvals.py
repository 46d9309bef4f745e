"""An approval is one person's single use of one exact call, and today's policy is asked again before it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, Session, call, cancel, error, text

from aegis_daemon.approvals.desk import Decided, Nameless, NoSuchTicket, Voted

MakePlay = Callable[..., Play]

CONFIG = """
approval: {timeout: 300s, max_pending_per_agent: 3}
backends: {files: {}}
agents:
  bot: {backends: {files: {allowed: true, approval_required: [pay, 'del_*'], rate_limits: {pay: 1/day}}}}
  other: {backends: {files: {allowed: true, approval_required: [pay]}}}
"""


def held(play: Play, id: Any = 1, **arguments: Any) -> Session:
    s = play.session().handshake()
    s.client.says(call(id, "pay", **arguments))
    s.is_quiet()
    return s


def agree(play: Play, note: str = "") -> str:
    ticket = play.ticket()
    play.desk.decide(ticket.id, True, "ann", note)
    return ticket.id


# --- the plain course -------------------------------------------------------------------------------------------------


def test_an_approved_call_runs_as_it_was_asked(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play, eur=5)
    ticket = play.ticket()
    assert (ticket.agent, ticket.backend, ticket.name, ticket.arguments) == ("bot", "files", "pay", '{"eur":5}')
    assert play.used() == {"pay": (0, 1)}
    agree(play)
    s.server.answers(s.server.hears("tools/call", name="pay", arguments={"eur": 5}), text("paid"))
    s.client.hears_result(1, text("paid"))
    assert play.used() == {"pay": (1, 0)}
    assert play.desk.pending() == []
    records = play.recorded(
        {"kind": "hold", "ticket": ticket.id, "policy": "agents.bot.backends.files.approval_required"},
        {"kind": "intent", "approval": "approved", "approver": "ann", "ticket": ticket.id},
        {"kind": "outcome", "status": "success"},
    )
    assert play.body(records[0]) == {"eur": 5}


def test_a_rejected_call_is_refused_with_the_persons_note(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play)
    play.desk.decide(play.ticket().id, False, "ann", "not this month")
    s.client.hears_error(1, -32004, "a person rejected this call", stage="approval", reason="rejected", retryable=False)
    s.is_quiet()
    assert play.used() == {"pay": (0, 0)}
    hold, denied = play.recorded(
        "hold", {"kind": "denied", "stage": "approval", "approval": "rejected", "approver": "ann"}
    )
    assert denied.policy == hold.policy != "", "the rule that had a person asked; who rejected is told beside it"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_no_that_nobody_waited_for_is_told_to_the_next_such_call_once(make_play: MakePlay, restarted: bool) -> None:
    play = make_play(CONFIG)
    s = held(play, eur=5)
    ticket = play.ticket()
    s.client.says(cancel(1))
    play.desk.decide(ticket.id, False, "ann", "not this month")
    assert play.used() == {"pay": (0, 0)}, "it holds nothing any more"
    assert play.desk.pending() == []
    if restarted:
        play.restart_desk()
    other = play.session().handshake()
    other.client.says(call(7, "pay", eur=5))
    other.client.hears_error(7, -32004, "not this month", stage="approval", reason="rejected", retryable=False)
    other.is_quiet()
    other.client.says(call(8, "pay", eur=5))
    other.is_quiet()
    assert play.ticket().call_id != ticket.call_id, "the next one asks anew"


def test_a_no_is_not_told_for_ever(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play, eur=5)
    first = play.ticket()
    s.client.says(cancel(1))
    play.desk.decide(first.id, False, "ann", "not this month")
    play.advance(601)
    s.client.says(call(9, "pay", eur=5))
    s.is_quiet()
    assert play.ticket().call_id != first.call_id


def test_a_call_that_nobody_decides_is_refused_in_time(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play)
    play.advance(299)
    s.is_quiet()
    play.advance(2)
    s.client.hears_error(1, -32004, "nobody approved this call in time", reason="approval_timeout", retryable=True)
    assert play.used() == {"pay": (0, 0)}
    play.recorded("hold", {"kind": "denied", "approval": "timeout"})


def test_a_decision_is_taken_once(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play)
    id = agree(play)
    with pytest.raises(Decided):
        play.desk.decide(id, False, "bob")
    with pytest.raises(NoSuchTicket):
        play.desk.decide("ZZZZ", True, "bob")
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(1)


def test_only_tools_on_the_list_are_held(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.calls(call(1, "look"))
    s.client.says(call(2, "del_all"))
    s.server.hears_nothing()
    s.client.says(cancel(2))


def test_an_agent_may_have_so_many_tickets_and_no_more(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    for n in range(3):
        s.client.says(call(n, "del_x", n=n))
    s.client.says(call(3, "del_x", n=3))
    s.client.hears_error(3, -32003, "3 calls of this agent wait for a person", reason="too_many_pending")
    other = play.session("other").handshake()
    other.client.says(call(1, "pay"))
    assert len(play.desk.pending()) == 4
    s.leave()
    other.leave()


# --- without a waiter -------------------------------------------------------------------------------------------------


def test_a_cancelled_calls_ticket_is_taken_up_by_the_same_call_and_runs_once(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play, eur=5)
    s.client.says(cancel(1))
    assert play.used() == {"pay": (0, 1)}
    agree(play)
    s.server.hears_nothing()  # nothing runs by itself
    s.client.says(call(2, "pay", token="other meta", eur=5))
    s.server.answers(s.server.hears("tools/call", arguments={"eur": 5}), text("paid"))
    s.client.hears_result(2, text("paid"))
    assert play.used() == {"pay": (1, 0)}
    assert [event for event, _ in play.events] == ["opened", "waiter_gone", "approved", "attached", "consumed"]


def test_the_same_call_attaches_while_the_person_still_thinks(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play, eur=5)
    s.client.says(cancel(1), call(2, "pay", eur=5))
    agree(play)
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(2)


def test_another_session_of_the_agent_may_take_it_up_and_another_agent_may_not(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play, eur=5)
    s.leave()
    agree(play)
    other = play.session("other").handshake()
    other.client.says(call(1, "pay", eur=5))
    other.is_quiet()
    again = play.session().handshake()
    again.client.says(call(1, "pay", eur=5))
    again.server.answers(again.server.hears("tools/call"))
    again.client.hears_result(1)
    other.leave()


@pytest.mark.parametrize("arguments", [{"eur": 6}, {"eur": 5.0}, {"eur": "5"}, {}, {"eur": 5, "note": None}])
def test_changed_arguments_need_a_ticket_of_their_own(make_play: MakePlay, arguments: dict[str, Any]) -> None:
    play = make_play(CONFIG.replace("pay: 1/day", "pay: 2/day"))
    s = held(play, eur=5)
    s.client.says(cancel(1))
    agree(play)
    s.client.says(call(2, "pay", **arguments))
    s.server.hears_nothing()
    assert len(play.desk.pending()) == 2
    s.client.says(cancel(2))


def test_an_approval_that_nobody_comes_back_for_lapses(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play)
    s.client.says(cancel(1))
    agree(play)
    play.advance(301)
    assert play.desk.pending() == []
    assert play.used() == {"pay": (0, 0)}
    s.client.says(call(2, "pay"))
    s.server.hears_nothing()
    s.client.says(cancel(2))


def test_tickets_survive_the_daemon_and_their_calls_run_once(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play, eur=5)
    s.talk.stop()
    s.client.hears_error(1, -32603, "the daemon stops")
    s.client.bye()
    s.talk.shim_gone()
    s.server.exits()
    play.restart_desk()
    assert play.used() == {"pay": (0, 1)}
    agree(play)
    again = play.session().handshake()
    again.client.says(call(1, "pay", eur=5))
    again.server.answers(again.server.hears("tools/call"))
    again.client.hears_result(1)
    assert play.used() == {"pay": (1, 0)}


# --- the answer nobody received ---------------------------------------------------------------------------------------


def ran_for_nobody(play: Play, value: Any = None) -> Session:
    s = held(play, eur=5)
    agree(play)
    heard = s.server.hears("tools/call")
    s.client.says(cancel(1))
    s.server.hears("notifications/cancelled")
    s.server.answers(heard, value or text("paid", _meta={"own": 1}))
    s.is_quiet()
    play.seen = len(play.log.records)
    return s


def test_an_answer_that_nobody_received_is_given_once_to_the_same_call_and_marked(make_play: MakePlay) -> None:
    play = make_play(CONFIG)  # the limit is one a day, and used up: nothing is executed, so nothing is counted
    s = ran_for_nobody(play)
    s.client.says(call(2, "pay", eur=5))
    s.server.hears_nothing()
    s.client.hears_result(2, text("paid", _meta={"own": 1, "aegis/replayed": True}))
    play.recorded({"kind": "denied", "stage": "replay", "approval": "replayed", "approver": "ann"})
    assert play.used() == {"pay": (1, 0)}
    s.client.says(call(3, "pay", eur=5))
    s.client.hears_error(3, -32002, "rate limit exceeded")


def test_a_replay_holds_no_claim_and_no_place_afterwards(make_play: MakePlay) -> None:
    play = make_play(
        CONFIG.replace("1/day", "5/day") + "queue: {files: {enabled: true, delay_min: 9s, delay_max: 9s}}\n"
    )
    s = ran_for_nobody(play)
    s.client.says(call(2, "pay", eur=5))
    s.client.hears_result(2)
    assert play.used() == {"pay": (1, 0)}
    assert play.lanes.rows() == []


def test_a_replay_goes_to_its_agent_alone_and_not_for_other_arguments(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("pay: 1/day", "pay: 5/day"))
    s = ran_for_nobody(play)
    other = play.session("other").handshake()
    other.client.says(call(1, "pay", eur=5))
    other.is_quiet()
    s.client.says(call(2, "pay", eur=6))
    s.is_quiet()
    other.leave()
    s.leave()


def test_a_replay_needs_todays_policy(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = ran_for_nobody(play)
    play.reload(CONFIG.replace("allowed: true", "allowed: true, tool_denylist: [pay]"))
    s.client.says(call(2, "pay", eur=5))
    s.client.hears_error(2, -32001, "is not available")


def test_a_kept_answer_is_forgotten_after_ten_minutes(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("pay: 1/day", "pay: 5/day"))
    s = ran_for_nobody(play)
    play.advance(601)
    s.client.says(call(2, "pay", eur=5))
    s.is_quiet()
    s.client.says(cancel(2))


def test_a_kept_answer_survives_the_daemon(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = ran_for_nobody(play)
    play.restart_desk()
    s.client.says(call(2, "pay", eur=5))
    s.client.hears_result(2, {"_meta": {"aegis/replayed": True}})


@pytest.mark.parametrize("odd", [b"[]", b"null", b'{"content":[],"n":1e999}', b'{"_meta":5}'])
def test_a_kept_answer_of_another_shape_is_given_all_the_same(make_play: MakePlay, odd: bytes) -> None:
    play = make_play(CONFIG)
    s = held(play, eur=5)
    agree(play)
    heard = s.server.hears("tools/call")
    s.client.says(cancel(1))
    s.server.hears("notifications/cancelled")
    s.server.says(b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (heard["id"], odd))
    s.client.says(call(2, "pay", eur=5))
    assert s.client.next()["id"] == 2


def test_a_failed_call_is_not_kept(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play, eur=5)
    agree(play)
    heard = s.server.hears("tools/call")
    s.client.says(cancel(1))
    s.server.hears("notifications/cancelled")
    s.server.says(error(heard["id"]))
    s.client.says(call(2, "pay", eur=5))
    s.is_quiet()
    assert play.ticket().state == "pending"
    s.client.says(cancel(2))


# --- the rules change while somebody waits ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("allowed: true", "allowed: true, tool_denylist: [pay]", -32001),
        ("allowed: true", "allowed: false", -32001),
    ],
)
def test_todays_policy_refuses_what_yesterdays_let_a_person_approve(
    make_play: MakePlay, old: str, new: str, code: int
) -> None:
    play = make_play(CONFIG)
    s = held(play)
    play.reload(CONFIG.replace(old, new, 1))
    agree(play)
    s.client.hears_error(1, code, "is not available")
    s.is_quiet()
    assert play.used() in ({"pay": (0, 0)}, {})
    assert play.desk._open == {}
    play.recorded("hold", {"kind": "denied", "stage": "acl", "approval": "approved", "approver": "ann"})


def test_a_limit_that_came_while_they_waited_holds_for_all_of_them(make_play: MakePlay) -> None:
    without = CONFIG.replace(", rate_limits: {pay: 1/day}", "")
    play = make_play(without)
    s = play.session().handshake()
    for n in range(3):
        s.client.says(call(n, "pay", n=n))
    play.reload(CONFIG)
    for ticket in play.desk.pending():
        play.desk.decide(ticket.id, True, "ann")
    heard = s.server.hears("tools/call", arguments={"n": 0})
    for n in (1, 2):
        s.client.hears_error(n, -32002, "rate limit exceeded")
    s.server.answers(heard)
    s.client.hears_result(0)
    assert play.used() == {"pay": (1, 0)}


def test_a_lane_that_came_while_they_waited_orders_all_of_them(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    for n in range(2):
        s.client.says(call(n, "del_x", n=n))
    play.reload(CONFIG + "queue: {files: {enabled: true, delay_min: 9s, delay_max: 9s}}\n")
    for ticket in play.desk.pending():
        play.desk.decide(ticket.id, True, "ann")
    heard = s.server.hears("tools/call", arguments={"n": 0})
    s.server.hears_nothing()
    s.server.answers(heard)
    s.client.hears_result(0)
    play.advance(10)
    s.server.answers(s.server.hears("tools/call", arguments={"n": 1}))
    s.client.hears_result(1)


def test_an_ask_that_was_dropped_from_the_rules_is_still_waited_for(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play)
    play.reload(CONFIG.replace("approval_required: [pay, 'del_*'], ", ""))
    s.server.hears_nothing()
    agree(play)
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(1)


# --- what can fail ----------------------------------------------------------------------------------------------------


def test_a_ticket_that_cannot_be_written_is_no_ticket(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    play.store.failing = True
    s.client.says(call(1, "pay"))
    s.client.hears_error(1, -32603, "the approval could not be recorded; not executed", reason="audit_unavailable")
    assert play.used() == {"pay": (0, 0)}
    play.errors.clear()


def test_an_approval_that_cannot_be_used_up_on_disk_runs_nothing_and_stays(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play)
    s.client.says(cancel(1))
    agree(play)
    play.store.failing = True
    s.client.says(call(2, "pay"))
    s.client.hears_error(2, -32603, "the approval could not be recorded; not executed")
    s.server.hears_nothing()
    play.store.failing = False
    s.client.says(call(3, "pay"))
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(3)
    assert play.used() == {"pay": (1, 0)}
    play.errors.clear()


def test_a_hold_that_cannot_be_recorded_asks_nobody(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    play.log.unavailable = "disk full"
    s.client.says(call(1, "pay"))
    s.client.hears_error(1, -32603, "disk full", reason="audit_unavailable", retryable=True)
    assert play.desk.pending() == []
    assert play.used() == {"pay": (0, 0)}
    play.restart_desk()
    assert play.desk.pending() == []


def test_an_approved_call_whose_intent_cannot_be_written_does_not_run_and_asks_again(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play)
    play.log.unavailable = "disk full"
    agree(play)
    s.client.hears_error(1, -32603, "disk full", reason="audit_unavailable")
    assert play.used() == {"pay": (0, 0)}
    play.log.unavailable = None
    s.client.says(call(2, "pay"))
    s.server.hears_nothing()
    s.client.says(cancel(2))


def test_an_approved_call_that_is_cancelled_in_the_queue_runs_on_the_retry_with_the_same_approval(
    make_play: MakePlay,
) -> None:
    play = make_play(CONFIG + "queue: {files: {enabled: true, delay_min: 9s, delay_max: 9s}}\n")
    s = play.session().handshake()
    s.calls(call(0, "look"))
    s.client.says(call(1, "pay"))
    agree(play)
    s.client.says(cancel(1))
    play.advance(60)
    s.is_quiet()
    assert play.ticket().state == "approved"
    assert play.used() == {"pay": (0, 1)}
    assert [row.state for row in play.lanes.rows()] == ["held"], "it holds a place, and none in the order"
    s.client.says(call(2, "pay"))
    s.server.answers(s.server.hears("tools/call", name="pay"))
    s.client.hears_result(2)
    assert play.used() == {"pay": (1, 0)}


def test_a_slot_is_reserved_before_a_person_is_asked_and_not_its_place_in_the_order(make_play: MakePlay) -> None:
    play = make_play(CONFIG + "queue: {files: {enabled: true, delay_min: 0s, delay_max: 0s, max_pending: 2}}\n")
    s = held(play)
    s.calls(call(2, "look"))  # it goes past the one that waits for a person
    s.client.says(call(3, "look"), call(4, "look"), call(5, "look"))  # one runs, one queues, one is too many
    s.client.hears_error(5, -32003, "the queue of `files` is full (2/2 waiting)")
    for id in (3, 4):
        s.server.answers(s.server.hears("tools/call", name="look"))
        s.client.hears_result(id)
    agree(play)
    s.server.answers(s.server.hears("tools/call", name="pay"))
    s.client.hears_result(1)


# --- two people -------------------------------------------------------------------------------------------------------

TWO = CONFIG.replace("approval_required: [pay, 'del_*']", "second_approver: [pay], approval_required: ['del_*']")


def test_a_call_that_two_must_agree_to_waits_for_the_second(make_play: MakePlay) -> None:
    play = make_play(TWO)
    s = held(play, eur=5)
    id = play.ticket().id
    play.desk.decide(id, True, "ann", via="cli", voter="user:ann")
    s.is_quiet()
    with pytest.raises(Voted):
        play.desk.decide(id, True, "ann", via="slack", voter="user:ann")
    s.is_quiet()
    with pytest.raises(Nameless):
        play.desk.decide(id, True, "link", via="link")
    s.is_quiet()
    play.desk.decide(id, True, "bob", via="slack", voter="user:bob")
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(1)
    play.recorded(
        {"kind": "hold", "policy": "agents.bot.backends.files.second_approver"},
        {"kind": "intent", "approval": "approved", "approver": "ann and bob"},
        "outcome",
    )


def test_one_no_refuses_what_two_must_agree_to(make_play: MakePlay) -> None:
    play = make_play(TWO)
    s = held(play)
    play.desk.decide(play.ticket().id, True, "ann", via="cli", voter="user:ann")
    play.desk.decide(play.ticket().id, False, "bob", via="cli", voter="user:bob")
    s.client.hears_error(1, -32004, "a person rejected this call")


def test_a_rule_that_asks_for_a_second_person_since_is_a_ticket_of_its_own(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play)
    s.client.says(cancel(1))
    agree(play)
    play.reload(TWO)
    s.client.says(call(2, "pay"))
    s.client.hears_error(2, -32002, "rate limit exceeded")  # the first ticket holds the only call of the day
    s.is_quiet()


def test_one_persons_word_is_not_enough_where_the_rules_want_two_by_now(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = held(play)
    play.reload(TWO)
    agree(play)
    s.client.hears_error(1, -32004, "want another person's word", reason="rules_changed", retryable=True)
    s.client.says(call(2, "pay"))
    assert play.ticket().people == 2
    s.client.says(cancel(2))


def test_who_two_agreed_to_needs_no_third_where_one_is_enough_by_now(make_play: MakePlay) -> None:
    play = make_play(TWO)
    s = held(play)
    play.reload(CONFIG)
    for name in ("ann", "bob"):
        play.desk.decide(play.ticket().id, True, name, voter=f"user:{name}")
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(1)
