from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import call, tool

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import Names, Restricted
from aegis_daemon.core.pipeline import Pipeline
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Deny, Pass
from aegis_daemon.stages.acl import Acl, Lists, Route
from aegis_daemon.wire.methods import TO_CLIENT, TO_SERVER, Direction, Rule


def lists(allow: list[str] | None = None, deny: list[str] | None = None) -> Lists:
    return Lists(Names(allow) if allow is not None else None, Restricted(deny) if deny else None)


def acl(route: Route | None = None, **more: Any) -> Acl:
    return Acl({} if route is None else {("amy", "files"): route}, **more)


def passes(gate: Acl, of: Call) -> bool:
    opinion = gate.decide(of, 0.0)
    assert isinstance(opinion, Pass | Deny)
    if isinstance(opinion, Deny):
        assert opinion.reason.stage == "acl"
        assert opinion.reason.detail
    return isinstance(opinion, Pass)


def named(subject: str, name: str) -> Call:
    if subject == "tool":
        return tool(name)
    if subject == "prompt":
        return call("prompts/get", {"name": name})
    return call("resources/read", {"uri": name})


# --- backends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["amy", "bob", "", "Amy", "amy "])
@pytest.mark.parametrize("backend", ["files", "mail", "Files"])
def test_an_agent_meets_only_the_backends_it_is_given(agent: str, backend: str) -> None:
    assert passes(acl(Route()), tool("read", agent=agent, backend=backend)) is ((agent, backend) == ("amy", "files"))


@pytest.mark.parametrize("method", sorted(name for name, row in TO_SERVER.items() if row.rule is not Rule.GOVERNED))
def test_methods_without_a_name_need_the_backend_all_the_same(method: str) -> None:
    assert passes(acl(Route()), call(method, {}))
    assert not passes(acl(Route()), call(method, {}, agent="bob"))


def test_unlisted_agents_pass_only_where_the_file_says_observe_and_the_pair_is_not_refused() -> None:
    open_to_all = acl(Route(), open_unlisted=True, refused=frozenset([("eve", "files")]))
    assert passes(open_to_all, tool("read", agent="bob"))
    assert passes(open_to_all, tool("read", agent="amy", backend="mail"))
    assert not passes(open_to_all, tool("read", agent="eve"))
    assert not open_to_all.visible(Principal("eve"), "files", "tool", "read")
    assert open_to_all.visible(Principal("bob"), "files", "tool", "read")
    ask = call("sampling/createMessage", {}, agent="bob", direction=Direction.TO_CLIENT)
    assert not passes(open_to_all, ask)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["tool", "prompt", "resource"])
@pytest.mark.parametrize(
    ("allow", "deny", "name", "passing"),
    [
        (None, None, "x:a", True),
        (None, ["x:a"], "x:a", False),
        (None, ["x:a"], "x:A", False),
        (None, ["x:A*"], "x:ab", False),
        (None, ["x:a"], "x:a.", False),
        (["x:a"], None, "x:A", False),
        (["x:*"], ["x:a"], "x:A/", False),
        (None, ["x:*"], "x:a", False),
        (None, ["*"], "x:a", False),
        ([], None, "x:a", False),
        (["x:a"], None, "x:a", True),
        (["x:a"], None, "x:b", False),
        (["x:*"], ["x:a"], "x:a", False),
        (["x:*"], ["x:a"], "x:b", True),
        (["x:a"], ["x:*"], "x:a", False),
    ],
)
def test_a_name_is_admitted_by_its_own_lists(
    subject: str, allow: list[str] | None, deny: list[str] | None, name: str, passing: bool
) -> None:
    own = lists(allow, deny)
    route = Route(**{f"{subject}s": own})
    assert passes(acl(route), named(subject, name)) is passing
    assert acl(route).visible(Principal("amy"), "files", subject, name) is passing
    others = Route(**{f"{other}s": own for other in ("tool", "prompt", "resource") if other != subject})
    assert passes(acl(others), named(subject, name))


@pytest.mark.parametrize(
    ("deny", "allow", "backend", "passing"),
    [
        (["read"], None, "files", False),
        (["files.read"], None, "files", False),
        (["mail.read"], None, "files", True),
        (["files.*"], None, "files", False),
        (["*.read"], None, "files", False),
        (["re*"], None, "files", False),
        (["reader"], None, "files", True),
        (["Read"], None, "files", False),
        (["FILES.read"], None, "files", False),
        ([], ["Read"], "files", False),
        ([], ["read"], "files", True),
        ([], ["files.read"], "files", True),
        ([], ["mail.read"], "files", False),
        ([], [], "files", False),
        (["read"], ["read"], "files", False),
    ],
)
def test_the_files_own_deny_and_allow_hold_for_every_agent(
    deny: list[str], allow: list[str] | None, backend: str, passing: bool
) -> None:
    gate = acl(Route(), deny=Restricted(deny), allow=Names(allow) if allow is not None else None)
    assert passes(gate, tool("read", backend=backend)) is passing
    assert gate.visible(Principal("amy"), backend, "tool", "read") is passing
    # They speak of tools alone.
    assert passes(gate, named("prompt", "read"))
    assert gate.visible(Principal("amy"), backend, "resource", "read")


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "File:/etc/passwd",
        "file:etc/passwd",
        "file:////etc/passwd",
        "file://localhost/etc/passwd",
        "file:///srv/../etc/passwd",
        "file:///srv/%2e%2e/etc/passwd",
        "file:///srv/%2E%2E%2Fetc/passwd",
        "file:///%65tc/passwd",
        "file:///srv\\..\\etc\\passwd",
        "file:///etc/./passwd",
        "file:///etc/passwd#x",
        "file:///etc/passwd?x",
        "fi\nle:///etc/passwd",
        " file:///etc/passwd",
        "file://[x/etc/passwd",
        "file://127.0.0.1/etc/passwd",
        "file://etc/passwd",
        "file:///%2565tc/passwd",
        "file:///etc/passwd%00",
    ],
)
@pytest.mark.parametrize("deny", [["file:///etc/*"], ["file:///etc/passwd"]])
def test_a_denied_resource_is_refused_however_it_is_written(uri: str, deny: list[str]) -> None:
    gate = acl(Route(resources=lists(deny=deny)))
    assert not passes(gate, call("resources/read", {"uri": uri}))
    assert not passes(gate, call("resources/subscribe", {"uri": uri}))
    assert not passes(gate, call("completion/complete", {"ref": {"type": "ref/resource", "uri": uri}}))
    assert not passes(gate, call("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["x:a", uri]}}))
    assert not gate.visible(Principal("amy"), "files", "resource", uri)


@pytest.mark.parametrize(
    "uri",
    [
        "https://internal/keys",
        "HTTPS://INTERNAL/keys",
        "https://internal:443/keys",
        "https://internal:/keys",
        "https:internal/keys",
        "https:/internal/keys",
        "https:///internal/keys",
        "https:\\\\internal\\keys",
        "https://%69nternal/keys",
        "https://\uff49nternal/keys",
        "https://me@internal/keys",
        "https://pub\\@internal/keys",
        "https://internal./keys",
        "https://internal/keys#top",
        "https://internal/%6Beys",
        "https://internal/%256Beys",
        "ht\ttps://internal/keys",
    ],
)
@pytest.mark.parametrize("deny", [["https://internal/*"], ["https://internal/keys"]])
def test_a_denied_page_is_refused_however_a_parser_of_urls_may_read_it(uri: str, deny: list[str]) -> None:
    gate = acl(Route(resources=lists(deny=deny)))
    assert not passes(gate, named("resource", uri))
    assert not gate.visible(Principal("amy"), "files", "resource", uri)
    for other in ("https://pub/a", "https://internal:8443/a", "https://{host}/a"):
        assert passes(gate, named("resource", other))


def test_only_what_is_denied_is_asked_for_by_what_a_careless_server_could_make_of_a_uri() -> None:
    gate = acl(Route(resources=lists(["file://share/pub/*", "https://pub/*"], ["file:///secret/*"])))
    assert passes(gate, named("resource", "file://share/pub/a"))
    assert passes(gate, named("resource", "https://pub/a#b"))
    assert not passes(gate, named("resource", "file://share/secret/a"))


@pytest.mark.parametrize("uri", ["notes:///a%00", "notes:///a\0", "notes:///a%2500", "notes:///a\n"])
def test_a_uri_that_a_server_could_cut_short_is_refused_where_there_are_no_lists_too(uri: str) -> None:
    assert not passes(acl(Route()), named("resource", uri))
    for other in ("notes:///a?text=1%0A2", "https:x", "http://["):
        assert passes(acl(Route()), named("resource", other))


@pytest.mark.parametrize("uri", ["notes:///priv/1", "NOTES:///priv/1", "notes:///pub/../priv/1", "notes:///pri%76/1"])
def test_a_scheme_of_a_servers_own_is_no_way_around(uri: str) -> None:
    assert not passes(acl(Route(resources=lists(deny=["notes:///priv/*"]))), named("resource", uri))
    assert not passes(acl(Route(resources=lists(allow=["notes:///pub/*"]))), named("resource", uri))
    assert passes(acl(Route(resources=lists(allow=["notes:///pub/*"]))), named("resource", "notes:///pub/1"))


@pytest.mark.parametrize(
    "uri",
    ["file:///srv/../etc/passwd", "file:///srv/%2e%2e/etc/passwd", "file:///srv/..\\..\\x", "file:///srv/%252e%252e/x"],
)
def test_an_allowed_folder_cannot_be_left(uri: str) -> None:
    gate = acl(Route(resources=lists(allow=["file:///srv/*"])))
    assert not passes(gate, named("resource", uri))
    assert passes(gate, named("resource", "file:///srv/a/../b"))


def test_what_may_be_listened_to_and_tasks_of_the_session_pass() -> None:
    gate = acl(Route(resources=lists(allow=["x:*"])))
    assert passes(gate, call("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["x:a", "x:b"]}}))
    assert passes(gate, call("subscriptions/listen", {}))
    assert not passes(gate, call("subscriptions/listen", {"resourceSubscriptions": ["x:a", "y:b"]}))
    for method in ("tasks/get", "tasks/cancel", "tasks/result", "tasks/update"):
        assert passes(gate, call(method, {"taskId": "t1"}))
        assert not passes(gate, call(method, {"taskId": "t1"}, backend="mail"))


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (tool("x", backend="mail"), "backend_not_allowed"),
        (tool("x"), "not_allowed"),
        (call("roots/list", {}, direction=Direction.TO_CLIENT), "server_request_not_allowed"),
    ],
)
def test_a_refusal_has_a_word_for_programs(refused: Call, code: str) -> None:
    opinion = acl(Route(tools=lists(allow=[]))).decide(refused, 0.0)
    assert isinstance(opinion, Deny)
    assert opinion.reason.code == code


def test_a_listen_with_parameters_that_cannot_be_judged_is_refused() -> None:
    opinion = acl(Route()).decide(call("subscriptions/listen", {"resourceSubscriptions": "file:///x"}), 0.0)
    assert isinstance(opinion, Deny)
    assert opinion.reason.stage == "params"


# --- what a server may ask --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(name for name, row in TO_CLIENT.items() if row.rule is Rule.GOVERNED))
def test_a_server_may_ask_only_what_the_file_lists(method: str) -> None:
    ask = call(method, {}, direction=Direction.TO_CLIENT)
    assert ask.name is not None
    assert not passes(acl(Route()), ask)
    assert not passes(acl(), ask)
    assert passes(acl(Route(server_requests=frozenset([ask.name]))), ask)
    others = {"sampling", "elicitation", "roots", "tasks"} - {ask.name}
    assert not passes(acl(Route(server_requests=frozenset(others))), ask)


# --- what the agent reads ---------------------------------------------------------------------------------------------


def test_the_text_is_the_same_whether_the_name_exists_or_not_and_never_names_the_rule() -> None:
    gate = acl(Route(tools=lists(allow=["read"], deny=["wipe"])))
    texts = set()
    for name in ("wipe", "nope"):
        opinion = gate.decide(tool(name), 0.0)
        assert isinstance(opinion, Deny)
        texts.add(opinion.reason.text.replace(name, "NAME"))
        assert "list" not in opinion.reason.text
        assert "agents." not in opinion.reason.text
    assert len(texts) == 1


def test_a_very_long_name_does_not_fill_the_answer() -> None:
    opinion = acl(Route(tools=lists(allow=[]))).decide(tool("x" * 10_000), 0.0)
    assert isinstance(opinion, Deny)
    assert len(opinion.reason.text) < 400


# --- visible and decide agree -----------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["a", "b", "ab", "files.a", "x:///a", "X:///a", "x:///b/../a", "file:///a", "file://localhost/a"]
)
PATTERNS = st.sampled_from(["a", "a*", "*b", "?", "files.*", "*", "x:///a", "x:///*", "file:///*", "[ab]"])
LISTS = st.builds(lists, st.none() | st.lists(PATTERNS, max_size=2), st.none() | st.lists(PATTERNS, max_size=2))


@given(
    st.builds(Route, tools=LISTS, resources=LISTS, prompts=LISTS),
    st.lists(PATTERNS, max_size=2),
    st.none() | st.lists(PATTERNS, max_size=2),
    st.booleans(),
    st.sampled_from(["amy", "bob"]),
    st.sampled_from(["tool", "prompt", "resource"]),
    WORDS,
)
def test_what_is_shown_is_exactly_what_is_not_refused(
    route: Route, deny: list[str], allow: list[str] | None, observe: bool, agent: str, subject: str, name: str
) -> None:
    gate = acl(route, deny=Restricted(deny), allow=None if allow is None else Names(allow), open_unlisted=observe)
    of = named(subject, name)
    principal = Principal(agent)
    seen = gate.visible(principal, "files", subject, name)
    fields = {field: getattr(of, field) for field in of.__struct_fields__}
    assert seen is passes(gate, Call(**{**fields, "principal": principal}))
    assert Pipeline([gate]).visible(principal, "files", subject, name) is seen


def test_a_uri_that_cannot_be_read_is_hidden_without_noise(caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG):
        gate = Pipeline([acl(Route(resources=lists(deny=["x"])))])
        assert not gate.visible(Principal("amy"), "files", "resource", "file://[x")
    assert not caplog.records


@pytest.mark.parametrize("subject", ["tool", "prompt"])
@pytest.mark.parametrize("name", ["hid\0", "hid ", "\uff48id"])
def test_a_disguised_name_is_refused_and_unseen_even_where_everything_else_is_open(subject: str, name: str) -> None:
    gate = acl(Route(tools=lists(deny=["hid"]), prompts=lists(deny=["hid"])))
    assert not passes(gate, named(subject, name))
    assert not gate.visible(Principal("amy"), "files", subject, name)
    assert passes(gate, named(subject, "seen"))


@pytest.mark.parametrize("mark", ["?", "#", "%3f", "?%2e%2e/x#"])
def test_no_list_admits_what_goes_up_behind_the_path(mark: str) -> None:
    uri = f"file:///pub/x{mark}/../../secret/a"
    assert not lists(None, ["file:///secret/*"]).admits_uri(uri)
    assert not lists(["file:///pub/*"], None).admits_uri(uri)
