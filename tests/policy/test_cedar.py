from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import tool
from policing import AMY, allows, faults, gate, indented, named, pipeline, refused

from aegis_daemon.config.load import ConfigFaults, digest, load, loads
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Deny, Pass
from aegis_daemon.policy.cedar import Engine, Question, passes
from aegis_daemon.policy.dialect import MAX_DEPTH, MAX_TOKENS, balanced, chain, read
from aegis_daemon.policy.groups import Group

ALL = "permit(principal, action, resource);"


# --- what passes ------------------------------------------------------------------------------------------------------


def test_nothing_passes_without_a_permit() -> None:
    policy = gate('permit(principal, action, resource == Server::"other");')
    refusal = refused(policy.decide(tool("read"), 0.0))
    assert (refusal.stage, refusal.code, refusal.policy) == ("policy", "not_allowed", "")
    assert "no policy permits it" in refusal.detail


def test_a_forbid_goes_before_every_permit() -> None:
    assert not allows(
        gate(ALL * 1 + 'forbid(principal, action, resource) when { context.target == "read" };'), tool("read")
    )


def test_the_policy_that_decided_is_named_in_the_denial_and_its_place_in_the_log() -> None:
    policy = gate(ALL + '@id("no-prod") forbid(principal, action, resource) when { context.arguments.env == "prod" };')
    refusal = refused(policy.decide(tool("deploy", {"env": "prod"}), 0.0))
    assert (refusal.policy, refusal.code) == ("no-prod", "policy_denied")
    assert "forbidden by `no-prod`" in refusal.detail
    assert "no-prod" not in refusal.text
    nameless = refused(
        gate(ALL + "\n forbid(principal, action, resource) when { context.arguments.n == 1 };").decide(
            tool("t", {"n": 1}), 0.0
        )
    )
    assert "`p.cedar:2:2`" in nameless.detail


@pytest.mark.parametrize(
    "condition",
    [
        "context.arguments.env == 1",
        "context.arguments.missing.deeper",
        "context.arguments.n < 3",
        "principal.team == 1",
    ],
)
def test_a_policy_that_cannot_be_judged_refuses_even_beside_one_that_permits(condition: str) -> None:
    policy = gate(ALL + f'@id("odd") forbid(principal, action, resource) when {{ {condition} }};')
    refusal = refused(policy.decide(tool("t", {"env": "x", "n": "five"}), 0.0))
    assert refusal.code in ("policy_denied", "not_judged", "not_allowed")


def test_what_is_not_known_of_an_agent_never_speaks_for_it() -> None:
    text = ALL + "forbid(principal, action, resource) when { principal.is_external == true };"
    for known, passing in (
        ({}, False),
        ({"is_external": True}, False),
        ({"is_external": "false"}, False),
        ({"is_external": 0}, False),
        ({"is_external": False}, True),
    ):
        assert allows(gate(text, attributes=known), tool("t")) is passing, known
    stranger = msgspec.structs.replace(tool("t"), principal=Principal("nobody"))
    assert not allows(gate(text, attributes={"is_external": False}), stranger)


def test_roles_tenants_servers_and_attributes_are_there_to_ask_for() -> None:
    amy = Principal("amy", tenant="acme", roles=("Dev", "Ops"))
    of = msgspec.structs.replace(tool("t"), principal=amy)
    for condition in (
        'principal in Role::"Dev"', 'principal in Role::"Ops"', 'principal in Tenant::"acme"', 'principal == Agent::"amy"',
        'principal.name == "amy"', 'principal.tenant == "acme"', 'principal.roles.contains("Dev")', 'resource.name == "files"',
        'principal.level > 3', 'principal.teams.containsAll(["a", "b"])', 'resource == Server::"files"', "resource is Server",
    ):  # fmt: skip
        text = f"permit(principal, action, resource) when {{ {condition} }};"
        assert allows(gate(text, attributes={"level": 4, "teams": ("a", "b", "c")}), of), condition
        assert (
            not allows(gate(text, attributes={"level": 3, "teams": ("a",)}), tool("t", agent="bob", backend="mail"))
            or condition == "resource is Server"
        )


# --- what may be seen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (ALL, True),
        ("", False),
        ('permit(principal, action, resource) when { context.target == "t" };', True),
        ('permit(principal, action, resource) when { context.target == "u" };', False),
        ('permit(principal, action, resource) when { context.arguments.path like "/data/*" };', True),
        (ALL + "forbid(principal, action, resource) when { context.arguments.n > 3 };", True),
        (ALL + 'forbid(principal, action, resource) when { context.target == "t" };', False),
        (ALL + 'forbid(principal, action, resource) when { context.target == "t" && context.arguments.n > 3 };', True),
        (ALL + 'forbid(principal, action, resource) unless { context.target == "u" };', False),
        (ALL + "forbid(principal, action, resource) when { context has sql };", True),
        ("permit(principal, action, resource) when { context has sql && context.sql.parsed };", True),
        ("permit(principal, action, resource) when { !(context has sql) };", True),
        (ALL + "forbid(principal, action, resource) when { principal.nothing };", False),
        ("permit(principal, action, resource) when { context.time.hour == 3 };", True),
        ("permit(principal, action, resource) when { context.arguments.n > 3 && context.target == \"u\" };", True),
        ('permit(principal == Agent::"bob", action, resource) when { context.arguments.n > 3 };', False),
    ],
)  # fmt: skip
def test_a_tool_is_hidden_only_if_it_is_refused_whatever_the_arguments(text: str, seen: bool) -> None:
    policy = gate(text or 'permit(principal, action == Action::"prompts/get", resource);')
    assert policy.visible(AMY, "files", "tool", "t") is seen
    if not seen:
        for arguments in ({}, {"n": 4}, {"path": "/data/x"}, {"sql": "select 1"}):
            assert refused(policy.decide(tool("t", arguments), 0.0)).code == "not_allowed"


def test_what_is_refused_for_its_arguments_alone_says_so_and_what_is_hidden_reads_as_if_it_were_not_there() -> None:
    policy = gate('permit(principal, action, resource) when { context.target == "t" && context.arguments.n == 1 };')
    assert "not available" in refused(policy.decide(tool("other"), 0.0)).text
    assert "this call" in refused(policy.decide(tool("t", {"n": 2}), 0.0)).text


def test_prompts_and_resources_are_shown_and_hidden_alike() -> None:
    policy = gate(
        'permit(principal, action == Action::"prompts/get", resource) when { context.target == "p" };permit(principal, action == Action::"resources/subscribe", resource) when { context.target like "file:///pub/*" };'
    )
    assert policy.visible(AMY, "files", "prompt", "p")
    assert not policy.visible(AMY, "files", "prompt", "q")
    assert policy.visible(AMY, "files", "resource", "file:///pub/a")
    assert not policy.visible(AMY, "files", "resource", "file:///etc/a")
    assert not policy.visible(AMY, "files", "tool", "p")


def test_a_template_is_shown_where_some_resource_of_it_may_be() -> None:
    text = (
        'permit(principal, action == Action::"resources/read", resource) when { context.target like "file:///pub/*" };'
    )
    assert gate(text).visible(AMY, "files", "resource", "file:///{path}")
    assert not gate(text.replace("resources/read", "tools/call")).visible(AMY, "files", "resource", "file:///{path}")


CONDITIONS = st.sampled_from([
    'context.target == "t"', 'context.target == "u"', 'context.arguments.n > 3', 'context.arguments has n', 'context has sql',
    'context.arguments.m == "x"', 'context.primitive == "tool"', 'principal in Role::"R"', 'context.time.hour < 24',
    '["t", "v"].contains(context.target)', 'context.arguments.missing', 'true', 'resource.name == "files"',
])  # fmt: skip
POLICIES = st.lists(
    st.builds(
        lambda effect, server, action, conditions, kind: (
            f"{effect}(principal, action{action}, resource{server}) "
            + (f"{kind} {{ {' && '.join(conditions)} }};" if conditions else ";")
        ),
        st.sampled_from(["permit", "permit", "forbid"]),
        st.sampled_from(["", ' == Server::"files"', ' in Server::"mail"']),
        st.sampled_from(["", ' == Action::"tools/call"', ' in [Action::"tools/call", Action::"prompts/get"]']),
        st.lists(CONDITIONS, max_size=3),
        st.sampled_from(["when", "unless"]),
    ),
    min_size=1,
    max_size=6,
)
ARGUMENTS = st.sampled_from(
    [{}, {"n": 4}, {"n": 1}, {"m": "x", "n": 9}, {"m": "X"}, {"sql": "select 1"}, {"missing": True}, {"n": "4"}]
)


@given(
    POLICIES,
    ARGUMENTS,
    st.sampled_from(["t", "u", "v", "w"]),
    st.sampled_from(["files", "mail", "else"]),
    st.sampled_from(["tool", "prompt"]),
)
def test_the_few_that_may_concern_a_call_decide_as_all_of_them_together(
    texts: list[str], arguments: dict[str, Any], name: str, backend: str, subject: str
) -> None:
    policy = gate("\n".join(texts), servers=("files", "mail"))
    of = tool(name, arguments, backend=backend) if subject == "tool" else named("prompt", name, backend=backend)
    whole = _unsliced(texts)
    wanted = whole.decide(of, 0.0)
    found = policy.decide(of, 0.0)
    assert isinstance(found, Pass) is isinstance(wanted, Pass)
    # What is hidden never passes, and the second answer is the first.
    if not policy.visible(of.principal, backend, subject, name):
        assert isinstance(found, Deny)
    assert policy.decide(of, 0.0) == found


def _unsliced(texts: list[str]) -> Any:
    policy = gate("\n".join(texts), servers=("files", "mail"))
    engine = policy._engine
    assert engine is not None
    group = Group(engine._members)
    engine.groups = lambda *_: (group,)  # type: ignore[method-assign]
    return policy


def test_policies_for_other_servers_and_tools_are_not_asked() -> None:
    text = "\n".join(
        f'permit(principal, action == Action::"tools/call", resource == Server::"s{n % 10}") when {{ context.target == "t{n}" && context.arguments.x > 1 }};'
        for n in range(200)
    )
    engine = Engine(read(text, "p.cedar"), {}, [f"s{n}" for n in range(10)])
    asked = [one.statement for group in engine.groups("s3", "tools/call", "t13") for one in group._members]
    assert [one.targets for one in asked] == [frozenset({"t13"})]
    assert engine.groups("s4", "tools/call", "t13") == ()


@pytest.mark.parametrize(
    ("condition", "targets"),
    [
        ('context.target == "a"', {"a"}),
        ('"a" == context.target && context.arguments.x', {"a"}),
        (
            'context.primitive == "tool" && (context.target == "a" || context.target == "b") && context.arguments.x',
            {"a", "b"},
        ),
        ('principal in Role::"x" && ["a", "b"].contains(context.target)', {"a", "b"}),
        ('context.target == "a" && context.target == "b"', set()),
        ('context.arguments.x && context.target == "a"', None),
        ('principal.level > 3 && context.target == "a"', None),
        ('context.target == "a" || context.arguments.x', None),
        ('context.target like "a*"', None),
        ('!(context.target == "a")', None),
    ],
)
def test_a_policy_is_set_aside_for_its_target_only_where_nothing_before_that_can_fail(
    condition: str, targets: set[str] | None
) -> None:
    (statement,) = read(f"forbid(principal, action, resource) when {{ {condition} }};", "p.cedar")
    assert statement.targets == targets


def test_a_group_over_names_alone_is_remembered_and_one_over_arguments_is_asked_each_time() -> None:
    names = gate('permit(principal, action, resource) when { context.target == "t" && principal in Role::"R" };')
    assert names.by_name
    arguments = gate(ALL + 'forbid(principal, action, resource == Server::"mail") when { context.arguments.n == 1 };')
    assert not arguments.by_name
    assert allows(arguments, tool("t", {"n": 1}))
    assert not allows(arguments, tool("t", {"n": 1}, backend="mail"))
    assert allows(arguments, tool("t", {"n": 2}, backend="mail"))


def test_without_policies_there_is_no_gate_and_no_library() -> None:
    assert pipeline("agents: {a: {}}\n").gate("policy") is None
    code = "import sys; from aegis_daemon.config.load import loads; from aegis_daemon.config.runtime import build; build(loads('agents: {a: {}}', 'x').config, ''); sys.exit('cedarpy' in sys.modules)"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


# --- what is refused when it is loaded -----------------------------------------------------------------------------------

WRONG = [
    ("permit(principal, action, resource)\nwhen { context.target + };", 2, 26, "unexpected token"),
    ("permit(principal, action, resource)\n  when { context.target context.primitive };", 2, 25, "unexpected token"),
    ('permit(principal, action, resource)\nwhen { context.target == "a\\s" };', 2, 26, "escape"),
    ('permit(principal, action, resource)\nwhen { context.target == "a };', 2, 26, "does not end"),
    ("permit(principal, action, resource)\nwhen { context.target == 'a' };", 2, 26, "no part"),
    ("permit(principal, action, resource)\nwhen { foo(1) };", 2, 8, "valid function"),
    ("permit(principal, action, resource)\nwhen { 99999999999999999999 == 1 };", 2, 8, "integer"),
    ("permit(principal, action, resource)\nwhen { contex.target == 1 };", 2, 8, "contex"),
    ("permit(principal, action, principal);", 1, 27, "must be used"),
    ("permit(principal == ?principal, action, resource);", 1, 21, "slots"),
    ("permit(principal, action, resource)", 1, 35, "does not end"),
    ("permit(principal, action, resource", 1, 7, "never closed"),
    ("permit(principal, action, resource));", 1, 36, "closes nothing"),
    ('permit(principal == User::"x", action, resource);', 1, 21, "`User`"),
    ('permit(principal is Bot, action, resource);', 1, 21, "`Bot`"),
    ('permit(principal, action == Action::"tool/call", resource);', 1, 37, "`tool/call`"),
    ("permit(principal, action, resource) when { context.argument.x == 1 };", 1, 52, "`argument`"),
    ("permit(principal, action, resource) when { context.time.hours > 3 };", 1, 57, "`hours`"),
    ("permit(principal, action, resource) when { context.time.hour == context.session.time };", 1, 81, "`time`"),
    ("permit(principal, action, resource) when { context.rate has agnt };", 1, 61, "`agnt`"),
    ("permit(principal, action, resource) when { context.rate.agent.use > 3 };", 1, 63, "`use`"),
    ('@id("a") permit(principal, action, resource);\n@id("a") forbid(principal, action, resource);', 2, 1, "`a`"),
    ('permit(principal, action, resource) when { context.target == "ä€" && context.x };', 1, 78, "`x`"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "column", "word"), WRONG)
def test_what_cannot_be_used_is_a_fault_at_its_place(text: str, line: int, column: int, word: str) -> None:
    found = faults(f"{text}\n")
    assert [(one.line, one.column) for one in found] == [(line, column)], found
    assert word in found[0].message
    assert found[0].hint


def test_all_faults_are_told_at_once() -> None:
    found = faults(
        'permit(principal);\npermit(principal == User::"x", action, resource);\nforbid(principal, action, resource) when { contex };'
    )
    assert [one.line for one in found] == [1, 2, 3]


@pytest.mark.parametrize(("opening", "closing"), ["()", "[]", "{}"])
@pytest.mark.parametrize("depth", [MAX_DEPTH, 100_000])
def test_brackets_without_end_are_refused_before_cedar_sees_them(opening: str, closing: str, depth: int) -> None:
    found = faults(f"permit(principal, action, resource) when {{ {opening * depth}1{closing * depth} }};")
    assert len(found) == 1
    assert "nested" in found[0].message


@pytest.mark.parametrize("count", [1, 40, 400])
@pytest.mark.parametrize("sign", ["&&", "||"])
def test_long_rows_of_conditions_are_taken_and_mean_what_they_say(count: int, sign: str) -> None:
    names = [f"t{number}" for number in range(count)]
    row = f" {sign} ".join(f'context.target == "{name}"' for name in names)
    policy = gate(f"permit(principal, action, resource) when {{ {row} }};")
    passing = [name for name in (names[0], names[-1], "other") if allows(policy, tool(name))]
    assert passing == ([names[0], names[-1]] if sign == "||" or count == 1 else [])


def test_a_statement_without_end_is_refused() -> None:
    found = faults("permit(principal, action, resource) when { " + "true && " * MAX_TOKENS + "true };")
    assert [one.message for one in found] == ["the policy is too long to be judged quickly"]


TERMS = st.recursive(
    st.integers(0, 3).map(lambda number: {"Value": number}),
    lambda inner: st.builds(
        lambda sign, left, right: {sign: {"left": left, "right": right}}, st.sampled_from(["&&", "||"]), inner, inner
    ),
    max_leaves=30,
)


@given(TERMS)
def test_balancing_keeps_every_term_in_its_place(term: Any) -> None:
    for sign in ("&&", "||"):
        assert chain(balanced(term), sign) == [balanced(one) for one in chain(term, sign)]


# --- in the configuration -----------------------------------------------------------------------------------------------


def test_policies_come_from_files_that_count_from_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "a.cedar").write_text(f'@id("a") {ALL}\n')
    (tmp_path / "aegis.yaml").write_text(f'policy:\n  files: [rules/a.cedar]\n  text: |\n    @id("b") {ALL}\n')
    loaded = load(str(tmp_path / "aegis.yaml"))
    assert [one.id for one in loaded.config.policy.statements] == ["a", "b"]
    assert loaded.config.policy.files == (str(tmp_path / "rules" / "a.cedar"),)


def test_a_changed_policy_file_is_another_configuration(tmp_path: Path) -> None:
    (tmp_path / "a.cedar").write_text(ALL)
    (tmp_path / "aegis.yaml").write_text("policy: {files: [a.cedar]}\n")
    before = load(str(tmp_path / "aegis.yaml")).config
    (tmp_path / "a.cedar").write_text(f"// a remark\n{ALL}")
    moved = load(str(tmp_path / "aegis.yaml")).config
    (tmp_path / "a.cedar").write_text(ALL.replace("permit", "forbid"))
    after = load(str(tmp_path / "aegis.yaml")).config
    assert len({digest(before), digest(moved), digest(after)}) == 3
    assert before.policy != after.policy


def test_faults_in_files_name_the_file_and_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.cedar").write_text("// good so far\npermit(principal, action);\n")
    (tmp_path / "aegis.yaml").write_text("policy: {files: [a.cedar, gone.cedar]}\nmode: odd\n")
    with pytest.raises(ConfigFaults) as raised:
        load(str(tmp_path / "aegis.yaml"))
    told = {(Path(one.file).name, one.line) for one in raised.value.faults}
    assert told == {("aegis.yaml", 2)}
    (tmp_path / "aegis.yaml").write_text("policy: {files: [a.cedar, gone.cedar]}\n")
    with pytest.raises(ConfigFaults) as raised:
        load(str(tmp_path / "aegis.yaml"))
    faulty, gone = sorted(raised.value.faults, key=lambda one: one.file.endswith("yaml"))
    assert (faulty.file, faulty.line, faulty.path) == ("a.cedar", 2, "policy.files[0]")
    assert faulty.source == "permit(principal, action);"
    assert "cannot read `gone.cedar`" in gone.message


def test_one_id_in_two_files_is_a_fault(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.cedar").write_text(f'@id("same") {ALL}')
    (tmp_path / "aegis.yaml").write_text("policy: {files: [a.cedar, b.cedar]}\n")
    with pytest.raises(ConfigFaults, match=r"`same` of b.cedar:1 is at a.cedar:1 too"):
        load(str(tmp_path / "aegis.yaml"))


@pytest.mark.parametrize(("yaml", "word"), [
    ("policy: {evaluator: rego}", "rego"), ("policy: {failMode: open}", "open"), ("policy: {text: 3}", "3"),
    ("policy: {fail_mode: closed}", "fail_mode"), ("agents: {a: {attributes: {roles: x}}}", "roles"),
])  # fmt: skip
def test_settings_that_would_not_be_enforced_are_faults(yaml: str, word: str) -> None:
    with pytest.raises(ConfigFaults, match=word):
        loads(yaml, "aegis.yaml")


def test_the_sections_of_seed_b_without_a_policy_leave_the_lists_to_decide() -> None:
    rules = pipeline(
        "policy: {evaluator: cedar, failMode: closed}\nbackends: {jira: {}}\nagents: {amy: {backends: {jira: {allowed: true}}}}\n"
        "deny: {tools: [finance.wire_transfer]}\nallow: {tools: [jira.search, search]}\n"
    )
    assert rules.gate("policy") is None
    assert isinstance(rules.admit(tool("finance.wire_transfer", backend="jira"), 0.0), Deny)
    assert not isinstance(rules.admit(tool("search", backend="jira"), 0.0), Deny)


def test_lists_and_policies_have_to_agree() -> None:
    house = "backends: {files: {}}\nagents: {amy: {backends: {files: {allowed: true, tool_denylist: [no]}}}}\n"
    rules = pipeline(
        house
        + "policy:\n  text: |\n"
        + indented('permit(principal, action, resource) when { ["yes", "no"].contains(context.target) };')
    )
    passing = [name for name in ("yes", "no", "other") if not isinstance(rules.admit(tool(name), 0.0), Deny)]
    assert passing == ["yes"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Allow", "Deny", "NoDecision", "allow"]), st.booleans(), st.booleans(), st.booleans()
        ),
        max_size=3,
    )
)
def test_only_a_plain_allow_without_an_error_passes(found: list[tuple[str, bool, bool, bool]]) -> None:
    from aegis_daemon.policy.groups import Outcome

    outcomes = [
        Outcome(decision, (0,) * permits, (0,) * forbids, ("x",) * errors)
        for decision, permits, forbids, errors in found
    ]
    clean = all(one.decision in ("Allow", "Deny") and not one.errors and not one.forbids for one in outcomes)
    assert passes(outcomes) is (clean and any(one.decision == "Allow" and one.permits for one in outcomes))


def test_a_question_is_answered_alike_however_often_principals_change() -> None:
    engine = Engine(read('permit(principal in Role::"R", action, resource);', "p.cedar"), {}, ("files",))
    for agent, role in itertools.product(("a", "b", 'é"\\x'), ("R", "S")):
        principal = Principal(agent, roles=(role,))
        question = Question(principal, "files", "tools/call", "tool", "t", "to_server", {}, {})
        assert engine.judge(question).allowed is (role == "R")
        assert engine.possible(principal, "files", "tools/call", "tool", "t", "to_server") is (role == "R")
