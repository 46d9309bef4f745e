"""Slack as its documentation has it: one webhook, the methods that we use, Socket Mode, and what it refuses."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.server import ServerConnection, serve

from standins.door import Answered, Asked, Door

BOT, APP, SECRET, CHANNEL = "xoxb-bot", "xapp-app", "shhh", "C0123ABCD"
HOOK = "/services/T0/B0/secret"


class Slack:
    """`async with Slack() as slack`; clicks with `press` once something is posted and somebody listens."""

    def __init__(self) -> None:
        self.door = Door(self.answer)
        self.messages: dict[str, dict[str, Any]] = {}
        self.hooked: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        self.acks: asyncio.Queue[str] = asyncio.Queue()
        self.connected: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self.opened = 0
        self.refuse = ""
        self.socket_host = ""
        self._ts = 1_763_715_600
        self._envelopes = 0

    async def __aenter__(self) -> Slack:
        await self.door.__aenter__()
        self._wss = await serve(self._socket, "127.0.0.1", 0)
        self._port = next(iter(self._wss.sockets)).getsockname()[1]
        self.api = f"{self.door.url}/api"
        self.hook = f"{self.door.url}{HOOK}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._wss.close()
        await self._wss.wait_closed()
        await self.door.__aexit__()
        assert self.door.faults == []

    # --- the web side

    async def answer(self, asked: Asked) -> Answered:
        assert asked.method == "POST"
        if asked.path == HOOK:
            self.hooked.append(checked(asked.json))
            return 200, {"content-type": "text/html"}, b"ok"
        if asked.path.startswith("/answer/"):
            told = asked.json
            assert set(told) == {"response_type", "replace_original", "text"}
            assert told["response_type"] == "ephemeral"
            self.told.append(told)
            return 200, {}, b"ok"
        method = asked.path.removeprefix("/api/")
        token = APP if method == "apps.connections.open" else BOT
        if asked.headers.get("authorization") != f"Bearer {token}":
            return self.says(ok=False, error="invalid_auth")
        if self.refuse:
            return self.says(ok=False, error=self.refuse)
        if method == "apps.connections.open":
            assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
            self.opened += 1
            return self.says(
                ok=True, url=f"ws://{self.socket_host or '127.0.0.1'}:{self._port}/link/?ticket=t{self.opened}"
            )
        assert asked.headers["content-type"] == "application/json; charset=utf-8"
        fields = checked(asked.json)
        if method == "chat.postMessage":
            if fields["channel"] != CHANNEL:
                return self.says(ok=False, error="channel_not_found")
            self._ts += 1
            ts = f"{self._ts}.000100"
            self.messages[ts] = fields
            return self.says(ok=True, channel=CHANNEL, ts=ts, message=fields)
        if method == "chat.update":
            if fields["channel"] != CHANNEL or fields["ts"] not in self.messages:
                return self.says(ok=False, error="message_not_found")
            self.messages[fields["ts"]] = fields
            return self.says(ok=True, channel=CHANNEL, ts=fields["ts"], text=fields["text"])
        return self.says(ok=False, error="unknown_method")

    @staticmethod
    def says(**fields: Any) -> Answered:
        return 200, {"content-type": "application/json; charset=utf-8"}, json.dumps(fields).encode()

    # --- clicks

    def payload(
        self, user: str, action: str, *, ts: str | None = None, answer_url: str | None = None
    ) -> dict[str, Any]:
        ts = ts or next(reversed(self.messages))
        elements = [block["elements"] for block in self.messages[ts]["blocks"] if block["type"] == "actions"]
        (button,) = [one for one in elements[0] if one["action_id"] == action]
        return {
            "type": "block_actions",
            "user": {"id": user, "username": "shown", "name": "shown", "team_id": "T0"},
            "api_app_id": "A0", "token": "legacy", "trigger_id": "1.2.3",
            "container": {"type": "message", "message_ts": ts, "channel_id": CHANNEL, "is_ephemeral": False},
            "team": {"id": "T0", "domain": "d"}, "channel": {"id": CHANNEL, "name": "ops"},
            "message": {"type": "message", "ts": ts, **self.messages[ts]},
            "response_url": answer_url or f"{self.door.url}/answer/A0/1/secret",
            "actions": [{"action_id": action, "block_id": "b", "type": "button", "text": button["text"],
                         **({"value": button["value"]} if "value" in button else {}), "action_ts": ts}],
        }  # fmt: skip

    async def press(self, connection: ServerConnection, payload: dict[str, Any]) -> str:
        """Sends the click and waits for its acknowledgement, three seconds as Slack does."""
        self._envelopes += 1
        envelope = f"e-{self._envelopes}"
        await connection.send(
            json.dumps(
                {"envelope_id": envelope, "type": "interactive", "accepts_response_payload": True, "payload": payload}
            )
        )
        assert await asyncio.wait_for(self.acks.get(), 3) == envelope
        return envelope

    async def _socket(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        assert connection.request.path.startswith("/link/?ticket=")
        await connection.send(json.dumps({"type": "hello", "num_connections": 1, "connection_info": {"app_id": "A0"}}))
        self.connected.put_nowait(connection)
        async for text in connection:
            said = json.loads(text)
            assert set(said) <= {"envelope_id", "payload"}
            self.acks.put_nowait(said["envelope_id"])

    @staticmethod
    def signed(payload: dict[str, Any], now: float, secret: str = SECRET) -> tuple[str, str, bytes]:
        """Timestamp, signature and body as Slack posts a click."""
        body = urlencode({"payload": json.dumps(payload)}).encode()
        base = b"v0:%d:" % int(now) + body
        return str(int(now)), "v0=" + hmac.new(secret.encode(), base, "sha256").hexdigest(), body


def checked(message: dict[str, Any]) -> dict[str, Any]:
    """The message, if Block Kit takes it."""
    assert set(message) <= {"channel", "ts", "text", "blocks", "unfurl_links", "unfurl_media", "link_names"}, set(
        message
    )
    assert 0 < len(message["text"]) <= 40_000
    blocks = message["blocks"]
    assert len(blocks) <= 50
    for block in blocks:
        if block["type"] == "header":
            assert block["text"]["type"] == "plain_text"
            assert 0 < len(block["text"]["text"]) <= 150
        elif block["type"] == "section":
            text = block["text"]
            assert text["type"] == "mrkdwn"
            assert block["expand"] is True, "what is not expanded may be hidden behind `see more`"
            assert 0 < len(text["text"]) <= 3000, len(text["text"])
            escaped(text["text"])
        elif block["type"] == "actions":
            assert 0 < len(block["elements"]) <= 25
            ids = [one["action_id"] for one in block["elements"]]
            assert len(ids) == len(set(ids))
            for button in block["elements"]:
                assert set(button) <= {"type", "action_id", "text", "url", "value", "style", "confirm"}
                assert button["type"] == "button"
                assert button["text"]["type"] == "plain_text"
                assert 0 < len(button["text"]["text"]) <= 75
                assert len(button["action_id"]) <= 255
                assert len(button.get("url", "")) <= 3000
                assert len(button.get("value", "")) <= 2000
                assert button.get("style", "primary") in ("primary", "danger")
                if confirm := button.get("confirm"):
                    assert len(confirm["title"]["text"]) <= 100
                    assert len(confirm["text"]["text"]) <= 300
                    assert max(len(confirm[one]["text"]) for one in ("confirm", "deny")) <= 30
        else:
            raise AssertionError(f"an unknown block `{block['type']}`")
    return message


def escaped(text: str) -> None:
    """No `<…>` but dates, and no `&` but of the three entities."""
    bare = re.sub(r"<!date\^\d+\^[^<>|]*\|[^<>|]*>", "", text)
    assert not re.search("[<>]", bare), bare
    assert not re.search(r"&(?!(amp|lt|gt);)", re.sub(r"&[a-z]{0,3}…", "", bare)), bare
