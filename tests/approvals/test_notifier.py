from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest
from making import until
from test_links import KEY, ticket

from aegis_daemon.approvals import links, notifier
from aegis_daemon.approvals.channels.feishu import Feishu
from aegis_daemon.approvals.channels.generic import Generic
from aegis_daemon.approvals.notifier import Notifier, Settings
from aegis_daemon.approvals.ticket import APPROVED, Ticket

Run = Callable[[Coroutine[Any, Any, Any]], Any]
GENERIC, FEISHU = "https://generic.example/hidden", "https://feishu.example/hidden"


class Web:
    """Answers posts as it is told, by address; a list is used up one by one, its last for all that follow."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {"generic": [(200, b"")], "feishu": [(200, b'{"code":0}')], **answers}
        self.posts: list[tuple[str, dict[str, str], Any]] = []
        self.pauses: list[float] = []
        self.release = asyncio.Event()

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        self.posts.append((url, dict(headers), json.loads(body)))
        answers = self.answers["generic" if url == GENERIC else "feishu"]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == "hang":
            await self.release.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    def of(self, url: str) -> list[Any]:
        return [body for where, _, body in self.posts if where == url]


def made(web: Web, *, codes: bool = False) -> Notifier:
    settings = Settings((Generic(GENERIC, "secret"), Feishu(FEISHU)), "https://aegis.example", codes)
    return Notifier(KEY, web, wall=lambda: 5000.0, settings=settings, sleep=web.sleep)


async def tell(told: Notifier, *tickets: Ticket) -> None:
    for one in tickets:
        told.happened("opened", one)
    await until(lambda: not told._tasks)


def test_every_channel_hears_of_a_new_ask_with_links_that_work(run: Run) -> None:
    async def go() -> None:
        web = Web()
        await tell(made(web), ticket())
        (body,), (card,) = web.of(GENERIC), web.of(FEISHU)
        assert body["approve_url"] == links.url(KEY, "https://aegis.example", ticket(), "approve")
        assert body["reject_url"] == links.url(KEY, "https://aegis.example", ticket(), "reject")
        assert "code" not in body
        assert body["approve_url"] in json.dumps(card)
        assert web.posts[0][1]["webhook-id"]

    run(go())


def test_the_message_shows_the_code_where_pages_ask_for_one(run: Run) -> None:
    async def go() -> None:
        web = Web()
        await tell(made(web, codes=True), ticket())
        assert web.of(GENERIC)[0]["code"] == links.code(KEY, links.binding(ticket()))

    run(go())


def test_nothing_but_a_new_ask_is_news(run: Run) -> None:
    async def go() -> None:
        web = Web()
        told = made(web)
        for event in ("attached", "waiter_gone", "approved", "rejected", "expired", "consumed"):
            told.happened(event, ticket())
        await until(lambda: not told._tasks)
        assert web.posts == []

    run(go())


@pytest.mark.parametrize("trouble", [(500, b""), (429, b""), (302, b""), OSError("no route"), TimeoutError()])
def test_a_message_that_fails_is_tried_three_times(run: Run, trouble: Any) -> None:
    async def go() -> None:
        web = Web(generic=[trouble, trouble, (204, b"")])
        await tell(made(web), ticket())
        assert len(web.of(GENERIC)) == 3
        assert 1 <= web.pauses[0] <= 1.5
        assert 4 <= web.pauses[1] <= 6
        assert len(web.of(FEISHU)) == 1

    run(go())


def test_a_message_that_is_refused_is_not_repeated(run: Run) -> None:
    async def go() -> None:
        web = Web(generic=[(410, b"")], feishu=[(404, b"")])
        await tell(made(web), ticket())
        assert (len(web.of(GENERIC)), len(web.of(FEISHU))) == (1, 1)

    run(go())


def test_a_failure_is_logged_without_any_secret(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        web = Web(generic=[OSError(f"cannot reach {GENERIC}")], feishu=[(200, b'{"code":19021,"msg":"hidden"}')])
        await tell(made(web), ticket())

    with caplog.at_level(logging.WARNING, "aegis.approvals"):
        run(go())
    assert sorted(caplog.messages) == [
        "the feishu channel was not told of `K7Q2`: it answered code 19021",
        "the generic channel was not told of `K7Q2`: it cannot be reached (OSError)",
    ]


def test_a_channel_that_hangs_holds_up_no_other_and_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "TIMEOUT_S", 0.05)

    async def go() -> None:
        web = Web(generic=["hang"])
        told = made(web)
        for _ in range(20):
            told.happened("opened", ticket())
        await until(lambda: len(web.of(FEISHU)) == 20)
        assert len(web.of(GENERIC)) <= notifier.AT_ONCE
        web.answers["generic"] = [(200, b"")]
        await until(lambda: not told._tasks)

    run(go())


def test_nobody_is_asked_again_once_it_is_decided(run: Run) -> None:
    async def go() -> None:
        web = Web(generic=[(500, b"")])
        one = ticket()
        told = made(web)
        told.happened("opened", one)
        await until(lambda: web.of(GENERIC))
        one.state = APPROVED
        await until(lambda: not told._tasks)
        assert len(web.of(GENERIC)) == 1

    run(go())


def test_what_waits_is_bounded_and_the_end_waits_for_none(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifier, "WAITING_MAX", 3)

    async def go() -> None:
        web = Web(generic=["hang"], feishu=["hang"])
        told = made(web)
        for _ in range(5):
            told.happened("opened", ticket())
        assert len(told._tasks) == 3
        await until(lambda: len(web.posts) == 3)
        await told.close()
        assert not told._tasks

    with caplog.at_level(logging.ERROR, "aegis.approvals"):
        run(go())
    assert len(caplog.messages) == 7


def test_a_reload_changes_whom_it_tells(run: Run) -> None:
    async def go() -> None:
        web = Web()
        told = made(web)
        told.settings = Settings()
        await tell(told, ticket())
        assert web.posts == []

    run(go())
