"""Who a call acts for: told by the connection, never by a frame (hard rule 4)."""

from __future__ import annotations

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
        return self.agent if self.uid is None else f"{self.agent} (uid {self.uid})"
