"""An error that sends a person to a page is a question of the server's, and judged as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, call

MakePlay = Callable[..., Play]

CLOSED = """
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true}}}}
"""
OPEN = CLOSED.replace("allowed: true", "allowed: true, server_requests: [elicitation]")
JUDGED = f"""{OPEN}
policy:
  text: |
    permit(principal, action == Action::"tools/call", resource);
    permit(principal, action == Action::"elicitation/create", resource)
    when {{ context.arguments.mode == "url" && context.arguments.url like "https://login.example.org/*" }};
"""
GOOD = {"mode": "url", "url": "https://login.example.org/x", "elicitationId": "1", "message": "log in"}
EVIL = {**GOOD, "url": "https://login.example.org.evil.example/x"}


def error(pages: Any, code: Any = -32042) -> dict[str, Any]:
    return {"code": code, "message": "log in", "data": {"elicitations": pages}}


def heard(make_play: MakePlay, house: str, found: Any) -> dict[str, Any]:
    """The error that the client hears."""
    s = make_play(house).session().handshake()
    s.client.says(call(1, "deploy"))
    asked = s.server.hears("tools/call")
    s.server.says({"jsonrpc": "2.0", "id": asked["id"], "error": found})
    answer: dict[str, Any] = s.client.next()["error"]
    return answer


@pytest.mark.parametrize(("house", "pages"), [(OPEN, [EVIL]), (OPEN, []), (JUDGED, [GOOD]), (JUDGED, [GOOD, GOOD])])
def test_a_page_that_may_be_asked_for_reaches_the_client(make_play: MakePlay, house: str, pages: Any) -> None:
    assert heard(make_play, house, error(pages)) == error(pages)


@pytest.mark.parametrize(
    ("house", "found"),
    [
        (CLOSED, error([GOOD])),
        (CLOSED, error([GOOD], -32042.0)),
        (JUDGED, error([EVIL])),
        (JUDGED, error([GOOD, EVIL])),
        (JUDGED, error([{**EVIL, "mode": "form"}])),
        (JUDGED, error([{key: value for key, value in EVIL.items() if key != "mode"}])),
        (JUDGED, error([{**GOOD, "URL": "https://evil.example"}])),
        (JUDGED, error([7])),
        (JUDGED, error(EVIL)),
        (JUDGED, {"code": -32042, "message": "", "Data": {"Elicitations": [EVIL]}}),
    ],
)
def test_any_other_is_withheld(make_play: MakePlay, house: str, found: Any) -> None:
    answer = heard(make_play, house, found)
    assert answer["code"] == -32603
    assert "withheld" in answer["message"]
    assert "evil" not in str(answer)


@pytest.mark.parametrize("house", [CLOSED, JUDGED])
@pytest.mark.parametrize(
    "found", [error([EVIL], -32602), {"code": -32042, "message": "m"}, {"code": -1, "message": "m"}]
)
def test_an_error_that_asks_nothing_passes_as_it_is(make_play: MakePlay, house: str, found: Any) -> None:
    assert heard(make_play, house, found) == found


def test_in_observe_mode_it_passes_and_is_recorded(make_play: MakePlay) -> None:
    play = make_play(CLOSED + "mode: observe\n")
    s = play.session().handshake()
    s.client.says(call(1, "deploy"))
    s.server.says({"jsonrpc": "2.0", "id": s.server.hears("tools/call")["id"], "error": error([GOOD])})
    s.client.hears_error(1, -32042)
    assert any(one.kind == "denied" and one.would for one in play.log.records)
