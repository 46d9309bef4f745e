"""Servers are asked for their tools before anything changes; what others may have written is shown before it starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from aegis_daemon.cli.agents import doing, planning
from aegis_daemon.cli.console import confirm, say, visible
from aegis_daemon.cli.setup import finding
from aegis_daemon.cli.setup.questions import counted, tell
from aegis_daemon.clients import plans

if TYPE_CHECKING:
    from aegis_daemon.cli.setup.finding import Found, Route
    from aegis_daemon.onboarding.probe import Offer, Server


def agreed(found: Found, *, asks: bool, dry_run: bool) -> bool:
    """Whether what a file says that is not the person's own may be started, once a person has seen what that is.

    A dry run starts nothing of it.
    """
    from aegis_daemon.cli.agents.diff import difference
    from aegis_daemon.onboarding.probe import Offer

    strange = [path for path in found.paths if path.strange and path.server is not None]
    if not strange:
        return True
    tell("not from a file of your own, so look at what would be started or called to ask for tools:")
    shown: set[object] = set()
    for path in strange:
        assert path.server is not None
        if path.server.key in shown:
            continue
        shown.add(path.server.key)
        entry = path.server.entry
        if entry.kind == "http":
            said: dict[str, Any] = {"url": entry.url, "headers": dict(entry.headers)}
        else:
            said = {"command": entry.command, "args": list(entry.args), "cwd": entry.cwd, "env": dict(entry.env)}
        said = {key: value for key, value in said.items() if value}
        say(f"  {visible(path.name)} of {visible(path.file)}:")
        for line in difference((), said, said)[1:]:
            say(f"   {visible(line)}")
    if not dry_run:
        return not asks or confirm(f"start {'it' if len(shown) == 1 else 'these'}?")
    why = "it was not asked: a dry run starts nothing that stands in a file which is not your own"
    for path in strange:
        path.server = None
        path.offer = Offer(False, why=why, fix="run it without `--dry-run`: it shows this, and asks first", asked=False)
    return True


def asked(found: Found, trusted: frozenset[str]) -> None:
    """Asks each server that needs rules for its tools, and judges them."""
    from urllib.parse import urlsplit

    from aegis_daemon.onboarding.probe import ask
    from aegis_daemon.onboarding.proposal import propose
    from aegis_daemon.onboarding.risk import judge, known_server

    waiting = [path for path in found.paths if path.server is not None]
    if not waiting:
        return
    if not finding.quiet(found) or (found.given is not None and not found.named):
        tell(f"asking {counted(len({path.server.key for path in waiting if path.server}), 'server')} for tools …")
    quiet = {path.server.key for path in waiting if path.server} - {
        path.server.key for path in waiting if path.server and not path.known
    }

    called: dict[object, dict[str, None]] = {}
    files: dict[object, dict[str, None]] = {}
    for path in waiting:
        if path.server is not None:
            called.setdefault(path.server.key, {})[_named(path)] = None
            files.setdefault(path.server.key, {})[path.file] = None

    def told(server: Server, offer: Offer) -> None:
        name = visible(", ".join(called[server.key]))
        if offer.ok and server.key in quiet:
            return
        if offer.ok:
            more = "".join(
                f", {counted(n, what)}" for n, what in ((offer.prompts, "prompt"), (offer.resources, "resource")) if n
            )
            tell(f"  {name}: {counted(len(offer.tools), 'tool')}{more}")
            if offer.more:
                tell(f"    {counted(offer.more, 'tool')} more than anybody reads: not looked at, and so refused")
        else:
            where = ", ".join(visible(file) for file in files[server.key] if file)
            tell(f"  {name}{f' ({where})' if where else ''}: {visible(offer.why)}")
            tell(f"    {visible(offer.fix)}")

    def waits(server: Server) -> None:
        name = visible(", ".join(called[server.key]))
        tell(f"  {name}: still waiting, since its command may be installing it first …")

    try:
        offers = ask([path.server for path in waiting if path.server is not None], os.environ, told=told, waits=waits)
    except KeyboardInterrupt:
        tell("interrupted: the servers that were started have been ended, and nothing was changed")
        raise
    for path, offer in zip(waiting, offers, strict=True):
        assert path.server is not None
        path.offer = offer
        entry = path.server.entry
        known = known_server([entry.command, *entry.args], urlsplit(entry.url).hostname or "")
        judged = judge(offer.tools, server=known, trusted=path.name in trusted, name=path.backend)
        path.rows = propose(path.backend, judged)
        if path.client is not None or path.known:
            only_new(found, path)
    _without_the_silent(found)


def _named(path: Route) -> str:
    """A server with the client whose it is."""
    return path.backend if path.client is None else f"{path.client.name}: {path.name}"


def only_new(found: Found, path: Route) -> None:
    """Of a way that has rules, the rows of tools that are in none of its lists."""
    from aegis_daemon.onboarding.proposal import listed, unlisted

    if listed(found.config, path.agent, path.backend):
        path.rows = unlisted(found.config, path.agent, path.backend, path.rows)


def _without_the_silent(found: Found) -> None:
    """A server that did not answer is not wired: its agent would have an entry that does not work."""
    silent = {id(path.change) for path in found.paths if path.offer and not path.offer.ok and path.offer.asked}
    for at, plan in enumerate(found.work.plans):
        kept = {change.keys for change in plan.changes if id(change) not in silent}
        if len(kept) == len(plan.changes):
            continue
        work = found.work
        again = plans.plan_wire(
            plan.client, plan.path, plan.before, work.here, work.have, agent=plan.changes[0].agent, change=work.change,
            backends={change.keys: change.backend for change in plan.changes}, names=kept,
            choices={
                change.name: doing.again(planning.Row(change, plan)) for change in plan.changes
            },
        )  # fmt: skip
        found.work.plans[at] = again
        by_keys = {change.keys: change for change in again.changes}
        for path in found.paths:
            if path.change is not None and path.file == plan.path:
                path.change = by_keys.get(path.change.keys)
