"""A server sees those roots of the client that the policies permit it to, in either era; the others never reach it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from making import tool
from playbook import Play, call, modern, request, result, text

from aegis_daemon.core.roots import UnreadableRoots, left_of_text
from aegis_daemon.wire.jsonrpc import encode

MakePlay = Callable[..., Play]

OPEN = """
backends: {files: {}}
agents: {bot: {backends: {files: {allowed: true, server_requests: [roots, elicitation]}}}}
"""
HOUSE = f"""{OPEN}
policy:
  text: |
    permit(principal, action, resource);
    @id("no-local-roots") forbid(principal, action == Action::"roots/list", resource)
    when {{ context.target like "file:*" }};
"""
FEW = f"""{OPEN}
policy:
  text: |
    permit(principal, action == Action::"tools/call", resource);
    permit(principal, action == Action::"roots/list", resource)
    when {{ context.target == "roots" || context.target like "https://example.org/*" }};
"""
SHARED = {"uri": "https://example.org/shared", "name": "shared"}
LOCAL = ["file:///home/me/secret", "FILE:///home/me", "file:/home/me", "%66ile:///home", "\tfile:///home/me", "roots"]


def shown(make_play: MakePlay, house: str, answer: Any) -> Any:
    """What the server hears of a legacy client's answer."""
    s = make_play(house).session().handshake()
    s.server.says(request("q", "roots/list"))
    s.client.says(result(s.client.hears("roots/list")["id"], answer))
    return s.server.hears_result("q")


@pytest.mark.parametrize("uri", LOCAL)
@pytest.mark.parametrize("house", [HOUSE, FEW], ids=["forbid", "permit"])
def test_a_local_root_is_left_out_however_it_is_spelt(make_play: MakePlay, house: str, uri: str) -> None:
    answer = {"roots": [{"uri": uri}, SHARED], "_meta": {"x": 1}}
    assert shown(make_play, house, answer) == {"roots": [SHARED], "_meta": {"x": 1}}


@pytest.mark.parametrize("uri", LOCAL)
@pytest.mark.parametrize("house", [HOUSE, FEW], ids=["forbid", "permit"])
def test_the_same_where_a_modern_client_repeats_its_call_with_them(make_play: MakePlay, house: str, uri: str) -> None:
    play = make_play(house)
    s = play.session()
    s.client.says(modern(call(1, "deploy")))
    asks = {"r": {"method": "roots/list"}, "e": {"method": "roots/list"}}
    needs = {"resultType": "input_required", "inputRequests": asks, "requestState": "S"}
    s.server.answers(s.server.hears("tools/call"), needs)
    s.client.hears_result(1, needs)
    other = {"action": "accept", "content": {"where": uri}}
    again = modern(call(2, "deploy"), inputResponses={"r": {"roots": [{"uri": uri}, SHARED]}, "e": other})
    again["params"]["requestState"] = "S"
    s.client.says(again)
    heard = s.server.hears("tools/call", requestState="S", inputResponses={"r": {"roots": [SHARED]}, "e": other})
    s.server.answers(heard, text("ok"))
    s.client.hears_result(2)
    intent = next(one for one in reversed(play.log.records) if one.kind == "intent")
    assert play.body(intent)["inputResponses"]["r"] == {"roots": [SHARED]}  # what is recorded is what was sent


def test_without_policies_an_answer_passes_as_it_is(make_play: MakePlay) -> None:
    answer = {"roots": [{"uri": "file:///home/me"}, 7]}
    assert shown(make_play, OPEN, answer) == answer


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"roots": 1},
        {"roots": [7]},
        {"roots": [{}]},
        {"roots": [SHARED] * 257},
    ],
)
def test_roots_that_cannot_be_judged_are_withheld(make_play: MakePlay, answer: dict[str, Any]) -> None:
    s = make_play(HOUSE).session().handshake()
    s.server.says(request("q", "roots/list"))
    s.client.says(result(s.client.hears("roots/list")["id"], answer))
    s.server.hears_error("q", -32603, "withheld")
    if "roots" in answer:
        again = make_play(HOUSE).session()
        again.client.says(modern(call(1, "deploy"), inputResponses={"r": answer}, requestState="S"))
        again.client.hears_error(1, -32602, "cannot be judged")
        again.server.hears_nothing()


@pytest.mark.parametrize(
    "answer",
    [{"roots": [SHARED], "Roots": [{"uri": "file:///x"}]}, {"roots": [{**SHARED, "URI": "file:///x"}]}],
)
def test_what_one_reader_takes_for_roots_and_another_does_not_reaches_nobody(
    make_play: MakePlay, answer: dict[str, Any]
) -> None:
    play = make_play(HOUSE)
    s = play.session().handshake()
    s.server.says(request("q", "roots/list"))
    s.client.says(result(s.client.hears("roots/list")["id"], answer))
    s.server.hears_nothing()
    with pytest.raises(UnreadableRoots):
        left_of_text(tool("x"), encode(answer), play.runtime.pipeline)


def test_in_observe_mode_all_roots_are_shown_and_what_would_be_left_out_is_recorded(make_play: MakePlay) -> None:
    play = make_play(HOUSE + "mode: observe\n")
    s = play.session().handshake()
    s.server.says(request("q", "roots/list"))
    answer = {"roots": [{"uri": "file:///home/me"}, SHARED]}
    s.client.says(result(s.client.hears("roots/list")["id"], answer))
    assert s.server.hears_result("q") == answer
    assert any(one.would and "file:///home/me" in one.policy for one in play.log.records if one.kind == "denied")
