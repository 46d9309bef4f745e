"""Slack is asked with the whole call in sight, or sent to the page: nobody decides in a chat what the chat has cut.

An incoming webhook (`webhook_url`) carries links. An app (`bot_token` and `channel`) has buttons that decide, where
somebody is mapped in `approvers` and clicks come back: by Socket Mode (`app_token`; no public address is needed), or
signed to `/callback/slack` (`signing_secret`). Slack vouches for who clicked; who may decide is `approvers`.

Sources: Slack's Block Kit, `chat.postMessage`, `apps.connections.open`, Socket Mode and request signing (v0).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from aegis_daemon.approvals.channels.notice import (
    NAME_CHARS,
    Channel,
    Hear,
    Heard,
    Notice,
    Post,
    Reach,
    Trouble,
    cut,
    facts,
    title,
)
from aegis_daemon.core.ports import Fault
from aegis_daemon.core.text import visible

_log = logging.getLogger("aegis.approvals")
API: Final = "https://slack.com/api"
SECTION_CHARS: Final = 3000
"""Slack takes that many in one section, escapes included."""
FACT_CHARS: Final = 240
SKEW_S: Final = 300.0
"""How old, or how early, a signed request may be."""
CALL_S: Final = 10.0
AT_ONCE: Final = 64
"""Clicks that are being decided or answered; more are acknowledged and nothing else."""
BRIEF_S: Final = 5.0
"""A connection that Slack ends sooner than this is trouble, and not its usual change of connections."""
APPROVE: Final = "aegis_approve"
REJECT: Final = "aegis_reject"
_OPENS: Final = "aegis_open"
_WORD = re.compile(r"[a-z][a-z_]{1,60}")
_SLACK_HOSTS: Final = (".slack.com", ".slack-gov.com")
_MARKUP: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "`": "\\u0060"})


class _Said(msgspec.Struct):
    ok: bool
    error: str = ""
    channel: str = ""
    ts: str = ""
    url: str = ""


class _Who(msgspec.Struct):
    id: str = ""


class _Pressed(msgspec.Struct):
    action_id: str = ""
    value: str = ""


class Click(msgspec.Struct):
    """What Slack says of a click (`block_actions`), as far as it matters."""

    type: str
    user: _Who = msgspec.field(default_factory=_Who)
    actions: list[_Pressed] = []
    response_url: str = ""


class _Envelope(msgspec.Struct):
    """One message of Socket Mode."""

    type: str
    envelope_id: str = ""
    reason: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"null")


class Slack:
    """`approval.slack`. Sends through the webhook, or as the app's bot, whose messages can be changed afterwards.

    :param approvers: a person's name by Slack user id (`U012AB3CD`).
    :param api_url: where Slack's methods are; another one than `API` is trusted to name hosts of its own.
    """

    name = "slack"

    def __init__(
        self,
        *,
        webhook_url: str | None = None,
        bot_token: str | None = None,
        channel: str | None = None,
        app_token: str | None = None,
        signing_secret: str | None = None,
        approvers: Mapping[str, str] = {},
        api_url: str = API,
    ) -> None:
        self._webhook = webhook_url if not (bot_token and channel) else None
        self._bot = bot_token or ""
        self._channel = channel or ""
        self._app = app_token or ""
        self._secret = (signing_secret or "").encode()
        self._approvers = dict(approvers)
        self._api = api_url.rstrip("/")
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def answers(self) -> bool:
        """Whether people can decide in the chat: somebody is mapped, and their clicks reach us."""
        return bool(self._webhook is None and self._approvers and (self._app or self._secret))

    # --- messages ---------------------------------------------------------------------------------------------------

    def post(self, notice: Notice, now: float) -> Post:
        """The message."""
        message = {"text": _fallback(notice), "blocks": [*_asked(notice), *self._buttons(notice)], **_QUIET}
        if self._webhook is not None:
            return Post(self._webhook, _JSON, msgspec.json.encode(message))
        return self._method("chat.postMessage", {"channel": self._channel, "link_names": False, **message})

    def fault(self, status: int, body: bytes) -> str | None:
        """A webhook says `ok`; a method says so in JSON, and 200 alone means nothing."""
        if self._webhook is not None:
            if status == 200 and body.strip() == b"ok":
                return None
            return f"it answered {status}{_named(body[:64].decode('ascii', 'replace').strip())}"
        if status != 200:
            return f"it answered {status}"
        said = _said(body)
        if said is None:
            return "it answered 200 without saying `ok`"
        return None if said.ok else f"it refused the message{_named(said.error)}"

    def handle(self, body: bytes) -> str:
        """`channel ts`: the channel as Slack has it, which a message can be changed by, and the message's time."""
        said = _said(body) if self._webhook is None else None
        if said is None or not said.ok or not re.fullmatch(r"[A-Z0-9]{1,30} [0-9.]{1,30}", f"{said.channel} {said.ts}"):
            return ""
        return f"{said.channel} {said.ts}"

    def closing(self, notice: Notice, handle: str, how: str) -> Post | None:
        """The same message without buttons, and how it ended."""
        channel, space, ts = handle.partition(" ")
        if self._webhook is not None or not space:
            return None
        blocks = [*_asked(notice), _section(f"*Ended:* `{cut(_inert(visible(how)), FACT_CHARS)}`")]
        fields = {
            "channel": channel,
            "ts": ts,
            "text": f"{_fallback(notice)}: {_inert(visible(how))}",
            "blocks": blocks,
        }
        return self._method("chat.update", {"link_names": False, **fields})

    def _method(self, name: str, fields: dict[str, Any]) -> Post:
        headers = {**_JSON, "authorization": f"Bearer {self._bot}"}
        return Post(f"{self._api}/{name}", headers, msgspec.json.encode(fields))

    def _buttons(self, notice: Notice) -> list[dict[str, Any]]:
        if notice.test:
            look = [{**_button("Look …", f"{_OPENS}_look"), "url": notice.look_url}] if notice.look_url else []
            return [{"type": "actions", "elements": look}] if look else []
        if self.answers and notice.proof and _whole(notice):
            value = f"{notice.call_id}.{notice.proof}"
            sure = {
                "title": _plain("Let it run?"),
                "text": _plain("The call runs once, exactly as shown."),
                "confirm": _plain("Approve"),
                "deny": _plain("Back"),
            }
            elements = [
                {**_button("Approve", APPROVE), "style": "primary", "value": value, "confirm": sure},
                {**_button("Reject", REJECT), "style": "danger", "value": value},
                {**_button("Open the page", f"{_OPENS}_page"), "url": notice.approve_url},
            ]
        else:
            elements = [
                {**_button("Approve …", f"{_OPENS}_approve"), "style": "primary", "url": notice.approve_url},
                {**_button("Reject …", f"{_OPENS}_reject"), "style": "danger", "url": notice.reject_url},
            ]
        return [{"type": "actions", "elements": elements}]

    # --- clicks -----------------------------------------------------------------------------------------------------

    async def listen(self, reach: Reach, hear: Hear) -> None:
        """Socket Mode: one connection after another, each acknowledged click decided. See `Answering.listen`."""
        if not (self.answers and self._app):
            return
        clock = asyncio.get_running_loop().time
        try:
            while True:
                socket = await reach.websocket(await self._socket_url(reach))
                began = clock()
                try:
                    async for text in socket:
                        envelope = _envelope(text)
                        if envelope is None:
                            continue
                        if envelope.type == "disconnect":
                            if envelope.reason == "link_disabled":
                                raise Trouble("Socket Mode is switched off for this app; switch it on in its settings")
                            break  # Slack changes connections every few hours, and says so
                        if envelope.envelope_id:
                            # Within three seconds, or Slack shows the person that it failed: before anything else.
                            await socket.send(msgspec.json.encode({"envelope_id": envelope.envelope_id}).decode())
                        if envelope.type == "interactive":
                            self.take(envelope.payload, reach, hear)
                finally:
                    await socket.close()
                if clock() - began < BRIEF_S:
                    raise Trouble("slack ended the connection at once")
        finally:
            for task in self._tasks:
                task.cancel()

    def genuine(self, timestamp: str, signature: str, body: bytes, now: float) -> bool:
        """Whether Slack signed this body, at most five minutes before or after `now`."""
        if not self._secret or not re.fullmatch(r"[0-9]{1,12}", timestamp):
            return False
        right = "v0=" + hmac.digest(self._secret, b"v0:" + timestamp.encode() + b":" + body, "sha256").hex()
        same = hmac.compare_digest(right.encode(), signature.encode("utf-8", "replace"))
        return same and abs(now - int(timestamp)) <= SKEW_S

    def signed(self, timestamp: str, signature: str, body: bytes, now: float) -> msgspec.Raw | None:
        """The payload of a POST to `/callback/slack`; None where it is not Slack's, or nobody may decide by it."""
        if not self.answers or not self.genuine(timestamp, signature, body, now):
            return None
        try:
            (payload,) = parse_qs(body.decode(), strict_parsing=True, max_num_fields=8)["payload"]
        except (ValueError, KeyError):
            return None
        return msgspec.Raw(payload.encode())

    def posted(self, headers: Mapping[str, str], body: bytes, now: float, reach: Reach, hear: Hear) -> bool:
        """See `notice.Posted`."""
        timestamp = headers.get("x-slack-request-timestamp", "")
        payload = self.signed(timestamp, headers.get("x-slack-signature", ""), body, now)
        if payload is not None:
            self.take(payload, reach, hear)
        return payload is not None

    def take(self, payload: msgspec.Raw, reach: Reach, hear: Hear) -> None:
        """Decides what a payload's click says and tells the person, in a task of its own. Needs a running loop."""
        try:
            click = msgspec.json.decode(payload, type=Click)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if click.type != "block_actions":
            return
        for pressed in click.actions[:1]:
            if pressed.action_id not in (APPROVE, REJECT):
                continue  # a link was opened: Slack tells of that too
            if len(self._tasks) >= AT_ONCE:
                _log.error("a click in slack was not decided: too many at once")
                return
            task = asyncio.ensure_future(self._decide(click, pressed, reach, hear))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _decide(self, click: Click, pressed: _Pressed, reach: Reach, hear: Hear) -> None:
        person = self._approvers.get(click.user.id)
        if person is None:
            shown = visible(cut(click.user.id, 40))
            _log.warning("slack user `%s` pressed a button and is nobody in `approval.slack.approvers`", shown)
            text = f"You ({shown}) may not decide here. Nothing was decided. Whoever runs Aegis can name you in "
            text += "`approval.slack.approvers`."
        else:
            call_id, _, proof = pressed.value.partition(".")
            heard = Heard(
                id=call_id, proof=proof, approve=pressed.action_id == APPROVE, voter=f"user:{person}", by=person
            )
            text = await hear(heard)
        await self._tell(click.response_url, text, reach)

    async def _tell(self, url: str, text: str, reach: Reach) -> None:
        """To the person alone. A click whose answer cannot be told was decided all the same."""
        if not self._ours(url, ("https",) if self._api == API else ("https", "http")):
            return
        answer = {"response_type": "ephemeral", "replace_original": False, "text": _inert(visible(text))}
        try:
            await reach.fetch("POST", url, _JSON, msgspec.json.encode(answer), CALL_S)
        except (Fault, TimeoutError, ValueError):
            _log.info("slack could not be told what became of a click")

    async def _socket_url(self, reach: Reach) -> str:
        headers = {"authorization": f"Bearer {self._app}", "content-type": "application/x-www-form-urlencoded"}
        status, body = await reach.fetch("POST", f"{self._api}/apps.connections.open", headers, b"", CALL_S)
        said = _said(body)
        if status != 200 or said is None:
            raise Trouble(f"slack answered {status} when asked for a connection")
        if not said.ok:
            raise Trouble(f"slack refuses a connection{_named(said.error)}; see `approval.slack.app_token`")
        if not self._ours(said.url, ("wss",) if self._api == API else ("wss", "ws")):
            raise Trouble("slack named an address that is not its own")
        return said.url

    def _ours(self, url: str, schemes: tuple[str, ...]) -> bool:
        """Whether an address that came in a message is one of Slack's, or of the host that `api_url` names."""
        try:
            parts, api = urlsplit(url), urlsplit(self._api)
            host = parts.hostname or ""
        except ValueError:
            return False
        if parts.scheme not in schemes:
            return False
        return host == api.hostname if self._api != API else f".{host}".endswith(_SLACK_HOSTS)


def configured(
    *,
    webhook_url: str | None = None,
    bot_token: str | None = None,
    channel: str | None = None,
    app_token: str | None = None,
    signing_secret: str | None = None,
    approvers: Mapping[str, str] = {},
    api_url: str = API,
) -> Slack | None:
    """The channel of a section, None where it has neither a webhook nor a bot and its channel."""
    if not (webhook_url or (bot_token and channel)):
        return None
    return Slack(
        webhook_url=webhook_url,
        bot_token=bot_token,
        channel=channel,
        app_token=app_token,
        signing_secret=signing_secret,
        approvers=approvers,
        api_url=api_url,
    )


_channel: type[Channel] = Slack
_JSON: Final = {"content-type": "application/json; charset=utf-8"}
_QUIET: Final = {"unfurl_links": False, "unfurl_media": False}


# --- blocks -----------------------------------------------------------------------------------------------------------


def _asked(notice: Notice) -> list[dict[str, Any]]:
    """The call. Facts stand in code spans and the arguments in a fence, where only `&`, `<`, `>` and ticks count."""
    lines = "\n".join(f"*{label}:* `{cut(_inert(text), FACT_CHARS)}`" for label, text in facts(notice))
    blocks = [{"type": "header", "text": _plain(title(notice))}, _section(lines)]
    if notice.expires and not notice.test:
        blocks.append(_section(f"Refused by itself <!date^{int(notice.expires)}^at {{time_secs}}|soon>."))
    if notice.headline:
        return blocks
    arguments = _arguments(notice)
    blocks.append(_section(f"```\n{_fit(arguments)}\n```"))
    if not _whole(notice):
        blocks.append(_section(f"_Cut: the page shows all {len(notice.arguments)} characters, and decides._"))
    return blocks


def _arguments(notice: Notice) -> str:
    return _inert(visible(notice.arguments))


def _whole(notice: Notice) -> bool:
    """Whether everything that is to be decided can be seen in the message."""
    names = (notice.agent, notice.tool, notice.backend)
    return len(_arguments(notice)) <= SECTION_CHARS - 8 and all(
        len(name) <= NAME_CHARS and len(_inert(visible(name))) <= FACT_CHARS for name in names
    )


def _fit(text: str) -> str:
    """As much of the escaped text as a section takes; no escape is cut in two."""
    if len(text) <= SECTION_CHARS - 8:
        return text
    kept = text[: SECTION_CHARS - 9]
    cut_off = re.search(r"(&[a-z]{0,3}|\\u?[0-9a-f]{0,3})$", kept)
    return (kept[: cut_off.start()] if cut_off else kept) + "…"


def _section(text: str) -> dict[str, Any]:
    # Expanded, or Slack may hide the end of a long one behind "see more" while the buttons beneath it work.
    return {"type": "section", "expand": True, "text": {"type": "mrkdwn", "verbatim": True, "text": text}}


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text, "emoji": False}


def _button(text: str, action: str) -> dict[str, Any]:
    return {"type": "button", "action_id": action, "text": _plain(text)}


def _fallback(notice: Notice) -> str:
    """What notifications and screen readers say."""
    tool = cut(_inert(visible(notice.tool)), FACT_CHARS)
    return f"{title(notice)} `{tool}` ({notice.id})"


def _inert(text: str) -> str:
    return text.translate(_MARKUP)


def _said(body: bytes) -> _Said | None:
    try:
        return msgspec.json.decode(body, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _envelope(text: str) -> _Envelope | None:
    try:
        return msgspec.json.decode(text, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError):
        return None


def _named(error: str) -> str:
    """Slack's word for what is wrong; anything else it says may hold what it was sent."""
    return f" (`{error}`)" if _WORD.fullmatch(error) else ""
