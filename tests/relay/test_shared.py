"""Several senders share one session: equal ids and tokens stay apart, and whoever leaves takes only its own along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playbook import Play, call, modern, note, raw, request, text

from aegis_daemon.wire.jsonrpc import parse
from aegis_daemon.wire.methods import META_SUBSCRIPTION

MakePlay = Callable[..., Play]

ASKING = """
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true, approval_required: [pay]}}}}
"""


def slot_of(session: Any, newest: int = 1) -> int:
    """The place of the newest request that is open at the client's end."""
    return sorted(session.client.slots)[-newest]


def test_two_requests_with_one_id_get_one_answer_each(make_play: MakePlay) -> None:
    s = make_play().session(shared=True)
    s.client.says(modern(call(1, "one")), modern(call(1, "two")))
    first, second = s.server.hears("tools/call", name="one"), s.server.hears("tools/call", name="two")
    assert first["id"] != second["id"]
    s.server.answers(second, text("two"))
    s.client.hears_result(1, text("two"))
    s.server.answers(first, text("one"))
    s.client.hears_result(1, text("one"))


def test_two_progress_tokens_that_are_one_reach_their_own_requests(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session(shared=True)
    s.client.says(modern(call(1, "one", token="t")), modern(call(2, "two", token="t")))
    first, second = s.server.hears("tools/call"), s.server.hears("tools/call")
    tokens = [one["params"]["_meta"]["progressToken"] for one in (first, second)]
    assert len(set(tokens)) == 2
    told: list[int] = []
    s.client.tell = lambda frame, slot: told.append(slot)  # type: ignore[method-assign]
    slots = sorted(s.client.slots)
    s.server.says(
        note("progress", progressToken=tokens[1], progress=1), note("progress", progressToken=tokens[0], progress=1)
    )
    assert told == [slots[1], slots[0]]
    s.server.answers(first, text("one"))
    s.server.answers(second, text("two"))
    assert {s.client.next()["id"] for _ in range(2)} == {1, 2}


def test_progress_goes_out_under_the_senders_own_token(make_play: MakePlay) -> None:
    s = make_play().session(shared=True)
    s.client.says(modern(call(1, "one", token="t")))
    heard = s.server.hears("tools/call")
    s.server.says(note("progress", progressToken=heard["params"]["_meta"]["progressToken"], progress=0.5))
    s.client.hears("notifications/progress", progressToken="t", progress=0.5)
    s.server.answers(heard, text("one"))
    s.client.hears_result(1)


def test_a_sender_that_leaves_cancels_its_own_call_at_the_server(make_play: MakePlay) -> None:
    s = make_play().session(shared=True)
    s.client.says(modern(call(1, "one")), modern(call(1, "two")))
    first, second = s.server.hears("tools/call", name="one"), s.server.hears("tools/call", name="two")
    s.client.asked.clear()
    s.talk.withdraw(slot_of(s))
    s.server.hears("notifications/cancelled", requestId=second["id"])
    s.server.answers(second, text("too late"))
    s.client.hears_nothing()
    s.client.asked[("int", 1)] = 1
    s.server.answers(first, text("one"))
    s.client.hears_result(1, text("one"))


def test_a_sender_that_is_only_gone_leaves_the_server_its_work_and_gets_no_answer(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session(shared=True)
    s.client.says(modern(call(1, "one")))
    heard = s.server.hears("tools/call")
    s.client.asked.clear()
    s.talk.withdraw(slot_of(s), forwarded=False)
    s.server.hears_nothing()
    s.server.answers(heard, text("one"))
    s.client.hears_nothing()
    play.recorded("intent", "outcome")


def test_a_sender_that_leaves_before_it_was_agreed_to_leaves_a_ticket_and_nothing_runs(make_play: MakePlay) -> None:
    play = make_play(ASKING)
    s = play.session(shared=True)
    s.client.says(modern(call(1, "pay")))
    (ticket,) = play.desk.pending()
    s.client.asked.clear()
    s.talk.withdraw(slot_of(s), forwarded=False)
    play.desk.decide(ticket.id, True, "me", "")
    s.server.hears_nothing()
    assert ticket.state == "approved"
    s.client.says(modern(call(1, "pay")))
    s.server.answers(s.server.hears("tools/call"), text("paid"))
    s.client.hears_result(1, text("paid"))


def test_a_subscription_is_named_by_its_senders_own_id(make_play: MakePlay) -> None:
    s = make_play().session(shared=True)
    s.client.says(modern(request(5, "subscriptions/listen", notifications={"toolsListChanged": True})))
    heard = s.server.hears("subscriptions/listen")
    s.server.says(note("tools/list_changed", _meta={META_SUBSCRIPTION: heard["id"]}))
    s.client.hears("notifications/tools/list_changed", _meta={META_SUBSCRIPTION: 5})
    s.talk.withdraw(slot_of(s))
    s.client.asked.clear()
    s.server.hears("notifications/cancelled", requestId=heard["id"])
    s.server.answers(heard, {})


def test_what_a_server_says_belongs_to_the_request_on_whose_stream_it_came(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    told: list[tuple[str, int]] = []
    s.client.says(call(1, "one"), call(2, "two"))
    first, second = s.server.hears("tools/call", name="one"), s.server.hears("tools/call", name="two")
    slots = sorted(s.client.slots)
    s.client.tell = lambda frame, slot: told.append((parse(frame).method, slot))  # type: ignore[method-assign]
    log = raw(note("message", level="info", data="x"))
    s.talk.server_lines(s.talk.server, [log], first["id"])
    s.talk.server_lines(s.talk.server, [log], 0)
    s.talk.server_lines(s.talk.server, [log])
    s.talk.server_lines(s.talk.server, [raw(note("tools/list_changed"))])
    message = "notifications/message"
    assert told == [(message, slots[0]), (message, -1), (message, slots[1]), ("notifications/tools/list_changed", -1)]
    s.server.answers(first, text("one"))
    s.server.answers(second, text("two"))
    s.client.hears_result(1)
    s.client.hears_result(2)


def test_nobody_can_cancel_the_request_of_another_sender_by_guessing_what_it_is_called_here(
    make_play: MakePlay,
) -> None:
    s = make_play().session(shared=True).handshake()
    s.client.says(call("mine", "one"))
    heard = s.server.hears("tools/call")
    for guess in range(10):
        s.client.says(note("cancelled", requestId=f"a{guess}"))
    s.server.hears_nothing()
    s.server.answers(heard, text("ok"))
    s.client.hears_result("mine", text("ok"))
