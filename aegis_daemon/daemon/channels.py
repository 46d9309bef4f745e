"""The channels of the configuration in force, and the words in which people hear what their answer did."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from aegis_daemon.approvals.channels import CHANNELS, Made, make
from aegis_daemon.approvals.notifier import Settings
from aegis_daemon.config.schema import Config, Secret, reveal
from aegis_daemon.daemon.governor import Governor
from aegis_daemon.manage import api

_log = logging.getLogger("aegis.approvals")


class Channels:
    """Makes the notifier's settings anew on a reload, keeping channels that did not change."""

    def __init__(self) -> None:
        self._made: dict[str, Made] = {}

    def settings(self, config: Config, address: str) -> Settings:
        """`address` begins the links where `approval.callback_base_url` does not."""
        approval = config.approval
        sections = {name: values(getattr(approval, name)) for name in CHANNELS}
        self._made = make(sections, self._made, _refused)
        base = approval.callback_base_url
        return Settings(
            tuple(one.channel for one in self._made.values()),
            (reveal(base) if base is not None else f"http://{address}").rstrip("/"),
            approval.confirm == "code",
        )


def values(section: Any) -> Mapping[str, Any]:
    """A section's keys and their values, secrets revealed: for the channel's factory and nobody else."""
    found = {name: getattr(section, name) for name in type(section).model_fields}
    return {name: value.reveal() if isinstance(value, Secret) else value for name, value in found.items()}


def _refused(name: str, error: ValueError) -> None:
    _log.error("the %s channel cannot be used: %s", name, error)


async def answer(
    governor: Callable[[], Governor | None],
    id: str,
    approve: bool,
    *,
    by: str,
    via: str,
    note: str,
    voter: str,
) -> str:
    """A decision that came through a channel: takes it, and says what became of it."""
    found = governor()
    if found is None:
        return "Nothing was decided: Aegis is only just starting. Repeat it."
    try:
        decided = await found.decide(id, approve, by=by, via=via, note=note, voter=voter)
    except api.Refusal as refusal:
        return f"Nothing was decided: {refusal.message}."
    if decided.state == "pending":
        return f"{decided.id}: your yes counts. {decided.given} of {decided.needed} people have agreed."
    return f"{decided.id} is {decided.state}."
