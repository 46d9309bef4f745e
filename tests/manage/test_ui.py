from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
from making import tool

from aegis_daemon.approvals.ticket import Ticket
from aegis_daemon.audit import record
from aegis_daemon.audit.record import Denied, Intent, Outcome
from aegis_daemon.config.load import Secret
from aegis_daemon.core.verdict import Ask, Hold
from aegis_daemon.daemon.checking import Checking
from aegis_daemon.daemon.feed import Feed
from aegis_daemon.manage import api, shapes
from aegis_daemon.manage.ui import charts, present, routes, sessions, stream
from aegis_daemon.manage.ui.routes import COOKIE, POLICY, ROUTES
from aegis_daemon.manage.ui.sessions import Logins, Person
from aegis_daemon.manage.web import Access

from .webhouse import API_TOKEN, APPROVER_KEY, OUR_ORIGIN, READ_TOKEN, Answer, House, ask, open_house

pytestmark = pytest.mark.anyio
FORM = {"content-type": "application/x-www-form-urlencoded"}
STRANGER = "203.0.113.9"
GETS = [f"/ui/{pattern}".rstrip("/").replace("{id}", "a" * 32) for method, pattern, _ in ROUTES if method == "GET"]
POSTS = [f"/ui/{pattern}".replace("{id}", "a" * 32) for method, pattern, _ in ROUTES if method == "POST"]
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\u200b{{7*7}}&amp;"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as made:
        made.governor._http = lambda: "127.0.0.1:18070"
        yield made


@pytest.fixture
async def logged(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, logging=True) as made:
        made.governor._http = lambda: "127.0.0.1:18070"
        yield made


class Browser:
    """Somebody's browser: keeps its cookie, sends what browsers send."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.cookie = ""

    async def get(self, target: str, **headers: str) -> Answer:
        return await ask(self.house.web.app, "GET", target, headers=self._headers(headers))

    async def post(self, target: str, fields: Mapping[str, str], **headers: str) -> Answer:
        sent = self._headers({"origin": OUR_ORIGIN, **FORM, **headers})
        return await ask(self.house.web.app, "POST", target, headers=sent, body=urlencode(fields).encode())

    async def logs_in(self, token: str = "") -> Answer:
        token = token or self.house.governor.invite("ann", "user:ann").url.partition("#")[2]
        answer = await self.post("/ui/login", {"token": token})
        if "set-cookie" in answer.headers:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer

    async def csrf(self) -> str:
        return re.findall(r'name="csrf" value="([^"]+)"', (await self.get("/ui/agents")).text)[0]

    async def does(self, target: str, **fields: str) -> Answer:
        return await self.post(target, {"csrf": await self.csrf(), **fields})

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in more.items()}
        return {**({"cookie": self.cookie} if self.cookie else {}), **named}


@pytest.fixture
async def ann(house: House) -> Browser:
    browser = Browser(house)
    assert (await browser.logs_in()).status == 303
    return browser


@pytest.fixture
async def eve(house: House) -> Browser:
    """Nobody who logged in."""
    return Browser(house)


# --- the door ---------------------------------------------------------------------------------------------------------


async def test_a_token_lets_its_person_in_once(house: House, eve: Browser) -> None:
    token = house.governor.invite("ann", "user:ann").url.partition("#")[2]
    answer = await eve.logs_in(token)
    assert (answer.status, answer.headers["location"]) == (303, "/ui")
    assert (await eve.get("/ui")).status == 200
    other = Browser(house)
    refused = await other.logs_in(token)
    assert (refused.status, other.cookie) == (403, "")
    assert "was used" in refused.text


async def test_a_login_is_recorded_or_does_not_happen(house: House, eve: Browser) -> None:
    heard: list[Any] = []
    house.journal.listener = lambda record, opened: heard.append(record)
    await eve.logs_in()
    assert [(record.kind, record.action, record.by) for record in heard] == [("admin", "ui_login", "ann")]
    house.journal.close()
    other = Browser(house)
    assert ((await other.logs_in()).status, other.cookie) == (503, "")


def test_an_idle_daemon_has_no_pages_loaded() -> None:
    look = "import sys, aegis_daemon.daemon.main; print({'jinja2', 'aegis_daemon.manage.ui.routes'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


async def test_the_cookie_is_for_this_site_and_no_script(house: House, eve: Browser) -> None:
    flags = (await eve.logs_in()).headers["set-cookie"].split("; ")[1:]
    assert flags == ["HttpOnly", "SameSite=Strict", "Path=/ui", "Max-Age=43200"]
    token = house.governor.invite("ann", "user:ann").url.partition("#")[2]
    answer = await eve.post("/ui/login", {"token": token}, host="aegis.example", origin="https://aegis.example")
    assert answer.headers["set-cookie"].endswith("; Secure")


@pytest.mark.parametrize("token", ["", "x", APPROVER_KEY[:-1], READ_TOKEN, API_TOKEN + "x", "\0", "a" * 4000, "é"])
async def test_what_is_no_approvers_does_not_open_it(eve: Browser, token: str) -> None:
    answer = await eve.logs_in(token or " ")
    assert (answer.status, eve.cookie) == (403, "")


@pytest.mark.parametrize(("token", "name"), [(API_TOKEN, "the API token"), (APPROVER_KEY, "the approver key")])
async def test_an_approvers_credential_opens_it_too(eve: Browser, token: str, name: str) -> None:
    assert (await eve.logs_in(token)).status == 303
    assert name in (await eve.get("/ui")).text


async def test_the_approver_key_opens_it_from_this_machine_alone(house: House) -> None:
    body = urlencode({"token": APPROVER_KEY}).encode()
    answer = await ask(house.web.app, "POST", "/ui/login", headers=FORM, body=body, peer=STRANGER)
    assert answer.status == 403
    proxied = {**FORM, "x-forwarded-for": STRANGER}
    assert (await ask(house.web.app, "POST", "/ui/login", headers=proxied, body=body)).status == 403


async def test_an_open_api_opens_no_inbox(house: House, eve: Browser) -> None:
    house.access = Access(insecure_open_api=True)
    assert (await ask(house.web.app, "GET", "/api/v1/agents")).status == 200
    for path in GETS:
        assert b"amy" not in (answer := await eve.get(path)).body
        assert answer.status in (303, 401)
    assert (await eve.logs_in(" ")).status == 403


async def test_a_token_that_is_changed_ends_what_it_began_and_nothing_else(
    house: House, ann: Browser, eve: Browser
) -> None:
    mallory = Browser(house)
    await mallory.logs_in(API_TOKEN)
    await eve.logs_in(APPROVER_KEY)
    house.access = Access(api_token=Secret("another-token-0123456789"))
    answers = [await browser.get("/ui/state") for browser in (ann, eve, mallory)]
    assert [answer.status for answer in answers] == [200, 200, 303]
    assert len(house.governor.logins) == 2


async def test_a_cookie_that_another_port_was_sent_decides_nothing(house: House, eve: Browser) -> None:
    ticket = house.asks()
    token = house.governor.invite("ann", "user:ann").url.partition("#")[2]
    answer = await eve.post("/ui/login", {"token": token}, accept="application/json")
    assert answer.status == 200
    thief = Browser(house)
    thief.cookie = answer.headers["set-cookie"].partition(";")[0]
    shown = "".join([(await thief.get(page)).text for page in ("/ui", "/ui/agents", f"/ui/tickets/{ticket.call_id}")])
    assert 'name="csrf" value=""' in shown
    assert answer.json["csrf"] not in shown
    for guess in ("", thief.cookie.partition("=")[2], token):
        done = await thief.post(f"/ui/tickets/{ticket.call_id}", {"csrf": guess, "action": "approve"})
        assert done.status == 403
    assert ticket.state == "pending"
    told = await thief.post(f"/ui/tickets/{ticket.call_id}", {"action": "approve"}, accept="application/json")
    assert "aegis ui" in told.json["hint"]
    eve.cookie = thief.cookie
    await eve.post(f"/ui/tickets/{ticket.call_id}", {"csrf": answer.json["csrf"], "action": "approve"})
    assert [state for _, state, *_ in house.state()[0]] == ["approved"]


async def test_who_is_led_out_is_told_that_the_session_is_over(eve: Browser) -> None:
    assert "Your session is over" in (await eve.get("/ui/login?ended")).text
    assert "Your session is over" not in (await eve.get("/ui/login")).text


async def test_a_stranger_that_guesses_is_not_listened_to(house: House) -> None:
    async def tries(token: str, peer: str = STRANGER) -> Answer:
        body = urlencode({"token": token}).encode()
        return await ask(house.web.app, "POST", "/ui/login", headers=FORM, body=body, peer=peer)

    for _ in range(20):
        assert (await tries("wrong")).status == 403
    blocked = await tries(API_TOKEN)
    assert (blocked.status, "set-cookie" in blocked.headers) == (429, False)
    assert 0 < int(blocked.headers["retry-after"]) <= 61
    assert (await tries(API_TOKEN, "198.51.100.7")).status == 303, "others are not kept out by it"


async def test_programs_of_this_machine_cannot_keep_its_person_out(eve: Browser) -> None:
    for _ in range(40):
        assert (await eve.logs_in("wrong")).status == 403
    assert (await eve.logs_in()).status == 303


async def test_another_page_cannot_log_anybody_in(house: House, eve: Browser) -> None:
    token = house.governor.invite("ann", "user:ann").url.partition("#")[2]
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec_fetch_site": "cross-site"}):
        answer = await eve.post("/ui/login", {"token": token}, **headers)
        assert (answer.status, "set-cookie" in answer.headers) == (403, False)
    assert (await eve.logs_in(token)).status == 303, "and its token is still good"


# --- without a session ------------------------------------------------------------------------------------------------


def walk() -> Iterator[tuple[str, dict[str, str]]]:
    for cookie in ("", f"{COOKIE}=", f"{COOKIE}=wrong", f"{COOKIE}={'a' * 43}", f"{COOKIE}={'a' * 5000}", "x=1"):
        for token in ("", API_TOKEN, APPROVER_KEY):
            headers = {"cookie": cookie} if cookie else {}
            if token:
                headers["authorization"] = f"Bearer {token}"
            yield f"{cookie[:20]}/{token[:4]}", headers


@pytest.mark.parametrize("headers", [headers for _, headers in walk()], ids=[name for name, _ in walk()])
async def test_without_a_session_nothing_is_told_and_nothing_done(house: House, headers: dict[str, str]) -> None:
    ticket = house.asks({"text": "the secret of amy"})
    before = house.state()
    for path in [*GETS, f"/ui/tickets/{ticket.call_id}", "/ui/nothing", "/ui/static/../routes.py"]:
        answer = await ask(house.web.app, "GET", path, headers=headers)
        assert answer.status in (303, 401, 404)
        assert answer.headers.get("location") in ("/ui/login", None)
        assert not re.search(rb"amy|secret|publish|blog", answer.body)
    for path in [*POSTS, f"/ui/tickets/{ticket.call_id}"]:
        body = urlencode({"action": "approve", "csrf": ""}).encode()
        answer = await ask(house.web.app, "POST", path, headers={**FORM, **headers}, body=body)
        assert answer.status in (303, 401)
        assert "set-cookie" not in answer.headers
    assert house.state() == before


async def test_programs_are_told_so_rather_than_led_to_the_door(eve: Browser) -> None:
    assert (await eve.get("/ui/state", accept="application/json")).status == 401
    assert (await eve.get("/ui/events", accept="text/event-stream")).status == 401


async def test_a_session_holds_under_its_own_name_alone(ann: Browser) -> None:
    assert (await ann.get("/ui")).status == 200
    for host in ("localhost:18070", "127.0.0.1:9999", "aegis.example"):
        assert (await ann.get("/ui", host=host)).status == 303


async def test_a_session_ends_when_its_person_says_so(ann: Browser) -> None:
    answer = await ann.does("/ui/logout")
    assert (answer.status, "Max-Age=0" in answer.headers["set-cookie"]) == (303, True)
    assert (await ann.get("/ui")).status == 303


async def test_all_sessions_and_invitations_end_at_once(house: House, ann: Browser) -> None:
    bob, late = Browser(house), house.governor.invite("carl", "user:carl").url.partition("#")[2]
    await bob.logs_in()
    assert house.governor.logins.end_all() == 2
    for browser in (ann, bob):
        assert (await browser.get("/ui")).status == 303
    assert (await Browser(house).logs_in(late)).status == 403


class Time:
    def __init__(self) -> None:
        self.now = 0.0
        self.made = 0

    def __call__(self) -> float:
        return self.now

    def secret(self) -> str:
        self.made += 1
        return f"secret {self.made}"


def test_tokens_and_sessions_grow_old() -> None:
    time = Time()
    logins = Logins(time, time.secret)
    ann = Person("ann", "user:ann")
    token = logins.invite(ann)
    time.now += sessions.TOKEN_S
    assert logins.redeem(token) is None
    token = logins.invite(ann)
    time.now += sessions.TOKEN_S - 1
    assert logins.redeem(token) == ann
    assert logins.redeem(token) is None
    cookie, session = logins.begin(ann, "A:1")
    assert logins.find(cookie, "a:1") is session
    assert logins.find(cookie, "a:2") is None
    time.now += sessions.SESSION_S
    assert (logins.find(cookie, "a:1"), logins.good(session), len(logins)) == (None, False, 0)


def test_nobody_can_fill_the_memory_with_logins() -> None:
    time = Time()
    logins = Logins(time, time.secret)
    ann = Person("ann", "user:ann")
    tokens = [logins.invite(ann) for _ in range(sessions.TOKENS + 1)]
    assert logins.redeem(tokens[0]) is None
    assert logins.redeem(tokens[-1]) == ann
    begun = [logins.begin(ann, "a") for _ in range(sessions.SESSIONS + 1)]
    assert len(logins) == sessions.SESSIONS
    assert not logins.good(begun[0][1])
    assert logins.find(begun[-1][0], "a") is not None


def test_what_opens_a_session_is_kept_nowhere() -> None:
    time = Time()
    logins = Logins(time, time.secret)
    token = logins.invite(Person("ann", "user:ann"))
    cookie, _ = logins.begin(Person("ann", "user:ann"), "a")
    kept = repr((logins._tokens, logins._sessions))
    assert token not in kept
    assert f"'{cookie}'" not in kept


# --- who may ask for a login ------------------------------------------------------------------------------------------


def caller(*, present: bool = True) -> api.Caller:
    return api.Caller(uid=0, pid=1, permits=api.ALL, present=lambda: present)


async def asks_in(house: House, line: bytes = b'{"verb":"ui_login"}', **more: Any) -> Any:
    found = api.call(house.governor, caller(**more), line)
    assert not isinstance(found, AsyncIterator)
    return await found


async def test_a_person_is_given_a_way_in(house: House, eve: Browser) -> None:
    login = await asks_in(house)
    assert login.url.startswith("http://127.0.0.1:18070/ui/login#")
    assert login.url not in repr(login), "no log shows it"
    assert (await eve.logs_in(login.url.partition("#")[2])).status == 303
    assert (await asks_in(house, b'{"verb":"ui_login","args":{"end":true}}')).ended == 1
    assert (await eve.get("/ui")).status == 303


async def test_an_agents_shell_is_not(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house.governor, "may_decide", lambda pid, key: None if key == "right" else "it is an agent's")
    for end in (b"false", b"true"):
        with pytest.raises(api.Forbidden, match="an agent's"):
            await asks_in(house, b'{"verb":"ui_login","args":{"end":' + end + b"}}")
    assert (await asks_in(house, b'{"verb":"ui_login","args":{"key":"right"}}')).url
    monkeypatch.setattr(house.governor, "may_decide", lambda pid, key: None)
    with pytest.raises(api.Forbidden, match="is gone"):
        await asks_in(house, present=False)


async def test_where_nothing_is_served_there_is_no_way_in(house: House) -> None:
    house.governor._http = lambda: None
    with pytest.raises(api.Unavailable, match="no inbox"):
        await asks_in(house)
    house.governor._http = lambda: "0.0.0.0:18070"
    assert (await asks_in(house)).url.startswith("http://127.0.0.1:18070/ui/")


# --- what a page may do -----------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Everything that could make a browser do something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs).get("src") or "inline")
        if tag in ("style", "iframe", "object", "embed", "img", "base"):
            self.wrong.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name in ("style", "srcdoc"):
                self.wrong.append(f"{tag} {name}")
            if name in ("href", "src", "action", "formaction") and not (value or "").startswith(("/ui", "#")):
                self.wrong.append(f"{tag} {name}={value}")


def harmless(text: str) -> None:
    tags = Tags(text)
    assert tags.wrong == []
    assert [urlsplit(src).path for src in tags.scripts] == ["/ui/static/app.js"]
    for raw in ("<script>alert", "<img", "\u202e", "\u200b", "49&amp;"):
        assert raw not in text


async def test_every_answer_carries_the_policy(house: House, ann: Browser, eve: Browser) -> None:
    ticket = house.asks()
    answers = [await ann.get(path) for path in GETS if not path.endswith("/events")]
    answers += [
        await eve.get("/ui"),
        await eve.get("/ui/login"),
        await eve.logs_in("wrong"),
        await eve.get("/ui/static/app.css"),
    ]
    answers += [await eve.post("/ui/login", {}, origin="https://evil.example"), await ann.get("/ui/static/none")]
    answers += [await ann.does(f"/ui/tickets/{ticket.call_id}", action="approve"), await ann.post("/ui/logout", {})]
    for answer in answers:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert (
            "no-store" in answer.headers["cache-control"]
            or "static" in answer.body.decode("utf-8", "replace")
            or answer.status in (200, 404)
        )
    assert "'unsafe" not in POLICY
    assert "script-src 'self'" in POLICY


async def test_static_files_are_these_and_cached_by_what_is_in_them(eve: Browser) -> None:
    assert (await eve.get("/ui/static/app.js")).headers["cache-control"] == "no-cache"
    pinned = await eve.get(f"/ui/static/app.js?v={routes.fingerprint()}")
    assert "immutable" in pinned.headers["cache-control"]
    for path in ("../routes.py", "%2e%2e/routes.py", "app.js/", "", "APP.JS", "app.js%00"):
        assert (await eve.get(f"/ui/static/{path}")).status == 404


async def test_only_a_page_of_the_session_can_send_a_form(house: House, ann: Browser) -> None:
    ticket = house.asks()
    bob = Browser(house)
    await bob.logs_in()
    place, right = f"/ui/tickets/{ticket.call_id}", await ann.csrf()
    for fields, headers in (
        ({"csrf": ""}, {}),
        ({"csrf": right[:-1]}, {}),
        ({"csrf": await bob.csrf()}, {}),
        ({}, {}),
        ({"csrf": right}, {"origin": "https://evil.example"}),
        ({"csrf": right}, {"origin": "http://127.0.0.1:9999"}),
        ({"csrf": right}, {"sec_fetch_site": "same-site"}),
        ({"csrf": right}, {"sec_fetch_site": "cross-site"}),
        ({"csrf": right}, {"host": "evil.example"}),
    ):
        answer = await ann.post(place, {"action": "approve", **fields}, **headers)
        assert answer.status == 403
    for kind in ("application/json", "text/plain", "multipart/form-data"):
        answer = await ann.post(place, {"action": "approve", "csrf": right}, content_type=kind)
        assert answer.status == 415
    assert (await ann.post(f"{place}?csrf={right}&action=approve", {})).status == 403, "a link is no form"
    assert ticket.state == "pending"


async def test_what_agents_wrote_stays_text_on_every_page(logged: House) -> None:
    house, ann = logged, Browser(logged)
    await ann.logs_in()
    call = tool(HOSTILE, {HOSTILE: HOSTILE, "list": [HOSTILE, {HOSTILE: 1}]}, backend="blog", agent=HOSTILE)
    opened = house.desk.open(Hold(call, Ask(HOSTILE, 600.0), ()))
    assert isinstance(opened, Ticket)
    opened.client = HOSTILE
    house.records(2, agent=HOSTILE, name=HOSTILE, backend=HOSTILE, approver=HOSTILE, ticket="K7Q2", principal=HOSTILE)
    facts: dict[str, Any] = {"backend": HOSTILE, "method": "tools/call", "name": HOSTILE, "agent": HOSTILE}
    house.journal.append(Denied(call="d" * 32, stage="acl", reason=HOSTILE, policy=HOSTILE, **facts), HOSTILE.encode())
    house.journal.append(Intent(call="e" * 32, **facts), json.dumps({HOSTILE: HOSTILE}).encode())
    house.journal.append(Outcome(call="e" * 32, status="error", error_message=HOSTILE), HOSTILE.encode())
    house.lanes.hold("blog", ("f" * 32, HOSTILE, HOSTILE))
    house.governor.pause(None, by=HOSTILE, note=HOSTILE)
    await house.governor._writer.flush()
    pages = [
        "/ui",
        f"/ui/tickets/{call.id}",
        "/ui/live",
        "/ui/limits",
        "/ui/queue",
        "/ui/tools",
        "/ui/audit",
        "/ui/agents",
    ]
    pages += [
        f"/ui/audit/{'d' * 32}",
        f"/ui/audit/{'e' * 32}",
        f"/ui/audit?{urlencode({'tool': HOSTILE, 'since': HOSTILE})}",
    ]
    pages += [
        f"/ui/audit/{quote(HOSTILE[:100], safe='')}",
        f"/ui/audit?{urlencode({'agent': HOSTILE, 'text': HOSTILE})}",
    ]
    for page in pages:
        answer = await ann.get(page)
        harmless(answer.text)
    for page in ("/ui", f"/ui/tickets/{call.id}", "/ui/live", "/ui/queue", "/ui/audit"):
        assert "&lt;script&gt;" in (await ann.get(page)).text, "and it is shown"
    rejected = await ann.does(f"/ui/tickets/{call.id}", action="reject", reason=HOSTILE)
    harmless(rejected.text)
    assert opened.note == HOSTILE.strip()


async def test_whoever_logged_in_is_shown_as_text_too(house: House) -> None:
    browser = Browser(house)
    await browser.logs_in(house.governor.invite(HOSTILE, f"user:{HOSTILE}").url.partition("#")[2])
    harmless((await browser.get("/ui")).text)


# --- deciding ---------------------------------------------------------------------------------------------------------


async def test_a_card_and_a_page_say_that_it_is_not_the_server_approved_before(house: House, ann: Browser) -> None:
    ticket = house.asks()
    assert "data-unlike" not in (await ann.get("/ui")).text
    ticket.command, ticket.unlike = "db", "<PATH> (new)"
    assert (
        "data-unlike>not the server approved before; different: <code>&lt;PATH&gt; (new)</code>"
        in (await ann.get("/ui")).text
    )
    assert (
        "<dt>Not the server approved before; different</dt><dd>&lt;PATH&gt; (new)</dd>"
        in (await ask(house.web.app, "GET", house.link(ticket, "approve"))).text
    )


async def test_a_person_approves_from_a_card(house: House, ann: Browser) -> None:
    ticket = house.asks({"text": "hi", "path": "/etc/passwd"})
    text = (await ann.get("/ui")).text
    assert f'data-ticket="{ticket.id}" data-call="{ticket.call_id}"' in text
    assert text.index("/etc/passwd") < text.index("&#34;hi&#34;"), "what may do harm stands first"
    answer = await ann.does(f"/ui/tickets/{ticket.call_id}", action="approve", reason="looks right")
    assert (answer.status, ticket.state, ticket.by, ticket.via, ticket.note) == (
        200,
        "approved",
        "ann",
        "ui",
        "looks right",
    )
    assert [vote.voter for vote in ticket.votes] == ["user:ann"]
    assert "approved by ann" in answer.text
    assert "Nothing waits for you" in (after := (await ann.get("/ui")).text)
    assert f'data-agreed="{ticket.id}"' in after


async def test_a_script_is_told_in_json(house: House, ann: Browser) -> None:
    ticket, place = house.asks(), ""
    place = f"/ui/tickets/{ticket.call_id}"
    fields = {"csrf": await ann.csrf(), "action": "reject", "reason": "not today"}
    told = (await ann.post(place, fields, accept="application/json")).json
    assert told == {"state": "rejected", "said": "rejected by ann", "pending": 0, "grant": None}
    again = await ann.post(place, fields, accept="application/json")
    assert (again.status, again.json["code"]) == (409, "conflict")
    assert "was rejected by ann" in again.json["error"]


async def test_for_15_minutes_makes_a_grant(house: House, ann: Browser) -> None:
    ticket = house.asks({"text": "hi"})
    answer = await ann.does(f"/ui/tickets/{ticket.call_id}", action="approve_15m")
    assert "for 15 minutes" in answer.text
    (grant,) = house.governor.grants()
    assert (grant.agent_id, grant.tool_name, json.loads(grant.arguments), grant.by) == (
        "amy",
        "publish",
        {"text": "hi"},
        "ann",
    )
    assert f'data-grant="{grant.id}"' in (await ann.get("/ui/limits")).text
    assert (await ann.does(f"/ui/grants/{grant.id}")).headers["location"] == "/ui/limits"
    assert not house.governor.grants()


@pytest.mark.parametrize("action", ["", "Approve", "approve_1d", "delete"])
async def test_what_is_no_decision_decides_nothing(house: House, ann: Browser, action: str) -> None:
    ticket = house.asks()
    assert (await ann.does(f"/ui/tickets/{ticket.call_id}", action=action)).status == 400
    assert (await ann.does(f"/ui/tickets/{ticket.id}", action="approve")).status == 400, "short ids are given out again"
    twice = await ann.post(f"/ui/tickets/{ticket.call_id}", {"csrf": await ann.csrf(), "action": "reject"} | {})
    assert (twice.status, ticket.state) == (200, "rejected")


async def test_a_field_that_comes_twice_is_no_form(house: House, ann: Browser) -> None:
    ticket = house.asks()
    body = f"csrf={await ann.csrf()}&action=reject&action=approve".encode()
    headers = {"cookie": ann.cookie, "origin": OUR_ORIGIN, **FORM}
    answer = await ask(house.web.app, "POST", f"/ui/tickets/{ticket.call_id}", headers=headers, body=body)
    assert (answer.status, ticket.state) == (400, "pending")


async def test_a_long_call_is_decided_where_all_of_it_is_seen(house: House, ann: Browser) -> None:
    ticket = house.asks({"text": "x" * present.LONG, "last": "the end"})
    card = (await ann.get("/ui")).text
    assert "the end" not in card
    assert "data-decide" not in card
    assert f'href="/ui/tickets/{ticket.call_id}"' in card
    whole = (await ann.get(f"/ui/tickets/{ticket.call_id}")).text
    assert "the end" in whole
    assert "data-decide" in whole


async def test_arguments_are_laid_out_beside_the_loop_and_long_ones_only_where_they_are_shown(
    house: House, ann: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[tuple[int, int]] = []

    def laid_out(rows: Any, really: Any = present.laid_out) -> Any:
        threads.append((threading.get_ident(), len(rows[0].value)))
        return really(rows)

    monkeypatch.setattr(present, "laid_out", laid_out)
    long = house.asks({"text": "x" * 30_000})
    house.asks({"text": "y"})
    await ann.get("/ui")
    assert [size for _, size in threads] == [3]
    await ann.get(f"/ui/tickets/{long.call_id}")
    assert [size for _, size in threads] == [3, 30_002]
    assert threading.get_ident() not in [thread for thread, _ in threads]


async def test_ten_thousand_that_wait_are_no_long_page(house: House, ann: Browser) -> None:
    for number in range(300):
        house.asks({"text": str(number)})
    text = (await ann.get("/ui")).text
    assert text.count("data-ticket=") == routes.CARDS
    assert "and 250 more" in text
    assert 'data-pending="300"' in text


async def test_a_ticket_that_is_gone_says_how(house: House, ann: Browser) -> None:
    ticket = house.asks()
    await house.governor.decide(ticket.call_id, False, by="bob", via="cli", note="")
    answer = await ann.get(f"/ui/tickets/{ticket.call_id}")
    assert answer.status == 404
    assert "was rejected by bob" in answer.text


# --- the other pages --------------------------------------------------------------------------------------------------


async def test_limits_are_gauges(house: House, ann: Browser) -> None:
    text = (await ann.get("/ui/limits")).text
    assert text.count('<svg class="chart gauge"') == len(house.governor.limits(None, None, None))
    assert "<b>0</b> of 5 in 1m" in text


async def test_of_many_limits_and_agents_those_in_use_come_first_and_others_are_found_by_name(
    house: House, ann: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        row.model_copy(update={"agent_id": f"bot{at}", "tool": f"t{at}<", "current": at % 5})
        for at, row in enumerate([house.governor.limits(None, None, None)[0]] * 350)
    ]
    monkeypatch.setattr(house.governor, "limits", lambda *_: rows)
    text = (await ann.get("/ui/limits")).text
    assert text.count('<svg class="chart gauge"') == routes.LIMITS
    assert "and 50 more, used less than these" in text
    most = rows[0].max_count
    assert text.index(f"<b>4</b> of {most}") < text.index(f"<b>3</b> of {most}")
    text = (await ann.get("/ui/limits?name=t349%3C")).text
    assert (text.count('<svg class="chart gauge"'), 'value="t349&lt;"' in text) == (1, True)
    assert "No limit" in (await ann.get("/ui/limits?name=nothing")).text
    amy = next(agent for agent in house.governor.agents() if agent.id == "amy")
    many = [*(amy.model_copy(update={"id": f"bot{at:03}"}) for at in range(150)), amy]
    monkeypatch.setattr(house.governor, "agents", lambda: many)
    await ann.does("/ui/agents/amy", action="pause", note="a moment")
    text = (await ann.get("/ui/agents")).text
    assert (text.count("data-agent="), "and 51 more" in text) == (routes.AGENTS, True)
    assert text.index('data-agent="amy"') < text.index('data-agent="bot000"'), "who is paused stands first"
    assert re.findall(r'data-agent="(\w+)"', (await ann.get("/ui/agents?name=bot14")).text) == [
        f"bot14{at}" for at in range(10)
    ]


async def test_a_place_in_the_queue_is_given_up(house: House, ann: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [house.lanes.hold("blog", (f"{number:032x}", "amy", "publish")) for number in range(2)]
    for turn in turns:
        turn.ready()  # type: ignore[union-attr]
    text = (await ann.get("/ui/queue")).text
    assert text.count("data-call=") == 2
    assert text.count('value="cancel"') == 1, "what runs cannot be called back"
    gone: list[str] = []
    monkeypatch.setattr(house.governor, "cancel_queued", lambda id: not gone.append(id) and id == f"{1:032x}")
    assert (await ann.does(f"/ui/queue/{1:032x}", action="cancel")).headers["location"] == "/ui/queue"
    assert (await ann.does(f"/ui/queue/{7:032x}", action="cancel")).status == 404
    assert gone == [f"{1:032x}", f"{7:032x}"]


async def test_agents_are_paused_and_go_on(house: House, ann: Browser) -> None:
    assert (await ann.does("/ui/agents/amy", action="pause", note="a moment")).headers["location"] == "/ui/agents"
    assert [(row.agent_id, row.by) for row in house.governor.status().paused] == [("amy", "ann")]
    assert "<b>amy</b> is paused" in (await ann.get("/ui")).text
    assert (await ann.does("/ui/agents/amy", action="resume")).status == 303
    assert (await ann.does("/ui/agents", action="pause", note="stop")).status == 303
    assert "Everything is paused" in (await ann.get("/ui/live")).text
    assert (await ann.does("/ui/agents", action="resume")).status == 303
    assert house.governor.status().paused == ()
    assert (await ann.does("/ui/agents/nobody", action="pause")).status == 404
    assert (await ann.does("/ui/agents/amy", action="delete")).status == 400


async def test_the_log_is_searched_and_paged(logged: House) -> None:
    house, ann = logged, Browser(logged)
    await ann.logs_in()
    house.records(60)
    house.records(1, name="write", agent="bob")
    text = (await ann.get("/ui/audit")).text
    assert text.count("data-call=") == routes.PAGE
    older = re.findall(r'rel="next" href="([^"]+)"', text)[0].replace("&amp;", "&")
    assert (await ann.get(older)).text.count("data-call=") == 11
    text = (await ann.get("/ui/audit?agent=bob&tool=wri*")).text
    assert text.count("data-call=") == 1
    found = re.findall(r'href="(/ui/audit/[0-9a-f]{32})"', text)[0]
    story = (await ann.get(found)).text
    for told in ("<b>intent</b>", "<b>outcome</b>", "&#34;/x&#34;", "recorded to"):
        assert told in story
    assert "No call is like this" in (await ann.get("/ui/audit?agent=eve")).text
    assert "is no time" in (await ann.get("/ui/audit?since=yesterday")).text
    for odd in ("before=x", "before=-1", f"before={'9' * 40}", "status=%00", "x=1"):
        assert (await ann.get(f"/ui/audit?{odd}")).status == 200
    assert (await ann.get(f"/ui/audit/{'0' * 31}f")).status in (200, 404)
    assert (await ann.get("/ui/audit/nothing")).status == 404


async def test_the_log_is_narrowed_by_what_people_remember_and_says_how_far_it_is_sound(logged: House) -> None:
    house, ann = logged, Browser(logged)
    await ann.logs_in()
    house.records(3)
    house.journal.append(
        Denied(call="d" * 32, agent="bob", backend="files", method="tools/call", name="drop", stage="acl",
               policy="deny.tools", reason="no"), b'{"of":"lost keys"}',
    )  # fmt: skip
    text = (await ann.get("/ui/audit")).text
    assert text.count("data-call=") == 4
    assert "signed to" not in text  # nothing signs here
    for query, count in (
        ("policy=deny.*", 1), ("policy=hours", 0), ("stage=acl", 1), ("status=denied", 1), ("status=allowed", 3),
        ("status=asked", 0), ("status=nonsense", 4), ("text=KEYS", 1), ("text=KEYS&within=results", 0),
        ("text=keys&within=nowhere", 1), ("approver=ann", 0),
    ):  # fmt: skip
        assert (await ann.get(f"/ui/audit?{query}")).text.count("data-call=") == count, query
    assert 'name="policy" value="deny.*"' in (await ann.get("/ui/audit?policy=deny.*")).text
    story = (await ann.get(f"/ui/audit/{'d' * 32}")).text
    assert "refused at acl by deny.tools: no" in story


async def test_the_log_tells_its_figures_and_how_far_it_was_verified(
    logged: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, ann = logged, Browser(logged)
    await ann.logs_in()
    house.records(3)
    assert house.writer is not None
    await house.writer.flush()
    looks = Checking(house.at / "audit.db", lambda: house.journal.ingested_seq)
    monkeypatch.setattr(house.governor, "_checking", looks)
    await looks.look()
    text = (await ann.get("/ui/audit")).text
    assert f"verified to #{looks.verified}" in text
    assert 'class="chart bars"' in text
    assert "<script" not in text.partition("<main")[2]
    looks.fault = "edited: record 3 is <not> what it was"
    text = (await ann.get("/ui/audit")).text
    assert "record 3 is &lt;not&gt; what it was" in text
    assert any("aegis audit verify" in warning for warning in house.governor.status().warnings)
    assert 'class="chart bars"' not in (await ann.get("/ui/audit?agent=bob")).text  # figures are of everything


@pytest.mark.parametrize(
    ("stage", "next_"),
    [("acl", "aegis allow"), ("rate_limit", "aegis limits grant"), ("paused", "Resume it"), ("policy", "")],
)
async def test_a_refused_calls_story_says_what_to_do_next(logged: House, stage: str, next_: str) -> None:
    ann = Browser(logged)
    await ann.logs_in()
    call = tool("read")
    logged.journal.append(
        Denied(
            acl="denied", agent="amy", approval="not_required", backend="files", call=call.id, code=-32001, era="legacy",
            method="tools/call", name=HOSTILE, principal="amy", reason="no", request="7", session="s1", stage=stage,
        ),
        b"{}",
    )  # fmt: skip
    text = (await ann.get(f"/ui/audit/{call.id}")).text
    found = re.findall(r"<dd data-next>(.*?)</dd>", text)
    assert bool(found) == bool(next_)
    assert not found or (next_ in found[0] and "script" not in found[0])


async def test_a_call_that_waits_leads_to_where_it_is_decided(logged: House) -> None:
    ann = Browser(logged)
    await ann.logs_in()
    ticket = logged.asks()
    logged.journal.append(
        record.Hold(
            acl="allowed", agent="amy", approval="pending", backend="blog", call=ticket.call_id, method="tools/call", name="publish", principal="amy", request="7", session="s1", ticket=ticket.id,
        ),
        b"{}",
    )  # fmt: skip
    for page in ("/ui/live", "/ui/audit", f"/ui/audit/{ticket.call_id}"):
        assert f'href="/ui/tickets/{ticket.call_id}">waits for you' in (await ann.get(page)).text


async def test_tools_and_figures_come_from_the_log(logged: House) -> None:
    house, ann = logged, Browser(logged)
    await ann.logs_in()
    house.records(5)
    await house.governor._writer.flush()
    text = (await ann.get("/ui/tools")).text
    assert 'data-tool="read"' in text
    assert "2.5 ms" in text
    text = (await ann.get("/ui")).text
    assert text.count('<svg class="chart bars"') == 1
    assert "5 calls in 24 hours, 0 of them refused" in text


async def test_without_a_log_the_inbox_is_still_there(house: House, ann: Browser) -> None:
    house.asks()
    text = (await ann.get("/ui")).text
    assert "data-ticket=" in text
    assert "no audit store" in text
    for path in ("/ui/live", "/ui/tools", "/ui/audit"):
        assert (await ann.get(path)).status == 200


async def test_a_store_that_hangs_holds_up_no_decision(logged: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house, ann = logged, Browser(logged)
    await ann.logs_in()
    monkeypatch.setattr(routes, "FIGURES_WAIT_S", 0.05)

    async def hangs(*_: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(house.governor, "figures", hangs)
    monkeypatch.setattr(house.governor, "recent_calls", hangs)
    ticket = house.asks()
    text = (await asyncio.wait_for(ann.get("/ui"), 5)).text
    assert f'data-ticket="{ticket.id}"' in text
    assert "being counted" in text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods_are_not_taken(house: House, ann: Browser, method: str) -> None:
    answer = await ask(house.web.app, method, "/ui/agents", headers={"cookie": ann.cookie})
    assert answer.status == 405


async def test_head_shows_no_more_than_get(house: House, ann: Browser) -> None:
    assert (await ask(house.web.app, "HEAD", "/ui", headers={"cookie": ann.cookie})).status == 200
    assert (await ask(house.web.app, "HEAD", "/ui")).status == 303


async def test_a_fault_of_ours_is_a_500_that_tells_nothing(
    house: House, ann: Browser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(house.governor, "queue", fails)
    answer = await ann.get("/ui/queue")
    assert answer.status == 500
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text


# --- the stream -------------------------------------------------------------------------------------------------------


class Streamed:
    """An answer that goes on."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self.more = asyncio.Event()
        self.over = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.text += message["body"].decode()
            self.over = not message.get("more_body", False)
        self.more.set()

    async def shows(self, text: str) -> str:
        async with asyncio.timeout(5):
            while text not in self.text:
                self.more.clear()
                await self.more.wait()
        return self.text

    def events(self) -> list[tuple[str, int, Any]]:
        found = re.findall(r"^event: (\w+)\nid: (\d+)\ndata: (.*)\n\n", self.text, re.M)
        return [(name, int(number), json.loads(data)) for name, number, data in found]


@asynccontextmanager
async def streaming(browser: Browser, target: str = "/ui/events?calls=1", **headers: str) -> AsyncIterator[Streamed]:
    shown, left = Streamed(), asyncio.Event()

    async def receive() -> Any:
        await left.wait()
        return {"type": "http.disconnect"}

    split = urlsplit(target)
    pairs = {"host": "127.0.0.1:18070", "cookie": browser.cookie, "accept": "text/event-stream"}
    pairs |= {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": split.path, "raw_path": split.path.encode(), "query_string": split.query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in pairs.items()],
        "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 18070),
    }  # fmt: skip
    task = asyncio.ensure_future(browser.house.web.app(scope, receive, shown.send))
    try:
        yield shown
    finally:
        left.set()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 5)


async def test_what_happens_is_seen_at_once(house: House, ann: Browser) -> None:
    async with streaming(ann) as shown:
        await shown.shows("event: sync")
        assert (shown.status, shown.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert shown.headers["content-security-policy"] == POLICY
        ticket = house.asks({"text": "a secret"})
        await shown.shows('"event":"opened"')
        house.records(1)
        await shown.shows('"state":"success"')
        await house.governor.decide(ticket.call_id, False, by="bob<b>", via="cli", note="")
        await shown.shows('"event":"decided"')
        events = shown.events()
    assert [number for _, number, _ in events] == list(range(1, len(events) + 1))
    assert events[0] == ("sync", 1, {"pending": 0, "changed": 0})
    assert shown.text.startswith("retry: 3000\n\n")
    decided = next(data for name, _, data in events if name == "ticket" and data["event"] == "decided")
    assert (decided["call_id"], decided["state"], decided["by"], decided["pending"]) == (
        ticket.call_id,
        "rejected",
        "bob<b>",
        0,
    )
    assert "a secret" not in shown.text
    calls = [data for name, _, data in events if name == "call"]
    assert [(row["state"], row["agent_id"], row["tool_name"]) for row in calls] == [
        ("running", "amy", "read"), ("success", "amy", "read"),
    ]  # fmt: skip
    assert calls[1]["duration_us"] == 2500


async def test_a_page_that_comes_back_goes_on_counting_and_looks_anew(house: House, ann: Browser) -> None:
    house.asks()
    async with streaming(ann, last_event_id="41") as shown:
        await shown.shows('"event":"opened"')
        assert shown.events()[0] == ("sync", 42, {"pending": 1, "changed": 0})
    async with streaming(ann, last_event_id="x" * 99) as shown:
        await shown.shows("event: sync")
        assert shown.events()[0][1] == 1


async def test_a_silent_stream_lives(ann: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BEAT_S", 0.01)
    async with streaming(ann) as shown:
        await shown.shows(": alive\n\n: alive")


async def test_a_stream_ends_with_its_session(house: House, ann: Browser) -> None:
    async with streaming(ann) as shown:
        await shown.shows("event: sync")
        house.governor.logins.end_all()
        await shown.shows("event: bye")
        house.asks({"text": "later"})
        await asyncio.sleep(0)
        assert '"event":"opened"' not in shown.text


async def test_nobody_watches_once_everybody_left(house: House, ann: Browser) -> None:
    async with streaming(ann) as one, streaming(ann) as two:
        await one.shows("event: sync")
        await two.shows("event: sync")
        house.records(1)
        await two.shows('"state":"success"')
        assert house.governor._feed.watchers == 2
    assert house.governor._feed.watchers == 0
    assert house.journal.listener is None
    assert house.governor._watchers == set()
    assert house.web._ui is not None
    assert house.web._ui.streams == 0


async def test_too_many_open_pages_are_told_so(house: House, ann: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "STREAMS", 4)
    async with streaming(ann) as shown:
        await shown.shows("event: sync")
        refused = await ann.get("/ui/events", accept="text/event-stream")
        assert refused.status == 503
    assert house.web._ui is not None
    assert house.web._ui.streams == 0


async def test_a_slow_reader_loses_the_oldest_and_is_told(house: House, ann: Browser) -> None:
    async with streaming(ann) as shown:
        await shown.shows("event: sync")
        house.records(3000)
        await shown.shows("event: lost")
        await asyncio.sleep(0)
        lost = sum(data["lost"] for name, _, data in shown.events() if name == "lost")
        rows = [data["seq"] for name, _, data in shown.events() if name == "call"]
    assert lost + len(rows) >= 5000
    assert len(rows) < 1000
    assert rows == sorted(rows)
    assert rows[-1] == house.journal.last_seq


async def test_what_agents_wrote_is_visible_in_the_stream(house: House, ann: Browser) -> None:
    async with streaming(ann) as shown:
        await shown.shows("event: sync")
        house.records(1, name="pub\u202e\u200blish\n\nevent: bye", agent="amy")
        text = await shown.shows('"state":"success"')
    assert "\u202e" not in text
    assert "\nevent: bye" not in text
    row = next(data for name, _, data in shown.events() if name == "call")
    assert row["tool_name"] == "pub\\u202e\\u200blish\\n\\nevent: bye"


# --- the feed ---------------------------------------------------------------------------------------------------------


async def test_the_feed_tells_programs_too(house: House) -> None:
    events = api.call(house.governor, caller(), b'{"verb":"watch_calls"}')
    assert isinstance(events, AsyncIterator)
    coming = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    house.records(1)
    event = await asyncio.wait_for(coming, 5)
    assert (event.event, event.call.state, event.call.method) == ("call", "running", "tools/call")
    await events.aclose()  # type: ignore[attr-defined]


async def test_a_watcher_that_does_not_read_keeps_a_bounded_number(house: House) -> None:
    feed = Feed(house.journal, kept=10)
    events = feed.watch()
    coming = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    house.records(1)
    assert (await asyncio.wait_for(coming, 5)).call.state == "running"  # type: ignore[union-attr]
    house.records(50)
    (watcher,) = feed._watchers
    assert len(watcher.kept) == 10
    told = await anext(events)
    assert (told.event, told.lost) == ("lost", 91)
    rows = [(await anext(events)).call for _ in range(10)]
    assert [row.seq for row in rows if row is not None] == list(
        range(house.journal.last_seq - 9, house.journal.last_seq + 1)
    )
    await events.aclose()  # type: ignore[attr-defined]


async def test_refusals_and_asks_are_in_the_feed_and_nothing_that_is_no_call(house: House) -> None:
    events = Feed(house.journal).watch()
    coming = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    house.governor.pause("bob", by="ann", note="")
    denied = Denied(
        agent="amy", backend="blog", call="c" * 32, method="tools/call", name="x", stage="acl", reason="no", would=True
    )
    house.journal.append(denied, b"{}")
    row = (await asyncio.wait_for(coming, 5)).call
    assert row is not None
    assert (row.state, row.stage, row.detail, row.would) == ("denied", "acl", "no", True)
    await events.aclose()  # type: ignore[attr-defined]


# --- pictures and words -----------------------------------------------------------------------------------------------


def hours(**counts: int) -> list[shapes.HourBar]:
    return [shapes.HourBar(at="2026-03-01T12:00:00Z", **counts)] * 24


@pytest.mark.parametrize("counts", [{}, {"success": 1}, {"denied": 10**12, "error": 1}, {"waiting": 7, "unknown": 9}])
def test_bars_say_in_words_what_they_show(counts: dict[str, int]) -> None:
    drawn = charts.bars(hours(**counts), [f"{hour:02}:00" for hour in range(24)])
    assert drawn.count("<title>") == 25
    assert f"{24 * sum(counts.values())} calls in 24 hours" in drawn
    assert max((float(y) for y in re.findall(r'height="([\d.]+)" rx="1"', drawn)), default=0) <= 101
    assert min((float(y) for y in re.findall(r' y="(-?[\d.]+)"', drawn)), default=0) >= 0


def test_a_picture_holds_no_script_style_or_address() -> None:
    row = shapes.ToolRow(
        backend_id=HOSTILE, tool_name=HOSTILE, count=3, last_at="", success=1, denied=2, p50_us=10, p95_us=10**8
    )
    for drawn in (
        charts.mix(row), charts.spread(row, [row]), charts.gauge(3, 1, 5, HOSTILE), charts.gauge(0, 0, 0, ""),
        charts.histogram([0.0, 29.9, 10**9]), charts.heat([[0] * 24 for _ in range(7)]), charts.bars(hours(), [HOSTILE] * 24),
    ):  # fmt: skip
        tags = Tags(drawn)
        assert (tags.wrong, tags.scripts, "href" in drawn) == ([], [], False)
        assert 'role="img"><title>' in drawn
        assert "<desc>" in drawn


def test_risky_arguments_come_first_and_say_why() -> None:
    text = json.dumps(
        {"text": "hi", "dryRun": True, "userEmail": "x", "sql": "drop", "force": True, "note": "a\u200bb", "n\u202e": 1}
    )
    found = present.laid_out(present.parsed(text))
    assert [(row.name, row.risks) for row in found[:5]] == [
        ("userEmail", ("goes to somebody",)),
        ("sql", ("runs something",)),
        ("force", ("is switched on",)),
        ("note", ("has characters that cannot be seen",)),
        ("n\u202e", ("has characters that cannot be seen",)),
    ]
    assert [row.name for row in found[5:]] == ["text", "dryRun"]
    assert found[3].lines == ('"a\\u200bb"',)


@pytest.mark.parametrize("text", ["", "[1,2]", "nonsense", '{"a":', "[" * 5000, "{}"])
def test_arguments_that_are_no_object_are_shown_whole(text: str) -> None:
    found = present.laid_out(present.parsed(text))
    assert len(found) == (0 if text in ("", "{}") else 1)


def test_numbers_are_shown_as_they_will_run() -> None:
    found = present.laid_out(present.parsed('{"id":9007199254740993,"f":1e400,"d":1.10}'))
    assert [row.lines for row in found] == [("9007199254740993",), ("1e400",), ("1.10",)]


def test_what_changed_stands_before_what_did_not() -> None:
    rows = [
        shapes.Argument(name="a", value="1", change="same"),
        shapes.Argument(name="b", value="2", change="changed", was="1"),
        shapes.Argument(name="c", value="", change="gone", was='"x"'),
        shapes.Argument(name="path", value='"/"', change="same"),
    ]
    found = present.laid_out(rows)
    assert [row.name for row in found] == ["path", "b", "a", "c"]
    assert (found[1].was, found[3].lines, found[3].was) == (("1",), (), ('"x"',))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (3601, "1 h 1 s"), (90061, "1 d 1 h"), (-5, "0 s"), (754, "12 min 34 s")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert present.span(seconds) == text


def test_windows_are_for_people() -> None:
    assert [routes._window(text) for text in ("24h0m0s", "1m0s", "1h30m0s", "90s", "10s", "20m0s")] == [
        "24h", "1m", "1h30m", "90s", "10s", "20m",
    ]  # fmt: skip
