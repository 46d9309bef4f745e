"""A refused call becomes the smallest change of the file after which it passes, and nobody else gains by it."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from making import call, tool

from aegis_daemon.config.edit import Asked, Edited, Stuck, difference, permit
from aegis_daemon.config.load import loads, starter
from aegis_daemon.config.runtime import build
from aegis_daemon.core.names import Names, plain_uri
from aegis_daemon.core.verdict import Deny
from aegis_daemon.wire.methods import Direction

AGENTS = ("amy", "bob", "eve")
BACKENDS = ("files", "mail", "news")
TOOLS = ("read", "write", "delete_a", "delete_b", "files.read", "odd*name")
RESOURCES = ("file:///a", "file:///b?c", "file:///x/../a")


def asked(name: str, *, agent: str = "amy", backend: str = "files", method: str = "tools/call") -> Asked:
    subject = {"tools/call": "tool", "resources/read": "resource", "prompts/get": "prompt"}.get(
        method, "server_request"
    )
    return Asked(agent, backend, method, subject, (name,))


def changed(text: str, *args: Any, **more: Any) -> Edited:
    edited = permit(text, "aegis.yaml", asked(*args, **more))
    assert edited.steps
    return edited


def stuck(text: str, *args: Any, **more: Any) -> Stuck:
    with pytest.raises(Stuck) as raised:
        permit(text, "aegis.yaml", asked(*args, **more))
    return raised.value


def lines(text: str, edited: Edited) -> tuple[set[str], set[str]]:
    """What was taken out and what was put in."""
    diff = difference(text, edited.text, context=0)
    return ({line[1:] for line in diff if line[0] == "-"}, {line[1:] for line in diff if line[0] == "+"})


def admitted(text: str) -> set[tuple[str, str, str, str]]:
    """Everything that may be used, over every agent, backend and name there is in this file's tests."""
    runtime = build(loads(text, "aegis.yaml").config, "d")
    found = set()
    for agent, backend in itertools.product((*AGENTS, "stranger"), (*BACKENDS, "elsewhere")):
        who: dict[str, Any] = {"agent": agent, "backend": backend}
        probes = [("tool", name, tool(name, **who)) for name in (*TOOLS, "other")]
        probes += [("resource", uri, call("resources/read", {"uri": uri}, **who)) for uri in (*RESOURCES, "x:y")]
        probes += [("prompt", name, call("prompts/get", {"name": name}, **who)) for name in ("hello", "other")]
        probes += [
            ("server_request", method, call(method, {}, direction=Direction.TO_CLIENT, **who))
            for method in ("sampling/createMessage", "roots/list")
        ]
        for subject, name, probe in probes:
            if not isinstance(runtime.pipeline.admit(probe, 0.0), Deny):
                found.add((agent, backend, subject, name))
    return found


# --- the cases --------------------------------------------------------------------------------------------------------

LISTS = """# the house
backends:
  files: {}   # here
  mail:
agents:
  amy:
    backends:
      files:
        allowed: true
        tool_denylist:
          # never
          - 'write'   # too loud
          - read
        tool_allowlist: ["read", 'write',
                         "go"]  # few
      mail: {allowed: true, tool_denylist: [read, "write"], server_requests: [roots]}
  bob: {backends: {files: {allowed: false, tool_denylist: [wipe]}}}
"""


def test_an_exact_name_is_taken_off_the_denylist_with_its_own_line_alone() -> None:
    assert lines(LISTS, changed(LISTS, "write")) == ({"          - 'write'   # too loud"}, set())
    assert lines(LISTS, changed(LISTS, "write", backend="mail")) == (
        {'      mail: {allowed: true, tool_denylist: [read, "write"], server_requests: [roots]}'},
        {"      mail: {allowed: true, tool_denylist: [read], server_requests: [roots]}"},
    )


def test_the_last_name_leaves_an_empty_list_and_the_comments_in_it() -> None:
    once = changed(LISTS, "write").text
    twice = changed(once, "read")
    assert lines(once, twice) == (
        {"        tool_denylist:", "          - read"},
        {"        tool_denylist: []"},
    )
    assert "# never" in twice.text


def test_a_name_that_is_missing_is_added_to_the_allowlist_as_its_neighbours_are_written() -> None:
    assert lines(LISTS, changed(LISTS, "dance")) == (
        {'                         "go"]  # few'},
        {'                         "go", "dance"]  # few'},
    )
    block = "backends: {files: }\nagents:\n  amy:\n    backends:\n      files:\n        allowed: true\n        tool_allowlist:\n        - 'read' # r"
    assert changed(block, "go").text == block + "\n        - 'go'\n"


def test_a_name_that_reads_as_a_pattern_is_added_as_itself() -> None:
    text = "backends: {files: {}}\nagents: {amy: {backends: {files: {allowed: true, tool_allowlist: []}}}}\n"
    edited = changed(text, "*")
    assert 'tool_allowlist: ["[*]"]' in edited.text
    assert admitted(edited.text) == admitted(text)  # the grid has no tool of this name


@pytest.mark.parametrize("name", ["a*", "?", "[ab]", "[!a]", "x[", "*]", "[[]", "a[*]b", "**"])
def test_a_name_on_a_list_stands_for_itself_alone(name: str) -> None:
    text = "backends: {files: {}}\nagents: {amy: {backends: {files: {allowed: true, tool_allowlist: []}}}}\n"
    names = Names(loads(changed(text, name).text, "").config.agents["amy"].backends["files"].tool_allowlist or ())
    assert name in names
    for other in ("a", "b", "ab", "x", "", "!", "[", "]", "*", "a*b", "**", "?", "[a]", name + "x", "x" + name):
        assert other == name or other not in names


def test_a_backend_that_is_not_listed_is_opened_for_the_call_alone() -> None:
    edited = changed(LISTS, "post", agent="bob", backend="mail")
    assert "mail: {allowed: true, tool_allowlist: [post], resource_allowlist: [], prompt_allowlist: []}" in edited.text
    unknown = changed(LISTS, "post", backend="news")
    assert lines(LISTS, unknown)[1] == {
        "  news: {}",
        "      news:",
        "        allowed: true",
        "        tool_allowlist: [post]",
        "        resource_allowlist: []",
        "        prompt_allowlist: []",
    }


def test_a_backend_that_is_switched_off_is_switched_on_for_the_call_alone() -> None:
    edited = changed(LISTS, "read", agent="bob")
    assert "files: {allowed: true, tool_denylist: [wipe], tool_allowlist: [read]" in edited.text
    assert admitted(edited.text) - admitted(LISTS) == {("bob", "files", "tool", "read")}


@pytest.mark.parametrize(
    "wide", ["tool_allowlist: ['*']", "resource_allowlist: [a]", "server_requests: [roots]", "prompt_allowlist: [b]"]
)
def test_lists_behind_a_switch_that_would_open_more_are_a_persons_business(wide: str) -> None:
    text = f"backends: {{files: {{}}}}\nagents: {{amy: {{backends: {{files: {{allowed: false, {wide}}}}}}}}}\n"
    assert "would let more than this call pass" in stuck(text, "read").message


def test_an_agent_that_is_not_configured_is_added_for_the_call_alone() -> None:
    edited = changed(starter(), "x", agent="new", backend="github")
    assert lines(starter(), edited) == (
        set(),
        {
            "  new:",
            "    backends:",
            "      github:",
            "        allowed: true",
            "        tool_allowlist: [x]",
            "        resource_allowlist: []",
            "        prompt_allowlist: []",
        },
    )


@pytest.mark.parametrize(
    "text", ["", "# nothing yet\n", "mode: enforce", "agents:\nbackends: ~\n", "{}", "\ufeff---\n"]
)
def test_a_file_that_says_little_is_begun(text: str) -> None:
    edited = changed(text, "read")
    assert edited.text.startswith(text.rstrip("}~\n")[:5])
    assert admitted(edited.text) == {("amy", "files", "tool", "read")}


def test_a_file_of_json_stays_one() -> None:
    import json

    text = '{"backends": {"files": {}}, "agents": {"amy": {"backends": {"files": {"allowed": true}}}}, "deny": {"tools": ["read"]}}'
    assert json.loads(changed(text, "read").text)["deny"] == {"tools": []}
    added = json.loads(changed(text, "write", agent="eve", backend="mail").text)
    assert added["agents"]["eve"]["backends"]["mail"]["tool_allowlist"] == ["write"]


def test_line_ends_and_a_missing_last_one_stay() -> None:
    text = LISTS.replace("\n", "\r\n").removesuffix("\r\n")
    edited = changed(text, "post", agent="eve")
    assert "\n" not in edited.text.replace("\r\n", "")
    assert edited.text.startswith(text)


def test_a_comment_of_the_last_entry_stays_with_it() -> None:
    text = "backends:\n  files:\n    timeout: 5s\n    # command: x\n# about agents\nagents: {}\n"
    assert "    # command: x\n  news: {}\n# about agents\n" in changed(text, "read", backend="news").text


# --- what holds for everybody -----------------------------------------------------------------------------------------

SHARED = """
backends: {files: {}, mail: {}}
deny: {tools: [read, mail.send, "wipe_*"]}
agents:
  amy: {backends: {files: {allowed: true}, mail: {allowed: true}}}
  bob: {backends: {files: {allowed: true}}}
"""


def test_what_is_taken_off_everybodys_denylist_stays_denied_to_the_others() -> None:
    edited = changed(SHARED, "read")
    gained = admitted(edited.text) - admitted(SHARED)
    assert gained == {("amy", "files", "tool", "read")}
    assert {step.path for step in edited.steps} == {
        "deny.tools",
        "agents.amy.backends.mail.tool_denylist",
        "agents.bob.backends.files.tool_denylist",
    }


def test_a_name_is_added_to_everybodys_allowlist_in_the_way_that_opens_least() -> None:
    alone = "backends: {files: {}}\nallow: {tools: [go]}\nagents: {amy: {backends: {files: {allowed: true}}}}\n"
    assert "tools: [go, read]" in changed(alone, "read").text
    text = SHARED.replace('deny: {tools: [read, mail.send, "wipe_*"]}', "allow: {tools: [go]}")
    edited = changed(text, "read")
    assert admitted(edited.text) - admitted(text) == {("amy", "files", "tool", "read")}


@pytest.mark.parametrize("rules", ["deny: {tools: [read]}", "allow: {tools: [go]}"])
def test_what_holds_for_unlisted_agents_too_is_a_persons_business(rules: str) -> None:
    text = f"defaults: {{unlisted: observe}}\n{rules}\n"
    assert "unlisted" in stuck(text, "read").message


# --- never ------------------------------------------------------------------------------------------------------------


def test_a_pattern_that_denies_is_never_widened() -> None:
    told = stuck(SHARED, "wipe_all")
    assert told.line == 3
    assert "`wipe_*`" in told.message
    assert "by hand" in told.hint
    own = SHARED.replace(
        "bob: {backends: {files: {allowed: true}}}",
        "bob: {backends: {files: {allowed: true, tool_denylist: [x, '?ead', read]}}}",
    )
    assert "`?ead`" in stuck(own, "read", agent="bob").message


def test_a_name_that_denies_another_spelling_is_a_persons_business() -> None:
    text = (
        "backends: {files: {}}\nagents:\n"
        "  amy: {backends: {files: {allowed: true, tool_denylist: [read], resource_denylist: ['file:///etc']}}}\n"
    )
    assert "the name `read`" in stuck(text, "Read").message
    assert "the name `file:///etc`" in stuck(text, "file://x/etc", method="resources/read").message
    assert "`read` is taken off" in str(changed(text, "read").steps)


def test_a_name_that_cannot_be_seen_is_allowed_by_nothing() -> None:
    for name in ("read\u200b", " read", "re\u0000ad", "\uff52ead"):
        assert "cannot be seen" in stuck(LISTS, name).message


def test_an_agent_is_not_added_where_that_would_end_the_isolated_tier() -> None:
    text = "backends: {files: {}}\nagents: {amy: {identities: [60001], backends: {files: {allowed: true}}}}\n"
    assert "isolated" in stuck(text, "read", agent="bob").message
    assert changed(text, "read", backend="mail").text.startswith(text[:20])


@pytest.mark.parametrize(
    "text",
    [
        # What amy and bob share would be opened for both.
        "backends: {files: {}}\nagents:\n  amy: {backends: {files: &f {allowed: true, tool_denylist: [read]}}}\n  bob: {backends: {files: *f}}\n",
        "backends: {files: {}}\nagents:\n  bob: {backends: {files: &f {allowed: true, tool_denylist: [read]}}}\n  amy: {backends: {files: *f}}\n",
        "backends: {files: {}}\nagents:\n  bob: {backends: {files: &f {allowed: true, tool_denylist: [read]}}}\n  amy: {backends: {files: {<<: *f}}}\n",
        "backends: {files: {}}\nagents:\n  bob: {backends: {files: {allowed: true, tool_denylist: &l [read]}}}\n  amy: {backends: {files: {allowed: true, tool_denylist: *l}}}\n",
        # With its last name goes the anchor that others refer to.
        "backends: {files: {}}\nagents:\n  amy:\n    backends:\n      files:\n        tool_denylist: &l\n          - read\n        allowed: true\n  bob: {backends: {files: {allowed: true, tool_denylist: *l}}}\n",
    ],
)
def test_what_others_share_by_an_alias_is_a_persons_business(text: str) -> None:
    told = stuck(text, "read")
    assert "is not changed by program" in told.message
    assert "not yaml" not in told.message
    assert "do it by hand" in told.hint


def test_what_a_server_may_never_ask_is_not_added() -> None:
    assert "never passed on" in stuck(LISTS, "tasks", method="tasks/list").message
    assert (
        "server_requests: [roots, sampling]"
        in changed(LISTS, "sampling", backend="mail", method="sampling/createMessage").text
    )


def test_a_task_of_another_session_and_a_call_for_no_backend_are_no_rules_business() -> None:
    for one in (Asked("amy", "files", "tasks/get", "task", ("t1",)), Asked("amy", "", "tools/list", "", ())):
        with pytest.raises(Stuck):
            permit(LISTS, "aegis.yaml", one)


# --- resources, prompts, and what names nothing -------------------------------------------------------------------------


def test_a_resource_is_allowed_by_its_own_and_by_its_plain_address() -> None:
    text = "backends: {files: {}}\nagents: {amy: {backends: {files: {allowed: true, resource_allowlist: []}}}}\n"
    edited = changed(text, "file:///x/../a", method="resources/read")
    assert admitted(edited.text) - admitted(text) == {
        ("amy", "files", "resource", "file:///x/../a"),
        ("amy", "files", "resource", "file:///a"),
    }


def test_a_subscription_to_several_resources_is_allowed_as_a_whole() -> None:
    text = "backends: {files: {}}\nagents: {amy: {backends: {files: {allowed: true, resource_allowlist: ['a:b']}}}}\n"
    one = Asked("amy", "files", "subscriptions/listen", "resource", ("a:b", "c:d", "e:f"))
    assert 'resource_allowlist: [\'a:b\', "c:d", "e:f"]' in permit(text, "aegis.yaml", one).text


def test_a_completion_is_allowed_by_what_it_completes() -> None:
    text = "backends: {files: {}}\nagents: {amy: {backends: {files: {allowed: true, prompt_allowlist: []}}}}\n"
    one = Asked("amy", "files", "completion/complete", "prompt", ("hello",))
    assert "prompt_allowlist: [hello]" in permit(text, "aegis.yaml", one).text


def test_a_handshake_opens_a_backend_and_nothing_in_it() -> None:
    edited = permit(LISTS, "aegis.yaml", Asked("bob", "mail", "initialize", "", ()))
    assert edited.steps
    assert not {one for one in admitted(edited.text) - admitted(LISTS) if one[2] != "task"}


def test_a_call_that_observing_lets_pass_is_allowed_all_the_same() -> None:
    text = "mode: observe\n" + LISTS
    assert lines(text, changed(text, "read", backend="mail"))[1] == {
        '      mail: {allowed: true, tool_denylist: ["write"], server_requests: [roots]}'
    }


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_call_that_passes_by_now_changes_nothing() -> None:
    edited = permit(LISTS, "aegis.yaml", asked("go"))
    assert (edited.text, edited.steps) == (LISTS, ())


def test_a_call_that_waits_for_a_person_all_the_same_says_why() -> None:
    text = LISTS.replace("allowed: true\n", "allowed: true\n        approval_required: [write]\n", 1)
    assert changed(text, "write").waits == "agents.amy.backends.files.approval_required"


def test_secrets_that_are_elsewhere_need_not_be_there_and_are_not_shown() -> None:
    text = (
        "backends: {files: {url: '${env:PLACE}', headers: {X-Key: '${env:KEY}'}}}\n"
        "agents:\n  amy:\n    auth_token: 'abcdefghijklmnop'\n    backends: {files: {allowed: true, tool_denylist: [read]}}\n"
    )
    edited = changed(text, "read")
    shown = "\n".join(difference(text, edited.text))
    assert "tool_denylist: []" in shown
    assert "abcdefgh" not in shown
    assert "auth_token: …" in shown


def test_new_warnings_are_told_and_old_ones_are_not() -> None:
    text = "server: {listen: '0.0.0.0:1', api_token: 'abcdefghijklmnop'}\nbackends: {files: {}}\n"
    (warning,) = changed(text, "read").warnings
    assert "may pass for the agent `amy`" in warning.message


# --- nobody else gains, whatever the file is and however it is written --------------------------------------------------


def names(pool: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(pool), max_size=3, unique=True)


_TOOLS = names(("read", "write", "delete_a", "delete_*", "files.read", "mail.*", "?ead", "*"))
_RESOURCES = names(("file:///a", "file:///*", "file:///x/../a", "x:y"))
_ACCESS = st.fixed_dictionaries(
    {},
    optional={
        "allowed": st.booleans(),
        "tool_allowlist": _TOOLS,
        "tool_denylist": _TOOLS,
        "resource_allowlist": _RESOURCES,
        "resource_denylist": _RESOURCES,
        "prompt_allowlist": names(("hello", "h*")),
        "prompt_denylist": names(("hello", "h*")),
        "approval_required": _TOOLS,
        "server_requests": st.lists(st.sampled_from(("sampling", "roots")), max_size=2, unique=True),
    },
)
_CONFIG = st.fixed_dictionaries(
    {"backends": st.just({"files": {}, "mail": {"timeout": "5s"}})},
    optional={
        "agents": st.dictionaries(
            st.sampled_from(AGENTS),
            st.fixed_dictionaries({"backends": st.dictionaries(st.sampled_from(BACKENDS[:2]), _ACCESS, max_size=2)}),
            max_size=3,
        ),
        "deny": st.fixed_dictionaries({"tools": _TOOLS}),
        "allow": st.fixed_dictionaries({"tools": _TOOLS}),
        "defaults": st.fixed_dictionaries({"unlisted": st.sampled_from(("deny", "deny", "observe"))}),
    },
)
_ASKED = st.one_of(
    st.builds(asked, st.sampled_from(TOOLS), agent=st.sampled_from(AGENTS), backend=st.sampled_from(BACKENDS)),
    st.builds(
        asked,
        st.sampled_from(RESOURCES),
        agent=st.sampled_from(AGENTS),
        backend=st.sampled_from(BACKENDS),
        method=st.just("resources/read"),
    ),
    st.builds(
        asked,
        st.just("sampling"),
        agent=st.sampled_from(AGENTS),
        backend=st.sampled_from(BACKENDS),
        method=st.just("sampling/createMessage"),
    ),
)


class Writer:
    """A tree as YAML, in one of many ways; every line break may carry a comment of its own number."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.comments = 0
        self.step = self.random.choice((1, 2, 4))

    def comment(self) -> str:
        if self.random.random() < 0.6:
            return ""
        self.comments += 1
        return f"  # c{self.comments}."

    def scalar(self, value: Any) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        bare = re.fullmatch(r"[a-z][a-z_.0-9]*", value)
        return str(value) if bare and self.random.random() < 0.6 else str(self.random.choice(("'%s'", '"%s"')) % value)

    def flow(self, value: Any) -> str:
        gap = self.random.choice((" ", "", "  "))
        if isinstance(value, dict):
            pairs = [f"{self.scalar(key)}: {self.flow(below)}" for key, below in value.items()]
            return "{" + gap + f",{gap}".join(pairs) + gap + "}"
        if isinstance(value, list):
            tail = "," if value and self.random.random() < 0.2 else ""
            return "[" + f",{gap}".join(map(self.flow, value)) + tail + gap + "]"
        return self.scalar(value)

    def block(self, value: dict[str, Any], indent: str = "") -> list[str]:
        out = []
        for key, below in value.items():
            if self.random.random() < 0.3:
                self.comments += 1
                out.append(f"{indent}# c{self.comments}.")
            head = f"{indent}{self.scalar(key)}:"
            if not below and isinstance(below, dict) and self.random.random() < 0.3:
                out.append(head + self.comment())
            elif isinstance(below, dict) and below and self.random.random() < 0.7:
                out += [head + self.comment(), *self.block(below, indent + " " * self.step)]
            elif isinstance(below, list) and below and self.random.random() < 0.6:
                lead = indent + " " * self.random.choice((0, self.step)) + "-" + self.random.choice((" ", "  "))
                out += [head + self.comment(), *(f"{lead}{self.scalar(one)}{self.comment()}" for one in below)]
            else:
                out.append(f"{head} {self.flow(below)}{self.comment()}")
        return out


@settings(max_examples=150, deadline=None)
@given(_CONFIG, _ASKED, st.integers(0, 2**32))
@example(
    {
        "backends": {"files": {}},
        "agents": {"amy": {"backends": {"files": {"allowed": True, "tool_denylist": ["read"]}}}},
    },
    asked("read"),
    1,
)
def test_nothing_but_the_named_call_and_agent_gains_and_nobody_loses(tree: Any, one: Asked, seed: int) -> None:
    text = "\n".join(Writer(seed).block(tree)) + "\n"
    before = admitted(text)
    try:
        edited = permit(text, "aegis.yaml", one)
    except Stuck:
        return  # with a reason and a next step: the cases above
    after = admitted(edited.text)
    (probe,) = one.names
    name = one.method if one.subject == "server_request" else probe
    own = {(one.agent, one.backend, one.subject, name)}
    assert own <= after
    if one.subject == "resource":  # in any spelling
        own |= {(one.agent, one.backend, one.subject, uri) for uri in RESOURCES if plain_uri(uri) == plain_uri(probe)}
    assert before <= after
    assert after - before <= own
    gone = {line for line in text.split("\n") if line not in edited.text.split("\n")}
    kept = {mark for line in text.split("\n") if line not in gone for mark in re.findall(r"# c\d+\.", line)}
    assert kept <= set(re.findall(r"# c\d+\.", edited.text))
    # A line goes with its comment only where it was the item itself.
    lost = set(re.findall(r"# c\d+\.", text)) - set(re.findall(r"# c\d+\.", edited.text))
    for mark in lost:
        (line,) = [line for line in text.split("\n") if mark in line]
        assert line.lstrip().startswith("-")
    if not edited.steps:
        assert edited.text == text
