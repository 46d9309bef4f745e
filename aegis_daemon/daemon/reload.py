"""A reload builds everything new and swaps one reference; a bad file leaves the old configuration in force."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from aegis_daemon.config.load import Loaded, digest, load
from aegis_daemon.config.runtime import build
from aegis_daemon.config.schema import Config
from aegis_daemon.config.secrets import SUPERSEDED, known_secrets, superseded
from aegis_daemon.core.call import Call
from aegis_daemon.core.ports import Pins
from aegis_daemon.core.runtime import Runtime
from aegis_daemon.core.verdict import Claim, Pass
from aegis_daemon.daemon.fitting import Fits
from aegis_daemon.daemon.misspelt import Misspelt
from aegis_daemon.limits import Usage
from aegis_daemon.policy.schema import Fitting
from aegis_daemon.registry.pins import Registry
from aegis_daemon.stages import ORDER
from aegis_daemon.stages.pin import Pins as PinsGate
from aegis_daemon.stages.policy import Policy

RESTART_KEYS = (
    ("server", "listen"),
    ("server", "read_timeout"),
    ("server", "write_timeout"),
    ("server", "allowed_hosts"),
    ("server", "allowed_origins"),
    ("approval", "listen"),
    ("audit", "db_path"),
    ("audit", "durability"),
    ("audit", "retention_days"),
    ("audit", "bodies_days"),
    ("audit", "key_file"),
    ("audit", "checkpoints"),
    ("telemetry", "metrics"),
    ("telemetry", "tools"),
)
"""Settings that a running daemon cannot change."""


class InForce(msgspec.Struct, frozen=True):
    """A configuration and what was made of it. `path` is None where there is no file."""

    config: Config
    runtime: Runtime
    path: Path | None
    warnings: tuple[str, ...] = ()
    fits: Fits | None = None
    """what the rules are held against; None where they say nothing of arguments"""
    loaded: Loaded | None = None
    """the file as it was read; None where there is none"""
    misspelt: Misspelt | None = None
    """what its names are held against; None where there is no file"""
    secrets: tuple[str, ...] = ()
    """what must not be seen, oldest first: that of the configurations before it too"""


def read(path: Path | None, mode: str = "", before: InForce | None = None) -> InForce:
    """Loads and compiles. Raises `config.load.ConfigFaults`, and then nothing has changed.

    Without a file everything is denied: that is what an empty configuration says. `mode` holds in place of the file's.
    `before` is what it follows: servers know its secrets and may say them, so they stay secret.
    """
    loaded = None
    if path is None:
        config = Config()
        warnings = ["no configuration file: every call is refused; write one with `aegis config init`"]
    else:
        loaded = load(str(path))
        config = loaded.config.model_copy(update={"mode": mode}) if mode else loaded.config
        warnings = [str(warning) for warning in loaded.warnings]
    older, forgotten = superseded(before.secrets if before is not None else (), config)
    if forgotten:
        warnings.append(
            f"{forgotten} secrets that reloads replaced are not looked for any more in what servers say and in the "
            f"log (the newest {SUPERSEDED} are); `aegis daemon restart` ends the servers that were given them"
        )
    runtime = build(config, digest(config), superseded=older)
    secrets = (*older, *sorted(known_secrets(config)))
    return InForce(config, runtime, path, tuple(warnings), loaded=loaded, secrets=secrets)


def pinned(force: InForce, pins: Pins) -> InForce:
    """The same, judging by what is known of the servers, too."""
    gate = PinsGate(pins, hold=force.config.pins.first_seen == "hold")
    runtime = msgspec.structs.replace(force.runtime, pipeline=force.runtime.pipeline.having(gate, ORDER))
    return msgspec.structs.replace(force, runtime=runtime)


def named(force: InForce, pins: Registry) -> InForce:
    """The same, telling which names of tools are no tool's."""
    if force.loaded is None:
        return force
    return msgspec.structs.replace(force, misspelt=Misspelt(force.loaded, pins))


def fitted(force: InForce, pins: Registry, now: Callable[[], float]) -> InForce:
    """The same, refusing tools that its rules do not fit."""
    pipeline = force.runtime.pipeline
    policy = pipeline.gate("policy")
    if not isinstance(policy, Policy):
        return force
    fitting = Fitting(force.config.policy.statements, [rule.constraint for rule in policy.rules])
    if not fitting:
        return force
    fits = Fits(fitting, pins, now)
    runtime = msgspec.structs.replace(force.runtime, pipeline=pipeline.having(policy.fitting(fits.fault), ORDER))
    return msgspec.structs.replace(force, runtime=runtime, fits=fits)


def counted(force: InForce, usage: Callable[[Claim, float], Usage]) -> InForce:
    """The same, with what has been used of limits in the policies' context, where a policy looks at it."""
    pipeline = force.runtime.pipeline
    policy, limits = pipeline.gate("policy"), pipeline.gate("rate_limit")
    if not isinstance(policy, Policy) or limits is None or "rate" not in policy.reads:
        return force

    def used(call: Call, now: float) -> dict[str, Any]:
        opinion = limits.decide(call, now)
        claims = opinion.claims if isinstance(opinion, Pass) else ()
        found = {claim.scope: usage(claim, now) for claim in claims}
        return {scope: {"used": one.current + one.reserved, "max": one.claim.max_count} for scope, one in found.items()}

    runtime = msgspec.structs.replace(force.runtime, pipeline=pipeline.having(policy.counting(used), ORDER))
    return msgspec.structs.replace(force, runtime=runtime)


def changed(old: Config, new: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The top-level sections that differ, and the keys that need a restart."""
    sections = tuple(name for name in Config.model_fields if getattr(old, name) != getattr(new, name))
    restart = tuple(
        f"{section}.{key}"
        for section, key in RESTART_KEYS
        if getattr(getattr(old, section), key) != getattr(getattr(new, section), key)
    )
    return sections, restart


def kept(old: Config, new: Config) -> Config:
    """`new` with `old`'s values of the keys that need a restart: what a running daemon goes by, and says it does."""
    sections: dict[str, dict[str, object]] = {}
    for section, key in RESTART_KEYS:
        sections.setdefault(section, {})[key] = getattr(getattr(old, section), key)
    return new.model_copy(
        update={name: getattr(new, name).model_copy(update=values) for name, values in sections.items()}
    )
