from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.approvals.channels import CHANNELS, Made, make
from aegis_daemon.approvals.channels.feishu import SHOWN_BYTES, Feishu, shown, sign
from aegis_daemon.approvals.channels.generic import Generic, key_of, signature
from aegis_daemon.approvals.channels.notice import Notice
from aegis_daemon.approvals.channels.notice import shown as part
from aegis_daemon.config.schema import Config
from aegis_daemon.daemon.channels import values

URL = "https://hooks.example/secret-path"
NOW = 1_763_715_600.9


def notice(**changes: Any) -> Notice:
    facts: dict[str, Any] = {
        "id": "K7Q2", "call_id": "ab" * 16, "agent": "amy", "backend": "files", "tool": "publish_post",
        "arguments": '{"title":"Grüße"}', "created": 1_763_715_599.7, "approve_url": "https://a.example/?yes",
        "reject_url": "https://a.example/?no",
    }  # fmt: skip
    return Notice(**{**facts, **changes})


SECTIONS: dict[str, dict[str, Any]] = {
    "feishu": {"webhook_url": URL, "secret": None},
    "generic": {"webhook_url": URL, "secret": None},
    "slack": {"webhook_url": URL, "bot_token": None, "channel": None, "approvers": {}},
    "discord": {"webhook_url": URL},
    "teams": {"webhook_url": URL},
    "telegram": {"bot_token": "1:x", "chat_id": "1", "approvers": {}},
    "ntfy": {"topic_url": "https://ntfy.example/topic", "reply_topic_url": None, "token": None},
    "desktop": {"enabled": True, "buttons": False},
}


def made(before: dict[str, Made] | None = None, **sections: dict[str, Any]) -> dict[str, Made]:
    refused: list[str] = []
    found = make({**SECTIONS, **sections}, before or {}, lambda name, error: refused.append(f"{name}: {error}"))
    assert set(found) | {one.partition(":")[0] for one in refused} | {
        n for n, v in sections.items() if not any(v.values())
    } == set(CHANNELS)
    return found


def test_every_channel_is_in_the_table_under_its_own_name_and_a_section_of_the_configuration() -> None:
    assert {name: one.channel.name for name, one in made().items()} == {name: name for name in CHANNELS}
    approval = Config().approval
    for name, factory in CHANNELS.items():
        assert factory(**values(getattr(approval, name))) is None, "nothing is configured by default"


def test_a_channel_whose_values_stay_is_the_same_one_and_a_changed_one_is_new() -> None:
    first = made()
    again = made(first, generic={"webhook_url": URL + "2", "secret": None}, teams={"webhook_url": None})
    assert "teams" not in again
    assert again["generic"].channel is not first["generic"].channel
    assert all(again[name].channel is first[name].channel for name in set(CHANNELS) - {"generic", "teams"})


def test_a_channel_that_cannot_be_takes_no_other_with_it() -> None:
    found = made(generic={"webhook_url": URL, "secret": "whsec_???"}, ntfy={"topic_url": "https://n.example/"})
    assert set(CHANNELS) - set(found) == {"generic", "ntfy"}


def test_a_test_message_has_no_link_and_no_proof_whatever_the_channel() -> None:
    for one in made().values():
        if one.channel.name == "desktop":
            continue
        post = one.channel.post(notice(test=True, approve_url="", reject_url=""), NOW)
        assert b"http" not in post.body.replace(b"http://adaptivecards.io", b"").replace(
            b"https://adaptivecards.io", b""
        )
        assert b"test" in post.body.lower()


# --- generic ----------------------------------------------------------------------------------------------------------


def test_a_generic_webhook_gets_seed_as_fields_and_no_other() -> None:
    post = Generic(URL).post(notice(), NOW)
    assert (post.url, post.headers) == (URL, {"content-type": "application/json"})
    assert json.loads(post.body) == {
        "event": "approval_request",
        "id": "K7Q2",
        "agent_id": "amy",
        "tool_name": "publish_post",
        "arguments": '{"title":"Grüße"}',
        "created_at": "2025-11-21T08:59:59Z",
        "approve_url": "https://a.example/?yes",
        "reject_url": "https://a.example/?no",
    }


def test_the_code_is_told_where_pages_ask_for_one() -> None:
    assert json.loads(Generic(URL).post(notice(code="012345"), NOW).body)["code"] == "012345"
    assert "012345" in Feishu(URL).post(notice(code="012345"), NOW).body.decode()


@pytest.mark.parametrize(
    ("secret", "key"),
    [("whsec_" + base64.b64encode(b"0123456789abcdef").decode(), b"0123456789abcdef"), ("päss", "päss".encode())],
)
def test_a_secret_signs_as_standard_webhooks_says(secret: str, key: bytes) -> None:
    post = Generic(URL, secret).post(notice(), NOW)
    id, at = post.headers["webhook-id"], post.headers["webhook-timestamp"]
    assert (id, at) == ("msg_" + "ab" * 16, "1763715600")
    mac = hmac.new(key, f"{id}.{at}.".encode() + post.body, hashlib.sha256).digest()
    assert post.headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()
    assert Generic(URL, secret).post(notice(), NOW + 60).headers["webhook-id"] == id, "the same over all tries"


def test_the_signature_is_that_of_the_standards_own_libraries() -> None:
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_that_is_not_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="not base64"):
        Generic(URL, "whsec_???")


def test_any_2xx_is_a_yes_to_a_generic_webhook() -> None:
    assert [Generic(URL).fault(status, b"") for status in (200, 202, 204)] == [None] * 3
    assert Generic(URL).fault(302, b"") == "it answered 302"
    assert Generic(URL).fault(500, b"secret") == "it answered 500"


# --- feishu -----------------------------------------------------------------------------------------------------------


def test_a_feishu_card_has_seed_as_parts() -> None:
    message = json.loads(Feishu(URL).post(notice(), NOW).body)
    assert set(message) == {"msg_type", "card"}
    assert message["msg_type"] == "interactive"
    header, elements = message["card"]["header"], message["card"]["elements"]
    assert header == {"title": {"tag": "plain_text", "content": "🔐 Agent Approval Request"}, "template": "orange"}
    assert [element["tag"] for element in elements] == ["div", "div", "hr", "action"]
    assert [field["text"]["content"] for field in elements[0]["fields"][:2]] == ["Agent: amy", "Tool: publish_post"]
    assert elements[1]["text"]["content"] == '**Arguments:**\n```\n{"title":"Grüße"}\n```'
    buttons = [(one["text"]["content"], one["type"], one["url"]) for one in elements[3]["actions"]]
    assert buttons == [("Approve", "primary", "https://a.example/?yes"), ("Reject", "danger", "https://a.example/?no")]


def test_a_long_name_in_a_feishu_card_is_seen_to_be_cut() -> None:
    message = json.loads(Feishu(URL).post(notice(tool="t" * 300), NOW).body)
    (tool,) = [
        field["text"]["content"]
        for field in message["card"]["elements"][0]["fields"]
        if field["text"]["content"].startswith("Tool")
    ]
    assert tool == f"Tool: {'t' * 199}…"


def test_a_bot_with_a_secret_gets_a_signature() -> None:
    message = json.loads(Feishu(URL, "s3cret").post(notice(), NOW).body)
    assert message["timestamp"] == "1763715600"
    mac = hmac.new(b"1763715600\ns3cret", b"", hashlib.sha256).digest()
    assert message["sign"] == base64.b64encode(mac).decode() == sign("s3cret", "1763715600")


def test_no_agent_can_write_into_the_card_anything_but_text() -> None:
    hostile = "x```\n<at id=all></at> **[safe](https://evil.example)**\u202e"
    message = json.loads(
        Feishu(URL).post(notice(agent=hostile, tool=hostile, arguments=json.dumps([hostile])), NOW).body
    )
    div, arguments = message["card"]["elements"][:2]
    assert {field["text"]["tag"] for field in div["fields"]} == {"plain_text"}
    assert not any("\u202e" in field["text"]["content"] or "\n" in field["text"]["content"] for field in div["fields"])
    fenced = arguments["text"]["content"].removeprefix("**Arguments:**\n```\n").removesuffix("\n```")
    assert "`" not in fenced
    assert "<" not in fenced
    assert json.loads(fenced) == [hostile], "and it is the same JSON still"


@given(st.text(max_size=800))
def test_long_arguments_are_cut_between_characters_and_it_is_said(text: str) -> None:
    arguments = json.dumps({"t": text}, ensure_ascii=False)
    cut = shown(arguments)
    assert len(cut.encode()) <= SHOWN_BYTES + 60
    assert ("the page shows all" in cut) or cut.startswith('{"t": "')


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b'{"code":0,"msg":"success","data":{}}', None),
        (200, b'{"code":19021,"msg":"sign match fail"}', "it answered code 19021"),
        (200, b'{"StatusCode":0}', "it answered 200 without a code"),
        (200, b'{"code":"0"}', "it answered 200 without a code"),
        (200, b"<html>", "it answered 200 without a code"),
        (200, b"[" * 100_000, "it answered 200 without a code"),
        (403, b'{"code":0}', "it answered 403"),
    ],
)
def test_feishu_took_it_only_where_the_body_says_code_0(status: int, body: bytes, why: str | None) -> None:
    assert Feishu(URL).fault(status, body) == why


def test_a_server_that_was_handed_over_is_told_and_one_that_is_cut_is_not_the_whole_call() -> None:
    told, _, whole = part(notice(command="db --root /", cwd="/w"), 200, 200)
    assert ("Server", "db --root /") in told
    assert ("Directory", "/w") in told
    assert whole
    assert not part(notice(command="db " + "x" * 300, cwd="/w"), 200, 200)[2]
    assert not part(notice(command="db", cwd="/" + "x" * 300), 200, 200)[2]
    assert ("Not the server approved before; different", "URL") in part(notice(command="db", unlike="URL"), 200, 200)[0]
    assert not part(notice(command="db", unlike="x" * 300), 200, 200)[2]
