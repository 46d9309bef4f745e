"""Approval: a tool on the agent's lists runs only after a person agreed to this one call, or two people did."""

from __future__ import annotations

from collections.abc import Mapping

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import Restricted
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import PASS, Ask, Hold, Opinion


class Approval:
    """`required` maps (agent, backend) to the tools that need a person, `second` to those that need two."""

    name = "approval"
    by_name = True

    def __init__(
        self,
        required: Mapping[tuple[str, str], Restricted],
        timeout_s: float,
        second: Mapping[tuple[str, str], Restricted] | None = None,
    ) -> None:
        self._required = dict(required)
        self._second = dict(second or {})
        self._timeout = timeout_s

    def decide(self, call: Call, now: float) -> Opinion:
        """Holds a call of a listed tool."""
        if call.method != "tools/call":
            return PASS
        if call.name is None:
            return PASS
        key = (call.principal.agent, call.backend)
        second = self._second.get(key)
        if second is not None and call.name in second:
            return Hold(call, Ask(f"{_rules(*key)}.second_approver", self._timeout, 2))
        required = self._required.get(key)
        if required is None or call.name not in required:
            return PASS
        return Hold(call, Ask(f"{_rules(*key)}.approval_required", self._timeout))

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        """What needs a person is shown, so that the agent can ask."""
        return True

    def labels(self, principal: Principal, backend: str, tool: str) -> tuple[str, ...]:
        """`ApprovalRequired`."""
        key = (principal.agent, backend)
        asked = any(tool in lists[key] for lists in (self._required, self._second) if key in lists)
        return ("ApprovalRequired",) if asked else ()


def _rules(agent: str, backend: str) -> str:
    return f"agents.{agent}.backends.{backend}"
