"""A Discord webhook as its documentation has it: what a message may be, and how it is changed afterwards."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from standins.door import Answered, Asked, Door

HOOK = "/api/webhooks/123456789012345678/t-o_ken"


class Discord:
    """`async with Discord() as discord`."""

    def __init__(self) -> None:
        self.door = Door(self.answer)
        self.messages: dict[str, dict[str, Any]] = {}
        self.threads: list[str] = []

    async def __aenter__(self) -> Discord:
        await self.door.__aenter__()
        self.hook = f"{self.door.url}{HOOK}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.door.__aexit__()
        assert self.door.faults == []

    async def answer(self, asked: Asked) -> Answered:
        parts = urlsplit(asked.path)
        query = {name: value for name, (value,) in parse_qs(parts.query, strict_parsing=True).items()}
        assert set(query) <= {"wait", "with_components", "thread_id"}
        assert query.get("with_components") == "true", "without it the components are dropped in silence"
        self.threads.append(query.get("thread_id", ""))
        if asked.method == "POST" and parts.path == HOOK:
            id = str(1_400_000_000_000_000_000 + len(self.messages))
            self.messages[id] = checked(asked.json)
            if query.get("wait") != "true":
                return 204, {}, b""
        elif asked.method == "PATCH" and parts.path.startswith(f"{HOOK}/messages/"):
            id = parts.path.rpartition("/")[2]
            if id not in self.messages:
                return self.says(404, {"message": "Unknown Message", "code": 10008})
            self.messages[id] = checked(asked.json)
        else:
            return self.says(404, {"message": "Unknown Webhook", "code": 10015})
        return self.says(200, {"id": id, "type": 0, **self.messages[id]})

    @staticmethod
    def says(status: int, fields: Any) -> Answered:
        return status, {"content-type": "application/json"}, json.dumps(fields).encode()


def checked(message: dict[str, Any]) -> dict[str, Any]:
    """The message, if a webhook that belongs to no application may send it."""
    assert set(message) == {"content", "allowed_mentions", "flags", "components"}
    assert 0 < len(message["content"].encode("utf-16-le")) // 2 <= 2000
    assert message["allowed_mentions"] == {"parse": []}
    assert message["flags"] in (0, 4)
    assert len(message["components"]) <= 5
    for row in message["components"]:
        assert row["type"] == 1
        assert 0 < len(row["components"]) <= 5
        for button in row["components"]:
            assert set(button) == {"type", "style", "label", "url"}, "only link buttons, without a custom_id"
            assert (button["type"], button["style"]) == (2, 5)
            assert 0 < len(button["label"]) <= 80
            assert len(button["url"]) <= 512
            assert button["url"].startswith(("http://", "https://", "discord://"))
    return message
