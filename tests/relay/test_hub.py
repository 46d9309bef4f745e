"""Several backends are one server to their client, and stay apart from each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hubbook import CONFIG, HubSession
from playbook import Play, call, cancel, error, like, modern, note, raw, request, result, text

from aegis_daemon.relay.admission import Refused
from aegis_daemon.relay.hub import CLOGGED
from aegis_daemon.relay.lateness import Lateness
from aegis_daemon.wire.jsonrpc import MAX_FRAME_OUT
from aegis_daemon.wire.methods import META_SUBSCRIPTION, TO_SERVER

MakePlay = Callable[..., Play]

THREE = """
backends: {git: {}, mail: {}, web: {}}
agents: {bot: {backends: {git: {allowed: true}, mail: {allowed: true}, web: {allowed: true}}}}
"""
OPEN = """
backends: {git: {}, mail: {}}
agents:
  bot:
    backends:
      git: {allowed: true, server_requests: [sampling, elicitation, roots]}
      mail: {allowed: true, server_requests: [sampling, elicitation, roots]}
"""
READY = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {}}


def tools(*names: str, **more: Any) -> dict[str, Any]:
    return {"tools": [{"name": name, "inputSchema": {}} for name in names], **more}


def resources(*uris: str, **more: Any) -> dict[str, Any]:
    return {"resources": [{"uri": uri, "name": uri} for uri in uris], **more}


def names(listed: dict[str, Any]) -> list[str]:
    return [tool["name"] for tool in listed["tools"]]


def lists(s: HubSession, id: Any, method: str, **results: Any) -> dict[str, Any]:
    """A list that every backend answers at once."""
    s.client.says(request(id, method))
    for backend, value in results.items():
        s[backend].answers(s[backend].hears(method), value)
    return s.client.hears_result(id)


def hello(s: HubSession) -> None:
    s.client.says(
        request(
            "init", "initialize", protocolVersion="2025-11-25", capabilities={"roots": {}}, clientInfo={"name": "c"}
        )
    )


# --- the handshake ----------------------------------------------------------------------------------------------------


def test_every_method_that_is_let_through_has_a_way(make_play: MakePlay) -> None:
    from aegis_daemon.relay.hub import _ROUTES

    assert set(_ROUTES) == set(TO_SERVER)


def test_the_handshakes_are_one(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    hello(s)
    s.joins("mail", {"resources": {"subscribe": True}, "tools": {"x": 1}}, "2025-06-18", instructions="Mail away. ")
    s.client.hears_nothing()
    s.joins("git", {"tools": {"listChanged": False}, "logging": {}}, instructions="Commit often.")
    heard = s.client.hears_result("init")
    assert heard["protocolVersion"] == "2025-06-18"
    assert heard["capabilities"] == {
        "tools": {"listChanged": True, "x": 1}, "logging": {}, "resources": {"subscribe": True, "listChanged": True},
    }  # fmt: skip
    assert heard["serverInfo"]["name"] == "aegis"
    assert heard["instructions"] == "# git\n\nCommit often.\n\n# mail\n\nMail away."
    s.client.says(note("initialized"))
    s.each(lambda server: server.hears("notifications/initialized"))


def test_a_backend_that_cannot_be_opened_is_left_out(make_play: MakePlay) -> None:
    s = HubSession(make_play(THREE), ["git", "mail", "web"])
    s.failing["git"] = OSError(24, "too many open files")
    s.failing["web"] = Refused("the backend `web` is closed today")
    hello(s)
    s.joins("mail")
    s.client.hears_result("init")
    s.client.says(call(1, "git__log"), call(2, "web__get"))
    s.client.hears_error(1, -32603, "the backend `git` is not there", reason="no_server")
    s.client.hears_error(2, -32603, "closed today", retryable=True)


def test_a_backend_whose_process_cannot_be_begun_is_left_out(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    s.unstartable["git"] = "No space left"
    hello(s)
    s.joins("mail")
    s.client.hears_result("init")


def test_a_backend_that_refuses_the_handshake_is_left_out(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    hello(s)
    s["git"].fails(s["git"].hears("initialize"), -32000, "bad token")
    s.joins("mail")
    s.client.hears_result("init")
    assert s["git"].ending
    s.client.says(call(1, "git__log"))
    s.client.hears_error(1, -32603, "bad token")


def test_where_all_refuse_the_first_error_stands(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    hello(s)
    s["mail"].fails(s["mail"].hears("initialize"), -32001, "mail says no")
    s["git"].fails(s["git"].hears("initialize"), -32002, "git says no")
    s.client.hears_error("init", -32002, "git says no")


def test_a_backend_that_hangs_holds_nobody_up_and_joins_when_it_comes(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play)
    hello(s)
    s.joins("mail")
    play.advance(9.9)
    s.client.hears_nothing()
    play.advance(0.2)
    s.client.hears_result("init")
    s.client.says(note("initialized"))
    s["mail"].hears("notifications/initialized")
    s.client.says(call(1, "git__log"))
    heard = s["git"].hears("initialize")
    s["git"].hears_nothing()
    s["git"].answers(heard, READY)
    s["git"].hears("notifications/initialized")
    s["git"].answers(s["git"].hears("tools/call", name="log"), text("ok"))
    s.client.hears("notifications/tools/list_changed")
    s.client.hears_result(1)


def test_a_backend_that_never_takes_up_the_handshake_fails_its_own_calls_only(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play)
    hello(s)
    s.joins("mail")
    play.advance(11)
    s.client.hears_result("init")
    s.client.says(call(1, "git__log"))
    s["git"].hears("initialize")
    play.advance(120)
    s.client.hears_error(1, -32603, "the backend `git` is not there")


def test_what_waits_for_a_backend_can_be_cancelled(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play)
    hello(s)
    s.joins("mail")
    play.advance(11)
    s.client.hears_result("init")
    heard = s["git"].hears("initialize")
    s.client.says(call(1, "git__log"), cancel(1))
    s["git"].answers(heard, READY)
    s["git"].hears_nothing()
    s.client.hears("notifications/tools/list_changed")
    assert not s.client.slots


def test_so_many_frames_wait_for_a_backend(make_play: MakePlay) -> None:
    play = make_play("server: {max_in_flight_session: 270}\n" + CONFIG)
    s = HubSession(play)
    hello(s)
    s.joins("mail")
    play.advance(11)
    s.client.hears_result("init")
    s.client.says(*(call(n, "git__log") for n in range(257)))
    s.client.hears_error(256, -32003, "takes no more now")
    s["git"].hears("initialize")
    s.client.leaves()
    s.client.inbox.clear()


def test_no_backend_at_all_is_told(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG), [])
    hello(s)
    s.client.hears_error("init", -32001, "no backend is available")


def test_pings_are_answered_here(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, "ping"))
    s.client.hears_result(1, {})
    s.is_quiet()


def test_the_log_level_is_for_those_that_log(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake({"git": {"tools": {}}})
    s.client.says(request(1, "logging/setLevel", level="error"))
    s["mail"].answers(s["mail"].hears("logging/setLevel", level="error"), {})
    s.client.hears_result(1, {})
    s["mail"].says(note("message", level="error", data=1), note("message", level="error", logger="smtp", data=2))
    s.client.hears("notifications/message", logger="mail", data=1)
    s.client.hears("notifications/message", logger="mail.smtp", data=2)


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_call_goes_to_its_backend_under_its_own_name(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake()
    s.client.says(call(1, "git__log", n=5), call("1", "mail__log", n=6))
    git, mail = s["git"].hears("tools/call", name="log", arguments={"n": 5}), s["mail"].hears("tools/call", name="log")
    s["mail"].answers(mail, text("mail"))
    s.client.hears_result("1", text("mail"))
    s["git"].answers(git, text("git"))
    s.client.hears_result(1, text("git"))
    found = play.recorded("intent", "intent", "outcome", "outcome")
    assert [(one.backend, one.name) for one in found[:2]] == [("git", "log"), ("mail", "log")]


def test_an_answer_passes_byte_for_byte(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(call(1, "git__log"))
    heard = s["git"].hears("tools/call")
    s["git"].says(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[],"n":1.50,"x": null}}' % heard["id"])
    assert s.client.inbox.pop() == b'{"jsonrpc":"2.0","id":1,"result":{"content":[],"n":1.50,"x": null}}'


@pytest.mark.parametrize("tool", ["a__b", "__x", "_x", "x__", "git__log", "é"])
def test_a_tools_own_name_may_look_like_a_prefix(make_play: MakePlay, tool: str) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(call(1, f"git__{tool}"))
    s["git"].answers(s["git"].hears("tools/call", name=tool), text("ok"))
    s.client.hears_result(1)
    s["mail"].hears_nothing()


@pytest.mark.parametrize("name", ["log", "git", "git_", "git__", "GIT__log", "web__log", " git__log", "git_log"])
def test_an_unknown_name_is_refused_in_the_words_for_a_hidden_one(make_play: MakePlay, name: str) -> None:
    play = make_play(CONFIG.replace("git: {allowed: true}", "git: {allowed: true, tool_denylist: [hidden]}"))
    s = HubSession(play).handshake()
    s.client.says(call(1, name), call(2, "git__hidden"))
    unknown = s.client.hears_error(1, -32602, f"the tool `{name}` is not available to this agent", by="aegis")
    hidden = s.client.hears_error(2, -32001)
    said, meant = (error["message"].partition("`")[2].partition("`")[2] for error in (unknown, hidden))
    how = "" if "__" in name else "; tools at this address are named `backend__tool`"
    assert said[:-14] == meant[:-14].replace("agent;", f"agent{how};")
    play.recorded({"kind": "denied", "name": name, "stage": "params"}, {"kind": "denied", "name": "hidden"})
    s.is_quiet()


def test_a_backend_whose_name_begins_with_anothers_keeps_its_tools(make_play: MakePlay) -> None:
    config = CONFIG.replace("git:", "mail_:")
    s = HubSession(make_play(config), ["mail", "mail_"]).handshake()
    listed = lists(s, 1, "tools/list", mail=tools("_x", "y"), mail_=tools("x"))
    assert names(listed) == ["mail__y", "mail___x"]
    s.client.says(call(2, "mail___x"))
    s["mail_"].answers(s["mail_"].hears("tools/call", name="x"), text("ok"))
    s.client.hears_result(2)


def test_prompts_and_their_completions_are_named_alike(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, "prompts/get", name="mail__draft"))
    s["mail"].answers(s["mail"].hears("prompts/get", name="draft"), {"messages": []})
    s.client.hears_result(1, {"messages": []})
    ref = {"type": "ref/prompt", "name": "git__commit", "title": "t"}
    s.client.says(request(2, "completion/complete", ref=ref, argument={"name": "a", "value": "b"}))
    s["git"].answers(s["git"].hears("completion/complete", ref={**ref, "name": "commit"}), {"completion": {}})
    s.client.hears_result(2, {"completion": {}})
    s.client.says(request(3, "completion/complete", ref={"type": "ref/prompt", "name": "commit"}))
    s.client.hears_error(3, -32602, "the prompt `commit` is not available to this agent")
    s.client.says(request(4, "completion/complete", ref="x"), request(5, "tools/call"))
    s.client.hears_error(4, -32602, "`ref` must be an object")
    s.client.hears_error(5, -32602, "`name` must be a string")


def test_limits_count_under_the_tools_own_name(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("git: {allowed: true}", "git: {allowed: true, rate_limits: {log: 1/day}}"))
    s = HubSession(play).handshake()
    s.client.says(call(1, "git__log"))
    s["git"].answers(s["git"].hears("tools/call"), text("ok"))
    s.client.hears_result(1)
    s.client.says(call(2, "git__log"), call(3, "mail__log"))
    s.client.hears_error(2, -32002)
    s["mail"].answers(s["mail"].hears("tools/call"), text("ok"))
    s.client.hears_result(3)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_lists_are_one_in_the_order_of_the_configuration(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, "tools/list", _meta={"progressToken": "t"}))
    mail, git = s["mail"].hears("tools/list"), s["git"].hears("tools/list")
    s["mail"].answers(mail, tools("z", "a"))
    s["git"].says(note("progress", progressToken="t", progress=1))
    s.client.hears_nothing()
    extra = {"title": "T", "annotations": {"x": 1}, "_meta": {"v": 2}}
    s["git"].answers(git, {"tools": [{"name": "log", **extra}], "_meta": {"m": 1}})
    heard = s.client.hears_result(1)
    assert names(heard) == ["git__log", "mail__z", "mail__a"]
    assert heard["tools"][0] == {"name": "git__log", **extra}
    assert "nextCursor" not in heard


def test_pages_go_on_where_each_list_was_left(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    heard = lists(s, 1, "tools/list", git=tools("a", nextCursor="g2"), mail=tools("b", nextCursor="m2"))
    s.client.says(request(2, "tools/list", cursor=heard["nextCursor"]))
    s["git"].answers(s["git"].hears("tools/list", cursor="g2"), tools("c"))
    s["mail"].answers(s["mail"].hears("tools/list", cursor="m2"), tools("d", nextCursor=""))
    heard = s.client.hears_result(2)
    assert names(heard) == ["git__c", "mail__d"]
    s.client.says(request(3, "tools/list", cursor=heard["nextCursor"]))
    s["mail"].answers(s["mail"].hears("tools/list", cursor=""), tools("e"))
    assert "nextCursor" not in s.client.hears_result(3)
    s["git"].hears_nothing()


@pytest.mark.parametrize("cursor", ["", "x", 5, [], "AAAA", "é", "a" * 100])
def test_a_cursor_that_is_none_of_ours_is_refused(make_play: MakePlay, cursor: Any) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, "tools/list", cursor=cursor))
    s.client.hears_error(1, -32602, "begin anew")
    s.is_quiet()


def test_a_cursor_is_for_its_own_list_and_agent(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("agents: {", "agents: {other: {backends: {git: {allowed: true}}}, "))
    s = HubSession(play).handshake()
    cursor = lists(s, 1, "tools/list", git=tools(nextCursor="g"), mail=tools())["nextCursor"]
    s.client.says(request(2, "prompts/list", cursor=cursor))
    s.client.hears_error(2, -32602)
    for agent, backends in (("other", ["git"]), ("bot", ["mail"])):
        o = HubSession(play, backends, agent=agent).handshake()
        o.client.says(request(2, "tools/list", cursor=cursor))
        o.client.hears_error(2, -32602)


def test_one_bad_list_takes_no_other_down(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, "tools/list"))
    s["git"].answers(s["git"].hears("tools/list"), {"tools": "none"})
    s["mail"].answers(s["mail"].hears("tools/list"), tools("a"))
    assert names(s.client.hears_result(1)) == ["mail__a"]
    s.client.says(request(2, "tools/list"))
    s["git"].fails(s["git"].hears("tools/list"), -32601, "what?")
    s["mail"].fails(s["mail"].hears("tools/list"), -32050, "broken")
    s.client.hears_error(2, -32050, "broken")


def test_a_late_list_is_told_of_once(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake()
    for n in range(2):
        s.client.says(request(n, "tools/list"))
        git = s["git"].hears("tools/list")
        s["mail"].answers(s["mail"].hears("tools/list"), tools("a"))
        play.advance(11)
        assert names(s.client.hears_result(n)) == ["mail__a"]
        s["git"].answers(git, tools("log"))
        if n == 0:
            for kind in ("tools", "prompts", "resources"):
                s.client.hears(f"notifications/{kind}/list_changed")
    s.client.hears_nothing()
    assert names(lists(s, 5, "tools/list", git=tools("log"), mail=tools())) == ["git__log"]


def test_nobody_waits_twice_for_a_backend_that_hangs_until_it_answers_in_time(make_play: MakePlay) -> None:
    play, late = make_play(CONFIG), Lateness()

    def begins() -> HubSession:
        s = HubSession(play, lateness=late)
        hello(s)
        s.joins("mail")
        return s

    first = begins()
    first["git"].hears("initialize")
    play.advance(10)
    first.client.hears_result("init")
    assert late.since() == {"git": play.clock.now}
    second = begins()
    second.client.hears_nothing()
    play.advance(0.3)
    second.client.hears_result("init")
    second.client.says(request(1, "tools/list"))
    second["mail"].answers(second["mail"].hears("tools/list"), tools("a"))
    play.advance(0.3)
    assert names(second.client.hears_result(1)) == ["mail__a"]
    second.joins("git")
    second["git"].answers(second["git"].hears("tools/list"), tools("log"))
    for kind in ("tools", "prompts", "resources") * 2:  # it joined, and its list came
        second.client.hears(f"notifications/{kind}/list_changed")
    assert late.since() == {}
    third = begins()
    play.advance(5)
    third.client.hears_nothing()
    third.joins("git")
    third.client.hears_result("init")
    for s in (first, second, third):
        s.leave()


def test_a_backend_that_hangs_takes_no_room_from_the_others(make_play: MakePlay) -> None:
    play, late = make_play(CONFIG), Lateness()
    s = HubSession(play, lateness=late).handshake()
    late.late("git", "bot", 0.0, begins=False)
    asked = []
    for n in range(CLOGGED + 3):
        s.client.says(request(n, "tools/list"))
        s["mail"].answers(s["mail"].hears("tools/list"), tools("a"))
        if n < CLOGGED:
            asked.append(s["git"].hears("tools/list"))
            play.advance(0.3)
        assert names(s.client.hears_result(n)) == ["mail__a"]
    s["git"].hears_nothing()
    s["git"].fails(asked[0])
    s["git"].answers(asked[1], tools("log"))
    for kind in ("tools", "prompts", "resources"):
        s.client.hears(f"notifications/{kind}/list_changed")
    for one in asked[2:]:
        s["git"].fails(one)
    assert names(lists(s, "again", "tools/list", git=tools("log"), mail=tools("a"))) == ["git__log", "mail__a"]


def test_what_comes_late_after_what_never_came_is_told(make_play: MakePlay) -> None:
    play, late = make_play(CONFIG), Lateness()
    s = HubSession(play, lateness=late).handshake()
    s.client.says(request(1, "tools/list"))
    s["mail"].answers(s["mail"].hears("tools/list"), tools("a"))
    s["git"].hears("tools/list")
    play.advance(121)
    s.client.hears_result(1)
    s["git"].hears("notifications/cancelled")
    s.client.says(request(2, "tools/list"))
    s["mail"].answers(s["mail"].hears("tools/list"), tools("a"))
    git = s["git"].hears("tools/list")
    play.advance(1)
    s.client.hears_result(2)
    s["git"].answers(git, tools("log"))
    for kind in ("tools", "prompts", "resources"):
        s.client.hears(f"notifications/{kind}/list_changed")


def test_one_that_was_late_and_is_well_again_is_there_at_once(make_play: MakePlay) -> None:
    play, late = make_play(CONFIG), Lateness()
    late.late("git", "bot", 0.0, begins=True)
    s = HubSession(play, lateness=late)
    hello(s)
    s.joins("mail")
    s.joins("git")
    assert "tools" in s.client.hears_result("init")["capabilities"]
    assert late.since() == {}


def test_where_only_those_that_are_late_may_have_it_the_others_errors_stand(make_play: MakePlay) -> None:
    play, late = make_play(CONFIG), Lateness()
    s = HubSession(play, lateness=late).handshake()
    late.late("git", "bot", 0.0, begins=False)
    s.client.says(request(1, "prompts/list"))
    s["mail"].fails(s["mail"].hears("prompts/list"), -32050, "broken")
    s["git"].hears("prompts/list")
    play.advance(0.3)
    s.client.hears_error(1, -32050, "broken")


def test_one_that_gave_up_is_tried_again_and_told_of(make_play: MakePlay) -> None:
    play, late = make_play(CONFIG), Lateness()
    s = HubSession(play, lateness=late)
    hello(s)
    s.joins("mail")
    s["git"].hears("initialize")
    play.advance(121)
    s.client.hears_result("init")
    assert s.hub.missing == {"git"}
    s.hub.again("git")
    assert s.hub.missing == set()
    s.joins("git")
    assert late.since() == {}
    for kind in ("tools", "prompts", "resources"):
        s.client.hears(f"notifications/{kind}/list_changed")


def test_a_subscription_does_not_wait_for_one_that_is_late(make_play: MakePlay) -> None:
    play, late = make_play(CONFIG), Lateness()
    late.late("git", "bot", 0.0, begins=True)
    s = HubSession(play, lateness=late)
    s.client.says(listen(1, toolsListChanged=True))
    acknowledges(s, "mail", s["mail"].hears("subscriptions/listen"), toolsListChanged=True)
    s["git"].hears("subscriptions/listen")
    play.advance(0.3)
    s.client.hears("notifications/subscriptions/acknowledged", notifications={"toolsListChanged": True})
    s.client.leaves()


def test_a_list_is_asked_of_those_that_have_one(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake({"git": {"tools": {}}, "mail": {"prompts": {}}})
    s.client.says(request(1, "resources/list"), request(2, "prompts/list"))
    s.client.hears_result(1, {"resources": []})
    s["mail"].answers(s["mail"].hears("prompts/list"), {"prompts": [{"name": "p"}]})
    assert s.client.hears_result(2) == {"prompts": [{"name": "mail__p"}]}


def test_a_hidden_tool_is_hidden_here_too(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG.replace("mail: {allowed: true}", "mail: {allowed: true, tool_denylist: [rm]}")))
    s.handshake()
    assert names(lists(s, 1, "tools/list", git=tools("rm"), mail=tools("rm", "ls"))) == ["git__rm", "mail__ls"]


def test_a_list_that_does_not_fit_goes_on_on_the_next_page(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    much = {"tools": [{"name": f"t{n}", "description": "x" * 60_000} for n in range(100)]}
    heard = lists(s, 1, "tools/list", git=much, mail=much)
    assert len(heard["tools"]) == 100
    s.client.says(request(2, "tools/list", cursor=heard["nextCursor"]))
    s["git"].hears_nothing()
    again = s["mail"].hears("tools/list")
    assert "cursor" not in again["params"]
    s["mail"].answers(again, much)
    assert names(s.client.hears_result(2))[0] == "mail__t0"


# --- resources --------------------------------------------------------------------------------------------------------


def test_a_resource_is_read_where_it_was_listed(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    heard = lists(s, 1, "resources/list", git=resources("a:1", "a:2"), mail=resources("a:2", "a:3"))
    assert [one["uri"] for one in heard["resources"]] == ["a:1", "a:2", "a:3"]
    s.client.says(request(2, "resources/read", uri="a:3"), request(3, "resources/read", uri="a:2"))
    s["mail"].answers(s["mail"].hears("resources/read", uri="a:3"), {"contents": []})
    s["git"].fails(s["git"].hears("resources/read", uri="a:2"), -32002, "gone")
    s.client.hears_result(2)
    s.client.hears_error(3, -32002, "gone")


@pytest.mark.parametrize("code", [-32002, -32602, -32601])
def test_a_resource_that_nobody_listed_is_looked_for(make_play: MakePlay, code: int) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, "resources/subscribe", uri="a:9"))
    s["git"].fails(s["git"].hears("resources/subscribe"), code, "not here")
    s["mail"].answers(s["mail"].hears("resources/subscribe", uri="a:9"), {})
    s.client.hears_result(1, {})
    s["mail"].says(note("resources/updated", uri="a:9"))
    s.client.hears("notifications/resources/updated", uri="a:9")
    s.client.says(request(2, "resources/unsubscribe", uri="a:9"))
    s["mail"].answers(s["mail"].hears("resources/unsubscribe"), {})
    s.client.hears_result(2)
    s.client.says(request(3, "resources/read", uri="a:10"))
    s["git"].fails(s["git"].hears("resources/read"), code, "not here")
    s["mail"].fails(s["mail"].hears("resources/read"), code, "nor here")
    s.client.hears_error(3, code, "nor here")


def test_an_error_that_is_no_not_found_stands(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, "resources/read", uri="a:9"))
    s["git"].fails(s["git"].hears("resources/read"), -32050, "disk on fire")
    s.client.hears_error(1, -32050, "disk on fire")
    s.is_quiet()


def test_a_resource_that_one_rule_hides_may_be_anothers(make_play: MakePlay) -> None:
    play = make_play(CONFIG.replace("git: {allowed: true}", "git: {allowed: true, resource_denylist: ['a:*']}"))
    s = HubSession(play).handshake()
    s.client.says(request(1, "resources/read", uri="a:1"), request(2, "resources/read", uri="a:2"))
    s["mail"].answers(s["mail"].hears("resources/read"), {"contents": []})
    s.client.hears_result(1)
    s["mail"].fails(s["mail"].hears("resources/read"), -32002, "not found")
    s.client.hears_error(2, -32001, "is not available to this agent")
    s["git"].hears_nothing()


def test_a_template_says_where_to_look_first(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    templates = {"resourceTemplates": [{"uriTemplate": "mail://{box}/{id}.eml", "name": "m"}]}
    lists(s, 1, "resources/templates/list", git={"resourceTemplates": []}, mail=templates)
    s.client.says(request(2, "resources/read", uri="mail://in/5.eml"))
    s["mail"].answers(s["mail"].hears("resources/read"), {"contents": []})
    s.client.hears_result(2)
    ref = {"type": "ref/resource", "uri": "mail://{box}/{id}.eml"}
    s.client.says(request(3, "completion/complete", ref=ref))
    s["mail"].answers(s["mail"].hears("completion/complete", ref=ref), {"completion": {}})
    s.client.hears_result(3)


def test_a_list_that_changed_leads_nowhere_any_more(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    lists(s, 1, "resources/list", git=resources(), mail=resources("a:1"))
    s["mail"].says(note("resources/list_changed"))
    s.client.hears("notifications/resources/list_changed")
    s.client.says(request(2, "resources/read", uri="a:1"))
    s["git"].answers(s["git"].hears("resources/read"), {"contents": []})
    s.client.hears_result(2)


def test_progress_grows_even_over_two_backends(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, "resources/read", uri="a:9", _meta={"progressToken": 0}))
    git = s["git"].hears("resources/read")
    s["git"].says(note("progress", progressToken=0, progress=1), note("progress", progressToken=0, progress=5))
    s["git"].fails(git, -32002, "no")
    mail = s["mail"].hears("resources/read")
    s["mail"].says(*(note("progress", progressToken=0, progress=n) for n in (2, 5, 6)))
    s["mail"].answers(mail, {"contents": []})
    assert [s.client.hears("notifications/progress")["params"]["progress"] for _ in range(3)] == [1, 5, 6]
    s.client.hears_result(1)


def test_a_client_that_cancels_a_search_ends_it(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, "resources/read", uri="a:9"))
    heard = s["git"].hears("resources/read")
    s.client.says(cancel(1, reason="bored"))
    s["git"].hears("notifications/cancelled", requestId=heard["id"], reason="bored")
    s["git"].says(error(heard["id"], -32002, "not found"))
    s.is_quiet()


# --- cancelling and ids -----------------------------------------------------------------------------------------------


def test_a_call_is_cancelled_at_its_backend(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(call(1, "git__log"), call(2, "mail__send"))
    git, mail = s["git"].hears("tools/call"), s["mail"].hears("tools/call")
    s.client.says(cancel(2), cancel(2), cancel(3), note("cancelled"), note("cancelled", requestId=[]))
    s["mail"].hears("notifications/cancelled", requestId=mail["id"])
    s["mail"].says(result(mail["id"]))
    s["git"].answers(git, text("ok"))
    s.client.hears_result(1)
    s.is_quiet()


def test_a_list_is_cancelled_everywhere(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, "tools/list"))
    heard = [(server, server.hears("tools/list")) for server in (s["git"], s["mail"])]
    s.client.says(cancel(1))
    for server, one in heard:
        server.hears("notifications/cancelled", requestId=one["id"])
        server.says(result(one["id"], tools("a")))
    s.is_quiet()


def test_a_closed_stream_cancels_its_request(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(call(1, "git__log"), call(2, "git__log"))
    first, second = s["git"].hears("tools/call"), s["git"].hears("tools/call")
    slot = next(slot for slot, (_, id) in s.client.slots.items() if id == b"2")
    del s.client.asked["int", 2]
    s.hub.withdraw(slot)
    s.hub.withdraw(slot, forwarded=False)
    s.hub.withdraw(999)
    s["git"].hears("notifications/cancelled", requestId=second["id"])
    s["git"].says(result(second["id"]))
    s["git"].answers(first, text("ok"))
    s.client.hears_result(1)


def test_a_request_that_nobody_waits_for_may_run_on_at_its_server(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(call(1, "git__log"))
    heard = s["git"].hears("tools/call")
    (slot,) = s.client.slots
    s.client.asked.clear()
    s.hub.withdraw(slot, forwarded=False)
    s["git"].hears_nothing()
    s["git"].answers(heard, text("ok"))
    s.is_quiet()
    assert not s.client.slots


def test_an_id_that_is_open_at_one_backend_is_open_at_all(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(call(1, "git__log"), call(1, "mail__log"))
    s.client.hears_error(1, -32600, "still open")
    s["mail"].hears_nothing()
    s["git"].answers(s["git"].hears("tools/call"), text("ok"))
    s.client.hears_result(1)


def test_so_many_requests_may_be_open_in_all(make_play: MakePlay) -> None:
    play = make_play("server: {max_in_flight_session: 2}\n" + CONFIG)
    s = HubSession(play).handshake()
    s.client.says(call(1, "git__x"), call(2, "mail__x"), call(3, "git__x"))
    s.client.hears_error(3, -32003, "in flight", retryable=True)
    for name, n in (("git", 1), ("mail", 2)):
        s[name].answers(s[name].hears("tools/call"), text("ok"))
        s.client.hears_result(n)


def test_an_agents_own_limit_holds_over_all_backends(make_play: MakePlay) -> None:
    s = HubSession(make_play("server: {max_in_flight_agent: 1}\n" + CONFIG))
    s.client.says(modern(call(1, "git__x")), modern(call(2, "mail__x")))
    denial = s.client.hears_result(2, {"isError": True})["_meta"]["aegis/denial"]
    assert (denial["code"], denial["reason"]) == (-31003, "too_many")
    s["git"].answers(s["git"].hears("tools/call"), text("ok"))
    s.client.hears_result(1)


def test_senders_that_share_a_session_may_use_the_same_ids(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG), shared=True)
    frame = modern(call(1, "git__log", token="t"))
    s.client.asked["int", 1] += 1  # the playbook's client would not
    s.hub.hear(_parsed(frame))
    s.hub.hear(_parsed(frame))
    s.client.asked["int", 1] += 1
    first, second = s["git"].hears("tools/call"), s["git"].hears("tools/call")
    (one, other) = list(s.client.slots)
    s.hub.withdraw(one)
    s["git"].hears("notifications/cancelled", requestId=first["id"])
    s["git"].says(result(first["id"]))
    s["git"].answers(second, text("ok"))
    s.client.hears_result(1)
    s.client.asked.clear()
    assert other not in s.client.slots


def _parsed(frame: Any) -> Any:
    from playbook import raw

    from aegis_daemon.wire.jsonrpc import parse

    return parse(raw(frame))


def test_frames_that_go_nowhere_are_recorded(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake()
    s.client.says(
        result(5),
        result("x"),
        note("progress", progressToken=1, progress=1),
        {"jsonrpc": "2.0", "method": "tools/call"},
    )
    s.is_quiet()
    play.advance(2)
    found = {(one.reason, one.count) for one in play.recorded("dropped", "dropped", "dropped")}
    assert found == {
        ("an answer to no open request", 2), ("progress for no open request", 1), ("a request without an id", 1),
    }  # fmt: skip


@pytest.mark.parametrize("method", ["made/up", "server/discover2", "tasks/update", "subscriptions/listen"])
def test_an_unknown_method_is_refused(make_play: MakePlay, method: str) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(request(1, method))
    s.client.hears_error(1, -32601)
    s.is_quiet()


# --- what servers ask -------------------------------------------------------------------------------------------------


def test_servers_may_ask_under_the_same_id(make_play: MakePlay) -> None:
    s = HubSession(make_play(OPEN)).handshake()
    for name in ("git", "mail"):
        s[name].says(request(1, "elicitation/create", message=name, _meta={"progressToken": "p"}))
    git = s.client.hears("elicitation/create", message="git")
    mail = s.client.hears("elicitation/create", message="mail")
    assert git["id"] != mail["id"]
    token = mail["params"]["_meta"]["progressToken"]
    assert token != git["params"]["_meta"]["progressToken"]
    s.client.says(note("progress", progressToken=token, progress=1))
    s["mail"].hears("notifications/progress", progressToken="p", progress=1)
    s.client.says(result(mail["id"], {"action": "accept"}), error(git["id"], -1, "no"))
    s["mail"].hears_result(1, {"action": "accept"})
    s["git"].hears_error(1, -1, "no")


def test_a_question_is_called_off_under_its_id_here(make_play: MakePlay) -> None:
    s = HubSession(make_play(OPEN)).handshake()
    s["git"].says(request(1, "roots/list"))
    s["mail"].says(request(1, "roots/list"))
    git, mail = s.client.hears("roots/list"), s.client.hears("roots/list")
    s["mail"].says(cancel(1))
    s.client.hears("notifications/cancelled", requestId=mail["id"])
    s.client.says(result(git["id"], {"roots": []}))
    s["git"].hears_result(1)


def test_a_question_belongs_to_the_call_it_came_with(make_play: MakePlay) -> None:
    s = HubSession(make_play(OPEN)).handshake()
    told: list[int] = []
    tell = s.client.tell

    def noted(frame: bytes, slot: int) -> None:
        told.append(slot)
        tell(frame, slot)

    s.client.tell = noted  # type: ignore[method-assign]
    s.client.says(call(1, "git__log"))
    heard = s["git"].hears("tools/call")
    (slot,) = s.client.slots
    s["git"].says(request(1, "roots/list"))
    s.client.says(result(s.client.hears("roots/list")["id"], {"roots": []}))
    s["git"].hears_result(1)
    s["mail"].says(note("message", level="info", data=1))
    s.client.hears("notifications/message")
    assert told == [slot, -1]
    s["git"].answers(heard, text("ok"))
    s.client.hears_result(1)


def test_servers_ping_the_client(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s["mail"].says(request("p", "ping"))
    s.client.says(result(s.client.hears("ping")["id"], {}))
    s["mail"].hears_result("p", {})


def test_questions_that_nobody_answers_are_forgotten(make_play: MakePlay) -> None:
    play = make_play(OPEN)
    s = HubSession(play).handshake()
    for n in range(300):
        s["git"].says(request(n, "roots/list"))
        s.client.hears("roots/list")
        play.advance(3601)
        s["git"].hears_error(n, -32603)
    assert len(s.hub._asks._open) <= 65


def test_news_of_the_client_goes_to_all(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(note("roots/list_changed"), note("made/up", x=1))
    for name in ("git", "mail"):
        s[name].hears("notifications/roots/list_changed")
        s[name].hears("notifications/made/up", x=1)


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_a_task_is_named_like_its_backend(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake(
        {name: {"tools": {}, "tasks": {"list": {}}} for name in ("git", "mail")}
    )
    for id, name in ((1, "git"), (2, "mail")):
        frame = call(id, f"{name}__slow")
        frame["params"]["task"] = {"ttl": 60_000}
        s.client.says(frame)
        s[name].answers(s[name].hears("tools/call"), {"task": {"taskId": "t", "status": "working"}})
        s.client.hears_result(id, {"task": {"taskId": f"{name}__t", "status": "working"}})
    s.client.says(request(3, "tasks/get", taskId="mail__t"))
    s["mail"].answers(s["mail"].hears("tasks/get", taskId="t"), {"taskId": "t", "status": "completed"})
    s.client.hears_result(3, {"taskId": "mail__t", "status": "completed"})
    s["git"].says(note("tasks/status", taskId="t", status="completed"))
    s.client.hears("notifications/tasks/status", taskId="git__t")
    related = {"io.modelcontextprotocol/related-task": {"taskId": "t"}}
    s.client.says(request(4, "tasks/result", taskId="git__t"))
    s["git"].answers(s["git"].hears("tasks/result", taskId="t"), text("ok", _meta=related))
    s.client.hears_result(4, {"_meta": {"io.modelcontextprotocol/related-task": {"taskId": "git__t"}}})
    s.client.says(request(5, "tasks/get", taskId="t"))
    s.client.hears_error(5, -32602, "the task `t` is not available")
    heard = lists(s, 6, "tasks/list", git={"tasks": [{"taskId": "t"}, 5]}, mail={"tasks": [{"taskId": "u"}]})
    assert heard == {"tasks": [{"taskId": "git__t"}]}


def test_a_result_that_only_speaks_of_a_task_passes_as_it_is(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(call(1, "git__log"))
    heard = s["git"].hears("tools/call")
    s["git"].says(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[ {"taskId":"t"} ]}}' % heard["id"])
    assert s.client.inbox.pop() == b'{"jsonrpc":"2.0","id":1,"result":{"content":[ {"taskId":"t"} ]}}'


def test_the_clients_own_tasks_are_for_no_server(make_play: MakePlay) -> None:
    s = HubSession(make_play("mode: observe\n" + CONFIG)).handshake(capabilities={"sampling": {}, "tasks": {}})
    s["git"].says(request(1, "tasks/list"))
    s["git"].hears_error(1, -32601, "lets none of them at its tasks")
    s.client.says(note("tasks/status", taskId="c", status="completed"))
    s.is_quiet()


def test_what_belongs_to_a_task_says_so_under_each_sides_name(make_play: MakePlay) -> None:
    s = HubSession(make_play(OPEN)).handshake()
    key = "io.modelcontextprotocol/related-task"
    s["mail"].says(request(1, "elicitation/create", message="?", _meta={key: {"taskId": "t"}}), cancel(9))
    asked = s.client.hears("elicitation/create", _meta={key: {"taskId": "mail__t"}})
    s.client.says(result(asked["id"], {"action": "accept", "_meta": {key: {"taskId": "mail__t"}}}))
    s["mail"].hears_result(1, {"action": "accept", "_meta": {key: {"taskId": "t"}}})
    s["git"].says(request(1, "elicitation/create", message="?"))
    asked = s.client.hears("elicitation/create")
    s.client.says(result(asked["id"], {"action": "accept", "_meta": {key: {"taskId": "mail__t"}}}))
    s["git"].hears_result(1, {"_meta": {key: {"taskId": "mail__t"}}})
    s.client.says(call(2, "git__log"))
    s["git"].fails(s["git"].hears("tools/call"), -1, 'no "taskId"')
    s.client.hears_error(2, -1, "taskId")


# --- backends come and go ---------------------------------------------------------------------------------------------


def test_a_server_that_dies_is_dropped_told_of_and_opened_again(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake({name: {"tools": {}, "logging": {}} for name in ("git", "mail")})
    s.client.says(request("l", "logging/setLevel", level="info"))
    s.each(lambda server: server.answers(server.hears("logging/setLevel"), {}))
    s.client.hears_result("l")
    play.advance(5)
    s.client.says(call(1, "git__log"), call(2, "mail__x"))
    s["git"].hears("tools/call")
    mail = s["mail"].hears("tools/call")
    s["git"].exits(3)
    s.client.hears_error(1, -32603, "status 3")
    s.client.hears("notifications/tools/list_changed")
    s.client.says(call(3, "git__log"))
    heard = s["git"].hears("initialize", capabilities={}, protocolVersion="2025-11-25")
    s.client.hears_nothing()
    s["git"].answers(heard, READY | {"capabilities": {"tools": {}, "logging": {}}})
    s["git"].hears("notifications/initialized")
    s["git"].answers(s["git"].hears("logging/setLevel", level="info"), {})
    s["git"].answers(s["git"].hears("tools/call", name="log"), text("ok"))
    s.client.hears("notifications/tools/list_changed")
    s.client.hears_result(3)
    s["mail"].answers(mail, text("ok"))
    s.client.hears_result(2)


def test_a_backend_is_opened_once_a_second_at_most(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake({name: {"tools": {}} for name in ("git", "mail")})
    play.advance(5)
    for n in range(2):
        s.client.says(call(n, "git__log"))
        if n:
            s["git"].hears("initialize")
        else:
            s["git"].hears("tools/call")
        s["git"].exits(1)
        s.client.hears_error(n, -32603)
        if not n:
            s.client.hears("notifications/tools/list_changed")
    for n in (5, 6):
        s.client.says(call(n, "git__log"))
        error = s.client.hears_error(n, -32603, "`git` is not there (the server ended (status 1)", retryable=True)
        assert error["data"]["retry_after_ms"] == 1000
    assert len(s.servers["git"]) == 2
    play.advance(1.1)
    s.client.says(call(7, "git__log"), call(8, "mail__x"))
    s.joins("git", {"tools": {}})
    s["git"].hears("notifications/initialized")
    s["git"].answers(s["git"].hears("tools/call"), text("ok"))
    s.client.hears("notifications/tools/list_changed")
    s.client.hears_result(7)
    s["mail"].answers(s["mail"].hears("tools/call"), text("ok"))
    s.client.hears_result(8)


def test_a_list_is_whole_again_after_the_rest_of_it(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake({name: {"tools": {}} for name in ("git", "mail")})
    s.failing["git"] = OSError(2, "no such file")
    s["git"].exits(1)
    s.client.hears("notifications/tools/list_changed")
    assert names(lists(s, 1, "tools/list", mail=tools("a"))) == ["mail__a"]


def test_what_a_server_says_as_it_leaves_is_not_heard(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    hello(s)
    git = s["git"]
    git.fails(git.hears("initialize"), -32000, "no")
    s.joins("mail")
    s.client.hears_result("init")
    git.says(note("tools/list_changed"))
    s.client.hears_nothing()


def test_a_backend_that_does_not_read_holds_up_nobody_else(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s["git"].is_full(True)
    assert not s.client.paused
    s.client.says(call(1, "git__log"), call(2, "mail__x"), note("made/up"))
    s["git"].hears_nothing()
    s["mail"].answers(s["mail"].hears("tools/call"), text("ok"))
    s["mail"].hears("notifications/made/up")
    s.client.hears_result(2)
    s["git"].is_full(False)
    s["git"].answers(s["git"].hears("tools/call"), text("ok"))
    s["git"].hears("notifications/made/up")
    s.client.hears_result(1)


def test_a_client_that_does_not_read_stops_all_its_servers(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.reads = False
    s["git"].says(*(note("message", level="info", data="x" * 70_000) for _ in range(5)))
    assert [s["git"].paused, s["mail"].paused, s.client.paused] == [True, True, True]
    s.client.reads_again()
    assert [s["git"].paused, s["mail"].paused, s.client.paused] == [False, False, False]
    s.client.inbox.clear()


def test_a_backend_that_begins_while_the_client_does_not_read_waits_too(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    s.client.on_full(True)
    s.hub.hear(_parsed(modern(call(1, "git__log"))))
    assert s["git"].paused
    s["git"].hears_nothing()
    s.client.asked["int", 1] += 1
    s.client.on_full(False)
    s["git"].answers(s["git"].hears("tools/call"), text("ok"))
    s.client.hears_result(1)


def test_the_end_of_the_client_is_the_end_of_all(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake()
    s.client.says(call(1, "git__log"))
    heard = s["git"].hears("tools/call")
    s.client.leaves()
    assert s["git"].stdin_closed
    assert s["mail"].stdin_closed
    s["git"].answers(heard, text("ok"))
    s.client.hears_result(1)
    assert s.client.status is None
    s.all_exit()
    assert s.over
    assert s.client.status == 0


def test_a_client_that_dies_is_not_written_to(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(call(1, "git__log"))
    heard = s["git"].hears("tools/call")
    s.client.dies()
    s["git"].says(result(heard["id"]))
    s.all_exit()
    assert s.over


def test_a_client_that_leaves_at_once_leaves_nothing(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    s.client.leaves()
    assert s.over


# --- the modern era ---------------------------------------------------------------------------------------------------


def found(*versions: str, **more: Any) -> dict[str, Any]:
    return {"resultType": "complete", "supportedVersions": list(versions), "ttlMs": 5, "cacheScope": "public", **more}


def test_a_modern_call_opens_its_own_backend_only(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    s.client.says(modern(call(1, "mail__x")))
    s["mail"].answers(s["mail"].hears("tools/call", name="x"), text("ok", resultType="complete"))
    s.client.hears_result(1)
    assert not s.servers["git"]


def test_discoveries_are_one(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    s.client.says(modern(request(1, "server/discover")))
    git, mail = (s[name].hears("server/discover") for name in ("git", "mail"))
    s["git"].answers(git, found("2026-07-28", "2025-11-25", capabilities={"tools": {}}, instructions="Hi."))
    s["mail"].answers(mail, found("2026-07-28", capabilities={"prompts": {}}))
    heard = s.client.hears_result(1)
    assert like(heard, {
        "resultType": "complete", "supportedVersions": ["2026-07-28"], "instructions": "# git\n\nHi.", "ttlMs": 0,
        "capabilities": {"tools": {"listChanged": True}, "prompts": {"listChanged": True}}, "cacheScope": "private",
    })  # fmt: skip
    s.client.says(modern(request(2, "prompts/list")))
    s["mail"].answers(s["mail"].hears("prompts/list"), {"resultType": "complete", "prompts": []})
    assert s.client.hears_result(2) == {"resultType": "complete", "prompts": [], "ttlMs": 0, "cacheScope": "private"}
    s["git"].hears_nothing()


def test_an_unknown_version_is_refused_once(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    s.client.says(modern(request(1, "server/discover"), version="2031-01-01"))
    s.client.hears_error(1, -32022)


def test_a_retry_with_input_goes_to_the_backend_that_asked(make_play: MakePlay) -> None:
    s = HubSession(make_play(OPEN))
    asks = {"q": {"method": "elicitation/create", "params": {}}}
    s.client.says(modern(call(1, "git__pay")))
    needs = {"resultType": "input_required", "inputRequests": asks, "requestState": "S"}
    s["git"].answers(s["git"].hears("tools/call"), needs)
    s.client.hears_result(1, needs)
    s.client.says(modern(call(2, "git__pay"), inputResponses={"q": {}}, requestState="S"))
    s["git"].answers(s["git"].hears("tools/call", requestState="S", inputResponses={"q": {}}), text("ok"))
    s.client.hears_result(2)


def test_answers_for_one_server_are_shown_to_no_other(make_play: MakePlay) -> None:
    s = HubSession(make_play(OPEN))
    s.client.says(modern(request(1, "resources/read", uri="a:1")))
    s["git"].fails(s["git"].hears("resources/read"), -32602, "not found")
    asks = {"q": {"method": "elicitation/create", "params": {}}}
    s["mail"].answers(s["mail"].hears("resources/read"), {"resultType": "input_required", "inputRequests": asks})
    s.client.hears_result(1)
    again = {"inputResponses": {"q": {"action": "accept", "content": {"pin": 1234}}}}
    s.client.says(modern(request(2, "resources/read", uri="a:1"), **again))
    s["mail"].answers(s["mail"].hears("resources/read", **again), {"contents": []})
    s.client.hears_result(2)
    s.client.says(modern(request(3, "resources/read", uri="a:2"), **again))
    s.client.hears_error(3, -32602, "begin anew")
    s["git"].hears_nothing()


def listen(id: Any, *uris: str, **kinds: bool) -> dict[str, Any]:
    return modern(request(id, "subscriptions/listen", notifications={"resourceSubscriptions": list(uris), **kinds}))


def acknowledges(s: HubSession, name: str, heard: dict[str, Any], **granted: Any) -> None:
    meta = {META_SUBSCRIPTION: heard["id"]}
    s[name].says(note("subscriptions/acknowledged", notifications=granted, _meta=meta))


def test_a_subscription_is_one_at_all_backends(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    s.client.says(modern(request("r", "resources/list")))
    for name, uri in (("git", "a:1"), ("mail", "b:1")):
        s[name].answers(s[name].hears("resources/list"), resources(uri))
    s.client.hears_result("r")
    s.client.says(listen("mine", "a:1", "b:1", toolsListChanged=True))
    git, mail = s["git"].hears("subscriptions/listen"), s["mail"].hears("subscriptions/listen")
    assert git["params"]["notifications"] == {"resourceSubscriptions": ["a:1"], "toolsListChanged": True}
    assert mail["params"]["notifications"] == {"resourceSubscriptions": ["b:1"], "toolsListChanged": True}
    acknowledges(s, "git", git, resourceSubscriptions=["a:1"])
    s.client.hears_nothing()
    acknowledges(s, "mail", mail, resourceSubscriptions=["b:1"], toolsListChanged=True)
    granted = s.client.hears("notifications/subscriptions/acknowledged", _meta={META_SUBSCRIPTION: "mine"})
    assert granted["params"]["notifications"] == {"resourceSubscriptions": ["a:1", "b:1"], "toolsListChanged": True}
    for name, heard in (("git", git), ("mail", mail)):
        s[name].says(note("resources/updated", uri=f"{name}:1", _meta={META_SUBSCRIPTION: heard["id"]}))
        s.client.hears("notifications/resources/updated", uri=f"{name}:1", _meta={META_SUBSCRIPTION: "mine"})
    s.client.says(cancel("mine"))
    for name, heard in (("git", git), ("mail", mail)):
        s[name].hears("notifications/cancelled", requestId=heard["id"])
        s[name].says(result(heard["id"]))
    s.is_quiet()
    assert not s.client.slots


def test_the_acknowledgement_comes_first_and_in_time(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play)
    s.client.says(listen(1, toolsListChanged=True), listen(2, promptsListChanged=True))
    one, two = s["git"].hears("subscriptions/listen"), s["git"].hears("subscriptions/listen")
    for _ in range(2):
        s["mail"].hears("subscriptions/listen")
    acknowledges(s, "git", one)
    s["git"].says(note("tools/list_changed", _meta={META_SUBSCRIPTION: one["id"]}))
    first = s.client.hears("notifications/subscriptions/acknowledged", _meta={META_SUBSCRIPTION: 1})
    # What another may still grant is promised: a client may drop what never was.
    assert first["params"]["notifications"]["toolsListChanged"] is True
    s.client.hears("notifications/tools/list_changed", _meta={META_SUBSCRIPTION: 1})
    acknowledges(s, "git", two, promptsListChanged=True)
    s.client.hears_nothing()
    play.advance(10.1)
    s.client.hears("notifications/subscriptions/acknowledged", _meta={META_SUBSCRIPTION: 2})
    s.client.leaves()


def test_a_subscription_outlives_a_server_and_takes_the_next_one_in(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play)
    s.client.says(listen(1, toolsListChanged=True))
    for name in ("git", "mail"):
        acknowledges(s, name, s[name].hears("subscriptions/listen"), toolsListChanged=True)
    s.client.hears("notifications/subscriptions/acknowledged")
    play.advance(5)
    s["git"].exits(1)
    s.client.hears("notifications/tools/list_changed", _meta={META_SUBSCRIPTION: 1})
    s.client.says(modern(call(2, "git__log")))
    again = s["git"].hears("subscriptions/listen")
    s["git"].answers(s["git"].hears("tools/call"), text("ok"))
    s.client.hears_result(2)
    acknowledges(s, "git", again, toolsListChanged=True)
    s["git"].says(note("tools/list_changed", _meta={META_SUBSCRIPTION: again["id"]}))
    s.client.hears("notifications/tools/list_changed", _meta={META_SUBSCRIPTION: 1})
    s.client.leaves()


def test_a_server_that_never_answers_is_not_told_of_each_time_it_dies(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play)
    s.client.says(listen(1, toolsListChanged=True))
    for n in range(3):
        heard = s["git"].hears("subscriptions/listen")
        if n == 0:
            acknowledges(s, "mail", s["mail"].hears("subscriptions/listen"), toolsListChanged=True)
        else:
            s["git"].hears("tools/call")
        s["git"].exits(1)
        if n == 0:
            s.client.hears("notifications/subscriptions/acknowledged")
        else:
            s.client.hears_error(n + 10, -32603)
        assert heard
        play.advance(2)
        s.client.says(modern(call(n + 11, "git__log")))
    s["git"].hears("subscriptions/listen")
    s["git"].hears("tools/call")
    s.client.leaves()
    s.all_exit()
    s.client.inbox.clear()


@pytest.mark.parametrize("how", ["answer", "cancel"])
def test_a_subscription_ends_with_its_last_server(make_play: MakePlay, how: str) -> None:
    s = HubSession(make_play(CONFIG))
    s.client.says(listen(1, toolsListChanged=True))
    heard = {name: s[name].hears("subscriptions/listen") for name in ("git", "mail")}
    for name, one in heard.items():
        acknowledges(s, name, one)
    s.client.hears("notifications/subscriptions/acknowledged")
    for name, one in heard.items():
        s.client.hears_nothing()
        if how == "cancel":
            s[name].says(cancel(one["id"]))
        else:
            s[name].answers(one, {"resultType": "complete", "_meta": {META_SUBSCRIPTION: one["id"]}})
    if how == "cancel":
        s.client.hears("notifications/cancelled", requestId=1)
    else:
        s.client.hears_result(1, {"_meta": {META_SUBSCRIPTION: 1}})
    assert not s.client.slots


def test_tasks_are_listened_to_under_each_sides_name(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    play.owns("t", backend="git")
    s = HubSession(play)
    s.client.says(modern(request(1, "subscriptions/listen", notifications={"taskIds": ["git__t", "mail__u", "v"]})))
    heard = {name: s[name].hears("subscriptions/listen") for name in ("git", "mail")}
    assert [one["params"]["notifications"]["taskIds"] for one in heard.values()] == [["t"], ["u"]]
    acknowledges(s, "git", heard["git"], taskIds=["t"])
    acknowledges(s, "mail", heard["mail"], taskIds=["u"])
    s.client.hears("notifications/subscriptions/acknowledged", notifications={"taskIds": ["git__t", "mail__u"]})
    s["git"].says(note("tasks", taskId="t", status="completed", _meta={META_SUBSCRIPTION: heard["git"]["id"]}))
    s.client.hears("notifications/tasks", taskId="git__t", _meta={META_SUBSCRIPTION: 1})
    s.client.leaves()


def test_a_late_discovery_is_told_to_those_who_listen(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play)
    s.client.says(modern(request(1, "server/discover")), listen(2, promptsListChanged=True))
    git, mail = (s[name].hears("server/discover") for name in ("git", "mail"))
    for name in ("git", "mail"):
        acknowledges(s, name, s[name].hears("subscriptions/listen"), promptsListChanged=True)
    s.client.hears("notifications/subscriptions/acknowledged")
    s["mail"].answers(mail, found("2026-07-28", capabilities={}))
    play.advance(11)
    s.client.hears_result(1)
    s["git"].answers(git, found("2026-07-28", capabilities={"prompts": {}, "tools": {}}))
    s.client.hears("notifications/prompts/list_changed", _meta={META_SUBSCRIPTION: 2})
    s.client.says(modern(request(3, "resources/list")))
    assert s.client.hears_result(3) == {"resultType": "complete", "resources": [], "ttlMs": 0, "cacheScope": "private"}
    s.client.says(modern(request(4, "resources/read", uri="a:1")))
    s.client.hears_error(4, -32602, "the resource `a:1` is not available to this agent")
    s.client.leaves()


def test_a_session_without_backends_listens_to_nothing(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG), [])
    s.client.says(listen(1), modern(request(2, "server/discover")))
    s.client.hears_error(1, -31001, "no backend is available")
    s.client.hears_error(2, -31001, "no backend is available")


def test_where_all_refuse_a_subscription_it_is_refused(make_play: MakePlay) -> None:
    s = HubSession(make_play(CONFIG))
    s.client.says(listen(1))
    for name in ("git", "mail"):
        s[name].fails(s[name].hears("subscriptions/listen"), -32601, "what?")
    s.client.hears_error(1, -32601)
    s.client.says(modern(request(2, "subscriptions/listen", notifications={"resourceSubscriptions": [5]})))
    s.client.hears_error(2, -32602, "must be a list of strings")


@pytest.mark.parametrize("version", [None, "2099-01-01", 1])
def test_a_version_that_nobody_speaks_leaves_the_session_in_its_era(make_play: MakePlay, version: Any) -> None:
    s = HubSession(make_play(CONFIG)).handshake()
    s.client.says(modern(call(1, "git__x"), version=version))
    s.client.next()
    s.client.says(request(2, "ping"))  # which the modern era does not have
    s.client.hears_result(2)


@pytest.mark.parametrize("method", ["tools/list", "tools/call"])
def test_an_answer_as_large_as_may_be_arrives_under_a_longer_id_too(make_play: MakePlay, method: str) -> None:
    s = HubSession(make_play(CONFIG))
    id = "i" * 39
    s.client.says(modern(request(id, method, **({"name": "git__log"} if method == "tools/call" else {}))))
    if method == "tools/list":
        s["mail"].answers(s["mail"].hears(method), {"tools": []})
    heard = s["git"].hears(method)
    made = {"tools": [], "content": [], "pad": ""}
    made["pad"] = "x" * (MAX_FRAME_OUT - len(raw(result(heard["id"], made))))
    s["git"].answers(heard, made)
    s.client.hears_result(id)
