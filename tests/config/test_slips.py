"""Misspelt names of tools are told, and names of which nothing can be known are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis_daemon.config.load import load
from aegis_daemon.config.slips import slips

TOOLS = {"files": {"read_file", "write_file", "move_file"}, "sql": {"sql.query"}}
BEGIN = "backends: {files: {}, sql: {}}\n"
AGENT = BEGIN + "agents: {a: {backends: {files: {allowed: true, %s}}}}\n"


def told(tmp_path: Path, text: str, tools: dict[str, set[str]] = TOOLS) -> list[str]:
    file = tmp_path / "aegis.yaml"
    file.write_text(text)
    found = slips(load(str(file), env={}), tools)
    assert all(one.line for one in found)
    return [f"{one.path}: {one.hint}" for one in found]


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("approval_required: [mov_file]", "approval_required[0]"),
        ("second_approver: [mov_file]", "second_approver[0]"),
        ("tool_denylist: [mov_file]", "tool_denylist[0]"),
        ("tool_allowlist: [mov_file]", "tool_allowlist[0]"),
        ("rate_limits: {mov_file: 1/day}", "rate_limits.mov_file"),
    ],
)
def test_a_name_in_a_list_that_is_almost_a_tools_is_told(tmp_path: Path, setting: str, path: str) -> None:
    assert told(tmp_path, AGENT % setting) == [f"agents.a.backends.files.{path}: did you mean `move_file`?"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deny: {tools: [mov_file]}", ["deny.tools[0]: did you mean `move_file`?"]),
        ("deny: {tools: [files.mov_file]}", ["deny.tools[0]: did you mean `files.move_file`?"]),
        ("queue: {files: {bypass_tools: [mov_file]}}", ["queue.files.bypass_tools[0]: did you mean `move_file`?"]),
        ("constraints: {mov_file: {extra: forbid}}", ["constraints.mov_file: did you mean `move_file`?"]),
        ("transforms: {sqll.query: {redact: [$.response.x]}}", ['transforms["sqll.query"]: did you mean `sql.query`?']),
    ],
)
def test_so_is_one_in_a_setting_for_everybody(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert told(tmp_path, BEGIN + text + "\n") == expected


@pytest.mark.parametrize(
    "text",
    [
        AGENT % "tool_denylist: [move_file, MOVE_FILE, 'mov*', append_line]",
        BEGIN + "deny: {tools: [files.move_file, sql.query, sql.sql.query]}\n",
        BEGIN + "constraints: {write_file: {extra: forbid}, sql.query: {operations: [SELECT]}}\n",
    ],
)
def test_names_that_are_there_patterns_and_names_like_no_other_are_not(tmp_path: Path, text: str) -> None:
    assert told(tmp_path, text) == []


def test_of_a_server_that_was_never_listed_nothing_is_told(tmp_path: Path) -> None:
    assert told(tmp_path, AGENT % "tool_denylist: [mov_file]", {"sql": {"query"}}) == []
    assert told(tmp_path, BEGIN + "deny: {tools: [mov_file]}\n", {"files": {"move_file"}}) == []


def test_a_policy_that_names_a_tool_with_its_backend_or_misspelt_is_told(tmp_path: Path) -> None:
    rule = 'forbid(principal, action, resource) when {{ context.target == "{}" }};'
    for name, hint in (("files.move_file", "write `move_file`"), ("mov_file", "did you mean `move_file`?")):
        (found,) = told(tmp_path, BEGIN + f"policy: {{text: '{rule.format(name)}'}}\n")
        assert hint in found
    for name in ("move_file", "sql.query", "append_line"):
        assert told(tmp_path, BEGIN + f"policy: {{text: '{rule.format(name)}'}}\n") == []
