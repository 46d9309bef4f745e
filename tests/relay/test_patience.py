"""A client that gives up is told before it does, comes back with the same call, and finds its ticket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hubbook import HubSession
from playbook import Play, Session, call, cancel, modern, request, text

from aegis_daemon.wire.methods import META_CLIENT

MakePlay = Callable[..., Play]

CONFIG = """
approval: {timeout: 300s}
backends: {files: {}}
agents:
  bot: {backends: {files: {allowed: true, approval_required: [pay], rate_limits: {pay: 1/day}}}}
"""
LANE = CONFIG + "queue: {files: {enabled: true, delay_min: 100s, delay_max: 100s}}\n"
TOLD = (
    "It waits for a person: tell your user. Repeat the identical call after approval, or every 15 s to hear whether it is "
    "decided; do not work around it."
)


def impatient(make_play: MakePlay, config: str = CONFIG) -> Play:
    play = make_play(config)
    play.be_impatient()
    return play


def held(play: Play, client: str | None = None, id: Any = 1) -> Session:
    s = play.session().handshake(client=client)
    s.client.says(call(id, "pay", eur=5))
    return s


def hears_pending(play: Play, s: Session, id: Any) -> dict[str, Any]:
    """The client's next frame is our `PENDING`."""
    found = s.client.hears_result(id, {"isError": True})
    told = found["_meta"]["aegis/pending"]
    assert found["content"][0]["text"].startswith(f"PENDING {told['ticket']}: ")
    assert told["by"] == "aegis"
    return told  # type: ignore[no-any-return]


def by_name(frame: dict[str, Any], name: str) -> dict[str, Any]:
    """The same modern request of a client that says its name."""
    made = modern(frame)
    made["params"]["_meta"][META_CLIENT] = {"name": name, "version": "1"}
    return made


# --- the answer -------------------------------------------------------------------------------------------------------


def test_a_client_is_told_that_it_is_pending_before_it_gives_up_and_its_retry_runs_once(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = held(play)
    play.advance(44)
    s.is_quiet()
    play.advance(2)
    found = s.client.hears_result(1, {"isError": True})
    ticket = play.ticket()
    assert found["content"] == [{"type": "text", "text": f"PENDING {ticket.id}: not executed. {TOLD}"}]
    assert found["_meta"]["aegis/pending"] == {
        "by": "aegis",
        "ticket": ticket.id,
        "call_id": ticket.call_id,
        "expires_at": "2023-11-14T22:35:00.000Z",
        "retry_after_ms": 15000,
    }
    assert not ticket.attended
    assert play.used() == {"pay": (0, 1)}
    play.recorded("hold", {"kind": "denied", "stage": "withdrawn", "approval": "pending", "ticket": ticket.id})
    play.desk.decide(ticket.id, True, "ann")
    s.is_quiet()
    s.client.says(call(2, "pay", eur=5))
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    assert s.client.hears_result(2, text("paid")).get("_meta") is None
    assert play.used() == {"pay": (1, 0)}


def test_a_client_that_comes_back_too_early_waits_again_for_the_same_ticket(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = held(play)
    for id in range(2, 5):
        play.advance(46)
        assert hears_pending(play, s, id - 1)["ticket"] == play.ticket().id
        s.client.says(call(id, "pay", eur=5))
    play.desk.decide(play.ticket().id, True, "ann")
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(4)


def test_a_decision_just_in_time_is_no_pending(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = held(play)
    play.advance(44)
    play.desk.decide(play.ticket().id, True, "ann")
    heard = s.server.hears("tools/call")
    play.advance(60)  # the server takes its time, which is another one
    s.server.answers(heard)
    s.client.hears_result(1)


def test_the_end_of_the_ticket_comes_before_the_end_of_patience(make_play: MakePlay) -> None:
    play = impatient(make_play, CONFIG.replace("300s", "45s"))
    s = held(play)
    play.advance(46)
    s.client.hears_error(1, -32004, "nobody approved this call in time")
    assert play.desk.pending() == []


def test_a_hold_of_nothing_answers_at_once(make_play: MakePlay) -> None:
    play = impatient(make_play, CONFIG.replace("timeout: 300s", "timeout: 300s, hold: 0s"))
    s = held(play)
    hears_pending(play, s, 1)
    assert [event for event, _ in play.events] == ["opened", "waiter_gone"]
    play.desk.decide(play.ticket().id, True, "ann")
    s.client.says(call(2, "pay", eur=5))
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(2)


def test_one_who_waits_for_anothers_execution_is_told_that_it_is_under_way(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = held(play)
    play.desk.decide(play.ticket().id, True, "ann")
    heard = s.server.hears("tools/call")
    late = held(play)
    play.advance(46)
    found = late.client.hears_result(1, {"isError": True})
    assert "approved, and under way" in found["content"][0]["text"]
    assert "not executed" not in found["content"][0]["text"]
    s.server.answers(heard, text("paid"))
    s.client.hears_result(1)


def test_progress_is_told_while_it_is_held_and_stops_with_the_answer(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = play.session().handshake()
    s.client.says(call(1, "pay", token="t"))
    id = play.ticket().id
    play.advance(46)
    for _ in range(3):
        s.client.hears("notifications/progress", progressToken="t", message=f"waiting for approval {id}")
    hears_pending(play, s, 1)
    play.advance(60)
    s.client.hears_nothing()


def test_the_budget_is_for_the_person_and_not_for_the_queue(make_play: MakePlay) -> None:
    play = impatient(make_play, LANE)
    s = play.session().handshake()
    s.calls(call(0, "look"))
    s.client.says(call(1, "pay"))
    play.advance(40)
    play.desk.decide(play.ticket().id, True, "ann")
    play.advance(61)
    s.server.answers(s.server.hears("tools/call", name="pay"))
    s.client.hears_result(1)


def test_the_time_of_a_person_is_none_of_the_backends(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("{files: {}}", "{files: {timeout: 10s}}"))
    s = held(play)
    play.advance(290)
    play.desk.decide(play.ticket().id, True, "ann")
    heard = s.server.hears("tools/call")
    play.advance(9)
    s.server.answers(heard)
    s.client.hears_result(1)


def test_a_modern_client_hears_a_whole_result(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = play.session()
    s.client.says(modern(call(1, "pay")))
    play.advance(46)
    found = s.client.hears_result(1, {"resultType": "complete", "isError": True})
    assert "aegis/pending" in found["_meta"]


def test_a_call_that_is_to_become_a_task_hears_an_error_since_a_result_would_be_none(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = play.session().handshake()
    frame = call(1, "pay")
    frame["params"]["task"] = {"ttl": 60_000}
    s.client.says(frame)
    play.advance(46)
    s.client.hears_error(1, -32004, "PENDING", reason="pending", retryable=True, retry_after_ms=15000)


# --- whose patience ---------------------------------------------------------------------------------------------------


def budget(play: Play, s: Session, id: Any = 1) -> float:
    """How long the call has been held when its client hears of it."""
    before = play.clock.now
    while not s.client.inbox:
        play.advance(0.5)
        assert play.clock.now - before < 700
    hears_pending(play, s, id)
    return play.clock.now - before


@pytest.mark.parametrize(
    ("client", "seconds"),
    [(None, 45), ("claude-code", 600), ("Codex-MCP-Client", 50), ("mcporter", 25), ("Some App", 45), ("claude-ai", 45)],
)
def test_the_handshake_says_who_it_is(make_play: MakePlay, client: str | None, seconds: float) -> None:
    play = impatient(make_play, CONFIG.replace("300s", "900s"))
    assert budget(play, held(play, client)) == seconds
    assert play.ticket().client == (client or "")


def test_a_session_that_an_earlier_daemon_began_is_still_known(make_play: MakePlay) -> None:
    play = impatient(make_play)
    info = {"name": "mcporter", "version": "1"}
    kept = b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    kept += b'"clientInfo":{"name":"mcporter","version":"1"}}}'
    s = play.session(era=1, handshake=kept, initialized=True)
    s.server.answers(
        s.server.hears("initialize", clientInfo=info),
        {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {}},
    )
    s.server.hears("notifications/initialized")
    s.client.says(call(1, "pay"))
    assert budget(play, s) == 25


def test_a_modern_client_says_who_it_is_with_each_request(make_play: MakePlay) -> None:
    play = impatient(make_play, CONFIG.replace("300s", "900s"))
    s = play.session(shared=True)
    for id, name, seconds in ((1, "mcporter", 25), (2, "claude-code", 600)):
        s.client.says(by_name(call(id, "pay"), name))
        assert budget(play, s, id) == seconds


def test_of_those_that_share_a_legacy_session_nobody_knows_who_asks(make_play: MakePlay) -> None:
    play = impatient(make_play, CONFIG.replace("300s", "900s"))
    s = play.session(shared=True).handshake(client="claude-code")
    s.client.says(call(1, "pay"))
    assert budget(play, s) == 45


def test_a_name_of_another_kind_is_no_name(make_play: MakePlay) -> None:
    play = impatient(make_play, CONFIG.replace("1/day", "99/day"))
    for info in (5, [], {"name": 5}, {"name": None}, {"name": "x" * 10_000}, {"name": "a\u202eb"}, None):
        s = play.session()
        s.client.says(
            request(0, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=info),
            call(1, "pay", n=str(info)[:20]),
        )
        s.server.answers(s.server.hears("initialize"), {"protocolVersion": "2025-11-25", "capabilities": {}})
        s.client.hears_result(0)
        client = play.desk.pending()[-1].client
        assert len(client) <= 110
        assert client.isprintable()
        play.advance(46)
        hears_pending(play, s, 1)


@pytest.mark.parametrize(
    ("more", "seconds"),
    [
        ("hold: 100s", 100),
        ("hold: auto", 25),
        ("hold: 100s, hold_clients: {'MCP*': 5s}", 5),
        ("hold_clients: {'other*': 5s, mcporter: 7s}", 7),
    ],
)
def test_the_configuration_knows_better(make_play: MakePlay, more: str, seconds: float) -> None:
    play = impatient(make_play, CONFIG.replace("timeout: 300s", f"timeout: 300s, {more}"))
    assert budget(play, held(play, "mcporter")) == seconds


def test_what_it_says_of_an_agent_goes_before_all_else(make_play: MakePlay) -> None:
    config = CONFIG.replace("timeout: 300s", "timeout: 300s, hold: 100s, hold_clients: {mcporter: 5s}")
    play = impatient(make_play, config.replace("bot: {", "bot: {hold: 7s, "))
    assert budget(play, held(play, "mcporter")) == 7


def test_a_reload_holds_for_the_next_call(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = held(play)
    play.reload(CONFIG.replace("timeout: 300s", "timeout: 300s, hold: 3s"))
    assert budget(play, s) == 45
    s.client.says(call(2, "pay", eur=5))
    assert budget(play, s, 2) == 3


def test_several_backends_know_the_client_of_their_hub(make_play: MakePlay) -> None:
    play = impatient(make_play, CONFIG + "  two: {backends: {files: {allowed: true}}}\n")
    hub = HubSession(play, ["files"])
    hub.client.says(
        request("init", "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={"name": "mcporter"})
    )
    hub.joins("files")
    hub.client.hears_result("init")
    hub.client.says(call(1, "files__pay"))
    assert play.ticket().client == "mcporter"
    assert budget(play, hub, 1) == 25  # type: ignore[arg-type]


# --- learned ----------------------------------------------------------------------------------------------------------


def gives_up(play: Play, s: Session, id: Any, after: float) -> None:
    s.client.says(call(id, "pay", eur=5))
    play.advance(after)
    s.client.says(cancel(id))
    s.client.hears_nothing()


def test_a_client_that_gives_up_twice_at_one_age_is_answered_before_it_from_then_on(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = play.session().handshake(client="odd")
    gives_up(play, s, 1, 5.0)
    gives_up(play, s, 2, 5.3)
    s.client.says(call(3, "pay", eur=5))
    play.advance(3.9)
    s.client.hears_nothing()
    play.advance(0.2)
    hears_pending(play, s, 3)
    play.desk.decide(play.ticket().id, True, "ann")
    s.client.says(call(4, "pay", eur=5))
    s.server.answers(s.server.hears("tools/call"))
    s.client.hears_result(4)


def test_a_person_who_presses_esc_teaches_nothing(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = play.session().handshake(client="odd")
    gives_up(play, s, 1, 5.0)
    gives_up(play, s, 2, 9.0)
    gives_up(play, s, 3, 20.0)
    s.client.says(call(4, "pay", eur=5))
    assert budget(play, s, 4) == 45


def test_several_calls_that_end_at_once_are_one_lesson(make_play: MakePlay) -> None:
    play = impatient(make_play, CONFIG.replace("1/day", "9/day"))
    s = play.session().handshake(client="odd")
    s.client.says(call(1, "pay", n=1), call(2, "pay", n=2))
    play.advance(5)
    s.client.says(cancel(1), cancel(2), call(3, "pay", eur=5))
    assert budget(play, s, 3) == 45


def test_a_closed_stream_is_a_lesson_and_a_lost_one_is_none(make_play: MakePlay) -> None:
    play = impatient(make_play)
    s = play.session(shared=True)
    for forwarded, id in ((False, 1), (False, 2), (True, 3), (True, 4)):
        s.client.says(by_name(call(id, "pay"), "odd"))
        play.advance(5)
        (slot,) = [one.slot for one in s.talk.to_server.all()]
        s.client.asked.clear()
        s.talk.withdraw(slot, forwarded=forwarded)
        learned = play.shell.patience.budget(play.runtime.hold, "bot", "odd")  # type: ignore[union-attr]
        assert learned == (4.0 if id == 4 else 45.0)


def test_what_was_learned_survives_the_daemon_and_is_the_agents_own(make_play: MakePlay) -> None:
    config = CONFIG + "  other: {backends: {files: {allowed: true, approval_required: [pay]}}}\n"
    play = impatient(make_play, config)
    s = play.session().handshake(client="odd")
    gives_up(play, s, 1, 5.0)
    gives_up(play, s, 2, 5.0)
    play.be_impatient()
    s.client.says(call(3, "pay", eur=5))
    assert budget(play, s, 3) == 4
    other = play.session("other").handshake(client="odd")
    other.client.says(call(1, "pay"))
    assert budget(play, other) == 45
