"""The Telegram Bot API as its documentation has it, for one bot: what it takes, what it refuses, and long polling."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

from standins.door import Answered, Asked, Door

TOKEN, CHAT = "123456:AAbb-cc_Secret", -100123
STATES = {400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 409: "Conflict", 429: "Too Many Requests"}


class Telegram:
    """`async with Telegram() as telegram`; people click with `press`."""

    def __init__(self) -> None:
        self.door = Door(self.answer)
        self.messages: dict[int, dict[str, Any]] = {}
        self.updates: list[dict[str, Any]] = []
        self.answered: dict[str, dict[str, Any]] = {}
        self.edits = 0
        self.polls = 0
        self.polling = 0
        self._came = asyncio.Event()
        self._numbers = 800_000_000

    async def __aenter__(self) -> Telegram:
        await self.door.__aenter__()
        self.api = self.door.url
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.door.__aexit__()
        assert self.door.faults == []

    # what people do

    def press(self, user: int, label: str, message: int | None = None) -> str:
        """A click on the button with this label; the id of the click."""
        number = message or max(self.messages)
        data = next(
            button["callback_data"]
            for row in self.messages[number]["reply_markup"]["inline_keyboard"]
            for button in row
            if label in button["text"]
        )
        return self.click(user, data, number)

    def click(self, user: int, data: str, message: int = 1) -> str:
        self._numbers += 1
        id = f"44{self._numbers}"
        query = {
            "id": id,
            "from": {"id": user, "is_bot": False, "first_name": "Ann"},
            "message": {"message_id": message, "chat": {"id": CHAT, "type": "group"}, "date": 1},
            "chat_instance": "77",
            "data": data,
        }
        self.put({"callback_query": query})
        return id

    def put(self, update: dict[str, Any]) -> None:
        self._numbers += 1
        self.updates.append({"update_id": self._numbers, **update})
        self._came.set()

    # what bots are answered

    async def answer(self, asked: Asked) -> Answered:
        assert asked.method == "POST"
        _, bot, method = urlsplit(asked.path).path.split("/")
        if bot != f"bot{TOKEN}":
            return says(401)
        return await getattr(self, f"on_{method}")(asked.json)  # type: ignore[no-any-return]

    async def on_sendMessage(self, message: dict[str, Any]) -> Answered:
        assert set(message) <= {"chat_id", "text", "entities", "link_preview_options", "reply_markup"}
        if message.pop("chat_id") != CHAT:
            return says(400, "chat not found")
        checked(message)
        number = len(self.messages) + 1
        self.messages[number] = message
        return fine({"message_id": number, "date": 1, "chat": {"id": CHAT, "type": "group"}, "text": message["text"]})

    async def on_editMessageText(self, message: dict[str, Any]) -> Answered:
        assert message.pop("chat_id") == CHAT
        number = message.pop("message_id")
        if number not in self.messages:
            return says(400, "message to edit not found")
        checked(message)
        if message == self.messages[number]:
            return says(400, "message is not modified: specified new message content is the same")
        self.messages[number] = message
        self.edits += 1
        return fine({"message_id": number, "date": 1, "chat": {"id": CHAT, "type": "group"}})

    async def on_getUpdates(self, ask: dict[str, Any]) -> Answered:
        assert set(ask) <= {"offset", "limit", "timeout", "allowed_updates"}
        assert ask["allowed_updates"] == ["callback_query"]
        assert 1 <= ask["limit"] <= 100
        assert 0 < ask["timeout"] <= 50, "short polling is for testing"
        if self.polling:
            return says(409, "terminated by other getUpdates request; make sure that only one bot instance is running")
        self.polling += 1
        self.polls += 1
        try:
            offset = ask.get("offset", 0)
            while not any(one["update_id"] >= offset for one in self.updates):
                self._came.clear()
                await self._came.wait()
            self.updates = [one for one in self.updates if one["update_id"] >= offset]
            return fine(self.updates[: ask["limit"]])
        finally:
            self.polling -= 1

    async def on_answerCallbackQuery(self, ask: dict[str, Any]) -> Answered:
        assert set(ask) <= {"callback_query_id", "text", "show_alert"}
        assert len(ask["text"].encode("utf-16-le")) // 2 <= 200
        self.answered[ask["callback_query_id"]] = ask
        return fine(True)


def checked(message: dict[str, Any]) -> None:
    """Asserts that Telegram takes it, and that nothing in it can become markup, a link or a mention."""
    text = message["text"].encode("utf-16-le")
    assert 0 < len(text) // 2 <= 4096
    assert message["link_preview_options"] == {"is_disabled": True}
    for entity in message["entities"]:
        assert set(entity) == {"type", "offset", "length"}
        assert entity["type"] in ("bold", "code", "pre")
        assert 0 <= entity["offset"] < entity["offset"] + entity["length"] <= len(text) // 2
    for row in message.get("reply_markup", {"inline_keyboard": []})["inline_keyboard"]:
        for button in row:
            assert len(button) == 2, "a button has a text and one thing that it does"
            assert button["text"]
            if "url" in button:
                host = urlsplit(button["url"]).hostname or ""
                assert "." in host, "Bad Request: inline keyboard button URL is invalid: Wrong HTTP URL"
            else:
                assert 1 <= len(button["callback_data"].encode()) <= 64, "Bad Request: BUTTON_DATA_INVALID"


def fine(result: Any) -> Answered:
    return 200, {"content-type": "application/json"}, json.dumps({"ok": True, "result": result}).encode()


def says(status: int, more: str = "", **parameters: Any) -> Answered:
    said: dict[str, Any] = {
        "ok": False,
        "error_code": status,
        "description": STATES[status] + (f": {more}" if more else ""),
    }
    if parameters:
        said["parameters"] = parameters
    return status, {"content-type": "application/json"}, json.dumps(said).encode()
