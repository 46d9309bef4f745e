"""From the file to the verdict: what the configuration says is what the pipeline does."""

from __future__ import annotations

import os
from typing import Any

import pytest
from making import call, tool

from aegis_daemon.config.load import ConfigFaults, loads
from aegis_daemon.config.runtime import build
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import HoldRule, Runtime
from aegis_daemon.core.verdict import Allow, Claim, Deny, Hold
from aegis_daemon.lanes import LaneRule
from aegis_daemon.wire.methods import Direction

FILE = """
backends:
  files:
    command: npx
    args: ["-y", "server"]
    env: { KEY: "${env:SECRET}" }
    cwd: /srv
    timeout: 30s
    count_tool_errors: true
  mail: {}
queue:
  files:
    enabled: true
    delay_min: 1s
    delay_max: 1m
    max_pending: 7
    bypass_tools: [status, "get_*"]
    global_rate_limits: { post: 15/hour }
  mail:
    enabled: false
    global_rate_limits: { send: 2/minute }
agents:
  amy:
    backends:
      files:
        allowed: true
        tool_allowlist: ["*"]
        tool_denylist: [wipe]
        resource_denylist: ["file:///etc/*"]
        prompt_allowlist: [hello]
        rate_limits: { post: { window: 24h, max_count: 1 }, read: 10/minute }
        approval_required: ["delete_*"]
        server_requests: [roots]
      mail: { allowed: false, approval_required: ["*"] }
approval: { timeout: 5m, max_pending_per_agent: 9 }
deny: { tools: [mail.send, format] }
"""


def built(text: str = FILE) -> Runtime:
    return build(loads(text, "aegis.yaml", env={"SECRET": "s3cret"}).config, "d1")


def verdict(runtime: Runtime, *args: Any, **more: Any) -> Any:
    return runtime.pipeline.admit(tool(*args, **more), 0.0)


def test_an_empty_configuration_denies_everything() -> None:
    runtime = built("")
    assert isinstance(verdict(runtime, "read"), Deny)
    assert not runtime.pipeline.visible(Principal("amy"), "files", "tool", "read")
    assert (runtime.isolated, runtime.unlisted_open, runtime.claims, dict(runtime.lanes)) == (False, False, (), {})
    assert runtime.may_ask("amy", "files") == frozenset()
    assert runtime.backend("files").command is None


def test_what_the_file_allows_is_allowed_and_nothing_else() -> None:
    runtime = built()
    assert isinstance(verdict(runtime, "read"), Allow)
    for refused in (
        tool("wipe"),
        tool("format"),
        tool("read", backend="mail"),
        tool("read", backend="web"),
        tool("read", agent="bob"),
        call("resources/read", {"uri": "file:///etc/passwd"}),
        call("prompts/get", {"name": "other"}),
        call("sampling/createMessage", {}, direction=Direction.TO_CLIENT),
    ):
        assert isinstance(runtime.pipeline.admit(refused, 0.0), Deny)
    for passing in (
        call("resources/read", {"uri": "file:///srv/x"}),
        call("prompts/get", {"name": "hello"}),
        call("roots/list", {}, direction=Direction.TO_CLIENT),
    ):
        assert isinstance(runtime.pipeline.admit(passing, 0.0), Allow)
    assert runtime.may_ask("amy", "files") == {"roots"}
    assert runtime.may_ask("amy", "mail") == frozenset()


def test_prices_labels_and_asks_come_from_the_file() -> None:
    runtime = built()
    shared = Claim("global", None, "files", "post", 3600.0, 15)
    own = Claim("agent", "amy", "files", "post", 86400.0, 1)
    assert verdict(runtime, "post").claims == (shared, own)
    assert {claim.tool for claim in runtime.claims} == {"post", "read", "send"}
    held = verdict(runtime, "delete_all")
    assert isinstance(held, Hold)
    assert held.ask.timeout_s == 300.0
    body = b'{"tools":[{"name":"post","description":"Publish post"},{"name":"wipe"},{"name":"delete_x"}]}'
    assert runtime.pipeline.clean_list(call("tools/list", {}), body) == (
        b'{"tools":[{"name":"post","description":"[Rate:1/1d|GlobalRate:15/1h] Publish post"},'
        b'{"name":"delete_x","description":"[ApprovalRequired]"}]}'
    )


def test_a_lane_is_there_only_where_it_is_switched_on() -> None:
    lanes = built().lanes
    assert set(lanes) == {"files"}
    rule = lanes["files"]
    assert isinstance(rule, LaneRule)
    assert (rule.delay_min, rule.delay_max, rule.max_pending) == (1.0, 60.0, 7)
    assert "status" in rule.bypass
    assert "get_x" in rule.bypass
    assert "post" not in rule.bypass


def test_a_limit_holds_without_its_lane() -> None:
    closed = 'mail: { allowed: false, approval_required: ["*"] }'
    assert closed in FILE
    runtime = built(FILE.replace(closed, "mail: { allowed: true }").replace("mail.send, ", ""))
    assert verdict(runtime, "send", backend="mail").claims == (Claim("global", None, "mail", "send", 60.0, 2),)


def test_a_backend_has_its_command_with_its_secrets_in_place() -> None:
    runtime = built()
    rule = runtime.backend("files")
    assert (rule.command, rule.cwd, rule.timeout, rule.count_tool_errors) == (
        ("npx", "-y", "server"),
        "/srv",
        30.0,
        True,
    )
    assert rule.env == {"KEY": "s3cret"}
    assert runtime.backend("mail").command is None
    assert runtime.backend("mail").timeout == 120.0
    assert runtime.agents["amy"].principal == Principal("amy")
    assert (runtime.pending_limit, runtime.digest) == (9, "d1")


@pytest.mark.parametrize(
    ("identities", "isolated"),
    [
        ("", False),
        (f"identities: [{os.geteuid()}]", False),
        (f"identities: [{os.geteuid() + 1}]", True),
        (f"identities: [{os.geteuid() + 1}, {os.geteuid()}]", False),
    ],
)
def test_the_tier_is_isolated_only_if_no_agent_can_be_the_daemons_own_user(identities: str, isolated: bool) -> None:
    one = f"amy: {{ backends: {{}}, {identities} }}" if identities else "amy: {}"
    assert built(f"agents: {{ {one} }}").isolated is isolated
    both = f"agents: {{ {one}, bob: {{ identities: [{os.geteuid() + 2}] }} }}"
    assert built(both).isolated is isolated


def test_observe_mode_passes_what_would_be_refused_and_asked() -> None:
    runtime = built(FILE + "mode: observe\n")
    for name in ("wipe", "delete_all"):
        passed = verdict(runtime, name)
        assert isinstance(passed, Allow)
        assert passed.would is not None


def test_unlisted_agents_pass_where_the_file_says_so_and_refused_ones_do_not() -> None:
    runtime = built(FILE + "defaults: { unlisted: observe }\n")
    assert runtime.unlisted_open
    assert isinstance(verdict(runtime, "read", agent="bob"), Allow)
    assert isinstance(verdict(runtime, "read", backend="mail"), Deny)
    assert isinstance(verdict(runtime, "format", agent="bob"), Deny), "the file's `deny` holds for everybody"


def test_an_allow_list_of_the_whole_file_closes_everything_else() -> None:
    runtime = built(FILE + "allow: { tools: [files.read] }\n")
    assert isinstance(verdict(runtime, "read"), Allow)
    assert isinstance(verdict(runtime, "post"), Deny)


def test_how_long_calls_are_held_comes_from_the_file() -> None:
    assert built("{}").hold == HoldRule()
    runtime = built(
        """
approval: {hold: 90s, hold_clients: {'codex*': 2m, mcporter: 0}}
agents: {amy: {hold: 0s}, bob: {}}
"""
    )
    assert runtime.hold == HoldRule(90.0, (("codex*", 120.0), ("mcporter", 0.0)), {"amy": 0.0})
    assert built("approval: {hold: auto}").hold.default is None
    for wrong in ("approval: {hold: soon}", "approval: {hold: -1s}", "approval: {hold_clients: {a: auto}}"):
        with pytest.raises(ConfigFaults):
            built(wrong)


def test_two_people_are_asked_where_the_file_says_so() -> None:
    runtime = built(
        """
backends: {files: {}}
agents: {amy: {backends: {files: {allowed: true, second_approver: [pay], approval_required: [post]}}}}
"""
    )
    for name, people in (("pay", 2), ("post", 1)):
        verdict = runtime.pipeline.admit(tool(name), 0.0)
        assert isinstance(verdict, Hold)
        assert verdict.ask.people == people
