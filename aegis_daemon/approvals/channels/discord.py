"""A Discord channel gets a message with two links: webhooks take no clicks, and the page shows everything.

What an agent wrote stands in code, where Discord reads no markup; nobody is mentioned and nothing is unfurled
(`allowed_mentions`, `flags: 4`). Once it is decided the message says so and loses its buttons (`PATCH` by its id).

Sources: Discord's Execute Webhook, Edit Webhook Message, and Components references.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from aegis_daemon.approvals.channels.notice import Channel, Notice, Post, cut, facts, title, utf16
from aegis_daemon.core.text import visible

CONTENT_UNITS: Final = 2000
"""Characters in one message; counted in UTF-16 units, which is never less than Discord counts."""
_SHOWN_UNITS: Final = 1000
_FACT_UNITS: Final = 120
_JSON: Final = {"content-type": "application/json"}
_INERT: Final = str.maketrans({"`": "\\u0060"})
_SUPPRESS_EMBEDS: Final = 4
_ROW, _BUTTON, _LINK = 1, 2, 5


class _Taken(msgspec.Struct):
    id: str


class Discord:
    """`approval.discord`: the webhook's url."""

    name = "discord"

    def __init__(self, *, webhook_url: str) -> None:
        self._url = webhook_url

    def post(self, notice: Notice, now: float) -> Post:
        """The message; `wait` makes the answer say what it is called."""
        message = _message(_content(notice), _buttons(notice))
        return Post(_with(self._url, "", wait="true", with_components="true"), _JSON, message)

    def fault(self, status: int, body: bytes) -> str | None:
        """With `wait`, the message itself comes back."""
        if status == 200 and not self.handle(body):
            return "it answered 200 without a message"
        return None if status == 200 else f"it answered {status}"

    def handle(self, body: bytes) -> str:
        """The message's id."""
        try:
            id = msgspec.json.decode(body, type=_Taken).id
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""
        return id if re.fullmatch(r"[0-9]{1,20}", id) else ""

    def closing(self, notice: Notice, handle: str, how: str) -> Post | None:
        """The same message without buttons, and how it ended."""
        if not handle:
            return None
        message = _message(f"{_content(notice)}\n**Ended:** `{_inert(how, _FACT_UNITS)}`", [])
        url = _with(self._url, f"/messages/{handle}", with_components="true")
        return Post(url, _JSON, message, method="PATCH")


def configured(*, webhook_url: str | None = None) -> Discord | None:
    """The channel of a section, None where it has no webhook."""
    return Discord(webhook_url=webhook_url) if webhook_url else None


_channel: type[Channel] = Discord


def _message(content: str, components: list[dict[str, Any]]) -> bytes:
    return msgspec.json.encode(
        {
            "content": content,
            "allowed_mentions": {"parse": []},
            "flags": _SUPPRESS_EMBEDS,
            "components": components,
        }
    )


def _content(notice: Notice) -> str:
    lines = [f"**{title(notice)}**"]
    lines += [f"**{label}:** `{_inert(text, _FACT_UNITS)}`" for label, text in facts(notice)]
    if notice.expires and not notice.test:
        lines.append(f"Refused by itself <t:{int(notice.expires)}:R>.")
    if notice.headline:
        return "\n".join(lines)
    whole = _inert(notice.arguments)
    shown = cut(whole, _SHOWN_UNITS, utf16)
    lines.append(f"```json\n{shown}\n```")
    if shown != whole:
        lines.append(f"Cut: the page shows all {len(notice.arguments)} characters.")
    return "\n".join(lines)


def _buttons(notice: Notice) -> list[dict[str, Any]]:
    links = [("Approve …", notice.approve_url), ("Reject …", notice.reject_url)]
    if notice.test:
        links = [("Look …", notice.look_url)] if notice.look_url else []
    if not links:
        return []
    row = [{"type": _BUTTON, "style": _LINK, "label": label, "url": url} for label, url in links]
    return [{"type": _ROW, "components": row}]


def _inert(text: str, most: int | None = None) -> str:
    """One line without a backtick. Of JSON, a text that means the same."""
    made = visible(text).translate(_INERT)
    return made if most is None else cut(made, most, utf16)


def _with(url: str, path: str, **more: str) -> str:
    """The webhook's address, longer, with more in its query (`thread_id` stays)."""
    parts = urlsplit(url)
    known = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] not in ("wait", *more)]
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path, query=urlencode([*known, *more.items()])))
