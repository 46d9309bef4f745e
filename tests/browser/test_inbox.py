"""The inbox in a real browser: a call arrives by itself, a person decides, and the agent has the answer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.house import call, until
from playwright.sync_api import Locator, Route, expect

from .site import Collector, Site, text
from .test_approval_page import LONG, LOOKS, PAYLOADS, SCHEME
from .window import DESKTOP, PHONE, Window

Opens = Callable[..., Window]
PAGES = ("inbox", "live", "limits", "queue", "tools", "audit", "agents")
BOTH = pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])


def card(window: Window, title: str = "Hello") -> Locator:
    """The card of a call with this title."""
    return window.page.locator("[data-ticket]:not(.leaving)", has_text=title)


def presses(window: Window, place: Locator, name: str) -> None:
    """A button of a card; without script it loads a page."""
    place.get_by_role("button", name=name, exact=True).click()


# --- the door ---------------------------------------------------------------------------------------------------------


def test_the_address_of_aegis_ui_lets_in_once_and_its_token_does_not_stay(site: Site, opens: Opens) -> None:
    url = site.login()
    window = opens()
    window.goes(url)
    window.page.get_by_role("heading", name="Inbox", exact=True).wait_for()
    assert window.page.url == f"{site.url}/ui"
    token = url.partition("#")[2]
    assert all(token not in asked for asked in window.requests)
    (cookie,) = window.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/ui")
    other = opens()
    other._forgive(403)
    other.goes(url)
    other.page.get_by_role("alert").wait_for()
    assert other.context.cookies() == []
    assert other.page.locator("[data-ticket]").count() == 0


def test_the_address_can_be_pasted_into_a_tab_that_shows_the_login(site: Site, opens: Opens) -> None:
    window = opens()
    window.goes(f"{site.url}/ui")
    assert window.page.url == f"{site.url}/ui/login"
    window.page.evaluate("to => location.assign(to)", site.login())
    window.page.get_by_role("heading", name="Inbox", exact=True).wait_for()


def test_who_has_the_inbox_open_while_the_daemon_is_killed_is_told_so(site: Site, enters: Opens) -> None:
    window = enters(site)
    expect(window.page.locator("[data-away]")).to_be_hidden()
    window._forgive(401)
    window.expected += (
        "console: Failed to load resource: net::ERR_",
    )  # the console tells of a refused connection, too
    site.crashes()
    window.page.locator("[data-away]").wait_for(state="visible")
    site.home.launch()
    window.page.get_by_role("heading", name="Log in to the inbox").wait_for()
    assert "Your session is over" in window.text


def test_what_another_port_can_steal_decides_nothing(site: Site, enters: Opens, thief: list[str]) -> None:
    window = enters(site)
    site.publish(site.agent())
    card(window).wait_for()
    other = window.context.new_page()
    other.goto(thief[0])
    until(lambda: thief[1:], "the cookie, which browsers give to every port")
    headers = {"Cookie": thief[1]}
    read = site.fetch("GET", "/ui", headers)
    (ticket,) = set(re.findall(r'data-call="([0-9a-f]{32})"', read[1]))
    for token in {*re.findall(r'name="csrf" value="([^"]*)"', read[1]), ""}:
        form = {**headers, "Origin": site.url, "Content-Type": "application/x-www-form-urlencoded"}
        said = site.fetch("POST", f"/ui/tickets/{ticket}", form, f"csrf={token}&action=approve")
        assert said[0] == 403
    assert site.home.ask("pending")[0]["state"] == "pending"
    window.page.bring_to_front()
    presses(window, card(window), "Approve once")
    until(lambda: not site.home.ask("pending"), "the person's own decision")


@BOTH
def test_nobody_sees_anything_without_a_login(site: Site, opens: Opens, script: bool) -> None:
    site.publish(site.agent(), "Secret title")
    site.message()
    window = opens(script=script)
    for path in ("", "/live", "/limits", "/queue", "/tools", "/audit", "/agents", "/nothing"):
        window.goes(f"{site.url}/ui{path}")
        assert "aegis ui" in window.text
        assert "Secret" not in window.page.content()
        assert "claude-code" not in window.page.content()


def test_who_logs_out_is_out_in_all_tabs(site: Site, enters: Opens, opens: Opens) -> None:
    window = enters(site)
    other = opens(beside=window)
    other.goes(f"{site.url}/ui/live")
    window.presses("Log out")
    other._forgive(401)
    other.page.get_by_role("button", name="Log in").wait_for()
    window.goes(f"{site.url}/ui")
    assert "Log in" in window.heading


def test_a_logout_is_not_overtaken_by_a_look_that_is_under_way(site: Site, enters: Opens) -> None:
    window = enters(site)
    window.goes(f"{site.url}/ui/limits")
    looks: list[Route] = []
    window.page.route("**/ui/limits", lambda look: looks.append(look))
    window._forgive(401)

    def logs_out(form: Route) -> None:
        answer = form.fetch(max_redirects=0)  # the session is over, and nobody has told the page yet
        looks[0].continue_()
        window.page.wait_for_timeout(300)
        form.fulfill(response=answer)

    window.page.route("**/ui/logout", logs_out)
    while not looks:
        window.page.wait_for_timeout(100)
    window.presses("Log out")
    assert window.page.url == f"{site.url}/ui/login"


def test_aegis_ui_logout_ends_what_is_open(site: Site, enters: Opens) -> None:
    window = enters(site)
    window._forgive(401)
    assert site.home.json("ui", "--logout", env=site.home.approver())["ended"] == 1
    window.page.get_by_role("button", name="Log in").wait_for()


# --- deciding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=lambda size: f"{size[0]}px")
def test_a_call_arrives_by_itself_is_approved_and_the_agent_has_the_answer(
    site: Site, enters: Opens, size: tuple[int, int]
) -> None:
    window = enters(site, size)
    expect(window.page.get_by_text("Nothing waits for you.")).to_be_visible()
    loaded = window.documents
    agent = site.agent()
    asked = site.publish(agent, "Hello", "World")
    card(window).wait_for()
    assert "publish_post" in card(window).inner_text()
    assert '"World"' in card(window).inner_text()
    expect(window.page.locator("[data-pending]")).to_have_text("1")
    assert window.page.title().startswith("(1) ")
    assert asked not in agent.answers
    presses(window, card(window), "Approve once")
    assert text(agent.answer(asked)) == "published: Hello"
    expect(card(window)).to_have_count(0)
    expect(window.page.get_by_text("Nothing waits for you.")).to_be_visible()
    expect(window.page.locator("[data-ticket]")).to_have_count(0)
    assert window.documents == loaded, "the page was loaded again"
    assert site.published() == [{"title": "Hello", "body": "World"}]
    (row,) = site.home.json("audit", "search", "--tool", "publish_post")
    assert row["approval_result"] == "approved"


@BOTH
def test_a_call_is_rejected_and_the_agent_reads_why(site: Site, enters: Opens, script: bool) -> None:
    agent = site.agent()
    asked = site.publish(agent)
    site.message()
    window = enters(site, PHONE, script=script)
    card(window).get_by_label("Why", exact=False).fill("not on <i>Fridays</i>")
    presses(window, card(window), "Reject")
    assert "not on <i>Fridays</i>" in text(agent.answer(asked))
    expect(card(window)).to_have_count(0)
    assert site.published() == []


def test_without_script_everything_can_be_decided_as_well(site: Site, enters: Opens) -> None:
    window = enters(site, PHONE, script=False)
    agent = site.agent()
    asked = site.publish(agent)
    site.message()
    window.page.reload()
    presses(window, card(window), "Approve once")
    assert text(agent.answer(asked)) == "published: Hello"
    assert "approved" in window.text.lower()
    window.page.get_by_role("link", name="Back to the inbox").click()
    expect(window.page.get_by_text("Nothing waits for you.")).to_be_visible()


@pytest.mark.parametrize("by", ["another tab", "the command line", "the link"])
def test_a_card_leaves_where_somebody_else_was_faster(site: Site, enters: Opens, opens: Opens, by: str) -> None:
    agent = site.agent()
    asked = site.publish(agent)
    message = site.message()
    window = enters(site)
    card(window).wait_for()
    if by == "another tab":
        other = opens(beside=window)
        other.goes(f"{site.url}/ui")
        presses(other, card(other), "Approve once")
    elif by == "the command line":
        site.home.decide(message["id"])
    else:
        other = opens(PHONE)
        other.goes(message["approve_url"])
        other.presses("Approve")
    leaving = window.page.locator("[data-ticket].leaving")
    leaving.wait_for()
    assert "approved by" in leaving.inner_text()
    expect(leaving).to_have_count(0)
    assert text(agent.answer(asked)) == "published: Hello"
    assert len(site.published()) == 1


def test_a_card_that_was_decided_elsewhere_a_moment_ago_decides_nothing(site: Site, enters: Opens) -> None:
    """Without script nothing tells the page."""
    agent = site.agent()
    asked = site.publish(agent)
    message = site.message()
    window = enters(site, script=False)
    site.home.decide(message["id"], approve=False)
    window._forgive(409)
    presses(window, card(window), "Approve once")
    expect(window.page.locator("h1")).to_have_text("It was not done")
    assert "rejected" in window.text
    assert "error" in agent.answer(asked)
    assert site.published() == []


def test_for_a_while_the_same_call_needs_nobody_until_it_is_revoked(site: Site, enters: Opens) -> None:
    agent = site.agent()
    asked = site.publish(agent)
    window = enters(site)
    presses(window, card(window), "For 15 min")
    assert text(agent.answer(asked)) == "published: Hello"
    assert text(agent.answer(site.publish(agent))) == "published: Hello"
    window.goes(f"{site.url}/ui/limits")
    grant = window.page.locator("[data-grant]")
    assert "publish_post" in grant.inner_text()
    grant.get_by_role("button", name="Revoke").click()
    expect(grant).to_have_count(0)
    again = site.publish(agent)
    window.goes(f"{site.url}/ui")
    presses(window, card(window), "Reject")
    assert "error" in agent.answer(again)
    assert len(site.published()) == 2


def test_everything_can_be_done_with_the_keyboard(site: Site, enters: Opens) -> None:
    agent = site.agent()
    asked = site.publish(agent)
    window = enters(site)
    card(window).wait_for()
    order = window.focuses(40)
    assert order[0] == "Skip to content"
    (at,) = [index for index, name in enumerate(order) if name == "Approve once"]
    window.page.reload()
    card(window).wait_for()
    for _ in range(at + 1):
        window.page.keyboard.press("Tab")
    window.page.keyboard.press("Enter")
    assert text(agent.answer(asked)) == "published: Hello"


@BOTH
def test_enter_in_the_reason_approves_nothing(site: Site, enters: Opens, script: bool) -> None:
    agent = site.agent()
    asked = site.publish(agent)
    site.message()
    window = enters(site, script=script)
    card(window).get_by_label("Why", exact=False).fill("no")
    window.page.keyboard.press("Enter")
    with contextlib.suppress(Exception):  # nothing may come of it: then there is nothing to wait for
        window.page.wait_for_event("framenavigated", timeout=500)
    assert asked not in agent.answers or "error" in agent.answers[asked]
    assert site.published() == []


def test_an_agent_is_paused_and_goes_on(site: Site, enters: Opens) -> None:
    agent = site.agent()
    window = enters(site)
    window.page.locator('[data-nav="agents"]').click()
    mine = window.page.locator("article", has_text="claude-code")
    mine.get_by_role("button", name="Pause").click()
    expect(window.page.locator(".banner")).to_contain_text("claude-code")
    assert "error" in agent.asks(call("echo1", "echo", text="hi"))
    mine.get_by_role("button", name="Resume").click()
    expect(window.page.locator(".banner")).to_have_count(0)
    assert text(agent.asks(call("echo2", "echo", text="hi"))) == "hi"


def test_calls_are_seen_as_they_happen(site: Site, enters: Opens) -> None:
    window = enters(site)
    window.page.locator('[data-nav="live"]').click()
    expect(window.page.locator("[data-pulse]")).to_have_text("as it happens")
    loaded = window.documents
    agent = site.agent("colleague")
    agent.asks(call(1, "echo", text="hi"))
    agent.asks(call(2, "get_weather", city="Rome"))
    rows = window.page.locator("[data-feed] tbody tr")
    expect(rows.filter(has_text="get_weather")).to_contain_text("ran")
    names = [name for name in rows.all_inner_texts() if "echo" in name or "get_weather" in name]
    assert ["get_weather" in name for name in names] == [True, False], "the newest comes first"
    assert window.documents == loaded


# --- what agents write ------------------------------------------------------------------------------------------------


@BOTH
def test_what_an_agent_wrote_stays_text_on_every_page(
    site: Site, enters: Opens, collector: Collector, script: bool
) -> None:
    payloads = [payload.replace("CANARY", collector.url) for payload in PAYLOADS]
    agent = site.agent(says={"name": payloads[0], "version": payloads[1]})
    window = enters(site, script=script)
    asked = site.publish(agent, "".join(payloads), payloads[0], **{payload: payload for payload in payloads})
    site.message()
    agent.asks(call("odd", payloads[0], **{payloads[2]: payloads[3]}))
    if not script:
        window.page.reload()
    card(window, "alert(1)").wait_for()
    assert "<script>alert(1)</script>" in window.text

    def inert() -> None:
        content = window.page.content()
        assert not set("\u202e\u2066\u200b\x1b\0") & set(content)
        page = window.page
        assert page.locator("script").count() == page.locator("script[src^='/ui/static/']").count()
        for selector in (
            "img",
            "iframe",
            "base",
            "svg[onload]",
            "[onerror]",
            "a[href^='javascript']",
            "meta[content*='/m']",
        ):
            assert page.locator(selector).count() == 0, selector

    inert()
    card(window, "alert(1)").get_by_label("Why", exact=False).fill(payloads[1][:400])
    presses(window, card(window, "alert(1)"), "Reject")
    agent.answer(asked)
    for path in ("live", "audit", "tools", "queue", "limits", "agents"):
        window.goes(f"{site.url}/ui/{path}")
        inert()
    until(lambda: site.home.ask("flush_audit") or True)
    window.goes(f"{site.url}/ui/audit?tool=publish_post")
    window.page.locator("tr[data-call] a").first.click()
    window.page.locator(".story").wait_for()
    assert "<script>alert(1)</script>" in window.text
    inert()
    assert collector.strays == []


# --- how it looks -----------------------------------------------------------------------------------------------------


def busy(site: Site) -> None:
    """A day's worth of everything: calls that ran, failed, were refused, that wait for a person and in a lane."""
    colleague, agent = site.agent("colleague"), site.agent()
    for number in range(12):
        colleague.asks(call(f"w{number}", "get_weather", city=("Rome", "Oslo", "Lima")[number % 3]))
        if number % 3 == 0:
            agent.asks(call(f"l{number}", "list_posts"))
        if number % 4 == 0:
            agent.asks(call(f"r{number}", "admin_reset"))
            colleague.asks(call(f"e{number}", "get_weather", town="Rome"))
    for number, title in enumerate(("Release notes 1.4", "Release notes 1.5"), 1):
        asked = site.publish(agent, title, f"What is new in 1.{3 + number}:\n\n- faster\n- smaller")
        site.home.decide(site.message(number)["id"], approve=number == 1)
        agent.answer(asked)
    site.publish(agent, "Release notes 1.6", "What is new in 1.6:\n\n- rollback works\n- `DROP TABLE` is gone")
    site.publish(agent, **LONG)  # type: ignore[arg-type]
    site.message(4)
    site.home.ask("flush_audit")


@LOOKS
def test_every_page_can_be_read_and_hit_at_every_width_in_light_and_dark(
    site: Site, enters: Opens, screens: Path, size: tuple[int, int], scheme: str
) -> None:
    busy(site)
    window = enters(site, size, scheme)
    wrong: dict[str, list[str]] = {}

    def looks(name: str) -> None:
        window.shoots(screens, f"ui-{name}-{size[0]}-{scheme}")
        wrong[name] = window.ugly()

    expect(window.page.locator("[data-ticket]")).to_have_count(2)
    for name in PAGES:
        window.page.locator(f'[data-nav="{name}"]').click()
        expect(window.page.locator("h1")).to_have_text(name.capitalize())
        looks(name)
    window.goes(f"{site.url}/ui/audit?tool=publish_post&status=success")
    window.page.locator("tr[data-call] a").first.click()
    window.page.locator(".story").wait_for()
    looks("story")
    window.goes(f"{site.url}/ui/nothing")
    looks("nothing")
    window.presses("Log out")
    looks("login")
    window.checks(wrong)


@SCHEME
def test_an_inbox_with_nothing_in_it_looks_finished(site: Site, enters: Opens, screens: Path, scheme: str) -> None:
    window = enters(site, DESKTOP, scheme)
    wrong: dict[str, list[str]] = {}
    for name in PAGES:
        window.page.locator(f'[data-nav="{name}"]').click()
        expect(window.page.locator("h1")).to_have_text(name.capitalize())
        window.shoots(screens, f"ui-empty-{name}-{scheme}")
        wrong[name] = window.ugly()
    window.checks(wrong)


def test_every_answer_forbids_what_is_not_its_own(site: Site, enters: Opens) -> None:
    site.publish(site.agent())
    window = enters(site)
    for name in PAGES:
        window.page.locator(f'[data-nav="{name}"]').click()
        expect(window.page.locator("h1")).to_have_text(name.capitalize())
    own = [answer for answer in window.answers if answer.url.startswith(site.url)]
    assert len(own) >= 2 * len(PAGES)
    for answer in own:
        rules = dict(rule.strip().partition(" ")[::2] for rule in answer.headers["content-security-policy"].split(";"))
        assert rules["default-src"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == "'self'"
        assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
    window.expected += ("console: Executing inline script violates",)
    window.page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
    }""")
    assert window.page.evaluate("window.ran") is None
    assert window.complaints, "what a page does wrong would not be noticed"
