"""Policies on the way of whole sessions: what the client hears, what the server never does, what the log says."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hubbook import HubSession
from playbook import Play, call, modern, request, text

MakePlay = Callable[..., Play]
HUB = """
backends: {files: {}, mail: {}}
agents: {bot: {backends: {files: {allowed: true}, mail: {allowed: true}}}}
constraints: {pay: {arguments: {eur: {max: 5}}}}
policy:
  text: |
    permit(principal, action, resource);
    forbid(principal, action, resource == Server::"files") when { context.target == "drop" };
"""

HOUSE = """
backends: {files: {}}
agents:
  bot:
    roles: [Dev]
    backends: {files: {allowed: true, server_requests: [elicitation, sampling]}}
policy:
  text: |
    permit(principal in Role::"Dev", action, resource);
    @id("no-prod") forbid(principal, action, resource) when { context.arguments has env && context.arguments.env == "prod" };
    @id("no-rm") forbid(principal, action, resource) when { context.target == "rm" };
    @id("no-keys") forbid(principal, action == Action::"elicitation/create", resource)
    when { context.arguments.message like "*key*" };
    @id("no-secrets") forbid(principal, action == Action::"prompts/get", resource) when { context.target == "secret" };
"""


def test_a_call_that_a_policy_forbids_never_reaches_the_server_and_names_the_policy(make_play: MakePlay) -> None:
    play = make_play(HOUSE)
    s = play.session().handshake()
    s.client.says(call(1, "deploy", env="prod"))
    refusal = s.client.hears_error(1, -32001, "a policy does not allow this call", policy="no-prod", stage="policy")
    assert "aegis audit show" in refusal["message"]
    s.server.hears_nothing()
    (denied,) = play.recorded("denied")
    assert "forbidden by `no-prod`" in denied.policy
    assert s.calls(call(2, "deploy", env="test"), text("ok")) == text("ok")


def test_the_same_in_the_modern_era_is_a_result(make_play: MakePlay) -> None:
    play = make_play(HOUSE)
    s = play.session()
    s.client.says(modern(call(1, "deploy", env="PROD")))
    found = s.client.hears_result(1)
    assert found["isError"] is True
    assert found["_meta"]["aegis/denial"]["policy"] == "no-prod"
    s.server.hears_nothing()


def test_what_is_forbidden_by_name_is_hidden_and_reads_as_if_it_were_not_there(make_play: MakePlay) -> None:
    s = make_play(HOUSE).session().handshake()
    tools = {"tools": [{"name": "rm", "inputSchema": {}}, {"name": "deploy", "inputSchema": {}}]}
    assert [one["name"] for one in s.calls(request(1, "tools/list"), tools)["tools"]] == ["deploy"]
    prompts = {"prompts": [{"name": "secret"}, {"name": "hello"}]}
    assert [one["name"] for one in s.calls(request(2, "prompts/list"), prompts)["prompts"]] == ["hello"]
    s.client.says(call(3, "rm"))
    refusal = s.client.hears_error(3, -32001, "not available")
    assert "policy" not in refusal["data"]
    s.client.says(request(4, "prompts/get", name="secret"))
    s.client.hears_error(4, -32001, "not available")
    s.server.hears_nothing()


def test_a_servers_question_is_judged_on_its_way_to_the_client(make_play: MakePlay) -> None:
    s = make_play(HOUSE).session().handshake(capabilities={"elicitation": {}, "sampling": {}})
    s.server.says(request("q1", "elicitation/create", message="your api key?", requestedSchema={}))
    s.server.hears_error("q1", -32001)
    s.server.says(request("q2", "elicitation/create", message="your name?", requestedSchema={}))
    s.client.hears("elicitation/create", message="your name?")


@pytest.mark.parametrize(
    ("message", "passing"), [("your name?", True), ("your api key?", False), ("your API%20KEY?", False), (7, False)]
)
def test_a_question_inside_an_answer_is_judged_alike(make_play: MakePlay, message: object, passing: bool) -> None:
    play = make_play(HOUSE)
    s = play.session()
    s.client.says(modern(call(1, "deploy")))
    ask = {"q": {"method": "elicitation/create", "params": {"message": message}}}
    s.server.answers(
        s.server.hears("tools/call"), {"resultType": "input_required", "inputRequests": ask, "requestState": "S"}
    )
    if passing:
        assert s.client.hears_result(1)["inputRequests"] == ask
    else:
        s.client.hears_error(1, -32603)


def test_in_observe_mode_a_refusal_passes_and_is_recorded(make_play: MakePlay) -> None:
    play = make_play(HOUSE + "mode: observe\n")
    s = play.session().handshake()
    assert s.calls(call(1, "deploy", env="prod"), text("ok")) == text("ok")
    denied = play.recorded("denied", "intent", "outcome")[0]
    assert (denied.would, denied.stage) == (True, "policy")


def test_todays_policies_hold_after_a_reload(make_play: MakePlay) -> None:
    play = make_play(HOUSE)
    s = play.session().handshake()
    assert s.calls(call(1, "deploy", env="test"), text("ok")) == text("ok")
    play.reload(HOUSE.replace('== "prod"', '== "test"'))
    s.client.says(call(2, "deploy", env="test"))
    s.client.hears_error(2, -32001, "policy")


def test_how_long_judging_took_is_recorded_where_policies_look_at_arguments(make_play: MakePlay) -> None:
    play = make_play(HOUSE)
    ticks = iter(range(10**6))
    play.shell.now = lambda: 1000.0 + next(ticks) / 1000
    s = play.session().handshake()
    s.client.says(call(1, "deploy", env="prod"))
    s.client.hears_error(1, -32001)
    assert s.calls(call(2, "deploy", env="test"), text("ok")) == text("ok")
    denied, intent, _ = play.recorded("denied", "intent", "outcome")
    assert denied.judged_us > 0
    assert intent.judged_us > 0
    unjudged = make_play()
    assert unjudged.runtime.pipeline.timed is False


def test_where_several_backends_are_one_the_rules_and_policies_meet_the_tools_own_names(make_play: MakePlay) -> None:
    play = make_play(HUB)
    hub = HubSession(play, ["files", "mail"])
    for id, (name, eur, code) in enumerate(
        (
            ("files__pay", 6, "constraint"),
            ("files__PAY", 6, "constraint"),
            ("files__drop", 1, "policy_denied"),
            ("files__DROP", 1, "policy_denied"),
            ("mail__pay", 6, "constraint"),
        )
    ):
        frame = modern(call(id, "x", eur=eur))
        frame["params"]["name"] = name
        hub.client.says(frame)
        found = json.dumps(json.loads(hub.client.inbox.popleft()))
        assert code in found or "is not available" in found, (name, found)
    hub["files"].hears_nothing()
    frame = modern(call(9, "x", eur=5))
    frame["params"]["name"] = "files__pay"
    hub.client.says(frame)
    hub["files"].answers(hub["files"].hears("tools/call", name="pay"), text("paid"))
    hub.client.hears_result(9)
