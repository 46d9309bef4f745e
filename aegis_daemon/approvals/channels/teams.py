"""A Teams channel gets an adaptive card with two links, through a workflow that posts what its webhook receives.

Only bots could take a click, so both buttons open the page. What an agent wrote stands in text runs: unlike text
blocks and fact sets they know no markdown. A workflow says 202 and nothing more, so its message is never changed.

Sources: Adaptive Cards 1.4 (RichTextBlock, Action.OpenUrl); Microsoft Teams, webhooks of Workflows (28 KB a message).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aegis_daemon.approvals.channels.notice import Channel, Notice, Post, cut, facts, title, utf8
from aegis_daemon.core.text import visible

BODY_BYTES: Final = 28 * 1024
_SHOWN_BYTES: Final = 8000
"""Of the arguments; escaped as JSON once more they are at most twice as long."""
_FACT_BYTES: Final = 600
_CARD: Final = "application/vnd.microsoft.card.adaptive"


class Teams:
    """`approval.teams`: the workflow's webhook url."""

    name = "teams"

    def __init__(self, *, webhook_url: str) -> None:
        self._url = webhook_url

    def post(self, notice: Notice, now: float) -> Post:
        """The card."""
        attachment = {"contentType": _CARD, "contentUrl": None, "content": card(notice)}
        message = {"type": "message", "attachments": [attachment]}
        return Post(self._url, {"content-type": "application/json"}, msgspec.json.encode(message))

    def fault(self, status: int, body: bytes) -> str | None:
        """202: the workflow has it. The old connectors said 200 and told of failures in the text."""
        if status == 202:
            return None
        if status == 200:
            return "it answered 200, as retired connectors do; use the webhook of a workflow"
        return f"it answered {status}"

    def handle(self, body: bytes) -> str:
        """Nothing names the message."""
        return ""

    def closing(self, notice: Notice, handle: str, how: str) -> Post | None:
        """Nothing can change it."""
        return None


def configured(*, webhook_url: str | None = None) -> Teams | None:
    """The channel of a section, None where it has no webhook."""
    return Teams(webhook_url=webhook_url) if webhook_url else None


_channel: type[Channel] = Teams


def card(notice: Notice) -> dict[str, Any]:
    """Title, facts, arguments, and the two links."""
    whole = _inert(notice.arguments)
    shown = cut(whole, _SHOWN_BYTES, utf8)
    body = [
        _text(title(notice), weight="Bolder", size="Medium"),
        *(_text(f"{label}: ", cut(_inert(text), _FACT_BYTES, utf8)) for label, text in facts(notice)),
        *([] if notice.headline else [_text(shown, fontType="Monospace")]),
    ]
    if shown != whole:
        body.append(_text(f"Cut: the page shows all {len(notice.arguments)} characters."))
    links = [("Look …", notice.look_url)] if notice.look_url else []
    if not notice.test:
        links = [("Approve …", notice.approve_url), ("Reject …", notice.reject_url)]
    return {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": body,
        "actions": [{"type": "Action.OpenUrl", "title": label, "url": url} for label, url in links],
    }


def _text(first: str, rest: str = "", **style: str) -> dict[str, Any]:
    """One paragraph: where there are two parts, the first is a label."""
    label = {"type": "TextRun", "text": first, **({"weight": "Bolder"} if rest else style)}
    inlines = [label, {"type": "TextRun", "text": rest, **style}] if rest else [label]
    return {"type": "RichTextBlock", "inlines": inlines}


def _inert(text: str) -> str:
    """One line in which no `{{DATE(…)}}` is computed. Of JSON, a text that means the same."""
    return visible(text).replace("{{", "{\\u007b").replace("${", "\\u0024{").replace("@{", "\\u0040{")
