"""Cases are judged by the stages themselves; a slip in a case is a fault, and a rule that no case shows is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegis_daemon.config.cases import Result, Run, beside, run, usual
from aegis_daemon.config.source import Fault

HOUSE = """\
backends: {files: {}, mail: {}, sql.prod: {}}
queue: {files: {global_rate_limits: {put: 5/hour}}}
agents:
  bot:
    roles: [Dev]
    backends:
      files:
        allowed: true
        tool_denylist: [rm, "rm_*"]
        approval_required: [pay]
        second_approver: [wipe]
        rate_limits: {put: 1/hour}
        server_requests: [roots, elicitation]
        resource_denylist: ["file:///etc/*"]
      mail: {allowed: true, tool_allowlist: [send], prompt_allowlist: [hello]}
  ann: {backends: {files: {allowed: true}}}
deny: {tools: ["*drop*", mail.purge]}
constraints:
  pay: {arguments: {eur: {max: 5}, to: {one_of: [a, b], optional: true}}, extra: forbid, budgets: {eur: {max: 9, window: 1d}}}
  sql: {operations: [SELECT], argument: q, dialect: sqlite}
transforms:
  get: {redact: ["$.response.email", "$.request.token", "$.response.phone"]}
policy:
  files: [rules.cedar]
"""
RULES = """\
@id("devs") permit(principal in Role::"Dev", action, resource);
@id("no-prod") forbid(principal, action, resource) when { context.arguments has env && context.arguments.env == "prod" };
permit(principal == Agent::"ann", action, resource);
@id("office") forbid(principal, action, resource) when { context.target == "late" && context.time.hour >= 18 };
@id("no-local-roots") forbid(principal, action == Action::"roots/list", resource) when { context.target like "file:*" };
"""


class Place:
    """A directory with the configuration above, and cases beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "aegis.yaml").write_text(HOUSE)
        (path / "rules.cedar").write_text(RULES)

    def run(self, cases: str, *, head: str = "agent: bot\n") -> tuple[list[Run], list[Fault]]:
        (self.path / "a.test.yaml").write_text(f"{head}cases:\n{cases}")
        return run([str(self.path / "a.test.yaml")], str(self.path / "aegis.yaml"))

    def one(self, case: str) -> Result:
        runs, faults = self.run(f"  - {{name: it, {case}}}\n")
        assert faults == []
        (result,) = runs[0].results
        return result

    def coverage(self, *cases: str) -> dict[str, tuple[str, ...]]:
        runs, faults = self.run("".join(f"  - {{name: it, {case}}}\n" for case in cases))
        assert faults == []
        return {rule.place: rule.missing for rule in runs[0].coverage.rules.values()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- what becomes of a call -------------------------------------------------------------------------------------------

BOT = "agents.bot.backends"
JUDGED = [
    ("call: files.get", "allow", "devs"),
    ("call: files.get, agent: ann", "allow", "rules.cedar:3"),
    ("call: files.get, arguments: {env: prod}", "deny", "no-prod"),
    ("call: files.get, arguments: {env: PROD}", "deny", "no-prod"),
    ("call: files.rm", "hidden", "tool_denylist"),
    ("call: files.rm_all", "hidden", f"{BOT}.files.tool_denylist.rm_*"),
    ("call: files.drop_it", "hidden", "deny.tools"),
    ("call: mail.purge", "hidden", "deny.tools.mail.purge"),
    ("call: mail.send", "allow", "tool_allowlist"),
    ("call: mail.other", "hidden", "acl"),
    ("call: files.pay, arguments: {eur: 2}", "ask", "approval_required"),
    ("call: files.pay, arguments: {eur: 6}", "deny", "constraints.pay.arguments.eur"),
    ("call: files.pay, arguments: {eur: 2, to: c}", "deny", "constraints.pay.arguments.to"),
    ("call: files.pay, arguments: {EUR: 2}", "deny", "constraints"),
    ("call: files.pay, arguments: {eur: 2, x: 9}", "deny", "constraints.pay.extra"),
    ("call: files.PAY, arguments: {eur: 6}", "deny", "constraints.pay.arguments.eur"),
    ("call: files.wipe", "ask", "second_approver"),
    ("call: files.put", "allow", f"{BOT}.files.rate_limits.put"),
    ("call: files.put", "allow", "queue.files.global_rate_limits.put"),
    ("call: files.sql, arguments: {q: SELECT 1}", "allow", "devs"),
    ("call: files.sql, arguments: {q: DELETE FROM t}", "deny", "constraints.sql.operations"),
    ("call: sql.prod.x", "hidden", "acl"),
    ("method: resources/read, backend: files, uri: 'file:///tmp/x'", "allow", "devs"),
    ("method: resources/read, backend: files, uri: 'file:///tmp/../etc/x'", "hidden", "resource_denylist"),
    ("method: prompts/get, backend: mail, prompt: hello", "allow", "prompt_allowlist.hello"),
    ("method: prompts/get, backend: mail, prompt: other", "hidden", "acl"),
    ("method: elicitation/create, backend: files, arguments: {message: x}", "allow", "server_requests"),
    ("method: elicitation/create, backend: mail, arguments: {message: x}", "deny", "acl"),
    ("call: files.late", "allow", "devs"),
    ("call: files.late, at: '2026-11-26T17:59:59Z'", "allow", "devs"),
    ("call: files.late, at: '2026-11-26T18:00:00+00:00'", "deny", "office"),
    ("call: files.late, at: '2026-11-26T18:30:00+01:00'", "allow", "devs"),
]


@pytest.mark.parametrize(("call", "verdict", "by"), JUDGED)
def test_the_verdict_and_the_rule_behind_it_are_those_of_the_stages(
    place: Place, call: str, verdict: str, by: str
) -> None:
    result = place.one(f"{call}, expect: {verdict}, by: '{by}'")
    assert (result.got, result.wrong) == (verdict, "")


@pytest.mark.parametrize("verdict", ["allow", "deny", "ask", "hidden"])
@pytest.mark.parametrize(("call", "got"), [(call, got) for call, got, _ in JUDGED[:12:2]])
def test_what_is_not_as_expected_is_told_and_a_hidden_tool_is_a_denied_one(
    place: Place, call: str, got: str, verdict: str
) -> None:
    result = place.one(f"{call}, expect: {verdict}")
    fine = verdict == got or (verdict, got) == ("deny", "hidden")
    assert bool(result.wrong) is not fine
    assert result.steps


def test_another_rule_than_the_one_named_is_told(place: Place) -> None:
    result = place.one("call: files.rm, expect: deny, by: no-prod")
    assert "it is by `acl`" in result.wrong
    assert "tool_denylist.rm`" in result.wrong


def test_observe_mode_is_judged_as_if_it_were_enforced(place: Place) -> None:
    (place.path / "aegis.yaml").write_text(HOUSE + "mode: observe\n")
    assert place.one("call: files.rm, expect: hidden").wrong == ""


def test_several_calls_that_are_alike_are_one_case_each(place: Place) -> None:
    runs, _ = place.run("  - {name: it, call: [files.get, files.rm], expect: allow}\n")
    assert [(one.call, bool(one.wrong)) for one in runs[0].results] == [("files.get", False), ("files.rm", True)]


def test_a_call_that_cannot_be_made_is_no_refusal(place: Place) -> None:
    result = place.one("method: resources/read, backend: files, expect: deny")
    assert (result.got, "`uri`" in result.wrong) == ("no call", True)


# --- answers ----------------------------------------------------------------------------------------------------------

GET = "call: files.get, arguments: {token: s, x: 1}"
ANSWERS: list[tuple[str, bool]] = [
    ("answer: {email: a, n: 1}, expect_answer: {email: '[redacted]', n: 1}", True),
    ("answer: {email: a, n: 1}, expect_answer: {n: 1, email: '[redacted]'}", True),
    ("answer: {email: a, n: 1}, expect_answer: {email: '[redacted]', n: true}", False),
    ("answer: {email: a}, expect_answer: {email: a}", False),
    ("answer: {n: a}, expect_answer: {n: a}", True),
    ("content: [{type: text, text: '{\"email\":1}'}], "
     "expect_content: [{type: text, text: '{\"email\":\"[redacted]\"}'}]", True),
    ("content: [{type: text, text: hello}], expect_content: [{type: text, text: hello}]", False),
    ("expect_logged: {token: '[redacted]', x: 1}", True),
    ("expect_logged: {token: s, x: 1}", False),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "fine"), ANSWERS)
def test_what_is_left_of_an_answer_and_of_the_log_is_compared(place: Place, answer: str, fine: bool) -> None:
    assert (place.one(f"{GET}, {answer}").wrong == "") is fine


def test_an_answer_to_a_call_that_is_refused_is_none(place: Place) -> None:
    result = place.one("call: files.rm, answer: {n: 1}, expect_answer: {n: 1}")
    assert "it is refused" in result.wrong


def test_roots_that_a_policy_forbids_are_left_out(place: Place) -> None:
    case = "method: roots/list, backend: files, answer: {roots: [{uri: 'file:///x'}, {uri: 'https://x'}]}"
    assert place.one(f"{case}, expect_answer: {{roots: [{{uri: 'https://x'}}]}}").wrong == ""
    assert "the server would see" in place.one(f"{case}, expect_answer: {{roots: []}}").wrong
    assert place.coverage(f"{case}, expect_answer: {{roots: []}}")["no-local-roots"] == ()


# --- coverage ---------------------------------------------------------------------------------------------------------


def test_every_rule_there_is_has_to_be_covered(place: Place) -> None:
    missing = place.coverage("call: files.nothing, agent: ann, expect: allow")
    bot = f"{BOT}.files"
    assert {name for name, lacks in missing.items() if lacks} == set(missing) - {"rules.cedar:3:1"}
    assert set(missing) == {
        "devs", "no-prod", "rules.cedar:3:1", "office", "no-local-roots", "deny.tools.*drop*", "deny.tools.mail.purge",
        f"{bot}.tool_denylist.rm", f"{bot}.tool_denylist.rm_*", f"{bot}.approval_required.pay",
        f"{bot}.second_approver.wipe", f"{bot}.rate_limits.put", f"{bot}.server_requests.roots",
        f"{bot}.server_requests.elicitation", f"{bot}.resource_denylist.file:///etc/*",
        f"{BOT}.mail.tool_allowlist.send", f"{BOT}.mail.prompt_allowlist.hello", "queue.files.global_rate_limits.put",
        "constraints.pay.arguments.eur", "constraints.pay.arguments.to", "constraints.pay.extra",
        "constraints.pay.budgets.eur", "constraints.sql.operations", "transforms.get.redact.$.response.email",
        "transforms.get.redact.$.request.token", "transforms.get.redact.$.response.phone",
    }  # fmt: skip


def test_all_the_cases_above_cover_what_they_name(place: Place) -> None:
    cases = [f"{call}, expect: {verdict}" for call, verdict, _ in JUDGED]
    cases += [f"{GET}, {answer}" for answer, _ in ANSWERS]
    missing = {name: lacks for name, lacks in place.coverage(*cases).items() if lacks}
    assert missing == {
        "constraints.pay.arguments.to": ("let a call pass",),
        "transforms.get.redact.$.response.phone": ("redacted anything",),
        "no-local-roots": ("forbidden one",),
        f"{BOT}.files.server_requests.roots": ("let a call pass",),
    }


@pytest.mark.parametrize(
    ("cases", "rule", "lacks"),
    [
        (["call: files.pay, arguments: {eur: 1}, expect: ask"], "constraints.pay.arguments.eur", ("refused one",)),
        (["call: files.pay, arguments: {eur: 6}, expect: deny"], "constraints.pay.arguments.eur", ("let a call pass",)),
        (["call: files.pay, arguments: {eur: 1}, expect: ask"], "constraints.pay.arguments.to",
         ("let a call pass", "refused one")),
        (["call: files.pay, arguments: {eur: 6, env: prod}, expect: deny"], "constraints.pay.arguments.eur",
         ("let a call pass", "refused one")),
        (["call: files.rm, arguments: {env: prod}, expect: deny"], "no-prod", ("forbidden one",)),
        (["call: files.get, arguments: {env: prod}, expect: deny"], "devs", ("permitted a call",)),
        (["call: files.pay, arguments: {eur: 6}, expect: deny"], "devs", ()),
        (["call: files.pay, arguments: {eur: 6}, expect: deny"], "constraints.pay.budgets.eur", ("counted a call",)),
        (["call: files.pay, arguments: {eur: 2}, expect: ask"], "constraints.pay.budgets.eur", ()),
        (["call: files.wipe, arguments: {env: prod}, expect: deny"], f"{BOT}.files.second_approver.wipe",
         ("asked a person",)),
        (["call: files.get, arguments: {env: 7}, expect: deny"], "no-prod", ("forbidden one",)),
    ],
)  # fmt: skip
def test_only_what_decides_or_lets_pass_is_covered(
    place: Place, cases: list[str], rule: str, lacks: tuple[str, ...]
) -> None:
    assert place.coverage(*cases)[rule] == lacks


# --- what is written --------------------------------------------------------------------------------------------------

FAULTY: list[tuple[str, int, str, str]] = [
    ("  - {name: it, call: files.get, expct: allow}", 3, "unknown key `expct`", "`expect`"),
    ("  - {name: it, call: files.get, expect: alow}", 3, "`alow` is none of", "`allow`"),
    ("  - {name: it, agent: bt, call: files.get, expect: deny}", 3, "unknown agent `bt`", "`bot`"),
    ("  - {name: it, call: fils.get, expect: deny}", 3, "`fils.get` is no tool of a backend", "`files.get`"),
    ("  - {name: it, call: get, expect: deny}", 3, "`get` is no tool of a backend", "backend.tool"),
    ("  - {name: it, method: prompts/get, backend: fils, expect: deny}", 3, "unknown backend `fils`", "`files`"),
    ("  - {name: it, method: prompts/gt, backend: files, expect: deny}", 3, "there is no method", "prompts/get"),
    ("  - {name: it, call: files.get, expect: allow, by: dvs}", 3, "there is no rule `dvs`", "`devs`"),
    ("  - {name: it, call: files.get, expect: allow, by: tool_denylst}", 3, "there is no rule", "`tool_denylist`"),
    ("  - {name: it, call: files.get}", 3, "the case expects nothing", "expect: allow"),
    ("  - {name: it, expect: deny}", 3, "a case has a `call` or a `method`", "backend.tool"),
    ("  - {call: files.get, expect: deny}", 3, "`name` is missing", "add `name`"),
    ("  - {name: it, call: files.get, expect: allow, at: '2026-11-26T09:00:00'}", 3, "is no time", "zone"),
    ("  - {name: it, call: files.get, expect: allow, at: noon}", 3, "`noon` is no time", "zone"),
    ("  - {name: it, call: files.get, uri: x, expect: allow}", 3, "belong to a `method`", "remove"),
    ("  - {name: it, call: files.get, answer: {}, expect: allow}", 3, "goes with `expect_answer`", "add"),
    ("  - {name: it, call: files.get, expect: allow, arguments: [1]}", 3, "a list is not a mapping", "name: value"),
    ("  - {name: it, call: files.get, expect: allow, arguments: {a: 1, A: 2}}", 3, "no call can have", "differ"),
    ("  - {name: it, call: files.get, expect: allow, arguments: {a: .nan}}", 3, "no call can have", "JSON"),
    ("  []", 3, "there are no cases", "add one"),
    ("  - it", 3, "where settings belong", "indented"),
    ("  - {name: it, name: it, call: files.get, expect: allow}", 3, "duplicate key `name`", "line 3"),
]


@pytest.mark.parametrize(("case", "line", "message", "hint"), FAULTY)
def test_a_slip_is_a_fault_with_its_place_and_nothing_is_judged(
    place: Place, case: str, line: int, message: str, hint: str
) -> None:
    runs, faults = place.run(f"{case}\n")
    assert runs == []
    (found,) = faults
    assert (found.file, found.line) == (str(place.path / "a.test.yaml"), line)
    assert found.column > 0
    assert message in found.message
    assert hint in found.hint


def test_all_faults_of_all_files_are_told_at_once(place: Place) -> None:
    cases = "".join(
        f"{case}\n" for case, _, message, _ in FAULTY if message.startswith(("unknown a", "there is no ru"))
    )
    (place.path / "b.test.yaml").write_text("config: away.yaml\ncases: [{name: it, call: files.get, expect: deny}]")
    (place.path / "a.test.yaml").write_text(f"agent: bot\ncases:\n{cases}")
    files = [str(place.path / name) for name in ("a.test.yaml", "b.test.yaml", "away.test.yaml")]
    runs, faults = run(files, str(place.path / "aegis.yaml"))
    assert runs == []
    assert sorted((Path(one.file).name, one.line) for one in faults) == [
        ("a.test.yaml", 3), ("a.test.yaml", 4), ("a.test.yaml", 5), ("away.test.yaml", 0), ("away.yaml", 0),
    ]  # fmt: skip


def test_a_case_needs_an_agent(place: Place) -> None:
    _, faults = place.run("  - {name: it, call: files.get, expect: allow}\n", head="")
    assert [one.message for one in faults] == ["`agent` is missing"]


# --- which files ------------------------------------------------------------------------------------------------------


def test_files_are_found_beside_the_configuration_and_its_policies_and_below_a_directory(tmp_path: Path) -> None:
    for name in ("rules/more", ".hidden", "rules/node_modules"):
        (tmp_path / name).mkdir(parents=True)
    wanted = {"a.test.yaml", "rules/b.test.yaml"}
    other = {"rules/more/c.test.yaml", ".hidden/d.test.yaml", "rules/node_modules/e.test.yaml", "rules/f.yaml"}
    for name in wanted | other:
        (tmp_path / name).write_text("")
    (tmp_path / "rules/p.cedar").write_text("permit(principal, action, resource);")
    (tmp_path / "aegis.yaml").write_text("policy: {files: [rules/p.cedar]}\n")

    def names(found: list[str]) -> set[Any]:
        return {str(Path(one).relative_to(tmp_path)) for one in found}

    assert names(usual(str(tmp_path / "aegis.yaml"))) == wanted
    assert names(beside(str(tmp_path))) == wanted | {"rules/more/c.test.yaml"}
    assert beside(str(tmp_path / "rules/f.yaml")) == [str(tmp_path / "rules/f.yaml")]
