from __future__ import annotations

import asyncio
import html
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import until
from manage.webhouse import BASE, LINKS_KEY, House, ask, open_house
from standins.door import HOSTILE, Hands, notice
from standins.slack import APP, BOT, CHANNEL, SECRET, checked
from standins.slack import Slack as Service

from aegis_daemon.approvals.channels.notice import Heard, Trouble
from aegis_daemon.approvals.channels.slack import APPROVE, REJECT, SECTION_CHARS, Slack
from aegis_daemon.approvals.desk import NoSuchTicket
from aegis_daemon.approvals.notifier import Notifier, Settings
from aegis_daemon.approvals.ticket import Ticket
from aegis_daemon.backends.http_client import HttpPool
from aegis_daemon.daemon.channels import answer
from aegis_daemon.daemon.reach import DaemonReach
from aegis_daemon.loop.clock import wall
from aegis_daemon.manage.web import POSTED

Run = Callable[[Coroutine[Any, Any, Any]], Any]
NOW = 1_763_715_600.9
ANN = {"U0ANN": "ann"}


def app(service: Service, **more: Any) -> Slack:
    fields = {"bot_token": BOT, "channel": CHANNEL, "app_token": APP, "approvers": ANN, "api_url": service.api}
    return Slack(**{**fields, **more})


class Desk:
    """Hears, and says what became of it."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []

    async def __call__(self, heard: Heard) -> str:
        self.heard.append(heard)
        return f"{'approved' if heard.approve else 'rejected'} by {heard.by} <&>"


@asynccontextmanager
async def slack() -> AsyncIterator[tuple[Service, Hands]]:
    hands = Hands()
    try:
        async with Service() as service:
            yield service, hands
    finally:
        hands.close()


@asynccontextmanager
async def listening(channel: Slack, service: Service, hands: Hands) -> AsyncIterator[tuple[Any, Desk]]:
    desk = Desk()
    task = asyncio.ensure_future(channel.listen(hands, desk))
    try:
        yield await asyncio.wait_for(service.connected.get(), 5), desk
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def actions(message: Any) -> list[dict[str, Any]]:
    return [one for block in message["blocks"] if block["type"] == "actions" for one in block["elements"]]


def shown(message: Any) -> str:
    return html.unescape("\n".join(block["text"]["text"] for block in message["blocks"] if "text" in block))


# --- messages ---------------------------------------------------------------------------------------------------------


def test_a_webhook_gets_the_call_and_two_links(run: Run) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            channel = Slack(webhook_url=service.hook, approvers=ANN, app_token=APP)
            status, body = await hands.send(channel.post(notice(), NOW))
            assert (channel.fault(status, body), channel.handle(body), channel.answers) == (None, "", False)
            assert channel.closing(notice(), "C1 1.2", "approved by ann") is None
            (message,) = service.hooked
            assert [one["url"] for one in actions(message)] == ["https://a.example/?yes", "https://a.example/?no"]
            for text in ("amy", "publish_post", "files", "K7Q2", '{"title":"Grüße"}', "approval_required"):
                assert text in shown(message)
            assert (message["unfurl_links"], message["unfurl_media"]) == (False, False)

    run(go())


def test_a_bot_posts_buttons_and_its_message_says_in_the_end_how_it_ended(run: Run) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            channel = app(service)
            status, body = await hands.send(channel.post(notice(), NOW))
            assert channel.fault(status, body) is None
            ((ts, message),) = service.messages.items()
            assert [one["action_id"] for one in actions(message)][:2] == [APPROVE, REJECT]
            assert actions(message)[0]["value"] == f"{'ab' * 16}.p-roof_0123456ab"
            assert "confirm" in actions(message)[0], "a thumb that slips approves nothing"
            handle = channel.handle(body)
            assert handle == f"{CHANNEL} {ts}"
            closing = channel.closing(notice(), handle, "rejected by ann: `no` <!here>")
            assert closing is not None
            assert channel.fault(*await hands.send(closing)) is None
            assert actions(service.messages[ts]) == []
            assert "rejected by ann" in shown(service.messages[ts])
            assert channel.closing(notice(), "", "x") is None

    run(go())


@pytest.mark.parametrize(
    "without", [{"approvers": {}}, {"app_token": None}], ids=["nobody is mapped", "clicks do not come back"]
)
def test_without_somebody_who_may_and_a_way_to_hear_them_buttons_are_links(run: Run, without: Any) -> None:
    async def go() -> None:
        async with slack() as (service, _):
            channel = app(service, **without)
            assert not channel.answers
            assert all("url" in one for one in actions(json.loads(channel.post(notice(), NOW).body)))

    run(go())


@pytest.mark.parametrize(
    "changes",
    [{"arguments": json.dumps({"t": "x" * 4000, "hidden": 1})}, {"tool": "t" * 201}, {"agent": "\u202e" * 150}, {"arguments": '"' + "&" * 700 + '"'}, {"proof": ""}],
    ids=["arguments", "tool", "agent", "escapes", "no proof"],
)  # fmt: skip
def test_nobody_decides_in_the_chat_what_the_chat_does_not_show_whole(changes: Any) -> None:
    channel = Slack(bot_token=BOT, channel=CHANNEL, app_token=APP, approvers=ANN)
    message = checked(json.loads(channel.post(notice(**changes), NOW).body))
    assert all("url" in one for one in actions(message))


def test_a_test_message_has_no_buttons() -> None:
    for channel in (
        Slack(webhook_url="https://h.example"),
        Slack(bot_token=BOT, channel=CHANNEL, app_token=APP, approvers=ANN),
    ):
        test = notice(test=True, approve_url="", reject_url="", proof="")
        assert actions(checked(json.loads(channel.post(test, NOW).body))) == []


def test_what_an_agent_wrote_is_text_and_nothing_else() -> None:
    channel = Slack(bot_token=BOT, channel=CHANNEL, app_token=APP, approvers=ANN)
    hostile = notice(
        agent=HOSTILE, tool=HOSTILE, backend=HOSTILE, rule=HOSTILE, arguments=json.dumps([HOSTILE], ensure_ascii=False)
    )
    message = checked(json.loads(channel.post(hostile, NOW).body))
    texts = [message["text"], *(block["text"]["text"] for block in message["blocks"] if "text" in block)]
    assert not any("<!channel" in text or "<@" in text or "\u202e" in text for text in texts)
    (fenced,) = [text.removeprefix("```\n").removesuffix("\n```") for text in texts if text.startswith("```")]
    assert "`" not in fenced
    assert json.loads(html.unescape(fenced)) == [HOSTILE], "and it is the same JSON still"
    facts = texts[2]
    assert all(line.count("`") == 2 for line in facts.split("\n"))


@given(st.text(max_size=300), st.text(max_size=5000))
def test_every_message_is_one_that_slack_takes(name: str, text: str) -> None:
    channel = Slack(bot_token=BOT, channel=CHANNEL, app_token=APP, approvers=ANN)
    asked = notice(
        agent=name,
        tool=name,
        backend=name,
        rule=name,
        code="012345",
        arguments=json.dumps({name: text}, ensure_ascii=False),
    )
    message = checked(json.loads(channel.post(asked, NOW).body))
    assert len(message["blocks"][-2]["text"]["text"]) <= SECTION_CHARS
    closing = channel.closing(asked, f"{CHANNEL} 1.2", f"rejected by {name}: {text}")
    assert closing is not None
    checked(json.loads(closing.body))


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b'{"ok":true,"channel":"C1","ts":"1.2"}', None),
        (200, b'{"ok":false,"error":"not_in_channel"}', "it refused the message (`not_in_channel`)"),
        (200, b'{"ok":false,"error":"xoxb-secret echoed"}', "it refused the message"),
        (200, b'{"ok":"yes"}', "it answered 200 without saying `ok`"),
        (200, b"<html>", "it answered 200 without saying `ok`"),
        (200, b"[" * 100_000, "it answered 200 without saying `ok`"),
        (302, b"", "it answered 302"),
        (429, b'{"ok":false,"error":"ratelimited"}', "it answered 429"),
        (500, b"", "it answered 500"),
    ],
)
def test_the_api_took_it_only_where_it_says_ok(status: int, body: bytes, why: str | None) -> None:
    assert Slack(bot_token=BOT, channel=CHANNEL).fault(status, body) == why


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"ok", None),
        (200, b"<html>sign in</html>", "it answered 200"),
        (400, b"invalid_blocks", "it answered 400 (`invalid_blocks`)"),
        (404, b"no_service", "it answered 404 (`no_service`)"),
        (403, b"SECRET", "it answered 403"),
    ],
)
def test_a_webhook_took_it_only_where_it_says_ok(status: int, body: bytes, why: str | None) -> None:
    assert Slack(webhook_url="https://h.example").fault(status, body) == why


# --- Socket Mode ------------------------------------------------------------------------------------------------------


def test_a_click_is_acknowledged_and_decides_and_the_person_is_told(run: Run) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            channel = app(service)
            await hands.send(channel.post(notice(), NOW))
            async with listening(channel, service, hands) as (connection, desk):
                await service.press(connection, service.payload("U0ANN", APPROVE))
                await service.press(connection, service.payload("U0ANN", REJECT))
                await until(lambda: len(service.told) == 2)
                assert desk.heard == [
                    Heard(id="ab" * 16, proof="p-roof_0123456ab", approve=yes, voter="user:ann", by="ann")
                    for yes in (True, False)
                ]
                told = [one["text"] for one in service.told]
                assert told == ["approved by ann &lt;&amp;&gt;", "rejected by ann &lt;&amp;&gt;"]

    run(go())


def test_somebody_who_is_not_mapped_decides_nothing_and_is_told_so(run: Run) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            channel = app(service)
            await hands.send(channel.post(notice(), NOW))
            async with listening(channel, service, hands) as (connection, desk):
                for user in ("U0EVE", "ann", "", "u0ann"):
                    await service.press(connection, service.payload(user, APPROVE))
                await until(lambda: len(service.told) == 4)
                assert desk.heard == []
                assert all("Nothing was decided" in one["text"] for one in service.told)

    run(go())


def test_what_is_no_click_on_our_buttons_is_acknowledged_and_nothing_more(run: Run) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            channel = app(service)
            await hands.send(channel.post(notice(), NOW))
            async with listening(channel, service, hands) as (connection, desk):
                click = service.payload("U0ANN", APPROVE)
                opened = service.payload("U0ANN", "aegis_open_page")
                odd = [
                    opened, {**click, "type": "view_submission"}, {"type": "block_actions"}, {**click, "actions": []},
                    {**click, "actions": "x"}, {**click, "user": None},
                ]  # fmt: skip
                for payload in odd:
                    await service.press(connection, payload)
                for text in ("", "null", "[]", '{"type":1}', "{" * 5000, '{"type":"future"}'):
                    await connection.send(text)
                await service.press(connection, click)
                await until(lambda: desk.heard)
                assert len(desk.heard) == 1

    run(go())


def test_slack_changes_connections_and_the_next_one_is_heard(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_daemon.approvals.channels.slack.BRIEF_S", -1.0)

    async def go() -> None:
        async with slack() as (service, hands):
            channel = app(service)
            await hands.send(channel.post(notice(), NOW))
            async with listening(channel, service, hands) as (first, desk):
                await first.send(json.dumps({"type": "disconnect", "reason": "refresh_requested", "debug_info": {}}))
                second = await asyncio.wait_for(service.connected.get(), 5)
                await service.press(second, service.payload("U0ANN", APPROVE))
                await until(lambda: desk.heard)
                assert service.opened == 2

    run(go())


def test_a_connection_that_ends_at_once_is_trouble_and_not_opened_again_and_again(run: Run) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            task = asyncio.ensure_future(app(service).listen(hands, Desk()))
            connection = await asyncio.wait_for(service.connected.get(), 5)
            await connection.close()
            with pytest.raises(Trouble, match="at once"):
                await task
            assert service.opened == 1

    run(go())


@pytest.mark.parametrize("error", ["invalid_auth", "not_allowed_token_type"])
def test_a_refused_connection_says_why(run: Run, error: str) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            service.refuse = error
            with pytest.raises(Trouble, match=error):
                await app(service).listen(hands, Desk())

    run(go())


def test_the_connection_goes_to_slack_and_nowhere_else(run: Run) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            service.socket_host = "localhost"
            with pytest.raises(Trouble, match="not its own"):
                await app(service).listen(hands, Desk())

    run(go())


@pytest.mark.parametrize(
    "url",
    ["http://hooks.slack.com/x", "https://hooks.slack.com.evil.example/x", "https://evil.example/hooks.slack.com", "https://notslack.com/", "file:///etc/passwd", "https://[::1", ""],
)  # fmt: skip
def test_what_became_of_a_click_is_told_to_slack_alone(url: str) -> None:
    assert not Slack(bot_token=BOT, channel=CHANNEL)._ours(url, ("https",))
    assert Slack(bot_token=BOT, channel=CHANNEL)._ours("https://hooks.slack.com/actions/T/1/x", ("https",))


def test_a_person_who_cannot_be_told_has_decided_all_the_same(run: Run) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            channel = app(service)
            await hands.send(channel.post(notice(), NOW))
            async with listening(channel, service, hands) as (connection, desk):
                service.door.misbehave = [(500, {}, b""), "garbage"]
                for _ in range(2):
                    await service.press(connection, service.payload("U0ANN", APPROVE))
                await service.press(connection, service.payload("U0ANN", REJECT, answer_url="https://evil.example/x"))
                await until(lambda: len(desk.heard) == 3 and not channel._tasks)
                assert not any("evil" in str(asked.headers) for asked in service.door.asked)

    run(go())


def test_a_decision_that_hangs_keeps_no_click_from_being_acknowledged(run: Run) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            channel = app(service)
            await hands.send(channel.post(notice(), NOW))
            held = asyncio.Event()

            async def slow(heard: Heard) -> str:
                await held.wait()
                return "done"

            task = asyncio.ensure_future(channel.listen(hands, slow))
            connection = await asyncio.wait_for(service.connected.get(), 5)
            for _ in range(5):
                await service.press(connection, service.payload("U0ANN", APPROVE))
            held.set()
            await until(lambda: len(service.told) == 5)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    run(go())


# --- signed posts -----------------------------------------------------------------------------------------------------


def test_a_signed_click_decides(run: Run) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            channel = app(service, app_token=None, signing_secret=SECRET)
            assert channel.answers
            await hands.send(channel.post(notice(), NOW))
            desk = Desk()
            await channel.listen(hands, desk)  # returns: nothing to hear there
            payload = channel.signed(*service.signed(service.payload("U0ANN", APPROVE), NOW), NOW)
            assert payload is not None
            channel.take(payload, hands, desk)
            await until(lambda: service.told)
            assert [one.approve for one in desk.heard] == [True]

    run(go())


def test_what_slack_did_not_sign_or_not_now_is_nothing() -> None:
    channel = Slack(bot_token=BOT, channel=CHANNEL, signing_secret=SECRET, approvers=ANN)
    service = Service()
    click = {"type": "block_actions"}
    at, signature, body = service.signed(click, NOW)
    assert channel.signed(at, signature, body, NOW) is not None
    assert channel.signed(at, signature, body, NOW + 299) is not None
    assert channel.signed(at, signature, body, NOW + 302) is None
    assert channel.signed(at, signature, body, NOW - 302) is None
    assert channel.signed(at, signature, body + b"x", NOW) is None
    assert channel.signed(str(int(at) + 1), signature, body, NOW) is None
    assert channel.signed(at, signature.upper(), body, NOW) is None
    assert channel.signed(at, "", body, NOW) is None
    assert channel.signed(at, "é", body, NOW) is None
    assert channel.signed(f"{at}\n", signature, body, NOW) is None
    assert channel.signed(*service.signed(click, NOW, "guess"), NOW) is None
    assert channel.signed(*service.signed(click, NOW, ""), NOW) is None
    for nobody in (
        Slack(bot_token=BOT, channel=CHANNEL, signing_secret=SECRET),
        Slack(bot_token=BOT, channel=CHANNEL, app_token=APP, approvers=ANN),
    ):
        assert nobody.signed(at, signature, body, NOW) is None
        assert nobody.signed(*service.signed(click, NOW, ""), NOW) is None, "no secret is not an empty one"


def test_the_signature_is_that_of_slacks_documentation() -> None:
    channel = Slack(bot_token=BOT, channel=CHANNEL, signing_secret="8f742231b10e8888abcd99yyyzzz85a5", approvers=ANN)
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name="
        b"foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2F"
        b"hooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015."
        b"47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    signature = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
    assert channel.genuine("1531420618", signature, body, 1531420618.0)
    assert not channel.genuine("1531420618", signature[:-1] + "4", body, 1531420618.0)


def test_no_token_is_ever_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        async with slack() as (service, hands):
            channel = app(service)
            await hands.send(channel.post(notice(), NOW))
            async with listening(channel, service, hands) as (connection, _):
                service.door.misbehave = ["garbage"]
                await service.press(connection, service.payload("U0EVE", APPROVE))
                await until(lambda: not channel._tasks)

    with caplog.at_level(logging.DEBUG, "aegis"):
        run(go())
    assert "U0EVE" in caplog.text
    assert not any(secret in caplog.text for secret in (BOT, APP, "/answer/"))


# --- all of it together -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(at: Path, service: Service, **more: Any) -> AsyncIterator[tuple[House, Notifier]]:
    """A desk, its governor and web side, and the notifier with the one channel, over real sockets."""
    pool = HttpPool(asyncio.get_running_loop())
    async with open_house(at) as house:

        def find(id: str) -> Ticket | None:
            try:
                return house.desk.get(id)
            except NoSuchTicket:
                return None

        notifier = Notifier(
            LINKS_KEY, DaemonReach(pool), wall=wall, find=find, decide=partial(answer, lambda: house.governor)
        )
        house.governor._notifier = notifier
        house.desk._on_event = lambda event, ticket: (house._happened(event, ticket), notifier.happened(event, ticket))[
            1
        ]
        notifier.use(Settings((app(service, **more),), BASE, codes=True))
        try:
            yield house, notifier
        finally:
            await notifier.close()
            pool.close()


def test_a_click_decides_the_very_call_and_the_message_says_so(run: Run, tmp_path: Path) -> None:
    async def go() -> None:
        async with Service() as service, running(Path(mkdtemp(dir=tmp_path)), service) as (house, _):
            connection = await asyncio.wait_for(service.connected.get(), 5)
            ticket, other = house.asks(), house.asks({"text": "other"})
            await until(lambda: len(service.messages) == 2)
            by_text = {shown(message): ts for ts, message in service.messages.items()}
            ((ts,), (other_ts,)) = (
                [at for text, at in by_text.items() if f"`{one.id}`" in text] for one in (ticket, other)
            )
            await service.press(connection, service.payload("U0EVE", APPROVE, ts=ts))
            forged = service.payload("U0ANN", APPROVE, ts=ts)
            forged["actions"][0]["value"] = service.payload("U0ANN", APPROVE, ts=other_ts)["actions"][0][
                "value"
            ].replace(other.call_id, ticket.call_id)
            await service.press(connection, forged)
            await until(lambda: len(service.told) == 2)
            assert (ticket.state, other.state) == ("pending", "pending")
            await service.press(connection, service.payload("U0ANN", APPROVE, ts=ts))
            await until(lambda: ticket.state == "approved")
            assert (ticket.by, ticket.via, ticket.votes[0].voter, other.state) == (
                "ann",
                "slack",
                "user:ann",
                "pending",
            )
            await until(lambda: not actions(service.messages[ts]))
            assert "approved by ann" in shown(service.messages[ts])
            await until(lambda: len(service.told) == 3)
            assert service.told[-1]["text"] == f"{ticket.id} is approved."
            await service.press(connection, {**service.payload("U0ANN", REJECT, ts=other_ts)})
            await until(lambda: other.state == "rejected")

    run(go())


def test_slack_posts_a_signed_click_and_it_decides(run: Run, tmp_path: Path) -> None:
    async def go() -> None:
        more = {"app_token": None, "signing_secret": SECRET}
        async with Service() as service, running(Path(mkdtemp(dir=tmp_path)), service, **more) as (house, _):
            ticket = house.asks({"text": "x" * 2500})
            await until(lambda: service.messages)
            at, signature, body = service.signed(service.payload("U0ANN", APPROVE), wall())
            headers = {"host": "aegis.example", "content-type": "application/x-www-form-urlencoded"}
            signed = {"x-slack-request-timestamp": at, "x-slack-signature": signature}
            for front in (house.web.app, house.web.page_app):
                for wrong in (
                    {},
                    {**signed, "x-slack-signature": "v0=0"},
                    {**signed, "x-slack-request-timestamp": "1"},
                ):
                    got = await ask(front, "POST", POSTED, headers={**headers, **wrong}, body=body, peer="203.0.113.9")
                    assert (got.status, ticket.state) == (403, "pending")
                assert (await ask(front, "GET", POSTED, headers=headers)).status == 405
            assert (
                await ask(house.web.app, "POST", POSTED, headers={**headers, **signed}, body=b"x" * 300_000)
            ).status == 413
            got = await ask(
                house.web.page_app, "POST", POSTED, headers={**headers, **signed}, body=body, peer="203.0.113.9"
            )
            assert (got.status, got.body) == (200, b"")
            await until(lambda: ticket.state == "approved")
            again = await ask(house.web.page_app, "POST", POSTED, headers={**headers, **signed}, body=body)
            assert again.status == 200
            await until(lambda: len(service.told) == 2)
            assert "Nothing was changed" in service.told[-1]["text"]
            assert ticket.by == "ann"

    run(go())


def test_a_rate_limit_is_waited_out_and_the_message_comes(run: Run, tmp_path: Path) -> None:
    async def go() -> None:
        async with Service() as service, running(Path(mkdtemp(dir=tmp_path)), service) as (house, notifier):
            pauses: list[float] = []

            async def sleep(seconds: float) -> None:
                pauses.append(seconds)

            notifier._sleep = sleep  # type: ignore[assignment]
            await asyncio.wait_for(service.connected.get(), 5)
            service.door.misbehave = [
                (429, {"retry-after": "30"}, b'{"ok":false,"error":"ratelimited"}'),
                (500, {}, b""),
                "garbage",
            ]
            house.asks()
            await until(lambda: service.messages)
            assert pauses[0] > 29

    run(go())
