from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standins.door import HOSTILE, Hands, notice
from standins.teams import Teams as Service
from standins.teams import checked

from aegis_daemon.approvals.channels.teams import BODY_BYTES, Teams

Run = Callable[[Coroutine[Any, Any, Any]], Any]
NOW = 1_763_715_600.9
OFFLINE = Teams(webhook_url="https://flow.example/secret")


def texts(card: Any) -> list[str]:
    return ["".join(run["text"] for run in block["inlines"]) for block in card["body"]]


def card(**changes: Any) -> Any:
    return checked(json.loads(OFFLINE.post(notice(**changes), NOW).body))


def test_a_workflow_gets_the_call_and_two_links(run: Run) -> None:
    async def go() -> None:
        hands = Hands()
        async with Service() as service:
            channel = Teams(webhook_url=service.hook)
            status, body = await hands.send(channel.post(notice(), NOW))
            assert (channel.fault(status, body), channel.handle(body)) == (None, "")
            (made,) = service.cards
            assert [action["url"] for action in made["actions"]] == ["https://a.example/?yes", "https://a.example/?no"]
            assert {"Agent: amy", "Tool: publish_post", "Backend: files", "Id: K7Q2"} <= set(texts(made))
            assert '{"title":"Grüße"}' in texts(made)
            assert channel.closing(notice(), "", "approved by ann") is None
        hands.close()

    run(go())


def test_a_test_message_has_no_links() -> None:
    assert card(test=True, approve_url="", reject_url="")["actions"] == []


def test_what_an_agent_wrote_is_text_and_nothing_is_computed() -> None:
    made = card(
        agent=HOSTILE, tool=HOSTILE, backend=HOSTILE, rule=HOSTILE, arguments=json.dumps([HOSTILE], ensure_ascii=False)
    )
    said = texts(made)
    assert not any("{{" in text or "${" in text or "\u202e" in text for text in said)
    assert json.loads(said[-1]) == [HOSTILE], "and it is the same JSON still"


@given(st.text(max_size=300), st.text(max_size=4000), st.sampled_from(["", '"\\', "\u202e", "é", "🔐"]))
def test_every_card_is_small_enough(name: str, text: str, more: str) -> None:
    arguments = json.dumps({name: text + more * 20_000}, ensure_ascii=False)
    post = OFFLINE.post(notice(agent=name, tool=name, backend=name, rule=name, code="012345", arguments=arguments), NOW)
    assert len(post.body) <= BODY_BYTES
    checked(json.loads(post.body))


def test_what_is_cut_says_so() -> None:
    assert any("the page shows all" in text for text in texts(card(arguments=json.dumps({"t": "x" * 9000}))))
    assert not any("the page shows all" in text for text in texts(card()))


@pytest.mark.parametrize("status", [200, 204, 302, 400, 401, 413, 429, 500])
def test_a_workflow_took_it_only_where_it_says_202(status: int) -> None:
    why = OFFLINE.fault(status, b"1")
    assert why is not None
    assert str(status) in why
