"""All who ask for one call at once are one call: one ticket, one execution, one outcome, whoever stays or leaves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, Session, call, cancel, error, text

from aegis_daemon.approvals.desk import Decided

MakePlay = Callable[..., Play]

CONFIG = """
approval: {timeout: 300s, max_pending_per_agent: 3}
backends: {files: {}}
agents:
  bot: {backends: {files: {allowed: true, approval_required: [pay], rate_limits: {pay: 2/day}}}}
"""
LANE = CONFIG + "queue: {files: {enabled: true, delay_min: 9s, delay_max: 9s}}\n"
REPLAYED = {"aegis/replayed": True}


def several(play: Play, count: int = 3) -> list[Session]:
    """So many sessions, each with the same call open."""
    made = [play.session().handshake() for _ in range(count)]
    for s in made:
        s.client.says(call(1, "pay", eur=5))
    return made


def agree(play: Play) -> None:
    play.desk.decide(play.ticket().id, True, "ann")


def is_marked(result: Any) -> bool:
    return bool(result.get("_meta", {}).get("aegis/replayed"))


def quiet(sessions: list[Session]) -> None:
    for s in sessions:
        s.is_quiet()


# --- the same outcome -------------------------------------------------------------------------------------------------


def test_identical_calls_are_one_ticket_one_execution_and_one_outcome(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    first, second, newest = several(play)
    assert len(play.desk.pending()) == 1
    assert play.used() == {"pay": (0, 1)}, "who joins reserves nothing"
    agree(play)
    quiet([first, second])
    newest.server.answers(newest.server.hears("tools/call"), text("paid"))
    assert not is_marked(newest.client.hears_result(1, text("paid")))
    for s in (first, second):
        assert is_marked(s.client.hears_result(1, text("paid")))
    assert play.used() == {"pay": (1, 0)}
    ends = [(one.kind, getattr(one, "stage", "")) for one in play.log.records if one.kind in ("outcome", "denied")]
    assert ends[-3:] == [("outcome", ""), ("denied", "replay"), ("denied", "replay")]


def test_two_of_one_session_are_one_call_too(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = play.session().handshake()
    s.client.says(call(1, "pay"), call(2, "pay"))
    agree(play)
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    assert not is_marked(s.client.hears_result(2))
    assert is_marked(s.client.hears_result(1))
    s.server.hears_nothing()


def test_a_call_that_comes_while_it_runs_waits_for_its_outcome(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    (s,) = several(play, 1)
    agree(play)
    heard = s.server.hears("tools/call")
    (late,) = several(play, 1)
    quiet([late])
    assert play.desk.pending() == []
    s.server.answers(heard, text("paid"))
    s.client.hears_result(1)
    assert is_marked(late.client.hears_result(1, text("paid")))
    late.client.says(call(2, "pay", eur=5))
    quiet([late])
    assert play.ticket().state == "pending", "what was delivered is not given again"
    late.client.says(cancel(2))


def test_a_call_that_comes_while_it_queues_waits_for_its_outcome(make_play: MakePlay) -> None:
    play = make_play(LANE)
    (s,) = several(play, 1)
    s.calls(call(9, "look"))
    agree(play)
    (late,) = several(play, 1)
    assert [row.state for row in play.lanes.rows()] == ["delay"], "who joins takes no place"
    play.advance(10)
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    s.client.hears_result(1)
    assert is_marked(late.client.hears_result(1))


@pytest.mark.parametrize("failed", ["error", "tool error"])
def test_a_failure_is_an_outcome_like_any_other(make_play: MakePlay, failed: str) -> None:
    play = make_play(CONFIG)
    first, newest = several(play, 2)
    agree(play)
    heard = newest.server.hears("tools/call")
    if failed == "error":
        newest.server.says(error(heard["id"], -32000, "no funds", data={"n": 1}))
        for s in (newest, first):
            assert s.client.hears_error(1, -32000, "no funds", n=1)
    else:
        newest.server.answers(heard, text("no funds", isError=True))
        assert not is_marked(newest.client.hears_result(1, {"isError": True}))
        assert is_marked(first.client.hears_result(1, {"isError": True}))
    assert play.used() == {"pay": (0, 0)}
    quiet([first, newest])


def test_all_hear_of_a_rejection_and_of_the_end_of_their_time(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    sessions = several(play)
    play.desk.decide(play.ticket().id, False, "ann", "no")
    for s in sessions:
        s.client.hears_error(1, -32004, "a person rejected this call", reason="rejected")
    for s in sessions:
        s.client.says(call(2, "pay", eur=5))
    play.advance(301)
    for s in sessions:
        s.client.hears_error(2, -32004, "nobody approved", reason="approval_timeout")
    assert play.used() == {"pay": (0, 0)}


# --- who leaves only leaves -------------------------------------------------------------------------------------------


def test_the_newest_who_is_still_there_runs_it(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    first, second, newest = several(play)
    newest.client.says(cancel(1))
    first.client.says(cancel(1))
    assert play.ticket().attended
    agree(play)
    quiet([first, newest])
    second.server.answers(second.server.hears("tools/call"), text("paid"))
    second.client.hears_result(1)


def test_one_who_waits_with_others_and_leaves_changes_nothing(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    first, newest = several(play, 2)
    agree(play)
    heard = newest.server.hears("tools/call")
    first.client.says(cancel(1))
    newest.server.hears_nothing()
    assert play.desk._open[next(iter(play.desk._open))].state == "consumed", "nobody may run it again"
    newest.server.answers(heard)
    newest.client.hears_result(1)
    quiet([first, newest])


def test_a_runner_that_leaves_the_queue_hands_the_call_to_the_next(make_play: MakePlay) -> None:
    play = make_play(LANE)
    first, newest = several(play, 2)
    first.calls(call(9, "look"))
    agree(play)
    newest.client.says(cancel(1))
    assert [row.state for row in play.lanes.rows()] == ["delay"]
    play.advance(10)
    quiet([newest])
    first.server.answers(first.server.hears("tools/call"), text("paid"))
    assert not is_marked(first.client.hears_result(1))
    assert play.used() == {"pay": (1, 0)}
    assert [event for event, _ in play.events].count("consumed") == 1


def test_a_runner_that_leaves_while_its_intent_is_written_hands_the_call_to_the_next(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    first, newest = several(play, 2)
    play.log.durable = False
    agree(play)
    newest.client.says(cancel(1))
    quiet([first, newest])
    play.log.sync()
    newest.server.hears_nothing()
    play.log.sync()  # the next one's intent
    first.server.answers(first.server.hears("tools/call"), text("paid"))
    assert not is_marked(first.client.hears_result(1))
    assert play.used() == {"pay": (1, 0)}


def test_one_that_leaves_while_its_intent_is_written_leaves_its_approval(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    (s,) = several(play, 1)
    play.log.durable = False
    agree(play)
    s.client.says(cancel(1))
    play.log.sync()
    s.is_quiet()
    assert play.ticket().state == "approved"
    play.restart_desk()
    assert play.ticket().state == "approved", "on disk too"
    play.log.durable = True
    s.client.says(call(2, "pay", eur=5))
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(2)


def test_an_approval_that_cannot_be_given_back_is_spent_and_nobody_runs(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    first, newest = several(play, 2)
    play.log.durable = False
    agree(play)
    newest.client.says(cancel(1))
    play.store.failing = True
    play.log.sync()
    first.client.hears_error(1, -32603, "the approval could not be recorded; not executed")
    quiet([first, newest])
    assert play.used() == {"pay": (0, 0)}
    play.errors.clear()


def test_a_runner_that_leaves_while_others_wait_is_not_cancelled_at_the_server(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    first, newest = several(play, 2)
    agree(play)
    heard = newest.server.hears("tools/call")
    newest.client.says(cancel(1))
    newest.server.hears_nothing()
    play.advance(60)
    newest.server.answers(heard, text("paid"))
    newest.client.hears_nothing()
    assert is_marked(first.client.hears_result(1, text("paid")))
    first.client.says(call(2, "pay", eur=5))
    quiet([first])
    assert play.ticket().state == "pending", "one of them had it, so it is delivered"
    first.client.says(cancel(2))


def test_an_outcome_that_nobody_waits_for_is_kept_for_one_who_comes(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    first, newest = several(play, 2)
    agree(play)
    heard = newest.server.hears("tools/call")
    newest.client.says(cancel(1))
    first.client.says(cancel(1))
    newest.server.answers(heard, text("paid"))
    quiet([first, newest])
    first.client.says(call(2, "pay", eur=5))
    assert is_marked(first.client.hears_result(2, text("paid")))


@pytest.mark.parametrize("how", ["exits", "is too slow"])
def test_a_runner_that_gets_no_answer_leaves_nobody_waiting_and_nothing_runs_again(
    make_play: MakePlay, how: str
) -> None:
    play = make_play(CONFIG)
    first, newest = several(play, 2)
    agree(play)
    newest.server.hears("tools/call")
    if how == "exits":
        newest.server.exits(1)
        newest.client.hears_error(1, -32603, "outcome unknown")
    else:
        play.advance(121)
        newest.client.hears_error(1, -32603, "outcome unknown", reason="timeout")
        newest.server.hears("notifications/cancelled")
    first.client.hears_error(1, -32603, "outcome unknown", by="aegis", retryable=False)
    quiet([first])
    assert play.used() == {"pay": (1, 0)}
    first.client.says(call(2, "pay", eur=5))
    quiet([first])
    assert play.ticket().state == "pending"
    first.client.says(cancel(2))


def test_a_runner_whose_session_dies_in_flight_leaves_the_others_its_outcome(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    first, newest = several(play, 2)
    agree(play)
    heard = newest.server.hears("tools/call")
    newest.client.dies()
    newest.server.answers(heard, text("paid"))
    newest.server.exits()
    assert is_marked(first.client.hears_result(1, text("paid")))


def test_a_runner_whose_server_is_gone_before_it_was_sent_says_so_to_all(make_play: MakePlay) -> None:
    play = make_play(LANE)
    first, newest = several(play, 2)
    first.calls(call(9, "look"))
    agree(play)
    newest.server.exits(1)  # it waits for its turn
    newest.client.hears_error(1, -32603, "not executed")
    play.advance(10)
    first.server.answers(first.server.hears("tools/call"))
    first.client.hears_result(1)


# --- the rules change, or a disk is full ------------------------------------------------------------------------------


def test_todays_rules_refuse_all_who_wait(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    sessions = several(play)
    play.reload(CONFIG.replace("allowed: true", "allowed: true, tool_denylist: [pay]"))
    agree(play)
    for s in sessions:
        s.client.hears_error(1, -32001, "is not available")
    assert play.desk._open == {}
    quiet(sessions)


def test_an_intent_that_cannot_be_written_is_told_to_all(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    sessions = several(play)
    play.log.unavailable = "disk full"
    agree(play)
    for s in sessions:
        s.client.hears_error(1, -32603, "nothing was executed", reason="audit_unavailable")
    assert play.used() == {"pay": (0, 0)}


def test_an_approval_that_cannot_be_used_is_tried_by_each_and_stays(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("}}}}", "}}}}\nserver: {max_in_flight_agent: 1024}", 1))
    s = play.session().handshake()
    s.client.says(*(call(n, "pay") for n in range(200)))
    take, play.store.take = play.store.take, lambda ticket: False  # type: ignore[method-assign]
    agree(play)
    for n in reversed(range(200)):
        s.client.hears_error(n, -32603, "the approval could not be recorded")
    assert play.ticket().state == "approved"
    play.store.take = take  # type: ignore[method-assign]
    s.client.says(call(999, "pay"))
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(999)


def test_who_joins_a_ticket_that_an_earlier_daemon_left_holds_what_it_lacks_for_it(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    (s,) = several(play, 1)
    s.client.says(cancel(1))
    play.restart_desk()
    ticket = play.ticket()
    play.desk.free(ticket)  # there was no room for it
    s.client.says(call(2, "pay", eur=5))
    assert play.used() == {"pay": (0, 1)}
    s.client.says(cancel(2))
    assert ticket.lease is not None
    agree(play)
    s.client.says(call(3, "pay", eur=5))
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(3)
    assert play.used() == {"pay": (1, 0)}


def test_a_daemon_that_ends_with_several_waiting_forgets_nobodys_ticket(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    sessions = several(play)
    for s in sessions:
        s.talk.stop()
        s.client.hears_error(1, -32603, "the daemon stops")
        s.client.bye()
        s.talk.shim_gone()
        s.server.exits()
    play.restart_desk()
    agree(play)
    (again,) = several(play, 1)
    again.server.answers(again.server.hears("tools/call"))
    again.client.hears_result(1)


# --- faults of ours ---------------------------------------------------------------------------------------------------


def breaks_once(thing: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next use of this method fails."""
    kind, proper = type(thing), getattr(type(thing), name)

    def fails(self: Any, *args: Any) -> Any:
        if self is not thing:
            return proper(self, *args)
        monkeypatch.setattr(kind, name, proper)
        raise RuntimeError("a fault")

    monkeypatch.setattr(kind, name, fails)


@pytest.mark.parametrize("name", ["answer", "suspend", "heard"])
def test_a_fault_after_the_call_was_sent_leaves_nobody_waiting(
    make_play: MakePlay, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    play = make_play(LANE)
    first, newest = several(play, 2)
    agree(play)
    heard = newest.server.hears("tools/call")
    breaks_once(newest.talk.to_server_side, name, monkeypatch)
    if name == "heard":
        monkeypatch.setattr("aegis_daemon.relay.carry.HEARD", {"tools/call"})
    asks = {"resultType": "input_required", "inputRequests": {}, "requestState": "s"}
    newest.server.answers(heard, asks if name == "suspend" else text("paid"))
    for s in (newest, first):
        s.client.hears_error(1, -32603, "a fault in Aegis after the call was forwarded; outcome unknown")
    assert play.desk._open == {}
    assert play.used() == {"pay": (1, 0)}
    assert [row.state for row in play.lanes.rows()] == []
    play.errors.clear()


def test_a_fault_of_one_who_waits_is_that_ones_alone(make_play: MakePlay, monkeypatch: pytest.MonkeyPatch) -> None:
    play = make_play(CONFIG)
    first, newest = several(play, 2)
    odd = play.session().handshake()
    for _ in range(2):  # while nobody has decided, and while it runs
        breaks_once(odd.talk.to_server_side, "heartbeat", monkeypatch)
        odd.client.says(call(1, "pay", eur=5))
        odd.client.hears_error(1, -32603, "a fault in Aegis; nothing was executed")
        if play.desk.pending():
            agree(play)
            heard = newest.server.hears("tools/call")
    newest.server.answers(heard, text("paid"))
    newest.client.hears_result(1, text("paid"))
    assert is_marked(first.client.hears_result(1, text("paid")))
    play.errors.clear()


def test_a_fault_while_one_withdraws_leaves_nobody_waiting(
    make_play: MakePlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = make_play(CONFIG)
    first, newest = several(play, 2)
    play.log.durable = False
    agree(play)
    newest.client.says(cancel(1))
    breaks_once(play.desk, "unused", monkeypatch)
    play.log.sync()
    first.client.hears_error(1, -32603, "a fault in Aegis; nothing was executed")
    assert play.desk._open == {}
    assert play.used() == {"pay": (0, 0)}
    play.scribe.calls.pop()  # how it ended is not on record
    play.errors.clear()


# --- races ------------------------------------------------------------------------------------------------------------


def test_of_a_thousand_races_between_yes_and_no_each_has_one_winner(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace(", rate_limits: {pay: 2/day}", ""))
    s = play.session().handshake()
    dice = random.Random(7)
    for n in range(1000):
        s.client.says(call(n, "pay", n=n))
        id = play.ticket().id
        words = [True, False, True, False]
        dice.shuffle(words)
        won = []
        for number, word in enumerate(words):
            try:
                play.desk.decide(id, word, f"p{number}", via="cli")
                won.append(word)
            except Decided:
                pass
        assert won == words[:1]
        if won[0]:
            s.server.answers(s.server.hears("tools/call", arguments={"n": n}))
            s.client.hears_result(n)
        else:
            s.client.hears_error(n, -32004, "rejected")
    s.is_quiet()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_they_do_in_whatever_order_it_runs_once_at_most(make_play: MakePlay, seed: int) -> None:
    """Everybody comes, leaves and comes again while a person decides and a server answers, or ends."""
    play = make_play(LANE if seed % 2 else CONFIG)
    dice = random.Random(seed)
    sessions = [play.session().handshake() for _ in range(3)]
    ids = dict.fromkeys(range(3), 0)
    open_ids: dict[int, set[int]] = {n: set() for n in range(3)}
    heard: list[tuple[Session, dict[str, Any]]] = []
    runs = 0
    approvals = 0
    for _ in range(60):
        n = dice.randrange(3)
        s = sessions[n]
        what = dice.choice(["call", "call", "cancel", "decide", "answer", "time"])
        if what == "call":
            ids[n] += 1
            open_ids[n].add(ids[n])
            s.client.says(call(ids[n], "pay"))
        elif what == "cancel" and open_ids[n]:
            s.client.says(cancel(open_ids[n].pop()))
        elif what == "decide":
            waiting = [one for one in play.desk.pending() if one.state == "pending"]
            if waiting:
                yes = dice.random() < 0.8
                approvals += yes
                play.desk.decide(waiting[0].id, yes, "ann")
        elif what == "answer" and heard:
            at, frame = heard.pop()
            at.server.answers(frame, text("paid"))
        else:
            play.advance(dice.choice([1, 5, 10]))
        for m, each in enumerate(sessions):
            while each.server.inbox:
                frame = each.server.next()
                if frame["method"] == "tools/call":
                    runs += 1
                    heard.append((each, frame))
            while each.client.inbox:
                frame = each.client.next()
                open_ids[m].discard(frame["id"])
        assert runs <= approvals
    for at, frame in heard:
        at.server.answers(frame, text("paid"))
    for each in sessions:
        each.client.inbox.clear()
        each.server.inbox.clear()
