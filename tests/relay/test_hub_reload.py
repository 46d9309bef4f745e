"""A reload gives a living hub its backends and takes them away; the client's session goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hubbook import CONFIG, EVERYTHING, HubSession
from playbook import Play, call, modern, note, request, text

MakePlay = Callable[..., Play]
CHANGES = {"tools": {"listChanged": True}}
META = "io.modelcontextprotocol/subscriptionId"


def granted(play: Play, *names: str) -> None:
    """A reload after which the agent has these backends."""
    allowed = ", ".join(f"{name}: {{allowed: true}}" for name in names)
    play.reload(f"backends: {{git: {{}}, mail: {{}}, new: {{}}}}\nagents: {{bot: {{backends: {{{allowed}}}}}}}\n")


def gives(s: HubSession, *names: str, others: Any = ()) -> None:
    for name in names:
        s.servers.setdefault(name, [])
    s.hub.reloaded(names, others)


def lists(s: HubSession, id: int, *names: str) -> list[str]:
    """The tools that the client is shown; every backend has one, `log`."""
    s.client.says(request(id, "tools/list"))
    for name in names:
        if b'"initialize"' in s[name].inbox[0]:
            s.joins(name, CHANGES)
            s[name].hears("notifications/initialized")
        s[name].answers(s[name].hears("tools/list"), {"tools": [{"name": "log", "inputSchema": {}}]})
    while s.client.inbox and b"list_changed" in s.client.inbox[0]:
        s.client.next()
    return [tool["name"] for tool in s.client.hears_result(id)["tools"]]


def test_a_backend_that_is_granted_is_there_for_a_client_that_is(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake({"git": CHANGES, "mail": CHANGES})
    granted(play, "git", "mail", "new")
    s.client.inbox.clear()
    gives(s, "git", "new", "mail")
    s.client.hears("notifications/tools/list_changed")
    assert not s.servers["new"], "it begins when it is used"
    assert lists(s, 1, "git", "new", "mail") == ["git__log", "new__log", "mail__log"], "in the file's order"
    s.client.says(call(2, "new__log"))
    s["new"].answers(s["new"].hears("tools/call", name="log"), text("ok"))
    s.client.hears_result(2, text("ok"))


def test_a_backend_that_is_taken_away_is_refused_by_the_rules_and_not_for_now(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake({"git": CHANGES, "mail": CHANGES})
    s.client.says(call(1, "mail__send"))
    running = s["mail"].hears("tools/call")
    granted(play, "git")
    s.client.inbox.clear()
    gives(s, "git")
    s.client.hears("notifications/tools/list_changed")
    s.client.says(call(2, "mail__send"))
    s.client.hears_error(2, -32001, "not available to this agent", reason="not_allowed")
    s["mail"].answers(running, text("sent"))
    s.client.hears_result(1, text("sent"))
    s["mail"].exits()
    assert lists(s, 3, "git") == ["git__log"]
    assert play.log.records[-1].kind == "outcome"
    refused = [one for one in play.log.records if one.kind == "denied"]
    assert [(one.backend, one.stage) for one in refused] == [("mail", "acl")]


def test_what_is_taken_away_and_given_back_is_there_again(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake({"git": CHANGES, "mail": CHANGES})
    gives(s, "git")
    s["mail"].exits()
    gives(s, "git", "mail")
    s.client.inbox.clear()
    assert lists(s, 1, "git", "mail") == ["git__log", "mail__log"]
    s.client.says(call(2, "mail__send"))
    s["mail"].answers(s["mail"].hears("tools/call"), text("sent"))
    s.client.hears_result(2, text("sent"))


def test_none_left_is_none_and_the_session_goes_on(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake()
    gives(s)
    s.all_exit()
    s.client.inbox.clear()
    s.client.says(request(2, "resources/read", uri="file:///a"), call(3, "git__log"), request(4, "tools/list"))
    s.client.hears_error(2, -32602, "not available to this agent")
    s.client.hears_error(3, -32001)
    assert s.client.hears_result(4) == {"tools": []}


def test_a_modern_client_that_listens_hears_of_it(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play)
    s.client.says(modern(request("l", "subscriptions/listen", notifications={"toolsListChanged": True})))
    for name in ("git", "mail"):
        number = s[name].hears("subscriptions/listen")["id"]
        s[name].says(note("subscriptions/acknowledged", notifications={"toolsListChanged": True}, _meta={META: number}))
    s.client.hears("notifications/subscriptions/acknowledged")
    granted(play, "git", "mail", "new")
    gives(s, "git", "mail", "new")
    s.client.hears("notifications/tools/list_changed", _meta={META: "l"})
    s.client.says(modern(call(1, "new__log")))
    s["new"].hears("subscriptions/listen")
    s["new"].answers(s["new"].hears("tools/call"), text("ok"))
    s.client.hears_result(1, text("ok"))


def test_of_a_backend_with_another_server_nothing_is_taken_for_known(make_play: MakePlay) -> None:
    play = make_play(CONFIG)
    s = HubSession(play).handshake({"git": {"tools": {}}, "mail": EVERYTHING})
    gives(s, "git", "mail", others={"git"})
    (talk,) = [one for one in s.talks if one.backend == "git"]
    start = talk._start_server
    assert start is not None
    talk.renewal.begin(start, None)
    s.client.says(request(1, "prompts/list"))
    s.joins("git")
    s["git"].hears("notifications/initialized")
    s["git"].answers(s["git"].hears("prompts/list"), {"prompts": [{"name": "p"}]})
    s["mail"].answers(s["mail"].hears("prompts/list"), {"prompts": []})
    assert s.client.hears_result(1) == {"prompts": [{"name": "git__p"}]}
