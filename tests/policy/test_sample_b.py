"""Seed B's two samples load as they stand on its page, and do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from making import tool
from policing import indented, pipeline, refused

from aegis_daemon.config.load import ConfigFaults, loads
from aegis_daemon.core.pipeline import Pipeline
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Allow, Deny

CEDAR = r"""// Limit SQL tool operations to SELECT statements for developer roles
permit(
    principal in Role::"Developer",
    action == Action::"tools/call",
    resource == Server::"sql-prod"
)
when {
    context.primitive == "tool" &&
    context.target == "sql.query" &&
    context.arguments.sql.matches("(?i)^\\s*SELECT\\s")
};

// Fail-closed platform invariant: deny finance tools to external principals
forbid(
    principal,
    action,
    resource == Server::"finance-restricted"
)
when {
    principal.is_external == true
};
"""
HOUSE = """
backends:
  sql-prod: {}
  finance-restricted: {}
agents:
  dev:
    roles: [Developer]
    attributes: { is_external: false }
    backends: { sql-prod: { allowed: true }, finance-restricted: { allowed: true } }
  ann:
    attributes: { is_external: false }
    backends: { sql-prod: { allowed: true }, finance-restricted: { allowed: true } }
  odd:
    roles: [Developer]
    attributes: { is_external: "false" }
    backends: { sql-prod: { allowed: true }, finance-restricted: { allowed: true } }
  new:
    roles: [Developer]
    backends: { sql-prod: { allowed: true }, finance-restricted: { allowed: true } }
"""
POLICY = """
policy:
  evaluator: cedar
  failMode: closed
  text: |
"""
OPEN = '@id("all-else") permit(principal, action, resource == Server::"finance-restricted");\n'
ROLES = {"dev": ("Developer",), "odd": ("Developer",), "new": ("Developer",), "ann": ()}


def judged(rules: Pipeline, agent: str, name: str, arguments: object, backend: str = "sql-prod") -> Allow | Deny:
    asked = msgspec.structs.replace(
        tool(name, arguments, backend=backend), principal=Principal(agent, roles=ROLES[agent])
    )
    verdict = rules.admit(asked, 0.0)
    assert isinstance(verdict, Allow | Deny)
    return verdict


@pytest.fixture(scope="module")
def sample() -> Pipeline:
    return pipeline(HOUSE + POLICY + indented(CEDAR))


GOOD = [
    "SELECT 1",
    "select name from users where id = 3",
    "  \n\tSeLeCt * FROM t",
    "-- why\nselect 1 from t",
    "(select 1)",
]
BAD = [
    "DROP TABLE users",
    "SELECT 1; DROP TABLE users",
    "select * into stolen from users",
    "SELECT * FROM users FOR UPDATE",
    "select pg_read_file('/etc/passwd')",
    "with gone as (delete from users returning *) select * from gone",
    "select 1 /*! ; drop table users */",
    "SELECTED",
    "",
    "\u200bselect 1",
    "insert into users select 1",
]


@pytest.mark.parametrize("sql", GOOD)
def test_the_first_sample_lets_developers_read(sample: Pipeline, sql: str) -> None:
    assert isinstance(judged(sample, "dev", "sql.query", {"sql": sql}), Allow)


@pytest.mark.parametrize("sql", BAD)
def test_the_first_sample_lets_nobody_do_more_than_read(sample: Pipeline, sql: str) -> None:
    refusal = refused(judged(sample, "dev", "sql.query", {"sql": sql}))
    assert (refusal.stage, refusal.code) == ("policy", "policy_denied")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"sql": ["select 1"]},
        {"sql": None},
        {"sql": 1},
        {"SQL": "select 1"},
        [],
        {"query": "select 1"},
        {"sql": "select 1", "query": "select 2"},
    ],
)
def test_arguments_that_are_not_what_the_sample_names_pass_nothing(sample: Pipeline, arguments: object) -> None:
    assert isinstance(judged(sample, "dev", "sql.query", arguments), Deny)


def test_the_first_sample_is_for_developers_and_for_this_one_tool(sample: Pipeline) -> None:
    assert isinstance(judged(sample, "ann", "sql.query", {"sql": "select 1"}), Deny)
    assert isinstance(judged(sample, "dev", "sql.exec", {"sql": "select 1"}), Deny)
    assert isinstance(judged(sample, "dev", "sql.query", {"sql": "select 1"}, "finance-restricted"), Deny)


def test_the_tool_is_seen_by_who_may_call_it_with_some_arguments(sample: Pipeline) -> None:
    seen = {
        agent: sample.visible(Principal(agent, roles=ROLES[agent]), "sql-prod", "tool", "sql.query") for agent in ROLES
    }
    assert seen == {"dev": True, "odd": True, "new": True, "ann": False}
    assert not sample.visible(Principal("dev", roles=("Developer",)), "sql-prod", "tool", "sql.exec")


def test_the_second_sample_stops_who_is_external_and_who_is_not_known_not_to_be() -> None:
    rules = pipeline(HOUSE + POLICY + indented(CEDAR + OPEN))
    found = {agent: judged(rules, agent, "wire", {}, "finance-restricted") for agent in ROLES}
    assert {agent: isinstance(verdict, Allow) for agent, verdict in found.items()} == {
        "dev": True,
        "ann": True,
        "odd": False,
        "new": False,
    }
    refusal = refused(found["new"])
    assert "`policy.text:14:1`" in refusal.detail
    assert "policy.text" not in refusal.text, "who is refused is not told how the rules read"


def test_a_house_without_the_servers_of_the_sample_is_told_so_and_takes_it() -> None:
    text = POLICY + indented(CEDAR) + "backends: {sql-prd: {}}\n"
    told = {(one.line, one.column): one.message for one in loads(text, "aegis.yaml").warnings}
    assert told == {
        place(text, '"Developer"'): "there is no agent with the role `Developer`, so this policy applies to none",
        place(text, '"sql-prod"'): "there is no backend `sql-prod`, so this policy applies to none",
        place(text, '"finance-restricted"'): "there is no backend `finance-restricted`, so this policy applies to none",
    }


@pytest.mark.parametrize(
    "pattern", [r"(?i)^\\s*SELECT\\s", r"^SELECT\\b", r"(?i)^\\s*(SELECT|INSERT)\\s", r"(?i)^\\s*(?:select)\\s+"]
)
def test_the_idiom_is_known_in_its_usual_spellings(pattern: str) -> None:
    rules = pipeline(HOUSE + POLICY + indented(CEDAR.replace(r"(?i)^\\s*SELECT\\s", pattern)))
    assert isinstance(judged(rules, "dev", "sql.query", {"sql": "select 1"}), Allow)
    inserting = judged(rules, "dev", "sql.query", {"sql": "insert into t values (1)"})
    assert isinstance(inserting, Allow) is ("INSERT" in pattern)


def place(text: str, word: str) -> tuple[int, int]:
    """Line and column, from 1, of the one place where a word stands."""
    assert text.count(word) == 1
    at = text.index(word)
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


@pytest.mark.parametrize(
    ("wrong", "at"),
    [
        (r'context.arguments.sql.matches("DROP")', '"DROP"'),
        (r'context.target.matches("(?i)^\\s*SELECT\\s")', "matches"),
        (r'context.arguments.sql.matches("(?i)^\\s*SELECT\\s|.*")', r'"(?i)^\\s*SELECT\\s|.*"'),
        ("context.arguments.sql.matches(context.target)", "matches"),
    ],
)
def test_any_other_regular_expression_is_a_fault_at_its_place(wrong: str, at: str) -> None:
    text = POLICY + indented(CEDAR.replace(r'context.arguments.sql.matches("(?i)^\\s*SELECT\\s")', wrong))
    with pytest.raises(ConfigFaults) as raised:
        loads(text, "aegis.yaml")
    (fault,) = raised.value.faults
    assert (fault.file, (fault.line, fault.column), fault.path) == ("aegis.yaml", place(text, at), "policy.text")
    assert "`matches`" in fault.message
    assert "constraints" in fault.hint


def test_the_policies_in_the_readme_load_and_say_no_less() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```cedar\n(.*?)```", readme, re.DOTALL)
    rules = pipeline(HOUSE + POLICY + indented(text))
    assert isinstance(judged(rules, "dev", "sql.query", {"sql": "select 1"}), Allow)
    assert isinstance(judged(rules, "dev", "sql.query", {"sql": "drop table users"}), Deny)
    assert isinstance(judged(rules, "new", "wire", {}, "finance-restricted"), Deny)
