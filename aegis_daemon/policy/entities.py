"""Who acts, in what roles and for which tenant, and where: as Cedar's entities.

An agent is a member of its roles and of its tenant. What is not known of it never speaks for it: `is_external` is true
unless the configuration says exactly `false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from aegis_daemon.core.principal import Principal
from aegis_daemon.policy.context import folded, plain
from aegis_daemon.policy.dialect import ACTIONS

OWN: Final = ("name", "tenant", "roles")
"""Attributes that every agent has, whatever its configuration says."""


def agent_attributes(principal: Principal, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What policies may ask of the principal."""
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in attributes.items()}
    return {
        **plain(given),
        "is_external": attributes.get("is_external") is not False,
        "name": principal.agent,
        "tenant": principal.tenant,
        "roles": list(principal.roles),
    }


def describe(principal: Principal, attributes: Mapping[str, Any], servers: frozenset[str], *, fold: bool) -> str:
    """The entities of one principal's calls, as JSON; with `fold` every attribute as `context.folded` shows it."""
    parents = [{"type": "Role", "id": role} for role in principal.roles]
    parents.append({"type": "Tenant", "id": principal.tenant})
    entities: list[dict[str, Any]] = [{"uid": parent, "attrs": {}, "parents": []} for parent in _each_once(parents)]
    attrs = agent_attributes(principal, attributes)
    entities.append({"uid": {"type": "Agent", "id": principal.agent}, "attrs": attrs, "parents": _each_once(parents)})
    entities += [
        {"uid": {"type": "Server", "id": name}, "attrs": {"name": name}, "parents": []} for name in sorted(servers)
    ]
    # Actions too: of one that is not there Cedar cannot tell, as long as anything is unknown, that it is not in a list.
    entities += [{"uid": {"type": "Action", "id": name}, "attrs": {}, "parents": []} for name in ACTIONS]
    if fold:
        entities = [{**entity, "attrs": folded(entity["attrs"])} for entity in entities]
    return msgspec.json.encode(entities).decode()


def _each_once(parents: list[dict[str, str]]) -> list[dict[str, str]]:
    return list({(one["type"], one["id"]): one for one in parents}.values())
