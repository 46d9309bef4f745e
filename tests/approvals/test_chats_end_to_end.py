"""A chat, a real daemon and a real agent: what a person presses on a phone lets the call run, or not."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from e2e.house import Home, call, tell_of, until
from standins.ntfy import Ntfy
from standins.telegram import TOKEN, Telegram, says

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the house looks into /proc")
CONFIG = """
backends: {{work: {{}}}}
agents: {{ann: {{backends: {{work: {{allowed: true, approval_required: [big]}}}}}}}}
approval:
  callback_base_url: https://aegis.example
  telegram: {{bot_token: "{token}", chat_id: -100123, approvers: {{"42": Ann}}, api_url: "{api}"}}
  ntfy: {{topic_url: "{topic}", token: tk_0123456789abcdef, reply_topic_url: "{reply}"}}
"""


class Thread:
    """Runs the stand-ins on a loop of their own; `do` does something there."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        async def there() -> Any:
            return function(*args)

        return self.run(there())

    def end(self) -> None:
        async def rest() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture
def chats() -> Iterator[tuple[Thread, Telegram, Ntfy, Home]]:
    thread = Thread()

    async def open_both() -> tuple[Telegram, Ntfy]:
        return await Telegram().__aenter__(), await Ntfy().__aenter__()

    telegram, ntfy = thread.run(open_both())
    home = Home(CONFIG.format(token=TOKEN, api=telegram.api, topic=ntfy.topic, reply=ntfy.reply)).launch()
    try:
        until(lambda: telegram.polling and ntfy.streams, "listening")
        yield thread, telegram, ntfy, home
    finally:
        home.close()
        thread.run(telegram.__aexit__())
        thread.run(ntfy.__aexit__())
        thread.end()


def test_people_decide_in_a_chat_and_every_message_says_so(chats: tuple[Thread, Telegram, Ntfy, Home]) -> None:
    thread, telegram, ntfy, home = chats
    agent = home.count(agent="ann").handshake()

    agent.says(call(1, "big", key="yes", size=10))
    until(lambda: telegram.messages and ntfy.messages, "the messages")
    click = thread.do(telegram.press, 666, "Approve")
    until(lambda: click in telegram.answered, "the refusal")
    assert home.pending(), "a stranger decides nothing"
    click = thread.do(telegram.press, 42, "Approve")
    assert "result" in agent.answer(1)
    until(lambda: click in telegram.answered, "the answer")
    assert "approved" in telegram.answered[click]["text"]
    until(lambda: "has run" in telegram.messages[1]["text"], "the end in telegram")
    until(lambda: any("has run" in one["message"] for one in ntfy.messages), "the end in ntfy")
    assert "reply_markup" not in telegram.messages[1]

    before = len(ntfy.messages)
    agent.says(call(2, "big", key="no", size=10))
    until(lambda: len(telegram.messages) == 2 and any("actions" in one for one in ntfy.messages[before:]), "the second")
    until(lambda: "actions" in ntfy.messages[-1], "the newest message")
    thread.do(ntfy.press, "Reject")
    assert tell_of(agent.answer(2)) == (-32004, "rejected")
    until(lambda: "rejected by ntfy" in telegram.messages[2]["text"], "the end of the second")
    assert home.reached() == ["yes"]
    assert agent.close() == 0

    rows = {row["exec_status"]: row for row in home.json("audit", "search", "key")}
    assert (rows["success"]["approver"], rows["denied"]["approver"]) == ("Ann", "ntfy")
    states = {row["name"]: (row["ways"], row["state"], row["sent"]) for row in home.json("notify", "list")}
    assert states == {"telegram": ("buttons", "ok", 2), "ntfy": ("buttons", "ok", 2)}
    done = home.aegis("notify", "test")
    assert (done.returncode, done.stderr) == (0, "telegram: sent\nntfy: sent\n")
    assert "test message" in telegram.messages[3]["text"]
    log = (home.dir / "daemon.log").read_text()
    assert TOKEN not in log
    assert ntfy.topic.rpartition("/")[2] not in log


def test_a_chat_that_is_down_delays_no_decision_and_status_tells(chats: tuple[Thread, Telegram, Ntfy, Home]) -> None:
    thread, telegram, ntfy, home = chats
    telegram.door.misbehave = ["hang"] * 50
    agent = home.count(agent="ann").handshake()
    agent.says(call(1, "big", key="yes", size=10))
    until(lambda: any("actions" in one for one in ntfy.messages), "the other channel")
    home.decide(home.pending()[0]["id"])
    assert "result" in agent.answer(1)
    telegram.door.misbehave = [says(409, "terminated by other getUpdates request")] * 50
    thread.do(telegram.put, {"message": {"text": "ends the poll"}})
    until(lambda: any("another program polls" in one for one in home.ask("status")["warnings"]), "the warning")
    assert agent.close() == 0
