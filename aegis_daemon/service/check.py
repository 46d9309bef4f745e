"""Nothing starts the machine's daemon on a configuration that isolates nobody, whatever changed since it was prepared.

It may be the file, or who is in which group. systemd runs this before the daemon; `launch` asks it without systemd.
"""

from __future__ import annotations

import os
import sys

from aegis_daemon.config.load import load
from aegis_daemon.config.paths import Paths
from aegis_daemon.config.schema import Config
from aegis_daemon.config.source import ConfigFaults
from aegis_daemon.service import machine
from aegis_daemon.service.steps import Unable


def isolating(paths: Paths) -> Config:
    """The configuration. Raises `Unable` where it is none for the isolated tier, `ConfigFaults` where it has faults."""
    config = load(paths.config).config
    wrong = machine.faults(config)
    if wrong:
        raise Unable("this configuration isolates nobody:\n  " + "\n  ".join(wrong), "mend it first")
    return config


def main() -> int:
    """0 where the daemon may start; else the reasons are on stderr."""
    try:
        isolating(Paths.find(os.environ))
    except Unable as unable:
        print(f"aegis: {unable.message}; {unable.hint}", file=sys.stderr)
    except ConfigFaults as faults:
        print(f"aegis: the configuration has faults, nothing was started:\n{faults.render()}", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
