"""`aegis status`: the daemon at a glance; 1 when its log is unwell or its rules unproven, 3 when it does not run."""

from __future__ import annotations

from typing import Any

from aegis_daemon.cli import link
from aegis_daemon.cli.console import AWAY, DONE, WRONG, complain, emit, facts, instant, show, span, visible
from aegis_daemon.cli.options import Json, new_app
from aegis_daemon.manage.client import DaemonAway, Refused

app = new_app()
SESSION = {
    "agent_id": "agent",
    "backend_id": "backend",
    "way": "way",
    "era": "era",
    "calls": "calls",
    "in_flight": "in flight",
    "since": "for",
    "shim_pid": "shim",
    "server_pid": "server",
}


@app.command()
def status(as_json: Json = False) -> int:
    """The daemon, its sessions and what waits for you."""
    found = link.running()
    if found is None:
        paths = link.paths()
        if as_json:
            emit({"running": False, "config": paths.config, "socket": paths.socket})
        complain(*link.away(f"the daemon is not running (no answer on `{paths.manage_socket}`)"))
        return AWAY
    if found["mode"] == "observe":
        found["would_24h"] = _would()
    if as_json:
        emit({"running": True, **found})
    else:
        _print(found)
    return DONE if found["audit"]["healthy"] and found["proof"]["healthy"] else WRONG


def _would() -> int | None:
    """How many calls of a day would have been refused; None where the log cannot tell now."""
    try:
        return sum(int(row["count"]) for row in link.call("mode")["would"])
    except (Refused, DaemonAway):
        return None


def _print(found: dict[str, Any]) -> None:
    import time

    audit = found["audit"]
    behind = audit["seq"] - audit["ingested"]
    health = "healthy" if audit["healthy"] else f"UNWELL: {visible(audit['detail'])}"
    if audit["healthy"] and (audit["tampered"] or audit["unsigned"]):  # the warnings below say it all
        health = "CHANGED: `aegis audit verify` says where" if audit["tampered"] else "not signed"
    unproven = not found["proof"]["healthy"]
    tier = {
        "advisory": "advisory: agents run as the daemon's user, so a hostile shell can go around it",
        "isolated": "isolated: the daemon runs as a user of its own",
    }
    facts(
        [
            ("aegis", f"{found['version']}, process {found['pid']}, up {span(found['uptime_s'])}"),
            *((("PAUSED", _pause(pause))) for pause in found["paused"]),
            *((("UNPROVEN", visible(found["proof"]["detail"]) + "; nothing is executed"),) * unproven),
            ("mode", str(found["mode"]) + _observed(found)),
            ("tier", tier.get(found["tier"], str(found["tier"]))),
            ("config", visible(found["config"] or "none: everything is denied; begin with `aegis config init`")),
            ("socket", visible(found["socket"])),
            ("http", f"http://{found['http']}" if found["http"] else "not served"),
            ("audit", f"record {audit['seq']}, {behind} still to index, durability {found['durability']}, {health}"),
            ("servers", f"{found['servers_alive']} running" + _late(found["reaped_late"])),
            ("pending", f"{found['pending']}" + (": see `aegis pending`" if found["pending"] else "")),
            *(("warning", visible(warning)) for warning in found["warnings"]),
        ]
    )
    print()
    now = time.time()
    rows = [{**row, "since": span(now - instant(row["since"]))} for row in found["sessions"]]
    show(rows, SESSION, "no agent is connected")


def _observed(found: dict[str, Any]) -> str:
    count = found.get("would_24h")
    if found["mode"] != "observe":
        return ""
    calls = "" if count is None else f"; {count} call{'' if count == 1 else 's'} of the last 24 h would have been"
    return f": no rule is enforced, nothing is refused{calls}: see `aegis mode`"


def _pause(pause: dict[str, Any]) -> str:
    """`claude-code, by ann 5m ago (note): aegis resume claude-code`."""
    import time

    agent = pause["agent_id"]
    since = span(time.time() - instant(pause["since"]))
    note = f" ({visible(pause['note'], 200)})" if pause["note"] else ""
    undo = "aegis resume" if agent is None else f"aegis resume {visible(agent)}"
    return f"{visible(agent or 'all agents')}, by {visible(pause['by'])} {since} ago{note}; `{undo}` lifts it"


def _late(count: int) -> str:
    return f", {count} processes outlived their session" if count else ""
