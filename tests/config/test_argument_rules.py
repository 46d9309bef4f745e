"""What `constraints` and `transforms` say is what is enforced, and what cannot be enforced is a fault with its place."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import pytest
from making import tool

from aegis_daemon.config.describe import describe_settings, json_schema, masked
from aegis_daemon.config.load import ConfigFaults, digest, loads
from aegis_daemon.config.runtime import build
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.verdict import Allow, Deny

TOP = """
backends: {bank: {}, db: {}}
agents: {amy: {backends: {bank: {allowed: true}, db: {allowed: true}}}}
"""
SEED = """
constraints:
  sql.query:
    operations: [SELECT]
transforms:
  jira.search:
    redact: ["$.response.assignee.email"]
"""


def built(text: str) -> Runtime:
    loaded = loads(TOP + text, "f", env={})
    return build(loaded.config, digest(loaded.config))


def test_the_seeds_constraints_and_transforms_load_verbatim_and_hold() -> None:
    runtime = built(SEED)
    for name, backend in (("sql.query", "db"), ("query", "sql")):
        refused = runtime.pipeline.admit(tool(name, {"sql": "DROP TABLE x"}, backend=backend), 0.0)
        assert isinstance(refused, Deny)
    assert isinstance(runtime.pipeline.admit(tool("sql.query", {"sql": "SELECT 1"}, backend="db"), 0.0), Allow)
    assert runtime.transforms.of("jira", "search")


def test_sql_without_a_dialect_is_warned_about() -> None:
    (warning,) = loads(TOP + SEED, "f", env={}).warnings
    assert "no `dialect` is named" in str(warning)
    dialect = SEED.replace("[SELECT]", "[select]\n    dialect: postgres")
    assert loads(TOP + dialect, "f", env={}).warnings == ()


def test_a_rule_for_one_backend_leaves_another_alone() -> None:
    runtime = built("constraints: {bank.pay: {arguments: {amount: {max: 5}}}}")
    assert isinstance(runtime.pipeline.admit(tool("pay", {"amount": 6}, backend="bank"), 0.0), Deny)
    assert isinstance(runtime.pipeline.admit(tool("pay", {"amount": 6}, backend="db"), 0.0), Allow)


def test_a_rule_on_arguments_never_hides_its_tool() -> None:
    runtime = built("constraints: {pay: {arguments: {amount: {max: 5}}, extra: forbid}}")
    assert runtime.pipeline.visible(runtime.agents["amy"].principal, "bank", "tool", "pay")


def test_budgets_are_claims_of_the_call() -> None:
    runtime = built("constraints: {pay: {budgets: {amount: {max: '500.50', window: 24h, per: agent}}}}")
    verdict = runtime.pipeline.admit(tool("pay", {"amount": 0.1}, backend="bank"), 0.0)
    assert isinstance(verdict, Allow)
    (claim,) = verdict.claims
    assert (claim.agent, claim.amount, claim.most, claim.window_s) == ("amy", "0.1", "500.5", 86400.0)
    other = runtime.pipeline.admit(tool("pay", {"amount": 7}, backend="bank"), 0.0)
    assert isinstance(other, Allow)
    assert other.claims[0].amount == "7"


def test_a_refusal_by_a_rule_is_let_pass_and_recorded_in_observe_mode() -> None:
    runtime = built("mode: observe\nconstraints: {pay: {arguments: {amount: {max: 5}}}}")
    verdict = runtime.pipeline.admit(tool("pay", {"amount": 6}, backend="bank"), 0.0)
    assert isinstance(verdict, Allow)
    assert verdict.would is not None
    assert verdict.would.code == "constraint"


def test_without_rules_nothing_is_built_and_no_engine_is_loaded() -> None:
    assert built("").transforms is None
    assert built("").rules == ()
    program = (
        "import sys; from aegis_daemon.config.load import loads; from aegis_daemon.config.runtime import build;"
        # What looks for secrets in the log is an engine of its own.
        "build(loads('secrets: {log: off}', 'f', env={}).config, ''); import aegis_daemon.daemon.main;"
        "print([name for name in ('sqlglot', 're2', 'jsonpath', 'cedarpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("constraints: {pay: {}}", "constraints.pay", "says nothing"),
        ("constraints: {'pay*': {extra: forbid}}", "constraints", "one for each tool's name"),
        ("constraints: {pay: {operation: [SELECT]}}", "constraints.pay.operation", "did you mean `operations`?"),
        ("constraints: {pay: {operations: [DROP]}}", "constraints.pay.operations[0]", "known are SELECT"),
        ("constraints: {pay: {dialect: mysql}}", "constraints.pay", "do nothing without `operations`"),
        ("constraints: {pay: {operations: [SELECT], dialect: mysq}}", "constraints.pay.dialect", "known are"),
        ("constraints: {pay: {arguments: {p: {under: [data]}}}}", "constraints.pay.arguments.p.under[0]", "not absolute"),
        ("constraints: {pay: {arguments: {p: {under: [/a/..]}}}}", "constraints.pay.arguments.p.under[0]", "`..`"),
        ("constraints: {pay: {arguments: {p: {hosts: ['https://a']}}}}", "constraints.pay.arguments.p.hosts[0]", "not a host"),
        ("constraints: {pay: {arguments: {p: {schemes: [gopher]}}}}", "constraints.pay.arguments.p.schemes[0]", "known are"),
        ("constraints: {pay: {arguments: {p: {matches: '(?=x)'}}}}", "constraints.pay.arguments.p.matches", "RE2"),
        ("constraints: {pay: {arguments: {p: {min: 3, max: 2}}}}", "constraints.pay.arguments.p", "larger than"),
        ("constraints: {pay: {arguments: {p: {max: 1e30}}}}", "constraints.pay.arguments.p.max", "held exactly"),
        ("constraints: {pay: {arguments: {p: {max: true}}}}", "constraints.pay.arguments.p.max", "held exactly"),
        ("constraints: {pay: {arguments: {p: {min: 1, under: [/a]}}}}", "constraints.pay.arguments.p", "at once"),
        ("constraints: {pay: {arguments: {p: {domains: [a.b], hosts: [a.b]}}}}", "constraints.pay.arguments.p", "at once"),
        ("constraints: {pay: {arguments: {p: {one_of: [[1]]}}}}", "constraints.pay.arguments.p.one_of[0]", "single value"),
        ("constraints: {pay: {budgets: {p: {max: -1, window: 1h}}}}", "constraints.pay.budgets.p", "below zero"),
        ("constraints: {pay: {budgets: {p: {max: 5}}}}", "constraints.pay.budgets.p.window", "missing"),
        ("transforms: {get: {}}", "transforms.get", "says nothing"),
        ("transforms: {get: {redact: ['response.x']}}", "transforms.get.redact[0]", "character 1"),
        ("transforms: {get: {redact: ['$.response[']}}", "transforms.get.redact[0]", "character 12"),
        ("transforms: {get: {redact: ['$.reponse.x']}}", "transforms.get.redact[0]", "neither"),
        ("constraints: {pay: {budgets: {a: {max: 5, window: 1h}}}}\ntransforms: {pay: {redact: [$..a]}}", "transforms.pay.redact[0]", "a budget counts"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_hold_is_a_fault_with_its_place(text: str, place: str, said: str) -> None:
    with pytest.raises(ConfigFaults) as faults:
        loads(TOP + text, "f", env={})
    (fault,) = str(faults.value).splitlines()
    assert fault.startswith(("f:4:", "f:5:"))
    assert f" {place}" in fault
    assert said in fault


def test_settings_are_shown_as_they_were_written_and_described() -> None:
    text = "constraints: {pay: {arguments: {p: {min: 0.01, max: '500'}}, budgets: {p: {max: 5, window: 1h}}}}"
    config = loads(TOP + text, "f", env={}).config
    assert config.constraints["pay"].arguments["p"].least == Decimal("0.01")
    shown = masked(config)["constraints"]["pay"]
    assert (shown["arguments"]["p"]["min"], shown["arguments"]["p"]["max"]) == ("0.01", "500")
    assert shown["budgets"]["p"]["window"] == "1h0m0s"
    again = loads(TOP + text.replace("0.01", "'0.01'"), "f", env={}).config
    assert digest(again) == digest(config)
    rows = {row[0] for row in describe_settings()}
    assert {"constraints.<tool>.arguments.<argument>.under", "transforms.<tool>.redact"} <= rows
    assert "constraints" in json_schema()["properties"]


def test_only_the_calls_that_a_rule_looks_at_are_judged_one_by_one() -> None:
    runtime = built("constraints: {bank.pay: {arguments: {amount: {max: 5}}}}")
    for amount, allowed in ((5, True), (6, False), (5, True)):
        for _ in range(2):
            verdict = runtime.pipeline.admit(tool("pay", {"amount": amount}, backend="bank"), 0.0)
            assert isinstance(verdict, Allow if allowed else Deny)
    for backend in ("db", "bank"):
        runtime.pipeline.admit(tool("other", {"amount": 6}, backend=backend), 0.0)
    runtime.pipeline.admit(tool("pay", {"amount": 6}, backend="db"), 0.0)
    assert {(key[1], key[4]) for key in runtime.pipeline._known} == {("db", "other"), ("bank", "other"), ("db", "pay")}


def test_a_dialect_alone_and_a_list_of_them_are_digested_alike() -> None:
    one, several = (
        loads(f"constraints: {{q: {{operations: [SELECT], dialect: {how}}}}}", "f") for how in ("mysql", "[mysql]")
    )
    assert digest(one.config) == digest(several.config)
