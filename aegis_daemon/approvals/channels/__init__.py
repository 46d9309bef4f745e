"""Every way to tell people of an ask is one file here and one row of `CHANNELS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from aegis_daemon.approvals.channels import desktop, discord, feishu, generic, ntfy, slack, teams, telegram
from aegis_daemon.approvals.channels.notice import Channel

CHANNELS: Final[dict[str, Callable[..., Channel | None]]] = {
    "feishu": feishu.configured,
    "generic": generic.configured,
    "slack": slack.configured,
    "discord": discord.configured,
    "teams": teams.configured,
    "telegram": telegram.configured,
    "ntfy": ntfy.configured,
    "desktop": desktop.configured,
}
"""By their names under `approval`: each takes the values of its section and gives None where that is not filled in.

They raise `ValueError` for values that cannot be.
"""


class Made(msgspec.Struct, frozen=True):
    """A channel, and what it was made of."""

    values: Mapping[str, Any]
    channel: Channel


def make(
    sections: Mapping[str, Mapping[str, Any]], before: Mapping[str, Made], refused: Callable[[str, ValueError], None]
) -> dict[str, Made]:
    """The channels of a configuration; one whose values did not change stays the same object.

    `refused` hears of a section whose values cannot be; that channel is left out, and the others are not.
    """
    made: dict[str, Made] = {}
    for name, factory in CHANNELS.items():
        values = sections[name]
        old = before.get(name)
        if old is not None and old.values == values:
            made[name] = old
            continue
        try:
            channel = factory(**values)
        except ValueError as error:
            refused(name, error)
            continue
        if channel is not None:
            made[name] = Made(values, channel)
    return made
