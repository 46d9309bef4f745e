"""What Cedar says of one policy alone, past all that makes one decision of many: something to compare that with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.policy.dialect import Statement
from aegis_daemon.policy.entities import describe
from aegis_daemon.wire.jsonrpc import encode


class People:
    """Cedar's entities of who calls and where, made once. `attributes` are those of each agent."""

    def __init__(self, attributes: Mapping[str, Mapping[str, Any]], servers: Iterable[str]) -> None:
        self._attributes = attributes
        self._servers = frozenset(servers)
        self._known: dict[tuple[str, str], Any] = {}

    def of(self, principal: Principal, server: str) -> Any:
        """Those of a call by this principal to this server."""
        import cedarpy

        key = (principal.agent, server)
        if key not in self._known:
            attributes = self._attributes.get(principal.agent, {})
            text = describe(principal, attributes, self._servers | {server}, fold=False)
            self._known[key] = cedarpy.Entities.from_json_str(text)
        return self._known[key]


class Alone:
    """One policy that looks at no more of the context than names and arguments."""

    def __init__(self, statement: Statement) -> None:
        import cedarpy

        whole = {"staticPolicies": {"0": statement.est}, "templates": {}, "templateLinks": []}
        self._policies = cedarpy.PolicySet.from_json_str(encode(whole).decode())
        self._arguments = "arguments" in statement.reads

    def applies(self, call: Call, people: People) -> bool:
        """Whether its scope and its conditions hold for the call."""
        import cedarpy

        primitive = call.name if call.subject == "server_request" else call.subject
        context = {"primitive": primitive, "target": call.name, "direction": call.direction.value}
        if self._arguments:
            context["arguments"] = call.arguments
        request = {
            "principal": {"type": "Agent", "id": call.principal.agent},
            "action": {"type": "Action", "id": call.method},
            "resource": {"type": "Server", "id": call.backend},
            "context": encode(context).decode(),
        }
        found = cedarpy.is_authorized(request, self._policies, people.of(call.principal, call.backend))
        return bool(found.diagnostics.reasons)
