from __future__ import annotations

from making import call, tool

from aegis_daemon.core.names import Restricted
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import PASS, Claim, Hold, Pass
from aegis_daemon.stages.approval import Approval
from aegis_daemon.stages.rate_limit import RateLimit

AMY, BOB = Principal("amy"), Principal("bob")
SHARED = Claim("global", None, "files", "post", 3600.0, 15)
OWN = Claim("agent", "amy", "files", "post", 86400.0, 1)
ALONE = Claim("agent", "amy", "files", "read", 90.0, 3)


def limits() -> RateLimit:
    own = {("amy", "files", "post"): OWN, ("amy", "files", "read"): ALONE}
    return RateLimit({("files", "post"): SHARED}, own)


def test_the_limit_of_all_agents_is_asked_before_the_agents_own() -> None:
    assert limits().decide(tool("post"), 0.0) == Pass((SHARED, OWN))
    assert limits().decide(tool("read"), 0.0) == Pass((ALONE,))


def test_another_agent_pays_the_shared_price_alone() -> None:
    assert limits().decide(tool("post", agent="bob"), 0.0) == Pass((SHARED,))
    assert limits().decide(tool("read", agent="bob"), 0.0) is PASS


def test_another_tool_backend_or_method_of_the_same_name_costs_nothing() -> None:
    for other in (
        tool("poster"),
        tool("post", backend="mail"),
        call("prompts/get", {"name": "post"}),
        call("tools/list"),
    ):
        assert limits().decide(other, 0.0) is PASS


def test_limits_are_labelled_and_hide_nothing() -> None:
    assert limits().labels(AMY, "files", "post") == ("Rate:1/1d", "GlobalRate:15/1h")
    assert limits().labels(AMY, "files", "read") == ("Rate:3/90s",)
    assert limits().labels(BOB, "files", "post") == ("GlobalRate:15/1h",)
    assert limits().labels(BOB, "mail", "post") == ()
    assert limits().visible(AMY, "files", "tool", "post")
    assert limits().claims == (SHARED, OWN, ALONE)


def test_a_name_in_another_spelling_pays_the_price_of_the_one_that_has_a_limit() -> None:
    for name in ("Post", "POST", "post.", "post/", "p%6fst"):
        assert limits().decide(tool(name), 0.0) == Pass((SHARED, OWN))
        assert limits().decide(tool(name, agent="bob"), 0.0) == Pass((SHARED,))
        assert limits().labels(AMY, "files", name) == ("Rate:1/1d", "GlobalRate:15/1h")
    both = Claim("agent", "amy", "files", "Post", 60.0, 9)
    gate = RateLimit({}, {("amy", "files", "post"): OWN, ("amy", "files", "Post"): both})
    assert gate.decide(tool("Post"), 0.0) == Pass((both,))
    assert gate.decide(tool("post"), 0.0) == Pass((OWN,))
    assert gate.decide(tool("POST"), 0.0) == Pass((OWN, both))


def test_an_agent_that_invents_names_makes_no_limits_grow() -> None:
    gate = limits()
    for number in range(5000):
        assert gate.decide(tool(f"y{number}"), 0.0) is PASS
    assert len(gate._passes) <= 4096


def approval() -> Approval:
    return Approval({("amy", "files"): Restricted(["post", "delete_*"])}, 600.0)


def test_a_listed_tool_is_held_for_a_person() -> None:
    for name in ("post", "delete_all", "Post", "post.", "Delete_All"):
        held = approval().decide(tool(name), 0.0)
        assert isinstance(held, Hold)
        assert held.call.name == name
        assert held.ask.timeout_s == 600.0
        assert held.ask.rule == "agents.amy.backends.files.approval_required"


def test_what_is_not_listed_is_not_held() -> None:
    others = [tool("read"), tool("poster"), tool("post", agent="bob"), tool("post", backend="mail")]
    for other in [*others, call("prompts/get", {"name": "post"}), call("tools/list")]:
        assert approval().decide(other, 0.0) is PASS


def test_what_needs_a_person_is_shown_and_labelled() -> None:
    assert approval().visible(AMY, "files", "tool", "post")
    assert approval().labels(AMY, "files", "post") == ("ApprovalRequired",)
    assert approval().labels(AMY, "files", "read") == ()
    assert approval().labels(BOB, "files", "post") == ()


def two() -> Approval:
    lists = {("amy", "files"): Restricted(["post"])}, {("amy", "files"): Restricted(["pay", "drop_*"])}
    return Approval(lists[0], 600.0, lists[1])


def test_a_tool_that_needs_two_people_is_held_for_them_whether_it_is_on_the_other_list_or_not() -> None:
    for name in ("pay", "drop_all"):
        held = two().decide(tool(name), 0.0)
        assert isinstance(held, Hold)
        assert (held.ask.people, held.ask.rule) == (2, "agents.amy.backends.files.second_approver")
    held = two().decide(tool("post"), 0.0)
    assert isinstance(held, Hold)
    assert held.ask.people == 1
    both = Approval({("amy", "files"): Restricted(["*"])}, 600.0, {("amy", "files"): Restricted(["pay"])})
    held = both.decide(tool("pay"), 0.0)
    assert isinstance(held, Hold)
    assert held.ask.people == 2
    assert two().decide(tool("read"), 0.0) is PASS
    assert two().decide(tool("pay", agent="bob"), 0.0) is PASS
    assert two().labels(AMY, "files", "pay") == ("ApprovalRequired",)
    assert two().labels(AMY, "files", "read") == ()
