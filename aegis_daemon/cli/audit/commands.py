"""`aegis audit`: the log, read from its file, so that it can be read and verified whether or not a daemon runs.

Each command is one file and one line here.
"""

from __future__ import annotations

from aegis_daemon.cli.audit import erase, export, key, purge, search, show, stats, tail, verify
from aegis_daemon.cli.options import new_app

app = new_app()
app.command("search")(search.search)
app.command("export")(export.export)
app.add_typer(export.exports, name="exports")
app.command("show")(show.show)
app.command("tail")(tail.tail)
app.command("stats")(stats.stats)
app.command("verify")(verify.verify)
app.command("checkpoint")(verify.checkpoint)
app.add_typer(key.app, name="key")
app.command("purge")(purge.purge)
app.command("erase")(erase.erase)
