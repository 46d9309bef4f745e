"""What is suggested permits every call it was learned from, nothing that the file refuses, and means what it says."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from making import call
from remembering import erased, past, recorded

from aegis_daemon.config.load import loads
from aegis_daemon.config.overlay import merged, settings, whole
from aegis_daemon.config.replay import Judge, Tally
from aegis_daemon.config.schema import Config
from aegis_daemon.config.suggest import (
    FEW,
    MOST_NAMES,
    Learner,
    Suggestion,
    plain_glob,
    plain_text,
    proved,
    suggest,
)
from aegis_daemon.config.suggested import as_cedar, as_yaml, text
from aegis_daemon.core.names import Names
from aegis_daemon.core.past import Past
from aegis_daemon.core.text import visible
from aegis_daemon.policy.dialect import read

TOP = """
backends: {files: {}, bank: {}}
agents:
  amy: {backends: {files: {allowed: true}, bank: {allowed: true}}}
  bob: {backends: {bank: {allowed: true}}}
"""
HOSTILE = (
    "*",
    "?",
    "[a-z]",
    "x: {y: z}",
    '"]}\n- "*"',
    '"}; permit(principal, action, resource); //',
    "\\",
    "#",
    "& a",
    "!!python/object:os.system",
    "yes",
    "null",
    "1e3",
    "012",
    "~",
    "${env:HOME}",
    "$${env:HOME}",
    "$$${file:/etc/hostname}",
    "\u2028",
    "\u202e",
    "\x7f",
    "\x85",
    "\U0001f600",
    "a\tb",
    "---",
    "<<",
    "%",
    "@x",
    "`",
    "é",
)


def learned(calls: list[Past], top: str = TOP, agents: str | None = None, **more: Any) -> Suggestion:
    return made(calls, top, agents, **more)[0]


def made(
    calls: list[Past], top: str = TOP, agents: str | None = None, cedar: bool = False, **more: Any
) -> tuple[Suggestion, Config, str, Learner]:
    """The suggestion, the configuration with it laid over as text, that text, and who learned."""
    config = loads(top, "aegis.yaml").config
    learner = Learner(config, **more)
    for one in calls:
        learner.add(one)
    present = settings(top, "aegis.yaml")

    def above(suggestion: Suggestion) -> tuple[str, dict[str, Any]]:
        if not cedar:
            written = as_yaml(suggestion, ["by hand"])
            assert settings(written, "suggested.yaml") == suggestion.settings()
            return written, suggestion.settings()
        written = as_cedar(suggestion, config, ["by hand"])
        before = present.get("policy", {}).get("text", "")
        return written, {"policy": {"text": f"{before}\n{written}"}}

    def judged_by(suggestion: Suggestion) -> Judge:
        return Judge(whole(merged(present, above(suggestion)[1]), "n", "/").config)

    suggestion = proved(suggest(learner, "7d", agents), learner, judged_by, lambda: calls)
    written, laid = above(suggestion)
    return suggestion, whole(merged(present, laid), "n", "/").config, written, learner


def refuses(config: Config, calls: list[Past]) -> int:
    tally = Tally(Judge(config))
    for one in calls:
        tally.add(one)
    return tally.refused


# --- lists


def test_names_that_were_used_become_lists_with_their_reasons() -> None:
    calls = [past("read")] * 30 + [past("get", backend="bank")] * 2
    calls += [recorded(call("resources/read", {"uri": "FILE:///data/../etc/x"}))]
    _, config, written, _ = made(calls)
    access = config.agents["amy"].backends["files"]
    assert access.tool_allowlist == ("read",)
    assert set(access.resource_allowlist or ()) == {"FILE:///data/../etc/x", "file:///etc/x"}
    assert access.prompt_allowlist == ()
    assert "- get  " in written
    assert " # 2 calls in 7d; few calls: look twice\n" in written
    assert "agents.bob.backends.bank: not used in 7d" in written
    assert refuses(config, calls) == 0
    assert refuses(config, [past("write"), past("get"), recorded(call("prompts/get", {"name": "p"}))]) == 3


def test_nothing_that_todays_file_refuses_is_suggested() -> None:
    top = TOP.replace("files: {allowed: true}", "files: {allowed: true, tool_allowlist: [read, list]}")
    calls = [past("read")] * 3 + [past("rm")] * 3 + [past("read", agent="eve")] * 3
    suggestion, config, _, learner = made(calls, top)
    assert config.agents["amy"].backends["files"].tool_allowlist == ("read",)
    assert "eve" not in config.agents
    assert (learner.calls, learner.now_refused) == (3, 6)
    assert not any(one.observed for one in suggestion.entries)


def test_refused_calls_are_not_learned_from_and_observed_ones_only_where_asked() -> None:
    seen = [past("rm", would=1, stage="acl")] * 4 + [past("x", exec_status="denied", stage="acl")]
    seen += [past("y", exec_status="error"), past("read", agent="eve", would=1, stage="acl")]
    top = TOP.replace("files: {allowed: true}", "files: {allowed: true, tool_allowlist: [read]}")
    suggestion, config, _, learner = made(seen, top)
    assert config.agents["amy"].backends["files"].tool_allowlist == ("read",)
    assert (learner.refused, learner.failed, learner.now_refused, learner.calls) == (1, 1, 5, 0)
    suggestion, config, written, learner = made(seen, top, observed=True)
    assert config.agents["amy"].backends["files"].tool_allowlist == ("rm",)
    assert config.agents["eve"].backends["files"].allowed
    assert "4 of which a rule would have refused" in written
    assert learner.once_refused == 5
    assert {one.tool for one in suggestion.entries if one.observed} == {"rm", "read"}


def test_lists_are_made_for_those_agents_who_were_asked_for() -> None:
    calls = [past("get", {"n": 1}, "bank")] * 30 + [past("get", {"n": 9}, "bank", "bob")] * 30
    suggestion, config, _, _ = made(calls, agents="b*")
    assert {one.agent for one in suggestion.entries} == {"bob", ""}
    assert config.agents["amy"].backends["bank"].tool_allowlist is None
    assert config.constraints["bank.get"].arguments["n"].most == 9  # a rule holds for both, so both are heard
    assert refuses(config, calls) == 0


def test_a_name_stands_for_itself_whatever_it_looks_like() -> None:
    for name in HOSTILE:
        pattern = (
            loads(f"deny: {{tools: [{_json(plain_glob(name))}]}}", "f").config.deny.tools if _listable(name) else ()
        )
        if pattern:
            assert name in Names(pattern)
            assert "x" not in Names(pattern)
        (statement,) = read(f"permit(principal, action, resource) when {{ context.target == {text(name)} }};", "c")
        assert statement.targets == {name}


def _json(value: str) -> str:
    return (
        msgspec.json.encode(value)
        .decode()
        .replace("\x7f", "\\u007f")
        .replace("\x85", "\\u0085")
        .replace("\u2028", "\\u2028")
    )


def _listable(name: str) -> bool:
    return name.strip() == name and not any(ord(char) < 32 or ord(char) == 127 for char in name)


def test_hostile_names_and_values_inject_nothing() -> None:
    calls = []
    for name in HOSTILE:
        calls += [past(name, {name: name, "v": name, "p": f"/data/{name}", "w": [name]}, "bank")] * 25
        calls += [recorded(call("resources/read", {"uri": name})), recorded(call("prompts/get", {"name": name}))]
    for cedar in (False, True):
        suggestion, config, written, learner = made(calls, cedar=cedar)
        assert [line for line in written.split("\n") if visible(line) != line] == []
        assert set(config.agents) == {"amy", "bob"}
        assert set(config.backends) == {"files", "bank"}
        assert learner.calls > 200
        assert refuses(config, [one for one in calls if learner.learns_from(one)]) == 0
        assert (
            refuses(config, [past("rm", backend="bank"), past("permit", backend="bank"), past("zz", backend="bank")])
            == 3
        )
        assert len(suggestion.entries) > 10
    ids = [one.id for one in read(written, "c")]
    assert sum(one.startswith("suggested") for one in ids) == len(ids) == len(set(ids))


def test_placeholders_are_not_replaced() -> None:
    for value in ("${env:HOME}", "$${env:HOME}", "$$${file:/x}", "a${env:A}b${env:B}", "${x}", "$", "${env:"):
        config = loads(f"deny: {{tools: ['{plain_text(value)}']}}", "f", env={}).config
        assert config.deny.tools == (value,)


def test_many_resources_become_their_folders_and_many_tools_no_list() -> None:
    calls = [recorded(call("resources/read", {"uri": f"file:///data/{n % 3}/{n}"})) for n in range(MOST_NAMES + 9)]
    calls += [past(f"t{number}") for number in range(MOST_NAMES + 1)]
    suggestion, config, written, _ = made(calls)
    access = config.agents["amy"].backends["files"]
    assert access.resource_allowlist == ("file:///data/0/*", "file:///data/1/*", "file:///data/2/*")
    assert access.tool_allowlist is None
    assert "so no list is made" in written
    assert refuses(config, calls) == 0
    assert refuses(made(calls, cedar=True)[1], calls) == 0
    spread = [recorded(call("resources/read", {"uri": f"file:///{number}"})) for number in range(MOST_NAMES + 9)]
    assert made(spread)[1].agents["amy"].backends["files"].resource_allowlist is None
    assert suggestion.notes


def test_plain_words_need_no_quotes_and_the_reasons_of_an_agents_lists_stand_in_one_column() -> None:
    names = ["read", "list_files", "On", "null", "1e3", "a b", "x: y", "get.it-now"]
    calls = [past(name, {"path": "/data/a", "no": "open", "mode": "off"}) for name in names for _ in range(30)]
    calls.append(past("q" * 90))
    written = made(calls)[2]
    rows = [line for line in written.split("\n") if " # " in line and "q" * 90 not in line and line.strip()[0] != "#"]
    assert {line.partition(" #")[0].strip() for line in rows} == {
        "- read", "- list_files", '- "On"', '- "null"', '- "1e3"', '- "a b"', '- "x: y"', "- get.it-now",
        "prompt_allowlist: []", "resource_allowlist: []",
    }  # fmt: skip
    assert len({line.index("# ") for line in rows}) == 1
    assert "  files.read:\n" in written
    assert '"no":' in written
    assert 'one_of: ["off"]' in written
    assert "one_of: [open]" in written


# --- rules on arguments


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        (["/data/reports/a", "/data/reports/b/c", "/data/reports/d"], {"under": ("/data/reports",)}),
        (["/data/a", "/etc/b"], {"one_of": ("/data/a", "/etc/b")}),
        (["/data/a", "/data/%61"], {"one_of": ("/data/a", "/data/%61")}),
        (["/data/a", "/data/../b"], {"one_of": ("/data/a", "/data/../b")}),
        (["https://a.example/x", "https://B.example:8443/y"], {"hosts": ("a.example", "b.example:8443")}),
        (["http://a.example/x"], {"hosts": ("a.example",), "schemes": ("http",)}),
        ([f"https://a{n}@evil.example/x" for n in range(12)], {}),
        (["ann@a.example", "bob@b.example"], {"domains": ("a.example", "b.example")}),
        ([*(f"ann@a{n}.example" for n in range(12)), "ann"], {}),
        ([1, 7, 480], {"most": 480, "least": 0, "whole": True}),
        ([-1, 0.5], {"most": msgspec.UNSET}),
        ([2**60, 1], {}),
        ([True], {"one_of": (True,)}),
        ([True, False], {}),
        (["open", "closed"], {"one_of": ("open", "closed")}),
        (["open", None], {"one_of": ("open",), "optional": True}),
        ([["open", "closed"], "open"], {"one_of": ("open", "closed"), "each": True}),
        ([[], []], {}),
        ([{"a": 1}, "open"], {}),
        (["x", 1], {}),
        (["[redacted]", "open"], {}),
        ([str(number) for number in range(12)], {}),
    ],
)
def test_what_the_values_have_in_common_becomes_a_rule(values: list[Any], rule: dict[str, Any]) -> None:
    calls = [past("get", {"a": value}) for value in values for _ in range(12 * FEW // len(values))]
    config = made(calls)[1]
    found = config.constraints["files.get"].arguments.get("a") if "files.get" in config.constraints else None
    assert (found is None) == (not rule)
    for name, wanted in rule.items():
        assert found is not None
        value = getattr(found, name)
        if wanted is msgspec.UNSET:
            assert float(value) == 0.5
        else:
            assert set(value) == set(wanted) if isinstance(wanted, tuple) else value == wanted
    assert refuses(config, calls) == 0


def test_few_calls_make_no_rule_on_arguments_and_some_are_marked() -> None:
    few = [past("get", {"n": 1})] * 4
    assert not learned(few).settings().get("constraints")
    some = learned(few * 2)
    assert [(one.argument, one.few) for one in some.entries if one.kind == "constraint"] == [("n", True)]
    assert "look twice" in as_yaml(some, [])
    assert not any(one.few for one in learned(few * 20).entries if one.kind == "constraint")


def test_sql_that_only_reads_becomes_a_rule_and_search_words_do_not() -> None:
    calls = [past("query", {"sql": f"SELECT a FROM t WHERE b = {number % 3}"}) for number in range(30)]
    for cedar in (False, True):
        config = made(calls, cedar=cedar)[1]
        assert refuses(config, calls) == 0
        assert (
            refuses(config, [past("query", {"sql": "DELETE FROM t"}), past("query", {"sql": "SELECT 1; SELECT 2"})])
            == 2
        )
    assert (
        not learned([past("find", {"query": f"kittens {number}"}) for number in range(30)])
        .settings()
        .get("constraints")
    )
    mixed = [*calls, past("query", {"sql": "VACUUM"})]
    assert "operations" not in learned(mixed).settings().get("constraints", {}).get("files.query", {})


def test_what_is_not_in_the_log_makes_no_rule() -> None:
    calls = [past("get", {"n": 1})] * 30 + [erased(past("get", {"n": 100}))]
    suggestion = learned(calls)
    assert "constraints" not in suggestion.settings()
    assert any("not in the log" in note for note in suggestion.notes)


def test_the_present_rules_on_arguments_are_left_alone() -> None:
    calls = [past("get", {"n": 1, "m": 2})] * 30
    top = TOP + "constraints: {files.get: {arguments: {n: {max: 5}}}}\n"
    config = made(calls, top)[1]
    assert config.constraints["files.get"].arguments["n"].most == 5
    assert config.constraints["files.get"].arguments["m"].most == 2
    alike = TOP + "constraints: {FILES.get: {arguments: {n: {max: 5}}}}\n"
    assert "constraints" not in learned(calls, alike).settings()  # ours would take that one's place


def test_a_rule_that_the_log_does_not_bear_out_is_taken_out() -> None:
    calls = [past("pay", {"n": 1})] * 30 + [past("PAY", {"n": 50})] * 2
    suggestion, config, _, _ = made(calls)
    assert refuses(config, calls) == 0
    assert any("does not bear" in note for note in suggestion.notes)


# --- all of it


def some_log(chance: random.Random) -> list[Past]:
    tools = chance.sample(["read", "pay", "PAY", "query", "x*", "${env:A}", "[b]", "get"], 5)
    names = ["path", "n", "url", "to", "sql", "PATH", "${env:B}", "mode"]
    values: list[Any] = [
        "/data/a", "/data/b/c", "/data/b/d e", "/", "/data/../x", "https://a.example/", "https://a.example:81/q?x", "a@b.example",
        "SELECT 1", "SELECT max(a) FROM t", "DROP TABLE t", "a", "b", "${env:C}", "\u202e", 0, 1, 5.5, -2, 2**53, 2**60, True,
        None, [], ["/data/x"], ["a", "b"], {"a": "b"}, "[redacted]", "", " ",
    ]  # fmt: skip
    picked = {name: chance.sample(values, chance.choice([1, 1, 2, 4])) for name in names}
    log = []
    del picked[chance.choice(["path", "PATH"])]
    for _ in range(chance.choice([5, 40, 120])):
        arguments = {name: chance.choice(picked[name]) for name in picked if chance.random() < chance.choice([0.3, 1])}
        agent, backend = chance.choice([("amy", "files"), ("amy", "bank"), ("bob", "bank"), ("eve", "bank")])
        one = past(chance.choice(tools), arguments, backend, agent)
        status = chance.choice(["success"] * 8 + ["error", "denied"])
        log.append(msgspec.structs.replace(one, exec_status=status, stage="acl" if status == "denied" else ""))
        if chance.random() < 0.2:
            uri = chance.choice(["file:///a", "FILE:///a/../b", "x:*", "", "http://[", "file:///c/d"])
            log.append(recorded(call(chance.choice(["resources/read", "resources/subscribe"]), {"uri": uri})))
        if chance.random() < 0.1:
            log.append(recorded(call("prompts/get", {"name": chance.choice(["p", "*", "p?"])})))
    return log


TOPS = (
    TOP,
    TOP + "constraints: {pay: {arguments: {n: {max: 3, optional: true}}}}\n",
    TOP + "defaults: {unlisted: observe}\ndeny: {tools: [get]}\n",
    TOP + 'policy: {text: "permit(principal, action, resource) unless { context has sql && !context.sql.parsed };"}\n',
)


@pytest.mark.parametrize("seed", range(12))
def test_every_successful_call_of_a_random_log_stays_permitted_and_none_is_added(seed: int) -> None:
    chance = random.Random(seed)
    log, top = some_log(chance), TOPS[seed % len(TOPS)]
    before = Judge(loads(top, "f").config)
    other = some_log(random.Random(seed + 1000))
    for cedar in (False, True):
        suggestion, config, _, learner = made(log, top, cedar=cedar)
        after = Judge(config)
        for one in log:
            if one.exec_status == "success" and before.judge(one).verdict != "deny":
                assert learner.learns_from(one)
                refused = after.judge(one)
                if cedar and "cannot be read" in refused.rule:  # where there is any policy, it is
                    assert any("would be refused all the same" in note for note in suggestion.notes)
                    continue
                assert refused.verdict != "deny", (one, suggestion)
        for one in (*log, *other):
            if before.judge(one).verdict == "deny":
                assert after.judge(one).verdict == "deny", (one, suggestion)
    assert seed % len(TOPS) == 3 or len(suggestion.entries) > 3
