from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from aegis_daemon.approvals import links
from aegis_daemon.manage import web
from aegis_daemon.manage.web import CALLBACK, Paging

from .webhouse import LINKS_KEY, Answer, House, ask, open_house

pytestmark = pytest.mark.anyio
SITE = {"host": "aegis.example", "origin": "https://aegis.example"}
"""What a browser sends with the page's own form."""
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as made:
        yield made


async def opens(house: House, link: str, method: str = "GET", **more: Any) -> Answer:
    return await ask(house.web.app, method, link, **{"peer": "203.0.113.9", **more})


def changed(link: str, **fields: str | None) -> str:
    """The link with other values; None leaves one out."""
    known: dict[str, str | None] = {**dict(parse_qsl(urlsplit(link).query)), **fields}
    return f"{CALLBACK}?{urlencode({name: value for name, value in known.items() if value is not None})}"


# --- showing and deciding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_link_only_shows_however_often_it_is_opened(house: House, method: str) -> None:
    ticket = house.asks({"title": "Hi", "draft": False})
    before = house.state()
    for action in ("approve", "reject"):
        for _ in range(20):
            answer = await opens(house, house.link(ticket, action), method)
            assert answer.status == 200
    assert house.state() == before
    page = (await opens(house, house.link(ticket, "reject"))).text
    for shown in ("publish", "amy", "blog", "title", "&quot;Hi&quot;", "draft", "false", ticket.id, ticket.call_id):
        assert shown in page
    assert page.count("<button") == 1
    assert '<button class="reject">Reject</button>' in page
    assert '<form method="post"' in page


async def test_the_page_needs_nothing_and_lets_nothing_in(house: House) -> None:
    answer = await opens(house, house.link(house.asks(), "approve"))
    headers = answer.headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert set(policy) == {"default-src", "style-src", "form-action", "base-uri", "frame-ancestors"}
    assert (policy["frame-ancestors"], policy["base-uri"], policy["form-action"]) == ("'none'", "'none'", "'self'")
    (nonce,) = re.findall(r"'nonce-([\w-]{20,})'", policy["style-src"])
    assert re.findall(r'<style nonce="([\w-]+)"', answer.text) == [nonce]
    assert nonce not in (await opens(house, house.link(house.asks(), "approve"))).text
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"
    assert "noindex" in headers["x-robots-tag"]
    assert not re.search(r"<script|\son\w+=|src=|href=|style=", answer.text)


@pytest.mark.parametrize(("action", "state"), [("approve", "approved"), ("reject", "rejected")])
async def test_the_button_decides_once(house: House, action: str, state: str) -> None:
    ticket = house.asks()
    answer = await opens(house, house.link(ticket, action), "POST", headers={**FORM, **SITE}, body=b"")
    assert answer.status == 200
    assert f"The call is {state}" in answer.text
    assert (ticket.state, ticket.by) == (state, "an approval link (203.0.113.9)")
    events = list(house.events)
    for again in ("approve", "reject"):
        for method in ("GET", "POST"):
            answer = await opens(house, house.link(ticket, again), method)
            assert answer.status == 404
            assert f"was {state} by an approval link (203.0.113.9) already" in html.unescape(answer.text)
            assert "<form" not in answer.text
    assert house.events == events


async def test_curl_decides_with_the_link_alone_or_with_the_link_as_a_form(house: House) -> None:
    one, two = house.asks(), house.asks({"text": "ho"})
    assert (await opens(house, house.link(one, "approve"), "POST")).status == 200
    link = urlsplit(house.link(two, "reject"))
    assert (await opens(house, link.path, "POST", headers=FORM, body=link.query.encode())).status == 200
    assert (one.state, two.state) == ("approved", "rejected")


async def test_of_many_who_press_at_once_one_decides(house: House) -> None:
    ticket = house.asks()
    answers = await asyncio.gather(
        *(opens(house, house.link(ticket, action), "POST") for _ in range(25) for action in ("approve", "reject"))
    )
    assert sorted(answer.status for answer in answers) == [200] + [404] * 49
    assert [event for event, _ in house.events] == ["opened", "approved"]


async def test_what_chats_add_to_links_does_not_matter(house: House) -> None:
    link = f"{house.link(house.asks(), 'approve')}&utm_source=chat&utm_source=again&fbclid="
    assert (await opens(house, link)).status == 200


# --- what is no link --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    "fields",
    [{"id": None}, {"id": ""}, {"id": "x" * 65}, {"action": None}, {"action": "maybe"}, {"action": "Approve"}, {"token": None}, {"token": ""}, {"token": "x" * 129}],
)  # fmt: skip
async def test_a_link_that_is_not_whole_is_a_400(house: House, method: str, fields: Any) -> None:
    ticket = house.asks()
    assert (await opens(house, changed(house.link(ticket, "approve"), **fields), method)).status == 400
    assert ticket.state == "pending"


async def test_a_parameter_given_twice_is_a_400(house: House) -> None:
    ticket, link = house.asks(), house.link(house.asks({"n": 1}), "approve")
    assert (await opens(house, f"{link}&action=approve", "POST")).status == 400
    assert (await opens(house, link, "POST", headers=FORM, body=f"id={ticket.id}".encode())).status == 400
    assert (await opens(house, f"{link}{'&x=1' * 99}", "POST")).status == 400


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_a_token_that_is_not_ours_for_this_is_a_403(house: House, method: str) -> None:
    one, two = house.asks(), house.asks({"text": "ho"})
    approve = house.link(one, "approve")
    other_key = links.url(b"x" * 32, "", one, "approve")
    tampered = approve[:-1] + ("A" if approve[-1] != "A" else "B")
    for link in (
        changed(approve, action="reject"), changed(approve, id=two.id), changed(approve, id="ZZZZ"), other_key,
        tampered, changed(approve, token="guess"), changed(approve, token="é" * 60), changed(approve, id=one.id.lower() + "\u202e"),
    ):  # fmt: skip
        assert (await opens(house, link, method)).status == 403, link
    assert (one.state, two.state) == ("pending", "pending")


async def test_a_link_to_what_is_gone_is_a_404(house: House) -> None:
    ticket = house.asks(timeout=1.0)
    link, call = house.link(ticket, "approve"), ticket.call_id
    house.desk._expire(ticket)
    assert "expired" in (await opens(house, link, "POST")).text
    house.desk._ended.clear()
    answer = await opens(house, link, "POST")
    assert (answer.status, "no longer known" in answer.text) == (404, True)
    # The id is free again, and another call gets it.
    other = house.asks()
    house.desk._open[ticket.id] = house.desk._open.pop(other.id)
    other.id = ticket.id
    assert other.call_id != call
    assert (await opens(house, link, "POST")).status == 404
    assert other.state == "pending"


async def test_a_link_is_over_when_its_time_is_even_if_the_timer_stood_still(house: House) -> None:
    ticket = house.asks(timeout=600.0)
    ticket.expires -= 605
    answer = await opens(house, house.link(ticket, "approve"), "POST")
    assert (answer.status, "expired" in answer.text, ticket.state) == (404, True, "pending")


async def test_without_a_key_no_link_is_followed(house: House) -> None:
    ticket = house.asks()
    house.governor._links_key = b""
    bound = links.Bound(links.binding(ticket), int(ticket.expires))
    link = f"{CALLBACK}?{urlencode({'id': ticket.id, 'action': 'approve', 'token': links.make(b'', ticket.id, 'approve', bound)})}"
    assert (await opens(house, link, "POST")).status == 403


async def test_a_body_that_is_no_form_decides_nothing(house: House) -> None:
    ticket = house.asks()
    link = house.link(ticket, "approve")
    for headers, body in (
        ({"content-type": "application/json"}, b"{}"),
        ({"content-type": "text/plain"}, b""),
        ({}, b"code=1"),
    ):
        assert (await opens(house, link, "POST", headers=headers, body=body)).status == 415
    assert (await opens(house, link, "POST", headers=FORM, body=b"x" * 20_000)).status == 413
    assert ticket.state == "pending"


# --- the code ---------------------------------------------------------------------------------------------------------


async def test_where_a_code_is_asked_for_the_button_alone_decides_nothing(house: House) -> None:
    house.paging = Paging(with_code=True)
    ticket = house.asks()
    link = house.link(ticket, "approve")
    code = links.code(LINKS_KEY, links.binding(ticket))
    page = (await opens(house, link)).text
    assert 'name="code"' in page
    assert code not in page
    for body in (b"", b"code=", f"code={int(code) ^ 1:06d}".encode()):
        answer = await opens(house, link, "POST", headers=FORM, body=body)
        assert answer.status == 403
        assert "Nothing was decided" in answer.text
        assert code not in answer.text
        assert ticket.state == "pending"
    answer = await opens(house, link, "POST", headers=FORM, body=f"code=+{code}+".encode())
    assert (answer.status, ticket.state) == (200, "approved")


async def test_nobody_guesses_a_code(house: House) -> None:
    house.paging = Paging(with_code=True)
    ticket, other = house.asks(), house.asks({"text": "ho"})
    right = links.code(LINKS_KEY, links.binding(ticket))
    wrong = f"{(int(right) + 1) % 1_000_000:06d}"
    for action in ("approve", "reject") * web.WRONG_CODES.amount:
        await opens(house, house.link(ticket, action), "POST", headers=FORM, body=f"code={wrong}".encode())
    answer = await opens(house, house.link(ticket, "approve"), "POST", headers=FORM, body=f"code={right}".encode())
    assert (answer.status, "too many wrong codes" in answer.text, ticket.state) == (403, True, "pending")
    code = links.code(LINKS_KEY, links.binding(other))
    answer = await opens(house, house.link(other, "approve"), "POST", headers=FORM, body=f"code={code}".encode())
    assert (answer.status, other.state) == (200, "approved")


# --- seed A's literal behaviour ---------------------------------------------------------------------------------------


async def test_a_get_decides_where_that_is_switched_on_and_a_head_never(house: House) -> None:
    house.paging = Paging(get_decides=True)
    ticket = house.asks()
    link = house.link(ticket, "approve")
    assert (await opens(house, link, "HEAD")).status == 200
    assert (await opens(house, link, "OPTIONS")).status == 405
    assert ticket.state == "pending"
    answer = await opens(house, link)
    assert (answer.status, ticket.state) == (200, "approved")
    assert (await opens(house, link)).status == 404


async def test_a_code_is_asked_for_even_where_a_get_would_decide(house: House) -> None:
    house.paging = Paging(get_decides=True, with_code=True)
    ticket = house.asks()
    assert (await opens(house, f"{house.link(ticket, 'approve')}&code=123456")).status == 200
    assert ticket.state == "pending"


# --- what is shown ----------------------------------------------------------------------------------------------------

HOSTILE = (
    "</pre><script>alert(1)</script><button>Approve</button>\u202egnp.exe\u2066\u200b\x1b[31m\x00\ufe0f\u3164\r\n\u2028"
)


async def test_what_an_agent_wrote_is_text_and_all_of_it_is_seen(house: House) -> None:
    ticket = house.asks({HOSTILE: HOSTILE, "list": [{"deep": HOSTILE}], "n": 12345678901234567890, "x": 1.10})
    ticket.agent = ticket.rule = HOSTILE
    page = (await opens(house, house.link(ticket, "approve"))).text
    assert "<script" not in page
    assert page.count("<button") == 1
    assert page.isprintable() or not re.search("[\u202e\u2066\u200b\x1b\x00\ufe0f\u3164\r\u2028]", page)
    assert r"\u202egnp.exe" in page
    for shown in ("&lt;script&gt;alert(1)&lt;/script&gt;", "12345678901234567890", "1.1", "deep"):
        assert shown in page


async def test_a_long_text_is_shown_with_its_lines(house: House) -> None:
    ticket = house.asks({"text": "one\ntwo\\nthree", "big": "x" * 100_000})
    page = html.unescape((await opens(house, house.link(ticket, "approve"))).text)
    assert '"one\\n\ntwo\\\\nthree"' in page, "a line end breaks the line, what only looks like one does not"
    assert "x" * 100_000 in page


@pytest.mark.parametrize("arguments", ["", "[1,2]", "{", '{"a":1}garbage', "\x00"])
async def test_arguments_that_are_no_object_are_shown_as_they_are(house: House, arguments: str) -> None:
    ticket = house.asks()
    ticket.arguments = arguments
    assert (await opens(house, house.link(ticket, "approve"))).status == 200


async def test_the_page_counts_down_and_asks_again_when_the_time_is_over(house: House) -> None:
    page = (await opens(house, house.link(house.asks(timeout=300), "approve"))).text
    (left,) = re.findall(r'class="left"><span>(\d+) s', page)
    assert 290 <= int(left) <= 300
    assert f'<meta http-equiv="refresh" content="{int(left) + 1}">' in page
    assert f"from {{ --left: {left}; }}" in page
