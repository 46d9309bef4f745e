"""What `constraints` and `transforms` say, compiled: the rules on arguments and what is redacted."""

from __future__ import annotations

from aegis_daemon.config import schema
from aegis_daemon.config.schema import Config
from aegis_daemon.policy.rules import Argument, Constraint, Rules, Spending, Sql, compile_rule
from aegis_daemon.policy.transforms import Transform, Transforms


def rules(config: Config) -> Rules:
    """All rules on arguments."""
    return Rules(compile_rule(constraint(tool, written)) for tool, written in config.constraints.items())


def transforms(config: Config) -> Transforms | None:
    """All that is redacted; None where nothing is."""
    made = [
        Transform(tool, written.redact, pass_unreadable=written.unreadable == "pass")
        for tool, written in config.transforms.items()
    ]
    return Transforms(made) if made else None


def constraint(tool: str, written: schema.Constraint) -> Constraint:
    """One rule as the engine takes it."""
    sql = None
    if written.operations:
        sql = Sql(written.operations, written.argument, written.dialect or (), written.functions)
    return Constraint(
        tool,
        {name: _argument(rule) for name, rule in written.arguments.items()},
        written.extra == "forbid",
        sql,
        tuple(
            Spending(name, budget.most, budget.window_s, budget.per == "agent", budget.optional)
            for name, budget in written.budgets.items()
        ),
    )


def _argument(rule: schema.ArgumentRule) -> Argument:
    return Argument(
        optional=rule.optional,
        each=rule.each,
        under=rule.under,
        hosts=rule.hosts,
        schemes=rule.schemes,
        domains=rule.domains,
        least=rule.least,
        most=rule.most,
        whole=rule.whole,
        one_of=rule.one_of,
        matches=rule.matches,
        max_length=rule.max_length,
    )
