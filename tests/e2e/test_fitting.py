"""A real server whose tool a policy does not fit: refused, shown to people, and usable once the policy is mended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from .house import Home, call, request, tell_of, until

HERE = Path(__file__).parent
RULES = """
backends: {turning: {}}
agents: {ann: {backends: {turning: {allowed: true}}}}
policy:
  text: |
    permit(principal, action, resource);
    @id("odd") forbid(principal, action, resource) when { context.target == "pay" && context.arguments.key == 5 };
"""


def test_a_policy_fault_refuses_its_tool_until_it_is_mended(homes: Callable[..., Home]) -> None:
    home = homes(RULES)
    words = home.dir / "words"
    words.write_text("Pays.")
    argv = [sys.executable, str(HERE / "turning.py"), str(home.log), str(words)]
    agent = home.wrap(*argv, agent="ann", backend="turning").handshake()
    tools = {tool["name"] for tool in agent.asks(request(1, "tools/list"))["result"]["tools"]}
    assert tools == {"pay", "turn"}, "it is shown all the same"
    refused = agent.asks(call(2, "pay", key="k"))
    assert tell_of(refused) == (-32001, "policy_fault")
    assert "odd" not in str(refused)
    assert "result" in agent.asks(call(3, "turn"))
    assert home.reached() == []

    shown = home.json("audit", "show", refused["error"]["data"]["call_id"])
    assert "the argument `key` of `pay` of `turning` is a text, and is compared with a number" in shown["policy_id"]
    assert shown["judged_us"] > 0
    assert ":7:" in shown["policy_id"], "where it stands in the file"
    until(lambda: any("policy fault" in one for one in home.ask("status")["warnings"]), "the count in the status")
    rows = {row["name"]: row["fault"] for row in home.json("tools", "list") if row["kind"] == "tool"}
    assert rows["turn"] == ""
    assert "`odd`" in rows["pay"]
    assert home.aegis("policy", "validate").returncode == 1
    assert "policy fault, for which the tool is refused" in (home.dir / "daemon.log").read_text()

    home.configure(RULES.replace("== 5", '== "5"'))
    assert home.ask("reload")["warnings"] == []
    assert "result" in agent.asks(call(4, "pay", key="k"))
    assert tell_of(agent.asks(call(5, "pay", key="5"))) == (-32001, "policy_denied")
