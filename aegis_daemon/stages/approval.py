"""Approval: a tool on the agent's list runs only after a person agreed to this one call."""

from __future__ import annotations

from collections.abc import Mapping

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import Names
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import PASS, Ask, Hold, Opinion


class Approval:
    """`required` maps (agent, backend) to the tools that need a person."""

    name = "approval"
    by_name = True

    def __init__(self, required: Mapping[tuple[str, str], Names], timeout_s: float) -> None:
        self._required = dict(required)
        self._timeout = timeout_s

    def decide(self, call: Call, now: float) -> Opinion:
        """Holds a call of a listed tool."""
        if call.method != "tools/call":
            return PASS
        required = self._required.get((call.principal.agent, call.backend))
        if required is None or call.name is None or call.name not in required:
            return PASS
        rule = f"agents.{call.principal.agent}.backends.{call.backend}.approval_required"
        return Hold(call, Ask(rule, self._timeout))

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        """What needs a person is shown, so that the agent can ask."""
        return True

    def labels(self, principal: Principal, backend: str, tool: str) -> tuple[str, ...]:
        """`ApprovalRequired`."""
        required = self._required.get((principal.agent, backend))
        return ("ApprovalRequired",) if required is not None and tool in required else ()
