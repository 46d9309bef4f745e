"""An agent that is wired gets a way to its server, on which every tool call waits for a person; nothing else changes.

What the file says of the agent or the backend already stays as it is: a rule that a person wrote is never loosened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from aegis_daemon.config.edit import Anything, Edited, Step, Stuck
from aegis_daemon.config.load import loads
from aegis_daemon.config.schema import Config
from aegis_daemon.config.source import ConfigFaults, dotted
from aegis_daemon.config.splice import Change, Unknown, changed, plain, splice

HEAD: Final = (
    "# Aegis: what each agent may use, and what waits for a person. `aegis config schema` tells all settings.\n"
)
ASKS: Final = ("*",)


def opened(
    text: str,
    name: str,
    agent: str,
    backend: str,
    settings: Mapping[str, Any],
    *,
    base: str = "/",
    access: Mapping[str, Any] | None = None,
    put: Callable[[str, Change, str], str] | None = None,
) -> Edited:
    """The text of a configuration in which the agent has the backend.

    :param settings: of the backend where the file has none of that name: `url` and `headers`, or nothing for a server
        that the wrapper hands over. :param name: what faults call the file. :param access: what the agent may do there,
        in place of asking for everything. :param put: makes a change and has read it again, in place of `_made`.
    :raises ConfigFaults: the text has faults as it is. :raises Stuck: it is not changed by program.
    """
    config = loads(to_come(text), name, base=base, env=Anything()).config
    route = ("agents", agent, "backends", backend)
    changes: list[tuple[Change, str]] = []
    if backend not in config.backends:
        what = f"at `{settings['url']}`" if "url" in settings else "its command comes from the agent's own entry"
        given = {key: value for key, value in settings.items() if value}
        changes.append((Change(("backends", backend), "put", given), f"the server `{backend}` is made known ({what})"))
    if agent not in config.agents or backend not in config.agents[agent].backends:
        says = f"`{agent}` may use `{backend}`"
        says += ", and each tool call waits for a person" if access is None else ", by the rules of each tool"
        value = {"allowed": True, "approval_required": list(ASKS)} if access is None else dict(access)
        changes.append((Change(route, "put", value), says))
    for change, says in changes:
        text = (put or _made)(text, change, says)
    try:
        loaded = loads(to_come(text), name, base=base, env=Anything())
    except ConfigFaults as faults:
        raise Stuck(f"the changed file would have a fault: {faults.faults[0]}", "change it by hand") from None
    _only(config, loaded.config, agent, backend)
    return Edited(text, tuple(Step(dotted(change.path), says) for change, says in changes))


def to_come(text: str) -> str:
    """The text as it will read once the files are there that it refers to: some are made when a person has agreed."""
    return re.sub(r"\$\{file:[^}]*\}", "${env:TO_COME}", text)


def _made(text: str, change: Change, says: str) -> str:
    try:
        data = plain(text)
        made, line = splice(text, change)
        if plain(made) != changed(data, change):
            raise Unknown("other settings share what is written there", line)
    except Unknown as unknown:
        raise Stuck(
            f"`{dotted(change.path)}` is not changed by program: {unknown.what}", f"do it by hand: {says}", unknown.line
        ) from None
    return made


def _only(before: Config, after: Config, agent: str, backend: str) -> None:
    """Raises `Stuck` where anything else than the way of this agent to this backend differs."""
    was, now = before.model_dump(), after.model_dump()
    for said in (was, now):
        said["backends"].pop(backend, None)
        found = said["agents"].get(agent)
        if found is not None:
            found["backends"].pop(backend, None)
            if found["backends"] == {} and agent not in before.agents:
                del said["agents"][agent]
    if was != now:
        raise Stuck("other settings would change with it", "change the file by hand")
