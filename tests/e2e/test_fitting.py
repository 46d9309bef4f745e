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


MISSPELT = """
backends: {work: {}}
agents: {ann: {backends: {work: {allowed: true, approval_required: [%s]}}}}
"""


def test_a_misspelt_name_that_opens_a_gate_is_said_by_all_that_take_the_file_up(homes: Callable[..., Home]) -> None:
    home = homes(MISSPELT % "release")
    agent = home.count(agent="ann").handshake()
    agent.asks(request(1, "tools/list"))
    home.configure(MISSPELT % "relaese")
    done = home.aegis("daemon", "reload")
    assert done.returncode == 0, done.stderr
    for text in ("aegis.yaml:3:", "`work` has no tool `relaese`", "did you mean `release`?"):
        assert text in done.stderr, done.stderr
    assert any("relaese" in one for one in home.json("daemon", "reload")["warnings"])
    count = "1 name of a tool in the configuration is no tool's, so what it says does nothing"
    (warning,) = (one for one in home.ask("status")["warnings"] if count in one)
    assert "see `aegis config validate`" in warning
    assert count in home.aegis("status").stdout
    assert "relaese" in (home.dir / "daemon.log").read_text()
    found = home.aegis("doctor", "--json").stdout
    assert found.count("relaese") >= 1
    assert count not in found, "the doctor tells each by its name"

    again = home.aegis("daemon", "restart")
    assert "did you mean `release`?" in again.stderr, again.stderr
    until(lambda: any(count in one for one in home.ask("status")["warnings"]), "the count in the status")

    home.configure(MISSPELT % "release")
    assert home.json("daemon", "reload")["warnings"] == []
    assert not [one for one in home.ask("status")["warnings"] if count in one]


def test_a_misspelt_name_is_told_once_its_server_has_said_what_it_has(homes: Callable[..., Home]) -> None:
    home = homes(MISSPELT % "relaese")
    assert home.json("daemon", "reload")["warnings"] == [], "of a server that nobody asked nothing is known"
    home.count(agent="ann").handshake().asks(request(1, "tools/list"))
    until(lambda: any("is no tool's" in one for one in home.ask("status")["warnings"]), "the count in the status")
    until(lambda: "did you mean `release`?" in (home.dir / "daemon.log").read_text(), "the log's line")
