"""Every way to tell people of an ask is one file here and one row of `CHANNELS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aegis_daemon.approvals.channels.feishu import Feishu
from aegis_daemon.approvals.channels.generic import Generic
from aegis_daemon.approvals.channels.notice import Channel

CHANNELS: Final[dict[str, Callable[[str, str | None], Channel]]] = {
    "feishu": Feishu,
    "generic": Generic,
}
"""By their names under `approval`; each is made from a webhook's url and a secret or None."""
