"""Rate limits: names what a call would consume; whether there is room is asked when it is reserved."""

from __future__ import annotations

from collections.abc import Mapping

from aegis_daemon.core.call import Call
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.units import short_duration as short
from aegis_daemon.core.verdict import PASS, Claim, Opinion, Pass


class RateLimit:
    """`shared` maps (backend, tool) to everybody's claim, `own` (agent, backend, tool) to one agent's."""

    name = "rate_limit"
    by_name = True

    def __init__(self, shared: Mapping[tuple[str, str], Claim], own: Mapping[tuple[str, str, str], Claim]) -> None:
        self._shared = dict(shared)
        self._own = dict(own)
        self._passes: dict[tuple[str, str, str], Pass] = {}
        for (agent, backend, tool), claim in self._own.items():
            both = self._shared.get((backend, tool))
            self._passes[agent, backend, tool] = Pass((both, claim) if both else (claim,))
        self._shared_passes = {key: Pass((claim,)) for key, claim in self._shared.items()}

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Every limit there is, shared ones first."""
        return (*self._shared.values(), *self._own.values())

    def decide(self, call: Call, now: float) -> Opinion:
        """Passes with the claims of a tool call: the shared window first, then the agent's own."""
        if call.method != "tools/call":
            return PASS
        name = call.name
        assert name is not None
        found = self._passes.get((call.principal.agent, call.backend, name))
        return found or self._shared_passes.get((call.backend, name)) or PASS

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        """A limit hides nothing."""
        return True

    def labels(self, principal: Principal, backend: str, tool: str) -> tuple[str, ...]:
        """`Rate:1/1d`, `GlobalRate:15/1h`."""
        found = []
        own = self._own.get((principal.agent, backend, tool))
        if own is not None:
            found.append(f"Rate:{own.max_count}/{short(own.window_s)}")
        shared = self._shared.get((backend, tool))
        if shared is not None:
            found.append(f"GlobalRate:{shared.max_count}/{short(shared.window_s)}")
        return tuple(found)
