"""A Telegram bot asks, and only people who are mapped by their number decide with its buttons.

Clicks come by long polling (`getUpdates`), so no public address is needed. A message shows the whole call or cannot be
approved from: what does not fit is looked at on the page. Agents' texts are marked as code, in which Telegram makes no
links and mentions nobody; there is no `parse_mode`. The token is part of every address: none is ever shown.

Source: Telegram Bot API (`sendMessage`, `getUpdates`, `answerCallbackQuery`, `editMessageText`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from aegis_daemon.approvals.channels.notice import (
    Hear,
    Heard,
    Notice,
    Post,
    Reach,
    Trouble,
    cut,
    shown,
    title,
    utf16,
)
from aegis_daemon.core.ports import Fault
from aegis_daemon.core.text import visible

API: Final = "https://api.telegram.org"
TEXT_UNITS: Final = 4096
"""UTF-16 code units of a message."""
ARGUMENTS_UNITS: Final = 2600
NAME_UNITS: Final = 150
DATA_BYTES: Final = 64
POPUP_CHARS: Final = 200
POLL_S: Final = 50
_PATIENCE_S: Final = 10.0
_AT_ONCE: Final = 64
"""Clicks that are being answered; more are left to the next poll."""
_JSON: Final = {"content-type": "application/json"}
_DATA = re.compile(r"([ar]):([0-9a-f]{32}):([A-Za-z0-9_-]{16})")


class _Parameters(msgspec.Struct):
    retry_after: float = 0.0


class _Chat(msgspec.Struct):
    id: int


class _Message(msgspec.Struct):
    message_id: int
    chat: _Chat


class _Said(msgspec.Struct):
    """What every method answers."""

    ok: bool
    result: msgspec.Raw = msgspec.Raw(b"null")
    error_code: int = 0
    description: str = ""
    parameters: _Parameters | None = None


class _User(msgspec.Struct):
    id: int


class _Click(msgspec.Struct):
    id: str
    from_: _User = msgspec.field(name="from")
    data: str = ""


class _Update(msgspec.Struct):
    update_id: int
    callback_query: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def click(self) -> _Click | None:
        """The click, where it is one that can be read."""
        try:
            return msgspec.json.decode(self.callback_query, type=_Click)
        except msgspec.DecodeError:
            return None


class Telegram:
    """`approval.telegram`.

    :param approvers: a person's name by the number of the Telegram user; with none there are links alone.
    """

    name = "telegram"

    def __init__(self, token: str, chat: str, approvers: Mapping[str, str] = {}, api_url: str = API) -> None:
        self._token = token
        self._chat: int | str = int(chat) if re.fullmatch(r"-?\d{1,18}", chat) else chat
        self._approvers = dict(approvers)
        self._api = api_url.rstrip("/")
        self._offset: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def answers(self) -> bool:
        """Whether anybody may decide there."""
        return bool(self._approvers)

    # --- messages ---------------------------------------------------------------------------------------------------

    def post(self, notice: Notice, now: float) -> Post:
        """`sendMessage`."""
        text, entities, _ = _text(notice, "")
        return self._method("sendMessage", {"chat_id": self._chat, **_body(text, entities), **self._keys(notice)})

    def fault(self, status: int, body: bytes) -> str | None:
        """A yes is `ok: true`, whatever the status says."""
        said = _said(body)
        if said is None:
            return f"it answered {status} and nothing that can be read"
        if said.ok and status == 200:
            return None
        if "message is not modified" in said.description:
            return None
        return self._why(said, status)

    def handle(self, body: bytes) -> str:
        """`CHAT MESSAGE`, by their numbers."""
        said = _said(body)
        try:
            sent = msgspec.json.decode(said.result, type=_Message) if said is not None else None
        except msgspec.DecodeError:
            return ""
        return "" if sent is None else f"{sent.chat.id} {sent.message_id}"

    def closing(self, notice: Notice, handle: str, how: str) -> Post | None:
        """`editMessageText`, without the buttons."""
        chat, _, message = handle.partition(" ")
        if not message:
            return None
        text, entities, _ = _text(notice, how)
        return self._method(
            "editMessageText", {"chat_id": int(chat), "message_id": int(message), **_body(text, entities)}
        )

    def _keys(self, notice: Notice) -> dict[str, Any]:
        rows: list[list[dict[str, str]]] = []
        linked = _opens(notice.approve_url) and _opens(notice.reject_url)
        if self.answers and notice.proof and not notice.test:
            _, _, whole = _text(notice, "")
            if whole:
                rows.append([_button("✅ Approve", "a", notice)])
            rows.append([_button("⛔ Reject", "r", notice)])
            if linked:
                rows.append([{"text": "Look at the whole call", "url": notice.approve_url}])
        elif notice.test and _opens(notice.look_url):
            rows = [[{"text": "Look…", "url": notice.look_url}]]
        elif linked:
            rows = [
                [{"text": "✅ Approve…", "url": notice.approve_url}],
                [{"text": "⛔ Reject…", "url": notice.reject_url}],
            ]
        return {"reply_markup": {"inline_keyboard": rows}} if rows else {}

    # --- answers ----------------------------------------------------------------------------------------------------

    async def listen(self, reach: Reach, hear: Hear) -> None:
        """Polls until cancelled. Raises `Trouble`, and `Fault` where there is no connection."""
        try:
            while True:
                for update in await self._poll(reach):
                    # The next poll tells Telegram to forget this one, which is decided by then.
                    self._offset = max(self._offset or 0, update.update_id + 1)
                    click = update.click
                    if click is not None:
                        await self._clicked(reach, hear, click)
        finally:
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _poll(self, reach: Reach) -> list[_Update]:
        ask: dict[str, Any] = {"timeout": POLL_S, "limit": _AT_ONCE, "allowed_updates": ["callback_query"]}
        if self._offset is not None:
            ask["offset"] = self._offset
        post = self._method("getUpdates", ask)
        status, body = await reach.fetch(post.method, post.url, post.headers, post.body, POLL_S + 15.0)
        said = _said(body)
        if said is None:
            raise Trouble(f"it answered {status} and nothing that can be read")
        if not said.ok:
            raise Trouble(self._why(said, status), said.parameters.retry_after if said.parameters else None)
        try:
            return msgspec.json.decode(said.result, type=list[_Update])
        except msgspec.DecodeError:
            raise Trouble("it answered with no list of updates") from None

    async def _clicked(self, reach: Reach, hear: Hear, click: _Click) -> None:
        person = self._approvers.get(str(click.from_.id))
        found = _DATA.fullmatch(click.data)
        if person is None:
            text = (
                f"Nothing was decided: you are not an approver. Your number is {click.from_.id}; it belongs under "
                "`approval.telegram.approvers`."
            )
        elif found is None:
            text = "Nothing was decided: this button is not of a request."
        else:
            action, call_id, proof = found.groups()
            text = await hear(Heard(call_id, proof, action == "a", f"user:{person}", person))
        if len(self._tasks) < _AT_ONCE:
            # It spins on the phone until it is told; that Telegram is slow to take it must not hold up the next click.
            task = asyncio.ensure_future(self._reply(reach, click.id, text, alert=person is None))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _reply(self, reach: Reach, id: str, text: str, *, alert: bool) -> None:
        ask = {"callback_query_id": id, "text": cut(text, POPUP_CHARS, utf16), "show_alert": alert}
        post = self._method("answerCallbackQuery", ask)
        try:
            await reach.fetch(post.method, post.url, post.headers, post.body, _PATIENCE_S)
        except Fault:
            pass  # the decision holds, and the message says so too

    def _method(self, name: str, ask: dict[str, Any]) -> Post:
        return Post(f"{self._api}/bot{self._token}/{name}", _JSON, msgspec.json.encode(ask))

    def _why(self, said: _Said, status: int) -> str:
        code = said.error_code or status
        if code in (401, 404):
            return "the bot's token is not valid; see `approval.telegram.bot_token`"
        if code == 409:
            return "another program polls this bot, or it has a webhook; only one can hear it"
        told = said.description.replace(self._token, "…") if self._token else said.description
        return f"it answered {code}" + (f" ({visible(cut(told, 120))})" if told else "")


def configured(
    *,
    bot_token: str | None = None,
    chat_id: str | None = None,
    approvers: Mapping[str, str] = {},
    api_url: str = API,
) -> Telegram | None:
    """The channel of a section, None where it has no bot and chat."""
    return Telegram(bot_token, chat_id, approvers, api_url) if bot_token and chat_id else None


def _text(notice: Notice, how: str) -> tuple[str, list[dict[str, Any]], bool]:
    """The message, what is bold or code in it, and whether it shows the whole call."""
    text = title(notice)
    entities = [{"type": "bold", "offset": 0, "length": utf16(text)}]
    told, arguments, whole = shown(notice, NAME_UNITS, ARGUMENTS_UNITS, utf16)
    for label, value in told:
        text += f"\n{label}: "
        entities.append({"type": "code", "offset": utf16(text), "length": utf16(value)})
        text += value
    if notice.headline:
        return text, [one for one in entities if one["length"]], True
    text += "\n\n"
    entities.append({"type": "pre", "offset": utf16(text), "length": utf16(arguments)})
    text += arguments
    if not whole:
        text += "\n(cut; the page shows the whole call, and approves it)"
    if how:
        text += "\n\n"
        said = cut(how, 400, utf16)
        entities.append({"type": "bold", "offset": utf16(text), "length": utf16(said)})
        text += said
    elif not notice.test and not _opens(notice.approve_url) and notice.approve_url:
        text += "\n\nTo decide, see `aegis pending` where Aegis runs."
    return text, [one for one in entities if one["length"]], whole


def _body(text: str, entities: list[dict[str, Any]]) -> dict[str, Any]:
    return {"text": text, "entities": entities, "link_preview_options": {"is_disabled": True}}


def _button(text: str, action: str, notice: Notice) -> dict[str, str]:
    return {"text": text, "callback_data": f"{action}:{notice.call_id}:{notice.proof}"}


def _opens(url: str) -> bool:
    """Whether Telegram takes it for a button: it refuses the whole message for a host without a dot."""
    host = urlsplit(url).hostname or ""
    return "." in host and not host.startswith("127.")


def _said(body: bytes) -> _Said | None:
    try:
        return msgspec.json.decode(body, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
