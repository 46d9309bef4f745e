"""What is proposed for each tool is changed by a person, where one is asked, and becomes the configuration's new text.

Nothing is written here.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aegis_daemon.cli.agents import configuration
from aegis_daemon.cli.console import Problem, say
from aegis_daemon.cli.editing import edited
from aegis_daemon.cli.setup import addresses, questions
from aegis_daemon.cli.setup.asking import only_new
from aegis_daemon.cli.setup.finding import joined

if TYPE_CHECKING:
    from aegis_daemon.cli.setup.finding import Found
    from aegis_daemon.onboarding.proposal import Row, Way


def every_row(found: Found) -> tuple[Row, ...]:
    """Every row, once for each server and tool."""
    return tuple({(row.backend, row.tool): row for path in found.paths for row in path.rows}.values())


def _unasked(found: Found) -> dict[str, str]:
    """Servers that are wired without being asked for their tools, and why."""
    offers = {path.backend: path.offer for path in found.paths if path.offer is not None}
    return {name: offer.why for name, offer in offers.items() if not offer.ok and not offer.asked}


def shown_rows(found: Found, *, whole: bool, as_json: bool) -> None:
    """What is proposed, as a table and in figures. `whole`: every tool has a line."""
    rows, unasked = every_row(found), _unasked(found)
    if (rows or unasked) and not as_json:
        questions.table(rows, unasked, whole=whole)
    if rows or unasked:
        counts = {action: sum(row.action == action for row in rows) for action in ("allow", "ask", "deny")}
        counts["ask"] += len(unasked)  # each call there waits
        say("proposed: " + " · ".join(f"{count} {action}" for action, count in counts.items() if count))


def changed_by_person(found: Found) -> None:
    """The same rows once a person is content with them."""
    rows = questions.rows(every_row(found), _unasked(found))
    now = {(row.backend, row.tool): row for row in rows}
    for path in found.paths:
        path.rows = tuple(now[row.backend, row.tool] for row in path.rows)


def given_to_clients(found: Found, *, asks: bool) -> None:
    """Who shall use a server by its address, where nobody has said so: a person is asked, others are told how."""
    given = found.given
    if given is None or found.named:
        return
    (route,) = found.paths
    offer = route.offer
    if offer is not None and not offer.ok and offer.asked:
        return  # it did not answer
    clients = addresses.installed(found.work)
    chosen = questions.clients([(one.client.id, one.client.name, one.path) for one in clients]) if asks else []
    if chosen:
        found.paths = []
        for target in clients:
            if target.client.id in chosen:
                joined(found, target, asks=asks)
        for path in found.paths:
            path.offer, path.rows = offer, tuple(replace(row, backend=path.backend) for row in route.rows)
    elif not asks:
        found.lines = [(one, addresses.lines(given, found.work, one, route.agent)) for one in clients]
    for path in found.paths:
        only_new(found, path)


def settled(found: Found, observe: bool | None, *, asks: bool) -> questions.Told:
    """The mode, and how people are told of waiting calls."""
    new = not os.path.lexists(found.work.paths.config)
    if observe is not None:
        found.mode = "observe" if observe else "enforce"
    elif new and asks and found.paths:
        found.mode = questions.mode()
    elif new:
        found.mode = "enforce"
    waits = any(row.action == "ask" for row in every_row(found))
    return questions.channel(found.config, found.work.paths.config) if asks and waits else questions.Told()


def _ways(found: Found) -> list[Way]:
    from aegis_daemon.onboarding.proposal import Way, listed

    made = []
    for path in found.paths:
        if path.offer is not None and not path.offer.ok and path.offer.asked:
            continue
        if not path.rows and listed(found.config, path.agent, path.backend):
            continue  # there is nothing to add
        settings: dict[str, Any] = {}
        change = path.change
        if path.server is not None and (path.client is None or (change is not None and not change.before)):
            given = path.server.entry
            settings, secrets = addresses.settings(given, path.backend, found.work.paths.config)
            if path.backend not in (found.config.backends if found.config is not None else ()):
                found.work.secrets |= secrets
        elif path.change is not None and path.client is not None:
            settings = configuration.server_settings(path.client, path.change)
            if path.backend not in (found.config.backends if found.config is not None else ()):
                found.work.secrets |= configuration.server_secrets(found.work, path.client, path.change)
        title = path.client.name if path.client is not None and path.agent == path.client.id else ""
        made.append(Way(path.agent, path.backend, title, settings, path.rows))
    return made


def written_down(found: Found, told: questions.Told, *, asks: bool) -> None:
    """What the configuration is to say, in `found.work`. Raises `Problem`."""
    from aegis_daemon.onboarding.proposal import check, write

    work = found.work
    path = work.paths.config
    base = os.path.dirname(path)
    work.secrets |= told.secrets
    new = not os.path.lexists(path) and bool(found.paths) and not work.here.isolated
    closed = configuration.closed_api(work) if new else {}

    def edit(text: str | None) -> str:
        ways = [] if work.here.isolated else _ways(found)
        made = write(
            text, path, ways, base=base, rule=lambda way: asks, mode=found.mode,
            settings={**told.settings, **(closed if ways else {})},
        )  # fmt: skip
        check(made.text, path, base=base)
        found.kept = tuple(dict.fromkeys(made.kept))
        return made.text if made.steps else (text or "")

    found.edit = edit
    if os.path.lexists(path):
        work.config_old, text = edited(path, edit)
    else:
        from aegis_daemon.config.edit import Stuck

        try:
            work.config_old, text = b"", edit(None) if new else ""
        except Stuck as stuck:
            raise Problem(stuck.message, stuck.hint) from None
    work.config_new = text.encode()
    if work.config_new == work.config_old:
        work.secrets = {}
