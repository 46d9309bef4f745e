"""A Feishu or Lark group gets a card with two links, in which an agent's text is text and nothing else.

Webhook bots cannot take a click, so the buttons open the approval page. Where the bot has a signing secret, the body
carries `timestamp` and `sign` (Feishu open platform, custom bots). An answer is a yes only if its body says `code: 0`.
"""

from __future__ import annotations

import base64
import hmac
from typing import Any, Final

import msgspec

from aegis_daemon.approvals.channels.notice import TEST_TITLE, Notice, Post, cut, facts, title
from aegis_daemon.core.text import visible

SHOWN_BYTES: Final = 500
"""Of the arguments, as in seed A; the page shows them all. A card may have 20 KB."""
_NAME_CHARS: Final = 200
_INERT: Final = str.maketrans({char: f"\\u{ord(char):04x}" for char in "`<>&"})


class _Answer(msgspec.Struct):
    code: int


class Feishu:
    """`approval.feishu`: the bot's `url`, and its signing `secret` if it has one."""

    name = "feishu"

    def __init__(self, url: str, secret: str | None = None) -> None:
        self._url = url
        self._secret = secret or None

    def post(self, notice: Notice, now: float) -> Post:
        """The card, signed for `now`."""
        message: dict[str, Any] = {"msg_type": "interactive", "card": card(notice)}
        if self._secret is not None:
            timestamp = str(int(now))
            message |= {"timestamp": timestamp, "sign": sign(self._secret, timestamp)}
        return Post(self._url, {"content-type": "application/json"}, msgspec.json.encode(message))

    def fault(self, status: int, body: bytes) -> str | None:
        """Feishu refuses with 200 and a code: 19021 a bad signature, 19022 an address, 19024 a missing keyword."""
        if status != 200:
            return f"it answered {status}"
        try:
            said = msgspec.json.decode(body, type=_Answer).code
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "it answered 200 without a code"
        return None if said == 0 else f"it answered code {said}"

    def handle(self, body: bytes) -> str:
        """A bot of a webhook cannot change what it sent."""
        return ""

    def closing(self, notice: Notice, handle: str, how: str) -> Post | None:
        """As `handle` says."""
        return None


def configured(*, webhook_url: str | None = None, secret: str | None = None) -> Feishu | None:
    """The channel of a section, None where it has no webhook."""
    return Feishu(webhook_url, secret) if webhook_url else None


def sign(secret: str, timestamp: str) -> str:
    """Base64 of HMAC-SHA256 over nothing, keyed by `timestamp`, a line end and the secret."""
    mac = hmac.digest(f"{timestamp}\n{secret}".encode(), b"", "sha256")
    return base64.b64encode(mac).decode()


def card(notice: Notice) -> dict[str, Any]:
    """Agent and tool side by side, the arguments in a fence, a rule, and the two buttons."""
    fields = [_field("Agent", notice.agent), _field("Tool", notice.tool), _field("Backend", notice.backend)]
    if notice.code:
        fields.append(_field("Code for the page", notice.code))
    if notice.headline:
        look = {"tag": "button", "text": _plain("Look"), "type": "default", "url": notice.look_url}
        told = [{"is_short": False, "text": _plain(f"{label}: {text}")} for label, text in facts(notice)]
        return {
            "header": {"title": _plain(title(notice)), "template": "orange"},
            "elements": [
                {"tag": "div", "fields": told},
                *([{"tag": "action", "actions": [look]}] if notice.look_url else []),
            ],
        }
    if notice.test:
        return {
            "header": {"title": _plain(TEST_TITLE), "template": "grey"},
            "elements": [{"tag": "div", "fields": fields}],
        }
    arguments = f"**Arguments:**\n```\n{shown(notice.arguments)}\n```"
    return {
        "header": {"title": _plain("🔐 Agent Approval Request"), "template": "orange"},
        "elements": [
            {"tag": "div", "fields": fields},
            {"tag": "div", "text": {"tag": "lark_md", "content": arguments}},
            {"tag": "hr"},
            {
                "tag": "action",
                "actions": [
                    {"tag": "button", "text": _plain("Approve"), "type": "primary", "url": notice.approve_url},
                    {"tag": "button", "text": _plain("Reject"), "type": "danger", "url": notice.reject_url},
                ],
            },
        ],
    }


def shown(arguments: str) -> str:
    """The beginning of the arguments. No character in it ends the fence or begins a tag (`<at id=all>`)."""
    data = visible(arguments).translate(_INERT).encode()
    if len(data) <= SHOWN_BYTES:
        return data.decode()
    return f"{data[:SHOWN_BYTES].decode(errors='ignore')}…\n(cut; the page shows all {len(arguments)} characters)"


def _field(name: str, value: str) -> dict[str, Any]:
    # Plain text: what an agent calls itself or its tool is no markdown.
    return {"is_short": True, "text": _plain(f"{name}: {visible(cut(value, _NAME_CHARS))}")}


def _plain(text: str) -> dict[str, str]:
    return {"tag": "plain_text", "content": text}
