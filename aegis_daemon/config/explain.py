"""What each stage of a configuration says of one call, and the rule that decides: asked of the rules alone."""

from __future__ import annotations

from typing import Any

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.stage import Gate
from aegis_daemon.core.verdict import Deny, Hold, Opinion
from aegis_daemon.stages.policy import Policy
from aegis_daemon.wire.jsonrpc import WireFault, encode, parse
from aegis_daemon.wire.methods import TO_CLIENT, TO_SERVER, BadParams, Direction, Era, subject_of


class Step(msgspec.Struct, frozen=True):
    """One stage's opinion: pass, deny or hold; the rule it goes by, and what the agent would be told."""

    stage: str
    opinion: str
    rule: str = ""
    text: str = ""


class Unasked(ValueError):
    """No such call can be made; the text says why."""


def explain(
    runtime: Runtime, agent: str, backend: str, method: str, params: dict[str, Any], now: float
) -> tuple[Step, ...]:
    """What the stages say, in their order; the first that denies has the last word. Raises `Unasked`."""
    call = asked(runtime, agent, backend, method, params)
    return tuple(step(gate, opinion, call, now) for gate, opinion in opinions(runtime, call, now))


def asked(runtime: Runtime, agent: str, backend: str, method: str, params: dict[str, Any]) -> Call:
    """The call as the stages would see it. Raises `Unasked`."""
    row = TO_SERVER.get(method) or TO_CLIENT.get(method)
    if row is None:
        raise Unasked(f"there is no method `{method}` to judge")
    try:
        frame = parse(encode({"jsonrpc": "2.0", "id": 0, "method": method, "params": params}))
        subject, name = subject_of(row, frame.params)
    except (WireFault, BadParams) as fault:
        raise Unasked(str(fault)) from None
    rule = runtime.agents.get(agent)
    principal = rule.principal if rule is not None else Principal(agent)
    direction = Direction.TO_SERVER if method in TO_SERVER else Direction.TO_CLIENT
    return Call("0" * 32, 0, "explained", principal, direction, row, subject, name, backend, Era.LEGACY, frame)


def opinions(runtime: Runtime, call: Call, now: float) -> tuple[tuple[Gate, Opinion], ...]:
    """Every gate and what it says of the call, whatever those before it said."""
    return tuple((gate, gate.decide(call, now)) for gate in runtime.pipeline.gates)


def step(gate: Gate, opinion: Opinion, call: Call, now: float) -> Step:
    """The same in words."""
    if isinstance(opinion, Deny):
        return Step(gate.name, "deny", opinion.reason.detail, opinion.reason.text)
    if isinstance(opinion, Hold):
        return Step(gate.name, "hold", opinion.ask.rule, "a person is asked")
    why = gate.why(call, now) if isinstance(gate, Policy) else ""
    counted = ", ".join(f"the {claim.scope} limit of `{claim.tool}`" for claim in opinion.claims)
    return Step(gate.name, "pass", why or counted)
