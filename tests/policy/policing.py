"""Policies as a house has them, and calls as an agent makes them."""

from __future__ import annotations

from typing import Any

from making import call, tool

from aegis_daemon.config.load import loads
from aegis_daemon.config.runtime import build
from aegis_daemon.core.call import Call
from aegis_daemon.core.pipeline import Pipeline
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Deny, Pass, Reason
from aegis_daemon.policy.cedar import Engine
from aegis_daemon.policy.dialect import PolicyError, PolicyFault, read
from aegis_daemon.policy.rules import Rules
from aegis_daemon.stages.policy import Policy

NOON = 1_790_251_200.0
"""2026-09-24 12:00 UTC, a Thursday."""


def gate(
    text: str, *, attributes: dict[str, Any] | None = None, servers: tuple[str, ...] = ("files",), **more: Any
) -> Policy:
    """The gate of these policies; `attributes` are amy's."""
    engine = Engine(read(text, "p.cedar"), {"amy": attributes or {}}, servers)
    return Policy(engine, Rules(()), wall=lambda: NOON, **more)


def refused(opinion: object) -> Reason:
    """The reason of a refusal."""
    assert isinstance(opinion, Deny), opinion
    assert opinion.reason.detail
    return opinion.reason


def allows(policy: Policy, of: Call) -> bool:
    """Whether the gate lets the call pass."""
    opinion = policy.decide(of, 0.0)
    assert isinstance(opinion, Pass | Deny)
    return isinstance(opinion, Pass)


def named(subject: str, name: str, **more: Any) -> Call:
    """A call about a thing of this kind."""
    if subject == "tool":
        return tool(name, **more)
    if subject == "prompt":
        return call("prompts/get", {"name": name}, **more)
    return call("resources/read", {"uri": name}, **more)


def faults(text: str) -> list[PolicyFault]:
    """What is wrong with a text."""
    try:
        read(text, "p.cedar")
    except PolicyError as error:
        return error.faults
    return []


def pipeline(yaml: str) -> Pipeline:
    """The pipeline of a whole configuration."""
    return build(loads(yaml, "aegis.yaml").config, "digest").pipeline


def indented(text: str, by: int = 4) -> str:
    """As a literal block below a key."""
    return "".join(f"{' ' * by}{line}\n" if line else "\n" for line in text.splitlines())


AMY = Principal("amy")
