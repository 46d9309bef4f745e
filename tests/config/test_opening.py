"""A way to a server is added to a configuration with everything asking first, and nothing that was there is loosened."""

from __future__ import annotations

from typing import Any

import pytest

from aegis_daemon.config.edit import Stuck
from aegis_daemon.config.load import loads
from aegis_daemon.config.opening import HEAD, opened
from aegis_daemon.config.source import ConfigFaults

FAR: dict[str, Any] = {"url": "https://far.example/mcp", "headers": {"X-Key": "${file:secrets/far.x-key}"}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEAD,
        "# mine\nmode: observe  # still\n",
        "agents: {a: {backends: {}}}\n",
        "backends:\r\n    x: {command: y}\r\n",
    ],
)
def test_what_is_added_waits_for_a_person_and_the_rest_stays(text: str) -> None:
    done = opened(text, "f", "a", "gh", {})
    config = loads(done.text, "f").config
    access = config.agents["a"].backends["gh"]
    assert (access.allowed, access.approval_required) == (True, ("*",))
    assert config.backends["gh"].command is None
    assert [step.path for step in done.steps] == ["backends.gh", "agents.a.backends.gh"]
    for line in text.splitlines():
        assert line.partition("{")[0] in done.text
    again = opened(done.text, "f", "a", "gh", {})
    assert (again.text, again.steps) == (done.text, ())


def test_a_rule_that_is_there_is_not_touched() -> None:
    text = "backends: {gh: {command: x}}\nagents: {a: {backends: {gh: {allowed: false}}}}\n"
    assert opened(text, "f", "a", "gh", {}).text == text
    other = opened(text, "f", "b", "gh", FAR)
    assert [step.path for step in other.steps] == ["agents.b.backends.gh"]
    assert "far.example" not in other.text


def test_an_address_goes_with_names_of_its_secrets_before_their_files_are_there() -> None:
    done = opened("", "f", "a", "far", FAR)
    assert "${file:secrets/far.x-key}" in done.text
    with pytest.raises(ConfigFaults):
        loads(done.text, "f")


def test_what_two_agents_share_is_left_to_a_person() -> None:
    with pytest.raises(Stuck) as stuck:
        opened("agents: {a: &a {backends: {}}, b: *a}\n", "f", "a", "gh", {})
    assert "by hand" in stuck.value.hint


def test_a_faulty_file_is_refused() -> None:
    with pytest.raises(ConfigFaults):
        opened("agnets: {}\n", "f", "a", "gh", {})
