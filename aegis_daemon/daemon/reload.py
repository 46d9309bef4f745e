"""A reload builds everything new and swaps one reference; a bad file leaves the old configuration in force."""

from __future__ import annotations

from pathlib import Path

import msgspec

from aegis_daemon.config.load import digest, load
from aegis_daemon.config.runtime import build
from aegis_daemon.config.schema import Config
from aegis_daemon.core.runtime import Runtime

RESTART_KEYS = (
    ("server", "listen"),
    ("server", "read_timeout"),
    ("server", "write_timeout"),
    ("server", "allowed_hosts"),
    ("server", "allowed_origins"),
    ("approval", "listen"),
    ("audit", "db_path"),
    ("audit", "durability"),
)
"""Settings that a running daemon cannot change."""


class InForce(msgspec.Struct, frozen=True):
    """A configuration and what was made of it. `path` is None where there is no file."""

    config: Config
    runtime: Runtime
    path: Path | None
    warnings: tuple[str, ...] = ()


def read(path: Path | None) -> InForce:
    """Loads and compiles. Raises `config.load.ConfigFaults`, and then nothing has changed.

    Without a file everything is denied: that is what an empty configuration says.
    """
    if path is None:
        config = Config()
        note = "no configuration file: every call is refused; write one with `aegis config init`"
        return InForce(config, build(config, digest(config)), None, (note,))
    loaded = load(str(path))
    runtime = build(loaded.config, digest(loaded.config))
    return InForce(loaded.config, runtime, path, tuple(str(warning) for warning in loaded.warnings))


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
