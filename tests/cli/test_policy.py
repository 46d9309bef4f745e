"""`aegis policy` says whether policies can be used and what the rules say of a call, from files alone."""

from __future__ import annotations

import json
import os
import sqlite3
from hashlib import sha256
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


FITTED = (
    FILE
    + """\
    @id("typo") forbid(principal, action, resource) when {
      context.target == "get" && context.arguments has pth
    };
constraints:
  get: {arguments: {patj: {under: [/srv]}}}
"""
)


def pin(home: str, schema: dict[str, object]) -> None:
    """As a daemon that has seen this tool `get` leaves it."""
    text = json.dumps({"inputSchema": schema, "name": "get"}, separators=(",", ":"))
    db = sqlite3.connect(f"{home}/state.db", isolation_level=None)
    db.execute("CREATE TABLE IF NOT EXISTS pins (backend, kind, name, state, trusted, text)")
    db.execute("DELETE FROM pins")
    hashes = json.dumps([sha256(text.encode()).hexdigest()])
    db.execute("INSERT INTO pins VALUES ('files', 'tool', 'get', 'trusted', ?, ?)", (hashes, text))
    db.close()


def test_policies_and_rules_are_held_against_the_tools_that_are_pinned(aegis: Aegis, home: str, config: str) -> None:
    Path(config).write_text(FITTED)
    assert aegis("policy", "validate", "--config", config).exit_code == 0, "no daemon has run yet"
    pin(home, {"type": "object", "properties": {"path": {"type": "string"}}, "additionalProperties": False})
    done = aegis("policy", "validate", "--config", config, "--json")
    assert done.exit_code == 1
    lines = FITTED.splitlines()
    told = [
        (one["severity"], one["hint"], lines[one["line"] - 1][one["column"] - 1 :]) for one in json.loads(done.stdout)
    ]
    assert told == [
        ("fault", "did you mean `path`?", "pth"),
        ("fault", "did you mean `path`?", "patj: {under: [/srv]}}}"),
        ("warning", "leave it if such a tool is yet to come", 'env && context.arguments.env == "prod" };'),
    ]  # fmt: skip
    assert aegis("policy", "validate", "--config", config, "--no-pins").exit_code == 0
    explained = aegis("policy", "explain", "files.get", "--agent", "bot", "--config", config, "--json")
    stages = {one["stage"]: one for one in json.loads(explained.stdout)["stages"]}
    assert stages["policy"]["rule"].startswith("policy fault: ")
    pin(home, {"type": "object", "properties": {"pth": {}, "patj": {}}, "required": ["pth", "patj"]})
    mended = aegis("policy", "validate", "--config", config)
    assert mended.exit_code == 0
    assert "held against 1 tool" in mended.stderr
    bare = FITTED[: FITTED.index("policy:")]
    Path(config).write_text(bare)
    assert aegis("policy", "validate", "--config", config).stderr == "there are no policies\n"
    Path(config).write_text(bare + FITTED[FITTED.index("constraints:") :])
    said = aegis("policy", "validate", "--config", config).stderr
    assert said == "there are no policies; the rules on arguments were held against 1 tool\n"


def test_what_a_daemon_keeps_and_cannot_be_read_is_told(aegis: Aegis, home: str, config: str) -> None:
    Path(f"{home}/state.db").write_bytes(b"x" * 5000)
    done = aegis("policy", "validate", "--config", config)
    assert done.exit_code == 1
    assert "--no-pins" in done.stderr


def test_a_file_by_itself_is_held_against_who_the_configuration_names(
    aegis: Aegis, config: str, tmp_path: Path
) -> None:
    new = tmp_path / "new.cedar"
    new.write_text('permit(principal == Agent::"bott", action, resource == Server::"files");')
    done = aegis("policy", "validate", str(new), "--config", config)
    assert done.exit_code == 0
    assert "did you mean `bot`?" in done.stderr
    missing = aegis("policy", "validate", "no.cedar", "--config", config)
    assert missing.exit_code == 1
    assert "the command line" not in missing.stderr
    assert "no such file" in missing.stderr
    alone = aegis("policy", "validate", str(new), "--config", str(tmp_path / "none.yaml"))
    assert (alone.exit_code, "warning" in alone.stderr) == (0, False)


def test_a_changed_tool_is_explained_as_refused(aegis: Aegis, home: str, config: str) -> None:
    pin(home, {"type": "object"})
    asked = ("policy", "explain", "files.get", "--agent", "bot", "--config", config, "--json")
    assert aegis(*asked).exit_code == 0
    db = sqlite3.connect(f"{home}/state.db", isolation_level=None)
    db.execute("UPDATE pins SET state = 'changed'")
    db.close()
    done = aegis(*asked)
    assert done.exit_code == 1
    assert [one["stage"] for one in json.loads(done.stdout)["stages"] if one["opinion"] == "deny"] == ["pin"]


def test_names_that_the_file_does_not_have_are_told(aegis: Aegis, config: str) -> None:
    done = aegis("policy", "explain", "fils.get", "--agent", "bott", "--config", config)
    assert done.exit_code == 1
    assert "did you mean `files`?" in done.stderr
    assert "did you mean `bot`?" in done.stderr
    assert "--agent" in aegis("policy", "explain", "files.get", "--config", config).stderr


def test_a_tool_that_the_server_does_not_have_is_told_with_the_one_that_was_meant(
    aegis: Aegis, home: str, config: str
) -> None:
    pin(home, {"type": "object"})
    done = aegis("policy", "explain", "files.gett", "--agent", "bot", "--config", config)
    assert "`files` has no tool `gett`; did you mean `get`?" in done.stderr
    other = aegis("policy", "explain", "files.zzzz", "--agent", "bot", "--config", config)
    assert "`files` has no tool `zzzz`; 1 other is known" in other.stderr
    assert "no tool" not in aegis("policy", "explain", "files.get", "--agent", "bot", "--config", config).stderr
