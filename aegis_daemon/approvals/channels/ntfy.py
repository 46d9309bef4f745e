"""An ntfy topic tells people; where there is a reply topic, its buttons answer there, and we listen.

ntfy knows nobody: whoever reads the topic decides with its buttons, so both topics are passwords, and `voter` is the
same for everybody. An answer counts only with the proof that its message carried, and once, as every decision does.
Our token for the topics never stands in a message: the reply topic must be one that anybody may write to.

Source: ntfy's publishing as JSON, its `view` and `http` actions, and its JSON stream of a topic.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import msgspec

from aegis_daemon.approvals.channels.notice import Hear, Heard, Notice, Post, Reach, Trouble, cut, shown, title, utf8

MESSAGE_BYTES: Final = 4096
"""What is longer, ntfy makes a file of, without anybody seeing the text."""
ARGUMENTS_BYTES: Final = 2200
NAME_BYTES: Final = 180
GLANCE_BYTES: Final = 400
"""Of arguments that can be approved from a message: phones show no more of it beside the buttons."""
_FIRST_SINCE: Final = "10m"
"""Answers given while the daemon was away still count, as long as their ticket waits."""
_ANSWER = re.compile(r"aegis (approve|reject) ([0-9a-f]{32}) ([A-Za-z0-9_-]{16})")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _Sent(msgspec.Struct):
    id: str


class _Event(msgspec.Struct):
    """A line of a topic's stream."""

    event: str
    id: str = ""
    message: str = ""


class Ntfy:
    """`approval.ntfy`. `topic` and `reply` are addresses of topics; `token` is an access token (`tk_…`)."""

    name = "ntfy"

    def __init__(self, topic: str, token: str | None = None, reply: str | None = None) -> None:
        self._server, self._topic = _split(topic)
        self._token = token or ""
        self._reply = reply or ""
        self._since = _FIRST_SINCE

    @property
    def answers(self) -> bool:
        """Whether there is a reply topic."""
        return bool(self._reply)

    def post(self, notice: Notice, now: float) -> Post:
        """Published as JSON, to the server's root."""
        text, glance = _text(notice, "")
        message: dict[str, Any] = {"priority": 4, "tags": ["lock"], "actions": self._actions(notice, glance)}
        if notice.approve_url and not notice.test:
            message["click"] = notice.approve_url
        elif notice.look_url:
            message["click"] = notice.look_url
        return self._publish({"title": title(notice), "message": text, **message})

    def fault(self, status: int, body: bytes) -> str | None:
        """A yes is a 200 that names the message."""
        if status in (401, 403):
            return f"it answered {status}: the topic needs a token, or another one; see `approval.ntfy.token`"
        if status != 200:
            return f"it answered {status}"
        return None if self.handle(body) else "it answered 200 without the message's id"

    def handle(self, body: bytes) -> str:
        """The message's id."""
        try:
            id = msgspec.json.decode(body, type=_Sent).id
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""
        return id if _ID.fullmatch(id) else ""

    def closing(self, notice: Notice, handle: str, how: str) -> Post | None:
        """Takes the message's place (ntfy 2.16 and later; earlier ones show it beside the message), without a sound."""
        if not handle:
            return None
        text, _ = _text(notice, how)
        return self._publish(
            {"title": "Aegis: over", "message": text, "priority": 1, "tags": ["lock"], "sequence_id": handle}
        )

    def _actions(self, notice: Notice, glance: bool) -> list[dict[str, Any]]:
        if notice.test and notice.look_url:
            return [{"action": "view", "label": "Look", "url": notice.look_url}]
        if notice.test or not notice.approve_url:
            return []
        look = {"action": "view", "label": "Look", "url": notice.approve_url}
        if self.answers and notice.proof:
            asked = [("Approve", "approve")] if glance else []
            return [
                *(self._answer(notice, label, action) for label, action in (*asked, ("Reject", "reject"))),
                look,
            ]
        return [
            {"action": "view", "label": "Approve…", "url": notice.approve_url},
            {"action": "view", "label": "Reject…", "url": notice.reject_url},
        ]

    def _answer(self, notice: Notice, label: str, action: str) -> dict[str, Any]:
        return {
            "action": "http",
            "label": label,
            "method": "POST",
            "url": self._reply,
            "body": f"aegis {action} {notice.call_id} {notice.proof}",
            "clear": True,
        }

    def _publish(self, message: dict[str, Any]) -> Post:
        body = msgspec.json.encode({"topic": self._topic, **message})
        return Post(self._server, {"content-type": "application/json", **self._headers()}, body)

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._token}"} if self._token else {}

    async def listen(self, reach: Reach, hear: Hear) -> None:
        """Reads the reply topic until cancelled. Raises `Trouble` where the stream ends, `Fault` where it breaks."""
        url = f"{self._reply.rstrip('/')}/json?since={self._since}"
        async for line in reach.lines(url, self._headers()):
            try:
                event = msgspec.json.decode(line, type=_Event)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if event.event != "message":
                continue  # open, keepalive
            found = _ANSWER.fullmatch(event.message.strip())
            if found is not None:
                action, call_id, proof = found.groups()
                await hear(Heard(call_id, proof, action == "approve", "ntfy", "ntfy"))
            if _ID.fullmatch(event.id):
                self._since = event.id
        raise Trouble("the reply topic's stream ended")


def configured(
    *, topic_url: str | None = None, token: str | None = None, reply_topic_url: str | None = None
) -> Ntfy | None:
    """The channel of a section, None where it has no topic. Raises `ValueError` for an address that names none."""
    return Ntfy(topic_url, token, reply_topic_url) if topic_url else None


def _split(topic: str) -> tuple[str, str]:
    """The server's address and the topic's name."""
    parts = urlsplit(topic)
    path, _, name = parts.path.rstrip("/").rpartition("/")
    if not name:
        raise ValueError("the address of an ntfy topic ends with the topic's name, like `https://ntfy.sh/NAME`")
    return urlunsplit((parts.scheme, parts.netloc, path + "/", "", "")), name


def _text(notice: Notice, how: str) -> tuple[str, bool]:
    """The message, and whether a glance shows the whole call. Plain text: ntfy makes no markup of it unless told to."""
    told, arguments, whole = shown(notice, NAME_BYTES, ARGUMENTS_BYTES, utf8)
    lines = [f"{label}: {value}" for label, value in told]
    if notice.headline:
        return cut("\n".join(lines), MESSAGE_BYTES, utf8), True
    lines.append(f"Arguments: {arguments}")
    glance = whole and utf8(arguments) <= GLANCE_BYTES
    if not glance:
        lines.append(f"({'long' if whole else 'cut'}; the page shows the whole call, and approves it)")
    if how:
        lines.insert(0, cut(how, 400, utf8))
    return cut("\n".join(lines), MESSAGE_BYTES, utf8), glance
