"""`aegis policy suggest` prints what merges into the file, loads, and changes nothing that was done."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from .conftest import Aegis
from .test_policy_replay import FILE, written  # noqa: F401


@pytest.fixture(autouse=True)
def config(written: str, home: str) -> str:  # noqa: F811
    shutil.copy(written, f"{home}/audit.db")
    path = f"{home}/aegis.yaml"
    Path(path).write_text(FILE)
    os.chmod(path, 0o600)
    return path


@pytest.mark.parametrize("kind", ["yaml", "cedar"])
def test_what_is_printed_loads_and_no_successful_call_changes(aegis: Aegis, tmp_path: Path, kind: str) -> None:
    done = aegis("policy", "suggest", "--format", kind)
    assert done.exit_code == 0
    assert "learned from 5 calls" in done.stderr
    assert "not learned from: 2 calls refused" in done.stderr
    made = tmp_path / f"made.{kind}"
    made.write_text(done.stdout)
    again = aegis("policy", "replay", "--policy", str(made), "--list", "--json")
    assert json.loads(again.stdout) == []
    assert "6 as before" in again.stderr
    assert "allowed" not in again.stderr
    assert again.exit_code == 0


def test_nothing_is_written(aegis: Aegis, config: str) -> None:
    before = {path: path.read_bytes() for path in Path(config).parent.iterdir() if path.suffix in (".yaml", ".cedar")}
    aegis("policy", "suggest")
    assert {path: path.read_bytes() for path in before} == before


def test_rows_are_flat(aegis: Aegis) -> None:
    rows = json.loads(aegis("policy", "suggest", "--json").stdout)
    assert not any(isinstance(value, dict | list) for row in rows for value in row.values())
    assert {row["kind"] for row in rows} == {"tool_allowlist", "resource_allowlist", "prompt_allowlist"}
    tools = {json.loads(row["value"]): row["calls"] for row in rows if row["kind"] == "tool_allowlist"}
    assert tools == {"read": 3, "pay": 2}
    assert all(row["few"] for row in rows if row["calls"])


def test_the_next_commands_are_told_with_the_same_options(aegis: Aegis, config: str, tmp_path: Path) -> None:
    said = aegis("policy", "suggest", "--json", "--since", "30d", "--config", config).stderr
    steps = [line.split("  #")[0].strip() for line in said.partition("next:\n")[2].splitlines()]
    assert steps == [
        f"aegis policy suggest --since 30d --config {config} > suggested.yaml",
        f"aegis policy replay --policy suggested.yaml --config {config}",
        f"${{EDITOR:-vi}} {config}",
        "aegis daemon reload",
    ]
    Path(config).write_text(f"mode: observe\n{FILE}")
    printed = aegis("policy", "suggest", "--format", "cedar")
    assert "suggest" not in printed.stderr.partition("next:\n")[2]  # it is in a pipe or a file already
    assert "policy.files" in printed.stderr
    assert printed.stderr.rstrip().splitlines()[-1].strip().startswith("aegis mode enforce")
    assert f"// to use it: in `{config}` name the file in `policy.files`" in printed.stdout
    assert "next:" not in aegis("policy", "suggest", "--agent", "x*").stderr


def test_agents_are_chosen_and_formats_known(aegis: Aegis) -> None:
    assert json.loads(aegis("policy", "suggest", "--agent", "x*", "--json").stdout) == []
    assert aegis("policy", "suggest", "--format", "toml").exit_code == 2
    assert aegis("policy", "suggest", "--since", "soon").exit_code == 2
    assert "{}" in aegis("policy", "suggest", "--agent", "x*").stdout
