from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import until
from standins.door import HOSTILE, notice
from standins.ntfy import REPLY, TOKEN, TOPIC
from standins.ntfy import Ntfy as Service

from aegis_daemon.approvals.channels.notice import Heard, Notice, Trouble
from aegis_daemon.approvals.channels.ntfy import GLANCE_BYTES, MESSAGE_BYTES, Ntfy, configured
from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.core.ports import Fault
from aegis_daemon.daemon import reach as reaching
from aegis_daemon.daemon.reach import DaemonReach

Run = Callable[[Coroutine[Any, Any, Any]], Any]
PROOF = "p-roof_0123456ab"


def told(one: Notice, reply: str | None = f"https://ntfy.example/{REPLY}") -> dict[str, Any]:
    channel = Ntfy(f"https://ntfy.example/{TOPIC}", TOKEN, reply)
    return json.loads(channel.post(one, 0.0).body)  # type: ignore[no-any-return]


def labels(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(action["action"], action["label"]) for action in message["actions"]]


class Desk:
    def __init__(self) -> None:
        self.heard: list[Heard] = []

    async def __call__(self, heard: Heard) -> str:
        self.heard.append(heard)
        return "done"


@asynccontextmanager
async def ntfy() -> AsyncIterator[tuple[Service, DaemonReach, Ntfy]]:
    pool = HttpPool(asyncio.get_running_loop())
    try:
        async with Service() as service:
            yield service, DaemonReach(pool), Ntfy(service.topic, TOKEN, service.reply)
    finally:
        pool.close()


@asynccontextmanager
async def listening(channel: Ntfy, reach: DaemonReach) -> AsyncIterator[tuple[Desk, asyncio.Task[None]]]:
    desk = Desk()
    task = asyncio.ensure_future(channel.listen(reach, desk))
    try:
        yield desk, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --- messages ---------------------------------------------------------------------------------------------------------


def test_a_topic_is_needed_and_its_name_is_the_last_part_of_its_address() -> None:
    assert configured() is None
    post = Ntfy("https://n.example/sub/topic/").post(notice(), 0.0)
    assert post.url == "https://n.example/sub/"
    assert json.loads(post.body)["topic"] == "topic"
    assert "authorization" not in post.headers
    with pytest.raises(ValueError, match="topic's name"):
        configured(topic_url="https://n.example/")


def test_a_message_is_taken_and_replaced_when_it_is_over(run: Run) -> None:
    async def go() -> None:
        async with ntfy() as (service, reach, channel):
            answer = await reach.send(channel.post(notice(), 0.0), 5.0)
            assert channel.fault(answer.status, answer.body) is None
            assert labels(service.messages[0]) == [("http", "Approve"), ("http", "Reject"), ("view", "Look")]
            end = channel.closing(notice(), channel.handle(answer.body), "approved by ann")
            assert end is not None
            answer = await reach.send(end, 5.0)
            assert channel.fault(answer.status, answer.body) is None
            last = service.messages[-1]
            assert (last["sequence_id"], last["priority"], "actions" in last) == ("s00000", 1, False)
            assert last["message"].startswith("approved by ann\n")

    run(go())


def test_without_a_reply_topic_or_a_proof_there_are_links_alone() -> None:
    for message in (told(notice(), None), told(notice(proof=""))):
        assert labels(message) == [("view", "Approve…"), ("view", "Reject…")]
        assert [action["url"] for action in message["actions"]] == ["https://a.example/?yes", "https://a.example/?no"]


def test_what_does_not_fit_cannot_be_approved_from_the_message() -> None:
    for cut in ({"arguments": json.dumps(["x" * 3000])}, {"tool": "t" * 300}):
        assert labels(told(notice(**cut))) == [("http", "Reject"), ("view", "Look")]


def test_what_takes_more_than_a_glance_cannot_be_approved_from_the_message() -> None:
    most = notice(arguments=json.dumps("x" * (GLANCE_BYTES - 2)))
    assert labels(told(most)) == [("http", "Approve"), ("http", "Reject"), ("view", "Look")]
    more = told(notice(arguments=json.dumps("x" * (GLANCE_BYTES - 1))))
    assert labels(more) == [("http", "Reject"), ("view", "Look")]
    assert "x" * (GLANCE_BYTES - 1) in more["message"]
    assert "(long; the page shows the whole call" in more["message"]


def test_a_test_has_no_buttons_and_no_link() -> None:
    message = told(Notice("TEST", "0" * 32, "a", "b", "t", "{}", 0.0, "", "", test=True))
    assert message["actions"] == []
    assert "click" not in message
    assert "test message" in message["title"]


@given(st.text(max_size=3000), st.text(max_size=300))
def test_no_text_makes_a_message_larger_than_ntfy_takes(text: str, tool: str) -> None:
    one = notice(arguments=json.dumps([text], ensure_ascii=False), tool=tool, agent=tool, backend=tool, rule=tool)
    message = told(one)
    assert len(message["message"].encode()) <= MESSAGE_BYTES
    end = Ntfy("https://n.example/t").closing(one, "id", text)
    assert end is not None
    assert len(json.loads(end.body)["message"].encode()) <= MESSAGE_BYTES


def test_nothing_in_an_agents_text_is_unseen_or_a_line_of_its_own() -> None:
    lines = told(notice(agent=HOSTILE, tool="a\nRule: none", arguments=json.dumps([HOSTILE])))["message"].split("\n")
    assert [line.partition(":")[0] for line in lines] == ["Agent", "Tool", "Backend", "Rule", "Id", "Arguments"]
    assert not any("\u202e" in line for line in lines)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((403, {}, b'{"code":40301,"http":403}'), "it answered 403: the topic needs a token, or another one; see `approval.ntfy.token`"),
        ((429, {}, b"{}"), "it answered 429"),
        ((500, {}, b""), "it answered 500"),
        ((200, {}, b"<html>"), "it answered 200 without the message's id"),
        ((200, {}, b'{"id":"../x"}'), "it answered 200 without the message's id"),
        ((301, {"location": "/elsewhere"}, b""), "it answered 301"),
    ],
)  # fmt: skip
def test_it_was_taken_only_where_ntfy_names_the_message(run: Run, answer: Any, why: str) -> None:
    async def go() -> None:
        async with ntfy() as (service, reach, channel):
            service.door.misbehave = [answer]
            got = await reach.send(channel.post(notice(), 0.0), 5.0)
            assert channel.fault(got.status, got.body) == why

    run(go())


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_press_on_the_phone_is_heard_with_its_proof(run: Run) -> None:
    async def go() -> None:
        async with ntfy() as (service, reach, channel):
            await reach.send(channel.post(notice(proof=PROOF), 0.0), 5.0)
            async with listening(channel, reach) as (desk, _):
                await until(lambda: service.streams)
                assert service.press("Approve")["clear"] is True
                service.press("Reject")
                await until(lambda: len(desk.heard) == 2)
        assert desk.heard[0] == Heard("ab" * 16, PROOF, True, "ntfy", "ntfy")
        assert [one.approve for one in desk.heard] == [True, False]

    run(go())


def test_a_stream_that_breaks_is_taken_up_where_it_was(run: Run) -> None:
    async def go() -> None:
        async with ntfy() as (service, reach, channel):
            await reach.send(channel.post(notice(proof=PROOF), 0.0), 5.0)
            service.press("Approve")  # while nobody listened
            async with listening(channel, reach) as (desk, task):
                await until(lambda: len(desk.heard) == 1)
                service.stream(b"")
                service.stream(None)
                with pytest.raises(Trouble, match="ended"):
                    await task
            service.press("Reject")
            async with listening(channel, reach) as (desk, _):
                await until(lambda: len(desk.heard) == 1)
                assert not desk.heard[0].approve
            assert service.since == ["10m", "m00000"]

    run(go())


def test_what_is_no_answer_is_passed_over(run: Run) -> None:
    async def go() -> None:
        async with ntfy() as (service, reach, channel):
            async with listening(channel, reach) as (desk, task):
                await until(lambda: service.streams)
                for text in ("", "hello", "aegis approve K7Q2", f"aegis approve {'ab' * 16} short", "x" * 4000):
                    service.say(text)
                service.stream(b'{"event":"keepalive","id":"k","time":1}\n')
                service.stream(b"\xff not json\n[1]\n\n")
                service.stream(b'{"event":"mess')
                service.stream(b'age","id":"q","message":"aegis reject ' + b"cd" * 16 + b' 0123456789abcdef"}\r\n')
                await until(lambda: desk.heard)
                assert not task.done()
            assert [one.id for one in desk.heard] == ["cd" * 16]

    run(go())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [((401, {}, b""), "refused"), ((302, {"location": "/x"}, b""), "refused"), ("close", None), ("garbage", "bad_answer")],
)  # fmt: skip
def test_a_stream_that_is_none_is_trouble_and_not_silence(run: Run, answer: Any, reason: str | None) -> None:
    async def go() -> None:
        async with ntfy() as (service, reach, channel):
            service.door.misbehave = [answer, answer, answer]
            with pytest.raises(Fault) as fault:
                await channel.listen(reach, Desk())
            assert reason is None or fault.value.reason == reason
            assert REPLY not in str(fault.value)

    run(go())


def test_a_line_without_end_and_a_silent_stream_are_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        async with ntfy() as (service, reach, channel):
            async with listening(channel, reach) as (_, task):
                await until(lambda: service.streams)
                service.stream(b"x" * (reaching.LINE_MAX + 1))
                with pytest.raises(Fault, match="longer"):
                    await task
            monkeypatch.setattr(reaching, "SILENT_S", 0.05)
            with pytest.raises(Fault, match="silent"):
                await channel.listen(reach, Desk())

    run(go())
