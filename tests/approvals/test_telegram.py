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
from standins.door import HOSTILE, Hands, notice
from standins.telegram import CHAT, TOKEN, checked, says
from standins.telegram import Telegram as Service

from aegis_daemon.approvals.channels.notice import Heard, Notice, Trouble
from aegis_daemon.approvals.channels.telegram import DATA_BYTES, Telegram, configured

Run = Callable[[Coroutine[Any, Any, Any]], Any]
ANN = {"42": "ann"}
PROOF = "p-roof_0123456ab"


def bot(service: Service | None = None, approvers: dict[str, str] = ANN, token: str = TOKEN) -> Telegram:
    return Telegram(token, str(CHAT), approvers, service.api if service else "https://api.telegram.org")


def asked(**changes: Any) -> Notice:
    return notice(**{"proof": PROOF[:16], **changes})


def message(channel: Telegram, one: Notice) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(channel.post(one, 0.0).body)
    checked(made)
    return made


def buttons(made: dict[str, Any]) -> list[str]:
    return [one["text"] for row in made.get("reply_markup", {"inline_keyboard": []})["inline_keyboard"] for one in row]


class Desk:
    def __init__(self) -> None:
        self.heard: list[Heard] = []

    async def __call__(self, heard: Heard) -> str:
        self.heard.append(heard)
        return f"{'approved' if heard.approve else 'rejected'} " + "x" * 300


@asynccontextmanager
async def telegram() -> AsyncIterator[tuple[Service, Hands]]:
    hands = Hands()
    try:
        async with Service() as service:
            yield service, hands
    finally:
        hands.close()


@asynccontextmanager
async def listening(channel: Telegram, hands: Hands) -> AsyncIterator[tuple[Desk, asyncio.Task[None]]]:
    desk = Desk()
    task = asyncio.ensure_future(channel.listen(hands, desk))
    try:
        yield desk, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --- messages ---------------------------------------------------------------------------------------------------------


def test_it_is_not_configured_without_a_bot_and_a_chat() -> None:
    assert configured(bot_token=TOKEN) is None
    assert configured(chat_id="1") is None
    assert configured(bot_token=TOKEN, chat_id="@ops") is not None


def test_a_message_is_taken_changed_and_loses_its_buttons(run: Run) -> None:
    async def go() -> None:
        async with telegram() as (service, hands):
            channel = bot(service)
            status, body = await hands.send(channel.post(asked(), 0.0))
            assert channel.fault(status, body) is None
            assert buttons(service.messages[1]) == ["✅ Approve", "⛔ Reject", "Look at the whole call"]
            end = channel.closing(asked(), channel.handle(body), "approved by ann")
            assert end is not None
            for _ in range(2):  # the second time Telegram says that nothing changed
                status, body = await hands.send(end)
                assert channel.fault(status, body) is None
            assert service.edits == 1
            assert buttons(service.messages[1]) == []
            assert service.messages[1]["text"].endswith("\n\napproved by ann")

    run(go())


def test_nobody_mapped_means_links_alone() -> None:
    assert buttons(message(bot(approvers={}), asked())) == ["✅ Approve…", "⛔ Reject…"]
    assert not bot(approvers={}).answers
    assert buttons(message(bot(), asked(proof=""))) == ["✅ Approve…", "⛔ Reject…"], "where answers would not count"


def test_a_link_that_telegram_refuses_does_not_cost_the_message() -> None:
    local = asked(approve_url="http://localhost:1/y", reject_url="http://localhost:1/n")
    assert buttons(message(bot(), local)) == ["✅ Approve", "⛔ Reject"]
    assert buttons(message(bot(approvers={}), local)) == []
    assert "aegis pending" in message(bot(approvers={}), local)["text"]


def test_what_does_not_fit_cannot_be_approved_from_the_message() -> None:
    for cut in ({"arguments": json.dumps(["x" * 5000])}, {"tool": "t" * 300}, {"agent": "\U000e0100" * 40}):
        assert buttons(message(bot(), asked(**cut))) == ["⛔ Reject", "Look at the whole call"]


def test_a_test_has_no_buttons_and_says_what_it_is() -> None:
    made = message(bot(), Notice("TEST", "0" * 32, "a", "b", "t", "{}", 0.0, "", "", test=True))
    assert buttons(made) == []
    assert "test message" in made["text"].split("\n")[0]


@given(st.text(max_size=3000), st.text(max_size=300), st.text(max_size=300))
def test_whatever_an_agent_writes_the_message_is_one_that_telegram_takes(text: str, tool: str, how: str) -> None:
    one = asked(arguments=json.dumps([text], ensure_ascii=False), tool=tool, agent=tool)
    message(bot(), one)
    end = bot().closing(one, "-100123 7", how)
    assert end is not None
    checked(json.loads(end.body))


def test_agents_text_stands_in_code_where_nothing_is_a_link_or_a_mention() -> None:
    made = message(bot(), asked(agent=HOSTILE, tool="@everyone https://evil.example", arguments=json.dumps([HOSTILE])))
    text = made["text"].encode("utf-16-le")
    code = [
        text[2 * one["offset"] : 2 * (one["offset"] + one["length"])].decode("utf-16-le")
        for one in made["entities"]
        if one["type"] != "bold"
    ]
    outside = made["text"]
    for one in sorted(code, key=len, reverse=True):
        outside = outside.replace(one, "")
    assert "evil" not in outside
    assert "@" not in outside
    assert "\u202e" not in made["text"]
    assert "parse_mode" not in made


def test_a_click_carries_the_call_and_the_proof_in_few_bytes() -> None:
    made = message(bot(), asked())
    data = made["reply_markup"]["inline_keyboard"][0][0]["callback_data"]
    assert data == f"a:{'ab' * 16}:{PROOF}"
    assert len(data.encode()) <= DATA_BYTES


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (says(401), "the bot's token is not valid; see `approval.telegram.bot_token`"),
        (says(429, "retry after 5", retry_after=5), "it answered 429 (Too Many Requests: retry after 5)"),
        (says(400, f"no {TOKEN}"), "it answered 400 (Bad Request: no …)"),
        ((200, {}, b'{"ok":false}'), "it answered 200"),
        ((200, {}, b"<html>"), "it answered 200 and nothing that can be read"),
        ((502, {}, b""), "it answered 502 and nothing that can be read"),
        ((302, {"location": "http://127.0.0.1:9/"}, b""), "it answered 302 and nothing that can be read"),
    ],
)
def test_it_was_taken_only_where_telegram_says_ok(run: Run, answer: Any, why: str) -> None:
    async def go() -> None:
        async with telegram() as (service, hands):
            service.door.misbehave = [answer]
            status, body = await hands.send(bot(service).post(asked(), 0.0))
            assert bot(service).fault(status, body) == why

    run(go())


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_mapped_person_decides_and_is_told(run: Run) -> None:
    async def go() -> None:
        async with telegram() as (service, hands):
            channel = bot(service)
            await hands.send(channel.post(asked(), 0.0))
            async with listening(channel, hands) as (desk, _):
                yes = service.press(42, "Approve")
                no = service.press(42, "Reject")
                await until(lambda: len(service.answered) == 2)
            assert [(one.approve, one.voter, one.by) for one in desk.heard] == [
                (True, "user:ann", "ann"),
                (False, "user:ann", "ann"),
            ]
            assert {(one.id, one.proof) for one in desk.heard} == {("ab" * 16, PROOF)}
            assert service.answered[yes]["text"].startswith("approved")
            assert service.answered[no]["text"].startswith("rejected")

    run(go())


def test_who_is_not_mapped_decides_nothing_and_learns_why(run: Run) -> None:
    async def go() -> None:
        async with telegram() as (service, hands):
            channel = bot(service)
            await hands.send(channel.post(asked(), 0.0))
            async with listening(channel, hands) as (desk, _):
                click = service.press(666, "Approve")
                await until(lambda: click in service.answered)
            assert desk.heard == []
            assert "666" in service.answered[click]["text"]
            assert service.answered[click]["show_alert"] is True

    run(go())


def test_data_that_we_did_not_make_and_updates_that_are_none_are_passed_over(run: Run) -> None:
    async def go() -> None:
        async with telegram() as (service, hands):
            async with listening(bot(service), hands) as (desk, task):
                for data in ("", "a:K7Q2:x", "a:" + "AB" * 16 + f":{PROOF}", f"x:{'ab' * 16}:{PROOF}", "a" * 64):
                    service.click(42, data)
                service.put({"callback_query": {"id": 5, "from": "nobody"}})
                service.put({"message": {"text": "/start"}})
                last = service.click(42, f"r:{'ab' * 16}:{PROOF}")
                await until(lambda: last in service.answered)
                await until(lambda: not service.updates or service.polling)
                assert not task.done()
            assert [one.approve for one in desk.heard] == [False]

    run(go())


def test_a_click_is_confirmed_once_and_not_heard_again(run: Run) -> None:
    async def go() -> None:
        async with telegram() as (service, hands):
            channel = bot(service)
            await hands.send(channel.post(asked(), 0.0))
            service.press(42, "Approve")
            async with listening(channel, hands) as (desk, _):
                await until(lambda: service.polls == 2)
                service.press(42, "Reject")
                await until(lambda: service.polls == 3)
            assert [one.approve for one in desk.heard] == [True, False]

    run(go())


@pytest.mark.parametrize(
    ("answer", "why", "after"),
    [
        (says(409, "terminated"), "another program polls this bot, or it has a webhook; only one can hear it", None),
        (says(401), "the bot's token is not valid; see `approval.telegram.bot_token`", None),
        (says(429, "retry after 7", retry_after=7), "it answered 429 (Too Many Requests: retry after 7)", 7.0),
        ((500, {}, b"oops"), "it answered 500 and nothing that can be read", None),
        ((200, {}, b'{"ok":true,"result":{}}'), "it answered with no list of updates", None),
        ((200, {}, b'{"ok":true,"result":[{"update":1}]}'), "it answered with no list of updates", None),
    ],
)
def test_trouble_with_polling_is_told_in_words(run: Run, answer: Any, why: str, after: float | None) -> None:
    async def go() -> None:
        async with telegram() as (service, hands):
            service.door.misbehave = [answer]
            with pytest.raises(Trouble) as trouble:
                await bot(service).listen(hands, Desk())
            assert str(trouble.value) == why
            assert trouble.value.retry_after_s == after
            assert TOKEN not in str(trouble.value)

    run(go())


def test_an_answer_that_telegram_does_not_take_holds_up_no_click(run: Run) -> None:
    async def go() -> None:
        async with telegram() as (service, hands):
            channel = bot(service)
            await hands.send(channel.post(asked(), 0.0))
            async with listening(channel, hands) as (desk, _):
                service.on_answerCallbackQuery = hang  # type: ignore[method-assign]
                service.press(42, "Approve")
                await until(lambda: len(desk.heard) == 1)
                service.press(42, "Reject")
                await until(lambda: len(desk.heard) == 2)

    run(go())


async def hang(ask: Any) -> Any:
    await asyncio.Event().wait()
