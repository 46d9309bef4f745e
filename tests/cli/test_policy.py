"""`aegis policy` says whether policies can be used and what the rules say of a call, from files alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .conftest import Aegis

FILE = """\
backends: {files: {}}
agents:
  bot:
    roles: [Dev]
    backends: {files: {allowed: true, approval_required: [pay], tool_denylist: [rm]}}
policy:
  text: |
    @id("devs") permit(principal in Role::"Dev", action, resource);
    @id("no-prod") forbid(principal, action, resource) when { context.arguments has env && context.arguments.env == "prod" };
"""


@pytest.fixture
def config(home: str) -> str:
    path = f"{home}/aegis.yaml"
    Path(path).write_text(FILE)
    os.chmod(path, 0o600)
    return path


def test_valid_policies_are_counted(aegis: Aegis, config: str) -> None:
    done = aegis("policy", "validate", "--config", config)
    assert done.exit_code == 0
    assert "2 policies are valid" in done.stderr


def test_every_fault_of_a_policy_file_is_told_with_its_place(aegis: Aegis, tmp_path: Path) -> None:
    file = tmp_path / "p.cedar"
    file.write_text("permit(principal, action);\nforbid(principal, action, resource) when { context.x };\n")
    done = aegis("policy", "validate", str(file), "--json")
    assert done.exit_code == 1
    rows = json.loads(done.stdout)
    assert [(one["severity"], one["file"], one["line"], one["column"] > 0) for one in rows] == [
        ("fault", str(file), 1, True),
        ("fault", str(file), 2, True),
    ]
    shown = aegis("policy", "validate", str(file))
    assert "2 faults found" in shown.stderr
    assert "^" in shown.stderr


@pytest.mark.parametrize(
    ("words", "verdict", "stage", "rule"),
    [
        (["files.get"], "allow", "policy", "permitted by `devs`"),
        (["files.get", "--args", '{"env": "prod"}'], "deny", "policy", "forbidden by `no-prod`"),
        (["files.pay"], "hold", "approval", "approval_required"),
        (["files.rm"], "deny", "acl", "does not admit"),
        (["mail.get"], "deny", "acl", "does not say `allowed: true`"),
        (["files", "--method", "sampling/createMessage"], "deny", "acl", "server_requests"),
        (["files", "--method", "prompts/get", "--args", '{"name": "p"}'], "allow", "policy", "permitted by `devs`"),
    ],
)
def test_the_stage_and_the_rule_that_decide_a_call_are_named(
    aegis: Aegis, config: str, words: list[str], verdict: str, stage: str, rule: str
) -> None:
    done = aegis("policy", "explain", *words, "--agent", "bot", "--config", config, "--json")
    found = json.loads(done.stdout)
    assert (found["verdict"], done.exit_code) == (verdict, int(verdict == "deny"))
    assert rule in next(one["rule"] for one in found["stages"] if one["stage"] == stage)
    shown = aegis("policy", "explain", *words, "--agent", "bot", "--config", config)
    assert shown.stdout.splitlines()[-1].startswith({"allow": "allowed", "deny": "refused", "hold": "held"}[verdict])


@pytest.mark.parametrize(
    "words",
    [
        ["files", "--agent", "bot"],
        ["files.get", "--agent", "bot", "--args", "{"],
        ["files", "--agent", "bot", "--method", "no/such"],
        ["files", "--agent", "bot", "--method", "prompts/get", "--args", "[]"],
        ["nosuchcall"],
    ],
)
def test_what_cannot_be_asked_is_said(aegis: Aegis, config: str, words: list[str]) -> None:
    done = aegis("policy", "explain", *words, "--config", config)
    assert done.exit_code in (1, 2)
    assert done.stderr.strip()


def test_in_observe_mode_a_refusal_is_told_as_what_would_pass(aegis: Aegis, config: str) -> None:
    Path(config).write_text(FILE + "mode: observe\n")
    done = aegis("policy", "explain", "files.rm", "--agent", "bot", "--config", config)
    assert done.exit_code == 0
    assert "observe" in done.stderr
