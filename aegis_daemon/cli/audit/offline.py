"""What changes the log is asked of the daemon; where none runs, the same parts do it here, under the same lock."""

from __future__ import annotations

import asyncio
import getpass
import os
from pathlib import Path
from typing import Any

from aegis_daemon.cli import link
from aegis_daemon.cli.console import AWAY, Problem, interactive
from aegis_daemon.cli.decision import own_key
from aegis_daemon.manage.client import DaemonAway, approver_key


def ask(verb: str, **args: Any) -> dict[str, Any]:
    """The answer to `purge_audit` or `erase_audit`. Raises `Problem`, `Refused`."""
    try:
        found: dict[str, Any] = link.call(verb, **args)
        return found
    except DaemonAway:
        _person()
        from aegis_daemon.config.load import ConfigFaults
        from aegis_daemon.daemon import reload

        paths = link.paths()
        try:
            force = reload.read(Path(paths.config) if os.path.exists(paths.config) else None)
        except ConfigFaults as faults:
            raise Problem(f"the configuration has faults: {faults}", "see `aegis config validate`") from None
        db_path = Path(force.config.audit.db_path or paths.audit_db)
        if not db_path.exists():
            raise Problem(
                f"there is no audit store `{db_path}`", "the daemon makes one: `aegis daemon start`"
            ) from None
        os.umask(0o077)
        from aegis_daemon.daemon.forgetting import alone
        from aegis_daemon.manage import api

        try:
            return asyncio.run(alone(verb, args, paths, force, db_path, getpass.getuser()))
        except api.Refusal as refusal:
            raise Problem(refusal.message, refusal.hint) from None


def _person() -> None:
    """No daemon tells an agent's shell from a person's; so it takes a terminal, or the approver's key."""
    if interactive():
        return
    given = own_key()
    try:
        known = approver_key(link.paths().approver_key)
    except (OSError, ValueError):
        known = None
    if given is None or given != known:
        raise Problem(
            "no daemon runs, so nobody knows who asks",
            "start it (`aegis daemon start`), use a terminal, or let AEGIS_APPROVER_KEY name the approver key",
            AWAY,
        )
