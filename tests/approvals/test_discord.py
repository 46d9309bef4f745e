from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standins.discord import HOOK, checked
from standins.discord import Discord as Service
from standins.door import HOSTILE, Hands, notice

from aegis_daemon.approvals.channels.discord import Discord

Run = Callable[[Coroutine[Any, Any, Any]], Any]
NOW = 1_763_715_600.9
OFFLINE = Discord(webhook_url=f"https://discord.example{HOOK}")


def content(**changes: Any) -> str:
    return str(checked(json.loads(OFFLINE.post(notice(**changes), NOW).body))["content"])


def links(message: Any) -> list[str]:
    return [button["url"] for row in message["components"] for button in row["components"]]


def test_a_message_has_the_call_and_two_links_and_in_the_end_says_how_it_ended(run: Run) -> None:
    async def go() -> None:
        hands = Hands()
        async with Service() as service:
            channel = Discord(webhook_url=service.hook)
            status, body = await hands.send(channel.post(notice(), NOW))
            assert channel.fault(status, body) is None
            ((id, message),) = service.messages.items()
            assert channel.handle(body) == id
            assert links(message) == ["https://a.example/?yes", "https://a.example/?no"]
            for text in ("amy", "publish_post", "files", "K7Q2", '{"title":"Grüße"}', "<t:1763716200:R>"):
                assert text in message["content"]
            closing = channel.closing(notice(), id, "approved by ann")
            assert closing is not None
            assert channel.fault(*await hands.send(closing)) is None
            assert links(service.messages[id]) == []
            assert "approved by ann" in service.messages[id]["content"]
            assert channel.closing(notice(), "", "approved by ann") is None
        hands.close()

    run(go())


def test_a_thread_stays_the_thread(run: Run) -> None:
    async def go() -> None:
        hands = Hands()
        async with Service() as service:
            channel = Discord(webhook_url=f"{service.hook}?thread_id=77&wait=false")
            _, body = await hands.send(channel.post(notice(), NOW))
            closing = channel.closing(notice(), channel.handle(body), "expired")
            assert closing is not None
            await hands.send(closing)
            assert service.threads == ["77", "77"]
        hands.close()

    run(go())


def test_a_test_message_has_no_links() -> None:
    message = checked(json.loads(OFFLINE.post(notice(test=True, approve_url="", reject_url=""), NOW).body))
    assert message["components"] == []


def test_what_an_agent_wrote_is_code_and_nothing_else() -> None:
    said = content(
        agent=HOSTILE, tool=HOSTILE, backend=HOSTILE, rule=HOSTILE, arguments=json.dumps([HOSTILE], ensure_ascii=False)
    )
    head, _, rest = said.partition("```json\n")
    fenced, _, tail = rest.partition("\n```")
    assert "`" not in fenced + tail
    assert json.loads(fenced) == [HOSTILE], "and it is the same JSON still"
    assert all(line.count("`") in (0, 2) for line in head.split("\n"))
    assert "\u202e" not in said


@given(st.text(max_size=300), st.text(max_size=3000))
def test_every_message_is_one_that_discord_takes(name: str, text: str) -> None:
    asked = notice(
        agent=name,
        tool=name,
        backend=name,
        rule=name,
        code="012345",
        arguments=json.dumps({name: text}, ensure_ascii=False),
    )
    checked(json.loads(OFFLINE.post(asked, NOW).body))
    closing = OFFLINE.closing(asked, "1", f"rejected by {name}: {text}")
    assert closing is not None
    checked(json.loads(closing.body))


def test_what_is_cut_says_so_and_the_code_is_told() -> None:
    assert "the page shows all" in content(arguments=json.dumps({"t": "x" * 3000}))
    assert "012345" in content(code="012345")
    assert "the page shows all" not in content()


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b'{"id":"1400000000000000000"}', None),
        (200, b'{"id":"../../evil"}', "it answered 200 without a message"),
        (200, b"<html>", "it answered 200 without a message"),
        (200, b"[" * 100_000, "it answered 200 without a message"),
        (204, b"", "it answered 204"),
        (301, b"", "it answered 301"),
        (404, b'{"message":"Unknown Webhook","code":10015}', "it answered 404"),
        (429, b'{"message":"You are being rate limited.","retry_after":0.5,"global":false}', "it answered 429"),
    ],
)
def test_discord_took_it_only_where_the_message_comes_back(status: int, body: bytes, why: str | None) -> None:
    assert OFFLINE.fault(status, body) == why
