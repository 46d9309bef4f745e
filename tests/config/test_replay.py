"""A recorded call is decided once more exactly as a new one would be, and what nobody can tell is never "as before"."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from making import call
from remembering import NOON, erased, past, recorded

from aegis_daemon.audit.calls import arguments_hash
from aegis_daemon.audit.ingest import Ingester
from aegis_daemon.audit.journal import Journal
from aegis_daemon.audit.record import Denied, Intent, Outcome
from aegis_daemon.audit.store import Reader
from aegis_daemon.config.load import ConfigFaults, loads
from aegis_daemon.config.overlay import with_policies
from aegis_daemon.config.replay import Judge, Now, Tally, Then, altered, then
from aegis_daemon.config.runtime import build
from aegis_daemon.core.past import Past, shortened
from aegis_daemon.core.verdict import Allow, Deny, Hold

TOP = """
backends: {files: {}, bank: {}}
agents:
  amy:
    roles: [Dev]
    backends:
      files: {allowed: true, tool_denylist: [rm], approval_required: [write]}
      bank: {allowed: true}
"""


def judge(yaml: str = "", top: str = TOP) -> Judge:
    return Judge(loads(top + yaml, "aegis.yaml").config)


POLICIES = """
policy:
  text: |
    @id("all") permit(principal, action, resource);
    @id("no-prod") forbid(principal, action, resource == Server::"bank")
      when { context.arguments has env && context.arguments.env == "prod" };
"""


def test_calls_go_through_the_gates_of_new_ones() -> None:
    by = judge(POLICIES + "constraints: {bank.pay: {arguments: {amount: {max: 10}}}}\n")
    assert by.judge(past()) == Now("allow")
    assert by.judge(past("rm")).stage == "acl"
    assert by.judge(past("write")) == Now("ask", rule="agents.amy.backends.files.approval_required")
    assert by.judge(past("get", {"env": "prod"}, "bank")).stage == "policy"
    assert "no-prod" in by.judge(past("get", {"env": "prod"}, "bank")).rule
    assert by.judge(past("get", {"env": "dev"}, "bank")) == Now("allow")
    assert by.judge(past("pay", {"amount": 11}, "bank")).stage == "constraint"
    assert by.judge(past("pay", {"amount": 10}, "bank")) == Now("allow")
    assert by.judge(past(agent="bob")).stage == "acl"
    assert by.judge(past(backend="mail")).stage == "acl"


def test_a_policy_sees_the_time_of_the_call_and_not_of_the_replay() -> None:
    by = judge("""
policy:
  text: permit(principal, action, resource) when { context.time.weekday < 6 && context.time.hour >= 9 };
""")
    assert by.judge(past()) == Now("allow")
    assert by.judge(past(ts=NOON - 6 * 3_600_000_000)).verdict == "deny"
    assert by.judge(past(ts=NOON + 2 * 86_400_000_000)).verdict == "deny"
    assert by.judge(past()) == Now("allow")


def test_a_policy_sees_the_session_of_the_call() -> None:
    by = judge("""
policy:
  text: permit(principal, action, resource) when { context.session.era == "modern" };
""")
    assert by.judge(past()).verdict == "deny"
    assert by.judge(past(era="modern")).verdict == "allow"


def test_mode_observe_is_judged_as_if_it_enforced() -> None:
    assert judge("mode: observe\n").judge(past("rm")).stage == "acl"


@pytest.mark.parametrize(
    "one",
    [
        erased(past("get", {"env": "prod"}, "bank")),
        past("get", {"env": "[redacted]"}, "bank"),
        past("get", {"env": "[secret:aws-access-key]"}, "bank"),
        past("get", {"env": ["x [secret:aws-access-key]"]}, "bank"),
        past("get", "[withheld: this content cannot be redacted]", "bank"),
        past("get", {"env": "[withheld: it may hold a secret]"}, "bank"),
        past("get", {"env": "https://x:[redacted]@y"}, "bank"),
        past("get", {"[secret:aws-access-key]": "x"}, "bank"),
        msgspec.structs.replace(past("get", {}, "bank"), arguments=b'{"env":', arguments_hash="x"),
        msgspec.structs.replace(past("get", {}, "bank"), arguments=b'{"a":1,"a":2}', arguments_hash="y"),
    ],
)
def test_what_is_not_in_the_log_as_it_was_is_unknown_and_never_as_before(one: Past) -> None:
    by = judge(POLICIES)
    assert by.judge(one).verdict == "unknown"
    tally = Tally(by)
    tally.add(one)
    assert (tally.unknown, tally.as_before, tally.changed) == (1, 0, 0)


def test_a_name_that_the_log_has_cut_is_judged_where_the_arguments_have_the_whole() -> None:
    by, long = judge(), "x" * 300
    whole = past("get", {"uri": f"file:///{long}"}, "bank")
    uri = msgspec.structs.replace(whole, method="resources/read", tool_name=shortened(f"file:///{long}"))
    assert by.judge(uri).verdict == "allow"
    assert by.judge(past(shortened(long), {}, "bank")).verdict == "unknown"
    assert by.judge(past(long[:256], {}, "bank")).verdict == "allow"


def test_rules_that_do_not_look_at_what_is_missing_decide_all_the_same() -> None:
    by = judge(POLICIES + "constraints: {files.read: {arguments: {path: {under: [/data]}}}}\n")
    assert by.judge(erased(past("rm", {"path": "/x"}))).stage == "acl"  # a list
    assert by.judge(erased(past("list", {"path": "/x"}))) == Now("allow")  # no rule on arguments
    assert by.judge(erased(past("read", {"path": "/x"}))).verdict == "unknown"
    hidden = {"token": "[redacted]"}
    assert by.judge(past("read", {"path": "/data/a", **hidden})) == Now("allow")  # a rule on another argument
    assert by.judge(past("read", {"path": "/etc/a", **hidden})).stage == "constraint"
    assert by.judge(past("get", {"env": "prod", **hidden}, "bank")).stage == "policy"
    never = judge('policy: {text: "permit(principal, action, resource == Server::\\"bank\\");"}\n')
    assert never.judge(erased(past("read", {"path": "/x"}))).stage == "policy"  # no arguments could satisfy it
    text = 'permit(principal, action, resource) when { principal.tenant == \\"t\\" && context.arguments has x };'
    by_tenant = judge(f'policy: {{text: "{text}"}}\n')
    assert by_tenant.judge(erased(past("a", {"x": 1}))).rule == "refused whatever the arguments"
    by_tenant = judge(f'policy: {{text: "{text.replace("principal.tenant ==", "principal.tenant !=")}"}}\n')
    assert by_tenant.judge(erased(past("a", {"x": 1}))).verdict == "unknown"


def test_what_limits_have_counted_is_not_guessed() -> None:
    by = judge("""
policy:
  text: |
    permit(principal, action, resource)
      when { context.target != "post" || (context has rate && context.rate.agent.used < 1) };
""")
    assert by.judge(past("post")).verdict == "unknown"


def test_what_a_call_brings_beside_its_arguments_is_read_as_it_was_recorded() -> None:
    by = judge("constraints: {bank.pay: {arguments: {amount: {max: 10}}, extra: forbid}}\n")
    params = {"name": "pay", "arguments": {"amount": 5}, "task": {"ttl": 1}}
    whole = recorded(call(params=params, backend="bank"))
    assert json.loads(whole.arguments or b"").keys() == {"arguments", "task"}
    assert by.judge(whole).verdict == "unknown"  # it may be the arguments of a call without a task
    assert judge().judge(whole) == Now("allow")


@pytest.mark.parametrize(
    ("method", "params", "verdict"),
    [
        ("resources/read", {"uri": "file:///data/a"}, "allow"),
        ("resources/read", {"uri": "file:///etc/passwd"}, "deny"),
        ("resources/subscribe", {"uri": "FILE:///data/../etc/passwd"}, "deny"),
        ("prompts/get", {"name": "hello", "arguments": {"a": "b"}}, "allow"),
        ("prompts/get", {"name": "bye"}, "deny"),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "bye"}, "argument": {}}, "deny"),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "hello"}, "argument": {}}, "allow"),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["file:///etc/x"]}}, "deny"),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["file:///data/x"]}}, "allow"),
        ("tasks/get", {"taskId": "7"}, "allow"),
    ],
)
def test_every_primitive_is_replayed(method: str, params: dict[str, Any], verdict: str) -> None:
    by = judge(
        top="""
backends: {files: {}}
agents:
  amy: {backends: {files: {allowed: true, resource_allowlist: ["file:///data/*"], prompt_allowlist: [hello]}}}
"""
    )
    one = recorded(call(method, params))
    assert by.judge(one).verdict == verdict
    if method.startswith(("resources", "prompts")):
        assert by.judge(erased(one)).verdict == verdict
    elif method != "tasks/get":
        assert by.judge(erased(one)).verdict == "unknown"


def test_what_servers_ask_of_clients_is_replayed() -> None:
    from aegis_daemon.wire.methods import Direction

    one = recorded(call("sampling/createMessage", {"messages": []}, direction=Direction.TO_CLIENT))
    assert judge().judge(one).verdict == "deny"
    top = TOP.replace("allowed: true, tool_denylist", "allowed: true, server_requests: [sampling], tool_denylist")
    assert judge(top=top).judge(one).verdict == "allow"


def test_what_something_else_than_a_rule_ended_is_not_compared() -> None:
    ends = {
        ("denied", "rate_limit"): None,
        ("denied", "queue"): None,
        ("denied", "paused"): None,
        ("denied", "internal"): None,
        ("denied", "acl"): Then("deny", "acl"),
        ("denied", "pin"): Then("deny", "pin"),
        ("denied", "policy"): Then("deny", "policy"),
        ("denied", "approval"): Then("ask"),
        ("denied", "withdrawn"): Then("ask"),
        ("denied", "forward"): None,
        ("error", ""): Then("allow"),
        ("unknown", ""): Then("allow"),
    }
    for (status, stage), decided in ends.items():
        assert then(past(exec_status=status, stage=stage)) == decided
    assert then(past(exec_status="denied", stage="policy", policy_id="`constraints.pay`: x")) == Then(
        "deny", "constraint"
    )
    assert then(past(approval_result="approved")) == Then("ask")
    assert then(past(approval_result="granted")) == Then("ask")
    assert then(past(exec_status="pending", approval_result="pending")) == Then("ask")
    assert then(past(exec_status="denied", stage="forward", approval_result="pending")) == Then("ask")
    assert then(past(would=1, stage="acl")) == Then("allow", "observe")
    tally = Tally(judge())
    tally.add(past("rm", exec_status="denied", stage="rate_limit"))
    assert (tally.calls, tally.left_out) == (0, 1)


def test_changes_are_counted_by_kind_with_the_newest_call() -> None:
    tally = Tally(judge())
    new, old = past("rm"), past("rm")
    for one in (new, old, past("write"), past("read", exec_status="denied", stage="acl"), past(), past(agent="bob")):
        tally.add(one)
    assert (tally.calls, tally.as_before, tally.refused, tally.asked, tally.allowed) == (6, 1, 3, 1, 1)
    assert tally.strangers == 1
    groups = [(one.agent_id, one.tool_name, one.then, one.now, one.now_stage, one.calls) for one in tally.changes()]
    assert groups[0] == ("amy", "rm", "allow", "deny", "acl", 2)
    assert tally.changes()[0].call_id == new.call_id
    assert [one[3] for one in groups] == ["deny", "deny", "ask", "allow"]


def test_a_changed_pin_stops_a_call_whatever_the_rules_say() -> None:
    tally = Tally(judge())
    tally.add(past(exec_status="denied", stage="pin"))
    assert tally.as_before == 1
    tally.add(past(stage="pin", would=1))
    assert [(one.now, one.now_stage) for one in tally.changes()] == [("deny", "pin")]


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_daemon.config.replay.MOST_GROUPS", 3)
    tally = Tally(judge())
    for number in range(5):
        tally.add(past(f"t{number}", agent="bob"))
    assert (len(tally.changes()), tally.ungrouped, tally.refused) == (3, 2, 5)


def test_what_is_nested_without_end_is_not_taken_for_what_was_sent() -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    assert altered(deep)
    assert not altered([[["x"]]])


# --- against the gates themselves

TEXTS = ("", "/data/a", "/etc/a", "prod", "dev", "SELECT 1", "DROP TABLE x", "https://a.example/x", "a@b.example", "x")


def some(chance: random.Random, depth: int = 0) -> Any:
    made = chance.randrange(7 if depth < 2 else 5)
    if made == 0:
        return chance.choice([0, 1, 7, 11, 2**60, -3])
    if made == 1:
        return chance.choice([True, False, None, 0.5, 1.0])
    if made < 5:
        return chance.choice(TEXTS)
    if made == 5:
        return [some(chance, depth + 1) for _ in range(chance.randrange(3))]
    return {chance.choice(["env", "path", "amount"]): some(chance, depth + 1) for _ in range(chance.randrange(3))}


CANDIDATES = [
    "",
    POLICIES,
    "constraints: {read: {arguments: {path: {under: [/data], optional: true}}}, bank.pay: {arguments: {amount: {max: 9}}}}",
    "deny: {tools: [bank.get]}\nallow: {tools: [read, bank.get, pay]}\n",
    "constraints: {get: {operations: [SELECT], argument: path}}\n" + POLICIES,
    'policy: {text: "permit(principal in Role::\\"Dev\\", action, resource) unless { context has sql };"}',
]


def test_each_random_call_is_decided_as_the_gates_decide_it() -> None:
    chance = random.Random(5)
    calls = []
    for _ in range(150):
        names = chance.sample(["path", "env", "amount", "sql", "x"], chance.randrange(4))
        params: dict[str, Any] = {
            "name": chance.choice(["read", "rm", "write", "pay", "get"]),
            "arguments": {name: some(chance) for name in names},
        }
        backend = chance.choice(["files", "bank", "mail"])
        calls.append(call(params=params, backend=backend, agent=chance.choice(["amy", "amy", "bob"])))
    seen = set()
    for text in CANDIDATES:
        config = loads(TOP + text, "aegis.yaml").config
        by, runtime = Judge(config), build(config, "d")
        for one in calls * 2:  # the second time from memory
            principal = runtime.agents["amy"].principal if one.principal.agent == "amy" else one.principal
            verdict = runtime.pipeline.admit(msgspec.structs.replace(one, principal=principal), 0.0)
            wanted = {Allow: "allow", Deny: "deny", Hold: "ask"}[type(verdict)]
            assert by.judge(recorded(one)).verdict == wanted, (text, one.frame.params)
            seen.add((text, wanted))
    assert {verdict for _, verdict in seen} == {"allow", "deny", "ask"}
    assert len(seen) > 2 * len(CANDIDATES)


# --- the files


def test_policies_are_replaced_and_yaml_is_laid_over(tmp_path: Path) -> None:
    config = tmp_path / "aegis.yaml"
    config.write_text(TOP + POLICIES + "constraints: {pay: {arguments: {a: {max: 1}}}}\n")
    cedar = tmp_path / "new.cedar"
    cedar.write_text('@id("only") permit(principal, action, resource);')
    made = with_policies(str(config), [str(cedar)]).config
    assert [one.id for one in made.policy.statements] == ["only"]
    below = tmp_path / "below"
    below.mkdir()
    (below / "x.cedar").write_text('@id("x") forbid(principal, action, resource);')
    above = below / "above.yaml"
    above.write_text(
        'agents: {amy: {backends: {files: {tool_denylist: ["\x7e\u2028\U0001f600"]}}}}\n'
        "policy: {files: [x.cedar]}\n"
        "constraints: {pay: {arguments: {b: {max: 2}}}}\n"
    )
    made = with_policies(str(config), [str(above)]).config
    assert {one.id for one in made.policy.statements} == {"all", "no-prod", "x"}
    assert made.agents["amy"].backends["files"].tool_denylist == ("\x7e\u2028\U0001f600",)
    assert made.agents["amy"].backends["files"].approval_required == ("write",)
    assert set(made.constraints["pay"].arguments) == {"a", "b"}
    above.write_text("agents: {amy: {backends: {nope: {allowed: true}}}}\n")
    with pytest.raises(ConfigFaults) as caught:
        with_policies(str(config), [str(above)])
    assert "agents.amy.backends.nope" in str(caught.value)
    above.write_text("- x\n")
    with pytest.raises(ConfigFaults):
        with_policies(str(config), [str(above)])


# --- the store


def test_calls_are_read_a_page_at_a_time_newest_first(tmp_path: Path) -> None:
    async def write() -> None:
        log = Journal(tmp_path / "journal", durability="process", loop=asyncio.get_running_loop())
        log.open()
        for number in range(23):
            facts = {"agent": "amy" if number % 2 else "bob", "backend": "files", "method": "tools/call"}
            body = f'{{"n":{number}}}'.encode()
            if number % 5 == 4:
                log.append(Denied(call=f"{number:032x}", name="rm", stage="acl", policy="why", **facts), body)
                continue
            log.append(Intent(call=f"{number:032x}", name="read", approval="not_required", **facts), body)
            log.append(Outcome(call=f"{number:032x}", status="success"), b"{}")
        ingester = Ingester(tmp_path / "journal", tmp_path / "audit.db", sync=False, say=print)
        while ingester.step(None):
            pass
        ingester.close()
        log.close()

    asyncio.run(write())
    with Reader(tmp_path / "audit.db") as reader:
        whole = list(reader.past())
        assert [json.loads(one.arguments or b"")["n"] for one in whole] == list(range(22, -1, -1))
        for page in (1, 3, 23, 24):
            assert list(reader.past(page=page)) == whole
        assert {one.stage for one in whole} == {"", "acl"}
        assert whole[-5] == msgspec.structs.replace(whole[-5], policy_id="why", exec_status="denied", tool_name="rm")
        assert whole[0].arguments_hash == arguments_hash(b'{"n":22}')
        some = list(reader.past(agent="a*", tool="re[!x]d", page=2))
        assert some == [one for one in whole if one.agent_id == "amy" and one.tool_name == "read"]
        assert reader.count_past(agent="a*", tool="re[!x]d") == len(some)
        question = ""

        def note(text: str) -> None:
            nonlocal question
            question = text

        reader._db.set_trace_callback(note)
        assert len(list(reader.past(agent="a*"))) > len(some)
        reader._db.set_trace_callback(None)
        plan = " ".join(row[-1] for row in reader._db.execute(f"EXPLAIN QUERY PLAN {question}"))
        assert "calls_time" in plan
        assert "TEMP B-TREE" not in plan
        middle = whole[11].ts
        assert list(reader.past(since=middle)) == [one for one in whole if one.ts >= middle]
        assert list(reader.past(until=middle)) == [one for one in whole if one.ts < middle]
        assert reader.count_past(until=middle) == len([one for one in whole if one.ts < middle])
