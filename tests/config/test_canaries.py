"""Every kind of rule gives calls that it forbids, found without asking what judges calls, and none that it allows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.config.canaries import Canaries, Canary
from aegis_daemon.config.load import ConfigFaults, loads
from aegis_daemon.config.runtime import build
from aegis_daemon.core.verdict import Deny

ROOT = Path(__file__).parents[2]
FILES = sorted((*(ROOT / "examples").glob("*.yaml"), *(Path(__file__).parent / "data").glob("seed_*.yaml")))
EVERYTHING = """
backends: {github: {}, pay: {}}
agents:
  claude:
    roles: [dev]
    backends:
      github:
        allowed: true
        tool_denylist: [delete_repo, "drop_*", "x[!a-c]?"]
        resource_denylist: ["file:///etc/*"]
        prompt_denylist: [evil]
        tool_allowlist: ["*_repo", pay, "drop_*", run]
        resource_allowlist: ["file:///srv/*"]
        prompt_allowlist: [good]
      pay: {allowed: false}
  bob: {attributes: {is_external: false}}
deny: {tools: [rm, "github.wipe_*"]}
allow: {tools: ["*_repo", pay, run]}
constraints:
  pay: {arguments: {to: {optional: true}}, extra: forbid, budgets: {amount: {max: 5, window: 1d}}}
  run: {operations: [SELECT], dialect: sqlite}
proof:
  - {agent: claude, call: github.format_disk, arguments: {path: "/"}}
"""
KINDS = {
    "proof", "unknown agent", "unlisted backend", "closed backend", "tool_denylist", "resource_denylist",
    "prompt_denylist", "tool_allowlist", "resource_allowlist", "prompt_allowlist", "server_requests", "deny", "allow",
    "constraints",
}  # fmt: skip


class Anything(dict[str, str]):
    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return "0123456789abcdef-" + name.lower()


def found(text: str, **more: Any) -> tuple[list[Canary], list[str]]:
    """The calls, each of them seen to be refused: by the gate that it is for, and by all of them together."""
    config = loads(text, "aegis.yaml", base=str(ROOT / "examples"), env=Anything()).config
    canaries = Canaries(config, more.pop("tools", {}), **more)
    calls = [one for one in canaries if one is not None]
    pipeline = build(config.model_copy(update={"mode": "enforce"}), "").pipeline
    for one in calls:
        if one.stage == "pin":
            continue
        assert type(pipeline.admit(one.call, 0.0)) is Deny, one
        gate = pipeline.gate(one.stage) if one.stage else None
        assert gate is None or type(gate.decide(one.call, 0.0)) is Deny, one
    return calls, canaries.unseen


def test_there_is_a_call_for_every_kind_of_rule() -> None:
    calls, unseen = found(EVERYTHING, stopped=[("github", "tool", "odd"), ("github", "template", "file:///{x}")])
    kinds = Counter(one.kind for one in calls)
    assert set(kinds) == KINDS | {"pins"}
    assert kinds["tool_denylist"] == 3
    assert kinds["deny"] == 2
    assert unseen == []
    named = {one.call.name for one in calls if one.kind == "tool_denylist"}
    assert {"delete_repo", "drop_aegis_proof"} < named
    told = [one.call.arguments for one in calls if one.rule == "constraints.run"]
    assert {} in told
    assert {"sql": "DROP TABLE aegis_proof"} in told
    assert [one.heavy for one in calls].count(True) == 1


def test_what_forbids_nothing_but_strangers_gives_a_stranger() -> None:
    calls, _ = found("")
    assert [one.kind for one in calls] == ["unknown agent"]
    assert found("defaults: {unlisted: observe}")[0] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_example_allows_a_call_that_it_is_said_to_forbid(path: Path) -> None:
    assert found(path.read_text())[0]


def test_no_configuration_allows_a_call_that_it_is_said_to_forbid() -> None:
    dice = random.Random(7)
    pieces = [
        "a",
        "b_*",
        "*",
        "?x",
        "[ab]c",
        "[!ab]*",
        "*.d",
        "github.*",
        "pay.a",
        "[*]",
        "a[",
        "é*",
        "[b-a]",
        "[!a-z0-9_-]x",
    ]

    def some(most: int) -> Sequence[str]:
        return dice.sample(pieces, dice.randrange(most + 1))

    seen: Counter[str] = Counter()
    for _ in range(150):
        agents: dict[str, Any] = {}
        for agent in ("ann", "aegis-proof")[: dice.randrange(3)]:
            backends = {
                backend: {
                    "allowed": dice.random() < 0.8,
                    **{f"{kind}_denylist": some(3) for kind in ("tool", "resource", "prompt")},
                    **{f"{kind}_allowlist": some(2) for kind in ("tool", "resource", "prompt") if dice.random() < 0.5},
                    "server_requests": dice.sample(["sampling", "elicitation", "roots"], dice.randrange(4)),
                }
                for backend in ("github", "pay")[: dice.randrange(3)]
            }
            agents[agent] = {"backends": backends}
        text: dict[str, Any] = {
            "backends": {"github": {}, "pay": {}},
            "agents": agents,
            "deny": {"tools": some(4)},
            "defaults": {"unlisted": dice.choice(["deny", "observe"])},
        }
        if dice.random() < 0.5:
            text["allow"] = {"tools": some(3)}
        seen.update(one.kind for one in found(repr(text).replace("True", "true").replace("False", "false"))[0])
    assert set(seen) == KINDS - {"proof", "constraints"}


POLICIES = {
    "a-target": 'context.target == "delete_repo"',
    "a-pattern": 'context.target like "*_all"',
    "one-of-some": '["x", "rm"].contains(context.target)',
    "a-number": "context.arguments has amount && context.arguments.amount > 500",
    "a-path": 'context.arguments has path && context.arguments.path like "*..*"',
    "a-list": 'context.arguments has tags && context.arguments.tags.contains("secret")',
    "nested": "context.arguments has a && context.arguments.a has b && context.arguments.a.b == true",
    "two": 'context.arguments has n && context.arguments.n < 5 && context.arguments has who && context.arguments.who == "ann"',
    "not": 'context.arguments has path && !(context.arguments.path like "/srv/*")',
}  # fmt: skip
HOUSE = """
backends: {github: {}, pay: {}}
agents: {claude: {roles: [dev], backends: {github: {allowed: true}, pay: {allowed: true}}}, bob: {}}
policy:
  text: |
    permit(principal, action, resource);
"""


def test_calls_that_policies_forbid_are_found_by_trying_what_they_speak_of() -> None:
    text = HOUSE + "".join(
        f'    @id("{id}") forbid(principal, action == Action::"tools/call", resource) when {{ {condition} }};\n'
        for id, condition in POLICIES.items()
    )
    text += '    @id("role") forbid(principal in Role::"dev", action, resource == Server::"pay");\n'
    text += '    @id("other") forbid(principal == Agent::"bob", action, resource);\n'
    text += '    @id("read") forbid(principal, action == Action::"resources/read", resource);\n'
    text += '    @id("ask") forbid(principal, action == Action::"sampling/createMessage", resource);\n'
    text += '    @id("unless") forbid(principal, action, resource) unless { context.target like "read_*" };\n'
    calls, unseen = found(text)
    rules = {one.rule for one in calls if one.kind == "policy"}
    assert rules == {f"policy `{id}`" for id in (*POLICIES, "role", "other", "read", "ask", "unless")}
    assert unseen == []


def test_the_tools_that_a_server_is_known_to_have_are_tried() -> None:
    text = f'{HOUSE}    @id("odd") forbid(principal, action, resource) when {{ !(context.target like "*a*") }};\n'
    assert found(text)[1] == ["odd"]
    assert found(text, tools={"github": ["search", "odd"]})[1] == []


def test_policies_for_which_no_call_is_found_are_named() -> None:
    text = f'{HOUSE}    @id("late") forbid(principal, action, resource) when {{ context.time.hour > 20 }};\n'
    text += '    @id("never") forbid(principal, action, resource) when { context.target == "a" && context.target == "b" };\n'
    calls, unseen = found(text)
    assert unseen == ["late", "never"]
    assert all(one.kind != "policy" for one in calls)
    some = '    @id("some") forbid(principal, action, resource);\n'
    assert found(HOUSE + some, trials=0)[1] == []  # not tried is not unseen


def test_faults_in_what_a_person_wants_proved_are_told_where_they_are() -> None:
    text = (
        EVERYTHING
        + """\
  - {agent: claud, call: githb.x}
  - {agent: claude, call: x, arguments: [1]}
  - {agnt: claude, call: github.x}
  - {agent: claude, call: github.x, arguments: {n: .inf}}
  - {agent: claude, call: github.x, arguments: {"a": 1, "A": {"\\u0061": 1, "\\uff41": 2}}}
  - {agent: claude, call: github.x, arguments: {key: "${env:KEY}"}}
  - nothing
"""
    )
    with pytest.raises(ConfigFaults) as caught:
        loads(text, "aegis.yaml", env=Anything())
    told = {fault.path: f"{fault.message}; {fault.hint}" for fault in caught.value.faults}
    assert told == {
        "proof[1].agent": "unknown agent `claud`; did you mean `claude`?",
        "proof[1].call": "unknown backend `githb`; did you mean `github.x`?",
        "proof[2].call": "`x` names no tool of a backend; write it as `backend.tool`",
        "proof[2].arguments": "a list is not a mapping; write `{ name: value }`",
        "proof[3].agent": "`agent` is missing; add `agent`",
        "proof[3].agnt": "unknown key `agnt`; did you mean `agent`?",
        "proof[4].arguments": "no call can have these arguments; write a number that JSON has",
        "proof[5].arguments": told.get("proof[5].arguments"),
        "proof[6].arguments": "`${env:…}` and `${file:…}` are not replaced here; they work in tokens, secrets, urls, "
        "`args`, `env` and `headers`; write the value itself",
        "proof[7]": "a single value where settings belong; write `name: value` lines below the key, indented",
    }
    assert str(told["proof[5].arguments"]).startswith("no call can have these arguments; ")


def test_a_backend_with_a_dot_in_its_name_is_found_in_a_call() -> None:
    from aegis_daemon.config.schema import called

    backends = ["work", "work.eu"]
    assert called("work.eu.pay", backends) == ("work.eu", "pay")
    assert called("work.pay", backends) == ("work", "pay")
    assert called("work.", backends) is None
    assert called("play.pay", backends) is None
