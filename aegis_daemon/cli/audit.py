"""`aegis audit`: the log, read from its file, so that it can be read and verified whether or not a daemon runs.

Each command is one file and one line here.
"""

from __future__ import annotations

from aegis_daemon.cli import (
    audit_erase,
    audit_export,
    audit_key,
    audit_purge,
    audit_search,
    audit_show,
    audit_stats,
    audit_tail,
    audit_verify,
)
from aegis_daemon.cli.audit_log import Db, opened
from aegis_daemon.cli.options import new_app

__all__ = ["Db", "app", "opened"]
app = new_app()
app.command("search")(audit_search.search)
app.command("export")(audit_export.export)
app.add_typer(audit_export.exports, name="exports")
app.command("show")(audit_show.show)
app.command("tail")(audit_tail.tail)
app.command("stats")(audit_stats.stats)
app.command("verify")(audit_verify.verify)
app.command("checkpoint")(audit_verify.checkpoint)
app.add_typer(audit_key.app, name="key")
app.command("purge")(audit_purge.purge)
app.command("erase")(audit_erase.erase)
