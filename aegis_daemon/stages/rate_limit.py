"""Rate limits: names what a call would consume; whether there is room is asked when it is reserved."""

from __future__ import annotations

from collections.abc import Mapping

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import bare
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.units import short_duration as short
from aegis_daemon.core.verdict import PASS, Claim, Opinion, Pass

_REMEMBERED = 4096


class RateLimit:
    """`shared` maps (backend, tool) to everybody's claim, `own` (agent, backend, tool) to one agent's.

    A name that has no limit of its own has those of the names that a careless server could take it for.
    """

    name = "rate_limit"
    by_name = True

    def __init__(self, shared: Mapping[tuple[str, str], Claim], own: Mapping[tuple[str, str, str], Claim]) -> None:
        self._shared = dict(shared)
        self._own = dict(own)
        self._alike: dict[tuple[str | None, str, str], tuple[Claim, ...]] = {}
        for claim in self.claims:
            key = (claim.agent, claim.backend, bare(claim.tool))
            self._alike[key] = (*self._alike.get(key, ()), claim)
        self._passes: dict[tuple[str, str, str], Pass] = {}

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
        key = (call.principal.agent, call.backend, name)
        known = self._passes.get(key)
        if known is not None:
            return known
        found = self.of(*key)
        made = Pass(found) if found else PASS
        if len(self._passes) < _REMEMBERED and len(name) <= 256:
            self._passes[key] = made
        return made

    def of(self, agent: str, backend: str, tool: str) -> tuple[Claim, ...]:
        """What a call of the tool would consume."""
        if not self._alike:
            return ()
        shared, own = self._shared.get((backend, tool)), self._own.get((agent, backend, tool))
        if shared is not None and own is not None:
            return (shared, own)
        known = bare(tool)
        everybodys = (shared,) if shared is not None else self._alike.get((None, backend, known), ())
        return everybodys + ((own,) if own is not None else self._alike.get((agent, backend, known), ()))

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        """A limit hides nothing."""
        return True

    def labels(self, principal: Principal, backend: str, tool: str) -> tuple[str, ...]:
        """`Rate:1/1d`, `GlobalRate:15/1h`."""
        claims = self.of(principal.agent, backend, tool)
        own = [f"Rate:{one.max_count}/{short(one.window_s)}" for one in claims if one.agent is not None]
        shared = [f"GlobalRate:{one.max_count}/{short(one.window_s)}" for one in claims if one.agent is None]
        return (*own, *shared)
