"""One configuration in force: compiled, immutable, swapped whole. Counters, tickets and places live outside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from aegis_daemon.core.pipeline import Pipeline
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import Claim
from aegis_daemon.wire.methods import SERVER_REQUESTS


class BackendRule(msgspec.Struct, frozen=True):
    """A backend, for the path of a call. `timeout` in seconds; `command` is None where the shim hands one over."""

    timeout: float = 120.0
    count_tool_errors: bool = False
    command: tuple[str, ...] | None = None
    shown: str = ""
    """the command as it may be shown to an agent: without its secrets"""
    env: Mapping[str, str] = {}
    cwd: str | None = None
    url: str | None = None
    transport: str = "auto"
    headers: Mapping[str, str] = {}


class AgentRule(msgspec.Struct, frozen=True):
    """What the path of a call needs of an agent. `uids` are the users that may be it; None: the daemon's own.

    `token` is the SHA-256 of what it shows over the network; None: it need not show anything.
    """

    principal: Principal
    uids: frozenset[int] | None = None
    token: bytes | None = None


class HoldRule(msgspec.Struct, frozen=True):
    """How long calls are held for a person, in seconds. `default` None: what suits the client.

    `agents` goes before `clients`, whose patterns are in the order of the file, and those before `default`.
    """

    default: float | None = None
    clients: tuple[tuple[str, float], ...] = ()
    agents: Mapping[str, float] = {}


class Runtime(msgspec.Struct, frozen=True):
    """`server_requests` maps (agent, backend) to what the server may ask of the client."""

    pipeline: Pipeline
    denials: str
    backends: Mapping[str, BackendRule]
    agents: Mapping[str, AgentRule]
    server_requests: Mapping[tuple[str, str], frozenset[str]]
    claims: tuple[Claim, ...]
    lanes: Mapping[str, Any]
    session_limit: int
    agent_limit: int
    sessions_limit: int
    pending_limit: int
    unlisted_open: bool
    isolated: bool
    digest: str
    hold: HoldRule = HoldRule()
    closed: frozenset[tuple[str, str]] = frozenset()
    """(agent, backend) pairs that say `allowed: false`"""
    rules: tuple[Any, ...] = ()
    """`policy.rules.Rule`s: the rules on arguments, for whoever asks for their budgets"""
    transforms: Any = None
    """`policy.transforms.Transforms`; None where nothing is redacted"""
    secrets: Any = None
    """`policy.secrets.Guard`; None where nothing is kept secret"""

    def backend(self, name: str) -> BackendRule:
        """The rule of a backend; the defaults for one that is not configured."""
        return self.backends.get(name) or _DEFAULT

    def may_ask(self, agent: str, backend: str) -> frozenset[str]:
        """What the server may ask of this agent by the rules."""
        return self.server_requests.get((agent, backend)) or _NOTHING

    def offers(self, agent: str, backend: str) -> frozenset[str]:
        """What the agent may offer the server: in observe mode even what the rules do not allow."""
        return _EVERYTHING if self.pipeline.observe else self.may_ask(agent, backend)

    def routes(self, agent: str) -> tuple[str, ...]:
        """The backends that the agent may use and that the daemon itself can reach, in the order of the file."""
        return tuple(
            name
            for name, rule in self.backends.items()
            if (rule.command is not None or rule.url is not None) and self.reaches(agent, name)
        )

    def reaches(self, agent: str, backend: str) -> bool:
        """Whether frames that no gate judges may pass between the two, and a server may run for the agent."""
        pair = (agent, backend)
        return pair in self.server_requests or self.pipeline.observe or (self.unlisted_open and pair not in self.closed)


_DEFAULT = BackendRule()
_NOTHING: frozenset[str] = frozenset()
_EVERYTHING = frozenset(SERVER_REQUESTS.values())
