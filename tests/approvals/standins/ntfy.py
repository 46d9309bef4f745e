"""An ntfy server as its documentation has it: publishing as JSON, messages into a topic, and its JSON stream."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from standins.door import Answered, Asked, Door

TOKEN = "tk_0123456789abcdef"
TOPIC, REPLY = "aegis-ask-Zr7", "aegis-say-Qx1"


class Ntfy:
    """`async with Ntfy() as ntfy`; people press with `press`. The topic can be read with the token alone."""

    def __init__(self) -> None:
        self.door = Door(self.answer)
        self.messages: list[dict[str, Any]] = []
        self.replies: list[dict[str, Any]] = []
        self.streams: list[asyncio.Queue[bytes | None]] = []
        self.since: list[str] = []

    async def __aenter__(self) -> Ntfy:
        await self.door.__aenter__()
        self.topic, self.reply = f"{self.door.url}/{TOPIC}", f"{self.door.url}/{REPLY}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.door.__aexit__()
        assert self.door.faults == []

    # what people do

    def press(self, label: str) -> dict[str, Any]:
        """The phone carries out the action of the newest message, with nothing but what stands in it."""
        action = next(one for one in self.messages[-1]["actions"] if one["label"] == label)
        assert action["action"] == "http"
        assert action["url"] == self.reply
        assert action["method"] == "POST"
        self.say(action["body"])
        return action  # type: ignore[no-any-return]

    def say(self, body: str) -> None:
        event = {"id": f"m{len(self.replies):05}", "time": 1, "event": "message", "topic": REPLY, "message": body}
        self.replies.append(event)
        self.stream(json.dumps(event).encode() + b"\n")

    def stream(self, data: bytes | None) -> None:
        for queue in self.streams:
            queue.put_nowait(data)
        if data is None:
            self.streams.clear()

    # what the server answers

    async def answer(self, asked: Asked) -> Answered:
        parts = urlsplit(asked.path)
        authorised = asked.headers.get("authorization") == f"Bearer {TOKEN}"
        if (asked.method, parts.path) == ("POST", "/"):
            return self.published(asked.json) if authorised else says(403, 40301, "forbidden")
        if (asked.method, parts.path) == ("GET", f"/{REPLY}/json"):
            assert authorised
            (since,) = parse_qs(parts.query)["since"]
            self.since.append(since)
            queue: asyncio.Queue[bytes | None] = asyncio.Queue()
            queue.put_nowait(b'{"id":"o","time":1,"event":"open","topic":"x"}\n')
            ids = [one["id"] for one in self.replies]
            for event in self.replies[ids.index(since) + 1 if since in ids else 0 :]:
                queue.put_nowait(json.dumps(event).encode() + b"\n")
            self.streams.append(queue)
            return 200, {}, queue
        return says(404, 40401, "page not found")

    def published(self, message: dict[str, Any]) -> Answered:
        assert set(message) <= {"topic", "title", "message", "priority", "tags", "actions", "click", "sequence_id"}
        assert message["topic"] == TOPIC
        assert 0 < len(message["message"].encode()) <= 4096, "it would become a file"
        assert len(json.dumps(message).encode()) <= 2 * 4096 + 4096
        assert len(message.get("actions", [])) <= 3
        for action in message.get("actions", []):
            assert action["action"] in ("view", "http")
            assert set(action) <= {"action", "label", "url", "method", "headers", "body", "clear"}
            assert action["url"].startswith(("http://", "https://"))
            assert "headers" not in action, "whoever reads the topic would have our token"
        assert TOKEN not in json.dumps(message)
        id = f"s{len(self.messages):05}"
        self.messages.append(message)
        said = {"id": id, "time": 1, "expires": 2, "event": "message", "topic": TOPIC, "message": message["message"]}
        return 200, {"content-type": "application/json"}, json.dumps(said).encode()


def says(status: int, code: int, error: str) -> Answered:
    return (
        status,
        {"content-type": "application/json"},
        json.dumps({"code": code, "http": status, "error": error}).encode(),
    )
