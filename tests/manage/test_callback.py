from __future__ import annotations

import asyncio
import html
import http.client
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from aegis_daemon.approvals import links
from aegis_daemon.daemon import governor
from aegis_daemon.loop.clock import monotonic
from aegis_daemon.manage import api, forms, web
from aegis_daemon.manage.forms import Forms
from aegis_daemon.manage.web import CALLBACK, Paging

from .webhouse import LINKS_KEY, Answer, House, ask, open_house, served

pytestmark = pytest.mark.anyio
SITE = {"host": "aegis.example", "origin": "https://aegis.example"}
"""What a browser sends with the page's own form."""
FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as made:
        yield made


async def opens(house: House, link: str, method: str = "GET", **more: Any) -> Answer:
    return await ask(house.web.app, method, link, **{"peer": "203.0.113.9", **more})


async def form(house: House, link: str) -> str:
    """The one-time token of the page that the link opens."""
    (token,) = re.findall(r'name="form" value="([\w-]+)"', (await opens(house, link)).text)
    return str(token)


async def presses(house: House, link: str, *, token: str | None = None, **fields: str) -> Answer:
    """Sends the page's own form, as its button does."""
    fields = {"form": await form(house, link) if token is None else token, **fields}
    return await opens(house, link, "POST", headers={**FORM, **SITE}, body=urlencode(fields).encode())


async def tells(house: House, link: str, **changes: Any) -> Answer:
    """What a program sends: the link's own fields as JSON."""
    fields = {**dict(parse_qsl(urlsplit(link).query)), **changes}
    return await opens(house, CALLBACK, "POST", headers=JSON, body=json.dumps(fields).encode())


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
    for action, there in (("approve", ["reject", "approve"]), ("reject", ["reject"])):
        page = (await opens(house, house.link(ticket, action))).text
        for shown in ("publish", "amy", "blog", "title", "&quot;Hi&quot;", "draft", "false", ticket.id, ticket.call_id):
            assert shown in page
        assert re.findall(r'<button class="\w+" name="decision" value="(\w+)">', page) == there
        assert page.count('<form method="post"') == 1


async def test_enter_in_a_field_presses_nothing(house: House) -> None:
    page = (await opens(house, house.link(house.asks(), "approve"))).text
    inside = page.partition("<form")[2]
    assert re.findall(r"<button[^>]*>", inside)[0].startswith("<button disabled hidden"), "the form's default button"


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
    answer = await presses(house, house.link(ticket, action))
    assert answer.status == 200
    assert f"The call is {state}" in answer.text
    assert (ticket.state, ticket.by) == (state, "an approval link (203.0.113.9)")
    events = list(house.events)
    for again in ("approve", "reject"):
        for method in ("GET", "POST"):
            answer = await opens(house, house.link(ticket, again), method)
            assert answer.status == 410
            assert f"was {state} by an approval link (203.0.113.9) at " in html.unescape(answer.text)
            assert "<form" not in answer.text
    assert house.events == events


async def test_who_opens_the_link_to_approve_may_reject_there_and_say_why(house: House) -> None:
    ticket = house.asks()
    answer = await presses(house, house.link(ticket, "approve"), decision="reject", note=" not today ")
    assert (answer.status, ticket.state, ticket.note, ticket.via) == (200, "rejected", "not today", "link")
    assert "not today" in (await opens(house, house.link(ticket, "reject"))).text


async def test_a_link_for_rejecting_approves_nothing(house: House) -> None:
    ticket = house.asks()
    answer = await presses(house, house.link(ticket, "reject"), decision="approve")
    assert (answer.status, ticket.state) == (403, "pending")


async def test_a_form_decides_once_and_for_its_own_page_alone(house: House) -> None:
    one, two = house.asks(), house.asks({"text": "ho"})
    used = await form(house, house.link(one, "approve"))
    foreign = await form(house, house.link(two, "approve"))
    other = await form(house, house.link(one, "reject"))
    strange = ("", "x", "x" * 38, "x" * 65, "é", used + "=", used[:-1], f"{used} ", foreign, other)
    for token in strange:
        answer = await presses(house, house.link(one, "approve"), token=token)
        assert (answer.status, one.state) == (403, "pending"), token
        assert "Nothing was decided" in answer.text
        assert 'name="form"' in answer.text, "the page is shown again, to press on"
    one.people = 2
    answer = await presses(house, house.link(one, "approve"), token=used, decision="approve")
    assert (answer.status, one.state) == (403, "pending")
    assert "people must agree" in answer.text, "it was taken as the form that it is"
    one.people = 1
    answer = await presses(house, house.link(one, "approve"), token=used)
    assert (answer.status, "This form was sent before" in answer.text, one.state) == (403, True, "pending")


@pytest.mark.parametrize("action", ["approve", "reject"])
async def test_the_link_itself_can_be_posted_once_for_what_it_says(house: House, action: str) -> None:
    ticket = house.asks()
    link = house.link(ticket, action)
    assert (await opens(house, f"{link}&decision=approve", "POST")).status == 403
    assert (await opens(house, link.replace(f"action={action}", "action=other"), "POST")).status == 400
    assert ticket.state == "pending"
    assert (await opens(house, link, "POST")).status == 200
    assert ticket.state == ("approved" if action == "approve" else "rejected")
    assert (await opens(house, link, "POST")).status == 410


async def test_a_form_of_an_earlier_daemon_is_shown_again(house: House) -> None:
    ticket = house.asks()
    token = await form(house, house.link(ticket, "approve"))
    house.web._forms = Forms()
    answer = await presses(house, house.link(ticket, "approve"), token=token)
    assert (answer.status, ticket.state) == (403, "pending")
    (fresh,) = re.findall(r'name="form" value="([\w-]+)"', answer.text)
    assert (await presses(house, house.link(ticket, "approve"), token=fresh)).status == 200


def test_used_forms_are_remembered_until_they_could_not_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "USED_MAX", 3)
    now = 100.0
    kept = Forms(lambda: now)
    tokens = [kept.mint("call") for _ in range(4)]
    for until, token in zip((150.0, 500.0, 500.0), tokens, strict=False):
        assert kept.take(token, "call", until=until)
    now = 200.0
    assert kept.take(tokens[3], "call", until=500.0)
    assert [kept.take(token, "call", until=500.0) for token in tokens[1:]] == [False] * 3
    assert len(kept._used) <= 3


async def test_a_thousand_looks_by_whatever_opens_links_decide_nothing(tmp_path: Path) -> None:
    """Chats, mail scanners and browsers fetch links by themselves, on a real port, over and over."""

    def fetch(address: str, links: list[str]) -> list[int]:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
        seen = []
        for count in range(1000):
            method = ("GET", "HEAD", "OPTIONS")[count % 3]
            connection.request(method, links[count % 2], headers={"purpose": "prefetch"})
            answer = connection.getresponse()
            answer.read()
            seen.append(answer.status)
        connection.close()
        return seen

    with served(tmp_path) as (address, house, do):
        ticket = do(house.asks)
        before = do(house.state)
        seen = await asyncio.to_thread(fetch, address, [house.link(ticket, action) for action in ("approve", "reject")])
        assert {*seen} == {200, 405}
        assert do(house.state) == before
        assert ticket.state == "pending"


async def test_what_submits_every_form_it_finds_decides_nothing_where_a_code_is_asked_for(house: House) -> None:
    house.paging = Paging(with_code=True)
    ticket = house.asks()
    for action in ("approve", "reject"):
        for decision in ("approve", "reject"):
            for code in ("", "000000", "123456"):
                await presses(house, house.link(ticket, action), decision=decision, code=code)
    assert ticket.state == "pending"


async def test_of_many_who_press_at_once_one_decides(house: House) -> None:
    ticket = house.asks()
    presses = []
    for action in ("approve", "reject"):
        for _ in range(25):
            body = urlencode({"form": await form(house, house.link(ticket, action))}).encode()
            presses.append(opens(house, house.link(ticket, action), "POST", headers=FORM, body=body))
    answers = await asyncio.gather(*presses)
    assert sorted(answer.status for answer in answers) == [200] + [410] * 49
    assert [event for event, _ in house.events] == ["opened", "approved"]


# --- programs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "state"), [("approve", "approved"), ("reject", "rejected")])
async def test_a_program_decides_with_what_stands_in_the_link(house: House, action: str, state: str) -> None:
    ticket = house.asks()
    answer = await tells(house, house.link(ticket, action), note="by a script")
    assert answer.status == 200
    assert answer.json == {
        "id": ticket.id, "call_id": ticket.call_id, "state": state, "grant": None, "needed": 1, "given": answer.json["given"],
    }  # fmt: skip
    assert (ticket.state, ticket.note, ticket.via) == (state, "by a script", "link")
    again = await tells(house, house.link(ticket, action))
    assert (again.status, again.json["code"]) == (410, "gone")
    assert state in again.json["message"]


async def test_a_program_needs_the_right_token_for_the_very_action(house: House) -> None:
    ticket = house.asks()
    approve, reject = (house.link(ticket, action) for action in ("approve", "reject"))
    for link, changes, status in (
        (approve, {"action": "reject"}, 403), (reject, {"action": "approve"}, 403), (approve, {"token": "guess"}, 403),
        (approve, {"id": "ZZZZ"}, 403), (approve, {"action": "maybe"}, 422), (approve, {"token": ""}, 422),
        (approve, {"more": 1}, 422), (approve, {"note": "x" * 501}, 422), (approve, {"id": 7}, 422),
    ):  # fmt: skip
        answer = await tells(house, link, **changes)
        assert (answer.status, answer.json["status"]) == (status, "error"), changes
    assert ticket.state == "pending"


async def test_a_program_sends_the_code_where_one_is_asked_for(house: House) -> None:
    house.paging = Paging(with_code=True)
    ticket = house.asks()
    link, code = house.link(ticket, "approve"), links.code(LINKS_KEY, links.binding(ticket))
    for wrong in ({}, {"code": ""}, {"code": f"{int(code) ^ 1:06d}"}):
        answer = await tells(house, link, **wrong)
        assert (answer.status, ticket.state) == (403, "pending")
        assert code not in answer.body.decode()
    assert (await tells(house, link, code=code)).status == 200


async def test_another_sites_page_is_no_program(house: House) -> None:
    ticket = house.asks()
    fields = dict(parse_qsl(urlsplit(house.link(ticket, "approve")).query))
    headers = {**JSON, "origin": "https://evil.example"}
    answer = await opens(house, CALLBACK, "POST", headers=headers, body=json.dumps(fields).encode())
    assert (answer.status, ticket.state) == (403, "pending")


# --- links ------------------------------------------------------------------------------------------------------------


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


async def test_a_link_to_what_is_over_says_so_and_to_what_is_forgotten_is_a_404(house: House) -> None:
    ticket = house.asks(timeout=1.0)
    link, call = house.link(ticket, "approve"), ticket.call_id
    house.desk._expire(ticket)
    answer = await opens(house, link, "POST")
    assert (answer.status, "expired" in answer.text) == (410, True)
    house.desk._ended.clear()
    house.desk._by_call.clear()
    answer = await opens(house, link, "POST")
    assert (answer.status, "expired" in answer.text) == (410, True), "a later daemon knows it from the disk"
    house.store.db.execute("DELETE FROM tickets")
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
    answer = await presses(house, house.link(ticket, "approve"), token="")
    assert (answer.status, "expired" in answer.text, ticket.state) == (410, True, "pending")


async def test_without_a_key_no_link_is_followed(house: House) -> None:
    ticket = house.asks()
    house.governor._asks._key = b""
    bound = links.Bound(links.binding(ticket), int(ticket.expires))
    link = f"{CALLBACK}?{urlencode({'id': ticket.id, 'action': 'approve', 'token': links.make(b'', ticket.id, 'approve', bound)})}"
    assert (await opens(house, link, "POST")).status == 403


async def test_a_body_that_is_no_form_decides_nothing(house: House) -> None:
    ticket = house.asks()
    link = house.link(ticket, "approve")
    for headers, body in (
        ({"content-type": "text/plain"}, b""),
        ({"content-type": "multipart/form-data; boundary=x"}, b""),
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
    for wrong in ({}, {"code": ""}, {"code": f"{int(code) ^ 1:06d}"}):
        answer = await presses(house, link, **wrong)
        assert answer.status == 403
        assert "Nothing was decided" in answer.text
        assert code not in answer.text
        assert ticket.state == "pending"
    answer = await presses(house, link, code=f" {code} ")
    assert (answer.status, ticket.state) == (200, "approved")


async def test_nobody_guesses_a_code(house: House) -> None:
    house.paging = Paging(with_code=True)
    ticket, other = house.asks(), house.asks({"text": "ho"})
    right = links.code(LINKS_KEY, links.binding(ticket))
    wrong = f"{(int(right) + 1) % 1_000_000:06d}"
    for action in ("approve", "reject") * int(web.WRONG_CODES.split()[0]):
        await presses(house, house.link(ticket, action), code=wrong)
    answer = await presses(house, house.link(ticket, "approve"), code=right)
    assert (answer.status, "too many wrong codes" in answer.text, ticket.state) == (403, True, "pending")
    code = links.code(LINKS_KEY, links.binding(other))
    answer = await presses(house, house.link(other, "approve"), code=code)
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
    assert (await opens(house, link)).status == 410


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
    assert page.count("<button") == 3
    assert page.isprintable() or not re.search("[\u202e\u2066\u200b\x1b\x00\ufe0f\u3164\r\u2028]", page)
    assert r"\u202egnp.exe" in page
    for shown in ("&lt;script&gt;alert(1)&lt;/script&gt;", "12345678901234567890", "1.1", "deep"):
        assert shown in page


async def test_an_argument_without_a_name_does_not_look_like_all_of_them(house: House) -> None:
    ticket = house.asks({"": {"path": "/safe"}, "path": "/etc"})
    page = (await opens(house, house.link(ticket, "approve"))).text
    assert "all of them" not in page
    assert "(no name)" in page


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


# --- what helps to decide ---------------------------------------------------------------------------------------------


async def test_the_page_says_what_is_new_against_the_call_approved_last(house: House) -> None:
    first = house.asks({"title": "Hi", "tags": ["a"], "draft": True, "n": 1})
    assert "Compared with" not in (await opens(house, house.link(first, "approve"))).text
    await house.governor.decide(first.call_id, True, by="ann", via="cli", note="")
    second = house.asks({"title": "Bye", "tags": ["a"], "n": 1.0, "to": "all"})
    asked = house.governor.ask_of(second.call_id)
    assert [(row.name, row.change, row.was) for row in asked.arguments] == [
        ("title", "changed", '"Hi"'), ("tags", "same", ""), ("n", "changed", "1"), ("to", "new", ""), ("draft", "gone", "true"),
    ]  # fmt: skip
    page = (await opens(house, house.link(second, "approve"))).text
    assert "approved by ann" in page
    assert "4 are different" in page
    assert page.count('<span class="mark">changed</span>') == 2
    other = house.asks({"title": "Bye"}, name="announce")
    assert "Compared with" not in (await opens(house, house.link(other, "approve"))).text, (
        "another tool is another matter"
    )


async def test_what_was_rejected_is_compared_with_by_nothing(house: House) -> None:
    await house.governor.decide(house.asks().call_id, False, by="ann", via="cli", note="")
    assert house.governor.ask_of(house.asks().call_id).compared_at is None


async def test_the_page_says_what_is_left_of_the_limits(house: House) -> None:
    ticket = house.asks()
    claims = tuple(claim for claim in house.force.runtime.claims if (claim.backend, claim.tool) == ("blog", "publish"))
    ticket.lease = house.limits.reserve(claims, monotonic())
    page = html.unescape((await opens(house, house.link(ticket, "approve"))).text)
    assert "<dt>amy</dt><dd>0 of 1 left in 1d (this call is counted)</dd>" in page
    assert "<dt>all agents</dt><dd>14 of 15 left in 1h (this call is counted)</dd>" in page


async def test_the_page_says_who_must_agree_and_who_has(house: House) -> None:
    ticket = house.asks()
    ticket.people = 2
    page = (await opens(house, house.link(ticket, "approve"))).text
    assert "2 people must agree" in page
    assert "none has yet" in page
    await house.governor.decide(ticket.call_id, True, by="ann", via="cli", note="", voter="user:ann")
    assert "1 of them has: ann (the command line, " in (await opens(house, house.link(ticket, "approve"))).text
    await house.governor.decide(ticket.call_id, True, by="bob", via="cli", note="", voter="user:bob")
    assert ticket.state == "approved"


async def test_where_two_must_agree_a_link_rejects_and_never_approves(house: House) -> None:
    one, two = house.asks(), house.asks({"text": "ho"})
    one.people = two.people = 2
    page = await opens(house, house.link(one, "approve"))
    assert 'value="approve"' not in page.text
    assert f"aegis approve {one.id}" in page.text
    assert (await presses(house, house.link(one, "approve"), decision="approve")).status == 403
    assert (await tells(house, house.link(one, "approve"))).status == 403
    house.paging = Paging(get_decides=True)
    assert (await opens(house, house.link(one, "approve"))).status == 403
    house.paging = Paging()
    assert (one.state, one.votes) == ("pending", ())
    assert (await presses(house, house.link(one, "approve"), decision="reject")).status == 200
    assert (await tells(house, house.link(two, "reject"))).status == 200
    assert (one.state, two.state) == ("rejected", "rejected")


@pytest.mark.parametrize("voter", ["", "api", "link", "ntfy", "slack:U1", "grant:G-AAAA", "user"])
async def test_of_two_who_must_agree_each_has_a_name(house: House, voter: str) -> None:
    ticket = house.asks()
    ticket.people = 2
    with pytest.raises(api.Forbidden, match="nobody can tell who says yes here"):
        await house.governor.decide(ticket.call_id, True, by="x", via="api", note="", voter=voter)
    assert (ticket.state, ticket.votes) == ("pending", ())
    done = await house.governor.decide(ticket.call_id, False, by="x", via="api", note="", voter=voter)
    assert done.state == "rejected"


async def test_one_person_is_not_two_by_another_spelling(house: House) -> None:
    ticket = house.asks()
    ticket.people = 2
    await house.governor.decide(ticket.call_id, True, by="ann", via="cli", note="", voter="user:ann")
    for name in ("Ann", "ANN", "\uff41nn"):
        with pytest.raises(api.Conflict, match="somebody else must agree too"):
            await house.governor.decide(ticket.call_id, True, by=name, via="slack", note="", voter=f"user:{name}")
    assert ticket.state == "pending"


async def test_who_comes_too_late_hears_who_decided_when_and_what_became_of_it(house: House) -> None:
    ticket = house.asks()
    link = house.link(ticket, "reject")
    await house.governor.decide(ticket.call_id, True, by="ann <b>", via="telegram", note="fine")
    answer = await opens(house, link)
    assert answer.status == 410
    page = html.unescape(answer.text)
    assert re.search(r"was approved by ann <b> \(telegram\) at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", page)
    assert "The reason given: fine" in page
    assert "when the agent asks again" in page
    house.desk.consume(ticket)
    assert re.search(r"It ran at \d{4}-", (await opens(house, link)).text)
    assert "<form" not in answer.text
    assert "ann <b>" not in answer.text


async def test_a_page_is_small_and_needs_no_script(house: House) -> None:
    ticket = house.asks({})
    ticket.people = 2
    await house.governor.decide(ticket.call_id, True, by="ann", via="cli", note="", voter="user:ann")
    house.paging = Paging(with_code=True)
    answer = await opens(house, house.link(ticket, "approve"))
    assert len(answer.body) < 15_000
    assert "min-height: 3rem" in answer.text


async def test_who_watches_tickets_and_does_not_read_costs_little_and_begins_anew(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(governor, "WATCHED_MAX", 3)
    first = house.asks()
    watching = house.governor.watch_pending()
    assert (await anext(watching)).ticket.id == first.id
    late = [house.asks({"text": str(number)}) for number in range(4)]
    assert not house.governor._watchers, "nothing more is kept for it"
    assert [event async for event in watching] == []
    assert [event.ticket.id async for event in first_of(house.governor.watch_pending(), 5)] == [
        first.id,
        *(one.id for one in late),
    ]
    assert not house.governor._watchers


async def first_of(events: Any, count: int) -> AsyncIterator[Any]:
    try:
        for _ in range(count):
            yield await anext(events)
    finally:
        await events.aclose()
