"""Turns a loaded configuration into the immutable runtime that decides: globs compiled, claims made, gates in order."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable
from hashlib import sha256

from aegis_daemon.config.rules import rules as rules_of
from aegis_daemon.config.rules import transforms as transforms_of
from aegis_daemon.config.schema import Access, Config, reveal
from aegis_daemon.config.secrets import guard
from aegis_daemon.core.names import Names
from aegis_daemon.core.pipeline import Pipeline
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import AgentRule, BackendRule, HoldRule, Runtime
from aegis_daemon.core.stage import Gate
from aegis_daemon.core.verdict import Claim
from aegis_daemon.lanes import LaneRule
from aegis_daemon.policy.cedar import Engine
from aegis_daemon.stages import ORDER
from aegis_daemon.stages.acl import Acl, Lists, Route
from aegis_daemon.stages.approval import Approval
from aegis_daemon.stages.policy import Policy
from aegis_daemon.stages.rate_limit import RateLimit


def build(
    config: Config, digest: str, wall: Callable[[], float] = time.time, superseded: Iterable[str] = ()
) -> Runtime:
    """The runtime of a configuration; `digest` names it in the audit log, `wall` is the time that policies see.

    `superseded` are secrets of configurations before it.
    """
    gates: dict[str, Gate] = {
        "acl": _acl(config),
        "rate_limit": _rate_limit(config),
        "approval": _approval(config),
    }
    policy = _policy(config, wall)
    if policy is not None:
        gates["policy"] = policy
    limits = gates["rate_limit"]
    assert isinstance(limits, RateLimit)
    agents = {
        name: AgentRule(
            Principal(name, tenant=agent.tenant, roles=agent.roles),
            frozenset(agent.identities) if agent.identities else None,
            sha256(agent.auth_token.reveal().encode()).digest() if agent.auth_token is not None else None,
        )
        for name, agent in config.agents.items()
    }
    own = os.geteuid() if hasattr(os, "geteuid") else -1
    isolated = bool(agents) and all(rule.uids is not None and own not in rule.uids for rule in agents.values())
    return Runtime(
        pipeline=Pipeline([gates[name] for name in ORDER if name in gates], observe=config.mode == "observe"),
        denials=config.denials,
        backends={
            name: BackendRule(
                timeout=backend.timeout,
                count_tool_errors=backend.count_tool_errors,
                command=(backend.command, *map(reveal, backend.args)) if backend.command is not None else None,
                shown=shlex.join((backend.command, *map(str, backend.args))) if backend.command is not None else "",
                env={key: reveal(value) for key, value in backend.env.items()},
                cwd=backend.cwd,
                url=reveal(backend.url) if backend.url is not None else None,
                transport=backend.transport,
                headers={key: reveal(value) for key, value in backend.headers.items()},
            )
            for name, backend in config.backends.items()
        },
        agents=agents,
        server_requests={
            (name, backend): frozenset(access.server_requests)
            for name, agent in config.agents.items()
            for backend, access in agent.backends.items()
            if access.allowed
        },
        claims=limits.claims,
        lanes={
            name: LaneRule(queue.delay_min, queue.delay_max, queue.max_pending, Names(queue.bypass_tools))
            for name, queue in config.queue.items()
            if queue.enabled
        },
        session_limit=min(config.server.max_in_flight_session, 270),
        agent_limit=config.server.max_in_flight_agent,
        sessions_limit=config.server.max_sessions_agent,
        pending_limit=config.approval.max_pending_per_agent,
        unlisted_open=config.defaults.unlisted == "observe",
        hold=_hold(config),
        closed=_closed(config),
        rules=tuple(policy.rules) if policy is not None else (),
        transforms=transforms_of(config),
        secrets=guard(config, superseded),
        isolated=isolated,
        digest=digest,
    )


def _lists(allow: tuple[str, ...] | None, deny: tuple[str, ...]) -> Lists:
    return Lists(Names(allow) if allow is not None else None, Names(deny) if deny else None)


def _route(access: Access) -> Route:
    return Route(
        tools=_lists(access.tool_allowlist, access.tool_denylist),
        resources=_lists(access.resource_allowlist, access.resource_denylist),
        prompts=_lists(access.prompt_allowlist, access.prompt_denylist),
        server_requests=frozenset(access.server_requests),
    )


def _closed(config: Config) -> frozenset[tuple[str, str]]:
    return frozenset(
        (name, backend)
        for name, agent in config.agents.items()
        for backend, access in agent.backends.items()
        if not access.allowed
    )


def _acl(config: Config) -> Acl:
    routes: dict[tuple[str, str], Route] = {}
    for name, agent in config.agents.items():
        for backend, access in agent.backends.items():
            if access.allowed:
                routes[name, backend] = _route(access)
    return Acl(
        routes,
        deny=Names(config.deny.tools),
        allow=Names(config.allow.tools) if config.allow is not None else None,
        open_unlisted=config.defaults.unlisted == "observe",
        refused=_closed(config),
        unconfigured=not config.agents,
    )


def _policy(config: Config, wall: Callable[[], float]) -> Policy | None:
    """The gate of policies and of rules on arguments; None without any, so that nobody pays for it."""
    statements, rules = config.policy.statements, rules_of(config)
    if not statements and not rules:
        return None
    attributes = {name: agent.attributes for name, agent in config.agents.items()}
    engine = Engine(statements, attributes, config.backends) if statements else None
    return Policy(engine, rules, wall=wall)


def _rate_limit(config: Config) -> RateLimit:
    shared = {
        (backend, tool): Claim("global", None, backend, tool, limit.window_s, limit.max_count)
        for backend, queue in config.queue.items()
        for tool, limit in queue.global_rate_limits.items()
    }
    own = {
        (name, backend, tool): Claim("agent", name, backend, tool, limit.window_s, limit.max_count)
        for name, agent in config.agents.items()
        for backend, access in agent.backends.items()
        for tool, limit in access.rate_limits.items()
    }
    return RateLimit(shared, own)


def _approval(config: Config) -> Approval:
    routes = [
        ((name, backend), access) for name, agent in config.agents.items() for backend, access in agent.backends.items()
    ]
    return Approval(
        {key: Names(access.approval_required) for key, access in routes if access.approval_required},
        config.approval.timeout,
        {key: Names(access.second_approver) for key, access in routes if access.second_approver},
    )


def _hold(config: Config) -> HoldRule:
    approval = config.approval
    return HoldRule(
        default=None if isinstance(approval.hold, str) else approval.hold,
        clients=tuple(approval.hold_clients.items()),
        agents={name: agent.hold for name, agent in config.agents.items() if agent.hold is not None},
    )
