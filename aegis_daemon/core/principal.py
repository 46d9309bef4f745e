"""Who a call acts for: told by the connection, never by a frame (hard rule 4)."""

from __future__ import annotations

from functools import lru_cache

import msgspec


class Principal(msgspec.Struct, frozen=True):
    """An agent and what is known of it. `uid` is the peer's user id where the connection has one."""

    agent: str
    uid: int | None = None
    tenant: str = "default"
    roles: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How the audit log names it."""
        return _name(self.agent, self.uid)


@lru_cache(maxsize=4096)
def _name(agent: str, uid: int | None) -> str:
    return agent if uid is None else f"{agent} (uid {uid})"
