"""What an agent may not do is refused, in its era's words, without a hint of what is hidden."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from playbook import Play, Session, call, error, modern, note, request, result, text

MakePlay = Callable[..., Play]

RULES = """
denials: {denials}
backends: {{files: {{}}, mail: {{}}, closed: {{}}}}
deny: {{tools: [shred, mail.send]}}
queue: {{files: {{global_rate_limits: {{post: 15/h}}}}}}
agents:
  bot:
    backends:
      files:
        allowed: true
        tool_denylist: [rm, 'drop_*']
        resource_denylist: ['file:///etc/*']
        prompt_denylist: [secret]
        approval_required: [post]
        rate_limits: {{post: 1/day}}
      mail: {{allowed: true, tool_allowlist: [read, send]}}
      closed: {{allowed: false}}
"""


def rules(denials: str = "auto") -> str:
    return RULES.format(denials=denials)


def refused(s: Session, frame: dict[str, Any]) -> dict[str, Any]:
    """The answer to a frame that must not reach the server."""
    s.client.says(frame)
    answer = s.client.next()
    s.is_quiet()
    return answer


# --- who and what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "frame"),
    [
        ("files", call(1, "rm")),
        ("files", call(1, "drop_table")),
        ("files", call(1, "shred")),
        ("mail", call(1, "send")),
        ("mail", call(1, "write")),
        ("mail", call(1, "READ")),
        ("mail", call(1, "read ")),
        ("mail", call(1, "mail.read")),
        ("files", request(1, "resources/read", uri="file:///etc/passwd")),
        ("files", request(1, "resources/read", uri="FILE:///x/../etc/passwd")),
        ("files", request(1, "resources/read", uri="file:///%65tc/passwd")),
        ("files", request(1, "resources/subscribe", uri="file:///etc/passwd")),
        ("files", request(1, "prompts/get", name="secret")),
        ("files", request(1, "completion/complete", ref={"type": "ref/prompt", "name": "secret"})),
        ("files", request(1, "completion/complete", ref={"type": "ref/resource", "uri": "file:///etc/x"})),
        ("closed", call(1, "x")),
        ("closed", request(1, "tools/list")),
        ("closed", request(1, "initialize", protocolVersion="2025-06-18", capabilities={})),
        ("none", call(1, "x")),
    ],
)
def test_what_the_lists_do_not_leave_is_refused_and_recorded(
    make_play: MakePlay, backend: str, frame: dict[str, Any]
) -> None:
    play = make_play(rules())
    s = play.session(backend=backend)
    answer = refused(s, frame)
    assert answer["error"]["code"] == -32001
    assert "is not available to this agent" in answer["error"]["message"]
    data = answer["error"]["data"]
    assert (data["by"], data["stage"], data["retryable"]) == ("aegis", "acl", False)
    (record,) = play.recorded({"kind": "denied", "acl": "denied", "stage": "acl", "code": -32001})
    assert record.call == data["call_id"]
    assert data["call_id"][:12] in answer["error"]["message"]
    assert not s.server.touched


def test_a_prompt_is_not_allowed_because_a_resource_of_its_name_is(make_play: MakePlay) -> None:
    s = make_play(rules()).session()
    s.calls(request(1, "completion/complete", ref={"type": "ref/resource", "uri": "secret"}))
    answer = refused(s, request(2, "completion/complete", ref={"type": "ref/prompt", "name": "secret"}))
    assert answer["error"]["code"] == -32001


@pytest.mark.parametrize("agent", ["stranger", "Bot", "bot "])
def test_an_agent_that_is_not_configured_may_do_nothing(make_play: MakePlay, agent: str) -> None:
    s = make_play(rules()).session(agent)
    assert refused(s, call(1, "look"))["error"]["code"] == -32001


def test_a_refusal_never_tells_whether_the_name_exists_or_what_the_rule_is(make_play: MakePlay) -> None:
    play = make_play(rules())
    files, mail = play.session(), play.session(backend="mail")
    texts = set()
    for s, name in ((files, "rm"), (files, "drop_dead"), (files, "shred"), (mail, "nothing"), (mail, "send")):
        answer = json.dumps(refused(s, call(1, name)))
        for secret in ("denylist", "allowlist", "agents.bot", "drop_*", "deny.tools"):
            assert secret not in answer
        texts.add(json.loads(answer)["error"]["message"].split("`; ")[0].replace(name, "N").split(";")[0])
    assert texts == {"the tool `N` is not available to this agent"}


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        (request(1, "tools/explode"), -32601, "unknown_method"),
        (request(1, "tools/call"), -32602, "bad_params"),
        (modern(request(1, "initialize")), -32601, "unknown_method"),
        (modern(request(1, "tools/call")), -32602, "bad_params"),
    ],
)
def test_what_cannot_be_judged_gives_a_reason_that_is_a_word(
    make_play: MakePlay, frame: dict[str, Any], code: int, reason: str
) -> None:
    error = refused(make_play(rules()).session(), frame)["error"]
    assert (error["code"], error["data"]["reason"]) == (code, reason)
    assert error["message"] != reason


# --- the shape of a refusal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("denials", "frame", "as_result", "code"),
    [
        ("auto", call(1, "rm"), False, -32001),
        ("auto", modern(call(1, "rm")), True, -31001),
        ("auto", modern(request(1, "prompts/get", name="secret")), False, -31001),
        ("error", call(1, "rm"), False, -32001),
        ("error", modern(call(1, "rm")), False, -31001),
        ("tool_result", call(1, "rm"), True, -32001),
        ("tool_result", modern(call(1, "rm")), True, -31001),
        ("tool_result", request(1, "prompts/get", name="secret"), False, -32001),
    ],
)
def test_a_refusal_has_the_shape_its_era_and_the_setting_ask_for(
    make_play: MakePlay, denials: str, frame: dict[str, Any], as_result: bool, code: int
) -> None:
    play = make_play(rules(denials))
    answer = refused(play.session(), frame)
    if as_result:
        value = answer["result"]
        assert value["isError"] is True
        assert "is not available to this agent" in value["content"][0]["text"]
        denial = value["_meta"]["aegis/denial"]
        assert ("resultType" in value) is (frame["params"].get("_meta") is not None)
    else:
        denial = {"code": answer["error"]["code"], **answer["error"]["data"]}
    assert denial["code"] == code
    assert denial.keys() >= {"by", "call_id", "stage", "reason", "retryable", "retry_after_ms"}


def test_a_refusal_in_the_modern_era_uses_no_reserved_code(make_play: MakePlay) -> None:
    play = make_play(rules("error") + "server: {max_in_flight_session: 1}\n")
    s = play.session()
    s.client.says(modern(call(1, "slow")))
    heard = s.server.hears("tools/call")
    s.client.says(modern(call(2, "slow")))
    s.client.hears_error(2, -31003)
    s.server.answers(heard)
    s.client.hears_result(1)


# --- lists ------------------------------------------------------------------------------------------------------------

TOOLS = [
    {"name": "look", "description": "Look", "x-vendor": [1.0]},
    {"name": "rm", "description": "Remove"},
    {"name": "post", "description": "Publish post"},
    {"name": "drop_all"},
    {"name": "shred"},
]


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_lists_show_what_may_be_called_with_what_it_costs(make_play: MakePlay, era: str) -> None:
    play = make_play(rules())
    s = play.session()
    frame = request(1, "tools/list", cursor="page2")
    given = {"tools": TOOLS, "nextCursor": "page3", "ttlMs": 60_000, "cacheScope": "public", "_meta": {"v": 1}}
    found = s.calls(frame if era == "legacy" else modern(frame), given)
    expected = {
        "tools": [
            TOOLS[0],
            {
                "name": "post",
                "description": "[Rate:1/1d|GlobalRate:15/1h|ApprovalRequired] Publish post",
            },
        ],
        "nextCursor": "page3",
        "_meta": {"v": 1},
        "ttlMs": 60_000 if era == "legacy" else 0,
        "cacheScope": "public" if era == "legacy" else "private",
    }
    assert found == expected


def test_a_tool_without_a_description_gets_its_labels_all_the_same(make_play: MakePlay) -> None:
    s = make_play(rules()).session()
    found = s.calls(request(1, "tools/list"), {"tools": [{"name": "post"}]})
    assert found["tools"][0]["description"] == "[Rate:1/1d|GlobalRate:15/1h|ApprovalRequired]"


@pytest.mark.parametrize(
    ("method", "items", "key", "names", "left"),
    [
        ("resources/list", "resources", "uri", ["file:///a", "file:///etc/b", "FILE:///etc/c"], ["file:///a"]),
        ("prompts/list", "prompts", "name", ["hello", "secret"], ["hello"]),
        ("resources/templates/list", "resourceTemplates", "uriTemplate", ["x:///{p}", "file:///etc/{p}"], ["x:///{p}"]),
    ],
)
def test_other_lists_are_filtered_too(
    make_play: MakePlay, method: str, items: str, key: str, names: list[str], left: list[str]
) -> None:
    s = make_play(rules()).session()
    found = s.calls(request(1, method), {items: [{key: name} for name in names]})
    assert [item[key] for item in found[items]] == left


@pytest.mark.parametrize(
    "value",
    [{}, {"tools": None}, {"tools": {}}, {"tools": [5]}, {"tools": [{}]}, {"tools": [{"name": 5}]}, [], None, "x"],
)
def test_a_list_that_cannot_be_read_is_withheld(make_play: MakePlay, value: Any) -> None:
    s = make_play(rules()).session()
    s.client.says(request(1, "tools/list"))
    heard = s.server.hears("tools/list")
    s.server.says(result(heard["id"], value) if value is not None else b'{"jsonrpc":"2.0","id":1,"result":null}')
    s.client.hears_error(1, -32603, "the server's list is withheld", reason="unreadable_list")


def test_a_list_of_which_everything_may_be_seen_passes_byte_for_byte(make_play: MakePlay) -> None:
    s = make_play().session()
    s.client.says(request(1, "tools/list"))
    heard = s.server.hears("tools/list")
    body = b'{"tools":[{"name":"a","x":1.50,"description":"\\u0041"}], "odd" : 1e2}'
    s.server.says(b'{"jsonrpc":"2.0","id":%d,"result":%s}' % (heard["id"], body))
    assert s.client.inbox.popleft() == b'{"jsonrpc":"2.0","id":1,"result":%s}' % body


def test_a_modern_list_is_for_this_agent_and_this_moment_even_if_nothing_was_hidden(make_play: MakePlay) -> None:
    s = make_play().session()
    found = s.calls(
        modern(request(1, "tools/list")), {"tools": [{"name": "a"}], "ttlMs": 3_600_000, "cacheScope": "public"}
    )
    assert (found["ttlMs"], found["cacheScope"]) == (0, "private")


def test_an_error_in_place_of_a_list_passes(make_play: MakePlay) -> None:
    s = make_play(rules()).session()
    s.client.says(request(1, "tools/list"))
    s.server.says(error(s.server.hears("tools/list")["id"], -32601, "no tools here"))
    s.client.hears_error(1, -32601, "no tools here")


def test_a_reload_is_announced_for_the_lists_whose_changes_the_server_announces(make_play: MakePlay) -> None:
    play = make_play(rules())
    s = play.session().handshake(
        server_capabilities={"tools": {"listChanged": True}, "prompts": {"listChanged": False}, "resources": 5}
    )
    play.reload(rules())
    s.client.hears("notifications/tools/list_changed")
    s.is_quiet()


def test_a_modern_client_hears_of_no_list_it_did_not_ask_about(make_play: MakePlay) -> None:
    play = make_play(rules())
    s = play.session().handshake(server_capabilities={"tools": {"listChanged": True}})
    s.calls(modern(call(1, "look")))
    play.reload(rules())
    s.is_quiet()


# --- methods and notifications ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        "tools/run",
        "Tools/call",
        "tools/call ",
        "rpc.discover",
        "",
        "sampling/createMessage",
        "notifications/x",
        "x" * 999,
    ],
)
@pytest.mark.parametrize("wrap", [lambda frame: frame, modern])
def test_unknown_methods_are_refused(make_play: MakePlay, method: str, wrap: Callable[..., Any]) -> None:
    play = make_play()
    s = play.session()
    answer = refused(s, wrap(request(1, method)))
    assert answer["error"]["code"] == -32601
    assert len(answer["error"]["message"]) < 300
    play.recorded({"kind": "denied", "stage": "method", "method": "(unknown)"})


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("tools/call", {}, "`name` must be a string"),
        ("tools/call", {"name": 5}, "`name` must be a string"),
        ("tools/call", {"name": None}, "`name` must be a string"),
        ("resources/read", {"url": "x"}, "`uri` must be a string"),
        ("prompts/get", {"name": ["a"]}, "`name` must be a string"),
        ("completion/complete", {}, "`ref` must be an object"),
        ("completion/complete", {"ref": {"type": "ref/tool", "name": "x"}}, "must name a prompt or a resource"),
        ("tasks/get", {}, "`taskId` must be a string"),
    ],
)
def test_a_request_that_does_not_say_what_it_is_about_is_refused(
    make_play: MakePlay, method: str, params: dict[str, Any], words: str
) -> None:
    play = make_play()
    answer = refused(play.session(), request(1, method, **params))
    assert answer["error"]["code"] == -32602
    assert words in answer["error"]["message"]
    play.recorded({"kind": "denied", "stage": "params"})


def test_arguments_that_are_no_object_are_judged_and_recorded_as_they_are(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session()
    s.client.says(request(1, "tools/call", name="x", arguments=[1, 2]))
    heard = s.server.hears("tools/call", arguments=[1, 2])
    s.server.answers(heard)
    s.client.hears_result(1)
    assert play.body(play.recorded("intent", "outcome")[0]) == [1, 2]


def test_notifications_pass_and_what_only_looks_like_one_is_dropped(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    s.client.says(note("roots/list_changed"), note("made/up", x=1))
    s.server.hears("notifications/roots/list_changed")
    s.server.hears("notifications/made/up", x=1)
    for method in ("tools/call", "ping", "initialize", "Notifications/x", "notification/x", "notifications"):
        s.client.says({"jsonrpc": "2.0", "method": method, "params": {"name": "rm"}})
    s.server.says(note("message", level="info", data="x"), note("made/up", y=2), note("tools/list_changed"))
    s.client.hears("notifications/message", level="info")
    s.client.hears("notifications/made/up", y=2)
    s.client.hears("notifications/tools/list_changed")
    s.server.says({"jsonrpc": "2.0", "method": "roots/list"})
    play.advance(1)
    s.is_quiet()
    play.recorded(
        {"kind": "dropped", "direction": "to_server", "count": 6},
        {"kind": "dropped", "direction": "to_client", "count": 1},
    )


def test_notifications_of_an_agent_that_may_not_use_the_backend_go_nowhere(make_play: MakePlay) -> None:
    play = make_play(rules())
    s = play.session().handshake()
    play.reload(rules().replace("      files:\n        allowed: true", "      files:\n        allowed: false"))
    s.client.says(note("roots/list_changed"))
    s.is_quiet()


def test_notifications_to_an_explicitly_closed_backend_go_nowhere_where_unlisted_ones_are_open(
    make_play: MakePlay,
) -> None:
    s = make_play(rules() + "defaults: {unlisted: observe}\n").session(backend="closed")
    s.client.says(note("roots/list_changed"))
    s.is_quiet()


def test_updates_of_resources_that_are_hidden_do_not_reach_the_client(make_play: MakePlay) -> None:
    play = make_play(rules())
    s = play.session().handshake()
    s.server.says(note("resources/updated", uri="file:///etc/passwd"), note("resources/updated", uri=5))
    s.server.says(note("resources/updated", uri="file:///home/a"))
    s.client.hears("notifications/resources/updated", uri="file:///home/a")
    s.is_quiet()


def test_a_flood_of_nonsense_becomes_one_record_a_second_and_bounded_memory(make_play: MakePlay) -> None:
    play = make_play()
    s = play.session().handshake()
    for n in range(500):
        s.client.says(b'{"jsonrpc":"2.0","id":%d,"method":"x","Meth\xc3\xb8d%d":1,"METHOD":1}' % (n, n))
        s.client.says(b'{"jsonrpc":"2.0","id":%d,"method":"x","params":{"NAM\\u0000E%d":1,"\\u0000name\\u00%02x":1}}'
                      % (n, n, n % 32))  # fmt: skip
        s.client.says(b'{"jsonrpc":"2.0","x":"%s"}' % (b"x" * n))
        s.server.says(b'{"jsonrpc":"2.0","method":"x","Method%d\\u0000":1, "METHOD": 2}' % n)
    s.client.inbox.clear()
    s.client.asked.clear()
    assert len(s.talk._dropped) < 10
    play.advance(1)
    assert len(play.log.records) < play.seen + 10
    assert sum(one.count for one in play.log.records if one.kind == "dropped") == 2000


def test_a_huge_bad_key_is_not_sent_back_whole(make_play: MakePlay) -> None:
    s = make_play().session().handshake()
    s.client.says(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"name\\u0000%s":1}}' % (b"\\u0000" * 10_000))
    assert len(s.client.inbox[0]) < 1000
    s.client.inbox.clear()
    s.client.asked.clear()


# --- observe mode -----------------------------------------------------------------------------------------------------


def test_observe_mode_lets_refusals_pass_and_records_what_would_have_been(make_play: MakePlay) -> None:
    play = make_play("mode: observe\n" + rules())
    s = play.session().handshake()
    s.calls(call(1, "rm"))
    s.calls(call(2, "post"))
    s.calls(call(3, "post"))
    s.calls(request(4, "prompts/get", name="secret"))
    play.recorded(
        {"kind": "denied", "would": True, "stage": "acl"}, {"kind": "intent", "note": "observe"}, "outcome",
        {"kind": "denied", "would": True, "stage": "approval"}, "intent", "outcome",
        {"kind": "denied", "would": True}, {"kind": "intent", "limit": "denied"}, "outcome",
        {"kind": "denied", "would": True, "stage": "acl"}, "intent", "outcome",
    )  # fmt: skip


def test_observe_mode_hides_nothing_and_refuses_faults_all_the_same(make_play: MakePlay) -> None:
    play = make_play("mode: observe\n" + rules())
    s = play.session().handshake()
    found = s.calls(request(1, "tools/list"), {"tools": TOOLS})
    assert [tool["name"] for tool in found["tools"]] == [tool["name"] for tool in TOOLS]
    assert refused(s, request(2, "tools/run"))["error"]["code"] == -32601
    play.log.unavailable = "disk full"
    assert refused(s, call(3, "look"))["error"]["data"]["reason"] == "audit_unavailable"
    play.runtime.pipeline._deciders = (lambda call, now: 1 / 0,)
    play.log.unavailable = None
    assert "a fault in Aegis" in refused(s, call(4, "fresh"))["error"]["message"]
    play.errors.clear()


def test_observe_mode_records_what_a_server_asks_and_lets_it_pass(make_play: MakePlay) -> None:
    play = make_play("mode: observe\n" + rules())
    s = play.session()
    s.client.says(request("i", "initialize", protocolVersion="2025-06-18", capabilities={"sampling": {}, "roots": {}}))
    heard = s.server.hears("initialize", capabilities={"sampling": {}, "roots": {}})
    s.server.answers(heard, {"protocolVersion": "2025-06-18", "capabilities": {}})
    s.client.hears_result("i")
    play.seen = len(play.log.records)
    s.server.says(request("q", "sampling/createMessage", messages=[]))
    s.client.says(result(s.client.hears("sampling/createMessage")["id"], {"role": "assistant"}))
    s.server.hears_result("q", {"role": "assistant"})
    play.recorded({"kind": "denied", "would": True, "stage": "acl"}, "intent", "outcome")
    s.client.says(modern(call(1, "look")))
    asks = {"resultType": "input_required", "inputRequests": {"q": {"method": "roots/list"}}}
    s.server.answers(s.server.hears("tools/call"), asks)
    s.client.hears_result(1, asks)
    play.recorded("intent", {"kind": "denied", "would": True, "stage": "acl"}, "outcome")


def test_unlisted_agents_and_backends_may_be_observed_and_explicit_refusals_hold(make_play: MakePlay) -> None:
    play = make_play(rules() + "defaults: {unlisted: observe}\n")
    play.session("stranger", "anything").calls(call(1, "rm"), text("done"))
    play.session("bot", "unheard").calls(call(1, "x"))
    assert refused(play.session("bot", "closed"), call(1, "x"))["error"]["code"] == -32001
    assert refused(play.session("bot", "files"), call(1, "rm"))["error"]["code"] == -32001
    assert refused(play.session("stranger", "files"), call(1, "shred"))["error"]["code"] == -32001


def test_a_backend_that_is_not_allowed_any_more_tells_its_client_nothing_new(make_play: MakePlay) -> None:
    config = "backends: {{files: {{}}}}\nagents: {{bot: {{backends: {{files: {{allowed: {}}}}}}}}}"
    play = make_play(config.format("true"))
    s = play.session().handshake()
    s.client.says(call(1, "x", token="t"))
    heard = s.server.hears("tools/call")
    s.server.says(note("message", level="info", data="before"))
    s.client.hears("notifications/message", data="before")
    play.reload(config.format("false"))
    s.server.says(note("message", level="info", data="after"), note("tools/list_changed"))
    s.client.hears_nothing()
    token = heard["params"]["_meta"]["progressToken"]
    s.server.says(note("progress", progressToken=token, progress=1))
    s.client.hears("notifications/progress")
    s.server.answers(heard, text("what it was sent before keeps its answer"))
    s.client.hears_result(1)
