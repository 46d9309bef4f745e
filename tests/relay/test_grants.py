"""A remembered approval, a pause and extra quota where calls are judged: nothing outside them runs, nothing runs twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, Session, call, cancel, text

from aegis_daemon.approvals.grants import Grant, Grants
from aegis_daemon.approvals.pauses import EVERYTHING, Pause, Pauses

MakePlay = Callable[..., Play]

CONFIG = """
approval: {timeout: 300s}
backends: {files: {}}
agents:
  bot: {backends: {files: {allowed: true, approval_required: [pay], rate_limits: {pay: 3/day}}}}
  other: {backends: {files: {allowed: true, approval_required: [pay]}}}
"""
LANE = CONFIG + "queue: {files: {enabled: true, delay_min: 0s, delay_max: 0s}}\n"


class Given:
    """A play in which people remember their approvals."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.grants = play.shell.grants = Grants(
            play.store.db, now=play.clock.monotonic, wall=play.clock.wall, boot="boot", longest=3600.0
        )
        self.pauses = Pauses(play.store.db)

    def give(self, **options: Any) -> Grant:
        """For the ticket that waits, which is approved."""
        ticket = self.play.ticket()
        draft = self.grants.draft(ticket, "default", **{"by": "ann", "seconds": 900.0, **options})
        self.play.desk.decide(ticket.id, True, "ann")
        self.grants.keep(draft)
        return draft


@pytest.fixture
def given(make_play: MakePlay) -> Given:
    return Given(make_play(CONFIG))


def pays(s: Session, id: Any, **arguments: Any) -> None:
    """The server does it, and the client hears so."""
    s.server.answers(s.server.hears("tools/call", arguments=arguments), text("paid"))
    s.client.hears_result(id, text("paid"))


def test_a_granted_call_runs_at_once_and_the_record_names_who_gave_it(given: Given) -> None:
    s = given.play.session().handshake()
    s.client.says(call(1, "pay", eur=5, to="x"))
    grant = given.give(free=["eur"])
    pays(s, 1, eur=5, to="x")
    given.play.recorded("hold", {"kind": "intent", "approval": "approved"}, "outcome")
    s.client.says(call(2, "pay", eur=7, to="x"))
    pays(s, 2, eur=7, to="x")
    given.play.recorded(
        {"kind": "intent", "approval": "granted", "approver": "ann", "ticket": grant.id},
        {"kind": "outcome", "status": "success"},
    )
    assert given.play.used() == {"pay": (2, 0)}
    s.client.says(call(3, "pay", eur=7, to="y"))
    s.server.hears_nothing()
    assert len(given.play.desk.pending()) == 1
    s.client.says(cancel(3))


def test_a_grant_is_no_leave_to_go_over_a_limit_and_loses_no_use_by_it(given: Given) -> None:
    s = given.play.session().handshake()
    s.client.says(call(1, "pay", eur=1))
    given.give(any_arguments=True)
    pays(s, 1, eur=1)
    for at in (2, 3):
        s.client.says(call(at, "pay", eur=at))
        pays(s, at, eur=at)
    s.client.says(call(4, "pay", eur=4))
    s.client.hears_error(4, -32002, "rate limit exceeded", reason="rate_limited")
    assert [row.uses_left for row in given.grants.rows()] == [98]


def test_an_answer_that_nobody_received_is_given_again_and_costs_no_use(given: Given) -> None:
    s = given.play.session().handshake()
    s.client.says(call(1, "pay", eur=1))
    given.give()
    sent = s.server.hears("tools/call")
    s.client.says(cancel(1))
    s.server.hears("notifications/cancelled")
    s.server.answers(sent, text("paid"))
    s.client.says(call(2, "pay", eur=1))
    s.server.hears_nothing()
    s.client.hears_result(2)
    assert [row.uses_left for row in given.grants.rows()] == [100]
    s.client.says(call(3, "pay", eur=1))  # a new call, and the grant's
    pays(s, 3, eur=1)
    assert [row.uses_left for row in given.grants.rows()] == [99]


def test_what_is_approved_and_not_run_goes_before_the_grant_with_what_it_holds(given: Given) -> None:
    s = given.play.session().handshake()
    s.client.says(call(1, "pay", eur=1), cancel(1))
    given.give()
    assert given.play.used() == {"pay": (0, 1)}
    s.client.says(call(2, "pay", eur=1))
    pays(s, 2, eur=1)
    assert given.play.used() == {"pay": (1, 0)}
    assert [row.uses_left for row in given.grants.rows()] == [100]
    assert given.play.desk.pending() == []


def test_another_agent_has_nothing_of_it(given: Given) -> None:
    s = given.play.session().handshake()
    s.client.says(call(1, "pay", eur=1))
    given.give(any_arguments=True)
    pays(s, 1, eur=1)
    other = given.play.session("other").handshake()
    other.client.says(call(1, "pay", eur=1))
    other.server.hears_nothing()
    other.client.says(cancel(1))


def test_todays_rules_stand_above_a_grant(given: Given) -> None:
    s = given.play.session().handshake()
    s.client.says(call(1, "pay", eur=1))
    given.give()
    pays(s, 1, eur=1)
    given.play.reload(CONFIG.replace("approval_required: [pay], rate_limits", "tool_denylist: [pay], rate_limits"))
    s.client.says(call(2, "pay", eur=1))
    s.client.hears_error(2, -32001, stage="acl")
    s.server.hears_nothing()


@pytest.mark.parametrize("ends", ["revoked", "in time", "not"])
def test_a_grant_that_ends_while_a_call_stands_in_line_lets_it_go_no_more(make_play: MakePlay, ends: str) -> None:
    given = Given(make_play(LANE))
    s = given.play.session().handshake()
    s.client.says(call(1, "pay", eur=1))
    given.give(free=["eur"], uses=1, seconds=60.0)
    pays(s, 1, eur=1)
    s.client.says(call(2, "look"), call(3, "pay", eur=2))
    running = s.server.hears("tools/call", name="look")
    if ends == "revoked":
        given.grants.revoke(None)
    elif ends == "in time":
        given.play.advance(61)
    s.server.answers(running, text("seen"))
    s.client.hears_result(2, text("seen"))
    if ends == "not":
        pays(s, 3, eur=2)
        return
    s.server.hears_nothing()
    given.play.desk.decide(given.play.ticket().id, True, "bea")
    pays(s, 3, eur=2)
    records = [record for record in given.play.log.records if record.kind == "intent"]
    assert [(record.approval, record.approver) for record in records if record.name == "pay"] == [
        ("approved", "ann"), ("approved", "bea"),
    ]  # fmt: skip


@pytest.mark.parametrize("revoked", [False, True])
def test_the_retry_of_an_answer_that_asked_for_input_goes_by_a_grant_only_while_it_holds(
    given: Given, revoked: bool
) -> None:
    s = given.play.session().handshake()
    s.client.says(call(1, "pay", eur=1))
    grant = given.give()
    pays(s, 1, eur=1)
    s.client.says(call(2, "pay", eur=1))
    asks = {"resultType": "input_required", "inputRequests": {}, "requestState": "s"}
    s.server.answers(s.server.hears("tools/call"), asks)
    s.client.hears_result(2)
    if revoked:
        given.grants.revoke([grant.id])
    again = call(3, "pay", eur=1)
    again["params"]["requestState"] = "s"
    s.client.says(again)
    if revoked:
        s.server.hears_nothing()
        assert given.play.ticket().state == "pending", "a person is asked"
        return
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    s.client.hears_result(3)
    intents = [record for record in given.play.log.records if record.kind == "intent" and record.name == "pay"]
    assert [(record.approval, record.ticket) for record in intents[1:]] == [("granted", grant.id)] * 2


def test_a_pause_refuses_what_comes_and_what_waited_when_its_turn_comes(make_play: MakePlay) -> None:
    given = Given(make_play(LANE))
    s = given.play.session().handshake()
    s.client.says(call(1, "look"))
    running = s.server.hears("tools/call")
    s.client.says(call(2, "look"), call(3, "pay", eur=1))
    ticket = given.play.ticket()
    given.pauses.pause(Pause(EVERYTHING, "ann", "", 0.0))
    given.play.shell.brake = given.pauses
    s.client.says(call(4, "look"))
    s.client.hears_error(4, -32001, "a person has paused all agents", stage="paused", reason="paused", retryable=False)
    s.server.answers(running, text("seen"))
    s.client.hears_error(2, -32001, stage="paused")
    s.client.hears_result(1, text("seen"))
    given.play.desk.decide(ticket.id, True, "ann")
    s.client.hears_error(3, -32001, stage="paused")
    s.server.hears_nothing()
    assert given.play.used() == {"pay": (0, 0)}
    given.play.shell.brake = None
    s.client.says(call(5, "look"))
    s.server.answers(s.server.hears("tools/call"), text("seen"))
    s.client.hears_result(5)
