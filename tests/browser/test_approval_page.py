"""The approval page in a real browser: from the link in a message to the answer that the agent gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .site import Collector, Site, text
from .window import DESKTOP, PHONE, SCHEMES, SMALL, Window

Opens = Callable[..., Window]
LONG = {
    "title": "A title that is long enough to need a second line even where there is room for one on a desktop's screen",
    "body": "First paragraph.\n\nSecond, with a link https://example.org/" + "long/" * 40 + "\n" + "word " * 120,
    "tags": ["release", "a" * 90, {"deep": [1, 2, {"deeper": None}]}],
    "a_name_that_is_longer_than_anybody_would_give_to_an_argument_of_a_tool": 1234567890123456789,
}
SIZES = pytest.mark.parametrize("size", [SMALL, PHONE, DESKTOP], ids=lambda size: f"{size[0]}px")
SCHEME = pytest.mark.parametrize("scheme", SCHEMES)
LOOKS = pytest.mark.parametrize(
    ("size", "scheme"),
    [
        pytest.param(size, scheme, id=f"{scheme}-{size[0]}px")
        for size, scheme in ((SMALL, "light"), (PHONE, "dark"), (DESKTOP, "light"))
    ],
)
"""Each width once and each scheme once: where things stand does not hang on their colours."""


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=lambda size: f"{size[0]}px")
def test_a_person_opens_the_link_approves_and_the_agent_has_the_answer(
    site: Site, opens: Opens, script: bool, size: tuple[int, int]
) -> None:
    agent = site.agent()
    asked = site.publish(agent, "Hello", "World")
    window = opens(size, script=script)
    assert window.goes(site.message()["approve_url"]) == 200
    for shown in ("publish_post", "claude-code", "blog", '"Hello"', '"World"', site.message()["id"]):
        assert shown in window.text
    assert asked not in agent.answers
    assert site.published() == []
    assert window.presses("Approve") == 200
    assert "approved" in window.heading.lower()
    assert text(agent.answer(asked)) == "published: Hello"
    assert site.published() == [{"title": "Hello", "body": "World"}]


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
def test_a_person_rejects_and_the_agent_is_told_and_nothing_runs(site: Site, opens: Opens, script: bool) -> None:
    agent = site.agent()
    asked = site.publish(agent)
    window = opens(PHONE, script=script)
    assert window.goes(site.message()["reject_url"]) == 200
    assert window.page.get_by_role("button", name="Approve").count() == 0
    assert window.presses("Reject") == 200
    assert "rejected" in window.heading.lower()
    assert "error" in agent.answer(asked)
    assert "rejected" in text(agent.answer(asked))
    assert site.published() == []


def test_who_opens_the_link_to_approve_may_reject_there_and_say_why(site: Site, opens: Opens) -> None:
    agent = site.agent()
    asked = site.publish(agent)
    window = opens(PHONE)
    window.goes(site.message()["approve_url"])
    field = window.page.get_by_label("reason", exact=False)
    if not field.is_visible():
        window.page.locator("summary", has_text="Reject").click()
    field.fill("not on <b>Fridays</b>")
    assert window.presses("Reject") == 200
    assert "rejected" in window.heading.lower()
    assert "not on <b>Fridays</b>" in text(agent.answer(asked))
    assert site.published() == []


def test_what_only_looks_decides_nothing(site: Site, opens: Opens) -> None:
    """Previews, scanners and impatient people open links, again and again, with everything that a browser has."""
    agent = site.agent()
    asked = site.publish(agent)
    links = [site.message()[name] for name in ("approve_url", "reject_url")]
    window = opens()
    for _ in range(5):
        for link in links:
            assert window.goes(link) == 200
            window.page.reload()
            for method in ("GET", "HEAD", "OPTIONS"):
                window.page.request.fetch(link, method=method, headers={"purpose": "prefetch"})
    (ticket,) = site.home.ask("pending")
    assert (ticket["state"], ticket["waiting"]) == ("pending", True)
    assert asked not in agent.answers
    assert window.presses("Reject") == 200


def test_the_second_of_two_tabs_is_told_who_was_first(site: Site, opens: Opens) -> None:
    agent = site.agent()
    asked = site.publish(agent)
    first = opens()
    first.goes(site.message()["approve_url"])
    second = opens(beside=first)
    second.goes(site.message()["approve_url"])
    assert first.presses("Approve") == 200
    assert second.presses("Approve") == 410
    assert "approved" in second.text
    assert "link" in second.text
    assert second.page.locator("form").count() == 0
    assert second.goes(site.message()["reject_url"]) == 410
    assert text(agent.answer(asked)) == "published: Hello"
    assert len(site.published()) == 1


def test_the_way_back_and_a_second_click_decide_nothing_again(site: Site, opens: Opens) -> None:
    agent = site.agent()
    asked = site.publish(agent)
    window = opens()
    window.goes(site.message()["approve_url"])
    window.presses("Approve")
    assert text(agent.answer(asked)) == "published: Hello"
    again = site.publish(agent)  # the same call: a new ticket, which the old link is not for
    site.message(2)
    window.expected += ("console: Failed to load resource",)
    window.page.go_back()
    if window.page.get_by_role("button", name="Approve").count():
        assert window.presses("Approve") == 410
    assert again not in agent.answers
    assert len(site.published()) == 1


def test_with_a_code_only_who_reads_the_message_approves(sites: Callable[..., Site], opens: Opens) -> None:
    site = sites(confirm="code")
    agent = site.agent()
    asked = site.publish(agent)
    code = site.message()["code"]
    window = opens(PHONE)
    assert window.goes(site.message()["approve_url"]) == 200
    assert code not in window.page.content()
    field = window.page.get_by_label("code", exact=False)
    field.fill("".join(str((int(digit) + 1) % 10) for digit in code))
    assert window.presses("Approve") == 403
    assert asked not in agent.answers
    field.fill(code)
    assert window.presses("Approve") == 200
    assert text(agent.answer(asked)) == "published: Hello"


def test_a_form_that_is_sent_without_the_code_is_not_even_sent(sites: Callable[..., Site], opens: Opens) -> None:
    site = sites(confirm="code")
    agent = site.agent()
    asked = site.publish(agent)
    window = opens()
    window.goes(site.message()["approve_url"])
    window.page.get_by_role("button", name="Approve", exact=True).click()
    assert window.page.evaluate("document.activeElement.matches('input:invalid')")
    assert [urlsplit(url).path for url in window.requests].count("/callback/approval") == 1
    assert asked not in agent.answers


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
def test_a_page_that_is_left_open_says_by_itself_that_the_time_is_over(
    sites: Callable[..., Site], opens: Opens, script: bool
) -> None:
    site = sites(timeout="4s")
    agent = site.agent()
    asked = site.publish(agent)
    window = opens(PHONE, script=script)
    if window.goes(site.message()["approve_url"]) == 200:  # else this machine was too busy to open it in time
        window._forgive(410)
        window.page.get_by_role("button", name="Approve", exact=True).wait_for(state="detached")
    assert "expired" in window.text.lower()
    assert "error" in agent.answer(asked)
    assert site.published() == []


def test_everything_can_be_done_with_the_keyboard(site: Site, opens: Opens) -> None:
    agent = site.agent()
    asked = site.publish(agent)
    window = opens()
    window.goes(site.message()["approve_url"])
    order = window.focuses(8)
    assert "Approve" in order
    window.page.reload()
    for _ in range(order.index("Approve") + 1):
        window.page.keyboard.press("Tab")
    with window.page.expect_navigation():
        window.page.keyboard.press("Enter")
    assert text(agent.answer(asked)) == "published: Hello"


@SIZES
def test_the_decision_is_in_sight_however_long_the_arguments_are(
    site: Site, opens: Opens, size: tuple[int, int]
) -> None:
    agent = site.agent()
    site.publish(agent, **{**LONG, "body": "line\n" * 400})  # type: ignore[arg-type]
    window = opens(size)
    window.goes(site.message()["approve_url"])
    box = window.page.get_by_role("button", name="Approve", exact=True).bounding_box()
    assert box is not None
    assert 0 <= box["y"] <= size[1] - box["height"]
    assert box["height"] >= 48


PAYLOADS = [
    "<script>alert(1)</script>",
    "</pre></dd></dl><script src='CANARY/s.js'></script><img src='CANARY/i.png' onerror='alert(2)'>",
    "</textarea></style></title><svg onload=alert(3)><iframe src='CANARY/f'></iframe>",
    '"><meta http-equiv="refresh" content="0;url=CANARY/m"><base href="CANARY/"><link rel="prefetch" href="CANARY/l">',
    "<style>@import 'CANARY/c.css'; body { background: url(CANARY/b.png) }</style>",
    "<form action='CANARY/form'><button>Approve</button></form><a href='javascript:alert(4)'>Approve</a>",
    "\u202egnp.exe\u202c \u2066hidden\u2069 \u200b\x1b[2J\x00 {{7*7}} ${7*7} &lt;script&gt;",
]


def test_what_an_agent_wrote_stays_text(site: Site, opens: Opens, collector: Collector) -> None:
    payloads = [payload.replace("CANARY", collector.url) for payload in PAYLOADS]
    agent = site.agent()
    site.publish(agent, "".join(payloads), payloads[0], **{payload: payload for payload in payloads})
    window = opens()
    assert window.goes(site.message()["approve_url"]) == 200
    page = window.page
    page.wait_for_load_state("networkidle")
    for selector in ("script", "img", "iframe", "base", "link", "pre svg", "dl svg", "a[href^=javascript]"):
        assert page.locator(selector).count() == 0, selector
    assert page.get_by_role("button", name="Approve", exact=True).count() == 1
    assert "<script>alert(1)</script>" in window.text
    assert not set("\u202e\u2066\u200b\x1b\0") & set(page.content())
    assert "49" not in page.locator("pre").last.inner_text()
    window.presses("Reject")
    agent.answer(1)
    assert collector.strays == []


@LOOKS
def test_every_page_can_be_read_and_hit_at_every_width_in_light_and_dark(
    sites: Callable[..., Site], opens: Opens, screens: Path, size: tuple[int, int], scheme: str
) -> None:
    site = sites(confirm="code")
    agent = site.agent()
    site.publish(agent)
    window = opens(size, scheme)
    wrong: dict[str, list[str]] = {}

    def looks(name: str) -> None:
        window.shoots(screens, f"page-{name}-{size[0]}-{scheme}")
        wrong[name] = window.ugly()

    window.goes(site.message()["approve_url"])
    looks("approve")
    window.page.get_by_label("code", exact=False).fill("000000")
    window.presses("Approve")
    looks("wrong-code")
    window.page.get_by_label("code", exact=False).fill(site.message()["code"])
    window.presses("Approve")
    looks("approved")
    window.goes(site.message()["approve_url"])
    looks("over")
    agent.answer(1)
    site.publish(agent, **LONG)  # type: ignore[arg-type]
    window.goes(site.message(2)["approve_url"])
    looks("long")
    window.goes(site.message(2)["reject_url"])
    looks("reject")
    window.goes(site.message(2)["reject_url"].replace("token=", "token=x"))
    looks("no-link")
    window.checks(wrong)
