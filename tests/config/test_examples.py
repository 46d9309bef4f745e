"""Every configuration that we hand out loads, and says what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aegis_daemon.approvals.channels import CHANNELS, make
from aegis_daemon.config.load import load, loads, starter
from aegis_daemon.daemon.channels import values

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def test_there_are_examples() -> None:
    assert {"solo-developer.yaml", "shared-account.yaml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_loads_without_a_warning(path: Path) -> None:
    meant = ("every user", "everybody knows this token")  # it is published, and says so
    assert [str(one) for one in load(str(path), env={}).warnings if not one.message.startswith(meant)] == []


def test_the_starter_loads_without_a_warning_and_governs_something() -> None:
    loaded = loads(starter(), "aegis.yaml", env={})
    assert loaded.warnings == ()
    config = loaded.config
    assert set(config.agents) == {"default", "coder"}
    coder = config.agents["coder"].backends["github"]
    assert coder.rate_limits["create_pull_request"].window_s == 86400
    assert coder.approval_required
    assert config.deny.tools
    assert config.queue["github"].enabled
    assert config.agents["default"].backends["filesystem"].tool_allowlist


@pytest.mark.parametrize("name", ["# command:", "# args:", "# env:"])
def test_what_the_starter_has_commented_out_loads_when_it_is_uncommented(name: str) -> None:
    lines = starter().splitlines()
    at = next(index for index, line in enumerate(lines) if line.strip().startswith("# command:"))
    assert any(line.strip().startswith(name) for line in lines[at : at + 4])
    lines[at : at + 4] = [line.replace("# ", "", 1) for line in lines[at : at + 4]]
    config = loads("\n".join(lines), "aegis.yaml", env={"GITHUB_TOKEN": "x"}).config
    assert config.backends["github"].command == "npx"
    assert "GITHUB_PERSONAL_ACCESS_TOKEN" in config.backends["github"].env


def test_every_channel_that_the_approvals_example_has_commented_out_loads() -> None:
    text = next(path for path in EXAMPLES if path.name == "approvals.yaml").read_text(encoding="utf-8")
    lines = [re.sub(r"^( *)# (?=[ a-z_]+:)", r"\1", line) for line in text.splitlines()]
    names = set(re.findall(r"\$\{env:(\w+)\}", text))
    secret = {name for name in names if name.endswith(("TOKEN", "SECRET"))}
    env = {name: "xoxb-0123456789" if name in secret else f"https://chat.example.org/{name}" for name in names}
    config = loads("\n".join(lines), "approvals.yaml", env=env).config
    sections = {name: values(getattr(config.approval, name)) for name in CHANNELS}
    made = make(sections, {}, lambda name, error: pytest.fail(f"{name}: {error}"))
    assert set(made) == set(CHANNELS)
    for name in ("telegram", "slack"):
        assert getattr(config.approval, name).approvers
    assert config.agents["writer"].hold == 300
    assert config.approval.hold_clients
    assert config.approval.confirm == "code"


def test_the_shared_account_example_is_two_agents_behind_one_lane() -> None:
    path = next(path for path in EXAMPLES if path.name == "shared-account.yaml")
    config = load(str(path), env={}).config
    assert len(config.agents) == 2
    lane = config.queue["social"]
    assert (lane.enabled, lane.delay_min, lane.delay_max) == (True, 60, 600)
    assert lane.global_rate_limits
    assert config.agents["writer"].backends["social"].approval_required
