"""A workflow that posts what its webhook receives to a Teams channel: 28 KB, adaptive cards 1.4, and 202 for all."""

from __future__ import annotations

from typing import Any

from standins.door import Answered, Asked, Door

HOOK = "/workflows/abc/triggers/manual/paths/invoke?api-version=2016-06-01&sig=secret"


class Teams:
    """`async with Teams() as teams`."""

    def __init__(self) -> None:
        self.door = Door(self.answer)
        self.cards: list[dict[str, Any]] = []

    async def __aenter__(self) -> Teams:
        await self.door.__aenter__()
        self.hook = f"{self.door.url}{HOOK}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.door.__aexit__()
        assert self.door.faults == []

    async def answer(self, asked: Asked) -> Answered:
        assert (asked.method, asked.path) == ("POST", HOOK)
        assert len(asked.body) <= 28 * 1024
        self.cards.append(checked(asked.json))
        return 202, {}, b""


def checked(message: dict[str, Any]) -> dict[str, Any]:
    """The card, if Teams shows it."""
    assert set(message) == {"type", "attachments"}
    assert message["type"] == "message"
    (attachment,) = message["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    card: dict[str, Any] = attachment["content"]
    assert (card["type"], card["version"]) == ("AdaptiveCard", "1.4")
    for element in card["body"]:
        assert element["type"] == "RichTextBlock", "text blocks and fact sets read markdown"
        for run in element["inlines"]:
            assert set(run) <= {"type", "text", "weight", "size", "fontType"}
            assert run["type"] == "TextRun"
    assert len(card["actions"]) <= 6
    for action in card["actions"]:
        assert set(action) == {"type", "title", "url"}
        assert action["type"] == "Action.OpenUrl", "a click can be taken by a bot alone"
        assert action["url"].startswith("https://")
    return card
